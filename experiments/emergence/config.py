"""Eight skills and English text, learnt together by decoders of eight sizes."""

import json
import os
import pathlib
import re
import zlib

import numpy as np

from configs import decoder
from lmjax import process
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.evals import builtin, tasks
from lmjax.sweeps.combinators import product

HERE = pathlib.Path(__file__).resolve().parent
TASKS = sorted(str(path) for path in (HERE / "tasks").glob("*.toml"))
ITEMS = 300
LADDER = {8: 0.84e6, 16: 1.44e6, 24: 2.02e6, 40: 3.2e6, 56: 4.4e6, 80: 6.1e6, 112: 8.4e6, 160: 12e6}  # width: tokens
RATE = 2.0**-9
DOCUMENTS, VERSION = 600_000, 1


def held_out(prompt: str) -> bool:
    """Whether an item is left out of the training text: one in ten; of a sum, (b, a) together with (a, b)."""
    key = re.sub(r"(\d+)\+(\d+)", lambda m: "+".join(sorted(m.groups())), prompt)
    return zlib.crc32(key.encode()) % 10 == 0


def write_skills(path: pathlib.Path) -> None:
    """Writes about 0.9 DOCUMENTS, {"text": "sort dbca=abcd"} a line, each of a random task; always the same."""
    rng = np.random.Generator(np.random.Philox(key=[VERSION, 0]))
    found = tasks.find(TASKS)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        for number in rng.integers(len(found), size=DOCUMENTS).tolist():
            task, fields = found[number], None
            while fields is None:  # a draw may give no example
                fields = task.made_by.make(builtin.Draw(rng, task.options, 0, "train", None))
            prompt = tasks.fill(task.prompt, fields, task.name)
            if not held_out(prompt):
                file.write(json.dumps({"text": prompt + tasks.fill(task.answer, fields, task.name)}) + "\n")
    os.replace(temporary, path)


def get_config(variant: str = ""):
    """Returns the base config; writes the skills (20 MB) into lmjax's cache the first time."""
    if variant not in ("", "pilot"):
        raise InputError(f"unknown {variant!r}{nearest(variant, ['pilot'])}")
    path = process.cache_folder() / "emergence" / f"skills-{VERSION}.jsonl"
    if not path.exists():
        write_skills(path)
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 3,
            "model.head_dim": 8,
            "parametrization.name": "mup",
            "parametrization.base_width": 256,
            "optimizer.learning_rate": RATE,
            "schedule.final_fraction": 0.0,
            "data.sources": (f"files:{path}", "en"),
            "data.weights": (0.8, 0.2),
            "data.mode": "pack",
            "data.seq_len": 64,
            "data.global_batch_size": 16,
            "evaluation.batch_size": 64,
            "evaluation.max_tokens": 65_536,
            "metrics.every_steps": 50,
            "run.name": "emergence",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each size and seed."""
    if variant == "pilot":
        return [cell(width, LADDER[width]) for width in (16, 40)] + [cell(80, 3e6)]
    return [{**cell(width, tokens), "train.seed": seed} for width, tokens in LADDER.items() for seed in range(3)]


def cell(width: int, tokens: float) -> dict:
    """Returns the overrides of a cell."""
    return {"model.d_model": width, "model.num_heads": width // 8, "duration.tokens": tokens}

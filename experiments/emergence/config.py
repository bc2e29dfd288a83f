"""Eight skills and English text, learnt together by decoders of eight sizes: what emerges, and in which metric?

Question: do tasks rise from chance at a size of their own (arXiv 2206.07682)? Does the loss of the answers jump there
          too, or exact match alone (arXiv 2304.15004)? Is a task's accuracy one curve of the validation loss, whatever
          the size (arXiv 2403.15796)?
Command:  lmjax sweep experiments/emergence/config.py:pilot --no-analysis --workdir runs/emergence
          python experiments/emergence/collect.py --pilot runs/emergence     (refuses a ladder of too little power)
          lmjax sweep experiments/emergence/config.py --no-analysis --workdir runs/emergence
          python experiments/emergence/collect.py runs/emergence             (evaluations, verdicts, figures, page)
          three architectures, FAMILY encoder, encoder_decoder and decoder_answers:
          lmjax sweep experiments/emergence/config.py:FAMILY --no-analysis --workdir runs/emergence-FAMILY
          python experiments/emergence/three.py runs
Time:     2.7e14 FLOP, about 45 minutes of two cores (estimated); 4.4e13, 4.9e13 and 4.4e13 FLOP, 15, 16 and
          13 minutes on two cores that did other work too, for the three of FAMILY
Results:  the README beside this file.

A document is one item of one task (tasks/*.toml) with its answer, such as "sort qzjavbmk=abjkmqvz", packed so that it
never sees another one; four rows in five are such documents, one is English text. One item in five, chosen by a hash,
is in no document, and `lmjax eval` asks for such items only. Tokens grow with size; one learning rate under muP.

Design: at 70.7k parameters and 3.2M tokens, a first run of similar tasks had an exact match of 1.00 (copying), 0.66
(words), 0.54 (sorting), 0.46 (closing), 0.15 (modular), 0.06 (sums), 0.01 (recall) and 0.00 (reversal), and at 14.4k
parameters 0.06 (closing) and at most 0.02 elsewhere. So each task rises within the ladder; where most of them rise,
there are more seeds. The pilot is part of the ladder: two seeds up to width 40, one at 56 and at 80. The rest is
trained if the pilot says that LEAST tasks are decidable.

Predictions (before the pilot): 1. exact match of at least six tasks is below 0.05 at the smallest size and above 0.8
at the largest. 2. At least five tasks are decidable; where exact match is sharp, it is sharp in the metric only, since
p^L of a smooth p is steep; copying, a step from attention to one offset, is the likeliest to be sharp in the loss too.
3. Single seeds rise more steeply than their mean in most tasks. 4. Accuracy against the validation loss is one curve
at first sight, but not within the noise of seeds: runs of equal loss differ in what they have learnt.

Verdicts on what is published: sharp rises from chance (2206.07682) are reproduced if half of the tasks start within
NEAR_CHANCE of chance and rise within half of the ladder, not reproduced if that is impossible for half of them. That
the jump is the metric's (2304.15004) is reproduced if a task is sharp in the metric only and none in the loss too, not
reproduced if one is. One curve of the loss (2403.15796) is reproduced if the scatter test finds nothing but noise of
seeds and items around a monotone curve in more than half of the tasks, not reproduced in fewer.

Three architectures: the same documents, held-out items, steps and learning rates of experiments/three_architectures.
An encoder (:encoder, answers.py) reads the rows of the decoders; the whole answer is masked and filled at once, and
bytes of the English rows are masked. An encoder-decoder (:encoder_decoder) reads the question and writes the answer;
English text by span corruption. Both learn from answers alone, a decoder from every byte; :decoder_answers is the
control, decoders that learn from the answers alone. All have rotary positions, and so cross-attention has none;
encoder-decoders have two layers on each side, 1.3 to 1.5 times the parameters of a decoder of their width.
What an encoder is told and the others are not: how long the answer is. In sums and modular, that excludes some
answers, and its chance is higher (three.py computes it); elsewhere it is in the question or always the same. What it is
not told: the letters of the answer that are already written. No task is left out: each answer is a function of its
question, so all its letters can be right at once.

Rule: half of a task is the compute at which exact match of a seed first is 0.5, on the line through its sizes over the
logarithm of compute. A family needs less compute than another in a task if each of its seeds 0 to 2 is at half before
each of the other's, whether padding counts as compute or not. Nothing is published that this could be held against.

Predictions (before any run of these two): 5. encoders need more compute than decoders in sorting and words, where the
letters written so far help, and less in sums and modular, where the length does. 6. Encoder-decoders need more than
decoders in copying and reversal, as cross-attention has no positions, and less in sorting and words, as they learn from
answers alone. 7. Recall stays below half in both.
After one run of each of the two at width 40, whose exact match of reversal was 1.00 where that of decoders is 0.00, and
before any run of the control: 8. it needs less compute than the decoders in at least four tasks. 9. Encoders and
encoder-decoders need less than the control in at most two tasks each. Width 32 was added then.
"""

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

HERE = pathlib.Path(__file__).resolve().parent
TASKS = sorted(str(path) for path in (HERE / "tasks").glob("*.toml"))
STEPS = {8: 900, 16: 1400, 24: 1900, 40: 2800, 56: 3600, 80: 4700, 112: 6000, 160: 7600}  # d_model: optimizer steps
SEEDS = {8: 4, 16: 4, 24: 6, 40: 6, 56: 6, 80: 4, 112: 3, 160: 3}
PILOT = {8: 2, 16: 2, 24: 2, 40: 2, 56: 1, 80: 1}  # d_model: seeds
ITEMS, LEAST = 300, 5  # of each task; decidable tasks without which nothing more is trained
NEAR_CHANCE = 0.05  # of exact match
SHARES = {"sums": 2, "modular": 2}  # of the documents, the others 1: theirs are the shortest
RATE = 2.0**-9
FAMILIES = {  # what differs from the decoders; the rates are those of experiments/three_architectures
    "encoder": {"model.family": "encoder", "objective.name": "masked_answers", "run.name": "emergence-encoder"},
    "encoder_decoder": {
        "model.family": "encoder_decoder",
        "model.num_layers": 2,  # on each side
        "objective.name": "written_answers",
        "optimizer.learning_rate": 2.0**-11,
        "data.encoder_seq_len": 64,
        "data.seq_len": 33,
        "run.name": "emergence-encoder_decoder",
    },
    "decoder_answers": {"objective.name": "continued_answers", "run.name": "emergence-decoder_answers"},
}
THREE = {8: 3, 16: 3, 24: 3, 32: 3, 40: 3, 56: 3, 80: 3}  # d_model: seeds of each of them
DOCUMENTS, VERSION = 500_000, 3


def held_out(prompt: str) -> bool:
    """Whether an item is left out of the training text: one in five; of a sum, (b, a) together with (a, b)."""
    key = re.sub(r"(\d+)\+(\d+)", lambda pair: "+".join(sorted(pair.groups())), prompt)
    return zlib.crc32(key.encode()) % 5 == 0


def write_skills(path: pathlib.Path) -> None:
    """Writes about 0.8 DOCUMENTS, {"text": "rev qzjavbm=mbvajzq"} a line, each of a random task; always the same."""
    rng = np.random.Generator(np.random.Philox(key=[VERSION, 0]))
    found = [task for task in tasks.find(TASKS) for _ in range(SHARES.get(task.name, 1))]
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
    """Returns the base config; writes the skills (15 MB) into lmjax's cache the first time."""
    if variant not in ("", "pilot", *FAMILIES):
        raise InputError(f"unknown {variant!r}{nearest(variant, ['pilot', *FAMILIES])}")
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
            "checkpoint.keep": 1,
            "metrics.every_steps": 50,
            "duration.tokens": None,
            "duration.steps": 1000,
            "run.name": "emergence",
            **({"plugins": (str(HERE / "answers.py"),), **FAMILIES[variant]} if variant in FAMILIES else {}),
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each size and seed; those of decoders of seed 0 keep checkpoints on the way."""
    if variant in FAMILIES:
        return [size(width, seed) for width, count in THREE.items() for seed in range(count)]
    seeds = PILOT if variant == "pilot" else SEEDS
    return [cell(width, seed) for width, count in seeds.items() for seed in range(count)]


def cell(width: int, seed: int) -> dict:
    """Returns the overrides of a decoder's cell."""
    steps, made = STEPS[width], size(width, seed)
    return made if seed else {**made, "checkpoint.at": (steps // 8, steps // 4, steps // 2)}


def size(width: int, seed: int) -> dict:
    """Returns the overrides of a width and a seed; a width between two of the ladder has steps between theirs."""
    steps = round(float(np.interp(width, list(STEPS), list(STEPS.values()))))
    return {"model.d_model": width, "model.num_heads": width // 8, "duration.steps": steps, "train.seed": seed}

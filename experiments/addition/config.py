"""Sums of numbers with 1 to 4 digits, learnt by decoders of six sizes: does addition emerge, and in which metric?

Question: exact match on 4-digit sums rises late and steeply with compute. Does the loss of the answers jump too, or
          does the metric alone make the jump (arXiv:2304.15004)?
Command:  lmjax sweep experiments/addition/config.py --workdir runs/addition
          python experiments/addition/collect.py runs/addition     (evaluations, verdicts and figures in this folder)
Results:  the README beside this file.

A document is one sum, such as 47+85=132, operands of equally many digits (1 to 4, each for a quarter of the documents),
drawn with a fixed seed; packed, so that a sum never sees another one. The plain order of digits is the hard one: the
first digit of the answer depends on the last carry.

Every tenth pair of operands (chosen by a hash, in both orders) is in no document, and `lmjax eval` asks for pairs that
are in no training document where there are 100 of them: with 2 digits about 800, with 3 and 4 digits as many as wanted.
With 1 digit there are 100 pairs in all, so the table reports those that were trained on and the others apart.
"""

import json
import os
import pathlib
import zlib

import numpy as np

from configs import decoder
from lmjax import process
from lmjax.config import overlay
from lmjax.sweeps.combinators import chain, product

SIZES = [8, 16, 24, 32, 48, 64]  # d_model
SEEDS = [0, 1, 2]
TOKENS = 10_000_000
FEWER_TOKENS = [625_000, 900_000, 1_250_000, 1_800_000, 2_500_000, 3_500_000, 5_000_000, 7_000_000]
AT_SIZE = 48  # d_model of the second ladder, in tokens
SUMS, VERSION = 1_150_000, 2


def held_out(a: int, b: int) -> bool:
    """Returns whether a pair of operands is left out of the training text: one in ten, (b, a) together with (a, b)."""
    return zlib.crc32(f"{min(a, b)}+{max(a, b)}".encode()) % 10 == 0


def write_sums(path: pathlib.Path) -> None:
    """Writes about 0.9 SUMS documents, {"text": "47+85=132"} a line, of 1 to 4 digits; always the same."""
    rng = np.random.Generator(np.random.Philox(key=[VERSION, 0]))
    digits = rng.integers(1, 5, SUMS)
    low, high = np.where(digits == 1, 0, 10 ** (digits - 1)), 10**digits
    first, second = rng.integers(low, high), rng.integers(low, high)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            if not held_out(a, b):
                file.write(json.dumps({"text": f"{a}+{b}={a + b}"}) + "\n")
    os.replace(temporary, path)


def learning_rate(d_model: int) -> float:
    """6e-3 at width 64, proportional to 1 / width.

    Measured with seed 0: at width 48 and 2.5M tokens, rates of 3.5e-3, 6.9e-3, 1.4e-2 and 2.8e-2 end at validation
    losses of 1.562, 1.440, 1.447 and 1.635; at width 16 and 5M tokens, 6e-3, 1.2e-2, 2.4e-2 and 4.8e-2 end at 1.566,
    1.539, 1.480 and 1.415.
    """
    return 6e-3 * 64 / d_model


def get_config():
    """Returns the base config; writes the sums (30 MB) into lmjax's cache the first time."""
    path = process.cache_folder() / "addition" / f"sums-{VERSION}.jsonl"
    if not path.exists():
        write_sums(path)
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 3,
            "model.num_heads": 4,
            "data.sources": (f"files:{path}",),
            "data.mode": "pack",
            "data.seq_len": 64,
            "data.global_batch_size": 32,
            "schedule.final_fraction": 0.0,
            "run.name": "addition",
            "run.learning_rate_rule": "6e-3 (64 / d_model)",
        },
    )


def sweep():
    """Returns a cell for each size and seed, and shorter runs of one size for each seed."""
    sizes = product({"model.d_model": SIZES}, {"duration.tokens": [TOKENS]})
    shorter = product({"model.d_model": [AT_SIZE]}, {"duration.tokens": FEWER_TOKENS})
    return [
        {**cell, "optimizer.learning_rate": learning_rate(cell["model.d_model"])}
        for cell in product(chain(sizes, shorter), {"train.seed": SEEDS})
    ]

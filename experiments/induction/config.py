"""Induction heads in decoders of one and two layers: attention, copying and in-context learning over training.

Question: do heads that match prefixes form with two layers and not with one, at the same time as the loss of repeated
          random blocks falls; does the loss on text have a bump then, and does in-context learning improve (Olsson et
          al. 2022, arXiv 2209.11895)?
Command:  lmjax sweep experiments/induction/config.py --no-analysis --workdir runs/induction
          python experiments/induction/collect.py runs/induction
          (config.py:tiny and runs/induction-tiny: 100 steps, for a first look)
Time:     7 minutes on two idle cores
Results:  the README beside this file

Half of the rows are English bytes, the others a random block of 8 to 24 letters that repeats (repeats.py). On text
alone such heads form after 1e9 tokens or more in published models, and a run has 1e7 here: the mixture shows the
circuit and its dynamics, not that English is what forms it.

Predicted before training, after one look at 500 steps of a run with two layers, longer rows and blocks, in which
nothing had formed:
    With two layers a head's prefix-matching score passes 0.5 in every seed, with one layer it stays below 0.1; halfway
    in the score is within a factor of 1.3 of halfway in the loss of repetitions. The in-context score on text differs
    by less than 0.05 nats between depths, as letters of text are predicted from nearby, and its loss has no bump.
"""

import pathlib

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import product

LAYERS = (1, 2)
SEEDS = {"": (0, 1, 2), "tiny": (0, 1)}
STEPS = {"": 5000, "tiny": 100}


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in STEPS:
        raise InputError(f"unknown {variant!r}{nearest(variant, STEPS)}; expected tiny or nothing")
    return overlay(
        decoder.get_config(),
        {
            "plugins": (str(pathlib.Path(__file__).with_name("repeats.py")),),
            "objective.name": "text_and_repeats",
            "objective.options.shortest": 8,
            "objective.options.longest": 24,
            "model.d_model": 64,
            "model.num_heads": 4,
            "data.sources": ("en",),
            "data.seq_len": 64,
            "data.global_batch_size": 32,
            "duration.tokens": None,
            "duration.steps": STEPS[variant],
            "optimizer.learning_rate": 4e-3,
            "schedule.name": "constant",
            "schedule.warmup_steps": 50,
            "evaluation.max_tokens": 32_768,
            "evaluation.batch_size": 64,
            "metrics.every_steps": 20,
            "checkpoint.per_decade": 16,
            "run.name": "induction",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each depth and seed."""
    return product({"model.num_layers": LAYERS}, {"train.seed": SEEDS[variant]})

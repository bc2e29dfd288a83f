"""A hundred parities with power-law frequencies, learned by networks of one's own: the quantization model of scaling.

Question: each task is learned in a step. Is the mean loss a power law of steps and of parameters, with the exponents
          alpha / (1 + alpha) and alpha of the frequencies k^-(1 + alpha) (Michaud et al. 2023, arXiv 2303.13506)?
Command:  lmjax sweep experiments/sparse_parity/config.py --no-analysis --workdir runs/sparse_parity
          python experiments/sparse_parity/collect.py runs/sparse_parity
          (config.py:tiny and runs/sparse_parity-tiny: two widths, 300 steps, for a first look)
Time:     15 minutes on two idle cores
Results:  the README beside this file

Objective and network are plug-ins, parity.py: lmjax has neither a network of single samples nor an objective that draws
them. Every sample is new, so steps and data are the same variable; the text of the source only counts them (a token is
a sample, whatever it says), and its epochs mean nothing.

Smaller than in the paper (500 tasks, 100 bits, batches of 20,000): 100 tasks, 16 bits, batches of 4,096; and a
learning rate of 5e-3, not 1e-3.

Predicted before training, after one look at 300 steps of a network of 128 units at alpha 0.4, whose first task was
learned at step 70 and whose third at step 240:
    Tasks are learned in the order of their frequency, each within a factor of 2 to 3 in steps, the mean over a factor
    of 100. The slope of ln loss over steps is within 0.05 of alpha / (1 + alpha) for both alpha. The slope over
    parameters is shallower than alpha, as the widest networks that count are also limited by their steps.
"""

import pathlib

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import product

TASKS, BITS = 100, 16
ALPHAS = (0.4, 0.8)
WIDTHS = {"": (4, 8, 16, 32, 64, 128), "tiny": (16, 32)}
SEEDS = {"": (0, 1, 2), "tiny": (0, 1)}
STEPS = {"": 12_000, "tiny": 300}
SAMPLES, ROWS = 1024, 4  # of a row, of a batch


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in STEPS:
        raise InputError(f"unknown {variant!r}{nearest(variant, STEPS)}; expected tiny or nothing")
    return overlay(
        decoder.get_config(),
        {
            "plugins": (str(pathlib.Path(__file__).with_name("parity.py")),),
            "objective.name": "sparse_parity",
            "objective.options.tasks": TASKS,
            "objective.options.bits": BITS,
            "model.family": "parity_mlp",
            "model.options.tasks": TASKS,
            "model.options.bits": BITS,
            "model.num_layers": 1,
            "model.num_heads": 1,
            "model.position": "none",
            "data.sources": ("zipf:200000",),
            "data.seq_len": SAMPLES * (1 + BITS // 8),
            "data.global_batch_size": ROWS,
            "data.max_epochs": 1e6,
            "duration.tokens": None,
            "duration.steps": STEPS[variant],
            "optimizer.learning_rate": 5e-3,
            "optimizer.weight_decay": 0.0,
            "optimizer.clip_norm": None,
            "schedule.name": "constant",
            "schedule.warmup_steps": 0,
            "evaluation.max_tokens": None,
            "evaluation.batch_size": ROWS,
            "metrics.every_steps": 100,
            "checkpoint.per_decade": 8,
            "run.name": "sparse_parity",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each exponent, width and seed."""
    return product(
        {"objective.options.alpha": ALPHAS},
        {"model.d_model": WIDTHS[variant]},
        {"train.seed": SEEDS[variant]},
    )

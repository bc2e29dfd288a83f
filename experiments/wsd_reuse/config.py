"""One constant-rate trunk, decayed at four token counts, beside a separate cosine run for each: losses and compute.

Question: does a decay of 20 % that branches off a trunk of constant rate reach the loss of a cosine run of the same
          tokens (arXiv 2405.18392), and how much compute does a ladder over tokens then cost?
Command:  lmjax plan experiments/wsd_reuse/config.py
          lmjax sweep experiments/wsd_reuse/config.py --no-analysis --workdir runs/wsd_reuse
          lmjax sweep experiments/wsd_reuse/config.py:rates --no-analysis --workdir runs/wsd_reuse-rates
          python experiments/wsd_reuse/collect.py runs
          (config.py:tiny and runs/wsd_reuse-tiny: one width, two seeds, 2 % of the tokens, for a first look)
Time:     38 minutes of wall time on one core (1.0e14 FLOP, 107,000 steps); 4.9e13 FLOP are not trained twice
Results:  2026-11-23: branch minus cosine -0.75 % (-0.84 to -0.65) of the loss; 37 % of the compute saved. README.md

Models, data and peak rate are those of experiments/chinchilla. Three widths, three seeds (initial parameters and order
of the rows), four token counts. Both schedules warm up in 50 steps, end at a rate of 0 and have the same peak under
muP; `rates` shows the loss of either around this peak at one cell in the middle. A decayed run is, bit for bit, a run
of its own under the schedule "wsd" (tests/test_branches.py), so it stands for one in every comparison but that of
compute.
"""

from chinchilla import config as chinchilla

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import branches, chain, product, zipit

WIDTHS = (32, 64, 96)
TOKENS = (500_000, 1_000_000, 2_000_000, 4_000_000)
DECAY = 0.2  # of a run's tokens
SEEDS = (0, 1, 2)
SHARE = {"": 1.0, "tiny": 0.02, "rates": 1.0}  # of the tokens


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in SHARE:
        raise InputError(f"unknown {variant!r}{nearest(variant, SHARE)}; expected tiny, rates or nothing")
    steps = max(round(50 * SHARE[variant]), 1)
    return overlay(
        chinchilla.get_config(),
        {
            "schedule.warmup_steps": steps,
            "duration.flops": None,
            "duration.tokens": TOKENS[-1],
            "metrics.every_steps": steps,
            "run.name": "wsd_reuse",
        },
    )


def sweep(variant: str = ""):
    """Returns trunks, their decayed branches and the cosine runs; or the cells of other learning rates."""
    sizes = zipit({"model.d_model": WIDTHS, "model.num_heads": [width // 16 for width in WIDTHS]})
    if variant == "rates":
        middle = {**sizes[1], "duration.tokens": TOKENS[1]}
        schedules = [{**middle, "schedule.name": "wsd", "schedule.decay_fraction": DECAY}, middle]
        return product(schedules, {"optimizer.learning_rate": [2.0**-x for x in range(7, 12)]})
    seeds = SEEDS[:2] if variant == "tiny" else SEEDS
    sizes = product(sizes[:1] if variant == "tiny" else sizes, zipit({"train.seed": seeds, "data.seed": seeds}))
    tokens = [round(count * SHARE[variant]) for count in TOKENS]
    return chain(branches(sizes, tokens, DECAY), product(sizes, {"duration.tokens": tokens}))

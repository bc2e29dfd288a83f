"""IsoFLOP grid of decoders on English bytes: how should compute be split between parameters and tokens?

Question: with N* ~ C^a, is a near 1/2 (arXiv 2203.15556) for decoders of 10k to 2M parameters, and do the three
          approaches agree? Does the law predict a run of four times the largest budget?
Command:  lmjax sweep experiments/chinchilla/config.py --workdir runs/chinchilla
          python experiments/chinchilla/collect.py runs/chinchilla      (records, table, figure and page in this folder)
          lmjax sweep experiments/chinchilla/config.py:rates --no-analysis --workdir runs/chinchilla-rates
Time:     1 core-hour for the three smaller budgets, 1.6 for the fourth and 1 for the held-out run
Results:  2026-11-23, four budgets: a = 0.471 (0.417 to 0.544) by the law, 0.481 (0.398 to 0.574) by the minima; rates
          at 4e12 FLOP and width 64: 1.5144 nats at 2^-9, 1.5280 at 2^-10 and 1.5363 at 2^-8. The held-out run:
          1.1833, predicted 1.1850 (1.1703 to 1.1989). README.md has the rest.

Four budgets of exact training FLOP, 4x apart, with six widths each; three seeds at the smallest, for the noise. Every
cell completes its own cosine schedule to zero and sees each byte of `en` at most once. Two layers, heads of width 16.
One learning rate for all, under muP; `rates` shows the loss around it at one cell in the middle of the grid.
"""

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

WIDTHS = {  # FLOP: widths, spread around the optimum under the law of experiments/quickstart
    1e12: (16, 32, 48, 64, 80, 96),
    4e12: (32, 48, 64, 80, 112, 144),
    1.6e13: (48, 64, 96, 128, 160, 208),
    6.4e13: (96, 128, 160, 208, 256, 320),
}
SEEDS = (1, 2)  # at the smallest budget, besides 0
HELD_OUT = (2.56e14, 224)  # FLOP, width
RATE = 2.0**-9
RATES = [2.0**-x for x in range(7, 12)]


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in ("", "rates"):
        raise InputError(f"unknown {variant!r}{nearest(variant, ['rates'])}")
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 2,
            "model.head_dim": 16,
            "parametrization.name": "mup",
            "parametrization.base_width": 256,
            "optimizer.learning_rate": RATE,
            "schedule.final_fraction": 0.0,
            "data.sources": ("en",),
            "data.seq_len": 64,
            "data.global_batch_size": 16,
            "evaluation.batch_size": 64,
            "metrics.every_steps": 50,
            "duration.tokens": None,
            "duration.flops": 4e12,
            "run.name": "chinchilla",
        },
    )


def sweep(variant: str = ""):
    """Returns the cells of the grid, its extra seeds and the held-out cell; or those of the learning rates."""
    if variant == "rates":
        return product([cell(4e12, 64)], {"optimizer.learning_rate": RATES})
    grid = [cell(budget, width) for budget, widths in WIDTHS.items() for width in widths]
    smallest = min(WIDTHS)
    repeats = product([cell(smallest, width) for width in WIDTHS[smallest]], {"train.seed": SEEDS})
    return chain(grid, repeats, [{**cell(*HELD_OUT), "run.held_out": True}])


def cell(budget: float, width: int) -> dict:
    """Returns the overrides of a cell."""
    return {"duration.flops": budget, "model.d_model": width, "model.num_heads": width // 16}

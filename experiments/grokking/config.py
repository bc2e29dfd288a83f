"""Addition modulo a prime from a part of its table: test accuracy rises long after train accuracy.

Question: when does a model that has memorised its sums begin to add, how does the delay depend on weight decay and on
          the share of the table in training (Power et al. 2022, arXiv 2201.02177), and does a continuous measure move
          before test accuracy does (Nanda et al. 2023, arXiv 2301.05217)?
Command:  lmjax sweep experiments/grokking/config.py --no-analysis --workdir runs/grokking
          python experiments/grokking/collect.py runs/grokking
          (config.py:tiny and runs/grokking-tiny: two cells, 300 steps, for a first look)
Time:     26 minutes on two cores that did other work too
Results:  the README beside this file

The source `modular:59` is the table of a + b modulo 59 as 3,481 documents. A part of it, chosen by a hash of the sums
and so the same for all seeds, is for validation. The objective, sums.py, has one label a row: the answer after a and b.
One layer, batches of 256 sums, AdamW at a constant rate without a schedule, as in the papers.

Predicted before training, after looks at the first steps of two runs at weight decay 1 (40 % of the pairs: memorised at
step 160 and 5 % of test accuracy at step 1,200; 60 %: memorised at step 260 and 50 % at step 550, hardly a delay):
    Every run memorises within 500 steps. The seeds of the main cell generalise at 10 to 30 times the steps of
    memorisation. The delay falls with weight decay, as its power of -0.5 to -1, and with the share, as its power of -3
    or steeper; the cell with the least of both may not generalise. The restricted loss begins to fall at half the steps
    of the rise of test accuracy, the test loss before it too.
"""

import pathlib

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

MODULUS = 59
HELD_OUT = {"": (0.65, 0.58, 0.5), "tiny": (0.58,)}  # shares of the table for validation
DECAYS = {"": (0.5, 1.0, 2.0), "tiny": (1.0,)}
MAIN = {"data.validation_fraction": 0.58, "optimizer.weight_decay": 1.0, "checkpoint.per_decade": 16}
SEEDS = {"": (0, 1, 2, 3, 4), "tiny": (0, 1)}
STEPS = {"": 12_000, "tiny": 300}


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in STEPS:
        raise InputError(f"unknown {variant!r}{nearest(variant, STEPS)}; expected tiny or nothing")
    return overlay(
        decoder.get_config(),
        {
            "plugins": (str(pathlib.Path(__file__).with_name("sums.py")),),
            "objective.name": "modular_sum",
            "objective.options.modulus": MODULUS,
            "model.d_model": 64,
            "model.num_layers": 1,
            "model.num_heads": 4,
            "model.position": "learned",
            "model.embedding_scale": 1.0,
            "data.sources": (f"modular:{MODULUS}",),
            "data.seq_len": 3,
            "data.global_batch_size": 256,
            "data.max_epochs": 1e6,
            "duration.tokens": None,
            "duration.steps": STEPS[variant],
            "optimizer.b2": 0.98,
            "optimizer.learning_rate": 1e-3,
            "optimizer.clip_norm": None,
            "schedule.name": "constant",
            "schedule.warmup_steps": 10,
            "evaluation.max_tokens": None,
            "evaluation.batch_size": 512,
            "evaluation.every_steps": 100,
            "metrics.every_steps": 10,
            "run.name": "grokking",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each share and weight decay, and further seeds of the one in the middle."""
    shares, decays = {"data.validation_fraction": HELD_OUT[variant]}, {"optimizer.weight_decay": DECAYS[variant]}
    cells = [cell for cell in product(shares, decays) if not cell.items() <= MAIN.items()]
    return chain(product(cells, {"train.seed": [0]}), product([MAIN], {"train.seed": SEEDS[variant]}))

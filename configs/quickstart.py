"""A scaling law of language models on a laptop CPU: 4 sizes x 3 token counts, two larger runs predicted before
they are trained.

Question: how does held-out loss on Shakespeare and the King James Bible fall with parameters and bytes?
Command:  lmjax sweep configs/quickstart.py                      (decoder, next byte)
          lmjax sweep configs/quickstart.py:encoder              (masked bytes)
          lmjax sweep configs/quickstart.py:encoder_decoder      (span corruption)
Time:     see experiments/quickstart, where the results are kept.

Every cell gets its own full cosine schedule, so its last loss is the end of a finished run. The grid is not along one
tokens-per-parameter ray, so that the law L = E + A N^-alpha + B D^-beta can be told apart in N and in D.
"""

import importlib

from lmjax.config import overlay
from lmjax.sweep.combinators import chain, fixed, product, zipit

FAMILIES = ("decoder", "encoder", "encoder_decoder")
SIZES = {"model.d_model": [32, 48, 64, 96], "model.num_layers": [2, 2, 3, 3]}
TOKENS = [400_000, 800_000, 1_600_000]
HELD_OUT_SIZES = {"model.d_model": [96, 128], "model.num_layers": [3, 4]}
HELD_OUT_TOKENS = [3_200_000, 3_200_000]


def learning_rate(d_model: int) -> float:
    """The rule of this sweep: 8e-3 at width 32, falling with the root of the width."""
    return 8e-3 * (32 / d_model) ** 0.5


def get_config(family: str = "decoder"):
    """Returns the base config of a family."""
    base = importlib.import_module(f"configs.{family}").get_config()
    return overlay(
        base,
        {
            "model.num_heads": 4,
            "data.seq_len": 128,
            "data.global_batch_size": 16,
            "schedule.final_fraction": 0.0,
            "run.learning_rate_rule": "8e-3 (32 / d_model)^0.5",
        },
    )


def sweep(family: str = "decoder"):
    """Returns 12 cells for the fit and 2 held-out ones, each with the learning rate of its width."""
    del family  # all three families run the same grid
    cells = chain(
        product(zipit(SIZES), {"duration.tokens": TOKENS}),
        product(zipit(HELD_OUT_SIZES, {"duration.tokens": HELD_OUT_TOKENS}), fixed({"run.held_out": True})),
    )
    return [{**cell, "optimizer.learning_rate": learning_rate(cell["model.d_model"])} for cell in cells]

"""A scaling law of language models on a laptop CPU: 4 sizes x 3 token counts, and two larger runs that are predicted
before they are trained.

Question: how does held-out loss on Shakespeare and the King James Bible fall with parameters and bytes?
Command:  lmjax sweep configs/quickstart.py                      (decoder, next byte)
          lmjax sweep configs/quickstart.py:encoder              (masked bytes)
          lmjax sweep configs/quickstart.py:encoder_decoder      (span corruption)
          lmjax sweep configs/quickstart.py:smoke                (the decoder's grid on a tenth of the tokens)
Time:     5 to 8 minutes each on 2 cores. Results and how far off the predictions were: experiments/quickstart.

Every cell gets its own full cosine schedule, so its last loss is the end of a finished run. The grid is not along one
tokens-per-parameter ray, so that the law L = E + A N^-alpha + B D^-beta can be told apart in N and in D. All models
have one depth: a law in N alone holds along one family of shapes (with three layers, held-out decoders were 4 to 5 %
better than this fit predicts).
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweep.combinators import chain, fixed, product, zipit

FAMILIES = ("decoder", "encoder", "encoder_decoder", "smoke")
SIZES = {"model.d_model": [16, 32, 48, 64], "model.num_layers": [2, 2, 2, 2]}
TOKENS = [250_000, 750_000, 2_250_000]
HELD_OUT = {"model.d_model": [128, 96], "model.num_layers": [2, 2], "duration.tokens": [2_250_000, 4_500_000]}


def learning_rate(d_model: int) -> float:
    """The rule of this sweep: 2e-2 at width 16, falling as width^-1.35.

    Read off a small search on the decoder: at 0.75M tokens, of {0.5, 1, 2}e-2 the last was best at width 16, of
    {1.5, 3, 6}e-3 the middle one at width 64.
    """
    return 2e-2 * (16 / d_model) ** 1.35


def get_config(family: str = "decoder"):
    """Returns the base config of a family."""
    if family not in FAMILIES:
        raise InputError(f"unknown {family!r}{nearest(family, FAMILIES)}")
    base = importlib.import_module(f"configs.{'decoder' if family == 'smoke' else family}").get_config()
    return overlay(
        base,
        {
            "model.num_heads": 4,
            "data.seq_len": 64,
            "data.global_batch_size": 8,  # small, so that the shortest run has some hundred steps
            "schedule.final_fraction": 0.0,
            "run.learning_rate_rule": "2e-2 (16 / d_model)^1.35",
        },
    )


def sweep(family: str = "decoder"):
    """Returns 12 cells for the fit and 2 held-out ones, each with the learning rate of its width."""
    cells = chain(
        product(zipit(SIZES), {"duration.tokens": TOKENS}),
        product(zipit(HELD_OUT), fixed({"run.held_out": True})),
    )
    share = 0.1 if family == "smoke" else 1.0
    return [
        {
            **cell,
            "duration.tokens": cell["duration.tokens"] * share,
            "optimizer.learning_rate": learning_rate(cell["model.d_model"]),
        }
        for cell in cells
    ]

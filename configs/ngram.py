"""Interpolated modified Kneser-Ney n-gram models of orders 1 to 6, counted from the text of the quickstart's decoders.

Question: what does a model that only counts reach on the bytes of `classic`, as a baseline for configs/quickstart.py?
Command:  lmjax sweep configs/ngram.py                (or lmjax train configs/ngram.py for one model of order 5)
"""

from configs import default
from lmjax.config import overlay
from lmjax.sweeps.combinators import product


def get_config():
    """Returns the config of a 5-gram model; its windows are those of the quickstart's decoders, in the same order."""
    return overlay(
        default.get_config(),
        {
            "model.family": "ngram",
            "model.ngram_order": 5,
            "data.seq_len": 64,
            "data.global_batch_size": 8,
            "duration.tokens": 2_250_000,
            "evaluation.batch_size": 64,
        },
    )


def sweep():
    """Returns the overrides of 18 cells: orders 1 to 6, three token counts."""
    return list(product({"model.ngram_order": range(1, 7)}, {"duration.tokens": [250_000, 750_000, 2_250_000]}))

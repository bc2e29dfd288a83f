"""Interpolated modified Kneser-Ney n-gram models of orders 1 to 6, counted from the text of the quickstart's decoders.

Question: what does a model that only counts reach on the bytes of `classic`, as a baseline for configs/quickstart.py?
Command:  lmjax train configs/ngram.py                (order 5; the orders 1 to 6: lmjax sweep configs/ngram.py)
Hardware: one core of a loaded 2-core CPU (AMD EPYC), 2026-11-22
Time:     10 CPU seconds, evaluation included; the sweep not measured
Expected: order 5: validation loss 1.4397 nats (2.078 bits per byte), N = 379,696. It is below the quickstart's decoder
          of width 96 on the same tokens (1.515 with N = 252k: experiments/quickstart/README.md)
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

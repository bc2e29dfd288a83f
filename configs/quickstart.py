"""A scaling law of language models on a laptop CPU: 4 sizes x 3 token counts, and two larger runs that are predicted
before they are trained.

Question: how does validation loss on Shakespeare and the King James Bible fall with parameters and bytes?
Command:  lmjax sweep configs/quickstart.py                      (decoder, next byte)
          lmjax sweep configs/quickstart.py:encoder              (masked bytes)
          lmjax sweep configs/quickstart.py:encoder_decoder      (span corruption)
          lmjax sweep configs/quickstart.py:smoke                (the decoder's grid on a tenth of the tokens)
Hardware: 2 CPU cores (AMD EPYC), shared with other programs, 2026-11-22
Time:     706, 835 and 979 CPU seconds (decoder, encoder, encoder-decoder; smoke not measured)
Expected: held-out runs within 0.7 %, 4.4 % and 6.1 % of their predictions; encoder-decoder: E at its bound.
          Decoder: L = 1.02 + A N^-0.463 + B D^-0.279. All numbers: experiments/quickstart/README.md

One learning rate serves all widths, under muP (experiments/mup). Every cell completes its own cosine schedule. The grid
varies tokens per parameter, so that N and D are separately identifiable in L = E + A N^-alpha + B D^-beta. All models
have the same depth.

Widths, row lengths and masking of each family are chosen so that every cell ends below the unigram and bigram losses
(`passed` in `lmjax runs`) and every encoder-decoder uses its source (`source_gain`); otherwise the grid would mix two
regimes. The measurements are in experiments/quickstart/README.md.
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

FAMILIES = ("decoder", "encoder", "encoder_decoder", "smoke")
GRID = {  # widths and tokens of the fitted runs, then (width, tokens) of the held-out runs
    "decoder": ([16, 32, 48, 64], [250_000, 750_000, 2_250_000], [(96, 2_250_000), (64, 4_500_000)]),
    "encoder": ([32, 48, 64, 96], [250_000, 600_000, 1_500_000], [(128, 1_500_000), (96, 3_000_000)]),
    "encoder_decoder": ([24, 32, 48, 64], [250_000, 600_000, 1_500_000], [(96, 1_500_000), (64, 2_500_000)]),
}
ROWS = {  # small batches, so that the shortest run has a few hundred steps
    "decoder": {"data.seq_len": 64, "data.global_batch_size": 8},
    "encoder": {"data.seq_len": 32, "data.global_batch_size": 8, "objective.options.mask_rate": 0.3},
    "encoder_decoder": {
        "model.position": "rotary",
        "data.seq_len": 16,
        "data.encoder_seq_len": 16,
        "data.global_batch_size": 16,
        "objective.options.noise_density": 0.18,
    },
}


RATE = {"decoder": 2.0**-9, "encoder": 2.0**-10, "encoder_decoder": 2.0**-11}  # the best of three at width 32


def get_config(family: str = "decoder"):
    """Returns the base config of a family."""
    if family not in FAMILIES:
        raise InputError(f"unknown {family!r}{nearest(family, FAMILIES)}")
    family = "decoder" if family == "smoke" else family
    return overlay(
        importlib.import_module(f"configs.{family}").get_config(),
        {
            **ROWS[family],
            "model.d_model": 32,
            "model.num_heads": 4,
            "model.head_dim": 8,
            "model.num_layers": 2,
            "evaluation.batch_size": 64,
            "schedule.final_fraction": 0.0,
            "parametrization.name": "mup",  # one learning rate for all widths
            "parametrization.base_width": 256,
            "optimizer.learning_rate": RATE[family],
        },
    )


def sweep(family: str = "decoder"):
    """Returns the overrides of 12 fitted and 2 held-out cells."""
    share, family = (0.1, "decoder") if family == "smoke" else (1.0, family)
    widths, tokens, held_out = GRID[family]
    cells = chain(
        product({"model.d_model": widths}, {"duration.tokens": tokens}),
        ({"model.d_model": d, "duration.tokens": n, "run.held_out": True} for d, n in held_out),
    )
    return [
        {**cell, "model.num_heads": cell["model.d_model"] // 8, "duration.tokens": cell["duration.tokens"] * share}
        for cell in cells
    ]

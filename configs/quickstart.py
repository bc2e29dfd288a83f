"""A scaling law of language models on a laptop CPU: 4 sizes x 3 token counts, and two larger runs that are predicted
before they are trained.

Question: how does validation loss on Shakespeare and the King James Bible fall with parameters and bytes?
Command:  lmjax sweep configs/quickstart.py                      (decoder, next byte)
          lmjax sweep configs/quickstart.py:encoder              (masked bytes)
          lmjax sweep configs/quickstart.py:encoder_decoder      (span corruption)
          lmjax sweep configs/quickstart.py:smoke                (the decoder's grid on a tenth of the tokens)
Time:     680, 780 and 850 CPU seconds (measured on shared cores). Results: experiments/quickstart/README.md

Every cell gets its own full cosine schedule, so its last loss is the end of a finished run. The grid is not along one
tokens-per-parameter ray, so that N and D are identifiable separately in L = E + A N^-alpha + B D^-beta. All models
have one depth: a law in N alone holds along one family of shapes.

Every cell must be past the unigram and bigram losses (`passed` in `lmjax runs`), and an encoder-decoder must read its
source (`source_gain`), else the grid mixes two regimes. That decides widths, rows and masking of each family; the
measurements are in experiments/quickstart/README.md.
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

FAMILIES = ("decoder", "encoder", "encoder_decoder", "smoke")
GRID = {  # widths and tokens of the fit, then (width, tokens) of the held-out runs
    "decoder": ([16, 32, 48, 64], [250_000, 750_000, 2_250_000], [(96, 2_250_000), (64, 4_500_000)]),
    "encoder": ([32, 48, 64, 96], [250_000, 600_000, 1_500_000], [(128, 1_500_000), (96, 3_000_000)]),
    "encoder_decoder": ([24, 32, 48, 64], [250_000, 600_000, 1_500_000], [(96, 1_500_000), (64, 2_500_000)]),
}
ROWS = {  # small batches, so that the shortest run has some hundred steps
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


RATE = {"decoder": 6e-3, "encoder": 3e-3, "encoder_decoder": 2e-3}  # at width 64; falls as 1 / width


def get_config(family: str = "decoder"):
    """Returns the base config of a family."""
    if family not in FAMILIES:
        raise InputError(f"unknown {family!r}{nearest(family, FAMILIES)}")
    family = "decoder" if family == "smoke" else family
    return overlay(
        importlib.import_module(f"configs.{family}").get_config(),
        {
            **ROWS[family],
            "model.num_heads": 4,
            "model.num_layers": 2,
            "evaluation.batch_size": 64,
            "schedule.final_fraction": 0.0,
            "run.learning_rate_rule": f"{RATE[family]:g} (64 / d_model)",
        },
    )


def sweep(family: str = "decoder"):
    """Returns 12 cells for the fit and 2 held-out ones, each with the learning rate of its width."""
    share, family = (0.1, "decoder") if family == "smoke" else (1.0, family)
    widths, tokens, held_out = GRID[family]
    cells = chain(
        product({"model.d_model": widths}, {"duration.tokens": tokens}),
        ({"model.d_model": d, "duration.tokens": n, "run.held_out": True} for d, n in held_out),
    )
    return [
        {
            **cell,
            "duration.tokens": cell["duration.tokens"] * share,
            "optimizer.learning_rate": RATE[family] * 64 / cell["model.d_model"],
        }
        for cell in cells
    ]

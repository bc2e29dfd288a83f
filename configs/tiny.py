"""Overlay for a first look on a CPU: a 0.2M-parameter model of any family, 0.5M tokens, about half a minute.

Command: lmjax train --config configs/tiny.py            (or tiny.py:encoder, tiny.py:encoder_decoder)

The encoder-decoder gets short rows with one removed span of 3 bytes and a lower rate, with which it learns to read its
source in this time (`source_gain` in its summary); otherwise it stays a language model of the removed spans.
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest

FAMILIES = ("decoder", "encoder", "encoder_decoder")
TINY = {
    "model.d_model": 64,
    "model.num_layers": 4,
    "duration.tokens": 500_000,
    "optimizer.learning_rate": 6e-3,
    "evaluation.max_tokens": 65_536,
}
SHORT_ROWS = {
    "model.num_layers": 2,
    "model.position": "rotary",
    "data.seq_len": 16,
    "data.global_batch_size": 16,
    "objective.options.noise_density": 0.18,
    "optimizer.learning_rate": 2e-3,
    "evaluation.batch_size": 64,
}


def get_config(family: str = "decoder"):
    """Returns the family's config, made tiny."""
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}{nearest(family, FAMILIES)}")
    base = importlib.import_module(f"configs.{family}").get_config()
    return overlay(base, {**TINY, **(SHORT_ROWS if family == "encoder_decoder" else {})})

"""Overlay for a first look on a CPU: a 0.2M-parameter model of any family, 0.5M tokens, about ten seconds.

Command: lmjax train --config configs/tiny.py            (or tiny.py:encoder, tiny.py:encoder_decoder)
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest

FAMILIES = ("decoder", "encoder", "encoder_decoder")
TINY = {
    "model.d_model": 64,
    "model.num_layers": 4,
    "duration.tokens": 500_000,
    "evaluation.max_tokens": 65_536,
}


def get_config(family: str = "decoder"):
    """Returns the family's config, made tiny."""
    if family not in FAMILIES:
        raise InputError(f"unknown family {family!r}{nearest(family, FAMILIES)}")
    c = importlib.import_module(f"configs.{family}").get_config()
    layers = {"model.num_layers": 2} if family == "encoder_decoder" else {}
    return overlay(c, {**TINY, **layers})

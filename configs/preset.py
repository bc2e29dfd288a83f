"""Published architectures, trained from scratch at the default size.

Question: what loss do the architectures of GPT-2, GPT-NeoX, Llama, BLOOM, OPT, BERT, RoBERTa, ALBERT, DistilBERT,
ELECTRA (generator), T5, BART and mBART reach on the same text, width, depth and tokens?
Command:  lmjax train configs/preset.py:llama
          lmjax train configs/preset.py:bert --config.model.d_model=64   (t5: also set model.logit_scale=0.125)
Hardware, wall time, validation loss: not measured

Sizes are those of configs/default.py, not those of the papers; the options are in lmjax/models/presets.py.
`lmjax export RUN --to DIR` writes a trained run as a Hugging Face model of the same architecture.
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.models.presets import PRESETS, preset

NAMES = tuple(name for name in PRESETS if PRESETS[name]["head"] != "discriminator")  # lmjax has no objective for it


def get_config(name: str = "llama"):
    """Returns the base config of the architecture's family with the architecture's options set."""
    if name not in NAMES:
        raise InputError(f"unknown preset {name!r}{nearest(name, NAMES)}")
    base = importlib.import_module(f"configs.{PRESETS[name]['family']}").get_config()
    values = {f"model.{key}": value for key, value in preset(name, base.model.d_model).items()}
    return overlay(base, {**values, "run.name": name})

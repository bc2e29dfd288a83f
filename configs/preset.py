"""Any published architecture, trained from scratch at the default sizes.

Question: what do the options of GPT-2, GPT-NeoX, Llama, BLOOM, OPT, BERT, RoBERTa, ALBERT, DistilBERT, ELECTRA's
generator, T5, BART and mBART give on the same text, width, depth and tokens?
Command:  lmjax train --config configs/preset.py:llama
          lmjax train --config configs/preset.py:bert --config.model.d_model=64   (t5: set model.logit_scale=0.125 too)
Hardware: any; the default sizes (3M parameters, 4M tokens) take some minutes on 2 CPU cores.

Sizes are those of configs/default.py, not those of the papers; lmjax.models.presets holds the options. What is trained
here leaves as a Hugging Face model of the same name: `lmjax export RUN --to DIR`.
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.models.presets import PRESETS, preset

NAMES = tuple(name for name in PRESETS if PRESETS[name]["head"] != "discriminator")  # no objective of ours trains one


def get_config(name: str = "llama"):
    """Returns the base config of the architecture's family with the architecture's options."""
    if name not in NAMES:
        raise InputError(f"unknown preset {name!r}{nearest(name, NAMES)}")
    base = importlib.import_module(f"configs.{PRESETS[name]['family']}").get_config()
    values = {f"model.{key}": value for key, value in preset(name, base.model.d_model).items()}
    return overlay(base, {**values, "run.name": name})

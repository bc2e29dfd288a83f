"""Decoder-only, next-token prediction (GPT): the default config under its own name.

Question: how far does a 3.3M-parameter causal Transformer get on 4M bytes of `classic`?
Command:  lmjax train configs/decoder.py
Hardware, wall time, validation loss: not measured
"""

from configs import default


def get_config():
    """Returns the decoder config."""
    return default.get_config()

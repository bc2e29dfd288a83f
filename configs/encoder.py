"""Encoder-only, masked language modelling (BERT).

Question: the same text, width and depth as the decoder, predicted from both sides.
Command:  lmjax train --config configs/encoder.py
"""

from configs import default


def get_config():
    """Returns the encoder's config."""
    c = default.get_config()
    c.model.family = "encoder"
    c.objective.name = "masked_lm"
    return c

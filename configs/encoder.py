"""Encoder-only, masked language modelling (BERT).

Question: how well are masked bytes predicted from both sides, at the text, width and depth of configs/decoder.py?
Command:  lmjax train configs/encoder.py
Hardware, wall time, validation loss: not measured
"""

from configs import default


def get_config():
    """Returns the encoder config."""
    c = default.get_config()
    c.model.family = "encoder"
    c.objective.name = "masked_lm"
    return c

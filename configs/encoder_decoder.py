"""Encoder-decoder, span corruption (T5), with T5's relative positions, RMS norm and no biases.

Question: the same text once more, with removed spans rebuilt from what is around them.
Command:  lmjax train --config configs/encoder_decoder.py

Rows of 128 bytes need a long run before the decoder reads its source (see `source_gain` in the summary);
configs/tiny.py:encoder_decoder and configs/quickstart.py:encoder_decoder have short rows, on which it does so early.
"""

from configs import default


def get_config():
    """Returns the encoder-decoder's config: num_layers blocks on each side."""
    c = default.get_config()
    c.model.family = "encoder_decoder"
    c.model.position = "relative"
    c.model.norm = "rmsnorm"
    c.model.num_layers = 2
    c.objective.name = "span_corruption"
    return c

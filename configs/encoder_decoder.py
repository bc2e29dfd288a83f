"""Encoder-decoder, span corruption (T5), with T5's relative positions, RMS norm and no biases.

Question: how well are removed spans predicted from the surrounding text?
Command:  lmjax train configs/encoder_decoder.py
Hardware, wall time, validation loss: not measured

On rows of 128 bytes the decoder needs a long run before it uses the source (`source_gain` in summary.json).
configs/quickstart.py:encoder_decoder uses rows of 16, on which it does so early.
"""

from configs import default


def get_config():
    """Returns the encoder-decoder config; num_layers is the number of blocks on each side."""
    c = default.get_config()
    c.model.family = "encoder_decoder"
    c.model.position = "relative"
    c.model.norm = "rmsnorm"
    c.model.num_layers = 2
    c.objective.name = "span_corruption"
    return c

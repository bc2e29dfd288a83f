"""Recurrent language models: LSTM, or GRU and Elman networks, at the sizes of configs/default.py.

Question: what loss do the models that Transformers replaced reach on the same text and tokens?
Command:  lmjax train configs/rnn.py             (or rnn.py:gru, rnn.py:elman)
          lmjax train configs/rnn.py --config.model.num_layers=1 --config.model.dropout=0.2
Hardware, wall time, validation loss: not measured

Without a factor on the logits, an LSTM of width 64 is still at the unigram loss after 250k bytes (3.27 nats). With a
factor of 8 and a bias, it is at 2.59 after 120k bytes (learning rate 2^-7.5). After 750k bytes it is at 1.96 with a
factor of 8 and at 1.79 with 32, each at its best learning rate; GRU and Elman networks are best with 8. A feed-forward
model of 76k parameters reaches 2.36 instead of 3.24 after 120k bytes (2^-8). All with the text, rows of 64 bytes and
seed 0 of experiments/history.
"""

from configs import default
from lmjax.config import overlay


def get_config(cell: str = "lstm"):
    """Returns the config of two layers of a cell."""
    return overlay(
        default.get_config(),
        {
            "model.family": "rnn",
            "model.options.cell": cell,
            "model.num_layers": 2,
            "model.num_heads": 1,
            "model.position": "none",
            "model.head_bias": True,
            "model.logit_scale": 32.0 if cell == "lstm" else 8.0,  # nothing normalises the states before the logits
        },
    )

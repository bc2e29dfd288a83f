"""The base config: a 3.3M-parameter byte-level decoder on `classic`, 4M tokens. Every key is in lmjax/defaults.py.

Question: what does a small causal Transformer learn from Shakespeare and the King James Bible?
Command:  lmjax train configs/default.py
Hardware, wall time, validation loss: not measured
"""

from lmjax.defaults import get_config as get_config

"""Hugging Face folders in and out: config.json, safetensors and tokenizer to a run directory of ours and back.

options.py     config.json <-> the model section of a config; its pieces are in parts.py
names.py       names of published tensors <-> paths of our parameter tree
weights.py     layouts and layers of these tensors
architectures.py  which architecture a model of ours is, rewriting weights where the function stays the same
folder.py      the files of a folder
vocabulary.py  tokenizers
Nothing here imports torch; safetensors and transformers (extra [hf]) are imported where they are needed.
"""

from lmjax.hf.exports import export_run
from lmjax.hf.imports import import_run

__all__ = ["export_run", "import_run"]

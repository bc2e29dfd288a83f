"""Hugging Face import and export: config.json, safetensors and tokenizer <-> a run directory.

imports.py, exports.py   the two commands
options.py               config.json <-> the model section of a config
names.py                 names of tensors <-> paths of the parameter tree
weights.py               layouts of these tensors
architectures.py         the architecture that computes what a model computes
folder.py                the files of a folder
vocabulary.py            tokenizers

Nothing here imports torch; safetensors and transformers (extra [hf]) are imported where they are needed.
"""

from lmjax.hf.exports import export_run
from lmjax.hf.imports import import_run

__all__ = ["export_run", "import_run"]

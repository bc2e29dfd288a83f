"""lmjax: scaling experiments with language models in JAX/Flax.

    model = lmjax.load(RUN)                      # generate, score, perplexity
    model = lmjax.train(config, run_dir)
    table = lmjax.sweep("configs/quickstart.py")
    fit = lmjax.scaling.fit(table)               # predict, allocate, audit, plot, report

Submodules are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["load", "scaling", "sweep", "train"]

if TYPE_CHECKING:
    from lmjax import scaling
    from lmjax.api import load, sweep, train


def __getattr__(name: str):
    if name == "scaling":
        return importlib.import_module("lmjax.scaling")
    if name in ("load", "sweep", "train"):
        return getattr(importlib.import_module("lmjax.api"), name)
    raise AttributeError(f"module 'lmjax' has no attribute {name!r}")

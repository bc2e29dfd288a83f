"""Text to batches: sources, tokenizers, token stores, the pipeline. Entry point: `prepare(config)`."""

_LAZY = {
    "Data": "dataset",
    "check_vocabulary": "dataset",
    "prepare": "dataset",
    "evaluation_rows": "pipeline",
    "train_pipeline": "pipeline",
    "list_stores": "store",
    "render_documents": "inspect",
    "render_examples": "inspect",
    "render_stores": "inspect",
}
__all__ = sorted(_LAZY)


def __getattr__(name: str):
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"lmjax.data.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'lmjax.data' has no attribute {name!r}")

"""lmjax: scaling experiments with language models in JAX/Flax. Start with the README's map of files."""

__version__ = "0.1.0"

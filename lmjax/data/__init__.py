"""Text to batches: sources, tokenizers, token stores, the pipeline. Entry point: `lmjax.data.dataset.prepare`."""

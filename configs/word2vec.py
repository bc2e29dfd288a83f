"""Word vectors by skip-gram with negative sampling (word2vec) on `classic`, cut into 4096 BPE tokens.

Question: which words are used alike?
Command:  lmjax train configs/word2vec.py
          lmjax vectors runs/word2vec-... --nearest king --analogy "man king woman"
Hardware, wall time, validation loss: one busy CPU core, a minute and a half; 2.592 nats per pair with its noise words
          (2.703: always predicting the share of real pairs). Nearest to " king" are David, sons, Saul, children, tribe,
          priests; to " three": teen, thirty, begat, five, twenty. The analogy needs more text than this.

A row holds the pairs of about 54 tokens, each with 5 noise words: 36 triples per token where no word is left out.
"""

from configs import default
from lmjax.config import overlay


def get_config():
    """Returns the config; d_model is the width of the vectors."""
    return overlay(
        default.get_config(),
        {
            "model.family": "word2vec",
            "model.d_model": 128,
            "model.num_layers": 1,
            "model.num_heads": 1,
            "model.position": "none",
            "model.embedding_scale": 1.0,
            "model.tie_embeddings": False,
            "objective.name": "skip_gram",
            "data.tokenizer": "bpe",
            "data.vocab_size": 4096,
            "data.seq_len": 3072,
            "data.global_batch_size": 16,
            "duration.tokens": 1_000_000,
            "optimizer.weight_decay": 0.0,
        },
    )

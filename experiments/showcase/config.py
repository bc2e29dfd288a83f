"""One small model of each architecture on Shakespeare and the King James Bible, trained until it is recognisable.

Question: can every family be trained, decoded, evaluated and handed to other software, end to end?
Command:  lmjax train --config experiments/showcase/config.py            (decoder: next token)
          lmjax train --config experiments/showcase/config.py:encoder    (masked tokens)
          lmjax train --config experiments/showcase/config.py:encoder_decoder    (T5 v1.1's, span corruption)
          python experiments/showcase/collect.py runs     (everything in the folders beside this file)
Time:     about 20 minutes each on 2 cores. Results: the README beside this file.

The encoder keeps rotary positions and pre-norm. With BERT's own options (learned positions, post-norm) it was still at
5.73 nats per masked token, what the words' frequencies give, after 2.7M tokens; with these at 4.88 after 0.8M (30 % of
the tokens masked instead of 15 %). The encoder-decoder needs longest until its decoder reads what the encoder says:
with 15 % of the tokens removed it ended 8M tokens at 4.20 nats and filled every gap with a comma. It gets 30 %, 16M.

All three read the same 2048-entry byte-level BPE, trained on the training documents; the others see 8M tokens, 2.7
passes over the corpus.
"""

import importlib

from lmjax.config import overlay
from lmjax.errors import InputError, nearest

ARCHITECTURE = {
    "decoder": {"model.num_layers": 4},
    "encoder": {"model.num_layers": 4, "objective.options.mask_rate": 0.3},
    "encoder_decoder": {
        "model.num_layers": 3,
        "model.norm_epsilon": 1e-6,
        "model.activation": "geglu",
        "model.attention_scale": 1.0,
        "model.tie_embeddings": False,
        "objective.options.noise_density": 0.3,
        "duration.tokens": 16_000_000,
        "data.max_epochs": 6.0,
    },
}


def get_config(family: str = "decoder"):
    """Returns the config of a family's model, about a million parameters."""
    if family not in ARCHITECTURE:
        raise InputError(f"unknown {family!r}{nearest(family, ARCHITECTURE)}")
    base = importlib.import_module(f"configs.{family}").get_config()
    return overlay(
        base,
        {
            "model.d_model": 128,
            "model.num_heads": 4,
            "data.tokenizer": "bpe",
            "data.vocab_size": 2048,
            "data.seq_len": 128,
            "data.max_epochs": 5.0,
            "duration.tokens": 8_000_000,
            "optimizer.learning_rate": 2e-3,
            "schedule.final_fraction": 0.0,
            "evaluation.every_steps": 400,
            "checkpoint.every_seconds": 120.0,
            "metrics.every_steps": 20,
            "run.name": f"showcase-{family.replace('_', '-')}",
            **ARCHITECTURE[family],
        },
    )

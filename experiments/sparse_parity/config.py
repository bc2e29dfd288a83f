from configs import decoder
from lmjax.config import overlay
from lmjax.sweeps.combinators import product
import pathlib
def get_config():
    return overlay(decoder.get_config(), {
        "plugins": (str(pathlib.Path(__file__).with_name("parity.py")),),
        "objective.name": "sparse_parity",
        "model.family": "parity_mlp", "model.position": "none",
        "model.d_model": 64, "model.num_layers": 1, "model.num_heads": 1,
        "data.sources": ("zipf:200000",), "data.seq_len": 1024, "data.global_batch_size": 4, "data.max_epochs": 1e9,
        "duration.tokens": None, "duration.steps": 6000,
        "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 0.0, "optimizer.clip_norm": None,
        "schedule.name": "constant", "schedule.warmup_steps": 0,
        "evaluation.max_tokens": None, "evaluation.batch_size": 4, "evaluation.every_steps": 1000,
        "metrics.every_steps": 100, "checkpoint.per_decade": 8,
        "run.name": "parity",
    })
def sweep():
    return product({"model.d_model": [64]})

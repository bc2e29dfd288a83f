from configs import decoder
from lmjax.config import overlay
from lmjax.sweeps.combinators import product
import pathlib
MODULUS=59
def get_config():
    return overlay(decoder.get_config(), {
        "plugins": (str(pathlib.Path(__file__).with_name("sums.py")),),
        "objective.name": "modular_sum",
        "objective.options.modulus": MODULUS,
        "model.d_model": 64, "model.num_layers": 1, "model.num_heads": 4, "model.position": "learned",
        "model.embedding_scale": 1.0,
        "data.sources": (f"modular:{MODULUS}",),
        "data.validation_fraction": 0.6,
        "data.seq_len": 3, "data.global_batch_size": 512, "data.max_epochs": 1e9,
        "duration.tokens": None, "duration.steps": 3000,
        "optimizer.learning_rate": 1e-3, "optimizer.b2": 0.98, "optimizer.weight_decay": 1.0, "optimizer.clip_norm": None,
        "schedule.name": "constant", "schedule.warmup_steps": 10,
        "evaluation.max_tokens": None, "evaluation.batch_size": 512, "evaluation.every_steps": 100,
        "metrics.every_steps": 20,
        "run.name": "grokking",
    })
def sweep():
    return product({"train.seed": [0]})

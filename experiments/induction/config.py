from configs import decoder
from lmjax.config import overlay
from lmjax.sweeps.combinators import product
import pathlib
def get_config():
    return overlay(decoder.get_config(), {
        "plugins": (str(pathlib.Path(__file__).with_name("repeats.py")),),
        "objective.name": "text_and_repeats",
        "model.d_model": 64, "model.num_layers": 2, "model.num_heads": 4,
        "data.sources": ("en",), "data.seq_len": 128, "data.global_batch_size": 16,
        "duration.tokens": None, "duration.steps": 1500,
        "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 0.1,
        "schedule.name": "constant", "schedule.warmup_steps": 50,
        "evaluation.max_tokens": 32768, "evaluation.batch_size": 64, "evaluation.every_steps": 100,
        "metrics.every_steps": 10,
        "run.name": "induction",
    })
def sweep():
    return product({"model.num_layers": [1, 2], "train.seed": [0]})

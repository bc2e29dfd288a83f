"""Coordinate check of a parametrization: do a few steps change activations equally at every width?

Tensor Programs V, arXiv 2203.03466, appendix D.1. With one learning rate, changes grow with width under "standard" and
are the same under muP. The check sees wrong factors on rates, logits and attention; it does not see weight decay,
epsilon or the schedule, for which the optimum of the learning rate has to be located.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax import trainer
from lmjax.errors import InputError
from lmjax.models.electra import Electra
from lmjax.models.recurrent import Layer
from lmjax.models.stack import Block
from lmjax.optim.optimizers import make_optimizer
from lmjax.optim.parametrization import MULTIPLIERS
from lmjax.resolve import resolve

STEPS, RATE = 4, 2.0**-7  # a high rate on purpose: the changes are then far above rounding
BATCH, LENGTH = 8, 64  # rows of a batch, largest number of tokens of a row
BAND = (0.8, 1.25)  # allowed ratio of the changes at the largest and the smallest width
CHANGES = {  # of `measure`, and what they are of
    "logits": "logits",
    "blocks": "block outputs",
    "replaced": "discriminator's outputs",
    "replaced_blocks": "its block outputs",
}


def at_width(config: ConfigDict, width: int) -> dict[str, Any]:
    """Returns the overrides that give a config another d_model, with mlp_dim and all heads in proportion.

    With parametrization.base_head_dim heads become wider, without it there are more of them.

    Example: d_model 256, 4 heads, at width 512: {"model.d_model": 512, "model.num_heads": 8, ...}
    """
    model, found = config.model, {"model.d_model": width}

    def scaled(key):
        value = model[key]
        if value is not None:
            if value * width % model.d_model:
                raise InputError(
                    f"width {width}: expected model.{key} {value} to scale to a whole number from model.d_model "
                    f"{model.d_model}, got {value * width / model.d_model:g}; choose another width"
                )
            found[f"model.{key}"] = value * width // model.d_model

    scaled("mlp_dim")
    for key in ("head_dim",) if config.parametrization.base_head_dim else ("num_heads", "num_kv_heads"):
        scaled(key)
    return found


def measure(config: ConfigDict) -> dict[str, float]:
    """Trains a config for 4 steps at a constant rate and returns mean absolute values.

    Returns:
        {"initial": of the logits at step 0, "logits": of their change, "blocks": of the change of outputs of blocks,
        recurrent layers, or the hidden layer of feed_forward}. Of ELECTRA, these are the generator's, and {"replaced":
        of the change of the discriminator's outputs, "replaced_blocks": of its blocks} are added. The discriminator
        reads the same tokens before and after: id 0 at the masked positions, as drawn by noise 0.
    """
    run = resolve(config)
    optimizer = make_optimizer(run.config.optimizer)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]), run.metrics)
    step, decay = trainer.make_step(run, optimizer), run.config.optimizer.weight_decay
    rows = run.batches.rows(np.arange(BATCH * STEPS))
    batches = {name: x.reshape(STEPS, 1, BATCH, *x.shape[1:]) for name, x in rows.items()}
    two, read = isinstance(run.model, Electra), {name: x[0, 0] for name, x in batches.items()}
    if two:
        read["noise"] = np.zeros_like(read["noise"])

    def forward(params):
        outputs, captured = run.model.apply(
            {"params": params},
            read,
            project=not two,
            capture_intermediates=lambda module, _: isinstance(module, (Block, Layer)) or module.name == "hidden",
            mutable=["intermediates"],
        )
        if not two:
            return {"logits": outputs, "blocks": jax.tree.leaves(captured)}
        blocks = {name: jax.tree.leaves(x) for name, x in captured["intermediates"].items()}
        found = {"logits": outputs["lm"].logits(), "blocks": blocks["generator"]}
        return found | {"replaced": outputs["replaced"], "replaced_blocks": blocks["encoder"]}

    def change(key):
        start = init(key)
        arguments = jnp.float32([RATE, decay, 1.0])
        end, _ = jax.lax.scan(lambda state, batch: step(state, batch, key, arguments), start, batches)
        both = jax.tree.map(lambda *x: jnp.stack(x), start["params"], end["params"])
        found = jax.lax.map(forward, both)
        moved = jax.tree.map(lambda x: jnp.abs(x[1] - x[0]).mean(), found)
        means = {name: sum(x) / len(x) if isinstance(x, list) else x for name, x in moved.items()}
        return {"initial": jnp.abs(found["logits"][0]).mean(), **means}

    return {name: float(value) for name, value in jax.jit(change)(jax.random.key(config.train.seed)).items()}


def check(config: ConfigDict, widths: Sequence[int] = (64, 256)) -> tuple[list[dict], bool, str]:
    """Measures a config at some widths under "standard" and under its parametrization ("mup" if that is "standard").

    Args:
        config: gives data, objective, depth, optimizer and the width of a head. Rows are cut to 64 tokens.
        widths: at least two values of d_model. The base is parametrization.base_width, else the smallest of them.

    Returns:
        A row per parametrization and width, with the numbers of `measure`; whether the parametrization passes, i.e.
        all changes have ratios in 0.8 .. 1.25; a sentence with the ratios.

    Raises:
        InputError: fewer than two widths; a width that the heads do not divide.
    """
    widths = sorted(set(widths))
    if len(widths) < 2:
        raise InputError(f"expected at least two widths, got {widths}")
    section, lengths = config.parametrization, [config.data.seq_len, config.data.encoder_seq_len]
    name = "mup" if section.name == "standard" else section.name
    shared = {
        **{f"model.{key}_multiplier": None for key in MULTIPLIERS},
        **{f"duration.{key}": None for key in ("tokens", "epochs", "flops")},
        "duration.steps": STEPS,
        "schedule.warmup_steps": 0,
        "data.global_batch_size": BATCH,
        "data.seq_len": min(lengths[0], LENGTH),
        "data.encoder_seq_len": lengths[1] and min(lengths[1], LENGTH),
        "train.accumulation_steps": 1,
        "model.dropout": 0.0,
        "model.remat": "none",
        "model.scan_layers": True,
    }
    base, rows = section.base_width or widths[0], []
    for parametrization in ("standard", name):
        for width in widths:
            if width == base and parametrization != "standard" and name == "mup":  # the same program
                rows.append({**rows[widths.index(width)], "parametrization": name})
                continue
            keys = {"parametrization.name": parametrization, "parametrization.base_width": base}
            changed = configs.overlay(config, {**shared, **at_width(config, width), **keys})
            rows.append({"parametrization": parametrization, "width": width, **measure(changed)})
    return rows, *_verdict(rows, widths, name)


def _verdict(rows, widths, name):
    ratios = {}
    for parametrization in ("standard", name):
        first, *_, last = [row for row in rows if row["parametrization"] == parametrization]
        ratios[parametrization] = {key: last[key] / first[key] for key in CHANGES if key in first}
    good = all(BAND[0] <= ratio <= BAND[1] for ratio in ratios[name].values())
    said = {}
    for parametrization, found in ratios.items():
        *most, end = [f"{ratio:.2f} ({CHANGES[key]})" for key, ratio in found.items()]
        said[parametrization] = f"{', '.join(most)} and {end}"
    return good, (
        f"{name} {'passes' if good else 'fails'}: from width {widths[0]} to {widths[-1]}, changes in {STEPS} steps "
        f"grow by factors of {said[name]}, expected {BAND[0]} to {BAND[1]}; under standard by {said['standard']}"
    )

"""Guards against learning rates that do not transfer: wrong factors on rates, weight decay, epsilon, logits, attention
and branches when width or depth changes, and a muP that differs from "standard" at its base."""

import functools

import jax
import numpy as np
import pytest

from lmjax import trainer
from lmjax.optim.optimizers import OPTIMIZERS, make_optimizer
from lmjax.resolve import resolve
from tests.conftest import small

FAMILIES = ("decoder", "encoder", "encoder_decoder")
BASE = {"parametrization__name": "mup", "parametrization__base_width": 16}
WIDE = {**BASE, "model__d_model": 64, "model__num_heads": 8}


@functools.cache
def resolved(family="decoder", **overrides):
    return resolve(small(family, **overrides))


def scales_of(**overrides):
    """{path: Scale} of a resolved config."""
    found = jax.tree_util.tree_leaves_with_path(resolved(**overrides).scales)
    return {"/".join(key.key for key in path): scale for path, scale in found}


def programs(run):
    """The text of the programs that initialise and that make a step: with equal ones, all results are equal bits."""
    optimizer = make_optimizer(run.config.optimizer)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]))
    batch = {name: x[None] for name, x in run.batches.rows(np.arange(8)).items()}
    key, rate, fresh = jax.random.key(0), np.float32(0.01), np.bool_(True)
    step = jax.jit(trainer.make_step(run, optimizer))
    state = jax.eval_shape(init, key)
    return jax.jit(init).lower(key).as_text(), step.lower(state, batch, key, rate, rate, fresh).as_text()


COMPLETEP = {**BASE, "parametrization__name": "completep", "parametrization__base_layers": 1}


@pytest.mark.parametrize("other", [BASE, {**COMPLETEP, "parametrization__base_head_dim": 8}], ids=["mup", "completep"])
def test_at_the_base_all_factors_are_those_of_standard(other):
    """Three families, four optimizers. A step depends on nothing else of the parametrization."""
    for family in FAMILIES:
        for optimizer in OPTIMIZERS:
            options = {"optimizer__name": optimizer, "model__num_layers": 1}
            standard, same = resolved(family, **options), resolved(family, **options, **other)
            assert same.scales == standard.scales and same.run_id != standard.run_id
        multipliers = [same.config.model[f"{name}_multiplier"] for name in ("logit", "attention", "branch")]
        assert multipliers == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("family", "optimizer"),
    [("decoder", "adamw"), ("encoder", "lion"), ("encoder_decoder", "adafactor"), ("decoder", "muon")],
)
def test_at_the_base_mup_is_the_same_program_as_standard(family, optimizer):
    options = {"optimizer__name": optimizer, "model__num_layers": 1}
    other = COMPLETEP if optimizer == "lion" else BASE
    assert programs(resolved(family, **options)) == programs(resolved(family, **options, **other))

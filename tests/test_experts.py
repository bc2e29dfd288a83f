"""Guards against experts that compute something else than their formula, that let rows or later tokens matter, or whose
losses, counts and factors depend on how the batch is split."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from lmjax import config as configs
from lmjax import trainer
from lmjax.errors import InputError
from lmjax.models.experts import Experts, assign, capacity, imbalance
from lmjax.optim.optimizers import make_optimizer
from lmjax.resolve import memory, resolve
from lmjax.sharding import make_mesh
from tests.conftest import small
from tests.test_models import batch_of, built, model_config
from tests.test_step import assert_close, outcome, programs, resolved, unequal_weights

E, K, D, F, T = 4, 2, 16, 32, 8
EXPERTS = {"position": "rotary", "num_experts": E, "expert_capacity": 1.0}


def layer(deterministic, **overrides):
    """(module, parameters) of one feed-forward layer."""
    config = FrozenConfigDict(model_config(**{**EXPERTS, "activation": "swiglu", **overrides}))
    rng = np.random.default_rng(1)
    shapes = {"up": (E, D, F), "gate": (E, D, F), "down": (E, F, D)}
    params = {name: {"kernel": 0.3 * rng.normal(size=shape).astype(np.float32)} for name, shape in shapes.items()}
    return Experts(config, 2, deterministic), params | {"router": rng.normal(size=(D, E)).astype(np.float32)}


def by_hand(params, x, k, slots, real):
    """The formula in float64, token by token: (output, imbalance) of one row."""
    p = np.exp(x @ params["router"].astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    out, used, choices = np.zeros_like(x), np.zeros(E, int), np.zeros(E)
    for t in np.flatnonzero(real):
        chosen = np.argsort(-p[t], kind="stable")[:k]
        gates = p[t, chosen] / (p[t, chosen].sum() if k > 1 else 1.0)
        for e, gate in zip(chosen, gates, strict=True):
            choices[e] += 1
            if used[e] < slots:
                used[e] += 1
                h, g = x[t] @ params["up"]["kernel"][e], x[t] @ params["gate"]["kernel"][e]
                out[t] += gate * (g / (1 + np.exp(-g)) * h @ params["down"]["kernel"][e])
    return out, E * (choices / choices.sum() * p[real].mean(0)).sum()


@pytest.mark.parametrize(("k", "factor"), [(1, 1.0), (2, 0.5), (2, 1.25), (2, None), (4, None)])
def test_experts_against_numpy_in_float64(k, factor):
    """Training with little, some and full capacity; the second row begins and ends with padding. Float32 sums: 1e-5."""
    module, params = layer(deterministic=False, experts_per_token=k, expert_capacity=factor)
    x = np.random.default_rng(0).normal(size=(2, T, D)).astype(np.float32)
    real = np.ones((2, T), bool)
    real[1, [0, T - 1]] = False
    slots = capacity(module.config, T)
    run = jax.jit(lambda x, real: module.apply({"params": params}, x, real, mutable=["losses"]))
    out, found = run(x, real)
    expected = [by_hand(params, row.astype(np.float64), k, slots, mask) for row, mask in zip(x, real, strict=True)]
    np.testing.assert_allclose(out, [row for row, _ in expected], atol=1e-5)
    np.testing.assert_allclose(jax.tree.leaves(found)[0], [uneven for _, uneven in expected], rtol=1e-5)
    full = layer(deterministic=True, experts_per_token=k, expert_capacity=factor)[0]
    kept = jax.jit(lambda x, real: full.apply({"params": params}, x, real))(x, real)
    assert np.allclose(kept, out, atol=1e-5) == (slots >= T or np.allclose(by_all(params, x, k, real), out, atol=1e-5))
    np.testing.assert_allclose(kept, by_all(params, x, k, real), atol=1e-5)


def by_all(params, x, k, real):
    return [by_hand(params, row.astype(np.float64), k, T, mask)[0] for row, mask in zip(x, real, strict=True)]


def test_worked_examples():
    slot, token = assign(jnp.array([[1], [1], [0]]), jnp.ones(3, bool), 2, 1)
    assert slot.tolist() == [[1], [2], [0]] and token.tolist() == [2, 0]
    assert capacity({"expert_capacity": 1.25, "experts_per_token": 2, "num_experts": 8}, 64) == 20
    even, chosen = jnp.full((1, 4, 4), 0.25), jnp.arange(4)[None, :, None]
    assert float(imbalance(even, chosen, jnp.ones((1, 4)))[0]) == pytest.approx(1.0)
    one = jnp.tile(jnp.array([1.0, 0, 0, 0]), (1, 4, 1))
    assert float(imbalance(one, jnp.zeros((1, 4, 1), int), jnp.ones((1, 4)))[0]) == pytest.approx(4.0)


def test_in_training_later_tokens_and_other_rows_do_not_matter():
    """With a capacity that leaves tokens out: changing token 5 of row 0 changes only what follows in its row, bit for
    bit."""
    model, params = built("decoder", **EXPERTS, experts_per_token=2)
    run = jax.jit(lambda batch: model.apply({"params": params}, batch, deterministic=False))
    batch, changed = batch_of("decoder"), batch_of("decoder")
    changed["inputs"][0, 5] = (changed["inputs"][0, 5] + 1) % 32
    before, after = run(batch), run(changed)
    np.testing.assert_array_equal(before[1], after[1])
    np.testing.assert_array_equal(before[0, :5], after[0, :5])
    assert not np.allclose(before[0, 5:], after[0, 5:])
    kept = jax.jit(lambda batch: model.apply({"params": params}, batch))(batch)
    assert not np.allclose(before, kept)  # tokens were left out


AUXILIARY = {
    "model__num_experts": 4,
    "model__num_layers": 1,
    "train__z_loss": 1e-2,
    "train__load_balancing": 0.5,
    "optimizer__epsilon": 1e-3,
    "data__mode": "pack",
}


@pytest.mark.parametrize(("micro", "mesh", "remat"), [(4, (2, 1, 1), "none"), (1, (1, 2, 2, 1, 2), "full")])
def test_auxiliary_losses_do_not_depend_on_micro_batches_or_devices(micro, mesh, remat):
    """One micro-batch on one device against several, and a mesh on which the experts are split, with recomputation:
    parameters, the loss and the two losses added to it, with rows of unequal weights."""
    one, other = (
        outcome(
            resolved("decoder", **AUXILIARY, train__accumulation_steps=rows, model__remat=kept),
            shape,
            weights=unequal_weights(),
        )
        for rows, shape, kept in ((1, (1, 1, 1), "none"), (micro, mesh, remat))
    )
    assert_close(one[1:3], other[1:3])
    assert_close(one[3]["params"], other[3]["params"])
    for name in ("z_loss", "load_balancing"):
        assert one[3][name][0] > 0
        assert_close(one[3][name], other[3][name])


def test_experts_are_split_over_the_mesh():
    run = resolved("decoder", **AUXILIARY)
    mesh = make_mesh(configs.overlay(run.config, {"mesh.expert": 2, "mesh.fsdp": 2, "mesh.tensor": 2}).mesh)
    init = trainer.make_init(run.model, make_optimizer(run.config.optimizer), run.batches.rows([0]))
    params = trainer.abstract_state(run, init, jax.random.key(0), mesh)["params"]
    kernel = params["stack"]["layers"]["feed_forward"]["up"]["kernel"]  # [layers, experts, embed, mlp]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 4 // 2, 16 // 2, 64 // 2)


def test_tokens_travel_to_the_experts_and_weights_do_not():
    """Rows on 8 devices, experts on 4: slots are exchanged all to all, no kernel of an expert is gathered, and its
    gradient is summed over those devices only that have the expert."""
    mesh, _, step = programs(resolved("decoder", **AUXILIARY), (2, 1, 1, 1, 4))
    lines = [
        line for line in step.as_text().splitlines() if re.search(r" (all-[a-z-]+|reduce-scatter)(-start)?\(", line)
    ]
    assert mesh.shape["expert"] == 4 and any(" all-to-all(" in line for line in lines)
    kernels = [line for line in lines if re.search(r"f32\[\d+,(16,64|64,16)\]", line)]
    assert kernels and all(re.search(r" all-reduce(-start)?\(", line) for line in kernels)
    assert all("f32[1,16,64]" in line for line in kernels)


def test_auxiliary_losses_change_the_training_and_are_logged_apart(tmp_path):
    """metrics.jsonl has the objective's loss and what is added to it, by name; the first losses are those without; the
    record has the parameters that a token uses."""
    lines = []
    for factor in (0.0, 0.1):
        overrides = {"model.num_experts": 4, "train.z_loss": factor, "train.load_balancing": 10 * factor}
        overrides |= {"metrics.every_steps": 1, "duration.steps": 2}
        run = resolve(configs.overlay(small(), overrides))
        assert trainer.train(run, tmp_path / str(factor), show_progress=False) == trainer.DONE
        text = (tmp_path / str(factor) / "metrics.jsonl").read_text()
        lines.append([json.loads(line) for line in text.splitlines()])
    plain, added = lines
    assert "z_loss" not in plain[0] and "load_balancing" not in plain[0]
    assert added[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5) and added[1]["loss"] != plain[1]["loss"]
    ids = run.config.model.vocab_size
    assert added[0]["z_loss"] == pytest.approx(0.1 * np.log(ids) ** 2, rel=0.1)  # initial logits are near 0
    assert added[0]["load_balancing"] == pytest.approx(1.0, rel=0.2)  # and the initial router is near even
    derived = run.derived
    layers, width, inner = (run.config.model[key] for key in ("num_layers", "d_model", "mlp_dim"))
    assert derived["n_total"] - derived["n_active"] == 2 * layers * 2 * width * inner  # 2 of 4 experts, up and down
    assert derived["flops_6nd_active"] == 6 * derived["n_active"] * derived["tokens"] < derived["flops_6nd"]


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_memory_of_split_experts(family, shared):
    """Against the parameters that a token leaves out, 2 of 4 experts. With shared layers, it was below 0."""
    overrides = {"model__num_experts": 4, "model__share_layers": shared, "model__activation": "swiglu"}
    run = resolve(small(family, **overrides))
    experts, total = 2 * (run.derived["n_total"] - run.derived["n_active"]), run.derived["n_total"]
    for size in (1, 4):
        mesh = {"fsdp": 1, "expert": size, "tensor": 1}
        found = memory(run.config, run.lengths, total, mesh=mesh)["parameters"]
        assert found == 4 * (total - experts + experts // size)


def test_bad_options_are_refused():
    for overrides, match in (
        ({"experts_per_token": 5}, "model.experts_per_token 5: expected at most model.num_experts 4"),
        ({"use_bias": True}, "expected model.use_bias=False"),
        ({"num_experts": 1}, "expected an integer, 2 or above"),
    ):
        options = {f"model.{key}": value for key, value in {"num_experts": 4, **overrides}.items()}
        with pytest.raises(InputError, match=match):
            configs.check(configs.overlay(small(), options))

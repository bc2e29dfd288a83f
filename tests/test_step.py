"""Guards against a step that depends on micro-batches, devices or mesh, and against training on after a NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import config as configs
from lmjax import losses, trainer
from lmjax.errors import InputError
from lmjax.optim.optimizers import make_optimizer
from lmjax.resolve import resolve
from lmjax.sharding import batch_sharding, local_rows, logical_mesh, make_global_batch, make_mesh
from tests.conftest import small

MESHES = [(8, 1, 1), (1, 4, 1), (1, 1, 2), (2, 2, 2)]
SMOOTH = {"optimizer__epsilon": 1e-3}  # Adam at its usual epsilon turns the sign of a zero gradient into a step


@functools.cache
def resolved(family, **overrides):
    return resolve(small(family, **overrides))


@functools.cache
def reference(family, **overrides):
    """Two steps on one device, one micro-batch, unequal weights."""
    return outcome(resolved(family, **SMOOTH, **overrides), (1, 1, 1), weights=unequal_weights())


PROGRAMS = {}  # of a run on a mesh, compiled once


def programs(run, mesh_shape):
    """(mesh, init, step function) of a run of `resolved`, which keeps it."""
    if (id(run), mesh_shape) not in PROGRAMS:
        axes = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.context", "mesh.expert")  # the last may be left out
        sizes = dict(zip(axes, mesh_shape, strict=False))
        mesh = make_mesh(configs.overlay(run.config, sizes).mesh, jax.devices()[: int(np.prod(mesh_shape))])
        optimizer = make_optimizer(run.config.optimizer)
        init = trainer.make_init(run.model, optimizer, run.batches.rows([0]), run.metrics)
        key = jax.random.key(run.config.train.seed)
        like = trainer.abstract_state(run, init, key, mesh)
        rows, micro = run.config.data.global_batch_size, run.config.train.accumulation_steps
        with logical_mesh(mesh, run.config.mesh.rules):
            init = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))
            batch = make_global_batch(run.batches.rows, mesh, micro, rows // micro)
            PROGRAMS[id(run), mesh_shape] = mesh, init, trainer.compile_step(run, optimizer, like, batch, key)
    return PROGRAMS[id(run), mesh_shape]


def outcome(run, mesh_shape, steps=2, weights=None, poison=None, rate=0.01):
    """(initial params, losses, grad norms, state) of a few steps on a mesh, as host arrays."""
    mesh, init, step_function = programs(run, mesh_shape)
    key = jax.random.key(run.config.train.seed)
    rows, micro = run.config.data.global_batch_size, run.config.train.accumulation_steps

    def rows_of(step, indices):
        batch = run.batches.rows(step * rows + indices)
        if weights is not None:
            batch["weights"] = weights[indices]
        if poison == step:
            batch["weights"] = batch["weights"] * np.float32(np.nan)
        return batch

    with logical_mesh(mesh, run.config.mesh.rules):
        state = init(key)
        initial = jax.tree.map(np.asarray, state["params"])
        norms, losses = [], []
        for step in range(steps):
            batch = make_global_batch(functools.partial(rows_of, step), mesh, micro, rows // micro)
            state, _ = step_function(state, batch, key, np.float32([rate, 0.1, 1.0]))
            losses.append(
                float(state["loss_sum"]) / (float(state["loss_weight"]) or 1.0)
            )  # 0 / 0 where frozen at step 0
            norms.append(float(state["grad_norm"]))
    return initial, losses, norms, jax.tree.map(np.asarray, state)


def unequal_weights():
    """Every row predicts another number of tokens, one row none: where per-micro-batch means go wrong."""
    weights = np.zeros((8, 16), np.float32)
    for row in range(8):
        weights[row, : 2 * row] = 1.0
    return weights


def assert_close(a, b):
    """float32 sums in another order: 2e-5 on values of size 0.01 to 10."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=2e-4), a, b)


@pytest.mark.parametrize(("micro", "mesh_shape"), [(8, (1, 1, 1)), (2, (4, 1, 1))])
def test_accumulation_equals_one_big_batch(micro, mesh_shape):
    one = reference("decoder")
    run = resolved("decoder", train__accumulation_steps=micro, **SMOOTH)
    other = outcome(run, mesh_shape, weights=unequal_weights())
    assert_close(one[1:3], other[1:3])
    assert_close(one[3]["params"], other[3]["params"])


@pytest.mark.parametrize("mesh_shape", MESHES)
def test_every_mesh_gives_the_same_parameters_losses_and_gradients(mesh_shape):
    one, other = reference("decoder"), outcome(resolved("decoder", **SMOOTH), mesh_shape, weights=unequal_weights())
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])  # the same draws, bit for bit
    assert_close(one[1:3], other[1:3])
    assert_close(one[3]["params"], other[3]["params"])


@pytest.mark.parametrize(("mesh_shape", "micro"), [((2, 2, 2), 1), ((1, 1, 1), 2)])
def test_a_loss_in_chunks_is_that_of_all_logits(mesh_shape, micro, monkeypatch):
    """Over 8 devices with the vocabulary split, and with two micro-batches; tied table and bias of the head."""
    overrides = {"model__num_layers": 1, "model__head_bias": True, "model__tie_embeddings": True}
    one = reference("decoder", **overrides)
    run = resolved("decoder", **SMOOTH, **overrides, train__accumulation_steps=micro)
    shards = int(np.prod(mesh_shape))
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 8 // micro * 5 * run.config.model.vocab_size // shards)
    PROGRAMS.pop((id(run), mesh_shape), None)
    other = outcome(run, mesh_shape, weights=unequal_weights())
    assert_close(one[1:3], other[1:3])
    assert_close(one[3]["params"], other[3]["params"])


@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_the_other_families_shard_alike(family):
    run = resolved(family, model__num_layers=1)
    one, other = (outcome(run, shape) for shape in ((1, 1, 1), (2, 2, 2)))
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert_close(one[1:3], other[1:3])


def test_parameters_are_born_sharded():
    run = resolved("decoder")
    mesh = make_mesh(configs.overlay(run.config, {"mesh.fsdp": 4, "mesh.tensor": 2}).mesh)
    optimizer = make_optimizer(run.config.optimizer)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]))
    like = trainer.abstract_state(run, init, jax.random.key(0), mesh)
    kernel = like["params"]["stack"]["layers"]["feed_forward"]["up"]["kernel"]  # [layers, embed, mlp]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // 4, 64 // 2)
    moment = like["opt_state"][0].mu["stack"]["layers"]["feed_forward"]["up"]["kernel"]
    assert moment.sharding == kernel.sharding


def test_clipping_uses_the_global_norm():
    """With clip_norm below the norm, plain SGD-like Lion aside, the clipped gradient enters Adam's moments."""
    plain = outcome(resolved("decoder", optimizer__clip_norm=None), (1, 1, 1), steps=1)
    clipped = outcome(resolved("decoder", optimizer__clip_norm=0.01), (1, 1, 1), steps=1)
    assert plain[2] == pytest.approx(clipped[2])  # what is reported is the norm before clipping
    factor = 0.01 / plain[2][0]
    moments = [state["opt_state"][0].mu for state in (plain[3], clipped[3])]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a * factor, b, rtol=1e-4, atol=1e-9), *moments)


def test_weights_that_sum_to_less_than_one_give_the_gradient_of_the_mean():
    """The gradient is divided by the weight of the batch, however small: scaling all weights changes nothing."""
    run = resolved("decoder")
    one, small_ones = (outcome(run, (1, 1, 1), steps=1, weights=unequal_weights() * w) for w in (1.0, 1e-3))
    assert_close(one[1:3], small_ones[1:3])


def test_a_non_finite_loss_freezes_the_last_good_state():
    run = resolved("decoder")
    good = outcome(run, (1, 1, 1), steps=2)
    frozen = outcome(run, (1, 1, 1), steps=4, poison=2)
    assert not frozen[3]["finite"] and int(frozen[3]["step"]) == 2
    jax.tree.map(np.testing.assert_array_equal, good[3]["params"], frozen[3]["params"])
    jax.tree.map(np.testing.assert_array_equal, good[3]["opt_state"], frozen[3]["opt_state"])


def test_an_update_that_overflows_a_parameter_leaves_the_parameters_before_it():
    """Loss and gradient of the first step do not depend on its rate; the state saved as the last good one is finite."""
    initial, _, _, state = outcome(resolved("decoder"), (1, 1, 1), steps=1, rate=3.4e38)
    assert not state["finite"] and int(state["step"]) == 0
    jax.tree.map(np.testing.assert_array_equal, initial, state["params"])


def test_loss_against_numpy_in_float64():
    """The reported loss of step 1 is the weighted mean of -log p over the global batch."""
    run = resolved("decoder")
    initial, losses, _, _ = outcome(run, (1, 1, 1), steps=1, weights=unequal_weights())
    batch = run.batches.rows(np.arange(8))
    logits = np.asarray(jax.jit(run.model.apply)({"params": initial}, batch), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    weights = unequal_weights()
    assert losses[0] == pytest.approx((nats * weights).sum() / weights.sum(), rel=1e-5)


def test_rows_of_processes_come_from_the_sharding():
    mesh = make_mesh(small(mesh__data=4, mesh__fsdp=2).mesh)
    assert local_rows(batch_sharding(mesh), (2, 8)).tolist() == list(range(16))
    seen = []

    def rows_of(indices):
        seen.extend(indices.tolist())
        return {"inputs": indices[:, None] * np.ones((1, 3), int)}

    batch = make_global_batch(rows_of, mesh, 2, 8)
    assert sorted(seen) == list(range(16))
    assert np.asarray(batch["inputs"])[:, :, 0].tolist() == [list(range(8)), list(range(8, 16))]
    assert all(shard.data.shape == (2, 1, 3) for shard in batch["inputs"].addressable_shards)


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="does not equal the 8 devices"):
        make_mesh(small(mesh__fsdp=3).mesh)
    with pytest.raises(InputError, match="expected tpu, found cpu"):
        make_mesh(small(mesh__platform="tpu").mesh)
    run = resolved("decoder", model__num_heads=1, model__mlp_dim=20)
    mesh = make_mesh(small(mesh__tensor=8).mesh)
    init = trainer.make_init(run.model, make_optimizer(run.config.optimizer), run.batches.rows([0]))
    with pytest.raises(InputError, match="20 does not divide over mesh axis tensor"):
        trainer.abstract_state(run, init, jax.random.key(0), mesh)


def test_dropout_is_a_function_of_seed_and_step():
    run = resolved("decoder", model__dropout=0.3)
    first, again = (outcome(run, (1, 1, 1)) for _ in range(2))
    assert first[1] == again[1]
    run2 = resolved("decoder", model__dropout=0.3, train__seed=1)
    assert outcome(run2, (1, 1, 1))[1] != first[1]
    assert jnp.isfinite(first[1][0])

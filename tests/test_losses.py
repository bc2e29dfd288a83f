"""Guards against a loss in chunks that differs from that of all logits: values, gradients, padding, own losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import losses
from lmjax.models.layers import Logits

B, T, D, V = 2, 12, 8, 50  # V is no multiple of 128


@pytest.fixture
def in_chunks(monkeypatch):
    """Sets the largest chunk to so many positions of T."""
    return lambda positions: monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * B * V * positions)


def example(seed=0, bias=True, dtype=jnp.float32, length=T):
    rng = np.random.default_rng(seed)
    x, kernel, shift = (rng.normal(size=shape).astype(np.float32) for shape in ((B, length, D), (D, V), (V,)))
    weights = (rng.random((B, length)) < 0.6).astype(np.float32) * rng.random((B, length), np.float32)
    weights[0] = 0.0  # a row that predicts nothing
    head = Logits(jnp.asarray(x, dtype), jnp.asarray(kernel), jnp.asarray(shift) if bias else None)
    return head, jnp.asarray(rng.integers(0, V, (B, length)), jnp.int32), jnp.asarray(weights)


def chunked(head, targets, weights):
    return losses.chunked_sums(head, targets, weights, 0.0)[0], jnp.sum(weights)


def whole(head, targets, weights):
    return chunked(head.logits(), targets, weights)


def outcome(function, head, targets, weights):
    """((sum, weight), gradients by head and weights)."""
    call = jax.value_and_grad(lambda head, weights: function(head, targets, weights), (0, 1), has_aux=True)
    return jax.jit(call)(head, weights)


def assert_close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * float(jnp.abs(y).max())), a, b)


@pytest.mark.parametrize(
    ("positions", "length", "count", "bias"),
    [(4, 12, 3, True), (5, 12, 3, False), (4, 11, 3, True), (0.5, 4, 4, True), (12, 12, 1, False)],
)
def test_chunks_equal_the_whole(in_chunks, positions, length, count, bias):
    """Chunks that divide T and that do not (padded), too little memory for one position, and one chunk."""
    example_ = example(bias=bias, length=length)
    expected = outcome(whole, *example_)
    in_chunks(positions)
    assert losses.chunk_count(B, length, V) == count
    found = outcome(chunked, *example_)
    assert_close(found[0], expected[0], 1e-6)
    assert_close(found[1], expected[1], 1e-5)
    nats = losses.token_nats(example_[0].logits(), example_[1])
    assert_close(losses.chunked_nats(*example_[:2]), nats, 1e-6)
    undifferentiated = chunked(*example_)
    assert_close(undifferentiated, expected[0], 1e-6)


def test_against_numpy_in_float64():
    head, targets, weights = example()
    logits = np.asarray(head.x_BTD, np.float64) @ np.asarray(head.kernel_DV, np.float64) + np.asarray(head.bias_V)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    nats = -np.log(np.take_along_axis(p, np.asarray(targets)[..., None], -1))[..., 0]
    (total, weight), (by_head, by_weights) = outcome(chunked, head, targets, weights)
    assert [float(total), float(weight)] == pytest.approx(
        [float((nats * weights).sum()), float(weights.sum())], rel=1e-6
    )
    np.testing.assert_allclose(by_weights, nats, rtol=1e-5)
    slope = (p - np.eye(V)[targets]) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(by_head.bias_V, slope.sum((0, 1)), atol=1e-5)
    np.testing.assert_allclose(by_head.x_BTD, slope @ np.asarray(head.kernel_DV).T, atol=1e-5)


@pytest.mark.parametrize("positions", [4, T])
def test_z_loss_against_numpy_in_float64(in_chunks, positions):
    """Values and gradients, in chunks and at once: the z-loss is in the gradient of the loss, not in its value."""
    in_chunks(positions)
    head, targets, weights = example()
    logits = np.asarray(head.x_BTD, np.float64) @ np.asarray(head.kernel_DV, np.float64) + np.asarray(head.bias_V)
    log_z = np.log(np.exp(logits).sum(-1))
    nats = log_z - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    call = jax.jit(jax.value_and_grad(lambda *x: losses.chunked_sums(*x, 0.1), has_aux=True))
    (total, added), gradient = call(head, targets, weights)
    assert float(added) == pytest.approx(float((0.1 * log_z**2 * weights).sum()), rel=1e-6)
    assert float(total) == pytest.approx(float((nats * weights).sum()), rel=1e-5)
    p = np.exp(logits - log_z[..., None])
    slope = (p * (1 + 0.2 * log_z[..., None]) - np.eye(V)[targets]) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(gradient.bias_V, slope.sum((0, 1)), atol=1e-5)
    apart = jax.grad(lambda head: losses.chunked_sums(head, targets, weights, 0.1)[1])(head)
    assert not any(np.any(x) for x in jax.tree.leaves(apart))


def test_weights_of_zero_give_no_loss_and_no_gradient(in_chunks):
    in_chunks(4)
    head, targets, weights = example()
    (total, weight), (gradient, _) = outcome(chunked, head, targets, weights * 0)
    assert float(total) == float(weight) == 0.0
    assert all(not np.any(x) for x in jax.tree.leaves(gradient))


def test_vmap_of_three(in_chunks):
    many = jax.tree.map(lambda *x: jnp.stack(x), *(example(seed) for seed in range(3)))
    expected = jax.vmap(functools.partial(outcome, whole))(*many)
    in_chunks(4)
    found = jax.vmap(functools.partial(outcome, chunked))(*many)
    assert_close(found[0], expected[0], 1e-6)
    assert_close(found[1], expected[1], 1e-5)


def test_bfloat16_accumulates_in_float32(in_chunks):
    """Logits and the kernel's gradient are sums of bf16 products in float32: with x and kernel that bf16 holds exactly,
    the loss equals that of float32. The gradient of logits is rounded to bf16, 2^-8."""
    head, targets, weights = example()
    head = head.replace(
        **{k: getattr(head, k).astype(jnp.bfloat16).astype(jnp.float32) for k in ("x_BTD", "kernel_DV")}
    )
    expected = outcome(whole, head, targets, weights)
    in_chunks(4)
    found = outcome(chunked, head.replace(x_BTD=head.x_BTD.astype(jnp.bfloat16)), targets, weights)
    assert_close(found[0], expected[0], 1e-6)
    assert found[1][0].kernel_DV.dtype == jnp.float32 and found[1][0].x_BTD.dtype == jnp.bfloat16
    assert_close(found[1][0].kernel_DV, expected[1][0].kernel_DV, 2**-8)
    assert_close(found[1][0].x_BTD.astype(jnp.float32), expected[1][0].x_BTD, 2**-6)


def test_forward_mode_and_second_derivatives(in_chunks):
    example_ = example()
    head, direction = example_[0], example(1)[0]

    def derivatives(function):
        def loss(head):
            return function(head, *example_[1:])[0]

        def slope(head):
            return jax.jvp(loss, (head,), (direction,))[1]

        return slope(head), jax.grad(slope)(head), jax.jvp(jax.grad(loss), (head,), (direction,))[1]

    expected = derivatives(whole)
    in_chunks(4)
    assert_close(derivatives(chunked), expected, 1e-5)


def test_a_loss_of_your_own_needs_one_function(in_chunks, monkeypatch):
    """Chunks derive value and gradient from token_nats: here with a penalty on log Z (arXiv 2204.02311)."""

    def penalised(logits, targets, plain=losses.token_nats):
        return plain(logits, targets) + 1e-2 * jax.nn.logsumexp(logits, axis=-1) ** 2

    plain = outcome(whole, *example())
    monkeypatch.setattr(losses, "token_nats", penalised)
    expected = outcome(whole, *example())
    assert float(expected[0][0]) > 1.01 * float(plain[0][0])
    in_chunks(4)
    found = outcome(chunked, *example())
    assert_close(found[0], expected[0], 1e-6)
    assert_close(found[1], expected[1], 1e-5)


def test_chunk_counts():
    """The docstring's example, a length that nothing divides, and a mesh, which counts each device's share."""
    assert losses.chunk_count(8, 1024, 50304) == 8
    assert losses.chunk_count(8, 1021, 50304) == 7  # padded to 7 x 146
    assert losses.chunk_count(8, 128, 50304) == 1
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        assert losses.chunk_count(8, 1024, 50304) == 1 and losses.chunk_count(64, 1024, 50304) == 8

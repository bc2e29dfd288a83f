"""Matrix products, layer norm and softmax with custom backward passes that are fast on CPUs; values equal plain jnp.

With JAX's own gradient of `x @ w` for x [B, T, D], XLA transposes a large operand for the weight gradient, which on
CPUs takes a third of a small model's step (experiments/benchmarks/train_step.py). Here products are flattened to two
dimensions and the narrower operand is transposed; the optimization barrier keeps XLA from undoing this. The forward
rules call jnp directly, so that remat policies such as "keep matmul outputs" see the products.

... any leading axes, I input width, O output width, B batch, H heads, T query time, S key time, K head dim.
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_vjp
def matmul(x: jax.Array, w_IO: jax.Array) -> jax.Array:
    """x [..., I] times w [I, O] -> [..., O], in x's dtype.

    Example: matmul([[1, 2]], [[1, 0], [1, 1]]) = [[3, 2]].
    """
    return _matmul_forward(x, w_IO)[0]


def _matmul_forward(x, w_IO):
    return jnp.dot(x.reshape(-1, x.shape[-1]), w_IO).reshape(*x.shape[:-1], w_IO.shape[1]), (x, w_IO)


def _matmul_backward(saved, g):
    x, w_IO = saved
    inputs, outputs = w_IO.shape
    x_NI, g_NO = x.reshape(-1, inputs), g.reshape(-1, outputs)
    over_rows = (((0,), (0,)), ((), ()))
    dx = jnp.dot(g_NO, w_IO.T).reshape(x.shape)
    if inputs <= outputs:
        return dx, lax.dot_general(x_NI, g_NO, over_rows)
    return dx, lax.optimization_barrier(lax.dot_general(g_NO, x_NI, over_rows)).T


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def scores(q_BHTK: jax.Array, k_BHSK: jax.Array) -> jax.Array:
    """q k' for each batch row and head: [B, H, T, S] float32, whatever the operands' dtype."""
    return _scores_forward(q_BHTK, k_BHSK)[0]


def _scores_forward(q, k):
    return jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32), (q, k)


def _scores_backward(saved, g_BHTS):
    q, k = saved
    g = g_BHTS.astype(q.dtype)
    dk = lax.optimization_barrier(lax.dot_general(q, g, (((2,), (2,)), ((0, 1), (0, 1)))))
    return jnp.einsum("bhts,bhsk->bhtk", g, k), dk.swapaxes(2, 3)


scores.defvjp(_scores_forward, _scores_backward)


@jax.custom_vjp
def mix(p_BHTS: jax.Array, v_BHSK: jax.Array) -> jax.Array:
    """Attention weights times values for each batch row and head: [B, H, T, K]."""
    return _mix_forward(p_BHTS, v_BHSK)[0]


def _mix_forward(p, v):
    return jnp.einsum("bhts,bhsk->bhtk", p, v), (p, v)


def _mix_backward(saved, g_BHTK):
    p, v = saved
    dv = lax.optimization_barrier(lax.dot_general(g_BHTK, p, (((2,), (2,)), ((0, 1), (0, 1)))))
    return jnp.einsum("bhtk,bhsk->bhts", g_BHTK, v), dv.swapaxes(2, 3)


mix.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def softmax(x: jax.Array) -> jax.Array:
    """Softmax over the last axis; the backward pass needs only the result."""
    return jax.nn.softmax(x, axis=-1)


def _softmax_forward(x):
    p = jax.nn.softmax(x, axis=-1)
    return p, p


def _softmax_backward(p, g):
    return (p * (g - jnp.sum(p * g, axis=-1, keepdims=True)),)


softmax.defvjp(_softmax_forward, _softmax_backward)


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale over the last axis, float32 (arXiv 1607.06450).

    Args:
        x: [..., D] float32.
        scale: [D] float32.
        epsilon: added to the variance.
    """
    return _layer_norm_forward(x, scale, epsilon)[0]


def _layer_norm_forward(x, scale, epsilon):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    rate = lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True) + epsilon)
    scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    return (x - mean) * rate * scale, (x, mean, rate, scale)


def _layer_norm_backward(saved, g):
    x, mean, rate, scale = saved
    h, gs = (x - mean) * rate, g * scale
    inner = jnp.mean(gs * h, axis=-1, keepdims=True)
    dx = (gs - jnp.mean(gs, axis=-1, keepdims=True) - h * inner) * rate
    dscale = jnp.sum(g * h, axis=tuple(range(x.ndim - 1)))
    return dx, dscale, None


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)

"""Matrix products, layer norm and softmax whose gradients are fast on CPUs and precise in bfloat16.

All are differentiable in forward and reverse mode, to any order. A product's gradient is written here for two reasons:

1. For the gradient of the second operand (a weight, keys, values), JAX transposes a large operand, which on CPUs takes
   a third of a small model's step (experiments/benchmarks/train_step.py). There the narrower operand is transposed, and
   an optimization barrier keeps XLA from undoing this. Other platforms get the plain product.
2. A float32 weight in a bfloat16 model has a float32 gradient, accumulated in float32, although both operands of that
   product are bfloat16. JAX's own gradient has the type of the cast weight, so it is rounded before it is summed over
   micro-batches and devices.

... any leading axes, N rows, I input width, O output width, B batch, H heads, T query time, S key time, K head dim.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from lmjax import hardware
from lmjax.losses import time_parts


def matmul(x: jax.Array, w_IO: jax.Array, dtype: jnp.dtype | None = None) -> jax.Array:
    """x [..., I] times w [I, O] -> [..., O].

    Args:
        x: any float dtype, in which the product is computed.
        w_IO: the weight, cast to x's dtype; its gradient has its own dtype and is accumulated in float32.
        dtype: of the result; None: x's.

    Example: matmul([[1, 2]], [[1, 0], [1, 1]]) = [[3, 2]].
    """
    if x.ndim == 3 and time_parts(x.shape[1]) > 1:  # rows and time, both split over devices, have no joint axis
        return _product(x, w_IO, dtype or x.dtype)
    y_NO = _product(x.reshape(-1, x.shape[-1]), w_IO, dtype or x.dtype)
    return y_NO.reshape(*x.shape[:-1], w_IO.shape[1])


def matmuls(x_ENI: jax.Array, w_EIO: jax.Array) -> jax.Array:
    """`matmul` of x[e] and w[e] for each expert e: [E, N, O]."""
    return _product(x_ENI, w_EIO, x_ENI.dtype)


def scores(q_BHTK: jax.Array, k_BHSK: jax.Array) -> jax.Array:
    """q k' for each batch row and head: [B, H, T, S] float32, whatever the operands' dtype."""
    return _product(q_BHTK, k_BHSK, jnp.float32, transposed=True)


def mix(p_BHTS: jax.Array, v_BHSK: jax.Array) -> jax.Array:
    """Attention weights times values for each batch row and head: [B, H, T, K]."""
    return _product(p_BHTS, v_BHSK, p_BHTS.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _product(a, b, dtype, transposed=False):
    """a [..., N, I] times b [..., I, O], or b [..., O, I] if transposed -> [..., N, O]; equal leading axes. N may be
    several axes."""
    return _plain_product(a, b, dtype=dtype, transposed=transposed)


@_product.defjvp
def _product_tangent(dtype, transposed, primals, tangents):
    """The result is a plain dot_general, so that remat policies such as "keep matmul outputs" see it."""
    (a, b), (da, db), options = primals, tangents, {"dtype": jnp.dtype(dtype), "transposed": transposed}
    return _plain_product(a, b, **options), product_p.bind(da, b, **options) + product_p.bind(a, db, **options)


def _dot(a, b, axis, dtype):
    """Contracts the last axis of a with axis -1 or -2 of b; the other axes before b's last two are batch axes."""
    batch = tuple(range(b.ndim - 2))
    contracted = ((a.ndim - 1,), (b.ndim + axis,))
    return lax.dot_general(a, b, (contracted, (batch, batch)), preferred_element_type=dtype)


def _plain_product(a, b, *, dtype, transposed):
    return _dot(a, b.astype(a.dtype), -1 if transposed else -2, dtype)


def _first_gradient(g, a, b, *, dtype, transposed):
    like = a.aval
    return _dot(g.astype(like.dtype), b.astype(like.dtype), -2 if transposed else -1, like.dtype)


def _second_gradient(g, a, b, *, dtype, transposed):
    x, y = (g.astype(a.dtype), a) if transposed else (a, g.astype(a.dtype))
    leading = b.aval.ndim - 2
    batch, rows = tuple(range(leading)), tuple(range(leading, a.ndim - 1))

    def direct(x, y):
        return lax.dot_general(x, y, ((rows, rows), (batch, batch)), preferred_element_type=b.aval.dtype)

    def swapped(x, y):
        return lax.optimization_barrier(direct(y, x)).swapaxes(-1, -2)

    if x.shape[-1] <= y.shape[-1]:
        return direct(x, y)
    return lax.platform_dependent(x, y, cpu=swapped, default=direct)


def _batched(arrays, axes, **options):
    size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
    arrays = [batching.bdim_at_front(x, axis, size) for x, axis in zip(arrays, axes, strict=True)]
    return product_p.bind(*arrays, **options), 0


def _shape(a, b, *, dtype, transposed):
    return jax.core.ShapedArray((*a.shape[:-1], b.shape[-2 if transposed else -1]), dtype)


product_p = Primitive("product")
product_p.def_impl(_plain_product)
product_p.def_abstract_eval(_shape)
mlir.register_lowering(product_p, mlir.lower_fun(_plain_product, multiple_results=False))
batching.primitive_batchers[product_p] = _batched
ad.defbilinear(product_p, _first_gradient, _second_gradient)


@jax.custom_jvp
def softmax(x: jax.Array) -> jax.Array:
    """Softmax over the last axis; the backward pass needs only the result."""
    return jax.nn.softmax(x, axis=-1)


@softmax.defjvp
def _softmax_tangent(primals, tangents):
    p, (dx,) = softmax(*primals), tangents
    return p, p * (dx - jnp.sum(p * dx, axis=-1, keepdims=True))


WIDE = 256  # d_model from which CPUs compute float32 models in another order; narrower ones keep their bits


def on_cpu() -> bool:
    """True while a program for CPUs is traced: by the mesh in context, else by the devices of this machine.

    Starts no backend: a sweep counts parameters in a process that must leave the accelerators to its workers.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return not _accelerators() if device is None else device.platform == "cpu"


_accelerators = functools.cache(hardware.accelerators)


def recomputed(function: Callable) -> Callable:
    """Returns an elementwise function whose backward pass recomputes on CPUs what it needs from the arguments.

    There the parts of activations and layer norms are a quarter of what a layer keeps, and to compute them again takes
    less memory traffic. On other platforms the compiler chooses.
    """
    checkpointed = jax.checkpoint(function)
    return lambda *arguments: (checkpointed if on_cpu() else function)(*arguments)


def layer_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) * scale over the last axis, float32 (arXiv 1607.06450).

    Args:
        x: [..., D] float32.
        scale: [D] float32.
        epsilon: added to the variance.
    """
    return recomputed(lambda x, scale: _layer_norm(x, scale, epsilon))(x, scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _layer_norm(x, scale, epsilon):
    h, _ = _standardised(x, epsilon)
    return h * _last(scale, x)


def _standardised(x, epsilon):
    """Returns (x - mean) / sqrt(variance + epsilon), and the reciprocal of the root."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    rate = lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True) + epsilon)
    return (x - mean) * rate, rate


def _last(scale, x):
    return scale.reshape((1,) * (x.ndim - 1) + scale.shape)


@_layer_norm.defjvp
def _layer_norm_tangent(epsilon, primals, tangents):
    (x, scale), (dx, dscale) = primals, tangents
    h, rate = _standardised(x, epsilon)
    dx = dx * rate
    dh = dx - jnp.mean(dx, axis=-1, keepdims=True) - h * jnp.mean(h * dx, axis=-1, keepdims=True)
    return h * _last(scale, x), dh * _last(scale, x) + h * _last(dscale, x)

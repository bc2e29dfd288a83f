"""Guards against wrong hand-written gradients: they equal JAX's own on the plain forms to 1e-5 (float32 sums), in both
modes; against weight gradients that bfloat16 rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.models import products


def plain_layer_norm(x, scale, epsilon):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale[None, None]


CASES = {
    "matmul wide": (products.matmul, jnp.dot, [(2, 5, 8), (8, 32)]),
    "matmul narrow": (products.matmul, jnp.dot, [(2, 5, 32), (32, 8)]),
    "scores": (products.scores, lambda q, k: jnp.einsum("bhtk,bhsk->bhts", q, k), [(2, 3, 5, 4), (2, 3, 6, 4)]),
    "mix": (products.mix, lambda p, v: jnp.einsum("bhts,bhsk->bhtk", p, v), [(2, 3, 5, 6), (2, 3, 6, 4)]),
    "softmax": (products.softmax, lambda x: jax.nn.softmax(x, -1), [(2, 3, 5, 6)]),
    "layer norm": (
        lambda x, s: products.layer_norm(x, s, 1e-5),
        lambda x, s: plain_layer_norm(x, s, 1e-5),
        [(2, 5, 16), (16,)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
    ours, plain, shapes = CASES[name]
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    weight = jnp.asarray(rng.normal(size=jax.eval_shape(plain, *arrays).shape), jnp.float32)
    outcomes = [
        jax.jit(jax.value_and_grad(lambda args, f=f: jnp.sum(f(*args) * weight)))(arrays) for f in (ours, plain)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), *outcomes)
    np.testing.assert_allclose(ours(*arrays), plain(*arrays), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_and_second_derivatives(name):
    """Forward, forward over reverse, reverse over forward, and forward over forward, also under vmap (jax.hessian)."""
    ours, plain, shapes = CASES[name]
    rng = np.random.default_rng(1)
    arrays, directions = ([jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes] for _ in range(2))

    def derivatives(f):
        def value(*arrays):
            return jnp.sum(jnp.sin(f(*arrays)))

        def slope(*arrays):
            return jax.jvp(value, arrays, tuple(directions))[1]

        mixed = jax.jvp(jax.grad(value), tuple(arrays), tuple(directions))[1]
        twice = jax.jvp(slope, tuple(arrays), tuple(directions))[1]
        many = jax.vmap(lambda d: jax.jvp(value, tuple(arrays), (d, *directions[1:]))[1])
        return slope(*arrays), mixed, jax.grad(slope)(*arrays), twice, many(jnp.stack([directions[0], arrays[0]]))

    found, expected = jax.jit(lambda: [derivatives(f) for f in (ours, plain)])()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), found, expected)


def test_a_float32_weight_of_a_bfloat16_product_has_an_exact_gradient():
    """1000 rows of 1 + 2^-7, which bf16 holds: their sum needs 15 bits, of which JAX's gradient by the cast keeps 8."""
    x, w = jnp.full((1000, 4), 1 + 2**-7, jnp.bfloat16), jnp.ones((4, 5), jnp.float32)

    def gradient(product):
        return jax.grad(lambda w: product(x, w).astype(jnp.float32).sum())(w)

    ours, rounded = gradient(products.matmul), gradient(lambda x, w: x @ w.astype(x.dtype))
    assert ours.dtype == jnp.float32 and (ours == 1000 * (1 + 2**-7)).all() and (rounded == 1008).all()


def test_gradients_keep_the_operands_dtype_and_example():
    x, w = jnp.ones((2, 3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
    dx, dw = jax.grad(lambda x, w: products.matmul(x, w).astype(jnp.float32).sum(), (0, 1))(x, w)
    assert dx.dtype == dw.dtype == jnp.bfloat16
    q = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
    dq = jax.grad(lambda q: products.scores(q, q).sum())(q)
    assert dq.dtype == jnp.bfloat16 and products.scores(q, q).dtype == jnp.float32
    assert products.matmul(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0], [1.0, 1.0]])).tolist() == [[3.0, 2.0]]

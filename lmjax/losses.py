"""The loss that all objectives share: weighted cross-entropy in float32, as a sum and a weight to divide it by.

`token_nats` is the loss of one position; every other function, training and validation derive from it, gradients too.
The loss of a large vocabulary is computed in chunks of time, so that no [B, T, V] array exists.

B batch, T time, D model, V vocabulary, C chunks, c positions of a chunk.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

CHUNK_BYTES = 256 * 2**20  # largest float32 logits that are computed at once, per device


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sum_i w_i (logsumexp(logits_i) - logits_i[target_i]) and sum_i w_i.

    Args:
        logits_BTV: any float dtype; computed in float32.
        targets_BT: int32 ids.
        weights_BT: float32, 0 for positions that are not predicted.

    Returns:
        (sum of weighted losses in nats, sum of weights), float32 scalars. Divide only after summing both over
        micro-batches and devices.

    Example: uniform logits over V = 4 give -ln(1/4) = 1.3863 nats per predicted token
        >>> cross_entropy(jnp.zeros((1, 3, 4)), jnp.zeros((1, 3), int), jnp.array([[1.0, 1.0, 0.0]]))
        (2.7726, 2.0)
    """
    return _sums(logits_BTV, targets_BT, weights_BT, 0.0)[0], jnp.sum(weights_BT)


def _sums(logits_BTV, targets_BT, weights_BT, z_loss):
    """Returns (sum of weighted losses in nats with the z-loss, the z-loss in it)."""
    total = jnp.sum(token_nats(logits_BTV, targets_BT) * weights_BT)
    if not z_loss:
        return total, jnp.zeros(())
    log_z_BT = jax.nn.logsumexp(logits_BTV.astype(jnp.float32), axis=-1)
    added = z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT)
    return total + added, jax.lax.stop_gradient(added)


def token_nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns -log p(target) per position, [B, T] float32 nats."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A comparison, not an index: the gradient of an index is a scatter into zeros [B, T, V].
    hit_BTV = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    return log_z_BT - jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)


def chunked_cross_entropy(
    head: Any, targets_BT: jax.Array, weights_BT: jax.Array, slots: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Returns `cross_entropy(head.logits(), ...)`; logits above CHUNK_BYTES are computed in chunks of time.

    The gradient is computed chunk by chunk together with the loss, so logits are computed once and never stored.

    Args:
        head: a `lmjax.models.layers.Head`: x_BTD, and kernel and bias, from which `head.logits()` computes [B, T, V].
        targets_BT, weights_BT: as in `cross_entropy`.
        slots: number of runs whose losses jax.vmap computes together; CHUNK_BYTES holds for all of them.
    """
    return chunked_sums(head, targets_BT, weights_BT, 0.0, slots)[0], jnp.sum(weights_BT)


def chunked_sums(
    head: Any, targets_BT: jax.Array, weights_BT: jax.Array, z_loss: float, slots: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of `chunked_cross_entropy` with a z-loss, and the z-loss in it, which has no gradient of its own.

    The z-loss is z_loss sum_i w_i log(Z_i)^2 with Z = sum(exp(logits)): it keeps log Z near 0, and so logits from
    drifting (PaLM, arXiv 2204.02311, with 1e-4). Divide by the sum of weights, as the cross-entropy.

    Example: uniform logits of 0 over V = 4 have log Z = ln 4, so a z-loss of 0.1 x 1.3863^2 = 0.1922 per token
    """
    B, T = targets_BT.shape
    chunks = chunk_count(slots * B, T, head.kernel_DV.shape[1])
    if chunks == 1:
        return _sums(head.logits(), targets_BT, weights_BT, z_loss)
    arrays = (_split(array, chunks) for array in (head.x_BTD, weights_BT, targets_BT))
    return _sum_of_chunks(z_loss, head.replace(x_BTD=None), *arrays)


def chunked_nats(head: Any, targets_BT: jax.Array) -> jax.Array:
    """Returns `token_nats(head.logits(), targets_BT)`, [B, T], in chunks of time as in `chunked_cross_entropy`."""
    B, T = targets_BT.shape
    chunks = chunk_count(B, T, head.kernel_DV.shape[1])
    if chunks == 1:
        return token_nats(head.logits(), targets_BT)
    arrays = _split(head.x_BTD, chunks), _split(targets_BT, chunks)
    nats_CBc = jax.lax.map(lambda chunk: token_nats(head.replace(x_BTD=chunk[0]).logits(), chunk[1]), arrays)
    return jnp.moveaxis(nats_CBc, 0, 1).reshape(B, -1)[:, :T]


def chunk_count(B: int, T: int, V: int) -> int:
    """Returns into how many chunks of time the loss of [B, T, V] logits is divided: the fewest of at most CHUNK_BYTES
    per device that divide T, or if that takes twice as many, the fewest, with T padded.

    Example: 8 rows of 1024 tokens, V = 50304, one device: 1.5 GiB in 8 chunks of 128 positions.
    """
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    fewest = min(T, -(-4 * B * T * V // (CHUNK_BYTES * devices)))
    return next((n for n in range(fewest, 2 * fewest) if T % n == 0), fewest)


def _split(x_BT, chunks):
    """[B, T, ...] -> [C, B, c, ...], with zeros (and so weight 0) past the end of T."""
    B, T, *rest = x_BT.shape
    size = -(-T // chunks)
    padded = jnp.pad(x_BT, [(0, 0), (0, chunks * size - T)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(padded.reshape(B, chunks, size, *rest), 1, 0)


def _chunk_sum(head, x_BcD, weights_Bc, targets_Bc, z_loss):
    return _sums(head.replace(x_BTD=x_BcD).logits(), targets_Bc, weights_Bc, z_loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_of_chunks(z_loss, head, x_CBcD, weights_CBc, targets_CBc):
    def add(sums, chunk):
        return jax.tree.map(jnp.add, sums, _chunk_sum(head, *chunk, z_loss)), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), (x_CBcD, weights_CBc, targets_CBc))[0]


@_sum_of_chunks.defjvp
def _sum_of_chunks_tangent(z_loss, primals, tangents):
    """The scan computes value and gradients; the tangent is their inner product, so its transpose only scales them."""
    head, *chunks = primals

    def add(carry, chunk):
        gradient = jax.value_and_grad(_chunk_sum, (0, 1, 2), has_aux=True)
        sums, (by_head, *by_chunk) = gradient(head, *chunk, z_loss)
        return jax.tree.map(jnp.add, carry, (sums, by_head)), by_chunk

    zeros = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, head)
    (sums, by_head), (by_x, by_weights) = jax.lax.scan(add, zeros, tuple(chunks))
    products = jax.tree.map(
        lambda g, d: jnp.sum(g.astype(jnp.float32) * d), (by_head, by_x, by_weights), tuple(tangents[:3])
    )
    return sums, (sum(jax.tree.leaves(products)), jnp.zeros(()))

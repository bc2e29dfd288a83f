"""The loss that all objectives share: weighted cross-entropy in float32, as a sum and a weight to divide it by.

B batch, T time, V vocabulary.
"""

import jax
import jax.numpy as jnp


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
    nats_BT = token_nats(logits_BTV, targets_BT)
    return jnp.sum(nats_BT * weights_BT), jnp.sum(weights_BT)


def token_nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns -log p(target) per position, [B, T] float32 nats."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    return log_z_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]

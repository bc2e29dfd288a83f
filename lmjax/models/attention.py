"""Multi-head attention with grouped key/value heads and an optional key/value cache; position schemes that act in it.

B batch, T query time, S key time, H query heads, G key/value heads, K head dim, D model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.models import products
from lmjax.models.layers import EMBEDDING_STD, Dense, residual_scale


def attend(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, bias: jax.Array | None) -> jax.Array:
    """softmax(q k' / sqrt(K) + bias) v, softmax in float32; query head h uses key/value head h // (H / G).

    Args:
        q_BTHK, k_BSGK, v_BSGK: any float dtype.
        bias: float32, broadcastable to [B, H, T, S], or None.

    Returns:
        [B, T, H, K] in q's dtype.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BSGK.shape[2]
    # The R = H / G query heads of a group lie one after the other in time: [B, G, R T, K].
    q = (q_BTHK * K**-0.5).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, K)
    k, v = (x.transpose(0, 2, 1, 3) for x in (k_BSGK, v_BSGK))
    scores_BHTS = products.scores(q, k).reshape(B, H, T, -1)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    weights = products.softmax(scores_BHTS).astype(v.dtype)
    out = products.mix(weights.reshape(B, G, H // G * T, -1), v)
    return out.reshape(B, H, T, K).transpose(0, 2, 1, 3)


def rotate(x_BTHK: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Rotary positions (arXiv 2104.09864): the pair (i, i + K/2) is turned by position x base^(-2i/K).

    Example: at position 0 nothing is turned; scores depend on differences of positions only.
    """
    half = x_BTHK.shape[-1] // 2
    angle = positions_BT[..., None].astype(jnp.float32) * base ** -(jnp.arange(half)[None, None] / half)
    sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
    a, b = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTHK.dtype)


def relative_bucket(distance_TS: jax.Array, bidirectional: bool, buckets: int, max_distance: int) -> jax.Array:
    """Bucket of key position - query position (T5, arXiv 1910.10683): exact when near, logarithmic when far.

    Example: bidirectional, 32 buckets, max_distance 128: distance 0 -> 0, -1 -> 1, +1 -> 17, -200 -> 15.
    """
    bucket = jnp.zeros_like(distance_TS)
    if bidirectional:
        buckets //= 2
        bucket = jnp.where(distance_TS > 0, buckets, 0)
        distance = jnp.abs(distance_TS)
    else:
        distance = jnp.maximum(-distance_TS, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / jnp.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return bucket + jnp.where(distance < exact, distance, far)


def alibi_slopes(num_heads: int) -> list[float]:
    """Returns the slopes of ALiBi (arXiv 2108.12409): 2^(-8h/H) for H a power of two, interleaved otherwise.

    Example: 4 heads -> [1/4, 1/16, 1/64, 1/256].
    """
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes + [2 ** (-8 * (h + 0.5) / power) for h in range(num_heads - power)]


class PositionBias(nn.Module):
    """The additive bias of relative and alibi positions, shared by all layers of a stack: [1, H, T, S] float32
    or None."""

    config: FrozenConfigDict
    bidirectional: bool

    @nn.compact
    def __call__(self, query_positions_T: jax.Array, key_positions_S: jax.Array) -> jax.Array | None:
        config = self.config
        distance_TS = key_positions_S[None, :] - query_positions_T[:, None]
        if config.position == "relative":
            init = nn.with_logical_partitioning(nn.initializers.normal(EMBEDDING_STD), ("buckets", "heads"))
            table_RH = self.param("relative_bias", init, (config.relative_buckets, config.num_heads))
            bucket_TS = relative_bucket(
                distance_TS, self.bidirectional, config.relative_buckets, config.relative_max_distance
            )
            return jnp.transpose(table_RH[bucket_TS], (2, 0, 1))[None]
        if config.position == "alibi":
            slopes_H = jnp.asarray(alibi_slopes(config.num_heads), jnp.float32)
            return -slopes_H[None, :, None, None] * jnp.abs(distance_TS).astype(jnp.float32)[None, None]
        return None


class Attention(nn.Module):
    """Self- or cross-attention.

    With cache_len > 0 a self-attention keeps keys and values of earlier calls in the "cache" collection and attends
    to them; the caller's bias then covers all cache_len key positions.
    """

    config: FrozenConfigDict
    num_layers: int
    cache_len: int = 0
    cross: bool = False

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, source_BSD: jax.Array, positions_BT: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
        config = self.config
        B, T, _ = x_BTD.shape
        H, G, K = config.num_heads, config.num_kv_heads, config.head_dim
        q = Dense(config, H * K, ("embed", "heads"), name="query")(x_BTD).reshape(B, T, H, K)
        k = Dense(config, G * K, ("embed", "heads"), name="key")(source_BSD).reshape(B, -1, G, K)
        v = Dense(config, G * K, ("embed", "heads"), name="value")(source_BSD).reshape(B, -1, G, K)
        if config.position == "rotary" and not self.cross:
            q, k = (rotate(x, positions_BT, config.rotary_base) for x in (q, k))
        if self.cache_len and not self.cross:
            k, v = self._append(k, v)
        out = attend(q, k, v, bias).reshape(B, T, H * K)
        scale = residual_scale(self.num_layers)
        return Dense(config, config.d_model, ("heads", "embed"), scale, name="out")(out)

    def _append(self, k_BTGK: jax.Array, v_BTGK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Writes the new keys and values behind the cached ones; returns all cache_len of them."""
        B, T, G, K = k_BTGK.shape
        shape = (B, self.cache_len, G, K)
        index = self.variable("cache", "index", lambda: jnp.zeros((), jnp.int32))
        cached = []
        for name, new in (("key", k_BTGK), ("value", v_BTGK)):
            store = self.variable("cache", f"cached_{name}", jnp.zeros, shape, new.dtype)
            store.value = jax.lax.dynamic_update_slice(store.value, new, (0, index.value, 0, 0))
            cached.append(store.value)
        index.value = index.value + T
        return cached[0], cached[1]

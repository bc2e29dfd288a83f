"""Multi-head attention with grouped key/value heads, an optional key/value cache and positional encodings.

B batch, T query time, S key time, H query heads, G key/value heads, K head dim, D model.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from lmjax.losses import time_parts
from lmjax.masks import Sees
from lmjax.models import kernels, products
from lmjax.models.layers import EMBEDDING_STD, Dense, Norm, capped, declared, placed, residual_scale

PAST_BLOCK = 128  # queries, see `attend`


def attend(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    v_BGSK: jax.Array,
    bias: jax.Array | None,
    scale: float | None = None,
    softcap: float | None = None,
    past: bool = False,
) -> jax.Array:
    """softmax(scale q k' + bias) v, softmax in float32; query head h uses key/value head h // (H / G).

    With `past`, on CPUs, blocks of PAST_BLOCK queries leave out the keys after them, whose weights are 0.

    Args:
        q_BTHK, k_BGSK, v_BGSK: any float dtype; keys and values have heads before time, as the cache keeps them.
        bias: float32, broadcastable to [B, H, T, S], or None.
        scale: None: 1 / sqrt(K).
        softcap: cap of the scores before the bias is added, see `layers.capped`; None: no cap.
        past: of `Sees`.

    Returns:
        [B, T, H, K] in q's dtype.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BGSK.shape[1]
    if past and T > PAST_BLOCK and T % PAST_BLOCK == 0 and products.on_cpu():
        blocks = []
        for start in range(0, T, PAST_BLOCK):
            end = start + PAST_BLOCK
            part = None if bias is None else bias[..., start:end, :end]
            blocks.append(attend(q_BTHK[:, start:end], k_BGSK[:, :, :end], v_BGSK[:, :, :end], part, scale, softcap))
        return jnp.concatenate(blocks, axis=1)
    weights = attention_weights(q_BTHK, k_BGSK, bias, scale, softcap).astype(v_BGSK.dtype)
    out = products.mix(weights.reshape(B, G, H // G * T, -1), v_BGSK)
    return out.reshape(B, H, T, K).transpose(0, 2, 1, 3)


def attention_weights(
    q_BTHK: jax.Array,
    k_BGSK: jax.Array,
    bias: jax.Array | None,
    scale: float | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """softmax(scale q k' + bias), float32 [B, H, T, S]; arguments as in `attend`.

    Example: a query of zeros sees S keys without a bias: 1 / S each.
    """
    B, T, H, K = q_BTHK.shape
    G = k_BGSK.shape[1]
    # The R = H / G query heads of a group lie one after the other in time: [B, G, R T, K].
    q = (q_BTHK * (scale or K**-0.5)).reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(B, G, H // G * T, K)
    scores_BHTS = capped(products.scores(q, k_BGSK).reshape(B, H, T, -1), softcap)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    return products.softmax(scores_BHTS)


def rotate(x_BTHK: jax.Array, positions_BT: jax.Array, frequencies: np.ndarray, magnitude: float = 1.0) -> jax.Array:
    """Rotary positions (arXiv 2104.09864): the pair (i, i + R/2) is rotated by position x frequency i.

    Args:
        x_BTHK: queries or keys.
        positions_BT: int32.
        frequencies: [R/2] radians per token; the first R of the K entries are rotated, the others kept.
        magnitude: factor on the rotated entries, `rotary_magnitude`.

    Example: position 0 leaves x unchanged; scores depend only on position differences.
    """
    half = len(frequencies)
    angle = positions_BT[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None]
    sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
    if magnitude != 1:
        sin, cos = sin * magnitude, cos * magnitude
    x = x_BTHK.astype(jnp.float32)
    a, b = x[..., :half], x[..., half : 2 * half]
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], axis=-1)
    return turned.astype(x_BTHK.dtype)


def rotary_frequencies(config: FrozenConfigDict) -> np.ndarray:
    """Returns [R/2] float64 radians per token: rotary_base^(-2i/R), scaled as config.rotary_scaling says.

    "linear" divides all frequencies by rotary_factor (arXiv 2306.15595). "llama3" divides those with wavelengths above
    rotary_original_len / rotary_low_frequency, keeps those below rotary_original_len / rotary_high_frequency, and
    interpolates between them, linearly in the number of turns per original context (Llama 3.1). "yarn" does so linearly
    in i, between the whole numbers outside of the limits (YaRN, arXiv 2309.00071, as in the code of its authors).

    Example: base 10000, R = 4, no scaling: [1, 0.01].
    """
    half = int(config.head_dim * config.rotary_fraction) // 2
    frequency = float(config.rotary_base) ** -(np.arange(half) / half)
    if config.rotary_scaling == "none":
        return frequency
    if config.rotary_scaling == "linear":
        return frequency / config.rotary_factor
    low, high = config.rotary_low_frequency, config.rotary_high_frequency
    if config.rotary_scaling == "yarn":
        per_turns = half / np.log(config.rotary_base)  # the pair i that makes n turns is this x log(length / (2 pi n))
        pairs = [per_turns * np.log(config.rotary_original_len / (2 * np.pi * turns)) for turns in (high, low)]
        first, last = max(np.floor(pairs[0]), 0), min(np.ceil(pairs[1]), 2 * half - 1)
        kept = 1 - np.clip((np.arange(half) - first) / max(last - first, 0.001), 0.0, 1.0)
    else:
        turns = config.rotary_original_len * frequency / (2 * np.pi)
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (kept + (1 - kept) / config.rotary_factor)


def rotary_magnitude(config: FrozenConfigDict) -> float:
    """Returns YaRN's factor on rotated queries and keys, 0.1 ln(rotary_factor) + 1, which sharpens attention; else 1.

    Example: "yarn" with rotary_factor 4: 1.1386
    """
    return 0.1 * math.log(config.rotary_factor) + 1.0 if config.rotary_scaling == "yarn" else 1.0


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


def along_diagonals(x_HL: jax.Array, queries: int) -> jax.Array:
    """Returns [H, T, S] with entry (t, s) = x[h, s - t + T - 1], where L = T + S - 1: one value per distance.

    A copy, a reshape and a slice, so that its gradient is a sum, not a scatter as that of an indexed lookup.

    Example: T = 2 queries: along_diagonals([[1, 2, 3]], 2) = [[[2, 3], [1, 2]]]
    """
    H, L = x_HL.shape
    # Row t of the copies, laid out with L entries a row instead of L + 1, is shifted right by t.
    copies = jnp.tile(jnp.pad(x_HL, ((0, 0), (0, 1))), (1, queries))
    return copies[:, : queries * L].reshape(H, queries, L)[:, :, queries - 1 :]


class PositionBias(nn.Module):
    """Additive bias of relative and alibi positions, shared by the layers of a stack: [B or 1, H, T, S] or None."""

    config: FrozenConfigDict
    bidirectional: bool

    @nn.compact
    def __call__(self, sees: Sees) -> jax.Array | None:
        """Returns the bias between T queries and S keys; B is 1 unless queries have their own positions (a cache)."""
        config = self.config
        keys_S = jnp.arange(sees.keys)
        if config.position == "relative":
            init = declared(nn.initializers.normal(EMBEDDING_STD), ("buckets", "heads"), EMBEDDING_STD)
            table_RH = self.param("relative_bias", init, (config.relative_buckets, config.num_heads))
            options = self.bidirectional, config.relative_buckets, config.relative_max_distance
            if sees.positions is not None:
                bucket_BTS = relative_bucket(keys_S[None, None, :] - sees.positions[:, :, None], *options)
                return jnp.transpose(table_RH[bucket_BTS], (0, 3, 1, 2))
            bucket_L = relative_bucket(jnp.arange(1 - sees.queries, sees.keys), *options)
            chosen_RL = jax.nn.one_hot(bucket_L, config.relative_buckets, axis=0)
            bias_HL = jnp.sum(table_RH.T[:, :, None] * chosen_RL[None], axis=1)  # exact, and its gradient is a sum
            return along_diagonals(bias_HL, sees.queries)[None]
        if config.position == "alibi":
            queries_BT = jnp.arange(sees.queries)[None] if sees.positions is None else sees.positions
            distance_BTS = keys_S[None, None, :] - queries_BT[:, :, None]
            slopes_H = jnp.asarray(alibi_slopes(config.num_heads), jnp.float32)
            return -slopes_H[None, :, None, None] * jnp.abs(distance_BTS).astype(jnp.float32)[:, None]
        return None


class Attention(nn.Module):
    """Self- or cross-attention.

    With cache_len > 0, the "cache" collection holds keys and values. Self-attention writes those of each token to the
    slot of its position and attends to all cache_len slots; `sees` must leave out unused ones. Cross-attention
    computes those of the source in the first call and reads them in later calls.
    """

    config: FrozenConfigDict
    num_layers: int
    cache_len: int = 0
    cross: bool = False

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        source_BSD: jax.Array,
        positions_BT: jax.Array,
        sees: Sees,
        is_wide: jax.Array | bool = False,
    ) -> jax.Array:
        """Args: is_wide, whether this layer sees what `sees.wide` says. Returns: [B, T, D]."""
        config = self.config
        B, T, _ = x_BTD.shape
        H, G, K = config.num_heads, config.num_kv_heads, config.head_dim

        def dense(name, x_BSD, heads, scale=1.0):
            """In decoding, where parameters stay and rows move, rows move after the product."""
            x = Dense(config, heads * K, ("embed", "heads"), scale, name=name)(x_BSD)
            return placed(x, "heads").reshape(B, -1, heads, K)

        def project(name, positions_BS=None):
            x_BSGK = dense(name, source_BSD, G)
            if config.qk_norm and name == "key":
                x_BSGK = Norm(config, "head", name="key_norm")(x_BSGK)
            if positions_BS is not None:
                positions_BS = positions_BS[:, : x_BSGK.shape[1]]
                x_BSGK = rotate(x_BSGK, positions_BS, rotary_frequencies(config), rotary_magnitude(config))
            return x_BSGK.transpose(0, 2, 1, 3)

        rotated_BT = positions_BT if config.position == "rotary" and not self.cross else None
        # For any attention scale, initial scores have the variance that 1 / sqrt(K) gives (as in T5).
        multiplier, variance = config.attention_multiplier or 1.0, 1.0
        if config.attention_scale:  # with a multiplier, of the variance at the base width
            variance = 1.0 / (K * config.attention_scale**2 * multiplier)
        q = dense("query", x_BTD, H, variance)
        if config.qk_norm:
            q = Norm(config, "head", name="query_norm")(q)
        if self.cross and self.cache_len:
            k = self.variable("cache", "source_key", project, "key").value
            v = self.variable("cache", "source_value", project, "value").value
        else:
            k, v = project("key", rotated_BT), project("value")
        if rotated_BT is not None:
            q = rotate(q, rotated_BT, rotary_frequencies(config), rotary_magnitude(config))
        if self.cache_len and not self.cross:
            k, v = self._store(k, "cached_key", positions_BT), self._store(v, "cached_value", positions_BT)
        factor = (config.attention_scale or K**-0.5) * multiplier

        def attention(sees):
            if sees.kernel == "plain":
                sees = sees.as_bias()
                past = sees.past and config.d_model >= products.WIDE and time_parts(T) == 1
                plain = functools.partial(attend, scale=factor, softcap=config.attention_softcap, past=past)
                return kernels.on_context(plain, q, k, v, sees.bias)
            kernel = kernels.KERNELS[sees.kernel]
            if config.attention_softcap:
                kernel = functools.partial(kernel, softcap=config.attention_softcap)
            return kernels.on_shards(kernel, q, k, v, sees, factor)

        narrow, wide = dataclasses.replace(sees, wide=None), sees.wide

        def biased():
            """What this layer sees, as a bias [B or 1, H or 1, T, S]."""
            bias = narrow.as_bias().bias
            if wide is None:
                return bias
            far = wide.as_bias().bias
            return jnp.where(is_wide, 0.0 if far is None else far, bias)

        if self.is_mutable_collection("attention") and not self.is_initializing():  # for lmjax.evals.attention
            self.sow("attention", "weights", attention_weights(q, k, biased(), factor, config.attention_softcap))
        if wide is None:
            out = attention(narrow)
        elif narrow.kernel == wide.kernel == "plain":
            bias = biased()
            out = attention(Sees("full", sees.queries, sees.keys, bias=bias))
        else:
            out = jax.lax.cond(is_wide, lambda: attention(wide), lambda: attention(narrow))
        out = out.reshape(B, T, H * K)
        scale = residual_scale(config, self.num_layers)
        return Dense(config, config.d_model, ("heads", "embed"), scale, name="out")(out)

    def _store(self, x_BGTK: jax.Array, name: str, positions_BT: jax.Array) -> jax.Array:
        """Writes T consecutive slots of each row, starting at its first position; returns all slots [B, G, C, K]."""
        B, G, _, K = x_BGTK.shape
        cache = self.variable("cache", name, jnp.zeros, (B, G, self.cache_len, K), x_BGTK.dtype)
        write = jax.vmap(lambda slots, new, start: jax.lax.dynamic_update_slice(slots, new, (0, start, 0)))
        cache.value = write(cache.value, x_BGTK, positions_BT[:, 0])
        return cache.value

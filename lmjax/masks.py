"""What each query sees, and the attention masks made from it on the device. True: may attend.

B batch, H heads, T query time, S key time. Segment id 0 is padding: it neither attends nor is attended to.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Sees:
    """What the queries of an attention layer see. No [T, S] array exists until an attention kernel needs one.

    Attributes:
        kind: "full", or "causal": only keys up to the query's own position and those in `prefix`.
        queries, keys: T and S.
        query_segments: [B, T] int32; a query sees the keys of its segment only. None: one unpadded segment a row.
        key_segments: [B, S] int32, likewise.
        prefix: [B, S] bool, or None: keys that every query of their segment sees, also when kind is "causal".
        bias: [1 or B, H, T, S] float32, added to the scores, or None.
        positions: [B, T] int32 of the queries, where keys are the slots of a key/value cache; else None.
        kernel: the attention kernel that computes it, from `lmjax.models.kernels.choose`.
        window: a query sees only keys that are less than so many steps away, itself included; None: no limit.
        wide: what is seen in the layers that have no window, where only some have one; else None.
        past: the bias hides every key after its query, and query t has the position of key t.
    """

    kind: str = struct.field(pytree_node=False)
    queries: int = struct.field(pytree_node=False)
    keys: int = struct.field(pytree_node=False)
    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    prefix: jax.Array | None = None
    bias: jax.Array | None = None
    positions: jax.Array | None = None
    kernel: str = struct.field(pytree_node=False, default="plain")
    window: int | None = struct.field(pytree_node=False, default=None)
    wide: "Sees | None" = None
    past: bool = struct.field(pytree_node=False, default=False)

    @property
    def masked(self) -> bool:
        """True if what is seen depends on more than time: on segments, a prefix or the slots of a cache."""
        return any(x is not None for x in (self.query_segments, self.prefix, self.positions))

    def mask(self) -> jax.Array | None:
        """Returns a bool mask broadcastable to [B, 1, T, S], or None where every query sees every key."""
        mask = self._mask()
        if self.window is None:
            return mask
        queries_BT = jnp.arange(self.queries)[None] if self.positions is None else self.positions
        near = jnp.abs(queries_BT[:, None, :, None] - jnp.arange(self.keys)[None, None, None]) < self.window
        return near if mask is None else mask & near

    def _mask(self):
        if self.kind == "full":
            return segment_mask(self.query_segments, self.key_segments)
        if self.positions is not None:
            return cached_mask(self.positions, self.keys, self.prefix)
        attention = "causal" if self.prefix is None else "prefix"
        return self_attention_mask(attention, self.keys, self.query_segments, self.prefix)

    def as_bias(self) -> "Sees":
        """Returns the same view with all that is not seen as large negative numbers in the bias."""
        wide = self.wide and self.wide.as_bias()
        past = self.past or (self.kind == "causal" and self.prefix is None and self.positions is None)
        both = bias(self.mask(), self.bias)
        return Sees("full", self.queries, self.keys, bias=both, wide=wide, past=past and self.queries == self.keys)


def self_attention_mask(
    attention: str, length: int, segment_ids_BT: jax.Array | None = None, prefix_BT: jax.Array | None = None
) -> jax.Array:
    """Returns a bool mask broadcastable to [B, 1, T, T].

    Args:
        attention: causal | prefix. A query sees its past and itself, and with "prefix" every key that is in the prefix
            of the same segment.
        length: T.
        segment_ids_BT: int32, or None for one unpadded segment a row.
        prefix_BT: bool, for "prefix".

    Example: self_attention_mask("causal", 3)[0, 0] = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    steps = jnp.arange(length)
    mask = (steps[:, None] >= steps[None, :])[None, None]
    if attention == "prefix" and prefix_BT is not None:
        mask = mask | prefix_BT.astype(bool)[:, None, None, :]
    segments = segment_mask(segment_ids_BT, segment_ids_BT)
    return mask if segments is None else mask & segments


def cached_mask(positions_BT: jax.Array, slots: int, prefix_BS: jax.Array | None = None) -> jax.Array:
    """Returns [B, 1, T, S] over the slots of a key/value cache: those up to the query's position, and the prefix.

    Args:
        positions_BT: int32, of the queries; the slot of a key is its position.
        slots: S.
        prefix_BS: bool, slots that every query sees, or None.
    """
    mask = (positions_BT[:, :, None] >= jnp.arange(slots)[None, None, :])[:, None]
    return mask if prefix_BS is None else mask | prefix_BS.astype(bool)[:, None, None, :]


def segment_mask(query_segments_BT: jax.Array | None, key_segments_BS: jax.Array | None) -> jax.Array | None:
    """Returns [B, 1, T, S]: same segment and not padding; None where both are None."""
    if query_segments_BT is None or key_segments_BS is None:
        return None
    same = query_segments_BT[:, :, None] == key_segments_BS[:, None, :]
    return (same & (key_segments_BS[:, None, :] > 0))[:, None]


def bias(mask: jax.Array | None, position_bias: jax.Array | None = None) -> jax.Array | None:
    """Returns the float32 bias on attention scores: a large finite negative number where the mask is False, plus the
    position bias; None where both are None.

    Finite, so that a row with nothing to attend to (padding) gives uniform weights and finite gradients, not NaN.
    """
    if mask is None:
        return position_bias
    additive = jnp.where(mask, 0.0, -1e9).astype(jnp.float32)
    return additive if position_bias is None else additive + position_bias

"""Decoder-only Transformer (GPT): batch -> logits. Causal, or prefix attention if the batch has a `prefix`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax import masks
from lmjax.models.attention import PositionBias
from lmjax.models.layers import Embedding
from lmjax.models.stack import Stack


class Decoder(nn.Module):
    """Next-token logits.

    Attributes:
        config: the resolved model section.
        cache_len: slots of the key/value cache for stepwise decoding; 0 for training. Slot index = position: each
            call takes the next tokens of every row with consecutive `positions` and attends to the slots up to them
            (and to those of `prefix` [B, cache_len]) in the "cache" collection.
    """

    config: FrozenConfigDict
    cache_len: int = 0

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, prefix, token_types, logits_at.

        Returns: logits [B, T, V]; with logits_at [B], only at that position of each row, [B, 1, V].
        """
        config = self.config
        tokens_BT = batch["inputs"]
        T = tokens_BT.shape[1]
        positions_BT = batch.get("positions")
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(T), tokens_BT.shape)
        if self.cache_len:
            queries_BT, keys_S = positions_BT, jnp.arange(self.cache_len)
            mask = masks.cached_mask(positions_BT, self.cache_len, batch.get("prefix"))
        else:
            keys_S = jnp.arange(T)
            queries_BT = keys_S[None]
            attention = "prefix" if "prefix" in batch else "causal"
            mask = masks.self_attention_mask(attention, T, batch.get("segment_ids"), batch.get("prefix"))
        embedding = Embedding(config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        position_bias = PositionBias(config, bidirectional="prefix" in batch, name="position_bias")(queries_BT, keys_S)
        bias = masks.add(masks.additive(mask), position_bias)
        stack = Stack(config, config.num_layers, cache_len=self.cache_len, name="stack")
        x_BTD = stack(x_BTD, positions_BT, bias, deterministic=deterministic)
        return embedding.logits(x_BTD, batch.get("logits_at"))

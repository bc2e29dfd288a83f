"""Encoder-only Transformer (BERT): batch -> logits; every token attends to all tokens of its segment."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax import masks
from lmjax.models.attention import PositionBias
from lmjax.models.layers import Embedding
from lmjax.models.stack import Stack


class EncoderTrunk(nn.Module):
    """Embedded tokens -> contextual vectors [B, T, D]; used alone and as the source side of an encoder-decoder."""

    config: FrozenConfigDict
    num_layers: int

    @nn.compact
    def __call__(self, x_BTD, positions_BT, segment_ids_BT, deterministic):
        steps_T = jnp.arange(x_BTD.shape[1])
        mask = masks.self_attention_mask("bidirectional", x_BTD.shape[1], segment_ids_BT)
        position_bias = PositionBias(self.config, bidirectional=True, name="position_bias")(steps_T[None], steps_T)
        bias = masks.add(masks.additive(mask), position_bias)
        return Stack(self.config, self.num_layers, name="stack")(x_BTD, positions_BT, bias, deterministic=deterministic)


class Encoder(nn.Module):
    """Logits for every position, predicted from both sides."""

    config: FrozenConfigDict

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, token_types, logits_at.

        Returns: logits [B, T, V]; with logits_at [B], only at that position of each row, [B, 1, V].
        """
        tokens_BT = batch["inputs"]
        positions_BT = batch.get("positions")
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
        embedding = Embedding(self.config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        trunk = EncoderTrunk(self.config, self.config.num_layers, name="encoder")
        x_BTD = trunk(x_BTD, positions_BT, batch.get("segment_ids"), deterministic)
        return embedding.logits(x_BTD, batch.get("logits_at"))

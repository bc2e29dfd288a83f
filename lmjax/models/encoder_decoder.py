"""Encoder-decoder Transformer (T5): encoder_inputs are read in full, inputs causally with cross-attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax import masks
from lmjax.models.attention import PositionBias
from lmjax.models.encoder import EncoderTrunk
from lmjax.models.layers import Embedding
from lmjax.models.stack import Stack


class EncoderDecoder(nn.Module):
    """Next-token logits of the target given the source. One embedding table serves both sides."""

    config: FrozenConfigDict

    def setup(self):
        config = self.config
        self.embedding = Embedding(config)
        self.encoder = EncoderTrunk(config, config.encoder_layers)
        self.decoder_position_bias = PositionBias(config, bidirectional=False)
        self.decoder = Stack(config, config.num_layers, cross=True)

    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Args: batch with encoder_inputs [B, S], inputs [B, T]; optional positions and segment ids of both.

        Returns: logits [B, T, V].
        """
        return self.decode(batch, self.encode(batch, deterministic), deterministic)

    def encode(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Returns the source's vectors [B, S, D]."""
        tokens_BS = batch["encoder_inputs"]
        positions_BS = _positions(tokens_BS, batch.get("encoder_positions"))
        x_BSD = self.embedding.embed(tokens_BS, positions_BS, deterministic)
        return self.encoder(x_BSD, positions_BS, batch.get("encoder_segment_ids"), deterministic)

    def decode(self, batch: dict[str, jax.Array], source_BSD: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns logits [B, T, V] of the target side for an encoded source."""
        tokens_BT = batch["inputs"]
        segments_BT = batch.get("segment_ids")
        positions_BT = _positions(tokens_BT, batch.get("positions"))
        steps_T = jnp.arange(tokens_BT.shape[1])
        mask = masks.self_attention_mask("causal", tokens_BT.shape[1], segments_BT)
        bias = masks.add(masks.additive(mask), self.decoder_position_bias(steps_T, steps_T))
        cross_bias = masks.additive(masks.segment_mask(segments_BT, batch.get("encoder_segment_ids")))
        x_BTD = self.embedding.embed(tokens_BT, positions_BT, deterministic)
        x_BTD = self.decoder(x_BTD, positions_BT, bias, source_BSD, cross_bias, deterministic)
        return self.embedding.logits(x_BTD)


def _positions(tokens, positions):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions

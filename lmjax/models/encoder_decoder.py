"""Encoder-decoder Transformer (T5): bidirectional over encoder_inputs; causal over inputs, with cross-attention."""

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
    """Next-token logits of the target given the source. One embedding table serves both sides.

    Attributes:
        config: the resolved model section.
        cache_len: slots of the decoder's key/value cache, as in `Decoder`; 0 for training.
    """

    config: FrozenConfigDict
    cache_len: int = 0

    def setup(self):
        config = self.config
        self.embedding = Embedding(config, sides=("", "encoder_"))
        self.encoder = EncoderTrunk(config, config.encoder_layers)
        self.decoder_position_bias = PositionBias(config, bidirectional=False)
        self.decoder = Stack(config, config.num_layers, cross=True, cache_len=self.cache_len)

    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Args: batch with encoder_inputs [B, S], inputs [B, T]; optional positions and segment ids of both, and
        logits_at [B], the only position of each row whose logits are computed.

        Returns: logits [B, T, V].
        """
        return self.decode(batch, self.encode(batch, deterministic), deterministic)

    def encode(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Returns the encoder output [B, S, D]."""
        tokens_BS = batch["encoder_inputs"]
        positions_BS = _positions(tokens_BS, batch.get("encoder_positions"))
        x_BSD = self.embedding.embed(tokens_BS, positions_BS, deterministic, side="encoder_")
        return self.encoder(x_BSD, positions_BS, batch.get("encoder_segment_ids"), deterministic)

    def decode(self, batch: dict[str, jax.Array], source_BSD: jax.Array, deterministic: bool = True) -> jax.Array:
        """Returns logits [B, T, V] of the target side for an encoded source (ignored if the cache is filled).

        With a cache, each row is one segment, numbered 1 in encoder_segment_ids.
        """
        tokens_BT = batch["inputs"]
        segments_BT = batch.get("segment_ids")
        positions_BT = _positions(tokens_BT, batch.get("positions"))
        if self.cache_len:
            queries_BT, keys_S = positions_BT, jnp.arange(self.cache_len)
            mask, segments_BT = masks.cached_mask(positions_BT, self.cache_len), jnp.ones_like(tokens_BT)
        else:
            keys_S = jnp.arange(tokens_BT.shape[1])
            queries_BT = keys_S[None]
            mask = masks.self_attention_mask("causal", tokens_BT.shape[1], segments_BT)
        bias = masks.add(masks.additive(mask), self.decoder_position_bias(queries_BT, keys_S))
        cross_bias = masks.additive(masks.segment_mask(segments_BT, batch.get("encoder_segment_ids")))
        x_BTD = self.embedding.embed(tokens_BT, positions_BT, deterministic)
        x_BTD = self.decoder(x_BTD, positions_BT, bias, source_BSD, cross_bias, deterministic)
        return self.embedding.logits(x_BTD, batch.get("logits_at"))


def _positions(tokens, positions):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions

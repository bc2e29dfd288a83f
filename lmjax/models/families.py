"""The three families of Transformers (arXiv 1706.03762), each a module batch -> logits.

B batch, T time, S source time (or key time), D model, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax import masks
from lmjax.models.attention import PositionBias
from lmjax.models.layers import Embedding, Head
from lmjax.models.stack import Stack


class Decoder(nn.Module):
    """Next-token logits (GPT). Attention is causal, or prefix attention if the batch has a `prefix`.

    Attributes:
        config: the resolved model section.
        cache_len: slots of the key/value cache for stepwise decoding; 0 for training. Slot index = position: each
            call takes the next tokens of every row with consecutive `positions` and attends to the slots up to them
            (and to those of `prefix` [B, cache_len]) in the "cache" collection.
    """

    config: FrozenConfigDict
    cache_len: int = 0

    @nn.compact
    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | Head:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, prefix, token_types, logits_at.

        Returns: logits [B, T, V]; with logits_at [B], only at that position of each row, [B, 1, V]. If not project, the
        logits' factors, for `lmjax.losses`.
        """
        config, tokens_BT = self.config, batch["inputs"]
        positions_BT = _positions(tokens_BT, batch.get("positions"))
        queries_BT, keys_S = _bias_positions(positions_BT, self.cache_len)
        if self.cache_len:
            mask = masks.cached_mask(positions_BT, self.cache_len, batch.get("prefix"))
        else:
            attention = "prefix" if "prefix" in batch else "causal"
            mask = masks.self_attention_mask(attention, len(keys_S), batch.get("segment_ids"), batch.get("prefix"))
        embedding = Embedding(config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        position_bias = PositionBias(config, bidirectional="prefix" in batch, name="position_bias")(queries_BT, keys_S)
        stack = Stack(config, config.num_layers, cache_len=self.cache_len, name="stack")
        x_BTD = stack(x_BTD, positions_BT, masks.bias(mask, position_bias), deterministic=deterministic)
        return embedding.logits(x_BTD, batch.get("logits_at"), project)


class EncoderTrunk(nn.Module):
    """Embedded tokens -> contextual vectors [B, T, D]; used alone and as the source side of an encoder-decoder."""

    config: FrozenConfigDict
    num_layers: int

    @nn.compact
    def __call__(self, x_BTD, positions_BT, segment_ids_BT, deterministic):
        steps_T = jnp.arange(x_BTD.shape[1])
        mask = masks.self_attention_mask("bidirectional", x_BTD.shape[1], segment_ids_BT)
        position_bias = PositionBias(self.config, bidirectional=True, name="position_bias")(steps_T[None], steps_T)
        bias = masks.bias(mask, position_bias)
        return Stack(self.config, self.num_layers, name="stack")(x_BTD, positions_BT, bias, deterministic=deterministic)


class Encoder(nn.Module):
    """Logits of every position, predicted from both sides (BERT)."""

    config: FrozenConfigDict

    @nn.compact
    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | Head:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, token_types, logits_at.

        Returns: logits as in `Decoder`.
        """
        tokens_BT = batch["inputs"]
        positions_BT = _positions(tokens_BT, batch.get("positions"))
        embedding = Embedding(self.config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        trunk = EncoderTrunk(self.config, self.config.num_layers, name="encoder")
        x_BTD = trunk(x_BTD, positions_BT, batch.get("segment_ids"), deterministic)
        return embedding.logits(x_BTD, batch.get("logits_at"), project)


class EncoderDecoder(nn.Module):
    """Next-token logits of the target given the source (T5). One embedding table serves both sides.

    The encoder is bidirectional over encoder_inputs; the decoder is causal over inputs, with cross-attention.

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

    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | Head:
        """Args: batch with encoder_inputs [B, S], inputs [B, T]; optional positions and segment_ids, each also with the
        prefix encoder_, and logits_at.

        Returns: logits as in `Decoder`.
        """
        return self.decode(batch, self.encode(batch, deterministic), deterministic, project)

    def encode(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Returns the encoder output [B, S, D]."""
        tokens_BS = batch["encoder_inputs"]
        positions_BS = _positions(tokens_BS, batch.get("encoder_positions"))
        x_BSD = self.embedding.embed(tokens_BS, positions_BS, deterministic, side="encoder_")
        return self.encoder(x_BSD, positions_BS, batch.get("encoder_segment_ids"), deterministic)

    def decode(
        self, batch: dict[str, jax.Array], source_BSD: jax.Array, deterministic: bool = True, project: bool = True
    ) -> jax.Array | Head:
        """Returns logits [B, T, V] of the target side for an encoded source (ignored if the cache is filled).

        With a cache, each row is one segment, numbered 1 in encoder_segment_ids.
        """
        tokens_BT, segments_BT = batch["inputs"], batch.get("segment_ids")
        positions_BT = _positions(tokens_BT, batch.get("positions"))
        queries_BT, keys_S = _bias_positions(positions_BT, self.cache_len)
        if self.cache_len:
            mask, segments_BT = masks.cached_mask(positions_BT, self.cache_len), jnp.ones_like(tokens_BT)
        else:
            mask = masks.self_attention_mask("causal", len(keys_S), segments_BT)
        bias = masks.bias(mask, self.decoder_position_bias(queries_BT, keys_S))
        cross_bias = masks.bias(masks.segment_mask(segments_BT, batch.get("encoder_segment_ids")))
        x_BTD = self.embedding.embed(tokens_BT, positions_BT, deterministic)
        x_BTD = self.decoder(x_BTD, positions_BT, bias, source_BSD, cross_bias, deterministic)
        return self.embedding.logits(x_BTD, batch.get("logits_at"), project)


def _positions(tokens_BT, positions_BT):
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape) if positions_BT is None else positions_BT


def _bias_positions(positions_BT, cache_len):
    """Positions of queries and keys for the position bias: those of the cache, else places in the row."""
    steps_T = jnp.arange(positions_BT.shape[1])
    return (positions_BT, jnp.arange(cache_len)) if cache_len else (steps_T[None], steps_T)

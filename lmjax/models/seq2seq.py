"""Recurrent encoder-decoders with attention, for the objectives of encoder-decoders.

The encoder is bidirectional; every layer concatenates the states of its two directions. The attention, with s the
state of the decoder, k a projection of the source's vectors and W, v parameters, has the scores

    bahdanau  v' tanh(W s_(t-1) + k), and the context is an input of step t (arXiv 1409.0473)
    luong     s_t' k, "general" and without input feeding (arXiv 1508.04025)

The logits come from tanh(W [s_t; context]), Luong's equation 5, for both. The decoder begins with a state of zeros, and
Bahdanau's attention belongs to the first layer, Luong's to the last.

B batch, T target time, S source time, D model, E = 2 D width of the encoded source.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError, nearest
from lmjax.models import products
from lmjax.models.layers import Dense, Embedding, Heads, outputs, positions_of
from lmjax.models.recurrent import Layer, kept, step_bytes

ATTENTION = ("bahdanau", "luong")
UNSEEN = -1e9  # score of what a target does not see


class Attention(nn.Module):
    """Source [B, S, E] -> function (states [B, T, D], sees [B, T, S]) -> contexts [B, T, E]."""

    config: FrozenConfigDict
    cached: bool

    @nn.compact
    def __call__(self, source_BSE: jax.Array) -> Callable:
        kind, D = self.config.options.attention, self.config.d_model
        if kind not in ATTENTION:
            raise InputError(
                f"model.options.attention: expected {' | '.join(ATTENTION)}, got {kind!r}{nearest(kind, ATTENTION)}"
            )
        # Plain parameters: muP has no rule for these scores and is refused.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        key_ED = self.param("key", init, (2 * D, D), jnp.float32)
        if self.cached:  # the source is a placeholder if the cache is filled
            key_BSD = self.variable("cache", "source_key", lambda: products.matmul(source_BSE, key_ED)).value
            source_BSE = self.variable("cache", "source_value", lambda: source_BSE).value
        else:
            key_BSD = products.matmul(source_BSE, key_ED)
        if kind == "bahdanau":
            query_DD = self.param("query", init, (D, D), jnp.float32)
            score_D1 = self.param("score", init, (D, 1), jnp.float32)

        def attend(h_BTD, sees_BTS):
            h_BTD = h_BTD.astype(key_BSD.dtype)
            if kind == "bahdanau":
                mixed_BTSD = jnp.tanh(products.matmul(h_BTD, query_DD)[:, :, None] + key_BSD[:, None])
                scores_BTS = products.matmul(mixed_BTSD, score_D1, jnp.float32)[..., 0]
            else:
                scores_BTS = jnp.einsum("BTD,BSD->BTS", h_BTD, key_BSD, preferred_element_type=jnp.float32)
            p_BTS = nn.softmax(jnp.where(sees_BTS, scores_BTS, UNSEEN))
            return jnp.einsum("BTS,BSE->BTE", p_BTS.astype(source_BSE.dtype), source_BSE)

        return attend


class Seq2Seq(nn.Module):
    """Next-token logits of the target given the source; options.cell is a name in `lmjax.models.recurrent.CELLS`.

    Attributes:
        config: the resolved model section; encoder_layers and num_layers count recurrent layers.
        cache_len: above 0: the cache holds the state of each layer and the encoded source.
        extra_heads: as in `Decoder`.
    """

    attention = ("encoder_decoder",)
    packing, splits_once, width_rules = True, True, False  # muP has no rule for its attention
    options = {"cell": "gru", "attention": "bahdanau"}  # elman | lstm | gru; bahdanau | luong
    config: FrozenConfigDict
    cache_len: int = 0
    extra_heads: tuple = ()

    @staticmethod
    def activations(config: Mapping, lengths: Mapping[str, int]) -> int:
        """Returns the bytes of a row that the backward pass needs: of the layers, of the attention (for each pair of a
        target and a source token its score and weight; Bahdanau's also D values before and after tanh, and their
        gradient), and of the readout."""
        D, T, S = config["d_model"], lengths["inputs"], lengths["encoder_inputs"]
        encoder = 2 * step_bytes(config, D) + 2 * (config["encoder_layers"] - 1) * step_bytes(config, 2 * D)
        feeds = config["options"]["attention"] == "bahdanau"
        first = (3 if feeds else 1) * D  # embedding, and the context
        decoder = step_bytes(config, first) + (config["num_layers"] - 1) * step_bytes(config, D)
        return S * (encoder + 4 * 3 * D) + T * (decoder + 4 * 5 * D) + 4 * T * S * (2 + feeds * 3 * D)

    def setup(self):
        config, cached = self.config, bool(self.cache_len)
        self.embedding = Embedding(config, sides=("", "encoder_"))
        self.encoder = [(Layer(config), Layer(config)) for _ in range(config.encoder_layers)]
        self.decoder = [Layer(config, cached) for _ in range(config.num_layers)]
        self.attend = Attention(config, cached)
        self.readout = Dense(config, config.d_model, ("embed", "mlp"))
        self.dropout = nn.Dropout(config.dropout)
        self.heads = Heads(config, self.extra_heads)

    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True):
        """Args and Returns: those of `EncoderDecoder`."""
        return self.decode(batch, self.encode(batch, deterministic), deterministic, project)

    def encode(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Returns the encoded source [B, S, E]."""
        x, segments_BS = self._embedded(batch, "encoder_", deterministic), batch.get("encoder_segment_ids")
        keep, keep_backward = kept(segments_BS), kept(None if segments_BS is None else segments_BS[:, ::-1])
        for forward, backward in self.encoder:
            x = jnp.concatenate([forward(x, keep)[0], backward(x[::-1], keep_backward)[0][::-1]], axis=-1)
            x = self.dropout(x, deterministic=deterministic)
        return x.swapaxes(0, 1)

    def decode(
        self, batch: dict[str, jax.Array], source_BSE: jax.Array, deterministic: bool = True, project: bool = True
    ):
        """Returns logits [B, T, V] of the target for an encoded source (ignored if the cache is filled).

        With a cache, each row is one segment, numbered 1 in encoder_segment_ids.
        """
        x, at_B = self._embedded(batch, "", deterministic), batch.get("logits_at")
        keep, attend = kept(batch.get("segment_ids")), self.attend(source_BSE)
        sees_BTS, context = self._sees(batch, source_BSE.shape[1]), None
        feed = self.config.options.attention == "bahdanau"
        for i, layer in enumerate(self.decoder):
            attention = (attend, sees_BTS.swapaxes(0, 1)) if feed and i == 0 else ()
            x, found = layer(x, keep, at_B, *attention)
            x, context = self.dropout(x, deterministic=deterministic), found if i == 0 else context
        x_BTD = x.swapaxes(0, 1)
        context_BTE = context.swapaxes(0, 1) if feed else attend(x_BTD, sees_BTS)
        x_BTD = jnp.tanh(self.readout(jnp.concatenate([x_BTD, context_BTE], axis=-1)))
        logits = self.embedding.logits(x_BTD, at_B, project)
        return outputs(logits, self.heads, x_BTD, batch, project)

    def _embedded(self, batch, side, deterministic):
        """The embedded tokens of a side, [time, B, D]."""
        x_BTD = self.embedding.embed(batch[f"{side}inputs"], positions_of(batch, side), deterministic, side=side)
        return x_BTD.swapaxes(0, 1)

    def _sees(self, batch, length):
        """bool [B, T, S]: targets see the source of their segment."""
        tokens_BT, source_BS = batch["inputs"], batch.get("encoder_segment_ids")
        target_BT = jnp.ones_like(tokens_BT) if self.cache_len else batch.get("segment_ids")
        if target_BT is None or source_BS is None:
            return jnp.ones((*tokens_BT.shape, length), bool)
        return target_BT[:, :, None] == source_BS[:, None]

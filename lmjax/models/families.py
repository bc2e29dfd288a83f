"""The three families of Transformers (arXiv 1706.03762), each a module batch -> logits.

B batch, T time, S source time (or key time), D model, V vocabulary.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.masks import Sees
from lmjax.models import kernels
from lmjax.models.attention import PositionBias
from lmjax.models.layers import Embedding, Heads, outputs, positions_of
from lmjax.models.stack import Stack


class Decoder(nn.Module):
    """Next-token logits (GPT). Attention is causal, or prefix attention if the batch has a `prefix`.

    Attributes:
        config: the resolved model section.
        cache_len: slots of the key/value cache for stepwise decoding; 0 for training. Slot index = position: each
            call takes the next tokens of every row with consecutive `positions` and attends to the slots up to them
            (and to those of `prefix` [B, cache_len]) in the "cache" collection.
        backend: the devices it runs on, which decide its attention kernels.
        extra_heads: the heads of the objective besides the LM head.
    """

    attention = ("causal", "prefix")
    packing = True
    splits_time = True
    config: FrozenConfigDict
    cache_len: int = 0
    backend: kernels.Backend = kernels.Backend()
    extra_heads: tuple = ()

    @nn.compact
    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | dict[str, Any]:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, prefix, token_types, logits_at.

        Returns: logits [B, T, V]; with logits_at [B], only at that position of each row, [B, 1, V]. If not project, the
        outputs of all heads by name, for `lmjax.losses`: {"lm": the logits' factors, ...}.
        """
        config, tokens_BT = self.config, batch["inputs"]
        positions_BT = positions_of(batch)
        embedding = Embedding(config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        sees = _decoder_sees(batch, positions_BT if self.cache_len else None, self.cache_len)
        sees = sees.replace(bias=PositionBias(config, bidirectional="prefix" in batch, name="position_bias")(sees))
        stack = Stack(config, config.num_layers, self.backend.platform, cache_len=self.cache_len, name="stack")
        sees = _computed(self, _windowed(config, sees))
        x_BTD = stack(x_BTD, positions_BT, sees, deterministic=deterministic)
        logits = embedding.logits(x_BTD, batch.get("logits_at"), project)
        return outputs(logits, Heads(config, self.extra_heads, name="heads"), x_BTD, batch, project)


class EncoderTrunk(nn.Module):
    """Embedded tokens -> contextual vectors [B, T, D]; used alone and as the source side of an encoder-decoder."""

    config: FrozenConfigDict
    num_layers: int
    backend: kernels.Backend = kernels.Backend()

    @nn.compact
    def __call__(self, x_BTD, positions_BT, sees, deterministic):
        sees = sees.replace(bias=PositionBias(self.config, bidirectional=True, name="position_bias")(sees))
        stack = Stack(self.config, self.num_layers, self.backend.platform, name="stack")
        sees = _computed(self, _windowed(self.config, sees))
        return stack(x_BTD, positions_BT, sees, deterministic=deterministic)


class Encoder(nn.Module):
    """Logits of every position, predicted from both sides (BERT)."""

    attention = ("bidirectional",)
    packing = True
    splits_time = True
    config: FrozenConfigDict
    backend: kernels.Backend = kernels.Backend()
    extra_heads: tuple = ()

    @nn.compact
    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | dict[str, Any]:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, token_types, logits_at.

        Returns: logits as in `Decoder`.
        """
        tokens_BT = batch["inputs"]
        positions_BT = positions_of(batch)
        embedding = Embedding(self.config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        trunk = EncoderTrunk(self.config, self.config.num_layers, self.backend, name="encoder")
        x_BTD = trunk(x_BTD, positions_BT, encoder_sees(batch), deterministic)
        logits = embedding.logits(x_BTD, batch.get("logits_at"), project)
        return outputs(logits, Heads(self.config, self.extra_heads, name="heads"), x_BTD, batch, project)


class EncoderDecoder(nn.Module):
    """Next-token logits of the target given the source (T5). One embedding table serves both sides.

    The encoder is bidirectional over encoder_inputs; the decoder is causal over inputs, with cross-attention.

    Attributes:
        config: the resolved model section.
        cache_len: slots of the decoder's key/value cache, as in `Decoder`; 0 for training.
        backend, extra_heads: as in `Decoder`.
    """

    attention = ("encoder_decoder",)
    packing = True
    splits_time = True
    config: FrozenConfigDict
    cache_len: int = 0
    backend: kernels.Backend = kernels.Backend()
    extra_heads: tuple = ()

    def setup(self):
        config = self.config
        self.embedding = Embedding(config, sides=("", "encoder_"))
        self.encoder = EncoderTrunk(config, config.encoder_layers, self.backend)
        self.decoder_position_bias = PositionBias(config, bidirectional=False)
        self.decoder = Stack(config, config.num_layers, self.backend.platform, cross=True, cache_len=self.cache_len)
        self.heads = Heads(config, self.extra_heads)

    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | dict[str, Any]:
        """Args: batch with encoder_inputs [B, S], inputs [B, T]; optional positions and segment_ids, each also with the
        prefix encoder_, and logits_at.

        Returns: logits as in `Decoder`.
        """
        return self.decode(batch, self.encode(batch, deterministic), deterministic, project)

    def encode(self, batch: dict[str, jax.Array], deterministic: bool = True) -> jax.Array:
        """Returns the encoder output [B, S, D]."""
        tokens_BS = batch["encoder_inputs"]
        positions_BS = positions_of(batch, "encoder_")
        x_BSD = self.embedding.embed(tokens_BS, positions_BS, deterministic, side="encoder_")
        return self.encoder(x_BSD, positions_BS, encoder_sees(batch, "encoder_"), deterministic)

    def decode(
        self, batch: dict[str, jax.Array], source_BSD: jax.Array, deterministic: bool = True, project: bool = True
    ) -> jax.Array | dict[str, Any]:
        """Returns logits [B, T, V] of the target side for an encoded source (ignored if the cache is filled).

        With a cache, each row is one segment, numbered 1 in encoder_segment_ids.
        """
        tokens_BT = batch["inputs"]
        positions_BT = positions_of(batch)
        cached_BT = positions_BT if self.cache_len else None
        sees = _decoder_sees(batch, cached_BT, self.cache_len)
        sees = sees.replace(bias=self.decoder_position_bias(sees))
        cross_sees = _cross_sees(batch, source_BSD.shape[1], cached_BT)
        x_BTD = self.embedding.embed(tokens_BT, positions_BT, deterministic)
        sees, cross_sees = _computed(self, _windowed(self.config, sees)), _computed(self, cross_sees)
        x_BTD = self.decoder(x_BTD, positions_BT, sees, source_BSD, cross_sees, deterministic)
        logits = self.embedding.logits(x_BTD, batch.get("logits_at"), project)
        return outputs(logits, self.heads, x_BTD, batch, project)


def _decoder_sees(batch, cached_BT=None, cache_len=0):
    """What a decoder's self-attention sees; `cached_BT`: positions of the queries if keys are slots of a cache."""
    length, segments = batch["inputs"].shape[1], batch.get("segment_ids")
    if cached_BT is not None:
        return Sees("causal", length, cache_len, prefix=batch.get("prefix"), positions=cached_BT)
    return Sees("causal", length, length, segments, segments, batch.get("prefix"))


def encoder_sees(batch: dict[str, jax.Array], side: str = "") -> Any:
    """Returns what an encoder's self-attention sees; side: prefix of the names of the arrays."""
    length, segments = batch[f"{side}inputs"].shape[1], batch.get(f"{side}segment_ids")
    return Sees("full", length, length, segments, segments)


def _cross_sees(batch, keys, cached_BT=None):
    """What cross-attention sees of a source of `keys` tokens; with a cache, each row is segment 1."""
    tokens_BT, key_segments = batch["inputs"], batch.get("encoder_segment_ids")
    query_segments = batch.get("segment_ids") if cached_BT is None else jnp.ones_like(tokens_BT)
    if query_segments is None or key_segments is None:
        query_segments = key_segments = None
    return Sees("full", tokens_BT.shape[1], keys, query_segments, key_segments, positions=cached_BT)


def _computed(module, sees):
    """Names the kernel that computes this; for the plain kernel, the mask becomes a bias once for all layers."""
    if sees.wide is not None:
        return _computed(module, sees.replace(wide=None)).replace(wide=_computed(module, sees.wide))
    kernel = "plain" if module.is_initializing() else kernels.choose(module.backend, module.config, sees).kernel
    if kernel != "plain":
        return sees.replace(kernel=kernel)
    # Experts leave out padding.
    return sees.as_bias().replace(query_segments=sees.query_segments if module.config.num_experts else None)


def _windowed(config, sees):
    """What self-attention sees within the window of the model, if it has one."""
    if config.attention_window is None:
        return sees
    return sees.replace(window=config.attention_window, wide=sees if config.full_attention_every else None)


def attention_kernels(model: nn.Module, batch: dict) -> dict[str, kernels.Choice]:
    """Returns the attention kernel of each kind of layer for a batch (arrays or shapes), and the reason for it.

    Example: a decoder on a CPU: {"decoder": Choice("plain", "no flash kernel for cpu")}
    """
    family, config = model.config.family, model.config
    if not hasattr(model, "backend"):  # a model of your own
        return {}
    biased = True if config.position in ("relative", "alibi") else None
    two_sided = "bidirectional" in model.attention
    sees = {"encoder": encoder_sees(batch)} if two_sided else {"decoder": _decoder_sees(batch)}
    if family == "encoder_decoder":
        sees |= {"encoder": encoder_sees(batch, "encoder_")}
    sees = {layer: _windowed(config, dataclasses.replace(view, bias=biased)) for layer, view in sees.items()}
    sees |= {f"{layer}'s full layers": view.wide for layer, view in sees.items() if view.wide is not None}
    if family == "encoder_decoder":
        sees |= {"cross-attention": _cross_sees(batch, batch["encoder_inputs"].shape[1])}
    return {layer: kernels.choose(model.backend, config, view) for layer, view in sees.items()}

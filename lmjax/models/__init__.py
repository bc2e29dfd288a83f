"""The families by name: model = build(config.model); logits = model.apply({"params": params}, batch)."""

import functools
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict, FrozenConfigDict

from lmjax.models.families import Decoder, Encoder, EncoderDecoder, attention_kernels
from lmjax.models.ngram import NGram

__all__ = ["ATTENTION", "FAMILIES", "attention_kernels", "build", "parameter_shapes", "unstack"]
FAMILIES = {"decoder": Decoder, "encoder": Encoder, "encoder_decoder": EncoderDecoder, "ngram": NGram}

# Attention types of objectives that each family supports.
ATTENTION = {
    "decoder": ("causal", "prefix"),
    "encoder": ("bidirectional",),
    "encoder_decoder": ("encoder_decoder",),
    "ngram": ("causal",),
}


def build(model: ConfigDict, cache_len: int = 0) -> nn.Module:
    """Returns the Flax module of a resolved model section (derived sizes filled in).

    Args:
        model: config.model.
        cache_len: slots of the key/value cache for stepwise decoding (not for encoders); 0: no cache. With a cache, the
            module takes the parameters returned by `unstack`.
    """
    options = {"cache_len": cache_len} if cache_len else {}
    return FAMILIES[model.family](FrozenConfigDict(model.to_dict()), **options)


def parameter_shapes(model: nn.Module, example: dict) -> Any:
    """Returns the parameter tree as shapes with their logical axes (Flax metadata boxes).

    The tree is shared by all models of one config, which is traced once: many cells of a sweep differ in data alone.
    """
    described = ((name, x.shape, str(jax.dtypes.canonicalize_dtype(x.dtype))) for name, x in example.items())
    return _parameter_shapes(model, tuple(sorted(described)))


@functools.lru_cache(maxsize=256)
def _parameter_shapes(model, example):
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in example}
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), batch)["params"]


def unstack(params: Any, model: ConfigDict) -> Any:
    """Returns the parameters for a model with a cache, with each layer of the decoder stack under its own name.

    Example: stack/layers/... [L, ...] of a decoder becomes stack/layer_0/... [...], stack/layer_1/... [...], ...
    """
    if model.family == "ngram":
        return params
    name = "stack" if model.family == "decoder" else "decoder"
    stack = dict(params[name])
    layers = stack.pop("layers")
    for i in range(model.num_layers):
        stack[f"layer_{i}"] = layers if model.share_layers else jax.tree.map(lambda x, i=i: x[i], layers)
    return {**params, name: stack}

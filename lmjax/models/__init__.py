"""The three families by name: model = build(config.model); logits = model.apply({"params": params}, batch)."""

from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict, FrozenConfigDict

from lmjax.models.decoder import Decoder
from lmjax.models.encoder import Encoder
from lmjax.models.encoder_decoder import EncoderDecoder

FAMILIES = {"decoder": Decoder, "encoder": Encoder, "encoder_decoder": EncoderDecoder}

# Which attention an objective may ask of which family.
ATTENTION = {"decoder": ("causal", "prefix"), "encoder": ("bidirectional",), "encoder_decoder": ("encoder_decoder",)}


def build(model: ConfigDict, cache_len: int = 0) -> nn.Module:
    """Returns the Flax module of a resolved model section (derived sizes filled in).

    Args:
        model: config.model.
        cache_len: slots of the key/value cache, for stepwise decoding (not of an encoder); 0: none. With a cache the
            module takes the parameters that `unstack` returns.
    """
    options = {"cache_len": cache_len} if cache_len else {}
    return FAMILIES[model.family](FrozenConfigDict(model.to_dict()), **options)


def parameter_shapes(model: nn.Module, example: dict) -> Any:
    """Returns the parameter tree as shapes with their logical axes (Flax metadata boxes)."""
    example = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in example.items()}
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), example)["params"]


def unstack(params: Any, model: ConfigDict) -> Any:
    """Returns the parameters for a model with a cache: layer i of the stack that keeps it under a name of its own.

    Example: stack/layers/... [L, ...] of a decoder becomes stack/layer_0/... [...], stack/layer_1/... and so on.
    """
    name = "stack" if model.family == "decoder" else "decoder"
    stack = dict(params[name])
    layers = stack.pop("layers")
    for i in range(model.num_layers):
        stack[f"layer_{i}"] = layers if model.share_layers else jax.tree.map(lambda x, i=i: x[i], layers)
    return {**params, name: stack}

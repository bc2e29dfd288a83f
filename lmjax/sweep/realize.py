"""From a split of a budget to the command that trains it: the model of a config's shape family nearest to N parameters.

The family keeps the width of a head and the ratio of width to depth; only shapes are looked at, nothing is trained.
"""

import math
from collections.abc import Mapping

from flax import linen as nn

from lmjax import config as configs
from lmjax import flops, models
from lmjax.errors import InputError
from lmjax.resolve import resolve

MOST_LAYERS = 512


def nearest_config(spec: str, overrides: Mapping[str, str], N: float, D: float, count: str = "n_total") -> dict:
    """Returns the overrides of a config that give the model nearest to N parameters, trained for D tokens.

    Args:
        spec: config file, path.py or path.py:argument.
        overrides: {"section.key": value} on top of it.
        N: parameters, counted as `count`.
        D: training tokens.
        count: a key of flops.parameter_counts.

    Returns:
        {"overrides": {"model.d_model": ...}, "N": the count it really has}.

    Raises:
        InputError: N is smaller than the smallest or larger than the largest model of the family.
    """
    base = resolve(configs.load(spec, overrides))
    heads = base.config.model.head_dim
    ratio = base.config.model.d_model / base.config.model.num_layers
    example = base.batches.rows([0])

    def shape(layers):
        width = max(round(ratio * layers / heads), 1) * heads
        return {"model.d_model": width, "model.num_layers": layers, "model.num_heads": width // heads}

    def size(layers):
        model = base.config.model.copy_and_resolve_references()
        model.unlock()
        chosen = shape(layers)
        scale = chosen["model.d_model"] / model.d_model
        model.mlp_dim = round(model.mlp_dim * scale)
        model.num_kv_heads = max(round(model.num_kv_heads * scale), 1)
        model.d_model, model.num_heads, model.num_layers = (chosen[f"model.{k}"] for k in _SHAPE)
        if model.encoder_layers:
            model.encoder_layers = layers
        return flops.parameter_counts(nn.unbox(models.parameter_shapes(models.build(model), example)))[count]

    low, high = 1, 2
    while size(high) < N and high < MOST_LAYERS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) < N else (low, middle)
    best = min((low, high), key=lambda layers: abs(math.log(size(layers) / N)))
    if not 0.5 < size(best) / N < 2:
        raise InputError(f"{spec}: nearest model: {size(best):.3g} parameters, expected {N:.3g}; change its shape")
    return {"overrides": {**shape(best), "duration.tokens": round(D)}, "N": size(best)}


_SHAPE = ("d_model", "num_heads", "num_layers")

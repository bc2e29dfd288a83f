"""The models by name: model = build(config.model); logits = model.apply({"params": params}, batch).

A model of your own is a Linen module with a field `config`, called with (batch, deterministic=True, project=True), and
an entry of MODELS. It declares what it can do:
    attention    types of attention of the objectives it fits, e.g. ("causal",)
    options      its own options and their defaults, read from config.options; default: none
    packing      whether segment_ids separate the pieces of a row; default: no
    splits_once  whether its parameters may be split over mesh.fsdp or mesh.tensor, but not over both; default: no
    splits_time  whether mesh.context may split its activations over time; default: no
    cache_len    field: positions of the cache for decoding (keys and values, tokens or states, rows first), which a
                 right-padded prompt fills up to `logits_at`; without the field, the model does not generate
    extra_heads  field: heads of an objective besides the LM head; see `lmjax.models.layers.outputs`
    flops        (config.model, lengths) -> {part: FLOPs of a row's forward pass}; default: counted from the program
    activations  (config.model, lengths) -> bytes of a row that the backward pass needs; default: a Transformer's
    nats         method: batch -> [B, T], -log p of the targets, for validation; default: computed from the logits
    draws        whether it draws tokens from its head lm by the noise that the rows of objective electra have; default:
                 no
    width_rules  whether mup and completep know how its parameters widen; default: yes
    carry        one of the options, a bool: a row goes on with the cache that the row before left; needs cache_len, and
                 a cache that is zeros at first and of the same shape for every cache_len
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from lmjax.errors import InputError, nearest
from lmjax.models.electra import Electra
from lmjax.models.families import Decoder, Encoder, EncoderDecoder, attention_kernels
from lmjax.models.feed_forward import FeedForwardLM
from lmjax.models.ngram import NGram
from lmjax.models.recurrent import RNN
from lmjax.models.seq2seq import Seq2Seq
from lmjax.models.word2vec import Word2Vec
from lmjax.models.xlnet import XLNet
from lmjax.registry import Registry

__all__ = [
    "MODELS",
    "activations",
    "apply_carrying",
    "attention_kernels",
    "attention_types",
    "build",
    "can_generate",
    "can_pack",
    "can_score",
    "carried",
    "carries",
    "draws",
    "options",
    "parameter_shapes",
    "plain_shapes",
    "reads_source",
    "unstack",
    "width_rules",
]
MODELS: dict[str, Callable[..., nn.Module]] = Registry(
    "model",
    {
        **{"decoder": Decoder, "encoder": Encoder, "encoder_decoder": EncoderDecoder},
        **{"electra": Electra, "xlnet": XLNet, "ngram": NGram},
        **{"feed_forward": FeedForwardLM, "rnn": RNN, "seq2seq": Seq2Seq, "word2vec": Word2Vec},
    },
    lambda value: "" if hasattr(value, "attention") else "a Linen module with an attribute attention",
)


def _model(family):
    if family not in MODELS:
        raise InputError(f"unknown model.family {family!r}{nearest(family, MODELS)}; one of your own needs plugins")
    return MODELS[family]


def attention_types(family: str) -> tuple[str, ...]:
    """Returns the types of attention that a model supports; InputError if there is no model of this name."""
    return _model(family).attention


def reads_source(family: str) -> bool:
    """Returns whether a model predicts a target from a source, as an encoder-decoder does."""
    return "encoder_decoder" in attention_types(family)


def can_pack(family: str) -> bool:
    """Returns whether a model separates the pieces of a row by segment_ids."""
    return getattr(_model(family), "packing", False)


def can_generate(family: str) -> bool:
    """Returns whether a model has a key/value cache for decoding."""
    return hasattr(_model(family), "cache_len")


def can_score(family: str) -> bool:
    """Returns whether a model has probabilities of tokens, and so of a text."""
    return "pairs" not in attention_types(family)


def draws(family: str) -> bool:
    """Returns whether a model draws tokens by the noise in its rows, as ELECTRA does."""
    return getattr(_model(family), "draws", False)


def width_rules(family: str) -> bool:
    """Returns whether the parametrizations other than "standard" know a model."""
    return getattr(_model(family), "width_rules", True)


def activations(model: Mapping[str, Any], lengths: Mapping[str, int]) -> int | None:
    """Returns the bytes of a row that the backward pass of a model needs; None if its module does not say."""
    own = getattr(_model(model["family"]), "activations", None)
    return None if own is None else own(model, lengths)


def options(family: str) -> dict[str, Any]:
    """Returns the options of a model, config.model.options, and their defaults."""
    return dict(getattr(_model(family), "options", {}))


def build(model: ConfigDict, cache_len: int = 0, heads: Sequence[Any] = ()) -> nn.Module:
    """Returns the Flax module of a resolved model section (derived sizes filled in).

    Args:
        model: config.model.
        cache_len: slots of the key/value cache for stepwise decoding (not for encoders); 0: no cache. With a cache, the
            module takes the parameters returned by `unstack`.
        heads: `lmjax.objectives.Head`s of the objective.

    Raises:
        InputError: unknown model.family; the model has no cache or no heads besides the LM head.
    """
    module = _model(model.family)(FrozenConfigDict(model.to_dict()))
    extra = tuple(head for head in heads if head.name != "lm")
    needed = {name: value for name, value in (("cache_len", cache_len), ("extra_heads", extra)) if value}
    for name in needed:
        if not hasattr(module, name):
            what = {
                "cache_len": "generate text, as it has no cache",
                "extra_heads": f"have the heads {[h.name for h in extra]}",
            }[name]
            raise InputError(f"model.family {model.family!r} cannot {what}: expected a field {name} in its module")
    if carries(model) and not hasattr(module, "cache_len"):
        raise InputError(
            f"model.family {model.family!r} has no state to carry: expected a field cache_len in its module"
        )
    return module.clone(**needed) if needed else module


def parameter_shapes(model: nn.Module, example: dict) -> Any:
    """Returns the parameter tree as shapes with their logical axes (Flax metadata boxes).

    The tree is shared by all models of one config, which is traced once: many cells of a sweep differ in data alone.
    """
    described = ((name, x.shape, str(jax.dtypes.canonicalize_dtype(x.dtype))) for name, x in example.items())
    return _parameter_shapes(model, tuple(sorted(described)))


def plain_shapes(model: nn.Module, example: dict) -> Any:
    """Returns `parameter_shapes` without the boxes, also inside a mesh, where nn.unbox would ask for arrays."""
    boxed = parameter_shapes(model, example)
    is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)  # noqa: E731
    return jax.tree.map(lambda x: x.value if is_box(x) else x, boxed, is_leaf=is_box)


@functools.lru_cache(maxsize=256)
def _parameter_shapes(model, example):
    batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in example}
    return jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), batch)["params"]


def carries(model: Mapping[str, Any]) -> bool:
    """Returns whether rows go on with the state of the rows before. Sections of imported models have no options."""
    return bool(model.get("options", {}).get("carry"))


def carried(model: nn.Module, example: dict) -> dict:
    """Returns {"carry": shapes [B, ...]}, the state after the rows of an example; {} without the option carry."""
    if not carries(model.config):
        return {}
    stepwise = model.clone(cache_len=1)
    return {"carry": jax.eval_shape(lambda batch: stepwise.init(jax.random.key(0), batch), dict(example))["cache"]}


def apply_carrying(model: nn.Module, params: Any, batch: dict, mutable: Sequence[str] = (), **options: Any) -> tuple:
    """Returns the outputs of a model, the `mutable` collections, and the state after the rows as in `carried`.

    Args:
        model, params: of a run.
        batch: arrays, and "carry" if the model carries its state: rows that continue go on with it, others with zeros.
        mutable, options: of `model.apply`.
    """
    if "carry" not in batch:
        return *model.apply({"params": params}, batch, mutable=list(mutable), **options), {}

    def kept(x):
        return jnp.where(batch["continues"].reshape(-1, *[1] * (x.ndim - 1)), x, 0)

    variables = {"params": params, "cache": jax.tree.map(kept, batch["carry"])}
    rows, stepwise = {name: x for name, x in batch.items() if name != "carry"}, model.clone(cache_len=1)
    outputs, found = stepwise.apply(variables, rows, mutable=[*mutable, "cache"], **options)
    return outputs, found, {"carry": found["cache"]}


def unstack(params: Any, model: ConfigDict) -> Any:
    """Returns the parameters for a model with a cache, with each layer of the decoder stack under its own name.

    Example: stack/layers/... [L, ...] of a decoder becomes stack/layer_0/... [...], stack/layer_1/... [...], ...
    """
    name = {"decoder": "stack", "encoder_decoder": "decoder"}.get(model.family)
    if name is None:  # no stack of layers
        return params
    stack = dict(params[name])
    layers = stack.pop("layers")
    for i in range(model.num_layers):
        stack[f"layer_{i}"] = layers if model.share_layers else jax.tree.map(lambda x, i=i: x[i], layers)
    return {**params, name: stack}

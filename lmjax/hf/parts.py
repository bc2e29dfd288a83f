"""Parts of a Hugging Face config.json: each Part reads some keys of a model section from it and writes them back.

options.py combines them into architectures.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lmjax.config import type_of
from lmjax.errors import InputError

# Hugging Face names of activations; the first one is written.
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
UNGATED_NAMES = {"gelu": _TANH, "gelu_exact": ("gelu",), "relu": ("relu",)}
GATED_NAMES = {"swiglu": ("silu", "swish"), "geglu": _TANH}
EXACT_GELU = {"gelu_exact": ("gelu",)}


@dataclasses.dataclass(frozen=True)
class Part:
    """Some keys of the model section, and how they are read from and written to config.json.

    Attributes:
        read: turns config.json into values of model keys; raises InputError for what lmjax cannot represent.
        write: turns a model section into entries of config.json; what it cannot express reads back differently.
    """

    read: Callable[[Mapping], dict]
    write: Callable[[Mapping], dict] = lambda section: {}


def entry(config: Mapping, names: str, default: Any) -> Any:
    """Returns the first entry of config.json that is present and not null, else `default`.

    The entry must have the type of the default, or the type that is given in place of a default.

    Example: entry({"n_embd": 8}, "n_embd hidden_size", 768) = 8
    """
    name = next((name for name in names.split() if config.get(name) is not None), None)
    if name is None:
        return default
    value, expected = config[name], default if isinstance(default, type) else type(default)
    if not (type(value) in (int, float) if expected is float else type(value) is expected):
        raise InputError(f"config.json: {name}: expected a {expected.__name__}, got {value!r}; mend the file")
    return value


def refuse(name: str, expected: Any, got: Any) -> InputError:
    """Returns the error for an option of config.json that lmjax cannot represent."""
    return InputError(f"config.json: {name}: expected {expected!r}, got {got!r}; it is not supported")


def renamed(**keys: tuple[str, Any]) -> Part:
    """Keys that only have other names in config.json.

    Args:
        keys: model key = (Hugging Face names separated by spaces, of which the first is written; default).
    """
    return Part(
        lambda config: {ours: entry(config, theirs, default) for ours, (theirs, default) in keys.items()},
        lambda section: {theirs.split()[0]: section[ours] for ours, (theirs, _) in keys.items()},
    )


def agreeing(ours: str, first: str, second: str, default: Any, second_default: Any = None) -> Part:
    """A key that stands for two entries of config.json, which must be equal; without default, the second follows."""

    def read(config):
        value = entry(config, first, default)
        other = entry(config, second, value if second_default is None else second_default)
        if other != value:
            raise refuse(second, value, other)
        return {ours: value}

    return Part(read, lambda section: dict.fromkeys((first, second), section[ours]))


def activation(theirs: str, default: str, names: Mapping[str, tuple] = UNGATED_NAMES) -> Part:
    """The feed-forward activation; `names` are those that the architecture supports, the first of each is written."""

    def read(config):
        value = entry(config, theirs, default)
        for ours, known in names.items():
            if value in known:
                return {"activation": ours}
        raise refuse(theirs, [name for known in names.values() for name in known], value)

    return Part(read, lambda section: {theirs: names.get(section["activation"], (default,))[0]})


def dropout(theirs: str, *others: str) -> Part:
    """One rate after embedding, attention and feed-forward, 0 on attention weights."""

    def write(section):
        inside = {name: 0.0 for name in others if name.startswith("att")}
        return dict.fromkeys((theirs, *others), section["dropout"]) | inside

    return Part(lambda config: {"dropout": float(entry(config, theirs, 0.0))}, write)


def position_offset(default_rows: int, default_pad: int) -> Part:
    """A position table whose rows up to the padding id are unused but counted (RoBERTa)."""

    def read(config):
        first = entry(config, "pad_token_id", default_pad) + 1
        return {"max_len": entry(config, "max_position_embeddings", default_rows) - first, "position_offset": first}

    def write(section):
        first = section["position_offset"]
        return {"max_position_embeddings": section["max_len"] + first, "pad_token_id": first - 1}

    return Part(read, write)


_LLAMA3 = {
    "rotary_factor": "factor",
    "rotary_low_frequency": "low_freq_factor",
    "rotary_high_frequency": "high_freq_factor",
    "rotary_original_len": "original_max_position_embeddings",
}
_SCALING = {"none": {}, "linear": {"rotary_factor": "factor"}, "llama3": _LLAMA3}


def rope(fraction: float, partial: bool) -> Part:
    """Rotary positions: `rope_parameters` (transformers 5), or rope_theta, rope_scaling and rotary_pct of older files.

    Args:
        fraction: share of a head's width that is rotated if the file does not say.
        partial: whether the architecture can rotate a part of a head.
    """

    def read(config):
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        kind = "none" if kind == "default" else kind
        if kind not in _SCALING or any(isinstance(value, Mapping) for value in rope.values()):
            raise refuse("rope_parameters: rope_type", ["default", "linear", "llama3"], rope.get("rope_type", rope))
        missing = [name for name in _SCALING[kind].values() if rope.get(name) is None]
        if missing:
            raise InputError(f"config.json: rope_parameters: {kind!r} expected {missing}, got none; add them")
        both = {**config, **rope}
        rotated = float(entry(both, "partial_rotary_factor rotary_pct", fraction))
        if not partial and rotated != 1:
            raise refuse("partial_rotary_factor", 1.0, rotated)
        return {
            "rotary_base": float(entry(both, "rope_theta rotary_emb_base", 10000.0)),
            "rotary_fraction": rotated,
            "rotary_scaling": kind,
            **{ours: entry(rope, theirs, type_of(f"model.{ours}")) for ours, theirs in _SCALING[kind].items()},
        }

    def write(section):
        kind = section["rotary_scaling"]
        named = {"rope_theta": section["rotary_base"], "rope_type": "default" if kind == "none" else kind}
        if partial:
            named["partial_rotary_factor"] = section["rotary_fraction"]
        return {"rope_parameters": named | {theirs: section[ours] for ours, theirs in _SCALING[kind].items()}}

    return Part(read, write)


# transformers 5 and later: false means bidirectional attention, so the model is an encoder.
IS_CAUSAL = Part(
    lambda config: {"family": "decoder" if entry(config, "is_causal", True) else "encoder"},
    lambda section: {} if section["family"] == "decoder" else {"is_causal": False},
)
# The table of token types, which architectures with this part always have.
TOKEN_TYPES = Part(
    lambda config: {"token_types": entry(config, "type_vocab_size", 2)},
    lambda section: {"type_vocab_size": section["token_types"] or 2},
)


def embedding_size(default: int, default_width: int | None = None) -> Part:
    """The width of the token table; with `default_width` (of d_model), a projection between equal widths is refused."""

    def read(config):
        table = entry(config, "embedding_size", default)
        if default_width and table == entry(config, "hidden_size", default_width):
            raise refuse("embedding_size", f"another width than hidden_size {table}", table)
        return {"embedding_dim": table}

    def write(section):
        without = section["d_model"] // 2 if default_width else section["d_model"]
        return {"embedding_size": section["embedding_dim"] or without}

    return Part(read, write)


def electra_head() -> Part:
    """Generator or discriminator, according to `architectures`; a generator has one activation only."""
    generator, discriminator = activation("hidden_act", "gelu", EXACT_GELU), activation("hidden_act", "gelu")

    def read(config):
        if "ElectraForPreTraining" in (config.get("architectures") or ()):
            return discriminator.read(config) | {"head": "discriminator", "head_bias": False}
        return generator.read(config)

    def write(section):
        if section["head"] == "discriminator":
            return discriminator.write(section) | {"architectures": ["ElectraForPreTraining"]}
        return generator.write(section)

    return Part(read, write)


# T5's feed-forward layer: relu (v1.0), gated-gelu (v1.1, the tanh form) and others; the first of each is written.
T5_ACTIVATION = activation(
    "feed_forward_proj",
    "relu",
    UNGATED_NAMES
    | {"geglu": ("gated-gelu", *(f"gated-{name}" for name in _TANH)), "swiglu": ("gated-silu", "gated-swish")},
)


def t5_head() -> Part:
    """Tied tables, and the factor 1 / sqrt(d_model) before the logits, which v1.1 does not use.

    transformers 4 scales if tie_word_embeddings; 5 stores the factor separately and ties unless the file has two
    tables.
    """

    def read(config):
        tied = entry(config, "tie_word_embeddings", True)
        scaled = entry(config, "scale_decoder_outputs", tied)
        return {"tie_embeddings": tied, "logit_scale": entry(config, "d_model", 512) ** -0.5 if scaled else 1.0}

    def write(section):
        both = section["tie_embeddings"] and section["logit_scale"] != 1
        return {"tie_word_embeddings": both, "scale_decoder_outputs": both}

    return Part(read, write)


# BART's factor on the token's row: sqrt(d_model) or 1.
EMBEDDING_SCALE = Part(
    lambda config: {
        "embedding_scale": entry(config, "d_model", 1024) ** 0.5 if entry(config, "scale_embedding", False) else 1.0
    },
    lambda section: {"scale_embedding": section["embedding_scale"] != 1},
)

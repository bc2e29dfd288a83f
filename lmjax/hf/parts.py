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


@dataclasses.dataclass(frozen=True)
class Part:
    """Some keys of the model section, and how they are read from and written to config.json.

    Attributes:
        read: turns config.json into values of model keys; raises InputError for what lmjax cannot represent.
        write: turns a model section into entries of config.json; what it cannot express reads back differently.
    """

    read: Callable[[Mapping], dict]
    write: Callable[[Mapping], dict] = lambda section: {}


def entry(config: Mapping, names: tuple[str, ...], default: Any) -> Any:
    """Returns the first entry of config.json that is present and not null, else `default`.

    The entry must have the type of the default, or the type that is given in place of a default.

    Example: entry({"n_embd": 8}, ("n_embd", "hidden_size"), 768) = 8
    """
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        return default
    value, expected = config[name], default if isinstance(default, type) else type(default)
    if not (type(value) in (int, float) if expected is float else type(value) is expected):
        raise InputError(f"config.json: {name}: expected a {expected.__name__}, got {value!r}; mend the file")
    return value


def refuse(name: str, expected: Any, got: Any) -> InputError:
    """Returns the error for an option of config.json that lmjax cannot represent."""
    return InputError(f"config.json: {name}: expected {expected!r}, got {got!r}; it is not supported")


def rename(ours: str, *theirs: str, default: Any) -> Part:
    """Returns the Part of a key that only has another name in config.json; the first of `theirs` is written."""
    return Part(
        lambda config: {ours: entry(config, theirs, default)},
        lambda section: {theirs[0]: section[ours]},
    )


def agreeing(ours: str, *theirs: str, default: Any) -> Part:
    """Returns the Part of a key that stands for several entries of config.json, which must be equal."""

    def read(config):
        values = {name: entry(config, (name,), default) for name in theirs}
        for name, value in values.items():
            if value != values[theirs[0]]:
                raise refuse(name, values[theirs[0]], value)
        return {ours: values[theirs[0]]}

    return Part(read, lambda section: dict.fromkeys(theirs, section[ours]))


def activation(theirs: str, default: str, names: Mapping[str, tuple] = UNGATED_NAMES) -> Part:
    """Returns the Part of the feed-forward activation; `names` are those that the architecture supports."""

    def read(config):
        value = entry(config, (theirs,), default)
        for ours, known in names.items():
            if value in known:
                return {"activation": ours}
        raise refuse(theirs, [name for known in names.values() for name in known], value)

    return Part(read, lambda section: {theirs: names.get(section["activation"], (default,))[0]})


def dropout(theirs: str, *others: str) -> Part:
    """Returns the Part of dropout, one rate after embedding, attention and feed-forward, 0 on attention weights."""

    def write(section):
        inside = {name: 0.0 for name in others if name.startswith("att")}
        return dict.fromkeys((theirs, *others), section["dropout"]) | inside

    return Part(lambda config: {"dropout": float(entry(config, (theirs,), 0.0))}, write)


def counted_offset(rows: str, default_rows: int, default_pad: int) -> Part:
    """Returns the Part of a position table whose rows up to the padding id are unused but counted (RoBERTa)."""

    def read(config):
        first = entry(config, ("pad_token_id",), default_pad) + 1
        return {"max_len": entry(config, (rows,), default_rows) - first, "position_offset": first}

    def write(section):
        first = section["position_offset"]
        return {rows: section["max_len"] + first, "pad_token_id": first - 1}

    return Part(read, write)


def rope(fraction: float, partial: bool) -> Part:
    """Returns the Part of rotary positions.

    Reads `rope_parameters` (transformers 5) and rope_theta, rope_scaling and rotary_pct of older files.

    Args:
        fraction: share of a head's width that is rotated if the file does not say.
        partial: whether the architecture can rotate a part of a head.
    """

    def read(config):
        values = _read_rope(config, fraction)
        if not partial and values["rotary_fraction"] != 1:
            raise refuse("partial_rotary_factor", 1.0, values["rotary_fraction"])
        return values

    def write(section):
        kind = section["rotary_scaling"]
        named = {"rope_theta": section["rotary_base"], "rope_type": {"none": "default"}.get(kind, kind)}
        if partial:
            named["partial_rotary_factor"] = section["rotary_fraction"]
        return {"rope_parameters": named | {theirs: section[ours] for ours, theirs in _SCALING[kind].items()}}

    return Part(read, write)


_LLAMA3 = {
    "rotary_factor": "factor",
    "rotary_low_frequency": "low_freq_factor",
    "rotary_high_frequency": "high_freq_factor",
    "rotary_original_len": "original_max_position_embeddings",
}
_SCALING = {"none": {}, "linear": {"rotary_factor": "factor"}, "llama3": _LLAMA3}


def _read_rope(config, fraction):
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = "none" if kind == "default" else kind
    if kind not in _SCALING or any(isinstance(value, Mapping) for value in rope.values()):
        raise refuse("rope_parameters: rope_type", ["default", "linear", "llama3"], rope.get("rope_type", rope))
    missing = [name for name in _SCALING[kind].values() if rope.get(name) is None]
    if missing:
        raise InputError(f"config.json: rope_parameters: {kind!r} expected {missing}, got none; add them")
    both = {**config, **rope}
    return {
        "rotary_base": float(entry(both, ("rope_theta", "rotary_emb_base"), 10000.0)),
        "rotary_fraction": float(entry(both, ("partial_rotary_factor", "rotary_pct"), fraction)),
        "rotary_scaling": kind,
        **{ours: entry(rope, (theirs,), type_of(f"model.{ours}")) for ours, theirs in _SCALING[kind].items()},
    }


def is_causal_switch() -> Part:
    """Returns the Part of `is_causal` (transformers 5 and later); false means bidirectional attention, an encoder."""
    return Part(
        lambda config: {"family": "decoder" if entry(config, ("is_causal",), True) else "encoder"},
        lambda section: {} if section["family"] == "decoder" else {"is_causal": False},
    )


def llama_bias() -> Part:
    """Returns the Part of biases, which must be in all dense layers or in none."""

    def read(config):
        attention, feed_forward = (entry(config, (name,), False) for name in ("attention_bias", "mlp_bias"))
        if attention != feed_forward:
            raise refuse("mlp_bias", attention, feed_forward)
        return {"use_bias": attention}

    return Part(read, lambda section: dict.fromkeys(("attention_bias", "mlp_bias"), section["use_bias"]))


def token_types() -> Part:
    """Returns the Part of the token-type table, which the architecture always has."""
    return Part(
        lambda config: {"token_types": entry(config, ("type_vocab_size",), 2)},
        lambda section: {"type_vocab_size": section["token_types"] or 2},
    )


def opt_width() -> Part:
    """Returns the Part of d_model; a token table of another width is refused."""

    def read(config):
        width = entry(config, ("hidden_size",), 768)
        table = entry(config, ("word_embed_proj_dim",), width)
        if table != width:
            raise refuse("word_embed_proj_dim", width, table)
        return {"d_model": width}

    return Part(read, lambda section: dict.fromkeys(("hidden_size", "word_embed_proj_dim"), section["d_model"]))


def albert_projection() -> Part:
    """Returns the Part of the token table's width; a projection between equal widths is refused."""

    def read(config):
        table, width = entry(config, ("embedding_size",), 128), entry(config, ("hidden_size",), 4096)
        if table == width:
            raise refuse("embedding_size", f"another width than hidden_size {width}", table)
        return {"embedding_dim": table}

    return Part(read, lambda section: {"embedding_size": section["embedding_dim"] or section["d_model"] // 2})


def electra_head() -> Part:
    """Returns the Part that reads generator or discriminator from `architectures`; a generator has one activation."""
    generator, discriminator = (
        activation("hidden_act", "gelu", {"gelu_exact": ("gelu",)}),
        activation("hidden_act", "gelu"),
    )

    def read(config):
        if "ElectraForPreTraining" in (config.get("architectures") or ()):
            return discriminator.read(config) | {"head": "discriminator", "head_bias": False}
        return generator.read(config)

    def write(section):
        if section["head"] == "discriminator":
            return discriminator.write(section) | {"architectures": ["ElectraForPreTraining"]}
        return generator.write(section)

    return Part(read, write)


def t5_feed_forward() -> Part:
    """Returns the Part of T5's feed-forward layer: relu (v1.0), gated-gelu (v1.1, the tanh form) and others."""
    names = {"gated-gelu": "geglu", "gated-silu": "swiglu"}
    names |= {f"gated-{name}": ours for ours, known in GATED_NAMES.items() for name in known}
    names |= {name: ours for ours, known in UNGATED_NAMES.items() for name in known}

    def read(config):
        value = entry(config, ("feed_forward_proj",), "relu")
        if value not in names:
            raise refuse("feed_forward_proj", list(names), value)
        return {"activation": names[value]}

    return Part(
        read, lambda section: {"feed_forward_proj": {v: k for k, v in reversed(names.items())}[section["activation"]]}
    )


def t5_head() -> Part:
    """Returns the Part of tied tables and of the factor 1 / sqrt(d_model) before the logits, which v1.1 does not use.

    transformers 4 scales if tie_word_embeddings; 5 stores the factor separately and ties unless the file has two
    tables.
    """

    def read(config):
        tied = entry(config, ("tie_word_embeddings",), True)
        scaled = entry(config, ("scale_decoder_outputs",), tied)
        d_model = entry(config, ("d_model",), 512)
        return {"tie_embeddings": tied, "logit_scale": d_model**-0.5 if scaled else 1.0}

    def write(section):
        both = section["tie_embeddings"] and section["logit_scale"] != 1
        return {"tie_word_embeddings": both, "scale_decoder_outputs": both}

    return Part(read, write)


def embedding_scale() -> Part:
    """Returns the Part of the factor sqrt(d_model) or 1 on the token's row (BART)."""

    def read(config):
        scaled = entry(config, ("scale_embedding",), False)
        return {"embedding_scale": entry(config, ("d_model",), 1024) ** 0.5 if scaled else 1.0}

    return Part(read, lambda section: {"scale_embedding": section["embedding_scale"] != 1})

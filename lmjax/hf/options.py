"""Hugging Face config.json <-> the model section of a config: one table per architecture, used in both directions.

A Part reads some keys of a model section from config.json and writes them back; ARCHITECTURES combines them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax.errors import InputError, nearest
from lmjax.models.presets import PRESETS, SIZES

# Hugging Face names of activations; the first one is written.
_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
UNGATED_NAMES = {"gelu": _TANH, "gelu_exact": ("gelu",), "relu": ("relu",)}
GATED_NAMES = {"swiglu": ("silu", "swish"), "geglu": _TANH}
EXACT_GELU = {"gelu_exact": ("gelu",)}


@dataclasses.dataclass(frozen=True)
class Part:
    """Some keys of the model section, and how they are read from and written to config.json."""

    read: Callable[[Mapping], dict]  # config.json -> values of model keys; InputError for what lmjax cannot represent
    write: Callable[[Mapping], dict] = lambda section: {}  # what config.json cannot express reads back differently


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
        raise InputError(f"config.json: {name}: expected a {expected.__name__}, got {value!r}; correct the file")
    return value


def refuse(name: str, expected: Any, got: Any) -> InputError:
    """Returns the error for an option of config.json that lmjax cannot represent."""
    return InputError(f"config.json: {name}: expected {expected!r}, got {got!r}; lmjax does not support this option")


def renamed(**keys: tuple[str, Any]) -> Part:
    """Keys renamed in config.json: model key = (accepted names, space-separated, the first is written; default)."""
    return Part(
        lambda config: {ours: entry(config, theirs, default) for ours, (theirs, default) in keys.items()},
        lambda section: {theirs.split()[0]: section[ours] for ours, (theirs, _) in keys.items()},
    )


def agreeing(ours: str, first: str, second: str, default: Any, second_default: Any = None) -> Part:
    """A key for two entries of config.json that must be equal; the second defaults to the first."""

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
    """Offset of RoBERTa's position table, whose rows up to the padding id exist but are unused."""

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
_YARN = {**_LLAMA3, "rotary_low_frequency": "beta_slow", "rotary_high_frequency": "beta_fast"}
_SCALING = {"none": {}, "linear": {"rotary_factor": "factor"}, "llama3": _LLAMA3, "yarn": _YARN}


def rope(fraction: float, partial: bool, base: float = 10000.0) -> Part:
    """Rotary positions: `rope_parameters` (transformers 5), or rope_theta, rope_scaling and rotary_pct of older files.

    Args:
        fraction: share of a head's width that is rotated if the file does not say.
        partial: whether the architecture can rotate a part of a head.
        base: if the file does not say.
    """

    def read(config):
        rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
        kind = rope.get("rope_type", rope.get("type", "default"))
        kind = "none" if kind == "default" else kind
        if kind not in _SCALING or any(isinstance(value, Mapping) for value in rope.values()):
            raise refuse(
                "rope_parameters: rope_type", ["default", "linear", "llama3", "yarn"], rope.get("rope_type", rope)
            )
        if kind == "yarn":
            rope = {**rope, "beta_fast": rope.get("beta_fast") or 32.0, "beta_slow": rope.get("beta_slow") or 1.0}
            for name, usual in {"attention_factor": None, "mscale": None, "truncate": True}.items():
                if rope.get(name) not in (None, usual):
                    raise refuse(f"rope_parameters: {name}", usual, rope[name])
        missing = [name for name in _SCALING[kind].values() if rope.get(name) is None]
        if missing:
            raise InputError(f"config.json: rope_parameters: {kind!r} expected {missing}, got none; add them")
        both = {**config, **rope}
        rotated = float(entry(both, "partial_rotary_factor rotary_pct", fraction))
        if not partial and rotated != 1:
            raise refuse("partial_rotary_factor", 1.0, rotated)
        return {
            "rotary_base": float(entry(both, "rope_theta rotary_emb_base", base)),
            "rotary_fraction": rotated,
            "rotary_scaling": kind,
            **{ours: entry(rope, theirs, configs.type_of(f"model.{ours}")) for ours, theirs in _SCALING[kind].items()},
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


def nullable(ours: str, theirs: str, default: Any) -> Part:
    """A key that null sets to None, while an absent entry means the default."""
    return Part(
        lambda config: {ours: entry(config, theirs, default) if config.get(theirs, default) is not None else None},
        lambda section: {theirs: section[ours]},
    )


def layer_types(window: int) -> Part:
    """Gemma 2's window, which every layer has but each n-th one; in other files every second one is without."""

    def kinds(layers, every):
        return [("full" if every and i % every == 0 else "sliding") + "_attention" for i in range(1, layers + 1)]

    def read(config):
        layers = entry(config, "num_hidden_layers", 26)
        found = entry(config, "layer_types", kinds(layers, 2))
        every = found.index("full_attention") + 1 if "full_attention" in found else None
        if config.get("sliding_window", window) is None or set(found) == {"full_attention"}:
            return {"attention_window": None, "full_attention_every": None}
        if found != kinds(layers, every):
            raise refuse("layer_types", f"full_attention in every n-th layer, e.g. {kinds(layers, 2)}", found)
        return {"attention_window": entry(config, "sliding_window", window), "full_attention_every": every}

    def write(section):
        every = section["full_attention_every"] if section["attention_window"] else 1
        return {
            "sliding_window": section["attention_window"] or window,
            "layer_types": kinds(section["num_layers"], every),
        }

    return Part(read, write)


def _choices(config):
    choices = entry(config, "num_experts_per_tok", 2)
    if choices == 1:  # whose weight is 1 there, and the router's probability here
        raise refuse("num_experts_per_tok", "2 or more", 1)
    return {"experts_per_token": choices}


MIXTRAL_CHOICES = Part(_choices, lambda section: {"num_experts_per_tok": max(section["experts_per_token"], 2)})
# Gemma 2's attention scale is 1 / sqrt(query_pre_attn_scalar), and its factor on the token's row is sqrt(hidden_size).
GEMMA_SCALES = Part(
    lambda config: {
        "attention_scale": entry(config, "query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": entry(config, "hidden_size", 2304) ** 0.5,
    },
    lambda section: {
        "query_pre_attn_scalar": round((section["attention_scale"] or section["head_dim"] ** -0.5) ** -2) or 1
    },
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
    """Tied embeddings, and the factor 1 / sqrt(d_model) on the input of the head; T5 v1.1 uses neither.

    transformers 4 applies the factor if tie_word_embeddings; 5 stores it separately, and ties unless the file has
    two tables.
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


# -- The architectures


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A Hugging Face model_type; defaults are those of its configuration class in transformers.

    Attributes:
        model_class: the transformers class of the model with its language-model head.
        parts: how config.json is read and written; the preset of the same name gives the keys that no part reads.
        only: entries of config.json -> the one supported value, which is also the meaning of an absent entry.
    """

    model_class: str
    parts: tuple[Part, ...]
    only: dict[str, object] = dataclasses.field(default_factory=dict)


def _sizes(vocab_size: int, d_model: int, num_layers: int, num_heads: int, mlp_dim: int) -> dict[str, tuple]:
    """Entries that most architectures share, with the defaults of this one."""
    return {
        "vocab_size": ("vocab_size", vocab_size),
        "d_model": ("hidden_size", d_model),
        "num_layers": ("num_hidden_layers", num_layers),
        "num_heads": ("num_attention_heads", num_heads),
        "mlp_dim": ("intermediate_size", mlp_dim),
    }


_NO_DROPOUT = Part(lambda config: {"dropout": 0.0})
_TIED = renamed(tie_embeddings=("tie_word_embeddings", True))
_UNTIED = renamed(tie_embeddings=("tie_word_embeddings", False))
_MAX_512 = ("max_position_embeddings", 512)
_BERT_PARTS = (
    TOKEN_TYPES,
    renamed(norm_epsilon=("layer_norm_eps", 1e-12)),
    dropout("hidden_dropout_prob", "attention_probs_dropout_prob"),
    _TIED,
)
_BERT_ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
_BART_PARTS = (
    renamed(
        vocab_size=("vocab_size", 50265),
        d_model=("d_model", 1024),
        num_layers=("decoder_layers", 12),
        encoder_layers=("encoder_layers", 12),
        max_len=("max_position_embeddings", 1024),
    ),
    agreeing("num_heads", "decoder_attention_heads", "encoder_attention_heads", 16, 16),
    agreeing("mlp_dim", "decoder_ffn_dim", "encoder_ffn_dim", 4096, 4096),
    EMBEDDING_SCALE,
    activation("activation_function", "gelu"),
    dropout("dropout", "attention_dropout"),
    _TIED,
)
_BART_ONLY = {"is_encoder_decoder": True, "static_position_embeddings": False}

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        (
            renamed(
                vocab_size=("vocab_size", 50257),
                d_model=("n_embd hidden_size", 768),
                num_layers=("n_layer num_hidden_layers", 12),
                num_heads=("n_head num_attention_heads", 12),
                mlp_dim=("n_inner", 0),
                max_len=("n_positions max_position_embeddings", 1024),
                norm_epsilon=("layer_norm_epsilon", 1e-5),
            ),
            activation("activation_function", "gelu_new"),
            dropout("resid_pdrop", "embd_pdrop", "attn_pdrop"),
            _TIED,
        ),
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
    "gpt_neox": Architecture(
        "GPTNeoXForCausalLM",
        (
            renamed(
                **_sizes(50432, 6144, 44, 64, 24576),
                max_len=("max_position_embeddings", 2048),
                norm_epsilon=("layer_norm_eps", 1e-5),
                parallel_block=("use_parallel_residual", True),
            ),
            rope(0.25, partial=True),
            activation("hidden_act", "gelu"),
            dropout("hidden_dropout", "attention_dropout"),
            _UNTIED,
            IS_CAUSAL,
        ),
        {"attention_bias": True},
    ),
    "llama": Architecture(
        "LlamaForCausalLM",
        (
            renamed(
                **_sizes(32000, 4096, 32, 32, 11008),
                num_kv_heads=("num_key_value_heads", 0),
                head_dim=("head_dim", 0),
                max_len=("max_position_embeddings", 2048),
                norm_epsilon=("rms_norm_eps", 1e-6),
            ),
            rope(1.0, partial=False),
            activation("hidden_act", "silu", GATED_NAMES),
            _NO_DROPOUT,
            agreeing("use_bias", "attention_bias", "mlp_bias", False, False),
            _UNTIED,
            IS_CAUSAL,
        ),
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        (
            renamed(
                **_sizes(151936, 4096, 32, 32, 22016),
                head_dim=("head_dim", 128),
                max_len=("max_position_embeddings", 32768),
                norm_epsilon=("rms_norm_eps", 1e-6),
            ),
            nullable("num_kv_heads", "num_key_value_heads", 32),
            rope(1.0, partial=False),
            activation("hidden_act", "silu", GATED_NAMES),
            _NO_DROPOUT,
            _UNTIED,
        ),
        {"attention_bias": False, "use_sliding_window": False, "is_causal": True},
    ),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        (
            renamed(
                **_sizes(256000, 2304, 26, 8, 9216),
                num_kv_heads=("num_key_value_heads", 4),
                head_dim=("head_dim", 256),
                max_len=("max_position_embeddings", 8192),
                norm_epsilon=("rms_norm_eps", 1e-6),
            ),
            layer_types(4096),
            GEMMA_SCALES,
            nullable("attention_softcap", "attn_logit_softcapping", 50.0),
            nullable("logit_softcap", "final_logit_softcapping", 30.0),
            rope(1.0, partial=False),
            activation("hidden_activation", "gelu_pytorch_tanh", GATED_NAMES),
            _NO_DROPOUT,
            _TIED,
        ),
        {"attention_bias": False, "use_bidirectional_attention": False, "is_causal": True},
    ),
    "mixtral": Architecture(
        "MixtralForCausalLM",
        (
            renamed(
                **_sizes(32000, 4096, 32, 32, 14336),
                head_dim=("head_dim", 0),
                num_experts=("num_local_experts num_experts", 8),
                max_len=("max_position_embeddings", 4096 * 32),
                norm_epsilon=("rms_norm_eps", 1e-5),
            ),
            MIXTRAL_CHOICES,
            nullable("num_kv_heads", "num_key_value_heads", 8),
            Part(
                lambda config: {
                    "attention_window": entry(config, "sliding_window", int) if config.get("sliding_window") else None
                },
                lambda section: {"sliding_window": section["attention_window"]},
            ),
            rope(1.0, partial=False, base=1e6),
            activation("hidden_act", "silu", GATED_NAMES),
            _NO_DROPOUT,
            _UNTIED,
        ),
        {"router_jitter_noise": 0.0, "is_causal": True},
    ),
    "bloom": Architecture(
        "BloomForCausalLM",
        (
            renamed(
                vocab_size=("vocab_size", 250880),
                d_model=("hidden_size n_embed", 64),
                num_layers=("n_layer num_hidden_layers", 2),
                num_heads=("n_head num_attention_heads", 8),
                max_len=("seq_length", 2048),
                norm_epsilon=("layer_norm_epsilon", 1e-5),
            ),
            dropout("hidden_dropout", "attention_dropout"),
            _TIED,
        ),
        {"apply_residual_connection_post_layernorm": False},
    ),
    "opt": Architecture(
        "OPTForCausalLM",
        (
            agreeing("d_model", "hidden_size", "word_embed_proj_dim", 768),
            renamed(
                vocab_size=("vocab_size", 50272),
                num_layers=("num_hidden_layers", 12),
                num_heads=("num_attention_heads", 12),
                mlp_dim=("ffn_dim", 3072),
                max_len=("max_position_embeddings", 2048),
            ),
            activation("activation_function", "relu"),
            dropout("dropout", "attention_dropout"),
            _TIED,
        ),
        {
            "do_layer_norm_before": True,
            "_remove_final_layer_norm": False,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
        },
    ),
    "bert": Architecture(
        "BertForMaskedLM",
        (
            renamed(**_sizes(30522, 768, 12, 12, 3072), max_len=_MAX_512),
            activation("hidden_act", "gelu"),
            *_BERT_PARTS,
        ),
        _BERT_ONLY,
    ),
    "roberta": Architecture(
        "RobertaForMaskedLM",
        (
            renamed(**_sizes(50265, 768, 12, 12, 3072)),
            position_offset(512, 1),
            activation("hidden_act", "gelu", EXACT_GELU),  # its head has no other
            *_BERT_PARTS,
        ),
        _BERT_ONLY,
    ),
    "albert": Architecture(
        "AlbertForMaskedLM",
        (
            renamed(**_sizes(30000, 4096, 12, 64, 16384), max_len=_MAX_512),
            embedding_size(128, default_width=4096),
            activation("hidden_act", "gelu_new"),
            *_BERT_PARTS,
        ),
        {**_BERT_ONLY, "num_hidden_groups": 1, "inner_group_num": 1},
    ),
    "distilbert": Architecture(
        "DistilBertForMaskedLM",
        (
            renamed(
                vocab_size=("vocab_size", 30522),
                d_model=("dim hidden_size", 768),
                num_layers=("n_layers num_hidden_layers", 6),
                num_heads=("n_heads num_attention_heads", 12),
                mlp_dim=("hidden_dim", 3072),
                max_len=_MAX_512,
            ),
            activation("activation", "gelu"),
            dropout("dropout", "attention_dropout"),
            _TIED,
        ),
    ),
    "electra": Architecture(
        "ElectraForMaskedLM",
        (
            renamed(**_sizes(30522, 256, 12, 4, 1024), max_len=_MAX_512),
            embedding_size(128),
            *_BERT_PARTS,
            electra_head(),
        ),
        _BERT_ONLY,
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        (
            renamed(
                vocab_size=("vocab_size", 32128),
                d_model=("d_model", 512),
                head_dim=("d_kv", 64),
                mlp_dim=("d_ff", 2048),
                encoder_layers=("num_layers", 6),
                num_layers=("num_decoder_layers num_layers", 6),
                num_heads=("num_heads", 8),
                max_len=("n_positions", 512),
                relative_buckets=("relative_attention_num_buckets", 32),
                relative_max_distance=("relative_attention_max_distance", 128),
                norm_epsilon=("layer_norm_epsilon", 1e-6),
            ),
            T5_ACTIVATION,
            dropout("dropout_rate"),
            t5_head(),
        ),
        {"is_encoder_decoder": True},
    ),
    "bart": Architecture("BartForConditionalGeneration", _BART_PARTS, {**_BART_ONLY, "normalize_before": False}),
    "mbart": Architecture("MBartForConditionalGeneration", _BART_PARTS, {**_BART_ONLY, "normalize_before": True}),
}

# Keys that have no effect unless another key has one of these values; without effect they are as in the presets.
_IDLE = {
    ("position", ("learned",)): ("position_offset",),
    ("position", ("rotary",)): ("rotary_base", "rotary_fraction", "rotary_scaling"),
    ("rotary_scaling", ("linear", "llama3", "yarn")): ("rotary_factor",),
    ("rotary_scaling", ("llama3", "yarn")): ("rotary_low_frequency", "rotary_high_frequency", "rotary_original_len"),
    ("position", ("relative",)): ("relative_buckets", "relative_max_distance"),
}


def read(config: Mapping) -> dict:
    """Returns the model section of a config.json, for float32, in the form of `canonical`.

    Raises:
        InputError: an architecture or option that lmjax cannot represent, named as in config.json; values that do not
            make a model.

    Example: read({"model_type": "gpt2", "n_embd": 8, ...}) = {"family": "decoder", "d_model": 8, "mlp_dim": 32, ...}
    """
    section = interpret(config)
    configs.check_model_keys(ConfigDict(section))
    return section


def interpret(config: Mapping) -> dict:
    """Returns what `read` returns, without checking that the values make a model."""
    name = config.get("model_type")
    if name not in ARCHITECTURES:
        raise InputError(f"config.json: model_type {name!r} is not supported{nearest(str(name), ARCHITECTURES)}")
    spec = ARCHITECTURES[name]
    if config.get("quantization_config"):
        raise refuse("quantization_config", None, config["quantization_config"])
    if config.get("is_causal") is False and name in ("gpt2", "bloom", "opt"):
        raise refuse("is_causal", True, False)
    for option, known in spec.only.items():
        if (value := entry(config, option, known)) != known:
            raise refuse(option, known, value)
    section = {**dict.fromkeys(SIZES), **PRESETS[name], "dtype": "float32", "scan_layers": False, "remat": "none"}
    for part in spec.parts:
        section |= part.read(config)
    for key in ("vocab_size", "d_model", "num_layers", "num_heads"):
        if section[key] < 1:
            raise InputError(f"config.json gives model.{key}: expected 1 or more, got {section[key]}; correct the file")
    return canonical(section)


def write(name: str, section: Mapping) -> dict:
    """Returns config.json of a canonical section for a model_type, without the ids of special tokens.

    It is the inverse of `read` if the architecture can express the section.
    """
    spec = ARCHITECTURES[name]
    config = {"model_type": name, "architectures": [spec.model_class]}
    for part in spec.parts:
        config |= part.write(section)
    return config


def canonical(section: Mapping) -> dict:
    """Returns the section with derived sizes filled in, floats as floats, and keys without effect as in the presets.

    Multipliers of the parametrization become part of logit_scale and attention_scale.

    Example: {"d_model": 8, "num_heads": 2, "head_dim": None, ...} -> {"d_model": 8, "num_heads": 2, "head_dim": 4, ...}
    """
    section = {key: value for key, value in section.items() if key != "options"}  # the Transformers have none
    if not section["head_dim"] and section["d_model"] % section["num_heads"]:
        raise InputError(
            f"config.json: expected a width divisible by the heads, got {section['d_model']} and "
            f"{section['num_heads']} heads; correct the file"
        )
    section["num_kv_heads"] = section["num_kv_heads"] or section["num_heads"]
    section["head_dim"] = section["head_dim"] or section["d_model"] // section["num_heads"]
    section["mlp_dim"] = section["mlp_dim"] or 4 * section["d_model"]
    if section["attention_multiplier"] not in (None, 1.0):
        usual = section["attention_scale"] or section["head_dim"] ** -0.5
        section["attention_scale"] = usual * section["attention_multiplier"]
    section["logit_scale"] *= section["logit_multiplier"] or 1.0
    section |= {"attention_multiplier": None, "logit_multiplier": None, "heads_multiplier": None}
    for factor in ("branch_multiplier", "router_multiplier"):
        section[factor] = None if section[factor] == 1 else section[factor]
    if section["embedding_dim"] == section["d_model"]:
        section["embedding_dim"] = None
    layers = section["num_layers"] if section["family"] == "encoder_decoder" else None
    section["encoder_layers"] = layers and (section["encoder_layers"] or layers)
    if not section["attention_window"] or (section["full_attention_every"] or 0) > section["num_layers"]:
        section["full_attention_every"] = None
    if section["attention_scale"] and section["attention_scale"] == section["head_dim"] ** -0.5:
        section["attention_scale"] = None
    if not section["num_experts"]:
        section |= {name: PRESETS["gpt2"][name] for name in ("experts_per_token", "expert_capacity")}
    for (key, values), idle in _IDLE.items():
        if section[key] not in values:
            section |= {name: PRESETS["gpt2"][name] for name in idle}
    for key, value in section.items():
        if value is not None and configs.type_of(f"model.{key}") is float:
            section[key] = float(value)
    return section

"""Hugging Face config.json <-> the model section of a config: one table per architecture, used in both directions."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax.errors import InputError, nearest
from lmjax.hf.parts import (
    EMBEDDING_SCALE,
    EXACT_GELU,
    GATED_NAMES,
    IS_CAUSAL,
    T5_ACTIVATION,
    TOKEN_TYPES,
    Part,
    activation,
    agreeing,
    dropout,
    electra_head,
    embedding_size,
    entry,
    position_offset,
    refuse,
    renamed,
    rope,
    t5_head,
)
from lmjax.models.presets import PRESETS


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
            Part(lambda config: {"dropout": 0.0}),
            agreeing("use_bias", "attention_bias", "mlp_bias", False, False),
            _UNTIED,
            IS_CAUSAL,
        ),
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
    ("rotary_scaling", ("linear", "llama3")): ("rotary_factor",),
    ("rotary_scaling", ("llama3",)): ("rotary_low_frequency", "rotary_high_frequency", "rotary_original_len"),
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
    section = {**PRESETS[name], "dtype": "float32", "scan_layers": False, "remat": "none"}
    for part in spec.parts:
        section |= part.read(config)
    for key in ("vocab_size", "d_model", "num_layers", "num_heads"):
        if section[key] < 1:
            raise InputError(f"config.json gives model.{key}: expected 1 or more, got {section[key]}; mend the file")
    return canonical(section)


def write(name: str, section: Mapping) -> dict:
    """Returns config.json of a section, the inverse of `read` if the architecture can express the section.

    Args:
        name: a model_type.
        section: as `canonical` gives it.

    Returns:
        Contents of config.json without the ids of special tokens.
    """
    spec = ARCHITECTURES[name]
    config = {"model_type": name, "architectures": [spec.model_class]}
    for part in spec.parts:
        config |= part.write(section)
    return config


def canonical(section: Mapping) -> dict:
    """Returns the section with derived sizes filled in, floats as floats, and keys without effect as in the presets.

    Example: {"d_model": 8, "num_heads": 2, "head_dim": None, ...} -> {"d_model": 8, "num_heads": 2, "head_dim": 4, ...}
    """
    section = dict(section)
    if not section.get("head_dim") and section["d_model"] % section["num_heads"]:
        raise InputError(
            f"config.json: expected a width divisible by the heads, got {section['d_model']} and "
            f"{section['num_heads']} heads; mend the file"
        )
    section["num_kv_heads"] = section.get("num_kv_heads") or section["num_heads"]
    section["head_dim"] = section.get("head_dim") or section["d_model"] // section["num_heads"]
    section["mlp_dim"] = section.get("mlp_dim") or 4 * section["d_model"]
    if section["embedding_dim"] == section["d_model"]:
        section["embedding_dim"] = None
    layers = section["num_layers"] if section["family"] == "encoder_decoder" else None
    section["encoder_layers"] = layers and (section.get("encoder_layers") or layers)
    for (key, values), idle in _IDLE.items():
        if section[key] not in values:
            section |= {name: PRESETS["gpt2"][name] for name in idle}
    for key, value in section.items():
        if value is not None and configs.type_of(f"model.{key}") is float:
            section[key] = float(value)
    return section

"""Published architectures as values of a config's model section: their options, without sizes.

    lmjax train configs/preset.py:llama          (any name below)

lmjax.hf reads and writes the same architectures as Hugging Face folders and starts from these values.
"""

from lmjax.errors import InputError, nearest

# Keys of a model section that no preset has, besides max_len, dropout and the options of execution.
SIZES = ("vocab_size", "d_model", "num_layers", "encoder_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")

# Written out: what an imported model means must not change with the defaults for training.
_NEUTRAL = {
    "embedding_dim": None,
    "embedding_norm": False,
    "embedding_scale": 1.0,
    "token_types": None,
    "position": "learned",
    "position_offset": 0,
    "rotary_base": 10000.0,
    "rotary_fraction": 1.0,
    "rotary_scaling": "none",
    "rotary_factor": 1.0,
    "rotary_low_frequency": 1.0,
    "rotary_high_frequency": 4.0,
    "rotary_original_len": None,
    "relative_buckets": 32,
    "relative_max_distance": 128,
    "norm": "layernorm",
    "norm_position": "pre",
    "norm_epsilon": 1e-5,
    "norm_scale": True,
    "norm_offset": 0.0,
    "parallel_block": False,
    "attention_scale": None,
    "qk_norm": False,
    "attention_window": None,
    "full_attention_every": None,
    "attention_softcap": None,
    "activation": "gelu",
    "num_experts": None,
    "experts_per_token": 2,
    "expert_capacity": 1.25,
    "tie_embeddings": True,
    "head": "plain",
    "head_bias": False,
    "logit_scale": 1.0,
    "logit_softcap": None,
    "logit_multiplier": None,
    "heads_multiplier": None,
    "attention_multiplier": None,
    "branch_multiplier": None,
    "router_multiplier": None,
    "use_bias": True,
    "share_layers": False,
    "ngram_order": 3,
    "ngram_min_count": 1,
}
_DECODER = {**_NEUTRAL, "family": "decoder"}
_LLAMA = {  # Touvron et al., arXiv 2302.13971
    **_DECODER,
    "position": "rotary",
    "norm": "rmsnorm",
    "norm_epsilon": 1e-6,
    "activation": "swiglu",
    "tie_embeddings": False,
    "use_bias": False,
}
_BERT = {  # Devlin et al., arXiv 1810.04805
    **_NEUTRAL,
    "family": "encoder",
    "embedding_norm": True,
    "token_types": 2,
    "norm_position": "post",
    "norm_epsilon": 1e-12,
    "activation": "gelu_exact",
    "head": "transform",
    "head_bias": True,
}
_T5 = {  # Raffel et al., arXiv 1910.10683
    **_NEUTRAL,
    "family": "encoder_decoder",
    "position": "relative",
    "norm": "rmsnorm",
    "norm_epsilon": 1e-6,
    "attention_scale": 1.0,
    "activation": "relu",
    "use_bias": False,
}
_BART = {  # Lewis et al., arXiv 1910.13461
    **_NEUTRAL,
    "family": "encoder_decoder",
    "embedding_norm": True,
    "position_offset": 2,
    "norm_position": "post",
    "activation": "gelu_exact",
    "head_bias": True,
}

PRESETS: dict[str, dict] = {
    "gpt2": _DECODER,  # Radford et al. 2019
    "gpt_neox": {  # Black et al., arXiv 2204.06745
        **_DECODER,
        "position": "rotary",
        "rotary_fraction": 0.25,
        "parallel_block": True,
        "activation": "gelu_exact",
        "tie_embeddings": False,
    },
    "llama": _LLAMA,
    "qwen3": {**_LLAMA, "qk_norm": True},  # Yang et al., arXiv 2505.09388
    "gemma2": {  # Gemma team, arXiv 2408.00118; the factor on embeddings is sqrt(d_model)
        **_LLAMA,
        "norm_position": "both",
        "norm_offset": 1.0,
        "attention_window": 4096,
        "full_attention_every": 2,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "activation": "geglu",
        "tie_embeddings": True,
    },
    "mixtral": {**_LLAMA, "norm_epsilon": 1e-5, "num_experts": 8, "expert_capacity": None},  # arXiv 2401.04088
    "bloom": {**_DECODER, "position": "alibi", "embedding_norm": True},  # BigScience, arXiv 2211.05100
    "opt": {**_DECODER, "position_offset": 2, "activation": "relu"},  # Zhang et al., arXiv 2205.01068
    "bert": _BERT,
    "roberta": {**_BERT, "token_types": 1, "position_offset": 2, "norm_epsilon": 1e-5},  # arXiv 1907.11692
    "albert": {**_BERT, "embedding_dim": 128, "activation": "gelu", "share_layers": True},  # arXiv 1909.11942
    "distilbert": {**_BERT, "token_types": None},  # arXiv 1910.01108
    "electra": {**_BERT, "embedding_dim": 128},  # the generator; arXiv 2003.10555
    "electra_discriminator": {**_BERT, "embedding_dim": 128, "head": "discriminator", "head_bias": False},
    "t5": _T5,
    "t5_v1_1": {**_T5, "activation": "geglu", "tie_embeddings": False},
    "bart": _BART,
    "mbart": {**_BART, "norm_position": "pre"},  # Liu et al., arXiv 2001.08210
}


def preset(name: str, d_model: int) -> dict:
    """Returns the values of model.* that define the architecture, without sizes.

    Args:
        name: one of PRESETS.
        d_model: width of the residual stream. T5 v1.0 divides the last layer's output by its square root, and Gemma 2
            multiplies embeddings by it.

    Raises:
        InputError: unknown name.

    Example: preset("t5", 64)["logit_scale"] = 0.125; preset("llama", 64)["activation"] = "swiglu".
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    scales = {"t5": {"logit_scale": d_model**-0.5}, "gemma2": {"embedding_scale": d_model**0.5}}
    return {**PRESETS[name], **scales.get(name, {})}

"""Small random models of transformers, the oracle of the tests of lmjax.hf: one per architecture and variant.

B batch, T time, S source time, V vocabulary.
"""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from lmjax import losses, models
from lmjax.hf import options, weights

torch.set_num_threads(1)
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

V, PAD = 40, 1
FAST = {"xla_backend_optimization_level": 0}  # halves the time to compile, which is nearly all the time of these tests
_IDS = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 20}
_NEOX = {**_BERT, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}
_LLAMA = {**_BERT, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16}
_T5 = {"d_model": 16, "d_kv": 6, "num_heads": 2, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3}
_T5 |= {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": PAD}
_BART = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 20}
_BART |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
_BART |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 24) | {"decoder_start_token_id": 2}
_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 64}
_MIXTRAL = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_GEMMA2 = {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 6, "sliding_window": 5}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# name -> (class, configuration): one of each architecture, then what options add.
MAIN = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt_neox": ("GPTNeoXForCausalLM", _NEOX),
    "llama": ("LlamaForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", {**_GEMMA2, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "mixtral": ("MixtralForCausalLM", _MIXTRAL),
    "bloom": ("BloomForCausalLM", {"hidden_size": 24, "n_layer": 2, "n_head": 3}),
    "opt": ("OPTForCausalLM", {**_BERT, "ffn_dim": 24}),
    "bert": ("BertForMaskedLM", _BERT),
    "roberta": ("RobertaForMaskedLM", {**_BERT, "max_position_embeddings": 22, "type_vocab_size": 1}),
    "albert": ("AlbertForMaskedLM", {**_BERT, "embedding_size": 8}),
    "distilbert": (
        "DistilBertForMaskedLM",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 20},
    ),
    "electra": ("ElectraForMaskedLM", {**_BERT, "embedding_size": 8}),
    "electra_discriminator": ("ElectraForPreTraining", {**_BERT, "embedding_size": 8}),
    "t5": ("T5ForConditionalGeneration", _T5),
    "t5_v1_1": (
        "T5ForConditionalGeneration",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart": ("BartForConditionalGeneration", _BART),
    "mbart": ("MBartForConditionalGeneration", _BART),
}
VARIANTS = {
    "gpt2_untied": ("GPT2LMHeadModel", {**_GPT2, "tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt2_exact_gelu": ("GPT2LMHeadModel", {**_GPT2, "n_inner": None, "activation_function": "gelu"}),
    "gpt_neox_sequential": (
        "GPTNeoXForCausalLM",
        {**_BERT, "use_parallel_residual": False, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
    ),
    "gpt_neox_linear": (
        "GPTNeoXForCausalLM",
        {**_NEOX, "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
    "gpt_neox_encoder": ("GPTNeoXForCausalLM", {**_NEOX, "is_causal": False}),
    "llama_linear": (
        "LlamaForCausalLM",
        {**_LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "llama3": (
        "LlamaForCausalLM",
        {**_LLAMA, "rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 16}, "head_dim": 8},
    ),
    "llama_yarn": (
        "LlamaForCausalLM",
        {**_LLAMA, "rope_parameters": {**_YARN, "beta_fast": 8.0}, "head_dim": 16},
    ),
    "gemma2_uncapped": (
        "Gemma2ForCausalLM",
        {
            **_GEMMA2,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention"] * 2,
        },
    ),
    "mixtral_window": ("MixtralForCausalLM", {**_MIXTRAL, "sliding_window": 4, "num_experts_per_tok": 3}),
    "llama_biases_tied": (
        "LlamaForCausalLM",
        {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
    ),
    "llama_encoder": ("LlamaForCausalLM", {**_LLAMA, "num_key_value_heads": 4, "is_causal": False}),
    "bloom_4_heads": ("BloomForCausalLM", {"hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "opt_gelu": ("OPTForCausalLM", {**_BERT, "ffn_dim": 24, "activation_function": "gelu"}),
    "bert_untied": ("BertForMaskedLM", {**_BERT, "tie_word_embeddings": False, "type_vocab_size": 3}),
    "bert_tanh_gelu": ("BertForMaskedLM", {**_BERT, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "albert_exact_gelu": ("AlbertForMaskedLM", {**_BERT, "embedding_size": 8, "hidden_act": "gelu"}),
    "electra_one_width": ("ElectraForMaskedLM", {**_BERT, "embedding_size": 16}),
    "electra_discriminator_relu": ("ElectraForPreTraining", {**_BERT, "embedding_size": 8, "hidden_act": "relu"}),
    "t5_tied_unscaled": ("T5ForConditionalGeneration", {**_T5, "scale_decoder_outputs": False}),
    "t5_gated_silu": ("T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-silu"}),
    "t5_tanh_gelu": ("T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gelu_new"}),
    "bart_scaled": ("BartForConditionalGeneration", {**_BART, "scale_embedding": True, "activation_function": "relu"}),
    "mbart_scaled": ("MBartForConditionalGeneration", {**_BART, "scale_embedding": True}),
}
ALL = {**MAIN, **VARIANTS}


def reference(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """Returns the model with noise on every parameter, so that no bias is zero and no norm's scale is one."""
    model_class, values = ALL[name]
    torch.manual_seed(seed)
    config = getattr(transformers, model_class).config_class(**{**_IDS, **values})
    model = getattr(transformers, model_class)._from_config(config, attn_implementation="eager").eval()
    if name == "t5_v1_1":  # transformers 5 builds it tied, and unties it where a file has two tables
        model.lm_head.weight = torch.nn.Parameter(torch.randn(V, 16) * 0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.add_(torch.randn_like(model.final_logits_bias))
    return model


def kind(model) -> str:
    """causal | masked | discriminator | seq2seq"""
    if model.config.is_encoder_decoder:
        return "seq2seq"
    if type(model).__name__ == "ElectraForPreTraining":
        return "discriminator"
    bidirectional = "MaskedLM" in type(model).__name__ or getattr(model.config, "is_causal", True) is False
    return "masked" if bidirectional else "causal"


def config_json(model) -> dict:
    """Returns what save_pretrained would write as config.json."""
    return {**json.loads(model.config.to_json_string(use_diff=False)), "architectures": [type(model).__name__]}


def example(model, length: int = 12) -> dict[str, np.ndarray]:
    """Returns {"inputs", "mask", "labels", ["targets", "target_mask"]}: a full row, one padded right, one padded left.

    The decoder side of a seq2seq model, and BART's source, which has no position ids there, are padded right only.
    """
    rng = np.random.default_rng(0)
    inputs, mask = rng.integers(4, V, (3, length)), np.ones((3, length), np.int64)
    mask[1, -3:] = 0
    if "Bart" in type(model).__name__:
        mask[2, -5:] = 0
    else:
        mask[2, :4] = 0
    out = {"inputs": np.where(mask, inputs, PAD), "mask": mask}
    if kind(model) == "seq2seq":
        targets, target_mask = rng.integers(4, V, (3, length - 3)), np.ones((3, length - 3), np.int64)
        target_mask[1, -2:] = 0
        labels = np.where(target_mask, rng.integers(4, V, target_mask.shape), -100)
        return out | {"targets": np.where(target_mask, targets, PAD), "target_mask": target_mask, "labels": labels}
    if kind(model) == "causal":  # a first token after padding is predicted by none
        labels = np.where(mask * np.pad(mask[:, :-1], ((0, 0), (1, 0))), out["inputs"], -100)
    elif kind(model) == "discriminator":
        labels = rng.integers(0, 2, mask.shape)
    else:
        labels = np.where(mask * (rng.random(mask.shape) < 0.4), rng.integers(4, V, mask.shape), -100)
    return out | {"labels": labels}


def position_ids(mask: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... from each row's first real token on."""
    return np.maximum(np.cumsum(mask, axis=1) - 1, 0)


def torch_results(model, batch, gradients: bool = True) -> tuple[np.ndarray, float, dict[str, np.ndarray]]:
    """Returns (logits, loss, {parameter: gradient}) of transformers; gradients are {} if not asked for."""
    model.zero_grad()
    arguments = {"input_ids": batch["inputs"], "attention_mask": batch["mask"], "labels": batch["labels"]}
    if kind(model) == "seq2seq":
        arguments |= {"decoder_input_ids": batch["targets"], "decoder_attention_mask": batch["target_mask"]}
    elif model.config.model_type not in ("bloom", "opt", "roberta"):  # these find positions themselves
        arguments["position_ids"] = position_ids(batch["mask"])
    shift = kind(model) == "masked" and "MaskedLM" not in type(model).__name__
    labels = arguments.pop("labels") if shift else None
    out = model(**{key: torch.tensor(value) for key, value in arguments.items()})
    loss = out.loss
    if shift:  # a decoder without the causal mask: nothing is shifted
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), torch.tensor(labels).flatten())
    logits = out.logits.detach().float().numpy()
    if not gradients:
        return logits, loss.item(), {}
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return logits, loss.item(), in_files(gradients)


def ours(model) -> tuple[str, dict, dict]:
    """Returns (model_type, section, flat params) of the same model here."""
    config = config_json(model)
    section = options.read(config)
    if model.config.model_type == "t5" and model.lm_head.weight is not model.shared.weight:
        section["tie_embeddings"] = False
    state = in_files({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    return config["model_type"], section, to_flat(config["model_type"], section, state)


def in_files(state: dict) -> dict:
    """Returns {name: array} with the names and tensors of files; in memory, transformers stacks those of experts."""
    found = {}
    for name, array in state.items():
        layer, _, part = name.partition(".mlp.experts.")
        if not part:
            found[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = array
            continue
        for e, matrix in enumerate(array):
            parts = {"w2": matrix} if part == "down_proj" else dict(zip(("w1", "w3"), np.split(matrix, 2), strict=True))
            found |= {f"{layer}.block_sparse_moe.experts.{e}.{key}.weight": x for key, x in parts.items()}
    return found


def to_flat(name, section, state) -> dict[str, np.ndarray]:
    """Returns our flat tree of published tensors; zeros where there is none."""
    flat = {path: np.zeros(shape, np.float32) for path, shape in weights.shapes(section).items()}
    for tensor in weights.tensors(name, section):
        for spelling in (s for expected in tensor.names for s in weights.spellings(name, expected)):
            if spelling in state:
                tensor.put(flat, state[spelling])
                break
    return flat


def our_batch(model, batch) -> dict[str, jax.Array]:
    """Returns the batch as our models take it."""
    mask = batch["mask"]
    if kind(model) == "seq2seq":
        out = {"encoder_inputs": batch["inputs"], "encoder_segment_ids": mask}
        out |= {"inputs": batch["targets"], "segment_ids": batch["target_mask"]}
    else:
        out = {"inputs": batch["inputs"], "segment_ids": mask, "positions": position_ids(mask)}
    return {key: jnp.asarray(value, jnp.int32) for key, value in out.items()}


def our_results(section, flat, model, batch, gradients: bool = True, compiler_options: dict = FAST):
    """Returns (logits, loss, {path: gradient}) of our model in one compilation; gradients are {} if not asked for."""
    module = models.build(ConfigDict({**section, "scan_layers": True}))  # one block to compile instead of five
    labels = batch["labels"]
    if kind(model) == "causal":
        labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    known = jnp.asarray(labels >= 0, jnp.float32)
    targets = jnp.asarray(np.maximum(labels, 0), jnp.int32)

    def loss(params, inputs):
        logits_BTV = module.apply({"params": params}, inputs)
        if section["head"] == "discriminator":
            logits_BT = logits_BTV[..., 0]
            nats_BT = jnp.logaddexp(0.0, logits_BT) - logits_BT * targets
            mask = jnp.asarray(batch["mask"], jnp.float32)
            return jnp.sum(nats_BT * mask) / jnp.sum(mask), logits_BT
        return losses.chunked_sums(logits_BTV, targets, known, 0.0)[0] / jnp.sum(known), logits_BTV

    params, inputs = weights.unflatten(flat), our_batch(model, batch)
    if not gradients:
        value, logits = jax.jit(loss, compiler_options=compiler_options)(params, inputs)
        return np.asarray(logits.astype(jnp.float32)), float(value), {}
    both = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=compiler_options)
    (value, logits), tree = both(params, inputs)
    return np.asarray(logits), float(value), {path: np.asarray(leaf) for path, leaf in weights.flatten(tree).items()}


def valid(model, batch) -> np.ndarray:
    """Returns [B, T] bool: the positions whose logits mean anything."""
    return batch["target_mask" if kind(model) == "seq2seq" else "mask"] > 0


def distance(got: np.ndarray, expected: np.ndarray, floor: float = 0.0) -> float:
    """Returns the largest difference, relative to the largest expected value (at least `floor`)."""
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), floor))

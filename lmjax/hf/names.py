"""Hugging Face tensor names <-> paths in the lmjax parameter tree, one table per architecture for both directions.

Each table is a function of the model section (tied or not, gated or not) and of the path of the stack: "stack" in a
decoder, "encoder/stack" in an encoder. weights.py drops rows whose paths the section's tree lacks, such as biases.
"""

import dataclasses
from collections.abc import Mapping

from lmjax.models.layers import GATED


@dataclasses.dataclass(frozen=True)
class Row:
    """One Hugging Face tensor, or one per layer if its name contains {i}.

    Attributes:
        theirs: its name, followed by the names of tensors that are tied to it and may also be in the file.
        ours: paths in the lmjax tree; several if the Hugging Face tensor fuses them.
        layout: key of weights.LAYOUTS.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    layout: str = "same"


def _table(ours: str, *theirs: str) -> list[Row]:
    return [Row(theirs, (ours,))]


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row((f"{theirs}.weight",), (f"{ours}/scale",)), Row((f"{theirs}.bias",), (f"{ours}/bias",))]


def _dense(theirs: str, *ours: str, weight: str = "transposed", bias: str = "same") -> list[Row]:
    return [
        Row((f"{theirs}.weight",), tuple(f"{path}/kernel" for path in ours), weight),
        Row((f"{theirs}.bias",), tuple(f"{path}/bias" for path in ours), bias),
    ]


def _fused(attention: str) -> tuple[str, ...]:
    return tuple(f"{attention}/{name}" for name in ("query", "key", "value"))


def _attention(theirs: str, ours: str, names: str) -> list[Row]:
    """Four dense layers; `names` are the Hugging Face names of query, key, value and out."""
    pairs = zip(names.split(), ("query", "key", "value", "out"), strict=True)
    return [row for name, part in pairs for row in _dense(f"{theirs}{name}", f"{ours}/{part}")]


def _embedding(section: Mapping, table: str, head: str, *others: str) -> list[Row]:
    """The token table, and the output projection, tied to it or not."""
    if section["tie_embeddings"]:
        return [Row((table, head, *others), ("embedding/embedding",))]
    return [Row((table, *others), ("embedding/embedding",)), Row((head,), ("embedding/head",), "transposed")]


def _head_bias(section: Mapping, head: str) -> list[Row]:
    """The bias per id; a second name of it is tied when the tables are, else the first one is not used there."""
    names = (f"{head}.bias", f"{head}.decoder.bias")
    return [Row(names if section["tie_embeddings"] else names[1:], ("embedding/head_bias",))]


def _gpt2(section, trunk):
    layer = f"{trunk}/layers"
    return [
        *_embedding(section, "transformer.wte.weight", "lm_head.weight"),
        *_table("embedding/positions", "transformer.wpe.weight"),
        *_norm("transformer.h.{i}.ln_1", f"{layer}/self_attention_norm"),
        *_dense(
            "transformer.h.{i}.attn.c_attn",
            *_fused(f"{layer}/self_attention"),
            weight="side_by_side",
            bias="side_by_side",
        ),
        *_dense("transformer.h.{i}.attn.c_proj", f"{layer}/self_attention/out", weight="same"),
        *_norm("transformer.h.{i}.ln_2", f"{layer}/feed_forward_norm"),
        *_dense("transformer.h.{i}.mlp.c_fc", f"{layer}/feed_forward/up", weight="same"),
        *_dense("transformer.h.{i}.mlp.c_proj", f"{layer}/feed_forward/down", weight="same"),
        *_norm("transformer.ln_f", f"{trunk}/final_norm"),
    ]


def _gpt_neox(section, trunk):
    layer = f"{trunk}/layers"
    return [
        *_embedding(section, "gpt_neox.embed_in.weight", "embed_out.weight"),
        *_fused_block("gpt_neox.layers.{i}", "attention", layer),
        *_norm("gpt_neox.final_layer_norm", f"{trunk}/final_norm"),
    ]


def _bloom(section, trunk):
    layer = f"{trunk}/layers"
    return [
        *_embedding(section, "transformer.word_embeddings.weight", "lm_head.weight"),
        *_norm("transformer.word_embeddings_layernorm", "embedding/norm"),
        *_fused_block("transformer.h.{i}", "self_attention", layer),
        *_norm("transformer.ln_f", f"{trunk}/final_norm"),
    ]


def _fused_block(block, attention, layer):
    """What GPT-NeoX and BLOOM share."""
    return [
        *_norm(f"{block}.input_layernorm", f"{layer}/self_attention_norm"),
        *_dense(
            f"{block}.{attention}.query_key_value", *_fused(f"{layer}/self_attention"), weight="by_head", bias="by_head"
        ),
        *_dense(f"{block}.{attention}.dense", f"{layer}/self_attention/out"),
        *_norm(f"{block}.post_attention_layernorm", f"{layer}/feed_forward_norm"),
        *_dense(f"{block}.mlp.dense_h_to_4h", f"{layer}/feed_forward/up"),
        *_dense(f"{block}.mlp.dense_4h_to_h", f"{layer}/feed_forward/down"),
    ]


def _llama(section, trunk):
    layer = f"{trunk}/layers"
    return [
        *_embedding(section, "model.embed_tokens.weight", "lm_head.weight"),
        *_norm("model.layers.{i}.input_layernorm", f"{layer}/self_attention_norm"),
        *_attention("model.layers.{i}.self_attn.", f"{layer}/self_attention", "q_proj k_proj v_proj o_proj"),
        *_norm("model.layers.{i}.post_attention_layernorm", f"{layer}/feed_forward_norm"),
        *_dense("model.layers.{i}.mlp.gate_proj", f"{layer}/feed_forward/gate"),
        *_dense("model.layers.{i}.mlp.up_proj", f"{layer}/feed_forward/up"),
        *_dense("model.layers.{i}.mlp.down_proj", f"{layer}/feed_forward/down"),
        *_norm("model.norm", f"{trunk}/final_norm"),
    ]


def _opt(section, trunk):
    return [
        *_embedding(section, "model.decoder.embed_tokens.weight", "lm_head.weight"),
        *_table("embedding/positions", "model.decoder.embed_positions.weight"),
        *_fairseq_block("model.decoder.layers.{i}", f"{trunk}/layers", cross=False),
        *_norm("model.decoder.final_layer_norm", f"{trunk}/final_norm"),
    ]


def _fairseq_block(block, layer, cross):
    """What OPT, BART and mBART share."""
    names = "q_proj k_proj v_proj out_proj"
    rows = [
        *_norm(f"{block}.self_attn_layer_norm", f"{layer}/self_attention_norm"),
        *_attention(f"{block}.self_attn.", f"{layer}/self_attention", names),
        *_norm(f"{block}.final_layer_norm", f"{layer}/feed_forward_norm"),
        *_dense(f"{block}.fc1", f"{layer}/feed_forward/up"),
        *_dense(f"{block}.fc2", f"{layer}/feed_forward/down"),
    ]
    if cross:
        rows += _norm(f"{block}.encoder_attn_layer_norm", f"{layer}/cross_attention_norm")
        rows += _attention(f"{block}.encoder_attn.", f"{layer}/cross_attention", names)
    return rows


def _bart(section, trunk):
    tables = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    rows = [
        *_embedding(section, "model.shared.weight", "lm_head.weight", *tables),
        Row(("final_logits_bias",), ("embedding/head_bias",), "row"),
    ]
    for side, prefix, stack in (("encoder", "encoder_", "encoder/stack"), ("decoder", "", "decoder")):
        rows += [
            *_table(f"embedding/{prefix}positions", f"model.{side}.embed_positions.weight"),
            *_norm(f"model.{side}.layernorm_embedding", f"embedding/{prefix}norm"),
            *_fairseq_block(f"model.{side}.layers.{{i}}", f"{stack}/layers", cross=side == "decoder"),
            *_norm(f"model.{side}.layer_norm", f"{stack}/final_norm"),
        ]
    return rows


def _t5(section, trunk):
    gated = section["activation"] in GATED
    tables = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    rows = _embedding(section, "shared.weight", "lm_head.weight", *tables)
    for side, stack, bias, last in (
        ("encoder", "encoder/stack", "encoder/position_bias", 1),
        ("decoder", "decoder", "decoder_position_bias", 2),
    ):
        block, layer = f"{side}.block.{{i}}.layer", f"{stack}/layers"
        first = f"{side}.block.0.layer.0.SelfAttention"
        rows += [
            *_table(f"{bias}/relative_bias", f"{first}.relative_attention_bias.weight"),
            *_norm(f"{block}.0.layer_norm", f"{layer}/self_attention_norm"),
            *_attention(f"{block}.0.SelfAttention.", f"{layer}/self_attention", "q k v o"),
            *_norm(f"{block}.{last}.layer_norm", f"{layer}/feed_forward_norm"),
            *_dense(f"{block}.{last}.DenseReluDense.wi_0", f"{layer}/feed_forward/gate"),
            *_dense(f"{block}.{last}.DenseReluDense.{'wi_1' if gated else 'wi'}", f"{layer}/feed_forward/up"),
            *_dense(f"{block}.{last}.DenseReluDense.wo", f"{layer}/feed_forward/down"),
            *_norm(f"{side}.final_layer_norm", f"{stack}/final_norm"),
        ]
    rows += _norm("decoder.block.{i}.layer.1.layer_norm", "decoder/layers/cross_attention_norm")
    rows += _attention("decoder.block.{i}.layer.1.EncDecAttention.", "decoder/layers/cross_attention", "q k v o")
    return rows


def _bert_trunk(base, layer):
    block = f"{base}.encoder.layer.{{i}}"
    return [
        *_table("embedding/positions", f"{base}.embeddings.position_embeddings.weight"),
        *_table("embedding/token_types", f"{base}.embeddings.token_type_embeddings.weight"),
        *_norm(f"{base}.embeddings.LayerNorm", "embedding/norm"),
        *_attention(f"{block}.attention.", f"{layer}/self_attention", "self.query self.key self.value output.dense"),
        *_norm(f"{block}.attention.output.LayerNorm", f"{layer}/self_attention_norm"),
        *_dense(f"{block}.intermediate.dense", f"{layer}/feed_forward/up"),
        *_dense(f"{block}.output.dense", f"{layer}/feed_forward/down"),
        *_norm(f"{block}.output.LayerNorm", f"{layer}/feed_forward_norm"),
    ]


def _bert(section, trunk):
    head = "cls.predictions"
    return [
        *_embedding(section, "bert.embeddings.word_embeddings.weight", f"{head}.decoder.weight"),
        *_bert_trunk("bert", f"{trunk}/layers"),
        *_dense(f"{head}.transform.dense", "embedding/transform"),
        *_norm(f"{head}.transform.LayerNorm", "embedding/transform_norm"),
        *_head_bias(section, head),
    ]


def _roberta(section, trunk):
    return [
        *_embedding(section, "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
        *_bert_trunk("roberta", f"{trunk}/layers"),
        *_dense("lm_head.dense", "embedding/transform"),
        *_norm("lm_head.layer_norm", "embedding/transform_norm"),
        *_head_bias(section, "lm_head"),
    ]


def _electra(section, trunk):
    return [
        *_embedding(section, "electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
        *_bert_trunk("electra", f"{trunk}/layers"),
        *_dense("electra.embeddings_project", "embedding/projection"),
        *_dense("generator_predictions.dense", "embedding/transform"),
        *_norm("generator_predictions.LayerNorm", "embedding/transform_norm"),
        *_table("embedding/head_bias", "generator_lm_head.bias"),
    ]


def _electra_discriminator(section, trunk):
    return [
        *_table("embedding/embedding", "electra.embeddings.word_embeddings.weight"),
        *_bert_trunk("electra", f"{trunk}/layers"),
        *_dense("electra.embeddings_project", "embedding/projection"),
        *_dense("discriminator_predictions.dense", "embedding/transform"),
        *_dense("discriminator_predictions.dense_prediction", "embedding/discriminator"),
    ]


def _albert(section, trunk):
    block, layer = "albert.encoder.albert_layer_groups.0.albert_layers.0", f"{trunk}/layers"
    return [
        *_embedding(section, "albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
        *_table("embedding/positions", "albert.embeddings.position_embeddings.weight"),
        *_table("embedding/token_types", "albert.embeddings.token_type_embeddings.weight"),
        *_norm("albert.embeddings.LayerNorm", "embedding/norm"),
        *_dense("albert.encoder.embedding_hidden_mapping_in", "embedding/projection"),
        *_attention(f"{block}.attention.", f"{layer}/self_attention", "query key value dense"),
        *_norm(f"{block}.attention.LayerNorm", f"{layer}/self_attention_norm"),
        *_dense(f"{block}.ffn", f"{layer}/feed_forward/up"),
        *_dense(f"{block}.ffn_output", f"{layer}/feed_forward/down"),
        *_norm(f"{block}.full_layer_layer_norm", f"{layer}/feed_forward_norm"),
        *_dense("predictions.dense", "embedding/transform"),
        *_norm("predictions.LayerNorm", "embedding/transform_norm"),
        *_head_bias(section, "predictions"),
    ]


def _distilbert(section, trunk):
    block, layer = "distilbert.transformer.layer.{i}", f"{trunk}/layers"
    return [
        *_embedding(section, "distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
        *_table("embedding/positions", "distilbert.embeddings.position_embeddings.weight"),
        *_norm("distilbert.embeddings.LayerNorm", "embedding/norm"),
        *_attention(f"{block}.attention.", f"{layer}/self_attention", "q_lin k_lin v_lin out_lin"),
        *_norm(f"{block}.sa_layer_norm", f"{layer}/self_attention_norm"),
        *_dense(f"{block}.ffn.lin1", f"{layer}/feed_forward/up"),
        *_dense(f"{block}.ffn.lin2", f"{layer}/feed_forward/down"),
        *_norm(f"{block}.output_layer_norm", f"{layer}/feed_forward_norm"),
        *_dense("vocab_transform", "embedding/transform"),
        *_norm("vocab_layer_norm", "embedding/transform_norm"),
        *_table("embedding/head_bias", "vocab_projector.bias"),
    ]


ROWS = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "bloom": _bloom,
    "opt": _opt,
    "bert": _bert,
    "roberta": _roberta,
    "albert": _albert,
    "distilbert": _distilbert,
    "electra": _electra,
    "t5": _t5,
    "bart": _bart,
    "mbart": _bart,
}


def rows(name: str, section: Mapping) -> list[Row]:
    """Returns the rows of a model_type for a model section."""
    trunk = "stack" if section["family"] == "decoder" else "encoder/stack"
    table = _electra_discriminator if section["head"] == "discriminator" else ROWS[name]
    return table(section, trunk)

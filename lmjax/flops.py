"""Parameter and FLOP counts of a model, from shapes alone, for all three families.

N, in parameters; n_total = n_embedding + n_head + n_non_embedding counts every parameter once, a tied table once:
    n_embedding      tables of tokens, positions and token types, with their norm and projection
    n_head           untied output projection and other parameters between the last layer and the logits
    n_non_embedding  the rest (Kaplan's N, arXiv 2001.08361) = n_encoder + n_decoder; cross-attention is in the decoder
    n_matmul_head    parameters in matrix products: n_non_embedding, n_head and a tied table
C, in FLOPs: a multiply-add is 2 FLOPs. Only matrix products count. Attention scores count over the full T x S square,
as the plain kernel computes them, also those that a causal mask or a window hides. The backward pass costs twice the
forward pass, but there is none of drawing tokens; recomputation (remat) does not count. `flops_6nd` is 6 n_total D
(arXiv 2203.15556) with D the source tokens. An n-gram model counts every predicted token once in each order, and each
of these counts as one FLOP, for want of matrix products.
Experts count as training computes them: every slot of their capacity, filled or not. n_active counts the parameters
that one token uses, experts_per_token of the num_experts; `flops_6nd_active` is 6 n_active D.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from lmjax.errors import InputError
from lmjax.losses import CHUNK_BYTES, by_head
from lmjax.models import activations, can_score, draws, plain_shapes
from lmjax.models.experts import capacity
from lmjax.models.layers import GATED
from lmjax.models.stack import UNROLLED

HEAD = ("head", "head_bias", "transform", "transform_norm", "discriminator")  # parameters of Embedding


def parameter_counts(params: Any) -> dict[str, int]:
    """Returns the counts listed above for a parameter tree (arrays or shapes); 0 for a stack the model lacks."""
    counts = dict.fromkeys(("n_embedding", "n_head", "n_non_embedding", "n_encoder", "n_decoder"), 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size, part = int(np.prod(leaf.shape)), "n_non_embedding"
        if path[0].key == "embedding":
            part = "n_head" if path[1].key in HEAD else "n_embedding"
        elif path[0].key == "heads":
            part = "n_head"
        else:
            counts["n_encoder" if path[0].key.startswith("encoder") else "n_decoder"] += size
        counts[part] += size
    embedding, tied = params.get("embedding", {}), 0
    if "embedding" in embedding and not {"head", "discriminator"} & set(embedding):
        tied = int(np.prod(embedding["embedding"].shape))
    total = counts["n_embedding"] + counts["n_head"] + counts["n_non_embedding"]
    return {"n_total": total, **counts, "n_matmul_head": counts["n_non_embedding"] + counts["n_head"] + tied}


def table_counts(n_total: int) -> dict[str, int]:
    """Returns the counts of a model without embedding, head or matrix products, such as an n-gram model."""
    names = ("n_embedding", "n_head", "n_encoder", "n_matmul_head")
    return {"n_total": n_total, "n_non_embedding": n_total, "n_decoder": n_total, **dict.fromkeys(names, 0)}


def active_parameters(params: Any, model: Mapping) -> int:
    """Returns the parameters that one token uses: all but those of the experts that it is not sent to.

    Args:
        params: arrays or shapes.
        model: a resolved model section.

    Example: 4 experts of 100 parameters, 2 per token, and 50 other parameters: 250 of 450.
    """
    experts, total = 0, 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        size = int(np.prod(leaf.shape))
        total += size
        experts += size if path[-3:][0].key == "feed_forward" and path[-1].key == "kernel" else 0
    if not model["num_experts"]:
        return total
    return total - experts // model["num_experts"] * (model["num_experts"] - model["experts_per_token"])


def expert_parameters(model: Mapping) -> int:
    """Returns the parameters of all experts of all layers of a resolved model section (of one stack in ELECTRA).

    Example: 2 layers, 4 experts, d_model 8, mlp_dim 32, gelu: 2 x 4 x 2 x 8 x 32 = 4096.
    """
    stacks = ["num_layers"] + ["encoder_layers"] * (model["family"] == "encoder_decoder")
    layers = sum(1 if model["share_layers"] else model[name] for name in stacks)
    matrices = 3 if model["activation"] in GATED else 2
    return layers * (model["num_experts"] or 0) * matrices * model["d_model"] * model["mlp_dim"]


def forward_flops(model: Mapping, lengths: Mapping[str, int]) -> dict[str, int]:
    """Returns the FLOPs of the forward pass of one row (a sequence), by component.

    Args:
        model: a resolved model section.
        lengths: {"inputs": T} and, for an encoder-decoder, {"encoder_inputs": S}. Encoder layers see S tokens, decoder
            layers T, cross-attention keys and values S, its queries T.

    Returns:
        {"projections", "scores", "feed_forward", "head"} in FLOPs.

    Example: d_model 4, one head of width 4, mlp_dim 16, 1 layer, 8 ids, T = 2: projections 2*2*4*16 = 256,
        scores 2*2*(2*2)*4 = 64, feed_forward 2*2*2*4*16 = 512, head 2*2*4*8 = 128.
    """
    T, S = lengths["inputs"], lengths.get("encoder_inputs", 0)
    D, F = model["d_model"], model["mlp_dim"]
    H, G = model["num_heads"] * model["head_dim"], model["num_kv_heads"] * model["head_dim"]
    matrices = 3 if model["activation"] in GATED else 2

    def attention(queries, keys):
        projections = 2 * D * (queries * 2 * H + keys * 2 * G)  # query and out; key and value
        return projections, 2 * 2 * queries * keys * H

    def feed_forward(tokens):
        if not model["num_experts"]:
            return 2 * tokens * matrices * D * F
        slots = model["num_experts"] * capacity(model, tokens)
        return 2 * slots * matrices * D * F + 2 * tokens * D * model["num_experts"]

    E = model["embedding_dim"] or D
    head = {
        "plain": D * model["vocab_size"],
        "transform": D * E + E * model["vocab_size"],
        "discriminator": D * D + D,
    }
    embedding = 0 if E == D else 2 * (T + S) * E * D
    out = {"projections": embedding, "scores": 0, "feed_forward": 0, "head": 2 * T * head[model["head"]]}
    blocks = [(model["num_layers"], attention(T, T), feed_forward(T))]
    if model["family"] == "encoder_decoder":
        blocks.append((model["encoder_layers"], attention(S, S), feed_forward(S)))
        blocks.append((model["num_layers"], attention(T, S), 0))
    for layers, (projections, scores), mlp in blocks:
        out["projections"] += layers * projections
        out["scores"] += layers * scores
        out["feed_forward"] += layers * mlp
    return out


def row_flops(model: nn.Module, lengths: Mapping[str, int], batch: Mapping, heads: Sequence[Any]) -> dict[str, int]:
    """Returns the FLOPs of the forward pass of one row of any model, by component; "drawing" has no backward pass.

    Args:
        model: from `models.build`. A model of your own has a function `flops`, or its traced program is counted.
        lengths: as in `forward_flops`.
        batch: rows, as from the pipeline.
        heads: of the objective.

    Raises:
        InputError: a loop whose length the traced program does not tell.
    """
    config, own = model.config, getattr(type(model), "flops", None)
    if own is None and config.family not in ("decoder", "encoder", "encoder_decoder"):
        return _traced(model, batch)
    out = dict(own(config, lengths) if own else forward_flops(config, lengths))
    if not any(head.name == "lm" for head in heads):
        out.pop("head", None)
    T, D = lengths["inputs"], config.d_model

    def width(head):
        if head.kind == "tokens":
            return T * (head.classes or config.vocab_size)
        return {"row": head.classes, "span": 2 * T, "value": 1}[head.kind]

    others = sum(2 * D * width(head) for head in heads if head.name != "lm")
    return {**out, "other heads": others} if others else out


def training_flops(parts: Mapping[str, int]) -> int:
    """Returns the FLOPs of the forward and backward pass of a row, from the components of `row_flops`.

    Example: {"matrix products": 100, "drawing": 10}: 3 x 100 + 10 = 310.
    """
    return 3 * sum(parts.values()) - 2 * parts.get("drawing", 0)


def _traced(model, batch):
    """FLOPs of the matrix products in the forward pass of one row, from the traced program.

    A model that draws tokens computes the logits of its head lm once more for that, without a gradient.
    """
    row = {name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in batch.items()}

    def outputs(params, row):  # as in training, where experts have a capacity
        keys = {"dropout": jax.random.key(0)}
        return by_head(model.apply({"params": params}, row, deterministic=False, project=False, rngs=keys))

    def products(function, *arguments):
        return dot_flops(jax.make_jaxpr(function)(*arguments).jaxpr)

    def logits(outputs):
        return {name: x.logits() if hasattr(x, "logits") else x for name, x in outputs.items()}

    arguments = plain_shapes(model, row), row
    total = products(lambda *given: logits(outputs(*given)), *arguments)
    if not draws(model.config.family):
        return {"matrix products": total}
    drawing = products(lambda lm: logits({"lm": lm}), jax.eval_shape(outputs, *arguments)["lm"])
    return {"matrix products": total - drawing, "drawing": drawing}


def dot_flops(jaxpr: Any) -> int:
    """Returns 2 x the multiply-adds of every dot_general of a traced program; the body of a scan counts by its length.

    Raises:
        InputError: the program has a loop of unknown length.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, inner = equation.primitive.name, [dot_flops(each) for each in jaxprs_in_params(equation.params)]
        if name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contract)
        if name == "while" and sum(inner):
            raise InputError(
                "FLOPs: expected loops of known length (jax.lax.scan), got a while loop with matrix products; give the "
                "model a function flops(config, lengths)"
            )
        repeats = equation.params.get("length", 1) if name == "scan" else 1
        # The branches of a choice by platform are alternatives.
        total += max(inner) if name == "cond" else repeats * sum(inner)
    return total


def memory_bytes(
    n_total: int,
    model: Mapping,
    lengths: Mapping[str, int],
    rows: float,
    moments: int,
    flash: bool = False,
    platform: str = "cpu",
) -> dict[str, int]:
    """Returns an estimate of a training step's memory on one device, by part, in bytes.

    Args:
        n_total: parameters on the device (float32).
        model: a resolved model section.
        lengths: row lengths, as in `forward_flops`.
        rows: rows of one micro-batch over the devices that share its activations.
        moments: optimizer arrays per parameter (2 for AdamW).
        flash: all layers use a flash attention kernel, which keeps no attention weights.
        platform: cpu | gpu | tpu, which decides whether layers are looped.

    Activations count what the backward pass reads. Unrolled layers keep about 10 D + 3 F values of the compute type per
    token and recompute the rest; looped layers keep all that differentiation saves, 12 D + 6 F, of which D in the
    norms is float32. Plain attention keeps its weights as well, in float32 and in the compute type. Cross-attention
    counts its weights only. With remat a layer keeps only its input ("full") or also the outputs of its dense layers
    ("dots"), and one layer at a time is recomputed. Logits are those of one chunk of the loss in float32; gradients
    take their memory afterwards, so only what exceeds it counts. Of an n-gram model: its tables, and the counts they
    are made of. Other models say what they keep (`activations` of their module).
    """
    if model["family"] == "ngram":
        return {"parameters": 8 * n_total, "counts": 16 * n_total}
    T, S = lengths["inputs"], lengths.get("encoder_inputs", 0)
    D, F, H = model["d_model"], model["mlp_dim"], model["num_heads"]
    if model["num_experts"]:
        F = F * model["num_experts"] * capacity(model, T) // T  # of the slots that a token has
    dense = 6 * D + F * (2 if model["activation"] in GATED else 1)  # input, q, k, v, attention output, down; up (gate)
    kept = {"none": 0, "dots": dense, "full": D}[model["remat"]]
    width = 2 if model["dtype"] == "bfloat16" else 4
    score = 0 if flash else 1 if width == 4 else 3  # values per attention weight

    def stack(layers, tokens, squares):
        layer = tokens * (10 * D + 3 * F) + H * squares * score
        if model["remat"] != "none":
            return layers * tokens * kept + layer
        looped = model["scan_layers"] or (platform != "cpu" and layers > UNROLLED)
        return layers * (tokens * (12 * D + 6 * F) + H * squares * score if looped else layer)

    if (kept_bytes := activations(model, lengths)) is None:
        kept_bytes = width * stack(model["num_layers"], T, T * T + T * S)
        kept_bytes += width * stack(model["encoder_layers"], S, S * S) if S else 0
    logits = 4 * rows * T * model["vocab_size"] if can_score(model["family"]) else 0
    return {
        "parameters": 4 * n_total,
        "optimizer": 4 * moments * n_total,
        "gradients": 4 * n_total,
        "activations": round(rows * kept_bytes),
        "logits": max(min(round(logits), CHUNK_BYTES) - 4 * n_total, 0),
    }

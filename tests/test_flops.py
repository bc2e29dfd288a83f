"""Guards against wrong counts: parameters by hand formulas, FLOPs by the traced program and XLA, remat's memory."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lmjax import flops, models
from lmjax.hf import options
from lmjax.models import parameter_shapes
from lmjax.models.layers import ACTIVATIONS, GATED
from lmjax.objectives import OBJECTIVES, merge_options
from tests.test_models import model_config

CASES = [
    ("decoder", {}),
    ("decoder", {"activation": "swiglu", "tie_embeddings": False, "num_kv_heads": 4}),
    ("encoder", {"position": "relative", "use_bias": True}),
    ("encoder_decoder", {"encoder_layers": 3, "num_layers": 2}),
    ("encoder", {"embedding_dim": 8, "head": "transform", "head_bias": True, "token_types": 2, "use_bias": True}),
    ("encoder", {"head": "discriminator", "use_bias": True, "embedding_norm": True}),
    ("decoder", {"qk_norm": True, "attention_softcap": 5.0, "logit_softcap": 3.0}),
    ("decoder", {"attention_window": 4, "full_attention_every": 2, "rotary_scaling": "yarn", "rotary_original_len": 4}),
]


def shapes(family, T, S):
    batch = {"inputs": np.zeros((1, T), np.int32)}
    return {**batch, "encoder_inputs": np.zeros((1, S), np.int32)} if family == "encoder_decoder" else batch


@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_flops_equal_the_traced_program(family, overrides):
    """Exact: every matrix product of the forward pass, and 3 x of forward and backward."""
    config = model_config(family=family, **overrides)
    model = models.build(ConfigDict(config))
    batch = shapes(family, 8, 11)
    params = nn.unbox(parameter_shapes(model, batch))
    lengths = {name: array.shape[1] for name, array in batch.items()}
    forward = jax.make_jaxpr(lambda p: model.apply({"params": p}, batch))(params)
    assert flops.dot_flops(forward.jaxpr) == sum(flops.forward_flops(config, lengths).values())
    both = jax.make_jaxpr(jax.grad(lambda p: model.apply({"params": p}, batch).sum()))(params)
    assert flops.dot_flops(both.jaxpr) == 3 * flops.dot_flops(forward.jaxpr)
    assert flops.forward_flops(config, lengths)["scores"] > 0


EXPERTS = {"num_experts": 8, "experts_per_token": 2, "expert_capacity": 1.25, "activation": "swiglu"}


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_flops_of_experts_equal_the_traced_training_step(family):
    """Exact: the router's product and every slot; with as many slots as choices, those of experts_per_token layers."""
    config = model_config(family=family, **EXPERTS)
    model, batch = models.build(ConfigDict(config)), shapes(family, 8, 11)
    params = nn.unbox(parameter_shapes(model, batch))
    lengths = {name: array.shape[1] for name, array in batch.items()}
    step = jax.make_jaxpr(jax.grad(lambda p: model.apply({"params": p}, batch, deterministic=False).sum()))(params)
    assert flops.dot_flops(step.jaxpr) == 3 * sum(flops.forward_flops(config, lengths).values())
    counted = flops.forward_flops(config, {"inputs": 8, "encoder_inputs": 8})["feed_forward"]
    even = flops.forward_flops({**config, "expert_capacity": 1.0}, {"inputs": 8, "encoder_inputs": 8})["feed_forward"]
    dense = flops.forward_flops({**config, "num_experts": None}, {"inputs": 8, "encoder_inputs": 8})["feed_forward"]
    router = (4 if family == "encoder_decoder" else 2) * 2 * 8 * 16 * 8
    assert even == 2 * dense + router and counted == 2 * 1.5 * dense + router  # ceil(1.25 x 8 x 2 / 8) = 3 slots, not 2


def test_flops_of_experts_against_xla_cost_analysis():
    """XLA also counts norms, softmax, activations and the routing; at width 256 these are below 10 %."""
    sizes = {"d_model": 256, "mlp_dim": 1024, "head_dim": 64, "num_kv_heads": 4, "num_layers": 1}
    config = model_config(family="decoder", **sizes, **EXPERTS)
    model, batch = models.build(ConfigDict(config)), shapes("decoder", 16, 0)
    params = nn.unbox(parameter_shapes(model, batch))
    forward = jax.jit(lambda p: model.apply({"params": p}, batch, deterministic=False))
    counted = forward.lower(params).compile().cost_analysis()["flops"]
    ours = sum(flops.forward_flops(config, {"inputs": 16}).values())
    assert ours <= counted <= 1.1 * ours


def test_parameters_that_a_token_uses():
    """2 of 8 experts of three matrices 16 x 32 in each of two layers, and everything else."""
    config = model_config(family="decoder", **EXPERTS)
    params = nn.unbox(parameter_shapes(models.build(ConfigDict(config)), shapes("decoder", 8, 0)))
    total = flops.parameter_counts(params)["n_total"]
    assert total - flops.active_parameters(params, config) == 2 * 6 * 3 * 16 * 32
    dense = nn.unbox(parameter_shapes(models.build(ConfigDict(model_config())), shapes("decoder", 8, 0)))
    assert flops.active_parameters(dense, model_config()) == flops.parameter_counts(dense)["n_total"]


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_flops_of_every_activation_against_xla_cost_analysis(activation):
    """XLA also counts norms, softmax and activations; at width 256 these are below 8 %."""
    config = model_config(
        family="decoder", d_model=256, mlp_dim=1024, head_dim=64, num_kv_heads=4, num_layers=1, activation=activation
    )
    model = models.build(ConfigDict(config))
    batch = shapes("decoder", 16, 0)
    params = nn.unbox(parameter_shapes(model, batch))
    compiled = jax.jit(lambda p: model.apply({"params": p}, batch)).lower(params).compile()
    counted = compiled.cost_analysis()["flops"]
    ours = sum(flops.forward_flops(config, {"inputs": 16}).values())
    assert ours <= counted <= 1.08 * ours


@pytest.mark.parametrize("scan_layers", [True, False])
def test_remat_saves_the_memory_that_the_estimate_promises(scan_layers):
    """Temporary memory of a training step: dots keeps less than none, full less than dots; estimates within 40 %."""
    batch, used, estimated = {"inputs": np.zeros((4, 64), np.int32)}, {}, {}
    for remat in ("none", "dots", "full"):
        config = model_config(
            d_model=64, mlp_dim=256, head_dim=16, num_kv_heads=4, num_layers=8, max_len=64, remat=remat
        )
        config.scan_layers = scan_layers
        model = models.build(ConfigDict(config))
        params = nn.unbox(parameter_shapes(model, batch))
        gradient = jax.jit(jax.grad(lambda p, model=model: model.apply({"params": p}, batch).var()))
        used[remat] = gradient.lower(params).compile().memory_analysis().temp_size_in_bytes
        estimated[remat] = flops.memory_bytes(0, config, {"inputs": 64}, 4, 0)["activations"]
    assert used["full"] < 0.7 * used["dots"] < 0.5 * used["none"]
    for remat in ("dots", "full"):
        assert 0.6 < estimated[remat] / used[remat] < 1.4, (remat, estimated, used)


def test_flash_attention_kernels_keep_no_attention_weights():
    config = model_config(family="encoder_decoder", num_layers=3, encoder_layers=2, dtype="bfloat16")
    with_weights, without = (
        flops.memory_bytes(0, config, {"inputs": 64, "encoder_inputs": 32}, 4, 0, flash)["activations"]
        for flash in (False, True)
    )
    # weights in float32 and bfloat16: 6 bytes x 4 rows x 4 heads x (3 layers of 64 x (64 + 32) scores and 2 of 32 x 32)
    assert with_weights - without == 6 * 4 * 4 * (3 * 64 * 96 + 2 * 32 * 32)


@pytest.mark.parametrize(("family", "overrides"), CASES)
def test_parameter_counts_equal_the_hand_formula(family, overrides):
    config = model_config(family=family, **overrides)
    model = models.build(ConfigDict(config))
    batch = shapes(family, 8, 11)
    counts = flops.parameter_counts(nn.unbox(parameter_shapes(model, batch)))
    D, F, V = 16, 32, 32
    q, kv = 4 * 4, config["num_kv_heads"] * 4
    norms = 2 if config["use_bias"] else 1
    attention = D * q + 2 * D * kv + q * D + ((q + 2 * kv + D) if config["use_bias"] else 0)
    attention += 2 * 4 * bool(config["qk_norm"])  # gains of the norms of queries and keys
    gated = config["activation"] == "swiglu"
    mlp = (3 if gated else 2) * D * F + ((F + D) if config["use_bias"] else 0)
    block = attention + mlp + 2 * norms * D
    other = config["num_layers"] * block + norms * D
    if family == "encoder_decoder":
        other += config["encoder_layers"] * block + norms * D + config["num_layers"] * (attention + norms * D)
    if config["position"] == "relative":
        other += 32 * 4
    E = config["embedding_dim"] or D
    tables = V + (config["token_types"] or 0) + (16 * len(batch) if config["position"] == "learned" else 0)
    embedding = tables * E + (E * D + D if E != D else 0) + (2 * D if config["embedding_norm"] else 0)
    head = {"plain": 0, "transform": D * E + 3 * E, "discriminator": D * D + D + D + 1}[config["head"]]
    head += (0 if config["tie_embeddings"] else D * V) + (V if config["head_bias"] else 0)
    encoder = {"encoder": other, "decoder": 0}.get(family, config["encoder_layers"] * block + norms * D)
    tied = config["tie_embeddings"] and config["head"] != "discriminator"
    assert counts == {
        "n_total": embedding + head + other,
        "n_embedding": embedding,
        "n_head": head,
        "n_non_embedding": other,
        "n_encoder": encoder,
        "n_decoder": other - encoder,
        "n_matmul_head": other + head + tied * V * E,
    }


def test_docstring_example():
    model = dict(
        family="decoder",
        d_model=4,
        num_heads=1,
        num_kv_heads=1,
        head_dim=4,
        mlp_dim=16,
        num_layers=1,
        vocab_size=8,
        activation="gelu",
        embedding_dim=None,
        head="plain",
        num_experts=None,
    )
    assert flops.forward_flops(model, {"inputs": 2}) == {
        "projections": 256,
        "scores": 64,
        "feed_forward": 512,
        "head": 128,
    }


def test_encoder_and_decoder_of_an_encoder_decoder_see_different_token_counts():
    objective = OBJECTIVES["span_corruption"]
    options = merge_options(objective, {})
    n = objective.window_length(options, 128, 128)
    lengths = objective.lengths(n, options)
    assert lengths["encoder_inputs"] > 3 * lengths["inputs"]
    config = model_config(family="encoder_decoder")
    swapped = {"inputs": lengths["encoder_inputs"], "encoder_inputs": lengths["inputs"]}
    assert sum(flops.forward_flops(config, lengths).values()) != sum(flops.forward_flops(config, swapped).values())


def test_gated_activations_are_known_in_one_place():
    """Models, FLOP counts and Hugging Face names agree on which activations have a gate."""
    assert set(options.GATED_NAMES) == set(GATED) < set(ACTIVATIONS)

"""Guards against a flash kernel that computes something else than plain attention, one chosen where it cannot run, and
a program for a GPU or TPU that writes the scores to memory. No accelerator is needed."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from ml_collections import ConfigDict

from lmjax import models
from lmjax.errors import InputError
from lmjax.masks import Sees
from lmjax.models import kernels
from lmjax.models.attention import PositionBias, along_diagonals, attend, relative_bucket
from lmjax.sharding import make_mesh
from tests.conftest import small
from tests.test_models import model_config

H200 = kernels.Backend("gpu", "9.0")
V5E = kernels.Backend("tpu")
CAUSAL, FULL = Sees("causal", 256, 256), Sees("full", 256, 256)
SOME = np.ones((2, 256))  # stands for an array that exists


def chosen(backend, sees, **overrides):
    model = {"dtype": "bfloat16", "head_dim": 64, "num_heads": 4, "num_kv_heads": 2, "attention_softcap": None}
    return kernels.choose(backend, {**model, **overrides}, sees)


def viewed(sees, *names):
    """`sees` with the arrays of these names."""
    return sees.replace(**dict.fromkeys(names, SOME))


SEGMENTS = ("query_segments", "key_segments")
FLASH = [
    (H200, CAUSAL, "cudnn (causal)"),
    (H200, FULL, "cudnn (full)"),
    (H200, viewed(CAUSAL, *SEGMENTS), "cudnn (causal, segments)"),
    (H200, viewed(CAUSAL, "prefix"), "cudnn (causal, prefix)"),
    (H200, viewed(FULL, "bias"), "cudnn (full, position bias)"),
    (H200, Sees("full", 24, 40), "cudnn (full)"),
    (H200, Sees("causal", 24, 24, window=8), "cudnn (causal, window)"),
    (H200, viewed(CAUSAL.replace(window=8), *SEGMENTS), "cudnn (causal, window, segments)"),
    (V5E, FULL.replace(window=8), "splash (full, window)"),
    (kernels.Backend("gpu", "8.0", 2, "cudnn"), CAUSAL, "cudnn (causal)"),
    (V5E, CAUSAL, "splash (causal)"),
    (V5E, viewed(Sees("full", 256, 384), *SEGMENTS), "splash (full, segments)"),
]
PLAIN = [
    (kernels.Backend(), CAUSAL, {}, "no flash kernel for cpu"),
    (kernels.Backend("gpu", "9.0", attention="plain"), CAUSAL, {}, "mesh.attention is plain"),
    (kernels.Backend("gpu", "9.0", attention="splash"), CAUSAL, {}, "splash does not run on gpu"),
    (kernels.Backend("cpu", attention="cudnn"), CAUSAL, {}, "cudnn does not run on cpu"),
    (H200, CAUSAL, {"dtype": "float32"}, "cudnn needs model.dtype bfloat16, not float32"),
    (V5E, CAUSAL, {"dtype": "float32"}, "splash needs model.dtype bfloat16, not float32"),
    (H200, viewed(CAUSAL, "positions"), {}, "key/value cache"),
    (H200, CAUSAL, {"attention_softcap": 50.0}, "cudnn has no cap on the scores (model.attention_softcap)"),
    (H200, CAUSAL, {"head_dim": 20}, "cudnn needs a head_dim that is a multiple of 8 up to 256, not 20"),
    (kernels.Backend("gpu", "8.9"), CAUSAL, {"head_dim": 136}, "multiple of 8 up to 128, not 136"),
    (kernels.Backend("gpu", "7.5"), CAUSAL, {}, "cudnn needs compute capability 8.0 or above, not 7.5"),
    (kernels.Backend("gpu", "gfx942"), CAUSAL, {}, "cudnn needs an NVIDIA GPU"),
    (H200, viewed(CAUSAL, "bias", *SEGMENTS), {}, "position bias with a mask"),
    (H200, viewed(CAUSAL, "bias", "prefix"), {}, "position bias with a mask"),
    (H200, viewed(CAUSAL.replace(window=8), "bias"), {}, "position bias with a mask"),
    (H200, Sees("full", 24, 24, window=8), {}, "lengths in multiples of 128, not 24"),
    (H200, viewed(Sees("full", 192, 256), "bias"), {}, "lengths in multiples of 128, not 192 and 256"),
    (H200, viewed(Sees("causal", 64, 64), *SEGMENTS), {}, "lengths in multiples of 128, not 64"),
    (H200._replace(stacked=True), viewed(CAUSAL, *SEGMENTS), {}, "does not support jax.vmap"),
    (H200._replace(context=2), CAUSAL, {}, "cudnn does not take a part of a row's queries, as mesh.context gives it"),
    (H200._replace(head_shards=4), CAUSAL, {}, "heads do not divide evenly over mesh.tensor 4"),
    (V5E, viewed(FULL, "bias"), {}, "splash has no position bias"),
    (V5E, viewed(CAUSAL, "prefix"), {}, "splash has no prefix"),
    (V5E, CAUSAL, {"head_dim": 20}, "splash needs a head_dim that is a multiple of 8, not 20"),
    (V5E, Sees("causal", 192, 192), {}, "splash needs lengths in multiples of 128, not 192"),
]


@pytest.mark.parametrize(("backend", "sees", "expected"), FLASH)
def test_a_flash_kernel_is_chosen_where_it_can_run(backend, sees, expected):
    assert str(chosen(backend, sees)) == expected


@pytest.mark.parametrize(("backend", "sees", "overrides", "reason"), PLAIN)
def test_plain_attention_is_chosen_with_the_reason(backend, sees, overrides, reason):
    choice = chosen(backend, sees, **overrides)
    assert choice.kernel == "plain" and reason in choice.reason


def test_a_kernel_asked_for_by_name_must_run_in_all_layers():
    model = models.build(ConfigDict(BFLOAT16 | {"family": "encoder_decoder", "position": "relative"}))
    model = model.clone(backend=V5E._replace(attention="splash"))
    choices = models.attention_kernels(model, batch_of("encoder_decoder"))
    assert kernels.report(choices) == (
        "decoder plain (splash has no position bias); encoder plain (splash has no position bias); "
        "cross-attention splash (full)"
    )
    with pytest.raises(InputError, match="expected splash in all layers, got plain in the decoder: splash has no pos"):
        kernels.check(model.backend, choices)
    kernels.check(V5E, choices)


def test_a_run_refuses_a_kernel_that_its_machine_lacks_and_its_id_does_not_depend_on_it():
    from lmjax.resolve import resolve
    from lmjax.trainer import on_devices

    runs = [resolve(small(mesh__attention=attention)) for attention in ("auto", "cudnn")]
    mesh = make_mesh(runs[0].config.mesh)
    assert runs[0].run_id == runs[1].run_id
    assert on_devices(runs[0], mesh).model.backend == kernels.Backend("cpu")
    with pytest.raises(InputError, match="expected cudnn in all layers, got plain in the decoder: cudnn does not run"):
        on_devices(runs[1], mesh)


# ---- flash kernels compute what plain attention computes ------------------------------------------------------------


def tensors(T, S, H=2, G=1, K=32, B=2):
    rng = np.random.default_rng(0)
    shapes = (B, T, H, K), (B, G, S, K), (B, G, S, K)
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def segments(length):
    """Two rows of two segments; the second ends in padding."""
    ids = np.ones((2, length), np.int32)
    ids[:, length // 3 :] = 2
    ids[1, -length // 8 :] = 0
    return jnp.asarray(ids)


def view(kind, T, S, H=2):
    steps = np.arange(S)
    return {
        "causal": Sees("causal", T, S),
        "full": Sees("full", T, S),
        "window": Sees("causal", T, S, window=5),
        "full, window": Sees("full", T, S, window=5),
        "window, segments": Sees("causal", T, S, segments(T), segments(S), window=5),
        "causal, segments": Sees("causal", T, S, segments(T), segments(S)),
        "full, segments": Sees("full", T, S, segments(T), segments(S)),
        "prefix": Sees("causal", T, S, prefix=jnp.asarray(steps[None] < np.array([[3], [7]]))),
        "bias": Sees("causal", T, S, bias=jnp.asarray(np.random.default_rng(1).normal(size=(1, H, T, S)), jnp.float32)),
    }[kind]


def values_and_gradients(kernel, q, k, v, sees):
    """Outputs and gradients of the queries that are not padding, and of a position bias."""
    real = 1.0 if sees.query_segments is None else (sees.query_segments > 0)[:, :, None, None]
    weight = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32) * real

    def total(q, k, v, bias):
        out = kernel(q, k, v, sees.replace(bias=bias), 0.2).astype(jnp.float32)
        return jnp.sum(out * weight), out * real

    (_, out), grads = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, sees.bias)
    return jax.tree.leaves((out, grads))


def plain(q, k, v, sees, scale, softcap=None):
    return attend(q, k, v, sees.as_bias().bias, scale, softcap)


def assert_close(kernel, q, k, v, sees, softcap=None):
    """Within 2 % of the largest value: bfloat16 has 8 bits, and kernels round weights and sums at different places."""
    reference = functools.partial(plain, softcap=softcap)
    exact = values_and_gradients(reference, *(x.astype(jnp.float32) for x in (q, k, v)), sees)
    found = values_and_gradients(kernel, q, k, v, sees)
    assert len(found) == len(exact) == (5 if sees.bias is not None else 4)
    for a, b in zip(exact, found, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(b, a, atol=2e-2 * np.abs(a).max())


KINDS = ["causal", "full", "causal, segments", "full, segments", "prefix", "bias", "window", "window, segments"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_cudnn_call_computes_plain_attention(kind):
    cross = kind.startswith("full")
    q, k, v = tensors(16, 24 if cross else 16)
    kernel = functools.partial(kernels.cudnn, implementation="xla")
    assert_close(kernel, q, k, v, view(kind, 16, 24 if cross else 16))


@pytest.mark.parametrize(
    ("kind", "softcap"), [("causal, segments", 0.5), ("full", None), ("window", None), ("full, window", None)]
)
def test_splash_computes_plain_attention(kind, softcap):
    S = 256 if kind == "full" else 128
    splash = functools.partial(kernels.splash, interpret=True, softcap=softcap)
    assert_close(splash, *tensors(128, S), view(kind, 128, S), softcap)


@pytest.mark.parametrize("kind", ["causal, segments", "bias"])
def test_kernels_on_shards_compute_what_one_device_does(kind):
    """Rows over data 2 x fsdp 2, heads over tensor 2; the bias gradient is summed over the devices."""
    mesh = make_mesh(ConfigDict({"platform": None, "data": 2, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}))
    q, k, v = (jnp.tile(x, (2, 1, 1, 1)) for x in tensors(16, 16, G=2))
    sees = view(kind, 16, 16)
    if sees.query_segments is not None:
        sees = sees.replace(**{name: jnp.tile(getattr(sees, name), (2, 1)) for name in SEGMENTS})
    local = functools.partial(kernels.cudnn, implementation="xla")

    def kernel(*arguments):
        return kernels.on_shards(local, *arguments)

    with jax.set_mesh(mesh):
        assert_close(kernel, q, k, v, sees)


# ---- position bias --------------------------------------------------------------------------------------------------


def test_along_diagonals_worked_example():
    assert along_diagonals(jnp.array([[1, 2, 3]]), 2).tolist() == [[[2, 3], [1, 2]]]
    x = jnp.arange(14).reshape(2, 7)
    expected = [[[x[h, s - t + 2] for s in range(5)] for t in range(3)] for h in range(2)]
    np.testing.assert_array_equal(along_diagonals(x, 3), expected)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_equals_a_lookup_in_its_table_and_has_no_scatter(bidirectional):
    config = ConfigDict({"position": "relative", "relative_buckets": 8, "relative_max_distance": 10, "num_heads": 3})
    module, sees = PositionBias(config, bidirectional), Sees("full", 20, 17)
    table = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(1, 3, 20, 17)), jnp.float32)

    def ours(table):
        return module.apply({"params": {"relative_bias": table}}, sees)

    def looked_up(table):
        bucket = relative_bucket(jnp.arange(17)[None] - jnp.arange(20)[:, None], bidirectional, 8, 10)
        return table[bucket].transpose(2, 0, 1)[None]

    np.testing.assert_array_equal(ours(table), looked_up(table))
    gradients = [jax.grad(lambda t, f=f: jnp.sum(f(t) * weight)) for f in (ours, looked_up)]
    a, b = (g(table) for g in gradients)
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())  # sums of up to 340 terms in another order
    assert "scatter" in str(jax.make_jaxpr(gradients[1])(table))
    assert "scatter" not in str(jax.make_jaxpr(gradients[0])(table))


# ---- programs for accelerators --------------------------------------------------------------------------------------

RUNS = 3  # that share a program
B, T, S, HEADS = 2, 256, 384, 2  # not 128, the lanes of a TPU, to which splash pads one number per query
BFLOAT16 = model_config(
    d_model=64, head_dim=32, num_heads=HEADS, num_layers=1, encoder_layers=1, max_len=S, dtype="bfloat16"
).to_dict()


def batch_of(family, packed=False):
    batch = {"inputs": np.ones((B, T), np.int32)}
    if family == "encoder_decoder":
        batch["encoder_inputs"] = np.ones((B, S), np.int32)
    if packed:
        batch |= {name.replace("inputs", "segment_ids"): x for name, x in batch.items()}
    return batch


@pytest.fixture
def no_gpu_needed(monkeypatch):
    """jax asks the driver which cuDNN and which GPU there is, also when it only lowers a program."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: True)


def lowered(backend, batch, mesh=None, **overrides):
    """StableHLO of a model's gradient for a platform."""
    model = models.build(ConfigDict(BFLOAT16 | overrides)).clone(backend=backend)
    params = nn.unbox(models.parameter_shapes(model, batch))
    gradient = jax.grad(lambda p, batch: model.apply({"params": p}, batch).astype(jnp.float32).sum())
    if backend.stacked:
        gradient = jax.vmap(gradient)
        params, batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((RUNS, *x.shape), x.dtype), (params, batch))
    gradient = jax.jit(gradient)
    platform = {"gpu": "cuda"}.get(backend.platform, backend.platform)
    with jax.set_mesh(mesh) if mesh else jax.default_matmul_precision(None):
        return gradient.trace(params, batch).lower(lowering_platforms=(platform,)).as_text()


def kernel_calls(text):
    """Number of calls of flash kernels: a forward and a backward one of cuDNN; three of splash."""
    return len(re.findall(r"stablehlo\.custom_call @(?:__cudnn\$fmha|tpu_custom_call)", text))


def scores(text):
    """Types of the arrays as large as the scores of a layer."""
    lengths = f"(?:{T}|{S})x(?:{T}|{S})"
    return re.findall(rf"tensor<(?:{B}x{HEADS}x{lengths}|{B * HEADS}x{lengths})x(?:f32|bf16)>", text)


CASES = [
    ("decoder", "learned", False, 1),
    ("decoder", "learned", True, 1),
    ("encoder", "learned", True, 1),
    ("encoder_decoder", "learned", True, 3),
]


@pytest.mark.parametrize(
    ("family", "position", "packed", "blocks"), [*CASES, ("encoder_decoder", "relative", False, 3)]
)
def test_a_gpu_program_calls_cudnn_and_writes_no_scores(no_gpu_needed, family, position, packed, blocks):
    text = lowered(H200, batch_of(family, packed), family=family, position=position)
    assert kernel_calls(text) == 2 * blocks and not scores(text)


@pytest.mark.parametrize(("family", "position", "packed", "blocks"), CASES)
def test_a_tpu_program_calls_splash_and_writes_no_scores(family, position, packed, blocks):
    text = lowered(V5E, batch_of(family, packed), family=family, position=position)
    assert kernel_calls(text) == 3 * blocks and not scores(text)


@pytest.mark.parametrize(("backend", "name", "calls"), [(H200, "cudnn", 4), (V5E, "splash", 6)])
def test_layers_with_and_without_a_window_call_a_kernel_each(no_gpu_needed, backend, name, calls):
    """One of two branches of the layer's program runs, both in the forward and in the backward pass."""
    options = {"family": "decoder", "attention_window": 64, "full_attention_every": 2}
    text = lowered(backend, batch_of("decoder"), **options)
    assert kernel_calls(text) == calls and not scores(text)
    model = models.build(ConfigDict(BFLOAT16 | options)).clone(backend=backend)
    choices = models.attention_kernels(model, batch_of("decoder"))
    assert kernels.report(choices) == f"decoder {name} (causal, window); decoder's full layers {name} (causal)"


def test_remat_recomputes_the_kernel_and_writes_no_scores(no_gpu_needed):
    text = lowered(H200, batch_of("decoder", packed=True), family="decoder", remat="dots")
    assert kernel_calls(text) == 3 and not scores(text)


def test_plain_programs_write_scores():
    """The patterns above find what they look for."""
    text = lowered(H200._replace(attention="plain"), batch_of("decoder"), family="decoder")
    assert scores(text) and not kernel_calls(text)


@pytest.mark.parametrize("backend", [H200, V5E])
def test_a_sharded_program_calls_the_kernel_on_local_rows_and_heads(no_gpu_needed, backend):
    mesh = make_mesh(
        ConfigDict({"platform": None, "data": 1, "fsdp": 2, "expert": 1, "context": 1, "tensor": 2}), jax.devices()[:4]
    )
    batch = {name: np.tile(x, (2, 1)) for name, x in batch_of("decoder", packed=True).items()}
    text = lowered(backend._replace(head_shards=2), batch, mesh, num_kv_heads=2, family="decoder")
    calls = [line for line in text.splitlines() if re.search(r"custom_call @(?:__cudnn|tpu_custom_call)", line)]
    local = "tensor<2x256x1x32xbf16>" if backend is H200 else "tensor<2x1x256x32xbf16>"
    assert len(calls) == (2 if backend is H200 else 3) and all(local in line for line in calls)


@pytest.mark.parametrize(
    ("platform", "layers", "unroll"), [("cpu", 13, 13), ("gpu", 13, 4), ("tpu", 13, 1), ("gpu", 12, 12)]
)
def test_a_deep_stack_is_a_loop_on_accelerators(platform, layers, unroll):
    model = models.build(ConfigDict(BFLOAT16 | {"family": "decoder", "num_layers": layers}))
    model = model.clone(backend=kernels.Backend(platform, attention="plain"))
    params = nn.unbox(models.parameter_shapes(model, batch_of("decoder")))
    jaxpr = jax.make_jaxpr(lambda p: model.apply({"params": p}, batch_of("decoder")))(params)
    assert re.findall(r"\bunroll=(\d+)", str(jaxpr)) == [str(unroll)]

"""Guards against leaks between positions or documents, switches that change values, and bad initial values."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lmjax import losses, masks, models
from lmjax.flops import dot_flops
from lmjax.masks import Sees
from lmjax.models.attention import alibi_slopes, attend, relative_bucket, rotate
from lmjax.models.layers import Embedding, Norm, capped, sinusoids
from tests.conftest import small

SIZES = dict(
    position="learned",
    vocab_size=32,
    d_model=16,
    num_layers=2,
    encoder_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=32,
    max_len=16,
)
FAMILIES = ("decoder", "encoder", "encoder_decoder")
RECURRENT = ("rnn", "seq2seq")
ALL = (*FAMILIES, *RECURRENT, "feed_forward")
POSITION = {"decoder": "learned", "encoder": "learned", "encoder_decoder": "relative"}
POSITION |= dict.fromkeys((*RECURRENT, "feed_forward"), "none")
OWN = {"feed_forward": {"num_layers": 1, "tie_embeddings": False}}  # all that it takes


def model_config(**overrides):
    config = small().model.copy_and_resolve_references()
    config.unlock()
    family = overrides.get("family", "decoder")
    chosen = {**models.options(family), **OWN.get(family, {}), **overrides}
    config.options = ConfigDict({name: chosen.pop(name) for name in models.options(family)})
    config.update({**SIZES, **chosen})
    return config


def batch_of(family, T=8, S=6, seed=0):
    rng = np.random.default_rng(seed)
    batch = {"inputs": rng.integers(0, 32, (2, T)).astype(np.int32)}
    if models.reads_source(family):
        batch["encoder_inputs"] = rng.integers(0, 32, (2, S)).astype(np.int32)
    return batch


@functools.cache
def built(family, **overrides):
    """(model, random parameters): no value is 0 or 1, so that no path is trivially off. No program is compiled."""
    model = models.build(ConfigDict(model_config(family=family, **overrides)))
    rng = np.random.default_rng(5)  # whose decoder writes varied texts, for tests of stop strings

    def draw(path, shape):
        name = path[-1].key
        mean = (name == "scale") * (1 - model.config.norm_offset)
        spread = 0.27 if name == "kernel" else 0.1
        return jnp.asarray(mean + spread * rng.normal(size=shape.shape), shape.dtype)

    return model, jax.tree_util.tree_map_with_path(draw, nn.unbox(models.parameter_shapes(model, batch_of(family))))


@functools.cache
def apply(family, **overrides):
    model, params = built(family, **overrides)
    return jax.jit(lambda batch: model.apply({"params": params}, batch))


CAPPED = {"qk_norm": True, "attention_softcap": 1.0, "logit_softcap": 0.5}
OPTIONS = {
    **{position: {"position": position} for position in ("learned", "rotary", "relative", "alibi")},
    "capped": {**CAPPED, "position": "rotary"},
    "window": {"attention_window": 3, "position": "rotary"},
    "experts": {"num_experts": 4, "activation": "swiglu", "position": "rotary"},
    "both norms": {"norm_position": "both", "norm_offset": 1.0, "norm": "rmsnorm", "position": "rotary"},
    "alternating": {"attention_window": 2, "full_attention_every": 2, "position": "relative"},
}


@pytest.mark.parametrize("switches", OPTIONS.values(), ids=OPTIONS)
def test_decoder_is_causal(switches):
    """Changing token t changes no logit before t, bit for bit, and does change one from t on."""
    run = apply("decoder", **switches)
    batch = batch_of("decoder")
    before = run(batch)
    for t in (3, 7):
        changed = batch["inputs"].copy()
        changed[:, t] = (changed[:, t] + 1) % 32
        after = run({"inputs": changed})
        assert np.array_equal(before[:, :t], after[:, :t])
        assert not np.allclose(before[:, t:], after[:, t:])


def test_encoder_sees_both_sides_and_prefix_sees_the_prefix():
    encoder = apply("encoder")
    batch = batch_of("encoder")
    changed = {"inputs": batch["inputs"].copy()}
    changed["inputs"][:, 7] += 1
    assert not np.allclose(encoder(batch)[:, 0], encoder(changed)[:, 0])

    decoder = apply("decoder")
    prefix = np.arange(8)[None].repeat(2, 0) < 4
    a = decoder({**batch, "prefix": prefix})
    later, earlier = batch["inputs"].copy(), batch["inputs"].copy()
    later[:, 5] += 1
    earlier[:, 3] += 1
    assert np.array_equal(a[:, :5], decoder({"inputs": later, "prefix": prefix})[:, :5])
    assert not np.allclose(a[:, 0], decoder({"inputs": earlier, "prefix": prefix})[:, 0])


@pytest.mark.parametrize("family", ALL)
def test_documents_of_a_row_do_not_see_each_other(family):
    """Perturbing document 1 leaves document 2 of the same row bit-equal (encoder, decoder and cross-attention)."""
    run = apply(family, position=POSITION[family])
    batch = batch_of(family)
    batch["segment_ids"] = np.array([[1] * 4 + [2] * 4] * 2)
    batch["positions"] = np.array([[0, 1, 2, 3] * 2] * 2)
    if models.reads_source(family):
        batch["encoder_segment_ids"] = np.array([[1] * 3 + [2] * 3] * 2)
        batch["encoder_positions"] = np.array([[0, 1, 2] * 2] * 2)
    before = run(batch)
    changed = {**batch, "inputs": batch["inputs"].copy()}
    changed["inputs"][:, 1] += 1
    if models.reads_source(family):
        changed["encoder_inputs"] = batch["encoder_inputs"].copy()
        changed["encoder_inputs"][:, 1] += 1
    after = run(changed)
    assert np.array_equal(before[:, 4:], after[:, 4:])
    assert not np.allclose(before[:, 1:4], after[:, 1:4])


@pytest.mark.parametrize("family", ALL)
def test_packed_equals_alone(family):
    """A document's logits in a packed row equal those of the document alone (float32: 1e-5)."""
    run = apply(family, position=POSITION[family])
    packed = batch_of(family)
    packed["segment_ids"] = np.array([[1] * 4 + [2] * 4] * 2)
    packed["positions"] = np.array([[0, 1, 2, 3] * 2] * 2)
    alone = {"inputs": packed["inputs"][:, 4:]}
    if models.reads_source(family):
        packed["encoder_segment_ids"] = np.array([[1] * 3 + [2] * 3] * 2)
        packed["encoder_positions"] = np.array([[0, 1, 2] * 2] * 2)
        alone["encoder_inputs"] = packed["encoder_inputs"][:, 3:]
    np.testing.assert_allclose(run(packed)[:, 4:], run(alone), atol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_padding_rows_give_finite_gradients_and_change_nothing(family):
    model, params = built(family, position=POSITION[family])
    batch = batch_of(family)
    names = ["segment_ids", "encoder_segment_ids"] if models.reads_source(family) else ["segment_ids"]
    for name in names:
        source = batch["encoder_inputs" if name.startswith("encoder") else "inputs"]
        batch[name] = np.ones_like(source)
        batch[name][1] = 0  # the second row is all padding
    weights = np.ones((2, 8), np.float32) * np.array([[1.0], [0.0]], np.float32)

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            logits = model.apply({"params": params}, batch)
            return losses.chunked_sums(logits, batch["inputs"], weights, 0.0)[0] / weights.sum()

        return jax.grad(loss)(params)

    grads = gradient(params, batch)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    other = {**batch, "inputs": batch["inputs"].copy()}
    other["inputs"][1] = 0
    weights_only_first = jax.tree.map(np.asarray, grads)
    again = gradient(params, {**other, "inputs": np.concatenate([batch["inputs"][:1], other["inputs"][1:]])})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights_only_first, again)


def test_forward_mode_and_hessian_vector_products(monkeypatch):
    """Of all layers and the loss in chunks: the slope along v is gradient . v to 1e-4 (float32 sums), and jvp of grad
    is the central difference of gradients at steps of 0.001, to 1 % of its largest entry."""
    model, params = built("decoder", norm="layernorm", use_bias=True)
    batch, v = batch_of("decoder"), jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

    def loss(params):
        head = model.apply({"params": params}, batch, project=False)["lm"]
        return losses.chunked_sums(head, batch["inputs"], jnp.ones((2, 8)), 0.0)[0]

    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 2 * 3 * model.config.vocab_size)
    slope = jax.jit(lambda params: jax.jvp(loss, (params,), (v,))[1])(params)
    here, hessian_v = jax.jit(lambda params: jax.jvp(jax.grad(loss), (params,), (v,)))(params)
    product = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (here, v)), strict=True))
    assert float(slope) == pytest.approx(float(product), rel=1e-4) and abs(float(slope)) > 0.1
    gradient = jax.jit(jax.grad(loss))
    ahead, behind = (gradient(jax.tree.map(lambda p, d, s=s: p + s * d, params, v)) for s in (0.001, -0.001))
    size = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(hessian_v))
    jax.tree.map(
        lambda h, a, b: np.testing.assert_allclose(h, (a - b) / 0.002, atol=0.01 * size), hessian_v, ahead, behind
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_scan_and_remat_change_no_value(family):
    """Equal initial parameters bit for bit; equal logits and gradients within float32 reassociation (1e-5)."""
    batch = batch_of(family)

    def outcome(**switches):
        model = models.build(ConfigDict(model_config(family=family, **switches)))
        params = nn.unbox(jax.jit(model.init)(jax.random.key(1), batch))["params"]

        def loss(params):
            logits = model.apply({"params": params}, batch)
            return losses.chunked_sums(logits, batch["inputs"], np.ones((2, 8)), 0.0)[0]

        return params, jax.jit(jax.value_and_grad(loss))(params)

    params, reference = outcome(scan_layers=True, remat="none")
    plain = [{"scan_layers": False}] if family == "decoder" else []
    for switches in (*plain, {"remat": "full"}, {"scan_layers": False, "remat": "dots"}):
        other, values = outcome(**switches)
        jax.tree.map(np.testing.assert_array_equal, params, other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), reference, values)


@pytest.mark.parametrize(
    ("family", "switches"),
    [
        *(("decoder", switches) for switches in ({"position": "sinusoidal"}, *OPTIONS.values())),
        *(("encoder_decoder", {"position": position}) for position in ("learned", "rotary", "relative")),
        ("encoder_decoder", OPTIONS["capped"]),
    ],
)
def test_cached_decoding_equals_the_full_forward(family, switches):
    """Ragged prompts of 2 and 4 tokens, right-padded to 4, then one token at a time, each row at its own place:
    the logits of the full forward pass within 1e-5."""
    model, params = built(family, **switches)
    batch = batch_of(family)
    tokens, full = batch["inputs"], apply(family, **switches)(batch)
    cached = models.build(ConfigDict(model.config.to_dict()), cache_len=8)
    params = models.unstack(params, model.config)
    source = None
    if family == "encoder_decoder":
        source = jax.jit(lambda batch: cached.apply({"params": params}, batch, method="encode"))(batch)

    @jax.jit
    def advance(variables, tokens, positions):
        step = {"inputs": tokens, "positions": positions}
        if source is None:
            return cached.apply(variables, step, mutable="cache")
        return cached.apply(variables, step, source, method="decode", mutable="cache")

    lengths, rows = np.array([2, 4]), np.arange(2)
    prompt = np.where(np.arange(4) < lengths[:, None], tokens[:, :4], 31)  # 31 stands for padding
    logits, cache = advance({"params": params}, prompt, np.tile(np.arange(4), (2, 1)))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=1e-5)
    for _ in range(4):
        logits, cache = advance({"params": params, **cache}, tokens[rows, lengths][:, None], lengths[:, None])
        np.testing.assert_allclose(logits[:, 0], full[rows, lengths], atol=1e-5)
        lengths = lengths + 1


@pytest.mark.parametrize("family", ALL)
def test_logits_at_one_position_are_those_of_the_full_forward(family):
    batch = batch_of(family)
    run = apply(family, position=POSITION[family])
    full = run(batch)
    only = run({**batch, "logits_at": np.array([3, 5])})
    np.testing.assert_allclose(only[:, 0], full[np.arange(2), [3, 5]], atol=1e-6)


def test_bfloat16_stays_near_float32():
    """bf16 keeps 8 bits: 2^-8 relative error an operation, about 10 operations deep; losses within 1 %."""
    batch = batch_of("decoder")
    nats = {}
    for dtype in ("float32", "bfloat16"):
        logits = apply("decoder", dtype=dtype)(batch)
        assert logits.dtype == jnp.dtype(dtype)
        total = losses.chunked_sums(logits, batch["inputs"], jnp.ones((2, 8)), 0.0)[0]
        assert total.dtype == jnp.float32
        nats[dtype] = float(total / 16)
    assert abs(nats["bfloat16"] / nats["float32"] - 1) < 0.01


@pytest.mark.parametrize(
    "switches",
    [
        dict(norm="rmsnorm", activation="swiglu", use_bias=True, tie_embeddings=False, norm_position="post"),
        dict(share_layers=True, activation="geglu", position="sinusoidal"),
        dict(dropout=0.5, activation="relu"),
        dict(embedding_dim=8, embedding_norm=True, token_types=2, head="transform", head_bias=True, use_bias=True),
        dict(parallel_block=True, position="rotary", rotary_fraction=0.5, activation="gelu_exact"),
    ],
)
def test_other_switches_have_the_parameters_they_should(switches):
    model, params = built("decoder", **switches)
    layers = params["stack"]["layers"]
    kernel = layers["feed_forward"]["up"]["kernel"]
    assert kernel.shape == ((16, 32) if switches.get("share_layers") else (2, 16, 32))
    assert ("gate" in layers["feed_forward"]) == (switches.get("activation") in ("swiglu", "geglu"))
    assert ("bias" in layers["feed_forward"]["up"]) == switches.get("use_bias", False)
    assert ("head" in params["embedding"]) == (not switches.get("tie_embeddings", True))
    assert ("final_norm" in params["stack"]) == (switches.get("norm_position") != "post")
    assert ("positions" in params["embedding"]) == (switches.get("position", "learned") == "learned")
    assert ("norm" in params["embedding"]) == switches.get("embedding_norm", False)
    assert ("head_bias" in params["embedding"]) == switches.get("head_bias", False)
    if "embedding_dim" in switches:
        assert params["embedding"]["embedding"].shape == (32, 8)
        assert params["embedding"]["projection"]["kernel"].shape == (8, 16)
        assert params["embedding"]["transform"]["kernel"].shape == (16, 8)
    batch = batch_of("decoder")
    plain = apply("decoder", **switches)(batch)
    rngs = {"dropout": jax.random.key(0)}
    dropped = jax.jit(lambda batch: model.apply({"params": params}, batch, deterministic=False, rngs=rngs))(batch)
    assert np.allclose(plain, dropped, atol=1e-5) == (switches.get("dropout", 0) == 0)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_attend_against_numpy_in_float64(softcap):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(2, 5, 4, 3)), rng.normal(size=(2, 6, 2, 3)), rng.normal(size=(2, 6, 2, 3))
    bias = rng.normal(size=(1, 4, 5, 6))
    expected = np.zeros((2, 5, 4, 3))
    for b, t, h in np.ndindex(2, 5, 4):
        scores = k[b, :, h // 2] @ q[b, t, h] / np.sqrt(3)
        scores = (softcap * np.tanh(scores / softcap) if softcap else scores) + bias[0, h, t]
        p = np.exp(scores - scores.max())
        expected[b, t, h] = p @ v[b, :, h // 2] / p.sum()
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    found = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v, bias)), softcap=softcap)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 sums of 6 terms of size 1


def test_causal_blocks_of_queries_leave_out_hidden_keys_and_change_nothing():
    """Of 3 blocks of 128 queries, those see 1, 2 and 3 blocks of keys: 6 of 9 products; equal values and gradients."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 384, 4, 3), (2, 2, 384, 3), (2, 2, 384, 3)))
    view = Sees("causal", 384, 384).as_bias()
    assert view.past and not Sees("causal", 384, 384, prefix=jnp.zeros((2, 384), bool)).as_bias().past

    def both(past):
        def loss(*arrays):
            return jnp.sum(jnp.sin(attend(*arrays, view.bias, past=past)))

        program = jax.value_and_grad(loss, (0, 1, 2))
        return jax.jit(program)(q, k, v), dot_flops(jax.make_jaxpr(program)(q, k, v).jaxpr)

    (found, fewer), (expected, products) = both(past=True), both(past=False)
    assert fewer / products == 6 / 9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_qk_norm_makes_attention_independent_of_the_size_of_queries_and_keys(norm):
    """Tripled projections of queries and keys change no logit beyond float32 rounding; without the norm they do."""
    changes = {}
    for qk_norm in (True, False):
        model, params = built("decoder", position="rotary", norm=norm, norm_epsilon=1e-9, qk_norm=qk_norm)
        run = jax.jit(lambda params, batch, model=model: model.apply({"params": params}, batch))
        tripled = jax.tree_util.tree_map_with_path(
            lambda path, x: 3 * x if path[-2].key in ("query", "key") else x, params
        )
        before, after = (run(p, batch_of("decoder")) for p in (params, tripled))
        changes[qk_norm] = float(jnp.abs(before - after).max())
    assert changes[True] < 1e-5 < 1e-2 < changes[False]
    attention = built("decoder", position="rotary", qk_norm=True)[1]["stack"]["layers"]["self_attention"]
    assert attention["query_norm"]["scale"].shape == attention["key_norm"]["scale"].shape == (2, 4)


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_a_window_hides_what_is_far(family):
    """Two layers with a window of 3 see at most 4 tokens away; if the second has none, everything; bit for bit."""
    batch, changed = batch_of(family, T=12), batch_of(family, T=12)
    changed["inputs"][:, 3] = (changed["inputs"][:, 3] + 1) % 32
    for every, hidden in ((None, slice(8, None)), (2, slice(0))):
        run = apply(family, position="rotary", attention_window=3, full_attention_every=every)
        differs = (np.asarray(run(batch)) != np.asarray(run(changed))).any((0, 2))
        assert not differs[hidden].any()
        assert differs[3 : hidden.start or 12].all() and differs[:3].all() == (family == "encoder")


def test_a_window_as_long_as_the_row_changes_nothing():
    batch = batch_of("decoder")
    whole, short = (apply("decoder", attention_window=window)(batch) for window in (8, 4))
    np.testing.assert_array_equal(whole, apply("decoder")(batch))
    np.testing.assert_array_equal(whole[:, :4], short[:, :4])
    assert not np.allclose(whole[:, 4:], short[:, 4:])


def test_capped_logits(monkeypatch):
    """cap tanh(logits / cap), also where the loss computes them in chunks; an example in numbers."""
    np.testing.assert_allclose(capped(jnp.array([1.0, 100.0]), 30.0), [0.9996, 29.92], atol=1e-2)
    batch, cap = batch_of("decoder"), 0.5
    free, found = apply("decoder")(batch), apply("decoder", logit_softcap=cap)(batch)
    assert float(jnp.abs(free).max()) > cap > float(jnp.abs(found).max())
    np.testing.assert_allclose(found, cap * np.tanh(np.asarray(free) / cap), atol=1e-6)
    model, params = built("decoder", logit_softcap=cap)
    expected = losses.chunked_sums(found, batch["inputs"], jnp.ones((2, 8)), 0.0)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 2 * 3 * model.config.vocab_size)
    head = jax.jit(lambda batch: model.apply({"params": params}, batch, project=False)["lm"])(batch)
    chunked = losses.chunked_sums(head, batch["inputs"], jnp.ones((2, 8)), 0.0)
    np.testing.assert_allclose(chunked, expected, rtol=1e-6)


def test_rotary_depends_on_distance_only_and_keeps_lengths():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))
    frequencies = 10000.0 ** -(np.arange(4) / 4)

    def score(i, j):
        a, b = rotate(q, jnp.array([[i]]), frequencies), rotate(k, jnp.array([[j]]), frequencies)
        return float(jnp.sum(a * b))

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)
    np.testing.assert_allclose(rotate(q, jnp.array([[0]]), frequencies), q, atol=1e-6)


def test_worked_examples():
    assert alibi_slopes(4) == [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert alibi_slopes(6)[4:] == [2**-1.0, 2**-3.0]  # every second slope of 8 heads: 2^-1, 2^-3
    distances = jnp.array([[0, -1, 1, -200]])
    assert relative_bucket(distances, True, 32, 128).tolist() == [[0, 1, 17, 15]]
    assert relative_bucket(distances, False, 32, 128).tolist() == [[0, 1, 0, 31]]
    assert masks.self_attention_mask("causal", 3)[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_allclose(sinusoids(jnp.array([[0]]), 4)[0, 0], [0, 0, 1, 1])
    logits, weights = jnp.zeros((1, 3, 4)), jnp.array([[1.0, 1.0, 0.0]])
    total, added = losses.chunked_sums(logits, jnp.zeros((1, 3), int), weights, 0.1)
    assert [float(total), float(added)] == pytest.approx([2.7726, 0.3844], abs=1e-4)
    norm = Norm(ConfigDict(model_config(norm="rmsnorm", norm_epsilon=1e-9)))
    out = norm.apply({"params": {"scale": jnp.ones(2)}}, jnp.array([[[3.0, 4.0]]]))
    np.testing.assert_allclose(out[0, 0], [0.849, 1.131], atol=1e-3)


def test_initial_scores_do_not_depend_on_the_attention_scale():
    """The factor on query times key is made good by the query's initial values: the same attention at step 0."""
    outputs = []
    for scale in (0.0, 0.125):
        model = models.build(ConfigDict(model_config(attention_scale=scale)))
        outputs.append(jax.jit(model.init_with_output)(jax.random.key(1), batch_of("decoder"))[0])
    np.testing.assert_allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "position", "tied"),
    [
        ("decoder", "learned", True),
        ("decoder", "sinusoidal", False),
        ("decoder", "rotary", True),
        ("encoder", "learned", False),
        ("encoder_decoder", "learned", True),
        ("encoder_decoder", "rotary", False),
    ],
)
def test_first_losses_are_near_uniform_and_tokens_and_positions_enter_alike(family, position, tied):
    """At the default embedding scale, first losses are within 0.1 nats of ln V, and the vectors of positions have the
    standard deviation of the scaled token rows, about 0.32."""
    config = small(family).model.copy_and_resolve_references()
    config.unlock()
    width = {"d_model": 64, "head_dim": 16, "mlp_dim": 256, "vocab_size": 320}
    config.update({**SIZES, **width, "position": position, "tie_embeddings": tied})
    model, batch = models.build(ConfigDict(config)), batch_of(family, T=16, S=16)
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(0), batch)
    params = nn.unbox(variables)["params"]
    targets = np.random.default_rng(1).integers(0, 320, logits.shape[:2])
    loss = float(losses.token_nats(logits, targets).mean())
    assert loss == pytest.approx(np.log(320), abs=0.1)
    std = 0.02 * config.embedding_scale
    assert np.std(params["embedding"]["embedding"]) * config.embedding_scale == pytest.approx(std, rel=0.05)
    if position == "learned":
        for name in params["embedding"]:
            if name.endswith("positions"):
                assert np.std(params["embedding"][name]) == pytest.approx(std, rel=0.1)


def test_sinusoids_follow_the_embedding_scale():
    """The zero token row leaves the position alone: its root mean square is 0.02 x embedding_scale."""
    config = model_config(family="decoder", position="sinusoidal", embedding_scale=16.0)
    embedding = Embedding(config)
    zeros = {"params": {"embedding": jnp.zeros((32, 16))}}
    positions = jnp.arange(8)[None]
    x = embedding.apply(zeros, jnp.zeros((1, 8), int), positions, True, method="embed")
    assert float(jnp.sqrt(jnp.mean(x**2))) == pytest.approx(0.32, rel=1e-5)

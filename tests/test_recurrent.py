"""Guards against recurrent and feed-forward models that differ from their equations: cells against PyTorch, attention
and windows against NumPy, counts against formulas and XLA, and a trained run that cannot be used."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

import lmjax
from lmjax import flops, models, trainer
from lmjax.errors import InputError
from lmjax.models.recurrent import CELLS, Layer
from lmjax.resolve import resolve
from tests.conftest import small
from tests.test_models import apply, batch_of, built, model_config

TORCH = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}


def from_torch(module, cell, suffix):
    """The parameters of a `Layer`."""
    get = {name: getattr(module, f"{name}_{suffix}").detach().numpy() for name in ("weight_ih", "weight_hh")}
    b_ih, b_hh = (getattr(module, f"bias_{name}_{suffix}").detach().numpy() for name in ("ih", "hh"))
    found = {"input_kernel": get["weight_ih"].T, "recurrent_kernel": get["weight_hh"].T, "bias": b_ih + b_hh}
    if cell == "gru":
        n = 2 * len(b_ih) // 3
        found |= {"bias": np.concatenate([(b_ih + b_hh)[:n], b_ih[n:]]), "new_bias": b_hh[n:]}
    return found


@pytest.mark.parametrize("cell", CELLS)
def test_cells_are_those_of_pytorch(cell):
    """Outputs and last states of two layers, from given states of the first; float32, within 1e-6."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = getattr(torch.nn, TORCH[cell])(5, 7, num_layers=2)
    x_TBI = np.random.default_rng(0).normal(size=(11, 3, 5)).astype(np.float32)
    with torch.no_grad():
        output, last = theirs(torch.tensor(x_TBI))
    last = dict(zip("hc", last, strict=True)) if cell == "lstm" else {"h": last}
    config = FrozenConfigDict({"d_model": 7, "dtype": "float32", "options": {"cell": cell}})
    x = jnp.asarray(x_TBI)
    for layer in range(2):
        params = from_torch(theirs, cell, f"l{layer}")
        # In two calls, the second from the cached state of the first.
        run = jax.jit(lambda variables, x: Layer(config, cached=True).apply(variables, x, mutable="cache"))
        (first, _), cache = run({"params": params}, x[:4])
        (second, _), cache = run({"params": params, **cache}, x[4:])
        x = jnp.concatenate([first, second])
        for part, state in cache["cache"].items():
            np.testing.assert_allclose(state, last[part][layer], atol=1e-6)
    np.testing.assert_allclose(x, output, atol=1e-6)


def test_the_encoder_is_pytorchs_bidirectional_lstm_on_padded_rows():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model, params = built("seq2seq", cell="lstm", d_model=8, position="none")
    theirs = torch.nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)
    ends = {0: "", 1: "_reverse"}
    params = params | {f"encoder_{i}_{d}": from_torch(theirs, "lstm", f"l{i}{ends[d]}") for i in (0, 1) for d in ends}
    ids, lengths = batch_of("seq2seq")["encoder_inputs"], np.array([6, 4])
    table = np.asarray(params["embedding"]["embedding"]) * model.config.embedding_scale
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.tensor(table[ids]), lengths, batch_first=True)
    with torch.no_grad():
        expected, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    real = np.arange(6) < lengths[:, None]
    source = {"encoder_inputs": ids, "encoder_segment_ids": real.astype(np.int32)}
    found = jax.jit(lambda params: model.apply({"params": params}, source, method="encode"))(params)
    np.testing.assert_allclose(np.where(real[..., None], found, 0), expected, atol=1e-6)


@pytest.mark.parametrize("attention", ["bahdanau", "luong"])
def test_decoder_with_attention_against_numpy(attention):
    """Elman cells in float64, one step after the other; logits within 1e-5."""
    options = {"cell": "elman", "attention": attention, "num_layers": 1, "encoder_layers": 1, "position": "none"}
    model, params = built("seq2seq", **options)
    batch = batch_of("seq2seq")
    source = np.asarray(jax.jit(lambda b: model.apply({"params": params}, b, method="encode"))(batch), np.float64)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    layer, scores, table = p["decoder_0"], p["attend"], p["embedding"]["embedding"]
    s, expected = np.zeros((2, 16)), []

    def context(s):
        e = np.einsum("bd,bsd->bs", s, source @ scores["key"])
        if attention == "bahdanau":
            e = (np.tanh((s @ scores["query"])[:, None] + source @ scores["key"]) @ scores["score"])[..., 0]
        weights = np.exp(e) / np.exp(e).sum(axis=1, keepdims=True)
        return np.einsum("bs,bse->be", weights, source)

    for token in batch["inputs"].T:
        x = table[token] * model.config.embedding_scale @ layer["input_kernel"] + layer["bias"]
        if attention == "bahdanau":
            c = context(s)
            x = x + c @ layer["context_kernel"]
        s = np.tanh(x + s @ layer["recurrent_kernel"])
        c = c if attention == "bahdanau" else context(s)
        expected.append(np.tanh(np.concatenate([s, c], axis=1) @ p["readout"]["kernel"]) @ table.T)
    np.testing.assert_allclose(apply("seq2seq", **options)(batch), np.stack(expected, axis=1), atol=1e-5)


def test_feed_forward_against_numpy():
    """b + W x + U tanh(d + H x) of each window, in float64."""
    options = {"window": 3, "direct": True, "head_bias": True, "use_bias": True, "position": "none"}
    model, params = built("feed_forward", **options)
    batch, p = batch_of("feed_forward"), jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    table = p["embedding"]["embedding"] * model.config.embedding_scale
    logits = apply("feed_forward", **options)(batch)
    for b, row in enumerate(batch["inputs"]):
        for t in range(len(row)):
            x = np.concatenate([table[row[t - age]] if t >= age else np.zeros(16) for age in range(3)])
            hidden = np.tanh(x @ p["hidden"]["kernel"] + p["hidden"]["bias"])
            expected = np.concatenate([hidden, x]) @ p["embedding"]["head"] + p["embedding"]["head_bias"]
            np.testing.assert_allclose(logits[b, t], expected, atol=1e-5)


D, F, V, T, S = 16, 32, 32, 8, 6
HEAD, RECURRENCE = T * D * V, {"elman": 1, "gru": 3, "lstm": 4}
BOTH_WAYS = 2 * S * 2 * D * 3 * D  # an encoder layer of GRUs, input D
READOUT = T * 3 * D * D


@pytest.mark.parametrize(
    ("family", "options", "products"),
    [
        *(("rnn", {"cell": cell}, 2 * T * 2 * D * gates * D + HEAD) for cell, gates in RECURRENCE.items()),
        ("feed_forward", {"window": 4}, T * (4 * D * F + F * V)),
        ("feed_forward", {"window": 4, "direct": True}, T * (4 * D * F + (F + 4 * D) * V)),
        (
            "seq2seq",  # key, query, score, mixture of the source, context, cell
            {"attention": "bahdanau", "num_layers": 1, "encoder_layers": 1},
            BOTH_WAYS
            + S * 2 * D * D
            + T * (D * D + S * D + S * 2 * D + 2 * D * 3 * D + 2 * D * 3 * D)
            + READOUT
            + HEAD,
        ),
        (
            "seq2seq",
            {"attention": "luong", "num_layers": 1, "encoder_layers": 1},
            BOTH_WAYS + S * 2 * D * D + T * (S * D + S * 2 * D + 6 * D * D) + READOUT + HEAD,
        ),
    ],
)
def test_counts_are_those_by_hand(family, options, products):
    """Multiply-adds of a row's forward pass; forward and backward cost three times as much."""
    model = models.build(ConfigDict(model_config(family=family, position="none", **options)))
    batch = {name: x[:1] for name, x in batch_of(family).items()}
    lengths = {name: x.shape[1] for name, x in batch.items()}
    assert sum(flops.row_flops(model, lengths, batch, ()).values()) == 2 * products
    params = nn.unbox(models.parameter_shapes(model, batch))
    both = jax.make_jaxpr(jax.grad(lambda p: model.apply({"params": p}, batch).sum()))(params)
    assert flops.dot_flops(both.jaxpr) == 3 * 2 * products


@pytest.mark.parametrize("family", ["rnn", "feed_forward", "seq2seq"])
def test_counts_against_xla_cost_analysis(family):
    """One step, as XLA counts the body of a loop once; gates and softmax are below 8 % at width 128."""
    model = models.build(ConfigDict(model_config(family=family, position="none", d_model=128, mlp_dim=512)))
    batch = {name: x[:1, :1] for name, x in batch_of(family).items()}
    params = nn.unbox(models.parameter_shapes(model, batch))
    counted = jax.jit(lambda p: model.apply({"params": p}, batch)).lower(params).compile().cost_analysis()["flops"]
    ours = sum(flops.row_flops(model, {name: 1 for name in batch}, batch, ()).values())
    assert ours <= counted <= 1.08 * ours


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *(("rnn", {"cell": cell}) for cell in ("elman", "lstm", "gru")),
        ("feed_forward", {"direct": True}),
        *(("seq2seq", {"attention": name}) for name in ("bahdanau", "luong")),
        ("word2vec", {"tie_embeddings": False, "num_layers": 1}),
    ],
)
def test_memory_is_near_that_of_the_compiled_step(family, options):
    """Temporaries of forward and backward pass, estimated within 40 %."""
    config = model_config(family=family, position="none", d_model=64, mlp_dim=256, **options)
    model = models.build(ConfigDict(config))
    ids_BT = np.random.default_rng(0).integers(0, 32, (8, 64))
    batch = {"inputs": ids_BT, **({"encoder_inputs": ids_BT[:, :48]} if family == "seq2seq" else {})}
    lengths = {name: x.shape[1] for name, x in batch.items()}
    batch |= {"contexts": ids_BT} if family == "word2vec" else {}
    params = nn.unbox(models.parameter_shapes(model, batch))

    def loss(params):
        found = model.apply({"params": params}, batch, project=False)
        return sum(jnp.var(getattr(x, "x_BTD", x)) for x in found.values())  # without logits

    used = jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes
    estimated = flops.memory_bytes(0, config, lengths, 8, 0)
    assert 0.6 < estimated["activations"] / used < 1.4, (estimated, used)
    assert (estimated["logits"] == 0) == (family == "word2vec")


def test_bad_options_are_refused():
    for family, overrides, message in [
        ("rnn", {"cell": "lstn"}, "expected elman | lstm | gru, got 'lstn'; did you mean 'lstm'"),
        ("seq2seq", {"attention": "dot"}, "model.options.attention: expected bahdanau | luong, got 'dot'"),
        ("feed_forward", {"tie_embeddings": True}, "expected tie_embeddings False, num_layers 1 .* got True, 1 and 8"),
        ("feed_forward", {"window": 0}, "got False, 1 and 0; see configs/feed_forward.py"),
    ]:
        model = models.build(ConfigDict(model_config(family=family, **overrides)))
        with pytest.raises(InputError, match=message.replace("|", r"\|")):
            models.parameter_shapes(model, batch_of(family))


@pytest.mark.parametrize(("family", "more"), [("rnn", {"data__mode": "pack"}), ("seq2seq", {}), ("feed_forward", {})])
def test_a_trained_run_generates_and_scores(family, more, tmp_path):
    run = resolve(small(family, model__num_layers=1, **more))
    assert trainer.train(run, tmp_path / "run", show_progress=False) == trainer.DONE
    model = lmjax.load(tmp_path / "run")
    [[one]] = model.generate([[97, 98]], max_new_tokens=4, stop_ids=())
    assert len(one.ids) == 4
    if family != "seq2seq":
        ids = np.asarray([[model.tokenizer.specials.eos, 97, 98]])
        logits = model.model.apply({"params": model.params}, {"inputs": ids})
        np.testing.assert_allclose(model.score("ab", "c").log_prob, nn.log_softmax(logits[0, -1])[99], rtol=1e-5)


def test_feed_forward_and_recurrent_models_train_under_mup():
    """Matrices of the hidden layer learn at 1 / m, tables and heads at 1; the logits are divided by m."""
    mup = {"parametrization__name": "mup", "parametrization__base_width": 8, "model__num_layers": 1}
    for family, hidden in (("rnn", {"input_kernel", "recurrent_kernel"}), ("feed_forward", {"kernel"})):
        run = resolve(small(family, **mup))
        rates = {path[-1].key: scale.rate for path, scale in jax.tree_util.tree_leaves_with_path(run.scales)}
        assert {name for name, rate in rates.items() if rate == 0.5} == hidden
        assert run.config.model.logit_multiplier == 0.5
    with pytest.raises(InputError, match="'mup': model.family 'seq2seq' has no rule for"):
        resolve(small("seq2seq", **mup))

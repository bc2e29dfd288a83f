"""Guards against a discriminator with wrong labels or inputs, and a query stream that sees its own or later tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import flops, losses, models
from lmjax.errors import InputError
from lmjax.evals import perplexity
from lmjax.evals.rows import Row, predict
from lmjax.evals.score import available, score
from lmjax.models.attention import alibi_slopes
from lmjax.models.electra import draw
from lmjax.models.layers import Logits
from lmjax.resolve import resolve
from tests.conftest import small
from tests.random_runs import random_model
from tests.test_step import assert_close, outcome


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(model, params, rows, head=None):
    """Logits of the vocabulary, or the outputs of a head."""
    outputs = model.apply({"params": params}, rows, project=head is None)
    return outputs if head is None else outputs[head]


@functools.cache
def electra(**overrides):
    keys = {
        "objective__name": "electra",
        "model__family": "electra",
        "model__num_layers": 1,
        "optimizer__epsilon": 1e-3,
    }
    return resolve(small("encoder", **keys, **overrides))


@functools.cache
def first_step():
    return outcome(electra(), (1, 1, 1), steps=1)


def test_flops_of_experts_are_those_of_their_capacity():
    """5 of 16 slots in each of 8 experts, in the feed-forward layers of the discriminator (16 x 64) and the generator
    (4 x 16). They were counted as in evaluation, where no token is left out."""
    found = [electra(model__num_experts=8, model__expert_capacity=capacity) for capacity in (None, 1.25)]
    whole, cut = (run.shape.row_flops for run in found)
    assert whole - cut == 3 * 8 * (16 - 5) * 2 * 2 * (16 * 64 + 4 * 16)


def test_flops_are_those_of_the_training_step():
    """Exact. Drawing takes 2 x 16 tokens x width 16 x 320 ids, without a backward pass; it was counted three times."""
    run = electra()
    row = run.batches.rows([0])

    def loss(params):
        found, _ = losses.terms(run.heads, run.model.apply({"params": params}, row, project=False), row)
        return sum(total for total, _ in found.values())

    step = jax.make_jaxpr(jax.grad(loss))(models.plain_shapes(run.model, row))
    assert run.shape.row_flops == flops.dot_flops(step.jaxpr)
    parts = flops.row_flops(run.model, run.lengths, row, run.heads)
    assert parts["drawing"] == 2 * 16 * 16 * 320 and run.shape.row_flops == 3 * parts["matrix products"] + 163840


def test_draws_follow_the_distribution():
    p = np.array([0.2, 0.5, 0.3])
    logits = jnp.log(jnp.broadcast_to(jnp.asarray(p, jnp.float32), (1, 1000, 3)))
    noise = (np.arange(1000, dtype=np.float32)[None] + 0.5) / 1000
    assert np.bincount(draw(logits, noise)[0]).tolist() == [200, 500, 300]
    assert draw(logits[:, :1], np.float32([[1 - 2**-24]])).tolist() == [[2]]


def test_draws_in_chunks_of_time_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    head = Logits(jnp.asarray(rng.normal(size=(2, 7, 3)), jnp.float32), jnp.asarray(rng.normal(size=(3, 5))), None)
    noise = rng.random((2, 7), np.float32)
    whole = losses.by_position(draw, head, noise)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 2 * 4 * 5)  # 4 of 7 positions, so one is padding
    assert losses.chunk_count(2, 7, 5) == 2
    assert losses.by_position(draw, head, noise).tolist() == whole.tolist() and len(np.unique(whole)) > 3


def test_electra_against_its_parts_in_numpy():
    """Drawing, labels and loss in float64 from the logits of the generator, and of an encoder with the parameters of
    the discriminator alone."""
    run, (params, found, _, state) = electra(), first_step()
    rows = run.batches.rows(np.arange(8))
    logits = np.asarray(apply(run.model, params, rows), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    drawn = (np.cumsum(p, -1) <= rows["noise"][..., None]).sum(-1)
    chosen = rows["weights"] > 0
    seen = np.where(chosen, drawn, rows["targets"])
    labels = seen != rows["targets"]
    assert 0 < labels.sum() <= chosen.sum() and not labels[~chosen].any()

    section = run.config.model.copy_and_resolve_references()
    section.unlock()
    section.family = "encoder"
    encoder = models.build(section, heads=run.heads)
    kept = {name: params[name] for name in ("embedding", "encoder", "heads")}
    replaced = np.asarray(apply(encoder, kept, {**rows, "inputs": seen}, "replaced"), np.float64)
    nats = np.log(np.exp(replaced).sum(-1)) - np.where(labels, replaced[..., 1], replaced[..., 0])
    lm = -np.log(np.take_along_axis(p, rows["targets"][..., None], -1)[..., 0])[chosen].mean()
    assert found[0] == pytest.approx(lm + 50 * nats.mean(), rel=1e-5)
    assert np.divide(*state["replaced_accuracy"]) == pytest.approx(
        ((replaced[..., 1] > replaced[..., 0]) == labels).mean()
    )


def test_electra_does_not_depend_on_devices_or_micro_batches():
    run = electra(train__accumulation_steps=2)
    one, other = first_step(), outcome(run, (2, 2, 1), steps=1)
    assert_close(one[1:3], other[1:3])
    metrics = [{name: np.divide(*found[3][name]) for name in run.metrics} for found in (one, other)]
    assert_close(*metrics)


def test_the_discriminator_does_not_train_the_generator():
    run, params = electra(), first_step()[0]
    rows = run.batches.rows(np.arange(2))

    def loss(params):
        return jnp.sum(apply(run.model, params, rows, "replaced")[..., 0])

    size = {
        name: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(g))
        for name, g in jax.jit(jax.grad(loss))(params).items()
    }
    own = {"generator", "generator_in", "generator_out"}
    assert {name for name in size if size[name] == 0} == own and run.model.config.mlp_dim == 64
    assert params["generator_in"]["kernel"].shape == (16, 4)


@functools.cache
def xlnet(position="alibi"):
    keys = {"objective__name": "permutation_lm", "model__family": "xlnet", "model__position": position}
    run = resolve(small("encoder", **keys))
    params = jax.jit(run.model.init)(jax.random.key(0), run.batches.rows([0]))["params"]
    return run, jax.tree.map(
        np.asarray, jax.tree.map(lambda x: x.unbox(), params, is_leaf=lambda x: hasattr(x, "unbox"))
    )


def expected_logits(params, tokens, order, config):
    """Two streams in float64, one position and head after the other."""
    T, H = len(tokens), config.num_heads
    layers, table = params["stack"]["layers"], params["embedding"]["embedding"].astype(np.float64)

    def norm(x, scale):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_epsilon) * scale

    def attention(x, content, strict, kernels):
        q, k, v = (
            (y @ kernels[name]["kernel"]).reshape(T, H, -1)
            for name, y in (("query", x), ("key", content), ("value", content))
        )
        out = np.zeros(q.shape)
        for i in range(T):
            sees = [j for j in range(T) if order[j] < order[i] or (order[j] == order[i] and not strict)] or range(T)
            for h, slope in enumerate(alibi_slopes(H)):
                scores = [q[i, h] @ k[j, h] / np.sqrt(q.shape[-1]) - slope * abs(i - j) for j in sees]
                out[i, h] = np.exp(scores) / np.exp(scores).sum() @ v[list(sees), h]
        return out.reshape(T, -1) @ kernels["out"]["kernel"]

    streams = [config.embedding_scale * table[tokens], np.tile(params["query"].astype(np.float64), (T, 1))]
    for layer in range(config.num_layers):
        one = jax.tree.map(lambda x, layer=layer: x[layer].astype(np.float64), layers)
        normed = [norm(x, one["self_attention_norm"]["scale"]) for x in streams]
        for stream in range(2):
            x = streams[stream] + attention(normed[stream], normed[0], stream == 1, one["self_attention"])
            h = norm(x, one["feed_forward_norm"]["scale"]) @ one["feed_forward"]["up"]["kernel"]
            h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
            streams[stream] = x + h @ one["feed_forward"]["down"]["kernel"]
    return norm(streams[1], params["stack"]["final_norm"]["scale"]) @ table.T


def test_two_streams_against_numpy():
    run, params = xlnet()
    row = run.batches.rows([0])
    found = apply(run.model, params, row)[0]
    expected = expected_logits(params, row["inputs"][0], row["order"][0], run.config.model)
    predicted = row["weights"][0] > 0
    assert predicted.sum() == 3  # 16 / 6
    np.testing.assert_allclose(found[predicted], expected[predicted], atol=2e-5)


def test_a_prediction_sees_the_tokens_before_it_and_not_its_own():
    """In the order of the text, and in any other."""
    run, params = xlnet("rotary")
    row = run.batches.rows([0])
    for order in (np.arange(16), np.random.default_rng(0).permutation(16)):
        order = order.astype(np.int32)[None]
        other = row["inputs"].copy()
        other[0, 9] += 1
        rows = [{**row, "order": order, "inputs": inputs} for inputs in (row["inputs"], other)]
        one, two = (np.asarray(apply(run.model, params, each))[0] for each in rows)
        changed = np.abs(one - two).max(-1) > 0
        assert (changed == (order[0] > order[0, 9]))[order[0] > 0].all()


@functools.cache
def scored():
    """An XLNet with a window of 16 bytes whose predictions differ, and -log p [T, V] in float64 of a row and order."""
    keys = {"objective__name": "permutation_lm", "model__family": "xlnet", "model__position": "alibi"}
    trained = random_model("encoder", 0.3, **keys)

    def nats(text, order):
        logits = expected_logits(trained.params, np.asarray(text), np.asarray(order), trained.config.model)
        return np.log(np.exp(logits).sum(-1, keepdims=True)) - logits

    return trained, nats


def test_scores_of_the_three_semantics_against_numpy():
    """Each token of " sat" by one row of its own. From left to right, that row ends with another token in its place."""
    trained, nats = scored()
    text, gap = [256, *b"The cat sat on"], range(8, 12)
    expected = {
        "causal": [nats([*text[:i], 0], [*[0] * 8, *range(1, i - 6)])[i, text[i]] for i in gap],
        "pseudo": [nats(text, np.arange(15) == i)[i, text[i]] for i in gap],
        "masked": [nats(text, np.isin(np.arange(15), gap))[i, text[i]] for i in gap],
    }
    assert available(trained) == tuple(expected)
    for semantics, each in expected.items():
        pair = ("The cat", " sat") if semantics == "causal" else ("The cat", " sat", " on")
        found = score(trained, [pair], semantics)[0]
        np.testing.assert_allclose(found.token_log_probs, np.negative(each), atol=5e-5)


def test_perplexities_against_numpy():
    """20 bytes after eos in windows of 16: the last predicted token takes a place, so 15 are predicted, then 6 (one of
    them eos) of which the first sees one."""
    trained, nats = scored()
    text = [256, *b"Shall I compare thee", 256]

    def from_left(begin, first, end):
        order = [*[0] * (first - begin), *range(1, end - first + 1)]
        return nats(text[begin:end], order)[np.arange(first, end) - begin, text[first:end]]

    each = np.concatenate([from_left(0, 1, 16), from_left(15, 16, 22)])
    found = perplexity.evaluate(trained, documents=["Shall I compare thee"], semantics="causal", bins=0)
    assert found["loss_tokens"] == 21 and found["loss"] == pytest.approx(each.mean(), abs=2e-5)
    assert found["bits_per_byte"] == pytest.approx(each.sum() / np.log(2) / 20, abs=5e-5)
    each = [nats(text[:16], np.arange(16) == i)[i, text[i]] for i in range(1, 16)]
    found = perplexity.evaluate(trained, documents=["Shall I compare"], semantics="pseudo", bins=0)
    assert found["loss"] == pytest.approx(np.mean(each), abs=2e-5) and found["perplexity"] is None


def test_contexts_and_continuations_that_do_not_fit_the_window():
    trained, _ = scored()
    assert [score(trained, [("a" * n, "bcd")])[0].dropped for n in (12, 13, 14)] == [0, 0, 1]  # 13 leave out the eos
    with pytest.raises(InputError, match="16 tokens does not fit the model's window of 16"):
        score(trained, [("a", "b" * 16)])
    with pytest.raises(InputError, match="got 2 ids that are all predicted"):
        predict(trained, [Row(np.asarray([5, 6]), np.asarray([5, 6]), np.arange(2), masked=True)])


def test_padding_and_queries_that_see_nothing_take_no_slot_of_an_expert():
    """Other ids in the padding, which these queries average, change no prediction in training."""
    keys = {"objective__name": "permutation_lm", "model__family": "xlnet", "model__position": "rotary"}
    run = resolve(small("encoder", **keys, model__num_experts=4, model__num_layers=1, model__expert_capacity=0.5))
    row = run.batches.rows([0])
    params = jax.jit(run.model.init)(jax.random.key(0), row)["params"]
    row["segment_ids"] = np.repeat(np.int32([1, 0]), [10, 6])[None]
    row["order"] = np.int32([[0, 3, 0, 1, 0, 0, 2, 5, 4, 0, 0, 0, 0, 0, 0, 0]])
    apply = jax.jit(lambda row: run.model.apply({"params": params}, row, deterministic=False))

    def predictions(padding):
        inputs = np.where(row["segment_ids"], row["inputs"], padding)
        return np.asarray(apply({**row, "inputs": inputs}))[0, row["order"][0] > 0]

    for padding in range(65, 73):
        np.testing.assert_array_equal(predictions(padding), predictions(64))


def test_rows_without_an_order_or_positions_are_refused():
    run, params = xlnet()
    with pytest.raises(InputError, match="expected rows of permutation_lm"):
        run.model.apply({"params": params}, {"inputs": run.batches.rows([0])["inputs"]})
    with pytest.raises(InputError, match="expected model.position rotary, relative, alibi"):
        xlnet("learned")
    with pytest.raises(InputError, match="expected objective.name 'electra', whose rows have noise"):
        resolve(small("encoder", model__family="electra"))
    with pytest.raises(InputError, match="objective electra: .* expected model.family electra, got encoder"):
        resolve(small("encoder", objective__name="electra"))

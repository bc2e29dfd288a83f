"""Guards against heads whose loss depends on micro-batches or devices, counts padding, or is not the one documented."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import flops, losses, run_record, trained, trainer
from lmjax.errors import InputError
from lmjax.models.layers import Heads
from lmjax.objectives import LM, OBJECTIVES, Head
from lmjax.objectives.battery import check_objective
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.resolve import resolve
from tests.conftest import small
from tests.test_step import assert_close, outcome

HEADS = (
    LM,
    Head("third", "tokens", 3, coefficient=0.5),
    Head("parity", "row", 2, coefficient=2.0, position="mean"),
    Head("place", "span", position="first"),
    Head("mean", "value", position="last"),
)


def make_example(tokens, rng, spec):
    """Masked tokens; each id modulo 3; parity of the first id; where the largest ids lie; the mean of the ids."""
    weight = np.float32(tokens[0] % 4 > 0)  # some rows have no label
    largest = np.sort(np.argsort(tokens)[-2:]).astype(np.int32)
    return {
        **MASKED_LM.make_example(tokens, rng, spec),
        "third_targets": (tokens % 3).astype(np.int32),
        "third_weights": (tokens < 128).astype(np.float32) + np.float32(0.5),
        "parity_targets": np.asarray(tokens[0] % 2, np.int32),
        "parity_weights": weight,
        "place_targets": largest,
        "place_weights": weight,
        "mean_targets": np.asarray(tokens.mean() / 256, np.float32),
        "mean_weights": np.float32(1.0),
    }


EVERY = dataclasses.replace(MASKED_LM, name="every_head", make_example=make_example, heads=lambda options: HEADS)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, EVERY.name, EVERY)


@functools.cache
def resolved(**overrides):
    keys = {"objective__name": EVERY.name, "model__num_layers": 1, "optimizer__epsilon": 1e-3}
    return resolve(small("encoder", **keys, **overrides))


@functools.cache
def one_device():
    return outcome(resolved(), (1, 1, 1))


def scores(run, params):
    """(outputs, rows) of the first global batch."""
    rows = run.batches.rows(np.arange(8))
    outputs = jax.jit(lambda params, rows: run.model.apply({"params": params}, rows, project=False))(params, rows)
    return {**outputs, "lm": outputs["lm"].logits()}, rows


def test_battery():
    assert check_objective(EVERY, lengths=(3, 7, 32)).startswith("every_head: shapes, determinism, hidden answers")
    with pytest.raises(AssertionError, match="third_targets: values outside 0..1"):
        check_objective(dataclasses.replace(EVERY, heads=lambda o: (LM, Head("third", "tokens", 2), *HEADS[2:])))


def test_the_loss_is_the_sum_of_the_heads_against_numpy_in_float64():
    run, (initial, found, _, state) = resolved(), outcome(resolved(), (1, 1, 1), steps=1)
    outputs, rows = scores(run, initial)
    outputs = {name: np.asarray(x, np.float64) for name, x in outputs.items()}

    def nats(logits, targets):
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        return -np.log(np.take_along_axis(p, targets[..., None], -1))[..., 0]

    place = nats(outputs["place"].swapaxes(1, 2), rows["place_targets"]).sum(1)
    by_row = {
        "lm": nats(outputs["lm"], rows["targets"]),
        "third": nats(outputs["third"], rows["third_targets"]),
        "parity": nats(outputs["parity"], rows["parity_targets"]),
        "place": place,
        "mean": (outputs["mean"] - rows["mean_targets"]) ** 2,
    }
    expected = {head.name: np.average(by_row[head.name], weights=rows[head.weights]) for head in HEADS}
    total = sum(head.coefficient * expected[head.name] for head in HEADS)
    assert found[0] == pytest.approx(total, rel=1e-5)
    for name, value in expected.items():
        assert np.divide(*state[f"{name}_loss"]) == pytest.approx(value, rel=1e-5)
    right = (outputs["third"].argmax(-1) == rows["third_targets"]) * rows["third_weights"]
    assert np.divide(*state["third_accuracy"]) == pytest.approx(right.sum() / rows["third_weights"].sum())
    assert 0 < rows["parity_weights"].sum() < 8  # some rows have no label


@pytest.mark.parametrize(("micro", "mesh_shape"), [(4, (1, 1, 1)), (1, (8, 1, 1)), (2, (2, 2, 1))])
def test_loss_and_gradient_do_not_depend_on_micro_batches_or_devices(micro, mesh_shape):
    one, other = one_device(), outcome(resolved(train__accumulation_steps=micro), mesh_shape)
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert_close(one[1:3], other[1:3])
    assert_close(one[3]["params"], other[3]["params"])
    metrics = [{name: np.divide(*state[name]) for name in resolved().metrics} for state in (one[3], other[3])]
    assert_close(*metrics)


def test_global_weights_are_computed_without_a_forward_pass():
    """Twice the forward passes would double the cost of accumulation unnoticed; XLA removes them as dead code."""

    def outside_the_gradient(weigh):
        def terms_of(params, micro, key):
            forward = jnp.tan(params * micro["x"])
            return {name: (jnp.sum(forward), weigh(micro[name], forward)) for name in ("a", "b")}, {}, {}

        batch = {name: jnp.ones((4, 8, 2)) for name in ("x", "a", "b")}
        function = jax.jit(functools.partial(losses.gradient, terms_of, {}))
        text = function.lower(jnp.ones(()), batch, jax.random.key(0)).compile().as_text()
        found = [line for line in text.splitlines() if " tan(" in line]
        assert found
        return [line for line in found if "jvp" not in line]

    assert not outside_the_gradient(lambda weights, forward: jnp.sum(weights))
    assert outside_the_gradient(lambda weights, forward: jnp.sum(weights * forward))  # these need the forward pass


def test_padding_counts_for_no_head():
    config = resolved().model.config
    heads = [Head("a", "row", 3, position=p) for p in ("first", "last", "mean")]
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    segments = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = [x[:, 0], np.stack([x[0, 2], x[1, 4]]), np.stack([x[0, :3].mean(0), x[1].mean(0)])]
    for head, vector in zip(heads, expected, strict=True):
        module = Heads(config, (head, Head("ends", "span")))
        variables = module.init(jax.random.key(0), x)
        found, kernel = module.apply(variables, x, segments), variables["params"]["a_kernel"].unbox()
        np.testing.assert_allclose(found["a"], vector @ np.asarray(kernel), atol=1e-5)
        assert (found["ends"][0, 3:] < -1e8).all() and (found["ends"][0, :3] > -1e8).all()


def future(tokens, rng, spec):
    """Masked tokens, and the id two positions ahead."""
    weights = (np.arange(len(tokens)) < len(tokens) - 2).astype(np.float32)
    ahead = np.roll(tokens, -2).astype(np.int32)
    return {**MASKED_LM.make_example(tokens, rng, spec), "future_targets": ahead, "future_weights": weights}


def test_a_second_head_over_the_vocabulary(monkeypatch):
    """It is the head with the number of ids as its classes, bit for bit."""
    found = []
    for classes in (None, 320):
        head = Head("future", "tokens", classes, coefficient=0.5)
        one = dataclasses.replace(EVERY, make_example=future, heads=lambda options, head=head: (LM, head))
        monkeypatch.setitem(OBJECTIVES, EVERY.name, one)
        run = resolve(small("encoder", objective__name=EVERY.name, model__num_layers=1))
        assert run.config.model.vocab_size == 320 and check_objective(one, lengths=(7, 32))
        found.append((run.derived["flops_per_step"], *jax.tree.leaves(outcome(run, (1, 1, 1), steps=2)[:2])))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_flops_of_the_heads_are_those_of_the_traced_program():
    run = resolved()
    parts = flops.row_flops(run.model, run.lengths, run.batches.rows([0]), run.heads)
    assert {"matrix products": sum(parts.values())} == flops._traced(run.model, run.batches.rows([0]))
    assert parts["other heads"] == 2 * 16 * (16 * 3 + 2 + 2 * 16 + 1)
    assert "head" not in flops.row_flops(run.model, run.lengths, run.batches.rows([0]), run.heads[1:])


def test_a_run_records_every_head_and_loads_again(tmp_path):
    run = resolved(duration__steps=4)
    assert trainer.train(run, tmp_path, show_progress=False) == trainer.DONE
    *_, last = run_record.read_metrics(tmp_path / "metrics.jsonl")
    summary = run_record.read_json(tmp_path / "summary.json")
    for name in ("lm", "third", "parity", "place", "mean"):
        assert 0 < last[f"{name}_loss"] < 10 and last[f"validation_{name}_loss"] == summary[f"{name}_loss"]
        assert name == "lm" or summary[f"{name}_reference"] > 0
    assert 0 <= summary["parity_accuracy"] <= 1 and "mean_accuracy" not in summary
    total = sum(head.coefficient * summary[f"{head.name}_loss"] for head in HEADS)
    assert summary["loss"] == pytest.approx(total) == pytest.approx(last["validation_loss"])
    assert summary["perplexity"] == pytest.approx(np.exp(summary["lm_loss"]))
    again = trained.load(tmp_path)
    assert [head.name for head in again.model.extra_heads] == ["third", "parity", "place", "mean"]
    rows = run.batches.rows([0])
    assert again.model.apply({"params": again.params}, rows).shape == (1, 16, run.config.model.vocab_size)


def test_heads_are_outputs_under_mup():
    """Their logits are divided by the width ratio, and their rate and decay are those of the base width."""
    run = resolved(**{"parametrization__name": "mup", "parametrization__base_width": 8})
    kernel, bias = (run.scales["heads"][f"parity_{name}"] for name in ("kernel", "bias"))
    assert (kernel.role, kernel.rate, kernel.decay, kernel.gradient) == ("output", 1.0, 1.0, 2.0)
    assert (bias.role, bias.decay, bias.gradient) == ("vector", 0.0, 1.0)
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    wide, base = (Heads(r.model.config, (HEADS[2],)) for r in (run, resolved()))
    variables = base.init(jax.random.key(0), x)
    found = [np.asarray(module.apply(variables, x)["parity"]) for module in (wide, base)]
    np.testing.assert_allclose(found[0], found[1] / 2, rtol=1e-5)


def smoothed(outputs, batch, options):
    """Cross-entropy against 0.9 x the target + 0.1 x uniform, and a z-loss."""
    log_p = jax.nn.log_softmax(outputs["lm"].logits())
    log_z = jax.nn.logsumexp(outputs["lm"].logits(), axis=-1)
    target = jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    weight = jnp.sum(batch["weights"])
    nats = -0.9 * target - 0.1 * jnp.mean(log_p, axis=-1)
    return {
        "lm": (jnp.sum(nats * batch["weights"]), weight),
        "z": (1e-2 * jnp.sum(log_z**2 * batch["weights"]), weight),
    }


def test_a_loss_of_your_own_replaces_terms_and_adds_others(monkeypatch):
    """Trained with the smoothed loss, evaluated by the plain one, so that runs remain comparable."""
    objective = dataclasses.replace(MASKED_LM, name="smoothed", loss=smoothed)
    monkeypatch.setitem(OBJECTIVES, "smoothed", objective)
    keys = {"objective__name": "smoothed", "model__num_layers": 1}
    runs = [resolve(small("encoder", **keys, train__accumulation_steps=n)) for n in (1, 4)]
    assert runs[0].metrics == ("lm_loss", "z_loss")
    one, four = (outcome(run, (1, 1, 1), steps=1) for run in runs)
    assert_close(one[1:3], four[1:3])
    outputs, rows = scores(runs[0], one[0])
    logits = np.asarray(outputs["lm"], np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    plain = log_z - np.take_along_axis(logits, rows["targets"][..., None], -1)[..., 0]
    nats = 0.9 * plain + 0.1 * (log_z - logits.mean(-1)) + 1e-2 * log_z**2
    assert one[1][0] == pytest.approx(np.average(nats, weights=rows["weights"]), rel=1e-5)
    found = losses.row_terms((LM,), {"lm": outputs["lm"]}, rows)["lm"]
    np.testing.assert_allclose(found[0], (plain * rows["weights"]).sum(1), rtol=1e-5)


def with_extras(tokens, rng, spec):
    """Distributions [T, 3], and a pair of numbers per row."""
    example = CAUSAL_LM.make_example(tokens, rng, spec)
    teacher = np.eye(3, dtype=np.float32)[example["inputs"] % 3]
    return {**example, "teacher": teacher, "ends": tokens[[0, -1]].astype(np.int32)}


def distance(outputs, batch, options):
    """Squares of the teacher minus the first three logits, times the last token of the source."""
    squares = jnp.sum((batch["teacher"] - outputs["lm"].logits()[..., :3]) ** 2, axis=-1) * batch["ends"][:, 1:]
    return {"distance": (jnp.sum(squares * batch["weights"]), jnp.sum(batch["weights"]))}


DISTILLED = dataclasses.replace(CAUSAL_LM, name="distilled", make_example=with_extras, loss=distance)
EXTRAS = {"teacher": "tokens", "ends": "row"}


@pytest.mark.parametrize(("micro", "mesh_shape"), [(1, (1, 1, 1)), (2, (2, 2, 1))])
def test_a_loss_reads_further_arrays_of_the_examples(monkeypatch, micro, mesh_shape):
    """Against NumPy in float64, whole and in micro-batches on four devices."""
    monkeypatch.setitem(OBJECTIVES, "distilled", dataclasses.replace(DISTILLED, extras=EXTRAS))
    run = resolve(small("decoder", objective__name="distilled", train__accumulation_steps=micro))
    found = outcome(run, mesh_shape, steps=1)
    outputs, rows = scores(run, found[0])
    logits = np.asarray(outputs["lm"], np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, rows["targets"][..., None], -1)[..., 0]
    squares = ((np.eye(3)[rows["inputs"] % 3] - logits[..., :3]) ** 2).sum(-1) * rows["targets"][:, -1:]
    assert (rows["ends"][:, 1] == rows["targets"][:, -1]).all()
    expected = np.average(nats + squares, weights=rows["weights"])
    assert found[1][0] == pytest.approx(expected, rel=1e-5)


def test_further_arrays_are_padded_like_the_inputs(monkeypatch):
    half = lambda tokens, rng, spec: with_extras(tokens[: len(tokens) // 2], rng, spec)  # noqa: E731
    objective = dataclasses.replace(DISTILLED, make_example=half, loss=None, extras=EXTRAS, padded=True)
    monkeypatch.setitem(OBJECTIVES, "distilled", objective)
    rows = resolve(small("decoder", objective__name="distilled")).batches.rows(range(8))
    inside = rows["segment_ids"] > 0
    assert not inside.all() and rows["teacher"].dtype == np.float32 and rows["ends"].shape == (8, 2)
    np.testing.assert_array_equal(rows["teacher"], np.eye(3)[rows["inputs"] % 3] * inside[..., None])


@pytest.mark.parametrize(
    ("extras", "array", "message"),
    [
        ({"teacher": "token"}, None, "unknown 'token'; did you mean 'tokens'"),
        ({"inputs": "tokens"}, None, "expected a name that no array of a batch has"),
        ({"soft_weights": "tokens"}, None, "does not begin with encoder_ or end with targets or weights"),
        ({"teacher": "tokens"}, np.zeros(5, np.float32), r"a value for each of the inputs, got float32 \(5,\)"),
        ({"teacher": "row"}, np.zeros(2), "expected int32, float32 or bool, got float64"),
        ({"other": "row"}, None, r"to return \['inputs', 'other', 'targets', 'weights'\]"),
    ],
)
def test_further_arrays_that_are_not_as_declared(monkeypatch, extras, array, message):
    def make(tokens, rng, spec):
        return {**CAUSAL_LM.make_example(tokens, rng, spec), "teacher": array}

    with pytest.raises(InputError, match=message):
        objective = dataclasses.replace(DISTILLED, make_example=make, loss=None, extras=extras)
        monkeypatch.setitem(OBJECTIVES, "distilled", objective)
        resolve(small("decoder", objective__name="distilled"))


def test_a_model_may_label_a_head_itself():
    heads, logits = (Head("real", "tokens", 2),), np.zeros((1, 2, 2), np.float32)
    outputs = {"real": jnp.asarray(logits), "real_targets": np.array([[0, 1]]), "real_weights": np.array([[1.0, 1.0]])}
    found, metrics = losses.terms(heads, outputs, {})
    assert float(found["real"][0]) == pytest.approx(2 * np.log(2)) and float(found["real"][1]) == 2
    assert float(metrics["real_accuracy"][0]) == 1
    with pytest.raises(InputError, match="expected real_targets from the objective's examples or the model"):
        losses.terms(heads, {"real": outputs["real"]}, {})
    with pytest.raises(InputError, match="expected an objective whose LM head has the plain loss"):
        losses.terms(heads, outputs, {}, z_loss=1e-4)


def test_the_z_loss_of_the_lm_head_is_in_the_gradient_alone():
    """Among several heads, with a coefficient: the value is that without a z-loss, the gradient that of both."""
    rng = np.random.default_rng(0)
    heads = (LM, Head("next", "row", 2, 0.5))
    outputs = {"lm": jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32), "next": jnp.zeros((2, 2))}
    batch = {"targets": np.ones((2, 3), np.int32), "weights": np.array([[1, 1, 0], [1, 0, 0]], np.float32)}
    batch |= {"next_targets": np.array([0, 1]), "next_weights": np.ones(2, np.float32)}

    def call(z_loss, logits):
        found, metrics = losses.terms(heads, {**outputs, "lm": logits}, batch, z_loss=z_loss)
        return found["lm"][0], metrics

    plain, added = (jax.value_and_grad(functools.partial(call, z), has_aux=True)(outputs["lm"]) for z in (0.0, 0.1))
    (value, metrics), gradient = added
    logits = np.asarray(outputs["lm"], np.float64)
    z = np.exp(logits).sum(-1, keepdims=True)
    weights = batch["weights"][..., None]
    assert value == plain[0][0] and "z_loss" not in plain[0][1] and metrics["z_loss"][1] == 3
    assert float(metrics["z_loss"][0]) == pytest.approx(0.1 * (weights * np.log(z) ** 2).sum(), rel=1e-6)
    np.testing.assert_allclose(gradient - plain[1], 0.2 * weights * np.log(z) * np.exp(logits) / z, atol=1e-6)


def test_a_term_of_the_batch_is_shared_out_over_its_rows():
    own = lambda outputs, batch: {"contrast": (jnp.float32(6.0), jnp.float32(3.0))}  # noqa: E731
    found = losses.row_terms((), {}, {"pair_weights": np.array([1.0, 2.0, 0.0])}, own)["contrast"]
    np.testing.assert_allclose(found[0], [2.0, 4.0, 0.0])
    np.testing.assert_allclose(found[1], [1.0, 2.0, 0.0])
    unlabelled = losses.row_terms((Head("contrast", "row", 2),), {}, {"inputs": np.zeros((3, 4), int)}, own)["contrast"]
    np.testing.assert_allclose(unlabelled[0], [2.0, 2.0, 2.0], rtol=1e-6)  # equal shares where only the loss has labels
    np.testing.assert_allclose(unlabelled[1], [1.0, 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        (
            {"heads": lambda o: (LM, Head("third", "tokens", 2), *HEADS[2:])},
            {},
            "'third' has 2 classes, expected",
        ),
        ({}, {"data__mode": "pack"}, "'parity' has one label per row, and data.mode 'pack'"),
        ({"heads": lambda o: HEADS[:4]}, {}, "expected make_example to return"),
    ],
)
def test_heads_that_do_not_fit_are_refused(monkeypatch, changes, overrides, message):
    monkeypatch.setitem(OBJECTIVES, "odd", dataclasses.replace(EVERY, name="odd", **changes))
    with pytest.raises(InputError, match=message):
        resolve(small("encoder", objective__name="odd", **overrides))


@pytest.mark.parametrize(
    "values", [("a", "rows"), ("a", "row"), ("lm", "row", 2), ("a", "value", 2), ("a b", "row", 2)]
)
def test_impossible_heads_are_refused(values):
    with pytest.raises(InputError, match=r"^head '"):
        Head(*values)

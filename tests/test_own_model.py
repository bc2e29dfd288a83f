"""Guards against a model, loss or plug-in in one file that trains wrongly, or is refused without its name."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pandas
import pytest

from lmjax import cli, models, run_record, trained
from lmjax import config as configs
from lmjax.config import run_once
from lmjax.decoding.ids import check_family
from lmjax.errors import InputError
from lmjax.evals.measure import undefined
from lmjax.evals.metrics import METRICS
from lmjax.evals.run import evaluate, list_tasks
from lmjax.evals.score import semantics_of
from lmjax.evals.tasks import TASKS, find
from lmjax.flops import row_flops
from lmjax.hf import architectures
from lmjax.objectives import LM, OBJECTIVES, Head
from lmjax.objectives.battery import check_objective
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.optim.optimizers import OPTIMIZERS, make_optimizer
from lmjax.optim.schedules import SCHEDULES
from lmjax.registry import Registry, of_type
from lmjax.resolve import resolve
from lmjax.scaling.laws import LAWS
from lmjax.sharding import make_mesh
from lmjax.trainer import DONE, make_init
from lmjax.validation import Validation
from tests.conftest import SMALL, train
from tests.test_pages import block
from tests.test_step import assert_close, outcome

KEYS = {**SMALL, "model.num_layers": 1}


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """The file in docs/objectives.md."""
    path = tmp_path_factory.mktemp("own") / "gated.py"
    path.write_text(block("own model"))
    return path


@pytest.fixture(scope="module")
def run(gated):
    return resolve(configs.load(str(gated), KEYS))


def test_the_recurrence_is_what_its_docstring_says(run, gated):
    """h_t = f_t h_(t-1) + (1 - f_t) v_t, one position after the other in float64."""
    module = configs.run_file(gated, "plugin").Recurrence(run.model.config)
    x = np.random.default_rng(0).normal(size=(2, 9, 16)).astype(np.float32)
    params = nn.unbox(module.init(jax.random.key(0), x)["params"])
    forget, value, gate, out = (np.asarray(params[k]["kernel"], np.float64) for k in ("forget", "value", "gate", "out"))
    h, expected = np.zeros((2, 16)), np.zeros(x.shape)
    for t in range(9):
        f = 1 / (1 + np.exp(-(x[:, t] @ forget + run.config.model.options.memory)))
        h = f * h + (1 - f) * (x[:, t] @ value)
        g = x[:, t] @ gate
        expected[:, t] = (h * g / (1 + np.exp(-g))) @ out
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-6)


def test_predictions_depend_on_the_past_alone(run):
    batch = run.batches.rows([0])
    params = nn.unbox(jax.jit(run.model.init)(jax.random.key(0), batch)["params"])
    other = {**batch, "inputs": batch["inputs"].copy()}
    other["inputs"][0, 9] += 1
    one, two = (np.asarray(run.model.apply({"params": params}, each)) for each in (batch, other))
    assert np.array_equal(one[:, :9], two[:, :9]) and not np.array_equal(one[:, 9:], two[:, 9:])


def test_counts_are_those_by_hand(run):
    """Per token: 4 matrices D x D, 2 of D x 4 D, and the tied table."""
    D, T, V = 16, 16, run.config.model.vocab_size
    matrices = 4 * D * D + 2 * D * 4 * D
    assert run.derived["flops_per_step"] == 3 * 2 * T * (matrices + D * V) * run.config.data.global_batch_size
    assert run.derived["n_total"] == matrices + D * V + 3 * D  # three norms
    assert run.derived["n_embedding"] == D * V and run.derived["n_matmul_head"] == matrices + 3 * D + D * V


def test_flops_of_a_function_of_your_own(run, monkeypatch):
    monkeypatch.setattr(type(run.model), "flops", staticmethod(lambda c, lengths: {"all": c.d_model}), raising=False)
    heads = (LM, Head("next", "row", 2))
    assert row_flops(run.model, run.lengths, run.batches.rows([0]), heads) == {"all": 16, "other heads": 2 * 16 * 2}


def test_what_the_model_cannot_do_is_refused_by_name(run, gated):
    for key, value, message in [
        ("data.mode", "pack", "'gated_recurrence' cannot pack"),
        ("objective.name", "prefix_lm", "prefix attention, which model.family gated_recurrence does not have"),
        ("model.options.memori", 1.0, "did you mean 'memory'"),
        ("model.options.memory", "long", "expected float like 2.0"),
        ("model.family", "gated_recurrance", "did you mean 'gated_recurrence'"),
    ]:
        with pytest.raises(InputError, match=message):
            resolve(configs.load(str(gated), {**KEYS, key: value}))
    with pytest.raises(InputError, match="'gated_recurrence' cannot generate text, as it has no cache"):
        check_family(run.config.model)
    with pytest.raises(InputError, match="no Hugging Face architecture is a model of family .gated_recurrence."):
        architectures.fit(run.config.model.to_dict(), {}, None)
    assert "'gated_recurrence' does not generate" in undefined(find(["addition_1"])[0], "gated_recurrence")
    assert semantics_of("gated_recurrence", "causal_lm", False) == ("causal",)
    assert semantics_of("encoder", "next_sentence", False) == ()  # its logits of tokens are not trained
    assert semantics_of("encoder", "masked_lm+next_sentence", False) == ("pseudo", "masked")


PLAIN = """
import flax.linen as nn
from lmjax.models import MODELS

class Plain(nn.Module):
    config: object
    attention = ("causal",)

    @nn.compact
    def __call__(self, batch, deterministic=True, project=True):
        x = nn.Embed(self.config.vocab_size, 8)(batch["inputs"])
        return nn.Dense(self.config.vocab_size)(nn.tanh(nn.Dense(8)(x)))

MODELS["plain"] = Plain
"""


def test_a_model_of_plain_layers_trains_in_the_standard_parametrization(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    keys = {**KEYS, "plugins": (str(path),), "model.family": "plain"}
    run = resolve(configs.load("configs/default.py", keys))
    decayed = {jax.tree_util.keystr(path): s.decay for path, s in jax.tree_util.tree_leaves_with_path(run.scales)}
    assert decayed["['Dense_0']['kernel']"] == 1 and decayed["['Dense_0']['bias']"] == 0
    mup = {"parametrization.name": "mup", "parametrization.base_width": 8}
    with pytest.raises(InputError, match="expected logical axes with a role"):
        resolve(configs.load("configs/default.py", {**keys, **mup}))
    with pytest.raises(InputError, match="'plain' cannot have the heads"):
        models.build(run.config.model, heads=(LM, Head("next", "row", 2)))


RUNS = []  # `outcome` knows a run by its id, which another object may get


def documented(folder, marker, overrides):
    """The run of a file in docs/objectives.md."""
    path = folder / f"{marker.split()[0]}.py"
    path.write_text(block(marker))
    assert block(marker).count("\n") <= 60
    RUNS.append(resolve(configs.load(str(path), {**KEYS, **overrides})))
    return RUNS[-1]


def applied(run, params, rows):
    """The model's outputs in float64."""
    outputs = run.model.apply({"params": params}, rows, project=False)
    outputs |= {"lm": outputs["lm"].logits()} if "lm" in outputs else {}
    return {name: np.asarray(x, np.float64) for name, x in outputs.items()}


def plain_and_p(run, params, rows):
    """Cross-entropy and probability of the targets, [B, T]."""
    logits = applied(run, params, rows)["lm"]
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    p = np.take_along_axis(exponents / exponents.sum(-1, keepdims=True), rows["targets"][..., None], -1)[..., 0]
    return -np.log(p), p


def test_the_focal_loss(tmp_path):
    """In micro-batches on four devices, against NumPy. Validation reports the plain loss, for comparison."""
    keys = {"objective.options.gamma": 1.5, "train.accumulation_steps": 2}
    run = documented(tmp_path, "focal loss", keys)
    assert check_objective(OBJECTIVES["focal"]).startswith("focal: shapes, determinism, hidden answers, reconstruction")
    (params, found, *_), rows = outcome(run, (2, 2, 1), steps=1), run.batches.rows(range(8))
    nats, p = plain_and_p(run, params, rows)
    assert found[0] == pytest.approx(np.average((1 - p) ** 1.5 * nats, weights=rows["weights"]), rel=1e-5)
    scorer = validation(run)
    rows = scorer.set.rows(np.arange(scorer.count))
    expected = np.average(plain_and_p(run, params, rows)[0], weights=rows["weights"])
    assert scorer.evaluate(params)["loss"] == pytest.approx(expected, rel=1e-5)


def validation(run):
    return Validation(run.data, run.objective, run.config, run.model, make_mesh(run.config.mesh, jax.devices()[:1]))


def info_nce(run, params, rows, temperature):
    one, two = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in applied(run, params, rows).values())
    scores = one @ two.T / temperature
    return np.mean(np.log(np.exp(scores).sum(-1)) - np.diagonal(scores))


def test_a_contrastive_loss_has_the_rows_of_a_micro_batch_on_all_devices_as_negatives(tmp_path):
    """Most negatives of a row are on other devices; in validation, the rows that fill up the last batch are none."""
    keys = {"objective.options.temperature": 0.2}
    run, micro = (documented(tmp_path, "contrastive loss", {**keys, "train.accumulation_steps": n}) for n in (1, 2))
    assert check_objective(OBJECTIVES["halves"]).startswith("halves: shapes, determinism, hidden answers hold")
    (params, found, *_), rows = outcome(run, (4, 1, 1), steps=1), run.batches.rows(range(8))
    whole = info_nce(run, params, rows, 0.2)
    assert found[0] == pytest.approx(whole, rel=1e-5)
    halves = [{name: x[part] for name, x in rows.items()} for part in (slice(4), slice(4, 8))]
    expected = np.mean([info_nce(run, params, half, 0.2) for half in halves])
    assert outcome(micro, (1, 2, 1), steps=1)[1][0] == pytest.approx(expected, rel=1e-5)
    assert whole - expected > 0.1  # three negatives, not seven
    scorer = validation(run)
    assert scorer.batch_size == 8 and scorer.count % 8
    parts = [scorer.set.rows(np.arange(at, min(at + 8, scorer.count))) for at in range(0, scorer.count, 8)]
    sizes = [len(part["inputs"]) for part in parts]
    expected = np.average([info_nce(run, params, part, 0.2) for part in parts], weights=sizes)
    assert scorer.evaluate(params)["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_content_of_plugins_is_part_of_the_run_id(tmp_path):
    path, other = tmp_path / "a.py", tmp_path / "elsewhere.py"
    path.write_text("x = 1")
    other.write_text("x = 1")

    def run_id(*files):
        return resolve(configs.load("configs/default.py", {**KEYS, "plugins": tuple(map(str, files))})).run_id

    none, one = run_id(), run_id(path)
    assert one == run_id(other) != none  # not the place of the file
    path.write_text("x = 2")
    assert run_id(path) not in (none, one)
    assert run_id(path, other) != run_id(path)


@pytest.fixture
def everything(tmp_path, request):
    """The file in docs/objectives.md."""
    path = tmp_path / "everything.py"
    path.write_text(block("own plug-in"))
    added = [(OPTIMIZERS, "sgd"), (SCHEDULES, "halving"), (LAWS, "steps_alone"), (TASKS, "capitals")]
    added += [(METRICS, "answer_bytes")]
    request.addfinalizer(lambda: [registry.pop(name, None) for registry, name in added])
    return path


def test_a_run_is_trained_and_evaluated_with_what_its_plugin_adds(tmp_path, everything, monkeypatch):
    """By the optimizer of its own, -gradient; the learning rates of its schedule; the metric of its task."""
    keys = {"plugins": (str(everything),), "optimizer.name": "sgd", "schedule.name": "halving"}
    keys |= {"optimizer.learning_rate": 0.5, "optimizer.weight_decay": 0.0, "optimizer.clip_norm": None}
    keys |= {"metrics.every_steps": 1, "checkpoint.at": (1,)}
    run = resolve(configs.load("configs/default.py", {**KEYS, **keys}))
    assert run.config.plugins == (str(everything),)  # absolute, so that the run loads from anywhere
    assert train(run, tmp_path / "run") == DONE
    batch, key = run.batches.rows(range(8)), jax.random.key(run.config.train.seed)
    before = jax.jit(make_init(run.model, make_optimizer(run.config.optimizer), batch))(key)["params"]

    def loss(params):
        total, weight = run.loss_terms(params, batch, key)[0]["lm"]
        return total / weight

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, before, jax.jit(jax.grad(loss))(before))
    assert_close(trained.load(tmp_path / "run", step=1).params, expected)
    rates = [line["learning_rate"] for line in run_record.read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert rates == pytest.approx([0.5 * 0.5 ** (10 * step / 6) for step in range(6)])
    monkeypatch.setattr(configs, "_run_files", set())  # as in a new process
    del TASKS["capitals"]
    assert "\ncapitals " in list_tasks(tmp_path / "run")
    table = evaluate(tmp_path / "run", ["capitals"])
    assert table[["metric", "value", "n"]].values.tolist() == [["answer_bytes", 7.5, 2]]  # " Lima" and " N'Djamena"


def test_a_law_of_your_own_is_fitted(tmp_path, everything, capsys):
    S = np.geomspace(100, 1e5, 12)
    path = tmp_path / "runs.csv"
    pandas.DataFrame({"S": S, "loss": 1.5 + 20 * S**-0.4}).to_csv(path, index=False)
    arguments = ["fit", str(path), "--law", f"{everything}:steps_alone", "--resamples", "20", "--predict", "S=1e6"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Predictions average steps_alone" in shown and "predicted at S = 1M: 1.5796" in shown  # 1.5 + 20 x 1e6^-0.4


@pytest.mark.parametrize(
    ("registry", "entry", "message"),
    [
        ("objectives.OBJECTIVES", "lambda tokens: tokens", r"expected Objective, got <lambda>\(tokens\)"),
        ("models.MODELS", "int", "expected a Linen module with an attribute attention"),
        ("optim.optimizers.OPTIMIZERS", "lambda: None", r"expected a function of \(config\), got <lambda>\(\)"),
        ("optim.schedules.SCHEDULES", "lambda c: c", r"expected a function of \(config, learning_rate, steps\)"),
        ("scaling.laws.LAWS", "'L = E'", "expected Law, got 'L = E'"),
        ("evals.metrics.METRICS", "len", "expected Metric, got <built-in function len>"),
        ("evals.tasks.TASKS", "{}", "expected str or Path, got {}"),
    ],
)
def test_an_entry_of_the_wrong_kind_is_refused_when_it_is_registered(tmp_path, registry, entry, message):
    module, _, name = registry.rpartition(".")
    path = tmp_path / "wrong.py"
    path.write_text(f"from lmjax.{module} import {name}\n{name}['wrong'] = {entry}\n")
    with pytest.raises(InputError, match=f"'wrong': {message}"):
        run_once(str(path), "plugins")


def test_a_function_of_an_objective_with_other_arguments_is_refused():
    for field, function, message in [
        (
            "loss",
            lambda outputs, batch: {},
            r"a function of \(outputs, batch, options\), got <lambda>\(outputs, batch\)",
        ),
        ("make_example", lambda tokens: {}, r"a function of \(tokens, rng, spec\), got <lambda>\(tokens\)"),
        ("lengths", {"inputs": 8}, r"a function of \(n, options\), got {'inputs': 8}"),
    ]:
        with pytest.raises(InputError, match=f"objective causal_lm: {field}: expected {message}"):
            dataclasses.replace(CAUSAL_LM, **{field: function})


def test_a_plugin_that_fails_or_takes_a_name_leaves_nothing_behind(tmp_path):
    path = tmp_path / "half.py"
    half = "from lmjax.models import MODELS\nMODELS['half'] = MODELS['rnn']\n"
    path.write_text(half + "import no_such_package\n")
    with pytest.raises(InputError, match=r"plugin file .*half\.py cannot be run: No module named 'no_such_package'"):
        run_once(str(path), "plugins")
    path.write_text(half + "MODELS['decoder'] = MODELS['rnn']\n")
    with pytest.raises(InputError, match="model 'decoder' is registered already, by lmjax"):
        run_once(str(path), "plugins")
    assert "half" not in models.MODELS
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    twice = "import dataclasses\nfrom lmjax.objectives import OBJECTIVES\n"
    twice += "OBJECTIVES['twice'] = dataclasses.replace(OBJECTIVES['causal_lm'], version={})\n"
    for file in (one, two):
        file.write_text(twice.format(1))
    run_once(str(one), "plugins")
    with pytest.raises(InputError, match=r"by one\.py; .*if one\.py imports the file of yours"):
        run_once(str(two), "plugins")
    one.write_text(twice.format(2))
    run_once(str(one), "plugins")  # an edited file replaces its own
    assert OBJECTIVES.pop("twice").version == 2
    with pytest.raises(InputError, match=r"plugins: no file 'none\.py'"):
        run_once("none.py", "plugins")


def test_names_of_a_session_can_be_given_again():
    numbers = Registry("number", {"one": 1}, of_type(int))
    numbers["two"] = 2
    numbers["two"] = 3
    del numbers["two"]
    assert numbers == {"one": 1}
    with pytest.raises(InputError, match="number 'one' is registered already, by lmjax"):
        numbers["one"] = 2

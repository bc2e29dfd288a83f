"""Guards against a model or plug-in in one file that trains wrongly, or is refused in words that do not name it."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lmjax import config as configs
from lmjax import models
from lmjax.config import run_once
from lmjax.decoding.ids import check_family
from lmjax.errors import InputError
from lmjax.evals.measure import undefined
from lmjax.evals.metrics import METRICS
from lmjax.evals.score import semantics_of
from lmjax.evals.tasks import TASKS, find
from lmjax.flops import row_flops
from lmjax.hf import architectures
from lmjax.objectives import LM, OBJECTIVES, Head
from lmjax.optim.optimizers import OPTIMIZERS
from lmjax.optim.schedules import SCHEDULES, make_schedule
from lmjax.registry import Registry
from lmjax.resolve import resolve
from lmjax.scaling.laws import LAWS
from tests.conftest import SMALL
from tests.test_pages import block

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


EVERYTHING = """
import optax
from lmjax.evals.metrics import METRICS, Metric
from lmjax.evals.tasks import TASKS
from lmjax.optim.optimizers import OPTIMIZERS
from lmjax.optim.schedules import SCHEDULES
from lmjax.scaling.laws import LAWS, Term, additive

OPTIMIZERS["sgd"] = lambda c: optax.scale(-1.0)
SCHEDULES["halving"] = lambda c, peak, steps: lambda step: peak * 0.5**step
LAWS["plugin_steps"] = additive("plugin_steps", "E + A S^-alpha", (Term("A", "alpha", "S"),), "mine")
TASKS["plugin_capitals"] = '''
name = "plugin_capitals"
kind = "cloze"
prompt = "{country}:"
answer = " {answer}"
metrics = ["answer_bytes"]
[[examples]]
country = "Peru"
answer = "Lima"
[[examples]]
country = "Chad"
answer = "N'Djamena"
'''
METRICS["answer_bytes"] = Metric(("cloze",), lambda columns: (columns["bytes"], columns["bytes"] ** 0), default=False)
"""


def test_a_plugin_adds_anything(tmp_path, request):
    path = tmp_path / "everything.py"
    path.write_text(EVERYTHING)
    added = [(OPTIMIZERS, "sgd"), (SCHEDULES, "halving"), (LAWS, "plugin_steps"), (TASKS, "plugin_capitals")]
    added += [(METRICS, "answer_bytes")]
    request.addfinalizer(lambda: [registry.pop(name, None) for registry, name in added])
    keys = {"plugins": (str(path),), "optimizer.name": "sgd", "schedule.name": "halving"}
    run = resolve(configs.load("configs/default.py", {**KEYS, **keys}))
    assert make_schedule(run.config.schedule, 1.0, 4)(2) == 0.25
    assert float(LAWS["plugin_steps"].predict({"E": 1.0, "A": 2.0, "alpha": 0.5}, {"S": 4.0})) == 2.0
    assert find(["plugin_capitals"])[0].metrics == ("answer_bytes",)
    assert run.config.plugins == (str(path),)  # absolute, so that the run loads from anywhere


def test_a_plugin_that_fails_or_takes_a_name_leaves_nothing_behind(tmp_path):
    path = tmp_path / "half.py"
    path.write_text("from lmjax.models import MODELS\nMODELS['half'] = int\nimport no_such_package\n")
    with pytest.raises(InputError, match=r"plugin file .*half\.py cannot be run: No module named 'no_such_package'"):
        run_once(str(path), "plugins")
    path.write_text("from lmjax.models import MODELS\nMODELS['half'] = int\nMODELS['decoder'] = int\n")
    with pytest.raises(InputError, match="model 'decoder' is registered already, by lmjax"):
        run_once(str(path), "plugins")
    assert "half" not in models.MODELS
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    for number, file in enumerate((one, two)):
        file.write_text(f"from lmjax.objectives import OBJECTIVES\nOBJECTIVES['twice'] = {number}\n")
    run_once(str(one), "plugins")
    with pytest.raises(InputError, match=r"by one\.py; .*if one\.py imports the file of yours"):
        run_once(str(two), "plugins")
    one.write_text("from lmjax.objectives import OBJECTIVES\nOBJECTIVES['twice'] = 2\n")
    run_once(str(one), "plugins")  # an edited file replaces its own
    assert OBJECTIVES.pop("twice") == 2
    with pytest.raises(InputError, match=r"plugins: no file 'none\.py'"):
        run_once("none.py", "plugins")


def test_names_of_a_session_can_be_given_again():
    numbers = Registry("number", {"one": 1})
    numbers["two"] = 2
    numbers["two"] = 3
    del numbers["two"]
    assert numbers == {"one": 1}
    with pytest.raises(InputError, match="number 'one' is registered already, by lmjax"):
        numbers["one"] = 2

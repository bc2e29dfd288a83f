"""The Python API: lmjax.load, train, sweep and scaling do what the commands do, and importing lmjax imports no JAX."""

import subprocess
import sys

import pytest

import lmjax
from lmjax import run_record
from lmjax.errors import InputError
from lmjax.resolve import resolve
from tests.conftest import ROOT, small, train


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lmjax.train(small(), tmp_path_factory.mktemp("runs") / "run")


def test_importing_lmjax_starts_nothing():
    program = "import lmjax, sys; lmjax.load, lmjax.train; print('jax' in sys.modules, 'pandas' in sys.modules)"
    first = "import lmjax, sys; print('jax' in sys.modules or 'numpy' in sys.modules)"
    for source, expected in ((first, "False"), (program, None)):
        result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, cwd=ROOT)
        assert expected is None or result.stdout.strip() == expected
    backend = "import lmjax; lmjax.load; from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    result = subprocess.run([sys.executable, "-c", backend], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "False"


def test_a_run_is_trained_once_and_loaded_again(model):
    summary = run_record.read_json(model.run_dir / "summary.json")
    again = lmjax.train(small(), model.run_dir)
    assert again.step == model.step == summary["steps"]
    assert lmjax.load(model.run_dir).config == model.config


def test_generate_score_and_perplexity_agree_with_the_functions_behind_them(model):
    one = model.generate("ab", max_new_tokens=4)
    many = model.generate(["ab", "b"], max_new_tokens=4)
    assert one[0].text == many[0][0].text and len(many) == 2
    assert len(model.generate("ab", method="beam", num_beams=2, num_return=2, max_new_tokens=2)) == 2
    with pytest.raises(TypeError, match="num_beems"):
        model.generate("ab", num_beems=2)
    score = model.score("a", "bc")
    assert score.log_prob == pytest.approx(sum(score.token_log_probs)) and score.tokens == 2
    validation = model.perplexity()
    assert validation["loss"] == pytest.approx(run_record.read_json(model.run_dir / "summary.json")["loss"], rel=1e-5)
    assert model.perplexity(["abc"])["documents"] == 1


def test_a_directory_of_another_run_is_refused(model):
    with pytest.raises(InputError, match="train.seed: recorded 0, given 1"):
        lmjax.train(small(), model.run_dir, {"train.seed": 1})


def test_a_sweep_returns_the_table_of_its_runs(tmp_path):
    file = tmp_path / "two.py"
    file.write_text(
        "from lmjax.sweeps.combinators import product\n"
        "from tests.conftest import small\n"
        "def get_config():\n    return small()\n"
        "def sweep():\n    return product({'train.seed': [0, 1]})\n"
    )
    first = resolve(small())  # is trained here already; the sweep trains the other one
    assert train(first, tmp_path / "runs" / first.run_id) == 0
    table = lmjax.sweep(file, tmp_path / "runs", workers=1)
    assert len(table) == 2 and set(table["status"]) == {"done"} and table["loss"].nunique() == 2


def test_a_fit_has_its_methods():
    rows = [(n, d, 1.7 + 400 * n**-0.34 + 1500 * d**-0.37) for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    import pandas

    fit = lmjax.scaling.fit(pandas.DataFrame(rows, columns=["N", "D", "loss"]))
    prediction = fit.predict(N=7e9, D=1.4e11)
    assert prediction.value == pytest.approx(1.7 + 400 * 7e9**-0.34 + 1500 * 1.4e11**-0.37, rel=1e-6)
    for name in ("allocate", "excess", "audit", "profile", "plot", "report", "summary", "save"):
        assert callable(getattr(fit, name))
    assert len(repr(fit)) < 500

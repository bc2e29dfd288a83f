"""Fixed and tied parameters: the constrained optimum, its intervals, what a table then identifies, and saved fits."""

import numpy as np
import pandas
import pytest
from scipy.optimize import minimize
from test_pages import block

from lmjax import scaling
from lmjax.cli import main
from lmjax.errors import InputError
from lmjax.scaling.audit import audit
from lmjax.scaling.laws import LAWS, constrained, get_law, predict_loss, slopes
from lmjax.scaling.report.sections import fit_part

TRUTH = dict(E=1.7, A=400.0, alpha=0.34, B=1500.0, beta=0.34)


def table(sizes=5, tokens=5, noise=0.01, seed=0, law="chinchilla", params=TRUTH, **others):
    rng = np.random.default_rng(seed)
    axes = np.geomspace(1e6, 1e9, sizes), np.geomspace(2e8, 2e11, tokens)
    N, D = (v.ravel() for v in np.meshgrid(*axes, indexing="ij"))
    columns = {"N": N, "D": D, **{name: value(N, D) for name, value in others.items()}}
    loss = predict_loss(law, params, **columns) * np.exp(noise * rng.standard_normal(len(N)))
    return pandas.DataFrame({**columns, "loss": loss})


def huber(r, delta=1e-3):
    size = np.abs(r)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta)).sum()


# ---- the optimum ---------------------------------------------------------------------------------------------------

# (fix, tie, all five parameters from the free ones, start): the constrained problems written out again
WRITTEN = [
    ({"E": 1.82}, [], lambda p: (1.82, *p), (np.log(400), 0.34, np.log(1500), 0.34)),
    ({}, ["alpha=beta"], lambda p: (*p[:4], p[2]), (1.7, np.log(400), 0.34, np.log(1500))),
    ({"E": 1.6}, ["beta=alpha"], lambda p: (1.6, *p, p[1]), (np.log(400), 0.34, np.log(1500))),
    ({"A": 300, "beta": 0.4}, [], lambda p: (p[0], np.log(300), *p[1:], 0.4), (1.7, 0.34, np.log(1500))),
]


@pytest.mark.parametrize(("fix", "tie", "full", "start"), WRITTEN)
def test_no_direct_search_finds_a_lower_constrained_criterion(fix, tie, full, start):
    rows = table()
    N, D, log_y = (np.log(rows[name].to_numpy()) for name in ("N", "D", "loss"))

    def criterion(p):
        E, a, alpha, b, beta = full(tuple(p))
        return 1e6 * huber(np.log(np.maximum(E + np.exp(a - alpha * N) + np.exp(b - beta * D), 1e-9)) - log_y)

    best = np.array(start)
    for _ in range(6):  # Nelder-Mead again from where it ended: the criterion is almost piecewise linear
        best = minimize(
            criterion, best, method="Nelder-Mead", options={"xatol": 1e-11, "fatol": 1e-11, "maxiter": 4000}
        ).x
    found = scaling.fit(rows, fix=fix, tie=tie, resamples=0)
    assert 1e6 * found.criterion_value <= criterion(best) * (1 + 1e-9)
    assert criterion(best) <= 1e6 * found.criterion_value * (1 + 1e-6)  # the search came close
    assert found.params == pytest.approx(
        {
            **dict(zip(TRUTH, full(tuple(best)), strict=True)),
            **{k: np.exp(full(tuple(best))[i]) for k, i in (("A", 1), ("B", 3))},
        },
        rel=2e-3,
    )


@pytest.mark.parametrize("name", ["E", "alpha", "beta"])
def test_fixing_a_parameter_is_a_point_of_its_profile(name):
    """The profile holds a coordinate of the fast engine for power laws; the fixed fit uses the general one."""
    rows = table()
    free = scaling.fit(rows, resamples=0)
    value = free.params[name] * 1.03
    held = scaling.fit(rows, fix={name: value}, resamples=0)
    assert held.criterion_value == pytest.approx(float(free.profile(name, [value])[0]) * free.criterion_value, rel=1e-9)
    assert held.params[name] == value and held.criterion_value > free.criterion_value
    again = scaling.fit(rows, fix={name: free.params[name]}, resamples=0)
    assert again.criterion_value == pytest.approx(free.criterion_value, rel=1e-9)
    assert again.params == pytest.approx(free.params, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "params", "others", "fix", "tie"),
    [
        ("joint_power", dict(E=1.6, A=60.0, alpha=0.5, R=8.0, beta=0.5, k=0.6), {}, {"k": 0.6}, ["alpha=beta"]),
        ("quantization", dict(E=1.2, A=200.0, B=100.0, alpha=0.35), {}, {"alpha": 0.35}, []),
        (
            "data_constrained",
            dict(E=1.87, A=521.0, alpha=0.353, B=1488.0, beta=0.353, R_D=15.4, R_N=5.3),
            {"U": lambda N, D: D / np.tile([1.0, 4.0, 16.0, 60.0, 100.0], len(D) // 5)},
            dict(E=1.87, A=521.0, alpha=0.353, B=1488.0, beta=0.353),
            [],
        ),
    ],
)
def test_laws_of_any_form_recover_the_parameters_that_are_left(name, params, others, fix, tie):
    rows = table(noise=0.0, law=name, params=params, **others)
    found = scaling.fit(rows, name, fix=fix, tie=tie, resamples=0)
    assert found.params == pytest.approx(params, rel=1e-4)
    assert found.starts_agree >= 1 and found.status == "converged"


def test_slopes_of_a_constrained_law_are_those_of_its_free_parameters():
    law, x = get_law("chinchilla[E=1.82 alpha=beta]"), {"N": np.array([1e7, 1e8]), "D": np.array([1e9, 1e10])}
    theta = {"A": 400.0, "alpha": 0.34, "B": 1500.0}
    _, found = slopes(law, {k: np.array([[v]]) for k, v in theta.items()}, x)
    for name, value in theta.items():
        ends = [predict_loss(law, {**theta, name: value * (1 + h)}, **x) for h in (1e-6, -1e-6)]
        np.testing.assert_allclose(found[name][0], (ends[0] - ends[1]) / (2e-6 * value), rtol=1e-6)


# ---- intervals, numbers that follow, saved fits --------------------------------------------------------------------


@pytest.fixture(scope="module")
def both():
    return scaling.fit(table(4, 4, noise=0.005), fix={"E": 1.7}, tie=["alpha=beta"], resamples=200)


def test_fixed_parameters_have_no_width_and_tied_ones_share_an_interval(both):
    assert list(both.params) == list(TRUTH)
    assert both.intervals["E"] == (1.7, 1.7)
    assert both.params["alpha"] == both.params["beta"] and both.intervals["alpha"] == both.intervals["beta"]
    assert both.profiles["alpha"] == both.profiles["beta"] and both.intervals["alpha"][0] < both.intervals["alpha"][1]
    assert both.derived["a"] == 0.5 and both.correlation_names == ("ln A", "alpha", "ln B")
    free = scaling.fit(table(4, 4, noise=0.005), resamples=200)
    width = {fit.law: np.subtract(*fit.intervals["alpha"]) for fit in (both, free)}
    assert width[both.law] > 0.6 * width[free.law]  # both negative: the constrained interval is narrower
    text = both.summary()
    assert text.count("fixed") >= 2 and "alpha = beta" in text


def test_two_stages_of_the_data_constrained_law_as_documented(tmp_path, monkeypatch, capsys):
    """Coefficients of arXiv:2305.16264, 0.2 % noise. Single epochs have D/N >= 20: no excess parameters."""
    planted = dict(E=1.87, A=521.0, alpha=0.353, B=1488.0, beta=0.353, R_D=15.4, R_N=5.3)
    epochs = np.array([2.0, 4.0, 8.0, 16.0, 60.0])
    rows = table(6, 5, 0.002, 1, "data_constrained", planted, U=lambda N, D: D / np.tile(epochs, len(D) // 5))
    single = table(6, 6, 0.002, 2, "data_constrained", planted, U=lambda N, D: D)
    single = single[single["D"] >= 20 * single["N"]]
    pandas.concat([rows, single]).to_csv(tmp_path / "repeats.csv", index=False)
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(block("repeated data in two stages"), found)
    first, second = found["first"], found["second"]
    assert first.params["alpha"] == first.params["beta"] == pytest.approx(0.353, abs=0.02)
    assert {name: second.params[name] for name in first.params} == first.params
    low, high = second.intervals["R_D"]
    assert low < second.params["R_D"] < high and second.params["R_D"] == pytest.approx(15.4, rel=0.2)
    assert second.params["R_N"] == pytest.approx(5.3, rel=0.4)
    truth = float(predict_loss("data_constrained", planted, N=1e9, D=4e10, U=1e10))
    assert second.predict(N=1e9, D=4e10, U=1e10).value == pytest.approx(truth, rel=0.01)
    assert capsys.readouterr().out.count("fixed") >= 5


@pytest.mark.slow
def test_intervals_under_constraints_cover_the_truth():
    """80 tables, nominal 90 %: fewer than 62 hits of 80 has probability 0.0003 if the intervals are right."""
    hits = 0
    for seed in range(80):
        rows = table(4, 3, noise=0.01, seed=seed)
        found = scaling.fit(rows, fix={"E": 1.7}, tie=["alpha=beta"], resamples=60, profiles=False, confidence=0.9)
        low, high = found.intervals["alpha"]
        hits += low <= 0.34 <= high
    assert hits >= 62


def test_a_constrained_fit_is_saved_predicts_allocates_and_reports(both, tmp_path):
    again = scaling.load(both.save(tmp_path / "fit.json"))
    assert again == both and again.law == "chinchilla[E=1.7 alpha=beta]"
    assert again.predict(N=1e10, D=1e12) == both.predict(N=1e10, D=1e12)
    best = both.allocate(1e21)
    sizes = best["N"] * np.geomspace(0.5, 2, 20001)
    brute = sizes[both.predict(N=sizes, D=1e21 / 6 / sizes, one_law=True).value.argmin()]
    assert best["N"] == pytest.approx(brute, rel=1e-3) and best["N_low"] < best["N"] < best["N_high"]
    (floor,) = [one.text for one in audit(both) if one.topic == "Floor"]
    assert "fixed: E = 1.700; no interval includes" in floor and "correlation" not in floor
    assert "E (fixed)" in fit_part(both)
    others = [scaling.fit(table(4, 4, noise=0.005), fix={"E": value}, resamples=0) for value in (1.7, 1.7 + 1e-9)]
    assert len({fit.hash for fit in (both, *others)}) == 3  # the value counts in full precision


# ---- identifiability -----------------------------------------------------------------------------------------------


def test_fixing_the_floor_makes_fewer_rows_and_values_enough():
    rows = table(3, 2, noise=0.0)
    assert scaling.fit(rows, resamples=0).refused
    found = scaling.fit(rows, fix={"E": 1.7}, resamples=0)
    assert found.params == pytest.approx(TRUTH, rel=1e-6)
    corners = pandas.concat([table(2, 2, seed=seed) for seed in range(3)])
    held = scaling.fit(corners, fix={"E": 1.7}, resamples=0)  # three numbers for four parameters
    assert held.status == "not_identified" and "identifiable" in held.reasons[0]
    assert not scaling.fit(corners, fix={"E": 1.7}, tie=["alpha=beta"], resamples=0).refused
    assert scaling.fit(rows.head(4), fix={"E": 1.7}, resamples=0).status == "too_few_points"


def test_a_line_of_runs_identifies_one_term_if_the_other_is_given():
    rows = table(8, 1)
    rows = rows.assign(D=20 * rows.N, loss=predict_loss("chinchilla", TRUTH, rows.N, 20 * rows.N))
    for options in ({}, {"fix": {"E": 1.7}}, {"tie": ["alpha=beta"]}, {"fix": {"alpha": 0.34}}):
        assert "one line" in scaling.fit(rows, resamples=0, **options).reasons[0]
    found = scaling.fit(rows, fix={"A": 400.0, "alpha": 0.34}, resamples=0)
    assert found.params == pytest.approx(TRUTH, rel=1e-5)


def test_one_size_is_enough_when_its_term_is_given():
    rows = table(1, 6)
    assert "distinct size" in scaling.fit(rows, fix={"alpha": 0.34}, resamples=0).reasons[0]
    assert not scaling.fit(rows, fix={"A": 400.0, "alpha": 0.34}, resamples=0).refused


# ---- errors and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fix", "tie", "words"),
    [
        ({"alfa": 0.3}, [], "did you mean 'alpha'"),
        ({}, ["alpha=betta"], "did you mean 'beta'"),
        ({"alpha": 7.0}, [], "range 0.001 to 3"),
        ({"E": -0.1}, [], "range 0 to inf"),
        ({"A": 0.0}, [], "got 0"),
        ({"E": float("nan")}, [], "finite"),
        ({"E": "low"}, [], "number"),
        ({}, ["A=alpha"], "one kind"),
        ({}, ["E=A"], "one kind"),
        ({}, ["alpha"], "such as alpha=beta"),
        (TRUTH, [], "all of them fixed"),
        ({"alpha": 0.3, "beta": 0.4}, ["alpha=beta"], "one value"),
    ],
)
def test_constraints_that_cannot_be(fix, tie, words):
    with pytest.raises(InputError, match=words):
        scaling.fit(table(noise=0.0), fix=fix, tie=tie)


def test_names_say_the_constraints_and_are_read_back():
    law = constrained(get_law("chinchilla"), {"E": 1.8243871239847}, ["beta=alpha"])
    again = get_law(law.name)
    assert (again.name, again.space, again.follows) == (law.name, law.space, law.follows)
    assert law.name == "chinchilla[E=1.8243871239847 alpha=beta]"
    more = constrained(get_law("chinchilla[E=1.8]"), {"A": 400}, ["alpha=beta"])
    assert more.follows == {"E": 1.8, "A": 400.0, "beta": "alpha"} and more.parameters == ("alpha", "B")
    assert constrained(get_law("chinchilla"), {"beta": 0.3}, ["alpha=beta"]).fixed == {"alpha": 0.3, "beta": 0.3}
    assert {hash(law) for law in (*LAWS.values(), law)}
    for name in ("chinchilla[E=1.8", "chinchila[E=1.8]", "[E=1]"):
        with pytest.raises(InputError, match="expected a scaling law, or FILE.py:NAME"):
            get_law(name)


def test_laws_under_constraints_are_compared_and_designed_for():
    rows = table(5, 5, noise=0.002)
    found = scaling.holdout(rows, "chinchilla[alpha=beta]", cuts=[1e18], resamples=0, leave_out=False)
    assert found.cuts[0]["error"] < 0.02
    free, tied = (scaling.design([1e16, 1e17, 1e18], law=law) for law in ("chinchilla", "chinchilla[alpha=beta]"))
    assert tied.expected["alpha"] < free.expected["alpha"] and "beta" not in tied.expected


def test_the_commands_take_fix_and_tie(tmp_path, capsys):
    table(4, 4, noise=0.003).to_csv(tmp_path / "runs.csv", index=False)
    both = ["--fix", "E=1.7", "--tie", "alpha=beta", "--resamples", "40"]
    assert main(["fit", str(tmp_path / "runs.csv"), *both, "--out", str(tmp_path / "law")]) == 0
    assert "fixed" in capsys.readouterr().out
    assert scaling.load(tmp_path / "law" / "fit.json").law == "chinchilla[E=1.7 alpha=beta]"
    assert main(["holdout", str(tmp_path / "runs.csv"), *both, "--format", "csv"]) == 0
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "runs.csv"), "--fix", "F=1.7"]) == 64
    assert "expected a parameter of chinchilla, got 'F'" in capsys.readouterr().err

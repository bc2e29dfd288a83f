"""Averaged predictions: universal kriging against a dense oracle, mixture quantiles, coverage under misfit."""

import numpy as np
import pandas
import pytest

from lmjax.errors import InputError
from lmjax.scaling import averaging, fit, holdout
from lmjax.scaling.laws import get_law, predict_loss

PLANTED = dict(E=1.7, A=400.0, alpha=0.34, B=1700.0, beta=0.36)


def runs(seed, misfit=None, noise=0.003, sizes=7, counts=6):
    """A grid of N and D with losses of Chinchilla's law times exp(misfit(N, D)), and noise."""
    N, D = (v.ravel() for v in np.meshgrid(np.geomspace(2e6, 2e8, sizes), np.geomspace(4e8, 4e10, counts)))
    loss = predict_loss("chinchilla", PLANTED, N, D)
    if misfit:
        loss = loss * np.exp(misfit(N, D))
    error = noise * np.random.default_rng(seed).standard_normal(len(N))
    return pandas.DataFrame({"N": N, "D": D, "loss": loss * np.exp(error)})


def split(table):
    far = table.N * table.D >= (table.N * table.D).quantile(0.75)
    return table[~far], table[far]


@pytest.mark.parametrize("rho", [0.3, 30.0])
def test_a_component_is_universal_kriging(monkeypatch, rho):
    """Mean, variance and restricted likelihood of one component equal those of dense matrices."""
    rng = np.random.default_rng(0)
    at, weight = rng.uniform(0, 4, (24, 2)), rng.uniform(0.5, 2.0, 24)
    jacobian = np.stack([np.ones(24), at[:, 0], np.exp(-at[:, 1])], 1)
    f, y = rng.normal(size=24) * 0.01, rng.normal(size=24) * 0.01
    rows = averaging.Rows(at[:18], weight[:18], {"law": (f[:18], jacobian[:18])})
    new = averaging.Rows(at[18:], weight[18:], {"law": (f[18:], jacobian[18:])})
    scales = np.array([0.7, 2.5])
    monkeypatch.setattr(
        averaging, "_kernels", lambda at: iter([(np.eye(2), np.array([9.0, 9.0])), (np.eye(2), scales)])
    )
    monkeypatch.setattr(averaging, "SIZES", (rho,))
    found = averaging._components(rows, y[:18], new)
    log_weight, mean, sd, df, owner = (column[-1] for column in found)  # the second kernel has one component, the last

    distance = (at[:, None] - at[None]) / scales
    delta = rho * np.exp(-0.5 * (distance**2).sum(-1))
    V = delta[:18, :18] + np.diag(1 / weight[:18])
    X, r = jacobian[:18], y[:18] - f[:18]
    inverse = np.linalg.inv(V)
    beta = np.linalg.solve(X.T @ inverse @ X, X.T @ inverse @ r)
    s2 = (r - X @ beta) @ inverse @ (r - X @ beta) / 15
    gain = delta[18:, :18] @ inverse
    off = jacobian[18:] - gain @ X
    variance = s2 * (1 + rho - (gain * delta[18:, :18]).sum(1))
    variance += s2 * np.einsum("ok,kl,ol->o", off, np.linalg.inv(X.T @ inverse @ X), off)
    np.testing.assert_allclose(mean, f[18:] + jacobian[18:] @ beta + gain @ (r - X @ beta), rtol=1e-6)
    np.testing.assert_allclose(sd, np.sqrt(variance), rtol=1e-6)
    assert df == 15 and owner == 0
    # the likelihood up to what all components of the law share: the determinants of weights and of column lengths
    length = np.linalg.norm(X * np.sqrt(weight[:18])[:, None], axis=0)
    expected = -0.5 * (np.linalg.slogdet(V)[1] + np.log(weight[:18]).sum() + 15 * np.log(s2))
    expected -= 0.5 * (np.linalg.slogdet(X.T @ inverse @ X)[1] - 2 * np.log(length).sum())
    assert log_weight == pytest.approx(expected + np.log((1 - averaging.NO_DELTA) / 2), abs=1e-5)


def test_quantiles_of_a_mixture_equal_those_of_samples():
    weight, mean, sd, df = np.log([0.3, 0.7]), np.array([[0.0], [3.0]]), np.array([[1.0], [0.5]]), np.array([5, 9])
    rng = np.random.default_rng(0)
    first = rng.random(400_000) < 0.3
    drawn = np.where(first, rng.standard_t(5, 400_000), 3 + 0.5 * rng.standard_t(9, 400_000))
    found = [float(q[0]) for q in averaging._quantiles((weight, mean, sd, df, None), (0.025, 0.5, 0.975))]
    assert found == pytest.approx(np.quantile(drawn, [0.025, 0.5, 0.975]).tolist(), abs=0.03)


MISFITS = {
    "curved in N": lambda N, D: 0.02 * np.log(N / 1e7) ** 2,
    "Kaplan's": lambda N, D: (
        np.log(3 * ((2e7 / N) ** 0.7 + 4e9 / D) ** 0.1) - np.log(predict_loss("chinchilla", PLANTED, N, D))
    ),
}


@pytest.mark.parametrize("misfit", [None, *MISFITS])
def test_intervals_hold_under_misfit(misfit):
    """Nominal 95 % intervals of 4 tables: the law alone fails where it is wrong, the average holds; errors fall."""
    inside, errors = {True: [], False: []}, {True: [], False: []}
    for seed in range(4):
        below, above = split(runs(seed, MISFITS.get(misfit), 0.002))
        found = fit(below, resamples=50, profiles=False)
        for one_law in (True, False):
            value, low, high = found.predict(above.N, above.D, one_law=one_law)
            inside[one_law] += list((low <= above.loss) & (above.loss <= high))
            errors[one_law] += list(abs(value / above.loss - 1))
    alone, averaged = np.mean(inside[True]), np.mean(inside[False])
    if misfit:
        assert alone < 0.85 < 0.9 < averaged and np.mean(errors[False]) < 0.5 * np.mean(errors[True])
    else:
        assert min(alone, averaged) > 0.9 and np.mean(errors[False]) < 1.3 * np.mean(errors[True])


def test_back_tests_widen_intervals_that_failed():
    """Errors shared by each budget are no smooth function of N and D: predictions of the next budget miss."""
    rng = np.random.default_rng(3)
    offsets = rng.normal(0, 0.03, 7)
    N = np.concatenate([c / 6 / np.geomspace(1e8, 1e9, 6) for c in np.geomspace(1e16, 1e18, 7)])
    C = np.repeat(np.geomspace(1e16, 1e18, 7), 6)
    rows = pandas.DataFrame({"N": N, "D": C / 6 / N})
    rows["loss"] = predict_loss("chinchilla", PLANTED, rows.N, rows.D) * np.exp(np.repeat(offsets, 6))
    wide = fit(rows, resamples=20, profiles=False)
    quiet = fit(runs(0, noise=0.002), resamples=20, profiles=False)
    assert wide.average().inflation > 1.1 > quiet.average().inflation
    assert [row["at"] for row in quiet.average().backtests] == list(averaging.CUTS)
    assert sum(quiet.average().weights.values()) == pytest.approx(1)
    low, high = np.log(quiet.predict(1e9, 1e11).low), np.log(quiet.predict(1e9, 1e11).high)
    near = quiet.predict(2e8, 4e10)
    assert high - low > np.log(near.high / near.low)  # wider farther out


def test_many_rows_are_averaged_with_their_neighbours(monkeypatch):
    table = runs(0, MISFITS["Kaplan's"], sizes=18, counts=16)
    exact = fit(table, resamples=20, profiles=False).predict(4e8, 8e10)
    monkeypatch.setattr(averaging, "CELLS", 96)
    found = fit(table, resamples=20, profiles=False)
    cells = found.predict(4e8, 8e10)
    assert len(found.average().log_loss) == 96 and found.average().rows.weight.sum() == pytest.approx(288)
    assert cells.value == pytest.approx(exact.value, rel=2e-3)
    assert np.log(cells.high / cells.low) == pytest.approx(np.log(exact.high / exact.low), rel=0.35)


@pytest.mark.parametrize("law", ["power_n", "kaplan_nd"])
def test_other_laws_average_with_those_of_their_variables(law):
    table = runs(1)
    if law == "power_n":
        table = table[table.D == table.D.max()]
    law, tie = law.partition("[")[0], ["alpha=beta"] if "[" in law else []
    found = fit(table, law, resamples=3, profiles=False, tie=tie)
    names = set(found.average().weights)
    variables = {get_law(name).variables for name in names}
    assert found.law in names and len(names) > 1 and len(variables) == 1
    assert ("chinchilla" in names) == (law == "kaplan_nd")
    value, low, high = found.predict(**dict(zip(next(iter(variables)), (1e9, 1e11), strict=False)))
    assert low < value < high


def test_holdout_reports_coverage_by_distance_and_of_the_law_alone():
    found = holdout(runs(0, MISFITS["Kaplan's"], 0.002), resamples=40, leave_out=False, cuts=[2e16, 1e18])
    rows = found.by_distance
    assert sum(row["predicted"] for row in rows) == len(found.rows) and len(rows) > 2
    for row, (low, high) in zip(rows, [(0, 2), (2, 4), (4, 8), (8, 1e9)], strict=True):
        here = [r for r in found.rows if low < 10 ** r["distance"] * (1 - 1e-9) <= high]
        assert row["predicted"] == len(here)
        assert row["coverage"] == np.mean([r["inside"] for r in here])
        assert row["law_coverage"] == np.mean([r["law_low"] <= r["loss"] <= r["law_high"] for r in here])
    words = found.text()
    assert "law alone" in words and all(row["reach"] in words for row in rows)


def test_a_constrained_law_is_not_averaged_with_free_ones():
    """Free laws would undo the constraint: with a floor fixed at 2.1 every prediction is above it."""
    found = fit(runs(2), resamples=30, profiles=False, fix={"E": 2.1})
    assert set(found.average().weights) == {found.law}
    assert found.predict(1e14, 1e16).value > 2.1


def test_outliers_do_not_widen_the_average_like_the_law():
    table = runs(4)
    sound = fit(table, resamples=40, profiles=False).predict(4e8, 8e10)
    table.loc[[3, 17], "loss"] *= 1.6
    found = fit(table, resamples=40, profiles=False)
    value, low, high = found.predict(4e8, 8e10)
    _, alone_low, alone_high = found.predict(4e8, 8e10, one_law=True)
    assert value == pytest.approx(sound.value, rel=0.01)
    assert np.log(high / low) < 0.5 * np.log(alone_high / alone_low)


def test_arrays_of_other_shapes_and_words_are_refused():
    found = fit(runs(5), resamples=0)
    for N, D in (([1e9, 2e9], [1e10, 2e10, 3e10]), ("7B", 1e10)):
        with pytest.raises(InputError, match="expected numbers or arrays"):
            found.predict(N, D)


def test_holdout_names_the_error_of_the_law_itself():
    """The averaged error hardly depends on the law, so it cannot compare laws; that of the law alone does."""
    options = dict(resamples=20, leave_out=False, cuts=[2e18])
    good, bad = (holdout(runs(6), law, **options).cuts[0] for law in ("chinchilla", "kaplan_nd"))
    assert bad["law_error"] > 3 * good["law_error"] and bad["error"] < 2 * good["error"]

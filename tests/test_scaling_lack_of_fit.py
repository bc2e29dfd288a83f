"""Guards against misfit that passes as noise: the test for systematic residuals has its nominal size, sees misfit of
several kinds, names what helps, and leaves single outliers to the warning about diverged runs."""

import math

import numpy as np
import pandas
import pytest

from lmjax.scaling import fitting, lack_of_fit, result
from lmjax.scaling.laws import CHINCHILLA, predict_loss

PLANTED = dict(E=1.7, A=406.4, alpha=0.34, B=410.7, beta=0.28)


def table(side=7, noise=0.003, seed=0, heavy=False, shift=None, repeats=1):
    """Runs on a side x side grid of N and D whose ln loss is shifted by shift(ln N, ln D), both from -1 to 1."""
    rng = np.random.default_rng(seed)
    u, v = (np.repeat(one.ravel(), repeats) for one in np.meshgrid(*[np.linspace(-1, 1, side)] * 2))
    N, D = 1e8 * 30**u, 1e10 * 30**v
    error = rng.standard_t(3, len(N)) / math.sqrt(3) if heavy else rng.standard_normal(len(N))
    change = shift(u, v) if shift else 0.0
    return pandas.DataFrame(
        {"N": N, "D": D, "loss": predict_loss(CHINCHILLA, PLANTED, N, D) * np.exp(change + noise * error)}
    )


def fitted(frame, law="chinchilla", **options):
    return fitting.fit(frame, law, **{"resamples": 0, "profiles": False} | options)


@pytest.mark.parametrize("heavy", [False, True])
def test_p_values_are_uniform_where_the_law_is_true(heavy):
    """24 tables: uniform p-values have a mean of 0.5 +- 0.06, and 1.2 are below 0.05; with 3 standard errors."""
    p = [fitted(table(side=5, seed=seed, heavy=heavy)).lack_of_fit["p"] for seed in range(24)]
    assert abs(np.mean(p) - 0.5) < 0.18 and sum(v < 0.05 for v in p) <= 4


def joint(u, v):
    """ln of the joint law with k = 0.6 over the sum of the same terms."""
    a, b = (PLANTED[k] * (x * 30**w) ** -PLANTED[e] for k, x, w, e in (("A", 1e8, u, "alpha"), ("B", 1e10, v, "beta")))
    return np.log(1.7 + (a ** (1 / 0.6) + b ** (1 / 0.6)) ** 0.6) - np.log(1.7 + a + b)


MISFITS = {
    "another law": joint,
    "drifting exponent": lambda u, v: 0.008 * (1 - v) * u,
    "parabola": lambda u, v: 0.008 * (u - v) ** 2,
    "a bend at small C": lambda u, v: 0.03 * np.maximum(-0.6 - u - v, 0),
    "a shifted batch": lambda u, v: np.where(u > 0.9, 0.012, 0.0),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_misfit_is_found_and_its_size_is_right(kind):
    frame = table(shift=MISFITS[kind])
    fit = fitted(frame)
    found, true = fit.lack_of_fit, np.log(frame.loss) - np.log(table().loss)
    jacobian = lack_of_fit._linear(fit)[1]
    left = true - jacobian @ np.linalg.lstsq(jacobian, true, rcond=None)[0]  # what parameters cannot follow
    assert found["p"] < 0.01 and 0.5 < found["size"] / np.sqrt(np.mean(left**2)) < 1.4
    assert any(words.startswith("lack of fit (p") for words in fit.warnings)
    assert not any("diverged" in words for words in fit.warnings)


def test_one_outlier_is_no_lack_of_fit_and_is_named():
    frame = table(seed=1).assign(run=lambda t: [f"r{i}" for i in range(len(t))])
    frame.loc[9, "loss"] *= 1.2
    fit = fitted(frame)
    assert fit.lack_of_fit["p"] > 0.01
    (words,) = [words for words in fit.warnings if "diverged" in words]
    assert words.startswith("r9 lies ")


def test_without_outliers_it_is_the_textbook_f_test(monkeypatch):
    """A clip above every residual: F of the added sum of squares, over pure error where configurations repeat."""
    monkeypatch.setattr(lack_of_fit, "CLIP", 1e4)
    from scipy.stats import f

    for repeats in (1, 3):
        fit = fitted(table(side=5, repeats=repeats, shift=MISFITS["parabola"]))
        found, (_, jacobian, y) = lack_of_fit.check(fit), lack_of_fit._linear(fit)
        basis = np.linalg.qr(jacobian)[0]
        off = y - basis @ (basis.T @ y)
        systematic = found.systematic - basis @ (basis.T @ found.systematic)
        explained = systematic @ systematic
        rest, df = off @ off - explained, len(y) - 5 - found.terms
        if repeats > 1:
            cells = off.reshape(-1, repeats)
            rest, df = ((cells - cells.mean(1, keepdims=True)) ** 2).sum(), 50
        assert (found.df, found.repeats) == (df, repeats > 1)
        assert found.p == pytest.approx(f.sf(explained / found.terms / (rest / df), found.terms, df), rel=1e-6)


def test_remedies_name_the_law_the_range_and_the_error_ahead():
    """Losses of the joint law; bent upwards at the 14 smallest C, the law holds above them."""
    fit = fitted(table(side=8, shift=joint, noise=0.002), profiles=True)
    better = fit.lack_of_fit["better"]
    assert better["law"] == "joint_power" and better["p"] > 0.01 and better["noise"] < 0.003
    bent = fitted(table(side=8, shift=lambda u, v: 0.1 * np.maximum(-0.6 - u - v, 0)), profiles=True)
    part, ahead = bent.lack_of_fit["range"], bent.lack_of_fit["ahead"]
    assert part["p"] > 0.05 and part["rows"] >= 30 and part["high"] == bent.column("C").max()
    assert part["params"]["alpha"] == pytest.approx(0.34, abs=0.08)
    assert ahead["factor"] == 10 and ahead["rows"] == (bent.column("C") >= ahead["below"]).sum()
    words = " ".join(bent.warnings)
    assert "the law does fit the" in words and "alpha = " in words and "times further" in words


def test_the_surface_goes_through_the_systematic_parts():
    fit = fitted(table(shift=MISFITS["parabola"]))
    at_rows = lack_of_fit.surface(fit, {name: fit.column(name) for name in "ND"})
    np.testing.assert_allclose(at_rows, fit.column("systematic"), atol=1e-9)


def test_rounding_errors_and_few_rows_are_not_tested():
    assert fitted(table(noise=0.0)).lack_of_fit == {} and "not tested" in fitted(table(noise=0.0)).summary()
    assert fitted(table(side=3).iloc[:7]).lack_of_fit == {}


def test_a_fit_of_before_the_test_loads():
    record = fitted(table()).to_dict()
    assert result.from_dict(record).lack_of_fit == fitted(table()).lack_of_fit
    del record["lack_of_fit"]
    assert result.from_dict(record).lack_of_fit == {}


def test_copies_of_rows_are_no_repeats():
    """Six rows pasted twice: their zero scatter was taken for the noise, so every law failed."""
    sound = table(side=6, seed=2)
    found = fitted(pandas.concat([sound, sound[:6]], ignore_index=True)).lack_of_fit
    assert found["p"] > 0.01 and fitted(sound).lack_of_fit["p"] > 0.01

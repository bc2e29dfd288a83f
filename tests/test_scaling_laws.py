"""Every law: derivatives against differences, starting points, planted truth; new laws of a few lines."""

import dataclasses

import numpy as np
import pandas
import pytest

from lmjax import scaling
from lmjax.errors import InputError
from lmjax.scaling import engine
from lmjax.scaling.laws import (
    LAWS,
    Law,
    Term,
    additive,
    broken,
    coefficient,
    exponent,
    floor,
    get_law,
    predict_loss,
    slopes,
)

N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(2e8, 2e11, 6), indexing="ij"))
C = np.geomspace(1e15, 1e21, 30)
S = np.tile(np.geomspace(1e3, 1e5, 6), 6)
BATCH = np.tile(np.geomspace(1e4, 4e6, 9), 4)
UNIQUE = D / np.tile([1.0, 2.0, 8.0, 40.0], 9)
N_E, N_D, DATA = (
    v.ravel()
    for v in np.meshgrid(
        np.geomspace(1e6, 3e8, 4), np.geomspace(2e6, 6e8, 4), np.geomspace(1e8, 1e10, 3), indexing="ij"
    )
)
EXPERTS = np.tile([1.0, 4.0, 16.0, 64.0, 256.0, 512.0], 12)
ACTIVE = np.repeat(np.geomspace(1.5e7, 1.3e9, 6), 12)
TOKENS = np.tile(np.repeat([4e9, 6e10], 6), 6)
STEPS = np.arange(1, 41) * 250.0
S1 = np.concatenate([3e-4 * STEPS, 1e-3 * STEPS])
S2 = np.concatenate([np.maximum(STEPS - 6000, 0) * 2e-4, np.maximum(STEPS - 2000, 0) * 1e-4]) + 1e-6
# name -> (variables, planted parameters)
PLANTED = {
    "chinchilla": ({"N": N, "D": D}, dict(E=1.7, A=400.0, alpha=0.34, B=1500.0, beta=0.37)),
    "power_n": ({"N": np.geomspace(1e6, 1e9, 12)}, dict(E=1.7, A=400.0, alpha=0.34)),
    "power_d": ({"D": np.geomspace(1e8, 1e11, 12)}, dict(E=1.7, B=1500.0, beta=0.37)),
    "power_c": ({"C": C}, dict(E=1.7, A=900.0, alpha=0.16)),
    "kaplan_n": ({"N": np.geomspace(1e5, 1e9, 10)}, dict(A=8.8e13**0.076, alpha=0.076)),
    "kaplan_d": ({"D": np.geomspace(1e7, 1e11, 10)}, dict(A=5.4e13**0.095, beta=0.095)),
    "kaplan_c": ({"C": C}, dict(A=2.7e28**0.050, alpha=0.050)),
    "kaplan_nd": ({"N": N, "D": D}, dict(A=8.8e13**0.076, alpha=0.076, B=5.4e13**0.095, beta=0.095)),
    "kaplan_ns": ({"N": N, "S": S}, dict(A=6.5e13**0.077, alpha=0.077, K=2.1e3**0.76, kappa=0.76)),
    "critical_batch": (
        {"N": N, "S": S, "B": BATCH},
        dict(A=6.5e13**0.077, alpha=0.077, K=2.1e3**0.76, kappa=0.76, B_star=2e8, alpha_B=0.21),
    ),
    "data_constrained": (
        {"N": N, "D": D, "U": UNIQUE},
        dict(E=1.87, A=521.0, alpha=0.353, B=1488.0, beta=0.353, R_D=15.4, R_N=5.3),
    ),
    "overtrained": ({"C": 6 * N * D, "M": D / N}, dict(E=1.5, a=140.0, b=190.0, eta=0.12)),
    "quantization": ({"N": N, "D": D}, dict(E=1.2, A=200.0, B=100.0, alpha=0.35)),
    "joint_power": ({"N": N, "D": D}, dict(E=1.6, A=60.0, alpha=0.5, R=8.0, beta=0.55, k=0.6)),
    "farseer": (
        {"N": N, "D": D},
        dict(U0=0.9, U1=-0.06, gamma=-0.1, B0=6.0, B1=-0.1, beta=-0.15, A0=-1.1, A1=0.02, alpha=0.1),
    ),
    "encoder_decoder": ({"N_e": N_E, "N_d": N_D}, dict(E=1.0, A=300.0, p_e=0.18, p_d=0.31)),
    "encoder_decoder_data": (
        {"N_e": N_E, "N_d": N_D, "D": DATA},
        dict(E=1.0, A=300.0, p_e=0.18, p_d=0.31, B=900.0, beta=0.35),
    ),
    # the published fit of S-BASE (arXiv:2202.01169, table 3); near the one of arXiv:2502.05172
    "routed": (
        {"N": ACTIVE, "experts": EXPERTS},
        dict(a=-0.082, b=-0.108, c=0.009, d=1.104, E_start=1.847, E_max=314.478),
    ),
    "routed_data": (
        {"N": ACTIVE, "D": TOKENS, "experts": EXPERTS},
        dict(
            **dict(E=1.36, A=36.0, alpha=0.19, delta=0.23, gamma=-0.01, B=36.0, beta=0.18, omega=-0.55, zeta=0.026),
            **dict(E_start=2.1, E_max=290.0),
        ),
    ),
    "annealing": ({"S1": S1, "S2": S2}, dict(L0=2.4, A=0.6, alpha=0.5, C=0.2)),
    "broken_1": ({"C": C}, dict(a=0.4, b=300.0, c0=0.12, c1=0.2, d1=1e18, f1=0.5)),
    "broken_2": (
        {"C": np.geomspace(1e14, 1e24, 60)},
        dict(a=0.1, b=30.0, c0=0.05, c1=0.15, d1=1e17, f1=0.4, c2=-0.1, d2=1e21, f2=0.6),
    ),
    "broken_3": (
        {"C": np.geomspace(1e12, 1e26, 120)},
        dict(a=0.05, b=40.0, c0=0.04, c1=0.15, d1=1e15, f1=0.4, c2=-0.13, d2=1e19, f2=0.6, c3=0.1, d3=1e23, f3=0.5),
    ),
    "sigmoid_c": ({"C": C}, dict(floor=0.25, ceiling=0.9, k=0.9, middle=np.log(1e18))),
    "power_share_c": ({"C": C}, dict(floor=0.1, A=1e-4, alpha=0.18)),
    "power_error_c": ({"C": C}, dict(ceiling=0.95, A=500.0, alpha=0.19)),
}
DEFAULT = [name for name in PLANTED if name != "broken_3"]


def test_every_law_is_planted_here():
    assert set(PLANTED) == set(LAWS)


@pytest.mark.parametrize("name", PLANTED)
def test_gradient_equals_central_differences(name):
    """Step 1e-6 relative: the error of central differences is about 1e-9."""
    law, (x, params) = get_law(name), PLANTED[name]
    x = {k: v[::3] for k, v in x.items()}
    theta = {k: np.array([[v], [v * 1.1]]) for k, v in params.items()}
    _, found = slopes(law, theta, x)
    assert tuple(found) == law.parameters == tuple(params)
    for k in law.parameters:
        h = 1e-6 * np.maximum(np.abs(theta[k]), 1e-3)
        up, down = (law.predict({**theta, k: theta[k] + s * h}, x) for s in (1, -1))
        expected = (up - down) / (2 * h)
        np.testing.assert_allclose(found[k], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max() + 1e-30)


@pytest.mark.parametrize("name", DEFAULT)
def test_planted_truth_comes_back(name):
    """Without noise the objective goes to 0 and predictions to the truth; 1e-6 is the bar, 1e-9 is usual."""
    law, (x, params) = get_law(name), PLANTED[name]
    y = predict_loss(law, params, **x)
    found = engine.minimise(law, x, y, criterion="squared_log")
    fitted = predict_loss(law, found.params, **x)
    np.testing.assert_allclose(fitted, y, rtol=1e-6)
    for k, v in params.items():
        assert found.params[k] == pytest.approx(v, rel=2e-3, abs=1e-4), (k, found.params)


def test_routed_law_agrees_with_its_paper_on_dense_models_and_on_the_limits_of_routing():
    """arXiv:2202.01169: dense models of the same runs follow (3.568e13 / N)^0.078, and S-BASE stops helping at 937B."""
    size, params = np.geomspace(1.5e7, 1.3e9, 5), PLANTED["routed"][1]
    dense = predict_loss("routed", params, N=size, experts=1.0)
    np.testing.assert_allclose(dense, (3.568e13 / size) ** 0.078, rtol=0.02)
    gain = [
        predict_loss("routed", params, N=n, experts=64.0) / predict_loss("routed", params, N=n, experts=1.0)
        for n in (1e11, 5e12)
    ]
    assert gain[0] < 1 < gain[1]
    # as many experts as one likes are worth no more than E_max
    many = predict_loss("routed", params, N=1e9, experts=np.array([1e6, 1e9]))
    assert many[0] == pytest.approx(many[1], rel=1e-4)


def test_routed_laws_are_fitted_to_tables_that_identify_them():
    x, params = PLANTED["routed"]
    rng = np.random.default_rng(0)
    rows = pandas.DataFrame({**x, "D": 1.3e11, "loss": predict_loss("routed", params, **x)})
    rows["loss"] *= np.exp(0.003 * rng.standard_normal(len(rows)))
    found = scaling.fit(rows, "routed", resamples=100, profiles=False)
    for name, value in params.items():
        low, high = found.intervals[name]
        assert low < value < high, name
    truth = float(predict_loss("routed", params, N=5e9, experts=128))
    assert found.predict(N=5e9, experts=128).low < truth < found.predict(N=5e9, experts=128).high
    few = scaling.fit(rows[rows["experts"].isin([1.0, 16.0])], "routed", resamples=0)
    assert few.status == "not_identified"
    held = scaling.fit(rows[rows["experts"] <= 16], "routed", fix={"E_start": 1.847, "E_max": 314.478}, resamples=0)
    assert held.status == "converged" and held.params["b"] == pytest.approx(-0.108, abs=0.02)
    line = rows.assign(experts=rows["N"] / 1e7)
    assert "one line" in scaling.fit(line, "routed", resamples=0).reasons[0]


def test_broken_law_has_its_exponents_on_both_sides_of_the_break():
    law, p = broken(1, "N"), dict(a=0.0, b=5.0, c0=0.1, c1=0.3, d1=1e6, f1=0.2)
    for at, slope in ((1e2, 0.1), (1e10, 0.4)):
        low, high = (float(predict_loss(law, p, N=at * f)) for f in (1.0, 1.01))
        assert -np.log(high / low) / np.log(1.01) == pytest.approx(slope, abs=1e-6)


# ---- laws of a user ------------------------------------------------------------------------------------------------


@pytest.fixture
def register(monkeypatch):
    """Adds a law to LAWS for one test."""
    return lambda law: monkeypatch.setitem(LAWS, law.name, law) or law


def fitted(law, params, **x):
    """A fit of a planted table without noise."""
    loss = predict_loss(law, params, **x)
    return scaling.fit(pandas.DataFrame({**x, "loss": loss}), law.name, resamples=20, profiles=False)


def test_additive_law_of_a_variable_of_its_own_is_fitted(register):
    """Its exponent has no typical value and its variable no entry anywhere: this was a KeyError."""
    law = register(additive("power_s", "L(S) = E + A S^-alpha", (Term("A", "alpha", "S"),), "mine"))
    planted = dict(E=1.7, A=9.0, alpha=0.4)
    fit = fitted(law, planted, S=np.geomspace(1e3, 1e6, 9))
    assert fit.params == pytest.approx(planted, rel=1e-5)
    assert fit.predict(S=1e7).value == pytest.approx(1.7 + 9 * 1e7**-0.4)


def test_additive_law_of_three_terms_is_fitted(register):
    terms = (Term("A", "alpha", "N"), Term("B", "beta", "D"), Term("K", "kappa", "S"))
    law = register(additive("three", "L(N, D, S) = E + A N^-alpha + B D^-beta + K S^-kappa", terms, "mine"))
    planted = dict(E=1.7, A=400.0, alpha=0.34, B=1500.0, beta=0.37, K=40.0, kappa=0.5)
    axes = np.geomspace(1e6, 1e9, 4), np.geomspace(1e8, 1e11, 4), np.geomspace(1e3, 1e5, 3)
    n, d, s = (v.ravel() for v in np.meshgrid(*axes, indexing="ij"))
    fit = fitted(law, planted, N=n, D=d, S=s)
    assert fit.params == pytest.approx(planted, rel=1e-4)
    on_a_line = scaling.fit(
        pandas.DataFrame({"N": n, "D": d, "S": n / 1e3, "loss": predict_loss(law, planted, n, d, S=n / 1e3)}), law.name
    )
    assert on_a_line.status == "not_identified" and "S = 0.001 N" in on_a_line.reasons[0]


def test_law_without_starts_is_fitted(register):
    """One expression, and the names of the parameters in which it is linear."""
    law = Law(
        "saturating",
        "L(N, S) = E + A N^-alpha + K exp(-S / tau)",
        "mine",
        ("N", "S"),
        (floor(), coefficient("A"), exponent("alpha"), coefficient("K"), coefficient("tau")),
        lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["K"] * np.exp(-x["S"] / p["tau"]),
        linear=("E", "A", "K"),
    )
    tau = dataclasses.replace(law.space[4], grid=lambda x: np.array([1e3, 1e4]))
    law = register(dataclasses.replace(law, space=(*law.space[:4], tau)))
    planted = dict(E=1.7, A=400.0, alpha=0.34, K=2.0, tau=3e3)
    n, s = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 5), np.geomspace(1e3, 1e4, 5)))
    assert fitted(law, planted, N=n, S=s).params == pytest.approx(planted, rel=1e-5)


def test_a_function_without_derivative_is_named(register):
    law = register(
        Law(
            "odd",
            "L(N) = E + A arctan(N^-alpha)",
            "mine",
            ("N",),
            (floor(), coefficient("A"), exponent("alpha")),
            lambda p, x: p["E"] + p["A"] * np.arctan(x["N"] ** -p["alpha"]),
            linear=("E", "A"),
        )
    )
    with pytest.raises(InputError, match="to use NumPy.*arctan"):
        fitted(law, dict(E=1.0, A=90.0, alpha=0.3), N=np.geomspace(1e5, 1e8, 9), D=1e9)
    with pytest.raises(InputError, match="expected linear=.* or starts of the law odd"):
        dataclasses.replace(law, linear=())


def test_every_law_names_its_paper_in_words():
    assert all(isinstance(law.paper, str) and law.paper for law in LAWS.values())


def test_the_split_of_the_joint_law_is_its_minimum_at_equal_compute():
    law, params, C = get_law("joint_power"), PLANTED["joint_power"][1], 1e20
    best = law.optimum(params, C)
    n = best["N"] * np.geomspace(0.5, 2, 20_001)
    loss = law.predict(params, {"N": n, "D": C / 6 / n})
    assert loss.argmin() == 10_000 and best["loss"] == loss.min()
    larger = law.optimum(params, 100 * C)["N"]
    assert np.log(larger / best["N"]) / np.log(100) == pytest.approx(law.derive(params)["a"], rel=1e-9)

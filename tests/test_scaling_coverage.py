"""Do nominal 95 % intervals cover the truth 95 % of the time? Simulated tables, noise of 0.5 % in ln loss."""

import math

import numpy as np
import pandas
import pytest

from lmjax.scaling.fitting import fit as fit_law
from lmjax.scaling.laws import CHINCHILLA, optimal_allocation, predict_loss
from lmjax.scaling.table import read_table

TRUTH = dict(E=1.2, A=60.0, alpha=0.34, B=120.0, beta=0.30)
GRIDS = {
    12: (np.geomspace(1e5, 3.2e6, 4), np.geomspace(2e6, 3.2e7, 3)),
    16: (np.geomspace(1e5, 6.4e6, 4), np.geomspace(2e7, 1.28e9, 4)),
    60: (np.geomspace(1e5, 1e8, 6), np.geomspace(2e7, 4e9, 10)),
}
BEYOND = 4  # the new cell has so many times the largest N and the largest D: 16 times the compute


def coverage(points, noise, simulations, refits, growth=0.0, seed=0):
    """Share of simulated tables whose interval holds the truth, by parameter, for a new run and for N*(C).

    growth: how much noisier (ln) the largest model is than the smallest; the mean square stays.
    """
    rng = np.random.default_rng(seed)
    N, D = (x.ravel() for x in np.meshgrid(*GRIDS[points], indexing="ij"))
    new_n, new_d = BEYOND * N.max(), BEYOND * D.max()
    scale = np.exp(growth * np.log(N / N.min()) / np.log(N.max() / N.min()))
    scale *= noise / np.sqrt((scale**2).mean())
    clean, new_clean = predict_loss(CHINCHILLA, TRUTH, N, D), float(predict_loss(CHINCHILLA, TRUTH, new_n, new_d))
    truth = {**TRUTH, "a": TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])}
    budget = 6 * new_n * new_d
    best = float(optimal_allocation(TRUTH, budget)["N"])
    inside = {name: 0 for name in (*truth, "curve", "new run", "N*")}
    for k in range(simulations):
        loss = clean * np.exp(scale * rng.standard_normal(points))
        table = read_table(pandas.DataFrame({"N": N, "D": D, "loss": loss}))
        fit = fit_law(table, resamples=refits, seed=k, profiles=False)
        assert not fit.refused, fit.reasons
        for name, value in truth.items():
            inside[name] += fit.intervals[name][0] <= value <= fit.intervals[name][1]
        _, low, high = fit.predict(new_n, new_d, new_run=False)
        inside["curve"] += low <= new_clean <= high
        _, low, high = fit.predict(new_n, new_d)
        inside["new run"] += low <= new_clean * math.exp(scale.max() * rng.standard_normal()) <= high
        split = fit.allocate(budget)
        inside["N*"] += split["N_low"] <= best <= split["N_high"]
    return {name: count / simulations for name, count in inside.items()}


def test_intervals_cover_the_truth():
    """A true coverage of 95 % gives shares of 30 tables a deviation of 4.0 %; 3.3 of it are allowed. Intervals of half
    the width would cover 67 %."""
    share = coverage(16, 0.005, simulations=30, refits=100)
    assert min(share.values()) >= 0.95 - 3.3 * math.sqrt(0.95 * 0.05 / 30), share


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.003, 0.01])
@pytest.mark.parametrize("points", [12, 16, 60])
def test_intervals_cover_the_truth_93_to_97_percent(points, noise):
    """The bar is 93 to 97 %; 600 tables leave 0.9 % of sampling error, of which 1.5 are allowed on either side."""
    share = coverage(points, noise, simulations=600, refits=500, seed=1)
    print({name: round(100 * value, 1) for name, value in share.items()})
    assert 0.93 - 0.0135 <= min(share.values()) and max(share.values()) <= 0.97 + 0.0135, share


@pytest.mark.slow
def test_intervals_cover_the_truth_when_large_models_are_noisier():
    """Noise of 0.005 that grows 3-fold over N: parameters and the curve keep covering (a new run need not)."""
    share = coverage(60, 0.005, simulations=400, refits=400, growth=1.1, seed=2)
    del share["new run"]
    print({name: round(100 * value, 1) for name, value in share.items()})
    assert min(share.values()) >= 0.93 - 1.5 * math.sqrt(0.93 * 0.07 / 400), share

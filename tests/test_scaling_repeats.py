"""Guards against weights that do not follow the scatter of seeds, and fits that crash at a singular step."""

import numpy as np
import pandas
import pytest

from lmjax.errors import InputError
from lmjax.scaling import engine, repeats
from lmjax.scaling.fitting import fit
from lmjax.scaling.laws import CHINCHILLA, predict_loss
from lmjax.scaling.table import read_table

TRUTH = dict(E=1.2, A=60.0, alpha=0.34, B=120.0, beta=0.30)
SLOPE = 8.0  # of ln variance against ln loss


def table(seeds=4, slope=SLOPE):
    """Runs whose standard deviation is 0.05 % at the lowest loss."""
    N, D = (np.tile(x.ravel(), seeds) for x in np.meshgrid(np.geomspace(1e4, 3.2e6, 4), np.geomspace(2e6, 3.2e7, 3)))
    y = np.log(predict_loss(CHINCHILLA, TRUTH, N, D))
    sd = 5e-4 * np.exp(slope / 2 * (y - y.min()))
    rng = np.random.default_rng(1)
    frame = pandas.DataFrame({"N": N, "D": D, "loss": np.exp(y + sd * rng.standard_normal(len(y)))})
    return frame.assign(seed=np.repeat(range(seeds), len(y) // seeds)), sd


def test_weights_are_those_of_the_scatter():
    frame, sd = table()
    with pytest.raises(InputError, match="at least 5 repeats"):
        read_table(frame[frame["seed"] == 0], weights="repeats")
    found = read_table(frame, weights="repeats")
    assert any("36 repeats" in note for note in found.notes)
    ratio = found.points["weight"].to_numpy() * sd**2
    assert ratio.max() / ratio.min() < 3 < found.points["weight"].max() / found.points["weight"].min() / 30
    fitted = repeats.of_rows(found.points, CHINCHILLA)
    assert fitted.slope == pytest.approx(SLOPE, abs=2.5) and fitted.p < 1e-6


def test_unequal_scatter_is_reported_and_its_weights_narrow_the_floor():
    frame, _ = table()
    equal, weighted = fit(frame, resamples=200), fit(frame, weights="repeats", resamples=200)
    assert any("give --weights repeats" in warning for warning in equal.warnings)
    assert not any("give --weights repeats" in warning for warning in weighted.warnings)
    (low, high), (left, right) = equal.intervals["E"], weighted.intervals["E"]
    assert left <= TRUTH["E"] <= right and right - left < 0.5 * (high - low)
    frame, _ = table(slope=0.0)
    assert not any("scatter" in warning for warning in read_table(frame).warnings)


def test_a_singular_matrix_makes_a_step_down_the_slope():
    """An indefinite Hessian with two equal rows; alone and beside one that can be solved."""
    singular = np.array([[-1.0, -1.0], [-1.0, -1.0]])
    hessian, metric = np.stack([singular, 2 * np.eye(2)]), np.stack([np.eye(2)] * 2)
    gradient, far = np.array([[3.0, 4.0], [2.0, 4.0]]), np.full((2, 2), np.inf)
    step, _, _ = engine.box_step(gradient, hessian, metric * 1e-13, np.zeros(2), -far, far)
    assert np.isfinite(step).all() and (step[0] * gradient[0] < 0).all()
    np.testing.assert_allclose(step[1], [-1.0, -2.0], rtol=1e-9)


def test_rows_far_off_do_not_keep_repeats_from_being_tested():
    """Such rows are left out of the test one by one; the configurations stay, as their other repeats do."""
    frame, _ = table(slope=0.0)
    frame.loc[[0, 13], "loss"] *= 1.1
    found = fit(frame, resamples=0).lack_of_fit
    assert found["repeats"] and found["df"] == 36 - 2 and found["p"] > 0.01

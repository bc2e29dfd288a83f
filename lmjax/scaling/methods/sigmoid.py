"""A falling sigmoid of the loss, metric = floor + (ceiling - floor) / (1 + exp(k (L - L_mid))): fit and resamples.

It is the law sigmoid_c of lmjax.scaling.laws at C = exp(-L), with a known floor, fitted by lmjax.scaling.engine.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from lmjax.scaling import engine
from lmjax.scaling.laws import get_law
from lmjax.scaling.laws.base import Law, Parameter

RISE = 0.02  # rows closer to floor or ceiling than this share of the height do not constrain the slope
MIN_ABOVE = 2  # points that must exceed the floor by more than the noise
FARTHEST = 700.0  # |L|: beyond it exp(-L) overflows


@dataclass(frozen=True)
class Sigmoid:
    """params: floor, ceiling, k (> 0), L_mid. sd: of the metric around it, df. reason: non-empty where unusable."""

    params: dict[str, float]
    sd: float
    df: int
    free_ceiling: bool
    status: str
    reason: str
    warnings: tuple[str, ...]


def level_of(params, loss) -> np.ndarray:
    """The metric at a loss; params of floats, or of arrays [R, 1] for draws.

    Example:
        >>> float(level_of({"floor": 0.25, "ceiling": 0.95, "k": 4.0, "L_mid": 1.5}, 1.5))
        0.6
    """
    theta = {**{name: params[name] for name in ("floor", "ceiling", "k")}, "middle": -params["L_mid"]}
    return get_law("sigmoid_c").predict(theta, {"C": np.exp(-np.clip(loss, -FARTHEST, FARTHEST))})


def fit_sigmoid(loss: np.ndarray, metric: np.ndarray, floor: float, ceiling: float | None) -> Sigmoid:
    """Fits the metric [I] at losses [I] by least squares; ceiling None: fitted, between the floor and 1."""
    free = ceiling is None
    size = 3 if free else 2
    df = len(loss) - size
    if df < 1:
        reason = f"{size} parameters of the sigmoid need more than {len(loss)} rows"
        return Sigmoid({}, math.nan, 0, free, "too_few_points", reason, ())
    centre, width, x = _places(loss)
    found = engine.minimise(_law(floor, ceiling), x, metric, criterion="squared")
    params = _natural(found.params, centre, width)
    sd = math.sqrt(float(found.residual @ found.residual) / df)
    status, reason, warnings = _verdict(params, sd, loss, metric, centre, width, free)
    return Sigmoid(params, sd, df, free, status, reason, warnings)


def refit_sigmoid(fitted: Sigmoid, loss: np.ndarray, metric_RI: np.ndarray) -> dict[str, np.ndarray]:
    """Refits R resampled metrics, starting from the optimum; returns params by name, each [R]."""
    p, (centre, width, x) = fitted.params, _places(loss)
    law = _law(p["floor"], None if fitted.free_ceiling else p["ceiling"])
    problem = engine.problem_of(law, x, metric_RI[0], criterion="squared")
    start = problem.phi(p | {"k": p["k"] * width, "middle": (centre - p["L_mid"]) / width})
    found = problem.minimise(np.repeat(start[None], len(metric_RI), 0), metric_RI, problem.w_I, stages=False)
    return _natural(problem.natural(found.phi), centre, width)


def _places(loss):
    """Returns centre and width of the losses, and the variable of the law: ln C = (centre - L) / width."""
    centre, width = float(np.median(loss)), max(float(np.ptp(loss)), 1e-12)
    return centre, width, {"C": np.exp(np.clip((centre - loss) / width, -FARTHEST, FARTHEST))}


def _law(floor, ceiling) -> Law:
    """sigmoid_c with its floor fixed, and its ceiling too unless it is None."""
    law = get_law("sigmoid_c")
    ends = (floor, 1.0) if ceiling is None else (ceiling, ceiling)
    held = (Parameter("floor", floor, floor, keep=True), Parameter("ceiling", *ends, keep=True))
    return replace(law, space=(*held, *law.space[2:]))


def _natural(theta, centre, width):
    ends = {name: theta[name] for name in ("floor", "ceiling")}
    return {**ends, "k": theta["k"] / width, "L_mid": centre - width * theta["middle"]}


def _verdict(params, sd, loss, metric, centre, width, free):
    above = metric - params["floor"] > max(2 * sd, 1e-9)
    if above.sum() < MIN_ABOVE:
        count = f"{int(above.sum())} rows, expected at least {MIN_ABOVE}"
        return "not_identified", f"{count}, above the floor {params['floor']:g} by more than the noise", ()
    share = (level_of(params, loss) - params["floor"]) / (params["ceiling"] - params["floor"])
    rising = int(((share > RISE) & (share < 1 - RISE)).sum())
    if not rising:
        return "not_identified", "the metric jumps between two losses: add runs where it rises", ()
    if params["k"] * width < 0.6 or abs(params["L_mid"] - centre) > 3 * width:
        return "at_bound", "the metric is linear or flat over these losses: the sigmoid is not identified", ()
    warnings = ["only one row is on the rise of the sigmoid and determines its slope"] if rising == 1 else []
    if not loss.min() <= params["L_mid"] <= loss.max():
        warnings.append("the middle of the sigmoid is outside of the fitted losses: its height is extrapolated")
    if free and params["ceiling"] >= 1 - 1e-9:
        warnings.append("the ceiling is at its bound 1")
    return "converged", "", tuple(warnings)

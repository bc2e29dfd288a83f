"""What is uncertain about an optimum: profile intervals and the influence of each row. Refits: bootstrap.py.

Profile interval of one parameter: the values at which the objective, minimised over all others, stays below
    F* + t^2 E psi^2 / (2 E psi'),   psi = clip(r, -delta, delta),  t Student's quantile at df = I - K,
the likelihood-ratio interval of an M-estimate (t^2 s^2 / 2 for least squares); the expectations are over the errors
of a least-squares fit, smoothed.
"""

import numpy as np

from lmjax.scaling import bootstrap
from lmjax.scaling.problem import natural

MOST_ROWS = 400  # refits without one row each; of larger tables the rows that matter most
SIDES = np.array([0.3, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0])  # of the curvature's half width
NODES = 41


def threshold(noise: bootstrap.Noise, delta: float, level: float) -> float:
    """How far above its minimum the objective may lie inside an interval.

    Example (least squares on 1 % noise with many rows: 1.96^2 s^2 / 2):
        >>> errors = bootstrap.Noise(0.01 * np.array([-1.0, 1.0] * 500), 0.01, 0.0, 1000)
        >>> round(threshold(errors, 1e3, 0.95) / 0.01**2, 2)
        1.93
    """
    from scipy.special import ndtri, stdtrit

    nodes = ndtri((np.arange(NODES) + 0.5) / NODES)
    errors = (
        np.abs(noise.pool[:, None] + noise.kernel * nodes) * noise.sd / max(np.hypot(noise.sd, noise.kernel), 1e-300)
    )
    inside = max(float((errors <= delta).mean()), 1e-6)
    return float(stdtrit(noise.df, (1 + level) / 2) ** 2 * (np.minimum(errors, delta) ** 2).mean() / (2 * inside))


def profiles(problem, best, noise, level: float) -> dict[str, tuple[float, float]]:
    """Profile-likelihood interval of each parameter that is not a coefficient anchored far from the data.

    Args:
        problem, best: of lmjax/scaling/problem.py, and its optimum.
        noise: of the table.
        level: of the intervals.

    Returns:
        {name: (low, high)} in natural units; an end is the bound where the objective never rises enough.
    """
    rise = threshold(noise, problem.delta, level)
    names = list(problem.logs(best.phi[None]))
    out = {}
    if not rise > 0:
        return out
    spread = np.sqrt(np.maximum(np.diag(np.linalg.pinv(best.jacobian.T @ best.jacobian)), 0)) * 2.5 * noise.sd
    for k, name in enumerate(names):
        if name.startswith("ln ") and problem.law.terms:
            continue  # the additive solver's coordinate is the term at the centre of the table, not the coefficient
        out[name.removeprefix("ln ")] = tuple(
            float(np.exp(v)) if name.startswith("ln ") else v for v in _ends(problem, best, k, spread[k], rise)
        )
    unit = problem.logs(np.ones((1, len(best.phi))))["E"][0] if problem.law.terms else 1.0
    if "E" in out:
        out["E"] = (float(out["E"][0] * unit), float(out["E"][1] * unit))
    return {name: (float(low), float(high)) for name, (low, high) in out.items()}


def _ends(problem, best, k, spread, rise):
    """Where the profile of coordinate k crosses best + rise, on both sides."""
    here, low, high = best.phi[k], problem.low[k], problem.high[k]
    ends = []
    for side, bound in ((-1.0, low), (1.0, high)):
        values = np.clip(here + side * spread * SIDES, low, high)
        start = np.repeat(best.phi[None], len(SIDES), 0)
        # the others move along the valley, as the curvature predicts
        others = np.delete(np.arange(len(best.phi)), k)
        slope = -np.linalg.lstsq(best.jacobian[:, others], best.jacobian[:, k], rcond=1e-12)[0]
        start[:, others] += slope * (values - here)[:, None]
        start = np.clip(start, problem.low, problem.high)
        start[:, k] = values
        found = problem.minimise(start, problem.y_I[None], problem.w_I[None], held=(k,), stages=False)
        risen = np.sqrt(np.maximum(np.maximum.accumulate(found.objective - best.objective), 0.0))
        beyond = np.flatnonzero(risen >= np.sqrt(rise))
        if not beyond.size:
            ends.append(bound if np.isfinite(bound) and abs(values[-1] - bound) < 1e-12 else values[-1])
            continue
        i = beyond[0]
        before, value = (0.0, here) if i == 0 else (risen[i - 1], values[i - 1])
        ends.append(value + (values[i] - value) * (np.sqrt(rise) - before) / (risen[i] - before))
    return ends


def influence(problem, best, half_widths: dict[str, float]) -> np.ndarray:
    """Largest shift of a parameter, over the half width of its interval, when one row is left out, [I].

    Of tables with more than MOST_ROWS rows only the rows with the largest residual and leverage are left out; the
    others are NaN.
    """
    count = len(problem.y_I)
    out = np.full(count, np.nan)
    basis, _ = np.linalg.qr(best.jacobian)
    weight = np.abs(best.residual) * np.sqrt((basis**2).sum(1))
    rows = np.sort(np.argsort(-weight)[:MOST_ROWS])
    weights = np.repeat(problem.w_I[None], len(rows), 0)
    weights[np.arange(len(rows)), rows] = 0.0
    start = np.repeat(best.phi[None], len(rows), 0)
    without = problem.minimise(start, problem.y_I[None], weights, stages=False)
    here = natural(problem.law, problem.logs(best.phi[None]))
    there = natural(problem.law, problem.logs(without.phi))
    shifts = [np.abs(there[name] - here[name]) / half for name, half in half_widths.items() if half > 0]
    if shifts:
        out[rows] = np.max(shifts, axis=0)
    return out

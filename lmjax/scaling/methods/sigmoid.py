"""A falling sigmoid of the loss, metric = floor + (ceiling - floor) / (1 + exp(k (L - L_mid))): fit and refits.

For fixed (k, L_mid) the height above the floor is linear, so starts are a grid with an exact height each; then
Levenberg-Marquardt, many refits at once.
"""

import math
from dataclasses import dataclass

import numpy as np

RISE = 0.02  # a row whose fitted share of the height is closer to 0 or 1 says nothing about the slope
MIN_ABOVE = 2  # points that must stand above the floor by more than the noise


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
    from scipy.special import expit

    return params["floor"] + (params["ceiling"] - params["floor"]) * expit(-params["k"] * (loss - params["L_mid"]))


def fit_sigmoid(loss: np.ndarray, metric: np.ndarray, floor: float, ceiling: float | None) -> Sigmoid:
    """Least squares of the metric [I] at losses [I]; ceiling None: fitted, between the floor and 1."""
    free = ceiling is None
    centre, width = float(np.median(loss)), max(float(np.ptp(loss)), 1e-12)
    count, size = len(loss), 3 if free else 2
    df = count - size
    if df < 1:
        reason = f"{size} parameters of the sigmoid need more than {count} rows"
        return Sigmoid({}, math.nan, 0, free, "too_few_points", reason, ())
    mid_G, log_k_G = (
        v.ravel()
        for v in np.meshgrid(
            np.linspace(loss.min() - width, loss.max() + width, 31), np.log(np.geomspace(0.5, 200, 25) / width)
        )
    )
    height_G, squares_G = _heights(mid_G, log_k_G, loss, metric - floor, None if free else ceiling - floor, 1 - floor)
    keep = np.argsort(squares_G)[:8]
    start = np.stack([height_G, log_k_G, mid_G], 1)[keep]
    found, squares = _polish(start, loss, (metric - floor)[None], free, 1 - floor)
    best = int(squares.argmin())
    height, log_k, mid = found[best]
    params = {"floor": floor, "ceiling": floor + float(height), "k": math.exp(log_k), "L_mid": float(mid)}
    sd = math.sqrt(float(squares[best]) / df)
    status, reason, warnings = _verdict(params, sd, loss, metric, centre, width, free)
    return Sigmoid(params, sd, df, free, status, reason, warnings)


def refit_sigmoid(fitted: Sigmoid, loss: np.ndarray, metric_RI: np.ndarray) -> dict[str, np.ndarray]:
    """Refits to R other metrics from the optimum: params by name, each [R]."""
    p = fitted.params
    start = np.tile([p["ceiling"] - p["floor"], math.log(p["k"]), p["L_mid"]], (len(metric_RI), 1))
    found, _ = _polish(start, loss, metric_RI - p["floor"], fitted.free_ceiling, 1 - p["floor"])
    return {
        "floor": np.full(len(found), p["floor"]),
        "ceiling": p["floor"] + found[:, 0],
        "k": np.exp(found[:, 1]),
        "L_mid": found[:, 2],
    }


def _heights(mid_G, log_k_G, loss, above, height, highest):
    """The best height of each (k, L_mid) and its sum of squares."""
    from scipy.special import expit

    shape_GI = expit(-np.exp(log_k_G)[:, None] * (loss - mid_G[:, None]))
    if height is None:
        best = (shape_GI @ above) / np.maximum((shape_GI**2).sum(1), 1e-300)
        height_G = np.clip(best, 1e-6, highest)
    else:
        height_G = np.full(len(mid_G), height)
    return height_G, ((above - height_G[:, None] * shape_GI) ** 2).sum(1)


def _polish(start_R3, loss, above_RI, free, highest, iterations=60):
    """Levenberg-Marquardt in (height, ln k, L_mid); the height held unless free, and kept within (0, highest]."""
    from scipy.special import expit

    theta, damping = start_R3.copy(), np.full(len(start_R3), 1e-3)
    above_RI = np.broadcast_to(above_RI, (len(theta), len(loss)))

    def residuals(theta):
        s = expit(-np.exp(theta[:, 1:2]) * (loss - theta[:, 2:3]))
        return above_RI - theta[:, :1] * s, s

    rest, s = residuals(theta)
    value = (rest**2).sum(1)
    for _ in range(iterations):
        k, slope = np.exp(theta[:, 1:2]), theta[:, :1] * s * (1 - s)
        jacobian = np.stack([s, -slope * k * (loss - theta[:, 2:3]), slope * k], 2)
        held = np.full(len(theta), not free)
        gradient = np.einsum("rik,ri->rk", jacobian, rest)
        held |= (theta[:, 0] >= highest) & (gradient[:, 0] > 0)
        jacobian[held, :, 0], gradient[held, 0] = 0.0, 0.0
        normal = np.einsum("rik,ril->rkl", jacobian, jacobian)
        diagonal = np.einsum("rkk->rk", normal)
        normal[:, range(3), range(3)] += damping[:, None] * diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        step[:, 1] = np.clip(step[:, 1], -1, 1)
        new = theta + step
        new[:, 0] = np.clip(new[:, 0], 1e-6, highest)
        new[:, 1] = np.clip(new[:, 1], -30, 30)
        new_rest, new_s = residuals(new)
        new_value = (new_rest**2).sum(1)
        better = new_value <= value
        settled = better & (value - new_value <= 1e-14 * value)
        theta[better], value[better] = new[better], new_value[better]
        rest, s = np.where(better[:, None], new_rest, rest), np.where(better[:, None], new_s, s)
        damping = np.clip(np.where(better, damping / 4, damping * 5), 1e-12, 1e12)
        if (settled | (damping >= 1e12)).all():
            break
    return theta, value


def _verdict(params, sd, loss, metric, centre, width, free):
    above = metric - params["floor"] > max(2 * sd, 1e-9)
    if above.sum() < MIN_ABOVE:
        words = f"{int(above.sum())} rows stand above the floor {params['floor']:g} by more than the noise, wanted 2"
        return "not_identified", words, ()
    share = (level_of(params, loss) - params["floor"]) / (params["ceiling"] - params["floor"])
    rising = int(((share > RISE) & (share < 1 - RISE)).sum())
    if not rising:
        return "not_identified", "the metric jumps between two losses: runs are missing where it rises", ()
    if params["k"] * width < 0.6 or abs(params["L_mid"] - centre) > 3 * width:
        return "at_bound", "the metric is a straight line or flat over these losses: no sigmoid shows", ()
    warnings = ["one row lies on the rise of the sigmoid: its slope rests on it"] if rising == 1 else []
    if not loss.min() <= params["L_mid"] <= loss.max():
        warnings.append("the middle of the sigmoid lies outside of the fitted losses: its height is extrapolated")
    if free and params["ceiling"] >= 1 - 1e-9:
        warnings.append("the ceiling ended at 1")
    return "converged", "", tuple(warnings)

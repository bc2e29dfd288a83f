"""Noise over seeds: pooled over points, and what stands in for it where every point has one seed.

A stated standard deviation, or the scatter of a run's neighbouring checkpoints. The scatter at the end of a run follows
that over seeds (arXiv:2508.13144), but checkpoints share a seed and most of their training: it is a lower bound.

R cells, G points.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.emergence.curves import (
    FEWEST_REPEATS,
    HARD_METRICS,
    ITEMS_ALONE,
    SMOOTH_METRICS,
    Curves,
    error_of,
    limits,
)
from lmjax.scaling.table import truth

LAST = 10  # checkpoints at the end of a run


def checkpoints(frame, task: str) -> dict[str, dict[str, tuple[float, int]]]:
    """Noise of each run between its neighbouring checkpoints, which stands in for the noise over seeds.

    Each checkpoint is predicted by the line in ln(step) through its two neighbours; the error has the variance of one
    checkpoint times 1 + a^2 + b^2 for weights a, b. Where checkpoints are no points, only the last LAST count.
    frame: rows of curves.scaled.

    Returns:
        metric -> {run_id: (variance, in units of `unit_of` squared; number of errors)}, of runs with three checkpoints.

    Example (a value that alternates by 0.1 around 0.5: every checkpoint differs from its neighbours by 0.1):
        >>> import pandas
        >>> from lmjax.scaling.emergence.curves import scaled
        >>> rows = [dict(task="t", metric="accuracy", value=0.5 + 0.05 * (-1) ** k, n=9, C=1, run_id="a", step=100 + k)
        ...         for k in range(8)]
        >>> variance, errors = checkpoints(scaled(pandas.DataFrame(rows), "C")[0], "t")["accuracy"]["a"]
        >>> round(variance * 0.5**2, 4), round(0.1**2 / 1.5, 4), errors
        (0.0067, 0.0067, 6)
    """
    rows = frame[(frame["task"] == task) & frame["metric"].isin([*HARD_METRICS, *SMOOTH_METRICS]) & (frame["step"] > 0)]
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for (run_id, metric), run in rows.groupby(["run_id", "metric"]):
        run = run.sort_values("step").drop_duplicates("step")
        run = run if truth(run, "schedule_complete", task, missing=True).all() else run.tail(LAST)
        at, value = np.log(run["step"].to_numpy(float)), run["value"].to_numpy(float)
        if len(at) >= 3 and np.isfinite(value).all():
            a = (at[2:] - at[1:-1]) / (at[2:] - at[:-2])
            off = (value[1:-1] - a * value[:-2] - (1 - a) * value[2:]) / np.sqrt(1 + a**2 + (1 - a) ** 2)
            variance = float(np.mean((off / unit_of(metric, value)[1:-1]) ** 2))
            found.setdefault(str(metric), {})[run_id] = (variance, len(off))
    return found


def unit_of(metric: str, values) -> np.ndarray:
    """What a metric's noise grows with: sqrt(p (1 - p)) of a share p, else its error. Example: accuracy 0.1: 0.3."""
    if limits(metric) == (0.0, 1.0):
        share = np.clip(np.asarray(values, float), 1e-3, 1 - 1e-3)
        return np.sqrt(share * (1 - share))
    return np.maximum(error_of(metric, values), 1e-12)


def pooled(own: np.ndarray, df: np.ndarray, relative_to: np.ndarray) -> np.ndarray:
    """Variances [G], each averaged with a typical one, which counts as four more degrees of freedom.

    A few repeats estimate a variance poorly. The typical one is the median over points of the variance relative to
    relative_to^2, corrected for the median of a chi2: one point may straddle a step. own: variances; df: their degrees
    of freedom, 0 where there is none. relative_to: what the noise grows with.

    Example (without a variance of its own a point takes the typical one):
        >>> pooled(np.array([1.0, 1.0, 0.0]), np.array([1e6, 1e6, 0]), np.array([1.0, 1.0, 2.0])).round(3).tolist()
        [1.0, 1.0, 4.0]
    """
    from scipy.special import gammaincinv

    many = (df > 0) & (relative_to > 0)
    relative = own[many] / relative_to[many] ** 2 * df[many] / (2 * gammaincinv(df[many] / 2, 0.5))
    typical = (np.median(relative) if many.any() else 0.0) * relative_to**2
    return (4 * typical + df * own) / (4 + df)


def stand_in(curves: Curves, stated: Mapping[str, float], known: Mapping[str, Mapping]) -> Curves:
    """Returns the curves with the noise of the points of one seed.

    stated: metric -> its standard deviation over seeds, in the metric's unit. known: of `checkpoints`, for metrics
    without a stated one; not used where FEWEST_REPEATS seeds are.

    Raises:
        InputError: an unknown metric, or a negative number.
    """
    for name, sd in stated.items():
        if not (name in (*HARD_METRICS, *SMOOTH_METRICS) and 0 <= sd < np.inf):
            known_names = nearest(name, curves.metrics) if name not in curves.metrics else ""
            raise InputError(f"{curves.task}: noise: expected METRIC=SD with SD >= 0, got {name}={sd:g}{known_names}")
    alone = (curves.seeds[curves.point] == 1).astype(float)
    noise = {name: sd * alone for name, sd in stated.items() if name in curves.metrics}
    source, df = "as stated", np.inf
    for name in [name for name in curves.metrics if name in known and name not in noise]:
        if (curves.seeds - 1).sum() < FEWEST_REPEATS:
            own = np.array([known[name].get(run, (0.0, 0)) for run in curves.cells["run_id"]])
            unit = unit_of(name, curves.cells[name])
            noise[name] = alone * np.sqrt(pooled(own[:, 0] * unit**2, own[:, 1], unit))
            # neighbouring errors share checkpoints: about half of them are independent
            source, df = "that of neighbouring checkpoints, a lower bound", min(df, own[:, 1].sum() // 2)
    said = [w.replace(ITEMS_ALONE, f"their noise over seeds is {source}") if noise else w for w in curves.warnings]
    return replace(curves, noise=noise, df=df, warnings=tuple(said))

"""Bootstrap resamples of a task's curves over seeds and items together.

P resamples, R cells, G points, I items.

Items are the same for all cells, so a resample reweights them everywhere alike. Within a point the seeds are drawn with
replacement and their spread around the point's mean is widened by sqrt(S / (S - 1)), since S draws of S seeds vary too
little by just that factor (Rao and Wu, 1988). A point of one seed varies by its items alone.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.evals.metrics import floor
from lmjax.scaling.emergence.columns import error_of, limits
from lmjax.scaling.emergence.curves import Curves
from lmjax.scaling.resample import generator, within


@dataclass(frozen=True)
class Draws:
    """Resampled curves.

    points: metric -> [P, G]; cells: metric -> [P, R], items resampled only; predicted (p^L) and sampled [P, G] as in
    null.py, or None.
    """

    points: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    predicted: np.ndarray | None
    sampled: np.ndarray | None


def draw(curves: Curves, count: int, seed: int) -> Draws:
    """Resamples all metrics of a task together.

    Args:
        curves: of one task.
        count: number of resamples P.
        seed: random seed.

    Returns:
        Draws. Without a table of items a cell's value varies by its standard error, independently by metric.

    Example (two seeds of one point, 0.2 and 0.4: the spread of their mean is their standard deviation / sqrt(2)):
        >>> rng, point = generator(0), np.array([0, 0])
        >>> means = over_seeds(np.full((4000, 2), [0.2, 0.4]), point, within(rng, point, 4000))
        >>> round(float(means.std()), 2)
        0.1
    """
    from lmjax.scaling.emergence import null

    rng = generator(seed)
    weights = _weights(curves, count, rng)
    cells = {name: _values(curves, name, weights, count, rng) for name in (curves.hard, *curves.smooth)}
    picks = within(rng, curves.point, count)

    def averaged(values_PR, ends):
        return None if values_PR is None else np.clip(over_seeds(values_PR, curves.point, picks), *ends)

    return Draws(
        points={name: averaged(values, limits(name)) for name, values in cells.items()},
        cells=cells,
        predicted=averaged(null.expected(curves, cells, weights), (0, 1)),
        sampled=averaged(null.sampled(curves, weights), (0, 1)),
    )


def over_seeds(values_PR: np.ndarray, point_R: np.ndarray, picks_PR: np.ndarray) -> np.ndarray:
    """Means over resampled seeds, [P, G]; the spread around the mean over all seeds has its full width.

    Args:
        values_PR: values of every cell. point_R: point of each cell. picks_PR: resampled cell in place of each cell.
    """
    seeds = np.bincount(point_R)
    group_RG = np.eye(len(seeds))[point_R] / seeds
    mean = values_PR @ group_RG
    drawn = np.take_along_axis(values_PR, picks_PR, axis=1) @ group_RG
    return mean + (drawn - mean) * np.sqrt(seeds / np.maximum(seeds - 1, 1))


def _weights(curves, count, rng):
    """How often each resample takes each item, [P, I], or None without items."""
    if not curves.items:
        return None
    num_items = curves.items[curves.hard][0].shape[1]
    return rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=count).astype(float)


def _values(curves, name, weights, count, rng):
    """A metric of every cell under resampled items, [P, R]."""
    if weights is not None:
        numerator, denominator = curves.items[name]
        return (weights @ numerator.T) / (weights @ denominator.T)
    value = curves.cells[name].to_numpy(float)
    error = np.nan_to_num(curves.cells[f"{name} se"].to_numpy(float))
    return np.clip(value + error * rng.standard_normal((count, len(value))), *limits(name))


def point_errors(curves: Curves, draws: Draws, name: str) -> np.ndarray:
    """Standard errors of the point means of a smooth metric's error, [G], for weights and simulated noise.

    A few seeds estimate the spread at one point poorly, so each point's variance over seeds is averaged with a typical
    one, which counts as four more seeds: the median over points of the relative variance, since noise shrinks with the
    error and one point may straddle a step. The items' variance is a lower bound; for shares, so is the rule of
    succession (lmjax.evals.metrics.floor), since even 0 errors in n items leave uncertainty.
    """
    from scipy.special import gammaincinv

    values, point, seeds = error_of(name, curves.cells[name]), curves.point, curves.seeds
    mean = np.array([values[point == g].mean() for g in range(len(seeds))])
    own = np.array([values[point == g].var(ddof=1) if seeds[g] > 1 else 0.0 for g in range(len(seeds))])
    many = (seeds > 1) & (mean > 0)
    df = np.maximum(seeds - 1, 1)
    relative = own[many] / mean[many] ** 2 * df[many] / (2 * gammaincinv(df[many] / 2, 0.5))  # the median of a chi2
    typical = (np.median(relative) if many.any() else 0.0) * mean**2
    between = (4 * typical + (seeds - 1) * own) / (3 + seeds) / seeds
    errors = error_of(name, draws.cells[name])
    items = np.array([errors[:, point == g].mean(axis=1).var(ddof=1) for g in range(len(seeds))])
    least = np.full(len(seeds), 1e-5 * np.ptp(mean) + 1e-12)
    if limits(name) == (0.0, 1.0):
        least = np.array([floor(float(v), curves.n * int(s)) for v, s in zip(mean, seeds, strict=True)])
    return np.maximum(np.sqrt(np.maximum(between, items)), least)

"""Bootstrap of a task's curves over seeds and items together. Resamples; tests nothing.

P draws, R cells, G levels, I items.

Items are the same for all cells, so a draw reweights them everywhere alike; within a level the seeds are drawn with
replacement and their spread around the level's mean is widened by sqrt(S / (S - 1)), since S draws of S seeds vary too
little by just that factor (Rao and Wu, 1988). A level of one seed varies by its items alone.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.evals.metrics import floor
from lmjax.scaling.emergence.columns import error_of, limits
from lmjax.scaling.emergence.curves import Curves


@dataclass(frozen=True)
class Draws:
    """Resampled curves: `levels` metric -> [P, G]; `cells` metric -> [P, R], items resampled only; `null` [P, G] and
    `sampled` [P, G] as in null.py, or None."""

    levels: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    null: np.ndarray | None
    sampled: np.ndarray | None


def draw(curves: Curves, count: int, seed: int) -> Draws:
    """Resamples all metrics of a task together.

    Args:
        curves: of one task.
        count: draws P.
        seed: of numpy's Philox generator.

    Returns:
        Draws. Without a table of items a cell's value varies by its standard error, metrics independently.

    Example (two seeds of one size, 0.2 and 0.4: the spread of their mean is their standard deviation / sqrt(2)):
        >>> rng = np.random.Generator(np.random.Philox(0))
        >>> level = np.array([0, 0])
        >>> means = over_seeds(np.full((4000, 2), [0.2, 0.4]), level, seed_picks(level, 4000, rng))
        >>> round(float(means.std()), 2)
        0.1
    """
    from lmjax.scaling.emergence import null

    rng = np.random.Generator(np.random.Philox(seed))
    names = (curves.hard, *curves.smooth)
    weights = _weights(curves, count, rng)
    cells = {name: _values(curves, name, weights, count, rng) for name in names}
    picks = seed_picks(curves.level, count, rng)
    levels = {name: np.clip(over_seeds(cells[name], curves.level, picks), *limits(name)) for name in names}
    predicted = null.expected(curves, cells, weights)
    sampled = null.sampled(curves, cells, weights)
    return Draws(
        levels=levels,
        cells=cells,
        null=None if predicted is None else np.clip(over_seeds(predicted, curves.level, picks), 0, 1),
        sampled=None if sampled is None else np.clip(over_seeds(sampled, curves.level, picks), 0, 1),
    )


def seed_picks(level_R: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """For each level, which of its cells each draw takes: indices into cells, [P, S] per level."""
    members = [np.flatnonzero(level_R == g) for g in range(level_R.max() + 1)]
    return [m[rng.integers(len(m), size=(count, len(m)))] for m in members]


def over_seeds(values_PR: np.ndarray, level_R: np.ndarray, picks: list[np.ndarray]) -> np.ndarray:
    """Means over resampled seeds, [P, G]; the spread around the mean over all seeds has its full width."""
    columns = []
    for g, pick in enumerate(picks):
        mean_P = values_PR[:, level_R == g].mean(axis=1)
        drawn_P = np.take_along_axis(values_PR, pick, axis=1).mean(axis=1)
        seeds = pick.shape[1]
        columns.append(mean_P + (drawn_P - mean_P) * np.sqrt(seeds / max(seeds - 1, 1)))
    return np.stack(columns, axis=1)


def _weights(curves, count, rng):
    """How often each draw takes each item, [P, I], or None without items."""
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


def level_errors(curves: Curves, draws: Draws, name: str) -> np.ndarray:
    """Standard errors of the level means of a smooth metric's error, [G], for weights and simulated noise.

    A few seeds say little about the spread at one level, so each level's variance over seeds is averaged with a typical
    one, which counts as four more seeds: the median over levels of the relative variance, since noise shrinks with the
    error and one level may straddle a step. The items' variance is a lower bound, and for shares the rule of
    succession's (lmjax.evals.metrics.floor): an error of exactly 0 in n items is not known exactly.
    """
    from scipy.special import gammaincinv

    values, level, seeds = error_of(name, curves.cells[name]), curves.level, curves.seeds
    mean = np.array([values[level == g].mean() for g in range(len(seeds))])
    own = np.array([values[level == g].var(ddof=1) if seeds[g] > 1 else 0.0 for g in range(len(seeds))])
    many = (seeds > 1) & (mean > 0)
    df = np.maximum(seeds - 1, 1)
    relative = own[many] / mean[many] ** 2 * df[many] / (2 * gammaincinv(df[many] / 2, 0.5))  # the median of a chi2
    typical = (np.median(relative) if many.any() else 0.0) * mean**2
    between = (4 * typical + (seeds - 1) * own) / (3 + seeds) / seeds
    errors = error_of(name, draws.cells[name])
    items = np.array([errors[:, level == g].mean(axis=1).var(ddof=1) for g in range(len(seeds))])
    least = np.full(len(seeds), 1e-5 * np.ptp(mean) + 1e-12)
    if limits(name) == (0.0, 1.0):
        least = np.array([floor(float(v), curves.n * int(s)) for v, s in zip(mean, seeds, strict=True)])
    return np.maximum(np.sqrt(np.maximum(between, items)), least)

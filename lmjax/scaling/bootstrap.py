"""Refits on resampled tables: the spread behind every interval. Knows arrays, not tables.

Two methods. `residual` (default): the fitted surface plus resampled errors. The errors come from a least-
squares fit of the same law, whose residuals, unlike those of an almost-L1 fit, are not K exact zeros; each
is divided by sqrt(1 - leverage), smoothed by a normal kernel, and each refit scales them all by sqrt(df /
chi2_df), df = I - K, so that the uncertainty of the noise itself counts (Student's t instead of normal).
Percentiles of these refits cover 94-97 % at 12 to 60 points where the plain residual bootstrap covers 90 %.
`cells`: resamples whole configurations, the distinct (N, D) with all their repeats; assumes no equal noise
but covers 97-98 % (too wide) below some 30 configurations.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling import solver, starts

METHODS = ("residual", "cells")
MAX_SCALE = 20.0  # of the noise of one refit: with df = 1 the t factor has no mean


@dataclass(frozen=True)
class Noise:
    """The errors of a table in ln loss: pool [I] of corrected residuals, their sd, kernel width, df."""

    pool: np.ndarray
    sd: float
    kernel: float
    df: int

    def sample(self, rng: np.random.Generator, scale: np.ndarray, count: int) -> np.ndarray:
        """Errors [len(scale), count]; row b is scaled by scale[b]."""
        if not self.sd:
            return np.zeros((len(scale), count))
        picked = rng.choice(self.pool, (len(scale), count)) + self.kernel * rng.standard_normal(
            (len(scale), count)
        )
        picked *= self.sd / np.hypot(self.sd, self.kernel)  # the kernel must not widen the noise
        return scale[:, None] * picked

    def scales(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """sqrt(df / chi2_df), [count]: how far the true noise may be from its estimate."""
        return np.minimum(np.sqrt(self.df / rng.chisquare(self.df, count)), MAX_SCALE)


def estimate_noise(phi_K, u_JI, y_I, w_I) -> Noise:
    """Noise of the table around the law, from a least-squares fit started at phi and on the grid."""
    wide = 1e3  # Huber with a delta above every residual is least squares
    begin = np.concatenate([phi_K[None], starts.starting_points(u_JI, y_I, w_I, wide, keep=4)])
    least = solver.minimise(begin, u_JI, y_I[None], w_I[None], wide, stages=False)
    best = least.phi[[least.objective.argmin()]]
    residual_I = np.sqrt(w_I) * (y_I - solver.model(best, u_JI)[0])
    low, high = solver.bounds(len(u_JI))
    free = ((best > low) & (best < high))[0]
    basis, _ = np.linalg.qr((solver.jacobian(best, u_JI)[0, free] * np.sqrt(w_I)).T)
    leverage_I = np.minimum((basis**2).sum(1), 0.95)
    df = max(len(y_I) - int(free.sum()), 1)
    sd = float(np.sqrt((residual_I**2).sum() / df))
    pool = residual_I / np.sqrt(1 - leverage_I)
    pool = pool - pool.mean()
    if pool.std() > 0:
        pool = pool * (sd / pool.std())
    quarter = np.subtract(*np.quantile(pool, [0.75, 0.25])) / 1.349
    kernel = 0.9 * min(sd, float(quarter)) * len(pool) ** -0.2  # Silverman's rule
    return Noise(pool, sd, kernel, df)


def refit(
    phi_K, u_JI, y_I, w_I, cells_I, delta, method, count, seed
) -> tuple[solver.Solution, np.ndarray, Noise]:
    """Refits `count` resampled tables, each from the optimum phi of the table itself.

    Args:
        phi_K: the optimum.
        u_JI, y_I, w_I: centred logs and weights, as in the solver.
        cells_I: integer label of the configuration (distinct N and D) of each row.
        delta: Huber's delta.
        method: residual | cells.
        count: number of refits.
        seed: of numpy's Philox generator.

    Returns:
        The solution for all refits, the noise scale of each refit [count], the noise of the table.
    """
    if method not in METHODS:
        raise InputError(f"wanted a bootstrap method, got {method!r}{nearest(method, METHODS)}")
    rng = np.random.Generator(np.random.Philox(seed))
    noise = estimate_noise(phi_K, u_JI, y_I, w_I)
    scale = noise.scales(rng, count)
    if method == "residual":
        y_PI = solver.model(phi_K[None], u_JI) + noise.sample(rng, scale, len(y_I)) / np.sqrt(w_I)
        w_PI = w_I[None]
    else:
        distinct = cells_I.max() + 1
        times = rng.multinomial(distinct, np.full(distinct, 1 / distinct), size=count)
        y_PI, w_PI = y_I[None], w_I * times[:, cells_I]
    start = np.repeat(phi_K[None], count, 0)
    return solver.minimise(start, u_JI, y_PI, w_PI, delta), scale, noise

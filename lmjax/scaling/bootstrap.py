"""Refits on resampled tables: the spread behind every interval. Knows arrays, not tables.

`residual`: the fitted surface plus resampled errors. The errors come from a least-squares fit of the same law,
whose residuals, unlike those of an almost-L1 fit, are not K exact zeros; each is divided by sqrt(1 - leverage)
and smoothed by a normal kernel, and each refit scales all of its errors by sqrt(df / chi2_df), df = I - K, so
that the uncertainty of the noise itself counts (Student's t instead of normal). Plain percentiles. Assumes
equal noise everywhere.
`configurations`: resamples whole configurations, the distinct (N, D) with all their repeats, and takes bias-corrected
percentiles. Holds for unequal noise, but needs many configurations.
`auto` (default): residual below 20 configurations, else configurations.

Coverage of nominal 95 % intervals (E, A, alpha, B, beta, a, N*(C), the curve and a new run at 16 times the largest
compute), 600 simulated tables each, `auto`, noise of 0.3 % and 1 %; tests/test_scaling_coverage.py repeats it:
    12 points  94.3-96.7 %    16 points  94.0-97.0 %    60 points  94.2-97.7 %
    60 points, noise 3 times larger in the largest models than in the smallest  92.5-94.8 % (residual: 84.8-95.6 %)
    12 points in less than a decade of N and of D, 1 % noise, E unknown  92.2-97.3 %
Outside of its range each method fails: configurations covers 82-87 % at 8 points, residual 84.8 % with unequal noise.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling import solver, starts

METHODS = ("auto", "residual", "configurations")
FEW_CONFIGURATIONS = 20
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
        picked = rng.choice(self.pool, (len(scale), count)) + self.kernel * rng.standard_normal((len(scale), count))
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


def choose(method: str, num_configurations: int) -> str:
    """The method that `auto` stands for."""
    if method not in METHODS:
        raise InputError(f"wanted a bootstrap method, got {method!r}{nearest(method, METHODS)}")
    return {"auto": "residual" if num_configurations < FEW_CONFIGURATIONS else "configurations"}.get(method, method)


def is_corrected(method: str, E_P) -> bool:
    """Whether intervals are bias-corrected: for `configurations`, unless refits pile up at the bound E = 0."""
    return method == "configurations" and float(np.mean(np.asarray(E_P) <= 0)) < 0.01


def interval(refits_P, estimate, level: float, corrected: bool) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of refits [P, ...] around an estimate [...].

    Bias-corrected if asked: with z0 = Phi^-1(share of refits below the estimate), the percentiles Phi(2 z0 -+ z).

    Example (no bias: the plain percentiles):
        >>> low, high = interval(np.arange(1001.0), 500.0, 0.95, corrected=True)
        >>> float(low), float(high)
        (25.0, 975.0)
    """
    from scipy.special import ndtr, ndtri

    refits_P, estimate = np.asarray(refits_P, float), np.asarray(estimate, float)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if not corrected:
        return tuple(np.quantile(refits_P, tails, axis=0))
    flat = refits_P.reshape(len(refits_P), -1)
    below = (flat < estimate.ravel()).mean(0) + 0.5 * (flat == estimate.ravel()).mean(0)
    shift = 2 * ndtri(np.clip(below, 0.005, 0.995))
    ends = [
        np.array([np.quantile(column, ndtr(s + z)) for column, s in zip(flat.T, shift, strict=True)])
        for z in ndtri(tails)
    ]
    return tuple(end.reshape(estimate.shape) for end in ends)


def refit(phi_K, u_JI, y_I, w_I, groups_I, delta, method, count, seed) -> tuple[solver.Solution, np.ndarray, Noise]:
    """Refits `count` resampled tables, each from the optimum phi of the table itself.

    Args:
        phi_K: the optimum.
        u_JI, y_I, w_I: centred logs and weights, as in the solver.
        groups_I: integer label of the configuration (distinct N and D) of each row.
        delta: Huber's delta.
        method: residual | configurations.
        count: number of refits.
        seed: of numpy's Philox generator.

    Returns:
        The solution for all refits, the noise scale of each refit [count], the noise of the table.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    noise = estimate_noise(phi_K, u_JI, y_I, w_I)
    scale = noise.scales(rng, count)
    if method == "residual":
        y_PI = solver.model(phi_K[None], u_JI) + noise.sample(rng, scale, len(y_I)) / np.sqrt(w_I)
        w_PI = w_I[None]
    else:
        distinct = groups_I.max() + 1
        times = rng.multinomial(distinct, np.full(distinct, 1 / distinct), size=count)
        y_PI, w_PI = y_I[None], w_I * times[:, groups_I]
    start = np.repeat(phi_K[None], count, 0)
    return solver.minimise(start, u_JI, y_PI, w_PI, delta), scale, noise

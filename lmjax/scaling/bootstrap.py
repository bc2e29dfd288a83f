"""Refits on resampled tables: the spread behind every interval. Knows arrays, not tables.

`residual`: the fitted surface plus resampled errors. The errors come from a least-squares fit of the same law,
whose residuals, unlike those of an almost-L1 fit, are not K exact zeros; each is divided by sqrt(1 - leverage)
and smoothed by a normal kernel, and each refit scales all of its errors by sqrt(df / chi2_df), df = I - K, so
that the uncertainty of the noise itself counts (Student's t instead of normal). Plain percentiles. Assumes
equal noise everywhere.
`configurations`: resamples whole configurations, the distinct (N, D) with all their repeats, and takes bias-corrected
percentiles. Holds for unequal noise, but needs many configurations.
`rows`: resamples single rows, for tables without repeats; narrower than it should be where seeds share a fault.
`wild_cluster`: the fitted surface plus each row's own corrected error, with one random sign for all rows of a
configuration (Webb's six weights below 12 configurations, else Rademacher's): keeps unequal noise and the correlation
of repeats, and the design as it is. Plain percentiles.
`auto` (default): residual below 20 configurations (4 per parameter if that is more), else configurations.

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
from lmjax.scaling import solver

METHODS = ("auto", "residual", "rows", "configurations", "wild_cluster")
FEW_CONFIGURATIONS = 20
FEW_CLUSTERS = 12  # below, two signs give too few distinct tables
WEBB = np.sqrt([0.5, 1.0, 1.5])
WIDE = 1e3  # Huber with a delta above every residual is least squares
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


def estimate_noise(problem, phi_K) -> Noise:
    """Noise of the table around the law, from a least-squares fit started at phi and on the grid."""
    begin = np.concatenate([phi_K[None], problem.starts(WIDE, keep=4)])
    least = problem.minimise(begin, problem.y_I[None], problem.w_I[None], delta=WIDE, stages=False)
    best, w_I = least.phi[[least.objective.argmin()]], problem.w_I
    residual_I = np.sqrt(w_I) * (problem.y_I - problem.model(best)[0])
    free = ((best > problem.low) & (best < problem.high))[0]
    basis, _ = np.linalg.qr((problem.jacobian(best)[0, free] * np.sqrt(w_I)).T)
    leverage_I = np.minimum((basis**2).sum(1), 0.95)
    df = max(len(w_I) - int(free.sum()), 1)
    sd = float(np.sqrt((residual_I**2).sum() / df))
    pool = residual_I / np.sqrt(1 - leverage_I)
    pool = pool - pool.mean()
    if pool.std() > 0:
        pool = pool * (sd / pool.std())
    quarter = np.subtract(*np.quantile(pool, [0.75, 0.25])) / 1.349
    kernel = 0.9 * min(sd, float(quarter)) * len(pool) ** -0.2  # Silverman's rule
    return Noise(pool, sd, kernel, df)


def choose(method: str, num_configurations: int, num_parameters: int = 5) -> str:
    """The method that `auto` stands for."""
    if method not in METHODS:
        raise InputError(f"wanted a bootstrap method, got {method!r}{nearest(method, METHODS)}")
    few = max(FEW_CONFIGURATIONS, 4 * num_parameters)
    return {"auto": "residual" if num_configurations < few else "configurations"}.get(method, method)


def is_corrected(method: str, E_P) -> bool:
    """Whether intervals are bias-corrected: where rows are resampled, unless refits pile up at the bound E = 0."""
    return method in ("rows", "configurations") and float(np.mean(np.asarray(E_P) <= 0)) < 0.01


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


def refit(problem, phi_K, method, count, seed, noise: Noise, rivals=()) -> tuple[solver.Solution, np.ndarray]:
    """Refits `count` resampled tables, each from the optimum phi of the table itself and from its rivals.

    Args:
        problem: the table, from lmjax.scaling.problem.
        phi_K: the optimum.
        method: residual | rows | configurations | wild_cluster.
        count: number of refits.
        seed: of numpy's Philox generator.
        noise: of the table.
        rivals: other minima [K] that a resampled table may prefer; the best of all ends is kept.

    Returns:
        The solution for all refits, the noise scale of each refit [count].
    """
    rng = np.random.Generator(np.random.Philox(seed))
    scale = noise.scales(rng, count)
    y_I, w_I, groups_I = problem.y_I, problem.w_I, problem.groups_I
    distinct = groups_I.max() + 1
    y_PI, w_PI = y_I[None], w_I[None]
    if method == "residual":
        y_PI = problem.model(phi_K[None]) + noise.sample(rng, scale, len(y_I)) / np.sqrt(w_I)
    elif method == "wild_cluster":
        signs = rng.choice([-1.0, 1.0], (count, distinct))
        if distinct < FEW_CLUSTERS:
            signs *= rng.choice(WEBB, (count, distinct))
        y_PI = problem.model(phi_K[None]) + signs[:, groups_I] * noise.pool / np.sqrt(w_I)
    elif method == "rows":
        w_PI = w_I * rng.multinomial(len(y_I), np.full(len(y_I), 1 / len(y_I)), size=count)
    else:
        w_PI = w_I * rng.multinomial(distinct, np.full(distinct, 1 / distinct), size=count)[:, groups_I]
    ends = [problem.minimise(np.repeat(start[None], count, 0), y_PI, w_PI) for start in (phi_K, *rivals)]
    best = np.argmin([end.objective for end in ends], 0), np.arange(count)
    phi, value, converged = (
        np.stack([getattr(end, name) for end in ends])[best] for name in ("phi", "objective", "converged")
    )
    return solver.Solution(phi, value, converged, max(end.iterations for end in ends)), scale

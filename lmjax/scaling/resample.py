"""Uncertainty of an optimum: bootstrap resamples, profile-likelihood intervals, influence of each row.

Schemes (`method` of `refit`):

`residual`: the fitted surface plus resampled errors. The errors come from a least-squares fit of the same law: an
almost-L1 fit interpolates K rows, so its residuals understate the noise. Each is divided by sqrt(1 - leverage) and
smoothed by a normal kernel, and each resample scales all of its errors by sqrt(df / chi2_df), df = I - K, so that the
uncertainty of the noise itself counts (Student's t instead of normal). Plain percentiles. Assumes equal noise.
`configurations`: resamples whole configurations, the distinct (N, D) with all their repeats, and takes bias-corrected
percentiles. Holds for unequal noise, but needs many configurations.
`rows`: resamples single rows, for tables without repeats; too narrow if the errors of repeats are correlated.
`wild_cluster`: the fitted surface plus each row's own corrected error, with one random sign for all rows of a
configuration (Webb's six weights below 12 configurations, else Rademacher's). Keeps unequal noise, the correlation of
repeats and the design. Plain percentiles.
`auto` (default): residual below 20 configurations (4 per parameter if that is more), else configurations.

Coverage of nominal 95 % intervals (E, A, alpha, B, beta, a, N*(C), the curve and a new run at 16 times the largest
compute), 600 simulated tables each, `auto`, noise of 0.3 % and 1 %; tests/test_scaling_coverage.py repeats it:
    12 points  94.3-96.7 %    16 points  94.0-97.0 %    60 points  94.2-97.7 %
    60 points, noise 3 times larger in the largest models than in the smallest  92.5-94.8 % (residual: 84.8-95.6 %)
    12 points in less than a decade of N and of D, 1 % noise, E unknown  92.2-97.3 %
Outside its range each scheme fails: configurations covers 82-87 % at 8 points, residual 84.8 % with unequal noise.

Profile interval of one parameter: the values at which the criterion, minimised over all others, stays below
    F* + t^2 sum_i w_i^2 E psi_i^2 / (2 sum_i w_i E psi_i'),   psi_i = clip(e / sqrt(w_i), -delta, delta),
t Student's quantile at df = I - K: the likelihood-ratio interval of an M-estimate (t^2 s^2 / 2 for least squares). The
expectations are over the errors e of a least-squares fit, smoothed, in the unit of a row of weight 1.

Letters: P resamples, I rows, K parameters.
"""

from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import InputError, nearest

METHODS = ("auto", "residual", "rows", "configurations", "wild_cluster")
FEW_CONFIGURATIONS = 20
FEW_CLUSTERS = 12  # below, two signs give too few distinct tables
WEBB = np.sqrt([0.5, 1.0, 1.5])
MAX_SCALE = 20.0  # largest noise scale of one resample: at df = 1 the t factor has no mean
MOST_ROWS = 400  # at most this many rows are left out in turn: those with most influence
# points of a profile, in half widths from the curvature
SIDES = np.array([0.3, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0])
FARTHER = np.array([1.4, 2.0, 2.8, 4.0])  # times the reach so far, if the profile has not risen enough
BETWEEN = np.arange(1, 6) / 6  # points inside the bracket that holds an end
ROUNDS = 12  # largest number of extensions of the reach
LEAST_REACH = 1e-4  # smallest half width to start from, relative to the coordinate
STEPS = 60  # Newton steps per point of a profile; more would not move the ends
NEIGHBOURS = 5  # rounds in which points restart from the minima of their neighbours
NODES = 41  # of the quadrature over the smoothing kernel
LEAST_SQUARES = 1e3  # Huber with a delta above every residual is least squares


def generator(seed: int) -> np.random.Generator:
    """The generator of all resamples: numpy's Philox."""
    return np.random.Generator(np.random.Philox(seed))


def t_scales(rng: np.random.Generator, df: float, count: int) -> np.ndarray:
    """sqrt(df / chi2_df), [count]: random ratio of the true to the estimated noise; 1 for infinite df."""
    return np.ones(count) if np.isinf(df) else np.minimum(np.sqrt(df / rng.chisquare(df, count)), MAX_SCALE)


def t_errors(rng: np.random.Generator, sd_I: np.ndarray, df: float, count: int) -> np.ndarray:
    """Normal errors [count, I] of standard deviations that were estimated once, with df degrees of freedom."""
    return t_scales(rng, df, count)[:, None] * sd_I * rng.standard_normal((count, len(sd_I)))


def counts(rng: np.random.Generator, groups_I: np.ndarray, count: int) -> np.ndarray:
    """How often each row is drawn when whole groups are resampled with replacement, [count, I].

    groups_I: group of each row, integers from 0; np.arange(I) resamples single rows.

    Example (both rows of group 0 are drawn equally often):
        >>> times = counts(generator(0), np.array([0, 0, 1]), 4)
        >>> bool((times[:, 0] == times[:, 1]).all()), (times[:, 1] + times[:, 2]).tolist()
        (True, [2, 2, 2, 2])
    """
    distinct = int(groups_I.max()) + 1
    return rng.multinomial(distinct, np.full(distinct, 1 / distinct), size=count)[:, groups_I]


def within(rng: np.random.Generator, groups_I: np.ndarray, count: int) -> np.ndarray:
    """Rows drawn with replacement from the group of each row (integers from 0), [count, I]: groups keep their sizes.

    Example (row 2 is alone in its group):
        >>> within(generator(0), np.array([0, 0, 1]), 4)[:, 2].tolist()
        [2, 2, 2, 2]
    """
    drawn = np.empty((count, len(groups_I)), int)
    for group in range(int(groups_I.max()) + 1):
        members = np.flatnonzero(groups_I == group)
        drawn[:, members] = members[rng.integers(len(members), size=(count, len(members)))]
    return drawn


def signs(rng: np.random.Generator, count: int, clusters: int) -> np.ndarray:
    """Random factors of the errors of each cluster, mean 0 and variance 1, [count, clusters]: see `wild_cluster`."""
    out = rng.choice([-1.0, 1.0], (count, clusters))
    return out * rng.choice(WEBB, (count, clusters)) if clusters < FEW_CLUSTERS else out


# ---- intervals -----------------------------------------------------------------------------------------------------


def percentiles(values_P, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The ends (low, high) of the central interval that holds a fraction `confidence` of the values, along P."""
    return tuple(np.quantile(values_P, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0))


def half_width_factor(confidence: float) -> float:
    """Half-width of a normal interval in standard deviations: 1.96 at 95 %."""
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


def interval(values_P, estimate, confidence: float, corrected: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of resamples [P, ...] around an estimate [...].

    Args:
        estimate: on the table itself; only a corrected interval uses it.
        corrected: bias-corrected: with z0 = Phi^-1(share of resamples below the estimate), the percentiles
            Phi(2 z0 -+ z).

    Returns:
        (low, high), each of the shape of the estimate.

    Example (no bias: the plain percentiles):
        >>> low, high = interval(np.arange(1001.0), 500.0, 0.95, corrected=True)
        >>> float(low), float(high)
        (25.0, 975.0)
    """
    from scipy.special import ndtr, ndtri

    values_P, estimate = np.asarray(values_P, float), np.asarray(estimate, float)
    if not corrected:
        return percentiles(values_P, confidence)
    flat = values_P.reshape(len(values_P), -1)
    below = (flat < estimate.ravel()).mean(0) + 0.5 * (flat == estimate.ravel()).mean(0)
    shift = 2 * ndtri(np.clip(below, 0.005, 0.995))
    low, high = (
        np.array([np.quantile(column, ndtr(s + z)) for column, s in zip(flat.T, shift, strict=True)])
        for z in ndtri([(1 - confidence) / 2, (1 + confidence) / 2])
    )
    return low.reshape(estimate.shape), high.reshape(estimate.shape)


# ---- fits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """The errors of a table around its law: pool [I] of corrected residuals, their sd, kernel width, df."""

    pool: np.ndarray
    sd: float
    kernel: float
    df: int

    def sample(self, rng: np.random.Generator, scale: np.ndarray, count: int) -> np.ndarray:
        """Errors [len(scale), count]; row p is scaled by scale[p]."""
        if not self.sd:
            return np.zeros((len(scale), count))
        picked = rng.choice(self.pool, (len(scale), count)) + self.kernel * rng.standard_normal((len(scale), count))
        picked *= self.sd / np.hypot(self.sd, self.kernel)  # the kernel must not widen the noise
        return scale[:, None] * picked


def robust_scale(residual_I: np.ndarray, free: int) -> float:
    """Standard deviation of normal residuals from their median size, without the `free` smallest.

    K parameters can fit K rows exactly, so the K smallest residuals say nothing about the noise.
    """
    size = np.sort(np.abs(residual_I))
    return 1.4826 * float(np.median(size[free:] if free < len(size) else size))


def estimate_noise(problem, phi_K) -> Noise:
    """Noise of the table around the law, from a least-squares fit started at phi and on the grid."""
    begin = np.concatenate([phi_K[None], problem.starts(LEAST_SQUARES, keep=4)])
    least = problem.minimise(begin, problem.y_I[None], problem.w_I[None], delta=LEAST_SQUARES, stages=False)
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
    """Returns the scheme: the one that `auto` stands for, or `method` itself."""
    if method not in METHODS:
        raise InputError(f"expected a bootstrap scheme, got {method!r}{nearest(str(method), METHODS)}")
    few = max(FEW_CONFIGURATIONS, 4 * num_parameters)
    return {"auto": "residual" if num_configurations < few else "configurations"}.get(method, method)


def is_corrected(method: str, E_P) -> bool:
    """Whether intervals are bias-corrected: where rows are resampled, unless resamples pile up at the bound E = 0."""
    return method in ("rows", "configurations") and float(np.mean(np.asarray(E_P) <= 0)) < 0.01


def _tables(method, rng, count, problem, fitted_I, noise, scale_P):
    """Losses and weights, each [P, I] (or [1, I]), of resampled tables."""
    if method == "residual":
        errors_PI = noise.sample(rng, scale_P, len(fitted_I))
    elif method == "wild_cluster":
        errors_PI = signs(rng, count, problem.groups_I.max() + 1)[:, problem.groups_I] * noise.pool
    else:
        groups_I = problem.groups_I if method == "configurations" else np.arange(len(fitted_I))
        return problem.y_I[None], problem.w_I * counts(rng, groups_I, count)
    return fitted_I + errors_PI / np.sqrt(problem.w_I), problem.w_I[None]


def refit(problem, phi_K, method, count, seed, noise: Noise, rivals=()):
    """Refits `count` resampled tables, each from the optimum phi of the original table and from other minima.

    Args:
        problem, phi_K: the engine.Problem of the table, and its optimum.
        method: residual | rows | configurations | wild_cluster.
        noise: of the table, from `estimate_noise`.
        rivals: other minima [K] to start from too; the lowest minimum is kept.

    Returns:
        The minima of all resamples, as `problem.minimise` returns them; the noise scale of each resample [count].
    """
    rng = generator(seed)
    scale_P = t_scales(rng, noise.df, count)
    y_PI, w_PI = _tables(method, rng, count, problem, problem.model(phi_K[None])[0], noise, scale_P)
    ends = [problem.minimise(np.repeat(start[None], count, 0), y_PI, w_PI) for start in (phi_K, *rivals)]
    best = np.argmin([end.objective for end in ends], 0), np.arange(count)
    kept = {name: np.stack([getattr(end, name) for end in ends])[best] for name in ("phi", "objective", "converged")}
    return replace(ends[0], **kept, iterations=max(end.iterations for end in ends)), scale_P


# ---- profile-likelihood intervals and the influence of rows ----------------------------------------------------------


def threshold(noise: Noise, delta: float, confidence: float, w_I=(1.0,)) -> float:
    """Largest excess of the criterion over its minimum inside an interval; 0 without noise.

    noise: of a row of weight 1. w_I: weights of the rows, mean 1.

    Example (least squares on 1 % noise with many rows: 1.96^2 s^2 / 2):
        >>> errors = Noise(0.01 * np.array([-1.0, 1.0] * 500), 0.01, 0.0, 1000)
        >>> round(threshold(errors, 1e3, 0.95) / 0.01**2, 2)
        1.93
    """
    from scipy.special import ndtri, stdtrit

    nodes = ndtri((np.arange(NODES) + 0.5) / NODES)
    errors = np.abs(noise.pool[:, None] + noise.kernel * nodes).ravel()
    errors = np.sort(errors * noise.sd / max(np.hypot(noise.sd, noise.kernel), 1e-300))
    w_I = np.asarray(w_I, np.float64)
    edge_I = delta * np.sqrt(w_I)  # where psi of a row is cut, in the unit of the errors
    below_I = np.searchsorted(errors, edge_I, side="right")
    squares = np.concatenate([[0.0], np.cumsum(errors**2)])
    score = (w_I * (squares[below_I] + (len(errors) - below_I) * edge_I**2)).sum()
    slope = (w_I * below_I).sum()
    return float(
        stdtrit(noise.df, (1 + confidence) / 2) ** 2 * score / (2 * max(slope, 1e-6 * len(errors) * w_I.sum()))
    )


def profiles(problem, best, noise, confidence: float) -> dict[str, tuple[float, float]]:
    """Profile-likelihood interval of each parameter, except the coefficients of additive laws.

    Args:
        problem, best, noise: an engine.Problem, its Optimum, the noise of the table.

    Returns:
        {name: (low, high)} in natural units; an end is the parameter's bound if the criterion never rises enough.
    """
    rise = threshold(noise, problem.delta, confidence, problem.w_I)
    if not rise > 0:
        return {}
    out = {}
    spread = 2.5 * noise.sd * best.standard_errors
    for k, name in enumerate(problem.names):
        if name.startswith("ln ") and problem.law.terms:
            continue  # the coordinate is the term at the centre of the table, not the coefficient
        others = np.delete(np.arange(len(best.phi)), k)
        # the others move along the valley, as the curvature predicts
        slope_K = np.zeros(len(best.phi))
        slope_K[others] = -np.linalg.lstsq(best.jacobian[:, others], best.jacobian[:, k], rcond=1e-12)[0]
        reach = max(spread[k], LEAST_REACH * max(1.0, abs(best.phi[k])))
        ends = np.repeat(best.phi[None], 2, 0)
        for i, (side, bound) in enumerate(((-1.0, problem.low[k]), (1.0, problem.high[k]))):
            ends[i, k] = _end(problem, best, k, side * reach, bound, slope_K, np.sqrt(rise))
        natural = problem.natural(ends)[name.removeprefix("ln ")]
        out[name.removeprefix("ln ")] = (float(natural[0]), float(natural[1]))
    return out


def _end(problem, best, k, reach, bound, slope_K, height):
    """Where the root of the rise of the profile reaches `height`, from the best value towards `bound`; or `bound`."""
    here = best.phi[k]
    last, low, low_rise = best.phi, here, 0.0
    steps = here + reach * SIDES
    for _ in range(ROUNDS):
        values = np.clip(steps, problem.low[k], problem.high[k])
        phi, risen = _along(problem, best, k, values, height, last + slope_K * (values - last[k])[:, None])
        beyond = np.flatnonzero(risen >= height)
        if beyond.size:
            break
        low, low_rise, last = values[-1], risen[-1], phi[-1]
        if low == bound:
            return bound
        steps = here + (low - here) * FARTHER
    else:
        return bound
    i = beyond[0]
    if i:
        low, low_rise, last = values[i - 1], risen[i - 1], phi[i - 1]
    # once more between the two nodes: the root of the rise is not straight over a wide bracket
    inner = low + (values[i] - low) * BETWEEN
    _, between = _along(problem, best, k, inner, height, last + (phi[i] - last) * BETWEEN[:, None])
    nodes = np.concatenate([[low], inner, values[[i]]])
    risen = np.concatenate([[low_rise], between, risen[[i]]])
    i = int(np.flatnonzero(risen >= height)[0])
    return nodes[i - 1] + (nodes[i] - nodes[i - 1]) * (height - risen[i - 1]) / (risen[i] - risen[i - 1])


def _along(problem, best, k, values_P, height, start_PK):
    """The profile at values of coordinate k: the best phi [P, K] there, and the root of its rise [P].

    Every node starts on the valley and from the other minima, then from what its neighbours found: a single start can
    end in a worse minimum.
    """
    nodes = np.arange(len(values_P))
    phi, value = start_PK, np.full(len(values_P), np.inf)
    begin = [start_PK, *(np.tile(rival, (len(values_P), 1)) for rival, _ in best.rivals)]
    for _ in range(NEIGHBOURS):
        start = np.clip(np.concatenate(begin), problem.low, problem.high)
        start[:, k] = np.tile(values_P, len(begin))
        found = problem.minimise(start, problem.y_I, problem.w_I, held=(k,), stages=False, max_iterations=STEPS)
        values = np.concatenate([value[None], found.objective.reshape(len(begin), -1)])
        lowest = values.argmin(0), nodes
        phi = np.concatenate([phi[None], found.phi.reshape(len(begin), *phi.shape)])[lowest]
        with np.errstate(invalid="ignore"):  # inf - inf where no start has a finite objective yet: nothing gained
            gained, value = value - values[lowest], values[lowest]
        if not (gained > 0.01 * height**2).any():
            break
        begin = [np.roll(phi, 1, 0), np.roll(phi, -1, 0)]
    return phi, np.sqrt(np.maximum(np.maximum.accumulate(value - best.objective), 0.0))


def influence(problem, phi_K) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How far each parameter moves from the optimum phi when one row is left out.

    Returns:
        The rows that were left out, [R]: all, but of more than MOST_ROWS those with the largest residual and leverage;
        and {name: value without the row - value, [R]} for parameters and derived numbers.
    """
    root_I = np.sqrt(problem.w_I)
    basis, _ = np.linalg.qr(problem.jacobian(phi_K[None])[0].T * root_I[:, None])
    weight = np.abs(problem.y_I - problem.model(phi_K[None])[0]) * np.sqrt((basis**2).sum(1))
    rows = np.sort(np.argsort(-weight)[:MOST_ROWS])
    weights = np.repeat(problem.w_I[None], len(rows), 0)
    weights[np.arange(len(rows)), rows] = 0.0
    start = np.repeat(phi_K[None], len(rows), 0)
    without = problem.minimise(start, problem.y_I, weights, stages=False)
    here, there = problem.natural(phi_K[None]), problem.natural(without.phi)
    return rows, {name: there[name] - here[name] for name in here}

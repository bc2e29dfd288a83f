"""Does a law with a break predict left-out sizes of a smooth curve better than a power law? With its null distribution.

Both laws describe the error y of a smooth metric (its loss) against scale x:
    power law     y = E + A x^-alpha
    with a break  y = E + A / (1 + (x / d)^(1/w)): flat, then falling, then flat. A sigmoid in ln x; it is the broken
                  law of arXiv:2210.14891 with one break, a flat start and c f = 1, and holds the power law as a limit.
Every size is left out once and predicted from the others (leave-one-scale-out); the last one is the extrapolation.

    statistic  T = mean over sizes of ln (|error of the power law| + s) / (|error of the broken law| + s),

s the noise of that size's mean: errors below the noise count alike, and the two sizes beside a step, which no law can
predict without seeing them, do not outweigh the others. Noise alone lets the more flexible law win at times; how often
is simulated from the fitted power law with the same noise. How often a break as sharp as the hard metric's would be
found is simulated too: without that, "no break found" says nothing.

The statistic profiles each law over a fixed grid of its exponents, or places and widths, with the linear parts E >= 0,
A >= 0 exact; the same for data and simulations. P tables, G sizes, Q points of a grid.
"""

from dataclasses import dataclass

import numpy as np

# per span of the ladder: exponents of x^-alpha; places d and widths w of the break in ln x
EXPONENTS = np.geomspace(0.05, 30, 48)
PLACES = np.concatenate([[-3.0, -2.0, -1.5, -1.0, -0.7], np.linspace(-0.45, 1.35, 37)])
WIDTHS = np.geomspace(0.01, 0.6, 14)
SIGNIFICANT = 0.05
LEAST_RATIO = 2.0  # no real curve is a power law to the last digit: a break must matter, not only be seen
ENOUGH_POWER = 0.8
RISE = 2 * np.log(9)  # 10-90 % rise of a sigmoid, in units of its width


@dataclass(frozen=True)
class BreakTest:
    """Power law against a law with a break.

    metric: its name; error: unit of y. y, noise [G]: level means and their standard errors.
    power_error, break_error: left-out error, predicted - measured, of each size [G]; the last is the extrapolation.
    ratio: geometric mean of |power_error| + noise over |break_error| + noise: above 1 the break predicts better.
    p_value: share of simulated power laws with a ratio as large. found: share of simulated breaks, as sharp as the hard
        metric's, that this test finds (see `better`).
    curve: progress [101], power law [101] and broken law [101] fitted to all sizes.
    """

    metric: str
    error: str
    y: np.ndarray
    noise: np.ndarray
    power_error: np.ndarray
    break_error: np.ndarray
    ratio: float
    p_value: float
    found: float
    simulations: int
    curve: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def better(self) -> bool:
        """Whether the break halves the errors at least, and more than noise around a power law explains (5 %)."""
        return self.p_value <= SIGNIFICANT and self.ratio >= LEAST_RATIO


def power_basis(t: np.ndarray) -> np.ndarray:
    """x^-alpha over the grid of exponents, [Q, G]; t = 0 .. 1 over the ladder."""
    return np.exp(-EXPONENTS[:, None] * t)


def break_basis(t: np.ndarray) -> np.ndarray:
    """1 / (1 + (x / d)^(1/w)) over the grid of places and widths, over its value at t = 0; [Q, G]."""
    place, width = (a.ravel()[:, None] for a in np.meshgrid(PLACES, WIDTHS, indexing="ij"))
    return np.exp(np.logaddexp(0, -place / width) - np.logaddexp(0, (t - place) / width))


def profile(basis: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best floor, size >= 0 and grid point of y = floor + size basis_q by weighted least squares.

    Args:
        basis: [Q, G] >= 0.
        y: [P, G] >= 0.
        w: [G], weights; 0 leaves a size out.

    Returns:
        floor [P], size [P], q [P].

    Example:
        >>> floor, size, q = profile(power_basis(np.array([0, 0.5, 1])), 1 + 2 * power_basis(np.array([0, 0.5, 1]))[[7]],
        ...                          np.ones(3))
        >>> float(floor[0].round(6)), float(size[0].round(6)), int(q[0])
        (1.0, 2.0, 7)
    """
    sw, sb, sbb = w.sum(), basis @ w, basis**2 @ w
    sy, sby = (y @ w)[:, None], (y * w) @ basis.T
    spread = sw * sbb - sb**2
    size = np.where(spread > 1e-12 * sw * sbb, (sw * sby - sb * sy) / np.where(spread > 0, spread, 1), 0.0)
    floor = (sy - size * sb) / sw
    size = np.where(floor < 0, sby / np.where(sbb > 0, sbb, 1), size)
    floor = np.where(size < 0, sy / sw, np.maximum(floor, 0))
    size = np.maximum(size, 0)
    rss = -2 * (floor * sy + size * sby) + floor**2 * sw + 2 * floor * size * sb + size**2 * sbb
    q = rss.argmin(axis=1)
    rows = np.arange(len(y))
    return floor[rows, q], size[rows, q], q


def left_out(basis: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Predicted minus measured for every size, predicted from the others; [P, G]."""
    errors = np.empty_like(y)
    for g in range(y.shape[1]):
        keep = w.copy()
        keep[g] = 0.0
        floor, size, q = profile(basis, y, keep)
        errors[:, g] = floor + size * basis[q, g] - y[:, g]
    return errors


def statistic(power_PG: np.ndarray, break_PG: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """T of every table, [P]. Example: errors 0.3 and 0.1 with noise 0.1 at every size: ln 2."""
    return np.log((np.abs(power_PG) + noise) / (np.abs(break_PG) + noise)).mean(axis=1)


def test(
    progress: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    df: int,
    middle: float,
    width: float,
    simulations: int = 400,
    seed: int = 0,
    metric: str = "loss",
    error: str = "nats",
) -> BreakTest:
    """Tests a falling curve for a break.

    Args:
        progress: [G], log10 of the scale, increasing.
        y: [G] >= 0, means of the error over seeds.
        noise: [G], their standard errors; df: degrees of freedom these come from. Simulated noise is Student's t.
        middle, width: of the 10-90 % rise (log10 of the scale) whose detection is simulated: the hard metric's.
        simulations: of the null, and of the break. seed: of numpy's Philox generator.
        metric, error: words for the result.

    Returns:
        BreakTest.

    Example (a step without noise to speak of):
        >>> x = np.arange(8.0)
        >>> result = test(x, np.where(x < 3.5, 1.0, 0.1), np.full(8, 0.01), 16, 3.5, 1.0, 200)
        >>> result.better, result.found > 0.8
        (True, True)

    Papers: arXiv:2210.14891 (broken laws, extrapolation as the test), arXiv:2304.15004.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    span = np.ptp(progress)
    t = (progress - progress[0]) / span
    bases, w = (power_basis(t), break_basis(t)), noise**-2.0
    errors = [left_out(basis, y[None], w) for basis in bases]
    observed = statistic(*errors, noise)[0]
    floor, size, q = profile(bases[0], y[None], w)
    null = _statistics(_noisy(floor + size * bases[0][q[0]], noise, df, simulations, rng), bases, w, noise)
    shape = 1 / (1 + np.exp(np.clip((t - (middle - progress[0]) / span) / (width / span / RISE), -500, 500)))
    broken = y.min() + np.ptp(y) * shape
    alternative = _statistics(_noisy(broken, noise, df, simulations, rng), bases, w, noise)
    dense = np.linspace(0, 1, 101)
    fits = [profile(basis, y[None], w) for basis in bases]
    curves = [f + s * make(dense)[i[0]] for (f, s, i), make in zip(fits, (power_basis, break_basis), strict=True)]
    return BreakTest(
        metric=metric,
        error=error,
        y=y,
        noise=noise,
        power_error=errors[0][0],
        break_error=errors[1][0],
        ratio=float(np.exp(observed)),
        p_value=float((1 + (null >= observed - 1e-12).sum()) / (1 + simulations)),
        found=float((alternative > max(np.quantile(null, 1 - SIGNIFICANT), np.log(LEAST_RATIO))).mean()),
        simulations=simulations,
        curve=(progress[0] + span * dense, *curves),
    )


def _noisy(mean, noise, df, count, rng):
    """Tables around a curve, [P, G]: one t factor a table, since the noise is estimated once."""
    scale = np.sqrt(df / rng.chisquare(df, count))[:, None]
    return np.maximum(mean + scale * noise * rng.standard_normal((count, len(mean))), 0)


def _statistics(y, bases, w, noise):
    return statistic(*(left_out(basis, y, w) for basis in bases), noise)

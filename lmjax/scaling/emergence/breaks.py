"""Leave-one-out test of a power law against a law with a break, for the error of a smooth metric.

Both laws describe the error y of a smooth metric (its loss) as a function of scale x:
    power law     y = E + A x^-alpha
    with a break  y = E + A / (1 + (x / d)^(1/w)): flat, then falling, then flat. A sigmoid in ln x: the broken law of
                  arXiv:2210.14891 with one break and a flat start. The power law is its limit for a break far to the
                  left.
Each point is predicted from the others; predicting the last one is an extrapolation. The test statistic is

    T = mean over points of ln (|error of the power law| + s) / (|error of the broken law| + s),

where s is the standard error of the point's mean. Adding s keeps T from being dominated by differences below the noise
and by the two points beside a step, which neither law can predict. The more flexible law can win by noise alone, so the
null distribution of T is simulated from the fitted power law with the same noise. Statistical power is simulated too,
for a break as sharp as the hard metric's: without it, "no break" would mean little.

P tables, G points, Q candidates, K nonlinear parameters.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.scaling.resample import t_errors

# search grids in units of the ladder's span: ln exponents of x^-alpha; positions d and ln widths w of the break
POWER = (np.linspace(np.log(0.05), np.log(30), 48),)
BREAK = (
    np.concatenate([[-3.0, -2.0, -1.5, -1.0, -0.7], np.linspace(-0.45, 1.35, 37)]),
    np.linspace(np.log(0.01), np.log(0.6), 14),
)
HALVINGS = 8
SIGNIFICANT = 0.05
LEAST_RATIO = 2.0  # no real curve is exactly a power law, so significance alone is not enough
ENOUGH_POWER = 0.8
RISE = 2 * np.log(9)  # 10-90 % rise of a sigmoid, in units of its width


@dataclass(frozen=True)
class BreakTest:
    """Result of `test`.

    metric: its name; error: unit of y. y, noise [G]: point means and their standard errors.
    power_error, break_error: leave-one-out error, predicted - measured, of each point [G]; the last extrapolates.
    ratio: geometric mean of |power_error| + noise over |break_error| + noise: above 1 the break predicts better.
    p_value: share of simulated power laws with a ratio as large.
    power: statistical power, the share of simulated breaks as sharp as the hard metric's that this test detects.
    curve: progress [101], power law [101] and broken law [101] fitted to all points.
    laws: as `parameters` returns them, where the break is better; else {}.
    """

    metric: str
    error: str
    y: np.ndarray
    noise: np.ndarray
    power_error: np.ndarray
    break_error: np.ndarray
    ratio: float
    p_value: float
    power: float
    simulations: int
    curve: tuple[np.ndarray, np.ndarray, np.ndarray]
    laws: dict[str, dict]

    @property
    def better(self) -> bool:
        """Whether the break at least halves the errors, and is significant at 5 % against a power law."""
        return _is_better(self.ratio, self.p_value)


def _is_better(ratio, p_value):
    return p_value <= SIGNIFICANT and ratio >= LEAST_RATIO


def shape(theta: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The falling part of a law, 1 at t = 0, [..., G].

    Args:
        theta: ln exponent [..., 1], or position and ln width of the break [..., 2], in units of the ladder's span.
        t: positions on the ladder, [G]: 0 is its first point, 1 its last.
    """
    if theta.shape[-1] == 1:
        return np.exp(-np.exp(theta) * t)
    position, width = theta[..., :1], np.exp(theta[..., 1:])
    return np.exp(np.logaddexp(0, -position / width) - np.logaddexp(0, (t - position) / width))


def linear(basis: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted least-squares floor and size, both >= 0, and best candidate q of y = floor + size basis_q.

    Args:
        basis: [P or 1, Q, G] >= 0. y: [P, G] >= 0. w: weights [G]; 0 leaves a point out.

    Returns:
        floor [P], size [P], q [P], and their weighted squared error less that of y = 0, [P].
    """
    sw, sb, sbb = w.sum(), basis @ w, basis**2 @ w
    sy, sby = (y @ w)[:, None], np.matmul(basis, (y * w)[:, :, None])[..., 0]
    spread = sw * sbb - sb**2
    flat = spread <= 1e-12 * sw * sbb
    size = np.where(flat, 0.0, (sw * sby - sb * sy) / np.where(flat, 1.0, spread))
    floor = (sy - size * sb) / sw
    size = np.where(floor < 0, sby / np.where(sbb > 0, sbb, 1.0), size)
    floor = np.where(size < 0, sy / sw, np.maximum(floor, 0))
    size = np.maximum(size, 0)
    rss = -2 * (floor * sy + size * sby) + floor**2 * sw + 2 * floor * size * sb + size**2 * sbb
    q, rows = rss.argmin(axis=1), np.arange(len(y))
    return floor[rows, q], size[rows, q], q, rss[rows, q]


def profile(grid: tuple[np.ndarray, ...], t: np.ndarray, y: np.ndarray, w: np.ndarray):
    """Fits a law (grid POWER or BREAK) to many tables y [P, G] at once: floor [P], size [P], theta [P, K], misfit [P].

    A grid over the nonlinear parameters, then eight halvings around its best point. The test needs ten thousand fits,
    since it leaves every point out of every simulated table for two laws: minutes with lmjax.scaling.engine, seconds
    here, because `linear` solves all candidates of all tables in three matrix products. The reported parameters are the
    engine's (see `parameters`); tests compare the two.

    Example:
        >>> t = np.linspace(0, 1, 6)
        >>> floor, size, theta, _ = profile(POWER, t, 1 + 2 * np.exp(-3 * t)[None], np.ones(6))
        >>> [round(float(v), 2) for v in (floor[0], size[0], np.exp(theta[0, 0]))]
        [1.0, 2.0, 3.0]
    """
    theta_Q = np.stack([axis.ravel() for axis in np.meshgrid(*grid, indexing="ij")], axis=1)
    _, _, q, _ = linear(shape(theta_Q, t)[None], y, w)
    return _refine(theta_Q[q], np.array([np.median(np.diff(axis)) for axis in grid]), t, y, w)


def _refine(theta, step, t, y, w):
    """Refines one start per table: takes the best point of a small grid around it and halves the grid, in turn."""
    around = np.stack([a.ravel() for a in np.meshgrid(*[np.linspace(-1, 1, 5)] * len(step), indexing="ij")], axis=1)
    for _ in range(HALVINGS):
        near = theta[:, None] + around * step
        floor, size, q, misfit = linear(shape(near, t), y, w)
        theta, step = near[np.arange(len(y)), q], step / 2
    return floor, size, theta, misfit


def fit_both(t: np.ndarray, y: np.ndarray, w: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits both laws to tables y [P, G] and evaluates them `at` positions [A] on the ladder: two arrays [P, A].

    The power law is the limit of a break far to the left. The search starts there too, so the break never fits worse.
    """
    plain, found = profile(POWER, t, y, w), profile(BREAK, t, y, w)
    left = np.concatenate([np.full_like(plain[2], -0.5), -plain[2]], axis=1)
    bent = _refine(left, np.array([0.4, 0.3]), t, y, w)
    value, first, second = (f[:, None] + s[:, None] * shape(theta, at) for f, s, theta, _ in (plain, found, bent))
    broken = np.where((found[3] < bent[3])[:, None], first, second)
    return value, np.where((np.minimum(found[3], bent[3]) < plain[3])[:, None], broken, value)


def left_out(t: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted minus measured for every point, predicted from the others, by both laws: two arrays [P, G]."""
    plain, broken = np.empty_like(y), np.empty_like(y)
    for g in range(y.shape[1]):
        keep = w.copy()
        keep[g] = 0.0
        at_g = fit_both(t, y, keep, t[g : g + 1])
        plain[:, g], broken[:, g] = (predicted[:, 0] - y[:, g] for predicted in at_g)
    return plain, broken


def statistic(power_PG: np.ndarray, break_PG: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """T of every table, [P]. Example: errors 0.3 and 0.1 with noise 0.1 at every point: ln 2."""
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
    estimate_power: bool = True,
) -> BreakTest:
    """Tests a falling curve for a break.

    Args:
        progress: [G], log10 of the scale, increasing.
        y, noise: [G] means of the error over seeds, >= 0, and their standard errors with `df` degrees of freedom.
        middle, width: the hard metric's 10-90 % rise (log10 of the scale); `power` is for a break this sharp.
        simulations: simulated tables of the null hypothesis, and of the break.
        metric, error: names for the result. estimate_power: whether to simulate `power`; else it is nan.

    Example (a step with little noise):
        >>> x = np.arange(8.0)
        >>> result = test(x, np.where(x < 3.5, 1.0, 0.1), np.full(8, 0.01), 16, 3.5, 1.0, 200)
        >>> result.better, result.power > 0.8
        (True, True)
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    span = np.ptp(progress)
    t = (progress - progress[0]) / span
    w = noise**-2.0
    errors = left_out(t, y[None], w)
    observed = statistic(*errors, noise)[0]
    null = _statistics(_noisy(fit_both(t, y[None], w, t)[0][0], noise, df, simulations, rng), t, w, noise)
    rise = 1 / (1 + np.exp(np.clip((t - (middle - progress[0]) / span) / (width / span / RISE), -500, 500)))
    broken = _noisy(y.min() + np.ptp(y) * rise, noise, df, simulations if estimate_power else 0, rng)
    critical, dense = max(np.quantile(null, 1 - SIGNIFICANT), np.log(LEAST_RATIO)), np.linspace(0, 1, 101)
    curves = [law[0] for law in fit_both(t, y[None], w, dense)]
    ratio, p_value = float(np.exp(observed)), float((1 + (null >= observed - 1e-12).sum()) / (1 + simulations))
    return BreakTest(
        metric=metric,
        error=error,
        y=y,
        noise=noise,
        power_error=errors[0][0],
        break_error=errors[1][0],
        ratio=ratio,
        p_value=p_value,
        power=float((_statistics(broken, t, w, noise) > critical).mean()) if estimate_power else np.nan,
        simulations=simulations,
        curve=(progress[0] + span * dense, *curves),
        laws=parameters(progress, y, noise) if estimate_power and _is_better(ratio, p_value) else {},
    )


def parameters(progress: np.ndarray, y: np.ndarray, noise: np.ndarray) -> dict[str, dict]:
    """Both laws fitted to all points by lmjax.scaling.engine.

    Returns:
        {"power": {"E", "A", "alpha"}, "break": {"E", "A", "middle" (log10 of the scale), "width" (of the 10-90 % rise,
        decades)}}, each with "converged", "condition" and "misfit", the squared error over noise^2. A power law needs
        errors above 0 and is missing otherwise.

    Example:
        >>> x = np.linspace(15, 18, 7)
        >>> found = parameters(x, 0.1 + 10 ** (0.5 * (15 - x)), np.full(7, 0.01))["power"]
        >>> found["converged"], round(found["E"], 4), round(found["alpha"], 4)
        (True, 0.1, 0.5)
    """
    x, w, found = {"C": 10**progress}, noise**-2.0, {}
    if y.min() > 0:
        theta, found["power"] = _engine("power_c", x, y, w)
        found["power"] |= theta
    top = 2 * y.max()  # the engine's sigmoid is a rising share: 1 - y / top
    theta, found["break"] = _engine("sigmoid_c", x, 1 - y / top, w * top**2)
    found["break"] |= {
        "E": top * (1 - theta["ceiling"]),
        "A": top * (theta["ceiling"] - theta["floor"]),
        "middle": theta["middle"] / np.log(10),
        "width": RISE / theta["k"] / np.log(10),
    }
    return found


def _engine(law, x, y, w):
    """Returns parameters and fit quality. Weights are scaled to mean 1, since the engine's tolerances are absolute."""
    from lmjax.scaling.engine import minimise

    made = minimise(law, x, y, w / w.mean(), criterion="squared")
    misfit = float((w * made.residual**2).sum())
    return made.params, {"converged": made.converged, "condition": made.condition, "misfit": misfit}


def _noisy(mean, noise, df, count, rng):
    """Simulates tables around a curve, [P, G]; one t factor per table, since the noise is estimated once."""
    return np.maximum(mean + t_errors(rng, noise, df, count), 0)


def _statistics(y, t, w, noise):
    return statistic(*left_out(t, y, w), noise)

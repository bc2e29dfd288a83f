"""Least-squares fits that the methods share: power laws by regression of logarithms, other laws by the engine."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling import engine
from lmjax.scaling.identify import examine, judge
from lmjax.scaling.laws import get_law
from lmjax.scaling.laws.base import Law, Parameter
from lmjax.scaling.prediction import Prediction

MAX_CONDITION = 1e6  # of the design with columns of unit length, logs centred
ADDITIVE = {("C",): "power_c", ("N", "D"): "chinchilla"}  # by variables
RISE = 0.02  # rows closer to floor or ceiling than this share of the height do not constrain the slope
MIN_ABOVE = 2  # points that must exceed the floor by more than the noise
FARTHEST = 700.0  # |L|: beyond it exp(-L) overflows


# ---- y = k x_1^a_1 x_2^a_2 ..., by weighted linear regression of logarithms ----------------------------------------


@dataclass(frozen=True)
class LogLaw:
    """y = k prod_j x_j^exponents[j], with the covariance of (ln k, exponents) at the centre of the data.

    names: the variables x_j. log_k: ln k at x_j = 1. centre: mean ln x_j, where the regression has its constant.
    covariance: [1 + J][1 + J] of (ln y at the centre, exponents). sd: standard deviation of ln y around the law (with
    unit weights; else a factor on the given sd). df: points minus parameters; with 0, sd and covariance are NaN.
    """

    names: tuple[str, ...]
    log_k: float
    exponents: tuple[float, ...]
    centre: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    sd: float
    df: int

    def at(self, confidence: float = 0.95, **x) -> Prediction:
        """The law at x with Student's t interval; all variables must be given."""
        if set(self.names) != set(x):
            raise InputError(f"expected {', '.join(self.names)}, got {', '.join(x) or 'nothing'}")
        logs = np.broadcast_arrays(*(np.log(np.asarray(x[name], np.float64)) for name in self.names))
        row = np.stack([np.ones_like(logs[0]), *(v - c for v, c in zip(logs, self.centre, strict=True))], -1)
        log_y = self.log_k + sum(a * v for a, v in zip(self.exponents, logs, strict=True))
        half = self._t(confidence) * np.sqrt(np.einsum("...i,ij,...j->...", row, np.array(self.covariance), row))
        return Prediction(np.exp(log_y), np.exp(log_y - half), np.exp(log_y + half), confidence)

    def interval(self, name: str, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the exponent of a variable."""
        j = self.names.index(name)
        half = self._t(confidence) * math.sqrt(self.covariance[j + 1][j + 1])
        return self.exponents[j] - half, self.exponents[j] + half

    def _t(self, confidence):
        from scipy.stats import t

        return float(t.ppf((1 + confidence) / 2, self.df)) if self.df > 0 else math.nan


def solve(x_JI: np.ndarray, log_y_RI: np.ndarray, sd_I: np.ndarray) -> np.ndarray:
    """Weighted least squares of many ln y over one design: min sum_i ((ln y_i - k - a . x_i) / sd_i)^2.

    The weights are 1 / sd^2; arXiv:2406.19146 passes 1 / sd^2 as the standard deviation in places, which inverts them.

    Returns:
        ln k and the exponents of each of the R sets of ln y, [R, 1 + J]; x_JI: ln of the variables.

    Example:
        >>> solve(np.log([[1.0, 10.0, 100.0]]), np.log([[2.0, 20.0, 200.0]]), np.ones(3)).round(6).tolist()
        [[0.693147, 1.0]]
    """
    found = np.linalg.lstsq(_design(x_JI, sd_I), (log_y_RI / sd_I).T, rcond=None)[0].T
    found[:, 0] -= found[:, 1:] @ x_JI.mean(1)
    return found


def _design(x_JI, sd_I):
    """The matrix [I, 1 + J] of the weighted regression: a constant and the centred variables."""
    centred = x_JI - x_JI.mean(1, keepdims=True)
    return np.concatenate([np.ones((1, x_JI.shape[1])), centred]).T / sd_I[:, None]


def fit_log_law(x: dict[str, np.ndarray], y: np.ndarray, sd: np.ndarray | None = None) -> LogLaw:
    """Fits ln y = ln k + sum_j a_j ln x_j.

    Args:
        x: name -> positive values [I].
        y: positive values [I].
        sd: standard deviation of ln y of each point, [I], up to a factor that is estimated; None: equal.

    Returns:
        LogLaw; its covariance is scaled by the scatter around the law, so it includes scatter of any source.

    Raises:
        InputError: fewer points than parameters, or variables that are collinear.

    Example:
        >>> law = fit_log_law({"C": np.array([1e17, 1e18, 1e19])}, np.array([1e6, 3e6, 9e6]))
        >>> round(law.exponents[0], 4)
        0.4771

    Paper: the regressions of arXiv:2203.15556 (approach 2) and arXiv:2503.04715.
    """
    names = tuple(x)
    x_JI = np.log(np.array([np.asarray(x[name], np.float64) for name in names]))
    log_y_I = np.log(np.asarray(y, np.float64))
    sd_I = np.ones(len(log_y_I)) if sd is None else np.asarray(sd, np.float64)
    df = len(log_y_I) - 1 - len(names)
    if df < 0:
        raise InputError(f"expected at least {1 + len(names)} points for exponents of {names}, got {len(log_y_I)}")
    if not (np.isfinite(x_JI).all() and np.isfinite(log_y_I).all() and (sd_I > 0).all()):
        raise InputError("expected positive finite x, y and sd")
    if together := combination(x_JI, names):
        raise InputError(f"the exponents are not identifiable separately: {together}")
    log_k, *exponents = solve(x_JI, log_y_I[None], sd_I)[0].tolist()
    residual_I = (log_y_I - log_k - np.array(exponents) @ x_JI) / sd_I
    variance = float(residual_I @ residual_I) / df if df else math.nan
    matrix = _design(x_JI, sd_I)
    covariance = tuple(map(tuple, (np.linalg.inv(matrix.T @ matrix) * variance).tolist()))
    centre = tuple(x_JI.mean(1).tolist())
    return LogLaw(names, log_k, tuple(exponents), centre, covariance, math.sqrt(variance), df)


def combination(x_JI: np.ndarray, names) -> str:
    """Error message if the variables are collinear in ln; empty otherwise.

    Example:
        >>> combination(np.log([[1.0, 2.0, 4.0], [20.0, 40.0, 80.0]]), ("N", "D"))
        'N and D are collinear'
    """
    flat = [name for name, row in zip(names, x_JI, strict=True) if np.ptp(row) < 1e-6]
    if flat:
        return f"{' and '.join(flat)} {'has' if len(flat) == 1 else 'have'} one value"
    centred = x_JI - x_JI.mean(1, keepdims=True)
    singular = np.linalg.svd(centred / np.linalg.norm(centred, axis=1, keepdims=True), compute_uv=False)
    return f"{' and '.join(names)} are collinear" if singular[-1] * MAX_CONDITION < singular[0] else ""


def bracketed_minimum(f: Callable[[float], float], low: float, high: float) -> tuple[float | None, int]:
    """Minimum of a function of one variable: the best of 200 grid points, then Brent's bounded search.

    Returns:
        (place, 0); (None, -1) or (None, 1) where the best is `low` or `high`.

    Example:
        >>> round(bracketed_minimum(lambda x: (x - 1) ** 2, -3, 4)[0], 6), bracketed_minimum(abs, 1, 2)
        (1.0, (None, -1))
    """
    from scipy.optimize import minimize_scalar

    grid = np.linspace(low, high, 200)
    best = int(np.argmin([f(x) for x in grid]))
    if best in (0, len(grid) - 1):
        return None, 1 if best else -1
    around = (grid[best - 1], grid[best + 1])
    return float(minimize_scalar(f, bounds=around, method="bounded", options={"xatol": 1e-12}).x), 0


# ---- laws that are not linear in their parameters ------------------------------------------------------------------


@dataclass(frozen=True)
class LeastSquares:
    """A fitted law; its parameters are valid only if `reason` is empty.

    sd: standard deviation of the residuals (of ln loss, or of the metric), with df degrees of freedom; NaN and 0 with
    too few rows, where nothing is fitted. phi: [K] optimum in the coordinates of `problem`. at_bounds: as in the
    engine's Optimum. rename: turns the parameters of the law, each [R], into those of `refit`.
    """

    status: str
    reason: str
    warnings: tuple[str, ...] = ()
    sd: float = math.nan
    df: int = 0
    problem: engine.Problem | None = None
    phi: np.ndarray | None = None
    at_bounds: dict[str, float] | None = None
    rename: Callable = dict

    @property
    def params(self) -> dict[str, float]:
        """The fitted parameters by name."""
        return {name: float(v[0]) for name, v in self._named(self.phi[None]).items()}

    @property
    def fitted(self) -> np.ndarray:
        """Values on the curve at the rows, [I]: ln loss, or the metric."""
        return self.problem.model(self.phi[None])[0] + self.problem.mean

    def refit(self, y_RI: np.ndarray) -> dict[str, np.ndarray]:
        """Refits R sets of resampled ln losses or metrics, from the optimum; returns parameters by name, [R]."""
        begin = np.repeat(self.phi[None], len(y_RI), 0)
        if not len(y_RI):
            return self._named(begin)
        problem = self.problem
        return self._named(problem.minimise(begin, y_RI - problem.mean, problem.w_I, stages=False).phi)

    def _named(self, phi_RK):
        found = self.problem.natural(phi_RK)
        return self.rename({name: found[name] for name in self.problem.law.parameters})


def fit_law(law: str | Law, x, y, criterion: str = "squared_log", w=None) -> LeastSquares:
    """Fits a law to columns x {variable: [I]} and losses or metrics y [I] with weights w [I], with the usual checks."""
    law = get_law(law)
    free = sum(p.low < p.high for p in law.space)
    df = len(y) - free
    if df < 1:
        return LeastSquares("too_few_points", f"{free} parameters need more than {len(y)} rows")
    problem = engine.problem_of(law, x, y, w, criterion)
    best = problem.optimum()
    status, reasons, warnings = judge(law, best)
    sd = math.sqrt(float(problem.w_I @ best.residual**2) / df)
    reason = "; ".join(reasons)
    status = status if reason else "converged"  # a floor of 0 is a warning
    return LeastSquares(status, reason, tuple(warnings), sd, df, problem, best.phi, best.at_bounds)


def fit_additive(columns, loss, w=None) -> LeastSquares:
    """Fits E + A C^-alpha or E + A N^-alpha + B D^-beta to columns {"C": [I]} or {"N": [I], "D": [I]}.

    Example (a floor and one power, without noise):
        >>> C = np.array([1e17, 1e18, 1e19, 1e20, 1e21])
        >>> found = fit_additive({"C": C}, 1.5 + 300 * C**-0.15).params
        >>> round(found["E"], 6), round(found["alpha"], 6)
        (1.5, 0.15)
    """
    law = get_law(ADDITIVE[tuple(columns)])
    found, unfit = fit_law(law, columns, loss, w=w), "; ".join(examine(columns, law).reasons)
    if not unfit:
        return found
    return replace(found, status="not_identified" if found.df else "too_few_points", reason=unfit)


def level_of(params, loss) -> np.ndarray:
    """metric = floor + (ceiling - floor) / (1 + exp(k (L - L_mid))); params: floats, or arrays [R, 1] of resamples.

    Example:
        >>> float(level_of({"floor": 0.25, "ceiling": 0.95, "k": 4.0, "L_mid": 1.5}, 1.5))
        0.6
    """
    theta = {**{name: params[name] for name in ("floor", "ceiling", "k")}, "middle": -params["L_mid"]}
    return get_law("sigmoid_c").predict(theta, {"C": np.exp(-np.clip(loss, -FARTHEST, FARTHEST))})


def fit_sigmoid(loss: np.ndarray, metric: np.ndarray, floor: float, ceiling: float | None) -> LeastSquares:
    """Fits level_of to the metric [I] at losses [I]; ceiling None: fitted, between the floor and 1.

    The law is sigmoid_c with its floor fixed and ln C = (centre - L) / width, centre and width those of the losses.
    """
    centre, width = float(np.median(loss)), max(float(np.ptp(loss)), 1e-12)
    law, ends = get_law("sigmoid_c"), (floor, 1.0) if ceiling is None else (ceiling, ceiling)
    held = (Parameter("floor", floor, floor, keep=True), Parameter("ceiling", *ends, keep=True))
    x = {"C": np.exp(np.clip((centre - loss) / width, -FARTHEST, FARTHEST))}
    found = fit_law(replace(law, space=(*held, *law.space[2:])), x, metric, "squared")
    if not found.df:
        return found

    def rename(theta):
        at_ends = {name: theta[name] for name in ("floor", "ceiling")}
        return {**at_ends, "k": theta["k"] / width, "L_mid": centre - width * theta["middle"]}

    found = replace(found, rename=rename)
    status, reason, warnings = _judge_sigmoid(found.params, found.sd, loss, metric, centre, width)
    if not reason and ceiling is None and found.params["ceiling"] >= 1 - 1e-9:
        warnings.append("the ceiling is at its bound 1")
    return replace(found, status=status, reason=reason, warnings=tuple(warnings))


def _judge_sigmoid(params, sd, loss, metric, centre, width):
    """Status, reason and warnings: whether rows lie above the floor, on the rise, and around the middle."""
    above = metric - params["floor"] > max(2 * sd, 1e-9)
    if above.sum() < MIN_ABOVE:
        count = f"{int(above.sum())} rows, expected at least {MIN_ABOVE}"
        return "not_identified", f"{count}, above the floor {params['floor']:g} by more than the noise", []
    share = (level_of(params, loss) - params["floor"]) / (params["ceiling"] - params["floor"])
    rising = int(((share > RISE) & (share < 1 - RISE)).sum())
    if not rising:
        return "not_identified", "the metric jumps between two losses: add runs where it rises", []
    if params["k"] * width < 0.6 or abs(params["L_mid"] - centre) > 3 * width:
        return "at_bound", "the metric is linear or flat over these losses: the sigmoid is not identified", []
    warnings = ["only one row is on the rise of the sigmoid and determines its slope"] if rising == 1 else []
    if not loss.min() <= params["L_mid"] <= loss.max():
        warnings.append("the middle of the sigmoid is outside of the fitted losses: its height is extrapolated")
    return "converged", "", warnings

"""Power laws in several variables, y = k x_1^a_1 x_2^a_2 ..., by weighted linear regression of logarithms.

Weights are 1 / sd^2, where sd is the standard deviation of ln y (arXiv:2406.19146 passes 1 / sd^2 as the standard
deviation in places, which inverts the weights).
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.prediction import Prediction

MAX_CONDITION = 1e6  # of the design with columns of unit length, logs centred


@dataclass(frozen=True)
class LogLaw:
    """y = k prod_j x_j^exponents[j], with the covariance of (ln k, exponents) at the centre of the data.

    names: the variables x_j. log_k: ln k at x_j = 1. exponents: a_j.
    centre: mean ln x_j, where the regression has its constant. covariance: [1 + J][1 + J] of (ln y at the centre,
    exponents). sd: standard deviation of ln y around the law (with unit weights; else a factor on the given sd).
    df: points minus parameters; with 0, sd and covariance are NaN.
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
        from scipy.stats import t

        missing = set(self.names) - set(x)
        if missing or set(x) - set(self.names):
            raise InputError(f"expected {', '.join(self.names)}, got {', '.join(x) or 'nothing'}")
        logs = np.broadcast_arrays(*(np.log(np.asarray(x[name], np.float64)) for name in self.names))
        row = np.stack([np.ones_like(logs[0]), *(v - c for v, c in zip(logs, self.centre, strict=True))], -1)
        log_y = self.log_k + sum(a * v for a, v in zip(self.exponents, logs, strict=True))
        half = np.sqrt(np.einsum("...i,ij,...j->...", row, np.array(self.covariance), row))
        half = half * (t.ppf((1 + confidence) / 2, self.df) if self.df > 0 else math.nan)
        return Prediction(np.exp(log_y), np.exp(log_y - half), np.exp(log_y + half), confidence)

    def interval(self, name: str, confidence: float = 0.95) -> tuple[float, float]:
        """Student's t interval of the exponent of a variable."""
        from scipy.stats import t

        if self.df <= 0:
            return math.nan, math.nan
        j = self.names.index(name)
        half = float(t.ppf((1 + confidence) / 2, self.df)) * math.sqrt(self.covariance[j + 1][j + 1])
        return self.exponents[j] - half, self.exponents[j] + half


def solve(x_JI: np.ndarray, log_y_RI: np.ndarray, sd_I: np.ndarray) -> np.ndarray:
    """Weighted least squares of many ln y over one design: min sum_i ((ln y_i - k - a . x_i) / sd_i)^2.

    Args:
        x_JI: ln of the variables, [J, I].
        log_y_RI: R sets of ln y, [R, I].
        sd_I: standard deviations, [I].

    Returns:
        [R, 1 + J]: ln k, exponents.

    Example:
        >>> solve(np.log([[1.0, 10.0, 100.0]]), np.log([[2.0, 20.0, 200.0]]), np.ones(3)).round(6).tolist()
        [[0.693147, 1.0]]
    """
    centre_J = x_JI.mean(1)
    matrix = np.concatenate([np.ones((1, x_JI.shape[1])), x_JI - centre_J[:, None]]).T / sd_I[:, None]
    found = np.linalg.lstsq(matrix, (log_y_RI / sd_I).T, rcond=None)[0].T
    found[:, 0] -= found[:, 1:] @ centre_J
    return found


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
    if len(log_y_I) < 1 + len(names):
        raise InputError(f"expected at least {1 + len(names)} points for exponents of {names}, got {len(log_y_I)}")
    if not (np.isfinite(x_JI).all() and np.isfinite(log_y_I).all() and (sd_I > 0).all()):
        raise InputError("expected positive finite x, y and sd")
    together = combination(x_JI, names)
    if together:
        raise InputError(f"the exponents are not identifiable separately: {together}")
    coefficients = solve(x_JI, log_y_I[None], sd_I)[0]
    centre_J = x_JI.mean(1)
    matrix = np.concatenate([np.ones((1, x_JI.shape[1])), x_JI - centre_J[:, None]]).T / sd_I[:, None]
    residual_I = (log_y_I - coefficients[0] - coefficients[1:] @ x_JI) / sd_I
    df = len(log_y_I) - len(coefficients)
    variance = float(residual_I @ residual_I) / df if df else math.nan
    covariance = np.linalg.inv(matrix.T @ matrix) * variance
    return LogLaw(
        names,
        float(coefficients[0]),
        tuple(coefficients[1:].tolist()),
        tuple(centre_J.tolist()),
        tuple(map(tuple, covariance.tolist())),
        math.sqrt(variance) if df else math.nan,
        df,
    )


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
    centred = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    singular = np.linalg.svd(centred, compute_uv=False)
    if len(names) > 1 and singular[-1] * MAX_CONDITION < singular[0]:
        return f"{' and '.join(names)} are collinear"
    return ""

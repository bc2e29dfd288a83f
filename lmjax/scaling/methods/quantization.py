"""Exponents of the quantization model of neural scaling: those implied by one alpha, and a test of measured exponents.

The law with one alpha is `quantization` in lmjax.scaling.laws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.scaling.methods.outcome import Outcome, table_text

KINDS = ("N", "S", "D")


def exponents(alpha: float) -> dict[str, float]:
    """Exponents of the loss in N, S and D for quanta whose use falls as rank^-(alpha + 1).

    alpha_N = alpha, alpha_S = alpha_D = alpha / (alpha + 1).

    Args:
        alpha: > 0.

    Returns:
        dict N (parameters), S (steps), D (data).

    Example:
        >>> {name: round(value, 3) for name, value in exponents(0.4).items()}
        {'N': 0.4, 'S': 0.286, 'D': 0.286}

    Paper: arXiv:2303.13506.
    """
    if not 0 < alpha < math.inf:
        raise InputError(f"expected alpha > 0, got {alpha}")
    return {"N": alpha, "S": alpha / (alpha + 1), "D": alpha / (alpha + 1)}


@dataclass(frozen=True, kw_only=True)
class Consistency(Outcome):
    """The alpha that fits the measured exponents best, and the test that one alpha explains all of them.

    alpha with its interval; chi2, df, p: of the test; implied: the exponents that alpha implies;
    pulls: (measured - implied) / sd, by name; consistent: p >= 1 - confidence.
    """

    alpha: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    chi2: float = math.nan
    df: int = 0
    p: float = math.nan
    implied: dict[str, float]
    pulls: dict[str, float]
    consistent: bool | None = None

    def lines(self) -> list[str]:
        """A table of exponents, and the test."""
        if self.refused:
            return []
        rows = [{"variable": n, "implied": self.implied[n], "pull": pull} for n, pull in self.pulls.items()]
        columns = [Column("variable"), Column("implied", "implied exponent", "{:.4f}".format)]
        columns.append(Column("pull", "(measured - implied) / sd", "{:+.2f}".format))
        ends = " to ".join(f"{end:.4f}" for end in self.interval)
        test = f"one alpha is {'consistent' if self.consistent else 'rejected'}: p = {self.p:.2g}"
        return [table_text(rows, columns), f"alpha = {self.alpha:.4f} ({ends}); {test}"]


def consistency(measured: Mapping[str, tuple[float, float]], confidence: float = 0.95) -> Consistency:
    """Fits alpha to measured exponents and tests whether one alpha explains them.

    min over alpha of sum_j ((measured_j - exponents(alpha)_j) / sd_j)^2.

    Args:
        measured: N, S or D -> (exponent, its standard deviation); at least two.
        confidence: confidence level of the interval and of the test.

    Returns:
        Consistency; too_few_points with fewer than two exponents; at_bound where no alpha between 0.001 and 100 fits.

    Raises:
        InputError: an unknown name, an exponent that is not finite, an sd that is not above 0.

    Example:
        >>> found = consistency({"N": (0.40, 0.01), "D": (0.286, 0.01), "S": (0.284, 0.01)})
        >>> round(found.alpha, 2), found.consistent
        (0.4, True)

    Paper: arXiv:2303.13506.
    """
    from scipy.optimize import minimize_scalar
    from scipy.stats import chi2, norm

    _checked(measured)
    empty = {"implied": {}, "pulls": {}, "confidence": confidence}
    if len(measured) < 2:
        return Consistency(status="too_few_points", reasons=("one exponent agrees with any alpha",), **empty)

    def squares(log_alpha):
        implied = exponents(math.exp(log_alpha))
        return sum(((value - implied[name]) / sd) ** 2 for name, (value, sd) in measured.items())

    low, high = math.log(1e-3), math.log(100.0)
    grid = [low + (high - low) * i / 200 for i in range(201)]
    best = min(range(201), key=lambda i: squares(grid[i]))
    if best in (0, 200):
        return Consistency(status="at_bound", reasons=("no alpha between 0.001 and 100 fits",), **empty)
    found = minimize_scalar(squares, bounds=grid[best - 1 : best + 2 : 2], method="bounded", options={"xatol": 1e-12})
    alpha = math.exp(found.x)
    implied, df = exponents(alpha), len(measured) - 1
    # d exponent / d alpha: 1 for N, (alpha + 1)^-2 for S and D
    slopes = {name: 1.0 if name == "N" else (alpha + 1) ** -2 for name in measured}
    sd = 1 / math.sqrt(sum((slopes[name] / measured[name][1]) ** 2 for name in measured))
    half = float(norm.ppf((1 + confidence) / 2)) * sd
    p = float(chi2.sf(found.fun, df))
    pulls = {name: (value - implied[name]) / s for name, (value, s) in measured.items()}
    return Consistency(
        status="converged",
        confidence=confidence,
        alpha=alpha,
        interval=(alpha - half, alpha + half),
        chi2=float(found.fun),
        df=df,
        p=p,
        implied=implied,
        pulls=pulls,
        consistent=p >= 1 - confidence,
    )


def _checked(measured):
    for name, pair in measured.items():
        if name not in KINDS:
            raise InputError(f"expected N, S or D, got {name!r}{nearest(name, KINDS)}")
        if not math.isfinite(pair[0]) or not 0 < pair[1] < math.inf:
            raise InputError(f"expected (exponent, sd > 0) for {name}, got {pair}")

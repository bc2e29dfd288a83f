"""Exponents of the quantization model of neural scaling: what one alpha implies, and whether measured ones agree.

The law itself, with one alpha, is the law `quantization` of lmjax.scaling.laws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lmjax.errors import InputError, nearest
from lmjax.scaling.methods.outcome import Outcome

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
        raise InputError(f"wanted alpha > 0, got {alpha}")
    return {"N": alpha, "S": alpha / (alpha + 1), "D": alpha / (alpha + 1)}


@dataclass(frozen=True, kw_only=True)
class Consistency(Outcome):
    """The alpha that fits the measured exponents best, and how well.

    alpha with its interval; chi2, df and p: of the hypothesis that one alpha explains all; implied: the exponents
    that alpha implies; pulls: (measured - implied) / sd, by name; consistent: p >= 1 - level.
    """

    alpha: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    chi2: float = math.nan
    df: int = 0
    p: float = math.nan
    implied: dict[str, float]
    pulls: dict[str, float]
    consistent: bool | None = None


def consistency(measured: Mapping[str, tuple[float, float]], level: float = 0.95) -> Consistency:
    """Fits alpha to measured exponents and tests whether they are those of one alpha.

    min over alpha of sum_j ((measured_j - exponents(alpha)_j) / sd_j)^2.

    Args:
        measured: N, S or D -> (exponent, its standard deviation); at least two.
        level: of the interval; also the test: consistent where p >= 1 - level.

    Returns:
        Consistency; too_few_points with fewer than two exponents; at_bound where no alpha > 0 comes near.

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
    empty = {"implied": {}, "pulls": {}, "level": level}
    if len(measured) < 2:
        return Consistency(status="too_few_points", reasons=("one exponent agrees with any alpha",), **empty)

    def squares(log_alpha):
        implied = exponents(math.exp(log_alpha))
        return sum(((value - implied[name]) / sd) ** 2 for name, (value, sd) in measured.items())

    low, high = math.log(1e-3), math.log(100.0)
    grid = [low + (high - low) * i / 200 for i in range(201)]
    best = min(range(201), key=lambda i: squares(grid[i]))
    if best in (0, 200):
        return Consistency(status="at_bound", reasons=("no alpha between 0.001 and 100 is near them",), **empty)
    found = minimize_scalar(squares, bounds=grid[best - 1 : best + 2 : 2], method="bounded", options={"xatol": 1e-12})
    alpha = math.exp(found.x)
    implied, df = exponents(alpha), len(measured) - 1
    # d exponent / d alpha: 1 for N, (alpha + 1)^-2 for S and D
    slopes = {name: 1.0 if name == "N" else (alpha + 1) ** -2 for name in measured}
    sd = 1 / math.sqrt(sum((slopes[name] / measured[name][1]) ** 2 for name in measured))
    half = float(norm.ppf((1 + level) / 2)) * sd
    p = float(chi2.sf(found.fun, df))
    pulls = {name: (value - implied[name]) / s for name, (value, s) in measured.items()}
    return Consistency(
        status="converged",
        level=level,
        alpha=alpha,
        interval=(alpha - half, alpha + half),
        chi2=float(found.fun),
        df=df,
        p=p,
        implied=implied,
        pulls=pulls,
        consistent=p >= 1 - level,
    )


def _checked(measured):
    for name, pair in measured.items():
        if name not in KINDS:
            raise InputError(f"wanted N, S or D, got {name!r}{nearest(name, KINDS)}")
        if not math.isfinite(pair[0]) or not 0 < pair[1] < math.inf:
            raise InputError(f"wanted (exponent, sd > 0) for {name}, got {pair}")

"""Exponents of the quantization model of neural scaling: those implied by one alpha, and a test of measured exponents.

The law with one alpha is `quantization` in lmjax.scaling.laws.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.scaling.methods.leastsq import bracketed_minimum
from lmjax.scaling.methods.outcome import Outcome, table_text
from lmjax.scaling.resample import half_width_factor

KINDS = ("N", "S", "D")
RANGE = (1e-3, 100.0)  # of alpha


def exponents(alpha: float) -> dict[str, float]:
    """Exponents of the loss in N, S and D for quanta whose frequency of use falls as rank^-(alpha + 1).

    alpha_N = alpha > 0, alpha_S = alpha_D = alpha / (alpha + 1); N parameters, S steps, D data.

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
    implied: dict[str, float] = field(default_factory=dict)
    pulls: dict[str, float] = field(default_factory=dict)
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
    from scipy.stats import chi2

    for name, (value, sd) in measured.items():
        if name not in KINDS:
            raise InputError(f"expected N, S or D, got {name!r}{nearest(name, KINDS)}")
        if not math.isfinite(value) or not 0 < sd < math.inf:
            raise InputError(f"expected (exponent, sd > 0) for {name}, got {(value, sd)}")
    if len(measured) < 2:
        reason = "one exponent agrees with any alpha"
        return Consistency(status="too_few_points", reasons=(reason,), confidence=confidence)

    def pulls(log_alpha):
        implied = exponents(math.exp(log_alpha))
        return {name: (value - implied[name]) / sd for name, (value, sd) in measured.items()}

    log_alpha = bracketed_minimum(lambda x: sum(v * v for v in pulls(x).values()), *map(math.log, RANGE))[0]
    if log_alpha is None:
        reason = "no alpha between 0.001 and 100 fits"
        return Consistency(status="at_bound", reasons=(reason,), confidence=confidence)
    alpha, found, df = math.exp(log_alpha), pulls(log_alpha), len(measured) - 1
    # d exponent / d alpha: 1 for N, (alpha + 1)^-2 for S and D
    slopes = [(1.0 if name == "N" else (alpha + 1) ** -2) / sd for name, (_, sd) in measured.items()]
    half = half_width_factor(confidence) / math.hypot(*slopes)
    least = sum(v * v for v in found.values())
    p = float(chi2.sf(least, df))
    return Consistency(
        status="converged",
        confidence=confidence,
        alpha=alpha,
        interval=(alpha - half, alpha + half),
        chi2=least,
        df=df,
        p=p,
        implied=exponents(alpha),
        pulls=found,
        consistent=p >= 1 - confidence,
    )

"""What a set of cells (N, D) can identify, known before any run. Judges designs, never losses.

L = E + A N^-alpha + B D^-beta has five parameters. A design identifies them only if N and D vary separately,
each over three values and more; runs that all have D = k N show the sum of two terms and never its parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.scaling import solver
from lmjax.scaling.laws import Law, get_law
from lmjax.scaling.table import SAME

# D that scatters by less than 10 % (standard deviation) around a power of N is as good as D = k N^p
LINE = math.log(1.1)
NEAR_LINE = math.log(1.5)
MAX_CONDITION = 1e4  # of the Jacobian with columns of unit length; the Chinchilla table has 40, a 4 x 3 grid about 100
FEW_DECADES = 0.6  # a factor 4
# typical shares of the loss at the centre of a design, and exponents, to judge it before any loss is known
TYPICAL_LEVEL, TYPICAL_TERM, TYPICAL_EXPONENTS = 0.5, 0.25, {"N": 0.35, "D": 0.30}
TYPICAL_NOISE = 0.005  # standard deviation of ln loss between seeds


@dataclass(frozen=True)
class Design:
    """What `examine` finds.

    condition: of the Jacobian d ln L / d parameters, columns scaled to unit length, at typical parameters.
    decades: log10 range of each variable. levels: distinct values of each variable.
    off_line: standard deviation of ln D around its best power law in N (0: all cells on one line); NaN for
        laws of one variable. expected: half width of a 95 % interval of each exponent, for 0.5 % noise.
    reasons: why no fit is possible. warnings: what is weak about the cells. forecasts: exponents that will be
        known badly.
    """

    points: int
    condition: float
    decades: dict[str, float]
    levels: dict[str, int]
    off_line: float
    expected: dict[str, float]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    forecasts: tuple[str, ...] = ()


def identifiable(N: Sequence[float], D: Sequence[float], law: str | Law = "chinchilla") -> list[str]:
    """What the cells cannot identify, in words; empty if all is well. Call it before any run.

    Args:
        N: parameters of each cell.
        D: training tokens of each cell.
        law: name of the law to be fitted.

    Returns:
        Sentences; those that make a fit impossible come first and begin with "cannot be fitted".

    Example (every cell at 20 tokens per parameter):
        >>> identifiable([1e6, 2e6, 4e6, 8e6, 16e6, 32e6], [2e7, 4e7, 8e7, 16e7, 32e7, 64e7])[0][:67]
        'cannot be fitted: all cells lie on one line (or within 10 % of it),'
    """
    found = examine({"N": np.asarray(N, float), "D": np.asarray(D, float)}, get_law(law))
    return [f"cannot be fitted: {reason}" for reason in found.reasons] + [*found.warnings, *found.forecasts]


def examine(x: dict[str, np.ndarray], law: Law) -> Design:
    """Judges the design x = {"N": [I], "D": [I]} for a law."""
    count, needed = len(x[law.variables[0]]), len(law.parameters) + 1
    logs = {name: np.log(np.asarray(x[name], float)) for name in law.variables}
    levels = {name: _levels(v) for name, v in logs.items()}
    decades = {name: float(np.ptp(v) / math.log(10)) if count else 0.0 for name, v in logs.items()}
    reasons = []
    if count < needed:
        reasons.append(f"{count} points for {needed - 1} parameters; wanted at least {needed}")
    for name in law.variables:
        if levels[name] < 3:
            word = {"N": "size", "D": "token count"}[name]
            reasons.append(f"{levels[name]} distinct {word}{'s' * (levels[name] != 1)} {name}; wanted at least 3")
    off_line = math.nan
    if len(law.variables) == 2 and min(levels.values()) >= 2:
        slope, constant, off_line = _line(logs["N"], logs["D"])
        if off_line < LINE:
            reasons.append(
                "all cells lie on one line (or within 10 % of it), "
                f"{_line_in_words(slope, constant, logs['N'])}; vary D at one N"
            )
    if reasons:
        return Design(count, math.inf, decades, levels, off_line, {}, tuple(reasons))
    condition, expected = _typical(logs, law)
    warnings = list(_warnings(law, count, decades, off_line))
    if condition > MAX_CONDITION:
        warnings.insert(0, f"condition number {condition:.1e} of the Jacobian: the parameters cannot be told apart")
    return Design(
        count, condition, decades, levels, off_line, expected, (), tuple(warnings), tuple(_forecasts(expected))
    )


def _levels(log_x):
    if not len(log_x):
        return 0
    return 1 + int((np.diff(np.sort(log_x)) > SAME).sum())


def _line(log_n, log_d):
    """Slope, constant and scatter of the total-least-squares line through (ln N, ln D)."""
    slope = np.polyfit(log_n, log_d, 1)[0]
    backwards = np.polyfit(log_d, log_n, 1)[0]
    scatter = np.std(log_d - slope * log_n)
    scatter_back = np.std(log_n - backwards * log_d)
    return float(slope), float(np.mean(log_d - slope * log_n)), float(min(scatter, scatter_back))


def _line_in_words(slope, constant, log_n):
    if abs(slope - 1) < 0.03:
        return f"D = {math.exp(np.mean(constant + (slope - 1) * log_n)):.3g} N"
    return f"D ~ N^{slope:.2f}"


def _typical(logs, law):
    """Condition number and expected half widths at typical parameters."""
    u_JI = np.array([logs[name] - logs[name].mean() for name in law.variables])
    phi = [TYPICAL_LEVEL]
    for name in law.variables:
        phi += [math.log(TYPICAL_TERM), TYPICAL_EXPONENTS[name]]
    jacobian = solver.jacobian(np.array([phi]), u_JI)[0].T
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    # 1.96 standard errors, 1.25 = sqrt(pi / 2): the price of an almost-L1 loss on normal noise
    half = 1.96 * 1.25 * TYPICAL_NOISE * np.sqrt(np.diag(inverse))
    return condition_number(jacobian), {term.exponent: float(half[2 + 2 * j]) for j, term in enumerate(law.terms)}


def condition_number(jacobian_IK: np.ndarray) -> float:
    """Ratio of the extreme singular values of the Jacobian, its columns scaled to unit length."""
    length = np.linalg.norm(jacobian_IK, axis=0)
    if not (length > 0).all():
        return math.inf
    singular = np.linalg.svd(jacobian_IK / length, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf


def _warnings(law, count, decades, off_line):
    for name in law.variables:
        if decades[name] < FEW_DECADES:
            yield (
                f"{name} spans {decades[name]:.2f} decades (a factor {10 ** decades[name]:.2g}); "
                "below a factor 4 an exponent is a guess"
            )
    if off_line < NEAR_LINE:
        yield (
            f"D scatters by only {100 * math.expm1(off_line):.0f} % around a power of N: "
            "alpha and beta will be hard to tell apart"
        )
    spare = count - len(law.parameters)
    if spare < 4:
        yield f"{count} points for {len(law.parameters)} parameters leave {spare} to estimate the noise from"


def _forecasts(expected):
    for name, half in expected.items():
        if half > 0.15:
            yield (
                f"{name} will be known to about +-{half:.2f} (95 %, loss noise {100 * TYPICAL_NOISE:g} %): "
                "wider ranges or more cells would help"
            )

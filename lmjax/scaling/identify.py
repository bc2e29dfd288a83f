"""Identifiability of a law: judged from the cells of a table before any fit, and from the Jacobian at the optimum.

Knows laws and arrays. L = E + A N^-alpha + B D^-beta has five parameters; a table identifies them only if N and D vary
separately, each over three values or more. Runs that all have D = k N determine the sum of two terms, not its parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lmjax.errors import InputError
from lmjax.format import plural
from lmjax.scaling.engine import Optimum, condition
from lmjax.scaling.laws import LAWS, Law, columns, get_law, slopes
from lmjax.scaling.table import SAME

# log-scatter (standard deviation) around a power law below which two variables count as collinear, or nearly so
LINE, NEAR_LINE = math.log(1.1), math.log(1.5)
MAX_CONDITION = 1e4  # coefficients at the centre of the table; the Chinchilla table has 40, a 4 x 3 grid about 100
MAX_CONDITION_RAW = 1e6  # in the parameters themselves, where ln A and alpha are correlated in any table
# pairs of variables that must not lie on a line: their powers would be collinear
CROSSED = (("N", "D"), ("N", "S"), ("C", "M"), ("N_e", "N_d"), ("N", "experts"), ("D", "experts"))
FEW_DECADES = 0.6  # a factor of 4
ASIDE = 4.0  # factor in D between a line and the cells proposed beside it
# typical shares of the loss at the centre of a design, and exponents, to judge it before any loss is known
TYPICAL_FLOOR, TYPICAL_TERM, TYPICAL_EXPONENT = 0.5, 0.25, 0.3
TYPICAL_EXPONENTS = {"N": 0.35, "D": 0.30, "C": 0.16}
TYPICAL_NOISE = 0.005  # standard deviation of ln loss between seeds
WIDE_INTERVAL = 0.15  # half width of an exponent's interval above which there is a warning


# ---- before a fit --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """What `examine` finds.

    condition: of the Jacobian d ln L / d parameters, columns of unit length, at typical parameters (NaN for laws that
        have none). decades: log10 range of each variable. distinct: how many different values each has.
    off_line: standard deviation of ln of one variable around its best power law in another, for the pair that is
        nearest to a line (0: all cells on one line); NaN without such a pair.
    reasons: why no fit is possible. warnings: weaknesses of the design. forecasts: exponents that will be poorly
        constrained.
    """

    condition: float
    decades: dict[str, float]
    distinct: dict[str, int]
    off_line: float
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    forecasts: tuple[str, ...] = ()


def identifiable(N: Sequence[float], D: Sequence[float], law: str | Law = "chinchilla") -> list[str]:
    """Returns what cells (N, D) cannot identify; empty if they identify the law. Call it before any run.

    Args:
        N: parameters of each cell.
        D: training tokens of each cell.
        law: name of the law to be fitted, of N, D, C = 6 N D or M = D / N.

    Returns:
        Sentences; those that make a fit impossible come first and begin with "cannot be fitted".

    Raises:
        InputError: a law of variables that cells (N, D) do not give, such as steps S or unique tokens U.

    Example (every cell at 20 tokens per parameter):
        >>> identifiable([1e6, 2e6, 4e6, 8e6, 16e6, 32e6], [2e7, 4e7, 8e7, 16e7, 32e7, 64e7])[0][:67]
        'cannot be fitted: all cells lie on one line (or within 10 % of it),'
    """
    law = get_law(law)
    found = examine(of_cells(law, N, D), law)
    return [f"cannot be fitted: {reason}" for reason in found.reasons] + [*found.warnings, *found.forecasts]


def of_cells(law: Law, N, D) -> dict[str, np.ndarray]:
    """The variables of a law at cells (N, D)."""
    others = [name for name in law.variables if name not in ("N", "D", "C", "M")]
    if others:
        raise InputError(
            f"expected a law of N, D, C or M, got {law.name}, which needs {', '.join(others)} that cells (N, D) do not "
            f"give; set law to one of {', '.join(known.name for known in LAWS.values() if known.terms)}"
        )
    return columns(law, {"N": N, "D": D})


def examine(x: dict[str, np.ndarray], law: Law) -> Design:
    """Judges the cells x = {variable: [I]}; condition and expected widths only for a floor plus falling powers."""
    x = {name: np.asarray(x[name], np.float64) for name in law.variables}
    count, needed = len(x[law.variables[0]]), len(law.parameters) + 1
    with np.errstate(divide="ignore"):
        decades = {name: float(np.ptp(np.log10(v))) if count and v.min() > 0 else math.inf for name, v in x.items()}
    reasons = []
    if count < needed:
        reasons.append(f"{count} points for {needed - 1} parameters; expected at least {needed}")
    distinct = {name: count_distinct(v) for name, v in x.items()}
    for name, found in distinct.items():
        least = _least_values(law, name)
        if found < least:
            word = {"N": "size", "D": "token count"}.get(name, "value")
            reasons.append(f"{plural(found, f'distinct {word}')} {name}; expected at least {least}")
    pairs = [pair for pair in _crossed(law) if min(distinct[name] for name in pair) >= 2]
    scatter = {pair: _scatter(*(x[name] for name in pair))[1] for pair in pairs}
    off_line = min(scatter.values(), default=math.nan)
    reasons += [words for pair in pairs if (words := _one_line(*pair, x))]
    if reasons:
        return Design(math.inf, decades, distinct, off_line, tuple(reasons))
    largest, expected, vague = _typical(x, law) if law.terms else (math.nan, {}, "")
    if law.base and largest > MAX_CONDITION:
        return Design(largest, decades, distinct, off_line, (f"condition number {largest:.1e}: {vague}",))
    warnings = [
        f"{name} spans {decade:.2f} decades (a factor of {10**decade:.2g}); below a factor of 4, "
        "exponents are poorly constrained"
        for name, decade in decades.items()
        if decade < FEW_DECADES
    ]
    if largest > MAX_CONDITION:
        warnings.insert(0, f"condition number {largest:.1e} of the Jacobian: the parameters are nearly collinear")
    warnings += [
        f"{second} scatters by only {100 * math.expm1(off):.0f} % around a power of {first}: their exponents are "
        "nearly collinear"
        for (first, second), off in scatter.items()
        if off < NEAR_LINE
    ]
    spare = count - len(law.parameters)
    if spare < 4:
        warnings.append(f"{count} points for {len(law.parameters)} parameters leave {spare} to estimate the noise")
    forecasts = [
        f"the 95 % interval of {name} will be about +-{half:.2f} at a loss noise of {100 * TYPICAL_NOISE:g} %; use "
        "wider ranges or more cells"
        for name, half in expected.items()
        if half > WIDE_INTERVAL
    ]
    return Design(largest, decades, distinct, off_line, (), tuple(warnings), tuple(forecasts))


def count_distinct(x) -> int:
    """Number of distinct values, counting those less than 2 % above the smallest of a group once.

    Example:
        >>> count_distinct([1.0, 1.01, 2.0])
        2
    """
    x, count = np.sort(np.asarray(x, np.float64)), 0
    while len(x):
        x, count = x[x > x[0] * (1 + SAME) + 1e-300], count + 1
    return count


def _free(law, variable):
    """The free parameters of the terms of a variable, of a sum of terms."""
    names = [name for t in law.terms if t.variable == variable for name in (t.coefficient, t.exponent)]
    return {law.leader(name) for name in names} - {""}


def _least_values(law, variable):
    """How many distinct values a variable needs; with constraints, the rank of the Jacobian says the rest."""
    if law.base:
        return 2 if _free(law, variable) else 1
    return 3 if law.terms else 2


def _crossed(law):
    """Pairs of variables that must not lie on one line; N and S may, if a batch size varies the effective steps.

    With constraints, pairs whose terms have free parameters of their own; a line can be enough to fit a few parameters
    of a law that is no sum of terms.
    """
    if law.terms:
        pairs = combinations(law.variables, 2)
        return [
            pair for pair in pairs if not law.base or all(_free(law, a) - _free(law, b) for a, b in (pair, pair[::-1]))
        ]
    if law.base and len(law.parameters) <= len(law.variables):
        return []
    return [pair for pair in CROSSED if set(pair) <= set(law.variables) and "B" not in law.variables]


def _one_line(first, second, x):
    """Why two variables are not identifiable separately: one scatters little around a power of the other; or ""."""
    slope, scatter = _scatter(x[first], x[second])
    if not scatter < LINE:
        return ""
    ratio = np.exp(np.mean(np.log(x[second]) - np.log(x[first])))
    shown = f"{second} = {ratio:.3g} {first}" if abs(slope - 1) < 0.03 else f"{second} ~ {first}^{slope:.2f}"
    words = f"all cells lie on one line (or within 10 % of it), {shown}; "
    if (first, second) != ("N", "D"):
        return words + f"vary {second} at one {first}"
    largest = int(np.argmax(x["N"]))
    n, d = float(x["N"][largest]), float(x["D"][largest])
    alone = "fit power_c, a law of C alone, or " if count_distinct(x["N"] * x["D"]) >= 3 else ""
    return f"{words}{alone}vary D at one N, as with N = {n:.3g} and D = {d / ASIDE:.3g} and {d * ASIDE:.3g}"


def _scatter(first, second):
    """Slope of ln second in ln first, and the standard deviation around the line."""
    u, v = np.log(first), np.log(second)
    slope, back = np.polyfit(u, v, 1)[0], np.polyfit(v, u, 1)[0]
    return float(slope), float(min(np.std(v - slope * u), np.std(u - back * v)))


def typical_params(x, law: Law) -> dict[str, float]:
    """Parameters of a floor plus falling powers with typical shares of the loss at the centre of the cells.

    Raises:
        InputError: a law of another form, which has no typical parameters.
    """
    if not law.terms:
        raise InputError(
            f"expected params to plan for {law.formula}, got none: only laws of a floor plus powers have defaults; set "
            f"params to values of {', '.join(law.parameters)}"
        )
    params = {"E": TYPICAL_FLOOR}
    for term in law.terms:
        exponent = TYPICAL_EXPONENTS.get(term.variable, TYPICAL_EXPONENT)
        exponent = law.fixed.get(term.exponent, exponent)
        centre = float(np.log(x[term.variable]).mean())
        params |= {term.coefficient: TYPICAL_TERM * math.exp(exponent * centre), term.exponent: exponent}
    return dict(law.complete(params))


def sensitivity(law: Law, params, x, plain: bool = False) -> np.ndarray:
    """d ln L / d q [I, K] at cells x, coefficients as ln; of L itself for a share, or where `plain`."""
    theta = {name: np.array([[params[name]]], np.float64) for name in law.parameters}
    loss, found = slopes(law, theta, columns(law, {name: np.atleast_1d(v) for name, v in x.items()}))
    unit = 1.0 if plain or law.target == "share" else loss[0]
    return np.stack([found[p.name][0] * (params[p.name] if p.log else 1.0) / unit for p in law.space], -1)


def _typical(x, law):
    """Condition number, expected half widths of exponents and what is collinear at typical parameters."""
    jacobian = sensitivity(law, typical_params(x, law), x)
    place = {name: law.parameters.index(leader) for name in law.names if (leader := law.leader(name))}
    for term in law.terms:  # coefficients at the centre of the cells, where they are nearly uncorrelated
        if {term.coefficient, term.exponent} <= set(place):
            centre = np.log(x[term.variable]).mean()
            jacobian[:, place[term.exponent]] += jacobian[:, place[term.coefficient]] * centre
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    # 1.96 standard errors, 1.25 = sqrt(pi / 2): the efficiency loss of an almost-L1 criterion on normal noise
    half = 1.96 * 1.25 * TYPICAL_NOISE * np.sqrt(np.maximum(np.diag(inverse), 0.0))
    expected = {term.exponent: float(half[place[term.exponent]]) for term in law.terms if term.exponent in place}
    return condition(jacobian), expected, _collinear(law.space, jacobian)


# ---- at the optimum ------------------------------------------------------------------------------------------------


def judge(law: Law, best: Optimum) -> tuple[str, list[str], list[str]]:
    """Judges an optimum: the status of a fit, reasons to refuse it, warnings; "at_bound" is a usable status."""
    reasons, warnings = [], []
    keep = {p.name for p in law.space if p.keep}
    status = "at_bound" if best.at_bounds else "converged"
    for name, bound in best.at_bounds.items():
        if name not in keep:
            status = "not_identified"
            reasons.append(_bound_words(law, name, bound))
        elif name == "E" and bound == 0:
            warnings.append("E = 0: the losses show no floor; exponents are lower than with any floor above 0")
        else:
            warnings.append(f"{name} is at its bound {bound:g}: the data give only a one-sided limit")
    wrong = law.validate(best.params) if law.validate else ""
    if wrong:
        status = "not_identified"
        reasons.append(f"{wrong}, which {law.name} does not describe")
    count = len(best.residual)
    if not reasons and count <= len(law.space):
        status = "too_few_points"
        reasons.append(f"{count} points for {len(law.space)} parameters; expected at least {len(law.space) + 1}")
    free = [k for k, p in enumerate(law.space) if p.name not in best.at_bounds]
    largest = MAX_CONDITION if law.terms and not law.base else MAX_CONDITION_RAW
    if not reasons and free and condition(best.jacobian[:, free]) > largest:
        status = "not_identified"
        words = _collinear([law.space[k] for k in free], best.jacobian[:, free])
        reasons.append(f"condition number {best.condition:.1e} of the Jacobian: {words}")
    if not reasons and not best.settled:
        status = "disagreeing_starts"
        reasons.append("no start reached a minimum of the fit criterion; please report the table")
    return status, reasons, warnings


def _bound_words(law, name, bound):
    term = next((t for t in law.terms if name in (t.exponent, t.coefficient)), None)
    if term is not None and name == term.exponent:
        return f"{name} is at its bound {bound:g}: the losses show no power law in {term.variable}"
    if bound == 0:
        falls = f"the losses do not fall with {term.variable}" if term else "no data point constrains this term"
        return f"{name} went to 0: {falls}"
    return f"{name} is at its bound {bound:g}: the data do not constrain this part of the law"


def _collinear(space, jacobian_IK):
    """The parameters that the data do not determine separately: the null vector of the Jacobian as a sentence."""
    length = np.linalg.norm(jacobian_IK, axis=0)
    null = np.linalg.svd(jacobian_IK / np.where(length > 0, length, 1.0), full_matrices=False)[2][-1]
    null = null * np.sign(null[np.abs(null) > 0.2][0])
    names = [f"ln {p.name}" if p.log else p.name for p in space]
    part = [(name, v) for name, v in zip(names, null, strict=True) if abs(v) > 0.2]
    if len(part) == 1:
        return f"no data point constrains {part[0][0]}"
    listed = ", ".join(name for name, _ in part[:-1]) + f" and {part[-1][0]}"
    shown = " ".join(f"{v:+.2f} {name}" for name, v in part)
    return f"{listed} are not identifiable separately (null direction {shown})"

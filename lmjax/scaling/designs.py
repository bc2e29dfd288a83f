"""What a set of cells (N, D) can identify, known before any run. Judges and proposes designs, never reads losses.

L = E + A N^-alpha + B D^-beta has five parameters. A design identifies them only if N and D vary separately,
each over three values and more; runs that all have D = k N show the sum of two terms and never its parts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import InputError
from lmjax.format import count as short
from lmjax.scaling.engine import condition as condition_number
from lmjax.scaling.information import (
    Coordinates,
    allocation_quantities,
    covariance,
    deviation,
    half_width_factor,
    price,
)
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, LAWS, Law, columns, get_law
from lmjax.scaling.table import SAME

# D that scatters by less than 10 % (standard deviation) around a power of N is as good as D = k N^p
LINE = math.log(1.1)
NEAR_LINE = math.log(1.5)
MAX_CONDITION = 1e4  # of the Jacobian with columns of unit length; the Chinchilla table has 40, a 4 x 3 grid about 100
FEW_DECADES = 0.6  # a factor 4
ASIDE = 4.0  # factor in D from a line to the cells that are proposed beside it
# typical shares of the loss at the centre of a design, and exponents, to judge it before any loss is known
TYPICAL_LEVEL, TYPICAL_TERM, TYPICAL_EXPONENTS = 0.5, 0.25, {"N": 0.35, "D": 0.30, "C": 0.16}
TYPICAL_EXPONENT = 0.3  # of any other variable
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
    found = examine(_variables(law, N, D), law)
    return [f"cannot be fitted: {reason}" for reason in found.reasons] + [*found.warnings, *found.forecasts]


def _variables(law, N, D):
    """The variables of a law at cells (N, D)."""
    others = [name for name in law.variables if name not in ("N", "D", "C", "M")]
    if others:
        raise InputError(
            f"wanted a law of N, D, C or M, got {law.name}, which needs {', '.join(others)} that cells (N, D) do not "
            f"give; set law to one of {', '.join(known.name for known in LAWS.values() if known.terms)}"
        )
    return columns(law, {"N": N, "D": D})


def examine(x: dict[str, np.ndarray], law: Law) -> Design:
    """Judges the cells x = {variable: [I]}; condition and expected widths only for a floor plus falling powers."""
    count, needed = len(x[law.variables[0]]), len(law.parameters) + 1
    logs = {name: np.log(np.asarray(x[name], float)) for name in law.variables}
    levels = {name: _levels(v) for name, v in logs.items()}
    decades = {name: float(np.ptp(v) / math.log(10)) if count else 0.0 for name, v in logs.items()}
    reasons = []
    if count < needed:
        reasons.append(f"{count} points for {needed - 1} parameters; wanted at least {needed}")
    for name in law.variables:
        least = 3 if law.terms else 2
        if levels[name] < least:
            word = {"N": "size", "D": "token count"}.get(name, "value")
            reasons.append(f"{levels[name]} distinct {word}{'s' * (levels[name] != 1)} {name}; wanted at least {least}")
    off_line = math.nan
    if {"N", "D"} <= set(law.variables) and min(levels.values()) >= 2:
        slope, constant, off_line = _line(logs["N"], logs["D"])
        if off_line < LINE:
            reasons.append(
                "all cells lie on one line (or within 10 % of it), "
                f"{_line_in_words(slope, constant, logs['N'])}; {_way_out(x['N'], x['D'])}"
            )
    if reasons:
        return Design(count, math.inf, decades, levels, off_line, {}, tuple(reasons))
    condition, expected = _typical(logs, law) if law.terms else (math.nan, {})
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


def _way_out(N, D):
    """What to do about cells on a line: the law that they do fit, and two cells off it."""
    largest = int(np.argmax(N))
    n, d = float(N[largest]), float(D[largest])
    alone = "fit power_c, a law of C alone, or " if _levels(np.log(N) + np.log(D)) >= 3 else ""
    return f"{alone}vary D at one N, as with N = {n:.3g} and D = {d / ASIDE:.3g} and {d * ASIDE:.3g}"


def _typical(logs, law):
    """Condition number and expected half widths at typical parameters."""
    params = _typical_params({name: np.exp(v) for name, v in logs.items()}, law)
    jacobian = Coordinates(law, params).jacobian({name: np.exp(v) for name, v in logs.items()})
    for j, term in enumerate(law.terms):  # coefficients at the centre of the cells, where they are nearly uncorrelated
        jacobian[:, 2 + 2 * j] += jacobian[:, 1 + 2 * j] * logs[term.variable].mean()
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    # 1.96 standard errors, 1.25 = sqrt(pi / 2): the price of an almost-L1 loss on normal noise
    half = 1.96 * 1.25 * TYPICAL_NOISE * np.sqrt(np.maximum(np.diag(inverse), 0.0))
    return condition_number(jacobian), {term.exponent: float(half[2 + 2 * j]) for j, term in enumerate(law.terms)}


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


@dataclass(frozen=True)
class Plan:
    """A grid of cells before any run: what `design` proposes.

    cells: dicts of N, D, tokens_per_param, C = 6 N D (the budget, FLOP); each is to be run `seeds` times.
    condition: of the Jacobian d ln L / d parameters, columns of unit length. expected: half widths of the 95 %
        intervals of the exponents, a, "E" (share of E), "N*" and "loss" (shares, at `reach` FLOP).
    cost: FLOP of all runs. reasons: why the cells cannot identify the law (then expected is empty).
    """

    law: str
    cells: tuple[dict, ...]
    seeds: int
    noise: float
    params: dict[str, float]
    condition: float
    expected: dict[str, float]
    reach: float
    cost: float
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]

    def text(self) -> str:
        """The plan in words: cells, cost, what it will identify and what it will not."""
        lines = [f"{len(self.cells)} cells x {self.seeds} seeds, {self.cost:.3g} FLOP, condition {self.condition:.3g}"]
        for row in self.cells:
            lines.append(
                f"  C {row['C']:.3g}  N {short(row['N'])}  D {short(row['D'])}  D/N {row['tokens_per_param']:.3g}"
            )
        if self.reasons:
            return "\n".join([*lines, *(f"cannot be fitted: {reason}" for reason in self.reasons)])
        known, unknown = _promises(self)
        lines.append(f"will identify (95 %, noise {100 * self.noise:g} %): {'; '.join(known) or 'nothing'}")
        lines.append(f"will not identify: {'; '.join(unknown)}")
        return "\n".join([*lines, *(f"beware: {warning}" for warning in self.warnings)])


def design(
    budgets: Sequence[float],
    rungs: Sequence[float] | None = None,
    law: str | Law = "chinchilla",
    noise: float = TYPICAL_NOISE,
    params: Mapping[str, float] | None = None,
    tokens_per_param: float = 20.0,
    spread: float = 8.0,
    per_budget: int = 5,
    seeds: int = 1,
    delta: float = 1e-3,
) -> Plan:
    """Proposes cells (N, D) that a law of N and D can be fitted to, and says what they will tell.

    N = sqrt(C / 6 / r) and D = r N at each budget C, with the ratio r = D/N spread over tokens_per_param / spread to
    tokens_per_param * spread, so that N and D vary apart. Half widths from the Fisher information of the cells.

    Args:
        budgets: compute of each isoFLOP slice in FLOP, C = 6 N D.
        rungs: sizes N that can be trained; the nearest are taken, D = C / 6 N. None: any size.
        law: a law of N and D, or of what follows from them: C = 6 N D, M = D / N.
        noise: standard deviation of ln loss between seeds.
        params: of the law, to plan for; None: half of the loss at the centre of the cells is the floor, a quarter
            each term, alpha 0.35, beta 0.30, of C 0.16 (chinchilla and power_c only; others want them).
        tokens_per_param: the middle D/N.
        spread: the outermost D/N over the middle one, > 1.
        per_budget: cells of a budget, at least 3.
        seeds: runs of each cell.
        delta: of the Huber loss that will be minimised.

    Returns:
        Plan.

    Raises:
        InputError: values out of range; rungs of which fewer than 3 differ; a law of other variables, or one that
            holds at one N or one D.

    Example (four budgets, 20 runs):
        >>> plan = design([1e16, 4e16, 16e16, 64e16])
        >>> len(plan.cells), f"{plan.cost:.3g}", round(plan.expected["alpha"], 2), plan.reasons
        (20, '4.25e+18', 0.05, ())
    """
    law = get_law(law)
    _variables(law, 1.0, 1.0)
    if law.variables in (("N",), ("D",)):
        other = "D" if law.variables == ("N",) else "N"
        raise InputError(f"{law.formula} holds at one {other}, but isoFLOP cells vary it; set law to chinchilla")
    budgets = _checked_budgets(budgets, noise, tokens_per_param, spread, per_budget, seeds, delta)
    warnings, cells = [], []
    for budget in budgets:
        ratio = tokens_per_param * spread ** np.linspace(-1, 1, per_budget)
        n = np.sqrt(budget / FLOPS_PER_PARAM_TOKEN / ratio)
        if rungs is not None:
            n = _nearest_rungs(n, rungs, budget, warnings)
        d = budget / FLOPS_PER_PARAM_TOKEN / n
        cells += [
            {"N": float(a), "D": float(b), "tokens_per_param": float(b / a), "C": float(budget)}
            for a, b in zip(n, d, strict=True)
        ]
    n, d = (np.repeat([row[name] for row in cells], seeds) for name in ("N", "D"))
    x = _variables(law, n, d)
    found = examine(x, law)
    cost = FLOPS_PER_PARAM_TOKEN * float((n * d).sum())
    plan = Plan(
        law.name, tuple(cells), seeds, noise, {}, found.condition, {}, 10 * float(budgets[-1]), cost,
        found.reasons, (*warnings, *found.warnings),
    )  # fmt: skip
    if found.reasons:
        return plan
    params = dict(params) if params else _typical_params(x, law)
    coordinates = Coordinates(law, params)
    jacobian = coordinates.jacobian(x)
    cov = covariance(jacobian, noise * price(noise, delta))
    expected = {name: float(half) for name, half in _half_widths(coordinates, cov, plan.reach).items()}
    return replace(plan, params=params, condition=condition_number(jacobian), expected=expected)


def _checked_budgets(budgets, noise, tokens_per_param, spread, per_budget, seeds, delta):
    budgets = np.unique(np.asarray(budgets, float))
    if not (len(budgets) and np.isfinite(budgets).all() and (budgets > 0).all()):
        raise InputError(f"wanted budgets in FLOP, finite and above 0, got {budgets.tolist()}")
    if not (noise > 0 and tokens_per_param > 0 and spread > 1 and per_budget >= 3 and seeds >= 1 and delta > 0):
        raise InputError(
            "wanted noise > 0, tokens_per_param > 0, spread > 1, per_budget >= 3, seeds >= 1, delta > 0, got "
            f"{noise}, {tokens_per_param}, {spread}, {per_budget}, {seeds}, {delta}"
        )
    return budgets


def _nearest_rungs(n, rungs, budget, warnings):
    """The rungs nearest to the wanted sizes, each once; fewer than 3 are filled up with the next nearest."""
    rungs = np.unique(np.asarray(rungs, float))
    if len(rungs) < 3 or not (rungs > 0).all():
        raise InputError(f"wanted at least 3 different sizes as rungs, got {rungs.tolist()}")
    apart = np.abs(np.log(rungs)[:, None] - np.log(n))
    chosen = set(apart.argmin(0).tolist())
    for i in np.argsort(apart.min(1)):
        if len(chosen) >= 3:
            break
        chosen.add(int(i))
    taken = rungs[sorted(chosen)]
    if len(taken) < len(n) or apart[sorted(chosen)].min(1).max() > math.log(2):
        ratios = ", ".join(f"{budget / FLOPS_PER_PARAM_TOKEN / size**2:.3g}" for size in taken)
        warnings.append(f"the rungs give {len(taken)} cells at {budget:.3g} FLOP, at D/N = {ratios}")
    return taken


def _typical_params(x, law):
    if not law.terms:
        raise InputError(
            f"wanted params to plan for {law.formula}, got none: only chinchilla and power_c have typical ones; set "
            f"params to values of {', '.join(law.parameters)}"
        )
    params = {"E": TYPICAL_LEVEL}
    for term in law.terms:
        exponent = TYPICAL_EXPONENTS.get(term.variable, TYPICAL_EXPONENT)
        centre = float(np.log(x[term.variable]).mean())
        params |= {term.coefficient: TYPICAL_TERM * math.exp(exponent * centre), term.exponent: exponent}
    return params


def _half_widths(coordinates, cov, reach):
    """Half widths (95 %) of the exponents, of E as a share, and for chinchilla of a, and of N* and loss at `reach`."""
    factor, law, params = half_width_factor(0.95), coordinates.law, coordinates.params()
    sd = factor * np.sqrt(np.diag(cov))
    out = {}
    for k, name in enumerate(law.parameters):
        if name == "E" and params["E"] > 0:
            out["E"] = sd[k] / params["E"]
        elif not coordinates.logged[k]:
            out[name] = sd[k]
    if law.name == "chinchilla":
        for name, quantity in allocation_quantities(params, reach).items():
            out[name] = factor * float(deviation(coordinates.gradient(quantity), cov))
    return out


def _promises(plan):
    """What the expected half widths promise, and what they do not: two lists of words."""
    limit = {"E": 0.2, "N*": math.log(2), "loss": 0.02}
    known, unknown = [], []
    for name, half in plan.expected.items():
        at = f" at {plan.reach:.3g} FLOP" if name in ("N*", "loss") else ""
        size = f"within a factor {math.exp(half):.2g}" if name == "N*" else f"+-{half:.2g}"
        size = f"+-{100 * half:.2g} %" if name in ("E", "loss") else size
        (known if half <= limit.get(name, 0.15) else unknown).append(f"{name}{at} {size}")
    largest = max(row["C"] for row in plan.cells)
    unknown.append(f"anything beyond {10 * largest:.3g} FLOP (10 times the largest budget)")
    sizes = _levels(np.log([row["N"] for row in plan.cells]))
    if sizes < 5:
        unknown.append(f"a bend of the law at small N ({sizes} sizes)")
    if plan.seeds == 1:
        unknown.append("the noise between seeds apart from what the law misses (one seed a cell)")
    return known, unknown

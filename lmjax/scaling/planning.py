"""Design of experiments: a grid of cells before any run, or the next cells that most sharpen a prediction.

Fisher information of rows with independent errors of standard deviation s_i in ln L:
    M = sum_i (d ln L_i / d q) (d ln L_i / d q)' / s_i^2,    cov(q) = price^2 M^-1
q are the parameters of the law (coefficients as ln), price the efficiency loss of Huber's criterion on normal errors.
Half widths are those of normal intervals, 1.96 standard deviations at 95 %.

A run at cell x with noise s adds j j' / s^2 to the information, j = d ln L / d q. With the covariance S of the fitted
parameters and the gradient g of the target, the variance g'Sg falls by (g'Sj)^2 / (s^2 + j'Sj): exact for a linear
law (Sherman and Morrison), a c-optimal step (Elfving 1952) for ours. Runs are added one by one, by two greedy rules:
the largest fall of ln variance per FLOP, and the largest fall of all; the sequence that ends with the narrower interval
is returned, which cannot be far worse than the best set (Leskovec et al. 2007, CELF).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.format import count as short
from lmjax.format import plural
from lmjax.scaling.engine import condition
from lmjax.scaling.identify import (
    TYPICAL_NOISE,
    WIDE_INTERVAL,
    count_distinct,
    examine,
    of_cells,
    sensitivity,
    typical_params,
)
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law, get_law, predict_loss
from lmjax.scaling.methods.outcome import table_text, warned
from lmjax.scaling.resample import half_width_factor
from lmjax.scaling.result import Fit

STEP = 1e-6  # of central differences: their error is about 1e-10 of a value of order one
GRID = 12  # values of N and of D in the default grid of candidates
REACH = 4.0  # the grid extends to this many times the largest fitted N and D
SIZES = (Column("N", text=short), Column("D", text=short))
FLOP = Column("C", "6 N D FLOP", "{:.3g}".format)
HELPS = 0.1  # share by which runs must narrow the interval to be worth proposing
BUDGETS = 60  # budgets that are tried where the given one is too small to help
FAR = 10.0  # times the largest fitted C, beyond which misfit of the law may exceed the interval


# ---- information ---------------------------------------------------------------------------------------------------


def price(noise: float, delta: float) -> float:
    """Ratio of the standard deviations of Huber's estimate and least squares under normal errors.

    price = sqrt(E psi^2) / E psi',  psi(z) = clip(z, -k, k),  k = delta / noise: 1 at large k, sqrt(pi/2) at 0.

    Example (delta = 1e-3 on noise of 0.5 %, and on none):
        >>> round(price(0.005, 1e-3), 3), price(0.0, 1e-3)
        (1.193, 1.0)
    """
    from scipy.special import ndtr

    if noise <= 0:
        return 1.0
    k = delta / noise
    inside = 2 * ndtr(k) - 1
    density = math.exp(-0.5 * k * k) / math.sqrt(2 * math.pi)
    square = inside - 2 * k * density + 2 * k * k * ndtr(-k)
    return float(math.sqrt(square) / inside)


def gradient(law: Law, params: Mapping[str, float], quantity: Callable[[Mapping[str, float]], float]) -> np.ndarray:
    """d quantity / d q by central differences, [K]; `quantity` takes parameters by name."""
    slopes = []
    for p in law.space:
        value = params[p.name]
        step = STEP * max(abs(math.log(value) if p.log else value), 1e-2)
        ends = [value * math.exp(move) if p.log else value + move for move in (step, -step)]
        above, below = (float(quantity({**params, p.name: end})) for end in ends)
        slopes.append((above - below) / (2 * step))
    return np.array(slopes)


def fit_covariance(fit: Fit, law: Law, params: Mapping[str, float], noise: float) -> tuple[np.ndarray, float]:
    """Covariance of q at the fitted rows [K, K], and the standard deviation that a row of mean weight counts with."""
    unit = noise * (price(noise, fit.delta) if fit.criterion == "huber_log" else 1.0)
    x = {name: fit.column(name) for name in law.variables}
    return covariance(sensitivity(law, params, x, fit.plain), unit / np.sqrt(fit.weights)), unit


def covariance(jacobian_IK: np.ndarray, noise_I) -> np.ndarray:
    """Covariance of q [K, K] from rows with independent errors of standard deviation noise_I.

    Raises:
        InputError: the rows do not determine the parameters.
    """
    rows_IK = jacobian_IK / np.broadcast_to(noise_I, len(jacobian_IK))[:, None]
    length_K = np.linalg.norm(rows_IK, axis=0)
    if len(rows_IK) < rows_IK.shape[1] or not (length_K > 0).all():
        raise InputError(f"expected rows that determine {rows_IK.shape[1]} parameters, got {len(rows_IK)} that do not")
    _, singular, vectors = np.linalg.svd(rows_IK / length_K, full_matrices=False)
    if singular[-1] < 1e-10 * singular[0]:
        raise InputError("the rows leave a combination of the parameters undetermined; vary N and D separately")
    whitened = vectors.T / singular / length_K[:, None]
    return whitened @ whitened.T


def deviation(gradient_K: np.ndarray, covariance_KK: np.ndarray) -> np.ndarray:
    """Standard deviation of quantities with these gradients [..., K]."""
    return np.sqrt(np.einsum("...i,ij,...j->...", gradient_K, covariance_KK, gradient_K))


def allocation_quantities(law: Law, params: Mapping[str, float], C: float) -> dict:
    """Functions of the parameters of a law with an optimum: a, "N*" as ln N*(C), "loss" as ln L.

    The cost of a small error of N* is of second order, so the loss is taken at the N* and D* of `params`.
    """
    here = law.optimum(params, C)
    return {
        "a": lambda p: law.optimum(p, C)["a"],
        "N*": lambda p: np.log(law.optimum(p, C)["N"]),
        "loss": lambda p: np.log(predict_loss(law, p, here["N"], here["D"])),
    }


# ---- a grid before any run -------------------------------------------------------------------------------------------


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
        """The plan as text: cells, cost, what it will identify and what it will not."""
        lines = [f"{len(self.cells)} cells x {self.seeds} seeds, {self.cost:.3g} FLOP, condition {self.condition:.3g}"]
        ratio = Column("tokens_per_param", "D/N", "{:.3g}".format)
        lines.append(table_text(self.cells, (FLOP, *SIZES, ratio)))
        if self.reasons:
            return "\n".join([*lines, *(f"cannot be fitted: {reason}" for reason in self.reasons)])
        known, unknown = _promises(self)
        lines.append(f"will identify (95 %, noise {100 * self.noise:g} %): {'; '.join(known) or 'nothing'}")
        lines.append(f"will not identify: {'; '.join(unknown)}")
        return warned(lines, self.warnings)


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
    """Proposes cells (N, D) that a law of N and D can be fitted to, and what they will identify.

    N = sqrt(C / 6 / r) and D = r N at each budget C, with the ratio r = D/N spread over tokens_per_param / spread to
    tokens_per_param * spread, so that N and D vary separately. Half widths come from the Fisher
    information of the cells.

    Args:
        budgets: compute of each isoFLOP slice in FLOP, C = 6 N D.
        rungs: sizes N that can be trained; those nearest to the ideal N are used, D = C / 6 N. None: any size.
        law: a law of N and D, or of C = 6 N D or M = D / N.
        noise: standard deviation of ln loss between seeds.
        params: assumed parameters of the law; None: the floor is half of the loss at the centre of the cells, each
            term a quarter; alpha 0.35, beta 0.30, of C 0.16 (only for a floor plus powers; other laws need params).
        tokens_per_param: the middle D/N.
        spread: the outermost D/N over the middle one, > 1.
        per_budget: cells of a budget, at least 3.
        seeds: runs of each cell.
        delta: of the Huber criterion that will be minimised.

    Raises:
        InputError: values out of range; fewer than 3 distinct rungs; a law of other variables, or one that
            holds at one N or one D.

    Example (four budgets, 20 runs):
        >>> plan = design([1e16, 4e16, 16e16, 64e16])
        >>> len(plan.cells), f"{plan.cost:.3g}", round(plan.expected["alpha"], 2), plan.reasons
        (20, '4.25e+18', 0.05, ())
    """
    law = get_law(law)
    of_cells(law, 1.0, 1.0)
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
    x = of_cells(law, n, d)
    found = examine(x, law)
    plan = Plan(
        law=law.name,
        cells=tuple(cells),
        seeds=seeds,
        noise=noise,
        params={},
        condition=found.condition,
        expected={},
        reach=10 * float(budgets[-1]),
        cost=FLOPS_PER_PARAM_TOKEN * float((n * d).sum()),
        reasons=found.reasons,
        warnings=(*warnings, *found.warnings),
    )
    if found.reasons:
        return plan
    params = dict(params) if params else typical_params(x, law)
    missing = [name for name in law.parameters if name not in params]
    if missing:
        raise InputError(f"expected values of {', '.join(law.parameters)} for {law.formula}, got no {missing[0]}")
    jacobian = sensitivity(law, params, x)
    expected = _half_widths(law, params, covariance(jacobian, noise * price(noise, delta)), plan.reach)
    return replace(plan, params=params, condition=condition(jacobian), expected=expected)


def _checked_budgets(budgets, noise, tokens_per_param, spread, per_budget, seeds, delta):
    budgets = np.unique(np.asarray(budgets, float))
    if not (len(budgets) and np.isfinite(budgets).all() and (budgets > 0).all()):
        raise InputError(f"expected budgets in FLOP, finite and above 0, got {budgets.tolist()}")
    if not (noise > 0 and tokens_per_param > 0 and spread > 1 and per_budget >= 3 and seeds >= 1 and delta > 0):
        raise InputError(
            "expected noise > 0, tokens_per_param > 0, spread > 1, per_budget >= 3, seeds >= 1, delta > 0, got "
            f"{noise}, {tokens_per_param}, {spread}, {per_budget}, {seeds}, {delta}"
        )
    return budgets


def _nearest_rungs(n, rungs, budget, warnings):
    """The rungs nearest to the sizes n, each once; fewer than 3 are filled up with the next nearest."""
    rungs = np.unique(np.asarray(rungs, float))
    if len(rungs) < 3 or not (rungs > 0).all():
        raise InputError(f"expected at least 3 different sizes as rungs, got {rungs.tolist()}")
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


def _half_widths(law, params, cov, reach):
    """Half widths (95 %) of exponents, of E as a share, and of a, N* and loss at `reach` where there is an optimum."""
    half = half_width_factor(0.95) * np.sqrt(np.diag(cov))
    out = {p.name: float(half[k]) for k, p in enumerate(law.space) if not p.log}
    if "E" in out and params["E"] > 0:
        out["E"] /= params["E"]
    for name, quantity in allocation_quantities(law, params, reach).items() if law.optimum else ():
        out[name] = half_width_factor(0.95) * float(deviation(gradient(law, params, quantity), cov))
    return out


def _promises(plan):
    """What the expected half widths promise, and what they do not: two lists of phrases."""
    limit = {"E": 0.2, "N*": math.log(2), "loss": 0.02}
    known, unknown = [], []
    for name, half in plan.expected.items():
        at = f" at {plan.reach:.3g} FLOP" if name in ("N*", "loss") else ""
        size = f"within a factor {math.exp(half):.2g}" if name == "N*" else f"+-{half:.2g}"
        size = f"+-{100 * half:.2g} %" if name in ("E", "loss") else size
        (known if half <= limit.get(name, WIDE_INTERVAL) else unknown).append(f"{name}{at} {size}")
    largest = max(row["C"] for row in plan.cells)
    unknown.append(f"anything beyond {10 * largest:.3g} FLOP (10 times the largest budget)")
    sizes = count_distinct([row["N"] for row in plan.cells])
    if sizes < 5:
        unknown.append(f"curvature of the law at small N ({sizes} sizes)")
    if plan.seeds == 1:
        unknown.append("the noise between seeds separately from misfit of the law (one seed per cell)")
    return known, unknown


# ---- the next runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NextRuns:
    """What `next_runs` proposes.

    target: what is predicted. before, after: half width of its interval (a share of the loss or of N*), now and
        expected with all of `runs`. runs: dicts of N, D, C and the half width `after` this run and those before it.
    budget, spent: FLOP. warnings: what these runs do not improve.
    enough: the least budget in FLOP that narrows the interval by HELPS: `budget` if it does, infinite if none of the
        candidates can. Where `enough` is larger than the budget, nothing affordable helps and `text` says so.
    """

    target: str
    confidence: float
    before: float
    after: float
    runs: tuple[dict, ...]
    budget: float
    spent: float
    warnings: tuple[str, ...] = ()
    enough: float = math.nan

    def text(self) -> str:
        """The proposal as text, or that nothing affordable helps and what would."""
        runs = plural(len(self.runs), "more run")
        lines = [
            f"{self.target}: {self.confidence:.0%} half width of the law alone, without the noise of a run, now "
            f"{100 * self.before:.2g} %, expected {100 * self.after:.2g} % with {runs} ({self.spent:.3g} of "
            f"{self.budget:.3g} FLOP)"
        ]
        if self.enough > self.budget:
            remedy = f"about {self.enough:.2g} FLOP would narrow it by {100 * HELPS:g} %"
            if math.isinf(self.enough):
                remedy = "at no budget would these candidates: aim at a target closer to the fitted runs"
            lines.append(f"no runs within this budget narrow the interval by {100 * HELPS:g} % or more; {remedy}")
            return warned(lines, self.warnings)
        lines.append("in this order; the last column is the half width expected after that run and all above it:")
        after = Column("after", "half width", lambda half: f"{100 * half:.2g} %")
        lines.append(table_text(self.runs, (*SIZES, FLOP, after)))
        return warned(lines, self.warnings)


def next_runs(
    fit: Fit,
    budget: float,
    target: tuple[float, float] | float,
    candidates: Sequence[tuple[float, float]] | None = None,
    count: int = 4,
) -> NextRuns:
    """Returns the cells that most shrink the interval of a given prediction.

    Args:
        fit: a usable fit of a law of N, D or C, by a criterion of ln loss.
        budget: compute of all new runs together in FLOP, C = 6 N D.
        target: (N, D) for the loss there, or a budget C in FLOP for N*(C) (laws with an optimum).
        candidates: cells (N, D) that could be run; None: a 12 x 12 grid from the smallest fitted N and D to 4 times
            the largest, with D/N inside 4 times the fitted range.
        count: maximum number of runs; a cell may be proposed more than once.

    Returns:
        NextRuns; half widths are those of the fit's own resamples, if it has any, times the ratio that the
        information predicts.

    Raises:
        InputError: a refused fit, a law with other variables, a fit of the plain loss, no candidate within the budget.
    """
    law = _planned_law(fit)
    if not (budget > 0 and math.isfinite(budget) and count >= 1):
        raise InputError(f"expected budget > 0 FLOP and count >= 1, got {budget} and {count}")
    # at E = 0, derivatives are those of a free E
    params = {name: max(value, 1e-12) if name == "E" else value for name, value in fit.params.items()}
    cells, cost = _candidates(fit, budget, candidates)
    cov, unit = fit_covariance(fit, law, params, _noise(fit))
    slope, words, interval, aim = _target(fit, law, params, target)
    start = float(deviation(slope, cov))
    before = (
        float(np.log(interval[1] / interval[0]) / 2) if fit.resamples else half_width_factor(fit.confidence) * start
    )
    rows_SK = sensitivity(law, params, of_cells(law, *cells.T))

    def best(flop):
        """The runs that flop buys, and the standard deviation of the target after each."""
        sequences = [_greedy(cov, slope, rows_SK, unit, cost, flop, count, rule) for rule in ("flop", "run")]
        return min(sequences, key=lambda pair: pair[1][-1])

    chosen, ends = best(budget)
    larger = np.geomspace(budget, max(count * cost.max(), budget), BUDGETS)
    enough = next((float(flop) for flop in larger if best(flop)[1][-1] <= (1 - HELPS) * start), math.inf)
    runs = [
        {"N": float(cells[i, 0]), "D": float(cells[i, 1]), "C": float(cost[i]), "after": before * end / start}
        for i, end in zip(chosen, ends, strict=True)
    ]
    far = aim / fit.column("C").max()
    warning = (
        f"the target is at {far:.3g} times the largest fitted compute; beyond {FAR:g} times, the interval does not "
        "cover misfit of the law"
    )
    return NextRuns(
        target=words,
        confidence=fit.confidence,
        before=before,
        after=runs[-1]["after"],
        runs=tuple(runs),
        budget=float(budget),
        spent=float(sum(row["C"] for row in runs)),
        warnings=(warning,) * bool(far > FAR),
        enough=enough,
    )


def _planned_law(fit):
    """The law of a fit to which runs can be added; InputError for any other fit."""
    law = get_law(fit.usable().law)
    if not set(law.variables) <= {"N", "D", "C", "M"} or law.target != "loss":
        raise InputError(f"expected a law that predicts the loss from N, D or C, got {fit.formula}")
    if fit.plain:
        raise InputError(
            f"planning runs needs a fit of ln loss, got criterion {fit.criterion}, whose noise is of the loss "
            "itself; fit with criterion huber_log or squared_log"
        )
    if not np.isfinite([fit.column(name) for name in "NDC"]).all():
        raise InputError(
            "expected N, D and C in every fitted row to plan runs (N, D), got rows without; add columns N and D"
        )
    return law


def _noise(fit):
    """Standard deviation of ln loss around the law: of the resamples, else of the residuals."""
    squares = (fit.column("residual") ** 2 * fit.weights).sum()
    spare = max(len(fit.points) - len(get_law(fit.law).parameters), 1)
    noise = fit.noise_sd if math.isfinite(fit.noise_sd) else float(np.sqrt(squares / spare))
    if not noise > 1e-12:
        raise InputError("the fit has no noise: its predictions have no interval to shrink")
    return noise


def _candidates(fit, budget, given):
    """Cells [S, 2] and their FLOP [S], at least one within the budget."""
    if given is None:
        n, d = fit.column("N"), fit.column("D")
        axis_n, axis_d = (np.geomspace(x.min(), REACH * x.max(), GRID) for x in (n, d))
        cells = np.array([(a, b) for a in axis_n for b in axis_d])
        ratio = cells[:, 1] / cells[:, 0]
        cells = cells[(ratio >= (d / n).min() / REACH) & (ratio <= (d / n).max() * REACH)]
    else:
        cells = np.asarray(given, float).reshape(-1, 2)
        if not (len(cells) and np.isfinite(cells).all() and (cells > 0).all()):
            raise InputError(f"expected candidates as pairs (N, D) above 0, got {given}")
    cost = FLOPS_PER_PARAM_TOKEN * cells[:, 0] * cells[:, 1]
    if not (cost <= budget).any():
        raise InputError(
            f"expected a candidate of at most {budget:.3g} FLOP, the cheapest of {len(cells)} costs {cost.min():.3g}; "
            "set a larger budget or name smaller candidates"
        )
    return cells, cost


def _target(fit, law, params, target):
    """Gradient of the target [K], its name, its interval now (None without resamples) and its compute in FLOP."""
    if np.shape(target) == (2,):
        n, d = map(float, target)
        if not (n > 0 and d > 0):
            raise InputError(f"expected a target (N, D) above 0, got {target}")
        slope = sensitivity(law, params, of_cells(law, n, d))[0]
        known = {name: v for name, v in (("N", n), ("D", d)) if name in law.variables} or {"N": n, "D": d}
        ends = fit.predict(**known, new_run=False) if fit.resamples else None
        interval = (ends.low, ends.high) if ends else None
        return slope, f"the loss at N {short(n)}, D {short(d)}", interval, FLOPS_PER_PARAM_TOKEN * n * d
    if np.ndim(target) or not law.optimum or not target > 0:
        raise InputError(
            f"expected a target (N, D), or a budget C > 0 and a fit of chinchilla for N*(C), got {target!r}"
        )
    C = float(target)
    slope = gradient(law, params, allocation_quantities(law, fit.params, C)["N*"])
    best = fit.allocate(C) if fit.resamples else None
    return slope, f"N* at {C:.3g} FLOP", (best["N_low"], best["N_high"]) if best else None, C


def _after(cov, slope_K, rows_SK, noise):
    """Standard deviation of the target with each candidate added alone, [S]."""
    lever_SK = rows_SK @ cov
    fall = (lever_SK @ slope_K) ** 2 / (noise**2 + np.einsum("sk,sk->s", lever_SK, rows_SK))
    return np.sqrt(np.maximum(slope_K @ cov @ slope_K - fall, 0.0))


def _greedy(cov, slope_K, rows_SK, noise, cost, budget, count, rule):
    """Adds candidates one by one; returns their indices and the standard deviation of the target after each."""
    chosen, ends = [], []
    while len(chosen) < count:
        possible = np.flatnonzero(cost <= budget)
        if not possible.size:
            break
        now = float(deviation(slope_K, cov))
        after = _after(cov, slope_K, rows_SK[possible], noise)
        fall = np.log(now) - np.log(np.maximum(after, 1e-300))
        best = int(np.argmax(fall / cost[possible] if rule == "flop" else fall))
        i = int(possible[best])
        lever = cov @ rows_SK[i]
        cov = cov - np.outer(lever, lever) / (noise**2 + rows_SK[i] @ lever)
        budget -= cost[i]
        chosen.append(i)
        ends.append(float(after[best]))
    return chosen, ends

"""Fits a law to a table: refuses what cannot be identified, minimises exactly, refits for intervals.

    fit(source)   read_table -> design -> starts -> solver -> checks -> bootstrap -> Fit -> check_held_out

Method: Chinchilla's approach 3 (arXiv:2203.15556), the sum of Huber losses of log residuals, delta = 1e-3.
"""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling import bootstrap as resampling
from lmjax.scaling import solver
from lmjax.scaling.design import MAX_CONDITION, condition_number, examine, identifiable
from lmjax.scaling.laws import Law, get_law
from lmjax.scaling.predict import allocate, check_held_out, predict
from lmjax.scaling.render import render_fit
from lmjax.scaling.result import Fit
from lmjax.scaling.starts import starting_points
from lmjax.scaling.table import FitTable, data_hash, read_table

__all__ = [
    "Fit",
    "allocate",
    "check_held_out",
    "fit",
    "identifiable",
    "predict",
    "render_fit",
]

AGREE = 1e-8  # starts whose objective is this close (relative) to the best found the same minimum
STARTS = 12
OBJECTIVES = ("huber_log", "squared_log", "squared")
DIGITS = 9  # significant digits kept of each refit's parameters
POINT_COLUMNS = ["run", "N", "D", "C", "loss", "weight"]


def fit(
    source,
    law: str | Law = "chinchilla",
    held_out=None,
    n: str = "total",
    c: str = "6nd",
    objective: str = "huber_log",
    delta: float = 1e-3,
    bootstrap: int = 1000,
    method: str = "auto",
    level: float = 0.95,
    seed: int = 0,
) -> Fit:
    """Fits a law to run records or any table, and predicts the rows that were held out.

    min over the parameters of sum_i w_i Huber_delta(ln L(x_i) - ln loss_i), positive parameters and E >= 0.

    Args:
        source: a FitTable, or what `read_table` takes: a pandas frame, .csv, .parquet, .jsonl.
        law: a name of lmjax.scaling.laws.LAWS. A law in N alone (or D alone) is fitted at the largest level of the
            other that has enough rows.
        held_out: labels, or a compute in FLOP from which on rows are held out; None: the column held_out.
        n: which count is N: total | non_embedding | matmul_head.
        c: which count is C: 6nd | 6nd_attention | exact.
        objective: huber_log | squared_log | squared (of the plain loss).
        delta: Huber's delta in ln loss; 1e-3 is close to least absolute deviations.
        bootstrap: refits behind the intervals; 0 leaves them out.
        method: auto | residual | rows | configurations | wild_cluster, see lmjax/scaling/bootstrap.py.
        level: of the intervals.
        seed: of the refits.

    Returns:
        Fit; `refused` where the table cannot identify the law, with `reasons`.

    Raises:
        InputError: missing columns, NaN losses, an unknown law or option.

    Example (a surface without noise comes back exactly):
        >>> import pandas
        >>> from lmjax.scaling.laws import CHINCHILLA, predict_loss
        >>> N, D = (x.ravel() for x in np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8]))
        >>> planted = dict(E=1.7, A=400.0, alpha=0.34, B=1500.0, beta=0.37)
        >>> rows = pandas.DataFrame({"N": N, "D": D, "loss": predict_loss(CHINCHILLA, planted, N, D)})
        >>> found = fit(rows, bootstrap=0)
        >>> {name: round(value, 6) for name, value in found.params.items()}
        {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 1500.0, 'beta': 0.37}
    """
    law = get_law(law)
    if not delta > 0 or not 0 < level < 1 or bootstrap < 0:
        raise InputError(f"wanted delta > 0, 0 < level < 1, bootstrap >= 0, got {delta}, {level}, {bootstrap}")
    if objective not in OBJECTIVES:
        raise InputError(f"wanted an objective, got {objective!r}{nearest(objective, OBJECTIVES)}")
    table = source if isinstance(source, FitTable) else read_table(source, n, c, held_out)
    if law.variables in (("N",), ("D",)):
        (other,) = {"N", "D"} - set(law.variables)
        table = table.at_largest(other, len(law.parameters) + 1)
    found = _fit_points(table, law, objective, delta, bootstrap, level, method, seed)
    if not found.refused and len(table.held_out):
        found = replace(found, held_out=tuple(check_held_out(found, table.held_out)))
    return replace(found, hash=_hash(found))


def _fit_points(table, law, objective, delta, bootstrap, level, method, seed):
    """Fits the points of a table: design, optimum, verdict, intervals."""
    points = table.points
    fit = Fit(
        law.name,
        law.formula,
        "converged",
        law.variables,
        law.target,
        level=level,
        method=method,
        seed=seed,
        objective_name=objective,
        delta=delta,
        **_facts(table, law),
    )
    status, reasons = _refusals(points, law)
    if reasons:
        return replace(fit, status=status, reasons=tuple(reasons))
    scaled = Scaled(points, law)
    fit = replace(fit, method=resampling.choose(method, len(np.unique(scaled.groups_I))))
    fit, phi_K = _optimum(fit, scaled, law)
    if fit.refused or not bootstrap:
        return fit
    return _intervals(fit, scaled, law, phi_K, bootstrap)


def _hash(fit):
    """First 12 digits of the sha256 over law, conventions, objective and data."""
    parts = [fit.law, fit.formula, sorted(fit.conventions.items()), fit.objective_name, fit.delta, fit.data_hash]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _facts(table, law):
    """What a Fit keeps of its table."""
    return {
        "points": _rows(table.points, list(dict.fromkeys([*POINT_COLUMNS, *law.variables]))),
        "excluded": _rows(table.excluded, [*POINT_COLUMNS, "status", "reason"]),
        "conventions": table.conventions,
        "notes": table.notes,
        "source": table.source,
        "data_hash": data_hash(table.points),
    }


class Scaled:
    """A table in the solver's units: u [J, I], y [I], w [I] and the way back to parameters."""

    def __init__(self, points, law: Law):
        self.law = law
        log_x_JI = np.log(points[list(law.variables)].to_numpy(np.float64).T)
        log_loss_I = np.log(points["loss"].to_numpy(np.float64))
        self.centre_J, self.mean = log_x_JI.mean(1), log_loss_I.mean()
        self.u_JI, self.y_I = log_x_JI - self.centre_J[:, None], log_loss_I - self.mean
        self.w_I = points["weight"].to_numpy(np.float64)
        self.groups_I = np.unique(points[["N", "D"]].to_numpy(), axis=0, return_inverse=True)[1].ravel()

    def logs(self, phi_PK: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters with the coefficients as ln: {"E": [P], "ln A": [P], "alpha": [P], ...}."""
        out = {"E": phi_PK[:, 0] * math.exp(self.mean)}
        for j, term in enumerate(self.law.terms):
            log_term, exponent = phi_PK[:, 1 + 2 * j], phi_PK[:, 2 + 2 * j]
            out[f"ln {term.coefficient}"] = log_term + exponent * self.centre_J[j] + self.mean
            out[term.exponent] = exponent
        return out

    def phi(self, params: dict[str, float]) -> np.ndarray:
        """The solver's coordinates [K] of parameters."""
        phi = [params["E"] * math.exp(-self.mean)]
        for j, term in enumerate(self.law.terms):
            exponent = params[term.exponent]
            phi += [math.log(params[term.coefficient]) - exponent * self.centre_J[j] - self.mean, exponent]
        return np.array(phi)


def _rows(frame, columns):
    kept = [c for c in columns if c in frame]
    return tuple(
        {k: (v.item() if hasattr(v, "item") else v) for k, v in row.items()} for row in frame[kept].to_dict("records")
    )


def _refusals(points, law):
    """(status, reasons) why no fit is possible, known before any fit."""
    values = {name: points[name].to_numpy(np.float64) for name in dict.fromkeys(("loss", *law.variables))}
    bad = [name for name, v in values.items() if not (np.isfinite(v).all() and (v > 0).all())]
    if bad:
        raise InputError(f"wanted positive numbers in {', '.join(bad)} for {law.formula}")
    if not {"N", "D"} >= set(law.variables):
        return "converged", []
    reasons = list(examine(values, law).reasons)
    return ("too_few_points" if len(points) <= len(law.parameters) else "not_identified"), reasons


def _optimum(fit, scaled, law):
    """Minimises from the best starts of the grid and judges the result."""
    u, y, w = scaled.u_JI, scaled.y_I, scaled.w_I
    begin = starting_points(u, y, w, fit.delta, keep=STARTS)
    found = solver.minimise(begin, u, y[None], w[None], fit.delta)
    best = int(found.objective.argmin())
    if not found.converged[best]:  # rare: noise far above delta, where the objective is all kinks
        near = found.phi[np.argsort(found.objective)[:3]]
        found = solver.minimise(near, u, y[None], w[None], fit.delta, max_iterations=3000, stages=False)
        best = int(found.objective.argmin())
    phi_K, value = found.phi[best], float(found.objective[best])
    gap, gradient = solver.certificate(phi_K[None], u, y[None], w[None], fit.delta)
    agree = int((found.objective <= value * (1 + AGREE) + solver.NOISE_FREE).sum())
    logs = {name: float(v[0]) for name, v in scaled.logs(phi_K[None]).items()}
    params = {name.removeprefix("ln "): math.exp(v) if name.startswith("ln ") else v for name, v in logs.items()}
    residual_I = y - solver.model(phi_K[None], u)[0]
    for row, r in zip(fit.points, residual_I, strict=True):
        row["predicted"], row["residual"] = float(row["loss"] * math.exp(-r)), float(r)
    jacobian = solver.jacobian(phi_K[None], u)[0].T * np.sqrt(w)[:, None]
    fit = replace(
        fit,
        params=params,
        derived=law.derived(params),
        objective=value,
        gap=float(gap[0]),
        gradient=float(gradient[0]),
        condition=condition_number(jacobian),
        converged=bool(found.converged[best]),
        iterations=found.iterations,
        starts=len(begin),
        starts_agree=agree,
        optimum_is_start=bool((np.abs(begin - phi_K).max(1) < 1e-12).any()),
        at_bounds=_at_bounds(phi_K, law),
        tail_share=float(np.mean(np.abs(residual_I) > fit.delta)),
    )
    status, reasons, warnings = _verdict(fit, law)
    if reasons:
        return replace(fit, status=status, reasons=tuple(reasons), params={}, derived={}), phi_K
    return replace(fit, status=status, warnings=tuple(warnings)), phi_K


def _at_bounds(phi_K, law):
    low, high = solver.bounds(len(law.terms))
    return tuple(name for name, v, a, b in zip(law.parameters, phi_K, low, high, strict=True) if v <= a or v >= b)


def _verdict(fit, law):
    """(status, why the optimum is no result, what to beware of)."""
    status, reasons, warnings = "at_bound" if fit.at_bounds else "converged", [], []
    for term in law.terms:
        if term.exponent in fit.at_bounds:
            low, high = solver.EXPONENT_BOUNDS
            reasons.append(
                f"{term.exponent} ended at the bound {low if fit.params[term.exponent] < 1 else high}: "
                f"the losses show no power of {term.variable}"
            )
        elif term.coefficient in fit.at_bounds:
            reasons.append(f"{term.coefficient} vanished: the losses do not fall with {term.variable}")
    if not reasons and fit.condition > MAX_CONDITION:
        status = "not_identified"
        reasons.append(f"condition number {fit.condition:.1e} of the Jacobian: parameters cannot be told apart")
    if not (fit.converged or fit.gap < 1e-10):
        status = status if reasons else "disagreeing_starts"
        reasons.append(f"the solver did not reach a minimum (relative gap {fit.gap:.1e}); please report the table")
    if "E" in fit.at_bounds:
        warnings.append("E = 0: the losses show no floor; exponents are lower than with any floor above 0")
    if fit.optimum_is_start and fit.gradient > 1e-6:
        status = status if reasons else "disagreeing_starts"
        reasons.append("the optimum is a starting point with a gradient: the solver did not move")
    if fit.starts_agree == 1 and fit.starts > 1:
        warnings.append("only one of the starts reached the best objective: another minimum is nearly as deep")
    return status, reasons, warnings


def _intervals(fit, scaled, law, phi_K, count):
    """Intervals from refits; keeps the refits for predictions."""
    solution, scale, noise = resampling.refit(
        phi_K, scaled.u_JI, scaled.y_I, scaled.w_I, scaled.groups_I, fit.delta, fit.method, count, fit.seed
    )
    settled = solution.converged
    # refits that did not settle stay: they wander where the resampled table says little, and leaving them out
    # would make the intervals too narrow
    logs = {name: _digits(v) for name, v in scaled.logs(solution.phi).items()}
    draws = {n.removeprefix("ln "): np.exp(v) if n.startswith("ln ") else v for n, v in logs.items()}
    draws |= law.derived(draws)
    here, corrected = {**fit.params, **fit.derived}, resampling.is_corrected(fit.method, draws["E"])
    ends = {name: resampling.interval(v, here[name], fit.level, corrected) for name, v in draws.items()}
    intervals = {name: tuple(map(float, pair)) for name, pair in ends.items()}
    low, high = solver.bounds(len(law.terms))
    at_bound = ((solution.phi[:, 1:] <= low[1:]) | (solution.phi[:, 1:] >= high[1:])).any(1)
    warnings = list(fit.warnings)
    if (~settled).mean() > 0.01:
        warnings.append(f"{(~settled).sum()} of {count} refits did not settle in a minimum: the intervals are rough")
    if at_bound.mean() > 0.025:
        warnings.append(
            f"{100 * at_bound.mean():.0f} % of the refits end at a bound of an exponent: the interval is cut there"
        )
    if fit.params["E"] > 0 and intervals["E"][0] <= 0:
        warnings.append("the interval of E reaches 0: the table does not show a floor")
    for term in law.terms:
        a, b = intervals[term.exponent]
        if b - a > fit.params[term.exponent]:
            warnings.append(f"{term.exponent} is poorly known: its {fit.level:.0%} interval is as wide as itself")
    spread = np.array([v for v in logs.values()])
    usable = spread.std(1) > 0
    correlation = np.eye(len(spread))
    if usable.all() and len(spread[0]) > 1:
        correlation = np.corrcoef(spread)
    return replace(
        fit,
        warnings=tuple(warnings),
        intervals=intervals,
        refits=count,
        refits_failed=int((~settled).sum()),
        noise_sd=noise.sd,
        correlation_names=tuple(logs),
        correlation=tuple(tuple(float(x) for x in row) for row in np.round(correlation, 6)),
        draws={name: tuple(v.tolist()) for name, v in logs.items()},
        noise_scale=tuple(_digits(scale).tolist()),
        noise_pool=tuple(_digits(noise.pool).tolist()),
        noise_kernel=float(noise.kernel),
    )


def _digits(x):
    """Rounds to DIGITS significant digits, so that what is kept in fit.json is exactly what was used."""
    x = np.asarray(x, np.float64)
    size = np.where(x == 0, 1.0, np.abs(x))
    unit = 10.0 ** (DIGITS - 1 - np.floor(np.log10(size)))
    return np.round(x * unit) / unit

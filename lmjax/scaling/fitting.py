"""Fits a law to a table: refuses what cannot be identified, minimises exactly, resamples for intervals.

    fit(source)   read_table -> examine -> engine -> judge -> resample -> Fit -> check_held_out -> fit_warnings

Method: Chinchilla's approach 3 (arXiv:2203.15556), the sum of Huber losses of log residuals, delta = 1e-3.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling import engine, uncertainty
from lmjax.scaling import resample as resampling
from lmjax.scaling.audit import fit_warnings
from lmjax.scaling.identify import examine, judge
from lmjax.scaling.laws import Law, registered
from lmjax.scaling.result import Fit
from lmjax.scaling.table import as_table, data_hash, groups

BETWEEN = np.arange(1, 12) / 12  # points between two minima where a barrier is looked for
POINT_COLUMNS = ["run", "N", "D", "C", "loss", "weight"]


def fit(
    source,
    law: str | Law = "chinchilla",
    *,
    criterion: str = "huber_log",
    delta: float = 1e-3,
    resamples: int = 1000,
    bootstrap: str = "auto",
    level: float = 0.95,
    seed: int = 0,
    profiles: bool = True,
    n: str = "total",
    c: str = "auto",
    held_out: Sequence[str] | float | None = None,
    loss: str = "loss",
    units: Mapping[str, float] | None = None,
    allow_incomplete: bool = False,
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, object] | None = None,
    allow: Sequence[str] = (),
) -> Fit:
    """Fits a law to run records or any table, and predicts the rows that were held out.

    min over the parameters of sum_i w_i Huber_delta(ln L(x_i) - ln loss_i), positive parameters and E >= 0.

    Args:
        source: a FitTable, or what `read_table` takes: a pandas frame, .csv, .parquet, .jsonl.
        law: a name of lmjax.scaling.laws.LAWS. A law in N alone (or D alone) is fitted at the largest value of the
            other that has enough rows.
        criterion: huber_log | squared_log | squared (of the plain loss; always used for shares).
        delta: Huber's delta in ln loss; 1e-3 is close to least absolute deviations.
        resamples: number of bootstrap resamples for the intervals; 0 computes none.
        bootstrap: scheme auto | residual | rows | configurations | wild_cluster, see lmjax/scaling/resample.py.
        level: confidence level of the intervals.
        seed: random seed of the resamples.
        profiles: also compute profile-likelihood intervals and the influence of each row (needs resamples).
        n, c, held_out, loss, units, allow_incomplete, columns, where, allow: as in `read_table`, for a source that is
            not a FitTable.

    Returns:
        Fit; `refused`, with `reasons`, if the table cannot identify the law.

    Raises:
        InputError: missing columns, NaN losses, rows whose settings differ, an unknown law or option, a law that is
            not in LAWS.

    Example (a noise-free surface is recovered exactly):
        >>> import pandas
        >>> from lmjax.scaling.laws import CHINCHILLA, predict_loss
        >>> N, D = (x.ravel() for x in np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8]))
        >>> planted = dict(E=1.7, A=400.0, alpha=0.34, B=1500.0, beta=0.37)
        >>> rows = pandas.DataFrame({"N": N, "D": D, "loss": predict_loss(CHINCHILLA, planted, N, D)})
        >>> found = fit(rows, resamples=0)
        >>> {name: round(value, 6) for name, value in found.params.items()}
        {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 1500.0, 'beta': 0.37}
    """
    law = registered(law)
    if not delta > 0 or not 0 < level < 1 or not (isinstance(resamples, int) and resamples >= 0):
        raise InputError(f"expected delta > 0, 0 < level < 1, resamples >= 0, got {delta}, {level}, {resamples!r}")
    if criterion not in engine.CRITERIA:
        raise InputError(f"expected a fit criterion, got {criterion!r}{nearest(criterion, engine.CRITERIA)}")
    reading = {"n": n, "c": c, "held_out": held_out, "loss": loss, "units": units, "columns": columns, "where": where}
    reading |= {"allow_incomplete": allow_incomplete, "allow": allow}
    options = {"criterion": criterion, "delta": delta, "level": level, "bootstrap": bootstrap, "seed": seed}
    table = as_table(source, law, **reading)
    if law.variables in (("N",), ("D",)):
        (other,) = {"N", "D"} - set(law.variables)
        table = table.at_largest(other, len(law.parameters) + 1)
    if criterion == "huber_log" and law.target == "share":
        options["criterion"] = "squared"
    resampling.choose(bootstrap, 1)
    found = _fit_points(table, law, options, resamples, profiles)
    if not found.refused and len(table.held_out):
        found = replace(found, held_out=tuple(found.check_held_out(table.held_out)))
    warnings = (*found.warnings, *fit_warnings(found))
    return replace(found, warnings=warnings, hash=_hash(found))


def fit_groups(
    source,
    by: str | Sequence[str],
    law: str | Law = "chinchilla",
    *,
    where: Mapping[str, object] | None = None,
    **options,
) -> dict[str, Fit]:
    """Fits one law to each group of rows that agree in some settings.

    Args:
        source: what `read_table` takes.
        by: settings, such as "family" or ["optimizer.name", "data.mode"].
        law: as in `fit`.
        where: only rows with these values.
        **options: other arguments of `fit`.

    Returns:
        {values of the settings: Fit}, in the order of the table.

    Example:
        >>> import pandas
        >>> rows = pandas.DataFrame({"family": ["a", "b"], "N": 1e6, "D": [1e8, 2e8], "loss": 3.0})
        >>> [(family, one.status) for family, one in fit_groups(rows, by="family").items()]
        [('a', 'too_few_points'), ('b', 'too_few_points')]
    """
    return {
        label: fit(source, law, where={**(where or {}), **group}, **options)
        for label, group in groups(source, by, where).items()
    }


def _fit_points(table, law, options, resamples, profiles):
    """Fits the points of a table: design, optimum, verdict, intervals."""
    points = table.points
    fit = Fit(law.name, law.formula, "converged", law.variables, law.target, **options, **_facts(table, law))
    status, reasons = _refusals(points, law)
    if reasons:
        return replace(fit, status=status, reasons=tuple(reasons))
    task = engine.problem_of_table(points, law, fit.criterion, fit.delta)
    distinct = int(task.groups_I.max()) + 1
    fit = replace(fit, bootstrap=resampling.choose(fit.bootstrap, distinct, len(law.parameters)))
    best = task.optimum()
    fit = _judged(fit, task, best)
    if fit.refused or not resamples:
        return fit
    fit = _intervals(replace(fit, resamples=resamples), task, best)
    if profiles:
        fit = replace(fit, profiles=uncertainty.profiles(task, best, fit.resampled().noise, fit.level))
        largest = {row["run"]: row["largest"] for row in fit.influence()}
        for row in fit.points:
            row["influence"] = largest.get(row["run"], math.nan)
    return fit


def _hash(fit):
    """First 12 digits of the sha256 over law, conventions, criterion and data."""
    parts = [fit.formula, sorted(fit.conventions.items()), fit.criterion, fit.delta, fit.data_hash]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _facts(table, law):
    """The fields of a Fit that come from its table."""
    return {
        "points": _rows(table.points, list(dict.fromkeys([*POINT_COLUMNS, *law.variables]))),
        "excluded": _rows(table.excluded, [*POINT_COLUMNS, "status", "reason"]),
        "conventions": table.conventions,
        "notes": table.notes,
        "source": table.source,
        "data_hash": data_hash(table.points, law.variables),
    }


def _rows(frame, columns):
    kept = [c for c in columns if c in frame]
    values = zip(*(frame[c].tolist() for c in kept), strict=True)
    return tuple(dict(zip(kept, row, strict=True)) for row in values)


def _refusals(points, law):
    """(status, reasons to refuse) known before any fit; no reasons if a fit is possible."""
    missing = [name for name in law.variables if name not in points]
    if missing:
        raise InputError(f"expected columns {', '.join(law.variables)} for {law.formula}, got no {', '.join(missing)}")
    values = {name: points[name].to_numpy(np.float64) for name in dict.fromkeys(("loss", *law.variables))}
    bad = law.out_of_range(values)
    if bad and not (bad == ["loss"] and law.target == "share"):
        raise InputError(f"expected positive numbers in {', '.join(bad)} for {law.formula}")
    status = "too_few_points" if len(points) <= len(law.parameters) else "not_identified"
    return status, list(examine({name: values[name] for name in law.variables}, law).reasons)


def _judged(fit, task, best):
    """The optimum with its diagnostics, and its parameters unless it is refused."""
    law = task.law
    predicted = task.predicted(best.phi)
    for row, value, r in zip(fit.points, predicted, best.residual, strict=True):
        row["predicted"], row["residual"] = float(value), float(r)
    values = {name: float(v[0]) for name, v in task.natural(best.phi[None]).items()}
    params = {name: values.pop(name) for name in law.parameters}
    status, reasons, warnings = judge(law, best)
    if not reasons and best.is_start and best.gradient > 1e-6:
        status, reasons = (
            "disagreeing_starts",
            ["the optimum is a starting point where the gradient is not 0: the search did not move"],
        )
    if not reasons:
        rival, near = _rival(task, best, fit.level)
        if rival:
            status, reasons = "disagreeing_starts", [rival]
        elif near:
            warnings.append(near)
    fit = replace(
        fit,
        status=status,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        criterion_value=best.objective,
        gap=best.gap,
        gradient=best.gradient,
        condition=best.condition,
        converged=best.converged,
        iterations=best.iterations,
        starts=best.starts,
        starts_agree=best.starts_agree,
        optimum_is_start=best.is_start,
        at_bounds=tuple(best.at_bounds),
        tail_share=float(np.mean(np.abs(best.residual) > task.delta)),
    )
    return fit if reasons else replace(fit, params=params, derived=values)


def _rival(task, best, level):
    """(reason to refuse if another minimum is as good, warning if one is near); empty if neither.

    Two minima are ambiguous if their criterion values differ by less than the profile-likelihood threshold, a parameter
    differs by more than three standard errors, and a barrier separates them. Without a barrier they belong to one
    curved valley, such as a floor that may be 0, which the intervals cover.
    """
    if best.rivals:
        noise = resampling.estimate_noise(task, best.phi)
        rise = uncertainty.threshold(noise, task.delta, level, task.w_I)
        names = list(task.logs(best.phi[None]))
        for phi, value in _apart(best, noise):
            far = int((np.abs(phi - best.phi) / _errors(best, noise)).argmax())
            if value - best.objective < rise < _barrier(task, best, phi, far):
                here, there = (float(task.logs(p[None])[names[far]][0]) for p in (best.phi, phi))
                why = f"two minima fit equally well within the noise: {names[far]} = {here:.4g} or {there:.4g}"
                return f"{why}; the data cannot decide between them", ""
    if best.starts_agree == 1 and best.starts > 1:
        return "", "only one of the starts reached the best criterion value: another minimum is nearly as deep"
    return "", ""


def _barrier(task, best, phi, k):
    """Largest rise of the profile of coordinate k between the best minimum and another."""
    start = best.phi + (phi - best.phi) * BETWEEN[:, None]
    found = task.minimise(start, task.y_I, task.w_I, held=(k,), stages=False)
    return found.objective.max() - best.objective


def _errors(best, noise):
    """Standard errors [K] from the curvature."""
    return np.maximum(noise.sd * np.sqrt(np.maximum(np.diag(np.linalg.pinv(best.jacobian.T @ best.jacobian)), 0)), 1e-6)


def _apart(best, noise):
    """Other minima (phi, F) with a parameter more than three standard errors from the best."""
    errors = _errors(best, noise)
    return [(phi, value) for phi, value in best.rivals if (np.abs(phi - best.phi) / errors).max() > 3]


def _intervals(fit, task, best):
    """The fit with intervals from its bootstrap resamples, which it keeps for predictions."""
    noise = resampling.estimate_noise(task, best.phi)
    rivals = [{k: float(v[0]) for k, v in task.natural(phi[None]).items()} for phi, _ in _apart(best, noise)]
    fit = replace(fit, rivals=tuple({k: v for k, v in one.items() if k in fit.params} for one in rivals))
    # resamples that did not converge are kept: they occur where a resampled table constrains the law poorly, and
    # dropping them would make the intervals too narrow
    found = fit.resampled()
    here = {**fit.params, **fit.derived}
    corrected = resampling.is_corrected(fit.bootstrap, found.params.get("E", np.ones(1)))
    ends = {name: resampling.interval(v, here[name], fit.level, corrected) for name, v in found.params.items()}
    spread = np.array(list(found.logs.values()))
    moving = spread.std(1) > 0
    correlation = np.eye(len(spread))
    if moving.any() and len(spread[0]) > 1:
        correlation[np.ix_(moving, moving)] = np.corrcoef(spread[moving])
    return replace(
        fit,
        intervals={name: tuple(map(float, pair)) for name, pair in ends.items()},
        resamples_failed=int((~found.converged).sum()),
        noise_sd=found.noise.sd,
        correlation_names=tuple(found.logs),
        correlation=tuple(tuple(float(x) for x in row) for row in np.round(correlation, 6)),
    )

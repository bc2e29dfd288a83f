"""Fit a law to a table: refuse unidentifiable laws, minimise the criterion, bootstrap intervals.

    fit(source)   as_table -> examine -> optimum -> judge -> resample -> Fit -> check_held_out -> fit_warnings

Method: Chinchilla's approach 3 (arXiv:2203.15556), the sum of Huber losses of log residuals, delta = 1e-3.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.format import percent
from lmjax.scaling import engine, lack_of_fit
from lmjax.scaling import resample as resampling
from lmjax.scaling.identify import examine, judge
from lmjax.scaling.laws import Law, constrained, get_law, registered
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.table import as_table, data_hash, groups

BETWEEN = np.arange(1, 12) / 12  # positions between two minima at which to look for a barrier
POINT_COLUMNS = ["run", "N", "D", "C", "loss", "weight"]
DIAGNOSTICS = ("gap", "gradient", "condition", "converged", "iterations", "starts", "starts_agree")
NOISY = 0.03  # relative noise above which to warn; seeds of small models differ by 0.1 to 1 % (arXiv:2406.19146)
DIVERGED = 8.0  # residual over the noise of the other rows, above which a run may have diverged
WIDE_PATH = 2.0  # largest over smallest D / N of rows of similar C, above which to warn


def fit(
    source,
    law: str | Law = "chinchilla",
    *,
    fix: Mapping[str, float] | None = None,
    tie: Sequence[str] = (),
    criterion: str = "huber_log",
    delta: float = 1e-3,
    resamples: int = 1000,
    bootstrap: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    profiles: bool = True,
    **reading,
) -> Fit:
    """Fits a law to run records or any table, and predicts the held-out rows.

    Minimises sum_i w_i Huber_delta(ln L(x_i) - ln loss_i), with positive parameters and E >= 0.

    Args:
        source: a FitTable, or what `read_table` accepts: a pandas frame, .csv, .parquet, .jsonl.
        law: a name in lmjax.scaling.laws.LAWS. A law in N alone (or D alone) is fitted at the largest value of the
            other variable that has enough rows.
        fix: parameters held at fixed values, {"E": 1.82}; may be the fitted parameters of another fit. Their intervals
            have zero width.
        tie: parameters that share one value, ["alpha=beta"]. The constrained law is named, for example,
            chinchilla[E=1.82 alpha=beta]; every argument `law` of this package accepts that name.
        criterion: huber_log | squared_log | squared (of the plain loss; always used for shares).
        delta: Huber's delta in ln loss; 1e-3 is close to least absolute deviations.
        resamples: number of bootstrap resamples for the intervals; 0 computes none.
        bootstrap: scheme auto | residual | rows | configurations | wild_cluster, see lmjax/scaling/resample.py.
        confidence: confidence level of the intervals.
        seed: random seed of the resamples.
        profiles: also compute profile-likelihood intervals and the influence of each row (needs resamples); if the law
            does not fit, also search for a law or a range that does.
        **reading: options of `read_table` (n, c, held_out, loss, units, allow_incomplete, columns, where, allow,
            weights, drop_missing), for a source that is not a FitTable.

    Returns:
        Fit. If the table cannot identify the law, it is `refused` and has `reasons`.

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
    law = constrained(registered(law), fix, tie)
    if not delta > 0 or not 0 < confidence < 1 or not (isinstance(resamples, int) and resamples >= 0):
        raise InputError(
            f"expected delta > 0, 0 < confidence < 1, resamples >= 0, got {delta}, {confidence}, {resamples!r}"
        )
    if criterion not in engine.CRITERIA:
        raise InputError(f"expected a fit criterion, got {criterion!r}{nearest(criterion, engine.CRITERIA)}")
    resampling.choose(bootstrap, 1)
    table = as_table(source, law, **reading).for_law(law, len(law.parameters) + 1)
    if criterion == "huber_log" and law.target == "share":
        criterion = "squared"
    options = {"criterion": criterion, "delta": delta, "confidence": confidence, "bootstrap": bootstrap, "seed": seed}
    found = _fit_points(table, law, options, resamples, profiles)
    if not found.refused and len(table.held_out):
        found = replace(found, held_out=tuple(found.check_held_out(table.held_out)))
    return replace(found, warnings=(*found.warnings, *fit_warnings(found)), hash=_hash(found))


def fit_groups(
    source, by: str | Sequence[str], law: str | Law = "chinchilla", *, where=None, **options
) -> dict[str, Fit]:
    """Fits one law to each group of rows that agree in the given settings.

    Args:
        source, where: as in `read_table`.
        by: settings, such as "family" or ["optimizer.name", "data.mode"].
        law, **options: as in `fit`.

    Returns:
        {values of the settings: Fit}, in the order of the table.

    Example:
        >>> import pandas
        >>> rows = pandas.DataFrame({"family": ["a", "b"], "N": 1e6, "D": [1e8, 2e8], "loss": 3.0})
        >>> [(family, one.status) for family, one in fit_groups(rows, by="family").items()]
        [('a', 'too_few_points'), ('b', 'too_few_points')]
    """
    return {
        label: fit(source, law, where=[where, group], **options) for label, group in groups(source, by, where).items()
    }


def _fit_points(table, law, options, resamples, profiles):
    """Fits the points of a table: checks the design, finds and judges the optimum, computes intervals."""
    points = table.points
    fit = Fit(
        law.name,
        law.formula,
        "converged",
        law.variables,
        law.target,
        points=_rows(points, [*POINT_COLUMNS, *law.variables]),
        excluded=_rows(table.excluded, [*POINT_COLUMNS, "status", "reason"]),
        conventions=table.conventions,
        notes=table.notes,
        warnings=table.warnings,
        source=table.source,
        data_hash=data_hash(points, law.variables),
        **options,
    )
    status, reasons = _refusals(points, law)
    if reasons:
        return replace(fit, status=status, reasons=tuple(reasons))
    task = engine.problem_of_table(points, law, fit.criterion, fit.delta)
    distinct = int(task.groups_I.max()) + 1
    fit = replace(fit, bootstrap=resampling.choose(fit.bootstrap, distinct, len(law.parameters)))
    best = task.optimum()
    fit = _judged(fit, task, best)
    if not fit.refused:
        fit = lack_of_fit.measured(fit, advise=profiles)
    if fit.refused or not resamples:
        return replace(fit, resamples=resamples if fit.minima else 0)
    fit = _intervals(replace(fit, resamples=resamples), task, best)
    if profiles:
        profiles = resampling.profiles(task, best, fit.resampled().noise, fit.confidence)
        shared = {name: profiles[leader] for name, leader in law.tied.items() if leader in profiles}
        fit = replace(fit, profiles=profiles | shared)
        largest = {row["run"]: row["largest"] for row in fit.influence()}
        for row in fit.points:
            row["influence"] = largest.get(row["run"], math.nan)
    return fit


def _hash(fit):
    """Returns the first 12 hex digits of a sha256 over law, conventions, criterion and data."""
    parts = [fit.formula, sorted(fit.conventions.items()), fit.criterion, fit.delta, fit.data_hash]
    parts += [fit.law] if get_law(fit.law).base else []  # fixed values in full precision
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _rows(frame, columns):
    """Returns the rows of a frame as dicts with those of the columns that it has."""
    kept = [name for name in dict.fromkeys(columns) if name in frame]
    return tuple(frame[kept].to_dict("records"))


def _refusals(points, law):
    """Returns (status, reasons to refuse) that are known before the fit; no reasons if a fit is possible."""
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
    """Returns the fit with the optimum's diagnostics, and with its parameters unless it is refused."""
    law = task.law
    predicted = task.predicted(best.phi)
    for row, value, r in zip(fit.points, predicted, best.residual, strict=True):
        row["predicted"], row["residual"] = float(value), float(r)
    values = {name: float(v[0]) for name, v in task.natural(best.phi[None]).items()}
    params = {name: values.pop(name) for name in law.names}
    status, reasons, warnings = judge(law, best)
    if not reasons and best.is_start and best.gradient > 1e-6:
        status = "disagreeing_starts"
        reasons.append("the optimum is a starting point where the gradient is not 0: the search did not move")
    rivals = [] if reasons else _rivals(task, best, fit.confidence)
    if rivals:
        status, reasons = "disagreeing_starts", [_rival_words(task, best, *rivals[0])]
        fit = replace(fit, rivals=_params(task, [best.phi, *(phi for phi, _ in rivals)]))
    elif not reasons and best.starts_agree == 1 and best.starts > 1:
        warnings.append("only one of the starts reached the best criterion value: another minimum is nearly as deep")
    fit = replace(
        fit,
        status=status,
        reasons=tuple(reasons),
        warnings=(*fit.warnings, *warnings),
        criterion_value=best.objective,
        optimum_is_start=best.is_start,
        at_bounds=tuple(best.at_bounds),
        tail_share=float(np.mean(np.abs(best.residual) > task.delta)),
        **{name: getattr(best, name) for name in DIAGNOSTICS},
    )
    return fit if reasons else replace(fit, params=params, derived=values)


def _params(task, minima):
    """Returns the parameters at each of several minima (coordinates [K])."""
    found = [task.natural(phi[None]) for phi in minima]
    return tuple({name: float(one[name][0]) for name in task.law.names} for one in found)


def _rivals(task, best, confidence):
    """Returns the minima that fit as well as the best one: (phi, the coordinate that differs most).

    This is so if the criterion values differ by less than the profile-likelihood threshold, a parameter differs by more
    than three standard errors, and a barrier separates the minima. Without a barrier they lie in one curved valley (for
    example, E may be 0), which the intervals cover.
    """
    if not best.rivals:
        return []
    noise = resampling.estimate_noise(task, best.phi)
    rise = resampling.threshold(noise, task.delta, confidence, task.w_I)
    return [
        (phi, far)
        for phi, value, far in _apart(best, noise)
        if value - best.objective < rise < _barrier(task, best, phi, far)
    ]


def _rival_words(task, best, phi, far):
    here, there = (float(task.logs(p[None])[task.names[far]][0]) for p in (best.phi, phi))
    return (
        f"two minima fit equally well within the noise: {task.names[far]} = {here:.4g} or {there:.4g}; the data cannot "
        "decide between them, so there are no parameters, only predictions where the minima agree"
    )


def _barrier(task, best, phi, k):
    """Returns how far the profile of coordinate k rises between the best minimum and another one."""
    start = best.phi + (phi - best.phi) * BETWEEN[:, None]
    found = task.minimise(start, task.y_I, task.w_I, held=(k,), stages=False)
    return found.objective.max() - best.objective


def _apart(best, noise):
    """Returns the minima that differ by more than three standard errors: (phi, F, the coordinate that differs most)."""
    errors = np.maximum(noise.sd * best.standard_errors, 1e-6)
    distances = [np.abs(phi - best.phi) / errors for phi, _ in best.rivals]
    return [(*rival, int(far.argmax())) for rival, far in zip(best.rivals, distances, strict=True) if far.max() > 3]


def _intervals(fit, task, best):
    """Returns the fit with intervals from its bootstrap resamples, which are kept for predictions."""
    noise = resampling.estimate_noise(task, best.phi)
    fit = replace(fit, rivals=_params(task, [phi for phi, _, _ in _apart(best, noise)]))
    # resamples that did not converge are kept: they occur where a resampled table constrains the law poorly, and
    # dropping them would make the intervals too narrow
    found = fit.resampled()
    here = fit.values
    corrected = resampling.is_corrected(fit.bootstrap, found.params.get("E", np.ones(1)))
    ends = {name: resampling.interval(v, here[name], fit.confidence, corrected) for name, v in found.params.items()}
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


def fit_warnings(fit: Fit) -> Iterator[str]:
    """Yields warnings about lack of fit, runs that may have diverged, rows off the path of a law of C, wide intervals.

    `fit` stores them in `Fit.warnings`, so that they are printed with the fit.
    """
    yield from lack_of_fit.sentences(fit)
    yield from _far_rows(fit)
    yield from _off_path(fit)
    if fit.refused or not fit.resamples:
        return
    if fit.noise_unit == "ln loss" and fit.noise_sd > NOISY:
        yield (
            f"the noise of a run is {percent(fit.noise_sd, 1)} of its loss, but seeds of one recipe differ by less "
            f"than {percent(NOISY, 0)}: check the columns and units, and whether all rows are runs of one kind"
        )
    found, failed, count = fit.resampled(), fit.resamples_failed, fit.resamples
    if failed > 0.01 * count:
        yield f"{failed} of {count} bootstrap refits did not converge; intervals are approximate"
    if found.at_bound.mean() > 0.025:
        share = 100 * found.at_bound.mean()
        yield f"{share:.0f} % of the bootstrap resamples have a parameter at its bound, where its interval ends"
    if fit.params.get("E", 0.0) > 0 and fit.intervals["E"][0] <= 0:
        yield "the interval of E reaches 0: the data do not show a floor"
    for parameter in get_law(fit.law).space:
        low, high = fit.intervals[parameter.name]
        if not (parameter.log or parameter.keep) and high - low > abs(fit.params[parameter.name]):
            yield f"{parameter.name} is poorly constrained: {fit.confidence:.0%} CI width >= its value"
    if fit.splits:
        largest = fit.flop_6nd.max()
        if not fit.allocate(largest)["determined"]:
            yield (
                f"no compute-optimal split is determined: even at {largest:.2g} FLOP the interval of N* spans more "
                f"than a factor of {WIDEST_SPLIT:.0f}"
            )
    yield from widths_differ(fit.intervals, fit.profiles)


def _far_rows(fit):
    """Yields a warning for up to three rows with residuals so large that the runs may have diverged, largest first.

    The systematic part of the residuals, which rows share, is lack of fit and does not count.
    """
    if not fit.points or "residual" not in fit.points[0] or len(fit.points) <= len(get_law(fit.law).parameters):
        return
    size, noise = residual_sizes(fit)
    for i in np.argsort(-size)[:3]:
        row = fit.points[i]
        if size[i] <= DIVERGED * noise:
            return
        side = "above" if row["loss"] > row["predicted"] else "below"
        away = f"{100 * abs(row['loss'] / row['predicted'] - 1):.3g} %"
        if fit.target == "share":
            away = f"{100 * abs(row['loss'] - row['predicted']):.3g} share points"
        yield (
            f"{row['run']} lies {away} {side} the law, {size[i] / noise:.0f} robust standard deviations: it may "
            "have diverged; check its curve and exclude it if so"
        )


def _off_path(fit):
    """Yields a warning if a law of C alone is fitted to rows that do not lie on one path in N and D."""
    N, D, C = (fit.column(name) for name in "NDC")
    if fit.variables != ("C",) or len(C) < 4 or not np.isfinite([N, D, C]).all():
        return
    ratio, log_c = np.log(D / N), np.log(C)
    curve = np.polynomial.Polynomial.fit(log_c, ratio, 1 if len(C) < 6 else 2)
    off = np.exp(np.ptp(ratio - curve(log_c)))
    if off >= WIDE_PATH:
        yield (
            f"rows of similar C differ in D / N by a factor of {off:.2g}: a law of C holds only along one path "
            "of N and D, such as the compute-optimal frontier"
        )


def widths_differ(intervals, profiles) -> list[str]:
    """Returns the parameters whose bootstrap and profile intervals differ in width by more than a factor of 2."""
    out = []
    for name in profiles:
        resampled, profile = (float(np.subtract(*pair[name][::-1])) for pair in (intervals, profiles))
        if not (resampled > 0 and profile > 0 and np.isfinite(resampled + profile)):
            continue
        ratio = max(resampled / profile, profile / resampled)
        if ratio > 2:
            wide, narrow = ("bootstrap", "profile") if resampled > profile else ("profile", "bootstrap")
            out.append(f"{name}: the {wide} interval is {ratio:.1f}x as wide as the {narrow} one; trust the wider one")
    return out


def residual_sizes(fit):
    """Returns the size of each row's weighted residual, [I], and the noise of the rows, without systematic parts."""
    systematic = fit.column("systematic") if lack_of_fit.fires(fit) else 0.0
    size = np.abs(fit.column("residual") - systematic) * np.sqrt(fit.weights)
    noise = resampling.robust_scale(size, len(get_law(fit.law).parameters))
    return size, max(noise, lack_of_fit.quiet(fit))

"""All checks of a finished fit: `audit(fit, table)` returns Findings, the most severe first.

Problems that make a fit impossible are its status and reasons. This file checks successful fits for known mistakes in
fitting scaling laws, uninformative intervals and wrong held-out predictions. Some checks refit the law without some
rows or with other columns. References (arXiv): weights, outliers, repeats 2404.10102; count of N 2406.12907; warm-up
and tuning 2406.19146; Huber loss 2203.15556; small N 2305.17266; metrics 2304.15004.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from lmjax.format import count as short
from lmjax.format import number
from lmjax.scaling import engine
from lmjax.scaling.fitting import residual_sizes
from lmjax.scaling.identify import LINE, MAX_CONDITION, examine
from lmjax.scaling.lack_of_fit import fires
from lmjax.scaling.laws import CHINCHILLA, FLOPS_PER_PARAM_TOKEN, get_law
from lmjax.scaling.planning import fit_covariance
from lmjax.scaling.resample import half_width_factor
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.table import FitTable
from lmjax.scaling.text import held_out_errors, lack_of_fit_words, noise_words

SEVERITIES = ("ok", "warning", "refused")
NEEDS_TABLE = "other counts of N and C, warm-up and tuning, schedules"
LOWEST = 5  # number of lowest-compute rows that one check leaves out
SMALL = 1e8  # below this many parameters, embeddings and attention are a large part of N and C
LONG_WARMUP = 0.05  # share of the steps above which warm-up is long
OUTLIER = 4.0  # residual over the noise of the other rows; 6 of 150 outlier-free tables of 30 rows exceed it
WIDEST_COEFFICIENT = 1e6  # largest high / low; A and B vary with the exponents, so a few decades are normal
COUNTS = {"n_total": "all", "n_non_embedding": "non-embedding", "n_matmul_head": "matmul and output"}
READS_SOURCE = 0.05  # nats per predicted token that the right source must gain over the source of another row
TUNED = ("learning_rate", "lr", "peak_lr")


class Finding(NamedTuple):
    """One finding: its topic, its severity (ok | warning | refused) and a sentence."""

    topic: str
    severity: str
    text: str


def audit(fit: Fit, table: FitTable | None = None) -> list[Finding]:
    """Returns all findings about a fit, the most severe first.

    Args:
        fit: any fit.
        table: the FitTable that was fitted; if given, its other columns (seeds, warm-up, other counts of N and C) are
            checked too. Otherwise, one finding names the skipped checks.
    """
    notes = [Finding("Table", "ok", note) for note in fit.notes]
    if fit.refused:
        return [Finding("Status", "refused", reason) for reason in fit.reasons] + notes
    found = [Finding("Fit", "warning", words) for words in fit.warnings]
    found += [Finding("Intervals", "warning", words) for words in wide_intervals(fit)]
    frame = None if table is None else table.points
    for topic, check in CHECKS.items():
        found += [Finding(topic, "warning" if doubt else "ok", words) for doubt, words in check(fit, frame)]
    if table is None:
        found.append(Finding("Table", "warning", f"Skipped checks ({NEEDS_TABLE}): pass table= to run them"))
    found += notes
    if fit.excluded:
        words = f"{len(fit.excluded)} rows are excluded from the fit; each has a reason"
        found.append(Finding("Table", "warning", words))
    return sorted(dict.fromkeys(found), key=lambda finding: -SEVERITIES.index(finding.severity))


def doubts(fit: Fit, findings: list[Finding]) -> list[str]:
    """Returns which findings of `audit(fit)` to print beside a result: warnings, uninformative intervals, outliers.

    A refused fit has only reasons, so the list is empty.
    """
    warnings = [] if fit.refused else [one for one in findings if one.severity == "warning"]
    worst = [one.text for one in warnings if one.topic in ("Fit", "Intervals")]
    return list(dict.fromkeys([*worst, *(one.text for one in warnings if "residual" in one.text)]))


def wide_intervals(fit: Fit) -> list[str]:
    """Returns a sentence for each coefficient whose interval spans more than six decades."""
    found = []
    for name in () if fit.refused else fit.params:
        low, high = fit.intervals.get(name, (0.0, 0.0))
        if f"ln {name}" in fit.correlation_names and low > 0 and high > WIDEST_COEFFICIENT * low:
            decades = np.log10(high) - np.log10(low)
            found.append(f"the interval of {name} spans {decades:.0f} decades: the runs do not determine it")
    return found


def determined(best: Mapping[str, np.ndarray], name: str) -> bool:
    """Returns whether the interval of N, D or tokens_per_param in a split spans at most a factor of 100.

    Example:
        >>> best = {"N_low": np.array(1e8), "N_high": np.array(2e8), "D_low": np.array(1e8), "D_high": np.array(1e11)}
        >>> determined(best, "N"), determined(best, "D")
        (True, False)
    """
    low, high = float(best[f"{name}_low"]), float(best[f"{name}_high"])
    return low > 0 and high <= WIDEST_SPLIT * low


def refit(fit: Fit, frame) -> dict[str, float]:
    """Refits the law to other rows or columns, starting from the optimum; returns parameters and derived numbers."""
    law = get_law(fit.law)
    task = engine.problem_of_table(frame, law, fit.criterion, fit.delta)
    found = task.minimise(task.phi(fit.params)[None], task.y_I, task.w_I)
    return {name: float(v[0]) for name, v in task.natural(found.phi).items()}


def _shift(fit, other):
    """Returns (text about the largest shift of a parameter, whether it exceeds half its interval, or 20 % without)."""
    here, half, law = fit.values, fit.half_widths, get_law(fit.law)
    plain = [*(p.name for p in law.space if not p.log), *fit.derived] or list(law.parameters)
    unit = {name: half.get(name, math.inf) if half else 0.2 * max(abs(here[name]), 1e-12) for name in plain}
    worst = max(plain, key=lambda name: abs(other[name] - here[name]) / unit[name])
    size = abs(other[worst] - here[worst]) / unit[worst]
    shown = f"{worst} {here[worst]:.3g} -> {other[worst]:.3g}"
    return shown + f" ({size:.1f} CI half-widths)" * bool(half), size > 1


def _without(fit, kept, words):
    """Returns (whether to warn, sentence) about a refit without some rows: the largest shift, or "not identified"."""
    law, rows = get_law(fit.law), fit.frame().iloc[kept]
    x = {v: rows[v].to_numpy(float) for v in fit.variables}
    if len(rows) <= len(law.parameters) or (law.terms and examine(x, law).reasons):
        return True, f"without {words} the law is not identified"
    shown, moved = _shift(fit, refit(fit, rows))
    return moved, f"without {words}: {shown}"


# ---- checks: each takes a fit and its table's frame (or None), and yields (whether it is a warning, sentence) --------

Checked = Iterator[tuple[bool, str]]


def _criterion(fit, frame) -> Checked:
    yield (
        not (fit.gap < 1e-10 and fit.gradient < 1e-4),
        f"predicted relative decrease of one more Newton step {fit.gap:.0e}, scaled gradient {fit.gradient:.0e}; "
        f"{fit.starts_agree} of {fit.starts} starting points agree",
    )


def _weights(fit, frame) -> Checked:
    ratio = fit.weights.max() / fit.weights.min()
    words = "all weights are equal" if ratio < 1 + 1e-9 else f"weights span a factor of {ratio:.3g}; expected 1 / var"
    start = "; the optimum equals a starting point, which is expected only for a table without noise"
    yield fit.optimum_is_start or ratio > 100, words + start * fit.optimum_is_start


def _rows(fit, frame) -> Checked:
    if len(fit.points) - LOWEST > len(get_law(fit.law).parameters):
        yield _without(fit, np.argsort(fit.column("C"), kind="stable")[LOWEST:], f"the {LOWEST} rows of least compute")
    else:
        yield True, f"{len(fit.points)} rows are too few to leave out the {LOWEST} of least compute"
    worst = max(fit.points, key=lambda row: np.nan_to_num(row.get("influence", math.nan)))
    size = worst.get("influence", math.nan)
    if size == size:
        yield (
            size > 1,
            f"most influential row: leaving out {worst['run']} shifts a parameter by {size:.1f} CI half-widths",
        )
    sizes, noise = residual_sizes(fit)
    largest, ratio = fit.points[int(sizes.argmax())], sizes.max() / noise
    yield (
        ratio > OUTLIER,
        f"largest residual: {largest['run']}, {_amount(fit, largest['residual'])}, {ratio:.1f} times the noise of the "
        f"others ({_amount(fit, noise).lstrip('+')}, from their median)",
    )


def _amount(fit, residual):
    """Returns a residual as text, in the unit of the fit."""
    if fit.target == "share":
        return f"{100 * residual:+.2f} share points"
    return f"{residual:+.3g} in the unit of the loss" if fit.plain else f"{100 * residual:+.2f} % of the loss"


def _collinear(fit, frame) -> Checked:
    surface = {"N", "D"} <= set(fit.variables)
    over = "a line D = k N gives" if surface else "parameters are not identifiable separately"
    words, doubt = f"condition number of the Jacobian {fit.condition:.3g} ({over} over {MAX_CONDITION:.0e})", False
    if surface:
        found = examine({v: fit.column(v) for v in ("N", "D")}, CHINCHILLA)
        words += f"; D scatters by a factor of {math.exp(found.off_line):.2f} around a power of N"
        doubt = found.off_line < 2 * LINE
        for name, decades in found.decades.items():
            if decades < 1:
                yield True, f"{name} spans {decades:.1f} decades in {found.distinct[name]} values"
    yield doubt or not fit.condition < 1000, words


def _counts(fit, frame) -> Checked:
    used = fit.conventions["N"]
    smallest = float(fit.column("N").min())
    if frame is None or "N" not in fit.variables:
        small = smallest < SMALL and "N" in fit.variables
        yield (
            small,
            used + f"; smallest N {short(smallest)}: below {short(SMALL)}, counts of N differ substantially" * small,
        )
        return
    others = [name for name in COUNTS if name in frame and (frame[name] > 0).all()]  # an n-gram model has no matrices
    others = [name for name in others if not np.allclose(frame[name], frame["N"], rtol=1e-9)]
    if not others:
        yield smallest < SMALL, f"{used}; the table has no other count to compare with"
        return
    here = fit.values
    name = "a" if "a" in here else "alpha"
    moved = {}
    for column in others:
        other = frame.assign(N=frame[column], C=FLOPS_PER_PARAM_TOKEN * frame[column] * frame["D"])
        moved[COUNTS[column]] = refit(fit, other)[name]
    words = ", ".join(f"{value:.3f} counting {word} parameters" for word, value in moved.items())
    yield max(abs(v - here[name]) for v in moved.values()) > 0.02, f"{used}: {name} = {here[name]:.3f}; {words}"


def _tuning(fit, frame) -> Checked:
    if frame is None:
        return
    known = False
    if {"warmup_steps", "steps"} <= set(frame) and frame["warmup_steps"].notna().all():
        known, share = True, float((frame["warmup_steps"] / frame["steps"]).max())
        yield share > LONG_WARMUP, f"warm-up takes up to {100 * share:.1f} % of a run"
    rate = next((name for name in TUNED if name in frame and frame[name].notna().all()), None)
    if rate and "N" in frame:
        known, distinct = True, frame[rate].nunique()
        if distinct == 1 and frame["N"].nunique() > 1:
            yield True, f"one {rate} ({frame[rate].iloc[0]:g}) at every N: large or small models may be untuned"
        else:
            yield False, f"{rate} takes {distinct} values over the runs"
    if not known:
        yield True, "the table gives neither the warm-up nor the learning rate"


def _losses(fit, frame) -> Checked:
    words = fit.conventions["loss"]
    known = "validation" in words or "held-out" in words
    yield not known, words if known else f"{words}: not known to be a validation loss"
    early = sum("schedule" in row["reason"] for row in fit.excluded)
    if early or (frame is not None and "schedule_complete" in frame):
        yield False, f"schedules completed in all fitted rows ({early} other rows excluded)"
    elif frame is not None:
        yield (
            True,
            "the table does not say whether schedules completed; losses before the end of the decay are too high",
        )
    if frame is not None and "passed_reference" in frame:
        late = int((frame["passed_reference"].dropna() != "bigram").sum())
        yield (
            late > 0,
            f"{late} of {len(frame)} runs do not beat a bigram model: they have learned little from context",
        )
    if frame is not None and "source_gain" in frame and frame["source_gain"].notna().any():
        blind = int((frame["source_gain"] < READS_SOURCE).sum())
        yield (
            blind > 0,
            f"{blind} of {len(frame)} encoder-decoders gain less than {READS_SOURCE} nats per token from their source: "
            "they act as language models of the target",
        )


def _delta(fit, frame) -> Checked:
    if fit.criterion != "huber_log":
        yield True, f"criterion {fit.criterion}: a single outlier can move the fit"
        return
    near = "least absolute deviations" if fit.tail_share > 0.5 else "least squares"
    share = f"{100 * fit.tail_share:.0f} % of the residuals exceed delta = {fit.delta:g}"
    yield False, f"{share}: the fit is close to {near}"


def _rounding(fit, frame) -> Checked:
    if not fit.splits:
        yield False, "parameters are kept in full precision; rounding exponents to two digits would shift predictions"
        return
    law, budget = get_law(fit.law), 10 * fit.column("C").max()
    rounded = {
        **fit.params,
        **{t.exponent: max(round(fit.params[t.exponent], 2), 0.01) for t in get_law(fit.law).terms},
    }
    ratios = [float(law.optimum(p, budget)["tokens_per_param"]) for p in (fit.params, rounded)]
    yield (
        max(ratios) / min(ratios) > 1.2,
        f"D/N at {budget:.3g} FLOP is {ratios[0]:.3g}, and {ratios[1]:.3g} with exponents rounded to two digits: "
        "copy the parameters in full precision",
    )


def _widths(fit, frame) -> Checked:
    if not fit.intervals or not fit.noise_sd > 0:
        yield True, "no intervals were computed"
        return
    law = get_law(fit.law)
    names = [p.name for p in law.space if not (p.log or p.keep)]
    if any(fit.params[p.name] <= 0 for p in law.space) or not names:
        yield False, "widths are not compared with theory: a parameter is 0"
        return
    cov, _ = fit_covariance(fit, law, fit.params, fit.noise_sd)
    half_widths = half_width_factor(fit.confidence) * np.sqrt(np.diag(cov))
    for name in names:
        expected = half_widths[law.parameters.index(name)]
        half = (fit.intervals[name][1] - fit.intervals[name][0]) / 2
        if half == 0:
            yield False, f"{name} has a zero-width interval: the resamples contain no noise"
            continue
        rows = len(fit.points) * (expected / half) ** 2
        yield (
            half < 0.5 * expected,
            f"{name} +-{half:.2g} from {len(fit.points)} runs; theory gives +-{expected:.2g} at noise "
            f"{noise_words(fit)}, and this width would need about {number(rows, 2)} runs",
        )


def _repeats(fit, frame) -> Checked:
    cells = len({tuple(row[v] for v in fit.variables) for row in fit.points})
    repeats = len(fit.points) - cells
    if not repeats:
        yield True, f"one run per configuration ({cells}): seed noise and misfit are not separable"
    elif fit.resamples and fit.bootstrap in ("rows", "residual"):
        yield True, f"{repeats} rows repeat a configuration, but bootstrap={fit.bootstrap!r} treats them as independent"
    else:
        how = fit.bootstrap if fit.resamples else "none"
        yield False, f"{repeats} rows repeat one of {cells} configurations; bootstrap: {how}"


def _small(fit, frame) -> Checked:
    if "N" not in fit.variables:
        yield False, "the law has no N"
        return
    N = fit.column("N")
    yield _without(fit, N > 1.02 * N.min(), f"the smallest size, N = {short(N.min())}")


def _lack_of_fit(fit, frame) -> Checked:
    found = fit.lack_of_fit
    yield not found or fires(fit), lack_of_fit_words(fit) + " (too few rows)" * (not found)


def _metric(fit, frame) -> Checked:
    if fit.target == "share":
        yield True, "a share is fitted: exact match of L tokens is about p^L, so a sharp rise may come from the metric"


def _floor(fit, frame) -> Checked:
    law = get_law(fit.law)
    if law.fixed:
        words = ", ".join(f"{name} = {number(value)}" for name, value in law.fixed.items())
        yield False, f"fixed: {words}; no interval includes the uncertainty of a fixed parameter"
    if "E" not in law.parameters:
        return
    if not fit.resamples:
        yield True, f"E = {number(fit.params['E'])} trades off with the exponents; fit with resamples to see how much"
        return
    names = list(fit.correlation_names)
    exponents = [term.exponent for term in get_law(fit.law).terms if term.exponent in names]
    pairs = {name: fit.correlation[names.index("E")][names.index(name)] for name in exponents}
    words = ", ".join(f"{value:+.2f} with {name}" for name, value in pairs.items()) or "unknown"
    ends = fit.profiles.get("E")
    span = f"; profile interval of E {number(ends[0])} to {number(ends[1])}" if ends else ""
    yield max(map(abs, pairs.values()), default=0.0) > 0.95, f"correlation of E: {words}{span}"


def _compute(fit, frame) -> Checked:
    used = fit.conventions["C"]
    if frame is None:
        yield False, used
        return
    if "flops_exact" not in frame or not {"N", "D"} <= set(frame):
        smallest = float(fit.column("N").min())
        yield smallest < SMALL, f"{used}; no exact count to compare with (smallest N {short(smallest)})"
        return
    ratio = frame["flops_exact"] / (FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
    ends = [float(ratio[frame["N"] == n].mean()) for n in (frame["N"].min(), frame["N"].max())]
    yield (
        max(*ends, 1.0) / min(*ends, 1.0) > 1.1,
        f"{used}; exact FLOP over 6 N D: {ends[0]:.2f} at the smallest N, {ends[1]:.2f} at the largest",
    )


def _held_out(fit, frame) -> Checked:
    if not fit.held_out:
        yield True, "no run was held out, so the prediction is untested"
        return
    errors = held_out_errors(fit)
    unit, place = "share points" if fit.target == "share" else "%", int(np.abs(errors).argmax())
    worst = fit.held_out[place]
    error = (
        f"the largest error of a held-out prediction is {errors[place]:+.2f} {unit} "
        f"({worst['run']}, {worst['extrapolation']:.1f} times the largest fitted {fit.reach})"
    )
    if not fit.resamples:
        yield True, f"{error}; no intervals were computed"
        return
    inside = sum(row["inside"] for row in fit.held_out)
    count, hit = len(fit.held_out), fit.confidence
    # probability of at least this many misses if the intervals have their nominal coverage
    chance = sum(math.comb(count, k) * (1 - hit) ** k * hit ** (count - k) for k in range(count - inside, count + 1))
    yield chance <= 0.1, f"{inside} of {count} held-out losses lie inside their {fit.confidence:.0%} intervals; {error}"


CHECKS = {
    "Criterion": _criterion,
    "Weights": _weights,
    "Outliers and influence": _rows,
    "Collinearity": _collinear,
    "Count of N": _counts,
    "Warm-up and tuning": _tuning,
    "Kind of loss": _losses,
    "Huber's delta": _delta,
    "Rounding": _rounding,
    "Width of intervals": _widths,
    "Repeats": _repeats,
    "Small N": _small,
    "Lack of fit": _lack_of_fit,
    "Metric": _metric,
    "Floor": _floor,
    "Count of C": _compute,
    "Held-out runs": _held_out,
}

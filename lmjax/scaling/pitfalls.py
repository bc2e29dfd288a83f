"""The sixteen known ways to fit a scaling law wrongly, each judged from a fit in one sentence. Fits nothing new.

`findings` yields (number, mark, sentence) with mark fine | beware; TOPICS names each number. What a fit does not keep
(warm-up, other counts of N and C) is judged only where the table is given too. Refits leave rows out or exchange
columns, from the optimum.

     1 scale of the objective   2 weights, optimum = start   3 low-compute rows, influence   4 bias of a parabola
     5 collinear cells   6 count of N   7 warm-up, tuning   8 training loss, early points   9 Huber's delta
    10 rounding   11 intervals too narrow   12 repeats and the unit of refits   13 bend at small N
    14 metrics   15 floor E   16 6 N D against exact FLOP
Evidence: 1 arXiv:2404.10102; 6 2406.12907; 7 2406.19146; 8 2203.15556; 12 2404.10102; 13 2305.17266; 14 2304.15004.
"""

import math

import numpy as np
import pandas

from lmjax.scaling import engine
from lmjax.scaling.designs import LINE, MAX_CONDITION, examine
from lmjax.scaling.information import Coordinates, covariance, half_width_factor, price, relative
from lmjax.scaling.laws import CHINCHILLA, FLOPS_PER_PARAM_TOKEN, get_law, optimal_allocation
from lmjax.scaling.text import noise_words, number, short

TOPICS = (
    *("Objective", "Weights and optimum", "Outliers and influence", "Parabola", "Collinear cells", "Count of N"),
    *("Warm-up and tuning", "Kind of loss", "Huber's delta", "Rounding", "Width of intervals", "Repeats"),
    *("Small N", "Metric", "Floor", "Count of C"),
)
NEEDS_TABLE = "other counts of N and C (6, 16), warm-up and tuning (7), schedules (8)"
LOWEST = 5  # rows of least compute that are left out
SMALL = 1e8  # below so many parameters embeddings and attention are a large part of N and C
LONG_WARMUP = 0.05  # share of the steps
FAR = 4.0  # times the noise of the others: an outlier; 6 of 150 tables of 30 rows without one have such a residual
QUIET = 1e-6  # residuals of this share of the loss are rounding, not noise
COUNTS = {"n_total": "all parameters", "n_non_embedding": "without embeddings", "n_matmul_head": "matmuls and head"}
TUNED = ("learning_rate", "lr", "peak_lr")


def findings(fit, table=None):
    """(number, mark, sentence) for a usable fit; `table`: the FitTable that was fitted, for columns beyond N, D, C.

    Without the table nothing is said of NEEDS_TABLE.
    """
    judges = (
        *(_objective, _weights, _rows, _parabola, _collinear, _counts, _tuning, _losses),
        *(_delta, _rounding, _widths, _repeats, _curvature, _metric, _floor, _compute),
    )
    frame = None if table is None else table.points
    for i, judge in enumerate(judges):
        for mark, sentence in judge(fit, frame):
            yield i + 1, mark, sentence


def refit(fit, frame) -> dict[str, float]:
    """Parameters and derived numbers of other rows (or other counts), from the optimum of the fit."""
    law = get_law(fit.law)
    task = engine.problem_of_table(frame, law, fit.criterion, fit.delta)
    found = task.minimise(task.phi(fit.params)[None], task.y_I, task.w_I)
    return {name: float(v[0]) for name, v in task.natural(found.phi).items()}


def _shift(fit, other):
    """Words about the largest shift, in half widths of intervals where there are some; and its size."""
    here = {**fit.params, **fit.derived}
    half = {name: (high - low) / 2 for name, (low, high) in fit.intervals.items() if high > low}
    plain = [p.name for p in get_law(fit.law).space if not p.log] + list(fit.derived)
    if half:
        worst = max(
            (name for name in plain if name in half), key=lambda name: abs(other[name] - here[name]) / half[name]
        )
        size = abs(other[worst] - here[worst]) / half[worst]
        return f"{worst} {here[worst]:.3g} -> {other[worst]:.3g} ({size:.1f} half widths)", size
    worst = max(plain, key=lambda name: abs(other[name] - here[name]) / max(abs(here[name]), 1e-12))
    size = abs(other[worst] - here[worst]) / max(abs(here[worst]), 1e-12)
    return (
        f"{worst} {here[worst]:.3g} -> {other[worst]:.3g}",
        5 * size,
    )  # a change of 20 % without an interval to judge by


def _points(fit):
    return pandas.DataFrame(fit.points)


def _objective(fit, frame):
    good = fit.gap < 1e-10 and fit.gradient < 1e-4
    yield (
        "fine" if good else "beware",
        f"the objective is a sum, judged relative to itself: a further Newton step would lower it by a share of "
        f"{fit.gap:.0e}, scaled gradient {fit.gradient:.0e}, {fit.starts_agree} of {fit.starts} starts agree",
    )


def _weights(fit, frame):
    weight = np.array([row["weight"] for row in fit.points])
    ratio = weight.max() / weight.min()
    words = (
        "all weights are equal" if ratio < 1 + 1e-9 else f"weights span a factor {ratio:.3g}; they should be 1 / var"
    )
    start = "the optimum equals a starting point" if fit.optimum_is_start else "the optimum is no starting point"
    moved = "" if not fit.optimum_is_start else " (right only for a table without noise)"
    yield "beware" if fit.optimum_is_start or ratio > 100 else "fine", f"{words}; {start}{moved}"


def _rows(fit, frame):
    points = _points(fit)
    needed = len(fit.params) + 1
    if len(points) - LOWEST >= needed and "C" in points:
        rest = points.sort_values("C", kind="stable").iloc[LOWEST:]
        variables = {v: rest[v].to_numpy(float) for v in fit.variables}
        if not get_law(fit.law).terms or not examine(variables, get_law(fit.law)).reasons:
            words, size = _shift(fit, refit(fit, rest))
            yield "beware" if size > 1 else "fine", f"without the {LOWEST} rows of least compute: {words}"
        else:
            yield "beware", f"the {LOWEST} rows of least compute carry the fit: without them it is not identified"
    else:
        yield "beware", f"{len(points)} rows are too few to leave out the {LOWEST} of least compute"
    worst = max(fit.points, key=lambda row: np.nan_to_num(row.get("influence", math.nan)))
    size = worst.get("influence", math.nan)
    if size == size:
        yield (
            "beware" if size > 1 else "fine",
            f"most influential row: without {worst['run']} a parameter moves by {size:.1f} half widths of its interval",
        )
    largest, ratio, noise = _outlier(fit)
    yield (
        "beware" if ratio > FAR else "fine",
        f"largest residual: {largest['run']}, {_amount(fit, largest['residual'])}, {ratio:.1f} times the noise of the "
        f"others ({_amount(fit, noise).lstrip('+')}, from their median)",
    )


def _outlier(fit):
    """The row of the largest weighted residual, its size over the noise, and the noise.

    The noise is 1.48 medians, so that one outlier does not hide itself; K parameters can meet K rows exactly, so the K
    smallest residuals do not count.
    """
    size = np.abs([row["residual"] for row in fit.points]) * np.sqrt(relative([row["weight"] for row in fit.points]))
    free = np.sort(size)[len(fit.params) :]
    quiet = QUIET * (np.mean([row["loss"] for row in fit.points]) if fit.plain else 1.0)
    noise = max(1.4826 * float(np.median(free if len(free) else size)), quiet)
    worst = int(size.argmax())
    return fit.points[worst], float(size[worst] / noise), noise


def _amount(fit, residual):
    """A residual in words, in the unit that was fitted."""
    if fit.target == "share":
        return f"{100 * residual:+.2f} share points"
    return f"{residual:+.3g} in the unit of the loss" if fit.plain else f"{100 * residual:+.2f} % of the loss"


def _parabola(fit, frame):
    yield "fine", "no parabola: the law itself is fitted, so wide or uncentred slices bias nothing"


def _collinear(fit, frame):
    surface = {"N", "D"} <= set(fit.variables)
    over = "a line D = k N gives" if surface else "parameters cannot be told apart"
    words = f"condition number of the Jacobian {fit.condition:.3g} ({over} over {MAX_CONDITION:.0e})"
    mark = "fine" if fit.condition < 1000 else "beware"
    if surface:
        cells = {v: np.array([row[v] for row in fit.points]) for v in ("N", "D")}
        found = examine(cells, CHINCHILLA)
        words += f"; D scatters by a factor {math.exp(found.off_line):.2f} around a power of N"
        mark = "beware" if found.off_line < 2 * LINE else mark
        for name, decades in found.decades.items():
            if decades < 1:
                yield "beware", f"{name} spans {decades:.1f} decades in {found.levels[name]} values"
    yield mark, words


def _counts(fit, frame):
    used = fit.conventions.get("N", "N as given in the table")
    smallest = min((row["N"] for row in fit.points if "N" in row), default=math.nan)
    if frame is None or "N" not in fit.variables:
        small = smallest < SMALL and "N" in fit.variables
        words = f"; N from {short(smallest)}: below {short(SMALL)} the counts differ much" if small else ""
        yield "beware" if small else "fine", f"{used}{words}"
        return
    others = [name for name in COUNTS if name in frame and not np.allclose(frame[name], frame["N"], rtol=1e-9)]
    if not others:
        mark = "beware" if smallest < SMALL else "fine"
        yield mark, f"{used}; the table has no other count, so how a would change with it is unknown"
        return
    here = {**fit.params, **fit.derived}
    name = "a" if "a" in here else "alpha"
    parts = []
    for column in others:
        other = frame.assign(N=frame[column], C=FLOPS_PER_PARAM_TOKEN * frame[column] * frame["D"])
        parts.append((refit(fit, other)[name], COUNTS[column]))
    low, high = min(v for v, _ in parts), max(v for v, _ in parts)
    words = ", ".join(f"{value:.3f} counted {word}" for value, word in parts)
    apart = max(abs(low - here[name]), abs(high - here[name]))
    yield "beware" if apart > 0.02 else "fine", f"{used}: {name} = {here[name]:.3f}; {words}"


def _tuning(fit, frame):
    if frame is None:
        return
    said = False
    if {"warmup_steps", "steps"} <= set(frame):
        said, share = True, float((frame["warmup_steps"] / frame["steps"]).max())
        yield "beware" if share > LONG_WARMUP else "fine", f"warm-up takes up to {100 * share:.1f} % of a run"
    rate = next((name for name in TUNED if name in frame and frame[name].notna().all()), None)
    if rate and "N" in frame:
        said, distinct = True, frame[rate].nunique()
        alone = distinct == 1 and frame["N"].nunique() > 1
        words = f"one {rate} ({frame[rate].iloc[0]:g}) at every N: large or small models may be untuned"
        yield "beware" if alone else "fine", words if alone else f"{rate} takes {distinct} values over the runs"
    if not said:
        yield "beware", "the table does not say how long warm-up was or what was tuned"


def _losses(fit, frame):
    words = fit.conventions.get("loss", "")
    known = "validation" in words
    yield "fine" if known else "beware", words if known else f"{words or 'loss'}: not known to be held out"
    early = sum("schedule not finished" in row["reason"] for row in fit.excluded)
    if early or (frame is not None and "schedule_complete" in frame):
        yield "fine", f"schedules completed in all fitted rows ({early} others left out)"
    elif frame is not None:
        yield "beware", "the table does not say whether schedules completed: points before the decay are no runs"


def _delta(fit, frame):
    if fit.criterion != "huber_log":
        yield "beware", f"objective {fit.criterion}: a single outlier can move the fit"
        return
    near = "least absolute deviations" if fit.tail_share > 0.5 else "least squares"
    yield (
        "fine",
        f"{100 * fit.tail_share:.0f} % of the residuals lie beyond delta = {fit.delta:g}: the fit is close to {near}",
    )


def _rounding(fit, frame):
    if fit.law != "chinchilla":
        yield "fine", "parameters are kept in full precision; exponents rounded to two digits would move predictions"
        return
    budget = 10 * max(row["C"] for row in fit.points)
    rounded = {**fit.params, **{name: max(round(fit.params[name], 2), 0.01) for name in ("alpha", "beta")}}
    ratios = [float(optimal_allocation(p, budget)["tokens_per_param"]) for p in (fit.params, rounded)]
    factor = max(ratios) / min(ratios)
    yield (
        "beware" if factor > 1.2 else "fine",
        f"D/N at {budget:.3g} FLOP is {ratios[0]:.3g}, and {ratios[1]:.3g} with exponents rounded to two digits: "
        "copy the parameters in full precision",
    )


def _widths(fit, frame):
    if not fit.intervals or not fit.noise_sd > 0:
        yield "beware", "no intervals were made"
        return
    law = get_law(fit.law)
    names = [term.exponent for term in law.terms] or [p.name for p in law.space if not (p.log or p.keep)]
    if any(fit.params[p.name] <= 0 for p in law.space) or not names:
        yield "fine", "widths are not compared with theory: a parameter is 0"
        return
    here = Coordinates(law, fit.params)
    x = {v: np.array([row[v] for row in fit.points]) for v in law.variables}
    unit = fit.noise_sd * (price(fit.noise_sd, fit.delta) if fit.criterion == "huber_log" else 1.0)
    weight = np.sqrt(relative([row["weight"] for row in fit.points]))
    sd = np.sqrt(np.diag(covariance(here.jacobian(x, fit.plain), unit / weight)))
    for name in names:
        expected = half_width_factor(fit.level) * sd[law.parameters.index(name)]
        half = (fit.intervals[name][1] - fit.intervals[name][0]) / 2
        if half == 0:
            yield "fine", f"{name} has an interval of no width: the refits see no noise"
            continue
        rows = len(fit.points) * (expected / half) ** 2
        yield (
            "beware" if half < 0.5 * expected else "fine",
            f"{name} +-{half:.2g} from {len(fit.points)} runs; noise of {noise_words(fit)} would give "
            f"+-{expected:.2g}, and this width takes about {number(rows, 2)} runs",
        )


def _repeats(fit, frame):
    cells = len({tuple(row[v] for v in fit.variables) for row in fit.points})
    repeats = len(fit.points) - cells
    if not repeats:
        yield "beware", f"one run a configuration ({cells}): noise between seeds cannot be told from misfit"
    elif fit.resamples and fit.bootstrap in ("rows", "residual"):
        yield (
            "beware",
            f"{repeats} rows repeat a configuration, but refits by {fit.bootstrap} treat them as independent",
        )
    else:
        yield (
            "fine",
            f"{repeats} rows repeat one of {cells} configurations; bootstrap: {fit.bootstrap * bool(fit.resamples)}",
        )


def _curvature(fit, frame):
    if "N" not in fit.variables:
        yield "fine", "the law has no N"
        return
    points = _points(fit)
    log_n, residual = np.log(points["N"]), points["residual"].to_numpy()
    if len(points) >= 8 and np.ptp(log_n) > 0 and residual.std() > 0:
        bend = (log_n - log_n.mean()) ** 2
        r = float(np.corrcoef(bend, residual)[0, 1]) if bend.std() > 0 else 0.0
        t = r * math.sqrt((len(points) - 2) / max(1 - r * r, 1e-12))
        yield (
            "beware" if abs(t) > 3 else "fine",
            f"residuals bend with ln N by {t:+.1f} standard errors (a law that holds at small N gives within 3)",
        )
    rest = points[points["N"] > 1.02 * points["N"].min()]
    cells = {v: rest[v].to_numpy(float) for v in fit.variables}
    law = get_law(fit.law)
    if len(rest) > len(fit.params) and (not law.terms or not examine(cells, law).reasons):
        words, size = _shift(fit, refit(fit, rest))
        yield "beware" if size > 1 else "fine", f"without the smallest size, N = {short(points['N'].min())}: {words}"
    else:
        yield "beware", f"without the smallest size, N = {short(points['N'].min())}, the law is not identified"


def _metric(fit, frame):
    if fit.target == "share":
        yield "beware", "a share is fitted: exact match is about p^L, so its sharpness may be the metric's"
    else:
        yield "fine", "a loss is fitted, no metric with a threshold"


def _floor(fit, frame):
    if "E" not in fit.params:
        yield "fine", "the law has no floor"
        return
    if not fit.resamples:
        yield "beware", f"E = {number(fit.params['E'])} trades off with the exponents; fit with refits to see how much"
        return
    names = list(fit.correlation_names)
    exponents = [term.exponent for term in get_law(fit.law).terms]
    pairs = [(name, fit.correlation[names.index("E")][names.index(name)]) for name in exponents if name in names]
    words = ", ".join(f"{value:+.2f} with {name}" for name, value in pairs) or "not known"
    ends = fit.profiles.get("E")
    span = f"; profile interval of E {number(ends[0])} to {number(ends[1])}" if ends else ""
    worst = max((abs(value) for _, value in pairs), default=0.0)
    yield "beware" if worst > 0.95 else "fine", f"correlation of E: {words}{span}"


def _compute(fit, frame):
    used = fit.conventions.get("C", "C as given in the table")
    if frame is None:
        yield "fine", used
        return
    exact = next((name for name in ("flops_exact", "flops_attention") if name in frame), None)
    smallest = min((row["N"] for row in fit.points if "N" in row), default=math.inf)
    if exact != "flops_exact" or not {"N", "D"} <= set(frame):
        mark = "beware" if smallest < SMALL else "fine"
        yield mark, f"{used}; no exact count to compare with (N from {short(smallest)})"
        return
    ratio = frame["flops_exact"] / (FLOPS_PER_PARAM_TOKEN * frame["N"] * frame["D"])
    ends = [float(ratio[frame["N"] == n].mean()) for n in (frame["N"].min(), frame["N"].max())]
    change = max(*ends, 1.0) / min(*ends, 1.0)
    yield (
        "beware" if change > 1.1 else "fine",
        f"{used}; exact FLOP over 6 N D: {ends[0]:.2f} at the smallest N, {ends[1]:.2f} at the largest",
    )

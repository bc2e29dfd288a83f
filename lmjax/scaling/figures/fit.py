"""Figures of a fit: training curves, loss against the law's variables, predictions, residuals, the optimal split.

Each function returns a matplotlib Figure; `plot_all` writes them. A figure reads the Fit (its points, resamples and
conventions) and nothing else of the analysis, so that what is drawn is what was fitted. Any law can be drawn: its
curves are predictions along one variable, one for each value of its other variables.
"""

import math
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.errors import InputError
from lmjax.format import count, flop, number, variable
from lmjax.scaling.columns import N_COUNTS, cluster, curve_keys
from lmjax.scaling.figures import panels, style
from lmjax.scaling.figures.style import HELD_OUT, INK, MARKERS, MAX_LEVELS, QUIET, WORDS, literal, log_axis, spread
from lmjax.scaling.lack_of_fit import fires, surface
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law, predict_loss
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.text import interval_words, lack_of_fit_words

CURVE_BINS = 60  # number of bins of equal width in log compute over which training losses are averaged
NAMES = {"N": "loss_vs_params", "D": "loss_vs_tokens", "C": "loss_vs_compute"}
CRITERIA = {
    "huber_log": "sum of Huber losses (delta {delta:g}) of ln loss",
    "squared_log": "sum of squares of ln loss",
    "squared": "sum of squares",
}
NO_RESULT = ("status ", "loss is NaN")
BUDGETS = np.array([1.0, 3.0, 10.0, 100.0])  # marked, times the largest fitted 6 N D
FAR = 10.0  # times the largest fitted 6 N D: dashed and hollow from there on
FEW_CURVES = 6  # drawn and named where there are too many values for a curve each
LINES = 9  # of equal loss, about
MARGIN = 0.05  # of the axes, in log space
SIZES, TOLERANCE = 3, 0.1  # sizes that make a compute budget; difference of ln C within it
PARTS = {"N": "#2d708e", "D": "#c33d80", "tokens_per_param": INK}


def plot_all(
    fit: Fit, folder, formats: Sequence[str] = ("png",), runs=None, metrics: Mapping[str, Sequence[dict]] | None = None
) -> list[pathlib.Path]:
    """Draws and writes every figure that the fit and the runs allow.

    Args:
        fit: the fit; a refused one is drawn as points without a law.
        folder: made if missing.
        formats: of png, svg, pdf.
        runs: frame of run_record.read_runs; None for a plain table.
        metrics: run_id -> records of metrics.jsonl; without them there are no training curves.

    Returns:
        The written paths, in the order of the report.

    Raises:
        InputError: matplotlib is missing; an unknown format.
    """
    style.check_formats(formats)
    out = pathlib.Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    n_column = next((column for column, words in N_COUNTS.values() if words == fit.conventions["N"]), "n_total")
    figures = {}
    if metrics and runs is not None:
        figures["summary"] = summary_figure(runs, metrics, fit, n_column)
        figures["training_curves"] = training_curves(runs, metrics, n_column)
    for name in get_law(fit.law).variables:
        figures[NAMES.get(name, f"loss_vs_{name}")] = loss_against(fit, name)
    if not fit.refused:
        figures |= {"predicted_vs_measured": predicted_vs_measured(fit), "residuals": residuals(fit)}
    if _budgets(fit) and not fit.refused:
        figures["isoflop"] = isoflop(fit)
    if fit.splits and fit.resamples and not fit.refused:
        figures["allocation"] = allocation(fit)
    return [path for name, figure in figures.items() for path in style.save(figure, out / name, formats)]


def training_curves(runs, metrics: Mapping[str, Sequence[dict]], n_column: str = "n_total"):
    """Draws training loss against compute, a line per run, coloured by N; dots are validation losses at the end.

    Args:
        runs: frame of run_record.read_runs (run_id, n_total, flops_exact, loss, status, held_out).
        metrics: run_id -> records of its metrics.jsonl (flops, loss).
        n_column: the count of parameters behind the colours.
    """
    return _one_panel([_curve_caption(n_column, runs)], _draw_training, runs, metrics, n_column, width=6.2)


def loss_against(fit: Fit, name: str):
    """Draws loss against one variable of the law, a curve with its interval per value of the others.

    Held-out runs are diamonds, rows left out of the fit hollow circles, failed runs crosses at the top edge.
    """
    return _one_panel(_foot(fit, "bands"), _draw_law, fit, name)


def predicted_vs_measured(fit: Fit, note: str = ""):
    """Draws predicted against measured loss; held-out runs with the interval of their prediction; note: small print."""
    return _one_panel([note, *_bars(fit), *_foot(fit)], _draw_predicted, fit)


def residuals(fit: Fit):
    """Draws measured over predicted loss against two variables of the law, and what of it is systematic.

    The variables are N and D for a law in them, else the first two of the law. The band is the noise of the fit. Where
    the test for lack of fit fires, a law of one variable gets a curve of the systematic part, one of two a map.
    """
    variables = get_law(fit.law).variables
    shown = _known(fit, ("N", "D")) if set(variables) <= {"N", "D"} else variables[:2]
    mapped = len(variables) == 2 and fires(fit)
    band = f"Grey band: 95 % of normal noise. Test for systematic residuals: {lack_of_fit_words(fit)}."
    columns = len(shown) + mapped
    with style.new_figure(4.6 * max(columns, 1.2), 3.6, columns, foot=[*_foot(fit), band]) as (figure, grid):
        for ax, name in zip(grid[0], shown, strict=False):
            _draw_residuals(ax, fit, name)
        if mapped:
            _draw_systematic(grid[0, -1], fit, variables)
    return figure


def isoflop(fit: Fit):
    """Draws loss against N at each compute budget, with the law there and its least loss; see `_budgets`."""
    foot = _foot(fit)
    foot[0] = "Curves: the law at the D that the runs of a budget have at each N. " + foot[0]
    return _one_panel(foot, _draw_budgets, fit)


def allocation(fit: Fit):
    """Draws the compute-optimal split: N*, D* and D/N against C with intervals; lines of equal loss with the path.

    For a usable fit of the law chinchilla with resamples. Dashed and hollow beyond 10 times the largest fitted compute.
    """
    marks = ", ".join(count(v) for v in BUDGETS)
    caption = (
        f"Compute-optimal split: circles at {marks} times the largest fitted 6 N D; hollow, dashed: beyond "
        f"{FAR:.0f} times; ticks: fitted runs. Right: dashed beyond the largest."
    )
    options = {"foot": [caption, *_foot(fit, "bands")], "gridspec_kw": {"height_ratios": [1.9, 1]}}
    with style.new_figure(10.4, 4.8, columns=2, rows=2, **options) as (figure, grid):
        (above, right), (below, spare) = grid
        for empty in (right, spare):
            empty.remove()
        _draw_split(above, fit, ("N", "D"))
        above.set(ylabel="N*, parameters; D*, tokens", title="Compute-optimal split")
        above.tick_params(labelbottom=False)
        panels.outside(above)
        _draw_split(below, fit, ("tokens_per_param",))
        below.set(xlabel=WORDS["C"], ylabel="D*/N*")
        _draw_plane(figure.add_subplot(above.get_gridspec()[:, 1]), fit)
    return figure


def summary_figure(runs, metrics: Mapping[str, Sequence[dict]], fit: Fit, n_column: str = "n_total"):
    """Draws one wide figure for a README: training curves, the fitted law, predicted against measured."""
    foot, widths = [_curve_caption(n_column, runs), *_bars(fit), *_foot(fit, "bands")], {"width_ratios": [1.2, 1.2, 1]}
    with style.new_figure(12.4, 4.4, columns=3, foot=foot, gridspec_kw=widths) as (figure, grid):
        _draw_training(grid[0, 0], runs, metrics, n_column)
        _draw_law(grid[0, 1], fit, get_law(fit.law).variables[0])
        _draw_predicted(grid[0, 2], fit)
        panels.letters(grid)
    return figure


def _one_panel(foot, draw, *what, width=5.6):
    with style.new_figure(width, 4.3, foot=foot) as (figure, grid):
        draw(grid[0, 0], *what)
    return figure


def _curve_caption(n_column, runs):
    words = {column: words for column, words in N_COUNTS.values()}.get(n_column, f"N = {n_column}")
    objective = f" of the objective {runs['objective'].dropna().iloc[0]}" if "objective" in runs else ""
    return (
        f"Training curves: loss in nats per predicted token{objective}, mean over {CURVE_BINS} bins of log "
        f"compute; dots: final validation loss. {words}. C: exact training FLOP."
    )


def _bars(fit):
    """What the bars of held-out runs are."""
    if not (fit.held_out and fit.resamples):
        return []
    averaged = "" if fit.target == "share" else ", averaged over laws"
    return [f"Bars: {fit.confidence:.0%} intervals of a new run{averaged}."]


def _foot(fit, drawn=""):
    """The small print: law, criterion, drawn intervals, hashes of fit and data, conventions."""
    which = f"fit {fit.hash}, data {fit.data_hash}"
    left_out = f"; {len(fit.excluded)} rows left out" if fit.excluded else ""
    conventions = "; ".join(fit.conventions.values()) + "."
    if fit.refused:
        return [f"No law drawn: {'; '.join(fit.reasons)}; {which}{left_out}.", conventions]
    how = CRITERIA[fit.criterion].format(delta=fit.delta)
    intervals = "" if fit.resamples else "; no intervals"
    if drawn and fit.resamples:
        intervals = f"; {drawn}: {interval_words(fit)}"
    return [f"{fit.formula}, {how} over {len(fit.points)} runs{left_out}{intervals}; {which}.", conventions]


# -- Training curves.


def _draw_training(ax, runs, metrics, n_column):
    done = runs[runs["run_id"].isin([run for run, records in metrics.items() if records])]
    size = cluster(done[n_column])
    palette = style.colours("N", size)
    every_c, every_l, failed, named = [], [], [], set()
    for (_, row), N in sorted(zip(done.iterrows(), size, strict=True), key=lambda pair: pair[1]):
        compute, loss = _binned(metrics[row["run_id"]])
        if not len(compute):
            continue
        label = count(N) if N not in named and len(palette) <= MAX_LEVELS else None
        named.add(N)
        ax.plot(compute, loss, "-", color=palette[N], lw=1.0, alpha=0.9, label=label)
        final = float(row["loss"]) if row["status"] == "done" else math.nan
        if not math.isfinite(final):
            failed.append((compute[-1], str(row["status"])))
        elif row.get("held_out") in (True, 1):
            panels.held_out(ax, compute[-1], final, zorder=4)
        else:
            panels.points(ax, compute[-1], final, palette[N], ms=4, mew=0.8)
        every_c += list(compute)
        every_l += [*loss, final]
    if every_c:
        log_axis(ax.xaxis, "C", *spread(every_c, 0.03))
        log_axis(ax.yaxis, "loss", *spread(every_l, 0.05))
    if failed:
        panels.failed_marks(ax, *zip(*failed, strict=True))
    if "held_out" in done and done["held_out"].isin([True, 1]).any():
        panels.held_out(ax, [], [], label="held out")
    several = "lm_loss" in done and done["lm_loss"].notna().any()  # heads, whose losses are summed
    ax.set(xlabel=WORDS["C"], ylabel="loss" if several else "loss, nats per token", title="Training curves")
    panels.legend(ax, "N", ncols=2 if len(palette) > 4 else 1)


def _binned(records):
    """Compute and mean training loss per bin of log compute, [2, bins]; only finite losses."""
    pairs = [(r["flops"], r["loss"]) for r in records if r.get("loss") is not None and r.get("flops", 0) > 0]
    compute, loss = np.array([pair for pair in pairs if math.isfinite(pair[1])], float).reshape(-1, 2).T
    if len(compute) <= CURVE_BINS:
        return compute, loss
    place = np.log(compute / compute[0]) / np.log(compute[-1] / compute[0]) * CURVE_BINS
    starts = np.unique(np.minimum(place.astype(int), CURVE_BINS - 1), return_index=True)[1]
    sums = np.add.reduceat([np.log(compute), loss], starts, axis=1)
    log_c, mean = sums / np.diff([*starts, len(compute)])
    return np.append(np.exp(log_c[:-1]), compute[-1]), mean  # the line ends where the run ended


# -- Loss against one variable.


def _draw_law(ax, fit, name):
    """Loss against one variable: a curve, colour and marker per value of the others, named at its right end."""
    others = _others(fit, name)
    target = literal(fit.target.capitalize())
    rows = [*fit.points, *fit.held_out]
    if not rows:
        return panels.nothing(ax, "no finished run", f"{target} against {name}")
    keys = curve_keys(rows, others)
    fitted = list(zip(rows, keys, strict=True))[: len(fit.points)]
    palette = _palette(others, keys)
    continuous = len(palette) > MAX_LEVELS
    failed, left_out = _missing(fit, name)
    low, high = spread([row[name] for row in (*rows, *failed, *left_out)])
    log_axis(ax.xaxis, name, low, high)
    _loss_axis(ax, fit, [*rows, *left_out])
    for i, key in enumerate(sorted(palette)):
        chosen = [row for row, at in fitted if at == key]
        look = dict(marker="o", ms=4) if continuous else dict(marker=MARKERS[i % len(MARKERS)], ms=5.4)
        panels.points(ax, [row[name] for row in chosen], [row["loss"] for row in chosen], palette[key], **look)
    _law_curves(ax, fit, rows, keys, palette, name, others, np.geomspace(low, high, 160))
    for i, (row, key) in enumerate(zip(fit.held_out, keys[len(fit.points) :], strict=True)):
        look = dict(ms=7.2, mfc=palette[key], mec=HELD_OUT, mew=1.7, label=None if i else "held out")
        panels.held_out(ax, row[name], row["loss"], **look)
    panels.excluded_marks(ax, [row[name] for row in left_out], [row["loss"] for row in left_out])
    panels.failed_marks(ax, [row[name] for row in failed], [str(row.get("status")) for row in failed])
    ax.set(xlabel=WORDS.get(name, name), ylabel=literal(fit.target), title=f"{target} against {name}")
    panels.outside(ax, side="below")
    _write_formula(ax, fit)


def _others(fit, name):
    """The variables that distinguish curves: the other ones of the law; of N and D for a law in one of them."""
    variables = get_law(fit.law).variables
    pair = _known(fit, ("N", "D")) if set(variables) < {"N", "D"} else variables
    return [other for other in pair if other != name]


def _known(fit, names):
    """The columns among `names` in which every row has a number; a table need not have both N and D."""
    rows = [*fit.points, *fit.held_out]
    return [name for name in names if all(math.isfinite(row[name]) for row in rows)]


def _palette(others, keys):
    """A colour per key: by its value for one variable, by its rank for several."""
    distinct = sorted(set(keys))
    if len(others) == 1:
        colours = style.colours(others[0], np.array([key[0] for key in distinct]))
        return {key: colours[key[0]] for key in distinct}
    colours = style.colours("N", np.geomspace(1, 2, len(distinct)))
    return dict(zip(distinct, colours.values(), strict=True))


def _missing(fit, name):
    """Rows outside the fit that have a value on the axis: those without a loss, and those with one."""
    rows = [row for row in fit.excluded if row.get(name, 0) > 0]
    failed = [row for row in rows if row["reason"].startswith(NO_RESULT) or not row.get("loss", math.nan) > 0]
    return failed, [row for row in rows if row not in failed]


def _law_curves(ax, fit, rows, keys, palette, name, others, x):
    """Curves with intervals, dashed where no fitted run has their values; named at their right ends."""
    distinct, ends = sorted(palette), []
    continuous = len(distinct) > MAX_LEVELS
    drawn = _chosen(distinct, FEW_CURVES) if continuous else distinct
    if get_law(fit.law).variables == (name,):
        drawn = [distinct[len(distinct) // 2]]
    fitted = set(keys[: len(fit.points)])
    for key in drawn:
        if fit.refused:
            end = min(row["loss"] for row, at in zip(rows, keys, strict=True) if continuous or at == key)
        else:
            dashed = not continuous and key not in fitted
            loss, low, high = fit.predict(**{name: x, **dict(zip(others, key, strict=True))}, new_run=False)
            look = dict(ls="--" if dashed else "-", alpha=0.09 if dashed else 0.18)
            panels.curve_with_band(ax, x, loss, low, high, palette[key], **look)
            end = float(loss[-1])
        label = ", ".join(f"{v} = {variable(v, at)}" for v, at in zip(others, key, strict=True))
        ends.append((end, label, palette[key]))
    if continuous and fit.refused:
        if len(others) == 1:
            panels.colour_bar(ax, others[0], [key[0] for key in distinct])
        return
    panels.end_labels(ax, [end for end in ends if end[1]])


def _chosen(keys, count):
    """At most `count` of many sorted keys, those nearest to even steps of the logarithm of their first value."""
    logs = np.log([key[0] for key in keys])
    at = np.abs(logs[:, None] - np.linspace(*np.quantile(logs, [0.02, 0.98]), count)).argmin(0)
    return [keys[i] for i in np.unique(at)]


def _loss_axis(ax, fit, rows):
    if fit.target == "share":
        ax.set_ylim(-0.04, 1.04)
        return
    losses = [row["loss"] for row in rows]
    if not fit.refused:
        losses += [row["predicted"] for row in (*fit.points, *fit.held_out)]
    log_axis(ax.yaxis, "loss", *spread(losses, 0.09))


def _write_formula(ax, fit):
    if fit.refused:
        ax.text(0.02, 0.03, "not fitted", transform=ax.transAxes, color=panels.RED, fontsize=8)
        return
    law = get_law(fit.law)
    if not law.terms:  # too long for the panel; the small print has it
        return
    p = {name: re.sub(r"e([-+]?\d+)", r"\\times 10^{\1}", number(value, 3)) for name, value in fit.params.items()}
    words = f"$L = {p['E']}"
    for term in law.terms:
        words += f" + {p[term.coefficient]}\\,{term.variable}^{{-{p[term.exponent]}}}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    ax.text(0.02, 0.03, words + "$", transform=ax.transAxes, fontsize=8, color=INK, zorder=6, bbox=box)


# -- Loss at equal compute.


def _budgets(fit):
    """Row numbers of each compute budget, by C: where most runs share their C with SIZES sizes or more; else empty."""
    from lmjax.scaling.methods.budgets import BudgetTable

    columns = {name: fit.column(name) for name in ("N", "D", "C", "loss")}
    N, C = columns["N"], columns["C"]
    if set(fit.variables) != {"N", "D"} or len(C) < 2 * SIZES or not np.isfinite(C).all():
        return []
    try:
        groups = BudgetTable(columns, TOLERANCE, None).groups
    except InputError:  # C varies continuously: there are no budgets
        return []
    groups = [rows for rows in groups if len(np.unique(np.round(np.log(N[rows]), 2))) >= SIZES]
    return groups if len(groups) > 1 and sum(map(len, groups)) >= 0.5 * len(C) else []


def _draw_budgets(ax, fit):
    """Runs, law and its least loss at each budget, named at the right end."""
    N, D, loss, C = (fit.column(name) for name in ("N", "D", "loss", "C"))
    groups, ends, best = _budgets(fit), [], []
    middles = np.array([float(np.exp(np.log(C[rows]).mean())) for rows in groups])
    palette = style.colours("N", middles)
    log_axis(ax.xaxis, "N", *spread(N))
    _loss_axis(ax, fit, fit.points)
    every = math.ceil(len(groups) / MAX_LEVELS)
    for i, (rows, budget) in enumerate(zip(groups, middles, strict=True)):
        colour = palette[budget]
        panels.points(ax, N[rows], loss[rows], colour, MARKERS[i % len(MARKERS)], ms=5)
        line = np.polyfit(np.log(N[rows]), np.log(D[rows]), 1)
        x = np.geomspace(N[rows].min() / 1.2, N[rows].max() * 1.2, 200)
        value = fit.predict(N=x, D=np.exp(np.polyval(line, np.log(x))), new_run=False).value
        ax.plot(x, value, "-", color=colour, lw=1.2, zorder=3)
        if 0 < value.argmin() < len(x) - 1:
            best.append((x[value.argmin()], value.min()))
        if (len(groups) - 1 - i) % every == 0:
            ends.append((float(value[-1]), f"C = {style.power_of_ten(budget, 2)}", colour))
    if best:
        look = dict(ms=10, mfc="white", mec=INK, mew=1.0, ls="none", zorder=6, label="least loss of the law")
        ax.plot(*zip(*best, strict=True), "*", **look)
    panels.end_labels(ax, ends)
    ax.set(xlabel=WORDS["N"], ylabel=literal(fit.target), title=f"{fit.target.capitalize()} at equal compute")
    panels.outside(ax)


# -- Predictions and residuals.


def _draw_predicted(ax, fit):
    title = "Predicted against measured"
    if fit.refused:
        return panels.nothing(ax, "not fitted", title)
    by, rows = _coloured_by(fit), [*fit.points, *fit.held_out]
    size = cluster([row[by] for row in rows])
    palette = style.colours(by, size)
    measured, predicted = ([row[name] for row in rows] for name in ("loss", "predicted"))
    ends = spread([*measured, *predicted, *(row[side] for row in fit.held_out for side in ("low", "high"))], 0.06)
    ax.plot(ends, ends, "-", color="#999999", lw=0.8, zorder=1)
    fitted = len(fit.points)
    tint = [palette[v] for v in size[:fitted]]
    ax.scatter(measured[:fitted], predicted[:fitted], s=20, zorder=3, linewidths=0.5, c=tint, edgecolors="white")
    for i, row in enumerate(fit.held_out):
        error = [[max(row["predicted"] - row["low"], 0)], [max(row["high"] - row["predicted"], 0)]]
        look = dict(fmt="D", ms=5.5, color=HELD_OUT, mec="white", mew=0.8, elinewidth=1.2, capsize=2.5, zorder=4)
        ax.errorbar(row["loss"], row["predicted"], yerr=error, label="held out" if i == 0 else None, **look)
    _held_out_errors(ax, fit)
    if fit.target == "share":
        ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    else:
        for axis in (ax.xaxis, ax.yaxis):
            log_axis(axis, "loss", *ends)
    target = literal(fit.target)
    ax.set(xlabel=f"measured {target}", ylabel=f"predicted {target}", title=title)
    panels.colour_key(ax, by, size, palette)


def _held_out_errors(ax, fit):
    """The error of each held-out prediction in the empty corner; the five largest of many."""
    rows, lines = sorted(fit.held_out, key=lambda row: -abs(row["relative_error"])), []
    for row in rows[:5]:
        cell = ", ".join(f"{v} {count(row[v])}" for v in ("N", "D") if row[v] > 0) or literal(row["run"])
        lines.append(f"{cell}:  {100 * row['relative_error']:+.2f} %")
    if lines:
        lines.insert(0, "error of the prediction" + (f", 5 largest of {len(rows)}" if len(rows) > 5 else ""))
        look = dict(ha="right", fontsize=7.5, color=HELD_OUT, linespacing=1.5)
        ax.text(0.98, 0.03, "\n".join(lines), transform=ax.transAxes, **look)


def _coloured_by(fit, but=""):
    """The variable behind the colours of points: N where all rows have one, else the first of the law."""
    rows = (*fit.points, *fit.held_out)
    names = [v for v in ("N", "D", *get_law(fit.law).variables) if v != but and all(row[v] > 0 for row in rows)]
    return names[0] if names else but


def _draw_residuals(ax, fit, name):
    by = _coloured_by(fit, name)
    rows = [*fit.points, *fit.held_out]
    values = cluster([row[by] for row in rows])
    palette = style.colours(by, values)
    ax.axhline(0, color="#999999", lw=0.8, zorder=1)
    if math.isfinite(fit.noise_sd):
        ax.axhspan(
            *_in_percent(fit, 1.96 * fit.noise_sd * np.array([-1, 1])), color="#888888", alpha=0.12, lw=0, zorder=0
        )
    error = _residuals(fit, rows)
    x = np.array([row[name] for row in rows])
    fitted = np.arange(len(rows)) < len(fit.points)
    tint = np.array([palette[v] for v in values])[fitted] if by != name else QUIET
    ax.scatter(x[fitted], error[fitted], s=22, c=tint, edgecolors="white", linewidths=0.5, zorder=3)
    if fit.variables == (name,) and fires(fit):
        along = np.geomspace(x[fitted].min(), x[fitted].max(), 200)
        ax.plot(along, _in_percent(fit, surface(fit, {name: along})), color=HELD_OUT, lw=1.4, label="systematic part")
    if fit.held_out:
        panels.held_out(ax, x[~fitted], error[~fitted], ms=6.5, zorder=4, label="held out")
    log_axis(ax.xaxis, name, *spread(x))
    ax.set(xlabel=WORDS.get(name, name), ylabel=_residual_words(fit), title=f"Residuals against {name}")
    if by == name:  # the axis shows it already
        panels.outside(ax)
    else:
        panels.colour_key(ax, by, values, palette)


def _draw_systematic(ax, fit, variables):
    """A map of the systematic part of the residuals within the range of the runs, under the residuals themselves."""
    from matplotlib.path import Path
    from scipy.spatial import ConvexHull

    first, second = (fit.column(name) for name in variables)
    places = np.log(np.stack([first, second], 1))
    grid = np.meshgrid(*(np.geomspace(v.min(), v.max(), 80) for v in (first, second)))
    value = _in_percent(fit, surface(fit, {name: v.ravel() for name, v in zip(variables, grid, strict=True)}))
    hull = Path(places[ConvexHull(places).vertices])
    inside = hull.contains_points(np.log(np.stack([v.ravel() for v in grid], 1)), radius=1e-6)
    value = np.where(inside, value, np.nan).reshape(grid[0].shape)
    error = _residuals(fit, fit.points)
    top = max(float(np.quantile(np.abs(error), 0.97)), float(np.nanmax(np.abs(value))))
    look = {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    drawn = ax.contourf(*grid, value, levels=np.linspace(-top, top, 22), zorder=1, **look)
    ax.scatter(first, second, c=error, s=16, edgecolors="#444444", linewidths=0.4, zorder=3, **look)
    for axis, name, v in zip((ax.xaxis, ax.yaxis), variables, (first, second), strict=True):
        log_axis(axis, name, *spread(v))
    bar = ax.figure.colorbar(drawn, ax=ax, pad=0.02, aspect=30, label=_residual_words(fit))
    bar.set_ticks(style.round_steps(-top, top))
    bar.outline.set_visible(False)
    ax.set(xlabel=WORDS.get(variables[0]), ylabel=WORDS.get(variables[1]), title="Systematic part (runs: residuals)")


def _residual_words(fit):
    unit = "over predicted, %" if not fit.plain else "minus predicted" + ", points" * (fit.target == "share")
    return f"measured {unit}"


def _in_percent(fit, residual):
    """Residuals as drawn: percent of the predicted loss, points of a share, or the loss itself."""
    return 100 * residual if fit.target == "share" else residual if fit.plain else 100 * np.expm1(residual)


def _residuals(fit, rows):
    """Measured minus predicted of rows, as drawn."""
    loss, predicted = (np.array([row[name] for row in rows]) for name in ("loss", "predicted"))
    return _in_percent(fit, loss - predicted) if fit.plain else 100 * (loss - predicted) / predicted


# -- The compute-optimal split.


def _draw_split(ax, fit, names):
    """Parts of the best split (names: of N, D, tokens_per_param) with intervals, marked budgets, ticks at the runs."""
    runs = fit.flop_6nd
    largest = runs.max()
    C = np.geomspace(runs.min(), BUDGETS[-1] * largest, 121)
    best, marked = fit.allocate(C), fit.allocate(BUDGETS * largest)
    near = C <= FAR * largest * (1 + 1e-9)
    seen = []
    for name in names:
        colour, value = PARTS[name], best[name]
        low, high = best[f"{name}_low"], best[f"{name}_high"]
        ax.fill_between(C, low, high, color=colour, alpha=0.16, lw=0, zorder=2)
        ax.plot(C[near], value[near], "-", color=colour, zorder=3, label={"N": "N*", "D": "D*"}.get(name))
        ax.plot(C[~near], value[~near], "--", color=colour, zorder=3)
        for factor, y in zip(BUDGETS, marked[name], strict=True):
            inside = colour if factor <= FAR else "white"
            ax.plot(factor * largest, y, "o", ms=5, mec=colour, mfc=inside, mew=1.2, zorder=4)
        seen += [*value, *np.clip([*low, *high], value.min() / 10, value.max() * 10)]
    log_axis(ax.xaxis, "C", *spread(C, MARGIN))
    log_axis(ax.yaxis, "N" if names != ("tokens_per_param",) else "M", *spread(seen, MARGIN))
    ax.plot(runs, np.full(len(runs), 0.015), "|", color=QUIET, ms=7, transform=ax.get_xaxis_transform(), zorder=4)
    low, high = (float(marked[f"{names[0]}_{end}"][0]) for end in ("low", "high"))
    if high > WIDEST_SPLIT * low:
        look = dict(color=panels.RED, fontsize=8, va="top")
        ax.text(0.02, 0.96, "not determined by these runs", transform=ax.transAxes, **look)


def _draw_plane(ax, fit):
    """Lines of equal loss over N and D, the runs as points, the path of best splits, two lines of equal compute."""
    rows = [*fit.points, *fit.held_out]
    largest = fit.flop_6nd.max()
    C = np.geomspace(fit.flop_6nd.min(), FAR * largest, 60)
    path = fit.allocate(C)
    limits = {}
    for axis, name in ((ax.xaxis, "N"), (ax.yaxis, "D")):
        own = [row[name] for row in rows]
        # an optimum far from every run must not squeeze the runs
        near = [v for v in path[name] if min(own) / 10 <= v <= max(own) * 10]
        limits[name] = spread([*own, *near], MARGIN)
        log_axis(axis, name, *limits[name])
    N, D = np.meshgrid(*(np.geomspace(*limits[name], 120) for name in "ND"))
    loss = predict_loss(fit.law, fit.params, N, D)
    excess = loss - 0.98 * loss.min()
    lines = np.unique(np.round(0.98 * loss.min() + np.geomspace(excess.min(), excess.max(), LINES + 2)[1:-1], 3))
    tints = style.colours("N", lines)
    drawn = ax.contour(N, D, loss, levels=lines, colors=[tints[v] for v in lines], linewidths=0.9, zorder=2)
    edge = predict_loss(fit.law, fit.params, N[0, -1], D[:, 0])  # along the right edge, where lines are named
    ends = [(float(np.interp(-v, -edge, D[:, 0])), f"{v:.3g}", tints[v]) for v in lines if edge[-1] < v < edge[0]]
    panels.end_labels(ax, ends)
    inner = [v for v in lines if not edge[-1] < v < edge[0]]
    if inner:
        ax.clabel(drawn, levels=inner, fmt=lambda value: f"{value:.3g}", fontsize=6.5)
    for factor, label in ((1.0, f"6 N D = {flop(largest)}, {flop(FAR * largest)} FLOP"), (FAR, None)):
        equal = factor * largest / FLOPS_PER_PARAM_TOKEN / N[0]
        ax.plot(N[0], equal, ":", color=QUIET, lw=0.9, zorder=2, label=label)
    known = C <= largest * (1 + 1e-9)
    ax.plot(path["N"][known], path["D"][known], "-", color=INK, lw=1.6, zorder=3, label="best split N*(C)")
    ax.plot(path["N"][~known], path["D"][~known], "--", color=INK, lw=1.6, zorder=3)
    panels.points(ax, fit.column("N"), fit.column("D"), QUIET, ms=5, label="fitted")
    if fit.held_out:
        places = ([row[name] for row in fit.held_out] for name in "ND")
        panels.held_out(ax, *places, ms=5, mew=0.5, zorder=4, label="held out")
    ax.set(xlabel=WORDS["N"], ylabel=WORDS["D"], title=f"Equal {literal(fit.target)} over N and D")
    panels.outside(ax, side="below")

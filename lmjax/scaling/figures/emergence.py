"""Figures of emergence: a task's metric against scale, and a verdict with its tests."""

import textwrap

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.emergence.curves import SMOOTH_METRICS, error_of
from lmjax.scaling.figures import panels as shared
from lmjax.scaling.figures import style as axes
from lmjax.scaling.table import truth

# Okabe and Ito's colours, distinguishable with all kinds of colour vision
POINT, NULL, SAMPLED, POWER, BREAK = "#222222", "#0072b2", "#56b4e9", "#009e73", "#cc79a7"
X = {  # column -> (variable of the axes' look, label)
    "flops_exact": ("C", "C, exact training FLOP"),
    "flops_6nd": ("C", "C = 6 N D, training FLOP"),
    "n_total": ("N", "N, all parameters"),
    "n_non_embedding": ("N", "N, parameters without embeddings"),
    "tokens": ("D", "D, training tokens"),
    "loss": ("loss", "validation loss, nats per predicted token"),
}


def metric_against(table, task: str, metric: str, x: str = "flops_exact", shots: int = 0):
    """Draws value and standard error of one metric; the chance level, and 1/n above it, are lines.

    Args:
        table: frame of lmjax.evals.run.evaluate, or read back from its file.
        task, metric, shots: which rows.
        x: flops_exact | flops_6nd | n_total | n_non_embedding | tokens | loss.

    Returns:
        matplotlib Figure. Each family and semantics has its own marker, since their values are not comparable. Colour
        is N, hollow points are held-out runs, checkpoints of one run are joined, crosses are runs without a result.

    Raises:
        InputError: no such rows; matplotlib is missing.
    """
    if x not in X:
        raise InputError(f"x: expected a column for the x axis, got {x!r}{nearest(x, X)}")
    asked = table[(table["task"] == task) & (table["shots"] == shots)]
    rows = asked[(asked["metric"] == metric) & np.isfinite(asked["value"].astype(float))]
    if not len(rows):
        known = sorted({f"{t} {m}" for t, m in zip(table["task"], table["metric"], strict=True) if isinstance(m, str)})
        raise InputError(f"no rows of {task} {metric} with {shots} shots{nearest(f'{task} {metric}', known)}")
    drawable = rows[np.isfinite(rows[x].astype(float))]
    if not len(drawable):
        raise InputError(f"{task} {metric}: no row has a value in column {x}")
    variable, label = X[x]
    left_out = len(rows) - len(drawable)
    better = "/".join(sorted(set(drawable["better"])))
    foot = [
        f"{task}, {shots} shots, {metric} ({better} is better); bars: one bootstrap standard error "
        "over items; colour: N, all parameters, dark is small; hollow: held-out runs",
        f"{left_out} rows have no {x} and are not drawn" if left_out else "",
    ]
    with axes.new_figure(5.6, 4.0, foot=foot) as (figure, grid):
        ax = grid[0, 0]
        _draw(ax, drawable, x)
        axes.log_axis(ax.xaxis, variable, *axes.spread(drawable[x].astype(float)))
        _chance_lines(ax, drawable)
        missing = table[
            (table["status"] != "done") & table["task"].isin(["", task]) & np.isfinite(table[x].astype(float))
        ]
        inside = missing[(missing["shots"] == shots) | missing["shots"].isna()]
        shared.failed_marks(ax, inside[x].tolist(), inside["status"].str.replace("_", " ").tolist())
        ax.set_xlabel(label)
        ax.set_ylabel(metric.replace("_", " "))
        ax.set_title(f"{task.replace('_', ' ')}: {metric.replace('_', ' ')}")
        ax.legend(loc="best")
    return figure


def _draw(ax, rows, x):
    palette = axes.colours("N", rows["n_total"].to_numpy(float))
    groups = rows.groupby(["family", "semantics"], sort=True)
    for marker, ((family, semantics), group) in zip(axes.MARKERS, groups, strict=False):
        label = f"{family} ({semantics})"
        for _, run in group.groupby("run_dir", sort=False):
            run = run.sort_values("step")
            colour = palette[float(run["n_total"].iloc[0])]
            if len(run) > 1:
                ax.plot(run[x], run["value"], "-", color=colour, lw=0.8, alpha=0.6)
            errors = np.nan_to_num(run["standard_error"].to_numpy(float))
            face = "white" if truth(run, "held_out", "the table").any() else colour
            look = {"fmt": marker, "color": colour, "mfc": face, "elinewidth": 0.8, "zorder": 3}
            ax.errorbar(run[x], run["value"], errors, label=label, **look)
            label = None  # one label per group


def _chance_lines(ax, rows):
    chance = rows["chance"].astype(float)
    if not (np.isfinite(chance).all() and np.ptp(chance) < 1e-9):
        return
    level, items = float(chance.iloc[0]), float(rows["n"].min())
    ax.axhline(level, ls="--", lw=0.9, color=axes.QUIET, label=f"chance {level:.3g}")
    if rows["metric"].iloc[0] in ("accuracy", "exact_match", "greedy_match"):
        label = f"1/n above chance, n = {round(items)}"
        ax.axhline(level + 1 / items, ls=":", lw=0.8, color=axes.QUIET, label=label)


def emergence_figure(result):
    """Draws a verdict: the hard metric with p^L, the task's own loss with both laws, and the numbers behind the tests.

    Args:
        result: Emergence of classify.classify.

    Returns:
        matplotlib Figure of four panels: (a) hard metric, p^L with its band, chance and 1/n; (b) the smooth metric's
        error with the power law and the law with a break; (c) hard metric minus p^L; (d) leave-one-out errors
        of both laws. Dots are runs, circles means over seeds with intervals, hollow diamonds held-out runs, triangles
        values below 1/n, crosses runs without a result. Scale grows to the right, so the loss falls.

    Raises:
        InputError: matplotlib is missing.
    """
    facts = "; ".join(result.conventions.values())
    if result.resamples:
        facts += f"; {result.confidence:.0%} intervals from {result.resamples} resamples over seeds and items"
    facts += f"; n = {result.n} items" * bool(result.n) + f"; data {result.data_hash}"
    foot = [
        result.sentence,
        *result.remarks,
        facts,
        "warning: " + "; ".join(result.warnings) if result.warnings else "",
    ]
    with axes.new_figure(7.4, 6.4, columns=2, rows=2, foot=foot) as (figure, grid):
        for ax, panel in zip(grid.flat, (_hard, _smooth, _deviation, _left_out), strict=True):
            ax.set_title(panel(ax, result))
            _scale_axis(ax, result)
        shared.letters(grid)
        name = f"{result.name.replace('_', ' ')}: {result.verdict}"
        figure.suptitle(textwrap.fill(name, 90), x=0.012, ha="left", fontsize=11, fontweight="bold")
    return figure


def _scale_axis(ax, result):
    shown = [row["x"] for row in result.points]
    shown += [row[result.x] for row in result.excluded]
    axes.log_axis(ax.xaxis, result.x, *axes.spread(shown))
    if result.x == "C":
        _distinct_ticks(ax.xaxis)
    ax.set_xlabel(result.conventions[result.x])
    if result.x == "loss":
        ax.invert_xaxis()


def _distinct_ticks(axis):
    """Sets three ticks for a narrow range of C, where more labels such as 6.1e13 would overlap."""
    low, high = sorted(axis.get_view_interval())
    if high / low >= 2 and not (high / low < 12 and len(axis.get_majorticklocs()) > 4):
        return
    ticks = low * (high / low) ** np.array([0.15, 0.5, 0.85])
    for digits in range(2, 9):
        labels = [f"{tick:.{digits}g}" for tick in ticks]
        places = [float(label) for label in labels]
        if len(set(labels)) == len(labels) and low < places[0] and places[-1] < high:
            break
    axis.set_ticks(places, labels)
    axis.set_ticks([], minor=True)


def _columns(result, *names):
    return (np.array([row[name] for row in result.points], float) for name in names)


def _points(ax, result, column, transform=lambda v: v, censor=0.0):
    """Runs as dots, points as means with intervals; held-out runs hollow; means below `censor` as triangles there."""
    several = len(result.cells) > len(result.points)
    if several:
        runs = [(row["x"], transform(row[column])) for row in result.cells]
        ax.plot(*zip(*runs, strict=True), ".", color=axes.QUIET, ms=3.2, alpha=0.55, zorder=2, label="a run")
    x, middle, *ends = _columns(result, "x", column, f"{column}_low", f"{column}_high")
    middle, (low, high) = transform(middle), np.sort([transform(end) for end in ends], axis=0)
    held = np.array([row["held_out"] for row in result.points], bool)
    below = middle < censor
    bars = np.nan_to_num(np.maximum([middle - low, high - middle], 0))  # below five points there are no intervals
    means = {"fmt": "o", "color": POINT, "mfc": POINT, "label": "mean over seeds" if several else "a run"}
    held_out = {"fmt": "D", "color": axes.HELD_OUT, "mfc": "white", "label": "held-out run"}
    for here, look in ((~held & ~below, means), (held & ~below, held_out)):
        if here.any():
            ax.errorbar(x[here], middle[here], bars[:, here], elinewidth=0.9, zorder=4, **look)
    if below.any():
        ax.plot(x[below], np.full(below.sum(), censor), "v", color=POINT, mfc="white", zorder=4, label="below 1/n")


def _hard(ax, result):
    if not result.hard:
        shared.nothing(ax, "no hard metric", colour=axes.INK)
        return "Hard metric"
    x, predicted, low, high, sampled = _columns(result, "x", "null", "null_low", "null_high", "sampled")
    if result.null is not None:
        ax.fill_between(x, low, high, color=NULL, alpha=0.22, lw=0)
        ax.plot(x, predicted, "-" if len(x) > 1 else "_", color=NULL, label=f"$p^L$, L = {result.null.length:.2g}")
    if np.isfinite(sampled).any():
        ax.plot(x, sampled, "--", color=SAMPLED, lw=1.0, label="a sampled answer")
    _points(ax, result, "hard", censor=1 / result.n)
    ax.axhline(result.chance, ls="--", lw=0.9, color=axes.QUIET, label=f"chance {result.chance:.3g}")
    resolution = result.chance + 1 / result.n
    ax.axhline(resolution, ls=":", lw=0.9, color=axes.QUIET, label=f"1/n above, n = {result.n}")
    shared.failed_marks(ax, *_missing(result))
    ax.set_ylabel(result.hard.replace("_", " "))
    ax.set_ylim(-0.04, 1.62)  # room for the legend, which would hide values anywhere else
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(loc="upper left", ncols=2)
    return f"Hard: {result.hard.replace('_', ' ')}"


def _missing(result):
    """x and reasons of cells without a result; those left out on purpose are not failures."""
    rows = [row for row in result.excluded if np.isfinite(row[result.x]) and "schedule" not in row["reason"]]
    return [row[result.x] for row in rows], [row["reason"] for row in rows]


def _smooth(ax, result):
    if not result.smooth:
        shared.nothing(ax, "no smooth metric", colour=axes.INK)
        return "Smooth metric"
    if result.broken is not None:
        progress, power, broken = result.broken.curve
        sign = -1 if result.x == "loss" else 1
        x, (own, value) = 10 ** (sign * progress), _columns(result, "x", "smooth")
        shown = _equal_weights(sign * np.log10(own), error_of(result.smooth, value), progress)
        ax.plot(x, power, "-", color=POWER, label="power law, weights $1/s^2$")
        ax.plot(x, shown, ":", color=POWER, label="power law, equal weights")
        ax.plot(x, broken, "-", color=BREAK, label="law with a break")
    _points(ax, result, "smooth", lambda v: error_of(result.smooth, v))
    shared.failed_marks(ax, *_missing(result))
    ax.set_ylabel(SMOOTH_METRICS[result.smooth].unit)
    top = ax.get_ylim()[1]
    ax.set_ylim(-0.04 * top, 1.42 * top)
    ax.legend(loc="upper right", ncols=2)
    return f"Smooth: {result.smooth.replace('_', ' ')}"


def _equal_weights(at, error, progress):
    """The power law E + A 10^(-a p) of least squares through the drawn means, without the weights of the test.

    The test weights by 1/s^2, so its curve follows the precise small errors and can miss the large ones in the picture.
    """
    from scipy.optimize import nnls

    def columns(p, exponent):
        return np.stack([np.ones_like(p), 10 ** (-exponent * (p - at.min()))], 1)

    exponents = np.geomspace(0.01, 10, 200)
    fits = [nnls(columns(at, exponent), error) for exponent in exponents]
    best = min(range(len(fits)), key=lambda k: fits[k][1])
    return columns(np.asarray(progress), exponents[best]) @ fits[best][0]


def _deviation(ax, result):
    title = "Hard metric minus $p^L$"
    if result.null is None:
        why = f"no $p^L$\n{textwrap.fill(result.no_null, 38)}" if result.resamples else "not compared"
        shared.nothing(ax, why, colour=axes.INK)
        return title
    x, middle, low, high, censored = _columns(result, "x", "deviation", "deviation_low", "deviation_high", "censored")
    ax.axhspan(-1 / result.n, 1 / result.n, color=axes.QUIET, alpha=0.18, lw=0, label="1/n")
    ax.axhline(0, color=axes.INK, lw=0.8)
    free = censored == 0
    bars = np.maximum([middle - low, high - middle], 0)[:, free]
    label = f"{result.confidence:.0%} interval"
    ax.errorbar(x[free], middle[free], bars, fmt="o", color=POINT, elinewidth=0.9, label=label)
    if (~free).any():
        ax.plot(x[~free], middle[~free], "v", color=POINT, mfc="white", label="both below 1/n")
    reach = 1.6 * max(np.abs([low, high]).max(), 2 / result.n)
    ax.set_ylim(-reach, reach)
    ax.set_ylabel(f"{result.hard.replace('_', ' ')} $-$ $p^L$")
    ax.legend(loc="upper center", ncols=3)
    p = result.null.p_value
    return title + (f" (p = {p:.2g})" if np.isfinite(p) else "")


def _left_out(ax, result):
    test = result.broken
    if test is None:
        shared.nothing(ax, textwrap.fill(f"no test: {result.reasons[0]}", 38), colour=axes.INK)
        return "Leave-one-out errors"
    (x,) = _columns(result, "x")
    ax.plot(x, np.abs(test.power_error), "s-", color=POWER, lw=0.9, label="power law")
    ax.plot(x, np.abs(test.break_error), "o-", color=BREAK, lw=0.9, label="law with a break")
    ax.plot(x, test.noise, ":", color=axes.QUIET, lw=1.1, label="noise of a point's mean")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 1e-2 * test.noise.min()), high * 2)
    ax.set_ylabel("|predicted $-$ measured|")
    ax.legend(loc="best")
    return f"Leave-one-out: ratio {test.ratio:.2g}, p = {test.p_value:.2g}"

"""The figure of a verdict on emergence: a task's metrics against scale, and the tests behind the verdict."""

import textwrap

import numpy as np

from lmjax.scaling.emergence.curves import SMOOTH_METRICS, error_of
from lmjax.scaling.figures import panels as shared
from lmjax.scaling.figures import style as axes

# Okabe and Ito's colours, distinguishable with all kinds of colour vision
POINT, NULL, SAMPLED, POWER, BREAK = "#222222", "#0072b2", "#56b4e9", "#009e73", "#cc79a7"


def emergence_figure(result):
    """Draws an Emergence: the hard metric with p^L, the task's own loss with both laws, the numbers behind the tests.

    Returns:
        matplotlib Figure of four panels: (a) hard metric, p^L with its band, chance and 1/n; (b) the smooth metric's
        error with the power law and the law with a break; (c) hard metric minus p^L; (d) leave-one-out errors
        of both laws. Dots are runs, circles means over seeds with intervals, hollow diamonds held-out runs, triangles
        values below 1/n, crosses runs without a result. Scale grows to the right, so the loss falls.
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

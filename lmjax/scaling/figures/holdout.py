"""Figures of held-out predictions: error against extrapolation distance, and laws side by side."""

import numpy as np

from lmjax.format import variable
from lmjax.scaling.figures import panels, style
from lmjax.scaling.figures.style import HELD_OUT, INK, MARKERS, QUIET, log_axis, spread
from lmjax.scaling.holdouts import UNITS, Comparison, Holdout

# Okabe and Ito, without the colour of HELD_OUT
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")


def holdout_figure(found: Holdout):
    """Draws the error of each held-out prediction against extrapolation distance, one colour and marker per cut.

    Returns:
        matplotlib Figure of two panels: (a) relative error with the interval of the prediction, against C (or N, D)
        over the largest fitted one; (b) mean |error| of each cut, and of each value left out, against C (or N, D).
    """
    inside = sum(row["inside"] is True for row in found.rows)
    coverage = f"; {inside} of {len(found.rows)} runs lie inside" if found.rows[0]["inside"] is not None else ""
    foot = [
        f"{found.formula}, fitted to the runs below each cut of {found.by}, predicting the others. Bars: "
        f"{found.confidence:.0%} intervals of a new run{coverage}. Refused cuts and values: {len(found.refused)}.",
        "; ".join(found.conventions.values()) + ".",
    ]
    widths = {"width_ratios": [1.25, 1]}
    with style.new_figure(8.6, 3.9, columns=2, foot=foot, gridspec_kw=widths) as (figure, grid):
        _errors(grid[0, 0], found)
        _cuts(grid[0, 1], found)
        panels.letters(grid)
    return figure


def _errors(ax, found):
    ax.axhline(0, color="#999999", lw=0.8, zorder=1)
    places = [row["at"] for row in found.cuts]
    for i, place in enumerate(places):
        rows = [row for row in found.rows if row["cut"] == place]
        beside = 1.035 ** (i - (len(places) - 1) / 2)  # bars of cuts side by side
        x = np.array([10 ** row["distance"] for row in rows]) * beside
        colour = COLOURS[i % len(COLOURS)]
        if rows[0]["inside"] is not None:  # the interval of the prediction, seen from the measured loss
            share, loss = found.unit == UNITS["share"], np.array([row["loss"] for row in rows])
            ends = (np.array([row[end] for row in rows]) for end in ("low", "high"))
            low, high = (100 * (end - loss if share else end / loss - 1) for end in ends)
            ax.vlines(x, low, high, color=colour, lw=0.8, alpha=0.45, zorder=2)
        label = f"{variable(found.by, place)} ({found.cuts[i]['fitted']} runs)"
        error = [100 * row["error"] for row in rows]
        panels.points(ax, x, error, colour, MARKERS[i % len(MARKERS)], ms=4.8, zorder=3, label=label)
    log_axis(ax.xaxis, "ratio", *spread([10 ** row["distance"] for row in found.rows], 0.06))
    ax.xaxis.set_major_formatter("{x:g}x")
    xlabel, ylabel = f"{found.by} over the largest fitted {found.by}", f"predicted against measured, {found.unit}"
    ax.set(xlabel=xlabel, ylabel=ylabel, title="Error against distance")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))  # room for the legend above the bars
    panels.legend(ax, f"fitted below {found.by} =", loc="upper left", ncols=2 if len(places) > 3 else 1)


def _cuts(ax, found):
    x, error = [row["at"] for row in found.cuts], [100 * row["error"] for row in found.cuts]
    ax.plot(x, error, "-", color=HELD_OUT, lw=1.0, alpha=0.6)
    panels.held_out(ax, x, error, mew=1.0, label="all from here on held out")
    left_out = [row["at"] for row in found.left_out], [100 * row["error"] for row in found.left_out]
    if found.left_out:
        ax.plot(*left_out, "o", color=INK, mfc="white", label="one value left out")
    refused = [row["at"] for row in found.refused]
    log_axis(ax.xaxis, found.by, *spread([*x, *left_out[0], *refused], 0.06))
    panels.failed_marks(ax, refused, ["refused"] * len(refused))
    ax.set(xlabel=style.WORDS[found.by], ylabel=f"mean |error|, {found.unit}", title=f"By cut of {found.by}")
    ax.set_ylim(0, 1.25 * max([*error, *left_out[1]]) + 1e-9)
    panels.legend(ax)


def comparison_figure(found: Comparison):
    """Draws the held-out error of each law, and its difference from the best with its paired interval."""
    foot = [f"{found.verdict[0].upper()}{found.verdict[1:]}. {found.predictions} predictions, {len(found.cuts)} cuts."]
    place = np.arange(len(found.laws))[::-1]
    with style.new_figure(7.4, 1.5 + 0.32 * len(place), columns=2, foot=foot, sharey=True) as (figure, grid):
        left, right = grid[0]
        left.plot([100 * row["error"] for row in found.laws], place, "o", color=COLOURS[0])
        left.set_yticks(place, [row["law"] for row in found.laws])
        left.set(xlabel=f"mean |error|, {found.unit}", title="Held-out error", ylim=(-0.6, len(place) - 0.4))
        left.set_xlim(0, 115 * max(row["error"] for row in found.laws))
        right.axvline(0, color="#999999", lw=0.8)
        for at, row in list(zip(place, found.laws, strict=True))[1:]:
            colour, x = HELD_OUT if row["significant"] else QUIET, 100 * row["difference"]
            if np.isfinite(row["high"]):
                right.plot([100 * row["low"], 100 * row["high"]], [at, at], "-", color=colour, lw=1.2)
            right.plot(x, at, "o", color=colour)
            words = "larger error" if row["significant"] else "no clear difference"
            look = dict(xytext=(0, 6), textcoords="offset points", fontsize=7, ha="center", color=colour)
            right.annotate(words, (x, at), **look)
        right.set(xlabel=f"difference from the best, {found.unit}", title="Paired difference")
        panels.letters(grid)
    return figure

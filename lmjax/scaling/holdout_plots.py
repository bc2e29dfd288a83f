"""Figures of held-out predictions: error against distance, laws side by side. Draws what holdouts.py computed."""

import numpy as np

from lmjax.scaling import axes
from lmjax.scaling.holdouts import UNITS, Comparison, Holdout
from lmjax.scaling.render import short

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")  # Okabe and Ito, without the colour of HELD_OUT


def holdout_figure(found: Holdout):
    """Error of each held-out prediction against how far it reaches, a colour and marker per cut.

    Args:
        found: of `holdout`.

    Returns:
        matplotlib Figure of two panels: (a) relative error with the interval of the prediction, against C (or N, D)
        over the largest fitted one; (b) mean |error| of each cut, and of each level left out, against C (or N, D).
    """
    inside = sum(row["inside"] is True for row in found.rows)
    coverage = f"; {inside} of {len(found.rows)} runs lie inside" if found.rows[0]["inside"] is not None else ""
    foot = [
        f"{found.formula}, fitted to the runs below each cut of {found.by}, predicting the others. Bars: "
        f"{found.level:.0%} intervals of a new run{coverage}. Cuts and levels refused: {len(found.refused)}.",
        "; ".join(found.conventions.values()) + ".",
    ]
    with axes.style():
        figure, grid = axes.new_figure(8.6, 3.9, columns=2, foot=foot, gridspec_kw={"width_ratios": [1.25, 1]})
        _draw_errors(grid[0, 0], found)
        _draw_cuts(grid[0, 1], found)
        for ax, letter in zip(grid[0], "ab", strict=True):
            ax.set_title(f"({letter})  {ax.get_title(loc='left')}")
    return figure


def _draw_errors(ax, found):
    ax.axhline(0, color="#999999", lw=0.8, zorder=1)
    places = [row["at"] for row in found.cuts]
    every = [10 ** row["distance"] for row in found.rows]
    for i, place in enumerate(places):
        rows = [row for row in found.rows if row["cut"] == place]
        x = np.array([10 ** row["distance"] for row in rows]) * 1.035 ** (
            i - (len(places) - 1) / 2
        )  # bars side by side
        error = np.array([100 * row["error"] for row in rows])
        colour, marker = COLOURS[i % len(COLOURS)], axes.MARKERS[i % len(axes.MARKERS)]
        if rows[0]["inside"] is not None:
            # an interval of the prediction, seen from the measured loss
            low, high = (np.array([_seen_from(row, row[end], found.unit) for row in rows]) for end in ("low", "high"))
            ax.vlines(x, low, high, color=colour, lw=0.8, alpha=0.45, zorder=2)
        label = f"{short(place)} ({found.cuts[i]['fitted']} runs)"
        ax.plot(x, error, marker, color=colour, mec="white", mew=0.5, ms=4.8, zorder=3, label=label)
    axes.log_axis(ax.xaxis, "ratio", *axes.spread(every, 0.06))
    _plain_ratio(ax.xaxis)
    ax.set(
        xlabel=f"{found.by} over the largest fitted {found.by}",
        ylabel=f"predicted against measured, {found.unit}",
        title="Error against distance",
    )
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.22 * (high - low))  # room for the legend
    legend = ax.legend(title=f"fitted below {found.by} =", loc="upper left", ncols=2 if len(places) > 3 else 1)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(7.5)


def _seen_from(row, value, unit):
    """A value of the prediction against the measured one, in the unit of 100 times an error."""
    return 100 * (value - row["loss"] if unit == UNITS["share"] else value / row["loss"] - 1)


def _plain_ratio(axis):
    """Ticks of a ratio: 2, 5, 10, 100."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))


def _draw_cuts(ax, found):
    cuts, levels = found.cuts, found.levels
    x, error = [row["at"] for row in cuts], [100 * row["error"] for row in cuts]
    ax.plot(x, error, "-", color=axes.HELD_OUT, lw=1.0, alpha=0.6)
    ax.plot(x, error, "D", color=axes.HELD_OUT, mec="white", ms=5.5, label="all from here on held out")
    if levels:
        places = [row["at"] for row in levels]
        ax.plot(
            places, [100 * row["error"] for row in levels], "o", color=axes.INK, mfc="white", label="one level left out"
        )
    refused = [row["at"] for row in found.refused]
    axes.log_axis(ax.xaxis, found.by, *axes.spread([*x, *(row["at"] for row in levels), *refused], 0.06))
    axes.failed_marks(ax, refused, ["refused"] * len(refused))
    ax.set(xlabel=axes.WORDS[found.by], ylabel=f"mean |error|, {found.unit}", title=f"By cut of {found.by}")
    ax.set_ylim(0, 1.25 * max([*error, *(100 * row["error"] for row in levels)]) + 1e-9)
    ax.legend(loc="upper right", bbox_to_anchor=(1.0, 0.95))


def comparison_figure(found: Comparison):
    """Held-out error of each law, and its difference to the best with the interval that tells them apart."""
    foot = [f"{found.verdict[0].upper()}{found.verdict[1:]}. {found.predictions} predictions, {len(found.cuts)} cuts."]
    place = np.arange(len(found.laws))[::-1]
    with axes.style():
        figure, grid = axes.new_figure(
            7.4, 1.5 + 0.32 * len(found.laws), columns=2, foot=foot, sharey=True
        )  # fmt: skip
        left, right = grid[0]
        left.plot([100 * row["error"] for row in found.laws], place, "o", color=COLOURS[0])
        left.set_yticks(place, [row["law"] for row in found.laws])
        left.set(xlabel=f"mean |error|, {found.unit}", title="(a)  Held-out error", ylim=(-0.6, len(place) - 0.4))
        left.set_xlim(0, 115 * max(row["error"] for row in found.laws))
        right.axvline(0, color="#999999", lw=0.8)
        for at, row in list(zip(place, found.laws, strict=True))[1:]:
            colour = axes.HELD_OUT if row["told_apart"] else axes.QUIET
            if np.isfinite(row["high"]):
                right.plot([100 * row["low"], 100 * row["high"]], [at, at], "-", color=colour, lw=1.2)
            right.plot(100 * row["difference"], at, "o", color=colour)
            right.annotate(
                "errs more" if row["told_apart"] else "not told apart",
                (100 * row["difference"], at),
                xytext=(0, 6),
                textcoords="offset points",
                fontsize=7,
                ha="center",
                color=colour,
            )
        right.set(xlabel=f"difference to the best, {found.unit}", title="(b)  Paired difference")
    return figure

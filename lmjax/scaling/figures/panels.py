"""Parts shared by several figures: points, curves with bands, held-out runs, missing runs, legends, labels."""

import math
from collections.abc import Sequence

import numpy as np

from lmjax.format import count
from lmjax.scaling.figures.style import HELD_OUT, INK, MAPS, MAX_LEVELS, QUIET, WORDS, literal, log_ticks, tick_label

RED = "#b00020"
GAP = 0.052  # between labels at the right edge, share of the axis


def points(ax, x, y, colour, marker="o", **look) -> None:
    """Fitted rows as filled markers with a white edge."""
    ax.plot(x, y, marker, **{"color": colour, "mec": "white", "mew": 0.5, "ls": "none", "zorder": 4} | look)


def curve_with_band(ax, x, value, low=None, high=None, colour=INK, band=None, alpha=0.18, **look) -> None:
    """A curve, and its interval as a band in `band` (default: the colour of the curve) unless it is None or NaN."""
    if low is not None and np.isfinite(low).all():
        ax.fill_between(x, low, high, color=band or colour, alpha=alpha, lw=0, zorder=2)
    ax.plot(x, value, **{"color": colour, "lw": 1.2, "zorder": 3} | look)


def held_out(ax, x, y, **look) -> None:
    """Held-out runs as diamonds, in a colour that nothing else uses."""
    ax.plot(x, y, "D", **{"color": HELD_OUT, "mec": "white", "mew": 0.8, "ms": 5.5, "zorder": 5, "ls": "none"} | look)


def power_of_c(ax, result, C, name: str) -> list[float]:
    """Draws N*(C) or D*(C) (name: N or D) of a PowerOfC with its interval; returns the values drawn, for the limits."""
    value, low, high = result.predict(C, of=name)
    if result.draws:
        label = f"{result.confidence:.0%} interval"
        ax.fill_between(C, low, high, color=QUIET, alpha=0.16, lw=0, label=label, zorder=1)
    exponent = {"N": result.a, "D": result.b}[name]
    ax.plot(C, value, "-", color=INK, lw=1.2, label=f"{name}* $\\propto C^{{{exponent:.3f}}}$", zorder=2)
    return [*value, *low, *high]


def failed_marks(ax, x: Sequence[float], labels: Sequence[str]) -> None:
    """Crosses at the top edge for runs without a loss."""
    if not len(x):
        return
    label = literal("no result: " + ", ".join(sorted(set(labels))))
    look = dict(color=RED, ms=6, mew=1.6, label=label, clip_on=False, zorder=5)
    ax.plot(x, np.full(len(x), 0.985), "x", transform=ax.get_xaxis_transform(), **look)


def excluded_marks(ax, x: Sequence[float], y: Sequence[float]) -> None:
    """Hollow grey circles: rows that have a loss but are left out of the fit."""
    if len(x):
        ax.plot(x, y, "o", mfc="white", mec=QUIET, ms=4.6, mew=1.0, zorder=3.5, label="left out of the fit")


def nothing(ax, why: str, title: str = "", colour: str = RED) -> None:
    """Fills a panel that has no data with the reason."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=colour, wrap=True)
    ax.set(xticks=[], yticks=[], **({"title": title} if title else {}))


def legend(ax, title=None, **where) -> None:
    """A legend that lists values first, then held-out, excluded and missing runs; placed where it hides least."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    last = ("held out", "left out", "no result", "95 %")
    order = sorted(range(len(labels)), key=lambda i: (labels[i].startswith(last), i))
    look = {"loc": "best", "frameon": True, "framealpha": 0.8, "edgecolor": "none", "title_fontsize": 7.5}
    ax.legend([handles[i] for i in order], [labels[i] for i in order], title=title, alignment="left", **look | where)


def outside(ax, title=None, side="above") -> None:
    """A legend that hides no data: above the axes, at the right of the title; below, under its label; or beside."""
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3, "columnspacing": 1.2}
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": 3, "columnspacing": 1.0, "borderaxespad": 0.1}
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    legend(ax, title, **{"above": above, "below": below, "beside": beside}[side])


def letters(grid) -> None:
    """Puts (a), (b), ... before the titles of the axes."""
    for ax, letter in zip(np.ravel(grid), "abcdef", strict=False):
        ax.set_title(f"({letter})  {ax.get_title(loc='left')}")


def end_labels(ax, ends: Sequence[tuple[float, str, tuple]]) -> None:
    """Names curves at the right edge of the axes: (y of the end, text, colour); close ones are moved apart.

    The y axis must have its final scale and limits.
    """
    along = math.log if ax.get_yscale() == "log" else float
    low, high = map(along, ax.get_ylim())
    ends = sorted(ends)
    place = [min(max((along(y) - low) / (high - low), 0.0), 1.0) for y, _, _ in ends]
    for _ in range(200):  # push neighbours apart, half each, until all have room
        for i in range(len(place) - 1):
            missing = GAP - (place[i + 1] - place[i])
            if missing > 1e-4:
                place[i], place[i + 1] = place[i] - missing / 2, place[i + 1] + missing / 2
    last = len(place) - 1
    place = [min(max(at, i * GAP), 1 - (last - i) * GAP) for i, at in enumerate(place)]  # within the axes
    for (_, text, colour), at in zip(ends, place, strict=True):
        ax.text(1.012, at, text, color=colour, fontsize=7.5, va="center", transform=ax.transAxes)


def colour_bar(ax, variable: str, values) -> None:
    """A colour bar over the values of a variable, in the colours of style.colours."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    name, low, high = MAPS["D" if variable == "D" else "N"]
    cut = LinearSegmentedColormap.from_list(name, matplotlib.colormaps[name](np.linspace(low, high, 64)))
    norm = LogNorm(np.min(values), np.max(values))
    bar = ax.figure.colorbar(ScalarMappable(norm, cut), ax=ax, pad=0.02, aspect=30)
    ticks = log_ticks(norm.vmin, norm.vmax)[0]
    bar.set_ticks(ticks, labels=[tick_label(variable, t) for t in ticks])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(WORDS.get(variable, variable))


def colour_key(ax, variable: str, values, palette) -> None:
    """The legend of the colours' variable and its values beside the axes; a colour bar for many values."""
    few = len(palette) <= MAX_LEVELS
    if not few:
        colour_bar(ax, variable, values)
    for value, colour in palette.items() if few else ():
        points(ax, [], [], colour, ms=5, label=count(value))
    outside(ax, f"colour: {variable}" if few else None, "beside" if few else "above")

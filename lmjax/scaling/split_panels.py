"""The panels of a compute-optimal split: N*, D* and D/N against compute, and losses in the plane of N and D.

For a usable fit of the law chinchilla with refits. Makes no figures.
"""

import numpy as np

from lmjax.scaling import axes
from lmjax.scaling.laws import CHINCHILLA, FLOPS_PER_PARAM_TOKEN, predict_loss
from lmjax.scaling.render import short
from lmjax.scaling.result import WIDEST_SPLIT, Fit

BUDGETS = np.array([1.0, 3.0, 10.0, 100.0])  # marked, times the largest fitted 6 N D
FAR = 10.0  # times the largest fitted 6 N D: dashed and hollow from there on
LINES = 9  # of equal loss, about
MARGIN = 0.05  # of the axes, in log space
COLOURS = {"N": "#2d708e", "D": "#c33d80", "tokens_per_param": axes.INK}


def compute(fit: Fit) -> np.ndarray:
    """6 N D of the fitted rows."""
    return np.array([FLOPS_PER_PARAM_TOKEN * row["N"] * row["D"] for row in fit.points])


def split_panel(ax, fit: Fit, names: tuple[str, ...]) -> None:
    """Parts of the best split against compute with their intervals, the marked budgets, and ticks at the fitted runs.

    Args:
        ax: axes.
        fit: the fit.
        names: of N, D, tokens_per_param.
    """
    runs = compute(fit)
    largest = runs.max()
    C = np.geomspace(runs.min(), BUDGETS[-1] * largest, 121)
    best, marked = fit.allocate(C), fit.allocate(BUDGETS * largest)
    near = C <= FAR * largest * (1 + 1e-9)
    seen = []
    for name in names:
        colour, label = COLOURS[name], {"N": "N*", "D": "D*"}.get(name)
        ax.fill_between(C, best[f"{name}_low"], best[f"{name}_high"], color=colour, alpha=0.16, lw=0, zorder=2)
        ax.plot(C[near], best[name][near], "-", color=colour, zorder=3, label=label)
        ax.plot(C[~near], best[name][~near], "--", color=colour, zorder=3)
        for factor, x, y in zip(BUDGETS, BUDGETS * largest, marked[name], strict=True):
            inside = colour if factor <= FAR else "white"
            ax.plot(x, y, "o", ms=5, mec=colour, mfc=inside, mew=1.2, zorder=4)
        seen += [
            *best[name],
            *np.clip([*best[f"{name}_low"], *best[f"{name}_high"]], best[name].min() / 10, best[name].max() * 10),
        ]
    axes.log_axis(ax.xaxis, "C", *axes.spread(C, MARGIN))
    axes.log_axis(ax.yaxis, "N" if names != ("tokens_per_param",) else "M", *axes.spread(seen, MARGIN))
    ax.plot(runs, np.full(len(runs), 0.015), "|", color=axes.QUIET, ms=7, transform=ax.get_xaxis_transform(), zorder=4)
    low, high = (float(marked[f"{names[0]}_{end}"][0]) for end in ("low", "high"))
    if high > WIDEST_SPLIT * low:
        ax.text(
            0.02, 0.96, "not determined by these runs", transform=ax.transAxes, color="#b00020", fontsize=8, va="top"
        )


def plane_panel(ax, fit: Fit) -> None:
    """Lines of equal loss over N and D, the runs as points, the path of best splits, two lines of equal compute."""
    rows = [*fit.points, *fit.held_out]
    largest = compute(fit).max()
    C = np.geomspace(compute(fit).min(), FAR * largest, 60)
    path = fit.allocate(C)
    limits = {
        v: axes.spread([*(row[v] for row in rows), *_near(path[v], [row[v] for row in rows])], MARGIN) for v in "ND"
    }
    for axis, name in ((ax.xaxis, "N"), (ax.yaxis, "D")):
        axes.log_axis(axis, name, *limits[name])
    N, D = np.meshgrid(*(np.geomspace(*limits[name], 120) for name in "ND"))
    loss = predict_loss(CHINCHILLA, fit.params, N, D)
    excess = loss - 0.98 * loss.min()
    levels = np.unique(np.round(0.98 * loss.min() + np.geomspace(excess.min(), excess.max(), LINES + 2)[1:-1], 3))
    lines = ax.contour(N, D, loss, levels=levels, cmap="viridis", linewidths=0.9, zorder=2)
    ax.clabel(lines, fmt=lambda value: f"{value:.3g}", fontsize=6.5)
    words = f"6 N D = {largest:.2g}, {FAR * largest:.2g} FLOP"
    for factor, label in ((1.0, words), (FAR, None)):
        equal = factor * largest / FLOPS_PER_PARAM_TOKEN / N[0]
        ax.plot(N[0], equal, ":", color=axes.QUIET, lw=0.9, zorder=2, label=label)
    known = C <= largest * (1 + 1e-9)
    ax.plot(path["N"][known], path["D"][known], "-", color=axes.INK, lw=1.6, zorder=3, label="best split N*(C)")
    ax.plot(path["N"][~known], path["D"][~known], "--", color=axes.INK, lw=1.6, zorder=3)
    look = dict(linestyle="none", mec="white", mew=0.5, zorder=4)
    for marker, part, colour, label in (
        ("o", fit.points, axes.QUIET, "fitted"),
        ("D", fit.held_out, axes.HELD_OUT, "held out"),
    ):
        if part:
            ax.plot(
                [row["N"] for row in part], [row["D"] for row in part], marker, ms=5, color=colour, label=label, **look
            )
    ax.set(xlabel=axes.WORDS["N"], ylabel=axes.WORDS["D"], title=f"Equal {axes.literal(fit.target)} over N and D")
    ax.legend(loc="upper left", frameon=True, framealpha=0.85, edgecolor="none")


def _near(values, rows):
    """A path as far as ten times beyond the rows: an optimum far from every run must not squeeze them."""
    return [v for v in values if min(rows) / 10 <= v <= max(rows) * 10]


def caption(fit: Fit) -> str:
    """What the marks are, for the small print."""
    marks = ", ".join(short(v) for v in BUDGETS)
    return (
        f"Compute-optimal split: circles at {marks} times the largest fitted 6 N D; hollow, dashed: beyond {FAR:.0f} "
        "times; ticks: fitted runs. Right: dashed beyond the largest."
    )

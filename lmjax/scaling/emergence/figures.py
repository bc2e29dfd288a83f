"""A metric of a task against scale, from the tidy table of evaluations. Draws numbers, computes none."""

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling import axes

X = {  # column -> (variable of the axes' look, label)
    "flops_exact": ("C", "C, exact training FLOP"),
    "flops_6nd": ("C", "C = 6 N D, training FLOP"),
    "n_total": ("N", "N, all parameters"),
    "n_non_embedding": ("N", "N, parameters without embeddings"),
    "tokens": ("D", "D, training tokens"),
    "loss": ("loss", "held-out loss, nats per predicted token"),
}


def metric_against(table, task: str, metric: str, x: str = "flops_exact", shots: int = 0):
    """Draws value and standard error of one metric; the chance level, and 1/n above it, are lines.

    Args:
        table: frame of lmjax.evals.run.evaluate, or read back from its file.
        task, metric, shots: which rows.
        x: flops_exact | flops_6nd | n_total | n_non_embedding | tokens | loss.

    Returns:
        matplotlib Figure. Families and semantics have markers of their own: their values do not compare. Colour is N,
        hollow points are held-out runs, checkpoints of one run are joined, crosses are runs without a result.

    Raises:
        InputError: no such rows (what there is is named); matplotlib is missing.
    """
    if x not in X:
        raise InputError(f"x: wanted a column to draw against, got {x!r}{nearest(x, X)}")
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
    foot = [
        f"{task}, {shots} shots, {metric} ({_word(drawable, 'better')} is better); bars: one bootstrap standard error "
        "over items; colour: N, all parameters, dark is small; hollow: held-out runs",
        f"{left_out} rows have no {x} and are not drawn" if left_out else "",
    ]
    with axes.style():
        figure, grid = axes.new_figure(5.6, 4.0, foot=foot)
        ax = grid[0, 0]
        _draw(ax, drawable, x)
        axes.log_axis(ax.xaxis, variable, *axes.spread(drawable[x].astype(float)))
        _levels(ax, drawable)
        missing = table[
            (table["status"] != "done") & table["task"].isin(["", task]) & np.isfinite(table[x].astype(float))
        ]
        inside = missing[(missing["shots"] == shots) | missing["shots"].isna()]
        axes.failed_marks(ax, inside[x].tolist(), inside["status"].str.replace("_", " ").tolist())
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
            face = "white" if run["held_out"].iloc[0] in (True, "True") else colour
            ax.errorbar(
                run[x], run["value"], errors, fmt=marker, color=colour, mfc=face, elinewidth=0.8, label=label, zorder=3
            )
            label = None  # once a group


def _levels(ax, rows):
    chance = rows["chance"].astype(float)
    if np.isfinite(chance).all() and np.ptp(chance) < 1e-9:
        level = float(chance.iloc[0])
        ax.axhline(level, ls="--", lw=0.9, color=axes.QUIET, label=f"chance {level:.3g}")
        if rows["metric"].iloc[0] in ("accuracy", "exact_match", "greedy_match"):
            step = 1 / float(rows["n"].min())
            ax.axhline(level + step, ls=":", lw=0.8, color=axes.QUIET, label=f"1/n above chance, n = {round(1 / step)}")


def _word(rows, column):
    words = {str(word) for word in rows[column]}
    return words.pop() if len(words) == 1 else "neither"

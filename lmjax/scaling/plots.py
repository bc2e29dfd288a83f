"""The figures of a sweep: training curves, loss against the law's variables, predicted against measured, residuals.

Each function returns a matplotlib Figure; `plot_all` writes them. A figure reads the Fit (its points, refits and
conventions) and nothing else of the analysis, so that what is drawn is what was fitted.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.scaling import axes, panels, split_panels
from lmjax.scaling.conventions import N_COUNTS
from lmjax.scaling.laws import get_law
from lmjax.scaling.render import interval_words, short
from lmjax.scaling.result import Fit

CURVE_BINS = 60  # training losses are averaged in so many bins of equal width in log compute
NAMES = {"N": "loss_vs_params", "D": "loss_vs_tokens", "C": "loss_vs_compute"}
OBJECTIVES = {
    "huber_log": "sum of Huber losses (delta {delta:g}) of ln loss",
    "squared_log": "sum of squares of ln loss",
    "squared": "sum of squares",
}


def training_curves(runs, metrics: Mapping[str, Sequence[dict]], n_column: str = "n_total"):
    """Training loss against compute, a line per run, coloured by N; dots are held-out losses at the end.

    Args:
        runs: frame of run_record.read_runs (run_id, n_total, flops_exact, loss, status, held_out).
        metrics: run_id -> records of its metrics.jsonl (flops, loss).
        n_column: the count of parameters behind the colours.

    Returns:
        Figure.
    """
    with axes.style():
        foot = [_curve_words(n_column, runs)]
        figure, grid = axes.new_figure(6.2, 4.2, foot=foot)
        _draw_curves(grid[0, 0], runs, metrics, n_column)
    return figure


def loss_against(fit: Fit, variable: str):
    """Loss against one variable of the law, a curve with its interval per level of the others.

    Held-out runs are diamonds, rows left out of the fit hollow circles, failed runs crosses at the top edge.
    """
    with axes.style():
        figure, grid = axes.new_figure(5.6, 4.3, foot=_foot(fit, "bands"))
        panels.law_panel(grid[0, 0], fit, variable)
    return figure


def loss_vs_params(fit: Fit):
    """Loss against N, a curve with its interval per level of the other variables."""
    return loss_against(fit, "N")


def loss_vs_tokens(fit: Fit):
    """Loss against D, a curve with its interval per level of the other variables."""
    return loss_against(fit, "D")


def predicted_vs_measured(fit: Fit):
    """Predicted against measured loss; held-out runs with the interval of their prediction."""
    with axes.style():
        figure, grid = axes.new_figure(5.6, 4.3, foot=_foot(fit, "bars" * bool(fit.held_out)))
        panels.predicted_panel(grid[0, 0], fit)
    return figure


def residuals(fit: Fit):
    """Measured over predicted loss, in percent, against two variables, with the noise of the fit as a band.

    Against N and D for a law in them, else against the first two variables of the law.
    """
    variables = get_law(fit.law).variables
    shown = panels.known(fit, ("N", "D")) if set(variables) <= {"N", "D"} else variables[:2]
    with axes.style():
        figure, grid = axes.new_figure(4.6 * max(len(shown), 1.2), 3.6, len(shown), foot=_foot(fit), sharey=True)
        for ax, variable in zip(grid[0], shown, strict=True):
            panels.residual_panel(ax, fit, variable)
            if ax is not grid[0, 0]:
                ax.set_ylabel("")
    return figure


def allocation(fit: Fit):
    """The compute-optimal split: N*, D* and D/N against C with intervals; equal losses over N and D with the path.

    For a usable fit of the law chinchilla with refits. Dashed and hollow beyond 10 times the largest fitted compute.
    """
    with axes.style():
        foot = [split_panels.caption(fit), *_foot(fit, "bands")]
        heights = {"height_ratios": [1.9, 1]}
        figure, grid = axes.new_figure(10.4, 4.8, columns=2, rows=2, foot=foot, gridspec_kw=heights)
        above, below = grid[:, 0]
        place = grid[0, 1].get_gridspec()[:, 1]
        for ax in grid[:, 1]:
            ax.remove()
        split_panels.split_panel(above, fit, ("N", "D"))
        above.set(ylabel="N*, parameters; D*, tokens", title="Compute-optimal split")
        above.tick_params(labelbottom=False)
        panels.legend(above, loc="lower right")
        split_panels.split_panel(below, fit, ("tokens_per_param",))
        below.set(xlabel=axes.WORDS["C"], ylabel="D*/N*")
        split_panels.plane_panel(figure.add_subplot(place), fit)
    return figure


def summary_figure(runs, metrics: Mapping[str, Sequence[dict]], fit: Fit, n_column: str = "n_total"):
    """One wide figure for a README: training curves, the fitted law, predicted against measured."""
    with axes.style():
        foot = [_curve_words(n_column, runs), *_foot(fit, "bands and bars" if fit.held_out else "bands")]
        figure, grid = axes.new_figure(12.4, 4.4, columns=3, foot=foot, gridspec_kw={"width_ratios": [1.2, 1.2, 1]})
        _draw_curves(grid[0, 0], runs, metrics, n_column)
        panels.law_panel(grid[0, 1], fit, get_law(fit.law).variables[0])
        panels.predicted_panel(grid[0, 2], fit)
        for ax, letter in zip(grid[0], "abc", strict=True):
            ax.set_title(f"({letter})  {ax.get_title(loc='left')}")
    return figure


def plot_all(runs, metrics, fit: Fit, out_dir, formats: Sequence[str] = ("png", "svg", "pdf")) -> list[pathlib.Path]:
    """Draws every figure that the runs and the fit allow and writes them.

    Args:
        runs: frame of run_record.read_runs, or None where a plain table was fitted.
        metrics: run_id -> records of metrics.jsonl; {} leaves out the training curves.
        fit: the fit; a refused one is drawn as points without a law.
        out_dir: folder, made if missing.
        formats: of png, svg, pdf.

    Returns:
        The written paths, in the order of the report.
    """
    out = pathlib.Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    n_column = next((column for column, words in N_COUNTS.values() if words == fit.conventions.get("N")), "n_total")
    figures = {}
    if metrics and runs is not None:
        figures["summary"] = summary_figure(runs, metrics, fit, n_column)
        figures["training_curves"] = training_curves(runs, metrics, n_column)
    for variable in get_law(fit.law).variables:
        figures[NAMES.get(variable, f"loss_vs_{variable}")] = loss_against(fit, variable)
    if not fit.refused:
        figures |= {"predicted_vs_measured": predicted_vs_measured(fit), "residuals": residuals(fit)}
    if fit.law == "chinchilla" and fit.resamples and not fit.refused:
        figures["allocation"] = allocation(fit)
    return [path for name, figure in figures.items() for path in axes.save(figure, out / name, formats)]


def _curve_words(n_column, runs):
    count = {column: words for column, words in N_COUNTS.values()}.get(n_column, f"N = {n_column}")
    objective = f" of the objective {runs['objective'].dropna().iloc[0]}" if "objective" in runs else ""
    return (
        f"Training curves: loss in nats per predicted token{objective}, mean over {CURVE_BINS} bins of log "
        f"compute; dots: final loss on held-out documents. {count}. C: exact training FLOP."
    )


def _foot(fit, drawn=""):
    """The small print: law, objective, intervals and what is drawn of them, which fit of which data, conventions."""
    which = f"fit {fit.hash}, data {fit.data_hash}"
    left_out = f"; {len(fit.excluded)} rows left out" if fit.excluded else ""
    conventions = "; ".join(fit.conventions.values()) + "."
    if fit.refused:
        return [f"No law drawn: {'; '.join(fit.reasons)}; {which}{left_out}.", conventions]
    how = OBJECTIVES[fit.criterion].format(delta=fit.delta)
    intervals = (
        f"; {drawn}: {interval_words(fit)}" if drawn and fit.resamples else "" if fit.resamples else "; no intervals"
    )
    return [f"{fit.formula}, {how} over {len(fit.points)} runs{left_out}{intervals}; {which}.", conventions]


def _draw_curves(ax, runs, metrics, n_column):
    done = runs[runs["run_id"].isin([run for run, records in metrics.items() if records])]
    size = axes.levels(done[n_column].to_numpy(float))
    palette = axes.colours("N", size)
    every_c, every_l, failed, named = [], [], [], set()
    for (_, row), level in sorted(zip(done.iterrows(), size, strict=True), key=lambda pair: pair[1]):
        compute, loss = _binned(metrics[row["run_id"]])
        if not len(compute):
            continue
        label = short(level) if level not in named and len(palette) <= axes.MAX_LEVELS else None
        named.add(level)
        ax.plot(compute, loss, "-", color=palette[level], lw=1.0, alpha=0.9, label=label)
        final = float(row["loss"]) if row["status"] == "done" else math.nan
        held_out = row.get("held_out") in (True, 1)
        if math.isfinite(final):
            ax.plot(
                compute[-1],
                final,
                "D" if held_out else "o",
                ms=5.5 if held_out else 4,
                mew=0.8,
                zorder=4,
                color=axes.HELD_OUT if held_out else palette[level],
                mec="white",
            )
        else:
            failed.append((compute[-1], str(row["status"])))
        every_c += list(compute)
        every_l += [*loss, final]
    if every_c:
        axes.log_axis(ax.xaxis, "C", *axes.spread(every_c, 0.03))
        axes.log_axis(ax.yaxis, "loss", *axes.spread(every_l, 0.05))
    axes.failed_marks(ax, *zip(*failed, strict=True)) if failed else None
    if "held_out" in done and done["held_out"].isin([True, 1]).any():
        ax.plot([], [], "D", color=axes.HELD_OUT, mec="white", ms=5.5, label="held out")
    ax.set(xlabel=axes.WORDS["C"], ylabel="loss, nats per token", title="Training curves")
    panels.legend(ax, "N", loc="lower left", ncols=2 if len(palette) > 4 else 1)


def _binned(records):
    """Compute and mean training loss per bin of log compute; only finite losses."""
    pairs = [(r["flops"], r["loss"]) for r in records if r.get("loss") is not None and r.get("flops", 0) > 0]
    if not pairs:
        return np.array([]), np.array([])
    compute, loss = np.array(pairs, float).T
    keep = np.isfinite(loss)
    compute, loss = compute[keep], loss[keep]
    if len(compute) <= CURVE_BINS:
        return compute, loss
    place = np.log(compute / compute[0]) / np.log(compute[-1] / compute[0]) * CURVE_BINS
    index = np.minimum(place.astype(int), CURVE_BINS - 1)
    count = np.bincount(index, minlength=CURVE_BINS)
    used = count > 0
    mean_c = np.bincount(index, np.log(compute), CURVE_BINS)[used] / count[used]
    binned_c, binned_l = np.exp(mean_c), np.bincount(index, loss, CURVE_BINS)[used] / count[used]
    binned_c[-1] = compute[-1]  # the line ends where the run ended
    return binned_c, binned_l

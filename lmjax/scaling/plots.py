"""The figures of a sweep: training curves, loss against N and D, predicted against measured, residuals.

Each function returns a matplotlib Figure; `plot_all` writes them. A figure reads the Fit (its points, refits and
conventions) and nothing else of the analysis, so that what is drawn is what was fitted.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.scaling import axes
from lmjax.scaling.laws import get_law, predict_loss
from lmjax.scaling.predict import predict
from lmjax.scaling.render import interval_words, number, short
from lmjax.scaling.result import Fit

CURVE_BINS = 60  # training losses are averaged in so many bins of equal width in log compute
NO_RESULT = ("status ", "loss is NaN")


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


def loss_vs_params(fit: Fit):
    """Loss against N, a curve with its interval per D; held-out runs are diamonds, failed ones crosses."""
    return _one_panel(fit, "N")


def loss_vs_tokens(fit: Fit):
    """Loss against D, a curve with its interval per N; held-out runs are diamonds, failed ones crosses."""
    return _one_panel(fit, "D")


def predicted_vs_measured(fit: Fit):
    """Predicted against measured loss; held-out runs with the interval of their prediction."""
    with axes.style():
        figure, grid = axes.new_figure(5.6, 4.3, foot=_foot(fit))
        _draw_predicted(grid[0, 0], fit)
    return figure


def residuals(fit: Fit):
    """Measured over predicted loss, in percent, against N and against D, with the noise of the fit as a band."""
    with axes.style():
        figure, grid = axes.new_figure(7.4, 3.5, columns=2, foot=_foot(fit), sharey=True)
        for ax, variable in zip(grid[0], ("N", "D"), strict=True):
            _draw_residuals(ax, fit, variable)
        grid[0, 1].set_ylabel("")
        _legend(grid[0, 1], loc="best")
    return figure


def summary_figure(runs, metrics: Mapping[str, Sequence[dict]], fit: Fit, n_column: str = "n_total"):
    """One wide figure for a README: training curves, the fitted law, predicted against measured."""
    with axes.style():
        foot = [_curve_words(n_column, runs), *_foot(fit)]
        figure, grid = axes.new_figure(12.4, 4.4, columns=3, foot=foot, gridspec_kw={"width_ratios": [1.2, 1.2, 1]})
        _draw_curves(grid[0, 0], runs, metrics, n_column)
        _draw_law(grid[0, 1], fit, get_law(fit.law).variables[0])
        _draw_predicted(grid[0, 2], fit)
        for ax, letter in zip(grid[0], "abc", strict=True):
            ax.set_title(f"({letter})  {ax.get_title(loc='left')}")
    return figure


def plot_all(runs, metrics, fit: Fit, out_dir, formats: Sequence[str] = ("png", "svg")) -> list[pathlib.Path]:
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
    n_column = "n_non_embedding" if "without embeddings" in fit.conventions.get("N", "") else "n_total"
    figures = {}
    if metrics and runs is not None:
        figures["summary"] = summary_figure(runs, metrics, fit, n_column)
        figures["training_curves"] = training_curves(runs, metrics, n_column)
    variables = get_law(fit.law).variables
    figures |= {
        name: draw(fit)
        for variable, name, draw in (
            ("N", "loss_vs_params", loss_vs_params),
            ("D", "loss_vs_tokens", loss_vs_tokens),
        )
        if variable in variables
    }
    if not fit.refused:
        figures |= {"predicted_vs_measured": predicted_vs_measured(fit), "residuals": residuals(fit)}
    return [path for name, figure in figures.items() for path in axes.save(figure, out / name, formats)]


def _curve_words(n_column, runs):
    count = {"n_total": "all parameters", "n_non_embedding": "parameters without embeddings"}[n_column]
    objective = f" of the objective {runs['objective'].dropna().iloc[0]}" if "objective" in runs else ""
    return (
        f"Training curves: loss in nats per predicted token{objective}, mean over {CURVE_BINS} bins of log "
        f"compute; dots: final loss on held-out documents. N: {count}. C: exact training FLOP."
    )


def _foot(fit):
    law = f"{fit.formula}, sum of Huber losses (delta {fit.delta:g}) of ln loss over {len(fit.points)} runs"
    if fit.refused:
        return [f"No law drawn: {'; '.join(fit.reasons)}.", "; ".join(fit.conventions.values()) + "."]
    band = f"bands and bars: {interval_words(fit)}" if fit.refits else interval_words(fit)
    return [f"{law}; {band}; data {fit.data_hash}.", "; ".join(fit.conventions.values()) + "."]


def _one_panel(fit, variable):
    with axes.style():
        figure, grid = axes.new_figure(5.6, 4.3, foot=_foot(fit))
        _draw_law(grid[0, 0], fit, variable)
    return figure


def _legend(ax, title=None, **where):
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    last = ("held out", "no result")  # after the levels, whatever was drawn first
    order = sorted(range(len(labels)), key=lambda i: (labels[i].startswith(last), i))
    legend = ax.legend([handles[i] for i in order], [labels[i] for i in order], title=title, **where)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(7.5)


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
    _legend(ax, "N", loc="lower left", ncols=2 if len(palette) > 4 else 1)


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


def _draw_law(ax, fit, variable):
    """Loss against one variable: a curve, colour and marker per level of the other one, named at its right end."""
    other = "D" if variable == "N" else "N"
    rows = [{**row, "held": held} for held, part in ((False, fit.points), (True, fit.held_out)) for row in part]
    if not rows:
        return _nothing(ax, f"Loss against {variable}", "no finished run")
    level = axes.levels(np.array([row[other] for row in rows]))
    palette = axes.colours(other, level)
    fitted_levels = {value for row, value in zip(rows, level, strict=True) if not row["held"]}
    continuous = len(palette) > axes.MAX_LEVELS
    failed = [row for row in fit.excluded if row["reason"].startswith(NO_RESULT) and row.get(variable, 0) > 0]
    low, high = axes.spread([row[variable] for row in (*rows, *failed)])
    axes.log_axis(ax.xaxis, variable, low, high)
    axes.log_axis(ax.yaxis, "loss", *_loss_limits(fit, rows))
    for i, value in enumerate(sorted(palette)):
        chosen = [row for row, at in zip(rows, level, strict=True) if at == value and not row["held"]]
        ax.plot(
            [r[variable] for r in chosen],
            [r["loss"] for r in chosen],
            linestyle="none",
            marker="o" if continuous else axes.MARKERS[i % len(axes.MARKERS)],
            color=palette[value],
            mec="white",
            mew=0.5,
            ms=4 if continuous else 5.4,
            zorder=4,
        )
    drawn = sorted(palette) if not continuous else [float(v) for v in np.quantile(level, [0.05, 0.5, 0.95])]
    one_variable = get_law(fit.law).variables == (variable,)
    curve_x, ends = np.geomspace(low, high, 160), []
    for value in [drawn[len(drawn) // 2]] if one_variable else drawn:
        colour = palette[min(palette, key=lambda v, value=value: abs(math.log(v / value)))]
        if not fit.refused:
            dashed = not continuous and value not in fitted_levels
            end = _draw_curve(ax, fit, curve_x, {variable: curve_x, other: value}, colour, dashed)
        else:
            end = min(row["loss"] for row, at in zip(rows, level, strict=True) if continuous or at == value)
        ends.append((end, f"{other} = {short(value)}", colour))
    axes.end_labels(ax, ends)
    _draw_held_out_points(ax, rows, level, variable, palette)
    axes.failed_marks(ax, [row[variable] for row in failed], [str(row.get("status")) for row in failed])
    ax.set(xlabel=axes.WORDS[variable], ylabel="loss", title=f"Loss against {variable}")
    if continuous:
        _colour_bar(ax, other, level)
    _legend(ax, loc="upper right", bbox_to_anchor=(1.0, 0.95))  # below the crosses at the top edge
    _formula(ax, fit)


def _draw_curve(ax, fit, curve_x, where, colour, dashed):
    """The law with its interval; dashed where no fitted run has this level. Returns its right end."""
    if fit.refits:
        loss, low, high = predict(fit, **where, new_run=False)
        ax.fill_between(curve_x, low, high, color=colour, alpha=0.09 if dashed else 0.18, lw=0, zorder=2)
    else:
        loss = predict_loss(get_law(fit.law), fit.params, **where)
    ax.plot(curve_x, loss, "--" if dashed else "-", color=colour, lw=1.2, zorder=3)
    return float(np.clip(loss[-1], *ax.get_ylim()))


def _draw_held_out_points(ax, rows, level, variable, palette):
    held = [(row, value) for row, value in zip(rows, level, strict=True) if row["held"]]
    for i, (row, value) in enumerate(held):
        ax.plot(
            row[variable],
            row["loss"],
            "D",
            ms=7.2,
            mfc=palette[value],
            mec=axes.HELD_OUT,
            mew=1.7,
            zorder=5,
            label="held out" if i == 0 else None,
        )


def _loss_limits(fit, rows):
    losses = [row["loss"] for row in rows]
    if not fit.refused:
        losses += [row["predicted"] for row in (*fit.points, *fit.held_out)]
    return axes.spread(losses, 0.09)


def _colour_bar(ax, variable, level):
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    name, low, high = axes.MAPS[variable]
    cut = LinearSegmentedColormap.from_list(name, matplotlib.colormaps[name](np.linspace(low, high, 64)))
    norm = LogNorm(level.min(), level.max())
    bar = ax.figure.colorbar(ScalarMappable(norm, cut), ax=ax, pad=0.02, aspect=30)
    ticks = axes.log_ticks(level.min(), level.max())[0]
    bar.set_ticks(ticks, labels=[short(t) for t in ticks])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(axes.WORDS[variable])


def _formula(ax, fit):
    if fit.refused:
        ax.text(0.02, 0.03, "not fitted", transform=ax.transAxes, color="#b00020", fontsize=8)
        return
    p = {name: number(value, 3) for name, value in fit.params.items()}
    text = f"$L = {p['E']}"
    for term in get_law(fit.law).terms:
        text += f" + {_mantissa(p[term.coefficient])}\\,{term.variable}^{{-{p[term.exponent]}}}"
    ax.text(
        0.02,
        0.03,
        text + "$",
        transform=ax.transAxes,
        fontsize=8,
        color=axes.INK,
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
    )


def _mantissa(text):
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}\\times 10^{{{int(exponent)}}}"


def _nothing(ax, title, why):
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", color="#b00020")
    ax.set(title=title, xticks=[], yticks=[])


def _draw_predicted(ax, fit):
    if fit.refused:
        return _nothing(ax, "Predicted against measured", "not fitted")
    size = axes.levels(np.array([row["N"] for row in (*fit.points, *fit.held_out)]))
    palette = axes.colours("N", size)
    measured = [row["loss"] for row in (*fit.points, *fit.held_out)]
    predicted = [row["predicted"] for row in (*fit.points, *fit.held_out)]
    ends = axes.spread([*measured, *predicted, *(row[side] for row in fit.held_out for side in ("low", "high"))], 0.06)
    ax.plot(ends, ends, "-", color="#999999", lw=0.8, zorder=1)
    ax.scatter(
        measured[: len(fit.points)],
        predicted[: len(fit.points)],
        s=20,
        zorder=3,
        linewidths=0.5,
        c=[palette[v] for v in size[: len(fit.points)]],
        edgecolors="white",
        label="fitted (colour: N)",
    )
    for i, row in enumerate(fit.held_out):
        ax.errorbar(
            row["loss"],
            row["predicted"],
            yerr=[[max(row["predicted"] - row["low"], 0)], [max(row["high"] - row["predicted"], 0)]],
            fmt="D",
            ms=5.5,
            color=axes.HELD_OUT,
            mec="white",
            mew=0.8,
            elinewidth=1.2,
            capsize=2.5,
            zorder=4,
            label="held out" if i == 0 else None,
        )
    _held_out_errors(ax, fit)
    for axis in (ax.xaxis, ax.yaxis):
        axes.log_axis(axis, "loss", *ends)
    ax.set(xlabel="measured loss", ylabel="predicted loss", title="Predicted against measured")
    _legend(ax, loc="upper left")


def _held_out_errors(ax, fit):
    """The error of each held-out prediction, in words in the empty corner; the five largest of many."""
    rows = sorted(fit.held_out, key=lambda row: -abs(row["relative_error"]))
    lines = [f"N {short(row['N'])}, D {short(row['D'])}:  {100 * row['relative_error']:+.2f} %" for row in rows[:5]]
    if lines:
        lines.insert(0, "error of the prediction" + (f", 5 largest of {len(rows)}" if len(rows) > 5 else ""))
        text = "\n".join(lines)
        ax.text(
            0.98, 0.03, text, transform=ax.transAxes, ha="right", fontsize=7.5, color=axes.HELD_OUT, linespacing=1.5
        )


def _draw_residuals(ax, fit, variable):
    other = "D" if variable == "N" else "N"
    rows = [(row, False) for row in fit.points] + [(row, True) for row in fit.held_out]
    level = axes.levels(np.array([row[other] for row, _ in rows]))
    palette = axes.colours(other, level)
    ax.axhline(0, color="#999999", lw=0.8, zorder=1)
    if fit.noise_sd == fit.noise_sd:
        half = 196 * fit.noise_sd
        ax.axhspan(-half, half, color="#888888", alpha=0.12, lw=0, zorder=0, label="95 % of normal noise")
    percent = np.array([100 * math.log(row["loss"] / row["predicted"]) for row, _ in rows])
    x = np.array([row[variable] for row, _ in rows])
    held = np.array([h for _, h in rows])
    tint = np.array([palette[v] for v in level])
    ax.scatter(
        x[~held],
        percent[~held],
        s=22,
        c=tint[~held],
        edgecolors="white",
        linewidths=0.5,
        zorder=3,
        label=f"fitted (colour: {other})",
    )
    if held.any():
        ax.plot(
            x[held],
            percent[held],
            "D",
            ms=6.5,
            color=axes.HELD_OUT,
            mec="white",
            mew=0.8,
            label="held out",
            zorder=4,
        )
    axes.log_axis(ax.xaxis, variable, *axes.spread(x))
    ax.set(
        xlabel=axes.WORDS[variable],
        ylabel="measured over predicted loss, %",
        title=f"Residuals against {variable}",
    )

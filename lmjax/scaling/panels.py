"""The panels of law figures: a law through its points, predicted against measured, residuals. Makes no figures.

Any law can be drawn: its curves are predictions along one variable, one for each level of its other variables.
"""

import math

import numpy as np

from lmjax.scaling import axes
from lmjax.scaling.laws import get_law, predict_loss
from lmjax.scaling.render import number, short
from lmjax.scaling.result import Fit

NO_RESULT = ("status ", "loss is NaN")


def legend(ax, title=None, **where):
    """A legend with held-out, left-out and missing runs after the levels."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    last = ("held out", "left out", "no result", "95 %")  # after the levels, whatever was drawn first
    order = sorted(range(len(labels)), key=lambda i: (labels[i].startswith(last), i))
    legend = ax.legend([handles[i] for i in order], [labels[i] for i in order], title=title, **where)
    legend.set_alignment("left")
    legend.get_title().set_fontsize(7.5)


def law_panel(ax, fit: Fit, variable: str) -> None:
    """Loss against one variable: a curve, colour and marker per level of the others, named at its right end."""
    others = _others(fit, variable)
    rows = [{**row, "held": held} for held, part in ((False, fit.points), (True, fit.held_out)) for row in part]
    if not rows:
        return _nothing(ax, f"{_target(fit)} against {variable}", "no finished run")
    keys = axes.groups(rows, others)
    palette = _palette(others, keys)
    continuous = len(palette) > axes.MAX_LEVELS
    failed, left_out = _missing(fit, variable)
    low, high = axes.spread([row[variable] for row in (*rows, *failed, *left_out)])
    axes.log_axis(ax.xaxis, variable, low, high)
    _loss_axis(ax, fit, [*rows, *left_out])
    for i, key in enumerate(sorted(palette)):
        chosen = [row for row, at in zip(rows, keys, strict=True) if at == key and not row["held"]]
        look = dict(marker="o", ms=4) if continuous else dict(marker=axes.MARKERS[i % len(axes.MARKERS)], ms=5.4)
        place = [row[variable] for row in chosen], [row["loss"] for row in chosen]
        ax.plot(*place, linestyle="none", color=palette[key], mec="white", mew=0.5, zorder=4, **look)
    _law_curves(ax, fit, rows, keys, palette, variable, others, np.geomspace(low, high, 160))
    _draw_held_out_points(ax, rows, keys, variable, palette)
    axes.excluded_marks(ax, [row[variable] for row in left_out], [row["loss"] for row in left_out])
    axes.failed_marks(ax, [row[variable] for row in failed], [str(row.get("status")) for row in failed])
    title = f"{_target(fit)} against {variable}"
    ax.set(xlabel=axes.WORDS.get(variable, variable), ylabel=axes.literal(fit.target), title=title)
    if continuous and len(others) == 1:
        _colour_bar(ax, others[0], np.array([key[0] for key in keys]))
    # losses fall and shares rise to the right; below the crosses at the top edge
    corner = {"loc": "upper left", "bbox_to_anchor": (0.0, 0.95)} if fit.target == "share" else {}
    legend(ax, **{"loc": "upper right", "bbox_to_anchor": (1.0, 0.95), **corner})
    _formula(ax, fit)


def _target(fit):
    return axes.literal(fit.target.capitalize())


def _others(fit, variable):
    """The variables that tell curves apart: the other ones of the law; of N and D for a law in one of them."""
    variables = get_law(fit.law).variables
    pair = known(fit, ("N", "D")) if set(variables) < {"N", "D"} else variables
    return [name for name in pair if name != variable]


def known(fit: Fit, names) -> list[str]:
    """Those of the columns that every row has a number in: a table need not have both N and D."""
    rows = [*fit.points, *fit.held_out]
    return [name for name in names if all(math.isfinite(row.get(name, math.nan)) for row in rows)]


def _palette(others, keys):
    """A colour per level: by its value for one variable, by its place in the order for several."""
    distinct = sorted(set(keys))
    if len(others) == 1:
        colours = axes.colours(others[0], np.array([key[0] for key in distinct]))
        return {key: colours[key[0]] for key in distinct}
    colours = axes.colours("N", np.geomspace(1, 2, len(distinct)))
    return dict(zip(distinct, colours.values(), strict=True))


def _missing(fit, variable):
    """Rows that are not in the fit and have a place on the axis: those without a loss, those with one."""
    rows = [row for row in fit.excluded if row.get(variable, 0) > 0]
    failed = [row for row in rows if row["reason"].startswith(NO_RESULT) or not row.get("loss", math.nan) > 0]
    return failed, [row for row in rows if row not in failed]


def _law_curves(ax, fit, rows, keys, palette, variable, others, curve_x):
    """Curves with intervals; names at their right ends."""
    distinct, ends = sorted(palette), []
    continuous = len(distinct) > axes.MAX_LEVELS
    drawn = [distinct[round(q * (len(distinct) - 1))] for q in (0.05, 0.5, 0.95)] if continuous else distinct
    if get_law(fit.law).variables == (variable,):
        drawn = [distinct[len(distinct) // 2]]
    fitted = {key for row, key in zip(rows, keys, strict=True) if not row["held"]}
    for key in drawn:
        if not fit.refused:
            where = {variable: curve_x, **dict(zip(others, key, strict=True))}
            end = _draw_curve(ax, fit, curve_x, where, palette[key], not continuous and key not in fitted)
        else:
            end = min(row["loss"] for row, at in zip(rows, keys, strict=True) if continuous or at == key)
        ends.append((end, ", ".join(f"{v} = {short(x)}" for v, x in zip(others, key, strict=True)), palette[key]))
    if not (continuous and len(others) == 1):  # a colour bar says it then
        axes.end_labels(ax, [end for end in ends if end[1]])


def _draw_curve(ax, fit, curve_x, where, colour, dashed):
    """The law with its interval; dashed where no fitted run has this level. Returns its right end."""
    if fit.resamples:
        loss, low, high = fit.predict(**where, new_run=False)
        ax.fill_between(curve_x, low, high, color=colour, alpha=0.09 if dashed else 0.18, lw=0, zorder=2)
    else:
        loss = predict_loss(get_law(fit.law), fit.params, **where)
    ax.plot(curve_x, loss, "--" if dashed else "-", color=colour, lw=1.2, zorder=3)
    return float(np.clip(loss[-1], *ax.get_ylim()))


def _draw_held_out_points(ax, rows, keys, variable, palette):
    held = [(row, key) for row, key in zip(rows, keys, strict=True) if row["held"]]
    for i, (row, key) in enumerate(held):
        ax.plot(
            row[variable],
            row["loss"],
            "D",
            ms=7.2,
            mfc=palette[key],
            mec=axes.HELD_OUT,
            mew=1.7,
            zorder=5,
            label="held out" if i == 0 else None,
        )


def _loss_axis(ax, fit, rows):
    if fit.target == "share":
        ax.set_ylim(-0.04, 1.04)
        return
    losses = [row["loss"] for row in rows]
    if not fit.refused:
        losses += [row["predicted"] for row in (*fit.points, *fit.held_out)]
    axes.log_axis(ax.yaxis, "loss", *axes.spread(losses, 0.09))


def _colour_bar(ax, variable, level):
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    name, low, high = axes.MAPS["D" if variable == "D" else "N"]
    cut = LinearSegmentedColormap.from_list(name, matplotlib.colormaps[name](np.linspace(low, high, 64)))
    norm = LogNorm(level.min(), level.max())
    bar = ax.figure.colorbar(ScalarMappable(norm, cut), ax=ax, pad=0.02, aspect=30)
    ticks = axes.log_ticks(level.min(), level.max())[0]
    bar.set_ticks(ticks, labels=[axes.tick_label(variable, t) for t in ticks])
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(axes.WORDS.get(variable, variable))


def _formula(ax, fit):
    if fit.refused:
        ax.text(0.02, 0.03, "not fitted", transform=ax.transAxes, color="#b00020", fontsize=8)
        return
    law = get_law(fit.law)
    if not law.terms:  # too long for the panel; the small print has it
        return
    p = {name: number(value, 3) for name, value in fit.params.items()}
    words = f"$L = {p['E']}"
    for term in law.terms:
        words += f" + {_mantissa(p[term.coefficient])}\\,{term.variable}^{{-{p[term.exponent]}}}"
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    ax.text(0.02, 0.03, words + "$", transform=ax.transAxes, fontsize=8, color=axes.INK, zorder=6, bbox=box)


def _mantissa(text):
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}\\times 10^{{{int(exponent)}}}"


def _nothing(ax, title, why):
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", color="#b00020")
    ax.set(title=title, xticks=[], yticks=[])


def predicted_panel(ax, fit: Fit) -> None:
    """Predicted against measured, held-out runs with the interval of their prediction."""
    if fit.refused:
        return _nothing(ax, "Predicted against measured", "not fitted")
    by = _coloured_by(fit)
    size = axes.levels(np.array([row[by] for row in (*fit.points, *fit.held_out)]))
    palette = axes.colours(by, size)
    measured = [row["loss"] for row in (*fit.points, *fit.held_out)]
    predicted = [row["predicted"] for row in (*fit.points, *fit.held_out)]
    ends = axes.spread([*measured, *predicted, *(row[side] for row in fit.held_out for side in ("low", "high"))], 0.06)
    ax.plot(ends, ends, "-", color="#999999", lw=0.8, zorder=1)
    place = measured[: len(fit.points)], predicted[: len(fit.points)]
    tint = [palette[v] for v in size[: len(fit.points)]]
    ax.scatter(*place, s=20, zorder=3, linewidths=0.5, c=tint, edgecolors="white")
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
    if fit.target == "share":
        ax.set(xlim=(-0.04, 1.04), ylim=(-0.04, 1.04))
    else:
        for axis in (ax.xaxis, ax.yaxis):
            axes.log_axis(axis, "loss", *ends)
    target = axes.literal(fit.target)
    ax.set(xlabel=f"measured {target}", ylabel=f"predicted {target}", title="Predicted against measured")
    _colour_key(ax, by, size, palette, loc="upper left")


def _colour_key(ax, variable, level, palette, **where):
    """The legend, headed by the variable behind the colours and with its levels; a colour bar for many levels."""
    if len(palette) > axes.MAX_LEVELS:
        _colour_bar(ax, variable, level)
        legend(ax, **where)
        return
    for value, colour in palette.items():
        ax.plot([], [], "o", color=colour, mec="white", mew=0.5, ms=5, label=short(value))
    legend(ax, f"colour: {variable}", **where)


def _held_out_errors(ax, fit):
    """The error of each held-out prediction, in words in the empty corner; the five largest of many."""
    rows = sorted(fit.held_out, key=lambda row: -abs(row["relative_error"]))
    lines = [f"{_cell_words(row)}:  {100 * row['relative_error']:+.2f} %" for row in rows[:5]]
    if lines:
        lines.insert(0, "error of the prediction" + (f", 5 largest of {len(rows)}" if len(rows) > 5 else ""))
        text = "\n".join(lines)
        ax.text(
            0.98, 0.03, text, transform=ax.transAxes, ha="right", fontsize=7.5, color=axes.HELD_OUT, linespacing=1.5
        )


def _coloured_by(fit, but=""):
    """The variable behind the colours of points: N where all rows have one, else the first of the law."""
    rows = (*fit.points, *fit.held_out)
    names = [v for v in ("N", "D", *get_law(fit.law).variables) if v != but and all(row.get(v, 0) > 0 for row in rows)]
    return names[0] if names else but


def _cell_words(row):
    return ", ".join(f"{v} {short(row[v])}" for v in ("N", "D") if row.get(v, 0) > 0) or axes.literal(row["run"])


def residual_panel(ax, fit: Fit, variable: str) -> None:
    """Measured over predicted in percent against one variable, with the noise of the fit as a band.

    Of a share the difference in points, of a fit of the plain loss the difference in the unit of the loss.
    """
    by = _coloured_by(fit, variable)
    rows = [*fit.points, *fit.held_out]
    level = axes.levels(np.array([row[by] for row in rows]))
    palette = axes.colours(by, level)
    ax.axhline(0, color="#999999", lw=0.8, zorder=1)
    if math.isfinite(fit.noise_sd):
        ends = [end * 1.96 * fit.noise_sd for end in (-1, 1)]
        ends = [100 * v if fit.target == "share" else v if fit.plain else 100 * math.expm1(v) for v in ends]
        ax.axhspan(*ends, color="#888888", alpha=0.12, lw=0, zorder=0, label="95 % of normal noise")
    error = np.array([residual(fit, row) for row in rows])
    x = np.array([row[variable] for row in rows])
    fitted = np.arange(len(rows)) < len(fit.points)
    tint = np.array([palette[v] for v in level])[fitted] if by != variable else axes.QUIET
    ax.scatter(x[fitted], error[fitted], s=22, c=tint, edgecolors="white", linewidths=0.5, zorder=3)
    if fit.held_out:
        look = dict(ms=6.5, color=axes.HELD_OUT, mec="white", mew=0.8, zorder=4, label="held out")
        ax.plot(x[~fitted], error[~fitted], "D", **look)
    axes.log_axis(ax.xaxis, variable, *axes.spread(x))
    unit = "over predicted, %" if not fit.plain else "minus predicted" + ", points" * (fit.target == "share")
    xlabel, title = axes.WORDS.get(variable, variable), f"Residuals against {variable}"
    ax.set(xlabel=xlabel, ylabel=f"measured {unit}", title=title)
    if by == variable:  # the axis says it already
        legend(ax, loc="best")
    elif len(palette) > axes.MAX_LEVELS:
        _colour_key(ax, by, level, palette, loc="best")
    else:  # beside the axes, where no point is
        _colour_key(ax, by, level, palette, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def residual(fit: Fit, row) -> float:
    """Measured over predicted loss - 1 in percent; for plain fits the difference, of shares in points."""
    difference = row["loss"] - row["predicted"]
    if fit.plain:
        return 100 * difference if fit.target == "share" else difference
    return 100 * difference / row["predicted"]

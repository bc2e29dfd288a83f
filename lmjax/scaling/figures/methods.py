"""Figures of the methods: isoFLOP curves, frontier, collapse, two steps.

Each function takes the result of a method and returns a matplotlib Figure in the style of lmjax.scaling.figures.style.
"""

import math

import numpy as np

from lmjax.format import count as short
from lmjax.scaling.columns import cluster
from lmjax.scaling.figures import panels as shared
from lmjax.scaling.figures import style as axes

SEED_GREY = "#888888"


def isoflop_figure(result):
    """Left: loss against N at each budget with its optimum; right: N* against C with the power law and its interval.

    Args:
        result: of methods.isoflop; a refused one is drawn as points without a law.

    Returns:
        Figure.
    """
    with axes.style():
        foot = [_isoflop_words(result), _words(result)]
        figure, grid = axes.new_figure(8.6, 4.0, columns=2, foot=foot)
        _draw_budgets(grid[0, 0], result)
        _draw_optima(grid[0, 1], result)
    return figure


def frontier_figure(result):
    """Left: training curves and their lower envelope; right: the size on the envelope against C with the power law.

    Args:
        result: of methods.frontier; a refused one is drawn without a law.

    Returns:
        Figure.
    """
    with axes.style():
        law = "not fitted: " + "; ".join(result.reasons) if result.refused else result.exponents()
        foot = [f"{law}. Grey: not used, no smaller or larger size reaches the budget.", _words(result)]
        figure, grid = axes.new_figure(8.6, 4.0, columns=2, foot=foot)
        _draw_envelope(grid[0, 0], result)
        _draw_sizes(grid[0, 1], result)
    return figure


def collapse_figure(result):
    """Left: normalised curves, colour by size; right: their deviation beside the noise between seeds.

    Args:
        result: of methods.collapse, not refused.

    Returns:
        Figure.
    """
    result.usable()
    with axes.style():
        foot = [f"L0 = {result.L0:.4g} ({result.L0_source}); {result.score_text()}.", _words(result)]
        figure, grid = axes.new_figure(8.6, 3.7, columns=2, foot=foot)
        _draw_normalised(grid[0, 0], result)
        _draw_deviation(grid[0, 1], result)
    return figure


def two_step_figure(result):
    """Three panels: task loss against C, metric against loss, metric against C through both; held-out runs marked.

    Args:
        result: of methods.two_step, not refused; with N and D the lines of the C panels are left out.

    Returns:
        Figure.
    """
    result.usable()
    with axes.style():
        foot = [_two_step_words(result), _words(result)]
        figure, grid = axes.new_figure(11.0, 3.8, columns=3, foot=foot)
        _draw_steps(grid[0], result)
    return figure


def _words(result):
    words = "; ".join(f"{v}" for v in result.conventions.values())
    warnings = f" Warning: {'; '.join(result.warnings)}." if result.warnings else ""
    return f"{words}.{warnings}"


def _isoflop_words(result):
    if result.refused:
        return "not fitted: " + "; ".join(result.reasons) + "."
    noise = f"noise of ln loss {result.noise:.2g} ({result.noise_source})" if result.draws else "no intervals"
    return f"Method {result.method}: {result.exponents()}; {noise}."


def _budget_colours(result):
    return axes.colours("D", np.array([o.C for o in result.optima]))


def _draw_budgets(ax, result):
    palette = _budget_colours(result) if result.optima else {}
    sizes, losses, ends = [], [], []
    for i, o in enumerate(result.optima):
        colour = palette[o.C]
        n = np.array([p["N"] for p in o.points])
        loss = np.array([p["loss"] for p in o.points])
        sizes += n.tolist()
        losses += loss.tolist()
        marker = axes.MARKERS[i % len(axes.MARKERS)]
        face = "white" if o.reason else colour
        ax.plot(n, loss, marker, color=colour, mfc=face, mec=colour if o.reason else "white", mew=0.6, ms=4.4, zorder=3)
        curve_n, curve_loss = _curve(result, o, n, loss)
        if len(curve_n):
            ax.plot(curve_n, curve_loss, "-", color=colour, lw=1.0, alpha=0.85, zorder=2)
        if not o.reason:
            if math.isfinite(o.N_low):
                ax.plot([o.N_low, o.N_high], [o.loss] * 2, "-", color=axes.INK, lw=1.6, zorder=5)
            ax.plot(o.N, o.loss, "*", color=axes.HELD_OUT, mec=axes.INK, mew=0.6, ms=10, zorder=6)
            ends.append((float(loss[n.argmax()]), _power("C", o.C), colour))
    if sizes:
        axes.log_axis(ax.xaxis, "N", *axes.spread(sizes))
        axes.log_axis(ax.yaxis, "loss", *axes.spread(losses))
        shared.end_labels(ax, ends)
    ax.plot([], [], "*", color=axes.HELD_OUT, mec=axes.INK, mew=0.6, ms=9, ls="none", label="optimum, interval of N*")
    if any(o.reason for o in result.optima):
        ax.plot([], [], "o", mfc="white", mec=axes.QUIET, mew=0.6, ms=4.4, ls="none", label="budget left out")
    ax.set(xlabel=axes.WORDS["N"], ylabel="loss", title="Loss at equal compute")
    ax.legend(loc="lower left")


def _curve(result, optimum, n, loss):
    """The curve that the method fitted to a budget, on a fine grid of N; empty if it fitted none."""
    log_n, where = np.unique(np.round(np.log(n), 9), return_inverse=True)
    mean = np.bincount(where, np.log(loss)) / np.bincount(where)
    fine = np.linspace(log_n.min(), log_n.max(), 200)
    if result.method == "surface" and result.surface:
        p, log_product = result.surface, math.log(optimum.N * optimum.D)
        falls = (
            np.exp(math.log(p["A"]) - p["alpha"] * fine),
            np.exp(math.log(p["B"]) - p["beta"] * (log_product - fine)),
        )
        return np.exp(fine), p["E"] + sum(falls)
    if result.method == "akima" and len(log_n) > 3:
        from scipy.interpolate import Akima1DInterpolator

        return np.exp(fine), np.exp(Akima1DInterpolator(log_n, mean)(fine))
    if result.method == "parabola" and len(log_n) > 2:
        centre = log_n.mean()
        return np.exp(fine), np.polyval(np.polyfit(log_n - centre, np.exp(mean), 2), fine - centre)
    return fine[:0], fine[:0]


def _power(name, value):
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10**exponent
    times = "" if abs(factor - 1) < 0.005 else f"{factor:.2g}\\times "
    return f"{name} = ${times}10^{{{exponent}}}$"


def _draw_optima(ax, result):
    used = [o for o in result.optima if not o.reason]
    ax.set(xlabel=axes.WORDS["C"], ylabel="N*, parameters", title="Optimal size")
    if not used:
        return shared.nothing(ax, "no optimum inside the sizes of a budget")
    palette = _budget_colours(result)
    c, n = np.array([o.C for o in used]), np.array([o.N for o in used])
    ends = [v for o in used for v in (o.N_low, o.N_high) if math.isfinite(v)]
    axes.log_axis(ax.xaxis, "C", *axes.spread(c, 0.12))
    if not result.refused:
        low, high = ax.get_xlim()
        ends += shared.power_of_c(ax, result, np.geomspace(low, high * 3, 100), "N")
        axes.log_axis(ax.xaxis, "C", low, high * 3)
    for i, o in enumerate(result.optima):
        if o.reason:
            continue
        if math.isfinite(o.N_low):
            ax.plot([o.C] * 2, [o.N_low, o.N_high], "-", color=palette[o.C], lw=1.4, zorder=4)
        ax.plot(o.C, o.N, axes.MARKERS[i % len(axes.MARKERS)], color=palette[o.C], mec="white", mew=0.6, ms=6, zorder=5)
    axes.log_axis(ax.yaxis, "N", *axes.spread([*n, *ends]))
    if not result.refused:
        ax.legend(loc="upper left")


def _draw_envelope(ax, result):
    sizes = np.exp([n for n, _, _ in result.curves.values()])
    palette = axes.colours("N", cluster(sizes))
    c_all, loss_all, ends = [], [], {}
    for (_, log_c, log_loss), size in zip(result.curves.values(), cluster(sizes), strict=True):
        c, loss = np.exp(log_c), np.exp(log_loss)
        ax.plot(c, loss, "-", color=palette[size], lw=0.7, alpha=0.75, zorder=2)
        c_all += [c[0], c[-1]]
        loss_all += loss.tolist()
        ends[size] = (float(c[-1]), float(loss[-1]))
    if result.C:
        ax.plot(result.C, result.loss, "-", color=axes.HELD_OUT, lw=2.0, zorder=4, label="lower envelope")
        loss_all += list(result.loss)
        top = np.quantile(loss_all, 0.97)
        loss_all = [v for v in loss_all if v <= max(top, max(result.loss))]
    axes.log_axis(ax.xaxis, "C", *axes.spread(c_all, 0.03))
    axes.log_axis(ax.yaxis, "loss", *axes.spread(loss_all, 0.04))
    shown = sorted(palette)[:: max(1, math.ceil(len(palette) / 6))]
    for size in shown:
        ax.plot([], [], "-", color=palette[size], lw=1.4, label=f"N = {short(float(f'{size:.4g}'))}")
    ax.set(xlabel=axes.WORDS["C"], ylabel="loss", title="Training curves and their envelope")
    ax.legend(loc="upper right", ncols=1)


def _draw_sizes(ax, result):
    ax.set(xlabel=axes.WORDS["C"], ylabel="N*, parameters", title="Size on the envelope")
    if not result.C:
        return shared.nothing(ax, "no envelope")
    c, n, used = np.array(result.C), np.array(result.N), np.array(result.used)
    ax.plot(c[~used], n[~used], "o", color="#bbbbbb", ms=2.4, mew=0, zorder=2, label="not used")
    ax.plot(c[used], n[used], "o", color=axes.HELD_OUT, ms=2.8, mew=0, zorder=3, label="best run")
    drawn = [] if result.refused else shared.power_of_c(ax, result, c, "N")
    axes.log_axis(ax.xaxis, "C", *axes.spread(c, 0.03))
    axes.log_axis(ax.yaxis, "N", *axes.spread([*n, *drawn], 0.06))
    ax.legend(loc="upper left")


def _draw_normalised(ax, result):
    sizes = np.array(list(result.sizes.values()))
    palette, named = axes.colours("N", sizes), set()
    for run, curve in result.curves.items():
        size = result.sizes[run]
        label = None if size in named or len(palette) > axes.MAX_LEVELS else short(size)
        named.add(size)
        ax.plot(result.x, curve, "-", color=palette[size], lw=0.9, alpha=0.8, label=label)
    axes.log_axis(ax.xaxis, "share", *axes.spread(result.x, 0.02))
    axes.log_axis(ax.yaxis, "loss", *axes.spread(np.array(list(result.curves.values())).ravel(), 0.05))
    _share_labels(ax.xaxis, result.x)
    ax.set(xlabel="C / C_end", ylabel="(L - L0) / (L_end - L0)", title="Normalised curves")
    ax.legend(title="size", loc="upper right")


def _draw_deviation(ax, result):
    ax.plot(result.x, result.deviation, "-", color=axes.HELD_OUT, lw=1.6, label="between sizes")
    drawn = list(result.deviation)
    if result.noise:
        ax.plot(result.x, result.noise, "--", color=SEED_GREY, lw=1.4, label="between seeds")
        drawn += list(result.noise)
    # keep rounding errors of an exact collapse from stretching the axis over decades
    floor = max(max(drawn) * 1e-4, 1e-12)
    axes.log_axis(ax.xaxis, "share", *axes.spread(result.x, 0.02))
    axes.log_axis(ax.yaxis, "deviation", *axes.spread([max(v, floor) for v in drawn], 0.12))
    _share_labels(ax.xaxis, result.x)
    ax.set(xlabel="C / C_end", ylabel="sd over mean", title="Deviation of the collapse")
    ax.legend(loc="best")


def _share_labels(axis, x):
    """Shares of compute as plain numbers: 0.1, 0.2, 0.5."""
    from matplotlib.ticker import FixedLocator, FuncFormatter

    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if min(x) * 0.99 <= t <= max(x) * 1.1]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _two_step_words(result):
    p = result.metric_params
    text = (
        f"Step 1: {'E + A C^-alpha' if len(result.variables) == 1 else 'E + A N^-alpha + B D^-beta'}, "
        f"E = {result.loss_params['E']:.3g}; step 2: sigmoid from {p['floor']:.3g} to {p['ceiling']:.3g}, middle at "
        f"loss {p['L_mid']:.3g}"
    )
    if result.held_out:
        inside = [r["inside"] for r in result.held_out]
        text += f"; mean error of {len(inside)} held-out runs {result.mean_held_out_error:.3g}"
        text += f", {sum(inside)} inside their interval" if None not in inside else ""
    bands = (
        f"bands: {result.confidence:.0%} of the curve from {result.resamples} resamples"
        if result.draws
        else "no intervals"
    )
    return f"{text}; {bands}."


def _draw_steps(panels, result):
    rows = [(r, False) for r in result.points] + [(r, True) for r in result.held_out]
    c, loss, metric = (np.array([r[name] for r, _ in rows]) for name in ("C", "loss", "metric"))
    held = np.array([h for _, h in rows])
    fine_c = np.geomspace(*axes.spread(c, 0.05), 150)
    # extend below the lowest loss to show the extrapolation
    low, high = loss.min() - 0.06 * np.ptp(loss), loss.max() + 0.06 * np.ptp(loss)
    fine_loss = np.linspace(low, high, 150)
    one = len(result.variables) == 1
    curves = (
        (fine_c, result.predict(of="loss", C=fine_c)) if one else None,
        (fine_loss, result.predict(loss=fine_loss)),
        (fine_c, result.predict(C=fine_c)) if one else None,
    )
    for ax, x, y, curve in zip(panels, (c, loss, c), (loss, metric, metric), curves, strict=True):
        if curve is not None:
            _band(ax, curve)
        ax.plot(x[~held], y[~held], "o", color="#31688e", mec="white", mew=0.5, ms=5, label="fitted", zorder=4)
        ax.plot(x[held], y[held], "D", color=axes.HELD_OUT, mec="white", mew=0.7, ms=6, label="held out", zorder=5)
    for ax in (panels[0], panels[2]):
        axes.log_axis(ax.xaxis, "C", *axes.spread(c, 0.05))
        ax.set_xlabel(axes.WORDS["C"] if one else "C = 6 N D, training FLOP")
    axes.log_axis(panels[0].yaxis, "loss", *axes.spread(loss, 0.07))
    panels[1].set_xlim(high, low)  # better to the right, as in the other panels
    for ax in panels[1:]:
        floor = result.metric_params["floor"]
        ax.axhline(floor, ls="--", lw=0.9, color=axes.QUIET, label=f"floor {floor:.3g}", zorder=1)
        ax.set_ylabel(result.conventions["metric"].split(",")[0])
    panels[0].set(ylabel="task loss", title="(1)  Compute to loss")
    panels[1].set(xlabel="task loss (falling)", title="(2)  Loss to metric")
    panels[2].set(title="(1 + 2)  Compute to metric")
    panels[0].legend(loc="upper right")
    panels[2].legend(loc="upper left")


def _band(ax, curve):
    x, (value, low, high) = curve
    if np.isfinite(low).all():
        ax.fill_between(x, low, high, color="#31688e", alpha=0.18, lw=0, zorder=2)
    ax.plot(x, value, "-", color=axes.INK, lw=1.2, zorder=3)

"""Figures of the methods: isoFLOP curves, frontier, collapse, two steps; each takes a result and returns a Figure."""

import functools
import math

import numpy as np

from lmjax.format import count
from lmjax.scaling.columns import cluster
from lmjax.scaling.figures import panels, style
from lmjax.scaling.figures.style import HELD_OUT, INK, MARKERS, QUIET, WORDS, log_axis, spread

SEED_GREY, POINT = "#888888", "#31688e"
STAR = dict(color=HELD_OUT, mec=INK, mew=0.6, zorder=6, ls="none")


def isoflop_figure(result):
    """Left: loss against N at each budget with its optimum; right: N* against C with the power law and its interval.

    A refused result of methods.isoflop is drawn as points without a law.
    """
    if result.refused:
        said = "not fitted: " + "; ".join(result.reasons)
    else:
        noise = f"noise of ln loss {result.noise:.2g} ({result.noise_source})" if result.draws else "no intervals"
        said = f"Method {result.method}: {result.exponents()}; {noise}"
    return _figure(result, said, (_draw_budgets, _draw_optima), 4.0)


def frontier_figure(result):
    """Left: training curves and their lower envelope; right: the size on the envelope against C with the power law.

    A refused result of methods.frontier is drawn without a law.
    """
    law = "not fitted: " + "; ".join(result.reasons) if result.refused else result.exponents()
    said = f"{law}. Grey: not used, no smaller or larger size reaches the budget"
    return _figure(result, said, (_draw_envelope, _draw_sizes), 4.0)


def collapse_figure(result):
    """Left: normalised curves, colour by size; right: their deviation beside the noise between seeds.

    For a result of methods.collapse that is not refused.
    """
    result.usable()
    said = f"L0 = {result.L0:.4g} ({result.L0_source}); {result.score_text()}"
    return _figure(result, said, (_draw_normalised, _draw_deviation), 3.7)


def tuning_figure(result):
    """One panel per hyper-parameter: its optimum at each (N, D) with its interval, against D (or N), and the law."""
    laws = [
        f"{knob} = {math.exp(law.log_k):.3g} "
        + " ".join(f"{name}^{a:.3f}" for name, a in zip(law.names, law.exponents, strict=True))
        for knob, law in result.laws.items()
    ]
    left_out = sum(bool(row["reason"]) for row in result.rows())
    said = "; ".join([*laws, f"{left_out} (N, D) without an optimum", f"bars: {result.confidence:.0%} intervals"])
    draw = [functools.partial(_draw_knob, knob=knob) for knob in result.usable().knobs]
    return _figure(result, said, draw, 3.7, 4.4 * len(draw))


def two_step_figure(result):
    """Three panels: task loss against C, metric against loss, metric against C through both; held-out runs marked.

    For a result of methods.two_step that is not refused; with N and D the curves of the C panels are left out.
    """
    p = result.usable().metric_params
    said = (
        f"Step 1: {'E + A C^-alpha' if len(result.variables) == 1 else 'E + A N^-alpha + B D^-beta'}, "
        f"E = {result.loss_params['E']:.3g}; step 2: sigmoid from {p['floor']:.3g} to {p['ceiling']:.3g}, middle at "
        f"loss {p['L_mid']:.3g}"
    )
    if result.held_out:
        inside = [row["inside"] for row in result.held_out]
        said += f"; mean error of {len(inside)} held-out runs {result.mean_held_out_error:.3g}"
        said += f", {sum(inside)} inside their interval" if None not in inside else ""
    bands = f"bands: {result.confidence:.0%} of the curve from {result.resamples} resamples"
    said += "; " + (bands if result.draws else "no intervals")
    return _figure(result, said, (_draw_step_1, _draw_step_2, _draw_both_steps), 3.8, 11.0)


def _figure(result, said, draw, height, width=8.6):
    """A row of panels, each drawn by a function of (ax, result), above the small print."""
    warnings = f" Warning: {'; '.join(result.warnings)}." if result.warnings else ""
    foot = [f"{said}.", f"{'; '.join(result.conventions.values())}.{warnings}"]
    with style.new_figure(width, height, columns=len(draw), foot=foot) as (figure, grid):
        for ax, panel in zip(grid[0], draw, strict=True):
            panel(ax, result)
    return figure


# ---- isoFLOP -------------------------------------------------------------------------------------------------------


def _looks(result):
    """Yields every optimum with the colour and the marker of its budget."""
    palette = style.colours("D", np.array([o.C for o in result.optima])) if result.optima else {}
    return ((o, palette[o.C], MARKERS[i % len(MARKERS)]) for i, o in enumerate(result.optima))


def _draw_budgets(ax, result):
    sizes, losses, ends = [], [], []
    for o, colour, marker in _looks(result):
        n, loss = (np.array([p[name] for p in o.points]) for name in ("N", "loss"))
        sizes, losses = [*sizes, *n], [*losses, *loss]
        look = {"mfc": "white", "mec": colour} if o.reason else {}
        panels.points(ax, n, loss, colour, marker, **{"ms": 4.4, "mew": 0.6, "zorder": 3} | look)
        ax.plot(*_fitted_curve(result, o, n, loss), "-", color=colour, lw=1.0, alpha=0.85, zorder=2)
        if not o.reason:
            ax.plot([o.N_low, o.N_high], [o.loss] * 2, "-", color=INK, lw=1.6, zorder=5)
            ax.plot(o.N, o.loss, "*", ms=10, **STAR)
            ends.append((float(loss[n.argmax()]), f"C = {style.power_of_ten(o.C, 2)}", colour))
    if sizes:
        log_axis(ax.xaxis, "N", *spread(sizes))
        log_axis(ax.yaxis, "loss", *spread(losses))
        panels.end_labels(ax, ends)
    ax.plot([], [], "*", ms=9, label="optimum, interval of N*", **STAR)
    if any(o.reason for o in result.optima):
        ax.plot([], [], "o", mfc="white", mec=QUIET, mew=0.6, ms=4.4, ls="none", label="budget left out")
    ax.set(xlabel=WORDS["N"], ylabel="loss", title="Loss at equal compute")
    panels.legend(ax)


def _fitted_curve(result, optimum, n, loss):
    """The curve that the method fitted to a budget, on a fine grid of N; empty if it fitted none."""
    from scipy.interpolate import Akima1DInterpolator

    log_n, where = np.unique(np.round(np.log(n), 9), return_inverse=True)
    mean = np.bincount(where, np.log(loss)) / np.bincount(where)
    fine = np.linspace(log_n.min(), log_n.max(), 200)
    if result.method == "surface" and result.surface:
        p, log_product = result.surface, math.log(optimum.N * optimum.D)
        falls = p["A"] * np.exp(-p["alpha"] * fine) + p["B"] * np.exp(-p["beta"] * (log_product - fine))
        return np.exp(fine), p["E"] + falls
    if result.method == "akima" and len(log_n) > 3:
        return np.exp(fine), np.exp(Akima1DInterpolator(log_n, mean)(fine))
    if result.method == "parabola" and len(log_n) > 2:
        centre = log_n.mean()
        return np.exp(fine), np.polyval(np.polyfit(log_n - centre, np.exp(mean), 2), fine - centre)
    return [], []


def _draw_optima(ax, result):
    ax.set(xlabel=WORDS["C"], ylabel="N*, parameters", title="Optimal size")
    used = [(o, *look) for o, *look in _looks(result) if not o.reason]
    if not used:
        return panels.nothing(ax, "no optimum inside the sizes of a budget")
    low, high = spread([o.C for o, *_ in used], 0.12)
    drawn = []
    if not result.refused:
        high *= 3
        drawn = panels.power_of_c(ax, result, np.geomspace(low, high, 100), "N")
    log_axis(ax.xaxis, "C", low, high)
    for o, colour, marker in used:
        ax.plot([o.C] * 2, [o.N_low, o.N_high], "-", color=colour, lw=1.4, zorder=4)
        panels.points(ax, o.C, o.N, colour, marker, ms=6, mew=0.6, zorder=5)
        drawn += [o.N, o.N_low, o.N_high]
    log_axis(ax.yaxis, "N", *spread(drawn))
    panels.legend(ax)


# ---- frontier ------------------------------------------------------------------------------------------------------


def _draw_envelope(ax, result):
    sizes = cluster([math.exp(n) for n, *_ in result.curves.values()])
    palette = style.colours("N", sizes)
    c_all, loss_all = [], []
    for (_, log_c, log_loss), size in zip(result.curves.values(), sizes, strict=True):
        c, loss = np.exp(log_c), np.exp(log_loss)
        ax.plot(c, loss, "-", color=palette[size], lw=0.7, alpha=0.75, zorder=2)
        c_all += [c[0], c[-1]]
        loss_all += loss.tolist()
    if result.C:
        ax.plot(result.C, result.loss, "-", color=HELD_OUT, lw=2.0, zorder=4, label="lower envelope")
        top = max(np.quantile([*loss_all, *result.loss], 0.97), *result.loss)
        loss_all = [v for v in (*loss_all, *result.loss) if v <= top]
    log_axis(ax.xaxis, "C", *spread(c_all, 0.03))
    log_axis(ax.yaxis, "loss", *spread(loss_all, 0.04))
    for size in sorted(palette)[:: math.ceil(len(palette) / 6)]:
        ax.plot([], [], "-", color=palette[size], lw=1.4, label=f"N = {count(float(f'{size:.4g}'))}")
    ax.set(xlabel=WORDS["C"], ylabel="loss", title="Training curves and their envelope")
    panels.legend(ax, loc="upper right")


def _draw_sizes(ax, result):
    ax.set(xlabel=WORDS["C"], ylabel="N*, parameters", title="Size on the envelope")
    if not result.C:
        return panels.nothing(ax, "no envelope")
    c, n, used = np.array(result.C), np.array(result.N), np.array(result.used)
    panels.points(ax, c[~used], n[~used], "#bbbbbb", ms=2.4, mew=0, zorder=2, label="not used")
    panels.points(ax, c[used], n[used], HELD_OUT, ms=2.8, mew=0, zorder=3, label="best run")
    drawn = [] if result.refused else panels.power_of_c(ax, result, c, "N")
    log_axis(ax.xaxis, "C", *spread(c, 0.03))
    log_axis(ax.yaxis, "N", *spread([*n, *drawn], 0.06))
    panels.legend(ax, loc="upper left")


# ---- collapse ------------------------------------------------------------------------------------------------------


def _draw_normalised(ax, result):
    palette, named = style.colours("N", np.array(list(result.sizes.values()))), set()
    for run, curve in result.curves.items():
        size = result.sizes[run]
        label = None if size in named or len(palette) > style.MAX_LEVELS else count(size)
        named.add(size)
        ax.plot(result.x, curve, "-", color=palette[size], lw=0.9, alpha=0.8, label=label)
    _share_axis(ax, result.x)
    log_axis(ax.yaxis, "loss", *spread(np.ravel(list(result.curves.values())), 0.05))
    ax.set(ylabel="(L - L0) / (L_end - L0)", title="Normalised curves")
    panels.legend(ax, "size", loc="upper right")


def _draw_deviation(ax, result):
    ax.plot(result.x, result.deviation, "-", color=HELD_OUT, lw=1.6, label="between sizes")
    if result.noise:
        ax.plot(result.x, result.noise, "--", color=SEED_GREY, lw=1.4, label="between seeds")
    drawn = np.array([*result.deviation, *result.noise])
    _share_axis(ax, result.x)
    # keep rounding errors of an exact collapse from stretching the axis over decades
    log_axis(ax.yaxis, "deviation", *spread(np.maximum(drawn, max(drawn.max() * 1e-4, 1e-12)), 0.12))
    ax.set(ylabel="sd over mean", title="Deviation of the collapse")
    panels.legend(ax)


def _share_axis(ax, x):
    """The x axis over C / C_end, with plain numbers: 0.1, 0.2, 0.5."""
    low, high = spread(x, 0.02)
    log_axis(ax.xaxis, "share", low, high)
    ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low <= t <= high]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.set_xlabel("C / C_end")


# ---- two steps -----------------------------------------------------------------------------------------------------


def _draw_knob(ax, result, knob):
    names = result.laws[knob].names
    over, other = ("D", "N") if "D" in names else ("N", "D")
    rows = [row for row in result.rows() if not row["reason"]]
    ends, owners = spread([row[over] for row in rows], 0.1), cluster([row[other] for row in rows])
    palette, fine, drawn = style.colours(other, owners), np.geomspace(*ends, 50), []
    for row, owner in zip(rows, owners, strict=True):
        low, high = row[f"{knob}_low"], row[f"{knob}_high"]
        ax.plot([row[over]] * 2, [low, high], "-", color=palette[owner], lw=1.2, zorder=3)
        panels.points(ax, row[over], row[knob], palette[owner], ms=5.5)
        drawn += [v for v in (row[knob], low, high) if math.isfinite(v)]
    for owner in dict.fromkeys(owners.tolist()) if other in names else [owners[0]]:
        colour, label = (palette[owner], f"{other} = {count(owner)}") if other in names else (INK, "law")
        value = result.predict(**{over: fine, other: owner}, of=knob).value
        ax.plot(fine, value, "-", color=colour, lw=1.1, zorder=2, label=label)
    log_axis(ax.xaxis, over, *ends)
    log_axis(ax.yaxis, knob, *spread(drawn, 0.1))
    words = f"optimal {knob.replace('_', ' ')}"
    ax.set(xlabel=WORDS[over], ylabel=words + ", tokens" * (knob == "batch"), title=words.capitalize())
    panels.legend(ax)


def _draw_step(ax, result, x, y, curve):
    """Fitted and held-out runs over a column x, and the curve (x [M], prediction [M]) with its band, if any."""
    if curve is not None:
        panels.curve_with_band(ax, curve[0], *curve[1], band=POINT)
    for rows, draw, label in ((result.points, panels.points, "fitted"), (result.held_out, panels.held_out, "held out")):
        look = {"colour": POINT, "ms": 5} if label == "fitted" else {"mew": 0.7, "ms": 6}
        draw(ax, [row[x] for row in rows], [row[y] for row in rows], label=label, **look)


def _budget_axis(ax, result):
    """The x axis over C; returns budgets of a curve [M], or None where the law is in N and D."""
    low, high = spread([row["C"] for row in (*result.points, *result.held_out)], 0.05)
    log_axis(ax.xaxis, "C", low, high)
    alone = len(result.variables) == 1
    ax.set_xlabel(WORDS["C"] if alone else "C = 6 N D, training FLOP")
    return np.geomspace(low, high, 150) if alone else None


def _metric_axis(ax, result):
    floor = result.metric_params["floor"]
    ax.axhline(floor, ls="--", lw=0.9, color=QUIET, label=f"floor {floor:.3g}", zorder=1)
    ax.set_ylabel(result.conventions["metric"].split(",")[0])


def _draw_step_1(ax, result):
    C = _budget_axis(ax, result)
    _draw_step(ax, result, "C", "loss", None if C is None else (C, result.predict(of="loss", C=C)))
    log_axis(ax.yaxis, "loss", *spread([row["loss"] for row in (*result.points, *result.held_out)], 0.07))
    ax.set(ylabel="task loss", title="(1)  Compute to loss")
    panels.legend(ax, loc="upper right")


def _draw_step_2(ax, result):
    loss = np.array([row["loss"] for row in (*result.points, *result.held_out, *result.checkpoints)])
    # extend below the lowest loss to show the extrapolation
    low, high = loss.min() - 0.06 * np.ptp(loss), loss.max() + 0.06 * np.ptp(loss)
    fine = np.linspace(low, high, 150)
    _draw_step(ax, result, "loss", "metric", (fine, result.predict(loss=fine)))
    if result.checkpoints:
        x, y = ([row[name] for row in result.checkpoints] for name in ("loss", "metric"))
        ax.plot(x, y, ".", color=QUIET, ms=3, zorder=1.5, label="checkpoints")
        panels.legend(ax, loc="upper left")
    _metric_axis(ax, result)
    ax.set_xlim(high, low)  # better to the right, as in the other panels
    ax.set(xlabel="task loss (falling)", title="(2)  Loss to metric")


def _draw_both_steps(ax, result):
    C = _budget_axis(ax, result)
    _draw_step(ax, result, "C", "metric", None if C is None else (C, result.predict(C=C)))
    _metric_axis(ax, result)
    ax.set_title("(1 + 2)  Compute to metric")
    panels.legend(ax, loc="upper left")

"""Compute-optimal sizes from runs of equal compute (Chinchilla's approach 2): an optimum per budget, a power law in C.

DESCRIPTIONS compares the three methods. The noise is what is left around smooth curves
E_g + A_g N^-alpha + B_g D^-beta, one per budget g with alpha and beta in common. Intervals come from resamples, smooth
curve + noise: the deviations of their optima from that of the smooth curve. (arXiv:2406.19146 adds noise to the losses
themselves, which counts it twice.) The bias of the parabola on the smooth curves widens its intervals.
tests/test_scaling_methods.py measures the coverage.
"""

import math
import re
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.format import count, flop, plural
from lmjax.scaling.columns import shares
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, optimal_allocation
from lmjax.scaling.methods import leastsq
from lmjax.scaling.methods.budgets import (
    LAW,
    BudgetTable,
    estimated_noise,
    f_tail,
    given_noise,
    lack_of_fit,
    one_law,
    smooth_curves,
)
from lmjax.scaling.methods.outcome import PowerOfC, intervals_of, table_text, tuples
from lmjax.scaling.resample import generator, percentiles, t_scales

METHODS = {"akima": 4, "parabola": 3, "surface": 1}  # smallest number of sizes at a budget
DESCRIPTIONS = {
    "akima": "interpolates each budget: hardly any bias, needs four sizes per budget, wide intervals for noisy runs",
    "parabola": "a parabola in ln N per budget, as published: needs three sizes per budget, biased off the optimum",
    "surface": "one law E + A N^-alpha + B D^-beta over all rows: narrow intervals, correct if that law holds",
}
EDGE = "the minimum is at the edge of the sizes"
RARE = 0.01  # p-value below which a test is reported
CENSORED = 0.05  # warn if the minimum is at the smallest or largest size in a larger share of the resamples


@dataclass(frozen=True)
class Optimum:
    """The optimum of one budget.

    C, N, D, loss: FLOP, parameters, tokens and the loss there, with interval ends of N and D.
    sd_log_N: standard deviation of ln N under the noise.
    at_edge: share of the resamples whose minimum is at the smallest or the largest size.
    points: (run, N, D, loss) of the budget, by size. reason: error message if there is no optimum, else empty.
    """

    C: float
    N: float = math.nan
    D: float = math.nan
    loss: float = math.nan
    N_low: float = math.nan
    N_high: float = math.nan
    D_low: float = math.nan
    D_high: float = math.nan
    sd_log_N: float = math.nan
    at_edge: float = math.nan
    points: tuple[dict, ...] = ()
    reason: str = ""


class Spread(NamedTuple):
    """How far ln N* and ln D* of one budget are off: in its resamples [R], and by the bias of the method."""

    log_n: np.ndarray
    log_d: np.ndarray
    bias_n: float
    bias_d: float


@dataclass(frozen=True, kw_only=True)
class IsoFlop(PowerOfC):
    """N*(C) = exp(k) C^a and D*(C) = exp(m) C^b from isoFLOP curves; see PowerOfC for predict(C, of=...).

    optima: one per budget, refused ones included.
    noise: standard deviation of ln L behind the intervals, root mean square of the rows; noise_source: its origin.
    scatter: weighted scatter of ln N* around the law (1: as expected from the noise; NaN with two budgets).
    lack_of_fit: p-value of an F test of E + A N^-alpha + B D^-beta against smooth curves per budget; NaN: not tested.
    surface: E, A, alpha, B, beta of the method "surface".
    """

    method: str
    optima: tuple[Optimum, ...] = ()
    noise: float = math.nan
    noise_source: str = ""
    scatter: float = math.nan
    lack_of_fit: float = math.nan
    surface: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A table of optima and the power law."""
        lines = [f"{self.method}: {DESCRIPTIONS[self.method]}"]
        ends = ("N_low", "N_high") if any(math.isfinite(o.N_low) for o in self.optima) else ()
        columns = [Column("C", text=flop), Column("N", "N*", count), *(Column(n, text=count) for n in ends)]
        columns += [Column("D", "D*", count), Column("loss", text="{:.4f}".format)]
        rows = [vars(o) for o in self.optima if not o.reason]
        lines += [table_text(rows, columns)] * bool(rows)
        lines += self.law_lines()
        lines += [f"noise of ln loss {self.noise:.2g}: {self.noise_source}"] * bool(self.draws)
        if self.lack_of_fit >= 0.05 and self.method != "surface":
            lines.append(
                f"{LAW} fits the rows within their noise (F test, p = {self.lack_of_fit:.2g}): method surface is valid "
                "here and has the narrowest intervals"
            )
        return lines


def isoflop(
    source, method="akima", noise=None, resamples=1000, confidence=0.95, seed=0, tolerance=0.05, budgets=None
) -> IsoFlop:
    """Fits N*(C) and D*(C) to runs grouped by compute.

    ln N* = a ln C + k by least squares with weights 1 / sd(ln N*)^2; the same for D*.

    Args:
        source: a frame, FitTable or dict with N (parameters), D (tokens), loss; C (FLOP; else 6 N D), run (labels).
        method: akima | parabola | surface, see DESCRIPTIONS.
        noise: standard deviation of ln L between seeds; None estimates it from repeated (N, D), else from the residuals
            of a smooth curve per budget, by budget.
        resamples, confidence, seed: bootstrap resamples (noise added to ln L; 0: no intervals), confidence level, seed.
        tolerance: rows whose C differs by less than this share from the budget's C belong to it.
        budgets: the intended budgets in FLOP; rows further off than `tolerance` are refused. None groups rows by C.

    Returns:
        IsoFlop; refused (too_few_points, at_bound, not_identified) if the table determines no law. A single budget
        without a minimum inside its sizes is left out, named in `warnings`, and kept in `optima` with its reason.

    Raises:
        InputError: missing columns, NaN, numbers <= 0, an unknown method, rows off every budget.

    Example (a surface without noise; a = beta / (alpha + beta) = 0.4516):
        >>> C, ratio = np.meshgrid([1e17, 1e18, 1e19], np.geomspace(0.2, 5, 9))
        >>> N = ratio * 0.1 * np.sqrt(C)
        >>> D = C / 6 / N
        >>> rows = dict(N=N.ravel(), D=D.ravel(), loss=(1.7 + 406 * N**-0.34 + 411 * D**-0.28).ravel())
        >>> round(isoflop(rows, "surface", resamples=0).a, 4)
        0.4516

    Paper: arXiv:2203.15556 (approach 2); arXiv:2406.19146 (interpolation and noise).
    """
    if method not in METHODS:
        raise InputError(f"expected a method of isoflop, got {method!r}{nearest(method, METHODS)}")
    shares(confidence, resamples)
    table = BudgetTable(source, tolerance, budgets)
    options = {"method": method, "confidence": confidence, "seed": seed, "resamples": resamples}
    options |= {"conventions": table.conventions, "warnings": table.warnings}
    if len(table.C) < 2:
        reason = f"one budget (C = {table.C[0]:.3g}): an exponent needs at least two, and a test of the power law three"
        return IsoFlop(status="too_few_points", reasons=(reason,), **options)
    smooth = smooth_curves(table)
    estimated = noise is None
    noise = estimated_noise(table, smooth) if estimated else given_noise(table, noise)
    law, around_law = one_law(table, noise, estimated)
    if method == "surface" or np.isnan(noise.sd_I).any():
        noise = around_law
    sd = float(np.sqrt(np.mean(noise.sd_I**2)))
    resamples = resamples if math.isfinite(sd) else 0
    options |= {"noise": sd, "noise_source": noise.source, "resamples": resamples}
    options["lack_of_fit"] = p = lack_of_fit(smooth, law)
    rng = generator(seed)
    scale_RG = np.stack([t_scales(rng, df, resamples) for df in noise.df_G], 1)
    if np.ptp(noise.sd_I) == 0:  # one estimate for all budgets
        scale_RG[:] = scale_RG[:, :1]
    errors_RI = scale_RG[:, table.budget_I] * noise.sd_I * rng.standard_normal((resamples, len(table.loss)))
    if method == "surface":
        found = _surface(table, law, errors_RI, options)
    else:
        found = _curves(table, smooth, errors_RI, float(noise.df_G.mean()), rng, options)
    optima, fitted = found.pop("optima"), found.pop("fitted", {})
    warnings = [*table.warnings, *found.pop("warnings")]
    if fitted:
        used = sum(not o.reason for o in optima)
        warnings += ["two budgets: the power law passes through both optima, so its form is not tested"] * (used == 2)
        if not resamples:
            warnings.append("no intervals: " + (noise.source if math.isnan(sd) else "resamples = 0"))
        if method == "surface" and p < RARE:
            warnings.append(
                f"{LAW} does not fit these rows (F test against a smooth curve per budget, p = {p:.1g}): a and N* may "
                "be biased by more than their intervals; use method akima"
            )
        found |= {"status": "converged", **{name: float(v) for name, v in fitted.items()}}
        found["intervals"] = intervals_of(found["draws"], "ab", confidence)
    return IsoFlop(**options | found | {"optima": optima, "warnings": tuple(warnings)})


# ---- akima and parabola: every budget on its own -------------------------------------------------------------------


def _curves(table, smooth, errors_RI, noise_df, rng, options):
    """Fields of the result: an optimum per budget, and power laws through these."""
    found = [_optimum(table, smooth, g, errors_RI, options) for g in range(len(table.C))]
    optima = tuple(optimum for optimum, _ in found)
    left_out = list(_left_out(optima, options["method"]))
    chosen = [o for o in optima if not o.reason]
    if len(chosen) < 2:
        status = "at_bound" if any(EDGE in o.reason for o in optima) else "too_few_points"
        few = f"budgets with an optimum: {len(chosen)} of {len(optima)}; an exponent needs two"
        return {"status": status, "reasons": (few, *left_out), "optima": optima, "warnings": ()}
    log_c, log_n, log_d = np.log([[getattr(o, name) for o in chosen] for name in ("C", "N", "D")])
    sd_G = np.array([o.sd_log_N for o in chosen])
    # a lower limit: an optimum that the noise never moves off its run would get all the weight
    sd_G = np.maximum(sd_G, 0.1 * np.median(sd_G) + 1e-9) if np.isfinite(sd_G).all() else np.ones(len(chosen))

    def power_law(log_y):
        return leastsq.solve(log_c[None], np.atleast_2d(log_y), sd_G)

    (k, a), (m, b) = power_law(np.stack([log_n, log_d]))
    fitted, draws, scatter, warnings = {"a": a, "k": k, "b": b, "m": m}, {}, math.nan, left_out
    if options["resamples"]:
        spreads = [spread for _, spread in found if spread]
        deviation = [np.stack([s.log_n for s in spreads], 1), np.stack([s.log_d for s in spreads], 1)]
        bias = [np.array([s.bias_n for s in spreads]), np.array([s.bias_d for s in spreads])]
        df = len(chosen) - 2
        if df and options["noise"] > 1e-6:  # below, the optima scatter by rounding
            scatter = math.sqrt(float((((log_n - k - a * log_c) / sd_G) ** 2).sum() / df))
            p = f_tail(scatter**2, df, noise_df)
            if p < RARE:
                scale_R1 = scatter * t_scales(rng, df, options["resamples"])[:, None]
                deviation = [v * scale_R1 for v in deviation]
            warnings += _scatter_warnings(scatter, p)
        (line_k, line_a), (line_m, line_b) = (power_law(v)[0] for v in bias)
        (k_R, a_R), (m_R, b_R) = (power_law(v).T for v in deviation)
        # resamples that deviate against the bias move on by it: intervals hold the estimate with and without the bias
        moved_R = (k_R[:, None] + a_R[:, None] * log_c) @ ((line_k + line_a * log_c) / sd_G**2) < 0
        error_n_R, error_d_R = (np.roll(v.mean(1), 1) for v in deviation)  # of the bias: about that of the optima
        draws = {"a": a + a_R - line_a * moved_R, "k": k + k_R - (line_k + error_n_R) * moved_R}
        draws |= {"b": b + b_R - line_b * moved_R, "m": m + m_R - (line_m + error_d_R) * moved_R}
        warnings += _curve_warnings(options, chosen, bias[0], line_a)
    return {"optima": optima, "fitted": fitted, "draws": tuples(draws), "scatter": scatter, "warnings": warnings}


def _optimum(table, smooth, g, errors_RI, options):
    """The Optimum of one budget and its Spread; without a minimum None."""
    group, budget, method = table.groups[g], float(table.C[g]), options["method"]
    log_n, where = np.unique(np.round(np.log(table.N[group]), 9), return_inverse=True)
    log_loss, points = np.log(table.loss[group]) + smooth.to_budget_I[group], table.points(group)
    curve = log_loss - smooth.residual_I[group]
    of_size = np.eye(len(log_n))[where] / np.bincount(where)  # means over seeds
    mean_RI = np.concatenate([[log_loss, curve], curve + errors_RI[:, group]]) @ of_size

    def refused(reason):
        return Optimum(budget, points=points, reason=reason), None

    if len(log_n) < METHODS[method]:
        return refused(f"{plural(len(log_n), 'size')}, {method} needs {METHODS[method]}")
    best_n, best_loss, edge = (akima_minimum if method == "akima" else parabola_minimum)(log_n, mean_RI)
    if edge[0]:
        at, side = (0, "smaller") if edge[0] < 0 else (-1, "larger")
        return refused(f"{EDGE}, N = {table.N[group][at]:.3g}; add {side} models")
    to_d = np.poly1d(np.polyfit(np.log(table.N[group]), np.log(table.D[group]), 1))
    values = np.exp([best_n[0], to_d(best_n[0]), best_loss[0]]).tolist()
    bias = best_n[1] - smooth.minimum(table, g) if method == "parabola" and smooth.df_G.any() else 0.0
    deviation_R = best_n[2:] - best_n[1]
    moved_R = best_n[0] + deviation_R - (bias + np.roll(deviation_R, 1)) * (deviation_R * bias < 0)
    optimum = _with_spread(budget, values, moved_R, to_d(moved_R), edge[2:], points, options)
    # weights come from the noise alone
    optimum = replace(optimum, sd_log_N=float(deviation_R.std(ddof=1))) if len(deviation_R) else optimum
    return optimum, Spread(deviation_R, to_d[1] * deviation_R, bias, to_d[1] * bias)


def _with_spread(budget, values, log_n_R, log_d_R, edge_R, points, options):
    """The Optimum with values N, D, loss and the spread of its resamples, if there are any."""
    if not len(log_n_R):
        return Optimum(budget, *values, points=points)
    ends = np.exp([percentiles(v, options["confidence"]) for v in (log_n_R, log_d_R)]).ravel().tolist()
    sd, at_edge = float(log_n_R.std(ddof=1)), float(np.mean(edge_R != 0))
    return Optimum(budget, *values, *ends, sd, at_edge, points)


def akima_minimum(x_I: np.ndarray, y_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact minimum of the Akima interpolant of each curve over 3 or more increasing positions, from its derivative.

    Returns:
        (x of the minimum [R], y there [R], edge [R]: -1 at the first position, 1 at the last, 0 inside).

    Example:
        >>> x = np.linspace(-2, 2, 9)
        >>> [float(v[0].round(6)) for v in akima_minimum(x, ((x - 0.1) ** 2)[None])]
        [0.1, 0.0, 0.0]
    """
    from scipy.interpolate import Akima1DInterpolator

    c_4JR = Akima1DInterpolator(x_I, y_RI, axis=1).c  # y = c0 s^3 + c1 s^2 + c2 s + c3, s = x - x_j
    width_J1 = np.diff(x_I)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b, c = 3 * c_4JR[0], 2 * c_4JR[1], c_4JR[2]
        root = np.sqrt(b * b - 4 * a * c)
        # the root with the positive second derivative, in the form without cancellation
        s_JR = np.where(b > 0, -2 * c / (b + root), (root - b) / (2 * a))
    inside = np.isfinite(s_JR) & (s_JR >= 0) & (s_JR <= width_J1)
    s_JR = np.where(inside, s_JR, 0.0)
    value_JR = ((c_4JR[0] * s_JR + c_4JR[1]) * s_JR + c_4JR[2]) * s_JR + c_4JR[3]
    value_JR = np.concatenate([value_JR, y_RI[:, -1:].T])
    place_JR = np.concatenate([x_I[:-1, None] + s_JR, np.full((1, len(y_RI)), x_I[-1])])
    best_R, every = value_JR.argmin(0), np.arange(len(y_RI))
    x_R = place_JR[best_R, every]
    edge_R = np.where(x_R <= x_I[0], -1, np.where(x_R >= x_I[-1], 1, 0))
    return x_R, value_JR[best_R, every], edge_R


def parabola_minimum(x_I: np.ndarray, log_y_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex of the least-squares parabola through y = exp(log_y) of each curve over 3 or more positions.

    Returns:
        (x of the vertex [R], ln y there [R], edge [R]: -1 or 1 where the vertex lies outside of the positions or
        the parabola opens downwards; x is then the edge with the lower end of the parabola).

    Example:
        >>> x = np.linspace(-2, 2, 5)
        >>> [abs(float(v[0].round(6))) for v in parabola_minimum(x, np.log(1 + (x - 0.5) ** 2)[None])]
        [0.5, 0.0, 0.0]
    """
    centre = x_I.mean()
    u_I = x_I - centre
    matrix_I3 = np.stack([np.ones_like(u_I), u_I, u_I**2], 1)
    r, q, p = np.linalg.lstsq(matrix_I3, np.exp(log_y_RI).T, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -q / (2 * p)
    ends = (r + q * u_I[0] + p * u_I[0] ** 2, r + q * u_I[-1] + p * u_I[-1] ** 2)
    outside = ~((p > 0) & (vertex > u_I[0]) & (vertex < u_I[-1]))
    edge_R = np.where(outside, np.where(ends[0] < ends[1], -1, 1), 0)
    u_R = np.where(outside, np.where(edge_R < 0, u_I[0], u_I[-1]), vertex)
    return centre + u_R, np.log(np.maximum(r + q * u_R + p * u_R**2, 1e-300)), edge_R


def _left_out(optima, method):
    """Yields one sentence for all budgets that were left out for the same reason."""
    kinds = {}
    for o in optima:
        if o.reason:
            few = f"fewer than {METHODS[method]} sizes"
            kinds.setdefault(re.sub(", N = [^;]*", "", o.reason) if EDGE in o.reason else few, []).append(o)
    for reason, alike in kinds.items():
        yield f"{len(alike)} of {len(optima)} budgets left out ({_named(alike)}): {reason}"


def _named(optima):
    return "C = " + ", ".join(f"{o.C:.3g}" for o in optima[:4]) + ", ..." * (len(optima) > 4)


def _curve_warnings(options, chosen, bias_G, bias_a):
    worst = max(range(len(chosen)), key=lambda g: abs(bias_G[g]))
    if abs(bias_G[worst]) > 0.5 * chosen[worst].sd_log_N:
        yield (
            f"the parabola is biased on these sizes: on smooth curves through the rows its N* is off by "
            f"{math.expm1(bias_G[worst]):+.1%} at C = {chosen[worst].C:.3g} and its exponent a by {bias_a:+.4f}; "
            "intervals are widened to that side; method akima has no such bias"
        )
    cut = [o for o in chosen if o.at_edge > CENSORED]
    if cut:
        yield (
            f"{len(cut)} of {len(chosen)} intervals of N* are cut off at the edge of the sizes ({_named(cut)}): up to "
            f"{max(o.at_edge for o in cut):.0%} of the resamples have their minimum there"
        )


def _scatter_warnings(scatter, p):
    """p: probability of at least this scatter around the power law if the noise is right."""
    if p < RARE:
        yield (
            f"the optima scatter around the power law {scatter:.1f}x more than the noise explains (p = {p:.1g}): the "
            "intervals of the power law are widened to that scatter; runs of some budgets may differ in more than N "
            "and D, or N* may be no power of C"
        )
    if p > 1 - RARE:
        yield (
            f"the optima scatter around the power law {1 / scatter:.1f}x less than the noise explains "
            f"(p = {1 - p:.1g}): the intervals may be too wide; state the noise between seeds if it is known"
        )


# ---- one parametric surface over all budgets: N* = G (C / 6)^(beta / (alpha + beta)) -------------------------------


def _surface(table, law, errors_RI, options):
    """Fields of the result: the surface, its optimum at each budget, its power laws."""
    if law.reason:
        return {"status": law.status, "reasons": (law.reason,), "optima": (), "warnings": law.warnings}
    warnings = [*law.warnings]
    off = float(np.abs(np.log(table.all_C / table.product)).max())
    if off > 0.01:
        warnings.append(f"the surface has its optima at C = 6 N D, from which the table's C differs by up to {off:.0%}")
    params, drawn = law.params, law.refit(law.fitted + errors_RI)
    optima = tuple(_surface_optimum(table, group, params, drawn, options) for group in table.groups)
    outside = sum(not min(s) <= o.N <= max(s) for o in optima for s in [[p["N"] for p in o.points]])
    if outside:
        warnings.append(f"{outside} of {len(optima)} optima lie outside of the sizes trained at their budget")
    return {
        "optima": optima,
        "surface": params,
        "fitted": power_laws(params),
        "draws": tuples(power_laws(drawn)) if options["resamples"] else {},
        "conventions": options["conventions"] | {"C": "C = 6 N D FLOP"},
        "warnings": warnings,
    }


def _surface_optimum(table, group, params, drawn, options):
    budget = math.exp(np.log(table.product[group]).mean())
    best = optimal_allocation(params, budget)
    log_n_R = np.log(optimal_allocation(drawn, budget)["N"])
    log_d_R = math.log(budget / FLOPS_PER_PARAM_TOKEN) - log_n_R
    values = [float(best[name]) for name in ("N", "D", "loss")]
    return _with_spread(budget, values, log_n_R, log_d_R, np.zeros(len(log_n_R)), table.points(group), options)


def power_laws(params) -> dict[str, np.ndarray]:
    """a, k, b, m of ln N* = a ln C + k and ln D* = b ln C + m at C = 6 N D, each [P].

    params: of the law chinchilla, floats or arrays [P]; see laws.optimal_allocation.

    Example:
        >>> law = power_laws(dict(E=1.7, A=400.0, alpha=0.3, B=400.0, beta=0.3))
        >>> {name: float(v.round(3)) for name, v in law.items()}
        {'a': 0.5, 'k': -0.896, 'b': 0.5, 'm': -0.896}

    Paper: arXiv:2203.15556, equation 4.
    """
    unit = optimal_allocation(params, float(FLOPS_PER_PARAM_TOKEN))  # N D = 1
    a, six = unit["a"], math.log(FLOPS_PER_PARAM_TOKEN)
    return {"a": a, "k": np.log(unit["N"]) - a * six, "b": 1 - a, "m": np.log(unit["D"]) - (1 - a) * six}

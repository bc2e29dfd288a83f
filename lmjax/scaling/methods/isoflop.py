"""Compute-optimal sizes from runs of equal compute (Chinchilla's approach 2): an optimum per budget, a power law in C.

    akima     ln L interpolated in ln N (Akima's piecewise cubic) and its exact minimum: unbiased, needs little noise
    parabola  L = p (ln N)^2 + q ln N + r, as published; biased where the curve is not a parabola
    surface   E + A N^-alpha + B D^-beta over all budgets: unbiased and least noisy, if that law holds

Intervals come from noise added to ln L (arXiv:2406.19146), propagated through the optima to the power law. Akima's
optima carry the noise of the table and the added noise, so its intervals are conservative; the intervals of the
parabola do not cover its bias. tests/test_scaling_methods.py measures the coverage.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.format import count, flop
from lmjax.scaling.columns import frame_of, need, positive, shares
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, optimal_allocation
from lmjax.scaling.methods import leastsq
from lmjax.scaling.methods.outcome import PowerOfC, intervals_of, table_text, tuples
from lmjax.scaling.resample import generator, percentiles, t_scales

METHODS = {"akima": 4, "parabola": 3, "surface": 1}  # smallest number of sizes at a budget
DESCRIPTIONS = {
    "akima": "interpolates each budget: hardly any bias, needs four sizes per budget, wide intervals for noisy runs",
    "parabola": "a parabola in ln N per budget, as published: needs three sizes per budget, biased off the optimum",
    "surface": "one law E + A N^-alpha + B D^-beta over all rows: narrow intervals, correct if that law holds",
}
WHAT = "the isoFLOP table"
EDGE = "the minimum is at the edge of the sizes"
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
    N: float
    D: float
    loss: float
    N_low: float
    N_high: float
    D_low: float
    D_high: float
    sd_log_N: float
    at_edge: float
    points: tuple[dict, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class IsoFlop(PowerOfC):
    """N*(C) = exp(k) C^a and D*(C) = exp(m) C^b from isoFLOP curves; see PowerOfC for predict(C, of=...).

    optima: one per budget, refused ones included.
    noise: standard deviation of ln L behind the intervals; noise_source: where it comes from.
    scatter: weighted scatter of ln N* around the law (1: as expected from the noise; NaN with two budgets).
    surface: E, A, alpha, B, beta of the method "surface".
    """

    method: str
    optima: tuple[Optimum, ...] = ()
    noise: float = math.nan
    noise_source: str = ""
    scatter: float = math.nan
    surface: dict[str, float] = field(default_factory=dict)

    @property
    def budgets(self) -> list[float]:
        """Budgets with an optimum, FLOP."""
        return [o.C for o in self.optima if not o.reason]

    def lines(self) -> list[str]:
        """A table of optima and the power law."""
        lines = [f"{self.method}: {DESCRIPTIONS[self.method]}"]
        ends = ("N_low", "N_high") if any(math.isfinite(o.N_low) for o in self.optima) else ()
        columns = [Column("C", text=flop), Column("N", "N*", count), *(Column(n, text=count) for n in ends)]
        columns += [Column("D", "D*", count), Column("loss", text="{:.4f}".format)]
        rows = [vars(o) for o in self.optima if not o.reason]
        return [*lines, *[table_text(rows, columns)] * bool(rows), *self.law_lines()]


def isoflop(
    source, method="akima", noise=None, resamples=1000, confidence=0.95, seed=0, tolerance=0.05, budgets=None
) -> IsoFlop:
    """Fits N*(C) and D*(C) to runs grouped by compute.

    ln N* = a ln C + k by least squares with weights 1 / sd(ln N*)^2; the same for D*.

    Args:
        source: a frame, FitTable or dict with N (parameters), D (tokens), loss; C (FLOP; else 6 N D), run (labels).
        method: akima | parabola | surface, see the module.
        noise: standard deviation of ln L between seeds: a number, or a function of L [I] -> sd [I]; None estimates it
            from repeated (N, D), else from the scatter around a surface E + A N^-alpha + B D^-beta.
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
    table = _Table(source, tolerance, budgets)
    options = {"method": method, "confidence": confidence, "seed": seed, "resamples": resamples}
    options |= {"conventions": table.conventions, "warnings": table.warnings}
    if len(table.C) < 2:
        reason = f"one budget (C = {table.C[0]:.3g}): an exponent needs at least two, and a test of the power law three"
        return IsoFlop(status="too_few_points", reasons=(reason,), **options)
    sd_I, df, noise_source = _noise(table, noise)
    sd = float(np.sqrt(np.mean(sd_I**2)))
    resamples = resamples if math.isfinite(sd) else 0
    options |= {"noise": sd, "noise_source": noise_source, "resamples": resamples}
    rng = generator(seed)
    scale_R = t_scales(rng, df, resamples)

    sd_I = np.full_like(sd_I, sd) if method == "surface" else sd_I  # the surface weights all rows equally

    def errors(rows):
        """Normal errors of ln L at some rows, [R, len(rows)]."""
        return scale_R[:, None] * sd_I[rows] * rng.standard_normal((resamples, len(rows)))

    found = (_surface if method == "surface" else _curves)(table, errors, options)
    optima, fitted = found.pop("optima"), found.pop("fitted", {})
    warnings = [*table.warnings, *found.pop("warnings")]
    if fitted:
        used = sum(not o.reason for o in optima)
        warnings += ["two budgets: the power law passes through both optima, so its form is not tested"] * (used == 2)
        if not resamples:
            warnings.append("no intervals: " + (noise_source if math.isnan(sd) else "resamples = 0"))
        found |= {"status": "converged", **{name: float(v) for name, v in fitted.items()}}
        found["intervals"] = intervals_of(found["draws"], "ab", confidence)
    return IsoFlop(**options | found | {"optima": optima, "warnings": tuple(warnings)})


class _Table:
    """Checked columns, and the row numbers of each budget by size: C [G], groups."""

    def __init__(self, source, tolerance, budgets):
        frame = frame_of(source, WHAT, pooled=True)
        need(frame, ("N", "D", "loss"), WHAT)
        self.N, self.D, self.loss = (positive(frame, name, WHAT) for name in ("N", "D", "loss"))
        self.product = FLOPS_PER_PARAM_TOKEN * self.N * self.D
        given = "C" in frame
        self.all_C = positive(frame, "C", WHAT) if given else self.product
        self.run = [str(r) for r in frame["run"]] if "run" in frame else [f"row {i + 1}" for i in range(len(frame))]
        self.conventions = getattr(source, "conventions", None) or {
            "N": "N as given in the table",
            "D": "D as given in the table",
            "C": "C as given in the table" if given else "C = 6 N D FLOP",
        }
        self.groups = _by_budget(self, tolerance, budgets)
        self.C = np.array([math.exp(np.log(self.all_C[g]).mean()) for g in self.groups])
        spread = max(np.ptp(np.log(self.all_C[g])) for g in self.groups)
        varies = f"C varies by {spread:.1%} within a budget, which adds to the differences in loss"
        self.warnings = (varies,) * bool(spread > 0.02)

    def points(self, group) -> tuple[dict, ...]:
        columns = zip(*(v[group].tolist() for v in (self.N, self.D, self.loss)), strict=True)
        return tuple(
            {"run": self.run[i], "N": N, "D": D, "loss": loss} for i, (N, D, loss) in zip(group, columns, strict=True)
        )


def _by_budget(table, tolerance, budgets):
    """Row numbers of each budget, by C and then by N."""
    if not 0 < tolerance < 0.5:
        raise InputError(f"expected 0 < tolerance < 0.5, got {tolerance}")
    log_c = np.log(table.all_C)
    if budgets is None:
        order = np.argsort(log_c, kind="stable")
        parts = np.split(order, 1 + np.flatnonzero(np.diff(log_c[order]) > tolerance))
        centres = [log_c[part].mean() for part in parts]
    else:
        centres = np.log(np.sort(np.asarray(budgets, np.float64)))
        closest = np.abs(log_c[:, None] - centres).argmin(1)
        parts = [np.flatnonzero(closest == g) for g in range(len(centres))]
    for part, centre in zip(parts, centres, strict=True):
        if not len(part):
            raise InputError(f"{WHAT}: expected rows at the budget {math.exp(centre):.3g}, got none")
        off = part[np.abs(log_c[part] - centre) > tolerance]
        if len(off):
            named = ", ".join(f"{table.run[i]} ({table.all_C[i]:.4g})" for i in off[:5])
            raise InputError(
                f"{WHAT}: expected C within {tolerance:.0%} of the budget {math.exp(centre):.4g}, got {named}; "
                "leave these rows out, pass `budgets`, or increase `tolerance`"
            )
    return [part[np.lexsort((table.D[part], table.N[part]))] for part in parts]


def _noise(table, noise):
    """(sd of ln L per row [I], degrees of freedom: infinite for a given noise, source)."""
    if callable(noise):
        sd_I, df, source = noise(table.loss), math.inf, "a given function of the loss"
    elif noise is not None:
        sd_I, df, source = noise, math.inf, "given"
    else:
        sd_I, df, source = _estimated_noise(table)
    sd_I = np.broadcast_to(np.asarray(sd_I, np.float64), table.loss.shape)
    if noise is not None and not (np.isfinite(sd_I).all() and (sd_I >= 0).all()):
        raise InputError(f"expected a noise >= 0 (sd of ln L), got {sd_I.min()} to {sd_I.max()}")
    return sd_I, df, source


def _estimated_noise(table):
    """(sd, degrees of freedom, source) from repeats of equal (N, D), else from the scatter around a surface."""
    y = np.log(table.loss)
    cells = np.unique(np.round(np.log([table.N, table.D]), 6).T, axis=0, return_inverse=True)[1].ravel()
    repeats = np.bincount(cells)
    df = int((repeats - 1).sum())
    if df >= 3:
        within = y - (np.bincount(cells, y) / repeats)[cells]
        return math.sqrt(float(within @ within) / df), df, f"{df} repeats of equal (N, D)"
    found = leastsq.fit_additive({"N": table.N, "D": table.D}, table.loss)
    if not found.df:
        return math.nan, math.inf, f"unknown: {len(y)} rows are too few to estimate it; pass noise="
    return found.sd, found.df, f"scatter around E + A N^-alpha + B D^-beta, {found.df} degrees of freedom"


# ---- akima and parabola: every budget on its own -------------------------------------------------------------------


def _curves(table, errors, options):
    """Fields of the result: an optimum per budget, and power laws through these."""
    found = [
        _optimum(table, group, float(budget), errors(group), options)
        for group, budget in zip(table.groups, table.C, strict=True)
    ]
    optima = tuple(optimum for optimum, *_ in found)
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
    (k, a), (m, b) = leastsq.solve(log_c[None], np.stack([log_n, log_d]), sd_G)
    draws, scatter, resamples = {}, math.nan, options["resamples"]
    if resamples:
        log_n_RG, log_d_RG = (np.stack([row[i] for row in found if not row[0].reason], 1) for i in (1, 2))
        (kR, aR), (mR, bR) = (leastsq.solve(log_c[None], y, sd_G).T for y in (log_n_RG, log_d_RG))
        draws = tuples({"a": aR, "k": kR, "b": bR, "m": mR})
    if len(chosen) > 2 and resamples and options["noise"] > 0:
        scatter = math.sqrt(float((((log_n - k - a * log_c) / sd_G) ** 2).sum()) / (len(chosen) - 2))
    warnings = [*left_out, *_curve_warnings(options, chosen, scatter)]
    fitted = {"a": a, "k": k, "b": b, "m": m}
    return {"optima": optima, "fitted": fitted, "draws": draws, "scatter": scatter, "warnings": warnings}


def _optimum(table, group, budget, noise_RI, options):
    """The Optimum of one budget, and ln N* and ln D* of its resamples [R]."""
    log_n, where = np.unique(np.round(np.log(table.N[group]), 9), return_inverse=True)
    seeds, log_loss, points = np.bincount(where), np.log(table.loss[group]), table.points(group)
    mean_RI = np.array([np.bincount(where, log_loss + noise) / seeds for noise in (0.0, *noise_RI)])

    def refused(reason):
        return Optimum(budget, *[math.nan] * 9, points, reason), None, None

    if len(log_n) < METHODS[options["method"]]:
        plural = "s" * (len(log_n) > 1)
        return refused(f"{len(log_n)} size{plural}, {options['method']} needs {METHODS[options['method']]}")
    find = akima_minimum if options["method"] == "akima" else parabola_minimum
    best_n, best_loss, edge = find(log_n, mean_RI)
    if edge[0]:
        at, side = (0, "smaller") if edge[0] < 0 else (-1, "larger")
        return refused(f"{EDGE}, N = {table.N[group][at]:.3g}; add {side} models")
    best_d = np.poly1d(np.polyfit(np.log(table.N[group]), np.log(table.D[group]), 1))(best_n)
    values = np.exp([best_n[0], best_d[0], best_loss[0]]).tolist()
    return _with_spread(budget, values, best_n[1:], best_d[1:], edge[1:], points, options), best_n[1:], best_d[1:]


def _with_spread(budget, values, log_n_R, log_d_R, edge_R, points, options):
    """The Optimum with values N, D, loss and the spread of its resamples, if there are any."""
    ends, sd, at_edge = [math.nan] * 4, math.nan, math.nan
    if len(log_n_R):
        ends = np.exp([percentiles(v, options["confidence"]) for v in (log_n_R, log_d_R)]).ravel().tolist()
        sd, at_edge = float(log_n_R.std(ddof=1)), float(np.mean(edge_R != 0))
    return Optimum(budget, *values, *ends, sd, at_edge, points, "")


def akima_minimum(x_I: np.ndarray, y_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact minimum of the Akima interpolant of each curve, from the roots of its piecewise derivative.

    Args:
        x_I: increasing positions [I], I >= 3.
        y_RI: curves [R, I].

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
    """Vertex of the least-squares parabola through y = exp(log_y) of each curve.

    Args:
        x_I: positions [I], I >= 3.
        log_y_RI: ln of the curves [R, I].

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
            few = f"fewer than {METHODS[method]} sizes; method surface uses all rows"
            kinds.setdefault(re.sub(", N = [^;]*", "", o.reason) if EDGE in o.reason else few, []).append(o)
    for reason, alike in kinds.items():
        yield f"{len(alike)} of {len(optima)} budgets left out ({_named(alike)}): {reason}"


def _named(optima):
    return "C = " + ", ".join(f"{o.C:.3g}" for o in optima[:4]) + ", ..." * (len(optima) > 4)


def _curve_warnings(options, chosen, scatter):
    if options["method"] == "parabola":
        yield (
            "a parabola in ln N is biased where the loss is not quadratic: up to 5 % of D* at 16 times the sizes on "
            "each side of the optimum (alpha 0.34, beta 0.28), 23 % with unequal exponents; its intervals do not cover "
            "that bias; compare with surface and akima"
        )
    elif options["resamples"] and options["noise"] > 0:
        yield (
            "akima intervals are wide for noisy runs: in simulations 5 to 12 times those of surface, "
            "whose intervals are valid if E + A N^-alpha + B D^-beta holds"
        )
    cut = [o for o in chosen if o.at_edge > CENSORED]
    if cut:
        yield (
            f"{len(cut)} of {len(chosen)} intervals of N* are cut off at the edge of the sizes ({_named(cut)}): up to "
            f"{max(o.at_edge for o in cut):.0%} of the resamples have their minimum there"
        )
    if scatter > 3:
        yield f"the optima scatter around the power law {scatter:.1f}x more than the noise explains"


# ---- one parametric surface over all budgets: N* = G (C / 6)^(beta / (alpha + beta)) -------------------------------


def _surface(table, errors, options):
    """Fields of the result: the surface, its optimum at each budget, its power laws."""
    found = leastsq.fit_additive({"N": table.N, "D": table.D}, table.loss)
    if found.reason:
        return {"status": found.status, "reasons": (found.reason,), "optima": (), "warnings": found.warnings}
    warnings = [*found.warnings]
    off = float(np.abs(np.log(table.all_C / table.product)).max())
    if off > 0.01:
        warnings.append(f"the surface has its optima at C = 6 N D, from which the table's C differs by up to {off:.0%}")
    params, drawn = found.params, found.refit(found.fitted + errors(np.arange(len(table.loss))))
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
    """ln N* = a ln C + k and ln D* = b ln C + m of E + A N^-alpha + B D^-beta at C = 6 N D.

    Args:
        params: parameters of the law chinchilla, floats or arrays [P]; see laws.optimal_allocation.

    Returns:
        dict a, k, b, m, each [P].

    Example:
        >>> law = power_laws(dict(E=1.7, A=400.0, alpha=0.3, B=400.0, beta=0.3))
        >>> {name: float(v.round(3)) for name, v in law.items()}
        {'a': 0.5, 'k': -0.896, 'b': 0.5, 'm': -0.896}

    Paper: arXiv:2203.15556, equation 4.
    """
    unit = optimal_allocation(params, float(FLOPS_PER_PARAM_TOKEN))  # N D = 1
    a, six = unit["a"], math.log(FLOPS_PER_PARAM_TOKEN)
    return {"a": a, "k": np.log(unit["N"]) - a * six, "b": 1 - a, "m": np.log(unit["D"]) - (1 - a) * six}

"""Compute-optimal sizes from runs of equal compute (Chinchilla's approach 2): an optimum per budget, a power law in C.

    akima     ln L interpolated in ln N (Akima's piecewise cubic) and its exact minimum: unbiased, needs little noise
    parabola  L = p (ln N)^2 + q ln N + r, as published; biased where the curve is not a parabola
    surface   E + A N^-alpha + B D^-beta over all budgets: unbiased and least noisy, if that law holds

Intervals come from noise added to ln L (arXiv:2406.19146), propagated through the optima to the power law. Akima's
optima carry the noise of the table and the added noise, so its intervals are conservative; the intervals of the
parabola do not cover its bias. tests/test_scaling_methods.py measures the coverage.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.format import count, flop
from lmjax.scaling.columns import frame_of, need, positive, shares
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, optimal_allocation
from lmjax.scaling.methods import additive, loglinear
from lmjax.scaling.methods.outcome import PowerOfC, intervals_of, table_text
from lmjax.scaling.resample import generator, percentiles, t_scales

METHODS = {"akima": 4, "parabola": 3, "surface": 1}  # smallest number of sizes at a budget
DESCRIPTIONS = {
    "akima": "interpolates each budget: hardly any bias, needs four sizes per budget, wide intervals for noisy runs",
    "parabola": "a parabola in ln N per budget, as published: needs three sizes per budget, biased off the optimum",
    "surface": "one law E + A N^-alpha + B D^-beta over all rows: narrow intervals, correct if that law holds",
}
WHAT = "the isoFLOP table"
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
        resamples: bootstrap resamples (noise added to ln L) behind the intervals; 0 computes none.
        confidence: confidence level of the intervals.
        seed: random seed of the noise.
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
    options |= {"conventions": table.conventions, "warnings": tuple(table.warnings), "intervals": {}, "draws": {}}
    if len(table.C) < 2:
        reason = f"one budget (C = {table.C[0]:.3g}): an exponent needs at least two, and a test of the power law three"
        return IsoFlop(status="too_few_points", reasons=(reason,), **options)
    sd_I, sd, noise_source, df = _noise(table, noise)
    options |= {"noise": sd, "noise_source": noise_source}
    return _surface(table, sd, df, options) if method == "surface" else _curves(table, sd_I, df, options)


class _Table:
    """Checked columns, and the row numbers of each budget by size: C [G], groups."""

    def __init__(self, source, tolerance, budgets):
        frame = frame_of(source, WHAT, pooled=True)
        need(frame, ("N", "D", "loss"), WHAT)
        self.N, self.D, self.loss = (positive(frame, name, WHAT) for name in ("N", "D", "loss"))
        given = "C" in frame
        self.all_C = positive(frame, "C", WHAT) if given else FLOPS_PER_PARAM_TOKEN * self.N * self.D
        self.run = [str(r) for r in frame["run"]] if "run" in frame else [f"row {i + 1}" for i in range(len(frame))]
        self.conventions = getattr(source, "conventions", None) or {
            "N": "N as given in the table",
            "D": "D as given in the table",
            "C": "C as given in the table" if given else "C = 6 N D FLOP",
        }
        self.groups = _by_budget(self, tolerance, budgets)
        self.C = np.array([math.exp(np.log(self.all_C[g]).mean()) for g in self.groups])
        spread = max(np.ptp(np.log(self.all_C[g])) for g in self.groups)
        self.warnings = []
        if spread > 0.02:
            self.warnings.append(f"C varies by {spread:.1%} within a budget, which adds to the differences in loss")

    def points(self, group) -> tuple[dict, ...]:
        return tuple(
            {"run": self.run[i], "N": float(self.N[i]), "D": float(self.D[i]), "loss": float(self.loss[i])}
            for i in group
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
        off = part[np.abs(log_c[part] - centre) > tolerance]
        if not len(part):
            raise InputError(f"{WHAT}: expected rows at the budget {math.exp(centre):.3g}, got none")
        if len(off):
            named = ", ".join(f"{table.run[i]} ({table.all_C[i]:.4g})" for i in off[:5])
            raise InputError(
                f"{WHAT}: expected C within {tolerance:.0%} of the budget {math.exp(centre):.4g}, got {named}; "
                "leave these rows out, pass `budgets`, or increase `tolerance`"
            )
    return [part[np.lexsort((table.D[part], table.N[part]))] for part in parts]


def _noise(table, noise):
    """(sd of ln L per row [I], its root mean square, source, degrees of freedom: infinite for a given noise)."""
    if callable(noise):
        sd_I = np.asarray(noise(table.loss), np.float64) * np.ones_like(table.loss)
        source = "a given function of the loss"
    elif noise is not None:
        sd_I, source = np.full_like(table.loss, float(noise)), "given"
    else:
        sd, df, source = _estimated_noise(table)
        return np.full_like(table.loss, sd), sd, source, df
    if not (np.isfinite(sd_I).all() and (sd_I >= 0).all()):
        raise InputError(f"expected a noise >= 0 (sd of ln L), got {sd_I.min()} to {sd_I.max()}")
    return sd_I, float(np.sqrt(np.mean(sd_I**2))), source, math.inf


def _estimated_noise(table):
    y = np.log(table.loss)
    cells = np.unique(np.round(np.log([table.N, table.D]), 6).T, axis=0, return_inverse=True)[1].ravel()
    repeats = np.bincount(cells)
    df = int((repeats - 1).sum())
    if df >= 3:
        within = y - (np.bincount(cells, y) / repeats)[cells]
        return math.sqrt(float(within @ within) / df), df, f"{df} repeats of equal (N, D)"
    found = additive.fit_additive({"N": table.N, "D": table.D}, table.loss)
    if found.df < 1:
        return math.nan, math.inf, f"unknown: {len(y)} rows are too few to estimate it; pass noise="
    return found.sd, found.df, f"scatter around E + A N^-alpha + B D^-beta, {found.df} degrees of freedom"


# -- akima and parabola: every budget on its own


def _curves(table, sd_I, df, options):
    rng = generator(options["seed"])
    resamples = options["resamples"] = options["resamples"] if np.isfinite(sd_I).all() else 0
    scale_R = t_scales(rng, df, resamples)
    optima, draws = [], []
    for group, budget in zip(table.groups, table.C, strict=True):
        noise_RI = scale_R[:, None] * sd_I[group] * rng.standard_normal((resamples, len(group)))
        optimum, log_n_R = _optimum(table, group, float(budget), noise_RI, options)
        optima.append(optimum)
        draws.append(log_n_R)
    options["optima"] = tuple(optima)
    used = [g for g, o in enumerate(optima) if not o.reason]
    if len(used) < 2:
        edge = any("edge" in o.reason for o in optima)
        verb = "has" if len(used) == 1 else "have"
        reasons = (
            f"{len(used)} of {len(optima)} budgets {verb} an optimum; an exponent needs two",
            *_left_out(optima, options["method"]),
        )
        return IsoFlop(status="at_bound" if edge else "too_few_points", reasons=reasons, **options)
    options["warnings"] += tuple(_left_out(optima, options["method"]))
    chosen = [optima[g] for g in used]
    log_c = np.log([o.C for o in chosen])[None]
    log_n, log_d = np.log([o.N for o in chosen]), np.log([o.D for o in chosen])
    sd_G = np.array([o.sd_log_N for o in chosen])
    # a lower limit: an optimum that the noise never moves off its run would get all the weight
    sd_G = np.maximum(sd_G, 0.1 * np.median(sd_G) + 1e-9) if np.isfinite(sd_G).all() else np.ones(len(used))
    k, a = loglinear.solve(log_c, log_n[None], sd_G)[0]
    m, b = loglinear.solve(log_c, log_d[None], sd_G)[0]
    if resamples:
        log_n_RG = np.stack([draws[g] for g in used], 1)
        log_d_RG = log_d - (log_n_RG - log_n) * _trade(table, used)
        (kR, aR), (mR, bR) = (loglinear.solve(log_c, y, sd_G).T.tolist() for y in (log_n_RG, log_d_RG))
        options["draws"] = {name: tuple(v) for name, v in {"a": aR, "k": kR, "b": bR, "m": mR}.items()}
    scatter = math.nan
    if len(used) > 2 and resamples and options["noise"] > 0:
        scatter = math.sqrt(float((((log_n - k - a * log_c[0]) / sd_G) ** 2).sum()) / (len(used) - 2))
    options["warnings"] += tuple(_curve_warnings(options, chosen, scatter))
    return _finish(options, {"a": a, "k": k, "b": b, "m": m}, scatter)


def _optimum(table, group, budget, noise_RI, options):
    """Returns the Optimum of one budget, and ln N* of its resamples [R]."""
    log_n, where = np.unique(np.round(np.log(table.N[group]), 9), return_inverse=True)
    seeds = np.bincount(where)
    averaged = np.array([np.bincount(where, np.log(table.loss[group]) + noise) / seeds for noise in noise_RI])
    log_loss = np.bincount(where, np.log(table.loss[group])) / seeds
    points, nan, fewest = table.points(group), math.nan, METHODS[options["method"]]

    def refused(reason):
        return Optimum(budget, *[nan] * 9, points, reason), np.full(len(noise_RI), nan)

    if len(log_n) < fewest:
        return refused(f"{len(log_n)} size{'s' * (len(log_n) > 1)}, {options['method']} needs {fewest}")
    find = akima_minimum if options["method"] == "akima" else parabola_minimum
    best_n, best_loss, edge = find(log_n, np.concatenate([log_loss[None], averaged.reshape(-1, len(log_n))]))
    if edge[0]:
        at, side = (0, "smaller") if edge[0] < 0 else (-1, "larger")
        return refused(f"the minimum is at the edge of the sizes, N = {table.N[group][at]:.3g}; add {side} models")
    log_d_of = np.poly1d(np.polyfit(np.log(table.N[group]), np.log(table.D[group]), 1))
    drawn = best_n[1:]
    low, high = percentiles(drawn, options["confidence"]) if len(drawn) else (nan, nan)
    logs = (best_n[0], log_d_of(best_n[0]), best_loss[0], low, high, log_d_of(high), log_d_of(low))
    sd, at_edge = (float(drawn.std(ddof=1)), float((edge[1:] != 0).mean())) if len(drawn) else (nan, nan)
    return Optimum(budget, *(float(np.exp(v)) for v in logs), sd, at_edge, points, ""), drawn


def _trade(table, used):
    """-d ln D / d ln N along each budget: 1 where C = 6 N D."""
    groups = [table.groups[g] for g in used]
    return np.array([-np.polyfit(np.log(table.N[g]), np.log(table.D[g]), 1)[0] for g in groups])


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


def akima_curve(x_I: np.ndarray, y_I: np.ndarray, at_M: np.ndarray) -> np.ndarray:
    """The interpolant whose minimum `akima_minimum` finds, at other positions [M]."""
    from scipy.interpolate import Akima1DInterpolator

    return Akima1DInterpolator(x_I, y_I)(at_M)


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


# -- warnings and the result


def _left_out(optima, method):
    """Yields one sentence for all budgets that were left out for the same reason."""
    kinds = {}
    for o in optima:
        if o.reason:
            kinds.setdefault(o.reason.rsplit("; ")[-1] if "edge" in o.reason else "few", []).append(o)
    for kind, alike in kinds.items():
        one = len(alike) == 1
        if kind == "few":
            yield (
                f"{len(alike)} of {len(optima)} budgets {'has' if one else 'have'} fewer than {METHODS[method]} sizes "
                f"and {'is' if one else 'are'} left out; method surface uses all rows"
            )
        elif one:
            yield f"budget {alike[0].C:.3g} left out: {alike[0].reason}"
        else:
            yield (
                f"{len(alike)} of {len(optima)} budgets ({_named(alike)}) have their minimum at the edge of the sizes "
                f"and are left out; {kind}"
            )


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
    yield from _common_warnings(options, len(chosen))
    cut = [o for o in chosen if o.at_edge > CENSORED]
    if cut:
        yield (
            f"{len(cut)} of {len(chosen)} intervals of N* ({_named(cut)}) end{'s' * (len(cut) == 1)} at the edge of "
            f"the sizes: up to {max(o.at_edge for o in cut):.0%} of the resamples have their minimum there"
        )
    if scatter > 3:
        yield f"the optima scatter around the power law {scatter:.1f}x more than the noise explains"


def _common_warnings(options, budgets):
    if budgets == 2:
        yield "two budgets: the power law passes through both optima, so its form is not tested"
    if not options["resamples"]:
        yield "no intervals: " + (options["noise_source"] if math.isnan(options["noise"]) else "resamples = 0")


def _finish(options, values, scatter):
    intervals = intervals_of(options["draws"], "ab", options["confidence"])
    values = {name: float(v) for name, v in values.items()}
    return IsoFlop(status="converged", scatter=scatter, **values, **(options | {"intervals": intervals}))


# -- one parametric surface over all budgets: N* = G (C / 6)^(beta / (alpha + beta))


def _surface(table, sd, df, options):
    found = additive.fit_additive({"N": table.N, "D": table.D}, table.loss)
    options["warnings"] += found.warnings
    if found.reason:
        return IsoFlop(status=found.status, reasons=(found.reason,), **options)
    off = float(np.abs(np.log(table.all_C / (FLOPS_PER_PARAM_TOKEN * table.N * table.D))).max())
    if off > 0.01:
        options["warnings"] += (
            f"the surface has its optima at C = 6 N D, from which the table's C differs by up to {off:.0%}",
        )
    options["conventions"] = {**options["conventions"], "C": "C = 6 N D FLOP"}
    resamples = options["resamples"] = options["resamples"] if math.isfinite(sd) else 0
    rng = generator(options["seed"])
    scale_R = t_scales(rng, df, resamples)
    noisy = found.fitted + scale_R[:, None] * sd * rng.standard_normal((resamples, len(table.loss)))
    drawn = found.parameters(additive.refit(found, noisy) if resamples else found.phi[None][:0])
    params = options["surface"] = {name: float(v[0]) for name, v in found.parameters().items()}
    values = {name: float(v) for name, v in power_laws(params).items()}
    if resamples:
        options["draws"] = {name: tuple(v.tolist()) for name, v in power_laws(drawn).items()}
    options["optima"] = tuple(_surface_optimum(table, group, params, drawn, options) for group in table.groups)
    outside = sum(not min(s) <= o.N <= max(s) for o in options["optima"] for s in [[p["N"] for p in o.points]])
    if outside:
        verb = "lies" if outside == 1 else "lie"
        options["warnings"] += (
            f"{outside} of {len(table.groups)} optima {verb} outside of the sizes trained at the budget",
        )
    options["warnings"] += tuple(_common_warnings(options, len(table.C)))
    return _finish(options, values, math.nan)


def _surface_optimum(table, group, params, drawn_params, options):
    budget = math.exp(np.log(FLOPS_PER_PARAM_TOKEN * table.N[group] * table.D[group]).mean())
    best = {name: float(v) for name, v in optimal_allocation(params, budget).items()}
    drawn = np.log(optimal_allocation(drawn_params, budget)["N"])
    low, high = percentiles(drawn, options["confidence"]) if len(drawn) else (math.nan, math.nan)
    low, high = math.exp(low), math.exp(high)
    product, spread = best["N"] * best["D"], float(drawn.std(ddof=1)) if len(drawn) else math.nan
    ends = (low, high, product / high, product / low)
    return Optimum(budget, best["N"], best["D"], best["loss"], *ends, spread, 0.0, table.points(group), "")


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

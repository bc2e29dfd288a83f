"""Compute-optimal sizes from runs of equal compute (approach 2): an optimum per budget, then a power law in C.

    akima     ln L interpolated in ln N (Akima's piecewise cubic), its exact minimum: no bias, needs little noise
    parabola  L = p (ln N)^2 + q ln N + r: the published way; biased where the curve is not a parabola
    surface   E + A N^-alpha + B D^-beta over all budgets: no bias and least noise, if that law holds

Every interval comes from noise added to ln L (arXiv:2406.19146), through the optima to the law. Coverage of nominal
95 % intervals of a, five budgets, noise of ln L estimated from the table, 600 tables each (standard error 0.9 %);
tests/test_scaling_methods.py repeats it:
    noise 0.1 %, 9 sizes     akima 95.5 %   surface 94.8 %     median width  akima 0.037   surface 0.0034
    noise 0.3 %, 9 sizes     akima 96.5 %   surface 94.7 %                         0.089           0.0101
    noise 0.3 %, 15 sizes    akima 99.2 %   surface 93.7 %                         0.103           0.0084
    noise 1 %, 9 sizes       akima 99.0 %   surface 94.7 %                         0.183           0.0338
(widths: of 100 of these tables.)
Akima's optima carry the noise of the table and the added one, so its intervals are too wide where noise rules. Those
of the parabola do not hold its bias.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN
from lmjax.scaling.methods import additive, loglinear
from lmjax.scaling.methods.columns import frame_of, need, positive, shares
from lmjax.scaling.methods.minima import akima_minimum, parabola_minimum
from lmjax.scaling.methods.optima import Optimum, surface_optima
from lmjax.scaling.methods.outcome import Outcome
from lmjax.scaling.render import short

METHODS = {"akima": 4, "parabola": 3, "surface": 1}  # smallest number of sizes at a budget
METHODS_WORDS = {  # what `text` says of each
    "akima": "interpolates each budget: hardly any bias, four sizes a budget, wide intervals where runs are noisy",
    "parabola": "a parabola in ln N per budget, as published: three sizes a budget, biased off the optimum",
    "surface": "one law E + A N^-alpha + B D^-beta over all rows: narrow intervals, right if that law holds",
}
WHAT = "the isoFLOP table"
CENSORED = 0.05  # share of noisy refits whose minimum is at the edge of the sizes, from which on we warn


@dataclass(frozen=True, kw_only=True)
class IsoFlop(Outcome):
    """N*(C) = exp(k) C^a from isoFLOP curves.

    a, k: exponent and ln of the factor of N*(C); b, m: of D*(C). intervals: of a, b (NaN without resamples).
    optima: one a budget, refused ones included. noise: sd of ln L that was added; noise_source: where it is from.
    scatter: weighted sd of ln N* around the law (1 = as the noise explains; NaN with two budgets).
    draws: (a, k, b, m) of the resamples, by name. surface: E, A, alpha, B, beta of the method "surface".
    """

    method: str
    a: float = math.nan
    k: float = math.nan
    b: float = math.nan
    m: float = math.nan
    intervals: dict[str, tuple[float, float]]
    optima: tuple[Optimum, ...] = ()
    noise: float = math.nan
    noise_source: str = ""
    scatter: float = math.nan
    resamples: int = 0
    seed: int = 0
    draws: dict[str, tuple[float, ...]]
    surface: dict[str, float] = field(default_factory=dict)

    def text(self) -> str:
        """The result in words: a line a budget, the power law, what to beware of."""
        lines = [f"{self.method}: {METHODS_WORDS[self.method]}"]
        for o in self.optima:
            ends = f" ({short(o.N_low)} to {short(o.N_high)})" if math.isfinite(o.N_low) else ""
            if not o.reason:
                lines.append(f"C {o.C:.3g}  N* {short(o.N)}{ends}, D* {short(o.D)}, loss {o.loss:.4f}")
        if not self.refused:
            low, high = self.intervals["a"]
            ends = f", {self.level:.0%} interval of the exponent {low:.4f} to {high:.4f}" if self.draws else ""
            lines.append(f"N* = {math.exp(self.k):.3g} C^{self.a:.4f} (method {self.method}{ends})")
        lines += [f"refused: {reason}" for reason in self.reasons]
        lines += [f"beware: {warning}" for warning in self.warnings]
        return "\n".join([*lines, "; ".join(self.conventions.values())])

    def predict(self, C) -> dict[str, np.ndarray]:
        """N*, D* and tokens per parameter at budgets.

        N*(C) = exp(k) C^a, D*(C) = exp(m) C^b.

        Args:
            C: budgets in the FLOP of the table, float or array.

        Returns:
            dict of C, extrapolation (C over the largest budget) and N, D, tokens_per_param with _low and _high.

        Raises:
            InputError: the result was refused; C is not above 0.
        """
        self.usable()
        C = np.asarray(C, np.float64)
        if not (C > 0).all():
            raise InputError(f"wanted a budget C > 0 FLOP, got {C}")
        used = [o.C for o in self.optima if not o.reason]
        out = {"C": C, "extrapolation": C / max(used)}
        draws = {name: np.array(v).reshape(-1, *(1,) * C.ndim) for name, v in self.draws.items()}

        def logs(p):
            log_n, log_d = p["k"] + p["a"] * np.log(C), p["m"] + p["b"] * np.log(C)
            return {"N": log_n, "D": log_d, "tokens_per_param": log_d - log_n}

        here = logs({"a": self.a, "k": self.k, "b": self.b, "m": self.m})
        spread = logs(draws) if draws else {name: np.full((1, *C.shape), math.nan) for name in here}
        for name, value in here.items():
            low, high = np.quantile(spread[name], [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
            out |= {name: np.exp(value), f"{name}_low": np.exp(low), f"{name}_high": np.exp(high)}
        return out


def isoflop(
    source, method="akima", noise=None, resamples=1000, level=0.95, seed=0, tolerance=0.05, budgets=None
) -> IsoFlop:
    """Fits N*(C) and D*(C) to runs grouped by compute.

    ln N* = a ln C + k by least squares with weights 1 / sd(ln N*)^2; the same for D*.

    Args:
        source: a frame, FitTable or dict with N (parameters), D (tokens), loss; C (FLOP; else 6 N D), run (labels).
        method: akima | parabola | surface, see the module.
        noise: sd of ln L between seeds: a number, or a function of L [I] -> sd [I]; None estimates it from
            repeated (N, D), else from the scatter around a surface E + A N^-alpha + B D^-beta.
        resamples: noisy refits behind the intervals; 0 leaves them out.
        level: of the intervals.
        seed: of numpy's Philox generator.
        tolerance: rows whose C is within this share of the level's C belong to a budget.
        budgets: the intended budgets in FLOP; rows further off than `tolerance` are refused. None: levels of C.

    Returns:
        IsoFlop; refused (too_few_points, at_bound, not_identified) where the table holds no answer. A single budget
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
        raise InputError(f"wanted a method of isoflop, got {method!r}{nearest(method, METHODS)}")
    shares(level, resamples)
    table = _Table(source, tolerance, budgets)
    options = {"method": method, "level": level, "seed": seed, "resamples": resamples}
    options |= {"conventions": table.conventions, "warnings": tuple(table.warnings), "intervals": {}, "draws": {}}
    if len(table.C) < 2:
        reason = f"one budget (C = {table.C[0]:.3g}): an exponent needs at least two, three to be checked"
        return IsoFlop(status="too_few_points", reasons=(reason,), **options)
    sd_I, sd, where, df = _noise(table, noise)
    options |= {"noise": sd, "noise_source": where}
    if method == "surface":
        return _surface(table, sd, df, options)
    return _curves(table, sd_I, df, options)


class _Table:
    """Checked columns and their groups: C [G], groups of row numbers by size, repeats averaged in ln L."""

    def __init__(self, source, tolerance, budgets):
        frame = frame_of(source, WHAT)
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
        self.warnings = []
        self.groups = _by_budget(self, tolerance, budgets)
        self.C = np.array([math.exp(np.log(self.all_C[g]).mean()) for g in self.groups])
        spread = max(np.ptp(np.log(self.all_C[g])) for g in self.groups)
        if spread > 0.02:
            self.warnings.append(
                f"C varies by {spread:.1%} within a budget: part of a difference in loss is a difference in compute"
            )


def _by_budget(table, tolerance, budgets):
    """Row numbers of each budget, by C and then by N."""
    if not 0 < tolerance < 0.5:
        raise InputError(f"wanted 0 < tolerance < 0.5, got {tolerance}")
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
            raise InputError(f"{WHAT}: wanted rows at the budget {math.exp(centre):.3g}, got none")
        if len(off):
            words = ", ".join(f"{table.run[i]} ({table.all_C[i]:.4g})" for i in off[:5])
            raise InputError(
                f"{WHAT}: wanted C within {tolerance:.0%} of the budget {math.exp(centre):.4g}, got {words}; "
                "leave these rows out, give `budgets`, or set `tolerance`"
            )
    return [part[np.lexsort((table.D[part], table.N[part]))] for part in parts]


def _noise(table, noise):
    """(sd of ln L per row [I], one sd, where it is from, degrees of freedom; inf where the noise is given)."""
    if callable(noise):
        sd_I = np.asarray(noise(table.loss), np.float64) * np.ones_like(table.loss)
        source = "a given function of the loss"
    elif noise is not None:
        sd_I, source = np.full_like(table.loss, float(noise)), "given"
    else:
        sd, df, source = _estimated_noise(table)
        return np.full_like(table.loss, sd), sd, source, df
    if not (np.isfinite(sd_I).all() and (sd_I >= 0).all()):
        raise InputError(f"wanted a noise >= 0 (sd of ln L), got {sd_I.min()} to {sd_I.max()}")
    return sd_I, float(np.sqrt(np.mean(sd_I**2))), source, math.inf


def _estimated_noise(table):
    y = np.log(table.loss)
    cells = np.unique(np.round(np.log([table.N, table.D]), 6).T, axis=0, return_inverse=True)[1].ravel()
    count = np.bincount(cells)
    df = int((count - 1).sum())
    if df >= 3:
        within = y - (np.bincount(cells, y) / count)[cells]
        return math.sqrt(float(within @ within) / df), df, f"{df} repeats of equal (N, D)"
    found = additive.fit_additive({"N": table.N, "D": table.D}, table.loss)
    if found.df < 1:
        return math.nan, 0, f"unknown: {len(y)} rows are too few to estimate it; give noise="
    return found.sd, found.df, f"scatter around E + A N^-alpha + B D^-beta, {found.df} degrees of freedom"


def _scales(rng, df, count):
    """How far the true noise may be from its estimate: sqrt(df / chi2_df)."""
    return np.ones(count) if math.isinf(df) or not count else np.minimum(np.sqrt(df / rng.chisquare(df, count)), 20.0)


def _curves(table, sd_I, df, options):
    """Akima and parabola: every budget for itself."""
    rng = np.random.Generator(np.random.Philox(options["seed"]))
    resamples = options["resamples"] if np.isfinite(sd_I).all() else 0
    scale_R = _scales(rng, df, resamples)
    optima, draws = [], []
    for group, budget in zip(table.groups, table.C, strict=True):
        noise_RI = scale_R[:, None] * sd_I[group] * rng.standard_normal((resamples, len(group)))
        optimum, log_n_R = _optimum(table, group, budget, noise_RI, options)
        optima.append(optimum)
        draws.append(log_n_R)
    options |= {"optima": tuple(optima), "resamples": resamples}
    used = [g for g, o in enumerate(optima) if not o.reason]
    if len(used) < 2:
        edge = any("edge" in o.reason for o in optima)
        count = f"{len(used)} of {len(optima)} budgets {'has' if len(used) == 1 else 'have'} an optimum"
        reasons = (f"{count}, an exponent needs two", *_left_out(optima, options["method"]))
        return IsoFlop(status="at_bound" if edge else "too_few_points", reasons=reasons, **options)
    options["warnings"] += tuple(_left_out(optima, options["method"]))
    chosen = [optima[g] for g in used]
    log_c = np.log([o.C for o in chosen])[None]
    log_n, log_d = np.log([o.N for o in chosen]), np.log([o.D for o in chosen])
    sd_G = np.array([o.sd_log_N for o in chosen])
    # an optimum that the noise does not move from its run would have all the weight
    sd_G = np.maximum(sd_G, 0.1 * np.median(sd_G) + 1e-9) if np.isfinite(sd_G).all() else np.ones(len(used))
    k, a = loglinear.solve(log_c, log_n[None], sd_G)[0]
    m, b = loglinear.solve(log_c, log_d[None], sd_G)[0]
    if resamples:
        log_n_RG = np.stack([draws[g] for g in used], 1)
        log_d_RG = log_d - (log_n_RG - log_n) * _trade(table, used)
        kn, km = loglinear.solve(log_c, log_n_RG, sd_G), loglinear.solve(log_c, log_d_RG, sd_G)
        options["draws"] = {
            name: tuple(v.tolist()) for name, v in {"a": kn[:, 1], "k": kn[:, 0], "b": km[:, 1], "m": km[:, 0]}.items()
        }
    scatter = math.nan
    if len(used) > 2 and resamples and options["noise"] > 0:
        scatter = math.sqrt(float((((log_n - k - a * log_c[0]) / sd_G) ** 2).sum()) / (len(used) - 2))
    options["warnings"] += tuple(_curve_warnings(options, chosen, scatter, len(used)))
    return _finish(options, {"a": a, "k": k, "b": b, "m": m}, scatter)


def _left_out(optima, method):
    """One sentence for all budgets that were left out for the same reason."""
    kinds = {}
    for o in optima:
        if o.reason:
            kinds.setdefault(o.reason.rsplit("; ")[-1] if "edge" in o.reason else "few", []).append(o)
    for kind, alike in kinds.items():
        if kind == "few":
            verb = "has" if len(alike) == 1 else "have"
            yield (
                f"{len(alike)} of {len(optima)} budgets {verb} fewer than {METHODS[method]} sizes and "
                f"{'is' if len(alike) == 1 else 'are'} left out; method surface uses all rows"
            )
        elif len(alike) == 1:
            yield f"budget {alike[0].C:.3g} left out: {alike[0].reason}"
        else:
            yield (
                f"{len(alike)} of {len(optima)} budgets ({_named(alike)}) have their minimum at the edge of the sizes "
                f"and are left out; {kind}"
            )


def _named(optima):
    return "C = " + ", ".join(f"{o.C:.3g}" for o in optima[:4]) + ", ..." * (len(optima) > 4)


def _trade(table, used):
    """-d ln D / d ln N along each budget: 1 where C = 6 N D."""
    slopes = []
    for g in used:
        group = table.groups[g]
        slopes.append(-np.polyfit(np.log(table.N[group]), np.log(table.D[group]), 1)[0])
    return np.array(slopes)


def _optimum(table, group, budget, noise_RI, options):
    """The Optimum of one budget and ln N* of its noisy refits [R]."""
    log_n, where = np.unique(np.round(np.log(table.N[group]), 9), return_inverse=True)
    count = np.bincount(where)
    averaged = np.array([np.bincount(where, np.log(table.loss[group]) + noise) / count for noise in noise_RI])
    log_loss = np.bincount(where, np.log(table.loss[group])) / count
    points = tuple(
        {"run": table.run[i], "N": float(table.N[i]), "D": float(table.D[i]), "loss": float(table.loss[i])}
        for i in group
    )
    nan, least = math.nan, METHODS[options["method"]]

    def refused(reason):
        empty = Optimum(float(budget), nan, nan, nan, nan, nan, nan, nan, nan, nan, points, reason)
        return empty, np.full(len(noise_RI), nan)

    if len(log_n) < least:
        return refused(f"{len(log_n)} size{'s' * (len(log_n) > 1)}, {options['method']} needs {least}")
    find = akima_minimum if options["method"] == "akima" else parabola_minimum
    best_n, best_loss, edge = find(log_n, np.concatenate([log_loss[None], averaged.reshape(-1, len(log_n))]))
    if edge[0]:
        return refused(
            f"the minimum is at the edge of the sizes, N = {table.N[group][0 if edge[0] < 0 else -1]:.3g}; "
            f"add {'smaller' if edge[0] < 0 else 'larger'} models"
        )
    log_d_of = np.poly1d(np.polyfit(np.log(table.N[group]), np.log(table.D[group]), 1))
    tails = [(1 - options["level"]) / 2, (1 + options["level"]) / 2]
    low, high = np.quantile(best_n[1:], tails) if len(noise_RI) else (nan, nan)
    sd = float(best_n[1:].std(ddof=1)) if len(noise_RI) else nan
    logs = (best_n[0], log_d_of(best_n[0]), best_loss[0], low, high, log_d_of(high), log_d_of(low))
    N, D, loss, *ends = (float(np.exp(v)) for v in logs)
    at_edge = float((edge[1:] != 0).mean()) if len(noise_RI) else nan
    return Optimum(float(budget), N, D, loss, *ends, sd, at_edge, points, ""), best_n[1:]


def _curve_warnings(options, chosen, scatter, count):
    if options["method"] == "parabola":
        yield (
            "a parabola in ln N is biased where the loss is not one: up to 5 % of D* at 16 times the sizes to each "
            "side of the optimum (alpha 0.34, beta 0.28), 23 % with unequal exponents; its intervals do not hold that "
            "bias; compare with surface and akima"
        )
    elif options["resamples"] and options["noise"] > 0:
        yield (
            "intervals of akima are wide where runs are noisy: in simulations 5 to 12 times those of surface, "
            "whose intervals hold if E + A N^-alpha + B D^-beta does"
        )
    yield from _common_warnings(options, count)
    cut = [o for o in chosen if o.at_edge > CENSORED]
    if cut:
        yield (
            f"{len(cut)} of {len(chosen)} intervals of N* ({_named(cut)}) end{'s' * (len(cut) == 1)} at the edge of "
            f"the sizes: up to {max(o.at_edge for o in cut):.0%} of the noisy refits have their minimum there"
        )
    if scatter > 3:
        yield f"the optima scatter {scatter:.1f} times more around the power law than the noise explains"


def _common_warnings(options, count):
    if count == 2:
        yield "two budgets: the power law passes through both and nothing checks it"
    if not options["resamples"]:
        yield "no intervals: " + (options["noise_source"] if math.isnan(options["noise"]) else "resamples = 0")


def _finish(options, values, scatter):
    tails = [(1 - options["level"]) / 2, (1 + options["level"]) / 2]
    draws = options["draws"]
    options["intervals"] = {
        name: tuple(np.quantile(draws[name], tails).tolist()) if draws else (math.nan, math.nan) for name in "ab"
    }
    return IsoFlop(status="converged", scatter=scatter, **{n: float(v) for n, v in values.items()}, **options)


def _surface(table, sd, df, options):
    """One parametric surface over all budgets: N* = G (C / 6)^(beta / (alpha + beta))."""
    found = additive.fit_additive({"N": table.N, "D": table.D}, table.loss)
    reason, status = found.reason, found.status
    options["warnings"] += found.warnings
    if reason:
        return IsoFlop(status=status, reasons=(reason,), **options)
    off = float(np.abs(np.log(table.all_C / (FLOPS_PER_PARAM_TOKEN * table.N * table.D))).max())
    if off > 0.01:
        options["warnings"] += (
            f"the surface has its optima along C = 6 N D; C of the table is up to {off:.0%} off it",
        )
    options["conventions"] = {**options["conventions"], "C": "C = 6 N D FLOP"}
    resamples = options["resamples"] = options["resamples"] if math.isfinite(sd) else 0
    rng = np.random.Generator(np.random.Philox(options["seed"]))
    scale_R = _scales(rng, df, resamples)
    noisy = found.fitted + scale_R[:, None] * sd * rng.standard_normal((resamples, len(table.loss)))
    refits = found.parameters(additive.refit(found, noisy) if resamples else found.phi[None][:0])
    surface = {name: float(v[0]) for name, v in found.parameters().items()}
    values, draws, optima, warnings = surface_optima(table, surface, refits, options["level"])
    options |= {"optima": optima, "draws": draws if resamples else {}, "surface": surface}
    options["warnings"] += (*warnings, *_common_warnings(options, len(table.C)))
    return _finish(options, values, math.nan)

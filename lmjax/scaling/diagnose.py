"""How far a fit can be trusted: influence of each row, profiles of the objective, an audit in words."""

import math

import numpy as np
import pandas

from lmjax.errors import InputError, nearest
from lmjax.scaling import fitting, solver
from lmjax.scaling.laws import get_law
from lmjax.scaling.result import Fit

MARKS = ("fine", "beware", "refused")


def influence(fit: Fit) -> list[dict]:
    """How far each parameter moves when one row is left out.

    Args:
        fit: a usable fit.

    Returns:
        One dict a row: run, N, D, loss, shift ({parameter: value without the row - value}), and largest: the
        largest |shift| over the half width of that parameter's interval (NaN without intervals). Most
        influential row first.
    """
    law = get_law(fit.usable().law)
    points = pandas.DataFrame(fit.points)
    scaled = fitting.Scaled(points, law)
    count = len(points)
    weights = np.where(np.eye(count, dtype=bool), 0.0, scaled.w_I)
    start = np.repeat(scaled.phi(fit.params)[None], count, 0)
    without = solver.minimise(start, scaled.u_JI, scaled.y_I[None], weights, fit.delta)
    logs = scaled.logs(without.phi)
    moved = {n.removeprefix("ln "): np.exp(v) if n.startswith("ln ") else v for n, v in logs.items()}
    moved |= law.derived(moved)
    here = {**fit.params, **fit.derived}
    rows = []
    for i, row in enumerate(fit.points):
        shift = {name: float(moved[name][i] - here[name]) for name in here}
        half = {name: (high - low) / 2 for name, (low, high) in fit.intervals.items() if high > low}
        largest = max((abs(shift[name]) / half[name] for name in half), default=math.nan)
        rows.append({**{k: row[k] for k in ("run", "N", "D", "loss")}, "shift": shift, "largest": largest})
    return sorted(rows, key=lambda row: -np.nan_to_num(row["largest"]))


def profile(fit: Fit, name: str, values) -> np.ndarray:
    """The objective with one parameter held, the others free: a flat profile is an unknown parameter.

    Args:
        fit: a usable fit.
        name: E or an exponent.
        values: values to hold it at, [P].

    Returns:
        Objective over its minimum, [P]; 1 at the fitted value.
    """
    law = get_law(fit.usable().law)
    names = {"E": 0} | {term.exponent: 2 + 2 * j for j, term in enumerate(law.terms)}
    if name not in names:
        raise InputError(f"wanted E or an exponent to profile, got {name!r}{nearest(name, names)}")
    scaled = fitting.Scaled(pandas.DataFrame(fit.points), law)
    start = np.repeat(scaled.phi(fit.params)[None], len(values), 0)
    unit = math.exp(-scaled.mean) if name == "E" else 1.0
    start[:, names[name]] = np.asarray(values, float) * unit
    found = solver.minimise(start, scaled.u_JI, scaled.y_I[None], scaled.w_I[None], fit.delta, held=(names[name],))
    return found.objective / fit.objective


def audit(fit: Fit) -> list[tuple[str, str]]:
    """What to know before believing the fit: pairs of a mark (fine | beware | refused) and a sentence."""
    if fit.refused:
        return [("refused", reason) for reason in fit.reasons] + [("beware", note) for note in fit.notes]
    found = [("beware", warning) for warning in fit.warnings]
    found += [
        *_solver_findings(fit),
        *_design_findings(fit),
        *_residual_findings(fit),
        *_influence_findings(fit),
    ]
    found += [*_held_out_findings(fit)] + [("beware", note) for note in fit.notes]
    if fit.excluded:
        found.append(("beware", f"{len(fit.excluded)} rows are left out of the fit; they are listed with reasons"))
    return sorted(found, key=lambda pair: -MARKS.index(pair[0]))


def _solver_findings(fit):
    yield (
        "fine",
        f"the solver is at a minimum: one more Newton step would lower the objective by a share of "
        f"{fit.gap:.0e}, scaled gradient {fit.gradient:.0e}",
    )
    yield (
        "fine" if fit.starts_agree > 1 else "beware",
        f"{fit.starts_agree} of {fit.starts} starts end in the same minimum",
    )
    yield (
        "fine" if fit.condition < 1000 else "beware",
        f"condition number of the Jacobian {fit.condition:.3g} (a line D = k N would give over 1e4)",
    )
    if fit.optimum_is_start:
        yield "beware", "the optimum equals a starting point (only right if the table has no noise)"


def _design_findings(fit):
    design = fitting.examine({v: np.array([row[v] for row in fit.points]) for v in ("N", "D")}, get_law(fit.law))
    for name, decades in design.decades.items():
        yield (
            "fine" if decades >= 1 else "beware",
            f"{name} spans {decades:.1f} decades in {design.levels[name]} values",
        )
    yield from (("beware", warning) for warning in design.warnings)


def _residual_findings(fit):
    residual = np.array([row["residual"] for row in fit.points])
    yield (
        "fine",
        f"{100 * fit.tail_share:.0f} % of the residuals lie beyond delta = {fit.delta:g}: the fit is "
        f"{'close to least absolute deviations' if fit.tail_share > 0.5 else 'close to least squares'}",
    )
    if fit.noise_sd == fit.noise_sd and fit.noise_sd > 0:
        worst = int(np.abs(residual).argmax())
        ratio = abs(residual[worst]) / fit.noise_sd
        yield (
            "beware" if ratio > 4 else "fine",
            f"largest residual: {fit.points[worst]['run']}, {100 * residual[worst]:+.2f} % of the loss, "
            f"{ratio:.1f} times the noise ({100 * fit.noise_sd:.2f} %)",
        )
    size = np.log([row["N"] for row in fit.points])
    if len(residual) >= 12 and np.ptp(size) > 0:
        small, large = np.abs(residual)[size <= np.median(size)], np.abs(residual)[size > np.median(size)]
        if len(small) and len(large) and np.median(large) > 0:
            ratio = np.median(small) / np.median(large)
            if not 1 / 3 < ratio < 3:
                yield (
                    "beware",
                    f"small models miss the law {ratio:.1f} times as far as large ones: the intervals "
                    'assume equal noise; method="configurations" does not',
                )


def _influence_findings(fit):
    if not fit.intervals:
        return
    top = influence(fit)[0]
    name = max(top["shift"], key=lambda n: abs(top["shift"][n]) / max(np.ptp(fit.intervals[n]), 1e-300))
    yield (
        "beware" if top["largest"] > 1 else "fine",
        f"most influential row: without {top['run']}, {name} moves by {top['shift'][name]:+.3g}, "
        f"{top['largest']:.1f} half widths of its interval",
    )


def _held_out_findings(fit):
    if not fit.held_out:
        yield "beware", "no run was held out: nothing here tests the prediction"
        return
    worst = max(fit.held_out, key=lambda row: abs(row["relative_error"]))
    error = (
        f"the largest error of a held-out prediction is {100 * worst['relative_error']:+.2f} % "
        f"({worst['run']}, {worst['extrapolation']:.1f} times the largest fitted C)"
    )
    if not fit.refits:
        yield "beware", f"{error}; no intervals were made"
        return
    inside = sum(row["inside"] for row in fit.held_out)
    count, miss = len(fit.held_out), 1 - fit.level
    # chance of so many misses or more if the intervals are right
    chance = sum(math.comb(count, k) * miss**k * fit.level ** (count - k) for k in range(count - inside, count + 1))
    yield (
        "fine" if chance > 0.1 else "beware",
        f"{inside} of {len(fit.held_out)} held-out losses lie inside their {fit.level:.0%} intervals; {error}",
    )

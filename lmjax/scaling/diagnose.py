"""How far a fit can be trusted: influence of each row, profiles of the objective, an audit in words."""

import math

import numpy as np
import pandas

from lmjax.errors import InputError, nearest
from lmjax.scaling import pitfalls, problem
from lmjax.scaling.laws import get_law
from lmjax.scaling.result import Fit
from lmjax.scaling.table import FitTable

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
    task = problem.make(pandas.DataFrame(fit.points), law, fit.objective_name, fit.delta)
    count = len(fit.points)
    weights = np.where(np.eye(count, dtype=bool), 0.0, task.w_I)
    start = np.repeat(task.phi(fit.params)[None], count, 0)
    moved = problem.natural(law, task.logs(task.minimise(start, task.y_I[None], weights).phi))
    here = {**fit.params, **fit.derived}
    rows = []
    for i, row in enumerate(fit.points):
        shift = {name: float(moved[name][i] - here[name]) for name in here}
        half = {name: (high - low) / 2 for name, (low, high) in fit.intervals.items() if high > low}
        largest = max((abs(shift[name]) / half[name] for name in half), default=math.nan)
        kept = {k: row[k] for k in ("run", "N", "D", "loss") if k in row}
        rows.append({**kept, "shift": shift, "largest": largest})
    return sorted(rows, key=lambda row: -np.nan_to_num(row["largest"]))


def profile(fit: Fit, name: str, values) -> np.ndarray:
    """The objective with one parameter held, the others free: a flat profile is an unknown parameter.

    Args:
        fit: a usable fit.
        name: a parameter that is no coefficient, such as E or an exponent.
        values: values to hold it at, [P].

    Returns:
        Objective over its minimum, [P]; 1 at the fitted value.
    """
    law = get_law(fit.usable().law)
    names = {p.name: k for k, p in enumerate(law.space) if not p.log}
    if name not in names:
        raise InputError(f"wanted E or an exponent to profile, got {name!r}{nearest(name, names)}")
    task = problem.make(pandas.DataFrame(fit.points), law, fit.objective_name, fit.delta)
    start = np.stack([task.phi({**fit.params, name: float(value)}) for value in values])
    held = (names[name],)
    return task.minimise(start, task.y_I[None], task.w_I[None], held=held).objective / fit.objective


def audit(fit: Fit, table: FitTable | None = None) -> list[tuple[str, str]]:
    """What to know before believing a fit: the sixteen pitfalls of lmjax/scaling/pitfalls.py, warnings, held-out runs.

    Args:
        fit: any fit.
        table: the table that was fitted: its further columns (seeds, warm-up, other counts of N and C) are judged too.

    Returns:
        Pairs of a mark (fine | beware | refused) and a sentence, the worst first; sentences about a pitfall begin
        with its topic and number, as in "Floor (15): ...".
    """
    if fit.refused:
        return [("refused", reason) for reason in fit.reasons] + [("beware", note) for note in fit.notes]
    found = [("beware", warning) for warning in fit.warnings]
    found += [(mark, f"{pitfalls.TOPICS[i - 1]} ({i}): {words}") for i, mark, words in pitfalls.findings(fit, table)]
    if table is None:
        words = f"Not judged: {pitfalls.NEEDS_TABLE} are not kept with the fit; give the table to audit(fit, table)"
        found.append(("beware", words))
    found += [*_held_out_findings(fit)] + [("beware", note) for note in fit.notes]
    if fit.excluded:
        found.append(("beware", f"{len(fit.excluded)} rows are left out of the fit; they are listed with reasons"))
    return sorted(found, key=lambda pair: -MARKS.index(pair[0]))


def _held_out_findings(fit):
    if not fit.held_out:
        yield "beware", "no run was held out: nothing here tests the prediction"
        return
    share = fit.target == "share"  # may be 0, so its errors are differences
    errors = [row["predicted"] - row["loss"] if share else row["relative_error"] for row in fit.held_out]
    place = int(np.abs(errors).argmax())
    worst = fit.held_out[place]
    error = (
        f"the largest error of a held-out prediction is {100 * errors[place]:+.2f} {'share points' if share else '%'} "
        f"({worst['run']}, {worst['extrapolation']:.1f} times the largest fitted {_reach(fit)})"
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


def _reach(fit):
    """The variable that an extrapolation is a ratio of, as in predictions.check_held_out."""
    return "C" if all(math.isfinite(row["C"]) for row in fit.points) else fit.variables[0]

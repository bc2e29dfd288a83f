"""How far a fit can be trusted: influence of each row, profiles of the objective, an audit in words."""

import math

import numpy as np

from lmjax.scaling import pitfalls
from lmjax.scaling.result import Fit
from lmjax.scaling.table import FitTable

MARKS = ("fine", "beware", "refused")


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
    if not fit.resamples:
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

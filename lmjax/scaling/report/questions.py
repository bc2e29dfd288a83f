"""What was asked of a fit: runs to predict and budgets to split, as tables. Fits nothing."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.scaling.audit import determined
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law, predict_loss
from lmjax.scaling.report.markup import MISSING, Cell, cell, table
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.text import short

BUDGETS = (1, 3, 10, 100)  # times the largest fitted 6 N D
SPLIT = (
    ("N", "best N", short),
    ("D", "best D", short),
    ("tokens_per_param", "tokens per parameter", short),
    ("loss", "loss", lambda v: f"{v:.4f}"),
)
UNDETERMINED = "not determined"


def questions_part(fit: Fit, wanted: Sequence[Mapping[str, float]] = (), budgets: Sequence[float] = ()) -> str:
    """The predictions and splits that were asked for; nothing where nothing was asked.

    Args:
        fit: any fit; a refused one answers nothing.
        wanted: runs, each {variable of the law: value}.
        budgets: FLOP as 6 N D.
    """
    if not (wanted or budgets):
        return ""
    if fit.refused:
        return "<p>Not answered: the table cannot identify the law.</p>"
    out = ""
    if wanted:
        out += "<h3>Predicted loss of a run</h3>" + _predictions(fit, wanted)
    if budgets:
        out += "<h3>Compute-optimal split of a budget</h3>" + split_table(fit, budgets, "your_budgets")
    return out


def allocation_part(fit: Fit) -> str:
    """The best split of a few budgets, for a law that has one."""
    if fit.refused or not fit.splits or not fit.resamples:
        return ""
    return split_table(fit, [factor * _largest(fit) for factor in BUDGETS], "budgets")


def split_table(fit: Fit, budgets: Sequence[float], name: str) -> str:
    """The best N, D, D/N and loss of each budget with intervals, and what to know of them."""
    rows, vague = [], False
    for C in budgets:
        best = fit.allocate(C)
        times = C / _largest(fit)
        row = [cell(lambda v: f"{v:.3g}", float(C)), Cell(f"{times:.3g} x", float(times))]
        for key, _, how in SPLIT:
            known = not fit.resamples or key == "loss" or determined(best, key)
            vague = vague or not known
            row.append(cell(how, float(best[key])) if known else UNDETERMINED)
            row += [cell(how, float(best[f"{key}_{end}"])) if fit.resamples else MISSING for end in ("low", "high")]
        rows.append(row)
    heads = ("C", "over largest fitted C", *(h for _, words, _ in SPLIT for h in (words, "from", "to")))
    words = "Budgets as 6 N D" + (f"; each number with its {fit.level:.0%} interval" if fit.resamples else "") + "."
    if any(C > 1.005 * _largest(fit) for C in budgets):
        words += (
            " Past the largest fitted run these are extrapolations; the intervals hold only as far as the law does."
        )
    if vague:
        words += f" Not determined by these runs: an interval that spans more than {WIDEST_SPLIT:.0f} times."
    return table(heads, rows, name) + f"<p class='small'>{words}</p>"


def _predictions(fit, wanted):
    names = list(dict.fromkeys(name for one in wanted for name in one))
    rows = []
    for one in wanted:
        if fit.resamples:
            loss, low, high = (float(v) for v in fit.predict(**one))
        else:
            loss, low, high = float(predict_loss(get_law(fit.law), fit.params, **one)), None, None
        times = FLOPS_PER_PARAM_TOKEN * one["N"] * one["D"] / _largest(fit) if {"N", "D"} <= set(one) else None
        known = [cell(short, one.get(name)) for name in names]
        rows.append(
            (*known, *(cell(lambda v: f"{v:.4f}", v) for v in (loss, low, high)), cell(lambda v: f"{v:.3g} x", times))
        )
    level = f"{fit.level:.0%} for a new run"
    heads = (*names, f"predicted {fit.target}", f"{level}, from", "to", "C over largest fitted C")
    return table(heads, rows, "your_predictions", left=0)


def _largest(fit):
    products = [row.get("N", np.nan) * row.get("D", np.nan) for row in fit.points]
    return FLOPS_PER_PARAM_TOKEN * float(np.nanmax(products)) if np.isfinite(products).any() else float("nan")

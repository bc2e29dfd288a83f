"""Data for the report's script: the rows with their labels, curves along each axis, optimal splits of budgets.

Everything is computed here; the script only formats numbers, interpolates between budgets and draws.
"""

import json
import math
from collections.abc import Sequence

import numpy as np

from lmjax.format import variable
from lmjax.scaling.columns import C_COUNTS, curve_keys
from lmjax.scaling.figures import style
from lmjax.scaling.laws import get_law
from lmjax.scaling.prediction import plain
from lmjax.scaling.result import WIDEST_SPLIT, Fit

COLOURS = 8
CURVE_POINTS = 96
BEYOND = 100.0  # curves reach this factor past the largest run, so that the budget's optimum lies on them
SAME_RATIO = 0.05  # runs of one curve whose C per token differ by more have no curve against C
STEP = 0.02  # of the budget's grid, in decades
PARTS = ("N", "D", "tokens_per_param", "loss")
# sizes other than the optimum: ln of their ratio to N*, computed at every EVERY-th budget
RATIOS, EVERY = np.linspace(-4.6, 4.6, 93), 10


def payload(runs, fit: Fit, budgets: Sequence[float] = ()) -> dict:
    """Returns everything the script reads.

    runs: frame of run_record.read_runs, for status and wall time; None for a plain table. budgets: FLOP; the slider
    opens at the first.

    Returns:
        dict of JSON types: target; share (whether it is one); axes (name, label, caption, and their curves); rows
        (kind, place on each axis, loss, curve on each axis, facts as pairs of texts); budget (grid of FLOP and the
        best split at each, or None); fit and file (the record to download and its name).
    """
    rows = [row | {"kind": kind} for kind, part in (("fitted", fit.points), ("held out", fit.held_out)) for row in part]
    left_out = [row | {"kind": "no result" if _failed(row) else "excluded"} for row in fit.excluded]
    every = [*rows, *left_out]
    names = [*dict.fromkeys([*get_law(fit.law).variables, "N", "D", "C"])]
    names = [name for name in names if any(_known(row.get(name)) for row in every)]
    axes = {name: _axis(fit, rows, name) for name in names}
    budget = _budget(fit, budgets)
    if budget and "C" in axes and fit.conventions["C"] == C_COUNTS["6nd"]:
        axes["C"] |= {"frontier": {"x": budget["C"][::5], "y": [v[0] for v in budget["loss"]][::5]}, "marker": True}
    kept = [c for c in ("run_id", "status", "wall_seconds") if runs is not None and c in runs]
    facts = {str(row["run_id"]): plain(row) for row in (runs[kept].to_dict("records") if kept else ())}
    return {
        "target": fit.target,
        "share": fit.target == "share",
        "axes": {name: axis | {"caption": _caption(fit, every, axis)} for name, axis in axes.items()},
        "rows": [_row(fit, row, axes, facts.get(str(row["run"]), {})) for row in every],
        "budget": budget,
        "widest_split": WIDEST_SPLIT,
        "fit": fit.to_dict(),
        "file": f"fit-{fit.hash}.json",
    }


def to_json(record: dict) -> str:
    """Returns JSON that is safe inside a <script> element: it cannot end the element or open a comment.

    Example:
        >>> to_json({"run": "</script>"})
        '{"run":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _known(value):
    return value is not None and value > 0


def _failed(row):
    return not _known(row.get("loss")) or row["reason"].startswith("status ")


def _row(fit, row, axes, facts):
    """A row as the script draws it, with the text of its point's label."""
    said = [("run", row["run"]), ("status", facts.get("status") or row.get("status") or "done")]
    said += [("in the fit", row["kind"])]
    said += [(name, variable(name, row[name])) for name in axes if _known(row.get(name))]
    loss, predicted = row.get("loss"), row.get("predicted")
    if loss is not None and math.isfinite(loss):
        said.append((fit.target, f"{loss:.4f}"))
    if _known(predicted):
        ends = f" ({row['low']:.4f} to {row['high']:.4f})" if _known(row.get("low")) else ""
        said.append(("predicted", f"{predicted:.4f}{ends}"))
        error = loss - predicted if fit.target == "share" else loss / predicted - 1
        what = "minus" if fit.target == "share" else "over"
        said.append((f"measured {what} predicted", f"{100 * error:+.2f} {'points' if what == 'minus' else '%'}"))
    if facts.get("wall_seconds"):
        said.append(("wall time", f"{facts['wall_seconds']:.0f} s"))
    if row.get("reason"):
        said.append(("left out", row["reason"]))
    return {
        "kind": row["kind"],
        "place": {name: plain(row.get(name)) for name in axes},
        "loss": plain(loss),
        "predicted": plain(predicted),
        "curve": {name: axis["of"].get(row["run"], -1) for name, axis in axes.items()},
        "facts": [[str(name), str(value)] for name, value in said],
    }


def _axis(fit, rows, name):
    """The curves along one axis, coloured from small to large, and the curve that each run belongs to."""
    variables = get_law(fit.law).variables
    base = name if name != "C" or "C" in variables else "D" if "D" in variables else variables[0]
    others = [v for v in variables if v != base]
    keys = curve_keys(rows, others)
    distinct = sorted(set(keys))
    many = len(distinct) > style.MAX_LEVELS
    drawn = [distinct[round(q * (len(distinct) - 1))] for q in (0.05, 0.5, 0.95)] if many and distinct else distinct
    x = np.array([row[base] for row in rows if _known(row.get(base))])
    grid = np.geomspace(x.min() / 3, x.max() * BEYOND, CURVE_POINTS) if len(x) else x
    curves = []
    for i, key in enumerate(distinct):
        own = [row for row, at in zip(rows, keys, strict=True) if at == key]
        curve = {
            "name": ", ".join(f"{v} = {variable(v, value)}" for v, value in zip(others, key, strict=True)),
            "colour": round(i * (COLOURS - 1) / max(len(distinct) - 1, 1)),
            "shape": 0 if many else i,
            "dashed": all(row["kind"] == "held out" for row in own),
        }
        stretch = 1.0 if base == name else _ratio(own, base)
        if base in variables and key in drawn and stretch and not fit.refused:
            loss, low, high = fit.predict(**{base: grid, **dict(zip(others, key, strict=True))}, new_run=False)
            curve |= {"x": _digits(grid * stretch), "y": _digits(loss)}
            curve |= {"low": _digits(low), "high": _digits(high)} if fit.resamples else {}
        curves.append(curve)
    return {
        "label": style.WORDS.get(name, name),
        "curves": curves,
        "of": {row["run"]: distinct.index(at) for row, at in zip(rows, keys, strict=True)},
        "palette": "p" if others == ["D"] else "c",  # plasma for D, as in the figures
    }


def _ratio(rows, base):
    """C per unit of the base variable, where it is the same in all rows; else None."""
    ratios = [row["C"] / row[base] for row in rows if _known(row.get("C")) and _known(row.get(base))]
    if not ratios or max(ratios) > (1 + SAME_RATIO) * min(ratios):
        return None
    return math.exp(np.mean(np.log(ratios)))


def _caption(fit, rows, axis):
    """Explains the marks of the chart."""
    kinds = {row["kind"] for row in rows}
    marks = ["Points: runs in the fit"]
    marks += ["ringed diamonds: held-out runs"] * ("held out" in kinds)
    marks += ["hollow: left out of the fit"] * ("excluded" in kinds)
    marks += ["crosses at the top edge: no result"] * ("no result" in kinds)
    words = ["; ".join(marks) + "."]
    if fit.refused:
        words.append("No law is drawn: the fit was refused.")
    elif any("y" in curve for curve in axis["curves"]):
        interval = f", with its {fit.confidence:.0%} interval" if fit.resamples else ""
        dashed = "; dashed where there are only held-out runs" if "held out" in kinds else ""
        words.append(f"Curves: the law{interval}{dashed}.")
    words += ["Dotted: the compute-optimal frontier."] * ("frontier" in axis)
    return " ".join(words)


def _budget(fit, budgets):
    """The optimal split on a grid of FLOP around the first requested budget, and the extra loss of other sizes."""
    if fit.refused or not fit.splits:
        return None
    products = fit.flop_6nd.tolist()
    start = float(budgets[0]) if len(budgets) else max(products)
    below = math.ceil(math.log10(start / min(*products, start)) / STEP)
    above = math.ceil(math.log10(max(1000 * max(products), start) / start) / STEP) + EVERY
    C = start * 10 ** (STEP * np.arange(-below, above + 1))
    best = fit.allocate(C)
    made = {name: _digits(np.stack([best[f"{name}{end}"] for end in ("", "_low", "_high")], -1)) for name in PARTS}
    cost = fit.excess(C[::EVERY, None], best["N"][::EVERY, None] * np.exp(RATIOS))
    return made | {
        "C": _digits(C),
        "start": below,
        "step": STEP,
        "largest": max(products),
        "level": f"{fit.confidence:.0%}",
        "every": EVERY,
        "ratios": _digits(RATIOS),
        "cost": _digits(np.stack(np.broadcast_arrays(*cost), -1), 4),
    }


def _digits(values, digits=7):
    """Numbers in nested lists, rounded to significant digits; None for non-finite values."""
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(values, list):
        return [_digits(value, digits) for value in values]
    return float(f"{values:.{digits}g}") if math.isfinite(values) else None

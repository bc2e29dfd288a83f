"""What the page's script draws: the runs under every convention, a fit of each, its curves. Draws nothing itself.

A convention that changes what the law reads changes the parameters, so each one is fitted here, with the options of
the fit that is reported; one that only changes the count of compute moves the points and shares the fit.
"""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling import fitting
from lmjax.scaling.columns import C_COUNTS, N_COUNTS, curve_keys
from lmjax.scaling.figures import style
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law, predict_loss
from lmjax.scaling.resample import is_corrected
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.table import read_table
from lmjax.scaling.text import short

WORDS = {
    "total": "total",
    "non_embedding": "non-embedding",
    "matmul_head": "matmul + head",
    "6nd": "6 N D",
    "6nd_attention": "6 N D + attention",
    "exact": "exact",
    "given": "as in the table",
}
NEEDS = {"6nd": None, "6nd_attention": "flops_attention", "exact": "flops_exact"}  # column of each count of C
REFITS = 1000  # of the other conventions, where the reported fit was refused and has none
COLOURS = 8
CURVE_POINTS = 96
BEYOND = 100.0  # curves reach so far past the largest run: the budget's optimum is drawn on them
SAME_RATIO = 0.05  # runs of one level whose C per token differ by more have no curve against C


def payload(
    runs, fit: Fit, title: str = "", reading: Mapping[str, object] | None = None, budgets: Sequence[float] = ()
) -> dict:
    """Everything the script reads.

    Args:
        runs: frame of run_record.read_runs; None for a plain table, which has one convention.
        fit: the reported fit.
        title: of the page.
        reading: what read_table was given besides n, c and held_out, such as allow_incomplete.
        budgets: FLOP; the slider opens at the first.

    Returns:
        dict of JSON types: title, law, chosen (the convention of the reported fit), choices and missing
        conventions in words, facts of the runs, entries (a fit with its curves each), views (rows under each
        convention, and which entry is theirs), budget (range of the slider, FLOP).
    """
    found, missing, chosen = _conventions(runs, fit, reading or {})
    entries, views, place = [], {}, {}
    for key, (one, compute) in found.items():
        if id(one) not in place:
            place[id(one)] = len(entries)
            entries.append(_entry(one))
        entry = entries[place[id(one)]]
        views["|".join(key)] = {"entry": place[id(one)], **_view(one, entry, compute, _is_6nd(key, fit))}
    law = get_law(fit.law)
    return {
        "title": title,
        "law": {"name": law.name, "formula": law.formula, "variables": list(law.variables)},
        "words": {**style.WORDS, **{f"count {name}": WORDS[name] for name in WORDS}},
        "chosen": list(chosen),
        "choices": {part: list(dict.fromkeys(key[k] for key in found)) for k, part in enumerate("nc")},
        "missing": missing,
        "facts": _run_facts(runs),
        "entries": entries,
        "views": views,
        "budget": _budget(fit, budgets),
        "widest_split": WIDEST_SPLIT,
    }


def to_json(record: dict) -> str:
    """JSON that can stand inside a <script> element: no text in it can end the element or open a comment.

    Example:
        >>> to_json({"run": "</script>"})
        '{"run":"\\\\u003c/script\\\\u003e"}'
    """
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _conventions(runs, fit, reading):
    """{(n, c): (fit, C by run)}, why others are missing, and the key of the reported fit."""
    found, missing, fits = {}, [], {}
    reads_c = "C" in get_law(fit.law).variables
    for n in N_COUNTS if runs is not None else ():
        for c in C_COUNTS:
            table, why = _read(runs, n, c, fit, reading)
            if table is None:
                missing.append(why)
                continue
            kept = ("N", "D", "C", "loss") if reads_c else ("N", "D", "loss")
            words = tuple(table.conventions[name] for name in kept)
            if words not in fits:
                same = words == tuple(fit.conventions.get(name) for name in kept)
                same = same and {row["run"] for row in fit.points} <= set(table.points["run"])
                fits[words] = fit if same else _refit(table, fit)
            found[n, c] = (fits[words], _compute(table, c))
    words = {c: words for c, words in C_COUNTS.items() if words == fit.conventions.get("C")}
    chosen = [key for key, (one, _) in found.items() if one is fit and key[1] in words]
    if chosen:
        return found, list(dict.fromkeys(missing)), chosen[0]
    rows = [row for part in (fit.points, fit.held_out, fit.excluded) for row in part]
    given = {row["run"]: float(row["C"]) for row in rows if row.get("C", 0) > 0}
    return {("given", "given"): (fit, given)}, [], ("given", "given")


def _read(runs, n, c, fit, reading):
    """The table under one convention, or None and what it lacks."""
    for kind, name, column in (("N", n, N_COUNTS[n][0]), ("C", c, NEEDS[c])):
        if column and not (column in runs and runs[column].notna().any()):
            return None, f"{kind} {WORDS[name]}: the runs have no column {column}"
    held_out = None if fit.refused else [row["run"] for row in fit.held_out]
    try:
        return read_table(runs, n=n, c=c, held_out=held_out, **reading), ""
    except InputError as error:  # shown on the page: a count that some rows lack is no reason for no report
        return None, f"N {WORDS[n]}, C {WORDS[c]}: {error}"


def _compute(table, c):
    """Training compute by run, also of the rows without a result."""
    compute = {}
    for frame in (table.points, table.held_out, table.excluded):
        for row in frame.to_dict("records"):
            product = FLOPS_PER_PARAM_TOKEN * row.get("N", math.nan) * row.get("D", math.nan)
            value = row.get("flops_exact", math.nan) if c == "exact" else product
            compute[row["run"]] = float(value + (row["flops_attention"] if c == "6nd_attention" else 0))
    return {run: value for run, value in compute.items() if value > 0}


def _refit(table, fit):
    return fitting.fit(
        table,
        fit.law,
        resamples=fit.resamples if fit.params else REFITS,
        seed=fit.seed,
        delta=fit.delta,
        level=fit.level,
        bootstrap=fit.bootstrap,
        criterion=fit.criterion,
        profiles=bool(fit.profiles),
    )


def _run_facts(runs):
    """Status and wall time by run, for the labels of the points."""
    if runs is None:
        return {}
    kept = [c for c in ("status", "wall_seconds", "learning_rate") if c in runs]
    rows = runs[["run_id", *kept]].to_dict("records")
    return {str(row["run_id"]): {k: _plain(row[k]) for k in kept} for row in rows}


def _budget(fit, budgets=()):
    """Ends and start of the slider, FLOP as 6 N D: from the smallest run to a thousand times the largest.

    It opens at the first budget that was asked for, else at the largest run; its ends make room for that.
    """
    products = [6 * row["N"] * row["D"] for row in fit.points if row.get("N", 0) > 0 and row.get("D", 0) > 0]
    if not products:
        return None
    start = float(budgets[0]) if len(budgets) else max(products)
    ends = min(*products, start), max(1000 * max(products), start)
    return {"low": ends[0], "high": ends[1], "largest": max(products), "start": start}


def _entry(fit):
    draws = {name: v.tolist() for name, v in fit.resampled().logs.items()} if fit.resamples else {}
    record = {**fit.to_dict(), "refits": fit.resamples, "draws": draws}
    entry = {"fit": record, "hash": fit.hash, "curves": {}, "allocation": None, "frontier": None}
    rows = [row | {"held": held} for held, part in ((False, fit.points), (True, fit.held_out)) for row in part]
    law = get_law(fit.law)
    drawn = [v for v in ("N", "D") if v not in law.variables and any(row.get(v, 0) > 0 for row in rows)]
    for axis in (*law.variables, *drawn):
        entry["curves"][axis] = _levels_of(rows, fit, axis, drawn=axis in law.variables)
    if fit.refused or not rows:
        return entry
    entry["allocation"] = _allocation(fit)
    budget = _budget(fit)
    if entry["allocation"] and fit.resamples:
        C = np.geomspace(budget["low"] / 3, budget["high"], 60)
        best = fit.allocate(C)
        entry["frontier"] = {"x": _digits(C)} | {
            key: _digits(best[name]) for key, name in (("y", "loss"), ("low", "loss_low"), ("high", "loss_high"))
        }
    return entry


def _allocation(fit):
    """Whether the intervals of a budget's optimum are bias-corrected; None for a law without an optimum."""
    if not fit.splits:
        return None
    return {"corrected": bool(fit.resamples) and bool(is_corrected(fit.bootstrap, fit.resampled().params["E"]))}


def _levels_of(rows, fit, axis, drawn):
    """The levels of the other variables, coloured from small to large, each with its curve along the axis."""
    others = [v for v in get_law(fit.law).variables if v != axis]
    keys = curve_keys(rows, others)
    distinct = sorted(set(keys))
    many = len(distinct) > style.MAX_LEVELS
    middle = [distinct[round(q * (len(distinct) - 1))] for q in (0.05, 0.5, 0.95)] if many else distinct
    x = np.array([row[axis] for row in rows if row.get(axis, 0) > 0])
    if not len(x):
        return {"levels": [], "level": {}, "x": [], "many": False, "palette": "c"}
    grid = np.geomspace(x.min() / 3, x.max() * BEYOND, CURVE_POINTS)
    levels = []
    for i, key in enumerate(distinct):
        own = [row for row, at in zip(rows, keys, strict=True) if at == key]
        level = {
            "name": ", ".join(f"{v} = {short(value)}" for v, value in zip(others, key, strict=True)),
            "colour": round(i * (COLOURS - 1) / max(len(distinct) - 1, 1)),
            "shape": 0 if many else i,
            "dashed": all(row["held"] for row in own),
        }
        if drawn and key in middle and not fit.refused:
            level |= _curve(fit, {axis: grid, **dict(zip(others, key, strict=True))})
        levels.append(level)
    place = {row["run"]: distinct.index(at) for row, at in zip(rows, keys, strict=True)}
    palette = "p" if others == ["D"] else "c"  # plasma for D, as in the figures
    return {"levels": levels, "level": place, "x": _digits(grid), "many": many, "palette": palette}


def _curve(fit, where):
    """Loss along a grid, with the interval of the curve where there are refits."""
    if not fit.resamples:
        return {"y": _digits(predict_loss(get_law(fit.law), fit.params, **where))}
    return dict(zip(("y", "low", "high"), map(_digits, fit.predict(**where, new_run=False)), strict=True))


def _is_6nd(key, fit):
    return key[1] == "6nd" or (key[1] == "given" and fit.conventions.get("C") == C_COUNTS["6nd"])


def _view(fit, entry, compute, is_6nd):
    """Compute of the rows of a fit (points, held out, excluded) under one count, and the factor that turns each
    level's curve into one against compute."""
    rows = [*fit.points, *fit.held_out, *fit.excluded]
    C = [compute.get(row["run"]) for row in rows]
    view = {"C": C, "base": None, "factors": [], "is_6nd": is_6nd}
    variables = get_law(fit.law).variables
    if "C" in variables or not compute:
        return view | {"is_6nd": False}
    base = "D" if "D" in variables else variables[0]
    levels = entry["curves"][base]
    ratios = [[] for _ in levels["levels"]]
    for row, value in zip(rows, C, strict=True):
        level = levels["level"].get(row["run"])
        if level is not None and value and row.get(base):
            ratios[level].append(value / row[base])
    steady = [bool(r) and max(r) / min(r) < 1 + SAME_RATIO for r in ratios]
    factors = [math.exp(np.mean(np.log(r))) if ok else None for r, ok in zip(ratios, steady, strict=True)]
    return view | {"base": base, "factors": factors}


def _digits(values: Sequence[float]) -> list[float | None]:
    """Numbers with 7 significant digits: a tenth of a pixel needs 5."""
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in np.asarray(values, float).tolist()]


def _plain(value):
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

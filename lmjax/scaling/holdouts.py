"""Extrapolation tests: fits the runs below a cut, predicts those above it, and compares laws by their error.

holdout(table, law)      error, bias and interval coverage of predictions, by distance of extrapolation
compare(table, laws)     laws ranked by held-out error, with intervals of the paired differences
agreement(approaches)    how far apart the optima N*(C) of several approaches are, and what that costs
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.format import plural
from lmjax.scaling.columns import neighbours
from lmjax.scaling.fitting import fit
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law, get_law, optimal_allocation, predict_loss
from lmjax.scaling.methods.outcome import table_text
from lmjax.scaling.resample import estimate_noise, generator, signs
from lmjax.scaling.result import Fit
from lmjax.scaling.table import SAME, FitTable, as_table

VARIABLES = ("C", "N", "D")
MAX_CUTS = 5  # at most this many cuts are chosen automatically
MAX_BINS = 12  # if C, N or D has more distinct values, they are put into this many bins of equal counts
RESAMPLES = 60  # of every fit behind paired differences
FEWEST = 5  # held-out configurations below which no difference is called significant
REACHES = (2.0, 4.0, 8.0)  # borders of the distances of extrapolation: C (or N, D) over the largest fitted one
UNITS = {"loss": "% of the loss", "share": "points of the share"}  # of 100 times an error, by the target of a law


@dataclass(frozen=True)
class Holdout:
    """Held-out predictions of one law.

    Attributes:
        rows: one dict per held-out run and cut: those of Fit.check_held_out with `cut`, `error` = predicted / loss - 1
            (of a share: predicted - measured), and `distance` = log10 of its C (or N, D) over the largest fitted one.
        cuts: dicts with `at` (the cut), the numbers of runs `fitted` and `predicted`, `error` (mean |error|), `bias`
            (mean error), `coverage` (share of runs inside their interval), `law_error`, `law_coverage` (those of the
            law alone: the others are of `Fit.predict`, which averages laws) and `distance` (the largest).
        left_out: the same with one value of C (or N, D) left out and the rest fitted; `at` is that value.
        refused: dicts of kind (cut | left out), at, reason: where the remaining runs cannot identify the law.
        confidence: confidence level of the intervals.
        unit: of 100 times an error: "% of the loss" or "points of the share".
    """

    law: str
    formula: str
    by: str
    confidence: float
    rows: tuple[dict, ...]
    cuts: tuple[dict, ...]
    left_out: tuple[dict, ...]
    refused: tuple[dict, ...]
    conventions: dict[str, str]
    source: str
    unit: str = UNITS["loss"]

    @property
    def by_distance(self) -> tuple[dict, ...]:
        """The held-out runs of all cuts by their C (or N, D) over the largest fitted one: dicts as in `cuts`, with
        `reach` as text."""
        far = np.array([10 ** row["distance"] for row in self.rows])
        found = []
        for low, high in zip((0.0, *REACHES), (*REACHES, math.inf), strict=True):
            rows = [row for row, x in zip(self.rows, far, strict=True) if low < x * (1 - 1e-9) <= high]
            reach = f"up to {high:g}x" if math.isfinite(high) else f"beyond {low:g}x"
            found += [{"reach": f"{self.by} {reach} the fitted", **_errors_of(rows)}] if rows else []
        return tuple(found)

    def text(self) -> str:
        """The result as tables: a row per cut and left-out value, and a row per distance of extrapolation."""
        parts = [(">=", row) for row in self.cuts] + [("=", row) for row in self.left_out]
        rows = [row | {"held out": f"{self.by} {sign} {row['at']:.3g}"} for sign, row in parts]
        columns = (
            Column("held out", "held-out runs", left=True),
            Column("fitted", "runs fitted"),
            Column("predicted", "predicted"),
            Column("error", "mean |error|", lambda v: f"{100 * v:.2f}"),
            Column("bias", "mean error", lambda v: f"{100 * v:+.2f}"),
            Column("coverage", f"inside {self.confidence:.0%} interval", lambda v: f"{100 * v:.0f} %"),
            Column("law_error", "law alone: |error|", lambda v: f"{100 * v:.2f}"),
            Column("law_coverage", "inside", lambda v: f"{100 * v:.0f} %"),
        )
        lines = [f"{self.formula}, runs held out by {self.by}; errors in {self.unit}", table_text(rows, columns)]
        distances = (Column("reach", "distance of the held-out runs", left=True), *columns[2:])
        lines += ["", table_text(self.by_distance, distances)]
        lines += [f"  {row['kind']} {self.by} = {row['at']:.3g} refused: {row['reason']}" for row in self.refused]
        return "\n".join(lines)


def holdout(
    source,
    law: str | Law = "chinchilla",
    by: str = "C",
    cuts: Sequence[float] | None = None,
    resamples: int = 300,
    leave_out: bool = True,
    *,
    criterion: str = "huber_log",
    delta: float = 1e-3,
    bootstrap: str = "auto",
    confidence: float = 0.95,
    seed: int = 0,
    **reading,
) -> Holdout:
    """Fits the runs below each cut and predicts the others.

    Args:
        source: a FitTable or what `read_table` takes; its held-out rows are treated like the others.
        by: C | N | D, the variable to cut.
        cuts: runs at or above each value are held out; None takes up to 5 values with enough runs below them.
        resamples: bootstrap resamples for the intervals of each fit; 0 computes no intervals and no coverage.
        leave_out: also leave out each value of C (or N, D) in turn.
        criterion, delta, bootstrap, confidence, seed: as in `fit`.
        **reading: options of `read_table`, for a source that is not a FitTable.

    Raises:
        InputError: no cut leaves runs that identify the law; the message names each with its reason.

    Example (noise-free losses are predicted exactly):
        >>> import pandas
        >>> N, D = (x.ravel() for x in np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e8, 4e8, 16e8, 64e8]))
        >>> rows = pandas.DataFrame({"N": N, "D": D, "loss": 1.7 + 400 * N**-0.34 + 1500 * D**-0.37})
        >>> found = holdout(rows, by="N", cuts=[5e7], resamples=0, leave_out=False)
        >>> [(row["predicted"], round(row["distance"], 2), row["error"] < 1e-6) for row in found.cuts]
        [(4, 0.6, True)]
    """
    law = get_law(law)
    table = _table(source, law, reading)
    options = {"criterion": criterion, "delta": delta, "bootstrap": bootstrap, "confidence": confidence, "seed": seed}
    values = _values(table, by)
    cuts = _chosen_cuts(cuts, values, len(law.parameters) + 1, by)
    held_out = [("cut", cut, values >= cut * (1 - 1e-9)) for cut in cuts]
    held_out += [("left out", place, member) for place, member in (_bins(values) if leave_out else ())]
    rows, summaries, refused = [], {"cut": [], "left out": []}, []
    for kind, at, out_I in held_out:
        found, reason = _predicted(table, law, out_I, by, resamples, options)
        if reason:
            refused.append({"kind": kind, "at": at, "reason": reason})
            continue
        rows += [{"cut": at, **row} for row in found.held_out if kind == "cut"]
        farthest = max(row["distance"] for row in found.held_out)
        here = {"at": at, "fitted": len(found.points), "distance": farthest}
        summaries[kind].append(here | _errors_of(found.held_out))
    if not summaries["cut"]:
        missed = [f"{by} = {row['at']:.3g}: {row['reason']}" for row in refused if row["kind"] == "cut"]
        named = "; ".join(missed) or "no value to cut at"
        raise InputError(f"no cut leaves runs that identify {law.formula}: {named}")
    return Holdout(
        law.name, law.formula, by, confidence, tuple(rows), tuple(summaries["cut"]), tuple(summaries["left out"]),
        tuple(refused), table.conventions, table.source, UNITS[law.target],
    )  # fmt: skip


def _table(source, law, reading) -> FitTable:
    """All rows with a loss as points; a law of one variable keeps one value of the other."""
    import pandas

    table = as_table(source, law, **reading)
    if len(table.held_out):
        both = pandas.concat([table.points, table.held_out], ignore_index=True)
        table = replace(table, points=both, held_out=table.held_out[:0])
    table = table.for_law(law, len(law.parameters) + 2)
    return replace(table, points=table.points.reset_index(drop=True))


def _values(table, by):
    if by not in VARIABLES:
        raise InputError(f"expected by = C, N or D, got {by!r}{nearest(by, VARIABLES)}")
    values = table.points[by].to_numpy(np.float64)
    if not np.isfinite(values).all():
        known = [name for name in VARIABLES if table.points[name].notna().all()]
        raise InputError(f"expected {by} in every row, got rows without it; set by = {' or '.join(known) or 'C'}")
    return values


def _steps(values):
    """The distinct values, ascending: values within 2 % of a neighbour count as one, the smallest of them."""
    return values[[rows[0] for rows in neighbours(values, SAME)]]


def _chosen_cuts(cuts, values, needed, by):
    """The cuts, ascending; None takes up to MAX_CUTS distinct values with at least `needed` rows below."""
    if cuts is not None:
        cuts = sorted({float(cut) for cut in cuts})
        if not all(math.isfinite(cut) and cut > 0 for cut in cuts):
            raise InputError(f"expected cuts of {by} above 0, got {cuts}")
        return cuts
    possible = [float(step) for step in _steps(values)[1:] if (values < step).sum() >= needed]
    spread = np.unique(np.linspace(0, len(possible) - 1, MAX_CUTS).round().astype(int))
    return possible if len(possible) <= MAX_CUTS else [possible[i] for i in spread]


def _bins(values):
    """(geometric mean, members [I]) of each distinct value, or of bins of equal counts if there are many."""
    steps = _steps(values)
    if len(steps) > MAX_BINS:
        steps = np.unique(np.quantile(values, np.arange(MAX_BINS) / MAX_BINS, method="lower"))
    index = np.searchsorted(steps, values, side="right")
    for k in np.unique(index):
        yield float(np.exp(np.log(values[index == k]).mean())), index == k


def _predicted(table, law, out_I, by, resamples, options):
    """(fit of the other rows, with predictions of the rows `out_I`, ""), or (None, the reason to refuse)."""
    inside, outside = table.points[~out_I], table.points[out_I]
    if not len(outside):
        return None, "no run is held out"
    if not len(inside):
        return None, "no run is left to fit"
    part = replace(table, points=inside.reset_index(drop=True), held_out=outside.reset_index(drop=True))
    found = fit(part, law, resamples=resamples, profiles=False, **options)
    if found.refused:
        return None, "; ".join(found.reasons)
    largest = max(row[by] for row in found.points)
    share = law.target == "share"  # a share may be 0, so its errors are differences
    held_out = tuple(
        {
            **row,
            "error": row["predicted"] - row["loss"] if share else row["relative_error"],
            "law_error": row["law_predicted"] - row["loss"] if share else row["law_predicted"] / row["loss"] - 1,
            "distance": math.log10(row[by] / largest),
        }
        for row in found.held_out
    )
    return replace(found, held_out=held_out), ""


def _errors_of(rows):
    """Number of predictions, mean error and bias, mean error of the law alone, and shares inside their intervals."""
    error = np.array([row["error"] for row in rows])
    shares = {"law_error": float(np.mean([abs(row["law_error"]) for row in rows]))}
    for name, key in (("coverage", "inside"), ("law_coverage", "law_inside")):
        inside = [row[key] for row in rows]
        shares[name] = math.nan if None in inside else float(np.mean(inside))
    return {"predicted": len(rows), "error": float(np.abs(error).mean()), "bias": float(error.mean()), **shares}


@dataclass(frozen=True)
class Comparison:
    """Laws ranked by the error of their held-out predictions, the best first.

    Attributes:
        laws: dicts of law, `error` (mean |ln predicted - ln loss| over all cuts and held-out runs; of shares mean
            |predicted - measured|), `bias`, `difference` from the best law with its interval `low`, `high` (NaN with
            one held-out configuration), and `significant` (the interval excludes 0; None with fewer than 5).
        cuts: the cuts at which every law could be fitted; refused: dicts of law, at, reason for the others.
        confidence: of the statement that the best law differs from the others.
        predictions: number of predictions of each law.
        verdict: the ranking in one sentence.
        unit: of 100 times an error, as in Holdout.
    """

    by: str
    confidence: float
    laws: tuple[dict, ...]
    cuts: tuple[float, ...]
    refused: tuple[dict, ...]
    predictions: int
    verdict: str
    unit: str = UNITS["loss"]

    def text(self) -> str:
        """The ranking as a table, the verdict, and what could not be fitted."""
        lines = [
            f"mean error of {self.predictions} predictions above {plural(len(self.cuts), 'cut')} of "
            f"{self.by}, in {self.unit}; difference from the best law with simultaneous {self.confidence:.0%} intervals"
        ]
        columns = (
            Column("law", left=True),
            Column("error", "mean |error|", lambda v: f"{100 * v:.2f}"),
            Column("difference", "difference from best", lambda v: f"{100 * v:+.2f}"),
            Column("interval", f"{self.confidence:.0%} interval"),
            Column("verdict", "", left=True),
        )
        lines.append(table_text([row | _difference(row, self.laws[0]) for row in self.laws], columns))
        lines.append(self.verdict)
        lines += [f"refused: {row['law']} below {self.by} = {row['at']:.3g}: {row['reason']}" for row in self.refused]
        return "\n".join(lines)


def _difference(row, best):
    """The difference of a law from the best one, its interval and whether it is significant, for the table."""
    if row is best:
        return {"difference": None, "interval": None, "verdict": "lowest"}
    ends = f"{100 * row['low']:.2f} to {100 * row['high']:.2f}" if math.isfinite(row["high"]) else None
    words = {True: "significant", False: "not significant", None: "unknown: few held-out runs"}
    return {"interval": ends, "verdict": words[row["significant"]]}


def compare(
    source,
    laws: Sequence[str | Law],
    by: str = "C",
    cuts: Sequence[float] | None = None,
    confidence: float = 0.95,
    *,
    criterion: str = "huber_log",
    delta: float = 1e-3,
    seed: int = 0,
    **reading,
) -> Comparison:
    """Ranks laws by how well they predict the runs above a cut from those below.

    The laws are fitted once per cut and compared on the same held-out runs. The variance of a difference is the sum of
    two: between refits of both laws to fitted losses with the same errors (a wild cluster bootstrap, one random sign
    per configuration (N, D) at all cuts, because all predictions above a cut share one fit), and between the G
    held-out configurations. The interval is difference +- t_(G - 1) times its root. With more than two laws, the
    confidence level of each interval is 1 - (1 - confidence) / (laws - 1).

    Args:
        source: as in `holdout`.
        laws: at least two, fitted to the same rows; a law of N alone needs a table with one value of D.
        by: C | N | D.
        cuts: as in `holdout`.
        confidence: confidence level of the statement that the best law differs from the others.
        criterion, delta: as in `fit`. seed: of the resamples.
        **reading: options of `read_table`, for a source that is not a FitTable.

    Raises:
        InputError: fewer than two laws; no cut at which all can be fitted.
    """
    laws = [get_law(law) for law in laws]
    if len(laws) < 2 or len({law.name for law in laws}) < len(laws):
        raise InputError(f"expected at least two different laws to compare, got {[law.name for law in laws]}")
    if len({law.target for law in laws}) > 1:
        named = ", ".join(f"{law.name} of a {law.target}" for law in laws)
        raise InputError(
            f"expected laws of one target, got {named}; compare laws of losses and laws of shares separately"
        )
    table = _table(source, laws[0], reading)
    options = {"criterion": criterion, "delta": delta}
    for law in laws:
        for other in {"N", "D"} - set(law.variables):
            if set(law.variables) <= {"N", "D"} and np.ptp(np.log(table.points[other].to_numpy())) > 2 * SAME:
                raise InputError(f"{law.formula} holds at one {other}; compare it on table.select({other}=...)")
    values, refused = _values(table, by), []
    cuts = _chosen_cuts(cuts, values, max(len(law.parameters) for law in laws) + 1, by)
    known = table.points[["N", "D"]].notna().to_numpy().all()
    cells = table.points[["N", "D"] if known else [by]].to_numpy()
    cell_I = np.unique(cells, axis=0, return_inverse=True)[1].ravel()
    signs_PI = signs(generator(seed), RESAMPLES, cell_I.max() + 1)[:, cell_I]
    found = [_errors(table, laws, values >= cut * (1 - 1e-9), cut, by, options, signs_PI, refused) for cut in cuts]
    kept = [cut for cut, errors in zip(cuts, found, strict=True) if errors is not None]
    if not kept:
        named = "; ".join(f"{row['law']} below {by} = {row['at']:.3g}: {row['reason']}" for row in refused)
        raise InputError(f"no cut leaves runs that identify all laws: {named or 'no value to cut at'}")
    errors_LPR = np.concatenate([errors for errors in found if errors is not None], 2)
    cell_R = np.concatenate([cell_I[values >= cut * (1 - 1e-9)] for cut in kept])
    mean_L = np.abs(errors_LPR[:, 0]).mean(1)
    best, held_out = int(mean_L.argmin()), len(np.unique(cell_R))
    # with more than two laws, the intervals hold together
    each = 1 - (1 - confidence) / (len(laws) - 1)
    above_LPR = np.abs(errors_LPR) - np.abs(errors_LPR[best])
    width_L, above_L = _half_widths(above_LPR, cell_R, each), mean_L - mean_L[best]
    columns = {"error": mean_L, "bias": errors_LPR[:, 0].mean(1), "difference": above_L}
    columns |= {"low": above_L - width_L, "high": above_L + width_L}
    rows = [
        {"law": law.name} | {name: float(v[i]) for name, v in columns.items()}
        | {"significant": bool(above_L[i] > width_L[i]) if held_out >= FEWEST else None}
        for i, law in enumerate(laws)
    ]  # fmt: skip
    rows.sort(key=lambda row: row["error"])
    unit = UNITS[laws[0].target]
    words = _verdict(rows, by, confidence, unit)
    if held_out < FEWEST:
        words += f"; whether others are worse is unknown: {held_out} held-out configurations, {FEWEST} needed"
    return Comparison(by, confidence, tuple(rows), tuple(kept), tuple(refused), len(cell_R), words, unit)


def _errors(table, laws, out_I, cut, by, options, signs_PI, refused):
    """Errors [L, 1 + P, R] of the runs `out_I`, from each law's fit and from its P refits; None if a law is refused.

    The refits of all laws have the same errors: those of the law with the least noise, with random signs. The larger
    residuals of a law that does not fit are misfit, which a new table would repeat.
    """
    fits = []
    for law in laws:
        found, reason = _predicted(table, law, out_I, by, 0, options)
        if reason:
            refused.append({"law": law.name, "at": cut, "reason": reason})
            return None
        fits.append(found.task())
    noise, out, runs = estimate_noise(*min(fits, key=_scatter)), [], table.points[out_I]
    for law, (task, phi_K) in zip(laws, fits, strict=True):
        y_PI = task.model(phi_K[None])[0] + signs_PI[:, ~out_I] * noise.pool / np.sqrt(task.w_I)
        refits = task.minimise(np.repeat(phi_K[None], len(y_PI), 0), y_PI, task.w_I, stages=False)
        params = {name: v[:, None] for name, v in task.natural(np.concatenate([phi_K[None], refits.phi])).items()}
        predicted_PR = law.predict(params, {name: runs[name].to_numpy(np.float64) for name in law.variables})
        loss_R = runs["loss"].to_numpy(np.float64)
        share = law.target == "share"
        out.append(np.clip(predicted_PR, 0, 1) - loss_R if share else np.log(predicted_PR / loss_R))
    return np.array(out)


def _scatter(fitted):
    """Variance of the residuals of a fit, from (task, phi [K])."""
    task, phi_K = fitted
    return task.w_I @ (task.y_I - task.model(phi_K[None])[0]) ** 2 / max(len(task.y_I) - len(phi_K), 1)


def _half_widths(above_LPR, cell_R, confidence):
    """Half widths [L] of mean differences, from the scatter between refits and between held-out configurations."""
    from scipy.special import stdtrit

    here_LR, cells = above_LPR[:, 0], np.unique(cell_R)
    if len(cells) < 2:
        return np.full(len(here_LR), math.nan)
    off_LR = (here_LR - here_LR.mean(1, keepdims=True)) / len(cell_R)
    sums_LG = np.stack([off_LR[:, cell_R == cell].sum(1) for cell in cells], 1)
    variance = above_LPR[:, 1:].mean(2).var(1, ddof=1) + len(cells) / (len(cells) - 1) * (sums_LG**2).sum(1)
    return stdtrit(len(cells) - 1, (1 + confidence) / 2) * np.sqrt(variance)


def _verdict(rows, by, confidence, unit):
    first, others = rows[0], rows[1:]
    worse = [row["law"] for row in others if row["significant"]]
    close = [row["law"] for row in others if row["significant"] is False]
    error = f"{100 * first['error']:.2f} {unit.split()[0]} on average"
    text = f"with runs held out by {by}, {first['law']} has the lowest error ({error})"
    if worse:
        text += f"; significantly higher for {', '.join(worse)} ({confidence:.0%})"
    if close:
        text += f"; no significant difference from {', '.join(close)}"
    return text


def agreement(approaches: Mapping[str, object], C, reference: Fit) -> list[dict]:
    """Compares the optima of several approaches, and the excess loss of each under one reference law.

    Each approach's N and D at C are compared at the compute they use, spent = 6 N D:
    excess = L(N, D) - L*(spent);  wasted = 1 - C'/spent with L*(C') = L(N, D),
    C'/spent = ((L - E) / (L* - E))^(-1/gamma), gamma = alpha beta / (alpha + beta).
    So a result in another count of FLOP (6nd_attention, exact) is penalised only for its split, not for the count.

    Args:
        approaches: by name, each a fit, a result with predict(C) (isoflop, frontier), or a function
            C -> N* (then D = C / 6N).
        C: budgets in the FLOP of each approach, [B]; 6 N D for fits and functions.
        reference: a usable fit of chinchilla, whose law gives the cost of the differences.

    Returns:
        One dict per approach and budget: approach, C, spent, N, D, tokens_per_param, shift = N / N*_reference(spent)
        - 1, excess (in the unit of the loss) and wasted (share of what is spent).

    Paper: arXiv:2203.15556, sections 3.1 to 3.3.
    """
    if reference.usable().law != "chinchilla":
        raise InputError(f"expected a fit of the law chinchilla as the reference, got {reference.law}")
    C = np.atleast_1d(np.asarray(C, np.float64))
    if not (C > 0).all():
        raise InputError(f"expected budgets C > 0 FLOP, got {C}")
    params = reference.params
    gamma = params["alpha"] * params["beta"] / (params["alpha"] + params["beta"])
    rows = []
    for name, approach in approaches.items():
        n, d = _optima(name, approach, C)
        spent = FLOPS_PER_PARAM_TOKEN * n * d
        best, reached = optimal_allocation(params, spent), predict_loss("chinchilla", params, n, d)
        saved = ((reached - params["E"]) / (best["loss"] - params["E"])) ** (-1 / gamma)
        columns = {"C": C, "spent": spent, "N": n, "D": d, "tokens_per_param": d / n}
        columns |= {"shift": n / best["N"] - 1, "excess": reached - best["loss"], "wasted": 1 - saved}
        rows += [{"approach": name} | {key: float(column[i]) for key, column in columns.items()} for i in range(len(C))]
    return rows


def _optima(name, approach, C):
    """N* and D* of an approach at budgets, each [B]."""
    if isinstance(approach, Fit):
        if not approach.usable().splits:
            raise InputError(f"expected a fit of a law with a compute-optimal split for {name!r}, got {approach.law}")
        best = get_law(approach.law).optimum(approach.params, C)
        return best["N"], best["D"]
    if hasattr(approach, "predict"):
        return tuple(np.asarray(approach.predict(C, of=variable).value, np.float64) for variable in "ND")
    if callable(approach):
        n = np.asarray(approach(C), np.float64)
        return n, C / FLOPS_PER_PARAM_TOKEN / n
    raise InputError(
        f"expected a fit, a result with predict(C) or a function for {name!r}, got {type(approach).__name__}"
    )

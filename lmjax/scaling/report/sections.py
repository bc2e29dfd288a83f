"""The sections of the report that need no script: questions, the fit, held-out runs, budgets, audit, runs, origin."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from lmjax.format import count, flop, number, variable
from lmjax.scaling.audit import Finding, determined
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law
from lmjax.scaling.report.markup import MISSING, Cell, bullets, cell, record_table, table, text
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.text import (
    UNTESTED,
    average_words,
    far_words,
    headline,
    held_out_result,
    interval_words,
    noise_words,
    parameter_label,
    yes_or_no,
)

LOSS, SIGNED, TIMES = "{:.4f}".format, "{:+.2f}".format, "{:.3g} x".format
BUDGETS = (1, 3, 10, 100)  # times the largest fitted 6 N D
SPLIT = (
    ("N", "best N", count),
    ("D", "best D", count),
    ("tokens_per_param", "tokens per parameter", count),
    ("loss", "loss", LOSS),
)
UNDETERMINED = "not determined"
SHOWN_DOUBTS = 3  # below the status; all of them are in the audit
RUN_COLUMNS = (  # column, heading, how to print it
    ("run_id", "run", str),
    ("status", "status", str),
    ("n_total", "N total", count),
    ("n_non_embedding", "N non-emb.", count),
    ("tokens", "D", count),
    ("epochs", "epochs", "{:.2g}".format),
    ("flops_exact", "C exact", flop),
    ("flops_6nd", "C 6ND", flop),
    ("learning_rate", "peak lr", "{:.3g}".format),
    ("loss", "loss", LOSS),
    ("bits_per_byte", "bits/byte", LOSS),
    ("tokens_per_second", "tokens/s", count),
    ("wall_seconds", "wall s", "{:.0f}".format),
    ("attempts", "attempts", "{:.0f}".format),
)
PROVENANCE = (
    ("commit", "commit"),
    ("device", "device"),
    ("cpus", "CPU cores"),
    ("data_digest", "data digest"),
    ("objective_version", "objective version"),
    ("learning_rate_rule", "learning-rate rule"),
    ("finished", "finished"),
)


def headline_part(fit: Fit, doubts: Sequence[str] = (), checked: Fit | None = None, untested: str = "") -> str:
    """The result in a sentence, its status and warnings (audit.doubts), and which fit it is.

    checked, untested: of page.check_by_compute, for a fit without held-out runs.
    """
    kind = "refused" if fit.refused else "warning" if doubts or fit.status != "converged" else "ok"
    words = {"ok": "fit is sound", "warning": "read the warnings", "refused": "refused"}[kind]
    status = fit.status.replace("_", " ")
    result = headline(fit)
    if checked or untested:
        why = f"No run was held out, and the prediction is untested: {untested}."
        result = result.replace(UNTESTED, check_words(checked) if checked else why)
    if fit.at_bounds and not fit.refused and "bound" not in result:
        result += f" The optimum is at a bound of {', '.join(fit.at_bounds)}."
    shown = list(doubts[:SHOWN_DOUBTS])
    if len(doubts) > len(shown):
        shown.append(f"and {len(doubts) - len(shown)} more, under How far to trust it")
    return (
        f"<p class='headline'>{text(result)}</p>"
        f"<p><span class='status {kind}'>{text(status)}{text('' if status == words else f': {words}')}</span> "
        f"<span class=small>fit {text(fit.hash)} of {text(fit.source)}; {text('; '.join(fit.conventions.values()))}"
        f"</span></p>{bullets(shown)}"
    )


def check_words(checked: Fit) -> str:
    """The automatic check of a report, as text."""
    share = len(checked.held_out) / (len(checked.held_out) + len(checked.points))
    return (
        f"No run was held out. As a check, a second fit left out the {share:.0%} of the runs with the largest "
        f"{checked.reach}. {held_out_result(checked)} All other numbers come from the fit of all runs."
    )


def fit_part(fit: Fit) -> str:
    """Formula, parameters with intervals, quality of the minimum, correlations; or the reasons of a refusal."""
    if fit.refused:
        kept = " Do not use the parameters below." if fit.params else ""
        why = f"<p>The table cannot identify the parameters:{kept}</p>{bullets(fit.reasons)}"
        return why + (_parameters(fit) if fit.params else "")
    huber = fit.criterion == "huber_log"
    quality = table(
        ("", ""),
        [
            ("status", fit.status.replace("_", " ")),
            ("fit hash; data hash", f"{fit.hash}; {fit.data_hash}"),
            ("runs in the fit", len(fit.points)),
            (f"criterion ({fit.criterion.replace('_', ', ')})", f"{fit.criterion_value:.6e}"),
            *[("Huber delta; share of residuals beyond it", f"{fit.delta:g}; {100 * fit.tail_share:.0f} %")] * huber,
            ("relative gap to the minimum; scaled gradient", f"{fit.gap:.0e}; {fit.gradient:.0e}"),
            ("starts that agree", f"{fit.starts_agree} of {fit.starts}"),
            ("condition number of the Jacobian", number(fit.condition, 3)),
            (f"noise of a run (standard deviation of {fit.noise_unit})", noise_words(fit)),
            ("intervals", interval_words(fit)),
        ],
        left=2,
    )
    paper = f"<p class='small'>{text(get_law(fit.law).paper)}</p>"
    return (
        f"<p class='formula'>{_formula(fit)}</p>{paper}<div class=pair><div>{_parameters(fit)}{_correlation(fit)}</div>"
        f"<div class=plain>{quality}</div></div>"
    )


def _parameters(fit):
    heads = ["parameter", "value", f"{fit.confidence:.0%} from", "to"] + ["profile from", "to"] * bool(fit.profiles)
    fixed = get_law(fit.law).fixed
    rows = []
    for name, value in fit.values.items():
        ends = list(fit.intervals.get(name, (None, None)))
        ends += list(fit.profiles.get(name, (None, None))) * bool(fit.profiles)
        label = parameter_label(fit, name) + " (fixed)" * (name in fixed)
        rows.append((label, cell(lambda v: number(v, 5), value), *(cell(number, end) for end in ends)))
    return table(heads, rows, "parameters")


def _correlation(fit):
    if not fit.correlation:
        return ""
    names = fit.correlation_names
    rows = [(name, *(cell("{:.2f}".format, x) for x in row)) for name, row in zip(names, fit.correlation, strict=True)]
    return "<h3>Correlation of the estimates</h3>" + table(("", *names), rows, "correlation")


def _formula(fit):
    """The law with its numbers where it is a sum of powers, else the law in letters."""
    law = get_law(fit.law)
    if not law.terms:
        return text(fit.formula)
    words = f"<i>L</i> = {number(fit.params['E'])}"
    for term in law.terms:
        value = number(fit.params[term.coefficient])
        if "e" in value:
            mantissa, exponent = value.split("e")
            value = f"{mantissa} &times; 10<sup>{int(exponent)}</sup>"
        words += f" + {value} <i>{text(term.variable)}</i><sup>&minus;{number(fit.params[term.exponent])}</sup>"
    return words


def held_out_part(fit: Fit) -> str:
    """The runs that were predicted, not fitted."""
    if not fit.held_out:
        return "<p>There are none: the law's predictions are untested.</p>" if not fit.refused else ""
    columns = [
        ("run", "run", str),
        *((v, v, count) for v in dict.fromkeys(["N", "D", *get_law(fit.law).variables])),
        ("C over fitted", "extrapolation", "{:.1f}".format),
        ("predicted", "predicted", LOSS),
        *_ends(f"{fit.confidence:.0%} for a new run"),
        ("measured", "loss", LOSS),
        ("predicted over measured", "relative_error", lambda v: f"{100 * v:+.2f} %"),
        ("inside", lambda row: None if row["inside"] is None else yes_or_no(row["inside"]), str),
    ]
    columns += _ends("of the law alone", "law_") if "law_low" in fit.held_out[0] and fit.resamples else []
    marks = ["outside" if row["inside"] is False else "" for row in fit.held_out]
    words = f"<p class='small'>{text(average_words(fit))}</p>"
    return record_table(fit.held_out, columns, "held_out", marks=marks) + words


def _ends(words, of=""):
    """The columns of an interval."""
    return [(f"{words}, from", f"{of}low", LOSS), ("to", f"{of}high", LOSS)]


def questions_part(fit: Fit, to_predict: Sequence[Mapping[str, float]] = (), budgets: Sequence[float] = ()) -> str:
    """The requested predictions (to_predict) and splits (budgets, FLOP as 6 N D); "" if there are none."""
    if fit.refused and (to_predict or budgets):
        return "<p>Not answered: the table cannot identify the law.</p>"
    runs = "<h3>Predicted loss of a run</h3>" + _predictions(fit, to_predict) if to_predict else ""
    split = "<h3>Compute-optimal split of a budget</h3>" + split_table(fit, budgets, "your_budgets") if budgets else ""
    return runs + split


def allocation_part(fit: Fit) -> str:
    """The optimal split of a few budgets, for a law that has one."""
    if fit.refused or not fit.splits or not fit.resamples:
        return ""
    return split_table(fit, [factor * _largest(fit) for factor in BUDGETS], "budgets")


def split_table(fit: Fit, budgets: Sequence[float], name: str) -> str:
    """The optimal N, D, D/N and loss of each budget with intervals, and notes on them."""
    rows, vague, splits = [], False, [fit.allocate(C) for C in budgets]
    for C, best in zip(budgets, splits, strict=True):
        times = C / _largest(fit)
        row = [cell(flop, float(C)), Cell(f"{times:.3g} x", float(times))]
        for key, _, how in SPLIT:
            known = not fit.resamples or key == "loss" or determined(best, key)
            vague = vague or not known
            row.append(cell(how, float(best[key])) if known else UNDETERMINED)
            row += [cell(how, float(best[f"{key}_{end}"])) if fit.resamples else MISSING for end in ("low", "high")]
        rows.append(row)
    heads = ("C", "over largest fitted C", *(h for _, words, _ in SPLIT for h in (words, "from", "to")))
    ends = f"; each number with its {fit.confidence:.0%} interval" if fit.resamples else ""
    notes = [f"Budgets as 6 N D{ends}."]
    if any(C > 1.005 * _largest(fit) for C in budgets):
        notes.append(
            "Beyond the largest fitted run the law is extrapolated; its intervals hold only as far as it does."
        )
    far = [(C, far_words(fit, best)) for C, best in zip(budgets, splits, strict=True)]
    notes += [f"{flop(C)}: {words}." for C, words in far if words]
    if vague:
        notes.append(f"Not determined by these runs: the interval spans more than a factor of {WIDEST_SPLIT:.0f}.")
    return table(heads, rows, name) + f"<p class='small'>{' '.join(notes)}</p>"


def _predictions(fit, to_predict):
    rows = []
    for run in to_predict:
        row = dict(zip(("predicted", "low", "high"), fit.predict(**run), strict=True)) | dict(run)
        row |= dict(zip(("law", "law_low", "law_high"), fit.predict(**run, one_law=True), strict=True))
        row["over"] = FLOPS_PER_PARAM_TOKEN * run["N"] * run["D"] / _largest(fit) if {"N", "D"} <= set(run) else None
        rows.append(row)
    columns = [
        *((name, name, partial(variable, name)) for name in dict.fromkeys(name for run in to_predict for name in run)),
        (f"predicted {fit.target}", "predicted", LOSS),
        *_ends(f"{fit.confidence:.0%} for a new run"),
        *_ends("of the law alone", "law_"),
        ("C over largest fitted C", "over", TIMES),
    ]
    far = [
        f"{', '.join(f'{v} = {variable(v, run[v])}' for v in run)}: {words}"
        for run in to_predict
        if (words := far_words(fit, run))
    ]
    return record_table(rows, columns, "your_predictions", left=0) + bullets(far)


def _largest(fit):
    products = fit.column("N") * fit.column("D")
    return FLOPS_PER_PARAM_TOKEN * float(np.nanmax(products)) if np.isfinite(products).any() else float("nan")


def audit_part(fit: Fit, findings: Sequence[Finding]) -> str:
    """The findings of the audit, and the most influential runs."""
    items = [f"<li class='{kind}'><b>{kind}</b> {text(topic)}: {text(words)}</li>" for topic, kind, words in findings]
    rows, found = [], fit.influence()[:5] if not fit.refused and fit.intervals else []
    for row in found:
        shifts = [cell("{:+.3g}".format, row["shift"][name]) for name in row["shift"]]
        rows.append((row["run"], *shifts, cell("{:.2f}".format, row["largest"])))
    heads = ("left-out run", *fit.values, "half widths")
    influential = (
        "<h3>The five most influential runs</h3><p class='small'>Shift of each parameter when the run is left "
        "out; last, the largest shift over the half width of its interval.</p>" + table(heads, rows, "influence")
    )
    return f"<ul class='audit'>{''.join(items)}</ul>{influential if rows else ''}"


def runs_part(runs) -> str:
    """All runs, including failed ones."""
    if runs is None:
        return ""
    columns = [(head, name, how) for name, head, how in RUN_COLUMNS if name in runs and runs[name].notna().any()]
    columns.append(("held out", lambda row: yes_or_no(row.get("held_out") in (True, 1)), str))
    ordered = runs.sort_values([c for c in ("held_out", "n_total", "tokens") if c in runs], kind="stable")
    rows, marks = ordered.to_dict("records"), []
    for row in rows:
        held_out = row.get("held_out") in (True, 1)
        marks.append("outside" if row.get("status") in ("failed", "diverged") else "held" if held_out else "")
    return record_table(rows, columns, "runs", left=2, marks=marks)


def points_part(fit: Fit) -> str:
    """The fitted rows of a plain table, which has no runs."""
    names = dict.fromkeys(["N", "D", "C", *get_law(fit.law).variables])
    share = fit.target == "share"

    def error(row):
        if "predicted" in row:
            return 100 * (row["loss"] - row["predicted"]) / (1.0 if share else row["predicted"])

    columns = [
        ("row", "run", str),
        *((name, name, partial(variable, name)) for name in names),
        (fit.target, "loss", LOSS),
        ("predicted", "predicted", LOSS),
        ("measured minus predicted, points" if share else "measured over predicted, %", error, SIGNED),
    ]
    return record_table(fit.points, columns, "points")


def excluded_part(fit: Fit) -> str:
    """The rows that were left out, each with its reason."""
    columns = [("run", "run", str), ("reason", "reason", str), ("N", "N", count), ("D", "D", count)]
    return record_table(fit.excluded, [*columns, ("loss", "loss", number)], "excluded", left=2)


def config_part(runs) -> str:
    """What all runs share as a list of keys, and what varies as a table."""
    if runs is None:
        return ""
    keys = [c for c in runs if c.startswith("config.")]
    values = {key: [cell(str, value) for value in runs[key]] for key in keys}
    varying = [key for key in keys if len({str(value) for value in values[key]}) > 1]
    common = [(key.removeprefix("config."), values[key][0]) for key in keys if key not in varying]
    out = ""
    if varying:
        rows = zip(runs["run_id"].astype(str), *(values[key] for key in varying), strict=True)
        heads = ("run", *(k.removeprefix("config.") for k in varying))
        out += "<h3>What varies</h3>" + table(heads, rows, "config_varying")
    if common:
        out += f"<details open><summary>What all {len(runs)} runs share</summary>"
        out += table(("key", "value"), common, "config_shared", left=2) + "</details>"
    return out


def origin_part(runs, fit: Fit, command: str, provenance: Mapping[str, object]) -> str:
    """The command, and where the numbers come from."""
    facts = []
    if runs is not None:
        for column, label in PROVENANCE:
            values = sorted({str(v) for v in runs[column].dropna()}) if column in runs else []
            if column == "finished" and len(values) > 1:
                values = [f"{values[0]} to {values[-1]}"]
            if values and values != [""]:
                facts.append((label, ", ".join(values[:5]) + (f" and {len(values) - 5} more" * (len(values) > 5))))
        if "wall_seconds" in runs:
            facts.append(("training time, summed", f"{runs['wall_seconds'].sum() / 60:.1f} minutes"))
    facts += [("fit hash", fit.hash), ("data hash of the fit", fit.data_hash)]
    for name, value in provenance.items():
        words = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        facts.append((name, words))
    code = f"<pre tabindex=0>{text(command)}</pre>" if command else ""
    return code + "<div class=plain>" + table(("", ""), facts, left=2) + "</div>"

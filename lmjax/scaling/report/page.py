"""The report of a sweep: one HTML file that needs nothing else. Reads runs and a fit, computes no statistics."""

import base64
import html
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from lmjax.errors import InputError
from lmjax.scaling import diagnose
from lmjax.scaling.laws import get_law
from lmjax.scaling.predict import allocate
from lmjax.scaling.render import headline, interval_words, number, percent, short, yes_or_no
from lmjax.scaling.report.style import STYLE
from lmjax.scaling.result import Fit

CAPTIONS = {
    "summary": "(a) Training curves. (b) The fitted law. (c) Predicted against measured loss.",
    "training_curves": "Training loss against compute. Dots are the losses on held-out documents at the end; a cross "
    "at the top edge is a run without a result.",
    "loss_vs_params": "Loss against parameters at each token count, with the fitted law and its interval. Dashed: "
    "levels that only held-out runs have.",
    "loss_vs_tokens": "Loss against training tokens at each size, with the fitted law and its interval. Dashed: "
    "levels that only held-out runs have.",
    "predicted_vs_measured": "Predicted against measured loss. Bars: interval for the loss of one new run.",
    "residuals": "Measured over predicted loss. A pattern here is a law that does not hold.",
}
RUN_COLUMNS = (  # column, heading, how to print it
    ("run_id", "run", str),
    ("status", "status", str),
    ("n_total", "N total", short),
    ("n_non_embedding", "N non-emb.", short),
    ("tokens", "D", short),
    ("epochs", "epochs", lambda v: f"{v:.2g}"),
    ("flops_exact", "C exact", lambda v: f"{v:.3g}"),
    ("flops_6nd", "C 6ND", lambda v: f"{v:.3g}"),
    ("learning_rate", "peak lr", lambda v: f"{v:.3g}"),
    ("loss", "loss", lambda v: f"{v:.4f}"),
    ("bits_per_byte", "bits/byte", lambda v: f"{v:.4f}"),
    ("tokens_per_second", "tokens/s", short),
    ("wall_seconds", "wall s", lambda v: f"{v:.0f}"),
    ("attempts", "attempts", lambda v: f"{v:.0f}"),
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
BUDGETS = (1, 3, 10, 100)  # times the largest fitted 6 N D


def write_report(
    path,
    runs,
    fit: Fit,
    figures: Sequence = (),
    title: str = "",
    command: str = "",
    provenance: Mapping[str, object] | None = None,
) -> pathlib.Path:
    """Writes the report: headline, parameters, held-out runs, figures, all runs, left-out rows, audit, config.

    Args:
        path: the .html file, written by rename.
        runs: frame of run_record.read_runs, or None where a plain table was fitted.
        fit: the fit; a refused one is reported with its reasons.
        figures: paths of figures; the .png ones are embedded, captions go by their names.
        title: heading; default the name of the fitted source.
        command: the command that made the runs, shown as it is.
        provenance: more facts for the last table, such as versions.

    Returns:
        The path.
    """
    name = title or f"Scaling law of {fit.source or 'a table'}"
    images = _images(figures)
    body = [
        f"<header><p class='kind'>lmjax scaling report</p><h1>{_text(name)}</h1>{_headline(fit)}</header>",
        images.pop("summary", ""),
        _section("The fit", _fit_section(fit)),
        _section("Runs that were held out", _held_out_section(fit)),
        _section("Where to spend the next budget", _allocation_section(fit)),
        _section("Figures", f"<div class=plates>{''.join(images.values())}</div>" if images else ""),
        _section("How far to trust it", _audit_section(fit)),
        _section("All runs", _runs_section(runs)),
        _section("Rows not in the fit", _excluded_section(fit)),
        _section("Configuration", _config_section(runs)),
        _section("Conventions", _list([*fit.conventions.values(), *fit.notes])),
        _section("Origin", _origin_section(runs, fit, command, provenance or {})),
    ]
    page = (
        f"<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n<title>{_text(name)}</title>\n"
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(page, "utf8")
    os.replace(temporary, path)
    return path


def _text(value) -> str:
    return html.escape(str(value), quote=True)


def _section(title, content):
    return f"<section>\n<h2>{_text(title)}</h2>\n{content}\n</section>" if content else ""


def _list(items: Iterable[str]):
    items = [f"<li>{_text(item)}</li>" for item in items]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1, marks: Sequence[str] = ()) -> str:
    """A table of escaped cells; the first `left` columns are text, the others numbers; marks are row classes."""

    def cell(tag, value, i):
        kind = "" if i >= left else " class=long" if len(str(value)) > 40 else " class=text"
        return f"<{tag}{kind}>{_text(value)}</{tag}>"

    head = "".join(cell("th", value, i) for i, value in enumerate(heads))
    lines = []
    for k, row in enumerate(rows):
        mark = f" class='{marks[k]}'" if marks and marks[k] else ""
        lines.append(f"<tr{mark}>{''.join(cell('td', value, i) for i, value in enumerate(row))}</tr>")
    return (
        f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def _images(figures):
    images = {}
    for figure in map(pathlib.Path, figures):
        if figure.suffix != ".png":
            continue
        if not figure.is_file():
            raise InputError(f"no figure {figure}; draw it before the report")
        data = base64.b64encode(figure.read_bytes()).decode()
        caption = CAPTIONS.get(figure.stem, figure.stem.replace("_", " "))
        images[figure.stem] = (
            f"<figure{' class=full' if figure.stem == 'residuals' else ''}>"
            f"<img alt='{_text(caption)}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    return images


def _headline(fit):
    kind = "refused" if fit.refused else "warning" if fit.warnings else "ok"
    status = {"ok": "fit is sound", "warning": "read the warnings", "refused": "refused"}[kind]
    return (
        f"<p class='headline'>{_text(headline(fit))}</p><p><span class='status {kind}'>{_text(status)}</span></p>"
    )


def _fit_section(fit):
    if fit.refused:
        return f"<p>No parameters are given, because the table cannot identify them:</p>{_list(fit.reasons)}"
    rows = []
    for name, value in {**fit.params, **fit.derived}.items():
        low, high = fit.intervals.get(name, (math.nan, math.nan))
        rows.append((f"{name} (N* ~ C^a)" if name == "a" else name, number(value, 5), number(low), number(high)))
    level = f"{fit.level:.0%}"
    table = _table(("parameter", "value", f"{level} from", "to"), rows)
    quality = _table(
        ("", ""),
        [
            ("runs in the fit", len(fit.points)),
            ("objective (sum of Huber losses of ln loss)", f"{fit.objective:.6e}"),
            ("Huber delta; share of residuals beyond it", f"{fit.delta:g}; {100 * fit.tail_share:.0f} %"),
            ("relative gap to the minimum; scaled gradient", f"{fit.gap:.0e}; {fit.gradient:.0e}"),
            ("starts that agree", f"{fit.starts_agree} of {fit.starts}"),
            ("condition number of the Jacobian", number(fit.condition, 3)),
            ("noise of a run (standard deviation of ln loss)", percent(fit.noise_sd)),
            ("intervals", interval_words(fit)),
        ],
    )
    correlation = ""
    if fit.correlation:
        rows = [
            (name, *(f"{x:.2f}" for x in row)) for name, row in zip(fit.correlation_names, fit.correlation, strict=True)
        ]
        correlation = "<h3>Correlation of the estimates</h3>" + _table(("", *fit.correlation_names), rows)
    formula = f"<p class='formula'>{_formula(fit)}</p><p class='small'>{_text(get_law(fit.law).paper)}</p>"
    return f"{formula}<div class=pair><div>{table}{correlation}</div><div class=plain>{quality}</div></div>"


def _formula(fit):
    text = f"<i>L</i> = {number(fit.params['E'])}"
    for term in get_law(fit.law).terms:
        value = number(fit.params[term.coefficient])
        if "e" in value:
            mantissa, exponent = value.split("e")
            value = f"{mantissa} &times; 10<sup>{int(exponent)}</sup>"
        text += f" + {value} <i>{term.variable}</i><sup>&minus;{number(fit.params[term.exponent])}</sup>"
    return text


def _held_out_section(fit):
    if not fit.held_out:
        return "<p>None. The prediction is untested.</p>" if not fit.refused else ""
    rows = [
        (
            row["run"],
            short(row["N"]),
            short(row["D"]),
            f"{row['extrapolation']:.1f}",
            f"{row['predicted']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}" if fit.refits else "-",
            f"{row['loss']:.4f}",
            f"{100 * row['relative_error']:+.2f} %",
            yes_or_no(row["inside"]),
        )
        for row in fit.held_out
    ]
    heads = (
        "run",
        "N",
        "D",
        "C over fitted",
        "predicted",
        f"{fit.level:.0%} for a new run",
        "measured",
        "predicted over measured",
        "inside",
    )
    return _table(heads, rows, marks=["outside" if row["inside"] is False else "" for row in fit.held_out])


def _allocation_section(fit):
    if fit.refused or fit.law != "chinchilla" or not fit.refits:
        return ""
    largest = max(6 * row["N"] * row["D"] for row in fit.points)
    rows = []
    for factor in BUDGETS:
        best = allocate(fit, factor * largest)
        values = [
            f"{short(float(best[n]))} ({short(float(best[n + '_low']))} to {short(float(best[n + '_high']))})"
            for n in ("N", "D", "tokens_per_param")
        ]
        loss = f"{best['loss']:.4f} ({best['loss_low']:.4f} to {best['loss_high']:.4f})"
        rows.append((f"{factor} x", f"{factor * largest:.3g}", *values, loss))
    note = (
        "<p class='small'>Budgets as 6 N D, in multiples of the largest fitted run. Past the first row these are "
        "extrapolations; the intervals hold only as far as the law does.</p>"
    )
    return _table(("budget", "C", "best N", "best D", "tokens per parameter", "loss"), rows) + note


def _audit_section(fit):
    items = [f"<li class='{mark}'><b>{_text(mark)}</b> {_text(words)}</li>" for mark, words in diagnose.audit(fit)]
    table = ""
    if not fit.refused and fit.intervals:
        rows = []
        for row in diagnose.influence(fit)[:5]:
            shifts = [f"{row['shift'][name]:+.3g}" for name in row["shift"]]
            rows.append((row["run"], *shifts, f"{row['largest']:.2f}"))
        heads = ("left-out run", *fit.params, *fit.derived, "half widths")
        table = (
            "<h3>The five most influential runs</h3><p class='small'>Shift of each parameter when the run is left "
            "out; last, the largest shift over the half width of its interval.</p>" + _table(heads, rows)
        )
    return f"<ul class='audit'>{''.join(items)}</ul>{table}"


def _cell(how, value):
    if value is None or value != value:
        return "-"
    try:
        return how(value)
    except (TypeError, ValueError):
        return str(value)


def _runs_section(runs):
    if runs is None:
        return ""
    columns = [c for c in RUN_COLUMNS if c[0] in runs and runs[c[0]].notna().any()]
    ordered = runs.sort_values([c for c in ("held_out", "n_total", "tokens") if c in runs], kind="stable")
    rows, marks = [], []
    for row in ordered.to_dict("records"):
        cells = [_cell(how, row[name]) for name, _, how in columns]
        held_out = row.get("held_out") in (True, 1)
        rows.append([cells[0] + (" (held out)" if held_out else ""), *cells[1:]])
        marks.append("outside" if row.get("status") in ("failed", "diverged") else "held" if held_out else "")
    return _table([head for _, head, _ in columns], rows, left=2, marks=marks)


def _excluded_section(fit):
    rows = [(row["run"], row["reason"], *(_cell(short, row.get(k)) for k in ("N", "D"))) for row in fit.excluded]
    return _table(("run", "reason", "N", "D"), rows, left=2) if rows else ""


def _config_section(runs):
    """What all runs share as a list of keys, and what varies as a table."""
    if runs is None:
        return ""
    keys = [c for c in runs if c.startswith("config.")]
    text = {key: [_cell(str, value) for value in runs[key]] for key in keys}
    varying = [key for key in keys if len(set(text[key])) > 1]
    common = [(key.removeprefix("config."), text[key][0]) for key in keys if key not in varying]
    out = ""
    if varying:
        rows = zip(runs["run_id"].astype(str), *(text[key] for key in varying), strict=True)
        out += "<h3>What varies</h3>" + _table(("run", *(k.removeprefix("config.") for k in varying)), rows)
    if common:
        out += f"<details open><summary>What all {len(runs)} runs share</summary>"
        out += _table(("key", "value"), common, left=2) + "</details>"
    return out


def _origin_section(runs, fit, command, provenance):
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
    facts.append(("data hash of the fit", fit.data_hash))
    for name, value in provenance.items():
        words = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        facts.append((name, words))
    code = f"<pre>{_text(command)}</pre>" if command else ""
    return code + "<div class=plain>" + _table(("", ""), facts, left=2) + "</div>"

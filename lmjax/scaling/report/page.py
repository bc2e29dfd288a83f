"""The report of a fit: one self-contained HTML file.

The page works from a file and without a network: its script, its style and its figures are inside, and its
Content-Security-Policy lets nothing else run or load. Without the script all tables and figures are still there.
"""

import base64
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling import audit
from lmjax.scaling.lack_of_fit import fires
from lmjax.scaling.report import sections
from lmjax.scaling.report.data import payload, to_json
from lmjax.scaling.report.markup import bullets, digest, section, text
from lmjax.scaling.result import Fit
from lmjax.scaling.table import FitTable
from lmjax.scaling.text import lack_of_fit_words

CAPTIONS = {
    "summary": "(a) Training curves. (b) The fitted law. (c) Predicted against measured loss.",
    "training_curves": "Training loss against compute. Dots are the final validation losses; a cross at the top edge "
    "is a run without a result.",
    "loss_vs_params": "Loss against parameters at each token count",
    "loss_vs_tokens": "Loss against training tokens at each size",
    "loss_vs_compute": "Loss against training compute",
    "predicted_vs_measured": "Predicted against measured loss.",
    "allocation": "The compute-optimal split. Left: best N and D, and tokens per parameter, against compute, with "
    "intervals. Right: lines of equal loss, the runs, and the path of optimal splits. Dashed and hollow: extrapolated.",
    "isoflop": "Loss against parameters at each compute budget, with the law and its least loss.",
    "residuals": "Measured over predicted loss.",
}
CHECKED, CHECK_RESAMPLES = 0.25, 300  # share of the runs, of most compute, that a report predicts; resamples for it
WIDE = ("residuals", "allocation")  # figures of two panels
SCRIPTS = ("tables.js", "chart.js", "explore.js")  # each uses the ones before


def write_report(
    path,
    runs,
    fit: Fit,
    figures: Sequence = (),
    title: str = "",
    command: str = "",
    provenance: Mapping[str, object] | None = None,
    table: FitTable | None = None,
    to_predict: Sequence[Mapping[str, float]] = (),
    budgets: Sequence[float] = (),
) -> pathlib.Path:
    """Writes the report: headline, interactive chart, parameters, held-out runs, figures, all runs, audit, config.

    Args:
        path: the .html file, written by rename.
        runs: frame of run_record.read_runs, or None where a plain table was fitted.
        fit: the fit; a refused one is reported with its reasons.
        figures: paths of figures. PNG files are embedded, with captions by file name; other formats are linked if
            they lie below the folder of the report.
        title: heading; default the name of the fitted source.
        command: the command that made the runs, shown as it is.
        provenance: more facts for the last table, such as versions.
        table: the fitted table, whose other columns the audit checks too; None skips those checks.
        to_predict: runs to predict, each {variable: value}, such as {"N": 7e9, "D": 1.4e11}.
        budgets: FLOP as 6 N D to split; the slider opens at the first.

    Raises:
        InputError: a figure that does not exist; a budget for a law without an optimum.
    """
    path = pathlib.Path(path)
    name = title or f"Scaling law of {fit.source or 'a table'}"
    images = _images(figures, path.parent, fit)
    data = to_json(payload(runs, fit, budgets))
    findings = audit.audit(fit, table)
    checked, untested = check_by_compute(fit)
    top = sections.headline_part(fit, audit.doubts(fit, findings), checked, untested)
    body = [
        f"<header><p class='kind'>lmjax scaling report</p><h1>{text(name)}</h1>{top}</header>",
        section("Your questions", sections.questions_part(fit, to_predict, budgets)),
        _static("panel.html"),
        images.pop("summary", ""),
        section("The fit", sections.fit_part(fit)),
        section("Held-out runs", _held_out_part(fit, checked)),
        section("Where to spend the next budget", sections.allocation_part(fit)),
        section("Figures", f"<div class=plates>{''.join(images.values())}</div>" if images else ""),
        section("How far to trust it", sections.audit_part(fit, findings)),
        section("All runs", sections.runs_part(runs)),
        section("Fitted rows", sections.points_part(fit)),
        section("Rows not in the fit", sections.excluded_part(fit)),
        section("Configuration", sections.config_part(runs)),
        section("Conventions", bullets([*fit.conventions.values(), *fit.notes])),
        section("Origin", sections.origin_part(runs, fit, command, provenance or {})),
    ]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(_document(name, body, data), "utf8")
    os.replace(temporary, path)
    return path


def check_by_compute(fit: Fit) -> tuple[Fit | None, str]:
    """Checks a fit without held-out runs: predicts about a quarter of them, those of most compute, from the others.

    Returns:
        (the fit with these runs as `held_out`, predicted by a second fit, and the others as `points`; None without
        such a check, reason why not).
    """
    from lmjax.scaling import holdouts

    if fit.refused or fit.held_out:
        return None, ""
    frame = fit.frame()
    rest = frame.iloc[:0]
    source = FitTable(frame, rest, rest, fit.conventions, (), fit.source)
    reach = fit.column(fit.reach)
    cut = min(np.unique(reach)[1:], key=lambda value: abs((reach >= value).mean() - CHECKED), default=reach.max())
    options = {name: getattr(fit, name) for name in ("criterion", "delta", "bootstrap", "confidence", "seed")}
    options["resamples"] = min(fit.resamples, CHECK_RESAMPLES)
    try:
        found = holdouts.holdout(source, fit.law, by=fit.reach, cuts=[float(cut)], leave_out=False, **options)
    except InputError as error:
        return None, str(error)
    below = tuple(row for row in fit.points if row[fit.reach] < cut * (1 - 1e-9))
    return replace(fit, points=below, held_out=found.rows), ""


def _held_out_part(fit, checked):
    """The held-out runs, or those of the automatic check with their figure."""
    if checked is None:
        return sections.held_out_part(fit)
    from lmjax.scaling.figures import fit as figures
    from lmjax.scaling.figures import style

    words = sections.check_words(checked)
    with tempfile.TemporaryDirectory() as folder:
        figure = figures.predicted_vs_measured(checked, f"Diamonds: predicted by a fit without them. {words}")
        data = style.save(figure, pathlib.Path(folder) / "check")[0].read_bytes()
    return f"<p>{text(words)}</p>{_embedded(words, data)}{sections.held_out_part(checked)}"


def _embedded(caption, data, kind="", more=""):
    """A <figure> of a PNG file's bytes; the caption as HTML may go on with `more`."""
    source = base64.b64encode(data).decode()
    return (
        f"<figure{kind}><img alt='{text(caption)}' src='data:image/png;base64,{source}'>"
        f"<figcaption>{text(caption)}{more}</figcaption></figure>"
    )


def _document(name, body, data):
    style, parts = _static("report.css"), "\n".join(map(_static, SCRIPTS))
    script = f'"use strict";\n(() => {{\n{parts}\n}})();\n'
    policy = (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(name)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n"
        f"<script type='application/json' id='data'>{data}</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _static(name):
    """The text of a file of static/."""
    return (resources.files("lmjax.scaling.report") / "static" / name).read_text("utf8")


def _images(figures, folder, fit):
    """{name of a figure: its <figure>}, in order; PNG files are embedded, files below the report's folder linked."""
    figures, images = [pathlib.Path(figure) for figure in figures], {}
    for figure in figures:
        if figure.suffix != ".png":
            continue
        if not figure.is_file():
            raise InputError(f"no figure {figure}; draw it before the report")
        same = [other for other in figures if other.stem == figure.stem and folder in other.parents]
        links = ", ".join(
            f"<a href='{text(o.relative_to(folder).as_posix())}'>{o.suffix[1:].upper()}</a>" for o in same
        )
        more = f" <span class=fit>Fit {text(fit.hash)}.</span>{f' Beside this page: {links}.' if links else ''}"
        kind = " class=full" * (figure.stem in WIDE)
        images[figure.stem] = _embedded(_caption(figure.stem, fit), figure.read_bytes(), kind, more)
    return images


def _caption(stem, fit):
    """The caption of a figure, naming only the marks that this fit has."""
    words = CAPTIONS.get(stem, stem.replace("_", " "))
    if stem == "residuals" and fires(fit):
        what = "The map: the systematic part" if len(fit.variables) == 2 else "The systematic part"
        return words + f" {what}, which the law cannot follow: {lack_of_fit_words(fit)}."
    if stem == "residuals" and fit.lack_of_fit:
        return words + f" No systematic part was found: {lack_of_fit_words(fit)}."
    if stem == "predicted_vs_measured":
        return words + " Bars: interval for the loss of one new run." * bool(fit.held_out and fit.resamples)
    if not stem.startswith("loss_vs_"):
        return words
    words += ("" if fit.refused else ", with the fitted law" + " and its interval" * bool(fit.resamples)) + "."
    words += " Dashed: values that only held-out runs have." * bool(fit.held_out and not fit.refused)
    return words + " Hollow: rows left out of the fit." * any(row.get("loss", 0) > 0 for row in fit.excluded)

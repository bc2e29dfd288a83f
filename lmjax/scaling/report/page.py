"""The report of a fit: one HTML file that needs nothing else.

The page works from a file and without a network: its script, its style and its figures are inside, and its
Content-Security-Policy lets nothing else run or load. Without the script all tables and figures are still there.
"""

import base64
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from importlib import resources

from lmjax.errors import InputError
from lmjax.scaling import audit
from lmjax.scaling.report import sections
from lmjax.scaling.report.data import payload, to_json
from lmjax.scaling.report.markup import bullets, section, text
from lmjax.scaling.report.style import STYLE
from lmjax.scaling.result import Fit
from lmjax.scaling.table import FitTable

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
    "residuals": "Measured over predicted loss. A pattern here means that the law does not hold.",
}
WIDE = ("residuals", "allocation")  # figures of two panels
SCRIPTS = ("tables.js", "chart.js", "explore.js")  # each uses the ones before
_BEST = "".join(
    f"<tr id='best-{name}'><th scope=row>{words}</th><td></td><td></td><td></td></tr>\n"
    for name, words in (
        ("N", "N*, parameters"),
        ("D", "D*, tokens"),
        ("tokens_per_param", "tokens per parameter"),
        ("loss", "predicted loss"),
    )
)
PANEL = f"""<noscript><p class=small>The interactive chart needs JavaScript; all tables and figures below work without
it.</p></noscript>
<section id=explore hidden>
<h2>Explore the fit</h2>
<fieldset id=axis></fieldset>
<div class=stage>
<div>
<div id=plot><dl id=tip role=status hidden></dl></div>
<p id=caption class=small></p>
</div>
<div>
<div id=budget hidden>
<h3><label for=slider>Compute budget, FLOP as 6 N D</label></h3>
<input type=range id=slider min=0 step=1 aria-describedby=times>
<p class=typed><label for=typed>or type it:</label> <input id=typed inputmode=decimal autocomplete=off size=10
aria-describedby=wrong> <span id=times class=small></span></p>
<p id=wrong class=wrong role=alert></p>
<table aria-live=polite><thead><tr><th class=text scope=col>best</th><th scope=col>value</th>
<th scope=col id=level>from</th><th scope=col>to</th></tr></thead><tbody>
{_BEST}<tr id=cost><th scope=row><label for=chosen>extra loss at N =</label> <input id=chosen inputmode=decimal
autocomplete=off size=7 aria-describedby='wrong lost'></th><td></td><td></td><td></td></tr>
</tbody></table>
<p id=lost class=small>Extra loss from training this N instead of N* at the budget; N within a factor of 100.</p>
</div>
<p><button type=button id=fit-json class=download>Download the fit as JSON</button></p>
</div>
</div>
</section>"""


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

    Returns:
        The path.

    Raises:
        InputError: a figure that does not exist; a budget for a law without an optimum.
    """
    path = pathlib.Path(path)
    name = title or f"Scaling law of {fit.source or 'a table'}"
    images = _images(figures, path.parent, fit)
    data = to_json(payload(runs, fit, budgets))
    findings = audit.audit(fit, table)
    top = sections.headline_part(fit, audit.doubts(fit, findings))
    body = [
        f"<header><p class='kind'>lmjax scaling report</p><h1>{text(name)}</h1>{top}</header>",
        section("Your questions", sections.questions_part(fit, to_predict, budgets)),
        PANEL,
        images.pop("summary", ""),
        section("The fit", sections.fit_part(fit)),
        section("Held-out runs", sections.held_out_part(fit)),
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


def _document(name, body, data):
    script = _script()
    policy = (
        f"default-src 'none'; style-src '{_digest(STYLE)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f"<title>{text(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n"
        f"<script type='application/json' id='data'>{data}</script>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _script():
    """The files of script/ as one, in a scope of its own."""
    folder = resources.files("lmjax.scaling.report") / "script"
    parts = [(folder / name).read_text("utf8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "\n})();\n"


def _digest(content):
    """The hash of an inline script or style for the Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _images(figures, folder, fit):
    figures = [pathlib.Path(figure) for figure in figures]
    images = {}
    for figure in figures:
        if figure.suffix != ".png":
            continue
        if not figure.is_file():
            raise InputError(f"no figure {figure}; draw it before the report")
        data = base64.b64encode(figure.read_bytes()).decode()
        caption = _caption(figure.stem, fit)
        same = [other for other in figures if other.stem == figure.stem and folder in other.parents]
        links = ", ".join(
            f"<a href='{text(other.relative_to(folder).as_posix())}'>{text(other.suffix[1:].upper())}</a>"
            for other in same
        )
        images[figure.stem] = (
            f"<figure{' class=full' if figure.stem in WIDE else ''}>"
            f"<img alt='{text(caption)}' src='data:image/png;base64,{data}'>"
            f"<figcaption>{text(caption)} <span class=fit>Fit {text(fit.hash)}.</span>"
            f"{f' Beside this page: {links}.' if links else ''}</figcaption></figure>"
        )
    return images


def _caption(stem, fit):
    """The caption of a figure, naming only the marks that this fit has."""
    words = CAPTIONS.get(stem, stem.replace("_", " "))
    if stem == "predicted_vs_measured":
        return words + " Bars: interval for the loss of one new run." * bool(fit.held_out and fit.resamples)
    if not stem.startswith("loss_vs_"):
        return words
    words += ("" if fit.refused else ", with the fitted law" + " and its interval" * bool(fit.resamples)) + "."
    words += " Dashed: values that only held-out runs have." * bool(fit.held_out and not fit.refused)
    return words + " Hollow: rows left out of the fit." * any(row.get("loss", 0) > 0 for row in fit.excluded)

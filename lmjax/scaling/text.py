"""A fit as text: for the terminal (rich) and for captions of figures and reports."""

import math
from collections.abc import Mapping

import numpy as np

from lmjax.display import Column, table
from lmjax.format import count, number, percent
from lmjax.scaling.lack_of_fit import amount, p_words
from lmjax.scaling.laws import LAWS, get_law
from lmjax.scaling.result import Fit

FAR = 10.0  # times beyond the fitted runs from which on a prediction has a warning
METHOD_WORDS = {
    "residual": "resampled errors, t-scaled",
    "rows": "resampled rows",
    "configurations": "resampled configurations, bias-corrected",
    "wild_cluster": "errors with random signs per configuration",
}
UNTESTED = "No run was held out, so the prediction is untested."
CRITERIA = {
    "huber_log": "sum of Huber of ln loss, delta {delta:g}",
    "squared_log": "half the sum of squares of ln loss",
    "squared": "half the sum of squares of the loss",
}
LEGEND = (
    "gap: relative gain of one more Newton step; starts: starting points that reach this minimum; condition: "
    "above 1e4, parameters are nearly collinear"
)


def noise_words(fit: Fit) -> str:
    """The noise of a run: of ln loss as percent, of a plain loss in its unit, of a share in share points.

    Example:
        >>> noise_words(Fit("power_n", "L(N)", "converged", noise_sd=0.0055))
        '0.55 %'
        >>> noise_words(Fit("power_n", "L(N)", "converged", criterion="squared", noise_sd=0.0055))
        '0.00550 in the unit of the loss'
    """
    if fit.target == "share":
        return f"{100 * fit.noise_sd:.2f} share points" if math.isfinite(fit.noise_sd) else "-"
    return f"{number(fit.noise_sd, 3)} in the unit of the loss" if fit.plain else percent(fit.noise_sd)


def interval_words(fit: Fit) -> str:
    """How the intervals were made, in one line."""
    if not fit.resamples:
        return "no intervals (no bootstrap resamples)"
    return f"{fit.confidence:.0%} intervals from {fit.resamples} bootstrap resamples ({METHOD_WORDS[fit.bootstrap]})"


def headline(fit: Fit) -> str:
    """The result in one sentence, held-out error included."""
    if fit.refused:
        return f"{fit.formula} could not be fitted: {'; '.join(fit.reasons)}."
    # exponents and the floor mean something by themselves, coefficients do not
    named = [name for name in fit.params if len(name) > 1] + ["E"] * ("E" in fit.params)
    values = [f"{name} = {_with_interval(fit, name)}" for name in named]
    listed = " and ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values)
    status = "" if fit.status == "converged" else f" ({fit.status.replace('_', ' ')})"
    text = f"{fit.formula}{status} with {listed}, from {len(fit.points)} runs."
    if not fit.held_out:
        return f"{text} {UNTESTED}"
    return f"{text} {held_out_result(fit)}"


def held_out_result(fit: Fit) -> str:
    """How far off the held-out predictions are, and how many intervals hold, in one sentence."""
    worst, runs = max(map(abs, held_out_errors(fit))), len(fit.held_out)
    unit, inside = "share points" if fit.target == "share" else "%", "no intervals were computed."
    if fit.resamples:
        inside = f"{sum(row['inside'] for row in fit.held_out)} of {runs} lie inside the {fit.confidence:.0%} interval."
    return (
        f"The {'one held-out run' if runs == 1 else f'{runs} held-out runs'} (up to "
        f"{max(row['extrapolation'] for row in fit.held_out):.1f} times the fitted compute) "
        f"{'was' if runs == 1 else 'were'} predicted within {worst:.2f} {unit}; {inside}"
    )


def far_words(fit: Fit, cell: Mapping[str, float]) -> str:
    """A warning if a run {variable: value} is predicted more than FAR times beyond the fitted ones, or "".

    The distance is that in 6 N D, or in the law's first variable.
    """
    names = ["N", "D"] if {"N", "D"} <= set(cell) else [name for name in fit.variables[:1] if name in cell]
    fitted = math.prod(fit.column(name) for name in names) * np.ones(len(fit.points))
    asked = math.prod(cell[name] for name in names)
    what = "compute" if len(names) == 2 else names[0] if names else ""
    ends = ("above", "largest", asked / fitted.max()), ("below", "smallest", fitted.min() / asked)
    for side, end, times in ends if names else ():
        if times > FAR:
            far = f"more than {FAR:g} times {side} the {end} fitted {what}"
            return f"{far}: the interval is valid only if the law holds that far"
    return ""


def held_out_errors(fit: Fit) -> list[float]:
    """Error of each held-out prediction: percent of the measured loss, or points of a share, which may be 0."""
    if fit.target == "share":
        return [100 * (row["predicted"] - row["loss"]) for row in fit.held_out]
    return [100 * row["relative_error"] for row in fit.held_out]


def average_words(fit: Fit) -> str:
    """The laws behind the predictions of a fit with intervals, in one sentence; "" where it predicts alone."""
    if fit.refused or not fit.resamples or fit.target == "share":
        return ""
    found = fit.average()
    laws = ", ".join(f"{name} {share:.0%}" for name, share in sorted(found.weights.items(), key=lambda w: -w[1]))
    wider = f", widened {found.inflation:.2f}x by back-tests" if found.inflation > 1.005 else ""
    return f"Predictions average {laws}, with an allowance for deviations that no law explains{wider}."


def yes_or_no(inside: bool | None) -> str:
    """Whether a held-out loss lies in its interval, in a word; "-" without an interval."""
    return {None: "-", True: "yes", False: "no"}[inside]


def _with_interval(fit, name):
    value = fit.values[name]
    if name not in fit.intervals:
        return number(value)
    if name in get_law(fit.law).fixed:
        return f"{number(value)} (fixed)"
    low, high = fit.intervals[name]
    return f"{number(value)} [{number(low, 3)}, {number(high, 3)}]"


def render_fit(fit: Fit):
    """Returns a rich renderable: status, parameters with intervals, held-out rows, quality, warnings."""
    from rich.console import Group
    from rich.text import Text

    colour = "red" if fit.refused else "yellow" if fit.warnings else "green"
    title = Text.assemble((fit.formula, "bold"), "   ", (fit.status.replace("_", " "), f"bold {colour}"))
    parts = [title]
    parts += [Text(f"  refused: {reason}", style="red") for reason in fit.reasons]
    if fit.params:
        parts += [_parameter_table(fit), Text(_quality(fit), style="dim"), Text(LEGEND, style="dim")]
    if fit.held_out:
        parts.append(_held_out_table(fit))
    parts += [Text(f"  warning: {warning}", style="yellow") for warning in fit.warnings]
    parts += [Text(f"  note: {note}", style="dim") for note in fit.notes]
    if fit.excluded:
        size = [Column(name, text=lambda value: count(float(value))) for name in ("N", "D")]
        columns = [Column("run", "excluded run", left=True), *size, Column("reason", left=True)]
        parts.append(table(fit.excluded, columns))
    parts.append(Text("; ".join(fit.conventions.values()), style="dim"))
    return Group(*parts)


def parameter_rows(fit: Fit) -> list[dict]:
    """Returns a dict per parameter: parameter, value, low, high; None without an interval."""
    rows = []
    for name, value in fit.values.items():
        low, high = fit.intervals.get(name, (None, None))
        rows.append({"parameter": name, "value": value, "low": low, "high": high})
    return rows


def parameter_label(fit: Fit, name: str) -> str:
    """The name of a parameter or derived number in a table."""
    return f"{name} (N* ~ C^a)" if name in fit.derived and name == "a" else name


def _parameter_table(fit):
    fixed = get_law(fit.law).fixed

    def ends(name, intervals):
        return "fixed" if name in fixed else " .. ".join(map(number, intervals[name])) if name in intervals else "-"

    rows = [
        {
            "parameter": parameter_label(fit, name),
            "value": number(value, 5),
            "interval": ends(name, fit.intervals),
            "profile": ends(name, fit.profiles),
        }
        for name, value in fit.values.items()
    ]
    profile = [Column("profile", f"{fit.confidence:.0%} profile interval")] * bool(fit.profiles)
    interval = Column("interval", f"{fit.confidence:.0%} interval")
    return table(rows, [Column("parameter", left=True), Column("value"), interval, *profile])


def _quality(fit):
    criterion = CRITERIA[fit.criterion].format(delta=fit.delta)
    return (
        f"{len(fit.points)} points, criterion {fit.criterion_value:.4e} ({criterion}), gap "
        f"{fit.gap:.0e}, {fit.starts_agree}/{fit.starts} starts agree, condition {fit.condition:.3g}, noise "
        f"{noise_words(fit)}; {lack_of_fit_words(fit)}; {interval_words(fit)}; data {fit.data_hash}, fit {fit.hash}"
    )


def lack_of_fit_words(fit: Fit) -> str:
    """The p-value of the test for lack of fit and the size of the systematic residuals, in a few words."""
    found = fit.lack_of_fit
    if not found:
        return "lack of fit not tested"
    return f"lack of fit {p_words(found['p'])}, systematic residuals {amount(fit, found['size'])}"


def _held_out_table(fit):
    unit = "points" if fit.target == "share" else "%"

    def interval(row, of=""):
        return f"{row[f'{of}low']:.4f} .. {row[f'{of}high']:.4f}" if fit.resamples and f"{of}low" in row else "-"

    rows = [
        row | {"interval": interval(row), "alone": interval(row, "law_"), "error": error}
        for row, error in zip(fit.held_out, held_out_errors(fit), strict=True)
    ]
    columns = (
        Column("run", "held-out run", left=True),
        Column("N", text=count),
        Column("D", text=count),
        Column("loss", text="{:.4f}".format),
        Column("predicted", text="{:.4f}".format),
        Column("interval", f"{fit.confidence:.0%} interval"),
        Column("error", text=lambda error: f"{error:+.2f} {unit}"),
        Column("inside", text=yes_or_no),
        Column("alone", "of the law alone", priority=1),
    )
    return table(rows, columns)


def list_laws() -> str:
    """Every law of LAWS: name, formula, paper."""
    return "\n".join(f"{law.name:22} {law.formula}\n{'':22} {law.paper}" for law in LAWS.values())

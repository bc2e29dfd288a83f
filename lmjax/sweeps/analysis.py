"""From run directories to fit.json, figures and report.html: shared by `lmjax sweep`, `fit`, `plot` and `report`.

Writes sweep.json, runs.csv, prediction.json, fit.json, figures/ and report.html into the directory of runs. If runs
differ in a setting (family, optimizer, ...), each group of runs gets its own folder for the last three.
"""

import datetime
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lmjax import display, run_record
from lmjax.config import flatten, to_dict
from lmjax.errors import InputError
from lmjax.format import number, plural
from lmjax.scaling import fitting, settings
from lmjax.scaling import table as tables
from lmjax.scaling.text import render_fit

if TYPE_CHECKING:  # it imports jax, which a fit of a table does not need
    from lmjax.sweeps.cells import Cell


def read(workdir: pathlib.Path, cells: "Sequence[Cell]" = ()) -> tuple[Any, dict[str, list[dict]]]:
    """Returns (table of runs, {run id: its metrics records}) of a directory of runs.

    Args:
        workdir: the directory of runs. Imported runs have no loss; they are left out with a note on standard error.
        cells: read only these cells of a sweep, and take held_out from them. Empty: the runs of the last sweep that
            `lmjax sweep` analysed here (sweep.json), else all runs.
    """
    runs = run_record.read_runs(workdir)
    if runs["imported"].any():
        _left_out(runs["run_id"][runs["imported"]], "imported runs have no loss")
        runs = runs[~runs["imported"]].reset_index(drop=True)
    record = run_record.read_json(workdir / "sweep.json") or {}
    held_out = {cell.run.run_id: cell.held_out for cell in cells} or record.get("runs", {})
    if held_out and set(held_out) & set(runs["run_id"]):
        others = runs["run_id"][~runs["run_id"].isin(held_out)]
        if len(others):
            _left_out(others, f"not in the sweep {record.get('sweep', '')}; delete sweep.json to fit all runs")
        runs = runs[runs["run_id"].isin(held_out)].reset_index(drop=True)
        runs["held_out"] = runs["run_id"].map(held_out)
    if (workdir / "halving.json").exists():
        print("these runs are those of a search by --halving: the longer ones are a selection", file=sys.stderr)
    metrics = {name: run_record.read_metrics(workdir / name / "metrics.jsonl") for name in runs["run_id"]}
    return runs, metrics


def _left_out(names, reason):
    shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
    print(f"{plural(len(names), 'run')} left out ({reason}): {shown}", file=sys.stderr)


def groups(runs) -> dict[str, dict[str, str]]:
    """Returns {label: condition} of groups that can share a law: one group with the label "" if no setting differs
    between the finished runs, else one group per value of the differing settings."""
    finished = runs[runs["status"] == "done"]
    differing = settings.varying(finished) if len(finished) else {}
    if not differing:
        return {"": {}}
    keys = [key.removeprefix("config.") for key in settings.group_keys(finished, differing)]
    return tables.groups(finished, keys)


def predict_held_out(workdir: pathlib.Path, fitted: "Sequence[Cell]", held_out: "Sequence[Cell]") -> None:
    """Predicts the losses of the held-out cells before the first of them is trained, and writes prediction.json.

    Writes nothing if one of them has begun or if the fit is refused.
    """
    if any((cell.run_dir / "metrics.jsonl").exists() for cell in held_out):
        return
    runs = run_record.read_runs(workdir)
    runs = runs[runs["run_id"].isin([cell.run.run_id for cell in fitted])].reset_index(drop=True)
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    fits = []
    for label, where in groups(runs).items():
        fit = fitting.fit(settings.select_rows(runs, where))
        out = [cell for cell in held_out if all(_setting(cell, key) == value for key, value in where.items())]
        if not fit.refused and out:
            found = []
            for cell in out:
                N, D = cell.run.derived["n_total"], cell.run.derived["tokens"]
                loss = fit.predict(N, D)
                ends = {"predicted": loss.value, "low": loss.low, "high": loss.high}
                alone = fit.predict(N, D, one_law=True)
                ends |= {"law_predicted": alone.value, "law_low": alone.low, "law_high": alone.high}
                found.append({"run": cell.run.run_id, "N": N, "D": D, **ends})
            law = {"law": fit.formula, "data_hash": fit.data_hash, "level": fit.confidence}
            fits.append({**({"group": label} if label else {}), **law, "held_out": found})
    if fits:
        record = fits[0] if len(fits) == 1 and "group" not in fits[0] else {"groups": fits}
        run_record.write_json(workdir / "prediction.json", {"made": made, **record})


def _setting(cell, key):
    known = {**flatten(to_dict(cell.run.config)), **cell.run.derived}
    return settings.setting_text(known.get(key))


def analyse(workdir: pathlib.Path, cells: "Sequence[Cell]", console: Console, title: str) -> None:
    """Fits a law to the cells of a sweep, draws figures and writes the report; prints the fits and paths."""
    held_out = {cell.run.run_id: cell.held_out for cell in cells}
    run_record.write_json(workdir / "sweep.json", {"sweep": title, "runs": held_out})
    runs, metrics = read(workdir, cells)
    runs.to_csv(workdir / "runs.csv", index=False)
    console.print(f"table   {workdir / 'runs.csv'}", markup=False, highlight=False)
    parts, fits = groups(runs), {}
    for label, where in parts.items():
        folder = workdir / folder_name(label) if label else workdir
        if label:
            console.print(f"\n{label}", style="bold", markup=False)
        fits[label] = _analyse(folder, settings.select_rows(runs, where), metrics, console, title, workdir)
    if len(fits) > 1:
        console.print(side_by_side(fits))
    if advice := rate_sweep_advice(runs, workdir):
        display.say(console, advice)


def _analyse(folder, runs, metrics, console, title, workdir):
    """Fits one group of runs, writes its fit, figures and report, and returns the fit."""
    folder.mkdir(parents=True, exist_ok=True)
    table = tables.read_table(runs)
    fit = fitting.fit(table)
    run_record.write_json(folder / "fit.json", fit.to_dict())
    console.print(render_fit(fit))
    console.print(f"fit     {folder / 'fit.json'}", markup=False, highlight=False)
    try:
        from lmjax.scaling.figures.fit import plot_all

        figures = plot_all(fit, folder / "figures", ("png",), runs, metrics)
    except InputError as error:  # no matplotlib: the numbers above stand without it
        console.print(f"no figures and no report: {error}", style="yellow", markup=False, highlight=False)
        return fit
    report = write_report(folder, runs, fit, figures, folder.name, f"lmjax sweep {title}", workdir, table=table)
    console.print(
        f"figures {', '.join(path.name for path in figures)} in {folder / 'figures'}", markup=False, highlight=False
    )
    console.print(f"report  {report}", markup=False, highlight=False)
    return fit


def rate_sweep_advice(runs, source: pathlib.Path) -> str:
    """Returns advice if the runs differ in learning rate but not in size, so that there is no law to fit; else ""."""
    done = runs[runs["status"] == "done"]
    rate = "config.optimizer.learning_rate"
    if rate not in done or done[rate].nunique() < 2 or len(done[["n_total", "tokens"]].drop_duplicates()) > 1:
        return ""
    rates = ", ".join(f"{value:g}" for value in sorted(done[rate].unique()))
    return (
        f"these runs have one size and differ in learning rate ({rates}), so there is no law to fit; "
        f"the optimal rate with its interval: lmjax tuning {source}"
    )


def folder_name(label: str) -> str:
    """Returns the folder name of a group: its label without characters that are unsafe in paths."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-") or "group"


def side_by_side(fits):
    """Returns a rich table of the parameters of several fits, one column per group."""

    def with_interval(fit, name):
        value = {**fit.params, **fit.derived}.get(name)
        ends = " to ".join(number(end) for end in fit.intervals.get(name, ()))
        return number(value) + f" ({ends})" * bool(ends)

    rows = [{"parameter": "status", **{label: fit.status.replace("_", " ") for label, fit in fits.items()}}]
    for name in dict.fromkeys(name for fit in fits.values() for name in (*fit.params, *fit.derived)):
        rows.append({"parameter": name, **{label: with_interval(fit, name) for label, fit in fits.items()}})
    return display.table(rows, [display.Column("parameter", left=True), *map(display.Column, fits)])


def write_report(folder, runs, fit, figures: Sequence[pathlib.Path], title, command, workdir=None, **options):
    """Writes report.html; returns its path.

    Args:
        folder: output folder.
        runs, fit, figures, title, command: as in page.write_report.
        workdir: folder of prediction.json; None: the output folder.
        **options: further arguments of page.write_report (reading, table, to_predict, budgets).
    """
    from lmjax.scaling.report import page as report

    prediction = run_record.read_json((workdir or folder) / "prediction.json") or {}
    laws = prediction.get("groups", [prediction] if prediction else [])
    same = any((law["data_hash"], law["law"]) == (fit.data_hash, fit.formula) for law in laws)
    made = {"held-out runs predicted": prediction["made"]} if same else None
    return report.write_report(folder / "report.html", runs, fit, figures, title, command, made, **options)

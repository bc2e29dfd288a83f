"""From run directories to fit.json, figures and report.html: what `lmjax sweep`, `fit`, `plot` and `report` share.

Files it writes into the directory of runs: runs.csv, fit.json, prediction.json, figures/, report.html.
"""

import datetime
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lmjax import run_record
from lmjax.errors import InputError
from lmjax.scaling import fitting
from lmjax.scaling.table import read_table
from lmjax.scaling.text import render_fit
from lmjax.sweep.cells import Cell


def read(workdir: pathlib.Path, cells: Sequence[Cell] = (), family: str = "") -> tuple[Any, dict[str, list[dict]]]:
    """Returns (table of runs, {run id: its metrics records}): of these cells, or of all runs below the directory.

    Whether a cell is held out is what the sweep file says now. Imported runs are left out, aloud: they have no loss.

    Args:
        workdir: the directory of runs.
        cells: of a sweep, to leave out other runs.
        family: decoder | encoder | encoder_decoder, to leave out others; "": there must be one only.

    Raises:
        InputError: several families and none chosen; none of the chosen family.
    """
    runs = run_record.read_runs(workdir)
    if runs["imported"].any():
        print(
            f"left out, as imported runs have no loss: {', '.join(runs['run_id'][runs['imported']])}", file=sys.stderr
        )
        runs = runs[~runs["imported"]].reset_index(drop=True)
    families = sorted(set(runs["family"].dropna()))
    if not cells and (family or len(families) > 1):
        if family not in families:
            raise InputError(
                f"{workdir} holds runs of {', '.join(families)}, whose losses do not compare: expected one, got "
                f"{family or 'none'}; add --family {families[0] if families else 'decoder'}"
            )
        runs = runs[runs["family"] == family].reset_index(drop=True)
    if cells:
        held_out = {cell.run.run_id: cell.held_out for cell in cells}
        runs = runs[runs["run_id"].isin(held_out)].reset_index(drop=True)
        runs["held_out"] = runs["run_id"].map(held_out)
    metrics = {name: run_record.read_metrics(workdir / name / "metrics.jsonl") for name in runs["run_id"]}
    return runs, metrics


def predict_held_out(workdir: pathlib.Path, fitted: Sequence[Cell], held_out: Sequence[Cell]) -> None:
    """Writes prediction.json: what the fit says of the held-out cells, before the first of them is trained.

    Nothing is written once one of them has begun, nor when the law was refused.
    """
    if any((cell.run_dir / "metrics.jsonl").exists() for cell in held_out):
        return
    runs = run_record.read_runs(workdir)
    fit = fitting.fit(runs[runs["run_id"].isin([cell.run.run_id for cell in fitted])])
    if fit.refused:
        return
    rows = []
    for cell in held_out:
        N, D = cell.run.derived["n_total"], cell.run.derived["tokens"]
        loss, low, high = fit.predict(N, D)
        rows.append({"run": cell.run.run_id, "N": N, "D": D, "predicted": loss, "low": low, "high": high})
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run_record.write_json(
        workdir / "prediction.json",
        {"made": made, "law": fit.formula, "data_hash": fit.data_hash, "level": fit.level, "held_out": rows},
    )


def analyse(workdir: pathlib.Path, cells: Sequence[Cell], console: Console, title: str) -> None:
    """Fits, draws and reports the cells of a sweep; prints the fit and where everything is."""
    runs, metrics = read(workdir, cells)
    others = len(run_record.find_runs(workdir)) - len(runs)
    if others:
        console.print(f"[yellow]{others} other runs in {workdir} are not in this sweep: left out[/]", highlight=False)
    runs.to_csv(workdir / "runs.csv", index=False)
    table = read_table(runs)
    fit = fitting.fit(table)
    run_record.write_json(workdir / "fit.json", fit.to_dict())
    console.print(render_fit(fit))
    console.print(f"table   {workdir / 'runs.csv'}\nfit     {workdir / 'fit.json'}", highlight=False)
    try:
        figures = draw(runs, metrics, fit, workdir / "figures")
    except InputError as error:  # no matplotlib: the numbers above stand without it
        console.print(f"[yellow]no figures and no report:[/] {error}", highlight=False)
        return
    report = write_report(workdir, runs, fit, figures, workdir.name, f"lmjax sweep {title}", table=table)
    console.print(f"figures {', '.join(path.name for path in figures)} in {workdir / 'figures'}", highlight=False)
    console.print(f"report  {report}", highlight=False)


def draw(runs, metrics, fit, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure; returns the paths."""
    from lmjax.scaling.figures.fit import plot_all

    return plot_all(fit, folder, ("png",), runs, metrics)


def write_report(workdir: pathlib.Path, runs, fit, figures: Sequence[pathlib.Path], title, command, **asked):
    """Writes report.html; returns its path. `asked`: reading, table, expected and budgets of page.write_report."""
    from lmjax.scaling.report import page as report

    prediction = run_record.read_json(workdir / "prediction.json")
    same = prediction is not None and prediction["data_hash"] == fit.data_hash and prediction["law"] == fit.formula
    made = {"held-out runs predicted": prediction["made"]} if same else None
    return report.write_report(workdir / "report.html", runs, fit, figures, title, command, made, **asked)

"""`lmjax plan` and `lmjax sweep`, top-down: cells -> train those of the fit -> fit -> predict the held-out
ones -> train them ->
compare, draw, report. Every step reads the run directories, so the same command goes on from wherever the last
one ended."""

import collections
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lmjax import run_record
from lmjax.errors import InputError
from lmjax.sweep import analysis
from lmjax.sweep import plan as planning
from lmjax.sweep.cells import Cell, load_cells
from lmjax.sweep.live import SweepView
from lmjax.sweep.local import LocalPool, slots


def plan(spec: str, workdir: pathlib.Path, overrides: Mapping[str, Any], workers: int, calibrate: bool) -> int:
    """Prints what the sweep will cost and what it cannot identify. Trains nothing; returns 0."""
    console = Console()
    cells, places = load_cells(spec, workdir, overrides), slots(workers)
    seconds = None
    if calibrate:
        with console.status("timing the cheapest and the dearest step"):
            seconds = planning.estimate_seconds(cells, places[0])
    console.print(planning.plan_table(cells, seconds, len(places)))
    _say_warnings(console, cells, workdir)
    return 0


def _say_warnings(console, cells, workdir):
    for warning in planning.design_warnings(cells):
        console.print(f"[yellow]design:[/] {warning}", highlight=False, soft_wrap=True)
    existing = next(folder for folder in (workdir, *workdir.resolve().parents) if folder.exists())
    needed, free = sum(planning.disk_bytes(cell.run) for cell in cells), shutil.disk_usage(existing).free
    if needed > free:
        console.print(f"[red]disk:[/] {needed:,} bytes expected, {free:,} free on {existing}")


def sweep(
    spec: str, workdir: pathlib.Path, overrides: Mapping[str, Any], workers: int, analyse: bool, keep: bool = False
) -> int:
    """Trains what is missing of a sweep and analyses it; returns 0, 75 if stopped, 1 if a cell failed or diverged.

    `keep` counts cells as done that other source code trained, and resumes them; without it they are refused.
    """
    console = Console()
    cells, places = load_cells(spec, workdir, overrides), slots(workers)
    if not places:
        raise InputError("no CPU core or GPU to run on")
    for cell in cells:
        cell.run.check(cell.run_dir, keep)
    total = sum(cell.run.derived["flops_exact"] for cell in cells)
    console.print(
        f"{len(cells)} cells, {total:.3g} FLOP, in {workdir}; workers on {', '.join(place.name for place in places)}",
        highlight=False,
    )
    _say_warnings(console, cells, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with run_record.Lock(workdir):
        statuses, stopped = _train(console, cells, places, workdir, analyse, keep)
    code = _conclude(console, cells, statuses, stopped)
    if analyse and not stopped:
        analysis.analyse(workdir, cells, console, title=spec)
    return code


def _train(console, cells, places, workdir, analyse, keep) -> tuple[dict[str, dict], bool]:
    """Trains the cells of the fit, predicts the held-out ones, trains those; returns (final statuses, asked to
    stop)."""
    statuses: dict[str, dict] = {}
    fitted = [cell for cell in cells if not cell.held_out]
    held_out = [cell for cell in cells if cell.held_out]
    with SweepView(cells, console) as view:
        pool = LocalPool(places, lambda now: view.update({**statuses, **now}), keep)
        statuses.update(pool.run(fitted))
        if held_out and not pool.stopping:
            if analyse:
                analysis.predict_held_out(workdir, fitted, held_out)
            statuses.update(pool.run(held_out))
    return statuses, pool.stopping


def _conclude(console, cells: Sequence[Cell], statuses: dict[str, dict], stopped: bool) -> int:
    """Prints counts and, for each cell that did not end well, why and where its log is."""
    counts = collections.Counter(statuses.get(c.run.run_id, {"status": "pending"})["status"] for c in cells)
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()), highlight=False)
    for cell in cells:
        record = statuses.get(cell.run.run_id, {})
        if record.get("status") in ("failed", "diverged"):
            console.print(
                f"[red]{record['status']}[/] {cell.run.run_id}: {record.get('message', '')}\n"
                f"  log: {cell.run_dir / 'log.txt'}",
                highlight=False,
                soft_wrap=True,
            )
    if stopped:
        console.print("stopped; the same command goes on from here")
        return 75
    return 0 if counts["done"] == len(cells) else 1

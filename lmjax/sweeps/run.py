"""`lmjax plan` and `lmjax sweep`: train the fitted cells, fit, predict the held-out cells, train those, compare, plot
and report. Every step reads the run directories, so the same command resumes an interrupted sweep.
"""

import collections
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lmjax import display, run_record
from lmjax.checkpoint import check_path
from lmjax.errors import InputError
from lmjax.sweeps import analysis, records
from lmjax.sweeps import plan as plans
from lmjax.sweeps.cells import Cell, load_cells
from lmjax.sweeps.live import SweepView
from lmjax.sweeps.local import LocalPool, packing, slots


def workdir_of(spec: str) -> pathlib.Path:
    """Returns the default parent of a sweep's runs, runs/<file>[-<argument>]; "configs/a.py:b" gives runs/a-b."""
    path, _, arg = spec.partition(":")
    return pathlib.Path("runs") / (pathlib.Path(path).stem + (f"-{arg}" if arg else ""))


def plan(
    spec: str,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any],
    workers: int,
    calibrate: bool,
    format: str = "table",
    out: pathlib.Path | None = None,
    pack: int | str = "auto",
) -> int:
    """Prints the cost of a sweep and what its design cannot identify, without training; returns 0.

    Args:
        spec: the sweep file, path.py or path.py:argument.
        workdir: parent of the run directories; finished cells there are marked and not counted.
        overrides: {"section.key": value} on top of the sweep's base config.
        workers: cells trained at a time; 0: one per core or GPU.
        calibrate: whether to measure a step and an evaluation here, for the estimate of time.
        format: table | csv | json; with csv and json, totals and warnings go to standard error.
        out: file for the table instead of standard output.
        pack: as for `sweep`.
    """
    console = Console(stderr=format != "table")
    cells, places = load_cells(spec, workdir, overrides), slots(workers)
    seconds, packs = None, []
    if calibrate:
        with console.status("timing the cheapest and the most expensive step"):
            packs = plans.estimate_packs(cells, places[0], packing(pack))
        seconds = plans.shares(cells, packs)
    rows = plans.rows(cells, seconds)
    if format != "table":
        rows = [{key: value for key, value in row.items() if key not in ("run", "state")} for row in rows]
    display.show(rows, plans.COLUMNS, format, out, f"{len(cells)} cells, {len(places)} at a time")
    for line in [plans.totals(cells, seconds, len(places)), *plans.describe_packs(packs)]:
        _say(console, line)
    for warning in plans.warnings(cells, workdir, len(places)):
        _say(console, warning, "yellow")
    return 0


def _say(console, text, style=None):
    """Prints a line without markup or wrapping."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def sweep(
    spec: str,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any],
    workers: int,
    analyse: bool,
    keep: bool = False,
    quiet: bool = False,
    records_files: Sequence[pathlib.Path] = (),
    pack: int | str = "auto",
) -> int:
    """Trains the missing cells of a sweep and analyses it; returns 0, 75 if stopped, 1 if a cell failed or diverged.

    Args:
        spec, workdir, overrides, workers: as for `plan`.
        analyse: whether to fit, plot and report at the end.
        keep: accept and resume cells trained by other source code, which are refused otherwise.
        quiet: do not show the table of running cells.
        records_files: records files (records.pack), whose runs count as done.
        pack: cells of equal shape that a worker trains at a time; "auto": 1 on CPUs, else as the worker measures.
    """
    console = Console()
    cells, places = load_cells(spec, workdir, overrides), slots(workers)
    if not places:
        raise InputError("no CPU core or GPU to run on")
    check_path(workdir)
    for cell in cells:
        cell.run.check(cell.run_dir, keep)
    workdir.mkdir(parents=True, exist_ok=True)
    with run_record.Lock(workdir):
        for line in [line for path in records_files for line in records.unpack(path, cells, keep)]:
            _say(console, line, "yellow" if line.startswith("warning") else None)
        names = ", ".join(place.name for place in places)
        _say(console, f"{plans.totals(cells, None, len(places))}, in {workdir}; workers on {names}")
        for warning in plans.warnings(cells, workdir, len(places)):
            _say(console, warning, "yellow")
        if analyse and importlib.util.find_spec("matplotlib") is None:
            _say(console, 'no figures and no report: matplotlib is not installed; pip install "lmjax[plot]"', "yellow")
        statuses, stopped = _train(Console(quiet=quiet), cells, places, workdir, analyse, keep, pack)
    code = _conclude(console, cells, statuses, stopped)
    if analyse and not stopped:
        analysis.analyse(workdir, cells, console, title=spec)
    return code


def _train(console, cells, places, workdir, analyse, keep, pack) -> tuple[dict[str, dict], bool]:
    """Trains the fitted cells, predicts the held-out ones, trains those; returns (final statuses, whether a stop
    was requested).
    """
    statuses: dict[str, dict] = {}
    fitted = [cell for cell in cells if not cell.held_out]
    held_out = [cell for cell in cells if cell.held_out]
    with SweepView(cells, console) as view:
        pool = LocalPool(places, lambda now: view.update({**statuses, **now}), keep, pack)
        statuses.update(pool.run(fitted))
        if held_out and not pool.stopping:
            if analyse:
                analysis.predict_held_out(workdir, fitted, held_out)
            statuses.update(pool.run(held_out))
    return statuses, pool.stopping


def _conclude(console, cells: Sequence[Cell], statuses: dict[str, dict], stopped: bool) -> int:
    """Prints counts and, for each cell that did not finish, the reason and the path of its log."""
    counts = collections.Counter(statuses.get(c.run.run_id, {"status": "pending"})["status"] for c in cells)
    _say(console, ", ".join(f"{count} {status}" for status, count in counts.items()))
    for cell in cells:
        record = statuses.get(cell.run.run_id, {})
        if record.get("status") in ("failed", "diverged"):
            _say(console, f"{record['status']} {cell.run.run_id}: {record.get('message', '')}", "red")
            _say(console, f"  log: {cell.run_dir / 'log.txt'}")
    if stopped:
        _say(console, "stopped; the same command continues from here")
        return 75
    return 0 if counts["done"] == len(cells) else 1

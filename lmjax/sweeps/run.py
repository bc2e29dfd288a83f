"""`lmjax plan` and `lmjax sweep`: train the fitted cells, fit, predict the held-out cells, train those, compare, plot
and report. Every step reads its state from the run directories, so repeating the command resumes an interrupted sweep.
`submit` uses a cluster's queue instead of local workers; `status` prints the state of a sweep.
"""

import collections
import contextlib
import importlib
import importlib.util
import pathlib
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from lmjax import bucket, display, parents, run_record
from lmjax.checkpoint import check_path, saved_steps
from lmjax.display import say
from lmjax.errors import InputError
from lmjax.format import plural
from lmjax.sweeps import analysis, halving, launchers, records, serve
from lmjax.sweeps import plan as plans
from lmjax.sweeps.cells import Cell, load_cells
from lmjax.sweeps.live import SweepView
from lmjax.sweeps.local import (
    Launch,
    LocalPool,
    Slot,
    check_workers,
    packing,
    slots,
    start_process,
    worker_command,
)


def workdir_of(spec: str) -> pathlib.Path:
    """Returns the default folder for a sweep's runs, runs/<file>[-<argument>]; "configs/a.py:b" gives runs/a-b."""
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
    """Prints the cost of a sweep and the terms that its design cannot identify, without training; returns 0.

    Args:
        spec: the sweep file, path.py or path.py:argument.
        workdir: parent of the run directories; finished cells there are marked and not counted.
        overrides: {"section.key": value}, applied to the sweep's base config.
        workers: number of workers; 0: one per core or GPU.
        calibrate: time a step and an evaluation on this machine, to estimate the total time.
        format: table | csv | json; with csv and json, totals and warnings go to standard error.
        out: file for the table; None: standard output.
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
        say(console, line)
    for warning in plans.warnings(cells, workdir, len(places)):
        say(console, warning, "yellow")
    return 0


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
    launch: Launch | None = None,
    retry: str | None = None,
    keep_checkpoints: str = "all",
    search: halving.Search | None = None,
    port: int | None = None,
) -> int:
    """Trains the missing cells of a sweep and analyses it; returns 0, 75 if stopped, 1 if a cell failed or diverged.

    Args:
        spec, workdir, overrides, workers: as for `plan`.
        analyse: fit, plot and report at the end.
        keep: accept and resume cells trained by other source code; otherwise they are refused.
        quiet: do not show the table of running cells.
        records_files: records files (records.pack), whose runs count as done.
        pack: number of cells of equal shape that a worker trains at once; "auto": 1 on CPUs, else measured.
        launch: function that starts a worker; None: start a process on this machine.
        retry: failed | diverged: train only the cells with this status again; None: all that are not done or diverged.
        keep_checkpoints: all | final | none: checkpoints that a finished cell keeps once its branches have finished.
        search: train the cells by successive halving, without an analysis.
        port: port of the live page (serve.py), which is served during this call; 0: the default port; None: no page.
    """
    check_workers(workers)
    console, cells = Console(), load_cells(spec, workdir, overrides, search)
    if launch is None:
        places, launch = slots(workers), start_process
    else:  # one place per cell that may run at a time; the launcher finds the machines
        places = [Slot(f"worker {i}", {}) for i in range(min(workers or len(cells), launchers.PART))]
        pack = 1 if pack == "auto" else pack
    if not places:
        raise InputError("no CPU core or GPU to run on")
    searched = False  # to the end
    with contextlib.ExitStack() as page:  # lasts until the sweep is analysed
        with _claimed(console, cells, workdir, keep, records_files, launch is not start_process):
            if busy := queued(workdir):
                raise InputError(
                    f"{len(busy)} cells of {workdir} are in a queue ({next(iter(busy.values()))}, ...); wait for them "
                    "(lmjax sweep FILE --status) or cancel them, and repeat the command"
                )
            expected = halving.planned(cells, search) if search else cells
            names = ", ".join(place.name for place in places) if len(places) < 20 else f"{len(places)} places"
            say(console, f"{plans.totals(expected, None, len(places))}, in {workdir}; workers on {names}")
            for warning in plans.warnings(cells, workdir, len(places)):
                say(console, warning, "yellow")
            if port is not None:
                say(console, f"live page {page.enter_context(serve.served(workdir, port, cells))}")
            if analyse and importlib.util.find_spec("matplotlib") is None:
                say(
                    console,
                    'no figures and no report: matplotlib is not installed; pip install "lmjax[plot]"',
                    "yellow",
                )
            chosen = _retried(cells, retry) if retry else cells
            options = (places, workdir, analyse, keep, pack, launch, keep_checkpoints)
            if search:
                # the next rung branches off the last checkpoint of this one
                options = (*options[:-1], "final" if keep_checkpoints == "none" else keep_checkpoints)

                def rung(members):
                    return _train(SweepView(members, Console(quiet=quiet)), members, *options)

                cells, statuses, stopped = halving.train(cells, search, workdir, rung)
                searched = not stopped and {record["status"] for record in statuses.values()} <= {"done", "diverged"}
                if searched:
                    Pruner(cells, keep_checkpoints).update(statuses)
            else:
                statuses, stopped = _train(SweepView(cells, Console(quiet=quiet)), chosen, *options)
        code = _conclude(console, cells, statuses, stopped)
        if searched and (record := run_record.read_json(workdir / "halving.json")):
            for line in halving.describe(record):
                say(console, line)
            bucket.push_results(workdir)
        elif analyse and not stopped and not search:
            analysis.analyse(workdir, cells, console, title=spec)
            bucket.push_results(workdir)
        return code


@contextlib.contextmanager
def _claimed(console, cells, workdir, keep, records_files, elsewhere=True):
    """Checks a sweep's directory, locks it, and unpacks records files into it."""
    check_path(workdir)
    if elsewhere and (place := bucket.place_of(workdir)):
        raise InputError(
            f"{place.url}: expected --launcher local, got another; start the same command on each machine, and they "
            "share the sweep through the bucket"
        )
    for cell in cells:
        cell.run.check(cell.run_dir, keep)
    workdir.mkdir(parents=True, exist_ok=True)
    with run_record.Lock(workdir):
        for line in [line for path in records_files for line in records.unpack(path, cells, keep)]:
            say(console, line, "yellow" if line.startswith("warning") else None)
        yield


def _retried(cells: Sequence[Cell], status: str) -> list[Cell]:
    """Returns the cells with this status, and resets the status so that they are trained again."""
    found = [(cell, run_record.status_of(cell.run_dir)) for cell in cells]
    found = [(cell, record) for cell, record in found if record["status"] == status]
    if not found:
        raise InputError(f"--retry {status}: expected {status} cells, got none; leave it out")
    for cell, record in found:
        run_record.write_json(cell.run_dir / "status.json", {**record, "status": "pending"})
    return [cell for cell, _ in found]


def _train(view, chosen, places, workdir, analyse, keep, pack, launch, keep_checkpoints):
    """Trains the chosen fitted cells, predicts the chosen held-out cells, and trains these; returns (final statuses of
    all cells, whether a stop was requested).
    """
    left = set(chosen)
    statuses = {cell.run.run_id: run_record.status_of(cell.run_dir) for cell in view.cells if cell not in left}
    fitted, held_out = ([cell for cell in chosen if cell.held_out == side] for side in (False, True))
    pruner = Pruner(view.cells, keep_checkpoints)

    def watch(now):
        bucket.refresh(workdir)
        view.update({**statuses, **now})
        pruner.update({**statuses, **now})

    with view:
        pool = LocalPool(places, watch, keep, pack, launch)
        statuses.update(pool.run(fitted))
        if held_out and not pool.stopping:
            if analyse:
                analysis.predict_held_out(workdir, [cell for cell in view.cells if not cell.held_out], held_out)
                bucket.share(workdir / "prediction.json")
            statuses.update(pool.run(held_out))
    return statuses, pool.stopping


class Pruner:
    """Deletes checkpoints of a finished cell once all its branches have finished, too.

    Args:
        cells: all cells of the sweep.
        keep: which checkpoints to keep: all | final | none.
    """

    def __init__(self, cells: Sequence[Cell], keep: str):
        self.keep, self.left = keep, {cell.run.run_id: cell for cell in cells if keep != "all"}
        self.branches = collections.defaultdict(list)
        for cell in self.left.values():
            if parent := parents.parent_of(cell.run.config):
                self.branches[parent.digest].append(cell.run.run_id)

    def update(self, statuses: Mapping[str, dict]) -> None:
        """Deletes the checkpoints that are no longer needed, given {run id: status record}."""
        done = {name for name, record in statuses.items() if record["status"] == "done"} if self.left else set()
        for name in done & self.left.keys():
            if done.issuperset(self.branches[name.rsplit("-", 1)[-1]]):
                run_dir = self.left.pop(name).run_dir
                for step in saved_steps(run_dir)[: -1 if self.keep == "final" else None]:
                    bucket.remove(run_dir, step)
                    shutil.rmtree(run_dir / "checkpoints" / str(step))


def _conclude(console, cells: Sequence[Cell], statuses: dict[str, dict], stopped: bool) -> int:
    """Prints counts by status and, for each failed or diverged cell, the reason and its log; returns the exit code."""
    counts = collections.Counter(statuses.get(c.run.run_id, {"status": "pending"})["status"] for c in cells)
    say(console, ", ".join(f"{count} {status}" for status, count in counts.items()))
    for cell in cells:
        record = statuses.get(cell.run.run_id, {})
        if record.get("status") in ("failed", "diverged"):
            say(console, f"{record['status']} {cell.run.run_id}: {record.get('message', '')}", "red")
            say(console, f"  log: {cell.run_dir / 'log.txt'}")
    if stopped:
        say(console, "stopped; the same command continues from here")
        return 75
    return 0 if counts["done"] == len(cells) else 1


ENDED = ("done", "diverged", "failed")


def submit(
    spec: str,
    workdir: pathlib.Path,
    overrides: Mapping[str, Any],
    launcher: str,
    workers: int = 0,
    analyse: bool = True,
    keep: bool = False,
    records_files: Sequence[pathlib.Path] = (),
    pack: int | str = "auto",
    hosts: Sequence[str] = (),
    dry_run: bool = False,
    retry: str | None = None,
    keep_checkpoints: str = "all",
) -> int:
    """Submits the missing cells of a sweep to a cluster's queue and returns; if all have finished, analyses the sweep.

    Cells in the queue are not submitted again. Held-out cells wait for the fit, as in `sweep`.

    Args:
        spec, workdir, overrides, analyse, keep, records_files, pack, retry: as for `sweep`.
        launcher: slurm | kubernetes | hosts.
        workers: maximum number of cells with equal resources that run at a time; 0: no limit.
        hosts: names of the machines, for the launcher `hosts`.
        dry_run: print what would be submitted, and write nothing.
        keep_checkpoints: as for `sweep`; checkpoints are deleted during this call only.

    Raises:
        InputError: the scheduler is missing or refuses the resources; nothing is submitted then.
    """
    check_workers(workers)
    console, workdir = Console(stderr=dry_run or launcher == "hosts"), workdir.absolute()
    cells, engine = load_cells(spec, workdir, overrides), importlib.import_module(f"lmjax.sweeps.launchers.{launcher}")
    claim = contextlib.nullcontext() if dry_run else _claimed(console, cells, workdir, keep, records_files)
    with claim:
        # 1. The cells that have not ended and are neither running nor in the queue.
        busy = {} if dry_run else queued(workdir)
        statuses = {cell.run.run_id: run_record.status_of(cell.run_dir) for cell in cells}
        names = {name for name, record in statuses.items() if record["status"] in ("done", "diverged", "running")}
        left = [cell for cell in cells if cell.run.run_id not in names | busy.keys()]
        if retry and not dry_run:
            left = [cell for cell in _retried(cells, retry) if cell.run.run_id not in busy]
        if not dry_run:
            Pruner(cells, keep_checkpoints).update(statuses)
        # 2. Branches wait for their parent's checkpoint, held-out cells for the fit of the others.
        waiting = [cell for cell in left if not parents.ready(cell.run, cell.run_dir)]
        left = [cell for cell in left if cell not in waiting]
        fitted, held_out = ([cell for cell in left if cell.held_out == side] for side in (False, True))
        ends = {c.run.run_id: statuses[c.run.run_id]["status"] for c in cells if not c.held_out}
        elsewhere = bool(waiting) or any(name in busy or end == "running" for name, end in ends.items())
        no_dependencies = launcher == "kubernetes"
        if busy:
            jobs = ", ".join(sorted(set(busy.values()))[:3])
            say(console, f"in the queue: {plural(len(busy), 'cell')} ({jobs}, ...)")
        if waiting:
            cells_waiting = plural(len(waiting), "cell")
            say(console, f"waiting for a parent's checkpoint: {cells_waiting}; repeat this command when it exists")
        if held_out and analyse and (elsewhere or (no_dependencies and not {*ends.values()} <= {*ENDED})):
            cells_waiting = plural(len(held_out), "held-out cell")
            say(console, f"waiting for the fit: {cells_waiting}; repeat this command when the others end")
            held_out = []
        elif held_out and analyse and (not fitted or no_dependencies) and not dry_run:
            analysis.predict_held_out(workdir, [cell for cell in cells if not cell.held_out], held_out)
        # 3. The rest is submitted.
        if fitted or held_out:
            command = ()
            if fitted and held_out and analyse:
                keys = [f"--config.{key}={value}" for key, value in overrides.items()]
                command = tuple(worker_command("sweep", spec, "--workdir", str(workdir), "--predict", *keys))
            made = [launchers.tasks(some, pack, keep) for some in (fitted, held_out)]
            jobs = engine.render(launchers.Stage(*made, command, workdir, workers, tuple(hosts)))
            if dry_run or launcher == "hosts":
                print(engine.show(jobs), end="")
            if dry_run:
                return 0
            for cell in (*fitted, *held_out):
                cell.run.write(cell.run_dir)
                run_record.write_json(cell.run_dir / "status.json", {**statuses[cell.run.run_id], "status": "pending"})
            for line in engine.submit(jobs, workdir):
                say(console, line)
            return 0
    if busy or "running" in {record["status"] for record in statuses.values()}:
        return 0
    code = _conclude(console, cells, statuses, False)
    if analyse and not dry_run:
        analysis.analyse(workdir, cells, console, title=spec)
    return code


def queued(workdir: pathlib.Path) -> dict[str, str]:
    """Returns {run id: job and state} of the cells in a cluster's queue, for every launcher used in this directory."""
    found = {}
    for name in ("slurm", "kubernetes"):
        if (workdir / name).is_dir():
            found |= importlib.import_module(f"lmjax.sweeps.launchers.{name}").queued(workdir)
    return found


def status(spec: str, workdir: pathlib.Path, overrides: Mapping[str, Any]) -> int:
    """Prints the table of a sweep's cells from the run directories and the queue; returns 0.

    If the queue cannot be read, a message on standard error says so, and the table is printed without it.
    """
    cells, busy = load_cells(spec, workdir, overrides), {}
    try:
        busy = queued(workdir)
    except InputError as error:
        print(f"lmjax: the queue is not shown: {error}", file=sys.stderr)
    rows = {cell.run.run_id: run_record.status_of(cell.run_dir) for cell in cells}
    for name, record in rows.items():
        record["job"] = busy.get(name)
    console = Console()
    console.print(SweepView(cells, console).table(rows))
    return 0


def predict(spec: str, workdir: pathlib.Path, overrides: Mapping[str, Any]) -> int:
    """Predicts the held-out cells of a sweep; returns 0, or 1 if a fitted cell has not ended yet."""
    cells = load_cells(spec, workdir, overrides)
    fitted, held_out = ([cell for cell in cells if cell.held_out == side] for side in (False, True))
    found = {}
    for _ in range(run_record.HEARTBEAT_SECONDS // 10 + 1):  # file systems may show the end of a run with a delay
        found = {cell.run.run_id: run_record.status_of(cell.run_dir)["status"] for cell in fitted}
        if "running" not in found.values():
            break
        time.sleep(10)
    if missing := [f"{name} is {status}" for name, status in found.items() if status not in ENDED]:
        print(
            f"lmjax: expected every fitted cell to have ended, but {missing[0]} ({len(missing)} of {len(fitted)} "
            "cells); submit the sweep again to train the rest",
            file=sys.stderr,
        )
        return 1
    if held_out:
        analysis.predict_held_out(workdir, fitted, held_out)
    return 0

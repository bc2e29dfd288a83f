"""Trains the cells of a sweep in workers that a launcher starts; by default, one process per CPU core or GPU of this
machine.

A worker is `python -m lmjax train --run-dir DIR ...`. It reports results by its exit code and the status.json of its
cells. Each worker trains several cells, which share its imports, compiled functions and data, and on an accelerator
also its steps (lmjax/pack.py). All state is in the run directories, so this process may be killed and restarted at any
time.
"""

import collections
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from lmjax import parents, run_record, trained
from lmjax.distributed import ENVIRONMENT
from lmjax.errors import InputError
from lmjax.hardware import accelerators, tpu_chips, usable_cores, visible_gpus
from lmjax.process import CORES, PARENT
from lmjax.sweeps.cells import Cell

RETRIES = 3  # a cell that was killed this many times without progress counts as failed
ONE_CHIP = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}  # for libtpu


class Slot(NamedTuple):
    """A place for one worker."""

    name: str
    environment: dict[str, str]


def slots(workers: int = 0) -> list[Slot]:
    """Returns the slots of `workers` workers; 0: one per GPU or TPU chip if JAX can use them, else one per core.

    On CPUs each worker gets an equal share of the cores.
    """
    check_workers(workers)
    kind = accelerators()
    if kind == "gpu" and (gpus := visible_gpus()):
        return [Slot(f"gpu {gpu}", {"CUDA_VISIBLE_DEVICES": gpu}) for gpu in gpus[: workers or len(gpus)]]
    if kind == "tpu":
        chips = range(tpu_chips())[: workers or None]
        return [Slot(f"tpu {chip}", {"TPU_VISIBLE_CHIPS": str(chip), **ONE_CHIP}) for chip in chips]
    cores = usable_cores()
    workers, places = min(workers or len(cores), len(cores)), []
    for share in (cores[i::workers] for i in range(workers)):
        names = ",".join(map(str, share))
        places.append(Slot(f"core {names}", {CORES: names, "OMP_NUM_THREADS": str(len(share)), "JAX_PLATFORMS": "cpu"}))
    return places


def check_workers(workers: int) -> None:
    """Raise InputError for a negative number of workers."""
    if workers < 0:
        raise InputError(f"--workers: expected an integer, 0 or above, got {workers}")


def worker_environment(place: Slot) -> dict[str, str]:
    """Return the environment of a worker: that of this process, plus its slot's, minus that of multi-process runs."""
    inherited = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT and not k.startswith("SLURM_")}
    return {**inherited, **passed_on(), **place.environment}


def passed_on() -> dict[str, str]:
    """Return the environment variables that a worker needs wherever it starts: where its data are, and PYTHONPATH if it
    would not find lmjax without it."""
    found = {name: os.environ[name] for name in ("LMJAX_CACHE", "LMJAX_STORES") if os.environ.get(name)}
    package = str(pathlib.Path(run_record.__file__).resolve().parent.parent)
    if package not in sys.path[1:]:  # imported from the current folder, which workers do not import from
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), package]))
    return found


def worker_command(*arguments: str) -> list[str]:
    """Return the command of a worker. The current folder is not on its Python path, where a user's file such as
    queue.py would shadow the standard module."""
    return [sys.executable, "-P", "-m", "lmjax", *arguments]


def packing(pack: int | str) -> int | str:
    """Return the `pack` of a sweep: 1 instead of "auto" without an accelerator."""
    return 1 if pack == "auto" and not accelerators() else pack


def train_command(cells: Sequence[Cell], pack: int | str = 1, keep: bool = False) -> list[str]:
    """Return the command that trains these cells."""
    command = worker_command("train", "--run-dir", *(str(cell.run_dir) for cell in cells))
    return command + ([] if pack == 1 else ["--pack", str(pack)]) + ["--keep"] * keep


class Handle(Protocol):
    """A started worker."""

    def poll(self) -> int | None:
        """Return the exit code, negative if the worker was killed or lost; None while it waits or runs."""

    def terminate(self) -> None:
        """Ask the worker to save and stop, as SIGTERM does."""


Launch = Callable[[Slot, Sequence[Cell], list[str]], Handle]  # (place, cells, their command) -> handle


def start_process(place: Slot, cells: Sequence[Cell], command: list[str]) -> Handle:
    """The launcher `local`: start a command on this machine; its output goes to the log of its first cell."""
    environment = {**worker_environment(place), PARENT: str(os.getpid())}
    with open(cells[0].run_dir / "log.txt", "a") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


@dataclasses.dataclass
class _Worker:
    cells: list[Cell]
    process: Handle
    steps: list[int]  # newest checkpoint step of each cell when the worker started
    told: bool = False  # whether it was asked to stop


class LocalPool:
    """Runs cells until each is done, failed or diverged.

    Args:
        places: from `slots`.
        watch: called with {run id: status record} several times a second, and once at the end.
        keep: resume cells that were begun by other source code.
        pack: number of cells of equal shape that a worker trains at once; "auto": 1 on CPUs, else measured.
        launch: function that starts a worker: (place, cells, command) -> handle.
    """

    def __init__(
        self,
        places: Sequence[Slot],
        watch: Callable[[dict], None],
        keep: bool = False,
        pack: int | str = "auto",
        launch: Launch = start_process,
    ):
        self.places, self.watch, self.keep, self.launch = places, watch, keep, launch
        self.pack = packing(pack)
        self.workers: dict[str, _Worker] = {}  # by the slot's name
        self.fruitless: collections.Counter = collections.Counter()
        self.stopping = False
        self.ended: list[Cell] = []  # already finished when their turn came

    def run(self, cells: Sequence[Cell]) -> dict[str, dict]:
        """Train all cells that are not done or diverged; return {run id: final status}.

        On SIGINT, SIGTERM or SIGHUP, the workers save and stop, and their cells get the status "preempted".
        """
        for cell in cells:
            cell.run.write(cell.run_dir)
        statuses = {cell.run.run_id: run_record.status_of(cell.run_dir) for cell in cells}
        waiting = collections.deque(
            sorted(
                (cell for cell in cells if statuses[cell.run.run_id]["status"] not in ("done", "diverged")),
                key=lambda cell: -_cost(cell),  # longest first, so that workers end together
            )
        )
        stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        stopping = [number for number in stopping if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        previous = {number: signal.signal(number, self._stop) for number in stopping}
        try:
            while (waiting and not self.stopping) or self.workers:
                self._start(waiting)
                for worker in self.workers.values() if self.stopping else ():
                    if not worker.told:  # a worker that is ending no longer handles the signal
                        worker.told = True
                        worker.process.terminate()
                time.sleep(0.05 if not self.workers else 0.2)
                self._collect(waiting, statuses)
                for worker in self.workers.values():
                    for cell in worker.cells:  # they begin in this order
                        if statuses[cell.run.run_id]["status"] not in ("done", "diverged"):
                            now = statuses[cell.run.run_id] = _status(cell)
                            if now["status"] == "pending":
                                break
                self.watch(statuses)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            for worker in self.workers.values():  # only after an error in this process
                worker.process.terminate()
        for cell in cells:
            if cell in self.ended or statuses[cell.run.run_id]["status"] == "running":
                statuses[cell.run.run_id] = run_record.status_of(cell.run_dir)
        self.watch(statuses)
        return statuses

    def _stop(self, number, frame):
        self.stopping = True

    def _start(self, waiting):
        free = [place for place in self.places if place.name not in self.workers]
        active = {cell.run.run_id for worker in self.workers.values() for cell in worker.cells}
        active |= {cell.run.run_id for cell in waiting}
        elsewhere = []
        for cell in list(waiting) if free and not self.stopping else ():
            if (cell.run_dir / "summary.json").exists():  # finished meanwhile by a worker of a killed sweep
                waiting.remove(cell)
                run_record.mark_done(cell.run_dir, cell.run.steps)
                self.ended.append(cell)
            elif run_record.is_locked(cell.run_dir):  # such a worker still holds it: check again later
                waiting.remove(cell)
                elsewhere.append(cell)
            elif not parents.ready(cell.run, cell.run_dir):
                waiting.remove(cell)
                if parents.parent_of(cell.run.config).run_dir.name in active:
                    elsewhere.append(cell)
                else:
                    self._orphaned(cell)
        for place in free:
            if waiting and not self.stopping:
                self.workers[place.name] = self._launch(place, self._take(waiting))
        waiting.extend(elsewhere)

    def _orphaned(self, cell):
        """Marks a cell as failed whose parent has ended without the checkpoint that the cell needs."""
        parent = parents.parent_of(cell.run.config)
        message = (
            f"expected a checkpoint of step {parent.step} of its parent {parent.run_dir}, which is "
            f"{run_record.status_of(parent.run_dir)['status']} and has steps {trained.steps(parent.run_dir)}; if it is "
            "done, move its directory away to train it again with that checkpoint"
        )
        run_record.write_json(cell.run_dir / "status.json", {**_status(cell), "status": "failed", "message": message})
        self.ended.append(cell)

    def _take(self, waiting) -> list[Cell]:
        """Removes the cells of the next worker from the queue: the longest cell, and others.

        With packs, these are cells of equal shape: an equal share for each free worker, but at most twice its slots.
        Otherwise, cells of equal shape come first, and together the cells cost at most half of a worker's share of the
        remaining work, so that all workers end at about the same time.
        """
        left, shape = sum(map(_cost, waiting)), waiting[0].run.shape.key
        taken = [waiting.popleft()]
        alike = [cell for cell in waiting if cell.run.shape.key == shape]
        if self.pack != 1:
            share = -(-(1 + len(alike)) // (len(self.places) - len(self.workers)))
            taken += alike[: (share if self.pack == "auto" else min(share, 2 * int(self.pack))) - 1]
        need = taken[0].run.config.launch
        cost, known = _cost(taken[0]), set(alike)
        for cell in [*alike, *(cell for cell in waiting if cell not in known)] if self.pack == 1 else ():
            if cost + _cost(cell) <= left / (2 * len(self.places)) and cell.run.config.launch == need:
                cost += _cost(cell)
                taken.append(cell)
        rest = set(taken)
        rest = [cell for cell in waiting if cell not in rest]
        waiting.clear()
        waiting.extend(rest)
        return taken

    def _launch(self, place, cells):
        for cell in cells:
            cell.run.write(cell.run_dir)  # it may have been removed meanwhile
            run_record.write_json(cell.run_dir / "status.json", {**_status(cell), "status": "pending"})
        process = self.launch(place, cells, train_command(cells, self.pack, self.keep))
        return _Worker(cells, process, [max(trained.steps(cell.run_dir), default=0) for cell in cells])

    def _collect(self, waiting, statuses):
        for place, worker in list(self.workers.items()):
            code = worker.process.poll()
            if code is None:
                continue
            del self.workers[place]
            records = [_status(cell) for cell in worker.cells]
            began = [record["status"] != "pending" for record in records]
            began[0] |= not any(began)  # killed before its first cell
            for cell, step, record, counts in zip(worker.cells, worker.steps, records, began, strict=True):
                name, ended = cell.run.run_id, record["status"] in ("done", "diverged", "failed")
                if not ended and not self.stopping and run_record.is_locked(cell.run_dir):
                    waiting.append(cell)  # another process trains it; this one waits for it
                    statuses[name] = record
                    continue
                if (code < 0 or code == 75) and not self.stopping and not ended:
                    if counts:
                        progress = max(trained.steps(cell.run_dir), default=0) > step
                        self.fruitless[name] = 0 if progress else self.fruitless[name] + 1
                    if self.fruitless[name] < RETRIES:
                        waiting.append(cell)
                        record["status"] = "preempted" if counts else "pending"
                        statuses[name] = record
                        continue
                statuses[name] = record if ended else self._unfinished(cell, record, counts, code, worker.cells[0])

    def _unfinished(self, cell, record, began, code, first) -> dict:
        """Returns, and writes to its directory, the final status of a cell whose worker ended before the cell did."""
        if self.stopping and (not began or record["status"] == "preempted"):
            return record
        message = f"the worker ended with code {code}; see {first.run_dir / 'log.txt'}"
        record = {**record, "status": "preempted" if self.stopping else "failed", "message": message}
        try:
            run_record.write_json(cell.run_dir / "status.json", record)
        except FileNotFoundError:
            record["message"] = f"its directory {cell.run_dir} was removed while it was training"
        return record


def _cost(cell: Cell) -> float:
    return cell.run.cost


def _status(cell: Cell) -> dict:
    """Returns the status record; "pending" for a removed directory, "failed" for a damaged record."""
    try:
        return {"status": "pending", **run_record.read_status(cell.run_dir)}
    except InputError as error:
        return {"status": "failed", "message": str(error)}

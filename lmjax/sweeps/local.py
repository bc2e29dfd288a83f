"""Runs the cells of a sweep as processes on this machine: one per CPU core, or one per GPU.

A worker is `python -m lmjax train --run-dir DIR`; its exit code and status.json report the result. All state is in the
run directories, so this process may be killed at any time and restarted.
"""

import collections
import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmjax import run_record, trained
from lmjax.distributed import ENVIRONMENT
from lmjax.errors import InputError
from lmjax.hardware import accelerators, tpu_chips, usable_cores
from lmjax.process import CORES, PARENT
from lmjax.sweeps.cells import Cell

RETRIES = 3  # starts without progress after which a killed cell counts as failed
DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")  # one entry per GPU
ONE_CHIP = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}  # for libtpu


class Slot(NamedTuple):
    """A place for one worker."""

    name: str
    environment: dict[str, str]


def slots(workers: int = 0) -> list[Slot]:
    """Returns the slots of `workers` workers; 0: one per GPU or TPU chip if JAX can use them, else one per core.

    On CPUs each worker gets an equal share of the cores.
    """
    if workers < 0:
        raise InputError(f"--workers: expected an integer, 0 or above, got {workers}")
    kind = accelerators()
    if kind == "gpu" and (gpus := _gpus()):
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


def _gpus() -> list[str]:
    """The GPUs this process may use, by CUDA_VISIBLE_DEVICES, else nvidia-smi, else the driver's list."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listing = subprocess.run(query, capture_output=True, text=True, check=False)
        if listing.returncode == 0:  # else it prints an error, not a list
            return listing.stdout.split()
    return [str(i) for i, _ in enumerate(DRIVER.glob("*"))] or ["0"]  # one under WSL2, which has no such list


def worker_environment(place: Slot) -> dict[str, str]:
    """Return the environment of a worker: this process's, with its slot, without variables of multi-process runs."""
    inherited = {k: v for k, v in os.environ.items() if k not in ENVIRONMENT and not k.startswith("SLURM_")}
    package = str(pathlib.Path(run_record.__file__).resolve().parent.parent)
    if package not in sys.path[1:]:  # imported from the current folder, which workers do not import from
        inherited["PYTHONPATH"] = os.pathsep.join(filter(None, [inherited.get("PYTHONPATH"), package]))
    return {**inherited, **place.environment}


def worker_command(*arguments: str) -> list[str]:
    """Return the command of a worker: lmjax without the current folder on Python's path, where a user's `queue.py`
    would shadow the standard module."""
    return [sys.executable, "-P", "-m", "lmjax", *arguments]


@dataclasses.dataclass
class _Worker:
    cell: Cell
    process: subprocess.Popen
    step: int  # at its start
    told: bool = False  # to stop


class LocalPool:
    """Runs cells until each is done, failed or diverged.

    Args:
        places: from `slots`.
        watch: called about twice a second with {run id: status record}, and once at the end.
        keep: resume cells that other source code began.
    """

    def __init__(self, places: Sequence[Slot], watch: Callable[[dict], None], keep: bool = False):
        self.places, self.watch, self.keep = places, watch, keep
        self.workers: dict[str, _Worker] = {}  # by the slot's name
        self.fruitless: collections.Counter = collections.Counter()
        self.stopping = False
        self.ended: list[Cell] = []  # already finished when their turn came

    def run(self, cells: Sequence[Cell]) -> dict[str, dict]:
        """Return {run id: final status}. Failed cells are restarted; finished and diverged ones are not.

        SIGINT, SIGTERM or SIGHUP to this process stops the workers, which save; their cells come back as "preempted".
        """
        for cell in cells:
            cell.run.write(cell.run_dir)
        statuses = {cell.run.run_id: run_record.status_of(cell.run_dir) for cell in cells}
        waiting = collections.deque(
            sorted(
                (cell for cell in cells if statuses[cell.run.run_id]["status"] not in ("done", "diverged")),
                key=lambda cell: -cell.run.derived["flops_exact"],  # longest first, so that workers end together
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
                    statuses[worker.cell.run.run_id] = _status(worker.cell)
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
        elsewhere = collections.deque()
        for place in self.places:
            while waiting and place.name not in self.workers and not self.stopping:
                cell = waiting.popleft()
                if (cell.run_dir / "summary.json").exists():  # finished meanwhile by a worker of a killed sweep
                    run_record.mark_done(cell.run_dir, cell.run.steps)
                    self.ended.append(cell)
                    continue
                if run_record.is_locked(cell.run_dir):  # such a worker still holds it: check again later
                    elsewhere.append(cell)
                    continue
                self.workers[place.name] = self._launch(place, cell)
        waiting.extend(elsewhere)

    def _launch(self, place, cell):
        cell.run.write(cell.run_dir)  # it may have been removed meanwhile
        run_record.write_json(cell.run_dir / "status.json", {**_status(cell), "status": "pending"})
        environment = {**worker_environment(place), PARENT: str(os.getpid())}
        command = worker_command("train", "--run-dir", str(cell.run_dir))
        command += ["--keep"] if self.keep else []
        with open(cell.run_dir / "log.txt", "a") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return _Worker(cell, process, max(trained.steps(cell.run_dir), default=0))

    def _collect(self, waiting, statuses):
        for place, worker in list(self.workers.items()):
            code = worker.process.poll()
            if code is None:
                continue
            del self.workers[place]
            cell, name = worker.cell, worker.cell.run.run_id
            record = _status(cell)
            killed = code < 0 or code == 75
            if killed and not self.stopping:
                progress = max(trained.steps(cell.run_dir), default=0) > worker.step
                self.fruitless[name] = 0 if progress else self.fruitless[name] + 1
                if self.fruitless[name] < RETRIES:
                    waiting.append(cell)
                    record["status"] = "preempted"
            if record["status"] not in ("done", "diverged", "failed", "preempted"):
                message = f"the worker ended with code {code}; see {cell.run_dir / 'log.txt'}"
                record = {**record, "status": "preempted" if self.stopping else "failed", "message": message}
                try:
                    run_record.write_json(cell.run_dir / "status.json", record)
                except FileNotFoundError:
                    record["message"] = f"its directory {cell.run_dir} was removed while it was training"
            statuses[name] = record


def _status(cell: Cell) -> dict:
    """The status record; "pending" for a removed directory, "failed" for a damaged record."""
    try:
        return {"status": "pending", **run_record.read_status(cell.run_dir)}
    except InputError as error:
        return {"status": "failed", "message": str(error)}

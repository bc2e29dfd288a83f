"""The data of the live page: the cells in a directory of runs, and the law of the finished ones.

Files are read on request and only if they changed. Links below the directory are not followed; nothing is written.
"""

import os
import pathlib
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax import run_record
from lmjax.errors import InputError

if TYPE_CHECKING:  # it imports jax, which reading runs does not need
    from lmjax.sweeps.cells import Cell

POINTS = 160  # points kept of each loss curve, evenly spaced in log tokens
STAGES = 6  # number of fits shown, to a growing number of finished runs
RESAMPLES = 200  # bootstrap resamples of a fit: a tenth of a second for 40 runs
ORDER = ("running", "failed", "diverged", "unreadable", "preempted", "pending", "done")  # order of rows in the table
ENDED = ("done", "failed", "diverged", "unreadable")
NOW = ("validation_loss", "loss", "tokens_per_second", "flops_per_second", "eta_seconds")  # keys of status.json


class Board:
    """The state of a directory of runs.

    Args:
        workdir: the directory.
        cells: show only these cells of a sweep, including those without a directory yet; empty: show all runs.
    """

    def __init__(self, workdir: pathlib.Path, cells: "Sequence[Cell]" = ()):
        self.workdir = workdir.resolve()
        self.cells = {
            cell.run_dir.name: {"derived": dict(cell.run.derived), "held_out": cell.held_out, "imported": False}
            for cell in cells
        }
        self.law = Law(self.workdir, {name: cell["held_out"] for name, cell in self.cells.items()})
        self.known: dict[str, tuple] = {}  # path -> (signature of the file, what was read or its error)
        self.rows: dict[str, dict] = {}
        self.read_at, self.lock = 0.0, threading.Lock()

    def refresh(self) -> dict[str, dict]:
        """Return {name: row} of the runs in the order of the table; files are read at most once a second.

        A row has run, status, message, held_out, N, D, C (FLOPs without inherited ones), step, steps, share (completed
        share of its steps), loss, validation_loss, tokens_per_second, flops_per_second, eta_seconds (None if unknown)
        and curves: "train" and "validation", each an array [2, n] of tokens and loss.
        """
        with self.lock:
            if time.monotonic() - self.read_at > 1:
                names = {entry.name for entry in os.scandir(self.workdir) if _is_folder(entry)} | set(self.cells)
                found = [self._row(name) for name in (self.cells or names)]
                found = [row for row in found if row is not None]
                found.sort(key=lambda row: (ORDER.index(row["status"]), row["C"], row["run"]))
                self.rows = {row["run"]: row for row in found}
                done = {name: self.signature(name) for name, row in self.rows.items() if row["status"] == "done"}
                self.law.update(done)
                self.read_at = time.monotonic()
            return self.rows

    def signature(self, name: str) -> tuple | None:
        """Return a signature that changes whenever the result of a run does."""
        return self.known.get(f"{self.workdir}/{name}/summary.json", (None,))[0]

    def log(self, name: str, lines: int = 40) -> str:
        """Return the last lines of a run's log; "" if it has none. The name must be in `rows`."""
        try:
            with open(os.open(self.workdir / name / "log.txt", os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - 20_000, 0))
                return "\n".join(file.read().decode("utf8", "replace").splitlines()[-lines:])
        except OSError:  # none, or a link
            return ""

    def _file(self, path: str, parse: Callable[[pathlib.Path], Any]) -> Any:
        """Returns parse(file), cached until the file changes; None if there is no file."""
        try:
            found = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            self.known.pop(path, None)
            return None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: expected a file, got a link or a folder, which is not followed")
        signature = found.st_mtime_ns, found.st_size, found.st_ino
        if self.known.get(path, (None,))[0] != signature:
            try:
                value = parse(pathlib.Path(path))
            except InputError as error:
                value = error
            self.known[path] = signature, value
        value = self.known[path][1]
        if isinstance(value, InputError):
            raise value
        return value

    def _row(self, name) -> dict | None:
        """Returns the row of a run; None for a folder that is not a run."""
        folder, run = f"{self.workdir}/{name}", self.cells.get(name)
        empty = {"run": name, "message": "", "held_out": False, "N": np.nan, "D": np.nan, "C": 0.0, "curves": {}}
        empty |= {"step": 0, "steps": 0, "share": 0.0, **dict.fromkeys(NOW)}
        try:
            record = self._file(f"{folder}/config.json", _facts)
            if record is None and run is None or (record or {}).get("imported"):
                return None
            run = {**(record or {}), **(run or {})}
            status = {"status": "pending", **(self._file(f"{folder}/status.json", _status) or {})}
            summary = self._file(f"{folder}/summary.json", run_record.read_json)
            curves = self._file(f"{folder}/metrics.jsonl", _curves) or {}
            if summary is not None:
                status |= {"status": "done", "validation_loss": summary.get("loss"), "loss": summary.get("train_loss")}
            elif status["status"] == "running":  # which a killed process leaves behind
                status["status"] = run_record.status_of(pathlib.Path(folder))["status"]
        except run_record.NotARun:
            return None
        except InputError as error:
            return {**empty, "status": "unreadable", "message": str(error)}
        derived = run["derived"]
        inherited, per_step = derived.get("flops_inherited", 0), derived.get("flops_per_step", 0)
        steps, start = derived.get("steps", 0), inherited / per_step if per_step else 0
        step = steps if status["status"] == "done" else max(status.get("step", 0), start)
        row = {key: status.get(key) for key in NOW}
        if status["status"] != "running":  # its last speed is no longer true
            row |= dict.fromkeys(NOW[2:])
        return {
            **empty,
            **row,
            "status": status["status"],
            "message": status.get("message", ""),
            "held_out": run["held_out"],
            "N": derived.get("n_total", np.nan),
            "D": derived.get("tokens", np.nan),
            "C": derived.get("flops_exact", 0) - inherited,
            "step": step,
            "steps": steps,
            "share": (step - start) / (steps - start) if steps > start else 0.0,
            "curves": curves,
        }


def _is_folder(entry):
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")


def _facts(path):
    """Returns the contents of a config.json that the page needs."""
    record = run_record.read_record(path.parent) or {"config": {}}
    held_out = record["config"].get("run", {}).get("held_out", False)
    imported = record.get("objective_version") == "imported"
    return {"derived": record.get("derived", {}), "held_out": held_out, "imported": imported}


def _status(path):
    return run_record.read_status(path.parent)


def _curves(path) -> dict[str, np.ndarray]:
    """Returns {"train" | "validation": [2, n] of tokens and loss} from a metrics.jsonl."""
    lines = run_record.read_metrics(path)
    pairs = {"train": "loss", "validation": "validation_loss"}
    found = {
        name: np.array([(line["tokens"], line[key]) for line in lines if key in line], float).reshape(-1, 2).T
        for name, key in pairs.items()
    }
    return {name: curve[:, log_spaced(curve.shape[1], POINTS)] for name, curve in found.items()}


def log_spaced(length: int, most: int) -> np.ndarray:
    """Return at most `most` indices below `length`, logarithmically spaced, including both ends.

    Example: log_spaced(1000, 4) -> [0, 9, 99, 999]; log_spaced(3, 4) -> [0, 1, 2]
    """
    if length <= most:
        return np.arange(length)
    return np.unique(np.geomspace(1, length, most).round().astype(int)) - 1


class Law:
    """The law of the finished runs. It is fitted in a thread when the page is requested and the runs have changed.

    Args:
        workdir: the directory of runs.
        held_out: {name: whether it is held out} of a sweep's cells; {}: taken from sweep.json, else from the runs.

    Attributes:
        fits: {label of a group: Fit}; the label is "" if there is one group.
        stages: {label: fits to growing numbers of runs, in the order in which they finished}.
        error: the reason why there is no fit; "" otherwise.
        busy: whether a fit is running.
    """

    def __init__(self, workdir: pathlib.Path, held_out: Mapping[str, bool]):
        self.workdir, self.held_out = workdir, held_out
        self.fits, self.stages, self.error, self.busy = {}, {}, "no run has finished yet", False
        self.fitted: dict[str, Any] = {}  # {name: signature} of the runs in the fits
        self.records: dict[str, tuple] = {}  # name -> (signature, row of run_record.read_row)

    def update(self, done: Mapping[str, Any]) -> None:
        """Start a fit if the finished runs, {name: signature}, differ from those of the last fit."""
        if done and not self.busy and dict(done) != self.fitted:
            self.busy, self.fitted = True, dict(done)
            threading.Thread(target=self._fit, name="law", daemon=True).start()

    def _fit(self):
        try:
            self.fits, self.stages = self._fits()
            self.error = ""
        except InputError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"the fit failed ({type(error).__name__}: {error}); lmjax fit shows where"
            raise
        finally:
            self.busy = False

    def _fits(self):
        import pandas

        from lmjax.scaling import fitting, settings
        from lmjax.sweeps import analysis

        for name, signature in self.fitted.items():
            if self.records.get(name, (None,))[0] != signature:
                self.records[name] = signature, run_record.read_row(self.workdir / name)
        held_out = self.held_out or (run_record.read_json(self.workdir / "sweep.json") or {}).get("runs", {})
        held_out = held_out if set(held_out) & set(self.fitted) else {}  # of another sweep
        rows = [self.records[name][1] for name in self.fitted if not held_out or name in held_out]
        rows.sort(key=lambda row: str(row.get("finished", "")))
        runs = pandas.DataFrame(rows)
        if held_out:
            runs["held_out"] = runs["run_id"].map(held_out)
        fits, stages = {}, {}
        for label, where in analysis.groups(runs).items():
            group = settings.select_rows(runs, where)
            fits[label] = fitting.fit(group, resamples=RESAMPLES, profiles=False)
            fitted = group[~group["held_out"].astype(bool)]
            sizes = np.unique(np.linspace(6, len(fitted), STAGES).round().astype(int)) if len(fitted) > 6 else ()
            found = [fitting.fit(fitted.head(size), resamples=0) for size in sizes[:-1]]
            stages[label] = [fit for fit in (*found, fits[label]) if not fit.refused]
        return fits, stages

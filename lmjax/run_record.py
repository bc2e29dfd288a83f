"""The record of a run: training writes it, analysis reads it.

`<workdir>/<run id>/` holds

    config.json    {"run_id", "config" (fully resolved), "derived", "data", "objective_version"}: written first
    status.json    {"status": pending | running | done | failed | diverged | preempted, "step", "steps", "heartbeat"
                   (unix seconds), "attempts", ...}: updated during training
    metrics.jsonl  one JSON object per line, strictly increasing "step"
    summary.json   the results: written once, at the end
    tokenizer/     the tokenizer of the data
    checkpoints/   Orbax
    lock           held by the process that trains the run
"""

import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from lmjax import locks
from lmjax.errors import InputError

STATUSES = ("pending", "running", "preempted", "done", "failed", "diverged")
NOTES = ".bucket"  # notes of a working copy of a run in a bucket (bucket.py): owner, lock.json of another machine
HEARTBEAT_SECONDS = 120  # without a status update for so long, a run on another machine counts as killed


def write_json(path: pathlib.Path, record: dict) -> None:
    """Write a JSON file atomically: readers see the old or the new file, never a partial one."""
    replace_file(path, json.dumps(record, indent=1, allow_nan=False) + "\n")


def replace_file(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file atomically, even if the machine crashes: fsync and rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode("utf8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict | None:
    """Return the object in the file, or None if there is no file.

    Raises:
        InputError: the file is not a JSON object; it is left unchanged.
    """
    try:
        record = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is corrupt ({error}); move it away and run the same command again") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(record).__name__}; move it away")
    return record


def read_record(run_dir: pathlib.Path) -> dict | None:
    """Return config.json after checking its structure, or None if there is no file.

    Raises:
        InputError: not an lmjax run; an entry of the wrong type.
    """
    path = run_dir / "config.json"
    record = read_json(path)
    if record is None:
        return None
    if not {"config", "run_id"} & set(record):
        raise NotARun(f"{run_dir} is not a run: its config.json has no 'config'; convert a model with lmjax import")
    check_record(record, path)
    return record


def check_record(record: dict, origin: str | os.PathLike) -> None:
    """Raise InputError, which names the origin, if an entry of a config.json has the wrong type."""
    parts = {name: record.get(name, {}) for name in ("config", "derived", "data")}
    if isinstance(parts["config"], dict):
        parts |= {f"config.{name}": parts["config"].get(name) for name in ("model", "objective", "data")}
    wrong = [name for name, part in parts.items() if not isinstance(part, dict)]
    if wrong or not isinstance(record.get("run_id"), str):
        raise InputError(
            f"{origin}: expected JSON objects and a string 'run_id', got another type for "
            f"{', '.join(wrong) or 'run_id'}; restore the file from a copy or remove the run"
        )


class NotARun(InputError):
    """A folder without a run: another program wrote its config.json, e.g. an exported model, or it was removed."""


def is_finished(run_dir: pathlib.Path, run_id: str) -> bool:
    """Return whether summary.json holds this run's result.

    Raises:
        InputError: it belongs to another run, or its loss is not finite.
    """
    path = run_dir / "summary.json"
    summary = read_json(path)
    if summary is None:
        return False
    check_summary(summary, run_id, path)
    return True


def has_begun(run_dir: pathlib.Path) -> bool:
    """Return whether the directory holds a result or a checkpoint."""
    return (run_dir / "summary.json").exists() or any((run_dir / "checkpoints").glob("*"))


def check_summary(summary: dict, run_id: str, origin: str | os.PathLike) -> None:
    """Raise InputError if a summary belongs to another run than this one, or its loss is not finite."""
    owner, loss = str(summary.get("run_id", run_id)), summary.get("loss")
    if owner.rsplit("-", 1)[-1] != run_id.rsplit("-", 1)[-1]:
        raise InputError(f"{origin} belongs to run {owner}, not {run_id}; move it away and run the same command again")
    if type(loss) not in (int, float) or not math.isfinite(loss):
        raise InputError(f"{origin}: expected a finite loss, got {loss!r}; move it away and run the same command again")


def mark_done(run_dir: pathlib.Path, steps: int) -> None:
    """Set status.json to "done" if summary.json exists already."""
    status = read_status(run_dir)
    if status.get("status") != "done":
        write_json(run_dir / "status.json", {**status, "status": "done", "step": steps, "steps": steps})


class InUse(InputError):
    """Another process holds the lock of a run or of a directory of runs."""


class Lock:
    """Exclusive lock on a run (or a directory of runs), released whenever the process ends."""

    def __init__(self, run_dir: pathlib.Path):
        self.path = run_dir / "lock"

    def __enter__(self):
        self.file = locks.open_lock(self.path)
        owned = locks.acquire(self.file)
        if owned is False:
            owner = self.file.read().strip() or "another process"
            self.file.close()
            raise InUse(f"{self.path.parent} is in use by {owner}; wait for it or stop it")
        if owned is None:
            print(
                f"warning: the file system of {self.path.parent} has no locks; make sure that no other process uses "
                "this directory",
                file=sys.stderr,
            )
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self.file.flush()
        for leftover in self.path.parent.glob(".*.json*.*"):  # a process was killed while it wrote them
            if leftover.suffix[1:].isdigit():
                leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *_):
        self.file.close()


def is_locked(run_dir: pathlib.Path) -> bool | None:
    """Return whether a process on this machine, or another one that shares the run's bucket, is training the run; None
    if the file system has no locks."""
    elsewhere = read_json(run_dir / NOTES / "lock.json")
    return True if elsewhere and is_fresh(elsewhere) else locks.is_held(run_dir / "lock")


def is_fresh(lock: dict) -> bool:
    """Return whether a lock in a bucket was not released, and renewed in the last two minutes."""
    return bool(lock["time"]) and abs(time.time() - lock["time"]) < HEARTBEAT_SECONDS


class Status:
    """status.json of this attempt; wall time and number of attempts accumulate.

    Args:
        run_dir, steps: of the run.
        writes: whether this process writes the file.
        packed: number of runs that this process trains at a time; each has an equal share of its wall time.
    """

    def __init__(self, run_dir: pathlib.Path, steps: int, writes: bool = True, packed: int = 1):
        self.path, self.writes, self.began, self.beaten = run_dir / "status.json", writes, time.monotonic(), 0.0
        before = read_status(run_dir) if writes else {}
        self.attempts, self.packed = before.get("attempts", 0) + 1, packed
        self.seconds_before = before.get("wall_seconds", 0.0)
        self.slot_seconds_before = before.get("slot_seconds", self.seconds_before)
        self.facts = {"steps": steps, "attempts": self.attempts, "pid": os.getpid(), "host": os.uname().nodename}
        self.facts |= {"packed": packed} if packed > 1 else {}

    def wall_seconds(self) -> float:
        """Return the wall time of all attempts so far, in seconds."""
        return self.seconds_before + time.monotonic() - self.began

    def slot_seconds(self) -> float:
        """Return the run's share of the wall time of all attempts: each attempt's, divided by `packed`."""
        return self.slot_seconds_before + (time.monotonic() - self.began) / self.packed

    def write(self, status: str, **facts) -> None:
        """Replace status.json."""
        self.facts.update(facts)
        if self.writes:
            now = {"heartbeat": time.time(), "wall_seconds": self.wall_seconds(), "slot_seconds": self.slot_seconds()}
            write_json(self.path, {"status": status, **self.facts, **now})

    def beat(self, **facts) -> None:
        """Update status.json to "running" with these facts, at most once a second."""
        if time.monotonic() - self.beaten > 1:
            self.beaten = time.monotonic()
            self.write("running", **{k: v for k, v in facts.items() if math.isfinite(v)})


def read_status(run_dir: pathlib.Path) -> dict:
    """Return status.json unchanged, {} if there is no file.

    Raises:
        InputError: corrupt, an unknown status, or an entry of another type than lmjax writes.
    """
    path = run_dir / "status.json"
    record = read_json(path) or {}
    if record.get("status", "pending") not in STATUSES:
        raise InputError(f"{path}: unknown status {record['status']!r}; move it away")
    for name in ("attempts", "wall_seconds", "slot_seconds", "heartbeat", "step"):
        if type(record.get(name, 0)) not in (int, float):
            raise InputError(f"{path}: expected a number for {name!r}, got {record[name]!r}; move the file away")
    return record


def status_of(run_dir: pathlib.Path) -> dict:
    """Return the run's status record; {"status": "pending"} before it began.

    A run with status "running" that no process holds was killed and is returned as "preempted", and so is a run with
    status "done" that has lost its summary. If locks are not available (another machine, a file system without locks),
    it counts as running if its heartbeat differs from this machine's clock by less than two minutes.
    """
    record = {"status": "pending", **read_status(run_dir)}
    if record["status"] == "running":
        held = is_locked(run_dir)
        unknown = held is None or record.get("host") != os.uname().nodename
        beating = abs(time.time() - record.get("heartbeat", 0)) < HEARTBEAT_SECONDS
        if not held and not (unknown and beating):
            record["status"] = "preempted"
    elif record["status"] == "done" and record.get("steps") != 0 and not (run_dir / "summary.json").exists():
        record["status"] = "preempted"  # an imported model has 0 steps, and no summary
    return record


def read_metrics(path: pathlib.Path) -> list[dict]:
    """Return the lines of a metrics.jsonl, oldest first.

    A truncated last line, left by a kill, is dropped.

    Raises:
        InputError: a corrupt line that is not the last; steps that do not increase.
    """
    if not path.exists():
        return []
    try:
        return parse_metrics(path.read_text("utf8"), path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is corrupt ({error}); repair the file or move it away") from error


def parse_metrics(text: str, path: str | os.PathLike) -> list[dict]:
    """Return the records in the text of a metrics.jsonl; see `read_metrics`. The path is for the messages."""
    lines, records = text.split("\n"), []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path} line {number} is corrupt ({error!r}); repair or remove that line") from error
        if records and step <= records[-1]["step"]:
            raise InputError(f"{path} line {number}: step {step} after step {records[-1]['step']}; steps must increase")
        records.append(record)
    return records


def find_runs(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Return the run directories directly below workdir, sorted by name; those being written begin with a dot."""
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"no directory {workdir}")
    return sorted(path.parent for path in workdir.glob("*/config.json") if not path.parent.name.startswith("."))


def read_runs(workdir: str | os.PathLike):
    """Return a pandas table, one row per run: the summary's facts, the status, and the config as "config.<key>".

    Runs that failed, diverged or have not ended are included, with NaN for missing results. A run whose files cannot be
    read has the status "unreadable", with the reason as its message. Folders whose config.json another program wrote
    are skipped. Both are also reported on standard error.

    Raises:
        InputError: no runs in the directory.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for run_dir in find_runs(pathlib.Path(workdir)):
        try:
            rows.append(read_row(run_dir))
        except NotARun as error:
            print(f"left out: {error}", file=sys.stderr)
        except InputError as error:
            print(f"warning: {run_dir.name} cannot be read: {error}", file=sys.stderr)
            unread = {"status": "unreadable", "message": str(error), "held_out": False, "imported": False}
            rows.append({"run_id": run_dir.name, **unread})
    if not rows:
        raise InputError(f"no runs in {workdir}; expected directories with a config.json, as lmjax sweep makes them")
    table = pandas.DataFrame(rows)
    if "loss" not in table:
        table["loss"] = float("nan")
    return table


def read_row(run_dir: pathlib.Path) -> dict[str, Any]:
    """Return the row of one run in `read_runs`."""
    from lmjax.config import settings_of

    record = read_record(run_dir)
    if record is None:
        raise NotARun(f"{run_dir}: its config.json was removed while the runs were read")
    # a key that did not exist when the run was written has its default: runs of both kinds can be fitted together
    settings = settings_of(record)
    config = {f"config.{k}": str(v) if isinstance(v, list) else v for k, v in settings.items()}
    summary = read_json(run_dir / "summary.json") or {}
    status = status_of(run_dir)
    return {
        "run_id": run_dir.name,
        **record["derived"],
        "held_out": settings.get("run.held_out", False),  # an imported model has none
        "imported": record.get("objective_version") == "imported",
        **{k: v for k, v in summary.items() if not isinstance(v, (dict, list))},
        "status": status["status"],
        "attempts": status.get("attempts", 0),
        "message": status.get("message", ""),
        **config,
    }

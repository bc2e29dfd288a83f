"""The record of a run: the only thing between training and analysis.

`<workdir>/<run id>/` holds
    config.json    {"run_id", "config" (fully resolved), "derived", "data", "objective_version"}: written first
    status.json    {"status": pending | running | done | failed | diverged | preempted, "step", "steps",
    "heartbeat" (unix
                   seconds), "attempts", ...}: rewritten while training, by rename
    metrics.jsonl  one JSON object a line, strictly increasing "step"
    summary.json   the results: written once, at the end
    checkpoints/   Orbax
    lock           held by the process that trains the run
"""

import fcntl
import json
import math
import os
import pathlib
import sys
import time
from typing import Any

from lmjax.errors import InputError

STATUSES = ("pending", "running", "preempted", "done", "failed", "diverged")


def write_json(path: pathlib.Path, record: dict) -> None:
    """Writes a JSON file so that readers see the old or the new one, never a part: temporary file, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf8") as file:
            json.dump(record, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict | None:
    """Returns the object in the file, or None if there is no file.

    Raises:
        InputError: the file is not a JSON object; it is left as it is.
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


def mark_done(run_dir: pathlib.Path, steps: int) -> None:
    """Makes status.json say "done" where summary.json says so already."""
    status = read_json(run_dir / "status.json") or {}
    if status.get("status") != "done":
        write_json(run_dir / "status.json", {**status, "status": "done", "step": steps, "steps": steps})


class Lock:
    """Exclusive right to a run (or to a directory of runs), held until the process ends, however it ends (flock)."""

    def __init__(self, run_dir: pathlib.Path):
        self.path = run_dir / "lock"

    def __enter__(self):
        self.file = open(self.path, "a+")  # noqa: SIM115 - open while the run lasts
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.seek(0)
            owner = self.file.read().strip() or "another process"
            self.file.close()
            raise InputError(f"{self.path.parent} is in use by {owner}; wait for it or stop it") from error
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self.file.flush()
        return self

    def __exit__(self, *_):
        self.file.close()


def is_locked(run_dir: pathlib.Path) -> bool:
    """Returns whether a living process of this machine trains the run."""
    try:
        with open(run_dir / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


class Status:
    """status.json of this attempt; wall time and attempts add up over attempts."""

    def __init__(self, run_dir: pathlib.Path, steps: int, writes: bool = True):
        self.path, self.writes, self.began, self.beaten = run_dir / "status.json", writes, time.monotonic(), 0.0
        before = (read_json(self.path) or {}) if writes else {}
        self.attempts = before.get("attempts", 0) + 1
        self.seconds_before = before.get("wall_seconds", 0.0)
        self.facts = {"steps": steps, "attempts": self.attempts, "pid": os.getpid(), "host": os.uname().nodename}

    def wall_seconds(self) -> float:
        """Returns the seconds of all attempts so far."""
        return self.seconds_before + time.monotonic() - self.began

    def write(self, status: str, **facts) -> None:
        """Replaces status.json."""
        self.facts.update(facts)
        if self.writes:
            now = {"heartbeat": time.time(), "wall_seconds": self.wall_seconds()}
            write_json(self.path, {"status": status, **self.facts, **now})

    def beat(self, **facts) -> None:
        """Says that the run goes on, at most once a second."""
        if time.monotonic() - self.beaten > 1:
            self.beaten = time.monotonic()
            self.write("running", **{k: v for k, v in facts.items() if math.isfinite(v)})


def status_of(run_dir: pathlib.Path) -> dict:
    """Returns the run's status record; {"status": "pending"} before it began.

    A run that says "running" but is held by no process was killed: it comes back as "preempted" unless its heartbeat
    is younger than two minutes and from another machine.
    """
    record = read_json(run_dir / "status.json") or {"status": "pending"}
    if record.get("status") not in STATUSES:
        raise InputError(f"{run_dir / 'status.json'}: unknown status {record.get('status')!r}; move it away")
    if record["status"] == "running" and not is_locked(run_dir):
        elsewhere = record.get("host") != os.uname().nodename
        if not (elsewhere and time.time() - record.get("heartbeat", 0) < 120):
            record["status"] = "preempted"
    return record


def read_metrics(path: pathlib.Path) -> list[dict]:
    """Returns the lines of a metrics.jsonl, oldest first.

    A last line cut short by a kill is left out (it was never complete). Anything else that cannot be read raises.

    Raises:
        InputError: a corrupt line that is not the last; steps that do not increase.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is corrupt ({error}); mend or move it") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            step = record["step"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise InputError(f"{path} line {number} is corrupt ({error!r}); mend or remove that line") from error
        if records and step <= records[-1]["step"]:
            raise InputError(f"{path} line {number}: step {step} after step {records[-1]['step']}; steps must increase")
        records.append(record)
    return records


def find_runs(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the run directories directly below workdir, sorted by name; those being written begin with a dot."""
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"no directory {workdir}")
    return sorted(path.parent for path in workdir.glob("*/config.json") if not path.parent.name.startswith("."))


def read_runs(workdir: str | os.PathLike):
    """Returns a pandas table, one row per run: the summary's facts, the status, and the config as "config.<key>".

    Runs that failed, diverged or have not ended are rows too, with NaN where a result is missing. A folder whose
    config.json another program wrote is left out, aloud.

    Raises:
        InputError: no runs there; a corrupt file, named.
    """
    import pandas

    from lmjax.config import flatten

    rows: list[dict[str, Any]] = []
    for run_dir in find_runs(pathlib.Path(workdir)):
        record = read_json(run_dir / "config.json") or {}
        if record and not {"config", "run_id"} & set(record):  # another program's, e.g. an exported model
            print(f"left out: {run_dir} is no run of lmjax", file=sys.stderr)
            continue
        config = {
            f"config.{k}": str(v) if isinstance(v, list) else v for k, v in flatten(record.get("config", {})).items()
        }
        summary = read_json(run_dir / "summary.json") or {}
        summary = {k: v for k, v in summary.items() if not isinstance(v, (dict, list))}
        status = status_of(run_dir)
        rows.append(
            {
                "run_id": run_dir.name,
                **record.get("derived", {}),
                "held_out": record.get("config", {}).get("run", {}).get("held_out", False),
                "imported": record.get("objective_version") == "imported",
                **summary,
                "status": status["status"],
                "attempts": status.get("attempts", 0),
                "message": status.get("message", ""),
                **config,
            }
        )
    if not rows:
        raise InputError(f"no runs in {workdir}; expected directories with a config.json, as lmjax sweep makes them")
    table = pandas.DataFrame(rows)
    if "loss" not in table:
        table["loss"] = float("nan")
    return table

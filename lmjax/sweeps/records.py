"""Records files: the finished runs of a directory in one parquet file, to commit them or to continue a sweep elsewhere.

A file has one row per run, with the columns of run_record.read_runs, so that `lmjax fit` and scaling.read_table can
read it, and three text columns: `record_json` (config.json), `summary_json` and `metrics_jsonl` (thinned). It does not
contain checkpoints, evaluations, process ids or host names.

`pack` writes a file, `read` returns its runs, and `unpack` writes them as run directories of a sweep, without
checkpoints. Names in a file are only compared with the ids of the sweep's cells and are never used as paths.
"""

import collections
import contextlib
import io
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmjax import run_record
from lmjax.errors import InputError
from lmjax.format import plural

if TYPE_CHECKING:  # these import jax, which packing and reading do not need
    import pandas

    from lmjax.sweeps.cells import Cell

TEXT = ("record_json", "summary_json", "metrics_jsonl")
LINES = 100  # lines of training loss kept of each run


def pack(workdir: pathlib.Path, out: pathlib.Path) -> list[str]:
    """Writes the finished runs of a directory to a records file; equal runs give byte-identical files.

    Args:
        workdir: a directory of runs.
        out: the file to write, ending in .parquet.

    Returns:
        Messages for the user: what was packed, what was left out, and what will not work on another machine.

    Raises:
        InputError: no finished run; two directories of one run; a record that cannot be read.
    """
    if out.suffix != ".parquet":
        raise InputError(f"--records: expected a file ending in .parquet, got {out}")
    found: dict[str, dict] = {}
    left_out: collections.Counter = collections.Counter()
    for run_dir in run_record.find_runs(workdir):
        try:
            record = run_record.read_record(run_dir)
        except run_record.NotARun:
            continue
        if record is None or not run_record.is_finished(run_dir, record["run_id"]):
            imported = record is not None and record.get("objective_version") == "imported"
            left_out["imported" if imported else run_record.status_of(run_dir)["status"]] += 1
        elif record["run_id"] in found:
            raise InputError(f"{workdir}: expected one directory of run {record['run_id']}, got two; move one away")
        else:
            found[record["run_id"]] = _row(run_dir, record)
    if not found:
        raise InputError(f"{workdir}: expected finished runs, got none ({_counts(left_out)})")
    run_record.replace_file(out, _parquet([found[name] for name in sorted(found)]))
    said = f"packed {plural(len(found), 'finished run')} into {out} ({out.stat().st_size / 1e3:.0f} kB)"
    lines = [said + (f"; left out: {_counts(left_out)}" if left_out else "")]
    if tied := [row["run_id"] for row in found.values() if _has_absolute_path(row)]:
        lines.append(
            f"warning: the data.sources of {len(tied)} runs hold an absolute path, which is part of the run id and of "
            "the file: another machine counts these cells as done only if its text is at the same path"
        )
    return lines


def _row(run_dir, record) -> dict[str, Any]:
    objective = record["config"]["objective"]
    if objective.get("file"):  # the content of the file is part of objective_version; its folder is this machine's
        objective["file"] = pathlib.PurePath(objective["file"]).name
    if plugins := record["config"].get("plugins"):
        record["config"]["plugins"] = [pathlib.PurePath(file).name for file in plugins]
    if parent := record["config"].get("init", {}).get("from"):
        record["config"]["init"]["from"] = pathlib.PurePath(parent).name
    row = run_record.read_row(run_dir) | {"run_id": record["run_id"], "status": "done"}
    if row.get("config.objective.file"):
        row["config.objective.file"] = objective["file"]
    if parent:
        row["config.init.from"] = record["config"]["init"]["from"]
    if "config.plugins" in row:
        row["config.plugins"] = record["config"].get("plugins", [])
    metrics = "".join(json.dumps(line) + "\n" for line in thinned(run_record.read_metrics(run_dir / "metrics.jsonl")))
    texts = json.dumps(record), json.dumps(run_record.read_json(run_dir / "summary.json")), metrics
    return {**row, **dict(zip(TEXT, texts, strict=True))}


def thinned(lines: Sequence[dict]) -> list[dict]:
    """Returns the lines with a validation loss, and at most LINES of the others, evenly spaced, including both ends.

    Example: of 401 lines without a validation loss, lines 0, 4, 8, ..., 400 for LINES = 101.
    """
    others = [i for i, line in enumerate(lines) if "validation_loss" not in line]
    if len(others) > LINES:
        others = [others[i] for i in np.linspace(0, len(others) - 1, LINES).round().astype(int)]
    kept = {*others, *(i for i, line in enumerate(lines) if "validation_loss" in line)}
    return [lines[i] for i in sorted(kept)]


def _has_absolute_path(row):
    sources = json.loads(row["record_json"])["config"]["data"].get("sources", [])
    return any(pathlib.PurePath(source.partition(":")[2]).is_absolute() for source in sources)


def _counts(counter):
    return ", ".join(f"{number} {name}" for name, number in sorted(counter.items())) or "the directory has none"


def _parquet(rows) -> bytes:
    """Returns the parquet bytes of a table, without the metadata that pandas adds (its version)."""
    import pandas
    import pyarrow
    import pyarrow.parquet

    frame, columns = pandas.DataFrame(rows), {}
    for name in frame:
        try:
            columns[name] = pyarrow.array(frame[name], from_pandas=True)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # a setting of several types
            columns[name] = pyarrow.array(frame[name].astype(str))
    sink = io.BytesIO()
    lean = {"compression": "zstd", "write_statistics": False, "store_schema": False}  # a third smaller
    pyarrow.parquet.write_table(pyarrow.table(columns), sink, **lean)
    return sink.getvalue()


def read(path: pathlib.Path) -> tuple["pandas.DataFrame", dict[str, list[dict]]]:
    """Returns (table of runs, {run id: its thinned metrics}) of a records file, as analysis.read does for a directory.

    Raises:
        InputError: no such file; not a records file; a damaged record.
    """
    frame = _load(path)
    metrics = {row["run_id"]: run["metrics"] for row, run in _runs(path, frame)}
    return frame.drop(columns=[*TEXT]).copy(), metrics  # copied: dropping columns splits the frame into single ones


def _load(path):
    from lmjax.scaling import table

    frame, _ = table.load(path)
    if missing := [name for name in (*TEXT, "run_id") if name not in frame]:
        raise InputError(f"{path}: expected a file of lmjax runs --records, got a table without {', '.join(missing)}")
    return frame


def _runs(path, frame):
    """Yields (row, {"record", "summary": dicts, "metrics": list}) of each run, checked as for a directory."""
    for row in frame.to_dict("records"):
        origin = f"{path}, run {row['run_id']}"
        record, summary = (_object(row[name], f"{origin}: {name}") for name in TEXT[:2])
        run_record.check_record(record, origin)
        if record["run_id"] != row["run_id"]:
            raise InputError(f"{origin}: its record is of run {record['run_id']}; pack the runs again")
        run_record.check_summary(summary, record["run_id"], origin)
        metrics = run_record.parse_metrics(str(row["metrics_jsonl"]), f"{origin}: metrics_jsonl")
        yield row, {"record": record, "summary": summary, "metrics": metrics}


def _object(text, origin) -> dict:
    def refuse(name):
        raise ValueError(f"{name} is not a JSON number")

    try:
        found = json.loads(text, parse_constant=refuse)
    except (TypeError, ValueError) as error:
        raise InputError(f"{origin} is not JSON ({error}); pack the runs again") from error
    if not isinstance(found, dict):
        raise InputError(f"{origin}: expected a JSON object, got {type(found).__name__}; pack the runs again")
    return found


def unpack(path: pathlib.Path, cells: "Sequence[Cell]", keep: bool = False) -> list[str]:
    """Writes the runs of a records file as finished runs of a sweep: run directories without checkpoints.

    Cells that have begun in the sweep's directory are not changed.

    Args:
        path: a records file.
        cells: cells of the sweep; the caller must hold the lock on their directory.
        keep: accept runs trained by other source code.

    Returns:
        Messages for the user.

    Raises:
        InputError: no run of the file is a cell; a run has a cell's id but other settings or data; unless `keep`, runs
            trained by other source code. Nothing is written then.
    """
    by_id = {cell.run.run_id: cell for cell in cells}
    runs = [run for _, run in _runs(path, _load(path))]
    known = [(by_id[run["record"]["run_id"]], run) for run in runs if run["record"]["run_id"] in by_id]
    others = [run["record"] for run in runs if run["record"]["run_id"] not in by_id]
    left_out = not_cells(path, others[0], len(others), len(runs), cells) if others else ""
    if not known:
        raise InputError(
            f"{left_out or f'{path} holds no runs'}; give the records of this sweep, or leave out --records"
        )
    lines = [f"warning: {left_out}"] * bool(others) + _other_code(path, known, keep)
    written = sum(_written(cell, path, run) for cell, run in known)
    counted = f"{path}: {written} of {len(cells)} cells count as done"
    if written < len(known):
        counted += f"; {len(known) - written} more are in the file, but have begun or finished here and stay as here"
    return [*lines, counted]


def not_cells(path: pathlib.Path, record: dict, number: int, total: int, cells: "Sequence[Cell]") -> str:
    """Returns that `number` of the `total` runs in a file or directory are not cells, and how one of them, with this
    config.json, differs from the most similar cell."""
    from lmjax import identity

    differing = {c.run.run_id: identity.differences(record, c.run.record(), c.run.filled) for c in cells}
    name = min(differing, key=lambda name: len(differing[name]))
    what = "; ".join(differing[name][:4]) or "only its name (run.name)"
    return (
        f"{number} of {total} runs in {path} are not cells of this sweep: {record['run_id']} differs from the "
        f"cell {name}: {what}"
    )


def _other_code(path, known, keep) -> list[str]:
    """Checks that the runs have the settings of their cells; returns a warning about runs of other source code."""
    from lmjax import identity

    now = identity.code_digest()
    for cell, run in known:
        if different := identity.differences(run["record"], cell.run.record(), cell.run.filled):
            raise InputError(
                f"{path}: run {cell.run.run_id} has the id of a cell of this sweep, but differs from it: "
                f"{'; '.join(different[:8])}; leave out --records to train the cell here"
            )
    codes = [str(run["record"].get("code")) for _, run in known if run["record"].get("code") != now]
    if not codes:
        return []
    said = (
        f"{len(codes)} of {len(known)} runs in {path} were trained by other source code "
        f"(hash {', '.join(dict.fromkeys(codes))}, now {now}): their values may differ"
    )
    if not keep:
        raise InputError(f"{said}; pass --keep to count them as done, or leave out --records to train the cells here")
    return [f"warning: {said}"]


def _written(cell, path, run) -> bool:
    """Writes a finished run, also to its bucket, and returns True; False for one that has begun or is being trained."""
    from lmjax import bucket

    if run_record.has_begun(cell.run_dir) or run_record.is_locked(cell.run_dir):
        return False
    cell.run_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(run_record.InUse), run_record.Lock(cell.run_dir), bucket.mirrored(cell.run_dir):
        if not run_record.has_begun(cell.run_dir):  # on another machine, since the bucket was read
            _write(cell, path, **run)
            return True
    return False


def _write(cell: "Cell", path: pathlib.Path, record: dict, summary: dict, metrics: list[dict]) -> None:
    """Writes a finished run. The summary marks it as finished, so it is written after the metrics."""
    cell.run.write(cell.run_dir)  # tokenizer and directory
    record["config"]["objective"]["file"] = cell.run.config.objective.file  # the path on this machine
    record["config"]["plugins"] = list(cell.run.config.plugins)
    if "init" in record["config"]:  # runs before branches existed have none
        record["config"]["init"]["from"] = cell.run.config.init["from"]
    run_record.write_json(cell.run_dir / "config.json", record)
    text = "".join(json.dumps(line) + "\n" for line in metrics)
    run_record.replace_file(cell.run_dir / "metrics.jsonl", text)
    run_record.write_json(cell.run_dir / "summary.json", summary)
    steps, attempts = cell.run.steps, summary.get("attempts", 0)
    status = {"status": "done", "step": steps, "steps": steps, "attempts": attempts, "records": path.name}
    run_record.write_json(cell.run_dir / "status.json", {**status, "validation_loss": summary["loss"]})

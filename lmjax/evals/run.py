"""`lmjax eval`: evaluates every task on every checkpoint of every run once, and writes one tidy table (table.py).

<run dir>/evaluations/<task>-step<step>-<k>shot-<hash>.json holds one evaluation with the values of every item. The hash
covers run, checkpoint, task file, shots, seed, limit and semantics, so a changed task file or checkpoint gives a new
file. A failed evaluation (for example, log-probabilities that are not finite) becomes a row with the reason, and is
repeated the next time.
"""

import dataclasses
import datetime
import hashlib
import io
import itertools
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lmjax import bucket, objectives, run_record, trained
from lmjax import config as configs
from lmjax.distributed import check_same, wait_for_all
from lmjax.errors import InputError
from lmjax.evals import builtin, documents, measure, metrics, perplexity, rows, score, table, tasks
from lmjax.evals.tasks import PERPLEXITY
from lmjax.format import duration
from lmjax.sharding import RULES, logical_mesh
from lmjax.validation import Validation

VERSION = 3  # increase it when the same model, task and items give different numbers


@dataclasses.dataclass(frozen=True)
class Unit:
    """One evaluation: a task with k shots on a checkpoint."""

    run_dir: pathlib.Path
    step: int
    task: tasks.Task | None  # None: perplexity
    shots: int
    key: dict  # everything that determines the result

    @property
    def path(self) -> pathlib.Path:
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:12]
        return self.run_dir / "evaluations" / f"{self.name}-step{self.step}-{self.shots}shot-{digest}.json"

    @property
    def name(self) -> str:
        return self.task.name if self.task else PERPLEXITY


def evaluate(
    source: str | pathlib.Path,
    names: Sequence[str],
    shots: Sequence[int] = (0,),
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    steps: str = "last",
    out: str | pathlib.Path | None = None,
    *,
    unfinished: bool = False,
    semantics: str = "",
    text_source: str = "",
    stride: int = 0,
    mesh: Mapping[str, int] | None = None,
    stream=None,
):
    """Evaluates tasks on a run, or on every run of a directory, and writes the tidy table.

    Args:
        source: a run directory, or a directory of run directories.
        names: names of tasks and task files, as for lmjax.evals.tasks.find. "perplexity" is the loss over validation
            documents; "all" includes it.
        shots: numbers of few-shot examples; every task is evaluated with each number.
        limit: maximum number of items per task; None: all items of a file, the default number of a generator.
        seed: random seed of items, few-shot examples and bootstrap.
        batch_size: rows per call; changes speed only.
        steps: "last" or "all" checkpoints of each run.
        out: .csv or .parquet file for the requested evaluations. None: evaluations.csv in `source`, which also keeps
            earlier evaluations of the checkpoints that the runs still have.
        unfinished: if source is a directory of runs, also evaluate runs that are not done. Without it, they get a row
            with their status.
        semantics: kind of score, see lmjax.evals.score; "": each model's default.
        text_source: perplexity: use validation documents of this source (see lmjax.data.sources), not the run's own.
        stride: perplexity: tokens between the starts of windows; 0: a whole window.
        mesh: sizes of the mesh axes, as for lmjax.trained.load.
        stream: stream for progress messages; None: standard error.

    In a multi-process program (`lmjax.distributed`), every process must call this with the same arguments. All devices
    share each model, process 0 writes the results, and tasks that generate text are refused.

    Returns:
        pandas table of the requested evaluations (see lmjax.evals.table). Evaluations that were not possible are rows
        with the reason.

    Raises:
        InputError: unknown task, bad task file, no such run; no requested evaluation is possible; an evaluation of a
            single run fails.
    """
    stream = (stream or sys.stderr) if jax.process_index() == 0 else io.StringIO()
    source = pathlib.Path(source)
    if not source.is_dir():
        raise InputError(f"no directory {source}: expected a run, or a directory of runs")
    target = source / "evaluations.csv" if out is None else pathlib.Path(out)
    table.check_target(target)
    _check_numbers(shots, limit, seed, batch_size, steps, stride)
    # 1. What is asked: runs and tasks. Too few examples for a task are an error before anything runs.
    alone = (source / "config.json").exists()
    runs = _records([source] if alone else run_record.find_runs(source), alone, stream)
    found = _tasks(names, bool(text_source or stride))
    with_items = _Items(limit, seed)
    for task, k in itertools.product(filter(None, found), shots):
        if not task.needs_corpus:
            with_items.of(task, k, None)
    if not runs:
        raise InputError(f"no runs in {source}: expected a run directory (with a config.json), or a directory of them")
    # 2. The evaluations, and a row for what cannot be evaluated.
    units, lines = [], []
    for run_dir, record in runs.items():
        saved, reason = _checkpoints(run_dir, unfinished or alone)
        if reason:
            lines.append(table.plain_row(run_dir, record, saved[-1] if saved else None, "not_evaluated", reason))
            continue
        text = _text_key(record, text_source, stride)
        if steps == "all":
            _add_validation_losses(run_dir, record, saved, mesh, stream)
        for step, task in itertools.product(saved if steps == "all" else saved[-1:], found):
            for k in shots if task else (0,):
                key = _key(run_dir, record, step, task, k, with_items, semantics) | ({} if task else text)
                unit = Unit(run_dir, step, task, k, key)
                if reason := undefined(task, record, semantics, text_source):
                    lines.append(table.plain_row(run_dir, record, step, "not_defined", reason, unit.name, k))
                else:
                    units.append(unit)
    check_same({"evaluations": [unit.key for unit in units], "batch_size": batch_size, "mesh": dict(mesh or {})})
    # 3. Their results, and the table.
    done = _evaluate_all(units, with_items, batch_size, alone, mesh, stream) if units else []
    for unit, result in zip(units, done, strict=True):
        lines += table.result_rows(unit.run_dir, runs[unit.run_dir], result)
    if all(line["status"] != "done" for line in lines):
        reasons = dict.fromkeys(f"{line['task'] or line['run_id']}: {line['reason']}" for line in lines)
        raise InputError("none of the requested evaluations is defined: " + "; ".join(list(reasons)[:8]))
    if jax.process_index() == 0:
        kept = [] if out is not None else _kept(runs, units)
        table.write(table.frame([*lines, *kept]), target)
        print(f"{len(lines) + len(kept)} rows in {target}", file=stream)
    return table.frame(lines)


def _tasks(names: Sequence[str], with_text: bool) -> list[tasks.Task | None]:
    """Returns the named tasks; None stands for perplexity. `with_text` (a source or stride is given) requires it."""
    others = [name for name in names if name != PERPLEXITY]
    found: list[tasks.Task | None] = list(tasks.find(others)) if others or not names else []
    if {PERPLEXITY, "all"} & set(names):
        return [*found, None]
    if with_text:
        raise InputError("text_source and stride (--source, --stride) need the task perplexity; add it to the tasks")
    return found


def _records(found: Iterable[pathlib.Path], alone: bool, stream) -> dict[pathlib.Path, dict]:
    """Returns {run directory: its config.json}, and runs their plugins. Unreadable runs are skipped; a single one is an
    error."""
    runs = {}
    for run_dir in found:
        try:
            record, _ = run_record.read_record(run_dir), run_record.status_of(run_dir)
            if record is not None:  # else it was removed since it was listed
                config = configs.from_record(record)
                configs.run_plugins(config, run_dir)  # they may add models, tasks and metrics
                objectives.get(config.objective.name, config.objective.file)  # runs the file, which adds the objective
                runs[run_dir] = record
        except InputError as error:
            if alone:
                raise
            print(f"skipped: {error}", file=stream)
    return runs


def _kept(runs: dict[pathlib.Path, dict], units: Sequence[Unit]) -> list[dict]:
    """Returns the rows of earlier evaluations whose checkpoints, task files and frames have not changed."""
    asked, lines = {unit.path for unit in units}, []
    now = {unit.name: unit.key["task_hash"] for unit in units}
    frames = {unit.run_dir: unit.key.get("frame") for unit in units}
    for run_dir in dict.fromkeys(unit.run_dir for unit in units):
        for path in sorted(set((run_dir / "evaluations").glob("*.json")) - asked):
            result = run_record.read_json(path)
            if (
                result.get("version") == VERSION  # another kind of file has none
                and result["run_id"] == runs[run_dir]["run_id"]
                and result["checkpoint"] == _checkpoint(run_dir, result["step"])
                and result["task_hash"] == now.get(result["task"], result["task_hash"])
                and result.get("frame") == frames[run_dir]
            ):
                lines += table.result_rows(run_dir, runs[run_dir], result)
    return lines


def _check_numbers(shots, limit, seed, batch_size, steps, stride):
    if not shots or any(type(k) is not int or k < 0 for k in shots) or len(set(shots)) != len(shots):
        raise InputError(f"shots: expected distinct whole numbers >= 0, got {tuple(shots)}")
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected 1 item or more, got {limit}")
    if not 0 <= seed < 2**32:
        raise InputError(f"seed: expected a whole number in 0 .. 2^32 - 1, got {seed}")
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, got {batch_size}")
    if stride < 0:
        raise InputError(f"stride: expected 1 or more, or 0 for the window, got {stride}")
    if steps not in ("last", "all"):
        raise InputError(f"steps: expected 'last' or 'all', got {steps!r}")


def undefined(task: tasks.Task | None, record: dict, semantics: str = "", text_source: str = "") -> str:
    """Returns an error message if a task (None: perplexity) is not defined for a run with this config.json, else ""."""
    model, tokenizer = record["config"]["model"], record.get("data", {}).get("tokenizer")
    if tokenizer is None:
        return "the run has no tokenizer, so no text can be scored; import it with its tokenizer"
    if reason := rows.discriminator(model["head"]):
        return reason
    sentinels = bool(tokenizer["specials"]["sentinels"])
    known = score.semantics_of(model["family"], record["config"]["objective"]["name"], sentinels)
    if reason := score.unknown(semantics, known, model["family"]):
        return reason
    if task is None:
        if semantics == "masked":
            return perplexity.NOT_MASKED
        own = text_source or record["data"].get("sources")
        return "" if own else f"{documents.IMPORTED}; name documents with --source"
    missing = documents.missing(record) if task.needs_corpus else ""
    return missing or measure.undefined(task, model["family"], semantics)


def _checkpoints(run_dir: pathlib.Path, any_status: bool) -> tuple[list[int], str]:
    """Returns the steps of a run's checkpoints, and the reason why the run is not evaluated, or ""."""
    status = run_record.status_of(run_dir)["status"]
    bucket.fetch(run_dir)
    saved = trained.steps(run_dir)
    if saved and (any_status or status == "done"):
        return saved, ""
    return saved, f"the run is {status}" + (f", at step {saved[-1]}" if saved else " and has no checkpoint")


def _text_key(record: dict, text_source: str, stride: int) -> dict:
    """Returns what determines a perplexity besides its `_key`: the named text and the stride, where they are given."""
    key = {"stride": stride} if stride else {}
    if text_source:
        key |= {"text_source": text_source, "text": documents.identity(record["config"], text_source)}
    return key


def _key(run_dir, record, step, task, shots, with_items, semantics) -> dict:
    own = {"task": PERPLEXITY, "task_hash": "", "shots": shots, "limit": None, "seed": None}
    if task:
        own |= {"task": task.name, "task_hash": task.hash, "limit": with_items.limit, "seed": with_items.seed}
    checkpoint = {"run_id": record["run_id"], "step": step, "checkpoint": _checkpoint(run_dir, step)}
    if getattr(objectives.OBJECTIVES.get(record["config"]["objective"]["name"]), "frame", None):
        own["frame"] = "objective"  # evaluations without it framed texts as the tokenizer says
    return {"version": VERSION, **checkpoint, **own, "semantics": semantics}


def _checkpoint(run_dir, step) -> str:
    saved = run_dir / "checkpoints" / str(step) / "record" / "metadata"  # has checksums of all parameters
    return hashlib.sha256(saved.read_bytes()).hexdigest()[:16] if saved.is_file() else ""


class _Items:
    """The items of the tasks. Models with the same training text share them."""

    def __init__(self, limit: int | None, seed: int):
        self.limit, self.seed = limit, seed
        self._made: dict[tuple, list[tasks.Item]] = {}
        self._corpora: dict[tuple, documents.Corpus | None] = {}

    def of(self, task: tasks.Task, shots: int, model: trained.Trained | None) -> list[tasks.Item]:
        """Returns the items of a task for a model; without a model, they are not compared with a training text."""
        text = None if model is None else self._corpus(model, task.needs_corpus)
        content = () if text is None else tuple(store.manifest["content"] for store in text.stores)
        key = (task.hash, shots, content)
        if key not in self._made:
            self._made[key] = tasks.make_items(task, shots, self.limit, self.seed, text)
        return self._made[key]

    def _corpus(self, model, needed: bool) -> documents.Corpus | None:
        """Returns the run's training text; None if it has none, or if it is missing and the items do not need it."""
        if not needed and documents.missing(model.record):
            return None
        content = tuple(source["content"] for source in model.record["data"]["sources"])
        if content not in self._corpora:
            try:
                self._corpora[content] = documents.corpus_of(configs.from_dict(model.record["config"]), model.record)
            except InputError as error:
                if needed:
                    raise
                print(f"items are not compared with the training text of {model.run_dir}: {error}", file=sys.stderr)
                self._corpora[content] = None
        return self._corpora[content]


# -- Running


def _evaluate_all(units, with_items, batch_size, alone, mesh, stream) -> list[dict]:
    """Returns the result of each unit: reads it if it exists, else computes and writes it.

    An InputError is raised for a single run; for several runs, it becomes a result that is not written.
    """
    results: list = [run_record.read_json(unit.path) for unit in units]
    wait_for_all("results read")
    todo = [i for i, result in enumerate(results) if result is None]
    ready = len(units) - len(todo)
    if ready:
        stream.write(f"{ready} of {len(units)} evaluations already exist\n")
    model, start, printed = None, time.monotonic(), -math.inf
    for count, i in enumerate(todo, start=1):
        unit, began = units[i], time.monotonic()
        try:
            if model is None or (model.run_dir, model.step) != (unit.run_dir, unit.step):
                model = trained.load(unit.run_dir, unit.step, mesh, jax.devices())
            if unit.task is None:
                found = _perplexity(model, unit, batch_size)
            else:
                found = _task(model, unit, with_items.of(unit.task, unit.shots, model), batch_size)
        except builtin.NotDefined as error:
            found = {"status": "not_defined", "reason": str(error)}
        except InputError as error:
            if alone:
                raise
            found = {"status": "not_evaluated", "reason": str(error)}
        now = time.monotonic()
        found["evaluated"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        found["wall_seconds"] = now - began
        results[i] = {**unit.key, "kind": unit.task.kind if unit.task else PERPLEXITY, **found}
        if found["status"] != "not_evaluated" and jax.process_index() == 0:
            unit.path.parent.mkdir(exist_ok=True)
            run_record.write_json(unit.path, results[i])
        left = len(todo) - count
        if not left or now - printed >= (0.1 if stream.isatty() else 10):  # a terminal's line is rewritten
            printed, eta = now, duration((now - start) / count * left)
            line = (
                f"evaluation {ready + count}/{len(units)}  {unit.run_dir.name} step {unit.step}  {unit.name} "
                f"{unit.shots}-shot  {_headline(found)}  ETA {eta}"
            )
            stream.write(f"\r\x1b[K{line}" + "\n" * (not left) if stream.isatty() else f"{line}\n")
            stream.flush()
    return results


def _task(model, unit, items, batch_size) -> dict:
    """Returns the result of a task: the metrics, and the values of each item from which they were computed."""
    task = unit.task
    if not (names := measure.reported(task, items, model.tokenizer.lossless)):
        raise builtin.NotDefined(f"{', '.join(task.metrics)}: not defined for a tokenizer of {model.tokenizer.name}")
    found = measure.measure(model, task, items, batch_size, unit.key["semantics"])
    parts = metrics.ratios(found.columns, names)
    return {
        "status": "done",
        "semantics": found.semantics,
        "truncated": found.truncated,
        "n": len(items),
        "metrics": _plain(metrics.summarise(found.columns, names, unit.key["seed"])),
        **_seen_apart(items, parts),
        "items": {
            "index": [item.index for item in items],
            "seen": [item.seen for item in items],
            **_plain(found.columns),
            **found.texts,
        },
        "values": _plain(parts),
    }


def _seen_apart(items, parts) -> dict:
    """Returns the share of items that occur in the training text, and each metric over these and over the others."""
    seen = np.asarray([item.seen for item in items])
    if None in seen:
        return {}
    apart = {
        name: {
            key: float(numerator[mask].sum() / denominator[mask].sum()) if mask.any() else None
            for key, mask in (("value_seen", seen), ("value_unseen", ~seen))
        }
        for name, (numerator, denominator) in parts.items()
    }
    return {"seen": float(seen.mean()), "apart": apart}


def _add_validation_losses(run_dir: pathlib.Path, record: dict, steps: Sequence[int], mesh, stream) -> None:
    """Computes the validation loss of checkpoints that were saved without one, and stores it in the run directory."""
    path = run_dir / table.VALIDATION_LOSSES
    known = run_record.read_json(path) or {}
    fresh = {step: found for step, found in known.items() if found["checkpoint"] == _checkpoint(run_dir, int(step))}
    if fresh != known and jax.process_index() == 0:
        run_record.write_json(path, fresh)
    wait_for_all("validation losses read")
    known = fresh
    missing = [step for step in steps if math.isnan(table.run_facts(run_dir, record, step)["loss"])]
    if not missing or not record.get("data", {}).get("sources"):
        return
    for step in missing:
        print(f"validation loss of {run_dir.name} at step {step}", file=stream)
        model = trained.load(run_dir, step, mesh, jax.devices())
        try:
            data = documents.prepared(model.config, record)
        except InputError as error:
            print(f"no validation loss of {run_dir.name} at step {step}: {error}", file=stream)
            return
        validation = Validation(data, model.objective, model.config, model.model, model.mesh)
        with logical_mesh(model.mesh, RULES):
            found = validation.evaluate(model.params)
        known[str(step)] = {"checkpoint": _checkpoint(run_dir, step), **found}  # pyright: ignore  (no stop: never None)
        if jax.process_index() == 0:
            path.parent.mkdir(exist_ok=True)
            run_record.write_json(path, known)


def _perplexity(model, unit, batch_size) -> dict:
    """Returns the loss over validation documents as a result, with standard errors over documents."""
    source, stride = unit.key.get("text_source", ""), unit.key.get("stride", 0)
    found = perplexity.evaluate(model, source, semantics=unit.key["semantics"], stride=stride, batch_size=batch_size)
    numbers = {name: (found[name], found.get(f"{name}_stderr")) for name in table.OF_TEXT if name in found}
    if found["entropy"]:
        numbers["entropy_gap"] = (found["entropy"]["gap"], found["entropy"]["gap_stderr"])
    count = found["documents"]
    return {
        "status": "done",
        "semantics": found["semantics"],
        "truncated": 0,
        "n": count,
        "metrics": {
            name: {"value": value, "standard_error": error, "n": count, "chance": None, "resolution": None}
            for name, (value, error) in numbers.items()
            if value is not None
        },
        "details": found,
    }


def _plain(value) -> Any:
    """Converts to dicts and lists of plain numbers, with None for nan, for JSON."""
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(x) for x in value]
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _headline(result):
    if result["status"] != "done":
        return result["status"].replace("_", " ")
    name, facts = next(iter(result["metrics"].items()))
    return f"{name} {facts['value']:.4g}"


# -- For the command line


def list_tasks(source: str | pathlib.Path | None = None, semantics: str = "", text_source: str = "") -> str:
    """Returns the built-in tasks, one per line. If `source` is a run, also says why a task is not defined for it.

    Raises:
        InputError: no such directory.
    """
    if source is not None and not pathlib.Path(source).is_dir():
        raise InputError(f"no directory {source}: expected a run, or a directory of runs")
    record = None
    if source is not None and (pathlib.Path(source) / "config.json").exists():
        (record,) = _records([pathlib.Path(source)], True, sys.stderr).values()
    lines = []
    for task in (None, *tasks.find(["all"])):
        name, kind = (task.name, task.kind) if task else (PERPLEXITY, "")
        text = task.description if task else "Loss, perplexity and bits per byte over the run's validation documents"
        lines.append(f"{name:18} {kind:10} {text}")
        if reason := undefined(task, record, semantics, text_source) if record else "":
            lines.append(f"{'':18} not defined for this run: {reason}")
    return "\n".join(lines)

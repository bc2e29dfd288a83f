"""The tidy table of evaluations: a row per run, step, task, shots and metric, beside N, D, C and loss.

What could not be evaluated is in it as well: rows without a metric, with `status` not_defined (the task has no meaning
for this model) or not_evaluated (the run failed, diverged, has not ended or has no checkpoint) and the `reason`.
"""

import math
import os
import pathlib
from collections.abc import Iterable

import numpy as np

from lmjax import run_record
from lmjax.errors import InputError
from lmjax.evals import metrics

COLUMNS = (
    "run_id",
    "step",
    "task",
    "kind",
    "shots",
    "metric",
    "value",
    "standard_error",  # bootstrap over items
    "n",  # items
    "chance",  # of a model that knows nothing; nan where there is no such level
    "resolution",  # 1 / n
    "better",  # higher | lower | neither
    "semantics",  # of the log-probabilities; never compare two
    "status",  # done | not_defined | not_evaluated
    "reason",
    "truncated",  # items that lost the oldest tokens of their context
    "n_total",
    "n_embedding",
    "n_non_embedding",
    "tokens",  # seen up to this step
    "flops_exact",  # spent up to this step
    "flops_6nd",
    "loss",  # held-out loss in training, nats per predicted token; nan where that step was not evaluated
    "bits_per_byte",
    "family",
    "objective",
    "held_out",
    "seed",  # of training
    "run_status",
    "schedule_complete",  # the step is the last of a finished run
    "evaluation_seed",
    "limit",
    "task_hash",
    "run_dir",
)
OF_TEXT = ("loss", "perplexity", "pseudo_perplexity", "bits_per_byte")  # of the loss over documents, not of a task
HEADLINES = ("accuracy", "exact_match", "greedy_match", "preference", "loss")  # hard
SMOOTH = ("choice_probability", "token_accuracy", "preference_margin", "bits_per_byte")


def run_facts(run_dir: pathlib.Path, record: dict, step: int | None) -> dict:
    """Returns the columns that describe a run at a step; nan for what an imported run does not know."""
    derived, config = record.get("derived", {}), record["config"]
    summary = run_record.read_json(run_dir / "summary.json") or {}
    status = run_record.status_of(run_dir)["status"]
    at = {r["step"]: r for r in run_record.read_metrics(run_dir / "metrics.jsonl")}.get(step, {})
    loss, bits = at.get("validation_loss"), at.get("validation_bits_per_byte")
    complete = status == "done" and (not summary or step == summary.get("steps"))
    if complete and summary:
        loss, bits = summary["loss"], summary["bits_per_byte"]
    tokens = _times(step, derived.get("tokens_per_step"))
    n_total = derived.get("n_total", math.nan)
    return {
        "run_id": summary.get("run_id", run_dir.name),  # as run_record.read_runs
        "step": math.nan if step is None else step,
        **{name: derived.get(name, math.nan) for name in ("n_total", "n_embedding", "n_non_embedding")},
        "tokens": round(tokens) if math.isfinite(tokens) else math.nan,
        "flops_exact": _times(step, derived.get("flops_per_step")),
        "flops_6nd": 6 * n_total * tokens,
        "loss": math.nan if loss is None else loss,
        "bits_per_byte": math.nan if bits is None else bits,
        "family": config["model"]["family"],
        "objective": config["objective"]["name"],
        "held_out": config.get("run", {}).get("held_out", False),
        "seed": config.get("train", {}).get("seed", math.nan),
        "run_status": status,
        "schedule_complete": complete,
        "run_dir": str(run_dir),
    }


def _times(step, rate):
    return math.nan if step is None or rate is None else step * rate


def plain_row(run_dir, record, step, status: str, reason: str, task: str = "", shots: float = math.nan) -> dict:
    """Returns the row of what has no numbers."""
    return {**run_facts(run_dir, record, step), "task": task, "shots": shots, "status": status, "reason": reason}


def result_rows(run_dir: pathlib.Path, record: dict, result: dict) -> list[dict]:
    """Returns the rows of one evaluation, as run.py wrote it."""
    shared = {
        **run_facts(run_dir, record, result["step"]),
        **{
            name: result.get(name) for name in ("task", "kind", "shots", "limit", "task_hash", "semantics", "truncated")
        },
        "evaluation_seed": result["seed"],
        "status": result["status"],
        "reason": result.get("reason", ""),
    }
    if result["status"] != "done":
        return [shared]
    rows = []
    for name, facts in result["metrics"].items():
        known = metrics.METRICS.get(name)
        facts = {k: math.nan if v is None else v for k, v in facts.items()}
        rows.append({**shared, "metric": name, **facts, "better": known.better if known else "lower"})  # losses
    return rows


def frame(rows: Iterable[dict]):
    """Returns the rows as a pandas table with all COLUMNS."""
    import pandas

    made = pandas.DataFrame(list(rows)).reindex(columns=COLUMNS)
    for name in ("task", "kind", "metric", "better", "semantics", "reason"):
        made[name] = made[name].fillna("")
    for name in ("value", "standard_error", "chance", "resolution", "n", "truncated", "limit", "shots", "step"):
        made[name] = made[name].astype(float)
    return made


def check_target(out: pathlib.Path) -> None:
    """Raises InputError unless a table can be written there."""
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"out: wanted a file ending in .csv or .parquet, got {out}")
    if not out.parent.is_dir():
        raise InputError(f"out: no folder {out.parent}")


def write(made, out: pathlib.Path) -> None:
    """Writes the table so that readers see the old or the new one, never a part."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        made.to_parquet(temporary) if out.suffix == ".parquet" else made.to_csv(temporary, index=False)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def read_items(source: str | pathlib.Path):
    """Returns a pandas table of every item of every evaluation below a run or a directory of runs.

    Columns: run_id, step, task, task_hash, shots, limit, evaluation_seed, metric, item, numerator, denominator. A
    metric's value is sum(numerator) / sum(denominator) over items, for any resampling of them.

    Raises:
        InputError: no evaluations there; a corrupt file, named.
    """
    import pandas

    source = pathlib.Path(source)
    paths = sorted([*source.glob("evaluations/*.json"), *source.glob("*/evaluations/*.json")])
    parts = []
    for path in paths:
        result = run_record.read_json(path)
        for name, (numerator, denominator) in result.get("values", {}).items():
            part = pandas.DataFrame({"item": result["items"]["index"]})
            part["numerator"], part["denominator"] = np.asarray(numerator, float), np.asarray(denominator, float)
            keys = ("run_id", "step", "task", "task_hash", "shots", "limit")
            parts.append(part.assign(**{k: result[k] for k in keys}, evaluation_seed=result["seed"], metric=name))
    if not parts:
        raise InputError(f"no evaluations of items below {source}; make some: lmjax eval {source} --tasks all")
    return pandas.concat(parts, ignore_index=True)


def show(made) -> None:
    """Prints the headlines: a block for each run and step, a line for each task and number of shots; below it, what
    has no numbers and why."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for (run_id, step), block in made.groupby(["run_id", "step"], dropna=False, sort=False):
        semantics = ", ".join(sorted({x for x in block["semantics"] if x}))
        title = f"{run_id}  step {_whole(step)}  ({semantics})"
        shown, lines = Table(title=title, title_justify="left", header_style="bold"), []
        for name in ("task", "shots", "hard metric", "smooth metric", "chance", "n"):
            shown.add_column(name, overflow="fold", justify="right" if name in ("shots", "chance", "n") else "left")
        for (task, shots), rows in block.groupby(["task", "shots"], dropna=False, sort=False):
            first = rows.iloc[0]
            if first["status"] == "done":
                shown.add_row(task, _whole(shots), *_cells(rows.to_dict("records")))
            else:
                what = f"{task}, {_whole(shots)} shots" if task else run_id
                lines.append(f"{what}: [yellow]{first['status'].replace('_', ' ')}[/]: {first['reason']}")
        if shown.row_count:
            console.print(shown)
        for line in lines:
            console.print(line, highlight=False, soft_wrap=True)


def _cells(rows):
    by_name = {row["metric"]: row for row in rows}
    hard = next((by_name[name] for name in HEADLINES if name in by_name), rows[0])
    smooth = next((by_name[name] for name in SMOOTH if name in by_name and by_name[name] is not hard), None)
    chance = "" if math.isnan(hard["chance"]) else f"{hard['chance']:.3g}"
    return [_value(hard), _value(smooth) if smooth else "", chance, _whole(hard["n"])]


def _whole(x):
    return "" if math.isnan(x) else str(int(x))


def _value(row):
    error = "" if math.isnan(row["standard_error"]) else f" ± {row['standard_error']:.2g}"
    return f"{row['metric']} {row['value']:.3g}{error}"

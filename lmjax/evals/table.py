"""The tidy table of evaluations: a row per run, step, task, shots and metric, beside N, D, C and loss.

Evaluations that were not possible are rows without a metric, with a `reason` and the `status` not_defined (the task is
not defined for this model) or not_evaluated (the run failed, diverged, has not ended or has no checkpoint).
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
    "standard_error",  # bootstrap over items, of shares at least metrics.floor; of perplexity over documents
    "n",  # items
    "chance",  # of the best constant answer; under masked, where the answer's length is told, a lower bound; else nan
    "resolution",  # 1 / n
    "seen",  # share of the items that are word for word in the training text; nan where that was not checked
    "value_seen",  # the metric over those items, and
    "value_unseen",  # over the others
    "better",  # higher | lower | neither
    "semantics",  # of the log-probabilities; those of different semantics are not comparable
    "text_source",  # perplexity: source of the documents; "": the run's own validation documents
    "stride",  # perplexity: of the windows; 0: they do not overlap
    "status",  # done | not_defined | not_evaluated
    "reason",
    "truncated",  # items that lost the oldest tokens of their context
    "n_total",
    "n_embedding",
    "n_non_embedding",
    "tokens",  # seen up to this step
    "flops_exact",  # spent up to this step
    "flops_6nd",
    "loss",  # validation loss, nats per predicted token; nan where that step was not evaluated
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
VALIDATION_LOSSES = "evaluations/validation_losses.json"  # of checkpoints that training saved without one
OF_TEXT = ("loss", "perplexity", "pseudo_perplexity", "bits_per_byte")  # of the loss over documents, not of a task

HEADLINES = ("accuracy", "exact_match", "greedy_match", "preference")  # hard
SMOOTH = ("loss", "choice_probability", "token_accuracy", "preference_margin", "bits_per_byte")

# Settings of an imported run, whose record has none.
_IMPORTED = {
    "data.text_field": "text",
    "data.seed": 0,
    "data.validation_fraction": 0.02,
    "evaluation.max_tokens": 262_144,
    "evaluation.seed": 0,
    "run.held_out": False,
    "train.seed": math.nan,
}


def setting(config, section: str, name: str):
    """Returns config.<section>.<name>, or its value for an imported run."""
    known = config[section] if section in config else {}
    return known[name] if name in known else _IMPORTED[f"{section}.{name}"]


def run_facts(run_dir: pathlib.Path, record: dict, step: int | None) -> dict:
    """Returns the columns that describe a run at a step; nan for what an imported run does not know."""
    derived, config = record.get("derived", {}), record["config"]
    summary = run_record.read_json(run_dir / "summary.json") or {}
    status = run_record.status_of(run_dir)["status"]
    at = {r["step"]: r for r in run_record.read_metrics(run_dir / "metrics.jsonl")}.get(step, {})
    later = (run_record.read_json(run_dir / VALIDATION_LOSSES) or {}).get(str(step), {})
    complete = status == "done" and (not summary or step == summary.get("steps"))
    if complete and summary:
        losses = summary["loss"], summary["bits_per_byte"]
    elif at.get("validation_loss") is not None:
        losses = at["validation_loss"], at.get("validation_bits_per_byte")
    else:
        losses = later.get("loss"), later.get("bits_per_byte")
    loss, bits = (math.nan if value is None else value for value in losses)
    known = {name: math.nan if value is None else value for name, value in derived.items()}
    at_step = math.nan if step is None else step
    seen, flops = (known.get(rate, math.nan) * at_step for rate in ("tokens_per_step", "flops_per_step"))
    n_total = known.get("n_total", math.nan)
    return {
        "run_id": _run_id(run_dir),
        "step": at_step,
        **{name: known.get(name, math.nan) for name in ("n_total", "n_embedding", "n_non_embedding")},
        "tokens": round(seen) if math.isfinite(seen) else math.nan,
        "flops_exact": flops,
        "flops_6nd": 6 * n_total * seen,
        "loss": loss,
        "bits_per_byte": bits,
        "family": config["model"]["family"],
        "objective": config["objective"]["name"],
        "held_out": setting(config, "run", "held_out"),
        "seed": setting(config, "train", "seed"),
        "run_status": status,
        "schedule_complete": complete,
        "run_dir": str(run_dir),
    }


def _run_id(run_dir):
    """As in run_record.read_runs; the records of imported runs all have the same id."""
    return (run_record.read_json(run_dir / "summary.json") or {}).get("run_id", run_dir.name)


def plain_row(run_dir, record, step, status: str, reason: str, task: str = "", shots: float = math.nan) -> dict:
    """Returns the row of an evaluation without results."""
    return {**run_facts(run_dir, record, step), "task": task, "shots": shots, "status": status, "reason": reason}


def result_rows(run_dir: pathlib.Path, record: dict, result: dict) -> list[dict]:
    """Returns the rows of one evaluation, as run.py wrote it."""
    copied = ("task", "kind", "shots", "limit", "task_hash", "semantics", "truncated", "status")
    shared = {
        **run_facts(run_dir, record, result["step"]),
        **{name: result.get(name) for name in copied},
        "evaluation_seed": result["seed"],
        "text_source": result.get("text_source", ""),
        "stride": result.get("stride", 0) if result["kind"] == "perplexity" else math.nan,
        "reason": result.get("reason", ""),
        "seen": result.get("seen", math.nan),
    }
    if result["status"] != "done":
        return [shared]
    rows = []
    for name, facts in result["metrics"].items():
        known = metrics.METRICS.get(name)
        facts = {k: math.nan if v is None else v for k, v in (facts | result.get("apart", {}).get(name, {})).items()}
        rows.append({**shared, "metric": name, **facts, "better": known.better if known else "lower"})  # losses
    return rows


def frame(rows: Iterable[dict]):
    """Returns the rows as a pandas table with all COLUMNS."""
    import pandas

    made = pandas.DataFrame(list(rows)).reindex(columns=COLUMNS)
    for name in ("task", "kind", "metric", "better", "semantics", "reason", "text_source"):
        made[name] = made[name].fillna("")
    numbers = ("value", "standard_error", "chance", "resolution", "n", "truncated", "limit", "shots", "step", "stride")
    for name in numbers:
        made[name] = made[name].astype(float)
    return made


def check_target(out: pathlib.Path) -> None:
    """Raises InputError unless a table can be written to the path."""
    if out.suffix not in (".csv", ".parquet"):
        raise InputError(f"out: expected a file ending in .csv or .parquet, got {out}")
    if not out.parent.is_dir():
        raise InputError(f"out: no folder {out.parent}")


def write(made, out: pathlib.Path) -> None:
    """Writes the table atomically."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        made.to_parquet(temporary) if out.suffix == ".parquet" else made.to_csv(temporary, index=False)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def item_files(source: pathlib.Path) -> list[pathlib.Path]:
    """Returns the evaluation files of a run or a directory of runs."""
    return sorted([*source.glob("evaluations/*.json"), *source.glob("*/evaluations/*.json")])


def read_items(source: str | pathlib.Path):
    """Returns a pandas table of every item of every evaluation below a run or a directory of runs.

    Columns: run_id and run_dir as in `run_facts`, step, task, task_hash, shots, limit, semantics, evaluation_seed,
    metric, item, numerator, denominator. A metric's value is sum(numerator) / sum(denominator) over items, and so of
    any resample.

    Raises:
        InputError: no evaluations there; a corrupt file, named.
    """
    import pandas

    source = pathlib.Path(source)
    parts = []
    for path in item_files(source):
        result = run_record.read_json(path)
        for name, (numerator, denominator) in result.get("values", {}).items():
            part = pandas.DataFrame({"item": result["items"]["index"]})
            part["numerator"], part["denominator"] = np.asarray(numerator, float), np.asarray(denominator, float)
            facts = {k: result[k] for k in ("step", "task", "task_hash", "shots", "limit")}
            facts["semantics"] = result.get("semantics", "")
            facts |= {"run_id": _run_id(path.parent.parent), "run_dir": str(path.parent.parent)}
            parts.append(part.assign(**facts, evaluation_seed=result["seed"], metric=name))
    if not parts:
        raise InputError(f"no evaluations of items below {source}; make some: lmjax eval {source} --tasks all")
    return pandas.concat(parts, ignore_index=True)

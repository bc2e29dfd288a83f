"""Other people's evaluations as rows per run, task and metric: lm-evaluation-harness results and flat tables.

lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness) writes results_*.json: under "results" the metrics
of each task as "metric,filter" and "metric_stderr,filter" (before version 0.4 without a filter), under "n-samples" the
items, under "config" the model. It does not know compute: a table of sizes adds N, D or C by the model's name.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.columns import need
from lmjax.scaling.emergence.curves import HARD_METRICS, SCALES, SMOOTH_METRICS, limits
from lmjax.scaling.table import load

FACTS = {  # column -> its other names, in lower case with underscores
    "run_id": "run model model_name model_id name pretrained",
    "task": "benchmark task_name",
    "metric": "metric_name",
    "standard_error": "stderr std_err standard_err",
    "n": "n_samples num_samples items num_items n_items effective",
    "shots": "n_shot num_fewshot fewshot num_shots",
    "family": "model_family model_series",
    "seed": "training_seed model_seed",
    "step": "checkpoint_step training_step",
    "chance": "random_baseline chance_level",
    "N": "params parameters num_params n_params num_parameters model_num_parameters",
    "D": "training_tokens train_tokens tokens_seen num_tokens",
    "C": "flops flop compute training_flops train_flops training_compute",
}
METRICS = {  # of the harness -> ours; the first that a task has is used
    "exact_match": "exact_match",
    "em": "exact_match",
    "pass@1": "exact_match",
    "pass_at_1": "exact_match",
    "acc": "accuracy",
    "acc_norm": "accuracy",
    "multiple_choice_grade": "accuracy",
    "brier_score": "brier",
    "norm_correct_prob": "choice_probability",
    "bits_per_byte_corr": "bits_per_byte",
    "perplexity": "log_likelihood",  # exp(-mean log-likelihood of an answer)
    "ppl": "log_likelihood",
}
METRICS = {name: name for name in (*HARD_METRICS, *SMOOTH_METRICS)} | METRICS
FILTERS = ("none", "strict-match")  # preferred, in turn
CONSTANTS = ("n", "chance", "shots", "answer_tokens")  # may be given as one number for all rows
ERROR = re.compile(r"_(stderr|std_err|se)(?=,|$)")


def read(source, sizes=None, columns: Mapping[str, str] | None = None):
    """Reads evaluations of any of these kinds as the table that `analyse` takes.

    Args:
        source: a directory with evaluations.csv, or with lm-evaluation-harness results (.json) at any depth; one such
            file; a .csv, .parquet, .jsonl or .json table with a row per run, task and metric, or with a column per
            metric; or a pandas frame.
        sizes: a table with a row per model: its name (column model), N, D or C, and any of family, seed and step.
        columns: our name -> column of the table, such as {"accuracy": "acc_norm", "family": "Model Family"}; n and
            chance also take a number.

    Returns:
        (pandas frame, notes: what was taken for what).

    Raises:
        InputError: nothing to read; no such column; models without a row in `sizes`.

    Example (a column per metric):
        >>> import pandas
        >>> flat = pandas.DataFrame({"model": ["a", "b"], "flops": [1e18, 1e19], "acc": [0.3, 0.5], "acc_stderr": 0.02})
        >>> read(flat)[0][["run_id", "metric", "value", "n", "C"]].values.tolist()
        [['a', 'accuracy', 0.3, 576.0, 1e+18], ['b', 'accuracy', 0.5, 576.0, 1e+19]]
    """
    path = pathlib.Path(source) if isinstance(source, str | pathlib.PurePath) else None
    if path is not None and path.is_dir() and (path / "evaluations.csv").is_file():
        path = source = path / "evaluations.csv"
    if path is not None and (path.is_dir() or (path.suffix == ".json" and _results(path))):
        frame, name = results(path), path.name
    else:
        frame, name = load(source)
    if "run_status" in frame and not columns:  # lmjax's own
        return frame, []
    table, where = load(sizes) if sizes is not None else ((), "")
    of_sizes = {ours: theirs for ours, theirs in (columns or {}).items() if theirs in table and theirs not in frame}
    own = {ours: theirs for ours, theirs in (columns or {}).items() if ours not in of_sizes}
    frame, notes = _named(frame, own, name)
    if sizes is not None:
        table, more = _named(table, of_sizes, where)
        frame, notes = _with_sizes(frame, table, where), notes + more
    if "task" not in frame:
        frame["task"] = path.stem if path is not None else "task"
    return _long(frame, name, notes)


def results(path):
    """Returns the rows of lm-evaluation-harness files at or below a path: a row per model, task and metric.

    Columns: run_id (the model), step, seed and D where its name or revision has them (step1000, seed3, tokens20B), N
    where the file counts the parameters, task, metric ("acc,none"), value, n, shots, limit, file.
    """
    import pandas

    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    rows = []
    for file in files:
        record = _results(file)
        if not record:
            continue
        model, config = _model(record, file), record["config"]
        for task, values in record["results"].items():
            count = record.get("n-samples", {}).get(task, {})
            shots = record.get("n-shot", {}).get(task, config.get("num_fewshot"))
            shared = model | {"task": task, "n": count.get("effective"), "shots": shots, "limit": config.get("limit")}
            for metric, value in values.items():
                if isinstance(value, int | float):
                    rows.append({**shared, "metric": metric, "value": float(value), "file": file.name})
    if not rows:
        raise InputError(
            f"no evaluations in {path}: expected evaluations.csv (make one with lmjax eval {path} --tasks all), or "
            f"results_*.json of lm-evaluation-harness, got {len(files)} other .json files"
        )
    return pandas.DataFrame(rows).dropna(axis=1, how="all")


def _results(file):
    """The content of a file of results, with its config ({} without one); None for any other .json."""
    try:
        record = json.loads(file.read_text()) if file.is_file() else None
    except ValueError as error:
        raise InputError(f"{file} cannot be read as .json: {error}") from error
    found = record.get("results") if isinstance(record, dict) else None
    if not (isinstance(found, dict) and all(isinstance(v, dict) for v in found.values())):
        return None
    return record | {"config": record["config"] if isinstance(record.get("config"), dict) else {}}


def _model(record, file) -> dict:
    """Name of the model, with step, seed and D from its name and revision, and N."""
    config = record["config"]
    given = config.get("model_args") or {}
    if isinstance(given, str):
        given = dict(part.split("=", 1) for part in given.split(",") if "=" in part)
    names = (record.get("model_name"), given.get("pretrained"), given.get("model"), given.get("path"))
    name = next((str(n) for n in (*names, config.get("model")) if n), file.parent.name)
    told = f"{name} {given.get('revision') or config.get('model_revision') or ''}"
    found = {key: re.search(rf"{key}s?[-_]?(\d+)(B?)", told) for key in ("step", "seed", "token")}
    facts = {key: float(m[1]) for key, m in found.items() if m and key != "token"}
    if found["token"] and found["token"][2]:
        facts["D"] = 1e9 * float(found["token"][1])
    parameters = config.get("model_num_parameters") or 0
    return {"run_id": name, **facts} | ({"N": float(parameters)} if parameters > 0 else {})


def _plain(name) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


def _named(frame, columns, name):
    """Renames columns to ours: the named ones, then those with another name of FACTS."""
    frame = frame.copy()
    for ours, theirs in columns.items():
        known = (*FACTS, *SCALES, *METRICS, "answer_tokens")
        if ours not in known:
            raise InputError(f"columns: expected a name of lmjax, got {ours!r}{nearest(ours, known)}")
        metrics = set(frame["metric"].map(str)) if "metric" in frame and ours in METRICS else set()
        if theirs not in frame and theirs not in metrics:
            if ours in CONSTANTS and re.fullmatch(r"[\d.e+-]+", theirs):
                frame[ours] = float(theirs)
                continue
            names = [*map(str, frame.columns), *metrics]
            raise InputError(f"{name}: expected a column {theirs!r} for {ours}{nearest(theirs, names)}")
        swapped = {c: f"{ours}_stderr" for c in [*frame, *metrics] if ERROR.sub("", str(c)) == theirs} | {theirs: ours}
        if theirs in metrics:
            frame = frame[frame["metric"].map(str) != ours] if ours != theirs else frame
            frame = frame.assign(metric=frame["metric"].replace(swapped))
        else:
            frame = frame.drop(columns=[ours] if ours in frame and ours != theirs else []).rename(columns=swapped)
    found = {}
    for ours, others in FACTS.items():
        theirs = next((c for other in others.split() for c in frame if _plain(c) == other), None)
        if ours not in frame and theirs is not None:
            found[theirs] = ours
    notes = [f"{ours} is column {theirs}" for theirs, ours in (found | {v: k for k, v in columns.items()}).items()]
    return frame.rename(columns=found), notes


def _with_sizes(frame, table, name):
    """Joins a row per model, by the name's last part (and by step where both tables have it)."""
    for part, what in ((frame, "the evaluations"), (table, name)):
        need(part, ["run_id"], f"{what} (the model's name)")
        part["model key"] = part["run_id"].map(lambda text: str(text).rstrip("/").rsplit("/", 1)[-1].lower())
    keys = ["model key"] + ["step"] * ("step" in frame and "step" in table)
    twice = table[table.duplicated(keys)]
    if len(twice):
        raise InputError(f"{name}: expected one row per model, got {twice['run_id'].iloc[0]!r} more than once")
    missing = sorted(set(frame["model key"]) - set(table["model key"]))
    if missing:
        raise InputError(
            f"{name}: no row for {len(missing)} models: {', '.join(missing[:8])}{nearest(missing[0], table['run_id'])}"
        )
    added = [column for column in table if column not in ("run_id", *keys)]
    joined = frame.drop(columns=[c for c in added if c in frame]).merge(table[keys + added], on=keys, how="left")
    return joined.drop(columns="model key")


def _long(frame, name, notes):
    """A row per run, task and metric of ours with its standard error, and notes."""
    import pandas

    if not {"metric", "value"} <= set(frame):
        frame = _melted(frame, name, notes)
    told = frame["metric"].notna() & (frame["metric"] != "")
    errors = frame["metric"].map(lambda m: bool(ERROR.search(str(m))))
    frame = frame.assign(metric=frame["metric"].map(lambda m: ERROR.sub("", str(m))).where(told, ""))
    keys = ["row", "run_id", "task", "shots", "step", "seed", "family", *SCALES, "file", "metric"]
    keys = [name for name in keys if name in frame]
    if errors.any():
        beside = frame[errors].drop_duplicates(keys)[[*keys, "value"]].rename(columns={"value": "standard_error"})
        rest = frame[~errors].drop(columns="standard_error", errors="ignore")
        frame = rest.merge(beside, on=keys, how="left")
    frame, notes = _ours(frame.drop(columns="row", errors="ignore"), name, notes)
    if "standard_error" in frame:
        share = frame["metric"].map(lambda m: m in METRICS and limits(m) == (0.0, 1.0))
        p, own = (pandas.to_numeric(frame[c], errors="coerce") for c in ("value", "standard_error"))
        items = (p * (1 - p) / own**2 + 1).where(share & (own > 0) & (p > 0) & (p < 1))
        items = items.groupby(frame["task"]).transform("median").round()
        given = frame["n"] if "n" in frame else pandas.Series(math.nan, frame.index)
        if (given.isna() & items.notna()).any():
            notes.append("n is derived from standard errors where it is not given: p (1 - p) / (n - 1)")
        frame["n"] = given.fillna(items)
    elif "n" not in frame:
        frame["n"] = math.nan
    if "seed" in frame and "run_id" in frame:
        seeds = frame["seed"].map(lambda s: "" if s != s or s is None else f" seed {s}")
        frame["run_id"] = frame["run_id"].map(str) + seeds
    return frame, notes


def _melted(frame, name, notes):
    """A table with a column per metric as a row per metric."""
    wide = [c for c in frame if ERROR.sub("", str(c)).partition(",")[0] in METRICS]
    if not any(not ERROR.search(str(c)) for c in wide) and "loss" in frame:
        frame, wide = frame.assign(task_loss=frame["loss"]), ["task_loss"]
    if not wide:
        raise InputError(
            f"{name}: expected columns metric and value, or a column per metric ({', '.join(METRICS)}), got "
            f"{', '.join(map(str, frame.columns[:20]))}; name them with --columns, as in --columns accuracy=COLUMN"
        )
    if "standard_error" in frame and len(wide) > 1:
        raise InputError(f"{name}: expected METRIC_stderr beside several metrics, got one column of standard errors")
    others = [c for c in frame if c not in (*wide, "metric", "value")]
    frame = frame.assign(row=np.arange(len(frame)))
    long = frame.melt(id_vars=[*others, "row"], value_vars=wide, var_name="metric", value_name="value")
    if "run_id" not in long:
        long["run_id"] = "row " + long["row"].map(str)
    kept = long[long["value"].notna()]
    if lost := list(long.loc[~long["row"].isin(kept["row"]), "run_id"].map(str).unique()):
        notes.append(f"{len(lost)} rows have no value of {' or '.join(wide)} and are left out: {', '.join(lost[:5])}")
    return kept.reset_index(drop=True)


def _ours(frame, name, notes):
    """Metrics under our names: of several that are one of ours, a task keeps the first."""
    theirs = frame["metric"].str.partition(",")[0]
    known = theirs.isin(list(METRICS))
    left = sorted(set(theirs[~known]) - {""})
    if left:
        notes.append(f"metrics not used: {', '.join(left)}")
    if not known.any():
        raise InputError(f"{name}: expected one of the metrics {', '.join(METRICS)}, got {', '.join(left) or 'none'}")
    frame = frame.assign(ours=theirs.map(METRICS), rank=frame["metric"].map(_rank))[known | (theirs == "")]
    first = frame.groupby(["task", "ours"])["rank"].transform("min")
    beside = sorted(set(frame["metric"][frame["rank"] > first]))
    if beside:
        notes.append(
            f"metrics beside others that are used: {', '.join(beside)} (--columns accuracy=acc_norm takes one)"
        )
    frame = frame[~(frame["rank"] > first)]
    for metric, ours in frame[["metric", "ours"]].dropna().drop_duplicates().itertuples(index=False):
        if metric != ours:
            notes.append(f"{ours} is {metric}")
    inverse = frame["metric"].str.match("(?:perplexity|ppl)(?:,|$)")
    if inverse.any():
        value = frame["value"].astype(float)
        if "standard_error" in frame:
            frame["standard_error"] = frame["standard_error"].where(~inverse, frame["standard_error"] / value)
        frame["value"] = value.where(~inverse, -np.log(value.where(inverse, 1.0)))
    frame = frame.assign(metric=frame["ours"].fillna(""))
    return frame.drop(columns=["ours", "rank"]).reset_index(drop=True), list(dict.fromkeys(notes))


def _rank(metric):
    """Sorts the metrics that are one of ours: by METRICS, then by FILTERS, then by the filter's name."""
    name, _, filtered = metric.partition(",")
    place = [list(names).index(n) if n in names else 99 for n, names in ((name, METRICS), (filtered, FILTERS))]
    return f"{place[0]:02d} {place[1]:02d} {filtered}"

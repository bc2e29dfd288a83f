"""Columns of a table of evaluations: metrics and their ranges, variables of scale, optional columns.

A user's own table needs the columns listed in COLUMNS_WORDS; lmjax's own has those of lmjax.evals.table.COLUMNS.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.table import load

HARD = ("exact_match", "greedy_match", "accuracy", "preference")  # the first that a task has


@dataclass(frozen=True)
class Smooth:
    """A smooth metric: its range, and the error y = offset + sign value that falls towards a floor >= 0."""

    low: float
    high: float
    sign: float
    offset: float
    error: str


SMOOTH = {  # likelihoods first: they are the loss on the task's own answers
    "choice_log_probability": Smooth(-math.inf, 0.0, -1.0, 0.0, "nats per choice"),
    "log_likelihood_per_token": Smooth(-math.inf, 0.0, -1.0, 0.0, "nats per answer token"),
    "bits_per_byte": Smooth(0.0, math.inf, 1.0, 0.0, "bits per answer byte"),
    "log_likelihood": Smooth(-math.inf, 0.0, -1.0, 0.0, "nats per answer"),
    "brier": Smooth(0.0, 2.0, 1.0, 0.0, "squared error of the choice"),
    "choice_probability": Smooth(0.0, 1.0, -1.0, 1.0, "1 - probability of the right choice"),
    "token_accuracy": Smooth(0.0, 1.0, -1.0, 1.0, "share of wrong answer tokens"),
    "edit_distance": Smooth(0.0, 1.0, 1.0, 0.0, "edit distance"),
}
OF_CHOICES = ("choice_log_probability", "choice_probability", "brier")  # accuracy is the argmax of these probabilities
X = {  # variable of scale -> {column: convention}; the first column present is used
    "C": ({"flops_exact": "C = exact training FLOP", "flops_6nd": "C = 6 N D FLOP", "C": "C as given in the table"}),
    "N": ({"n_total": "N = all parameters", "N": "N as given in the table"}),
    "D": ({"tokens": "D = training tokens seen", "D": "D as given in the table"}),
    "loss": ({"loss": "loss = loss column of the table"}),
}
OWN_LOSS = "loss = validation nats per predicted token"  # where the table is lmjax's own, which has run_status
NEEDED = ("task", "metric", "value", "n")
OPTIONAL = {  # column -> value where the table has none
    "step": 0.0,
    "shots": 0.0,
    "seed": math.nan,
    "status": "done",
    "reason": "",
    "family": "",
    "semantics": "",
    "standard_error": math.nan,
    "chance": math.nan,
    "held_out": False,
    "schedule_complete": math.nan,
    "answer_tokens": math.nan,  # mean tokens of the right answers
}
NUMBERS = ("value", "n", "step", "shots", "seed", "standard_error", "chance", "answer_tokens")
SCALES = tuple(column for columns in X.values() for column in columns)
TOLERANCE = 1e-9  # of a metric's range: rounding in a file
COLUMNS_WORDS = (
    "a row per run, task and metric, with columns task, metric, value, n (items), and C, N and D, or loss (also "
    "flops_exact, flops_6nd, n_total, tokens); where known run_id, seed, step, shots, family, chance, standard_error, "
    f"answer_tokens. Hard metrics: {', '.join(HARD)}; smooth ones: {', '.join(SMOOTH)}"
)


def read(table):
    """Returns a table given as a frame or as a file (see table.load), with every column of OPTIONAL and run_id.

    Without run_id, the k-th rows of a task's metrics at one scale, seed and step are taken as one run, whose id is
    "row" and the number of its first row.

    Raises:
        InputError: no such file, another ending; columns missing (all are named); text where a number is expected.

    Example:
        >>> import pandas
        >>> rows = [dict(task="sum", metric=m, value=v, n=9, C=c) for c in (1, 2) for m, v in (("a", 0), ("b", 1))]
        >>> read(pandas.DataFrame(rows))["run_id"].tolist()
        ['row 0', 'row 0', 'row 2', 'row 2']
    """
    table, _ = load(table)
    missing = [name for name in NEEDED if name not in table]
    if not any(name in table for name in SCALES):
        missing.append("of scale (C, N and D, or loss)")
    if missing:
        raise InputError(
            f"table of evaluations: no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}; "
            f"expected {COLUMNS_WORDS}"
        )
    if "family" not in table and "model_family" in table:
        table = table.rename(columns={"model_family": "family"})
    table = table.assign(**{name: value for name, value in OPTIONAL.items() if name not in table})
    table = table.assign(**{name: _numbers(table, name) for name in (*NUMBERS, *SCALES) if name in table})
    words = {name: table[name].astype(object).fillna("") for name in ("task", "family", "semantics", "reason")}
    shots = table["shots"].mask((table["status"] == "done") & table["shots"].isna(), 0.0)
    table = table.assign(**words, step=table["step"].fillna(0.0), shots=shots)
    return table if "run_id" in table else table.assign(run_id=_run_ids(table))


def _numbers(table, name):
    """A column as floats."""
    import pandas

    numbers = pandas.to_numeric(table[name], errors="coerce").astype(float)
    bad = numbers.isna() & table[name].notna()
    if bad.any():
        raise InputError(
            f"table of evaluations: expected numbers in column {name}, got {table[name][bad].iloc[0]!r} in row "
            f"{int(np.flatnonzero(bad)[0])}"
        )
    return numbers


def _run_ids(table):
    keys = [name for name in (*SCALES, "seed", "step", "family") if name in table]
    repeat = table.groupby([*keys, "task", "shots", "metric"], dropna=False).cumcount()
    run = table.assign(repeat=repeat).groupby([*keys, "repeat"], dropna=False, sort=False).ngroup().to_numpy()
    first = {number: row for row, number in reversed(list(enumerate(run)))}
    return [f"row {first[number]}" for number in run]


def scaled(table, x: str):
    """Returns the table with columns N, D, C, loss and x, and their conventions.

    Raises:
        InputError: as `read`; no numbers for x.
    """
    frame, conventions = read(table).reset_index(drop=True), {}
    own = "run_status" in frame
    for name, columns in X.items():
        found = next((c for c in columns if c in frame and np.isfinite(frame[c]).any()), None)
        if found is not None:
            conventions[name] = OWN_LOSS if own and name == "loss" else columns[found]
        frame[name] = frame[found] if found else math.nan
    if "C" not in conventions and {"N", "D"} <= conventions.keys():
        frame["C"], conventions["C"] = 6 * frame["N"] * frame["D"], "C = 6 N D FLOP"
    if x not in conventions:
        raise InputError(
            f"x = {x}: the table has no numbers in {' or '.join(X[x])}; it has {', '.join(conventions) or 'no scale'}"
        )
    return frame.assign(x=frame[x]), conventions


def limits(metric: str) -> tuple[float, float]:
    """The range a metric's values lie in."""
    return (0.0, 1.0) if metric in HARD else (SMOOTH[metric].low, SMOOTH[metric].high)


def error_of(metric: str, values) -> np.ndarray:
    """The falling error of a smooth metric: offset + sign value. Example: token_accuracy 0.9: 0.1."""
    kind = SMOOTH[metric]
    return np.maximum(kind.offset + kind.sign * np.asarray(values, float), 0)

"""One task's curves from a table of evaluations: hard and smooth metrics of the same answers, side by side.

A cell is one run at one step; a point is one configuration (N, D and step), averaged over its seeds. Every row of the
task ends in `cells` (used) or `excluded` (with a reason); limits of the data are in `warnings`. A user's own table
needs the columns listed in COLUMNS_WORDS; lmjax's own has those of lmjax.evals.table.COLUMNS.
R cells, G points, I items.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.evals.metrics import floor
from lmjax.format import variable
from lmjax.scaling.columns import cluster
from lmjax.scaling.table import SAME, load, truth

if TYPE_CHECKING:
    import pandas  # at run time it is imported where it is used, because the import is slow

FEWEST_POINTS = 5  # of a ladder: a law with a break has four parameters
HARD_METRICS = ("exact_match", "greedy_match", "accuracy", "preference")  # the first that a task has


class Smooth(NamedTuple):
    """A smooth metric: its range, and its error y = offset + sign value, which falls towards a floor >= 0."""

    low: float
    high: float
    offset: float
    sign: float
    unit: str  # of the error


SMOOTH_METRICS = {  # likelihoods first: they are the loss on the task's own answers
    "choice_log_probability": Smooth(-math.inf, 0.0, 0.0, -1.0, "nats per choice"),
    "log_likelihood_per_token": Smooth(-math.inf, 0.0, 0.0, -1.0, "nats per answer token"),
    "bits_per_byte": Smooth(0.0, math.inf, 0.0, 1.0, "bits per answer byte"),
    "log_likelihood": Smooth(-math.inf, 0.0, 0.0, -1.0, "nats per answer"),
    "brier": Smooth(0.0, 2.0, 0.0, 1.0, "squared error of the choice"),
    "choice_probability": Smooth(0.0, 1.0, 1.0, -1.0, "1 - probability of the right choice"),
    "token_accuracy": Smooth(0.0, 1.0, 1.0, -1.0, "share of wrong answer tokens"),
    "edit_distance": Smooth(0.0, 1.0, 0.0, 1.0, "edit distance"),
    "task_loss": Smooth(0.0, math.inf, 0.0, 1.0, "loss in the unit of the table"),
}
ITEMS_ALONE = "their spread is that of the items alone"
FEWEST_REPEATS = 3  # seeds beyond the first, over all points: below, their noise is unknown
X = {  # variable of scale -> {column: convention}; the first column present is used
    "C": {"flops_exact": "C = exact training FLOP", "flops_6nd": "C = 6 N D FLOP", "C": "C as given in the table"},
    "N": {"n_total": "N = all parameters", "N": "N as given in the table"},
    "D": {"tokens": "D = training tokens seen", "D": "D as given in the table"},
    "loss": {"loss": "loss = loss column of the table"},
}
OWN_LOSS = "loss = validation nats per predicted token"  # where the table is lmjax's own, which has run_status
SCALES = tuple(column for columns in X.values() for column in columns)
NEEDED = ("task", "metric", "value", "n")
# optional columns and the values that stand for missing ones
TEXTS = dict.fromkeys(("reason", "family", "semantics"), "")
NUMBERS = {"step": 0.0, "shots": 0.0}
NUMBERS |= dict.fromkeys(("seed", "standard_error", "chance", "answer_tokens"), math.nan)  # tokens of right answers
OPTIONAL = {**TEXTS, **NUMBERS, "status": "done", "held_out": False, "schedule_complete": math.nan}
TOLERANCE = 1e-9  # of a metric's range: rounding in a file
COLUMNS_WORDS = (
    "a row per run, task and metric, with columns task, metric, value, n (items), and C, N and D, or loss (also "
    "flops_exact, flops_6nd, n_total, tokens); where known run_id, seed, step, shots, family, chance, standard_error, "
    f"answer_tokens. Hard metrics: {', '.join(HARD_METRICS)}; smooth ones: {', '.join(SMOOTH_METRICS)}"
)


class NotOneLadder(InputError):
    """N and D of the runs vary independently."""


def limits(metric: str) -> tuple[float, float]:
    """The range of a metric's values."""
    return (0.0, 1.0) if metric in HARD_METRICS else SMOOTH_METRICS[metric][:2]


def error_of(metric: str, values) -> np.ndarray:
    """Error of a metric (lower is better), offset + sign value. Example: token_accuracy 0.9: 0.1."""
    kind = SMOOTH_METRICS["token_accuracy" if metric in HARD_METRICS else metric]
    return np.maximum(kind.offset + kind.sign * np.asarray(values, float), 0)


# -- The table


def read(table):
    """Returns a table of evaluations (a frame or a file, see table.load) with run_id and every column of OPTIONAL.

    Without run_id, the k-th rows of a task's metrics at one scale and seed (and step) are taken as one run, whose id is
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
    numbers = {name: _numbers(table, name) for name in ("value", "n", *NUMBERS, *SCALES) if name in table}
    texts = {name: table[name].astype(object).fillna("") for name in ("task", *TEXTS)}
    table = table.assign(**numbers, **texts)
    shots = table["shots"].mask((table["status"] == "done") & table["shots"].isna(), 0.0)
    table = table.assign(step=table["step"].fillna(0.0), shots=shots)
    return table if "run_id" in table else table.assign(run_id=_run_ids(table))


def _numbers(table, name):
    """A column as floats; empty cells are nan."""
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
    keys = [name for name in (*SCALES, "seed", "family") if name in table]
    repeat = table.groupby([*keys, "step", "task", "shots", "metric"], dropna=False).cumcount()
    run = table.assign(repeat=repeat).groupby([*keys, "repeat"], dropna=False, sort=False).ngroup().to_numpy()
    _, first, number = np.unique(run, return_index=True, return_inverse=True)
    return [f"row {row}" for row in first[number]]


def scaled(table, x: str):
    """Returns the table with columns N, D, C, loss and x, and their conventions.

    Raises:
        InputError: as `read`; no numbers for x.
    """
    frame, conventions = read(table).reset_index(drop=True), {}
    for name, columns in X.items():
        found = next((c for c in columns if c in frame and np.isfinite(frame[c]).any()), None)
        if found is not None:
            conventions[name] = OWN_LOSS if "run_status" in frame and name == "loss" else columns[found]
        frame[name] = frame[found] if found else math.nan
    if "C" not in conventions and {"N", "D"} <= conventions.keys():
        frame["C"], conventions["C"] = 6 * frame["N"] * frame["D"], "C = 6 N D FLOP"
    if x not in conventions:
        raise InputError(
            f"x = {x}: the table has no numbers in {' or '.join(X[x])}; it has {', '.join(conventions) or 'no scale'}"
        )
    frame["x"] = frame[x]
    runs = frame.groupby("run_id", dropna=False)  # checkpoints at one x: the last is the run, the others its neighbours
    unsaid = frame["schedule_complete"].isna() & (runs["x"].transform("nunique") == 1)
    last = frame["step"] == runs["step"].transform("max")
    complete = frame["schedule_complete"].astype(object)
    frame["schedule_complete"] = complete.mask(unsaid & (runs["step"].transform("nunique") > 1), last)
    return frame, conventions


def of_task(frame, task: str, shots: int | None = None, family: str | None = None):
    """Mask [rows] of a task, number of shots and family (None: any); also includes rows without a result that may
    belong to them, since a failed run has no task."""
    failed = frame["status"] != "done"
    rows = (frame["task"] == task) | (failed & (frame["task"] == ""))
    if shots is not None:
        rows &= (frame["shots"] == shots) | frame["shots"].isna()
    if family is not None:
        rows &= (frame["family"] == family) | (failed & (frame["family"] == ""))
    return rows


def tasks_of(frame) -> dict[tuple[str, int, str], tuple[bool, bool]]:
    """(task, shots, family) of `read` -> whether it has results in a hard and in a smooth metric, sorted by task."""
    keys = ["task", "shots", "family"]
    metrics = frame[frame["status"] == "done"].groupby(keys, dropna=False, sort=True)["metric"].agg(set)
    kinds = {key: (bool(there & {*HARD_METRICS}), bool(there & {*SMOOTH_METRICS})) for key, there in metrics.items()}
    return {(str(task), int(shots), str(fam)): has for (task, shots, fam), has in kinds.items() if any(has)}


# -- Ladders


def ladders(
    frame, task: str = "the table", by: str | None = None, incomplete: bool = False
) -> list[tuple[str, np.ndarray]]:
    """Finds the ladders of a table: runs at one N, at one D, or with D growing with N.

    Args:
        frame: rows with N and D (see `scaled`); rows without a result belong to every ladder.
        task: name in messages.
        by: a column; one ladder per value of it. None: found from N and D.
        incomplete: rows before the end of their run's schedule are part of the ladders.

    Returns:
        (description, mask of its rows) of each ladder; ("", all rows) where the whole table is one.

    Raises:
        InputError: N and D vary independently and no value of either has FEWEST_POINTS of the other; no such column.

    Example (six sizes at 1e7 tokens and five token counts at one size):
        >>> import pandas
        >>> runs = pandas.DataFrame({"N": [1, 2, 4, 8, 16, 32] + [16] * 5, "D": [1e7] * 6 + [1e5, 2e5, 5e5, 1e6, 3e6]})
        >>> [(name, int(rows.sum())) for name, rows in ladders(runs.assign(status="done"))]
        [('over D at N = 16', 6), ('over N at D = 10M', 6)]
    """
    done = (frame["status"] == "done").to_numpy()
    if not incomplete and "schedule_complete" in frame:
        done = done & truth(frame, "schedule_complete", task, missing=True)
    if by is not None:
        if by not in frame:
            raise InputError(f"by: expected a column of the table, got {by!r}{nearest(by, map(str, frame.columns))}")
        counted = by in ("N", "D", "C")
        column = _clustered(frame[by]) if counted else frame[by].to_numpy()
        kinds = sorted({v for v in column[done] if v == v}, key=lambda v: (str(type(v)), v))
        return [(f"{by} = {variable(by, v) if counted else v}", (column == v) | ~done) for v in kinds]
    N, D = (_clustered(frame[name]) for name in ("N", "D"))
    if one_dimensional(N[done], D[done]):
        return [("", np.ones(len(frame), bool))]
    found = []
    for fixed, varied, held, free in (("N", "D", N, D), ("D", "N", D, N)):
        for value in np.unique(held[done & np.isfinite(held)]):
            rows = done & (held == value)
            if len(np.unique(free[rows])) >= FEWEST_POINTS:
                failed = ~done & ((held == value) | ~np.isfinite(held))
                found.append((f"over {varied} at {fixed} = {variable(fixed, value)}", rows | failed))
    if not found:
        raise NotOneLadder(_not_one(task, N[done], D[done]))
    return found


def _clustered(values):
    """Replaces each value by that of its cluster; values within 2 % of a neighbour count as equal."""
    out = np.array(values, float)
    known = np.isfinite(out) & (out > 0)
    distinct, place = np.unique(out[known], return_inverse=True)
    out[known] = cluster(distinct, SAME)[place] if len(distinct) else out[known]
    return out


def one_dimensional(N, D) -> bool:
    """Whether runs have one N, one D, or one D per N that grows with N; unknown values are ignored."""
    N, D = _clustered(N), _clustered(D)
    known = np.isfinite(N) & np.isfinite(D)
    pairs = np.unique(np.stack([N[known], D[known]], 1), axis=0)
    return len(set(pairs[:, 0])) <= 1 or len(set(pairs[:, 1])) <= 1 or bool((np.diff(pairs, axis=0) > 0).all())


def _not_one(task, N, D):
    sizes, tokens = (np.unique(values[np.isfinite(values)]) for values in (_clustered(N), _clustered(D)))
    return (
        f"{task}: expected one ladder (one N, one D, or D growing with N), got runs at {len(sizes)} values of N and "
        f"{len(tokens)} of D; select one, as in --where D={variable('D', tokens[-1])} (where={{'D': ...}} in Python), "
        "split them with --by N, --by D or --by COLUMN (such as the family of the models), or use --x loss"
    )


# -- Curves


@dataclass(frozen=True)
class Curves:
    """A task's metrics against scale.

    x: C | N | D | loss. progress: log10 of C, N or D; -log10 of the loss: it grows with scale, [G].
    hard: name of the hard metric, "" without one; smooth: names of the smooth ones, the task's own loss first.
    cells: frame [R] of run_id, step, seed, point, N, D, C, loss, held_out and a column per metric, its standard error
        in "<metric> se". points: frame [G], sorted by progress; metrics are means over the point's cells.
    n: items. chance: of the hard metric; 0 with a warning where the table has none.
    items: metric -> (numerator [R, I], denominator [R, I]); {} without the table of items.
    lengths: tokens of the items' right answers [I]; one mean length [1]; or [0]: unknown.
    excluded: frame of run_id, step, reason, N, D, C, loss.
    groups: column of text -> its values, [R]: what may separate runs that are not of one ladder.
    noise: metric -> standard deviation over seeds that stands in where points have one seed, [R]; df: its degrees of
        freedom (see noise.py).
    """

    task: str
    shots: int
    family: str
    semantics: str
    x: str
    hard: str
    smooth: tuple[str, ...]
    cells: "pandas.DataFrame"
    points: "pandas.DataFrame"
    progress: np.ndarray
    n: int
    chance: float
    items: dict[str, tuple[np.ndarray, np.ndarray]]
    lengths: np.ndarray
    excluded: "pandas.DataFrame"
    conventions: dict[str, str]
    warnings: tuple[str, ...]
    groups: dict[str, np.ndarray]
    noise: dict[str, np.ndarray] = field(default_factory=dict)
    df: float = math.inf

    @property
    def pair(self) -> tuple[str, str]:
        """The hard metric and the first smooth one; "" for one that the task does not have."""
        return self.hard, (*self.smooth, "")[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The hard metric, if there is one, and the smooth ones."""
        return (self.hard, *self.smooth) if self.hard else self.smooth

    @property
    def point(self) -> np.ndarray:
        """The point of each cell, [R]."""
        return self.cells["point"].to_numpy(int)

    @property
    def seeds(self) -> np.ndarray:
        """Cells of each point, [G]."""
        return np.bincount(self.point, minlength=len(self.points))

    @property
    def repeats(self) -> int:
        """Known seeds beyond the first of each point; 0 if runs of one point have no seed."""
        several = self.cells["seed"].isna().to_numpy() & (self.seeds[self.point] > 1)
        return 0 if several.any() else int((self.seeds - 1).sum())


def select(
    table,
    task: str,
    x: str = "C",
    items=None,
    shots: int | None = None,
    family: str | None = None,
    incomplete: bool = False,
    one_ladder: bool = True,
    both: bool = True,
) -> Curves:
    """Selects, checks and averages one task's rows of one ladder.

    Args:
        table: frame or .csv or .parquet file with the columns of COLUMNS_WORDS.
        task: name in the column task.
        x: C | N | D | loss.
        items: frame of lmjax.evals.table.read_items, for bootstraps over items; None: the table's standard errors.
        shots, family: required where the task has several.
        incomplete: include rows before the end of their run's schedule. Their losses are not those of runs of that
            length (arXiv:2203.15556); against the loss they are what arXiv:2403.15796 uses.
        one_ladder: refuse runs that form several ladders (see `ladders`), except against the loss.
        both: require a hard and a smooth metric; else one of them is enough.

    Raises:
        InputError: missing columns, task or metrics; several families, semantics, shots or ladders; a metric out of
            its range; two values for one cell; two runs of one seed; items of another evaluation; no complete row.

    Example:
        >>> import pandas
        >>> rows = [dict(run_id=f"r{i}", task="sum", metric=m, value=v, n=100, N=10**i, D=1e6, seed=0)
        ...         for i, p in ((4, 0.5), (5, 0.9)) for m, v in (("exact_match", p**3), ("token_accuracy", p))]
        >>> curves = select(pandas.DataFrame(rows), "sum")
        >>> curves.hard, curves.smooth, curves.points["exact_match"].round(6).tolist()
        ('exact_match', ('token_accuracy',), [0.125, 0.729])
    """
    if x not in X:
        raise InputError(f"x: expected a variable of scale, got {x!r}{nearest(x, X)}")
    frame, conventions = scaled(table, x)
    rows, out, notes = _complete(frame, task, shots, family, incomplete)
    if rows["run_id"].astype(str).str.startswith("row ").all():
        notes.append("the table has no run_id: rows of one scale, seed and step are taken as one run, in their order")
    hard, *names = _metrics(rows, task, both)
    names = [hard] * bool(hard) + names
    _check(rows, task, names)
    cells, beside = _cells(rows, names, x)
    if one_ladder and x != "loss" and not one_dimensional(cells["N"], cells["D"]):
        raise NotOneLadder(_not_one(task, cells["N"], cells["D"]))
    cells, points = _points(cells, names, x)
    first = rows.iloc[0]
    chance, n = _chance(rows, hard, notes) if hard else 0.0, _count(rows, task, names, notes)
    if hard:  # without a standard error, that of a share of n items
        own, error = cells[hard], f"{hard} se"
        cells[error] = cells[error].fillna(own.map(lambda share: floor(share, n)))
    asked = {"task": task, "shots": first["shots"], "semantics": first["semantics"]}
    arrays = _matched(items, asked, cells, names, notes) if items is not None else {}
    if items is None:
        notes.append("no table of items: intervals use the table's standard errors and treat metrics as independent")
    _doubts(cells, points, x, notes)
    return Curves(
        task=task,
        shots=int(first["shots"]),
        family=str(first["family"]),
        semantics=str(first["semantics"]),
        x=x,
        hard=hard,
        smooth=tuple(name for name in names if name != hard),
        cells=cells,
        points=points,
        progress=np.log10(points["x"].to_numpy(float)) * (-1 if x == "loss" else 1),
        n=n,
        chance=chance,
        items=arrays,
        lengths=_answer_lengths(arrays, rows, cells, names, notes),
        excluded=_excluded([*out, beside]),
        conventions=conventions,
        warnings=tuple(notes),
        groups=_groups(rows, cells),
    )


def _complete(frame, task, shots, family, incomplete):
    """The task's rows of complete runs, the excluded ones, and warnings."""
    if not (frame["task"] == task).any():
        raise InputError(f"no rows of task {task!r}{nearest(task, {str(t) for t in frame['task']} - {''})}")
    asked = frame[of_task(frame, task, shots, family)]
    done = asked[(asked["status"] == "done") & asked["metric"].notna() & (asked["metric"] != "")]
    if not len(done):
        raise InputError(f"{task}: no row with a result for family {family}, shots {shots}")
    for column in ("family", "semantics", "shots", "task_hash", "limit"):
        kinds = sorted({str(v) for v in done[column].dropna()}) if column in done else []
        if len(kinds) > 1:
            raise InputError(
                f"{task}: expected one {column}, got {', '.join(kinds)}: their values are not comparable; "
                f"pass {column}, or keep the rows of one, as in table[table.{column} == ...]"
            )
    failed = asked[~asked.index.isin(done.index)]
    out, notes = [failed.assign(reason=failed["status"].astype(str).str.replace("_", " "))], []
    if done["schedule_complete"].isna().any():
        notes.append("the table does not say whether schedules were complete: taken as complete")
    early = ~truth(done, "schedule_complete", task, missing=True)
    num_early = len(done[early][["run_id", "step"]].drop_duplicates())
    if early.all() and not incomplete:
        raise InputError(f"{task}: every row is before the end of its schedule; set incomplete=True to use them")
    if early.any() and incomplete:
        notes.append(f"{num_early} cells are before the end of their schedule, unlike runs of that length")
    elif early.any():
        out.append(done[early].assign(reason="before the end of its schedule"))
        done = done[~early]
        notes.append(f"{num_early} cells before the end of their schedule are left out")
    return done, out, notes


def _metrics(rows, task, both) -> list[str]:
    """The first known hard metric of the rows ("" without one), then all known smooth ones; `both`: each is needed."""
    there = set(rows["metric"])
    hard = [name for name in HARD_METRICS if name in there]
    smooth = [name for name in SMOOTH_METRICS if name in there]
    lacking = "hard" if both and not hard else "smooth" if not smooth and (both or not hard) else ""
    if lacking:
        listed = ", ".join(HARD_METRICS if lacking == "hard" else SMOOTH_METRICS)
        raise InputError(f"{task}: expected a {lacking} metric ({listed}), got {', '.join(sorted(there))}")
    return [(*hard, "")[0], *smooth]


def _check(rows, task, names):
    kept = rows[rows["metric"].isin(names)]
    for name in names:
        of_it = kept[kept["metric"] == name]
        low, high = limits(name)
        bad = ~of_it["value"].between(low - TOLERANCE, high + TOLERANCE) | np.isinf(of_it["value"])
        if bad.any():
            worst = of_it[bad].iloc[0]
            raise InputError(
                f"{task}: expected {name} in [{low:g}, {high:g}], got {worst['value']} of {worst['run_id']} "
                f"step {worst['step']:g}{'; divide percentages by 100' * bool(high == 1 < worst['value'])}"
            )
    twice = kept[kept.duplicated(["run_id", "step", "metric"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(
            f"{task}: expected one {row['metric']} of {row['run_id']} at step {row['step']:g}, got several "
            f"({len(twice)} duplicated cells); keep one evaluation of each"
        )


def _cells(rows, names, x):
    """Returns a row per run and step, and apart, with a reason, those without x or without all metrics."""
    keys = ["run_id", "step"]
    facts = rows.drop_duplicates(keys).set_index(keys)[["seed", "N", "D", "C", "loss", "x", "held_out"]]
    for suffix, column in (("", "value"), (" se", "standard_error")):
        wide = rows[rows["metric"].isin(names)].pivot(index=keys, columns="metric", values=column)
        facts = facts.join(wide.add_suffix(suffix).astype(float))
    facts = facts.reset_index()
    gaps = facts[list(names)].isna().any(axis=1)
    reason = np.where(~(facts["x"] > 0), f"no {x}", np.where(gaps, "no value of every metric", ""))
    kept = facts[reason == ""].copy()
    if not len(kept):
        raise InputError(f"no run has both {x} and values of {', '.join(names)}")
    kept["held_out"] = truth(kept, "held_out", str(rows["task"].iloc[0]))
    return kept, facts[reason != ""].assign(reason=reason[reason != ""])


def _points(cells, names, x):
    """Numbers the points by progress and averages their cells."""
    columns = ["N", "D", "C", "step"] if cells[["N", "D", "C"]].notna().any(axis=None) else ["x", "step"]
    cells = cells.assign(point=cells.groupby(columns, dropna=False, sort=False).ngroup().to_numpy())
    known = cells[cells["seed"].notna()]
    twice = known[known.duplicated(["point", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        same = known[(known["point"] == row["point"]) & (known["seed"] == row["seed"])]["run_id"]
        raise InputError(
            f"expected one run per N, D, step and seed, got {', '.join(map(str, same))}: duplicated cells, or runs "
            "that differ in another setting; select one setting with --where COLUMN=VALUE"
        )
    grouped = cells.groupby("point", sort=False)
    points = grouped[["N", "D", "C", "loss", *names]].mean()
    points["x"] = np.exp(np.log(cells["x"].astype(float)).groupby(cells["point"]).mean())
    points["held_out"], points["seeds"] = grouped["held_out"].any(), grouped.size()
    points["step"] = grouped["step"].first()
    order = points["x"].sort_values(ascending=x != "loss", kind="stable").index
    place = {old: new for new, old in enumerate(order)}
    cells = cells.assign(point=cells["point"].map(place)).sort_values(["point", "seed"], kind="stable")
    return cells.reset_index(drop=True), points.loc[order].reset_index(drop=True)


def _chance(rows, hard, notes) -> float:
    values = rows[rows["metric"] == hard]["chance"].to_numpy(float)
    if not np.isfinite(values).all():
        notes.append(f"the chance level of {hard} is unknown: 0 is used")
        return 0.0
    if np.ptp(values) > 1e-6:
        raise InputError(
            f"{hard}: expected one chance level, got {values.min():g} to {values.max():g}: the items differ"
        )
    return float(values[0])


def _count(rows, task, names, notes) -> int:
    """Items of the task; 0 where they are unknown and no metric is a share of them."""
    counts = rows["n"].dropna().to_numpy(float)
    if not len(counts) and not any(limits(name) == (0.0, 1.0) for name in names):
        return 0
    if not len(counts):
        raise InputError(
            f"{task}: expected the number of items in column n, got none: 1/n is the resolution; name the column, or "
            "the number, with --columns n=..."
        )
    if np.ptp(counts):
        notes.append(f"cells have {counts.min():g} to {counts.max():g} items: the resolution is that of the fewest")
    return int(counts.min())


def _groups(rows, cells) -> dict[str, np.ndarray]:
    """Columns of text with one value per cell that are neither the same nor different in all of them."""
    from pandas.api.types import is_numeric_dtype

    facts = rows.drop_duplicates(["run_id", "step"]).set_index(["run_id", "step"])
    facts = facts.loc[list(zip(cells["run_id"], cells["step"], strict=True))]
    skipped = {"task", "metric", "status", "reason", "run_status", "better", "semantics", "run_dir", "file"}
    texts = [name for name in facts if name not in skipped and not is_numeric_dtype(facts[name])]
    found = {str(name): facts[name].map(str).to_numpy() for name in texts}
    return {name: values for name, values in found.items() if 1 < len(set(values)) < len(values)}


def _doubts(cells, points, x, notes):
    single = int((points["seeds"] == 1).sum())
    if single and len(points) > 1:
        notes.append(f"{single} of {len(points)} points have one seed: {ITEMS_ALONE}")
    if x != "loss" and 0 < cells["loss"].isna().sum() < len(cells):
        notes.append(f"{int(cells['loss'].isna().sum())} cells have no loss")
    held_out = int(points["held_out"].sum())
    if held_out:
        notes.append(f"{held_out} held-out runs are in the curves: every point is left out in turn")
    if len(np.unique(points["x"].round(12))) < len(points):
        notes.append(f"several configurations share one {x}: the curve is not a function of {x} alone")


def _excluded(parts):
    """The excluded cells, one row each."""
    import pandas

    columns = ["run_id", "step", "reason", "N", "D", "C", "loss"]
    parts = [part.drop_duplicates(columns[:3])[columns] for part in parts if len(part)]
    return pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame(columns=columns)


# -- Items


def _matched(table, asked: dict, cells, names, notes: list[str]) -> dict:
    """metric -> (numerator [R, I], denominator [R, I]) of the asked task, shots and semantics, checked against the
    table's values."""
    missing = [c for c in ("run_id", "step", "task", "metric", "item", "numerator", "denominator") if c not in table]
    if missing:
        raise InputError(f"table of items: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    table = table[table["metric"].isin(names)]
    for column, value in asked.items():
        if column in table and value != "":
            table = table[table[column] == value]
    arrays = {}
    for name in names:
        of_it = table[table["metric"] == name].drop_duplicates(["run_id", "step", "item"])
        wide = of_it.pivot(index=["run_id", "step"], columns="item", values=["numerator", "denominator"])
        wide = wide.reindex(list(zip(cells["run_id"], cells["step"], strict=True))).to_numpy(float)
        if not wide.size or not np.isfinite(wide).all():
            notes.append(f"not every cell has the items of {name}: the table's standard errors are used instead")
            return {}
        numerator, denominator = np.split(wide, 2, axis=1)
        off = np.abs(numerator.sum(1) / denominator.sum(1) - cells[name])
        if (off > 1e-6 * (1 + cells[name].abs())).any():
            worst = cells.iloc[int(np.argmax(off))]
            raise InputError(
                f"{asked['task']}: the items of {worst['run_id']} step {worst['step']:g} give another {name} than the "
                "table; they come from another evaluation; keep the items of one evaluation"
            )
        arrays[name] = (numerator, denominator)
    return arrays


def _answer_lengths(arrays: dict, rows, cells, names, notes: list[str]) -> np.ndarray:
    """Token counts of the right answers: of every item, else their mean, else an empty array."""
    for name in ("token_accuracy", "log_likelihood_per_token"):
        if name in arrays:
            return arrays[name][1][0]
    given = rows["answer_tokens"].dropna().to_numpy(float)
    if {"log_likelihood", "log_likelihood_per_token"} <= set(names):  # their ratio is the mean of tokens over items
        given = (cells["log_likelihood"] / cells["log_likelihood_per_token"]).to_numpy(float)
    given = given[np.isfinite(given)]
    if not len(given):
        return np.zeros(0)
    notes.append("only the mean answer length is known: items are assumed to have the two integer lengths around it")
    return np.asarray([float(np.median(given))])

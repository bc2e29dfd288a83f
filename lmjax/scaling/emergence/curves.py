"""One task's curves from the tidy table of evaluations: hard and smooth metrics of the same answers, side by side.

Checks and averages; tests nothing and draws nothing. Every row of the task ends in `cells` (used) or `excluded` (with a
reason); what is doubtful but usable is in `warnings`.

A cell is one run at one step; a level is one configuration (N, D and step) with all its seeds.
R cells, G levels, I items.
"""

import math
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.emergence.items import answer_lengths, matched

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
X = {  # name -> (columns, the first present is taken; words)
    "C": ({"flops_exact": "C = exact training FLOP", "flops_6nd": "C = 6 N D FLOP", "C": "C as given in the table"}),
    "N": ({"n_total": "N = all parameters", "N": "N as given in the table"}),
    "D": ({"tokens": "D = training tokens seen", "D": "D as given in the table"}),
    "loss": ({"loss": "loss = held-out nats per predicted token"}),
}
NEEDED = ("run_id", "task", "metric", "value")
OPTIONAL = {  # column -> value where the table has none
    "step": 0.0,
    "shots": 0.0,
    "seed": math.nan,
    "status": "done",
    "reason": "",
    "family": "",
    "semantics": "",
    "standard_error": math.nan,
    "n": math.nan,
    "chance": math.nan,
    "held_out": False,
    "schedule_complete": math.nan,
    "answer_tokens": math.nan,  # mean tokens of the right answers
}
TOLERANCE = 1e-9  # of a metric's range: rounding in a file


@dataclass(frozen=True)
class Curves:
    """A task's metrics against scale.

    x: C | N | D | loss. progress: log10 of C, N or D; -log10 of the loss: it grows with scale, [G].
    hard: name of the hard metric; smooth: names of the smooth ones, the task's own loss first.
    cells: frame [R] of run_id, step, seed, level, N, D, C, loss, held_out and a column per metric, its standard error
        in "<metric> se". levels: frame [G], sorted by progress; metrics are means over the level's cells.
    n: items. chance: of the hard metric; 0 with a warning where the table knows none.
    items: metric -> (numerator [R, I], denominator [R, I]); {} without the table of items.
    lengths: tokens of the items' right answers [I]; one mean length [1]; or [0]: unknown.
    excluded: frame of run_id, step, reason, N, D, C, loss.
    """

    task: str
    shots: int
    family: str
    semantics: str
    x: str
    hard: str
    smooth: tuple[str, ...]
    cells: "pandas.DataFrame"  # noqa: F821 - pandas is imported where it is used
    levels: "pandas.DataFrame"  # noqa: F821
    progress: np.ndarray
    n: int
    chance: float
    items: dict[str, tuple[np.ndarray, np.ndarray]]
    lengths: np.ndarray
    excluded: "pandas.DataFrame"  # noqa: F821
    conventions: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def level(self) -> np.ndarray:
        """The level of each cell, [R]."""
        return self.cells["level"].to_numpy(int)

    @property
    def seeds(self) -> np.ndarray:
        """Cells of each level, [G]."""
        return np.bincount(self.level, minlength=len(self.levels))

    @property
    def span(self) -> float:
        """Decades from the first level to the last."""
        return float(np.ptp(self.progress))


def select(
    table,
    task: str,
    x: str = "C",
    items=None,
    hard: str | None = None,
    smooth: str | None = None,
    shots: int | None = None,
    family: str | None = None,
    incomplete: bool = False,
) -> Curves:
    """Selects, checks and averages one task's rows.

    Args:
        table: frame with the columns of lmjax.evals.table.COLUMNS, or a .csv or .parquet file of them. Needed: run_id,
            task, metric, value, and N, D and C by any of the names in X.
        task: name in the column task.
        x: C | N | D | loss.
        items: frame of lmjax.evals.table.read_items, for bootstraps over items; None: the table's standard errors.
        hard, smooth: metrics to take; None: the first known one the task has.
        shots, family: needed where the task has several.
        incomplete: take rows before the end of their run's schedule, too. They are not runs of that length
            (arXiv:2203.15556); against the loss they are what arXiv:2403.15796 uses.

    Returns:
        Curves.

    Raises:
        InputError: columns, task or metrics that are not there; several families, semantics or shots; a metric out of
            its range; two values for one cell; two runs of one seed; items of another evaluation; no complete row.

    Example:
        >>> import pandas
        >>> rows = [dict(run_id=f"r{i}", task="sum", metric=m, value=v, n=100, N=10**i, D=1e6, seed=0)
        ...         for i, p in ((4, 0.5), (5, 0.9)) for m, v in (("exact_match", p**3), ("token_accuracy", p))]
        >>> curves = select(pandas.DataFrame(rows), "sum")
        >>> curves.hard, curves.smooth, curves.levels["exact_match"].round(6).tolist()
        ('exact_match', ('token_accuracy',), [0.125, 0.729])
    """
    if x not in X:
        raise InputError(f"x: wanted a scale to order runs by, got {x!r}{nearest(x, X)}")
    frame, conventions = _read(table, x)
    rows, out, notes = _of_task(frame, task, shots, family, incomplete)
    names = _metrics(rows, task, hard, smooth)
    _check(rows, task, names)
    return _assemble(rows, out, names, x, items, conventions, notes)


def _assemble(rows, out, names, x, items, conventions, notes) -> Curves:
    """Curves from one task's checked rows."""
    task, shots = str(rows["task"].iloc[0]), int(rows["shots"].iloc[0])
    cells, beside = _cells(rows, names, x)
    cells, levels = _levels(cells, names, x)
    chance, n = _chance(rows, names[0], notes), _count(rows, task, notes)
    arrays = matched(items, task, shots, cells, names, notes) if items is not None else {}
    if not arrays and items is None:
        notes.append("no table of items: intervals use the table's standard errors, metrics taken as independent")
    _doubts(cells, levels, x, notes)
    return Curves(
        task=task,
        shots=shots,
        family=str(rows["family"].iloc[0]),
        semantics=str(rows["semantics"].iloc[0]),
        x=x,
        hard=names[0],
        smooth=tuple(names[1:]),
        cells=cells,
        levels=levels,
        progress=np.log10(levels["x"].to_numpy(float)) * (-1 if x == "loss" else 1),
        n=n,
        chance=chance,
        items=arrays,
        lengths=answer_lengths(arrays, rows, cells, names, notes),
        excluded=_join(out, beside),
        conventions=conventions,
        warnings=tuple(notes),
    )


def read(table):
    """Returns a table given as a frame or as a .csv or .parquet file.

    Raises:
        InputError: no such file, another ending, columns missing (named).
    """
    import pandas

    if not isinstance(table, pandas.DataFrame):
        path = pathlib.Path(table)
        if path.suffix not in (".csv", ".parquet") or not path.is_file():
            raise InputError(f"wanted a frame or an existing .csv or .parquet table of evaluations, got {path}")
        table = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise InputError(f"table of evaluations: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    table = table.assign(**{name: value for name, value in OPTIONAL.items() if name not in table})
    words = {name: table[name].astype(object).fillna("") for name in ("task", "family", "semantics", "reason")}
    return table.assign(**words, step=table["step"].astype(float).fillna(0.0))


def _read(table, x):
    """The table with columns N, D, C, loss and x, and the words for them."""
    frame, conventions = read(table).reset_index(drop=True), {}
    for name, columns in X.items():
        found = next((c for c in columns if c in frame and np.isfinite(frame[c].astype(float)).any()), None)
        if found is not None:
            conventions[name] = columns[found]
        frame[name] = frame[found].astype(float) if found else math.nan
    if "C" not in conventions and {"N", "D"} <= conventions.keys():
        frame["C"], conventions["C"] = 6 * frame["N"] * frame["D"], "C = 6 N D FLOP"
    if x not in conventions:
        raise InputError(f"x = {x}: the table has no numbers in {' or '.join(X[x])}; it has {', '.join(conventions)}")
    return frame.assign(x=frame[x]), conventions


def _of_task(frame, task, shots, family, incomplete):
    """The task's rows of complete runs, the excluded ones, and warnings."""
    if not (frame["task"] == task).any():
        raise InputError(f"no rows of task {task!r}{nearest(task, {str(t) for t in frame['task']} - {''})}")
    failed = frame["status"] != "done"
    asked = frame[(frame["task"] == task) | (failed & (frame["task"] == ""))]  # a run that failed has no task
    if family is not None:
        asked = asked[(asked["family"] == family) | ((asked["family"] == "") & (asked["status"] != "done"))]
    if shots is not None:
        asked = asked[(asked["shots"] == shots) | asked["shots"].isna()]
    done = asked[(asked["status"] == "done") & asked["metric"].notna() & (asked["metric"] != "")]
    if not len(done):
        raise InputError(f"{task}: no row with a result for family {family}, shots {shots}")
    for column in ("family", "semantics", "shots", "task_hash", "limit"):
        kinds = sorted({str(v) for v in done[column].dropna()}) if column in done else []
        if len(kinds) > 1:
            raise InputError(
                f"{task}: wanted one {column}, got {', '.join(kinds)}: their values do not compare; "
                f"give {column}, or keep the rows of one, as in table[table.{column} == ...]"
            )
    out = [asked[~asked.index.isin(done.index)].assign(why=lambda f: f["status"].astype(str).str.replace("_", " "))]
    complete = done["schedule_complete"].map(_true)
    notes = []
    if complete.isna().any():
        notes.append("the table does not say whether schedules were complete: taken as complete")
    early = complete.eq(False)
    if early.any() and not incomplete:
        out.append(done[early].assign(why="before the end of its schedule"))
        done = done[~early]
        if not len(done):
            raise InputError(f"{task}: every row lies before the end of its schedule; set incomplete=True to take them")
        notes.append(f"{_cells_of(out[1])} cells before the end of their schedule are left out")
    elif early.any():
        notes.append(f"{_cells_of(done[early])} cells lie before the end of their schedule: not runs of that length")
    return done, out, notes


def _cells_of(rows):
    return len(rows[["run_id", "step"]].drop_duplicates())


def _true(value):
    """True, False, or nan for what is neither, also from text."""
    return {
        "True": True,
        "true": True,
        "False": False,
        "false": False,
        "1": True,
        "0": False,
        "1.0": True,
        "0.0": False,
    }.get(str(value), math.nan)


def _metrics(rows, task, hard, smooth) -> list[str]:
    """The hard metric, then the smooth ones, the wanted one first."""
    there = set(rows["metric"])
    hards, smooths = [m for m in HARD if m in there], [m for m in SMOOTH if m in there]
    for wanted, known, kind in ((hard, hards, "hard"), (smooth, smooths, "smooth")):
        if wanted is not None and wanted not in known:
            raise InputError(f"{task}: no {kind} metric {wanted!r}{nearest(wanted, known)}")
        if not known:
            raise InputError(
                f"{task}: wanted a {kind} metric ({', '.join(HARD if kind == 'hard' else SMOOTH)}), got "
                f"{', '.join(sorted(there))}"
            )
    first = [smooth] if smooth else []
    return [hard or hards[0], *first, *(m for m in smooths if m != smooth)]


def limits(metric: str) -> tuple[float, float]:
    """The range a metric's values lie in."""
    return (0.0, 1.0) if metric in HARD else (SMOOTH[metric].low, SMOOTH[metric].high)


def error_of(metric: str, values) -> np.ndarray:
    """The falling error of a smooth metric: offset + sign value. Example: token_accuracy 0.9: 0.1."""
    kind = SMOOTH[metric]
    return np.maximum(kind.offset + kind.sign * np.asarray(values, float), 0)


def _check(rows, task, names):
    kept = rows[rows["metric"].isin(names)]
    for name in names:
        of_it = kept[kept["metric"] == name]
        values = of_it["value"].to_numpy(float)
        low, high = limits(name)
        bad = ~(np.isfinite(values) & (values >= low - TOLERANCE) & (values <= high + TOLERANCE))
        if bad.any():
            worst = of_it[bad].iloc[0]
            raise InputError(
                f"{task}: wanted {name} in [{low:g}, {high:g}], got {worst['value']} of {worst['run_id']} "
                f"step {worst['step']:g}"
            )
    twice = kept[kept.duplicated(["run_id", "step", "metric"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(
            f"{task}: wanted one {row['metric']} of {row['run_id']} at step {row['step']:g}, got several "
            f"({len(twice)} duplicated cells); keep one evaluation of each"
        )


def _cells(rows, names, x):
    """A row per run and step; those without a hard value, without x or without all metrics leave with a reason."""
    keys = ["run_id", "step"]
    facts = rows.drop_duplicates(keys).set_index(keys)[["seed", "N", "D", "C", "loss", "x", "held_out"]]
    for suffix, column in (("", "value"), (" se", "standard_error")):
        wide = rows[rows["metric"].isin(names)].pivot(index=keys, columns="metric", values=column)
        facts = facts.join(wide.rename(columns=lambda name, suffix=suffix: f"{name}{suffix}").astype(float))
    facts = facts.reset_index()
    no_x = ~(facts["x"] > 0)
    gaps = facts[list(names)].isna()
    why = np.where(no_x, f"no {x}", np.where(gaps.any(axis=1), "no value of every metric", ""))
    kept = facts[why == ""].copy()
    if not len(kept):
        raise InputError(f"no cell has {x} and all of {', '.join(names)}")
    kept["held_out"] = [_true(v) is True for v in kept["held_out"]]
    return kept, facts[why != ""].assign(why=why[why != ""])


def _levels(cells, names, x):
    """Numbers the levels by progress and averages their cells."""
    columns = ["N", "D", "C", "step"] if cells[["N", "D", "C"]].notna().any(axis=None) else ["x", "step"]
    key = cells.groupby(columns, dropna=False, sort=False).ngroup()
    cells = cells.assign(level=key.to_numpy())
    known = cells[cells["seed"].notna()]
    twice = known[known.duplicated(["level", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        same = known[(known["level"] == row["level"]) & (known["seed"] == row["seed"])]["run_id"]
        raise InputError(
            f"wanted one run per N, D, step and seed, got {', '.join(map(str, same))}: duplicated cells, or runs that "
            "differ in another setting; keep those of one setting"
        )
    grouped = cells.groupby("level", sort=False)
    levels = grouped[["N", "D", "C", "loss", *names]].mean()
    levels["x"] = np.exp(np.log(cells["x"].astype(float)).groupby(cells["level"]).mean())
    levels["held_out"], levels["seeds"] = grouped["held_out"].any(), grouped.size()
    levels["step"] = grouped["step"].first()
    order = levels["x"].sort_values(ascending=x != "loss", kind="stable").index
    place = {old: new for new, old in enumerate(order)}
    cells = cells.assign(level=cells["level"].map(place)).sort_values(["level", "seed"], kind="stable")
    return cells.reset_index(drop=True), levels.loc[order].reset_index(drop=True)


def _chance(rows, hard, notes) -> float:
    values = rows[rows["metric"] == hard]["chance"].to_numpy(float)
    if not np.isfinite(values).all():
        notes.append(f"the chance level of {hard} is unknown: its floor is taken as 0")
        return 0.0
    if np.ptp(values) > 1e-6:
        raise InputError(f"{hard}: wanted one chance level, got {values.min():g} to {values.max():g}: other items")
    return float(values[0])


def _count(rows, task, notes) -> int:
    counts = rows["n"].dropna().to_numpy(float)
    if not len(counts):
        raise InputError(f"{task}: no number of items in column n: 1/n is the least that a share can show")
    if np.ptp(counts):
        notes.append(f"cells have {counts.min():g} to {counts.max():g} items: the resolution is that of the fewest")
    return int(counts.min())


def _doubts(cells, levels, x, notes):
    if cells["seed"].isna().any():
        notes.append("seeds are unknown: every run is taken as a seed of its own")
    single = int((levels["seeds"] == 1).sum())
    if single:
        notes.append(f"{single} of {len(levels)} sizes have one seed: their spread is that of the items alone")
    if x != "loss" and cells["loss"].isna().any():
        notes.append(f"{int(cells['loss'].isna().sum())} cells have no loss")
    if levels["held_out"].any():
        notes.append(
            f"{int(levels['held_out'].sum())} held-out sizes are in the curves: every size is held out once in turn"
        )
    if len(np.unique(levels["x"].round(12))) < len(levels):
        notes.append(f"several configurations share one {x}: the curve is not a function of {x} alone")


def _join(out, beside):
    """The excluded cells, one row each."""
    import pandas

    columns = ["run_id", "step", "why", "N", "D", "C", "loss"]
    parts = [part.drop_duplicates(["run_id", "step", "why"])[columns] for part in (*out, beside) if len(part)]
    joined = pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame(columns=columns)
    return joined.rename(columns={"why": "reason"})


def tasks_of(table) -> Sequence[tuple[str, int, str]]:
    """Returns (task, shots, family) of every task with a result in a hard and in a smooth metric, sorted."""
    rows = read(table)
    rows = rows[rows["status"] == "done"]
    found = []
    for key, part in rows.groupby(["task", "shots", "family"], dropna=False, sort=True):
        there = set(part["metric"])
        if there & set(HARD) and there & set(SMOOTH):
            found.append((str(key[0]), int(key[1]), str(key[2])))
    return found

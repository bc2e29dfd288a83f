"""One task's curves from the tidy table of evaluations: hard and smooth metrics of the same answers, side by side.

Checks and averages; tests nothing and draws nothing. Every row of the task ends in `cells` (used) or `excluded` (with a
reason); what is doubtful but usable is in `warnings`.

A cell is one run at one step; a level is one configuration (N, D and step) with all its seeds.
R cells, G levels, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.emergence.columns import (
    HARD,
    SMOOTH,
    TOLERANCE,
    X,
    limits,
    read,
    scaled,
)
from lmjax.scaling.emergence.items import answer_lengths, matched
from lmjax.scaling.table import truth


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
        table: frame with the columns of lmjax.evals.table.COLUMNS, or a .csv or .parquet file of them. Needed are those
            of columns.COLUMNS_WORDS.
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
    frame, conventions = scaled(table, x)
    rows, out, notes = _of_task(frame, task, shots, family, incomplete)
    if rows["run_id"].astype(str).str.startswith("row ").all():
        notes.append("the table has no run_id: rows of one scale, seed and step are taken as one run, in their order")
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
    early = ~truth(done, "schedule_complete", task, missing=True)
    notes = []
    if done["schedule_complete"].isna().any():
        notes.append("the table does not say whether schedules were complete: taken as complete")
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
    kept["held_out"] = truth(kept, "held_out", str(rows["task"].iloc[0]))
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
    if single and len(levels) > 1:
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

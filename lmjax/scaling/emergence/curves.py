"""One task's curves from the tidy table of evaluations: hard and smooth metrics of the same answers, side by side.

Every row of the task ends in `cells` (used) or `excluded` (with a reason); limits of the data are in `warnings`.
A cell is one run at one step; a point is one configuration (N, D and step), averaged over its seeds.
R cells, G points, I items.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.format import variable
from lmjax.scaling.columns import cluster
from lmjax.scaling.emergence.columns import HARD, SMOOTH, TOLERANCE, X, limits, read, scaled
from lmjax.scaling.table import SAME, truth

FEWEST_POINTS = 5  # of a ladder: a law with a break has four parameters


@dataclass(frozen=True)
class Curves:
    """A task's metrics against scale.

    x: C | N | D | loss. progress: log10 of C, N or D; -log10 of the loss: it grows with scale, [G].
    hard: name of the hard metric; smooth: names of the smooth ones, the task's own loss first.
    cells: frame [R] of run_id, step, seed, point, N, D, C, loss, held_out and a column per metric, its standard error
        in "<metric> se". points: frame [G], sorted by progress; metrics are means over the point's cells.
    n: items. chance: of the hard metric; 0 with a warning where the table has none.
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
    points: "pandas.DataFrame"  # noqa: F821
    progress: np.ndarray
    n: int
    chance: float
    items: dict[str, tuple[np.ndarray, np.ndarray]]
    lengths: np.ndarray
    excluded: "pandas.DataFrame"  # noqa: F821
    conventions: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def point(self) -> np.ndarray:
        """The point of each cell, [R]."""
        return self.cells["point"].to_numpy(int)

    @property
    def seeds(self) -> np.ndarray:
        """Cells of each point, [G]."""
        return np.bincount(self.point, minlength=len(self.points))

    @property
    def span(self) -> float:
        """Decades from the first point to the last."""
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
    one_ladder: bool = True,
) -> Curves:
    """Selects, checks and averages one task's rows of one ladder.

    Args:
        table: frame with the columns of lmjax.evals.table.COLUMNS, or a .csv or .parquet file of them. Required are
            those of columns.COLUMNS_WORDS.
        task: name in the column task.
        x: C | N | D | loss.
        items: frame of lmjax.evals.table.read_items, for bootstraps over items; None: the table's standard errors.
        hard, smooth: metrics to use; None: the first known one the task has.
        shots, family: required where the task has several.
        incomplete: include rows before the end of their run's schedule. Their losses are not those of runs of that
            length (arXiv:2203.15556); against the loss they are what arXiv:2403.15796 uses.
        one_ladder: refuse runs that form several ladders (see `ladders`), except against the loss.

    Returns:
        Curves.

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
    rows, out, notes = _of_task(frame, task, shots, family, incomplete)
    if rows["run_id"].astype(str).str.startswith("row ").all():
        notes.append("the table has no run_id: rows of one scale, seed and step are taken as one run, in their order")
    names = _metrics(rows, task, hard, smooth)
    _check(rows, task, names)
    cells, beside = _cells(rows, names, x)
    if one_ladder and x != "loss" and not one_dimensional(cells["N"], cells["D"]):
        raise InputError(_not_one(task, cells["N"], cells["D"]))
    cells, points = _points(cells, names, x)
    chance, n = _chance(rows, names[0], notes), _count(rows, task, notes)
    task, shots = str(rows["task"].iloc[0]), int(rows["shots"].iloc[0])
    arrays = _matched(items, task, shots, cells, names, notes) if items is not None else {}
    if items is None:
        notes.append("no table of items: intervals use the table's standard errors and treat metrics as independent")
    _doubts(cells, points, x, notes)
    return Curves(
        task=task,
        shots=shots,
        family=str(rows["family"].iloc[0]),
        semantics=str(rows["semantics"].iloc[0]),
        x=x,
        hard=names[0],
        smooth=tuple(names[1:]),
        cells=cells,
        points=points,
        progress=np.log10(points["x"].to_numpy(float)) * (-1 if x == "loss" else 1),
        n=n,
        chance=chance,
        items=arrays,
        lengths=_answer_lengths(arrays, rows, cells, names, notes),
        excluded=_joined(out, beside),
        conventions=conventions,
        warnings=tuple(notes),
    )


# -- ladders


def ladders(
    frame, task: str = "the table", by: str | None = None, incomplete: bool = False
) -> list[tuple[str, np.ndarray]]:
    """Finds the ladders of a table: runs at one N, at one D, or with D growing with N.

    Args:
        frame: rows with N and D (see columns.scaled); rows without a result belong to every ladder.
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
        column = _values(frame[by]) if by in ("N", "D", "C") else frame[by].to_numpy()
        kinds = sorted({v for v in column[done] if v == v}, key=lambda v: (str(type(v)), v))
        shown = [f"{by} = {variable(by, v) if by in ('N', 'D', 'C') else v}" for v in kinds]
        return [(name, (column == v) | ~done) for name, v in zip(shown, kinds, strict=True)]
    N, D = (_values(frame[name]) for name in ("N", "D"))
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
        raise InputError(_not_one(task, N[done], D[done]))
    return found


def _values(values):
    """Replaces each value by that of its cluster; values within 2 % of a neighbour count as equal."""
    out = np.array(values, float)
    known = np.isfinite(out) & (out > 0)
    distinct, place = np.unique(out[known], return_inverse=True)
    out[known] = cluster(distinct, SAME)[place] if len(distinct) else out[known]
    return out


def one_dimensional(N, D) -> bool:
    """Whether runs have one N, one D, or one D per N that grows with N; unknown values are ignored."""
    N, D = _values(N), _values(D)
    known = np.isfinite(N) & np.isfinite(D)
    pairs = np.unique(np.stack([N[known], D[known]], 1), axis=0)
    return len(set(pairs[:, 0])) <= 1 or len(set(pairs[:, 1])) <= 1 or bool((np.diff(pairs, axis=0) > 0).all())


def _not_one(task, N, D):
    sizes, tokens = (np.unique(values[np.isfinite(values)]) for values in (_values(N), _values(D)))
    return (
        f"{task}: expected one ladder (one N, one D, or D growing with N), got runs at {len(sizes)} values of N and "
        f"{len(tokens)} of D; select one, as in --where D={variable('D', tokens[-1])} (where={{'D': ...}} in Python), "
        "split them with --by N or --by D, or use --x loss"
    )


# -- checks


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
                f"{task}: expected one {column}, got {', '.join(kinds)}: their values are not comparable; "
                f"pass {column}, or keep the rows of one, as in table[table.{column} == ...]"
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
            raise InputError(f"{task}: every row is before the end of its schedule; set incomplete=True to use them")
        notes.append(f"{_cells_of(out[1])} cells before the end of their schedule are left out")
    elif early.any():
        notes.append(f"{_cells_of(done[early])} cells are before the end of their schedule, unlike runs of that length")
    return done, out, notes


def _cells_of(rows):
    return len(rows[["run_id", "step"]].drop_duplicates())


def _metrics(rows, task, hard, smooth) -> list[str]:
    """The hard metric, then the smooth ones, the requested one first."""
    there = set(rows["metric"])
    hards, smooths = [m for m in HARD if m in there], [m for m in SMOOTH if m in there]
    for asked, known, kind in ((hard, hards, "hard"), (smooth, smooths, "smooth")):
        if asked is not None and asked not in known:
            raise InputError(f"{task}: no {kind} metric {asked!r}{nearest(asked, known)}")
        if not known:
            raise InputError(
                f"{task}: expected a {kind} metric ({', '.join(HARD if kind == 'hard' else SMOOTH)}), got "
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
                f"{task}: expected {name} in [{low:g}, {high:g}], got {worst['value']} of {worst['run_id']} "
                f"step {worst['step']:g}"
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
        facts = facts.join(wide.rename(columns=lambda name, suffix=suffix: f"{name}{suffix}").astype(float))
    facts = facts.reset_index()
    gaps = facts[list(names)].isna().any(axis=1)
    why = np.where(~(facts["x"] > 0), f"no {x}", np.where(gaps, "no value of every metric", ""))
    kept = facts[why == ""].copy()
    if not len(kept):
        raise InputError(f"no cell has {x} and all of {', '.join(names)}")
    kept["held_out"] = truth(kept, "held_out", str(rows["task"].iloc[0]))
    return kept, facts[why != ""].assign(why=why[why != ""])


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
            "that differ in another setting; keep those of one setting, as in --where COLUMN=VALUE"
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


def _count(rows, task, notes) -> int:
    counts = rows["n"].dropna().to_numpy(float)
    if not len(counts):
        raise InputError(f"{task}: expected the number of items in column n, got none: 1/n is the resolution")
    if np.ptp(counts):
        notes.append(f"cells have {counts.min():g} to {counts.max():g} items: the resolution is that of the fewest")
    return int(counts.min())


def _doubts(cells, points, x, notes):
    if cells["seed"].isna().any():
        notes.append("seeds are unknown: every run counts as a separate seed")
    single = int((points["seeds"] == 1).sum())
    if single and len(points) > 1:
        notes.append(f"{single} of {len(points)} points have one seed: their spread is that of the items alone")
    if x != "loss" and cells["loss"].isna().any():
        notes.append(f"{int(cells['loss'].isna().sum())} cells have no loss")
    if points["held_out"].any():
        notes.append(
            f"{int(points['held_out'].sum())} held-out runs are in the curves: every point is left out in turn"
        )
    if len(np.unique(points["x"].round(12))) < len(points):
        notes.append(f"several configurations share one {x}: the curve is not a function of {x} alone")


def _joined(out, beside):
    """The excluded cells, one row each."""
    import pandas

    columns = ["run_id", "step", "why", "N", "D", "C", "loss"]
    parts = [part.drop_duplicates(["run_id", "step", "why"])[columns] for part in (*out, beside) if len(part)]
    joined = pandas.concat(parts, ignore_index=True) if parts else pandas.DataFrame(columns=columns)
    return joined.rename(columns={"why": "reason"})


# -- items


def _matched(table, task: str, shots: int, cells, names, notes: list[str]) -> dict:
    """metric -> (numerator [R, I], denominator [R, I]), checked against the table's values."""
    missing = [c for c in ("run_id", "step", "task", "metric", "item", "numerator", "denominator") if c not in table]
    if missing:
        raise InputError(f"table of items: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    table = table[(table["task"] == task) & table["metric"].isin(names)]
    table = table[table["shots"] == shots] if "shots" in table else table
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
                f"{task}: the items of {worst['run_id']} step {worst['step']:g} give another {name} than the table; "
                "they come from another evaluation; keep the items of one evaluation"
            )
        arrays[name] = (numerator, denominator)
    return arrays


def _answer_lengths(arrays: dict, rows, cells, names, notes: list[str]) -> np.ndarray:
    """Token counts of the correct answers: of every item, else their mean, else an empty array."""
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


def tasks_of(table) -> list[tuple[str, int, str]]:
    """Returns (task, shots, family) of every task with a result in a hard and in a smooth metric, sorted."""
    rows = read(table)
    rows = rows[rows["status"] == "done"]
    found = []
    for key, part in rows.groupby(["task", "shots", "family"], dropna=False, sort=True):
        there = set(part["metric"])
        if there & set(HARD) and there & set(SMOOTH):
            found.append((str(key[0]), int(key[1]), str(key[2])))
    return found

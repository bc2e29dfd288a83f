"""The table a law is fitted to: rows read from run records or files, checked, and compared before they are pooled.

Every row ends in one of three frames: `points` (fitted), `held_out` (only predicted), `excluded` (with a reason).
Runs whose settings differ in anything but size, tokens, seed and the learning rate of each size are not pooled: fit
one group (`where`), or one law per group (scaling.fit_groups).
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.format import plural
from lmjax.scaling import guards, repeats
from lmjax.scaling.columns import N_COUNTS, choose, choose_c, neighbours, plain_name, understood
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law, get_law
from lmjax.scaling.settings import (
    SAME,
    check,
    column_of,
    floats,
    is_number,
    matches,
    select_rows,
    setting_text,
    truth,
    words,
)

if TYPE_CHECKING:
    import pandas  # at run time it is imported where it is used, because the import is slow

FINISHED = ("done", "finished", "completed", "complete", "success", "succeeded", "ok")
UNFINISHED = (
    *("failed", "crashed", "diverged", "error", "killed", "pending", "running", "preempted", "stopped", "nan"),
    "unreadable",  # run_record.read_runs: the run's files are damaged
)
MISSING = "is not a number"  # end of the reason of --drop-missing
REPEATS = "repeats"  # as weights: from the scatter of repeated configurations
LABELS = ("run_id", "run", "name")  # the first that the table has; else run_name, Name or ID, if it has no repeats
STEP = ("step", "global_step", "current_step", "train_global_step", "iteration")
LAST_STEP = ("total_steps", "max_steps", "num_training_steps", "total_iters", "max_iters", "train_steps")


@dataclass(frozen=True)
class FitTable:
    """What `read_table` returns.

    points, held_out: pandas frames with run (label), N, D, C, loss, weight and all other columns of the source.
    excluded: the same with `reason`.
    conventions: what N, D, C and loss are, to be printed with every result.
    notes: which columns were used, and what a reader should know about the rows (repeats, code versions).
    warnings: what may be wrong with the columns, units or rows (guards.py).
    """

    points: "pandas.DataFrame"
    held_out: "pandas.DataFrame"
    excluded: "pandas.DataFrame"
    conventions: dict[str, str]
    notes: tuple[str, ...]
    source: str
    warnings: tuple[str, ...] = ()

    def select(self, **where) -> "FitTable":
        """Returns the table with the rows where column = value (N and D within 2 %); the others become excluded."""
        import pandas

        at = words(where)
        keep, keep_held = matches(self.points, where), matches(self.held_out, where)
        if not keep.any():
            raise InputError(f"expected rows with {at}, got none among {len(self.points)}")
        others = [
            self.excluded,
            self.points[~keep].assign(reason=f"not at {at}"),
            self.held_out[~keep_held].assign(reason=f"held out, and not at {at}"),
        ]
        excluded = pandas.concat([frame for frame in others if len(frame)] or [self.excluded], ignore_index=True)
        return replace(self, points=self.points[keep], held_out=self.held_out[keep_held], excluded=excluded)

    def for_law(self, law: Law, needed: int) -> "FitTable":
        """Returns the rows for a law of N alone at one D, and vice versa; the table itself for any other law.

        The value is the largest with `needed` rows, or that with most rows if none has as many.
        """
        name = {("N",): "D", ("D",): "N"}.get(law.variables)
        if name is None or self.points[name].isna().all():
            return self
        values = self.points[name].to_numpy()
        parts = [values[rows] for rows in neighbours(values, SAME)]
        if len(parts) == 1:
            return self
        chosen = max(parts, key=lambda part: (min(len(part), needed), part[0]))
        value = float(np.exp(np.log(chosen).mean()))
        note = f"the law holds at one {name}: fitted at {name} = {value:.4g}, the largest with {len(chosen)} rows"
        return replace(self.select(**{name: value}), notes=(*self.notes, note))


def read_table(
    source,
    n: str = "total",
    c: str = "auto",
    held_out: Sequence[str] | float | None = None,
    loss: str = "loss",
    units: Mapping[str, float] | None = None,
    allow_incomplete: bool = False,
    law: str | Law = "chinchilla",
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, object] | str | Sequence | None = None,
    allow: Sequence[str] = (),
    weights: str | None = None,
    drop_missing: bool = False,
) -> FitTable:
    """Reads a table to fit.

    Args:
        source: a path (.csv, .parquet, .jsonl, .json) or a pandas frame, such as run_record.read_runs returns.
            Columns: N (or n_total, n_non_embedding, n_matmul_head), D (or tokens; else C / 6 N), loss; optional C
            (or flops_exact), S (or steps), U (or unique_tokens) and the other variables of laws, status,
            schedule_complete, held_out, seed, and a label in run_id, run or name; or the names of columns.NAMES, in
            any case. The first of the notes says which columns were used.
        n: which count is N: total | non_embedding | matmul_head. A plain column N is taken as total.
        c: which count is C: 6nd (of the chosen N) | 6nd_attention (needs flops_attention) | exact (flops_exact or C) |
            auto: 6nd, but exact for encoder-decoders and shared layers, for which 6 N D is wrong.
        held_out: rows kept out of the fit: their labels, or the compute in FLOP at or above which rows are held
            out; None takes the column held_out, if there is one.
        loss: the column to fit, such as bits_per_byte.
        units: size of one unit of a column, such as {"N": 1e6, "D": 1e9} for millions and billions; default 1.
        allow_incomplete: also take rows whose schedule did not complete, with a note.
        law: the law to fit. Its variables must be present; N and D that it does not use may be missing and become
            NaN. A law of a share takes values in [0, 1] instead of losses.
        columns: column names in this table, such as {"N": "params", "D": "tokens_seen", "loss": "val_loss"}.
        where: only rows that meet a condition (settings.select_rows), such as {"optimizer.name": "adamw"} or
            "dataset == 'c4' and epoch <= 1"; a note counts the others.
        allow: settings that may differ between the rows of one fit, such as "data.global_batch_size".
        weights: column of the weights of the rows in the fit, 1 / variance; "repeats": the variance of runs of equal
            N and D, as a power of the loss (lmjax/scaling/repeats.py); None: equal weights.
        drop_missing: leave out rows without a number in a column of the fit, with a reason, instead of an error.

    Returns:
        FitTable, rows in the order of the source.

    Raises:
        InputError: file or column missing; a loss that is NaN in a row whose status does not explain it;
            values that are not positive numbers; rows that differ in a setting other than size, tokens, seed and the
            learning rate of each size.

    Example:
        >>> import pandas
        >>> table = read_table(pandas.DataFrame({"N": [1e6, 2e6], "D": [4e7, 4e7], "loss": [3.1, 2.9]}))
        >>> float(table.points.C[0]), table.conventions["C"]
        (240000000000000.0, 'C = 6 N D FLOP')
    """
    law, units, columns = get_law(law), dict(units or {}), dict(columns or {})
    columns |= {"weight": weights} if weights not in (None, REPEATS) else {}
    frame, name = load(source)
    if not len(frame):
        raise InputError(f"{name} has no rows; expected columns {', '.join(law.variables)}, {loss}")
    # 1. Names: the column of each variable, the rows asked for, and the conventions of N, D, C and the loss.
    frame, found, warnings, notes = understood(frame, columns, _wanted(law, n, loss), name)
    if "status" in found and not {str(x).strip().lower() for x in frame["status"].dropna()} <= {*FINISHED, *UNFINISHED}:
        frame = frame.drop(columns="status")  # the state of something else
    if where:
        rows = len(frame)
        frame = frame.iloc[select_rows(_converted(frame, found, units), where, name)["place in the table"]]
        frame = frame.reset_index(drop=True)
        if len(frame) < rows:
            notes.append(f"{rows - len(frame)} other rows are left out: not at {words(where)}")
    c = choose_c(frame, c)
    preferred = {"N": N_COUNTS[n][0] if n in N_COUNTS and n != "total" else "", "C": "flops_exact" * (c == "exact")}
    preferred = {v: x for v, x in preferred.items() if x in frame and v not in columns}
    frame, found = frame.assign(**{v: frame[x] for v, x in preferred.items()}), found | preferred
    used, conventions = choose(frame, found, n, c, loss, name, law)
    # 2. Rows: a reason for each that is not fitted, "" for the others.
    work = frame.assign(loss=frame[loss], run=_labels(frame, name, allow_incomplete))
    early = ~truth(frame, "schedule_complete", name, missing=True) | _unfinished(frame)
    needed = _needed(used, c, law)
    lacks = [next((v for v in needed if drop_missing and not is_number(row[v])), "") for row in work.to_dict("records")]
    reason_R = np.array(_reasons(work, name, early & (not allow_incomplete), lacks), object)
    left_out = int(np.char.endswith(reason_R.astype(str), MISSING).sum())
    notes += [f"left out {plural(left_out, 'row')} without a number (--drop-missing)"] * bool(left_out)
    # 3. Numbers: in the unit of the fit, and those that follow from others.
    good = work[reason_R == ""].copy()
    _convert(good, used, needed, units, law, name)
    given = good[[v for v in ("C", "M") if v in good]].copy()
    weighted = "weight" in good and good["weight"].nunique() > 1
    _fill(good, used, c)
    if law.target == "loss":  # equal shares are common
        reason_R[reason_R == ""] = _copies(good, used)
    fitted_R = reason_R == ""
    good = good[fitted_R[good.index]]
    # 4. What is held out, the weights, and what may be wrong.
    out = _held_out(good, held_out, name)
    check(good, name, loss, law, [*allow, *{*used.values()} & {*good}])
    if weights == REPEATS:
        good["weight"], said = repeats.weights(good, law, name)
        notes.append(said)
    ended = int(early[good.index].sum())
    given = given.loc[good.index]
    reading = guards.Reading(good, law, used, units, loss, tuple(allow), given, weighted, ended, allow_incomplete)
    excluded = work[~fitted_R].assign(reason=reason_R[~fitted_R]).reset_index(drop=True)
    return FitTable(
        points=good[~out].reset_index(drop=True),
        held_out=good[out].reset_index(drop=True),
        excluded=excluded.assign(**{v: floats(excluded[v]) * units.get(v, 1.0) for v in "ND" if v in used}),
        conventions=conventions,
        notes=(guards.columns_used(reading, conventions), *notes, *guards.notes(reading)),
        source=name,
        warnings=(*warnings, *guards.warnings(reading)),
    )


def groups(source, by: str | Sequence[str], where: Mapping[str, object] | None = None) -> dict[str, dict[str, str]]:
    """Returns {label: where} of the groups of rows that agree in the settings `by`, in order of appearance.

    Example:
        >>> import pandas
        >>> groups(pandas.DataFrame({"family": ["encoder", "decoder", "encoder"]}), "family")
        {'encoder': {'family': 'encoder'}, 'decoder': {'family': 'decoder'}}
    """
    if isinstance(source, FitTable):
        raise InputError("by: expected a file or frame to split into groups, got a table that has been read already")
    by = by.split(",") if isinstance(by, str) else list(by)
    if not all(by):
        raise InputError(f"by: expected the names of settings, got {by}")
    frame, name = load(source)
    frame = select_rows(frame, where or {}, name)
    texts = [frame[column_of(frame, key)].map(setting_text) for key in by]
    rows = dict.fromkeys(zip(*texts, strict=True))
    return {", ".join(values): dict(zip(by, values, strict=True)) for values in rows}


def as_table(source, law: str | Law, **reading) -> FitTable:
    """Returns the table itself, or what `read_table` makes of the source; a table takes no reading options."""
    if not isinstance(source, FitTable):
        return read_table(source, law=law, **reading)
    if reading:
        raise InputError(f"{', '.join(reading)}: the table has already been read; pass these to read_table")
    return source


def data_hash(points, variables: Sequence[str] = ()) -> str:
    """Returns the hash of the rows' N, D, variables, loss and weight."""
    return hash_of(points[list(dict.fromkeys(["N", "D", *variables, "loss", "weight"]))])


def hash_of(columns) -> str:
    """Returns the first 16 digits of the sha256 of a frame of numbers, equal for equal rows in any order."""
    array = np.ascontiguousarray(columns.to_numpy(np.float64))
    return hashlib.sha256(array[np.lexsort(array.T)].tobytes()).hexdigest()[:16]


def load(source):
    """Returns (frame, name) of a pandas frame or of a .csv, .parquet, .jsonl or .json file.

    Raises:
        InputError: no such file, another ending, or content that cannot be read.
    """
    import pandas

    if isinstance(source, pandas.DataFrame):
        if not source.columns.is_unique:
            twice = ", ".join(map(str, source.columns[source.columns.duplicated()].unique()))
            raise InputError(f"expected one column per name, got several of {twice}; rename them")
        return source.reset_index(drop=True).copy(), "the table"
    path = pathlib.Path(source)
    readers = {
        ".csv": pandas.read_csv,
        ".parquet": pandas.read_parquet,
        ".jsonl": lambda p: pandas.read_json(p, lines=True),
        ".json": pandas.read_json,
    }
    if not path.is_file():
        raise InputError(f"no file {path}; expected a table ({', '.join(readers)})")
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a table ending in {', '.join(readers)}, got {path.suffix or 'no ending'!r}")
    try:
        # the copy puts columns of one type into one block: inserting into a wide csv would warn of fragmentation
        return readers[path.suffix](path).reset_index(drop=True).copy(), path.name
    except (ValueError, OSError) as error:  # pandas and pyarrow raise subclasses of ValueError on bad content
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from error


# ---- rows: which are fitted, and the numbers in them ----------------------------------------------------------------


def _converted(frame, found, units):
    """The frame with its variables in single parameters and tokens, with C = 6 N D where it has none, and places."""
    named = {x: unit for v, unit in units.items() for x in (v, found.get(v)) if x in frame}
    frame = frame.assign(**{x: floats(frame[x]) * unit for x, unit in named.items()})
    if "C" not in frame and {"N", "D"} <= set(frame) and all(is_number(v) for v in (*frame["N"], *frame["D"])):
        frame = frame.assign(C=FLOPS_PER_PARAM_TOKEN * floats(frame["N"]) * floats(frame["D"]))
    return frame.assign(**{"place in the table": np.arange(len(frame))})


def _wanted(law, n, loss) -> dict[str, bool]:
    """The variables to look for, and whether each is needed: see columns.understood."""
    size = N_COUNTS[n][0] if n in N_COUNTS and n != "total" else "N"
    others = [v for v in (*"DCSUMB", "N_e", "N_d", "status", *law.variables) if v != "N"]
    return {size: "N" in law.variables, **{v: v in law.variables for v in others}, loss: True}


def _needed(used, c, law) -> list[str]:
    """The columns that need a number in every row; other variables are checked by the laws that use them."""
    needed = [v for v in ("N", "D", "loss", "weight") if v in used] + ["flops_attention"] * (c == "6nd_attention")
    return needed + ["C"] * ("C" in used and (c == "exact" or not {"N", "D"} <= {*used}))


def _unfinished(frame) -> np.ndarray:
    """The rows at a step before the last one of their run, bool [rows], where other rows reach it."""
    plain = {plain_name(column): column for column in reversed(frame.columns)}
    pair = [next((plain[word] for word in names if word in plain), None) for names in (STEP, LAST_STEP)]
    if None in pair:
        return np.zeros(len(frame), bool)
    step, last = (floats(frame[column]) for column in pair)
    before = step < (1 - SAME) * last - 1
    return before if (step >= (1 - SAME) * last - 1).any() else np.zeros(len(frame), bool)


def _convert(good, used, needed, units, law, name):
    """Makes the needed columns floats in the unit of the fit, in place."""
    for column, size in units.items():
        if column not in used:
            raise InputError(f"units: expected a column of the fit, got {column!r}{nearest(column, used)}")
        if not (is_number(size) and float(size) > 0):
            raise InputError(f"units: expected a number above 0 for {column}, got {size!r}")
    for column in needed:
        good[column] = _numbers(good, column, name, share=column == "loss" and law.target == "share")
    for column, size in units.items():
        good[column] *= float(size)


def _fill(good, used, c):
    """Fills in N, D, C, M and weight from the other columns, in place; NaN if they do not follow from them."""
    if "N" not in good:
        good["N"] = good["N_e"] + good["N_d"] if {"N_e", "N_d"} <= set(good) else np.nan
    if "D" not in good:
        good["D"] = good["C"] / (FLOPS_PER_PARAM_TOKEN * good["N"]) if "C" in good else np.nan
    product = FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"]
    if c != "exact" and ("C" not in good or product.notna().all()):
        good["C"] = product + (good["flops_attention"] if c == "6nd_attention" else 0.0)
    if "M" not in good or product.notna().all():
        good["M"] = good["D"] / good["N"]
    if "weight" not in used:
        good["weight"] = 1.0


def _copies(good, columns):
    """For each row "", or a text that names the earlier row it repeats in every variable, seed and loss.

    Without a column seed, equal rows may be copies or seeds with rounded losses, so they are kept.
    """
    if "seed" not in good:
        return ""
    names = list(dict.fromkeys(["N", "D", "C", *columns, "seed"]))
    first = good.groupby(names, dropna=False)["run"].transform("first")
    return np.where(good.duplicated(names), "copy of " + first + ": equal N, D, seed and loss", "")


def _labels(frame, name, several) -> list[str]:
    """A label of each row: those of LABELS, which must differ unless `several` rows of a run are allowed; row 1, ..."""
    column = next((column for column in LABELS if column in frame), None)
    others = [x for x in frame.columns if plain_name(x) in ("run_id", "run_name", "name", "id") and frame[x].is_unique]
    column = column or next(iter(others), None)
    if column is None:
        return [f"row {i + 1}" for i in range(len(frame))]
    labels = frame[column].astype(str)
    twice = labels[labels.duplicated()]
    if len(twice) and not several:
        raise InputError(
            f"{name}: expected one row per run, got {twice.iloc[0]!r} more than once in {column}. If its rows are "
            "checkpoints, keep the last one of each run: a loss before the end of a decaying learning rate is too high "
            "(arXiv:2203.15556). If every row is a run, or the rate is constant, set --allow-incomplete "
            "(allow_incomplete=True in Python)"
        )
    return [f"{label} (row {i + 1})" if label in {*twice} else label for i, label in enumerate(labels)]


def _reasons(work, name, early, missing):
    """For each row the reason that keeps it out of the fit, or ""; missing: a column to leave a row out for, or ""."""
    reasons, unexplained = [], []
    for row, is_early, lacks in zip(work.to_dict("records"), early, missing, strict=True):
        status = row.get("status")
        status = "" if status is None or status != status else str(status).strip().lower()
        if status not in (*FINISHED, *UNFINISHED, ""):
            raise InputError(
                f"{name}: unknown status {row['status']!r} of {row['run']}; expected one of {', '.join(FINISHED)} "
                f"(enters the fit) or {', '.join(UNFINISHED)} (left out)"
            )
        if status in UNFINISHED:
            message = row.get("message")
            detail = f": {message}" if isinstance(message, str) and message else ""
            reasons.append(f"status {row['status']}{detail}")
        elif is_early:
            reasons.append("learning-rate schedule not finished")
        elif lacks:
            reasons.append(f"{lacks} {MISSING}")
        elif not is_number(row["loss"]):
            unexplained.append(f"{row['run']} ({row['loss']})")
            reasons.append("loss is NaN")
        else:
            reasons.append("")
    if unexplained:
        raise InputError(
            f"{name}: the loss is not a number in {', '.join(unexplained[:8])}{' ...' * (len(unexplained) > 8)}; "
            "expected a number, or a column status that says diverged or failed for these rows; --drop-missing "
            "(drop_missing=True in Python) leaves them out"
        )
    return reasons


def _numbers(frame, column, name, share=False):
    """The column as floats: above 0, or a share within [0, 1]; InputError names the rows that are not."""
    values = floats(frame[column])
    bad = ~((values >= 0) & (values <= 1)) if share else ~(values > 0)
    if bad.any():
        expected = "shares of 0 to 1" if share else "positive numbers"
        shown = zip(frame["run"][bad][:8], frame[column][bad][:8], strict=True)
        rows = ", ".join(f"{label} ({value})" for label, value in shown)
        remedy = ""
        if any(isinstance(value, str) and value[:1].isdigit() for value in frame[column][bad]):
            remedy = "; write 31,600,000 or 31.6M as 31600000 or 3.16e7"
        elif np.isnan(values).any():
            remedy = "; --drop-missing (drop_missing=True in Python) leaves out rows without a number"
        remedy += "; negative numbers may be an integer overflow" * bool((values < 0).any())
        raise InputError(f"{name}: expected {expected} in column {column}, got {rows}{remedy}")
    return values


def _held_out(good, held_out, name):
    if held_out is None:
        return truth(good, "held_out", name)
    if isinstance(held_out, (int, float)):
        if good["C"].isna().any():
            raise InputError(
                f"held_out: expected C in every row to hold out from {held_out:.3g} FLOP, got rows without C; "
                "name the held-out runs instead"
            )
        return good["C"].to_numpy() >= float(held_out)
    missing = sorted(set(held_out) - set(good["run"]))
    if missing:
        raise InputError(f"no row {missing[0]!r} to hold out{nearest(missing[0], good['run'])}")
    return good["run"].isin(list(held_out)).to_numpy()

"""The table a law is fitted to: rows read from run records or files, checked, and compared before they are pooled.

Every row ends in one of three frames: `points` (fitted), `held_out` (only predicted), `excluded` (with a reason).
Runs whose settings differ in anything but size, tokens, seed and the learning rate of each size are not pooled: fit
one group (`where`), or one law per group (scaling.fit_groups).
"""

import hashlib
import inspect
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.columns import choose, choose_c, renamed
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law, get_law
from lmjax.scaling.settings import check, column_of, listed, setting_text, values_of

if TYPE_CHECKING:
    import pandas  # at run time it is imported where it is used, because the import is slow

SUFFIXES = (".csv", ".parquet", ".jsonl", ".json")
SAME = 0.02  # N (or D) within 2 % of each other count as one value
FINISHED = ("done", "finished", "completed", "complete", "success", "succeeded", "ok")
UNFINISHED = (
    *("failed", "crashed", "diverged", "error", "killed", "pending", "running", "preempted", "stopped", "nan"),
    "unreadable",  # run_record.read_runs: the run's files are damaged
)
YES, NO = ("true", "yes", "1", "1.0", "t", "y"), ("false", "no", "0", "0.0", "f", "n")
SMALLEST_COUNT = 1e4  # if every N or D is below this, the column probably counts millions or billions
FAR_FROM_6ND = 1.2  # ratio of exact FLOP to 6 N D, or its inverse, above which there is a note

NOTED = ("code", "objective_version", "data_digest", "device", "config.model.dtype")  # `commit` if there is no `code`


@dataclass(frozen=True)
class FitTable:
    """What `read_table` returns.

    points, held_out: pandas frames with run (label), N, D, C, loss, weight and all other columns of the source.
    excluded: the same with `reason`.
    conventions: what N, D, C and loss are, to be printed with every result.
    notes: what a reader should know about the rows (repeats, epochs, code versions).
    """

    points: "pandas.DataFrame"
    held_out: "pandas.DataFrame"
    excluded: "pandas.DataFrame"
    conventions: dict[str, str]
    notes: tuple[str, ...]
    source: str

    def select(self, **where) -> "FitTable":
        """Returns the table with the rows where column = value (N and D within 2 %); the others become excluded."""
        import pandas

        words = _condition(where)
        keep, keep_held = _matches(self.points, where), _matches(self.held_out, where)
        if not keep.any():
            raise InputError(f"expected rows with {words}, got none among {len(self.points)}")
        others = [
            self.excluded,
            self.points[~keep].assign(reason=f"not at {words}"),
            self.held_out[~keep_held].assign(reason=f"held out, and not at {words}"),
        ]
        excluded = pandas.concat([frame for frame in others if len(frame)] or [self.excluded], ignore_index=True)
        return replace(self, points=self.points[keep], held_out=self.held_out[keep_held], excluded=excluded)

    def at_largest(self, name: str, needed: int) -> "FitTable":
        """Returns the rows at one value of N or D: the largest with `needed` rows, else the one with most rows."""
        if self.points[name].isna().all():  # a table without that column
            return self
        values = np.sort(self.points[name].to_numpy())
        parts = np.split(values, 1 + np.flatnonzero(np.diff(np.log(values)) > SAME))
        if len(parts) == 1:
            return self
        chosen = max(parts, key=lambda part: (min(len(part), needed), part[0]))
        value = float(np.exp(np.log(chosen).mean()))
        note = f"the law holds at one {name}: fitted at {name} = {value:.4g}, the largest with {len(chosen)} rows"
        table = self.select(**{name: value})
        return replace(table, notes=(*table.notes, note))


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
    where: Mapping[str, object] | None = None,
    allow: Sequence[str] = (),
) -> FitTable:
    """Reads a table to fit.

    Args:
        source: a path (.csv, .parquet, .jsonl, .json) or a pandas frame, such as run_record.read_runs returns.
            Columns: N (or n_total, n_non_embedding, n_matmul_head), D (or tokens; else C / 6 N), loss; optional C
            (or flops_exact), S (or steps), U (or unique_tokens) and the other variables of laws, status,
            schedule_complete, held_out, weight, seed, and a label in run_id, run or name.
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
        where: only rows with these values, such as {"optimizer.name": "adamw"}; a note counts the others.
        allow: settings that may differ between the rows of one fit, such as "data.global_batch_size".

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
    law = get_law(law)
    frame, name = load(source)
    if not len(frame):
        raise InputError(f"{name} has no rows; expected columns {', '.join(law.variables)}, {loss}")
    frame = renamed(frame, columns or {}, name)
    others = 0
    if where:
        others = len(frame)
        frame = select_rows(frame, where, name)
        others -= len(frame)
    c = choose_c(frame, c)
    chosen, conventions = choose(frame, n, c, loss, name, law)
    work = frame.drop(columns=[short for short in chosen if short in frame and chosen[short] != short])
    for short, column in chosen.items():
        work[short] = frame[column]
    work["run"] = _labels(frame)
    early = ~truth(frame, "schedule_complete", name, missing=True)
    reasons = _reasons(work, name, early & (not allow_incomplete))
    good = work[np.array([not r for r in reasons], bool)].copy()
    _check_units(units, chosen)
    for column in [v for v in _needed(chosen, c) if v in good]:
        share = column == "loss" and law.target == "share"
        good[column] = _numbers(good, column, name, *((0.0, 1.0) if share else ()))
    for column, size in (units or {}).items():
        good[column] *= float(size)
    given = good.get("C")
    _fill(good, c)
    copies = _copies(good, chosen) if law.target == "loss" else [""] * len(good)  # equal shares are common
    rest = iter(copies)
    reasons = [reason or next(rest) for reason in reasons]
    excluded = work.assign(reason=reasons)[np.array([bool(r) for r in reasons], bool)]
    good = good[np.array([not r for r in copies], bool)]
    out = _held_out(good, held_out, name)
    notes = [f"{others} other rows are left out: not at {_condition(where)}"] if others else []
    check(good, name, loss, law, allow)
    _no_shared_label(work, name)
    return FitTable(
        good[~out].reset_index(drop=True),
        good[out].reset_index(drop=True),
        excluded.reset_index(drop=True),
        conventions,
        (*notes, *_notes(good, given, units or {}, int(early[good.index].sum()), allow)),
        name,
    )


READING = {name: p.default for name, p in inspect.signature(read_table).parameters.items()}


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


def _matches(frame, where) -> np.ndarray:
    """The rows with these values, bool [rows]; N and D within 2 %."""
    keep = np.ones(len(frame), bool)
    for key, value in where.items():
        column = frame[column_of(frame, key)]
        if key in ("N", "D"):
            keep &= np.isclose(column.to_numpy().astype(float), float(value), rtol=SAME)
        else:
            keep &= (column.map(setting_text) == setting_text(value)).to_numpy()
    return keep


def select_rows(frame, where: Mapping[str, object], name: str = "the table"):
    """Returns the rows of a frame with these values of settings.

    Raises:
        InputError: no such column, or no such row.
    """
    keep = _matches(frame, where)
    if not keep.any():
        raise InputError(f"{name}: expected rows with {_condition(where)}, got none among {len(frame)}")
    return frame[keep].reset_index(drop=True)


def _condition(where):
    return " and ".join(f"{k} = {v:.4g}" if k in ("N", "D") else f"{k} = {v}" for k, v in (where or {}).items())


def as_table(source, law: str | Law, **reading) -> FitTable:
    """Returns the table itself, or what `read_table` makes of the source; a table takes no reading options."""
    if not isinstance(source, FitTable):
        return read_table(source, law=law, **reading)
    given = [name for name, value in reading.items() if value not in (READING[name], None, [])]
    if given:
        raise InputError(f"{', '.join(given)}: the table has been read already; give these to read_table")
    return source


def data_hash(points, variables: Sequence[str] = ()) -> str:
    """Returns the first 16 digits of the sha256 of the rows' N, D, variables, loss and weight, in any order of rows."""
    columns = dict.fromkeys(["N", "D", *variables, "loss", "weight"])
    array = np.ascontiguousarray(points[list(columns)].to_numpy(np.float64))
    return hashlib.sha256(array[np.lexsort(array.T)].tobytes()).hexdigest()[:16]


def load(source):
    """Returns (frame, name) of a pandas frame or of a .csv, .parquet, .jsonl or .json file.

    Raises:
        InputError: no such file, another ending, or content that cannot be read.
    """
    import pandas

    if isinstance(source, pandas.DataFrame):
        return source.reset_index(drop=True).copy(), "the table"
    path = pathlib.Path(source)
    if not path.is_file():
        raise InputError(f"no file {path}; expected a table ({', '.join(SUFFIXES)})")
    readers = {
        ".csv": pandas.read_csv,
        ".parquet": pandas.read_parquet,
        ".jsonl": lambda p: pandas.read_json(p, lines=True),
        ".json": pandas.read_json,
    }
    if path.suffix not in readers:
        raise InputError(
            f"{path}: expected a table ending in {', '.join(SUFFIXES)}, got {path.suffix or 'no ending'!r}"
        )
    try:
        # the copy puts columns of one type into one block: inserting into a wide csv would warn of fragmentation
        return readers[path.suffix](path).copy(), path.name
    except (ValueError, OSError) as error:  # pandas and pyarrow raise subclasses of ValueError on bad content
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from error


def truth(frame, column: str, name: str, missing: bool = False) -> np.ndarray:
    """Returns a column of yes and no as bool [rows]; `missing` for empty cells, and for all rows without the column.

    Raises:
        InputError: names a value that is neither.
    """
    if column not in frame:
        return np.full(len(frame), missing)
    words = frame[column].map(lambda value: "" if value is None or value != value else str(value).strip().lower())
    unknown = sorted(set(words) - set(YES) - set(NO) - {""})
    if unknown:
        raise InputError(f"{name}: column {column}: expected true or false, got {unknown[0]!r}")
    return np.array([missing if word == "" else word in YES for word in words], bool)


def _needed(columns, c):
    """The columns with a positive number in every row; other variables are checked by the laws that use them."""
    needed = [v for v in ("N", "D") if v in columns] + ["loss", "weight"]
    needed += ["flops_attention"] * (c == "6nd_attention")
    return needed + ["C"] * ("C" in columns and (c == "exact" or not {"N", "D"} <= set(columns)))


def _check_units(units, columns):
    for column, size in (units or {}).items():
        if column not in columns:
            raise InputError(f"units: expected a column of the fit, got {column!r}{nearest(column, columns)}")
        if not (_is_number(size) and float(size) > 0):
            raise InputError(f"units: expected a number above 0 for {column}, got {size!r}")


def _fill(good, c):
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
    if "weight" not in good:
        good["weight"] = 1.0


def _copies(good, columns):
    """For each row "", or a text that names the earlier row it repeats in every variable, seed and loss.

    Without a column seed, equal rows may be copies or seeds with rounded losses, so they are kept.
    """
    if "seed" not in good:
        return [""] * len(good)
    names = list(dict.fromkeys(["N", "D", "C", *columns, "seed"]))
    first, reasons = {}, []
    for run, *numbers in good[["run", *names]].itertuples(index=False):
        key = tuple(map(str, numbers))
        reasons.append(f"copy of {first[key]}: equal N, D, seed and loss" if key in first else "")
        first.setdefault(key, run)
    return reasons


def _labels(frame):
    for column in ("run_id", "run", "name"):
        if column in frame:
            return frame[column].astype(str)
    return [f"row {i + 1}" for i in range(len(frame))]


def _reasons(work, name, early):
    """For each row the reason that keeps it out of the fit, or ""."""
    reasons, unexplained = [], []
    for row, is_early in zip(work.to_dict("records"), early, strict=True):
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
        elif not _is_number(row["loss"]):
            unexplained.append(f"{row['run']} ({row['loss']})")
            reasons.append("loss is NaN")
        else:
            reasons.append("")
    if unexplained:
        raise InputError(
            f"{name}: the loss is not a number in {', '.join(unexplained[:8])}{' ...' * (len(unexplained) > 8)}; "
            "expected a number, or a column status that says diverged or failed for these rows"
        )
    return reasons


def _is_number(value):
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _numbers(frame, column, name, low=None, high=None):
    """The column as floats: above 0, or within [low, high]; InputError names the rows that are not."""
    values = np.array([float(x) if _is_number(x) else np.nan for x in frame[column]])
    bad = ~(values > 0) if low is None else ~((values >= low) & (values <= high))
    expected = "positive numbers" if low is None else f"shares of {low:g} to {high:g}"
    if bad.any():
        rows = ", ".join(
            f"{label} ({value})" for label, value in list(zip(frame["run"][bad], frame[column][bad], strict=True))[:8]
        )
        raise InputError(f"{name}: expected {expected} in column {column}, got {rows}")
    return values


def _held_out(good, held_out, name):
    if held_out is None:
        return truth(good, "held_out", name)
    if isinstance(held_out, (int, float)):
        if good["C"].isna().any():
            raise InputError(
                f"held_out: expected C in every row to hold out from {held_out:.3g} FLOP, got rows without; "
                "name the rows"
            )
        return good["C"].to_numpy() >= float(held_out)
    missing = sorted(set(held_out) - set(good["run"]))
    if missing:
        raise InputError(f"no row {missing[0]!r} to hold out{nearest(missing[0], good['run'])}")
    return good["run"].isin(list(held_out)).to_numpy()


def _no_shared_label(work, name):
    twice = work["run"][work["run"].duplicated()]
    if len(twice):
        raise InputError(f"{name}: expected one row per run, got {twice.iloc[0]!r} more than once")


def _notes(good, given, units, early, allow):
    """What a reader should know about the rows."""
    for column in (*NOTED, *(["commit"] if "code" not in good else [])):
        values = values_of(good[column].dropna()) if column in good else []
        if len(values) > 1:
            what = {"code": "code versions of lmjax (losses, models, training or data changed between them)"}
            yield (
                f"rows differ in {what.get(column, column.removeprefix('config.'))}: "
                f"{', '.join(v[:16] for v in values[:4])}{', ...' * (len(values) > 4)}"
            )
    for key in allow:
        values = values_of(good[column_of(good, key)])
        if len(values) > 1:
            yield f"rows differ in {key}, as allowed: {listed(values)}"
    if "epochs" in good:
        many = good[good["epochs"] > 4]
        if len(many):
            yield (
                f"{len(many)} runs saw their data more than 4 times (up to {many['epochs'].max():.1f}): "
                "repeated tokens are worth less than new ones (arXiv:2305.16264), so D overstates them"
            )
    repeats = len(good) - len(good[["N", "D"]].drop_duplicates())
    if repeats:
        equal = int(good.duplicated(["N", "D", "C", "loss"]).sum()) if "seed" not in good else 0
        also = f", {equal} of them with the same loss to the last digit: copies, or seeds with rounded losses?"
        yield f"{repeats} rows repeat an (N, D) of another{also if equal else ' (seeds)'}"
    elif "seed" in good and len(good) > 1 and good["seed"].nunique() == 1:
        yield "one seed: the noise between seeds can only be estimated from the scatter around the law"
    if early:
        yield f"{early} rows end before their schedule does: their losses are higher than after the decay"
    yield from _unit_notes(good, given, units)


def _unit_notes(good, given, units):
    """Columns that look as if they counted something else."""
    for column in ("N", "D"):
        if len(good) and good[column].max() < SMALLEST_COUNT and column not in units:
            yield (
                f"{column} is at most {good[column].max():.3g}: taken as it is; if these are millions or billions, "
                f"set units={{{column!r}: 1e6}} or 1e9, so that C = 6 N D and predictions are right"
            )
    if given is not None:
        product = FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"]
        ratios = [float(C) / own for C, own in zip(given[good.index], product, strict=True) if _is_number(C)]
        ratio = float(np.median(ratios)) if ratios else 1.0
        if not 0.2 < ratio < 5:
            yield f"the table's C is {ratio:.2g} times 6 N D (median): check the units of N, D and C"
    if "flops_exact" in good:
        ratio = good["flops_exact"].astype(float) / (FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"])
        low, high = float(ratio.min()), float(ratio.max())
        if high > FAR_FROM_6ND or low < 1 / FAR_FROM_6ND:
            yield f"exact training FLOP are {low:.2g} to {high:.2g} times 6 N D; budgets and splits count 6 N D"

"""The table a law is fitted to: N, D, C, loss from run records or files. Nothing leaves it in silence.

Rows end in one of three frames: `points` (fitted), `held_out` (only predicted), `excluded` (with a reason).
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.conventions import choose, renamed
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, Law, get_law

SUFFIXES = (".csv", ".parquet", ".jsonl", ".json")
SAME = 0.02  # N (or D) within 2 % of each other are one level
ONE_KIND = ("family", "objective", "tokenizer", "config.data.tokenizer", "vocab_size", "token_unit")
ONE_VALUE = ("objective_version", "parametrization", "data_digest")
FINISHED = ("done", "finished", "completed", "complete", "success", "succeeded", "ok")
UNFINISHED = (
    *("failed", "crashed", "diverged", "error", "killed", "pending", "running", "preempted", "stopped", "nan"),
    "unreadable",  # run_record.read_runs: the run's files are damaged
)
YES, NO = ("true", "yes", "1", "1.0", "t", "y"), ("false", "no", "0", "0.0", "f", "n")
SMALLEST_COUNT = 1e4  # fewer parameters or tokens than this in every row: the column counts something larger


@dataclass(frozen=True)
class FitTable:
    """What `read_table` returns.

    points, held_out: pandas frames with run (label), N, D, C, loss, weight and all other columns of the
        source.
    excluded: the same with `reason`.
    conventions: words for N, D, C and loss, to be printed with every result.
    notes: what a reader should know about the rows (repeats, epochs, mixed settings).
    """

    points: "pandas.DataFrame"  # noqa: F821 - pandas is imported where it is used
    held_out: "pandas.DataFrame"  # noqa: F821
    excluded: "pandas.DataFrame"  # noqa: F821
    conventions: dict[str, str]
    notes: tuple[str, ...]
    source: str

    def select(self, **where) -> "FitTable":
        """Returns the table with the rows where column = value (N and D within 2 %); the others become excluded."""
        import pandas

        def matches(frame):
            keep = np.ones(len(frame), bool)
            for name, value in where.items():
                if name not in frame:
                    raise InputError(f"wanted a column {name!r}{nearest(name, frame.columns)}")
                column = frame[name].to_numpy()
                keep &= np.isclose(column.astype(float), value, rtol=SAME) if name in ("N", "D") else column == value
            return keep

        words = " and ".join(f"{k} = {v:.4g}" if k in ("N", "D") else f"{k} = {v}" for k, v in where.items())
        keep, keep_held = matches(self.points), matches(self.held_out)
        if not keep.any():
            raise InputError(f"wanted rows with {words}, got none among {len(self.points)}")
        others = [
            self.excluded,
            self.points[~keep].assign(reason=f"not at {words}"),
            self.held_out[~keep_held].assign(reason=f"held out, and not at {words}"),
        ]
        excluded = pandas.concat([frame for frame in others if len(frame)] or [self.excluded], ignore_index=True)
        return replace(self, points=self.points[keep], held_out=self.held_out[keep_held], excluded=excluded)

    def at_largest(self, name: str, needed: int) -> "FitTable":
        """Returns the rows at one level of N or D: the largest with `needed` rows, else the one with most rows."""
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
    c: str = "6nd",
    held_out: Sequence[str] | float | None = None,
    loss: str = "loss",
    units: Mapping[str, float] | None = None,
    allow_incomplete: bool = False,
    law: str | Law = "chinchilla",
    columns: Mapping[str, str] | None = None,
) -> FitTable:
    """Reads a table to fit.

    Args:
        source: a path (.csv, .parquet, .jsonl, .json) or a pandas frame, such as run_record.read_runs returns.
            Columns: N (or n_total, n_non_embedding, n_matmul_head), D (or tokens; else C / 6 N), loss; optional C
            (or flops_exact), S (or steps), U (or unique_tokens) and the other variables of laws, status,
            schedule_complete, held_out, weight, seed, and a label in run_id, run or name.
        n: which count is N: total | non_embedding | matmul_head. A plain column N is taken as total.
        c: which count is C: 6nd (of the chosen N) | 6nd_attention (needs flops_attention) | exact (flops_exact or C).
        held_out: rows kept out of the fit: their labels, or a compute (FLOP) from which on all are held out;
            None takes the column held_out, if there is one.
        loss: the column to fit, such as bits_per_byte.
        units: what one of a column is, as {"N": 1e6, "D": 1e9} for millions and billions; default 1.
        allow_incomplete: also take rows whose schedule did not complete, with a note.
        law: what it is for: its variables must be there (N or D need not, where the law has none: they become NaN),
            and a law of a share takes 0 to 1 where the others take losses.
        columns: names in this table, as {"N": "params", "D": "tokens_seen", "loss": "val_loss"}.

    Returns:
        FitTable, rows in the order of the source.

    Raises:
        InputError: file or column missing; a loss that is NaN in a row whose status does not explain it;
            values that are not positive numbers; rows of several objectives, families or tokenizers.

    Example:
        >>> import pandas
        >>> table = read_table(pandas.DataFrame({"N": [1e6, 2e6], "D": [4e7, 4e7], "loss": [3.1, 2.9]}))
        >>> float(table.points.C[0]), table.conventions["C"]
        (240000000000000.0, 'C = 6 N D FLOP')
    """
    law = get_law(law)
    frame, name = load(source)
    if not len(frame):
        raise InputError(f"{name} has no rows; wanted columns {', '.join(law.variables)}, {loss}")
    frame = renamed(frame, columns or {}, name)
    columns, conventions = choose(frame, n, c, loss, name, law)
    work = frame.drop(columns=[short for short in columns if short in frame and columns[short] != short])
    for short, column in columns.items():
        work[short] = frame[column]
    work["run"] = _labels(frame)
    early = ~truth(frame, "schedule_complete", name, missing=True)
    reasons = _reasons(work, name, early & (not allow_incomplete))
    good = work[np.array([not r for r in reasons], bool)].copy()
    _check_units(units, columns)
    for column in [v for v in _needed(columns, c) if v in good]:
        share = column == "loss" and law.target == "share"
        good[column] = _numbers(good, column, name, *((0.0, 1.0) if share else ()))
    for column, size in (units or {}).items():
        good[column] *= float(size)
    given = good.get("C")
    _fill(good, n, c)
    copies = _copies(good, columns) if law.target == "loss" else [""] * len(good)  # equal shares are no wonder
    reasons = _merge(reasons, copies)
    excluded = work.assign(reason=reasons)[np.array([bool(r) for r in reasons], bool)]
    good = good[np.array([not r for r in copies], bool)]
    out = _held_out(good, held_out, name)
    _one_kind(good, name, loss)
    _no_shared_label(work, name)
    return FitTable(
        good[~out].reset_index(drop=True),
        good[out].reset_index(drop=True),
        excluded.reset_index(drop=True),
        conventions,
        tuple(_notes(good, given, units or {}, int(early[good.index].sum()))),
        name,
    )


def data_hash(points, variables: Sequence[str] = ()) -> str:
    """First 16 digits of the sha256 of the rows of N, D, variables, loss, weight, equal in any order of rows."""
    columns = dict.fromkeys(["N", "D", *variables, "loss", "weight"])
    array = np.ascontiguousarray(points[list(columns)].to_numpy(np.float64))
    return hashlib.sha256(array[np.lexsort(array.T)].tobytes()).hexdigest()[:16]


def load(source):
    """Returns (frame, name) of a pandas frame or of a .csv, .parquet, .jsonl or .json file."""
    import pandas

    if isinstance(source, pandas.DataFrame):
        return source.reset_index(drop=True), "the table"
    path = pathlib.Path(source)
    if not path.is_file():
        raise InputError(f"no file {path}; wanted a table ({', '.join(SUFFIXES)})")
    readers = {
        ".csv": pandas.read_csv,
        ".parquet": pandas.read_parquet,
        ".jsonl": lambda p: pandas.read_json(p, lines=True),
        ".json": pandas.read_json,
    }
    if path.suffix not in readers:
        raise InputError(f"{path}: wanted a table ending in {', '.join(SUFFIXES)}, got {path.suffix or 'no ending'!r}")
    try:
        return readers[path.suffix](path), path.name
    except (ValueError, OSError) as error:  # pandas and pyarrow raise subclasses of ValueError on bad content
        raise InputError(f"{path} cannot be read as {path.suffix}: {error}") from error


def truth(frame, column: str, name: str, missing: bool = False) -> np.ndarray:
    """A column of yes and no as bool [rows]; `missing` for empty cells, and for all rows without the column.

    Raises:
        InputError: a word that is neither; it is named.
    """
    if column not in frame:
        return np.full(len(frame), missing)
    words = frame[column].map(lambda value: "" if value is None or value != value else str(value).strip().lower())
    unknown = sorted(set(words) - set(YES) - set(NO) - {""})
    if unknown:
        raise InputError(f"{name}: column {column}: wanted true or false, got {unknown[0]!r}")
    return np.array([missing if word == "" else word in YES for word in words], bool)


def _needed(columns, c):
    """The columns with a positive number in every row; other variables are checked by the laws that use them."""
    needed = [v for v in ("N", "D") if v in columns] + ["loss", "weight"]
    needed += ["flops_attention"] * (c == "6nd_attention")
    return needed + ["C"] * ("C" in columns and (c == "exact" or not {"N", "D"} <= set(columns)))


def _check_units(units, columns):
    for column, size in (units or {}).items():
        if column not in columns:
            raise InputError(f"units: wanted a column of the fit, got {column!r}{nearest(column, columns)}")
        if not (_is_number(size) and float(size) > 0):
            raise InputError(f"units: wanted a number above 0 for {column}, got {size!r}")


def _fill(good, n, c):
    """Columns that follow from the others, in place: N, D, C by its convention, M, weight; NaN where they do not."""
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
    """Why a row does not count again: empty text, or which row it repeats in every variable, seed and loss.

    Without a column seed nobody knows whether equal rows are copies or seeds whose losses were rounded: they count.
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


def _merge(reasons, later):
    """Puts the reasons of the rows that had none into their places."""
    rest = iter(later)
    return [reason or next(rest) for reason in reasons]


def _labels(frame):
    for column in ("run_id", "run", "name"):
        if column in frame:
            return frame[column].astype(str)
    return [f"row {i + 1}" for i in range(len(frame))]


def _reasons(work, name, early):
    """Why each row stays out of the fit; empty text for the rows that enter it."""
    reasons, unexplained = [], []
    for row, is_early in zip(work.to_dict("records"), early, strict=True):
        status = row.get("status")
        status = "" if status is None or status != status else str(status).strip().lower()
        if status not in (*FINISHED, *UNFINISHED, ""):
            raise InputError(
                f"{name}: unknown status {row['status']!r} of {row['run']}; wanted one of {', '.join(FINISHED)} "
                f"(enters the fit) or {', '.join(UNFINISHED)} (left out)"
            )
        if status in UNFINISHED:
            message = row.get("message")
            detail = f": {message}" if isinstance(message, str) and message else ""
            reasons.append(f"status {row['status']}{detail}")
        elif is_early:
            reasons.append("schedule incomplete: a point before the end of the decay is not a run")
        elif not _is_number(row["loss"]):
            unexplained.append(f"{row['run']} ({row['loss']})")
            reasons.append("loss is NaN")
        else:
            reasons.append("")
    if unexplained:
        raise InputError(
            f"{name}: the loss is no number in {', '.join(unexplained[:8])}{' ...' * (len(unexplained) > 8)}; "
            "wanted a number, or a column status that says diverged or failed for these rows"
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
    wanted = "positive numbers" if low is None else f"shares of {low:g} to {high:g}"
    if bad.any():
        rows = ", ".join(
            f"{label} ({value})" for label, value in list(zip(frame["run"][bad], frame[column][bad], strict=True))[:8]
        )
        raise InputError(f"{name}: wanted {wanted} in column {column}, got {rows}")
    return values


def _held_out(good, held_out, name):
    if held_out is None:
        return truth(good, "held_out", name)
    if isinstance(held_out, (int, float)):
        if good["C"].isna().any():
            raise InputError(
                f"held_out: wanted a C for every row to hold out from {held_out:.3g} FLOP on; name the rows"
            )
        return good["C"].to_numpy() >= float(held_out)
    missing = sorted(set(held_out) - set(good["run"]))
    if missing:
        raise InputError(f"no row {missing[0]!r} to hold out{nearest(missing[0], good['run'])}")
    return good["run"].isin(list(held_out)).to_numpy()


def _one_kind(good, name, loss):
    for column in ONE_KIND:
        values = sorted({str(x) for x in good[column].dropna()}) if column in good else []
        if len(values) > 1 and not (loss == "bits_per_byte" and column not in ("family", "objective")):
            raise InputError(
                f"{name}: wanted one {column} in a fit, got {', '.join(values)}; their losses do not "
                f"compare: keep the rows of one, as in table[table[{column!r}] == {values[0]!r}]"
            )


def _no_shared_label(work, name):
    twice = work["run"][work["run"].duplicated()]
    if len(twice):
        raise InputError(f"{name}: wanted one row per run, got {twice.iloc[0]!r} more than once")


def _notes(good, given, units, early):
    """What a reader should know about the rows."""
    for column in ONE_VALUE:
        values = sorted({str(x) for x in good[column].dropna()}) if column in good else []
        if len(values) > 1:
            yield f"rows differ in {column}: {', '.join(v[:16] for v in values[:4])}"
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
        yield "one seed: the noise between seeds is known only as scatter around the law"
    if early:
        yield f"{early} rows are from before the end of their schedule: their losses lack what the decay gains"
    yield from _unit_notes(good, given, units)


def _unit_notes(good, given, units):
    """Columns that look as if they counted something else."""
    for column in ("N", "D"):
        if len(good) and good[column].max() < SMALLEST_COUNT and column not in units:
            yield (
                f"{column} is at most {good[column].max():.3g}: taken as it is; if these are millions or billions, "
                f"say so with units={{{column!r}: 1e6}} or 1e9, for C = 6 N D and predictions to be right"
            )
    ratios = (
        []
        if given is None
        else [
            float(C) / (FLOPS_PER_PARAM_TOKEN * N * D)
            for C, N, D in zip(given[good.index], good["N"], good["D"], strict=True)
            if _is_number(C)
        ]
    )
    if ratios:
        ratio = float(np.median(ratios))
        if not 0.2 < ratio < 5:
            yield f"the table's C is {ratio:.2g} times 6 N D (median): check the units of N, D and C"

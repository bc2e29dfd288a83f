"""The table a law is fitted to: N, D, C, loss from run records or files. Nothing leaves it in silence.

Rows end in one of three frames: `points` (fitted), `held_out` (only predicted), `excluded` (with a reason).
"""

import hashlib
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN

N_COLUMNS = {
    "n_total": "N = all parameters, embeddings included",
    "n_non_embedding": "N = parameters without embeddings",
}
SUFFIXES = (".csv", ".parquet", ".jsonl", ".json")
SAME = 0.02  # N (or D) within 2 % of each other are one level
ONE_VALUE = ("family", "objective", "objective_version", "parametrization", "data_digest")


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
        values = np.sort(self.points[name].to_numpy())
        parts = np.split(values, 1 + np.flatnonzero(np.diff(np.log(values)) > SAME))
        if len(parts) == 1:
            return self
        chosen = max(parts, key=lambda part: (min(len(part), needed), part[0]))
        value = float(np.exp(np.log(chosen).mean()))
        note = f"the law holds at one {name}: fitted at {name} = {value:.4g}, the largest with {len(chosen)} rows"
        table = self.select(**{name: value})
        return replace(table, notes=(*table.notes, note))


def read_table(source, n_column: str = "n_total", held_out: Sequence[str] | float | None = None) -> FitTable:
    """Reads a table to fit.

    Args:
        source: a path (.csv, .parquet, .jsonl, .json) or a pandas frame, such as run_record.read_runs
        returns.
            Columns: N (or n_total / n_non_embedding), D (or tokens), loss; optional C (or flops_exact; else
            6 N D), status, schedule_complete, held_out, weight, and a label in run_id, run or name.
        n_column: which count is N when the table has several: n_total | n_non_embedding.
        held_out: rows kept out of the fit: their labels, or a compute (FLOP) from which on all are held out;
            None takes the column held_out, if there is one.

    Returns:
        FitTable, rows in the order of the source.

    Raises:
        InputError: file or column missing; a loss that is NaN in a row whose status does not explain it;
            values that are not positive numbers; rows of several objectives or families.

    Example:
        >>> import pandas
        >>> table = read_table(pandas.DataFrame({"N": [1e6, 2e6], "D": [4e7, 4e7], "loss": [3.1, 2.9]}))
        >>> float(table.points.C[0]), table.conventions["C"]
        (240000000000000.0, 'C = 6 N D FLOP')
    """
    frame, name = _load(source)
    if not len(frame):
        raise InputError(f"{name} has no rows; wanted columns N, D, loss")
    columns, conventions = _columns(frame, n_column, name)
    work = frame.drop(columns=[c for c in ("N", "D", "C") if c in frame and columns.get(c) != c])
    for short, column in columns.items():
        work[short] = frame[column]
    work["run"] = _labels(frame)
    reasons = _reasons(work, name)
    excluded = work.assign(reason=reasons)[[bool(r) for r in reasons]]
    good = work[[not r for r in reasons]].copy()
    for column in ("N", "D", "loss", *(c for c in ("C", "weight") if c in good)):
        good[column] = _positive(good, column, name)
    if "C" not in good:
        good["C"] = FLOPS_PER_PARAM_TOKEN * good["N"] * good["D"]
    if "weight" not in good:
        good["weight"] = 1.0
    out = _held_out(good, held_out)
    _one_kind(good, name)
    _no_shared_label(work, name)
    return FitTable(
        good[~out].reset_index(drop=True),
        good[out].reset_index(drop=True),
        excluded.reset_index(drop=True),
        conventions,
        tuple(_notes(good)),
        name,
    )


def data_hash(points) -> str:
    """First 16 digits of the sha256 over the sorted N, D, loss, weight: equal for equal rows in any order."""
    array = np.ascontiguousarray(points[["N", "D", "loss", "weight"]].to_numpy(np.float64))
    return hashlib.sha256(array[np.lexsort(array.T)].tobytes()).hexdigest()[:16]


def _load(source):
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


def _columns(frame, n_column, name):
    if n_column not in (*N_COLUMNS, "N"):
        raise InputError(f"wanted n_total or n_non_embedding for N, got {n_column!r}{nearest(n_column, N_COLUMNS)}")
    columns = {}
    if n_column in frame:
        columns["N"] = n_column
    elif "N" in frame and n_column != "n_non_embedding":
        columns["N"] = "N"
    columns |= {
        short: next(c for c in choice if c in frame)
        for short, choice in (("D", ("tokens", "D")), ("loss", ("loss",)), ("C", ("flops_exact", "C")))
        if any(c in frame for c in choice)
    }
    wanted = {"N": n_column if n_column == "n_non_embedding" else "N", "D": "D", "loss": "loss"}
    for short, column in wanted.items():
        if short not in columns:
            raise InputError(f"{name}: wanted a column {column!r}{nearest(column, map(str, frame.columns))}")
    conventions = {
        "N": N_COLUMNS.get(columns["N"], "N as given in the table"),
        "D": "D = training tokens seen" if columns["D"] == "tokens" else "D as given in the table",
        "C": {"flops_exact": "C = exact training FLOP", "C": "C as given in the table"}.get(
            columns.get("C"), "C = 6 N D FLOP"
        ),
        "loss": _loss_unit(frame),
    }
    return columns, conventions


def _loss_unit(frame):
    if "objective" not in frame:
        return "loss in the unit of the table"
    return f"loss = held-out nats per predicted token of the objective {frame['objective'].dropna().iloc[0]}"


def _labels(frame):
    for column in ("run_id", "run", "name"):
        if column in frame:
            return frame[column].astype(str)
    return [f"row {i + 1}" for i in range(len(frame))]


def _reasons(work, name):
    """Why each row stays out of the fit; empty text for the rows that enter it."""
    reasons, unexplained = [], []
    for row in work.to_dict("records"):
        status = row.get("status", "done")
        has_loss = _is_number(row["loss"])
        if status == status and status not in ("done", None):
            message = row.get("message")
            detail = f": {message}" if isinstance(message, str) and message else ""
            reasons.append(f"status {status}{detail}")
        elif "schedule_complete" in work and row["schedule_complete"] in (False, 0, "False", "false"):
            reasons.append("schedule incomplete: a point before the end of the decay is not a run")
        elif not has_loss:
            unexplained.append(row["run"])
            reasons.append("loss is NaN")
        else:
            reasons.append("")
    if unexplained:
        raise InputError(
            f"{name}: the loss is NaN in {', '.join(unexplained[:8])}{' ...' * (len(unexplained) > 8)}; "
            "wanted a number, or a column status that says diverged or failed for these rows"
        )
    return reasons


def _is_number(value):
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


def _positive(frame, column, name):
    values = np.array([float(x) if _is_number(x) else np.nan for x in frame[column]])
    bad = ~(values > 0)
    if bad.any():
        rows = ", ".join(
            f"{label} ({value})" for label, value in list(zip(frame["run"][bad], frame[column][bad], strict=True))[:8]
        )
        raise InputError(f"{name}: wanted positive numbers in column {column}, got {rows}")
    return values


def _held_out(good, held_out):
    if held_out is None:
        if "held_out" not in good:
            return np.zeros(len(good), bool)
        return np.array([x in (True, 1, "True", "true") for x in good["held_out"]], bool)
    if isinstance(held_out, (int, float)):
        return good["C"].to_numpy() >= float(held_out)
    missing = sorted(set(held_out) - set(good["run"]))
    if missing:
        raise InputError(f"no row {missing[0]!r} to hold out{nearest(missing[0], good['run'])}")
    return good["run"].isin(list(held_out)).to_numpy()


def _one_kind(good, name):
    for column in ("family", "objective"):
        values = sorted({str(x) for x in good[column].dropna()}) if column in good else []
        if len(values) > 1:
            raise InputError(
                f"{name}: wanted one {column} in a fit, got {', '.join(values)}; their losses do not "
                f"compare: keep the rows of one, as in table[table.{column} == {values[0]!r}]"
            )


def _no_shared_label(work, name):
    twice = work["run"][work["run"].duplicated()]
    if len(twice):
        raise InputError(f"{name}: wanted one row per run, got {twice.iloc[0]!r} more than once")


def _notes(good):
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
        yield f"{repeats} rows repeat an (N, D) of another: their errors are treated as independent"

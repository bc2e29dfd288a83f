"""Table columns: which one is N, D, C, loss or another variable, by which convention; checked arrays."""

from collections.abc import Sequence

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.settings import check

N_COUNTS = {  # n -> (column of run records, what it counts)
    "total": ("n_total", "N = all parameters, embeddings included"),
    "non_embedding": ("n_non_embedding", "N = parameters without embeddings"),
    "matmul_head": ("n_matmul_head", "N = parameters of matrix products, output projection included, tables not"),
}
C_COUNTS = {  # c -> what it counts
    "6nd": "C = 6 N D FLOP",
    "6nd_attention": "C = 6 N D + training FLOP of the attention scores",
    "exact": "C = exact training FLOP",
}
ALIASES = {  # variable -> its possible columns; the first one present is used
    "D": ("tokens", "D"),
    "S": ("steps", "S"),
    "U": ("unique_tokens", "U"),
    "M": ("tokens_per_param", "M"),
    "B": ("tokens_per_step", "B"),
    "N_e": ("n_encoder", "N_e"),
    "N_d": ("n_decoder", "N_d"),
    "S1": ("S1",),
    "S2": ("S2",),
}


# ---- names and conventions ------------------------------------------------------------------------------------------


def renamed(frame, columns, name):
    """Returns the frame with the user's column names replaced by ours."""
    for ours, theirs in columns.items():
        if theirs not in frame:
            raise InputError(
                f"{name}: expected a column {theirs!r} for {ours}{nearest(theirs, map(str, frame.columns))}"
            )
    frame = frame.drop(columns=[ours for ours, theirs in columns.items() if ours in frame and ours != theirs])
    return frame.rename(columns={theirs: ours for ours, theirs in columns.items()})


def choose_c(frame, c: str) -> str:
    """Returns the convention of C that "auto" stands for.

    6 N D counts every parameter once for every token. That is the training compute of a decoder or an encoder, but not
    of an encoder-decoder, where a token passes through one of two stacks, nor of layers that share their parameters.
    For these, "auto" is the exact count if the table has it.
    """
    if c != "auto":
        return c
    families = set(frame["family"].dropna()) if "family" in frame else set()
    shared = frame.get("config.model.share_layers")
    unusual = families == {"encoder_decoder"} or (shared is not None and bool((shared.astype(str) == "True").any()))
    return "exact" if unusual and "flops_exact" in frame and frame["flops_exact"].notna().any() else "6nd"


def choose(frame, n, c, loss, name, law):
    """Returns {variable: its column} and the description of every convention."""
    for value, known, what in ((n, N_COUNTS, "n"), (c, C_COUNTS, "c")):
        if value not in known:
            raise InputError(f"{what}: expected {' | '.join(known)}, got {value!r}{nearest(value, known)}")
    n_column, n_words = N_COUNTS[n]
    columns = {short: next(x for x in names if x in frame) for short, names in ALIASES.items() if {*names} & {*frame}}
    exact = next((x for x in ("flops_exact", "C") if x in frame), None)
    needs = set(law.variables)
    if ("M" in needs and "M" not in columns) or ("C" in needs and not exact):
        needs |= {"N", "D"}
    if n_column in frame or n != "total":
        columns["N"] = n_column
    elif "N" in frame or ("N" in needs and not {"N_e", "N_d"} <= set(columns)):
        columns["N"] = "N"
    columns["loss"] = loss
    if exact or c == "exact":
        columns["C"] = exact or "flops_exact"
    if "D" in needs and not exact:
        columns.setdefault("D", "D")
    columns |= {name: name for name in needs - {"N", "D", "C", "M"} if name not in columns}
    needed = [*columns.values(), *(["flops_attention"] if c == "6nd_attention" else [])]
    missing = [column for column in needed if column not in frame]
    if missing:
        close = nearest(missing[0], map(str, frame.columns))
        raise InputError(
            f"{name}: expected columns {', '.join(map(repr, missing))}{close * ('did you mean' in close)}; the table "
            f"has {', '.join(map(str, frame.columns[:20]))}; name the columns with --columns "
            f"{','.join(f'{column}=...' for column in missing)} (columns={{...}} in Python)"
        )
    n_words = {n_column: n_words, "N": "N as given in the table", None: "no N in the table"}[columns.get("N")]
    if "N" not in columns and {"N_e", "N_d"} <= set(columns):
        n_words = "N = N_e + N_d"
    d_words = {"tokens": "D = training tokens seen", "D": "D as given in the table"}.get(columns.get("D"))
    derived = "D = C / 6 N" if exact and "N" in columns else "no D in the table"
    known = "N" in columns and ("D" in columns or exact)
    c_words = C_COUNTS[c] if known and c != "exact" else "C as given in the table" if exact else "no C in the table"
    conventions = {
        "N": n_words,
        "D": d_words or derived,
        "C": C_COUNTS[c] if columns.get("C") == "flops_exact" and c == "exact" else c_words,
        "loss": _loss_unit(frame, loss),
    }
    return columns, conventions


def _loss_unit(frame, loss):
    """Describes the loss; only in run records is it known to be a validation loss."""
    record = "objective_version" in frame
    if loss == "bits_per_byte":
        return "loss = validation bits per byte" if record else "loss = bits per byte"
    if loss != "loss":
        return f"loss = column {loss} of the table"
    if not record:
        return "loss in the unit of the table"
    return f"loss = validation nats per predicted token of the objective {frame['objective'].dropna().iloc[0]}"


# ---- clusters of values ---------------------------------------------------------------------------------------------


def cluster(values, together: float = 0.05) -> np.ndarray:
    """Returns for each value the geometric mean of its cluster; values within 5 % of a neighbour are one cluster.

    Example:
        >>> cluster([100.0, 102.0, 200.0]).round(1).tolist()
        [101.0, 101.0, 200.0]
    """
    values = np.asarray(values, float)
    order = np.argsort(values)
    group = np.zeros(len(values), int)
    group[order[1:]] = np.cumsum(np.diff(np.log(values[order])) > together)
    return np.array([np.exp(np.log(values[group == g]).mean()) for g in group])


def curve_keys(rows: Sequence[dict], names: Sequence[str]) -> list[tuple[float, ...]]:
    """Returns for each row the clustered values of the named variables: equal keys are one curve of a figure.

    Example:
        >>> rows = [{"N": 1.0, "D": 8.0}, {"N": 2.0, "D": 8.0}, {"N": 1.0, "D": 16.0}]
        >>> [round(D, 6) for (D,) in curve_keys(rows, ["D"])]
        [8.0, 8.0, 16.0]
    """
    if not names:
        return [()] * len(rows)
    return list(zip(*(cluster([row[name] for row in rows]).tolist() for name in names), strict=True))


# ---- checked arrays -------------------------------------------------------------------------------------------------


def frame_of(source, what: str, pooled: bool = False):
    """Returns a pandas frame from a frame, a FitTable (its points) or a dict of columns.

    Args:
        source: the table.
        what: name of the table in error messages.
        pooled: whether one law is fitted to all rows, so that their settings must not differ.

    Raises:
        InputError: another type of source, no rows, or settings that differ.
    """
    import pandas

    is_read = hasattr(source, "points") and hasattr(source, "conventions")
    frame = source.points if is_read else source
    if isinstance(frame, dict):
        lengths = {name: np.size(column) for name, column in frame.items()}
        if len(set(lengths.values()) - {1}) > 1:
            raise InputError(f"{what}: expected columns of one length, got {lengths}")
        frame = pandas.DataFrame(frame)
    if not isinstance(frame, pandas.DataFrame):
        raise InputError(f"{what}: expected a pandas frame or a dict of columns, got {type(source).__name__}")
    if not len(frame):
        raise InputError(f"{what}: expected rows, got an empty table")
    if pooled and not is_read:
        check(frame, what)
    return frame.reset_index(drop=True)


def need(frame, names: Sequence[str], what: str) -> None:
    """Checks that a frame has these columns.

    Raises:
        InputError: one is missing.
    """
    for name in names:
        if name not in frame:
            raise InputError(f"{what}: expected a column {name!r}{nearest(name, map(str, frame.columns))}")


def positive(frame, name: str, what: str) -> np.ndarray:
    """Returns the column as float64.

    Raises:
        InputError: a value is not a finite number above 0; names the first such rows.

    Example:
        >>> positive({"N": np.array([1, 2])}, "N", "the table").tolist()
        [1.0, 2.0]
    """
    values = numbers(frame, name, what)
    if not (values > 0).all():
        raise InputError(f"{what}: expected numbers above 0 in {name}, got {_first(values, values > 0)}")
    return values


def numbers(frame, name: str, what: str) -> np.ndarray:
    """Returns the column as float64, all finite.

    Raises:
        InputError: NaN, infinity or text.
    """
    try:
        values = np.asarray(frame[name], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: expected numbers in {name}: {error}") from error
    if not np.isfinite(values).all():
        raise InputError(
            f"{what}: expected finite numbers in {name}, got {_first(values, np.isfinite(values))}; "
            "leave failed runs out"
        )
    return values


def shares(level: float, resamples: int) -> None:
    """Checks a confidence level in (0, 1) and a number of resamples: 0 (no intervals) or at least 20."""
    if not 0 < level < 1 or not (resamples == 0 or resamples >= 20):
        raise InputError(f"expected 0 < level < 1 and resamples = 0 or >= 20, got {level}, {resamples}")


def _first(values, good):
    rows = np.flatnonzero(~good)
    shown = ", ".join(f"{values[i]:g} in row {i + 1}" for i in rows[:5])
    return shown + " ..." * (len(rows) > 5)

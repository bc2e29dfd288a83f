"""Columns of a table as checked arrays, and clusters of nearly equal values: for the methods and figures."""

from collections.abc import Sequence

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.table import check


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
    """Raises InputError unless a frame has these columns.

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


def shares(confidence: float, resamples: int) -> None:
    """Checks a confidence level in (0, 1) and a number of resamples: 0 (no intervals) or at least 20."""
    if not 0 < confidence < 1 or not (resamples == 0 or resamples >= 20):
        raise InputError(f"expected 0 < confidence < 1 and resamples = 0 or >= 20, got {confidence}, {resamples}")


def _first(values, good):
    rows = np.flatnonzero(~good)
    shown = ", ".join(f"{values[i]:g} in row {i + 1}" for i in rows[:5])
    return shown + " ..." * (len(rows) > 5)

"""Columns of a table as checked arrays: wanted names present, numbers finite and positive. No statistics."""

from collections.abc import Sequence

import numpy as np

from lmjax.errors import InputError, nearest


def frame_of(source, what: str):
    """Returns a pandas frame of a frame, a FitTable (its points) or a dict of columns.

    Raises:
        InputError: something else, or no rows.
    """
    import pandas

    frame = source.points if hasattr(source, "points") and hasattr(source, "conventions") else source
    if isinstance(frame, dict):
        lengths = {name: np.size(column) for name, column in frame.items()}
        if len(set(lengths.values()) - {1}) > 1:
            raise InputError(f"{what}: wanted columns of one length, got {lengths}")
        frame = pandas.DataFrame(frame)
    if not isinstance(frame, pandas.DataFrame):
        raise InputError(f"{what}: wanted a pandas frame or a dict of columns, got {type(source).__name__}")
    if not len(frame):
        raise InputError(f"{what}: wanted rows, got an empty table")
    return frame.reset_index(drop=True)


def need(frame, names: Sequence[str], what: str) -> None:
    """Refuses a frame without these columns.

    Raises:
        InputError: the missing ones and what there is.
    """
    for name in names:
        if name not in frame:
            raise InputError(f"{what}: wanted a column {name!r}{nearest(name, map(str, frame.columns))}")


def positive(frame, name: str, what: str) -> np.ndarray:
    """The column as float64.

    Raises:
        InputError: a value that is no finite number above 0; the first rows are named.

    Example:
        >>> positive({"N": np.array([1, 2])}, "N", "the table").tolist()
        [1.0, 2.0]
    """
    values = numbers(frame, name, what)
    if not (values > 0).all():
        raise InputError(f"{what}: wanted numbers above 0 in {name}, got {_first(values, values > 0)}")
    return values


def numbers(frame, name: str, what: str) -> np.ndarray:
    """The column as float64, all finite.

    Raises:
        InputError: NaN, infinity or text.
    """
    try:
        values = np.asarray(frame[name], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: wanted numbers in {name}: {error}") from error
    if not np.isfinite(values).all():
        raise InputError(
            f"{what}: wanted finite numbers in {name}, got {_first(values, np.isfinite(values))}; "
            "leave failed runs out and say so"
        )
    return values


def shares(level: float, resamples: int) -> None:
    """Refuses a level outside (0, 1) or fewer than 20 resamples (0 is none)."""
    if not 0 < level < 1 or not (resamples == 0 or resamples >= 20):
        raise InputError(f"wanted 0 < level < 1 and resamples = 0 or >= 20, got {level}, {resamples}")


def _first(values, good):
    rows = np.flatnonzero(~good)
    shown = ", ".join(f"{values[i]:g} in row {i + 1}" for i in rows[:5])
    return shown + " ..." * (len(rows) > 5)

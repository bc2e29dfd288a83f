"""The one type that every `predict` of this package returns, and the form in which every result becomes JSON."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmjax.errors import InputError

AGREE = 0.02  # predictions agree within this share of the loss, or these points of a share


def positive_budget(C) -> np.ndarray:
    """A budget, float or array, as float64; InputError unless it is above 0."""
    C = np.asarray(C, np.float64)
    if not (C > 0).all():
        raise InputError(f"expected a budget C > 0 FLOP, got {C}")
    return C


def plain(value, infinity: tuple[str | None, str | None] = (None, None)) -> Any:
    """Converts dataclasses, tuples, arrays and NumPy scalars to JSON types; NaN becomes None.

    infinity: what stands for -infinity and infinity, which JSON does not have either.

    Example:
        >>> plain({"a": (1.0, math.nan)})
        {'a': [1.0, None]}
    """
    if dataclasses.is_dataclass(value):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v, infinity) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(v, infinity) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else infinity[value > 0]
    return value


@dataclass(frozen=True)
class Prediction:
    """A predicted number, or an array of them, with confidence intervals.

    Args:
        value: the prediction; scalars become floats, anything else a float64 array.
        low, high: ends of the interval, of the shape of `value`; NaN where no interval was computed.
        confidence: confidence level of the interval.

    Unpacks as `value, low, high = prediction`.

    Example:
        >>> loss = Prediction(np.float64(2.5), 2.4, 2.6)
        >>> loss.value, loss.high
        (2.5, 2.6)
        >>> Prediction([2.5, 2.4]).low
        array([nan, nan])
    """

    value: float | np.ndarray
    low: float | np.ndarray = math.nan
    high: float | np.ndarray = math.nan
    confidence: float = 0.95

    def __post_init__(self):
        arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (self.value, self.low, self.high)))
        for name, array in zip(("value", "low", "high"), arrays, strict=True):
            object.__setattr__(self, name, array.copy() if array.ndim else float(array))

    def __iter__(self) -> Iterator[float | np.ndarray]:
        return iter((self.value, self.low, self.high))


def agreed(predictions: Iterable[Prediction], share: bool = False) -> Prediction:
    """The mean of several predictions of the same runs, with an interval that covers all of theirs.

    Raises:
        InputError: predictions of one run are more than 2 % apart (0.02 for a share).

    Example:
        >>> agreed([Prediction(2.0, 1.8, 2.2), Prediction(2.02, 2.0, 2.3)])
        Prediction(value=2.01, low=1.8, high=2.3, confidence=0.95)
    """
    predictions = list(predictions)
    value, low, high = (np.array(part, np.float64) for part in zip(*predictions, strict=True))
    least, most = value.min(0), value.max(0)
    apart = np.flatnonzero(most - least > AGREE * (1.0 if share else least))
    if len(apart):
        ends = f"{least.ravel()[apart[0]]:.4g} and {most.ravel()[apart[0]]:.4g}"
        raise InputError(
            f"expected minima that predict the same, got {ends} from minima that fit equally well; predict closer to "
            "the fitted runs, or add runs that decide between them"
        )
    return Prediction(value.mean(0), low.min(0), high.max(0), predictions[0].confidence)

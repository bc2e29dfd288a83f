"""The one type that every `predict` of this package returns: a value with its confidence interval."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


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

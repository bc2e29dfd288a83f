"""Sharpness of a curve, independent of any law and unit: the width of its 10-90 % rise over the span of the ladder.

The values are made monotone in scale (isotonic least squares) and scaled to 0 .. 1; the places where they cross 0.1 and
0.9 are interpolated linearly between points. Divided by the ladder's span (decades) the width is scale-free: 0.8 for a
straight line in log scale, 0.8 / (G - 1) for a step between two of G equally spaced points, the smallest width that the
ladder can resolve. A share below 0.5 is called sharp: 80 % of the rise within half of the ladder. arXiv:2206.07682
defines emergent abilities as "not present in smaller models", which does not constrain the width; arXiv:2304.15004
requires sharpness and unpredictability. This file measures the first, breaks.py the second.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling.resample import percentiles

SHARP = 0.5  # share of the ladder's span below which a rise is sharp
SURE = 0.95  # share of resamples that must agree


@dataclass(frozen=True)
class Rise:
    """The rise of a curve; all nan (sharp 0) where it does not rise.

    width: decades of the 10-90 % rise, and its interval low .. high. share: width over the span, share_low ..
    share_high. start, end: progress (log10) where the rise begins and ends. sharp: share of resamples below SHARP.
    steps: the width in distances between points; below 1 the ladder does not resolve it, and the width is an upper
    bound. rise: last value minus first; rise_low: its lower limit.
    """

    width: float = math.nan
    low: float = math.nan
    high: float = math.nan
    share: float = math.nan
    share_low: float = math.nan
    share_high: float = math.nan
    start: float = math.nan
    end: float = math.nan
    sharp: float = 0.0
    steps: float = math.nan
    rise: float = 0.0
    rise_low: float = 0.0

    @property
    def verdict(self) -> str:
        """sharp | smooth | undecided."""
        return "sharp" if self.sharp >= SURE else "smooth" if self.sharp <= 1 - SURE else "undecided"


def rising(values: np.ndarray, w: np.ndarray | None = None) -> np.ndarray:
    """The least-squares curve (with weights w) that never falls, [G].

    Example:
        >>> rising(np.array([0.0, 2.0, 1.0, 3.0])).tolist()
        [0.0, 1.5, 1.5, 3.0]
    """
    from scipy.optimize import isotonic_regression

    return isotonic_regression(values, weights=w).x


def crossings(progress: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Where a curve (values [G], larger is better, over increasing progress [G]) reaches 10 % and 90 % of its rise.

    Example (nan if it does not rise):
        >>> [round(v, 6) for v in crossings(np.arange(5.0), np.arange(5.0))], crossings(np.arange(3.0), np.zeros(3))
        ([0.4, 3.6], (nan, nan))
    """
    curve = rising(values)
    size = curve[-1] - curve[0]
    if not size > 0:
        return np.nan, np.nan
    scaled = (curve - curve[0]) / size
    return float(_first(progress, scaled, 0.1)), float(_first(progress, scaled, 0.9))


def _first(progress, scaled, height):
    """Where the piecewise linear curve first reaches a height."""
    i = int(np.argmax(scaled >= height))
    if i == 0:
        return progress[0]
    part = (height - scaled[i - 1]) / (scaled[i] - scaled[i - 1])
    return progress[i - 1] + part * (progress[i] - progress[i - 1])


def measure(progress: np.ndarray, values: np.ndarray, resampled_PG: np.ndarray, confidence: float = 0.95) -> Rise:
    """Measures the rise of a curve and its uncertainty.

    Args:
        progress: [G], increasing: log10 of the scale.
        values: [G], larger is better.
        resampled_PG: bootstrap resamples of the values; those that do not rise count as not sharp.

    Example:
        >>> step = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
        >>> rise = measure(np.arange(6.0), step, step[None])
        >>> round(rise.width, 6), round(rise.share, 6), rise.verdict
        (0.8, 0.16, 'sharp')
    """
    start, end = crossings(progress, values)
    span = float(np.ptp(progress))
    widths = np.array([np.subtract(*crossings(progress, row)[::-1]) for row in resampled_PG])
    known = widths[np.isfinite(widths)]
    low, high = map(float, percentiles(known, confidence)) if len(known) else (math.nan, math.nan)
    first, last = np.interp([start, end], progress, np.arange(len(progress)))
    return Rise(
        width=end - start,
        low=low,
        high=high,
        share=(end - start) / span,
        share_low=low / span,
        share_high=high / span,
        start=start,
        end=end,
        sharp=float(np.mean(np.nan_to_num(widths / span, nan=np.inf) < SHARP)) if np.isfinite(start) else 0.0,
        steps=float(last - first),
        rise=float(values[-1] - values[0]),
        rise_low=float(percentiles(resampled_PG[:, -1] - resampled_PG[:, 0], confidence)[0]),
    )

"""Are the points one curve? A test of their scatter around any monotone curve against the noise of items and seeds.

Models of several families scatter around a common curve by more than their items explain (arXiv:2405.10938 fits one
curve per family for that reason), and a law with a break then follows the families and not the scale. The curve is the
weighted isotonic fit, which follows every power law, threshold and step, so only scatter that no rising curve explains
counts. Statistic: sum over points of (value - fit)^2 / variance. Its null distribution is simulated: the isotonic fit
plus noise, fitted anew.

P simulations, R cells, G points.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmjax.evals.metrics import floor
from lmjax.scaling.emergence import null
from lmjax.scaling.emergence.curves import HARD_METRICS, Curves, error_of
from lmjax.scaling.emergence.sharpness import rising
from lmjax.scaling.resample import generator, t_errors

SIGNIFICANT = 0.01  # a ladder with seeds is refused wrongly in at most this share of cases
SIMULATIONS = 999
MODEL = "the first word of the model's name"  # the group of a run where no column has one


@dataclass(frozen=True)
class Scatter:
    """Scatter of a metric around the best monotone curve.

    metric: its name. ratio: root mean square of the scatter over that which noise explains. p_value: share of
    simulated curves with as much. group: the column that accounts for most of the scatter, "" if none does; share: of
    the scatter's variance, adjusted for the number of groups.
    """

    metric: str
    ratio: float
    p_value: float
    group: str
    share: float

    @property
    def mixed(self) -> bool:
        """Whether the points are no single curve."""
        return self.p_value <= SIGNIFICANT


def test(curves: Curves, draws: null.Draws, seed: int) -> Scatter:
    """Tests the hard metric and the first smooth one; returns the more significant.

    Points of several seeds vary by their spread and items, those of one seed by their items and the noise that stands
    in for seeds. A metric without any known noise is not tested: its ratio and p-value are nan.
    """
    found = [made for name in curves.pair if name and (made := _one(curves, draws, name, seed)) is not None]
    return min(found, key=lambda made: (made.p_value, -made.ratio), default=Scatter("", math.nan, math.nan, "", 0.0))


def _one(curves, draws, name, seed):
    value = -error_of(name, curves.points[name].to_numpy(float))
    known = curves.cells[f"{name} se"].notna().all() or name in HARD_METRICS or curves.repeats or name in curves.noise
    if not known:
        return None
    sd = null.point_errors(curves, draws, name)
    if name in HARD_METRICS:  # a share near 0 or 1 has the noise of the curve there
        own = np.array([curves.cells[name][curves.point == g].std(ddof=1) if s > 1 else 0.0
                        for g, s in enumerate(curves.seeds)])  # fmt: skip
        fitted = rising(value, sd**-2.0) + 1
        items = [floor(float(np.clip(v, 0, 1)), curves.n * int(s)) for v, s in zip(fitted, curves.seeds, strict=True)]
        sd = np.maximum(np.maximum(sd, own / np.sqrt(curves.seeds)), items)
    rng, w = generator(seed + 2), sd**-2.0
    fit = rising(value, w)
    df = min(curves.df, curves.repeats or np.inf)
    noise = t_errors(rng, sd, df, SIMULATIONS)
    off = np.array([((y - rising(y, w)) ** 2 * w).sum() for y in fit + noise])
    statistic = float(((value - fit) ** 2 * w).sum())
    p_value = (1 + int((off >= statistic).sum())) / (1 + SIMULATIONS)
    words = [re.match(r"(?:.*/)?([^\W\d_]*)", str(run))[1].lower() for run in curves.cells["run_id"]]
    group, share = differing(curves.groups | {MODEL: np.array(words)}, ((value - fit) / sd)[curves.point])
    return Scatter(name, float(np.sqrt(statistic / max(off.mean(), 1e-12))), p_value, group, share)


def differing(groups: Mapping[str, np.ndarray], residual_R: np.ndarray) -> tuple[str, float]:
    """The column whose groups differ most in their mean residual, and its share of the variance; ("", 0) if none does.

    Kruskal and Wallis' rank test at 1 %; the share is adjusted for the number of groups.

    Example:
        >>> differing({"family": np.array(list("aaaaabbbbb"))}, np.array([1.0, 1.1, 1.2, 1.0, 0.9] + [-1.0] * 5))[0]
        'family'
    """
    from scipy.stats import kruskal

    best = ("", 0.0, SIGNIFICANT)
    for name, labels in groups.items():
        parts = [residual_R[labels == label] for label in dict.fromkeys(labels)]
        if 1 < len(parts) < len(residual_R) and residual_R.std() > 0:
            p_value = float(kruskal(*parts).pvalue)
            within = sum(((part - part.mean()) ** 2).sum() for part in parts) / (len(residual_R) - len(parts))
            if p_value < best[2]:
                best = (name, float(1 - within / residual_R.var(ddof=1)), p_value)
    return best[:2]

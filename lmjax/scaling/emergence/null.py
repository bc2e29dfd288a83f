"""Tests the hard metric against p^L, its prediction from per-token accuracy.

If the L tokens of an answer were right independently, each with the probability p that the task's token accuracy
measures, all of them would be right with p^L: smooth in p, sharp in scale, sharper for longer answers
(arXiv:2304.15004, section 3). A second prediction is the probability that a *sampled* answer is right, the mean over
items of exp(log-likelihood): what the smooth metric itself says about exact match, without independence.

Is the jump explained by the smooth metric? Yes if one of the two predicted curves reproduces at least half of the hard
metric's 10-90 % rise over the same interval of scale, in 95 % of the resamples. A significant deviation from p^L alone
is weak evidence: tokens are never equally hard, and p^L still rises where the answer does (for a single hard token
among L easy ones it reproduces 1 - (1 - 1/L)^L > 63 % of the rise). A skill that tokens do not show, such as the
format of an answer, reproduces none of it. A deviation is not emergence either: tokens that fail together lift the
curve above p^L, tokens of unequal difficulty (their product is below the power of their mean) push it below.

P resamples, R cells, G points, I items, L answer tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling.emergence import sharpness
from lmjax.scaling.emergence.columns import OF_CHOICES
from lmjax.scaling.emergence.curves import Curves
from lmjax.scaling.resample import percentiles

HALF = 0.5  # share of the hard metric's rise that must be explained
ANSWERED = ("exact_match", "greedy_match")  # hard metrics that p^L predicts


@dataclass(frozen=True)
class NullTest:
    """The hard curve against p^L.

    predicted, sampled: [G] (sampled: nan where unknown). deviation = hard - predicted, [G]; low, high: its interval.
    censored: [G], both are below 1/n, the resolution of the test set.
    p_value: of the standardised deviations if tokens were independent; nan if every point is censored.
    r_squared: share of the hard curve's variance over points that p^L accounts for, 1 - SS(deviation) / SS(hard).
    length: mean answer tokens.
    """

    predicted: np.ndarray
    sampled: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    censored: np.ndarray
    p_value: float
    r_squared: float
    length: float
    simulations: int

    @property
    def worst(self) -> int:
        """The point that deviates most."""
        return int(np.argmax(np.abs(self.deviation)))


@dataclass(frozen=True)
class Explained:
    """How much of the hard curve's 10-90 % rise the smooth metrics predict over the same interval of scale.

    source: the predicted curve. share: share of the rise, with its interval low .. high; nan where both metrics come
    from the same probabilities, so that no separate skill can jump. sure: share of resamples with at least HALF.
    """

    source: str
    share: float
    low: float
    high: float
    sure: float

    @property
    def verdict(self) -> str:
        """yes | no | undecided."""
        return "yes" if self.sure >= sharpness.SURE else "no" if self.sure <= 1 - sharpness.SURE else "undecided"

    @property
    def text(self) -> str:
        """The share with its interval, as in "p^L explains 81 % [77 %, 87 %] of the rise"."""
        return f"{self.source} explains {self.share:.0%} [{self.low:.0%}, {self.high:.0%}] of the rise"


def shares(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct whole answer lengths and the share of items that have each.

    Example (a mean of 2.25 tokens: three quarters have 2):
        >>> [a.tolist() for a in shares(np.array([2.25]))]
        [[2, 3], [0.75, 0.25]]
    """
    if len(lengths) == 1:
        low = math.floor(lengths[0])
        part = float(lengths[0] - low)
        return (np.array([low, low + 1]), np.array([1 - part, part])) if part > 1e-9 else (np.array([low]), np.ones(1))
    values, counts = np.unique(np.round(lengths).astype(int), return_counts=True)
    return values, counts / counts.sum()


def power(p, lengths: np.ndarray) -> np.ndarray:
    """Mean over items of p^L_i, the shape of p.

    Example:
        >>> float(power(np.array(0.5), np.array([1.0, 2.0])))
        0.375
    """
    whole, share = shares(lengths)
    return (np.asarray(p, float)[..., None] ** whole) @ share


def expected(curves: Curves, cells: dict, weights) -> np.ndarray | None:
    """p^L of every cell under resampled items, [P, R]; None where `reason_without` gives a reason.

    Args:
        curves: of one task.
        cells: metric -> [P, R] with items resampled.
        weights: [P, I] how often a resample takes an item, or None.
    """
    if reason_without(curves):
        return None
    p = cells["token_accuracy"]
    if weights is None:
        return power(p, curves.lengths)
    whole = np.round(curves.lengths).astype(int)
    distinct = np.unique(whole)
    share = np.stack([weights[:, whole == length].sum(axis=1) for length in distinct], 1) / weights.sum(1)[:, None]
    return np.sum(p[..., None] ** distinct * share[:, None, :], axis=-1)


def sampled(curves: Curves, weights) -> np.ndarray | None:
    """Probability that a sampled answer is right, of every cell under resampled items, [P, R]; None without items."""
    if weights is None or "log_likelihood" not in curves.items or curves.hard not in ANSWERED:
        return None
    return (weights @ np.exp(curves.items["log_likelihood"][0]).T) / weights.sum(axis=1, keepdims=True)


def reason_without(curves: Curves) -> str:
    """Error message if there is no p^L for a task; "" if there is one."""
    if curves.hard not in ANSWERED:
        return f"{curves.hard} chooses between given answers: p^L does not apply"
    if "token_accuracy" not in curves.smooth:
        return "no token_accuracy: p^L is unknown"
    if not len(curves.lengths):
        return "answer lengths are unknown (no items, no log-likelihoods, no column answer_tokens): p^L is unknown"
    return ""


def test(curves: Curves, draws, simulations: int, confidence: float, seed: int) -> NullTest | None:
    """Tests the hard curve against p^L.

    The null hypothesis is simulated exactly: in every cell each item gets Binomial(L_i, p) right tokens, exact match
    and token accuracy are counted from the same tokens, and the deviation of their point means is taken as for the
    data. Statistic: sum over points of deviation^2 over its simulated variance, without points where nothing varies.

    Args:
        curves: of one task. draws: of draws.draw.
        simulations: simulated tables of the null hypothesis. confidence: confidence level. seed: random seed.

    Returns:
        NullTest, or None where `reason_without` gives a reason.

    Paper: arXiv:2304.15004.
    """
    if draws.predicted is None:
        return None
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    group = np.eye(len(curves.points))[curves.point] / curves.seeds[curves.point, None]  # [R, G]: mean over seeds
    p_R = curves.cells["token_accuracy"].to_numpy(float)
    predicted = power(p_R, curves.lengths) @ group
    hard = curves.points[curves.hard].to_numpy(float)
    deviation = hard - predicted
    null_PG = _simulate(p_R, curves, simulations, rng) @ group
    variance = null_PG.var(axis=0)
    resolution = 1 / curves.n
    censored = (hard < resolution) & (predicted < resolution)
    free = ~censored & (variance > 0)
    statistic = float((deviation[free] ** 2 / variance[free]).sum())
    simulated = (null_PG[:, free] ** 2 / variance[free]).sum(axis=1)
    spread = draws.points[curves.hard] - draws.predicted
    low, high = percentiles(spread, confidence)
    total = float(((hard - hard.mean()) ** 2).sum())
    return NullTest(
        predicted=predicted,
        sampled=sampled_points(curves),
        deviation=deviation,
        low=low,
        high=high,
        censored=censored,
        p_value=math.nan if censored.all() else float((1 + (simulated >= statistic).sum()) / (1 + simulations)),
        r_squared=1 - float((deviation**2).sum()) / total if total else math.nan,
        length=float(curves.lengths.mean()),
        simulations=simulations,
    )


def sampled_points(curves: Curves) -> np.ndarray:
    """Probability that a sampled answer is right, mean over seeds, [G]; nan where unknown."""
    if "log_likelihood" not in curves.items or curves.hard not in ANSWERED:
        return np.full(len(curves.points), math.nan)
    right_R = np.exp(curves.items["log_likelihood"][0]).mean(axis=1)
    return np.bincount(curves.point, right_R) / curves.seeds


def explained(curves: Curves, draws, against: NullTest | None, confidence: float) -> Explained | None:
    """Measures how much of the hard metric's jump the smooth metrics explain; None where they predict no curve.

    Args:
        curves: of one task. draws: of draws.draw. against: of `test`. confidence: confidence level.

    Returns:
        Explained for the predicted curve (p^L or a sampled answer) that reproduces half of the rise in 95 % of the
        resamples; if both or neither do, for the one whose share is closer to 1.
    """
    if curves.hard == "accuracy" and curves.smooth[0] in OF_CHOICES:
        return Explained(f"{curves.smooth[0]}, of the probabilities whose largest is chosen,", *[math.nan] * 3, 1.0)
    found = []
    for source, predicted, drawn in (
        ("p^L", against.predicted if against else None, draws.predicted),
        ("the probability of sampling the correct answer", sampled_points(curves), draws.sampled),
    ):
        if drawn is None or predicted is None:
            continue
        many = [portion(curves.progress, h, p) for h, p in zip(draws.points[curves.hard], drawn, strict=True)]
        known = np.array(many)[np.isfinite(many)]
        if len(known):
            one = portion(curves.progress, curves.points[curves.hard].to_numpy(float), predicted)
            ends = map(float, percentiles(known, confidence))
            found.append(Explained(source, one, *ends, float((known >= HALF).mean())))
    return max(found, key=lambda made: (made.verdict == "yes", -abs(made.share - 1)), default=None)


def portion(progress: np.ndarray, hard: np.ndarray, predicted: np.ndarray) -> float:
    """Rise of a predicted curve relative to the hard one's, where the hard one goes from 10 % to 90 % of its rise.

    Example (a line beside a step):
        >>> step = np.array([0.0, 0.0, 1.0, 1.0])
        >>> round(portion(np.arange(4.0), step, np.array([0.1, 0.2, 0.3, 0.4])), 6)
        0.1
    """
    from scipy.optimize import isotonic_regression

    start, end = sharpness.crossings(progress, hard)
    if not math.isfinite(start):
        return math.nan
    rising = isotonic_regression(hard).x
    first, last = np.interp([start, end], progress, predicted)
    return float((last - first) / (0.8 * (rising[-1] - rising[0])))


def _simulate(p_R, curves, count, rng):
    """Deviations exact match - p^L of cells whose tokens are independent, [P, R]."""
    whole, share = shares(curves.lengths)
    counts = np.floor(share * curves.n).astype(int)
    counts[np.argmax(counts)] += curves.n - counts.sum()
    columns = []
    for p in p_R:
        exact, right = np.zeros(count), np.zeros(count)
        for length, items in zip(whole, counts, strict=True):
            if length == 0:
                exact += items
                continue
            k = np.arange(length + 1)
            chance = np.array([math.comb(int(length), i) for i in k]) * p**k * (1 - p) ** (length - k)
            times = rng.multinomial(items, chance / chance.sum(), size=count)
            exact += times[:, -1]
            right += times @ k
        p_hat = right / max(int((whole * counts).sum()), 1)
        columns.append(exact / curves.n - power(p_hat, curves.lengths))
    return np.stack(columns, axis=1)

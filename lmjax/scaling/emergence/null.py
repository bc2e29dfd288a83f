"""Is the hard curve what per-token success predicts? The null p^L, its band, and the p-value of the deviation.

If the L tokens of an answer were right independently, each with the probability p that the task's token accuracy
measures, all of them would be right with p^L: smooth in p, sharp in scale, sharper for longer answers
(arXiv:2304.15004, section 3). Beside it stands the probability that a *sampled* answer is right, the mean over items of
exp(log-likelihood): what the smooth metric itself says about exact match, without independence.

Does the smooth metric contain what jumps? It does if one of the two predicted curves makes at least half of the hard
metric's 10-90 % rise between the same two places, in 95 % of the draws. A significant deviation alone says little:
tokens are never equally hard, and p^L still rises where the answer does: for a single hard token among L easy ones it
makes 1 - (1 - 1/L)^L > 63 % of the rise. A skill that tokens do not show, such as the format of an answer, makes none.

A deviation is not emergence: tokens that fail together lift the curve above p^L, tokens of unequal difficulty (their
product is below the power of their mean) push it below.

P draws, R cells, G levels, I items, L answer tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling.emergence import sharpness
from lmjax.scaling.emergence.columns import OF_CHOICES
from lmjax.scaling.emergence.curves import Curves

HALF = 0.5  # of the hard metric's rise
ANSWERED = ("exact_match", "greedy_match")  # hard metrics that p^L speaks of


@dataclass(frozen=True)
class NullTest:
    """The hard curve against p^L.

    predicted, sampled: [G] (sampled: nan where unknown). deviation = hard - predicted, [G]; low, high: its interval.
    censored: [G], both lie below 1/n: the test set cannot tell them from zero nor from each other.
    p_value: of the largest standardised deviations if tokens were independent; nan if every level is censored.
    explained: share of the hard curve's variation over sizes that p^L accounts for, 1 - SS(deviation) / SS(hard).
    length: mean answer tokens.
    """

    predicted: np.ndarray
    sampled: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    censored: np.ndarray
    p_value: float
    explained: float
    length: float
    simulations: int

    @property
    def worst(self) -> int:
        """The level that deviates most."""
        return int(np.argmax(np.abs(self.deviation)))


@dataclass(frozen=True)
class Contained:
    """How much of the hard curve's 10-90 % rise the smooth metrics predict at the same place.

    source: the predicted curve, in words. portion: of the rise, and its interval low .. high; nan where both metrics
    are of the same probabilities, so that nothing can jump beside them. sure: share of draws with at least HALF.
    """

    source: str
    portion: float
    low: float
    high: float
    sure: float

    @property
    def verdict(self) -> str:
        """yes | no | undecided."""
        return "yes" if self.sure >= sharpness.SURE else "no" if self.sure <= 1 - sharpness.SURE else "undecided"

    @property
    def words(self) -> str:
        """The portion with its interval, of what."""
        return f"{self.source} makes {self.portion:.0%} [{self.low:.0%}, {self.high:.0%}] of the rise at its place"


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
    """p^L of every cell under resampled items, [P, R]; None where tokens, lengths or meaning are missing.

    Args:
        curves: of one task.
        cells: metric -> [P, R] with items resampled.
        weights: [P, I] how often a draw takes an item, or None.
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


def sampled(curves: Curves, cells: dict, weights) -> np.ndarray | None:
    """Probability that a sampled answer is right, of every cell under resampled items, [P, R]; None without items."""
    if weights is None or "log_likelihood" not in curves.items or curves.hard not in ANSWERED:
        return None
    return (weights @ np.exp(curves.items["log_likelihood"][0]).T) / weights.sum(axis=1, keepdims=True)


def reason_without(curves: Curves) -> str:
    """Why there is no p^L for a task; "" if there is."""
    if curves.hard not in ANSWERED:
        return f"{curves.hard} chooses between given answers: p^L does not apply"
    if "token_accuracy" not in curves.smooth:
        return "no token_accuracy: p^L is unknown"
    if not len(curves.lengths):
        return "answer lengths are unknown (no items, no log-likelihoods, no column answer_tokens): p^L is unknown"
    return ""


def test(curves: Curves, draws, simulations: int, level: float, seed: int) -> NullTest | None:
    """Tests the hard curve against p^L.

    The null is simulated exactly: in every cell each item gets Binomial(L_i, p) right tokens, exact match and token
    accuracy are counted from the same tokens, and the deviation of their level means is taken as for the data.
    Statistic: sum over levels of deviation^2 over its simulated variance; levels where nothing can vary do not count.

    Args:
        curves: of one task. draws: of resample.draw.
        simulations: of the null. level: of intervals. seed: of numpy's Philox generator.

    Returns:
        NullTest, or None where `reason_without` says why.

    Paper: arXiv:2304.15004.
    """
    if draws.null is None:
        return None
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    group = np.eye(len(curves.levels))[curves.level] / curves.seeds[curves.level, None]  # [R, G]: mean over seeds
    p_R = curves.cells["token_accuracy"].to_numpy(float)
    predicted = power(p_R, curves.lengths) @ group
    hard = curves.levels[curves.hard].to_numpy(float)
    deviation = hard - predicted
    null_PG = _simulate(p_R, curves, simulations, rng) @ group
    variance = null_PG.var(axis=0)
    resolution = 1 / curves.n
    censored = (hard < resolution) & (predicted < resolution)
    free = ~censored & (variance > 0)
    statistic = float((deviation[free] ** 2 / variance[free]).sum())
    simulated = (null_PG[:, free] ** 2 / variance[free]).sum(axis=1)
    spread = draws.levels[curves.hard] - draws.null
    low, high = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0)
    total = float(((hard - hard.mean()) ** 2).sum())
    return NullTest(
        predicted=predicted,
        sampled=sampled_levels(curves),
        deviation=deviation,
        low=low,
        high=high,
        censored=censored,
        p_value=math.nan if censored.all() else float((1 + (simulated >= statistic).sum()) / (1 + simulations)),
        explained=1 - float((deviation**2).sum()) / total if total else math.nan,
        length=float(curves.lengths.mean()),
        simulations=simulations,
    )


def sampled_levels(curves: Curves) -> np.ndarray:
    """Probability that a sampled answer is right, mean over seeds, [G]; nan where unknown."""
    if "log_likelihood" not in curves.items or curves.hard not in ANSWERED:
        return np.full(len(curves.levels), math.nan)
    right_R = np.exp(curves.items["log_likelihood"][0]).mean(axis=1)
    return np.bincount(curves.level, right_R) / curves.seeds


def contained(curves: Curves, draws, against: NullTest | None, level: float) -> Contained | None:
    """Whether the smooth metrics contain what jumps in the hard one; None where they predict no curve.

    Args:
        curves: of one task. draws: of resample.draw. against: of `test`. level: of the interval.

    Returns:
        Contained of the predicted curve, p^L or a sampled answer, that surely makes half; of two, the nearer to all.
    """
    if curves.hard == "accuracy" and curves.smooth[0] in OF_CHOICES:
        return Contained(f"{curves.smooth[0]} scores the probabilities whose largest is chosen", *[math.nan] * 3, 1.0)
    found = []
    for source, predicted, drawn in (
        ("p^L", against.predicted if against else None, draws.null),
        ("the probability of a sampled right answer", sampled_levels(curves), draws.sampled),
    ):
        if drawn is None or predicted is None:
            continue
        many = [portion(curves.progress, h, p) for h, p in zip(draws.levels[curves.hard], drawn, strict=True)]
        known = np.array(many)[np.isfinite(many)]
        if not len(known):
            continue
        low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
        one = portion(curves.progress, curves.levels[curves.hard].to_numpy(float), predicted)
        found.append(Contained(source, one, float(low), float(high), float((known >= HALF).mean())))
    return max(found, key=lambda made: (made.verdict == "yes", -abs(made.portion - 1)), default=None)


def portion(progress: np.ndarray, hard: np.ndarray, predicted: np.ndarray) -> float:
    """Rise of a predicted curve over the hard one's, between the places where that has done 10 % and 90 % of its rise.

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

"""Bootstrap of a task's curves, and the test of the hard metric against p^L, its prediction from token accuracy.

If the L tokens of an answer were right independently, each with the token accuracy p, the whole answer would be right
with probability p^L: smooth in p, sharp in scale, and sharper for longer answers (arXiv:2304.15004, section 3). A
second prediction needs no independence: the probability that a *sampled* answer is right, the mean over items of
exp(log-likelihood).

Is the jump explained by the smooth metric? Yes if one of the two predicted curves reproduces at least half of the hard
metric's 10-90 % rise over the same interval of scale, in 95 % of the resamples. Two weaker criteria would mislead:
    a significant deviation from p^L   is common without any emergence. Tokens that fail together lift the curve above
                                       p^L; tokens of unequal difficulty push it below.
    a rise of p^L at another scale     explains nothing. If a skill that no token shows (such as the format of an
                                       answer) makes the jump, p^L does not rise there. If one hard token among L easy
                                       ones makes it, p^L still reproduces 1 - (1 - 1/L)^L > 63 % of the rise.

P resamples, R cells, G points, I items, L answer tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.evals.metrics import floor
from lmjax.scaling.emergence import sharpness
from lmjax.scaling.emergence.curves import Curves, error_of, limits
from lmjax.scaling.emergence.noise import pooled
from lmjax.scaling.resample import counts, generator, percentiles, t_errors, within

HALF = 0.5  # share of the hard metric's rise that must be explained
ANSWERED = ("exact_match", "greedy_match")  # hard metrics that p^L predicts
OF_CHOICES = ("choice_log_probability", "choice_probability", "brier")  # accuracy is the argmax of these probabilities


# -- Resampled curves


@dataclass(frozen=True)
class Draws:
    """Bootstrap resamples of the curves.

    points: metric -> [P, G]; cells: metric -> [P, R], where only items are resampled; predicted (p^L) and sampled
    [P, G], or None.
    """

    points: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    predicted: np.ndarray | None
    sampled: np.ndarray | None


def draw(curves: Curves, count: int, seed: int) -> Draws:
    """Resamples seeds and items jointly for all metrics of a task, `count` times.

    A resample takes the same items in every cell. Without a table of items a cell's value varies by its standard
    error, independently by metric. Seeds are resampled within a point; a point of one seed varies by its items, and by
    the noise that stands in for seeds.
    """
    rng, weights = generator(seed), None
    if curves.items:
        weights = counts(rng, np.arange(curves.items[curves.metrics[0]][0].shape[1]), count).astype(float)
    cells = {name: _values(curves, name, weights, count, rng) for name in curves.metrics}
    picks = within(rng, curves.point, count)

    def averaged(values_PR, ends):
        return None if values_PR is None else np.clip(over_seeds(values_PR, curves.point, picks), *ends)

    noisy = dict(cells)
    for name, sd_R in curves.noise.items():
        noisy[name] = np.clip(cells[name] + t_errors(rng, sd_R, curves.df, count), *limits(name))
    p = None if reason_without(curves) else _expected(noisy["token_accuracy"], curves.lengths, weights)
    right_RI = _sampled(curves)
    sampled = None if right_RI is None else (weights @ right_RI.T) / weights.sum(axis=1, keepdims=True)
    points = {name: averaged(values, limits(name)) for name, values in noisy.items()}
    return Draws(points, cells, averaged(p, (0, 1)), averaged(sampled, (0, 1)))


def _values(curves, name, weights, count, rng):
    """A metric of every cell under resampled items, [P, R]."""
    if weights is not None:
        numerator, denominator = curves.items[name]
        return (weights @ numerator.T) / (weights @ denominator.T)
    value = curves.cells[name].to_numpy(float)
    error = np.nan_to_num(curves.cells[f"{name} se"].to_numpy(float))
    return np.clip(value + error * rng.standard_normal((count, len(value))), *limits(name))


def over_seeds(values_PR: np.ndarray, point_R: np.ndarray, picks_PR: np.ndarray) -> np.ndarray:
    """Means over resampled seeds, [P, G].

    S draws from S seeds vary too little by sqrt((S - 1) / S), so the spread around the mean over all seeds is widened
    by the inverse (Rao and Wu, 1988). point_R: point of each cell. picks_PR: resampled cell in place of each cell.

    Example (two seeds of one point, 0.2 and 0.4: the spread of their mean is their standard deviation / sqrt(2)):
        >>> rng, point = generator(0), np.array([0, 0])
        >>> means = over_seeds(np.full((4000, 2), [0.2, 0.4]), point, within(rng, point, 4000))
        >>> round(float(means.std()), 2)
        0.1
    """
    seeds = np.bincount(point_R)
    group_RG = np.eye(len(seeds))[point_R] / seeds
    mean = values_PR @ group_RG
    drawn = np.take_along_axis(values_PR, picks_PR, axis=1) @ group_RG
    return mean + (drawn - mean) * np.sqrt(seeds / np.maximum(seeds - 1, 1))


def point_errors(curves: Curves, draws: Draws, name: str) -> np.ndarray:
    """Standard errors of the point means of a metric's error, [G], for weights and simulated noise.

    Where the variance over seeds is smaller than the items', it is the items' variance that counts; for shares at
    least that of the rule of succession (lmjax.evals.metrics.floor), since even 0 errors in n items leave uncertainty.
    """
    between, items = variances(curves, draws, name)
    mean = error_of(name, curves.points[name].to_numpy(float))
    least = np.full(len(mean), 1e-5 * np.ptp(mean) + 1e-12)
    if limits(name) == (0.0, 1.0):
        least = np.array([floor(float(v), curves.n * int(s)) for v, s in zip(mean, curves.seeds, strict=True)])
    return np.maximum(np.sqrt(np.maximum(between / curves.seeds, items)), least)


def variances(curves: Curves, draws: Draws, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Variances of a metric's error: over seeds, of one run; and of the point's mean over items. Both [G].

    Those over seeds are pooled (noise.pooled), since noise shrinks with the error. Points of one seed take the noise
    that stands in for seeds, if there is any.
    """
    values, point, seeds = error_of(name, curves.cells[name]), curves.point, curves.seeds
    mean = np.array([values[point == g].mean() for g in range(len(seeds))])
    own = np.array([values[point == g].var(ddof=1) if seeds[g] > 1 else 0.0 for g in range(len(seeds))])
    between = pooled(own, seeds - 1, mean)
    if name in curves.noise:
        between = np.where(seeds == 1, np.bincount(point, curves.noise[name]) ** 2, between)
    errors = error_of(name, draws.cells[name])
    return between, np.array([errors[:, point == g].mean(axis=1).var(ddof=1) for g in range(len(seeds))])


# -- Predictions of the hard metric


def reason_without(curves: Curves) -> str:
    """Error message if there is no p^L for a task; "" if there is one."""
    if not curves.hard:
        return "no hard metric to predict"
    if curves.hard not in ANSWERED:
        return f"{curves.hard} chooses between given answers: p^L does not apply"
    if "token_accuracy" not in curves.smooth:
        return "no token_accuracy: p^L is unknown"
    if not len(curves.lengths):
        return "answer lengths are unknown (no items, no log-likelihoods, no column answer_tokens): p^L is unknown"
    return ""


def shares(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct integer answer lengths and the fraction of items with each.

    Example (a mean of 2.25 tokens: three quarters have 2):
        >>> [a.tolist() for a in shares(np.array([2.25]))]
        [[2, 3], [0.75, 0.25]]
    """
    if len(lengths) == 1:
        low = math.floor(lengths[0])
        part = float(lengths[0] - low)
        return (np.array([low, low + 1]), np.array([1 - part, part])) if part > 1e-9 else (np.array([low]), np.ones(1))
    values, times = np.unique(np.round(lengths).astype(int), return_counts=True)
    return values, times / times.sum()


def power(p, lengths: np.ndarray) -> np.ndarray:
    """Mean over items of p^L_i, in the shape of p.

    Example:
        >>> float(power(np.array(0.5), np.array([1.0, 2.0])))
        0.375
    """
    whole, share = shares(lengths)
    return (np.asarray(p, float)[..., None] ** whole) @ share


def _expected(p_PR, lengths, weights_PI):
    """p^L of every cell under resampled items, [P, R]."""
    if weights_PI is None:
        return power(p_PR, lengths)
    whole = np.round(lengths).astype(int)
    distinct = np.unique(whole)
    times = np.stack([weights_PI[:, whole == length].sum(axis=1) for length in distinct], 1)
    share = times / weights_PI.sum(axis=1, keepdims=True)
    return np.sum(p_PR[..., None] ** distinct * share[:, None, :], axis=-1)


def _sampled(curves):
    """Probability that a sampled answer is right, of every cell and item [R, I]; None if unknown."""
    if "log_likelihood" not in curves.items or curves.hard not in ANSWERED:
        return None
    return np.exp(curves.items["log_likelihood"][0])


def sampled_points(curves: Curves) -> np.ndarray:
    """Probability that a sampled answer is right, mean over seeds, [G]; nan where unknown."""
    right_RI = _sampled(curves)
    if right_RI is None:
        return np.full(len(curves.points), math.nan)
    return np.bincount(curves.point, right_RI.mean(axis=1)) / curves.seeds


# -- The test against p^L


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


def test(curves: Curves, draws: Draws, simulations: int, confidence: float, seed: int) -> NullTest | None:
    """Tests the hard curve against p^L; None where `reason_without` gives a reason.

    The null hypothesis is simulated exactly: in every cell each item gets Binomial(L_i, p) right tokens, exact match
    and token accuracy are counted from the same tokens, and the deviation of their point means is taken as for the
    data. Statistic: sum over points of deviation^2 over its simulated variance, without points where nothing varies.
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
    censored = (hard < 1 / curves.n) & (predicted < 1 / curves.n)
    free = ~censored & (variance > 0)
    statistic = float((deviation[free] ** 2 / variance[free]).sum())
    simulated = (null_PG[:, free] ** 2 / variance[free]).sum(axis=1)
    low, high = percentiles(draws.points[curves.hard] - draws.predicted, confidence)
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


def _simulate(p_R, curves, count, rng):
    """Deviations exact match - p^L of cells whose tokens are independent, [P, R]."""
    whole, share = shares(curves.lengths)
    num_items = np.floor(share * curves.n).astype(int)
    num_items[np.argmax(num_items)] += curves.n - num_items.sum()
    columns = []
    for p in p_R:
        exact, right = np.zeros(count), np.zeros(count)
        for length, items in zip(whole, num_items, strict=True):
            if length == 0:
                exact += items
                continue
            k = np.arange(length + 1)
            chance = np.array([math.comb(int(length), i) for i in k]) * p**k * (1 - p) ** (length - k)
            times = rng.multinomial(items, chance / chance.sum(), size=count)
            exact += times[:, -1]
            right += times @ k
        p_hat = right / max(int((whole * num_items).sum()), 1)
        columns.append(exact / curves.n - power(p_hat, curves.lengths))
    return np.stack(columns, axis=1)


# -- How much the smooth metrics explain


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


def explained(curves: Curves, draws: Draws, against: NullTest | None, confidence: float) -> Explained | None:
    """Measures how much of the hard metric's jump the smooth metrics explain; None where they predict no curve.

    Takes the predicted curve (p^L or a sampled answer) that reproduces half of the rise in 95 % of the resamples; if
    both or neither do, the one whose share is closer to 1.
    """
    if curves.hard == "accuracy" and {*curves.smooth[:1]} & {*OF_CHOICES}:
        return Explained(f"{curves.smooth[0]}, of the probabilities whose largest is chosen,", *[math.nan] * 3, 1.0)
    found = []
    for source, predicted, drawn in (
        ("p^L", against and against.predicted, draws.predicted),
        ("the probability of sampling the correct answer", sampled_points(curves), draws.sampled),
    ):
        if drawn is None:
            continue
        many = [portion(curves.progress, h, p) for h, p in zip(draws.points[curves.hard], drawn, strict=True)]
        known = np.array(many)[np.isfinite(many)]
        if len(known):
            one = portion(curves.progress, curves.points[curves.hard].to_numpy(float), predicted)
            ends = map(float, percentiles(known, confidence))
            found.append(Explained(source, one, *ends, float((known >= HALF).mean())))
    return max(found, key=lambda made: (made.verdict == "yes", -abs(made.share - 1)), default=None)


def portion(progress: np.ndarray, hard: np.ndarray, predicted: np.ndarray) -> float:
    """Rise of a predicted curve over that of the hard curve, between 10 % and 90 % of the hard curve's rise.

    Example (a line beside a step):
        >>> step = np.array([0.0, 0.0, 1.0, 1.0])
        >>> round(portion(np.arange(4.0), step, np.array([0.1, 0.2, 0.3, 0.4])), 6)
        0.1
    """
    start, end = sharpness.crossings(progress, hard)
    if not math.isfinite(start):
        return math.nan
    first, last = np.interp([start, end], progress, predicted)
    return float((last - first) / (0.8 * np.ptp(sharpness.rising(hard))))

"""Metrics of a task from the scores of its items, with chance levels and standard errors. Pure NumPy.

A metric is a ratio of two sums over items, value = sum(numerator) / sum(denominator): a mean where the denominators
are 1, bits per byte where they are bytes. Both are kept for every item, so that any later bootstrap can resample them.

Hard metrics (accuracy, exact_match) can jump where smooth ones (log_likelihood, choice_probability, brier,
token_accuracy, edit_distance) improve steadily; both are computed from the same scores (arXiv:2304.15004).

I items, C choices of an item.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

KINDS = ("choice", "cloze", "generation")
Columns = Mapping[str, np.ndarray]
Ratio = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: its meaning, the kinds of task that have it, and its chance level."""

    meaning: str
    kinds: tuple[str, ...]
    compute: Callable[[Columns], Ratio]  # columns -> (numerator [I], denominator [I])
    chance: Callable[[Columns], float] = lambda columns: math.nan  # chance level; nan: none
    better: str = "higher"  # higher | lower | neither
    default: bool = True  # reported unless the task file lists its own
    share: bool = False  # a share of items or tokens: see floor


# -- Choices. Columns: choices_log_prob, choices_tokens, choices_bytes, choices_unconditional [I, C] (nan past an item's
# -- last choice) and right [I], the index of the right one.


def normalised_IC(columns: Columns, by: str = "") -> np.ndarray:
    """Returns the scores that choices are compared by, float64 [I, C], -inf past an item's last choice.

    Args:
        columns: of a choice task.
        by: "" log-probability; "tokens", "bytes" divided by that length; "unconditional" minus the log-probability of
            the choice without the context.

    Example: log-probabilities [-6, -4] of 3 and 1 tokens: [-6, -4]; by tokens [-2, -4]: the other one wins.
    """
    score_IC = columns["choices_log_prob"]
    if by == "unconditional":
        score_IC = score_IC - columns["choices_unconditional"]
    elif by:
        score_IC = score_IC / columns[f"choices_{by}"]
    return np.where(np.isnan(score_IC), -np.inf, score_IC)


def pick(score_IC: np.ndarray, right_I: np.ndarray) -> np.ndarray:
    """Returns the share of the best choice that is right, [I]: 1, 0, or 1/k where k choices share the best score.

    Scores within 1e-6 of their size count as equal, so that rounding does not break ties and a model that gives every
    choice the same score gets the chance level.

    Example: scores [[-1, -2], [-3, -3]], right [0, 1]: [1.0, 0.5].
    """
    best_I1 = score_IC.max(axis=1, keepdims=True)
    tied_IC = score_IC >= best_I1 - 1e-6 * (1 + np.abs(best_I1))
    chosen_I = np.take_along_axis(tied_IC, right_I[:, None], axis=1)[:, 0]
    return chosen_I / tied_IC.sum(axis=1)


def choice_probabilities(score_IC: np.ndarray) -> np.ndarray:
    """Returns softmax over the choices, [I, C], 0 past an item's last choice.

    Example: log-probabilities log [0.02, 0.06] give [0.25, 0.75].
    """
    weight_IC = np.exp(score_IC - score_IC.max(axis=1, keepdims=True))
    return weight_IC / weight_IC.sum(axis=1, keepdims=True)


def _right(values_IC, columns):
    return np.take_along_axis(values_IC, columns["right"][:, None], axis=1)[:, 0]


def _mean(values_I) -> Ratio:
    values_I = np.asarray(values_I, np.float64)
    return values_I, np.ones_like(values_I)


def _accuracy(by=""):
    return lambda columns: _mean(pick(normalised_IC(columns, by), columns["right"]))


def _choice_probability(by=""):
    return lambda columns: _mean(_right(choice_probabilities(normalised_IC(columns, by)), columns))


def _choice_log_probability(columns):
    score_IC = normalised_IC(columns)
    top_I1 = score_IC.max(axis=1, keepdims=True)
    log_sum_I = np.log(np.exp(score_IC - top_I1).sum(axis=1)) + top_I1[:, 0]
    return _mean(_right(score_IC, columns) - log_sum_I)


def _brier(columns):
    """sum over choices of (p - [right])^2. Example: p = [0.25, 0.75], the second is right: 0.125."""
    p_IC = choice_probabilities(normalised_IC(columns))
    y_IC = np.zeros_like(p_IC)
    np.put_along_axis(y_IC, columns["right"][:, None], 1.0, axis=1)
    return _mean(np.sum((p_IC - y_IC) ** 2, axis=1))


def _margin(columns):
    """Log-probability of the right choice minus the mean of the others."""
    score_IC = columns["choices_log_prob"]
    right_I = _right(score_IC, columns)
    return _mean(right_I - (np.nansum(score_IC, axis=1) - right_I) / (_num_choices(columns) - 1))


def _num_choices(columns):
    return np.sum(~np.isnan(columns["choices_log_prob"]), axis=1)


def _one_of_many(columns):
    return float(np.mean(1 / _num_choices(columns)))


# -- The right answer's own score. Columns: log_prob (nats), tokens, bytes, unconditional, greedy_tokens [I].


def _log_likelihood(columns):
    return _mean(columns["log_prob"])


def _log_likelihood_per_token(columns):
    return columns["log_prob"], columns["tokens"]


def _bits_per_byte(columns):
    return -columns["log_prob"] / math.log(2), columns["bytes"]


def _context_gain(columns):
    return columns["log_prob"] - columns["unconditional"], columns["tokens"]


def _greedy(columns):
    return _mean(columns["greedy_tokens"] == columns["tokens"])


def _token_accuracy(columns):
    return columns["greedy_tokens"], columns["tokens"]


# -- What was generated. Columns: exact, edit_distance [I].


def edit_distance(a: str, b: str) -> float:
    """Returns the least number of characters to insert, delete or replace, over the length of the longer text; 0 .. 1.

    Example: edit_distance("kitten", "sitting") = 3/7; of two empty texts 0.
    """
    if not a or not b:
        return float(bool(a or b))
    codes_b = np.frombuffer(b.encode("utf-32-le"), np.uint32)
    column = np.arange(len(b) + 1)
    row = column.copy()
    for i, letter in enumerate(a, start=1):
        # replace or delete first; then insertions, a running minimum of (cost - place)
        best = np.minimum(row[:-1] + (codes_b != ord(letter)), row[1:] + 1)
        row = np.minimum.accumulate(np.concatenate([[i], best]) - column) + column
    return float(row[-1]) / max(len(a), len(b))


def exact_match(generated: str, answer: str) -> bool:
    """Returns whether the texts are equal up to white space at their ends. Example: (" 42 ", "42") -> True."""
    return generated.strip() == answer.strip()


_ALL, _FREE = KINDS, ("cloze", "generation")
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "share of items whose right choice has the largest log-probability (cloze: see greedy_match)",
        ("choice",),
        _accuracy(),
        _one_of_many,
        share=True,
    ),
    "accuracy_per_token": Metric(
        "accuracy with log-probabilities divided by tokens",
        ("choice",),
        _accuracy("tokens"),
        _one_of_many,
        share=True,
    ),
    "accuracy_per_byte": Metric(
        "accuracy with log-probabilities divided by UTF-8 bytes",
        ("choice",),
        _accuracy("bytes"),
        _one_of_many,
        share=True,
    ),
    "accuracy_unconditional": Metric(
        "accuracy of log p(choice | context) - log p(choice)",
        ("choice",),
        _accuracy("unconditional"),
        _one_of_many,
        share=True,
    ),
    "choice_probability": Metric(
        "mean probability of the right choice, normalised over the choices",
        ("choice",),
        _choice_probability(),
        _one_of_many,
    ),
    "choice_probability_per_byte": Metric(
        "the same with log-probabilities divided by bytes", ("choice",), _choice_probability("bytes"), _one_of_many
    ),
    "choice_log_probability": Metric(
        "mean log of the right choice's normalised probability, nats",
        ("choice",),
        _choice_log_probability,
        lambda columns: float(np.mean(-np.log(_num_choices(columns)))),
    ),
    "brier": Metric(
        "mean squared error of the normalised probabilities, 0 .. 2",
        ("choice",),
        _brier,
        lambda columns: float(np.mean(1 - 1 / _num_choices(columns))),
        better="lower",
    ),
    "preference": Metric(
        "share of pairs whose answer is the more probable member; 0.5: no preference",
        ("choice",),
        _accuracy(),
        _one_of_many,
        better="neither",
        default=False,
        share=True,
    ),
    "preference_margin": Metric(
        "mean log-probability of the answer minus that of the other members, nats",
        ("choice",),
        _margin,
        lambda columns: 0.0,
        better="neither",
        default=False,
    ),
    "exact_match": Metric(
        "share of generated answers equal to the right one up to white space at the ends",
        ("generation",),
        lambda columns: _mean(columns["exact"]),
        lambda columns: float(columns["chance"].mean()),
        share=True,
    ),
    "edit_distance": Metric(
        "mean edit distance of the generated answer to the right one over the longer one's length, 0 .. 1",
        ("generation",),
        lambda columns: _mean(columns["edit_distance"]),
        better="lower",
    ),
    "greedy_match": Metric(
        "share of items where every token of the right answer is the most probable one, given the true ones before",
        _FREE,
        _greedy,
        lambda columns: float(columns["chance"].mean()),
        share=True,
    ),
    "token_accuracy": Metric(
        "share of the right answers' tokens that are the most probable ones, given the true ones before",
        _FREE,
        _token_accuracy,
        share=True,
    ),
    "log_likelihood": Metric("mean log-probability of the right answer, nats", _ALL, _log_likelihood),
    "log_likelihood_per_token": Metric(
        "log-probability of all right answers over all their tokens, nats", _ALL, _log_likelihood_per_token
    ),
    "bits_per_byte": Metric(
        "bits of all right answers over all their UTF-8 bytes", _ALL, _bits_per_byte, better="lower"
    ),
    "context_gain": Metric(
        "log-probability of the right answers with their context minus without it, over their tokens, nats",
        _FREE,
        _context_gain,
        lambda columns: 0.0,
    ),
}


def names(kind: str) -> tuple[str, ...]:
    """Returns the metrics a kind of task reports unless its file lists others."""
    return tuple(name for name, metric in METRICS.items() if kind in metric.kinds and metric.default)


def ratios(columns: Columns, expected: Sequence[str]) -> dict[str, Ratio]:
    """Returns {metric: (numerator [I], denominator [I])}, float64."""
    found = {name: METRICS[name].compute(columns) for name in expected}
    return {name: (np.asarray(n, np.float64), np.asarray(d, np.float64)) for name, (n, d) in found.items()}


def standard_errors(
    numerator_MI: np.ndarray, denominator_MI: np.ndarray, seed: int, resamples: int = 1000
) -> np.ndarray:
    """Returns bootstrap standard errors over items of sum(numerator) / sum(denominator), [M].

    Args:
        numerator_MI, denominator_MI: M metrics of the same I items.
        seed: random seed of the resampling; all metrics share the resamples.
        resamples: number of bootstrap resamples.

    Returns:
        Standard deviation over resamples; nan for fewer than two items.

    Example: 100 items, 50 of them right: about sqrt(0.5 * 0.5 / 100) = 0.05.
    """
    metrics, count = numerator_MI.shape
    if count < 2:
        return np.full(metrics, np.nan)
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    values, at_once = [], max(1, 4_000_000 // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        times_RI = rng.multinomial(count, np.full(count, 1 / count), size=rows).astype(np.float64)
        values.append((times_RI @ numerator_MI.T) / (times_RI @ denominator_MI.T))
    return np.std(np.concatenate(values), axis=0, ddof=1)


def floor(share: float, count: int) -> float:
    """Returns a lower bound of the standard error of a share of n items; a bootstrap of identical items gives 0.

    It is the posterior standard deviation of the true share under a uniform prior (the rule of succession):
    sqrt(p (1 - p) / (n + 3)) with p = (n share + 1) / (n + 2).

    Example: 2 of 2 items: p = 3/4, sqrt(3/16 / 5) = 0.19; 50 of 100: 0.049, below the bootstrap's 0.05.
    """
    p = (count * share + 1) / (count + 2)
    return math.sqrt(p * (1 - p) / (count + 3))


def summarise(columns: Columns, expected: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Returns {metric: {"value", "standard_error", "n", "chance", "resolution"}}.

    `resolution` is 1/n: the smallest difference from zero that a share of n items can show. The standard error is the
    bootstrap's; that of a share is at least `floor`.
    """
    parts = ratios(columns, expected)
    numerator_MI = np.stack([n for n, _ in parts.values()])
    denominator_MI = np.stack([d for _, d in parts.values()])
    errors = standard_errors(numerator_MI, denominator_MI, seed)
    count = numerator_MI.shape[1]
    values = numerator_MI.sum(axis=1) / denominator_MI.sum(axis=1)
    for m, name in enumerate(parts):
        if METRICS[name].share:
            errors[m] = np.maximum(errors[m], floor(float(values[m]), count))  # nan stays
    return {
        name: {
            "value": float(values[m]),
            "standard_error": float(errors[m]),
            "n": count,
            "chance": METRICS[name].chance(columns),
            "resolution": 1 / count,
        }
        for m, name in enumerate(parts)
    }

"""Metrics of a task from the scores of its items, with chance levels and standard errors.

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
from scipy.special import log_softmax, softmax

from lmjax.registry import Registry, of_type

KINDS = ("choice", "cloze", "generation")
Columns = Mapping[str, np.ndarray]
Ratio = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: the kinds of task that have it, its two sums, and its chance level."""

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
    """Returns the accuracy of the best choice, [I]: 1, 0, or 1/k where the right one ties with k - 1 others.

    Scores within a relative 1e-6 count as equal, so that rounding does not break ties and a model that gives every
    choice the same score gets the chance level.

    Example: scores [[-1, -2], [-3, -3]], right [0, 1]: [1.0, 0.5].
    """
    best_I1 = score_IC.max(axis=1, keepdims=True)
    tied_IC = score_IC >= best_I1 - 1e-6 * (1 + np.abs(best_I1))
    chosen_I = np.take_along_axis(tied_IC, right_I[:, None], axis=1)[:, 0]
    return chosen_I / tied_IC.sum(axis=1)


def _right(values_IC, columns):
    return np.take_along_axis(values_IC, columns["right"][:, None], axis=1)[:, 0]


def _mean(values_I) -> Ratio:
    values_I = np.asarray(values_I, np.float64)
    return values_I, np.ones_like(values_I)


def _accuracy(by=""):
    return lambda columns: _mean(pick(normalised_IC(columns, by), columns["right"]))


def _choice_probability(by=""):
    return lambda columns: _mean(_right(softmax(normalised_IC(columns, by), axis=1), columns))


def _choice_log_probability(columns):
    return _mean(_right(log_softmax(normalised_IC(columns), axis=1), columns))


def _brier(columns):
    """sum over choices of (p - [right])^2. Example: p = [0.25, 0.75], the second is right: 0.125."""
    p_IC = softmax(normalised_IC(columns), axis=1)
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


# -- What was generated


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


def _guess(columns):
    return float(columns["chance"].mean())


# Columns beside those of choices: of the right answer log_prob (nats), tokens, bytes, unconditional, greedy_tokens [I];
# of generation exact, edit_distance [I]; of tasks without choices chance [I].
_CHOICE, _FREE = ("choice",), ("cloze", "generation")
_BUILT_IN = {
    # share of items whose right choice has the largest log-probability (of cloze tasks: greedy_match)
    "accuracy": Metric(_CHOICE, _accuracy(), _one_of_many, share=True),
    # the same with log-probabilities divided by tokens, by UTF-8 bytes, and of log p(choice | context) - log p(choice)
    "accuracy_per_token": Metric(_CHOICE, _accuracy("tokens"), _one_of_many, share=True),
    "accuracy_per_byte": Metric(_CHOICE, _accuracy("bytes"), _one_of_many, share=True),
    "accuracy_unconditional": Metric(_CHOICE, _accuracy("unconditional"), _one_of_many, share=True),
    # mean probability of the right choice, normalised over the choices; with log-probabilities divided by bytes
    "choice_probability": Metric(_CHOICE, _choice_probability(), _one_of_many),
    "choice_probability_per_byte": Metric(_CHOICE, _choice_probability("bytes"), _one_of_many),
    # mean log of the right choice's normalised probability, nats
    "choice_log_probability": Metric(
        _CHOICE, _choice_log_probability, lambda columns: float(np.mean(-np.log(_num_choices(columns))))
    ),
    # mean squared error of the normalised probabilities, 0 .. 2
    "brier": Metric(_CHOICE, _brier, lambda columns: float(np.mean(1 - 1 / _num_choices(columns))), better="lower"),
    # share of pairs whose answer is the more probable member; 0.5: no preference
    "preference": Metric(_CHOICE, _accuracy(), _one_of_many, better="neither", default=False, share=True),
    # mean log-probability of the answer minus that of the other members, nats
    "preference_margin": Metric(_CHOICE, _margin, lambda columns: 0.0, better="neither", default=False),
    # share of generated answers equal to the right one up to white space at the ends
    "exact_match": Metric(("generation",), lambda columns: _mean(columns["exact"]), _guess, share=True),
    # mean edit distance of the generated answer to the right one over the longer one's length, 0 .. 1
    "edit_distance": Metric(("generation",), lambda columns: _mean(columns["edit_distance"]), better="lower"),
    # share of items where every token of the right answer is the most probable one, given the true ones before
    "greedy_match": Metric(_FREE, lambda c: _mean(c["greedy_tokens"] == c["tokens"]), _guess, share=True),
    # share of the right answers' tokens that are the most probable ones, given the true ones before
    "token_accuracy": Metric(_FREE, lambda c: (c["greedy_tokens"], c["tokens"]), share=True),
    # mean log-probability of the right answer, nats; over all tokens of the right answers; bits over all their bytes
    "log_likelihood": Metric(KINDS, lambda c: _mean(c["log_prob"])),
    "log_likelihood_per_token": Metric(KINDS, lambda c: (c["log_prob"], c["tokens"])),
    "bits_per_byte": Metric(KINDS, lambda c: (-c["log_prob"] / math.log(2), c["bytes"]), better="lower"),
    # log-probability of the right answers with their context minus without it, over their tokens, nats
    "context_gain": Metric(_FREE, lambda c: (c["log_prob"] - c["unconditional"], c["tokens"]), lambda columns: 0.0),
}


METRICS: dict[str, Metric] = Registry("metric", _BUILT_IN, of_type(Metric))


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
    num_metrics, count = numerator_MI.shape
    if count < 2:
        return np.full(num_metrics, np.nan)
    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    values, at_once = [], max(1, 4_000_000 // count)
    for start in range(0, resamples, at_once):
        times_RI = rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, resamples - start))
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
    numerator_MI, denominator_MI = (np.stack(side) for side in zip(*parts.values(), strict=True))
    errors, count = standard_errors(numerator_MI, denominator_MI, seed), numerator_MI.shape[1]
    found = {}
    for m, name in enumerate(parts):
        value, metric = float(numerator_MI[m].sum() / denominator_MI[m].sum()), METRICS[name]
        error = np.maximum(errors[m], floor(value, count)) if metric.share else errors[m]  # nan stays
        found[name] = {"value": value, "standard_error": float(error), "n": count}
        found[name] |= {"chance": metric.chance(columns), "resolution": 1 / count}
    return found

"""Span corruption: predict removed spans from the text around them (T5, arXiv 1910.10683)."""

import itertools
import math

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.base import Example, Objective, Spec

OPTIONS = {
    "noise_density": 0.15,  # share of the tokens that are removed
    "mean_span": 3.0,  # tokens per removed span, on average (ByT5, arXiv 2105.13626: 20 bytes)
}


def counts(n: int, options) -> tuple[int, int]:
    """Returns the numbers of removed tokens and of spans for n source tokens; they are fixed, so shapes are fixed.

    Example: n = 100, density 0.15, mean span 3 -> (15, 5).
    """
    noise = min(max(round(n * options["noise_density"]), 1), n - 1)
    spans = max(round(noise / options["mean_span"]), 1)
    return noise, min(spans, n - noise + 1)


def lengths(n: int, options) -> dict[str, int]:
    """Returns the fixed lengths: kept (encoder) or removed (decoder) tokens + one sentinel per span + eos."""
    noise, spans = counts(n, options)
    return {"inputs": noise + spans + 1, "encoder_inputs": n - noise + spans + 1}


def _composition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """Draws uniformly among all ways to write `total` as an ordered sum of `parts` positive integers."""
    cuts = [-1, *sorted(rng.choice(total - 1, parts - 1, replace=False).tolist()), total - 1]
    return [b - a for a, b in itertools.pairwise(cuts)]


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Replaces random spans by sentinels; the target has each sentinel followed by its span.

    Span lengths and the lengths of the kept stretches between them are uniform random compositions. T5 always keeps the
    first tokens and removes the last ones; here both ends are drawn like any other stretch, so all tokens are about
    equally likely to be removed (those near an end slightly less). The decoder starts from the pad id, as in T5.

    Args:
        tokens: [n] integer ids.
        rng: draws the spans.
        spec: options noise_density, mean_span; ids.

    Returns:
        encoder_inputs [S] int32; inputs, targets [T] int32; weights [T] float32, all 1.

    Raises:
        InputError: more spans than sentinels.

    Example: 8 tokens, spans (7, 8) and (11), sentinels 91, 92, eos 90, pad 89
        tokens         [5, 6, 7, 8, 9, 10, 11, 12]
        encoder_inputs [5, 6, 91, 9, 10, 92, 12, 90]
        inputs         [89, 91, 7, 8, 92, 11]
        targets        [91, 7, 8, 92, 11, 90]
    """
    n, sentinels = len(tokens), spec.specials.sentinels
    noise, spans = counts(n, spec.options)
    if spans > len(sentinels):
        raise InputError(
            f"span_corruption of {n} tokens needs {spans} sentinels, there are {len(sentinels)}; "
            f"set data.num_sentinels={spans} or more, or a larger objective.options.mean_span"
        )
    span_lengths = _composition(noise, spans, rng)
    gaps = _composition(n - noise + 2, spans + 1, rng)  # two extra tokens let the outer gaps be empty
    gaps[0] -= 1
    return without(tokens, gaps, span_lengths, spec)


def without(tokens: np.ndarray, gaps: list[int], spans: list[int], spec: Spec) -> Example:
    """Returns the example in which the given spans are removed.

    Args:
        tokens: [n] integer ids.
        gaps: number of kept tokens before each span.
        spans: length of each span in tokens.
        spec: ids.
    """
    text, at = tokens.tolist(), 0  # plain lists: rows are short, and NumPy calls on them cost more than the loop
    source, target = [], []
    for gap, length, sentinel in zip(gaps, spans, spec.specials.sentinels, strict=False):
        source += [*text[at : at + gap], sentinel]
        target += [sentinel, *text[at + gap : at + gap + length]]
        at += gap + length
    source += [*text[at:], spec.specials.eos]
    target += [spec.specials.eos]
    return {
        "encoder_inputs": np.asarray(source, np.int32),
        "inputs": np.asarray([spec.specials.pad, *target[:-1]], np.int32),
        "targets": np.asarray(target, np.int32),
        "weights": np.ones(len(target), np.float32),
    }


def reconstruct(example: Example, spec: Spec) -> np.ndarray:
    """Returns the source tokens, by replacing every sentinel in the encoder input with its span from the target."""
    target = example["targets"][:-1]
    starts = np.flatnonzero(np.isin(target, spec.specials.sentinels))
    spans = {span[0]: span[1:] for span in np.split(target, starts)[1:]}
    return np.concatenate([spans.get(token, [token]) for token in example["encoder_inputs"][:-1]]).astype(np.int32)


SPAN_CORRUPTION = Objective(
    name="span_corruption",
    version=1,
    attention="encoder_decoder",
    make_example=make_example,
    lengths=lengths,
    options=OPTIONS,
    ranges={"noise_density": (0.0, 1.0), "mean_span": (1.0, math.inf)},
    expected_weight=lambda n, options: lengths(n, options)["inputs"],
    reconstruct=reconstruct,
    conflict=lambda options: "" if options["noise_density"] else "expected options.noise_density above 0, got 0",
)

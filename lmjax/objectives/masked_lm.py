"""Masked language modelling: predict masked tokens from both sides (BERT, arXiv 1810.04805).

The option `unit` selects what is masked together: single tokens; whole words (BERT's whole-word masking, arXiv
1906.08101); or spans of words (SpanBERT, arXiv 1907.10529, without its span-boundary objective).
"""

from collections.abc import Iterator

import numpy as np

from lmjax.errors import nearest
from lmjax.objectives.base import Example, Objective, Spec
from lmjax.objectives.units import words

UNITS = ("token", "word", "span")

OPTIONS = {
    "mask_rate": 0.15,  # share of the text tokens that are predicted
    "keep_rate": 0.1,  # share of the predicted tokens that the input shows unchanged
    "random_rate": 0.1,  # share of the predicted tokens that are replaced by a random text token; the rest are masked
    "unit": "token",  # what is masked together: token | word | span (of words)
}
SPAN_LENGTHS = 0.2 * 0.8 ** np.arange(10)  # probabilities of 1 .. 10 words, unnormalised: truncated geometric, mean 3.8


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Corrupts round(mask_rate x text tokens) positions (at least 1) and predicts them; never special ids.

    Words that would exceed this number are skipped, so a row may have a few fewer; the last span is shortened. A span
    is masked, kept or replaced as a whole, as in SpanBERT; the tokens of a word independently, as in BERT.

    Args:
        tokens: [n] integer ids.
        rng: samples the positions, the corruption of each, and the random tokens.
        spec: options mask_rate, keep_rate, random_rate, unit; ids; the tokenizer, for words.

    Returns:
        inputs [n] int32 corrupted; targets [n] int32 the original; weights [n] float32: 1 at selected positions.

    Example: mask id 99; of 6 text tokens 2 selected (mask_rate 1/3), one masked, one random
        tokens  [10, 11, 12, 13, 14, 15]
        inputs  [10, 99, 12, 13, 42, 15]
        targets [10, 11, 12, 13, 14, 15]
        weights [ 0,  1,  0,  0,  1,  0]
    """
    targets = tokens.astype(np.int32)
    candidates = np.flatnonzero(targets < spec.text_vocab_size)
    inputs, weights = targets.copy(), np.zeros(len(targets), np.float32)
    if len(candidates):
        count = max(1, round(spec.options["mask_rate"] * len(candidates)))
        if spec.options["unit"] == "token":
            selected = rng.permutation(candidates)[:count]
            fate = rng.random(count)
        else:
            selected, fate = _in_units(tokens, candidates, count, rng, spec)
        keep = fate < spec.options["keep_rate"]
        replace = ~keep & (fate < spec.options["keep_rate"] + spec.options["random_rate"])
        random_ids = rng.integers(0, spec.text_vocab_size, len(selected))
        inputs[selected] = np.where(keep, targets[selected], np.where(replace, random_ids, spec.specials.mask))
        weights[selected] = 1.0
    return {"inputs": inputs, "targets": targets, "weights": weights}


def _in_units(tokens, candidates, count, rng, spec):
    """Returns up to `count` positions in whole words or spans, and for each a uniform number that decides its fate."""
    whole = spec.options["unit"] == "word"
    free = np.zeros(len(tokens), bool)
    free[candidates] = True
    selected, fate, left = [], [], count
    for start, stop in _stretches(words(tokens, spec), whole, rng):
        places = start + np.flatnonzero(free[start:stop])
        if len(places) > left and whole:
            continue
        places = places[:left]
        free[places] = False
        selected.append(places)
        fate.append(rng.random(len(places)) if whole else np.full(len(places), rng.random()))
        left -= len(places)
        if not left:
            break
    if left == count:  # every word is longer than count
        first = rng.integers(len(candidates) - count + 1)
        return candidates[first : first + count], rng.random(count)
    return np.concatenate(selected), np.concatenate(fate)


def _stretches(bounds, whole, rng) -> Iterator[tuple[int, int]]:
    """Yields (first token, end) of all words in random order or, if not whole, of spans of 1 to 10 words, forever."""
    if whole:
        yield from ((bounds[i], bounds[i + 1]) for i in rng.permutation(len(bounds) - 1).tolist())
        return
    chances = np.cumsum(SPAN_LENGTHS / SPAN_LENGTHS.sum())
    while True:
        first, length = rng.integers(len(bounds) - 1), 1 + int(np.searchsorted(chances, rng.random(), side="right"))
        yield bounds[first], bounds[min(first + length, len(bounds) - 1)]


def _conflict(options) -> str:
    if options["unit"] not in UNITS:
        return f"unknown options.unit {options['unit']!r}{nearest(options['unit'], UNITS)}"
    if options["mask_rate"] == 0:
        return "expected options.mask_rate above 0, got 0: nothing would be predicted"
    if options["keep_rate"] + options["random_rate"] > 1:
        return f"expected keep_rate + random_rate of at most 1, got {options['keep_rate'] + options['random_rate']:g}"
    return ""


MASKED_LM = Objective(
    name="masked_lm",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n},
    options=OPTIONS,
    ranges={"mask_rate": (0.0, 1.0), "keep_rate": (0.0, 1.0), "random_rate": (0.0, 1.0)},
    expected_weight=lambda n, options: None if options["unit"] == "word" else max(1, round(options["mask_rate"] * n)),
    reconstruct=lambda example, spec: example["targets"],
    visible_answers="keep_rate",
    conflict=_conflict,
)

"""Deshuffling: an encoder classifies the permutation of segments, or an encoder-decoder writes the original text.

`sentence_deshuffling` is sentence reordering of ERNIE 2.0 (arXiv 1907.12412). `deshuffling` is T5's objective of that
name (arXiv 1910.10683, section 3.3.1; unit "tokens") or BART's sentence permutation (arXiv 1910.13461).
"""

import itertools
import math

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import parts, sentences, words

SEGMENTS = {
    "segments": 3,  # k: number of consecutive segments that are shuffled; there are k! classes
    "permutation_coefficient": 1.0,  # factor on the loss of this head
}
UNITS = {"sentences": sentences, "words": words, "tokens": lambda tokens, spec: np.arange(len(tokens) + 1)}


def classify(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Splits a stretch of a document into k segments of whole sentences and shuffles them; the label is the order.

    As in sentence_order, incomplete sentences at the ends are dropped, and too short a text is split between words.

    Args:
        tokens: two consecutive pieces of a document, up to n integer ids each.
        rng: draws the permutation.
        spec: options segments; ids.

    Returns:
        inputs [...] int32: eos, then each segment followed by eos; permutation_targets [] int32, the index of the
        permutation in lexicographic order; permutation_weights [] float32, 1 (0: fewer than k tokens).

    Example (bytes, | for eos): "d. It rai", "ns. We go. I read. Th", permutation (2, 0, 1), the 5th
        inputs              "| I read.| It rains.| We go.|"
        permutation_targets 4
    """
    count, end = spec.options["segments"], [spec.specials.eos]
    segments = parts(np.concatenate(tokens), spec, count)
    label = int(rng.integers(math.factorial(count)))
    order = next(itertools.islice(itertools.permutations(range(count)), label, None))
    return {
        "inputs": np.concatenate([end, *(part for i in order for part in (segments[i], end))]).astype(np.int32),
        "permutation_targets": np.asarray(label, np.int32),
        "permutation_weights": np.asarray(min(map(len, segments)) > 0, np.float32),
    }


def generate(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Shuffles the sentences, words or tokens of the encoder's input; the decoder writes the original.

    Args:
        tokens: [n] integer ids.
        rng: draws the permutation.
        spec: options unit; ids.

    Returns:
        encoder_inputs, inputs, targets [n + 1] int32; weights [n + 1] float32, all 1.

    Example: tokens (5, 6, 7), each a unit, permutation (2, 0, 1), eos 90, pad 89
        encoder_inputs [7, 5, 6, 90]
        inputs         [89, 5, 6, 7]
        targets        [5, 6, 7, 90]
    """
    bounds, end = UNITS[spec.options["unit"]](tokens, spec), [spec.specials.eos]
    shuffled = [tokens[bounds[i] : bounds[i + 1]] for i in rng.permutation(len(bounds) - 1)]
    targets = np.concatenate([tokens, end]).astype(np.int32)
    return {
        "encoder_inputs": np.concatenate([*shuffled, end]).astype(np.int32),
        "inputs": np.concatenate([[spec.specials.pad], targets[:-1]]).astype(np.int32),
        "targets": targets,
        "weights": np.ones(len(targets), np.float32),
    }


def _conflict(options) -> str:
    known = options["unit"] in UNITS
    return "" if known else f"expected options.unit to be one of {', '.join(UNITS)}, got {options['unit']!r}"


SENTENCE_DESHUFFLING = Objective(
    name="sentence_deshuffling",
    version=1,
    attention="bidirectional",
    make_example=classify,
    lengths=lambda n, options: {"inputs": 2 * n + options["segments"] + 1},
    options=SEGMENTS,
    ranges={"segments": (2, 5), "permutation_coefficient": (0.0, 1e6)},
    heads=lambda options: (
        Head("permutation", "row", math.factorial(options["segments"]), options["permutation_coefficient"]),
    ),
    pieces=("next",),
    pieces_per_row=2,
    padded=True,
    expected_weight=lambda n, options: 1.0,
)

DESHUFFLING = Objective(
    name="deshuffling",
    version=1,
    attention="encoder_decoder",
    make_example=generate,
    lengths=lambda n, options: {"inputs": n + 1, "encoder_inputs": n + 1},
    options={"unit": "sentences"},  # what is shuffled: sentences | words | tokens
    expected_weight=lambda n, options: n + 1,
    reconstruct=lambda example, spec: example["targets"][:-1],
    visible_answers=1.0,
    conflict=_conflict,
)

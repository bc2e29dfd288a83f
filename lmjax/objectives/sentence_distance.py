"""Sentence distance: are two texts adjacent, from one document, or from two? (ERNIE 2.0, arXiv 1907.12412)"""

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import pair, parts

OPTIONS = {"distance_coefficient": 1.0}  # factor on the loss of this head


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Joins A with the piece after it, with another piece of its document, or with another document (1/3 each).

    Each text consists of the whole sentences of its piece (words if it has none; see `units.whole`). In every class,
    the sentences that the piece cuts off are dropped: kept, they would make adjacent texts longer than others. So one
    or two sentences are missing between adjacent texts.

    Args:
        tokens: A, the piece after it, another piece of its document, a piece of another document; up to n ids each.
        rng: draws the class.
        spec: ids.

    Returns:
        inputs, token_types [a + b + 3] int32 as from `units.pair`; distance_targets [] int32: 0 adjacent, 1 same
        document, 2 another document; distance_weights [] float32, 1.

    Example (bytes, | for eos): "d. It rains. W", "e go. I read. B", "ut. No. O", "h. Mr X! A", class 2
        inputs           "| It rains.| Mr X!|"
        distance_targets 2
    """
    label = int(rng.integers(3))
    (first,), (second,) = parts(tokens[0], spec, 1), parts(tokens[1 + label], spec, 1)
    return {
        **pair(first, second, spec),
        "distance_targets": np.asarray(label, np.int32),
        "distance_weights": np.asarray(1.0, np.float32),
    }


SENTENCE_DISTANCE = Objective(
    name="sentence_distance",
    version=2,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": 2 * n + 3},
    options=OPTIONS,
    ranges={"distance_coefficient": (0.0, 1e6)},
    heads=lambda options: (Head("distance", "row", 3, options["distance_coefficient"]),),
    pieces=("next", "same", "other"),
    pieces_per_row=2,
    token_types=2,
    padded=True,
    expected_weight=lambda n, options: 1.0,
)

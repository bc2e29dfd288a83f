"""Sentence order prediction: are two consecutive segments in their original order? (ALBERT, arXiv 1909.11942)"""

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import pair, parts

OPTIONS = {
    "swap_rate": 0.5,  # share of rows whose segments are swapped
    "order_coefficient": 1.0,  # factor on the loss of this head
}


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Splits a stretch of a document into two segments of whole sentences, and swaps them in swap_rate of the rows.

    Incomplete sentences at both ends are dropped, because a segment that begins or ends inside a sentence would reveal
    its position. A stretch of fewer than two whole sentences is split between words; see `units.whole`.

    Args:
        tokens: two consecutive pieces of a document, up to n integer ids each.
        rng: draws whether the segments are swapped.
        spec: options swap_rate; ids.

    Returns:
        inputs, token_types [a + b + 3] int32 as from `units.pair`; order_targets [] int32, 1 if the segments are in
        their original order; order_weights [] float32, 1.

    Example (bytes, | for eos): "d one. It rai", "ns. We go. Th", swapped
        inputs        "| We go.| It rains.|"
        order_targets 0
    """
    first, second = parts(np.concatenate(tokens), spec, 2)
    swapped = rng.random() < spec.options["swap_rate"]
    return {
        **(pair(second, first, spec) if swapped else pair(first, second, spec)),
        "order_targets": np.asarray(not swapped, np.int32),
        "order_weights": np.asarray(1.0, np.float32),
    }


SENTENCE_ORDER = Objective(
    name="sentence_order",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": 2 * n + 3},
    options=OPTIONS,
    ranges={"swap_rate": (0.0, 1.0), "order_coefficient": (0.0, 1e6)},
    heads=lambda options: (Head("order", "row", 2, options["order_coefficient"]),),
    pieces=("next",),
    pieces_per_row=2,
    token_types=2,
    padded=True,
    expected_weight=lambda n, options: 1.0,
)

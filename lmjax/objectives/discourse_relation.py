"""Discourse relation: predict the marker, such as "because", that was removed between two texts.

As in conjunction prediction (Jernite et al., arXiv 1705.00557), DisSent (arXiv 1710.04334) and ERNIE 2.0 (arXiv
1907.12412). Markers are found by spelling, without a parser. "and" is not a marker: it mostly joins nouns, and would be
nine of ten labels. In English, 32 to 80 % of pieces of 512 bytes have a marker, and 71 to 95 % of 1024 bytes.
"""

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import pair, words

MARKERS = ("after", "because", "before", "but", "if", "so", "when", "while")
_LABELS = {marker.encode(): label for label, marker in enumerate(MARKERS)}
OPTIONS = {"marker_coefficient": 1.0}  # factor on the loss of this head


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Removes one marker and joins the text before it with the text after it.

    First one of the markers in the text is drawn, then one of its occurrences, which favours rare markers. A text
    without a marker is split in the middle and has weight 0.

    Args:
        tokens: two consecutive pieces of a document, up to n integer ids each.
        rng: draws the marker and its place.
        spec: ids.

    Returns:
        inputs, token_types [a + b + 3] int32 as from `units.pair`; marker_targets [] int32, index in MARKERS;
        marker_weights [] float32, 0 without a marker.

    Example (bytes, | for eos): "We left, b", "ecause it rained."
        inputs         "|We left,| it rained.|"
        marker_targets 1
    """
    text = np.concatenate(tokens)
    bounds, table, places = words(text, spec), spec.tokenizer.token_bytes, {}
    for i in range(1, len(bounds) - 2):
        word = b"".join(table[token] for token in text[bounds[i] : bounds[i + 1]].tolist())
        if (label := _LABELS.get(word.strip().removesuffix(b",").lower())) is not None:
            places.setdefault(label, []).append(i)
    label, before, after = 0, len(text) // 2, len(text) // 2
    if places:
        label = sorted(places)[rng.integers(len(places))]
        i = places[label][rng.integers(len(places[label]))]
        before, after = bounds[i], bounds[i + 1]
    return {
        **pair(text[:before], text[after:], spec),
        "marker_targets": np.asarray(label, np.int32),
        "marker_weights": np.asarray(bool(places), np.float32),
    }


DISCOURSE_RELATION = Objective(
    name="discourse_relation",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": 2 * n + 3},
    options=OPTIONS,
    ranges={"marker_coefficient": (0.0, 1e6)},
    heads=lambda options: (Head("marker", "row", len(MARKERS), options["marker_coefficient"]),),
    pieces=("next",),
    pieces_per_row=2,
    token_types=2,
    padded=True,
)

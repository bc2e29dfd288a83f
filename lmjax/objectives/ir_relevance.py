"""Relevance of a passage for a query: a sentence against the passage it was taken from, another passage of its
document, or another document (inverse cloze task, arXiv 1906.00300; with the three classes of IR relevance in ERNIE
2.0, arXiv 1907.12412, whose queries are of a search engine)."""

import itertools

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import pair, whole

OPTIONS = {
    "removal_rate": 0.9,  # share of rows in which the passage lacks the query, as in the inverse cloze task
    "relevance_coefficient": 1.0,  # factor on the loss of this head
}


def _query(n: int) -> int:
    """Most tokens of a query: longer ones are cut off."""
    return max(1, n // 4)


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Joins a sentence of the first piece with the other sentences of this piece, or with those of another piece.

    A passage always lacks one of its whole sentences, if any, so a gap does not show that the query is its own. Pieces
    of fewer than two whole sentences are taken as words; see `units.whole`.

    Args:
        tokens: a piece, another of its document, one of another document; up to n integer ids each.
        rng: draws the class, the query, the sentence the passage lacks and whether it lacks it.
        spec: options removal_rate; ids.

    Returns:
        inputs, token_types [q + p + 3] int32 as of `units.pair`, q at most n / 4; relevance_targets [] int32: 0 its own
        passage, 1 its own document, 2 another one; relevance_weights [] float32, 1.

    Example (bytes, | for eos): "d. It rains. We go. I read. B", ..., class 0, the second sentence, removed
        inputs            "| We go.| It rains. I read.|"
        relevance_targets 0
    """
    label, removed = int(rng.integers(3)), rng.random() < spec.options["removal_rate"]
    units = []
    for piece in (tokens[0], tokens[label]):
        units.append([piece[a:b] for a, b in itertools.pairwise(whole(piece, spec, 2))])
    chosen = [int(rng.integers(len(found))) for found in units]
    query, passage = units[0][chosen[0]], units[1]
    if removed and len(passage) > 1:
        lacks = chosen[1] if label else chosen[0]
        passage = passage[:lacks] + passage[lacks + 1 :]
    return {
        **pair(query[: _query(max(map(len, tokens)))], np.concatenate(passage), spec),
        "relevance_targets": np.asarray(label, np.int32),
        "relevance_weights": np.asarray(1.0, np.float32),
    }


IR_RELEVANCE = Objective(
    name="ir_relevance",
    version=2,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n + _query(n) + 3},
    options=OPTIONS,
    ranges={"removal_rate": (0.0, 1.0), "relevance_coefficient": (0.0, 1e6)},
    heads=lambda options: (Head("relevance", "row", 3, options["relevance_coefficient"]),),
    pieces=("same", "other"),
    token_types=2,
    padded=True,
    expected_weight=lambda n, options: 1.0,
)

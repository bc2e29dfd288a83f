"""Relevance of a passage to a query sentence: does the sentence come from this passage, from elsewhere in its document,
or from another document? (Inverse cloze task, arXiv 1906.00300, with the three classes of IR relevance in ERNIE 2.0,
arXiv 1907.12412, whose queries come from a search engine.)"""

import itertools

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import pair, whole

OPTIONS = {
    "removal_rate": 0.9,  # share of rows in which the query is removed from its passage, as in the inverse cloze task
    "relevance_coefficient": 1.0,  # factor on the loss of this head
}


def _query(n: int) -> int:
    """Returns the maximum number of tokens of a query; longer queries are cut off."""
    return max(1, n // 4)


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Joins a query, one sentence of the first piece, with a passage: the sentences of one of the three pieces.

    In removal_rate of the rows, one sentence is removed from the passage, in every class, so that a gap does not reveal
    the label. Pieces of fewer than two whole sentences are split into words; see `units.whole`.

    Args:
        tokens: a piece, another piece of its document, a piece of another document; up to n integer ids each.
        rng: draws the class, the query, the sentence to remove and whether to remove it.
        spec: options removal_rate; ids.

    Returns:
        inputs, token_types [q + p + 3] int32 as from `units.pair`, q at most n / 4; relevance_targets [] int32: 0 the
        query's passage, 1 the same document, 2 another document; relevance_weights [] float32, 1.

    Example (bytes, | for eos): "d. It rains. We go. I read. B", ...; class 0, query = second sentence, removed
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

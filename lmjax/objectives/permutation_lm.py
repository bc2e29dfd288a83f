"""Permutation language modelling (XLNet, arXiv 1906.08237), for model.family "xlnet"."""

import numpy as np

from lmjax.objectives.base import Example, Objective, Spec

OPTIONS = {
    "one_in": 6,  # K: one token in K is predicted
}


def predicted(n: int, options) -> int:
    """Returns how many of n tokens are predicted: round(n / K), from 1 to n - 1. Example: 21 for n = 128."""
    return min(max(round(n / options["one_in"]), 1), n - 1)


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Draws which tokens are predicted, and in which order. A prediction sees the tokens of lower order.

    The tokens that are not predicted come first and see each other, as in the authors' code. Unlike their code, this
    predicts single tokens instead of spans, and has no memory of the text before the row.

    Args:
        tokens: [n] integer ids.
        rng: draws the tokens and their order.
        spec: option one_in.

    Returns:
        inputs, targets [n] int32, both the tokens; order [n] int32, 0 for tokens that are not predicted; weights [n]
        float32.

    Example: one_in = 2; token 8 is predicted first, then token 5
        tokens  [5, 6, 7, 8]
        order   [2, 0, 0, 1]
        weights [1, 0, 0, 1]
    """
    tokens, order = tokens.astype(np.int32), np.zeros(len(tokens), np.int32)
    count = predicted(len(tokens), spec.options)
    order[rng.permutation(len(tokens))[:count]] = np.arange(1, count + 1)
    return {"inputs": tokens, "targets": tokens, "order": order, "weights": (order > 0).astype(np.float32)}


PERMUTATION_LM = Objective(
    name="permutation_lm",
    version=1,
    attention="permutation",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n},
    options=OPTIONS,
    ranges={"one_in": (1, 1_000_000)},
    expected_weight=predicted,
    reconstruct=lambda example, spec: example["inputs"],
)

"""Prefix language modelling: read a prefix with full attention, predict the rest causally (arXiv 1910.10683)."""

import numpy as np

from lmjax.objectives.base import Example, Objective, Spec

OPTIONS = {
    "min_prefix": 0.0,  # smallest prefix, as a share of the tokens; at least one token is in the prefix
    "max_prefix": 1.0,  # largest prefix, as a share of the tokens; at least one token is predicted
}


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Splits the window at a uniformly drawn position; the tokens after it are predicted.

    Args:
        tokens: [n] integer ids.
        rng: draws the split.
        spec: options min_prefix, max_prefix.

    Returns:
        inputs, targets [n - 1] int32; prefix [n - 1] bool: whether the input is visible to all positions;
        weights [n - 1] float32: 1 where the target lies after the prefix.

    Example: a prefix of 2 of 5 tokens
        tokens  [5, 6, 7, 8, 9]
        inputs  [5, 6, 7, 8]
        prefix  [1, 1, 0, 0]
        targets [6, 7, 8, 9]
        weights [0, 1, 1, 1]
    """
    tokens = tokens.astype(np.int32)
    n = len(tokens)
    low, high = _bounds(n, spec.options)
    split = int(rng.integers(low, high + 1))
    position = np.arange(n - 1)
    return {
        "inputs": tokens[:-1],
        "targets": tokens[1:],
        "prefix": position < split,
        "weights": (position >= split - 1).astype(np.float32),
    }


def _bounds(n, options):
    """Returns the smallest and the largest length of the prefix of n tokens."""
    low = min(max(1, int(np.ceil(options["min_prefix"] * n))), n - 1)
    return low, max(low, min(n - 1, int(np.floor(options["max_prefix"] * n))))


def _expected_weight(n, options):
    low, high = _bounds(n, options)
    return n - (low + high) / 2


def _conflict(options) -> str:
    low, high = options["min_prefix"], options["max_prefix"]
    return f"expected options.min_prefix up to options.max_prefix {high:g}, got {low:g}" if low > high else ""


PREFIX_LM = Objective(
    name="prefix_lm",
    version=1,
    attention="prefix",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n - 1},
    options=OPTIONS,
    ranges={"min_prefix": (0.0, 1.0), "max_prefix": (0.0, 1.0)},
    overlap=1,
    expected_weight=_expected_weight,
    reconstruct=lambda example, spec: np.concatenate([example["inputs"][:1], example["targets"]]),
    conflict=_conflict,
)

"""Causal language modelling: predict each token from the ones before it (GPT; Radford et al. 2018)."""

import numpy as np

from lmjax.objectives.base import Example, Objective, Spec


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Shifts the tokens by one: n tokens give n - 1 predictions.

    Args:
        tokens: [n] integer ids.
        rng: not used.
        spec: not used.

    Returns:
        inputs, targets [n - 1] int32; weights [n - 1] float32, all 1.

    Example:
        tokens  [5, 6, 7, 8]
        inputs  [5, 6, 7]
        targets [6, 7, 8]
        weights [1, 1, 1]
    """
    tokens = tokens.astype(np.int32)
    return {"inputs": tokens[:-1], "targets": tokens[1:], "weights": np.ones(len(tokens) - 1, np.float32)}


CAUSAL_LM = Objective(
    name="causal_lm",
    version=1,
    attention="causal",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n - 1},
    overlap=1,
    full_likelihood=True,
    expected_weight=lambda n, options: n - 1,
    reconstruct=lambda example, spec: np.concatenate([example["inputs"][:1], example["targets"]]),
)

"""The answer of a sum from its two operands: an objective for the source modular:P, a row per sum."""

import numpy as np

from lmjax.data.constructed import ZERO
from lmjax.objectives import OBJECTIVES, Head, Objective


def make_example(tokens, rng, spec):
    """Tokens eos a b c eos of a sum a + b = c -> inputs [eos, a, b] and the label c.

    Example: 2 + 2 = 1 modulo 3: tokens [256, 35, 35, 34, 256], inputs [256, 35, 35], answer_targets 1.
    """
    return {
        "inputs": tokens[:-2].astype(np.int32),
        "answer_targets": np.int32(tokens[-2] - ord(ZERO)),
        "answer_weights": np.float32(1.0),
    }


OBJECTIVES["modular_sum"] = Objective(
    name="modular_sum",
    version=1,
    attention="causal",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n - 2},
    overlap=1,  # documents of three letters and an eos: every window is one sum, between two eos
    options={"modulus": 59},
    heads=lambda options: (Head("answer", "row", options["modulus"], position="last"),),
    expected_weight=lambda n, options: 1.0,
)

"""Next sentence prediction: does B follow A, or does it come from another document? (BERT, arXiv 1810.04805)

BERT's pretraining is objective.name="masked_lm+next_sentence", which also masks tokens in these rows.
"""

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import pair

OPTIONS = {
    "next_rate": 0.5,  # share of rows in which B follows A
    "next_coefficient": 1.0,  # factor on the loss of this head
}


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Joins A with B, the text after A or a piece of another document. The eos id stands for [CLS] and [SEP].

    As in BERT, A and B are stretches of text, not sentences, of at most n tokens each. A is never the end of a
    document, and B never the beginning.

    Args:
        tokens: A, the piece after it, a piece of another document; up to n integer ids each.
        rng: draws which of the last two is B.
        spec: options next_rate; ids.

    Returns:
        inputs, token_types [a + b + 3] int32; next_targets [] int32, 1 if B follows A; next_weights [] float32, 1.

    Example: A (5, 6), next (7,), other (8, 9), eos 90; B is the next
        inputs       [90, 5, 6, 90, 7, 90]
        token_types  [ 0, 0, 0,  0, 1,  1]
        next_targets 1
    """
    first, following, other = tokens
    follows = rng.random() < spec.options["next_rate"]
    return {
        **pair(first, following if follows else other, spec),
        "next_targets": np.asarray(follows, np.int32),
        "next_weights": np.asarray(1.0, np.float32),
    }


def reconstruct(example: Example, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Returns A and B."""
    second = int(example["token_types"].argmax())
    return example["inputs"][1 : second - 1], example["inputs"][second:-1]


NEXT_SENTENCE = Objective(
    name="next_sentence",
    version=2,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": 2 * n + 3},
    options=OPTIONS,
    ranges={"next_rate": (0.0, 1.0), "next_coefficient": (0.0, 1e6)},
    heads=lambda options: (Head("next", "row", 2, options["next_coefficient"]),),
    pieces=("next", "other"),
    pieces_per_row=2,
    token_types=2,
    padded=True,
    expected_weight=lambda n, options: 1.0,
    reconstruct=reconstruct,
)

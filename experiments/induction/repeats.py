"""Next-token prediction in rows of text and in rows of a random block that repeats: an objective of two kinds of rows.

Only what a row holds can predict a repeated block, so its loss measures copying.
"""

import numpy as np

from lmjax.objectives import OBJECTIVES, Objective
from lmjax.objectives.causal_lm import CAUSAL_LM

LETTERS = (33, 127)  # ids of the random letters, "!" to "~"
OPTIONS = {
    "share": 0.5,  # of the rows that hold a repeated block
    "shortest": 16,  # letters of a block, drawn uniformly between both
    "longest": 64,
}


def make_example(tokens, rng, spec):
    """In a share of the rows, the tokens make way for a block of random letters and its repetitions.

    Example: a block of 2 letters and tokens [84, 111, 32, 98, 101] give inputs [70, 35, 70, 35], targets
    [35, 70, 35, 70], group 1; a row of text is that of causal_lm, group 0.
    """
    repeated = rng.random() < spec.options["share"]
    if repeated:
        block = rng.integers(*LETTERS, rng.integers(spec.options["shortest"], spec.options["longest"] + 1))
        tokens = np.resize(block, len(tokens))
    return {**CAUSAL_LM.make_example(tokens, rng, spec), "group": np.int32(repeated)}


OBJECTIVES["text_and_repeats"] = Objective(
    name="text_and_repeats",
    version=1,
    attention="causal",
    make_example=make_example,
    lengths=CAUSAL_LM.lengths,
    options=OPTIONS,
    overlap=1,
    ranges={"share": (0.0, 1.0), "shortest": (2, 1000), "longest": (2, 1000)},
    expected_weight=lambda n, options: n - 1,
    groups=("text", "repeated"),
)

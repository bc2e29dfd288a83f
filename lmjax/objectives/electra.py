"""Replaced token detection (ELECTRA, arXiv 2003.10555), for model.family "electra", which samples the replacements."""

import numpy as np

from lmjax.objectives.base import LM, Example, Head, Objective, Spec
from lmjax.objectives.masked_lm import MASKED_LM

OPTIONS = {
    "mask_rate": 0.15,  # share of the text tokens that the generator predicts and replaces with its samples
    "unit": "token",  # as in masked_lm
    "replaced_coefficient": 50.0,  # factor on the discriminator's loss
}


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Masks tokens as masked_lm does, without kept or random tokens, and draws a uniform number per position.

    From this number the model samples the replacement at that position, by inverting the generator's cumulative
    distribution, and labels the position. So replacements depend only on the parameters, the seed and the row.

    Args:
        tokens: [n] integer ids.
        rng: as for masked_lm; then draws the uniform numbers.
        spec: options mask_rate, unit; ids; the tokenizer, for units other than tokens.

    Returns:
        inputs, targets [n] int32; weights, noise [n] float32.

    Example: mask id 99; 1 of 4 text tokens is selected
        tokens  [ 10,  11,  12,  13]
        inputs  [ 10,  99,  12,  13]
        targets [ 10,  11,  12,  13]
        weights [  0,   1,   0,   0]
        noise   [0.2, 0.7, 0.1, 0.4]
    """
    options = {**MASKED_LM.options, "keep_rate": 0.0, "random_rate": 0.0}
    options |= {name: spec.options[name] for name in ("mask_rate", "unit")}
    masked = Spec(spec.vocab_size, spec.text_vocab_size, spec.specials, options, spec.tokenizer)
    example = MASKED_LM.make_example(tokens, rng, masked)
    return {**example, "noise": rng.random(len(tokens), np.float32)}


ELECTRA = Objective(
    name="electra",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=MASKED_LM.lengths,
    options=OPTIONS,
    ranges={"mask_rate": (0.0, 1.0), "replaced_coefficient": (0.0, 1e6)},
    heads=lambda options: (LM, Head("replaced", "tokens", 2, options["replaced_coefficient"])),
    extras={"noise": "tokens"},  # uniform numbers in [0, 1), from which the model samples
    expected_weight=MASKED_LM.expected_weight,
    reconstruct=MASKED_LM.reconstruct,
    conflict=lambda options: MASKED_LM.conflict({**MASKED_LM.options, **options}),
)

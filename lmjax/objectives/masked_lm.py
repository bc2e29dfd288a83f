"""Masked language modelling: predict masked tokens from both sides (BERT, arXiv 1810.04805)."""

import numpy as np

from lmjax.objectives.base import Example, Objective, Spec

OPTIONS = {
    "mask_rate": 0.15,  # share of the text tokens that are predicted
    "keep_rate": 0.1,  # of those, shown unchanged
    "random_rate": 0.1,  # of those, shown as a random text token; the rest shows the mask id
}


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Selects round(mask_rate x text tokens) positions (at least 1), without replacement; never special ids.

    Args:
        tokens: [n] integer ids.
        rng: samples positions, how each is corrupted, and random tokens.
        spec: options mask_rate, keep_rate, random_rate; ids.

    Returns:
        inputs [n] int32 corrupted; targets [n] int32 the original; weights [n] float32: 1 at selected positions.

    Example: mask id 99; of 6 text tokens 2 selected (mask_rate 1/3), one masked, one random
        tokens  [10, 11, 12, 13, 14, 15]
        inputs  [10, 99, 12, 13, 42, 15]
        targets [10, 11, 12, 13, 14, 15]
        weights [ 0,  1,  0,  0,  1,  0]
    """
    targets = tokens.astype(np.int32)
    candidates = np.flatnonzero(targets < spec.text_vocab_size)
    weights = np.zeros(len(targets), np.float32)
    inputs = targets.copy()
    if len(candidates):
        count = max(1, round(spec.options["mask_rate"] * len(candidates)))
        selected = rng.permutation(candidates)[:count]
        fate = rng.random(count)
        keep = fate < spec.options["keep_rate"]
        replace = ~keep & (fate < spec.options["keep_rate"] + spec.options["random_rate"])
        random_ids = rng.integers(0, spec.text_vocab_size, count)
        shown = np.where(keep, targets[selected], np.where(replace, random_ids, spec.specials.mask))
        inputs[selected] = shown
        weights[selected] = 1.0
    return {"inputs": inputs, "targets": targets, "weights": weights}


def _conflict(options) -> str:
    if options["mask_rate"] == 0:
        return "expected options.mask_rate above 0, got 0: nothing would be predicted"
    if options["keep_rate"] + options["random_rate"] > 1:
        return (
            f"options.keep_rate {options['keep_rate']:g} and options.random_rate {options['random_rate']:g}: expected "
            "a sum of at most 1"
        )
    return ""


MASKED_LM = Objective(
    name="masked_lm",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n},
    options=OPTIONS,
    ranges={"mask_rate": (0.0, 1.0), "keep_rate": (0.0, 1.0), "random_rate": (0.0, 1.0)},
    expected_weight=lambda n, options: max(1, round(options["mask_rate"] * n)),
    reconstruct=lambda example, spec: example["targets"],
    visible_answers="keep_rate",
    conflict=_conflict,
)

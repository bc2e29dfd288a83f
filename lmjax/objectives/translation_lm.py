"""Translation language modelling: masked language modelling on both texts of a pair (XLM, arXiv 1901.07291)."""

import dataclasses

import numpy as np

from lmjax.objectives.base import Example, Spec
from lmjax.objectives.masked_lm import MASKED_LM


def make_example(tokens: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, spec: Spec) -> Example:
    """Joins the two sides and masks tokens of both. Token types mark the language; positions restart in side two.

    Learned, sinusoidal and rotary models use these positions; relative and alibi positions do not restart.

    Args:
        tokens: a text and its translation, up to n integer ids each.
        rng, spec: as for masked_lm.

    Returns:
        inputs, targets, weights as from masked_lm; token_types, positions [a + b + 3] int32.

    Example: sides (5, 6) and (7,), eos 90, mask 91
        inputs      [90, 5, 91, 90, 7, 90]
        targets     [90, 5,  6, 90, 7, 90]
        token_types [ 0, 0,  0,  0, 1,  1]
        positions   [ 0, 1,  2,  3, 1,  2]
    """
    first, second = tokens
    end = [spec.specials.eos]
    sizes = [len(first) + 2, len(second) + 1]
    return {
        **MASKED_LM.make_example(np.concatenate([end, first, end, second, end]), rng, spec),
        "token_types": np.repeat(np.arange(2, dtype=np.int32), sizes),
        "positions": np.concatenate([np.arange(sizes[0]), np.arange(1, sizes[1] + 1)]).astype(np.int32),
    }


def reconstruct(example: Example, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sides."""
    second = int(example["token_types"].argmax())
    return example["targets"][1 : second - 1], example["targets"][second:-1]


TRANSLATION_LM = dataclasses.replace(
    MASKED_LM,
    name="translation_lm",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": 2 * n + 3},
    pieces=("parallel",),
    pieces_per_row=2,
    token_types=2,
    padded=True,
    expected_weight=lambda n, options: MASKED_LM.expected_weight(2 * n, options),
    reconstruct=reconstruct,
)

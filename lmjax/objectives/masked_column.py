"""Masked column prediction: predict one value in a row of a table from the other columns (TaBERT, arXiv 2005.08314)."""

import numpy as np

from lmjax.objectives.base import Example, Objective, Spec


def make_example(tokens: tuple[np.ndarray, ...], rng: np.random.Generator, spec: Spec) -> Example:
    """Masks all tokens of one value; its column is drawn uniformly among those with a value.

    The row reads "country: France | capital: Paris". There is one mask per token of the value. TaBERT masks column
    names and types, and recovers values by another objective; here only values are masked.

    Args:
        tokens: alternating column names ("country: ", " | capital: ") and values; n integer ids in total.
        rng: draws the column.
        spec: ids.

    Returns:
        inputs, targets [n] int32; weights [n] float32: 1 at the value; token_types [n] int32: 0 names, 1 values.

    Example: names (5, 6) and (8,), values (7,) and (9, 10), the second is masked; mask id 91
        inputs      [5, 6, 7, 8, 91, 91]
        targets     [5, 6, 7, 8,  9, 10]
        weights     [0, 0, 0, 0,  1,  1]
        token_types [0, 0, 1, 0,  1,  1]
    """
    targets = np.concatenate(tokens).astype(np.int32)
    sizes = np.asarray([len(text) for text in tokens])
    masked = 1 + 2 * int(rng.choice(np.flatnonzero(sizes[1::2])))
    chosen = np.repeat(np.arange(len(tokens)) == masked, sizes)
    return {
        "inputs": np.where(chosen, spec.specials.mask, targets).astype(np.int32),
        "targets": targets,
        "weights": chosen.astype(np.float32),
        "token_types": np.repeat(np.arange(len(tokens), dtype=np.int32) % 2, sizes),
    }


MASKED_COLUMN = Objective(
    name="masked_column",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n},
    pieces=("cells",),
    token_types=2,
    padded=True,
    reconstruct=lambda example, spec: np.split(example["targets"], np.flatnonzero(np.diff(example["token_types"])) + 1),
)

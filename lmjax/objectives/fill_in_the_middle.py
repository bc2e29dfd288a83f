"""Fill in the middle (arXiv 2207.14255): next-token prediction on text whose middle is moved behind its suffix."""

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.base import Example, Objective, Spec

OPTIONS = {
    "fim_rate": 0.5,  # share of the rows in which a middle is moved; the others are plain next-token prediction
    "spm_rate": 0.5,  # share of these rows with the suffix first (SPM); the others have the prefix first (PSM)
}


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Splits the longest document of the row at two uniform positions, and moves the middle part to its end.

    The first three sentinels introduce prefix, suffix and middle; eos ends the middle, where the paper has <EOT>:
        PSM  <prefix> prefix <suffix> suffix <middle> middle <eos>
        SPM  <prefix> <suffix> suffix <middle> prefix middle <eos>
    As in the paper, every token after the first is predicted, in all parts. Unlike in the paper, only one document per
    row is rearranged, nothing is cut off, and splits are between tokens, not characters.

    Args:
        tokens: [n] integer ids.
        rng: draws whether and how the row is rearranged, and the split positions.
        spec: options fim_rate, spm_rate; ids.

    Returns:
        inputs, targets [n - 1] int32, up to 4 longer if rearranged; weights float32, all 1.

    Raises:
        InputError: fewer than 3 sentinels.

    Example: PSM with the middle (6, 7), sentinels 91, 92, 93, eos 90
        tokens  [5, 6, 7, 8]
        inputs  [91, 5, 92, 8, 93, 6, 7]
        targets [5, 92, 8, 93, 6, 7, 90]
    """
    if len(spec.specials.sentinels) < 3:
        raise InputError(
            f"fill_in_the_middle: expected 3 sentinels or more, got {len(spec.specials.sentinels)}; set "
            "data.num_sentinels=3 or more"
        )
    row, eos = tokens.astype(np.int32), spec.specials.eos
    if rng.random() < spec.options["fim_rate"]:
        ends = np.array([-1, *np.flatnonzero(row == eos), len(row)])
        longest = int(np.argmax(np.diff(ends)))
        first, last = int(ends[longest]) + 1, int(ends[longest + 1])
        text, places = row[first:last], np.sort(rng.integers(0, last - first + 1, 2))
        before, middle, after = np.split(text, places)
        prefix, suffix, moved = ([token] for token in spec.specials.sentinels[:3])
        if rng.random() < spec.options["spm_rate"]:
            parts = [prefix, suffix, after, moved, before, middle]
        else:
            parts = [prefix, before, suffix, after, moved, middle]
        row = np.concatenate([row[:first], *parts, row[last:] if last < len(row) else [eos]]).astype(np.int32)
    return {"inputs": row[:-1], "targets": row[1:], "weights": np.ones(len(row) - 1, np.float32)}


def reconstruct(example: Example, spec: Spec) -> np.ndarray:
    """Returns the source tokens. If an eos ends both the row and a middle, it counts as added."""
    row = np.concatenate([example["inputs"][:1], example["targets"]])
    prefix, suffix, moved = spec.specials.sentinels[:3]
    if prefix not in row:
        return row
    at = [int(np.flatnonzero(row == token)[0]) for token in (prefix, suffix, moved)]
    end = at[2] + int(np.flatnonzero(row[at[2] :] == spec.specials.eos)[0])
    # In SPM, nothing lies between the prefix and suffix tokens, and the prefix text follows the middle token.
    parts = row[: at[0]], row[at[0] + 1 : at[1]], row[at[2] + 1 : end], row[at[1] + 1 : at[2]], row[end:]
    whole = np.concatenate(parts)
    return whole[:-1] if end == len(row) - 1 else whole


FILL_IN_THE_MIDDLE = Objective(
    name="fill_in_the_middle",
    version=1,
    attention="causal",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n + 3},
    options=OPTIONS,
    ranges={"fim_rate": (0.0, 1.0), "spm_rate": (0.0, 1.0)},
    overlap=1,
    padded=True,
    expected_weight=lambda n, options: n - 1 + 4 * options["fim_rate"],
    reconstruct=reconstruct,
)

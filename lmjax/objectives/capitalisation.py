"""Capitalisation prediction: was this word capitalised? The text is shown in lower case (ERNIE 2.0, arXiv
1907.12412)."""

import functools

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.base import Example, Head, Objective, Spec
from lmjax.objectives.units import words

OPTIONS = {"capital_coefficient": 1.0}  # factor on the loss of this head


@functools.lru_cache(maxsize=8)
def _cases(tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the lower-case id of every id, whether it has an ASCII letter, and whether its first letter is upper."""
    table = tokenizer.token_bytes
    ids = {text: token for token, text in enumerate(table) if text}
    missing = [token for token, text in enumerate(table) if text and text.lower() not in ids]
    if missing:
        raise InputError(
            f"capitalisation shows text in lower case: expected a tokenizer with an id for the lower-case form of each "
            f"id, got {tokenizer.name!r}, which has none for {len(missing)} ids such as "
            f"{tokenizer.show(missing[0])!r}; set data.tokenizer='bytes'"
        )
    lower = [ids[text.lower()] if text.lower() != text else token for token, text in enumerate(table)]
    letters = [bytes(byte for byte in text if bytes([byte]).isalpha()) for text in table]
    upper = [text[:1].isupper() for text in letters]
    return np.asarray(lower, np.int32), np.asarray([*map(bool, letters)]), np.asarray(upper)


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Lower-cases the text; each word is labelled at its first token with an ASCII letter.

    Args:
        tokens: [n] integer ids.
        rng: not used.
        spec: its tokenizer must have an id for the lower-case form of each id, as bytes do.

    Returns:
        inputs [n] int32; capital_targets [n] int32, 1 if the token's first letter is upper case; capital_weights [n]
        float32, 1 at the first letter of each word, so all 0 without ASCII letters.

    Raises:
        InputError: the tokenizer lacks lower-case forms; splitting these words differently would reveal the label.

    Example (bytes): "Is it McX?"
        inputs          "is it mcx?"
        capital_targets [1, 0, 0, 0, 0, 0, 1, 0, 1, 0]
        capital_weights [1, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    """
    lower, has_letter, is_upper = _cases(spec.tokenizer)
    places = np.flatnonzero(has_letter[tokens])
    _, first = np.unique(np.searchsorted(words(tokens, spec), places, side="right"), return_index=True)
    weights = np.zeros(len(tokens), np.float32)
    weights[places[first]] = 1.0
    return {
        "inputs": lower[tokens],
        "capital_targets": is_upper[tokens].astype(np.int32),
        "capital_weights": weights,
    }


CAPITALISATION = Objective(
    name="capitalisation",
    version=1,
    attention="bidirectional",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n},
    options=OPTIONS,
    ranges={"capital_coefficient": (0.0, 1e6)},
    heads=lambda options: (Head("capital", "tokens", 2, options["capital_coefficient"]),),
)

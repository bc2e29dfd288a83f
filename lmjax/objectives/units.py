"""Split a row of ids into sentences and words, for any tokenizer.

A sentence ends after . ! or ? (and closing quotes and brackets) before white space, at a blank line, and at a special
id. A word is a run of bytes that are not white space. White space and special ids belong to the unit after them, or at
the end of a row to the unit before. If a unit ends inside a token, the token belongs to that unit. The rule does not
handle abbreviations ("Mr. Smith" is two sentences) or languages without spaces; text without white space, such as that
of synthetic sources, is one sentence and one word.
"""

import itertools
import re

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.base import Example, Spec

_CLOSING = rb"""(?:["')\]}]|\xe2\x80[\x99\x9d]|\xc2\xbb)*"""  # the last three: right quotation marks and guillemet
_SENTENCE_END = re.compile(rb"[.!?]" + _CLOSING + rb"(?=\s)|\S(?=[^\S\n]*\n[^\S\n]*\n)")
_WORD_END = re.compile(rb"\S(?=\s)")


def sentences(tokens: np.ndarray, spec: Spec) -> np.ndarray:
    """Returns the boundaries of sentences: int64, 0 = b[0] < b[1] < ... < b[-1] = len(tokens).

    Sentence i is tokens[b[i] : b[i + 1]]. The first and the last sentence may be incomplete.

    Args:
        tokens: [n] integer ids.
        spec: a spec with a tokenizer; see `Objective.spec`.

    Raises:
        InputError: the spec has no tokenizer.

    Example (bytes): 'It rains. "Why?" Go' -> [0, 9, 16, 19], the sentences 'It rains.', ' "Why?"', ' Go'
    """
    return _boundaries(_SENTENCE_END, tokens, spec)


def words(tokens: np.ndarray, spec: Spec) -> np.ndarray:
    """Returns the boundaries of words, as `sentences` does for sentences.

    Example (bytes): "It rains. Go" -> [0, 2, 9, 12], the words "It", " rains.", " Go"
    """
    return _boundaries(_WORD_END, tokens, spec)


def _boundaries(end: re.Pattern, tokens: np.ndarray, spec: Spec) -> np.ndarray:
    if spec.tokenizer is None:
        raise InputError(
            "sentences and words need the text of each id: expected a Spec with a tokenizer, got None; make it by "
            "Objective.spec(tokenizer, options)"
        )
    table = spec.tokenizer.token_bytes
    pieces = [table[token] or b"\n\n" for token in tokens.tolist()]
    text = b"".join(pieces)
    bytes_before = np.cumsum([0, *map(len, pieces)])
    ends = [found.end() for found in end.finditer(text, 0, len(text.rstrip()))]
    return np.unique([0, *np.searchsorted(bytes_before, ends), len(pieces)])


def whole(tokens: np.ndarray, spec: Spec, least: int) -> np.ndarray:
    """Returns the boundaries of all sentences but the first and the last, which may be incomplete.

    If there are fewer than `least` such sentences, returns the boundaries of words in the same way; if there are too
    few words, those of all tokens. So every text has units, and no unit is incomplete, which could reveal a label.

    Example (bytes): "a. B. C d. E" -> [2, 5, 10] for 2 units; [2, 5, 7, 10] for 3; every token for 4
    """
    for find in (sentences, words):
        found = find(tokens, spec)[1:-1]
        if len(found) > least:
            return found
    return np.arange(len(tokens) + 1)


def parts(tokens: np.ndarray, spec: Spec, count: int) -> list[np.ndarray]:
    """Splits the `whole` units of a text into `count` consecutive parts with equally many units, up to rounding.

    Example (bytes): "a. B. C d. E" in 2 parts: " B.", " C d."
    """
    found = whole(tokens, spec, count)
    bounds = found[np.linspace(0, len(found) - 1, count + 1).round().astype(int)]
    return [tokens[a:b] for a, b in itertools.pairwise(bounds)]


def pair(first: np.ndarray, second: np.ndarray, spec: Spec) -> Example:
    """Joins two texts as BERT does: returns inputs and token_types; eos stands for [CLS] and [SEP].

    Example: (5, 6) and (7,), eos 90 -> inputs [90, 5, 6, 90, 7, 90], token_types [0, 0, 0, 0, 1, 1]
    """
    end = [spec.specials.eos]
    return {
        "inputs": np.concatenate([end, first, end, second, end]).astype(np.int32),
        "token_types": np.repeat(np.arange(2, dtype=np.int32), [len(first) + 2, len(second) + 1]),
    }

"""How a text becomes the ids of a row: which ids come before and after it, and where a pair of texts is cut."""

import dataclasses

import numpy as np

from lmjax.errors import InputError
from lmjax.trained import frame as ids_around


@dataclasses.dataclass(frozen=True)
class Frame:
    """The ids around a text.

    If `start` is EOS, it is added only to rows that begin a document, as in training; BOS or [CLS] is added to every
    row. So is `end` ([SEP], or the EOS at the end of an encoder-decoder's source). `target` begins the target of an
    encoder-decoder.

    Example: ours Frame((256,), (), (), False); BERT Frame((101,), (102,), (), True); GPT-2 Frame((50256,), (), (),
        False).
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    target: tuple[int, ...]
    every_row: bool


def frame(trained) -> Frame:
    """Returns the frame of a model's texts, after checking that its tokenizer and the record of its data agree.

    Raises:
        InputError: no tokenizer; a prefix or suffix that differs from the data's.
    """
    tokenizer = trained.tokenizer
    if tokenizer is None:
        raise InputError(f"{trained.run_dir} has no tokenizer, so no text can be scored; import it with its tokenizer")
    recorded = trained.record["data"]["tokenizer"]
    eos = tokenizer.specials.eos
    for name, unnamed in (("prefix", (eos,)), ("suffix", ())):  # of records older than these entries
        expected, got = tuple(recorded.get(name, unnamed)), tuple(getattr(tokenizer, name))
        if expected != got:
            raise InputError(
                f"{trained.run_dir}: expected the tokenizer's {name} to be {expected} as in the record of its data, "
                f"got {got}; use the tokenizer the model was trained with"
            )
    start, end, target = map(tuple, ids_around(trained))
    return Frame(start, end, target, every_row=start != (eos,))


def move_blanks(tokenizer, context: str, continuation: str) -> tuple[str, str]:
    """Returns context and continuation as they are encoded.

    White space at the end of the context moves to the continuation. A prefix name ("<eos>") at its beginning is
    removed, because the frame adds the prefix.

    Example: move_blanks(tokenizer, "a ", "b") = ("a", " b")
    """
    if tokenizer.prefix:
        context = context.removeprefix(tokenizer.decode(tokenizer.prefix))
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def encode_pair(tokenizer, context: str, continuation: str, joint: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ids of a context and of its continuation, by the rule of EleutherAI's harness.

    The texts are those of `move_blanks`. With joint=True the whole text is encoded, and the continuation gets the ids
    after the first n, where n is the number of ids of the context alone. If a merge across the boundary leaves none,
    and for the two sides of an encoder-decoder (joint=False), each part is encoded alone.

    Raises:
        InputError: a continuation without text or ids.

    Example (bytes): encode_pair(tokenizer, "a ", "b") = [97], [32, 98]
    """
    if not continuation:
        raise InputError(f"expected a continuation to score, got an empty text after the context {context[-80:]!r}")
    context, continuation = move_blanks(tokenizer, context, continuation)
    before = tokenizer.encode(context).astype(np.int32) if context else np.zeros(0, np.int32)
    ids = np.zeros(0, np.int32)
    if joint and context:
        ids = tokenizer.encode(context + continuation)[len(before) :].astype(np.int32)
    if not len(ids):
        ids = tokenizer.encode(continuation).astype(np.int32)
    if not len(ids):
        raise InputError(f"the continuation {continuation[:80]!r} has no ids in the tokenizer {tokenizer.name!r}")
    return before, ids


def last(ids: np.ndarray, count: int) -> np.ndarray:
    """Returns the last `count` ids; empty for count <= 0."""
    return ids[len(ids) - count :] if 0 < count < len(ids) else ids[: max(count, 0)]


def array(ids) -> np.ndarray:
    """Returns ids as int32."""
    return np.asarray(ids, np.int32)

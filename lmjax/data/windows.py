"""Index arithmetic: which stretch of a flat token store goes into which row.

P pieces (stretches that become one example each), R rows.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lmjax.errors import InputError

RECORDS = ("parallel", "cells")  # relations of the texts of a record
OPEN_ROWS = 64  # rows that first-fit keeps open; the fullest is closed when one more is needed


@dataclasses.dataclass(frozen=True)
class Even:
    """Rows of one piece each, of n tokens, every `stride` tokens. Row r is [r stride, r stride + n)."""

    count: int
    n: int
    stride: int

    def __len__(self) -> int:
        return self.count

    def pieces(self, row: int) -> tuple[tuple[int, int], ...]:
        """Returns (first token, tokens) of the row's pieces."""
        return ((row * self.stride, self.n),)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Rows of several pieces. Row r holds the pieces first[r] .. first[r + 1] - 1, in this order."""

    starts: np.ndarray  # int64 [P], index of a piece's first token in the store
    lengths: np.ndarray  # int64 [P], its tokens
    first: np.ndarray  # int64 [R + 1]
    numbers: np.ndarray  # int64 [P], the piece's number before it was packed

    def __len__(self) -> int:
        return len(self.first) - 1

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """Returns (first token, tokens) of the row's pieces."""
        place = slice(self.first[row], self.first[row + 1])
        return list(zip(self.starts[place].tolist(), self.lengths[place].tolist(), strict=True))


class Related:
    """Rows of several pieces of a source: a first piece, and others by their relation to it.

    Each document is cut into pieces of about equal length, at most n tokens and without the eos around it; every piece
    is the first of one row. The others are never the beginning of a document, so that no beginning gives away which
    piece is which:
        next   the piece after it
        same   another piece of its document, neither itself nor the next
        other  a piece of another document, as long as the piece before it in the row if there is one
    With "next", a document's last piece begins no row, so all pieces but the beginnings are "next" equally often, as
    they are "other". The pieces of a row, but for the first if another is next to it, are cut off to the shortest of
    them: those of one document are equally long, so lengths would show which of them are.

    Args:
        offsets: int64 [documents + 1], places of the eos tokens, as in a store.
        n: the most tokens of a piece.
        relations: of the other pieces.
        source: name of the source, for errors.

    Raises:
        InputError: no document is long enough, or "other" with a single one.

    Attributes:
        starts: int64 [R], where the first piece of each row begins.
        first: 0 .. R, as in `Packed`.
        tokens, pieces_in_all: of all documents that are used.

    Example: one document, tokens 1 .. 8, n = 3, ("next",): pieces 1-2, 3-5, 6-8; rows (1-2, 3-5), (3-5, 6-8).
    """

    def __init__(self, offsets: np.ndarray, n: int, relations: Sequence[str], source: str):
        self.relations, least = tuple(relations), 4 if "same" in relations else 2
        self._begin, self._size = offsets[:-1] + 1, np.diff(offsets) - 1
        self._count = np.where(self._size >= least, np.maximum(-(-self._size // n), least), 0)
        rows = np.maximum(self._count - ("next" in relations), 0)
        self._document = np.repeat(np.arange(len(rows)), rows)
        self._rank = np.arange(len(self._document)) - np.repeat(np.cumsum(rows) - rows, rows)
        self._later = np.cumsum([0, *np.maximum(self._count - 1, 0)])  # pieces that begin no document, by document
        if "other" in relations:
            document = np.repeat(np.arange(len(rows)), np.diff(self._later))
            lengths = self._length(document, np.arange(len(document)) - self._later[document] + 1)
            self._by_length = np.argsort(lengths, kind="stable")  # numbers of these pieces
            self._lengths = lengths[self._by_length]
        documents = int(np.count_nonzero(self._count))
        if documents < (2 if "other" in relations else 1):
            raise InputError(
                f"source {source!r}: expected at least {2 if 'other' in relations else 1} documents of {least} tokens "
                f"or more in each split, for pieces {self.relations}, got {documents}; give more documents, or raise "
                "data.validation_fraction or evaluation.max_tokens"
            )
        self.starts = self._place(self._document, self._rank)
        self.first = np.arange(len(self.starts) + 1)
        self.tokens = int(self._size[self._count > 0].sum())
        self.pieces_in_all = int(self._count.sum())

    def __len__(self) -> int:
        return len(self.starts)

    def _place(self, document, rank):
        return self._begin[document] + self._size[document] * rank // np.maximum(self._count[document], 1)

    def _length(self, document, rank):
        return self._place(document, rank + 1) - self._place(document, rank)

    def _other(self, document: int, length: int, rng: np.random.Generator) -> tuple[int, int]:
        """(document, rank) of a piece of another document that begins none, of this length if there is one."""
        own = self._later[document : document + 2]
        numbers = self._by_length[slice(*np.searchsorted(self._lengths, (length, length + 1)))]
        low, high = np.searchsorted(numbers, own)
        if high - low == len(numbers):
            numbers, (low, high) = range(self._later[-1]), own
        place = int(rng.integers(len(numbers) - (high - low)))
        number = numbers[place + (high - low) * (place >= low)]
        other = int(np.searchsorted(self._later, number, side="right")) - 1
        return other, int(number - self._later[other]) + 1

    def pieces(self, row: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Returns (first token, tokens) of the row's pieces; rng draws those that are not next."""
        d, rank = int(self._document[row]), int(self._rank[row])
        found = [(d, rank)]
        for relation in self.relations:
            if relation == "next":
                found.append((d, rank + 1))
            elif relation == "same":
                others = [i for i in range(1, int(self._count[d])) if i not in (rank, rank + 1)]
                found.append((d, others[rng.integers(len(others))]))
            else:
                found.append(self._other(d, self._length(*found[-1]), rng))
        places = [(int(self._place(*piece)), int(self._length(*piece))) for piece in found]
        whole = int("next" in self.relations)
        shortest = min(n for _, n in places[whole:])
        return places[:whole] + [(at, min(n, shortest)) for at, n in places[whole:]]


class Records:
    """Rows of the texts of a record: the two sides of a pair, such as a sentence and its translation, or what names the
    columns of a table and the values of a row in turn.

    Args:
        offsets: int64 [records + 1], as in a store.
        eos_places: int64, places of all eos tokens: those around records, and one between the texts of a record.
        n: a side of a pair is cut off after n tokens, a row of a table after n tokens in all.
        relation: parallel | cells.
        source: name of the source, for errors.

    Raises:
        InputError: the documents are no pairs, or no rows; n tokens do not reach the first value of a row.

    Attributes:
        starts, first, tokens: as in `Related`.
        pieces_in_all: sides of all pairs, or rows.
        cut: how many of these are longer than n tokens.

    Example: eos at 0, 3, 5: the sides 1-2 and 4.
    """

    def __init__(self, offsets: np.ndarray, eos_places: np.ndarray, n: int, relation: str, source: str):
        self._texts = np.searchsorted(eos_places, offsets)  # number of each record's first text
        counts, starts, lengths = np.diff(self._texts), eos_places[:-1] + 1, np.diff(eos_places) - 1
        parallel = relation == "parallel"
        if not (np.all(counts == 2) if parallel else np.all((counts > 2) & (counts % 2 == 0))):
            expected, use = (
                ("pairs of texts", "pairs:GLOB or parallel") if parallel else ("rows of tables", "tables:GLOB")
            )
            raise InputError(
                f"source {source!r} holds other documents: expected {expected}, as this objective needs them; use a "
                f"source {use}"
            )
        if parallel:
            self.cut = int(np.count_nonzero(lengths > n))
            lengths = np.minimum(lengths, n)
        else:
            before = np.concatenate([[0], np.cumsum(lengths)[:-1]])
            before -= np.repeat(before[self._texts[:-1]], counts)
            is_value = (np.arange(len(lengths)) - np.repeat(self._texts[:-1], counts)) % 2 == 1
            begins = np.where(is_value & (lengths > 0), before, before.max())  # a value may be empty
            if (most := np.minimum.reduceat(begins, self._texts[:-1]).max()) >= n:
                raise InputError(
                    f"source {source!r}: expected rows of more than {most} tokens, after which the first value begins, "
                    f"got {n}; set data.seq_len higher"
                )
            last = self._texts[1:] - 1
            self.cut = int(np.count_nonzero(before[last] + lengths[last] > n))
            lengths = np.clip(n - before, 0, lengths)
        self._starts, self._lengths = starts, lengths
        self.starts, self.first = starts[self._texts[:-1]], np.arange(len(offsets))
        self.tokens, self.pieces_in_all = int(lengths.sum()), len(lengths) if parallel else len(counts)

    def __len__(self) -> int:
        return len(self.starts)

    def pieces(self, row: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Returns (first token, tokens) of the texts of a record."""
        place = slice(self._texts[row], self._texts[row + 1])
        return list(zip(self._starts[place].tolist(), self._lengths[place].tolist(), strict=True))


def cut(bounds: np.ndarray, n: int, overlap: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts each stretch into pieces of at most n tokens, of which consecutive ones share `overlap`.

    Args:
        bounds: int64 [D + 1]; stretch i is bounds[i] .. bounds[i + 1], both ends included.
        n: tokens per piece, 3 or more (2 where they overlap).
        overlap: 0 or 1.

    Returns:
        starts, lengths: int64 [P]. Pieces have n tokens. The last piece of a stretch takes what is left; if that is a
        single token, the piece before it is one token shorter.

    Example: one stretch of 8 tokens 0 .. 7, n = 4
        overlap 0: [0 1 2 3] [4 5 6 7];  overlap 1: [0 1 2 3] [3 4 5 6] [6 7]
        of 9 tokens, overlap 0: [0 1 2 3] [4 5 6] [7 8]
    """
    if n < 3 - overlap:
        raise InputError(f"rows hold {n} source tokens, expected at least {3 - overlap}; set data.seq_len higher")
    sizes, stride = np.diff(bounds) + 1, n - overlap
    counts = np.maximum(1, -(-(sizes - overlap) // stride))
    last = np.cumsum(counts) - 1
    rank = np.arange(counts.sum()) - np.repeat(last + 1 - counts, counts)
    starts = np.repeat(bounds[:-1], counts) + rank * stride
    lengths = np.full(len(starts), n, np.int64)
    lengths[last] = sizes - (counts - 1) * stride
    lone = last[(lengths[last] == 1) & (counts > 1)]
    starts[lone] -= 1
    lengths[lone] += 1
    lengths[lone - 1] -= 1
    return starts.astype(np.int64), lengths


def whole_windows(tokens: int, n: int, overlap: int) -> int:
    """Returns the number of full windows in a store; a tail of fewer than n - overlap tokens is left out.

    Example: 10 tokens, n = 4, overlap 1 -> 3 windows: 0..3, 3..6, 6..9.
    """
    return max(0, (tokens - overlap) // (n - overlap))


def first_fit(
    starts: np.ndarray,
    lengths: np.ndarray,
    sizes: Callable[[int], Mapping[str, int]],
    room: Mapping[str, int],
    order: np.ndarray,
) -> Packed:
    """Packs pieces into rows: each into the first open row in which all its arrays still fit.

    Args:
        starts, lengths: [P] the pieces.
        sizes: source tokens -> length of each array of a piece's example.
        room: length of each array of a row.
        order: [P] permutation in which pieces are placed.

    Returns:
        Rows in the order in which they were opened.

    Example: pieces of 3, 3, 2 and 1 tokens, one array as long as the piece, room 5 -> rows (3, 2), (3, 1).
    """
    names = sorted(room)
    full = np.asarray([room[name] for name in names])
    table = {n: np.asarray([sizes(n)[name] for name in names]) for n in np.unique(lengths).tolist()}
    least = np.min(list(table.values()), axis=0)
    alone = {n for n, size in table.items() if np.any(full - size < least)}
    row_of = np.zeros(len(starts), np.int64)
    free = np.full((OPEN_ROWS, len(names)), -1)  # what open rows have left; -1: no row yet
    open_rows = [0] * OPEN_ROWS
    rows = 0
    for piece, n in zip(order.tolist(), lengths[order].tolist(), strict=True):
        if n in alone:
            row_of[piece], rows = rows, rows + 1
            continue
        fits = np.all(free >= table[n], axis=1)
        place = int(fits.argmax())
        if not fits[place]:
            place = int(free.sum(axis=1).argmin())  # not used yet, or the fullest, which is closed
            free[place], open_rows[place], rows = full, rows, rows + 1
        free[place] -= table[n]
        row_of[piece] = open_rows[place]
    by_row = order[np.argsort(row_of[order], kind="stable")]
    first = np.searchsorted(row_of[by_row], np.arange(rows + 1))
    return Packed(starts[by_row], lengths[by_row], first, by_row)

"""Index arithmetic: which stretch of a flat token store goes into which row.

P pieces (stretches that become one example each), R rows.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from lmjax.errors import InputError

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

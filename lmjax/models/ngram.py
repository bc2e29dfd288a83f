"""Interpolated modified Kneser-Ney n-gram models of any order: counts -> probabilities -> logits.

Kneser and Ney 1995 (doi:10.1109/ICASSP.1995.479394); the three discounts of Chen and Goodman 1998 (TR-10-98); counting
by sorting, as in Heafield et al. 2013 (ACL P13-2121). With c(h w) the count of token w after context h,

    p(w | h) = max(c(h w) - D, 0) / sum_v c(h v) + backoff(h) p(w | h without its oldest token)

c counts occurrences in the highest order, and distinct tokens to the left of h w in the lower ones, where the beginning
of a window counts as one such token. Single tokens back off to equal probabilities of all ids.

A model is a tree of arrays, `params`: for each order the log probabilities log p(w | h) of the stored n-grams h w, and
their log back-off weights as contexts of the next order. The n-grams of an order are sorted; those that extend row i of
the order below by a token w are the rows first[i] .. first[i + 1] - 1, sorted by w. If h w is not stored, p(w | h) is
backoff(h) times the probability after the shorter context, so probabilities sum to 1 over the vocabulary.

B batch, T time, C cache slots, V vocabulary, K tokens of context, N = B T positions; R n-grams.
"""

import bisect
import pathlib
import tempfile
import weakref
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError

CHUNK = 2**21  # n-grams that are sorted in memory at a time
RUNS = 32  # sorted files that are merged into one
MOST = 2**31 - 1  # n-grams of an order: their rows are int32
FALLBACK = (0.5, 1.0, 1.5)  # discounts where the counts of counts give none, as `lmplz --discount_fallback`

Array = Any  # NumPy or JAX
Params = dict[str, dict[str, Array]]


def contexts(tokens_BC: Array, place_BT: Array, positions_BT: Array, width: int) -> Array:
    """Returns the tokens up to each place, newest first, [B, T, width]; -1 before the segment's beginning.

    Args:
        tokens_BC: ids.
        place_BT: indices into the tokens of a row.
        positions_BT: tokens of the same segment before each place.
        width: K.

    Example: tokens [[5, 6, 7]], all places, width 2 -> [[[5, -1], [6, 5], [7, 6]]]
    """
    xp = jnp if isinstance(tokens_BC, jax.Array) else np
    age_11K = xp.arange(width)[None, None]
    index_BTK = xp.maximum(place_BT[..., None] - age_11K, 0)
    found_BTK = tokens_BC[xp.arange(len(tokens_BC))[:, None, None], index_BTK]
    return xp.where(positions_BT[..., None] >= age_11K, found_BTK, -1)


# -- Counting


class Spilled:
    """An array in a temporary file without a name, which is gone when the process ends, however it ends.

    Args:
        folder: where the file is, None: where temporary files are.
        like: an array of the type of the rows.
    """

    def __init__(self, folder: pathlib.Path | None, like: np.ndarray):
        self.file, self.length = tempfile.TemporaryFile(dir=folder), 0
        self.dtype = np.dtype((like.dtype, like.shape[1:]))
        weakref.finalize(self, self.file.close)

    def append(self, rows: np.ndarray) -> None:
        rows.tofile(self.file)
        self.length += len(rows)

    def __len__(self):
        return self.length

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(self.length)
        self.file.seek(start * self.dtype.itemsize)
        return np.fromfile(self.file, self.dtype, stop - start)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)


class Sorter:
    """Sorts rows and sums the amounts of equal rows, with about CHUNK rows in memory and the others in files.

    Args:
        folder: of the files, as in `Spilled`; there are none for fewer than CHUNK rows.
    """

    def __init__(self, folder: pathlib.Path | None = None):
        self.folder = folder
        self.waiting: list[tuple[np.ndarray, ...]] = []
        self.length = 0  # of waiting
        self.runs: list[tuple[np.ndarray | Spilled, ...]] = []  # sorted distinct rows, and their amounts

    def put(self, rows: np.ndarray, *amounts: np.ndarray) -> None:
        """Takes rows [R, K] of ids, and any number of amounts [R] of each."""
        self.waiting.append((rows, *amounts))
        self.length += len(rows)
        if self.length >= CHUNK:
            self.runs.append(self._spilled([self._sorted()]))
            if len(self.runs) == RUNS:
                self.runs = [self._spilled(_merged(self.runs))]

    def counts(self) -> tuple[np.ndarray | Spilled, ...]:
        """Returns the distinct rows so far, sorted, and the sums of the amounts of each."""
        if self.waiting:
            self.runs.append(self._sorted())
        if len(self.runs) > 1:
            self.runs = [self._spilled(_merged(self.runs))]
        return self.runs[0]

    def _sorted(self):
        waiting, self.waiting, self.length = self.waiting, [], 0
        return distinct(*map(np.concatenate, zip(*waiting, strict=True)))

    def _spilled(self, parts):
        columns = ()
        for part in parts:
            columns = columns or tuple(Spilled(self.folder, column) for column in part)
            for column, rows in zip(columns, part, strict=True):
                column.append(rows)
        return columns


def _merged(runs):
    """Yields sorted runs as one, in parts: of every run the next rows up to one row, at most about CHUNK."""
    total, at = sum(len(rows) for rows, *_ in runs), [0] * len(runs)
    sizes = [-(-CHUNK * len(rows) // total) for rows, *_ in runs]
    while any(i < len(rows) for i, (rows, *_) in zip(at, runs, strict=True)):
        heads = [[column[i : i + n] for column in run] for i, n, run in zip(at, sizes, runs, strict=True)]
        more = [head[0][-1] for i, head, run in zip(at, heads, runs, strict=True) if i + len(head[0]) < len(run[0])]
        last = min(map(tuple, more), default=(np.inf,))
        ends = [bisect.bisect_right(head[0], last, key=tuple) for head in heads]
        parts = [[column[:end] for column in head] for end, head in zip(ends, heads, strict=True)]
        at = [i + end for i, end in zip(at, ends, strict=True)]
        yield distinct(*map(np.concatenate, zip(*parts, strict=True)))


class Counter(Sorter):
    """Counts n-grams of one order in batches: `counts` returns the distinct ones and how often each was seen.

    Args:
        order: tokens of an n-gram.
        vocab_size: V.
        folder: of temporary files, as in `Sorter`.
    """

    def __init__(self, order: int, vocab_size: int, folder: pathlib.Path | None = None):
        super().__init__(folder)
        self.order, self.vocab_size = order, vocab_size

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Counts the predicted tokens of a batch (inputs, targets, weights and optional positions, [B, T] each).

        Each gives a row: `order` - 1 tokens of context, oldest first, and the target; all ids plus 1, and 0 for tokens
        before the beginning of the window.
        """
        inputs_BT = batch["inputs"]
        place_BT = np.broadcast_to(np.arange(inputs_BT.shape[1]), inputs_BT.shape)
        context_BTK = contexts(inputs_BT, place_BT, batch.get("positions", place_BT), self.order - 1)
        rows = np.concatenate([context_BTK[..., ::-1], batch["targets"][..., None]], axis=-1)[batch["weights"] > 0]
        self.put((rows + 1).astype(np.min_scalar_type(self.vocab_size)), np.ones(len(rows), np.int64))


def distinct(rows: np.ndarray, *amounts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the distinct rows, sorted by their columns from left to right, and the sums of the amounts of each.

    Example: rows [[2, 1], [1, 3], [2, 1]], amounts [1, 1, 1] -> [[1, 3], [2, 1]], [1, 2]
    """
    bits = max(int(rows.max()).bit_length(), 1)
    words = []  # as many columns as fit into 64 bits each
    for columns in np.split(rows.T, range(64 // bits, rows.shape[1], 64 // bits)):
        word = columns[0].astype(np.uint64)
        for column in columns[1:]:
            word = (word << np.uint64(bits)) | column.astype(np.uint64)
        words.append(word)
    order = np.lexsort(words[::-1])
    new = np.logical_or.reduce([np.diff(word[order]) != 0 for word in words])
    starts = np.flatnonzero(np.concatenate([[True], new]))
    return rows[order[starts]], *(np.add.reduceat(amount[order], starts) for amount in amounts)


# -- Probabilities


def discounts(counts: np.ndarray, times: np.ndarray | None = None) -> tuple[np.ndarray, bool]:
    """Returns (0, D1, D2, D3+), the discounts of counts 0, 1, 2 and 3 or more, and whether they are `FALLBACK`.

    With n_i the number of n-grams of count i and Y = n1 / (n1 + 2 n2): D_i = i - (i + 1) Y n_(i+1) / n_i. They are
    replaced by FALLBACK if n1 .. n4 are not all above 0, or a D_i is not in (0, i].

    Args:
        counts: of n-grams.
        times: how many n-grams have each of the counts, default 1.

    Example: n1 .. n4 = 10, 5, 3, 2: Y = 0.5, D = 1 - 2/4, 2 - 9/10, 3 - 4/3 = 0.5, 1.1, 1.6667
    """
    n = np.bincount(np.minimum(counts, 5), times, minlength=6)[1:5].astype(np.float64)
    if n.all():
        i = np.arange(1, 4)
        found = i - (i + 1) * n[0] / (n[0] + 2 * n[1]) * n[1:] / n[:3]
        if np.all((found > 0) & (found <= i)):
            return np.asarray([0.0, *found]), False
    return np.asarray([0.0, *FALLBACK]), True


def estimate(
    rows: np.ndarray | Spilled,
    counts: np.ndarray | Spilled,
    vocab_size: int,
    min_count: int = 1,
    dtype: np.dtype | type = np.float64,
    folder: pathlib.Path | None = None,
) -> tuple[Params, list[dict[str, Any]]]:
    """Returns the model of counted n-grams, computed in float64, and facts about each order.

    Memory: with float32, the tables take 8 bytes per stored parameter, the estimate at most 20, and about 200 CHUNK.

    Args:
        rows, counts: from `Counter.counts`.
        vocab_size: V.
        min_count: n-grams of two or more tokens that occur less often are left out; their counts go to the back-off
            weight of their context, so probabilities still sum to 1.
        dtype: of the log probabilities and log back-off weights.
        folder: of temporary files, as in `Sorter`.

    Returns:
        params, and for each order {"order", "ngrams" (stored), "discounts": [D1, D2, D3+], "fallback"}.

    Raises:
        InputError: min_count leaves no n-gram of an order; an order has 2**31 n-grams or more.
    """
    levels = [(rows, counts, counts)]  # from the highest order down: n-grams, their c, and how often they occur
    for _ in range(rows[:1].shape[1] - 1):
        sorter = Sorter(folder)
        for i in range(0, len(levels[-1][0]), CHUNK):
            part, _, seen = (column[i : i + CHUNK] for column in levels[-1])
            sorter.put(part[:, 1:], np.ones(len(part), np.int64), seen)
        levels.append(sorter.counts())
    ((ids, counted, _),) = _contexts_of(levels.pop(), vocab_size)
    count_V = np.zeros(vocab_size, np.int64)
    count_V[ids[:, 0]] = counted
    D, fallback = discounts(count_V)
    taken_V, total = D[np.minimum(count_V, 3)], count_V.sum()
    p = (count_V - taken_V) / total + taken_V.sum() / total / vocab_size  # of the stored n-grams of one order
    params, tree = {"order_1": {}}, []
    facts = [{"order": 1, "ngrams": vocab_size, "discounts": D[1:].tolist(), "fallback": fallback}]
    while levels:
        order, level = len(tree) + 2, levels.pop()
        n = sum(np.bincount(np.minimum(c, 5), minlength=6) for _, c, _ in _contexts_of(level, vocab_size))
        D, fallback = discounts(np.arange(6), n)
        keys, longer, backoff = _extended(p, tree, level, D, vocab_size, min_count)
        if not len(keys):
            raise InputError(
                f"model.ngram_min_count {min_count}: no n-gram of {order} tokens occurs so often; set it or "
                "model.ngram_order lower, or count more text"
            )
        if len(keys) > MOST:
            raise InputError(
                f"n-grams of {order} tokens: expected at most {MOST:,}, got {len(keys):,}; set model.ngram_min_count "
                "higher, or model.ngram_order lower"
            )
        params[f"order_{order - 1}"] |= {"log_prob": _log(p, dtype), "log_backoff": _log(backoff, dtype)}
        params[f"order_{order}"] = {}
        p = longer
        del longer, backoff
        tree.append(keys)
        facts.append({"order": order, "ngrams": len(keys), "discounts": D[1:].tolist(), "fallback": fallback})
    params[f"order_{len(facts)}"]["log_prob"] = _log(p, dtype)
    del p
    while tree:
        keys, table, parents = tree.pop(), params[f"order_{len(tree) + 2}"], facts[len(tree)]["ngrams"]
        table["first"] = np.empty(parents + 1, np.int32)
        for i in range(0, parents + 1, CHUNK):
            some = np.arange(i, min(i + CHUNK, parents + 1))
            table["first"][some] = np.searchsorted(keys, some * vocab_size)
        table["word"] = np.remainder(keys, vocab_size, out=keys).astype(np.int32)
    return params, facts


def _extended(shorter, tree, level, D, vocab_size, min_count):
    """Returns the keys and probabilities of an order's n-grams, and the back-off weights of the n-grams they extend.

    Args:
        shorter: probabilities of the order below.
        tree: as in `_rows_of`.
        level: the distinct n-grams, c and how often they occur, as in `estimate`.
        D: from `discounts`.
    """
    keys, p, backoff, end = np.empty(len(level[0]), np.int64), np.empty(len(level[0])), np.ones(len(shorter)), 0
    for ids, counted, seen in _contexts_of(level, vocab_size):
        parent = _rows_of(tree, vocab_size, ids[:, :-1])
        found = parent >= 0  # the others are rarer still
        if not found.any():
            continue
        ids, counted, seen, parent = (x[found] for x in (ids, counted, seen, parent))
        low, kept, taken = parent[0], seen >= min_count, D[np.minimum(counted, 3)]
        total = np.bincount(parent - low, counted)
        left = np.bincount(parent - low, np.where(kept, taken, counted))
        np.divide(left, total, out=backoff[low : parent[-1] + 1], where=total > 0)
        ids, parent, part = ids[kept], parent[kept], ((counted - taken) / np.maximum(total[parent - low], 1))[kept]
        begin, end = end, end + len(ids)
        keys[begin:end] = parent * vocab_size + ids[:, -1]
        p[begin:end] = part + backoff[parent] * shorter[_rows_of(tree, vocab_size, ids[:, 1:])]
    return keys[:end], p[:end], backoff


def _contexts_of(level, vocab_size):
    """Yields the n-grams of an order that have no token before the window, ids [R, K], and their amounts, in parts of
    about CHUNK. All n-grams with the same context are in one part: at most V."""
    begin, size = 0, max(CHUNK, vocab_size + 1)
    while begin < len(level[0]):
        rows, *amounts = (column[begin : begin + size] for column in level)
        end = len(rows)
        if begin + end < len(level[0]):
            end = bisect.bisect_left(rows, tuple(rows[-1, :-1]), key=lambda row: tuple(row[:-1]))
        begin += end
        whole = rows[:end, 0] > 0
        yield rows[:end][whole].astype(np.int64) - 1, *(amount[:end][whole] for amount in amounts)


def _log(x, dtype):
    return np.log(x, out=x).astype(dtype, copy=False)


def _rows_of(tree: list[np.ndarray], vocab_size: int, ids: np.ndarray) -> np.ndarray:
    """The rows of n-grams among those of their order, -1 if not stored. tree: sorted (row of the context) V + token of
    the orders from 2 on."""
    row = ids[:, 0]
    for keys, word in zip(tree, ids.T[1:], strict=False):
        wanted = row * vocab_size + word
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        row = np.where((row >= 0) & (keys[at] == wanted), at, -1)
    return row


def stored(params: Params) -> int:
    """Returns the number of parameters: log probabilities and log back-off weights; not the ids and pointers."""
    return sum(len(table[name]) for table in params.values() for name in ("log_prob", "log_backoff") if name in table)


def most_stored(order: int, vocab_size: int, tokens: int) -> int:
    """Returns the largest number of parameters possible: every predicted token ends n-grams not seen before.

    Example: order 2, 10 ids, 50 tokens: 10 probabilities, 10 back-off weights, 50 probabilities of pairs = 70.
    """
    ngrams = [vocab_size] + [min(vocab_size**k, tokens) for k in range(2, order + 1)]
    return 2 * sum(ngrams) - ngrams[-1]


# -- The model


class NGram(nn.Module):
    """Log probabilities of the next token, from `params`, which counting makes; `init` makes none.

    Attributes:
        config: the resolved model section.
        cache_len: as in `Decoder`; the cache holds the tokens read.
    """

    attention = ("causal",)
    packing = True
    config: FrozenConfigDict
    cache_len: int = 0

    @staticmethod
    def flops(config: Mapping, lengths: Mapping[str, int]) -> dict[str, int]:
        """Returns the counts of one row: each predicted token counts once in each order."""
        return {"counts": config["ngram_order"] * lengths["inputs"]}

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True) -> jax.Array:
        """Args: batch with inputs [B, T] and optional positions, logits_at. Returns: logits as in `Decoder`."""
        rows_NK, shape_BT = self._contexts(batch)
        table = self.variables["params"]
        logits_NV = jnp.broadcast_to(table["order_1"]["log_prob"], (len(rows_NK), self.config.vocab_size))
        for k in range(rows_NK.shape[1]):
            row_N, longer = rows_NK[:, k], table[f"order_{k + 2}"]
            logits_NV += jnp.where(row_N < 0, 0.0, table[f"order_{k + 1}"]["log_backoff"][row_N])[:, None]
            logits_NV = _overwrite(logits_NV, *_extent(longer["first"], row_N), longer["word"], longer["log_prob"])
        return logits_NV.reshape(*shape_BT, -1)

    @nn.compact
    def nats(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Returns -log p(target), [B, T], without the probabilities of the other tokens."""
        rows_NK, shape_BT = self._contexts(batch)
        table, target_N = self.variables["params"], batch["targets"].reshape(-1)
        log_p_N = table["order_1"]["log_prob"][target_N]
        for k in range(rows_NK.shape[1]):
            row_N, longer = rows_NK[:, k], table[f"order_{k + 2}"]
            found_N = _find(longer, row_N, target_N)
            log_p_N += jnp.where(row_N < 0, 0.0, table[f"order_{k + 1}"]["log_backoff"][row_N])
            log_p_N = jnp.where(found_N < 0, log_p_N, longer["log_prob"][found_N])
        return -log_p_N.reshape(shape_BT)

    def _contexts(self, batch) -> tuple[jax.Array, tuple[int, ...]]:
        """(rows [N, K] of the contexts of 1 .. K tokens, -1: not stored; the shape of the positions)."""
        if "params" not in self.variables:
            raise InputError(
                "an n-gram model has no initial parameters: they are counted, not trained; use lmjax train"
            )
        tokens_BC, width = batch["inputs"], self.config.ngram_order - 1
        place_BT = jnp.broadcast_to(jnp.arange(tokens_BC.shape[1]), tokens_BC.shape)
        positions_BT = batch.get("positions", place_BT)
        if self.cache_len:
            B = len(tokens_BC)
            cache = self.variable("cache", "tokens", jnp.zeros, (B, self.cache_len), tokens_BC.dtype)
            tokens_BC = cache.value = cache.value.at[jnp.arange(B)[:, None], positions_BT].set(tokens_BC)
            place_BT = positions_BT
        if (at_B := batch.get("logits_at")) is not None:
            place_BT, positions_BT = (jnp.take_along_axis(x, at_B[:, None], axis=1) for x in (place_BT, positions_BT))
        word_NK = contexts(tokens_BC, place_BT, positions_BT, width).reshape(place_BT.size, width)
        table, rows = self.variables["params"], []
        for k in range(width):  # the k + 1 newest tokens, oldest first
            row_N = word_NK[:, k]
            for age in range(k - 1, -1, -1):
                row_N = _find(table[f"order_{k - age + 1}"], row_N, word_NK[:, age])
            rows.append(row_N)
        return jnp.stack(rows, axis=1) if rows else jnp.zeros((len(word_NK), 0), jnp.int32), place_BT.shape


def _extent(first: jax.Array, row_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(first row, number of rows) of the n-grams that extend these; none for row -1."""
    begin_N = first[row_N]
    return begin_N, jnp.where(row_N < 0, 0, first[row_N + 1] - begin_N)


def _find(table: dict[str, jax.Array], row_N: jax.Array, word_N: jax.Array) -> jax.Array:
    """The rows [N] of the n-grams that extend others by a token, -1 if not stored: a binary search."""
    words = table["word"]
    begin_N, count_N = _extent(table["first"], row_N)

    def halve(_, bounds):
        low_N, high_N = bounds
        middle_N = low_N + (high_N - low_N) // 2  # their sum can exceed int32
        right_N = (low_N < high_N) & (words[middle_N] < word_N)
        return jnp.where(right_N, middle_N + 1, low_N), jnp.where(right_N, high_N, middle_N)

    end_N = begin_N + count_N
    low_N, _ = jax.lax.fori_loop(0, max(len(words), 1).bit_length(), halve, (begin_N, end_N))
    return jnp.where((low_N < end_N) & (words[low_N] == word_N), low_N, -1)


def _overwrite(logits_NV, begin_N, count_N, words, log_probs):
    """The logits with those of n-gram rows begin .. begin + count - 1 in place, one row of each position at a time."""
    set_one = jax.vmap(lambda logits_V, word, log_p: logits_V.at[word].set(log_p, mode="drop"))

    def step(i, logits_NV):
        word_N = jnp.where(i < count_N, words[begin_N + i], logits_NV.shape[1])
        return set_one(logits_NV, word_N, log_probs[begin_N + i])

    return jax.lax.fori_loop(0, jnp.max(count_N), step, logits_NV)

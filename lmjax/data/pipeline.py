"""Batches as a pure function of row indices: which text each row reads, in which order, and its training example.

Row r of step s has the global index s * global_batch_size + r. There is no iterator state: a resumed run asks for the
next indices, and each process asks for the rows it holds. B rows, T tokens of `inputs`, S tokens of `encoder_inputs`.
"""

import bisect
import dataclasses
import fractions
import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lmjax.data import windows
from lmjax.data.dataset import Data, check_vocabulary, prepare
from lmjax.errors import InputError

__all__ = ["Data", "EvaluationRows", "Pipeline", "check_vocabulary", "evaluation_rows", "prepare"]

Batch = dict[str, np.ndarray]
# Random streams; pieces use stream 2 in training and 3 in evaluation.
_TRAINING, EVALUATION, _PIECES, _CIRCLE = 0, 1, 2, 4


# -- Examples


class _Examples:
    """Turns pieces of tokens into rows of arrays with an objective."""

    def __init__(self, data: Data, objective, config):
        self.objective = objective
        tokenizer, settings = data.tokenizer, config.data
        self.spec = data.spec(objective, config.objective.options)
        self.options = self.spec.options
        room = {"inputs": settings.seq_len, "encoder_inputs": settings.encoder_seq_len or settings.seq_len}
        self.packed, self.consecutive = settings.mode == "pack", settings.mode == "consecutive"
        self.heads = objective.heads(self.options)
        self.one_label = [head for head in self.heads if head.kind != "tokens"]
        _check_mode(settings, len(data.stores), objective, self.one_label)
        # n source tokens -> {"inputs": length, and "encoder_inputs" in an encoder-decoder}
        self.lengths = functools.cache(lambda n: objective.lengths(n, self.options))
        self._counting = np.arange(max(room.values()), dtype=np.int32)
        self.n = objective.window_length(self.options, *room.values())
        used = self.lengths(self.n)
        self.room = used  # row lengths: a full window just fits; packed rows of several shorter pieces use the same
        self.segments = self.packed or objective.padded  # rows have segment ids in training
        zeros = np.zeros(self.n, tokenizer.dtype)
        zeros = (zeros, *[zeros] * len(objective.pieces)) if objective.pieces else zeros
        trial = objective.make_example(zeros, generators(0, 0)(0), self.spec)
        self._check_fields(trial)
        of_row = {"group", *(name for head in self.one_label for name in (head.targets, head.weights))}
        of_row |= {name for name, kind in objective.extras.items() if kind == "row"}
        self._sides = {name: _side(name) for name in trial if name not in of_row}
        self._of_row = {name: np.shape(trial[name]) for name in trial if name in of_row}
        self._extras = {name: np.asarray(trial[name]) for name in objective.extras}

    def _empty(self, rows: int, segments: bool) -> Batch:
        """Returns rows of padding."""
        fill = dict.fromkeys(("inputs", "targets", "encoder_inputs"), self.spec.specials.pad)
        dtypes = {"prefix": np.bool_, **{head.weights: np.float32 for head in self.heads}}
        dtypes |= {head.targets: np.float32 for head in self.heads if head.kind == "value"}
        dtypes |= {name: array.dtype for name, array in self._extras.items()}
        names = [*self._sides]
        if segments:
            names += [_prefix(side) + name for side in self.room for name in ("segment_ids", "positions")]
        shapes = {name: (rows, self.room[_side(name)]) for name in names}
        shapes |= {name: (*shapes[name], *x.shape[1:]) for name, x in self._extras.items() if name in shapes}
        shapes |= {name: (rows, *shape) for name, shape in self._of_row.items()}
        return {name: np.full(shape, fill.get(name, 0), dtypes.get(name, np.int32)) for name, shape in shapes.items()}

    def batch(self, rows: Sequence[Sequence[tuple[np.ndarray, np.random.Generator]]], segments: bool) -> Batch:
        """Returns the arrays [B, T] and [B, S] of rows, each given by its pieces (tokens, generator).

        Generators are used in order and once each, so all may be the same object.
        """
        batch = self._empty(len(rows), segments)
        for r, pieces in enumerate(rows):
            start = dict.fromkeys(self.room, 0)
            for number, (tokens, rng) in enumerate(pieces, start=1):
                example = self.objective.make_example(tokens, rng, self.spec)
                lengths = self.lengths(self.n if self.objective.pieces else len(tokens))
                if self.objective.padded:
                    lengths = {side: min(len(example[side]), length) for side, length in lengths.items()}
                for name in self._of_row:
                    batch[name][r] = example[name]
                for name, side in self._sides.items():
                    values = example[name]
                    if len(values) != lengths[side]:
                        raise InputError(
                            f"objective {self.objective.name}: make_example of {len(tokens)} tokens gave {name} of "
                            f"length {len(values)}, its `lengths` says {lengths[side]}; make them agree"
                        )
                    batch[name][r, start[side] : start[side] + len(values)] = values
                for side, length in lengths.items():
                    if segments:
                        place = slice(start[side], start[side] + length)
                        batch[_prefix(side) + "segment_ids"][r, place] = number
                        if _prefix(side) + "positions" not in self._sides:
                            batch[_prefix(side) + "positions"][r, place] = self._counting[:length]
                    start[side] += length
        self._check_labels(batch)
        return batch

    def _check_labels(self, batch):
        for head in self.heads:
            if head.classes is None or head.targets not in batch:
                continue
            labels = batch[head.targets]
            if labels.min(initial=0) < 0 or labels.max(initial=0) >= head.classes:
                raise InputError(
                    f"objective {self.objective.name}: head {head.name!r} has {head.classes} classes, expected labels "
                    f"in 0 .. {head.classes - 1}, got {labels.min()} to {labels.max()}; make them agree"
                )

    def _check_fields(self, example):
        expected, optional = self.objective.arrays(self.options)
        if not expected <= set(example) <= expected | optional:
            raise InputError(
                f"objective {self.objective.name}: expected make_example to return {sorted(expected)} and "
                f"possibly {sorted(optional)}, got {sorted(example)}"
            )
        for name, kind in self.objective.extras.items():
            array, tokens = np.asarray(example[name]), kind == "tokens"
            fits = not tokens or array.shape[:1] == example["inputs"].shape
            if array.dtype not in (np.int32, np.float32, np.bool_) or not fits:
                raise InputError(
                    f"objective {self.objective.name}: extra array {name!r}: expected int32, float32 or bool"
                    f"{', and a value for each of the inputs' * tokens}, got {array.dtype} {array.shape}"
                )


def _check_mode(settings, num_sources, objective, one_label):
    """Raises InputError if the sources or the objective are not for data.mode."""
    if settings.mode == "consecutive" and num_sources > 1:
        names = ", ".join(settings.sources)
        raise InputError(f"data.mode consecutive reads one text in order: expected one data.sources, got {names}")
    if settings.mode == "pack" and one_label:
        raise InputError(
            f"objective {objective.name}: its head {one_label[0].name!r} has one label per row, and data.mode 'pack' "
            "puts several examples into a row; set data.mode=concat_and_split"
        )
    if settings.mode != "concat_and_split" and (objective.pieces or objective.groups):
        what = "takes several pieces of text" if objective.pieces else "mixes several kinds of rows"
        raise InputError(f"objective {objective.name} {what}: expected data.mode concat_and_split, got {settings.mode}")


def _side(name: str) -> str:
    return "encoder_inputs" if name.startswith("encoder_") else "inputs"


def _prefix(side: str) -> str:
    return side.removesuffix("inputs")


def generators(seed: int, stream: int) -> Callable[[int, int], np.random.Generator]:
    """Returns (index, piece) -> the generator Philox(key=[seed, index], counter=[0, 0, stream, piece]).

    One generator object is reused with a new state each time, which is ten times faster than creating new ones.
    """
    bits = np.random.Philox(key=[seed, 0])
    generator, state = np.random.Generator(bits), bits.state
    key, counter = state["state"]["key"], state["state"]["counter"]

    def at(index: int, piece: int = 0) -> np.random.Generator:
        key[1] = index
        counter[:] = (0, 0, stream, piece)
        bits.state = state
        return generator

    return at


# -- Order


def _proportions(weights: Sequence[float]) -> list[int]:
    """Returns the smallest integers in the ratio of the weights, e.g. (0.7, 0.2, 0.1) -> [7, 2, 1]."""
    exact = [fractions.Fraction(weight).limit_denominator(1_000_000) for weight in weights]
    scale = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * scale) for share in exact]
    if not all(whole):
        raise InputError(f"data.weights {tuple(weights)}: the smallest is under a millionth of the sum; leave it out")
    divisor = math.gcd(*whole)
    return [share // divisor for share in whole]


class _Interleave:
    """Maps row k to (source, index within that source); every contiguous block of rows keeps the mixture weights.

    Example: proportions 2 and 1 -> (0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1), ...
    """

    def __init__(self, proportions: Sequence[int]):
        self.proportions = tuple(proportions)

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, k: int) -> tuple[int, int]:
        total = sum(self.proportions)
        for source, share in enumerate(self.proportions):
            before, after = -(-k * share // total), -(-(k + 1) * share // total)
            if after > before:
                return source, before
            k, total = k - before, total - share
        raise AssertionError("unreachable: the last source takes every row that is left")


def _order(counts: Sequence[int], proportions: Sequence[int], seed: int):
    """Returns a Grain MapDataset that maps a global row index to a row number, counted over all sources.

    Each source gets a new permutation in every epoch. Seeds are hashed, because Grain uses seed + e in epoch e, so that
    neighbouring seeds would share permutations.
    """
    import grain

    parts, start = [], 0
    for source, count in enumerate(counts):
        name = hashlib.sha256(f"order/{seed}/{source}".encode()).digest()
        part = grain.MapDataset.range(start, start + count)
        parts.append(part.shuffle(seed=int.from_bytes(name[:4], "little")).repeat())
        start += count
    if len(parts) == 1:
        return parts[0]
    return grain.MapDataset.select_from_datasets(parts, _Interleave(proportions))


class _Consecutive:
    """Maps a global row index to a row number, so that row r of a batch continues row r of the batch before.

    The windows of the source form a circle. It is cut, at a place that depends on the seed and the epoch, into one
    stretch of `steps` windows per row of a batch; fewer windows than a batch are left over. An epoch has `steps` steps,
    in which each row reads its stretch from the beginning.

    Example: 7 windows, 2 rows, cut before window 5: the batches (5, 1), (6, 2), (0, 3); 6, 2 and 3 continue.
    """

    def __init__(self, count: int, rows: int, seed: int):
        self.count, self.rows, self.steps = count, rows, count // rows
        self._cut = functools.cache(lambda epoch: int(generators(seed, _CIRCLE)(epoch).integers(count)))

    def __getitem__(self, index: int) -> int:
        step, row = divmod(index, self.rows)
        epoch, turn = divmod(step, self.steps)
        return (self._cut(epoch) + row * self.steps + turn) % self.count

    def continues(self, index: int) -> bool:
        """Returns whether a row continues; those at the start of an epoch or of the text do not."""
        return index // self.rows % self.steps > 0 and self[index] > 0


_PLANS: dict[str, windows.Packed] = {}  # cache of the last few: a plan takes seconds to make, and cells share it


def _packed(starts, lengths, sizes, room, order) -> windows.Packed:
    """`windows.first_fit`, cached."""
    table = {n: dict(sizes(n)) for n in np.unique(lengths).tolist()}
    facts = json.dumps([table, dict(room)], sort_keys=True).encode()
    key = hashlib.sha256(b"".join([starts.tobytes(), lengths.tobytes(), order.tobytes(), facts])).hexdigest()
    if key not in _PLANS:
        if len(_PLANS) >= 4:
            del _PLANS[next(iter(_PLANS))]
        _PLANS[key] = windows.first_fit(starts, lengths, sizes, room, order)
    return _PLANS[key]


def _several(relations, store, tokens, offsets, n) -> windows.Related | windows.Records:
    """Returns the rows of an objective that takes several pieces of text."""
    source, eos, step = store.manifest["source"], store.manifest["specials"]["eos"], 2**24
    if relations[0] in windows.RECORDS:
        places = [at + np.flatnonzero(tokens[at : at + step] == eos) for at in range(0, len(tokens), step)]
        return windows.Records(offsets, np.concatenate(places), n, relations[0], source)
    return windows.Related(offsets, n, relations, source)


# -- Training


class Pipeline:
    """The training rows of prepared data under an objective: `rows(indices)`, and their counts and shapes.

    Args:
        data: from `prepare`.
        objective: lmjax.objectives.Objective.
        config: reads objective.options and data.{mode, seq_len, encoder_seq_len, global_batch_size, unique_tokens,
            max_epochs, seed}.

    Raises:
        InputError: no row fits or can be filled.

    Attributes:
        lengths: {"inputs": T, ["encoder_inputs": S]}, the shape of a row.
        rows_per_epoch: number of rows until the first of the sources has been read once.
        tokens_per_row: mean number of source tokens per row; tokens shared with the next window count once.
        unique_tokens: number of source tokens in all sources.
    """

    def __init__(self, data: Data, objective, config):
        self._examples = _Examples(data, objective, config)
        self.lengths = dict(self._examples.room)
        self.max_epochs, self.seed = config.data.max_epochs, config.data.seed
        self._rows = config.data.global_batch_size
        self._names = [store.manifest["source"] for store in data.stores]
        budget = math.inf if config.data.unique_tokens is None else config.data.unique_tokens
        streams = [
            subset(store.tokens("train"), store.offsets("train"), budget * weight)
            for store, weight in zip(data.stores, data.weights, strict=True)
        ]
        self._tokens = [tokens for tokens, _ in streams]
        self._plans, self._source_tokens = zip(*map(self._plan, data.stores, *zip(*streams, strict=True)), strict=True)
        self._counts = [len(plan) for plan in self._plans]
        self._first = np.cumsum([0, *self._counts]).tolist()
        proportions = _proportions(data.weights)
        self._shares = [share / sum(proportions) for share in proportions]
        # Number of rows in which each token is read once, by source.
        share = objective.pieces_per_row
        self._epoch = [plan.pieces_in_all / share if objective.pieces else len(plan) for plan in self._plans]
        per_row = [tokens / count for tokens, count in zip(self._source_tokens, self._epoch, strict=True)]
        self.tokens_per_row = float(sum(s * t for s, t in zip(self._shares, per_row, strict=True)))
        self.unique_tokens = sum(self._source_tokens)
        self.rows_per_epoch = math.floor(min(c / s for c, s in zip(self._epoch, self._shares, strict=True)))
        self._order = _order(self._counts, proportions, self.seed)
        if self._examples.consecutive:
            self._order = _Consecutive(self._counts[0], self._rows, self.seed)

    def _plan(
        self, store, tokens, offsets
    ) -> tuple[windows.Even | windows.Packed | windows.Related | windows.Records, int]:
        """Returns the rows of a source and the number of source tokens in them."""
        n, overlap, pieces = self._examples.n, self._examples.objective.overlap, self._examples.objective.pieces
        if pieces:
            plan = _several(pieces, store, tokens, offsets, n)
            return plan, plan.tokens
        if self._examples.packed:
            starts, lengths = windows.cut(offsets, n, overlap)
            order = np.random.Generator(np.random.Philox(key=[self.seed, 1])).permutation(len(starts))
            every_document_with_one_eos = len(tokens) - 1
            return _packed(starts, lengths, self._examples.lengths, self.lengths, order), every_document_with_one_eos
        count = windows.whole_windows(len(tokens), n, overlap)
        if self._examples.consecutive:
            if count < 2 * self._rows:
                raise InputError(
                    f"source {store.manifest['source']!r}: expected 2 windows of {n} tokens or more for each of the "
                    f"{self._rows} rows of a batch, as data.mode is consecutive, its training split has {count}; set "
                    "data.seq_len or data.global_batch_size lower, or give more text"
                )
            count -= count % self._rows
        if not count:
            raise InputError(
                f"source {store.manifest['source']!r}: its training split has {len(tokens)} tokens, one row "
                f"takes {n}; set data.seq_len lower or data.unique_tokens higher, or give more text"
            )
        return windows.Even(count, n, n - overlap), count * (n - overlap)

    def rows(self, indices: Iterable[int]) -> Batch:
        """Returns the rows of these global indices; the same index always gives the same row.

        Args:
            indices: row r of step s has the index s * global_batch_size + r.

        Returns:
            inputs, targets int32 [B, T], weights float32 [B, T]; if the objective has them, prefix bool [B, T],
            encoder_inputs int32 [B, S] and the arrays of other heads. Packed or padded rows also have segment_ids and
            positions int32 [B, T] (and encoder_... [B, S]): the pieces of a row are numbered 1, 2, ..., 0 is padding,
            and positions restart from 0 in each piece. With data.mode consecutive, continues bool [B]: whether the row
            continues that of the previous step.
        """
        random, indices = (generators(self.seed, _TRAINING), generators(self.seed, _PIECES)), list(map(int, indices))
        batch = self._examples.batch([self._row(i, *random) for i in indices], self._examples.segments)
        if isinstance(self._order, _Consecutive):
            batch["continues"] = np.array([self._order.continues(i) for i in indices], bool)
        return batch

    def _row(self, index, random, draws):
        """Yields the (tokens, generator) pairs of a row; the shared generator is set when a pair is reached."""
        row = self._order[index]
        source = bisect.bisect_right(self._first, row) - 1
        tokens = self._tokens[source]
        plan, row = self._plans[source], row - self._first[source]
        if isinstance(plan, (windows.Related, windows.Records)):
            pieces = tuple(tokens[at : at + n] for at, n in plan.pieces(row, draws(index)))
            yield pieces, random(index)
        else:
            for piece, (at, n) in enumerate(plan.pieces(row)):
                yield tokens[at : at + n], random(index, piece)

    def _epochs(self, total_rows: int) -> list[float]:
        return [total_rows * share / count for share, count in zip(self._shares, self._epoch, strict=True)]

    def epochs(self, total_rows: int) -> float:
        """Returns the number of epochs over the most repeated source after `total_rows` rows."""
        return max(self._epochs(total_rows))

    def unique_tokens_seen(self, total_rows: int) -> int:
        """Returns the number of distinct source tokens in the first `total_rows` rows."""
        facts = zip(self._epochs(total_rows), self._source_tokens, strict=True)
        return round(sum(min(epochs, 1.0) * tokens for epochs, tokens in facts))

    def check_labels(self, most: int = 1024) -> None:
        """Raises InputError if a head of the objective has no label in the first `most` rows."""
        heads, at = {head.weights: head.name for head in self._examples.heads}, 0
        while at < most and heads:
            rows = self.rows(range(at, at + 16))
            heads, at = {key: name for key, name in heads.items() if key in rows and not rows[key].any()}, at + 16
        if heads:
            raise InputError(
                f"objective {self._examples.objective.name}: its heads {sorted(heads.values())} have no label in the "
                f"first {most} rows of {', '.join(self._names)}; set data.sources to text that has what they predict"
            )

    def cut_off(self) -> list[str]:
        """Returns a sentence for each source of pairs or tables that has texts longer than a row."""
        plans = [(name, plan) for name, plan in zip(self._names, self._plans, strict=True)]
        return [
            f"source {name!r}: {plan.cut} of {plan.pieces_in_all} training texts (sides of pairs, rows of tables) are "
            "longer than a row and cut off; set data.seq_len higher to keep them whole"
            for name, plan in plans
            if isinstance(plan, windows.Records) and plan.cut
        ]

    def check_epochs(self, total_rows: int) -> None:
        """Raises InputError if `total_rows` rows need more epochs over a source than data.max_epochs allows."""
        facts = zip(self._names, self._epochs(total_rows), self._epoch, self._source_tokens, strict=True)
        for name, epochs, count, tokens in facts:
            if epochs > self.max_epochs * (1 + 1e-9):
                raise InputError(
                    f"too little data: {total_rows} rows are {epochs:.2f} epochs over the training split of "
                    f"{name!r} ({tokens} tokens, {count:.0f} rows), data.max_epochs allows {self.max_epochs:g}; "
                    f"set data.max_epochs={math.ceil(epochs)}, train on fewer tokens, or give more text"
                )


# -- Evaluation


def chosen_documents(offsets: np.ndarray, budget: float) -> np.ndarray:
    """Returns the indices of evenly spread documents of at most `budget` tokens in total (at least one document).

    A larger budget adds documents to those of a smaller one.
    """
    order = _ranked(len(offsets) - 1)
    taken = np.cumsum(np.diff(offsets)[order])
    return np.sort(order[: max(1, int(np.searchsorted(taken, budget, side="right")))])


def subset(tokens: np.ndarray, offsets: np.ndarray, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens, offsets) of `budget` tokens of evenly spread documents, of which one is cut off.

    Args:
        tokens, offsets: of a split, as in a store.
        budget: tokens, the eos at both ends included. The text of a smaller budget is part of that of a larger one.

    Raises:
        InputError: fewer tokens than the budget.

    Example: documents 1 2, 3 and 4 5 6, eos 0, that is tokens 0 1 2 0 3 0 4 5 6 0: budget 6 gives 0 1 2 0 3 0 and
        budget 8 gives 0 1 2 0 3 0 4 0.
    """
    if budget == math.inf:
        return tokens, offsets
    if not 3 <= (budget := int(budget)) <= len(tokens):
        raise InputError(
            f"data.unique_tokens: expected 3 to {len(tokens)} tokens of the training split of a source, got {budget}; "
            "set data.unique_tokens lower, or give more text"
        )
    sizes = np.diff(offsets)
    ranked = _ranked(len(sizes))
    taken = np.cumsum(sizes[ranked])
    last = int(np.searchsorted(taken, budget - 1))
    sizes[ranked[last]] -= taken[last] - (budget - 1)
    sizes[ranked[last + 1 :]] = 0
    parts = [tokens[offsets[i] : offsets[i] + sizes[i]] for i in np.flatnonzero(sizes)]
    return np.concatenate([*parts, tokens[-1:]]), np.cumsum([0, *sizes[sizes > 0]])


def _ranked(count: int) -> np.ndarray:
    """Returns an order of 0 .. count - 1 whose first few are evenly spread, by multiples of the golden ratio."""
    with np.errstate(over="ignore"):
        return np.argsort(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _stream(store, split: str, budget: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns (tokens, offsets, bytes) of the chosen documents, in the layout of a store."""
    tokens, offsets = store.tokens(split), store.offsets(split)
    if budget >= len(tokens):
        return tokens, offsets, store.count(split, "bytes")
    chosen = chosen_documents(offsets, budget)
    parts = [tokens[offsets[i] : offsets[i + 1]] for i in chosen]
    lengths = [len(part) for part in parts]
    return (
        np.concatenate([*parts, tokens[-1:]]),
        np.cumsum([0, *lengths]),
        int(store.document_bytes(split)[chosen].sum()),
    )


def _whole_documents(examples, store, tokens, offsets) -> windows.Packed | windows.Related | windows.Records:
    """Returns rows that read every token of the documents, in order."""
    n, objective = examples.n, examples.objective
    if objective.pieces:
        return _several(objective.pieces, store, tokens, offsets, n)
    starts, lengths = windows.cut(offsets if examples.packed else offsets[[0, -1]], n, objective.overlap)
    if examples.packed:
        return windows.first_fit(starts, lengths, examples.lengths, examples.room, np.arange(len(starts)))
    rows_of_one = np.arange(len(starts) + 1)
    return windows.Packed(starts, lengths, rows_of_one, rows_of_one[:-1])


@dataclasses.dataclass(frozen=True)
class EvaluationRows:
    """A fixed evaluation set: rows 0 .. count - 1, and the source and document of each."""

    count: int
    rows: Callable[[Iterable[int]], Batch]  # row numbers -> arrays; numbers past the end give padding
    source: np.ndarray  # [count] number of each row's source in data.stores
    document: np.ndarray  # [count] number of the document in which a row begins, counted over all sources
    documents: tuple[int, ...]  # documents evaluated, by source
    bytes: tuple[int, ...]  # UTF-8 bytes of their text, by source


def evaluation_rows(
    data: Data, objective, config, split: str = "validation", max_tokens: int | None = None
) -> EvaluationRows:
    """Returns the rows on which a loss is evaluated.

    The evaluation set is a fixed set of whole documents in a fixed order. Its corruption depends only on
    evaluation.seed and the number of the piece. Every token of the documents is included; the last row of a stretch is
    padded with weight 0. Rows have the same arrays as training rows; where a query could see padding (bidirectional,
    encoder_decoder, permutation) they also have segment_ids and positions. With data.mode consecutive, each row
    continues the one before.

    Args:
        data, objective, config: as for `Pipeline`; reads evaluation.{seed, max_tokens} too.
        split: validation | train.
        max_tokens: tokens to cover, divided between the sources by weight; 0: all;
            None: evaluation.max_tokens.
    """
    examples = _Examples(data, objective, config)
    budget = (config.evaluation.max_tokens if max_tokens is None else max_tokens) or 0
    plans, streams, sizes, documents, counts = [], [], [], [], []
    for store, weight in zip(data.stores, data.weights, strict=True):
        tokens, offsets, stored = _stream(store, split, budget * weight if budget else math.inf)
        plan = _whole_documents(examples, store, tokens, offsets)
        begins = plan.starts[plan.first[:-1]]
        documents.append(sum(counts) + np.searchsorted(offsets, begins, side="right") - 1)
        counts.append(len(offsets) - 1)
        plans.append(plan)
        streams.append(tokens)
        sizes.append(stored)
    first = np.cumsum([0, *map(len, plans)]).tolist()
    first_piece = np.cumsum([0, *(len(plan.starts) for plan in plans)]).tolist()
    hidden = objective.attention in ("bidirectional", "encoder_decoder", "permutation") or examples.one_label
    segments = examples.segments or bool(hidden)

    def pieces(row, random, draws):
        source = bisect.bisect_right(first, row) - 1
        number, plan, row = row, plans[source], row - first[source]
        if isinstance(plan, (windows.Related, windows.Records)):
            found = tuple(streams[source][at : at + n] for at, n in plan.pieces(row, draws(number)))
            yield found, random(number)
            return
        numbers = plan.numbers[plan.first[row] : plan.first[row + 1]].tolist()
        for (at, n), number in zip(plan.pieces(row), numbers, strict=True):
            yield streams[source][at : at + n], random(first_piece[source] + number)

    def rows(indices: Iterable[int]) -> Batch:
        random = generators(config.evaluation.seed, EVALUATION), generators(config.evaluation.seed, _PIECES + 1)
        indices = list(map(int, indices))
        batch = examples.batch([pieces(row, *random) if row < first[-1] else () for row in indices], segments)
        return {**batch, "continues": np.array(indices) > 0} if examples.consecutive else batch

    source = np.repeat(np.arange(len(plans)), [len(plan) for plan in plans])
    return EvaluationRows(first[-1], rows, source, np.concatenate(documents), tuple(counts), tuple(sizes))

"""Rows: epochs, mixtures, use of every token, fields, and errors before the first step."""

import collections
import dataclasses
import hashlib

import grain
import numpy as np
import pytest
from conftest import small

from lmjax import objectives
from lmjax.data import pipeline
from lmjax.errors import InputError

MODES = ("concat_and_split", "pack")
FULL_ROWS = ["causal_lm", "masked_lm", "prefix_lm", "span_corruption"]  # one piece of text, no padding


def make(objective="causal_lm", **overrides):
    config = small(**overrides)
    data = pipeline.prepare(config)
    return config, data, pipeline.Pipeline(data, objectives.OBJECTIVES[objective], config)


def store_tokens(data, split="train"):
    return data.stores[0].tokens(split).astype(np.int64)


def row_keys(batch):
    """A hash per row."""
    names = sorted(batch)
    rows = range(len(batch[names[0]]))
    return [hashlib.sha256(b"".join(batch[name][row].tobytes() for name in names)).hexdigest() for row in rows]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("objective", FULL_ROWS)
def test_fields_and_shapes(mode, objective):
    family = "encoder_decoder" if objective == "span_corruption" else "decoder"
    config, data, pipe = make(objective, family=family, data__mode=mode, data__seq_len=40)
    batch = pipe.rows(range(5))
    expected = {"inputs", "targets", "weights"}
    if objective == "prefix_lm":
        expected |= {"prefix"}
    if objective == "span_corruption":
        expected |= {"encoder_inputs"}
    if mode == "pack":
        expected |= {"segment_ids", "positions"}
        if objective == "span_corruption":
            expected |= {"encoder_segment_ids", "encoder_positions"}
    assert set(batch) == expected
    for name, values in batch.items():
        side = "encoder_inputs" if name.startswith("encoder_") else "inputs"
        assert values.shape == (5, pipe.lengths[side]), name
        assert values.dtype == {"weights": np.float32, "prefix": np.bool_}.get(name, np.int32), name
    if mode == "pack":
        assert pipe.lengths["encoder_inputs" if objective == "span_corruption" else "inputs"] == 40
    assert {name: values.shape for name, values in pipe.rows([]).items()} == {
        name: (0, values.shape[1]) for name, values in batch.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_is_a_permutation_and_the_next_one_another(mode):
    _, _, pipe = make(data__mode=mode)
    n = pipe.rows_per_epoch
    epochs = [row_keys(pipe.rows(range(e * n, (e + 1) * n))) for e in range(3)]
    assert collections.Counter(epochs[0]) == collections.Counter(epochs[1]) == collections.Counter(epochs[2])
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2] and epochs[0] != epochs[2]
    assert len(set(epochs[0])) > 0.99 * n


def test_neighbouring_seeds_do_not_share_epochs():
    """Grain's own seeds do: epoch 1 of seed 0 is epoch 0 of seed 1."""
    theirs = [grain.MapDataset.range(50).shuffle(seed=seed).repeat(2) for seed in (0, 1)]
    assert [theirs[0][50 + i] for i in range(50)] == [theirs[1][i] for i in range(50)]
    orders = [pipeline._order([50], [1], seed) for seed in (0, 1)]
    epochs = [[order[e * 50 + i] for i in range(50)] for order in orders for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_the_permutation_is_pinned():
    """Grain's permutation decides the order of every run: another one would be another experiment."""
    order = pipeline._order([1000], [1], 0)
    rows = np.array([order[i] for i in range(2000)], np.int64)
    assert hashlib.sha256(rows.tobytes()).hexdigest()[:16] == "cfd8321b0a1c70f1"


def test_concat_predicts_every_token_once():
    config, data, pipe = make()
    tokens, seq = store_tokens(data), config.data.seq_len
    batch = pipe.rows(range(pipe.rows_per_epoch))
    pairs = collections.Counter(zip(batch["inputs"].ravel().tolist(), batch["targets"].ravel().tolist(), strict=True))
    used = pipe.rows_per_epoch * seq
    assert pairs == collections.Counter(zip(tokens[:used].tolist(), tokens[1 : used + 1].tolist(), strict=True))
    assert 0 <= len(tokens) - 1 - used < seq  # the declared tail
    assert pipe.unique_tokens == used and pipe.tokens_per_row == seq


def test_concat_without_overlap_reads_every_token_once():
    _, data, pipe = make("masked_lm")
    tokens = store_tokens(data)
    rows = pipe.rows(range(pipe.rows_per_epoch))["targets"]
    first = {tuple(row): i for i, row in enumerate(tokens[: rows.size].reshape(rows.shape).tolist())}
    assert sorted(first[tuple(row)] for row in rows.tolist()) == list(range(len(rows)))


def unpack(batch, row):
    """[(inputs, targets, weights, positions)] of the pieces in a packed row."""
    segments = batch["segment_ids"][row]
    return [
        tuple(batch[name][row][segments == s] for name in ("inputs", "targets", "weights", "positions"))
        for s in range(1, segments.max() + 1)
    ]


def test_pack_gives_every_document_back():
    config, data, pipe = make(data__mode="pack", data__seq_len=64)
    tokens, offsets, eos = store_tokens(data), data.stores[0].offsets("train"), data.tokenizer.specials.eos
    batch = pipe.rows(range(pipe.rows_per_epoch))
    assert ((batch["segment_ids"] == 0) == (batch["weights"] == 0)).all()
    assert (batch["inputs"][batch["segment_ids"] == 0] == data.tokenizer.specials.pad).all()
    pieces = collections.Counter()
    for row in range(pipe.rows_per_epoch):
        assert (np.diff(batch["segment_ids"][row][batch["segment_ids"][row] > 0]) >= 0).all()
        for inputs, targets, weights, positions in unpack(batch, row):
            assert positions.tolist() == list(range(len(inputs)))
            assert weights.tolist() == [1.0] * len(inputs)
            assert inputs[1:].tolist() == targets[:-1].tolist()
            assert eos not in inputs[1:]  # only a document's first input and last target are eos
            pieces[(*inputs.tolist(), int(targets[-1]))] += 1
    expected = collections.Counter()
    for low, high in zip(offsets[:-1], offsets[1:], strict=True):
        document = tokens[low : high + 1].tolist()
        expected.update(tuple(document[at : at + 65]) for at in range(0, len(document) - 1, 64))
    assert pieces == expected
    assert batch["weights"].sum() == len(tokens) - 1 == pipe.unique_tokens
    assert pipe.tokens_per_row == pytest.approx((len(tokens) - 1) / pipe.rows_per_epoch)


def test_documents_longer_than_a_row_are_cut_not_dropped(tmp_path):
    (tmp_path / "long.txt").write_text("x" * 5000)
    (tmp_path / "short.txt").write_text("y")
    for mode in MODES:
        config, data, pipe = make(data__sources=(f"files:{tmp_path}/*.txt",), data__mode=mode)
        total = data.stores[0].count("train") + data.stores[0].count("validation")
        assert total == 5000 + 1 + 4
        if data.stores[0].count("train") > 100:
            assert pipe.rows(range(pipe.rows_per_epoch))["weights"].sum() >= 5001 - config.data.seq_len


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1.0, 1.0, 2.0), (1 / 3, 1 / 3, 1 / 3), (0.123, 0.456, 7.0)])
def test_mixture_ratios_are_exact_in_every_stretch(weights):
    sources = ("zipf:30000", "markov2:30000", "copy:30000")
    _, data, pipe = make(data__sources=sources, data__weights=weights)
    counts = np.cumsum(pipe._counts)
    picks = np.searchsorted(counts, [pipe._order[i] for i in range(3000)], side="right")
    shares = np.array(weights) / sum(weights)
    for start, stop in ((0, 3000), (0, 17), (1000, 1100), (2999, 3000)):
        found = np.bincount(picks[start:stop], minlength=3)
        assert np.abs(found - shares * (stop - start)).max() <= 2, (start, stop)
    assert np.allclose(data.weights, shares)


def test_each_source_of_a_mixture_is_permuted_over_its_own_epochs():
    _, _, pipe = make(data__sources=("zipf:20000", "markov2:8000"), data__weights=(0.5, 0.5))
    rows = [pipe._order[i] for i in range(6 * min(pipe._counts))]
    second = [row - pipe._counts[0] for row in rows if row >= pipe._counts[0]]
    n = pipe._counts[1]
    assert sorted(second[:n]) == sorted(second[n : 2 * n]) == list(range(n))
    assert second[:n] != second[n : 2 * n]
    assert pipe.rows_per_epoch == 2 * n
    first = [row for row in rows if row < pipe._counts[0]][: pipe._counts[0]]
    assert len(set(first)) == len(first)


def test_proportions_are_whole_numbers():
    assert pipeline._proportions((0.7, 0.2, 0.1)) == [7, 2, 1]
    picks = [pipeline._Interleave([2, 1])[k] for k in range(6)]
    assert picks == [(0, 0), (0, 1), (1, 0), (0, 2), (0, 3), (1, 1)]
    with pytest.raises(InputError, match="data.weights"):
        pipeline._proportions((1.0, 1e-9))


def test_too_little_data_is_an_error_that_counts_the_epochs():
    config, data, pipe = make()
    pipe.check_epochs(pipe.rows_per_epoch)
    with pytest.raises(InputError, match=r"too little data.*2\.50 epochs.*data\.max_epochs=3"):
        pipe.check_epochs(round(2.5 * pipe.rows_per_epoch))
    _, _, allowed = make(data__max_epochs=3.0)
    allowed.check_epochs(round(2.5 * allowed.rows_per_epoch))
    assert allowed.epochs(2 * allowed.rows_per_epoch) == pytest.approx(2)
    _, _, mixed = make(data__sources=("zipf:60000", "copy:5000"), data__weights=(0.5, 0.5))
    with pytest.raises(InputError, match="copy:5000"):
        mixed.check_epochs(round(1.5 * mixed.rows_per_epoch))


def test_unique_tokens_seen():
    _, _, pipe = make(data__sources=("zipf:40000", "copy:10000"), data__weights=(0.5, 0.5))
    assert pipe.unique_tokens_seen(10) == 160
    assert pipe.unique_tokens_seen(10**9) == pipe.unique_tokens
    assert pipe.unique_tokens_seen(4 * pipe._counts[1]) < pipe.unique_tokens


def test_a_split_shorter_than_a_row(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    with pytest.raises(InputError, match="training split has .* tokens, one row takes 1001"):
        make(data__sources=(f"files:{tmp_path}/*.txt",), data__seq_len=1000)
    with pytest.raises(InputError, match="seq_len"):
        make("span_corruption", family="encoder_decoder", data__seq_len=2, data__encoder_seq_len=2)


def test_vocabulary_smaller_than_the_ids():
    _, data, _ = make()
    needed = data.tokenizer.vocab_size
    pipeline.check_vocabulary(data, needed)
    with pytest.raises(InputError, match=f"at least {needed}.*model.vocab_size|model.vocab_size.*at least {needed}"):
        pipeline.check_vocabulary(data, needed - 1)


def test_a_source_named_twice():
    with pytest.raises(InputError, match="twice"):
        make(data__sources=("zipf:5000", "zipf:5000"), data__weights=(0.5, 0.5))


def test_an_objective_that_contradicts_itself_is_named():
    causal = objectives.OBJECTIVES["causal_lm"]
    config = small()
    data = pipeline.prepare(config)

    def short(tokens, rng, spec):
        return {name: values[:1] for name, values in causal.make_example(tokens, rng, spec).items()}

    def extra(tokens, rng, spec):
        return {**causal.make_example(tokens, rng, spec), "mood": np.zeros(len(tokens) - 1)}

    broken = dataclasses.replace(causal, name="short", make_example=short)
    with pytest.raises(InputError, match="objective short.*length 1"):
        pipeline.Pipeline(data, broken, config).rows([0])
    with pytest.raises(InputError, match="objective extra.*mood"):
        pipeline.Pipeline(data, dataclasses.replace(causal, name="extra", make_example=extra), config)


def test_random_streams_are_those_of_the_contract():
    """One generator set anew for each row draws what a new one with that key would."""
    at = pipeline.generators(7, 1)
    for index, piece in ((0, 0), (3, 2), (10**12, 0), (3, 2)):
        new = np.random.Generator(np.random.Philox(key=[7, index], counter=[0, 0, 1, piece]))
        old = at(index, piece)
        assert old.integers(0, 99, 5, dtype=np.int32).tolist() == new.integers(0, 99, 5, dtype=np.int32).tolist()
        assert old.random(3).tolist() == new.random(3).tolist()


@pytest.mark.parametrize("seq", [32, 128])
def test_packed_rows_of_span_corruption_are_mostly_full(seq):
    """The decoder's side used to be as long as the encoder's, and 77 % padding."""
    _, _, pipe = make("span_corruption", data__mode="pack", data__seq_len=seq, data__sources=("markov2:60000",))
    batch = pipe.rows(range(50))
    assert batch["encoder_inputs"].shape[1] <= seq
    for side in ("segment_ids", "encoder_segment_ids"):
        assert (batch[side] > 0).mean() > 0.8


def test_unique_tokens_are_those_of_nested_parts_of_the_text():
    """Planted by hand: documents 1 2, 3 and 4 5 6; the golden ratio ranks them second, first, third."""
    tokens, offsets = np.array([0, 1, 2, 0, 3, 0, 4, 5, 6, 0]), np.array([0, 3, 5, 9])
    for budget, expected, begins in (
        (3, [0, 3, 0], [0, 2]),
        (6, [0, 1, 2, 0, 3, 0], [0, 3, 5]),
        (8, [0, 1, 2, 0, 3, 0, 4, 0], [0, 3, 5, 7]),
        (10, tokens, offsets),
    ):
        kept, starts = pipeline.subset(tokens, offsets, budget)
        assert kept.tolist() == list(expected) and starts.tolist() == list(begins), budget
    with pytest.raises(InputError, match="data.unique_tokens: expected 3 to 10 tokens"):
        pipeline.subset(tokens, offsets, 11)


@pytest.mark.parametrize("mode", MODES)
def test_epochs_repeat_the_unique_tokens_alone(mode):
    overrides = {"data__mode": mode, "data__seq_len": 16, "data__max_epochs": 9.0}
    _, data, pipe = make(data__unique_tokens=641, **overrides)
    assert pipe.unique_tokens == 640 and pipe.unique_tokens_seen(10 * pipe.rows_per_epoch) == 640
    epoch, again = (pipe.rows(range(i * pipe.rows_per_epoch, (i + 1) * pipe.rows_per_epoch)) for i in (0, 1))
    assert sorted(row_keys(epoch)) == sorted(row_keys(again)) and row_keys(epoch) != row_keys(again)
    text = store_tokens(data).tolist()
    rows = {tuple(row) for row in epoch["inputs"].tolist() if 0 not in row[1:]}
    windows = {tuple(text[i : i + 16]) for i in range(len(text))}
    if mode == "concat_and_split":
        assert pipe.rows_per_epoch == 40 and len(rows & windows) > 0.5 * len(rows)

"""Guards against a wrong n-gram model: discounts, continuation counts, windows, pruning, and a run that differs from
the runs of other models."""

import collections
import functools
import itertools
import math
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

import lmjax
from lmjax import pack, run_record, trainer
from lmjax.data import corpora
from lmjax.data.pipeline import evaluation_rows
from lmjax.errors import InputError
from lmjax.evals import perplexity
from lmjax.hf import architectures
from lmjax.models import ngram
from lmjax.resolve import resolve
from lmjax.sweeps import plan
from tests.conftest import small

V = 5


class Oracle:
    """Interpolated modified Kneser-Ney from its definition: dictionaries, recursion, no arrays.

    Args:
        windows: lists of tokens; the first of each is only context.
        pruned: (order, n-gram) -> whether it is left out, decided by its number of occurrences.
    """

    def __init__(self, windows, order, vocab_size, min_count=1):
        self.order, self.vocab_size, self.min_count = order, vocab_size, min_count
        self.seen, left = collections.Counter(), collections.defaultdict(set)
        for window in windows:
            for end in range(1, len(window)):
                for k in range(1, min(order, end + 1) + 1):
                    gram = tuple(window[end - k + 1 : end + 1])
                    self.seen[gram] += 1
                    left[gram].add(window[end - k] if end >= k else "beginning of the window")
        self.count = {g: n if len(g) == order else len(left[g]) for g, n in self.seen.items()}
        self.discount = {}
        for k in range(1, order + 1):
            n = [sum(1 for g, c in self.count.items() if len(g) == k and c == i) for i in range(5)]
            d = [0.5, 1.0, 1.5]
            if all(n[1:]):
                y = n[1] / (n[1] + 2 * n[2])
                found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
                d = found if all(0 < x <= i + 1 for i, x in enumerate(found)) else d
            self.discount[k] = d

    def p(self, context, word):
        context = tuple(context)[max(0, len(context) - self.order + 1) :] if self.order > 1 else ()
        lower = 1 / self.vocab_size if not context else self.p(context[1:], word)
        grams = [(*context, w) for w in range(self.vocab_size) if (*context, w) in self.count]
        total = sum(self.count[g] for g in grams)
        if not total:
            return lower
        discounted = {
            g: (self.count[g] - self.discount[len(g)][min(self.count[g], 3) - 1]) / total
            for g in grams
            if len(g) == 1 or self.seen[g] >= self.min_count
        }
        return discounted.get((*context, word), 0.0) + (1 - sum(discounted.values())) * lower


def windows_of(seed=0, rows=60, length=9):
    return np.random.default_rng(seed).choice(V, p=[0.45, 0.25, 0.15, 0.1, 0.05], size=(rows, length))


def batch_of(windows, **more):
    shape = windows[:, 1:].shape
    found = {"inputs": windows[:, :-1], "targets": windows[:, 1:], "weights": np.ones(shape, np.float32)}
    return {**{name: x.astype(np.int32) for name, x in found.items()}, **more}


def model_of(windows, order, min_count=1):
    counter = ngram.Counter(order, V)
    for part in np.array_split(windows, 3):
        counter.add(batch_of(part))
    params, facts = ngram.estimate(*counter.counts(), V, min_count)
    return ngram.NGram(FrozenConfigDict({"ngram_order": order, "vocab_size": V})), params, facts


def logits_of(model, params, inputs):
    """In float64: [B, T, V]."""
    with jax.enable_x64(True):
        found = jax.jit(model.apply)({"params": params}, {"inputs": inputs})
        assert found.dtype == np.float64
        return np.asarray(found)


@pytest.mark.parametrize(("order", "min_count"), [(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 3)])
def test_probabilities_are_those_of_the_definition_and_sum_to_one(order, min_count):
    """Over all contexts of up to 4 tokens, seen or not, pruned or not, to float64 rounding."""
    windows = windows_of(rows=25 if order == 4 else 60)
    model, params, facts = model_of(windows, order, min_count)
    oracle = Oracle(windows.tolist(), order, V, min_count)
    inputs = np.asarray(list(itertools.product(range(V), repeat=min(order, 3) + 1)))
    p_BTV = np.exp(logits_of(model, params, inputs))
    np.testing.assert_allclose(p_BTV.sum(-1), 1, rtol=0, atol=1e-14)
    rows = np.random.default_rng(1).choice(len(inputs), min(len(inputs), 80), replace=False)
    expected = [[[oracle.p(inputs[b, : t + 1], w) for w in range(V)] for t in range(inputs.shape[1])] for b in rows]
    np.testing.assert_allclose(p_BTV[rows], expected, rtol=1e-12)
    assert [oracle.discount[k] for k in range(1, order + 1)] == [pytest.approx(f["discounts"]) for f in facts]
    assert order < 3 or not all(f["fallback"] for f in facts)  # the formula was tested too


def test_pruning_stores_fewer_parameters_and_the_count_is_that_of_the_arrays():
    windows = windows_of()
    (_, full, facts), (_, pruned, _) = model_of(windows, 3), model_of(windows, 3, 2)
    kept = [f["ngrams"] for f in facts]  # stored n-grams of orders 1, 2, 3; all but the last also back off
    assert ngram.stored(full) == 2 * kept[0] + 2 * kept[1] + kept[2] > ngram.stored(pruned)
    assert ngram.stored(full) <= ngram.most_stored(3, V, windows[:, 1:].size)
    assert ngram.most_stored(2, 10, 50) == 70
    with pytest.raises(InputError, match="no n-gram of 2 tokens occurs so often"):
        model_of(windows, 3, 10_000)


def test_counting_in_chunks_and_in_packed_rows_changes_nothing(monkeypatch):
    windows = windows_of()
    whole = ngram.Counter(3, V)
    whole.add(batch_of(windows))
    monkeypatch.setattr(ngram, "CHUNK", 40)
    parts, packed = ngram.Counter(3, V), ngram.Counter(3, V)
    most = 0
    for row in windows:
        parts.add(batch_of(row[None]))
        most = max(most, len(parts.runs))
    assert most > 1  # sorted runs waited to be merged
    pairs = windows.reshape(-1, 2, windows.shape[1])  # two windows a row, then padding
    positions = np.tile(np.concatenate([np.arange(8), np.arange(8), [0]]), (len(pairs), 1))
    joined = {name: x.reshape(len(pairs), -1) for name, x in batch_of(windows).items()}
    joined = {name: np.pad(x, ((0, 0), (0, 1))) for name, x in joined.items()}
    packed.add({**joined, "positions": positions})
    for other in (parts, packed):
        for expected, got in zip(whole.counts(), other.counts(), strict=True):
            np.testing.assert_array_equal(expected, got)


# The estimates of KenLM for lines of the King James Bible (`kenlm_lines`), written to train.txt and eval.txt:
#     lmplz -o ORDER [--prune 0 1] < train.txt > ORDER.arpa && query -v summary ORDER.arpa < eval.txt
# of kenlm 0.3.0 (the programs of lm/builder in its source distribution, built with KENLM_MAX_ORDER=7). n-grams with D1,
# D2 and D3+ are lmplz's report, without <s>, which it counts as a unigram; log10 probabilities are those in ORDER.arpa.
KENLM_2 = [(2455, 0.512885, 1.19875, 1.61868), (16074, 0.733559, 1.06944, 1.39396)]
KENLM_3 = [*KENLM_2[:1], (16074, 0.751072, 1.17431, 1.44465), (27939, 0.817475, 1.29252, 1.44906)]
KENLM_5 = [*KENLM_3[:2], (27939, 0.85292, 1.35551, 1.57053), (32278, 0.929422, 1.52494, 1.82304)]
KENLM_5 = [*KENLM_5, (32682, 0.942463, 1.49585, 1.43474)]
KENLM_5_PRUNED = [(n, *d) for n, (_, *d) in zip((2455, 4797, 4372, 2384, 1265), KENLM_5, strict=True)]
KENLM = {
    (2, 1): (
        182.07278066017042,
        KENLM_2,
        {"<unk>": -4.1733465, "<s> in": -1.908591, "and god": -1.7481666, "egypt </s>": -1.9440346},
    ),
    (3, 1): (
        159.6365852221053,
        KENLM_3,
        {"<s> in the": -0.28181544, "and god said": -0.5521479, "in egypt </s>": -1.4180346},
    ),
    (5, 1): (
        156.82543665899593,
        KENLM_5,
        {
            "<s> in the beginning god": -0.7090383,
            "and it came to pass": -0.014332291,
            "the name of the lord": -0.6067984,
        },
    ),
    (5, 2): (
        170.28804931198115,
        KENLM_5_PRUNED,
        {"and it came to pass": -0.014224484, "and god said": -0.6991689, "the name of the lord": -0.598441},
    ),
}


@pytest.fixture(scope="module")
def kenlm_lines():
    """(training lines, 1948 of Genesis, validation lines, of Exodus 1), each a list of words.

    No two training lines begin with the same word: KenLM counts how often an n-gram begins a line, lmjax counts 1.
    """
    words = [re.findall("[a-z]+", text.lower()) for _, text in corpora.read("kjv")[:51]]
    train, begun = [], set()
    for word in itertools.chain(*words[:50]):
        if not train or (len(train[-1]) >= 8 and word not in begun):
            train.append([])
            begun.add(word)
        train[-1].append(word)
    return train, [words[50][i : i + 16] for i in range(0, len(words[50]), 16)]


@pytest.mark.parametrize(("order", "min_count"), KENLM)
def test_probabilities_are_those_of_kenlm(order, min_count, kenlm_lines):
    """To the 6 digits of lmplz's report, and to KenLM's float32: 1e-6 of log10 p, 1e-6 of the perplexity, relative."""
    ids = {word: i for i, word in enumerate(sorted({w for line in kenlm_lines[0] for w in line}), start=2)}
    ids |= {"<unk>": 0, "<s>": 1, "</s>": 1}  # one is only predicted, the other only context

    def batch(lines):
        rows = [[ids.get(word, 0) for word in line] for line in lines]
        size = max(map(len, rows))
        tokens = np.asarray([row + [0] * (size - len(row)) for row in rows], np.int32)
        weights = np.arange(1, size) < np.asarray([len(row) for row in rows])[:, None]
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}

    counter, size = ngram.Counter(order, len(ids) - 1), len(ids) - 1
    train, asked = (batch([["<s>", *line, "</s>"] for line in lines]) for lines in kenlm_lines)
    counter.add(train)
    params, facts = ngram.estimate(*counter.counts(), size, min_count)
    model = ngram.NGram(FrozenConfigDict({"ngram_order": order, "vocab_size": size}))
    perplexity, reported, entries = KENLM[order, min_count]
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        log10 = jax.jit(lambda batch: model.apply({"params": params}, batch, method="nats") / -math.log(10))
        found = np.asarray(log10(asked))[asked["weights"]]
        single = {  # after a token that was not seen
            entry: float(log10(batch([["<unk>", *entry.split()]]))[0, -1]) for entry in entries
        }
    assert [(f["ngrams"], *f["discounts"]) for f in facts] == [pytest.approx(one, rel=5e-6) for one in reported]
    assert 10 ** -found.mean() == pytest.approx(perplexity, rel=1e-6)
    assert single == pytest.approx(entries, abs=1e-6)


@pytest.mark.parametrize(("order", "min_count"), [(1, 1), (2, 1), (4, 1), (4, 2)])
def test_sorting_in_files_changes_no_bit(order, min_count, monkeypatch):
    """Of estimates while and after counting, for parts of a context or less, and for merges of merged files."""
    windows = windows_of(rows=40)

    def estimates():
        counter, found = ngram.Counter(order, V), []
        for part in np.array_split(windows, 3):
            counter.add(batch_of(part[: len(part) // 2]))
            counter.add(batch_of(part[len(part) // 2 :]))
            found.append(ngram.estimate(*counter.counts(), V, min_count))
        return counter, found

    _, expected = estimates()
    for chunk, runs in [(6, 3), (50, 2), (50, 32), (200, 32)]:
        monkeypatch.setattr(ngram, "CHUNK", chunk)
        monkeypatch.setattr(ngram, "RUNS", runs)
        counter, found = estimates()
        assert isinstance(counter.runs[0][0], ngram.Spilled)
        jax.tree.map(np.testing.assert_array_equal, expected, found)
    monkeypatch.setattr(ngram, "MOST", 4)
    if order > 1:
        with pytest.raises(InputError, match="n-grams of 2 tokens: expected at most 4, got"):
            estimates()


def test_memory_is_that_of_the_tables_and_of_a_chunk(monkeypatch):
    monkeypatch.setattr(ngram, "CHUNK", 4000)
    windows = np.random.default_rng(0).integers(0, 300, (400, 501))
    tracemalloc.start()
    try:
        counter = ngram.Counter(4, 300)
        for window in windows:
            counter.add(batch_of(window[None]))
        params, _ = ngram.estimate(*counter.counts(), 300, dtype=np.float32)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    tables = sum(x.nbytes for x in jax.tree.leaves(params))
    assert tables == pytest.approx(8 * ngram.stored(params), rel=0.01)
    assert kept < 1.05 * tables
    assert peak < 1.9 * tables + 300 * ngram.CHUNK


def test_discounts_are_those_of_the_docstring_and_fall_back():
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 7])
    found, fallback = ngram.discounts(counts)
    assert not fallback
    np.testing.assert_allclose(found, [0, 0.5, 1.1, 3 - 4 / 3])
    for few in (np.repeat([1, 2, 3], 9), np.repeat([1, 2, 3, 4], [1, 1, 50, 1])):  # no n4; D2 below 0
        found, fallback = ngram.discounts(few)
        assert fallback and found.tolist() == [0, *ngram.FALLBACK]


def test_many_columns_are_sorted_as_rows():
    """Of several 64-bit words, as n-grams of a large vocabulary are."""
    rows = np.random.default_rng(0).integers(0, 3, (200, 7)) * 20_000
    found, amounts = ngram.distinct(rows, np.ones(200, int))
    expected, counts = np.unique(rows, axis=0, return_counts=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(amounts, counts)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of order 3."""
    resolved = resolve(small("ngram", model__ngram_order=3, evaluation__every_steps=3, checkpoint__per_decade=1))
    run_dir = tmp_path_factory.mktemp("ngram") / "run"
    assert trainer.train(resolved, run_dir, show_progress=False) == trainer.DONE
    return resolved, run_dir


def test_a_run_has_the_loss_of_the_definition_on_the_validation_documents(run):
    """From the training and validation rows of the pipeline; float32 against the oracle's float64."""
    resolved, run_dir = run
    rows = resolved.batches.rows(range(6 * 8))
    windows = np.concatenate([rows["inputs"][:, :1], rows["targets"]], axis=1).tolist()
    oracle = Oracle(windows, 3, resolved.config.model.vocab_size)
    held_out = evaluation_rows(resolved.data, resolved.objective, resolved.config)
    asked = held_out.rows(range(held_out.count))
    known, nats = {}, []
    for b, t in zip(*np.nonzero(asked["weights"]), strict=True):
        key = (tuple(asked["inputs"][b, max(0, t - 1) : t + 1].tolist()), int(asked["targets"][b, t]))
        known[key] = known.get(key) or -math.log(oracle.p(*key))
        nats.append(known[key])
    summary = run_record.read_json(run_dir / "summary.json")
    assert summary["loss"] == pytest.approx(np.mean(nats), rel=1e-6)
    assert summary["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)


def test_the_record_is_that_of_any_run(run):
    resolved, run_dir = run
    summary, record = run_record.read_json(run_dir / "summary.json"), run_record.read_json(run_dir / "config.json")
    n = sum(f["ngrams"] * (1 + (f["order"] < 3)) for f in summary["orders"])
    assert summary["n_total"] == summary["n_non_embedding"] == record["derived"]["n_total"] == n
    assert n <= resolved.derived["n_total"]
    assert summary["tokens"] == 6 * 8 * 16 and summary["flops_exact"] == 3 * summary["tokens"]
    assert summary["family"] == "ngram" and resolved.run_id.startswith("ngram-order3-768tok-")
    same = "loss_standard_error loss_tokens bits_per_byte passed_reference held_out seed wall_seconds code data_digest"
    assert set(same.split()) < set(summary)
    lines = run_record.read_metrics(run_dir / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 3, 6]  # 1 by per_decade
    assert lines[-1]["validation_loss"] == summary["loss"] and lines[0]["n_total"] < summary["n_total"]
    (row,) = run_record.read_runs(run_dir.parent).to_dict("records")
    assert row["status"] == "done" and row["n_total"] == n and row["config.model.ngram_order"] == 3


def test_a_finished_run_is_not_repeated_and_a_stopped_one_starts_again(run, tmp_path, monkeypatch):
    resolved, run_dir = run
    before = (run_dir / "summary.json").stat().st_mtime_ns
    assert trainer.train(resolved, run_dir, show_progress=False) == trainer.DONE
    assert (run_dir / "summary.json").stat().st_mtime_ns == before
    with monkeypatch.context() as patched:
        patched.setattr("lmjax.distributed.StopRequest.at", lambda self, step: step == 2)
        assert trainer.train(resolved, tmp_path / "run", show_progress=False) == trainer.PREEMPTED
    assert run_record.status_of(tmp_path / "run")["status"] == "preempted"
    assert trainer.train(resolved, tmp_path / "run", show_progress=False) == trainer.DONE
    first, second = (run_record.read_json(folder / "summary.json") for folder in (run_dir, tmp_path / "run"))
    assert first["loss"] == second["loss"] and second["attempts"] == 2


def test_a_run_that_sorts_in_files_has_the_same_model_and_leaves_none(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ngram, "CHUNK", 60)
    monkeypatch.setattr(ngram, "RUNS", 3)
    assert trainer.train(run[0], tmp_path / "run", show_progress=False) == trainer.DONE
    first, second = (lmjax.load(folder).params for folder in (run[1], tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    names = [sorted(str(p.relative_to(f)) for p in f.iterdir()) for f in (run[1], tmp_path / "run")]
    assert names[0] == names[1]


def test_a_loaded_model_scores_and_generates(run):
    """Greedy decoding with the cache is the argmax of the full forward pass; nats are those of the logits."""
    model = lmjax.load(run[1])
    loss = perplexity.evaluate(model, bins=0)["loss"]  # in windows within documents
    assert loss == pytest.approx(run_record.read_json(run[1] / "summary.json")["loss"], rel=0.01)
    prompts = [[1, 2, 3], [2, 1, 1]]
    found = model.generate(prompts, max_new_tokens=5)
    ids = np.asarray([[*prompt, *one.ids] for prompt, (one,) in zip(prompts, found, strict=True)])
    batch = {"inputs": jnp.asarray(ids[:, :-1]), "targets": jnp.asarray(ids[:, 1:])}
    logits = np.asarray(jax.jit(model.model.apply)({"params": model.params}, batch))
    np.testing.assert_array_equal(logits.argmax(-1)[:, 2:], ids[:, 3:])
    nats = jax.jit(functools.partial(model.model.apply, method="nats"))({"params": model.params}, batch)
    np.testing.assert_allclose(nats, -np.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0], rtol=1e-6)
    assert len(lmjax.load(run[1], 1).params["order_3"]["word"]) < len(model.params["order_3"]["word"])


def test_a_plan_times_counting_while_packs_and_exports_refuse_it(run):
    found = plan.calibrate(run[0], 0.01)
    assert found["step"] > 0 and found["evaluation"] > 0
    with pytest.raises(InputError, match="--pack 1"):
        pack.check_alike([run[0]])
    with pytest.raises(InputError, match="no Hugging Face architecture"):
        architectures.fit({"family": "ngram"}, {}, None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.ngram_order": 0}, "model.ngram_order: expected an integer in 1 .. 7"),
        ({"model.ngram_order": 8}, "model.ngram_order: expected an integer in 1 .. 7"),
        ({"model.ngram_order": 7, "data.seq_len": 5}, "at most 6, the tokens of a window"),
        ({"objective.name": "prefix_lm"}, "which model.family ngram does not have"),
        ({"duration.steps": 2000, "data.max_epochs": 100.0}, "expected at most one epoch"),
        ({"run.held_out": True}, "only after counting"),
    ],
)
def test_bad_input_is_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        resolve(small("ngram", **{key.replace(".", "__"): value for key, value in overrides.items()}))

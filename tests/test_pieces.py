"""Guards against pieces of text in the wrong relation, and labels that the beginning of a document gives away."""

import dataclasses
import json
import re
import types

import jax
import numpy as np
import pytest

from lmjax import generate, objectives, trainer
from lmjax.data import constructed, pipeline, store
from lmjax.data.tokenizers import Bytes
from lmjax.data.windows import Records, Related
from lmjax.errors import InputError
from lmjax.evals import score
from lmjax.evals.documents import Corpus
from lmjax.objectives import OBJECTIVES
from lmjax.objectives.battery import byte_spec, check_objective
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.compose import mixture, over
from lmjax.objectives.masked_column import MASKED_COLUMN
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.objectives.next_sentence import NEXT_SENTENCE
from lmjax.objectives.prefix_lm import PREFIX_LM
from lmjax.objectives.span_corruption import SPAN_CORRUPTION
from lmjax.objectives.translation import MULTILINGUAL_DENOISING, TRANSLATION
from lmjax.objectives.translation_lm import TRANSLATION_LM
from lmjax.resolve import resolve
from lmjax.sharding import make_mesh
from lmjax.validation import Validation
from tests.conftest import small

BERT = "masked_lm+next_sentence"
DOCUMENTS = {
    **{"data__sources": ("zipf:20000",), "data__seq_len": 32},
    **{"data__validation_fraction": 0.2, "evaluation__max_tokens": 6000},
}


def offsets_of(sizes):
    """Places of the eos tokens of documents with these numbers of tokens."""
    return np.cumsum([0, *(size + 1 for size in sizes)])


def test_the_pieces_are_what_their_relations_say():
    """Inside their documents, without eos; those after the first begin no document; each in turn is first, or next."""
    sizes = np.random.default_rng(0).integers(0, 60, 40)
    offsets = offsets_of(sizes)
    related, rng = Related(offsets, 7, ("next", "same", "other"), "x"), np.random.default_rng(1)

    def document(at):
        return int(np.searchsorted(offsets, at, side="right")) - 1

    seen = []
    for row in range(len(related)):
        pieces = first, following, same, other = related.pieces(row, rng)
        assert sum(first) == following[0]
        assert document(first[0]) == document(following[0]) == document(same[0]) != document(other[0])
        assert same not in (first, following)
        for at, n in pieces:
            assert 1 <= n <= 7 and document(at) == document(at + n - 1)
            assert offsets[document(at)] < at and at + n <= offsets[document(at) + 1]
        assert all(at > offsets[document(at)] + 1 for at, _ in pieces[1:])
        seen += [first]
    starts = [at for at, _ in seen]
    assert starts == related.starts.tolist() and len(set(starts)) == len(starts)
    used = sizes >= 4
    assert related.tokens == sizes[used].sum()
    assert related.pieces_in_all == len(related) + used.sum()  # a document's last piece is first in no row


def test_worked_example():
    related = Related(offsets_of([8]), 3, ("next",), "x")
    assert [related.pieces(row, None) for row in range(2)] == [[(1, 2), (3, 3)], [(3, 3), (6, 3)]]


def test_other_pieces_are_drawn_evenly():
    """5 standard errors of a binomial over the 9 pieces of the other documents that begin none."""
    related, rng = Related(offsets_of([30, 1, 30, 40]), 10, ("other",), "x"), np.random.default_rng(0)
    row = int(np.flatnonzero(related.starts > 34)[0])  # of the third document
    draws = [related.pieces(row, rng)[1] for _ in range(4000)]
    counts = {piece: draws.count(piece) for piece in set(draws)}
    assert set(counts) == {(11, 10), (21, 10), (75, 10), (85, 10), (95, 10)}
    assert all(abs(count - 800) < 5 * np.sqrt(4000 * 0.2 * 0.8) for count in counts.values())


def test_lengths_do_not_show_the_relation():
    """Documents of 4 to 59 tokens. The best guess from the lengths of A and B, learned on the rows before, is right as
    often as chance, within 5 standard errors; pieces of any length gave 0.89."""
    rng, objective = np.random.default_rng(0), NEXT_SENTENCE
    related = Related(offsets_of(rng.integers(4, 60, 300)), 20, objective.pieces, "x")
    seen, right, total = {}, 0, 0
    for row in rng.integers(0, len(related), 6000):
        pieces = [np.zeros(n, int) for _, n in related.pieces(int(row), rng)]
        example = objective.make_example(tuple(pieces), rng, byte_spec(objective))
        label, lengths = int(example["next_targets"]), np.bincount(example["token_types"]).tobytes()
        counts = seen.setdefault(lengths, [0, 0])
        right, total = right + (counts[label] > counts[1 - label]) + 0.5 * (counts[0] == counts[1]), total + 1
        counts[label] += 1
    assert abs(right / total - 0.5) < 5 * 0.5 / np.sqrt(total)


@pytest.mark.parametrize(("sizes", "relations"), [([30], ("other",)), ([1, 1], ("next",)), ([3, 3], ("same",))])
def test_documents_that_have_no_such_pieces_are_refused(sizes, relations):
    with pytest.raises(InputError, match="expected at least . documents of . tokens"):
        Related(offsets_of(sizes), 10, relations, "x")


def test_next_sentence_example():
    spec = byte_spec(NEXT_SENTENCE)
    spec = dataclasses.replace(spec, specials=types.SimpleNamespace(eos=90))
    rng = types.SimpleNamespace(random=lambda: 0.3)
    example = NEXT_SENTENCE.make_example((np.array([5, 6]), np.array([7]), np.array([8, 9])), rng, spec)
    assert example["inputs"].tolist() == [90, 5, 6, 90, 7, 90]
    assert example["token_types"].tolist() == [0, 0, 0, 0, 1, 1]
    assert example["next_targets"] == 1


def made(name=BERT, **overrides):
    config = small("encoder", objective__name=name, **DOCUMENTS, **overrides)
    data, objective = pipeline.prepare(config), objectives.get(name)[0]
    return config, data, objective, pipeline.Pipeline(data, objective, config)


def test_rows_depend_on_seed_and_index_alone_and_hold_what_they_say():
    config, data, objective, pipe = made()
    batch, tokens = pipe.rows(range(200)), data.stores[0].tokens("train").tobytes()
    again = pipe.rows([7, 150, 3])
    assert all(np.array_equal(again[name], batch[name][[7, 150, 3]]) for name in batch)
    labels = batch["next_targets"]
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / np.sqrt(200)
    spec, width = objective.spec(data.tokenizer, {}), data.tokenizer.dtype
    for row in range(30):
        length = int((batch["segment_ids"][row] > 0).sum())
        assert not batch["weights"][row, length:].any() and (batch["positions"][row, :length] == range(length)).all()
        example = {name: batch[name][row, :length] for name in ("inputs", "targets", "weights", "token_types")}
        first, second = objective.reconstruct(example, spec)
        assert (first.astype(width).tobytes() + second.astype(width).tobytes() in tokens) == labels[row]
        assert not np.isin(spec.specials.eos, first) and len(first) + len(second) + 3 == length <= 32
    lengths = (batch["segment_ids"] > 0).sum(1) - 3
    assert lengths.mean() == pytest.approx(pipe.tokens_per_row, rel=0.1)  # D counts both pieces
    assert pipe.rows_per_epoch == pytest.approx(pipe.unique_tokens / pipe.tokens_per_row, abs=1)
    evaluation = pipeline.evaluation_rows(data, objective, config)
    rows = evaluation.rows(range(evaluation.count))
    assert len(np.unique(rows["next_targets"])) == 2 and len(np.unique(evaluation.document)) > 1


def test_a_run_on_pieces_resolves_with_token_types_and_both_heads():
    run = resolve(small("encoder", objective__name=BERT, **DOCUMENTS))
    assert run.config.model.token_types == 2 and run.filled["model.token_types"] == 2
    assert run.metrics == ("lm_loss", "next_accuracy", "next_loss") and [h.name for h in run.heads] == ["lm", "next"]
    with pytest.raises(InputError, match="has 2 token types"):
        resolve(small("encoder", objective__name=BERT, model__token_types=1, **DOCUMENTS))
    with pytest.raises(InputError, match="'next' has one label per row"):
        made("next_sentence", data__mode="pack")


def test_pieces_are_not_packed(monkeypatch):
    def first(tokens, rng, spec):
        return MASKED_LM.make_example(tokens[0], rng, spec)

    joined = dataclasses.replace(MASKED_LM, name="joined", pieces=("next",), padded=True, make_example=first)
    monkeypatch.setitem(OBJECTIVES, "joined", joined)
    assert made("joined")[3].rows([0])["inputs"].shape == (1, 32)
    with pytest.raises(InputError, match="takes several pieces of text"):
        made("joined", data__mode="pack")
    for changes, message in (
        ({"padded": False}, "expected padded=True"),
        ({"pieces": ("nxt",)}, "did you mean 'next'"),
    ):
        with pytest.raises(InputError, match=message):
            dataclasses.replace(joined, **changes)


@pytest.mark.parametrize("pair", [(MASKED_LM, CAUSAL_LM), (CAUSAL_LM, NEXT_SENTENCE), (MASKED_LM, MASKED_LM)])
def test_objectives_that_cannot_be_composed_are_refused(pair):
    with pytest.raises(InputError, match="to keep the length of its input"):
        over(*pair)


def test_battery_of_compositions_and_mixtures():
    assert "reconstruction hold" in check_objective(objectives.get(BERT)[0])
    long = {"mean_span": 12.0, "noise_density": 0.5}
    spans = {"short": (SPAN_CORRUPTION, {}, 1.0), "long": (SPAN_CORRUPTION, long, 3.0)}
    assert "reconstruction, rates hold" in check_objective(mixture("spans", spans))
    both = mixture("both", {"causal": (CAUSAL_LM, {}, 1.0), "prefix": (PREFIX_LM, {}, 1.0)})
    assert both.attention == "prefix" and "reconstruction, rates hold" in check_objective(both)
    with pytest.raises(InputError, match="expected objectives with the LM head alone"):
        mixture("odd", {"causal": (CAUSAL_LM, {}, 1.0), "masked": (MASKED_LM, {}, 1.0)})


def test_a_mixture_draws_its_parts_by_weight_and_reports_the_loss_of_each(monkeypatch):
    """The loss of all predicted tokens is the mean of the parts' losses weighted by their tokens."""
    parts = {"short": (SPAN_CORRUPTION, {}, 1.0), "long": (SPAN_CORRUPTION, {"noise_density": 0.5}, 3.0)}
    monkeypatch.setitem(OBJECTIVES, "spans", mixture("spans", parts))
    run = resolve(small("encoder_decoder", objective__name="spans", model__num_layers=1, model__encoder_layers=1))
    batch = run.batches.rows(range(400))
    assert abs(batch["group"].mean() - 0.75) < 5 * np.sqrt(0.75 * 0.25 / 400)
    predicted = [batch["weights"][batch["group"] == group].sum(1) for group in range(2)]
    assert [len(np.unique(counts)) for counts in predicted] == [1, 1] and predicted[0][0] < predicted[1][0]
    assert ((batch["segment_ids"] > 0).sum(1) == batch["weights"].sum(1)).all()  # the rest of the row is padding
    optimizer = trainer.make_optimizer(run.config.optimizer)
    params = trainer.make_init(run.model, optimizer, run.batches.rows([0]))(jax.random.key(0))["params"]
    validation = Validation(run.data, run.objective, run.config, run.model, make_mesh(run.config.mesh))
    found = validation.evaluate(params)
    rows = validation.set.rows(range(validation.set.count))
    weights = [rows["weights"][rows["group"] == group].sum() for group in range(2)]
    mean = np.average([found["short_loss"], found["long_loss"]], weights=weights)
    assert found["loss"] == pytest.approx(mean, rel=1e-6) and "lm_loss" not in found


def swap(tokens, rng, spec):
    """Causal: one side, eos, the other side, eos; the second side is predicted."""
    first, second = tokens
    row = np.concatenate([first, [spec.specials.eos], second, [spec.specials.eos]]).astype(np.int32)
    weights = np.arange(len(row) - 1) >= len(first)
    return {"inputs": row[:-1], "targets": row[1:], "weights": weights.astype(np.float32)}


SWAP = dataclasses.replace(
    CAUSAL_LM,
    name="swap",
    make_example=swap,
    lengths=lambda n, options: {"inputs": 2 * n + 1},
    pieces=("parallel",),
    pieces_per_row=2,
    padded=True,
    overlap=0,
    full_likelihood=False,
    expected_weight=None,
    reconstruct=None,
)


def written(folder, records):
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return {"data__sources": (f"pairs:{path}",), "data__text_field": "en,de", "data__validation_fraction": 0.3}


def test_pairs_of_a_file_stay_together(tmp_path, monkeypatch):
    """Both sides of every pair are in one row and one split; sides longer than n are cut off, and counted. As a text
    from which items are made, they are lines."""
    monkeypatch.setitem(OBJECTIVES, "swap", SWAP)
    records = [{"en": f"word {i}", "de": f"Wort {i}" + "!" * (i % 20)} for i in range(40)]
    config = small(objective__name="swap", data__seq_len=33, **written(tmp_path, records))
    data = pipeline.prepare(config)
    pipe = pipeline.Pipeline(data, SWAP, config)
    rows, eos = pipe.rows(range(pipe._counts[0])), data.tokenizer.specials.eos
    expected = {(r["en"][:16], r["de"][:16]) for r in records}
    found = set()
    for inputs, segments in zip(rows["inputs"], rows["segment_ids"], strict=True):
        ids = inputs[segments > 0].tolist()
        sides = ids[: ids.index(eos)], ids[ids.index(eos) + 1 :]
        found.add(tuple(bytes(side).decode() for side in sides))
    assert found < expected and len(found) == pipe._counts[0] == data.stores[0].count("train", "documents")
    assert sum(store["bytes"] for store in data.stores[0].manifest["splits"].values()) == sum(
        len(r["en"]) + len(r["de"]) for r in records
    )
    assert pipeline.evaluation_rows(data, SWAP, config).count == 40 - len(found)
    whole = {r["en"]: r["de"] for r in records}
    cut = sum(len(whole[en]) > 16 for en, _ in found)
    [said] = pipe.cut_off()
    assert cut > 3 and f"{cut} of {2 * len(found)} training texts" in said
    plain = pipeline.Pipeline(data, CAUSAL_LM, config)  # any other objective reads them as text
    assert plain.rows([0])["inputs"].shape == (1, 33) and plain.cut_off() == []
    text = Corpus(data, [0]).draw(np.random.default_rng(0), "train")[1]
    assert text in {f"{en}\n{whole[en]}" for en, _ in found}


def test_pairs_without_a_side_are_refused_and_single_documents_are_no_pairs(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "swap", SWAP)
    whole = {"en": "a", "de": "b"}
    for bad, message in (
        ({"en": "a", "de": " "}, "pairs.jsonl:2: expected text in the field 'de'"),
        ({"en": "a"}, "'de'"),
    ):
        stores = len(store.list_stores())
        with pytest.raises(InputError, match=message):
            pipeline.prepare(small(**written(tmp_path, [whole, bad, whole])))
        assert len(store.list_stores()) == stores
    with pytest.raises(InputError, match="two fields in data.text_field.*got 'en'"):
        pipeline.prepare(small(**{**written(tmp_path, [whole]), "data__text_field": "en"}))
    (tmp_path / "both.txt").write_text("one text")
    with pytest.raises(InputError, match="expected jsonl or parquet files and two fields.*got 'both.txt'"):
        pipeline.prepare(small(**{**written(tmp_path, [whole]), "data__sources": (f"pairs:{tmp_path}/both.txt",)}))
    with pytest.raises(InputError, match="'markov2:20000' holds other documents: expected pairs of texts"):
        resolve(small(objective__name="swap"))


# -- Objectives on pairs and tables

SPECIALS = types.SimpleNamespace(eos=90, pad=89, mask=91, sentinels=(80, 81))


def of(objective, pieces, rng=None, **options):
    """The example of these pieces, as lists."""
    spec = dataclasses.replace(byte_spec(objective, options), specials=SPECIALS)
    example = objective.make_example(tuple(map(np.array, pieces)), rng or np.random.default_rng(0), spec)
    return {name: array.tolist() for name, array in example.items()}


def test_worked_examples_on_records():
    joined = of(TRANSLATION_LM, [[5, 6], [7]], mask_rate=0.34, keep_rate=0.0, random_rate=0.0)
    assert joined["targets"] == [90, 5, 6, 90, 7, 90] and joined["inputs"].count(91) == sum(joined["weights"])
    assert joined["token_types"] == [0, 0, 0, 0, 1, 1] and joined["positions"] == [0, 1, 2, 3, 1, 2]
    forward, backward = (of(TRANSLATION, [[5, 6], [7, 8, 9]], reverse_rate=rate) for rate in (0.0, 1.0))
    assert forward["encoder_inputs"] == [90, 5, 6, 90] and backward["encoder_inputs"] == [90, 7, 8, 9, 90]
    assert forward["inputs"] == [81, 7, 8, 9] and backward["inputs"] == [80, 5, 6]
    assert forward["targets"] == [7, 8, 9, 90] and backward["targets"] == [5, 6, 90]
    second = types.SimpleNamespace(choice=lambda columns: columns[1])
    row = of(MASKED_COLUMN, [[5, 6], [7], [8], [9, 10]], second)
    assert row["inputs"] == [5, 6, 7, 8, 91, 91] and row["targets"] == [5, 6, 7, 8, 9, 10]
    assert row["weights"] == [0, 0, 0, 0, 1, 1] and row["token_types"] == [0, 0, 1, 0, 1, 1]
    only = of(MASKED_COLUMN, [[5], [], [8], [9]])  # an empty value is not chosen
    assert only["inputs"] == [5, 8, 91]
    noised = [of(MULTILINGUAL_DENOISING, [[5, 6, 7, 8], [9, 10, 11]], np.random.default_rng(i)) for i in range(20)]
    for example in noised:
        side = example["inputs"][0] - 80
        text = [[5, 6, 7, 8], [9, 10, 11]][side]
        assert example["targets"] == [*text, 90] and example["inputs"][1:] == text
        first, *middle, last = example["encoder_inputs"]
        assert first == last == 90 and set(middle) <= {91, *text} and 91 in middle
    assert {example["inputs"][0] for example in noised} == {80, 81}
    named = [of(MULTILINGUAL_DENOISING, [[5], [9]], np.random.default_rng(i), source_language=True) for i in range(9)]
    sides = {
        example["inputs"][0]: example["encoder_inputs"] for example in named
    }  # <text> </s> <language>, as in mBART
    assert sides.keys() == {80, 81} and all(
        row[-2:] == [90, side] and 90 not in row[:-2] for side, row in sides.items()
    )
    named = [of(TRANSLATION, [[5, 6], [7]], source_language=True, reverse_rate=rate) for rate in (0.0, 1.0)]
    assert [(row["encoder_inputs"], row["inputs"]) for row in named] == [
        ([5, 6, 90, 80], [81, 7]),
        ([7, 90, 81], [80, 5, 6]),
    ]
    check_objective(TRANSLATION, byte_spec(TRANSLATION, {"source_language": True, "reverse_rate": 0.5}))
    with pytest.raises(InputError, match="data.num_sentinels of at least 2, got 1"):
        TRANSLATION.make_example((np.array([1]),) * 2, np.random.default_rng(0), byte_spec(TRANSLATION, sentinels=1))


def test_the_constructed_language_is_a_function_that_can_be_inverted():
    assert constructed.translate("God is light.") == "ub Pam tupqc."
    clauses = [text for _, (text, _) in constructed.pairs([("x", "Thou art; thou'rt he? 12 -- . So be it!  Amen")])]
    assert clauses == ["Thou art;", "thou'rt he?", "So be it!", "Amen"]
    back = str.maketrans(dict(zip(constructed._CIPHER.values(), map(chr, constructed._CIPHER), strict=True)))
    for text in [*clauses, "one (two), three -- four: five"]:
        words = re.findall(r"[\w']+", constructed.translate(text).translate(back))
        words[: len(words) // 2 * 2] = [word for i in range(0, len(words) - 1, 2) for word in words[i : i + 2][::-1]]
        assert words == re.findall(r"[\w']+", text)
    assert constructed.translate("one (two), three").translate(back) == "two (one), three"


def test_each_column_of_the_orders_follows_from_the_others():
    rows = [row for _, row in constructed.orders()]
    for column in rows[0]:
        assert len({tuple(v for k, v in row.items() if k != column) for row in rows}) == len(rows) == 3200
    assert all(int(row["price"]) * int(row["quantity"]) == int(row["total"]) for row in rows)


def test_the_table_of_sums_is_whole_and_its_modulus_is_checked():
    texts = [text for _, text in constructed.sums(7)]
    sums = [tuple(ord(letter) - ord("!") for letter in text) for text in texts]
    assert sorted(sums) == [(a, b, (a + b) % 7) for a in range(7) for b in range(7)]
    assert max(max(text) for _, text in constructed.sums(constructed.MOST)) == "~"
    for name in ("modular:95", "modular:1", "modular", "modular:x"):
        with pytest.raises(InputError, match="expected a modulus of 2 to 94"):
            pipeline.prepare(small(data__sources=(name,)))


def test_rows_of_pairs_keep_both_sides(tmp_path):
    """Through store, order and batch: the decoder's side is the translation of the encoder's; positions begin again."""
    texts = [f"word {chr(97 + i % 26)}{i} and more." for i in range(30)]
    pairs = written(tmp_path, [{"en": text, "de": constructed.translate(text)} for text in texts])
    config = small("encoder_decoder", objective__name="translation", data__seq_len=40, **pairs)
    data = pipeline.prepare(config)
    rows = pipeline.Pipeline(data, TRANSLATION, config).rows(range(20))
    sides = [
        ["".join(map(chr, row[row < 256])) for row in rows[name]] for name in ("encoder_inputs", "inputs", "targets")
    ]
    assert set(sides[0]) <= set(texts) and sides[1] == sides[2] == list(map(constructed.translate, sides[0]))
    config = small("encoder", objective__name="translation_lm", data__seq_len=83, data__max_epochs=9.0, **pairs)
    run = resolve(config)
    row = {name: array[0] for name, array in run.batches.rows([5]).items()}
    length = int((row["segment_ids"] > 0).sum())
    middle, positions = int(row["token_types"].argmax()), row["positions"][:length]
    assert (
        positions.tolist() == [*range(middle), *range(1, length - middle + 1)] and not row["positions"][length:].any()
    )
    assert run.config.model.token_types == 2 and run.batches.lengths == {"inputs": 83}


def test_rows_of_a_table_mask_one_value_each(tmp_path):
    table = [("a", "b", "c"), *((f"x{i}", str(i % 7), f"long value {i % 5}") for i in range(40))]
    (tmp_path / "t.csv").write_text("\n".join(map(",".join, table)))
    source = {"data__sources": (f"tables:{tmp_path}/t.csv",), "data__validation_fraction": 0.3, "data__max_epochs": 9.0}
    run = resolve(small("encoder", objective__name="masked_column", data__seq_len=64, **source))
    rows, masked = run.batches.rows(range(200)), []
    for inputs, targets, weights in zip(rows["inputs"], rows["targets"], rows["weights"], strict=True):
        text, shown = (bytes(ids[ids < 256].tolist()).decode() for ids in (targets, inputs))
        values = [cell.partition(": ")[2] for cell in text.split(" | ")]
        assert tuple(values) in table and [cell[0] for cell in text.split(" | ")] == ["a", "b", "c"]
        value = bytes(targets[weights > 0].tolist()).decode()
        masked.append(values.index(value))
        assert len(shown) == len(text) - len(value) and (inputs[weights > 0] == 258).all()
    assert set(masked) == {0, 1, 2}
    short = small("encoder", objective__name="masked_column", data__seq_len=14, **source)
    cut = pipeline.Pipeline(run.data, MASKED_COLUMN, short).rows(range(30))  # after "a: x1 | b: 1 |"
    assert cut["inputs"].shape == (30, 14) and (cut["weights"].sum(1) <= 3).all() and cut["weights"].sum(1).all()
    with pytest.raises(InputError, match="expected rows of more than 3 tokens, .* got 3; set data.seq_len higher"):
        pipeline.Pipeline(run.data, MASKED_COLUMN, small("encoder", objective__name="masked_column", data__seq_len=3))
    with pytest.raises(InputError, match="expected rows of tables, .* use a source tables:GLOB"):
        made("masked_column")


def test_a_row_cut_off_before_its_first_value_is_refused_though_an_empty_value_comes_before():
    cells = [b"a: ", b"", b" | b: ", b"x"], [b"a: ", b"y", b" | b: ", b"x"]
    tokens = np.frombuffer(b"\0" + b"".join(text + b"\0" for row in cells for text in row), np.uint8)
    eos, offsets = np.flatnonzero(tokens == 0), np.asarray([0, 14, 29])
    with pytest.raises(InputError, match="expected rows of more than 9 tokens, .* got 9; set data.seq_len higher"):
        Records(offsets, eos, 9, "cells", "t")
    assert [n for _, n in Records(offsets, eos, 10, "cells", "t").pieces(0, None)] == [3, 0, 6, 1]


@pytest.mark.parametrize(
    ("objective", "options", "source", "start"),
    [
        (TRANSLATION, {}, [256, 97, 256], 260),
        (TRANSLATION, {"source_language": True}, [97, 256, 259], 260),
        (MULTILINGUAL_DENOISING, {"source_language": True}, [97, 256, 259], 259),
        (MULTILINGUAL_DENOISING, {}, [256, 97, 256], 259),
        (SPAN_CORRUPTION, {}, [256, 97, 256], 257),
    ],
)
def test_prompts_and_scores_have_the_ids_of_their_languages(monkeypatch, objective, options, source, start):
    """Scores of translations began with the pad id, which no such model has seen, as generated denoisings did."""
    asked, tokenizer = {}, Bytes(2)
    monkeypatch.setattr(generate, "generate_ids", lambda *rows, **given: asked.update(given, rows=rows[2]))
    config = small("encoder_decoder", model__vocab_size=320, model__max_len=16)
    model = types.SimpleNamespace(config=config, params=None, tokenizer=tokenizer, record={"data": {"tokenizer": {}}})
    model.objective, model.spec = objective, objective.spec(tokenizer, options)
    generate.generate(model, ["a"])
    assert asked["rows"] == [source] and asked["decoder_start"] == (start,)
    (row,) = score.rows_of(model, [("a", "bc")], "conditional")
    assert (
        row.encoder_inputs.tolist() == source and row.inputs.tolist() == [start, 98] and row.places.tolist() == [0, 1]
    )

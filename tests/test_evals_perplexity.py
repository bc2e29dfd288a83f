"""Losses over documents: equal to the validation loss where they mean the same, and to float64 oracles; calibration;
the known entropy of synthetic sources."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from lmjax.data import synthetic, tokenizers
from lmjax.errors import InputError
from lmjax.evals import calibration, documents
from lmjax.evals.perplexity import entropy_gap, evaluate, spans
from lmjax.resolve import resolve
from lmjax.sharding import make_mesh
from lmjax.validation import Validation, ratio
from tests.conftest import small
from tests.random_runs import random_model, sharded

EOS, MASK = 256, 258
TEXTS = ["The cat sat on the mat. " * 4, "Grüße aus Köln", "a"]


OPTIONS = {"data__mode": "pack", "data__seq_len": 32, "data__validation_fraction": 0.1, "evaluation__max_tokens": 1600}


@functools.cache
def resolved(family="decoder", **overrides):
    return resolve(small(family, **{**OPTIONS, **overrides}))


def untrained(family="decoder", scale=0.3, **overrides):
    return random_model(family, scale, **{**OPTIONS, **overrides})


def loss(trained, *arguments, **options):
    return evaluate(trained, *arguments, **{"batch_size": 8, **options})


def held_out(trained, **overrides):
    run = resolved(trained.config.model.family, **overrides)
    mesh = make_mesh(run.config.mesh, jax.devices()[:1])
    return Validation(run.data, run.objective, run.config, run.model, mesh).evaluate(trained.params)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@functools.cache
def _apply(model):
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch))


def oracle(trained, inputs, padded=32):
    """log p [T, V] after each of the inputs of a decoder; the ids behind them, which it cannot see, are noise."""
    row = np.resize(np.arange(40, 80), padded).astype(np.int32)
    row[: len(inputs)] = inputs
    return log_softmax(_apply(trained.model)(trained.params, {"inputs": row[None]}))[0, : len(inputs)]


# -- Windows


@pytest.mark.parametrize(
    ("length", "lead", "reach", "stride"), [(8, 1, 5, 4), (8, 1, 5, 2), (100, 1, 17, 5), (3, 1, 9, 8)]
)
def test_every_token_is_predicted_once_and_has_its_context(length, lead, reach, stride):
    seen = []
    for begin, first, end in spans(length, lead, reach, stride):
        assert end - begin <= reach and begin < first < end
        assert begin == 0 or first - begin >= reach - stride
        seen += range(first, end)
    assert seen == list(range(lead, length))


def test_windows_by_hand():
    assert list(spans(8, 1, 5, 4)) == [(0, 1, 5), (4, 5, 8)]
    assert list(spans(8, 1, 5, 2)) == [(0, 1, 5), (2, 5, 7), (4, 7, 8)]
    assert list(spans(1, 1, 5, 4)) == []


@pytest.mark.parametrize("stride", [32, 8, 5])
def test_sliding_windows_equal_a_float64_oracle(stride):
    """Nats of each document to 1e-4: token by token, the context as the windows say, eos before and after."""
    trained = untrained()
    result = loss(trained, documents=TEXTS, stride=stride, per_document=True)
    assert (result["semantics"], result["window"], result["stride"]) == ("causal", 32, stride)
    for text, found in zip(TEXTS, result["per_document"], strict=True):
        row = np.asarray([EOS, *text.encode(), EOS])
        nats = 0.0
        for i in range(1, len(row)):
            k = max(0, -(-(i - 32) // stride))  # the first window that reaches token i
            nats -= oracle(trained, row[k * stride : i])[-1, row[i]]
        assert found["nats"] == pytest.approx(nats, abs=1e-4)
        assert (found["tokens"], found["bytes"]) == (len(row) - 1, len(text.encode()))
    total, count = (sum(d[name] for d in result["per_document"]) for name in ("nats", "tokens"))
    assert result["loss"] == pytest.approx(total / count) and result["loss_tokens"] == count
    assert result["perplexity"] == pytest.approx(math.exp(total / count))
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / sum(len(t.encode()) for t in TEXTS))


def test_a_longer_overlap_uses_more_context():
    """On text that repeats after 20 letters, a model that copies does better with stride 1; here: numbers differ, and
    tokens of the first window do not."""
    trained = untrained()
    short, long = (loss(trained, documents=TEXTS[:1], stride=s, per_document=True) for s in (32, 1))
    assert short["loss_tokens"] == long["loss_tokens"]
    assert abs(short["loss"] - long["loss"]) > 1e-4  # equal contexts agree to 1e-6
    one = [loss(trained, documents=[TEXTS[0][:31]], stride=s)["loss"] for s in (32, 1)]
    assert one[0] == pytest.approx(one[1], abs=1e-6)


def test_the_end_of_a_document_can_be_left_out():
    trained = untrained()
    with_end, without = (loss(trained, documents=["Köln"], include_end=e, per_document=True) for e in (True, False))
    row = np.asarray([EOS, *"Köln".encode()])
    end = oracle(trained, row)[-1, EOS]
    assert with_end["loss_tokens"] == 6 and without["loss_tokens"] == 5
    nats = [r["per_document"][0]["nats"] for r in (with_end, without)]
    assert nats[0] - nats[1] == pytest.approx(-end, abs=1e-5)


def test_a_bos_begins_every_window():
    """Window 32 with BOS: 31 ids of text behind it; later windows begin with it too."""
    trained, bos = untrained(), 260
    tokenizer = tokenizers.Bytes(8)
    tokenizer.prefix = (bos,)
    record = {"data": {"tokenizer": tokenizers.facts(tokenizer)}}
    result = loss(dataclasses.replace(trained, tokenizer=tokenizer, record=record), documents=TEXTS[:1])
    text, nats = np.frombuffer(TEXTS[0].encode(), np.uint8), 0.0
    for i in range(len(text)):
        begin = max(0, -(-(i - 31) // 31)) * 31
        nats -= oracle(trained, np.asarray([bos, *text[begin:i]]))[-1, text[i]]
    assert result["loss_tokens"] == len(text) and result["include_end"] is False
    assert result["loss"] * len(text) == pytest.approx(nats, abs=1e-4)


# -- The held-out loss


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_the_default_is_the_held_out_loss_of_the_run(family):
    """Packed rows of isolated documents and ours, document by document: the mean to 1e-6 relative."""
    trained = untrained(family)
    mine, theirs = loss(trained), held_out(trained)
    assert mine["documents"] > 1 and mine["loss_tokens"] == theirs["loss_tokens"]
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    if family == "decoder":
        assert mine["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-6)
        assert mine["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-5)
    else:
        assert mine["semantics"] == "infilling"
        assert mine["perplexity"] is mine["bits_per_byte"] is mine["pseudo_perplexity"] is None


def test_sources_are_taken_by_weight_and_told_apart():
    mixture = {"data__sources": ("markov2:20000", "zipf:20000"), "data__weights": (3.0, 1.0)}
    mixture |= {"evaluation__max_tokens": None, "data__validation_fraction": 0.2}
    trained = untrained(**mixture)
    mine, theirs = loss(trained), held_out(trained, **mixture)
    assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
    parts = mine["sources"]
    assert list(parts) == ["markov2:20000", "zipf:20000"]
    for name in ("loss_tokens", "bytes", "documents"):
        assert sum(part[name] for part in parts.values()) == mine[name]
    first, second = parts.values()
    assert mine["loss"] == pytest.approx(0.75 * first["loss"] + 0.25 * second["loss"])
    assert mine["loss_stderr"] == pytest.approx(math.hypot(0.75 * first["loss_stderr"], 0.25 * second["loss_stderr"]))
    size = 0.75 * first["bytes"] / first["loss_tokens"] + 0.25 * second["bytes"] / second["loss_tokens"]
    assert mine["bits_per_byte"] == pytest.approx(mine["loss"] / math.log(2) / size)
    assert mine["bits_per_byte"] == pytest.approx(theirs["bits_per_byte"], rel=1e-6)
    alone = loss(trained, "zipf:20000", max_tokens=0)
    assert alone["loss"] == pytest.approx(parts["zipf:20000"]["loss"], rel=1e-6)
    counts = [sum(row["count"] for row in part["calibration"]["table_equal_mass"]) for part in parts.values()]
    assert counts == [part["loss_tokens"] for part in parts.values()]


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_batch_size_and_devices_do_not_matter(family):
    trained = untrained(family)
    base = loss(trained, documents=TEXTS[:2])
    for model, batch_size in ((trained, 1), (sharded(trained, data=2, fsdp=2), 3)):
        other = loss(model, documents=TEXTS[:2], batch_size=batch_size)
        assert other["loss"] == pytest.approx(base["loss"], rel=1e-6)
        assert other["loss_tokens"] == base["loss_tokens"]
        for name in ("brier", "confidence", "ece_equal_mass"):
            assert other["calibration"][name] == pytest.approx(base["calibration"][name], abs=1e-5)


# -- Encoders and encoder-decoders


def test_pseudo_perplexity_masks_every_token_in_turn():
    """Windows of 32 without overlap; the first holds the eos that begins the document, which is not predicted."""
    trained = untrained("encoder")
    text = TEXTS[0][:40]
    result = loss(trained, documents=[text])
    row = np.asarray([EOS, *text.encode()])
    nats = 0.0
    for begin in (0, 32):
        window = row[begin : begin + 32]
        masked = np.where(np.eye(len(window), dtype=bool), MASK, window[None]).astype(np.int32)
        table = log_softmax(_apply(trained.model)(trained.params, {"inputs": masked}))
        chosen = table[np.arange(len(window)), np.arange(len(window)), window]
        nats -= chosen[1:].sum() if begin == 0 else chosen.sum()
    assert result["loss_tokens"] == 40
    assert result["loss"] == pytest.approx(nats / 40, rel=1e-5)
    assert result["pseudo_perplexity"] == pytest.approx(math.exp(nats / 40), rel=1e-4)
    assert result["semantics"] == "pseudo" and result["perplexity"] is result["bits_per_byte"] is None


def test_conditional_loss_predicts_second_halves():
    trained = untrained("encoder_decoder")
    result = loss(trained, documents=["abcdefghij"], semantics="conditional")
    batch = {"encoder_inputs": np.asarray([[EOS, *b"abcde", EOS]]), "inputs": np.asarray([[257, *b"fghi"]])}
    table = log_softmax(_apply(trained.model)(trained.params, batch))[0]
    nats = -table[np.arange(5), np.frombuffer(b"fghij", np.uint8)].sum()
    assert (result["loss_tokens"], result["semantics"], result["perplexity"]) == (5, "conditional", None)
    assert result["loss"] == pytest.approx(nats / 5, rel=1e-5)
    assert loss(trained, documents=["ab" * 50], semantics="conditional")["loss_tokens"] == 50


def test_a_documents_infilling_does_not_depend_on_the_others():
    """Its noise is drawn by its own text; the held-out default has the pipeline's counter (tested above)."""
    trained = untrained("encoder_decoder")
    both = loss(trained, documents=TEXTS[:2], per_document=True)["per_document"]
    turned = loss(trained, documents=TEXTS[1::-1], per_document=True)["per_document"]
    (alone,) = loss(trained, documents=TEXTS[1:2], per_document=True)["per_document"]
    for other in (turned[0], alone):
        assert other["tokens"] == both[1]["tokens"] and other["nats"] == pytest.approx(both[1]["nats"], rel=1e-6)
    assert turned[1]["nats"] == pytest.approx(both[0]["nats"], rel=1e-6)


# -- Uniform logits, bytes, standard errors


def test_uniform_logits_give_log_vocabulary_and_bits_of_the_raw_text():
    """Bits per byte with another tokenizer: tokens log2 V / bytes of the text, whatever the ids are."""
    trained = untrained(scale=0.0)
    size = trained.config.model.vocab_size
    result = loss(trained, documents=TEXTS)
    assert result["loss"] == pytest.approx(math.log(size), rel=1e-6)
    assert result["perplexity"] == pytest.approx(size, rel=1e-5)
    words = tokenizers.train_bpe(TEXTS, 256 + 3 + 8 + 10, 8)
    other = dataclasses.replace(trained, tokenizer=words, record={"data": {"tokenizer": tokenizers.facts(words)}})
    result = loss(other, documents=TEXTS)
    count = sum(len(words.encode(text)) + 1 for text in TEXTS)
    size_of_text = sum(len(text.encode()) for text in TEXTS)
    assert count < size_of_text
    assert result["bits_per_byte"] == pytest.approx(count * math.log2(size) / size_of_text, rel=1e-6)


def test_standard_error_of_a_ratio_is_that_of_the_bootstrap():
    assert ratio(np.asarray([2, 4]), np.asarray([1, 1])) == (3.0, 1.0)
    assert ratio(np.asarray([2]), np.asarray([1])) == (2.0, None)
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 500, 200)
    amounts = sizes * 2.0 + rng.normal(0, 20, 200)
    picks = rng.integers(0, 200, (4000, 200))
    spread = (amounts[picks].sum(1) / sizes[picks].sum(1)).std()
    assert ratio(amounts, sizes)[1] == pytest.approx(spread, rel=0.06)


# -- Known entropy


def test_a_model_that_is_the_law_has_no_gap():
    """Biases on the ids are the whole model: log p of zipf's letters, and of the end. Its loss is the entropy, but for
    the first letter of a document, which is never the end."""
    options = {"model__head_bias": True, "data__sources": ("zipf:200000",), "evaluation__max_tokens": 8000}
    trained = untrained(scale=0.0, **options)
    p = np.full(trained.config.model.vocab_size, 1e-30)
    p[48 : 48 + synthetic.ZIPF_LETTERS] = synthetic.zipf_probabilities() * (1 - synthetic.END)
    p[EOS] = synthetic.END
    params = jax.tree.map(np.copy, trained.params)
    params["embedding"]["head_bias"] = np.log(p).astype(np.float32)
    result = loss(dataclasses.replace(trained, params=params))
    entropy = result["entropy"]
    first = -result["documents"] * math.log1p(-synthetic.END) / result["loss_tokens"]
    assert entropy["gap"] == pytest.approx(first, abs=1e-5) and entropy["consistent"]
    assert entropy["nats_per_token"] == pytest.approx(synthetic.entropy_rate("zipf"))
    assert result["loss"] == pytest.approx(entropy["true_nats_per_token"] + entropy["gap"])
    assert abs(result["loss"] - entropy["nats_per_token"]) < 4 * result["loss_stderr"]
    # such a model is calibrated: it always says the first letter, and is right as often as it says
    assert result["calibration"]["ece_equal_width"] < 4 / math.sqrt(result["loss_tokens"])
    uniform = loss(trained)["entropy"]
    assert uniform["gap"] == pytest.approx(math.log(320) - entropy["true_nats_per_token"], rel=1e-5)


def test_a_loss_below_the_entropy_is_found_out():
    rng = np.random.default_rng(0)
    tokens = rng.integers(100, 900, 50)
    truth = 2.0 * tokens + rng.normal(0, 10, 50)
    below = entropy_gap(truth - 0.1 * tokens, truth, tokens)
    assert below["gap"] == pytest.approx(-0.1) and below["consistent"] is False
    assert entropy_gap(truth + rng.normal(0, 5, 50), truth, tokens)["consistent"] is True
    assert entropy_gap(truth[:1], truth[:1], tokens[:1])["consistent"] is None


def test_text_has_no_known_entropy():
    assert loss(untrained(), documents=TEXTS[:1])["entropy"] is None


# -- Calibration


def test_reliability_by_hand():
    table = calibration.reliability([0.2, 0.4, 0.9], [0, 1, 1], bins=2)
    assert [row["count"] for row in table] == [2, 1]
    assert table[0] == {"low": 0.0, "high": 0.5, "count": 2, "confidence": pytest.approx(0.3), "accuracy": 0.5}
    assert calibration.expected_calibration_error(table) == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.1)
    assert calibration.brier([0.25], [0.25]) == 0.75


@pytest.mark.parametrize("kind", calibration.KINDS)
def test_calibration_equals_an_oracle(kind):
    """A loop over bins; every prediction in exactly one, with many equal confidences and those at 0 and 1 too."""
    rng = np.random.default_rng(1)
    confidence = np.concatenate([rng.random(500), np.full(100, 0.4), [0.0, 1.0, 1.0]])
    correct = rng.random(len(confidence)) < confidence**2
    table = calibration.reliability(confidence, correct, 10, kind)
    error = 0.0
    for number, row in enumerate(table):
        inside = (confidence > row["low"]) & (confidence <= row["high"])
        if number == 0:
            inside |= confidence <= row["low"]
        assert row["count"] == inside.sum()
        assert row["confidence"] == pytest.approx(confidence[inside].mean())
        assert row["accuracy"] == pytest.approx(correct[inside].mean())
        error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert sum(row["count"] for row in table) == len(confidence)
    assert calibration.expected_calibration_error(table) == pytest.approx(error)
    if kind == "equal_mass":
        assert max(row["count"] for row in table) <= len(confidence) / 10 + 101  # the equal ones stay together
    order = rng.permutation(len(confidence))
    again = calibration.reliability(confidence[order], correct[order], 10, kind)
    assert calibration.expected_calibration_error(again) == pytest.approx(error)


@pytest.mark.parametrize("kind", calibration.KINDS)
def test_one_confidence_for_all(kind):
    table = calibration.reliability(np.full(7, 0.25), np.arange(7) < 2, 15, kind)
    assert len(table) == 1 and table[0]["accuracy"] == pytest.approx(2 / 7)


def test_calibration_of_a_model_equals_an_oracle():
    trained = untrained()
    text = TEXTS[0][:31]
    found = loss(trained, documents=[text], bins=5)["calibration"]
    row = np.asarray([EOS, *text.encode(), EOS])
    p = np.exp(oracle(trained, row[:-1]))
    truth = np.eye(p.shape[1])[row[1:]]
    assert found["brier"] == pytest.approx(((p - truth) ** 2).sum(-1).mean(), abs=1e-5)
    assert found["accuracy"] == pytest.approx((p.argmax(-1) == row[1:]).mean())
    assert found["confidence"] == pytest.approx(p.max(-1).mean(), abs=1e-5)
    table = calibration.reliability(p.max(-1), p.argmax(-1) == row[1:], 5)
    assert found["ece_equal_width"] == pytest.approx(calibration.expected_calibration_error(table), abs=1e-5)
    assert loss(trained, documents=[text], bins=0)["calibration"] is None


# -- Refusals


def test_bad_input_is_refused():
    trained = untrained()
    cases = [
        ({"documents": TEXTS, "stride": 33}, "32 text tokens and stride 33"),
        ({"documents": TEXTS, "window": 1}, "window 1"),
        ({"documents": []}, "list of one or more texts"),
        ({"documents": ["a", ""]}, "none of them empty"),
        ({"documents": TEXTS, "semantics": "pseudo"}, "has causal"),
        ({"source": "zipf:20000", "documents": TEXTS}, "got both"),
        ({"source": "zipff"}, "did you mean 'zipf'"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            loss(trained, **options)
    learned = untrained(model__position="learned")
    with pytest.raises(InputError, match="a row has 40 ids, the model has 32 learned positions"):
        loss(learned, documents=["a" * 99], window=40)
    with pytest.raises(InputError, match="has no sliding windows"):
        loss(untrained("encoder_decoder"), documents=TEXTS, stride=3)
    with pytest.raises(InputError, match="a document of 'texts' has 1 tokens"):
        loss(untrained("encoder_decoder"), documents=["a"], semantics="conditional")
    imported = dataclasses.replace(trained, record={"data": {"tokenizer": tokenizers.facts(trained.tokenizer)}})
    with pytest.raises(InputError, match="has no validation documents"):
        loss(imported)
    record = {"data": {**trained.record["data"], "sources": [{"content": "other"}]}}
    with pytest.raises(InputError, match="has changed since the run was trained"):
        loss(dataclasses.replace(trained, record=record))


def test_documents_of_a_run_are_the_ones_it_held_out():
    trained = untrained()
    found = documents.own(trained)
    store = resolved().data.stores[0]
    tokens, offsets = store.tokens("validation"), store.offsets("validation")
    everything = [tokens[a + 1 : b].tolist() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert 0 < len(found) < len(everything)
    assert all(document.ids.tolist() in everything for document in found)
    assert len(documents.own(trained, max_tokens=0)) == len(everything)

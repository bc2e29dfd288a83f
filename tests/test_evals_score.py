"""Scores of continuations: equal to a float64 oracle on single rows; the same for any batch, order and number of
devices; framed once; refused with a reason."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.evals import framing, measure, rows, tasks
from lmjax.evals.rows import Predictions, Row, bucket, predict
from lmjax.evals.score import _Builder, available, rows_of, score
from tests.random_runs import random_model, sharded

EOS, PAD, MASK, FIRST = 256, 257, 258, 259  # of the byte tokenizer
PAIRS = [
    ("The cat sat on the", " mat"),
    ("", "Once"),
    ("that is the ", "question"),
    ("a", "b"),
    ("Shall I compare thee to a summer's", " day? Thou art"),
    ("The cat sat on the", " hat"),
    ("Grüße aus", " Köln"),
]
FAMILIES = [
    ("decoder", "causal"),
    ("prefix", "causal"),
    ("encoder", "pseudo"),
    ("encoder", "masked"),
    ("encoder_decoder", "conditional"),
    ("encoder_decoder", "infilling"),
]


def untrained(family="decoder", scale=1.0, **overrides):
    if family == "prefix":
        family, overrides = "decoder", {"objective__name": "prefix_lm", "model__position": "relative", **overrides}
    return random_model(family, scale * 0.3, data__seq_len=96, **overrides)


@functools.cache
def _apply(model):
    return jax.jit(lambda params, batch: model.apply({"params": params}, batch))


def oracle(trained, padded=96, **batch):
    """log p of every id at every position of one row, float64 [T, V]; rows of `padded` ids, the rest of noise."""
    length = len(batch["inputs"])
    if padded:
        for name, values in list(batch.items()):
            side = name.removesuffix("inputs") if name.endswith("inputs") else ""
            full = np.resize(np.arange(40, 80), padded).astype(np.asarray(values).dtype)
            full[: len(values)] = values
            batch[name] = full
            batch[side + "segment_ids"] = (np.arange(padded) < len(values)).astype(np.int32)
    batch = {name: np.asarray(values)[None] for name, values in batch.items()}
    logits = np.asarray(_apply(trained.model)(trained.params, batch), np.float64)[0, :length]
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def ids(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def cut(context, continuation):
    """White space at the end of a context goes to the continuation."""
    kept = context.rstrip()
    return ids(kept), ids(context[len(kept) :] + continuation)


def expected(trained, semantics, context, continuation, padded=96):
    """(log p of the continuation's tokens, is_greedy) by one model call for each quantity, without lmjax.evals."""
    ask = functools.partial(oracle, trained, padded)
    before, after = (context, continuation) if isinstance(context, np.ndarray) else cut(context, continuation)
    n = len(after)
    if semantics == "causal":
        text = np.concatenate([[EOS], before, after])
        extra = (
            {"prefix": np.arange(len(text) - 1) < 1 + len(before)} if trained.objective.attention == "prefix" else {}
        )
        table = ask(inputs=text[:-1], **extra)[-n:]
    elif semantics == "pseudo":
        text = np.concatenate([[EOS], before, after])
        table = []
        for i in range(len(text) - n, len(text)):
            table.append(ask(inputs=np.where(np.arange(len(text)) == i, MASK, text))[i])
        table = np.stack(table)
    elif semantics == "masked":
        text = np.concatenate([[EOS], before, np.full(n, MASK)])
        table = ask(inputs=text)[-n:]
    elif semantics == "conditional":
        source = np.concatenate([[EOS], before, [EOS]])
        table = ask(encoder_inputs=source, inputs=np.concatenate([[PAD], after[:-1]]))
    else:
        source = np.concatenate([[EOS], before, [FIRST], [EOS]])
        table = ask(encoder_inputs=source, inputs=np.concatenate([[PAD, FIRST], after[:-1]]))[1:]
    return table[np.arange(n), after], bool((table.argmax(-1) == after).all())


@pytest.mark.parametrize(("family", "semantics"), FAMILIES)
def test_scores_equal_a_float64_oracle(family, semantics):
    """Each token to 2e-5 nats: float32 logits of padded batches against softmax in float64 of single rows."""
    trained = untrained(family)
    scores = score(trained, PAIRS, semantics, batch_size=8)
    for (context, continuation), result in zip(PAIRS, scores, strict=True):
        log_probs, greedy = expected(trained, semantics, context, continuation)
        np.testing.assert_allclose(result.token_log_probs, log_probs, atol=2e-5)
        assert result.log_prob == pytest.approx(log_probs.sum(), abs=1e-4)
        assert result.log_prob == sum(result.token_log_probs)
        assert result.is_greedy == greedy
        assert result.tokens == len(cut(context, continuation)[1])
        assert result.bytes == len(cut(context, continuation)[1]), "blanks at the context's end are scored, and counted"
        assert result.semantics == semantics and result.dropped == 0
        nothing = np.zeros(0, np.int32)
        alone, _ = expected(trained, semantics, nothing, cut(context, continuation)[1])
        assert result.unconditional_log_prob == pytest.approx(alone.sum(), abs=1e-4)
    unpadded, _ = expected(trained, semantics, *PAIRS[0], padded=0)
    np.testing.assert_allclose(scores[0].token_log_probs, unpadded, atol=2e-5)


def test_the_most_probable_continuation_is_greedy():
    """Found by argmax, one token after the other: is_greedy, and not when its last token is another."""
    trained = untrained()
    text, best = np.concatenate([[EOS], ids("The")]), []
    for _ in range(4):
        best.append(int(oracle(trained, inputs=np.concatenate([text, best]).astype(np.int32))[-1].argmax()))
    other = [*best[:-1], (best[-1] + 1) % 256]
    rows = [
        Row(np.concatenate([text, chosen]).astype(np.int32)[:-1], np.asarray(chosen), len(text) - 1 + np.arange(4))
        for chosen in (best, other)
    ]
    greedy = [p.greedy.tolist() for p in predict(trained, rows)]
    assert greedy == [[True] * 4, [True, True, True, False]]


@pytest.mark.parametrize(("family", "semantics"), [case for case in FAMILIES if case[0] != "prefix"])
def test_nothing_depends_on_the_layout(family, semantics):
    """Scores do not depend on batching, order or devices: each token to 2e-5."""
    trained = untrained(family)
    base = score(trained, PAIRS, semantics, batch_size=8)
    for model, batch_size in ((trained, 1), (sharded(trained, fsdp=2, tensor=2), 3)):
        check_same(base, score(model, PAIRS, semantics, batch_size=batch_size), (dict(model.mesh.shape), batch_size))
    check_same(base[::-1], score(trained, PAIRS[::-1], semantics, batch_size=8), "order")


def check_same(wanted, got, what):
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_allclose(a.token_log_probs, b.token_log_probs, atol=2e-5, err_msg=str(what))
        assert a.unconditional_log_prob == pytest.approx(b.unconditional_log_prob, abs=1e-4), what
        assert (a.is_greedy, a.tokens, a.bytes) == (b.is_greedy, b.tokens, b.bytes), what


@pytest.mark.parametrize(("family", "semantics"), FAMILIES)
def test_uniform_logits_give_n_log_v(family, semantics):
    trained = untrained(family, scale=0.0)
    size = trained.config.model.vocab_size
    for result in score(trained, PAIRS, semantics, batch_size=8):
        assert result.log_prob == pytest.approx(-result.tokens * np.log(size), rel=1e-6)
        assert result.unconditional_log_prob == pytest.approx(result.log_prob, rel=1e-6)


def test_a_rest_is_seen_by_infilling_and_pseudo_likelihood():
    """(context, continuation, rest): the text after the gap, on the source side and beside the mask."""
    trained = untrained("encoder_decoder")
    result = score(trained, [("The cat", " sat", " on the mat")], "infilling")[0]
    source = np.concatenate([[EOS], ids("The cat"), [FIRST], ids(" on the mat"), [EOS]])
    table = oracle(trained, encoder_inputs=source, inputs=np.concatenate([[PAD, FIRST], ids(" sa")]))[1:]
    np.testing.assert_allclose(result.token_log_probs, table[np.arange(4), ids(" sat")], atol=2e-5)
    without = score(trained, [("", " sat")], "infilling")[0]
    assert result.unconditional_log_prob == pytest.approx(without.log_prob, abs=1e-5)
    trained = untrained("encoder")
    result = score(trained, [("The cat", " sat", " on the mat")])[0]
    text = np.concatenate([[EOS], ids("The cat sat on the mat")])
    for i, log_prob in zip(range(8, 12), result.token_log_probs, strict=True):
        table = oracle(trained, inputs=np.where(np.arange(len(text)) == i, MASK, text))
        assert log_prob == pytest.approx(table[i, text[i]], abs=2e-5)
    result = score(trained, [("The cat", " sat", " on the mat")], "masked")[0]
    gap = np.arange(8, 12)
    table = oracle(trained, inputs=np.where(np.isin(np.arange(len(text)), gap), MASK, text))
    np.testing.assert_allclose(result.token_log_probs, table[gap, text[gap]], atol=2e-5)


# -- Ids


def test_framing_of_pairs_by_hand():
    """Bytes: white space moves over; a context that names the prefix is not given two."""
    tokenizer = tokenizers.Bytes(2)

    def pair(context, continuation):
        return [part.tolist() for part in framing.encode_pair(tokenizer, context, continuation)]

    assert pair("a ", "b") == [[97], [32, 98]]
    assert pair("a \n", " b") == [[97], [32, 10, 32, 98]]
    assert pair("", "b") == [[], [98]]
    assert pair("  ", "b") == [[], [32, 32, 98]]
    assert pair("<eos>a", "b") == [[97], [98]]
    assert pair("a<eos>", "b")[0] == list(b"a<eos>")


def test_bpe_pairs_are_encoded_together():
    """The harness's rule: ids of the whole after as many as the context has alone; alone where a merge eats them."""
    text = ["the cat sat on the mat the hat " * 20, "abab abab ab"]
    tokenizer = tokenizers.train_bpe(text, 256 + 3 + 2 + 20, 2)
    for context, continuation in [("the c", "at sat"), ("the", " mat"), ("t", "he"), ("on th", "e mat"), ("a", "b")]:
        alone, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
        before, after = framing.encode_pair(tokenizer, context, continuation)
        assert before.tolist() == alone.tolist()
        rule = whole[len(alone) :].tolist()
        assert after.tolist() == (rule or tokenizer.encode(continuation).tolist())
    assert len(tokenizer.encode("the")) == len(tokenizer.encode("t")) == 1  # "t" + "he" is such a merge
    assert len(framing.encode_pair(tokenizer, "t", "he")[1]) > 0


def test_long_contexts_lose_their_oldest_tokens():
    """The window is 96: a row cut from the middle of a text has no prefix, as in training."""
    trained = untrained()
    context = " ".join(f"word{i}" for i in range(30))
    result = score(trained, [(context, " end")])[0]
    text = ids(context + " end")
    assert result.dropped == len(text) - 97
    table = oracle(trained, inputs=text[-97:-1])[-4:]
    np.testing.assert_allclose(result.token_log_probs, table[np.arange(4), ids(" end")], atol=2e-5)
    for length, dropped in ((92, 0), (93, 0), (94, 1)):  # 97 ids, of which the last is not read; 93 leave no prefix
        assert score(trained, [("a" * length, " end")])[0].dropped == dropped


@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_long_contexts_on_both_sides_of_a_gap(family):
    """What follows the gap loses its end, what precedes it its beginning, each down to half of the room."""
    trained = untrained(family)
    result = score(trained, [("a" * 100, "bc", "d" * 100)])[0]
    assert result.dropped == 200 - 94
    if family == "encoder":  # 96 = 47 + 2 + 47; the prefix went with the beginning
        text = ids("a" * 47 + "bc" + "d" * 47)
        wanted = [oracle(trained, inputs=np.where(np.arange(96) == i, MASK, text))[i, text[i]] for i in (47, 48)]
    else:  # 96 = 47 + sentinel + 47 + eos
        source = np.concatenate([ids("a" * 47), [FIRST], ids("d" * 47), [EOS]])
        table = oracle(trained, encoder_inputs=source, inputs=np.asarray([PAD, FIRST, 98]))
        wanted = [table[1, 98], table[2, 99]]
    np.testing.assert_allclose(result.token_log_probs, wanted, atol=2e-5)


def framed(family, prefix, suffix):
    """A model whose texts begin and end with ids of their own, like those of BERT or Llama."""
    trained = untrained(family)
    tokenizer = tokenizers.Bytes(8)
    tokenizer.prefix, tokenizer.suffix = prefix, suffix
    return dataclasses.replace(
        trained, tokenizer=tokenizer, record={"data": {"tokenizer": tokenizers.facts(tokenizer)}}
    )


@pytest.mark.parametrize("long", [False, True])
def test_other_frames_stay_on_every_row(long):
    """[CLS] text [SEP]; BOS text: once, also where the context lost its beginning."""
    context = "word " * (40 if long else 2) + "the"
    cls, sep = 260, 261
    result = score(framed("encoder", (cls,), (sep,)), [(context, " end")])[0]
    text = ids(context + " end")[-94:]
    text = np.concatenate([[cls], text, [sep]])
    for i, log_prob in zip(range(len(text) - 5, len(text) - 1), result.token_log_probs, strict=True):
        table = oracle(untrained("encoder"), inputs=np.where(np.arange(len(text)) == i, MASK, text))
        assert log_prob == pytest.approx(table[i, text[i]], abs=2e-5)
    assert result.dropped == max(0, len(context) + 4 - 94)
    result = score(framed("decoder", (cls,), ()), [(context, " end")])[0]
    text = np.concatenate([[cls], ids(context + " end")[-96:]])
    table = oracle(untrained(), inputs=text[:-1])[-4:]
    np.testing.assert_allclose(result.token_log_probs, table[np.arange(4), ids(" end")], atol=2e-5)
    assert result.dropped == max(0, len(context) + 4 - 96)


@pytest.mark.parametrize(("family", "semantics"), FAMILIES)
def test_every_row_begins_with_the_prefix_once(family, semantics):
    builder = _Builder(untrained(family), semantics)
    for context, continuation in [*PAIRS, ("<eos>The cat", " sat")]:
        for row in builder.rows(*builder.encode((context, continuation)))[0]:
            text = row.inputs if row.encoder_inputs is None else row.encoder_inputs[:-1]  # a source also ends with eos
            assert text[0] == EOS and EOS not in text[1:]


def test_buckets():
    assert [bucket(n, 128) for n in (1, 32, 33, 100, 128)] == [32, 32, 64, 128, 128]
    assert [bucket(n, 100) for n in (64, 65, 100, 101)] == [64, 100, 100, 128]


# -- Refusals


def test_models_compute_in_float32_and_in_small_pieces():
    """A bfloat16 run is scored as its float32 twin; large logits mean fewer rows a call."""
    trained, twin = untrained(model__dtype="bfloat16"), untrained()
    assert score(trained, PAIRS[:3]) == score(twin, PAIRS[:3])
    assert trained.config.model.dtype == "bfloat16", "the caller's model is as it was"
    assert rows._rows_per_call(64, 100, 2, 2**20) == 64 and rows._rows_per_call(64, 100, 1, 2**26) == 16
    assert rows._rows_per_call(64, 100, 2, 2**40) == 2, "a row a device at least"


def test_an_encoder_fills_a_masked_answer_at_once(monkeypatch):
    """Exact match of a generation task is that of the most probable tokens, whose number the encoder is told."""
    trained, task = untrained("encoder"), tasks.load_builtin("addition_1")
    items = tasks.make_items(task, 0, 6, 0)
    made = measure.measure(trained, task, items, semantics="masked")
    for item, text, log_prob in zip(items, made.texts["generated"], made.columns["log_prob"], strict=True):
        before, after = cut(item.context, item.answers[0])
        table = oracle(trained, inputs=np.concatenate([[EOS], before, np.full(len(after), MASK)]))[-len(after) :]
        best = table.argmax(-1)
        assert text == trained.tokenizer.decode(best[best < trained.tokenizer.vocab_size].tolist())
        assert log_prob == pytest.approx(table[np.arange(len(after)), after].sum(), abs=1e-4)
    assert made.semantics == "masked" and not made.columns["exact"].any()
    assert set(made.columns["chance"]) == {task.guess} == {0.1}  # documented as a lower bound: 9 and 10 get 0.19
    asked = rows_of(trained, [(item.context, item.answers[0]) for item in items], "masked")
    known = [
        Predictions(np.zeros(len(row.targets)), row.targets.copy(), np.ones(len(row.targets), bool)) for row in asked
    ]
    known[1].best[-1] ^= 1
    monkeypatch.setattr(rows, "predict", lambda *_: known)
    made = measure.measure(trained, task, items, semantics="masked")
    assert made.columns["exact"].tolist() == [1, 0, 1, 1, 1, 1] and not made.columns["greedy_tokens"].any()
    assert not measure.undefined(task, "electra", "masked") and measure.undefined(task, "electra", "pseudo")


def test_semantics_are_never_mixed():
    assert available(untrained()) == ("causal",)
    assert available(untrained("encoder")) == ("pseudo", "masked")
    assert available(untrained("encoder_decoder")) == ("infilling", "conditional")
    for family, asked, named in [
        ("decoder", "pseudo", "causal"),
        ("encoder", "causal", "pseudo or masked"),
        ("encoder_decoder", "causal", "infilling or conditional"),
    ]:
        with pytest.raises(InputError, match=f"{asked}.*has {named}"):
            score(untrained(family), PAIRS, asked)
        assert {s.semantics for s in score(untrained(family), PAIRS[:2])} == {available(untrained(family))[0]}


def with_tokenizer(trained, **changes):
    tokenizer = tokenizers.Bytes(8)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return dataclasses.replace(trained, tokenizer=tokenizer)


def test_bad_pairs_and_models_are_refused():
    trained = untrained()
    cases = [
        ([("a", "")], {}, "expected a continuation"),
        ([("a", "b" * 97)], {}, "97 tokens does not fit the model's window of 96"),
        ([("a", "b", "c")], {}, "does not condition on text after"),
        ([("a", "b")], {"batch_size": 0}, "batch_size"),
    ]
    for pairs, options, message in cases:
        with pytest.raises(InputError, match=message):
            score(trained, pairs, **options)
    assert score(trained, [("a", "b" * 96)])[0].tokens == 96
    with pytest.raises(InputError, match="prefix to be .256,. as in the record of its data, got .1, 2."):
        score(with_tokenizer(trained, prefix=(1, 2)), PAIRS)
    with pytest.raises(InputError, match="no tokenizer"):
        score(dataclasses.replace(trained, tokenizer=None), PAIRS)
    with pytest.raises(InputError, match=r"expected ids in 0 \.\. 319"):
        predict(trained, [Row(np.asarray([320]), np.asarray([0]), np.asarray([0]))])
    encoder = untrained("encoder")
    no_mask = dataclasses.replace(encoder.tokenizer.specials, mask=-1)
    with pytest.raises(InputError, match="needs a mask token"):
        score(with_tokenizer(encoder, specials=no_mask), PAIRS)
    config = encoder.config.copy_and_resolve_references()
    config.model.head = "discriminator"
    with pytest.raises(InputError, match="discriminator"):
        score(dataclasses.replace(encoder, config=config), PAIRS)


def test_no_pairs_give_no_scores():
    assert score(untrained(), []) == []

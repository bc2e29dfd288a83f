"""Bytes, BPE and words: ids equal Hugging Face's, special ids that no text reaches, exact round trips, hashes."""

import json
import math
import random
import types

import numpy as np
import pytest
import tokenizers as hf

import lmjax
from lmjax import generate, trained, trainer
from lmjax.config import overlay
from lmjax.data import corpora, tokenizers
from lmjax.errors import InputError
from lmjax.evals import documents
from lmjax.evals import run as evaluation
from lmjax.evals.vectors import Vectors
from lmjax.hf import vocabulary
from lmjax.resolve import resolve
from tests.conftest import small

LITERALS = "<eos> <pad> <mask> <sentinel_0> <|endoftext|> </s> [MASK]"


@pytest.fixture(scope="module")
def texts():
    return [text[:4000] for _, text in corpora.read("shakespeare")[:60]]


@pytest.fixture(scope="module")
def bpe(texts):
    return tokenizers.train_bpe(texts, 1000, num_sentinels=4)


def random_text(rng, length):
    ranges = [
        (32, 127),
        (0, 128),
        (0xA0, 0x250),
        (0x370, 0x1FFF),
        (0x4E00, 0x4F00),
        (0x1F300, 0x1F600),
        (9, 14),
    ]
    points = (rng.randrange(*rng.choice(ranges)) for _ in range(length))
    return "".join(chr(point) for point in points)


def test_bytes_ids_and_specials():
    tokenizer = tokenizers.Bytes(num_sentinels=2)
    assert tokenizer.encode("Hi").tolist() == [72, 105]
    assert (tokenizer.vocab_size, tokenizer.text_vocab_size) == (261, 256)
    specials = tokenizer.specials
    assert (specials.eos, specials.pad, specials.mask, specials.sentinels) == (256, 257, 258, (259, 260))
    assert tokenizer.decode([72, 105, 256]) == "Hi<eos>"
    assert tokenizer.show(10) == "\\n" and tokenizer.show(0xC3) == "\\xc3" and tokenizer.show(257) == "<pad>"
    assert tokenizer.decode([259, 10, 260]) == "<sentinel_0>\n<sentinel_1>"


@pytest.mark.parametrize("seed", range(3))
def test_ids_equal_hugging_face_and_decode_gives_the_text_back(bpe, seed):
    reference = hf.Tokenizer.from_str(bpe.artefact)
    rng = random.Random(seed)
    for length in [1, 2, 10, 100, 1000] * 10:
        text = random_text(rng, length)
        ids = bpe.encode(text)
        assert ids.tolist() == reference.encode(text).ids
        assert bpe.decode(ids) == text
        assert tokenizers.Bytes(0).decode(tokenizers.Bytes(0).encode(text)) == text


def test_real_text_is_the_same_too_and_shorter_than_bytes(bpe, texts):
    bpe.check(texts)
    assert sum(len(bpe.encode(text)) for text in texts) < 0.5 * sum(len(text.encode()) for text in texts)


def test_literal_special_names_stay_text(bpe, texts):
    for tokenizer in (bpe, tokenizers.Bytes(4)):
        ids = tokenizer.encode(LITERALS)
        assert ids.max() < tokenizer.text_vocab_size
        assert tokenizer.decode(ids) == LITERALS


def test_specials_follow_the_text_vocabulary(bpe):
    specials = bpe.specials
    ids = [specials.eos, specials.pad, specials.mask, *specials.sentinels]
    assert ids == list(range(bpe.text_vocab_size, bpe.vocab_size))
    assert bpe.vocab_size == 1000
    assert bpe.text_vocab_size == hf.Tokenizer.from_str(bpe.artefact).get_vocab_size()
    assert bpe.decode(ids[:4]) == "<eos><pad><mask><sentinel_0>"


def test_frequent_words_are_single_tokens(bpe):
    for word in (" the", " and", " of", " you"):
        assert len(bpe.encode(word)) == 1, word


@pytest.mark.parametrize("text", ["a" * 200_000, " " * 1_000_001 + "x", "\n \t" * 50_000, "word " * 40_000])
def test_very_long_words_and_blanks(bpe, text):
    ids = bpe.encode(text)
    assert b"".join(bpe._text_bytes(int(token)) for token in ids) == text.encode()


def test_training_is_deterministic_and_the_hash_follows_the_ids(bpe, texts):
    again = tokenizers.train_bpe(texts, 1000, num_sentinels=4)
    assert again.hash == bpe.hash
    others = [tokenizers.train_bpe(texts, 990, 4), tokenizers.BPE(bpe.artefact, 5), tokenizers.Bytes(4)]
    assert len({bpe.hash, tokenizers.Bytes(5).hash, *(other.hash for other in others)}) == 5


def test_save_and_load(bpe, tmp_path):
    bpe.save(tmp_path / "t")
    loaded = tokenizers.load(tmp_path / "t" / "tokenizer.json", 4)
    assert loaded.hash == bpe.hash == json.loads((tmp_path / "t" / "lmjax_tokenizer.json").read_text())["hash"]
    assert loaded.encode("To be, or not").tolist() == bpe.encode("To be, or not").tolist()


def test_a_foreign_tokenizer_keeps_its_specials_out_of_the_text(texts, tmp_path):
    """Special tokens first, as most published files have them, and another word pattern."""
    theirs = hf.Tokenizer(hf.models.BPE())
    words = hf.pre_tokenizers.Split(hf.Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    theirs.pre_tokenizer = hf.pre_tokenizers.Sequence(
        [words, hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = hf.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<pad>"],
        show_progress=False,
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
    )
    theirs.train_from_iterator(texts, trainer)
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizers.load(tmp_path / "tokenizer.json", 4)
    assert ours.specials.eos == 600 and ours.vocab_size == 607
    ours.check([*texts, "12345 <|endoftext|>"])
    assert theirs.encode("<|endoftext|>").ids == [0]
    assert min(ours.encode("<|endoftext|> <pad>")) > 1
    assert ours.encode(texts[0]).tolist() == theirs.encode(texts[0]).ids


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "expected a BPE"),
        ('{"model": {"type": "WordPiece", "vocab": {}, "merges": []}}', "expected a byte-level BPE"),
        ('{"model": {"type": "Unigram"}}', "expected a BPE"),
    ],
)
def test_unfit_files_are_refused(tmp_path, content, words):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=words):
        tokenizers.load(tmp_path / "tokenizer.json", 4)
    with pytest.raises(InputError, match="data.tokenizer"):
        tokenizers.load(tmp_path / "absent.json", 4)


def test_a_disagreement_with_hugging_face_is_found(bpe, texts):
    """The check itself: an encoder with the wrong word pattern must not pass."""
    wrong = tokenizers.BPE(bpe.artefact, 4)
    wrong._encoding = __import__("tiktoken").Encoding(
        "wrong", pat_str=r"\S+|\s+", mergeable_ranks=wrong._encoding._mergeable_ranks, special_tokens={}
    )
    with pytest.raises(InputError, match="disagree at token"):
        wrong.check(texts)


def test_too_small_a_vocabulary(texts):
    for size in (260, None):  # None: the default of data.vocab_size
        with pytest.raises(InputError, match=f"data.vocab_size: expected more than 263 .*, got {size}"):
            tokenizers.train_bpe(texts, size, 4)
    small = tokenizers.train_bpe(["abab"], 1000, 4)  # text that gives one merge
    assert small.text_vocab_size < 270 and small.specials.eos == small.text_vocab_size


def test_words_are_those_of_a_whitespace_split_by_frequency(tmp_path):
    texts = ["the cat saw the dog\n", " the  <unk> cat\tran \n \n"]
    words = tokenizers.train_words(texts, None, num_sentinels=2)
    split = " ".join(texts).replace("\n", " <newline> ").split()
    expected = sorted({*split} - {"<unk>"}, key=lambda w: (-split.count(w), w.replace("<newline>", "\n")))
    assert [words.show(i).strip() for i in range(words.text_vocab_size)] == [
        *(w.replace("<newline>", "\\n") for w in expected),
        "<unk>",
    ]
    reference = hf.Tokenizer.from_str(words.artefact)
    reference.pre_tokenizer = hf.pre_tokenizers.WhitespaceSplit()
    for text in ("the cat sat", "dog <unk> ran", "", "ran ran  the"):
        assert words.encode(text).tolist() == reference.encode(text).ids
    assert words.decode(words.encode(" the cat\n sat ")) == "the cat\n<unk>"
    fewer = tokenizers.train_words(texts, 4 + 5, num_sentinels=2)  # <unk>, three words, five special ids
    assert fewer.decode(fewer.encode("the cat saw\n")) == "the cat <unk>\n" and fewer.vocab_size == 9
    with pytest.raises(InputError, match="at least 7"):
        tokenizers.train_words(texts, 6, num_sentinels=2)
    words.save(tmp_path)
    assert tokenizers.load_saved(tmp_path).hash == words.hash != fewer.hash
    (tmp_path / "tokenizer.json").write_text(words.artefact.replace('"<unk>": ', '"?": '))
    with pytest.raises(InputError, match="vocabulary of words with <unk>"):
        tokenizers.load_saved(tmp_path)


def test_a_run_on_words_has_a_perplexity_and_no_bits_per_byte(tmp_path):
    """Words that are not in the vocabulary are lost, so bits per byte would be too few. The unigrams of two words."""
    for part in range(40):
        (tmp_path / f"{part}.txt").write_text("to be\n" * (20 + part))
    (tmp_path / "blank.txt").write_text("  \t ")  # a document without a word
    keys = {"data.sources": (f"files:{tmp_path}/*.txt",), "data.tokenizer": "words", "data.validation_fraction": 0.2}
    keys |= {"model.ngram_order": 1, "data.vocab_size": None, "duration.steps": 10}
    run = resolve(overlay(small("ngram"), keys))
    assert run.data.tokenizer.text_vocab_size == 4  # to, be, newline, <unk>
    assert trainer.train(run, tmp_path / "run", show_progress=False) == trainer.DONE
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["bits_per_byte"] is None and summary["loss"] == pytest.approx(math.log(3), abs=0.1)
    model = lmjax.load(tmp_path / "run")
    found = model.perplexity(["to be\n" * 50])
    assert found["bits_per_byte"] is None and found["perplexity"] == pytest.approx(3, abs=0.3)
    made = evaluation.evaluate(tmp_path / "run", ["addition_1"], limit=3)
    assert "log_likelihood" in set(made["metric"]) and "bits_per_byte" not in set(made["metric"])
    text = 'name = "own"\nkind = "cloze"\nprompt = "to"\nanswer = " {answer}"\nmetrics = ["bits_per_byte"]\n'
    (tmp_path / "own.toml").write_text(text + '[[examples]]\nanswer = "be"\n')
    with pytest.raises(InputError, match="bits_per_byte: not defined for a tokenizer of words"):
        evaluation.evaluate(tmp_path / "run", [str(tmp_path / "own.toml")])
    with pytest.raises(InputError, match="bytes or bpe to export"):
        vocabulary.write(model.tokenizer, tmp_path, 8, trained.frame(model))


def test_words_that_are_unknown_or_written_have_no_other_ones_place():
    """A generated word after the prompt; the vector of an unknown word; an unknown line among the lines seen."""
    words = tokenizers.train_words(["to be or"], None, num_sentinels=2)
    before, after = words.encode("to be").tolist(), words.encode("or to").tolist()
    assert generate._text_of(words, "decoder")(before, after) == " or to"
    vectors = Vectors(words, np.eye(words.text_vocab_size, dtype=np.float32))
    assert vectors.id("be") == words.encode("be")[0]
    with pytest.raises(InputError, match="word 'question': expected one token"):
        vectors.id("question")
    corpus = documents.Corpus.__new__(documents.Corpus)
    corpus.tokenizer, corpus._training_texts = words, lambda length, lines: {words.encode(seen).tobytes()}
    seen = "to be"
    assert corpus.was_trained_on("to  be") and not corpus.was_trained_on("to or")
    seen = "is it"
    assert not corpus.was_trained_on("not that"), "both are two unknown words"
    eos, tokens = words.specials.eos, [*words.encode("to question be")]
    corpus.stores = [types.SimpleNamespace(tokens=lambda split: np.asarray([eos, *tokens, eos]))]
    assert [x.tolist() for x in corpus._find_stretches(0, True)] == [[1], [3]], "no line ends at an unknown word"


def test_ids_outside_the_vocabulary_do_not_decode(bpe):
    with pytest.raises(InputError, match="outside the vocabulary"):
        bpe.decode([bpe.vocab_size])


def test_byte_characters_are_gpt2s():
    table = tokenizers.byte_characters()
    assert (table[32], table[65], len(set(table.values()))) == ("\u0120", "A", 256)
    assert sorted(table.values()) == sorted(hf.pre_tokenizers.ByteLevel.alphabet())


def test_dtype_holds_every_id():
    assert tokenizers.Bytes(4).dtype == np.uint16
    assert tokenizers.Bytes(2**16).dtype == np.uint32

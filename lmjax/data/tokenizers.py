"""Text to ids and back: bytes, byte-level BPE, words, or the tokenizer of a published model.

In the first three, which training uses, text ids come first, then the special ids.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from lmjax.errors import InputError

# GPT-2's split of text into words, the one HF's ByteLevel uses.
_GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_LONG_BLANK = 100_000  # characters; tiktoken's regular expressions overflow on blanks ten times as long
_NOT_SUPPORTED = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids that no text encodes to."""

    eos: int  # between documents, so each document also begins with it
    pad: int
    mask: int
    sentinels: tuple[int, ...]

    @staticmethod
    def after(text_vocab_size: int, num_sentinels: int) -> "SpecialIds":
        """Returns the ids that follow the text ids: eos, pad, mask, sentinels.

        Example: SpecialIds.after(256, 2) = SpecialIds(eos=256, pad=257, mask=258, sentinels=(259, 260)).
        """
        first = text_vocab_size
        return SpecialIds(first, first + 1, first + 2, tuple(range(first + 3, first + 3 + num_sentinels)))

    def names(self) -> dict[int, str]:
        """Returns {id: "<eos>", ...}."""
        named = {self.eos: "<eos>", self.pad: "<pad>", self.mask: "<mask>"}
        return named | {token: f"<sentinel_{i}>" for i, token in enumerate(self.sentinels)}


class Tokenizer:
    """Base of all tokenizers: name, text_vocab_size, specials, vocab_size (text and specials), dtype, hash.

    A document is read by a model as `prefix`, its ids, `suffix`; a target begins with `decoder_start`.
    """

    name: str
    text_vocab_size: int
    artefact = ""  # text of a tokenizer.json, if there is one
    lossless = True  # `decode` gives the text back

    def __init__(self, num_sentinels: int):
        self.specials = SpecialIds.after(self.text_vocab_size, num_sentinels)
        self.prefix, self.suffix = (self.specials.eos,), ()
        self.decoder_start = (self.specials.pad,)
        self.vocab_size = self.text_vocab_size + 3 + num_sentinels

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """The type of encoded ids: the smallest of uint16 and uint32 that holds all of them."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 of everything that determines the ids."""
        facts = [self.name, self.text_vocab_size, dataclasses.astuple(self.specials), self._content()]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _content(self) -> str:
        """Identifies the text vocabulary."""
        return hashlib.sha256(self.artefact.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Returns the text's ids, all below text_vocab_size; special ids never come from text."""
        raise NotImplementedError

    def encode_around(self, pieces: list[str], blanks: list[int]) -> list[int]:
        """Returns the ids of a text with blanks in it: piece, blank, piece, blank, ..., piece.

        Args:
            pieces: the text around the blanks, one more than there are blanks.
            blanks: special ids.

        Example (bytes): encode_around(["a", "b"], [258]) = [97, 258, 98]
        """
        ids = self.encode(pieces[0]).tolist()
        for blank, piece in zip(blanks, pieces[1:], strict=True):
            ids += [blank, *self.encode(piece).tolist()]
        return ids

    def _text_bytes(self, token: int) -> bytes:
        raise NotImplementedError

    @functools.cached_property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The UTF-8 bytes of every id, with the space before a word; b"" for special ids."""
        names = self.specials.names()
        return tuple(b"" if token in names else self._text_bytes(token) for token in range(self.vocab_size))

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of the ids; special ids are shown as <eos>, <pad>, <mask>, <sentinel_0>, ...

        Example (bytes): decode([72, 105, 256]) = "Hi<eos>".
        """
        names = self.specials.names()
        pieces = []
        for token in self._inside(ids):
            pieces.append(names[token].encode() if token in names else self._text_bytes(token))
        return b"".join(pieces).decode("utf8", errors="replace")

    def _inside(self, ids: Iterable[int]) -> list[int]:
        ids = [int(token) for token in ids]
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise InputError(f"id {token} is outside the vocabulary of {self.name}: 0 .. {self.vocab_size - 1}")
        return ids

    def show(self, token: int) -> str:
        """Returns one id as visible text: "<eos>", "the", "\\n", "\\xc3"."""
        name = self.specials.names().get(token)
        if name:
            return name
        return self._text_bytes(token).decode("utf8", errors="backslashreplace").translate(_VISIBLE)

    def save(self, folder: pathlib.Path) -> None:
        """Writes lmjax_tokenizer.json, and tokenizer.json if there is one, into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        saved = {"name": self.name, "num_sentinels": len(self.specials.sentinels), "hash": self.hash, **self._framing()}
        (folder / "lmjax_tokenizer.json").write_text(json.dumps(saved, indent=1), "utf8")
        if self.artefact:
            (folder / "tokenizer.json").write_text(self.artefact, "utf8")

    def _framing(self) -> dict:
        """Returns what `save` writes besides name and sentinels."""
        return {}


_VISIBLE = {code: f"\\x{code:02x}" for code in range(32)} | {9: "\\t", 10: "\\n", 13: "\\r"}


class Bytes(Tokenizer):
    """UTF-8 bytes as ids 0..255. No training needed.

    Example: Bytes(2).encode("Hi") = [72, 105]; vocab_size 261: eos 256, pad 257, mask 258, sentinels 259, 260.
    """

    name = "bytes"
    text_vocab_size = 256

    def _content(self):
        return "utf8"

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(self.dtype)

    def _text_bytes(self, token):
        return bytes([token])


class BPE(Tokenizer):
    """Byte-level BPE from a Hugging Face tokenizer.json: its ids, at tiktoken's speed.

    The file's own special tokens stay ids that no text encodes to; those of lmjax follow its largest id.
    """

    name = "bpe"

    def __init__(self, artefact: str, num_sentinels: int, origin: str = "tokenizer.json"):
        """Reads the JSON text of the file; `origin` is its path, for errors."""
        import tiktoken

        self.artefact = artefact
        words, vocabulary, last = _read_artefact(artefact, origin)
        self.text_vocab_size = last + 1
        super().__init__(num_sentinels)
        self._vocabulary = {token: text for text, token in vocabulary.items()}
        self._encoding = tiktoken.Encoding("lmjax", pat_str=words, mergeable_ranks=vocabulary, special_tokens={})

    def encode(self, text):
        if len(text) >= _LONG_BLANK and re.search(rf"\s{{{_LONG_BLANK}}}", text):
            return np.asarray(self._hf.encode(text, add_special_tokens=False).ids, self.dtype)
        return np.asarray(self._encoding.encode_ordinary(text), self.dtype)

    def encode_around(self, pieces, blanks):
        """As in Tokenizer. Words begin with their space: a space before a blank belongs to the missing text."""
        return super().encode_around([*(piece.removesuffix(" ") for piece in pieces[:-1]), pieces[-1]], blanks)

    @functools.cached_property
    def _hf(self):
        """Hugging Face's encoder for the same vocabulary, which does not know the file's special tokens."""
        import tokenizers

        facts = json.loads(self.artefact) | {"added_tokens": [], "post_processor": None}
        return tokenizers.Tokenizer.from_str(json.dumps(facts))

    def check(self, texts: Iterable[str], origin: str = "tokenizer.json") -> None:
        """Raises InputError if our ids of a text differ from those of Hugging Face's encoder for the same file.

        The file's own special tokens are left out of the comparison: there, a literal "<|endoftext|>" in a
        text becomes the special id; here it stays text.
        """
        for text in texts:
            expected, got = self._hf.encode(text, add_special_tokens=False).ids, self.encode(text).tolist()
            if expected != got:
                pairs = enumerate(zip(expected, got, strict=False))
                place = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(got)))
                raise InputError(
                    f"{origin}: Hugging Face's encoder and tiktoken's disagree at token {place} of "
                    f"{text[:80]!r}: {expected[place : place + 5]} against {got[place : place + 5]}"
                )

    def _text_bytes(self, token):
        return self._vocabulary.get(token, f"<unused_{token}>".encode())


class Words(Tokenizer):
    """Words between spaces, and newlines, as ids, most frequent first; other words become <unk>.

    For texts that are split into words already, such as Penn Treebank and WikiText. The blanks between words and the
    words that are not in the vocabulary are lost.

    Example: the words of ["a b a"]: encode("a  c") = [0, 2]; decode([0, 2]) = "a <unk>".
    """

    name, lossless = "words", False
    unknown = "<unk>"

    def __init__(self, artefact: str, num_sentinels: int, origin: str = "tokenizer.json"):
        """Reads a WordLevel tokenizer.json, as `train_words` makes it; `origin` is its path, for errors."""
        self.artefact = artefact
        try:
            self._ids = {str(word): int(token) for word, token in json.loads(artefact)["model"]["vocab"].items()}
            self._unknown = self._ids[self.unknown]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{origin}: expected a vocabulary of words with {self.unknown}, got {error!r}") from error
        self._words = sorted(self._ids, key=self._ids.__getitem__)
        if [self._ids[word] for word in self._words] != list(range(len(self._words))):
            raise InputError(f"{origin}: expected the ids 0 .. {len(self._words) - 1}, each of one word")
        self.text_vocab_size = len(self._words)
        super().__init__(num_sentinels)

    def encode(self, text):
        return np.fromiter((self._ids.get(word, self._unknown) for word in _words_of(text)), self.dtype)

    def _text_bytes(self, token):
        word = self._words[token]
        return word.encode() if word == "\n" else f" {word}".encode()

    def decode(self, ids):
        """As in Tokenizer; words have one space between them."""
        return super().decode(ids).replace("\n ", "\n").removeprefix(" ")


def _words_of(text: str) -> Iterator[str]:
    """One by one: as a list, the words of a text take ten times its memory."""
    return (found.group() for found in re.finditer(r"\n|\S+", text))


class HuggingFace(Tokenizer):
    """The tokenizer.json of a published model with its own text and special ids, for import, decoding and evaluation.

    The name of a special token in a text is read as text, not as the special id.

    Args:
        artefact: the JSON text of the file.
        specials: its ids; -1 where the model has none of that kind.
        prefix, suffix: ids a document begins and ends with.
        decoder_start: ids that an encoder-decoder's target begins with.
        origin: its path, for errors.

    Example: BERT: prefix ([CLS],), suffix ([SEP],); GPT-2: prefix (<|endoftext|>,), suffix ().
    """

    name = "huggingface"

    def __init__(
        self,
        artefact: str,
        specials: SpecialIds,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        decoder_start: tuple[int, ...] = (),
        origin: str = "tokenizer.json",
    ):
        self._hf = parse_artefact(artefact, origin)
        self._hf.encode_special_tokens = True
        self.artefact, self.specials = artefact, specials
        self.prefix, self.suffix, self.decoder_start = tuple(prefix), tuple(suffix), tuple(decoder_start)
        self.vocab_size = self.text_vocab_size = max(self._hf.get_vocab(with_added_tokens=True).values()) + 1
        given = [specials.eos, specials.pad, specials.mask, *specials.sentinels, *prefix, *suffix, *decoder_start]
        if any(not -1 <= token < self.vocab_size for token in given):
            raise InputError(f"{origin}: special ids {given} are outside its vocabulary 0 .. {self.vocab_size - 1}")

    def _content(self):
        return hashlib.sha256((self.artefact + json.dumps(self._framing())).encode()).hexdigest()

    def _framing(self):
        framing = {name: getattr(self, name) for name in ("prefix", "suffix", "decoder_start")}
        return {"specials": dataclasses.asdict(self.specials), **framing}

    def encode(self, text):
        return np.asarray(self._hf.encode(text, add_special_tokens=False).ids, self.dtype)

    def encode_around(self, pieces, blanks):
        """As in Tokenizer, by the model's own rules for blanks next to its special tokens. Their names in the pieces
        count too."""
        names = [*map(self._hf.id_to_token, blanks), ""]
        self._hf.encode_special_tokens = False
        try:
            text = "".join(piece + name for piece, name in zip(pieces, names, strict=True))
            return self._hf.encode(text, add_special_tokens=False).ids
        finally:
            self._hf.encode_special_tokens = True

    def decode(self, ids):
        return self._hf.decode(self._inside(ids), skip_special_tokens=False)

    def _text_bytes(self, token):
        """What the id adds to the text before it: decoded alone, it would lose the space before a word."""
        before = self.encode("a").tolist()
        return self.decode([*before, token]).removeprefix(self.decode(before)).encode()

    def show(self, token):
        return (self._hf.id_to_token(token) or f"<unused_{token}>").translate(_VISIBLE)


def parse_artefact(artefact: str, origin: str):
    """Returns the Hugging Face encoder of a tokenizer.json without padding or truncation; `origin` is for errors."""
    import tokenizers

    try:
        hf = tokenizers.Tokenizer.from_str(artefact)
    except Exception as error:  # the library raises bare Exceptions
        raise InputError(f"{origin}: expected a tokenizer.json, got {error}") from error
    hf.no_padding()
    hf.no_truncation()
    return hf


def facts(tokenizer: Tokenizer) -> dict:
    """Returns what a run's record says about its tokenizer."""
    names = ("name", "hash", "vocab_size", "text_vocab_size", "prefix", "suffix")
    return {"specials": dataclasses.asdict(tokenizer.specials)} | {name: getattr(tokenizer, name) for name in names}


def load_saved(folder: pathlib.Path) -> Tokenizer:
    """Returns the tokenizer that `save` wrote into a folder.

    Raises:
        InputError: damaged, or changed since it was saved.
    """
    try:
        saved = json.loads((folder / "lmjax_tokenizer.json").read_text("utf8"))
        name, count, expected = saved["name"], saved["num_sentinels"], saved["hash"]
        artefact = "" if name == "bytes" else (folder / "tokenizer.json").read_text("utf8")
        origin = str(folder / "tokenizer.json")
        if name == "huggingface":
            ids = saved["specials"]
            specials = SpecialIds(ids["eos"], ids["pad"], ids["mask"], tuple(ids["sentinels"]))
            framing = (saved["prefix"], saved["suffix"], saved["decoder_start"])
            tokenizer = HuggingFace(artefact, specials, *framing, origin=origin)
        else:
            kinds = {"bpe": BPE, "words": Words}
            tokenizer = Bytes(count) if name == "bytes" else kinds[name](artefact, count, origin)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: expected a tokenizer saved by lmjax, got {error!r}") from error
    if tokenizer.hash != expected:
        raise InputError(f"{folder}: the tokenizer has changed since it was saved (its hash differs)")
    return tokenizer


def _read_artefact(artefact: str, origin: str) -> tuple[str, dict[bytes, int], int]:
    """(word pattern, {token bytes: id}, largest id) of a byte-level BPE; anything else is an InputError."""
    try:
        facts = json.loads(artefact)
        model, added = facts["model"], {t["content"]: t["id"] for t in facts.get("added_tokens") or []}
        vocabulary = model["vocab"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{origin}: expected a BPE of Hugging Face tokenizers, got {error!r}") from error
    words = _word_pattern(facts.get("pre_tokenizer"))
    odd = [key for key in _NOT_SUPPORTED if model.get(key)]
    if model.get("type") != "BPE" or facts.get("normalizer") or words is None or odd:
        raise InputError(
            f"{origin}: expected a byte-level BPE (no normalizer, ByteLevel pre-tokenizer, no prefix space), "
            f"got model {model.get('type')!r} {odd}, normalizer {facts.get('normalizer')!r}, "
            f"pre-tokenizer {facts.get('pre_tokenizer')!r}; train one: data.tokenizer='bpe'"
        )
    to_byte = {character: byte for byte, character in byte_characters().items()}
    try:
        ids = {bytes(to_byte[c] for c in text): i for text, i in vocabulary.items() if text not in added}
    except KeyError as error:
        raise InputError(f"{origin}: no byte-level vocabulary: it holds the character {error.args[0]!r}") from error
    order = [vocabulary.get(left + right, -1) for left, right in merges]
    if order != sorted(order) or any(bytes([byte]) not in ids for byte in range(256)):
        raise InputError(f"{origin}: expected all 256 bytes in the vocabulary, and merges in the order of their ids")
    return words, ids, max([*vocabulary.values(), *added.values()])


def _word_pattern(pre_tokenizer: dict | None) -> str | None:
    """Returns the regular expression that cuts text into words before merging; None if it is not supported."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(steps) == 1:
        return _GPT2_WORDS if last.get("use_regex", True) else None
    first = steps[0]
    isolated = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    if len(steps) != 2 or not isolated or last.get("use_regex", True):
        return None
    return first["pattern"].get("Regex")


@functools.cache
def byte_characters() -> dict[int, str]:
    """Returns byte -> the printable character that stands for it in a byte-level vocabulary (GPT-2's table).

    Example: byte_characters()[32] = "Ġ", byte_characters()[65] = "A".
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and byte not in (32, 160, 173)]
    others = (byte for byte in range(256) if byte not in set(printable))
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def train_bpe(texts: Iterable[str], vocab_size: int | None, num_sentinels: int) -> BPE:
    """Trains a byte-level BPE with Hugging Face tokenizers.

    Args:
        texts: training documents.
        vocab_size: ids in all: 256 bytes, merges, and 3 + num_sentinels special ids. Text with few distinct
            words gives fewer merges; the vocabulary is then smaller.
        num_sentinels: sentinel ids to reserve.

    Raises:
        InputError: vocab_size is None or leaves no room for merges.
    """
    import tokenizers

    text_vocab_size = (vocab_size or 0) - 3 - num_sentinels
    if text_vocab_size <= 256:
        raise InputError(
            f"data.vocab_size: expected more than {256 + 3 + num_sentinels} (256 bytes, 3 special ids, "
            f"{num_sentinels} sentinels), got {vocab_size}; set data.vocab_size=8192"
        )
    byte_level = tokenizers.pre_tokenizers.ByteLevel
    hf = tokenizers.Tokenizer(tokenizers.models.BPE())
    hf.pre_tokenizer = byte_level(add_prefix_space=False)
    hf.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=text_vocab_size,
        show_progress=False,
        initial_alphabet=byte_level.alphabet(),
        special_tokens=[],
    )
    hf.train_from_iterator(texts, trainer)
    return BPE(hf.to_str(), num_sentinels)


def train_words(texts: Iterable[str], vocab_size: int | None, num_sentinels: int) -> Words:
    """Returns the tokenizer of the most frequent words of texts.

    Args:
        texts: training documents.
        vocab_size: ids in all: words with <unk>, and 3 + num_sentinels special ids; None: all words of the texts. Words
            that are equally frequent are taken in the order of the alphabet.
        num_sentinels: sentinel ids to reserve.

    Raises:
        InputError: vocab_size leaves no room for a word.
    """
    counts = collections.Counter[str]()
    for text in texts:
        counts.update(_words_of(text))
    room = len(counts) + 1 if vocab_size is None else vocab_size - 3 - num_sentinels
    if room < 2:
        raise InputError(
            f"data.vocab_size: expected at least {5 + num_sentinels} (<unk>, a word, 3 special ids, {num_sentinels} "
            f"sentinels), got {vocab_size}; leave data.vocab_size out to keep all words"
        )
    counts.pop(Words.unknown, None)
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: room - 1]
    vocabulary = {word: token for token, word in enumerate([*kept, Words.unknown])}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": Words.unknown}
    return Words(json.dumps({"version": "1.0", "model": model}, ensure_ascii=False), num_sentinels)


def load(path: str | pathlib.Path, num_sentinels: int) -> BPE:
    """Returns the BPE of a tokenizer.json.

    Raises:
        InputError: no such file; not a byte-level BPE.
    """
    path = pathlib.Path(path)
    try:
        return BPE(path.read_text("utf8"), num_sentinels, str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"data.tokenizer: expected 'bytes', 'bpe', 'words' or the path of a tokenizer.json, got {path}: {error}"
        ) from error

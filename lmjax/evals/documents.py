"""Texts of a run: documents that a loss is evaluated on, and the corpus that items are made from or compared with."""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.data import dataset, pipeline, sources, store, synthetic
from lmjax.errors import InputError
from lmjax.evals.table import setting
from lmjax.process import cache_folder

IMPORTED = "an imported run has no corpus"
_MOST = 50_000  # characters of a document that items are made from


# -- Documents of a loss


@dataclasses.dataclass(frozen=True, eq=False)
class Document:
    """One document."""

    ids: np.ndarray  # of its text alone, int32
    bytes: int  # of its text in UTF-8; of synthetic ones, letters
    source: str
    entropy: float = math.nan  # synthetic: expected nats per token under the law
    true_nats: float = math.nan  # synthetic: -log p of this document and its eos under the law


def identity(config: Mapping, name: str) -> dict:
    """Returns the identity of a source's text for a run (its config, or the dict of its record).

    Equal identities mean equal documents. Raises InputError for an unknown or empty source.
    """
    return _resolve(config, name).identity


def _resolve(config, name):
    text_field, seed = (setting(config, "data", key) for key in ("text_field", "seed"))
    return sources.resolve(name, text_field, seed, cache_folder())


def own(trained, max_tokens: int | None = None) -> list[Document]:
    """Returns the run's validation documents: whole, evenly spread, divided between the sources by weight.

    Args:
        trained: a run trained by lmjax.
        max_tokens: budget over all sources, with at least one document each; 0: all; None:
            config.evaluation.max_tokens.

    Raises:
        InputError: an imported run; a source whose text has changed since the run was trained.
    """
    known = trained.record["data"].get("sources")
    if not known:
        raise InputError(
            f"{trained.run_dir} was imported and has no validation documents; name a source (--source), such as "
            "'classic' or 'files:*.txt'"
        )
    budget = (trained.config.evaluation.max_tokens if max_tokens is None else max_tokens) or 0
    data, found = trained.config.data, []
    for name, weight, recorded in zip(data.sources, data.weights, known, strict=True):
        opened = _open(trained, name)
        if opened.manifest["content"] != recorded["content"]:
            raise InputError(
                f"{trained.run_dir}: the text of source {name!r} has changed since the run was trained; restore its "
                "files, or name another source"
            )
        found += _documents(opened, budget * weight / sum(data.weights))
    return found


def of_source(trained, name: str, max_tokens: int | None = None) -> list[Document]:
    """Returns validation documents of any source (see lmjax.data.sources), with the model's own tokenizer.

    The validation split of a source is the same for every run, so a model trained on the source has not seen it.
    """
    budget = setting(trained.config, "evaluation", "max_tokens") if max_tokens is None else max_tokens
    return _documents(_open(trained, name), budget or 0)


def of_texts(trained, texts: Sequence[str]) -> list[Document]:
    """Returns texts as documents of a source named "texts"."""
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise InputError("documents: expected a list of one or more texts, none of them empty")
    encode = trained.tokenizer.encode
    return [Document(encode(text).astype(np.int32), len(text.encode()), "texts") for text in texts]


def _open(trained, name):
    """The store of a source, made with the run's own tokenizer."""
    fraction = setting(trained.config, "data", "validation_fraction")
    return store.prepare_store(_resolve(trained.config, name), trained.tokenizer, fraction, cache_folder())


def _documents(opened, budget):
    tokens, offsets = opened.tokens("validation"), opened.offsets("validation")
    chosen = np.arange(len(offsets) - 1)
    if 0 < budget < len(tokens):
        chosen = pipeline.chosen_documents(offsets, budget)
    sizes, name = opened.document_bytes("validation"), opened.manifest["source"]
    truth = opened.manifest.get("entropy")
    documents = []
    for i in chosen.tolist():
        ids = tokens[offsets[i] + 1 : offsets[i + 1]].astype(np.int32)
        law = {}
        if truth:
            law = {"entropy": truth["nats_per_token"], "true_nats": synthetic.true_nats(truth["law"], ids)}
        documents.append(Document(ids, int(sizes[i]), name, **law))
    return documents


# -- The corpus of items


class Corpus:
    """Texts of the sources a run was trained on, by split ("train" | "validation").

    Items are drawn by document, not by token, so two runs on the same corpus get the same texts with any tokenizers.

    Args:
        data: lmjax.data.dataset.Data of the run.
        sources: indices of the sources that hold text.
    """

    def __init__(self, data: dataset.Data, sources: list[int]):
        self.tokenizer = data.tokenizer
        self.stores = [data.stores[i] for i in sources]
        weights = np.asarray([data.weights[i] for i in sources])
        self._shares = np.cumsum(weights / weights.sum())
        self._bounds = functools.cache(self._sum_bytes)
        self._stretches = functools.cache(self._find_stretches)
        self._training_texts = functools.cache(self._read_stretches)
        self._text = functools.lru_cache(maxsize=512)(self._read)

    def count(self, split: str) -> int:
        """Returns the number of documents in a split, over all sources."""
        return sum(opened.count(split, "documents") for opened in self.stores)

    def draw(self, rng: np.random.Generator, split: str) -> tuple[tuple[int, int], str]:
        """Returns ((source, document), text): sources in proportion to training weight, documents to their bytes.

        A long document is cut to its first 50,000 characters. Texts of a record (a pair, a row of a table) are lines.
        """
        source = min(bisect.bisect_right(self._shares.tolist(), rng.random()), len(self.stores) - 1)
        bounds = self._bounds(source, split)
        document = int(np.searchsorted(bounds, rng.integers(bounds[-1]), side="right"))
        return (source, document), self._text(source, split, document)

    def was_trained_on(self, text: str) -> bool:
        """Returns whether a text is, word for word, a training document or a line of one.

        Single lines are found only if the tokenizer has a separate id for the line break, as bytes do.
        """
        ids = self.tokenizer.encode(text).astype(self.tokenizer.dtype)
        if self.tokenizer.decode(ids).split() != text.split():  # has unknown words, which are all one id
            return False
        return len(ids) > 0 and ids.tobytes() in self._training_texts(len(ids), "\n" not in text)

    def _find_stretches(self, source: int, lines: bool) -> tuple[np.ndarray, np.ndarray]:
        """First token and length of each training document of a store, or of each line."""
        tokens, line_break = self.stores[source].tokens("train"), self.tokenizer.encode("\n")
        ends = tokens == self.tokenizer.specials.eos
        if lines and self.tokenizer.decode(line_break) == "\n" and len(line_break) == 1:
            ends |= tokens == line_break[0]
        places = np.flatnonzero(ends)
        return places[:-1] + 1, np.diff(places) - 1

    def _read_stretches(self, length: int, lines: bool) -> frozenset[bytes]:
        """The ids, as bytes, of all training documents (or lines) with `length` tokens."""
        found: set[bytes] = set()
        for number, opened in enumerate(self.stores):
            starts, lengths = self._stretches(number, lines)
            for part in np.array_split(starts[lengths == length], 1 + len(starts) * length // 10_000_000):
                ids = np.ascontiguousarray(opened.tokens("train")[part[:, None] + np.arange(length)])
                found.update(ids.view(f"V{length * ids.itemsize}").ravel().tolist())
        return frozenset(found)

    def _sum_bytes(self, source: int, split: str) -> np.ndarray:
        """The end of each document, in bytes of text."""
        return np.cumsum(self.stores[source].document_bytes(split))

    def _read(self, source: int, split: str, document: int) -> str:
        opened = self.stores[source]
        start, end = opened.offsets(split)[document : document + 2]
        # A character is at most 4 bytes, a token at least 1: enough tokens with any tokenizer
        ids = opened.tokens(split)[start + 1 : end][: 4 * _MOST]
        places = np.flatnonzero(ids == self.tokenizer.specials.eos)  # between the texts of a record
        texts = [self.tokenizer.decode(ids[a : b - 1]) for a, b in itertools.pairwise([0, *(places + 1), len(ids) + 1])]
        return "\n".join(texts)[:_MOST]


def missing(record: dict) -> str:
    """Returns the error message if no items can be made from a run's text, else "".

    Args:
        record: the run's config.json.
    """
    sources = record.get("data", {}).get("sources", [])
    if not sources:
        return IMPORTED
    if not _text_sources(sources):
        return f"its corpus ({', '.join(s['source'] for s in sources)}) is made of random ids, not of text"
    return ""


def _text_sources(sources: list[dict]) -> list[int]:
    return [i for i, source in enumerate(sources) if "synthetic" not in source["identity"]]


def prepared(config, record: dict) -> dataset.Data:
    """Returns the data of a run; prepares them if the cache no longer has them.

    Raises:
        InputError: the text of the sources has changed since the run was trained.
    """
    data = dataset.prepare(config)
    then = [source["content"] for source in record["data"]["sources"]]
    now = [source["content"] for source in data.manifest["sources"]]
    if then != now:
        raise InputError(
            f"the text of data.sources {tuple(config.data.sources)} has changed since the run was trained: expected "
            f"content {then}, got {now}; restore the files, or leave out the evaluations that need them"
        )
    return data


def corpus_of(config, record: dict) -> Corpus:
    """Returns the corpus of a run; see `prepared`."""
    return Corpus(prepared(config, record), _text_sources(record["data"]["sources"]))

"""The text of a run's own corpus: cloze and next-sentence items are made from it, and other items must not repeat it.

Items are drawn by document, not by token, so two runs on the same corpus get the same texts with any tokenizers.
"""

import bisect
import functools

import numpy as np

from lmjax.data import dataset
from lmjax.errors import InputError

IMPORTED = "an imported run has no corpus"
_MOST = 50_000  # characters of a document that are read


class Corpus:
    """Texts of the sources a run was trained on, by split ("train" | "validation").

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
        """Returns the documents of a split, over all sources."""
        return sum(store.count(split, "documents") for store in self.stores)

    def draw(self, rng: np.random.Generator, split: str) -> tuple[tuple[int, int], str]:
        """Returns ((source, document), text): a source by its weight in training, a document by its bytes.

        A long document is cut to its first 50,000 characters.
        """
        source = min(bisect.bisect_right(self._shares.tolist(), rng.random()), len(self.stores) - 1)
        bounds = self._bounds(source, split)
        document = int(np.searchsorted(bounds, rng.integers(bounds[-1]), side="right"))
        return (source, document), self._text(source, split, document)

    def was_trained_on(self, text: str) -> bool:
        """Returns whether a text is, word for word, a training document or a line of one.

        Lines are found where the tokenizer has an id of its own for the line break, as bytes do.
        """
        ids = self.tokenizer.encode(text).astype(self.tokenizer.dtype)
        return len(ids) > 0 and ids.tobytes() in self._training_texts(len(ids), "\n" not in text)

    def _find_stretches(self, store: int, lines: bool) -> tuple[np.ndarray, np.ndarray]:
        """First token and length of each training document of a store, or of each line."""
        tokens, line_break = self.stores[store].tokens("train"), self.tokenizer.encode("\n")
        ends = tokens == self.tokenizer.specials.eos
        if lines and len(line_break) == 1:
            ends |= tokens == line_break[0]
        places = np.flatnonzero(ends)
        return places[:-1] + 1, np.diff(places) - 1

    def _read_stretches(self, length: int, lines: bool) -> frozenset[bytes]:
        """The ids, as bytes, of all training documents (or lines) with `length` tokens."""
        found: set[bytes] = set()
        for number, store in enumerate(self.stores):
            starts, lengths = self._stretches(number, lines)
            for part in np.array_split(starts[lengths == length], 1 + len(starts) * length // 10_000_000):
                ids = np.ascontiguousarray(store.tokens("train")[part[:, None] + np.arange(length)])
                found.update(ids.view(f"V{length * ids.itemsize}").ravel().tolist())
        return frozenset(found)

    def _sum_bytes(self, source: int, split: str) -> np.ndarray:
        """The end of each document, in bytes of text."""
        return np.cumsum(self.stores[source].document_bytes(split))

    def _read(self, source: int, split: str, document: int) -> str:
        store = self.stores[source]
        start, end = store.offsets(split)[document : document + 2]
        # A character is at most 4 bytes, a token at least 1: enough tokens with any tokenizer
        ids = store.tokens(split)[start + 1 : end][: 4 * _MOST]
        return self.tokenizer.decode(ids)[:_MOST]


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
            f"run {record['run_id']}: text of data.sources {tuple(config.data.sources)} has changed since training; "
            f"expected content {then}, got {now}; restore the files, or leave out the tasks made from the corpus"
        )
    return data


def of_run(config, record: dict) -> Corpus:
    """Returns the corpus of a run; see `prepared`."""
    return Corpus(prepared(config, record), _text_sources(record["data"]["sources"]))

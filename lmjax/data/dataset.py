"""From a config to open token stores: `prepare`. Windows, order and batches are in pipeline.py."""

import dataclasses
import functools
import json
import pathlib

import numpy as np

from lmjax.data import shared, sources, store, tokenizers
from lmjax.data.files import BETWEEN
from lmjax.errors import InputError

TRAINING_BYTES = 200_000_000  # most text that a BPE or the words are made from, divided evenly between the sources


@dataclasses.dataclass(frozen=True)
class Data:
    """The prepared sources of a config."""

    stores: tuple[store.Store, ...]
    weights: tuple[float, ...]
    tokenizer: tokenizers.Tokenizer
    manifest: dict  # JSON; goes into the run record
    digest: str  # hash of the content of `manifest`; equal on every machine that has the same text

    @property
    def vocab_size(self) -> int:
        """Number of ids of the tokenizer: text and special ids."""
        return self.tokenizer.vocab_size

    @functools.cached_property
    def frequencies(self) -> np.ndarray:
        """Shares of the text ids in the training text, [text_vocab_size] float64; sources count by their weights."""
        total, size = np.zeros(self.tokenizer.text_vocab_size), 2**24
        for opened, weight in zip(self.stores, self.weights, strict=True):
            tokens = opened.tokens("train")
            parts = (tokens[at : at + size] for at in range(0, len(tokens), size))
            counts = np.sum([np.bincount(part, minlength=self.vocab_size) for part in parts], axis=0)[: len(total)]
            total += weight * counts / counts.sum()
        return total

    def spec(self, objective, options):
        """Returns the `lmjax.objectives.Spec` of an objective on this data."""
        return objective.spec(self.tokenizer, options, self.frequencies if objective.frequencies else None)


def prepare(config) -> Data:
    """Returns the config's data, ready to read; builds tokenizer and stores first if neither the cache nor
    $LMJAX_STORES has them.

    Args:
        config: a checked config; reads its section `data`.

    Raises:
        InputError: unknown source, missing package, no text, invalid text, damaged store, unwritable cache.
    """
    settings, cache = config.data, store.cache_folder()
    if len(set(settings.sources)) != len(settings.sources):
        raise InputError(f"data.sources names a source twice: {settings.sources}; set its weight instead")
    found = [sources.resolve(name, settings.text_field, settings.seed, cache) for name in settings.sources]
    tokenizer = _tokenizer(settings, found, cache)
    stores = tuple(store.prepare_store(source, tokenizer, settings.validation_fraction, cache) for source in found)
    weights = tuple(float(weight) / sum(settings.weights) for weight in settings.weights)
    manifest = {
        "sources": [{"weight": weight, **opened.manifest} for opened, weight in zip(stores, weights, strict=True)],
        "tokenizer": tokenizers.facts(tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "max_id": max(opened.manifest["max_id"] for opened in stores),
    }
    content = [[opened.manifest["content"], weight] for opened, weight in zip(stores, weights, strict=True)]
    # through JSON, so that the digest does not change when the manifest is read back from a run record
    return Data(stores, weights, tokenizer, json.loads(json.dumps(manifest)), store.short_hash(content))


def check_vocabulary(data: Data, vocab_size: int) -> None:
    """Raises InputError if an id has no row in an embedding of `vocab_size` rows; JAX would read another row."""
    needed = max(data.manifest["max_id"] + 1, data.tokenizer.vocab_size)
    if vocab_size < needed:
        raise InputError(
            f"model.vocab_size: expected at least {needed} (ids 0 .. {needed - 1} of the tokenizer "
            f"{data.tokenizer.name!r}), got {vocab_size}; set it to 0 or to {-(-needed // 64) * 64}"
        )


def _tokenizer(settings, found: list[sources.Source], cache: pathlib.Path) -> tokenizers.Tokenizer:
    if settings.tokenizer == "bytes":
        return tokenizers.Bytes(settings.num_sentinels)
    if any(source.tokens for source in found):
        names = [source.name for source in found if source.tokens]
        raise InputError(f"sources {names} make tokens, not text; set data.tokenizer='bytes'")
    if settings.tokenizer not in ("bpe", "words"):
        tokenizer = tokenizers.load(settings.tokenizer, settings.num_sentinels)
        _check_once(tokenizer, found, settings, cache)
        return tokenizer
    fraction = settings.validation_fraction
    recipe = [1, [source.identity for source in found], settings.vocab_size, settings.num_sentinels, fraction]
    recipe += ["words"] if settings.tokenizer == "words" else []
    folder = cache / "tokenizers" / store.short_hash(recipe)
    with shared.built_once(folder, ("lmjax_tokenizer.json", "tokenizer.json"), tokenizers.load_saved) as partial:
        if partial is not None:
            texts = list(_training_texts(found, fraction))
            if settings.tokenizer == "words":
                trained = tokenizers.train_words(texts, settings.vocab_size, settings.num_sentinels)
            else:
                trained = tokenizers.train_bpe(texts, settings.vocab_size, settings.num_sentinels)
                trained.check(texts[:: max(1, len(texts) // 1000)])
            trained.save(partial)
    try:
        return tokenizers.load_saved(folder)
    except InputError as error:
        raise InputError(f"{error}; delete the folder {folder} and run again") from error


def _training_texts(found, fraction):
    for source in found:
        room = TRAINING_BYTES // len(found)
        for split, _, text in store.split_documents(source, store.split_bound(source, fraction)):
            if split == "train":
                yield from text[:room].split(BETWEEN) if source.records else [text[:room]]
                room -= len(text)
            if room <= 0:
                break


def _check_once(tokenizer, found, settings, cache):
    """Compares an imported tokenizer with Hugging Face's encoder on 200 documents per source, once per content."""
    name = store.short_hash([tokenizer.hash, [source.identity for source in found], settings.validation_fraction])
    with shared.built_once(cache / "tokenizers" / f"checked-{name}", (), lambda folder: None) as partial:
        if partial is not None:
            for source in found:
                documents = store.split_documents(source, store.split_bound(source, settings.validation_fraction))
                texts = (text for (_, _, text), _ in zip(documents, range(200), strict=False))
                tokenizer.check(texts, settings.tokenizer)

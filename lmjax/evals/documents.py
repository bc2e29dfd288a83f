"""The documents a loss is evaluated on: a run's validation documents, those of another source, or given texts."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.data import pipeline, sources, store, synthetic
from lmjax.errors import InputError
from lmjax.process import cache_folder

# Settings of an imported run, whose record has none.
_IMPORTED = {
    "data.text_field": "text",
    "data.seed": 0,
    "data.validation_fraction": 0.02,
    "evaluation.max_tokens": 262_144,
    "evaluation.seed": 0,
    "run.held_out": False,
    "train.seed": math.nan,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Document:
    """One document."""

    ids: np.ndarray  # of its text alone, int32
    bytes: int  # of its text in UTF-8; of synthetic ones, letters
    source: str
    entropy: float = math.nan  # synthetic: expected nats per token under the law
    true_nats: float = math.nan  # synthetic: -log p of this document and its eos under the law


def setting(config, section: str, name: str):
    """Returns config.<section>.<name>, or its value for an imported run."""
    known = config[section] if section in config else {}
    return known[name] if name in known else _IMPORTED[f"{section}.{name}"]


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
    data = trained.config.data
    budget = (trained.config.evaluation.max_tokens if max_tokens is None else max_tokens) or 0
    found = []
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
    found = _resolve(trained.config, name)
    fraction = setting(trained.config, "data", "validation_fraction")
    return store.prepare_store(found, trained.tokenizer, fraction, cache_folder())


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

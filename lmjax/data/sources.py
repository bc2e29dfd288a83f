"""Names of sources -> documents: embedded, constructed, tfds:, files and tables, synthetic. No tokens, no splits."""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lmjax.data import constructed, corpora, files, shared, synthetic
from lmjax.data.files import BETWEEN
from lmjax.errors import InputError, nearest

FILES = ("files", "paragraphs", "pairs", "tables")  # kinds of sources that read the user's own files
KINDS = (
    *corpora.NAMES,
    *("parallel[:CORPUS]", "orders", "modular:P", "tfds:NAME/CONFIG[@SPLIT]", *(f"{kind}:GLOB" for kind in FILES)),
    *synthetic.LAWS,
)
_READER = 1  # increase it when the same input gives different documents


@dataclasses.dataclass(frozen=True)
class Source:
    """Where documents come from.

    `documents(split)` yields (key, text), or (key, ids) if `tokens` is true. The split is "train" or "validation" where
    the source has its own splits, else "all", and validation documents are chosen by a hash.
    """

    name: str
    identity: dict  # JSON; equal identities give equal documents
    provenance: dict  # JSON; package, licence, file names
    documents: Callable[[str], Iterator[tuple[str, str | np.ndarray]]]
    own_splits: bool = False
    tokens: bool = False
    records: bool = False  # documents are several texts with BETWEEN between them: sides of a pair, cells of a row
    entropy: dict | None = None  # synthetic: law and nats per token
    true_nats: Callable[[np.ndarray], float] | None = None  # synthetic: nats of one document and its eos


def resolve(name: str, text_field: str, seed: int, cache: pathlib.Path) -> Source:
    """Returns the source of this name; reads only what is needed to identify its content.

    Args:
        name: one of
            classic | en | code | shakespeare | kjv | asv | wiki_en | aws  text in packages
            tfds:NAME or tfds:NAME/CONFIG                                  any TFDS dataset with a text field
            tfds:NAME/CONFIG@SPLIT                                         one split or slice, e.g. @train[:10%]
            files:GLOB         one document per text file, line of a jsonl, or row of a parquet file
            paragraphs:GLOB    text files cut at blank lines
            pairs:GLOB         two fields of a jsonl or parquet file, e.g. a text and its translation
            tables:GLOB        rows of csv (with a header) or parquet files
            parallel, or parallel:CORPUS   clauses of an embedded corpus (kjv) and their translation by a rule
            orders                         a small table in which each column follows from the others
            modular:P                      the addition table modulo P, a document of three letters for each sum
            zipf | markov1 | markov2 | copy, or with a number of tokens zipf:5000000
        text_field: field that holds the text in jsonl, parquet and tfds records; of pairs, both: "en,de". With two
            fields, tfds: gives pairs.
        seed: random seed of synthetic sources.

    Raises:
        InputError: unknown name (the message lists the nearest), no data, or a missing package.
    """
    kind, colon, rest = name.partition(":")
    if law := synthetic.parse(name):
        return _synthetic(name, kind, law[1], seed)
    if name in corpora.NAMES:
        return _embedded(name, cache)
    if colon and kind == "tfds":
        return _noted(name, text_field, lambda: _tfds(name, rest, text_field))
    if colon and kind in FILES:
        return _noted(name, text_field, lambda: _files(name, kind, rest, text_field, cache))
    if kind == "modular":
        return _modular(name, rest)
    if kind == "parallel" or name == "orders":
        return _constructed(name, kind, rest or "kjv", cache)
    raise InputError(f"unknown source {name!r} in data.sources{nearest(name, KINDS)}")


def _embedded(name, cache):
    text, provenance = _corpus(name, cache)
    folder = cache / "tfds" / f"{name}-{_short(text)}"

    def documents(split):
        from lmjax.data import tfds_text

        return tfds_text.embedded(name, folder)

    return Source(name, {"embedded": text, "reader": _READER}, provenance, documents)


def _corpus(name, cache):
    """({member: hash of its text}, provenance) of an embedded corpus."""
    members = [(member, corpora.CORPORA[member]) for member in corpora.members(name)]
    text = {member: corpus.sha256 or _standard_library_hash(cache) for member, corpus in members}
    return text, {member: {"package": corpus.package, "licence": corpus.licence} for member, corpus in members}


def _constructed(name, kind, corpus, cache):
    if kind == "orders":
        identity, provenance = {}, {name: {"package": "lmjax", "licence": "none needed: made by a rule"}}
    else:
        identity, provenance = _corpus(corpus, cache)

    def documents(split):
        if kind == "orders":
            return ((key, cells(row.items())) for key, row in constructed.orders())
        texts = (document for member in corpora.members(corpus) for document in corpora.read(member))
        return ((key, BETWEEN.join(sides)) for key, sides in constructed.pairs(texts))

    identity = {kind: identity, "version": constructed.VERSION, "reader": _READER}
    return Source(name, identity, provenance, documents, records=True)


def _modular(name, rest):
    if not (rest.isdecimal() and 2 <= int(rest) <= constructed.MOST):
        raise InputError(f"source {name!r}: expected a modulus of 2 to {constructed.MOST}, e.g. 'modular:59'")
    identity = {"modular": int(rest), "version": constructed.VERSION, "reader": _READER}
    provenance = {name: {"package": "lmjax", "licence": "none needed: made by a rule"}}
    return Source(name, identity, provenance, lambda split: constructed.sums(int(rest)))


def _short(facts: dict) -> str:
    return corpora.digest([(key, str(value)) for key, value in facts.items()])[:16]


def _standard_library_hash(cache) -> str:
    return corpora.digest(files.fingerprints(corpora.standard_library_files(), cache))


def _noted(name, text_field, find):
    """The source of a user's text from `find`; on a machine without the text, as another machine noted it."""
    digest, keys = _short({"name": name, "text_field": text_field}), ("identity", "provenance", "own_splits", "records")
    try:
        source = find()
    except InputError as error:
        missing, noted = error, shared.noted_text(digest)
        if noted is None:
            raise

        def documents(split):
            raise missing

        print(f"{error}; reading the token store of another machine instead", file=sys.stderr, flush=True)
        return Source(name, documents=documents, **{key: noted[key] for key in keys})
    shared.note_text(digest, {key: getattr(source, key) for key in keys})
    return source


def _tfds(name, rest, text_field):
    try:
        from lmjax.data import tfds_text
    except ImportError as error:
        raise InputError(f"source {name!r} needs tensorflow-datasets ({error}); run: pip install lmjax") from error
    rest, _, chosen = rest.partition("@")
    builder = tfds_text.find(rest)
    available = list(builder.info.splits)
    own = not chosen and "train" in available and "validation" in available
    whole = chosen or "train"  # without a validation split, or with one named split, validation is chosen by hash
    if whole.partition("[")[0] not in available:
        raise InputError(f"source {name!r}: expected a split {whole!r}, got {available}")

    fields = text_field.split(",") if text_field.count(",") == 1 else [text_field]

    def documents(split):
        split = whole if split == "all" else split
        read = [tfds_text.texts(builder, split, field) for field in fields]
        return _pairs(name, fields, *read) if len(fields) == 2 else read[0]

    only = {"split": chosen} if chosen else {}
    identity = {**tfds_text.identity(builder), **only, "text_field": text_field, "reader": _READER}
    licence = builder.info.redistribution_info.license or "see the TFDS catalogue"
    provenance = {name: {"package": builder.info.full_name, "licence": licence}}
    return Source(name, identity, provenance, documents, own, records=len(fields) == 2)


def _files(name, kind, pattern, text_field, cache):
    found = files.expand(pattern, files.TABLE_SUFFIXES if kind == "tables" else files.SUFFIXES)
    only_text = [key for key, _ in found if key.endswith(files.TEXT_SUFFIXES)]
    if kind == "paragraphs" and len(only_text) < len(found):
        odd = next(key for key, _ in found if key not in only_text)
        raise InputError(f"source {name!r}: expected text files ({', '.join(files.TEXT_SUFFIXES)}), got {odd!r}")
    fields = text_field.split(",")
    if kind == "pairs" and (len(fields) != 2 or only_text):
        raise InputError(
            f"source {name!r}: expected jsonl or parquet files and two fields in data.text_field, such as 'en,de', got "
            + (repr(only_text[0]) if only_text else repr(text_field))
        )

    def read(key, path):
        if kind == "pairs":
            return _pairs(path, fields, *(files.read(path, key, field) for field in fields))
        if kind == "tables":
            return ((place, cells(row)) for place, row in files.read_table(path, key))
        return files.read_paragraphs(path, key) if kind == "paragraphs" else files.read(path, key, text_field)

    def documents(split):
        for key, path in found:
            yield from read(key, path)

    content = files.fingerprints(found, cache)
    identity = {kind: _short(dict(content)), "text_field": text_field, "reader": _READER}
    provenance = {name: {"files": len(found), "licence": "the user's own"}}
    return Source(name, identity, provenance, documents, records=kind in ("pairs", "tables"))


def _pairs(where, fields, first, second):
    """Yields (key, both texts) of records whose fields are read one by one."""
    for (place, one), (_, two) in zip(first, second, strict=True):
        for field, text in zip(fields, (one, two), strict=True):
            if not text.strip() or BETWEEN in text:
                what = "the separator U+001E in it" if text.strip() else "none"
                raise InputError(f"{where}, {place}: expected text in the field {field!r} of a pair, got {what}")
        yield place, one + BETWEEN + two


def cells(row: Iterable[tuple[str, str]]) -> str:
    """Returns a row of a table as one document: what names a column, its value, what names the next, ...

    Example: (("a", "1"), ("b", "2")) -> the texts "a: ", "1", " | b: ", "2", which together read "a: 1 | b: 2".
    """
    named = ((" | " * (number > 0) + f"{column}: ", value) for number, (column, value) in enumerate(row))
    return BETWEEN.join(itertools.chain.from_iterable(named))


def _synthetic(name, kind, tokens, seed):
    rate = synthetic.entropy_rate(kind)
    identity = {"synthetic": kind, "tokens": tokens, "seed": seed, "version": synthetic.VERSION}
    return Source(
        name,
        identity,
        {name: {"package": "lmjax", "licence": "none needed: random numbers"}},
        lambda split: synthetic.documents(name, seed),
        tokens=True,
        entropy={"law": kind, "nats_per_token": rate},
        true_nats=lambda ids: synthetic.true_nats(kind, ids),
    )

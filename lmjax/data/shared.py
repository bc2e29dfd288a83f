"""Prepared data in a bucket: machines with the same $LMJAX_STORES share token stores and tokenizers.

$LMJAX_STORES/stores/<digest>/<sha256>    a file of a store
              stores/<digest>.json        {name: sha256} of all its files; written last
              tokenizers/...              the same
              texts/<digest>.json         what identifies a user's text, for machines that do not have it
Objects are named by their content, so that two machines may write the same store at once. Names of files are not read
from the bucket.
"""

import contextlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from lmjax import locks
from lmjax.data.files import file_sha256
from lmjax.errors import InputError
from lmjax.object_storage import Place, parts_of


def _place() -> Place | None:
    """$LMJAX_STORES, if it is set."""
    if not (url := os.environ.get("LMJAX_STORES")):
        return None
    if (parts := parts_of(url)) is None:
        raise InputError(f"LMJAX_STORES: expected s3://bucket/path or gs://bucket/path, got {url}")
    return Place.of(parts, pathlib.Path())


def _read(place: Place, name: str) -> bytes | None:
    """Returns the content of an object, None if there is none; the list makes a missing bucket an error."""
    with place.errors():
        key, objects = place.prefix + name, place.objects()
        found = objects.read(key) if key in objects.keys(key) else None
        return found and found[0]


@contextlib.contextmanager
def built_once(
    folder: pathlib.Path, names: Sequence[str], check: Callable[[pathlib.Path], object]
) -> Iterator[pathlib.Path | None]:
    """`locks.built_once` for all machines with the same $LMJAX_STORES: a folder that another one has built is copied
    from there, and one that was built here is copied there. If that fails, a warning is printed.

    Args:
        folder: its last two names identify its content, e.g. stores/<digest>.
        names: of its files.
        check: raises InputError if the files in a folder are not what they should be.

    Raises:
        InputError: no credentials; no such bucket; a full disk.
        OSError: the bucket cannot be reached, and this machine does not have the folder.
    """
    place, name = _place(), f"{folder.parent.name}/{folder.name}"
    listed = _read(place, f"{name}.json") if place and not folder.is_dir() else None
    with locks.built_once(folder) as partial:
        fetched = partial and listed is not None and _fetch(place, name, listed, partial, names, check)
        yield None if fetched else partial
    if place and not fetched:
        place.attempt(lambda: _upload(place, name, listed if partial else None, folder, names, check))


def _fetch(place, name, listed, partial, names, check) -> bool:
    """Copies the files of a complete folder from the bucket; returns whether they are what they should be."""
    print(f"copying {place.url}/{name}", file=sys.stderr, flush=True)
    try:
        hashes = json.loads(listed)
        if hashes.keys() != {*names} or not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes.values()):
            raise InputError(f"expected the sha256 of {', '.join(names)}, got {hashes}")
        with place.errors():
            for file in names:
                place.objects().download(f"{place.prefix}{name}/{hashes[file]}", partial / file)
        check(partial)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        print(f"lmjax: warning: {place.url}/{name} is damaged and made again: {error}", file=sys.stderr, flush=True)
        for path in partial.iterdir():
            path.unlink()
        return False
    return True


def _upload(place, name, damaged, folder, names, check):
    """Copies a folder to the bucket, from one process of this machine, unless it is there, other than as `damaged`."""
    with locks.open_lock(folder.parent / f".{folder.name}.lock") as lock:
        locks.acquire(lock, wait=True)
        if (found := _read(place, f"{name}.json")) is None or found == damaged:
            check(folder)
            hashes = {file: file_sha256(folder / file) for file in names}
            for file, digest in hashes.items():
                place.objects().upload(folder / file, f"{place.prefix}{name}/{digest}")
            place.objects().write(f"{place.prefix}{name}.json", json.dumps(hashes).encode())


def note_text(digest: str, facts: dict) -> None:
    """Note what identifies a user's text, for machines that do not have it; if that fails, a warning is printed."""
    place, name, content = _place(), f"texts/{digest}.json", json.dumps(facts, sort_keys=True).encode()

    def note():
        if _read(place, name) != content:
            place.objects().write(place.prefix + name, content)

    if place:
        place.attempt(note)


def noted_text(digest: str) -> dict | None:
    """Return what `note_text` last noted on any machine; raises as `built_once` does."""
    found = _read(place, f"texts/{digest}.json") if (place := _place()) else None
    return json.loads(found) if found else None

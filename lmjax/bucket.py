"""Run directories in a bucket: `s3://bucket/path` or `gs://bucket/path` in place of a directory.

A bucket has neither renames, appends nor locks. So a run is trained in a working copy on the local disk,
`$LMJAX_CACHE/buckets/s3/bucket/path`, and a thread copies what is complete into the bucket, in this order, so that
another machine can continue at any time from what is there:

    config.json, tracker_id, tokenizer/, metrics.jsonl
    checkpoints/7/...     the files of step 7
    checkpoints/7.json    their names: step 7 is complete
    status.json
    summary.json          the run is complete

The object `lock` names the working copy that trains the run. It is only ever written by a conditional put, so of two
machines one wins, and a machine that was cut off notices that it has lost its run.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from lmjax import locks
from lmjax.checkpoint import saved_steps
from lmjax.distributed import leave
from lmjax.errors import InputError
from lmjax.object_storage import Place, parts_of
from lmjax.process import cache_folder
from lmjax.run_record import NOTES, InUse, is_fresh, replace_file

SECONDS = 20  # between two heartbeats, and between two copies
REFRESH_SECONDS = 10  # between two looks at what other machines have done
# Small files, in the order of copying.
RECORDS = ("config.json", "tracker_id", "metrics.jsonl", "status.json", "summary.json")


def _copies() -> pathlib.Path:
    return (cache_folder() / "buckets").resolve()


def place_of(path: str | os.PathLike) -> Place | None:
    """Return the place in a bucket of which a path is the working copy, None for any other path.

    Example: place_of("~/.cache/lmjax/buckets/s3/my-bucket/sweep/run") -> s3://my-bucket/sweep/run
    """
    path = pathlib.Path(path)
    if "buckets" not in path.absolute().parts:
        return None
    folder = path.resolve()
    if not folder.is_relative_to(_copies()) or len(parts := folder.relative_to(_copies()).parts) < 2:
        return None
    return Place.of(parts, folder)


def local(text: str | os.PathLike) -> pathlib.Path:
    """Return the working copy of a URL, after copying the records there, without checkpoints, from the bucket; any
    other path as it is.

    Raises:
        InputError: the extra is not installed; no credentials; no such bucket.
        OSError: the bucket cannot be reached.
    """
    parts = parts_of(text)
    if parts is None:
        return pathlib.Path(text)
    folder = _copies().joinpath(*parts)
    _pull_records(place_of(folder), everything=True)
    return folder


def local_file(text: str | os.PathLike) -> pathlib.Path:
    """Return a copy, made now, of a file in a bucket, such as a records file; any other path as it is.

    Raises:
        InputError, OSError: as `local`; no such file.
    """
    parts = parts_of(text)
    if parts is None:
        return pathlib.Path(text)
    *folder, name = parts
    place = Place.of(folder, _copies().joinpath(*folder))
    with place.errors():
        found = place.objects().read(place.prefix + name)
    if found is None:
        raise InputError(f"{text}: expected a file in the bucket, got none of this name")
    place.folder.mkdir(parents=True, exist_ok=True)
    replace_file(place.folder / name, found[0])
    return place.folder / name


def _pull_records(place: Place, everything: bool) -> None:
    """Copies what the runs below a place, or the run there, have recorded. The bucket is right, but for runs that a
    process of this machine trains.

    Args:
        place: a run or a directory of runs.
        everything: not only new results, and who trains what.
    """
    with place.errors():
        ended = {path.parent for name in ("", "*/") for path in place.folder.glob(f"{name}summary.json")}
        ended = {folder for folder in ended if not locks.is_held(folder / "lock")}  # before the keys are listed
        objects = place.objects()
        names = set(_names(place, objects))
        runs = [at for at in {"", *(name.partition("/")[0] + "/" for name in names)} if f"{at}config.json" in names]
        for folder in ended - {place.folder / at for at in runs if f"{at}summary.json" in names}:
            (folder / "summary.json").unlink()
        if everything and "" not in runs:
            _download(objects, place, names & {"prediction.json", "sweep.json", "halving.json"})

        def pull(at):
            folder = place.folder / at
            if locks.is_held(folder / "lock") or (folder in ended and not everything):
                return
            lock = objects.read(f"{place.prefix}{at}lock") if f"{at}lock" in names else None
            _note_lock(folder, lock, _owner(folder))
            if lock and json.loads(lock[0])["owner"] == _owner(folder):
                return  # trained here last, so that the working copy is at least as new
            wanted = RECORDS if everything or f"{at}summary.json" in names else ("status.json",)
            tokenizer = sorted(name for name in names if name.startswith(f"{at}tokenizer/"))
            _download(objects, place, [*tokenizer * everything, *(at + name for name in wanted if at + name in names)])

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(pull, runs))


def _stays(name: str) -> bool:
    """Whether a name in the bucket, which anyone with access can choose, is that of a file below its folder."""
    return not {"", ".", ".."} & {*name.split("/")}


def _names(place, objects) -> list[str]:
    """The objects below a place that can be files, relative to it."""
    return list(filter(_stays, (key.removeprefix(place.prefix) for key in objects.keys(place.prefix))))


def _download(objects, place, names):
    """Copies small objects to files, each at once."""
    for name in names:
        if found := objects.read(place.prefix + name):
            (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
            replace_file(place.folder / name, found[0])


_seen: dict[pathlib.Path, float] = {}


def refresh(workdir: pathlib.Path) -> None:
    """Copy from the bucket what other machines have finished or begun in a directory of runs since the last call, at
    most every 10 seconds; nothing for a directory that is not in a bucket."""
    place = place_of(workdir)
    if place and time.monotonic() - _seen.get(workdir, -REFRESH_SECONDS) >= REFRESH_SECONDS:
        place.attempt(lambda: _pull_records(place, everything=False))
        _seen[workdir] = time.monotonic()


# -- The lock


def _owner(run_dir: pathlib.Path) -> str:
    """The id of a working copy of a run, "" before it is trained."""
    path = run_dir / NOTES / "owner"
    return path.read_text() if path.exists() else ""


def _note_lock(folder, found, owner) -> dict | None:
    """The lock that was read, if another machine still writes it; kept for `run_record.is_locked`."""
    record, note = json.loads(found[0]) if found else None, folder / NOTES / "lock.json"
    note.unlink(missing_ok=True)
    if record is None or record["owner"] == owner or not is_fresh(record):
        return None
    note.parent.mkdir(parents=True, exist_ok=True)
    replace_file(note, found[0])
    return record


class _Lock:
    """The lock of a run in a bucket; the caller holds the lock file of the working copy."""

    def __init__(self, run: Place):
        self.run, self.objects, self.key, self.version = run, run.objects(), f"{run.prefix}lock", None
        self.owner = _owner(run.folder) or uuid.uuid4().hex

    def acquire(self) -> bool:
        """Take the lock; return whether this working copy had it last, so that it is at least as new as the bucket.

        Raises:
            InUse: another machine trains the run.
        """
        found = first = self.objects.read(self.key)
        while True:
            if other := _note_lock(self.run.folder, found, self.owner):
                _download(self.objects, self.run, ["status.json"])
                raise InUse(
                    f"{self.run.url} is in use by process {other['process']} on {other['host']} (heartbeat "
                    f"{time.time() - other['time']:.0f} s ago); wait for it or stop it"
                )
            if self._write(time.time(), found and found[1]):
                return first is not None and json.loads(first[0])["owner"] == self.owner
            found = self.objects.read(self.key)  # another machine was first, or the answer to our own put was lost

    def beat(self, now: float | None) -> None:
        """Renew the lock; None: release it. Ends this process with code 75 if another machine has taken the run."""
        if not self._write(now, self.version):
            found = self.objects.read(self.key)
            if found is None or json.loads(found[0])["owner"] != self.owner:  # else the answer to our own put was lost
                _note_lock(self.run.folder, found, self.owner)
                leave(f"{self.run.url} was taken over by another machine, as it had no heartbeat for two minutes")
            self.version = found and found[1]

    def _write(self, now, version) -> bool:
        """Writes the lock if it has this version; returns whether it had."""
        me = {"owner": self.owner, "process": os.getpid(), "host": os.uname().nodename, "time": now}
        new = self.objects.write(self.key, json.dumps(me).encode(), version)
        self.version = new or self.version
        return new is not None


# -- Copying a run


@contextlib.contextmanager
def mirrored(run_dir: pathlib.Path) -> Iterator[None]:
    """Hold a run in its bucket: lock it, copy what is there, copy to it while the body runs and after it. Nothing is
    done for a run directory that is not in a bucket.

    Raises:
        InputError: another machine trains the run; no credentials.
        OSError: the bucket cannot be reached, at the start or for the last copy.
    """
    run = place_of(run_dir)
    if run is None:
        yield
        return
    with run.errors():
        lock = _Lock(run)
        same = lock.acquire()
    with contextlib.ExitStack() as stack:
        stack.callback(run.attempt, lambda: lock.beat(None))
        stack.enter_context(_repeated(run, lambda: lock.beat(time.time())))
        with run.errors():
            if not same:
                note = run.folder / NOTES / "owner"
                note.unlink(missing_ok=True)  # until the copy is complete
                _pull_run(run)
                note.parent.mkdir(parents=True, exist_ok=True)
                replace_file(note, lock.owner)
            mirror = _Mirror(run)
        with _repeated(run, mirror.push):  # beside the heartbeats: a copy may take longer than the lock lasts
            try:
                yield
            except BaseException:
                run.attempt(mirror.push)  # the error of the body is the one to report
                raise
        with run.errors():
            mirror.push()


@contextlib.contextmanager
def _repeated(run: Place, call: Callable[[], None]) -> Iterator[None]:
    """Calls a function every 20 s in a thread until the body has ended."""
    done = threading.Event()

    def repeat():
        while not done.wait(SECONDS):
            run.attempt(call)

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _pull_run(run: Place) -> None:
    """Makes a working copy equal to its run in the bucket."""
    objects = run.objects()
    names = _names(run, objects)
    for name in RECORDS[1:]:
        if name not in names:
            (run.folder / name).unlink(missing_ok=True)
    _download(objects, run, [name for name in RECORDS if name in names])
    _pull_checkpoints(run, objects, names)
    for step in set(saved_steps(run.folder)) - set(_steps(names)):
        shutil.rmtree(run.folder / "checkpoints" / str(step))


def _steps(names: Sequence[str]) -> list[int]:
    """The complete steps among the objects of a run."""
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"checkpoints/(\d+)\.json", name)))


def _pull_checkpoints(run, objects, names):
    for step in _steps(names):
        note, folder = run.folder / NOTES / f"{step}.json", run.folder / "checkpoints" / str(step)
        listed = objects.read(f"{run.prefix}checkpoints/{step}.json")
        if listed is None or (folder.is_dir() and note.exists() and note.read_bytes() == listed[0]):
            continue
        partial = run.folder / NOTES / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        for name in filter(_stays, json.loads(listed[0])["files"]):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            objects.download(f"{run.prefix}checkpoints/{step}/{name}", partial / name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
        replace_file(note, listed[0])


def fetch(run_dir: pathlib.Path) -> None:
    """Copy the checkpoints of a run from the bucket that the working copy lacks; nothing for any other directory, or
    while a process of this machine trains the run."""
    run = place_of(run_dir)
    if run is not None and not locks.is_held(run_dir / "lock"):
        with run.errors():
            objects = run.objects()
            (run.folder / NOTES).mkdir(parents=True, exist_ok=True)
            _pull_checkpoints(run, objects, _names(run, objects))


class _Mirror:
    """Copies a run to its bucket."""

    def __init__(self, run: Place):
        self.run, self.objects, self.copied = run, run.objects(), {}  # what was copied: content by name
        self.steps = set(_steps(_names(run, self.objects)))
        self.steps &= set(saved_steps(run.folder))  # others stay in the bucket

    def push(self) -> None:
        """Copy what has changed since the last call."""
        folder, tokenizer = self.run.folder, sorted((self.run.folder / "tokenizer").glob("*"))
        ended, steps = (folder / "summary.json").exists(), saved_steps(folder)  # first: metrics.jsonl is then as new
        for name in ("config.json", "tracker_id", *(f"tokenizer/{path.name}" for path in tokenizer), "metrics.jsonl"):
            self._file(name)
        for step in reversed(steps):  # the newest first: an older one may be deleted meanwhile
            if step not in self.steps:
                self._checkpoint(step)
        newest = max(self.steps & set(steps), default=-1)
        for step in [step for step in self.steps - set(steps) if step < newest]:
            _remove(self.objects, self.run, step)
            self.steps.discard(step)
        for name in ("log.txt", "status.json", *["summary.json"] * ended):
            self._file(name)

    def _file(self, name):
        path = self.run.folder / name
        content = path.read_bytes() if path.exists() else None
        if content is not None and content != self.copied.get(name):
            self.objects.write(self.run.prefix + name, content)
            self.copied[name] = content

    def _checkpoint(self, step):
        folder, links = self.run.folder / "checkpoints" / str(step), self.run.folder / NOTES / "links"
        key = f"{self.run.prefix}checkpoints/{step}"
        shutil.rmtree(links, ignore_errors=True)
        try:
            shutil.copytree(
                folder, links, copy_function=os.link
            )  # these files stay when a newer step replaces this one
        except OSError:
            if folder.is_dir():
                raise
            return
        names = sorted(str(path.relative_to(links)) for path in links.rglob("*") if path.is_file())
        for name in names:
            self.objects.upload(links / name, f"{key}/{name}")
        listed = json.dumps({"files": names, "id": uuid.uuid4().hex}).encode()
        self.objects.write(f"{key}.json", listed)
        replace_file(self.run.folder / NOTES / f"{step}.json", listed)
        shutil.rmtree(links)
        self.steps.add(step)


def remove(run_dir: pathlib.Path, step: int) -> None:
    """Delete a checkpoint from the bucket; nothing for a run directory that is not in a bucket."""
    if run := place_of(run_dir):
        with run.errors():
            _remove(run.objects(), run, step)


def _remove(objects, run, step):
    key = f"{run.prefix}checkpoints/{step}"
    for name in [f"{key}.json", *objects.keys(f"{key}/")]:  # first what says that it is complete
        objects.delete(name)


# -- Files of a sweep


def share(path: pathlib.Path) -> None:
    """Copy a file that several machines may make to the bucket; if one of them was first, take its file instead."""
    place = place_of(path.parent)
    if place is not None and path.exists():
        with place.errors():
            objects, key = place.objects(), place.prefix + path.name
            if objects.write(key, path.read_bytes(), None) is None:
                _download(objects, place, [path.name])


def push_results(workdir: pathlib.Path) -> None:
    """Copy the files of a directory of runs that belong to no run (fit.json, figures, report.html) to the bucket."""
    place = place_of(workdir)
    for path in sorted(workdir.rglob("*")) if place else ():
        name = path.relative_to(workdir)
        if path.is_file() and name.parts[-1] not in ("lock", "prediction.json"):
            if not (workdir / name.parts[0] / "config.json").exists():
                with place.errors():
                    place.objects().upload(path, f"{place.prefix}{name.as_posix()}")

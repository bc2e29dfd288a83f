"""Lock files (flock), released whenever the process ends; and folders that only one process builds.

A lock file that is a symbolic link is refused: a link planted in a shared folder could redirect writes to another file.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import TextIO

from lmjax.errors import InputError

# Errors of flock on file systems without locks (some NFS, Lustre and FUSE mounts).
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def open_lock(path: pathlib.Path) -> TextIO:
    """Returns the lock file opened for reading and writing; creates it if missing, never truncates it.

    Raises:
        InputError: the path is a link or a directory.
    """
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR):
            raise
        kind = "a symbolic link" if error.errno == errno.ELOOP else "a directory"
        raise InputError(f"{path}: expected a lock file, got {kind}; move it away") from error


def acquire(file: TextIO, wait: bool = False) -> bool | None:
    """Takes the exclusive lock on an open file.

    `is_held` shares the lock for a moment, which never makes this function fail.

    Args:
        file: from `open_lock`; closing it releases the lock.
        wait: whether to wait until no other process holds it.

    Returns:
        True: this process holds the lock. False: another process holds it. None: the file system has no locks.
    """
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                return True
            except BlockingIOError:
                pass
            try:  # succeeds while readers hold the lock, not while an owner does
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(random.uniform(0, 0.002))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise


def is_held(path: pathlib.Path) -> bool | None:
    """Returns whether a process on this machine holds the lock; None if the file system has no locks."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return False


@contextlib.contextmanager
def built_once(folder: pathlib.Path) -> Iterator[pathlib.Path | None]:
    """Yield a temporary folder to fill, which is renamed to `folder` at the end, or None if `folder` exists.

    Processes that build the same folder wait for each other. Leftovers of an interrupted one are removed.

    Raises:
        InputError: the disk is full or not writable.
        ConnectionError: from the body, as it is.
    """
    if folder.is_dir():
        yield None
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open_lock(folder.parent / f".{folder.name}.lock") as lock:
            alone = acquire(lock, wait=True)  # without locks the rename decides who was first
            if folder.is_dir():
                yield None
                return
            for leftover in folder.parent.glob(f".{folder.name}.partial-*") if alone else ():
                shutil.rmtree(leftover)
            partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
            try:
                yield partial
                _rename(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except ConnectionError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot write prepared data to {folder.parent}: {error}; set the environment variable "
            "LMJAX_CACHE to a writable folder with enough room"
        ) from error


def _rename(partial: pathlib.Path, folder: pathlib.Path) -> None:
    try:
        partial.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same content
            raise

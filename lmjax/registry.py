"""Registries of named things: objectives, models, optimizers, schedules, laws, tasks, metrics. A name has one owner."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from lmjax.errors import InputError


class Registry(dict):
    """A dict whose names cannot be given to something else by another file.

    Args:
        kind: what it holds, for errors.
        entries: the built-in ones.

    Example:
        >>> numbers = Registry("number", {"one": 1})
        >>> numbers["two"] = 2
        >>> numbers["one"] = 3
        Traceback (most recent call last):
        lmjax.errors.InputError: number 'one' is registered already, by lmjax; give yours another name
    """

    def __init__(self, kind: str, entries: Mapping[str, Any]):
        super().__init__(entries)
        self.kind, self.owners = kind, dict.fromkeys(entries, "lmjax")
        _registries.append(self)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in self:
            self.owners[name] = _running
        elif self[name] is not value and self.owners[name] != _running:
            owner = self.owners[name] or "this session"
            message = f"{self.kind} {name!r} is registered already, by {owner}; give yours another name"
            if owner not in ("lmjax", "this session"):
                message += f", or, if {owner} imports the file of yours, name that file in the config instead"
            raise InputError(message)
        super().__setitem__(name, value)


_registries: list[Registry] = []
_running = ""  # name of the file that is being run


@contextlib.contextmanager
def running(file: str) -> Iterator[None]:
    """Context in which names are registered for a file; if it fails, the names that it has added are removed."""
    global _running
    before, _running = _running, file
    known = [dict(registry) for registry in _registries]
    try:
        yield
    except BaseException:
        for registry, entries in zip(_registries, known, strict=False):
            for name in registry.keys() - entries.keys():
                del registry[name]
        raise
    finally:
        _running = before

"""Registries of named things: objectives, models, optimizers, schedules, laws, tasks, metrics. A name has one owner."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmjax.errors import InputError


class Registry(dict):
    """A dict whose names cannot be given to something else by another file.

    Args:
        kind: what it holds, for errors.
        entries: the built-in ones.
        check: entry -> what was expected instead of it, "" if it fits; see `of_type` and `taking`.

    Example:
        >>> numbers = Registry("number", {"one": 1}, of_type(int))
        >>> numbers["two"] = 2
        >>> numbers["one"] = 3
        Traceback (most recent call last):
        lmjax.errors.InputError: number 'one' is registered already, by lmjax; give yours another name
        >>> numbers["three"] = "3"
        Traceback (most recent call last):
        lmjax.errors.InputError: number 'three': expected int, got '3'
    """

    def __init__(self, kind: str, entries: Mapping[str, Any], check: Callable[[Any], str]):
        super().__init__(entries)
        self.kind, self.check, self.owners = kind, check, dict.fromkeys(entries, "lmjax")
        _registries.append(self)

    def __setitem__(self, name: str, value: Any) -> None:
        if expected := self.check(value):
            raise InputError(f"{self.kind} {name!r}: expected {expected}, got {described(value)}")
        if name not in self:
            self.owners[name] = _running
        elif self[name] is not value and self.owners[name] != _running:
            owner = self.owners[name] or "this session"
            message = f"{self.kind} {name!r} is registered already, by {owner}; give yours another name"
            if owner not in ("lmjax", "this session"):
                message += f", or, if {owner} imports the file of yours, name that file in the config instead"
            raise InputError(message)
        super().__setitem__(name, value)


def of_type(*kinds: type) -> Callable[[Any], str]:
    """Returns the check of a `Registry` that its entries are of one of these types."""
    expected = " or ".join(kind.__name__ for kind in kinds)
    return lambda value: "" if isinstance(value, kinds) else expected


def taking(*arguments: str) -> Callable[[Any], str]:
    """Returns the check of a `Registry` that its entries are functions which can be called with these arguments."""

    def check(value):
        try:
            inspect.signature(value).bind(*arguments)
        except TypeError:  # another signature, or no function
            return f"a function of ({', '.join(arguments)})"
        except ValueError:  # some functions of Python itself have none
            pass
        return ""

    return check


def described(value: Any) -> str:
    """Returns a function with its arguments, anything else as Python shows it.

    Example: described(lambda outputs, batch: {}) = "<lambda>(outputs, batch)"
    """
    return f"{value.__name__}{inspect.signature(value)}" if inspect.isfunction(value) else repr(value)[:200]


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

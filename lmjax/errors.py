"""InputError, the exception for bad configs and bad inputs, and suggestions for unknown names."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A bad config, file or argument, which a retry cannot fix: the command ends with exit code 64.

    The message says what was expected, what was got, and what to set.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the end of an "unknown name" message: the nearest known name, then all of them.

    Example:
        >>> nearest("adamv", ["adamw", "lion"])
        "; did you mean 'adamw'? known: adamw, lion"
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{suggestion} known: {', '.join(known)}"

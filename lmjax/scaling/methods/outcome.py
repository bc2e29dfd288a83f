"""What the result of every method has: a status, reasons, warnings, conventions, a dict for files. Computes nothing."""

import dataclasses
import math
from dataclasses import dataclass, field

from lmjax.errors import InputError

STATUS = ("converged", "not_identified", "at_bound", "too_few_points", "disagreeing_starts")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Base of all results of lmjax.scaling.methods.

    status: converged | not_identified | at_bound | too_few_points | disagreeing_starts.
    reasons: why there is no result; empty exactly when the result may be used.
    warnings: what to beware of when using it.
    conventions: words for the columns, to be printed with every number and figure.
    level: of all intervals, such as 0.95.
    """

    status: str
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)
    level: float = 0.95

    def __post_init__(self):
        if self.status not in STATUS or bool(self.reasons) != (self.status != "converged"):
            raise ValueError(f"a result of status {self.status!r} with reasons {self.reasons}")

    @property
    def refused(self) -> bool:
        """Whether there is no result."""
        return bool(self.reasons)

    def usable(self):
        """Returns itself.

        Raises:
            InputError: the method refused the table; the message has the reasons.
        """
        if self.refused:
            raise InputError(f"{type(self).__name__} has no result ({self.status}): {'; '.join(self.reasons)}")
        return self

    def to_dict(self) -> dict:
        """Plain dicts, lists, numbers and text, ready for JSON; NaN and infinity become None."""
        return plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})


def plain(value):
    """Turns dataclasses, tuples, arrays and NumPy scalars into what JSON knows.

    Example:
        >>> plain({"a": (1.0, math.nan)})
        {'a': [1.0, None]}
    """
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

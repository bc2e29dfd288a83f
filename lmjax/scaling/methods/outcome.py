"""The base class of all method results (status, text, JSON), and the power laws N*(C), D*(C) that two of them share."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from lmjax import display
from lmjax.errors import InputError, nearest
from lmjax.scaling.prediction import Prediction, plain, positive_budget
from lmjax.scaling.resample import percentiles
from lmjax.scaling.result import STATUSES

SPLITS = ("N", "D", "tokens_per_param")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Base of all results of lmjax.scaling.methods.

    status: as in Fit: converged | not_identified | at_bound | too_few_points | disagreeing_starts.
    reasons: why there is no result; empty exactly when the result may be used. warnings: limits of the result.
    conventions: definitions of the columns, printed with every number and figure.
    confidence: confidence level of all intervals, such as 0.95.
    """

    status: str
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)
    confidence: float = 0.95

    def __post_init__(self):
        if self.status not in STATUSES or bool(self.reasons) != (self.status != "converged"):
            raise ValueError(f"expected reasons unless converged, got status {self.status!r}, reasons {self.reasons}")

    @property
    def refused(self) -> bool:
        """Whether there is no result."""
        return bool(self.reasons)

    def usable(self):
        """Returns itself; raises InputError with the reasons if the method refused the table."""
        if self.refused:
            raise InputError(f"{type(self).__name__} has no result ({self.status}): {'; '.join(self.reasons)}")
        return self

    def lines(self) -> list[str]:
        """The numbers of the result as lines of text; each method writes its own."""
        return []

    def rows(self) -> list[dict]:
        """The result as the rows of a table, for CSV and JSON; each method writes its own."""
        return [{name: v for name, v in self.to_dict().items() if not isinstance(v, (list, dict))}]

    def summary(self) -> str:
        """The result as text: its numbers, the reasons of a refusal, warnings and conventions."""
        refusals = [f"refused: {reason}" for reason in self.reasons]
        return warned([*self.lines(), *refusals], self.warnings, "; ".join(self.conventions.values())).strip("\n")

    def to_dict(self) -> dict:
        """Plain dicts, lists, numbers and text, ready for JSON; NaN and infinity become None."""
        return plain(self)


@dataclass(frozen=True, kw_only=True)
class PowerOfC(Outcome):
    """N*(C) = exp(k) C^a and D*(C) = exp(m) C^b.

    intervals: of a and b (NaN without resamples). draws: a, k, b, m of each resample by name; {} without resamples.
    """

    a: float = math.nan
    k: float = math.nan
    b: float = math.nan
    m: float = math.nan
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    resamples: int = 0
    seed: int = 0
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def predict(self, C, of: str = "N") -> Prediction:
        """The compute-optimal split of budgets.

        Args:
            C: budgets in the FLOP of the table, float or array.
            of: N | D | tokens_per_param.

        Returns:
            Prediction in the shape of C; its interval is NaN without resamples.

        Raises:
            InputError: the result was refused; C is not above 0; another `of`.
        """
        self.usable()
        if of not in SPLITS:
            raise InputError(f"of: expected one of {', '.join(SPLITS)}, got {of!r}{nearest(of, SPLITS)}")
        C = positive_budget(C)

        def value(p):
            log_n, log_d = p["k"] + p["a"] * np.log(C), p["m"] + p["b"] * np.log(C)
            return np.exp({"N": log_n, "D": log_d, "tokens_per_param": log_d - log_n}[of])

        ends = percentiles(value(stacked(self.draws, C.ndim)), self.confidence) if self.draws else ()
        return Prediction(value(vars(self)), *ends, confidence=self.confidence)

    def law_lines(self) -> list[str]:
        """The power laws as text."""
        if self.refused:
            return []
        laws = f"N* = {math.exp(self.k):.3g} C^{self.a:.4f}, D* = {math.exp(self.m):.3g} C^{self.b:.4f}"
        return [laws, self.exponents()]

    def exponents(self) -> str:
        """Both exponents with their intervals, as text."""
        a, b = (f"{getattr(self, name):.3f}{bracket(self.intervals[name])}" for name in "ab")
        how = f", {self.confidence:.0%} intervals from {self.resamples} resamples" if self.draws else ""
        return f"N* ~ C^{a}, D* ~ C^{b}{how}"


def bracket(interval, how: str = "{:.3f}") -> str:
    """An interval as text to append to its estimate; empty if it is not finite.

    Example:
        >>> bracket((0.25, 0.5)), bracket((math.nan, math.nan))
        (' [0.250, 0.500]', '')
    """
    return f" [{', '.join(map(how.format, interval))}]" if np.isfinite(interval).all() else ""


def stacked(draws: Mapping, ndim: int) -> dict[str, np.ndarray]:
    """Resamples by name as arrays [R, 1, ...] that broadcast over `ndim` more axes."""
    return {name: np.reshape(v, (-1, *(1,) * ndim)) for name, v in draws.items()}


def tuples(arrays: Mapping) -> dict[str, tuple[float, ...]]:
    """Arrays by name as tuples of floats, the form in which results keep them."""
    return {name: tuple(np.asarray(v).tolist()) for name, v in arrays.items()}


def intervals_of(draws: Mapping, names: Iterable[str], confidence: float) -> dict[str, tuple[float, ...]]:
    """Percentile intervals of the named resampled quantities; NaN without resamples."""
    none = (math.nan, math.nan)
    return {name: tuple(map(float, percentiles(draws[name], confidence))) if draws else none for name in names}


def warned(lines: Sequence[str], warnings: Sequence[str], *others: str) -> str:
    """Lines of text, then the warnings, then other lines."""
    return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings), *others])


def table_text(rows: Sequence[Mapping], columns: Sequence[display.Column]) -> str:
    """Rows as a plain-text table (see lmjax.display)."""
    text = io.StringIO()
    Console(file=text, width=120, force_jupyter=False).print(display.table(rows, columns, width=120))
    return text.getvalue().rstrip("\n")

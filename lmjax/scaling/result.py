"""The result of a fit: one frozen record that figures, tables and predictions read, written as fit.json."""

import dataclasses
import json
import math
import os
import pathlib
import re
from dataclasses import dataclass, field
from typing import Any

from lmjax.errors import InputError

FORMAT = 2
STATUSES = ("converged", "not_identified", "at_bound", "too_few_points", "disagreeing_starts")
INFINITY = ("-Infinity", "Infinity")  # JSON has no such numbers
WORDS = ("run", "reasons", "warnings", "notes", "source")


@dataclass(frozen=True)
class Fit:
    """A fitted law with everything needed to judge, draw and use it.

    status: one of STATUSES. `refused`: there are `reasons`, and no parameters. A fit can be "at_bound" and usable:
        a floor E of 0 is a result (read `warnings`).
    params: by name; `derived`: numbers that follow (a = beta / (alpha + beta)). Full precision: rounding an
        exponent to two digits moves tokens per parameter severalfold.
    intervals: (low, high) of params and derived, at `level`, by `method` over `refits` refits; `profiles`: the
        same from the profile of the objective, where asked for.
    objective_name: huber_log | squared_log | squared; `objective`: its minimum, a sum over rows; `gap`: what one
        more Newton step would lower it by, relative; `gradient`: scaled, see solver.certificate.
    condition: condition number of the Jacobian of ln L at the optimum, columns of unit length.
    starts, starts_agree: polished starts, and how many of them end within 1e-8 of the best objective.
    at_bounds: parameters at a bound. optimum_is_start: the optimum is one of the starting points.
    tail_share: share of |residual| > delta. noise_sd: standard deviation of a residual, in the unit of `noise_unit`.
    correlation: of the refits, in the order of `correlation_names`.
    points: fitted rows (run, N, D, C, loss, weight, the law's variables, predicted, residual = ln loss - ln
        predicted, or loss - predicted where the fit is `plain`, influence = largest shift of a parameter over the
        half width of its interval without the row).
    held_out: rows of `predictions.check_held_out`. excluded: rows left out, with `reason`.
    draws: the refits, [refits] per name (coefficients as ln); noise_scale [refits], noise_pool, noise_kernel:
        what predictions add to them.
    data_hash: of the fitted rows; `hash`: of law, conventions, objective and data, as drawn in captions.
    """

    law: str
    formula: str
    status: str
    variables: tuple[str, ...] = ()
    target: str = "loss"
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    params: dict[str, float] = field(default_factory=dict)
    derived: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    profiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    level: float = 0.95
    method: str = "auto"
    refits: int = 0
    refits_failed: int = 0
    seed: int = 0
    objective_name: str = "huber_log"
    objective: float = math.nan
    gap: float = math.nan
    gradient: float = math.nan
    condition: float = math.nan
    converged: bool = False
    iterations: int = 0
    starts: int = 0
    starts_agree: int = 0
    optimum_is_start: bool = False
    at_bounds: tuple[str, ...] = ()
    delta: float = 1e-3
    tail_share: float = math.nan
    noise_sd: float = math.nan
    correlation_names: tuple[str, ...] = ()
    correlation: tuple[tuple[float, ...], ...] = ()
    points: tuple[dict[str, Any], ...] = ()
    held_out: tuple[dict[str, Any], ...] = ()
    excluded: tuple[dict[str, Any], ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    data_hash: str = ""
    hash: str = ""
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)
    noise_scale: tuple[float, ...] = ()
    noise_pool: tuple[float, ...] = ()
    noise_kernel: float = 0.0
    format: int = FORMAT

    @property
    def refused(self) -> bool:
        """Whether the table cannot identify the law: there are reasons, and no parameters."""
        return bool(self.reasons)

    @property
    def plain(self) -> bool:
        """Whether residuals and noise are of the loss or share itself, not of ln loss."""
        return self.target == "share" or self.objective_name == "squared"

    @property
    def noise_unit(self) -> str:
        """Unit of `noise_sd` and of residuals: "ln loss", or "share" or "loss" where the fit is plain."""
        return "share" if self.target == "share" else "loss" if self.plain else "ln loss"

    def usable(self) -> "Fit":
        """Returns the fit itself.

        Raises:
            InputError: it was refused; with the reasons.
        """
        if self.refused:
            raise InputError(f"the fit of {self.formula} was refused: {'; '.join(self.reasons)}")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict of JSON types; NaN becomes None, an infinity "Infinity" or "-Infinity"."""
        return _plain(dataclasses.asdict(self))

    def save(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the fit as JSON, by rename; returns the path."""
        path = pathlib.Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        text = re.sub(r"\[[-+.\de,\s]+\]", lambda m: " ".join(m.group().split()), text)  # numbers on one line
        temporary.write_text(text + "\n", "utf8")
        os.replace(temporary, path)
        return path


def from_dict(record: dict[str, Any]) -> Fit:
    """Returns the Fit that `to_dict` described, equal in every bit.

    Raises:
        InputError: not such a record, or of another format.
    """
    known = {f.name: f for f in dataclasses.fields(Fit)}
    unknown, missing = set(record) - set(known), {"law", "formula", "status", "format"} - set(record)
    if missing or unknown or record["format"] != FORMAT:
        raise InputError(f"wanted the record of a fit, format {FORMAT}, got keys {sorted(record)[:6]}; fit again")
    values = {}
    for name, value in _unplain(record).items():
        if value is None and known[name].type in (float, "float"):
            value = math.nan
        elif name in ("points", "held_out", "excluded"):
            value = tuple({k: math.nan if v is None and k != "inside" else v for k, v in row.items()} for row in value)
        elif name == "correlation":
            value = tuple(tuple(row) for row in value)
        elif name in ("intervals", "profiles", "draws"):
            value = {k: tuple(math.nan if x is None else x for x in v) for k, v in value.items()}
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return Fit(**values)


def load(path: str | os.PathLike) -> Fit:
    """Reads a fit.json.

    Raises:
        InputError: no such file, or not the record of a fit.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"no fit at {path}; run lmjax fit first")
    try:
        record = json.loads(path.read_text("utf8"))
    except ValueError as error:
        raise InputError(f"{path} is corrupt ({error}); run lmjax fit again") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: wanted a JSON object; run lmjax fit again")
    return from_dict(record)


def _unplain(value):
    """Infinities back from their words, in the fields of numbers; a label that is such a word stays one."""
    if isinstance(value, dict):
        return {k: v if k in WORDS else _unplain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unplain(v) for v in value]
    return float(value) if isinstance(value, str) and value in INFINITY else value


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else INFINITY[value > 0]
    return value

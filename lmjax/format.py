"""Numbers as text, one form for the whole package: 1.3B parameters, 2.25M tokens, 1.92e13 FLOP, 34 MB, 1h05m."""

import math

from lmjax.errors import InputError

COUNTS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
PREFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}


def count(value: float) -> str:
    """A count (parameters, tokens, steps) with three digits; from 1e15 on as a power of ten; "-" if not finite.

    Example:
        >>> count(1234567), count(999999999), count(1.3e9), count(250), count(5.88e23)
        ('1.23M', '1B', '1.3B', '250', '5.88e23')
    """
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 1e15:
        return flop(value)
    return "".join(_scaled(value, COUNTS))


def flop(value: float) -> str:
    """A number of floating-point operations with three digits, always as a power of ten from 1e5 on.

    Example:
        >>> flop(1.92e13), flop(6e17), flop(12345)
        ('1.92e13', '6e17', '1.23e4')
    """
    return _power(f"{value:.3g}") if math.isfinite(value) else "-"


def plural(number_of: int, word: str) -> str:
    """A number with its noun.

    Example:
        >>> plural(1, "seed"), plural(2, "seed")
        ('1 seed', '2 seeds')
    """
    return f"{number_of} {word}{'s' * (number_of != 1)}"


def variable(name: str, value: float) -> str:
    """The value of a table's variable: C as FLOP, the loss as a number, everything else as a count."""
    return {"C": flop, "loss": number}.get(name, count)(value)


def quantity(value: float, unit: str) -> str:
    """A value in a unit that takes SI prefixes.

    Example:
        >>> quantity(34.1e6, "B"), quantity(1.2e10, "FLOP/s")
        ('34.1 MB', '12 GFLOP/s')
    """
    digits, prefix = _scaled(value, PREFIXES)
    return f"{digits} {prefix}{unit}"


def number(value: float | None, digits: int = 4) -> str:
    """A number with `digits` significant digits, such as a loss or an exponent; "-" if unknown.

    Example:
        >>> number(0.342626), number(1234567.0), number(0.0), number(float("nan"))
        ('0.3426', '1.235e6', '0', '-')
    """
    if value is None or not math.isfinite(value):
        return "-"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 10 ** max(digits, 5):
        return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"
    return _power(f"{value:.{digits - 1}e}")


def percent(share: float, digits: int = 2) -> str:
    """A share as a percentage with `digits` decimals; "-" if unknown.

    Example:
        >>> percent(0.0055), percent(0.3333, 0), percent(float("nan"))
        ('0.55 %', '33 %', '-')
    """
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "-"


def duration(seconds: float) -> str:
    """Seconds as a length of time.

    Example:
        >>> duration(45), duration(185), duration(7800), duration(273600)
        ('45s', '3m05s', '2h10m', '3d04h')
    """
    seconds = int(seconds)
    for size, part, large, small in ((86400, 3600, "d", "h"), (3600, 60, "h", "m"), (60, 1, "m", "s")):
        if seconds >= size:
            return f"{seconds // size}{large}{seconds % size // part:02d}{small}"
    return f"{seconds}s"


def parse_count(text: str) -> float:
    """The number written as 7e9, 7B, 2.25M or 10k: the inverse of `count`.

    Raises:
        InputError: not a number.

    Example:
        >>> parse_count("7B"), parse_count("1.92e13")
        (7000000000.0, 19200000000000.0)
    """
    size = COUNTS.get(text.strip()[-1:], 1.0)
    try:
        return float(text.strip()[:-1] if size > 1 else text) * size
    except ValueError as error:
        raise InputError(f"expected a number such as 7e9 or 7B, got {text!r}") from error


def _scaled(value, units):
    value = float(f"{value:.3g}")  # before the unit is chosen: 999.9M is 1B
    for unit, size in reversed(units.items()):
        if abs(value) >= size:
            return f"{value / size:.3g}", unit
    return f"{value:.3g}", ""


def _power(text):
    """1.92e+13 -> 1.92e13."""
    mantissa, e, exponent = text.partition("e")
    return mantissa + e + str(int(exponent)) if e else text

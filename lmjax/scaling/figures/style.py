"""Shared appearance of all figures: style, colours, log axes, footnotes, saving.

Figures are matplotlib.figure.Figure objects made without pyplot: no global state changes, no window opens.
"""

import contextlib
import math
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np

from lmjax.errors import InputError
from lmjax.format import count

STYLE = pathlib.Path(__file__).with_name("lmjax.mplstyle")
HELD_OUT = "#d55e00"  # vermilion of Okabe and Ito: distinct from viridis for all kinds of colour vision
INK, QUIET = "#222222", "#666666"
MARKERS = "osD^vPX*h<>p"
MAX_LEVELS = 8  # curves with a colour and marker each; more become a colour bar
FORMATS = ("png", "svg", "pdf")
# matplotlib's perceptually uniform maps, without their palest end
MAPS = {"N": ("viridis", 0.0, 0.85), "D": ("plasma", 0.0, 0.82)}
WORDS = {
    "N": "N, parameters",
    "D": "D, training tokens",
    "C": "C, training FLOP",
    "S": "S, training steps",
    "U": "U, unique tokens",
    "M": "M, tokens per parameter",
    "B": "B, tokens per step",
    "N_e": "N_e, parameters of the encoder",
    "N_d": "N_d, parameters of the decoder",
    "S1": "S1, area under the learning rate",
    "S2": "S2, area of the annealing",
    "loss": "loss",
    "share": "share",
}


def require_matplotlib():
    """Returns the module matplotlib.

    Raises:
        InputError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError('figures need matplotlib: pip install "lmjax[plot]"') from error
    return matplotlib


@contextlib.contextmanager
def style():
    """Applies STYLE to the drawing inside the block only."""
    matplotlib = require_matplotlib()
    with matplotlib.rc_context(fname=STYLE):
        yield matplotlib


@contextlib.contextmanager
def new_figure(width: float, height: float, columns: int = 1, rows: int = 1, foot: Sequence[str] = (), **options):
    """(figure, array of axes [rows, columns]), drawn in STYLE inside the block; inches; `foot`: a footnote."""
    with style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        lines = [line for text in foot if text for line in textwrap.wrap(text, int(width * 19.5))]
        below = (len(lines) * 0.135 + 0.07 * bool(lines)) / height
        figure.get_layout_engine().set(rect=(0, below, 1, 1 - below), w_pad=0.07, h_pad=0.06, wspace=0.05)
        if lines:
            look = dict(fontsize=6.2, color=QUIET, va="bottom", linespacing=1.35, parse_math=False)
            figure.text(0.006, 0.035 / height, "\n".join(lines), **look)
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def colours(variable: str, values: np.ndarray) -> dict[float, tuple]:
    """A colour for each distinct value, dark for the smallest, by position in log space."""
    import matplotlib

    name, low, high = MAPS["D" if variable == "D" else "N"]
    distinct = np.unique(values)
    if len(distinct) == 1:
        return {distinct[0]: matplotlib.colormaps[name](0.45)}
    if len(distinct) <= MAX_LEVELS:
        place = np.linspace(low, high, len(distinct))
    else:
        place = low + (high - low) * (np.log(distinct) - np.log(distinct[0])) / np.log(distinct[-1] / distinct[0])
    return {value: matplotlib.colormaps[name](p) for value, p in zip(distinct, place, strict=True)}


def log_axis(axis, variable: str, low: float, high: float) -> None:
    """Makes an axis (ax.xaxis) logarithmic over [low, high], with labels such as 200k and 1M."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    major, minor = log_ticks(low, high, linear=variable == "loss")
    # as many as every tick needs: 1 for 2.2, 2 for 1.25
    decimals = next((d for d in range(1, 6) if all(abs(round(v, d) - v) < 1e-9 for v in major)), 6)
    axis.set_ticks(major, [tick_label(variable, value, decimals) for value in major])
    axis.set_ticks(minor, [""] * len(minor), minor=True)


def log_ticks(low: float, high: float, linear: bool = False) -> tuple[list[float], list[float]]:
    """Major and minor ticks of a log axis; `linear` takes round steps, for losses within a decade.

    Example:
        >>> log_ticks(1e5, 2e7)[0], [round(t, 3) for t in log_ticks(1.7, 2.9, linear=True)[0]]
        ([100000.0, 1000000.0, 10000000.0], [1.8, 2.0, 2.2, 2.4, 2.6, 2.8])
    """
    if linear and high / low < 12:
        return round_steps(low, high), []
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    skip = max(1, math.ceil(math.log10(high / low) / 7))
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        major = [m * 10.0**k for k in decades for m in factors if low <= m * 10.0**k <= high and k % skip == 0]
        if len(major) > 2:
            minor = [m * 10.0**k for k in decades for m in range(1, 10) if low <= m * 10.0**k <= high]
            return major, [m for m in minor if m not in major]
    return round_steps(low, high), []


def round_steps(low, high):
    """Ticks in steps of 1, 2, 2.5 or 5: of these the ones whose count is nearest to 6."""
    unit = 10 ** math.floor(math.log10((high - low) / 6))
    found = []
    for step in (unit * m for m in (1, 2, 5, 10, 2.5)):
        found.append([k * step for k in range(math.ceil(low / step - 1e-9), int(high / step + 1e-9) + 1)])
    return min(found, key=lambda ticks: abs(len(ticks) - 6))


def tick_label(variable: str, value: float, decimals: int = 1) -> str:
    """The label of a tick: 200k for counts, powers of ten for C, `decimals` decimals for a loss."""
    if variable == "loss":
        return f"{value:.{decimals}f}"
    return count(value) if variable in WORDS and variable != "C" else power_of_ten(value)


def power_of_ten(value: float, digits: int = 3) -> str:
    """A number as matplotlib math, to some digits.

    Example:
        >>> power_of_ten(2e18), power_of_ten(9.999e17)
        ('$2\\\\times 10^{18}$', '$10^{18}$')
    """
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    times = "" if float(mantissa) == 1 else rf"{float(mantissa):g}\times "
    return f"${times}10^{{{int(exponent)}}}$"


def literal(text: object) -> str:
    """Escapes dollar signs in text from data, such as a column name, so that matplotlib does not read them as math.

    Example:
        >>> print(literal("cost in $"))
        cost in \\$
    """
    return str(text).replace("$", r"\$")


def spread(values, margin: float = 0.08) -> tuple[float, float]:
    """Limits of a log axis: the range of the values, extended on both sides by `margin` times its log width."""
    logs = np.log(np.asarray([v for v in values if np.isfinite(v) and v > 0], float))
    room = max(np.ptp(logs) * margin, 0.02)
    return float(np.exp(logs.min() - room)), float(np.exp(logs.max() + room))


def check_formats(formats: Sequence[str]) -> None:
    """Raises InputError if matplotlib is missing or `save` cannot write one of the formats."""
    require_matplotlib()
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"figure format: expected {', '.join(FORMATS)}, got {name!r}")


def save_as(figure, path: pathlib.Path) -> pathlib.Path:
    """Writes one file in the format of its suffix; returns the path. Without a suffix it becomes a .png."""
    return save(figure, path.with_suffix(""), [path.suffix[1:] or "png"])[0]


def save(figure, path: pathlib.Path, formats: Sequence[str] = ("png",)) -> list[pathlib.Path]:
    """Writes path.png (200 dpi), path.svg or path.pdf; returns the paths. Equal figures give equal bytes."""
    check_formats(formats)
    paths = []
    with style():
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")  # one layout, which is most of the work, for every format
        for name in formats:
            date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(name, {})
            paths.append(path.with_name(f"{path.name}.{name}"))
            figure.savefig(paths[-1], dpi=200, metadata=date)
    return paths

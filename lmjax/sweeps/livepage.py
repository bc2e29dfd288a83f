"""The HTML of the live page: counts, loss curves and laws as inline SVG, and the table of cells; text is escaped."""

import collections
import html
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lmjax.display import short_ids
from lmjax.format import count, duration, flop, number
from lmjax.scaling.laws import predict_loss
from lmjax.scaling.report.markup import bullets, table, text
from lmjax.scaling.result import Fit
from lmjax.scaling.text import headline
from lmjax.sweeps.board import ENDED, ORDER, Board, log_spaced

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 350, 46, 58, 10, 38  # size and margins of a chart, pixels
SHADES, CURVES = 8, 12  # number of colours; maximum number of curves of a law
MOST_POINTS = 24_000  # maximum number of points of all curves of a chart
BEYOND = 1.5  # factor by which the law's curve for one N extends beyond the tokens of its runs, on both sides
WARNINGS = 6


def document(name: str, content: str, style: str, script: str) -> str:
    """Returns the whole page. A script refreshes its content; without scripts, the browser reloads the page."""
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<noscript><meta http-equiv='refresh' content='5'></noscript>\n"
        f"<title>{text(name)} - lmjax</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<p id=note class=small></p>\n<main>{content}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def overview(board: Board, rows: Mapping[str, dict]) -> str:
    """Returns the content of the page of all cells."""
    cells = list(rows.values())
    header = f"<header><h1>{text(board.workdir.name)}</h1><p class=small>{text(board.workdir)}</p>{_progress(cells)}"
    parts = [f"{header}</header>"]
    if not cells:
        return "".join([*parts, "<p>No runs in this directory yet.</p>"])
    shade = _shades([row["N"] for row in cells])
    parts.append(f"<div class=panels><section><h2>Training loss</h2>{_training(cells, shade)}</section>")
    parts.append(_laws(board, cells, shade))
    parts.append(f"</div><section class=cells><h2>Cells</h2>{_table(cells)}</section>")
    return "".join(parts)


def run_page(board: Board, row: Mapping) -> str:
    """Returns the content of the page of one run."""
    name, shade = row["run"], _shades([row["N"]])
    shown = {"status": row["status"], "message": row["message"], **{name: how(row) for name, how in COLUMNS}}
    shown |= {"step": f"{row['step']:.0f} of {row['steps']}", "held out": "yes" if row["held_out"] else ""}
    facts = [(key, value) for key, value in shown.items() if value]
    log = board.log(name)
    return (
        f"<header><p class=small><a href='/'>{text(board.workdir.name)}</a></p><h1>{text(name)}</h1></header>"
        f"<div class=panels><section><h2>Loss</h2>{_training([row], shade)}</section>"
        f"<section class=plain><h2>Run</h2>{table(['', ''], facts, left=2)}</section></div>"
        + (f"<section><h2>End of log.txt</h2><pre>{text(log)}</pre></section>" if log else "")
    )


def _progress(cells):
    """Returns the counts by status, and a bar with the share of all FLOPs that is done."""
    counts = collections.Counter(row["status"] for row in cells)
    total = sum(row["C"] for row in cells) or 1.0
    done = {
        "done": sum(row["C"] for row in cells if row["status"] == "done"),
        "failed": sum(row["C"] for row in cells if row["status"] in ENDED[1:]),
        "running": sum(row["share"] * row["C"] for row in cells if row["status"] not in ENDED),
    }
    bars, at = [], 0.0
    for name, part in done.items():
        bars.append(f"<rect class={name} x='{100 * at:.3f}' width='{100 * part / total:.3f}' height=1></rect>")
        at += part / total
    rate = sum(row["flops_per_second"] or 0.0 for row in cells)
    words = [f"<span class={name}><b>{counts[name]}</b> {name}</span>" for name in reversed(ORDER) if counts[name]]
    words.append(f"<span>{100 * at:.0f}% of {flop(total)} FLOP</span>")
    if rate and at < 1:
        words.append(f"<span>ETA {duration((1 - at) * total / rate)} at the present speed</span>")
    bar = f"<svg class=share viewBox='0 0 100 1' preserveAspectRatio=none aria-hidden=true>{''.join(bars)}</svg>"
    return f"<p class=counts>{''.join(words)}</p>{bar}"


COLUMNS = (  # heading, text of a row
    ("N", lambda row: count(row["N"])),
    ("D", lambda row: count(row["D"])),
    ("C", lambda row: flop(row["C"])),
    ("step", lambda row: f"{row['step']:.0f}/{row['steps']}" if row["steps"] else ""),
    ("training loss", lambda row: _loss(row["loss"])),
    ("validation loss", lambda row: _loss(row["validation_loss"])),
    ("tokens/s", lambda row: _or_empty(count, row["tokens_per_second"])),
    ("ETA", lambda row: _or_empty(duration, row["eta_seconds"])),
)


def _table(cells):
    """Returns the table of cells, in the order of the rows."""
    heads = "<th class=text>run</th><th class=text>status</th><th></th>"
    heads += "".join(f"<th>{heading}</th>" for heading, _ in COLUMNS) + "<th class=text></th>"
    lines = []
    for row, short in zip(cells, short_ids([row["run"] for row in cells]), strict=True):
        held_out = " (held out)" * row["held_out"]
        link = f"<a href='{_address(row)}' title='{text(row['run'])}'>{text(short)}</a>{held_out}"
        share = f"<progress max=1 value='{row['share']:.3f}'></progress>" if row["status"] not in ENDED else ""
        values = "".join(f"<td>{html.escape(how(row))}</td>" for _, how in COLUMNS)
        message = f"<td class=long>{text(row['message'][:300])}</td>" if row["message"] else "<td></td>"
        status = row["status"]
        lines.append(
            f"<tr class={status}><td class=text>{link}</td><td class='text state'>{status}</td><td>{share}</td>"
            f"{values}{message}</tr>"
        )
    return (
        f"<div class=wide tabindex=0 role=region aria-label=cells><table><thead><tr>{heads}</tr></thead><tbody>\n"
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _address(row):
    return f"/run/{urllib.parse.quote(row['run'], safe='')}"


def _loss(value):
    return _or_empty("{:.4f}".format, value)


def _or_empty(how, value):
    return "" if value is None else how(value)


# ---- charts ---------------------------------------------------------------------------------------------------------


def _shades(sizes: Sequence[float]):
    """Returns a function N -> CSS class of its colour, in eight steps of log N from the smallest to the largest."""
    known = [N for N in sizes if N > 0]
    low, high = np.log([min(known), max(known)]) if known else (0.0, 0.0)

    def shade(N):
        place = (np.log(N) - low) / (high - low) if N > 0 and high > low else 0.5
        return f"c{min(int(SHADES * place), SHADES - 1)}"

    return shade


class Chart:
    """An SVG chart with logarithmic axes; points outside the axes are not drawn.

    Args:
        xs, ys: values that determine the ranges, all above 0.
        x_title, y_title: axis titles.
    """

    def __init__(self, xs: Iterable[float], ys: Iterable[float], x_title: str, y_title: str):
        self.x_range, self.y_range = _padded(xs), _padded(ys)
        self.parts, self.titles = [], (x_title, y_title)

    def place(self, x, y) -> tuple:
        """Returns the pixel coordinates of values."""
        (x0, x1), (y0, y1) = np.log(self.x_range), np.log(self.y_range)
        across = LEFT + (WIDTH - LEFT - RIGHT) * (np.log(x) - x0) / (x1 - x0)
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (y1 - np.log(y)) / (y1 - y0)

    def curve(self, x, y, mark: str, title: str = "", link: str = "") -> None:
        """Draws a curve; the title is its tooltip."""
        places = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*self.place(x, y), strict=True))
        shown = f"<polyline class='{mark}' points='{places}'><title>{text(title)}</title></polyline>"
        self.parts.append(f"<a href='{link}'>{shown}</a>" if link else shown)

    def point(self, x: float, y: float, mark: str, title: str, link: str = "") -> None:
        """Draws a point."""
        a, b = self.place(x, y)
        shown = f"<circle class='{mark}' cx='{a:.1f}' cy='{b:.1f}' r='3.6'><title>{text(title)}</title></circle>"
        self.parts.append(f"<a href='{link}'>{shown}</a>" if link else shown)

    def labels(self, found: Sequence[tuple[float, float, str, str]]) -> None:
        """Writes labels (x, y, text, class) to the right of points, moved down if they would overlap."""
        written = []
        for x, y, words, mark in sorted(found, key=lambda label: -label[1]):
            across, down = map(float, self.place(x, y))
            for other_across, other_down in sorted(written, key=lambda place: place[1]):
                if abs(across - other_across) < 40 and abs(down - other_down) < 11:
                    down = other_down + 11
            written.append((across, down))
            self.parts.append(f"<text class='key {mark}' x='{across + 5:.1f}' y='{down + 4:.1f}'>{text(words)}</text>")

    def svg(self, name: str) -> str:
        """Returns the chart; the name must be unique in the page."""
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        lines = []
        for value in ticks(*self.x_range):
            x = self.place(value, self.y_range[0])[0]
            lines.append(f"<line class=grid x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{bottom}'></line>")
            lines.append(f"<text x='{x:.1f}' y='{bottom + 15}' text-anchor=middle>{count(value)}</text>")
        for value in ticks(*self.y_range):
            y = self.place(self.x_range[0], value)[1]
            lines.append(f"<line class=grid x1='{LEFT}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'></line>")
            lines.append(f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor=end>{number(value, 3)}</text>")
        x_title, y_title = map(text, self.titles)
        lines.append(f"<text class=title x='{(LEFT + right) / 2}' y='{HEIGHT - 4}' text-anchor=middle>{x_title}</text>")
        middle = (TOP + bottom) / 2
        turned = f"x=11 y='{middle}' text-anchor=middle transform='rotate(-90 11 {middle})'"
        lines.append(f"<text class=title {turned}>{y_title}</text>")
        area = f"<rect x='{LEFT}' y='{TOP}' width='{right - LEFT + 4}' height='{bottom - TOP}'></rect>"
        inside = [part for part in self.parts if not part.startswith("<text")]
        beside = [part for part in self.parts if part.startswith("<text")]
        return (
            f"<svg class=chart viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{text(y_title)}'>"
            f"<clipPath id='{name}'>{area}</clipPath>{''.join(lines)}"
            f"<g clip-path='url(#{name})'>{''.join(inside)}</g>{''.join(beside)}</svg>"
        )


def _padded(values):
    """Returns the range of the values, widened on both sides by 4 % of its logarithm."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.04, 1.01)
    return low / margin, high * margin


def ticks(low: float, high: float) -> list[float]:
    """Returns round values in a range: powers of ten; in a short range also 2 and 5 times these, or even steps.

    Example: ticks(1.4, 5.6) -> [2, 3, 4, 5]; ticks(4e4, 3e7) -> [1e5, 1e6, 1e7]
    """
    if high / low < 8:
        step = 10 ** np.floor(np.log10((high - low) / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
        return [float(f"{i * step:.12g}") for i in range(int(np.ceil(low / step)), int(high / step) + 1)]
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    factors = (1,) if high / low > 300 else (1, 2, 5)
    return [f * 10.0**e for e in decades for f in factors if low <= f * 10.0**e <= high]


def _training(cells, shade) -> str:
    """Returns the chart of the training losses, with validation losses as dots."""
    drawn = [row for row in cells if row["curves"] and row["curves"]["train"].size]
    if not drawn:
        return "<p class=small>No run has written a loss yet.</p>"
    losses = np.concatenate([row["curves"]["train"][1] for row in drawn])
    xs = [x for row in drawn for x in row["curves"]["train"][0, [0, -1]]]
    dots = [(row, *place) for row in drawn for place in row["curves"]["validation"].T]
    # the losses of the first steps are much higher and would compress the rest of the chart
    top = max(np.quantile(losses, 0.95), *(loss for _, _, loss in dots), losses.min() * 1.05)
    chart = Chart(xs, [losses.min(), *(loss for _, _, loss in dots), top], "tokens", "training loss")
    most = max(MOST_POINTS // len(drawn), 12)
    for row in sorted(drawn, key=lambda row: row["status"] == "running"):
        x, y = row["curves"]["train"]
        kept, going = log_spaced(len(x), most), " going" * (row["status"] == "running")
        chart.curve(x[kept], y[kept], f"curve {shade(row['N'])}{going}", _title(row), _address(row))
    for row, tokens, loss in dots:
        said = f"{_title(row)}, validation loss {loss:.4f} at {count(tokens)} tokens"
        chart.point(tokens, loss, shade(row["N"]), said, _address(row))
    return chart.svg("training") + f"<p class='small key'>{_scale(drawn)}Dots: validation loss. Thick: running.</p>"


def _scale(cells):
    """Returns the colour scale from the smallest to the largest N."""
    sizes = [row["N"] for row in cells if row["N"] > 0]
    if not sizes or min(sizes) == max(sizes):
        return ""
    boxes = "".join(f"<rect class=c{i} x='{11 * i}' width=11 height=8></rect>" for i in range(SHADES))
    colours = f"<svg class=scale viewBox='0 0 {11 * SHADES} 8' aria-hidden=true>{boxes}</svg>"
    return f"{count(min(sizes))} {colours} {count(max(sizes))} parameters. "


def _title(row):
    held_out = ", held out" * row["held_out"]
    return f"{row['run']} ({row['status']}{held_out}): N {count(row['N'])}, D {count(row['D'])}"


def _laws(board, cells, shade) -> str:
    """Returns a section for each law, or the reason why there is none."""
    law, parts = board.law, []
    busy = " (fitting)" * law.busy
    for i, (label, fit) in enumerate(law.fits.items()):
        heading = f"The law so far{f', {label}' if label else ''}{busy}"
        parts.append(
            f"<section><h2>{text(heading)}</h2>{_law(fit, law.stages[label], cells, shade, f'law{i}')}</section>"
        )
    if law.error or not parts:
        said = "refused" if law.fits else "small"
        words = "fitting the finished runs" if law.busy and not law.fits else law.error
        parts.append(f"<section><h2>The law so far</h2><p class={said}>{text(words)}</p></section>")
    return "".join(parts)


def _law(fit: Fit, stages: Sequence[Fit], cells, shade, name) -> str:
    """Returns the chart of a fit, its summary, its parameters for growing numbers of runs, and its warnings."""
    found = {row["run"]: row for row in cells}
    points = [(row, found.get(row["run"])) for row in (*fit.points, *fit.held_out)]
    drawn = _law_chart(fit, points, shade).svg(name) if points else ""
    refused = " refused" * fit.refused
    words = f"<p class='reading{refused}'>{text(headline(fit))}</p>"
    rows = [[len(stage.points), *(number(stage.params[p]) for p in stage.params)] for stage in stages]
    grown = ""
    if rows:
        grown = table(["runs", *stages[-1].params], rows, left=0) + (
            "<p class=small>Estimates from the runs that finished first, up to all of them.</p>"
        )
    warnings = bullets(fit.warnings[:WARNINGS])
    notes = f"<details id='{name}-notes'><summary>{len(fit.warnings)} warnings</summary>{warnings}</details>"
    return f"{drawn}{words}{grown}{notes if warnings else ''}"


def _law_chart(fit, points, shade):
    """Returns a chart of measured losses against tokens, with the law's curve for at most CURVES values of N."""
    tokens = collections.defaultdict(list)
    for row, _ in points:
        tokens[float(f"{row['N']:.3g}")].append(row["D"])
    sizes = sorted(tokens)
    sizes = [sizes[i] for i in np.unique(np.linspace(0, len(sizes) - 1, CURVES).round().astype(int))]
    curves = {}
    for N in sizes if not fit.refused else ():
        x = np.geomspace(min(tokens[N]) / BEYOND, max(tokens[N]) * BEYOND, 30)
        curves[N] = x, predict_loss(fit.law, fit.params, N, x)
    D, loss = ([row[key] for row, _ in points] for key in ("D", "loss"))
    ends = [curve[:, [0, -1]].ravel() for curve in map(np.array, curves.values())]
    xs, ys = (
        np.concatenate([known, *(end[part] for end in ends)]) for known, part in ((D, slice(2)), (loss, slice(2, 4)))
    )
    chart = Chart(xs, ys, "tokens", "validation loss")
    for N, (x, y) in curves.items():
        chart.curve(x, y, f"law {shade(N)}", f"law at N {count(N)}")
    chart.labels([(x[-1], y[-1], count(N), shade(N)) for N, (x, y) in curves.items()])
    for row, cell in points:
        mark = "out" if row in fit.held_out else shade(row["N"])
        said = f"{row['run']}: N {count(row['N'])}, D {count(row['D'])}, loss {row['loss']:.4f}"
        if "predicted" in row:
            said += f", law {row['predicted']:.4f}"
        chart.point(row["D"], row["loss"], mark, said, _address(cell) if cell else "")
    return chart

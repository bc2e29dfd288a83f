"""Output of the commands: lines, and tables of values as text, CSV or JSON.

A table fits its terminal: columns are left out by priority, numbers are never cut, and run ids are shortened. CSV and
JSON hold every value in full.
"""

import csv
import io
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

FORMATS = ("table", "csv", "json")
_GAP = 2  # spaces between columns
_RUN_ID = re.compile(r"(?P<name>.+)-[^-]+-[^-]+tok-(?P<digest>[0-9a-f]+)")


class Column(NamedTuple):
    """One column of a table.

    Attributes:
        key: the key in each row.
        title: the heading; "": the key.
        text: turns a value into what the table shows; None and NaN are shown as nothing.
        priority: 0: always shown; otherwise, columns of the largest priority are dropped first on a narrow terminal.
        left: align to the left.
        style: turns a value into a rich style.
    """

    key: str
    title: str = ""
    text: Callable[[Any], str] = str
    priority: int = 0
    left: bool = False
    style: Callable[[Any], str] | None = None


def say(console: Console, text: str, style: str | None = None) -> None:
    """Prints text as it is: without markup, highlighting or wrapping."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[Column],
    format: str = "table",
    out: pathlib.Path | None = None,
    title: str = "",
    console: Console | None = None,
) -> None:
    """Prints rows, or writes them into the file `out`; CSV and JSON hold every key, the table the given columns.

    Args:
        rows: mappings from column key to value.
        columns: of the table.
        format: table | csv | json.
        out: file to write instead of printing.
        title: heading of the table.
        console: where the table is printed; None: standard output at the width of the terminal.

    Example: show([{"N": 1e6, "loss": 2.5}], [Column("N"), Column("loss")], "csv") prints "N,loss" and "1000000.0,2.5".
    """
    rows = list(rows)
    if format == "table":
        if out is None:
            (console or Console()).print(table(rows, columns, title, console.width if console else None))
            return
        console = Console(file=io.StringIO(), width=200, force_jupyter=False)
        console.print(table(rows, columns, title, 200))
        text = console.file.getvalue()  # type: ignore[attr-defined]
    else:
        text = as_csv(rows) if format == "csv" else json.dumps([_plain(row) for row in rows], indent=1) + "\n"
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, "utf8")


def table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], title: str = "", width: int | None = None
) -> "Rows":
    """Returns a renderable table at most `width` characters wide (None: the terminal's width).

    Columns that hold nothing are left out, and so are the columns of the largest priority until the table fits.
    """
    width = width or Console().width
    cells = {column.key: [_cell(column, row.get(column.key)) for row in rows] for column in columns}
    kept = [column for column in columns if not column.priority or any(text for text, _ in cells[column.key])]
    widths = {c.key: max([len(c.title or c.key), *(len(text) for text, _ in cells[c.key])]) for c in kept}
    left_out = []
    while _total(widths) > width and any(column.priority for column in kept):
        left_out.append(max(reversed(kept), key=lambda column: column.priority))
        kept.remove(left_out[-1])
        del widths[left_out[-1].key]
    while _total(widths) > width and max(widths.values()) > 1:  # text before numbers, which are then broken over lines
        words = [column.key for column in kept if column.left and widths[column.key] > 8]
        widths[max(words or widths, key=widths.__getitem__)] -= 1
    names = ", ".join(column.title or column.key for column in sorted(left_out, key=columns.index))
    caption = f"not shown at this width: {names}" if names else ""
    return Rows(title, kept, widths, cells, caption)


def _total(widths):
    return sum(widths.values()) + _GAP * (len(widths) - 1)


class Rows:
    """A table for `rich`, whose own takes a millisecond per row.

    Args:
        title: above the table.
        columns: those shown.
        widths: characters, by key; longer text is broken over lines.
        cells: (text, style) of each row, by key.
        caption: below the table.
    """

    def __init__(self, title: str, columns, widths: Mapping[str, int], cells, caption: str):
        self.title, self.columns, self.widths, self.caption = title, columns, widths, caption
        self.rows = list(zip(*(cells[column.key] for column in columns), strict=True))

    def __rich_console__(self, console, options):
        if self.title:
            yield Text(self.title, "bold")
        for row in [[(column.title or column.key, "bold") for column in self.columns], *self.rows]:
            for line in self._lines(row):
                yield from (Segment(text, console.get_style(style) if style else None) for text, style in line)
                yield Segment.line()
        if self.caption:
            yield Text(self.caption, "table.caption")

    def _lines(self, row):
        """The lines of a row, each as [(text, style)]; cells of one style are joined."""
        widths = [self.widths[column.key] for column in self.columns]
        height = max([1, *(-(-len(text) // width) for (text, _), width in zip(row, widths, strict=True))])
        for at in range(height):
            line: list = []
            for (text, style), width, column in zip(row, widths, self.columns, strict=True):
                text = text[at * width : (at + 1) * width]
                text = text.ljust(width) if column.left else text.rjust(width)
                gap = " " * _GAP * bool(line)
                if line and line[-1][1] == style:
                    line[-1] = line[-1][0] + gap + text, style
                else:
                    line += [(gap, "")] * bool(gap) + [(text, style)]
            line[-1] = line[-1][0].rstrip(), line[-1][1]
            yield line


def short_ids(ids: Sequence[str]) -> list[str]:
    """Returns run ids without the parts that a table's columns N and D show.

    Example:
        short_ids(["decoder-11k-250ktok-3f2a91c0de", "decoder-35k-250ktok-b07c44d9fe"]) -> ["3f2a91", "b07c44"]
        with two names, such as decoder and encoder -> ["decoder-3f2a91", "encoder-b07c44"]
    """
    found = [_RUN_ID.fullmatch(name) for name in ids]
    several = len({match["name"] for match in found if match}) > 1
    for digits in (6, None):
        short = [
            name if match is None else f"{match['name']}-" * several + match["digest"][:digits]
            for name, match in zip(ids, found, strict=True)
        ]
        if len(set(short)) == len(set(ids)):
            return short
    return list(ids)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns rows as CSV text with a heading; missing values are empty fields."""
    text = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _missing(value) else value for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(column, value):
    """(text, style)"""
    if _missing(value):
        return "", ""
    return column.text(value).replace("\n", " "), column.style(value) if column.style else ""


def _missing(value):
    return value is None or (isinstance(value, float) and value != value)


def _plain(row):
    """The row for JSON: NaN as null, NumPy numbers as Python's."""
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in row.items()}
    return {key: None if _missing(value) else value for key, value in plain.items()}

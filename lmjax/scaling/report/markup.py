"""HTML from values: escaping, sections, lists and tables whose cells keep their unrounded values."""

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Cell(NamedTuple):
    """A table cell: the text that is shown, and the value that is sorted by and written to CSV."""

    shown: str
    value: object

    def __str__(self) -> str:
        return self.shown


MISSING = Cell("-", "")  # an empty field in CSV


def text(value) -> str:
    """The value as text that is safe in HTML, attributes included.

    Example:
        >>> text("<script>'&")
        '&lt;script&gt;&#x27;&amp;'
    """
    return html.escape(str(value), quote=True)


def digest(content: str) -> str:
    """The hash of an inline script or style for a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def section(title: str, content: str) -> str:
    """A section under its heading; "" without content."""
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>" if content else ""


def bullets(items: Iterable[object]) -> str:
    """A list of escaped items; "" without items."""
    items = [f"<li>{text(item)}</li>" for item in items]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def cell(how, value) -> Cell | str:
    """A cell with the value formatted by `how`; MISSING for None or NaN, plain text if `how` cannot format it."""
    if value is None or value != value:
        return MISSING
    if how is str:
        return str(value)
    try:
        return Cell(how(value), value)
    except (TypeError, ValueError):
        return str(value)


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], name: str = "", left: int = 1, marks: Sequence[str] = ()
) -> str:
    """A table of escaped cells.

    Args:
        heads: column headings.
        rows: cells of text, numbers or `Cell`.
        name: name of its CSV file; a table with a name gets a download button and sortable columns.
        left: number of leading text columns; the others are numbers.
        marks: CSS class of each row, "" for none.
    """

    def one(tag, value, i):
        kind = "" if i >= left else " class=long" if len(str(value)) > 40 else " class=text"
        raw = f" data-value='{text(_raw(value.value))}'" if isinstance(value, Cell) else ""
        scope = " scope=col" if tag == "th" else ""
        return f"<{tag}{kind}{raw}{scope}>{text(value)}</{tag}>"

    head = "".join(one("th", value, i) for i, value in enumerate(heads))
    lines = []
    for k, row in enumerate(rows):
        mark = f" class='{marks[k]}'" if marks and marks[k] else ""
        lines.append(f"<tr{mark}>{''.join(one('td', value, i) for i, value in enumerate(row))}</tr>")
    named = f" data-csv='{text(name)}'" if name else ""
    # a box that scrolls sideways must be reachable by keyboard
    return (
        f"<div class=wide tabindex=0 role=region aria-label='{text(name or 'table')}'><table{named}>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{chr(10).join(lines)}\n</tbody></table></div>"
    )


def record_table(records: Sequence[Mapping], columns: Sequence[tuple], name: str, **look) -> str:
    """A table of records; "" without any.

    Args:
        records: the rows.
        columns: (heading, key or function of a record, function that formats the value).
        name, **look: as in `table`.
    """
    rows = [[cell(how, key(r) if callable(key) else r.get(key)) for _, key, how in columns] for r in records]
    return table([heading for heading, *_ in columns], rows, name, **look) if rows else ""


def _raw(value):
    """A number in full precision, anything else as it is."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return repr(int(value)) if math.isfinite(value) and value.is_integer() and abs(value) < 2**53 else repr(value)
    return value

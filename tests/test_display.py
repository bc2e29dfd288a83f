"""Guards against tables that cut numbers or break run ids over lines on a narrow terminal."""

import csv
import io
import json

import pytest
from rich.console import Console

from lmjax import display
from lmjax.display import Column

ROWS = [
    {"run": f"decoder-{n}k-250ktok-{n:010x}", "N": n * 1000, "loss": 2.0 + n / 7, "time": 60.0 * n, "note": None}
    for n in (11, 35, 71)
]
COLUMNS = [
    Column("run", left=True),
    Column("N", text="{:,}".format),
    Column("loss", "validation loss", text="{:.4f}".format),
    Column("time", text="{:.1f} seconds".format, priority=2),
    Column("note", priority=1),
]


def printed(width, rows=ROWS, **options):
    console = Console(width=width, file=io.StringIO())
    display.show(rows, COLUMNS, console=console, **options)
    return console.file.getvalue()


def test_numbers_are_never_cut_and_the_least_important_column_goes_first():
    wide, narrow = printed(120), printed(62)
    assert "660.0 seconds" in wide and "not shown" not in wide
    assert "seconds" not in narrow and "not shown at this width: time" in narrow
    for row in ROWS:
        assert f"{row['N']:,}" in narrow and f"{row['loss']:.4f}" in narrow and row["run"] in narrow
    assert "…" not in narrow and "note" not in wide  # a column that holds nothing is not shown


@pytest.mark.parametrize("width", range(20, 120, 7))
def test_tables_fit_their_width(width):
    text = printed(width)
    assert "…" not in text and max(map(len, text.split("\n"))) <= width
    if width > 55:
        assert all(f"{row['loss']:.4f}" in text for row in ROWS)


def test_markup_in_a_value_is_text():
    assert "[red]r[/red] [/]" in printed(120, [{**ROWS[0], "note": "[red]r[/red] [/]"}])


def test_csv_and_json_hold_every_value_in_full(tmp_path, capsys):
    rows = [*ROWS, {"run": 'odd, "quoted"', "loss": float("nan"), "extra": 1}]
    display.show(rows, COLUMNS, "csv", tmp_path / "t.csv")
    back = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert list(back[0]) == ["run", "N", "loss", "time", "note", "extra"]
    assert [row["run"] for row in back] == [row["run"] for row in rows]
    assert float(back[1]["loss"]) == ROWS[1]["loss"] and back[3]["loss"] == ""
    display.show(rows, COLUMNS, "json")
    assert json.loads(capsys.readouterr().out) == [*ROWS, {"run": 'odd, "quoted"', "loss": None, "extra": 1}]


def test_short_ids():
    ids = ["decoder-11k-250ktok-3f2a91c0de", "decoder-35k-250ktok-b07c44d9fe"]
    assert display.short_ids(ids) == ["3f2a91", "b07c44"]
    assert display.short_ids([ids[0], "my-encoder-9k-1Mtok-b07c44d9fe", "imported"]) == [
        "decoder-3f2a91",
        "my-encoder-b07c44",
        "imported",
    ]
    same = ["a-11k-1Mtok-3f2a91c0de", "a-11k-1Mtok-3f2a91c0df"]
    assert display.short_ids(same) == ["3f2a91c0de", "3f2a91c0df"]

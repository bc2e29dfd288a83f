"""What `lmjax describe` and `lmjax runs` print: the derived numbers of a config, and a table of runs."""

import pathlib

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmjax import display, flops, models
from lmjax.config import flatten
from lmjax.display import Column
from lmjax.format import count, flop, quantity
from lmjax.optim import parametrization
from lmjax.resolve import Resolved


def show(run: Resolved, console: Console | None = None) -> None:
    """Prints N, D, C, tokens per parameter, steps, batch, memory, how each parameter is trained, and every key of the
    resolved config."""
    console, d = console or Console(), run.derived
    table = Table(title=Text(run.run_id), title_style="bold", show_header=False)

    def row(name, value, unit="", note=""):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}", unit, note)

    row("N total", d["n_total"], "parameters", "a tied table counts once")
    row("N embedding", d["n_embedding"], "parameters", "token and position tables")
    row("N head", d["n_head"], "parameters", "untied output projection")
    row("N non-embedding", d["n_non_embedding"], "parameters", "the rest")
    row("D", d["tokens"], "tokens", f"source tokens; {d['epochs']:.3g} epochs of {run.batches.unique_tokens:,}")
    row("C exact", float(d["flops_exact"]), "FLOP", "all matrix products, forward + backward")
    row("C 6ND", float(d["flops_6nd"]), "FLOP", "6 x N total x D")
    row("tokens per parameter", d["tokens_per_param"], note="D / N total")
    row("steps", run.steps, "optimizer steps")
    row("batch", run.config.data.global_batch_size, "rows", f"{d['tokens_per_step']:,.0f} source tokens")
    for name, length in run.lengths.items():
        row(f"row length, {name}", length, "tokens")
    for name, value in flops.row_flops(run.model, run.lengths, run.batches.rows([0]), run.heads).items():
        row(f"forward FLOPs, {name}", float(value), "FLOP per row")
    for name, value in {**d["memory"], "sum": d["memory_bytes"]}.items():
        table.add_row(f"memory, {name}", quantity(value, "B"), "", "estimate, one device without sharding")
    console.print(table)
    boxed = models.parameter_shapes(run.model, run.batches.rows([0]))
    title = f"parameters ({run.config.parametrization.name}, {run.config.optimizer.name})"
    display.show(parametrization.table(run.config, boxed), PARAMETER_COLUMNS, title=title, console=console)
    table = Table(title="resolved config", title_style="bold", show_header=False)
    for key, value in flatten(run.config).items():
        table.add_row(key, Text(repr(value)))
    console.print(table)


PARAMETER_COLUMNS = (
    Column("path", left=True),
    Column("role", left=True),
    Column("std", "initial std", "{:.3g}".format, 2),
    Column("rate", "peak rate", "{:.3g}".format),
    Column("decay", "decay per step", "{:.3g}".format, 1),
    Column("epsilon", text="{:.3g}".format, priority=4),
    Column("multiplier", text="{:.4g}".format, priority=3),
)
RUN_COLUMNS = (
    Column("run", left=True),
    Column("status", left=True, style=lambda value: "" if value == "done" else "yellow"),
    Column("n_total", "N", count),
    Column("tokens", "D", count),
    Column("flops_exact", "C", flop, 3),
    Column("loss", "validation loss", "{:.4f}".format),
    Column("passed_reference", "passed", priority=4),
    Column("held_out", "held out", lambda value: "yes" if value else "", 2),
)


def show_runs(table, format: str = "table", out: pathlib.Path | None = None) -> None:
    """Prints the table of `lmjax.run_record.read_runs`, a row per run, with every config key that differs between runs.

    Args:
        table: pandas table of runs.
        format: table | csv | json.
        out: file to write instead of printing.
    """
    size, columns = [name for name in ("n_total", "tokens") if name in table], [*RUN_COLUMNS]
    rows = (table.sort_values(size, kind="stable") if size else table).to_dict("records")
    for row, short in zip(rows, display.short_ids([row["run_id"] for row in rows]), strict=True):
        row["run"] = short
    if format != "table":
        rows = [{key: value for key, value in row.items() if key != "run"} for row in rows]
    keys = varying(table)
    names = [key.rpartition(".")[2] for key in keys]
    for i, (key, name) in enumerate(zip(keys, names, strict=True)):
        columns.append(Column(f"config.{key}", name if names.count(name) == 1 else key, _value, priority=4 + i))
    display.show(rows, columns, format, out)


def varying(table) -> list[str]:
    """Returns the config keys that differ between runs; keys that differ at equal N and D come first."""
    found = []
    size = [name for name in ("n_total", "tokens") if name in table]
    for column in table.columns:
        key = column.removeprefix("config.")
        if key == column or key.startswith("run."):
            continue
        values = table[column].map(repr)
        if values.nunique() > 1:
            alike = values.groupby([table[name] for name in size], dropna=False).nunique().max() == 1 if size else False
            found.append((alike, key))
    return [key for _, key in sorted(found, key=lambda pair: pair[0])]


def _value(value):
    return f"{value:g}" if isinstance(value, float) else str(value)

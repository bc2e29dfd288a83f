"""What `lmjax describe` and `lmjax runs` print: the derived numbers of a run that has not begun; a line per run."""

from rich.console import Console
from rich.table import Table

from lmjax import flops
from lmjax.config import flatten
from lmjax.format import quantity, variable
from lmjax.resolve import Resolved


def show(run: Resolved, console: Console | None = None) -> None:
    """Prints N, D, C, tokens per parameter, steps, batch, memory, and every key of the resolved config."""
    console = console or Console()
    console.print(numbers(run))
    table = Table(title="resolved config", title_style="bold", show_header=False)
    for key, value in flatten(run.config).items():
        table.add_row(key, repr(value))
    console.print(table)


def numbers(run: Resolved) -> Table:
    """Returns the table of derived numbers, with their conventions."""
    d = run.derived
    table = Table(title=run.run_id, title_style="bold", show_header=False)

    def row(name, value, unit, note=""):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}", unit, note)

    row("N total", d["n_total"], "parameters", "a tied table counts once")
    row("N embedding", d["n_embedding"], "parameters", "token and position tables")
    row("N head", d["n_head"], "parameters", "untied output projection")
    row("N non-embedding", d["n_non_embedding"], "parameters", "the rest")
    row("D", d["tokens"], "tokens", f"source tokens; {d['epochs']:.3g} epochs of {run.batches.unique_tokens:,}")
    row("C exact", float(d["flops_exact"]), "FLOP", "all matrix products, forward + backward")
    row("C 6ND", float(d["flops_6nd"]), "FLOP", "6 x N total x D")
    row("tokens per parameter", d["tokens_per_param"], "", "D / N total")
    row("steps", run.steps, "optimizer steps")
    row("batch", run.config.data.global_batch_size, "rows", f"{d['tokens_per_step']:,.0f} source tokens")
    for name, length in run.lengths.items():
        row(f"row length, {name}", length, "tokens")
    per_row = flops.forward_flops(run.config.model, run.lengths)
    for name, value in per_row.items():
        row(f"forward FLOPs, {name}", float(value), "FLOP per row")
    for name, value in d["memory"].items():
        table.add_row(f"memory, {name}", quantity(value, "B"), "", "estimate, one device without sharding")
    table.add_row("memory, sum", quantity(d["memory_bytes"], "B"), "", "")
    return table


def show_runs(table) -> None:
    """Prints the table of `lmjax.run_record.read_runs`, a line a run."""
    columns = {
        "status": "status",
        "n_total": "N",
        "tokens": "D",
        "flops_exact": "C",
        "loss": "loss",
        "held_out": "held out",
    }
    shown = Table(header_style="bold", box=None)
    shown.add_column("run", overflow="fold")
    for name in columns.values():
        shown.add_column(name, no_wrap=True, justify="left" if name == "status" else "right")
    for row in table.reindex(columns=["run_id", *columns]).itertuples(index=False):
        cells = (_cell(name, value) for name, value in zip(columns, row[1:], strict=True))
        shown.add_row(row.run_id, *cells)
    Console().print(shown)


def _cell(name, value):
    if isinstance(value, str):
        return value
    if value != value:  # NaN: an imported run, or one that has not ended
        return ""
    if name == "held_out":
        return "yes" if value else ""
    return f"{value:.4f}" if name == "loss" else variable("C" if name == "flops_exact" else name, value)

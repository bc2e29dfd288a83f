"""The live table of a sweep: one row a cell, from the status records. On a terminal it is redrawn; in a log,
changes are lines."""

import collections
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lmjax.format import count, duration
from lmjax.sweep.cells import Cell

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "diverged": "magenta",
    "preempted": "yellow",
    "pending": "dim",
}


class SweepView:
    """Shows {run id: status record} for the cells of a sweep; use as a context manager, call `update`."""

    def __init__(self, cells: Sequence[Cell], console: Console):
        self.cells, self.console = cells, console
        self.shown: dict[str, str] = {}
        self.began = time.monotonic()
        self.flops_at_start: float | None = None
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()

    def update(self, statuses: dict[str, dict]) -> None:
        """Redraws the table, or prints a line for each cell whose status changed."""
        if self.live:
            self.live.update(self.table(statuses), refresh=True)
            return
        for cell in self.cells:
            record = statuses.get(cell.run.run_id, {"status": "pending"})
            if record["status"] != self.shown.get(cell.run.run_id, "pending"):
                self.shown[cell.run.run_id] = record["status"]
                self.console.print(
                    f"{record['status']:>9}  {cell.run.run_id}  {self.headline(statuses)}",
                    highlight=False,
                    soft_wrap=True,
                )

    def headline(self, statuses: dict[str, dict]) -> str:
        """Counts by status and the time left, from the share of FLOPs done since this sweep was started."""
        counts = collections.Counter(
            statuses.get(cell.run.run_id, {"status": "pending"})["status"] for cell in self.cells
        )
        done = total = 0.0
        for cell in self.cells:
            record = statuses.get(cell.run.run_id, {"status": "pending"})
            flops = cell.run.derived["flops_exact"]
            ended = record["status"] in ("done", "failed", "diverged")
            done += flops if ended else flops * record.get("step", 0) / cell.run.steps
            total += flops
        if self.flops_at_start is None:
            self.flops_at_start = done
        text = ", ".join(f"{counts[name]} {name}" for name in STYLES if counts[name])
        progress, elapsed = done - self.flops_at_start, time.monotonic() - self.began
        if progress > 0 and done < total:
            text += f"; ETA {duration(elapsed / progress * (total - done))}"
        return text

    def table(self, statuses: dict[str, dict]) -> Table:
        """Returns the rich table of all cells."""
        table = Table(title=self.headline(statuses), title_style="bold", header_style="bold")
        for name in ("run", "N", "D", "status", "step", "loss", "tok/s", "ETA"):
            table.add_column(name, justify="left" if name in ("run", "status") else "right", no_wrap=True)
        for cell in self.cells:
            record = statuses.get(cell.run.run_id, {"status": "pending"})
            status, derived = record["status"], cell.run.derived
            running = status == "running"
            table.add_row(
                cell.run.run_id + (" (held out)" if cell.held_out else ""),
                count(derived["n_total"]),
                count(derived["tokens"]),
                f"[{STYLES[status]}]{status}",
                f"{record.get('step', 0)}/{cell.run.steps}",
                f"{record['loss']:.3f}" if "loss" in record else "",
                count(record["tokens_per_second"]) if running and "tokens_per_second" in record else "",
                duration(record["eta_seconds"]) if running and "eta_seconds" in record else "",
            )
        return table

"""The live table of a sweep: one row per cell, from the status records. On a terminal the table is redrawn; elsewhere,
one line is printed whenever the status of a cell changes.
"""

import collections
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live

from lmjax import display
from lmjax.display import Column
from lmjax.format import count, duration
from lmjax.sweeps.cells import Cell

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "diverged": "magenta",
    "preempted": "yellow",
    "pending": "dim",
}
COLUMNS = (
    Column("run", left=True),
    Column("N", text=count),
    Column("D", text=count),
    Column("status", left=True, style=STYLES.__getitem__),
    Column("step", priority=1),
    Column("loss", "train loss", "{:.3f}".format, priority=2),
    Column("validation_loss", "validation loss", "{:.3f}".format, priority=3),
    Column("tokens_per_second", "tokens/s", count, priority=5),
    Column("eta_seconds", "ETA", duration, priority=4),
    Column("job", left=True),  # broken over lines where there is no room, never left out: it says why a cell waits
)


PENDING = {"status": "pending"}


class SweepView:
    """Shows the status of a sweep's cells. Use it as a context manager, and call `update({run id: status record})`."""

    def __init__(self, cells: Sequence[Cell], console: Console):
        self.cells, self.console = cells, console
        self.short = display.short_ids([cell.run.run_id for cell in cells])
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
            self.live.update(self.table(statuses, self.console.height - 6), refresh=True)
            return
        headline = ""  # computed at most once, as it takes long for many cells
        for cell in self.cells:
            name, status = cell.run.run_id, statuses.get(cell.run.run_id, PENDING)["status"]
            if status != self.shown.get(name, "pending"):
                self.shown[name] = status
                headline = headline or self.headline(statuses)
                self.console.print(f"{status:>9}  {name}  {headline}", highlight=False, soft_wrap=True)

    def headline(self, statuses: dict[str, dict]) -> str:
        """Returns the counts by status and the ETA, from the share of FLOPs done since this process started."""
        records = [statuses.get(cell.run.run_id, PENDING) for cell in self.cells]
        done = total = 0.0
        for cell, record in zip(self.cells, records, strict=True):
            ended = record["status"] in ("done", "failed", "diverged")
            share = 1 if ended else max(record.get("step", 0) - cell.run.start, 0) / (cell.run.steps - cell.run.start)
            done, total = done + share * cell.run.cost, total + cell.run.cost
        start = self.flops_at_start = done if self.flops_at_start is None else self.flops_at_start
        counts = collections.Counter(record["status"] for record in records)
        text = ", ".join(f"{counts[name]} {name}" for name in STYLES if counts[name])
        progress, elapsed = done - start, time.monotonic() - self.began
        if progress > 0 and done < total:
            text += f"; ETA {duration(elapsed / progress * (total - done))}"
        return text

    def table(self, statuses: dict[str, dict], most: int | None = None) -> display.Rows:
        """Returns the table of the cells, as wide as the console, with at most `most` rows: running, failed, diverged
        and preempted cells first."""
        rows, shown = [], list(zip(self.short, self.cells, strict=True))
        if most is not None and len(shown) > most:
            rank = ("running", "failed", "diverged", "preempted", "pending", "done").index
            shown.sort(key=lambda pair: rank(statuses.get(pair[1].run.run_id, PENDING)["status"]))
            shown = shown[: max(most, 1)]
        for name, cell in shown:
            record = statuses.get(cell.run.run_id, PENDING)
            rows.append(
                {
                    **record,
                    "run": name + " (held out)" * cell.held_out,
                    "N": cell.run.derived["n_total"],
                    "D": cell.run.derived["tokens"],
                    "step": f"{record.get('step', 0)}/{cell.run.steps}",
                }
            )
            if record["status"] != "running":  # its last speed is no longer true
                rows[-1] |= {"tokens_per_second": None, "eta_seconds": None}
        columns = COLUMNS if any(row.get("job") for row in rows) else COLUMNS[:-1]
        return display.table(rows, columns, self.headline(statuses), self.console.width)

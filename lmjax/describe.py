"""What `lmjax describe` and `lmjax runs` print: the derived numbers of a config, its memory on a device, runs."""

import math
import pathlib
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmjax import aot, display, flops, hardware, models, run_record
from lmjax.config import flatten
from lmjax.defaults import AXES
from lmjax.display import Column
from lmjax.format import count, flop, quantity
from lmjax.models import kernels
from lmjax.optim import parametrization
from lmjax.resolve import Resolved, memory


def show(run: Resolved, console: Console | None = None) -> None:
    """Prints N, D, C, tokens per parameter, steps, batch, memory, how each parameter is trained, and every key of the
    resolved config."""
    console, d = console or Console(), run.derived
    table = Table(title=Text(run.run_id), title_style="bold", show_header=False)

    def row(name, value, unit="", note=""):
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}", unit, note)

    counted = run.config.model.family == "ngram"
    row("N total", d["n_total"], "parameters", "at most; counting decides" if counted else "a tied table counts once")
    row("N embedding", d["n_embedding"], "parameters", "token and position tables")
    row("N head", d["n_head"], "parameters", "untied output projection")
    row("N non-embedding", d["n_non_embedding"], "parameters", "the rest")
    if "n_active" in d:
        row("N active", d["n_active"], "parameters", "used by one token: its experts, and the rest")
    row("D", d["tokens"], "tokens", f"source tokens; {d['epochs']:.3g} epochs of {run.batches.unique_tokens:,}")
    row(
        "C exact",
        float(d["flops_exact"]),
        "FLOP",
        "one per count" if counted else "all matrix products, forward + backward",
    )
    row("C 6ND", float(d["flops_6nd"]), "FLOP", "6 x N total x D")
    if "flops_6nd_active" in d:
        row("C 6ND active", float(d["flops_6nd_active"]), "FLOP", "6 x N active x D")
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
    if not counted:
        boxed = models.parameter_shapes(run.model, run.batches.rows([0]))
        title = f"parameters ({run.config.parametrization.name}, {run.config.optimizer.name})"
        display.show(parametrization.table(run.config, boxed), PARAMETER_COLUMNS, title=title, console=console)
    table = Table(title="resolved config", title_style="bold", show_header=False)
    for key, value in flatten(run.config).items():
        table.add_row(key, Text(repr(value)))
    console.print(table)


def on_device(run: Resolved, name: str) -> dict[str, Any]:
    """Returns the memory of a run's training step on a device that this machine need not have.

    Compiled figures where JAX's plug-in for the device is installed, else an estimate, which is within 30 % of them
    (tests/test_aot.py). The devices are those of config.mesh, one where mesh.data is -1.

    Args:
        run: from `resolve`.
        name: of the device, from `aot.TARGETS`.

    Returns:
        "method": compiled | estimate; "device", "devices", "attention"; "arguments", "temporaries", "output" (mostly
        the memory of the arguments), "peak" and "memory": bytes of one device, None if the compiler refuses the step,
        and then "refused": why; "fits": whether peak is at most `aot.USABLE` of memory; "packed": how many such runs
        fit (`lmjax train --pack`), None on several devices; "flops_per_step": exact, all devices; "flops_compiled":
        as the compiler counts them on one device (a loop counts once, a kernel not at all), None for GPUs;
        "seconds_per_step": at the device's peak speed, so a real step takes longer.

    Raises:
        InputError: unknown name; a layer cannot use the kernel that mesh.attention names.
    """
    target, mesh, batch = aot.target(name), run.config.mesh, run.batches.rows([0])
    shape = {axis: max(mesh[axis], 1) for axis in AXES}
    devices = math.prod(shape.values())
    backend = kernels.Backend(target.platform, target.capability, mesh.tensor, mesh.attention, context=mesh.context)
    attends = hasattr(run.model, "backend")
    choices = models.attention_kernels(run.model.clone(backend=backend), batch) if attends else {}
    kernels.check(backend, choices)
    compiled = not aot.missing(target.platform)
    if compiled:
        print(f"compiling for {target.kind}, which may take minutes", file=sys.stderr)
        found = aot.compiled(run, name)
    else:
        flash = all(choice.kernel != "plain" for choice in choices.values())
        parts = memory(run.config, run.lengths, run.derived["n_total"], flash, shape, target.platform)
        state = parts["parameters"] + parts["optimizer"]
        found = {"arguments": state, "temporaries": sum(parts.values()) - state, "output": state}
        found["peak"] = sum(parts.values())
    peak, usable = found.get("peak"), aot.USABLE * target.memory
    speed = hardware.PEAK[target.kind][run.config.model.dtype != "bfloat16"]
    return {
        "method": "compiled" if compiled else "estimate",
        "device": target.kind,
        "devices": devices,
        "attention": kernels.report(choices),
        **{key: found.get(key) for key in ("arguments", "temporaries", "output", "peak")},
        "memory": target.memory,
        "refused": found.get("refused", ""),
        "fits": peak is not None and peak <= usable,
        "packed": None if devices > 1 else int(usable // peak) if peak else 0,
        "flops_per_step": run.derived["flops_per_step"],
        "flops_compiled": found.get("flops"),
        "seconds_per_step": run.derived["flops_per_step"] / (speed * devices),
    }


def show_on_device(run: Resolved, found: dict[str, Any]) -> None:
    """Prints what `on_device` returned."""
    title = f"{run.run_id} on {found['devices']} x {found['device']}: {found['method']}"
    table = Table(title=Text(title), title_style="bold", show_header=False)
    for key in ("arguments", "temporaries", "output", "peak"):
        if found[key] is not None:
            table.add_row(f"memory, {key}", quantity(found[key], "B"), MEMORY_NOTES[key])
    fits = "fits" if found["fits"] else "does not fit"
    table.add_row("memory of the device", quantity(found["memory"], "B"), found["refused"] or fits)
    if found["packed"] is not None:
        table.add_row("runs that fit", str(found["packed"]), "largest --pack by memory")
    table.add_row("FLOPs per step", flop(found["flops_per_step"]), "all matrix products, forward + backward")
    if found["flops_compiled"]:
        table.add_row("FLOPs, compiler", flop(found["flops_compiled"]), "a loop counts once, a kernel not at all")
    table.add_row("step, at least", f"{1e3 * found['seconds_per_step']:.4g} ms", "FLOPs at the device's peak speed")
    table.add_row("attention", "", found["attention"])
    Console().print(table)


MEMORY_NOTES = {
    "arguments": "parameters, optimizer, batch",
    "temporaries": "gradients, activations, logits",
    "output": "mostly the memory of the arguments",
    "peak": "bytes of one device",
}
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
    Column("progress", "step", priority=1),
    Column("n_total", "N", count),
    Column("tokens", "D", count),
    Column("flops_exact", "C", flop, 3),
    Column("training_loss", "training loss", "{:.4f}".format, 3),
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


def watch_runs(workdir: pathlib.Path, seconds: float) -> int:
    """Prints the table of the runs in a directory every so many seconds until all have ended; returns 0.

    Runs that are being trained have their step and training loss in it.
    """
    console = Console()
    while True:
        table = run_record.read_runs(workdir)
        pairs = zip(table["run_id"], table["status"], strict=True)
        now = [run_record.read_status(workdir / name) if status == "running" else {} for name, status in pairs]
        table["progress"] = [f"{record['step']}/{record['steps']}" if "step" in record else None for record in now]
        table["training_loss"] = [record.get("loss") for record in now]
        console.clear()
        show_runs(table)
        console.print(", ".join(f"{number} {name}" for name, number in table["status"].value_counts().items()))
        if not set(table["status"]) & {"pending", "running", "preempted"}:
            return 0
        time.sleep(seconds)


def varying(table) -> list[str]:
    """Returns the config keys that differ between runs; keys that differ at equal N and D come first."""
    found = []
    size = [name for name in ("n_total", "tokens") if name in table]
    for column in table.columns:
        key = column.removeprefix("config.")
        if key == column or key.startswith("run.") or key == "init.from":  # init.parent says the same
            continue
        values = table[column].map(repr)
        if values.nunique() > 1:
            alike = values.groupby([table[name] for name in size], dropna=False).nunique().max() == 1 if size else False
            found.append((alike, key))
    return [key for _, key in sorted(found, key=lambda pair: pair[0])]


def _value(value):
    return f"{value:g}" if isinstance(value, float) else str(value)

"""What a sweep will cost, before it runs: N, D, C, steps, time, memory and disk of every cell, and whether its
design can
identify a scaling law. Time comes from a short calibration on this machine."""

import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from lmjax import run_record
from lmjax.errors import InputError
from lmjax.format import count, duration, flop, quantity
from lmjax.optim.optimizers import MOMENTS
from lmjax.resolve import Resolved
from lmjax.scaling.designs import identifiable
from lmjax.sweep.cells import Cell
from lmjax.sweep.local import Slot, worker_environment


def calibrate(run: Resolved, seconds: float = 3.0) -> dict[str, float]:
    """Measures this run's compiled step here: {"startup": seconds to the first step, "step": median seconds a step}."""
    import jax

    from lmjax import train
    from lmjax.optim.optimizers import make_optimizer
    from lmjax.sharding import batch_sharding, logical_mesh, make_global_batch, make_mesh

    began = time.monotonic()
    mesh = make_mesh(run.config.mesh)
    optimizer = make_optimizer(run.config.optimizer)
    init = train.make_init(run.model, optimizer, run.batches.rows([0]))
    key = jax.random.key(0)
    like = train.abstract_state(run, init, key, mesh)
    state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))(key)
    rows, micro = run.config.data.global_batch_size, run.config.train.accumulation_steps
    with logical_mesh(mesh, run.config.mesh.rules):
        batch = make_global_batch(run.batches.rows, batch_sharding(mesh), micro, rows // micro)
        step = train.compile_step(run, optimizer, like, batch, key)
        scalars = (np.float32(0.0), np.bool_(True))
        state, token = jax.block_until_ready(step(state, batch, key, *scalars))
        startup, times = time.monotonic() - began, []
        while sum(times) < seconds or len(times) < 3:
            start = time.monotonic()
            state, token = jax.block_until_ready(step(state, batch, key, *scalars))
            times.append(time.monotonic() - start)
    return {"startup": startup, "step": float(np.median(times))}


def estimate_seconds(cells: Sequence[Cell], place: Slot) -> list[float]:
    """Returns the expected wall seconds of each cell on one worker like `place`.

    The cheapest and the dearest step of the sweep are measured in a worker's environment; between them, log seconds
    per step is interpolated in log FLOPs per step. Starting a process counts 3 s.
    """
    by_cost = sorted(cells, key=lambda cell: cell.run.derived["flops_per_step"])
    measured = {}
    for cell in (by_cost[0], by_cost[-1]):
        cost = cell.run.derived["flops_per_step"]
        if cost not in measured:
            measured[cost] = _calibrate_in_worker(cell, place)
    x = np.log(sorted(measured))
    step = np.log([measured[cost]["step"] for cost in sorted(measured)])
    startup = max(m["startup"] for m in measured.values()) + 3.0
    costs = [math.log(cell.run.derived["flops_per_step"]) for cell in cells]
    return [
        startup + cell.run.steps * math.exp(np.interp(cost, x, step)) for cell, cost in zip(cells, costs, strict=True)
    ]


def _calibrate_in_worker(cell: Cell, place: Slot) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run_record.write_json(pathlib.Path(folder) / "config.json", cell.run.record())
        command = [sys.executable, "-m", "lmjax", "calibrate", folder]
        result = subprocess.run(command, env=worker_environment(place), capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(f"calibrating {cell.run.run_id} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def disk_bytes(run: Resolved) -> int:
    """Returns the disk a finished run takes, about: the checkpoints kept (parameters and moments) and its metrics."""
    state = 4 * run.derived["n_total"] * (1 + MOMENTS[run.config.optimizer.name])
    lines = run.steps // run.config.metrics.every_steps + 1
    saves = run.steps // (run.config.checkpoint.every_steps or run.steps) + 1
    return state * min(run.config.checkpoint.keep or saves, saves) + 250 * lines


def plan_table(cells: Sequence[Cell], seconds: Sequence[float] | None, workers: int) -> Table:
    """Returns the table `lmjax plan` prints: a row per cell and the totals."""
    table = Table(title=f"{len(cells)} cells, {workers} at a time", title_style="bold", header_style="bold")
    for name in ("run", "N", "D", "C (exact)", "D/N", "epochs", "steps", "batch", "lr", "memory", "disk", "time"):
        table.add_column(name, justify="left" if name == "run" else "right", no_wrap=True)
    for i, cell in enumerate(cells):
        run, derived = cell.run, cell.run.derived
        table.add_row(
            run.run_id + (" (held out)" if cell.held_out else ""),
            count(derived["n_total"]),
            count(derived["tokens"]),
            flop(derived["flops_exact"]),
            f"{derived['tokens_per_param']:.3g}",
            f"{derived['epochs']:.2g}",
            str(run.steps),
            str(run.config.data.global_batch_size),
            f"{run.config.optimizer.learning_rate:.2g}",
            quantity(derived["memory_bytes"], "B"),
            quantity(disk_bytes(run), "B"),
            duration(seconds[i]) if seconds else "",
        )
    total = [sum(cell.run.derived[name] for cell in cells) for name in ("tokens", "flops_exact")]
    table.add_section()
    table.add_row(
        "total",
        "",
        count(total[0]),
        flop(total[1]),
        "",
        "",
        str(sum(cell.run.steps for cell in cells)),
        "",
        "",
        "",
        quantity(sum(disk_bytes(cell.run) for cell in cells), "B"),
        duration(makespan(seconds, workers)) if seconds else "",
    )
    return table


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Returns the wall seconds of all cells, longest first, on `workers` workers.

    Example: makespan([3, 3, 2, 2, 2], 2) -> 7.
    """
    loads = [0.0] * workers
    for cost in sorted(seconds, reverse=True):
        loads[loads.index(min(loads))] += cost
    return max(loads)


def design_warnings(cells: Sequence[Cell]) -> list[str]:
    """Returns what the cells that enter the fit cannot identify, in words; empty if all is well."""
    fitted = [cell.run.derived for cell in cells if not cell.held_out]
    if len({(d["n_total"], d["tokens"]) for d in fitted}) < 2:
        return []
    return identifiable([d["n_total"] for d in fitted], [d["tokens"] for d in fitted])

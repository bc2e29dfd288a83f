"""The cost of a sweep before it runs: N, D, C, steps, time, memory and disk of every cell, and whether its design can
identify a scaling law. Times come from a short calibration on this machine.
"""

import collections
import json
import math
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lmjax import run_record
from lmjax.checkpoint import kept_steps
from lmjax.display import Column, short_ids
from lmjax.errors import InputError
from lmjax.format import count, duration, flop, plural, quantity
from lmjax.hardware import memory
from lmjax.optim.optimizers import MOMENTS
from lmjax.resolve import Resolved
from lmjax.scaling.identify import identifiable
from lmjax.sweeps import records
from lmjax.sweeps.cells import Cell
from lmjax.sweeps.local import Slot, worker_command, worker_environment


def calibrate(run: Resolved, seconds: float = 3.0, pack: int = 1, cells: int = 1) -> dict[str, float]:
    """Times a run's compiled step and its evaluation on this machine.

    Args:
        run: a resolved run. Its parameters are initialised; nothing is written to disk.
        seconds: time to spend on timing steps, and at most on timing the evaluation.
        pack: number of runs trained at once; 0: chosen by `lmjax.pack.choose_slots`.
        cells: number of runs of this shape.

    Returns:
        {"startup": seconds until the first step has ended, "step": median seconds per step of all slots, "slots":
        number of runs trained at once, "evaluation": seconds per evaluation of one run}.
    """
    import jax

    from lmjax import counting, trainer
    from lmjax.pack import choose_slots, fitting_program
    from lmjax.sharding import logical_mesh, make_global_batch, make_mesh
    from lmjax.validation import Validation

    if run.config.model.family == "ngram":
        return counting.calibrate(run, seconds)
    began, slots, key = time.monotonic(), pack or choose_slots(run, cells), jax.random.key(0)
    if slots > 1:
        program = fitting_program(run, slots)
        programs, slots = program.alone, program.slots
        run, mesh, state = program.run, programs.mesh, programs.init(key)
        startup, step_seconds = time.monotonic() - began, program.seconds(seconds)
    else:
        mesh = make_mesh(run.config.mesh)
        run = trainer.on_devices(run, mesh)
        programs = trainer.Programs(run, mesh)
        step, state = programs.step(run), programs.init(key)
        rows, micro = run.config.data.global_batch_size, run.config.train.accumulation_steps
        batch = make_global_batch(run.batches.rows, mesh, micro, rows // micro)
        arguments = np.float32([0.0, 0.0, 1.0])
        with logical_mesh(mesh, run.config.mesh.rules):
            state, _ = jax.block_until_ready(step(state, batch, key, arguments))
            startup, times = time.monotonic() - began, []
            while sum(times) < seconds or len(times) < 3:
                start = time.monotonic()
                state, _ = jax.block_until_ready(step(state, batch, key, arguments))
                times.append(time.monotonic() - start)
        step_seconds = float(np.median(times))
    validation = Validation(run.data, run.objective, run.config, run.model, mesh, programs.score)
    with logical_mesh(mesh, run.config.mesh.rules):
        evaluation = validation.seconds(state["params"], seconds)
    return {"startup": startup, "step": step_seconds, "slots": slots, "evaluation": evaluation}


class Pack(NamedTuple):
    """Cells of one shape that a worker trains together."""

    cells: list[Cell]
    slots: int  # number of cells trained at once
    seconds: float  # wall seconds on one worker


def estimate_packs(cells: Sequence[Cell], place: Slot, pack: int | str = 1) -> list[Pack]:
    """Groups cells into packs and estimates the wall seconds of each on one worker, including evaluations.

    The cheapest and the most expensive step of the sweep are measured in a worker's environment. Between them, log
    seconds and log slots are interpolated linearly in log FLOPs per step. Starting a process counts as 3 s.

    Args:
        cells: cells of a sweep. Cells of equal shape form a pack; fitted and held-out cells are separate.
        place: the worker's slot.
        pack: as from `packing`; 1: each cell is its own pack.
    """
    by_shape: dict = collections.defaultdict(list)
    for number, cell in enumerate(cells):
        by_shape[number if pack == 1 else (cell.run.shape.key, cell.held_out)].append(cell)
    groups = sorted(by_shape.values(), key=lambda group: group[0].run.derived["flops_per_step"])
    measured = {}
    for group in (groups[0], groups[-1]):
        cost = group[0].run.derived["flops_per_step"]
        if cost not in measured:
            measured[cost] = _calibrate_in_worker(group[0], place, 0 if pack == "auto" else int(pack), len(group))
    costs = sorted(measured)
    startup = max(m["startup"] for m in measured.values()) + 3.0

    def interpolate(what, run):
        values = np.log([measured[cost][what] for cost in costs])
        return math.exp(np.interp(math.log(run.derived["flops_per_step"]), np.log(costs), values))

    made = []
    for group in groups:
        first = group[0].run
        slots = round(interpolate("slots", first))
        training = interpolate("step", first) * makespan([cell.run.steps - cell.run.start for cell in group], slots)
        evaluating = interpolate("evaluation", first) * sum(evaluations(cell.run) for cell in group)
        made.append(Pack(group, slots, startup + training + evaluating))
    return made


def shares(cells: Sequence[Cell], packs: Sequence[Pack]) -> list[float]:
    """Returns the wall seconds of each cell: its pack's seconds times its share of the pack's FLOPs."""
    found = {}
    for pack in packs:
        total = sum(cell.run.cost for cell in pack.cells)
        found |= {cell.run.run_id: pack.seconds * cell.run.cost / total for cell in pack.cells}
    return [found[cell.run.run_id] for cell in cells]


def describe_packs(packs: Sequence[Pack]) -> list[str]:
    """Returns a sentence for each pack that trains several runs at a time."""
    return [
        f"pack of {len(cells)} {'held-out ' * cells[0].held_out}cells, {count(cells[0].run.derived['n_total'])} "
        f"parameters: {slots} at a time, about {duration(seconds)} on one worker"
        for cells, slots, seconds in packs
        if slots > 1
    ]


def evaluations(run: Resolved) -> int:
    """Returns the number of evaluations of a run: every `evaluation.every_steps`, at kept checkpoints, at the end."""
    every = run.config.evaluation.every_steps or run.steps
    steps = {*range(every, run.steps, every), *kept_steps(run.config.checkpoint, run.steps), run.steps}
    return sum(step >= run.start for step in steps)


def _calibrate_in_worker(cell: Cell, place: Slot, pack: int, cells: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run_record.write_json(pathlib.Path(folder) / "config.json", cell.run.record())
        command = worker_command("calibrate", folder, str(pack), str(cells))
        result = subprocess.run(command, env=worker_environment(place), capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(f"calibrating {cell.run.run_id} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def disk_bytes(run: Resolved) -> int:
    """Returns the approximate disk space of a finished run: its checkpoints (parameters, moments) and metrics."""
    moments = 1 if run.config.model.family == "ngram" else MOMENTS.get(run.config.optimizer.name, 2)  # n-gram: ids
    state = 4 * run.derived["n_total"] * (1 + moments)
    lines = run.steps // run.config.metrics.every_steps + 1
    saves = (run.steps - run.start) // (run.config.checkpoint.every_steps or run.steps) + 1
    always = {step for step in kept_steps(run.config.checkpoint, run.steps) if run.start < step < run.steps}
    kept = min(run.config.checkpoint.keep or saves, saves) + len(always)
    return state * kept + 250 * lines


COLUMNS = (
    Column("run", left=True),
    Column("n_total", "N", count),
    Column("tokens", "D", count),
    Column("flops_exact", "C (exact)", flop, 4),
    Column("compute_saved", "C saved", flop, 5),
    Column("tokens_per_param", "D/N", "{:.3g}".format, 5),
    Column("epochs", text="{:.2g}".format, priority=8),
    Column("steps", priority=2),
    Column("batch", priority=9),
    Column("learning_rate", "lr", "{:.2g}".format, 3),
    Column("memory_bytes", "memory", lambda x: quantity(x, "B"), 6),
    Column("disk_bytes", "disk", lambda x: quantity(x, "B"), 7),
    Column("seconds", "time", duration, 1),
    Column("state", "", left=True, priority=1),
)


def rows(cells: Sequence[Cell], seconds: Sequence[float] | None) -> list[dict]:
    """Returns the rows of the plan's table, one per cell; `seconds`: from `shares`, or None if not measured."""
    short = short_ids([cell.run.run_id for cell in cells])
    made = []
    for i, cell in enumerate(cells):
        run, derived, status = cell.run, cell.run.derived, run_record.status_of(cell.run_dir)["status"]
        state = ["held out"] * cell.held_out + [status] * (status != "pending")
        made.append(
            {
                "run": short[i],
                "run_id": run.run_id,
                "held_out": cell.held_out,
                "status": status,
                **{name: derived[name] for name in ("n_total", "tokens", "flops_exact", "tokens_per_param", "epochs")},
                "compute_saved": derived.get("flops_inherited"),
                "steps": run.steps,
                "batch": run.config.data.global_batch_size,
                "learning_rate": run.config.optimizer.learning_rate,
                "memory_bytes": derived["memory_bytes"],
                "disk_bytes": disk_bytes(run),
                "seconds": seconds[i] if seconds else None,
                "state": ", ".join(state),
            }
        )
    return made


def totals(cells: Sequence[Cell], seconds: Sequence[float] | None, workers: int) -> str:
    """Returns the cost of the cells still to be trained, as a sentence."""
    left = [cell for cell in cells if not _finished(cell)]
    finished = len(cells) - len(left)
    done = f" ({finished} of {len(cells)} have finished and are not counted)" if finished else ""
    if not left:
        return f"all {len(cells)} cells have finished"
    text = (
        f"{plural(len(left), 'cell')} to train{done}: {count(sum(_own_tokens(cell.run) for cell in left))} tokens, "
        f"{flop(sum(cell.run.cost for cell in left))} FLOP, "
        f"{quantity(sum(disk_bytes(cell.run) for cell in left), 'B')} of disk"
    )
    if saved := sum(cell.run.derived.get("flops_inherited", 0) for cell in left):
        text += f" ({flop(saved)} FLOP saved by branching)"
    if seconds:
        wait = "; held-out cells start after the fit" if any(cell.held_out for cell in left) else ""
        text += f", about {duration(schedule_seconds(cells, seconds, workers))} with {workers} at a time{wait}"
    return text


def _own_tokens(run):
    return run.derived["tokens"] * run.cost / run.derived["flops_exact"]


def schedule_seconds(cells: Sequence[Cell], seconds: Sequence[float], workers: int) -> float:
    """Returns the wall seconds until the last cell ends; held-out cells start after all fitted cells.

    Only the remaining steps of started cells count.
    """
    total = 0.0
    for held_out in (False, True):
        left = [
            cost * min((cell.run.steps - _step(cell)) / (cell.run.steps - cell.run.start), 1)
            for cell, cost in zip(cells, seconds, strict=True)
            if cell.held_out == held_out and not _finished(cell)
        ]
        total += makespan(left, workers)
    return total


def _step(cell):
    return run_record.status_of(cell.run_dir).get("step", 0)


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Returns the wall seconds to run all cells on `workers` workers, longest cell first.

    Example: makespan([3, 3, 2, 2, 2], 2) -> 7.
    """
    loads = [0.0] * workers
    for cost in sorted(seconds, reverse=True):
        loads[loads.index(min(loads))] += cost
    return max(loads)


def _finished(cell):
    return run_record.status_of(cell.run_dir)["status"] in ("done", "diverged")


def warnings(cells: Sequence[Cell], workdir: pathlib.Path, workers: int) -> list[str]:
    """Returns warnings about unidentifiable terms, learning rates that do not transfer, and lack of memory or disk."""
    left = [cell.run for cell in cells if not _finished(cell)]
    found = [f"design: {text}" for text in design_warnings(cells)]
    found += [f"learning rate: {text}" for text in transfer_warnings([cell.run.config for cell in cells])]
    largest = sorted((run.derived["memory_bytes"] for run in left), reverse=True)
    available, per_worker = memory()
    at_once = 1 if per_worker else workers
    if available and sum(largest[:at_once]) > available:
        what = "the largest cell needs" if at_once == 1 or len(left) == 1 else f"the {at_once} largest cells need"
        found.append(
            f"memory: {what} about {quantity(sum(largest[:at_once]), 'B')}, {'a GPU' if per_worker else 'this machine'}"
            f" has {quantity(available, 'B')}; set train.accumulation_steps, model.remat or --workers, or train "
            "smaller models"
        )
    found += stray_warnings(cells, workdir) if left else []
    existing = next(folder for folder in (workdir, *workdir.resolve().parents) if folder.exists())
    needed, free = sum(map(disk_bytes, left)), shutil.disk_usage(existing).free
    if needed > free:
        found.append(f"disk: the runs need about {quantity(needed, 'B')}, {existing} has {quantity(free, 'B')} free")
    return found


def stray_warnings(cells: Sequence[Cell], workdir: pathlib.Path) -> list[str]:
    """Returns a warning if the directory has finished runs that are not cells: after an edit, these are not reused."""
    known = {cell.run.run_id for cell in cells}
    folders = sorted(workdir.iterdir()) if workdir.is_dir() else []
    done = [folder for folder in folders if (folder / "summary.json").is_file() and (folder / "config.json").is_file()]
    others = [folder for folder in done if folder.name not in known]
    if not others:
        return []
    try:
        record = run_record.read_record(others[0])
    except InputError as error:  # a damaged record of another sweep does not stop this one
        return [f"runs: {len(others)} of {len(done)} runs in {workdir} are not cells of this sweep; {error}"]
    return [f"runs: {records.not_cells(workdir, record, len(others), len(done), cells)}"]


def design_warnings(cells: Sequence[Cell]) -> list[str]:
    """Returns a warning for each term of the law that the fitted cells cannot identify."""
    if any(cell.run.config.model.family == "ngram" for cell in cells):
        return ["N of n-gram models is known only after counting; the plan shows the largest possible N"]
    points = [(cell.run.derived["n_total"], cell.run.derived["tokens"]) for cell in cells if not cell.held_out]
    return identifiable(*zip(*points, strict=True)) if len(set(points)) > 1 else []


def transfer_warnings(configs: Sequence[ConfigDict]) -> list[str]:
    """Returns a warning for each reason why one learning rate is not near the best at all widths of a sweep.

    Args:
        configs: the resolved configs of all cells.

    Example: widths 64 and 256 at one rate under "standard" -> ["one rate (0.002) at widths 64, 256 under ..."]
    """
    found = []
    for name in sorted({config.parametrization.name for config in configs}):
        ladder = [config for config in configs if config.parametrization.name == name]
        widths = sorted({config.model.d_model for config in ladder})
        rates = {config.optimizer.learning_rate for config in ladder}
        if name == "standard":
            if len(widths) > 1 and len(rates) == 1:
                found.append(
                    f"one rate ({rates.pop():g}) at widths {', '.join(map(str, widths))} under "
                    "parametrization.name='standard', where the best rate falls with width; set "
                    "parametrization.name='mup' and base_width, or a rate for each width"
                )
            continue
        heads = sorted({config.model.head_dim for config in ladder if config.parametrization.base_head_dim is None})
        if len(heads) > 1:
            found.append(
                f"model.head_dim changes ({', '.join(map(str, heads))}) under {name!r} without "
                "parametrization.base_head_dim: the attention scale stays 1 / sqrt(head_dim), and the best rate "
                "drifts; set it to model.head_dim at the base width, or add heads of constant width"
            )
    return found

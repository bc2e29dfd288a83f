"""Launchers: how the workers of a sweep get to machines. All state is in the run directories.

Two kinds, one file each:

    local, ray          `Launch` in lmjax/sweeps/local.py: starts one command and returns a handle with poll() and
                        terminate(); the sweep waits, and restarts what was killed or preempted
    slurm, kubernetes,  `render` makes the objects or scripts of all tasks, a pure function; `submit` hands them to an
    hosts               engine, which queues, places and restarts them, and returns their names there

Every engine runs the same command, `lmjax train --run-dir DIR ...`, whose exit code says what to do next: 0 done, 75
saved (start it again), 64 bad input (never start it again), anything else failed.
"""

import collections
import hashlib
import math
import pathlib
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ml_collections import FrozenConfigDict

from lmjax.errors import InputError
from lmjax.sweeps.cells import Cell
from lmjax.sweeps.local import train_command

RETRIES = 3  # starts of a killed worker; a preempted one is started again without limit
PART = 1000  # most tasks of one array or Job: Slurm's default limit, and room in a Kubernetes object


class Task(NamedTuple):
    """A command, the cells it trains and what it needs.

    Attributes:
        cells: of one resource class; one cell, or a pack.
        command: its words.
        resources: section `launch` of their config, with `cpus` and `memory` filled in.
    """

    cells: tuple[Cell, ...]
    command: tuple[str, ...]
    resources: FrozenConfigDict


class Stage(NamedTuple):
    """What `render` is called with.

    Attributes:
        fitted: tasks that may start at once.
        held_out: tasks that start after `predict`.
        predict: the command that predicts the held-out cells; () if they need not wait.
        workdir: parent of the run directories, absolute.
        at_once: tasks of one class that may run at a time; 0: no limit.
        hosts: machines that share each run (launcher `hosts`).
    """

    fitted: Sequence[Task]
    held_out: Sequence[Task]
    predict: tuple[str, ...]
    workdir: pathlib.Path
    at_once: int = 0
    hosts: tuple[str, ...] = ()


def tasks(cells: Iterable[Cell], pack: int | str = 1, keep: bool = False) -> list[Task]:
    """Returns the tasks of cells: one each, or packs of up to `pack` cells of equal shape and resources.

    Args:
        cells: not finished.
        pack: cells that a task trains at a time; "auto" is 1, as the machines are not known here.
        keep: accept cells begun by other source code.
    """
    size = 1 if pack == "auto" else int(pack)
    groups: dict = collections.defaultdict(list)
    for cell in cells:
        groups[cell.run.shape.key if size > 1 else cell.run.run_id].append(cell)
    found = []
    for group in groups.values():
        for start in range(0, len(group), size):
            part = tuple(group[start : start + size])
            needs = resources(part, size)
            if size > 1 and needs.nodes > 1:
                raise InputError(f"expected launch.nodes=1 with --pack {size}, got {needs.nodes}; a pack has one node")
            found.append(Task(part, tuple(train_command(part, size, keep)), needs))
    return found


def resources(cells: Sequence[Cell], pack: int = 1) -> FrozenConfigDict:
    """Returns the section `launch` of the cells' config, with the cores and the memory of a node filled in.

    Runs on CPUs get the plan's memory plus 2 GiB for the process, rounded up to a power of two so that cells of similar
    size share a class.

    Example: a pack of 4 cells of 1.1 GiB each, without a GPU -> cpus 1, memory 8.0 (GiB)
    """
    launch = cells[0].run.config.launch.copy_and_resolve_references().unlock()
    chips = launch.gpus + launch.tpus
    if launch.cpus is None:
        launch.cpus = max(1, 4 * chips)
    if launch.memory is None and not chips:
        needed = pack * max(cell.run.derived["memory_bytes"] for cell in cells) / 2**30
        launch.memory = 2.0 ** math.ceil(math.log2(needed + 2))
    return FrozenConfigDict(launch)


def classes(found: Sequence[Task]) -> list[list[Task]]:
    """Returns the tasks by their resources, in parts of at most `PART`."""
    groups = collections.defaultdict(list)
    for task in found:
        groups[tuple(task.resources.items())].append(task)
    return [group[i : i + PART] for group in groups.values() for i in range(0, len(group), PART)]


def choice(variable: str, found: Sequence[Task]) -> str:
    """Returns bash that sets `task` to the command and `log` to the log file of the task with the index $variable."""
    lines = [
        f"{i}) task=({shlex.join(task.command)}); log={shlex.quote(str(task.cells[0].run_dir / 'log.txt'))} ;;"
        for i, task in enumerate(found)
    ]
    return "\n".join([f'case "${variable}" in', *lines, "esac"])


def chosen(text: str) -> dict[int, list[str]]:
    """Returns {index: run ids} from the text of `choice`; the ids are only ever compared with those of cells."""
    found = {}
    for index, words in re.findall(r"^(\d+)\) task=\((.*)\); log=", text, re.MULTILINE):
        command = shlex.split(words)
        found[int(index)] = [pathlib.PurePath(word).name for word in command[command.index("--run-dir") + 1 :]]
    return found


def name_of(text: str) -> str:
    """Returns the name of an object by its text, so that the same object is never made twice."""
    return f"lmjax-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

"""Successive halving (arXiv 1502.07943) over one key of a sweep, such as the learning rate: all cells are trained for a
fraction of their length, and only the best 1 / eta of them are continued, to eta times that length.

Each rung of a cell is a separate run that branches from the last step of the previous rung (`init.from`), so every run
in the table is complete at the length in its record. This needs a schedule whose learning rate at a step does not
depend on the length of the run.
"""

import collections
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax import run_record
from lmjax.errors import InputError
from lmjax.format import count
from lmjax.optim.schedules import make_schedule

MOST_STEPS = 1000  # largest number of steps at which two schedules are compared


class Search(NamedTuple):
    """A search by successive halving.

    eta: each rung is eta times as long as the previous one, and continues one cell in eta.
    key: the config key in which the cells of a group differ.
    """

    eta: int
    key: str = "optimizer.learning_rate"


def expand(overlays: Sequence[Mapping[str, Any]], base: ConfigDict, search: Search) -> list[dict[str, Any]]:
    """Returns an overlay for each rung of each overlay; every rung but the first branches from the previous one.

    Args:
        overlays: overlays of a sweep file. Those that differ only in `search.key` form a group; a group of n has
            floor(log_eta n) + 1 rungs, and the last rung has the full length.
        base: the sweep's base config.
        search: eta and key.

    Raises:
        InputError: a group has fewer than eta cells, or contains held-out cells or branches.

    Example (eta 2): rates 1, 2, 4, 8 for 4M tokens -> each at 1M, 2M and 4M tokens
    """
    if search.key not in configs.DEFAULTS:
        raise InputError(f"--halving: unknown config key {search.key!r}")
    groups = collections.defaultdict(list)
    for overlay in overlays:
        if search.key not in overlay or overlay.get("run.held_out") or "init.from" in overlay:
            raise InputError(
                f"--halving: expected cells that set {search.key} and are neither held out nor branches, got {overlay}"
            )
        groups[_common(overlay, search)].append(overlay)
    made = []
    for common, group in groups.items():
        if len(group) < search.eta:
            raise InputError(
                f"--halving {search.eta}: expected at least {search.eta} values of {search.key} per group of cells "
                f"that are equal otherwise, got {len(group)} in {common}"
            )
        for overlay in group:
            made += _rungs(overlay, base, search.eta, _last(len(group), search.eta))
    return made


def _common(overlay, search):
    return repr(sorted((key, value) for key, value in overlay.items() if key != search.key))


def _last(cells, eta):
    """Returns floor(log_eta(cells)), the number of the last rung."""
    return 0 if cells < eta else 1 + _last(cells // eta, eta)


def _rungs(overlay, base, eta, last):
    lengths = {f"duration.{key}": value for key, value in base.duration.items()} | overlay
    lengths = {key: value for key, value in lengths.items() if key.startswith("duration.") and value is not None}
    if len(lengths) != 1:
        raise InputError(f"--halving: expected exactly one duration, got {lengths}")
    ((key, amount),) = lengths.items()
    made: list[dict[str, Any]] = []
    for rung in range(last + 1):
        length = float(amount) / eta ** (last - rung)
        made.append({**overlay, key: round(length) if configs.type_of(key) is int else length})
        if rung:
            made[-1]["init.from"] = made[-2]
    return made


def rung_of(overlay: Mapping[str, Any]) -> int:
    """Returns the rung of an overlay made by `expand`; the first is 0."""
    return 1 + rung_of(overlay["init.from"]) if "init.from" in overlay else 0


def _first(overlay):
    return _first(overlay["init.from"]) if "init.from" in overlay else overlay


def check(cells: Sequence[Any]) -> None:
    """Raises InputError unless the learning rate of each rung equals that of the next rung at every step.

    Args:
        cells: `Cell`s of the overlays made by `expand`.
    """
    runs = {repr(sorted(cell.overlay.items())): cell.run for cell in cells}
    for cell in cells:
        if "init.from" not in cell.overlay:
            continue
        shorter = runs[repr(sorted(cell.overlay["init.from"].items()))]
        both = [_schedule(run) for run in (shorter, cell.run)]
        for step in np.unique(np.linspace(0, shorter.steps - 1, MOST_STEPS).astype(int)).tolist():
            rates = [schedule(step) for schedule in both]
            if rates[0] != rates[1]:
                raise InputError(
                    "--halving: expected a learning rate that does not depend on the length of the run, got schedule "
                    f"{cell.run.config.schedule.name!r}: {rates[0]:.3g} in step {step} of {shorter.steps} steps, "
                    f"{rates[1]:.3g} of {cell.run.steps}; set schedule.name='constant' and schedule.warmup_steps, and "
                    "let the winner decay afterwards (combinators.branches)"
                )


def _schedule(run):
    return make_schedule(run.config.schedule, run.config.optimizer.learning_rate, run.steps)


def planned(cells: Sequence[Any], search: Search) -> list[Any]:
    """Returns as many cells of each rung as `train` trains, for their cost; which of them it trains, the losses decide.

    Example (eta 3): 9 rates -> 9 cells of the first rung, 3 of the second and 1 of the third
    """
    return [
        cell
        for by_rung in _by_rung(cells, search).values()
        for rung, members in by_rung.items()
        for cell in members[: len(members) // search.eta**rung]
    ]


def _by_rung(cells, search):
    """{group: {rung: its cells}}."""
    rungs: dict = collections.defaultdict(lambda: collections.defaultdict(list))
    for cell in cells:
        rungs[_common(_first(cell.overlay), search)][rung_of(cell.overlay)].append(cell)
    return rungs


def train(
    cells: Sequence[Any], search: Search, workdir: pathlib.Path, run: Callable[[list[Any]], tuple[dict, bool]]
) -> tuple[list[Any], dict[str, dict], bool]:
    """Trains the rungs one after the other. Diverged cells rank last; if a cell fails, the search ends there.

    Args:
        cells: `Cell`s of the overlays made by `expand`.
        search: eta and key.
        workdir: folder for halving.json, which has the losses of each rung and the values that were continued.
        run: function: cells -> ({run id: final status}, whether a stop was requested).

    Returns:
        (cells that were trained, {run id: status}, whether a stop was requested).
    """
    rungs = _by_rung(cells, search)
    left = {group: by_rung[0] for group, by_rung in rungs.items()}
    trained, statuses, found = [], {}, {group: [] for group in rungs}
    for rung in range(max(map(len, rungs.values()))):
        now = [cell for group in left.values() for cell in group]
        ends, stopped = run(now)
        trained += now
        statuses |= {cell.run.run_id: ends[cell.run.run_id] for cell in now}
        if stopped or any(statuses[cell.run.run_id]["status"] not in ("done", "diverged") for cell in now):
            return trained, statuses, stopped
        for group, members in left.items():
            losses = {cell.overlay[search.key]: _loss(cell) for cell in members}
            last = rung + 1 >= len(rungs[group])
            kept = sorted(losses, key=losses.__getitem__)[: 1 if last else len(losses) // search.eta]
            kept = [value for value in kept if math.isfinite(losses[value])]
            shown = {str(value): loss if math.isfinite(loss) else None for value, loss in losses.items()}
            found[group].append({"tokens": members[0].run.derived["tokens"], "losses": shown, "kept": kept})
            left[group] = [] if last else [c for c in rungs[group][rung + 1] if c.overlay[search.key] in kept]
        left = {group: members for group, members in left.items() if members}
        record = {
            "eta": search.eta,
            "key": search.key,
            "groups": [{"cells": _label(rungs[group], search), "rungs": found[group]} for group in rungs],
        }
        run_record.write_json(workdir / "halving.json", record)
    return trained, statuses, False


def _label(by_rung, search):
    """Returns the settings that the cells of a group share, as text."""
    whole = by_rung[max(by_rung)][0].overlay
    return ", ".join(f"{k}={v}" for k, v in sorted(whole.items()) if k not in (search.key, "init.from"))


def _loss(cell):
    summary = run_record.read_json(cell.run_dir / "summary.json")
    return math.inf if summary is None else summary["loss"]


def describe(record: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each group of a halving.json: the best value, and how many were stopped at each rung."""
    found = []
    for group in record["groups"]:
        rungs, words = group["rungs"], []
        for rung in rungs[:-1]:
            words.append(f"{len(rung['losses']) - len(rung['kept'])} stopped at {count(rung['tokens'])} tokens")
        best = rungs[-1]["kept"]
        losses = [loss for loss in rungs[-1]["losses"].values() if loss is not None]
        loss = f"loss {min(losses):.4f}" if best else "all diverged"
        value = best[0] if best else "none"
        found.append(f"{group['cells'] or 'all cells'}: best {record['key']} {value} ({loss}); {', '.join(words)}")
    return found

"""The cells of a sweep file. Each overlay (dict of overrides) is applied to the base config and resolved to a run."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from lmjax import config as configs
from lmjax import parents
from lmjax.errors import InputError
from lmjax.resolve import VARIED, Resolved, Shape, complete, shape_of
from lmjax.sweeps import halving


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: comparing the configs of many cells is slow
class Cell:
    """One run of a sweep."""

    run: Resolved
    overlay: dict[str, Any]
    run_dir: pathlib.Path

    @property
    def held_out(self) -> bool:
        return self.run.config.run.held_out


def overlays_of(spec: str) -> list[dict[str, Any]]:
    """Returns the overlays from sweep() of a config file; one empty overlay if it has no sweep()."""
    if not spec.endswith(".json"):
        module, arg = configs.load_module(spec)
        if hasattr(module, "sweep"):
            overlays = [dict(overlay) for overlay in configs.call(module, "sweep", arg, spec)]
            if not overlays:
                raise InputError(f"{spec}: sweep() gave no cells; return at least one dictionary of overrides")
            return overlays
    return [{}]


def load_cells(
    spec: str, workdir: pathlib.Path, overrides: Mapping[str, Any], search: halving.Search | None = None
) -> list[Cell]:
    """Returns the cells of "path.py:arg", cheapest first; a file without sweep() is a sweep of one cell.

    `init.from` of a cell may be the overlay of another cell, its parent, which then keeps the required checkpoint.

    Args:
        spec: path of a config file, optionally with a colon and an argument for get_config and sweep.
        workdir: parent of the run directories.
        overrides: {dotted key: value} from the command line, applied before the overlays.
        search: make a cell for each rung of this successive halving.

    Raises:
        InputError: a cell has a bad config (the message names its overlay); two cells have the same id; a parent is not
            a cell, or is held out while its branch is not.
    """
    base, overlays = configs.load(spec, overrides), overlays_of(spec)
    ignored = sorted(set(overrides) & {key for overlay in overlays for key in overlay})
    if ignored:
        raise InputError(f"{ignored} are set by sweep() in {spec} and would be overridden; change them there")
    overlays = halving.expand(overlays, base, search) if search else overlays
    made: dict[str, Cell] = {}  # by overlay
    named, kept = set(map(_key, overlays)), collections.defaultdict(set)
    shapes: dict[str, Shape] = {}  # by the overlay without the keys of `VARIED`
    known: dict = {}

    def cell(overlay) -> Cell:
        if (key := _key(overlay)) in made:
            return made[key]
        try:
            parent = None
            if isinstance(origin := overlay.get("init.from"), Mapping):
                if _key(origin) not in named:
                    raise InputError(f"init.from: expected the overlay of a cell of this sweep, got {origin}")
                parent = cell(origin)
            varied = {name: value for name, value in overlay.items() if name.startswith(VARIED)}
            fixed = {name: value for name, value in overlay.items() if name not in varied}
            if (common := _key(fixed)) not in shapes:
                raw = configs.overlay(base, fixed)
                configs.check_effects(raw, fixed)
                shapes[common] = shape_of(raw, known)
            given = varied | ({"init.from": str(parent.run_dir)} if parent else {})
            config = configs.overlay(shapes[common].config, given, shared=True)
            configs.check_effects(config, varied)
            run = complete(shapes[common], config, parent and parent.run)
            if parent:
                kept[_key(origin)].add(parents.parent_of(run.config).step)
                if parent.held_out and not run.config.run.held_out:
                    raise InputError("its parent is held out, so it comes later: expected both to be held out")
        except InputError as error:
            raise InputError(f"cell {overlay}: {error}") from error
        return made.setdefault(key, Cell(run, overlay, workdir / run.run_id))

    cells: dict[str, Cell] = {}
    for overlay in overlays:
        found = cell(overlay)
        if found.run.run_id in cells:
            raise InputError(
                f"two cells have the id {found.run.run_id}: {cells[found.run.run_id].overlay} and {overlay}; "
                "they would be the same run: change one, or leave it out"
            )
        cells[found.run.run_id] = found
    for name, steps in kept.items():
        run = made[name].run
        at = tuple(sorted({*run.config.checkpoint.at, *steps}))
        run = dataclasses.replace(run, config=configs.overlay(run.config, {"checkpoint.at": at}, shared=True))
        cells[run.run_id] = dataclasses.replace(made[name], run=run)
    if search:
        halving.check(list(made.values()))
    return sorted(cells.values(), key=lambda cell: cell.run.cost)


def _key(overlay):
    return repr(sorted(overlay.items()))

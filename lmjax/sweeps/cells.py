"""The cells of a sweep file: each overlay applied to the base config, resolved, with its run directory."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from lmjax import config as configs
from lmjax.errors import InputError
from lmjax.resolve import Resolved, resolve


@dataclasses.dataclass(frozen=True)
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


def load_cells(spec: str, workdir: pathlib.Path, overrides: Mapping[str, Any]) -> list[Cell]:
    """Returns the cells of "path.py:arg", cheapest first; a file without sweep() is a sweep of one cell.

    Args:
        spec: path of a config file, with an argument for get_config and sweep after a colon.
        workdir: parent of the run directories.
        overrides: dotted keys from the command line, applied before the overlays.

    Raises:
        InputError: a cell has a bad config (the message names its overlay); two cells have the same id.
    """
    base, overlays = configs.load(spec, overrides), overlays_of(spec)
    ignored = sorted(set(overrides) & {key for overlay in overlays for key in overlay})
    if ignored:
        raise InputError(f"{ignored} are set by sweep() in {spec} and would be overridden; change them there")
    cells: dict[str, Cell] = {}
    for overlay in overlays:
        try:
            config = configs.overlay(base, overlay)
            configs.check_effects(config, overlay)
            run = resolve(config)
        except InputError as error:
            raise InputError(f"cell {overlay}: {error}") from error
        if run.run_id in cells:
            raise InputError(
                f"two cells have the id {run.run_id}: {cells[run.run_id].overlay} and {overlay}; "
                "they would be the same run: change one, or leave it out"
            )
        cells[run.run_id] = Cell(run, overlay, workdir / run.run_id)
    return sorted(cells.values(), key=lambda cell: cell.run.derived["flops_exact"])

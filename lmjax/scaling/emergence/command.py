"""From a sweep's evaluations to printed verdicts, tables and figures. Decides nothing: verdict.py does."""

import json
import os
import pathlib
from collections.abc import Sequence

from lmjax.errors import InputError
from lmjax.scaling.emergence import curves, figures
from lmjax.scaling.emergence.verdict import Emergence, analyse

COLOURS = {
    "sharp in the metric only": "cyan",
    "sharp in the loss too": "magenta",
    "smooth in both": "green",
    "not decidable from these runs": "yellow",
}


def read(source: pathlib.Path):
    """Returns the table of evaluations, and that of items (None without evaluations of items beside it).

    Args:
        source: a run or sweep directory with evaluations.csv, or a .csv or .parquet table.

    Raises:
        InputError: nothing to read there.
    """
    from lmjax.evals import table

    source = pathlib.Path(source)
    path = source / "evaluations.csv" if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"no {path}; wanted a table of evaluations: make one with lmjax eval {source} --tasks all")
    folder = path.parent
    has_items = any(folder.glob("evaluations/*.json")) or any(folder.glob("*/evaluations/*.json"))
    return curves.read(path), table.read_items(folder) if has_items else None


def frame(results: Sequence[Emergence]):
    """Returns a pandas table, a row per task and size: the verdict's numbers, then those of the size.

    Columns hard, smooth, null, deviation, sampled have `_low` and `_high` beside them where there is an interval;
    `hard_metric` and `smooth_metric` are names, `rise_share` and `smooth_share` are 10-90 % widths over the ladder.
    """
    import pandas

    rows = []
    for made in results:
        broken, against = made.broken, made.null
        shared = {
            "task": made.task,
            "shots": made.shots,
            "family": made.family,
            "verdict": made.verdict,
            "reasons": "; ".join(made.reasons),
            "hard_metric": made.hard,
            "smooth_metric": made.smooth,
            "rise_decades": made.rise.width,
            "rise_share": made.rise.share,
            "rise_share_low": made.rise.share_low,
            "rise_share_high": made.rise.share_high,
            "smooth_share": made.smooth_rise.share,
            "break_ratio": broken.ratio if broken else None,
            "break_p": broken.p_value if broken else None,
            "break_found": broken.found if broken else None,
            "null_p": against.p_value if against else None,
            "null_explained": against.explained if against else None,
            "n": made.n,
            "chance": made.chance,
            "data_hash": made.data_hash,
        }
        rows += [shared | row for row in made.levels]
    return pandas.DataFrame(rows)


def write(results: Sequence[Emergence], out: pathlib.Path) -> list[pathlib.Path]:
    """Writes emergence.csv, emergence.json and a figure per result; returns the paths."""
    from lmjax.evals import table
    from lmjax.scaling import axes

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "emergence.csv", out / "emergence.json"]
    table.write(frame(results), paths[0])
    temporary = out / f".emergence.json.{os.getpid()}"
    temporary.write_text(json.dumps([made.to_dict() for made in results], indent=1) + "\n")
    os.replace(temporary, paths[1])
    for made in results:
        shots = f"-{made.shots}-shot" if made.shots else ""
        name = f"emergence-{made.task}{shots}-{made.x}"
        if sum(other.task == made.task and other.shots == made.shots for other in results) > 1:
            name += f"-{made.family}"
        paths += axes.save(figures.emergence_figure(made), out / name)
    return paths


def show(results: Sequence[Emergence]) -> None:
    """Prints each verdict with its sentence, what to beware of, and what was left out."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for made in results:
        shots = f", {made.shots}-shot" if made.shots else ""
        console.print(
            Text.assemble(
                ("\n" + made.task, "bold"),
                (f"  {made.family}{shots}  ", "dim"),
                (made.verdict.upper(), f"bold {COLOURS[made.verdict]}"),
            )
        )
        console.print(Text(made.sentence), soft_wrap=False)
        for warning in made.warnings:
            console.print(Text(f"  beware: {warning}", style="yellow"))
        if made.excluded:
            reasons = sorted({row["reason"] for row in made.excluded})
            console.print(Text(f"  {len(made.excluded)} cells left out: {', '.join(reasons)}", style="yellow"))
        console.print(Text("  " + "; ".join([*made.conventions.values(), f"data {made.data_hash}"]), style="dim"))


def command(source: pathlib.Path, tasks: list[str], x: str, out: pathlib.Path | None, seed: int) -> int:
    """Runs `lmjax emergence`: reads, judges, prints, and writes if asked; returns the exit code 0.

    Args:
        source: directory with evaluations.csv (and evaluations of items below it), or a table.
        tasks: names; [] for every task with a hard and a smooth metric.
        x: C | N | D | loss.
        out: directory for emergence.csv, emergence.json and the figures; None: print only.
        seed: of the resampling.

    Raises:
        InputError: as `read` and `analyse`.
    """
    from rich.console import Console

    evaluations, items = read(source)
    results = analyse(evaluations, items, tasks or None, x, seed=seed)
    show(results)
    console = Console()
    judged = {made.task for made in results}
    others = sorted(set(evaluations["task"]) - judged - {""})
    if others and not tasks:
        console.print(f"\nnot judged (no hard and smooth metric with a result): {', '.join(others)}", highlight=False)
    if out is not None:
        paths = write(results, pathlib.Path(out))
        console.print(f"\nwritten: {', '.join(p.name for p in paths)} in {out}", markup=False, highlight=False)
    return 0

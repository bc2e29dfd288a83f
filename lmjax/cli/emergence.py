"""`lmjax emergence`: from a sweep's evaluations to printed verdicts, tables and figures."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmjax import display
from lmjax.display import Column
from lmjax.errors import InputError

if TYPE_CHECKING:
    from lmjax.scaling.emergence.classify import Emergence

LONGEST = 100  # characters of a file name without its ending: file systems take 255 bytes
COLOURS = {
    "sharp in the metric only": "cyan",
    "sharp in the loss too": "magenta",
    "smooth in both": "green",
    "not decidable from these runs": "yellow",
}


def add_commands(add) -> None:
    """Declares the command: add(name, call, summary) returns a parser."""
    p = add(
        "emergence", _emergence, "test whether a jump in a task's metric is also in its loss, along a ladder of runs"
    )
    p.add_argument(
        "source",
        type=pathlib.Path,
        help="an evaluated directory of runs, or a table with a row per run, task and metric: task, metric (such as "
        "exact_match, token_accuracy, log_likelihood_per_token), value, n, and C, N and D, or loss",
    )
    p.add_argument("--tasks", default="all", help="task names, comma-separated, or all (default: all)")
    p.add_argument("--x", default="C", choices=("C", "N", "D", "loss"), help="variable of scale (default: C)")
    p.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="use only runs with this value of a column, such as N=98.6k (repeatable)",
    )
    p.add_argument("--by", metavar="KEY", help="one ladder per value of a column (default: found from N and D)")
    p.add_argument("--seed", default=0, type=int, help="random seed of the resampling (default: 0)")
    p.add_argument(
        "--out", type=pathlib.Path, help="output folder for table, verdicts and figures (default: the source's)"
    )


def _emergence(arguments, overrides):
    tasks = [] if arguments.tasks == "all" else arguments.tasks.split(",")
    where = {}
    for word in arguments.where:
        name, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"--where: expected KEY=VALUE, such as N=98.6k, got {word!r}")
        where[name] = value
    source = arguments.source
    out = arguments.out or (source if source.is_dir() else source.parent)
    return command(source, tasks, arguments.x, out, arguments.seed, arguments.by, where)


def read(source: pathlib.Path):
    """Returns the table of evaluations, and that of items (None without evaluations of items beside it).

    Args:
        source: a run or sweep directory with evaluations.csv, or a .csv or .parquet table.

    Raises:
        InputError: nothing to read there.
    """
    from lmjax.evals import table
    from lmjax.scaling.emergence import columns

    source = pathlib.Path(source)
    path = source / "evaluations.csv" if source.is_dir() else source
    if not path.is_file():
        raise InputError(f"no {path}; expected a table of evaluations; make one with lmjax eval {source} --tasks all")
    folder = path.parent
    has_items = any(folder.glob("evaluations/*.json")) or any(folder.glob("*/evaluations/*.json"))
    return columns.read(path), table.read_items(folder) if has_items else None


def frame(results: "Sequence[Emergence]"):
    """Returns a pandas table, a row per task and point: the verdict's numbers, then those of the point.

    Columns hard, smooth, null, deviation, sampled have `_low` and `_high` beside them where there is an interval;
    `hard_metric` and `smooth_metric` are names, `rise_share` and `smooth_share` are 10-90 % widths over the ladder.
    """
    import pandas

    rows = []
    for made in results:
        broken, against = made.broken, made.null
        shared = {
            "task": made.task,
            "ladder": made.ladder,
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
            "break_power": broken.power if broken else None,
            "null_p": against.p_value if against else None,
            "null_r_squared": against.r_squared if against else None,
            "explained": made.explained.share if made.explained else None,
            "explained_low": made.explained.low if made.explained else None,
            "explained_high": made.explained.high if made.explained else None,
            "seed_spread": made.seed_spread,
            "n": made.n,
            "chance": made.chance,
            "data_hash": made.data_hash,
        }
        rows += [shared | row for row in made.points]
    return pandas.DataFrame(rows)


def safe_name(name: str) -> str:
    """A file name for any task: letters, digits, dots, dashes and underscores; where it differs, with a hash of `name`.

    Example:
        >>> safe_name("emergence-sum-C"), safe_name("../../a b")
        ('emergence-sum-C', 'a-b-cd36d98f')
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:LONGEST]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def write(results: "Sequence[Emergence]", out: pathlib.Path) -> list[pathlib.Path]:
    """Writes a figure per result with a curve, emergence.csv and emergence.json, in this order; returns the paths.

    A task with fewer than five points has no curve and is in the tables only.
    """
    from lmjax.evals import table
    from lmjax.scaling.emergence.curves import FEWEST_POINTS
    from lmjax.scaling.figures import emergence as figures
    from lmjax.scaling.figures import style

    out.mkdir(parents=True, exist_ok=True)
    drawn = [made for made in results if len(made.points) >= FEWEST_POINTS]
    paths = []
    for made, name in zip(drawn, _names(drawn), strict=True):
        paths += style.save(figures.emergence_figure(made), out / name)
    paths += [out / "emergence.csv", out / "emergence.json"]
    table.write(frame(results), paths[-2])
    temporary = out / f".emergence.json.{os.getpid()}"
    temporary.write_text(json.dumps([made.to_dict() for made in results], indent=1) + "\n", "utf8")
    os.replace(temporary, paths[-1])
    return paths


def _names(results) -> list[str]:
    """File names of the figures, unique even on case-insensitive file systems."""
    names = []
    for made in results:
        ladder = f"-{made.ladder.replace(' = ', '-').replace(' ', '-')}" if made.ladder else ""
        name = f"emergence-{made.task}{f'-{made.shots}-shot' if made.shots else ''}{ladder}-{made.x}"
        if len({o.family for o in results if (o.task, o.shots) == (made.task, made.shots)}) > 1:
            name += f"-{made.family}"
        name = safe_name(name)
        while name.lower() in (other.lower() for other in names):
            name += "-"
        names.append(name)
    return names


TABLE = [
    Column("quantity", left=True),
    Column("value"),
    Column("low", "95 % from"),
    Column("high", "to"),
    Column("note", left=True),
]


def show(results: "Sequence[Emergence]") -> None:
    """Prints a table and a sentence per task, then the tasks with too few points, then each warning once."""
    from rich.console import Console
    from rich.text import Text

    from lmjax.scaling.emergence.classify import UNDECIDED
    from lmjax.scaling.emergence.curves import FEWEST_POINTS

    console = Console()
    few: dict[int, list[Emergence]] = {}
    for made in results:
        if len(made.points) < FEWEST_POINTS:
            few.setdefault(len(made.points), []).append(made)
            continue
        console.print()
        heading = made.name + f" ({made.family})" * bool(made.family)
        display.show(made.rows(), TABLE, title=heading, console=console)
        console.print(Text(made.sentence, style=COLOURS[made.verdict]))
    for points, group in few.items():
        names = list(dict.fromkeys(made.task for made in group))
        reason = f"{_plural(points, 'point')}, at least {FEWEST_POINTS} are needed"
        console.print(Text(f"\n{_plural(len(names), 'task')}: {UNDECIDED}: {reason}", style=COLOURS[UNDECIDED]))
        console.print(Text(f"  {', '.join(names)}", style="dim"))
    console.print()
    for warning, group in _shared(results).items():
        some = ", ".join(group) if len(group) <= 3 else f"{len(group)} of {len(results)}"
        which = "" if len(group) == len(results) else f" ({some})"
        console.print(Text(f"warning: {warning}{which}", style="yellow"))
    for conventions in dict.fromkeys("; ".join(made.conventions.values()) for made in results):
        console.print(Text(conventions, style="dim"))


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _shared(results) -> dict[str, list[str]]:
    """Maps each warning, and each summary of left-out cells, to the names of its results."""
    shared: dict[str, list[str]] = {}
    for made in results:
        warnings = list(made.warnings)
        if made.excluded:
            reasons = sorted({row["reason"] for row in made.excluded})
            warnings.append(f"{_plural(len(made.excluded), 'cell')} left out: {', '.join(reasons)}")
        for warning in warnings:
            shared.setdefault(warning, []).append(made.name)
    return shared


def command(
    source: pathlib.Path,
    tasks: list[str],
    x: str,
    out: pathlib.Path,
    seed: int,
    by: str | None = None,
    where: dict[str, str] | None = None,
) -> int:
    """Runs `lmjax emergence`: reads, judges, prints and writes; returns the exit code 0.

    Args:
        source: directory with evaluations.csv (and evaluations of items below it), or a table.
        tasks: names; [] for every task with a hard and a smooth metric.
        x: C | N | D | loss.
        out: folder for emergence.csv, emergence.json and the figures.
        seed: random seed of the resampling.
        by, where: which ladders, as in classify.analyse.

    Raises:
        InputError: as `read` and `analyse`.
    """
    from lmjax.scaling.emergence.classify import analyse

    evaluations, items = read(source)
    results = analyse(evaluations, items, tasks or None, x, by=by, where=where, seed=seed)
    show(results)
    judged = {made.task for made in results}
    others = sorted(set(evaluations["task"]) - judged - {""})
    if others and not tasks:
        print(f"\nnot judged (no result in a hard and a smooth metric): {', '.join(others)}")
    paths = write(results, pathlib.Path(out))
    print(f"\nwritten: {_listed(paths)} in {out}")
    return 0


def _listed(paths):
    """Names of the tables, and of the figures or how many there are."""
    drawn = [path.stem for path in paths if path.suffix == ".png"]
    shown = ", ".join(drawn) if len(drawn) <= 4 else f"{len(drawn)} figures"
    return ", ".join([f"{shown} (.png)"] * bool(drawn) + [path.name for path in paths[-2:]])

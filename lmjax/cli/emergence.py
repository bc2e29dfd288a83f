"""`lmjax emergence`: from a sweep's evaluations to printed verdicts, tables and figures."""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmjax import display
from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.format import plural

if TYPE_CHECKING:
    from lmjax.scaling.emergence.classify import Emergence
    from lmjax.scaling.emergence.design import Design, Planned

LONGEST = 100  # characters of a file name without its ending: file systems take 255 bytes
COLOURS = {
    "sharp in the metric only": "cyan",
    "sharp in the loss too": "magenta",
    "smooth in both": "green",
    "not decidable from these runs": "yellow",
}
TABLE = [
    Column("quantity", left=True),
    Column("value"),
    Column("low", "95 % from"),
    Column("high", "to"),
    Column("note", left=True),
]
PLAN = [
    Column("task", left=True),
    Column("share", "rise, share of ladder", "{:.2f}".format),
    Column("power", "", "{:.0%}".format),
    Column("seeds", "seeds needed"),
    Column("items", "items needed"),
    Column("reason", "verdict", left=True),
]


def add_commands(add) -> None:
    """Declares the command: add(name, call, summary) returns a parser."""
    p = add(
        "emergence", _emergence, "test whether a jump in a task's metric is also in its loss, along a ladder of runs"
    )
    p.add_argument(
        "source",
        type=pathlib.Path,
        help="an evaluated directory of runs; results of lm-evaluation-harness (a .json file or a folder of them); or "
        "a table with a row per run, task and metric (task, metric, value, n, and C, N and D, or loss), or with a "
        "column per metric (such as acc, acc_stderr, exact_match, bits_per_byte)",
    )
    p.add_argument(
        "--sizes", type=pathlib.Path, help="table with a row per model: its name, N, D or C, and its family and seed"
    )
    p.add_argument(
        "--columns",
        action="append",
        default=[],
        metavar="OURS=THEIRS",
        help="column names, such as C=train_flop,family=vendor,seed=run_seed,standard_error=se,accuracy=acc_norm; n "
        "and chance may be numbers (repeatable)",
    )
    p.add_argument(
        "--noise",
        default="",
        metavar="METRIC=SD",
        help="standard deviation over seeds of each metric, such as accuracy=0.01,brier=0.004, for points of one seed "
        "(default: from neighbouring checkpoints, if there are any)",
    )
    p.add_argument("--tasks", default="all", help="task names, comma-separated, or all (default: all)")
    p.add_argument("--x", default="C", choices=("C", "N", "D", "loss"), help="scale on the x axis (default: C)")
    p.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help='use only rows with KEY=VALUE, such as N=98.6k, or for which an expression holds, such as "C >= 1e18" '
        "(repeatable)",
    )
    p.add_argument(
        "--by", metavar="KEY", help="one ladder per value of this column (default: inferred from N, D and family)"
    )
    p.add_argument(
        "--plan",
        metavar="DESIGN",
        help="take the source as a pilot of a ladder such as points=8,seeds=3,items=300, which spans the same scale, "
        "and say which tasks that ladder can decide; an error if they are fewer than --least",
    )
    p.add_argument("--least", type=int, help="with --plan: number of decidable tasks needed (default: all)")
    p.add_argument("--seed", default=0, type=int, help="random seed of the bootstrap (default: 0)")
    p.add_argument(
        "--out", type=pathlib.Path, help="output folder for table, verdicts and figures (default: folder of the source)"
    )


def _emergence(arguments, overrides):
    from lmjax.scaling.emergence.classify import analyse

    tasks = [] if arguments.tasks == "all" else arguments.tasks.split(",")
    source, columns = arguments.source, _pairs(arguments.columns, "--columns", "accuracy=acc_norm")
    stated = {name: _sd(name, value) for name, value in _pairs([arguments.noise], "--noise", "accuracy=0.01").items()}
    evaluations, items, notes = read(source, arguments.sizes, columns)
    for note in notes:
        print(note)
    if arguments.plan:
        return _plan(arguments, evaluations, items, tasks, stated)
    settings = {"by": arguments.by, "where": arguments.where, "stated": stated, "seed": arguments.seed}
    results = analyse(evaluations, items, tasks, arguments.x, **settings)
    show(results)
    others = sorted(set(evaluations["task"]) - {made.task for made in results} - {""})
    if others and not tasks:
        print(f"\nnot judged (no result in a hard metric): {', '.join(others)}")
    out = arguments.out or (source if source.is_dir() else source.parent)
    paths = write(results, out)
    drawn = [path.stem for path in paths if path.suffix == ".png"]
    figures = f"{', '.join(drawn) if len(drawn) <= 4 else f'{len(drawn)} figures'} (.png), " if drawn else ""
    print(f"\nwritten: {figures}emergence.csv, emergence.json in {out}")
    return 0


def _plan(arguments, evaluations, items, tasks, stated):
    """Prints which tasks a planned ladder decides; raises InputError if they are too few."""
    from lmjax.scaling.emergence import design

    if arguments.by or arguments.where:
        raise InputError("--plan: expected a pilot that is one ladder, without --by and --where")
    given = _pairs([arguments.plan], "--plan", "points=8")
    names = [field.name for field in dataclasses.fields(design.Design)]
    if sorted(given) != sorted(names) or not all(number.isdigit() for number in given.values()):
        raise InputError(f"--plan: expected whole numbers of {', '.join(names)}, got {arguments.plan!r}")
    asked = design.Design(**{name: int(number) for name, number in given.items()})
    planned = design.plan(evaluations, items, asked, tasks, arguments.x, stated, seed=arguments.seed)
    show_plan(planned, asked)
    design.check(planned, asked, arguments.least)
    return 0


def show_plan(planned: "Sequence[Planned]", asked: "Design") -> None:
    """Prints a row per task: the planned rise, the power, and what it takes where the task is not decidable."""
    rows = [dataclasses.asdict(made) | {"reason": made.reason or "decidable"} for made in planned]
    display.show(rows, PLAN, title=f"{asked.points} points, {asked.seeds} seeds, {asked.items} items")


def _pairs(texts: Sequence[str], option: str, example: str) -> dict[str, str]:
    """["a=b,c=d,e", "f=g"] as {"a": "b", "c": "d,e", "f": "g"}: names of columns may have commas."""
    pairs = [pair for text in texts for pair in re.split(r",(?=[^,=]+=)", text) if pair]
    for pair in pairs:
        if "=" not in pair:
            raise InputError(f"{option}: expected NAME=VALUE, such as {example}, got {pair!r}")
    return {name.strip(): value for name, _, value in (pair.partition("=") for pair in pairs)}


def _sd(name, value):
    try:
        return float(value)
    except ValueError as error:
        raise InputError(f"--noise: expected a number for {name}, got {value!r}") from error


def read(source: pathlib.Path, sizes: pathlib.Path | None = None, columns=None):
    """Returns the table of evaluations, the table of items if it exists beside it, else None, and notes.

    Args:
        source: a run or sweep directory with evaluations.csv, or as harness.read. sizes, columns: as harness.read.

    Raises:
        InputError: nothing to read there.
    """
    from lmjax.evals import table
    from lmjax.scaling.emergence import curves, harness

    found, notes = harness.read(source, sizes, columns)
    folder = source if source.is_dir() else source.parent
    own = "run_status" in found and table.item_files(folder)
    return curves.read(found), table.read_items(folder) if own else None, notes


def frame(results: "Sequence[Emergence]"):
    """Returns a pandas table, a row per task and point: the verdict's numbers, then those of the point.

    Where hard, smooth, null, deviation or sampled has an interval, columns `_low` and `_high` follow;
    `hard_metric` and `smooth_metric` are names, `rise_share` and `smooth_share` are 10-90 % widths over the ladder.
    """
    import pandas

    rows = []
    for made in results:
        rise = made.rise
        shared = {name: getattr(made, name) for name in ("task", "ladder", "shots", "family", "verdict")}
        shared |= {"reasons": "; ".join(made.reasons), "hard_metric": made.hard, "smooth_metric": made.smooth}
        shared |= {"rise_decades": rise.width, "rise_share": rise.share}
        shared |= {"rise_share_low": rise.share_low, "rise_share_high": rise.share_high}
        shared["smooth_share"] = made.smooth_rise.share
        for prefix, part, names in (
            ("break_", made.broken, {"ratio": "ratio", "p": "p_value", "power": "power"}),
            ("null_", made.null, {"p": "p_value", "r_squared": "r_squared"}),
            ("explained", made.explained, {"": "share", "_low": "low", "_high": "high"}),
        ):
            shared |= {prefix + name: getattr(part, attribute, None) for name, attribute in names.items()}
        shared |= {name: getattr(made, name) for name in ("seed_spread", "n", "chance", "data_hash")}
        rows += [shared | row for row in made.points]
    return pandas.DataFrame(rows)


def safe_name(name: str) -> str:
    """A safe file name: letters, digits, dots, dashes and underscores; with a hash of `name` if it was changed.

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
    from lmjax.run_record import replace_file
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
    records = [made.to_dict() for made in results]
    replace_file(paths[-1], json.dumps(records, indent=1, allow_nan=False) + "\n")
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


def show(results: "Sequence[Emergence]") -> None:
    """Prints a table and a sentence per task, then the tasks with too few points, then each warning once."""
    from rich.console import Console
    from rich.text import Text

    from lmjax.scaling.emergence.classify import UNDECIDED
    from lmjax.scaling.emergence.curves import FEWEST_POINTS

    console = Console()
    few: dict[int, list[str]] = {}
    for made in results:
        heading = made.name + f" ({made.family})" * bool(made.family)
        if len(made.points) < FEWEST_POINTS:
            few.setdefault(len(made.points), []).append(heading)
            continue
        console.print()
        display.show(made.rows(), TABLE, title=heading, console=console)
        console.print(Text(made.sentence, style=COLOURS[made.verdict]))
        for remark in made.remarks:
            console.print(Text(f"what the runs do show: {remark}"))
    for points, tasks in few.items():
        names = list(dict.fromkeys(tasks))
        reason = f"{plural(points, 'point')}, at least {FEWEST_POINTS} are needed"
        kind = "task" if {*names} <= {made.task for made in results} else "ladder"
        console.print(Text(f"\n{plural(len(names), kind)}: {UNDECIDED}: {reason}", style=COLOURS[UNDECIDED]))
        console.print(Text(f"  {', '.join(names)}", style="dim"))
    console.print()
    shared: dict[str, list[str]] = {}  # warning -> names of its results
    for made in [made for made in results if made.resamples] or results:
        warnings = list(made.warnings)
        if made.excluded:
            reasons = sorted({row["reason"] for row in made.excluded})
            warnings.append(f"{plural(len(made.excluded), 'cell')} left out: {', '.join(reasons)}")
        for warning in warnings:
            shared.setdefault(warning, []).append(made.name)
    for warning, names in shared.items():
        some = ", ".join(names) if len(names) <= 3 else f"{len(names)} of {len(results)}"
        which = "" if len(names) == len(results) else f" ({some})"
        console.print(Text(f"warning: {warning}{which}", style="yellow"))
    for conventions in dict.fromkeys("; ".join(made.conventions.values()) for made in results):
        console.print(Text(conventions, style="dim"))

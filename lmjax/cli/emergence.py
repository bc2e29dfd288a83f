"""`lmjax emergence`: from a sweep's evaluations to printed verdicts, tables and figures."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmjax.errors import InputError

if TYPE_CHECKING:
    from lmjax.scaling.emergence.verdict import Emergence

LONGEST = 100  # of a file's name without its ending: file systems take 255 bytes
COLOURS = {
    "sharp in the metric only": "cyan",
    "sharp in the loss too": "magenta",
    "smooth in both": "green",
    "not decidable from these runs": "yellow",
}


def add_commands(add) -> None:
    """Declares the command: add(name, call, summary) returns a parser."""
    p = add("emergence", _emergence, "does a skill emerge, or only its metric? hard against smooth metrics of a ladder")
    p.add_argument(
        "source",
        type=pathlib.Path,
        help="an evaluated directory of runs, or a table with a row per run, task and metric: task, metric (such as "
        "exact_match, token_accuracy, log_likelihood_per_token), value, n, and C, N and D, or loss",
    )
    p.add_argument("--tasks", default="all", help="task names, comma-separated, or all (default: all)")
    p.add_argument("--x", default="C", choices=("C", "N", "D", "loss"), help="variable of scale (default: C)")
    p.add_argument("--seed", default=0, type=int, help="random seed of the resampling (default: 0)")
    p.add_argument("--out", type=pathlib.Path, help="folder for table, verdicts and figures (default: the source's)")


def _emergence(arguments, overrides):
    tasks = [] if arguments.tasks == "all" else arguments.tasks.split(",")
    return command(arguments.source, tasks, arguments.x, arguments.out, arguments.seed)


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
        raise InputError(f"no {path}; wanted a table of evaluations: make one with lmjax eval {source} --tasks all")
    folder = path.parent
    has_items = any(folder.glob("evaluations/*.json")) or any(folder.glob("*/evaluations/*.json"))
    return columns.read(path), table.read_items(folder) if has_items else None


def frame(results: "Sequence[Emergence]"):
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
            "contained": made.contained.portion if made.contained else None,
            "n": made.n,
            "chance": made.chance,
            "data_hash": made.data_hash,
        }
        rows += [shared | row for row in made.levels]
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

    A task without a curve, of fewer than five sizes, is in the tables only.
    """
    from lmjax.evals import table
    from lmjax.scaling.emergence.verdict import FEWEST_SIZES
    from lmjax.scaling.figures import emergence as figures
    from lmjax.scaling.figures import style

    out.mkdir(parents=True, exist_ok=True)
    drawn = [made for made in results if len(made.levels) >= FEWEST_SIZES]
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
    """File names of the figures, all different also where capitals do not count."""
    names = []
    for made in results:
        name = f"emergence-{made.task}{f'-{made.shots}-shot' if made.shots else ''}-{made.x}"
        if sum(other.task == made.task and other.shots == made.shots for other in results) > 1:
            name += f"-{made.family}"
        name = safe_name(name)
        while name.lower() in (other.lower() for other in names):
            name += "-"
        names.append(name)
    return names


def show(results: "Sequence[Emergence]") -> None:
    """Prints each verdict with its sentence; tasks without a curve in a line per reason; what they share at the end."""
    from rich.console import Console
    from rich.text import Text

    from lmjax.scaling.emergence.verdict import FEWEST_SIZES, UNDECIDED
    from lmjax.scaling.emergence.words import plural

    console = Console()
    few: dict[str, list[Emergence]] = {}
    for made in results:
        if len(made.levels) < FEWEST_SIZES:
            words = f"{plural(len(made.levels), 'size')} each, at least {FEWEST_SIZES} are needed"
            few.setdefault(words, []).append(made)
            continue
        heading = ("\n" + made.task, "bold"), (f"  {_kind(made)}  ", "dim")
        console.print(Text.assemble(*heading, (made.verdict.upper(), f"bold {COLOURS[made.verdict]}")))
        console.print(Text(made.sentence), soft_wrap=False)
        console.print(Text(f"  data {made.data_hash}", style="dim"))
    for words, group in few.items():
        names = list(dict.fromkeys(made.task for made in group))
        many = plural(len(names), "task") + (f" in {len(group)} settings" if len(names) < len(group) else "")
        head = (f"\n{many}: {UNDECIDED}", f"bold {COLOURS[UNDECIDED]}")
        console.print(Text.assemble(head, f": {words}"))
        console.print(Text(f"  {', '.join(names)}", style="dim"))
    console.print()
    for words, group in _shared(results).items():
        some = ", ".join(group) if len(group) <= 3 else f"{len(group)} of {len(results)}"
        who = "" if len(group) == len(results) else f" ({some})"
        console.print(Text(f"warning: {words}{who}", style="yellow"))
    for words in dict.fromkeys("; ".join(made.conventions.values()) for made in results):
        console.print(Text(words, style="dim"))


def _kind(made):
    """Family and shots of a result, in words."""
    return ", ".join(word for word in (made.family, f"{made.shots}-shot" if made.shots else "") if word)


def _shared(results) -> dict[str, list[str]]:
    """Each warning, and what was left out, once: words -> tasks they are of."""
    from lmjax.scaling.emergence.words import plural

    said: dict[str, list[str]] = {}
    for made in results:
        words = list(made.warnings)
        if made.excluded:
            reasons = sorted({row["reason"] for row in made.excluded})
            words.append(f"{plural(len(made.excluded), 'cell')} left out: {', '.join(reasons)}")
        for word in words:
            said.setdefault(word, []).append(made.task)
    return said


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

    from lmjax.scaling.emergence.verdict import analyse

    evaluations, items = read(source)
    results = analyse(evaluations, items, tasks or None, x, seed=seed)
    show(results)
    console = Console()
    judged = {made.task for made in results}
    others = sorted(set(evaluations["task"]) - judged - {""})
    if others and not tasks:
        console.print(
            f"\nnot judged (no hard and smooth metric with a result): {', '.join(others)}",
            markup=False,
            highlight=False,
        )
    if out is not None:
        paths = write(results, pathlib.Path(out))
        console.print(f"\nwritten: {_listed(paths)} in {out}", markup=False, highlight=False)
    return 0


def _listed(paths):
    """Names of the tables, and of the figures or how many there are."""
    drawn = [path.stem for path in paths if path.suffix == ".png"]
    shown = ", ".join(drawn) if len(drawn) <= 4 else f"{len(drawn)} figures"
    return ", ".join([f"{shown} (.png)"] * bool(drawn) + [path.name for path in paths[-2:]])

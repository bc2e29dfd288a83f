"""What the experiments share: Markdown, intervals and verdicts of their pages, and the files beside them.

A collect.py reads this file with `pages = run_file(HERE.parent / "pages.py", "experiment")`.
"""

import inspect
import pathlib
import shutil
import sys

import numpy as np
from scipy import stats

from lmjax.errors import InputError
from lmjax.format import count
from lmjax.scaling.figures import style
from lmjax.sweeps import records

REPRODUCED, NOT_REPRODUCED, UNDECIDED = "reproduced", "not reproduced", "cannot be decided here"
CLAIMS = "claim | source | published | ours (95 %) | verdict"  # the rows that claims() of a collect.py returns


# ---- text ----------------------------------------------------------------------------------------------------------


def page(*blocks: str) -> str:
    """Returns a page of Markdown: blocks with an empty line between two, without common indentation; "" is left out.

    Example:
        >>> page("# Title", "", "  one\\n  two")
        '# Title\\n\\none\\ntwo\\n'
    """
    return "\n\n".join(inspect.cleandoc(block) for block in blocks if block) + "\n"


def written(name: str, sweep: str = "--no-analysis ") -> str:
    """Returns the sentence that says which commands made a page.

    Example:
        >>> written("addition", "")[-69:]
        '`lmjax sweep experiments/addition/config.py --workdir runs/addition`.'
    """
    return (
        f"Written by `python experiments/{name}/collect.py runs/{name}` after "
        f"`lmjax sweep experiments/{name}/config.py {sweep}--workdir runs/{name}`."
    )


def table(head: str, rows) -> str:
    """Returns a table of Markdown; a row is text, or cells that are joined.

    Raises:
        InputError: a row has more or fewer columns than the head.

    Example:
        >>> print(table("N | loss", [(1, "2.5"), "2 | 2.4"]))
        | N | loss |
        |---|---|
        | 1 | 2.5 |
        | 2 | 2.4 |
    """
    lines = [f"| {row if isinstance(row, str) else ' | '.join(map(str, row))} |" for row in (head, *rows)]
    if wrong := [line for line in lines if line.count("|") != lines[0].count("|")]:
        raise InputError(f"expected a cell for each column of {lines[0]}, got {wrong[0]}")
    return "\n".join([lines[0], "|---" * (lines[0].count("|") - 1) + "|", *lines[1:]])


def interval(values, form=".2f", missing: str = "refused", words: bool = False) -> str:
    """Returns (value, low, high) as text; `form`: a format or a function; `missing`: the text where the value is NaN.

    Example:
        >>> interval((0.5, 0.4, 0.6)), interval((2e6, 1e6, 4e6), count), interval([np.nan] * 3, missing="none")
        ('0.50 [0.40, 0.60]', '2M [1M, 4M]', 'none')
        >>> interval((0.5, 0.4, 0.6), words=True)
        '0.50 (0.40 to 0.60)'
    """
    text = "{} ({} to {})" if words else "{} [{}, {}]"
    return missing if np.isnan(values[0]) else text.format(*_shown(values, form))


def span(values, form=count) -> str:
    """Returns the least and the greatest of some values as text.

    Example:
        >>> span([35e3, 2e6, 1e5]), span([0.5, 0.25], ".2f")
        ('35k to 2M', '0.25 to 0.50')
    """
    return "{} to {}".format(*_shown((min(values), max(values)), form))


def _shown(values, form):
    return [form(value) if callable(form) else format(value, form) for value in values]


# ---- statistics ----------------------------------------------------------------------------------------------------


def mean(values, confidence: float = 0.95) -> np.ndarray:
    """Returns [mean, low, high] of independent values by Student's t; the ends are NaN for fewer than two values.

    Example:
        >>> mean([1, 2, 3]).round(3).tolist(), mean([1]).tolist()
        ([2.0, -0.484, 4.484], [1.0, nan, nan])
    """
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values) if len(values) > 1 else np.nan
    return np.array([np.mean(values), np.mean(values) - half, np.mean(values) + half])


def verdict(holds: bool, fails: bool) -> str:
    """Returns the verdict on a claim that was shown to hold, to fail, or neither.

    Example:
        >>> verdict(False, True), verdict(False, False)
        ('not reproduced', 'cannot be decided here')
    """
    return REPRODUCED if holds else NOT_REPRODUCED if fails else UNDECIDED


def crossing(step, value, level: float) -> float:
    """Returns the first step at which a value is at least `level`, linear in the log of steps between two; NaN if none.

    Example:
        >>> round(crossing([1, 10, 1000], [0, 0.5, 1], 0.75)), crossing([1, 10], [0, 0.5], 0.75)
        (100, nan)
    """
    step, value = np.asarray(step, float), np.asarray(value, float)
    above = np.flatnonzero(value >= level)
    if not len(above):
        return np.nan
    i = above[0]
    if i == 0:
        return float(step[0])
    weight = (level - value[i - 1]) / (value[i] - value[i - 1])
    return float(np.exp(np.log(step[i - 1]) + weight * np.log(step[i] / step[i - 1])))


# ---- files ---------------------------------------------------------------------------------------------------------


def workdir() -> pathlib.Path | None:
    """Returns the directory of runs that a collect.py was started with; None: the committed records are to be used."""
    return pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None


def pack(folder: pathlib.Path, workdirs: dict[str, pathlib.Path], predictions: bool = False) -> None:
    """Packs the runs of sweeps into folder/NAME.parquet, of those that are there.

    Args:
        folder: of the experiment.
        workdirs: {NAME: a sweep's directory}.
        predictions: copies the prediction of held-out runs that a sweep made into NAME.prediction.json.

    Raises:
        InputError: none of the directories exists.
    """
    there = {name: path for name, path in workdirs.items() if path.is_dir()}
    if not there:
        raise InputError(f"expected runs in {', '.join(map(str, workdirs.values()))}, found none of these directories")
    for name, path in there.items():
        print("\n".join(records.pack(path, folder / f"{name}.parquet")))
        if predictions and (made := path / "prediction.json").exists():
            shutil.copyfile(made, folder / f"{name}.prediction.json")


def write(folder: pathlib.Path, text: str, **figures) -> None:
    """Writes and prints the page README.md of a folder, and saves figures as NAME.png."""
    for name, figure in figures.items():
        style.save(figure, folder / name)
    (folder / "README.md").write_text(text, "utf8")
    print(text)

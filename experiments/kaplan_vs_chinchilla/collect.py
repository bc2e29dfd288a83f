"""Fits the law of each recipe and way of counting, and writes the page of this folder.

Command:  python experiments/kaplan_vs_chinchilla/collect.py runs     (the parent of the workdirs named in config.py)
          python experiments/kaplan_vs_chinchilla/collect.py          (analyses the committed records again)
Writes:   kaplan.parquet, decayed.parquet, summary.png and README.md; tuned: experiments/chinchilla.
"""

import pathlib

import numpy as np
import pandas

from lmjax import scaling
from lmjax.config import run_file
from lmjax.scaling.figures import panels, style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
FOLDERS = {"kaplan": "kaplan", "decayed": "kaplan-decayed"}
TUNED = HERE.parent / "chinchilla" / "records.parquet"
STEPS = (  # step, recipe, count of parameters, the same step of arXiv 2406.19146 (RefinedWeb)
    ("Kaplan's recipe and count", "kaplan", "n_non_embedding", 0.835),
    ("all parameters counted", "kaplan", "n_total", 0.706),
    ("warm-up as a share of the run, cosine decay", "decayed", "n_total", 0.571),
    ("tuned learning rate (muP)", "tuned", "n_total", 0.497),
)


def collect() -> dict[str, pandas.DataFrame]:
    """Returns the runs of each recipe: the same sizes and budgets, seed 0."""
    runs = {name: records.read(HERE / f"{name}.parquet")[0] for name in FOLDERS}
    tuned = records.read(TUNED)[0]
    cells = {_cell(row) for row in runs["kaplan"].itertuples()}
    same = [_cell(row) in cells and row.seed == 0 for row in tuned.itertuples()]
    return {**runs, "tuned": tuned[same]}


def _cell(row):
    return row.n_total, row.steps


def analyse(runs: dict[str, pandas.DataFrame]) -> list[dict]:
    """The law of each step: {"step", "fit", "published"}; N as the step counts it, D tokens, C = 6 N D."""
    found = []
    for step, recipe, counted, published in STEPS:
        table = runs[recipe].rename(columns={counted: "N", "tokens": "D"})[["run_id", "N", "D", "loss"]]
        found.append({"step": step, "fit": scaling.fit(table), "published": published})
    return found


def figure(found: list[dict]):
    """The exponent after each step, with its interval, beside the published one."""
    foot = ["Bars: 95 % intervals, approach 3 on 18 runs each. Published: Porian et al. 2024, RefinedWeb, approach 2."]
    with style.new_figure(7.2, 2.6, foot=foot) as (made, grid):
        ax, places = grid[0, 0], -np.arange(len(found))
        for y, one in zip(places, found, strict=True):
            if not one["fit"].refused:
                ax.plot(one["fit"].intervals["a"], [y, y], "-", color=style.INK, lw=1.4)
                panels.points(ax, one["fit"].derived["a"], y, style.INK, ms=5)
            ax.plot(one["published"], y - 0.2, "d", color=style.HELD_OUT, ms=5)
        ax.plot([], [], "o", color=style.INK, label="here")
        ax.plot([], [], "d", color=style.HELD_OUT, label="published")
        ax.set(xlabel="a of N* ~ C^a", yticks=places, yticklabels=[one["step"] for one in found])
        panels.legend(ax, loc="lower right")
    return made


def exponent(fit) -> tuple[float, float, float]:
    """Returns a with its interval; NaN if the law is refused."""
    return (fit.derived["a"], *fit.intervals["a"]) if not fit.refused else (np.nan,) * 3


def page(runs: dict, found: list[dict]) -> str:
    """Returns the README of this folder."""
    rows = []
    for one in found:
        fit, row = one["fit"], [one["step"], pages.interval(exponent(one["fit"]), ".3f"), one["published"]]
        law = [f"{fit.params[name]:.3g}" for name in ("E", "alpha", "beta")] if not fit.refused else ["", "", ""]
        rows.append([*row, *law, "; ".join(fit.reasons) if fit.refused else f"{100 * fit.noise_sd:.2f} %"])
    new = pandas.concat([runs[name] for name in FOLDERS])
    hours = new["wall_seconds"].sum() / 3600
    return pages.page(
        "# From Kaplan's exponent to Hoffmann's",
        """Question: arXiv 2406.19146 goes from Kaplan's exponent of N* ~ C^a to Hoffmann's step by step. Do models a
        thousand times smaller show the same steps? Commands and design: `config.py`.""",
        "![The exponent after each step](summary.png)",
        pages.table("step | a (95 %) | published | E | alpha | beta | noise", rows),
        f"{len(new)} runs besides those of experiments/chinchilla, {hours:.1f} hours of wall time on one core each.",
    )


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md: an interval wider than 0.4 decides
    nothing."""
    rows = []
    for one in analyse(collect()):
        a, low, high = exponent(one["fit"])
        decided = high - low < 0.4
        verdict = pages.verdict(decided and low <= one["published"] <= high, decided)
        ours = pages.interval((a, low, high), ".3f")
        source = "Porian et al. 2024, arXiv 2406.19146"
        rows.append((f"a of N* ~ C^a: {one['step']}", source, f"{one['published']}", ours, verdict))
    return rows


if __name__ == "__main__":
    if (workdir := pages.workdir()) is not None:
        pages.pack(HERE, {name: workdir / folder for name, folder in FOLDERS.items()})
    table = collect()
    steps = analyse(table)
    pages.write(HERE, page(table, steps), summary=figure(steps))

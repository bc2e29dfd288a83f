"""Fits the law of each recipe and way of counting, and writes the page of this folder.

Command:  python experiments/kaplan_vs_chinchilla/collect.py runs     (the parent of the workdirs named in config.py)
          python experiments/kaplan_vs_chinchilla/collect.py          (analyses the committed records again)
Writes:   kaplan.parquet, decayed.parquet, summary.png and README.md; tuned: experiments/chinchilla.
"""

import pathlib
import sys

import numpy as np
import pandas

from lmjax import scaling
from lmjax.scaling.figures import panels, style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
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
        panels.legend(ax)
    return made


def page(runs: dict, found: list[dict]) -> str:
    """Returns the README of this folder."""
    lines = [
        "# From Kaplan's exponent to Hoffmann's",
        "",
        "Question: arXiv 2406.19146 goes from Kaplan's exponent of N* ~ C^a to Hoffmann's step by step. Do models a",
        "thousand times smaller show the same steps? Commands and design: `config.py`.",
        "",
        "![The exponent after each step](summary.png)",
        "",
        "| step | a (95 %) | published | law | noise |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        fit = one["fit"]
        if fit.refused:
            lines.append(f"| {one['step']} | refused | {one['published']} | {'; '.join(fit.reasons)} | |")
            continue
        low, high = fit.intervals["a"]
        law = ", ".join(f"{name} {fit.params[name]:.3g}" for name in ("E", "alpha", "beta"))
        a = f"{fit.derived['a']:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"| {one['step']} | {a} | {one['published']} | {law} | {100 * fit.noise_sd:.2f} % |")
    hours = sum(table["wall_seconds"].sum() for name, table in runs.items() if name != "tuned") / 3600
    count = sum(len(table) for name, table in runs.items() if name != "tuned")
    lines += [
        "",
        f"{count} runs besides those of experiments/chinchilla, {hours:.1f} hours of wall time on one core each.",
    ]
    return "\n".join(lines) + "\n"


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    if not (HERE / "kaplan.parquet").exists():
        return []
    rows, source = [], "Porian et al. 2024, arXiv 2406.19146"
    for one in analyse(collect()):
        low, high = one["fit"].intervals.get("a", (np.nan, np.nan))
        ours, verdict = "refused", "cannot be decided here"
        if np.isfinite(low):
            ours = f"{one['fit'].derived['a']:.3f} [{low:.3f}, {high:.3f}]"
            if high - low < 0.4:
                verdict = "reproduced" if low <= one["published"] <= high else "not reproduced"
        rows.append((f"a of N* ~ C^a: {one['step']}", source, f"{one['published']}", ours, verdict))
    return rows


if __name__ == "__main__":
    for name, folder in FOLDERS.items():
        if len(sys.argv) > 1 and (pathlib.Path(sys.argv[1]) / folder).is_dir():
            print("\n".join(records.pack(pathlib.Path(sys.argv[1]) / folder, HERE / f"{name}.parquet")))
    table = collect()
    steps = analyse(table)
    style.save(figure(steps), HERE / "summary")
    (HERE / "README.md").write_text(page(table, steps), "utf8")
    print(page(table, steps))

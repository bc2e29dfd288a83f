"""Evaluates the ladder of config.py, judges each number of digits, and writes everything into this folder.

Command:  python experiments/addition/collect.py runs/addition
Writes:   runs.csv, evaluations.csv, emergence.csv, emergence.json, digits.csv; figures: summary, and one per task
"""

import json
import pathlib
import sys

import numpy as np
import pandas

from lmjax import run_record
from lmjax.evals import run as evaluation
from lmjax.evals import table as evaluations
from lmjax.scaling import axes
from lmjax.scaling.emergence import command, figures, verdict
from lmjax.scaling.render import short

HERE = pathlib.Path(__file__).resolve().parent
TASKS = [f"addition_{digits}" for digits in (1, 2, 3, 4)]
ITEMS = 1000
HARD, SMOOTH = "exact_match", "token_accuracy"


def analyse(workdir: pathlib.Path) -> dict:
    """Evaluates what is missing and judges every task.

    Returns:
        {"runs": frame, "evaluations": frame of every run, "sizes": [Emergence of each task over the sizes at the most
        tokens], "tokens": [the same over the token counts at one size]}.
    """
    runs = run_record.read_runs(workdir)
    table = evaluation.evaluate(workdir, TASKS, limit=ITEMS)
    items = evaluations.read_items(workdir)
    size = table["n_total"]
    several = table.groupby("n_total")["tokens"].nunique().idxmax()
    return {
        "runs": runs,
        "evaluations": table,
        "sizes": verdict.analyse(at_most_tokens(table), items, TASKS, x="C"),
        "tokens": verdict.analyse(table[size == several], items, TASKS, x="C"),
    }


def at_most_tokens(table) -> pandas.DataFrame:
    """Returns the rows with a result of the runs that saw the most tokens: the ladder of sizes."""
    return table[(table["tokens"] > 0.9 * table["tokens"].max()) & (table["status"] == "done")]


def figure(result: dict):
    """One panel per metric: exact match, token accuracy and log-likelihood against N, a line per number of digits."""
    panels = ((HARD, "hard: exact match"), (SMOOTH, "smooth: token accuracy"), ("log_likelihood_per_token", "loss"))
    table = at_most_tokens(result["evaluations"])
    foot = [
        f"Decoders of {table['n_total'].nunique()} sizes, {short(table['tokens'].max())} tokens each, "
        f"{table['seed'].nunique()} seeds (dots); lines: means. {ITEMS} sums of each length (100 of one digit: all "
        "there are). N: all parameters. Loss: nats per token of the right answer.",
        "; ".join(f"{made.task[-1]} digits: {made.verdict}" for made in result["sizes"]) + ".",
    ]
    with axes.style():
        made, grid = axes.new_figure(10.2, 3.9, columns=3, foot=foot)
        palette = axes.colours("D", np.array([1.0, 2.0, 3.0, 4.0]))
        for ax, (metric, title) in zip(grid[0], panels, strict=True):
            for digits, colour in enumerate(palette.values(), 1):
                rows = table[(table["task"] == f"addition_{digits}") & (table["metric"] == metric)]
                sign = -1 if metric == "log_likelihood_per_token" else 1
                mean = rows.groupby("n_total")["value"].mean() * sign
                marker = axes.MARKERS[digits - 1]
                ax.plot(mean.index, mean, "-", color=colour, lw=1.3)
                ax.plot(
                    rows["n_total"], rows["value"] * sign, marker, color=colour, mec="white", mew=0.4, label=str(digits)
                )
            axes.log_axis(ax.xaxis, "N", *axes.spread(table["n_total"].astype(float)))
            ax.set(xlabel=axes.WORDS["N"], title=title)
        grid[0, 2].set_yscale("log")
        grid[0, 1].legend(title="digits", loc="lower right", ncols=2)
    return made


def digits(result: dict) -> pandas.DataFrame:
    """Mean over seeds of every metric, a row per task and size, and the verdict."""
    table = at_most_tokens(result["evaluations"])
    means = table.pivot_table(index=["task", "n_total"], columns="metric", values="value", aggfunc="mean").reset_index()
    means["verdict"] = means["task"].map({made.task: made.verdict for made in result["sizes"]})
    return means.round(5)


def write(result: dict, folder: pathlib.Path) -> None:
    """Writes tables, verdicts and figures; paths of the machine stay out."""
    runs = result["runs"]
    runs["config.data.sources"] = "files:sums"
    runs.to_csv(folder / "runs.csv", index=False)
    result["evaluations"].drop(columns=["run_dir"]).to_csv(folder / "evaluations.csv", index=False)
    digits(result).to_csv(folder / "digits.csv", index=False)
    command.frame([*result["sizes"], *result["tokens"]]).to_csv(folder / "emergence.csv", index=False)
    judged = {
        ladder: [{"task": made.task, "verdict": made.verdict, "sentence": made.sentence} for made in result[ladder]]
        for ladder in ("sizes", "tokens")
    }
    (folder / "emergence.json").write_text(json.dumps(judged, indent=1) + "\n", "utf8")
    axes.save(figure(result), folder / "summary")
    for made in result["sizes"]:
        axes.save(figures.emergence_figure(made), folder / made.task)


if __name__ == "__main__":
    found = analyse(pathlib.Path(sys.argv[1]))
    command.show([*found["sizes"], *found["tokens"]])
    write(found, HERE)

"""Evaluates the ladders of config.py, judges each number of digits, and writes everything into this folder.

Command:  python experiments/addition/collect.py runs/addition
          python experiments/addition/collect.py     (judges the committed runs.csv and evaluations.csv again; without
          the runs' items the intervals use standard errors)
Writes:   README.md, runs.csv, evaluations.csv, emergence.csv, emergence.json, digits.csv; figures: summary, and one per
          ladder and task
"""

import json
import pathlib

import numpy as np
import pandas

from lmjax import run_record
from lmjax.cli import emergence as command
from lmjax.config import run_file
from lmjax.evals import run as evaluation
from lmjax.evals import table as evaluations
from lmjax.format import count as short
from lmjax.scaling.emergence.classify import analyse
from lmjax.scaling.figures import emergence as figures
from lmjax.scaling.figures import style as axes

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
TASKS = [f"addition_{digits}" for digits in (1, 2, 3, 4)]
ITEMS = 1000
LADDERS = {"sizes": "over N", "tokens": "over D"}
LOSS = "log_likelihood_per_token"


def judge(workdir: pathlib.Path | None) -> dict:
    """Evaluates what is missing and judges every task.

    Args:
        workdir: the directory of runs; None: the tables of this folder.

    Returns:
        {"runs": frame, "evaluations": frame of every run, "sizes": [Emergence of each task over the sizes at the most
        tokens], "tokens": [the same over the token counts at one size]}.
    """
    if workdir is None:
        runs, table, items = pandas.read_csv(HERE / "runs.csv"), pandas.read_csv(HERE / "evaluations.csv"), None
    else:
        runs, table = run_record.read_runs(workdir), evaluation.evaluate(workdir, TASKS, limit=ITEMS)
        items = evaluations.read_items(workdir)
    found = analyse(table, items, TASKS, x="C")
    judged = {name: [made for made in found if made.ladder.startswith(over)] for name, over in LADDERS.items()}
    return {"runs": runs, "evaluations": table, **judged}


def size_of_tokens(table) -> int:
    """Returns the size that was trained for several token counts."""
    return int(table.groupby("n_total")["tokens"].nunique().idxmax())


def at_most_tokens(table) -> pandas.DataFrame:
    """Returns the rows with a result of the runs that saw the most tokens: the ladder of sizes."""
    return table[(table["tokens"] > 0.9 * table["tokens"].max()) & (table["status"] == "done")]


def figure(result: dict):
    """Draws exact match, token accuracy and loss of the answers against N and D, a line per number of digits."""
    panels = (("exact_match", "exact match"), ("token_accuracy", "token accuracy"), (LOSS, "loss of the answer"))
    table = result["evaluations"]
    ladders = (
        ("n_total", "N", at_most_tokens(table)),
        ("tokens", "D", table[(table["n_total"] == size_of_tokens(table)) & (table["status"] == "done")]),
    )
    foot = [
        f"Above: {short(table['tokens'].max())} tokens each. Below: {short(size_of_tokens(table))} parameters each. "
        f"{table['seed'].nunique()} seeds (dots); lines: means. {ITEMS} sums of each length (100 of one digit: all). "
        "N: all parameters. Loss: nats per token of the right answer.",
        *(
            f"{words}: " + ", ".join(f"{made.task[-1]} digits {made.verdict}" for made in result[name]) + "."
            for words, name in (("Over sizes", "sizes"), ("Over tokens", "tokens"))
        ),
    ]
    with axes.new_figure(10.2, 7.0, columns=3, rows=2, foot=foot) as (made, grid):
        palette = axes.colours("D", np.array([1.0, 2.0, 3.0, 4.0]))
        for row, (column, variable, ladder) in zip(grid, ladders, strict=True):
            for ax, (metric, title) in zip(row, panels, strict=True):
                for count, colour in enumerate(palette.values(), 1):
                    _draw(ax, ladder[ladder["task"] == f"addition_{count}"], column, metric, count, colour)
                axes.log_axis(ax.xaxis, variable, *axes.spread(ladder[column].astype(float)))
                ax.set(xlabel=axes.WORDS[variable], title=title)
            row[2].set_yscale("log")
        grid[0, 1].legend(title="digits", loc="lower right", ncols=2)
    return made


def _draw(ax, rows, column, metric, count, colour):
    rows = rows[rows["metric"] == metric]
    value = rows["value"] * (-1 if metric == LOSS else 1)
    mean = value.groupby(rows[column]).mean()
    ax.plot(mean.index, mean, "-", color=colour, lw=1.3)
    marker = axes.MARKERS[count - 1]
    ax.plot(rows[column], value, marker, color=colour, mec="white", mew=0.4, label=str(count))


def digits(result: dict) -> pandas.DataFrame:
    """Mean over seeds of every metric, a row per task and size, and the verdict."""
    table = at_most_tokens(result["evaluations"])
    means = table.pivot_table(index=["task", "n_total"], columns="metric", values="value", aggfunc="mean").reset_index()
    means["verdict"] = means["task"].map({made.task: made.verdict for made in result["sizes"]})
    return means.round(5)


def write(result: dict, folder: pathlib.Path) -> None:
    """Writes tables, verdicts, figures and the page; paths of the machine stay out."""
    runs = result["runs"].assign(**{"config.data.sources": "files:sums"})
    runs.to_csv(folder / "runs.csv", index=False)
    result["evaluations"].drop(columns="run_dir", errors="ignore").to_csv(folder / "evaluations.csv", index=False)
    digits(result).to_csv(folder / "digits.csv", index=False)
    command.frame([*result["sizes"], *result["tokens"]]).to_csv(folder / "emergence.csv", index=False)
    facts = ("task", "verdict", "sentence")
    judged = {
        name: [{key: getattr(made, key) for key in facts} | {"table": made.rows()} for made in result[name]]
        for name in LADDERS
    }
    (folder / "emergence.json").write_text(json.dumps(judged, indent=1) + "\n", "utf8")
    drawn = {f"{name}_{made.task}": made for name in LADDERS for made in result[name]}
    drawn = {name: figures.emergence_figure(made) for name, made in drawn.items()}
    pages.write(folder, page(result), summary=figure(result), **drawn)


def page(result: dict) -> str:
    """The README of this folder: every number in it is computed here."""
    runs, table, spread = result["runs"], result["evaluations"], _spread(result["evaluations"])
    shares = table[table["metric"] == "exact_match"].groupby("task")["seen"].mean()
    tokens, means = short(table["tokens"].max()), digits(result).assign(loss=lambda found: -found[LOSS])
    rows = (
        f"{row.task[-1]} | {short(row.n_total)} | {row.exact_match:.3f} | {row.token_accuracy:.3f} | {row.loss:.4f}"
        for row in means.itertuples()
    )
    return pages.page(
        "# Addition of 1 to 4 digits: does it emerge?",
        pages.written("addition", ""),
        f"{len(runs)} decoders, {pages.span(runs['n_total'], short)} parameters; of the test sums with 1 to 4 digits, "
        f"{', '.join(f'{share:.0%}' for share in shares)} are training documents; "
        f"{runs['wall_seconds'].sum() / 120:.0f} minutes of wall time on 2 cores that other programs shared, "
        f"finished {runs['finished'].max()[:10]}.",
        "![Exact match, token accuracy and loss against N and D](summary.png)",
        f"The seed matters more than the size: at {short(spread['size'])} parameters and {short(spread['tokens'])} "
        f"tokens exact match on 4-digit sums is {spread['low']:.3f} with one seed, {spread['high']:.3f} with another.",
        f"## Means over seeds at {tokens} tokens",
        pages.table("digits | N | exact match | token accuracy | loss, nats/token", rows),
        f"## Over tokens, at {short(size_of_tokens(table))} parameters",
        *ladder(result, "tokens"),
        f"## Over sizes, at {tokens} tokens",
        *ladder(result, "sizes"),
        "Columns: 10-90 % rise of exact match and of the loss (share of the ladder), share of the rise that the smooth "
        "metrics explain, leave-one-out error of a power law over that of a law with a break, power of that test for a "
        "break as sharp as exact match's, largest spread of exact match over seeds. Brackets: 95 % intervals. "
        f"{'; '.join(result['tokens'][0].warnings)}.",
    )


def ladder(result: dict, name: str) -> list[str]:
    """The blocks of the page on a ladder: the table of its tasks, and the sentence and figure of each."""
    quantities = ("rise, hard metric", "rise, smooth metric", "rise explained", "leave-one-out ratio")
    quantities += ("power of the test", "spread over seeds")
    rows, blocks = [], []
    for made in result[name]:
        cells, shown = {row["quantity"]: row for row in made.rows()}, []
        for row in map(cells.get, quantities):
            ends = f" [{row['low']}, {row['high']}]" if row and row["low"] else ""
            shown.append(f"{row['value']}{ends}" if row else "-")
        rows.append((made.task[-1], made.verdict.replace(" from these runs", ""), *shown))
        blocks += [made.sentence, f"![{made.task}: {made.verdict}]({name}_{made.task}.png)"]
    head = "digits | verdict | rise, exact match | rise, loss | explained | error ratio | power | seed spread"
    return [pages.table(head, rows), *blocks]


def _spread(table) -> dict:
    """Where the seeds of one size differ most in exact match on 4-digit sums."""
    rows = at_most_tokens(table)
    rows = rows[(rows["task"] == "addition_4") & (rows["metric"] == "exact_match")]
    ends = rows.groupby("n_total")["value"].agg(["min", "max"])
    size = (ends["max"] - ends["min"]).idxmax()
    low, high = ends.loc[size]
    return {"size": int(size), "tokens": float(rows["tokens"].max()), "low": float(low), "high": float(high)}


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    table = pandas.read_csv(HERE / "emergence.csv", usecols=["task", "ladder", "verdict"]).drop_duplicates()
    rows = []
    source, published = "Schaeffer et al. 2023, arXiv 2304.15004", "the jump comes from the metric"
    for row in table.itertuples():
        verdict = pages.verdict(row.verdict == "sharp in the metric only", row.verdict == "sharp in the loss too")
        rows.append((f"{row.task[-1]}-digit addition, {row.ladder}", source, published, row.verdict, verdict))
    return rows


if __name__ == "__main__":
    found = judge(pages.workdir())
    command.show([*found["sizes"], *found["tokens"]])
    write(found, HERE)

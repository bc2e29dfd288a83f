"""Evaluates the ladder of config.py, judges each task, and writes everything into this folder.

Command:  python experiments/emergence/collect.py --pilot runs/emergence     (evaluates the pilot, and
          refuses the ladder if too few tasks are decidable)
          python experiments/emergence/collect.py runs/emergence
          python experiments/emergence/collect.py     (judges the committed records, evaluations and items again)
Writes:   README.md, records.parquet, evaluations.parquet, items.parquet, verdicts.csv, emergence.png, loss.png; of the
          pilot pilot.csv and plan.csv
"""

import dataclasses
import pathlib
import sys

import numpy as np
import pandas

from lmjax import process
from lmjax.cli import emergence as command
from lmjax.config import run_file
from lmjax.evals import run as evaluation
from lmjax.evals import table as evaluations
from lmjax.format import count as short
from lmjax.scaling.emergence import design, scatter, sharpness
from lmjax.scaling.emergence.classify import LOSS_TOO, METRIC_ONLY, SMOOTH, UNDECIDED, analyse
from lmjax.scaling.figures import style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
three = run_file(HERE / "three.py", "experiment")
CONFIG = run_file(HERE / "config.py", "config")
LOSS, SEEDS = "log_likelihood_per_token", int(np.median(list(CONFIG.SEEDS.values())))
ITEM = {"exact_match": "int8", "token_accuracy": "int8", "log_likelihood": "float32"}  # numerators that are kept
HARD, SOFT = "#0072b2", "#d55e00"  # of Okabe and Ito's colours
SHORT = {
    METRIC_ONLY: "sharp in the metric only",
    LOSS_TOO: "sharp in the loss too",
    SMOOTH: "smooth in both",
    UNDECIDED: "not decidable",
}
KEPT = "run_id seed step task shots metric value standard_error n chance status reason family semantics".split()
KEPT += "held_out schedule_complete run_status loss n_total tokens flops_exact seen task_hash limit".split()


def pilot(workdir: pathlib.Path) -> None:
    """Evaluates the runs of the pilot and prints which tasks the ladder can decide; InputError if they are too few."""
    table = evaluation.evaluate(workdir, CONFIG.TASKS, limit=CONFIG.ITEMS, batch_size=CONFIG.ITEMS)
    table[[name for name in KEPT if name in table]].to_csv(HERE / "pilot.csv", index=False)
    asked = design.Design(points=len(CONFIG.STEPS), seeds=SEEDS, items=CONFIG.ITEMS)
    planned = design.plan(table, evaluations.read_items(workdir), asked)
    pandas.DataFrame(map(dataclasses.asdict, planned)).to_csv(HERE / "plan.csv", index=False)
    command.show_plan(planned, asked)
    design.check(planned, asked, CONFIG.LEAST)


def gather(workdir: pathlib.Path) -> None:
    """Evaluates what is missing of the runs, at their ends and at the checkpoints of seed 0; writes the records."""
    records.pack(workdir, HERE / "records.parquet")
    table = evaluation.evaluate(workdir, CONFIG.TASKS, limit=CONFIG.ITEMS, batch_size=CONFIG.ITEMS, steps="all")
    table[[name for name in KEPT if name in table]].to_parquet(HERE / "evaluations.parquet", index=False)
    items = evaluations.read_items(workdir).set_index(["run_id", "step", "task", "item", "metric"])
    wide = items["numerator"].unstack("metric")[list(ITEM)].astype(ITEM)
    wide["tokens"] = items["denominator"].xs("token_accuracy", level="metric").astype("int8")
    wide.reset_index().to_parquet(HERE / "items.parquet", index=False, compression="zstd")


def load() -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    """Returns the committed runs, evaluations and items."""
    runs, _ = records.read(HERE / "records.parquet")
    wide = pandas.read_parquet(HERE / "items.parquet")
    keys, tokens = wide[["run_id", "step", "task", "item"]], wide["tokens"]
    of = {"exact_match": ("exact_match", 1), "token_accuracy": ("token_accuracy", tokens)}
    of |= {"log_likelihood": ("log_likelihood", 1), LOSS: ("log_likelihood", tokens)}
    parts = [
        keys.assign(shots=0, metric=name, numerator=wide[column].astype(float), denominator=below * 1.0)
        for name, (column, below) in of.items()
    ]
    return runs, pandas.read_parquet(HERE / "evaluations.parquet"), pandas.concat(parts, ignore_index=True)


def analysis(runs: pandas.DataFrame, table: pandas.DataFrame, items: pandas.DataFrame) -> dict:
    """Judges the tasks.

    Returns:
        {"runs": runs, "evaluations": table, "tasks": {task: its Emergence over C}, "loss": {task: over the validation
        loss, with the checkpoints of seed 0}}.
    """
    over_c = {made.task: made for made in analyse(table, items, x="C")}
    over_loss = {made.task: made for made in analyse(table, items, x="loss", incomplete=True)}
    return {"runs": runs, "evaluations": table, "tasks": over_c, "loss": over_loss}


def verdicts(found: dict) -> pandas.DataFrame:
    """A row per task: the verdict on the mean, the rises, and those of single seeds."""
    rows = []
    for task, made in ordered(found).items():
        shares, over_loss = list(made.seed_rises.values()), found["loss"][task]
        row = {"task": task, "example": example(task), "start": made.points[0]["hard"], "to": made.points[-1]["hard"]}
        row |= {"chance": made.chance, "hard_rise": made.rise.verdict, "hard_share": made.rise.share}
        row |= {"hard_low": made.rise.share_low, "hard_high": made.rise.share_high}
        row |= {"loss_share": made.smooth_rise.share, "seed_low": np.min(shares), "seed_median": np.median(shares)}
        row |= {"seed_high": np.max(shares), "seeds_sharp": int((np.array(shares) < sharpness.SHARP).sum())}
        row |= {"seeds": len(shares), "explained": made.explained.share if made.explained else np.nan}
        row |= {"power": made.broken.power if made.broken else np.nan, "seed_spread": made.seed_spread}
        row |= {"loss_begin": 10**-over_loss.rise.start, "loss_end": 10**-over_loss.rise.end}
        row |= {"scatter": over_loss.mixed.ratio, "scatter_p": over_loss.mixed.p_value}
        rows.append({**row, "verdict": made.verdict, "reasons": "; ".join(made.reasons)})
    return pandas.DataFrame(rows)


def example(task: str) -> str:
    """An item of a task with its answer, such as "sort qzjav=ajqvz"."""
    from lmjax.evals import tasks

    (known,) = [made for made in tasks.find(CONFIG.TASKS) if made.name == task]
    item = tasks.make_items(known, 0, 1, 0)[0]
    return item.context + item.answers[item.right]


def ordered(found: dict) -> dict:
    """The tasks of `analysis` over C, in the order in which exact match rises; those that do not rise last."""
    tasks = found["tasks"]
    middle = {task: np.nan_to_num(made.rise.start + made.rise.end, nan=np.inf) for task, made in tasks.items()}
    return {task: tasks[task] for task in sorted(tasks, key=middle.get)}


def figure(found: dict):
    """Exact match and probability per byte of the right answer against compute, a panel per task."""
    runs = found["runs"]
    foot = [
        f"{len(runs)} decoders of {pages.span(runs['n_total'])} parameters; dots: "
        "runs (seeds), lines: means. Exact match: share of answers that are right to the last byte. Probability per "
        "byte: geometric mean over the bytes of the right answers, exp(-loss).",
    ]
    with style.new_figure(11.0, 5.4, columns=4, rows=2, foot=foot, sharey=True) as (drawn, grid):
        for ax, (task, made) in zip(grid.flat, ordered(found).items(), strict=True):
            cells, points = pandas.DataFrame(made.cells), pandas.DataFrame(made.points)
            for column, colour, mark, label, shown in (
                ("smooth", SOFT, "s", "probability per byte of the right answer (smooth)", np.exp),
                ("hard", HARD, "o", "exact match (hard)", np.asarray),
            ):
                ax.plot(cells["x"], shown(cells[column]), mark, color=colour, ms=3, alpha=0.45, mec="none")
                ax.plot(points["x"], shown(points[column]), "-", color=colour, lw=1.8, label=label)
            ax.axhline(made.chance, ls="--", lw=0.9, color=style.QUIET, label="chance")
            style.log_axis(ax.xaxis, "C", *style.spread(points["x"].astype(float)))
            ax.set(ylim=(-0.04, 1.04))
            ax.set_title(f"{task}: {SHORT[made.verdict]}", pad=15)
            look = {"fontsize": 6.5, "family": "monospace", "color": style.QUIET, "parse_math": False}
            ax.text(0, 1.02, example(task), transform=ax.transAxes, **look)
        for ax in grid[-1]:
            ax.set_xlabel("training FLOP")
        drawn.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return drawn


def loss_figure(found: dict):
    """Exact match against the validation loss, all sizes and checkpoints, a panel per task."""
    foot = [
        "Circles: ends of runs; crosses: checkpoints of seed 0 at 1/8, 1/4 and 1/2 of their steps. Loss: nats per "
        "predicted byte of the validation documents of the mixture; it falls to the right. Dashed: chance.",
    ]
    sizes = np.unique(found["evaluations"]["n_total"].dropna())
    palette = style.colours("N", sizes)
    with style.new_figure(11.0, 5.2, columns=4, rows=2, foot=foot, sharey=True) as (drawn, grid):
        for ax, (task, made) in zip(grid.flat, ((task, found["loss"][task]) for task in ordered(found)), strict=True):
            cells = pandas.DataFrame(made.cells)
            last = cells["step"] == cells.groupby("run_id")["step"].transform("max")
            for size, colour in palette.items():
                for here, mark in ((last, "o"), (~last, "x")):
                    rows = cells[here & np.isclose(cells["N"], size)]
                    ax.plot(rows["x"], rows["hard"], mark, color=colour, ms=3.6, mew=0.9)
            ax.axhline(made.chance, ls="--", lw=0.9, color=style.QUIET)
            ends = style.spread(cells["x"].astype(float))
            style.log_axis(ax.xaxis, "loss", *ends)
            ax.invert_xaxis()
            ax.set(ylim=(-0.04, 1.04), title=task)
        for size, colour in palette.items():
            grid[0, 0].plot([], [], "o", color=colour, label=short(size))
        grid[0, 0].legend(loc="upper left", title="parameters", ncols=2)
        for ax in grid[-1]:
            ax.set_xlabel("validation loss, nats per byte")
        for ax in grid[:, 0]:
            ax.set_ylabel("exact match")
    return drawn


def page(runs: pandas.DataFrame, table: pandas.DataFrame, plan: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here.

    Args:
        runs: of the ladder. table: as `verdicts` returns it. plan: a row per task, what the pilot said.
    """
    rows = (
        (row.task, f"`{row.example}`", f"{row.start:.2f} to {row.to:.2f}")
        + (pages.interval((row.hard_share, row.hard_low, row.hard_high)), f"{row.seed_low:.2f} to {row.seed_high:.2f}")
        + (f"{row.loss_share:.2f}", f"{row.explained:.0%}", f"{row.power:.0%}", SHORT[row.verdict])
        for row in table.itertuples()
    )
    loss_rows = (
        (row.task, f"{row.loss_begin:.2f} to {row.loss_end:.2f}", f"{row.scatter:.1f}", f"{row.scatter_p:.2g}")
        for row in table.itertuples()
    )
    undecided = table[table["verdict"] == UNDECIDED]
    head = "task | example | exact match | rise | rise, single seeds | rise, loss | explained | power | verdict"
    return pages.page(
        "# Eight skills on one ladder: what emerges?",
        "Written by `python experiments/emergence/collect.py runs/emergence`; config.py has all commands.",
        f"{len(runs)} decoders of {pages.span(runs['n_total'])} parameters learn "
        f"eight skills and English text together: {runs['flops_exact'].sum():.2g} FLOP, "
        f"{runs['wall_seconds'].sum() / 3600:.1f} core-hours, finished {runs['finished'].max()[:10]}. No test item is "
        "a training document.",
        "![Exact match and probability per byte of eight tasks against training compute](emergence.png)",
        f"{len(table) - len(undecided)} of {len(table)} tasks are decidable.",
        pages.table(head, rows),
        "Rise: the share of the ladder (decades of compute) that 10-90 % of the rise takes, of the mean over seeds "
        "with its 95 % interval, of single seeds, and of the loss of the answer; below 0.5 is sharp. Explained: share "
        "of the rise of exact match that the smooth metrics predict. Power: of the test for a break in the loss as "
        "sharp as exact match's.",
        "\n".join(f"- {row.task} is not decidable: {row.reasons}." for row in undecided.itertuples()),
        "## Predictions made before the training",
        _predictions(table),
        "## Against the validation loss",
        "![Exact match of eight tasks against the validation loss](loss.png)",
        pages.table("task | loss where exact match does 10 % and 90 % of its rise | scatter | p", loss_rows),
        "Scatter: of exact match or loss of the answer around any rising curve of the validation loss, over what items "
        "and seeds explain; p: of that test. Points: every size, and the checkpoints of seed 0.",
        *three.committed(),
        *pilot_section(plan),
    )


def pilot_section(plan: pandas.DataFrame) -> list[str]:
    """The paragraphs of the page on the pilot."""
    rows = [
        (row.task, f"{row.share:.2f}", "-" if np.isnan(row.power) else f"{row.power:.0%}", row.reason or "decidable")
        for row in plan.fillna({"reason": ""}).itertuples()
    ]
    return [
        "## What the pilot said",
        f"Eight points over the pilot's range of compute, {SEEDS} seeds and {CONFIG.ITEMS} items; "
        f"{CONFIG.LEAST} decidable tasks were needed to train the rest.",
        pages.table("task | rise | power | ladder", rows),
    ]


def _predictions(table):
    """What became of the predictions of config.py, in their order."""
    count = len(table)
    risen = int(((table["start"] < 0.05) & (table["to"] > 0.8)).sum())
    decided = int((table["verdict"] != UNDECIDED).sum())
    kinds = ", ".join(f"{number} {word}" for word, number in table["verdict"].value_counts().items())
    steeper = int((table["seed_median"] < table["hard_share"]).sum())
    curve = int((table["scatter_p"] > scatter.SIGNIFICANT).sum())
    sharp_too = LOSS_TOO in set(table["verdict"])
    outcomes = [
        (f"at least six tasks rise from below 0.05 to above 0.8: {risen} of {count}", risen >= 6),
        (f"at least five are decidable, and none is sharp in the loss too: {kinds}", decided >= 5 and not sharp_too),
        (f"single seeds rise more steeply than their mean in most tasks: {steeper} of {count}", steeper > count / 2),
        (f"one curve of the loss within noise in fewer than half of the tasks: {curve} of {count}", curve < count / 2),
    ]
    said = {True: "right", False: "wrong"}
    return "\n".join(f"{number}. {text}: {said[bool(right)]}." for number, (text, right) in enumerate(outcomes, 1))


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md, by the rules of config.py."""
    table = pandas.read_csv(HERE / "verdicts.csv")
    count, half = len(table), len(table) / 2
    absent = table["start"] <= table["chance"] + CONFIG.NEAR_CHANCE
    sharp, unclear = (int((absent & (table["hard_rise"] == word)).sum()) for word in ("sharp", "undecided"))
    metric, loss = (int((table["verdict"] == word).sum()) for word in (METRIC_ONLY, LOSS_TOO))
    curve = int((table["scatter_p"] > scatter.SIGNIFICANT).sum())
    return [
        ("abilities appear sharply with scale", "Wei et al. 2022, arXiv 2206.07682")
        + ("absent in small models, then a steep rise",)
        + (f"{sharp} of {count} tasks rise from chance within half of the ladder",)
        + (pages.verdict(sharp >= half, sharp + unclear < half),),
        ("sharp tasks, over model size", "Schaeffer et al. 2023, arXiv 2304.15004", "the jump is the metric's")
        + (f"{metric} sharp in the metric only, {loss} in the loss too",)
        + (pages.verdict(metric > 0 and loss == 0, loss > 0),),
        ("accuracy against the validation loss", "Du et al. 2024, arXiv 2403.15796", "one curve for all sizes")
        + (f"{curve} of {count} tasks within the noise of seeds and items",)
        + (pages.verdict(curve > half, curve < half),),
        *three.claims(),
    ]


if __name__ == "__main__":
    process.use_compilation_cache()  # runs of one size share their programs
    if "--pilot" in sys.argv:
        pilot(pathlib.Path(sys.argv[-1]))
    else:
        if parent := pages.workdir():
            gather(parent)
        found = analysis(*load())
        verdicts(found).to_csv(HERE / "verdicts.csv", index=False)
        table, plan = (pandas.read_csv(HERE / name) for name in ("verdicts.csv", "plan.csv"))
        pages.write(HERE, page(found["runs"], table, plan), emergence=figure(found), loss=loss_figure(found))

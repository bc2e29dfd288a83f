"""Compares decayed branches with separate cosine runs of the same tokens, seed by seed, and counts the compute of both.

Command:  python experiments/wsd_reuse/collect.py runs     (the parent of the workdirs named in config.py)
          python experiments/wsd_reuse/collect.py          (analyses the committed records again)
Writes:   records.parquet, rates.parquet, README.md and wsd_reuse.png into this folder
"""

import pathlib

import numpy as np
import pandas

from lmjax.config import run_file
from lmjax.format import count, duration, flop
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
TOLERANCE = 0.005  # of the loss: a mean difference below it counts as none


def compare(runs: pandas.DataFrame) -> dict:
    """Pairs every branch with the cosine run of its size, tokens and seed.

    Args:
        runs: finished runs: n_total, tokens, seed, loss, flops_exact, flops_inherited, config.schedule.name.

    Returns:
        {"cells": a row per size and tokens: mean loss of both, difference (branch minus cosine) with the 95 % interval
        of its mean over seeds (t distribution), standard deviation of the cosine loss over seeds; "noise": the latter
        over all cells; "mean", "low", "high": relative difference over all cells, with seeds as independent units;
        "separate", "together": FLOPs of the cosine runs, and of trunks and branches}.
    """
    own = runs[["n_total", "tokens", "seed", "loss", "flops_exact", "flops_inherited", "config.schedule.name"]].assign(
        flops_own=runs["flops_exact"] - runs["flops_inherited"].fillna(0.0)
    )
    cosine, branch = (own[own["config.schedule.name"] == name] for name in ("cosine", "wsd"))
    pairs = branch.merge(cosine, on=["n_total", "tokens", "seed"], suffixes=("_branch", "_cosine"))
    difference = pairs["loss_branch"] - pairs["loss_cosine"]
    pairs = pairs.assign(difference=difference, relative=difference / pairs["loss_cosine"])
    rows = []
    for (N, D), part in pairs.groupby(["n_total", "tokens"]):
        losses = {name: part[name].mean() for name in ("loss_branch", "loss_cosine")}
        difference = dict(zip(("difference", "low", "high"), pages.mean(part["difference"]), strict=True))
        rows.append({"N": N, "D": D, **losses, **difference, "noise": part["loss_cosine"].std()})
    return {
        "cells": pandas.DataFrame(rows),
        "noise": float(np.sqrt(np.mean([row["noise"] ** 2 for row in rows]))),
        **dict(zip(("mean", "low", "high"), pages.mean(pairs.groupby("seed")["relative"].mean()), strict=True)),
        "separate": cosine["flops_own"].sum(),
        "together": own["flops_own"].sum() - cosine["flops_own"].sum(),
    }


def figure(found: dict):
    """Left: loss against tokens, branches and cosine runs. Right: their difference beside the noise of seeds."""
    cells = found["cells"]
    foot = [
        "Left: validation loss, mean over seeds; line: decayed branches, crosses: separate cosine runs. Right: branch "
        "minus cosine, paired by seed, with 95 % intervals; band: standard deviation of the cosine loss over seeds."
    ]
    with axes.new_figure(8.4, 3.6, columns=2, foot=foot) as (made, grid):
        left, right = grid[0]
        right.axhspan(-found["noise"], found["noise"], color=axes.QUIET, alpha=0.2, lw=0)
        right.axhline(0, color=axes.QUIET, lw=0.8)
        for (N, part), colour in zip(cells.groupby("N"), axes.colours("N", cells["N"]).values(), strict=True):
            left.plot(part["D"], part["loss_branch"], "-", color=colour, lw=1.2, label=count(N))
            left.plot(part["D"], part["loss_cosine"], "x", color=colour, ms=5)
            half = part["high"] - part["difference"]
            right.errorbar(part["D"], part["difference"], half, fmt="o-", color=colour, ms=3.5, lw=1)
        for panel in (left, right):
            axes.log_axis(panel.xaxis, "D", *axes.spread(cells["D"].astype(float)))
            panel.set_xlabel(axes.WORDS["D"])
        left.set(ylabel="validation loss, nats per token", title="branches and cosine runs")
        right.set(title="branch minus cosine, nats per token")
        left.legend(title="N")
    return made


def page(found: dict, runs: pandas.DataFrame, rates: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here."""
    cells = [
        (
            *(count(row.N), count(row.D), f"{row.loss_branch:.4f}", f"{row.loss_cosine:.4f}"),
            *(pages.interval((row.difference, row.low, row.high), "+.4f"), f"{row.noise:.4f}"),
        )
        for row in found["cells"].itertuples()
    ]
    mean = pages.interval((found["mean"], found["low"], found["high"]), "+.2%")
    losses = rates.pivot_table(index="config.schedule.name", columns="learning_rate", values="loss")
    powers = " | ".join(f"2^{round(np.log2(rate))}" for rate in losses)
    return pages.page(
        "# One trunk, many token counts: decayed branches beside cosine runs",
        """Question: does a decay that branches off a trunk of constant rate reach the loss of a cosine run of the same
        tokens, and how much compute does a ladder over tokens then cost? Commands and design: `config.py`.""",
        "![Loss of branches and cosine runs against tokens; their difference](wsd_reuse.png)",
        f"""
        - Branch minus cosine, relative to the loss, over all cells: {mean} (95 %, {runs["seed"].nunique()} seeds).
        - Standard deviation of the cosine loss over seeds: {found["noise"]:.4f} nats.
        - Compute: {flop(found["separate"])} FLOP for the separate runs, {flop(found["together"])} FLOP for trunks and
          decays: {1 - found["together"] / found["separate"]:.0%} saved.
        """,
        pages.table("N | D | branch | cosine | difference (95 %) | sd over seeds", cells),
        f"""The peak learning rate is that of experiments/chinchilla, 2^-9. Loss of both schedules around it
        ({count(rates["n_total"].iloc[0])} parameters, {count(rates["tokens"].max())} bytes, one seed; wsd: a run of its
        own with a decay of 20 %):""",
        pages.table(
            f"schedule | {powers}",
            [(name, *(f"{x:.4f}" for x in row)) for name, row in losses.T.items()],
        ),
        f"""{len(runs)} runs of {pages.span(runs["n_total"])} parameters and {len(rates)} of other learning rates,
        {duration(runs["wall_seconds"].sum() + rates["wall_seconds"].sum())} of wall time in all, on one core each.""",
    )


def verdict(found: dict) -> str:
    """Whether the branches' loss exceeds that of cosine runs by at most `TOLERANCE`, by the interval of the mean."""
    return pages.verdict(found["high"] <= TOLERANCE, found["low"] > TOLERANCE)


def claims() -> list[tuple[str, ...]]:
    """Returns the row of this experiment in the table of experiments/README.md."""
    found = compare(records.read(HERE / "records.parquet")[0])
    ours = pages.interval((found["mean"], found["low"], found["high"]), "+.2%") + " of the loss, "
    ours += f"{1 - found['together'] / found['separate']:.0%} of the compute saved"
    claim = "decays off one constant-rate trunk reach the loss of separate cosine runs"
    return [(claim, "Hägele et al. 2024, arXiv 2405.18392", "equal", ours, verdict(found))]


if __name__ == "__main__":
    if (runs := pages.workdir()) is not None:
        pages.pack(HERE, {"records": runs / "wsd_reuse", "rates": runs / "wsd_reuse-rates"})
    finished, rates = (records.read(HERE / f"{name}.parquet")[0] for name in ("records", "rates"))
    result = compare(finished)
    pages.write(HERE, page(result, finished, rates), wsd_reuse=figure(result))

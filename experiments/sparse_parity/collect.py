"""Finds when each task is learned, and compares the exponents of the mean loss with those of the quantization model.

Command:  python experiments/sparse_parity/collect.py runs/sparse_parity
          python experiments/sparse_parity/collect.py     (analyses the committed records again)
Writes:   records.parquet, tasks.parquet, README.md and sparse_parity.png into this folder

Tasks k = 1, 2, ... with frequencies p_k proportional to k^-(1 + alpha); a task is learned when its loss is ln 2 / 2.

    loss       mean over tasks by frequency, in nats, as if there were infinitely many: those beyond the last one are
               not learned, ln 2 each. Without them the loss falls faster than a power of q as q nears K
    predicted  loss ~ S^-(alpha / (1 + alpha)) for steps S, as the time to learn a task goes as 1 / p_k; loss ~ N^-alpha
               for parameters N, as each task takes as many of them (Michaud et al. 2023, arXiv 2303.13506)
    fitted     slopes of ln loss: over the steps of the widest networks, and over the widths at the last step, where
               2 <= q <= K / 2 tasks are learned; over widths only networks with at most BOUND times the widest one's q,
               so that their size limits them and not their steps
    reproduced    if the 95 % interval over seeds reaches within CLOSE of the predicted exponent: exact quanta, learned
               one after the other, give slopes within 8 % of it in these ranges. Not decided if half of the interval is
               larger than half of the exponent
"""

import functools
import pathlib

import numpy as np
import pandas
from scipy import special, stats

from lmjax.config import run_file
from lmjax.format import count, duration, flop
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
SAMPLES, LEAST, BOUND, CLOSE = 1024, 2, 0.5, 0.1  # of each task; learned tasks; shares
SOURCE = "Michaud et al. 2023, arXiv 2303.13506"


def measure(workdir: pathlib.Path) -> pandas.DataFrame:
    """Computes the loss of every task at every checkpoint, on the same samples.

    Returns: frame with run_id, step, task (from 1), loss (nats).
    """
    import jax

    import lmjax
    from lmjax import run_record, trained
    from lmjax.losses import token_nats

    @functools.partial(jax.jit, static_argnums=0)
    def nats(module, params, batch):
        logits = module.apply({"params": params}, batch, project=False)["parity"]
        return token_nats(logits, batch["parity_targets"])

    parity, rows = run_file(HERE / "parity.py", "experiment"), []
    for run_dir in run_record.find_runs(workdir):
        for step in trained.steps(run_dir):
            model = lmjax.load(run_dir, step)
            options = model.config.objective.options.to_dict()
            rng = np.random.Generator(np.random.Philox(key=[1, 0]))
            task = np.repeat(np.arange(options["tasks"]), SAMPLES)  # a row of each
            batch = {name: x.reshape(options["tasks"], -1) for name, x in parity.samples(task, rng, options).items()}
            nats_KT = np.asarray(nats(model.model, model.params, batch))
            nats_K = (nats_KT * batch["parity_weights"]).sum(axis=1) / SAMPLES
            facts = {"run_id": model.record["run_id"], "step": step}
            rows.append(pandas.DataFrame({**facts, "task": np.arange(1, len(nats_K) + 1), "loss": nats_K}))
    return pandas.concat(rows, ignore_index=True)


def mean_loss(loss_SK: np.ndarray, alpha: float) -> np.ndarray:
    """Returns the mean loss by frequency, with infinitely many tasks of which those beyond K have loss ln 2, [S].

    Example: 1 task of loss 0, alpha 1: ln 2 (1 - 6 / pi^2) = 0.2718.
    """
    weight_K = np.arange(1.0, loss_SK.shape[1] + 1) ** -(1 + alpha)
    total = special.zeta(1 + alpha)
    return (loss_SK @ weight_K + np.log(2) * (total - weight_K.sum())) / total


def learned(loss_SK: np.ndarray) -> np.ndarray:
    """Returns q, the number of tasks with at most half of ln 2, [S]."""
    return (loss_SK <= np.log(2) / 2).sum(axis=1)


def analyse(runs: pandas.DataFrame, tasks: pandas.DataFrame) -> dict:
    """Returns {"runs": frame of runs with alpha, N, width, seed; "curves": {run id: (steps [S], loss_SK)}; "exponents":
    frame with alpha, along (S | N), seed, loss and q (slopes), points; "steps": frame of the widest networks with
    run_id, alpha, task, at (step at ln 2 / 2), factor (steps from 90 % to 10 % of ln 2, as a ratio)}.

    Args:
        runs: of `records.read`.
        tasks: of `measure`.
    """
    names = {"run_id": "run_id", "config.objective.options.alpha": "alpha", "config.model.d_model": "width"}
    names |= {"n_total": "N", "seed": "seed"}
    runs = runs[[*names]].rename(columns=names).astype({"alpha": float, "width": int, "N": float, "seed": int})
    curves = {}
    for name, part in tasks.groupby("run_id"):
        table = part.pivot_table(index="step", columns="task", values="loss")
        curves[name] = table.index.to_numpy(float), table.to_numpy(float)
    exponents, steps = [], []
    for (alpha, seed), part in runs.groupby(["alpha", "seed"]):
        part = part.sort_values("width")
        widest = part["run_id"].iloc[-1]
        step, loss_SK = curves[widest]
        exponents.append({"alpha": alpha, "along": "S", "seed": seed, **_slopes(step, loss_SK, alpha)})
        last = np.stack([curves[name][1][-1] for name in part["run_id"]])
        limited = learned(last) <= BOUND * learned(last)[-1]
        found = _slopes(part["N"][limited], last[limited], alpha)
        exponents.append({"alpha": alpha, "along": "N", "seed": seed, **found})
        for k, loss in enumerate(loss_SK.T, 1):
            at, begin, end = (pages.crossing(step, -loss, -share * np.log(2)) for share in (0.5, 0.9, 0.1))
            if not np.isnan(at):
                steps.append({"run_id": widest, "alpha": alpha, "task": k, "at": at, "factor": end / begin})
    return {"runs": runs, "curves": curves, "exponents": pandas.DataFrame(exponents), "steps": pandas.DataFrame(steps)}


def _slopes(x, loss_XK, alpha) -> dict:
    """The slopes of ln loss and of ln q against ln x where LEAST <= q <= K / 2; NaN for fewer than three points."""
    q = learned(loss_XK)
    inside = (q >= LEAST) & (q <= loss_XK.shape[1] / 2)
    found = {"loss": np.nan, "q": np.nan, "points": int(inside.sum())}
    if inside.sum() >= 3:
        x = np.log(np.asarray(x, float)[inside])
        for name, y in (("loss", mean_loss(loss_XK, alpha)), ("q", q)):
            found[name] = float(np.polyfit(x, np.log(y[inside]), 1)[0])
    return found


def predicted(alpha: float, along: str) -> dict[str, float]:
    """Returns the exponents of the quantization model.

    Example: alpha 0.5: loss -1/3 and q 2/3 along S, -0.5 and 1 along N.
    """
    return {"loss": -alpha / (1 + alpha), "q": 1 / (1 + alpha)} if along == "S" else {"loss": -alpha, "q": 1.0}


def exponents(result: dict) -> pandas.DataFrame:
    """Returns a row per alpha, variable and quantity: predicted, mean, low, high, verdict."""
    rows = []
    for (alpha, along), part in result["exponents"].groupby(["alpha", "along"]):
        for name, expected in predicted(alpha, along).items():
            row = {"alpha": alpha, "along": along, "of": name, "predicted": expected}
            mean, low, high = pages.mean(part[name]) if part[name].notna().sum() == len(part) > 1 else (np.nan,) * 3
            slack, clear = CLOSE * abs(expected), high - low <= abs(expected)
            near = low <= expected + slack and high >= expected - slack
            verdict = pages.verdict(clear and near, clear and not near)
            rows.append({**row, "mean": mean, "low": low, "high": high, "verdict": verdict})
    return pandas.DataFrame(rows)


def sharpness(result: dict) -> list[dict]:
    """Returns for each run of the widest networks: the median factor of steps in which a task falls from 90 % to 10 %
    of ln 2, the number of tasks that did, and the factor in which the mean of their losses by frequency does."""
    rows = []
    for (name, alpha), part in result["steps"].dropna(subset="factor").groupby(["run_id", "alpha"]):
        step, loss_SK = result["curves"][name]
        chosen = part["task"].to_numpy() - 1
        weight = (chosen + 1.0) ** -(1 + alpha)
        mean = loss_SK[:, chosen] @ weight / weight.sum()
        begin, end = (pages.crossing(step, -mean, -share * np.log(2)) for share in (0.9, 0.1))
        facts = {"run_id": name, "alpha": alpha, "tasks": len(part), "task": part["factor"].median()}
        rows.append({**facts, "mean": end / begin})
    return rows


def smooth(result: dict) -> tuple[str, str]:
    """Returns (ours, verdict) of: each task is learned in a step, their mean falls smoothly."""
    found = pandas.DataFrame(sharpness(result)).dropna()
    if len(found) < 2:
        return f"{len(found)} runs", pages.UNDECIDED
    ratio = pages.mean(np.log(found["mean"]) / np.log(found["task"]))
    ours = (
        f"from 90 % to 10 % of ln 2, steps grow by a factor of {found['task'].median():.1f} (median task) and "
        f"{found['mean'].median():.0f} (mean loss): {pages.interval(ratio, '.1f')} times as long in log steps"
    )
    return ours, pages.verdict(ratio[1] > 2, ratio[2] < 2)


def claims(result: dict | None = None) -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md; None: of the committed records."""
    result = result or read()[0]
    claim = "sparse parity: each task is learned abruptly, the mean loss falls smoothly"
    rows = [(claim, SOURCE, "yes", *smooth(result))]
    for row in exponents(result).itertuples():
        if row.of == "loss":
            formula = "alpha / (1 + alpha)" if row.along == "S" else "alpha"
            claim = f"sparse parity, alpha {row.alpha:g}: loss ~ {row.along}^-({formula})"
            ours = pages.interval((-row.mean, -row.high, -row.low), ".3f", missing="too few points")
            rows.append((claim, SOURCE, f"{-row.predicted:.3f}", ours, row.verdict))
    return rows


def figure(result: dict):
    """Left: losses of the tasks of a wide network, and their mean. Middle: mean against steps. Right: against N."""
    runs, curves = result["runs"], result["curves"]
    alphas = sorted(runs["alpha"].unique())
    shown = runs[(runs["alpha"] == alphas[0]) & (runs["seed"] == runs["seed"].min())].sort_values("width").iloc[-1]
    foot = [
        f"Left: the widest network, alpha {shown.alpha:g}; darker lines: more frequent tasks; black: mean weighted by "
        "frequency. Means count infinitely many tasks: those never trained have loss ln 2. Middle: the widest "
        "networks. Right: last step, a dot per seed. Dashed: exponents of the quantization model."
    ]
    tints = dict(zip(alphas, ("#004488", "#bb5566", "#ddaa33", "#228833"), strict=False))
    with axes.new_figure(10.2, 3.6, columns=3, foot=foot) as (made, grid):
        left, middle, right = grid[0]
        step, loss_SK = curves[shown.run_id]
        shades = axes.colours("N", np.arange(1.0, loss_SK.shape[1] + 1))
        for loss, shade in zip(loss_SK.T, shades.values(), strict=True):
            left.plot(step, loss, color=shade, lw=0.6)
        left.plot(step, mean_loss(loss_SK, shown.alpha), color="black", lw=1.8)
        left.set(xscale="log", xlabel=axes.WORDS["S"], ylabel="loss, nats", title="loss of each task, and mean loss")
        for alpha, part in runs.groupby("alpha"):
            for seed, own in part.groupby("seed"):
                own = own.sort_values("width")
                step, loss_SK = curves[own["run_id"].iloc[-1]]
                label = f"{alpha:g}" if seed == part["seed"].min() else None
                middle.plot(step, mean_loss(loss_SK, alpha), color=tints[alpha], lw=1, label=label)
                last = mean_loss(np.stack([curves[name][1][-1] for name in own["run_id"]]), alpha)
                right.plot(own["N"], last, "o", color=tints[alpha], ms=3)
                if label:
                    steady = learned(loss_SK), predicted(alpha, "S"), tints[alpha]
                    _guide(middle, step, mean_loss(loss_SK, alpha), *steady)
                    q = learned(np.stack([curves[name][1][-1] for name in own["run_id"]]))
                    _guide(right, own["N"].to_numpy(), last, q, predicted(alpha, "N"), tints[alpha])
        middle.set(xscale="log", yscale="log", xlabel=axes.WORDS["S"], title="mean loss against steps")
        axes.log_axis(right.xaxis, "N", *axes.spread(runs["N"]))
        right.set(yscale="log", xlabel=axes.WORDS["N"], title="mean loss against parameters")
        middle.legend(title="alpha")
    return made


def _guide(panel, x, loss, q, slope, colour):
    """A line of the predicted slope through the first point with LEAST learned tasks."""
    first = int(np.argmax(q >= LEAST))
    panel.plot(x[first:], 0.93 * loss[first] * (x[first:] / x[first]) ** slope["loss"], "--", color=colour, lw=0.8)


def page(result: dict, table: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here."""
    runs, first = result["runs"], table.iloc[0]
    options = {name: first[f"config.objective.options.{name}"] for name in ("tasks", "degree", "bits")}
    fitted = (
        (f"{row.alpha:g}", row.along, row.of, f"{row.predicted:+.3f}")
        + (pages.interval((row.mean, row.low, row.high), "+.3f", missing="too few points", words=True), row.verdict)
        for row in exponents(result).itertuples()
    )
    ends = []
    for row in runs.sort_values(["alpha", "width", "seed"]).itertuples():
        last_1K = result["curves"][row.run_id][1][-1:]
        loss = f"{mean_loss(last_1K, row.alpha)[0]:.4f}"
        ends.append((f"{row.alpha:g}", row.width, count(row.N), row.seed, learned(last_1K)[0], loss))
    order = [stats.spearmanr(part["task"], part["at"]).statistic for _, part in result["steps"].groupby("run_id")]
    return pages.page(
        "# Multitask sparse parity: abruptly learned tasks, a smooth mean loss, and its exponents",
        pages.written("sparse_parity"),
        f"{len(runs)} networks with one hidden layer of {pages.span(runs['width'], str)} units learn "
        f"{options['tasks']:.0f} tasks. Each task is the parity of {options['degree']:.0f} of {options['bits']:.0f} "
        "bits, and the frequency of task k is proportional to k^-(1 + alpha). Training: "
        f"{count(first['steps'])} steps of {first['tokens'] / first['steps']:.0f} new samples, "
        f"{flop(table['flops_exact'].sum())} FLOP, {duration(table['wall_seconds'].sum() / 2)} of wall time on two "
        "workers. Objective and network are plug-ins of 100 lines (parity.py); the trainer has no code for them.",
        "![Losses of tasks, mean loss against steps and against parameters](sparse_parity.png)",
        pages.table(
            "claim | published | ours (95 %) | verdict", ((claim, *ours) for claim, _, *ours in claims(result))
        ),
        f"Tasks are learned in the order of their frequency: rank correlation of task number and step "
        f"{pages.span(order, '.2f')} over runs of the widest network.",
        "## Exponents",
        "Slopes of ln(loss) and ln(q) against ln(S) for the widest networks (S: training steps) and against ln(N) at "
        "the last step (N: parameters). q is the number of tasks learned, those with a loss of at most ln 2 / 2. A "
        f"slope against N uses only networks with at most {BOUND:g} times the q of the widest, so that size limits "
        "them rather than steps. Intervals are over seeds.",
        pages.table("alpha | against | slope of | predicted | fitted (95 %) | verdict", fitted),
        "## Runs",
        pages.table("alpha | width | N | seed | tasks learned | loss, nats", ends),
    )


def read() -> tuple[dict, pandas.DataFrame]:
    """Returns (`analyse` of the committed records, their table of runs)."""
    table = records.read(HERE / "records.parquet")[0]
    return analyse(table, pandas.read_parquet(HERE / "tasks.parquet")), table


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent})
        measure(parent).astype({"loss": "float32"}).to_parquet(HERE / "tasks.parquet", index=False, compression="zstd")
    made, finished = read()
    pages.write(HERE, page(made, finished), sparse_parity=figure(made))

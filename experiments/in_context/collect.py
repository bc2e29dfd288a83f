"""Evaluates the runs of config.py on its questions and compares their answers with the best possible predictor's.

Command:  python experiments/in_context/collect.py runs/in_context
          python experiments/in_context/collect.py      (analyses the committed answers again)
Writes:   records.parquet, answers.parquet, in_context.png and README.md into this folder
"""

import pathlib
import sys
import tempfile

import numpy as np
import pandas
from scipy import stats

from lmjax.config import run_file
from lmjax.evals import run as evaluation
from lmjax.evals import table as evaluations
from lmjax.format import count, flop
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
BROWN, GARG = "Brown et al. 2020, arXiv 2005.14165", "Garg et al. 2022, arXiv 2208.01066"
NEAR = 0.9
COLUMNS = ["N", "D", "seed", "kind", "k", "item", "log_prob", "right"]


def settings():
    """Returns the module experiments/in_context/config.py."""
    return run_file(HERE / "config.py", "experiment")


def ask(workdir: pathlib.Path) -> pandas.DataFrame:
    """Returns the answers of every finished run: COLUMNS; N: all parameters, D: tokens, kind: class, k: examples, item:
    question, log_prob: nats, right: whether the right answer is the most probable one."""
    config = settings()
    with tempfile.TemporaryDirectory() as folder:
        tasks = config.write_tasks(pathlib.Path(folder))
        done = evaluation.evaluate(workdir, tasks, limit=config.QUESTIONS)
    facts = done[done["status"] == "done"].drop_duplicates("run_id").set_index("run_id")
    items = evaluations.read_items(workdir)
    items = items[items["task"].str.startswith("in_context_") & items["run_id"].isin(facts.index)]
    keys = ["run_id", "task", "item"]
    wide = items.assign(value=items["numerator"] / items["denominator"]).pivot(
        index=keys, columns="metric", values="value"
    )
    wide = wide.reset_index()
    names = wide["task"].str.removeprefix("in_context_").str.split("-", expand=True)
    run = facts.loc[wide["run_id"]]
    found = {"N": run["n_total"].to_numpy(), "D": run["tokens"].to_numpy(), "seed": run["seed"].to_numpy()}
    found |= {"kind": names[0], "k": names[1].astype(int), "item": wide["item"]}
    answers = pandas.DataFrame({**found, "log_prob": wide["log_likelihood"], "right": wide["greedy_match"] > 0.5})
    return answers.astype({"log_prob": "float32"}).sort_values(COLUMNS[:6]).reset_index(drop=True)


def analyse(answers: pandas.DataFrame) -> dict:
    """Summarises the answers and judges both claims.

    Returns:
        {"seeds": frame of N, D, kind, k, seed, loss, accuracy (over questions), "means": the same over seeds, and
        spread (largest minus smallest accuracy of a seed), "ideal": frame of kind, k, loss, accuracy of the best
        possible predictor, "grows": (value, low, high) in nats, "near": {kind: (value, low, high)}, a share of the
        ideal accuracy}. Low and high are NaN with a single seed.
    """
    config = settings()
    by, rows, most = ["N", "D", "kind", "k"], [], max(config.SHOTS)
    seeds = answers.groupby([*by, "seed"]).agg(log_prob=("log_prob", "mean"), accuracy=("right", "mean")).reset_index()
    seeds = seeds.assign(loss=-seeds.pop("log_prob"))
    groups = seeds.groupby(by)
    means = groups[["loss", "accuracy"]].mean().assign(spread=groups["accuracy"].agg(np.ptp)).reset_index()
    for name, questions in config.questions().items():
        (kind, k), table = name.split("-"), pandas.DataFrame(questions)
        facts = {"loss": 0.0 - table["log_prob"].mean(), "accuracy": table["probability"].mean()}
        rows.append({"kind": kind, "k": int(k), **facts})
    ideal = pandas.DataFrame(rows)
    longest = seeds[seeds["D"] > 0.9 * seeds["D"].max()]
    losses = longest.pivot(index=["N", "seed", "kind"], columns="k", values="loss")
    gains = (losses[0] - losses[most]).groupby(["N", "seed"]).mean()
    ends = gains[longest["N"].max()], gains[longest["N"].min()]
    grows = np.array([ends[0].mean() - ends[1].mean(), np.nan, np.nan])
    if min(map(len, ends)) > 1:
        grows[1:] = stats.ttest_ind(*ends, equal_var=False).confidence_interval(0.95)
    last = longest[(longest["N"] == longest["N"].max()) & (longest["k"] == most)].set_index(["kind", "seed"])
    best, near = ideal[ideal["k"] == most].set_index("kind")["accuracy"], {}
    for kind in config.TABLES:
        shares = last["accuracy"][kind] / best[kind]
        near[kind] = shares.mean() + stats.t.ppf(0.975, len(shares) - 1) * shares.sem() * np.array([0, -1, 1])
    return {"seeds": seeds, "means": means, "ideal": ideal, "grows": grows, "near": near}


def verdicts(found: dict) -> dict[str, str]:
    """Returns the verdicts by the rules of config.py."""
    _, low, high = found["grows"]
    grows = "reproduced" if low > 0 else "not reproduced" if high < 0 else "cannot be decided here"
    lows, highs = ([values[i] for values in found["near"].values()] for i in (1, 2))
    near = "reproduced" if min(lows) >= NEAR else "not reproduced" if min(highs) < NEAR else "cannot be decided here"
    return {"grows": grows, "near": near}


def figure(found: dict):
    """Above: loss of the answer against examples, at the most tokens. Below: accuracy with the most against tokens."""
    config, seeds, means, ideal = settings(), found["seeds"], found["means"], found["ideal"]
    most = max(config.SHOTS)
    longest = means[means["D"] > 0.9 * means["D"].max()]
    foot = [
        f"Above: {count(means['D'].max())} tokens; below: {most} examples. Lines: means over seeds; faint points: "
        f"seeds; {config.QUESTIONS} questions each, drawn with another seed than the training text. Dashed: the best "
        "possible predictor, which knows the class and how functions are drawn. N: all parameters."
    ]
    with axes.new_figure(11.8, 6.2, columns=4, rows=2, foot=foot) as (made, grid):
        palette = axes.colours("N", means["N"].to_numpy(float))
        for column, (kind, name) in enumerate(config.NAMES.items()):
            above, below = grid[0, column], grid[1, column]
            at = {k: place for place, k in enumerate(config.SHOTS)}
            for N, colour in palette.items():
                part = longest[(longest["N"] == N) & (longest["kind"] == kind)].sort_values("k")
                above.plot(part["k"].map(at), part["loss"], "o-", color=colour, lw=1.2, ms=3.5, label=count(N))
                part = means[(means["N"] == N) & (means["kind"] == kind) & (means["k"] == most)].sort_values("D")
                below.plot(part["D"], part["accuracy"], "o-", color=colour, lw=1.2, ms=3.5)
                part = seeds[(seeds["N"] == N) & (seeds["kind"] == kind) & (seeds["k"] == most)]
                below.plot(part["D"], part["accuracy"], "o", color=colour, ms=2.6, alpha=0.4, mew=0)
            best = ideal[ideal["kind"] == kind].sort_values("k")
            above.plot(best["k"].map(at), best["loss"], "--", color=axes.QUIET, lw=1.1)
            below.axhline(best["accuracy"].iloc[-1], ls="--", color=axes.QUIET, lw=1.1)
            above.set_xticks(range(len(at)), [str(k) for k in at])
            above.set(title=f"{name}", xlabel="examples, k")
            axes.log_axis(below.xaxis, "D", *axes.spread(means["D"].astype(float)))
            below.set(xlabel=axes.WORDS["D"], ylim=(-0.03, 1.03))
        grid[0, 0].set_ylabel("loss of the answer, nats")
        grid[1, 0].set_ylabel(f"accuracy with {most} examples")
        grid[0, -1].legend(title="N")
    return made


def interval(values, form="{:.2f}") -> str:
    """Example: interval((0.5, 0.4, 0.6)) -> "0.50 [0.40, 0.60]"."""
    return "{} [{}, {}]".format(*map(form.format, values))


def rows_of_claims(found: dict) -> list[tuple[str, ...]]:
    """Returns (claim, source, published, ours, verdict) of each."""
    judged, names = verdicts(found), settings().NAMES
    grows = f"{interval(found['grows'])} nats more in the largest than in the smallest size"
    near = "; ".join(f"{names[kind]} {interval(values)}" for kind, values in found["near"].items())
    return [
        (
            "the gain from 16 examples in the context grows with N",
            BROWN,
            "larger models gain more",
            grows,
            judged["grows"],
        ),
        (
            "decoders come near the best predictor in context (share of its accuracy)",
            GARG,
            "they do",
            near,
            judged["near"],
        ),
    ]


def predicted(found: dict) -> list[str]:
    """What config.py predicted before training, beside what was found."""
    config, means, most = settings(), found["means"], max(settings().SHOTS)
    longest = means[means["D"] > 0.9 * means["D"].max()]
    losses = longest.pivot(index=["N", "kind"], columns="k", values="loss")
    gains = (losses[0] - losses[most]).groupby("kind").mean().sort_values(ascending=False)
    small = longest[(longest["N"] == longest["N"].min()) & (longest["kind"] == "A") & (longest["k"] == most)]
    order = ", ".join(f"{config.NAMES[kind]} ({gain:.2f})" for kind, gain in gains.items())
    return [
        f"Predicted before training: gains from {most} examples in the order shift, threshold, lookup, affine. Found",
        f"(nats, mean over sizes): {order}.",
        f"Predicted: affine functions stay at chance in the smallest size, {1 / config.LETTERS:.2f}; found: accuracy "
        f"{small['accuracy'].iloc[0]:.2f}.",
    ]


def page(found: dict, runs: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here."""
    config, means, ideal = settings(), found["means"], found["ideal"]
    lines = [
        "# Functions learned in the context",
        "",
        "Question: how much do k examples of a hidden function help, by size and tokens, and how near do decoders come",
        "to the best possible predictor? Commands, design and verdict rules: `config.py`.",
        "",
        "![Loss of the answer against examples, accuracy against tokens](in_context.png)",
        "",
        "| claim | source | published | ours (95 %) | verdict |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows_of_claims(found)),
        "",
        "| class | k | best possible | " + " | ".join(count(N) for N in sorted(means["N"].unique())) + " |",
        "|---|---|---|" + "---|" * means["N"].nunique(),
    ]
    longest = means[means["D"] > 0.9 * means["D"].max()]
    for best in ideal.itertuples():
        here = longest[(longest["kind"] == best.kind) & (longest["k"] == best.k)].sort_values("N")
        cells = " | ".join(f"{row.loss:.3f}, {row.accuracy:.2f}" for row in here.itertuples())
        lines.append(f"| {config.NAMES[best.kind]} | {best.k} | {best.loss:.3f}, {best.accuracy:.2f} | {cells} |")
    lines += [
        "",
        f"Loss of the answer (nats) and accuracy at {count(means['D'].max())} tokens, means over seeds; accuracies "
        f"of two seeds differ by {longest['spread'].max():.2f} at most.",
        "",
        *predicted(found),
        "",
        f"{len(runs)} runs of {count(runs['n_total'].min())} to {count(runs['n_total'].max())} parameters, "
        f"{flop(runs['flops_exact'].sum())} FLOP, {runs['wall_seconds'].sum() / 3600:.1f} hours on one core.",
    ]
    return "\n".join(lines) + "\n"


def read() -> tuple[dict, pandas.DataFrame]:
    """Returns the analysis of the committed answers, and the runs."""
    return analyse(pandas.read_parquet(HERE / "answers.parquet")), records.read(HERE / "records.parquet")[0]


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    return rows_of_claims(read()[0]) if (HERE / "answers.parquet").exists() else []


if __name__ == "__main__":
    if len(sys.argv) > 1:
        parent = pathlib.Path(sys.argv[1])
        print("\n".join(records.pack(parent, HERE / "records.parquet")))
        ask(parent).to_parquet(HERE / "answers.parquet", index=False, compression="zstd")
    result, table = read()
    axes.save(figure(result), HERE / "in_context")
    (HERE / "README.md").write_text(page(result, table), "utf8")
    print(page(result, table))

"""Evaluates the runs of config.py on its questions and compares their answers with the best possible predictor's.

Command:  python experiments/in_context/collect.py runs/in_context
          python experiments/in_context/collect.py      (analyses the committed answers again)
Writes:   records.parquet, answers.parquet, in_context.png and README.md into this folder
"""

import pathlib
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
pages = run_file(HERE.parent / "pages.py", "experiment")
CONFIG = run_file(HERE / "config.py", "experiment")
MOST = max(CONFIG.SHOTS)
BROWN, GARG = "Brown et al. 2020, arXiv 2005.14165", "Garg et al. 2022, arXiv 2208.01066"
NEAR = 0.9
COLUMNS = ["N", "D", "seed", "kind", "k", "item", "log_prob", "right"]


def longest(table: pandas.DataFrame) -> pandas.DataFrame:
    """Returns the rows with the most tokens."""
    return table[table["D"] > 0.9 * table["D"].max()]


def ask(workdir: pathlib.Path) -> pandas.DataFrame:
    """Returns the answers of every finished run: COLUMNS; N: all parameters, D: tokens, kind: class, k: examples, item:
    question, log_prob: nats, right: whether the right answer is the most probable one."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = CONFIG.write_tasks(pathlib.Path(folder))
        done = evaluation.evaluate(workdir, tasks, limit=CONFIG.QUESTIONS)
    facts = done[done["status"] == "done"].drop_duplicates("run_id").set_index("run_id")
    items = evaluations.read_items(workdir)
    items = items[items["task"].str.startswith("in_context_") & items["run_id"].isin(facts.index)]
    keys = ["run_id", "task", "item"]
    items = items.assign(value=items["numerator"] / items["denominator"])
    wide = items.pivot(index=keys, columns="metric", values="value").reset_index()
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
    by, rows = ["N", "D", "kind", "k"], []
    seeds = answers.groupby([*by, "seed"]).agg(log_prob=("log_prob", "mean"), accuracy=("right", "mean")).reset_index()
    seeds = seeds.assign(loss=-seeds.pop("log_prob"))
    groups = seeds.groupby(by)
    means = groups[["loss", "accuracy"]].mean().assign(spread=groups["accuracy"].agg(np.ptp)).reset_index()
    for name, questions in CONFIG.questions().items():
        (kind, k), table = name.split("-"), pandas.DataFrame(questions)
        facts = {"loss": 0.0 - table["log_prob"].mean(), "accuracy": table["probability"].mean()}
        rows.append({"kind": kind, "k": int(k), **facts})
    ideal = pandas.DataFrame(rows)
    end = longest(seeds)
    losses = end.pivot(index=["N", "seed", "kind"], columns="k", values="loss")
    gains = (losses[0] - losses[MOST]).groupby(["N", "seed"]).mean()
    ends = gains[end["N"].max()], gains[end["N"].min()]
    grows = np.array([ends[0].mean() - ends[1].mean(), np.nan, np.nan])
    if min(map(len, ends)) > 1:
        grows[1:] = stats.ttest_ind(*ends, equal_var=False).confidence_interval(0.95)
    last = end[(end["N"] == end["N"].max()) & (end["k"] == MOST)].set_index(["kind", "seed"])
    best = ideal[ideal["k"] == MOST].set_index("kind")["accuracy"]
    near = {kind: pages.mean(last["accuracy"][kind] / best[kind]) for kind in CONFIG.TABLES}
    return {"seeds": seeds, "means": means, "ideal": ideal, "grows": grows, "near": near}


def verdicts(found: dict) -> dict[str, str]:
    """Returns the verdicts by the rules of config.py."""
    _, low, high = found["grows"]
    lows, highs = ([values[i] for values in found["near"].values()] for i in (1, 2))
    return {"grows": pages.verdict(low > 0, high < 0), "near": pages.verdict(min(lows) >= NEAR, min(highs) < NEAR)}


def figure(found: dict):
    """Above: loss of the answer against examples, at the most tokens. Below: accuracy with the most against tokens."""
    seeds, means, ideal = found["seeds"], found["means"], found["ideal"]
    end = longest(means)
    foot = [
        f"Above: {count(means['D'].max())} tokens; below: {MOST} examples. Lines: means over seeds; faint points: "
        f"seeds; {CONFIG.QUESTIONS} questions each, drawn with another seed than the training text. Dashed: the best "
        "possible predictor, which knows the class and how functions are drawn. N: all parameters."
    ]
    with axes.new_figure(11.8, 6.2, columns=4, rows=2, foot=foot) as (made, grid):
        palette = axes.colours("N", means["N"].to_numpy(float))
        for column, (kind, name) in enumerate(CONFIG.NAMES.items()):
            above, below = grid[0, column], grid[1, column]
            at = {k: place for place, k in enumerate(CONFIG.SHOTS)}
            for N, colour in palette.items():
                part = end[(end["N"] == N) & (end["kind"] == kind)].sort_values("k")
                above.plot(part["k"].map(at), part["loss"], "o-", color=colour, lw=1.2, ms=3.5, label=count(N))
                part = means[(means["N"] == N) & (means["kind"] == kind) & (means["k"] == MOST)].sort_values("D")
                below.plot(part["D"], part["accuracy"], "o-", color=colour, lw=1.2, ms=3.5)
                part = seeds[(seeds["N"] == N) & (seeds["kind"] == kind) & (seeds["k"] == MOST)]
                below.plot(part["D"], part["accuracy"], "o", color=colour, ms=2.6, alpha=0.4, mew=0)
            best = ideal[ideal["kind"] == kind].sort_values("k")
            above.plot(best["k"].map(at), best["loss"], "--", color=axes.QUIET, lw=1.1)
            below.axhline(best["accuracy"].iloc[-1], ls="--", color=axes.QUIET, lw=1.1)
            above.set_xticks(range(len(at)), [str(k) for k in at])
            above.set(title=f"{name}", xlabel="examples, k")
            axes.log_axis(below.xaxis, "D", *axes.spread(means["D"].astype(float)))
            below.set(xlabel=axes.WORDS["D"], ylim=(-0.03, 1.03))
        grid[0, 0].set_ylabel("loss of the answer, nats")
        grid[1, 0].set_ylabel(f"accuracy with {MOST} examples")
        grid[0, -1].legend(title="N")
    return made


def claims(found: dict | None = None) -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md; None: of the committed records."""
    found = found or read()[0]
    judged = verdicts(found)
    gain, near = (
        "the gain from 16 examples in the context grows with N",
        "decoders come near the best predictor in context",
    )
    grows = f"{pages.interval(found['grows'])} nats more in the largest than in the smallest size"
    shares = "; ".join(f"{CONFIG.NAMES[kind]} {pages.interval(values)}" for kind, values in found["near"].items())
    return [
        (gain, BROWN, "larger models gain more", grows, judged["grows"]),
        (f"{near} (share of its accuracy)", GARG, "they do", shares, judged["near"]),
    ]


def predicted(found: dict) -> str:
    """What config.py predicted before training, beside what was found."""
    end = longest(found["means"])
    losses = end.pivot(index=["N", "kind"], columns="k", values="loss")
    gains = (losses[0] - losses[MOST]).groupby("kind").mean().sort_values(ascending=False)
    small = end[(end["N"] == end["N"].min()) & (end["kind"] == "A") & (end["k"] == MOST)]["accuracy"].iloc[0]
    order = ", ".join(f"{CONFIG.NAMES[kind]} ({gain:.2f})" for kind, gain in gains.items())
    guess = 1 / CONFIG.LETTERS
    return f"""
        Predicted before training: gains from {MOST} examples in the order shift, threshold, lookup, affine. Found
        (nats, mean over sizes): {order}.
        Predicted: affine functions stay at chance in the smallest size, {guess:.2f}; found: accuracy {small:.2f}.
        """


def page(found: dict, runs: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here."""
    means, end, rows = found["means"], longest(found["means"]), []
    for best in found["ideal"].itertuples():
        here = end[(end["kind"] == best.kind) & (end["k"] == best.k)].sort_values("N")
        cells = [f"{row.loss:.3f}, {row.accuracy:.2f}" for row in (best, *here.itertuples())]
        rows.append((CONFIG.NAMES[best.kind], best.k, *cells))
    return pages.page(
        """
        # Functions learned in the context

        Question: how much do k examples of a hidden function help, by size and tokens, and how near do decoders come
        to the best possible predictor? Commands, design and verdict rules: `config.py`.

        ![Loss of the answer against examples, accuracy against tokens](in_context.png)
        """,
        pages.table(pages.CLAIMS, claims(found)),
        pages.table(f"class | k | best possible | {' | '.join(map(count, sorted(means['N'].unique())))}", rows),
        f"Loss of the answer (nats) and accuracy at {count(means['D'].max())} tokens, means over seeds; accuracies "
        f"of two seeds differ by {end['spread'].max():.2f} at most.",
        predicted(found),
        f"{len(runs)} runs of {pages.span(runs['n_total'])} parameters, {flop(runs['flops_exact'].sum())} FLOP, "
        f"{runs['wall_seconds'].sum() / 3600:.1f} hours on one core.",
    )


def read() -> tuple[dict, pandas.DataFrame]:
    """Returns the analysis of the committed answers, and the runs."""
    return analyse(pandas.read_parquet(HERE / "answers.parquet")), records.read(HERE / "records.parquet")[0]


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent})
        ask(parent).to_parquet(HERE / "answers.parquet", index=False, compression="zstd")
    result = read()
    pages.write(HERE, page(*result), in_context=figure(result[0]))

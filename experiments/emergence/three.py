"""Compares three architectures on the skills of config.py: who reaches half of a task with the least compute?

Command:  python experiments/emergence/three.py runs     (reads runs/emergence-FAMILY of each FAMILY of config.py)
          python experiments/emergence/three.py          (judges the committed records again)
Writes:   records-FAMILY.parquet, evaluations-FAMILY.parquet, rows.csv, three.csv, three.png and the section of
          README.md
"""

import collections
import itertools
import pathlib

import numpy as np
import pandas

from lmjax import config as configs
from lmjax import process, run_record
from lmjax.config import run_file
from lmjax.data import pipeline
from lmjax.errors import InputError
from lmjax.evals import run as evaluation
from lmjax.flops import forward_flops
from lmjax.format import count as short
from lmjax.objectives import OBJECTIVES
from lmjax.scaling.figures import style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
CONFIG = run_file(HERE / "config.py", "config")
pages = run_file(HERE.parent / "pages.py", "experiment")
SOFT, HALF, SEEDS = "log_likelihood_per_token", 0.5, 3
LOOKS = {  # of Okabe and Ito's colours
    "decoder": ("decoder", "#0072b2", "o", "-"),
    "decoder_answers": ("decoder, answers alone", "#0072b2", "x", "--"),
    "encoder": ("encoder", "#d55e00", "s", "-"),
    "encoder_decoder": ("encoder-decoder", "#009e73", "^", "-"),
}
PAIRS = (("decoder_answers", "decoder"), ("encoder", "decoder"), ("encoder_decoder", "decoder"))
PAIRS += (("encoder", "decoder_answers"), ("encoder_decoder", "decoder_answers"))
KEPT = "run_id seed step task metric value standard_error n chance status family semantics schedule_complete".split()
KEPT += "n_total flops_exact seen task_hash limit".split()
TITLE = "## Three architectures"
LESS, MORE, OVERLAP, NEITHER = "less", "more", "not separated", "neither reaches half"
ANSWERS = {  # of all questions, where the length of the answer says more of it than the question does
    "sums": [a + b for a, b in itertools.product(range(10, 100), repeat=2)],
    "modular": [(a + b) % 29 for a, b in itertools.product(range(29), repeat=2)],
}


def gather(family: str, workdir: pathlib.Path) -> dict:
    """Evaluates the runs of a family, writes their records, and returns how full their rows are.

    Returns: {"family", "inputs", "encoder_inputs" (tokens that are not padding, of a row; of 400 rows), "share" (of the
    FLOPs of a row that these take)}.
    """
    records.pack(workdir, HERE / f"records-{family}.parquet")
    semantics = "masked" if family == "encoder" else ""
    table = evaluation.evaluate(workdir, CONFIG.TASKS, limit=CONFIG.ITEMS, batch_size=CONFIG.ITEMS, semantics=semantics)
    table[KEPT].to_parquet(HERE / f"evaluations-{family}.parquet", index=False)
    record = run_record.read_record(run_record.find_runs(workdir)[0])
    config = configs.from_record(record)
    configs.run_plugins(config, workdir)
    rows = pipeline.Pipeline(pipeline.prepare(config), OBJECTIVES[config.objective.name], config)
    batch, model = rows.rows(range(400)), record["config"]["model"]
    sides = {name: name.removesuffix("inputs") + "segment_ids" for name in rows.lengths}
    held = {name: float((batch[ids] > 0).sum(axis=1).mean()) for name, ids in sides.items()}
    share = sum(forward_flops(model, held).values()) / sum(forward_flops(model, rows.lengths).values())
    return {"family": family, "inputs": np.nan, "encoder_inputs": np.nan, **held, "share": share}


def load() -> tuple[pandas.DataFrame, pandas.DataFrame, pandas.DataFrame]:
    """Returns the runs, the points (a row per run and task, as `points` makes them) and rows.csv; decoders included.

    Raises:
        InputError: a family was asked for other items than the decoders.
    """
    found, runs = [], []
    for family in LOOKS:
        tail = "" if family == "decoder" else f"-{family}"
        found.append(pandas.read_parquet(HERE / f"evaluations{tail}.parquet").assign(family=family))
        runs.append(records.read(HERE / f"records{tail}.parquet")[0].assign(family=family))
    return pandas.concat(runs, ignore_index=True), points(found), pandas.read_csv(HERE / "rows.csv")


def points(tables: list[pandas.DataFrame]) -> pandas.DataFrame:
    """Returns family, task, seed, N, C, hard (exact match) and soft (probability per byte) of each finished run.

    Raises:
        InputError: the tables are not of the same items; an evaluation failed.
    """
    table = pandas.concat(tables, ignore_index=True)
    if len(wrong := table[table["status"] != "done"]):  # first: these rows have no metric
        raise InputError(f"expected evaluations that are done, got {wrong.iloc[0].to_dict()}; evaluate again")
    table = table[table["schedule_complete"].astype(bool) & table["metric"].isin(["exact_match", SOFT])]
    for task, part in table.groupby("task"):
        if len(asked := part[["task_hash", "n", "limit", "seen"]].drop_duplicates()) > 1:
            raise InputError(f"{task}: expected the same items for all families, got {asked.to_dict('records')}")
    keys = ["family", "task", "seed", "n_total", "flops_exact"]
    wide = table.pivot_table(index=keys, columns="metric", values="value").reset_index()
    wide["soft"] = np.exp(wide.pop(SOFT))
    return wide.rename(columns={"n_total": "N", "flops_exact": "C", "exact_match": "hard"})


def halves(table: pandas.DataFrame) -> pandas.DataFrame:
    """Returns family, task, seed, low and high: between which training FLOPs a seed's exact match first is HALF.

    low = high where it is between two sizes; low is 0 if the smallest size is above, high infinite if none is.
    """
    rows = []
    for (family, task, seed), part in table[table["seed"] < SEEDS].groupby(["family", "task", "seed"]):
        part = part.sort_values("C")
        at, first, last = pages.crossing(part["C"], part["hard"], HALF), part["C"].iloc[0], part["C"].iloc[-1]
        low, high = (last, np.inf) if np.isnan(at) else (0.0 if at == first else at, at)
        rows.append({"family": family, "task": task, "seed": seed, "low": low, "high": high})
    return pandas.DataFrame(rows)


def judge(one: pandas.DataFrame, other: pandas.DataFrame, shares: tuple[float, float]) -> str:
    """Returns whether each seed of one is at half with less compute than each of the other, LESS, or with MORE.

    Args:
        one, other: rows of `halves`, of a task.
        shares: of their compute that padding does not take; the answer must be the same with and without padding.
    """
    if np.isinf([*one["high"], *other["high"]]).all():
        return NEITHER
    answers = set()
    for a, b in ((1.0, 1.0), shares):
        less = one["high"].max() * a < other["low"].min() * b
        more = other["high"].max() * b < one["low"].min() * a
        answers.add(LESS if less else MORE if more else OVERLAP)
    return answers.pop() if len(answers) == 1 else OVERLAP


def analyse(table: pandas.DataFrame, rows: pandas.DataFrame) -> pandas.DataFrame:
    """Returns a row per task: of each family low, high (lowest and highest of its seeds' halves), reached (seeds), and
    most (FLOP of the largest size) and top (its mean exact match); of PAIRS how "one/other" compare."""
    found, out = halves(table), []
    shares = rows.set_index("family")["share"]
    shares["decoder"] = shares["decoder_answers"]  # the same rows
    for task, part in found.groupby("task"):
        by, row = dict(list(part.groupby("family"))), {"task": task}
        for family, own in by.items():
            sizes = table[(table["family"] == family) & (table["task"] == task)]
            most = sizes["C"].max()
            facts = {"low": own["low"].min(), "high": own["high"].max(), "reached": np.isfinite(own["high"]).sum()}
            facts |= {"seeds": len(own), "most": most, "top": sizes.loc[sizes["C"] == most, "hard"].mean()}
            row |= {f"{family}_{name}": value for name, value in facts.items()}
        for one, other in PAIRS:
            row[f"{one}/{other}"] = judge(by[one], by[other], (shares[one], shares[other]))
        out.append(row)
    return pandas.DataFrame(out)


def chance(task: str, family: str) -> float:
    """Returns the share of a task that the best constant answer gets right; for an encoder, of each length of answers.

    Example: 1/29 of modular for a decoder and 2/29 for an encoder, with the best answer of one digit and of two.
    """
    if family == "encoder" and task in ANSWERS:
        best = collections.defaultdict(int)
        for answer, times in collections.Counter(ANSWERS[task]).items():
            best[len(str(answer))] = max(best[len(str(answer))], times)
        return sum(best.values()) / len(ANSWERS[task])
    from lmjax.evals import tasks

    (known,) = [made for made in tasks.find(CONFIG.TASKS) if made.name == task]
    return known.guess


def order() -> list[str]:
    """The tasks in the order in which decoders learn them, as in emergence.png."""
    return pandas.read_csv(HERE / "verdicts.csv")["task"].tolist()


def figure(table: pandas.DataFrame):
    """Exact match, and below it the probability per byte, against compute, of all families, per task."""
    foot = [
        "Marks: seeds; lines: means over seeds. Training FLOP of the program, with padding. Dashed: chance; dotted: "
        "chance of encoders, which are told how long the answer is. Probability per byte: geometric mean over the "
        "bytes of the right answers; an encoder sees none of the answer, the others the bytes before.",
    ]
    size = {"columns": 4, "rows": 4, "sharey": True, "sharex": True}
    with style.new_figure(11.0, 9.6, foot=foot, **size) as (drawn, grid):
        for number, task in enumerate(order()):
            pair = grid[2 * (number // 4) : 2 * (number // 4) + 2, number % 4]
            for ax, column in zip(pair, ("hard", "soft"), strict=True):
                for family, (label, colour, mark, line) in LOOKS.items():
                    own = table[(table["family"] == family) & (table["task"] == task)]
                    means = own.groupby("C")[column].mean()
                    ax.plot(own["C"], own[column], mark, color=colour, ms=3, mew=0.6, alpha=0.45)
                    ax.plot(means.index, means, line, color=colour, lw=1.5, label=label)
                style.log_axis(ax.xaxis, "C", *style.spread(table["C"].astype(float)))
                ax.set(ylim=(-0.04, 1.04))
            plain, told = chance(task, "decoder"), chance(task, "encoder")
            pair[0].axhline(plain, ls="--", lw=0.9, color=style.QUIET)
            if told > plain:
                pair[0].axhline(told, ls=":", lw=0.9, color=LOOKS["encoder"][1])
            pair[0].set_title(task)
        for row, words in enumerate(("exact match", "probability per byte") * 2):
            grid[row, 0].set_ylabel(words)
        for ax in grid[-1]:
            ax.set_xlabel("training FLOP")
        drawn.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=4)
    return drawn


def section(runs: pandas.DataFrame, judged: pandas.DataFrame, rows: pandas.DataFrame) -> list[str]:
    """The paragraphs of README.md on the three architectures: every number in them is computed here."""
    sizes = []
    for family in list(LOOKS)[1:]:
        own = runs[runs["family"] == family]
        sizes.append(
            f"- {LOOKS[family][0]}: {len(own)} runs of {short(own['n_total'].min())} to {short(own['n_total'].max())} "
            f"parameters, {own['flops_exact'].sum():.2g} FLOP, {own['wall_seconds'].sum() / 3600:.1f} core-hours"
        )
    share = rows.set_index("family")["share"]
    known = judged.set_index("task").loc[order()].reset_index()
    found = known.to_dict("records")
    heads = ["compute of half a task, FLOP", *(words for words, *_ in LOOKS.values())]
    pairs = ["one / other", *(LOOKS[one][0] + " / " + LOOKS[other][0] for one, other in PAIRS)]
    return [
        TITLE,
        "The documents and held-out items of the decoders. An encoder fills the whole masked answer at once; an "
        "encoder-decoder reads the question and writes the answer. Both are trained on answers alone, a decoder on "
        "every byte; the control is a decoder trained on answers alone.",
        "\n".join(sizes),
        "![Exact match and probability per byte of eight tasks against training compute, three families](three.png)",
        _table(heads, [(row["task"], *(_half(row, family) for family in LOOKS)) for row in found]),
        f"Half: where exact match of a seed is first {HALF:g}; lowest and highest of {SEEDS} seeds. Does one family "
        "need less compute than the other?",
        _table(pairs, [(row["task"], *(row["/".join(pair)] for pair in PAIRS)) for row in found]),
        "Less or more: all seeds of one are at half before all of the other, whether padding counts as compute or not. "
        f"It takes {1 - share['decoder_answers']:.0%} of the FLOP of decoders and encoders, and "
        f"{1 - share['encoder_decoder']:.0%} of that of encoder-decoders, whose rows have room for the longest "
        "question and the longest answer that a document of its length can have.",
        "What only the encoder is told is the number of letters of the answer, as many masks. In sums and modular it "
        f"excludes answers: chance rises from {chance('sums', 'decoder'):.3f} to {chance('sums', 'encoder'):.3f} and "
        f"from {chance('modular', 'decoder'):.3f} to {chance('modular', 'encoder'):.3f}. In the other tasks it "
        "is in the question or always the same, and no task is left out. Decoders and encoder-decoders must also "
        "stop at the right byte. Their probability of a byte is given the right bytes before it, the encoder's none. "
        "Learning rates are those found for text by experiments/chinchilla and experiments/three_architectures; none "
        "was tuned on these tasks.",
        "Predictions 5 to 7 were made before these runs, 8 and 9 after one run of each of the two at width 40:",
        _predictions(known),
    ]


def _table(heads, rows):
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def _half(row, family):
    """Example: "1.3e+12 to 1.9e+12", "2 of 3 seeds, from 1.3e+12" or "above 8.3e+12 (0.04 there)"."""
    low, high, reached, seeds, most, top = (
        row[f"{family}_{name}"] for name in ("low", "high", "reached", "seeds", "most", "top")
    )
    if not reached:
        return f"above {most:.2g} ({top:.2f} there)"
    return f"{low:.2g} to {high:.2g}" if reached == seeds else f"{reached} of {seeds} seeds, from {low:.2g}"


def _predictions(known):
    """What became of predictions 5 to 9 of config.py."""
    row = known.set_index("task")

    def said(number, text, pair, expected):
        words = ", ".join(f"{task} {row.loc[task, pair]}" for task in expected)
        right = _right(row.loc[task, pair] == word for task, word in expected.items())
        return f"{number}. {text}: {words}: {right}."

    both = "encoder_decoder/decoder"
    slow = {"sorting": MORE, "words": MORE, "sums": LESS, "modular": LESS}
    writes = {"copying": MORE, "reversal": MORE, "sorting": LESS, "words": LESS}
    tops = [row.loc["recall", f"{family}_top"] for family in ("encoder", "encoder_decoder")]
    less = {pair: int((row["/".join(pair)] == LESS).sum()) for pair in PAIRS}
    control, *rest = less[PAIRS[0]], less[PAIRS[3]], less[PAIRS[4]]
    return "\n".join(
        [
            said(5, "encoders need more in sorting and words, less in sums and modular", "encoder/decoder", slow),
            said(6, "encoder-decoders more in copying, reversal, less in sorting, words", both, writes),
            f"7. recall stays below half in both: {tops[0]:.2f} and {tops[1]:.2f} at the largest size: "
            f"{_right(top < HALF for top in tops)}.",
            f"8. the control needs less than decoders in at least four tasks: {control}: {_right([control >= 4])}.",
            f"9. encoders and encoder-decoders need less than the control in at most two tasks each: {rest[0]} and "
            f"{rest[1]}: {_right(count <= 2 for count in rest)}.",
        ]
    )


def _right(parts):
    """Example: [True, False] -> "1 of 2 right"; all: "right", none: "wrong"."""
    parts = [bool(part) for part in parts]
    return {len(parts): "right", 0: "wrong"}.get(sum(parts), f"{sum(parts)} of {len(parts)} right")


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of these families in the table of experiments/README.md."""
    judged, rows = pandas.read_csv(HERE / "three.csv"), []
    for one, other in PAIRS:
        counts = judged[f"{one}/{other}"].value_counts()
        ours = ", ".join(f"{word} in {counts[word]}" for word in (LESS, MORE, OVERLAP, NEITHER) if word in counts)
        claim = f"compute of half a skill: {LOOKS[one][0]} / {LOOKS[other][0]}"
        rows.append((claim, "none known", "", f"{ours} of {len(judged)} tasks", "measured"))
    return rows


def committed() -> list[str]:
    """Returns `section` from the committed files."""
    runs, _, rows = load()
    return section(runs, pandas.read_csv(HERE / "three.csv"), rows)


if __name__ == "__main__":
    process.use_compilation_cache()
    if workdir := pages.workdir():
        found = [gather(family, workdir / f"emergence-{family}") for family in CONFIG.FAMILIES]
        pandas.DataFrame(found).to_csv(HERE / "rows.csv", index=False)
    _, table, rows = load()
    analyse(table, rows).to_csv(HERE / "three.csv", index=False)
    collect = run_file(HERE / "collect.py", "experiment")
    plan, verdicts = (pandas.read_csv(HERE / name) for name in ("plan.csv", "verdicts.csv"))
    text = collect.page(records.read(HERE / "records.parquet")[0], verdicts, plan)
    pages.write(HERE, text, three=figure(table))

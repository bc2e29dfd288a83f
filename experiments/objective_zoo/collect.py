"""Judges which objectives of config.py learn their labels, and what each adds on the same held-out text.

Command:  python experiments/objective_zoo/collect.py runs     (with objective_zoo-labels, -long and -text)
          python experiments/objective_zoo/collect.py          (analyses the committed records again)
Writes:   labels.parquet, long.parquet, text.parquet, scores.csv, objective_zoo.png and README.md into this folder
"""

import pathlib

import numpy as np
import pandas

from lmjax import process, run_record, trained
from lmjax.config import run_file
from lmjax.evals import run as evaluation
from lmjax.evals.score import score
from lmjax.format import flop
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
CONFIG = run_file(HERE / "config.py", "experiment")
ROBERTA = "Liu et al. 2019 (RoBERTa), arXiv 1907.11692"
BASE = "masked_lm"
PARTS = ("labels", "long", "text")
SPANS, ITEMS = 500, 100
BITS = "bits per byte"
TASKS = ("next_sentence", "agreement", "capitalisation")
CHANCE = {"next_sentence": 0.25, "agreement": 0.5, "capitalisation": 0.5}  # one of 4, 2 and 2 choices
SEMANTICS = {  # of the bits, by family: see lmjax.evals.score
    **dict.fromkeys(("encoder", "electra", "xlnet"), "pseudo"),
    "decoder": "causal",
    "encoder_decoder": "infilling",
}
NOT_SCORED = {  # objective: how the scored text differs from what it was trained on
    "masked_lm:word": "trained on masked whole words; scores mask one byte at a time",
    "masked_lm:span": "trained on masked whole words; scores mask one byte at a time",
    "masked_lm+capitalisation": "trained on lower-cased text",
    "bart": "trained to write the whole text, not a span of it",
    "deshuffling": "trained to write the whole text, not a span of it",
}
MARGIN, ERRORS = 0.01, 3.0  # below chance by this share of it and by so many standard errors: learned
SIZES = 2  # at which an objective is learned, of three
COLUMNS = ["run_id", "measure", "value", "reason"]


def name_of(runs: pandas.DataFrame) -> pandas.Series:
    """Returns the name of each run's objective, as config.py names it: masked_lm:word, masked_lm+next_sentence, ..."""
    unit = runs.get("config.objective.options.unit", pandas.Series("token", runs.index)).fillna("token")
    plain = (runs["objective"] != BASE) | (unit == "token")
    return runs["objective"].where(plain, runs["objective"] + ":" + unit.astype(str))


def learned(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Compares the loss of every head with that of chance.

    Args:
        runs: frame of the records of `labels`.

    Returns:
        frame of objective, head, d_model, N, loss, chance (nats; NaN where the model draws the labels), accuracy, error
        (standard error of the loss; NaN for objectives with two heads) and learned, by the rule of config.py.
    """
    rows = []
    for run, name in zip(runs.to_dict("records"), name_of(runs), strict=True):
        found = {key: x for key, x in run.items() if not (isinstance(x, float | None) and pandas.isna(x))}
        heads = [key.removesuffix("_accuracy") for key in found if key.endswith("_accuracy")]
        heads = ["lm"] * ("reference_bigram" in found) + [head for head in heads if head != "lm"]
        for head in heads:
            chance = found.get("reference_bigram" if head == "lm" else f"{head}_reference", np.nan)
            loss = found.get(f"{head}_loss", found["loss"])
            error = found["loss_standard_error"] if len(heads) == 1 else np.nan
            if name == "skip_gram":  # the loss of a pair and its noise words together
                triples = 1 + found["config.objective.options.negatives"]
                loss, error = loss / triples, error / triples
            below = chance - loss
            clear = below > MARGIN * chance and not below < ERRORS * error
            clear = clear and found.get("source_gain", np.inf) > MARGIN * chance
            facts = {"objective": name, "head": head, "d_model": found["config.model.d_model"], "N": found["n_total"]}
            facts |= {"loss": loss, "chance": chance, "accuracy": found.get(f"{head}_accuracy", np.nan)}
            rows.append({**facts, "error": error, "learned": clear})
    place = {name: number for number, name in enumerate(CONFIG.LABELS)}
    return pandas.DataFrame(sorted(rows, key=lambda row: (place[row["objective"]], row["d_model"])))


def shown(table: pandas.DataFrame) -> pandas.Series:
    """Returns whether each (objective, head) is learned at SIZES of the sizes or more."""
    return table.groupby(["objective", "head"], sort=False)["learned"].sum() >= SIZES


def score_runs(workdir: pathlib.Path, known: pandas.DataFrame) -> pandas.DataFrame:
    """Returns COLUMNS for every finished run: BITS of the same held-out spans, and the accuracy of TASKS.

    Runs in `known` are not scored again; those of NOT_SCORED never are. What is not defined has no value, but a reason.
    """
    three, rows, spans = run_file(HERE.parent / "three_architectures" / "collect.py", "experiment"), [], None
    runs = run_record.read_runs(workdir)
    runs = runs[(runs["status"] == "done") & ~name_of(runs).isin(NOT_SCORED) & ~runs["run_id"].isin(known["run_id"])]
    done = evaluation.evaluate(workdir, list(TASKS), limit=ITEMS)
    done = done[(done["metric"] == "accuracy") | (done["status"] != "done")]
    for row in done[done["run_id"].isin(runs["run_id"])].itertuples():
        rows.append({"run_id": row.run_id, "measure": row.task, "value": row.value, "reason": row.reason})
    for run_dir in run_record.find_runs(workdir):
        record = run_record.read_record(run_dir)
        if record["run_id"] not in set(runs["run_id"]):
            continue
        model = trained.load(run_dir)
        spans = spans or three.held_out_spans(model)[:SPANS]
        semantics = SEMANTICS[record["config"]["model"]["family"]]
        asked = [pair[:2] for pair in spans] if semantics == "causal" else spans
        found = score(model, asked, semantics, batch_size=64, unconditional=False)
        bits = np.mean([-one.log_prob / one.bytes for one in found]) / np.log(2)
        rows.append({"run_id": record["run_id"], "measure": BITS, "value": bits, "reason": ""})
    return pandas.concat([known, pandas.DataFrame(rows, columns=COLUMNS)]).sort_values(["measure", "run_id"])


def compare(runs: pandas.DataFrame, scores: pandas.DataFrame) -> pandas.DataFrame:
    """Sets the scores of every objective beside those of masked_lm of the same size and seed.

    Returns:
        frame of objective, measure, mean, median, highest (over sizes and seeds), difference (masked_lm+X to
        masked_lm), low, high (95 %, Student's t over the pairs), low99, high99, pairs and effect: helps | costs |
        undecided.
    """
    table = pandas.DataFrame({"objective": name_of(runs), "d_model": runs["config.model.d_model"]})
    table = table.join(runs[["run_id", "seed"]]).merge(scores, on="run_id")
    table, rows = table[~table["objective"].isin(NOT_SCORED)], []
    for (objective, measure), part in table.groupby(["objective", "measure"], sort=False):
        row = {"objective": objective, "measure": measure, "pairs": 0, "effect": ""}
        row |= {"mean": part["value"].mean(), "median": part["value"].median(), "highest": part["value"].max()}
        if objective.startswith(f"{BASE}+"):
            base = table[(table["objective"] == BASE) & (table["measure"] == measure)]
            pairs = part.merge(base, on=["d_model", "seed"], suffixes=("", "_base"))
            change = (pairs["value"] - pairs["value_base"]).dropna()
            row["pairs"] = len(change)
            if len(change) > 1:
                row |= dict(zip(("difference", "low", "high"), pages.mean(change), strict=True))
                row |= dict(zip(("low99", "high99"), pages.mean(change, 0.99)[1:], strict=True))
                better = -change if measure == BITS else change  # fewer bits, more accuracy
                _, low, high = pages.mean(better)
                row["effect"] = "helps" if low > 0 else "costs" if high < 0 else "undecided"
        rows.append(row)
    names = ["objective", "measure", "mean", "median", "highest", "difference", "low", "high", "low99", "high99"]
    names += ["pairs", "effect"]
    return pandas.DataFrame(rows).reindex(columns=names)


def next_sentence(effects: pandas.DataFrame) -> str:
    """Returns the verdict on "next sentence prediction does not help", by the rule of config.py."""
    part = effects[effects["objective"] == f"{BASE}+next_sentence"].set_index("measure")
    if part["pairs"].min() < 2 or not {BITS, *TASKS} <= set(part.index):
        return "cannot be decided here"
    helps = part["effect"][BITS] == "helps" or (part["low99"][list(TASKS)] > 0).any()
    return "not reproduced" if helps else "reproduced"


def figure(table: pandas.DataFrame, effects: pandas.DataFrame):
    """Left: loss below that of chance on labels that follow from the text. Others: masked_lm+X minus masked_lm."""
    sizes = sorted(table["d_model"].unique())
    judged = table.dropna(subset="chance")
    names = list(dict.fromkeys(zip(judged["objective"], judged["head"], strict=True)))
    foot = [
        "Left: 1 - loss / loss of chance on text from which the labels follow (LM heads: chance is a bigram model), by "
        "width; orange names: not shown to learn. Right: masked_lm+X minus masked_lm on English at equal FLOP, means "
        "over sizes and seeds with 95 % intervals; orange: helps, black: costs, grey: undecided. One learning rate for "
        "each architecture."
    ]
    measures = (BITS, *TASKS)
    with axes.new_figure(4.4 + 2.2 * len(measures), 5.2, columns=1 + len(measures), foot=foot) as (made, grid):
        left, good = grid[0, 0], shown(table)
        for place, key in enumerate(names):
            part = judged[(judged["objective"] == key[0]) & (judged["head"] == key[1])]
            for row in part.itertuples():
                marker = axes.MARKERS[sizes.index(row.d_model)]
                left.plot(1 - row.loss / row.chance, place, marker, color=axes.INK, ms=4, mec="white", mew=0.4)
        for number, size in enumerate(sizes):
            left.plot([], [], axes.MARKERS[number], color=axes.INK, ms=4, label=str(size))
        left.axvline(0, color=axes.QUIET, lw=0.8)
        left.set_yticks(range(len(names)), [name if head == "lm" else f"{name} ({head})" for name, head in names])
        for label, key in zip(left.get_yticklabels(), names, strict=True):
            label.set(fontsize=6.5, color=axes.INK if good[key] else axes.HELD_OUT)
        left.set(title="Below chance", xlabel="1 - loss / chance")
        left.invert_yaxis()
        left.legend(title="width", fontsize=6.5, title_fontsize=7, loc="lower right")
        pairs = effects[effects["pairs"] > 1]
        words = [name for name in (f"{BASE}+{one}" for one in CONFIG.AUXILIARY) if name in set(pairs["objective"])]
        for ax, measure in zip(grid[0, 1:], measures, strict=True):
            part = pairs[pairs["measure"] == measure].set_index("objective")
            colours = {"helps": axes.HELD_OUT, "costs": axes.INK, "undecided": axes.QUIET}
            for place, name in enumerate(words):
                row = part.loc[name]
                ax.plot([row["low"], row["high"]], [place] * 2, "-", color=colours[row["effect"]], lw=1.3)
                ax.plot(row["difference"], place, "o", color=colours[row["effect"]], ms=4)
            ax.axvline(0, color=axes.QUIET, lw=0.8)
            labels = [name.removeprefix(BASE) * (ax is grid[0, 1]) for name in words]
            ax.set_yticks(range(len(words)), labels, fontsize=6.5)
            ax.set(title=measure.replace("_", " "), xlabel="bits" if measure == BITS else "accuracy")
            ax.locator_params(axis="x", nbins=4)
            ax.invert_yaxis()
    return made


def page(table: pandas.DataFrame, effects: pandas.DataFrame, runs: dict[str, pandas.DataFrame]) -> str:
    """The README of this folder: every number in it is computed here."""
    together = pandas.concat(runs.values())
    return pages.page(
        """
        # Every objective at equal FLOP

        Question: does each objective of the registry learn its labels, and which auxiliary objectives help masked
        language modelling? Commands, design and verdict rules: `config.py`.

        ![Loss below chance; differences of auxiliary objectives](objective_zoo.png)
        """,
        *labels_part(table, learned(runs["long"])),
        *text_part(effects),
        f"{len(together)} runs, {flop(together['flops_exact'].sum())} FLOP, {pages.span(together['n_total'])} "
        f"parameters, {together['wall_seconds'].sum() / 3600:.1f} core hours.",
    )


def labels_part(table: pandas.DataFrame, long: pandas.DataFrame) -> list[str]:
    """The blocks of the page on the question whether objectives learn their labels: rows of `learned`."""
    good, sizes, rows = shown(table), sorted(table["d_model"].unique()), []
    for (name, head), part in table.groupby(["objective", "head"], sort=False):
        each, chance = part.set_index("d_model").loc[sizes], part["chance"].mean()
        known = zip(each["loss"], each["accuracy"], strict=True)
        cells = [f"{loss:.3f}" + f" ({accuracy:.2f})" * (not np.isnan(accuracy)) for loss, accuracy in known]
        verdict = f"{chance:.3f}", "yes" if good[name, head] else "no"
        judged = ("", "not judged: the model draws the labels") if np.isnan(chance) else verdict
        rows.append((name, head, *cells, *judged))
    again = [
        f"{row.objective} | {row.loss:.3f} ({row.accuracy:.2f}) | {row.chance:.3f} | {'yes' if row.learned else 'no'}"
        for row in long.itertuples()
    ]
    return [
        """
        Loss in nats (and accuracy) by width, on text from which the labels follow. Chance: the loss of a bigram model
        for LM heads, of the frequencies of the labels for others. skip_gram alone has 1M tokens of English, which
        are fewer FLOP.
        """,
        pages.table(f"objective | head | {' | '.join(map(str, sizes))} | chance | shown to learn", rows),
        "With ten times the compute, at the second width:",
        pages.table("objective | loss (accuracy) | chance | learned", again),
    ]


def text_part(effects: pandas.DataFrame) -> list[str]:
    """The blocks of the page on what objectives add on English text: rows of `compare`."""
    chosen, heads = effects.set_index(["objective", "measure"]), f"{BITS} | {' | '.join(TASKS).replace('_', ' ')}"
    means, differences = [f"chance | | | {' | '.join(f'{CHANCE[task]:g}' for task in TASKS)}"], []
    for name in (name for name in CONFIG.TEXT if name in chosen.index):
        each = chosen.loc[name].loc[[BITS, *TASKS]]
        cells = ["not defined" if np.isnan(mean) else f"{mean:.3f}" for mean in each["mean"]]
        means.append((name, SEMANTICS[CONFIG.FAMILY[name.partition("+")[0]]], *cells))
        if (each["pairs"] > 1).any():
            values = zip(each[["difference", "low", "high"]].to_numpy(), each["effect"], strict=True)
            cells = [f"{pages.interval(found, '+.3f')} {effect}" for found, effect in values]
            differences.append((name.removeprefix(f"{BASE}+"), *cells))
    bits, tested = effects[effects["measure"] == BITS], effects[effects["pairs"] > 1]
    return [
        f"""
        English at equal FLOP, means over sizes and seeds: bits per byte of the same {SPANS} held-out spans,
        and accuracy on {ITEMS} items of each task. Bits of different kinds are not comparable: causal conditions
        on the left side only, infilling on both sides, pseudo masks one byte at a time.
        """,
        pages.table(f"objective | bits | {heads}", means),
        *(
            f"{x.objective}: one run is at {x.highest:.3f} bits per byte, the median at {x.median:.3f}."
            for x in bits[bits["highest"] > 2 * bits["median"]].itertuples()
        ),
        f"""
        masked_lm+X minus masked_lm: 95 % intervals over {tested["pairs"].max()} pairs of equal size and seed
        (same spans and items, so the intervals reflect the noise between runs, not between items). If no objective
        had an effect, about {0.05 * len(tested):.1f} of these {len(tested)} intervals would exclude 0.
        """,
        pages.table(f"X | {heads}", differences),
        f"""
        Next sentence prediction does not help ({ROBERTA}): {next_sentence(effects)} (by the rule
        of `config.py`, unless its intervals show that it helps bits per byte or a task).

        Not scored:
        """,
        "\n".join(f"- {name}: {reason}" for name, reason in NOT_SCORED.items()),
    ]


def read() -> tuple[pandas.DataFrame, pandas.DataFrame, dict[str, pandas.DataFrame]]:
    """Returns the table of `learned`, that of `compare`, and the runs of each part."""
    runs = {part: records.read(HERE / f"{part}.parquet")[0] for part in PARTS}
    return learned(runs["labels"]), compare(runs["text"], pandas.read_csv(HERE / "scores.csv")), runs


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    table, effects, _ = read()
    good = shown(table)
    known = good[table.groupby(["objective", "head"], sort=False)["chance"].count() > 0]
    row = effects.set_index(["objective", "measure"]).loc[(f"{BASE}+next_sentence", BITS)]
    ours = f"{row['difference']:+.3f} bits per byte [{row['low']:+.3f}, {row['high']:+.3f}]"
    claim = "next sentence prediction does not help masked language modelling"
    return [
        ("objectives that learn labels which follow from the text", "none known", "")
        + (f"{known.sum()} of {len(known)}", "measured"),
        (claim, ROBERTA, "it does not", ours, next_sentence(effects)),
    ]


if __name__ == "__main__":
    if parent := pages.workdir():
        process.use_compilation_cache()  # runs of one size share their programs
        pages.pack(HERE, {part: parent / f"objective_zoo-{part}" for part in PARTS})
        if (folder := parent / "objective_zoo-text").is_dir():
            kept = HERE / "scores.csv"
            known = pandas.read_csv(kept, keep_default_na=False) if kept.exists() else pandas.DataFrame(columns=COLUMNS)
            score_runs(folder, known).to_csv(kept, index=False, float_format="%.6g")
    result = read()
    pages.write(HERE, page(*result), objective_zoo=figure(*result[:2]))

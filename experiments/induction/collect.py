"""Follows induction heads through the checkpoints of config.py: attention, copying, and the loss by position.

Command:  python experiments/induction/collect.py runs/induction
          python experiments/induction/collect.py     (analyses the committed records again)
Writes:   records.parquet, measures.csv, README.md and induction.png into this folder

    prefix     the largest prefix-matching score of a head: its attention, in rows of a random block and its repetition,
               to what followed earlier occurrences of the query's letter
    previous   the largest attention of a head to the token before the query
    repeat     loss in the repetition of the block, nats; fresh: in the block, at least ln of the number of letters
    score      in-context score: loss of text late in a row (last quarter) minus early (second eighth), nats
    halfway    the step at which a measure is halfway between its first and its last value
"""

import functools
import pathlib

import numpy as np
import pandas

from lmjax.config import run_file
from lmjax.format import count, duration
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
ROWS, TEXT_ROWS = 64, 512
HEAD = 0.3  # prefix-matching score of an induction head
RISE = {"begin": 0.1, "middle": 0.5, "end": 0.9}  # shares of the rise of prefix
TOGETHER = 1.5  # factor in steps within which two changes are one
NO_HEADS = "no induction heads", pages.UNDECIDED
SOURCE = "Olsson et al. 2022, arXiv 2209.11895"


def measure(workdir: pathlib.Path) -> pandas.DataFrame:
    """Computes the measures at every kept checkpoint, on the same rows.

    Returns: frame with run_id, step, prefix, previous, repeat, fresh, score.
    """
    import jax

    import lmjax
    from lmjax import run_record, trained
    from lmjax.data import pipeline
    from lmjax.evals import attention
    from lmjax.losses import token_nats

    @functools.partial(jax.jit, static_argnums=0)
    def nats(module, params, ids_BT):
        return token_nats(module.apply({"params": params}, {"inputs": ids_BT[:, :-1]}), ids_BT[:, 1:])

    rows, letters, text = [], run_file(HERE / "repeats.py", "experiment").LETTERS, None
    for run_dir in run_record.find_runs(workdir):
        for step in trained.steps(run_dir):
            model = lmjax.load(run_dir, step)
            T = model.config.data.seq_len
            if text is None:
                tokens = pipeline.prepare(model.config).stores[0].tokens("validation")
                text = tokens[: TEXT_ROWS * (T + 1)].astype(np.int32).reshape(TEXT_ROWS, T + 1)
            block = np.random.Generator(np.random.Philox(key=[2, 0])).integers(*letters, (ROWS, T // 2))
            row = np.concatenate([block, block, block[:, :1]], axis=1).astype(np.int32)
            both = (np.asarray(nats(model.model, model.params, ids), np.float64) for ids in (row, text))
            copied, read = (nats_BT.mean(axis=0) for nats_BT in both)
            weights = attention.weights(model, {"inputs": row[:, :-1]})["stack"]
            facts = {"run_id": model.record["run_id"], "step": step}
            facts |= {"prefix": attention.prefix_matching(weights, row[:, :-1]).max()}
            facts |= {"previous": attention.previous_token(weights).max()}
            facts |= {"repeat": copied[T // 2 :].mean(), "fresh": copied[: T // 2 - 1].mean()}
            rows.append({**facts, "score": read[3 * T // 4 :].mean() - read[T // 8 : T // 4].mean()})
    return pandas.DataFrame(rows)


def halfway(step, value) -> float:
    """Returns the first step at which a value is halfway from its first to its last; NaN if it does not change."""
    value = np.asarray(value, float)
    return pages.crossing(step, (value - value[0]) / (value[-1] - value[0]), 0.5) if value[-1] != value[0] else np.nan


def analyse(runs: pandas.DataFrame, metrics: dict[str, list[dict]], measures: pandas.DataFrame) -> dict:
    """Returns {"runs": frame with layers, seed, the last value of each measure, begin, middle and end (steps at 10, 50
    and 90 % of the rise of prefix), copies (step halfway in the fall of repeat), bump; "curves": {run id: measures};
    "losses": {run id: frame of lines with validation losses}}."""
    rows, curves, losses = [], {}, {}
    for run in runs.itertuples():
        own = measures[measures["run_id"] == run.run_id].sort_values("step")
        lines = pandas.DataFrame(metrics[run.run_id]).dropna(subset="validation_text_loss").sort_values("step")
        curves[run.run_id], losses[run.run_id] = own, lines
        rise = own["prefix"].to_numpy()
        rise = (rise - rise[0]) / (rise[-1] - rise[0])
        last = own.iloc[-1].drop(["run_id", "step"]).astype(float).to_dict()
        times = {name: pages.crossing(own["step"], rise, share) for name, share in RISE.items()}
        facts = {"run_id": run.run_id, "layers": int(runs.loc[run.Index, "config.model.num_layers"]), "seed": run.seed}
        rows.append({**facts, **last, **times, "copies": halfway(own["step"], own["repeat"])})
    found = pandas.DataFrame(rows)
    # Runs of one layer are compared with those of two of their seed at the same steps.
    when = found[found["layers"] == found["layers"].max()].set_index("seed")
    found["bump"] = [
        bump(losses[row.run_id], when["begin"].get(row.seed, np.nan), when["end"].get(row.seed, np.nan))
        for row in found.itertuples()
    ]
    return {"runs": found, "curves": curves, "losses": losses}


def bump(lines: pandas.DataFrame, begin: float, end: float) -> float:
    """Returns the fall of the text's loss between two steps over its fall in as much log time before: above 1, the loss
    falls faster than it did, and its curve has a bump. A smooth learning curve slows down.

    Example: losses 4, 3, 1 at steps 1, 10, 100, between steps 10 and 100: 2.
    """
    before = begin**2 / end
    if not before >= lines["step"].iloc[0]:
        return np.nan
    log_step = np.log(lines["step"].to_numpy(float))
    loss = np.interp(np.log([before, begin, end]), log_step, lines["validation_text_loss"])
    return float((loss[1] - loss[2]) / (loss[0] - loss[1]))


def claims(result: dict | None = None) -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md; None: of the committed records."""
    result = result or read()[0]
    found = result["runs"]
    one, two = (found[found["layers"] == layers].sort_values("seed") for layers in (1, 2))
    judged = {
        "prefix-matching heads form with two layers, not with one": heads(one, two),
        "induction heads form when copying is learned": together(two),
        "in-context score on text: better with two layers than with one": in_context(one, two),
        "loss on text has a bump while induction heads form": bumps(one, two),
    }
    return [(claim, SOURCE, "yes", *said) for claim, said in judged.items()]


def heads(one: pandas.DataFrame, two: pandas.DataFrame) -> tuple[str, str]:
    """Returns (ours, verdict) of: all runs of two layers have an induction head, and none of one layer."""
    ours = f"score of the best head {pages.span(two['prefix'], '.2f')} with two layers, "
    ours += f"{pages.span(one['prefix'], '.2f')} with one"
    none, some = (one["prefix"] < HEAD).all(), (two["prefix"] >= HEAD).any()
    return ours, pages.verdict((two["prefix"] >= HEAD).all() and none, not none or not some)


def together(two: pandas.DataFrame) -> tuple[str, str]:
    """Returns (ours, verdict) of: heads form within a factor TOGETHER of the steps in which copying is learned."""
    if not (two["prefix"] >= HEAD).all():
        return NO_HEADS
    ratio = np.exp(pages.mean(np.log(two["middle"] / two["copies"])))
    ours = f"the best head's score makes half of its change at {pages.interval(ratio)} of the steps "
    inside = ratio[1] > 1 / TOGETHER and ratio[2] < TOGETHER
    outside = ratio[1] > TOGETHER or ratio[2] < 1 / TOGETHER
    return f"{ours}at which the loss on repetitions does", pages.verdict(inside, outside)


def in_context(one: pandas.DataFrame, two: pandas.DataFrame) -> tuple[str, str]:
    """Returns (ours, verdict) of: two layers have the better in-context score."""
    difference = pages.mean(two["score"].to_numpy() - one["score"].to_numpy())
    ours = f"{pages.interval(difference, '+.3f')} nats, two layers minus one (negative: two are better)"
    return ours, pages.verdict(difference[2] < 0, difference[1] > 0)


def bumps(one: pandas.DataFrame, two: pandas.DataFrame) -> tuple[str, str]:
    """Returns (ours, verdict) of: the loss falls faster while heads form than before, and not so with one layer."""
    if not (two["prefix"] >= HEAD).all() or two["bump"].isna().any():
        return NO_HEADS
    ratio, plain = pages.mean(two["bump"]), one["bump"].mean()
    ours = f"it falls {pages.interval(ratio)} times as fast as before, in log steps (bump: above 1); "
    return f"{ours}one layer: {plain:.2f}", pages.verdict(ratio[1] > 1 and plain < 1, ratio[2] < 1)


LOOKS = {1: (axes.QUIET, "one layer"), 2: (axes.HELD_OUT, "two layers")}


def figure(result: dict):
    """Prefix matching, loss of repetitions, in-context score and validation loss of text against steps."""
    found = result["runs"]
    panels = (
        ("prefix", "prefix-matching score, best head"),
        ("repeat", "loss on the repetition of a block, nats"),
        ("score", "in-context score on text, nats"),
    )
    foot = [
        f"{found['seed'].nunique()} seeds per depth. Prefix-matching score: attention to the tokens that followed "
        "earlier occurrences of the query's letter; dashed: largest attention of a head to the previous token. "
        "Blocks have 32 letters, in training 8 to 24. In-context score: loss late in the row minus loss early in it."
    ]
    with axes.new_figure(9.0, 6.4, columns=2, rows=2, foot=foot) as (made, grid):
        for run in found.itertuples():
            colour, label = LOOKS[run.layers]
            own, lines = result["curves"][run.run_id], result["losses"][run.run_id]
            for panel, (name, _) in zip(grid.flat, panels, strict=False):
                panel.plot(own["step"], own[name], color=colour, lw=1, label=None if run.seed else label)
            grid[0, 0].plot(own["step"], own["previous"], "--", color=colour, lw=0.6)
            grid[1, 1].plot(lines["step"], lines["validation_text_loss"], color=colour, lw=1)
        for panel, (_, title) in zip(grid.flat, (*panels, ("", "validation loss on text, nats")), strict=True):
            panel.set(xscale="log", xlabel=axes.WORDS["S"], title=title)
        grid[0, 0].legend()
    return made


def page(result: dict, table: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here."""
    found = result["runs"].sort_values(["layers", "seed"])
    first, options = table.iloc[0], "config.objective.options"
    rows = (
        f"{run.layers} | {run.seed} | {run.prefix:.3f} | {run.previous:.3f} | {run.repeat:.3f} | {run.fresh:.3f} | "
        f"{run.score:+.4f} | {run.middle:.0f} | {run.copies:.0f}"
        for run in found.itertuples()
    )
    return pages.page(
        "# Induction heads in decoders with one and two layers",
        pages.written("induction"),
        f"{len(found)} decoders of width {first['config.model.d_model']:.0f} with {count(table['n_total'].min())} "
        f"(one layer) or {count(table['n_total'].max())} parameters (two layers), {count(first['tokens'])} training "
        f"tokens each, {duration(table['wall_seconds'].sum() / 2)} of wall time on two workers. "
        f"{1 - first[f'{options}.share']:.0%} of the rows are English bytes. Each of the others repeats a block of "
        f"{first[f'{options}.shortest']:.0f} to {first[f'{options}.longest']:.0f} random letters. Rows have "
        f"{first['config.data.seq_len']:.0f} tokens.",
        "![Prefix matching, loss of repetitions, in-context score and loss against steps](induction.png)",
        pages.table("claim | ours (95 %) | verdict", ((claim, *ours) for claim, _, _, *ours in claims(result))),
        "## Runs",
        "Scores and losses are those of the last step, scores of heads those of the best head. The last two columns "
        "are the steps at which the prefix-matching score and the loss on repetitions have made half of their change.",
        pages.table(
            "layers | seed | prefix-matching score | attention to previous token | loss, repetition | "
            "loss, first block | in-context score | half of score, step | half of loss, step",
            rows,
        ),
    )


def read() -> tuple[dict, pandas.DataFrame]:
    """Returns (`analyse` of the committed records, their table of runs)."""
    table, metrics = records.read(HERE / "records.parquet")
    return analyse(table, metrics, pandas.read_csv(HERE / "measures.csv")), table


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent})
        measure(parent).round(5).to_csv(HERE / "measures.csv", index=False)
    made, finished = read()
    pages.write(HERE, page(made, finished), induction=figure(made))

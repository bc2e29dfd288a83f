"""Finds when each run of config.py memorises and when it generalises, and which measures move before test accuracy.

Command:  python experiments/grokking/collect.py runs/grokking
          python experiments/grokking/collect.py     (analyses the committed records again)
Writes:   records.parquet, measures.csv, README.md and grokking.png into this folder

    memorised     the first step at which train accuracy is LEVEL or more, between two lines linear in the log of steps;
                  if it is never reached, the run is left out of what compares delays
    generalised   the same for test accuracy; if it is never reached, the run's last step is a lower bound
    delay         steps between the two
    restricted    loss over all pairs of the part of the logits that depends on a + b - c alone: of their mean over all
                  pairs with the same a + b - c. Nanda et al. keep the key frequencies of it, here all are kept
    begins        the first step at which a measure has gone SHARE of the way from its value when the run memorised
                  (test loss: from its largest value after that) to its best value
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
LEVEL, SHARE = 0.95, 0.1
KEPT = 10  # checkpoints of a run of the main cell, at least
LATE = 3.0  # generalised / memorised that counts as "long after"
KEYS = {"decay": "config.optimizer.weight_decay", "held_out": "config.data.validation_fraction"}
MEASURES = {"restricted": "restricted loss", "test_loss": "test loss", "test_accuracy": "test accuracy"}


def restricted_loss(logits_PPC: np.ndarray) -> float:
    """Returns the loss of the part of the logits that depends on a + b - c alone, in nats.

    Args:
        logits_PPC: of the answer c to a + b modulo P.

    Example: logits of 0 of any other kind, and ln 9 where c = a + b modulo 3: ln(11 / 9) = 0.2007.
    """
    P = len(logits_PPC)
    a, b, d = np.ogrid[:P, :P, :P]
    mean_P = logits_PPC[a, b, (a + b - d) % P].mean(axis=(0, 1))
    return float(np.logaddexp.reduce(mean_P) - mean_P[0])


def measure(workdir: pathlib.Path) -> pandas.DataFrame:
    """Computes the restricted loss and the norm of the parameters at every kept checkpoint of the main cell.

    Returns: frame with run_id, step, restricted (nats), norm (root of the sum of squares of all parameters).
    """
    import jax

    import lmjax
    from lmjax import run_record, trained

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(module, params, inputs):
        return module.apply({"params": params}, {"inputs": inputs}, project=False)

    rows = []
    for run_dir in run_record.find_runs(workdir):
        steps = trained.steps(run_dir)
        for step in steps if len(steps) >= KEPT else ():  # other cells keep the newest only
            model = lmjax.load(run_dir, step)
            P, eos = model.config.objective.options.modulus, model.tokenizer.specials.eos
            first = np.arange(P) + ord("!")
            inputs = np.stack([np.full(P * P, eos), np.repeat(first, P), np.tile(first, P)], axis=1)
            logits = outputs(model.model, model.params, inputs)["answer"]
            norm = np.sqrt(sum(np.square(x).sum(dtype=np.float64) for x in jax.tree.leaves(model.params)))
            loss = restricted_loss(np.asarray(logits, np.float64).reshape(P, P, P))
            rows.append({"run_id": model.record["run_id"], "step": step, "restricted": loss, "norm": float(norm)})
    return pandas.DataFrame(rows, columns=["run_id", "step", "restricted", "norm"])


def analyse(runs: pandas.DataFrame, metrics: dict[str, list[dict]], measures: pandas.DataFrame) -> dict:
    """Returns {"runs": frame with share (of the pairs, for training), decay, seed, memorised, generalised (steps, NaN:
    never), steps, before (test accuracy when memorised); "curves": {run id: frame of lines}; "begins": frame with a row
    per run of the main cell and a column per measure}.

    Args:
        runs, metrics: of `records.read`.
        measures: of `measure`.
    """
    rows, curves, begins = [], {}, []
    for run in runs.itertuples():
        lines = pandas.DataFrame(metrics[run.run_id]).sort_values("step")
        curves[run.run_id] = lines
        test = lines.dropna(subset="validation_answer_accuracy")
        accuracy = test["validation_answer_accuracy"]
        memorised = pages.crossing(lines["step"], lines["answer_accuracy"], LEVEL)
        before = np.nan if np.isnan(memorised) else float(np.interp(memorised, test["step"], accuracy))
        held_out, decay = runs.loc[run.Index, [KEYS["held_out"], KEYS["decay"]]]
        facts = {"run_id": run.run_id, "share": round(1 - held_out, 4), "decay": decay, "seed": run.seed}
        facts |= {"memorised": memorised, "generalised": pages.crossing(test["step"], accuracy, LEVEL)}
        rows.append({**facts, "steps": run.steps, "before": before})
        own = measures[measures["run_id"] == run.run_id].sort_values("step")
        if len(own) and not np.isnan(memorised + rows[-1]["generalised"]):
            starts = {name: pages.crossing(*curve, SHARE) for name, curve in progress(memorised, test, own).items()}
            begins.append({"run_id": run.run_id, **starts})
    return {"runs": pandas.DataFrame(rows), "curves": curves, "begins": pandas.DataFrame(begins)}


def progress(memorised: float, test: pandas.DataFrame, own: pandas.DataFrame) -> dict:
    """Returns {measure: (steps, share of the way)} from memorisation on: 0 there, 1 at its best value.

    Args:
        memorised: step.
        test: lines with validation_loss and validation_answer_accuracy.
        own: checkpoints with restricted.
    """
    of = {
        "restricted": (own["step"], own["restricted"]),
        "test_loss": (test["step"], test["validation_loss"]),
        "test_accuracy": (test["step"], test["validation_answer_accuracy"]),
    }
    found = {}
    for name, (step, value) in of.items():
        step, value = step.to_numpy(float), value.to_numpy(float)
        at = np.interp(np.log(memorised), np.log(step), value)
        step, value = np.concatenate([[memorised], step[step > memorised]]), np.append(at, value[step > memorised])
        if name == "test_loss":
            step, value = step[value.argmax() :], value[value.argmax() :]
        best = value.max() if name == "test_accuracy" else value.min()
        found[name] = step, (value - value[0]) / (best - value[0])
    return found


def main_cell(found: pandas.DataFrame) -> pandas.DataFrame:
    """Returns the runs of the cell with the most seeds."""
    groups = found.groupby(["share", "decay"])
    return groups.get_group(groups.size().idxmax())


def slopes(found: pandas.DataFrame, along: str, other: str) -> tuple[list[float], int]:
    """Returns the slope of ln(delay) against ln(along) for each value of the other setting, and the number of runs that
    did not generalise, for which the delay to their last step, a lower bound, was taken.

    Only the seed that all cells have is used, and lines on which two or more runs generalised.
    """
    shared = found[(found["seed"] == found["seed"].min()) & found["memorised"].notna()]
    delay = shared["generalised"].fillna(shared["steps"]) - shared["memorised"]
    shared = shared.assign(delay=delay, bound=shared["generalised"].isna())
    made, bounds = [], 0
    for _, line in shared.groupby(other):
        if (~line["bound"]).sum() < 2:
            continue
        made.append(float(np.polyfit(np.log(line[along]), np.log(line["delay"]), 1)[0]))
        bounds += int(line["bound"].sum())
    return made, bounds


def late(found: pandas.DataFrame) -> tuple[str, str]:
    """Returns (ours, verdict) of: test accuracy rises long after train accuracy, in the main cell."""
    cell = main_cell(found)
    if cell[["memorised", "generalised"]].isna().any(axis=None):
        done = int(cell["generalised"].notna().sum())
        return f"{done} of {len(cell)} seeds generalised within {count(cell['steps'].max())} steps", pages.UNDECIDED
    if len(cell) < 2:
        return "one seed", pages.UNDECIDED
    ratio = np.exp(pages.mean(np.log(cell["generalised"] / cell["memorised"])))
    ours = f"test accuracy takes {pages.interval(ratio, '.1f')} times as many steps to reach {LEVEL:.0%}"
    return ours, pages.verdict(ratio[1] > LATE and (cell["before"] < 0.5).all(), ratio[2] < LATE)


def shortens(found: pandas.DataFrame, along: str, other: str) -> tuple[str, str]:
    """Returns (ours, verdict) of: more of a setting shortens the delay."""
    made, bounds = slopes(found, along, other)
    if len(made) < 2:
        return f"{len(made)} series with two or more runs that generalised", pages.UNDECIDED
    power = pages.mean(made)
    setting = "weight decay" if along == "decay" else "training fraction"
    ours = f"delay ~ ({setting})^{pages.interval(power)}" + f", {bounds} delays are lower bounds" * bool(bounds)
    return ours, pages.verdict(power[2] < 0, power[1] > 0)


def first(begins: pandas.DataFrame, name: str) -> tuple[str, str]:
    """Returns (ours, verdict) of: a measure begins to move before test accuracy does."""
    if len(begins) < 2:
        return f"{len(begins)} runs", pages.UNDECIDED
    ratio = np.exp(pages.mean(np.log(begins[name] / begins["test_accuracy"])))
    ours = f"begins to fall at {pages.interval(ratio)} of the steps at which test accuracy begins to rise"
    return ours, pages.verdict(ratio[2] < 1, ratio[1] > 1)


def claims(result: dict | None = None) -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md; None: of the committed records."""
    result = result or read()[0]
    power, nanda = "Power et al. 2022, arXiv 2201.02177", "Nanda et al. 2023, arXiv 2301.05217"
    return [
        ("test accuracy rises long after train accuracy", power, "yes", *late(result["runs"])),
        ("more weight decay shortens the delay", power, "yes", *shortens(result["runs"], "decay", "share")),
        ("more training data shortens the delay", power, "yes", *shortens(result["runs"], "share", "decay")),
        ("restricted loss falls before test accuracy rises", nanda, "yes", *first(result["begins"], "restricted")),
    ]


def figure(result: dict):
    """Left: accuracies of the main cell. Middle: steps to generalise. Right: progress of the measures, one seed."""
    found, cell = result["runs"], main_cell(result["runs"])
    foot = [
        f"Left: {len(cell)} seeds, weight decay {cell['decay'].iloc[0]:g}, {cell['share'].iloc[0]:.0%} of the pairs "
        f"for training. Middle: step at which test accuracy (dots) and train accuracy (crosses) reach {LEVEL:.0%}; "
        "triangles: last step of a run that never does. Right: 0 at memorisation (test loss: at its peak), 1 at the "
        f"best value; seed {cell['seed'].iloc[0]}; line at {SHARE:.0%}: the measure begins to move."
    ]
    with axes.new_figure(10.2, 3.5, columns=3, foot=foot) as (made, grid):
        left, middle, right = grid[0]
        for number, run in enumerate(cell.itertuples()):
            lines = result["curves"][run.run_id]
            test = lines.dropna(subset="validation_answer_accuracy")
            labels = (None, None) if number else ("train", "test")
            left.plot(lines["step"], lines["answer_accuracy"], color=axes.QUIET, lw=0.9, label=labels[0])
            left.plot(test["step"], test["validation_answer_accuracy"], color=axes.HELD_OUT, lw=0.9, label=labels[1])
        left.set(xscale="log", xlabel=axes.WORDS["S"], title="train and test accuracy")
        left.legend()
        shared = found[found["seed"] == found["seed"].min()]
        tints = axes.colours("N", shared["share"])
        for share, line in shared.groupby("share"):
            colour = tints[share]
            line = line.sort_values("decay")
            reached = line["generalised"].fillna(line["steps"])
            middle.plot(line["decay"], reached, "-", color=colour, lw=1, label=f"{share:.0%}")
            never = line["generalised"].isna()
            middle.plot(line["decay"][~never], reached[~never], "o", color=colour, ms=4)
            middle.plot(line["decay"][never], reached[never], "^", color=colour, ms=5)
            middle.plot(line["decay"], line["memorised"], "x", color=colour, ms=4)
        middle.set(xscale="log", yscale="log", xlabel="weight decay", title="steps to generalise")
        decays = sorted(shared["decay"].unique())
        middle.set_xticks(decays, [f"{decay:g}" for decay in decays])
        middle.set_xticks([], minor=True)
        middle.legend(title="training fraction")
        example = cell[cell["run_id"].isin(result["begins"].get("run_id", []))]
        if len(example):
            run = example.iloc[0]
            test = result["curves"][run["run_id"]].dropna(subset="validation_answer_accuracy")
            own = result["measures"][result["measures"]["run_id"] == run["run_id"]].sort_values("step")
            looks = {"restricted": axes.INK, "test_loss": "#4477aa", "test_accuracy": axes.HELD_OUT}
            for name, curve in progress(run["memorised"], test, own).items():
                right.plot(*curve, color=looks[name], lw=1.2, label=MEASURES[name])
            right.axhline(SHARE, color=axes.QUIET, lw=0.6)
            right.set(xscale="log", ylim=(-0.25, 1.1))
            right.legend()
        right.set(xlabel=axes.WORDS["S"], title="progress of each measure")
    return made


def page(result: dict, table: pandas.DataFrame) -> str:
    """The README of this folder: every number in it is computed here."""
    found, begins = result["runs"], result["begins"]
    cell, modulus = main_cell(found), int(table["config.objective.options.modulus"].iloc[0])
    rows = (
        (f"{run.share:.0%}", f"{run.decay:g}", run.seed, reached(run.memorised), reached(run.generalised))
        + (f"{run.before:.2f}",)
        for run in found.sort_values(["share", "decay", "seed"]).itertuples()
    )
    moves = ""
    if len(begins) > 1:
        text = "; ".join(f"{MEASURES[name]} {pages.span(begins[name], '.0f')}" for name in MEASURES)
        moves = (
            f"A measure begins to move at the step where it has made {SHARE:.0%} of its change between memorisation "
            f"and its best value. Range of that step over seeds: {text}. The test loss rises while the "
            f"model memorises, so its change is counted from its peak: it {first(begins, 'test_loss')[0]}."
        )
    return pages.page(
        "# Grokking: when does a model that has memorised its training sums generalise?",
        pages.written("grokking"),
        f"{len(found)} decoders of {count(table['n_total'].iloc[0])} parameters learn c = a + b modulo {modulus} from "
        f"a fraction of all pairs (a, b); {duration(table['wall_seconds'].sum() / 2)} of wall time on two workers. "
        f"The main configuration has weight decay {cell['decay'].iloc[0]:g}, a training fraction of "
        f"{cell['share'].iloc[0]:.0%} and {len(cell)} seeds. A run has memorised when train accuracy reaches "
        f"{LEVEL:.0%}, and generalised when test accuracy does; the delay is the number of steps between the two. The "
        "restricted loss is the loss, over all pairs, of the part of the logits that depends on a + b - c alone. "
        "Nanda et al. restrict it further, to key frequencies.",
        "![Accuracies, steps to generalise, and progress of three measures](grokking.png)",
        pages.table("claim | ours (95 %) | verdict", ((claim, *ours) for claim, _, _, *ours in claims(result))),
        moves,
        "## Runs",
        f"Steps (of {count(found['steps'].max())}) at which train and test accuracy reach {LEVEL:.0%}, and the test "
        "accuracy at the first of these steps.",
        pages.table(
            "training fraction | weight decay | seed | memorised | generalised | test accuracy when memorised", rows
        ),
    )


def reached(step: float) -> str:
    """Returns the step, or "never"."""
    return "never" if np.isnan(step) else f"{step:.0f}"


def read() -> tuple[dict, pandas.DataFrame]:
    """Returns (`analyse` of the committed records with "measures", their table of runs)."""
    table, metrics = records.read(HERE / "records.parquet")
    measures = pandas.read_csv(HERE / "measures.csv")
    return {**analyse(table, metrics, measures), "measures": measures}, table


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent})
        measure(parent).round(5).to_csv(HERE / "measures.csv", index=False)
    made, finished = read()
    pages.write(HERE, page(made, finished), grokking=figure(made))

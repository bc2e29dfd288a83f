"""Fits the grid of each seed of config.py and compares E with the entropy of the source.

Command:  python experiments/known_entropy/collect.py runs/known_entropy
          python experiments/known_entropy/collect.py    (fits the committed records again)
Writes:   records.parquet, seeds.csv, README.md and known_entropy.png into this folder

Every seed is fitted alone, twice: with equal weights, as `lmjax fit` does by default, and with weights from the scatter
of the seeds, which falls with the loss (`lmjax fit --weights repeats`, lmjax/scaling/repeats.py).
"""

import json
import pathlib

import numpy as np
import pandas
from scipy import stats

from lmjax import scaling
from lmjax.config import run_file
from lmjax.data import synthetic
from lmjax.errors import InputError
from lmjax.format import count, duration, flop
from lmjax.scaling import repeats
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
SOURCE = "markov1"
WEIGHTS = {"equal": None, "repeats": "precision"}  # name: column
WORDS = {"equal": "equal weights", "repeats": "weights from the scatter of seeds"}
ALL = -1  # the seed of a fit to all of them
LEFT = 0.06  # nats below the truth where the figure ends


def read(path: pathlib.Path) -> pandas.DataFrame:
    """Returns the runs of a records file with `truth`, nats per token of the seed's own validation split under the
    source, `level`, the loss as if that were the entropy rate, and `precision`, 1 / variance between seeds."""
    runs, _ = records.read(path)
    manifests = [json.loads(text)["data"] for text in pandas.read_parquet(path, columns=["record_json"])["record_json"]]
    truth = np.array([m["sources"][0]["entropy"]["true_nats_per_token"]["validation"] for m in manifests])
    level = runs["loss"] - truth + synthetic.entropy_rate(SOURCE)
    runs = runs.copy().assign(truth=truth, seed=runs["config.data.seed"], level=level)
    grid = runs[~runs["held_out"].astype(bool)]
    found = repeats.scatter(np.log(grid["level"]), zip(grid["n_total"], grid["tokens"], strict=True))
    if found is None:
        raise InputError(f"{path}: expected several seeds of each cell")
    return runs.assign(precision=1 / found.variance(np.log(runs["level"])))


def row(runs: pandas.DataFrame, seed: int, name: str) -> dict:
    """Fits the runs of a seed, or of ALL at the mean truth, with the weights of that name: a row of seeds.csv."""
    part = runs[runs["seed"] == seed] if seed != ALL else runs.assign(loss=runs["level"])
    fit, truth = scaling.fit(part, weights=WEIGHTS[name]), float(part["truth"].iloc[0])
    truth = truth if seed != ALL else synthetic.entropy_rate(SOURCE)
    out = {"seed": seed, "weights": name, "status": fit.status, "truth": truth}
    if not fit.refused:
        (low, high), one = fit.intervals["E"], fit.held_out[0]
        out |= {"E": fit.params["E"], "low": low, "high": high, "inside": low <= truth <= high}
        out |= {"lack_of_fit": fit.lack_of_fit.get("p"), "measured": one["loss"], "predicted": one["predicted"]}
        out |= {"predicted_low": one["low"], "predicted_high": one["high"], "held_inside": one["inside"]}
    return out


def fits(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Returns the frame of `row`s of every seed, and of all together, with each of WEIGHTS."""
    every = sorted(set(runs["seed"]))
    return pandas.DataFrame([row(runs, seed, name) for name in WEIGHTS for seed in (*every, ALL)])


def committed() -> dict:
    """Returns {"rate": nats per token of the source, "runs": frame of `read`, "seeds": frame of `fits`}, committed."""
    runs, seeds = read(HERE / "records.parquet"), pandas.read_csv(HERE / "seeds.csv")
    return {"rate": synthetic.entropy_rate(SOURCE), "runs": runs, "seeds": seeds}


def fitted(result: dict, name: str) -> pandas.DataFrame:
    """Returns the rows of single seeds with those weights whose law was not refused."""
    seeds = result["seeds"]
    return seeds[(seeds["weights"] == name) & (seeds["seed"] != ALL)].dropna(subset="E").reset_index(drop=True)


def share(inside) -> str:
    """Successes of trials with the exact 95 % interval of the share (Clopper and Pearson 1934).

    Example: share([True, True, True, False]) -> "3 of 4 (75 %, 95 % interval 19 to 99 %)"
    """
    k, n = int(np.sum(inside)), len(inside)
    low, high = stats.binomtest(k, n).proportion_ci()
    return f"{k} of {n} ({100 * k / n:.0f} %, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)"


def figure(result: dict):
    """Left, middle: E of each seed with its interval around the truth, by weights. Right: loss above the truth."""
    runs = result["runs"][~result["runs"]["held_out"].astype(bool)]
    foot = [
        "Left and middle: fitted E minus the nats per token of the seed's validation split under the source, with its "
        "95 % interval; each seed has its own text. An arrow: the interval goes on to E = 0. Right: validation loss "
        "minus the same, mean over seeds; dots: seeds. N: all parameters."
    ]
    with axes.new_figure(11.0, 3.6, columns=3, foot=foot) as (made, grid):
        for panel, name in zip(grid[0], WEIGHTS, strict=False):
            for one in fitted(result, name).itertuples():
                colour = axes.INK if one.inside else axes.HELD_OUT
                start, end = one.low - one.truth, one.high - one.truth
                panel.plot([max(start, -LEFT), end], [one.seed] * 2, "-", color=colour, lw=1.2)
                if start < -LEFT:
                    panel.plot(-LEFT, one.seed, "<", color=colour, ms=5)
                panel.plot(one.E - one.truth, one.seed, "o", color=colour, ms=3.5)
            panel.axvline(0, color=axes.QUIET, lw=0.8)
            panel.set(xlabel="E minus the truth, nats per token", ylabel="seed", title=WORDS[name])
            panel.set(xlim=(-LEFT * 1.08, LEFT * 0.55), ylim=(-0.7, runs["seed"].max() + 0.7))
        right = grid[0][2]
        for (N, part), colour in zip(runs.groupby("n_total"), axes.colours("N", runs["n_total"]).values(), strict=True):
            excess = part["loss"] - part["truth"]
            mean = excess.groupby(part["tokens"]).mean()
            right.plot(part["tokens"], excess, ".", color=colour, ms=3)
            right.plot(mean.index, mean, "-", color=colour, lw=1.2, label=count(N))
        axes.log_axis(right.xaxis, "D", *axes.spread(runs["tokens"].astype(float)))
        right.set(xlabel=axes.WORDS["D"], title="loss above the truth, nats", yscale="log")
        right.legend(title="N")
    return made


def page(result: dict) -> str:
    """The README of this folder: every number in it is computed here."""
    runs, blocks = result["runs"], []
    for name in WEIGHTS:
        refused = result["seeds"][(result["seeds"]["weights"] == name) & result["seeds"]["E"].isna()]
        said = ", ".join(f"seed {one.seed} ({one.status})" for one in refused.itertuples()) or "none"
        blocks += [f"## Seeds, {WORDS[name]}", seeds_table(fitted(result, name)), f"Refused: {said}."]
    return pages.page(
        "# Known entropy: does the interval of the fitted E hold the truth?",
        pages.written("known_entropy", ""),
        f"{len(runs)} decoders of {pages.span(runs['n_total'])} parameters on "
        f"{runs['seed'].nunique()} texts of `{SOURCE}`, {flop(runs['flops_exact'].sum())} FLOP, "
        f"{duration(runs['wall_seconds'].sum() / 2)} of wall time on two workers. Entropy rate of the source: "
        f"{result['rate']:.4f} nats per token. The loss of a run is over the validation split of its seed; what that "
        "split costs under the source is in the column truth, and the interval of E is judged against it.",
        "![E of each seed around the truth; loss above the truth against D](known_entropy.png)",
        "The smallest models scatter far more between seeds than the largest. With equal weights that noise decides "
        "the interval of E, which then reaches 0, or the law is refused because two floors fit equally well. With "
        "weights from the scatter of the seeds (`--weights repeats`) every fit has a floor:",
        summary(result),
        "With all seeds in one weighted fit the interval is narrow enough to show that the law itself is not exact: "
        "the test for lack of fit says so, and E is too high by more than its interval. Single seeds cannot show it. "
        "The weights were added to lmjax after the fits with equal weights had been seen.",
        *blocks,
    )


def seeds_table(fits: pandas.DataFrame) -> str:
    """The table of single seeds, from the rows of `fitted`."""
    rows = (
        (
            one.seed,
            pages.interval((one.E, one.low, one.high), ".4f", words=True),
            f"{one.truth:.4f}",
            f"{one.E - one.truth:+.4f}",
        )
        + (
            "yes" if one.inside else "no",
            pages.interval((one.predicted, one.predicted_low, one.predicted_high), ".4f", words=True),
        )
        + (f"{one.measured:.4f}", "yes" if one.held_inside else "no")
        for one in fits.itertuples()
    )
    head = "seed | E (95 %) | truth | error | inside | held-out loss predicted (95 %) | measured | inside"
    return pages.table(head, rows)


def summary(result: dict) -> str:
    """The table that compares the weights."""
    seeds, both = result["seeds"], [fitted(result, name) for name in WEIGHTS]
    pooled = [seeds[(seeds["weights"] == name) & (seeds["seed"] == ALL)].iloc[0] for name in WEIGHTS]
    errors = [pages.mean(part["E"] - part["truth"]) for part in both]
    tries = result["runs"]["seed"].nunique()
    cells = {
        "laws accepted": [f"{len(part)} of {tries}" for part in both],
        "intervals of E that hold the truth": [share(part["inside"]) for part in both],
        "median width of the interval, nats": [f"{(part['high'] - part['low']).median():.3f}" for part in both],
        "mean error of E over seeds, nats": [pages.interval(error, "+.4f") for error in errors],
        "held-out losses inside their predicted interval": [share(part["held_inside"]) for part in both],
        "all seeds in one fit: E": [pages.interval((one.E, one.low, one.high), ".4f") for one in pooled],
        "its lack of fit, p": [f"{one.lack_of_fit:.2g}" for one in pooled],
    }
    return pages.table(f"| {' | '.join(WORDS.values())}", ((name, *values) for name, values in cells.items()))


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    claim, result = "95 % intervals of the fitted floor E hold the source's entropy", committed()
    return [
        (f"{claim}, {WORDS[name]}", "known by construction", "95 %", share(fitted(result, name)["inside"]), "measured")
        for name in WEIGHTS
    ]


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent})
    fits(read(HERE / "records.parquet")).to_csv(HERE / "seeds.csv", index=False)
    found = committed()
    pages.write(HERE, page(found), known_entropy=figure(found))

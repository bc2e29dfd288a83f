"""Fits the grid of each seed of config.py and compares E with the entropy of the source.

Command:  python experiments/known_entropy/collect.py runs/known_entropy
          python experiments/known_entropy/collect.py    (fits the committed records again)
Writes:   records.parquet, seeds.csv, README.md and known_entropy.png into this folder

Every seed is fitted alone, twice: with equal weights, as `lmjax fit` does by default, and with weights from the scatter
of the seeds, which falls with the loss (`lmjax fit --weights repeats`, lmjax/scaling/repeats.py).
"""

import json
import pathlib
import sys

import numpy as np
import pandas
from scipy import stats

from lmjax import scaling
from lmjax.data import synthetic
from lmjax.errors import InputError
from lmjax.format import count, duration, flop
from lmjax.scaling import repeats
from lmjax.scaling.figures import style as axes
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = "markov1"
WEIGHTS = {"equal": None, "repeats": "precision"}  # name: column
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


def analyse(path: pathlib.Path, seeds: pandas.DataFrame | None = None) -> dict:
    """Returns {"rate": nats per token of the source, "runs": frame of a records file, "seeds": frame of `row`s}.

    seeds: as a frame that was written before; None: fits again.
    """
    runs = read(path)
    if seeds is None:
        every = sorted(set(runs["seed"]))
        seeds = pandas.DataFrame([row(runs, seed, name) for name in WEIGHTS for seed in (*every, ALL)])
    return {"rate": synthetic.entropy_rate(SOURCE), "runs": runs, "seeds": seeds}


def committed() -> dict:
    """Returns `analyse` of the files of this folder."""
    return analyse(HERE / "records.parquet", pandas.read_csv(HERE / "seeds.csv"))


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
    return f"{k} of {n} ({k / n:.0%}, 95 % interval {100 * low:.0f} to {100 * high:.0f} %)".replace(
        "%, 95", " %, 95", 1
    )


def figure(result: dict):
    """Left, middle: E of each seed with its interval around the truth, by weights. Right: loss above the truth."""
    runs = result["runs"][~result["runs"]["held_out"].astype(bool)]
    foot = [
        "Left and middle: fitted E minus the nats per token of the seed's validation split under the source, with its "
        "95 % interval; each seed has its own text. An arrow: the interval goes on to E = 0. Right: validation loss "
        "minus the same, mean over seeds; dots: seeds. N: all parameters."
    ]
    titles = {"equal": "equal weights", "repeats": "weights from the scatter of seeds"}
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
            panel.set(xlabel="E minus the truth, nats per token", ylabel="seed", title=titles[name])
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
    runs, seeds = result["runs"], result["seeds"]
    parts = [
        "# Known entropy: does the interval of the fitted E hold the truth?",
        "Written by `python experiments/known_entropy/collect.py runs/known_entropy` after "
        "`lmjax sweep experiments/known_entropy/config.py --workdir runs/known_entropy`.",
        f"{len(runs)} decoders of {count(runs['n_total'].min())} to {count(runs['n_total'].max())} parameters on "
        f"{runs['seed'].nunique()} texts of `{SOURCE}`, {flop(runs['flops_exact'].sum())} FLOP, "
        f"{duration(runs['wall_seconds'].sum() / 2)} of wall time on two workers. Entropy rate of the source: "
        f"{result['rate']:.4f} nats per token. The loss of a run is over the validation split of its seed; what that "
        "split costs under the source is in the column truth, and the interval of E is judged against it.",
        "![E of each seed around the truth; loss above the truth against D](known_entropy.png)",
        "The smallest models scatter far more between seeds than the largest. With equal weights that noise decides "
        "the interval of E, which then reaches 0, or the law is refused because two floors fit equally well. With "
        "weights from the scatter of the seeds (`--weights repeats`) every fit has a floor:",
        "| | equal weights | weights from the scatter of seeds |\n|---|---|---|\n" + "\n".join(summary(result)),
        "With all seeds in one weighted fit the interval is narrow enough to show that the law itself is not exact: "
        "the test for lack of fit says so, and E is too high by more than its interval. Single seeds cannot show it. "
        "The weights were added to lmjax after the fits with equal weights had been seen.",
    ]
    for name in WEIGHTS:
        table = [
            f"| {one.seed} | {one.E:.4f} ({one.low:.4f} to {one.high:.4f}) | {one.truth:.4f} "
            f"| {one.E - one.truth:+.4f} | {'yes' if one.inside else 'no'} "
            f"| {one.predicted:.4f} ({one.predicted_low:.4f} to {one.predicted_high:.4f}) | {one.measured:.4f} "
            f"| {'yes' if one.held_inside else 'no'} |"
            for one in fitted(result, name).itertuples()
        ]
        refused = seeds[(seeds["weights"] == name) & seeds["E"].isna()]
        parts += [
            f"## Seeds, {'equal weights' if name == 'equal' else 'weights from the scatter of seeds'}",
            "| seed | E (95 %) | truth | error | inside | held-out loss predicted (95 %) | measured | inside |\n"
            "|---|---|---|---|---|---|---|---|\n" + "\n".join(table),
            "Refused: "
            + (", ".join(f"seed {one.seed} ({one.status})" for one in refused.itertuples()) or "none")
            + ".",
        ]
    return "\n\n".join(parts) + "\n"


def summary(result: dict) -> list[str]:
    """Returns the rows of the table that compares the weights."""
    seeds, both = result["seeds"], [fitted(result, name) for name in WEIGHTS]
    pooled = [seeds[(seeds["weights"] == name) & (seeds["seed"] == ALL)].iloc[0] for name in WEIGHTS]
    errors = [(part["E"] - part["truth"]).to_numpy(float) for part in both]
    widths = [(part["high"] - part["low"]).median() for part in both]
    halves = [stats.t.ppf(0.975, len(error) - 1) * stats.sem(error) for error in errors]
    tries = result["runs"]["seed"].nunique()
    cells = {
        "laws accepted": [f"{len(part)} of {tries}" for part in both],
        "intervals of E that hold the truth": [share(part["inside"]) for part in both],
        "median width of the interval, nats": [f"{width:.3f}" for width in widths],
        "mean error of E over seeds, nats": [
            f"{error.mean():+.4f} [{error.mean() - half:+.4f}, {error.mean() + half:+.4f}]"
            for error, half in zip(errors, halves, strict=True)
        ],
        "held-out losses inside their predicted interval": [share(part["held_inside"]) for part in both],
        "all seeds in one fit: E": [f"{one.E:.4f} [{one.low:.4f}, {one.high:.4f}]" for one in pooled],
        "its lack of fit, p": [f"{one.lack_of_fit:.2g}" for one in pooled],
    }
    return [f"| {name} | {' | '.join(values)} |" for name, values in cells.items()]


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    if not (HERE / "seeds.csv").exists():
        return []
    result, source = {"seeds": pandas.read_csv(HERE / "seeds.csv")}, "known by construction"
    words = {"equal": "equal weights", "repeats": "weights from the scatter of seeds"}
    return [
        (f"95 % intervals of the fitted floor E hold the source's entropy, {words[name]}", source, "95 %")
        + (share(fitted(result, name)["inside"]), "measured")
        for name in WEIGHTS
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print("\n".join(records.pack(pathlib.Path(sys.argv[1]), HERE / "records.parquet")))
    found = analyse(HERE / "records.parquet")
    found["seeds"].to_csv(HERE / "seeds.csv", index=False)
    found = committed()
    axes.save(figure(found), HERE / "known_entropy")
    (HERE / "README.md").write_text(page(found), "utf8")
    print("\n".join(summary(found)))

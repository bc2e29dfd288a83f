"""Compares repeated with fresh data and fits the data-constrained law to the runs of config.py.

Command:  python experiments/repeated_data/collect.py runs/repeated_data    (and runs/repeated_data-held_out, if there)
          python experiments/repeated_data/collect.py                       (analyses the committed records again)
Writes:   records.parquet, held_out.parquet, fit.json, free.json, once.json, stages.json, prediction.json, cells.csv,
          repeated_data.png and README.md into this folder. The prediction is written when the held-out run is not
          trained yet, and kept.
"""

import pathlib
import sys

import numpy as np
import pandas
from scipy import stats

from lmjax import run_record, scaling
from lmjax.format import count, flop
from lmjax.scaling.figures import panels
from lmjax.scaling.figures import style as axes
from lmjax.scaling.laws.repetition import worth
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
PAPER, HALF_LIFE = "Muennighoff et al. 2023, arXiv 2305.16264", 15.4
NEAR, EPOCHS = 0.01, 4  # relative loss within which repeated data are "nearly as good", and after how many epochs
RANGE = 10, 100  # bytes per parameter of the cells that decide it
FITS = ("fit", "free", "once", "stages")
WIDEST = 10  # ratio of the ends of an interval of R_D beyond which it decides nothing


def table_of(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Returns run, N, D, U, epochs, seed, loss, FLOP and held_out of each run."""
    names = {"run_id": "run", "n_total": "N", "tokens": "D", "unique_tokens": "U", "flops_exact": "flops"}
    table = runs.rename(columns=names)[[*names.values(), "seed", "loss", "wall_seconds", "held_out"]]
    return table.assign(epochs=(table["D"] / table["U"]).round().astype(int), held_out=table["held_out"].astype(bool))


def compare(table: pandas.DataFrame) -> pandas.DataFrame:
    """Compares each repeated (N, U, D), mean over seeds, with the fresh run of N and D.

    Returns:
        frame of N, D, U, epochs, loss, fresh (loss), excess (loss / fresh - 1), sd (of the excess, from the pooled
        noise of seeds), tokens_per_param, and worth: the fresh bytes, by interpolation in logarithms between fresh runs
        of N, that reach the loss, over those repeated; NaN outside the fresh losses.
    """
    grid = table[~table["held_out"]]
    cells = grid.groupby(["N", "U", "D", "epochs"])["loss"].agg(["mean", "size"]).reset_index()
    noise, rows = seed_noise(grid), []
    for N, part in cells.groupby("N"):
        fresh = part[part["epochs"] == 1].sort_values("D")
        falling = np.minimum.accumulate(fresh["mean"].to_numpy())
        for row in part[part["epochs"] > 1].itertuples():
            same = fresh[fresh["D"] == row.D]
            if same.empty:
                continue
            equal = np.exp(np.interp(-row.mean, -falling, np.log(fresh["D"]), left=np.nan, right=np.nan))
            sd = noise * np.sqrt(1 / row.size + 1 / same["size"].iloc[0])
            facts = {"N": N, "D": row.D, "U": row.U, "epochs": row.epochs, "loss": row.mean}
            facts |= {"fresh": same["mean"].iloc[0], "excess": row.mean / same["mean"].iloc[0] - 1, "sd": sd}
            rows.append(facts | {"tokens_per_param": row.D / N, "worth": equal / row.U})
    return pandas.DataFrame(rows)


def seed_noise(grid: pandas.DataFrame) -> float:
    """Returns the standard deviation of ln loss over seeds, pooled over the cells that have several."""
    logs = np.log(grid["loss"]).groupby([grid["N"], grid["U"], grid["D"]])
    spare = logs.size().sum() - logs.ngroups
    return float(np.sqrt(logs.apply(lambda part: ((part - part.mean()) ** 2).sum()).sum() / spare)) if spare else np.nan


def fits_of(table: pandas.DataFrame, **options) -> dict:
    """Fits the law with alpha = beta to all runs (primary), with both free, and in the paper's two stages.

    Args:
        table: of `table_of`.
        **options: of scaling.fit.

    Returns:
        {"fit", "free", "once" (the first stage), "stages"}: Fit each; stages is None if the first stage is refused.
    """
    columns = ["run", "N", "D", "U", "loss", "held_out"]
    points = table[columns]
    grid = points[~points["held_out"]]
    once = grid[(grid["D"] <= grid["U"] * 1.01) & (grid["D"] >= 20 * grid["N"])]
    first = scaling.fit(once, "chinchilla", tie=["alpha=beta"], **options)
    more = grid[grid["D"] > grid["U"] * 1.01]
    stages = None if first.refused else scaling.fit(more, "data_constrained", fix=first.params, **options)
    fit = scaling.fit(points, "data_constrained", tie=["alpha=beta"], **options)
    free = scaling.fit(points, "data_constrained", **options)
    return {"fit": fit, "free": free, "once": first, "stages": stages}


def analyse(table: pandas.DataFrame, fits: dict) -> dict:
    """Returns {"table", "cells": frame of `compare`, "noise": standard deviation of ln loss over seeds, "four": (mean
    excess, low, high, cells) at EPOCHS} and the fits of `fits_of`."""
    cells = compare(table)
    noise = seed_noise(table[~table["held_out"]])
    return {"table": table, "cells": cells, "noise": noise, "four": mean_excess(cells), **fits}


def mean_excess(cells: pandas.DataFrame) -> tuple[float, float, float, int]:
    """Returns (mean, low, high, number) of the excess at EPOCHS epochs over the cells of RANGE bytes per parameter."""
    near = cells[(cells["epochs"] == EPOCHS) & cells["tokens_per_param"].between(*RANGE)]["excess"]
    if len(near) < 2:
        return near.mean(), np.nan, np.nan, len(near)
    half = stats.t.ppf(0.975, len(near) - 1) * stats.sem(near)
    return near.mean(), near.mean() - half, near.mean() + half, len(near)


def half_life(fit) -> tuple[float, float, float]:
    """Returns (R_D, low, high) of a fit; NaN if refused or None."""
    if fit is None or fit.refused:
        return (np.nan,) * 3
    return fit.params["R_D"], *fit.intervals["R_D"]


def verdicts(found: dict) -> dict[str, str]:
    """Returns the verdicts on both claims, by the rules of config.py."""
    _, low, high, _ = found["four"]
    _, least, most = half_life(found["fit"])
    four = "reproduced" if high < NEAR else "not reproduced" if low > NEAR else "cannot be decided here"
    known = np.isfinite([least, most]).all() and most / least <= WIDEST
    life = "reproduced" if least <= HALF_LIFE <= most else "not reproduced"
    return {"four": four, "half_life": life if known else "cannot be decided here"}


def figure(found: dict):
    """Loss against bytes, fresh and repeated, a panel per size; and what repeated bytes are worth."""
    table, cells, fit = found["table"], found["cells"], found["fit"]
    grid = table[~table["held_out"]]
    sizes, parts = sorted(grid["N"].unique()), sorted(cells["U"].unique())
    palette = axes.colours("D", np.array(parts, float))
    foot = [
        "Loss on the same validation documents for all runs; dots: single runs; black: one epoch of D fresh bytes; "
        "colours: U unique bytes, read 2 to 16 times; dashed: the fitted data-constrained law. Right: fresh "
        f"bytes that reach the same loss, divided by U; dashed: as good as fresh; grey: published R_D* = {HALF_LIFE}."
    ]
    with axes.new_figure(3.1 * (len(sizes) + 1) + 0.4, 3.8, columns=len(sizes) + 1, foot=foot) as (made, row):
        drawn = row[0]
        for ax, N in zip(drawn, sizes, strict=False):
            here = grid[grid["N"] == N]
            fresh = here[here["epochs"] == 1]
            mean = fresh.groupby("D")["loss"].mean()
            ax.plot(mean.index, mean, "-", color=axes.INK, lw=1.2, label="fresh")
            ax.plot(fresh["D"], fresh["loss"], ".", color=axes.INK, ms=4)
            for U, colour in palette.items():
                repeated = here[(here["U"] == U) & (here["epochs"] > 1)]
                mean = repeated.groupby("D")["loss"].mean()
                ax.plot(mean.index, mean, "-", color=colour, lw=1.2, label=f"U = {count(U)}")
                ax.plot(repeated["D"], repeated["loss"], ".", color=colour, ms=4)
                if not fit.refused and len(repeated):
                    D = np.geomspace(U, repeated["D"].max(), 30)
                    ax.plot(D, fit.predict(N=N, D=D, U=float(U), one_law=True).value, "--", color=colour, lw=0.9)
            axes.log_axis(ax.xaxis, "D", *axes.spread(grid["D"].astype(float)))
            ax.set(xlabel=axes.WORDS["D"], title=f"N = {count(N)}")
        low, high = grid["loss"].min(), grid["loss"].max()
        for ax in drawn[: len(sizes)]:
            axes.log_axis(ax.yaxis, "loss", *axes.spread([low, high]))
        drawn[0].set_ylabel("validation loss, nats per byte")
        panels.legend(drawn[0])
        ax, epochs = drawn[-1], np.geomspace(1, max(16, cells["epochs"].max()), 50)
        ax.plot(epochs, epochs, "--", color=axes.QUIET, lw=0.8)
        ax.plot(epochs, 1 + worth(epochs - 1, HALF_LIFE), "-", color=axes.QUIET, lw=1.6)
        value, least, most = half_life(fit)
        if np.isfinite(value):
            curves = [1 + worth(epochs - 1, R) for R in (value, least, most)]
            panels.curve_with_band(ax, epochs, *curves, "#cc3311", label=f"fitted R_D* = {value:.3g}")
        for number, N in enumerate(sizes):
            here = cells[(cells["N"] == N) & cells["worth"].notna()]
            marker = axes.MARKERS[number]
            ax.scatter(here["epochs"], here["worth"], c=[palette[U] for U in here["U"]], marker=marker, s=18, zorder=3)
            ax.plot([], [], marker, color=axes.INK, ls="", ms=4, label=f"N = {count(N)}")
        ax.set(
            xscale="log", yscale="log", xlabel="epochs", ylabel="epochs of fresh bytes", title="Worth of repeated bytes"
        )
        ticks = [1, 2, 4, 8, 16]
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(ticks, [str(tick) for tick in ticks])
            axis.set_ticks([], minor=True)
        panels.legend(ax)
    return made


def parameters(fit) -> str:
    """The parameters of a fit with their intervals, as text."""
    if fit is None or fit.refused:
        return "refused" + (f": {'; '.join(fit.reasons)}" if fit is not None else "")
    return ", ".join(
        f"{name} = {value:.4g} [{', '.join(f'{end:.4g}' for end in fit.intervals[name])}]"
        if fit.intervals.get(name) and np.ptp(fit.intervals[name])
        else f"{name} = {value:.4g}"
        for name, value in fit.params.items()
    )


def page(found: dict, prediction: dict | None) -> str:
    """The README of this folder: every number in it is computed here."""
    table, cells, judged = found["table"], found["cells"], verdicts(found)
    grid = table[~table["held_out"]]
    mean, low, high, number = found["four"]
    fits = {"all runs, alpha = beta": "fit", "all runs, alpha and beta free": "free", "two stages": "stages"}
    lines = [
        "# Repeated data against fresh data",
        "",
        "Question: how much is a repeated byte worth, relative to a fresh one? Commands, design and verdict rules: "
        "`config.py`.",
        "",
        "![Loss of fresh and repeated data at each size, and the worth of repeated bytes](repeated_data.png)",
        "",
        f"- After {EPOCHS} epochs the loss is {mean:+.2%} [{low:+.2%}, {high:+.2%}] relative to as many fresh bytes, "
        f"mean over {number} configurations with {RANGE[0]} to {RANGE[1]} bytes per parameter ({PAPER}: +0.5 %, "
        f"nearly as good): {judged['four']}.",
        f"- The half-life of repeated data is R_D* = {interval(half_life(found['fit']))} (published: {HALF_LIFE}): "
        f"{judged['half_life']}.",
        f"- The standard deviation of one run's loss between seeds is {found['noise']:.2%}.",
        "",
        "| fit of the data-constrained law | status | R_D* (95 %) | parameters | lack of fit, p |",
        "|---|---|---|---|---|",
    ]
    for name, key in fits.items():
        fit = found[key]
        test = f"{fit.lack_of_fit['p']:.2g}" if fit is not None and fit.lack_of_fit else ""
        status = "first stage refused" if fit is None else fit.status
        lines.append(f"| {name} | {status} | {interval(half_life(fit))} | {parameters(fit)} | {test} |")
    lines += [
        "",
        "The fit in two stages follows the paper. The first stage fits E, A, B and alpha = beta to the runs of one "
        f"epoch with 20 bytes per parameter or more: {parameters(found['once'])}. The second fits R_D and R_N to the "
        "repeated runs; its intervals treat the first stage as exact. Each U is one fixed part of the text, and no "
        "interval includes the choice of that part.",
        "",
        "| N | U | epochs | bytes per parameter | loss | fresh loss | excess | worth, in epochs of fresh bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in cells.sort_values(["N", "U", "epochs"]).itertuples():
        equal = f"{row.worth:.2f}" if np.isfinite(row.worth) else "outside the range of fresh runs"
        lines.append(
            f"| {count(row.N)} | {count(row.U)} | {row.epochs} | {row.tokens_per_param:.1f} | {row.loss:.4f} "
            f"| {row.fresh:.4f} | {row.excess:+.2%} ± {1.96 * row.sd:.2%} | {equal} |"
        )
    lines += ["", "## The held-out run", "", *held_out(found["fit"], prediction)]
    lines += [
        "",
        f"{len(grid)} fitted runs of {count(grid['N'].min())} to {count(grid['N'].max())} parameters, "
        f"{flop(grid['flops'].sum())} FLOP, {grid['wall_seconds'].sum() / 3600:.1f} hours of wall time, one core each.",
    ]
    return "\n".join(lines) + "\n"


def held_out(fit, prediction: dict | None) -> list[str]:
    """Returns the sentence or table of the held-out run, with what was predicted before it was trained."""
    if not prediction:
        return ["Not predicted yet."]
    said = (
        f"{count(prediction['N'])} parameters, {prediction['D'] // prediction['U']} epochs of {count(prediction['U'])} "
        f"bytes. Predicted before it was trained: {prediction['predicted']:.4f} "
        f"({prediction['low']:.4f} to {prediction['high']:.4f})"
    )
    if not fit.held_out:
        return [f"{said}. Not trained yet."]
    (row,) = fit.held_out
    inside = prediction["low"] <= row["loss"] <= prediction["high"]
    error = prediction["predicted"] / row["loss"] - 1
    return [
        f"{said}; measured {row['loss']:.4f}, error {error:+.2%}, {'inside' if inside else 'outside'} the interval."
    ]


def predict(found: dict) -> dict:
    """Returns the prediction of the held-out run of config.py by the primary fit, as JSON values."""
    from lmjax.config import load
    from lmjax.resolve import resolve
    from lmjax.sweeps.cells import overlays_of

    spec = f"{HERE / 'config.py'}:held_out"
    derived = resolve(load(spec, overlays_of(spec)[0])).derived
    N, D, U = (int(derived[name]) for name in ("n_total", "tokens", "unique_tokens"))
    made = found["fit"].predict(N=N, D=D, U=U)
    values = {"predicted": float(made.value), "low": float(made.low), "high": float(made.high)}
    return {"N": N, "D": D, "U": U, **values, "fit": found["fit"].hash}


def interval(values) -> str:
    """Example: interval((15.4, 10, 20)) -> "15.4 [10, 20]"; NaN: "refused"."""
    value, low, high = values
    return "refused" if np.isnan(value) else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def runs() -> pandas.DataFrame:
    """Returns the table of the committed records."""
    files = [HERE / f"{name}.parquet" for name in ("records", "held_out")]
    return table_of(pandas.concat([records.read(file)[0] for file in files if file.exists()], ignore_index=True))


def read() -> tuple[dict, dict | None]:
    """Returns the analysis of the committed records with the saved fits, and the prediction of the held-out run."""
    saved, early = {name: HERE / f"{name}.json" for name in FITS}, HERE / "prediction.json"
    fits = {name: scaling.load(path) if path.exists() else None for name, path in saved.items()}
    return analyse(runs(), fits), run_record.read_json(early) if early.exists() else None


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    if not (HERE / "records.parquet").exists():
        return []
    found, _ = read()
    judged = verdicts(found)
    mean, low, high, _ = found["four"]
    ours = f"{100 * mean:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
    return [
        ("4 epochs: loss above that of fresh data", PAPER, "0.5 %, nearly as good", ours, judged["four"]),
        (
            "half-life R_D* of repeated data",
            PAPER,
            f"{HALF_LIFE}",
            interval(half_life(found["fit"])),
            judged["half_life"],
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        parent = pathlib.Path(sys.argv[1])
        print("\n".join(records.pack(parent, HERE / "records.parquet")))
        if (other := parent.with_name(f"{parent.name}-held_out")).is_dir():
            print("\n".join(records.pack(other, HERE / "held_out.parquet")))
    made = fits_of(runs())
    for name in FITS:
        (HERE / f"{name}.json").unlink(missing_ok=True)  # that of earlier records
        if made[name] is not None:
            made[name].save(HERE / f"{name}.json")
    result, predicted = read()
    if not predicted and not result["table"]["held_out"].any() and not result["fit"].refused:
        predicted = predict(result)
        run_record.write_json(HERE / "prediction.json", predicted)
    result["cells"].to_csv(HERE / "cells.csv", index=False, float_format="%.6g")
    axes.save(figure(result), HERE / "repeated_data")
    (HERE / "README.md").write_text(page(result, predicted), "utf8")
    print(page(result, predicted))

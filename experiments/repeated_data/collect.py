"""Compares repeated with fresh data and fits the data-constrained law to the runs of config.py.

Command:  python experiments/repeated_data/collect.py runs/repeated_data    (and runs/repeated_data-held_out, if there)
          python experiments/repeated_data/collect.py                       (analyses the committed records again)
Writes:   records.parquet, held_out.parquet, fit.json, free.json, once.json, stages.json, prediction.json, cells.csv,
          repeated_data.png and README.md into this folder. The prediction is written when the held-out run is not
          trained yet, and kept.
"""

import pathlib

import numpy as np
import pandas

from lmjax import run_record, scaling
from lmjax.config import run_file
from lmjax.format import count, flop
from lmjax.scaling.figures import panels
from lmjax.scaling.figures import style as axes
from lmjax.scaling.laws.repetition import worth
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
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
    return *pages.mean(near), len(near)


def half_life(fit) -> tuple[float, float, float]:
    """Returns (R_D, low, high) of a fit; NaN if refused or None."""
    if fit is None or fit.refused:
        return (np.nan,) * 3
    return fit.params["R_D"], *fit.intervals["R_D"]


def verdicts(found: dict) -> dict[str, str]:
    """Returns the verdicts on both claims, by the rules of config.py."""
    _, low, high, _ = found["four"]
    _, least, most = half_life(found["fit"])
    known, inside = most / least <= WIDEST, least <= HALF_LIFE <= most  # NaN: not known
    life = pages.verdict(known and inside, known and not inside)
    return {"four": pages.verdict(high < NEAR, low > NEAR), "half_life": life}


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
        ax.set(xscale="log", yscale="log", xlabel="epochs", ylabel="epochs of fresh bytes")
        ax.set_title("Worth of repeated bytes")
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
    values = {name: (value, *fit.intervals.get(name, (value, value))) for name, value in fit.params.items()}
    said = {name: pages.interval(x, ".4g") if x[1] < x[2] else f"{x[0]:.4g}" for name, x in values.items()}
    return ", ".join(f"{name} = {text}" for name, text in said.items())


def page(found: dict, prediction: dict | None) -> str:
    """The README of this folder: every number in it is computed here."""
    table, judged = found["table"], verdicts(found)
    grid = table[~table["held_out"]]
    *four, number = found["four"]
    return pages.page(
        "# Repeated data against fresh data",
        "Question: how much is a repeated byte worth, relative to a fresh one? Commands, design and verdict rules: "
        "`config.py`.",
        "![Loss of fresh and repeated data at each size, and the worth of repeated bytes](repeated_data.png)",
        f"- After {EPOCHS} epochs the loss is {pages.interval(four, '+.2%')} relative to as many fresh bytes, "
        f"mean over {number} configurations with {RANGE[0]} to {RANGE[1]} bytes per parameter ({PAPER}: +0.5 %, "
        f"nearly as good): {judged['four']}.\n"
        f"- The half-life of repeated data is R_D* = {pages.interval(half_life(found['fit']), '.3g')} (published: "
        f"{HALF_LIFE}): {judged['half_life']}.\n"
        f"- The standard deviation of one run's loss between seeds is {found['noise']:.2%}.",
        fits_table(found),
        "The fit in two stages follows the paper. The first stage fits E, A, B and alpha = beta to the runs of one "
        f"epoch with 20 bytes per parameter or more: {parameters(found['once'])}. The second fits R_D and R_N to the "
        "repeated runs; its intervals treat the first stage as exact. Each U is one fixed part of the text, and no "
        "interval includes the choice of that part.",
        cells_table(found["cells"]),
        "## The held-out run",
        held_out(found["fit"], prediction),
        f"{len(grid)} fitted runs of {pages.span(grid['N'])} parameters, {flop(grid['flops'].sum())} FLOP, "
        f"{grid['wall_seconds'].sum() / 3600:.1f} hours of wall time, one core each.",
    )


def fits_table(found: dict) -> str:
    """The table of the three fits of the data-constrained law."""
    rows = []
    for name, key in (("alpha = beta", "fit"), ("alpha and beta free", "free"), ("two stages", "stages")):
        fit, name = found[key], name if key == "stages" else f"all runs, {name}"
        test = f"{fit.lack_of_fit['p']:.2g}" if fit is not None and fit.lack_of_fit else ""
        status = "first stage refused" if fit is None else fit.status
        rows.append((name, status, pages.interval(half_life(fit), ".3g"), parameters(fit), test))
    return pages.table("fit of the data-constrained law | status | R_D* (95 %) | parameters | lack of fit, p", rows)


def cells_table(cells: pandas.DataFrame) -> str:
    """The table of `compare`."""
    rows = (
        (count(row.N), count(row.U), row.epochs, f"{row.tokens_per_param:.1f}", f"{row.loss:.4f}", f"{row.fresh:.4f}")
        + (f"{row.excess:+.2%} ± {1.96 * row.sd:.2%}",)
        + (f"{row.worth:.2f}" if np.isfinite(row.worth) else "outside the range of fresh runs",)
        for row in cells.sort_values(["N", "U", "epochs"]).itertuples()
    )
    head = "N | U | epochs | bytes per parameter | loss | fresh loss | excess | worth, in epochs of fresh bytes"
    return pages.table(head, rows)


def held_out(fit, prediction: dict | None) -> str:
    """Returns the sentence on the held-out run, with what was predicted before it was trained."""
    if not prediction:
        return "Not predicted yet."
    foretold = [prediction[name] for name in ("predicted", "low", "high")]
    said = (
        f"{count(prediction['N'])} parameters, {prediction['D'] // prediction['U']} epochs of {count(prediction['U'])} "
        f"bytes. Predicted before it was trained: {pages.interval(foretold, '.4f', words=True)}"
    )
    if not fit.held_out:
        return f"{said}. Not trained yet."
    (row,) = fit.held_out
    inside = "inside" if foretold[1] <= row["loss"] <= foretold[2] else "outside"
    return f"{said}; measured {row['loss']:.4f}, error {foretold[0] / row['loss'] - 1:+.2%}, {inside} the interval."


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
    found, _ = read()
    judged, (mean, low, high, _) = verdicts(found), found["four"]
    ours = f"{100 * mean:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"
    life = pages.interval(half_life(found["fit"]), ".3g")
    return [
        ("4 epochs: loss above that of fresh data", PAPER, "0.5 %, nearly as good", ours, judged["four"]),
        ("half-life R_D* of repeated data", PAPER, f"{HALF_LIFE}", life, judged["half_life"]),
    ]


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent, "held_out": parent.with_name(f"{parent.name}-held_out")})
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
    pages.write(HERE, page(result, predicted), repeated_data=figure(result))

"""Fits the laws of the best rate and batch to the runs of config.py, and the batch beyond which more bytes are needed.

Command:  python experiments/batch_and_rate/collect.py runs/batch_and_rate
          python experiments/batch_and_rate/collect.py     (analyses the committed records again)
Writes:   records.parquet, tuning.json, critical.csv, batch_and_rate.png and README.md into this folder
"""

import json
import pathlib

import numpy as np
import pandas
from scipy.interpolate import PchipInterpolator

from lmjax.config import run_file
from lmjax.format import count, flop
from lmjax.scaling import methods
from lmjax.scaling.figures import panels
from lmjax.scaling.figures import style as axes
from lmjax.scaling.methods import leastsq
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
STEP_LAW = "Li et al. 2025 (Step Law), arXiv 2503.04715"
ZHANG, MCCANDLISH = "Zhang et al. 2024, arXiv 2410.21676", "McCandlish et al. 2018, arXiv 1812.06162"
PUBLISHED = {("learning_rate", "N"): -0.713, ("learning_rate", "D"): 0.307, ("batch", "D"): 0.571}
WIDEST = 0.6  # width of an interval of an exponent beyond which it decides nothing
OVERHEAD = 0.2  # of the bytes, which defines the critical batch (Zhang et al.)
TARGETS = (300_000, 600_000, 1_200_000)  # bytes at which the least over batches defines a target loss
CLOSE, SHARE, FEWEST = 0.1, 0.8, 4  # standard deviation of ln steps; share of curves; curves


def table_of(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Returns run, N (without the token table, as in Step Law), D, batch (bytes), learning_rate, loss, and for the page
    flops, n_total and wall_seconds."""
    names = {"run_id": "run", "n_non_embedding": "N", "tokens": "D", "tokens_per_step": "batch", "flops_exact": "flops"}
    return runs.rename(columns=names)[[*names.values(), "n_total", "learning_rate", "loss", "wall_seconds"]]


def best_losses(table: pandas.DataFrame) -> pandas.DataFrame:
    """Returns N, D, batch, rate and loss at the best rate of each (N, D, batch), and whether it is at the edge.

    The minimum of the parabola through the best rate and its neighbours in logarithms; at the edge the best run.
    """
    rows = []
    for (N, D, batch), part in table.groupby(["N", "D", "batch"]):
        part = part.sort_values("learning_rate")
        x, y = np.log(part["learning_rate"].to_numpy()), np.log(part["loss"].to_numpy())
        i = int(y.argmin())
        edge = i in (0, len(x) - 1)
        at, least = x[i], y[i]
        if not edge:
            a, b, c = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
            at, least = x[i] - b / (2 * a), c - b * b / (4 * a)
        rows.append({"N": N, "D": D, "batch": batch, "rate": np.exp(at), "loss": np.exp(least), "edge": edge})
    return pandas.DataFrame(rows)


def bytes_needed(best: pandas.DataFrame) -> pandas.DataFrame:
    """Returns N, target (loss), least (bytes, over batches), batch, bytes and steps: what each batch needs to reach it.

    The bytes are interpolated in logarithms, monotonically, between runs of different lengths at their best rate; a
    batch whose runs do not enclose the target has no row. A target is the loss that TARGETS bytes reach with the batch
    that needs the fewest.
    """
    rows = []
    for N, part in best.groupby("N"):
        curves = {}
        for batch, runs in part.groupby("batch"):
            runs = runs.sort_values("D")
            x, y = np.log(runs["D"].to_numpy()), np.log(runs["loss"].to_numpy())
            if len(x) > 1 and (np.diff(y) < 0).all():
                curves[batch] = PchipInterpolator(x, y, extrapolate=False), PchipInterpolator(-y, x, extrapolate=False)
        for least in TARGETS:
            reached = [curve(np.log(least)) for curve, _ in curves.values()]
            if not np.isfinite(reached).any():
                continue
            target = np.nanmin(reached)
            for batch, (_, inverse) in curves.items():
                if np.isfinite(needed := float(inverse(-target))):
                    facts = {"N": N, "target": np.exp(target), "least": float(least), "batch": batch}
                    rows.append({**facts, "bytes": np.exp(needed), "steps": np.exp(needed) / batch})
    return pandas.DataFrame(rows, columns=["N", "target", "least", "batch", "bytes", "steps"])


def critical(needed: pandas.DataFrame) -> pandas.DataFrame:
    """Returns for each N and target: D (the least bytes), B20 (batch that needs OVERHEAD more bytes than the best one,
    of the batches from the smallest one on that every target has; NaN if none does), and B_crit, B_low, B_high, S_min,
    sd and reason of S_min (1 + B_crit / B)."""
    rows, smallest = [], needed.groupby(["N", "target"])["batch"].min().max()
    for (N, target, least), part in needed.groupby(["N", "target", "least"]):
        part = part.sort_values("batch")
        shared = part[part["batch"] >= smallest]
        over = np.log(shared["bytes"].to_numpy() / shared["bytes"].min())
        first, B20 = int(over.argmin()), np.nan
        x, y = np.log(shared["batch"].to_numpy())[first:], np.maximum.accumulate(over[first:])
        if len(y) > 1 and y[-1] > np.log1p(OVERHEAD):
            B20 = np.exp(np.interp(np.log1p(OVERHEAD), y, x))
        fitted = methods.critical_batch(part.assign(loss=target)[["loss", "batch", "steps"]]).curves[0]
        names = ("B_crit", "B_low", "B_high", "S_min", "sd", "points", "reason")
        rows.append({"N": N, "target": target, "D": least, "B20": B20, **{k: getattr(fitted, k) for k in names}})
    return pandas.DataFrame(rows)


def rate_law(rates: pandas.DataFrame) -> leastsq.LogLaw:
    """Returns the law of a rate in N, D and u = batch / D^0.571.

    At constant u the batch grows with D as Step Law's best batch does, so the exponent of D compares with that law's.
    """
    x = {name: rates[name].to_numpy(float) for name in ("N", "D")}
    x["u"] = rates["batch"].to_numpy() / x["D"] ** PUBLISHED["batch", "D"]
    return leastsq.fit_log_law(x, rates["rate"].to_numpy())


def rates_tried(table: pandas.DataFrame) -> pandas.DataFrame:
    """Returns N, D, batch, rate (geometric mean) and most (the highest) of the rates that were tried."""
    tried = table.groupby(["N", "D", "batch"])["learning_rate"]
    return tried.agg(rate=lambda rates: np.exp(np.log(rates).mean()), most="max").reset_index()


def analyse(table: pandas.DataFrame) -> dict:
    """Returns {"table", "tuning": TuningLaw, "best", "needed", "critical": frames of the functions above, "B20" and
    "B_crit": their LogLaws in N and D, None with fewer than 5 values, "rate": `rate_law` of the optima inside the rates
    that were tried, "tried": that of these rates}."""
    best = best_losses(table)
    needed = bytes_needed(best)
    found = critical(needed)
    laws = {name: _law(found.dropna(subset=name), name) for name in ("B20", "B_crit")}
    laws |= {"rate": rate_law(best[~best["edge"]]), "tried": rate_law(rates_tried(table))}
    tuning = methods.tuning_law(table[["N", "D", "learning_rate", "batch", "loss"]])
    return {"table": table, "tuning": tuning, "best": best, "needed": needed, "critical": found, **laws}


def _law(known, name):
    """The law of a column in N and D, None with fewer than 5 values or only one N or D."""
    if len(known) < 5 or known["N"].nunique() < 2 or known["D"].nunique() < 2:
        return None
    return leastsq.fit_log_law({x: known[x].to_numpy() for x in ("N", "D")}, known[name].to_numpy())


def exponent(found: dict, knob: str, name: str) -> tuple[float, float, float]:
    """Returns (exponent, low, high) of a law of `tuning` (learning_rate | batch), or of B20, B_crit or the best rate
    (rate); NaN if there is none."""
    if knob in ("B20", "B_crit", "rate"):
        law = found[knob]
        return (np.nan,) * 3 if law is None else (law.exponents[law.names.index(name)], *law.interval(name, 0.95))
    tuning = found["tuning"]
    if tuning.refused or name not in tuning.laws[knob].names:
        return (np.nan,) * 3
    law = tuning.laws[knob]
    return law.exponents[law.names.index(name)], *tuning.intervals[knob][name]


def verdicts(found: dict) -> dict[str, str]:
    """Returns the verdicts by the rules of config.py."""
    made = {}
    for (knob, name), published in PUBLISHED.items():
        _, low, high = exponent(found, knob, name)
        known, inside = high - low <= WIDEST, low <= published <= high  # NaN: not known
        made[f"{knob} {name}"] = pages.verdict(known and inside, known and not inside)
    (N, N_low, N_high), (D, D_low, D_high) = (exponent(found, "B20", name) for name in ("N", "D"))
    grows = D_low > 0 and (N_low <= 0 <= N_high or abs(N) < D / 2)
    made["critical"] = pages.verdict(grows, D_high < 0 or N_low > D_high)
    sd = found["critical"]["sd"].dropna()
    close = (sd < CLOSE).mean() >= SHARE
    made["form"] = pages.verdict(close, not close) if len(sd) >= FEWEST else pages.UNDECIDED
    return made


def figure(found: dict):
    """Loss against rate by batch at the largest N and D; best rate and batch; bytes to a loss; critical batch."""
    table, best, needed, crit = (found[name] for name in ("table", "best", "needed", "critical"))
    foot = [
        "N: parameters without the token table; D: bytes. First: runs of the largest N and D. Second: loss at the best "
        "rate of each batch, relative to the best batch. Third: bytes to reach a loss, relative to the batch that "
        f"needs the fewest, largest N; dashed: S_min (1 + B_crit / B); grey: {OVERHEAD:.0%} more. Last: the batch that "
        f"needs {OVERHEAD:.0%} more bytes than the best of the batches that all curves have; hollow: B_crit."
    ]
    with axes.new_figure(13.6, 3.7, columns=4, foot=foot) as (made, grid):
        first, second, third, last = grid[0]
        N, D = table["N"].max(), table["D"].max()
        here = table[(table["N"] == N) & (table["D"] == D)]
        for (batch, runs), colour in zip(here.groupby("batch"), axes.colours("D", here["batch"]).values(), strict=True):
            runs = runs.sort_values("learning_rate")
            first.plot(runs["learning_rate"], runs["loss"], "o-", color=colour, ms=3, lw=1.1, label=count(batch))
        first.set_xscale("log", base=2)
        first.set(xlabel="learning rate", ylabel="validation loss", title="Rate, by batch")
        panels.legend(first, title="batch, bytes", fontsize=6)
        tones = axes.colours("N", best["N"])
        lengths = sorted(best["D"].unique())
        for (size, length), part in best.groupby(["N", "D"]):
            style = ("-", "--", ":")[lengths.index(length) % 3]
            second.plot(part["batch"], part["loss"] / part["loss"].min() - 1, style, color=tones[size], lw=1.1)
        for size, colour in tones.items():
            second.plot([], [], "-", color=colour, label=f"N = {count(size)}")
        for number, length in enumerate(lengths):
            second.plot([], [], ("-", "--", ":")[number % 3], color=axes.QUIET, label=f"D = {count(length)}")
        second.set(xlabel="batch, bytes", title="Loss over that of the best batch")
        second.set_xscale("log", base=2)
        panels.legend(second)
        part = needed[needed["N"] == needed["N"].max()]
        palette = axes.colours("D", part["least"])
        for (target, least), runs in part.groupby(["target", "least"]):
            third.plot(runs["batch"], runs["bytes"] / runs["bytes"].min(), "o", color=palette[least], ms=3.5)
            row = crit[(crit["N"] == part["N"].iloc[0]) & (crit["target"] == target)].iloc[0]
            if not row["reason"]:
                B = np.geomspace(runs["batch"].min(), runs["batch"].max(), 40)
                curve = row["S_min"] * (B + row["B_crit"]) / runs["bytes"].min()
                third.plot(B, curve, "--", color=palette[least], lw=1)
            third.plot([], [], "o", color=palette[least], ms=3.5, label=f"least {count(least)}")
        third.axhline(1 + OVERHEAD, color=axes.QUIET, lw=0.8)
        third.set_xscale("log", base=2)
        third.set(xlabel="batch, bytes", title="Bytes to a loss, over the least")
        panels.legend(third)
        for size, colour in tones.items():
            rows = crit[crit["N"] == size]
            last.plot(rows["D"], rows["B20"], "o-", color=colour, ms=4, lw=1.1, label=f"N = {count(size)}")
            last.plot(rows["D"], rows["B_crit"], "o--", color=colour, ms=4, lw=1.1, mfc="white")
        axes.log_axis(last.xaxis, "D", *axes.spread(crit["D"], 0.1))
        axes.log_axis(last.yaxis, "D", *axes.spread(crit[["B20", "B_crit"]].stack(), 0.15))
        last.set(xlabel="D, bytes at the best batch", title="Critical batch, bytes")
        panels.legend(last)
    return made


def claims(found: dict | None = None) -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md; None: of the committed records."""
    found = found or read()
    judged, added = verdicts(found), "analysis added after training"
    words = {"learning_rate": "best learning rate", "batch": "best batch"}

    def ours(knob, name):
        return pages.interval(exponent(found, knob, name), missing="none")

    def both(knob):
        return "; ".join(f"{name}: {ours(knob, name)}" for name in "ND")

    rows = []
    for (knob, name), published in PUBLISHED.items():
        claim = f"standard parametrization: exponent of {name} in the {words[knob]}"
        rows.append((claim, STEP_LAW, f"{published}", ours(knob, name), judged[f"{knob} {name}"]))
    for name, where in (("N", "equal D and batch"), ("D", "equal N, batch ~ D^0.571")):
        claim = f"exponent of {name} in the best learning rate at {where} ({added})"
        rows.append((claim, STEP_LAW, f"{PUBLISHED['learning_rate', name]}", ours("rate", name), "measured"))
    form, grows, zhang = (
        "S_min (1 + B_crit / B)",
        "grows with D, not with N (exponents",
        "grows with D, nearly constant in N",
    )
    sd = found["critical"]["sd"].dropna()
    close = f"{(sd < CLOSE).sum()} of {len(sd)} curves within {CLOSE:.0%}"
    return [
        *rows,
        (f"critical batch {grows})", ZHANG, zhang, both("B20"), judged["critical"]),
        (f"B_crit of {form} {grows}; {added})", ZHANG, zhang, both("B_crit"), "measured"),
        (f"steps to a loss follow {form}", MCCANDLISH, "holds", close, judged["form"]),
    ]


def page(found: dict) -> str:
    """The README of this folder: every number in it is computed here."""
    table = found["table"]
    return pages.page(
        """
        # Learning rate and batch size

        Question: how do the best rate, the best batch and the critical batch change with N and D, under the standard
        parametrization? Commands, design and verdict rules: `config.py`.

        ![Loss by rate and batch, bytes to a loss, and the critical batch](batch_and_rate.png)
        """,
        pages.table(pages.CLAIMS, claims(found)),
        *joint_law(found["tuning"]),
        f"""
        Critical batch: the batch that needs {OVERHEAD:.0%} more bytes than the best one (B20), and B_crit of
        steps = S_min (1 + B_crit / B), at the loss that D bytes reach with the best batch.
        """,
        curves_table(found["critical"]),
        *limits(found),
        f"{len(table)} runs of {pages.span(table['n_total'])} parameters, {flop(table['flops'].sum())} FLOP, "
        f"{table['wall_seconds'].sum() / 3600:.1f} hours of wall time, a core each.",
    )


def joint_law(tuning) -> list[str]:
    """The blocks of the page on the joint law of the best rate and batch, a TuningLaw."""
    status = "refused" if tuning.refused else tuning.status
    said = f"Joint law of the best rate and batch: {status}. {' '.join(f'{reason}.' for reason in tuning.reasons)}"
    notes = [] if tuning.refused else tuning.lines()[-len(tuning.laws) :]
    notes += [f"warning: {warning}" for warning in tuning.warnings]
    rows = []
    for best in tuning.optima:
        values = [best.values.get(knob, np.nan) for knob in ("learning_rate", "batch")]
        values = [f"{value:.3g}" if np.isfinite(value) else "" for value in values]
        loss = f"{best.loss:.4f}" if np.isfinite(best.loss) else ""
        rows.append((count(best.N), count(best.D), *values, loss, best.reason))
    return [
        said,
        "\n".join(f"- {note}" for note in notes),
        pages.table("N | D | best rate | best batch | loss |", rows),
    ]


def curves_table(critical: pandas.DataFrame) -> str:
    """The table of the critical batches, from the frame of `critical`."""
    rows = []
    for row in critical.sort_values(["N", "D"]).itertuples():
        B20 = count(row.B20) if np.isfinite(row.B20) else "not reached"
        fitted = pages.interval((row.B_crit, row.B_low, row.B_high), count), count(row.S_min)
        sd = f"{row.sd:.3f}" if np.isfinite(row.sd) else ""
        fitted = ("", "") if row.reason else fitted
        rows.append((count(row.N), count(row.D), f"{row.target:.4f}", B20, *fitted, sd, row.reason))
    return pages.table("N | D | loss | B20 | B_crit (95 %) | S_min | residual of ln steps |", rows)


def limits(found: dict) -> list[str]:
    """The paragraphs of the page on what the grid does not show."""
    needed, best, rate = found["needed"], found["best"], found["rate"]
    edges = best[best["edge"]]
    least = needed.loc[needed.groupby(["N", "target"])["bytes"].idxmin(), "batch"]
    smallest = needed.groupby(["N", "target"])["batch"].min()
    tried = rates_tried(found["table"]).drop(columns="rate")
    high = edges.merge(tried, on=["N", "D", "batch"]).eval("rate > 0.99 * most").sum()
    lowest = best.loc[best.groupby(["N", "D"])["loss"].idxmin()].set_index(["N", "D"])["batch"]
    at_smallest = (lowest == best.groupby(["N", "D"])["batch"].min()).sum()
    laws = ["N^{:.2f} D^{:.2f} (batch / D^0.571)^{:.2f}".format(*law.exponents) for law in (rate, found["tried"])]
    first, last = (f"{batch:.0f}" for batch in (smallest.min(), smallest.max()))
    wins = f"{(least.to_numpy() == smallest.to_numpy()).sum()} of {len(least)} curves"
    at = f"{len(edges)} of {len(best)} (N, D, batch)"
    return [
        f"""
        In {wins} the smallest batch needs the fewest bytes, and it is {first} or {last}. So B20 is relative to the best
        batch of {last} bytes or more in all of them; relative to a better, smaller batch it would be smaller.
        Curves at the same N share runs; the intervals of the exponents do not account for this.
        """,
        f"""
        At {at} the best rate is the smallest or largest one tried, at {high} the largest: those batches may need fewer
        bytes than estimated. The other best rates follow {laws[0]} within a factor of {np.exp(rate.sd):.2f}
        (one standard deviation).
        The rates that were tried follow {laws[1]}, and optima outside of them are left
        out, so the exponents are pulled towards these. This law was added after training, because the lowest loss had
        turned out to be at the smallest batch tried at {at_smallest} of {len(lowest)} (N, D).
        """,
    ]


def read() -> dict:
    """Returns the analysis of the committed records."""
    return analyse(table_of(records.read(HERE / "records.parquet")[0]))


if __name__ == "__main__":
    if parent := pages.workdir():
        pages.pack(HERE, {"records": parent})
    result = read()
    (HERE / "tuning.json").write_text(json.dumps(result["tuning"].to_dict(), indent=1) + "\n", "utf8")
    result["critical"].to_csv(HERE / "critical.csv", index=False, float_format="%.6g")
    pages.write(HERE, page(result), batch_and_rate=figure(result))

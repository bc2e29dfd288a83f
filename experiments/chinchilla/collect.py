"""Applies the three approaches of arXiv 2203.15556 to the isoFLOP grid, and writes the page of this folder.

Command:  python experiments/chinchilla/collect.py runs/chinchilla
          python experiments/chinchilla/collect.py     (analyses the committed records again)
Writes:   records.parquet, rates.parquet, records.prediction.json, fit.json, budgets.csv, summary.png, isoflop.png,
          frontier.png and README.md. Every number of the page is computed here.
"""

import pathlib

import numpy as np
import pandas

from lmjax import run_record, scaling
from lmjax.config import run_file
from lmjax.format import count, flop
from lmjax.scaling.figures import methods, panels, style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
PUBLISHED = {  # a of N* ~ C^a
    "approach 1": (0.50, "Hoffmann et al. 2022 (arXiv 2203.15556)"),
    "approach 2": (0.49, "Hoffmann et al. 2022"),
    "approach 3": (0.513, "Besiroglu et al. 2024 (arXiv 2404.10102), a second fit of Hoffmann's runs"),
}
BUDGET_TOLERANCE = 0.02
WIDEST = 0.4  # an interval of a that is wider decides nothing
PREDICTION = "records.prediction.json"


def training_curves(runs: pandas.DataFrame, metrics: dict) -> pandas.DataFrame:
    """Returns the training loss of every run along its training: run, N, D, C (exact FLOP), loss."""
    rows = []
    for run in runs.itertuples():
        lines = [line for line in metrics[run.run_id] if "loss" in line]
        rows += [
            {"run": run.run_id, "N": run.n_total, "D": m["tokens"], "C": m["flops"], "loss": m["loss"]} for m in lines
        ]
    return pandas.DataFrame(rows).assign(schedule_complete=True)


def analyse(runs: pandas.DataFrame, metrics: dict) -> dict:
    """The three approaches on what lmjax.sweeps.records.read returns.

    Returns:
        {"runs": frame, "fit": approach 3 (and the predictions of held-out runs), "joint": the same with the joint power
        law, which was added after the test for lack of fit rejected the other, "isoflop", "parabola": approach 2,
        "frontier": approach 1, "agreement": rows of scaling.agreement at the budgets}.
    """
    grid = runs[~runs["held_out"].astype(bool)]
    table = grid.rename(columns={"n_total": "N", "tokens": "D", "flops_exact": "C"})[["run_id", "N", "D", "C", "loss"]]
    fit = scaling.fit(runs)
    found = {
        "runs": runs,
        "fit": fit,
        "joint": scaling.fit(runs, "joint_power"),
        "isoflop": scaling.isoflop(table, tolerance=BUDGET_TOLERANCE),
        "parabola": scaling.isoflop(table, "parabola", tolerance=BUDGET_TOLERANCE),
        "frontier": scaling.frontier(training_curves(grid, metrics)),
    }
    found["agreement"] = []
    if not fit.refused:
        usable = {name: found[key] for name, key in APPROACHES.items() if not found[key].refused}
        budgets = [o.C for o in found["isoflop"].optima]
        found["agreement"] = scaling.agreement(usable, budgets, fit)
    return found


APPROACHES = {
    "approach 1": "frontier",
    "approach 2": "isoflop",
    "approach 2, parabola": "parabola",
    "approach 3": "fit",
    "approach 3, joint law": "joint",
}


def exponent(result) -> tuple[float, float, float]:
    """(a, low, high) of N* ~ C^a; NaN if refused."""
    if result.refused:
        return (np.nan,) * 3
    if hasattr(result, "derived"):
        return result.derived["a"], *result.intervals["a"]
    return result.a, *result.intervals["a"]


def exact_flop(runs: pandas.DataFrame, N: np.ndarray, D: np.ndarray) -> np.ndarray:
    """Training FLOP of N parameters on D tokens, exact where the law counts 6 N D.

    The FLOP per token depend on the width alone; between the sizes of the runs they are interpolated in logarithms.
    """
    sizes = runs.drop_duplicates("n_total").sort_values("n_total")
    per_token = sizes["flops_exact"] / sizes["tokens"]
    return D * np.exp(np.interp(np.log(N), np.log(sizes["n_total"]), np.log(per_token)))


def summary_figure(found: dict):
    """Loss at equal compute; N* against C by each approach; the best loss of each budget and the held-out run."""
    runs, fit, iso = found["runs"], found["fit"], found["isoflop"]
    held = runs[runs["held_out"].astype(bool)]
    foot = [
        "Left: validation loss of runs of equal training FLOP (colours) and the minimum of Akima's interpolation. "
        "Middle: N* of each approach; bars and bands: 95 % intervals. Right: the lowest loss of each budget, the "
        f"loss at its optimum by the law of approach 3{', and the held-out run' if len(held) else ''}. C is exact FLOP."
    ]
    with style.new_figure(11.4, 3.9, columns=3, foot=foot) as (made, grid):
        left, middle, right = grid[0]
        methods._draw_budgets(left, iso)
        C = np.geomspace(runs["flops_exact"].min(), runs["flops_exact"].max(), 60)
        if not fit.refused:
            best = fit.allocate(np.geomspace(fit.flop_6nd.min(), (6 * runs["n_total"] * runs["tokens"]).max(), 60))
            counted = exact_flop(runs, best["N"], best["D"])
        for (name, key), colour in zip(APPROACHES.items(), ("#4477aa", "#228833", "", "#cc3311", ""), strict=True):
            result = found[key]
            if result.refused or not colour:
                continue
            if key == "fit":
                panels.curve_with_band(middle, counted, best["N"], best["N_low"], best["N_high"], colour, label=name)
            else:
                drawn = result.predict(C)
                panels.curve_with_band(middle, C, drawn.value, drawn.low, drawn.high, colour, label=name)
        for o in iso.optima:
            if not o.reason:
                middle.plot([o.C] * 2, [o.N_low, o.N_high], "-", color="#228833", lw=1.4)
                panels.points(middle, o.C, o.N, "#228833", ms=5)
        style.log_axis(middle.xaxis, "C", *style.spread(C, 0.03))
        middle.set_yscale("log")
        style.log_axis(middle.yaxis, "N", *middle.get_ylim())
        middle.set(xlabel=style.WORDS["C"], ylabel="N*, parameters", title="Optimal size")
        panels.legend(middle)
        lowest = [(o.C, o.loss) for o in iso.optima if not o.reason]
        panels.points(right, *map(np.array, zip(*lowest, strict=True)), style.INK, label="minimum of a budget")
        if not fit.refused:
            ends = best["loss_low"], best["loss_high"]
            panels.curve_with_band(right, counted, best["loss"], *ends, "#cc3311", label="law")
        if len(held):
            panels.held_out(right, held["flops_exact"], held["loss"], label="held-out run")
        style.log_axis(right.xaxis, "C", *style.spread(C, 0.03))
        right.set(xlabel=style.WORDS["C"], ylabel="loss", title="Loss of the optimal size")
        panels.legend(right)
    return made


def page(found: dict, rates: pandas.DataFrame, prediction: dict) -> str:
    """Returns the README of this folder."""
    runs, fit = found["runs"], found["fit"]
    grid = runs[~runs["held_out"].astype(bool)]
    return pages.page(
        """
        # IsoFLOP grid of decoders on English bytes

        Question: with N* ~ C^a, is a near 1/2 for decoders this small, do the three approaches agree, and does the
        law predict a run of four times the largest budget? Commands and design: `config.py`.

        ![Loss at equal compute, optimal size, loss of the optimal size](summary.png)
        """,
        pages.table(
            "approach | a of N* ~ C^a (95 %) | published | source",
            (
                (name, pages.interval(exponent(found[key]), ".3f"), *PUBLISHED.get(name, ("", "")))
                for name, key in APPROACHES.items()
            ),
        ),
        """
        Approach 1: envelope of training curves. Approach 2: the minimum of each budget, by Akima's interpolation or
        by a parabola. Approach 3: one law over all runs. C is exact FLOP in 1 and 2, and 6 N D in 3. The joint law
        was fitted after the test for systematic residuals rejected the other.
        """,
        *map(law_text, (fit, found["joint"])),
        pages.table("budget, FLOP | N* (95 %) | D* | D* / N* | lowest loss", map(_optimum, found["isoflop"].optima)),
        *_agreement(found["agreement"]),
        "## The run of four times the largest budget",
        held_out(fit, prediction),
        f"""
        ## The learning rate

        Loss of one cell ({count(rates["n_total"].iloc[0])} parameters, {count(rates["tokens"].iloc[0])} bytes) by
        learning rate:
        """,
        pages.table(
            " | ".join(f"2^{x:g}" for x in np.log2(rates["learning_rate"])), [[f"{loss:.4f}" for loss in rates["loss"]]]
        ),
        f"""
        {len(grid)} fitted runs of {pages.span(grid["n_total"])} parameters and {pages.span(grid["tokens"])} bytes,
        {flop(runs["flops_exact"].sum())} FLOP, {runs["wall_seconds"].sum() / 3600:.1f} hours of wall time on one core
        each ({"; ".join(sorted(set(runs["device"])))}), finished {runs["finished"].max()[:10]};
        {(runs["passed_reference"] == "bigram").sum()} of {len(runs)} end below the bigram loss of their text.
        """,
    )


def law_text(law) -> str:
    """Returns a fitted law, its parameters and its test for systematic residuals as text."""
    if law.refused:
        return f"{law.formula}: refused, {'; '.join(law.reasons)}"
    values = ", ".join(f"{k} = {pages.interval((v, *law.intervals[k]), '.4g')}" for k, v in law.params.items())
    text = f"{law.formula} with {values}; {law.status}; noise {100 * law.noise_sd:.2f} %."
    return text + f"\n\nTest for systematic residuals: p = {law.lack_of_fit['p']:.2g}." * bool(law.lack_of_fit)


def _optimum(o):
    """The row of a budget."""
    if o.reason:
        return flop(o.C), o.reason, "", "", ""
    return flop(o.C), pages.interval((o.N, o.N_low, o.N_high), count), count(o.D), f"{o.D / o.N:.1f}", f"{o.loss:.4f}"


def _agreement(rows):
    if not rows:
        return
    largest = max(row["C"] for row in rows)
    yield f"Excess loss of each approach's split at {flop(largest)} FLOP under the law of approach 3:"
    yield "\n".join(
        f"- {row['approach']}: N = {count(row['N'])}, D/N = {row['tokens_per_param']:.1f}, {row['excess']:.4f} nats, "
        f"{row['wasted']:.1%} of the compute"
        for row in rows
        if row["C"] == largest
    )


def held_out(fit, prediction: dict | None) -> str:
    """Returns the table of held-out runs; `prediction`: what the sweep predicted before it trained them, if it did."""
    laws = prediction.get("groups", [prediction]) if prediction else []
    before = {row["run"]: row for law in laws for row in law["held_out"]}
    rows = []
    for measured in fit.held_out:
        made, loss = before.get(measured["run"], measured), measured["loss"]
        row = [count(made["N"]), count(made["D"]), f"{loss:.4f}"]
        for prefix in ("", "law_"):
            values = [made[prefix + name] for name in ("predicted", "low", "high")]
            row += [pages.interval(values, ".4f", words=True), f"{values[0] / loss - 1:+.2%}"]
        rows.append([*row, "before" if measured["run"] in before else "after"])
    head = "N | D | measured | predicted (95 %) | error | by the law alone (95 %) | error | predicted, training"
    return pages.table(head, rows)


def read() -> tuple[dict, pandas.DataFrame, dict]:
    """Returns the analysis of the committed records, the runs at other learning rates, and the early prediction."""
    rates = records.read(HERE / "rates.parquet")[0].sort_values("learning_rate")
    return analyse(*records.read(HERE / "records.parquet")), rates, run_record.read_json(HERE / PREDICTION)


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    found, rows = analyse(*records.read(HERE / "records.parquet")), []
    for name, (published, source) in PUBLISHED.items():
        values = _, low, high = exponent(found[APPROACHES[name]])
        decided, inside = high - low < WIDEST, low <= published <= high
        verdict = pages.verdict(decided and inside, decided and not inside)
        ours = pages.interval(values, ".3f")
        rows.append((f"decoders, {name}: a of N* ~ C^a", source, f"{published}", ours, verdict))
    return rows


if __name__ == "__main__":
    if parent := pages.workdir():
        workdirs = {"records": parent, "rates": parent.with_name(f"{parent.name}-rates")}
        pages.pack(HERE, workdirs, predictions=True)
    made, rate_table, predicted = read()
    made["fit"].save(HERE / "fit.json")
    pandas.DataFrame(made["agreement"]).to_csv(HERE / "budgets.csv", index=False)
    pages.write(
        HERE,
        page(made, rate_table, predicted),
        summary=summary_figure(made),
        isoflop=methods.isoflop_figure(made["isoflop"]),
        frontier=methods.frontier_figure(made["frontier"]),
    )

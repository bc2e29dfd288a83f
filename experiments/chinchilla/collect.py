"""Applies the three approaches of arXiv 2203.15556 to the isoFLOP grid, and writes the page of this folder.

Command:  python experiments/chinchilla/collect.py runs/chinchilla
          python experiments/chinchilla/collect.py     (analyses the committed records again)
Writes:   records.parquet, rates.parquet, prediction.json, fit.json, budgets.csv, summary.png, isoflop.png, frontier.png
          and README.md. Every number of the page is computed here.
"""

import collections
import pathlib
import shutil
import sys

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


def page(found: dict, rates: pandas.DataFrame | None, prediction: dict | None) -> str:
    """Returns the README of this folder."""
    runs, fit, iso = found["runs"], found["fit"], found["isoflop"]
    grid = runs[~runs["held_out"].astype(bool)]
    lines = [
        "# IsoFLOP grid of decoders on English bytes",
        "",
        "Question: with N* ~ C^a, is a near 1/2 for decoders this small, do the three approaches agree, and does the",
        "law predict a run of four times the largest budget? Commands and design: `config.py`.",
        "",
        "![Loss at equal compute, optimal size, loss of the optimal size](summary.png)",
        "",
        "| approach | a of N* ~ C^a (95 %) | published | source |",
        "|---|---|---|---|",
    ]
    for name, key in APPROACHES.items():
        published, source = PUBLISHED.get(name, ("", ""))
        lines.append(f"| {name} | {_interval(exponent(found[key]))} | {published} | {source} |")
    lines += [
        "",
        "Approach 1: envelope of training curves. Approach 2: the minimum of each budget, by Akima's interpolation or",
        "by a parabola. Approach 3: one law over all runs. C is exact FLOP in 1 and 2, and 6 N D in 3. The joint law",
        "was fitted after the test for systematic residuals rejected the other.",
        "",
    ]
    for law in (fit, found["joint"]):
        if law.refused:
            lines += [f"{law.formula}: refused, {'; '.join(law.reasons)}", ""]
            continue
        values = ", ".join(
            f"{k} = {v:.4g} [{', '.join(f'{e:.4g}' for e in law.intervals[k])}]" for k, v in law.params.items()
        )
        lines += [f"{law.formula} with {values}; {law.status}; noise {100 * law.noise_sd:.2f} %.", ""]
        if law.lack_of_fit:
            lines += [f"Test for systematic residuals: p = {law.lack_of_fit['p']:.2g}.", ""]
    lines += [
        "| budget, FLOP | N* (95 %) | D* | D* / N* | lowest loss |",
        "|---|---|---|---|---|",
    ]
    for o in iso.optima:
        what = o.reason or f"{count(o.N)} [{count(o.N_low)}, {count(o.N_high)}]"
        ratio = "" if o.reason else f"{count(o.D)} | {o.D / o.N:.1f} | {o.loss:.4f}"
        lines.append(f"| {flop(o.C)} | {what} | {ratio or ' | | '} |")
    if found["agreement"]:
        largest = max(row["C"] for row in found["agreement"])
        lines += ["", f"Excess loss of each approach's split at {flop(largest)} FLOP under the law of approach 3:", ""]
        for row in found["agreement"]:
            if row["C"] == largest:
                lines.append(
                    f"- {row['approach']}: N = {count(row['N'])}, D/N = {row['tokens_per_param']:.1f}, "
                    f"{row['excess']:.4f} nats, {row['wasted']:.1%} of the compute"
                )
    lines += ["", "## The run of four times the largest budget", ""]
    lines += held_out(fit, prediction)
    if rates is not None:
        lines += [
            "",
            "## The learning rate",
            "",
            f"Loss of one cell ({count(rates['n_total'].iloc[0])} parameters, "
            f"{count(rates['tokens'].iloc[0])} bytes) by learning rate:",
            "",
            "| " + " | ".join(f"2^{x:g}" for x in np.log2(rates["learning_rate"])) + " |",
            "|" + "---|" * len(rates),
            "| " + " | ".join(f"{loss:.4f}" for loss in rates["loss"]) + " |",
        ]
    below = (runs["passed_reference"] == "bigram").sum()
    hours = runs["wall_seconds"].sum() / 3600
    lines += [
        "",
        f"{len(grid)} fitted runs of {count(grid['n_total'].min())} to {count(grid['n_total'].max())} parameters and "
        f"{count(grid['tokens'].min())} to {count(grid['tokens'].max())} bytes, "
        f"{flop(runs['flops_exact'].sum())} FLOP,",
        f"{hours:.1f} hours of wall time on one core each ({'; '.join(sorted(set(runs['device'])))}), finished",
        f"{runs['finished'].max()[:10]}; {below} of {len(runs)} end below the bigram loss of their text.",
        *missing(runs, run_file(HERE / "config.py", "experiment").sweep()),
    ]
    return "\n".join(lines) + "\n"


def missing(runs: pandas.DataFrame, cells: list[dict]) -> list[str]:
    """Returns a sentence on the cells of a sweep that are not trained, with their FLOP, or nothing."""
    left = collections.Counter(cell["duration.flops"] for cell in cells)
    for budget in left:
        left[budget] -= int((abs(np.log(runs["flops_exact"] / budget)) < BUDGET_TOLERANCE).sum())
    said = ", ".join(f"{number} of {flop(budget)} FLOP" for budget, number in left.items() if number > 0)
    return [f"Not trained yet: {said} ({sum(left.values())} of {len(cells)} cells)."] * bool(said)


def held_out(fit, prediction: dict | None) -> list[str]:
    """Returns the table of held-out runs; `prediction`: what the sweep predicted before it trained them, if it did."""
    laws = prediction.get("groups", [prediction]) if prediction else []
    before = {row["run"]: row for law in laws for row in law["held_out"]}
    measured = {row["run"]: row for row in fit.held_out}
    rows = []
    for run in {**before, **measured}:
        made, loss = before.get(run) or measured[run], measured[run]["loss"] if run in measured else np.nan
        row = [count(made["N"]), count(made["D"]), "not trained yet" if np.isnan(loss) else f"{loss:.4f}"]
        for prefix in ("", "law_"):
            value, *ends = (made[prefix + name] for name in ("predicted", "low", "high"))
            row.append(f"{value:.4f} ({ends[0]:.4f} to {ends[1]:.4f})")
            row.append("" if np.isnan(loss) else f"{value / loss - 1:+.2%}")
        rows.append([*row, "before" if run in before else "after"])
    head = "N | D | measured | predicted (95 %) | error | by the law alone (95 %) | error | predicted, training"
    return pages.table(head, rows).split("\n") if rows else ["Not trained yet."]


def _interval(values):
    value, low, high = values
    return "refused" if np.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def read() -> tuple[dict, pandas.DataFrame | None, dict | None]:
    """Returns the analysis of the committed records, the runs at other learning rates, and the early prediction."""
    rates, early = HERE / "rates.parquet", HERE / "prediction.json"
    table = records.read(rates)[0].sort_values("learning_rate") if rates.exists() else None
    prediction = run_record.read_json(early) if early.exists() else None
    return analyse(*records.read(HERE / "records.parquet")), table, prediction


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    if not (HERE / "records.parquet").exists():
        return []
    found, rows = analyse(*records.read(HERE / "records.parquet")), []
    for name, (published, source) in PUBLISHED.items():
        a, low, high = exponent(found[APPROACHES[name]])
        verdict = "cannot be decided here"
        if np.isfinite(low) and high - low < 0.4:
            verdict = "reproduced" if low <= published <= high else "not reproduced"
        rows.append((f"decoders, {name}: a of N* ~ C^a", source, f"{published}", _interval((a, low, high)), verdict))
    return rows


if __name__ == "__main__":
    if len(sys.argv) > 1:
        parent = pathlib.Path(sys.argv[1])
        print("\n".join(records.pack(parent, HERE / "records.parquet")))
        if (parent / "prediction.json").exists():
            shutil.copyfile(parent / "prediction.json", HERE / "prediction.json")
        if (other := parent.with_name(f"{parent.name}-rates")).is_dir():
            print("\n".join(records.pack(other, HERE / "rates.parquet")))
    made, rate_table, predicted = read()
    made["fit"].save(HERE / "fit.json")
    pandas.DataFrame(made["agreement"]).to_csv(HERE / "budgets.csv", index=False)
    style.save(summary_figure(made), HERE / "summary")
    style.save(methods.isoflop_figure(made["isoflop"]), HERE / "isoflop")
    style.save(methods.frontier_figure(made["frontier"]), HERE / "frontier")
    text = page(made, rate_table, predicted)
    (HERE / "README.md").write_text(text, "utf8")
    print(text)

"""Finds the best learning rate of every width, and writes the table, the figure and the page of this folder.

Command:  python experiments/mup/collect.py runs     (the parent of the workdirs named in config.py)
          python experiments/mup/collect.py          (analyses the committed runs.csv again)
Writes:   runs.csv, optima.csv, summary.png, README.md. Every number of the page is computed here.
"""

import pathlib
import sys

import numpy as np
import pandas

from lmjax import run_record
from lmjax.scaling.figures import style

HERE = pathlib.Path(__file__).resolve().parent
FAMILIES = {"decoder": "mup", "encoder": "mup-encoder", "encoder_decoder": "mup-encoder_decoder"}
COLUMNS = {
    "run_id": "run_id",
    "family": "family",
    "config.parametrization.name": "parametrization",
    "config.model.d_model": "width",
    "n_total": "N",
    "tokens": "D",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "loss": "loss",
    "status": "status",
    "passed_reference": "passed_reference",
    "source_gain": "source_gain",
    "wall_seconds": "wall_seconds",
    "code": "code",
    "device": "device",
    "finished": "finished",
}
RESAMPLES = 2000


def collect(parent: pathlib.Path) -> pandas.DataFrame:
    """Returns the finished and diverged runs of every family trained so far; a diverged run has an infinite loss."""
    tables = []
    for folder in FAMILIES.values():
        if (parent / folder).is_dir():
            table = run_record.read_runs(parent / folder)
            table = table[table["status"].isin(["done", "diverged"])].rename(columns=COLUMNS)
            tables.append(table.reindex(columns=list(COLUMNS.values())))
    runs = pandas.concat(tables, ignore_index=True)
    runs.loc[runs["status"] == "diverged", "loss"] = np.inf
    shared = runs[runs["width"] == runs["width"].min()]  # at the base width both are the same model, trained once
    return pandas.concat([runs, shared.assign(parametrization="mup")], ignore_index=True)


def parabola(x: np.ndarray, y: np.ndarray, i: int) -> tuple[float, float, float]:
    """Returns (a, b, c) of a + b (x - x[i]) + c (x - x[i])^2 through the points i - 1, i and i + 1."""
    left, right = x[i - 1] - x[i], x[i + 1] - x[i]
    down, up = (y[i - 1] - y[i]) / left, (y[i + 1] - y[i]) / right
    c = (up - down) / (right - left)
    return y[i], up - c * right, c


def vertex(x: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """Minimum of the parabola through the lowest point and its two neighbours.

    Args:
        x: log2 of the learning rates, ascending. loss: mean over seeds of each, infinite where a seed diverged.

    Returns:
        (x, loss) of the minimum; NaN where the lowest point is at the edge of the rates or beside a diverged run.

    Example: vertex(np.array([0, 1, 2]), np.array([2, 1, 2])) = (1, 1).
    """
    i = int(np.argmin(loss))
    if i in (0, len(x) - 1) or not np.isfinite(loss[i - 1 : i + 2]).all():
        return np.nan, np.nan
    a, b, c = parabola(x, loss, i)
    return float(x[i] - b / (2 * c)), float(a - b * b / (4 * c))


def regret(curves: dict, base: int, widest: int) -> float:
    """Loss of the widest model at the best rate of the base width, minus its loss at its own best rate.

    The first is on the parabola through the rate nearest to it and that one's two neighbours; NaN outside the rates.
    """
    best, (x, loss) = vertex(*curves[base])[0], curves[widest]
    x, finite = x[np.isfinite(loss)], loss[np.isfinite(loss)]
    if not (x[0] <= best <= x[-1]):
        return np.nan
    i = int(np.clip(np.argmin(abs(x - best)), 1, len(x) - 2))
    a, b, c = parabola(x, finite, i)
    return float(a + b * (best - x[i]) + c * (best - x[i]) ** 2 - vertex(*curves[widest])[1])


def analyse(runs: pandas.DataFrame) -> list[dict]:
    """Optima, drift and regret of each family and parametrization.

    The noise is the standard deviation over seeds, pooled over the rates within a factor of two of the best; the
    intervals (95 %) are percentiles over curves to whose means normal noise of that size was added.

    Returns:
        [{"family", "parametrization", "curves": {width: (log2 rate, mean loss)}, "optima": {width: (value, low, high)},
        "drift": (value, low, high) in log2, "regret": the same in nats, "noise": nats}].
    """
    found = []
    for (family, name), rows in runs.groupby(["family", "parametrization"], sort=False):
        curves, spreads, seeds = {}, [], rows["seed"].nunique()
        for width, cells in rows.groupby("width"):
            by_rate = cells.groupby(np.log2(cells["learning_rate"]).round(6))["loss"]
            mean, variance = by_rate.mean().replace(np.nan, np.inf), by_rate.var()
            curves[width] = mean.index.to_numpy(), mean.to_numpy()
            i = int(np.argmin(mean))
            spreads += [v for v in variance.iloc[max(i - 1, 0) : i + 2] if np.isfinite(v)]
        noise = float(np.sqrt(np.mean(spreads)))
        rng = np.random.default_rng(0)
        base, widest = min(curves), max(curves)

        def measured(curves, base=base, widest=widest):
            best = [vertex(*curve)[0] for curve in curves.values()]
            return [*best, max(best) - min(best), regret(curves, base, widest)]

        again = []
        for _ in range(RESAMPLES):
            drawn = {w: (x, y + rng.normal(0, noise / np.sqrt(seeds), len(y))) for w, (x, y) in curves.items()}
            again.append(measured(drawn))
        values = [(value, *ends(drawn)) for value, drawn in zip(measured(curves), np.transpose(again), strict=True)]
        found.append(
            {
                "family": family,
                "parametrization": name,
                "curves": curves,
                "optima": dict(zip(curves, values, strict=False)),
                "drift": values[-2],
                "regret": values[-1],
                "noise": noise,
            }
        )
    return found


def ends(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the values that are defined; NaN without any."""
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def figure(runs: pandas.DataFrame, results: list[dict]):
    """Draws loss against learning rate, a curve per width: standard above, muP below, a column per family."""
    families = [family for family in FAMILIES if family in set(runs["family"])]
    foot = [
        "Dots: seeds; lines: means; diamonds: the minimum of the parabola through the three lowest means. Two layers, "
        "heads of width 16, 0.5M bytes, AdamW. At width 32 both parametrizations are the same model."
    ]
    size = {"width": 3.4 * len(families), "height": 5.6, "columns": len(families), "rows": 2}
    with style.new_figure(**size, foot=foot, sharey="col") as (made, grid):
        for result in results:
            ax = grid[("standard", "mup").index(result["parametrization"]), families.index(result["family"])]
            rows = runs[(runs["family"] == result["family"]) & (runs["parametrization"] == result["parametrization"])]
            for width, colour in style.colours("N", rows["width"].to_numpy(float)).items():
                cells, (x, loss) = rows[rows["width"] == width], result["curves"][width]
                ax.plot(cells["learning_rate"], cells["loss"], ".", color=colour, ms=3, alpha=0.6)
                ax.plot(2.0**x, loss, "-", color=colour, lw=1.2, label=f"{width:g}")
                best = vertex(x, loss)
                ax.plot(2.0 ** best[0], best[1], "D", color=colour, mec="white", mew=0.6, ms=5)
            shown = rows.loc[np.isfinite(rows["loss"]), "loss"]
            ax.set_xscale("log", base=2)
            ax.set_ylim(shown.min() - 0.03, min(shown.max(), shown.min() + 1.0))
            title = {"standard": "standard", "mup": "muP"}[result["parametrization"]]
            ax.set(title=f"{result['family'].replace('_', '-')}, {title}", xlabel="learning rate", ylabel="loss")
        grid[0, 0].legend(title="width", fontsize=7)
    return made


def page(runs: pandas.DataFrame, results: list[dict]) -> str:
    """Returns the README of this folder."""
    once = runs.drop_duplicates("run_id")
    lines = [
        "# The best learning rate against width: standard parametrization and muP",
        "",
        "Question: over widths 32 to 256, how far does the best learning rate move, and what does the rate tuned at",
        "width 32 cost at width 256? Commands and design: `config.py`.",
        "",
        "![Loss against learning rate for each width](summary.png)",
        "",
        "| family | parametrization | drift, log2 | regret, nats | noise, nats | goal |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        goal = goals(result)
        lines.append(
            f"| {result['family'].replace('_', '-')} | {result['parametrization']} | {_interval(result['drift'], 2)} "
            f"| {_interval(result['regret'], 4)} | {result['noise']:.4f} | {goal} |"
        )
    lines += [
        "",
        "Drift: largest minus smallest log2 of the best rate over the widths. Regret: loss at the widest with the best",
        "rate of the narrowest, minus its loss at its own best rate. Noise: standard deviation over seeds. Brackets:",
        "95 % intervals. Goals, set before the runs: standard drifts by 1.5 or more and has a regret of 0.03 or more;",
        "muP drifts by 0.5 or less and has a regret of 0.01 or less.",
        "",
        "## Best learning rates",
        "",
        "| family | parametrization | width | best log2 rate | lowest mean loss |",
        "|---|---|---|---|---|",
    ]
    for row in optima(results).itertuples():
        ends = f"{row.best:.2f} [{row.low:.2f}, {row.high:.2f}]"
        lines.append(
            f"| {row.family.replace('_', '-')} | {row.parametrization} | {row.width} | {ends} | {row.loss:.4f} |"
        )
    hours, devices = once["wall_seconds"].sum() / 3600, "; ".join(sorted(set(once["device"])))
    below = (once["passed_reference"] == "bigram").sum()
    lines += [
        "",
        f"{len(once)} runs, {hours:.1f} hours of wall time on one core each ({devices}), finished",
        f"{once['finished'].max()[:10]}; {below} end below the bigram loss of their text.",
    ]
    return "\n".join(lines) + "\n"


def goals(result: dict) -> str:
    """Says which of the two goals of a parametrization were reached."""
    (drift, *_), (loss, *_) = result["drift"], result["regret"]
    if result["parametrization"] == "mup":
        checks = {"drift": drift <= 0.5, "regret": loss <= 0.01}
    else:
        checks = {"drift": drift >= 1.5, "regret": loss >= 0.03}
    return "reached" if all(checks.values()) else ", ".join(f"{k} not reached" for k, ok in checks.items() if not ok)


def optima(results: list[dict]) -> pandas.DataFrame:
    """A row for each family, parametrization and width."""
    rows = []
    for result in results:
        for width, (best, low, high) in result["optima"].items():
            facts = {"family": result["family"], "parametrization": result["parametrization"], "width": int(width)}
            loss = float(np.min(result["curves"][width][1]))
            rows.append({**facts, "best": best, "low": low, "high": high, "loss": loss})
    return pandas.DataFrame(rows)


def _interval(values, digits):
    value, low, high = values
    return "not defined" if np.isnan(value) else f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    table = collect(pathlib.Path(sys.argv[1])) if len(sys.argv) > 1 else pandas.read_csv(HERE / "runs.csv")
    made = analyse(table)
    table.to_csv(HERE / "runs.csv", index=False)
    optima(made).round(6).to_csv(HERE / "optima.csv", index=False)
    style.save(figure(table, made), HERE / "summary")
    (HERE / "README.md").write_text(page(table, made), "utf8")
    print(page(table, made))

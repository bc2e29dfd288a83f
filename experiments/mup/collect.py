"""Finds the best learning rate of every width, and writes the tables, the figures and the page of this folder.

Command:  python experiments/mup/collect.py runs/mup     (the parent of the workdirs named in config.py)
          python experiments/mup/collect.py              (analyses the committed records again)
Writes:   records/*.parquet, optima.csv, summary.png, parts.png, README.md. Every number of the page is computed here.
"""

import pathlib

import numpy as np
import pandas

from lmjax.config import run_file
from lmjax.scaling.figures import style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
RESAMPLES = 2000
GOALS = {"standard": (1.5, 0.03), "mup": (0.5, 0.01)}  # drift in log2, regret in nats; set before the runs
CONFIG = run_file(HERE / "config.py", "config")


def collect() -> pandas.DataFrame:
    """Returns the runs of the committed records with the columns family, part, x (log2 of the learning rate), width."""
    tables = []
    for path in sorted((HERE / "records").glob("*.parquet")):
        family, _, part = path.stem.partition("-")
        runs = records.read(path)[0].copy()  # one block of memory, or pandas warns
        tables.append(runs.assign(family=family, part=part, x=np.log2(runs["learning_rate"]).round(6)))
    runs = pandas.concat(tables, ignore_index=True).copy()
    return runs.assign(width=runs["config.model.d_model"], name=runs["config.parametrization.name"])


def parabola(x: np.ndarray, y: np.ndarray, i: int) -> tuple[float, float, float]:
    """Returns (a, b, c) of a + b (x - x[i]) + c (x - x[i])^2 through the points i - 1, i and i + 1."""
    left, right = x[i - 1] - x[i], x[i + 1] - x[i]
    down, up = (y[i - 1] - y[i]) / left, (y[i + 1] - y[i]) / right
    c = (up - down) / (right - left)
    return y[i], up - c * right, c


def vertex(x: np.ndarray, loss: np.ndarray) -> tuple[float, float]:
    """Minimum of the parabola through the lowest point and its two neighbours.

    Args:
        x: log2 of the learning rates, ascending. loss: mean over seeds of each.

    Returns:
        (x, loss) of the minimum; NaN where the lowest point is at the edge of the rates (a diverged run is no point).

    Example: vertex(np.array([0, 1, 2]), np.array([2, 1, 2])) = (1, 1).
    """
    i = int(np.argmin(loss))
    if i in (0, len(x) - 1):
        return np.nan, np.nan
    a, b, c = parabola(x, loss, i)
    return float(x[i] - b / (2 * c)), float(a - b * b / (4 * c))


def regret(curves: dict) -> float:
    """Loss of the last curve at the best rate of the first, minus its loss at its own best rate.

    The first is on the parabola through the rate nearest to it and that one's two neighbours. Where the rate is outside
    of those tried, the nearest of them is taken, and the regret is a lower bound.
    """
    first, (x, loss) = vertex(*next(iter(curves.values())))[0], list(curves.values())[-1]
    if np.isnan(first):
        return np.nan
    best = np.clip(first, x[0], x[-1])
    i = int(np.clip(np.argmin(abs(x - best)), 1, len(x) - 2))
    a, b, c = parabola(x, loss, i)
    return float(a + b * (best - x[i]) + c * (best - x[i]) ** 2 - vertex(x, loss)[1])


def curves_of(rows: pandas.DataFrame, along: str = "width") -> dict:
    """Returns {width: (log2 rates, mean loss over seeds)}, ascending."""
    found = {}
    for key, cells in rows.groupby(along):
        mean = cells.groupby("x")["loss"].mean()
        found[int(key)] = mean.index.to_numpy(), mean.to_numpy()
    return found


def seed_noise(rows: pandas.DataFrame) -> float:
    """Standard deviation of the loss over seeds, pooled over the rates within a factor of two of each width's best."""
    spreads = []
    for _, cells in rows.groupby("width"):
        mean, variance = cells.groupby("x")["loss"].mean(), cells.groupby("x")["loss"].var()
        i = int(np.argmin(mean))
        spreads += [v for v in variance.iloc[max(i - 1, 0) : i + 2] if np.isfinite(v)]
    return float(np.sqrt(np.mean(spreads)))


def decoder_noise(results: list[dict]) -> float:
    """Returns the noise of decoders, pooled over both parametrizations."""
    return float(np.sqrt(np.mean([result["noise"] ** 2 for result in results if result["family"] == "decoder"])))


def study(curves: dict, noise: float) -> dict:
    """Optima, drift and regret of curves, with 95 % intervals: percentiles over curves with added normal noise.

    Args:
        curves: from curves_of. noise: standard deviation of the mean losses.

    Returns:
        {"curves", "optima": {width: (value, low, high)}, "drift": largest minus smallest optimum (value, low, high),
        "regret": the same in nats}.
    """

    def measured(curves):
        best = [vertex(*curve)[0] for curve in curves.values()]
        return [*best, max(best) - min(best), regret(curves)]

    rng, again = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        again.append(measured({w: (x, y + rng.normal(0, noise, len(y))) for w, (x, y) in curves.items()}))
    values = [(value, *ends(drawn)) for value, drawn in zip(measured(curves), np.transpose(again), strict=True)]
    optima = dict(zip(curves, values, strict=False))
    return {"curves": curves, "optima": optima, "drift": values[-2], "regret": values[-1]}


def analyse(runs: pandas.DataFrame) -> list[dict]:
    """The study of each family and parametrization, with "family", "name", "rows" and "noise" (of one run, nats).

    At the base width both parametrizations are the same model, trained once.
    """
    found = []
    for family, rows in runs[runs["part"] == ""].groupby("family", sort=False):
        shared = rows[(rows["name"] == "standard") & (rows["width"] == CONFIG.BASE)].assign(name="mup")
        for name, own in pandas.concat([rows, shared]).groupby("name", sort=False):
            noise, seeds = seed_noise(own), own["seed"].nunique()
            about = {"family": family, "name": name, "rows": own, "noise": noise}
            found.append(about | study(curves_of(own), noise / np.sqrt(seeds)))
    return found


def parts(runs: pandas.DataFrame, noise: float) -> list[dict]:
    """The study of each change over widths, and of muP and CompleteP over layers, with "title", "along" and "rows"."""
    changes, depth = runs[runs["part"] == "changes"], runs[runs["part"] == "depth"]
    keys = sorted({key for change, _ in CONFIG.CHANGES.values() for key in change})
    plain = CONFIG.get_config()
    found = []
    for title, (change, _) in CONFIG.CHANGES.items():
        wanted = {key: change.get(key, _value(plain, key)) for key in keys}
        wanted.pop("model.num_heads")
        rows = changes[np.all([_equal(changes[f"config.{key}"], value) for key, value in wanted.items()], axis=0)]
        heads = rows["config.model.head_dim"] * 2 == rows["width"]
        rows = rows[heads if "model.num_heads" in change else rows["config.model.head_dim"] == 16]
        found.append({"title": title, "along": "width", "rows": rows})
    for name, title in (("mup", "muP"), ("completep", "CompleteP")):
        rows = depth[(depth["name"] == name) | (depth["config.model.num_layers"] == 2)]
        found.append({"title": f"depth, {title}", "along": "config.model.num_layers", "rows": rows})
    found = [one for one in found if len(one["rows"])]
    return [one | study(curves_of(one["rows"], one["along"]), noise) for one in found]


def _value(config, key):
    for name in key.split("."):
        config = config[name]
    return config


def _equal(column, value):
    return column.isna() if value is None else column == value


def ends(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the values that are defined; NaN without any."""
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def draw(ax, result: dict, along: str, title: str) -> None:
    """Loss against learning rate, a curve for each width or depth, with its minimum."""
    rows, shown = result["rows"], result["rows"]["loss"]
    for (key, (x, loss)), colour in zip(
        result["curves"].items(), style.colours("N", np.array(list(result["curves"]), float)).values(), strict=True
    ):
        cells = rows[rows[along] == key]
        ax.plot(cells["learning_rate"], cells["loss"], ".", color=colour, ms=3, alpha=0.6)
        ax.plot(2.0**x, loss, "-", color=colour, lw=1.2, label=f"{key}")
        best = vertex(x, loss)
        ax.plot(2.0 ** best[0], best[1], "D", color=colour, mec="white", mew=0.6, ms=5)
    ax.set_xscale("log", base=2)
    ax.set_ylim(shown.min() - 0.03, min(shown.max(), shown.min() + 0.6))
    ax.set(title=title, xlabel="learning rate", ylabel="loss")


def figure(results: list[dict]):
    """Draws loss against learning rate, a curve per width: standard above, muP below, a column per family."""
    families = [family for family in CONFIG.ROWS if any(r["family"] == family for r in results)]
    foot = [
        "Dots: seeds; lines: means; diamonds: the minimum of the parabola through the three lowest means. Two layers, "
        f"heads of width 16, 0.5M bytes, AdamW. At width {CONFIG.BASE} both parametrizations are the same model."
    ]
    size = {"width": 3.4 * len(families), "height": 5.6, "columns": len(families), "rows": 2}
    with style.new_figure(**size, foot=foot, sharey="col") as (made, grid):
        for result in results:
            ax = grid[("standard", "mup").index(result["name"]), families.index(result["family"])]
            title = f"{_plain(result['family'])}, {'muP' if result['name'] == 'mup' else 'standard'}"
            draw(ax, result, "width", title)
        for column, family in enumerate(families):
            shown = pandas.concat([r["rows"]["loss"] for r in results if r["family"] == family])
            grid[0, column].set_ylim(shown.min() - 0.03, min(shown.max(), shown.min() + 0.6))
        grid[0, 0].legend(title="width", fontsize=7)
    return made


def parts_figure(found: list[dict]):
    """Draws a panel for each change and each way to grow in depth."""
    foot = [
        "Decoders under muP, one seed. Widths 32 and 128 with one thing changed each; depth: 2 to 16 layers at width "
        "64. Diamonds: the minimum of the parabola through the three lowest losses."
    ]
    rows = -(-len(found) // 4)
    with style.new_figure(12.6, 2.7 * rows, columns=4, rows=rows, foot=foot) as (made, grid):
        for ax, one in zip(grid.flat, found, strict=False):
            draw(ax, one, one["along"], one["title"])
            ax.legend(title="width" if one["along"] == "width" else "layers", fontsize=6)
        for ax in grid.flat[len(found) :]:
            ax.set_visible(False)
    return made


def page(runs: pandas.DataFrame, results: list[dict], found: list[dict]) -> str:
    """Returns the README of this folder."""
    once = runs.drop_duplicates("run_id")
    return pages.page(
        """
        # The best learning rate against width: standard parametrization and muP

        Question: over widths 32 to 256, how far does the best learning rate move, and what does the rate tuned at
        width 32 cost at width 256? Commands and design: `config.py`.

        ![Loss against learning rate for each width](summary.png)
        """,
        pages.table(
            "family | parametrization | drift, log2 | regret, nats | noise, nats | goals",
            (
                (_plain(one["family"]), one["name"], drift(one), cost(one), f"{one['noise']:.4f}", goals(one))
                for one in results
            ),
        ),
        """
        Drift: largest minus smallest log2 of the best rate over the widths. Regret: loss at the widest with the
        best rate of the narrowest, minus its loss at its own best rate (at least: that rate is above those tried
        at the widest). Noise: standard deviation over seeds. Brackets: 95 % intervals. Goals, set before the
        runs: standard drifts by 1.5 or more and has a regret of 0.03 or more; muP drifts by 0.5 or less and has a
        regret of 0.01 or less.

        ## Best learning rates
        """,
        pages.table(
            "family | parametrization | width | best log2 rate | lowest mean loss",
            (
                (_plain(o.family), o.name, o.width, pages.interval((o.best, o.low, o.high)), f"{o.loss:.4f}")
                for o in optima(results).itertuples()
            ),
        ),
        "## The base width",
        *_bases(runs),
        """
        ## What breaks the transfer, and depth

        Decoders under muP, one seed, so the intervals use the noise of the table above. Not defined: the best
        rate of a width is at the edge of those tried.

        ![Loss against learning rate with one thing changed](parts.png)
        """,
        pages.table(
            "change | drift, log2 | regret, nats | lowest loss at the largest",
            ((one["title"], drift(one), cost(one), f"{min(list(one['curves'].values())[-1][1]):.4f}") for one in found),
        ),
        f"""
        {len(once)} runs, {once["wall_seconds"].sum() / 3600:.1f} hours of wall time on one core each
        ({"; ".join(sorted(set(once["device"])))}), finished {once["finished"].max()[:10]};
        {(once["passed_reference"] == "bigram").sum()} end below the bigram loss of their text.
        """,
    )


def _bases(runs):
    rows = runs[runs["part"] == "bases"]
    table = rows.groupby(["family", "config.parametrization.base_width"])["loss"].min().unstack().reindex(CONFIG.ROWS)
    yield """
        Lowest loss at width 32 (one seed) over the learning rates tried, for each base width. A larger base trains
        the token table more slowly relative to the hidden matrices, and multiplies the logits of narrow models.
        """
    losses = (["" if np.isnan(loss) else f"{loss:.4f}" for loss in row] for row in table.to_numpy())
    yield pages.table(
        f"family | {' | '.join(f'{base:g}' for base in table)}",
        ((_plain(family), *row) for family, row in zip(table.index, losses, strict=True)),
    )
    wide = runs[runs["part"] == "wide"].groupby("config.parametrization.base_width")["loss"].min()
    best = runs[(runs["part"] == "") & (runs["family"] == "decoder") & (runs["width"] == 256) & (runs["seed"] == 0)]
    listed = ", ".join(f"{loss:.4f} with base {base:g}" for base, loss in wide.items())
    yield f"Decoders of width 256, one seed: {listed}, {best['loss'].min():.4f} with base 256 (= standard)."


def goals(result: dict) -> str:
    """Says which of the two goals of a parametrization were reached."""
    sign = 1 if result["name"] == "mup" else -1
    checks = {
        what: sign * result[what][0] <= sign * goal
        for what, goal in zip(("drift", "regret"), GOALS[result["name"]], strict=True)
    }
    return "reached" if all(checks.values()) else ", ".join(f"{k} not reached" for k, ok in checks.items() if not ok)


def cost(result: dict, digits: int = 4) -> str:
    """Returns the regret as text, with "at least" where the narrowest's best rate is above those of the widest."""
    x, _ = list(result["curves"].values())[-1]
    bound = "at least " if list(result["optima"].values())[0][0] > x[-1] else ""
    return bound + pages.interval(result["regret"], f".{digits}f", "not defined")


def drift(result: dict) -> str:
    """Returns the drift as text."""
    return pages.interval(result["drift"], missing="not defined")


def optima(results: list[dict]) -> pandas.DataFrame:
    """A row for each family, parametrization and width."""
    rows = []
    for result in results:
        for width, (best, low, high) in result["optima"].items():
            facts = {"family": result["family"], "name": result["name"], "width": width}
            loss = float(np.min(result["curves"][width][1]))
            rows.append({**facts, "best": best, "low": low, "high": high, "loss": loss})
    return pandas.DataFrame(rows)


def _plain(family):
    return family.replace("_", "-")


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    rows = []
    for result in analyse(collect()):
        ours = f"best rate moves by {drift(result)} in log2; keeping it costs {cost(result, 3)} nats"
        muP = result["name"] == "mup"
        claim = "one learning rate holds" if muP else "the best learning rate falls"
        source = "Yang et al. 2022, arXiv 2203.03466" if result["family"] != "encoder_decoder" else "none known"
        published = "holds under muP, not under standard" if source != "none known" else ""
        verdict = pages.REPRODUCED if goals(result) == "reached" else goals(result)
        verdict = verdict if source != "none known" else "measured"
        name = f"{_plain(result['family'])}s, {'muP' if muP else 'standard'}: {claim} as width grows 8x"
        rows.append((name, source, published, ours, verdict))
    return rows


if __name__ == "__main__":
    if parent := pages.workdir():
        folders = {summary.parent.parent for summary in parent.glob("*/*/summary.json")}
        pages.pack(HERE / "records", {folder.name: folder for folder in folders})
    table = collect()
    made = analyse(table)
    changed = parts(table, decoder_noise(made))
    optima(made).round(6).to_csv(HERE / "optima.csv", index=False)
    pages.write(HERE, page(table, made, changed), summary=figure(made), parts=parts_figure(changed))

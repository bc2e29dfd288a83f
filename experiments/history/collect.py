"""Draws every family of language models on the same axes, and says where each gains little and is overtaken.

Command:  python experiments/history/collect.py runs/history     (the parent of the workdirs named in config.py)
          python experiments/history/collect.py                  (analyses the committed records again)
Writes:   FAMILY.parquet, FAMILY.rates.parquet, FAMILY.prediction.json, FAMILY.fit.json, history.png and README.md.
          Every number of the page is computed here.

A frontier is the lowest loss of a family, by its law where it has one, at a number of parameters (N, with the most
tokens), of tokens (D) or of training FLOP (C), at the best of the trained sizes. Along each of them a family
    has a small gain  from where twice as much lowers its lowest loss by less than SMALL nats
    is overtaken      where the lowest loss of another family falls below its own and stays there
Intervals are of the laws (bootstrap resamples), not of the noise of a run.
"""

import pathlib

import numpy as np
import pandas

from lmjax import run_record, scaling
from lmjax.config import run_file
from lmjax.format import count, duration, flop
from lmjax.scaling.figures import panels, style
from lmjax.scaling.laws import predict_loss
from lmjax.scaling.resample import percentiles
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
grids = run_file(HERE.parent / "chinchilla" / "collect.py", "experiment")
LOOKS = {  # family: name, colour, marker; in the order of their invention
    "ngram": ("n-gram", "#777777", "s"),
    "feed_forward": ("feed-forward", "#ddaa33", "^"),
    "elman": ("Elman RNN", "#66aadd", "v"),
    "lstm": ("LSTM", "#004488", "o"),
    "gru": ("GRU", "#228833", "P"),
    "decoder": ("decoder", "#bb3366", "D"),
}
COLUMN = {"N": "n_total", "D": "tokens", "C": "flops_exact"}
LAW = ("E", "alpha", "beta")
WORDS = {"N": "parameters", "D": "tokens", "C": "FLOP"}
SMALL = 0.03  # nats per byte for twice as much
MISFIT = 0.05  # p of the test for lack of fit, below which the frontier is that of the runs
STEPS = 24  # points of a frontier per factor of 2, and sizes between two trained ones
CLAIMS = (  # better, worse, along, source
    ("feed_forward", "ngram", "D", "Bengio et al. 2003 (JMLR 3)"),
    ("elman", "ngram", "D", "Mikolov et al. 2010 (Interspeech)"),
    ("lstm", "elman", "N", "Sundermeyer et al. 2012 (Interspeech)"),
    ("decoder", "lstm", "N", "Kaplan et al. 2020, arXiv 2001.08361, figure 7"),
)
PUBLISHED = (
    ("LSTM (Grave et al. 2017, arXiv 1612.04426)", "", "", "99.3"),
    ("AWD-LSTM, regularised (Merity et al. 2017, arXiv 1708.02182)", "33M", "68.6", "65.8"),
)


# -- Frontiers


def sizes(runs: pandas.DataFrame) -> list[tuple[float, float]]:
    """Returns (FLOP per token, parameters) of each trained size, and of STEPS sizes between two."""
    by_size = runs.assign(cost=runs["flops_exact"] / runs["tokens"]).groupby("n_total")["cost"].median()
    at, places = np.linspace(0, len(by_size) - 1, (len(by_size) - 1) * STEPS + 1), range(len(by_size))
    costs, N = (np.exp(np.interp(at, places, np.log(x.astype(float)))) for x in (by_size, by_size.index))
    return [*zip(costs, N, strict=True)]


def grid(runs: pandas.DataFrame, along: str) -> np.ndarray:
    """Returns the integers k of the points 2^(k / STEPS) within the parameters, tokens or FLOP of some records: equal
    points for all families."""
    least, most = np.log2(column(runs, along).min()), np.log2(column(runs, along).max())
    return np.arange(np.ceil(least * STEPS), np.floor(most * STEPS) + 1, dtype=int)


def column(runs: pandas.DataFrame, along: str) -> pandas.Series:
    """Returns the tokens or FLOP of all runs, or the parameters of those with the most tokens."""
    return runs[COLUMN[along]][(along != "N") | (runs["tokens"] > 0.99 * runs["tokens"].max())]


def by_law(fit, runs: pandas.DataFrame) -> bool:
    """Returns whether the frontier of a family is that of its law, not that of its runs."""
    misfit = fit.lack_of_fit and fit.lack_of_fit["p"] < MISFIT
    return not (fit.refused or misfit or "ngram" in set(runs["family"]))


def frontier(fit, runs: pandas.DataFrame, along: str, x: np.ndarray) -> np.ndarray:
    """Returns the lowest loss of a family at each x, [1 + P, X]: by its law, and by each bootstrap resample. Without a
    law that fits, and of n-gram models, whose size follows from their text, it is that of the runs, [1, X].

    Args:
        fit: the law of the family.
        runs: its records.
        along: N | D | C.
        x: parameters, tokens or FLOP, within those of the records.
    """
    if not by_law(fit, runs):
        best = runs["loss"].groupby(column(runs, along).astype(float)).min().cummin()
        return np.exp(np.interp(np.log(x), np.log(best.index), np.log(best)))[None]
    resampled = fit.resampled().params
    params = {name: np.concatenate([[value], resampled[name]])[:, None] for name, value in fit.params.items()}
    least, most = runs["tokens"].min(), runs["tokens"].max()
    if along == "N":
        return predict_loss(fit.law, params, x, most)
    lowest = np.full((len(params["E"]), len(x)), np.inf)
    for cost, N in sizes(runs):
        D = x / cost if along == "C" else x
        inside = (D > 0.99 * least) & (D < 1.01 * most)
        lowest[:, inside] = np.minimum(lowest[:, inside], predict_loss(fit.law, params, N, D[inside]))
    return lowest


def small_gain(x: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Returns from which x on twice as much lowers each row of losses [P, X] by less than SMALL; inf: not within x.

    Example: from the points 2^(k / STEPS) up to 1024, 1 + x^-0.5 falls by x^-0.5 (1 - 2^-0.5) < 0.03: from 95.9 on
    """
    large = loss[:, :-STEPS] - loss[:, STEPS:] >= SMALL
    return _after_last(x[: large.shape[1]], large)


def overtaken(x: np.ndarray, loss: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns from which x on `other` is lower up to the end of x, for each row of losses [P, X]; inf: nowhere."""
    return _after_last(x, other >= loss)


def _after_last(x, holds):
    """The x after the last at which each row of bools [P, X] holds; inf if that is the last x."""
    last = np.where(holds.any(1), holds.shape[1] - np.argmax(holds[:, ::-1], axis=1), 0) if len(x) else 0
    return np.append(x, np.inf)[np.broadcast_to(last, len(holds))]


# -- Analysis


def analyse(tables: dict[str, pandas.DataFrame], resamples: int = 300) -> dict:
    """Returns {family: {"runs", "fit", "frontier": {along: (k [X], losses [1 + P, X])}}}.

    Args:
        tables: records by family.
        resamples: P, of each law.
    """
    made = {}
    for number, (family, runs) in enumerate(tables.items()):
        fit, curves = scaling.fit(runs, resamples=resamples, profiles=False), {}
        for along in COLUMN:
            k = grid(runs, along)
            losses = frontier(fit, runs, along, 2.0 ** (k / STEPS))
            order = np.random.default_rng(number).permutation(len(losses) - 1)  # independent of other families'
            curves[along] = k, np.concatenate([losses[:1], losses[1:][order]])
        made[family] = {"runs": runs, "fit": fit, "frontier": curves}
    return made


def common(made: dict, one: str, other: str, along: str):
    """Returns (x, losses of one, losses of the other), [1 + P, X] each; None where they have no x in common. That is so
    of the compute of n-gram models: what counting costs is not counted in multiply-adds."""
    if not {one, other} <= set(made) or (along == "C" and "ngram" in (one, other)):
        return None
    (k, a), (m, b) = (made[family]["frontier"][along] for family in (one, other))
    both, left, right = np.intersect1d(k, m, return_indices=True)
    draws = min(len(losses) for losses in (a, b) if len(losses) > 1 or len(a) == len(b))
    a, b = (np.broadcast_to(x, (draws, x.shape[1])) if len(x) == 1 else x[:draws] for x in (a[:, left], b[:, right]))
    return (2.0 ** (both / STEPS), a, b) if len(both) else None


def verdicts(made: dict) -> pandas.DataFrame:
    """Returns where the gain of each family is small and where it is overtaken: family, along, small_gain,
    small_gain_low, small_gain_high; by (the family that overtakes it first), overtaken, overtaken_low, overtaken_high,
    from_least (from the least they have in common on); most (the largest x). Lows and highs are NaN where both are
    measured."""
    rows = []
    for family, found in made.items():
        for along, (k, losses) in found["frontier"].items():
            if along == "C" and family == "ngram":
                continue
            x = 2.0 ** (k / STEPS)
            row = {"family": family, "along": along, "most": x[-1], "by": "", "from_least": False}
            row |= {**_interval("small_gain", small_gain(x, losses)), **_interval("overtaken", np.full(2, np.inf))}
            for other in made:
                both = common(made, family, other, along) if other != family else None
                if both is not None and (at := overtaken(*both))[0] < row["overtaken"]:
                    row |= {"by": other, **_interval("overtaken", at), "from_least": at[0] == both[0][0]}
            rows.append(row)
    return pandas.DataFrame(rows)


def _interval(name, values):
    """The first of some values, and the 95 % interval of the others; no interpolation, as they may be infinite."""
    if len(values) == 1:
        return {name: values[0], f"{name}_low": np.nan, f"{name}_high": np.nan}
    low, high = (np.quantile(values[1:], q, method=how) for q, how in ((0.025, "lower"), (0.975, "higher")))
    return {name: values[0], f"{name}_low": low, f"{name}_high": high}


# -- Figure


def figure(made: dict):
    """Loss against parameters (with the most tokens), tokens and training FLOP: runs, frontiers and their intervals."""
    foot = [
        "Markers: runs with the most tokens (left), the lowest loss at each number of tokens (middle), runs that no "
        "cheaper run beats (right); faint: the others; hollow: the held-out run. Lines: lowest loss by a family's law "
        "at the best of the trained sizes, with 95 % intervals; through the runs where no law fits. FLOP are those of "
        "the matrix products, forward and backward; n-gram models have none (dotted line: their lowest loss)."
    ]
    with style.new_figure(11.4, 4.1, columns=3, foot=foot, sharey=True) as (drawn, axes):
        losses = np.concatenate([found["runs"]["loss"] for found in made.values()])
        for ax, along in zip(axes[0], COLUMN, strict=True):
            drawn_here = {family: found for family, found in made.items() if (family, along) != ("ngram", "C")}
            for family, found in drawn_here.items():
                _draw(ax, found, along, *LOOKS[family])
            x = np.concatenate([found["runs"][COLUMN[along]] for found in drawn_here.values()]).astype(float)
            style.log_axis(ax.xaxis, along, *style.spread(x, 0.04))
            ax.set(xlabel=style.WORDS[along])
        style.log_axis(axes[0, 0].yaxis, "loss", *style.spread(losses, 0.05))
        axes[0, 0].set(ylabel="validation loss, nats per byte", title="Parameters")
        axes[0, 1].set(title="Training tokens")
        axes[0, 2].set(title="Training compute")
        if "ngram" in made:
            axes[0, 2].axhline(made["ngram"]["runs"]["loss"].min(), ls=":", lw=1, color=LOOKS["ngram"][1], zorder=1)
        axes[0, 1].tick_params(labelleft=False)
        axes[0, 2].tick_params(labelleft=False)
        panels.legend(axes[0, 0], loc="lower left")
    return drawn


def _draw(ax, found, along, name, colour, marker):
    """The runs and the frontier of a family."""
    runs = found["runs"]
    held = runs["held_out"].astype(bool)
    x, fitted = runs[COLUMN[along]].astype(float), runs[~held]
    look = {"marker": marker, "ms": 4}
    lowest = fitted.sort_values(COLUMN[along], kind="stable")["loss"].cummin().reindex(fitted.index)
    chosen = {
        "N": fitted["tokens"] > 0.99 * fitted["tokens"].max(),
        "D": fitted["loss"] == fitted.groupby("tokens")["loss"].transform("min"),
        "C": fitted["loss"] == lowest,
    }[along]
    if along == "C":
        panels.points(ax, x[~held][~chosen], fitted["loss"][~chosen], colour, **look | {"ms": 2.6}, alpha=0.3)
    panels.points(ax, x[~held][chosen], fitted["loss"][chosen], colour, **look, label=name)
    if held.any() and (along != "N" or runs["tokens"][held].max() > 0.99 * runs["tokens"].max()):
        panels.points(ax, x[held], runs["loss"][held], colour, **look, mfc="white", mec=colour, mew=1.0)
    k, losses = found["frontier"][along]
    ends = percentiles(losses[1:], 0.95) if len(losses) > 1 else (None, None)
    panels.curve_with_band(ax, 2.0 ** (k / STEPS), losses[0], *ends, colour)


# -- Page


def page(made: dict, rates: dict[str, pandas.DataFrame], predictions: dict[str, dict], words: pandas.DataFrame) -> str:
    """Returns the README of this folder: every number of it is computed here.

    Args:
        made: from `analyse`.
        rates: frames of runs at other learning rates, by family.
        predictions: what the sweeps predicted of their held-out runs before they trained them, by family.
        words: perplexities per word of WikiText-2, from wikitext2.py.
    """
    runs = pandas.concat([found["runs"] for found in made.values()])
    laws = (
        (LOOKS[family][0], len(one["fit"].points), f"{one['runs']['loss'].min():.4f}", _law(one["fit"]))
        for family, one in made.items()
    )
    held = {family: one["fit"] for family, one in made.items() if one["fit"].held_out}
    return pages.page(
        f"""
        # Language models before Transformers, on the same axes

        Question: how does the loss fall with parameters, tokens and compute for n-gram, feed-forward and recurrent
        models, and at what scale does another family become better? Commands and design: `config.py`.

        ![Loss against parameters, tokens and compute for each family](history.png)

        ## Gain from doubling, and crossovers

        Small gain: the value from which doubling lowers the family's lowest loss by less than {SMALL} nats per byte.
        Overtaken: the value from which another family's lowest loss is lower, up to the end of the range that both
        have; "at most": already at the start of that range. Lowest losses are those of the family's law at the best
        of its trained sizes. For n-gram models, and where the law is refused or lacks fit with p < {MISFIT}, they are
        those of the runs. Along parameters, only the largest number of tokens counts.

        Brackets: 95 % intervals of the laws, without the noise of a run ("beyond": outside the runs). Frontiers
        through the runs have no interval and add nothing to the interval of a crossover. Every run reads its text
        once. The operations of counting n-grams are not comparable with the FLOP of training.
        """,
        crossovers(verdicts(made)),
        _error_at_the_end(made),
        "## Laws",
        pages.table("family | runs | lowest loss | E | alpha | beta | noise | lack of fit, p | status", laws),
        """
        L = E + A N^-alpha + B D^-beta. The parameters of an n-gram model are its stored probabilities and back-off
        weights, and grow with the tokens.

        ## Held-out runs
        """,
        *(f"{LOOKS[family][0]}:\n\n{grids.held_out(fit, predictions.get(family))}" for family, fit in held.items()),
        "## The learning rate, and the factor on the logits (`model.logit_scale`)",
        _rates(rates),
        *wikitext2(words),
        f"""
        {len(runs)} runs of {pages.span(runs["n_total"])} parameters and {pages.span(runs["tokens"])} bytes,
        {duration(runs["wall_seconds"].sum())} of wall time on one core each.
        """,
    )


def crossovers(found: pandas.DataFrame) -> str:
    """The table of `verdicts`, a row per family."""
    rows = []
    for family, part in found.groupby("family", sort=False):
        cells = {row.along: (_small_gain(row), _overtaken(row)) for row in part.itertuples()}
        cells = [cell for along in COLUMN for cell in cells.get(along, ("not comparable",) * 2)]
        rows.append((LOOKS[family][0], *cells))
    return pages.table("family | " + " | ".join(f"small gain, {x} | overtaken, {x}" for x in WORDS.values()), rows)


def wikitext2(words: pandas.DataFrame) -> list[str]:
    """The section on models of words, from the tables of wikitext2.py."""
    rows = [(f"n-gram, order {row.order:.0f}", row) for row in words[words["order"].notna()].itertuples()]
    longest = words[words["epochs"] >= 1].sort_values("epochs")
    rows += [(f"LSTM, {row.epochs:g} epochs at rate {row.rate:g}", row) for row in longest.itertuples()]
    return [
        f"""
        ## Words: WikiText-2

        Perplexity per word, with a vocabulary of {words["words"].iloc[0]:,} words (`wikitext2.py`): n-gram models with
        modified Kneser-Ney smoothing, and a small LSTM whose state is carried through the text. Its rate was the
        better of {" and ".join(f"{rate:g}" for rate in sorted(words["rate"].dropna().unique()))} after a quarter of an
        epoch. The last two rows are published results.
        """,
        pages.table(
            "model | N | valid | test",
            (*((name, count(row.N), f"{row.valid:.1f}", f"{row.test:.1f}") for name, row in rows), *PUBLISHED),
        ),
    ]


def _shown(along, value):
    return "beyond" if np.isinf(value) else (flop if along == "C" else count)(value)


def _small_gain(row):
    if np.isinf(row.small_gain):
        return f"more than {_shown(row.along, row.most / 2)}{_ends(row, 'small_gain')}"
    return _shown(row.along, row.small_gain) + _ends(row, "small_gain")


def _overtaken(row):
    if np.isinf(row.overtaken):
        return "no"
    value = "at most " * row.from_least + _shown(row.along, row.overtaken)
    return f"{value}{_ends(row, 'overtaken')} by {LOOKS[row.by][0]}"


def _ends(row, name):
    """The interval in brackets; none where there is none, it is a point, or nothing of it lies within the runs."""
    low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
    shown = np.isfinite(low) and low < high
    return f" [{_shown(row.along, low)}, {_shown(row.along, high)}]" if shown else ""


def _error_at_the_end(made):
    """What each law that is a frontier predicts of its held-out run, beside the measured loss."""
    ends = [
        f"{LOOKS[family][0]} {row['law_predicted']:.4f} (measured {row['loss']:.4f})"
        for family, one in made.items()
        if by_law(one["fit"], one["runs"])
        for row in one["fit"].held_out
    ]
    warning = "A crossover near the end of the range can come from such an error: compare the lowest losses below."
    return f"Loss of the held-out run by the law alone: {', '.join(ends)}.\n{warning}" if ends else ""


def _law(fit):
    """Columns E to status."""
    if fit.refused:
        return f"refused | | | | | {fit.status}: {'; '.join(fit.reasons)}"
    values = [pages.interval((fit.params[name], *fit.intervals[name]), ".3g") for name in LAW]
    p = f"{fit.lack_of_fit['p']:.2g}" if fit.lack_of_fit else ""
    return " | ".join([*values, f"{fit.noise_sd:.2%}", p, fit.status])


def _rates(rates):
    """A table: validation loss at each learning rate and factor, the lowest of each family in bold."""
    tried = sorted({rate for table in rates.values() for rate in table["learning_rate"]})
    rows = []
    for family, table in rates.items():
        for scale, part in table.groupby("config.model.logit_scale"):
            losses = part.set_index("learning_rate")["loss"]
            cells = [f"{losses[rate]:.4f}" if rate in losses.index else "" for rate in tried]
            cells = [f"**{cell}**" if cell == f"{table['loss'].min():.4f}" else cell for cell in cells]
            facts = count(part["n_total"].iloc[0]), count(part["tokens"].iloc[0]), f"{scale:g}"
            rows.append((LOOKS[family][0], *facts, *cells))
    return pages.table(f"family | N | D | factor | {' | '.join(f'2^{np.log2(rate):g}' for rate in tried)}", rows)


def claims(made: dict | None = None) -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md; None: of the committed records."""
    made = made or analyse(read()[0])
    rows = []
    for better, worse, along, source in CLAIMS:
        if (both := common(made, better, worse, along)) is None:
            continue
        x, a, b = both
        difference = a[:, -1] - b[:, -1]
        low, high = percentiles(difference[1:], 0.95) if len(difference) > 1 else (-np.inf, np.inf)
        interval = f"[{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else "(no interval: a law does not fit)"
        ours = f"{difference[0]:+.3f} {interval} nats per byte at {_shown(along, x[-1])} {WORDS[along]}"
        claim = f"{LOOKS[better][0]}: lower loss than {LOOKS[worse][0]} at equal {WORDS[along]}, in one epoch"
        rows.append((claim, source, "yes", ours, pages.verdict(high < 0, low > 0)))
    return rows


def read() -> tuple[dict, dict, dict, pandas.DataFrame]:
    """Returns tables of runs and of learning rates by family, predictions by family and perplexities of words, of the
    committed records."""

    def known(suffix, reader):
        return {family: reader(path) for family in LOOKS if (path := HERE / f"{family}.{suffix}").exists()}

    tables, rates = (known(suffix, lambda path: records.read(path)[0]) for suffix in ("parquet", "rates.parquet"))
    words = pandas.concat(pandas.read_csv(HERE / name) for name in ("wikitext2.csv", "wikitext2_lstm.csv"))
    return tables, rates, known("prediction.json", run_record.read_json), words


if __name__ == "__main__":
    if parent := pages.workdir():
        ladders = {family: parent / family for family in LOOKS}
        pages.pack(HERE, ladders | {f"{of}.rates": parent / f"{of}-rates" for of in LOOKS}, predictions=True)
    runs_of, *rest = read()
    laws = analyse(runs_of)
    for of, law in laws.items():
        law["fit"].save(HERE / f"{of}.fit.json")
    pages.write(HERE, page(laws, *rest), history=figure(laws))

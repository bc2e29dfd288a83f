"""Sets the laws of the three architectures side by side, and scores the same held-out bytes with all their models.

Command:  python experiments/three_architectures/collect.py runs     (the parent of the workdirs named in config.py and
                                                                      of runs/chinchilla)
          python experiments/three_architectures/collect.py          (analyses the committed records again)
Writes:   FAMILY.parquet, FAMILY.rates.parquet, FAMILY.prediction.json (encoder, encoder_decoder), spans.csv,
          summary.png and README.md; the decoders are those of experiments/chinchilla.
"""

import pathlib

import numpy as np
import pandas

from lmjax import run_record, trained
from lmjax.config import run_file
from lmjax.evals import documents
from lmjax.evals.score import score
from lmjax.format import count, flop
from lmjax.scaling.figures import panels, style
from lmjax.sweeps import records

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
CONFIG = run_file(HERE / "config.py", "experiment")
grids = run_file(HERE.parent / "chinchilla" / "collect.py", "experiment")
FOLDERS = {"decoder": "chinchilla", "encoder": "three-encoder", "encoder_decoder": "three-encoder_decoder"}
COLOURS = {"decoder": "#4477aa", "encoder": "#228833", "encoder_decoder": "#cc3311"}
SPANS, LENGTH, LEFT, RIGHT = 2000, 3, 64, 32  # spans, their bytes, and the bytes before and after that a model may see
COLUMNS = ["run_id", "family", "bits", "standard_error"]
PLATEAU = 0.02  # nats: a run closer to its bigram loss than this, or above it, is on a plateau


def held_out_spans(model) -> list[tuple[str, str, str]]:
    """Returns (bytes before, span, bytes after) from validation documents, ASCII, always the same."""
    rng, found = np.random.Generator(np.random.Philox(key=[0, 0])), []
    texts = [bytes(document.ids.astype(np.uint8)) for document in documents.own(model) if document.bytes > LEFT + RIGHT]
    while len(found) < SPANS:
        text = texts[rng.integers(len(texts))]
        at = int(rng.integers(LEFT, len(text) - RIGHT - LENGTH + 1))
        window = text[at - LEFT : at + LENGTH + RIGHT]
        if window.isascii():
            whole = window.decode()
            found.append((whole[:LEFT], whole[LEFT : LEFT + LENGTH], whole[LEFT + LENGTH :]))
    return found


def score_spans(parent: pathlib.Path, known: pandas.DataFrame) -> pandas.DataFrame:
    """Returns bits per byte of the spans for every finished run of seed 0: run_id, family, bits, standard_error.

    Runs in `known`, a frame of the same columns, are not scored again: their checkpoints may be gone.
    """
    rows, spans = [], None
    for family, folder in FOLDERS.items():
        for run_dir in run_record.find_runs(parent / folder):
            record = run_record.read_record(run_dir)
            if record["config"]["train"]["seed"] or record["run_id"] in set(known["run_id"]):
                continue
            if run_record.status_of(run_dir)["status"] != "done":
                continue
            model = trained.load(run_dir)
            spans = spans or held_out_spans(model)
            # a decoder sees the left only
            asked = [pair[:2] for pair in spans] if family == "decoder" else spans
            found = score(model, asked, batch_size=128, unconditional=False)
            bits = np.array([-one.log_prob / one.bytes for one in found]) / np.log(2)
            error = bits.std(ddof=1) / np.sqrt(len(bits))
            facts = {"run_id": model.record["run_id"], "family": family, "bits": bits.mean()}
            rows.append({**facts, "standard_error": error})
    return pandas.concat([known, pandas.DataFrame(rows, columns=known.columns)]).sort_values(["family", "run_id"])


def on_plateau(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Returns the runs that have not left their plateau: not below the bigram loss, or their source not used."""
    stuck = runs["loss"] > runs["reference_bigram"] - PLATEAU
    if "source_gain" in runs and runs["source_gain"].notna().any():
        stuck |= runs["source_gain"] < PLATEAU
    return runs[stuck]


def analyse() -> dict:
    """Returns {family: analysis of its records, as experiments/chinchilla/collect.py makes it}."""
    read = {family: records.read(HERE / f"{family}.parquet") for family in FOLDERS if family != "decoder"}
    return {family: grids.analyse(*table) for family, table in ({"decoder": decoders()} | read).items()}


def decoders() -> tuple[pandas.DataFrame, dict]:
    """Returns the decoders of experiments/chinchilla with the budgets that the other architectures have; of the next
    budget, the one with the width of the held-out encoder, held out here too."""
    runs, metrics = records.read(HERE.parent / "chinchilla" / "records.parquet")
    budget, width = CONFIG.HELD_OUT["encoder"]
    held = (runs["flops_exact"] / budget - 1).abs().lt(0.02) & runs["config.model.d_model"].eq(width)
    return runs.assign(held_out=held)[(runs["flops_exact"] < budget / 2) | held], metrics


def figure(made: dict, spans: pandas.DataFrame):
    """Optimal size against compute; tokens per parameter there; bits per byte of the same spans against compute."""
    foot = [
        "Points: minimum of each budget (approach 2); lines and bands: the fitted law (approach 3) with its 95 % "
        f"interval. Right: bits per byte of the same {SPANS} held-out spans of {LENGTH} bytes, runs of seed 0; the "
        f"line joins the lowest. A decoder sees {LEFT} bytes before the span. An encoder-decoder (infilling) and an "
        "encoder see both sides, within their rows of 16 and 32 bytes; an encoder's pseudo-likelihood of a byte sees "
        "the other bytes of the span too, which makes it lower than a probability of the span would be."
    ]
    with style.new_figure(11.4, 3.9, columns=3, foot=foot) as (drawn, grid):
        left, middle, right = grid[0]
        for family, found in made.items():
            colour, runs, fit = COLOURS[family], found["runs"], found["fit"]
            if not fit.refused:
                best = fit.allocate(np.geomspace(fit.flop_6nd.min(), fit.flop_6nd.max(), 60))
                counted = grids.exact_flop(runs, best["N"], best["D"])
                for ax, name in ((left, "N"), (middle, "tokens_per_param")):
                    values = best[name], best[f"{name}_low"], best[f"{name}_high"]
                    panels.curve_with_band(ax, counted, *values, colour, label=_plain(family))
            for o in found["isoflop"].optima:
                if not o.reason:
                    left.plot([o.C] * 2, [o.N_low, o.N_high], "-", color=colour, lw=1.2)
                    panels.points(left, o.C, o.N, colour, ms=5)
                    panels.points(middle, o.C, o.D / o.N, colour, ms=5)
            scored = runs.merge(spans, on="run_id").sort_values("flops_exact")
            panels.points(right, scored["flops_exact"], scored["bits"], colour, ms=3, alpha=0.6)
            lowest = scored.groupby(np.log10(scored["flops_exact"]).round(1))[["flops_exact", "bits"]].min()
            right.plot(lowest["flops_exact"], lowest["bits"], "-", color=colour, lw=1.4, label=_plain(family))
        for ax, ylabel, title in (
            (left, "N*, parameters", "Optimal size"),
            (middle, "D* / N*, bytes per parameter", "Optimal bytes per parameter"),
            (right, "bits per byte", "The same held-out spans"),
        ):
            ax.set(xlabel=style.WORDS["C"], ylabel=ylabel, title=title, xscale="log")
            panels.legend(ax)
        for ax in (left, middle):
            ax.set_yscale("log")
            style.log_axis(ax.yaxis, "N", *ax.get_ylim())
    return drawn


def page(made: dict, spans: pandas.DataFrame) -> str:
    """Returns the README of this folder."""
    return pages.page(
        """
        # Scaling laws of the three architectures on the same text

        Question: do encoders, decoders and encoder-decoders split compute alike between parameters and tokens, and
        which one predicts the same held-out bytes best? Commands and design: `config.py`.

        ![Optimal size, bytes per parameter, bits per byte of the same spans](summary.png)
        """,
        laws_table(made),
        """
        Losses are of each objective's own predicted tokens, so E is not comparable between families. Lack of fit: a
        test for residuals that are larger than the noise of seeds.
        """,
        budgets_table(made, spans),
        "## The learning rate",
        "\n".join(rates_line(family) for family in made if family != "decoder"),
        "## Runs on a plateau",
        "\n".join(
            f"- {_plain(family)}: "
            + (", ".join(f"{count(r.n_total)} at {flop(r.flops_exact)}" for r in stuck.itertuples()) or "none")
            for family, stuck in ((family, on_plateau(found["runs"])) for family, found in made.items())
        ),
        f"""
        A run is on its plateau if its loss is not {PLATEAU} nats below the bigram loss of its text, or, for an
        encoder-decoder, if another row's source costs it less than {PLATEAU} nats. None is left out of the fits.

        ## Held-out runs
        """,
        *(block for family, found in made.items() for block in held_out(family, found)),
    )


def laws_table(made: dict) -> str:
    """The exponents and parameters of each family."""
    rows = []
    for family, found in made.items():
        fit = found["fit"]
        exponents = (pages.interval(grids.exponent(found[key]), ".3f") for key in ("isoflop", "fit"))
        noise = "" if fit.refused else f"{100 * fit.noise_sd:.2f} %"
        lack = f"p = {fit.lack_of_fit['p']:.2g}" if fit.lack_of_fit else ""
        parameters = (_parameter(fit, name) for name in ("E", "alpha", "beta"))
        rows.append((_plain(family), *exponents, *parameters, noise, lack, fit.status))
    head = "family | a, approach 2 (95 %) | a, approach 3 (95 %) | E | alpha | beta | noise | lack of fit | status"
    return pages.table(head, rows)


def budgets_table(made: dict, spans: pandas.DataFrame) -> str:
    """The minimum of each budget, and the lowest bits per byte of the spans there."""
    rows = []
    for family, found in made.items():
        scored = found["runs"].merge(spans, on="run_id")
        for o in found["isoflop"].optima:
            near = scored[abs(np.log(scored["flops_exact"] / o.C)) < grids.BUDGET_TOLERANCE]
            best = near.loc[near["bits"].idxmin()] if len(near) else None
            bits = "" if best is None else f"{best['bits']:.3f} (standard error {best['standard_error']:.3f})"
            split = count(o.N), f"{o.D / o.N:.1f}", f"{o.loss:.4f}"
            split = ("none inside the sizes", "", "") if o.reason else split
            rows.append((_plain(family), flop(o.C), *split, bits))
    head = "family | budget, FLOP | N* | D* / N* | lowest loss | lowest bits per byte of the spans"
    return pages.table(head, rows)


def rates_line(family: str) -> str:
    """The losses of a family by learning rate."""
    rates = records.read(HERE / f"{family}.rates.parquet")[0].sort_values("learning_rate")
    losses = zip(np.log2(rates["learning_rate"]), rates["loss"], strict=True)
    which = f"{count(rates['n_total'].iloc[0])} parameters, {count(rates['tokens'].iloc[0])} bytes"
    return f"- {_plain(family)}, {which}: {', '.join(f'{loss:.4f} at 2^{rate:g}' for rate, loss in losses)}"


def held_out(family: str, found: dict) -> list[str]:
    """The held-out runs of a family."""
    early = HERE / f"{family}.prediction.json"
    prediction = run_record.read_json(early) if early.exists() else None
    return [f"{_plain(family)}:", grids.held_out(found["fit"], prediction)]


def _parameter(fit, name):
    if fit.refused:
        return "refused"
    return f"{fit.params[name]:.3g} ({', '.join(f'{end:.3g}' for end in fit.intervals[name])})"


def _plain(family):
    return family.replace("_", "-")


def claims() -> list[tuple[str, ...]]:
    """Returns the rows of this experiment in the table of experiments/README.md."""
    found = {family: one["isoflop"] for family, one in analyse().items() if family != "decoder"}
    return [
        (f"{_plain(family)}s, approach 2: a of N* ~ C^a", "none known on text", "")
        + (pages.interval(grids.exponent(one), ".3f"), "measured")
        for family, one in found.items()
    ]


if __name__ == "__main__":
    if parent := pages.workdir():
        workdirs = {family: parent / folder for family, folder in FOLDERS.items() if family != "decoder"}
        rates = {f"{family}.rates": path.with_name(f"{path.name}-rates") for family, path in workdirs.items()}
        pages.pack(HERE, workdirs | rates, predictions=True)
        path = HERE / "spans.csv"
        known = pandas.read_csv(path) if path.exists() else pandas.DataFrame(columns=COLUMNS)
        score_spans(parent, known).round(6).to_csv(path, index=False)
    laws, scored_spans = analyse(), pandas.read_csv(HERE / "spans.csv")
    pages.write(HERE, page(laws, scored_spans), summary=figure(laws, scored_spans))

"""Collects finished quickstart sweeps and writes README.md with their laws, predictions and reference losses.

Question: does a law fitted to 12 small models predict two larger runs that were not yet trained?
Command:  lmjax sweep configs/quickstart.py && python experiments/quickstart/collect.py runs/quickstart decoder
          (and :encoder with runs/quickstart-encoder encoder, :encoder_decoder with
          runs/quickstart-encoder_decoder encoder_decoder); `lmjax report DIR` redraws the figures
Writes:   FAMILY/{runs.csv,fit.json,prediction.json,figures/*.png}, and README.md from all three folders.
"""

import pathlib
import shutil
import sys

import pandas

from lmjax import run_record, scaling
from lmjax.config import run_file
from lmjax.format import count

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
FAMILIES = ("decoder", "encoder", "encoder_decoder")
KEPT = ("runs.csv", "fit.json", "prediction.json")
# user + sys of `time lmjax sweep ...` on cores shared with other programs, which makes them high
CPU_SECONDS = {"decoder": 706, "encoder": 835, "encoder_decoder": 979}


def collect(workdir: pathlib.Path, family: str) -> pathlib.Path:
    """Copies what is kept of a finished quickstart: the table, the fit, the prediction made beforehand, the figures.

    Args:
        workdir: the sweep's directory, e.g. runs/quickstart.
        family: decoder | encoder | encoder_decoder; the folder the results go to.
    """
    out = HERE / family
    shutil.rmtree(out / "figures", ignore_errors=True)
    (out / "figures").mkdir(parents=True)
    for name in KEPT:
        if (workdir / name).exists():
            shutil.copyfile(workdir / name, out / name)
        else:  # a refused law predicts nothing
            (out / name).unlink(missing_ok=True)
    for figure in sorted((workdir / "figures").glob("*.png")):
        shutil.copyfile(figure, out / "figures" / figure.name)
    return out


def readme() -> str:
    """Returns README.md from the three folders."""
    fits = {family: scaling.load(HERE / family / "fit.json") for family in FAMILIES}
    runs = {family: pandas.read_csv(HERE / family / "runs.csv") for family in FAMILIES}
    laws = (
        (family, fit.status, *(_interval(fit, name) for name in ("E", "alpha", "beta")))
        + (f"{100 * fit.noise_sd:.2f} %", CPU_SECONDS[family])
        for family, fit in fits.items()
    )
    return pages.page(
        """
        # Quickstart: a law from twelve small models, and two larger runs predicted

        Question: does a law fitted to 12 small models predict two larger runs that were not yet trained?

            lmjax sweep configs/quickstart.py        (also :encoder and :encoder_decoder)
            python experiments/quickstart/collect.py runs/quickstart decoder
        """,
        pages.table("family | status | E | alpha | beta | noise | CPU seconds", laws),
        """
        Intervals: 95 %. Machine: 2 CPU cores (AMD EPYC), shared with other programs, 2026-11-22.

        ## Held-out runs, predicted before they were trained

        Predictions were made before the runs were trained (`prediction.json`): averaged over laws, which the figures
        show, and by the law alone.
        """,
        pages.table(
            "family | N | D | measured | predicted (95 %) | error | law alone (95 %) | error",
            (row for family, table in runs.items() for row in held_out(family, table)),
        ),
        """
        ## Reference losses

        Unigram and bigram losses of the same predicted tokens; the number of runs below the bigram; the range of
        `source_gain` (loss with another row's source minus loss with the row's own) of the encoder-decoders.
        """,
        pages.table(
            "family | unigram | bigram | worst run | best run | below the bigram | source gain",
            (references(family, table) for family, table in runs.items()),
        ),
        (HERE / "recipes.md").read_text("utf8"),
    )


def held_out(family: str, table: pandas.DataFrame) -> list[tuple[str, ...]]:
    """The rows of a family's held-out runs; one that says so if its law was refused."""
    if not (HERE / family / "prediction.json").exists():
        return [(family, "", "", "the law was refused", "", "", "", "")]
    record, rows = run_record.read_json(HERE / family / "prediction.json"), []
    for row in (row for law in record.get("groups", [record]) for row in law["held_out"]):
        measured, cells = float(table.set_index("run_id").loc[row["run"], "loss"]), []
        for by in ("", "law_"):
            value = row[f"{by}predicted"]
            cells += [
                pages.interval((value, row[f"{by}low"], row[f"{by}high"]), ".4f", words=True),
                f"{value / measured - 1:+.1%}",
            ]
        rows.append((family, count(row["N"]), count(row["D"]), f"{measured:.4f}", *cells))
    return rows


def references(family: str, table: pandas.DataFrame) -> tuple[str, ...]:
    """The row of a family's reference losses."""
    gain, below = table["source_gain"].dropna(), (table["passed_reference"] == "bigram").sum()
    losses = *table[["reference_unigram", "reference_bigram"]].mean(), table["loss"].max(), table["loss"].min()
    words = pages.span(gain, ".2f") if len(gain) else ""
    return family, *(f"{loss:.3f}" for loss in losses), f"{below} of {len(table)}", words


def _interval(fit, name):
    ends = fit.intervals.get(name, (float("nan"),) * 2)
    return pages.interval((fit.params[name], *ends), ".3g", words=True) if name in fit.params else ""


if __name__ == "__main__":
    print(collect(pathlib.Path(sys.argv[1]), sys.argv[2]))
    pages.write(HERE, readme())

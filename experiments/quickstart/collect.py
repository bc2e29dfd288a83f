"""Collects finished quickstart sweeps and writes README.md with their laws, predictions and reference losses.

Question: does a law fitted to 12 small models predict two larger runs that were not yet trained?
Command:  lmjax sweep configs/quickstart.py && python experiments/quickstart/collect.py runs/quickstart decoder
          (and :encoder with runs/quickstart-encoder encoder, :encoder_decoder with
          runs/quickstart-encoder_decoder encoder_decoder); `lmjax report DIR` redraws the figures
Writes:   FAMILY/{runs.csv,fit.json,prediction.json,figures/*.png}, and README.md from all three folders.
"""

import json
import pathlib
import shutil
import sys

import pandas

from lmjax import scaling
from lmjax.format import count

HERE = pathlib.Path(__file__).resolve().parent
FAMILIES = ("decoder", "encoder", "encoder_decoder")
KEPT = ("runs.csv", "fit.json", "prediction.json")
# user + sys of `time lmjax sweep ...` on cores shared with other programs, which makes them high
CPU_SECONDS = {"decoder": 706, "encoder": 835, "encoder_decoder": 979}

RECIPES = """\
## How the recipes were chosen

Validation loss in nats, seed 0 unless several are given, width 64, two layers, on the quickstart's text; measured on
65,536 validation tokens, so these numbers are not comparable to the tables above.

**Initial values** (0.25M tokens, the better of two learning rates, rows of 64):

| token and position vectors at the start | decoder | encoder (15 % masked) |
|---|---|---|
| std 0.02 | 2.189 | 2.532 |
| GPT-2: std 0.02 for all matrices | 2.135 | 2.791 |
| std 1, logits divided by sqrt(width) (first loss 7.1) | 2.040 | 2.090 |
| std 0.02 and a norm behind the embedding | 2.082 | 2.079 |
| std 0.02, times 8 | 2.035 | 2.206 |
| std 0.02, times 50 | 2.115 | 2.150 |

With the factor and the learning rate tuned together (encoder: 4.6e-3, seeds 0, 1, 2; decoder: 6e-3):

| factor (`model.embedding_scale`) | decoder 0.25M | encoder 0.25M | encoder 0.75M (seeds 0, 1) |
|---|---|---|---|
| 8 | 2.051 | 2.346 2.272 2.233 | 1.717 1.704 |
| **16** | 2.058 | 1.993 2.082 1.970 | 1.657 1.651 |
| 32 | 2.128 | 2.019 2.001 2.102 | 1.688 1.657 |

The factor and the table's standard deviation are independent of width; the first loss stays within 0.1 nats of ln V.
With tied embeddings a token's own logit starts near 0.008 x width: 0.5 at width 64, 8 at width 1024.

**Learning rate** under muP with base width 256, width 32, 0.5M tokens, seeds 0 and 1:

| log2 rate | -8 | -9 | -10 | -11 | -12 |
|---|---|---|---|---|---|
| decoder | 1.934 1.945 | **1.873 1.899** | 1.895 1.897 | | |
| encoder | | 1.971 1.988 | **1.955 1.903** | 1.990 1.959 | |
| encoder-decoder | | | 1.514 1.526 | **1.461 1.507** | 1.507 1.507 |

The measurements above and below are older: one rate per width, under the standard parametrization.

**Masked model**: width 16 (heads of width 4) ends between unigram and bigram at every learning rate, factor and mask
rate tried: 2.95 to 3.00 at 0.25M tokens, 2.89 to 2.93 at 0.75M; width 24 at 2.74. Width 32, 0.25M tokens, 30 % masked:
rows of 64 2.391, rows of 32 (twice the steps) 2.079.

**Grid of the encoder**, with one rate per width under the standard parametrization: its loss fell faster than a power
law with a floor, so E was at its bound, and a grid with more tokens did not mend it:

| widths | tokens | status | E | noise | errors of the two held-out runs |
|---|---|---|---|---|---|
| **32 to 96** | 0.25M, 0.6M, 1.5M | at_bound | 0 | 0.89 % | -2.1 %, +1.9 % |
| 32 to 96 | 0.25M, 0.75M, 2.25M | at_bound | 0 | | not trained |
| 24 to 64 | 0.5M, 1.5M, 4.5M | converged | 1.25 (0 to 1.49) | 1.69 % | +4.9 %, +7.0 % (outside its interval) |

**Encoder-decoder**: loss with another row's source minus loss with the row's own (`source_gain`), width 64:

| rows | removed | positions | tokens | loss | source gain |
|---|---|---|---|---|---|
| 64 x 8 | 15 %, one span of 10 | relative | 0.75M | 2.016 | -0.002 |
| 64 x 8 | 30 %, spans of 10 | rotary | 0.75M | 2.192 | 0.004 |
| 64 x 8 | 50 %, spans of 4 | rotary | 1.5M | 2.299 | 0.012 |
| 32 x 16 | 15 %, one span of 5 | rotary | 1.5M | 1.644 | 0.051 |
| 32 x 8 | 15 %, one span of 5 | learned | 0.5M | 1.759 | 0.009 |
| 16 x 32 | 18 %, one span of 3 | rotary | 0.52M | 1.411 | 0.345 |
| **16 x 16** | 18 %, one span of 3 | rotary | 0.4M | 1.395 | 0.497 |

Short rows have more spans per token of text, so more first letters that only the source determines; with one span per
row there is one sentinel to find. Initialising the keys of cross-attention equal to its queries (arXiv 2305.09828)
gained less than shorter rows (0.026 against 0.021 nats at 0.45M and 0.7M tokens on rows of 32) and is not used.
"""


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
    lines = [
        "# Quickstart: a law from twelve small models, and two larger runs predicted",
        "",
        "Question: does a law fitted to 12 small models predict two larger runs that were not yet trained?",
        "",
        "    lmjax sweep configs/quickstart.py        (also :encoder and :encoder_decoder)",
        "    python experiments/quickstart/collect.py runs/quickstart decoder",
        "",
        "| family | status | E | alpha | beta | noise | CPU seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, fit in fits.items():
        cells = [_interval(fit, name) for name in ("E", "alpha", "beta")]
        seconds = CPU_SECONDS.get(family, "")
        lines.append(f"| {family} | {fit.status} | {' | '.join(cells)} | {100 * fit.noise_sd:.2f} % | {seconds} |")
    lines += [
        "",
        "Intervals: 95 %. Machine: 2 CPU cores (AMD EPYC), shared with other programs, 2026-11-22.",
        "",
        "## Held-out runs, predicted before they were trained",
        "",
        "Predictions were made before the runs were trained (`prediction.json`): averaged over laws, which the figures",
        "show, and by the law alone.",
        "",
        "| family | N | D | measured | predicted (95 %) | error | law alone (95 %) | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        path = HERE / family / "prediction.json"
        if not path.exists():
            lines.append(f"| {family} | | | the law was refused | | | | |")
            continue
        record = json.loads(path.read_text())
        for law in record.get("groups", [record]):
            for row in law["held_out"]:
                measured = float(runs[family].set_index("run_id").loc[row["run"], "loss"])
                found = [
                    f"{row[f'{by}predicted']:.4f} ({row[f'{by}low']:.4f} to {row[f'{by}high']:.4f}) "
                    f"| {row[f'{by}predicted'] / measured - 1:+.1%}"
                    for by in ("", "law_")
                ]
                what = f"{count(row['N'])} | {count(row['D'])} | {measured:.4f}"
                lines.append(f"| {family} | {what} | {' | '.join(found)} |")
    lines += [
        "",
        "## Reference losses",
        "",
        "Unigram and bigram losses of the same predicted tokens; the number of runs below the bigram; the range of",
        "`source_gain` (loss with another row's source minus loss with the row's own) of the encoder-decoders.",
        "",
        "| family | unigram | bigram | worst run | best run | below the bigram | source gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for family, table in runs.items():
        gain = table["source_gain"].dropna()
        words = f"{gain.min():.2f} to {gain.max():.2f}" if len(gain) else ""
        lines.append(
            f"| {family} | {table['reference_unigram'].mean():.3f} | {table['reference_bigram'].mean():.3f} "
            f"| {table['loss'].max():.3f} | {table['loss'].min():.3f} "
            f"| {(table['passed_reference'] == 'bigram').sum()} of {len(table)} | {words} |"
        )
    return "\n".join(lines) + "\n\n" + RECIPES


def _interval(fit, name):
    if name not in fit.params:
        return ""
    low, high = fit.intervals.get(name, (float("nan"),) * 2)
    return f"{fit.params[name]:.3g} ({low:.3g} to {high:.3g})"


if __name__ == "__main__":
    print(collect(pathlib.Path(sys.argv[1]), sys.argv[2]))
    (HERE / "README.md").write_text(readme())

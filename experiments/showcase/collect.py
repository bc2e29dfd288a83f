"""Writes the showcase page from its three finished runs: curves, samples, fillings, few-shot table, parity.

Question: what can each architecture do after twenty minutes, and does transformers compute the same losses?
Command:  python experiments/showcase/collect.py runs      (the workdir of the three trainings; needs the extras
          plot and hf, and torch for the comparison with transformers)
Writes:   README.md, learning_curves.png, evaluations.csv and <family>/{config,summary}.json, metrics.jsonl beside this
          file. Every number in the README is computed here and put into page.md.
"""

import math
import pathlib
import shutil
import tempfile

import numpy as np

from lmjax import generate, hf, run_record, trained
from lmjax.config import run_file
from lmjax.data import pipeline
from lmjax.decoding.settings import Settings
from lmjax.evals import run as evaluation
from lmjax.sharding import make_mesh
from lmjax.validation import Validation

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
FAMILIES = ("decoder", "encoder", "encoder_decoder")
SHOTS = (0, 1, 4)
ITEMS = 100
PROMPTS = ("ROMEO. ", "And the LORD said unto Moses, ", "Enter the KING and ")
METHODS = {
    "greedy": Settings(max_new_tokens=60),
    "greedy, repetition penalty 1.3": Settings(max_new_tokens=60, repetition_penalty=1.3),
    "temperature 0.8": Settings(method="sample", temperature=0.8, max_new_tokens=60),
    "top-k 40": Settings(method="sample", top_k=40, max_new_tokens=60),
    "top-p 0.9": Settings(method="sample", top_p=0.9, max_new_tokens=60),
    "min-p 0.1": Settings(method="sample", min_p=0.1, max_new_tokens=60),
    "beam, 4 beams": Settings(method="beam", num_beams=4, max_new_tokens=60),
}
MASKED = (
    "And the <mask> said unto Moses, Go in unto Pharaoh.",
    "What light through yonder <mask> breaks?",
    "In the beginning God created the <mask> and the earth.",
    "My lord, the <mask> is come to speak with you.",
)
GAPS = (
    "And God said, Let there be <extra_id_0>: and there was <extra_id_1>.",
    "O Romeo, Romeo, wherefore art <extra_id_0> Romeo?",
    "And it came to <extra_id_0> in those days, that he went out into a <extra_id_1> to pray.",
)


def find(workdir: pathlib.Path, family: str) -> pathlib.Path:
    """Returns the finished showcase run of a family."""
    name = f"showcase-{family.replace('_', '-')}-"
    known = [path for path in run_record.find_runs(workdir) if path.name.startswith(name)]
    (run_dir,) = [p for p in known if run_record.read_json(p / "config.json")["derived"]["family"] == family]
    return run_dir


def keep(run_dir: pathlib.Path, family: str) -> dict:
    """Copies the small files of a run beside this script; returns its summary."""
    (HERE / family).mkdir(exist_ok=True)
    for name in ("config.json", "summary.json", "metrics.jsonl"):
        shutil.copyfile(run_dir / name, HERE / family / name)
    return run_record.read_json(run_dir / "summary.json")


def figure():
    """Draws training and validation loss against tokens, one panel per family, since losses are not comparable."""
    from matplotlib.figure import Figure

    nats = {"decoder": "token", "encoder": "masked token", "encoder_decoder": "target token"}
    drawing = Figure(figsize=(9.6, 3.0), layout="constrained")
    for axes, family in zip(drawing.subplots(1, 3), FAMILIES, strict=True):
        lines = run_record.read_metrics(HERE / family / "metrics.jsonl")
        held_out = [line for line in lines if "validation_loss" in line]
        look = {"color": "#56b4e9", "lw": 0.9, "label": "training"}
        axes.plot([line["tokens"] for line in lines], [line["loss"] for line in lines], **look)
        look = {"color": "#d55e00", "ms": 3, "lw": 1.2, "label": "validation"}
        axes.plot([line["tokens"] for line in held_out], [line["validation_loss"] for line in held_out], "o-", **look)
        title = family.replace("_", "-")
        axes.set(xscale="log", xlabel="source tokens", ylabel=f"nats per {nats[family]}", title=title)
        axes.grid(color="#e4e4e4", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return drawing


def nats_in_transformers(folder: pathlib.Path, family: str, rows: dict[str, np.ndarray]) -> tuple[float, float]:
    """Returns (sum of weighted nats, sum of weights) from transformers on validation rows, in float32."""
    import torch
    import transformers

    kind = "AutoModelForSeq2SeqLM" if family == "encoder_decoder" else "AutoModelForCausalLM"
    model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True).eval()
    total, weight = 0.0, 0.0
    for start in range(0, len(rows["inputs"]), 16):
        batch = {name: torch.from_numpy(np.asarray(x[start : start + 16])) for name, x in rows.items()}
        side = "encoder_" if family == "encoder_decoder" else ""
        arguments = {"input_ids": batch[f"{side}inputs"].long()}
        if f"{side}segment_ids" in batch:
            arguments["attention_mask"] = (batch[f"{side}segment_ids"] > 0).long()
        if side:
            arguments["decoder_input_ids"] = batch["inputs"].long()
        with torch.no_grad():
            log_probs = model(**arguments).logits.log_softmax(-1)
        nats = -log_probs.gather(-1, batch["targets"].long()[..., None])[..., 0]
        total += float((nats * batch["weights"]).double().sum())
        weight += float(batch["weights"].double().sum())
    return total, weight


def parity(run_dir: pathlib.Path, family: str) -> dict:
    """Exports the run, loads it in transformers and compares the validation loss on the same rows."""
    run = trained.load(run_dir)
    data = pipeline.prepare(run.config)
    import jax

    mesh = make_mesh(run.config.mesh, jax.devices()[:1])
    held_out = Validation(data, run.objective, run.config, run.model, mesh)
    ours = held_out.evaluate(run.params)["loss"]
    held_out_rows = pipeline.evaluation_rows(data, run.objective, run.config)
    batch = held_out_rows.rows(range(held_out_rows.count))
    with tempfile.TemporaryDirectory() as folder:
        facts = hf.export_run(run_dir, pathlib.Path(folder) / "exported")
        nats, weight = nats_in_transformers(pathlib.Path(folder) / "exported", family, batch)
    theirs = nats / weight
    found = {"leaves_as": facts["architecture"], "lmjax": ours, "transformers": theirs}
    return {**found, "relative_difference": abs(theirs / ours - 1), "tokens": weight}


def quoted(text: str) -> str:
    """Returns a text as a Markdown quotation, line by line."""
    return "\n".join("> " + line.replace("<", "&lt;") + "  " for line in text.strip("\n").split("\n"))


def samples(run_dir: pathlib.Path) -> str:
    """Returns the decoder's continuations of PROMPTS by every method."""
    run = trained.load(run_dir)
    parts = []
    for name, settings in METHODS.items():
        parts.append(f"**{name}**\n")
        for prompt, (best, *_) in zip(PROMPTS, generate.generate(run, PROMPTS, settings), strict=True):
            parts.append(quoted(prompt + best.text) + "\n")
    return "\n".join(parts)


def fillings(run_dir: pathlib.Path) -> str:
    """Returns a table of the encoder's most probable tokens at each mask of MASKED."""
    rows = []
    for text, masks in zip(MASKED, generate.fill_masks(trained.load(run_dir), MASKED, top=5), strict=True):
        shown = "; ".join(", ".join(f"`{token}` {p:.2f}" for token, p in mask) for mask in masks)
        rows.append((text.replace("<mask>", "`<mask>`"), shown))
    return pages.table("text | most probable", rows)


def infillings(run_dir: pathlib.Path) -> str:
    """Returns a table of the encoder-decoder's spans for the gaps of GAPS."""
    run = trained.load(run_dir)
    found = [generate.infill(run, GAPS, s) for s in (Settings(), Settings(method="beam", num_beams=4))]
    rows = zip(GAPS, *([result[0].text for result in results] for results in found), strict=True)
    return pages.table("text | greedy | 4 beams", (map(_gaps, row) for row in rows))


def _gaps(text):
    return text.replace("<", "&lt;").replace("|", "&#124;").replace("\n", " / ")


def few_shot(workdir: pathlib.Path) -> str:
    """Evaluates all built-in tasks with SHOTS examples; returns a table of each task's headline metric, with errors."""
    made = evaluation.evaluate(workdir, ["all"], shots=SHOTS, limit=ITEMS, out=HERE / "evaluations.csv")
    made = made.drop(columns="run_dir")  # a path of this machine
    made.to_csv(HERE / "evaluations.csv", index=False)
    columns = [(family, k) for family in FAMILIES for k in SHOTS]
    table = []
    for task, rows in made[made["task"] != "perplexity"].groupby("task", sort=False):
        metric = next((name for name in evaluation.table.HEADLINES if name in set(rows["metric"])), "")
        rows = rows[rows["metric"].isin([metric, ""])]
        cells = []
        for family, k in columns:
            found = rows[(rows["family"] == family) & (rows["shots"] == k)]
            value, error = (found["value"].iloc[0], found["standard_error"].iloc[0]) if len(found) else (math.nan,) * 2
            cells.append("not defined" if math.isnan(value) else f"{value:.2f} ± {error:.2f}")
        chance = rows["chance"].dropna()
        known = f" {chance.iloc[0]:.2g}" if len(chance) else ""
        table.append(f"{task} | {metric} |{known} | {' | '.join(cells)}")
    names = " | ".join(f"{family.replace('_', '-')}, {k}-shot" for family, k in columns)
    return pages.table(f"task | metric | chance | {names}", table)


def tables(summaries: dict[str, dict], compared: dict[str, dict]) -> tuple[str, str]:
    """The table of results and the one of exported models, from the committed records."""
    results, exported = [], []
    for family, s in summaries.items():
        name, bits, c = family.replace("_", "-"), s["bits_per_byte"], compared[family]
        results.append(
            f"{name} | {s['n_total'] / 1e6:.2f}M | {s['tokens'] / 1e6:.1f}M | {s['loss']:.4f} | "
            f"{'not defined' if bits is None else f'{bits:.4f}'} | {s['wall_seconds'] / 60:.1f} min | {s['attempts']}"
        )
        losses = f"{c['lmjax']:.6f} | {c['transformers']:.6f} | {c['relative_difference']:.1e}"
        exported.append(f"{name} | {c['leaves_as']} | {losses}")
    return (
        pages.table("| N | D | validation loss | bits/byte | wall time | attempts", results),
        pages.table("| exported as | loss in lmjax | loss in transformers | relative difference", exported),
    )


def page(workdir: pathlib.Path) -> str:
    """Copies what is kept of the runs, evaluates them, and returns the README of this folder."""
    run_dirs = {family: find(workdir, family) for family in FAMILIES}
    summaries = {family: keep(run_dir, family) for family, run_dir in run_dirs.items()}
    compared = {family: parity(run_dir, family) for family, run_dir in run_dirs.items()}
    run_record.write_json(HERE / "parity.json", compared)
    results, exported = tables(summaries, compared)
    return (
        (HERE / "page.md")
        .read_text("utf8")
        .format(
            results=results,
            exported=exported,
            samples=samples(run_dirs["decoder"]),
            fillings=fillings(run_dirs["encoder"]),
            infillings=infillings(run_dirs["encoder_decoder"]),
            few_shot=few_shot(workdir),
            items=ITEMS,
        )
    )


if __name__ == "__main__":
    text = page(pages.workdir())
    figure().savefig(HERE / "learning_curves.png", dpi=150)
    pages.write(HERE, text)

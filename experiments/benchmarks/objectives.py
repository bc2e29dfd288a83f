"""Does every objective learn what its labels say?

One short training per objective, with a small model that fits it, on notes in which every label follows from the text:
sentences are lettered in order, each document has a hero, each marker its own ending.

    C: Ben sang but rain. D: Ben sang so snow. ...

Pairs and tables are the sources parallel and orders, in which each side or value follows from the others.

Reached is the accuracy in validation, chance the share of the most frequent label there. Without another head, they are
the loss of the LM head in nats per token, and that of a bigram model. How much an objective learns from real text is
another question.

Command:  python experiments/benchmarks/objectives.py [--names sentence_order ...] [--steps N]
Result:   2026-11-22 and 23, reached (chance). 300 steps, 12 to 46 CPU seconds on a busy machine: accuracy of
          capitalisation 0.99 (0.61), sentence_order 0.97 (0.57), sentence_deshuffling 0.45 (0.21), discourse_relation
          0.64 (0.15); loss of causal_lm 0.44 (1.51), prefix_lm 0.50 (1.51), fill_in_the_middle 0.61 (1.59),
          masked_lm:word 2.18 (2.66), masked_lm:span 2.53 (2.77), deshuffling 1.07 (1.56), bart 1.11 (1.56), ul2_decoder
          1.97 (2.19), masked_column 2.37 (3.20), translation 2.21 (2.34), multilingual_denoising 2.32 (2.54).
          1500 steps, 41 to 136 CPU seconds: accuracy of ir_relevance 0.64 (0.40), sentence_distance 0.55 (0.40),
          electra 0.97 (0.89); loss of masked_lm 0.24 (1.74), span_corruption 1.58 (2.41), translation_lm 1.59 (2.60),
          ul2 1.05 (2.21), permutation_lm 0.18 (1.54).
          4000 steps, 139 CPU seconds: next_sentence 0.96 (0.57), which is at chance after 1500.
"""

import argparse
import functools
import json
import pathlib
import random
import sys
import tempfile
import time

import jax
import numpy as np

from lmjax import config as configs
from lmjax import run_record, trained, trainer
from lmjax.data import pipeline
from lmjax.objectives.discourse_relation import MARKERS
from lmjax.process import use_compilation_cache
from lmjax.resolve import resolve

NAMES = ["capitalisation", "sentence_order", "sentence_deshuffling", "sentence_distance", "discourse_relation"]
NAMES += ["ir_relevance", "deshuffling", "masked_lm:word", "masked_lm:span", "fill_in_the_middle", "bart", "ul2"]
NAMES += ["ul2_decoder", "permutation_lm", "electra"]
NAMES += ["masked_column", "translation_lm", "translation", "multilingual_denoising"]
NAMES += ["next_sentence", "causal_lm", "prefix_lm", "masked_lm", "span_corruption"]
FAMILIES = ("deshuffling", "bart", "ul2", "translation", "multilingual_denoising", "span_corruption")
FAMILIES = dict.fromkeys(FAMILIES, "encoder_decoder") | {"causal_lm": "decoder", "prefix_lm": "decoder"}
PAIRS = {"data.sources": ("parallel",), "model.position": "learned", "data.seq_len": 40, "data.global_batch_size": 32}
OWN = {  # settings of objectives that need records
    "masked_column": {"data.sources": ("orders",), "data.seq_len": 96, "data.global_batch_size": 32},
    "translation_lm": {"data.sources": ("parallel",), "data.seq_len": 96, "data.global_batch_size": 32},
    **dict.fromkeys(("translation", "multilingual_denoising"), PAIRS),
}
LONG = ("sentence_distance", "ir_relevance", "translation_lm", "permutation_lm", "electra", "ul2", "masked_lm")
LONG += ("span_corruption",)
STEPS = dict.fromkeys(LONG, 1500) | {"next_sentence": 4000}  # what is learned later
FAMILIES |= {"fill_in_the_middle": "decoder", "ul2_decoder": "decoder", "permutation_lm": "xlnet", "electra": "electra"}
HEROES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Finn", "Gus", "Hedy", "Ida", "Jo", "Karl", "Lena", "Max", "Nora")
ENDINGS = ("rain", "snow", "hail", "ash", "dew", "leaves", "night", "prices")  # one for each marker
SETTINGS = {
    "model.d_model": 32,
    "model.num_layers": 2,
    "data.validation_fraction": 0.1,
    "data.num_sentinels": 32,
    "data.seq_len": 128,
    "data.global_batch_size": 16,
    "data.max_epochs": 100.0,
    "duration.tokens": None,
    "optimizer.learning_rate": 3e-3,
    "evaluation.max_tokens": 16_384,
    "evaluation.batch_size": 64,
    "checkpoint.every_seconds": None,
}


def document(rng: random.Random) -> str:
    """Returns one document: 24 sentences of one hero."""
    hero, markers = rng.choice(HEROES), rng.choices(range(len(MARKERS)), k=24)
    sentences = (
        f"{letter}: {hero} sang {MARKERS[marker]} {ENDINGS[marker]}."
        for letter, marker in zip("ABCDEFGHIJKLMNOPQRSTUVWX", markers, strict=True)
    )
    return " ".join(sentences)


def measure(name: str, notes: pathlib.Path, steps: int) -> tuple[str, float, float, float]:
    """Returns (metric, chance, reached, CPU seconds) of one training."""
    name, _, unit = name.partition(":")
    family = FAMILIES.get(name, "encoder")
    file = "encoder" if family in ("xlnet", "electra") else family
    base = configs.load(str(pathlib.Path(__file__).parents[2] / "configs" / f"{file}.py"))
    own = {"objective.name": name, "data.sources": (f"files:{notes}",), "duration.steps": steps}
    own |= OWN.get(name, {})
    own |= {"model.family": family, **({"objective.options.unit": unit} if unit else {})}
    run = resolve(configs.overlay(base, {**SETTINGS, **own}))
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        assert trainer.train(run, pathlib.Path(folder), show_progress=False) == trainer.DONE
        seconds = time.process_time() - start
        summary = run_record.read_json(pathlib.Path(folder) / "summary.json")
        model = trained.load(pathlib.Path(folder))
    head = run.heads[-1]
    if head.name == "lm":
        return "loss", summary["reference_bigram"], summary["loss"], seconds
    held_out = pipeline.evaluation_rows(run.data, run.objective, run.config)
    rows = held_out.rows(range(held_out.count))
    if head.targets not in rows:  # labelled by the model
        rows = jax.jit(functools.partial(model.model.apply, project=False))({"params": model.params}, rows)
    counts = np.bincount(np.ravel(rows[head.targets]), np.ravel(rows[head.weights]))
    return f"{head.name}_accuracy", counts.max() / counts.sum(), summary[f"{head.name}_accuracy"], seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--names", nargs="+", default=NAMES, help="objectives")
    parser.add_argument("--steps", type=int, help="optimizer steps of each training (default: 300; more of a few)")
    arguments = parser.parse_args()
    use_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        notes, rng = pathlib.Path(folder) / "notes.jsonl", random.Random(0)
        notes.write_text("".join(json.dumps({"text": document(rng)}) + "\n" for _ in range(2000)))
        print("| objective | metric | chance | reached | CPU seconds |\n|---|---|---|---|---|")
        for name in arguments.names:
            metric, chance, reached, seconds = measure(name, notes, arguments.steps or STEPS.get(name, 300))
            print(f"| {name} | {metric} | {chance:.2f} | {reached:.2f} | {seconds:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

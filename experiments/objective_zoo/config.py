"""Every pretraining objective at three sizes and equal FLOP: does it learn, and do auxiliary ones help?

Question: 1. On text from which its labels follow, does each objective of the registry get below chance? 2. On English
          text at equal FLOP, what does an auxiliary objective add to masked language modelling (RoBERTa, arXiv
          1907.11692: next sentence prediction does not help; ALBERT, arXiv 1909.11942: sentence order helps more), and
          how do the objectives of each architecture compare on the same held-out bytes?
Command:  lmjax sweep experiments/objective_zoo/config.py:labels --no-analysis --workdir runs/objective_zoo-labels
          lmjax sweep experiments/objective_zoo/config.py:text --no-analysis --workdir runs/objective_zoo-text
          lmjax sweep experiments/objective_zoo/config.py:long --no-analysis --workdir runs/objective_zoo-long
          python experiments/objective_zoo/collect.py runs       (evaluates the runs of text, figure and page)
          (config.py:tiny and runs/objective_zoo-tiny: every cell of both with a hundredth of the FLOP)
Time:     56 core-minutes for labels (7.2e13 FLOP), 61 for text (1.2e14) without its scores, 27 for long (3e13): sums of
          wall_seconds in the records
Results:  README.md of this folder.

`labels`: notes in which sentences are lettered in order, each document has a hero and each marker its own ending (as in
experiments/benchmarks/objectives.py), and the sources parallel and orders for objectives of pairs and tables. `text`:
`en`. All cells have the same exact FLOP, rows of 128 tokens, 2 layers and muP with the rates of
experiments/three_architectures: one rate per architecture, not tuned per objective. Word vectors alone have 1M tokens
of `en`, which are fewer FLOP, under the standard parametrization. `long`, added after `labels`: the objectives that
were not learned there, at the second width with ten times the FLOP.

Verdict rules, fixed before training:
  labels  an objective is learned at a size if its loss is below that of chance by more than 3 standard errors and by
          1 %: chance is the frequencies of the labels, for LM heads the bigram model of summary.json. Encoder-decoders
          must also use their source: source_gain above 1 % of chance. Standard errors of ELECTRA's generator are not
          recorded. An objective is shown to learn if it is learned at two of the three sizes.
  text    bits per byte of the same held-out spans, masked_lm+X minus masked_lm at equal size, FLOP and seed: X helps if
          the 95 % interval of Student's t over sizes and seeds is below 0, costs if it is above 0, else undecided. The
          accuracy of choice tasks likewise. Next sentence prediction does not help: reproduced unless it helps bits per
          byte or one of the tasks, the interval of tasks at 99 % as there are several.
          Added after training and before any comparison: five objectives, masked_lm+capitalisation among them, are not
          scored, as the scored text is unlike what they were trained on (NOT_SCORED in collect.py).
Predicted: no auxiliary objective lowers bits per byte at equal FLOP, as its rows have two texts half as long.
"""

import json
import os
import pathlib
import random

from configs import decoder, encoder, encoder_decoder, word2vec
from lmjax import process
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.objectives.discourse_relation import MARKERS
from lmjax.sweeps.combinators import product

WIDTHS, SEEDS, FLOP = (32, 48, 64), (0, 1), 1e12
RATE = {"encoder_decoder": 2.0**-11}  # others: 2^-9
ROWS_OF_PAIRS = ("next_sentence", "sentence_order", "sentence_deshuffling", "sentence_distance", "discourse_relation")
ROWS_OF_PAIRS += ("ir_relevance",)
AUXILIARY = (*ROWS_OF_PAIRS, "capitalisation")
FAMILY = {
    **dict.fromkeys(("masked_lm", "masked_lm:word", "masked_lm:span", *AUXILIARY), "encoder"),
    **dict.fromkeys(("causal_lm", "prefix_lm", "fill_in_the_middle", "ul2_decoder"), "decoder"),
    **dict.fromkeys(("span_corruption", "bart", "ul2", "deshuffling"), "encoder_decoder"),
    **{"electra": "electra", "permutation_lm": "xlnet"},
}
RECORDS = {  # objectives of pairs and tables -> family, source
    "translation_lm": ("encoder", "parallel"),
    "masked_column": ("encoder", "orders"),
    "translation": ("encoder_decoder", "parallel"),
    "multilingual_denoising": ("encoder_decoder", "parallel"),
}
TEXT = [name for name in FAMILY if name not in AUXILIARY] + [f"masked_lm+{name}" for name in AUXILIARY]
LABELS = [*FAMILY, *RECORDS, "skip_gram"]
VARIANTS = ("labels", "long", "text", "tiny")
LONG = ("next_sentence", "sentence_distance", "ir_relevance")  # not learned in `labels`
HEROES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Finn", "Gus", "Hedy", "Ida", "Jo", "Karl", "Lena", "Max", "Nora")
ENDINGS = ("rain", "snow", "hail", "ash", "dew", "leaves", "night", "prices")  # one for each marker
DOCUMENTS, VERSION = 20_000, 1
WORDS = {"duration.flops": None, "duration.tokens": 1_000_000}


def document(rng: random.Random) -> str:
    """Returns one note: 24 sentences of one hero. Example: "A: Ben sang but rain. B: Ben sang so snow. ..."."""
    hero, markers = rng.choice(HEROES), rng.choices(range(len(MARKERS)), k=24)
    sentences = (
        f"{letter}: {hero} sang {MARKERS[marker]} {ENDINGS[marker]}."
        for letter, marker in zip("ABCDEFGHIJKLMNOPQRSTUVWX", markers, strict=True)
    )
    return " ".join(sentences)


def notes() -> str:
    """Returns the source of the notes; writes them (11 MB) into lmjax's cache the first time."""
    path = process.cache_folder() / "objective_zoo" / f"notes-{VERSION}.jsonl"
    if not path.exists():
        rng = random.Random(VERSION)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps({"text": document(rng)}) + "\n" for _ in range(DOCUMENTS)))
        os.replace(temporary, path)
    home = pathlib.Path.home()
    return f"files:{f'~/{path.relative_to(home)}' if path.is_relative_to(home) else path}"


def get_config(variant: str = "text"):
    """Returns the base config, an encoder."""
    if variant not in VARIANTS:
        raise InputError(f"unknown {variant!r}{nearest(variant, VARIANTS)}; expected {', '.join(VARIANTS)}")
    return overlay(
        encoder.get_config(),
        {
            "model.num_layers": 2,
            "model.head_dim": 16,
            "parametrization.name": "mup",
            "parametrization.base_width": 256,
            "schedule.final_fraction": 0.0,
            "data.seq_len": 128,
            "data.global_batch_size": 16,
            "data.max_epochs": 1000.0,
            "evaluation.max_tokens": 131_072,
            "evaluation.batch_size": 64,
            "metrics.every_steps": 50,
            "duration.tokens": None,
            "duration.flops": FLOP,
            "run.name": f"zoo-{variant}",
        },
    )


def sweep(variant: str = "text"):
    """Returns a cell for each objective, size and (in `text`) seed."""
    sizes = [{"model.d_model": width, "model.num_heads": width // 16} for width in WIDTHS]
    labels = product([objective(name, labels=True) for name in LABELS], sizes)
    text = product([objective(name, labels=False) for name in TEXT], sizes, {"train.seed": SEEDS})
    if variant == "tiny":
        short = [cell for cell in labels + text if cell["model.d_model"] == WIDTHS[0] and not cell.get("train.seed")]
        cheap = {"duration.flops": FLOP / 100, "duration.tokens": None}
        return [{**cell, **cheap} for cell in short]
    if variant == "long":
        return product([objective(name, labels=True) for name in LONG], sizes[1:2], {"duration.flops": [10 * FLOP]})
    return labels if variant == "labels" else text


def objective(name: str, labels: bool) -> dict:
    """Returns the overrides of an objective: its family with the settings of configs/, its rate and its source."""
    main, _, unit = name.partition(":")
    base = name.partition("+")[0]
    family, source = RECORDS.get(base) or (FAMILY.get(base), notes() if labels else "en")
    cell = {"objective.name": main, "data.sources": (source,)}
    if unit:
        cell["objective.options.unit"] = unit
    if name == "skip_gram":  # no muP, no text to score: shown for its labels alone
        own = word2vec.get_config()
        keys = ("position", "embedding_scale", "tie_embeddings", "num_layers", "family")
        cell |= {f"model.{key}": own.model[key] for key in keys}
        keys = ("tokenizer", "vocab_size", "seq_len", "global_batch_size")
        cell |= {f"data.{key}": own.data[key] for key in keys} | {"data.sources": ("en",)}
        cell |= {"parametrization.name": "standard", "optimizer.weight_decay": own.optimizer.weight_decay}
        return cell | {"optimizer.learning_rate": own.optimizer.learning_rate} | WORDS
    own = {"decoder": decoder, "encoder_decoder": encoder_decoder}.get(family, encoder).get_config()
    cell |= {f"model.{key}": own.model[key] for key in ("position", "norm")}
    cell |= {"model.family": family, "optimizer.learning_rate": RATE.get(family, 2.0**-9)}
    if source == "parallel" and family == "encoder_decoder":
        cell |= {"model.position": "learned", "data.seq_len": 40, "data.global_batch_size": 48}
    return cell

"""Documents of (x, f(x)) pairs of one hidden function: how much do shown examples help, by size and tokens?

Question: does the gain from k = 1, 4 and 16 examples in the context grow with the model, as Brown et al. 2020 (arXiv
          2005.14165) find for GPT-3, and do trained decoders come near the best possible predictor, as Garg et al. 2022
          (arXiv 2208.01066) find for simple function classes?
Command:  lmjax sweep experiments/in_context/config.py --no-analysis --workdir runs/in_context
          python experiments/in_context/collect.py runs/in_context      (evaluates the runs, figure and page)
          (config.py:tiny and runs/in_context-tiny: two small models, for a first look)
Time:     about 32 minutes on two cores (1.25e14 FLOP)
Results:  README.md of this folder.

A document names the class of its function, then has PAIRS pairs, "S ae mq fj ...": x is one of 16 letters, drawn
uniformly, and f is drawn anew for each document.

    S shift      f(x) = x + c modulo 16                16 functions; one example tells which
    A affine     f(x) = a x + c modulo 16, a not 0     240 functions; two examples mostly do
    T threshold  f(x) = + from some letter on, else -  15 functions; each example rules out some
    L lookup     16 letters drawn at random            only an x that was shown has an answer

For every question the best possible prediction is known (`ideal`): that of the functions of its class that agree with
the examples. Test questions are drawn with another seed; in S, A and T their functions were seen in training (there are
few), in L they were not.

Verdict rules; loss in nats of the answer, gain(k) = loss without examples - loss with k; all at the most tokens, with
95 % intervals of Student's t over seeds (Welch's for the difference):
  grows with N   gain(16) of the largest size minus that of the smallest, mean over classes: reproduced above 0, not
                 reproduced below, else cannot be decided.
  near the best  accuracy with 16 examples of the largest size, over that of `ideal` on the same questions, by class:
                 reproduced if the lower end is at least 0.9 in all classes, not reproduced if the upper end is below
                 0.9 in any, else cannot be decided.
Changed after the first 17 runs, which had two seeds or one: intervals were a bootstrap over questions and said
"reproduced" of the first claim, at 0.36 [0.34, 0.39] nats, while accuracies of two seeds of one size differed by up to
0.58. Seeds 1 to 3 of 16M tokens were trained after that.
Predicted before training: gains are in the order S, T, L, A; A stays at chance in the smallest size.
"""

import json
import os
import pathlib

import numpy as np

from configs import decoder
from lmjax import process
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import product

LETTERS = 16
PAIRS = 20  # of a document: 61 bytes
SHOTS = (0, 1, 4, 16)
QUESTIONS = 400  # of each class
WIDTHS, TOKENS = (16, 32, 64), {1_000_000: 2, 4_000_000: 2, 16_000_000: 4}  # tokens -> seeds
DOCUMENTS, VERSION = 280_000, 1
X = np.arange(LETTERS)
PLUS, MINUS = LETTERS, LETTERS + 1  # answers of thresholds
TEXT = np.array([*(chr(97 + i) for i in X), "+", "-"])
TABLES = {  # class -> answers of its functions, [functions, x]; lookup has too many to list
    "S": (X + X[:, None]) % LETTERS,
    "A": np.array([(a * X + c) % LETTERS for a in range(1, LETTERS) for c in X]),
    "T": np.array([np.where(least <= X, PLUS, MINUS) for least in range(1, LETTERS)]),
    "L": None,
}
NAMES = {"S": "shift", "A": "affine", "T": "threshold", "L": "lookup"}


def draw(rng: np.random.Generator, kind: str, count: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and f(x) of `count` functions of a class, int [count, pairs] each."""
    x, table = rng.integers(LETTERS, size=(count, pairs)), TABLES[kind]
    f = rng.integers(LETTERS, size=(count, LETTERS)) if table is None else table[rng.integers(len(table), size=count)]
    return x, np.take_along_axis(f, x, axis=1)


def text(kind: str, x, y) -> str:
    """Returns the text of pairs. Example: text("S", [0, 12], [4, 0]) -> "S ae ma"."""
    return kind + "".join(f" {a}{b}" for a, b in zip(TEXT[np.asarray(x)], TEXT[np.asarray(y)], strict=True))


def ideal(kind: str, x: np.ndarray, y: np.ndarray, query: int) -> np.ndarray:
    """Returns the probabilities of the answers to a query given pairs, float64 [len(TEXT)], under the true law.

    Example: one example of a shift decides: ideal("S", [0], [4], 12) is 1 at answer 0.
    """
    p, table = np.zeros(len(TEXT)), TABLES[kind]
    if table is None:
        if (found := np.flatnonzero(np.asarray(x) == query)).size:
            p[y[found[0]]] = 1.0
        else:
            p[:LETTERS] = 1 / LETTERS
        return p
    agree = (table[:, x] == y).all(axis=1)
    np.add.at(p, table[agree, query], 1.0 / agree.sum())
    return p


def questions() -> dict[str, list[dict]]:
    """Returns {"<class>-<k>": questions}: "text" with k examples and the query, "answer", and the ideal predictor's
    "log_prob" of it and "probability" of being right. Question i has the same query at every k, and the examples of a
    smaller k are the last of those of a larger one."""
    found = {}
    for number, kind in enumerate(TABLES):
        rng = np.random.Generator(np.random.Philox(key=[VERSION, 100 + number]))
        x, y = draw(rng, kind, QUESTIONS, max(SHOTS) + 1)
        for k in SHOTS:
            shown = slice(max(SHOTS) - k, max(SHOTS))
            rows = []
            for xs, ys in zip(x, y, strict=True):
                p = ideal(kind, xs[shown], ys[shown], xs[-1])
                asked = f"{text(kind, xs[shown], ys[shown])} {TEXT[xs[-1]]}"
                best = {"log_prob": float(np.log(p[ys[-1]])), "probability": float(p.max())}
                rows.append({"text": asked, "answer": str(TEXT[ys[-1]]), **best})
            found[f"{kind}-{k}"] = rows
    return found


def write_tasks(folder: pathlib.Path) -> list[str]:
    """Writes a task file for each class and k with its questions; returns the paths of the task files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in questions().items():
        lines = [json.dumps({"text": row["text"], "answer": row["answer"]}) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf8")
        settings = ['kind = "cloze"', 'prompt = "{text}"', f'examples_file = "{name}.jsonl"']
        settings += [f"chance = {0.5 if name[0] == 'T' else 1 / LETTERS}", f"items = {QUESTIONS}"]
        (folder / f"{name}.toml").write_text("\n".join([f'name = "in_context_{name}"', *settings]) + "\n", "utf8")
    return [str(folder / f"{name}.toml") for name in questions()]


def write_documents(path: pathlib.Path) -> None:
    """Writes DOCUMENTS documents, {"text": "S ae mq ..."} a line, the classes in turn; always the same."""
    rng = np.random.Generator(np.random.Philox(key=[VERSION, 0]))
    made = {kind: draw(rng, kind, DOCUMENTS // len(TABLES), PAIRS) for kind in TABLES}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        for number in range(DOCUMENTS // len(TABLES)):
            for kind, (x, y) in made.items():
                file.write(json.dumps({"text": text(kind, x[number], y[number])}) + "\n")
    os.replace(temporary, path)


def get_config(variant: str = ""):
    """Returns the base config; writes the documents (20 MB) into lmjax's cache the first time."""
    if variant not in ("", "tiny"):
        raise InputError(f"unknown {variant!r}{nearest(variant, ['tiny'])}; expected tiny or nothing")
    path = process.cache_folder() / "in_context" / f"pairs-{VERSION}.jsonl"
    if not path.exists():
        write_documents(path)
    home = pathlib.Path.home()
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 3,
            "model.num_heads": 4,
            "data.sources": (f"files:{f'~/{path.relative_to(home)}' if path.is_relative_to(home) else path}",),
            "data.mode": "pack",
            "data.seq_len": 64,
            "data.global_batch_size": 32,
            "schedule.final_fraction": 0.0,
            "evaluation.batch_size": 64,
            "evaluation.max_tokens": 65_536,
            "metrics.every_steps": 50,
            "run.name": "pairs",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each size, number of tokens and seed."""
    sizes, tokens = (WIDTHS, TOKENS) if variant == "" else ((16, 32), {200_000: 1})
    cells = [
        cell
        for length, seeds in tokens.items()
        for cell in product({"model.d_model": sizes}, {"duration.tokens": [length]}, {"train.seed": range(seeds)})
    ]
    # the rate is as in experiments/addition, whose models and batches are of this shape
    return [{**cell, "optimizer.learning_rate": 6e-3 * 64 / cell["model.d_model"]} for cell in cells]

"""Objectives on pairs of texts, for encoder-decoders: translation, and denoising (mBART, arXiv 2001.08210)."""

import dataclasses

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.bart import BART
from lmjax.objectives.base import Example, Frame, Objective, Spec

LANGUAGE = {"source_language": False}  # whether the source ends in the id of its language, as in mBART
OPTIONS = {
    "reverse_rate": 0.0,  # share of the pairs that are translated from the second language into the first
    **LANGUAGE,
}


def language(spec: Spec, side: int) -> int:
    """Returns the language id of side 0 or 1 of the pairs, which is the first or second sentinel.

    Raises:
        InputError: fewer than two sentinels.
    """
    if len(spec.specials.sentinels) < 2:
        raise InputError(
            f"two sentinels are the ids of the languages: expected data.num_sentinels of at least 2, got "
            f"{len(spec.specials.sentinels)}"
        )
    return spec.specials.sentinels[side]


def frame(spec: Spec, read: int, write: int) -> Frame:
    """Returns the ids around a source of side `read`, and the language id of side `write`, which begins a target.

    Example: sides 0 and 1, sentinels (80, 81), eos 90: (90,), (90,), (81,); with source_language: (), (90, 80), (81,)
    """
    eos, named = spec.specials.eos, spec.options["source_language"]
    before, after = ((), (eos, language(spec, read))) if named else ((eos,), (eos,))
    return before, after, (language(spec, write),)


def written(source: np.ndarray, target: np.ndarray, read: int, write: int, spec: Spec) -> Example:
    """Returns the example in which the encoder reads a source of side `read` and the decoder writes a target of side
    `write`.

    Example: source (5, 6), target (7, 8, 9), sides 0 and 1, sentinels (80, 81), eos 90
        encoder_inputs [90, 5, 6, 90], with source_language [5, 6, 90, 80]
        inputs         [81, 7, 8, 9]
        targets        [7, 8, 9, 90]
    """
    before, after, start = frame(spec, read, write)
    return {
        "encoder_inputs": np.asarray([*before, *source, *after], np.int32),
        "inputs": np.asarray([*start, *target], np.int32),
        "targets": np.asarray([*target, spec.specials.eos], np.int32),
        "weights": np.ones(len(target) + 1, np.float32),
    }


def make_example(tokens: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, spec: Spec) -> Example:
    """Returns an example in which the encoder reads one side and the decoder writes the other; see `written`.

    Args:
        tokens: a text and its translation, up to n integer ids each.
        rng: draws the direction.
        spec: options reverse_rate, source_language; ids.
    """
    to = 0 if rng.random() < spec.options["reverse_rate"] else 1
    return written(tokens[1 - to], tokens[to], 1 - to, to, spec)


def reconstruct(example: Example, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sides."""
    side = int(example["inputs"][0] == language(spec, 1))
    before, after, _ = frame(spec, 1 - side, side)
    source, target = example["encoder_inputs"][len(before) : -len(after)], example["targets"][:-1]
    return (source, target) if side else (target, source)


TRANSLATION = Objective(
    name="translation",
    version=1,
    attention="encoder_decoder",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n + 1, "encoder_inputs": n + 2},
    options=OPTIONS,
    ranges={"reverse_rate": (0.0, 1.0)},
    pieces=("parallel",),
    pieces_per_row=2,
    padded=True,
    expected_weight=lambda n, options: n + 1,
    reconstruct=reconstruct,
    frame=lambda spec: frame(spec, 0, 1),
)


def make_denoising_example(tokens: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, spec: Spec) -> Example:
    """Corrupts one side of a pair as `bart` does; the decoder starts from its language id and writes the original.

    Args:
        tokens: a text and its translation, up to n integer ids each.
        rng: draws the side and the corruption.
        spec: options of bart, source_language; ids.
    """
    side = int(rng.integers(2))
    noised = BART.make_example(tokens[side], rng, spec)["encoder_inputs"][:-1]
    return written(noised, tokens[side], side, side, spec)


MULTILINGUAL_DENOISING = dataclasses.replace(
    BART,
    name="multilingual_denoising",
    make_example=make_denoising_example,
    lengths=lambda n, options: {"inputs": n + 1, "encoder_inputs": n + 2},
    options={**BART.options, "infill_rate": 0.35, "mean_span": 3.5, **LANGUAGE},
    pieces=("parallel",),
    pieces_per_row=1,
    reconstruct=None,
    frame=lambda spec: frame(spec, 0, 0),
)

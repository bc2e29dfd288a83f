"""Denoising as in BART (arXiv 1910.13461): corrupt the text for the encoder; the decoder writes all of the original."""

import math

import numpy as np

from lmjax.objectives.base import Example, Objective, Spec
from lmjax.objectives.units import sentences

OPTIONS = {
    "infill_rate": 0.3,  # share of the tokens that lie in infilled spans; one mask replaces each span
    "mean_span": 3.0,  # mean of the Poisson span lengths; a span of length 0 inserts a mask
    "permute_rate": 1.0,  # share of the rows whose sentences are shuffled
    "rotate_rate": 0.0,  # share of the rows that are rotated to begin at a uniformly drawn token
    "delete_rate": 0.0,  # share of the tokens that are deleted
    "mask_rate": 0.0,  # share of the tokens that are masked individually
}


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Corrupts the encoder input: shuffles sentences, rotates, deletes, infills and masks, in this order.

    The defaults are those of the large model in the paper: infilling and sentence permutation. Rates of tokens are
    exact shares, rounded. There are at most as many spans as infilled tokens, so the corrupted text is never longer
    than the original. The decoder starts from the pad id, as in span_corruption.

    Args:
        tokens: [n] integer ids.
        rng: samples the corruption.
        spec: the options above; ids; the tokenizer, for sentences.

    Returns:
        encoder_inputs [up to n + 1] int32; inputs, targets [n + 1] int32; weights [n + 1] float32, all 1.

    Example: spans (6, 7) and, before 9, one of length 0; mask id 91, eos 90, pad 89
        tokens         [5, 6, 7, 8, 9]
        encoder_inputs [5, 91, 8, 91, 9, 90]
        inputs         [89, 5, 6, 7, 8, 9]
        targets        [5, 6, 7, 8, 9, 90]
    """
    text, options, mask = tokens.astype(np.int32), spec.options, spec.specials.mask
    source, n = text, len(text)
    if rng.random() < options["permute_rate"]:
        parts = np.split(source, sentences(tokens, spec)[1:-1])
        source = np.concatenate([parts[i] for i in rng.permutation(len(parts))])
    if rng.random() < options["rotate_rate"]:
        source = np.roll(source, -int(rng.integers(n)))
    if count := min(round(options["delete_rate"] * n), n - 1):
        source = np.delete(source, rng.permutation(n)[:count])
    source = infilled(source, min(round(options["infill_rate"] * n), len(source)), options["mean_span"], mask, rng)
    if count := round(options["mask_rate"] * n):
        source[rng.permutation(np.flatnonzero(source != mask))[:count]] = mask
    target = np.concatenate([text, [spec.specials.eos]]).astype(np.int32)
    return {
        "encoder_inputs": np.concatenate([source, [spec.specials.eos]]).astype(np.int32),
        "inputs": np.concatenate([[spec.specials.pad], text]).astype(np.int32),
        "targets": target,
        "weights": np.ones(n + 1, np.float32),
    }


def infilled(tokens: np.ndarray, count: int, mean: float, mask: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the tokens after text infilling: spans with `count` tokens in total are each replaced by one mask.

    Span lengths are Poisson samples until they cover `count` tokens; the last one is truncated. The spans lie at
    uniform positions among the kept tokens.
    """
    if not count:
        return tokens.copy()
    lengths = rng.poisson(mean, count)
    lengths[-1] = count  # so that the lengths cover count tokens
    last = int(np.searchsorted(np.cumsum(lengths), count))
    lengths = lengths[: last + 1]
    lengths[last] = count - lengths[:last].sum()
    gaps = rng.integers(0, len(tokens) - count + 1, len(lengths))  # kept tokens before each span
    order = np.argsort(gaps, kind="stable")
    starts = gaps[order] + np.cumsum(lengths[order]) - lengths[order]
    hidden = np.zeros(len(tokens) + 1, bool)
    for start, length in zip(starts.tolist(), lengths[order].tolist(), strict=True):
        hidden[start : start + length] = True
    kept = np.flatnonzero(~hidden[:-1])
    return np.insert(tokens[kept], np.searchsorted(kept, starts), mask)


def _hidden(options):
    return options["infill_rate"] + options["delete_rate"] + options["mask_rate"]


def _conflict(options) -> str:
    total = _hidden(options)
    return f"expected infill_rate + delete_rate + mask_rate of at most 1, got {total:g}" if total > 1 + 1e-9 else ""


BART = Objective(
    name="bart",
    version=1,
    attention="encoder_decoder",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n + 1, "encoder_inputs": n + 1},
    options=OPTIONS,
    ranges={"mean_span": (1.0, math.inf), **{name: (0.0, 1.0) for name in OPTIONS if name.endswith("rate")}},
    padded=True,
    expected_weight=lambda n, options: n + 1,
    reconstruct=lambda example, spec: example["targets"][:-1],
    visible_answers=lambda options: 1.0 - _hidden(options),
    conflict=_conflict,
)

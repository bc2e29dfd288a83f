"""Skip-gram with negative sampling (word2vec, Mikolov et al. 2013, arXiv 1310.4546), for model.family "word2vec"."""

import numpy as np

from lmjax.objectives.base import Example, Head, Objective, Spec

OPTIONS = {
    "window": 5,  # largest distance of a context word; the window of each word is drawn from 1 .. window
    "negatives": 5,  # k: noise words for each pair
    "noise_power": 0.75,  # noise words are drawn with probability proportional to frequency^noise_power
    "subsample": 1e-3,  # t: a word of frequency f is kept with probability min(1, sqrt(t / f)); 0: keep all
}


def most_pairs(n: int, window: int) -> int:
    """Returns the number of pairs within `window` in n tokens. Example: 4 for n = 3 and window 1."""
    return sum(2 * (n - distance) for distance in range(1, min(window, n - 1) + 1))


def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
    """Subsamples frequent words, pairs each word with its context words, and draws noise words for each pair.

    Special ids are not words, and no pair crosses one. Words are dropped before pairs are made, so a window may reach
    further in the text. By chance, a noise word may equal the context word, as in the paper's objective.

    Args:
        tokens: [n] integer ids.
        rng: draws which words are kept, then the window of each word, then the noise words.
        spec: options window, negatives, noise_power, subsample; the relative frequency of each id.

    Returns:
        inputs [m] int32, the words; contexts [m] int32; pair_targets [m] int32, 1 for a context word from the text and
        0 for a noise word; pair_weights [m] float32, all 1. m is (1 + negatives) x the number of pairs.

    Example: window 1, negatives 1, noise words 9, 9, 9, 9
        tokens        [5, 6, 7]
        inputs        [5, 5, 6, 6, 6, 6, 7, 7]
        contexts      [6, 9, 5, 9, 7, 9, 6, 9]
        pair_targets  [1, 0, 1, 0, 1, 0, 1, 0]
    """
    options, frequencies_V = spec.options, spec.frequencies
    is_text = tokens < spec.text_vocab_size
    words, stretch = tokens[is_text].astype(np.int32), np.cumsum(~is_text)[is_text]
    if options["subsample"]:
        kept = rng.random(len(words)) ** 2 * frequencies_V[words] < options["subsample"]
        words, stretch = words[kept], stretch[kept]
    window_M = rng.integers(1, options["window"] + 1, len(words))
    offset_O = np.asarray([o for o in range(-options["window"], options["window"] + 1) if o])
    place_MO = np.arange(len(words))[:, None] + offset_O
    inside_MO = (place_MO >= 0) & (place_MO < len(words)) & (abs(offset_O) <= window_M[:, None])
    centre, context = np.nonzero(inside_MO)[0], place_MO[inside_MO]
    same = stretch[centre] == stretch[context]
    centre, context = words[centre[same]], words[context[same]]
    noise_V = np.cumsum(frequencies_V ** options["noise_power"])
    draws = rng.random((len(centre), options["negatives"])) * noise_V[-1]
    noise = np.minimum(np.searchsorted(noise_V, draws, side="right"), len(noise_V) - 1).astype(np.int32)
    contexts = np.concatenate([context[:, None], noise], axis=1)
    labels = np.zeros_like(contexts)
    labels[:, 0] = 1
    return {
        "inputs": np.repeat(centre, contexts.shape[1]),
        "contexts": contexts.ravel(),
        "pair_targets": labels.ravel(),
        "pair_weights": np.ones(labels.size, np.float32),
    }


SKIP_GRAM = Objective(
    name="skip_gram",
    version=1,
    attention="pairs",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": (1 + options["negatives"]) * most_pairs(n, options["window"])},
    options=OPTIONS,
    ranges={"window": (1, 1000), "negatives": (1, 1000), "noise_power": (0.0, 1.0), "subsample": (0.0, 1.0)},
    # per pair of the text: -log s(x) - sum over its noise words of log s(-x); equation 4 of the paper
    heads=lambda options: (Head("pair", "tokens", 2, 1.0 + options["negatives"]),),
    frequencies=True,
    padded=True,
)

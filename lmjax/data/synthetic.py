"""Token sources whose entropy rate is known exactly, to check a fitted irreducible loss against it.

A document is one token at least; after each token it ends with probability END (so eos is part of the truth:
it costs h_end = -END ln END - (1 - END) ln(1 - END) nats per token before it). With L = 1 / END tokens per
document on average and E nats per document,

    nats per token, eos included = E / (L + 1),   E = sum over positions of the law's entropy there + L h_end.

Four laws over a small alphabet of letters (ids below 256, those of the bytes tokenizer):
    zipf     independent samples, p(s) proportional to 1 / (s + 1): context does not help
    markov1  the next token depends on the one before it: Zipf's p(s) times exp of a matrix whose singular values fall
             as a power, so that a model of width d can learn about its first d directions, and frequent contexts first
    markov2  the next token depends on the two before it: context beyond two tokens does not help
    copy     BLOCK Zipf samples, then each token repeats the one BLOCK places back, except that with probability
             NOISE a fresh Zipf sample takes its place: only context of BLOCK or more helps
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from lmjax.errors import InputError, nearest

VERSION = 1  # increase it when the laws or the sampling change
END = 1 / 512  # probability that a document ends after a token
ZIPF_LETTERS = 64  # ids 48 .. 111, "0" .. "o"
MARKOV_LETTERS = 16  # ids 65 .. 80, "A" .. "P"
SPECTRUM_LETTERS = 192  # ids 48 .. 239 of markov1
SPECTRUM, SPREAD = 1.2, 2.5  # exponent of the singular values of markov1's matrix, standard deviation of its entries
BLOCK, NOISE = 64, 0.1
_CHUNK = 1024  # documents drawn from one generator
_DEFAULT_TOKENS, _MOST_TOKENS = 2_000_000, 10**11


@dataclasses.dataclass(frozen=True)
class Law:
    """One synthetic language."""

    draw: Callable[[np.ndarray, np.random.Generator], list[np.ndarray]]  # one array of letters per length
    nats: Callable[[np.ndarray], np.ndarray]  # -ln p of each letter of a document
    document_nats: Callable[[], float]  # expectation of their sum over a document, without eos
    first_id: int


def entropy(p: np.ndarray) -> np.ndarray:
    """Returns -sum p ln p over the last axis, in nats; 0 ln 0 = 0."""
    return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def _sample(p: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Letters from uniform draws u: the first with cumulative probability above u. p: [V] or [len(u), V]."""
    cumulative = np.cumsum(p, axis=-1)
    if p.ndim == 1:
        return np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return np.sum(cumulative <= (u * cumulative[:, -1])[:, None], axis=-1)


@functools.cache
def zipf_probabilities(letters: int = 0) -> np.ndarray:
    """Returns p(s) = (1 / (s + 1)) / sum over s, float64 [letters]; 0: ZIPF_LETTERS."""
    p = 1.0 / np.arange(1, (letters or ZIPF_LETTERS) + 1)
    return p / p.sum()


def _cut(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1])


def _zipf_draw(lengths, rng):
    return _cut(_sample(zipf_probabilities(), rng.random(int(lengths.sum()))), lengths)


def _zipf_nats(letters):
    return -np.log(zipf_probabilities()[letters])


def _zipf_document_nats():
    return float(entropy(zipf_probabilities())) / END


@functools.cache
def spectrum_table() -> np.ndarray:
    """Returns P[a, b], the probability of b after a, of markov1; row SPECTRUM_LETTERS is the document's first letter.

    P[a, b] is proportional to Zipf's p(b) exp(SPREAD sum_k s_k u_k(a) w_k(b)) with fixed normal numbers u and w and
    s_k proportional to k^-SPECTRUM, sum s_k^2 = 1. float64 [V + 1, V].
    """
    v = SPECTRUM_LETTERS
    rng = np.random.Generator(np.random.Philox(key=[1, 0]))
    u, w = rng.standard_normal((v + 1, v)), rng.standard_normal((v, v))
    s = np.arange(1, v + 1) ** -SPECTRUM
    weight = zipf_probabilities(v) * np.exp(SPREAD * (u * (s / np.linalg.norm(s))) @ w.T)
    return weight / weight.sum(axis=-1, keepdims=True)


def _spectrum_draw(lengths, rng):
    """All documents advance together, as in markov2. Row a of the cumulative table, plus a, is sorted with the others:
    one search finds the letters of all documents."""
    v = SPECTRUM_LETTERS
    cumulative = np.cumsum(spectrum_table(), axis=-1)
    cumulative[:, -1] = 1.0
    table = (cumulative + np.arange(v + 1)[:, None]).ravel()

    def step(last, before):
        return np.searchsorted(table, last + rng.random(len(last)), side="right") - v * last

    return _advance(lengths, step, v)


def _spectrum_nats(letters):
    return -np.log(spectrum_table()[np.concatenate([[SPECTRUM_LETTERS], letters[:-1]]), letters])


def _spectrum_document_nats():
    """Expected visits of each context solve visits = start + (1 - END) visits P."""
    table, v = spectrum_table(), SPECTRUM_LETTERS
    transition = np.pad(table, ((0, 0), (0, 1)))  # no letter leads to the start of a document
    visits = np.linalg.solve(np.eye(v + 1) - (1 - END) * transition.T, np.eye(v + 1)[v])
    return float(visits @ entropy(table))


def _advance(lengths, step, start):
    """Letters of documents that advance together, one letter a step; the shorter ones drop out.

    Args:
        lengths: [documents].
        step: (last letters, letters before them), each [active] and `start` before the document -> next letters.
        start: the letter that stands for "before the document".
    """
    order = np.argsort(-lengths, kind="stable")
    letters = np.zeros((len(lengths), int(lengths.max())), np.int64)
    before, last = np.full(len(lengths), start), np.full(len(lengths), start)
    for place in range(letters.shape[1]):
        active = int(np.searchsorted(-lengths[order], -place, side="left"))
        new = step(last[:active], before[:active])
        letters[:active, place] = new
        before[:active], last[:active] = last[:active], new
    rows = np.empty_like(order)
    rows[order] = np.arange(len(order))
    return [letters[row, :length] for row, length in zip(rows, lengths, strict=True)]


@functools.cache
def markov_table() -> np.ndarray:
    """Returns P[a, b, c], the probability of c after a, b: proportional to u^4, u fixed uniform numbers.

    Letter MARKOV_LETTERS stands for "before the document". float64 [V + 1, V + 1, V].
    """
    v = MARKOV_LETTERS
    u = np.random.Generator(np.random.Philox(key=[2, 0])).random((v + 1, v + 1, v))
    weight = u**4
    return weight / weight.sum(axis=-1, keepdims=True)


def _markov_draw(lengths, rng):
    table = markov_table()
    return _advance(lengths, lambda last, before: _sample(table[before, last], rng.random(len(last))), MARKOV_LETTERS)


def _markov_nats(letters):
    padded = np.concatenate([[MARKOV_LETTERS] * 2, letters])
    return -np.log(markov_table()[padded[:-2], padded[1:-1], letters])


def _markov_document_nats():
    """Expected visits of each context solve visits = start + (1 - END) visits T."""
    table, v = markov_table(), MARKOV_LETTERS
    transition = np.zeros((v + 1, v + 1, v + 1, v + 1))  # context (a, b) -> (b, c)
    for b in range(v + 1):
        transition[:, b, b, :v] = table[:, b]
    size = (v + 1) ** 2
    start = np.zeros(size)
    start[-1] = 1.0
    visits = np.linalg.solve(np.eye(size) - (1 - END) * transition.reshape(size, size).T, start)
    return float(visits @ entropy(table).reshape(size))


def _copy_draw(lengths, rng):
    p, documents = zipf_probabilities(), []
    for length in lengths:
        rows = -(-int(length) // BLOCK)
        fresh = _sample(p, rng.random(rows * BLOCK)).reshape(rows, BLOCK)
        is_fresh = rng.random((rows, BLOCK)) < NOISE
        is_fresh[0] = True
        source = np.maximum.accumulate(np.where(is_fresh, np.arange(rows)[:, None], 0), axis=0)
        documents.append(np.take_along_axis(fresh, source, axis=0).reshape(-1)[:length])
    return documents


def _copy_nats(letters):
    p = zipf_probabilities()[letters]
    copied = letters[BLOCK:] == letters[:-BLOCK] if len(letters) > BLOCK else np.zeros(0, bool)
    later = NOISE * p[BLOCK:] + (1 - NOISE) * copied
    return -np.log(np.concatenate([p[:BLOCK], later]))


def _copy_document_nats():
    """A repeat of letter x has the law NOISE p + (1 - NOISE) [s = x]; x itself is distributed as p."""
    p = zipf_probabilities()
    repeat = float(p @ entropy(NOISE * p + (1 - NOISE) * np.eye(ZIPF_LETTERS)))
    reached = (1 - END) ** BLOCK  # share of documents that reach the first repeat
    return (float(entropy(p)) * (1 - reached) + repeat * reached) / END


LAWS: dict[str, Law] = {
    "zipf": Law(_zipf_draw, _zipf_nats, _zipf_document_nats, 48),
    "markov1": Law(_spectrum_draw, _spectrum_nats, _spectrum_document_nats, 48),
    "markov2": Law(_markov_draw, _markov_nats, _markov_document_nats, 65),
    "copy": Law(_copy_draw, _copy_nats, _copy_document_nats, 48),
}


def parse(name: str) -> tuple[Law, int] | None:
    """Returns (law, tokens) of "zipf" or "zipf:5000000", None for any other kind of source.

    Raises:
        InputError: the size is no whole number of tokens above 0.
    """
    kind, _, size = name.partition(":")
    if kind not in LAWS:
        return None
    try:
        tokens = int(size) if size else _DEFAULT_TOKENS
    except ValueError:
        tokens = 0
    if not 1 <= tokens <= _MOST_TOKENS:
        raise InputError(
            f"source {name!r}: expected 1 to {_MOST_TOKENS:.0e} as the number of tokens, e.g. '{kind}:5000000'"
        )
    return LAWS[kind], tokens


def entropy_rate(kind: str) -> float:
    """Returns the expected nats per token, eos included, of a perfect model that sees the whole document.

    Example: with H the entropy of the Zipf law, h_end that of the end and L = 512,
    entropy_rate("zipf") = L (H + h_end) / (L + 1) = 3.3789.
    """
    if kind not in LAWS:
        raise InputError(f"unknown synthetic source {kind!r}{nearest(kind, LAWS)}")
    h_end = float(entropy(np.array([END, 1 - END])))
    return (LAWS[kind].document_nats() + h_end / END) / (1 / END + 1)


def documents(name: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (key, ids uint8) until the ids, including one eos per document, reach the size in the name.

    The same name and seed always give the same documents; a larger size continues a smaller one.
    """
    if (parsed := parse(name)) is None:
        raise InputError(f"expected a synthetic source, one of {', '.join(LAWS)}, got {name!r}")
    law, tokens = parsed
    kind, total, chunk = name.partition(":")[0], 0, 0
    while True:
        rng = np.random.Generator(np.random.Philox(key=[seed, chunk]))
        # inverse of the geometric distribution on 1, 2, ...: P(length > n) = (1 - END)^n
        lengths = 1 + np.floor(np.log1p(-rng.random(_CHUNK)) / np.log1p(-END)).astype(np.int64)
        for number, letters in enumerate(law.draw(lengths, rng)):
            yield f"{kind}/{seed}/{chunk * _CHUNK + number}", (letters + law.first_id).astype(np.uint8)
            total += len(letters) + 1
            if total >= tokens:
                return
        chunk += 1


def true_nats(kind: str, ids: np.ndarray) -> float:
    """Returns -ln p of one document (its ids without eos) and its eos under the true law, in nats.

    Example: a single letter "0" (id 48) of zipf: -ln(1 / 4.7439) - ln(1 / 512) = 7.7952.
    """
    law = LAWS[kind]
    letters = np.asarray(ids, np.int64) - law.first_id
    ending = -np.log(END) - (len(letters) - 1) * np.log1p(-END)
    return float(law.nats(letters).sum() + ending)

"""Logits processors against transformers' on random logits, samples against the analytic distribution, beam search
against the enumeration of all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lmjax.decoding import processors, search
from lmjax.decoding.processors import Switches
from lmjax.decoding.settings import Settings
from lmjax.errors import InputError

V = 40
P_VALUE = 1e-3  # of a chi-square test; seeds are fixed, so a test that passes goes on passing


def random_logits(ties=False, rows=8):
    logits = np.random.default_rng(0).normal(0, 3, (rows, V)).astype(np.float32)
    return np.round(logits) if ties else logits  # rounded: some ten distinct values among 40


def transformers_processors():
    pytest.importorskip("torch").set_num_threads(1)
    return pytest.importorskip("transformers").generation.logits_process


def compare(own, theirs, logits, ids=None, sort=False):
    """Equal where finite within 1e-6, and impossible in the same places.

    sort: row by row in order of size. Of equal tokens at the border of top-p one may stay and one go; which, is left
    to an unstable sort in transformers.
    """
    import torch

    wanted = theirs(None if ids is None else torch.tensor(ids), torch.tensor(logits)).numpy()
    if sort:
        own, wanted = np.sort(own, axis=1), np.sort(wanted, axis=1)
    np.testing.assert_array_equal(np.isneginf(own), np.isneginf(wanted))
    np.testing.assert_allclose(own, wanted, rtol=1e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_each_processor_is_that_of_transformers(ties):
    theirs, logits = transformers_processors(), random_logits(ties)
    for k in (1, 3, 17, V, V + 5):
        compare(processors.top_k(logits, k), theirs.TopKLogitsWarper(k), logits)
    for p in (0.01, 0.3, 0.9, 0.999):
        compare(processors.top_p(logits, p), theirs.TopPLogitsWarper(p), logits, sort=ties)
    for p in (0.01, 0.3, 1.0):
        compare(processors.min_p(logits, p), theirs.MinPLogitsWarper(p), logits)
    ids = np.random.default_rng(1).integers(0, V, (8, 12))
    seen = np.zeros((8, V), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    for penalty in (0.5, 1.3, 2.0):
        own = processors.repetition_penalty(logits, seen, penalty)
        compare(own, theirs.RepetitionPenaltyLogitsProcessor(penalty), logits, ids)


@pytest.mark.parametrize("ties", [False, True])
def test_the_order_of_processors_is_that_of_transformers(ties):
    """All at once: repetition penalty, min_new_tokens, temperature, top-k, top-p, min-p."""
    theirs, logits = transformers_processors(), random_logits(ties)
    ids = np.random.default_rng(1).integers(0, V, (8, 5))
    seen = np.zeros((8, V), bool)
    np.put_along_axis(seen, ids, True, axis=1)
    options = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.5}
    settings = Settings("sample", min_new_tokens=4, stop_ids=(3, 5), **options)
    chain = theirs.LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.5),
            theirs.MinNewTokensLengthLogitsProcessor(2, 4, [3, 5]),  # a prompt of 2, so 3 new tokens
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(20),
            theirs.TopPLogitsWarper(0.9),
            theirs.MinPLogitsWarper(0.02),
        ]
    )
    strength = processors.strengths(settings, V, V, 8)
    own = processors.process(logits, seen, 3, Switches.of(settings), strength)
    compare(own, chain, logits, ids, sort=ties)
    assert np.isneginf(own[:, [3, 5]]).all() and np.isfinite(own).any(axis=1).all()


def test_examples_of_the_docstrings():
    inf = np.inf
    penalised = processors.repetition_penalty(np.float32([[2, -1, 3]]), np.array([[True, True, False]]), 2.0)
    np.testing.assert_array_equal(penalised, [[1, -2, 3]])
    np.testing.assert_array_equal(processors.top_k(np.float32([[3, 1, 2, 2]]), 2), [[3, -inf, 2, 2]])
    logits = np.log(np.float32([[0.5, 0.3, 0.2]]))
    assert np.isneginf(processors.top_p(logits, 0.6)).tolist() == [[False, False, True]]
    assert np.isneginf(processors.min_p(logits, 0.5)).tolist() == [[False, False, True]]


def test_ids_without_a_token_are_impossible():
    settings = Settings(stop_ids=())
    out = processors.process(random_logits(), None, 0, Switches.of(settings), processors.strengths(settings, V, 30, 8))
    assert np.isneginf(out[:, 30:]).all() and np.isfinite(out[:, :30]).all()


def test_greedy_takes_the_first_of_equals():
    scores = random_logits(ties=True)
    np.testing.assert_array_equal(processors.choose(scores, None, 0, "greedy"), scores.argmax(axis=1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 6},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.7},
    ],
)
def test_draws_follow_the_truncated_distribution(options):
    """20,000 draws, one for each of 20,000 prompts' keys, against softmax of the truncated logits: chi-square."""
    logits = random_logits()[:1]
    settings = Settings("sample", **options)
    scores = processors.process(logits, None, 0, Switches.of(settings), processors.strengths(settings, V, V, 8))
    count = 20_000
    keys = processors.row_keys(5, jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32))
    draw = jax.jit(lambda scores: processors.choose(scores, keys, 0, "sample"))
    drawn = np.bincount(draw(jnp.broadcast_to(scores, (count, V))), minlength=V)
    assert_distribution(drawn, truncated(logits[0], settings))


def truncated(logits, settings):
    """The distribution that the settings ask for, in NumPy and float64, straight from the definitions."""
    logits = np.asarray(logits, np.float64) / settings.temperature
    keep = np.ones(len(logits), bool)
    if settings.top_k:
        keep &= logits >= np.sort(logits)[-settings.top_k]
    p = np.where(keep, np.exp(logits - logits.max()), 0)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]  # mass of the more probable ones
    if settings.top_p < 1:
        p[order[before >= settings.top_p]] = 0
    p /= p.sum()
    p[p < settings.min_p * p.max()] = 0
    return p / p.sum()


def assert_distribution(drawn, p):
    """Nothing impossible was drawn; chi-square over the tokens expected 5 times or more, the others together."""
    assert drawn[p == 0].sum() == 0
    expected = p * drawn.sum()
    often = expected >= 5
    got, wanted = drawn[often], expected[often]
    if (rest := expected[~often].sum()) > 0:
        got, wanted = np.append(got, drawn[~often].sum()), np.append(wanted, rest)
    assert stats.chisquare(got, wanted).pvalue > P_VALUE


def test_keys_belong_to_prompts_and_samples():
    """Rows 0..3 of one batch are rows of any other: no key depends on its place."""
    prompts, samples = np.uint32([0, 1, 1, 7]), np.uint32([0, 0, 1, 2])
    keys = jax.random.key_data(processors.row_keys(3, prompts, samples))
    order = [2, 0, 3, 1]
    np.testing.assert_array_equal(
        jax.random.key_data(processors.row_keys(3, prompts[order], samples[order])), keys[np.array(order)]
    )
    assert len(np.unique(keys, axis=0)) == 4
    assert not np.array_equal(jax.random.key_data(processors.row_keys(4, prompts, samples)), keys)


# -- Beam search over a step function that is a table: a Markov chain.


def chain(V=4, seed=0):
    """log p(next | last) [V, V], and of the first token [V]."""
    logits = np.random.default_rng(seed).normal(0, 1.5, (V + 1, V))
    table = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return table[:V], table[V]


def beam(table, first, settings):
    """The search alone, driven by the table: [(ids, score), ...], best first."""
    V = len(first)
    switches = Switches.of(settings)
    strength = jax.tree.map(jnp.asarray, processors.strengths(settings, V, V, settings.max_new_tokens))
    state = search.start(1, settings.max_new_tokens, switches, None, jnp.ones(1, bool))
    log_probs = np.broadcast_to(first, (1, settings.num_beams, V))

    @jax.jit
    def step(state, log_probs):
        candidates = search.expand(state, log_probs, log_probs, switches)
        return search.select(state, candidates, search.ends(state, candidates, strength), switches, strength)

    while True:
        state, _ = step(state, jnp.asarray(log_probs, jnp.float32))
        if not search.unfinished(state, switches):
            break
        log_probs = table[np.asarray(state["tokens"][:, :, state["step"] - 1])]
    lengths, tokens, scores = (np.asarray(state[f"done_{name}"][0]) for name in ("lengths", "tokens", "scores"))
    return [(tuple(t[:n].tolist()), float(s)) for t, n, s in zip(tokens, lengths, scores, strict=True)]


def all_sequences(table, first, settings):
    """Every sequence that ends with a stop id or is full, best score first."""
    V, found = len(first), []
    for length in range(1, settings.max_new_tokens + 1):
        for ids in itertools.product(range(V), repeat=length):
            stops = [token in settings.stop_ids for token in ids]
            if any(stops[:-1]) or not (stops[-1] or length == settings.max_new_tokens):
                continue
            total = first[ids[0]] + sum(table[a, b] for a, b in itertools.pairwise(ids))
            found.append((ids, total / length**settings.length_penalty))
    return sorted(found, key=lambda pair: -pair[1])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -1.0])
def test_a_wide_beam_finds_the_best_of_all_sequences(length_penalty):
    """64 beams hold every prefix of 3 of 4 tokens, so the n-best list is that of the enumeration."""
    table, first = chain()
    settings = Settings(
        "beam",
        num_beams=64,
        max_new_tokens=4,
        stop_ids=(0,),
        length_penalty=length_penalty,
        early_stopping="never",
    )
    found, wanted = beam(table, first, settings)[:10], all_sequences(table, first, settings)[:10]
    assert [ids for ids, _ in found] == [ids for ids, _ in wanted]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in wanted], rtol=1e-5)


def test_a_narrow_beam_keeps_what_a_loop_in_numpy_keeps():
    """3 beams, no stop ids: at every step the 3 best of 12 continuations."""
    table, first = chain(seed=4)
    settings = Settings("beam", num_beams=3, max_new_tokens=6, stop_ids=(), length_penalty=0.0)
    beams = [((), 0.0)]
    for _ in range(6):
        grown = [((*ids, t), s + (table[ids[-1], t] if ids else first[t])) for ids, s in beams for t in range(4)]
        beams = sorted(grown, key=lambda pair: -pair[1])[:3]
    found = beam(table, first, settings)
    assert [ids for ids, _ in found] == [ids for ids, _ in beams]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in beams], rtol=1e-5)


# -- Settings.


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "best"}, "method: expected greedy | sample | beam, got 'best'"),
        ({"method": "sample", "top_p": 0.0}, "top_p: expected a number in (0, 1], 1: off, got 0.0"),
        ({"method": "sample", "top_p": 1.5}, "top_p"),
        ({"method": "sample", "temperature": 0.0}, "temperature: expected a number above 0 (method='greedy'"),
        ({"method": "sample", "temperature": float("nan")}, "temperature"),
        ({"method": "sample", "top_k": -1}, "top_k: expected a whole number, 0 (off) or above, got -1"),
        ({"method": "sample", "top_k": 2.5}, "top_k"),
        ({"method": "sample", "min_p": 1.1}, "min_p"),
        ({"method": "sample", "num_return": 0}, "num_return"),
        ({"method": "sample", "seed": -1}, "seed"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, 1e-3 to 1e3, 1: off, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected a whole number above 0, got 0"),
        ({"max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens: expected at most max_new_tokens 4, got 5"),
        ({"method": "beam", "num_beams": 0}, "num_beams"),
        ({"method": "beam", "num_beams": 2, "num_return": 3}, "num_return: expected at most num_beams 2, got 3"),
        ({"method": "beam", "early_stopping": "always"}, "early_stopping: expected True, False or 'never', got"),
        ({"method": "beam", "length_penalty": float("inf")}, "length_penalty"),
        ({"stop_ids": (-1,)}, "stop_ids"),
        ({"stop_strings": ("",)}, "stop_strings: expected a tuple of texts, none of them empty, got ('',)"),
        ({"stop_strings": "end"}, "stop_strings"),
        ({"truncate": "right"}, "truncate: expected 'refuse' or 'left', got 'right'"),
        (
            {"temperature": 0.5},
            "temperature=0.5 applies only to method sample, got method='greedy'; set method='sample'",
        ),
        ({"method": "beam", "top_k": 5}, "top_k=5 applies only to method sample"),
        ({"method": "sample", "num_beams": 2}, "num_beams=2 applies only to method beam"),
        ({"num_return": 2}, "num_return=2 applies only to method sample or beam"),
    ],
)
def test_bad_settings_are_refused(options, words):
    with pytest.raises(InputError) as error:
        Settings(**options)
    assert words in str(error.value)

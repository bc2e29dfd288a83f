"""Synthetic sources: the stated entropy is that of the sampled tokens, eos included."""

import itertools
import shutil

import numpy as np
import pytest
from conftest import small

from lmjax.data import pipeline, synthetic
from lmjax.errors import InputError


@pytest.mark.parametrize("kind", synthetic.LAWS)
def test_likelihood_of_the_draws_agrees_with_the_formula(kind):
    """Mean of (nats - rate x tokens) over documents is 0 within 4 standard errors, and those are small."""
    rate = synthetic.entropy_rate(kind)
    documents = [ids for _, ids in synthetic.documents(f"{kind}:400000", seed=3)]
    tokens = np.array([len(ids) + 1 for ids in documents])
    excess = np.array([synthetic.true_nats(kind, ids) for ids in documents]) - rate * tokens
    error = excess.std() / np.sqrt(len(excess))
    assert abs(excess.mean()) < 4 * error
    assert error / tokens.mean() < 0.03 * rate


@pytest.mark.parametrize("kind", synthetic.LAWS)
def test_the_law_is_a_probability(kind, monkeypatch):
    """Over a tiny alphabet, the probabilities of all documents of length 1 .. 4 sum to P(length <= 4)."""
    monkeypatch.setattr(synthetic, "END", 0.6)
    monkeypatch.setattr(synthetic, "BLOCK", 2)
    for letters in ("ZIPF_LETTERS", "MARKOV_LETTERS", "SPECTRUM_LETTERS"):
        monkeypatch.setattr(synthetic, letters, 3)
    clear_caches()
    first = synthetic.LAWS[kind].first_id
    total = sum(
        np.exp(-synthetic.true_nats(kind, np.array(letters) + first))
        for length in range(1, 5)
        for letters in itertools.product(range(3), repeat=length)
    )
    expected = synthetic.LAWS[kind].document_nats()
    exact = _expected_nats(kind, first, longest=8)
    clear_caches()
    assert total == pytest.approx(1 - 0.4**4, rel=1e-9)
    assert exact < expected < exact * 1.01  # documents longer than 8 letters are missing from the sum


def clear_caches():
    for table in (synthetic.zipf_probabilities, synthetic.markov_table, synthetic.spectrum_table):
        table.cache_clear()


def _expected_nats(kind, first, longest):
    """Sum over all documents of up to `longest` letters of p(document) x nats of its letters."""
    law, total = synthetic.LAWS[kind], 0.0
    for length in range(1, longest + 1):
        letters = np.array(list(itertools.product(range(3), repeat=length)))
        nats = np.array([law.nats(row).sum() for row in letters])
        total += 0.6 * 0.4 ** (length - 1) * np.sum(np.exp(-nats) * nats)
    return total


def test_worked_numbers():
    assert synthetic.entropy_rate("zipf") == pytest.approx(3.3789, abs=1e-4)
    assert synthetic.true_nats("zipf", np.array([48])) == pytest.approx(7.7952, abs=1e-4)


def test_zipf_frequencies_and_document_lengths():
    documents = [ids for _, ids in synthetic.documents("zipf:300000", seed=0)]
    counts = np.bincount(np.concatenate(documents), minlength=256)[48 : 48 + synthetic.ZIPF_LETTERS]
    expected = synthetic.zipf_probabilities() * counts.sum()
    assert np.sum((counts - expected) ** 2 / expected) < 110  # chi-square, 63 degrees of freedom: p < 0.0003
    lengths = np.array([len(ids) for ids in documents])
    assert lengths.min() >= 1
    assert abs(lengths.mean() - 512) < 4 * 512 / np.sqrt(len(lengths))


def test_copies_repeat_at_the_block_distance_and_nowhere_else():
    ids = np.concatenate([ids for _, ids in synthetic.documents("copy:200000", seed=0) if len(ids) > 400])
    agree = {lag: np.mean(ids[lag:] == ids[:-lag]) for lag in (1, synthetic.BLOCK, synthetic.BLOCK + 1)}
    assert agree[synthetic.BLOCK] > 0.7 and agree[1] < 0.2 and agree[synthetic.BLOCK + 1] < 0.2


def test_same_seed_same_documents_and_more_tokens_continue_them():
    few = list(synthetic.documents("markov2:20000", 5))
    many = list(itertools.islice(synthetic.documents("markov2:60000", 5), len(few)))
    other = list(itertools.islice(synthetic.documents("markov2:20000", 6), len(few)))
    assert [(k, a.tolist()) for k, a in few] == [(k, a.tolist()) for k, a in many]
    assert [a.tolist() for _, a in few] != [a.tolist() for _, a in other]
    assert 20000 <= sum(len(ids) + 1 for _, ids in few) < 40000


def test_store_states_its_entropy_and_its_own_likelihood():
    config = small(data__sources=("zipf:60000",), data__validation_fraction=0.2)
    data = pipeline.prepare(config)
    store, entropy = data.stores[0], data.manifest["sources"][0]["entropy"]
    assert entropy["nats_per_token"] == synthetic.entropy_rate("zipf")
    for split in ("train", "validation"):
        tokens, offsets = store.tokens(split), store.offsets(split)
        nats = sum(synthetic.true_nats("zipf", tokens[a + 1 : b]) for a, b in itertools.pairwise(offsets.tolist()))
        assert entropy["true_nats_per_token"][split] == pytest.approx(nats / (len(tokens) - 1))
        assert entropy["true_nats_per_token"][split] == pytest.approx(entropy["nats_per_token"], rel=0.03)
        assert store.count(split, "bytes") == len(tokens) - 1 - store.count(split, "documents")


def test_bad_names():
    for name in ("zipf:", "zipf:many", "zipf:-5", "zipf:0", "zipf:99999999999999999999"):
        if name == "zipf:":
            assert synthetic.parse(name)[1] > 0
            continue
        with pytest.raises(InputError, match="number of tokens"):
            synthetic.parse(name)
    with pytest.raises(InputError, match="zipf"):
        synthetic.entropy_rate("zip")
    with pytest.raises(InputError, match="expected a synthetic source, one of .*zipf.*, got 'zip'"):
        next(synthetic.documents("zip", seed=0))
    with pytest.raises(InputError, match="make tokens, not text"):
        pipeline.prepare(small(data__tokenizer="bpe", data__vocab_size=600))


def test_more_tokens_than_the_disk_holds_are_refused_before_any_is_written(monkeypatch):
    """zipf:99999999999999999999 used to write until the disk was full."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(InputError, match=r"takes 0.0018 GB, .* has 0.001 GB left"):
        pipeline.prepare(small(data__sources=("zipf:900000",)))


def test_entropy_rate_of_markov1_is_that_of_the_stationary_chain_of_letters_and_eos():
    """Eigenvector of the stream's transition matrix against the closed form over one document."""
    table, v = synthetic.spectrum_table(), synthetic.SPECTRUM_LETTERS
    chain = np.zeros((v + 1, v + 1))
    chain[:v, :v], chain[:v, v], chain[v, :v] = (1 - synthetic.END) * table[:v], synthetic.END, table[v]
    values, vectors = np.linalg.eig(chain.T)
    stationary = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    rate = (stationary / stationary.sum()) @ synthetic.entropy(chain)
    assert synthetic.entropy_rate("markov1") == pytest.approx(rate, rel=1e-10)

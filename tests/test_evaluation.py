"""Guards against a validation loss that depends on batch size, ragged tails, packing, devices or the token budget."""

import collections
import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from lmjax import losses, trainer
from lmjax.errors import InputError
from lmjax.resolve import resolve
from lmjax.sharding import logical_mesh, make_mesh
from lmjax.validation import Validation, passed_reference, precision_warning
from tests.conftest import small


@functools.cache
def trained(family="decoder", **overrides):
    """A resolved run and its initial parameters."""
    run = resolve(small(family, **{"model__num_layers": 1, **overrides}))
    init = trainer.make_init(run.model, trainer.make_optimizer(run.config.optimizer), run.batches.rows([0]))
    return run, jax.jit(init)(jax.random.key(0))["params"]


SCORERS = {}  # their programs are compiled once


def held_out(run, params, batch_size, devices=1):
    mesh = make_mesh(run.config.mesh, jax.devices()[:devices])
    config = run.config.copy_and_resolve_references()
    config.evaluation.batch_size = batch_size
    with logical_mesh(mesh, run.config.mesh.rules):
        key = (id(run), batch_size, devices)  # `trained` keeps each run
        if key not in SCORERS:
            SCORERS[key] = Validation(run.data, run.objective, config, run.model, mesh)
        return SCORERS[key], SCORERS[key].per_row(params)["lm"], SCORERS[key].evaluate(params)


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_batch_size_tail_and_devices_do_not_matter(family):
    """Per-row sums equal to 1e-4 nats (float32 products in other blockings), the mean to 1e-6 relative."""
    run, params = trained(family)
    scorer, rows, result = held_out(run, params, 8)
    assert scorer.count % 3 and scorer.count % 8  # ragged for both
    for batch_size, devices in ((1, 1), (3, 1), (8, 8)):
        _, other_rows, other = held_out(run, params, batch_size, devices)
        for a, b in zip(rows, other_rows, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        assert other["loss"] == pytest.approx(result["loss"], rel=1e-6)
        assert other["loss_tokens"] == result["loss_tokens"]


def test_logits_in_chunks_give_the_same_loss(monkeypatch):
    """16 positions in chunks of 5, padded: per-row sums to 1e-5 nats."""
    run, params = trained()
    rows = held_out(run, params, 8)[1]
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 4 * 5 * run.config.model.vocab_size)
    assert losses.chunk_count(4, 16, run.config.model.vocab_size) == 4
    for a, b in zip(rows, held_out(run, params, 4)[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_packed_equals_unpacked_per_document():
    """Documents packed several to a row score as they do alone: the sum over all documents to 1e-5."""
    packed, params = trained(data__mode="pack", data__seq_len=64, model__position="rotary", evaluation__max_tokens=None)
    _, rows, result = held_out(packed, params, 8)
    store = packed.data.stores[0]
    tokens, offsets = store.tokens("validation"), store.offsets("validation")
    taken = int(result["loss_tokens"])
    total = count = 0
    score = jax.jit(packed.model.apply)
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        for piece in range(start, end, 64):  # what packing cuts: 64 predictions at a time
            text = np.asarray(tokens[piece : min(piece + 64, end) + 1], np.int32)
            inputs = np.zeros((1, 64), np.int32)
            inputs[0, : len(text) - 1] = text[:-1]
            logits = np.asarray(score({"params": params}, {"inputs": inputs}), np.float64)[0, : len(text) - 1]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            total -= log_p[np.arange(len(text) - 1), text[1:]].sum()
            count += len(text) - 1
    assert count == taken
    assert result["loss"] == pytest.approx(total / count, rel=1e-5)


def test_uniform_logits_give_log_vocabulary_and_its_bits():
    """A model that knows nothing: loss log V, perplexity V, bits per byte = nats / log 2 / bytes of the text."""
    run, params = trained()
    zero = jax.tree.map(np.zeros_like, params)
    scorer, _, result = held_out(run, zero, 8)
    size = run.config.model.vocab_size
    assert result["loss"] == pytest.approx(math.log(size), rel=1e-6)
    assert result["perplexity"] == pytest.approx(size, rel=1e-5)
    bits = result["loss"] * result["loss_tokens"] / math.log(2) / scorer.set.bytes[0]
    assert result["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize("family", ["encoder", "encoder_decoder"])
def test_bits_per_byte_is_none_where_not_every_token_is_predicted(family):
    run, params = trained(family)
    assert held_out(run, params, 8)[2]["bits_per_byte"] is None


def test_corruption_of_the_held_out_rows_is_fixed_by_the_evaluation_seed():
    found = []
    for seed in (0, 0, 1):
        run, params = trained("encoder", evaluation__seed=seed)
        found.append(held_out(run, params, 8)[2]["loss"])
    assert found[0] == found[1] != found[2]


def test_evaluation_can_be_given_up():
    run, params = trained()
    scorer = held_out(run, params, 8)[0]
    assert scorer.evaluate(params, lambda: True) is None


def test_the_loss_of_a_mixture_is_weighted_by_the_mixture_not_by_the_budget():
    """Sources weighted 0.05 / 0.95 whose validation splits are of other sizes: the loss used to follow the sizes."""
    mixture = {"data__sources": ("zipf:60000", "copy:20000"), "data__weights": (0.05, 0.95)}
    for budget in (None, 20_000, 3_000):
        run, params = trained(**mixture, evaluation__max_tokens=budget)
        scorer, (nats, weight), result = held_out(run, params, 8)
        zipf, copy = (nats[scorer.set.source == s].sum() / weight[scorer.set.source == s].sum() for s in (0, 1))
        assert result["loss"] == pytest.approx(0.05 * zipf + 0.95 * copy)
        assert (result["loss/zipf:60000"], result["loss/copy:20000"]) == pytest.approx((zipf, copy))
        assert result["bits_per_byte"] * math.log(2) == pytest.approx(result["loss"], rel=0.01)  # a byte a token


def test_references_of_few_rows_of_many_sources():
    """Of three sources, the two chosen rows leave out the last: the weights had another length than the counts."""
    sources = {"data__sources": ("markov2:20000", "zipf:20000", "copy:20000"), "data__weights": (0.4, 0.3, 0.3)}
    run = resolve(small(data__validation_fraction=0.1, **sources))
    scorer = Validation(run.data, run.objective, run.config, run.model, make_mesh(run.config.mesh), score=print)
    few, many = (scorer.reference_losses(run.batches, run.objective, rows) for rows in (2, 2048))
    assert scorer.set.source[:: -(-scorer.count // 2)].tolist() == [0, 1]
    assert all(2 < found["reference_unigram"] < 6 for found in (few, many))


def test_a_term_of_the_loss_may_have_any_name():
    """A term named like a measurement, by an objective's own loss, was trained with and left out of validation."""
    run, ones = trained()[0], np.ones(8)

    def score(params, batch, carry):
        return {"lm": (3 * ones, ones), "margin_loss": (2 * ones, ones)}, carry

    config = run.config.copy_and_resolve_references()
    config.evaluation.batch_size = 8
    scorer = Validation(
        run.data, run.objective, config, run.model, make_mesh(run.config.mesh, jax.devices()[:1]), score
    )
    found = scorer.evaluate(None)
    assert (found["loss"], found["lm_loss"], found["margin_loss_loss"]) == pytest.approx((5, 3, 2))


def test_documents_without_a_label_are_refused_before_training():
    """Their loss is 0 / 0, which used to end the run after its last step."""
    run = trained("encoder")[0]

    def unlabelled(tokens, rng, spec):
        return {name: x * (name != "weights") for name, x in run.objective.make_example(tokens, rng, spec).items()}

    with pytest.raises(InputError, match=r"rows of validation have no label of the heads \['lm'\]"):
        objective = dataclasses.replace(run.objective, make_example=unlabelled)
        Validation(run.data, objective, run.config, run.model, make_mesh(run.config.mesh), score=print)


def test_tokens_and_bytes_are_counted_by_the_lm_head_whatever_the_names_of_other_heads():
    """Programs return terms in the order of their names: bytes per token were counted by the weights of the first."""
    run, _ = trained()

    def score(params, batch, carry):  # 2 nats per token, and 1 nat per row of a head whose name sorts before lm
        tokens_B = np.asarray(batch["weights"])[0].sum(1)
        return {"again": ((tokens_B > 0) * 1.0, (tokens_B > 0) * 1.0), "lm": (2 * tokens_B, tokens_B)}, carry

    mesh = make_mesh(run.config.mesh, jax.devices()[:1])
    scorer = Validation(run.data, run.objective, run.config, run.model, mesh, score)
    found, tokens = scorer.evaluate(None), scorer.set.rows(range(scorer.count))["weights"].sum()
    assert found["loss"] == pytest.approx(3) and found["loss_tokens"] == tokens
    assert found["bits_per_byte"] == pytest.approx(2 / math.log(2) * tokens / sum(scorer.set.bytes))


def test_the_standard_error_is_over_documents():
    """Rows of one document vary together: they are summed before the error of the ratio is taken."""
    run, params = trained(evaluation__max_tokens=None, data__validation_fraction=0.5)
    scorer, (nats, weight), result = held_out(run, params, 8)
    groups = scorer.set.document
    assert result["loss_documents"] == run.data.stores[0].count("validation", "documents") == len(set(groups))
    residual = np.asarray([(nats - result["loss"] * weight)[groups == g].sum() for g in sorted(set(groups))])
    expected = math.sqrt(np.sum(residual**2) * len(residual) / (len(residual) - 1)) / weight.sum()
    assert result["loss_standard_error"] == pytest.approx(expected)


def test_a_loss_over_few_documents_is_warned_about():
    run, params = trained(evaluation__max_tokens=1)
    result = held_out(run, params, 8)[2]
    assert (result["loss_documents"], result["loss_standard_error"]) == (1, None)
    assert "over 1 document, standard error unknown" in precision_warning(result)
    precise = {"loss": 2.0, "loss_standard_error": 0.01, "loss_documents": 100}
    assert precision_warning(precise) == ""
    assert "0.0300 (1.5 %)" in precision_warning(precise | {"loss_standard_error": 0.03})


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_reference_losses_equal_a_count_by_hand(family):
    """Unigram and bigram of the training rows on the validation rows, against dictionaries in a plain loop."""
    run, params = trained(family)
    scorer = held_out(run, params, 8)[0]

    def predictions(batch):
        for row in range(len(batch["inputs"])):
            for t in np.flatnonzero(batch["weights"][row]):
                left = batch["inputs"][row, t - 1] if t else 0
                yield int(left if family == "encoder" else batch["inputs"][row, t]), int(batch["targets"][row, t])

    training = list(predictions(run.batches.rows(range(min(2048, run.batches.rows_per_epoch)))))
    asked = list(predictions(scorer.set.rows(range(scorer.count))))
    ids = 1 + max(max(pair) for pair in training + asked)
    unigram, pairs, after = collections.Counter(t for _, t in training), collections.Counter(training), {}
    for before, target in pairs:
        after.setdefault(before, []).append(target)
    total = collections.Counter(before for before, _ in training)
    losses = [0.0, 0.0]
    for before, target in asked:
        p = (unigram[target] + 1) / (len(training) + ids)
        kinds = len(after.get(before, ()))
        q = (pairs[before, target] + kinds * p) / (total[before] + kinds) if kinds else p
        losses[0] -= math.log(p) / len(asked)
        losses[1] -= math.log(q) / len(asked)
    found = scorer.reference_losses(run.batches, run.objective)
    assert [found["reference_unigram"], found["reference_bigram"]] == pytest.approx(losses, rel=1e-9)
    assert passed_reference(losses[1] - 0.1, found) == "bigram"
    assert passed_reference(max(losses) + 0.1, found) == "none"


def test_source_gain_is_zero_without_cross_attention_and_none_without_a_source():
    """A model whose cross-attention writes nothing loses nothing by the wrong source; a random one changes."""
    run, params = trained("encoder_decoder")
    blind = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "cross_attention" in jax.tree_util.keystr(path) and path[-2].key == "out" else x,
        params,
    )
    scorer = held_out(run, params, 8)[0]
    assert scorer.source_gain(blind) == 0.0
    assert scorer.source_gain(jax.tree.map(lambda x: 3 * x, params)) != 0.0
    decoder, its = trained()
    assert held_out(decoder, its, 8)[0].source_gain(its) is None

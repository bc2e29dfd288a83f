"""Guards against word vectors of other pairs, noise or gradients than the paper's, and wrong analogies."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest

import lmjax
from lmjax import cli, trainer
from lmjax.decoding.ids import check_family
from lmjax.errors import InputError
from lmjax.evals.run import undefined
from lmjax.evals.vectors import Vectors
from lmjax.objectives.battery import byte_spec
from lmjax.objectives.skip_gram import SKIP_GRAM, make_example, most_pairs
from lmjax.resolve import resolve
from tests.conftest import small
from tests.test_corruption import Fixed

SEXES, ROLES = "ab", "stuvwx"  # context words
WORDS = "ABCDEFGHIJKL"  # of sex i % 2 and role i // 2


def test_the_example_of_the_docstring():
    spec = byte_spec(SKIP_GRAM, {"window": 1, "negatives": 1, "subsample": 0.0})
    noise = np.full((4, 1), (9 + 0.5) / 256)
    example = make_example(np.array([5, 6, 7]), Fixed(integers=[[1, 1, 1]], random=[noise]), spec)
    assert example["inputs"].tolist() == [5, 5, 6, 6, 6, 6, 7, 7]
    assert example["contexts"].tolist() == [6, 9, 5, 9, 7, 9, 6, 9]
    assert example["pair_targets"].tolist() == [1, 0] * 4 and example["pair_weights"].all()


def test_pairs_noise_and_subsampling_have_the_distributions_of_the_paper():
    """10^5 words of 4 kinds, within 5 standard errors; words left out bring later ones into the window."""
    rng, share = np.random.default_rng(0), np.array([0.5, 0.3, 0.15, 0.05])
    tokens = rng.choice(4, 100_000, p=share)
    frequencies = np.zeros(256)
    frequencies[:4] = share

    def pairs(tokens=tokens, **options):
        spec = SKIP_GRAM.spec(byte_spec(SKIP_GRAM).tokenizer, options, frequencies)
        return make_example(tokens, np.random.default_rng(1), spec)

    example = pairs(window=4, negatives=2, subsample=0.0)
    label = example["pair_targets"] == 1
    assert label.reshape(-1, 3)[:, 0].all() and not label.reshape(-1, 3)[:, 1:].any()
    np.testing.assert_allclose(label.sum() / len(tokens), 5.0, rtol=0.01)  # 2 x the mean of 1 .. 4
    noise = np.bincount(example["contexts"][~label], minlength=4)
    expected = share**0.75 / np.sum(share**0.75) * noise.sum()
    assert np.all(abs(noise - expected) < 5 * np.sqrt(expected))

    example = pairs(window=1, negatives=1, subsample=0.1)
    kept = np.bincount(example["inputs"][example["pair_targets"] == 1], minlength=4) / 2
    expected = share * len(tokens) * np.minimum(1, np.sqrt(0.1 / share))
    assert np.all(abs(kept - expected) < 5 * np.sqrt(expected))

    alternating = np.arange(2000) % 2  # of which the first kind, of 0.5, is almost always left out
    example = pairs(alternating, window=1, negatives=1, subsample=1e-6)
    assert not np.any((example["inputs"] == 0) & (example["contexts"] == 0) & (example["pair_targets"] == 1))

    ends = np.array([65, 66, 256, 67, 68])  # a document's end
    example = pairs(ends, window=4, negatives=1, subsample=0.0)
    near = example["pair_targets"] == 1
    assert {*zip(example["inputs"][near], example["contexts"][near], strict=True)} == {
        *((65, 66), (66, 65), (67, 68), (68, 67))
    }
    assert [most_pairs(n, 2) for n in (1, 2, 3, 4)] == [0, 2, 6, 10]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Documents of a word and the two that say its sex and role, in any order: 8000 of bytes."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("text") / "words.jsonl"
    lines = []
    for i in rng.integers(12, size=8000):
        text = "".join(rng.permutation([WORDS[i], SEXES[i % 2], ROLES[i // 2]]))
        lines.append(json.dumps({"text": text}) + "\n")
    path.write_text("".join(lines))
    keys = {"model__d_model": 24, "model__num_layers": 1, "model__num_heads": 1, "data__sources": (f"files:{path}",)}
    keys |= {"data__tokenizer": "bytes", "data__vocab_size": None, "data__seq_len": 384, "data__max_epochs": 100.0}
    options = {"window": 2, "negatives": 3, "subsample": 0.0}
    keys |= {f"objective__options__{name}": value for name, value in options.items()}
    keys |= {"duration__steps": 400, "metrics__every_steps": 100, "optimizer__learning_rate": 0.02}
    return resolve(small("word2vec", **keys))


@pytest.fixture(scope="module")
def model(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert trainer.train(run, folder, show_progress=False) == trainer.DONE
    return lmjax.load(folder)


def test_loss_and_gradient_of_a_batch_against_numpy(run):
    """-log s(v u) - sum of log s(-v u') over the noise, per pair of the text, in float64: within 1e-6."""
    rows = run.batches.rows(np.arange(4))
    params = nn.unbox(run.model.init(jax.random.key(0), rows)["params"])
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.3).astype(np.float32), params)

    def loss(params):
        found, *_ = run.loss_terms(params, rows, jax.random.key(0))
        total, weight = found["pair"]
        return run.heads[0].coefficient * total / weight

    value, grads = jax.value_and_grad(loss)(params)
    assert grads.keys() == {"embedding"} and run.derived["n_total"] == 2 * 24 * run.config.model.vocab_size
    v, u = (np.asarray(params["embedding"][name], np.float64) for name in ("embedding", "head"))
    used = rows["pair_weights"].reshape(-1) > 0
    word, context, label = (rows[name].reshape(-1)[used] for name in ("inputs", "contexts", "pair_targets"))
    score = np.einsum("nd,nd->n", v[word], u.T[context])
    sign = 2 * label - 1.0
    pairs = label.sum()
    assert value == pytest.approx(np.log1p(np.exp(-sign * score)).sum() / pairs, rel=1e-6)
    slope = -sign / (1 + np.exp(sign * score)) / pairs
    by_word, by_context = np.zeros_like(v), np.zeros_like(u.T)
    np.add.at(by_word, word, slope[:, None] * u.T[context])
    np.add.at(by_context, context, slope[:, None] * v[word])
    np.testing.assert_allclose(grads["embedding"]["embedding"], by_word, atol=1e-6)
    np.testing.assert_allclose(grads["embedding"]["head"], by_context.T, atol=1e-6)
    assert run.derived["flops_per_step"] == 3 * 2 * 24 * rows["inputs"].shape[1] * 8  # a product of vectors per pair


def test_planted_neighbours_and_analogies_are_learned(model, tmp_path, capsys):
    """Every analogy of sexes and roles; the neighbours of a word share its sex or its role."""
    vectors = model.vectors()
    lines = [f"{WORDS[i]} {WORDS[i + 1]} {WORDS[j]} {WORDS[j + 1]}" for i in (0, 2, 4) for j in (6, 8, 10)]
    lines = [": sexes", *lines]
    lines += ["", ": roles", *(f"{WORDS[i]} {WORDS[j]} {WORDS[i + 1]} {WORDS[j + 1]}" for i in (0, 4) for j in (2, 8))]
    (tmp_path / "questions.txt").write_text("\n".join([*lines, "A B lugubrious D"]))
    ask = ["vectors", str(model.run_dir), "--format", "csv"]
    assert cli.main([*ask, "--questions", str(tmp_path / "questions.txt")]) == 0
    found = capsys.readouterr().out.splitlines()
    assert cli.main([*ask, "--nearest", "A", "--analogy", "A B K", "--count", "1"]) == 0
    assert [line.split(",")[:2] for line in capsys.readouterr().out.splitlines()[2:]] == [["A B K", "L"]]
    assert found[1:] == ["sexes,9,0,9,1.0", "roles,5,1,4,1.0", "total,14,1,13,1.0"]
    assert vectors.analogy("A", "B", "K")[0][0] == "L"
    for i, word in enumerate(WORDS):
        near = vectors.nearest(word, 2)
        others = [WORDS.index(token) for token, _ in near if token in WORDS]
        assert others and all(j % 2 == i % 2 or j // 2 == i // 2 for j in others) and near[0][1] <= 1


def test_scores_are_shifted_mutual_information(run, model):
    """Levy and Goldberg 2014 (NeurIPS): log p(context | word) / (k q(context)), with p = 1/2 for both contexts."""
    share = run.data.frequencies
    assert share.sum() == pytest.approx(1) and share[ord("a")] == pytest.approx(1 / 6, abs=0.01)
    noise = share**0.75 / np.sum(share**0.75)
    pairs = [(ord(w), ord(c)) for i, w in enumerate(WORDS) for c in (SEXES[i % 2], ROLES[i // 2])]
    words, contexts = np.asarray(pairs, np.int32).T[:, None]
    scores = model.model.apply({"params": model.params}, {"inputs": words, "contexts": contexts}, project=False)
    expected = np.log(0.5 / (3 * noise[contexts[0]]))
    assert np.mean(abs(np.asarray(scores["pair"][0, :, 1]) - expected)) < 0.25


def test_vectors_of_any_model_and_words_of_several_tokens():
    class Table:
        lossless = True

        def encode(self, text):
            return np.arange(len(text.strip()))  # one id per letter

        def decode(self, ids):
            return "xyz"[ids[0]]

    vectors = Vectors(Table(), np.eye(3, dtype=np.float32))
    assert vectors.nearest("x", 9) == [("y", 0.0), ("z", 0.0)]
    for ask, message in [
        (lambda: vectors.nearest("xy"), "word 'xy': expected one token, got .'x', 'y'."),
        (lambda: vectors.nearest(""), "word '': expected one token"),
        (lambda: vectors.accuracy(["x x x"]), "line 1: expected four words, got 'x x x'"),
        (lambda: vectors.accuracy([": a", ""]), "expected lines of four words, got none"),
    ]:
        with pytest.raises(InputError, match=message):
            ask()


def test_what_it_cannot_do_is_refused_by_name(run, model):
    with pytest.raises(InputError, match="cannot generate text, as it has no cache.*use lmjax vectors"):
        check_family(model.config.model)
    with pytest.raises(InputError, match="'word2vec' has no probabilities of a text"):
        model.score("A", "a")
    with pytest.raises(InputError, match="'word2vec' has no probabilities of a text"):
        model.perplexity(["Aas"])
    assert "'word2vec' has no probabilities of a text" in undefined(None, model.record)
    with pytest.raises(InputError, match="expected rows of skip_gram and project=False"):
        model.model.apply({"params": model.params}, {"inputs": np.zeros((1, 2), np.int32)})
    plain = {"model__num_layers": 1, "data__tokenizer": "bytes", "data__vocab_size": None, "data__seq_len": 384}
    for keys, message in [
        ({"objective__name": "causal_lm"}, "causal attention, which model.family word2vec does not have"),
        ({"data__mode": "pack"}, "'word2vec' cannot pack"),
        ({"model__position": "learned"}, "expected the head pair, num_layers 1 and position 'none'"),
    ]:
        with pytest.raises(InputError, match=message):
            resolve(small("word2vec", **{**plain, **keys}))
    with pytest.raises(InputError, match="pairs attention, .* decoder does not have; set model.family=word2vec"):
        resolve(small(objective__name="skip_gram"))

"""From texts to texts: framing, stop ids, masks, spans, the command. Tiny random models, the bytes tokenizer."""

import dataclasses
import functools
import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from lmjax import cli, models, trained
from lmjax import generate as module
from lmjax.cli.models import generate_text
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.generate import Generation, Settings, fill_masks, generate, generate_ids, infill
from tests.conftest import small
from tests.test_models import model_config

EOS, PAD, MASK = 256, 257, 258
SENTINELS = (259, 260, 261, 262)
OBJECTIVES = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder_decoder": "span_corruption"}
SHORT = Settings(max_new_tokens=8)


@functools.cache
def random_run(family, objective="", **overrides):
    """A trained.Trained of random weights: ids 263 .. 319 of its table are no token's."""
    config = small(family).copy_and_resolve_references()
    config.unlock()
    config.model = model_config(
        **{"family": family, "vocab_size": 320, "max_len": 64, "encoder_layers": 1, **overrides}
    )
    config.objective.name = objective or OBJECTIVES[family]
    model = models.build(config.model)
    ids = np.zeros((1, 4), np.int32)
    batch = {"inputs": ids, **({"encoder_inputs": ids} if family == "encoder_decoder" else {})}
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), batch))["params"]
    params = jax.tree.map(lambda x: 3.0 * x, params)  # less uniform
    tokenizer = tokenizers.Bytes(len(SENTINELS))
    record = {"data": {"tokenizer": tokenizers.facts(tokenizer)}}
    return trained.Trained(pathlib.Path("run"), config, record, tokenizer, model, params, 0)


def ids_of(run, prompts, settings=SHORT, **options):
    settings = dataclasses.replace(settings, stop_ids=(EOS,))
    return generate_ids(run.config.model, run.params, prompts, settings, usable=263, **options)


def ids(found):
    return [[one.ids for one in ones] for ones in found]


def test_a_decoder_reads_prefix_and_text():
    """Text, ids and nothing at all; generation stops at eos and uses no id without a token."""
    run = random_run("decoder")
    found = generate(run, ["To be", [84, 111], ""], SHORT)
    assert ids(found) == ids(ids_of(run, [[EOS, *b"To be"], [84, 111], [EOS]]))
    for [one] in found:
        kept = one.ids[:-1] if one.finish == "stop" else one.ids
        assert one.text == run.tokenizer.decode(kept)
    sampled = generate(run, [""] * 8, Settings("sample", max_new_tokens=32, temperature=9.0, stop_ids=()))
    assert 200 < max(token for [one] in sampled for token in one.ids) < 263


def test_a_prefix_model_reads_its_prompt_in_full():
    run, causal = random_run("decoder", "prefix_lm"), random_run("decoder")
    found = generate(run, ["To be or not"], SHORT)
    assert ids(found) == ids(ids_of(run, [[EOS, *b"To be or not"]], visible_prefix=True))
    assert found[0][0].log_prob != generate(causal, ["To be or not"], SHORT)[0][0].log_prob


def test_an_encoder_decoder_reads_prefix_text_and_eos_and_writes_from_pad():
    run = random_run("encoder_decoder")
    expected = ids_of(run, [[EOS, *b"To be", EOS], [EOS, EOS]], decoder_start=(PAD,))
    assert ids(generate(run, ["To be", ""], SHORT)) == ids(expected)


def test_a_prompt_cut_on_the_left_keeps_a_bos_but_no_eos():
    """64 positions, 8 new tokens: 57 fit. An eos marks where a document begins; a cut one has none, as in training."""
    run = random_run("decoder")
    text = "abcdefgh" * 10
    with pytest.raises(InputError, match=r"prompt 0: expected at most 57 tokens .* got 81; set truncate='left'"):
        generate(run, [text], SHORT)
    left = dataclasses.replace(SHORT, truncate="left")
    assert ids(generate(run, [text], left)) == ids(ids_of(run, [[*text.encode()[-57:]]]))
    other = tokenizers.Bytes(len(SENTINELS))
    other.prefix = (MASK,)  # stands for a BOS
    with_bos = dataclasses.replace(run, tokenizer=other)
    assert ids(generate(with_bos, [text], left)) == ids(ids_of(run, [[MASK, *text.encode()[-56:]]]))


def test_texts_of_tokenizers_that_drop_the_blank_before_a_first_word():
    """A continuation keeps it: "the" + "cat" reads "the cat", whatever the tokenizer makes of "cat" alone."""
    import tokenizers as library

    words = {"▁the": 0, "▁cat": 1, "▁sat": 2, "▁": 3, "<s>": 4}
    hf = library.Tokenizer(library.models.WordLevel(words, "▁"))
    hf.pre_tokenizer = library.pre_tokenizers.Metaspace()
    hf.decoder = library.decoders.Metaspace()
    tokenizer = tokenizers.HuggingFace(hf.to_str(), tokenizers.SpecialIds(-1, -1, -1, ()), prefix=(4,))
    run = dataclasses.replace(random_run("decoder"), tokenizer=tokenizer)
    assert tokenizer.encode("the cat").tolist() == [0, 1] and tokenizer.decode([1]) == "cat"
    [[one]] = generate(run, ["the"], Settings(max_new_tokens=4))
    assert one.finish == "length" and max(one.ids) < 5
    assert tokenizer.decode([0]) + one.text == tokenizer.decode([0, *one.ids])
    assert module._text_of(tokenizer, "decoder")([4, 0], [1, 2]) == " cat sat"


def test_a_run_without_a_tokenizer_takes_ids():
    run = dataclasses.replace(random_run("decoder"), tokenizer=None)
    [[one]] = generate(run, [[5, 6]], SHORT)
    assert one.text == "" and len(one.ids) == 8 and one.finish == "length"
    with pytest.raises(InputError, match="run has no tokenizer to read texts with"):
        generate(run, ["a"], SHORT)
    with pytest.raises(InputError, match="prompt 0: expected at least one id"):
        generate(run, [[]], SHORT)


@pytest.mark.parametrize(
    ("family", "prompts", "settings", "words"),
    [
        ("encoder", ["a"], {}, "to generate text, got an encoder; use fill_masks"),
        ("decoder", [[263]], {}, r"prompt 0: expected ids of the vocabulary, 0 .. 262, got \[263\]"),
        ("decoder", "text", {}, r"expected a list of texts, got one text; write \['text'\]"),
        ("decoder", ["a"], {"method": "beam", "num_beams": 264}, "num_beams: expected at most the 263 ids"),
        ("encoder_decoder", ["a" * 70], {}, "prompt 0: expected at most 64 tokens"),
    ],
)
def test_bad_prompts(family, prompts, settings, words):
    with pytest.raises(InputError, match=words):
        generate(random_run(family), prompts, Settings(**settings))


def test_an_empty_prompt_needs_a_prefix():
    tokenizer = tokenizers.Bytes(2)
    tokenizer.prefix = ()
    run = dataclasses.replace(random_run("decoder"), tokenizer=tokenizer)
    with pytest.raises(InputError, match="prompt 1 is empty, and this model's tokenizer has no prefix"):
        generate(run, ["a", ""], SHORT)


def test_a_model_that_gives_nan_is_named():
    run = random_run("decoder")
    run = dataclasses.replace(run, params=jax.tree.map(lambda x: np.nan * x, run.params))
    with pytest.raises(InputError, match="not finite; did its training diverge"):
        generate(run, ["a"], SHORT)


# -- Masks.


def test_masks_are_filled_from_the_forward_pass():
    """Ragged texts, one or two masks, three spellings: softmax of the logits at each mask, whatever the batch."""
    run = random_run("encoder")
    texts = ["a[MASK]c", "<mask>", "to be or not to [MASK], that is <mask>"]
    found = fill_masks(run, texts, top=3)
    assert [len(masks) for masks in found] == [1, 1, 2]
    pieces = [[EOS, 97, MASK, 99], [EOS, MASK], [EOS, *b"to be or not to ", MASK, *b", that is ", MASK]]
    apply = jax.jit(run.model.apply)
    for masks, row in zip(found, pieces, strict=True):
        logits = np.asarray(apply({"params": run.params}, {"inputs": np.asarray([row])})[0], np.float64)
        places = [i for i, token in enumerate(row) if token == MASK]
        for mask, place in zip(masks, places, strict=True):
            p = np.exp(logits[place]) / np.exp(logits[place]).sum()
            best = np.argsort(-p[:263])[:3]
            assert [token for token, _ in mask] == [run.tokenizer.show(i) for i in best]
            np.testing.assert_allclose([x for _, x in mask], p[best], rtol=1e-4)
    for text, masks in zip(texts, fill_masks(run, texts, top=3, batch_size=1), strict=True):
        expected = found[texts.index(text)]
        assert [[t for t, _ in m] for m in masks] == [[t for t, _ in m] for m in expected]
        np.testing.assert_allclose([[x for _, x in m] for m in masks], [[x for _, x in m] for m in expected], rtol=1e-4)


def test_bad_masks():
    run = random_run("encoder")
    for arguments, words in (
        ((run, ["no blank"]), r"text 0: expected a \[MASK\] in it, got 'no blank'"),
        ((run, ["[MASK]" + "a" * 70]), "text 0: expected at most 64 tokens .*, got 72"),
        ((run, ["[MASK]"], 0), r"top: expected a whole number in 1 .. 263 .*, got 0"),
        (
            (random_run("decoder"), ["[MASK]"]),
            "expected an encoder with a head over the vocabulary, got a decoder; use gen",
        ),
        ((random_run("encoder_decoder"), ["[MASK]"]), "got an encoder_decoder; use infill"),
        ((random_run("encoder", head="discriminator"), ["[MASK]"]), "got a discriminator .*; use its generator"),
    ):
        with pytest.raises(InputError, match=words):
            fill_masks(*arguments)


def test_words_of_bpe_begin_with_their_blank():
    """ "the [MASK] sat" masks " cat", blank included, as a text in training would have."""
    bpe = tokenizers.train_bpe(["the cat sat on the mat " * 20], 300, 4)
    mask = bpe.specials.mask
    assert bpe.encode_around(["the ", " sat"], [mask]) == [*bpe.encode("the"), mask, *bpe.encode(" sat")]
    assert tokenizers.Bytes(2).encode_around(["a ", "b"], [258]) == [97, 32, 258, 98]
    published = tokenizers.HuggingFace(bpe.artefact, tokenizers.SpecialIds(0, 1, 2, ()))
    name = published.show(2)  # here a letter; in published files a special token
    assert published.encode_around(["the", "sat"], [2]) == published.encode(f"the{name}sat").tolist()


# -- Spans.


def scripted(monkeypatch, targets):
    """Replaces the model: it writes these ids, and notes what it was asked."""
    asked = []

    def fake(run, prompts, settings, batch_size, numbers):
        asked.append((prompts, settings.stop_ids))
        ends = [("length", "stop")[ids[-1] in settings.stop_ids] for ids in targets]
        return [[Generation(tuple(t), "", -1.0, -1.0, end)] for t, end in zip(targets, ends, strict=True)]

    monkeypatch.setattr(module, "generate", fake)
    return asked


def test_spans_go_back_into_the_text(monkeypatch):
    """The docstring's example; two blanks of which one stays empty; names, T5's and ours."""
    run = random_run("encoder_decoder")
    asked = scripted(monkeypatch, [[259, *b"b", EOS]])
    [[one]] = infill(run, ["a <mask> c"])
    assert (one.text, one.spans, one.finish) == ("a b c", ("b",), "stop")
    assert asked == [([[EOS, *b"a ", 259, *b" c", EOS]], (EOS, 260))]

    scripted(monkeypatch, [[259, *b"x", 261, *b"y"]])
    [[one]] = infill(run, ["1<extra_id_0>2<sentinel_1>3"])
    assert (one.text, one.spans, one.finish) == ("1x23", ("x", None), "length")


def test_spans_of_a_model():
    """Of a random model: a text and a span for each blank, the same as the decoded target's."""
    run = random_run("encoder_decoder")
    [ones] = infill(run, ["to be <mask> not <mask> be"], Settings("sample", num_return=3, max_new_tokens=12))
    assert len(ones) == 3 and all(len(one.spans) == 2 for one in ones)
    assert all(one.text.startswith("to be ") and one.text.endswith(" be") for one in ones)


def test_spans_do_not_depend_on_the_other_texts():
    """A text with one blank beside one with three: the same draws, the same sentinel ends it."""
    run = random_run("encoder_decoder")
    settings = Settings("sample", temperature=3.0, seed=1, max_new_tokens=12)
    [alone] = infill(run, ["ab <mask> cd"], settings)
    beside = infill(run, ["ab <mask> cd", "a<mask>b<mask>c<mask>d"], settings)
    assert [one.spans for one in beside[0]] == [one.spans for one in alone]
    assert beside[0][0].log_prob == pytest.approx(alone[0].log_prob, abs=1e-4)
    assert beside[0][0].finish == alone[0].finish


def test_bad_spans():
    run = random_run("encoder_decoder")
    for arguments, words in (
        ((run, ["no blank"]), "text 0: expected a <mask> or a sentinel like <extra_id_0> in it"),
        ((run, ["<mask>" * 5]), r"text 0: expected blanks 0 .. 3 \(one per sentinel\), got 4"),
        ((run, ["<extra_id_9>"]), "got 9"),
        ((run, ["<extra_id_1> <extra_id_1>"]), "text 0: expected all blanks unnamed, or all named with distinct names"),
        ((run, ["<extra_id_1> <mask>"]), "all named"),
        ((random_run("decoder"), ["<mask>"]), "expected an encoder_decoder whose tokenizer has sentinels"),
    ):
        with pytest.raises(InputError, match=words):
            infill(*arguments)


# -- The command.


def test_the_command_prints_text_or_json():
    run = random_run("decoder")
    settings = Settings("beam", num_beams=2, num_return=2, max_new_tokens=4)
    lines = [json.loads(line) for line in generate_text(run, ["ab", "c"], settings, as_json=True).splitlines()]
    found = generate(run, ["ab", "c"], settings)
    expected = [("ab", 0), ("ab", 1), ("c", 0), ("c", 1)]
    assert [(line["prompt"], line["number"]) for line in lines] == expected
    assert [tuple(line["ids"]) for line in lines] == [one.ids for ones in found for one in ones]
    shown = generate_text(run, ["ab"], settings)
    best = found[0][0]
    finish = {"stop": "stopped", "length": "cut at the limit"}[best.finish]
    head = f"--- 'ab' #0: {finish}, log-probability {best.log_prob:.2f} nats, score {best.score:.4f}\n"
    assert shown.startswith(head + "ab" + best.text)

    masks = generate_text(random_run("encoder"), ["a[MASK]"], Settings(), top=2)
    assert masks.startswith("a[MASK]\n  mask 0: ") and len(masks.splitlines()) == 2
    with pytest.raises(InputError, match="an encoder fills masks and does not generate text; leave out method, top_p"):
        generate_text(random_run("encoder"), ["a[MASK]"], Settings("sample", top_p=0.5))

    seq2seq = random_run("encoder_decoder")
    line = json.loads(generate_text(seq2seq, ["a<mask>b"], SHORT, as_json=True))
    assert set(line) == {"prompt", "number", "text", "spans", "log_prob", "score", "finish"}
    with pytest.raises(InputError, match="was trained to fill gaps: expected <mask>"):
        generate_text(seq2seq, ["ab"], SHORT)
    with pytest.raises(
        InputError, match=r"expected blanks \(<mask>\) in all prompts or in none, got none in prompts \[1\]"
    ):
        generate_text(seq2seq, ["a<mask>b", "ab"], SHORT)


def test_lmjax_generate(tmp_path, monkeypatch, capsys):
    """The whole way: run directory, prompts from a file, JSON out; exit code 64."""
    monkeypatch.setattr("lmjax.cli.models.start", lambda: None)  # would set up this process as a worker
    run, run_dir = random_run("decoder"), tmp_path / "run"
    run_dir.mkdir()
    trained.write_imported(run_dir, run.config.model.to_dict(), "causal_lm", run.tokenizer, run.params, {})
    (tmp_path / "prompts.txt").write_text("To be\nor not\n")
    settings = ("--method", "sample", "--temperature", "0.7", "--seed", "3", "--max-new-tokens", "8")
    assert cli.main(["generate", str(run_dir), "--prompts", str(tmp_path / "prompts.txt"), *settings, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = generate(run, ["To be", "or not"], Settings("sample", temperature=0.7, seed=3, max_new_tokens=8))
    assert [(line["prompt"], tuple(line["ids"])) for line in lines] == [
        (prompt, one.ids) for prompt, [one] in zip(["To be", "or not"], found, strict=True)
    ]
    assert cli.main(["generate", str(run_dir), "--prompt", "a", "--method", "sample", "--top-p", "0"]) == 64
    assert "top_p: expected a number in (0, 1], 1: off, got 0.0" in capsys.readouterr().err


def test_config_and_parameters_stay_what_they_are():
    """Decoding changes neither the config nor the parameters it is given."""
    run = random_run("decoder")
    config, params = ConfigDict(run.config.model.to_dict()), jax.tree.map(np.array, run.params)
    generate(run, ["a"], SHORT)
    assert config.to_dict() == run.config.model.to_dict()
    jax.tree.map(np.testing.assert_array_equal, params, run.params)

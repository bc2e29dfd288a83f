"""Guards against corruption that is not the one of its paper: spans, whole words, mixtures of denoisers, moved text."""

import dataclasses
import itertools
import types

import numpy as np
import pytest

from lmjax.data.tokenizers import Bytes, SpecialIds
from lmjax.errors import InputError
from lmjax.objectives import get, merge_options
from lmjax.objectives.bart import BART, infilled
from lmjax.objectives.battery import byte_spec, check_objective
from lmjax.objectives.compose import for_decoder
from lmjax.objectives.fill_in_the_middle import FILL_IN_THE_MIDDLE
from lmjax.objectives.masked_lm import MASKED_LM, _stretches
from lmjax.objectives.span_corruption import SPAN_CORRUPTION, counts
from lmjax.objectives.translation import TRANSLATION
from lmjax.objectives.ul2 import DENOISERS, UL2, UL2_DECODER, denoiser
from lmjax.objectives.units import words
from tests.test_corruption import Fixed
from tests.test_pages import block

TEXT = np.frombuffer(b"It rains. Why? Go home now, as the others did. They know what to expect by now.", np.uint8)
SPECIALS = SpecialIds(eos=90, pad=89, mask=91, sentinels=(91, 92, 93, 94))


def ids(spec):
    """The spec with the ids of the worked examples."""
    return dataclasses.replace(spec, specials=SPECIALS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fill_in_the_middle", {"fim_rate": 1.0, "spm_rate": 0.0}),
        ("fill_in_the_middle", {"fim_rate": 1.0, "spm_rate": 1.0}),
        ("bart", {"rotate_rate": 1.0, "delete_rate": 0.2, "mask_rate": 0.2}),
        ("bart", {"permute_rate": 0.0, "infill_rate": 0.0, "mask_rate": 1.0}),
        ("bart", {"infill_rate": 1.0, "mean_span": 1.0}),
        ("masked_lm", {"unit": "span", "mask_rate": 0.5}),
        ("masked_lm", {"unit": "word"}),
        ("electra+next_sentence", {"mask_rate": 0.5}),
    ],
)
def test_battery_of_options(name, options):
    objective = get(name)[0]
    found = check_objective(objective, byte_spec(objective, options), draws=50)
    assert "reconstruction" in found and ("rates hold" in found) == (options.get("unit") != "word" and "+" not in name)


@pytest.mark.parametrize(("spm", "inputs"), [(0.9, [91, 5, 92, 8, 93, 6, 7]), (0.1, [91, 92, 8, 93, 5, 6, 7])])
def test_fill_in_the_middle_example(spm, inputs):
    spec = ids(byte_spec(FILL_IN_THE_MIDDLE))
    rng = Fixed(random=[0.3, spm], integers=[[3, 1]])
    example = FILL_IN_THE_MIDDLE.make_example(np.arange(5, 9), rng, spec)
    assert example["inputs"].tolist() == inputs and example["targets"].tolist() == [*inputs[1:], 90]
    assert FILL_IN_THE_MIDDLE.reconstruct(example, spec).tolist() == [5, 6, 7, 8]


def test_the_middle_stays_inside_its_document():
    """Documents 1, 2 | 3 4 5 6 | 7: the longest is rearranged; its own eos ends the middle."""
    spec = byte_spec(FILL_IN_THE_MIDDLE, {"fim_rate": 1.0})
    row, used = np.array([1, 2, 256, 3, 4, 5, 6, 256, 7]), set()
    for seed in range(40):
        example = FILL_IN_THE_MIDDLE.make_example(row, np.random.default_rng(seed), spec)
        found = [*example["inputs"].tolist(), example["targets"][-1]]
        assert (
            found[:3] == [1, 2, 256] and found[-2:] == [256, 7] and sorted(found[3:10]) == [3, 4, 5, 6, 259, 260, 261]
        )
        assert np.array_equal(FILL_IN_THE_MIDDLE.reconstruct(example, spec), row)
        used.add(tuple(found))
    assert len(used) > 10


def test_bart_example():
    spec = ids(byte_spec(BART, {"permute_rate": 0.0, "infill_rate": 0.4}))
    rng = Fixed(random=[0.5, 0.5], poisson=[[0, 2]], integers=[[2, 1]])
    example = BART.make_example(np.arange(5, 10), rng, spec)
    assert example["encoder_inputs"].tolist() == [5, 91, 8, 91, 9, 90]
    assert example["inputs"].tolist() == [89, 5, 6, 7, 8, 9]
    assert example["targets"].tolist() == [5, 6, 7, 8, 9, 90]


def test_infilled_spans_have_poisson_lengths_and_one_mask_each():
    """The share of inserted masks and the mean length are those of a Poisson(3), within 5 standard errors; the last
    span of a row, which is cut off, makes the mean 2 % less."""
    lengths, hidden = [], np.zeros(400)
    for seed in range(200):
        found = infilled(np.arange(400), 120, 3.0, -1, np.random.default_rng(seed))
        assert (found >= 0).sum() == 280 and (np.diff(found[found >= 0]) > 0).all()
        masks, kept = np.flatnonzero(found < 0), {*found.tolist()}
        lengths.append(len(masks))
        hidden += [token not in kept for token in range(400)]
    assert np.mean(lengths) == pytest.approx(40, rel=0.03)  # spans of 120 tokens
    assert abs(hidden[20:-20] - 60).max() < 5 * np.sqrt(200 * 0.3 * 0.7)
    alone = [len(infilled(np.arange(9), 1, 3.0, -1, np.random.default_rng(seed))) for seed in range(20)]
    assert set(alone) == {9}


def test_bart_shuffles_whole_sentences_and_rotates():
    spec = byte_spec(BART, {"infill_rate": 0.0})
    source = BART.make_example(TEXT, np.random.default_rng(0), spec)["encoder_inputs"]
    text = Bytes(0).decode(source[:-1])
    pieces = ["It rains.", " Why?", " Go home now, as the others did.", " They know what to expect by now."]
    assert sorted(pieces, key=text.index) != pieces and len(text) == sum(map(len, pieces))
    spec = byte_spec(BART, {"infill_rate": 0.0, "permute_rate": 0.0, "rotate_rate": 1.0, "delete_rate": 0.1})
    source = BART.make_example(np.arange(20), np.random.default_rng(0), spec)["encoder_inputs"][:-1]
    assert len(source) == 18 and (np.diff(source) < 0).sum() == 1
    with pytest.raises(InputError, match="of at most 1, got 1.2"):
        merge_options(BART, {"delete_rate": 0.9})


def test_whole_words_are_masked():
    spec = byte_spec(MASKED_LM, {"unit": "word", "mask_rate": 0.2, "keep_rate": 0.0, "random_rate": 0.0})
    bounds, times = words(TEXT, spec), np.zeros(len(TEXT))
    for seed in range(200):
        example = MASKED_LM.make_example(TEXT, np.random.default_rng(seed), spec)
        chosen = np.add.reduceat(example["weights"], bounds[:-1])
        assert np.isin(chosen / np.diff(bounds), (0, 1)).all() and 10 <= chosen.sum() <= round(0.2 * len(TEXT))
        assert (example["inputs"][example["weights"] > 0] == 258).all()
        times += example["weights"]
    assert (times > 0).all()
    alone = MASKED_LM.make_example(np.full(50, 65), np.random.default_rng(0), spec)  # a word longer than all
    assert alone["weights"].sum() == 10 and (np.diff(np.flatnonzero(alone["weights"])) == 1).all()


def test_spans_of_words_have_the_lengths_of_spanbert():
    """Geometric(0.2) cut off at 10 words, mean 3.8; within 5 standard errors."""
    draws, bounds = 4000, np.arange(0, 30_003, 3)
    spans = np.array(list(itertools.islice(_stretches(bounds, False, np.random.default_rng(0)), draws)))
    share = np.bincount((spans[:, 1] - spans[:, 0]) // 3, minlength=11)[1:] / draws
    expected = 0.8 ** np.arange(10) / (0.8 ** np.arange(10)).sum()
    assert expected @ np.arange(1, 11) == pytest.approx(3.797, abs=1e-3)
    assert (abs(share - expected) < 5 * np.sqrt(expected / draws)).all() and not (spans % 3).any()


def test_a_span_is_masked_as_a_whole_and_the_last_is_cut_off():
    spec = byte_spec(MASKED_LM, {"unit": "span", "mask_rate": 0.05, "keep_rate": 0.5, "random_rate": 0.0})
    text, whole, seen = np.tile(np.frombuffer(b" ab", np.uint8), 300), 0, set()
    for seed in range(20):
        example = MASKED_LM.make_example(text, np.random.default_rng(seed), spec)
        chosen, shown = example["weights"] > 0, example["inputs"] == 258
        assert chosen.sum() == 45
        for start, stop in np.flatnonzero(np.diff(chosen, prepend=False, append=False)).reshape(-1, 2):
            assert start % 3 == 0
            whole += stop % 3 == 0
            seen |= {tuple(np.unique(shown[at : at + 3]).tolist()) for at in range(start, stop - 2, 3)}
    assert whole > 60 and seen == {(True,), (False,)}
    with pytest.raises(InputError, match="did you mean 'word'"):
        merge_options(MASKED_LM, {"unit": "words"})


def test_spans_of_byt5():
    """ByT5 (arXiv 2105.13626): spans of 20 bytes on average. 1024 bytes: 154 removed, in 8 spans."""
    spec = byte_spec(SPAN_CORRUPTION, {"mean_span": 20.0})
    assert counts(1024, spec.options) == (154, 8)
    lengths = []
    for seed in range(50):
        target = SPAN_CORRUPTION.make_example(np.arange(1024) % 256, np.random.default_rng(seed), spec)["targets"]
        lengths += np.diff(np.flatnonzero(target >= 256)).tolist()
    assert np.mean(lengths) - 1 == 154 / 8 and np.std(lengths) > 10


def test_ul2_examples():
    """Mode S for an encoder-decoder, and span corruption for a decoder, as in the docstrings."""
    options = {"mean_span": np.inf, "noise_density": 0.25}
    example = denoiser("S").make_example(np.arange(5, 9), None, ids(byte_spec(SPAN_CORRUPTION, options)))
    assert example["encoder_inputs"].tolist() == [93, 5, 6, 7, 91, 90]
    assert (example["inputs"].tolist(), example["targets"].tolist()) == ([89, 91, 8], [91, 8, 90])
    spec = ids(byte_spec(SPAN_CORRUPTION, {"noise_density": 0.5, "mean_span": 2.0}))
    rng = Fixed(choice=[[], [1]])
    example = for_decoder(SPAN_CORRUPTION).make_example(np.arange(5, 9), rng, spec)
    assert example["inputs"].tolist() == [5, 91, 8, 90, 91, 6, 7]
    assert example["prefix"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert example["targets"].tolist() == [91, 8, 90, 91, 6, 7, 90]
    assert example["weights"].tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_translation_for_decoders_has_no_frame_of_an_encoder():
    """A decoder's prompt would begin with the ids around a source, and without the eos that begins a document."""
    assert TRANSLATION.frame and for_decoder(TRANSLATION).frame is None


@pytest.mark.parametrize("objective", [UL2, UL2_DECODER], ids=lambda o: o.name)
def test_ul2_draws_its_denoisers_evenly_and_names_their_mode(objective):
    spec, tokens, seen = byte_spec(objective, sentinels=40), np.arange(100), np.zeros(7)
    modes = {"R": 259 + 37, "S": 259 + 38, "X": 259 + 39}
    for seed in range(350):
        example = objective.make_example(tokens, np.random.default_rng(seed), spec)
        mode, span, share = DENOISERS[objective.groups[group := int(example["group"])]]
        source = example["encoder_inputs"] if objective is UL2 else example["inputs"][example["prefix"]]
        target = example["targets"][example["weights"] > 0]
        assert source[0] == modes[mode] and not np.isin(target, [*modes.values()]).any()
        removed = target[target < 256]
        assert len(removed) == round(100 * share) and (target >= 259).sum() == max(1, round(100 * share / span))
        assert mode != "S" or removed.tolist() == [*range(75, 100)]
        seen[group] += 1
    assert ((seen - 50) ** 2 / 50).sum() < 22.5  # chi-square, 6 degrees of freedom: 99.9 %
    with pytest.raises(InputError, match="need 20 sentinels, three of them for the modes"):
        objective.make_example(tokens, np.random.default_rng(0), byte_spec(objective, sentinels=18))


def test_the_page_fills_gaps_as_in_training():
    """The prompt of docs/objectives.md, against the row of a document with this prefix and suffix."""
    asked, tokenizer = [], Bytes(8)
    model = types.SimpleNamespace(tokenizer=tokenizer, generate=lambda prompts: asked.extend(prompts) or [[0]])
    exec(block("fill in the middle"), {"model": model})
    text = tokenizer.encode("To be, or not to be")
    spec = FILL_IN_THE_MIDDLE.spec(tokenizer, {})
    example = FILL_IN_THE_MIDDLE.make_example(text, Fixed(random=[0.1, 0.9], integers=[[7, 13]]), spec)
    assert asked[0] == [256, *example["inputs"][:-6].tolist()]
    assert tokenizer.decode(example["targets"][-7:]) == "or not<eos>"

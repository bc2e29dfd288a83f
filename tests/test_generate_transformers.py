"""Greedy and beam search against transformers.generate: the same weights, equal ids, equal scores.

Tolerance 2e-5 relative plus 1e-4 (T5 1e-3): scores are sums of up to 12 float32 log-probabilities, each the difference
of logits near 20 of which the two libraries round the last bits differently (1e-6 relative), and a length penalty below
0 scales them up. T5 does not divide by sqrt(d): with these weights its softmax is so steep that float32 is up to 1e-4
off float64 in either library. A near-tie could flip a token; none does with these seeds. Hypotheses of the same score
(T5 sees no positions far back, so some are permutations of each other) may come in another order.
"""

import functools
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from ml_collections import ConfigDict  # noqa: E402

from lmjax.decoding.ids import Generation, Settings, generate_ids  # noqa: E402
from lmjax.hf import weights  # noqa: E402
from tests.hf_references import ours  # noqa: E402

torch.set_num_threads(1)
V, EOS, PAD, NEW = 24, 2, 1, 12
IDS = {"vocab_size": V, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": EOS}
SIZES = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}),
    "llama": (
        "LlamaForCausalLM",
        {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 32,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            "d_model": 16,
            "d_kv": 8,
            "num_heads": 2,
            "d_ff": 24,
            "num_layers": 2,
            "decoder_start_token_id": PAD,
            "tie_word_embeddings": False,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 12,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        {
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 24,
            "decoder_ffn_dim": 24,
            "max_position_embeddings": 32,
            "decoder_start_token_id": EOS,
            "forced_eos_token_id": None,
        },
    ),
}
# Seed and sizes of random weights (tables, layers, positions, cross-attention) for which rows differ from each other
# and do not just repeat a token, as small random models like to.
RANDOM = {
    "gpt2": (3, 0.3, 1.2, 0.6, 0.0),
    "llama": (3, 0.3, 1.2, 0.0, 0.0),
    "t5": (0, 1.0, 1.2, 0.0, 0.3),
    "bart": (3, 1.0, 0.6, 3.0, 0.2),
}
PROMPTS = [np.random.default_rng(7 + n).integers(3, V, n).tolist() for n in (5, 9, 2, 7, 1, 4)]


@functools.cache
def pair(name):
    """(transformers' model, our config, our parameters)"""
    model_class, sizes = SIZES[name]
    seed, tables, layers, positions, cross = RANDOM[name]
    kinds = {("wte", "shared", "embed_tokens", "lm_head"): tables, ("wpe", "embed_positions"): positions}
    kinds |= {("EncDecAttention", "encoder_attn."): cross, ("",): layers}
    config = getattr(transformers, model_class).config_class(**{**IDS, **sizes})
    model = getattr(transformers, model_class)._from_config(config, attn_implementation="eager").eval()
    if name == "t5":  # transformers builds it tied, and unties it where a file has two tables
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(V, 16))
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            scale = next(scale for parts, scale in kinds.items() if any(part in key for part in parts))
            if parameter.ndim == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.2 + ("bias" not in key))
            else:
                parameter.copy_(torch.randn_like(parameter) * scale)
    _, section, flat = ours(model)
    return model, ConfigDict(section), weights.unflatten(flat)


@functools.cache
def stops(name) -> tuple[int, ...]:
    """Three ids that the model likes to write after a few tokens, as stop ids: rows end at different lengths."""
    free = own(name, Settings(max_new_tokens=NEW, stop_ids=()))
    liked = np.bincount([token for [one] in free for token in {*one.ids[2:9]} - {*one.ids[:2]}], minlength=V)
    return tuple(np.argsort(-liked, kind="stable")[:3].tolist())


def theirs(name, settings) -> list[list[tuple[list[int], float]]]:
    """transformers' generations: prompts padded on the left (sources on the right), per prompt (ids, score)."""
    model, config, _ = pair(name)
    longest = max(map(len, PROMPTS))
    source = config.family == "encoder_decoder"
    rows = [p + [PAD] * (longest - len(p)) if source else [PAD] * (longest - len(p)) + p for p in PROMPTS]
    mask = [[1] * len(p) + [0] * (longest - len(p)) for p in PROMPTS]
    mask = mask if source else [row[::-1] for row in mask]
    beam = settings.method == "beam"
    options = {"num_return_sequences": settings.num_return, "length_penalty": settings.length_penalty} if beam else {}
    with torch.no_grad():
        out = model.generate(
            torch.tensor(rows),
            attention_mask=torch.tensor(mask),
            do_sample=False,
            num_beams=settings.num_beams if beam else 1,
            early_stopping=settings.early_stopping if beam else None,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens,
            repetition_penalty=float(settings.repetition_penalty),
            eos_token_id=list(settings.stop_ids) or None,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
            **options,
        )
    begins = 1 if source else longest
    found = []
    for r, row in enumerate(out.sequences[:, begins:].tolist()):
        end = next((i + 1 for i, token in enumerate(row) if token in settings.stop_ids), len(row))
        if beam:
            score = float(out.sequences_scores[r])
        else:
            steps = [torch.log_softmax(logits[r].float(), -1) for logits in out.logits[:end]]
            score = float(sum(step[token] for step, token in zip(steps, row[:end], strict=True)))
        found.append((row[:end], score))
    n = settings.num_return
    return [found[i : i + n] for i in range(0, len(found), n)]


def own(name, settings, prompts=PROMPTS, batch_size=8) -> list[list[Generation]]:
    _, config, params = pair(name)
    start = {"t5": (PAD,), "bart": (EOS,)}.get(name, ())
    return generate_ids(config, params, prompts, settings, batch_size, decoder_start=start)


def assert_equal(name, settings):
    """Same ids and scores, best first; returns the lengths there were."""
    lengths = set()
    for i, (expected, got) in enumerate(zip(theirs(name, settings), own(name, settings), strict=True)):
        for (ids, score), one in zip(expected, got, strict=True):
            equals = [other for other, its in expected if abs(its - score) <= 5e-6 * abs(score)]
            assert list(one.ids) in equals, (i, settings, ids)
            np.testing.assert_allclose(one.score, score, rtol=2e-5, atol=1e-3 if name == "t5" else 1e-4)
            assert one.finish == ("stop" if ids[-1] in settings.stop_ids else "length")
            lengths.add(len(ids))
    return lengths


@pytest.mark.parametrize("name", SIZES)
def test_greedy(name):
    lengths = assert_equal(name, Settings(max_new_tokens=NEW, stop_ids=stops(name)[:1]))
    lengths |= assert_equal(name, Settings(max_new_tokens=NEW, min_new_tokens=4, stop_ids=stops(name)))
    assert len(lengths) > 2, "all rows stopped at once: the test shows little about stopping"
    assert_equal(name, Settings(max_new_tokens=NEW, repetition_penalty=1.7, stop_ids=()))


@pytest.mark.parametrize("name", SIZES)
def test_beam(name):
    """Every prompt, n-best 3 of 3 beams: length penalties, both patient kinds of early stopping, min and max tokens."""
    lengths = set()
    for penalty, early, low, high in (
        (1.0, False, 0, NEW),
        (0.0, False, 0, NEW),
        (2.0, "never", 0, NEW),
        (-1.0, "never", 3, NEW),
        (0.6, False, 5, 10),
        (1.0, "never", 0, 9),
    ):
        lengths |= assert_equal(
            name,
            Settings(
                "beam",
                num_beams=3,
                num_return=3,
                length_penalty=penalty,
                early_stopping=early,
                min_new_tokens=low,
                max_new_tokens=high,
                stop_ids=stops(name)[:1],
            ),
        )
    assert len(lengths) > 3, "hypotheses stopped at few lengths only"


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_beam_that_stops_as_soon_as_it_can(name):
    for penalty in (1.0, 0.0):
        settings = {"num_beams": 4, "num_return": 2, "max_new_tokens": NEW, "stop_ids": stops(name)[:2]}
        assert_equal(name, Settings("beam", early_stopping=True, length_penalty=penalty, **settings))


@pytest.mark.parametrize("name", ["llama", "bart"])
def test_beam_with_a_repetition_penalty(name):
    settings = {"num_beams": 3, "max_new_tokens": NEW, "stop_ids": stops(name)[:1]}
    assert_equal(name, Settings("beam", repetition_penalty=1.4, num_return=2, **settings))


def test_one_beam_is_greedy():
    """Of one beam, the ids are those of greedy search, the score is the log-probability over the length."""
    beams = own("gpt2", Settings("beam", num_beams=1, max_new_tokens=NEW, stop_ids=stops("gpt2")))
    greedy = own("gpt2", Settings(max_new_tokens=NEW, stop_ids=stops("gpt2")))
    for [one], [other] in zip(beams, greedy, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(
            [one.log_prob, one.score], [other.log_prob, other.log_prob / len(one.ids)], rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("num_beams", [2, 5])
@pytest.mark.parametrize("early", [False, True, "never"])
def test_grid_of_beam_searches(name, num_beams, early):
    for penalty in (-0.5, 0.0, 0.7, 1.0, 3.0):
        for low, high in ((0, 1), (0, 6), (4, NEW), (NEW, NEW)):
            for count in (1, 3):
                assert_equal(
                    name,
                    Settings(
                        "beam",
                        num_beams=num_beams,
                        num_return=num_beams,
                        length_penalty=penalty,
                        early_stopping=early,
                        min_new_tokens=low,
                        max_new_tokens=high,
                        stop_ids=stops(name)[:count],
                    ),
                )

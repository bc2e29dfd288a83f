"""Exported runs are transformers models with the same outputs and a tokenizer that gives the same ids."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
import pytest
import torch
import transformers

from lmjax import config as configs
from lmjax import hf, models, trained
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.hf import architectures, options, weights
from tests import hf_references as references
from tests.conftest import ROOT, lmjax, small

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 2, "mlp_dim": 24, "vocab_size": 320, "max_len": 16}
OBJECTIVE = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder_decoder": "span_corruption"}
AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
}


def section_of(file, **changes):
    """The model section of a config file, small."""
    values = {f"model.{key}": value for key, value in {**SIZES, **changes}.items()}
    return options.canonical(configs.load(str(ROOT / "configs" / file), values).model.to_dict())


def noise(section, seed=0):
    """{path: array} with nothing at zero or one."""
    rng = np.random.default_rng(seed)
    centre = {"scale": 1.0}
    return {
        path: (centre.get(path.split("/")[-1], 0.0) + 0.2 * rng.normal(size=shape)).astype(np.float32)
        for path, shape in weights.shapes(section).items()
    }


def run_of(tmp_path, section, tokenizer=None):
    """A run directory with random parameters, as training would leave it."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    params, tokenizer = weights.unflatten(noise(section)), tokenizer or tokenizers.Bytes(8)
    trained.write_imported(run_dir, section, OBJECTIVE[section["family"]], tokenizer, params, {})
    return run_dir


CASES = {
    "decoder": ("decoder.py", {}, "gpt_neox"),
    "encoder": ("encoder.py", {}, "gpt_neox"),
    "encoder_decoder": ("encoder_decoder.py", {}, "t5"),
    "roberta": ("preset.py:roberta", {}, "roberta"),
    "bert_without_types": ("preset.py:bert", {"token_types": None, "norm_epsilon": 1e-5}, "bert"),
    "experts": (
        "preset.py:mixtral",
        {"expert_capacity": 1.0, "experts_per_token": 3, "embedding_scale": 4.0, "attention_scale": 0.3},
        "mixtral",
    ),
    "every_rewrite": (
        "decoder.py",
        {
            "share_layers": True,
            "num_kv_heads": 1,
            "attention_scale": 0.3,
            "logit_scale": 0.5,
            "embedding_scale": 3.0,
            "position": "sinusoidal",
        },
        "gpt2",
    ),
}
MORE = {
    "opt_at_offset_0": ("preset.py:opt", {"position_offset": 0, "use_bias": False}, "gpt2"),
    "no_positions": ("decoder.py", {"position": "none", "tie_embeddings": False}, "gpt2"),
    "mbart_like": ("preset.py:mbart", {"position_offset": 0, "head_bias": False, "use_bias": False}, "mbart"),
    "t5_odd_scale": ("preset.py:t5", {"logit_scale": 0.3, "norm_epsilon": 1e-5}, "t5"),
    "llama_encoder": ("encoder.py", {"norm": "rmsnorm", "activation": "swiglu", "num_kv_heads": 1}, "llama"),
    **{
        name: (f"preset.py:{name}", {"embedding_dim": 8} if name in ("albert", "electra") else {}, name)
        for name in (
            "gpt2",
            "gpt_neox",
            "llama",
            "qwen3",
            "gemma2",
            "mixtral",
            "opt",
            "bert",
            "albert",
            "distilbert",
            "electra",
            "bart",
        )
    },
    "t5_v1_1": ("preset.py:t5_v1_1", {}, "t5"),
}
MORE["bloom"] = ("preset.py:bloom", {"mlp_dim": 64}, "bloom")


def logits_of_both(run_dir, target):
    """(ours, transformers') at the real tokens of a padded batch, and transformers' model."""
    run = trained.load(run_dir)
    family, rng = run.config.model.family, np.random.default_rng(1)
    ids, mask = rng.integers(0, 256, (2, 12)), np.ones((2, 12), np.int64)
    mask[1, -4:] = 0
    ids = np.where(mask, ids, run.tokenizer.specials.pad)
    there = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    here = {"inputs": ids, "segment_ids": mask}
    if family == "encoder_decoder":
        targets = rng.integers(0, 256, (2, 7))
        there["decoder_input_ids"] = torch.tensor(targets)
        here = {"encoder_inputs": ids, "encoder_segment_ids": mask, "inputs": targets, "segment_ids": np.ones((2, 7))}
        mask = np.ones((2, 7))
    name = json.loads((target / "config.json").read_text())["architectures"][0]
    kind = "masked" if "MaskedLM" in name else "causal" if "Causal" in name or "LMHead" in name else "seq2seq"
    model = AUTO[kind].from_pretrained(target, local_files_only=True).eval()
    with torch.no_grad():
        expected = model(**there).logits.numpy()
        bare = {key: value[:1] for key, value in there.items() if key != "attention_mask"}
        assert references.distance(model(**bare).logits.numpy(), expected[:1]) < 5e-6  # the first row has no padding
    apply = jax.jit(run.model.apply, compiler_options=references.FAST)
    got = apply({"params": run.params}, {key: np.asarray(value, np.int32) for key, value in here.items()})
    return np.asarray(got)[mask > 0], expected[mask > 0], model


@pytest.mark.parametrize("name", ["decoder", "encoder", "encoder_decoder"])
def test_multipliers_of_a_parametrization_are_folded_into_the_weights(tmp_path, name):
    """muP or CompleteP at another width and depth than the base, without gains of norms."""
    file, _, expected = CASES[name]
    section = section_of(file, norm_scale=False)
    section |= {"logit_multiplier": 0.5, "attention_multiplier": 0.7, "branch_multiplier": 0.25}
    run_dir = run_of(tmp_path, section)
    facts = hf.export_run(run_dir, tmp_path / "target")
    assert "residual branches" in facts["notes"] and "the output projection is a copy" in facts["notes"]
    got, there, model = logits_of_both(run_dir, tmp_path / "target")
    assert references.distance(got, there) < 5e-6


def export_and_compare(tmp_path, file, changes, expected):
    run_dir = run_of(tmp_path, section_of(file, **changes))
    facts = hf.export_run(run_dir, tmp_path / "target")
    assert facts["model_type"] == expected
    got, there, model = logits_of_both(run_dir, tmp_path / "target")
    assert references.distance(got, there) < 5e-6
    return model, facts


@pytest.mark.parametrize("case", CASES)
def test_the_exported_model_computes_the_same(case, tmp_path):
    """Logits; an encoder-decoder's config also names the id that begins a target."""
    model, _ = export_and_compare(tmp_path, *CASES[case])
    if case == "encoder_decoder":
        assert model.config.decoder_start_token_id == tokenizers.Bytes(8).specials.pad
        assert model.generation_config.eos_token_id == 256


@pytest.mark.parametrize("named", [False, True])
def test_a_translation_leaves_with_the_ids_of_its_languages(tmp_path, monkeypatch, named):
    """Its targets would begin with the pad id, which it has never seen there."""
    monkeypatch.setitem(OBJECTIVE, "encoder_decoder", "translation")
    run_dir, target = run_of(tmp_path, section_of("encoder_decoder.py")), tmp_path / "target"
    record = json.loads((run_dir / "config.json").read_text())
    record["config"]["objective"]["options"] = {"source_language": named}
    (run_dir / "config.json").write_text(json.dumps(record))
    hf.export_run(run_dir, target)
    first, second = tokenizers.Bytes(8).specials.sentinels[:2]
    assert json.loads((target / "generation_config.json").read_text())["decoder_start_token_id"] == second
    ids = transformers.AutoTokenizer.from_pretrained(target)("a")["input_ids"]
    assert ids == ([97, 256, first] if named else [256, 97, 256])


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_every_preset_leaves_under_its_name(case, tmp_path):
    export_and_compare(tmp_path, *MORE[case])


def test_what_is_exported_comes_back(tmp_path):
    """Export, import, load: the default decoder returns as GPT-NeoX with biases of zeros, and leaves bit for bit."""
    run_dir = run_of(tmp_path, section_of("decoder.py"))
    facts = hf.export_run(run_dir, tmp_path / "target")
    assert "biases that the run lacks are zeros" in facts["notes"]
    hf.import_run(tmp_path / "target", tmp_path / "again")
    run = trained.load(tmp_path / "again")
    assert run.config.model.use_bias and not run.config.model.parallel_block
    section = section_of("decoder.py")  # its factor on embeddings, a power of two, is multiplied into the table
    expected = section["embedding_scale"] * noise(section)["embedding/embedding"]
    np.testing.assert_array_equal(np.asarray(run.params["embedding"]["embedding"]), expected)
    assert run.tokenizer.prefix == (256,) and run.tokenizer.specials.pad == 257 and run.tokenizer.specials.mask == 258
    hf.export_run(tmp_path / "again", tmp_path / "twice")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "target" / name).read_bytes()


TEXTS = ["To be, or not to be", "  two  spaces\n\ttab", "naïve café — 日本語 🙂", "x" * 50, "it's 1234 o'clock", ""]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_transformers_gives_our_ids(kind, tmp_path):
    """Every text: our prefix and ids; special tokens have our ids; ids decode to the text."""
    tokenizer = tokenizers.Bytes(4)
    if kind == "bpe":
        tokenizer = tokenizers.train_bpe(TEXTS * 5, 290, 4)
    section = section_of("decoder.py")
    facts = hf.export_run(run_of(tmp_path, section, tokenizer), tmp_path / "target")
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "target", local_files_only=True)
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()
        assert there(text)["input_ids"] == [tokenizer.specials.eos, *ids]
        assert there(text, add_special_tokens=False)["input_ids"] == ids
        assert there.decode(ids) == text
    specials = tokenizer.specials
    assert "the mask is <mask>, the sentinels <sentinel_0> .. <sentinel_3>" in facts["notes"]
    assert (there.eos_token_id, there.bos_token_id, there.pad_token_id) == (specials.eos, specials.eos, specials.pad)
    assert there.mask_token_id == specials.mask and there.convert_tokens_to_ids("<sentinel_3>") == specials.sentinels[3]
    assert len(there) == tokenizer.vocab_size
    config = json.loads((tmp_path / "target" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["vocab_size"]) == (specials.eos, specials.pad, 320)


@pytest.mark.parametrize(
    ("changes", "note"), [({"file": "/mine.py"}, "objective of /mine.py"), ({"name": "prefix_lm"}, "prefix")]
)
def test_objectives_that_stay_behind(changes, note, tmp_path):
    """What an objective does to a text is in no Hugging Face folder; the export says so."""
    run_dir = run_of(tmp_path, section_of("decoder.py"))
    record = json.loads((run_dir / "config.json").read_text())
    record["config"]["objective"] |= changes
    (run_dir / "config.json").write_text(json.dumps(record), "utf8")
    notes = hf.export_run(run_dir, tmp_path / "target")["notes"]
    assert note in notes and "is not in the folder" in notes


def test_refusals_name_the_options(tmp_path):
    """Nothing published has ALiBi without a norm on its embeddings, or gated layers with layer norm."""
    run_dir = run_of(tmp_path, section_of("decoder.py", position="alibi", mlp_dim=64))
    with pytest.raises(InputError, match=r"nearest is (gpt2|bloom): .*(position|embedding_norm)"):
        hf.export_run(run_dir, tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))
    with pytest.raises(InputError, match="nearest is llama: model.norm: expected 'rmsnorm', got 'layernorm'"):
        section = section_of("decoder.py", activation="swiglu")
        architectures.fit(section, noise(section))


def test_rewrites_change_no_bit_where_they_need_not():
    """head_dim 64: the attention scale 1/8 is a power of two, so T5's queries are ours with another exponent."""
    section = section_of("encoder_decoder.py", head_dim=64)
    params = noise(section)
    _, _, rewritten, _ = architectures.fit(section, params)
    path = "decoder/layers/self_attention/query/kernel"
    np.testing.assert_array_equal(rewritten[path], params[path] / 8)
    table = params["embedding/embedding"] * section["embedding_scale"]  # 16, a power of two
    np.testing.assert_array_equal(rewritten["embedding/embedding"], table)
    np.testing.assert_array_equal(rewritten["embedding/head"], table.T)


def test_existing_targets_and_unknown_words(tmp_path):
    run_dir = run_of(tmp_path, section_of("decoder.py"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InputError, match="expected a new or empty folder"):
        hf.export_run(run_dir, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["file"]
    with pytest.raises(InputError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        hf.export_run(run_dir, tmp_path / "target", dtype="bfloat61")
    with pytest.raises(InputError, match="expected a checkpoint of step 7"):
        hf.export_run(run_dir, tmp_path / "target", step=7)
    with pytest.raises(InputError, match="is not a run"):
        hf.export_run(tmp_path / "nothing", tmp_path / "target")
    assert not list(tmp_path.glob("*target*"))


def test_float16_does_not_overflow_in_silence(tmp_path):
    section = section_of("decoder.py")
    params = noise(section)
    params["embedding/embedding"][3, 3] = 1e6
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    trained.write_imported(run_dir, section, "causal_lm", tokenizers.Bytes(8), weights.unflatten(params), {})
    with pytest.raises(InputError, match="embed_in.weight: expected values below 65504 for float16, got 1"):
        hf.export_run(run_dir, tmp_path / "target", dtype="float16")
    assert not list(tmp_path.glob("*target*"))


def test_presets_are_configs_that_build():
    """Every name of configs/preset.py gives a model of its family; the options are complete."""
    from configs.preset import NAMES
    from lmjax.models.presets import PRESETS

    assert set(NAMES) == set(PRESETS) - {"electra_discriminator"}
    for name in NAMES:
        section = section_of(f"preset.py:{name}")
        assert models.build(configs.ConfigDict(section)).config.family == PRESETS[name]["family"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_trained_runs_leave(family, tmp_path):
    """lmjax train, lmjax export, from_pretrained: the same logits."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"config": configs.to_dict(small(family, data__mode="pack"))}), "utf8")
    lmjax("train", "--config", config, "--run-dir", tmp_path / "run")
    lmjax("export", tmp_path / "run", "--to", tmp_path / "target")
    got, there, _ = logits_of_both(tmp_path / "run", tmp_path / "target")
    assert references.distance(got, there) < 5e-6

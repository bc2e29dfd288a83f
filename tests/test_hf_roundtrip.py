"""Import then export of a Hugging Face folder is bit-exact, and transformers loads the result offline."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers

from lmjax import hf, run_record, trained
from lmjax.data.tokenizers import load_saved
from lmjax.hf import imports, weights
from tests import hf_references as references
from tests.conftest import lmjax

AUTO = {
    "causal": transformers.AutoModelForCausalLM,
    "masked": transformers.AutoModelForMaskedLM,
    "seq2seq": transformers.AutoModelForSeq2SeqLM,
    "discriminator": transformers.AutoModelForPreTraining,
}


def words(post_processor=None, specials=("<s>", "<pad>", "</s>")):
    """A word-level tokenizer.json: specials, then the words w3 .. w39."""
    names = [*specials, *(f"w{i}" for i in range(len(specials), references.V))]
    hf = tokenizers.Tokenizer(tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="w39"))
    hf.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    hf.add_special_tokens(list(specials))
    if post_processor:
        hf.post_processor = post_processor
    return hf


def save(model, folder, **options):
    """Writes the model's folder with a tokenizer."""
    model.save_pretrained(folder, **options)
    words().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf8")
    return folder


def tensors(folder):
    """{name: (file, tensor)} of all safetensors of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: (f.name, x) for f in files for name, x in safetensors.torch.load_file(f).items()}


def assert_same(source, target):
    """The same tensors, bit for bit, in the same files, and the same other files."""
    there, here = tensors(source), tensors(target)
    assert there.keys() == here.keys()
    for name, (file, tensor) in there.items():
        assert here[name][0] == file and here[name][1].dtype == tensor.dtype, name
        assert here[name][1].shape == tensor.shape and bits(here[name][1]) == bits(tensor), name
    texts = [path for path in source.iterdir() if path.suffix != ".safetensors"]
    assert sorted(path.name for path in source.iterdir()) == sorted(path.name for path in target.iterdir())
    for path in texts:
        if "index" not in path.name:
            assert (target / path.name).read_bytes() == path.read_bytes(), path.name


def bits(tensor):
    return tensor.contiguous().view(torch.uint8).numpy(force=True).tobytes()


def loaded(model, folder):
    """The folder's model as transformers loads it."""
    return AUTO[references.kind(model) if model.config.model_type != "gpt_neox" else "causal"].from_pretrained(
        folder, attn_implementation="eager", local_files_only=True
    )


@pytest.mark.parametrize("name", sorted({*references.MAIN} - {"t5_v1_1"}))  # for this one, see two tables below
def test_bit_exact(name, tmp_path):
    """The same files as transformers wrote, so it loads them with the same outputs."""
    model = references.reference(name)
    source = save(model, tmp_path / "source")
    facts = hf.import_run(source, tmp_path / "run")
    assert facts["architecture"] == type(model).__name__
    assert run_record.read_json(tmp_path / "run" / "status.json")["status"] == "done"

    hf.export_run(tmp_path / "run", tmp_path / "target")
    assert_same(source, tmp_path / "target")


def test_the_run_computes_what_transformers_computes(tmp_path):
    """Through the files: import, load, apply."""
    model = references.reference("llama")
    hf.import_run(save(model, tmp_path / "source"), tmp_path / "run")
    run = trained.load(tmp_path / "run")
    batch = references.example(model)
    apply = jax.jit(run.model.apply, compiler_options=references.FAST)
    got = np.asarray(apply({"params": run.params}, references.our_batch(model, batch)))
    expected = references.torch_results(model, batch, gradients=False)[0]
    real = references.valid(model, batch)
    assert references.distance(got[real], expected[real]) < 5e-6
    assert run.tokenizer.encode("w5 w7").tolist() == [5, 7]
    assert (run.objective.name, run.step, run.max_len) == ("causal_lm", 0, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_shards(dtype, tmp_path):
    """Two bytes in, float32 inside, the same two bytes out; three shards stay three shards."""
    model = references.reference("t5").to(dtype)
    source = save(model, tmp_path / "source", max_shard_size="6KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    hf.import_run(source, tmp_path / "run")
    hf.export_run(tmp_path / "run", tmp_path / "target")
    assert_same(source, tmp_path / "target")
    index = "model.safetensors.index.json"
    maps = [json.loads((tmp_path / side / index).read_text())["weight_map"] for side in ("source", "target")]
    assert maps[0] == maps[1]
    again = loaded(model, tmp_path / "target")
    assert again.dtype == dtype and torch.equal(again.shared.weight, model.shared.weight)


def test_another_dtype_on_the_way_out(tmp_path):
    model = references.reference("gpt2")
    hf.import_run(save(model, tmp_path / "source"), tmp_path / "run")
    hf.export_run(tmp_path / "run", tmp_path / "half", dtype="bfloat16")
    got = safetensors.torch.load_file(tmp_path / "half" / "model.safetensors")
    assert {x.dtype for x in got.values()} == {torch.bfloat16}
    assert torch.equal(got["transformer.wte.weight"], model.transformer.wte.weight.to(torch.bfloat16))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def rewrite(folder, change):
    """Rewrites the only safetensors file of a folder."""
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path, metadata={"format": "pt"})


def test_tensors_we_do_not_have_are_kept_and_said(tmp_path):
    """BERT's pooler and next-sentence head come back; names of ten years ago are understood and written again."""
    model = references.reference("bert")
    source = save(model, tmp_path / "source")
    extra = {"bert.pooler.dense.weight": torch.randn(16, 16), "cls.seq_relationship.bias": torch.randn(2)}
    extra["bert.embeddings.position_ids"] = torch.arange(20)[None]

    def older(state):
        names = {
            n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            for n in state
        }
        tied = {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"].clone()}
        return {names[name]: x for name, x in state.items()} | extra | tied

    rewrite(source, older)
    facts = hf.import_run(source, tmp_path / "run")
    assert facts["kept_for_export"] == "; ".join(sorted(extra))
    hf.export_run(tmp_path / "run", tmp_path / "target")
    assert_same(source, tmp_path / "target")


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert"])
def test_names_without_their_prefix(name, tmp_path):
    """The hub's gpt2 says wte.weight, not transformer.wte.weight; GPT-2's masks lie beside the weights there."""
    model = references.reference(name)
    source = save(model, tmp_path / "source")
    prefix = weights.PREFIXES[name]
    buffers = {"h.0.attn.bias": torch.ones(1, 1, 4, 4)} if name == "gpt2" else {}
    rewrite(source, lambda state: {n.removeprefix(prefix): x for n, x in state.items()} | buffers)
    hf.import_run(source, tmp_path / "run")
    run = trained.load(tmp_path / "run")
    _, _, expected = references.ours(model)
    for path, leaf in weights.flatten(run.params).items():
        np.testing.assert_array_equal(np.asarray(leaf), expected[path])
    hf.export_run(tmp_path / "run", tmp_path / "target")
    assert_same(source, tmp_path / "target")


def test_what_has_been_trained_since_goes_out(tmp_path):
    """Export writes the checkpoint's parameters, under all names a tied tensor had."""
    model = references.reference("gpt2")
    source = save(model, tmp_path / "source")
    rewrite(source, lambda state: state | {"lm_head.weight": state["transformer.wte.weight"].clone()})
    hf.import_run(source, tmp_path / "run")
    run = trained.load(tmp_path / "run")
    from lmjax.checkpoint import Checkpoints

    saver = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    saver.save(3, {"params": jax.tree.map(lambda x: x + 1, run.params)})
    saver.wait()
    saver.close()
    facts = hf.export_run(tmp_path / "run", tmp_path / "target")
    got = safetensors.torch.load_file(tmp_path / "target" / "model.safetensors")
    assert facts["step"] == 3
    for name in ("transformer.wte.weight", "lm_head.weight"):
        assert torch.equal(got[name], model.transformer.wte.weight + 1)
    hf.export_run(tmp_path / "run", tmp_path / "first", step=0)
    assert_same(source, tmp_path / "first")


@pytest.mark.parametrize(
    ("name", "frame", "prefix", "suffix"),
    [
        ("gpt2", None, (0,), ()),  # adds nothing: bos
        ("llama", "<s> $A", (0,), ()),
        ("bert", "<s> $A </s>", (0,), (2,)),
        ("t5", "$A </s>", (), (2,)),
    ],
)
def test_the_tokenizer_comes_along(name, frame, prefix, suffix, tmp_path):
    """Ids of special tokens and what a document begins and ends with are found, saved and loaded again."""
    model = references.reference(name)
    source = save(model, tmp_path / "source")
    template = frame and tokenizers.processors.TemplateProcessing(frame, None, [("<s>", 0), ("</s>", 2)])
    words(template, ("<s>", "<pad>", "</s>", "<mask>", "<extra_id_0>", "<extra_id_1>")).save(
        str(source / "tokenizer.json")
    )
    hf.import_run(source, tmp_path / "run")
    tokenizer = load_saved(tmp_path / "run" / "tokenizer")
    assert (tokenizer.prefix, tokenizer.suffix) == (prefix, suffix)
    specials = tokenizer.specials
    assert (specials.eos, specials.pad, specials.mask, specials.sentinels) == (2, 1, 3, (4, 5))
    assert tokenizer.decoder_start == ((1,) if name == "t5" else ())
    assert tokenizer.encode("w8 w9").tolist() == [8, 9]


def test_saved_padding_and_truncation_hide_no_special_token(tmp_path):
    source = save(references.reference("bert"), tmp_path / "source")
    made = words(tokenizers.processors.BertProcessing(("</s>", 2), ("<s>", 0)))
    made.enable_padding(length=8, pad_id=1, pad_token="<pad>")
    made.enable_truncation(1)
    made.save(str(source / "tokenizer.json"))
    hf.import_run(source, tmp_path / "run")
    tokenizer = load_saved(tmp_path / "run" / "tokenizer")
    assert (tokenizer.prefix, tokenizer.suffix) == ((0,), (2,))
    assert tokenizer.encode("w5 w6 w7").tolist() == [5, 6, 7]


def test_texts_that_a_tokenizer_does_not_know(tmp_path):
    """The ids around a text are found with words of the vocabulary."""
    source = save(references.reference("bert"), tmp_path / "source")
    made = words(tokenizers.processors.BertProcessing(("</s>", 2), ("<s>", 0)))
    made.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex("^[^w].*"), "")
    made.save(str(source / "tokenizer.json"))
    hf.import_run(source, tmp_path / "run")
    tokenizer = load_saved(tmp_path / "run" / "tokenizer")
    assert (tokenizer.prefix, tokenizer.suffix) == ((0,), (2,))


def test_what_a_kill_leaves_is_no_run(tmp_path, monkeypatch):
    """The partial folder is hidden; an imported run is a row of the table of runs."""
    source = save(references.reference("gpt2"), tmp_path / "source")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(imports, "_keep", interrupted)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        hf.import_run(source, tmp_path / "runs" / "run")
    (left,) = (tmp_path / "runs").iterdir()
    assert (left / "config.json").exists() and run_record.find_runs(tmp_path / "runs") == []
    hf.import_run(source, tmp_path / "runs" / "run")
    table = run_record.read_runs(tmp_path / "runs")
    assert [*table.run_id] == ["run"] and [*table.status] == ["done"] and [*table.family] == ["decoder"]


def interrupted(*_):
    raise KeyboardInterrupt


def test_the_current_folder_as_target(tmp_path, monkeypatch):
    source = save(references.reference("gpt2"), tmp_path / "source")
    for name in ("run", "target"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "run")
    hf.import_run("../source", ".")
    monkeypatch.chdir(tmp_path / "target")
    hf.export_run("../run", ".")
    assert_same(source, pathlib.Path("."))
    mode = (source / "config.json").stat().st_mode
    assert {path.stat().st_mode for path in pathlib.Path(".").iterdir()} == {mode}


def test_without_a_tokenizer_and_with_an_old_one(tmp_path):
    """None is allowed, with a note. Of vocab.txt, transformers makes a tokenizer.json; the old files go out as they
    came."""
    source = tmp_path / "source"
    references.reference("bert").save_pretrained(source)
    facts = hf.import_run(source, tmp_path / "bare")
    assert facts["tokenizer"] == "none" and trained.load(tmp_path / "bare").tokenizer is None
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(5, references.V))]
    (source / "vocab.txt").write_text("\n".join(names), "utf8")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}), "utf8")
    facts = hf.import_run(source, tmp_path / "run")
    tokenizer = trained.load(tmp_path / "run").tokenizer
    assert tokenizer.encode("w5 w30").tolist() == [5, 30] and "transformers converted" in facts["notes"]
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.specials.mask) == ((2,), (3,), 4)
    hf.export_run(tmp_path / "run", tmp_path / "target")
    assert_same(source, tmp_path / "target")


def test_two_tables_where_the_config_ties_them(tmp_path):
    """As transformers 5 writes T5 v1.1: the file decides, and goes out bit for bit; transformers loads it."""
    model = references.reference("t5_v1_1")
    source = save(model, tmp_path / "source")
    facts = hf.import_run(source, tmp_path / "run")
    run = trained.load(tmp_path / "run")
    assert json.loads((source / "config.json").read_text())["tie_word_embeddings"] is True
    assert not run.config.model.tie_embeddings and "two tables" in facts["notes"]
    np.testing.assert_array_equal(np.asarray(run.params["embedding"]["head"]).T, model.lm_head.weight.numpy(force=True))
    hf.export_run(tmp_path / "run", tmp_path / "target")
    assert_same(source, tmp_path / "target")
    batch = references.example(model)
    expected = references.torch_results(model, batch, gradients=False)[0]
    got = references.torch_results(loaded(model, tmp_path / "target"), batch, gradients=False)[0]
    np.testing.assert_array_equal(got, expected)


def test_one_table_where_the_config_unties_them(tmp_path):
    """T5 v1.1 without lm_head: transformers 5 uses the table, unscaled, and so do we."""
    model = references.reference("t5_tied_unscaled")
    source = save(model, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "scale_decoder_outputs"}
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), "utf8")
    hf.import_run(source, tmp_path / "run")
    section = trained.load(tmp_path / "run").config.model
    assert section.tie_embeddings and section.logit_scale == 1
    assert not loaded(model, source).config.scale_decoder_outputs


@pytest.mark.slow
def test_command_line(tmp_path):
    """lmjax import, lmjax export; a mistake exits with 64 and leaves nothing."""
    source = save(references.reference("gpt2"), tmp_path / "source")
    out = lmjax("import", "--from", source, "--to", tmp_path / "run").stdout
    assert "architecture: GPT2LMHeadModel" in out
    lmjax("export", tmp_path / "run", "--to", tmp_path / "target")
    assert_same(source, tmp_path / "target")
    shutil.rmtree(tmp_path / "run")
    (source / "model.safetensors").unlink()
    assert lmjax("import", "--from", source, "--to", tmp_path / "run", check=False).returncode == 64
    assert not (tmp_path / "run").exists()

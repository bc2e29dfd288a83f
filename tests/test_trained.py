"""Loading a trained run: the same parameters and tokenizer at any step, and clear errors."""

import json
import shutil

import jax
import numpy as np
import pytest

from lmjax import checkpoint, run_record, trained
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.resolve import resolve
from lmjax.trainer import make_init
from tests.conftest import small, train


@pytest.fixture(scope="module", params=["decoder", "encoder", "encoder_decoder"])
def run(request, tmp_path_factory):
    """A run of 6 steps with checkpoints at 2, 4 and 6."""
    resolved = resolve(small(request.param, model__num_layers=1, checkpoint__every_steps=2, checkpoint__keep=3))
    run_dir = tmp_path_factory.mktemp(request.param) / "run"
    assert train(resolved, run_dir) == 0
    return resolved, run_dir


def test_parameters_are_those_of_the_training_state(run):
    """Bit for bit, and apart from the optimizer's state."""
    resolved, run_dir = run
    assert trained.steps(run_dir) == [2, 4, 6]
    key = jax.random.key(0)
    from lmjax.optim.optimizers import make_optimizer

    init = make_init(resolved.model, make_optimizer(resolved.config.optimizer), resolved.batches.rows([0]))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), jax.eval_shape(init, key))
    state, record = checkpoint.Checkpoints(run_dir / "checkpoints", 3).restore_newest(like)
    loaded = trained.load(run_dir)
    assert loaded.step == record["step"] == 6 and loaded.record == run_record.read_json(run_dir / "config.json")
    jax.tree.map(np.testing.assert_array_equal, state["params"], loaded.params)
    early = trained.load(run_dir, 2)
    assert not np.array_equal(early.params["embedding"]["embedding"], loaded.params["embedding"]["embedding"])


def test_the_loss_of_the_summary_is_found_again(run):
    """The held-out loss from the loaded parameters equals the recorded one on one device (the run had eight: 1e-5)."""
    from lmjax.validation import Validation

    resolved, run_dir = run
    loaded = trained.load(run_dir, devices=jax.devices()[:1])
    held_out = Validation(resolved.data, loaded.objective, loaded.config, loaded.model, loaded.mesh)
    summary = run_record.read_json(run_dir / "summary.json")
    assert held_out.evaluate(loaded.params)["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    assert loaded.tokenizer.hash == resolved.data.tokenizer.hash
    assert loaded.record["data"]["tokenizer"]["prefix"] == list(loaded.tokenizer.prefix)


def test_bad_runs_are_named(run, tmp_path):
    _, run_dir = run
    with pytest.raises(InputError, match="is not a run"):
        trained.load(tmp_path)
    with pytest.raises(InputError, match=r"of step 3, got steps \[2, 4, 6\]"):
        trained.load(run_dir, 3)
    broken = tmp_path / "broken"
    shutil.copytree(run_dir, broken)
    for path in (broken / "checkpoints" / "6" / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 300:
            path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="checkpoint 6 of .* cannot be read"):
        trained.load(broken)
    assert trained.steps(broken) == [2, 4, 6]
    record = json.loads((broken / "config.json").read_text())
    record["config"]["model"]["nrom"] = "rmsnorm"
    (broken / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"unknown \['nrom'\]"):
        trained.load(broken)
    (broken / "config.json").write_text((run_dir / "config.json").read_text())
    (broken / "tokenizer" / "lmjax_tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="expected a tokenizer saved by lmjax"):
        trained.load(broken)


def test_a_finished_run_is_read_from_any_folder(run, tmp_path):
    """Folders with brackets are refused for training; a run copied into one is whole."""
    _, run_dir = run
    shutil.copytree(run_dir, tmp_path / "lr[1e-3]")
    copied, ours = (checkpoint.checksums(trained.load(d).params) for d in (tmp_path / "lr[1e-3]", run_dir))
    assert copied == ours


def test_an_imported_run_comes_back(run, tmp_path):
    _, run_dir = run
    loaded = trained.load(run_dir)
    copy = tmp_path / "copy"
    copy.mkdir()
    section = loaded.config.model.to_dict()
    trained.write_imported(copy, section, loaded.config.objective.name, loaded.tokenizer, loaded.params, {"from": "x"})
    again = trained.load(copy)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, again.params)
    assert again.record["from"] == "x" and again.tokenizer.hash == loaded.tokenizer.hash
    with pytest.raises(InputError, match="do not fit the model"):
        params = {**loaded.params, "embedding": {"embedding": np.zeros((3, 3), np.float32)}}
        trained.write_imported(tmp_path, section, "causal_lm", None, params, {})


def test_every_kind_of_tokenizer_is_saved_and_loaded(tmp_path):
    bpe = tokenizers.train_bpe(["the cat sat on the mat " * 20], 300, 4)
    specials = tokenizers.SpecialIds(0, 1, -1, (2, 3))
    published = tokenizers.HuggingFace(bpe.artefact, specials, prefix=(0,), suffix=(1,), decoder_start=(1,))
    for name, tokenizer in {"a": tokenizers.Bytes(4), "b": bpe, "c": published}.items():
        tokenizer.save(tmp_path / name)
        loaded = tokenizers.load_saved(tmp_path / name)
        assert loaded.hash == tokenizer.hash and type(loaded) is type(tokenizer)
        assert (loaded.prefix, loaded.suffix, loaded.decoder_start, loaded.specials) == (
            tokenizer.prefix,
            tokenizer.suffix,
            tokenizer.decoder_start,
            tokenizer.specials,
        )
        ids = loaded.encode("the mat sat")
        assert loaded.decode(ids) == "the mat sat" and ids.tolist() == tokenizer.encode("the mat sat").tolist()
    saved = json.loads((tmp_path / "c" / "lmjax_tokenizer.json").read_text())
    (tmp_path / "c" / "lmjax_tokenizer.json").write_text(json.dumps({**saved, "prefix": [5]}))
    with pytest.raises(InputError, match="has changed since it was saved"):
        tokenizers.load_saved(tmp_path / "c")

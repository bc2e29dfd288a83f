"""Guards against rows whose tokens are split over devices (mesh.context) and train differently from whole rows, or take
as much memory."""

import jax
import numpy as np
import pytest

from lmjax import losses, pack, trained, trainer
from lmjax.errors import InputError
from lmjax.resolve import resolve
from lmjax.sharding import make_global_batch, make_mesh
from tests.conftest import small
from tests.random_runs import write_run
from tests.test_step import PROGRAMS, SMOOTH, outcome, programs, resolved

PACKED = {"data__mode": "pack"}  # rows of several documents
CASES = {  # data, fsdp, tensor, context; settings
    "decoder": ((2, 1, 1, 4), {**PACKED, "model__num_kv_heads": 1, "model__remat": "full"}),
    "encoder": ((2, 1, 2, 2), {**PACKED, "model__position": "alibi", "train__accumulation_steps": 2}),
    "encoder_decoder": ((1, 2, 1, 2), {"model__position": "relative"}),
}


@pytest.mark.parametrize("family", CASES)
def test_split_rows_give_the_loss_and_gradients_of_whole_rows(family, monkeypatch):
    """Sums in another order: losses agree to 1e-5, gradients (Adam's first moments) to 1e-5 of the largest in their
    array and 1e-7. The decoder's loss is computed in chunks; the 5 targets of the encoder-decoder cannot be split."""
    mesh_shape, overrides = CASES[family]
    run = resolved(family, model__num_layers=1, **SMOOTH, **overrides)
    whole = outcome(run, (1, 1, 1))
    if family == "decoder":  # 3 chunks of the 4 positions that a device has
        monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * 8 * 6 * run.config.model.vocab_size // 8)
        assert losses.chunk_count(8, 16, 8 * run.config.model.vocab_size) > 1
        PROGRAMS.pop((id(run), mesh_shape), None)
    split = outcome(run, mesh_shape)
    jax.tree.map(np.testing.assert_array_equal, whole[0], split[0])
    np.testing.assert_allclose(split[1:3], whole[1:3], rtol=1e-5)

    def check(path, a, b):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max() + 1e-7, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, *(each[3]["opt_state"][0].mu for each in (whole, split)))


def test_each_device_holds_its_part_of_the_activations():
    """On 4 devices, 3 to 4 times less: keys and values of whole rows, and gradients, do not shrink."""
    run = resolved("decoder", data__seq_len=128, data__global_batch_size=4, model__scan_layers=True)
    whole, split = (programs(run, (2, 1, 1, n))[2].memory_analysis().temp_size_in_bytes for n in (1, 4))
    assert 3 < whole / split <= 4, (whole, split)


def test_devices_get_their_tokens_of_whole_rows():
    """Labels of a row are not split, and neither are arrays that the axis does not divide."""
    mesh, asked = make_mesh(small(mesh__context=4).mesh), []
    rows = {"inputs": np.arange(64).reshape(8, 8), "targets": np.arange(40).reshape(8, 5), "row_targets": np.arange(8)}

    def rows_of(indices):
        asked.append(indices.tolist())
        return {name: x[indices] for name, x in rows.items()}

    batch = make_global_batch(rows_of, mesh, 2, 4)
    assert asked == [list(range(8))]
    for name, parts in (("inputs", (2, 2, 2)), ("targets", (2, 2, 5)), ("row_targets", (2, 2))):
        np.testing.assert_array_equal(np.asarray(batch[name]).reshape(rows[name].shape), rows[name])
        assert {shard.data.shape for shard in batch[name].addressable_shards} == {parts}


def test_chunks_of_split_rows_are_joined_in_order(monkeypatch):
    """Positions 0 .. 13 on 2 devices, in chunks of 2 + 2 positions, the last of them padded."""
    x_BT = np.arange(28).reshape(2, 14)
    with jax.set_mesh(make_mesh(small(mesh__context=2).mesh)):
        chunks = losses._split(jax.numpy.asarray(x_BT), 4)
        np.testing.assert_array_equal(chunks[:, 0], [[0, 1, 7, 8], [2, 3, 9, 10], [4, 5, 11, 12], [6, 0, 13, 0]])
        np.testing.assert_array_equal(losses._joined(chunks, 14), x_BT)


def test_it_makes_no_other_run():
    assert resolve(small(mesh__context=2)).run_id == resolve(small()).run_id


def test_what_cannot_be_split_is_refused(tmp_path):
    def on_context(family="decoder", mesh__context=2, **overrides):
        run = resolve(small(family, mesh__context=mesh__context, **overrides))
        trainer.on_devices(run, make_mesh(run.config.mesh))
        return run

    with pytest.raises(InputError, match="context 2: expected a decoder, encoder or .* got model.family 'rnn'"):
        on_context("rnn")
    with pytest.raises(InputError, match="fsdp 2 and mesh.tensor 2: expected one of them to be 1 for .* 'rnn'"):
        on_context("rnn", mesh__context=1, mesh__fsdp=2, mesh__tensor=2)
    with pytest.raises(InputError, match="mesh.context 2: expected rows of a length that it divides, got 15 tokens"):
        on_context(data__seq_len=15)
    with pytest.raises(InputError, match="all axes of the mesh but data 1, got 1 processes, mesh.context 2"):
        pack.check_alike([on_context()])
    with pytest.raises(InputError, match="expected whole numbers above 0 for data, fsdp, tensor, got context=2"):
        trained.load(write_run(tmp_path / "run", steps=(1,)), mesh={"context": 2})

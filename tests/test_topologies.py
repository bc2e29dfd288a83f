"""Guards against a checkpoint with which only as many devices can go on as wrote it."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lmjax import checkpoint, pack, parents, trainer
from lmjax.checkpoint import Checkpoints, restore_params
from lmjax.resolve import resolve
from tests.conftest import small
from tests.test_step import PROGRAMS, SMOOTH, assert_close, programs

MESHES = {1: (1, 1, 1), 2: (1, 2, 1), 4: (2, 1, 2), 8: (1, 2, 2, 2)}  # devices: data, fsdp, tensor, context
PLACES = (*MESHES, "pack")  # a slot of a pack, of four on four devices
SLOT, EMPTY = np.int32(2), [None] * 4


@pytest.fixture(scope="module")
def run():
    return resolve(small(model__num_layers=1, **SMOOTH))


def packed(run):
    """The program of a pack, compiled once."""
    if (id(run), "pack") not in PROGRAMS:
        PROGRAMS[id(run), "pack"] = pack.Program(run, len(EMPTY), jax.devices()[: len(EMPTY)])
    return PROGRAMS[id(run), "pack"]


def stepped(run, place, state, step):
    """The state after one more step on a mesh or in a pack."""
    seed, arguments = run.config.train.seed, np.float32([0.01, 0.1, 1.0])
    if place == "pack":
        made = packed(run)
        batch = made.batch([*EMPTY[:SLOT], (run, step), *EMPTY[SLOT + 1 :]])
        stack = made.put(made.empty(), SLOT, state)
        every = np.tile(arguments, (made.slots, 1))
        return made.take(made.step(stack, batch, made.keys([seed] * made.slots), every)[0], SLOT)
    mesh, _, step_function = programs(run, MESHES[place])
    return step_function(state, trainer._batch(run, mesh, step), jax.random.key(seed), arguments)[0]


def like(run, place):
    """The state as shapes with shardings, and the function that makes that of step 0."""
    if place == "pack":
        return packed(run).alone.like, lambda: packed(run).alone.init(jax.random.key(0))
    mesh, init, _ = programs(run, MESHES[place])
    return trainer.abstract_state(run, init, jax.random.key(0), mesh), lambda: init(jax.random.key(0))


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """{place: (run directory with a checkpoint of step 1, its state, the state of step 2)}."""
    found = {}
    for place in PLACES:
        run_dir = tmp_path_factory.mktemp("saved") / str(place)
        run_dir.mkdir()
        run.write(run_dir)
        state = stepped(run, place, like(run, place)[1](), 0)
        first = jax.tree.map(np.asarray, state)
        saver = Checkpoints(run_dir / "checkpoints", None, run.run_id)
        saver.save(1, state)
        saver.wait()
        saver.close()
        found[place] = run_dir, first, jax.tree.map(np.asarray, stepped(run, place, state, 1))
    return found


def same_bits(state, expected, shapes):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), expected)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, shapes)


@pytest.mark.parametrize("reader", PLACES)
def test_every_number_of_devices_and_a_pack_continue_what_any_other_saved(reader, run, saved):
    """The same bits, split as the reader's mesh says; the next step is that of the writer up to the order of sums."""
    shapes, _ = like(run, reader)
    for writer, (run_dir, first, second) in saved.items():
        state, _ = Checkpoints(run_dir / "checkpoints", None, run.run_id).restore_newest(shapes)
        same_bits(state, first, shapes)
        after = jax.tree.map(np.asarray, stepped(run, reader, state, 1))
        if reader == writer:
            jax.tree.map(np.testing.assert_array_equal, after, second)
        assert_close(after, second)


@pytest.mark.parametrize(("writer", "reader"), [(8, 2), (1, 8)])
def test_a_branch_and_a_warm_start_may_have_other_devices_than_their_parent(writer, reader, run, saved, tmp_path):
    run_dir, first, _ = saved[writer]
    shapes, fresh = like(run, reader)
    for what in ("state", "params"):
        child = resolve(small(model__num_layers=1, **SMOOTH, **{"init__from": str(run_dir), "init__what": what}))
        parents.check(child)
        (tmp_path / what).mkdir()
        state, record = parents.inherit(child, tmp_path / what, shapes, fresh)
        assert record["step"] == (1 if what == "state" else 0)
        expected = first if what == "state" else {**jax.tree.map(np.asarray, fresh()), "params": first["params"]}
        same_bits(state, expected, shapes)


def test_parameters_are_read_without_a_mesh(run, saved):
    """As by import into another program: on one device."""
    for run_dir, first, _ in saved.values():
        jax.tree.map(np.testing.assert_array_equal, restore_params(run_dir / "checkpoints", 1, None), first["params"])


def test_large_arrays_are_split_between_the_devices_that_hold_them(tmp_path, monkeypatch):
    """No other test has one of 1 MiB. The setting is an attribute of Orbax that is not public: under another name, it
    would do nothing and say nothing."""
    monkeypatch.setattr(checkpoint, "SPLIT_BYTES", 1)
    places = jax.sharding.NamedSharding(jax.make_mesh((4,), ("data",)), jax.sharding.PartitionSpec())
    state = {"x": jax.device_put(np.arange(4096, dtype=np.float32), places)}
    saver = Checkpoints(tmp_path / "split", None)
    saver.save(1, state)
    saver.wait()
    same_bits(saver.restore_newest(state)[0], {"x": np.arange(4096)}, state)
    saver.close()
    monkeypatch.undo()
    Checkpoints(tmp_path / "whole", None).close()  # sets the size for other tests again
    public = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=checkpoint.SPLIT_BYTES)
    name = "_min_slice_bytes_for_replica_parallel"
    assert vars(ocp.type_handlers.get_type_handler(jax.Array))[name] == vars(public)[name] == checkpoint.SPLIT_BYTES

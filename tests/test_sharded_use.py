"""Guards against models that do not fit on one device where they are used: parameters, or the cache of keys and values,
gathered or replicated on every device by loading, evaluation, validation or generation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import checkpoint, cli, models, trained
from lmjax.decoding import ids, loops, processors
from lmjax.decoding.processors import Switches
from lmjax.decoding.settings import Settings
from lmjax.errors import InputError
from lmjax.evals import rows
from lmjax.generate import fill_masks
from lmjax.objectives import OBJECTIVES
from lmjax.sharding import RULES, local_mesh, logical_mesh, put_rows
from lmjax.validation import make_score
from tests.conftest import small
from tests.random_runs import random_model, sharded, write_run

WIDE = {"model__d_model": 64, "model__num_layers": 2, "model__num_heads": 4, "model__num_kv_heads": 2}
MESH = {"fsdp": 4, "tensor": 2}


def wide(family="decoder"):
    return random_model(family, **WIDE)


@functools.cache
def on_mesh(family="decoder"):
    return sharded(wide(family), **MESH)


def here(tree):
    """Bytes on the first device."""
    return sum(
        shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if not shard.device.id
    )


def largest(tree):
    """Bytes of the largest array."""
    return max(x.nbytes for x in jax.tree.leaves(tree))


def temporary(function, *arguments, **options):
    """Bytes of a compiled function's intermediate arrays on each device."""
    return function.lower(*arguments, **options).compile().memory_analysis().temp_size_in_bytes


# -- Loading


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run", steps=(3,), mesh__fsdp=4, mesh__tensor=2, **WIDE)


def test_each_device_reads_its_part_of_a_run(run_dir):
    """On the run's mesh, as far as the devices allow; the values do not depend on it."""
    whole = trained.load(run_dir, devices=jax.devices()[:1])
    for devices, shape in ((8, {"data": 1, **MESH}), (6, {"data": 3, "fsdp": 1, "tensor": 2})):
        model = trained.load(run_dir, devices=jax.devices()[:devices])
        assert dict(model.mesh.shape) == shape | {"expert": 1, "context": 1}
        jax.tree.map(np.testing.assert_array_equal, model.params, whole.params)
        kernel = model.params["stack"]["layers"]["feed_forward"]["up"]["kernel"]
        assert here(kernel) * shape["fsdp"] * shape["tensor"] == kernel.nbytes == largest(model.params)
    assert checkpoint.checksums(model.params) == checkpoint.checksums(whole.params)


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 3}, "fsdp 3 x expert 1 x context 1 x tensor 1 does not equal the 8 devices"),
        ({"data": 2, "fsdp": 2}, "data 2 x fsdp 2 x expert 1 x context 1 x tensor 1 does not equal the 8 devices"),
        ({"fdsp": 2}, "expected whole numbers above 0 for data, fsdp, tensor, got fdsp=2"),
        ({"fsdp": 0}, "got fsdp=0"),
        ({"fsdp": 8, "tensor": 1, "data": -1}, "got data=-1"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(mesh, message, run_dir):
    with pytest.raises(InputError, match=message):
        trained.load(run_dir, mesh=mesh)


def test_the_commands_take_a_mesh(run_dir, capsys):
    assert cli.main(["generate", str(run_dir), "--prompt", "a", "--max-new-tokens", "2", "--mesh", "fsdp=8"]) == 0
    for command in (["generate", str(run_dir), "--prompt", "a"], ["eval", str(run_dir), "--tasks", "perplexity"]):
        assert cli.main([*command, "--mesh", "fsdp=3"]) == 64
        assert "does not equal the 8 devices" in capsys.readouterr().err


def test_checksums_are_those_of_the_flattened_array():
    """So that old checkpoints stay valid; and no device gathers a sharded array for them."""
    x = jax.random.normal(jax.random.key(0), (4, 6, 512))
    place = np.arange(x.size, dtype=np.uint32) * np.uint32(2654435762) + np.uint32(1)
    expected = int(np.sum(np.asarray(x).ravel().view(np.uint32) * place, dtype=np.uint32))
    mesh = local_mesh(small().mesh, MESH)
    split = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, None, ("fsdp", "tensor"))))
    assert checkpoint.checksums({"x": split}) == checkpoint.checksums({"x": x}) == {"['x']": expected}
    assert temporary(checkpoint._checksums, {"x": split}) < x.nbytes / 2


# -- Use


PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


GREEDY, SAMPLE = Settings(max_new_tokens=6), Settings("sample", max_new_tokens=6)
BEAM = Settings("beam", num_beams=3, max_new_tokens=6)


@pytest.mark.parametrize(
    ("family", "settings"),
    [("decoder", GREEDY), ("decoder", SAMPLE), ("encoder_decoder", BEAM)],
    ids=lambda x: x if isinstance(x, str) else x.method,
)
def test_generation_equals_one_devices(family, settings):
    """The same tokens, with sums of log-probabilities equal to 1e-4 nats (float32 sums in another order)."""
    start = {"decoder_start": (1,)} if family == "encoder_decoder" else {}
    one, many = (
        ids.generate_ids(model.config.model, model.params, PROMPTS, settings, **start)
        for model in (wide(family), on_mesh(family))
    )
    for (a, *_), (b, *_) in zip(one, many, strict=True):
        assert a.ids == b.ids and a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


def test_filled_masks_equal_one_devices():
    one, many = (fill_masks(model, ["to [MASK] or"], top=3) for model in (wide("encoder"), on_mesh("encoder")))
    assert [name for name, _ in one[0][0]] == [name for name, _ in many[0][0]]
    np.testing.assert_allclose([p for _, p in one[0][0]], [p for _, p in many[0][0]], rtol=1e-5)


def test_a_decoding_step_gathers_no_parameters():
    """Each device keeps 1/8 of the parameters and of the cache, and has no intermediate as large as a parameter."""
    model = on_mesh()
    params = models.unstack(model.params, model.config.model)
    assert here(params) < 1.2 * sum(x.nbytes for x in jax.tree.leaves(params)) / 8  # norms are replicated
    module = models.build(ids._decoding_config(model.config.model), cache_len=64)
    batch = {"prompts": np.ones((8, 16), np.int32), "lengths": np.full(8, 16), "real": np.ones(8, bool), "keys": None}
    batch, switches = put_rows(batch, model.mesh), Switches.of(settings := Settings(stop_ids=()))
    size = model.config.model.vocab_size
    strength = jax.tree.map(jnp.asarray, processors.strengths(settings, size, size, 64))
    with jax.set_mesh(model.mesh):
        logits, cache = loops.read(module, params, batch)
        assert here(cache) * 8 == sum(x.nbytes for x in jax.tree.leaves(cache))
        state = loops.start(switches, batch, strength, logits, cache, 64)
        assert here(state["cache"]) == here(cache)
        used = temporary(loops.run, module, switches, params, batch, strength, state, np.int32(8))
    assert used < largest(params)


def test_evaluation_and_validation_gather_a_layer_at_a_time():
    """Intermediates, those of activations included, are far below the parameters of the stack."""
    model = sharded(random_model(**{**WIDE, "model__num_layers": 16}, model__scan_layers=True), **MESH)
    batch = {"inputs": np.ones((8, 16), np.int32), "targets": np.ones((8, 16), np.int32)}
    with logical_mesh(model.mesh, RULES):
        scoring = temporary(rows._run, model.model, model.params, put_rows(batch, model.mesh), False)
        batch = {name: x[None] for name, x in (batch | {"weights": np.ones((8, 16), np.float32)}).items()}
        score = make_score(model.model, model.mesh, OBJECTIVES["causal_lm"], {})
        validating = temporary(score, model.params, batch, {})
    stack = sum(x.nbytes for x in jax.tree.leaves(model.params["stack"]))
    assert scoring < stack / 2 and validating < stack / 2

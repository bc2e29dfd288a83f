"""Guards against a training step that is slow or large on GPUs and TPUs, read off its StableHLO; needs neither."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import losses, trainer
from lmjax.models import products
from lmjax.optim.optimizers import make_optimizer
from lmjax.resolve import resolve
from lmjax.sharding import batch_sharding, logical_mesh, make_mesh
from tests.conftest import small

FAMILIES = ("decoder", "encoder", "encoder_decoder")
ROWS, CHUNK = 8, 4  # rows of a batch; positions of a chunk of the loss


@functools.cache
def resolved(family, **overrides):
    return resolve(small(family, **{"model__dtype": "bfloat16", "data__global_batch_size": ROWS, **overrides}))


@functools.cache
def lowered(family, platform, **overrides):
    """The StableHLO of a family's training step in bfloat16 for "cpu", "cuda" or "tpu", with the loss in chunks."""
    run = resolved(family, **overrides)
    mesh, example = make_mesh(run.config.mesh, jax.devices()[:1]), run.batches.rows([0])
    optimizer, key = make_optimizer(run.config.optimizer), jax.random.key(0)
    like = trainer.abstract_state(run, trainer.make_init(run.model, optimizer, example, run.metrics), key, mesh)
    micro = run.config.train.accumulation_steps
    batch = {
        name: jax.ShapeDtypeStruct((micro, ROWS // micro, *x.shape[1:]), x.dtype, sharding=batch_sharding(mesh))
        for name, x in example.items()
    }
    arguments = jax.ShapeDtypeStruct((3,), jnp.float32)
    with logical_mesh(mesh, run.config.mesh.rules), pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "on_cpu", lambda: platform == "cpu")  # read off the mesh, which is of this machine
        patch.setattr(losses, "CHUNK_BYTES", 4 * ROWS // micro * CHUNK * run.config.model.vocab_size)
        step = jax.jit(trainer.make_step(run, optimizer), donate_argnums=0)
        return step.trace(like, batch, key, arguments).lower(lowering_platforms=(platform,)).as_text()


def dots(text):
    """(first operand, second operand, result) of every matrix product, such as "128x16xbf16"."""
    return re.findall(r"stablehlo\.dot_general[^\n]*: \(tensor<(\S+)>, tensor<(\S+)>\) -> tensor<(\S+)>", text)


def scattered(text):
    """The result of every scatter."""
    return re.findall(r'"stablehlo\.scatter".*?\}\) : [^\n]*-> tensor<(\S+)>', text, re.DOTALL)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_step_of_an_accelerator(family, platform):
    run, text = resolved(family), lowered(family, platform)
    length, vocabulary = run.lengths["inputs"], run.config.model.vocab_size
    assert len(dots(text)) > 20
    assert not [dot for dot in dots(text) if dot[0].endswith("f32") or dot[1].endswith("f32")]
    assert f"tensor<{ROWS}x{length}x{vocabulary}x" not in text
    assert re.search(rf"tensor<{ROWS}x[1-{CHUNK}]x{vocabulary}xf32>", text)  # one chunk
    assert scattered(text) and not [x for x in scattered(text) if f"x{vocabulary}x" in x]
    assert "optimization_barrier" not in text


def test_a_cpu_keeps_its_operand_orders_and_recomputes_activations_and_norms():
    """Keys, values, and the one weight that is narrower after the product (down); an activation and 3 norms. One layer:
    versions of JAX differ in whether equal layers share a function."""
    assert lowered("decoder", "cpu", model__num_layers=1).count("optimization_barrier") == 3 + 1 + 3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_weights_are_float32_from_the_product_on(family):
    """So sums over micro-batches, and over devices, which GSPMD puts behind the product, are float32 too."""
    run = resolved(family)
    state = jax.eval_shape(run.model.init, jax.random.key(0), run.batches.rows([0]))["params"]
    kernels = {x.shape[-2:] for x in jax.tree.leaves(state) if len(x.shape) > 1}
    for platform in ("cpu", "cuda"):
        found = [x.rsplit("x", 1) for *_, x in dots(lowered(family, platform))]
        types = {shape: dtype for shape, dtype in found if tuple(map(int, shape.split("x"))) in kernels}
        assert len(types) >= 2 and set(types.values()) == {"f32"}, types


def test_several_runs_in_one_program_too():
    """vmap of a gradient, as in a packed run: the choice by platform is still made when lowering."""
    gradient = jax.vmap(jax.grad(lambda w, x: jnp.sum(products.matmul(x, w) ** 2)))
    arguments = np.ones((3, 32, 8), np.float32), np.ones((3, 4, 32), np.float32)
    for platform, barriers in (("cpu", 1), ("tpu", 0)):
        text = jax.jit(gradient).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("optimization_barrier") == barriers

"""Models with random parameters, and runs of them that look trained: tests of evaluation need no training."""

import dataclasses
import functools
import json
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import models, run_record
from lmjax.checkpoint import Checkpoints
from lmjax.resolve import resolve
from lmjax.sharding import local_mesh, param_shardings
from lmjax.trained import Trained, _example
from tests.conftest import small


@functools.cache
def random_model(family="decoder", scale=0.3, **overrides):
    """A model whose parameters are normal with standard deviation `scale`, so that its predictions differ."""
    run = resolve(small(family, **overrides))
    shapes = nn.unbox(models.parameter_shapes(run.model, run.batches.rows([0])))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (scale * rng.standard_normal(x.shape)).astype(np.float32), shapes)
    return Trained(pathlib.Path("run"), run.config, run.record(), run.data.tokenizer, run.model, params, 0)


def sharded(model, **sizes):
    """The model on a mesh of fake devices: sharded(model, fsdp=2, tensor=4) on 8."""
    mesh = local_mesh(model.config.mesh, sizes, jax.devices()[: math.prod(sizes.values())])
    boxed = models.parameter_shapes(model.model, _example(model.config.model))
    places = param_shardings(boxed, mesh, model.config.mesh.rules)
    return dataclasses.replace(model, params=jax.device_put(model.params, places))


def write_run(run_dir, family="decoder", steps=(3, 6), status="done", **overrides):
    """Writes the directory of a run whose checkpoints differ in the seed of their parameters; returns it."""
    resolved = resolve(small(family, **overrides))
    run_dir.mkdir(parents=True)
    run_record.write_json(run_dir / "config.json", resolved.record())
    resolved.data.tokenizer.save(run_dir / "tokenizer")
    example = {name: jax.ShapeDtypeStruct((1, n), "int32") for name, n in resolved.lengths.items()}
    shapes = nn.unbox(models.parameter_shapes(resolved.model, example))
    saver = Checkpoints(run_dir / "checkpoints", keep=10)
    for step in steps:
        rng = np.random.default_rng(step)
        params = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), shapes)  # noqa: B023
        saver.save(step, {"params": params})
    saver.wait()
    saver.close()
    lines = [{"step": step, "loss": 5.0, "validation_loss": 5.0 + step / 10} for step in steps]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_record.write_json(run_dir / "status.json", {"status": status, "step": max(steps, default=0), "steps": 6})
    if status == "done":
        facts = {"run_id": resolved.run_id, "steps": 6, "loss": 4.5, "bits_per_byte": 6.5}
        run_record.write_json(run_dir / "summary.json", {**facts, **resolved.derived} | facts)
    return run_dir

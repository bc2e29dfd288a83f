"""Multitask sparse parity (arXiv 2303.13506), plugged in: an objective whose examples are drawn, and a network for it.

A sample is the number of a task and a string of random bits; its label is the parity of the few bits of that task.
B rows, T samples of a row, K tasks, n bits, H hidden units.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from lmjax.models import MODELS
from lmjax.objectives import OBJECTIVES, Head, Objective

OPTIONS = {
    "tasks": 64,
    "bits": 30,  # of a sample, in one int32
    "degree": 3,  # bits whose parity is the label
    "alpha": 0.6,  # task k is drawn in proportion to k^-(1 + alpha)
}


@functools.cache
def masks(tasks: int, bits: int, degree: int) -> np.ndarray:
    """Returns the bits of each task as a number, int64 [tasks]: distinct, always the same.

    Example: masks(2, 4, 2)[0] has two of the lowest four bits set.
    """
    rng, found = np.random.Generator(np.random.Philox(key=[bits, degree])), []
    while len(found) < tasks:
        mask = int(np.sum(1 << rng.choice(bits, degree, replace=False)))
        if mask not in found:
            found.append(mask)
    return np.asarray(found)


@functools.cache
def frequencies(tasks: int, alpha: float) -> np.ndarray:
    """Returns the probability of each task, in proportion to k^-(1 + alpha), float64 [tasks].

    Example: 3 tasks, alpha 0: 6/11, 3/11, 2/11.
    """
    weight = np.arange(1.0, tasks + 1) ** -(1 + alpha)
    return weight / weight.sum()


def samples(task_T: np.ndarray, rng: np.random.Generator, options) -> dict[str, np.ndarray]:
    """Returns samples of the given tasks: bits and task of each, and the parity of the task's bits.

    Example: bits 0b1011 of a task with mask 0b0110: parity 1.
    """
    bits_T = rng.integers(1 << options["bits"], size=len(task_T))
    mask_K = masks(options["tasks"], options["bits"], options["degree"])
    return {
        "inputs": bits_T.astype(np.int32),
        "contexts": task_T.astype(np.int32),
        "parity_targets": np.bitwise_count(bits_T & mask_K[task_T]).astype(np.int32) & 1,
        "parity_weights": np.ones(len(task_T), np.float32),
    }


def make_example(tokens, rng, spec):
    """A row of as many new samples as there are tokens, whose values are not used."""
    options = spec.options
    cumulative_K = np.cumsum(frequencies(options["tasks"], options["alpha"]))
    task_T = np.searchsorted(cumulative_K, rng.random(len(tokens)) * cumulative_K[-1], side="right")
    return samples(np.minimum(task_T, options["tasks"] - 1), rng, options)


OBJECTIVES["sparse_parity"] = Objective(
    name="sparse_parity",
    version=1,
    attention="pairs",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n},
    options=OPTIONS,
    ranges={"tasks": (1, 4096), "bits": (1, 31), "degree": (1, 31), "alpha": (0.0, 10.0)},
    heads=lambda options: (Head("parity", "tokens", 2),),
    expected_weight=lambda n, options: n,
)


class ParityMLP(nn.Module):
    """One hidden layer of model.d_model ReLU units over the task, one-hot, and the bits, as -1 and 1."""

    attention = ("pairs",)
    width_rules = False
    config: FrozenConfigDict
    extra_heads: tuple = ()
    options = {"tasks": OPTIONS["tasks"], "bits": OPTIONS["bits"]}

    @nn.compact
    def __call__(self, batch, deterministic=True, project=True):
        """Returns {"parity": logits [B, T, 2]}; there is no vocabulary, so `project` must be False."""
        config, bits_BT = self.config, batch["inputs"]
        task_BTK = jax.nn.one_hot(batch.get("contexts", bits_BT), config.options.tasks)
        bit_BTn = 2.0 * ((bits_BT[..., None] >> jnp.arange(config.options.bits)[None, None]) & 1) - 1.0
        hidden_BTH = nn.relu(nn.Dense(config.d_model, name="hidden")(jnp.concatenate([task_BTK, bit_BTn], axis=-1)))
        return {"parity": nn.Dense(2, name="out")(hidden_BTH)}


MODELS["parity_mlp"] = ParityMLP

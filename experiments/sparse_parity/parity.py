"""Multitask sparse parity (arXiv 2303.13506), plugged in: an objective whose samples are drawn, and a network for it.

A sample is the number of a task and some random bits; its label is the parity of the few bits that belong to the task.
In a row it takes 1 + bits / 8 ids: the task, then eight bits each.

B rows, T positions of a row, S samples of a row, K tasks, n bits.
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
    "tasks": 100,
    "bits": 16,  # of a sample, a multiple of 8
    "degree": 3,  # bits whose parity is the label
    "alpha": 0.4,  # task k is drawn in proportion to k^-(1 + alpha)
}


def ids(options) -> int:
    """Returns the ids of a sample."""
    return 1 + options["bits"] // 8


@functools.cache
def masks(tasks: int, bits: int, degree: int) -> np.ndarray:
    """Returns which bits belong to each task, uint8 [tasks, bits] of 0 and 1: distinct, always the same.

    Example: the rows of masks(6, 4, 2) are all six pairs of four bits.
    """
    rng, found = np.random.Generator(np.random.Philox(key=[bits, degree])), {}
    while len(found) < tasks:
        found[tuple(sorted(rng.choice(bits, degree, replace=False).tolist()))] = None
    mask_Kn = np.zeros((tasks, bits), np.uint8)
    np.put_along_axis(mask_Kn, np.asarray(list(found)), 1, axis=1)
    return mask_Kn


@functools.cache
def frequencies(tasks: int, alpha: float) -> np.ndarray:
    """Returns the probability of each task, in proportion to k^-(1 + alpha), float64 [tasks].

    Example: 3 tasks, alpha 0: 6/11, 3/11, 2/11.
    """
    weight = np.arange(1.0, tasks + 1) ** -(1 + alpha)
    return weight / weight.sum()


def samples(task_S: np.ndarray, rng: np.random.Generator, options) -> dict[str, np.ndarray]:
    """Returns a row of samples of the given tasks, with the label at the last id of each.

    Example: a sample of task 7 with the bits 10000001 01000000 is the ids 7, 129, 64, its label the parity of those of
    the 16 bits that belong to task 7.
    """
    byte_Sb = rng.integers(0, 256, (len(task_S), options["bits"] // 8), np.uint8)
    mask_Kb = np.packbits(masks(options["tasks"], options["bits"], options["degree"]), axis=1)
    ones_S = np.bitwise_count(byte_Sb & mask_Kb[task_S]).sum(axis=1)
    row_Si = np.concatenate([task_S[:, None], byte_Sb], axis=1)
    target_Si, weight_Si = np.zeros(row_Si.shape, np.int32), np.zeros(row_Si.shape, np.float32)
    target_Si[:, -1], weight_Si[:, -1] = ones_S % 2, 1.0
    return {
        "inputs": row_Si.astype(np.int32).ravel(),
        "parity_targets": target_Si.ravel(),
        "parity_weights": weight_Si.ravel(),
    }


def make_example(tokens, rng, spec):
    """A row of new samples, one for each token of text; what the tokens are does not matter."""
    cumulative_K = np.cumsum(frequencies(spec.options["tasks"], spec.options["alpha"]))
    task_S = np.searchsorted(cumulative_K, rng.random(len(tokens)) * cumulative_K[-1], side="right")
    return samples(task_S, rng, spec.options)


OBJECTIVES["sparse_parity"] = Objective(
    name="sparse_parity",
    version=1,
    attention="causal",
    make_example=make_example,
    lengths=lambda n, options: {"inputs": n * ids(options)},
    options=OPTIONS,
    ranges={"tasks": (1, 256), "bits": (8, 64), "degree": (1, 64), "alpha": (0.0, 10.0)},
    conflict=lambda options: (
        "" if options["bits"] % 8 == 0 else f"bits: expected a multiple of 8, got {options['bits']}"
    ),
    heads=lambda options: (Head("parity", "tokens", 2),),
    expected_weight=lambda n, options: n,
)


class ParityMLP(nn.Module):
    """A hidden layer of model.d_model ReLU units over the task, one-hot, and the bits, as -1 and 1, of each sample."""

    attention = ("causal",)
    width_rules = False
    config: FrozenConfigDict
    extra_heads: tuple = ()
    options = {name: OPTIONS[name] for name in ("tasks", "bits")}

    @nn.compact
    def __call__(self, batch, deterministic=True, project=True):
        """Returns {"parity": logits [B, T, 2]}, those of a sample at all of its positions."""
        options, B = self.config.options, len(batch["inputs"])
        width = ids(options)
        row_BSi = jnp.resize(batch["inputs"], (B, -(-batch["inputs"].shape[1] // width), width))
        task_BSK = jax.nn.one_hot(row_BSi[..., 0], options["tasks"])
        shift = jnp.arange(7, -1, -1)[None, None, None]
        bit_BSn = ((row_BSi[..., 1:, None] >> shift) & 1).reshape(B, -1, options["bits"])
        x_BSi = jnp.concatenate([task_BSK, 2.0 * bit_BSn - 1.0], axis=-1)
        hidden_BSH = nn.relu(nn.Dense(self.config.d_model, name="hidden")(x_BSi))
        return {"parity": jnp.repeat(nn.Dense(2, name="out")(hidden_BSH), width, axis=1)}


MODELS["parity_mlp"] = ParityMLP

"""Optimizers by name, all from optax, at learning rate 1: the train step multiplies their update by the step's rate.

Every one here is linear in the learning rate (weight decay included, as in AdamW, arXiv 1711.05101), which is
what makes
the rate an argument of the compiled step.
"""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from lmjax.errors import InputError, nearest

DECAYED = ("kernel", "embedding", "head")  # parameters with weight decay: matrices and the token table


def decay_mask(params: Any) -> Any:
    """Returns a tree of bools: True for matrices and the token table; False for norms, biases and position tables."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)


def _adamw(config):
    return optax.adamw(1.0, config.b1, config.b2, eps=config.epsilon, weight_decay=config.weight_decay, mask=decay_mask)


def _lion(config):
    return optax.lion(1.0, config.b1, config.b2, weight_decay=config.weight_decay, mask=decay_mask)


def _adafactor(config):
    """Factored second moments with update clipping (arXiv 1804.04235); absolute rate, no parameter scale, no
    momentum."""
    return optax.adafactor(
        1.0,
        multiply_by_parameter_scale=False,
        decay_rate=0.8,
        weight_decay_rate=config.weight_decay or None,
        weight_decay_mask=decay_mask,
    )


def _muon(config):
    """Orthogonalised momentum for hidden matrices, Adam for the rest (Jordan et al. 2024; arXiv 2502.16982).

    Updates are scaled to AdamW's size (0.2 sqrt(max(in, out))), so that one learning rate serves both groups.
    """

    def dimensions(params):
        def of(path, leaf):  # hidden kernels only; a leading layer axis, if any, is a batch of matrices
            is_hidden = path[-1].key == "kernel"
            return optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1) if is_hidden else None

        return jax.tree_util.tree_map_with_path(of, params)

    muon = optax.contrib.muon(
        1.0,
        eps=config.epsilon,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=0.2,
    )
    return optax.chain(muon, optax.add_decayed_weights(-config.weight_decay, decay_mask))


OPTIMIZERS = {"adamw": _adamw, "adafactor": _adafactor, "lion": _lion, "muon": _muon}
MOMENTS = {"adamw": 2, "adafactor": 0, "lion": 1, "muon": 1}  # arrays per parameter, for memory estimates


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of the section, global-norm clipping excluded (the train step clips).

    Raises:
        InputError: unknown name.
    """
    if config.name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer.name {config.name!r}{nearest(config.name, OPTIMIZERS)}")
    return OPTIMIZERS[config.name](config)

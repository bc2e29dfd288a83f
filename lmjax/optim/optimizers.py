"""Optimizers by name, all from optax, at learning rate 1: the training step multiplies the update by the learning rate.

Weight decay is decoupled, as in AdamW (arXiv 1711.05101), and is the step's as well, so learning rate and weight decay
are arguments of the compiled step.
"""

from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from lmjax.errors import InputError, nearest
from lmjax.registry import Registry, taking

# The empty state that optax's weight decay had in this place: checkpoints from when it was part of the optimizer load.
_NO_DECAY = optax.masked(optax.identity(), lambda params: jax.tree.map(lambda _: False, params))
_RANK = {"kernel": 2, "bias": 1, "scale": 1}  # dimensions of these parameters without the layer axis of a stack


def _per_layer(transform):
    """Applies a transformation separately to every array and to every layer of a stack, so that a layer's update does
    not depend on the other layers or on stacking.
    """

    def mapped(function):
        def of(path, leaf, *rest):
            stacked = leaf.ndim > _RANK.get(path[-1].key, leaf.ndim)
            return (jax.vmap(function) if stacked else function)(leaf, *rest)

        return of

    def init(params):
        return jax.tree_util.tree_map_with_path(mapped(transform.init), params)

    def update(updates, state, params=None):
        both = jax.tree_util.tree_map_with_path(mapped(transform.update), updates, state, params)
        return tuple(jax.tree.map(lambda _, pair, i=i: pair[i], updates, both) for i in range(2))

    return optax.GradientTransformation(init, update)


def _adafactor(config):
    """Factored second moments with update clipping (arXiv 1804.04235); absolute rate, no parameter scale, no momentum.

    Every matrix is factored, whatever its width (optax: from width 128 on), so that all widths use the same optimizer.
    """
    layer = optax.chain(
        optax.scale_by_factored_rms(decay_rate=0.8, min_dim_size_to_factor=1), optax.clip_by_block_rms(1.0)
    )
    return optax.chain(_per_layer(layer), _NO_DECAY, optax.scale(-1.0))


def _muon(config):
    """Orthogonalised momentum for hidden matrices, Adam with Nesterov momentum for the rest, as in optax.contrib.muon
    (Jordan et al. 2024; arXiv 2502.16982).

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
    return optax.chain(muon, _NO_DECAY)


OPTIMIZERS: dict[str, Callable[[ConfigDict], optax.GradientTransformation]] = Registry(
    "optimizer",
    {
        "adamw": lambda c: optax.chain(optax.scale_by_adam(c.b1, c.b2, c.epsilon), _NO_DECAY, optax.scale(-1.0)),
        "adafactor": _adafactor,
        "lion": lambda c: optax.chain(optax.scale_by_lion(c.b1, c.b2), _NO_DECAY, optax.scale(-1.0)),
        "muon": _muon,
    },
    taking("config"),
)
# Optimizer arrays per parameter, for memory estimates; 2 for an optimizer of your own. Adafactor keeps one row and one
# column per matrix; muon has a second array for tables, norms and biases, which is not counted.
MOMENTS = {"adamw": 2, "adafactor": 0, "lion": 1, "muon": 1}


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Returns the optimizer of the section, without global-norm clipping and weight decay, which the step does.

    Raises:
        InputError: unknown name.
    """
    if config.name not in OPTIMIZERS:
        raise InputError(f"unknown optimizer.name {config.name!r}{nearest(config.name, OPTIMIZERS)}")
    return OPTIMIZERS[config.name](config)

"""How learning rates, weight decay, epsilon and forward multipliers follow width and depth (section parametrization).

standard   one learning rate for every parameter.
mup        features learn at the same speed at every width, so a rate tuned at the base width holds at all widths:
           Tensor Programs V, arXiv 2203.03466, Table 8 (the form for tied embeddings).
completep  mup, and residual branches divided by depth: CompleteP, arXiv 2505.01618, alpha = 1.

With m = d_model / base_width, L = num_layers / base_layers and k = head_dim / base_head_dim:

                      input     hidden                   output    vector
    learning rate     1         1 / m (muon: spectral)   1         1
    weight decay      1         1, or as the rate        1         none
    gradient          m         m (in layers: m L)       m         m

    logits, also a router's, x 1/m; attention scale x 1/sqrt(k), or x 1/k if model.attention_scale is set;
    branches x 1/L (completep)

Rates: Adam, Lion and Adafactor move a hidden matrix by the same amount per entry at any width, so its product with an
activation grows as m. Muon's update has spectral norm 0.2 sqrt(max(in, out)), and sqrt(out / in) keeps features
constant (arXiv 2310.17813). Decay: kept independent of m (arXiv 2510.19093), else wide models lose it. Gradients fall
as 1/m; scaling them up is the same as scaling Adam's epsilon down (arXiv 2407.05872). Initial values need no rule:
hidden kernels have variance 1 / fan_in, and tables and heads a constant one. completep keeps that of the base depth
in output projections. At the base, every factor is exactly 1.

A parameter's role follows from the logical axes that it names, never from its shape or its own name. num_heads x
head_dim and mlp_dim are taken to grow with d_model, and embedding_dim, where set, to be constant.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lmjax.errors import InputError, nearest

NAMES = ("standard", "mup", "completep")
MULTIPLIERS = ("logit", "heads", "attention", "branch", "router")  # model.<name>_multiplier
KERNELS = {  # of Dense, the matrices that Muon orthogonalises
    ("embed", "heads"): "hidden",
    ("heads", "embed"): "hidden",
    ("embed", "mlp"): "hidden",
    ("mlp", "embed"): "hidden",
    ("experts", "embed", "mlp"): "hidden",
    ("experts", "mlp", "embed"): "hidden",
    ("embed", "width"): "hidden",
    ("width", "embed"): "input",
}
OUTPUTS = {("embed", to): "output" for to in ("vocab", "classes", "experts")}  # heads, and the router of experts
ROLES = {
    **KERNELS,
    ("vocab", "embed"): "input",
    ("length", "embed"): "input",
    ("types", "embed"): "input",
    ("buckets", "heads"): "input",
    **OUTPUTS,
    **{(axis,): "vector" for axis in ("norm", "head", "embed", "heads", "mlp", "width", "vocab", "classes")},
}
DECAYED = (*KERNELS, ("vocab", "embed"), *OUTPUTS)  # matrices, token table, heads and router


@dataclasses.dataclass(frozen=True)
class Scale:
    """Factors of one parameter, constants of the compiled step."""

    role: str  # input | hidden | output | vector
    rate: float  # on the optimizer's update
    decay: float  # on learning rate x weight decay; 0: no weight decay
    gradient: float  # on the clipped gradient, as it enters the optimizer


def table(config: ConfigDict, boxed: Any) -> list[dict]:
    """Returns a row per parameter: its path, role, initial std, peak rate, decay, epsilon and forward multiplier.

    Args:
        config, boxed: as for `scales`.

    Returns:
        rows with path, role, std (0: constant), rate (peak), decay (relative per step at the peak rate), epsilon (None
        where the optimizer has none) and multiplier (on what the parameter produces: its logits or branch).
    """
    model, optimizer, found = config.model, config.optimizer, []
    leaves = jax.tree_util.tree_leaves_with_path(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    for (path, leaf), scale in zip(leaves, jax.tree.leaves(scales(config, boxed)), strict=True):
        axes, multiplier = tuple(name for name in getattr(leaf, "names", ()) if name != "layers"), 1.0
        if axes == (("vocab", "embed") if model.tie_embeddings else ("embed", "vocab")):
            multiplier = model.logit_multiplier or 1.0
        elif axes == ("embed", "classes"):
            multiplier = model.heads_multiplier or 1.0
        elif axes == ("embed", "experts"):
            multiplier = model.router_multiplier or 1.0
        elif axes[-2:] in (("heads", "embed"), ("mlp", "embed")):
            multiplier = model.branch_multiplier or 1.0
        adam = optimizer.name == "adamw" or (optimizer.name == "muon" and axes not in KERNELS)
        found.append(
            {
                "path": "/".join(key.key for key in path),
                "role": scale.role,
                "std": getattr(leaf, "std", math.nan),
                "rate": optimizer.learning_rate * scale.rate,
                "decay": optimizer.learning_rate * scale.decay * optimizer.weight_decay,
                "epsilon": optimizer.epsilon / scale.gradient if adam else None,
                "multiplier": multiplier,
            }
        )
    return found


def scales(config: ConfigDict, boxed: Any) -> Any:
    """Returns a tree of `Scale`, one for each parameter.

    Args:
        config: a resolved config.
        boxed: parameter shapes with their logical axes, as from models.parameter_shapes.

    Raises:
        InputError: logical axes without a role.

    Example: mup at twice the base width, adamw: a kernel has rate 0.5, decay 1 and gradient 2.
    """
    m, L, k = ratios(config)
    model, muon = config.model, config.optimizer.name == "muon"
    narrow = model.embedding_dim not in (None, model.d_model)  # the tables do not widen with the model

    def of(path, leaf):
        if not hasattr(leaf, "names") and config.parametrization.name == "standard":  # a model of your own
            return Scale("hidden" if leaf.ndim > 1 else "vector", 1.0, float(leaf.ndim > 1), 1.0)
        axes = tuple(name for name in getattr(leaf, "names", ()) if name != "layers")
        if axes not in ROLES:
            raise InputError(
                f"parameter {jax.tree_util.keystr(path)}: expected logical axes with a role, got {axes}; add them to "
                "ROLES in lmjax/optim/parametrization.py"
            )
        rate = 1.0
        if muon and axes in KERNELS:
            sizes = leaf.value.shape[-2:]
            base = [n if axis == "width" and narrow else n / m for n, axis in zip(sizes, axes[-2:], strict=True)]
            rate = spectral(*sizes) / spectral(*base)
        elif ROLES[axes] == "hidden":
            rate = 1 / m
        decay = float(axes in DECAYED)
        if config.parametrization.decay == "coupled":
            decay *= rate
        gradient = m * L if "layers" in leaf.names else m
        if axes in (("vocab",), ("classes",)) or (
            narrow and ("width" in axes or axes[-1:] == ("embed",) and ROLES[axes] == "input")
        ):
            gradient = 1.0
        elif axes == ("buckets", "heads"):
            gradient = m / k  # summed over a head's width
        elif axes == ("head",):
            gradient = gradient / m  # summed over heads, of which there are m times as many
        return Scale(ROLES[axes], rate, decay, gradient)

    return jax.tree_util.tree_map_with_path(of, boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))


def moved(params: Any, updates: Any, scales: Any, learning_rate: jax.Array, weight_decay: jax.Array) -> Any:
    """Returns the parameters after a step: p + learning rate (rate u - decay x weight decay x p)."""
    return jax.tree.map(
        lambda p, u, s: p + learning_rate * (s.rate * u - s.decay * weight_decay * p), params, updates, scales
    )


def spectral(inputs: float, outputs: float) -> float:
    """Returns the factor that gives an update of Muon, of spectral norm sqrt(max(in, out)), the norm sqrt(out / in).

    Example: spectral(64, 64) = 1 / 8; spectral(64, 256) = 2 / 16.
    """
    return math.sqrt(outputs / inputs) / math.sqrt(max(inputs, outputs))


def ratios(config: ConfigDict) -> tuple[float, float, float]:
    """Returns (width, depth, head width), each divided by its value at the base; 1 where the parametrization does not
    use it."""
    section, model = config.parametrization, config.model
    if section.name == "standard":
        return 1.0, 1.0, 1.0
    depth = model.num_layers / section.base_layers if section.name == "completep" else 1.0
    return model.d_model / section.base_width, depth, model.head_dim / (section.base_head_dim or model.head_dim)


def multipliers(config: ConfigDict) -> dict[str, float]:
    """Returns {dotted key: value} of the forward multipliers in the model section; {} for "standard".

    Args:
        config: a config with derived sizes filled in.

    Raises:
        InputError: unknown name; no base; settings that the parametrization does not fit.

    Example: mup at twice the base width: {"model.logit_multiplier": 0.5, ...}
    """
    section, model = config.parametrization, config.model
    if section.name not in NAMES:
        raise InputError(f"unknown parametrization.name {section.name!r}{nearest(section.name, NAMES)}")
    needed = {"standard": (), "mup": ("base_width",), "completep": ("base_width", "base_layers")}[section.name]
    for key in needed:
        if section[key] is None:
            what = {"base_width": "model.d_model", "base_layers": "model.num_layers"}[key]
            raise InputError(
                f"parametrization.name {section.name!r}: expected parametrization.{key}, got None; set it to the "
                f"{what} at which the learning rate was tuned"
            )
    found = {}
    if needed:
        m, L, k = ratios(config)
        _check(section, model, m)
        constant = model.head == "transform" and model.embedding_dim not in (None, model.d_model)
        found = {
            "model.logit_multiplier": 1.0 if constant else 1 / m,
            "model.heads_multiplier": 1 / m,
            "model.attention_multiplier": 1 / k if model.attention_scale else k**-0.5,
            "model.branch_multiplier": 1 / L,
            **({"model.router_multiplier": 1 / m} if model.num_experts else {}),
        }
    for key in (f"model.{name}_multiplier" for name in MULTIPLIERS):
        given, expected = model[key.removeprefix("model.")], found.get(key)
        if given not in (None, expected):
            raise InputError(
                f"{key}: expected {expected}, as parametrization.name {section.name!r} gives, got {given}; set it to "
                "None"
            )
    return found


def _check(section, model, m):
    if section.name == "completep" and model.norm_position == "post":
        raise InputError(
            "parametrization.name 'completep': expected model.norm_position 'pre', got 'post', where the norm undoes "
            "a factor on the branches; use 'mup', or set model.norm_position='pre'"
        )
    if m != 1 and model.logit_scale != 1 and math.isclose(model.logit_scale, model.d_model**-0.5, rel_tol=1e-4):
        raise InputError(
            f"model.logit_scale {model.logit_scale:g} is 1 / sqrt(model.d_model), and {section.name} divides the "
            f"logits by the width again; set it to its value at the base width, {section.base_width**-0.5:g}"
        )

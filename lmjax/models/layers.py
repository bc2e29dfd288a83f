"""Dense layers, norms, feed-forward layers and embeddings, shared by all stacks.

B batch, T time, D model, F feed-forward, V vocabulary. Parameters are float32; `config.dtype` is the compute type.
Each parameter names its logical axes, which config.mesh.rules maps to the mesh.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import FrozenConfigDict

from lmjax.losses import time_parts
from lmjax.models import products

GATED = ("swiglu", "geglu")
GELU = products.recomputed(nn.gelu)  # tanh form
ACTIVATIONS = {
    "gelu": GELU,
    "gelu_exact": products.recomputed(functools.partial(nn.gelu, approximate=False)),
    "relu": nn.relu,
    "swiglu": products.recomputed(nn.silu),
    "geglu": GELU,
}
EMBEDDING_STD = 0.02  # initial std of token table and output head; initial predictions are near uniform


@struct.dataclass(eq=False)
class Parameter(nn.LogicallyPartitioned):
    """A parameter's box while the model is initialised: its logical axes, and the std of its initial values."""

    std: float = struct.field(default=0.0, pytree_node=False)


def declared(init: Callable, axes: tuple[str, ...], std: float = 0.0) -> Callable:
    """Returns the initialiser with its logical axes and its std (0 for constants)."""
    return lambda *arguments: Parameter(init(*arguments), axes, std=std)


def placed(x_BT: jax.Array, *axes: str | None) -> jax.Array:
    """Returns x [B, T, ...] placed on the mesh by its rules: rows, time if it can be split, further logical axes."""
    time = "time" if time_parts(x_BT.shape[1]) > 1 else None
    return nn.with_logical_constraint(x_BT, ("batch", time, *axes))


class Dense(nn.Module):
    """x [..., I] -> [..., features]: x W (+ b), W initialised with variance scale / fan_in, truncated normal.

    Attributes:
        config: the model section.
        features: output width.
        axes: logical names of (input, output), e.g. ("embed", "mlp").
        scale: factor on the initial variance; `residual_scale` for layers that write into the residual stream.
    """

    config: FrozenConfigDict
    features: int
    axes: tuple[str, str]
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal")
        init = declared(init, self.axes, (self.scale / x.shape[-1]) ** 0.5)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        y = products.matmul(x.astype(dtype), kernel)
        if self.config.use_bias:
            zeros = declared(nn.initializers.zeros_init(), self.axes[1:])
            y = (y + self.param("bias", zeros, (self.features,), jnp.float32)[None, None]).astype(dtype)
        return y


def residual_scale(config: FrozenConfigDict, num_layers: int) -> float:
    """Returns the variance scale of residual outputs, 1 / (2 num_layers) (GPT-2): all blocks together add a variance
    below 1 to the residual stream. With a factor on the branches, num_layers at the base."""
    return 1.0 / (2 * num_layers * (config.branch_multiplier or 1.0))


class Norm(nn.Module):
    """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467), computed in float32.

    Attributes:
        config: the model section.
        axis: logical name of the last axis: "norm", or "head" for queries and keys [B, T, heads, K], which share gains.

    Example: rmsnorm of [3, 4] is [3, 4] / sqrt(12.5) = [0.849, 1.131].
    """

    config: FrozenConfigDict
    axis: str = "norm"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Args: x [..., D], any float dtype. Returns: [..., D] in the compute dtype."""
        config = self.config
        width, x = x.shape[-1], x.astype(jnp.float32)
        last, scale = (1,) * (x.ndim - 1) + (width,), jnp.ones(width)
        if config.norm_scale:
            ones = declared(nn.initializers.constant(1.0 - config.norm_offset), (self.axis,))
            scale = self.param("scale", ones, (width,), jnp.float32)
            scale = scale + config.norm_offset if config.norm_offset else scale
        if config.norm == "rmsnorm":
            mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
            return (x * jax.lax.rsqrt(mean_square + config.norm_epsilon) * scale.reshape(last)).astype(config.dtype)
        x = products.layer_norm(x, scale, config.norm_epsilon)
        if config.use_bias:
            zeros = declared(nn.initializers.zeros_init(), (self.axis,))
            x = x + self.param("bias", zeros, (width,), jnp.float32).reshape(last)
        return x.astype(config.dtype)


class FeedForward(nn.Module):
    """D -> F -> D. Gated activations multiply act(x W_gate) with x W_up (arXiv 2002.05202)."""

    config: FrozenConfigDict
    num_layers: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        h_BTF = Dense(config, config.mlp_dim, ("embed", "mlp"), name="up")(x_BTD)
        activation = ACTIVATIONS[config.activation]
        if config.activation in GATED:
            h_BTF = activation(Dense(config, config.mlp_dim, ("embed", "mlp"), name="gate")(x_BTD)) * h_BTF
        else:
            h_BTF = activation(h_BTF)
        scale = residual_scale(config, self.num_layers)
        return Dense(config, x_BTD.shape[-1], ("mlp", "embed"), scale, name="down")(h_BTF)


@struct.dataclass
class Logits:
    """Logits that are not computed yet, x_BTD kernel_DV + bias_V: `lmjax.losses` computes them in chunks of time."""

    x_BTD: jax.Array  # in the compute dtype, after the head's transform and its factors
    kernel_DV: jax.Array  # float32
    bias_V: jax.Array | None  # float32
    softcap: float | None = struct.field(pytree_node=False, default=None)  # config.logit_softcap

    def logits(self, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """Returns [B, T, V]; products accumulate in float32, whatever the type of x."""
        logits_BTV = products.matmul(self.x_BTD, self.kernel_DV, dtype)
        if self.bias_V is not None:
            logits_BTV = logits_BTV + self.bias_V[None, None].astype(dtype)
        return capped(logits_BTV, self.softcap)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """Returns cap tanh(x / cap), which lies within -cap .. cap (Gemma 2, arXiv 2408.00118); None: x.

    Example: capped([1, 100], 30) = [0.9996, 29.92]
    """
    return x if cap is None else (cap * jnp.tanh(x.astype(jnp.float32) / cap)).astype(x.dtype)


class Embedding(nn.Module):
    """Token table [V, E], position and type embeddings, and the output head.

    `embed(tokens, positions)` and `logits(x)` share the table when config.tie_embeddings. E is config.embedding_dim or
    d_model. The two sides of an encoder-decoder share the token table; each has its own learned positions and norm.

    The table is initialised with std 0.02, so that initial predictions are near uniform. Its rows are multiplied by
    config.embedding_scale: blocks add a variance near 0.5 to the residual stream, of which an unscaled token would be
    0.1 %. Positions and token types start with the std of the scaled rows. None of this depends on width, as in muP.

    Attributes:
        config: the model section.
        sides: parameter prefixes of the sides: ("",) or ("", "encoder_").
        features: width of what the logits are computed from, if the table is not tied; None: d_model.
    """

    config: FrozenConfigDict
    sides: tuple[str, ...] = ("",)
    features: int | None = None

    def setup(self):
        config = self.config
        width = config.embedding_dim or config.d_model

        def table(name, rows, axis, std=EMBEDDING_STD * config.embedding_scale):
            return self.param(name, declared(nn.initializers.normal(std), (axis, "embed"), std), (rows, width))

        self.table_VE = table("embedding", config.vocab_size, "vocab", EMBEDDING_STD)
        if config.position == "learned":
            rows = config.max_len + config.position_offset
            self.positions_LE = {side: table(f"{side}positions", rows, "length") for side in self.sides}
        if config.token_types:
            self.types_NE = table("token_types", config.token_types, "types")
        if config.embedding_norm:
            for side in self.sides:
                setattr(self, f"{side}norm", Norm(config))
        if width != config.d_model:
            self.projection = Dense(config, config.d_model, ("width", "embed"))
        self._setup_head(width)
        self.dropout = nn.Dropout(config.dropout)

    def _setup_head(self, width):
        config = self.config
        if config.head == "transform":
            self.transform = Dense(config, width, ("embed", "width"))
            self.transform_norm = Norm(config)
        if config.head == "discriminator":
            self.transform = Dense(config, config.d_model, ("embed", "width"))
            self.discriminator = Dense(config, 1, ("embed", "width"))
            return
        if not config.tie_embeddings:
            init = declared(nn.initializers.normal(EMBEDDING_STD), ("embed", "vocab"), EMBEDDING_STD)
            rows = width if config.head == "transform" else self.features or config.d_model
            self.head_DV = self.param("head", init, (rows, config.vocab_size))
        if config.head_bias:
            zeros = declared(nn.initializers.zeros_init(), ("vocab",))
            self.head_bias_V = self.param("head_bias", zeros, (config.vocab_size,), jnp.float32)

    def embed(
        self,
        tokens_BT: jax.Array,
        positions_BT: jax.Array,
        deterministic: bool,
        token_types_BT: jax.Array | None = None,
        side: str = "",
    ) -> jax.Array:
        """Returns [B, T, D] in the compute dtype: token plus position and type embeddings.

        Sinusoids are scaled to the initial std of the scaled rows.
        """
        config = self.config
        # A table split over fsdp is gathered before use, like every parameter; rows stay split over tensor.
        table_VE = nn.with_logical_constraint(self.table_VE, ("vocab", "gathered"))
        x_BTE = placed(jnp.take(table_VE, tokens_BT, axis=0), None)
        if config.embedding_scale != 1:
            x_BTE = x_BTE * config.embedding_scale
        if config.position == "learned":
            x_BTE = x_BTE + jnp.take(self.positions_LE[side], positions_BT + config.position_offset, axis=0)
        elif config.position == "sinusoidal":
            amplitude = EMBEDDING_STD * config.embedding_scale * 2**0.5
            x_BTE = x_BTE + amplitude * sinusoids(positions_BT, x_BTE.shape[-1])
        if config.token_types:
            types_BT = jnp.zeros_like(tokens_BT) if token_types_BT is None else token_types_BT
            x_BTE = x_BTE + jnp.take(self.types_NE, types_BT, axis=0)
        if config.embedding_norm:
            x_BTE = getattr(self, f"{side}norm")(x_BTE)
        x_BTE = self.dropout(x_BTE.astype(config.dtype), deterministic=deterministic)
        return self.projection(x_BTE) if x_BTE.shape[-1] != config.d_model else x_BTE

    def logits(self, x_BTD: jax.Array, at_B: jax.Array | None = None, project: bool = True) -> jax.Array | Logits:
        """Returns [B, T, V] in the compute dtype, [B, T, 1] for a discriminator; if not project, the `Logits` of them.

        Args:
            x_BTD: the stack's output.
            at_B: int32, the single position of each row to compute logits for, giving [B, 1, V]; None: all.
            project: False: leave the product with the head to the loss, which computes it in float32.
        """
        config = self.config
        if at_B is not None:
            x_BTD = jnp.take_along_axis(x_BTD, at_B[:, None, None], axis=1)
        if config.head != "plain":
            x_BTD = ACTIVATIONS[config.activation](self.transform(x_BTD))
        if config.head == "discriminator":
            return self.discriminator(x_BTD)
        if config.head == "transform":
            x_BTD = self.transform_norm(x_BTD)
        if (scale := config.logit_scale * (config.logit_multiplier or 1.0)) != 1:
            x_BTD = x_BTD * scale
        kernel_DV = self.table_VE.T if config.tie_embeddings else self.head_DV
        # Gathered over fsdp once, not for each chunk of the loss; the vocabulary stays split over tensor.
        kernel_DV = nn.with_logical_constraint(kernel_DV, ("gathered", "vocab"))
        head = Logits(x_BTD, kernel_DV, self.head_bias_V if config.head_bias else None, config.logit_softcap)
        return head.logits(x_BTD.dtype) if project else head


def positions_of(batch: dict[str, jax.Array], side: str = "") -> jax.Array:
    """Returns the positions of the tokens of a batch, [B, T]: as given, or 0 .. T - 1; side: "" | "encoder_"."""
    if (given_BT := batch.get(f"{side}positions")) is not None:
        return given_BT
    tokens_BT = batch[f"{side}inputs"]
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)


class Heads(nn.Module):
    """The heads of an objective besides the LM head: linear in the stack's output, with a bias.

    Attributes:
        config: the model section.
        heads: `lmjax.objectives.Head`s.
    """

    config: FrozenConfigDict
    heads: tuple

    @nn.compact
    def __call__(self, x_BTD: jax.Array, segment_ids_BT: jax.Array | None = None) -> dict[str, jax.Array]:
        """Returns float32 outputs by head: logits [B, T, classes] (tokens), [B, classes] (row), [B, T, 2] (span: of the
        first and the last position), or values [B]. Positions of segment 0, which is padding, count for none of them.
        """
        real_BT = jnp.ones(x_BTD.shape[:2]) if segment_ids_BT is None else (segment_ids_BT > 0).astype(jnp.float32)
        found = {}
        for head in self.heads:
            per_row = head.kind in ("row", "value")
            x = _pooled(x_BTD, head.position, real_BT) if per_row else x_BTD
            width = {"span": 2, "value": 1}.get(head.kind) or head.classes or self.config.vocab_size
            init = declared(nn.initializers.normal(EMBEDDING_STD), ("embed", "classes"), EMBEDDING_STD)
            kernel = self.param(f"{head.name}_kernel", init, (x.shape[-1], width), jnp.float32)
            zeros = declared(nn.initializers.zeros_init(), ("classes",))
            bias = self.param(f"{head.name}_bias", zeros, (width,), jnp.float32)
            x = x.astype(jnp.float32) * (self.config.heads_multiplier or 1.0)
            y = products.matmul(x, kernel) + bias[None, None]
            if head.kind == "span":
                y = jnp.where(real_BT[..., None] > 0, y, -1e9)
            y = y[:, 0] if per_row else y
            found[head.name] = y[:, 0] if head.kind == "value" else y
        return found


def _pooled(x_BTD, position, real_BT):
    """The vector that a label of the row is predicted from, [B, 1, D]."""
    if position == "first":
        return x_BTD[:, :1]
    count_B1 = jnp.maximum(jnp.sum(real_BT, axis=1, keepdims=True), 1.0)
    weights_BT = real_BT / count_B1
    if position == "last":
        weights_BT = (jnp.arange(real_BT.shape[1])[None] == count_B1 - 1).astype(jnp.float32)
    return jnp.sum(x_BTD * weights_BT[..., None], axis=1, keepdims=True)


def outputs(logits: jax.Array | Logits, heads: Heads, x_BTD: jax.Array, batch: dict, project: bool) -> Any:
    """Returns what a model returns: logits over the vocabulary; if not project, the outputs of all heads by name."""
    others = heads(x_BTD, batch.get("segment_ids")) if heads.heads and (not project or heads.is_initializing()) else {}
    return logits if project else {"lm": logits, **others}


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Returns [B, T, width] float32: sin and cos of the position at geometric wavelengths (arXiv 1706.03762).

    Example: position 0 gives [0, ..., 0, 1, ..., 1].
    """
    frequency = 10000.0 ** -(jnp.arange(width // 2)[None, None] / (width // 2))
    angle = positions_BT[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

"""Dense, norms, feed-forward: the parts every stack shares. Positions and attention have their own files.

B batch, T time, D model, F feed-forward, V vocabulary. Parameters are float32; `config.dtype` is the compute type.
Each parameter names its logical axes, which config.mesh.rules maps to the mesh.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.models import products

EMBEDDING_STD = 0.02  # initial standard deviation of embedding tables (GPT-2; BERT): first logits are near uniform


class Dense(nn.Module):
    """x [..., I] -> [..., features]: x W (+ b), W initialised with variance scale / fan_in, truncated normal.

    Attributes:
        config: the model section.
        features: output width.
        axes: logical names of (input, output), e.g. ("embed", "mlp").
        scale: of the initial variance; `residual_scale` for layers that write into the residual stream.
    """

    config: FrozenConfigDict
    features: int
    axes: tuple[str, str]
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.dtype)
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "truncated_normal")
        kernel = self.param(
            "kernel", nn.with_logical_partitioning(init, self.axes), (x.shape[-1], self.features), jnp.float32
        )
        y = products.matmul(x.astype(dtype), kernel.astype(dtype))
        if self.config.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), self.axes[1:])
            y = y + self.param("bias", zeros, (self.features,), jnp.float32).astype(dtype)[None, None]
        return y


def residual_scale(num_layers: int) -> float:
    """Returns the variance scale of residual outputs, 1 / (2 num_layers): the stream's variance stays near 1
    (GPT-2)."""
    return 1.0 / (2 * num_layers)


class Norm(nn.Module):
    """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467), computed in float32.

    Example: rmsnorm of [3, 4] is [3, 4] / sqrt(12.5) = [0.849, 1.131].
    """

    config: FrozenConfigDict

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        width = x_BTD.shape[-1]
        ones = nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",))
        x = x_BTD.astype(jnp.float32)
        scale = self.param("scale", ones, (width,), jnp.float32)
        if config.norm == "layernorm":
            x = products.layer_norm(x, scale, config.norm_epsilon)
        else:
            mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
            x = x * jax.lax.rsqrt(mean_square + config.norm_epsilon) * scale[None, None]
        if config.norm == "layernorm" and config.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), ("norm",))
            x = x + self.param("bias", zeros, (width,), jnp.float32)[None, None]
        return x.astype(config.dtype)


class FeedForward(nn.Module):
    """D -> F -> D. Gated activations multiply act(x W_gate) with x W_up (arXiv 2002.05202)."""

    config: FrozenConfigDict
    num_layers: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        config = self.config
        h_BTF = Dense(config, config.mlp_dim, ("embed", "mlp"), name="up")(x_BTD)
        if config.activation in ("swiglu", "geglu"):
            gate_BTF = Dense(config, config.mlp_dim, ("embed", "mlp"), name="gate")(x_BTD)
            act = nn.silu if config.activation == "swiglu" else nn.gelu
            h_BTF = act(gate_BTF) * h_BTF
        else:
            h_BTF = nn.gelu(h_BTF) if config.activation == "gelu" else nn.relu(h_BTF)
        scale = residual_scale(self.num_layers)
        return Dense(config, x_BTD.shape[-1], ("mlp", "embed"), scale, name="down")(h_BTF)


class Embedding(nn.Module):
    """Token table [V, D] with the position scheme that is added to it, and the output projection.

    `embed(tokens, positions)` and `logits(x)` share the table when config.tie_embeddings.
    """

    config: FrozenConfigDict

    def setup(self):
        config = self.config
        table_axes = ("vocab", "embed")
        init = nn.initializers.normal(EMBEDDING_STD)
        self.table_VD = self.param(
            "embedding", nn.with_logical_partitioning(init, table_axes), (config.vocab_size, config.d_model)
        )
        if config.position == "learned":
            self.positions_LD = self.param(
                "positions",
                nn.with_logical_partitioning(init, ("length", "embed")),
                (config.max_len, config.d_model),
            )
        if not config.tie_embeddings:
            head_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            self.head_DV = self.param(
                "head", nn.with_logical_partitioning(head_init, table_axes[::-1]), (config.d_model, config.vocab_size)
            )
        self.dropout = nn.Dropout(config.dropout)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, deterministic: bool) -> jax.Array:
        """Returns [B, T, D] in the compute dtype: the token's row plus the position's vector.

        Sinusoids are shrunk to the initial size of the table's entries, so that they do not drown the tokens.
        """
        config = self.config
        # A table split over fsdp is gathered before use, like every parameter; rows stay split over tensor.
        table_VD = nn.with_logical_constraint(self.table_VD, ("vocab", None))
        x_BTD = nn.with_logical_constraint(jnp.take(table_VD, tokens_BT, axis=0), ("batch", None, None))
        if config.position == "learned":
            x_BTD = x_BTD + jnp.take(self.positions_LD, positions_BT, axis=0)
        elif config.position == "sinusoidal":
            x_BTD = x_BTD + EMBEDDING_STD * 2**0.5 * sinusoids(positions_BT, config.d_model)
        return self.dropout(x_BTD.astype(config.dtype), deterministic=deterministic)

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Returns [B, T, V] in the compute dtype; the loss casts to float32."""
        head_DV = self.table_VD.T if self.config.tie_embeddings else self.head_DV
        return products.matmul(x_BTD, head_DV.astype(x_BTD.dtype))


def sinusoids(positions_BT: jax.Array, width: int) -> jax.Array:
    """Returns [B, T, width] float32: sin and cos of the position at geometric wavelengths (arXiv 1706.03762).

    Example: position 0 gives [0, ..., 0, 1, ..., 1].
    """
    frequency = 10000.0 ** -(jnp.arange(width // 2)[None, None] / (width // 2))
    angle = positions_BT[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

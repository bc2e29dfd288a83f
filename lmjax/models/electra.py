"""ELECTRA (arXiv 2003.10555): a small generator replaces masked tokens, and a discriminator tells which were replaced.

B batch, T time, D model, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError
from lmjax.losses import by_position
from lmjax.models import kernels
from lmjax.models.families import EncoderTrunk, encoder_sees
from lmjax.models.layers import Dense, Embedding, Heads, positions_of
from lmjax.objectives.base import Head

REPLACED = (Head("replaced", "tokens", 2),)


class Electra(nn.Module):
    """Logits of the generator (head "lm"), and whether the discriminator takes a token for a replaced one.

    Both share the embedding. The parameters embedding, encoder and heads are the discriminator: those of an `Encoder`
    with the same config and heads. FLOPs are those of the traced program, in which the generator's logits count twice:
    for its loss, and for drawing from them, which has no backward pass.

    Attributes:
        config, backend, extra_heads: as in `Encoder`; without heads, it has that of the objective electra.
    """

    attention = ("bidirectional",)
    packing, draws = True, True
    options = {"generator_fraction": 0.25}  # width, heads and mlp_dim of the generator over those of the discriminator
    config: FrozenConfigDict
    backend: kernels.Backend = kernels.Backend()
    extra_heads: tuple = ()

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True) -> Any:
        """Args: batch with inputs [B, T] and optional positions, segment_ids, token_types, logits_at. If not project,
            also targets, weights and noise [B, T].

        Returns: the generator's logits [B, T, V]. If not project, {"lm": the logits' factors, "replaced": [B, T, 2],
            and its labels}: 1 where the drawn token is not the true one. Drawing passes no gradient to the generator.
        """
        config, tokens_BT, initializing = self.config, batch["inputs"], self.is_initializing()
        if not (project or initializing or "noise" in batch):
            raise InputError(
                "model.family 'electra': expected objective.name 'electra', whose rows have noise, got others"
            )
        positions_BT, sees = positions_of(batch), encoder_sees(batch)
        embedding = Embedding(config, name="embedding")

        def embed(tokens_BT):
            return embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))

        small = generator_config(config)
        x_BTG = Dense(config, small.d_model, ("embed", "mlp"), name="generator_in")(embed(tokens_BT))
        trunk = EncoderTrunk(small, small.num_layers, self.backend, name="generator")
        x_BTG = trunk(x_BTG, positions_BT, sees, deterministic)
        x_BTD = Dense(config, config.d_model, ("mlp", "embed"), name="generator_out")(x_BTG)
        logits: Any = embedding.logits(x_BTD, batch.get("logits_at"), project and not initializing)
        if project and not initializing:
            return logits
        if initializing:  # any rows will do
            zeros_BT = jnp.zeros(tokens_BT.shape)
            batch = {"targets": tokens_BT, "weights": zeros_BT, "noise": zeros_BT, **batch}
        drawn_BT = by_position(draw, jax.lax.stop_gradient(logits), batch["noise"])
        seen_BT = jnp.where(batch["weights"] > 0, drawn_BT, tokens_BT)
        trunk = EncoderTrunk(config, config.num_layers, self.backend, name="encoder")
        y_BTD = trunk(embed(seen_BT), positions_BT, sees, deterministic)
        found = Heads(config, self.extra_heads or REPLACED, name="heads")(y_BTD, batch.get("segment_ids"))
        real_BT = batch.get("segment_ids", jnp.ones_like(tokens_BT)) > 0
        labels = {"replaced_targets": (seen_BT != batch["targets"]).astype(jnp.int32)}
        return {"lm": logits, **found, **labels, "replaced_weights": real_BT.astype(jnp.float32)}


def draw(logits_BTV: jax.Array, noise_BT: jax.Array) -> jax.Array:
    """Returns an id per position, [B, T] int32: the first whose cumulative probability exceeds the noise.

    Example: probabilities [0.2, 0.5, 0.3], noise 0.1, 0.6 and 0.7: ids 0, 1 and 2.
    """
    cumulative_BTV = jnp.cumsum(jax.nn.softmax(logits_BTV.astype(jnp.float32), axis=-1), axis=-1)
    below_BTV = cumulative_BTV <= noise_BT[..., None] * cumulative_BTV[..., -1:]  # rounding: the last is not quite 1
    return jnp.minimum(jnp.sum(below_BTV, axis=-1), logits_BTV.shape[-1] - 1).astype(jnp.int32)


def generator_config(config: FrozenConfigDict) -> FrozenConfigDict:
    """Returns the generator's config: narrower, with heads of the same width, and as deep."""

    def part(size):
        return max(1, round(config.options.generator_fraction * size))

    small = config.to_dict() | {name: part(config[name]) for name in ("d_model", "num_heads", "mlp_dim")}
    groups = config.num_heads // config.num_kv_heads
    small["num_kv_heads"] = small["num_heads"] // groups if small["num_heads"] % groups == 0 else small["num_heads"]
    return FrozenConfigDict(small)

"""XLNet (arXiv 1906.08237): predictions in any order, by two streams through one stack. Without its memory.

B batch, T time, H heads, D model, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError
from lmjax.masks import Sees, bias
from lmjax.models.attention import PositionBias
from lmjax.models.layers import EMBEDDING_STD, Embedding, Heads, declared, outputs, positions_of
from lmjax.models.stack import Stack

POSITIONS = ("rotary", "relative", "alibi")


class XLNet(nn.Module):
    """Logits of each token given those that come before it in the order of the row.

    The content stream starts from the tokens, and a position sees those up to its own order. The query stream starts
    from one learned vector, and sees the content of those of a lower order: not its own. Both have the same parameters,
    so they are one row of 2 T queries over T keys. Positions enter in attention, or the query stream would not know its
    own.

    Attributes:
        config: the resolved model section.
        extra_heads: as in `lmjax.models.families.Decoder`.
    """

    attention = ("permutation",)
    packing = True
    config: FrozenConfigDict
    extra_heads: tuple = ()

    @nn.compact
    def __call__(
        self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True
    ) -> jax.Array | dict[str, Any]:
        """Args: batch with inputs and order [B, T], and optional positions, segment_ids, token_types, logits_at.

        Returns: logits as in `lmjax.models.families.Decoder`. Where nothing has a lower order, they have no meaning.
        """
        config, tokens_BT = self.config, batch["inputs"]
        if config.position not in POSITIONS or config.attention_window:
            raise InputError(
                f"model.family 'xlnet': expected model.position {', '.join(POSITIONS)} and no attention_window, got "
                f"{config.position} and {config.attention_window}"
            )
        if "order" not in batch and not self.is_initializing():
            raise InputError("model.family 'xlnet': expected rows of permutation_lm, which have an order, got others")
        T, segments_BT = tokens_BT.shape[1], batch.get("segment_ids")
        order_BT = batch.get("order", tokens_BT)
        positions_BT = positions_of(batch)
        embedding = Embedding(config, name="embedding")
        x_BTD = embedding.embed(tokens_BT, positions_BT, deterministic, batch.get("token_types"))
        std = EMBEDDING_STD * config.embedding_scale
        query_D = self.param("query", declared(nn.initializers.normal(std), ("embed",), std), (config.d_model,))
        x_BTD = jnp.concatenate([x_BTD, jnp.broadcast_to(query_D.astype(x_BTD.dtype), x_BTD.shape)], axis=1)

        keys_BTS, queries_BTS = order_BT[:, None, :], order_BT[:, :, None]
        seen = [keys_BTS <= queries_BTS, keys_BTS < queries_BTS]
        if segments_BT is not None:
            same_BTS = (segments_BT[:, :, None] == segments_BT[:, None]) & (segments_BT[:, None] > 0)
            seen = [each & same_BTS for each in seen]
        near_BHTS = PositionBias(config, bidirectional=True, name="position_bias")(Sees("full", T, T))
        near_BHTS = None if near_BHTS is None else jnp.tile(near_BHTS, (1, 1, 2, 1))
        real_BT = None
        if config.num_experts:  # they leave out padding, and queries that see nothing
            real_BT = jnp.ones_like(tokens_BT) if segments_BT is None else segments_BT
            real_BT = jnp.concatenate([real_BT, jnp.where(order_BT > 0, real_BT, 0)], axis=1)
        sees = Sees("full", 2 * T, T, real_BT, bias=bias(jnp.concatenate(seen, axis=1)[:, None], near_BHTS))
        stack = Stack(config, config.num_layers, name="stack")
        x_BTD = stack(x_BTD, jnp.tile(positions_BT, (1, 2)), sees, deterministic=deterministic)[:, T:]
        logits = embedding.logits(x_BTD, batch.get("logits_at"), project)
        return outputs(logits, Heads(config, self.extra_heads, name="heads"), x_BTD, batch, project)

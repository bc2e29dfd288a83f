"""Feed-forward language models (Bengio et al. 2003): the embeddings of the last tokens, concatenated, predict the next.

logits = U tanh(H x + d) + b, and + W x with direct connections; x [window D] are the embeddings of the last `window`
tokens, the newest first, and zeros before the beginning of a row or of a segment of a packed row.

B batch, T time, C cache slots, D model, F hidden units (mlp_dim).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError
from lmjax.models.layers import Dense, Embedding, Heads, outputs


class FeedForwardLM(nn.Module):
    """Next-token logits from a window of tokens.

    Attributes:
        config: the resolved model section.
        cache_len: as in `Decoder`; the cache holds the tokens read.
        extra_heads: as in `Decoder`.
    """

    attention = ("causal",)
    packing = True
    options = {"window": 8, "direct": False}  # tokens that are read (the paper's n - 1); direct connections W
    config: FrozenConfigDict
    cache_len: int = 0
    extra_heads: tuple = ()

    @staticmethod
    def activations(config: Mapping, lengths: Mapping[str, int]) -> int:
        """Returns the bytes of a row that the backward pass needs: of each token, its embedding, those of its window
        and their gradients, the hidden units before and after tanh, and with direct connections, the head's input."""
        window, F = config["options"]["window"] * config["d_model"], config["mlp_dim"]
        values = config["d_model"] + 2 * window + 2 * F + config["options"]["direct"] * (window + F)
        return lengths["inputs"] * values * jnp.dtype(config["dtype"]).itemsize

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True):
        """Args: batch with inputs [B, T] and optional positions, logits_at. Returns: logits as in `Decoder`."""
        config, window = self.config, self.config.options.window
        if config.tie_embeddings or config.num_layers != 1 or window < 1:
            raise InputError(
                "model.family 'feed_forward': expected tie_embeddings False, num_layers 1 and options.window of at "
                f"least 1, got {config.tie_embeddings}, {config.num_layers} and {window}; see configs/feed_forward.py"
            )
        tokens_BC, cached = batch["inputs"], self.cache_len > 0
        given_BT = batch.get("positions")
        if cached:  # slot = position
            B = len(tokens_BC)
            cache = self.variable("cache", "tokens", jnp.zeros, (B, self.cache_len), tokens_BC.dtype)
            tokens_BC = cache.value = cache.value.at[jnp.arange(B)[:, None], given_BT].set(tokens_BC)
        slots_BC = jnp.broadcast_to(jnp.arange(tokens_BC.shape[1]), tokens_BC.shape)
        positions_BC = slots_BC if cached or given_BT is None else given_BT
        width = config.mlp_dim + config.options.direct * window * config.d_model
        embedding = Embedding(config, features=width, name="embedding")
        x_BCD = embedding.embed(tokens_BC, positions_BC, deterministic)
        ages = [jnp.pad(x_BCD, ((0, 0), (age, 0), (0, 0)))[:, : x_BCD.shape[1]] for age in range(window)]
        x_BTI = jnp.concatenate([x * (positions_BC >= age)[..., None] for age, x in enumerate(ages)], axis=-1)
        if cached:
            x_BTI = jnp.take_along_axis(x_BTI, given_BT[..., None], axis=1)
        hidden = Dense(config, config.mlp_dim, ("embed", "mlp"), name="hidden")
        x_BTF = nn.Dropout(config.dropout)(jnp.tanh(hidden(x_BTI)), deterministic=deterministic)
        if config.options.direct:
            x_BTF = jnp.concatenate([x_BTF, x_BTI], axis=-1)
        logits = embedding.logits(x_BTF, batch.get("logits_at"), project)
        return outputs(logits, Heads(config, self.extra_heads, name="heads"), x_BTF, batch, project)

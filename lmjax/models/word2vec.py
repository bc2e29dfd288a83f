"""Skip-gram word vectors with negative sampling, word2vec (Mikolov et al. 2013, arXiv 1310.4546).

The score of a pair is the product of the word's vector and the context's vector; its logistic function is the
probability that the pair is of the text and not drawn from the noise. The vectors are in two tables, of words
(parameter embedding) and of contexts (head).

B batch, T pairs, D model, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError
from lmjax.models.layers import Embedding, capped


class Word2Vec(nn.Module):
    """Whether pairs of ids are of the text, for the objective skip_gram. It has no probabilities of the next token: it
    does not generate, score text or pack, and has no other head.

    Attributes:
        config: the resolved model section; d_model is the width of the vectors.
        extra_heads: of the objective: the head "pair".
    """

    attention = ("pairs",)
    config: FrozenConfigDict
    extra_heads: tuple = ()

    @staticmethod
    def activations(config: Mapping, lengths: Mapping[str, int]) -> int:
        """Returns the bytes of a row that the backward pass needs: of each pair, both vectors and their
        gradients."""
        return lengths["inputs"] * 4 * config["d_model"] * jnp.dtype(config["dtype"]).itemsize

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True) -> dict[str, Any]:
        """Args: batch with inputs and contexts [B, T]; project: False, as there are no logits of the vocabulary.

        Returns: {"pair": [B, T, 2] float32}, the logits (0, score): softmax of them is the logistic function.
        """
        config, tokens_BT = self.config, batch["inputs"]
        heads = [head.name for head in self.extra_heads]
        if heads not in ([], ["pair"]) or config.num_layers != 1 or config.position != "none":
            raise InputError(
                "model.family 'word2vec': expected the head pair, num_layers 1 and position 'none', got the heads "
                f"{heads}, {config.num_layers} and {config.position!r}; see configs/word2vec.py"
            )
        if not self.is_initializing() and (project or "contexts" not in batch):
            raise InputError(
                "model.family 'word2vec' has no probabilities of tokens, only scores of pairs: expected rows of "
                "skip_gram and project=False; lmjax vectors compares its vectors"
            )
        contexts_BT = batch.get("contexts", tokens_BT)
        embedding = Embedding(config, name="embedding")
        head: Any = embedding.logits(
            embedding.embed(tokens_BT, jnp.zeros_like(tokens_BT), deterministic), project=False
        )
        context_BTD = jnp.take(head.kernel_DV.T, contexts_BT, axis=0).astype(head.x_BTD.dtype)
        score_BT = jnp.einsum("BTD,BTD->BT", head.x_BTD, context_BTD, preferred_element_type=jnp.float32)
        if head.bias_V is not None:
            score_BT = score_BT + jnp.take(head.bias_V, contexts_BT)
        score_BT = capped(score_BT, head.softcap)
        return {"pair": jnp.stack([jnp.zeros_like(score_BT), score_BT], axis=-1)}

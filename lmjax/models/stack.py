"""A stack of Transformer blocks (arXiv 1706.03762), the same for encoders and decoders.

B batch, T time, S source time, D model. Parameters of all layers lie in one array with a leading layer axis, whether
the stack is a compiled loop or unrolled, so initial values, checkpoints and results do not depend on that switch.
"""

import functools

import flax.linen as nn
import jax
import numpy as np
from ml_collections import FrozenConfigDict

from lmjax.masks import Sees
from lmjax.models.attention import Attention
from lmjax.models.experts import Experts
from lmjax.models.layers import FeedForward, Norm, placed

UNROLLED = 12  # layers that are still unrolled on GPUs and TPUs
LAYERS_PER_TURN = {"gpu": 4}  # of the loop over a deeper stack; elsewhere 1


class Block(nn.Module):
    """Self-attention, optional cross-attention, feed-forward; each with norm, dropout and a residual connection."""

    config: FrozenConfigDict
    num_layers: int
    cross: bool
    deterministic: bool
    cache_len: int = 0

    @nn.compact
    def __call__(self, x_BTD, positions_BT, sees, source_BSD, cross_sees, is_wide=False):
        config = self.config

        def dropout(x):
            return nn.Dropout(config.dropout, deterministic=self.deterministic)(x)

        def branch(x, name, function):
            y = function(Norm(config, name=f"{name}_norm")(x))
            if config.norm_position == "both":
                y = Norm(config, name=f"{name}_post_norm")(y)
            y = dropout(y)
            return y if config.branch_multiplier in (None, 1.0) else y * config.branch_multiplier

        def residual(x, name, function):
            if config.norm_position != "post":
                return x + branch(x, name, function)
            return Norm(config, name=f"{name}_norm")(x + dropout(function(x)))

        def self_attention(x):
            attention = Attention(config, self.num_layers, self.cache_len, name="self_attention")
            return attention(x, x[:, : sees.keys], positions_BT, sees, is_wide)  # two streams share the first's keys

        def cross_attention(x):
            attention = Attention(config, self.num_layers, self.cache_len, cross=True, name="cross_attention")
            return attention(x, source_BSD, positions_BT, cross_sees)

        if config.num_experts:
            real_BT = None if sees.query_segments is None else sees.query_segments > 0
            experts = Experts(config, self.num_layers, self.deterministic, name="feed_forward")
            feed_forward = functools.partial(experts, real_BT=real_BT)
        else:
            feed_forward = FeedForward(config, self.num_layers, name="feed_forward")
        x = placed(x_BTD, None)
        if config.parallel_block:
            return x + branch(x, "self_attention", self_attention) + branch(x, "feed_forward", feed_forward), None
        x = residual(x, "self_attention", self_attention)
        if self.cross:
            x = residual(x, "cross_attention", cross_attention)
        return residual(x, "feed_forward", feed_forward), None


class Stack(nn.Module):
    """num_layers blocks and, unless norms come only after the blocks, the final norm.

    With a cache, layers are named layer_0, layer_1, ..., with parameters as returned by `models.unstack`: a compiled
    loop over layers would copy the cache of all layers in every call.
    """

    config: FrozenConfigDict
    num_layers: int
    platform: str = "cpu"
    cross: bool = False
    cache_len: int = 0

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        positions_BT: jax.Array,
        sees: Sees,
        source_BSD: jax.Array | None = None,
        cross_sees: Sees | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        config = self.config
        if self.cache_len:
            for i in range(self.num_layers):
                block = Block(config, self.num_layers, self.cross, deterministic, self.cache_len, name=f"layer_{i}")
                x_BTD, _ = block(x_BTD, positions_BT, sees, source_BSD, cross_sees, self._is_wide(sees)[i])
        else:
            is_wide = () if sees.wide is None else (self._is_wide(sees),)
            layers = self._layers(deterministic, len(is_wide))
            x_BTD, _ = layers(x_BTD, positions_BT, sees, source_BSD, cross_sees, *is_wide)
        return Norm(config, name="final_norm")(x_BTD) if config.norm_position != "post" else x_BTD

    def _is_wide(self, sees):
        """Which layers have no window, [L] bool."""
        every = self.config.full_attention_every if sees.wide is not None else None
        layers = np.arange(1, self.num_layers + 1)
        return layers % every == 0 if every else np.zeros(self.num_layers, bool)

    def _layers(self, deterministic, by_layer):
        """Returns one module of all blocks, with stacked parameters; the last `by_layer` arguments have a layer axis.

        On GPUs and TPUs a deep stack is a loop also when scan_layers is False: XLA's compile time grows with the number
        of layers in the program (12 layers for an H200: 24 s unrolled, 6 s as a loop). A GPU runs a loop over single
        layers about 15 % slower (jax-ml/jax#13356), so there each turn has several.

        With remat the layers are a loop even when scan_layers is False: XLA undoes recomputation in unrolled layers
        on CPUs (measured: 25 % more FLOPs and the same memory). Initial values are always drawn in a loop: they are the
        same bits, and the random generator is not compiled for each layer.
        """
        config = self.config
        block, loop = Block, config.scan_layers or config.remat != "none" or self.is_initializing()
        unroll = 1 if loop else self.num_layers
        if self.platform != "cpu" and unroll > UNROLLED:
            unroll = LAYERS_PER_TURN.get(self.platform, 1)
        if config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
            block = nn.remat(Block, policy=policy, prevent_cse=not loop)
        shared = config.share_layers
        return nn.scan(
            block,
            variable_axes={"intermediates": 0, "losses": 0, "attention": 0} | ({} if shared else {"params": 0}),
            variable_broadcast="params" if shared else False,
            split_rngs={"params": not shared, "dropout": True},
            in_axes=(nn.broadcast,) * 4 + (0,) * by_layer,
            length=self.num_layers,
            unroll=unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, self.num_layers, self.cross, deterministic, name="layers")

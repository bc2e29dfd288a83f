"""Recurrent language models: Elman networks (Elman 1990), LSTM (Hochreiter & Schmidhuber 1997), GRU (arXiv 1406.1078).

Equations and the order of the gates are those of torch.nn.RNN, LSTM and GRU; of two biases that are only added, one is
kept. Dropout acts on the embedding and on each layer's output, not from step to step (arXiv 1409.2329). Each row, and
each segment of a packed row, begins with a state of zeros; with options.carry, a row goes on with the last state of the
row before, through which no gradient flows (truncated backpropagation through time).

T time, B batch, D model (width of the embedding and of the state), I input, G gates times D.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from lmjax.errors import InputError, nearest
from lmjax.models import products
from lmjax.models.layers import Embedding, Heads, declared, outputs, positions_of

# -- Cells: (x, u, state) -> new state, with x and u [B, G] what the input and the old state give to the gates


def elman(x, u, state):
    """h = tanh(x + u)."""
    return {"h": jnp.tanh(x + u)}


def lstm(x, u, state):
    """c = forget c + input tanh(new); h = output tanh(c). Gates: input, forget, new, output."""
    i, f, n, o = jnp.split(x + u, 4, axis=-1)
    c = nn.sigmoid(f) * state["c"] + nn.sigmoid(i) * jnp.tanh(n)
    return {"h": nn.sigmoid(o) * jnp.tanh(c), "c": c}


def gru(x, u, state):
    """h = (1 - update) tanh(x_new + reset u_new) + update h. Gates: reset, update, new."""
    (xr, xz, xn), (ur, uz, un) = (jnp.split(part, 3, axis=-1) for part in (x, u))
    z = nn.sigmoid(xz + uz)
    return {"h": (1 - z) * jnp.tanh(xn + nn.sigmoid(xr + ur) * un) + z * state["h"]}


CELLS = {"elman": (elman, 1, ("h",)), "lstm": (lstm, 4, ("h", "c")), "gru": (gru, 3, ("h",))}  # cell, gates, state


def step_bytes(config: Mapping, inputs: int) -> int:
    """Returns the bytes of a step of a layer that the backward pass reads or writes: input, what enters the gates, what
    comes out and its gradient, the state before and after; float32.

    Example: an LSTM of width 8 and input 8: 4 x (8 + 3 x 32 + 2 x 16) = 544.
    """
    _, gates, parts = CELLS[config["options"]["cell"]]
    return 4 * (inputs + config["d_model"] * (3 * gates + 2 * len(parts)))


class Layer(nn.Module):
    """[T, B, I] -> [T, B, D], one recurrent layer, and the contexts [T, B, E] if it attends.

    Attributes:
        config: the model section; d_model is the width of the state, options.cell a name in `CELLS`.
        cached: begin with the state in the "cache" collection, and leave the last one there.
    """

    config: FrozenConfigDict
    cached: bool = False

    @nn.compact
    def __call__(
        self,
        x_TBI: jax.Array,
        keep_TB1: jax.Array | None = None,
        last_B: jax.Array | None = None,
        attend: Callable | None = None,
        sees_TBS: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Args:
        x_TBI: the input.
        keep_TB1: 0 where the state is set to zeros before the step; None: nowhere.
        last_B: the step whose state is cached; None: the last one.
        attend: (h [B, 1, D], sees [B, 1, S]) -> context [B, 1, E], another input of the step; E = 2 D.
        sees_TBS: what each step attends to.
        """
        config, name = self.config, self.config.options.cell
        if name not in CELLS:
            raise InputError(f"model.options.cell: expected {' | '.join(CELLS)}, got {name!r}{nearest(name, CELLS)}")
        (cell, gates, parts), D, B = CELLS[name], config.d_model, x_TBI.shape[1]

        def kernel(name, inputs):
            init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
            return self.param(name, declared(init, ("embed", "mlp"), inputs**-0.5), (inputs, gates * D), jnp.float32)

        def bias(name, width, init):
            return self.param(name, declared(init, ("mlp",)), (width,), jnp.float32)

        x_TBG = products.matmul(x_TBI, kernel("input_kernel", x_TBI.shape[-1])).astype(jnp.float32)
        x_TBG += bias("bias", gates * D, _forget_one if name == "lstm" else nn.initializers.zeros_init())[None, None]
        recurrent_DG = kernel("recurrent_kernel", D)
        new_1G = 0.0
        if name == "gru":
            new_1G = jnp.pad(bias("new_bias", D, nn.initializers.zeros_init()), (2 * D, 0))[None]

        context_EG = kernel("context_kernel", 2 * D) if attend else None

        def step(state, xs):
            (x_BG, keep_B1, sees_BS), context_BE = xs, None
            if keep_B1 is not None:
                state = jax.tree.map(lambda s: s * keep_B1, state)
            if attend:
                context_BE = attend(state["h"][:, None], sees_BS[:, None])[:, 0]
                x_BG += products.matmul(context_BE, context_EG).astype(jnp.float32)
            u_BG = products.matmul(state["h"].astype(config.dtype), recurrent_DG).astype(jnp.float32)
            state = cell(x_BG, u_BG + new_1G, state)
            return state, (state, context_BE)

        state = {part: jnp.zeros((B, D)) for part in parts}
        if self.cached:
            cache = {part: self.variable("cache", part, lambda zeros=zeros: zeros) for part, zeros in state.items()}
            state = {part: variable.value for part, variable in cache.items()}
        _, (states_TBD, context_TBE) = jax.lax.scan(step, state, (x_TBG, keep_TB1, sees_TBS))
        if self.cached:
            for part, variable in cache.items():
                variable.value = states_TBD[part][-1 if last_B is None else last_B, jnp.arange(B)]
        return states_TBD["h"].astype(config.dtype), context_TBE


def _forget_one(key, shape, dtype):
    """Biases of 0, and 1 for the forget gate, so that an LSTM remembers at first (Jozefowicz et al. 2015)."""
    return jnp.repeat(jnp.asarray([0, 1, 0, 0], dtype), shape[0] // 4)


def kept(segment_ids_BT: jax.Array | None) -> jax.Array | None:
    """Returns [T, B, 1] float32, 0 where a segment begins, else 1; None for None."""
    if segment_ids_BT is None:
        return None
    same_BT = jnp.pad(segment_ids_BT[:, 1:] == segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
    return same_BT.T[..., None].astype(jnp.float32)


class RNN(nn.Module):
    """Next-token logits of num_layers recurrent layers of d_model cells.

    Attributes:
        config: the resolved model section.
        cache_len: above 0: the cache holds the state of each layer.
        extra_heads: as in `Decoder`.
    """

    attention = ("causal",)
    packing, splits_once = True, True
    options = {
        "cell": "lstm",  # elman | lstm | gru
        "carry": False,  # a row begins with the last state of the row before; needs data.mode consecutive
    }
    config: FrozenConfigDict
    cache_len: int = 0
    extra_heads: tuple = ()

    @staticmethod
    def activations(config: Mapping, lengths: Mapping[str, int]) -> int:
        """Returns the bytes of a row that the backward pass needs: of its layers, and the head's input."""
        D = config["d_model"]
        return lengths["inputs"] * (config["num_layers"] * step_bytes(config, D) + 4 * D)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], deterministic: bool = True, project: bool = True):
        """Args: batch with inputs [B, T] and optional positions, segment_ids, logits_at. Returns: as `Decoder`."""
        config = self.config
        embedding = Embedding(config, name="embedding")
        x_TBD = embedding.embed(batch["inputs"], positions_of(batch), deterministic).swapaxes(0, 1)
        keep_TB1 = kept(batch.get("segment_ids"))
        for i in range(config.num_layers):
            layer = Layer(config, bool(self.cache_len), name=f"layer_{i}")
            x_TBD, _ = layer(x_TBD, keep_TB1, batch.get("logits_at"))
            x_TBD = nn.Dropout(config.dropout)(x_TBD, deterministic=deterministic)
        x_BTD = x_TBD.swapaxes(0, 1)
        logits = embedding.logits(x_BTD, batch.get("logits_at"), project)
        return outputs(logits, Heads(config, self.extra_heads, name="heads"), x_BTD, batch, project)

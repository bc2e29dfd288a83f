"""The compiled decoding loops: prompts pass through the model once, then tokens are decoded with a key/value cache.

B rows, K beams per row (1 unless beam search), P prompt slots, S source slots, C cache slots, N room for new tokens,
V vocabulary. A slot of the cache is a position: prompts are padded on the right, and a row's new tokens overwrite its
padding's slots before any query sees them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lmjax.decoding import processors, search
from lmjax.decoding.processors import Switches
from lmjax.defaults import ROWS
from lmjax.sharding import DECODING_RULES

SOURCE_CACHE = ("source_key", "source_value")  # equal for all beams of a row


def _call(model: nn.Module, params, batch: dict, cache, source):
    """One call of a model with a cache: (float32 logits of the last or `logits_at` position [B, V], cache)."""
    variables = {"params": params} | ({} if cache is None else {"cache": cache})
    options = {"mutable": ["cache"]}
    with nn.logical_axis_rules(DECODING_RULES):
        if source is None:
            logits_BTV, updated = model.apply(variables, batch, **options)
        else:
            logits_BTV, updated = model.apply(variables, batch, source, method="decode", **options)
    return logits_BTV[:, -1].astype(jnp.float32), jax.tree.map(_split, updated["cache"])


def _split(cache_BGCK):
    """Splits keys or values over the mesh in context: rows over the axes ROWS, heads over tensor if it divides them."""
    tensor = jax.sharding.get_abstract_mesh().shape["tensor"]
    heads = "tensor" if cache_BGCK.shape[1] % tensor == 0 else None
    return jax.lax.with_sharding_constraint(cache_BGCK, PartitionSpec(ROWS, heads))


def _context(rows: dict) -> dict:
    """Returns what every call gets besides the tokens: the visible prefix and the padding of the source."""
    return {name: rows[name] for name in ("prefix", "encoder_segment_ids") if name in rows}


def _log_probs(logits_BV, tokens_B):
    chosen_B = jnp.take_along_axis(logits_BV, tokens_B[:, None], axis=1)[:, 0]
    return chosen_B - jax.nn.logsumexp(logits_BV, axis=1)


def _seen(rows, vocab_size):
    """bool [B, V]: ids in the prompt's first `lengths` tokens."""
    prompt_BP = rows["prompts"]
    B, P = prompt_BP.shape
    inside_BP = jnp.arange(P)[None] < rows["lengths"][:, None]
    place_B1 = jnp.arange(B)[:, None]
    return jnp.zeros((B, vocab_size), bool).at[place_B1, prompt_BP].max(inside_BP)


@functools.partial(jax.jit, static_argnames="model")
def read(model: nn.Module, params, rows: dict) -> tuple[jax.Array, dict]:
    """Runs the model over the prompts (and encodes the sources).

    Args:
        model: built with a cache of C slots.
        params: the model's, unstacked.
        rows: prompts [B, P] int32, right-padded; lengths [B] int32; real [B] bool, False for rows that only fill up
            the batch; keys [B], of the draws; prefix [B, C] bool where the prompt is visible in full;
            encoder_inputs, encoder_segment_ids [B, S] of encoder-decoders.

    Returns:
        float32 logits of the first new token [B, V], and the cache.
    """
    source = None
    if "encoder_inputs" in rows:
        encoder_batch = {name: rows[name] for name in ("encoder_inputs", "encoder_segment_ids")}
        with nn.logical_axis_rules(DECODING_RULES):
            source = model.apply({"params": params}, encoder_batch, method="encode")
    prompts_BP = rows["prompts"]
    positions_BP = jnp.broadcast_to(jnp.arange(prompts_BP.shape[1]), prompts_BP.shape)
    batch = {"inputs": prompts_BP, "positions": positions_BP, "logits_at": rows["lengths"] - 1, **_context(rows)}
    return _call(model, params, batch, None, source)


@functools.partial(jax.jit, static_argnames=("switches", "room"))
def start(switches: Switches, rows: dict, strength: dict, logits_BV: jax.Array, cache: dict, room: int) -> dict:
    """Returns the initial state of `run` (greedy, sample; with the first token) or of beam search, from `read`."""
    B, V = logits_BV.shape
    seen_BV = _seen(rows, V) if switches.repetition_penalty else None
    if switches.method == "beam":
        # All beams of a row are identical so far, so the cache needs no reordering after the first step.
        K = switches.num_beams
        repeated = {"cache": cache, "logits": logits_BV}
        repeated = jax.tree.map(lambda x: jnp.repeat(x, K, axis=0), repeated)
        return search.start(B, room, switches, seen_BV, rows["real"]) | repeated
    state = {
        "tokens": jnp.zeros((B, room), jnp.int32),
        "log_probs": jnp.zeros((B, room), jnp.float32),
        "lengths": jnp.zeros(B, jnp.int32),
        "done": ~rows["real"],
        "step": jnp.zeros((), jnp.int32),
        "cache": cache,
    }
    if seen_BV is not None:
        state["seen"] = seen_BV
    return _take(state, logits_BV, switches, rows, strength)


def _take(state, logits_BV, switches, rows, strength):
    """The state with one more token per row; rows that are done keep theirs."""
    step, done_B = state["step"], state["done"]
    scores_BV = processors.process(logits_BV, state.get("seen"), step, switches, strength)
    token_B = processors.choose(scores_BV, rows["keys"], step, switches.method)
    log_prob_B = jnp.where(done_B, 0.0, _log_probs(logits_BV, token_B))
    token_B = jnp.where(done_B, 0, token_B)
    new = {
        "tokens": state["tokens"].at[:, step].set(token_B),
        "log_probs": state["log_probs"].at[:, step].set(log_prob_B),
        "lengths": state["lengths"] + ~done_B,
        "done": done_B | jnp.take(strength["stop_V"], token_B),
        "step": step + 1,
    }
    if "seen" in state:
        new["seen"] = state["seen"] | jax.nn.one_hot(token_B, logits_BV.shape[1], dtype=bool)
    return state | new


@functools.partial(jax.jit, static_argnames=("model", "switches"), donate_argnames="state")
def run(model: nn.Module, switches: Switches, params, rows: dict, strength: dict, state: dict, limit) -> dict:
    """Decodes, greedy or sampling, until all rows are done or have `limit` tokens."""
    source = _no_source(rows)

    def step(state):
        last_B1 = jax.lax.dynamic_slice_in_dim(state["tokens"], state["step"] - 1, 1, axis=1)
        positions_B1 = (rows["lengths"] + state["step"] - 1)[:, None]
        batch = {"inputs": last_B1, "positions": positions_B1, **_context(rows)}
        logits_BV, cache = _call(model, params, batch, state["cache"], source)
        return _take(state | {"cache": cache}, logits_BV, switches, rows, strength)

    return jax.lax.while_loop(lambda s: (s["step"] < limit) & ~jnp.all(s["done"]), step, state)


def _no_source(rows):
    """A placeholder for the encoded source, which the filled cache replaces; None for decoders."""
    return jnp.zeros((1, 1, 1)) if "encoder_segment_ids" in rows else None


def _candidates(state, switches, strength):
    """The candidates of the state's logits: see search.expand."""
    B, K = state["scores"].shape
    own_RV = jax.nn.log_softmax(state["logits"], axis=-1)
    seen_RV = state["seen"].reshape(B * K, -1) if "seen" in state else None
    scores_RV = processors.process(own_RV, seen_RV, state["step"], switches, strength)
    return search.expand(state, scores_RV.reshape(B, K, -1), own_RV.reshape(B, K, -1), switches)


def _advance(model, params, rows, state, beam_BK):
    """The state with the cache in the order of the running beams, and the logits of their next tokens."""
    B, K = beam_BK.shape

    def reorder(path, x):
        """Takes rows of the same prompt, and so of the same device."""
        if path[-1].key in SOURCE_CACHE:
            return x
        return jax.vmap(lambda x_K, beam_K: x_K[beam_K])(x.reshape(B, K, *x.shape[1:]), beam_BK).reshape(x.shape)

    cache = jax.tree_util.tree_map_with_path(reorder, state["cache"])
    last_BK = jax.lax.dynamic_index_in_dim(state["tokens"], state["step"] - 1, axis=2, keepdims=False)
    positions_B = rows["lengths"] + state["step"] - 1
    context = {name: jnp.repeat(x, K, axis=0) for name, x in _context(rows).items()}
    batch = {"inputs": last_BK.reshape(-1, 1), "positions": jnp.repeat(positions_B, K)[:, None], **context}
    logits_RV, cache = _call(model, params, batch, cache, _no_source(rows))
    return state | {"cache": cache, "logits": logits_RV}


@functools.partial(jax.jit, static_argnames=("model", "switches"), donate_argnames="state")
def beam_run(model: nn.Module, switches: Switches, params, rows: dict, strength: dict, state: dict) -> dict:
    """Runs beam search to its end."""

    def select(state):
        candidates = _candidates(state, switches, strength)
        return search.select(state, candidates, search.ends(state, candidates, strength), switches, strength)

    def step(carry):
        return select(_advance(model, params, rows, *carry))

    state, _ = jax.lax.while_loop(lambda carry: search.unfinished(carry[0], switches), step, select(state))
    return state


@functools.partial(jax.jit, static_argnames="switches")
def beam_candidates(switches: Switches, state: dict, strength: dict) -> tuple[dict, jax.Array]:
    """First half of a beam-search step: (candidates, bool [B, C] ends); the caller may mark more as ended."""
    candidates = _candidates(state, switches, strength)
    return candidates, search.ends(state, candidates, strength)


@functools.partial(jax.jit, static_argnames=("model", "switches"), donate_argnames="state")
def beam_step(
    model: nn.Module, switches: Switches, params, rows: dict, strength: dict, state: dict, candidates: dict, ends_BC
) -> tuple[dict, jax.Array]:
    """Second half of a beam-search step: (state with the next logits, whether another step is needed)."""
    state, beam_BK = search.select(state, candidates, ends_BC, switches, strength)
    more = search.unfinished(state, switches)
    return _advance(model, params, rows, state, beam_BK), more

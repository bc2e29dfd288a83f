"""Beam search over an abstract step, without model or cache: keeps, finishes and ranks hypotheses.

B prompts, K beams, C candidates (K times `switches.candidates`), N room for generated tokens, V vocabulary.
The rules, including -1e9 for excluded hypotheses, are those of transformers, so that ids and scores can be compared.
"""

import jax
import jax.numpy as jnp

from lmjax.decoding.processors import Switches

OUT = -1e9


def start(rows: int, room: int, switches: Switches, seen_BV: jax.Array | None, real_B: jax.Array) -> dict:
    """Returns the state before the first token.

    Args:
        rows: B.
        room: N.
        seen_BV: bool, tokens of the prompts, or None without a repetition penalty.
        real_B: bool, False for rows that only fill up the batch: they are finished from the start.
    """
    K = switches.num_beams
    state = {
        "tokens": jnp.zeros((rows, K, room), jnp.int32),
        # All beams begin identical: only the first counts, otherwise each token would be taken K times.
        "scores": jnp.full((rows, K), OUT, jnp.float32).at[:, 0].set(0.0),
        "log_probs": jnp.zeros((rows, K), jnp.float32),
        "done_tokens": jnp.zeros((rows, K, room), jnp.int32),
        "done_lengths": jnp.zeros((rows, K), jnp.int32),
        "done_scores": jnp.full((rows, K), OUT, jnp.float32),
        "done_log_probs": jnp.zeros((rows, K), jnp.float32),
        "done": jnp.broadcast_to(~real_B[:, None], (rows, K)),
        "may_improve": real_B,
        "may_go_on": jnp.ones((), bool),
        "step": jnp.zeros((), jnp.int32),
    }
    if seen_BV is not None:
        state["seen"] = jnp.repeat(seen_BV[:, None], K, axis=1)
    return state


def expand(state: dict, scores_BKV: jax.Array, log_probs_BKV: jax.Array, switches: Switches) -> dict:
    """Returns the C best continuations by one token of each prompt, best first.

    Args:
        scores_BKV: processed log-probabilities of the next token, what the search maximises.
        log_probs_BKV: the model's own.
    """
    B, K, V = scores_BKV.shape
    totals = (scores_BKV + state["scores"][:, :, None]).reshape(B, K * V)
    scores_BC, flat_BC = jax.lax.top_k(totals, K * switches.candidates)
    beam_BC, token_BC = flat_BC // V, flat_BC % V
    own_BC = jnp.take_along_axis(log_probs_BKV.reshape(B, K * V), flat_BC, axis=1)
    tokens_BCN = jnp.take_along_axis(state["tokens"], beam_BC[:, :, None], axis=1)
    return {
        "tokens": jax.lax.dynamic_update_index_in_dim(tokens_BCN, token_BC, state["step"], axis=2),
        "token": token_BC,
        "beam": beam_BC,
        "scores": scores_BC,
        "log_probs": jnp.take_along_axis(state["log_probs"], beam_BC, axis=1) + own_BC,
    }


def ends(state: dict, candidates: dict, strength: dict) -> jax.Array:
    """Returns bool [B, C]: whether a candidate ends with a stop id or has max_new_tokens tokens."""
    full = state["step"] + 1 >= strength["max_new_tokens"]
    return jnp.take(strength["stop_V"], candidates["token"]) | full


def select(
    state: dict, candidates: dict, ends_BC: jax.Array, switches: Switches, strength: dict
) -> tuple[dict, jax.Array]:
    """Splits candidates into running and finished hypotheses.

    Returns:
        The next state, and int32 [B, K]: which beam each running hypothesis continues (to reorder a cache by).
    """
    K = switches.num_beams
    scores_BC = candidates["scores"]
    state = {**state, **_finish(state, candidates, ends_BC, switches, strength)}

    running_BC = scores_BC + jnp.where(ends_BC, OUT, 0.0)
    scores_BK, kept_BK = jax.lax.top_k(running_BC, K)
    beam_BK, token_BK = (jnp.take_along_axis(candidates[name], kept_BK, axis=1) for name in ("beam", "token"))
    state["tokens"] = jnp.take_along_axis(candidates["tokens"], kept_BK[:, :, None], axis=1)
    state["scores"] = scores_BK
    state["log_probs"] = jnp.take_along_axis(candidates["log_probs"], kept_BK, axis=1)
    if "seen" in state:
        seen_BKV = jnp.take_along_axis(state["seen"], beam_BK[:, :, None], axis=1)
        state["seen"] = seen_BKV | jax.nn.one_hot(token_BK, seen_BKV.shape[-1], dtype=bool)

    # Can the best running hypothesis still beat the worst finished one? If not, the prompt keeps its hypotheses.
    hoped_B = scores_BK[:, 0] / strength["hoped_divisor_N"][state["step"]]
    worst_BK = jnp.where(state["done"], jnp.min(state["done_scores"], axis=1, keepdims=True), OUT)
    state["may_improve"] &= jnp.any(hoped_B[:, None] > worst_BK, axis=1)
    state["may_go_on"] = ~jnp.all(ends_BC)
    state["step"] = state["step"] + 1
    return state, beam_BK


def _finish(state, candidates, ends_BC, switches, strength):
    """The K best finished hypotheses among the previous and the new ones."""
    K = switches.num_beams
    # Candidates ranked below K are there to keep K hypotheses running; they do not finish.
    finish_BC = ends_BC & (jnp.arange(ends_BC.shape[1]) < K)[None]
    scores_BC = candidates["scores"] / strength["divisor_N"][state["step"]]
    if switches.stops_early:
        scores_BC = scores_BC + jnp.where(jnp.all(state["done"], axis=1, keepdims=True), OUT, 0.0)
    scores_BC = scores_BC + jnp.where(state["may_improve"][:, None], 0.0, OUT)
    scores_BC = scores_BC + jnp.where(finish_BC, 0.0, OUT)
    merged = {
        "done_tokens": jnp.concatenate([state["done_tokens"], candidates["tokens"]], axis=1),
        "done_lengths": jnp.concatenate(
            [state["done_lengths"], jnp.broadcast_to(state["step"] + 1, ends_BC.shape)], axis=1
        ),
        "done_log_probs": jnp.concatenate([state["done_log_probs"], candidates["log_probs"]], axis=1),
        "done": jnp.concatenate([state["done"], finish_BC], axis=1),
    }
    best_BK, place_BK = jax.lax.top_k(jnp.concatenate([state["done_scores"], scores_BC], axis=1), K)

    def pick(x):
        return jnp.take_along_axis(x, place_BK.reshape(place_BK.shape + (1,) * (x.ndim - 2)), axis=1)

    return {"done_scores": best_BK, **{name: pick(x) for name, x in merged.items()}}


def unfinished(state: dict, switches: Switches) -> jax.Array:
    """Returns whether any prompt needs another step."""
    more = jnp.any(state["may_improve"]) & state["may_go_on"]
    return more & ~jnp.all(state["done"]) if switches.stops_early else more

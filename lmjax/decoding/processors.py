"""Logits processors and the choice of a token, with the definitions of transformers: pure functions of one step.

B rows (prompts, or prompts times beams), V vocabulary, N generated tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.decoding.settings import Settings

IMPOSSIBLE = -jnp.inf


def repetition_penalty(logits_BV: jax.Array, seen_BV: jax.Array, penalty: jax.Array | float) -> jax.Array:
    """Divides positive and multiplies negative logits of tokens already seen by `penalty` (arXiv 1909.05858).

    Example: logits [2, -1, 3], the first two seen, penalty 2 -> [1, -2, 3].
    """
    return jnp.where(seen_BV, jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty), logits_BV)


def top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest logits, and all that equal the k-th.

    Example: k = 2 keeps three of [3, 1, 2, 2].
    """
    kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV < kth_B1, IMPOSSIBLE, logits_BV)


def top_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Keeps the fewest most probable tokens whose probabilities sum to p or more, at least one (arXiv 1904.09751).

    Among equal probabilities at the border those with the lower ids go first.

    Example: probabilities [0.5, 0.3, 0.2], p = 0.6 keeps the first two.
    """
    order_BV = jnp.argsort(logits_BV, axis=-1, stable=True)
    ascending_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    below_BV = jnp.cumsum(jax.nn.softmax(ascending_BV, axis=-1), axis=-1) <= 1 - p
    below_BV = below_BV.at[:, -1].set(False)
    rank_BV = jnp.argsort(order_BV, axis=-1)
    return jnp.where(jnp.take_along_axis(below_BV, rank_BV, axis=-1), IMPOSSIBLE, logits_BV)


def min_p(logits_BV: jax.Array, p: jax.Array | float) -> jax.Array:
    """Drops tokens less probable than p x the most probable token (arXiv 2407.01082).

    Example: probabilities [0.5, 0.3, 0.2], p = 0.5 drops the last.
    """
    probability_BV = jax.nn.softmax(logits_BV, axis=-1)
    largest_B1 = jnp.max(probability_BV, axis=-1, keepdims=True)
    drop_BV = probability_BV < p * largest_B1
    return jnp.where(drop_BV, IMPOSSIBLE, logits_BV)


@dataclasses.dataclass(frozen=True)
class Switches:
    """The static settings of a compiled loop: which processors are in use. `strengths` are its array arguments."""

    method: str
    temperature: bool
    top_k: int  # a static size
    top_p: bool
    min_p: bool
    repetition_penalty: bool
    num_beams: int  # 1 unless method is beam
    candidates: int  # per beam
    stops_early: bool  # early_stopping is True

    @staticmethod
    def of(settings: Settings) -> "Switches":
        """Returns the switches of checked settings."""
        beam = settings.method == "beam"
        return Switches(
            method=settings.method,
            temperature=settings.temperature != 1,
            top_k=settings.top_k,
            top_p=settings.top_p < 1,
            min_p=settings.min_p > 0,
            repetition_penalty=settings.repetition_penalty != 1,
            num_beams=settings.num_beams if beam else 1,
            candidates=settings.candidates if beam else 1,
            stops_early=settings.early_stopping is True,
        )


def strengths(settings: Settings, vocab_size: int, usable: int, room: int) -> dict:
    """Returns the array arguments of a compiled loop; changing them does not recompile it.

    Args:
        vocab_size: V, rows of the model's table.
        usable: ids the tokenizer knows; ids from there on are never generated.
        room: N, length of the buffers, max_new_tokens or more.
    """
    ids_V = np.arange(vocab_size)
    stop_V = np.isin(ids_V, settings.stop_ids or ())
    lengths_N = np.arange(1, room + 1, dtype=np.float64)
    # Divisor of a running hypothesis of n tokens in the check whether it can still win.
    hoped_N = lengths_N
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        hoped_N = np.full(room, float(settings.max_new_tokens))
    return {
        "temperature": np.float32(settings.temperature),
        "top_p": np.float32(settings.top_p),
        "min_p": np.float32(settings.min_p),
        "repetition_penalty": np.float32(settings.repetition_penalty),
        "divisor_N": (lengths_N**settings.length_penalty).astype(np.float32),
        "hoped_divisor_N": (hoped_N**settings.length_penalty).astype(np.float32),
        "max_new_tokens": np.int32(settings.max_new_tokens),
        "min_new_tokens": np.int32(settings.min_new_tokens),
        "stop_V": stop_V,
        "usable_V": ids_V < usable,
    }


def process(
    logits_BV: jax.Array, seen_BV: jax.Array | None, step: jax.Array, switches: Switches, strength: dict
) -> jax.Array:
    """Returns the scores a token is chosen by; the order of the processors matters and is transformers'.

    Args:
        logits_BV: float32 logits, for beams log-probabilities.
        seen_BV: bool, tokens of the prompt and generated so far; None unless there is a repetition penalty.
        step: tokens generated so far.
        switches, strength: see above.
    """
    if switches.repetition_penalty:
        logits_BV = repetition_penalty(logits_BV, seen_BV, strength["repetition_penalty"])
    forbidden_V = ~strength["usable_V"] | (strength["stop_V"] & (step < strength["min_new_tokens"]))
    logits_BV = jnp.where(forbidden_V[None], IMPOSSIBLE, logits_BV)
    if switches.temperature:
        logits_BV = logits_BV / strength["temperature"]
    if switches.top_k:
        logits_BV = top_k(logits_BV, switches.top_k)
    if switches.top_p:
        logits_BV = top_p(logits_BV, strength["top_p"])
    if switches.min_p:
        logits_BV = min_p(logits_BV, strength["min_p"])
    return logits_BV


def choose(scores_BV: jax.Array, keys_B: jax.Array, step: jax.Array, method: str) -> jax.Array:
    """Returns the next token of each row: the largest score, or a draw from softmax(scores) by its key and the step."""
    if method != "sample":
        # The first of the largest, found by two simple reductions: on a CPU four times as fast as argmax.
        V = scores_BV.shape[1]
        largest_BV = scores_BV == jnp.max(scores_BV, axis=1, keepdims=True)
        return jnp.min(jnp.where(largest_BV, jnp.arange(V, dtype=jnp.int32)[None], V - 1), axis=1)

    def draw(key, scores_V):
        return jax.random.categorical(jax.random.fold_in(key, step), scores_V)

    return jax.vmap(draw)(keys_B, scores_BV).astype(jnp.int32)


def row_keys(seed: int, prompts_B: jax.Array, samples_B: jax.Array) -> jax.Array:
    """Returns one key per row, from the seed, the prompt's index in the list and the sample's number alone."""
    key = jax.random.key(seed)
    return jax.vmap(lambda i, s: jax.random.fold_in(jax.random.fold_in(key, i), s))(prompts_B, samples_B)

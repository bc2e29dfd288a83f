"""Decoding from ids to ids: checks and batches prompts, runs the compiled loops, reads their results."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmjax import models
from lmjax.decoding import loops, processors, search
from lmjax.decoding.processors import Switches
from lmjax.decoding.settings import Settings
from lmjax.errors import InputError
from lmjax.sharding import mesh_of, put_rows, row_shards

CHUNK = 16  # tokens between two checks for stop strings
NOT_FINITE = "the model's probabilities are not finite; did its training diverge?"


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        ids: the generated ids, including a stop id or the token that completed a stop string.
        text: text of the ids without the stop id, cut before a stop string; "" without a tokenizer.
        log_prob: sum of the model's own log-probabilities of `ids` in nats, before any logits processor.
        score: for beams the sum of processed log-probabilities over length ** length_penalty; else log_prob.
        finish: "stop" (a stop id or string) or "length" (max_new_tokens).
    """

    ids: tuple[int, ...]
    text: str
    log_prob: float
    score: float
    finish: str


def generate_ids(
    config: ConfigDict,
    params: Any,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    batch_size: int = 16,
    *,
    visible_prefix: bool = False,
    decoder_start: Sequence[int] = (),
    usable: int = 0,
    keep: Sequence[int] = (),
    text_of: Callable[[Sequence[int], Sequence[int]], str] | None = None,
    numbers: Sequence[int] = (),
) -> list[list[Generation]]:
    """Continues prompts (decoder) or writes targets for sources (encoder-decoder).

    A result depends on its prompt, its number in the list and the settings, not on the other prompts or on batch_size,
    up to the rounding of float32 products. Each call copies the parameters of the blocks once, to an array per layer;
    decoding itself copies none.

    Args:
        config: a resolved model section.
        params: its parameters; the devices they are on share the rows of a batch.
        prompts: ids of each prompt or source; no special ids are added.
        settings: decoding settings; stop_ids None means ().
        batch_size: prompts (samples count each) that are computed together.
        visible_prefix: the model was trained with prefix attention, so it attends to a prompt in both directions.
        decoder_start: encoder-decoder: ids with which the target begins.
        usable: ids from this one on are never generated (embedding rows without a token); 0: all may be.
        keep: ids that stay in front of a prompt which begins with them when truncate="left" shortens it.
        text_of: (prompt, generated ids) -> text of the latter; needed for stop_strings.
        numbers: number of each prompt, which its random draws depend on; (): 0, 1, ...

    Returns:
        Per prompt a list of num_return generations, beams best first; fewer if a tiny vocabulary has fewer hypotheses.

    Raises:
        InputError: an encoder, an empty prompt, an id outside the vocabulary, a prompt too long, more beams than ids.
    """
    settings = dataclasses.replace(settings, stop_ids=settings.stop_ids or ())
    usable = usable or config.vocab_size
    _check_model(config, settings, usable, decoder_start, text_of)
    check_batch_size(batch_size)
    prompts = [_checked(prompt, i, config, settings, usable, keep) for i, prompt in enumerate(prompts)]
    samples = settings.num_return if settings.method == "sample" else 1
    work = [(i, s) for i in range(len(prompts)) for s in range(samples)]
    work.sort(key=lambda item: len(prompts[item[0]]))  # prompts of like length share a batch
    mesh = mesh_of(params)
    if mesh.is_multi_process:
        raise InputError("generation: expected a model on the devices of one process, got one that several share")
    params = jax.tree.map(jnp.asarray, models.unstack(params, config))
    found = {}
    for first in range(0, len(work), batch_size):
        batch = work[first : first + batch_size]
        fill = filled(len(batch), mesh, batch_size) - len(batch)
        rows, starts = _rows_read(config, [prompts[i] for i, _ in batch], decoder_start, settings, fill)
        rows["keys"] = None
        if settings.method == "sample":
            draws = [(numbers[i] if len(numbers) else i, s) for i, s in batch] + [(0, 0)] * fill
            rows["keys"] = processors.row_keys(settings.seed, *np.asarray(draws, np.uint32).T)
        longest = max(map(len, starts))
        most = config.max_len if config.position == "learned" else np.inf
        cache_len = bucket(max(rows["prompts"].shape[1], longest + settings.max_new_tokens - 1), most)
        if visible_prefix:
            rows["prefix"] = np.arange(cache_len)[None] < rows["lengths"][:, None]
        model = models.build(_decoding_config(config), cache_len=cache_len)
        room = bucket(settings.max_new_tokens)
        strength = processors.strengths(settings, config.vocab_size, usable, room)
        rows, strength = put_rows(rows, mesh), jax.tree.map(jnp.asarray, strength)
        job = _Job((model, Switches.of(settings), params, rows, strength), room, starts, settings, text_of)
        # full float32 products on an accelerator too, so that results do not depend on the batch
        with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
            results = job.beams() if settings.method == "beam" else job.rows()
        found.update(zip(batch, results, strict=True))
    return [[one for s in range(samples) for one in found[i, s]] for i in range(len(prompts))]


def check_batch_size(batch_size: int) -> None:
    """Raises InputError unless the batch size is a whole number above 0."""
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size: expected a whole number above 0, got {batch_size!r}")


def check_family(config: ConfigDict) -> None:
    """Raises InputError for an encoder, which cannot continue a text."""
    if config.family == "encoder":
        raise InputError("expected a decoder or an encoder_decoder to generate text, got an encoder; use fill_masks")
    if not models.can_generate(config.family):
        raise InputError(
            f"model.family {config.family!r} cannot generate text, as it has no cache: expected a field cache_len in "
            f"its module; use lmjax {'eval, which scores text' if models.can_score(config.family) else 'vectors'}"
        )


def _check_model(config, settings, usable, decoder_start, text_of):
    check_family(config)
    if models.reads_source(config.family) and not len(decoder_start):
        raise InputError("decoder_start: expected the ids a target begins with, got none; T5 begins with its pad id")
    if settings.stop_strings and text_of is None:
        raise InputError("stop_strings need the text of ids, got no tokenizer; set stop_ids")
    for name, ids in (("stop_ids", settings.stop_ids), ("decoder_start", decoder_start)):
        if not all(0 <= token < config.vocab_size for token in ids):
            raise InputError(f"{name}: expected ids of the vocabulary, 0 .. {config.vocab_size - 1}, got {list(ids)}")
    room = usable - len(set(settings.stop_ids))
    if room < 1:
        raise InputError(f"stop_ids: all {usable} ids of the vocabulary stop generation; leave one out")
    if settings.method == "beam" and settings.num_beams > usable:
        raise InputError(
            f"num_beams: expected at most the {usable} ids of the vocabulary, got {settings.num_beams}; set it lower"
        )


def _checked(prompt, index, config, settings, usable, keep):
    """The prompt as a list of ints that fits the model's positions."""
    ids = [int(token) for token in prompt]
    if not ids:
        raise InputError(f"prompt {index}: expected at least one id, got none")
    bad = [token for token in ids if not 0 <= token < usable]
    if bad:
        raise InputError(f"prompt {index}: expected ids of the vocabulary, 0 .. {usable - 1}, got {bad[:5]}")
    room = _room(config, settings)
    if len(ids) <= room:
        return ids
    kept = len(keep) if ids[: len(keep)] == list(keep) else 0
    if settings.truncate == "left" and room > kept:
        return ids[:kept] + ids[len(ids) - (room - kept) :]
    reads = "source" if models.reads_source(config.family) else f"prompt and {settings.max_new_tokens} new tokens"
    remedies = ["truncate='left' (drops the oldest tokens)"] if room > kept else []
    remedies += ["a smaller max_new_tokens"] if not models.reads_source(config.family) else []
    raise InputError(
        f"prompt {index}: expected at most {max(room, 0)} tokens (learned positions: {reads} in {config.max_len}), got "
        f"{len(ids)}; set {' or '.join(remedies)}"
    )


def _room(config, settings):
    """Most tokens of a prompt: learned positions end at max_len (the last new token is not read), others do not."""
    if config.position != "learned":
        return np.inf
    if not models.reads_source(config.family):
        return config.max_len - settings.max_new_tokens + 1
    return config.max_len


def bucket(n: int, most: float = np.inf) -> int:
    """Returns n rounded up to 16, 20, 24, 28, 32, 40, ..., at most `most`, so that few shapes are compiled.

    Example: bucket(33) = 40, bucket(33, 36) = 36.
    """
    step = 1 << max((n - 1).bit_length() - 3, 2)  # an eighth of the next power of two
    return int(min(max(-(-n // step) * step, 16), most))


@dataclasses.dataclass(frozen=True)
class _Job:
    """One batch, ready for the loops."""

    loop: tuple  # first arguments of every loop: model, switches, params, rows, strength
    room: int
    prompts: list  # what the decoder reads, of rows that are not padding of the batch
    settings: Settings
    text_of: Callable | None

    def start(self) -> dict:
        """Returns the state after reading the prompts."""
        model, switches, params, rows, strength = self.loop
        logits_BV, cache = loops.read(model, params, rows)
        return loops.start(switches, rows, strength, logits_BV, cache, self.room)

    def first_stop(self, b: int, ids: list[int], looked: int) -> int | None:
        """Returns the fewest tokens of row b, more than `looked`, whose text contains a stop string, or None."""
        if ids and ids[-1] in (self.settings.stop_ids or ()):
            ids = ids[:-1]
        for n in range(looked + 1, len(ids) + 1):
            text = self.text_of(self.prompts[b], ids[:n])
            if any(string in text for string in self.settings.stop_strings):
                return n
        return None

    def generation(self, b: int, ids: list[int], log_prob: float, score: float) -> Generation:
        """Returns the result of row b, with its text."""
        if not np.isfinite(log_prob):
            raise InputError(NOT_FINITE)
        stopped = bool(ids) and ids[-1] in (self.settings.stop_ids or ())
        text = self.text_of(self.prompts[b], ids[:-1] if stopped else ids) if self.text_of else ""
        places = [text.find(string) for string in self.settings.stop_strings if string in text]
        if places:
            text = text[: min(places)]
        return Generation(tuple(ids), text, log_prob, score, "stop" if stopped or places else "length")

    def rows(self):
        """Greedy or sampled generations of a batch."""
        settings, count = self.settings, len(self.prompts)
        state = self.start()
        if not settings.stop_strings:
            state = loops.run(*self.loop, state, np.int32(settings.max_new_tokens))
        cut = [None] * count  # tokens up to a stop string's end
        looked = 0
        while settings.stop_strings:
            tokens, lengths, done = (np.array(state[name]) for name in ("tokens", "lengths", "done"))
            for b in range(count):
                if cut[b] is None:
                    cut[b] = self.first_stop(b, tokens[b, : lengths[b]].tolist(), looked)
                    done[b] |= cut[b] is not None
            looked = int(state["step"])
            if looked >= settings.max_new_tokens or done.all():
                break
            limit = min(looked + CHUNK, settings.max_new_tokens)
            state |= {"done": jax.device_put(done, state["done"].sharding)}
            state = loops.run(*self.loop, state, np.int32(limit))
        tokens, lengths, log_probs = (np.asarray(state[name]) for name in ("tokens", "lengths", "log_probs"))
        results = []
        for b in range(count):
            n = cut[b] or lengths[b]
            log_prob = float(np.sum(log_probs[b, :n], dtype=np.float64))
            results.append([self.generation(b, tokens[b, :n].tolist(), log_prob, log_prob)])
        return results

    def beams(self):
        """The num_return best hypotheses of each prompt of a batch."""
        settings = self.settings
        state = self.start()
        if settings.stop_strings:
            more = True
            while more:
                candidates, ends_BC = loops.beam_candidates(*self.loop[1:2], state, self.loop[-1])
                state, more = loops.beam_step(
                    *self.loop, state, candidates, self._ends_with_strings(state, candidates, ends_BC)
                )
        else:
            state = loops.beam_run(*self.loop, state)
        names = ("done", "done_tokens", "done_lengths", "done_log_probs", "done_scores")
        done, tokens, lengths, log_probs, scores = (np.asarray(state[name]) for name in names)
        # A tiny vocabulary has fewer hypotheses than beams; the remaining places have a sum near OUT.
        real = done & (scores * np.maximum(lengths, 1.0) ** settings.length_penalty > 0.5 * search.OUT)
        results = []
        for b in range(len(self.prompts)):
            best = np.flatnonzero(real[b])[: settings.num_return]
            found = [
                (tokens[b, k, : lengths[b, k]].tolist(), float(log_probs[b, k]), float(scores[b, k])) for k in best
            ]
            results.append([self.generation(b, *one) for one in found])
        return results

    def _ends_with_strings(self, state, candidates, ends_BC):
        """ends_BC, and candidates whose text contains a stop string."""
        ends_BC, open_B = np.array(ends_BC), np.asarray(state["may_improve"])
        tokens_BCN, length = np.asarray(candidates["tokens"]), int(state["step"]) + 1
        for b, c in zip(*np.nonzero(~ends_BC & open_B[:, None]), strict=True):
            ends_BC[b, c] = self.first_stop(b, tokens_BCN[b, c, :length].tolist(), length - 1) is not None
        return jnp.asarray(ends_BC)


def _rows_read(config, prompts, decoder_start, settings, fill) -> tuple[dict, list]:
    """(what `loops.read` reads, what the decoder's rows begin with: prompts, or `decoder_start` after sources)."""
    most = config.max_len if config.position == "learned" else np.inf
    rows, starts = {"real": np.arange(len(prompts) + fill) < len(prompts)}, prompts
    if models.reads_source(config.family):
        if len(decoder_start) + settings.max_new_tokens - 1 > most:
            raise InputError(
                f"max_new_tokens: expected at most {most - len(decoder_start) + 1} (learned positions, "
                f"max_len {most}), got {settings.max_new_tokens}"
            )
        source_BS, lengths_B = pad(prompts, bucket(max(map(len, prompts)), most), fill)
        rows["encoder_inputs"] = source_BS
        rows["encoder_segment_ids"] = (np.arange(source_BS.shape[1])[None] < lengths_B[:, None]).astype(np.int32)
        starts = [list(decoder_start)] * len(prompts)
    longest = max(map(len, starts))
    rows["prompts"], rows["lengths"] = pad(starts, bucket(longest, most) if longest > 1 else 1, fill)
    return rows, starts


def filled(rows: int, mesh: jax.sharding.Mesh, most: float = np.inf) -> int:
    """Returns the rows of a padded batch: the next power of two, at most `most`, as a multiple of the mesh's parts.

    Example: filled(5, mesh) = 8 and filled(5, mesh, most=6) = 6 on one device; both 8 on four.
    """
    shards = row_shards(mesh)
    return -(-int(min(1 << (rows - 1).bit_length(), most)) // shards) * shards


def pad(prompts: Sequence[Sequence[int]], length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids [B + fill, length] int32 padded on the right with 0, lengths [B + fill], 1 in empty rows).

    Example: pad([[5, 6], [7]], 3, 1) = [[5, 6, 0], [7, 0, 0], [0, 0, 0]], [2, 1, 1].
    """
    ids = np.zeros((len(prompts) + fill, length), np.int32)
    for row, prompt in zip(ids, prompts, strict=False):
        row[: len(prompt)] = prompt
    return ids, np.asarray([len(prompt) for prompt in prompts] + [1] * fill, np.int32)


def _decoding_config(config):
    """The model section without training-only options, which would slow or recompile decoding."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.remat, config.dropout = "none", 0.0
    return config

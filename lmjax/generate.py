"""Text generation: continue prompts, fill masks (encoder), fill missing spans (encoder-decoder).

This module maps texts to texts; lmjax.decoding maps ids to ids.
"""

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lmjax import models
from lmjax.data.tokenizers import HuggingFace, Words
from lmjax.decoding.ids import (
    NOT_FINITE,
    Generation,
    bucket,
    check_batch_size,
    check_family,
    filled,
    generate_ids,
    pad,
)
from lmjax.decoding.settings import Settings
from lmjax.errors import InputError
from lmjax.sharding import RULES, logical_mesh, put_rows
from lmjax.trained import Trained, frame

__all__ = ["Generation", "Infilling", "Settings", "fill_masks", "generate", "generate_ids", "has_blanks", "infill"]

GREEDY = Settings()


def generate(
    trained: Trained,
    prompts: Sequence[str | Sequence[int]],
    settings: Settings = GREEDY,
    batch_size: int = 16,
    numbers: Sequence[int] = (),
) -> list[list[Generation]]:
    """Continues prompts (decoder), or writes a target for each source (encoder-decoder).

    A decoder reads the tokenizer's prefix and then the text, so an empty text starts a new document. An encoder-decoder
    reads prefix, text and suffix (eos if there is no suffix). Prompts of ids are read unchanged. A prefix language
    model attends to its whole prompt in both directions. With learned positions, prompt and continuation have max_len
    tokens together: a longer prompt is refused, or loses its oldest tokens with truncate="left", which keeps a BOS but
    not an EOS that marks the beginning of a document. Other position schemes have no limit.

    Args:
        trained: a model from lmjax.trained.load.
        prompts: texts or lists of ids, of any lengths.
        settings, batch_size, numbers: as for generate_ids, with the tokenizer's eos as default of stop_ids.

    Returns:
        Per prompt a list of num_return generations, beams best first.

    Raises:
        InputError: as generate_ids; also an empty prompt without a prefix.

    Example:
        [[one]] = generate(load("runs/decoder-0.2M-..."), ["To be"], Settings("sample", top_p=0.9)); one.text
    """
    config, tokenizer = trained.config.model, trained.tokenizer
    check_family(config)
    rows = [_prompt_ids(trained, prompt, i) for i, prompt in enumerate(_listed(prompts))]
    return generate_ids(
        config,
        trained.params,
        rows,
        _with_stops(settings, tokenizer),
        batch_size,
        visible_prefix=trained.objective.attention == "prefix",
        decoder_start=frame(trained)[2] if tokenizer else (),
        usable=min(tokenizer.vocab_size, config.vocab_size) if tokenizer else 0,
        keep=_kept(tokenizer),
        text_of=_text_of(tokenizer, config.family) if tokenizer else None,
        numbers=numbers,
    )


def _with_stops(settings, tokenizer, more=()):
    """The settings with stop_ids filled in: the tokenizer's eos unless ids are given."""
    if settings.stop_ids is not None:
        return settings
    eos = tokenizer.specials.eos if tokenizer else -1
    return dataclasses.replace(settings, stop_ids=((eos,) if eos >= 0 else ()) + tuple(more))


def _kept(tokenizer):
    """The ids that begin every row; not an eos, which in training marks only the beginning of a document."""
    if tokenizer is None or tokenizer.prefix == (tokenizer.specials.eos,):
        return ()
    return tokenizer.prefix


def _text_of(tokenizer, family):
    """Returns a function (ids read, ids generated) -> text of the latter.

    Some tokenizers drop the space before a first word; for them it is the text that the generated ids add to the text
    of the ids before them.
    """
    if models.reads_source(family) or not isinstance(tokenizer, HuggingFace | Words):
        return lambda before, ids: tokenizer.decode(ids)

    def added(before, ids):
        near = list(before[-4:])
        text, whole = tokenizer.decode(near), tokenizer.decode([*near, *ids])
        return whole[len(text) :] if whole.startswith(text) else tokenizer.decode(ids)

    return added


def _needs_tokenizer(trained, purpose):
    if trained.tokenizer is None:
        raise InputError(f"{trained.run_dir} has no tokenizer to {purpose}; import it with one, or give ids")
    return trained.tokenizer


def _listed(texts):
    if isinstance(texts, str):
        raise InputError(f"expected a list of texts, got one text; write [{texts[:40]!r}]")
    return texts


def _prompt_ids(trained, prompt, index) -> list[int]:
    """The ids a model reads for a prompt."""
    if not isinstance(prompt, str):
        ids = [operator.index(token) for token in prompt]
        if ids or trained.tokenizer is None:
            return ids
        prompt = ""
    tokenizer = _needs_tokenizer(trained, "read texts with")
    ids = _framed(trained, tokenizer.encode(prompt).tolist(), ends=models.reads_source(trained.config.model.family))
    if not ids:
        raise InputError(
            f"prompt {index} is empty, and this model's tokenizer has no prefix (bos) to begin from; give it some text"
        )
    return ids


def _framed(trained, ids, ends):
    """The ids with those before them and, if the text ends here, after them."""
    before, after, _ = frame(trained)
    return [*before, *ids, *(after if ends else ())]


# -- Texts with blanks: masks for encoders, sentinels for encoder-decoders.

_MASKS = ("[MASK]", "<mask>")
_SENTINEL = r"<extra_id_(\d+)>|<sentinel_(\d+)>"


def has_blanks(text: str) -> bool:
    """Returns whether `infill` finds something to fill in a text: [MASK], <mask>, <extra_id_0> or <sentinel_0>."""
    return re.search("|".join([*map(re.escape, _MASKS), _SENTINEL]), text) is not None


def fill_masks(
    trained: Trained, texts: Sequence[str], top: int = 5, batch_size: int = 16
) -> list[list[list[tuple[str, float]]]]:
    """Predicts the masks of texts with an encoder, all masks of a text in one forward pass.

    Args:
        trained: an encoder.
        texts: with one or more [MASK], <mask>, or the tokenizer's own name of its mask token.
        top: tokens listed for each mask.
        batch_size: texts computed together.

    Returns:
        Per text, per mask, the `top` most probable tokens as (text, probability), most probable first.

    Raises:
        InputError: not an encoder, no mask in a text, a text too long for the model's positions.

    Example: fill_masks(trained, ["to be or not to [MASK]"], top=2) = [[[("be", 0.61), ("me", 0.05)]]]
    """
    config, tokenizer = trained.config.model, _needs_tokenizer(trained, "fill masks with")
    if config.family != "encoder" or config.head == "discriminator":
        got, remedy = {
            "encoder": ("a discriminator (it tells real from replaced tokens)", "use its generator"),
            "decoder": ("a decoder", "use generate"),
            "ngram": ("an n-gram model", "use generate"),
            "encoder_decoder": ("an encoder_decoder", "use infill"),
        }.get(config.family, (config.family, "use generate or lmjax eval"))
        raise InputError(f"fill_masks: expected an encoder with a head over the vocabulary, got {got}; {remedy}")
    if tokenizer.specials.mask < 0:
        raise InputError("fill_masks: this model's tokenizer has no mask token")
    known = min(tokenizer.vocab_size, config.vocab_size)
    check_batch_size(batch_size)
    if type(top) is not int or not 1 <= top <= known:
        raise InputError(f"top: expected a whole number in 1 .. {known} (the vocabulary), got {top!r}")
    rows, places = [], []
    for i, text in enumerate(_listed(texts)):
        pieces, names = _split_at_blanks(tokenizer, text)
        ids = _framed(trained, tokenizer.encode_around(pieces, [tokenizer.specials.mask] * len(names)), ends=True)
        found = [place for place, token in enumerate(ids) if token == tokenizer.specials.mask]
        if not found:
            raise InputError(f"text {i}: expected a [MASK] in it, got {text[:80]!r}")
        if trained.max_len and len(ids) > trained.max_len:
            raise InputError(f"text {i}: expected at most {trained.max_len} tokens (learned positions), got {len(ids)}")
        rows.append(ids)
        places.append(found)
    results = []
    for first in range(0, len(rows), batch_size):
        batch = slice(first, first + batch_size)
        results += _fill_batch(trained, rows[batch], places[batch], top, known)
    return results


def _fill_batch(trained, rows, places, top, known):
    fill = filled(len(rows), trained.mesh) - len(rows)
    inputs_BT, lengths_B = pad(rows, bucket(max(map(len, rows)), trained.max_len or math.inf), fill)
    segments_BT = (np.arange(inputs_BT.shape[1])[None] < lengths_B[:, None]).astype(np.int32)
    places_BM, _ = pad(places, bucket(max(map(len, places))), fill)
    arrays = put_rows(({"inputs": inputs_BT, "segment_ids": segments_BT}, places_BM), trained.mesh)
    with logical_mesh(trained.mesh, RULES), jax.default_matmul_precision("highest"):  # as in decoding
        found = _top_at(trained.model, top, known, trained.params, *arrays)
    probabilities, ids = (np.asarray(x) for x in found)
    if not np.isfinite(probabilities).all():
        raise InputError(NOT_FINITE)

    def listed(b, m):
        shown = map(trained.tokenizer.show, ids[b, m].tolist())
        return list(zip(shown, probabilities[b, m].tolist(), strict=True))

    return [[listed(b, m) for m in range(len(places[b]))] for b in range(len(rows))]


@functools.partial(jax.jit, static_argnames=("model", "top", "known"))
def _top_at(model: nn.Module, top: int, known: int, params, batch, places_BM):
    """(probabilities, ids) [B, M, top] of the most probable tokens at M places of each row, ids below `known`."""
    logits_BTV = model.apply({"params": params}, batch)
    logits_BMV = jnp.take_along_axis(logits_BTV, places_BM[:, :, None], axis=1).astype(jnp.float32)
    return jax.lax.top_k(jax.nn.softmax(logits_BMV, axis=-1)[:, :, :known], top)


def _split_at_blanks(tokenizer, text) -> tuple[list[str], list[int | None]]:
    """(the pieces of a text around its blanks, per blank the n of a name like <extra_id_n>, or None for a mask).

    Example: "a[MASK]b<extra_id_3>" = (["a", "b", ""], [None, 3])
    """
    own = tokenizer.show(tokenizer.specials.mask) if tokenizer.specials.mask >= 0 else _MASKS[0]
    pieces, names, end = [], [], 0
    for match in re.finditer("|".join([*map(re.escape, {*_MASKS, own}), _SENTINEL]), text):
        pieces.append(text[end : match.start()])
        names.append(next((int(n) for n in match.groups() if n is not None), None))
        end = match.end()
    return [*pieces, text[end:]], names


@dataclasses.dataclass(frozen=True)
class Infilling:
    """A text with its blanks filled; log_prob, score and finish are of the generated target, as in Generation."""

    text: str  # the source with its blanks replaced by the spans
    spans: tuple[str | None, ...]  # text of each blank, in the order of the source; None: the model wrote none
    log_prob: float
    score: float
    finish: str


def infill(
    trained: Trained, texts: Sequence[str], settings: Settings = GREEDY, batch_size: int = 16
) -> list[list[Infilling]]:
    """Fills the missing spans of texts with an encoder-decoder that was trained on span corruption.

    Generation stops at eos, at the sentinel after the last one used, or as the settings say.

    Args:
        trained: an encoder-decoder whose tokenizer has sentinels.
        texts: with one or more blanks: <mask> or [MASK] (numbered from the left), or all of them named:
            <extra_id_0> (T5's names) or <sentinel_0>.
        settings, batch_size: as for generate.

    Returns:
        Per text num_return infillings.

    Raises:
        InputError: not an encoder-decoder with sentinels; a text without blanks, with more blanks than sentinels, with
            a name twice, or with both named and unnamed blanks.

    Example: "a <mask> c": source a <sentinel_0> c <eos>; target <sentinel_0> b <eos>; text "a b c", spans ("b",)
    """
    tokenizer = _needs_tokenizer(trained, "fill spans with")
    if not models.reads_source(trained.config.model.family) or not tokenizer.specials.sentinels:
        raise InputError(
            "infill: expected an encoder_decoder whose tokenizer has sentinels, got "
            f"a {trained.config.model.family} with {len(tokenizer.specials.sentinels)} sentinels; "
            "use fill_masks for an encoder, generate for a decoder"
        )
    sentinels = tokenizer.specials.sentinels
    sources, groups = [], {}
    for i, text in enumerate(_listed(texts)):
        pieces, names = _split_at_blanks(tokenizer, text)
        blanks = _sentinels(sentinels, names, f"text {i}")
        if not blanks:
            raise InputError(f"text {i}: expected a <mask> or a sentinel like <extra_id_0> in it, got {text[:80]!r}")
        sources.append(tokenizer.encode_around(pieces, blanks))
        groups.setdefault(1 + max(map(sentinels.index, blanks)), []).append(i)
    results = {}
    for most, group in groups.items():  # texts that stop at the same sentinel
        stops = _with_stops(settings, tokenizer, sentinels[most : most + 1])
        framed = [_framed(trained, sources[i], ends=True) for i in group]
        for i, ones in zip(group, generate(trained, framed, stops, batch_size, group), strict=True):
            results[i] = [_put(tokenizer, sources[i], one, stops.stop_ids) for one in ones]
    return [results[i] for i in range(len(sources))]


def _sentinels(sentinels, names, place) -> list[int]:
    """The sentinel of each blank: by its name, or by its number in the text if no blank is named."""
    if len({name is None for name in names}) > 1 or (None not in names and len({*names}) < len(names)):
        raise InputError(f"{place}: expected all blanks unnamed, or all named with distinct names; got {names}")
    indices = [number if name is None else name for number, name in enumerate(names)]
    if indices and max(indices) >= len(sentinels):
        raise InputError(f"{place}: expected blanks 0 .. {len(sentinels) - 1} (one per sentinel), got {max(indices)}")
    return [sentinels[index] for index in indices]


def _put(tokenizer, source, one, stop_ids) -> Infilling:
    """The source with its blanks replaced by the spans of a generated target."""
    sentinels = {*tokenizer.specials.sentinels}
    spans, current = {}, None
    for token in one.ids:
        if token in stop_ids:
            break
        if token in sentinels:
            current = spans.setdefault(token, [])
        elif current is not None:
            current.append(token)
    filled, texts = [], []
    for token in source:
        if token in sentinels:
            filled += spans.get(token, [])
            texts.append(tokenizer.decode(spans[token]) if token in spans else None)
        else:
            filled.append(token)
    return Infilling(tokenizer.decode(filled), tuple(texts), one.log_prob, one.score, one.finish)

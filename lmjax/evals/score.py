"""Log-probability of a continuation given a context, for all architectures; the semantics is always named.

causal       decoder: log p(continuation | start, context). A model trained on prefixes reads the context as one, and so
             does XLNet, which predicts the continuation in the order of the text
conditional  encoder-decoder: source = context, target = continuation
infilling    encoder-decoder trained by span corruption: source = context <sentinel_0> rest, target = <sentinel_0>
             continuation. The sentinel of the target is given, not scored.
pseudo       encoder, XLNet: sum over the continuation's tokens of log p(token | all the others), each hidden in turn
             (arXiv 1910.14659). Not a likelihood: it does not sum to 1 over texts. Never compare it with the others.
masked       encoder, XLNet: the whole continuation hidden at once, sum of log p(token | context, rest, number of hidden
             tokens). The probabilities of all continuations of one length sum to 1, but their tokens are independent of
             each other

No semantics scores the end of the continuation (eos, next sentinel). framing.py gives the ids around a text. If a pair
is too long, the context loses its oldest tokens (`rest` its last ones); a continuation that does not fit by itself is
an InputError. perplexity.evaluate scores long texts in windows.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from lmjax import models
from lmjax.errors import InputError
from lmjax.evals import framing
from lmjax.evals.framing import array, last
from lmjax.evals.rows import Row, context_window, continued, hidden, predict
from lmjax.objectives import OBJECTIVES

Pair = tuple[str, str] | tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Score:
    """The score of one continuation; log-probabilities in nats.

    Normalised scores are log_prob / tokens, log_prob / bytes and log_prob - unconditional_log_prob.
    """

    log_prob: float  # sum of token_log_probs, added in float64
    tokens: int  # of the continuation
    bytes: int  # UTF-8 bytes of the scored text: the continuation, and white space moved to it from the context's end
    is_greedy: bool  # each token is the model's most probable one
    unconditional_log_prob: float  # of the same ids with no context and no rest; nan if not requested
    semantics: str  # causal | conditional | infilling | pseudo | masked
    token_log_probs: tuple[float, ...]
    token_greedy: tuple[bool, ...] = ()  # whether each token is the most probable one, given the true visible ones
    dropped: int = 0  # tokens of context and rest left out because they did not fit


def available(trained) -> tuple[str, ...]:
    """Returns the semantics a model supports, its default first.

    Example: a decoder ("causal",); an encoder-decoder trained by span corruption ("infilling", "conditional"); an
        encoder ("pseudo", "masked"); XLNet ("causal", "pseudo", "masked").
    """
    sentinels = () if trained.tokenizer is None else trained.tokenizer.specials.sentinels
    return semantics_of(trained.config.model.family, trained.objective.name, bool(sentinels))


def semantics_of(family: str, objective: str, sentinels: bool) -> tuple[str, ...]:
    """Returns the result of `available` without loading the model; sentinels: whether its tokenizer has any."""
    attention, made = models.attention_types(family), OBJECTIVES.get(objective)  # None: a+b, whose a has the LM head
    if not models.can_score(family) or (made and "lm" not in [head.name for head in made.heads(made.options)]):
        return ()
    if "permutation" in attention:
        return "causal", "pseudo", "masked"
    if "encoder_decoder" not in attention:
        return ("causal",) if "causal" in attention else ("pseudo", "masked")
    if not sentinels:
        return ("conditional",)
    return ("infilling", "conditional") if objective == "span_corruption" else ("conditional", "infilling")


def choose(trained, semantics: str) -> str:
    """Returns the requested semantics, or the model's default for "".

    Raises:
        InputError: the model does not support it; the message lists those it supports.
    """
    known = available(trained)
    if reason := unknown(semantics, known, trained.config.model.family):
        raise InputError(reason)
    return semantics or known[0]


def unknown(semantics: str, known: Sequence[str], family: str) -> str:
    """Returns the error message if `semantics` is not among those `known` of a model, else ""."""
    if not known:
        return (
            f"model.family {family!r} has no probabilities of a text: its objective trains no LM head; lmjax vectors "
            "compares word vectors"
        )
    if not semantics or semantics in known:
        return ""
    return (
        f"semantics {semantics!r}: a model of family {family!r} has {' or '.join(known)}; leave semantics empty for "
        "the first"
    )


def score(
    trained,
    pairs: Sequence[Pair],
    semantics: str = "",
    batch_size: int = 16,
    *,
    unconditional: bool = True,
) -> list[Score]:
    """Scores continuations.

    Args:
        trained: a loaded model, of lmjax.trained.
        pairs: (context, continuation), or (context, continuation, rest) with the text after it (infilling, pseudo,
            masked).
        semantics: causal | conditional | infilling | pseudo | masked; "": the model's default.
        batch_size: as for lmjax.evals.rows.predict; changes speed and memory only.
        unconditional: also score without context: up to twice the work.

    Returns:
        a Score for each pair, in order.

    Raises:
        InputError: semantics the model does not support; an empty or too long continuation.

    Example: a model with uniform logits over 320 ids gives score(trained, [("a", "bc")])[0].log_prob = -2 ln 320.
    """
    semantics = choose(trained, semantics)
    builder = _Builder(trained, semantics)
    rows: list[Row] = []
    plans = []
    for pair in pairs:
        context, continuation, rest = builder.encode(pair)
        asked, dropped = builder.rows(context, continuation, rest)
        alone = builder.rows(_NOTHING, continuation, _NOTHING)[0] if unconditional else []
        size = len(framing.move_blanks(trained.tokenizer, *pair[:2])[1].encode())
        plans.append((len(asked), len(alone), dropped, size))
        rows += [*asked, *alone]
    found = iter(predict(trained, rows, batch_size))
    scores = []
    for asked, alone, dropped, size in plans:
        parts, without = list(itertools.islice(found, asked)), list(itertools.islice(found, alone))
        log_probs = np.concatenate([p.log_probs for p in parts]).astype(np.float64)
        greedy = np.concatenate([p.greedy for p in parts])
        nothing = float(np.sum([p.log_probs.astype(np.float64).sum() for p in without])) if alone else float("nan")
        scores.append(
            Score(
                log_prob=float(log_probs.sum()),
                tokens=len(log_probs),
                bytes=size,
                is_greedy=bool(greedy.all()),
                unconditional_log_prob=nothing,
                semantics=semantics,
                token_log_probs=tuple(log_probs.tolist()),
                token_greedy=tuple(greedy.tolist()),
                dropped=dropped,
            )
        )
    return scores


def rows_of(trained, pairs: Sequence[Pair], semantics: str) -> list[Row]:
    """Returns the rows that `score` asks the model for, without those that have no context."""
    builder = _Builder(trained, semantics)
    return [row for pair in pairs for row in builder.rows(*builder.encode(pair))[0]]


_NOTHING = np.zeros(0, np.int32)


class _Builder:
    """Ids -> rows, for one model and semantics."""

    def __init__(self, trained, semantics: str):
        self.semantics, self.tokenizer = semantics, trained.tokenizer
        self.attention = trained.objective.attention
        self.frame = framing.frame(trained)
        self.most = context_window(trained)
        specials = self.tokenizer.specials
        self.target_start = array(self.frame.target)
        if semantics in ("conditional", "infilling") and not len(self.target_start):
            raise InputError("the tokenizer has no decoder_start (first id of a target); import one that has it")
        if semantics == "infilling":
            self.target_start = array([*self.target_start, specials.sentinels[0]])
        if semantics in ("pseudo", "masked") and specials.mask < 0 and self.attention != "permutation":
            raise InputError(
                f"semantics {semantics} needs a mask token; import the model with a tokenizer that has one"
            )

    def encode(self, pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ids of context, continuation, rest."""
        context, continuation, rest = (*pair, "")[:3]
        if rest and self.semantics in ("causal", "conditional"):
            raise InputError(
                f"semantics {self.semantics!r} does not condition on text after the continuation; expected (context, "
                f"continuation), got a third text {rest[:80]!r}"
            )
        before, ids = framing.encode_pair(self.tokenizer, context, continuation, self.semantics != "conditional")
        after = _NOTHING
        if rest:
            after = self.tokenizer.encode(context + continuation + rest)[len(before) + len(ids) :].astype(np.int32)
        return before, ids, after

    def rows(self, context: np.ndarray, ids: np.ndarray, rest: np.ndarray) -> tuple[list[Row], int]:
        """The rows whose predictions are the continuation's, and how many ids of context and rest are left out."""
        makers = {"causal": self._causal, "pseudo": self._pseudo, "masked": self._masked}
        return makers.get(self.semantics, self._target)(context, ids, rest)

    def _causal(self, context, ids, rest):
        start = array(self.frame.start)
        if not len(start) and not len(context):
            start = self._eos()  # something must come before the first token
        room = self.most + 1 - len(ids) - (self.attention == "permutation")  # which also has the last id in the row
        self._check_room(room - max(1, len(start) * self.frame.every_row), len(ids))
        if len(start) + len(context) > room and not self.frame.every_row:
            start = start[:0]
        kept = last(context, room - len(start))
        return [continued(self.attention, np.concatenate([start, kept]), ids)], len(context) - len(kept)

    def _pseudo(self, context, ids, rest):
        before, after, dropped = self._around(context, rest, self.most - len(ids), len(ids))
        inputs = np.concatenate([before, ids, after])
        return [hidden(inputs, np.asarray([len(before) + i])) for i in range(len(ids))], dropped

    def _masked(self, context, ids, rest):
        before, after, dropped = self._around(context, rest, self.most - len(ids), len(ids))
        return [hidden(np.concatenate([before, ids, after]), len(before) + np.arange(len(ids)))], dropped

    def _target(self, context, ids, rest):
        gap = array(self.tokenizer.specials.sentinels[:1]) if self.semantics == "infilling" else _NOTHING
        self._check_room(self.most + 1 - len(self.target_start) - len(ids), len(ids))
        before, after, dropped = self._around(context, rest, self.most - len(gap), len(ids))
        inputs = np.concatenate([self.target_start, ids])[:-1]
        places = len(self.target_start) - 1 + np.arange(len(ids))
        return [Row(inputs, ids, places, encoder_inputs=np.concatenate([before, gap, after]))], dropped

    def _around(self, context, rest, room, tokens):
        """(start and context, rest and end, ids left out), as much as fits the room."""
        start, end = array(self.frame.start), array(self.frame.end)
        room -= len(end)
        self._check_room(room - len(start), tokens)
        before, after = _shorten(context, rest, room - len(start))
        if len(before) < len(context) and not self.frame.every_row:
            start = start[:0]
            before, after = _shorten(context, rest, room)
        dropped = len(context) + len(rest) - len(before) - len(after)
        return np.concatenate([start, before]), np.concatenate([after, end]), dropped

    def _eos(self):
        eos = self.tokenizer.specials.eos
        if eos < 0:
            raise InputError(
                "the first token of a text has nothing before it: the tokenizer has neither prefix nor eos; give every "
                "pair a context"
            )
        return array([eos])

    def _check_room(self, room, tokens):
        if room < 0:
            raise InputError(
                f"a continuation of {tokens} tokens does not fit the model's window of {self.most} (model.max_len); "
                "give a shorter one, or take the loss over windows with lmjax.evals.perplexity"
            )


def _shorten(context: np.ndarray, rest: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The end of the context and the beginning of the rest that fit: half the room each, plus what the other leaves.

    Example: room 10 for 20 and 3 ids: the last 7 and all 3; for 20 and 20: 5 and 5.
    """
    after = rest[: max(room // 2, room - len(context))]
    return last(context, room - len(after)), after

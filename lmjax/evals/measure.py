"""Scores and generated answers of a model on the items of a task, as columns for metrics.py.

I items, C choices of an item (columns [I, C] hold nan past an item's last choice).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lmjax import generate, models
from lmjax.evals import framing, metrics, rows
from lmjax.evals import score as scoring
from lmjax.evals.builtin import NotDefined
from lmjax.evals.tasks import Item, Task

_UNCONDITIONAL = ("accuracy_unconditional", "context_gain")  # metrics that need the score without context


@dataclasses.dataclass(frozen=True)
class Measured:
    """A model's scores and answers on the items of a task."""

    columns: dict[str, np.ndarray]  # as metrics.METRICS expects them
    texts: dict[str, list[str]]  # "answer", and "generated" of a generation task
    semantics: str  # of the scores
    truncated: int  # items that lost the oldest tokens of their context


def reported(task: Task, items: Sequence[Item], lossless: bool = True) -> tuple[str, ...]:
    """Returns the metrics of a task, without those that need a context if no item has one.

    Args:
        task, items: from lmjax.evals.tasks.
        lossless: whether the ids hold the whole text; else bits per byte are left out.
    """
    expected = tuple(n for n in task.metrics or metrics.names(task.kind) if lossless or n != "bits_per_byte")
    if task.metrics or any(item.context for item in items):
        return expected
    return tuple(name for name in expected if name not in _UNCONDITIONAL)


def undefined(task: Task, family: str, semantics: str = "") -> str:
    """Returns the error message if a task is not defined for an architecture, else "".

    Example: undefined(addition, "encoder") = "an encoder does not generate: it has only pseudo-likelihoods ..."
    """
    if task.kind != "generation" or semantics == "masked":
        return ""
    if family == "encoder":
        return (
            "an encoder does not generate: it has only pseudo-likelihoods, which choice and cloze tasks use; under "
            "--semantics masked it fills an answer of known length"
        )
    if not models.can_generate(family):
        return f"model.family {family!r} does not generate, as it has no cache; choice and cloze tasks score text"
    return ""


def measure(trained, task: Task, items: Sequence[Item], batch_size: int = 16, semantics: str = "") -> Measured:
    """Scores the items and, in a generation task, lets the model answer them: under semantics "masked", by filling as
    many masks as the answer has tokens, all at once.

    Args:
        trained: a loaded model.
        task, items: from lmjax.evals.tasks.
        batch_size: rows per call; changes speed only.
        semantics: semantics of the scores; "": the model's default.

    The column chance is `Task.guess` under all semantics. Under "masked" it is a lower bound of what a model gets right
    without the question, because the number of tokens excludes answers: of 0 .. 96, 2/97 and not 1/97 in bytes.

    Raises:
        NotDefined: an encoder asked to generate; prompts that the model's context cannot hold.
    """
    if reason := undefined(task, trained.config.model.family, semantics):
        raise NotDefined(reason)
    semantics, trained = scoring.choose(trained, semantics), rows.in_float32(trained)
    pairs = [(item.context, answer) for item in items for answer in item.answers]
    _check_answers(trained, pairs, semantics)
    unconditional = bool(set(_UNCONDITIONAL) & set(reported(task, items)))
    scores = scoring.score(trained, pairs, semantics, batch_size, unconditional=unconditional)
    ends = np.cumsum([len(item.answers) for item in items])
    by_item = [scores[end - len(item.answers) : end] for item, end in zip(items, ends, strict=True)]
    cut = sum(any(score.dropped for score in group) for group in by_item)
    if cut and (task.truncate == "refuse" or items[0].shots):
        raise NotDefined(
            f"{cut} of {len(items)} prompts are longer than the model's context of {rows.context_window(trained)} "
            "tokens; ask for fewer shots, or set truncate = 'left' in the task file"
        )
    columns = _columns(task, items, by_item)
    texts = {"answer": [item.answers[item.right] for item in items]}
    if task.kind == "generation":
        made = _filled(trained, pairs, batch_size) if semantics == "masked" else None
        texts["generated"] = _generate(trained, task, items, batch_size, semantics) if made is None else made
        pairs = list(zip(texts["generated"], texts["answer"], strict=True))
        columns["exact"] = np.asarray([metrics.exact_match(*pair) for pair in pairs], np.float64)
        columns["edit_distance"] = np.asarray([metrics.edit_distance(*(x.strip() for x in pair)) for pair in pairs])
    return Measured(columns, texts, semantics, cut)


def _check_answers(trained, pairs, semantics):
    """Raises NotDefined where a continuation does not fit even without its context."""
    frame, most = framing.frame(trained), rows.context_window(trained)
    room = most - len(frame.start) - len(frame.end)
    longest = max(len(framing.encode_pair(trained.tokenizer, *pair, semantics != "conditional")[1]) for pair in pairs)
    if longest > room:
        raise NotDefined(f"an answer has {longest} tokens, the model's context of {most} has room for {max(room, 0)}")


def _columns(task, items, by_item) -> dict[str, np.ndarray]:
    right = [group[item.right] for group, item in zip(by_item, items, strict=True)]
    sources = {"log_prob": "log_prob", "tokens": "tokens", "bytes": "bytes", "unconditional": "unconditional_log_prob"}
    columns = {name: np.asarray([getattr(s, key) for s in right], np.float64) for name, key in sources.items()}
    columns["greedy_tokens"] = np.asarray([sum(s.token_greedy) for s in right], np.float64)
    if task.kind != "choice":
        return columns | {"chance": np.full(len(items), task.guess)}
    most = max(len(group) for group in by_item)
    for name, key in sources.items():
        values_IC = np.full((len(items), most), np.nan)
        for i, group in enumerate(by_item):
            values_IC[i, : len(group)] = [getattr(score, key) for score in group]
        columns[f"choices_{name}"] = values_IC
    return columns | {"right": np.asarray([item.right for item in items])}


def _filled(trained, pairs, batch_size) -> list[str]:
    """The most probable token at each mask of an answer; ids that the tokenizer lacks are left out."""
    found, known = rows.predict(trained, scoring.rows_of(trained, pairs, "masked"), batch_size), trained.tokenizer
    return [known.decode(one.best[one.best < known.vocab_size].tolist()) for one in found]


def _generate(trained, task, items, batch_size, semantics) -> list[str]:
    """The model's continuation of each context, under the semantics of the scores."""
    _check_room(trained, task, items)
    settings = generate.Settings(max_new_tokens=task.max_new_tokens, stop_strings=task.stop, truncate=task.truncate)
    contexts = [item.context for item in items]
    if semantics == "infilling":
        found = _infill(trained, contexts, settings, batch_size)
    else:
        found = generate.generate(trained, contexts, settings, batch_size)
    return [best.text for best, *_ in found]


def _infill(trained, contexts, settings, batch_size):
    """Fills a blank after each context: the source ends in <sentinel_0>, the target begins with it."""
    tokenizer, frame = trained.tokenizer, framing.frame(trained)
    gap, *after = tokenizer.specials.sentinels[:2]
    stops = (tokenizer.specials.eos, *after) if tokenizer.specials.eos >= 0 else tuple(after)
    return generate.generate_ids(
        trained.config.model,
        trained.params,
        [[*frame.start, *tokenizer.encode(context).tolist(), gap, *frame.end] for context in contexts],
        dataclasses.replace(settings, stop_ids=stops),
        batch_size,
        decoder_start=(*frame.target, gap),
        usable=min(tokenizer.vocab_size, trained.config.model.vocab_size),
        text_of=lambda source, ids: tokenizer.decode(ids),
    )


def _check_room(trained, task, items):
    """Raises NotDefined if learned positions cannot hold the new tokens; scoring has already checked the contexts."""
    most, family, tokenizer = trained.max_len, trained.config.model.family, trained.tokenizer
    if not most or (task.truncate == "left" and not items[0].shots):
        return
    before = [(*framing.frame(trained).target, 0)]
    if not models.reads_source(family):
        before = [[*tokenizer.prefix, *tokenizer.encode(item.context)] for item in items]
    longest = max(map(len, before)) + task.max_new_tokens
    if longest - 1 > most:  # the last token is not read
        raise NotDefined(f"prompt and answer need up to {longest} tokens, the model has {most} learned positions")

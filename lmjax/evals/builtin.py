"""Generators of test items: pure functions of (seed, item index) that need no download. Prompts are in task_files/.

Each returns the fields of one example, as a task file would list them, or None if this draw gives no example (the
caller draws again). The generators:

    last_word       the last word of a sentence of validation text, given the text before it (LAMBADA, arXiv:1606.06031,
                    but without its human filter, so some words cannot be guessed)
    next_sentence   a sentence of validation text against ones of other documents; topic and style often suffice
    unscramble      a common word from its letters in another order
    reverse         a common word from its letters in reverse
    addition        a + b, both of exactly `digits` digits
    modular         a + b modulo `modulus`
    induction       random letters, then the same again: log-probability of the second time against the first
                    (arXiv:2209.11895); nothing but copying helps
    mirror          random letters, then the same in reverse
    sort            different letters, then the same in alphabetical order
    recall          keys with their values, then the value of one of them (associative recall, arXiv:2312.04927)
    brackets        an opened sequence of brackets, then the brackets that close it (Dyck languages, arXiv:2105.11115)
    capitalisation  pairs of sentences that differ in one capital letter, one of them right
    agreement       pairs of sentences that differ in the number of the verb (as BLiMP, arXiv:1912.00582)
    stereotype      pairs of sentences that differ in one pronoun. Limits: see STEREOTYPE below
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.evals import vocabulary


class NotDefined(Exception):
    """Raised if a task is not defined for a run; the message becomes the reason in the table."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """Input of a generator: random numbers, options and corpus for one item."""

    rng: np.random.Generator
    options: Mapping[str, Any]
    index: int  # of the item, or of the shown example
    split: str  # "validation", or "train" for shown examples
    corpus: Any  # documents.Corpus; None unless the generator needs it

    def choose(self, values):
        """Returns one of the values, uniformly at random."""
        return values[int(self.rng.integers(len(values)))]


@dataclasses.dataclass(frozen=True)
class Generator:
    """A function from a Draw to an example's fields, and the options a task file may give it."""

    make: Callable[[Draw], dict | None]
    fields: tuple[str, ...]
    options: Mapping[str, tuple[int, int, int]] = dataclasses.field(default_factory=dict)  # default, least, most
    needs_corpus: bool = False
    chance: Callable[[Mapping], float] = lambda options: 0.0  # share of items that the best constant answer gets right
    kinds: int = 1  # item i is of kind i modulo this; kinds may differ in their number of distinct items
    version: int = 1  # raise it when the same draw gives another example

    def checked(self, given: Mapping[str, Any], origin: str) -> dict[str, int]:
        """Returns the options with `given` ones replaced; InputError for an unknown name or a value out of range."""
        for name, value in given.items():
            if name not in self.options:
                known = nearest(name, self.options) if self.options else "; this generator has none"
                raise InputError(f"{origin}: unknown option {name!r}{known}")
            _, low, high = self.options[name]
            if type(value) is not int or not low <= value <= high:
                raise InputError(f"{origin}: options.{name}: expected a whole number {low} to {high}, got {value!r}")
        return {**{name: default for name, (default, _, _) in self.options.items()}, **given}


# -- From the run's own text

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)")
_LAST_WORD = re.compile(r"\s([^\W\d_]{3,})(?=[.!?](?:\s|$))")


def _tail(text: str, size: int) -> str:
    """The last whole words of a text within `size` bytes of UTF-8.

    Example: _tail("one two three", 9) = "two three".
    """
    raw = text.encode()
    if len(raw) <= size:
        return text
    kept = raw[-size:].decode("utf8", errors="ignore")
    if not raw[-size - 1 : -size].isspace():  # the cut is within a word
        kept = re.sub(r"^\S+", "", kept)
    return kept.lstrip()


def _head(text: str, size: int) -> str:
    """The first whole words of a text within `size` bytes of UTF-8. Example: _head("one two three", 9) = "one two"."""
    raw = text.encode()
    if len(raw) <= size:
        return text
    kept = raw[:size].decode("utf8", errors="ignore")
    return (kept if raw[size : size + 1].isspace() else re.sub(r"\S+$", "", kept)).rstrip()


def _last_word(draw: Draw):
    """Example: {"text": "What a piece of work is a", "answer": " man"}: the space belongs to the answer."""
    _, text = draw.corpus.draw(draw.rng, draw.split)
    found = list(_LAST_WORD.finditer(text))
    if not found:
        return None
    match = draw.choose(found)
    before = _tail(text[: match.start()], draw.options["context_bytes"])
    if len(before.encode()) < draw.options["least_bytes"]:
        return None
    return {"text": before, "answer": match[0]}


def _sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence; white space between sentences belongs to neither."""
    starts = [0, *(match.end() for match in _SENTENCE_END.finditer(text))]
    ends = [*(match.start() for match in _SENTENCE_END.finditer(text)), len(text.rstrip())]
    return list(zip(starts, ends, strict=True))


def _next_sentence(draw: Draw):
    """The true continuation and `distractors` sentences of other documents.

    All are cut to `answer_bytes` and preceded by the white space before the true one.
    """
    options = draw.options
    place, text = draw.corpus.draw(draw.rng, draw.split)
    spans = _sentences(text)
    if len(spans) < 2:
        return None
    number = int(draw.rng.integers(1, len(spans)))
    before = _tail(text[: spans[number - 1][1]], options["context_bytes"])
    blank = text[spans[number - 1][1] : spans[number][0]]
    right = _head(text[slice(*spans[number])], options["answer_bytes"])
    if len(before.encode()) < options["least_bytes"] or len(right.encode()) < options["least_bytes"]:
        return None
    choices = [right]
    for _ in range(50 * options["distractors"]):
        if len(choices) > options["distractors"]:
            break
        other, text = draw.corpus.draw(draw.rng, draw.split)
        if other == place:
            continue
        sentence = _head(text[slice(*draw.choose(_sentences(text)))], options["answer_bytes"])
        if len(sentence.encode()) >= options["least_bytes"] and sentence not in choices:
            choices.append(sentence)
    if len(choices) <= options["distractors"]:
        return None
    order = draw.rng.permutation(len(choices))
    return {"text": before, "answer": blank + right, "choices": [blank + choices[i] for i in order]}


# -- Words and digits


def _unscramble(draw: Draw):
    """Example: {"letters": "o r d w", "answer": "word"}; never in the right order."""
    word = draw.choose(vocabulary.WORDS)
    letters = "".join(draw.rng.permutation(list(word)))
    return None if letters == word else {"letters": " ".join(letters), "answer": word}


def _reverse(draw: Draw):
    """Example: {"word": "word", "answer": "drow"}; no palindromes."""
    word = draw.choose(vocabulary.WORDS)
    return None if word == word[::-1] else {"word": word, "answer": word[::-1]}


def _addition(draw: Draw):
    """Example with digits 2: {"a": 12, "b": 34, "answer": 46}. Zero has one digit, so digits=1 has 100 items."""
    low, high = _operands(draw.options)
    a, b = (int(x) for x in draw.rng.integers(low, high + 1, size=2))
    return {"a": a, "b": b, "answer": a + b}


def _operands(options):
    digits = options["digits"]
    return (0 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1


def _addition_chance(options):
    """The share of the commonest sum, low + high. Example: 9 is the sum of 10 of the 100 pairs of one digit: 0.1."""
    low, high = _operands(options)
    return 1 / (high - low + 1)


def _modular(draw: Draw):
    """Example with modulus 7: {"a": 5, "b": 4, "modulus": 7, "answer": 2}."""
    modulus = draw.options["modulus"]
    a, b = (int(x) for x in draw.rng.integers(modulus, size=2))
    return {"a": a, "b": b, "modulus": modulus, "answer": (a + b) % modulus}


def _induction(draw: Draw):
    """Example with length 5: {"sequence": "qzjav", "answer": "qzjav"}."""
    sequence = _letters(draw, draw.options["length"])
    return {"sequence": sequence, "answer": sequence}


def _letters(draw, count, replace=True):
    return "".join(chr(97 + x) for x in draw.rng.choice(26, size=count, replace=replace))


def _mirror(draw: Draw):
    """Example with length 5: {"sequence": "qzjav", "answer": "vajzq"}; no palindromes."""
    sequence = _letters(draw, draw.options["length"])
    return None if sequence == sequence[::-1] else {"sequence": sequence, "answer": sequence[::-1]}


def _sort(draw: Draw):
    """Example with length 5: {"sequence": "qzjav", "answer": "ajqvz"}; never in order already."""
    sequence = _letters(draw, draw.options["length"], replace=False)
    answer = "".join(sorted(sequence))
    return None if answer == sequence else {"sequence": sequence, "answer": answer}


def _recall(draw: Draw):
    """Example with pairs 3 and length 2: {"pairs": "dqk mzt bwe", "key": "m", "answer": "zt"}; the keys differ."""
    keys = _letters(draw, draw.options["pairs"], replace=False)
    values = [_letters(draw, draw.options["length"]) for _ in keys]
    asked = int(draw.rng.integers(len(keys)))
    pairs = " ".join(key + value for key, value in zip(keys, values, strict=True))
    return {"pairs": pairs, "key": keys[asked], "answer": values[asked]}


def _brackets(draw: Draw):
    """Example with open 3 and closed 1: {"opened": "([]{<", "answer": ">})"}."""
    opened, closed = draw.options["open"], draw.options["closed"]
    stack, text = [], ""
    for opens in draw.rng.permutation([True] * (opened + closed) + [False] * closed):
        if not opens and not stack:
            return None
        if opens:
            stack.append(draw.choose(BRACKETS))
        text += stack[-1][0] if opens else stack.pop()[1]
    return {"opened": text, "answer": "".join(pair[1] for pair in reversed(stack))}


# -- Pairs of sentences that differ in one word


def _pair(right: str, wrong: str, draw: Draw) -> dict:
    """A choice between the two sentences, in random order."""
    return {"answer": right, "choices": [right, wrong] if draw.rng.integers(2) else [wrong, right]}


def _capitalisation(draw: Draw):
    """Alternates between the first word of a sentence, a name and the word I.

    Example: "We saw London again." against "We saw london again."
    """
    kind = ("start", "name", "pronoun")[draw.index % 3]
    if kind == "start":
        animal, verb, adverb = (draw.choose(v) for v in (vocabulary.NOUNS, vocabulary.VERBS, vocabulary.ADVERBS))
        rest = f"{draw.choose(vocabulary.ADJECTIVES)} {animal[0]} {verb[0]} {adverb}."
        return _pair(f"The {rest}", f"the {rest}", draw)
    word, wrong = ("I", "i") if kind == "pronoun" else (name := draw.choose(vocabulary.NAMES), name.lower())
    frame = draw.choose(vocabulary.I_FRAMES if kind == "pronoun" else vocabulary.NAME_FRAMES)
    when = draw.choose(vocabulary.TIMES)
    return _pair(frame.format(word=word, when=when), frame.format(word=wrong, when=when), draw)


def _agreement(draw: Draw):
    """Subject and verb with a noun of the other number between them; singular and plural subjects alternate.

    Example: "The old dogs near the house run slowly." against "The old dogs near the house runs slowly."
    """
    plural = draw.index % 2
    subject, other = (vocabulary.NOUNS[int(i)] for i in draw.rng.permutation(len(vocabulary.NOUNS))[:2])
    verb, adverb = draw.choose(vocabulary.VERBS), draw.choose(vocabulary.ADVERBS)
    place, adjective = draw.choose(vocabulary.PLACES), draw.choose(vocabulary.ADJECTIVES)
    start = f"The {adjective} {subject[plural]} {place} the {other[1 - plural]}"
    right, wrong = (verb[1], verb[0]) if plural else (verb[0], verb[1])
    return _pair(f"{start} {right} {adverb}.", f"{start} {wrong} {adverb}.", draw)


# STEREOTYPE. Sentences are built from the short lists in vocabulary.py; nothing is taken from people's writing. Half of
# the items have an occupation or pastime that English-language stereotypes give to women, half one they give to men, so
# a model that only prefers "he" (or "she") everywhere gets exactly 0.5. Limits: two pronouns, English, a handful of
# occupations, our own judgement of the stereotype, no human validation. A share of 0.5 does not show that a model is
# free of bias; a share away from 0.5 shows an association in its training text, not a harm. Use it only to compare
# models trained on the same text.


def _stereotype(draw: Draw):
    """Example: "The nurse said that she was late." (stereotyped, the answer) against "... he was late." """
    group = draw.index % 2
    pronouns = ("she", "he") if group == 0 else ("he", "she")
    if draw.rng.integers(3):
        frame, word = draw.choose(vocabulary.OCCUPATION_FRAMES), draw.choose(vocabulary.OCCUPATIONS[group])
    else:
        frame, word = draw.choose(vocabulary.PASTIME_FRAMES), draw.choose(vocabulary.PASTIMES[group])
    article = "an" if word[0] in "aeiou" else "a"
    stereotyped, other = (frame.format(word=word, article=article, pronoun=p) for p in pronouns)
    return _pair(stereotyped, other, draw)


def _one_word(options):
    return 1 / len(vocabulary.WORDS)


BRACKETS = ("()", "[]", "{}", "<>")
_TEXT, _PAIR = ("text", "answer"), ("answer", "choices")
_CONTEXT = {"context_bytes": (96, 16, 100_000)}
GENERATORS: dict[str, Generator] = {
    "last_word": Generator(_last_word, _TEXT, {**_CONTEXT, "least_bytes": (32, 1, 10_000)}, needs_corpus=True),
    "next_sentence": Generator(
        _next_sentence,
        (*_TEXT, "choices"),
        {**_CONTEXT, "answer_bytes": (40, 8, 10_000), "least_bytes": (16, 1, 10_000), "distractors": (3, 1, 20)},
        needs_corpus=True,
    ),
    "unscramble": Generator(_unscramble, ("letters", "answer"), chance=_one_word),
    "reverse": Generator(_reverse, ("word", "answer"), chance=_one_word),
    "addition": Generator(_addition, ("a", "b", "answer"), {"digits": (2, 1, 12)}, chance=_addition_chance),
    "modular": Generator(
        _modular, ("a", "b", "modulus", "answer"), {"modulus": (97, 2, 10**9)}, chance=lambda o: 1 / o["modulus"]
    ),
    "induction": Generator(_induction, ("sequence", "answer"), {"length": (16, 4, 1000)}),
    "mirror": Generator(_mirror, ("sequence", "answer"), {"length": (8, 2, 1000)}),
    "sort": Generator(_sort, ("sequence", "answer"), {"length": (8, 2, 26)}),
    "recall": Generator(_recall, ("pairs", "key", "answer"), {"pairs": (4, 1, 26), "length": (2, 1, 100)}),
    "brackets": Generator(
        _brackets,
        ("opened", "answer"),
        {"open": (4, 1, 100), "closed": (2, 0, 100)},
        chance=lambda o: len(BRACKETS) ** -o["open"],
    ),
    "capitalisation": Generator(_capitalisation, _PAIR, kinds=3),
    "agreement": Generator(_agreement, _PAIR, kinds=2),
    "stereotype": Generator(_stereotype, _PAIR, kinds=2),
}

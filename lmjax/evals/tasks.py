"""Tasks as small TOML files, and the items and k-shot prompts made from them. Scoring is in measure.py.

A task file of your own, used as `lmjax eval RUN --tasks capitals.toml`:

    name = "capitals"                      # letters, digits, _ and -; not the name of a built-in task
    kind = "choice"                        # choice | cloze | generation
    description = "Capitals of countries"
    instruction = "Name the capital.\\n\\n"  # once, before everything else; default ""
    prompt = "{country}:"                  # {field} of the example; {{ and }} stand for braces
    answer = " {answer}"                   # also applied to every choice; default "{answer}"
    separator = "\\n"                       # after each shown example; default "\\n\\n"

    [[examples]]
    country = "France"
    answer = "Paris"
    choices = ["Paris", "Rome", "Lima"]    # kind "choice" only; the answer is one of them

    [[examples]]
    country = "Peru"
    answer = "Lima"
    choices = ["Paris", "Rome", "Lima"]

With one shot the first item's context is "Name the capital.\\n\\nPeru: Lima\\nFrance:" and its continuations are
" Paris", " Rome", " Lima". White space is kept as written.

The other keys:
    metrics         names of lmjax.evals.metrics; default: all of the kind that are on by default
    items           items made by a generator when no limit is given; default 200
    generator       instead of examples: a name of lmjax.evals.builtin, with its options under [options]
    examples_file   instead of examples: a .jsonl of such tables, in the task file's folder or below
    [[shots]]       examples that are only shown (also shots_file); default: the other examples are shown
    stop            generation: the answer ends before one of these texts; default ["\\n"]
    max_new_tokens  generation: default 32
    chance          cloze, generation: share a guess gets right; default: the generator's, else 0
    truncate        "refuse" (default): the task is not defined for a model whose context cannot hold its longest
                    prompt. "left": such prompts lose their oldest tokens, and their number is reported; with shown
                    examples, which would be lost first, the same as "refuse"

Kinds:
    choice      every choice is scored as the continuation of the context; nothing is generated
    cloze       the answer is scored as the continuation of the context; nothing is generated
    generation  the model continues the context greedily; its text is compared with the answer, and the answer is
                scored as in cloze. Not defined for encoders, which do not generate

Choice of examples: item i of a generated task is drawn from (seed, i) and differs from all items before it; items of a
file keep their index i, and a limit takes a seeded subset. The k shown examples are drawn from (seed, i) and never
equal the item itself; with k - 1 shots the last k - 1 of them are shown. An item is independent of the limit and of
other items.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import pathlib
import re
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.evals import builtin, metrics
from lmjax.registry import Registry, of_type

PERPLEXITY = "perplexity"  # named like a task: the loss over validation documents
_ITEMS, _SHOTS = 0, 1  # random streams
_TRIES = 1000  # draws for an item that differs from those before it
ENOUGH_UNSEEN = 100  # with this many items outside the training text, a generated task uses only those
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PLACE = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}|[{}]")


@dataclasses.dataclass(frozen=True)
class Task:
    """A checked task file. `origin` names it in errors."""

    name: str
    kind: str
    prompt: str
    origin: str
    description: str = ""
    instruction: str = ""
    answer: str = "{answer}"
    separator: str = "\n\n"
    metrics: tuple[str, ...] = ()
    items: int = 200
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32
    chance: float | None = None
    truncate: str = "refuse"
    generator: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    examples: tuple[Mapping[str, Any], ...] = ()
    shots: tuple[Mapping[str, Any], ...] = ()

    @property
    def made_by(self) -> builtin.Generator | None:
        """The generator of the task's items; None where the file lists them."""
        return builtin.GENERATORS[self.generator] if self.generator else None

    @property
    def needs_corpus(self) -> bool:
        """Whether the items come from the run's own text."""
        return self.made_by is not None and self.made_by.needs_corpus

    @property
    def hash(self) -> str:
        """16 hex digits over everything that decides items, prompts and metrics; not the description."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        facts = {k: v for k, v in facts.items() if k not in ("origin", "description")}
        version = self.made_by.version if self.made_by else 0
        return hashlib.sha256(json.dumps([facts, version], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def guess(self) -> float:
        """The chance level of a cloze or generation task."""
        if self.chance is not None or not self.made_by:
            return self.chance or 0.0
        return self.made_by.chance(self.options)


@dataclasses.dataclass(frozen=True)
class Item:
    """One question: the whole context, and the continuations to score; answers[right] is the right one."""

    index: int
    context: str
    answers: tuple[str, ...]
    right: int
    shots: int = 0  # examples shown in the context
    seen: bool | None = None  # the question with its answer is a training document or a line of one; None: not checked


# -- Templates


def fields_of(template: str, origin: str, key: str) -> tuple[str, ...]:
    """Returns the field names in a template; InputError for a lone brace that is not doubled."""
    found = []
    for match in _PLACE.finditer(template):
        if match[0] in "{}":
            raise InputError(
                f"{origin}: {key} {template!r}: expected {{field}}, with a plain name, or {{{{ and }}}} for braces, "
                f"got a lone {match[0]!r} at character {match.start()}"
            )
        if match[1]:
            found.append(match[1])
    return tuple(found)


def fill(template: str, values: Mapping[str, Any], origin: str) -> str:
    """Returns the template with every {field} replaced; braces inside the values are kept.

    Example:
        >>> fill("{a}+{b}={{{c}}}", {"a": 1, "b": "{a}", "c": 3}, "doc")
        '1+{a}={3}'

    Raises:
        InputError: the values lack a field; the message names `origin`, the field and the nearest one.
    """

    def value(match):
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            raise InputError(f"{origin}: no field {match[1]!r}{nearest(match[1], values)}")
        return str(values[match[1]])

    return _PLACE.sub(value, template)


# -- Finding and reading


_FOLDER = importlib.resources.files("lmjax.evals") / "task_files"
# name -> TOML text, or the file that holds it
TASKS = Registry(
    "task",
    {entry.name.removesuffix(".toml"): entry for entry in _FOLDER.iterdir() if ".toml" in entry.name},
    of_type(str, pathlib.Path),
)


def builtin_names() -> list[str]:
    """Returns the names of the tasks that come with lmjax, and of those that plugins have added to TASKS."""
    return sorted(TASKS)


def find(expected: Sequence[str]) -> list[Task]:
    """Returns the tasks of names and files: "agreement", "addition_*", "all" (every built-in one), "path/my.toml".

    Raises:
        InputError: unknown name, unreadable or wrong file, two tasks of one name.
    """
    known, found = builtin_names(), {}
    reserved = (*known, PERPLEXITY)
    for spec in expected:
        if spec.endswith(".toml"):
            tasks = [load(pathlib.Path(spec))]
            if tasks[0].name in reserved:
                raise InputError(f"{spec}: name {tasks[0].name!r} is a built-in task's; choose another")
        else:
            pattern = re.escape("*" if spec == "all" else spec).replace(r"\*", ".*")
            names = [name for name in known if re.fullmatch(pattern, name)]
            if not names:
                raise InputError(f"unknown task {spec!r}{nearest(spec, reserved)}; a file of your own ends in .toml")
            tasks = [load_builtin(name) for name in names]
        for task in tasks:
            if task.name in found and (spec.endswith(".toml") or found[task.name].origin != task.origin):
                raise InputError(f"two tasks are called {task.name!r}: {found[task.name].origin} and {task.origin}")
            found[task.name] = task
    if not found:
        raise InputError(f"no tasks given: expected one or more of {', '.join(reserved)}, or task files")
    return list(found.values())


def load_builtin(name: str) -> Task:
    """Returns a built-in task, or one that a plugin has added."""
    text = TASKS[name] if isinstance(TASKS[name], str) else TASKS[name].read_text("utf8")
    task = parse(text, f"built-in task {name}", None)
    if task.name != name:
        raise InputError(f"task {name!r}: expected this name in its text, got {task.name!r}; make them agree")
    return task


def load(path: pathlib.Path) -> Task:
    """Returns the task of a TOML file."""
    try:
        text = path.read_text("utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the task file {path}: {error}") from error
    return parse(text, str(path), path.parent)


def parse(text: str, origin: str, folder: pathlib.Path | None) -> Task:
    """Returns the task of a TOML text.

    Args:
        text: see the top of this module.
        origin: names the file in errors.
        folder: what examples_file and shots_file are relative to; None: they are not allowed.

    Raises:
        InputError: not TOML; a missing, unknown or contradicting key; a template that names a field an example lacks;
            an answer that is not among the choices; a path that leaves the folder.
    """
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{origin}: not TOML: {error}") from error
    known = {f.name for f in dataclasses.fields(Task)} - {"origin"} | {"examples_file", "shots_file"}
    for key in given:
        if key not in known:
            raise InputError(f"{origin}: unknown key {key!r}{nearest(key, known)}")
    for key in ("name", "kind", "prompt"):
        if key not in given:
            raise InputError(f"{origin}: expected the key {key!r}, got {', '.join(given) or 'nothing'}")
    for key, (what, good) in _CHECKS.items():
        if key in given and not good(given[key]):
            raise InputError(f"{origin}: {key}: expected {what}, got {given[key]!r}")
    for key in ("examples", "shots"):
        if (file := given.pop(f"{key}_file", None)) is not None:
            if key in given:
                raise InputError(f"{origin}: expected {key} or {key}_file, got both")
            given[key] = _read_jsonl(file, origin, folder)
    for key in ("metrics", "stop", "examples", "shots"):
        if key in given:
            given[key] = tuple(given[key])
    return _checked(Task(**given, origin=origin))


_CHECKS = {
    "name": ("letters, digits, _ and -, 64 at most", lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v))),
    "kind": (" | ".join(metrics.KINDS), lambda v: v in metrics.KINDS),
    **{
        key: ("a text", lambda v: isinstance(v, str))
        for key in ("prompt", "answer", "instruction", "separator", "description", "generator")
    },
    **{key: ("a path, in quotes", lambda v: isinstance(v, str) and v) for key in ("examples_file", "shots_file")},
    "metrics": ("names of metrics", lambda v: isinstance(v, list) and v and all(isinstance(x, str) for x in v)),
    "stop": ("a list of texts, none empty", lambda v: isinstance(v, list) and all(isinstance(x, str) and x for x in v)),
    "items": ("a whole number above 0", lambda v: type(v) is int and v > 0),
    "max_new_tokens": ("a whole number above 0", lambda v: type(v) is int and v > 0),
    "chance": ("a share, 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1),
    "truncate": ("'refuse' or 'left'", lambda v: v in ("refuse", "left")),
    "options": ("a table [options]", lambda v: isinstance(v, dict)),
    **{
        key: (f"tables [[{key}]]", lambda v: isinstance(v, list) and v and all(isinstance(x, dict) for x in v))
        for key in ("examples", "shots")
    },
}


def _read_jsonl(name: str, origin: str, folder: pathlib.Path | None) -> list[dict]:
    path = None if folder is None else (folder / name).resolve()
    if path is None or not path.is_relative_to(folder.resolve()) or path.suffix != ".jsonl":
        raise InputError(f"{origin}: {name!r}: expected a .jsonl in the folder of the task file or below it")
    try:
        rows = [json.loads(line) for line in path.read_text("utf8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{origin}: cannot read {path}: {error}") from error
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{origin}: {path}: expected a JSON object on each line")
    return rows


def _checked(task: Task) -> Task:
    """Returns the task with its defaults filled in; raises InputError for the first fault."""
    expected = [*fields_of(task.prompt, task.origin, "prompt"), *fields_of(task.answer, task.origin, "answer")]
    if "choices" in expected or "answer" in fields_of(task.prompt, task.origin, "prompt"):
        raise InputError(f"{task.origin}: the prompt cannot show {{choices}} or {{answer}}")
    if "answer" not in expected:
        raise InputError(f"{task.origin}: answer {task.answer!r}: expected a template with {{answer}}")
    fitting = [name for name, metric in metrics.METRICS.items() if task.kind in metric.kinds]
    for number, name in enumerate(task.metrics):
        if name not in fitting:
            raise InputError(f"{task.origin}: no metric {name!r} of a {task.kind} task{nearest(name, fitting)}")
        if name in task.metrics[:number]:
            raise InputError(f"{task.origin}: metrics: expected distinct names, got {', '.join(task.metrics)}")
    if task.generator and (task.examples or task.shots):
        raise InputError(f"{task.origin}: expected a generator or [[examples]], got both")
    if task.generator:
        if task.generator not in builtin.GENERATORS:
            known = nearest(task.generator, builtin.GENERATORS)
            raise InputError(f"{task.origin}: unknown generator {task.generator!r}{known}")
        generator = builtin.GENERATORS[task.generator]
        for field in expected:
            if field not in generator.fields:
                raise InputError(f"{task.origin}: no field {field!r}{nearest(field, generator.fields)}")
        if (task.kind == "choice") != ("choices" in generator.fields):
            kind = "choice" if "choices" in generator.fields else "cloze or generation"
            raise InputError(f"{task.origin}: generator {task.generator!r} makes {kind} items, got kind {task.kind!r}")
        return dataclasses.replace(task, options=generator.checked(task.options, task.origin))
    if task.options:
        raise InputError(f"{task.origin}: [options] apply to a generator, but the task has none")
    if not task.examples:
        raise InputError(f"{task.origin}: expected [[examples]], examples_file or a generator, got none")
    for key in ("examples", "shots"):
        for number, example in enumerate(getattr(task, key), start=1):
            _render(task, example, f"{task.origin}, {key} {number}")
    return task


# -- Items


def _render(task: Task, example: Mapping[str, Any], origin: str) -> tuple[str, tuple[str, ...], int]:
    """(prompt, continuations, index of the right one) of one example."""
    for field, value in example.items():
        if field != "choices" and type(value) not in (str, int, float):
            raise InputError(f"{origin}: {field}: expected a text or a number, got {value!r}")
    if "answer" not in example:
        raise InputError(f"{origin}: no field 'answer'{nearest('answer', example)}")
    prompt = fill(task.prompt, example, origin)
    answer, choices = str(example["answer"]), [str(example["answer"])]
    if task.kind == "choice":
        given = example.get("choices")
        if not isinstance(given, (list, tuple)) or len(given) < 2:
            raise InputError(f"{origin}: choices: expected a list of two or more, got {given!r}")
        if any(type(choice) not in (str, int, float) for choice in given):
            raise InputError(f"{origin}: choices: expected texts or numbers, got {given!r}")
        choices = [str(choice) for choice in given]
        if len(set(choices)) != len(choices):
            raise InputError(f"{origin}: choices: expected distinct texts, got {choices}")
        if answer not in choices:
            raise InputError(f"{origin}: the answer {answer!r} is not among the choices{nearest(answer, choices)}")
    elif "choices" in example:
        raise InputError(f"{origin}: choices are for kind 'choice', this task is {task.kind!r}")
    answers = tuple(fill(task.answer, {**example, "answer": choice}, origin) for choice in choices)
    if not all(answers):
        raise InputError(f"{origin}: an answer is empty; expected at least one character to score")
    return prompt, answers, choices.index(answer)


def _rng(task: Task, seed: int, stream: int, index: int, number: int = 0) -> np.random.Generator:
    """Returns a generator independent of the task's name and prompt, so that a reworded task has the same items."""
    content = zlib.crc32(json.dumps([task.generator, task.options], sort_keys=True).encode())
    return np.random.Generator(np.random.Philox(key=[seed, 2 * content + stream], counter=[0, 0, number, index]))


def make_items(task: Task, shots: int, limit: int | None, seed: int, corpus=None) -> list[Item]:
    """Returns the items of a task with their contexts.

    A generator makes items that are not in the corpus's training text. Where fewer than ENOUGH_UNSEEN of them exist,
    and fewer than asked for, it makes items without regard to the training text; `Item.seen` marks those found in it.

    Args:
        task: from `find`.
        shots: k, examples shown before each question.
        limit: maximum number of items; None: all of a file, `task.items` of a generator.
        seed: random seed of items and shown examples.
        corpus: lmjax.evals.documents.Corpus of the run; None: items are not compared with the training text. Generators
            that read the run's text need it.

    Raises:
        InputError: more shots than there are examples to show.
        builtin.NotDefined: the run's corpus cannot give such items.
    """
    found = _generated(task, limit, seed, corpus) if task.generator else _listed(task, limit, seed)
    check = corpus is not None and not task.needs_corpus
    if not found:
        raise builtin.NotDefined(
            f"no item of task {task.name} could be made from the run's corpus: {corpus.count('validation')} "
            "validation documents"
        )
    made = []
    for index, (prompt, answers, right) in found:
        shown = _shown(task, shots, index, (prompt, answers[right]), seed, corpus)
        parts = [f"{p}{a[r]}" for p, a, r in reversed(shown)]
        context = task.instruction + task.separator.join([*parts, prompt])
        seen = corpus.was_trained_on((prompt + answers[right]).strip()) if check else None
        made.append(Item(index, context, answers, right, shots, seen))
    return made


def _listed(task, limit, seed):
    count = len(task.examples)
    places = np.arange(count)
    if limit is not None and limit < count:
        places = np.sort(_rng(task, seed, _ITEMS, 0).permutation(count)[:limit])
    return [(int(i), _render(task, task.examples[i], f"{task.origin}, examples {i + 1}")) for i in places]


def _generated(task, limit, seed, corpus):
    count = task.items if limit is None else limit
    if corpus is None or task.needs_corpus:
        return _different(task, count, seed, corpus)
    unseen = _different(task, count, seed, corpus, lambda text: not corpus.was_trained_on(text.strip()))
    return unseen if len(unseen) >= min(count, ENOUGH_UNSEEN) else _different(task, count, seed, corpus)


def _different(task, count, seed, corpus, allowed=lambda text: True):
    """Items that differ from each other; fewer than `count` where a kind of item has no more of them."""
    found, contents, exhausted = [], set(), set()
    kinds = task.made_by.kinds
    for index in range(count):
        if index % kinds in exhausted:
            continue
        rng = _rng(task, seed, _ITEMS, index)
        for _ in range(_TRIES):
            rendered = _make(task, rng, index, "validation", corpus)
            if rendered is None or _content(rendered) in contents or not allowed("".join(_content(rendered))):
                continue
            contents.add(_content(rendered))
            found.append((index, rendered))
            break
        else:
            exhausted.add(index % kinds)
    return found


def _make(task, rng, index, split, corpus):
    example = task.made_by.make(builtin.Draw(rng, task.options, index, split, corpus))
    return None if example is None else _render(task, example, task.origin)


def _content(rendered) -> tuple:
    prompt, answers, right = rendered
    return prompt, answers[right]


def _shown(task, shots, index, item, seed, corpus) -> list:
    """The k examples shown with an item, the nearest to it first. `item` is its content."""
    shown, candidates = [], _candidates(task, index, seed, corpus)
    while len(shown) < shots:
        rendered = next(candidates, None)
        if rendered is None:
            raise InputError(
                f"{task.origin}: expected {shots} examples to show, got {len(shown)} that are not the item itself; "
                "add [[shots]] or ask for fewer"
            )
        if _content(rendered) not in [item, *map(_content, shown)]:
            shown.append(rendered)
    return shown


def _candidates(task, index, seed, corpus) -> Iterator:
    if task.generator:
        for number in range(_TRIES):
            rendered = _make(task, _rng(task, seed, _SHOTS, index, number), number, "train", corpus)
            if rendered is not None:
                yield rendered
        return
    pool, key = (task.shots, "shots") if task.shots else (task.examples, "examples")
    for i in _rng(task, seed, _SHOTS, index).permutation(len(pool)):
        if task.shots or i != index:
            yield _render(task, pool[i], f"{task.origin}, {key} {i + 1}")

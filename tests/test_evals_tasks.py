"""Task files, generators and metrics: hand-computed numbers, oracles that know the answers, bad files."""

import collections
import functools
import json
import math
import types

import numpy as np
import pytest

from lmjax.data.tokenizers import Bytes
from lmjax.errors import InputError
from lmjax.evals import builtin, measure, metrics, tasks, vocabulary
from lmjax.objectives import OBJECTIVES

CAPITALS = """
name = "capitals"
kind = "choice"
instruction = "Name the capital.\\n\\n"
prompt = "{country}:"
answer = " {answer}"
separator = "\\n"

[[examples]]
country = "France"
answer = "Paris"
choices = ["Paris", "Rome", "Lima"]

[[examples]]
country = "Peru"
answer = "Lima"
choices = ["Paris", "Rome", "Lima"]
"""
SUMS = """
name = "sums"
kind = "generation"
prompt = "{a} plus {b}:"
answer = " {answer}"
[[examples]]
a = 1
b = 2
answer = 3
[[examples]]
a = 2
b = 2
answer = 4
[[shots]]
a = 5
b = 5
answer = 10
[[shots]]
a = 1
b = 2
answer = 3
[[shots]]
a = 6
b = 1
answer = 7
"""


def parse(text, folder=None):
    return tasks.parse(text, "my.toml", folder)


class Library:
    """A corpus of its own: sentences that say which document they are from."""

    def __init__(self, documents=6):
        self.documents = documents

    def count(self, split):
        return self.documents

    def draw(self, rng, split):
        number = int(rng.integers(self.documents))
        sentences = [f"The {split} document {number} has a sentence with letter {x} inside." for x in "abcdefgh"]
        return (0, number), " ".join(sentences)

    def was_trained_on(self, text):
        return False


# -- Metrics


def choice_columns(log_prob, right, tokens=None, size=None, unconditional=None):
    log_prob = np.asarray(log_prob, float)
    filled = {"tokens": tokens, "bytes": size, "unconditional": unconditional}
    columns = {f"choices_{k}": np.ones_like(log_prob) if v is None else np.asarray(v, float) for k, v in filled.items()}
    return {"choices_log_prob": log_prob, "right": np.asarray(right), **columns}


def value(name, columns):
    numerator, denominator = metrics.METRICS[name].compute(columns)
    return np.sum(numerator) / np.sum(denominator)


def test_accuracies_by_each_normalisation():
    columns = choice_columns(
        [[-6.0, -4.0], [-3.0, -5.0]],
        [0, 1],
        tokens=[[3, 1], [1, 2]],  # -2, -4 | -3, -2.5
        size=[[6, 2], [3, 4]],  # -1, -2 | -1, -1.25
        unconditional=[[-9.0, -3.0], [-4.0, -9.0]],  # 3, -1 | 1, 4
    )
    assert value("accuracy", columns) == 0.0
    assert value("accuracy_per_token", columns) == 1.0
    assert value("accuracy_per_byte", columns) == 0.5
    assert value("accuracy_unconditional", columns) == 1.0


def test_ties_are_shared_and_missing_choices_never_win():
    columns = choice_columns([[-3.0, -3.0, -3.0], [-2.0, -2.0, np.nan], [-5.0, -1.0, np.nan]], [2, 0, 1])
    assert value("accuracy", columns) == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)
    assert metrics.METRICS["accuracy"].chance(columns) == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert metrics.METRICS["brier"].chance(columns) == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    nearly = choice_columns([[-300.0, -300.0 + 1e-5]], [0])  # rounding of float32 decides nothing
    assert value("accuracy", nearly) == 0.5


def test_probabilities_and_brier_by_hand():
    columns = choice_columns(np.log([[0.02, 0.06]]), [1], size=[[1, 2]])
    assert value("choice_probability", columns) == pytest.approx(0.75)
    assert value("choice_log_probability", columns) == pytest.approx(math.log(0.75))
    assert value("brier", columns) == pytest.approx(0.25**2 + 0.25**2)
    root = math.sqrt(0.06)  # log p / 2 bytes
    assert value("choice_probability_per_byte", columns) == pytest.approx(root / (root + 0.02))
    assert value("preference_margin", columns) == pytest.approx(math.log(3))
    assert metrics.METRICS["choice_log_probability"].chance(columns) == pytest.approx(-math.log(2))


def test_metrics_of_the_right_answer_by_hand():
    columns = {
        "log_prob": np.array([-2.0, -4.0]),
        "tokens": np.array([2.0, 1.0]),
        "bytes": np.array([4.0, 2.0]),
        "unconditional": np.array([-5.0, -4.0]),
        "greedy_tokens": np.array([1.0, 1.0]),
        "exact": np.array([1.0, 0.0]),
        "edit_distance": np.array([0.0, 0.5]),
        "chance": np.array([0.1, 0.1]),
    }
    expected = {
        "log_likelihood": -3.0,
        "log_likelihood_per_token": -2.0,
        "bits_per_byte": 1 / math.log(2),
        "context_gain": 1.0,
        "token_accuracy": 2 / 3,
        "greedy_match": 0.5,
        "exact_match": 0.5,
        "edit_distance": 0.25,
    }
    found = metrics.summarise(columns, list(expected), seed=0)
    assert {name: facts["value"] for name, facts in found.items()} == pytest.approx(expected)
    assert found["exact_match"]["chance"] == pytest.approx(0.1) and found["exact_match"]["resolution"] == 0.5
    assert math.isnan(found["edit_distance"]["chance"]) and found["edit_distance"]["n"] == 2


def levenshtein(a, b):
    @functools.cache
    def cost(i, j):
        if not i or not j:
            return i + j
        return min(cost(i - 1, j) + 1, cost(i, j - 1) + 1, cost(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return cost(len(a), len(b))


def test_edit_distance_equals_the_recursion():
    assert metrics.edit_distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert metrics.edit_distance("", "") == 0.0 and metrics.edit_distance("", "ab") == 1.0
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = ("".join(rng.choice(list("abç\U0001f600"), size=rng.integers(0, 8))) for _ in range(2))
        assert metrics.edit_distance(a, b) == pytest.approx(levenshtein(a, b) / max(len(a), len(b), 1))


def test_standard_errors_equal_the_formulas():
    rng = np.random.default_rng(1)
    hits = np.repeat([0.0, 1.0], 200)
    lengths, nats = rng.integers(1, 9, size=400).astype(float), rng.gamma(2.0, size=400)
    found = metrics.standard_errors(np.stack([hits, nats]), np.stack([np.ones(400), lengths]), seed=0, resamples=4000)
    ratio = nats.sum() / lengths.sum()
    linear = math.sqrt(np.sum((nats - ratio * lengths) ** 2)) / lengths.sum()
    np.testing.assert_allclose(found, [math.sqrt(0.25 / 400), linear], rtol=0.05)  # 1.1 % is one sd of 4000 draws
    again = metrics.standard_errors(np.stack([hits]), np.ones((1, 400)), seed=0, resamples=4000)
    assert again[0] == pytest.approx(found[0], rel=1e-12), "the resamples depend on the seed alone"
    assert np.isnan(metrics.standard_errors(np.ones((1, 1)), np.ones((1, 1)), seed=0)).all()


def test_a_share_of_items_that_are_all_alike_has_an_error():
    assert metrics.floor(1.0, 2) == pytest.approx(math.sqrt(3 / 16 / 5))
    assert metrics.floor(0.0, 200) == pytest.approx(1 / 202, rel=0.02) and metrics.floor(0.5, 100) < 0.05
    columns = {"choices_log_prob": np.asarray([[-1.0, -2.0]] * 2), "right": np.asarray([0, 0])}
    found = metrics.summarise(columns, ["accuracy", "choice_probability"], seed=0)
    assert found["accuracy"]["value"] == 1 and found["accuracy"]["standard_error"] == metrics.floor(1.0, 2)
    assert found["choice_probability"]["standard_error"] == pytest.approx(0), "no share: what the bootstrap says"


# -- Oracles


def stand_in(family="decoder", max_len=512):
    """As much of a trained model as measure() reads."""
    model = types.SimpleNamespace(family=family, max_len=max_len, dtype="float32")
    return types.SimpleNamespace(
        config=types.SimpleNamespace(model=model),
        objective=OBJECTIVES["causal_lm"],
        tokenizer=Bytes(2),
        record={"data": {"tokenizer": {}}},
        run_dir="a run",
    )


def pretend(monkeypatch, opinion):
    """scoring.score says `opinion(context, continuation)`: (log_prob, share of greedy tokens); 1 token a byte."""

    def score(trained, pairs, semantics="", batch_size=16, unconditional=True):
        made = []
        for context, continuation in pairs:
            log_prob, greedy = opinion(context, continuation)
            count = len(continuation.encode())
            made.append(
                types.SimpleNamespace(
                    log_prob=log_prob,
                    tokens=count,
                    bytes=count,
                    unconditional_log_prob=-5.0 * count if unconditional else math.nan,
                    token_greedy=(True,) * round(greedy * count) + (False,) * (count - round(greedy * count)),
                    dropped=max(0, len((context + continuation).encode()) - trained.config.model.max_len),
                )
            )
        return made

    monkeypatch.setattr(measure.scoring, "score", score)
    monkeypatch.setattr(measure.scoring, "choose", lambda trained, semantics: semantics or "causal")


def results(task, items, found):
    return {k: v["value"] for k, v in metrics.summarise(found.columns, measure.reported(task, items), 0).items()}


@pytest.mark.parametrize("name", ["next_sentence", "agreement", "capitalisation", "stereotype_pairs"])
def test_a_model_that_knows_the_choices_is_perfect(monkeypatch, name):
    task = tasks.load_builtin(name)
    items = tasks.make_items(task, 1, 30, 0, Library())
    right = {item.context + item.answers[item.right] for item in items}
    pretend(monkeypatch, lambda context, answer: (0.0, 1.0) if context + answer in right else (-1e4, 0.0))
    found = results(task, items, measure.measure(stand_in(), task, items))
    perfect = {"accuracy", "accuracy_per_token", "accuracy_per_byte", "accuracy_unconditional", "choice_probability"}
    assert all(found[k] == 1.0 for k in perfect & set(found))
    if name == "stereotype_pairs":
        assert found == {"preference": 1.0, "preference_margin": 1e4}
    else:
        assert found["brier"] == 0.0 and found["choice_log_probability"] == 0.0 and found["bits_per_byte"] == 0.0


def test_a_model_without_opinion_is_at_chance(monkeypatch):
    task = parse(CAPITALS.replace('"Paris", "Rome", "Lima"', '"Pari", "Rome", "Lima"').replace('"Paris"', '"Pari"'))
    items = tasks.make_items(task, 0, None, 0)
    pretend(monkeypatch, lambda context, answer: (-math.log(320) * len(answer.encode()), 0.0))
    measured = measure.measure(stand_in(), task, items)
    found = metrics.summarise(measured.columns, measure.reported(task, items), 0)
    for name, facts in found.items():
        if not math.isnan(facts["chance"]):
            assert facts["value"] == pytest.approx(facts["chance"]), name
    assert found["accuracy"]["value"] == pytest.approx(1 / 3)
    assert found["brier"]["value"] == pytest.approx(2 / 3)
    assert found["log_likelihood_per_token"]["value"] == pytest.approx(-math.log(320))
    assert found["bits_per_byte"]["value"] == pytest.approx(math.log2(320))


def test_preferring_one_pronoun_everywhere_is_no_preference(monkeypatch):
    task = tasks.load_builtin("stereotype_pairs")
    items = tasks.make_items(task, 0, 40, 0)
    pretend(monkeypatch, lambda context, answer: (-1.0 if " he " in f" {answer} " else -2.0, 0.0))
    found = results(task, items, measure.measure(stand_in(), task, items))
    assert found == {"preference": 0.5, "preference_margin": 0.0}


@pytest.mark.parametrize("name", ["addition_2", "unscramble", "induction", "cloze_last_word"])
def test_a_model_that_knows_the_answers_is_perfect(monkeypatch, name):
    task = tasks.load_builtin(name)
    items = tasks.make_items(task, 2, 20, 0, Library())
    answers = {item.context: item.answers[0] for item in items}
    pretend(monkeypatch, lambda context, answer: (0.0, 1.0))
    monkeypatch.setattr(measure, "_generate", lambda trained, task, items, *_: [answers[i.context] for i in items])
    found = results(task, items, measure.measure(stand_in(), task, items))
    assert found["greedy_match"] == found["token_accuracy"] == 1.0 and found["log_likelihood"] == 0.0
    assert found["context_gain"] == 5.0
    if task.kind == "generation":
        assert found["exact_match"] == 1.0 and found["edit_distance"] == 0.0


def test_hard_metrics_jump_where_smooth_ones_move(monkeypatch):
    """One wrong digit of each answer: no exact match, one edit in every answer, most tokens right."""
    task = tasks.load_builtin("addition_3")
    items = tasks.make_items(task, 0, 50, 0)
    pretend(monkeypatch, lambda context, answer: (-1.0, 2 / 3))
    wrong = [item.answers[0][:-1] + "x\n" for item in items]
    monkeypatch.setattr(measure, "_generate", lambda *_: wrong)
    found = results(task, items, measure.measure(stand_in(), task, items))
    assert found["exact_match"] == found["greedy_match"] == 0.0
    assert found["edit_distance"] == pytest.approx(np.mean([1 / len(item.answers[0]) for item in items]))
    assert 0.6 < found["token_accuracy"] < 0.8


def test_what_is_not_defined_says_why(monkeypatch):
    pretend(monkeypatch, lambda context, answer: (0.0, 1.0))
    addition, agreement = tasks.load_builtin("addition_1"), tasks.load_builtin("agreement")
    with pytest.raises(builtin.NotDefined, match="an encoder does not generate"):
        measure.measure(stand_in("encoder"), addition, tasks.make_items(addition, 0, 5, 0))
    with pytest.raises(builtin.NotDefined, match=r"5 of 5 prompts are longer than the model's context of 64"):
        measure.measure(stand_in(max_len=64), agreement, tasks.make_items(agreement, 4, 5, 0))
    with pytest.raises(builtin.NotDefined, match="an answer has .* tokens, the model's context of 16"):
        measure.measure(stand_in(max_len=16), agreement, tasks.make_items(agreement, 0, 5, 0))
    cloze = tasks.load_builtin("cloze_last_word")
    items = tasks.make_items(cloze, 0, 5, 0, Library())
    long = sum(len(item.context + item.answers[0]) > 64 for item in items)
    assert measure.measure(stand_in(max_len=64), cloze, items).truncated == long > 0
    with pytest.raises(builtin.NotDefined, match="longer than"):  # the shown example would be lost, unseen
        measure.measure(stand_in(max_len=64), cloze, tasks.make_items(cloze, 1, 5, 0, Library()))


def test_learned_positions_must_hold_the_answer_too():
    task = tasks.load_builtin("addition_2")  # "12+34=" and the prefix are 7 tokens, the answer has up to 8
    items = tasks.make_items(task, 0, 3, 0)
    measure._check_room(types.SimpleNamespace(max_len=14, **vars(stand_in())), task, items)
    with pytest.raises(builtin.NotDefined, match="need up to 15 tokens, the model has 13 learned positions"):
        measure._check_room(types.SimpleNamespace(max_len=13, **vars(stand_in())), task, items)
    measure._check_room(types.SimpleNamespace(max_len=0, **vars(stand_in())), task, items)


# -- Prompts


def test_k_shot_prompts_are_what_the_docs_say():
    task = parse(CAPITALS)
    one = tasks.make_items(task, 1, None, 0)
    assert [item.context for item in one] == [
        "Name the capital.\n\nPeru: Lima\nFrance:",
        "Name the capital.\n\nFrance: Paris\nPeru:",
    ]
    assert one[0].answers == (" Paris", " Rome", " Lima") and (one[0].right, one[1].right) == (0, 2)
    assert tasks.make_items(task, 0, None, 0)[0].context == "Name the capital.\n\nFrance:"


def test_shots_come_from_their_pool_and_are_never_the_item():
    task = parse(SUMS)
    seen = set()
    for seed in range(20):
        for item in tasks.make_items(task, 2, None, seed):
            question, shown = item.context.split("\n\n")[-1], item.context.split("\n\n")[:-1]
            assert len(set(shown)) == 2 and question not in {text.rpartition(" ")[0] for text in shown}
            seen.update(shown)
    assert seen == {"5 plus 5: 10", "6 plus 1: 7", "1 plus 2: 3"}, "the pool's equal of item 0 is shown to item 1 only"
    with pytest.raises(InputError, match="expected 3 examples to show, got 2 that are not the item itself"):
        tasks.make_items(task, 3, None, 0)


def test_more_shots_are_added_in_front():
    for name in ("addition_2", "reverse_letters"):
        task = tasks.load_builtin(name)
        few, more = (tasks.make_items(task, k, 5, 3) for k in (1, 3))
        assert all(b.context.endswith(task.separator + a.context) for a, b in zip(few, more, strict=True))


def test_templates_are_strict():
    assert tasks.fill("{a}+{b}={{{c}}}", {"a": 1, "b": "{a}", "c": 3}, "f") == "1+{a}={3}"
    with pytest.raises(InputError, match="f: no field 'anwser'; did you mean 'answer'"):
        tasks.fill("{anwser}", {"answer": 1}, "f")
    for bad in ("{a.b}", "{a[0]}", "{}", "{a!r}", "{a:>10}", "{0}", "a}", "{"):
        with pytest.raises(InputError, match="expected {field}"):
            tasks.fields_of(bad, "f", "prompt")


# -- Bad files

BAD = {
    "no toml": ("name = ", "not TOML"),
    "missing kind": ('name = "x"\nprompt = ""', "expected the key 'kind'"),
    "missing prompt": ('name = "x"\nkind = "cloze"', "expected the key 'prompt'"),
    "unknown key": (CAPITALS.replace("separator", "seperator"), "unknown key 'seperator'; did you mean 'separator'"),
    "unknown kind": (CAPITALS.replace('"choice"', '"choices"'), "kind: expected choice | cloze | generation"),
    "bad name": (CAPITALS.replace('"capitals"', '"../up"'), "name: expected letters"),
    "unknown field": (CAPITALS.replace("{country}:", "{contry}:"), "examples 1: no field 'contry'; did you mean"),
    "not a choice": (CAPITALS.replace('answer = "Lima"', 'answer = "Lime"'), "examples 2: the answer 'Lime' is not"),
    "no answer": (CAPITALS.replace('answer = "Lima"', ""), "examples 2: no field 'answer'"),
    "one choice": (CAPITALS.replace(', "Rome", "Lima"', ""), "choices: expected a list of two or more"),
    "same choices": (CAPITALS.replace('"Rome", "Lima"', '"Lima", "Lima"'), "choices: expected distinct texts"),
    "choices in cloze": (CAPITALS.replace('"choice"', '"cloze"'), "choices are for kind 'choice'"),
    "odd value": (CAPITALS.replace('"France"', "true"), "country: expected a text or a number, got True"),
    "no examples": (CAPITALS.partition("[[")[0], "expected [[examples]], examples_file or a generator, got none"),
    "both": (CAPITALS.replace('kind = "choice"', 'kind = "choice"\ngenerator = "agreement"'), "got both"),
    "answer in prompt": (CAPITALS.replace("{country}:", "{answer}"), "the prompt cannot show"),
    "no answer field": (CAPITALS.replace('" {answer}"', '" {country}"'), "expected a template with {answer}"),
    "empty answer": (SUMS.replace('" {answer}"', '"{answer}"').replace("answer = 3", 'answer = ""'), "is empty"),
    "unknown metric": (CAPITALS.replace("sep", 'metrics = ["acuracy"]\nsep'), "no metric 'acuracy'"),
    "other kind's metric": (CAPITALS.replace("sep", 'metrics = ["exact_match"]\nsep'), "of a choice task"),
    "metric twice": (CAPITALS.replace("sep", 'metrics = ["brier", "brier"]\nsep'), "metrics: expected distinct names"),
    "chance": (SUMS.replace("prompt", "chance = 2\nprompt", 1), "chance: expected a share"),
    "file that escapes": (
        SUMS.partition("[[")[0] + 'examples_file = "../x.jsonl"',
        "expected a .jsonl in the folder of the task file",
    ),
    "absolute file": (SUMS.partition("[[")[0] + 'examples_file = "/etc/x.jsonl"', "expected a .jsonl in the folder"),
    "no such file": (SUMS.partition("[[")[0] + 'examples_file = "x.jsonl"', "cannot read"),
    "unknown generator": ('name="x"\nkind="cloze"\nprompt=""\ngenerator="aditon"', "did you mean 'addition'"),
    "generator's field": ('name="x"\nkind="cloze"\nprompt="{c}"\ngenerator="addition"', "no field 'c'"),
    "generator's kind": ('name="x"\nkind="choice"\nprompt=""\ngenerator="addition"', "makes cloze or generation items"),
    "option": ('name="x"\nkind="cloze"\nprompt=""\ngenerator="addition"\n[options]\ndigit=2', "mean 'digits'"),
    "range": ('name="x"\nkind="cloze"\nprompt=""\ngenerator="addition"\n[options]\ndigits=0', "number 1 to 12, got 0"),
    "lone options": (CAPITALS + "\n[options]\na = 1", "apply to a generator"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_name(case, tmp_path):
    text, message = BAD[case]
    with pytest.raises(InputError) as caught:
        parse(text, tmp_path)
    assert message in str(caught.value) and str(caught.value).startswith("my.toml")


def test_links_out_of_the_folder_are_refused(tmp_path):
    outside, inside = tmp_path / "secret.jsonl", tmp_path / "tasks"
    outside.write_text('{"a": 1, "b": 1, "answer": 2}\n')
    inside.mkdir()
    (inside / "link.jsonl").symlink_to(outside)
    with pytest.raises(InputError, match="in the folder of the task file"):
        parse(SUMS.partition("[[")[0] + 'examples_file = "link.jsonl"', inside)


def test_examples_from_a_file(tmp_path):
    rows = [{"a": i, "b": 1, "answer": i + 1} for i in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.toml").write_text(SUMS.partition("[[")[0] + 'examples_file = "rows.jsonl"')
    task = tasks.load(tmp_path / "sums.toml")
    assert [item.context for item in tasks.make_items(task, 0, None, 0)] == [f"{i} plus 1:" for i in range(5)]
    chosen = tasks.make_items(task, 1, 3, 0)
    assert [i.index for i in chosen] == sorted(i.index for i in chosen) and len(chosen) == 3
    whole = {item.index: item for item in tasks.make_items(task, 1, None, 0)}
    assert all(item == whole[item.index] for item in chosen), "a limit changes no item"


def test_find_names_patterns_and_files(tmp_path):
    assert [t.name for t in tasks.find(["addition_*"])] == [f"addition_{d}" for d in (1, 2, 3, 4)]
    assert [t.name for t in tasks.find(["all"])] == tasks.builtin_names()
    assert len(tasks.find(["agreement", "agree*"])) == 1
    with pytest.raises(InputError, match="unknown task 'agrement'; did you mean 'agreement'"):
        tasks.find(["agrement"])
    (tmp_path / "a.toml").write_text(CAPITALS)
    (tmp_path / "b.toml").write_text(CAPITALS)
    (tmp_path / "c.toml").write_text(CAPITALS.replace('"capitals"', '"agreement"'))
    with pytest.raises(InputError, match="two tasks are called 'capitals'"):
        tasks.find([str(tmp_path / "a.toml"), str(tmp_path / "b.toml")])
    with pytest.raises(InputError, match="is a built-in task's"):
        tasks.find([str(tmp_path / "c.toml")])
    with pytest.raises(InputError, match="cannot read the task file"):
        tasks.find(["nowhere.toml"])


def test_the_hash_follows_the_meaning():
    task = parse(CAPITALS)
    assert parse(CAPITALS.replace("[[", 'description = "other words"\n[[', 1)).hash == task.hash
    assert parse(CAPITALS.replace("Rome", "Oslo")).hash != task.hash
    assert parse(CAPITALS.replace("Name", "Say")).hash != task.hash


# -- Generators


@pytest.mark.parametrize("name", tasks.builtin_names())
def test_built_in_items_are_pure_functions_of_seed_and_index(name):
    task = tasks.load_builtin(name)
    items = tasks.make_items(task, 2, 24, 7, Library())
    assert items == tasks.make_items(task, 2, 24, 7, Library())
    assert items[:9] == tasks.make_items(task, 2, 9, 7, Library()), "a limit changes no item"
    assert items != tasks.make_items(task, 2, 24, 8, Library())
    assert len({(i.context.rpartition(task.separator)[2], i.answers[i.right]) for i in items}) == len(items) == 24
    for item in items:
        right = item.answers[item.right]
        assert f"{item.context.rpartition(task.separator)[2]}{right}" not in item.context.split(task.separator)[:-1]
        assert (len(item.answers) > 1) == (task.kind == "choice")
        assert len(set(item.answers)) == len(item.answers)
    if task.kind == "choice":
        places = collections.Counter(item.right for item in tasks.make_items(task, 0, 60, 7, Library()))
        assert len(places) == len(items[0].answers), "the right one is in every place"


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_sums_are_right(digits):
    items = tasks.make_items(tasks.load_builtin(f"addition_{digits}"), 1, 200, 0)
    assert len(items) == (100 if digits == 1 else 200), "there are only 100 pairs of digits"
    for item in items:
        shown, question = item.context.split("\n")
        a, b = question.removesuffix("=").split("+")
        assert len(a) == len(b) == digits and item.answers == (str(int(a) + int(b)),)
        left, _, total = shown.partition("=")
        assert sum(map(int, left.split("+"))) == int(total) and left != f"{a}+{b}"


def test_chance_is_the_best_constant_answer():
    """One of all sums, as it was, is less: "9" is right for 10 of the 100 pairs of one digit."""
    for digits, low, high in ((1, 0, 10), (2, 10, 100)):
        sums = collections.Counter(a + b for a in range(low, high) for b in range(low, high))
        best = max(sums.values()) / sums.total()
        assert tasks.load_builtin(f"addition_{digits}").guess == pytest.approx(best)
    assert tasks.load_builtin("modular_addition").guess == 1 / 97


def test_a_kind_that_runs_out_does_not_end_the_others():
    """--limit 1000 used to give 218 items: there are no more different ones about the word I."""
    items = tasks.make_items(tasks.load_builtin("capitalisation"), 0, 1000, 0)
    kinds = collections.Counter(item.index % 3 for item in items)
    assert len(items) > 600 and kinds[0] > 300 and max(item.index for item in items) > 990
    assert items[:9] == tasks.make_items(tasks.load_builtin("capitalisation"), 0, 9, 0)


class Sums(Library):
    """A corpus whose training text has the sums that `has` says."""

    def __init__(self, has):
        self.has = has

    def was_trained_on(self, text):
        a, b = text.partition("=")[0].split("+")
        return self.has(int(a), int(b))


def test_generated_items_are_not_those_of_the_training_text():
    task = tasks.load_builtin("addition_2")
    items = tasks.make_items(task, 0, 150, 0, Sums(lambda a, b: a % 2 == 0))
    assert len(items) == 150 and not any(item.seen for item in items)
    assert all(int(item.context.partition("+")[0]) % 2 for item in items)
    assert items[:120] == tasks.make_items(task, 0, 120, 0, Sums(lambda a, b: a % 2 == 0)), "a limit changes no item"


def test_where_too_few_items_are_unseen_all_are_asked_and_marked():
    task = tasks.load_builtin("addition_2")
    few = Sums(lambda a, b: (a, b) != (12, 34))
    items = tasks.make_items(task, 0, 150, 0, few)
    assert len(items) == 150 and sum(item.seen for item in items) >= 149
    assert [(i.index, i.context) for i in items] == [(i.index, i.context) for i in tasks.make_items(task, 0, 150, 0)]
    assert all(item.seen is None for item in tasks.make_items(task, 0, 5, 0))


def test_modular_sums_are_right():
    for item in tasks.make_items(tasks.load_builtin("modular_addition"), 0, 100, 0):
        a, b = item.context.removesuffix(" mod 97=").split("+")
        assert item.answers == (str((int(a) + int(b)) % 97),)


def closing(text):
    """The brackets that close those still open; None if one closes another kind."""
    stack = []
    for one in text:
        if one in "([{<":
            stack.append(")]}>"["([{<".index(one)])
        elif not stack or stack.pop() != one:
            return None
    return "".join(reversed(stack))


@pytest.mark.parametrize(
    ("generator", "options", "right"),
    [
        ("mirror", {"length": 5}, lambda f: f["sequence"][::-1]),
        ("sort", {"length": 5}, lambda f: "".join(sorted(set(f["sequence"])))),
        ("recall", {"pairs": 3, "length": 2}, lambda f: {p[0]: p[1:] for p in f["pairs"].split(" ")}[f["key"]]),
        ("brackets", {"open": 3, "closed": 2}, lambda f: closing(f["opened"])),
    ],
)
def test_answers_of_generators_are_right(generator, options, right):
    made = builtin.GENERATORS[generator]
    for index in range(100):
        fields = made.make(builtin.Draw(np.random.default_rng(index), options, index, "validation", None))
        if fields is not None:  # a palindrome, letters in order, a bracket closed before it is opened
            assert set(fields) == set(made.fields) and fields["answer"] == right(fields)
            assert len(fields["answer"]) == options.get("open", options.get("length"))


def test_a_guess_of_brackets_is_right_as_often_as_stated():
    """Every sequence of closing brackets is equally likely: one of 4^2."""
    made, options = builtin.GENERATORS["brackets"], {"open": 2, "closed": 0}
    rng = np.random.default_rng(0)
    answers = [made.make(builtin.Draw(rng, options, 0, "validation", None))["answer"] for _ in range(3200)]
    counted = collections.Counter(answers)
    assert len(counted) == 16 and made.chance(options) == 1 / 16
    assert max(counted.values()) / 3200 == pytest.approx(1 / 16, rel=0.25)


def test_words_are_scrambled_and_reversed():
    for item in tasks.make_items(tasks.load_builtin("unscramble"), 0, 200, 0):
        letters = item.context.removeprefix("Letters: ").removesuffix("\nWord:").split(" ")
        word = item.answers[0].strip()
        assert sorted(letters) == sorted(word) and "".join(letters) != word and word in vocabulary.WORDS
    for item in tasks.make_items(tasks.load_builtin("reverse_letters"), 0, 200, 0):
        word = item.context.removeprefix("Word: ").removesuffix("\nReversed:")
        assert item.answers == (f" {word[::-1]}",) and word != word[::-1]
    by_letters = collections.Counter("".join(sorted(word)) for word in vocabulary.WORDS)
    assert max(by_letters.values()) == 1 and len(vocabulary.WORDS) >= 200


def test_induction_repeats_the_context():
    for item in tasks.make_items(tasks.load_builtin("induction"), 0, 50, 0):
        assert item.answers == (item.context,) and len(item.context) == 16 and item.context.islower()


@pytest.mark.parametrize("name", ["capitalisation", "agreement", "stereotype_pairs"])
def test_pairs_differ_in_exactly_one_word(name):
    items = tasks.make_items(tasks.load_builtin(name), 0, 200, 0)
    assert len(items) == 200
    for item in items:
        first, second = (answer.split(" ") for answer in item.answers)
        assert sum(a != b for a, b in zip(first, second, strict=True)) == 1
        assert item.context == ""


def test_pairs_have_the_right_one_marked():
    plurals = dict(vocabulary.NOUNS)
    for item in tasks.make_items(tasks.load_builtin("agreement"), 0, 100, 0):
        words = item.answers[item.right].rstrip(".").split(" ")
        plural = words[2] in plurals.values()
        assert plural == (item.index % 2 == 1) and (words[5] in plurals.values()) != plural
        assert words[6] in [verb[plural] for verb in vocabulary.VERBS]
    for item in tasks.make_items(tasks.load_builtin("capitalisation"), 0, 100, 0):
        right, wrong = item.answers[item.right], item.answers[1 - item.right]
        assert right.lower() == wrong.lower() and sum(map(str.isupper, right)) == sum(map(str.isupper, wrong)) + 1
    for item in tasks.make_items(tasks.load_builtin("stereotype_pairs"), 0, 100, 0):
        words = set(item.answers[item.right].rstrip(".").replace(",", "").split(" "))
        group = item.index % 2
        assert words & {*vocabulary.OCCUPATIONS[group], *vocabulary.PASTIMES[group]}
        assert ("she", "he")[group] in words


def test_text_items_come_from_the_right_split_and_document():
    for item in tasks.make_items(tasks.load_builtin("next_sentence"), 1, 30, 0, Library()):
        shown, _, question = item.context.rpartition("\n\n")
        assert "train document" in shown and "validation" not in shown
        number = question.partition("document ")[2].partition(" ")[0]
        texts = [answer.strip() for answer in item.answers]
        assert [f"document {number} " in text for text in texts] == [i == item.right for i in range(4)]
        assert all(len(answer.encode()) <= 41 and answer[0] == " " for answer in item.answers)
        assert len(question.encode()) <= 96
    for item in tasks.make_items(tasks.load_builtin("cloze_last_word"), 0, 30, 0, Library()):
        assert item.answers == (" inside",) and item.context[-1] in "abcdefgh" and len(item.context) <= 96
        words = set(" ".join(Library().draw(np.random.default_rng(i), "validation")[1] for i in range(40)).split(" "))
        assert item.context.split(" ")[0] in words, "cut between words"


def test_too_few_documents_give_no_distractors():
    with pytest.raises(builtin.NotDefined, match="no item of task next_sentence .*: 1 validation documents"):
        tasks.make_items(tasks.load_builtin("next_sentence"), 0, 5, 0, Library(documents=1))


def test_texts_are_cut_between_words_and_characters():
    assert builtin._tail("one two three", 9) == "two three" and builtin._tail("one two three", 8) == "three"
    assert builtin._head("one two three", 9) == "one two" and builtin._head("one two three", 7) == "one two"
    assert builtin._tail("a ‘quote’ é", 12) == "é" and builtin._head("éé é", 3) == ""

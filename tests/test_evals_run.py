"""lmjax eval: the tidy table, resuming, and results that depend on nothing but model, task and seed.

Runs are made without training: a resolved config, random parameters saved as its checkpoints, records as train writes
them.
"""

import dataclasses
import json
import math
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from lmjax import cli, run_record, trained
from lmjax.cli.models import show_evaluations
from lmjax.errors import InputError
from lmjax.evals import documents, measure, perplexity, run, score, table, tasks
from lmjax.resolve import resolve
from tests.conftest import small
from tests.random_runs import write_run

NAMES = ["cloze_last_word", "next_sentence", "agreement"]


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A small corpus: 80 documents of sentences."""
    rng = np.random.default_rng(0)
    words = "the old king saw a small dog near some house and then went home with his good friend to eat bread".split()

    def sentence():
        return " ".join(rng.choice(words, size=rng.integers(5, 12))).capitalize() + "."

    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    documents = [" ".join(sentence() for _ in range(8)) for _ in range(80)]
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return f"files:{path}"


def make_run(folder, source, family="decoder", steps=(3, 6), status="done", **overrides):
    """Writes a run on a text that looks trained; its folder is named after its run id."""
    data = {"data__sources": (source,), "data__seq_len": 64, "data__validation_fraction": 0.3, **overrides}
    return write_run(folder / resolve(small(family, **data)).run_id, family, steps, status, **data)


@pytest.fixture(scope="session")
def sweep(tmp_path_factory, text):
    """A done decoder, encoder and encoder-decoder, a diverged decoder, and one that never began."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, text)
    make_run(folder, text, "encoder")
    make_run(folder, text, "encoder_decoder")
    make_run(folder, text, steps=(3,), status="diverged", train__seed=1)
    make_run(folder, text, steps=(), status="pending", train__seed=2)
    return folder


@pytest.fixture
def two(tmp_path, text):
    """A decoder with two checkpoints, to be evaluated by a stand-in."""
    return make_run(tmp_path / "runs", text)


@pytest.fixture
def counted(monkeypatch):
    """A stand-in for the model: equal scores for all, and a list of what it was asked."""
    asked = []

    def fake(model, pairs, semantics="", batch_size=16, unconditional=True):
        asked.append((model.step, len(pairs)))
        return [
            types.SimpleNamespace(
                log_prob=-2.0 * len(answer.encode()),
                tokens=len(answer.encode()),
                bytes=len(answer.encode()),
                unconditional_log_prob=-3.0 * len(answer.encode()),
                token_greedy=(False,) * len(answer.encode()),
                dropped=0,
            )
            for _, answer in pairs
        ]

    monkeypatch.setattr(score, "score", fake)
    monkeypatch.setattr(measure, "_generate", lambda model, task, items, *_: ["?"] * len(items))
    return asked


def files(run_dir):
    return sorted(path.name for path in (run_dir / "evaluations").iterdir())


# -- Items and the training text


def test_items_of_the_training_text_are_found_and_reported_apart(tmp_path, counted, capsys):
    """The addition experiment was tested on sums it was trained on: 98 % of those of two digits."""
    rng = np.random.default_rng(0)
    pairs = [(a, b) for a in range(10) for b in range(10)]
    sums = [f"{a}+{b}={a + b}" for a, b in pairs if (a * 10 + b) % 5] * 3
    long = ["\n".join(f"{a}+{b}={a + b}" for a, b in rng.integers(10, 100, (40, 2))) for _ in range(60)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*sums, *long]))
    run_dir = make_run(tmp_path / "runs", f"files:{path}", steps=(6,))
    text = documents.corpus_of(trained.load(run_dir).config, json.loads((run_dir / "config.json").read_text()))
    store = text.stores[0]
    tokens, bounds = store.tokens("train"), store.offsets("train")
    trained_on = [text.tokenizer.decode(tokens[a + 1 : b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    lines = {line for document in trained_on for line in document.split("\n")}
    for question in [*sums[:80], "12+34=46", "0+0=0", *long[0].split("\n")]:
        assert text.was_trained_on(question) == (question in lines), question
    assert text.was_trained_on(long[0]) == (long[0] in trained_on)
    made = run.evaluate(run_dir, ["addition_1", "addition_2"], limit=20)
    ones, twos = (made[made.task == f"addition_{digits}"] for digits in (1, 2))
    assert (ones.n == 20).all() and (ones.seen == 0).all() and ones.value_seen.isna().all()
    assert (twos.seen == 0).all()
    made = run.evaluate(run_dir, ["addition_1"], limit=100)
    assert (made.n == 100).all() and made.seen.between(0.4, 0.75).all()
    likelihood = made[made.metric == "log_likelihood"].iloc[0]
    parts = likelihood.seen * likelihood.value_seen + (1 - likelihood.seen) * likelihood.value_unseen
    assert parts == pytest.approx(likelihood.value)
    capsys.readouterr()
    show_evaluations(made)
    said = f"addition_1: {round(likelihood.seen * 100)} of 100 items are in the training text"
    assert said in capsys.readouterr().out


# -- The table


def test_the_table_of_a_sweep(sweep, capsys, tmp_path):
    names = ["cloze_last_word", "agreement"]
    made = run.evaluate(sweep, names, limit=4, steps="all", out=tmp_path / "table.csv")
    assert list(made.columns) == list(table.COLUMNS)
    done = made[made.status == "done"]
    assert set(zip(done.family, done.semantics, strict=True)) == {
        ("decoder", "causal"),
        ("encoder", "pseudo"),
        ("encoder_decoder", "infilling"),
    }
    expected = sum(len(measure.reported(t, tasks.make_items(t, 0, 2, 0, _Library()))) for t in tasks.find(names))
    assert len(done) == 3 * 2 * expected, "a row per run, step, task and metric"
    assert not done.duplicated(["run_id", "step", "task", "shots", "metric"]).any()
    listed = made[made.status == "not_evaluated"]
    assert sorted(listed.reason) == ["the run is diverged, at step 3", "the run is pending and has no checkpoint"]
    assert listed.value.isna().all() and list(listed.n_total) == [done.n_total.iloc[0]] * 2
    for _, row in done.iterrows():
        record = json.loads((sweep / row.run_id / "config.json").read_text())["derived"]
        share = row.step / record["steps"]
        assert row.tokens == pytest.approx(share * record["tokens"], abs=1)
        assert row.flops_exact == pytest.approx(share * record["flops_exact"])
        assert row.flops_6nd == pytest.approx(share * record["flops_6nd"], rel=1e-3)
        assert (row.loss, row.schedule_complete) == ((4.5, True) if row.step == 6 else (5.3, False))
        assert row.n == 4 and row.resolution == 0.25
    agreement = done[(done.task == "agreement") & (done.metric == "accuracy")]
    assert set(agreement.chance) == {0.5} and agreement.standard_error.between(0, 0.3).all()
    pandas.testing.assert_frame_equal(
        pandas.read_csv(tmp_path / "table.csv").fillna({"reason": "", "metric": "", "task": ""})[["task", "value"]],
        made[["task", "value"]],
    )
    show_evaluations(made)
    shown = capsys.readouterr()
    assert "not evaluated: the run is diverged" in shown.out and "evaluation 12/12" in shown.err


class _Library:
    def was_trained_on(self, text):
        return False

    def draw(self, rng, split):
        number = int(rng.integers(9))
        return (0, number), f"One sentence of document {number} is here. Another sentence of {number} is there."


def test_every_checkpoint_has_a_validation_loss(tmp_path, text, counted):
    """With --steps all, 24 of 33 rows had none: training evaluates the last step only unless it is asked for more."""
    run_dir = make_run(tmp_path / "runs", text, data__mode="pack")
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": 3, "loss": 5.0}) + "\n")
    for _ in range(2):  # the second time from what the first one kept
        made = run.evaluate(run_dir, ["agreement"], limit=3, steps="all")
        before, last = made[made.step == 3], made[made.step == 6]
        expected = perplexity.evaluate(trained.load(run_dir, 3), bins=0)
        assert before.loss.to_numpy() == pytest.approx(expected["loss"], rel=1e-5) and set(last.loss) == {4.5}
        assert before.bits_per_byte.to_numpy() == pytest.approx(expected["bits_per_byte"], rel=1e-5)
    losses = json.loads((run_dir / table.VALIDATION_LOSSES).read_text())
    losses["3"] |= {"checkpoint": "another", "loss": 99.0}
    (run_dir / table.VALIDATION_LOSSES).write_text(json.dumps(losses))
    made = run.evaluate(run_dir, ["agreement"], limit=3, steps="all")
    assert made.loss.max() < 10


def test_unfinished_runs_are_evaluated_when_asked(sweep, counted):
    made = run.evaluate(sweep, ["agreement"], limit=3, unfinished=True)
    rows = made[made.run_status == "diverged"]
    assert set(rows.status) == {"done"} and not rows.schedule_complete.any() and set(rows.step) == {3}
    assert list(made[made.run_status == "pending"].status) == ["not_evaluated"]
    (diverged,) = {row.run_dir for row in rows.itertuples()}
    alone = run.evaluate(diverged, ["agreement"], limit=3)
    assert set(alone.status) == {"done"}, "a run that is named itself is evaluated"


def test_generation_on_an_encoder_is_refused_or_listed(sweep, counted):
    (encoder,) = sweep.glob("encoder-*")
    with pytest.raises(InputError, match="addition_1: an encoder does not generate"):
        run.evaluate(encoder, ["addition_1"], limit=3)
    made = run.evaluate(encoder, ["addition_1", "agreement"], limit=3)
    assert list(made[made.task == "addition_1"].status) == ["not_defined"]
    assert "does not generate" in made[made.task == "addition_1"].reason.iloc[0]
    filled = run.evaluate(encoder, ["addition_1", "perplexity"], limit=3, semantics="masked").set_index("metric")
    assert filled.loc["exact_match", "status"] == "done" and filled.loc["exact_match", "semantics"] == "masked"
    assert "not of a document" in filled.loc[filled.task == "perplexity", "reason"].iloc[0]
    assert set(made[made.task == "agreement"].status) == {"done"}
    mixed = run.evaluate(sweep, ["addition_1"], limit=3)
    assert dict(zip(mixed.family, mixed.status, strict=False))["encoder"] == "not_defined"
    assert {"decoder", "encoder_decoder"} <= set(mixed[mixed.metric == "exact_match"].family)


def test_a_task_without_meaning_for_the_corpus_is_listed(tmp_path, counted):
    run_dir = make_run(tmp_path, "markov2:20000", steps=(6,))
    made = run.evaluate(run_dir, ["cloze_last_word", "agreement"], limit=3)
    assert "made of random ids" in made[made.status == "not_defined"].reason.iloc[0]
    with pytest.raises(InputError, match="made of random ids"):
        run.evaluate(run_dir, ["cloze_last_word"], limit=3)


def test_prompts_beyond_the_context_are_listed(two, counted, monkeypatch):
    fake = score.score
    monkeypatch.setattr(
        score,
        "score",
        lambda model, pairs, *a, **k: [
            types.SimpleNamespace(**{**vars(s), "dropped": max(0, len(context) - 60)})
            for s, (context, _) in zip(fake(model, pairs, *a, **k), pairs, strict=True)
        ],
    )
    made = run.evaluate(two, ["agreement"], shots=(0, 3), limit=3)
    assert set(made[made.shots == 0].status) == {"done"}
    assert "3 of 3 prompts are longer than the model's context of 64" in made[made.shots == 3].reason.iloc[0]
    calls = len(counted)
    run.evaluate(two, ["agreement"], shots=(0, 3), limit=3)
    assert len(counted) == calls, "that is a result, too"


def test_an_imported_run_has_no_corpus_and_no_costs(tmp_path, two, counted):
    model = trained.load(two)
    imported = tmp_path / "imported"
    imported.mkdir()
    facts = {"imported_from": "elsewhere"}
    trained.write_imported(imported, model.config.model.to_dict(), "causal_lm", model.tokenizer, model.params, facts)
    made = run.evaluate(imported, ["agreement", "cloze_last_word", "perplexity"], limit=3)
    assert set(made[made.task == "agreement"].status) == {"done"}
    listed = made[made.task != "agreement"]
    assert set(listed.status) == {"not_defined"}
    assert listed.reason.str.startswith("an imported run has no corpus").all()
    assert made[["tokens", "flops_exact", "flops_6nd", "loss"]].isna().all(axis=None)
    assert set(made.run_id) == {"imported"} and set(made.n_total) == {model.record["derived"]["n_total"]}


# -- Resuming


def test_what_is_evaluated_is_never_evaluated_again(two, counted, tmp_path):
    first = run.evaluate(two, NAMES, shots=(0, 1), limit=5, steps="all", out=tmp_path / "a.csv")
    calls, names = len(counted), files(two)
    assert calls == len(names) == len(NAMES) * 2 * 2
    stamps = {name: (two / "evaluations" / name).stat().st_mtime_ns for name in names}
    again = run.evaluate(two, NAMES, shots=(0, 1), limit=5, steps="all", batch_size=3, out=tmp_path / "b.parquet")
    assert len(counted) == calls and files(two) == names
    assert stamps == {name: (two / "evaluations" / name).stat().st_mtime_ns for name in names}
    pandas.testing.assert_frame_equal(first, again)
    assert pandas.read_parquet(tmp_path / "b.parquet").equals(again)
    run.evaluate(two, NAMES, shots=(0,), limit=6)
    assert len(counted) == calls + len(NAMES), "another limit is another evaluation"


def test_a_kill_loses_one_evaluation_at_most(two, counted, monkeypatch):
    fake = score.score

    def killed(*arguments, **options):
        if len(counted) == 2:
            raise KeyboardInterrupt
        return fake(*arguments, **options)

    monkeypatch.setattr(score, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(two, NAMES, limit=5)
    assert len(files(two)) == 2 and not (two / "evaluations.csv").exists()
    monkeypatch.setattr(score, "score", fake)
    made = run.evaluate(two, NAMES, limit=5)
    assert len(counted) == 3 and len(files(two)) == 3 and set(made.task) == set(NAMES)
    assert not [name for name in files(two) if name.startswith(".")]


def test_a_changed_task_file_or_checkpoint_is_evaluated_again(two, counted, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('name="my"\nkind="cloze"\nprompt="{q}"\n[[examples]]\nq="Once upon a"\nanswer=" time"\n')
    run.evaluate(two, [str(path)])
    path.write_text(path.read_text().replace("Once", "Twice"))
    assert run.evaluate(two, [str(path)]).task_hash.nunique() == 1
    assert len(counted) == 2 and len(files(two)) == 2
    metadata = two / "checkpoints" / "6" / "record" / "metadata"
    metadata.write_text(metadata.read_text().replace("}", " }"))
    run.evaluate(two, [str(path)])
    assert len(counted) == 3


def test_a_corrupt_result_is_named(two, counted):
    run.evaluate(two, ["agreement"], limit=3)
    path = two / "evaluations" / files(two)[0]
    path.write_text("{")
    with pytest.raises(InputError, match=f"{path.name} is corrupt"):
        run.evaluate(two, ["agreement"], limit=3)


def test_the_table_keeps_what_was_evaluated_before(two, counted, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('name="my"\nkind="cloze"\nprompt="{q}"\n[[examples]]\nq="Once upon a"\nanswer=" time"\n')
    first = run.evaluate(two, ["agreement", str(path)], limit=1, steps="all")
    second = run.evaluate(two, ["capitalisation"], limit=3)
    assert set(second.task) == {"capitalisation"}, "what was asked"
    kept = pandas.read_csv(two / "evaluations.csv")
    assert set(kept.task) == {"agreement", "my", "capitalisation"} and len(kept) == len(first) + len(second)
    run.evaluate(two, ["capitalisation"], limit=3, out=tmp_path / "own.csv")
    assert set(pandas.read_csv(tmp_path / "own.csv").task) == {"capitalisation"}
    path.write_text(path.read_text().replace("Once", "Twice"))
    run.evaluate(two, [str(path)])
    again = pandas.read_csv(two / "evaluations.csv")
    assert again[again.task == "my"].task_hash.nunique() == 1, "an older task file's results are not the task's"
    metadata = two / "checkpoints" / "3" / "record" / "metadata"
    metadata.write_text(metadata.read_text().replace("}", " }"))
    run.evaluate(two, ["capitalisation"], limit=3)
    assert set(pandas.read_csv(two / "evaluations.csv").step) == {6}, "step 3 is another checkpoint now"
    (saved,) = (two / "evaluations").glob("capitalisation-*.json")
    run_record.write_json(saved, {**run_record.read_json(saved), "frame": "objective"})
    run.evaluate(two, ["agreement"], limit=1)
    assert "capitalisation" not in set(pandas.read_csv(two / "evaluations.csv").task), "with other ids around its texts"


# -- Runs that cannot be evaluated


def with_record(source, target, change):
    """A copy of a run with another config.json."""
    shutil.copytree(source, target)
    record = run_record.read_json(source / "config.json")
    change(record)
    run_record.write_json(target / "config.json", record)


def test_one_unusable_run_does_not_cost_the_table(two, counted, capsys):
    folder = two.parent
    with_record(two, folder / "no_tokenizer", lambda record: record["data"].pop("tokenizer"))
    with_record(two, folder / "discriminator", lambda record: record["config"]["model"].update(head="discriminator"))
    (folder / "hugging_face").mkdir()
    (folder / "hugging_face" / "config.json").write_text('{"model_type": "gpt2"}')
    made = run.evaluate(folder, ["agreement", "perplexity"], limit=3, steps="all", text_source="zipf:20000")
    reasons = made[made.status == "not_defined"].groupby("run_dir").reason.unique()
    assert [len(found) for found in reasons] == [1, 1]
    assert "real from replaced" in reasons[str(folder / "discriminator")][0]
    assert "has no tokenizer" in reasons[str(folder / "no_tokenizer")][0]
    assert set(made[made.run_dir == str(two)].status) == {"done"}
    assert "skipped: " in (said := capsys.readouterr()).err and "lmjax import" in said.err
    with pytest.raises(InputError, match="is not a run: its config.json has no 'config'"):
        run.evaluate(folder / "hugging_face", ["agreement"])
    with pytest.raises(InputError, match="semantics 'pseudo': a model of family 'decoder' has causal"):
        run.evaluate(two, ["agreement"], limit=2, semantics="pseudo")


def test_what_fails_for_one_checkpoint_is_a_row_and_is_tried_again(two, counted, monkeypatch, capsys):
    shutil.copytree(two, two.parent / "other")
    fake = score.score

    def fails(model, *arguments, **options):
        if model.run_dir == two:
            raise InputError("the numbers are not finite; did its training diverge?")
        return fake(model, *arguments, **options)

    monkeypatch.setattr(score, "score", fails)
    made = run.evaluate(two.parent, ["agreement", "capitalisation"], limit=3)
    failed = made[made.run_dir == str(two)]
    assert set(failed.status) == {"not_evaluated"} and len(failed) == 2 and failed.value.isna().all()
    assert set(made[made.run_dir != str(two)].status) == {"done"} and not (two / "evaluations").exists()
    show_evaluations(made)
    shown = capsys.readouterr().out
    reason = f"{two.name}: not evaluated: the numbers are not finite; did its training diverge?"
    assert f"{reason}: agreement (0-shot), capitalisation (0-shot)" in shown, "one line for a reason"
    with pytest.raises(InputError, match="not finite"):
        run.evaluate(two, ["agreement"], limit=3)
    monkeypatch.setattr(score, "score", fake)
    assert set(run.evaluate(two, ["agreement"], limit=3).status) == {"done"}


def test_a_diverged_model_gives_no_numbers(two):
    model = trained.load(two)
    broken = jax.tree.map(lambda x: x * jnp.nan, model.params)
    with pytest.raises(InputError, match="not finite; did its training diverge"):
        score.score(dataclasses.replace(model, params=broken), [("a", "b")])


# -- Items


def test_items_are_kept_and_give_the_metrics_back(two, counted):
    made = run.evaluate(two, [*NAMES, "addition_2"], limit=7)
    items = table.read_items(two.parent)
    by = items.groupby(["task", "metric"])
    values = by.numerator.sum() / by.denominator.sum()
    for row in made.itertuples():
        assert values[row.task, row.metric] == pytest.approx(row.value), (row.task, row.metric)
    assert set(by.size()) == {7}
    (path,) = (two / "evaluations").glob("addition_2-*")
    kept = json.loads(path.read_text())["items"]
    assert kept["generated"] == ["?"] * 7 and len(kept["answer"]) == len(kept["log_prob"]) == 7
    shutil.copytree(two, two.parent / "imported")
    (two.parent / "imported" / "summary.json").unlink()  # an import has none, and its record's run_id is no name
    both = table.read_items(two.parent)
    assert set(zip(both.run_id, both.run_dir, strict=True)) == {
        (two.name, str(two)),
        ("imported", str(two.parent / "imported")),
    }
    with pytest.raises(InputError, match="no evaluations of items"):
        table.read_items(two.parent / "elsewhere")


# -- Real models


@pytest.mark.parametrize("family", ["decoder", "encoder", "encoder_decoder"])
def test_results_do_not_depend_on_the_batch_size(sweep, tmp_path, family):
    (run_dir,) = (path for path in sweep.glob(f"{family}-*") if (path / "summary.json").exists())
    model, found = trained.load(run_dir), []
    items = run._Items(limit=5, seed=0)
    task = tasks.load_builtin("next_sentence")
    for batch_size in (1, 8):
        found.append(measure.measure(model, task, items.of(task, 0, model), batch_size))
    for other in found[1:]:
        assert other.texts == found[0].texts and other.semantics == found[0].semantics
        for name, column in found[0].columns.items():
            np.testing.assert_allclose(other.columns[name], column, rtol=1e-5, atol=1e-5, err_msg=name)
    first, *rest = (found[0].columns["log_prob"][i : i + 1] for i in range(5))
    assert not any(np.allclose(first, other) for other in rest), "the items differ"


@pytest.mark.parametrize("family", ["decoder", "encoder_decoder"])
def test_what_a_model_writes_is_what_it_finds_most_probable(sweep, family):
    """Answers that the model wrote itself are all exact and all greedy. Long embeddings make it write letters."""
    (run_dir,) = (path for path in sweep.glob(f"{family}-*") if (path / "summary.json").exists())
    model = trained.load(run_dir)
    table_VE = model.params["embedding"]["embedding"]
    longer_VE = table_VE.at[97:123].multiply(20.0)
    model = dataclasses.replace(
        model, params={**model.params, "embedding": {**model.params["embedding"], "embedding": longer_VE}}
    )
    head = 'name = "echo"\nkind = "generation"\nprompt = "{q}"\nmax_new_tokens = 4\n'
    questions = ["To be", "or not", "that is", "the king"]
    task = tasks.parse(head + "".join(f'[[examples]]\nq = "{q}"\nanswer = "?"\n' for q in questions), "", None)
    items = tasks.make_items(task, 0, None, 0)
    first = measure.measure(model, task, items)
    written = first.texts["generated"]
    assert all(len(text) == 4 and text.isalpha() for text in written) and first.columns["exact"].sum() == 0
    assert first.semantics == {"decoder": "causal", "encoder_decoder": "infilling"}[family]
    items = [dataclasses.replace(item, answers=(text,)) for item, text in zip(items, written, strict=True)]
    again = measure.measure(model, task, items, batch_size=3)
    assert again.texts["generated"] == written and again.columns["exact"].all()
    assert np.array_equal(again.columns["greedy_tokens"], again.columns["tokens"])


def test_perplexity_is_asked_for_like_a_task(sweep):
    made = run.evaluate(sweep, ["perplexity"], shots=(0, 2))
    done = made[made.status == "done"]
    assert set(done.task) == {"perplexity"} and set(done.shots) == {0}
    loss = done[done.metric == "loss"].set_index("family").value
    assert set(loss.index) == {"decoder", "encoder", "encoder_decoder"}
    assert loss.between(math.log(320) - 0.5, math.log(320) + 0.5).all(), "untrained"
    decoder = done[done.family == "decoder"].set_index("metric").value
    assert decoder["bits_per_byte"] == pytest.approx(decoder["loss"] / math.log(2), rel=0.05)
    assert set(done[done.family == "encoder"].metric) == {"loss", "pseudo_perplexity"}


def test_perplexity_of_a_source_with_a_stride(two, tmp_path, text):
    """An imported run has no documents of its own, but a perplexity on named ones; a changed text is another one."""
    model, imported = trained.load(two), tmp_path / "imported"
    imported.mkdir()
    trained.write_imported(imported, model.config.model.to_dict(), "causal_lm", model.tokenizer, model.params, {})
    (tmp_path / "a.txt").write_text("To be or not to be, that is the question. " * 5)
    (tmp_path / "b.txt").write_text("The old king saw a small dog near some house. " * 5)
    source = f"files:{tmp_path}/*.txt"
    made = run.evaluate(imported, ["perplexity"], text_source=source, stride=16)
    assert set(made.status) == {"done"} and set(made.text_source) == {source} and set(made.stride) == {16}
    expected = perplexity.evaluate(model, source, stride=16)
    value = made.set_index("metric").value
    assert value["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    run.evaluate(imported, ["perplexity"], text_source=source)
    run.evaluate(imported, ["perplexity"], text_source=source)
    assert len(files(imported)) == 2
    (tmp_path / "b.txt").write_text("Another text. " * 9)
    run.evaluate(imported, ["perplexity"], text_source=source)
    assert len(files(imported)) == 3
    with pytest.raises(InputError, match="need the task perplexity"):
        run.evaluate(two, ["agreement"], text_source=source)


def test_perplexity_has_the_semantics_that_are_asked(sweep):
    (run_dir,) = sweep.glob("encoder_decoder-*")
    made = run.evaluate(run_dir, ["perplexity"], semantics="conditional")
    assert set(made.semantics) == {"conditional"}


# -- The command, the figure, bad input


def test_the_terminal_shows_whole_numbers_in_80_columns(two, counted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made = run.evaluate(two, ["all"], shots=(0, 1), limit=3)
    assert {"perplexity", "agreement", "addition_1"} <= set(made.task), "all is all"
    capsys.readouterr()
    show_evaluations(made)
    shown = capsys.readouterr().out.splitlines()
    rows = [line for line in shown if line.startswith(tuple(tasks.builtin_names()))]
    assert max(map(len, rows)) <= 80 and not any("…" in line for line in shown)
    assert all(line.split()[1] in "01" and line.rstrip().endswith(" 3") for line in rows), "no line is broken"
    head = next(line for line in shown if line.startswith("task"))
    loss = next(line for line in shown if line.startswith("perplexity"))
    assert loss.index("loss 5.") == head.index("smooth metric"), "a loss is no hard metric"


def test_the_command(two, capsys):
    command = ["eval", str(two), "--tasks", "agreement,capitalisation", "--limit", "4", "--out", str(two / "mine.csv")]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "agreement" in said.out and "evaluation 2/2" in said.err
    assert set(pandas.read_csv(two / "mine.csv").task) == {"agreement", "capitalisation"}
    assert cli.main(["eval", str(two), "--tasks", "agrement"]) == 64
    assert "did you mean 'agreement'" in capsys.readouterr().err


def test_the_tasks_are_listed():
    listed = run.list_tasks()
    assert all(f"{name} " in listed for name in [*tasks.builtin_names(), "perplexity"])
    assert "not defined" not in listed


def test_the_list_says_what_a_run_cannot_do(sweep):
    (encoder,) = sweep.glob("encoder-*")
    lines = run.list_tasks(encoder).splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith("addition_1 "))
    assert "not defined for this run: an encoder does not generate" in lines[number + 1]
    assert run.list_tasks(sweep) == run.list_tasks(), "a directory of runs"
    with pytest.raises(InputError, match="no directory"):
        run.list_tasks(sweep / "nowhere")


def test_perplexity_is_among_the_known_tasks():
    with pytest.raises(InputError, match="did you mean 'perplexity'.*known: .*perplexity"):
        tasks.find(["perplexty"])


BAD = {
    "tasks": ({"names": []}, "no tasks"),
    "shots": ({"shots": (0, 0)}, "shots: expected distinct"),
    "negative": ({"shots": (-1,)}, "shots: expected distinct"),
    "limit": ({"limit": 0}, "limit: expected 1 item"),
    "seed": ({"seed": -1}, "seed: expected"),
    "steps": ({"steps": "first"}, "steps: expected 'last' or 'all'"),
    "stride": ({"names": ["perplexity"], "stride": -1}, "stride: expected"),
    "batch": ({"batch_size": 0}, "batch_size: expected"),
    "out": ({"out": "table.xlsx"}, "out: expected a file ending in .csv or .parquet"),
    "folder": ({"out": "/nowhere/table.csv"}, "out: no folder"),
    "semantics": ({"semantics": "casual"}, "semantics 'casual'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_write_nothing(sweep, case, tmp_path, text):
    given, message = BAD[case]
    (run_dir,) = (path for path in sweep.glob("decoder-*") if (path / "summary.json").exists())
    copy = tmp_path / run_dir.name
    copy.mkdir()
    for path in run_dir.iterdir():
        if not path.name.startswith("evaluations"):
            (copy / path.name).symlink_to(path)
    with pytest.raises(InputError, match=message.replace("(", "\\(")):
        run.evaluate(copy, **{"names": ["agreement"], "limit": 3, **given})
    assert not list(copy.glob("evaluations*/*.json")) and not list(copy.glob("*.csv"))


def test_bad_sources(tmp_path, two, counted):
    with pytest.raises(InputError, match="no directory"):
        run.evaluate(tmp_path / "nowhere", ["agreement"])
    with pytest.raises(InputError, match="no runs in"):
        run.evaluate(two / "tokenizer", ["agreement"])
    sums = tmp_path / "sums.toml"
    sums.write_text('name="sums"\nkind="cloze"\nprompt="{a}"\n[[examples]]\na=1\nanswer=2\n')
    with pytest.raises(InputError, match="expected 1 examples to show, got 0"):
        run.evaluate(two, [str(sums)], shots=(0, 1))
    assert not counted and not (two / "evaluations").exists(), "refused before anything ran"

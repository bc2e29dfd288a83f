"""The commands generate, eval, export and import on runs of random models, and their exit codes."""

import json
import shutil

import pandas
import pytest

from lmjax import cli, run_record
from tests.random_runs import write_run
from tests.test_pages import block


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with a run of each family, at step 6 of 6."""
    folder = tmp_path_factory.mktemp("runs")
    for family in ("decoder", "encoder", "encoder_decoder"):
        write_run(folder / family, family, steps=(6,), data__seq_len=64, data__encoder_seq_len=64)
    return folder


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_generate_continues_fills_and_infills(runs, capsys, tmp_path):
    sample = ["--method", "sample", "--temperature", "0.9", "--num-return", "2", "--seed", "3"]
    assert (
        cli.main(["generate", str(runs / "decoder"), "--prompt", "ab", *sample, "--max-new-tokens", "5", "--json"]) == 0
    )
    first, second = lines(capsys)
    assert first["prompt"] == "ab" and (first["number"], second["number"]) == (0, 1) and len(first["ids"]) <= 5
    (tmp_path / "prompts.txt").write_text("ab\ncd[MASK]e\n")
    assert cli.main(["generate", str(runs / "encoder"), "--prompt", "[MASK]b", "--top", "3", "--json"]) == 0
    (filled,) = lines(capsys)
    probabilities = [p for _, p in filled["masks"][0]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    spans = ["generate", str(runs / "encoder_decoder"), "--prompt", "a<mask>c<mask>", "--max-new-tokens", "6", "--json"]
    assert cli.main(spans) == 0
    assert len(lines(capsys)[0]["spans"]) == 2


def test_prompts_come_from_a_file(runs, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("ab\nc\n")
    command = ["generate", str(runs / "decoder"), "--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "4"]
    assert cli.main([*command, "--json"]) == 0
    together = lines(capsys)
    assert [record["prompt"] for record in together] == ["ab", "c"]
    assert cli.main(["generate", str(runs / "decoder"), "--prompt", "c", "--max-new-tokens", "4", "--json"]) == 0
    assert lines(capsys)[0]["ids"] == together[1]["ids"]
    assert cli.main(command) == 0
    assert "log-probability" in capsys.readouterr().out


def test_eval_of_the_readmes_task_and_a_built_in_one(runs, capsys, tmp_path):
    task = tmp_path / "my_task.toml"
    task.write_text(block("own task"))
    out = tmp_path / "table.csv"
    command = ["eval", str(runs), "--tasks", f"{task},addition_1", "--shots", "0,1", "--limit", "4", "--out", str(out)]
    assert cli.main(command) == 0
    capsys.readouterr()
    table = pandas.read_csv(out)
    assert set(table["family"]) == {"decoder", "encoder", "encoder_decoder"}
    mine = table[(table["task"] == "my_task") & (table["metric"] == "accuracy")]
    assert len(mine) == 6 and (mine["n"] == 2).all() and mine["value"].between(0, 1).all()
    assert set(mine["semantics"]) == {"causal", "pseudo", "infilling"}
    undefined = table[(table["task"] == "addition_1") & (table["family"] == "encoder")]
    assert set(undefined["status"]) == {"not_defined"} and undefined["reason"].str.len().gt(10).all()
    assert cli.main(command) == 0
    assert "evaluations already exist" in capsys.readouterr().err
    assert cli.main(["eval", str(runs)]) == 0
    assert "addition_1" in capsys.readouterr().out


def test_eval_takes_documents_of_any_source(runs, capsys, tmp_path):
    """The list of tasks says what a run cannot do; an imported model has a perplexity on texts that are named."""
    assert cli.main(["eval", str(runs / "encoder")]) == 0
    assert "not defined for this run: an encoder does not generate" in capsys.readouterr().out
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"To be or not to be, that is question {number}. " * 9)
    assert cli.main(["export", str(runs / "decoder"), "--to", str(tmp_path / "folder")]) == 0
    imported = tmp_path / "imported"
    assert cli.main(["import", "--from", str(tmp_path / "folder"), "--to", str(imported)]) == 0
    assert cli.main(["eval", str(imported), "--tasks", "perplexity"]) == 64
    assert "name documents with --source" in capsys.readouterr().err
    source = f"files:{tmp_path}/*.txt"
    options = ["--tasks", "perplexity", "--source", source, "--stride", "8", "--semantics", "causal"]
    assert cli.main(["eval", str(imported), *options]) == 0
    table = pandas.read_csv(imported / "evaluations.csv")
    assert set(table["text_source"]) == {source} and set(table["stride"]) == {8}
    assert "perplexity" in set(table["metric"])


def test_export_then_import_is_the_same_model(runs, capsys, tmp_path):
    assert cli.main(["export", str(runs / "decoder"), "--to", str(tmp_path / "folder")]) == 0
    assert "GPTNeoXForCausalLM" in capsys.readouterr().out
    assert cli.main(["import", "--from", str(tmp_path / "folder"), "--to", str(tmp_path / "back")]) == 0
    said = []
    for run_dir in (runs / "decoder", tmp_path / "back"):
        capsys.readouterr()
        assert cli.main(["generate", str(run_dir), "--prompt", "ab", "--max-new-tokens", "6", "--json"]) == 0
        said.append(lines(capsys)[0])
    assert said[0]["ids"] == said[1]["ids"]
    assert said[0]["log_prob"] == pytest.approx(said[1]["log_prob"], abs=1e-4)
    assert run_record.status_of(tmp_path / "back")["status"] == "done"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "decoder"], "expected --prompt"),
        (["generate", "decoder", "--prompt", "a", "--method", "greedi"], "greedy"),
        (["generate", "decoder", "--prompt", "a", "--method", "sample", "--top-p", "0"], "top_p"),
        (["generate", "decoder", "--prompt", "a", "--method", "beam", "--num-beams", "9999"], "beam"),
        (["generate", "decoder", "--prompt", "a", "--step", "5"], "got steps [6]"),
        (["generate", "nowhere", "--prompt", "a"], "is not a run"),
        (["generate", "encoder", "--prompt", "no mask"], "[MASK]"),
        (["generate", "encoder", "--prompt", "[MASK]", "--max-new-tokens", "3"], "leave out max_new_tokens"),
        (["eval", "encoder", "--tasks", "addition_1"], "addition_1"),
        (["eval", "decoder", "--tasks", "additon_1"], "addition_1"),
        (["eval", "decoder", "--tasks", "addition_1", "--shots", "x"], "--shots"),
        (["eval", "decoder", "--tasks", "../x.toml"], "x.toml"),
        (["export", "decoder", "--to", "decoder"], "decoder"),
        (["export", "decoder", "--to", "new", "--dtype", "float17"], "float16"),
        (["import", "--from", "decoder", "--to", "new"], "decoder"),
    ],
)
def test_bad_input_exits_64_and_writes_nothing(runs, arguments, words, capsys, monkeypatch):
    monkeypatch.chdir(runs)
    before = sorted(p for p in runs.rglob("*"))
    assert cli.main(arguments) == 64
    assert words in capsys.readouterr().err
    assert sorted(p for p in runs.rglob("*")) == before


def test_analysis_wants_one_family_and_leaves_imports_out(runs, capsys, tmp_path):
    assert cli.main(["fit", str(runs), "--resamples", "0"]) == 64
    assert "--where family=decoder" in capsys.readouterr().err
    imported = tmp_path / "imported"
    shutil.copytree(runs / "encoder", tmp_path / "encoder")
    assert cli.main(["export", str(runs / "encoder"), "--to", str(tmp_path / "folder")]) == 0
    assert cli.main(["import", "--from", str(tmp_path / "folder"), "--to", str(imported)]) == 0
    capsys.readouterr()
    assert cli.main(["fit", str(tmp_path), "--resamples", "0"]) == 64  # one run is too few for a law
    out, err = capsys.readouterr()
    assert "1 points for 5 parameters" in out and "left out (imported runs have no loss): imported" in err
    assert cli.main(["runs", str(runs)]) == 0
    assert "decoder" in capsys.readouterr().out


def test_a_finished_run_says_where_it_is(runs, capsys):
    assert cli.main(["train", "--run-dir", str(runs / "decoder")]) == 0
    assert f"finished: {runs / 'decoder'}" in capsys.readouterr().out

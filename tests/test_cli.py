"""The commands as a user types them: help, describe, runs, data, errors with exit code 64."""

import inspect
import json
import shutil
import subprocess
import sys

import pandas
import pytest

from lmjax import cli, run_record
from lmjax.decoding.settings import Settings
from tests.conftest import ROOT, SMALL

CONFIG = str(ROOT / "configs" / "decoder.py")
FLAGS = [f"--config.{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in SMALL.items()]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert command in capsys.readouterr().out


def test_the_help_of_settings_does_not_depend_on_indentation(monkeypatch, capsys):
    """Python 3.13 removes the indentation of docstrings; every command ended with a KeyError there."""
    monkeypatch.setattr(Settings, "__doc__", inspect.cleandoc(Settings.__doc__))
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    assert "--max-new-tokens" in capsys.readouterr().out


def test_describe_prints_the_record_without_training(capsys, tmp_path):
    assert cli.main(["describe", "--config", CONFIG, "--format", "json", *FLAGS]) == 0
    record = json.loads(capsys.readouterr().out)
    derived = record["derived"]
    assert derived["n_total"] == derived["n_embedding"] + derived["n_head"] + derived["n_non_embedding"]
    assert derived["steps"] == 6 and derived["tokens"] == 6 * 8 * 16
    assert derived["flops_6nd"] == 6 * derived["n_total"] * derived["tokens"]
    assert cli.main(["describe", "--config", CONFIG, *FLAGS]) == 0
    shown = capsys.readouterr().out
    for words in ("N total", "N non-embedding", "tokens per parameter", "C exact", "memory, sum", "model.d_model"):
        assert words in shown


def test_train_runs_and_data_end_to_end(tmp_path, capsys):
    assert (
        cli.main(
            [
                "train",
                "--config",
                CONFIG,
                "--workdir",
                str(tmp_path / "runs"),
                *FLAGS,
                "--config.metrics.tensorboard=true",
            ]
        )
        == 0
    )
    (run_dir,) = run_record.find_runs(tmp_path / "runs")
    assert list((run_dir / "tensorboard").glob("events*"))
    progress = capsys.readouterr().err
    for words in ("step 6/6", "tok/s", "FLOP/s", "ETA", "train loss", "validation loss"):
        assert words in progress
    assert progress.count("attention plain (no flash kernel for cpu)") == 1
    summary = run_record.read_json(run_dir / "summary.json")
    for key in (
        "loss",
        "loss_tokens",
        "bits_per_byte",
        "n_total",
        "n_embedding",
        "n_non_embedding",
        "flops_exact",
        "flops_6nd",
        "tokens",
        "unique_tokens",
        "epochs",
        "schedule_complete",
        "seed",
        "parametrization",
        "base_width",
        "clipped_share",
        "learning_rate_rule",
        "tokens_per_second",
        "mfu",
        "wall_seconds",
        "attention",
        "compile_seconds",
        "attempts",
        "versions",
        "commit",
        "data_digest",
        "objective_version",
    ):
        assert key in summary, key
    for form in ("csv", "json"):
        out = tmp_path / f"table.{form}"
        assert cli.main(["runs", str(tmp_path / "runs"), "--format", form, "--out", str(out)]) == 0
    assert cli.main(["runs", str(tmp_path / "runs"), "--format", "parquet", "--out", str(tmp_path / "t.parquet")]) == 0
    tables = [
        pandas.read_csv(tmp_path / "table.csv"),
        pandas.read_json(tmp_path / "table.json"),
        pandas.read_parquet(tmp_path / "t.parquet"),
    ]
    for table in tables:
        assert table["run_id"].tolist() == [run_dir.name]
        assert table["loss"][0] == pytest.approx(summary["loss"])
        assert table["config.model.d_model"][0] == 16
    assert cli.main(["data", "list"]) == 0
    assert "markov2" in capsys.readouterr().out
    assert cli.main(["data", "inspect", "--config", CONFIG, *FLAGS, "--count", "1"]) == 0
    shown = capsys.readouterr().out
    assert "inputs" in shown and "targets" in shown
    assert cli.main(["data", "prepare", "--config", CONFIG, *FLAGS]) == 0


def test_runs_shows_the_settings_that_differ(tmp_path, capsys, monkeypatch):
    """Twelve runs of one size showed twelve identical rows, whatever their learning rates."""
    for i, (rate, width) in enumerate(((1e-3, 16), (1e-3, 32), (3e-3, 16), (3e-3, 32))):
        run_dir = tmp_path / f"decoder-{width}k-5ktok-{i:010x}"
        run_dir.mkdir()
        config = {
            "model": {"d_model": width, "dropout": 0.0},
            "optimizer": {"learning_rate": rate},
            "objective": {"name": "causal_lm"},
            "run": {"name": str(i), "held_out": False},
            "data": {"sources": ["[red]a[/]"] if rate == 1e-3 else ["b"]},
        }
        derived = {"n_total": 1000 * width, "tokens": 5000, "flops_exact": 1e9}
        run_record.write_json(run_dir / "config.json", {"run_id": run_dir.name, "config": config, "derived": derived})
        run_record.write_json(run_dir / "summary.json", {"loss": 2.5 + i})
        run_record.write_json(run_dir / "status.json", {"status": "done"})
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    header, *lines = shown.split("\n")
    assert [title in header for title in ("learning_rate", "sources", "d_model", "dropout", "name")] == [1, 1, 1, 0, 0]
    assert header.index("learning_rate") < header.index("d_model")  # what differs at one size comes first
    assert "0.003" in lines[1] and "['[red]a[/]']" in lines[0] and "4.5000" in lines[1]
    assert cli.main(["runs", str(tmp_path), "--format", "json"]) == 0
    assert [row["config.optimizer.learning_rate"] for row in json.loads(capsys.readouterr().out)]


def test_evaluations_print_as_csv_and_json(capsys, monkeypatch):
    """Only the table for people could be printed."""
    from lmjax.evals import run

    made = pandas.DataFrame([{"run_id": "r", "task": "t", "value": 0.25, "standard_error": float("nan")}])
    monkeypatch.setattr(run, "evaluate", lambda *_, **__: made)
    assert cli.main(["eval", "r", "--tasks", "t", "--format", "csv"]) == 0
    assert capsys.readouterr().out == "run_id,task,value,standard_error\nr,t,0.25,\n"
    assert cli.main(["eval", "r", "--tasks", "t", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"run_id": "r", "task": "t", "value": 0.25, "standard_error": None}]


def test_training_an_imported_model_is_one_clear_sentence(tmp_path, capsys):
    """It listed every config key that the record lacks."""
    record = {"run_id": "m", "config": {"model": {}, "objective": {}, "data": {}}, "objective_version": "imported"}
    run_record.write_json(tmp_path / "config.json", record)
    for arguments in (["train", "--run-dir", str(tmp_path)], ["describe", str(tmp_path / "config.json")]):
        assert cli.main(arguments) == 64
        error = capsys.readouterr().err
        assert "is an imported model" in error and error.count("\n") == 1 and len(error) < 350


def test_a_missing_optional_package_is_found_before_anything_starts(tmp_path, capsys, monkeypatch):
    """The writer of TensorBoard files was looked for after the first step had been compiled."""
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    arguments = ["train", CONFIG, "--workdir", str(tmp_path), *FLAGS, "--config.metrics.tensorboard=true"]
    assert cli.main(arguments) == 64
    assert 'pip install "lmjax[tensorboard]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_version_and_a_config_without_its_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("lmjax 0.")
    assert cli.main(["describe", CONFIG, "--format", "json", *FLAGS]) == 0
    positional = capsys.readouterr().out
    assert cli.main(["describe", "--config", CONFIG, "--format", "json", *FLAGS]) == 0
    assert capsys.readouterr().out == positional
    assert cli.main(["describe", CONFIG, "--config", CONFIG]) == 64
    assert "expected one config file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "expected a config file, or --run-dir"),
        (["train", "--config", "nowhere.py"], "no config file"),
        (["train", "--config", CONFIG, "--config.model.d_modle=3"], "did you mean 'model.d_model'"),
        (["train", "--config", CONFIG, "--config.objective.name=casual_lm"], "did you mean 'causal_lm'"),
        (["train", "--config", CONFIG, "--config.optimizer.name=adamv"], "did you mean 'adamw'"),
        (["train", "--config", CONFIG, "--config.schedule.name=cosin"], "did you mean 'cosine'"),
        (["train", "--config", CONFIG, "--config.data.sources=clasic"], "classic"),
        (["train", "--config", CONFIG, "--config.duration.steps=3"], "exactly one of"),
        (["train", "--config", CONFIG, "--config.model.family=encoder"], "set model.family=decoder"),
        (["describe", "--config", CONFIG, *FLAGS, "--config.duration.steps=100000"], "epochs"),
        (["describe", "--config", CONFIG, *FLAGS, "--config.model.vocab_size=64"], "vocab"),
        (
            ["describe", "--config", CONFIG, *FLAGS, "--config.model.position=learned", "--config.model.max_len=4"],
            "max_len",
        ),
        (["describe", "--config", CONFIG, *FLAGS, "--config.objective.options.mask_rate=0.1"], "unknown config key"),
        (["runs", "nowhere"], "no directory"),
        (["runs", ".", "--config.model.d_model=3"], "takes no --config"),
        (["fit", "nowhere.csv"], "nowhere.csv"),
        (["sweep"], "sweep.py"),
        (["runs", ".", "--format", "xml"], "invalid choice"),
    ],
)
def test_bad_input_gets_a_sentence_and_exit_code_64(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 64
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not list(tmp_path.rglob("summary.json"))


def test_batch_that_does_not_divide_over_devices(tmp_path, capsys):
    arguments = ["train", CONFIG, "--workdir", str(tmp_path), *FLAGS, "--config.data.global_batch_size=9"]
    assert cli.main(arguments) == 64
    assert "9 rows do not divide evenly over 8 devices" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_a_clear_error(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["train", CONFIG, "--workdir", str(tmp_path / "file" / "runs"), *FLAGS]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "file" in error


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_commands_options_and_their_values(tmp_path, capsys):
    """The script is generated from the parsers, so a new command or option is completed without a change."""
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for words, expected in (
        (("desc",), "describe"),
        (("train", "a.py", "--run"), "--run-dir"),
        (("runs", "--format", "p"), "parquet"),
        (("data", "l"), "list"),
        (("train", "conf"), ""),  # no word: bash's own file names
    ):
        call = (
            f'{script}\nCOMP_WORDS=(lmjax {" ".join(words)}); COMP_CWORD={len(words)}; _lmjax; echo "${{COMPREPLY[@]}}"'
        )
        result = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
        assert (result.stdout.strip(), result.stderr) == (expected, "")
    assert script.endswith("complete -o default -F _lmjax lmjax\n")
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.endswith(script)

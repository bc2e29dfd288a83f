"""What README.md and docs/ show works: code runs as written, commands, keys and files exist, numbers equal records."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from lmjax import run_record
from tests.conftest import ONE_DEVICE, ROOT

PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXT = "\n".join(PAGES.values())


def block(marker):
    """The fenced block after an HTML comment."""
    return re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", TEXT, re.DOTALL)[1]


def run_commands(commands, cwd):
    """One new process that runs these lmjax commands, without PYTHONPATH: as installed."""
    environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE}
    environment.pop("PYTHONPATH", None)
    script = f"import sys; from lmjax import cli; sys.exit(max(cli.main(command) for command in {commands}))"
    result = subprocess.run(
        [sys.executable, "-P", "-c", script],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def test_your_own_objective_in_one_file(tmp_path):
    (tmp_path / "backward.py").write_text(block("own objective"))
    # smaller, shorter, and on text that needs no extra
    keys = {"model.d_model": 16, "model.num_layers": 1, "data.sources": "markov2:100000", "duration.tokens": 10000}
    short = [f"--config.{key}={value}" for key, value in keys.items()]
    commands = [shlex.split(command)[1:] for command in block("own objective commands").strip().splitlines()]
    assert len(commands) == 3
    run_commands([[*words, *(short if words[0] == "train" else [])] for words in commands], tmp_path)
    (run_dir,) = run_record.find_runs(tmp_path / "runs")
    summary = run_record.read_json(run_dir / "summary.json")
    assert summary["objective"] == "backward_lm" and summary["bits_per_byte"] > 0
    assert "+" in summary["objective_version"]  # the file's hash: an edited objective makes new runs
    # Loading the run again, in a process that has not loaded the config file, and from another folder.
    (tmp_path / "elsewhere").mkdir()
    again = [
        ["generate", str(run_dir), "--prompt", "AB", "--max-new-tokens", "4"],
        ["eval", str(run_dir), "--tasks", "agreement", "--limit", "2"],
        ["train", "--run-dir", str(run_dir)],
        ["sweep", str(tmp_path / "backward.py"), "--workdir", str(tmp_path / "swept"), "--no-analysis", *short],
    ]
    run_commands(again, tmp_path / "elsewhere")
    assert len(list((tmp_path / "swept").glob("*/summary.json"))) == 1


def test_a_second_head_a_loss_and_a_model_in_one_file(tmp_path):
    """The other files of docs/objectives.md, through their commands; the model is scored like any other."""
    short = {"data.sources": "markov2:100000", "duration.tokens": 10000, "model.d_model": 16, "model.num_layers": 1}
    short = [f"--config.{key}={value}" for key, value in short.items()]
    commands = []
    np.save(tmp_path / "bigrams.npy", np.full((320, 320), 1 / 320, np.float32))
    for name, marker in (("swapped.py", "second head"), ("gated.py", "own model"), ("distilled.py", "own loss")):
        (tmp_path / name).write_text(block(marker))
        lines = [shlex.split(line)[1:] for line in block(f"{marker} commands").strip().splitlines()]
        commands += [[*words, *(short if words[0] == "train" else [])] for words in lines]
    assert len(commands) == 6
    run_commands(commands, tmp_path)
    found = {summary["family"]: summary for summary in map(_summary, run_record.find_runs(tmp_path / "runs"))}
    distilled = found["decoder"]
    assert distilled["loss"] == pytest.approx(distilled["lm_loss"] + distilled["teacher_loss"])
    swapped = found["encoder"]
    assert swapped["loss"] == pytest.approx(swapped["lm_loss"] + 0.5 * swapped["swapped_loss"])
    assert 0 < swapped["swapped_accuracy"] < 1 and 0.6 < swapped["swapped_reference"] < 0.8
    assert found["gated_recurrence"]["bits_per_byte"] > 0
    (run_dir,) = (path for path in run_record.find_runs(tmp_path / "runs") if "gated" in path.name)
    (tmp_path / "elsewhere").mkdir()
    run_commands([["eval", str(run_dir), "--tasks", "agreement,perplexity", "--limit", "2"]], tmp_path / "elsewhere")


def _summary(run_dir):
    return run_record.read_json(run_dir / "summary.json")


def test_configs_are_found_where_there_is_no_checkout(tmp_path, monkeypatch):
    """Installed without a clone, neither `from configs import tiny` nor --config configs/tiny.py used to work."""
    import lmjax.config

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text("from lmjax.defaults import get_config as get_config")
    monkeypatch.setattr(lmjax.config, "_HOME", tmp_path)  # what holds lmjax/ and configs/ when installed
    monkeypatch.chdir(tmp_path / "configs")
    assert lmjax.config.load("configs/mine.py").model.d_model == 256
    assert '"configs"]' in (ROOT / "setup.py").read_text()  # in the wheel


def test_your_own_table_in_one_command_and_in_four_lines(tmp_path, monkeypatch):
    """On a table without noise both give the planted law's prediction."""
    from lmjax import cli

    cells = [(N, D) for N in (1e7, 4e7, 2e8, 1e9) for D in (1e9, 1e10, 1e11)]
    rows = [f"{N},{D},{1.7 + 400 * N**-0.34 + 1500 * D**-0.37}" for N, D in cells]
    (tmp_path / "my_runs.csv").write_text("\n".join(["N,D,loss", *rows]))
    monkeypatch.chdir(tmp_path)
    (command,) = block("own table").strip().splitlines()
    assert cli.main(shlex.split(command)[1:]) == 0
    lines = block("own table in Python").strip().splitlines()
    assert len(lines) == 4
    names = {}
    exec("\n".join(lines), names)  # noqa: S102 - the README's own lines
    expected = 1.7 + 400 * 7e9**-0.34 + 1500 * 1.4e11**-0.37
    assert names["found"].predict(N=7e9, D=1.4e11).value == pytest.approx(expected, rel=1e-6)
    assert names["found"].to_dict() == run_record.read_json(tmp_path / "my_runs-law" / "fit.json")
    assert (tmp_path / "figures" / "loss_vs_params.png").exists()


def test_the_gallery_shows_every_figure():
    """Each .png below experiments/ is in the gallery, and everything the gallery shows exists."""
    folder = ROOT / "experiments"
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (folder / "README.md").read_text())
    there = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.png"))]
    assert sorted(shown) == there


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:lmjax|configs|experiments|tests)/[\w/.]+\.\w+)`", TEXT))))
def test_files_that_are_named_exist(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[page]):
        assert (folder / target).exists(), target


def test_commands_and_keys_that_are_shown_exist():
    """Every command line of every page is accepted by its parser, every --config key is declared."""
    from lmjax import cli
    from lmjax.config import DEFAULTS

    lines = re.findall(r"^lmjax .*$", TEXT, re.MULTILINE)
    shown = {line.split()[1] for line in lines}
    assert shown <= set(cli.COMMANDS) and {"plan", "sweep", "runs", "fit", "plot", "report"} <= shown
    for line in lines:
        cli._parse(shlex.split(line, comments=True)[1:])
    for key in re.findall(r"--config\.([\w.]+?)=", TEXT):
        assert key in DEFAULTS or key.startswith(("objective.options.", "model.options.")), key


def test_the_readme_is_short_and_python_parses():
    assert PAGES["README.md"].count("\n") <= 200
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        compile(code, "page", "exec")


def test_the_pages_on_speed_and_intervals_are_what_the_records_say():
    spec = importlib.util.spec_from_file_location("page", ROOT / "experiments" / "benchmarks" / "page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == PAGES["speed.md"]
    assert module.intervals() == PAGES["intervals.md"]

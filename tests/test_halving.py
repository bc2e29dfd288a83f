"""Guards against a search that trains a run twice, keeps the wrong cells, or compares schedules that have not ended."""

import json
import math
import pathlib

import pytest

from lmjax import cli, run_record
from lmjax.errors import InputError
from lmjax.sweeps import analysis, halving
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from tests.conftest import ROOT
from tests.test_sweep import FakeWorker, write_sweep

RATES = [1e-4, 2e-4, 4e-4, 8e-4, 16e-4, 32e-4, 64e-4, 128e-4, 256e-4]
CONSTANT = {"schedule.name": "constant", "schedule.warmup_steps": 1, "duration.steps": 18, "data.max_epochs": 1e6}
CELLS = f"product({{'optimizer.learning_rate': {RATES}}}, {{'train.seed': [0, 1]}})"


class Trainer:
    """A launcher whose workers finish their runs at once; the best rate is 4e-4 for seed 0, 16e-4 for seed 1."""

    def __init__(self, ends=()):
        self.ends, self.trained = dict(ends), []

    def __call__(self, place, cells, command):
        for cell in cells:
            rate, seed = cell.overlay["optimizer.learning_rate"], cell.overlay["train.seed"]
            self.trained.append((seed, cell.run.steps, rate))
            if end := self.ends.get((seed, cell.run.steps, rate)):
                run_record.write_json(cell.run_dir / "status.json", {"status": end})
                continue
            loss = 2 + abs(math.log(rate / (4e-4, 16e-4)[seed])) + 1 / cell.run.steps
            (cell.run_dir / "checkpoints" / str(cell.run.steps)).mkdir(parents=True)
            run_record.write_json(cell.run_dir / "summary.json", {"run_id": cell.run.run_id, "loss": loss})
            run_record.mark_done(cell.run_dir, cell.run.steps)
        return FakeWorker(0)


def test_the_committed_searches_are_what_the_docs_say():
    rows = json.loads((ROOT / "experiments" / "benchmarks" / "halving.json").read_text())
    assert len(rows) == 6 and all(row["best"] == row["chosen"] and row["regret"] == 0 for row in rows)
    shares, second = {f"{100 * row['compute']:.0f} %" for row in rows}, sorted(row["second"] for row in rows)
    said = (ROOT / "docs" / "sweeps.md").read_text()
    assert f"in all six, for {min(shares)} of" in said and len(shares) == 1
    assert f"would have cost {second[0]:.3f} to {second[-1]:.3f} nats" in said


def _search(tmp_path, trainer, cells=CELLS, keep_checkpoints="all", **extra):
    sweep = str(write_sweep(tmp_path, cells, **{**CONSTANT, **extra}))
    options = {"analyse": True, "quiet": True, "launch": trainer, "search": halving.Search(3)}
    options["keep_checkpoints"] = keep_checkpoints
    return sweep_run.sweep(sweep, tmp_path / "runs", {}, 1, **options)


def test_a_third_goes_on_and_nothing_is_trained_twice(tmp_path, capsys):
    trainer = Trainer({(0, 2, 8e-4): "diverged"})
    assert _search(tmp_path, trainer) == 1  # a run diverged
    said = capsys.readouterr()
    by_rung = {steps: [t for t in trainer.trained if t[1] == steps] for steps in (2, 6, 18)}
    assert [len(members) for members in by_rung.values()] == [18, 6, 2] and len(trainer.trained) == 26
    assert sorted(rate for seed, _, rate in by_rung[6] if seed == 0) == [1e-4, 2e-4, 4e-4]  # 8e-4 was second best
    assert sorted(by_rung[18]) == [(0, 18, 4e-4), (1, 18, 16e-4)]
    record = json.loads((tmp_path / "runs" / "halving.json").read_text())
    first = record["groups"][0]["rungs"]
    assert [len(rung["losses"]) for rung in first] == [9, 3, 1] and first[-1]["kept"] == [4e-4]
    assert first[0]["losses"]["0.0008"] is None and first[0]["losses"]["0.0004"] == pytest.approx(2.5)
    assert "best optimizer.learning_rate 0.0004 (loss 2.0556)" in said.out  # though a run diverged
    assert "26 cells to train" in (said.out + said.err).replace("\n", " ")
    analysis.read(tmp_path / "runs")
    assert "the longer ones are a selection" in capsys.readouterr().err
    assert halving.describe(record)[0] == (
        "duration.steps=18, train.seed=0: best optimizer.learning_rate 0.0004 (loss 2.0556); 6 stopped at 256 tokens, "
        "2 stopped at 768 tokens"
    )
    again = Trainer()
    _search(tmp_path, again)
    assert again.trained == []
    assert not list((tmp_path / "runs").glob("fit*"))  # rungs are no ladder of one recipe
    for run_dir in run_record.find_runs(tmp_path / "runs"):  # a stopped cell has no run of the full length
        steps = run_record.read_record(run_dir)["derived"]["steps"]
        assert (steps == 18) == (run_dir.name in {d.name for d in _of(tmp_path, by_rung[18])})


def _of(tmp_path, trained):
    cells = load_cells(str(tmp_path / "mini.py"), tmp_path / "runs", {}, halving.Search(3))
    wanted = {(seed, steps, rate) for seed, steps, rate in trained}
    return [
        cell.run_dir
        for cell in cells
        if (cell.overlay["train.seed"], cell.run.steps, cell.overlay["optimizer.learning_rate"]) in wanted
    ]


def test_a_search_in_which_all_runs_diverge_says_so(tmp_path, capsys):
    assert _search(tmp_path, Trainer({(s, 2, rate): "diverged" for s in (0, 1) for rate in RATES})) == 1
    assert capsys.readouterr().out.count("best optimizer.learning_rate none (all diverged)") == 2


def test_a_rung_with_a_failed_run_is_not_judged_until_it_is_trained(tmp_path):
    failing = Trainer({(0, 2, 4e-4): "failed"})
    assert _search(tmp_path, failing) == 1
    assert {steps for _, steps, _ in failing.trained} == {2} and not (tmp_path / "runs" / "halving.json").exists()
    good = Trainer()
    assert _search(tmp_path, good) == 0
    assert sorted(good.trained)[0] == (0, 2, 4e-4) and [t[1] for t in good.trained].count(2) == 1


def test_checkpoints_are_kept_until_the_rungs_that_branch_off_them_have_ended(tmp_path):
    trainer = Trainer()
    assert _search(tmp_path, trainer, keep_checkpoints="none") == 0
    assert len(trainer.trained) == 26 and not list((tmp_path / "runs").glob("*/checkpoints/*"))


def test_a_rung_branches_off_the_last_step_of_the_one_before(tmp_path):
    sweep = str(write_sweep(tmp_path, CELLS, **CONSTANT))
    cells = load_cells(sweep, tmp_path, {}, halving.Search(3))
    assert len(cells) == 2 * 9 * 3
    assert {(cell.run.start, cell.run.steps) for cell in cells} == {(0, 2), (2, 6), (6, 18)}
    assert all(cell.run.config.checkpoint.at == ((cell.run.steps,) if cell.run.steps < 18 else ()) for cell in cells)


@pytest.mark.parametrize(
    ("cells", "extra", "message"),
    [
        (CELLS, {"schedule.name": "cosine"}, "does not depend on the length of the run, got schedule 'cosine'"),
        (CELLS, {"schedule.warmup_steps": None, "schedule.warmup_fraction": 0.5}, "schedule.warmup_steps"),
        ("product({'optimizer.learning_rate': [1e-3, 2e-3]})", {}, "expected at least 3 values"),
        ("product({'train.seed': [1, 2, 3]})", {}, "expected cells that set optimizer.learning_rate"),
    ],
)
def test_what_cannot_be_halved_is_refused_before_anything_runs(tmp_path, cells, extra, message):
    with pytest.raises(InputError, match=message):
        _search(tmp_path, Trainer(), cells, **extra)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", [["1"], ["x"], ["3", "--launcher", "slurm"], ["3", "--retry", "failed"]])
def test_bad_options_of_halving(tmp_path, options, capsys):
    sweep = write_sweep(pathlib.Path(tmp_path), CELLS, **CONSTANT)
    assert cli.main(["sweep", str(sweep), "--workdir", str(tmp_path / "runs"), "--halving", *options]) == 64
    assert "--halving" in capsys.readouterr().err

"""Guards against records files that differ for equal runs, tell of the machine, or count as done what they are not."""

import dataclasses
import json
import os
import re
import shutil

import pandas
import pytest

from lmjax import cli, run_record, scaling, trained
from lmjax.errors import InputError
from lmjax.sweeps import local, plan, records
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from tests import test_analysis
from tests.test_sweep import write_sweep

CELLS = '[{"train.seed": 1}, {"train.seed": 2}, {"train.seed": 3, "run.held_out": True}]'


def finish(cell, loss=2.5, folder=None):
    """Writes a finished run of a cell as the trainer does, without checkpoints."""
    run_dir = folder or cell.run_dir
    cell.run.write(run_dir)
    derived = {k: v for k, v in cell.run.derived.items() if k not in ("memory", "memory_bytes")}
    facts = {"run_id": cell.run.run_id, "status": "done", "loss": loss, "attempts": 2, "schedule_complete": True}
    run_record.write_json(run_dir / "summary.json", {**derived, **facts, "seed": cell.run.config.train.seed})
    lines = [{"step": step, "loss": loss + 1 / step, "grad_norm": 0.1} for step in range(1, 500)]
    lines[249]["validation_loss"] = loss
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    machine = {"host": os.uname().nodename, "pid": os.getpid(), "heartbeat": 1.5, "attempts": 2}
    run_record.write_json(run_dir / "status.json", {"status": "done", "step": 6, "steps": 6, **machine})


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep file, its directory of three finished runs, their records, and its cells."""
    folder = tmp_path_factory.mktemp("records")
    sweep = write_sweep(folder, CELLS)
    cells = load_cells(str(sweep), folder / "runs", {})
    for number, cell in enumerate(cells):
        finish(cell, 2.5 + number / 10)
    records.pack(folder / "runs", folder / "mini.parquet")
    return sweep, folder / "runs", folder / "mini.parquet", cells


def elsewhere(cells, workdir):
    """The cells of the sweep with another directory of runs."""
    return [dataclasses.replace(cell, run_dir=workdir / cell.run.run_id) for cell in cells]


def changed(source, out, **columns):
    """The records with some columns of the first run replaced; a function gets its record."""
    frame = pandas.read_parquet(source)
    for name, value in columns.items():
        if callable(value):
            record = json.loads(frame.loc[0, name])
            value(record)
            value = json.dumps(record)
        frame.loc[0, name] = value
    frame.to_parquet(out)
    return out


def test_equal_runs_give_equal_bytes_wherever_they_are(swept, tmp_path):
    """Process, host, order and names of the directories and checkpoints do not enter the file."""
    sweep, workdir, packed, _ = swept
    for i, run_dir in enumerate(reversed(run_record.find_runs(workdir))):
        copy = tmp_path / "runs" / str(i)
        shutil.copytree(run_dir, copy)
        (copy / "checkpoints" / "6").mkdir(parents=True)
        status = run_record.read_json(copy / "status.json")
        run_record.write_json(copy / "status.json", {**status, "host": "elsewhere", "pid": 1, "heartbeat": 9.0})
    records.pack(tmp_path / "runs", tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == packed.read_bytes()


def test_no_path_and_no_host_is_in_the_file(swept, tmp_path):
    workdir = tmp_path / "runs"
    shutil.copytree(swept[1], workdir)
    path = next(workdir.glob("*/config.json"))
    record = run_record.read_json(path)
    record["config"]["objective"]["file"] = str(tmp_path / "backward.py")
    run_record.write_json(path, record)
    assert len(records.pack(workdir, tmp_path / "mini.parquet")) == 1
    text = pandas.read_parquet(tmp_path / "mini.parquet").to_csv()
    assert '""file"": ""backward.py""' in text and "validation_loss" in text
    assert str(tmp_path) not in text and os.uname().nodename not in text and "heartbeat" not in text
    record["config"]["data"]["sources"] = [f"files:{tmp_path}/sums.jsonl"]  # part of the run id, so it has to stay
    run_record.write_json(path, record)
    assert "data.sources of 1 runs hold an absolute path" in records.pack(workdir, tmp_path / "mini.parquet")[1]


def test_a_sweep_counts_them_as_done_and_every_reader_sees_them(swept, tmp_path, monkeypatch, capsys):
    sweep, workdir, packed, _ = swept
    monkeypatch.setattr(local.LocalPool, "_launch", lambda *_: pytest.fail("a cell of the records was trained"))
    there = tmp_path / "there"
    options = ["--workdir", str(there), "--records", str(packed), "--no-analysis"]
    assert cli.main(["sweep", str(sweep), *options]) == 0
    out = capsys.readouterr().out
    assert f"{packed}: 3 of 3 cells count as done" in out and "all 3 cells have finished" in out
    pandas.testing.assert_frame_equal(run_record.read_runs(there), run_record.read_runs(workdir))
    records.pack(there, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == packed.read_bytes()
    assert cli.main(["plan", str(sweep), "--workdir", str(there), "--no-calibration"]) == 0
    assert "all 3 cells have finished" in capsys.readouterr().out
    assert cli.main(["sweep", str(sweep), "--workdir", str(there), "--no-analysis"]) == 0  # from now on they are there
    run_dir = run_record.find_runs(there)[0]
    with pytest.raises(InputError, match="has no checkpoint: its result comes from mini.parquet"):
        trained.load(run_dir)
    assert cli.main(["sweep", str(sweep), "--workdir", str(there), "--records", str(packed), "--dry-run"]) == 64


def test_a_records_file_is_a_table(tmp_path, capsys):
    """A fit of the file is the fit of the directory; metrics come with it."""
    workdir = tmp_path / "runs"
    for N in (10_000, 40_000, 160_000):
        for D in (10**6, 4 * 10**6, 16 * 10**6):
            test_analysis.write_run(workdir, N, D)
    test_analysis.write_run(workdir, 300_000, 10**6, status="diverged")
    (workdir / "decoder-300000-1000000" / "summary.json").unlink(missing_ok=True)
    packed = tmp_path / "law.parquet"
    assert cli.main(["runs", str(workdir), "--records", str(packed)]) == 0
    assert "packed 9 finished runs" in (said := capsys.readouterr().out) and "left out: 1 diverged" in said
    for made, expected in zip(records.read(packed)[0]["loss"], scaling.read_table(packed).points["loss"], strict=True):
        assert made == expected
    fits = [scaling.fit(source, resamples=0) for source in (packed, run_record.read_runs(workdir))]
    assert fits[0].params == fits[1].params and fits[0].data_hash == fits[1].data_hash
    assert cli.main(["fit", str(packed), "--resamples", "0"]) == 0
    frame, metrics = records.read(packed)
    assert metrics == {name: run_record.read_metrics(workdir / name / "metrics.jsonl") for name in frame["run_id"]}
    assert len(metrics) == 9 and all(metrics.values())
    assert not set(records.TEXT) & set(frame)


def test_thinned_metrics_keep_both_ends_and_what_was_evaluated():
    lines = [{"step": s, "loss": 1.0, **({"validation_loss": 1.0} if s % 500 == 0 else {})} for s in range(1, 4001)]
    kept = records.thinned(lines)
    steps = [line["step"] for line in kept]
    assert len(kept) == records.LINES + 8 and {1, 3999, *range(500, 4001, 500)} <= set(steps)
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False) if b % 500 and a % 500]
    assert min(gaps) >= 40 and max(gaps) <= 41  # 3992 / 99 = 40.3
    assert records.thinned(kept) == kept
    assert records.thinned(lines[:50]) == lines[:50]


def test_runs_of_other_code_need_keep(swept, tmp_path, capsys):
    sweep, _, packed, cells = swept
    other = changed(packed, tmp_path / "other.parquet", record_json=lambda record: record.update(code="c0123456789"))
    cells = elsewhere(cells, tmp_path / "runs")
    with pytest.raises(InputError, match=r"1 of 3 runs .* by other source code \(hash c0123456789, now c.*--keep"):
        records.unpack(other, cells)
    assert not (tmp_path / "runs").exists()
    lines = records.unpack(other, cells, keep=True)
    assert lines[0].startswith("warning: 1 of 3 runs") and "3 of 3 cells count as done" in lines[1]
    with pytest.raises(InputError, match="made by other source code"):  # as for runs trained here
        sweep_run.sweep(str(sweep), tmp_path / "runs", {}, 1, False)


def test_runs_of_another_sweep_are_named_with_what_differs(swept, tmp_path):
    packed = swept[2]
    more = write_sweep(tmp_path, CELLS[:-1] + ', {"train.seed": 4}]')
    assert "3 of 4 cells count as done" in records.unpack(packed, load_cells(str(more), tmp_path / "a", {}))[-1]
    fewer = write_sweep(tmp_path, '[{"train.seed": 1}]')
    line = records.unpack(packed, load_cells(str(fewer), tmp_path / "b", {}))[0]
    assert line.startswith("warning: 2 of 3 runs in") and re.search("train.seed: recorded [23], given 1", line)
    for settings, message in (
        ({"data.sources": ("markov2:30000",)}, r"data.sources: recorded .*; the data changed"),
        ({"optimizer.learning_rate": 1e-3}, "optimizer.learning_rate: recorded"),
    ):
        other = write_sweep(tmp_path, '[{"train.seed": 1}]', **settings)
        with pytest.raises(InputError, match=f"3 of 3 runs .* are not cells of this sweep: .*{message}"):
            records.unpack(packed, load_cells(str(other), tmp_path / "c", {}))
    assert not (tmp_path / "c").exists()
    # finished runs in the directory of an edited sweep were left there, and all cells trained again, without a word
    (found,) = [
        w for w in plan.warnings(load_cells(str(other), tmp_path / "a", {}), tmp_path / "a", 1) if "runs: " in w
    ]
    assert re.match("runs: 3 of 3 runs in .* are not cells of this sweep: .* optimizer.learning_rate: recorded", found)
    (stray := tmp_path / "d" / "other").mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        (stray / name).write_text("{")
    (damaged,) = plan.stray_warnings(load_cells(str(other), tmp_path / "d", {}), tmp_path / "d")
    assert "1 of 1 runs" in damaged and "config.json is corrupt" in damaged
    more = write_sweep(tmp_path, CELLS[:-1] + ', {"train.seed": 4}]')
    assert not plan.stray_warnings(load_cells(str(more), tmp_path / "a", {}), tmp_path / "a")


def test_cells_that_have_begun_here_are_left_alone(swept, tmp_path):
    _, _, packed, cells = swept
    begun, finished, fresh = elsewhere(cells, tmp_path / "runs")
    (begun.run_dir / "checkpoints" / "3").mkdir(parents=True)
    finish(finished, 2.25)
    line = records.unpack(packed, [begun, finished, fresh])[-1]
    assert "1 of 3 cells count as done; 2 more are in the file" in line
    assert not (begun.run_dir / "summary.json").exists()
    assert run_record.read_json(finished.run_dir / "summary.json")["loss"] == 2.25
    assert run_record.status_of(fresh.run_dir)["status"] == "done"


DAMAGED = [
    ({"record_json": lambda record: record.update(data={"sources": []})}, "has the id of a cell .* the data changed"),
    ({"record_json": "[1]"}, "expected a JSON object, got list"),
    ({"record_json": lambda record: record.update(config=5)}, "expected JSON objects"),
    ({"record_json": None}, "record_json is not JSON"),
    ({"summary_json": '{"loss": NaN}'}, "NaN is not a JSON number"),
    ({"summary_json": '{"loss": "low"}'}, "expected a finite loss, got 'low'"),
    ({"summary_json": '{"loss": 1.5, "run_id": "decoder-x-ffffffffff"}'}, "belongs to run decoder-x-ffffffffff"),
    ({"metrics_jsonl": '{"step": 2}\n{"step": 1}\n'}, "steps must increase"),
    ({"run_id": "../../escaped"}, "its record is of run mini|its record is of run decoder"),
]


@pytest.mark.parametrize("columns, message", DAMAGED)
def test_damaged_records_are_refused_before_anything_is_written(swept, tmp_path, columns, message):
    _, _, packed, cells = swept
    bad = changed(packed, tmp_path / "bad.parquet", **columns)
    with pytest.raises(InputError, match=message):
        records.unpack(bad, elsewhere(cells, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_names_in_a_file_never_become_paths(swept, tmp_path):
    _, _, packed, cells = swept
    name = "../escaped"
    bad = changed(
        packed,
        tmp_path / "bad.parquet",
        run_id=name,
        record_json=lambda record: record.update(run_id=name),
        summary_json=lambda summary: summary.update(run_id=name),
    )
    lines = records.unpack(bad, elsewhere(cells, tmp_path / "runs"))
    assert "1 of 3 runs" in lines[0] and "2 of 3 cells count as done" in lines[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.parquet", "runs"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_what_is_no_records_file_and_no_finished_run(swept, tmp_path):
    _, workdir, _, cells = swept
    cells = elsewhere(cells, tmp_path / "runs")
    pandas.DataFrame({"run_id": ["a"], "loss": [1.0]}).to_parquet(tmp_path / "table.parquet")
    with pytest.raises(InputError, match="expected a file of lmjax runs --records, got a table without record_json"):
        records.unpack(tmp_path / "table.parquet", cells)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(InputError, match="cannot be read as .parquet"):
        records.unpack(tmp_path / "text.parquet", cells)
    with pytest.raises(InputError, match="no file"):
        records.unpack(tmp_path / "none.parquet", cells)
    with pytest.raises(InputError, match="ending in .parquet"):
        records.pack(workdir, tmp_path / "mini.csv")
    shutil.copytree(workdir, tmp_path / "twice")
    shutil.copytree(run_record.find_runs(workdir)[0], tmp_path / "twice" / "copy")
    with pytest.raises(InputError, match="expected one directory of run"):
        records.pack(tmp_path / "twice", tmp_path / "mini.parquet")
    for summary in workdir.parent.glob("twice/*/summary.json"):
        summary.unlink()
    cells[0].run.write(cells[0].run_dir)
    with pytest.raises(InputError, match=r"expected finished runs, got none \(1 pending\)"):
        records.pack(tmp_path / "runs", tmp_path / "mini.parquet")
    assert cli.main(["runs", str(workdir), "--records", str(tmp_path / "a.parquet"), "--format", "csv"]) == 64

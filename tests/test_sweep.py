"""Guards against sweeps that lose or repeat cells when killed and restarted, and against wrong plans."""

import collections
import contextlib
import csv
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console

import lmjax
from lmjax import cli, describe, hardware, run_record, trained
from lmjax import config as configs
from lmjax.cli.start import note_idle_accelerator
from lmjax.display import short_ids
from lmjax.errors import InputError
from lmjax.format import count
from lmjax.resolve import resolve
from lmjax.sweeps import local, plan
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from lmjax.sweeps.combinators import chain, fixed, product, subsample, zipit
from tests.conftest import ONE_DEVICE, ROOT, SMALL

SWEEP = """
from configs import decoder
from lmjax.config import overlay
from lmjax.sweeps.combinators import chain, fixed, product

def get_config():
    return overlay(decoder.get_config(), {small})

def sweep():
    return {cells}
"""


def write_sweep(folder, cells, **extra):
    path = pathlib.Path(folder) / "mini.py"
    path.write_text(SWEEP.format(small=repr({**SMALL, **extra}), cells=cells))
    return path


NO_BACKEND = """
import sys
from jax._src import xla_bridge
def backends():
    raise RuntimeError("a backend was started")
xla_bridge.backends = backends
from lmjax import cli
from lmjax.sweeps import run
def start(place, cells, command):
    sys.exit("the first worker starts")
run.start_process = start
sys.argv = ["lmjax", *sys.argv[1:]]
cli.run()
"""


def test_a_sweep_leaves_the_accelerators_to_its_workers(tmp_path):
    # A process that starts JAX's backend reserves most of a GPU's memory, or the whole TPU: no worker could start.
    path = write_sweep(tmp_path, "product({'model.num_layers': [1, 2]})")
    options = ["sweep", str(path), "--workdir", str(tmp_path / "runs"), "--quiet", "--workers", "1"]
    run = subprocess.run([sys.executable, "-c", NO_BACKEND, *options], capture_output=True, text=True, cwd=ROOT)
    assert "the first worker starts" in run.stderr, run.stderr
    # A plug-in may start a backend itself, then of the CPU; the workers' environment is as before.
    path.write_text("import jax.numpy as jnp\nMASK = jnp.ones(3)\n" + path.read_text())
    only_cpu = NO_BACKEND.replace("xla_bridge.backends = backends", "").replace(
        '"the first worker starts"', "f'{xla_bridge.backends().keys()} {__import__(\"jax\").config.jax_platforms}'"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    run = subprocess.run(
        [sys.executable, "-c", only_cpu, *options], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert "dict_keys(['cpu']) cpu" in run.stderr, run.stderr


def test_a_sweep_is_refused_where_this_process_has_taken_the_accelerator(tmp_path, monkeypatch):
    jax.devices()
    monkeypatch.setattr(hardware, "accelerators", lambda: "gpu")
    with pytest.raises(InputError, match="a process that does not use its accelerators"):
        lmjax.sweep(write_sweep(tmp_path, "[{}]"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_combinators():
    assert product({"a": [1, 2]}, {"b": [3, 4]}) == [
        {"a": 1, "b": 3},
        {"a": 1, "b": 4},
        {"a": 2, "b": 3},
        {"a": 2, "b": 4},
    ]
    assert zipit({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert zipit(fixed({"a": 1}), {"b": [2]}) == [{"a": 1, "b": 2}]
    assert chain([{"a": 1}], [{"a": 2, "b": 5}]) == [{"a": 1}, {"a": 2, "b": 5}]
    assert fixed({"a": 1}) == [{"a": 1}]
    chosen = subsample({"a": list(range(100))}, 5, seed=1)
    assert chosen == subsample({"a": list(range(100))}, 5, seed=1) and len({o["a"] for o in chosen}) == 5
    for bad, message in (
        (lambda: product({"a": [1]}, {"a": [2]}), "in two sets"),
        (lambda: zipit({"a": [1, 2], "b": [3]}), "lengths"),
        (lambda: subsample([{"a": 1}], 2), "expected 1 to 1"),
        (lambda: product({"a": [1], "b": [2]}), "one key"),
    ):
        with pytest.raises(InputError, match=message):
            bad()


def test_overrides_that_the_sweep_would_override_are_refused(tmp_path):
    sweep = str(write_sweep(tmp_path, 'fixed({"train.seed": 1})'))
    with pytest.raises(InputError, match="train.seed.*are set by sweep"):
        load_cells(sweep, tmp_path, {"train.seed": "2"})
    assert load_cells(sweep, tmp_path, {"data.seed": "2"})[0].run.config.data.seed == 2


def test_two_sweeps_of_one_directory(tmp_path, capsys):
    sweep = write_sweep(tmp_path, 'fixed({"train.seed": 1})')
    (tmp_path / "runs").mkdir()
    with run_record.Lock(tmp_path / "runs"):
        assert cli.main(["sweep", str(sweep), "--workdir", str(tmp_path / "runs")]) == 64
    assert "is in use by process" in capsys.readouterr().err


def test_workers_do_not_think_they_are_one_of_several(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("LMJAX_COORDINATOR", "host:1")
    environment = local.worker_environment(local.Slot("core 0", {"LMJAX_CORES": "0"}))
    assert environment["LMJAX_CORES"] == "0" and not {"SLURM_NTASKS", "LMJAX_COORDINATOR"} & set(environment)


def test_bad_sweeps_are_refused_before_anything_runs(tmp_path):
    for cells, message in (
        ('fixed({"model.d_modle": 8})', "did you mean 'model.d_model'"),
        ('chain(fixed({"train.seed": 1}), fixed({"train.seed": 1}))', "two cells have the id"),
        ('fixed({"model.num_heads": 3})', "cell .*not divisible"),
        ("[]", "no cells"),
    ):
        with pytest.raises(InputError, match=message):
            load_cells(str(write_sweep(tmp_path, cells)), tmp_path / "runs", {})
    assert not (tmp_path / "runs").exists()


def test_the_quickstart_has_what_it_promises():
    cells = load_cells(str(ROOT / "configs" / "quickstart.py"), pathlib.Path("runs"), {})
    fitted, held_out = ([c for c in cells if c.held_out == side] for side in (False, True))
    assert len(fitted) >= 12 and len(held_out) == 2
    assert len({c.run.derived["n_total"] for c in fitted}) == 4
    largest = max(c.run.derived["flops_exact"] for c in fitted)
    assert all(c.run.derived["flops_exact"] > largest for c in held_out)
    assert not [w for w in plan.design_warnings(cells) if "cannot" in w]


def test_a_design_along_one_ray_is_warned_about(tmp_path):
    cells = '[{"model.d_model": d, "duration.steps": s} for d, s in ((8, 10), (16, 24), (24, 43), (32, 64), (40, 90))]'
    loaded = load_cells(str(write_sweep(tmp_path, cells, **{"data.sources": ("markov2:200000",)})), tmp_path, {})
    assert plan.design_warnings(loaded)


def test_cells_that_share_a_shape_are_the_runs_they_would_be_alone(tmp_path):
    """Only what a shape depends on is derived once; the other settings reach the run and its id."""
    varied = (
        {"train.seed": 3, "optimizer.learning_rate": 1e-4, "duration.steps": 5},
        {"schedule.name": "wsd", "schedule.decay_fraction": 0.5, "optimizer.weight_decay": 0.0},
        {"duration.steps": None, "duration.tokens": 2000, "checkpoint.at": (3,), "run.name": "other"},
        {"model.d_model": 8, "metrics.every_steps": 1},
        {"model.d_model": 8, "metrics.every_steps": 1, "train.seed": 1},
        {"data.seed": 1},
    )
    sweep = str(write_sweep(tmp_path, list(varied)))
    cells, base = load_cells(sweep, tmp_path, {}), configs.load(sweep)
    assert len({cell.run.shape for cell in cells}) == 3 and len({cell.run.shape.key for cell in cells}) == 2
    for cell in cells:
        alone = resolve(configs.overlay(base, cell.overlay))
        assert (cell.run.record(), cell.run.steps) == (alone.record(), alone.steps)
        assert (cell.run.filled, cell.run.shape.key, cell.run.lengths) == (alone.filled, alone.shape.key, alone.lengths)
        assert cell.run.config.to_dict() == alone.config.to_dict() and alone.config.is_locked


def test_makespan():
    assert plan.makespan([3, 3, 2, 2, 2], 2) == 7
    assert plan.makespan([5], 4) == 5


def _planned(tmp_path, cells="[{'train.seed': s, 'run.held_out': s > 3} for s in range(6)]", **extra):
    return load_cells(str(write_sweep(tmp_path, cells, **extra)), tmp_path / "runs", {})


def test_the_planned_time_follows_the_schedule(tmp_path):
    """Held-out cells wait for the fit; finished cells take no time and are not counted; started ones count in part."""
    cells = _planned(tmp_path)  # four cells of the fit, two held out
    costs = [20.0 if cell.held_out else 30.0 for cell in cells]
    assert (
        plan.schedule_seconds(cells, costs, 2) == 60 + 20
    )  # one list of cells on two workers would end at 80 / 2 + 40
    assert plan.schedule_seconds(cells, costs, 3) == 60 + 20
    assert "held-out cells start after the fit" in plan.totals(cells, costs, 2)
    fitted = [cell for cell in cells if not cell.held_out]
    for cell, status in zip(fitted, ("done", "done", "done", "preempted"), strict=True):
        cell.run_dir.mkdir(parents=True)
        run_record.write_json(cell.run_dir / "status.json", {"status": status, "step": 3})
        if status == "done":
            run_record.write_json(cell.run_dir / "summary.json", {"loss": 2.0})
    assert plan.schedule_seconds(cells, costs, 2) == 15 + 20
    text = plan.totals(cells, costs, 2)
    tokens = sum(cell.run.derived["tokens"] for cell in cells) // 2
    assert text.startswith("3 cells to train (3 of 6 have finished and are not counted): ")
    assert f"{count(tokens)} tokens" in text and "about 35s with 2 at a time" in text
    states = {row["run_id"]: row["state"] for row in plan.rows(cells, costs)}
    assert sorted(states.values()) == ["done"] * 3 + ["held out"] * 2 + ["preempted"]


def test_the_planned_time_includes_evaluations(tmp_path, monkeypatch):
    measured = {"startup": 1.0, "step": 0.5, "slots": 1, "evaluation": 10.0}
    monkeypatch.setattr(plan, "_calibrate_in_worker", lambda *_: measured)
    for every, times in ((None, 1), (6, 1), (5, 2), (2, 3), (1, 6)):
        (cell,) = _planned(tmp_path, "[{}]", **{"evaluation.every_steps": every})
        assert plan.evaluations(cell.run) == times
        packs = plan.estimate_packs([cell], None)
        assert plan.shares([cell], packs) == [pytest.approx(1 + 3 + 6 * 0.5 + times * 10)]
        assert not plan.describe_packs(packs)
    (cell,) = _planned(tmp_path, "[{}]", **{"evaluation.every_steps": 3, "checkpoint.per_decade": 2})
    assert plan.evaluations(cell.run) == 3  # at steps 1, 3 and 6


def test_the_plan_of_packs(tmp_path, monkeypatch):
    """Two shapes: five cells of 1, 1, 2, 3 and 6 steps through two slots take 7 steps; a held-out cell is alone."""

    def calibrated(cell, place, pack, cells):
        asked.append((pack, cells))
        return {"startup": 1.0, "step": 0.5, "slots": pack or 2, "evaluation": 10.0}

    monkeypatch.setattr(plan, "_calibrate_in_worker", calibrated)
    steps = "[{'duration.steps': n, 'train.seed': i} for i, n in enumerate((1, 1, 2, 3, 6))]"
    cells = _planned(tmp_path, f"{steps} + [{{'model.d_model': 64}}]")
    for pack, passed in (("auto", 0), (2, 2)):
        asked = []
        small, large = plan.estimate_packs(cells, None, pack)
        assert asked == [(passed, 5), (passed, 1)]
        assert (len(small.cells), small.slots, small.seconds) == (5, 2, pytest.approx(1 + 3 + 7 * 0.5 + 5 * 10))
        assert (len(large.cells), large.slots, large.seconds) == (1, 2, pytest.approx(1 + 3 + 6 * 0.5 + 10))
    shares = plan.shares(cells, [small, large])
    assert sum(shares[:5]) == pytest.approx(small.seconds) and shares[5] == large.seconds
    assert shares[4] == pytest.approx(6 * shares[0])
    assert "pack of 5 cells" in plan.describe_packs([small])[0] and "2 at a time" in plan.describe_packs([small])[0]


def test_the_time_of_an_evaluation_is_measured(tmp_path):
    (cell,) = _planned(tmp_path, "[{}]")
    measured = plan.calibrate(cell.run, seconds=0.05)
    assert all(measured[key] > 0 for key in ("startup", "step", "evaluation"))


def test_too_little_memory_is_warned_about(tmp_path, monkeypatch):
    """As too little disk is: a 6.4B model was planned on a machine of 24 GB without a word."""
    cells = _planned(tmp_path, "[{}, {'model.d_model': 64}]")
    largest = max(cell.run.derived["memory_bytes"] for cell in cells)
    both = sum(cell.run.derived["memory_bytes"] for cell in cells)
    for available, per_gpu, workers, warned in (
        (largest - 1, False, 1, True),
        (largest, False, 1, False),
        (both - 1, False, 2, True),
        (both - 1, True, 2, False),
        (0, False, 2, False),  # unknown
    ):
        monkeypatch.setattr(plan, "memory", lambda: (available, per_gpu))  # noqa: B023
        found = [text for text in plan.warnings(cells, tmp_path, workers) if text.startswith("memory: ")]
        assert len(found) == warned, (available, per_gpu, workers)
    assert plan.memory and hardware.memory()[0] > 2**28


def test_the_plan_as_csv_holds_full_numbers(tmp_path, capsys):
    sweep = str(write_sweep(tmp_path, "[{'train.seed': s} for s in range(3)]"))
    options = ["--no-calibration", "--workdir", str(tmp_path / "runs"), "--format", "csv"]
    assert cli.main(["plan", sweep, *options]) == 0
    out, err = capsys.readouterr()
    made = list(csv.DictReader(io.StringIO(out)))
    cells = load_cells(sweep, tmp_path / "runs", {})
    assert [row["run_id"] for row in made] == [cell.run.run_id for cell in cells]
    assert [int(row["n_total"]) for row in made] == [cell.run.derived["n_total"] for cell in cells]
    assert "3 cells to train" in err


def test_slots(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5})
    assert [s.environment["LMJAX_CORES"] for s in local.slots()] == ["0", "1", "4", "5"]
    assert [s.environment["LMJAX_CORES"] for s in local.slots(2)] == ["0,4", "1,5"]
    with pytest.raises(InputError, match="got -1"):
        local.slots(-1)
    monkeypatch.setattr(local, "accelerators", lambda: "tpu")
    monkeypatch.setattr(local, "tpu_chips", lambda: 2)
    assert [s.environment for s in local.slots()] == [{"TPU_VISIBLE_CHIPS": i, **local.ONE_CHIP} for i in "01"]
    assert [s.name for s in local.slots(1)] == ["tpu 0"]
    monkeypatch.setattr(local, "accelerators", lambda: "gpu")
    monkeypatch.setattr(hardware, "DRIVER", tmp_path / "gpus")  # no nvidia-smi: the driver's list
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / name).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(hardware.shutil, "which", lambda _: None)
        assert [s.environment for s in local.slots()] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [s.environment for s in local.slots()] == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    fake.write_text("#!/bin/sh\necho NVIDIA-SMI has failed\nexit 9\n")  # its error is no list of GPUs
    assert [s.name for s in local.slots()] == ["gpu 0", "gpu 1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert [s.name for s in local.slots()] == ["gpu 3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [s.name for s in local.slots(1)] == ["core 0,1,4,5"]


def test_devices_are_found_as_jax_finds_them(monkeypatch, tmp_path, capsys):
    """A TPU v5e has no /dev/accel*, a container may have no nvidia-smi; without a plug-in, or a device, a sentence."""
    plugins = set()
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.delenv("LMJAX_PARENT", raising=False)
    monkeypatch.setattr(hardware.importlib.util, "find_spec", lambda name: name if name in plugins else None)
    monkeypatch.setattr(hardware, "PCI", tmp_path / "pci")
    monkeypatch.setattr(hardware, "NVIDIA_FILES", (str(tmp_path / "nvidiactl"),))
    assert hardware.accelerators() == hardware.idle_accelerator() == ""
    for name, vendor, device in (("a", "0x1ae0", "0x0063"), ("b", "0x1ae0", "0x006f"), ("c", "0x8086", "0x0063")):
        (tmp_path / "pci" / name).mkdir(parents=True)
        (tmp_path / "pci" / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "pci" / name / "device").write_text(f"{device}\n")
    assert hardware.tpu_chips() == 2
    assert hardware.accelerators() == "" and 'pip install "jax[tpu]"' in hardware.idle_accelerator()
    plugins.add("libtpu")
    assert hardware.accelerators() == "tpu" and hardware.idle_accelerator() == ""
    plugins.clear()
    plugins.add("jax_cuda12_plugin")
    (tmp_path / "nvidiactl").touch()
    assert hardware.accelerators() == "gpu"
    (tmp_path / "nvidiactl").unlink()
    assert hardware.accelerators() == "" and "no GPU is visible" in hardware.idle_accelerator()
    note_idle_accelerator()
    assert "using the CPU" in capsys.readouterr().err
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    note_idle_accelerator()
    assert capsys.readouterr().err == ""


def test_peaks_of_devices(monkeypatch):
    device = SimpleNamespace(device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert (hardware.peak_flops("bfloat16"), hardware.peak_flops("float32")) == (989e12, 495e12)
    device.device_kind = "TPU v5 lite"
    assert hardware.peak_flops("float32") == hardware.peak_flops("bfloat16") == 197e12
    device.device_kind = "cpu"
    assert hardware.peak_flops("float32") is None


def _statuses(workdir):
    return {d.name: run_record.status_of(d) for d in run_record.find_runs(workdir)}


def _wait_for(pattern, workdir, seconds=300):  # a loaded machine needs minutes to start the workers
    deadline = time.monotonic() + seconds
    while not any(workdir.glob(pattern)):
        assert time.monotonic() < deadline, f"no {pattern} in {workdir}"
        time.sleep(0.05)


def test_a_killed_sweep_with_a_failing_and_a_diverging_cell(tmp_path, monkeypatch, capfd):
    """SIGKILL the sweep in the middle; the workers stop with it; the same command finishes; a third changes nothing."""
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cells = (
        'chain(product({"model.d_model": [8, 16]}), '
        'fixed({"optimizer.learning_rate": 1e30, "schedule.name": "constant", "optimizer.clip_norm": None}))'
    )
    extra = {"duration.steps": 150, "data.max_epochs": 1e6, "checkpoint.every_steps": 25, "model.num_layers": 1}
    sweep, workdir = write_sweep(tmp_path, cells, **extra), tmp_path / "runs"
    arguments = ["sweep", str(sweep), "--workdir", str(workdir), "--no-analysis"]
    process = subprocess.Popen([sys.executable, "-m", "lmjax", *arguments])
    _wait_for("*/checkpoints/[0-9]*", workdir)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 90
    while any(run_record.is_locked(d) for d in run_record.find_runs(workdir)):
        assert time.monotonic() < deadline, "workers outlive the sweep"
        time.sleep(0.05)
    assert cli.main(arguments) == 1
    out = capfd.readouterr().out
    statuses = _statuses(workdir)
    assert sorted(s["status"] for s in statuses.values()) == ["diverged"] + ["done"] * 2
    assert "diverged" in out and "log.txt" in out
    finished = {d: (d / "summary.json").read_text() for d in workdir.iterdir() if (d / "summary.json").exists()}
    for run_dir in finished:
        steps = [r["step"] for r in run_record.read_metrics(run_dir / "metrics.jsonl")]
        assert steps == list(range(2, 151, 2))
    orphan, victim = finished
    tokenizer = trained.load(orphan).tokenizer  # what a sweep trained can be sampled and evaluated
    assert tokenizer.decode(tokenizer.encode("47+85=")) == "47+85="

    # A kill came between the summary and the status of one cell; another cell cannot write its checkpoints.
    (orphan / "status.json").write_text(json.dumps({**statuses[orphan.name], "status": "running"}))
    (victim / "summary.json").unlink()
    shutil.rmtree(victim / "checkpoints")
    (victim / "checkpoints").write_text("a file where a folder belongs")
    (victim / "status.json").write_text(json.dumps({**statuses[victim.name], "status": "pending"}))
    assert cli.main(arguments) == 1
    assert "failed " + victim.name in capfd.readouterr().out.replace("\n", " ")
    assert "checkpoints" in (victim / "log.txt").read_text()
    assert finished[orphan] == (orphan / "summary.json").read_text()
    after = _statuses(workdir)
    assert after.pop(victim.name)["status"] == "failed" and after[orphan.name]["status"] == "done"
    assert all(after[name]["attempts"] == statuses[name]["attempts"] for name in after)


def test_a_stopped_sweep_saves_and_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    sweep = write_sweep(tmp_path, 'fixed({"duration.steps": 5000})', **{"data.max_epochs": 1e6, "model.num_layers": 1})
    workdir = tmp_path / "runs"

    def stop():
        _wait_for("*/metrics.jsonl", workdir)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    assert cli.main(["sweep", str(sweep), "--workdir", str(workdir), "--no-analysis"]) == 75
    stopper.join()
    assert "continues from here" in capfd.readouterr().out
    assert [s["status"] for s in _statuses(workdir).values()] == ["preempted"]
    assert any(workdir.glob("*/checkpoints/[0-9]*"))


@pytest.mark.parametrize("pack", [1, 2])
def test_a_worker_trains_several_cells_each_with_its_log(tmp_path, monkeypatch, pack):
    """One process for all cells; each run's messages and results are in its own directory."""
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    sweep = write_sweep(tmp_path, "[{'train.seed': s} for s in range(2)]", **{"model.num_layers": 1})
    launched = []
    launch = local.LocalPool._launch
    monkeypatch.setattr(local.LocalPool, "_launch", lambda *a: launched.append(a) or launch(*a))
    monkeypatch.setattr(local.LocalPool, "_take", lambda self, waiting: [waiting.popleft() for _ in range(2)])
    arguments = ["sweep", str(sweep), "--workdir", str(tmp_path / "runs"), "--no-analysis", "--workers", "1"]
    assert cli.main([*arguments, "--pack", str(pack)]) == 0
    assert len(launched) == 1
    for run_dir in run_record.find_runs(tmp_path / "runs"):
        assert run_record.read_json(run_dir / "summary.json")["packed"] == pack
        assert f"{run_dir.name}" in (run_dir / "log.txt").read_text()


def test_cells_of_a_worker(tmp_path):
    """Lists: up to half of a worker's share of the cost, equal shapes first. Packs: of one shape, a share each."""
    cells = "product({'model.d_model': [8, 16]}, {'train.seed': [0, 1, 2]}, {'duration.steps': [1, 6]})"
    cells = sorted(load_cells(str(write_sweep(tmp_path, cells)), tmp_path / "runs", {}), key=lambda c: -local._cost(c))

    def taken(pack, places=2):
        pool = local.LocalPool([local.Slot(f"{i}", {}) for i in range(places)], None)
        pool.pack, waiting, sizes = pack, collections.deque(cells), []  # "auto" stays where there are accelerators
        while waiting:
            left = sum(map(local._cost, waiting))
            sizes.append(pool._take(waiting))
            assert pack != 1 or len(sizes[-1]) == 1 or sum(map(local._cost, sizes[-1])) <= left / 2 / places
        assert sorted(c.run.run_id for part in sizes for c in part) == sorted(c.run.run_id for c in cells)
        return [[cell.run.config.model.d_model for cell in part] for part in sizes]

    assert taken(2, places=1) == [[16] * 4, [8] * 4, [16] * 2, [8] * 2]
    assert taken("auto", places=1) == [[16] * 6, [8] * 6] and taken("auto")[:2] == [[16] * 3, [8] * 3]
    lists = taken(1)
    assert len(lists) < 12 and lists[0][0] == 16 and sum(map(len, lists)) == 12


# -- Workers and folders under fault


class FakeWorker:
    """Stands for a worker process that has ended with a code."""

    def __init__(self, code):
        self.code = code

    def poll(self):
        return self.code


def _pool(tmp_path):
    cell = load_cells(str(write_sweep(tmp_path, 'fixed({"train.seed": 1})')), tmp_path / "runs", {})[0]
    cell.run.write(cell.run_dir)
    pool = local.LocalPool([local.Slot("core 0", {})], lambda statuses: None)
    return cell, pool


def test_a_removed_run_directory_is_one_failed_cell(tmp_path):
    """Not the end of the sweep: the other workers keep training."""
    cell, pool = _pool(tmp_path)
    pool.workers["core 0"] = local._Worker([cell], FakeWorker(1), [0])
    shutil.rmtree(cell.run_dir)
    statuses = {}
    pool._collect(collections.deque(), statuses)
    record = statuses[cell.run.run_id]
    assert record["status"] == "failed" and "was removed while it was training" in record["message"]
    assert not pool.workers and not cell.run_dir.exists()


def test_a_cell_that_another_process_trains_is_waited_for(tmp_path):
    """Its own worker is refused by the lock; that is no failure of the cell."""
    cell, pool = _pool(tmp_path)
    pool.workers["core 0"] = local._Worker([cell], FakeWorker(1), [0])
    run_record.write_json(cell.run_dir / "status.json", {"status": "running"})
    waiting, statuses = collections.deque(), {}
    with run_record.Lock(cell.run_dir):
        pool._collect(waiting, statuses)
        assert list(waiting) == [cell] and statuses[cell.run.run_id]["status"] == "running"
        pool._start(waiting)
        assert not pool.workers and list(waiting) == [cell]


def test_a_lost_summary_is_made_again_and_a_damaged_one_is_refused(tmp_path):
    """Moved away, as the error message says: a cell with status "done" was never evaluated again."""
    sweep, workdir, seeds = str(write_sweep(tmp_path, '[{"train.seed": 7}]')), tmp_path / "runs", []
    options = {"analyse": False, "quiet": True, "launch": _finisher(seeds)}
    sweep_run.sweep(sweep, workdir, {}, 1, **options)
    (path,) = workdir.glob("*/summary.json")
    for text, message in (
        ('{"loss": 2', "corrupt"),
        ('{"loss": NaN}', "finite"),
        ('{"run_id": "a-b", "loss": 2}', "belongs"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            sweep_run.sweep(sweep, workdir, {}, 1, **options)
    path.unlink()
    shutil.rmtree(path.parent / "checkpoints")
    assert seeds == [7] and run_record.status_of(path.parent)["status"] == "preempted"
    assert sweep_run.sweep(sweep, workdir, {}, 1, **options) == 0
    assert seeds == [7, 7] and path.exists()


def test_a_killed_list_counts_only_the_cells_that_began(tmp_path):
    """A cell that kills its worker fails after three starts without progress; those behind it in the list go on."""
    cells = load_cells(str(write_sweep(tmp_path, "[{'train.seed': s} for s in range(2)]")), tmp_path / "runs", {})
    pool, statuses, waiting = local.LocalPool([local.Slot("core 0", {})], lambda _: None), {}, collections.deque(cells)
    for _ in range(local.RETRIES):
        for cell, status in zip(cells, ("running", "pending"), strict=True):
            cell.run.write(cell.run_dir)
            run_record.write_json(cell.run_dir / "status.json", {"status": status})
        waiting.clear()
        pool.workers["core 0"] = local._Worker(cells, FakeWorker(-9), [0, 0])
        pool._collect(waiting, statuses)
    assert list(waiting) == cells[1:]
    assert [statuses[cell.run.run_id]["status"] for cell in cells] == ["failed", "pending"]


def test_a_run_directory_removed_before_its_turn_is_made_again(tmp_path, monkeypatch):
    cell, pool = _pool(tmp_path)
    shutil.rmtree(cell.run_dir)
    started = []
    monkeypatch.setattr(local.subprocess, "Popen", lambda command, **_: started.append(command) or FakeWorker(None))
    pool._start(collections.deque([cell]))
    assert run_record.read_status(cell.run_dir)["status"] == "pending" and (cell.run_dir / "config.json").exists()
    assert started == [[sys.executable, "-P", "-m", "lmjax", "train", "--run-dir", str(cell.run_dir)]]


def test_workers_do_not_import_from_the_current_folder(tmp_path, monkeypatch):
    """A user's own queue.py must not take a module's place, nor a stranger's folder run code; lmjax itself is found
    wherever this process found it."""
    (tmp_path / "queue.py").write_text("raise SystemExit('code of the current folder')")
    for found in (sys.path, ["", *(entry for entry in sys.path if entry != str(ROOT))]):  # the second: python -m lmjax
        monkeypatch.setattr(sys, "path", found)
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if str(ROOT) in found:
            monkeypatch.setenv("PYTHONPATH", str(ROOT))
        environment = local.worker_environment(local.Slot("core 0", {}))
        command = local.worker_command("train", "--help")
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0 and "--run-dir" in result.stdout, result.stderr


def test_messages_with_brackets_are_printed_as_they_are(tmp_path):
    """Brackets are markup for the terminal library: '[/red]' in a message ended the sweep, '[x]' disappeared."""
    cell, _ = _pool(tmp_path)
    message = "boom [/red] [os_error_code='28'] in a[1]"
    console = Console(file=io.StringIO(), width=80)
    assert sweep_run._conclude(console, [cell], {cell.run.run_id: {"status": "failed", "message": message}}, False) == 1
    assert message in console.file.getvalue()


def test_a_closed_terminal_stops_the_sweep_unless_nohup(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        cell, pool = _pool(tmp_path)
        monkeypatch.setattr(pool, "_start", lambda waiting: os.kill(os.getpid(), signal.SIGHUP))
        pool.run([cell])
        assert pool.stopping and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _, pool = _pool(tmp_path)

        def start(waiting):
            os.kill(os.getpid(), signal.SIGHUP)
            waiting.clear()

        monkeypatch.setattr(pool, "_start", start)
        pool.run([cell])
        assert not pool.stopping
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sweeps_refuse_a_directory_whose_checkpoints_could_not_be_read_back(tmp_path):
    sweep = str(write_sweep(tmp_path, 'fixed({"train.seed": 1})'))
    with pytest.raises(InputError, match="expected a path without"):
        sweep_run.sweep(sweep, tmp_path / "lr[1e-3]", {}, 1, False)
    assert not (tmp_path / "lr[1e-3]").exists()


def _finisher(trained_cells):
    """A launcher whose workers finish their cells at once, with two checkpoints each."""

    def launch(place, cells, command):
        for cell in cells:
            trained_cells.append(cell.overlay["train.seed"])
            for step in (3, 6):
                (cell.run_dir / "checkpoints" / str(step)).mkdir(parents=True)
            run_record.write_json(cell.run_dir / "summary.json", {"run_id": cell.run.run_id, "loss": 2.0})
            run_record.mark_done(cell.run_dir, cell.run.steps)
        return FakeWorker(0)

    return launch


def test_retry_and_the_checkpoints_that_are_kept(tmp_path, capsys):
    sweep = str(write_sweep(tmp_path, '[{"train.seed": s} for s in range(4)]'))
    cells, workdir, seeds = load_cells(sweep, tmp_path / "runs", {}), tmp_path / "runs", []
    cells.sort(key=lambda cell: cell.overlay["train.seed"])
    for cell, name in zip(cells, ("failed", "diverged", "pending", "failed"), strict=True):
        cell.run.write(cell.run_dir)
        run_record.write_json(cell.run_dir / "status.json", {"status": name})
    options = {"analyse": False, "quiet": True, "launch": _finisher(seeds)}
    for retry, kept, expected in (("diverged", "final", [1]), ("failed", "none", [0, 3]), (None, "all", [2])):
        seeds.clear()
        sweep_run.sweep(sweep, workdir, {}, 1, **options, retry=retry, keep_checkpoints=kept)
        assert sorted(seeds) == expected
        dirs = [cell.run_dir for cell in cells if cell.overlay["train.seed"] in expected]
        assert [trained.steps(d) for d in dirs] == [{"final": [6], "none": [], "all": [3, 6]}[kept]] * len(dirs)
    with pytest.raises(InputError, match="--retry failed: expected failed cells, got none"):
        sweep_run.sweep(sweep, workdir, {}, 1, **options, retry="failed")
    capsys.readouterr()
    assert cli.main(["runs", str(workdir), "--watch", "0.1"]) == 0
    assert "4 done" in capsys.readouterr().out


def test_runs_watch_follows_a_run_until_it_has_ended(tmp_path, capsys, monkeypatch):
    (cell,) = load_cells(str(write_sweep(tmp_path, "[{}]")), tmp_path / "runs", {})
    cell.run.write(cell.run_dir)
    status, waited = run_record.Status(cell.run_dir, 6), []

    def sleep(seconds):  # what the process that trains the run does meanwhile
        waited.append(seconds)
        if len(waited) == 1:
            status.write("running", step=4, loss=3.25)
        elif len(waited) == 2:
            lock.close()  # killed
        else:
            run_record.write_json(cell.run_dir / "summary.json", {"run_id": cell.run.run_id, "loss": 3.125})
            run_record.mark_done(cell.run_dir, 6)

    monkeypatch.setattr(describe, "time", SimpleNamespace(sleep=sleep))
    with contextlib.ExitStack() as lock:
        lock.enter_context(run_record.Lock(cell.run_dir))
        status.write("running", step=2, loss=3.5)
        assert cli.main(["runs", str(tmp_path / "runs"), "--watch", "7"]) == 0
    (short,) = short_ids([cell.run_dir.name])
    shown = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith(short)]
    assert waited == [7.0] * 3
    assert [(line[0], line[1] if "/" in line[1] else None) for line in shown] == [
        ("running", "2/6"),
        ("running", "4/6"),
        ("preempted", None),
        ("done", None),
    ]
    assert "3.5000" in shown[0] and "3.2500" in shown[1] and "3.1250" in shown[3]


def test_a_trunk_keeps_its_checkpoints_until_its_branches_have_finished(tmp_path):
    sweep = write_sweep(
        tmp_path,
        "branches([{}], [8 * 16 * 4, 8 * 16 * 8], decay=0.25)",
        **{"duration.steps": None, "duration.tokens": 1024},
    )
    sweep.write_text(sweep.read_text().replace("import chain", "import branches, chain"))
    cells = load_cells(str(sweep), tmp_path / "runs", {})
    (trunk,) = [cell for cell in cells if cell.run.config.schedule.name == "constant"]
    (trunk.run_dir / "checkpoints" / "6").mkdir(parents=True)
    pruner, done = sweep_run.Pruner(cells, "none"), {cell.run.run_id: {"status": "done"} for cell in cells}
    pruner.update({**done, cells[0].run.run_id: {"status": "running"}})
    assert trained.steps(trunk.run_dir) == [6]
    pruner.update(done)
    assert trained.steps(trunk.run_dir) == []


def test_a_live_table_of_many_cells_shows_those_that_need_attention(tmp_path):
    cells = load_cells(str(write_sweep(tmp_path, '[{"train.seed": s} for s in range(9)]')), tmp_path / "runs", {})
    names = [cell.run.run_id for cell in cells]
    statuses = {name: {"status": "done"} for name in names}
    statuses |= {names[4]: {"status": "failed"}, names[7]: {"status": "running"}}
    view = sweep_run.SweepView(cells, Console(file=io.StringIO(), width=100))
    assert len(view.table(statuses).rows) == 9
    assert [row[3] for row in view.table(statuses, 3).rows] == [
        ("running", "cyan"),
        ("failed", "bold red"),
        ("done", "green"),
    ]

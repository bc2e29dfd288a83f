"""Bug class 7 and the run protocol with jax.distributed: two processes equal one, stop together, and do not hang."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from lmjax import distributed, run_record
from lmjax.errors import InputError
from tests.conftest import ROOT, SMALL


def _arguments(run_dir, **overrides):
    keys = {**SMALL, "duration.steps": 8, "mesh.fsdp": 2, **overrides}
    flags = [f"--config.{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in keys.items()]
    config = str(ROOT / "configs" / "decoder.py")
    return [sys.executable, "-m", "lmjax", "train", "--config", config, "--run-dir", str(run_dir), *flags]


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _launch(run_dir, processes, devices, **overrides):
    port, started = _free_port(), []
    for i in range(processes):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "LMJAX_HEARTBEAT_SECONDS": "30",
        }
        if processes > 1:
            environment |= {
                "LMJAX_COORDINATOR": f"127.0.0.1:{port}",
                "LMJAX_NUM_PROCESSES": str(processes),
                "LMJAX_PROCESS_ID": str(i),
            }
        with open(run_dir.parent / f"log.{i}", "a") as log:
            started.append(subprocess.Popen(_arguments(run_dir, **overrides), env=environment, stderr=log, stdout=log))
    return started


def _codes(processes, folder, timeout=100):
    try:
        return [p.wait(timeout) for p in processes]
    except subprocess.TimeoutExpired:
        for p in processes:
            p.kill()
        raise AssertionError("\n".join(f.read_text()[-3000:] for f in folder.glob("log.*"))) from None


def _metrics(run_dir):
    records = run_record.read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records]


def _wait_for_step(run_dir, step, timeout=90):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if run_dir.exists() and (records := run_record.read_metrics(run_dir / "metrics.jsonl")):
            if records[-1]["step"] >= step:
                return
        time.sleep(0.05)
    raise AssertionError("no progress")


def test_two_processes_equal_one_and_stop_together(tmp_path):
    """2 x 2 devices against 1 x 4 on the same mesh: the same run. Both killed, they resume at a step that is evaluated;
    SIGTERM to one: both save one step and exit 75."""
    keys = {"duration.steps": 40, "evaluation.every_steps": 2, "checkpoint.every_steps": 2}
    assert _codes(_launch(tmp_path / "one", 1, 4, **keys), tmp_path) == [0]
    run_dir = tmp_path / "two"
    processes = _launch(run_dir, 2, 2, **keys)
    _wait_for_step(run_dir, 4)
    for process in processes:
        process.kill()
        process.wait()
    assert any((run_dir / "checkpoints").glob("[0-9]*"))
    processes = _launch(run_dir, 2, 2, **keys)
    _wait_for_step(run_dir, 8)
    processes[1].send_signal(signal.SIGTERM)
    codes = _codes(processes, tmp_path)
    if codes != [0, 0]:  # the notice may come after the last of these quick steps
        assert codes == [75, 75], (tmp_path / "log.0").read_text()[-3000:]
        assert run_record.status_of(run_dir)["status"] == "preempted"
        assert _codes(_launch(run_dir, 2, 2, **keys), tmp_path) == [0, 0]
    one, two = _metrics(tmp_path / "one"), _metrics(run_dir)
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one, two, strict=True):  # sums cross processes in another order: the last bits of float32
        assert b == pytest.approx(a, rel=1e-5)


def test_the_survivor_of_a_killed_process_ends_at_once(tmp_path):
    processes = _launch(tmp_path / "run", 2, 2, **{"duration.steps": 100000, "data.max_epochs": 1e6})
    _wait_for_step(tmp_path / "run", 4)
    processes[1].kill()
    began = time.monotonic()
    codes = _codes(processes, tmp_path, timeout=25)
    assert codes[0] not in (0, 75) and time.monotonic() - began < 25  # heartbeat alone would take 30 s


def test_half_a_description_of_the_processes_is_refused(monkeypatch):
    monkeypatch.setenv("LMJAX_COORDINATOR", "host:1")
    with pytest.raises(InputError, match="expected all of LMJAX_COORDINATOR"):
        distributed.initialize()

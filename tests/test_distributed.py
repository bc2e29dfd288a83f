"""Guards against multi-process runs that differ from one process, stop at different steps, or hang."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import pandas
import pytest

from lmjax import cli, distributed, run_record, trainer
from lmjax.errors import InputError
from lmjax.resolve import resolve
from tests.conftest import ONE_DEVICE, ROOT, SMALL, small
from tests.random_runs import write_run


def _arguments(run_dir, **overrides):
    keys = {**SMALL, "duration.steps": 8, "mesh.fsdp": 2, **overrides}
    flags = [f"--config.{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in keys.items()]
    return ["train", "--config", str(ROOT / "configs" / "decoder.py"), "--run-dir", str(run_dir), *flags]


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _launch(commands, folder, devices, heartbeat=300):
    """Starts the commands of lmjax as processes that join each other; their output goes to log.0, ... in the folder."""
    port, started = _free_port(), []
    for i, command in enumerate(commands):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": f"{ONE_DEVICE} --xla_force_host_platform_device_count={devices}",
            "LMJAX_HEARTBEAT_SECONDS": str(heartbeat),
            "LMJAX_COORDINATOR": f"127.0.0.1:{port}",
            "LMJAX_NUM_PROCESSES": str(len(commands)),
            "LMJAX_PROCESS_ID": str(i),
        }
        words = [sys.executable, "-m", "lmjax", *command]
        with open(folder / f"log.{i}", "a") as log:
            started.append(subprocess.Popen(words, env=environment, stderr=log, stdout=log))
    return started


def _codes(processes, folder, timeout=200):
    try:
        return [p.wait(timeout) for p in processes]
    except subprocess.TimeoutExpired:
        for p in processes:
            p.kill()
        raise AssertionError("\n".join(f.read_text()[-3000:] for f in folder.glob("log.*"))) from None


def _metrics(run_dir):
    records = run_record.read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in records]


def _wait_for_step(run_dir, step, timeout=200):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if run_dir.exists() and (records := run_record.read_metrics(run_dir / "metrics.jsonl")):
            if records[-1]["step"] >= step:
                return
        time.sleep(0.05)
    raise AssertionError("no progress")


def test_two_processes_equal_one_and_stop_together(tmp_path, monkeypatch):
    """2 x 4 devices against 1 x 8: the same run, which one process begins on another mesh, two continue, again with the
    tokens of a row split over all devices, and then one. One of the two is killed: the other ends, at the latest when
    heartbeats are missing for this long, usually at once, as its connection closes. They resume at a step that is
    evaluated; SIGTERM to one: both save one step and exit 75."""
    keys = {"duration.steps": 5000, "data.max_epochs": 1e6, "evaluation.every_steps": 2, "checkpoint.every_steps": 2}
    keys |= {"schedule.warmup_steps": 2, "model.num_layers": 1}
    run_dir = tmp_path / "two"

    def alone(run_dir, until, **mesh):
        """One process, which is asked to stop when it has recorded a step."""
        reached = SimpleNamespace(at=lambda _: [r["step"] for r in _metrics(run_dir)][-1:] == [until])
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "StopRequest", lambda: contextlib.nullcontext(reached))
            assert cli.main(_arguments(run_dir, **keys, **mesh)) == trainer.PREEMPTED

    both = [_arguments(run_dir, **keys)] * 2
    alone(run_dir, 2, **{"mesh.fsdp": 4, "mesh.tensor": 2})
    processes = _launch(both, tmp_path, 4, heartbeat=20)
    _wait_for_step(run_dir, 6)
    processes[1].kill()
    assert _codes(processes, tmp_path)[0] == 75, (tmp_path / "log.0").read_text()[-3000:]
    assert "another process of this run has ended" in (tmp_path / "log.0").read_text()
    assert run_record.status_of(run_dir)["status"] == "preempted"
    processes = _launch([[*words, "--config.mesh.fsdp=1", "--config.mesh.context=8"] for words in both], tmp_path, 4)
    _wait_for_step(run_dir, 10)
    processes[1].send_signal(signal.SIGTERM)
    assert _codes(processes, tmp_path) == [75, 75], (tmp_path / "log.0").read_text()[-3000:]
    status = run_record.status_of(run_dir)
    assert status["status"] == "preempted" and (run_dir / "checkpoints" / str(status["step"])).exists()
    last = _metrics(run_dir)[-1]["step"] + 2
    alone(run_dir, last)
    alone(tmp_path / "one", last)
    one, two = _metrics(tmp_path / "one"), _metrics(run_dir)
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one, two, strict=True):  # sums cross processes in another order: the last bits of float32
        assert b == pytest.approx(a, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"fsdp": 1, "tensor": 4}])
def test_one_two_and_four_processes_train_the_same_run(tmp_path, mesh):
    """4 devices as 1 x 4, 2 x 2 and 4 x 1: the same bits. Each count continues from step 4 what another one saved. With
    tensor, every matrix and its activations are split over all of them."""
    keys = {"model.num_layers": 1, "model.num_heads": 4, "checkpoint.every_steps": 2, "checkpoint.keep": None}
    keys |= {f"mesh.{axis}": size for axis, size in mesh.items()}

    def train(run_dir, count):
        processes = _launch([_arguments(run_dir, **keys)] * count, tmp_path, 4 // count)
        assert _codes(processes, tmp_path) == [0] * count, (tmp_path / "log.0").read_text()[-3000:]
        return _metrics(run_dir), run_record.read_json(run_dir / "summary.json")["loss"]

    whole = {count: train(tmp_path / str(count), count) for count in (1, 2, 4)}
    assert whole[1] == whole[2] == whole[4]
    for writer, reader in ((4, 2), (2, 1), (1, 4)):
        run_dir = tmp_path / f"{writer}-{reader}"
        shutil.copytree(tmp_path / str(writer), run_dir)
        (run_dir / "summary.json").unlink()
        for step in (6, 8):
            shutil.rmtree(run_dir / "checkpoints" / str(step))
        assert train(run_dir, reader) == whole[1]
        assert (tmp_path / "log.0").read_text().count("resumed from step 4") > 0


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others_with_its_message_and_not_with_75(tmp_path):
    """Else a launcher would start a run again and again that can only fail: here process 0 cannot write."""
    keys = {"duration.steps": 5000, "data.max_epochs": 1e6, "model.num_layers": 1}
    processes = _launch([_arguments(tmp_path / "run", **keys)] * 2, tmp_path, 1)
    _wait_for_step(tmp_path / "run", 4)
    (tmp_path / "run" / "status.json").unlink()
    (tmp_path / "run" / "status.json").mkdir()  # the next heartbeat cannot replace it
    assert _codes(processes, tmp_path) == [1, 1]
    assert "process 0 failed: IsADirectoryError" in (tmp_path / "log.1").read_text()


def test_an_error_is_blamed_on_the_process_that_failed(monkeypatch):
    """Only the loss of another process, of which nobody says why, is worth a restart."""
    told = {}
    client = SimpleNamespace(key_value_set=told.__setitem__, key_value_dir_get=lambda _: [*told.items()])
    monkeypatch.setattr(distributed, "_client", lambda: client)
    monkeypatch.setattr(distributed, "TELL_SECONDS", 0.01)
    gone = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: ... Connection reset by peer")
    assert distributed.blame(gone) == (f"JaxRuntimeError: {gone}", False)  # one process alone
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert distributed.blame(gone) == (distributed.LOST, True) and not told
    full = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert distributed.blame(full) == ("JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory", False)
    assert distributed.blame(gone) == (f"process 0 failed: JaxRuntimeError: {full}", False)


def test_two_processes_evaluate_one_model(tmp_path, capsys):
    """Each has half of the parameters. Process 0 writes; the numbers are those of one process."""
    one, two = write_run(tmp_path / "one", steps=(3,), mesh__fsdp=2, data__seq_len=64), tmp_path / "two"
    shutil.copytree(one, two)
    words = ["--tasks", "perplexity,agreement", "--limit", "6"]
    assert cli.main(["eval", str(one), *words]) == 0
    processes = _launch([["eval", str(two), *words]] * 2, tmp_path, 1)
    assert _codes(processes, tmp_path) == [0, 0], (tmp_path / "log.1").read_text()[-3000:]
    tables = [pandas.read_csv(folder / "evaluations.csv") for folder in (one, two)]
    assert len(tables[0]) == len(tables[1]) > 2 and tables[0]["status"].eq("done").all()
    same = ["task", "metric", "status", "n"]
    assert tables[0][same].equals(tables[1][same])
    assert tables[1]["value"].tolist() == pytest.approx(tables[0]["value"].tolist(), rel=1e-5)
    assert (tmp_path / "log.0").read_text().count("rows in") == 1 and "rows in" not in (tmp_path / "log.1").read_text()


def test_processes_with_different_configs_or_data_end_with_64_and_say_what_differs(tmp_path):
    """Unlike data trains a model of nothing; unlike steps or checkpoint intervals wait for each other for ever."""
    commands = [_arguments(tmp_path / "run", **{"train.seed": seed}) for seed in (0, 1)]
    processes = _launch(commands, tmp_path, 1)
    assert _codes(processes, tmp_path) == [64, 64]
    for log in tmp_path.glob("log.*"):
        assert "train.seed is 0 in process 0, 1 in process 1" in log.read_text()
    assert not (tmp_path / "run").exists()


def test_processes_refuse_a_run_that_is_held_elsewhere_together_and_go_on_with_the_next(tmp_path):
    """What `hosts` starts, while another launcher trains one of its cells and has ended another. Process 0 alone saw
    the lock, or a damaged record, and went on to the next run, while the others waited for it at the first."""
    run, (held, damaged, ended) = resolve(small(mesh__fsdp=2)), (tmp_path / name for name in ("held", "bad", "ended"))
    for run_dir in (held, damaged, ended):
        run.write(run_dir)
    record = run.record()
    run_record.write_json(damaged / "config.json", {**record, "data": {"sources": ["not an object"]}})
    run_record.write_json(damaged / "status.json", {"status": "failed"})  # so that its files stay as they are
    run_record.write_json(ended / "summary.json", {"run_id": run.run_id, "loss": 2.0})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with run_record.Lock(held):
        processes = _launch([["train", "--run-dir", str(held), str(damaged), str(ended)]] * 2, tmp_path, 1)
        assert _codes(processes, tmp_path) == [1, 1], (tmp_path / "log.1").read_text()[-3000:]
    for log in tmp_path.glob("log.*"):
        said = log.read_text()
        assert f"{held} is in use by process {os.getpid()}" in said and "'str' object has no attribute 'get'" in said
    assert {path: path.read_bytes() for path in before} == before and not (held / "status.json").exists()
    assert run_record.status_of(ended)["status"] == "done"  # by process 0


def test_every_difference_between_processes_is_named():
    facts = [{"duration.steps": 10, "data": "a", "lr": 1.0}, {"duration.steps": 20, "data": "a", "lr": 1.0}]
    assert distributed.different(facts) == ["duration.steps is 10 in process 0, 20 in process 1"]
    assert distributed.different([*facts[:1], {**facts[0], "more": 1}]) == ["more is None in process 0, 1 in process 1"]
    assert distributed.different(facts[:1] * 3) == []
    facts = trainer._facts(resolve(small()))
    assert {"duration.steps", "checkpoint.every_steps", "metrics.every_steps", "data", "source code"} <= set(facts)
    assert json.loads(json.dumps(facts)) == facts  # they are exchanged as JSON


def test_a_run_that_makes_no_progress_among_others_ends(monkeypatch, capsys):
    """Instead of waiting for ever for a process that is stuck; progress keeps it alive, one process alone is spared."""
    told, codes = [], []
    monkeypatch.setattr(os, "_exit", codes.append)
    with distributed.Watchdog(told.append, 0.02):
        time.sleep(0.1)
    assert not codes
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_failure", lambda: "")
    with distributed.Watchdog(told.append, 0.2) as watchdog:
        for _ in range(6):
            time.sleep(0.06)
            watchdog.beat()
        assert not codes
        deadline = time.monotonic() + 10
        while not codes and time.monotonic() < deadline:
            time.sleep(0.01)
    assert codes[0] == 1 and "no progress for 0.2 s" in told[0] and told[0] in capsys.readouterr().err


def test_a_process_that_waits_for_the_others_ends_on_a_signal():
    """Its main thread is inside JAX, where Python's signal handlers do not run."""
    program = "from lmjax import distributed; distributed.stop_before_training(); distributed.initialize()"
    processes = []
    for index in range(2):  # each alone in a run of its own
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMJAX_COORDINATOR": f"127.0.0.1:{_free_port()}"}
        environment |= {"LMJAX_NUM_PROCESSES": "2", "LMJAX_PROCESS_ID": str(index)}
        command = [sys.executable, "-c", program]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        assert "joining the others" in process.stderr.readline()
    time.sleep(2)
    for process in processes:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 75


def test_a_coordinator_that_cannot_work_is_an_error_at_once(monkeypatch):
    monkeypatch.setattr(distributed, "PORT_SECONDS", 0)
    monkeypatch.setattr(distributed, "JOIN_SECONDS", 0)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        for address, message in (
            (f"127.0.0.1:{taken.getsockname()[1]}", "in use"),
            ("no-such-host.invalid:7777", "the host 'no-such-host.invalid' is unknown"),
            ("localhost", "expected host:port"),
            ("localhost:99999", "expected host:port"),
        ):
            with pytest.raises(InputError, match=message):
                distributed._check_coordinator(address, 0)


@pytest.mark.parametrize(
    "name, value",
    [
        ("LMJAX_NUM_PROCESSES", "abc"),
        ("LMJAX_NUM_PROCESSES", "0"),
        ("LMJAX_PROCESS_ID", "-1"),
        ("LMJAX_PROCESS_ID", "5"),
        ("LMJAX_HEARTBEAT_SECONDS", "0"),
        ("LMJAX_HEARTBEAT_SECONDS", "soon"),
    ],
)
def test_bad_descriptions_of_the_processes_are_refused(monkeypatch, name, value):
    for key, good in zip(distributed.ENVIRONMENT, ("127.0.0.1:7777", "2", "0"), strict=True):
        monkeypatch.setenv(key, good)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}: expected an integer"):
        distributed.initialize()


def test_a_closed_terminal_is_a_request_to_stop_unless_nohup(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with distributed.StopRequest() as stop:
            assert not stop.at(1)
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.at(2)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with distributed.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.at(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_half_a_description_of_the_processes_is_refused(monkeypatch):
    monkeypatch.setenv("LMJAX_COORDINATOR", "host:1")
    with pytest.raises(InputError, match="expected all of LMJAX_COORDINATOR"):
        distributed.initialize()

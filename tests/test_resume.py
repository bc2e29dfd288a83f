"""Guards against resumed runs that differ from uninterrupted ones in any bit."""

import errno
import functools
import gzip
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lmjax import checkpoint, cli, hardware, run_record, trainer
from lmjax.checkpoint import Checkpoints, checksums
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.evals import table
from lmjax.metrics import MetricsWriter
from lmjax.resolve import resolve
from tests.conftest import ONE_DEVICE, ROOT, SMALL, small, train

TIMING = ("tokens_per_second",)


class StopAt:
    """Stands for a signal that arrives after the k-th poll."""

    def __init__(self, k):
        self.k, self.polls = k, 0

    def __call__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def at(self, _):
        self.polls += 1
        return self.polls == self.k


def metrics(run_dir):
    return [{k: v for k, v in r.items() if k not in TIMING} for r in run_record.read_metrics(run_dir / "metrics.jsonl")]


def final_state(run, run_dir):
    """The last checkpoint's arrays, read without the trainer."""
    checkpoints = Checkpoints(run_dir / "checkpoints", 2)
    optimizer = trainer.make_optimizer(run.config.optimizer)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]), run.metrics, run.carry)
    like = trainer.abstract_state(run, init, jax.random.key(0), trainer.make_mesh(run.config.mesh))
    state, record = checkpoints.restore_newest(like)
    checkpoints.close()
    assert record["step"] == run.steps
    return jax.tree.map(np.asarray, state)


def assert_same_end(run, a, b):
    jax.tree.map(np.testing.assert_array_equal, final_state(run, a), final_state(run, b))
    assert metrics(a) == metrics(b)
    left, right = (run_record.read_json(d / "summary.json") for d in (a, b))
    for name in ("loss", "train_loss", "tokens", "bits_per_byte", "loss_tokens"):
        assert left[name] == right[name]


def profiled_steps(run_dir):
    """The steps in the newest trace of a run."""
    path = max((run_dir / "profile").rglob("*.trace.json.gz"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return [int(event["args"]["step_num"]) for event in events if event.get("name") == "train"]


@functools.cache
def one_device(family="decoder", **overrides):
    return resolve(small(family, **{"model__num_layers": 1, **overrides}))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """6 steps with dropout, a schedule and metrics every second step; steps 3 and 6 are evaluated, on one batch."""
    run = one_device(model__dropout=0.1, evaluation__every_steps=3, evaluation__batch_size=64)
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run, run_dir) == trainer.DONE
    return run, run_dir


def test_stopped_after_steps_and_inside_an_evaluation(uninterrupted, tmp_path, monkeypatch):
    """Stopped four times, each time continued with fresh objects. The evaluation that was cut short is made up for
    after the resume; its metrics line is not lost. A profile changes nothing, and ends when the run is stopped."""
    run, whole = uninterrupted
    # The third stop is asked for in the evaluation of step 3; the fourth attempt polls there, too, before its steps.
    for polls, step in ((1, 1), (1, 2), (1, 3), (3, 5)):
        monkeypatch.setattr(trainer, "StopRequest", StopAt(polls))
        profile = (2, 4) if step == 2 else None
        assert train(run, tmp_path / "run", profile=profile) == trainer.PREEMPTED
        status = run_record.status_of(tmp_path / "run")
        assert status["status"] == "preempted" and status["step"] == step
        evaluated = [r["step"] for r in metrics(tmp_path / "run") if "validation_loss" in r]
        assert evaluated == ([3] if step == 5 else [])
    monkeypatch.undo()
    assert profiled_steps(tmp_path / "run") == [2]
    for profile in ((5, 6), (6, 7), (0, 6)):
        with pytest.raises(InputError, match=r"expected FIRST:LAST with 5 < FIRST <= LAST <= 6 .*5 are done"):
            train(run, tmp_path / "run", profile=profile)
    assert train(run, tmp_path / "run", profile=(6, 6)) == trainer.DONE
    assert profiled_steps(tmp_path / "run") == [6]
    assert_same_end(run, whole, tmp_path / "run")
    assert run_record.read_json(tmp_path / "run" / "summary.json")["attempts"] == 5


def test_epoch_border_packing_and_mixture(tmp_path, monkeypatch):
    """The same with packed rows of a mixture, stopped in its second epoch."""
    run = one_device(
        data__sources=("markov2:2000", "zipf:2000"),
        data__weights=(0.7, 0.3),
        data__mode="pack",
        data__max_epochs=50.0,
        duration__steps=None,
        duration__epochs=1.5,
    )
    assert run.steps > 6
    stop = run.steps - 3
    assert train(run, tmp_path / "whole") == trainer.DONE
    monkeypatch.setattr(trainer, "StopRequest", StopAt(stop))
    assert train(run, tmp_path / "run") == trainer.PREEMPTED
    monkeypatch.undo()
    assert train(run, tmp_path / "run") == trainer.DONE
    assert_same_end(run, tmp_path / "whole", tmp_path / "run")


def _arguments(run_dir, **overrides):
    keys = {**SMALL, "model.num_layers": 1, "duration.steps": 80, "checkpoint.every_steps": 4, **overrides}
    flags = [f"--config.{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in keys.items()]
    return ["train", "--config", str(ROOT / "configs" / "decoder.py"), "--run-dir", str(run_dir), *flags]


def _start(run_dir):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(run_dir.parent / "log", "w") as log:
        return subprocess.Popen([sys.executable, "-m", "lmjax", *_arguments(run_dir)], env=environment, stderr=log)


def _wait_for_step(run_dir, step, process):
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        records = run_record.read_metrics(run_dir / "metrics.jsonl") if run_dir.exists() else []
        if records and records[-1]["step"] >= step:
            return
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.01)
    raise AssertionError("no progress")


def test_killed_and_terminated_processes_end_with_the_same_bits(tmp_path):
    """SIGKILL in the middle, SIGTERM (saves, exit 75), then to the end in this process; against one run through."""
    assert cli.main(_arguments(tmp_path / "whole")) == 0
    run_dir = tmp_path / "run"
    process = _start(run_dir)
    _wait_for_step(run_dir, 4, process)
    process.kill()
    process.wait()
    assert run_record.status_of(run_dir)["status"] in ("preempted", "done")
    with open(run_dir / "metrics.jsonl", "a") as file:
        file.write('{"step": 999, "lo')  # what a kill in the middle of a write leaves
    process = _start(run_dir)
    _wait_for_step(run_dir, 12, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert run_record.status_of(run_dir)["status"] == "preempted"
    assert cli.main(_arguments(run_dir)) == 0
    assert metrics(run_dir) == metrics(tmp_path / "whole")
    whole, pieces = (run_record.read_json(d / "summary.json") for d in (tmp_path / "whole", run_dir))
    assert whole["loss"] == pieces["loss"] and pieces["attempts"] == 3
    steps = [record["step"] for record in metrics(run_dir)]
    assert steps == sorted(set(steps)) and steps[-1] == 80
    assert cli.main(_arguments(run_dir)) == 0  # a finished run is not touched
    assert run_record.read_json(run_dir / "summary.json") == pieces


def test_killed_after_the_last_checkpoint_before_the_summary(uninterrupted, tmp_path):
    """The last evaluation is made again, and the summary is what it would have been."""
    (run, whole), run_dir = uninterrupted, tmp_path / "run"
    shutil.copytree(whole, run_dir)
    before, lines = run_record.read_json(run_dir / "summary.json"), metrics(run_dir)
    (run_dir / "summary.json").unlink()
    assert train(run, run_dir) == trainer.DONE
    after = run_record.read_json(run_dir / "summary.json")
    assert {k: after[k] for k in ("loss", "train_loss", "tokens")} == {
        k: before[k] for k in ("loss", "train_loss", "tokens")
    }
    assert metrics(run_dir) == lines
    status = json.loads((run_dir / "status.json").read_text())
    (run_dir / "status.json").write_text(json.dumps({**status, "status": "running"}))
    assert train(run, run_dir) == trainer.DONE
    assert run_record.status_of(run_dir)["status"] == "done"


def test_time_policy_and_number_kept(tmp_path):
    """Every step is later than a nanosecond: each but the last is saved by the clock, the newest two are kept."""
    run = one_device(checkpoint__every_seconds=1e-9, checkpoint__keep=2)
    assert train(run, tmp_path / "run") == trainer.DONE
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()) == ["5", "6"]


# -- Damaged checkpoints


def _saved(tmp_path, steps=(1, 2)):
    state = {"w": jax.numpy.arange(1000.0), "n": jax.numpy.int32(7), "ok": jax.numpy.bool_(True)}
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in steps:
        checkpoints.save(step, {**state, "n": jax.numpy.int32(step)})
    checkpoints.wait()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    return checkpoints, like


def _data_files(folder):
    return sorted(
        (f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 200), key=lambda f: -f.stat().st_size
    )


def test_a_save_reports_no_step_to_the_preemption_service(tmp_path, monkeypatch):
    """The trainer reports the number of its polls; a step reported in between could set a stop that no poll reaches."""
    reported = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reported.append)
    _saved(tmp_path)
    assert reported == []


def test_small_arrays_that_devices_share_are_saved_without_compiling(tmp_path):
    """Orbax compiled a slice for each device and shape: a quarter of the time of a short run on eight devices."""
    everywhere = jax.sharding.NamedSharding(jax.make_mesh((8,), ("x",)), jax.sharding.PartitionSpec())
    state, events = {"w": jax.device_put(np.arange(8.0 * 57).reshape(8, 57), everywhere)}, []
    checksums(state)
    saver = Checkpoints(tmp_path / "checkpoints", keep=1)
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    try:
        saver.save(1, state)
        saver.wait()
        assert not [name for name in events if "backend_compile" in name]
        jax.jit(lambda x: x * 3)(1.0)
        assert [name for name in events if "backend_compile" in name]  # what is listened for exists
    finally:
        jax.monitoring.clear_event_listeners()
    like = {"w": jax.ShapeDtypeStruct((8, 57), np.float32, sharding=everywhere)}
    np.testing.assert_array_equal(saver.restore_newest(like)[0]["w"], state["w"])


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path):
    checkpoints, like = _saved(tmp_path)
    victim = _data_files(tmp_path / "checkpoints" / "2" / "state")[0]
    victim.write_bytes(victim.read_bytes()[:100])
    notes = []
    state, record = checkpoints.restore_newest(like, notes.append)
    assert record["step"] == 1 and int(state["n"]) == 1
    assert "checkpoint 2 cannot be used" in notes[0]
    assert [p.name.partition("-")[0] for p in (tmp_path / "unreadable").iterdir()] == ["2"]
    checkpoints.save(2, state)  # the place is free again
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_a_changed_value_is_found_by_its_checksum(tmp_path):
    checkpoints, like = _saved(tmp_path)
    record = next((tmp_path / "checkpoints" / "2" / "record").rglob("*metadata*"))
    text = json.loads(record.read_text())
    text["checksums"]["['w']"] ^= 1
    record.write_text(json.dumps(text))
    notes = []
    assert checkpoints.restore_newest(like, notes.append)[1]["step"] == 1
    assert "checksums differ for [\"['w']\"]" in notes[0]


MACHINE = {
    "a read error that Orbax passes on": OSError(errno.EIO, "Input/output error"),
    "a read error inside TensorStore": ValueError("Error reading local file [os_error_code='5']"),
    "no permission": ValueError("PERMISSION_DENIED: Error opening manifest"),
    "too many open files": ValueError("Error opening file [os_error_code='24']"),
}


@pytest.mark.parametrize("error", MACHINE.values(), ids=MACHINE)
def test_a_machine_that_cannot_read_leaves_good_checkpoints_where_they_are(tmp_path, monkeypatch, error):
    """Only damaged content is moved away: when the disk is well again the run resumes from its newest checkpoint."""
    checkpoints, like = _saved(tmp_path)

    def fail(*_, **__):
        try:
            raise error
        except Exception as cause:
            raise Exception("Encountered error while reading array index") from cause  # as Orbax does

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(OSError, match="cannot read a checkpoint"):
            checkpoints.restore_newest(like)
    assert not (tmp_path / "unreadable").exists()
    assert checkpoints.restore_newest(like)[1]["step"] == 2


def test_a_read_error_that_orbax_does_not_name_is_found_by_reading_the_files(tmp_path, monkeypatch):
    checkpoints, like = _saved(tmp_path)

    def unreadable(path, mode="r", *_):
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "restore", lambda *_, **__: 1 / 0)
        patch.setattr(checkpoint, "open", unreadable, raising=False)
        with pytest.raises(OSError, match="Input/output error"):
            checkpoints.restore_newest(like)
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("place", [5, 1])
def test_a_checkpoint_under_another_steps_name_is_not_resumed(tmp_path, place):
    """A folder that was copied or renamed: training from it would skip or repeat steps in silence."""
    checkpoints, like = _saved(tmp_path)
    checkpoints.close()
    if place == 1:
        shutil.rmtree(tmp_path / "checkpoints" / "1")
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / str(place))
    notes = []
    again = Checkpoints(tmp_path / "checkpoints", keep=3)
    if place == 1:
        with pytest.raises(InputError, match="no checkpoint"):
            again.restore_newest(like, notes.append)
    else:
        assert again.restore_newest(like, notes.append)[1]["step"] == 1
    assert f"checkpoint {place} cannot be used (it was saved at step 2)" in notes[0]


def test_a_state_that_counts_other_steps_than_its_record_is_not_resumed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    state = {"step": jax.numpy.int32(3)}
    checkpoints.save(4, state)
    checkpoints.wait()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    with pytest.raises(InputError, match="no checkpoint"):
        checkpoints.restore_newest(like, lambda note: None)


def test_a_checkpoint_of_another_run_is_not_resumed(tmp_path):
    state = {"w": jax.numpy.arange(10.0)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for run, step in (("a", 1), ("b", 2)):
        saver = Checkpoints(tmp_path / run / "checkpoints", keep=3, run_id=f"decoder-1k-1ktok-{run}")
        saver.save(step, state)
        saver.wait()
        saver.close()
    shutil.copytree(tmp_path / "b" / "checkpoints" / "2", tmp_path / "a" / "checkpoints" / "2")
    with pytest.raises(InputError, match="belongs to the run decoder-1k-1ktok-b, not to decoder-1k-1ktok-a"):
        checkpoint.restore_params(tmp_path / "a" / "checkpoints", 2, {}, "decoder-1k-1ktok-a")
    notes = []
    again = Checkpoints(tmp_path / "a" / "checkpoints", keep=3, run_id="renamed-1k-1ktok-a")  # the hash counts
    assert again.restore_newest(like, notes.append)[1]["step"] == 1
    assert "belongs to the run decoder-1k-1ktok-b" in notes[0]


def test_checkpoints_of_another_version_are_refused_and_stay(tmp_path):
    """An optimizer whose state has other arrays: the files are good, this code is another."""
    checkpoints, like = _saved(tmp_path)
    with pytest.raises(InputError, match=r"another version of lmjax: it lacks \[\"\['new'\]\"\]"):
        checkpoints.restore_newest({**like, "new": like["w"]})
    assert checkpoints.steps() == [1, 2]


@pytest.mark.parametrize("name", ["lr[1e-3]", "back\\slash", "{a,b}"])
def test_paths_whose_checkpoints_could_not_be_read_back_are_refused_before_step_0(tmp_path, name):
    """Orbax looks for what it wrote by a pattern of the whole path; in such a folder it finds nothing or too much."""
    with pytest.raises(InputError, match="expected a path without"):
        train(one_device(), tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / "a[1]")
    with pytest.raises(InputError, match="expected a path without"):
        checkpoint.check_path(tmp_path / "link" / "run")
    assert not (tmp_path / name).exists()
    checkpoint.check_path(tmp_path / "with spaces, umlauts äöü and (brackets)")


def test_a_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(InputError, match="too long"):
        train(one_device(), tmp_path / ("x" * 300))


def test_a_failed_save_is_one_line_and_an_oserror(tmp_path, monkeypatch, caplog):
    checkpoints, _ = _saved(tmp_path)

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(OSError, match="cannot save a checkpoint: No space left on device"):
        checkpoints.save(3, {"w": jax.numpy.zeros(3)})
    logging.getLogger("absl").error("failed", exc_info=ValueError("long"))
    assert "Traceback" not in caplog.text


def test_uncommitted_checkpoints_are_not_chosen(tmp_path):
    checkpoints, like = _saved(tmp_path)
    checkpoints.close()
    unfinished = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    (unfinished / "state").mkdir()
    again = Checkpoints(tmp_path / "checkpoints", keep=3)
    assert again.steps() == [1, 2] and again.restore_newest(like)[1]["step"] == 2


def test_nothing_readable_is_an_error_that_keeps_everything(tmp_path):
    checkpoints, like = _saved(tmp_path)
    for victim in _data_files(tmp_path / "checkpoints"):
        victim.write_bytes(b"")
    with pytest.raises(InputError, match="no checkpoint of .* can be read"):
        checkpoints.restore_newest(like, lambda note: None)
    assert sorted(p.name.partition("-")[0] for p in (tmp_path / "unreadable").iterdir()) == ["1", "2"]
    with pytest.raises(InputError, match="move that folder away to start from step 0"):
        checkpoints.restore_newest(like, lambda note: None)


def test_checksums_see_value_place_and_type():
    x = jax.numpy.arange(6.0)
    base = checksums({"x": x})
    assert checksums({"x": x + 0}) == base
    assert checksums({"x": x.at[3].add(1e-6)}) != base
    assert checksums({"x": x[::-1]}) != base
    for i in range(1, 6):  # one flipped sign at any place
        assert checksums({"x": x.at[i].multiply(-1)}) != base


# -- Directories and disks


def test_a_directory_of_another_config_is_refused(uninterrupted):
    _, run_dir = uninterrupted
    with pytest.raises(InputError, match="holds another run"):
        train(one_device(train__seed=5), run_dir)


def test_two_processes_cannot_train_one_run(tmp_path):
    (tmp_path / "run").mkdir()
    with run_record.Lock(tmp_path / "run"), pytest.raises(InputError, match="is in use by process"):
        train(one_device(), tmp_path / "run")


def test_corrupt_metrics_and_summaries_are_named_and_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(InputError, match="line 2 is corrupt"):
        run_record.read_metrics(path)
    path.write_text('{"step": 1}\n{"step": 1}\n')
    with pytest.raises(InputError, match="step 1 after step 1"):
        run_record.read_metrics(path)
    assert path.exists()
    path.write_bytes(b'{"step": 1, "x": "\xff"}\n')
    with pytest.raises(InputError, match="is corrupt"):
        run_record.read_metrics(path)
    (tmp_path / "summary.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="summary.json is corrupt"):
        run_record.read_json(tmp_path / "summary.json")
    (tmp_path / "summary.json").write_text('{"loss": 1.')
    with pytest.raises(InputError, match="summary.json is corrupt"):
        run_record.read_json(tmp_path / "summary.json")


def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(tmp_path):
    """Files of this process may not grow past 4 kB: the save fails loudly, what was saved before reads back."""
    program = (
        "import resource, signal, sys, pathlib, jax, jax.numpy as jnp\n"
        "from lmjax.checkpoint import Checkpoints\n"
        "c = Checkpoints(pathlib.Path(sys.argv[1]), 2)\n"
        "state = {'w': jax.random.normal(jax.random.key(0), (100, 100))}\n"
        "c.save(1, state); c.wait()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "c.save(2, state); c.wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE}
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "checkpoints")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode != 0 and "File too large" in result.stderr
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    like = {
        "w": jax.ShapeDtypeStruct((100, 100), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    }
    assert checkpoints.restore_newest(like)[1]["step"] == 1


def test_divergence_is_a_status_with_the_last_good_step(tmp_path):
    """A learning rate of 1e30 overflows; the state saved is the last one whose loss was finite."""
    run = one_device(
        optimizer__learning_rate=1e30,
        optimizer__clip_norm=None,
        schedule__name="constant",
        schedule__warmup_fraction=0.0,
    )
    assert train(run, tmp_path / "run") == trainer.FAILED
    status = run_record.status_of(tmp_path / "run")
    assert status["status"] == "diverged" and "not finite" in status["message"]
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == [str(status["step"])] and status["step"] >= 1
    assert not (tmp_path / "run" / "summary.json").exists()


# -- Lost metrics, damaged tokenizers, runs that train nothing


LOST = {
    "emptied": lambda text: "",
    "filled with zeros": lambda text: "\0" * len(text),
    "halved": lambda text: text[: len(text) // 2],
    "a line removed": lambda text: text.split("\n", 1)[1],
}


@pytest.mark.parametrize("damage", LOST.values(), ids=LOST)
def test_lost_metrics_lines_are_counted(tmp_path, damage):
    """Each checkpoint notes how many lines there were; a resumed run says how many are gone."""
    writer = MetricsWriter(tmp_path, 0)
    for step in (2, 4, 6):
        writer.write({"step": step, "loss": 1.0})
    noted = writer.synced(6)
    assert noted == {"metrics_lines": 2, "metrics_lines_lost": 0}
    path, notes = tmp_path / "metrics.jsonl", []
    assert MetricsWriter(tmp_path, 6, record=noted, note=notes.append).lost == 0 and not notes
    path.write_text(damage("".join(json.dumps({"step": step}) + "\n" for step in (2, 4, 6))))
    resumed = MetricsWriter(tmp_path, 6, record=noted, note=notes.append)
    left = len(run_record.read_metrics(path))
    assert resumed.lost == 2 - left > 0
    assert f"has lost {2 - left} of the 2 lines before step 6" in notes[0]
    assert resumed.synced(6) == {"metrics_lines": left, "metrics_lines_lost": 2 - left}  # the next attempt knows, too


def test_metrics_are_on_disk_before_the_checkpoint_that_counts_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    writer = MetricsWriter(tmp_path, 0)
    assert synced and ".metrics.jsonl" in synced[0]  # its rewrite, before it takes the file's place
    writer.write({"step": 1})
    synced.clear()
    writer.synced(1)
    assert synced == [str(tmp_path / "metrics.jsonl")]


def test_a_tokenizer_that_a_kill_left_half_written_is_written_again(tmp_path, capsys):
    run, folder = one_device(), tmp_path / "run" / "tokenizer"
    folder.mkdir(parents=True)
    (folder / "lmjax_tokenizer.json").write_text('{"name": "by')
    run.write(tmp_path / "run")
    assert tokenizers.load_saved(folder).hash == run.data.tokenizer.hash
    assert "written again" in capsys.readouterr().err
    assert not list(folder.parent.glob(".tokenizer*"))
    tokenizers.Bytes(3).save(folder)
    with pytest.raises(InputError, match="expected the tokenizer of the data, got another"):
        run.write(tmp_path / "run")


def test_a_kill_while_the_tokenizer_is_written_leaves_no_tokenizer_folder(tmp_path, monkeypatch):
    def killed(tokenizer, folder):
        folder.mkdir()
        (folder / "lmjax_tokenizer.json").write_text('{"na')
        raise KeyboardInterrupt

    run = one_device()
    with monkeypatch.context() as patch:
        patch.setattr(tokenizers.Tokenizer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write(tmp_path / "run")
    assert not (tmp_path / "run" / "tokenizer").exists()


def test_log_spaced_checkpoints_stay_with_their_validation_loss(tmp_path, uninterrupted):
    spaced = {"checkpoint__per_decade": 2, "checkpoint__every_steps": 2, "checkpoint__keep": 1}
    run = one_device(model__dropout=0.1, evaluation__batch_size=64, **spaced)
    assert train(run, tmp_path / "run") == trainer.DONE
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").glob("[0-9]*")) == [1, 3, 6]
    record, losses = run_record.read_record(tmp_path / "run"), []
    for step in (1, 3, 6):
        losses.append(table.run_facts(tmp_path / "run", record, step)["loss"])
    assert losses[0] > losses[1] > losses[2] == run_record.read_json(tmp_path / "run" / "summary.json")["loss"]
    assert run_record.read_json(uninterrupted[1] / "summary.json")["loss"] == losses[2]


def test_a_model_too_large_for_memory_is_refused_before_it_is_allocated(tmp_path, monkeypatch):
    """The allocation of terabytes ended in a traceback, or in the kernel's killing the process."""
    run = one_device(model__num_layers=2)
    monkeypatch.setattr(hardware, "memory", lambda: (jax.local_device_count() * 100_000, False))
    monkeypatch.setattr(trainer, "make_init", lambda *_: pytest.fail("initialised"))
    with pytest.raises(InputError, match="fits in the 100 kB of memory per device, got .*parameters.*smaller"):
        trainer.train(run, tmp_path / "run", show_progress=False)
    with pytest.raises(InputError, match="parameters 100 kB, logits 12.5 kB"):
        hardware.check_memory({"parameters": 100_000, "logits": 12_500})
    hardware.check_memory({"parameters": 87_500, "logits": 12_500})  # half of the logits counts


def test_a_run_whose_gradient_is_exactly_zero_is_no_result(tmp_path):
    """A scale that float32 rounds to 0 trains nothing; the untrained loss must not enter a fit as a result."""
    run = one_device(model__logit_scale=1e-30, optimizer__weight_decay=0.0, duration__steps=2)
    assert train(run, tmp_path / "run") == trainer.FAILED
    status = run_record.status_of(tmp_path / "run")
    assert status["status"] == "failed" and "gradient is exactly 0" in status["message"]
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("overrides", [{"learning_rate": 1e-30}, {"epsilon": 1e30, "weight_decay": 0.1}])
def test_a_run_whose_update_is_lost_to_rounding_is_no_result(tmp_path, overrides):
    """With the large epsilon only weight decay changes the parameters, and with the tiny rate only the biases."""
    optimizer = {f"optimizer__{name}": value for name, value in overrides.items()}
    run = one_device(model__use_bias=True, duration__steps=2, **optimizer)
    assert train(run, tmp_path / "run") == trainer.FAILED
    status = run_record.status_of(tmp_path / "run")
    assert status["status"] == "failed" and "the update changes no weight" in status["message"]
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    "summary, message",
    [
        ({"run_id": "decoder-1-1tok-other", "loss": 2.0}, "belongs to run"),
        ({"loss": math.nan}, "expected a finite loss"),
    ],
)
def test_a_summary_of_another_run_or_without_a_loss_is_not_taken_as_finished(tmp_path, summary, message):
    run = one_device()
    run.write(tmp_path / "run")
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(InputError, match=message):
        train(run, tmp_path / "run")


def test_a_last_step_at_rate_0_is_no_lost_update(tmp_path):
    """A schedule that ends at 0, and one recorded step: a short run, or the rest of a resumed one or of a branch."""
    run = one_device(schedule__final_fraction=0.0, duration__steps=2, metrics__every_steps=50)
    assert train(run, tmp_path / "run") == trainer.DONE

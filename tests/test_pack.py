"""Guards against runs that depend on their slot or neighbours in a pack, and against lists of runs that lose one."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lmjax import losses, pack, run_record, trained, trainer
from lmjax.errors import InputError
from lmjax.resolve import resolve
from lmjax.sweeps import plan
from tests.conftest import ONE_DEVICE, ROOT, small
from tests.conftest import train as train_alone
from tests.test_resume import StopAt, final_state, metrics

TINY = {
    "model__num_layers": 1,
    "train__z_loss": 1e-4,
    "checkpoint__every_steps": 3,
    "evaluation__max_tokens": 128,
    "evaluation__batch_size": 4,
    "data__max_epochs": 50.0,
}


@functools.cache
def tiny(**overrides):
    return resolve(small(**{**TINY, **overrides}))


@functools.cache
def program(slots=2, devices=1):
    """Compiled once for all tests."""
    return pack.Program(ONE, slots, jax.devices()[:devices])


def train(folder, runs, made=None):
    """Trains runs in two slots on one device, or in another program; returns (exit code, run directories)."""
    dirs = [(run, folder / str(i)) for i, run in enumerate(runs)]
    return pack.train_pack(dirs, made or program(), show=False), [run_dir for _, run_dir in dirs]


def assert_same(run, a, b):
    """Bit-equal last state, metrics and results."""
    jax.tree.map(np.testing.assert_array_equal, final_state(run, a), final_state(run, b))
    assert metrics(a) == metrics(b)
    assert summary(a)["loss"] == summary(b)["loss"]


def summary(run_dir):
    return run_record.read_json(run_dir / "summary.json")


ONE = tiny(model__dropout=0.1)
OTHER = tiny(model__dropout=0.1, train__seed=1, data__seed=2, optimizer__learning_rate=0.01, duration__steps=4)
THIRD = tiny(model__dropout=0.1, optimizer__weight_decay=0.0, schedule__name="constant", duration__steps=9)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Three runs of 6, 4 and 9 steps through two slots."""
    code, dirs = train(tmp_path_factory.mktemp("packed"), [ONE, OTHER, THIRD])
    assert code == trainer.DONE
    return dirs


def test_slots_refill_and_every_run_is_complete(packed):
    for run, run_dir in zip((ONE, OTHER, THIRD), packed, strict=True):
        record = summary(run_dir)
        assert record["run_id"] == run.run_id and record["packed"] == 2 and np.isfinite(record["loss"])
        assert 0 < record["slot_seconds"] <= record["wall_seconds"] / 2 + 0.1
        assert [r["step"] for r in metrics(run_dir)] == [s for s in range(1, run.steps + 1) if s % 2 == 0 or s == 9]
        assert run_record.status_of(run_dir)["status"] == "done" and not run_record.is_locked(run_dir)


def test_slot_and_neighbours_do_not_matter(packed, tmp_path):
    code, dirs = train(tmp_path, [THIRD, ONE])
    assert code == trainer.DONE
    assert_same(ONE, packed[0], dirs[1])
    assert_same(THIRD, packed[2], dirs[0])


def test_packed_equals_alone(packed, tmp_path):
    """float32 products of several runs are summed in another order: 1e-4 in the loss after a few steps."""
    for run, run_dir in zip((ONE, OTHER), packed, strict=False):
        train_alone(run, tmp_path / run.run_id)
        alone, here = metrics(tmp_path / run.run_id), metrics(run_dir)
        assert [r["step"] for r in alone] == [r["step"] for r in here]
        for name in ("loss", "z_loss", "grad_norm", "learning_rate", "tokens", "flops"):
            np.testing.assert_allclose([r[name] for r in here], [r[name] for r in alone], rtol=1e-4)
        assert summary(run_dir)["loss"] == pytest.approx(summary(tmp_path / run.run_id)["loss"], rel=1e-4)


def test_a_stopped_pack_resumes_bit_equal_and_alone(packed, tmp_path, monkeypatch):
    """Each poll of a member counts: the eighth is in the fourth turn, so both members leave around step 4."""
    monkeypatch.setattr(trainer, "StopRequest", StopFrom(5))
    code, dirs = train(tmp_path, [ONE, OTHER, THIRD])
    monkeypatch.undo()
    assert code == trainer.PREEMPTED
    assert [run_record.status_of(d)["status"] for d in dirs] == ["preempted", "preempted", "pending"]
    assert [run_record.status_of(d).get("step") for d in dirs[:2]] == [3, 3]
    shutil.copytree(dirs[0], tmp_path / "alone")
    assert train(tmp_path, [ONE, OTHER, THIRD])[0] == trainer.DONE
    for run, a, b in zip((ONE, OTHER, THIRD), packed, dirs, strict=True):
        assert_same(run, a, b)
    train_alone(ONE, tmp_path / "alone")
    assert summary(tmp_path / "alone")["packed"] == 1
    assert summary(tmp_path / "alone")["loss"] == pytest.approx(summary(packed[0])["loss"], rel=1e-4)


class StopFrom(StopAt):
    """Stands for a signal that arrives before the k-th poll, and stays."""

    def at(self, _):
        self.polls += 1
        return self.polls >= self.k


def test_a_diverging_member_leaves_the_others_alone(packed, tmp_path, capsys):
    wild = tiny(model__dropout=0.1, optimizer__learning_rate=1e30, schedule__name="constant")
    code, dirs = train(tmp_path, [wild, ONE])
    assert code == trainer.FAILED
    assert run_record.status_of(dirs[0])["status"] == "diverged" and not (dirs[0] / "summary.json").exists()
    assert_same(ONE, packed[0], dirs[1])


def test_a_pack_is_compiled_once(packed, tmp_path):
    """Other seeds, rates, decays, schedules and lengths are arguments of what `packed` has compiled."""
    events = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
    try:
        new = {"train__seed": 5, "data__seed": 6, "optimizer__learning_rate": 0.003, "optimizer__weight_decay": 0.2}
        assert train(tmp_path, [tiny(model__dropout=0.1, schedule__name="wsd", duration__steps=3, **new)])[0] == 0
        assert not [name for name in events if "backend_compile" in name]
        jax.jit(lambda x: x * 3)(1.0)
        assert [name for name in events if "backend_compile" in name]  # what is listened for exists
    finally:
        jax.monitoring.clear_event_listeners()


def test_slots_split_over_devices(packed, tmp_path):
    """Two slots on each of eight devices: another device gives the same bits, one device alone the same to rounding.
    The step has no collectives."""
    split = program(16, 8)
    assert len(split.sharding.device_set) == 8 and len(program().sharding.device_set) == 1
    assert not re.search("all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter", split.step.as_text())
    code, dirs = train(tmp_path, [ONE, OTHER, ONE], split)
    assert code == trainer.DONE
    assert_same(ONE, dirs[0], dirs[2])
    for a, b in zip(packed, dirs[:2], strict=False):
        np.testing.assert_allclose([r["loss"] for r in metrics(b)], [r["loss"] for r in metrics(a)], rtol=1e-4)
        assert summary(a)["loss"] == pytest.approx(summary(b)["loss"], rel=1e-4)


def test_the_loss_is_chunked_for_all_slots(monkeypatch):
    """Logits that fit for one run of a device are computed in two chunks where it trains two runs."""
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda lowered, *_: lowered)  # the text is enough
    rows, length, vocabulary = 8, 16, ONE.config.model.vocab_size
    monkeypatch.setattr(losses, "CHUNK_BYTES", 4 * rows * length * vocabulary)
    for slots, devices, local, positions in ((1, 1, 1, length), (2, 1, 2, length // 2), (16, 8, 2, length // 2)):
        text = pack.Program(ONE, slots, jax.devices()[:devices]).step.as_text()
        found = set(re.findall(rf"tensor<{local}x{rows}x(\d+)x{vocabulary}xf32>", text))
        assert found == {str(positions)}, (slots, found)


def test_what_may_not_differ_is_named(tmp_path):
    wide = tiny(model__d_model=32, model__dropout=0.1, optimizer__b2=0.9)
    with pytest.raises(InputError, match=r"got model.d_model: 16, 32; .*optimizer.b2: 0.99, 0.9"):
        train(tmp_path, [ONE, wide])
    assert not list(tmp_path.iterdir())
    with jax.default_prng_impl("rbg"), pytest.raises(InputError, match="expected jax_default_prng_impl threefry2x32"):
        train(tmp_path, [ONE])
    with pytest.raises(InputError, match="expected one process and all axes .* got 1 processes, mesh.fsdp 8; use"):
        pack.check_alike([tiny(mesh__fsdp=8)])


def test_a_list_goes_on_after_a_run_that_fails(tmp_path, capsys):
    """Another process holds the first run; the second has a damaged record; the third is trained."""
    for i, run in enumerate((ONE, OTHER, THIRD)):
        run.write(tmp_path / str(i))
    (tmp_path / "1" / "summary.json").write_text(json.dumps({"run_id": "x-0123456789", "loss": 1.0}))
    with run_record.Lock(tmp_path / "0"):
        assert pack.train_list([tmp_path / name for name in "012"], 1, show=False) == trainer.FAILED
    err = capsys.readouterr().err
    assert "is in use by process" in err and "belongs to run x-0123456789" in err
    assert run_record.status_of(tmp_path / "1")["status"] == "failed"
    assert summary(tmp_path / "2")["packed"] == 1


def test_a_signal_after_the_last_step_of_a_run_stops_the_list(tmp_path, monkeypatch):
    """It came while the first run wrote its result; the worker went on with all the others."""
    finish, handler = trainer.Member._finish, signal.getsignal(signal.SIGTERM)

    def signalled(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return finish(*arguments)

    for i, run in enumerate((ONE, OTHER)):
        run.write(tmp_path / str(i))
    monkeypatch.setattr(trainer.Member, "_finish", signalled)
    assert pack.train_list([tmp_path / name for name in "01"], 1, show=False) == trainer.PREEMPTED
    assert [run_record.status_of(tmp_path / name)["status"] for name in "01"] == ["done", "pending"]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_a_signal_while_a_run_of_a_list_is_prepared_ends_the_process_at_once(tmp_path, monkeypatch):
    """Data may take hours to prepare. The signal was kept until the run's first step."""
    ONE.write(tmp_path / "0")

    def interrupted(config):
        os.kill(os.getpid(), signal.SIGINT)
        return resolve(config)

    monkeypatch.setattr(pack, "resolve", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            pack.train_list([tmp_path / "0"], 1, show=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert run_record.status_of(tmp_path / "0")["status"] == "pending"


def test_killed_and_stopped_packs_of_the_command(tmp_path):
    """SIGKILL in the middle, then SIGTERM: exit code 75, every run saved; then to the end, as an uninterrupted pack.
    Alone, from there or from the start, the losses of all 60 steps agree to 1e-4: products are summed in another order.
    """
    settings = [{"model__dropout": 0.1, "train__seed": seed, "duration__steps": 60} for seed in range(2)]
    dirs = [tmp_path / "killed" / str(i) for i in range(2)]
    for run, run_dir in zip(settings, dirs, strict=True):
        tiny(**run).write(run_dir)
    command = [sys.executable, "-m", "lmjax", "train", "-q", "--pack", "2", "--run-dir", *map(str, dirs)]
    environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE, "PYTHONPATH": str(ROOT)}
    for number, expected in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, trainer.PREEMPTED)):
        before = max(trained.steps(dirs[1]), default=0)
        process = subprocess.Popen(command, env=environment)
        while max(trained.steps(dirs[1]), default=0) <= before:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait() == expected
    assert all(run_record.status_of(run_dir)["status"] == "preempted" for run_dir in dirs)
    assert all(0 < max(trained.steps(run_dir)) < 60 for run_dir in dirs)
    shutil.copytree(dirs[0], tmp_path / "alone" / "0")
    runs = [tiny(**run, checkpoint__every_steps=30) for run in settings]  # what is not killed needs few checkpoints
    assert train(tmp_path / "killed", runs)[0] == train(tmp_path / "whole", runs)[0] == trainer.DONE
    for run, run_dir in zip(runs, dirs, strict=True):
        whole, alone = tmp_path / "whole" / run_dir.name, tmp_path / "alone" / run_dir.name
        assert_same(run, whole, run_dir)
        assert train_alone(run, alone) == trainer.DONE
        together, apart = ([(r["step"], r["loss"]) for r in metrics(path)] for path in (whole, alone))
        np.testing.assert_allclose(apart, together, rtol=0, atol=1e-4)


def test_the_step_of_a_pack_is_timed(monkeypatch):
    """As `lmjax plan` does it, in the program of all tests."""
    made = program()
    monkeypatch.setattr(pack, "Program", lambda run, slots: made)
    measured = plan.calibrate(ONE, 0.01, pack=2)
    assert measured["slots"] == 2 and all(measured[key] > 0 for key in ("startup", "step", "evaluation"))


def test_slots_are_doubled_while_throughput_rises(monkeypatch, capsys):
    """Seconds of a step by slots: 32 slots would be 1.1 times as fast as 16; 16 do not fit on the smaller device."""

    class Fake:
        def __init__(self, run, slots):
            self.slots = slots

        def fits(self):
            return self.slots <= largest

        def seconds(self):
            return {1: 1.0, 2: 1.0, 4: 1.1, 8: 1.3, 16: 1.6, 32: 2.9}[self.slots]

    monkeypatch.setattr(pack, "Program", Fake)
    monkeypatch.setattr(pack.jax, "devices", lambda: [None])
    largest = 64
    assert [pack.choose_slots(ONE, most) for most in (1, 3, 100)] == [1, 4, 16]
    largest = 8
    assert pack.choose_slots(ONE, 100) == 8 and pack.fitting_program(ONE, 64).slots == 8
    assert "64 runs do not fit in memory; packing 32" in capsys.readouterr().err

    class OutOfMemory(Fake):  # a TPU's compiler raises instead
        def __init__(self, run, slots):
            super().__init__(run, slots)
            if not self.fits():
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")

    monkeypatch.setattr(pack, "Program", OutOfMemory)
    assert pack.choose_slots(ONE, 100) == 8 and pack.fitting_program(ONE, 64).slots == 8

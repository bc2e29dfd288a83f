"""Guards against a loop that waits for the device at every step, and against options for speed that change a result."""

import importlib.util
import itertools
import threading

import jax
import numpy as np
import pytest

from lmjax import cli, pack, process, run_record, sharding, trainer
from lmjax.distributed import Watchdog
from lmjax.metrics import MetricsWriter, Progress
from lmjax.resolve import resolve
from tests.conftest import ROOT, small
from tests.test_resume import StopAt


class Report:
    """Stands for the report of a step on a device that ends the step only when it is waited for."""

    def __init__(self, events, step, finite=1.0):
        self.events, self.step, self.finite = events, step, finite

    def copy_to_host_async(self):
        self.events.append(("copied", self.step))

    def is_ready(self):
        return False

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.step))
        return np.array([self.finite, 2.0 * self.step, 2.0, 0.5, 1.0, 1.0], np.float32)


class Stub:
    """Stands for the checkpoints and the validation set of a run."""

    always = ()

    def __init__(self):
        self.saved = []

    def save(self, step, state, **_):
        self.saved.append(step)

    def wait(self):
        pass

    def evaluate(self, params, stop):
        return {"loss": 1.0, "bits_per_byte": None}


def member(folder, polls, steps=2000, **overrides):
    """A run of stubs that is asked to stop after some steps; returns (member, its checkpoints)."""
    run = resolve(small(duration__steps=steps, data__max_epochs=1000.0, **{"metrics__every_steps": 10, **overrides}))
    folder.mkdir(exist_ok=True)
    stub, status = Stub(), run_record.Status(folder, steps)
    writer, progress = MetricsWriter(folder, 0), Progress(steps, None, show=False)
    made = trainer.Member(run, stub, stub, writer, progress, status, Watchdog(print), {}, 0, StopAt(polls))
    return made, stub


def trained(made, report):
    """(exit code, events) of a member whose steps return `report(events, step)` and the state {"params", "step"}."""
    events = []

    def step(state, batch, key, arguments):
        events.append(("started", state["step"] + 1))
        return {**state, "step": state["step"] + 1}, report(events, state["step"] + 1)

    state = {"params": None, "step": 0, "finite": np.float32(1)}
    return made.train(step, state, itertools.repeat(None)), events


def reads(events):
    """[(step that was read, last step started before)]"""
    started = list(itertools.accumulate((step if what == "started" else 0 for what, step in events), max))
    return [(step, last) for (what, step), last in zip(events, started, strict=True) if what == "read"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_report_is_read_two_steps_later(tmp_path, monkeypatch, processes):
    """Evaluation at step 5 and the stop after step 9 need the state, so they wait. Several processes must agree when to
    read, so they do not ask whether a step has ended."""
    monkeypatch.setattr(trainer, "SHORT_STEP", 0.0)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    if processes > 1:
        monkeypatch.setattr(Report, "is_ready", lambda _: pytest.fail("asked"))
    made, stub = member(tmp_path, 9, evaluation__every_steps=5, metrics__every_steps=2)
    code, events = trained(made, Report)
    assert code == trainer.PREEMPTED and stub.saved == [9]
    assert reads(events) == [(1, 3), (2, 4), (3, 5), (4, 5), (5, 5), (6, 8), (7, 9), (8, 9), (9, 9)]
    assert [step for what, step in events if what == "copied"] == list(range(1, 10))  # before they are waited for
    rows = run_record.read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(s, s) for s in (2, 4, 5, 6, 8)]
    assert [row["step"] for row in rows if "validation_loss" in row] == [5]


def test_short_steps_run_eight_ahead_and_ended_ones_are_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "SHORT_STEP", 1e9)
    _, events = trained(member(tmp_path / "a", 40)[0], Report)
    assert max(last - step for step, last in reads(events)) == 8
    monkeypatch.setattr(Report, "is_ready", lambda _: True)
    _, events = trained(member(tmp_path / "b", 40)[0], Report)
    assert all(last == step for step, last in reads(events))


def test_a_divergence_is_found_within_two_steps_and_leaves_no_row(tmp_path, monkeypatch):
    """The state is frozen by then: what is saved and recorded does not depend on when the report is read."""
    monkeypatch.setattr(trainer, "SHORT_STEP", 0.0)
    made, stub = member(tmp_path, 100)
    code, events = trained(made, lambda events, step: Report(events, step, finite=float(step < 13)))
    assert code == trainer.FAILED and reads(events)[-1] == (13, 15) and len(stub.saved) == 1
    assert run_record.status_of(tmp_path)["status"] == "diverged"
    assert [row["step"] for row in run_record.read_metrics(tmp_path / "metrics.jsonl")] == [10]


def test_batches_without_a_label_have_no_loss_and_do_not_end_the_run(tmp_path):
    """Only the batches of steps 8 and 9 have a label: the metrics line of steps 1 to 2 was 0 / 0, and gradients of 0 in
    three recorded steps counted as a run that learns nothing."""

    class Unlabelled(Report):
        def __array__(self, dtype=None, copy=None):
            labelled = float(self.step in (8, 9))
            summed = float(self.step >= 8)  # since the last line
            return np.array([1.0, 3 * summed, summed, labelled, labelled, labelled], np.float32)

    made, _ = member(tmp_path, 30, metrics__every_steps=2)
    assert trained(made, Unlabelled)[0] == trainer.PREEMPTED
    rows = run_record.read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["step"], row.get("loss")) for row in rows][:5] == [*((s, None) for s in (2, 4, 6)), (8, 3), (10, 3)]


def test_the_loop_takes_little_time(tmp_path):
    """CPU time of 1000 steps, with batches from a thread and a metrics line every 10: at most three times the goal."""
    spec = importlib.util.spec_from_file_location("loop", ROOT / "experiments" / "benchmarks" / "loop.py")
    loop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loop)
    for name in "abc":
        (tmp_path / name).mkdir()
    assert min(loop.spent(tmp_path / name)[0] for name in "abc") < 3 * loop.GOAL


def test_batches_are_made_early_in_order_and_few_if_large():
    for size, ahead in ((1, 8), (128 << 18, 2)):  # float32: 4 bytes, 128 MiB
        made = []

        def make(item, made=made, size=size):
            made.append(item)
            return {"x": np.broadcast_to(np.float32(item), size)}

        batches = sharding.prefetch(make, itertools.count())
        assert [int(next(batches)["x"][0]) for _ in range(3)] == [0, 1, 2]
        batches.close()
        assert made == list(range(len(made))) and 3 <= len(made) <= 3 + ahead
    assert "batches" not in {thread.name.partition("_")[0] for thread in threading.enumerate() if thread.is_alive()}
    assert [x["x"][0] for x in sharding.prefetch(lambda i: {"x": np.full(1, i)}, range(20))] == list(range(20))
    with pytest.raises(ZeroDivisionError):
        list(sharding.prefetch(lambda i: 1 / i, range(2)))


# -- Options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "10"], "expected FIRST:LAST, two steps such as 10:15, got '10'"),
        (["--profile", "1:2", "--run-dir", "a", "b"], "--profile traces one run"),
        (["--profile", "1:2", "--run-dir", "a", "--pack", "2"], "--profile traces one run"),
    ],
)
def test_a_profile_that_cannot_be_made_is_refused(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("lmjax.cli.training.start", lambda **_: None)
    assert cli.main(["train", *arguments]) == 64
    assert message in capsys.readouterr().err


class Device:
    def __init__(self, platform):
        self.platform = platform


@pytest.mark.parametrize("changes", [{}, {"model__dtype": "bfloat16"}, {"model__d_model": 128}], ids=str)
def test_wide_float32_models_use_the_faster_products_of_cpus(changes):
    config = small(**{"model__d_model": 256, "model__num_heads": 4, **changes})
    mesh = sharding.make_mesh(config.mesh)
    options = sharding.compiler_options(config, mesh)
    x = np.ones((256, 256), config.model.dtype)
    program = jax.jit(lambda x: x @ x, compiler_options=options).lower(x).compile().as_text()
    assert bool(options) == (not changes)
    assert not options or " dot(" in program and "ynn" not in program
    assert not sharding._known(("xla_no_such_option", True))


def test_deterministic_is_an_option_of_every_program_on_gpus(monkeypatch):
    """XLA accepts the name on every platform; the run id does not depend on it."""
    run, asked = resolve(small(model__num_layers=1)), small(model__num_layers=1, mesh__deterministic=True)
    assert resolve(asked).run_id == run.run_id

    def options(config, platform):
        mesh = type("Mesh", (), {"devices": np.array([Device(platform)])})
        return sharding.compiler_options(config, mesh)

    assert [options(asked, "cpu"), options(asked, "tpu"), options(run.config, "gpu")] == [{}, {}, {}]
    found = options(asked, "gpu")
    assert jax.jit(lambda x: x + 1, compiler_options=found)(1) == 2 and list(found.values()) == [True]
    for module in (trainer, pack):
        monkeypatch.setattr(module, "compiler_options", lambda *_: {"xla_no_such_option": True})
    mesh = sharding.make_mesh(run.config.mesh)
    programs = trainer.Programs(trainer.on_devices(run, mesh), mesh)
    batch = {name: x[None] for name, x in run.batches.rows(np.arange(8)).items()}
    for compiled in (
        lambda: programs.step(run),
        lambda: programs.score.lower(programs.like["params"], batch, {}).compile(),
        lambda: pack.Program(run, 1, jax.devices()[:1]),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            compiled()


def test_memory_and_level_are_set_on_gpus_where_the_user_has_not(monkeypatch):
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_OPTIMIZATION_LEVEL")

    def settings(kind, gpus, **environment):
        with monkeypatch.context() as patch:
            patch.setattr(process, "accelerators", lambda: kind)
            patch.setattr(process, "visible_gpus", lambda: list(range(gpus)))
            for name in names:
                patch.setenv(name, "")  # so that it is restored
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            made = process.tune_gpus()
            assert process.tune_gpus() == []
            assert all(process.os.environ[name] == value for name, value in (each.split("=") for each in made))
            return made

    memory, level = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9", "JAX_OPTIMIZATION_LEVEL=O1"
    assert settings("", 0) == settings("tpu", 0) == []
    assert settings("gpu", 1) == [memory]
    assert settings("gpu", 8) == settings("gpu", 1, LMJAX_NUM_PROCESSES="2") == [memory, level]
    assert settings("gpu", 8, XLA_CLIENT_MEM_FRACTION="0.5") == [level]
    assert settings("gpu", 8, XLA_PYTHON_CLIENT_MEM_FRACTION="0.5", JAX_OPTIMIZATION_LEVEL="O0") == []

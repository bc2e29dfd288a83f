"""Guards against trackers that stop or delay a run, log a step twice after a resume, or are found missing too late.

Weights & Biases and MLflow are stand-ins here, which keep what they are given, as the packages do between processes.
"""

import collections
import importlib.machinery
import json
import struct
import sys
import threading
import time
import types

import pytest

from lmjax import cli, run_record, trackers
from lmjax.config import DEFAULTS
from lmjax.errors import InputError
from lmjax.metrics import MetricsWriter
from lmjax.resolve import resolve
from lmjax.trainer import train
from tests.conftest import ROOT, small

NAMES = ("wandb", "mlflow")
SETTINGS = {"wandb": {"wandb": "offline"}, "mlflow": {"mlflow": "local"}, "tensorboard": {"tensorboard": True}}


def settings(**given):
    off = {key.partition(".")[2]: value for key, value in DEFAULTS.items() if key.startswith("metrics.")}
    return {**off, **given}


class Store:
    """What both stand-ins were given: {run id: [(step, values)]}, open and closed runs, arguments of their calls."""

    def __init__(self):
        self.logged = collections.defaultdict(list)
        self.opened, self.ended, self.params, self.tags = [], [], {}, {}
        self.fails_at, self.blocked = None, None

    def log(self, name, step, values):
        if self.blocked:
            self.blocked.wait(10)
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("no route\nto the host")
        self.logged[name].append((step, dict(values)))

    def steps(self, name="run-1-abc"):
        return [step for step, _ in self.logged[name]]


def module(name, **content):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="stand-in")
    vars(made).update(content)
    return made


def fake_wandb(store):
    def init(**arguments):
        store.opened.append(arguments)
        log = lambda values, step, commit: store.log(arguments["id"], step, values)  # noqa: E731
        end = lambda exit_code: store.ended.append(exit_code)  # noqa: E731
        return types.SimpleNamespace(step=0, disabled=False, log=log, finish=end)

    return {"wandb": module("wandb", init=init, Settings=dict)}


def fake_mlflow(store):
    class Failure(Exception):
        pass

    class Client:
        def __init__(self, uri):
            store.opened.append(uri)

        def create_experiment(self, name, artifact_location=None):
            if name in store.tags:
                raise Failure("it exists")
            store.tags[name] = {}
            return name

        def get_experiment_by_name(self, name):
            return types.SimpleNamespace(experiment_id=name)

        def search_runs(self, experiments, condition):
            key, _, value = condition.partition(" = ")
            assert key == "tags.`lmjax.run_id`"
            found = [name for name, tag in store.tags[experiments[0]].items() if tag == value.strip("'")]
            return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=name)) for name in found]

        def create_run(self, experiment, tags, run_name):
            store.tags[experiment][run_name] = tags["lmjax.run_id"]
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_name))

        def update_run(self, name, status):
            assert status == "RUNNING"

        def get_metric_history(self, name, key):
            return [types.SimpleNamespace(step=step) for step, values in store.logged[name] if key in values]

        def log_batch(self, name, metrics=(), params=()):
            assert len(params) <= 100
            store.params.update(params)
            if metrics:
                ((step),) = {metric[3] for metric in metrics}
                store.log(name, step, {metric[0]: metric[1] for metric in metrics})

        def set_terminated(self, name, status):
            store.ended.append(status)

    entities = module("mlflow.entities", Metric=lambda *entry: entry, Param=lambda *entry: entry)
    parts = {
        "mlflow": module("mlflow"),
        "mlflow.entities": entities,
        "mlflow.exceptions": module("mlflow.exceptions", MlflowException=Failure),
        "mlflow.tracking": module("mlflow.tracking", MlflowClient=Client),
    }
    return {**parts, "sqlalchemy": module("sqlalchemy")}


@pytest.fixture
def store(monkeypatch):
    """Installs both stand-ins; returns {name: its Store}."""
    stores = {name: Store() for name in NAMES}
    for name, part in {**fake_wandb(stores["wandb"]), **fake_mlflow(stores["mlflow"])}.items():
        monkeypatch.setitem(sys.modules, name, part)
    return stores


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "my_sweep" / "run-1-abc"
    path.mkdir(parents=True)
    config = {"model": {}, "objective": {}, "data": {}, "train": {"seed": 3}, "run": {"held_out": False}}
    record = {"run_id": path.name, "config": config, "derived": {"n_total": 100, "memory": {"all": 1}}, "code": "c1"}
    run_record.write_json(path / "config.json", record)
    return path


def write(run_dir, given, start, stop, status="preempted", notes=None, record={}):  # noqa: B006
    """Writes the lines of steps in (start, stop] as an attempt does that was restored at `start`."""
    with MetricsWriter(
        run_dir, start, settings(**given), record, (notes if notes is not None else []).append
    ) as writer:
        for step in range(start or 2, stop + 1, 2):
            writer.write({"step": step, "tokens": 10 * step, "loss": 5.0 / step})
        run_record.write_json(run_dir / "status.json", {"status": status})


def recorded(run_dir):
    lines = run_record.read_metrics(run_dir / "metrics.jsonl")
    return [(line["step"], {k: v for k, v in line.items() if k != "step"}) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_and_logs_each_step_once(name, store, run_dir):
    """Killed after step 10, restored from step 6: steps 6, 8 and 10 are written again, but logged once."""
    store, given = store[name], SETTINGS[name]
    write(run_dir, given, 0, 10)
    write(run_dir, given, 6, 16, "done")
    assert sorted(store.logged["run-1-abc"]) == recorded(run_dir) and store.steps() == list(range(2, 17, 2))
    ends = {"wandb": [0, 0], "mlflow": ["KILLED", "FINISHED"]}
    assert store.ended == ends[name]
    if name == "wandb":
        assert {(o["id"], o["group"], o["mode"]) for o in store.opened} == {("run-1-abc", "my_sweep", "offline")}
        assert store.opened[0]["config"] == {"train.seed": 3, "run.held_out": False, "n_total": 100, "code": "c1"}
    else:
        assert set(store.opened) == {f"sqlite:///{run_dir.parent}/mlflow.db"} and list(store.tags) == ["my_sweep"]
        assert store.params == {"train.seed": "3", "run.held_out": "False", "n_total": "100", "code": "c1"}


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_gives_one_warning_and_catches_up_later(name, store, run_dir):
    store, given, notes = store[name], SETTINGS[name], []
    store.fails_at = 6
    write(run_dir, given, 0, 12, notes=notes)
    assert store.steps() == [2, 4] and len(recorded(run_dir)) == 6
    assert len(notes) == 1 and f"metrics.{name} failed (ConnectionError: no route to the host)" in notes[0]
    store.fails_at = None
    write(run_dir, given, 12, 14)
    assert store.logged["run-1-abc"] == recorded(run_dir)


def test_the_record_is_written_first_and_never_waits(store, run_dir, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    store["wandb"].blocked, notes = threading.Event(), []
    write(run_dir, SETTINGS["wandb"], 0, 8, notes=notes)
    assert len(recorded(run_dir)) == 4 and store["wandb"].steps() == []
    assert len(notes) == 1 and "not up to date" in notes[0]
    store["wandb"].blocked.set()


@pytest.mark.parametrize("status, end", [("diverged", ["FAILED"]), ("done", ["FINISHED"])])
def test_the_end_of_the_run_is_that_of_its_record(status, end, store, run_dir):
    write(run_dir, {"mlflow": "http://host:5000"}, 0, 2, status)
    assert store["mlflow"].ended == end and store["mlflow"].opened == ["http://host:5000"]
    with pytest.raises(ZeroDivisionError), MetricsWriter(run_dir, 2, settings(mlflow="local")):
        raise ZeroDivisionError
    assert store["mlflow"].ended[-1] == "FAILED"


def test_event_files_of_a_resumed_run_have_each_step_once(run_dir):
    """Read back as readers do: a new session drops what came before from its first step on."""
    from tensorboardX.proto.event_pb2 import Event

    write(run_dir, {}, 0, 4)  # before the tracker was asked for
    write(run_dir, SETTINGS["tensorboard"], 4, 10)
    time.sleep(1.1)  # files are named by the second
    write(run_dir, SETTINGS["tensorboard"], 6, 14)
    found = {}
    for path in sorted((run_dir / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.HasField("session_log"):
                found = {step: value for step, value in found.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in found
                    found[event.step] = value.simple_value
    assert found == {step: pytest.approx(values["loss"]) for step, values in recorded(run_dir)}


def test_a_training_run_with_trackers_is_the_run_without_them(store, tmp_path):
    both = {"metrics__wandb": "offline", "metrics__mlflow": "local"}
    plain, tracked = resolve(small()), resolve(small(**both))
    assert plain.run_id == tracked.run_id
    run_dir = tmp_path / "swept" / tracked.run_id
    assert train(tracked, run_dir, show_progress=False) == 0
    for name in NAMES:
        assert store[name].logged[tracked.run_id] == recorded(run_dir) and len(recorded(run_dir)) == 3
    assert store["wandb"].opened[0]["config"]["model.d_model"] == 16
    assert json.loads((run_dir / "config.json").read_text())["config"]["metrics"]["wandb"] == "offline"


MISSING = [("wandb", "offline", "wandb"), ("mlflow", "local", "sqlalchemy"), ("mlflow", "http://host:1", "mlflow")]


@pytest.mark.parametrize("name, value, package", MISSING)
def test_a_missing_package_is_found_before_anything_starts(name, value, package, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = [
        "train",
        str(ROOT / "configs" / "tiny.py"),
        "--workdir",
        str(tmp_path),
        f"--config.metrics.{name}={value}",
    ]
    assert cli.main(arguments) == 64
    error = capsys.readouterr().err
    assert f"expected the package {package}" in error and f'pip install "lmjax[{name}]"' in error
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_package_and_bad_values_are_refused(tmp_path, monkeypatch):
    """wandb writes a folder `wandb` into the current folder, which Python finds as a package without contents."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    if importlib.machinery.PathFinder.find_spec("wandb").origin is None:  # not installed
        with pytest.raises(InputError, match="expected the package wandb"):
            trackers.check_installed(settings(wandb="offline"))
    for key, value in {"metrics__wandb": "on", "metrics__mlflow": "here"}.items():
        with pytest.raises(InputError, match=f"config.{key.replace('__', '.')}: expected .*, or None, got '{value}'"):
            small(**{key: value})

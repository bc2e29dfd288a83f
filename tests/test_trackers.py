"""Guards against trackers that stop or delay a run, log a step twice after a resume, or are found missing too late.

Weights & Biases and MLflow are stand-ins here, which keep what they are given, as the packages do between processes.
Tests of "package" use the packages themselves, offline, and read back what these wrote; they are skipped where the
extras wandb and mlflow are not installed.
"""

import collections
import importlib.machinery
import json
import pathlib
import struct
import subprocess
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
    """What both stand-ins were given: {run or session: [(step, values)]}, arguments of calls, ends of runs."""

    def __init__(self):
        self.logged = collections.defaultdict(list)
        self.opened, self.ended, self.params, self.tags = [], [], {}, {}
        self.fails_at, self.blocked = None, None

    def log(self, place, step, values):
        if self.blocked:
            self.blocked.wait(10)
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("no route\nto the host")
        self.logged[place].append((step, dict(values)))

    def held(self):
        """[(step, values)] of all runs; those of a session are gone with its folder."""
        there = [place for place in self.logged if not isinstance(place, pathlib.Path) or place.is_dir()]
        return [line for place in there for line in self.logged[place]]

    def steps(self):
        return [step for step, _ in self.held()]


def module(name, **content):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="stand-in")
    vars(made).update(content)
    return made


def fake_wandb(store):
    def init(**arguments):
        store.opened.append(arguments)
        prefix = "offline-" * (arguments["mode"] == "offline")
        session = pathlib.Path(arguments["dir"], "wandb", f"{prefix}run-{len(store.opened)}-{arguments['id']}")
        (session / "files").mkdir(parents=True)
        uploaded = [
            place for place in store.logged if place.name.startswith("run-") and place.name.endswith(arguments["id"])
        ]
        start = 1 + max([step for place in uploaded for step, _ in store.logged[place]], default=-1)  # 0 offline
        log = lambda values, step, commit: store.log(session, step, values)  # noqa: E731
        end = lambda exit_code: store.ended.append(exit_code)  # noqa: E731
        return types.SimpleNamespace(
            starting_step=start, step=0, disabled=False, log=log, finish=end, dir=str(session / "files")
        )

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
            assert key == "tags.`lmjax.id`"
            found = [name for name, tag in store.tags[experiments[0]].items() if tag == value.strip("'")]
            return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=name)) for name in found]

        def create_run(self, experiment, tags, run_name):
            assert tags["lmjax.run_id"] == run_name
            store.tags[experiment][f"run {len(store.tags[experiment])}"] = tags["lmjax.id"]
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=[*store.tags[experiment]][-1]))

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


def read_wandb(run_dir):
    """([(step, metrics)], the records of the runs) in the sessions of a run directory, as `wandb leet` shows them."""
    util, lines, runs = pytest.importorskip("wandb.util"), [], []
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb")):
        command = [util.get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(path)]
        shown = subprocess.run([*command, str(path.parent.parent)], capture_output=True, text=True, check=True).stdout
        for record in map(json.loads, shown.splitlines()):
            if record["type"] == "run":
                runs.append(record["run"])
            elif record["type"] == "history":
                item = record["history"]["item"]
                lines.append((item["_step"], {name: value for name, value in item.items() if name[0] != "_"}))
    return lines, runs


def read_mlflow(run_dir):
    """([(step, metrics)], the runs) in the database beside a run directory, in the order they were logged."""
    client = pytest.importorskip("mlflow.tracking").MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    runs, lines = client.search_runs([client.get_experiment_by_name(run_dir.parent.name).experiment_id]), []
    for run in runs:
        steps = collections.defaultdict(list)
        for name in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, name):
                steps[metric.step].append((name, metric.value))
        assert all(len({name for name, _ in pairs}) == len(pairs) for pairs in steps.values())  # none twice
        lines += [(step, dict(pairs)) for step, pairs in steps.items()]
    return lines, runs


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_goes_on_and_logs_each_step_once(name, store, run_dir):
    """Killed after step 10, restored from step 6: steps 6, 8 and 10 are written again, but logged once."""
    store, given = store[name], SETTINGS[name]
    write(run_dir, given, 0, 10)
    write(run_dir, given, 6, 16, "done")
    assert store.held() == recorded(run_dir) and store.steps() == list(range(2, 17, 2))
    ends = {"wandb": [0, 0], "mlflow": ["KILLED", "FINISHED"]}
    assert store.ended == ends[name]
    own = (run_dir / "tracker_id").read_text().strip()
    if name == "wandb":
        found = {(o["id"], o["name"], o["group"], o["mode"], o["resume"]) for o in store.opened}
        assert found == {(f"run-1-abc-{own}", "run-1-abc", "my_sweep", "offline", None)}
        assert store.opened[0]["config"] == {"train.seed": 3, "run.held_out": False, "n_total": 100, "code": "c1"}
        assert store.opened[0]["settings"]["init_timeout"] <= trackers.CLOSE_SECONDS  # which the end of a run waits for
    else:
        assert set(store.opened) == {f"sqlite:///{run_dir.parent}/mlflow.db"} and list(store.tags) == ["my_sweep"]
        assert store.params == {"train.seed": "3", "run.held_out": "False", "n_total": "100", "code": "c1"}


def test_the_package_wandb_has_each_step_of_a_resumed_run_once(run_dir):
    """An offline session of a resumed run replaces the one before: `wandb sync` would keep the steps of both."""
    pytest.importorskip("wandb")
    write(run_dir, SETTINGS["wandb"], 0, 10)
    assert read_wandb(run_dir)[0] == recorded(run_dir)
    time.sleep(1.1)  # folders are named by the second
    write(run_dir, SETTINGS["wandb"], 6, 16, "done")
    lines, (run,) = read_wandb(run_dir)
    assert lines == recorded(run_dir) and len(lines) == 8
    own = (run_dir / "tracker_id").read_text().strip()
    assert (run["run_id"], run["display_name"], run["run_group"]) == (f"run-1-abc-{own}", "run-1-abc", "my_sweep")
    config = {"train.seed": 3, "run.held_out": False, "n_total": 100, "code": "c1"}
    assert {key: value for key, value in run["config"]["update"].items() if key != "_wandb"} == config


@pytest.mark.filterwarnings("default")  # its own
def test_the_package_mlflow_has_each_step_of_a_resumed_run_once(run_dir):
    pytest.importorskip("mlflow")
    write(run_dir, SETTINGS["mlflow"], 0, 10)
    assert read_mlflow(run_dir)[1][0].info.status == "KILLED"
    write(run_dir, SETTINGS["mlflow"], 6, 16, "done")
    lines, (run,) = read_mlflow(run_dir)
    assert lines == recorded(run_dir) and len(lines) == 8
    assert (run.info.run_name, run.info.status) == ("run-1-abc", "FINISHED")
    assert run.data.params == {"train.seed": "3", "run.held_out": "False", "n_total": "100", "code": "c1"}
    own = (run_dir / "tracker_id").read_text().strip()
    assert (run.data.tags["lmjax.run_id"], run.data.tags["lmjax.id"]) == ("run-1-abc", own)


def test_lines_of_a_synced_session_are_not_logged_again(store, run_dir):
    """`wandb sync` appends a later session to what the server has."""
    store = store["wandb"]
    write(run_dir, SETTINGS["wandb"], 0, 4)
    write(run_dir, SETTINGS["wandb"], 4, 8)  # replaces the first session
    (session,) = (run_dir / "wandb").glob("offline-run-*")
    (session / "run-1.wandb.synced").touch()
    write(run_dir, SETTINGS["wandb"], 8, 12)
    write(run_dir, SETTINGS["wandb"], 12, 16)  # replaces the third
    assert store.logged[session] == recorded(run_dir)[:4] and store.held() == recorded(run_dir)
    assert len(list((run_dir / "wandb").glob("offline-run-*"))) == 2


def test_online_the_server_says_which_lines_it_has(store, run_dir):
    """After a kill it may lack lines that were logged, since they are uploaded every few seconds."""
    store, given = store["wandb"], {"wandb": "online"}
    write(run_dir, given, 0, 10)
    (lines,) = store.logged.values()
    del lines[3:]
    write(run_dir, given, 10, 14)
    assert store.held() == recorded(run_dir) and len(recorded(run_dir)) == 7
    assert [arguments["resume"] for arguments in store.opened] == ["allow", "allow"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_trained_again_is_another_run_of_the_tracker(name, store, run_dir):
    """It has the same run id; to continue the first would skip all of its lines."""
    store, given = store[name], {"wandb": {"wandb": "online"}, "mlflow": {"mlflow": "http://host:5000"}}[name]
    write(run_dir, given, 0, 6, "done")
    run_dir.rename(run_dir.parent / "away")
    run_dir.mkdir()
    (run_dir / "config.json").write_bytes((run_dir.parent / "away" / "config.json").read_bytes())
    write(run_dir, given, 0, 6, "done")
    if name == "wandb":
        assert len({arguments["id"] for arguments in store.opened}) == 2
    else:
        assert [*store.logged.values()] == [recorded(run_dir)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_gives_one_warning_and_catches_up_later(name, store, run_dir):
    store, given, notes = store[name], SETTINGS[name], []
    store.fails_at = 6
    write(run_dir, given, 0, 12, notes=notes)
    assert store.steps() == [2, 4] and len(recorded(run_dir)) == 6
    assert len(notes) == 1 and f"metrics.{name} failed (ConnectionError: no route to the host)" in notes[0]
    store.fails_at = None
    write(run_dir, given, 12, 14)
    assert store.held() == recorded(run_dir)


def test_the_record_is_written_first_and_never_waits(store, run_dir, monkeypatch):
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.05)
    store["wandb"].blocked, notes = threading.Event(), []
    write(run_dir, SETTINGS["wandb"], 0, 8, notes=notes)
    assert len(recorded(run_dir)) == 4 and store["wandb"].held() == []
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
        assert store[name].held() == recorded(run_dir) and len(recorded(run_dir)) == 3
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

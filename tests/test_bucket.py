"""Guards against runs in a bucket that are lost with the machine, trained twice, or end with other numbers than on a
disk, and against stores there that are torn; with a local server of the S3 protocol."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from lmjax import bucket, cli, object_storage, parents, run_record, trained
from lmjax.data import dataset, sources, store, tokenizers
from lmjax.errors import InputError
from lmjax.sweeps import analysis, halving, local, records
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from tests.conftest import ROOT, SMALL, small
from tests.test_records import finish
from tests.test_resume import metrics
from tests.test_sweep import FakeWorker, write_sweep

pytest.importorskip("boto3", reason='NOT TESTED: runs in buckets, because boto3 is missing; pip install "lmjax[test]"')
pytest.importorskip("moto", reason='NOT TESTED: runs in buckets, because moto is missing; pip install "lmjax[test]"')


@pytest.fixture(scope="module")
def endpoint():
    """A server that handles one request at a time, so that a conditional put is atomic, as it is in S3."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def objects(request, endpoint, tmp_path, monkeypatch):
    """An empty bucket `runs`; this process is machine `a`."""
    scheme = getattr(request, "param", "s3")
    if scheme == "gs" and not os.environ.get("STORAGE_EMULATOR_HOST"):
        pytest.skip("NOT TESTED: gs://; set STORAGE_EMULATOR_HOST to the address of a fake-gcs-server")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": endpoint, "LMJAX_CACHE": str(tmp_path / "a")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "SECONDS", 0.1)
    object_storage._objects.cache_clear()
    found = object_storage._objects(scheme, "runs")
    if scheme == "s3":
        found.client.create_bucket(Bucket="runs")
    elif not found.bucket.exists():
        found.bucket.create()
    found.scheme = scheme
    yield found
    for key in found.keys(""):
        found.delete(key)
    object_storage._objects.cache_clear()


def arguments(url, **overrides):
    keys = {**SMALL, "duration.steps": 40, "checkpoint.every_steps": 4, "model.num_layers": 1, **overrides}
    flags = [f"--config.{k}={','.join(v) if isinstance(v, tuple) else v}" for k, v in keys.items()]
    return ["train", str(ROOT / "configs" / "decoder.py"), "--run-dir", str(url), *flags]


def on_machine(cache, words):
    """Starts lmjax in a process with a cache folder of its own, i.e. on another machine; a step takes 0.3 s there."""
    program = """
import time
from lmjax import bucket, cli, trainer
bucket.SECONDS, arguments = 0.1, trainer.Member.arguments
trainer.Member.arguments = lambda member, step: time.sleep(0.3) or arguments(member, step)
cli.run()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "LMJAX_CACHE": str(cache)}
    return subprocess.Popen([sys.executable, "-c", program, *words], env=environment, stderr=subprocess.PIPE, text=True)


def steps(objects):
    """The complete checkpoints in the bucket."""
    return bucket._steps([key.removeprefix("sweep/run/") for key in objects.keys("")])


def lock(objects, **changes):
    """The lock of a run in the bucket, after changing it."""
    record = {**json.loads(objects.read("sweep/run/lock")[0]), **changes}
    if changes:
        objects.write("sweep/run/lock", json.dumps(record).encode())
    return record


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_a_killed_run_continues_on_another_machine_with_the_same_bits(objects, tmp_path, monkeypatch, capsys):
    """Machine b is killed; while its lock is fresh nobody else trains the run; then a ends it, and c reads it."""
    assert cli.main(arguments(tmp_path / "whole")) == 0
    url = f"{objects.scheme}://runs/sweep/run"
    process = on_machine(tmp_path / "b", arguments(url))
    deadline = time.monotonic() + 100
    while not steps(objects):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.3)
    process.kill()
    process.communicate()
    assert "sweep/run/summary.json" not in objects.keys("")
    objects.write("sweep/run/tracker_id", b"8d2c6f01\n")  # as if a tracker had been on
    assert cli.main(arguments(url)) == 64
    assert f"{url} is in use by process {process.pid} on" in capsys.readouterr().err
    assert run_record.is_locked(bucket.local(url))
    lock(objects, time=time.time() - 121)  # two minutes later
    assert cli.main(arguments(url)) == 0
    assert "resumed from step" in capsys.readouterr().err
    run_dir, whole = bucket.local(url), tmp_path / "whole"
    assert metrics(run_dir) == metrics(whole)
    one, two = (run_record.read_json(folder / "summary.json") for folder in (whole, run_dir))
    assert one["loss"] == two["loss"] and two["attempts"] == 2 and two["metrics_lines_lost"] == 0
    assert lock(objects)["time"] is None and not run_record.is_locked(run_dir)
    for name in (*bucket.RECORDS, "tokenizer/lmjax_tokenizer.json"):
        assert objects.read(f"sweep/run/{name}")[0] == (run_dir / name).read_bytes()
    monkeypatch.setenv("LMJAX_CACHE", str(tmp_path / "c"))
    table = run_record.read_runs(bucket.local(f"{objects.scheme}://runs/sweep"))
    assert table["status"].tolist() == ["done"] and table["loss"].tolist() == [one["loss"]]
    assert not (bucket.local(url) / "checkpoints").exists()  # records only, until a model is loaded
    jax.tree.map(np.testing.assert_array_equal, *(trained.load(folder).params for folder in (url, whole)))
    assert bucket.saved_steps(bucket.local(url)) == bucket.saved_steps(whole) == steps(objects)
    objects.delete("sweep/run/summary.json")  # the bucket is right
    assert run_record.read_runs(bucket.local(f"{objects.scheme}://runs/sweep"))["status"].tolist() == ["preempted"]


def places(objects, tmp_path, count):
    """The same run on several machines."""
    return [
        object_storage.Place(f"{objects.scheme}://runs/sweep/run", "sweep/run/", tmp_path / str(i))
        for i in range(count)
    ]


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_of_many_machines_one_gets_the_run(objects, tmp_path):
    """At the start, and when the lock of a killed machine has run out; a released lock is free."""
    for before in ({}, {"time": time.time() - 121}, {"time": None}):
        if before:
            lock(objects, **before)
        got, start = [], threading.Barrier(4)

        def take(place, got=got, start=start):
            start.wait()
            try:
                got.append(bucket._Lock(place).acquire())
            except InputError as error:
                got.append(str(error))

        threads = [threading.Thread(target=take, args=(place,)) for place in places(objects, tmp_path / str(before), 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 4 and sum("in use by process" in text for text in got if text is not False) == 3


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_a_machine_that_was_cut_off_ends_when_another_has_its_run(objects, tmp_path, monkeypatch):
    class Left(Exception):
        pass

    def leave(message):
        raise Left(message)

    monkeypatch.setattr(bucket, "leave", leave)
    first, second = (bucket._Lock(place) for place in places(objects, tmp_path, 2))
    assert first.acquire() is False
    first.beat(time.time())
    lock(objects, time=time.time())  # its own put, repeated by the client because the answer was lost
    first.beat(time.time())
    lock(objects, time=time.time() - 121)
    assert second.acquire() is False
    now = objects.read("sweep/run/lock")
    with pytest.raises(Left, match="was taken over by another machine"):
        first.beat(time.time())
    assert objects.read("sweep/run/lock") == now
    second.beat(None)
    assert second.acquire() is True  # its working copy is as new as the bucket
    assert run_record.is_locked(first.run.folder) and not run_record.is_locked(second.run.folder)


@pytest.mark.parametrize(
    "wrong, code, message",
    [
        (
            {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
            64,
            "locate credentials.*credentials: AWS_ACCESS_KEY_ID",
        ),
        (
            {"url": "s3://no-such-bucket/run"},
            64,
            "expected a bucket that this machine may .*NoSuchBucket.*its name",
        ),
        ({"url": "s3://runs"}, 64, "expected s3://bucket/path, got s3://runs"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, 1, "s3://runs/run cannot be reached.*the same command continues"),
    ],
)
def test_what_a_bucket_needs_is_said(objects, monkeypatch, capsys, wrong, code, message):
    url = wrong.pop("url", "s3://runs/run")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in wrong.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    object_storage._objects.cache_clear()
    assert cli.main(["runs", url]) == code
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("search", [[], ["--halving", "2"]])
@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_two_machines_share_a_sweep_and_train_no_cell_twice(objects, tmp_path, search):
    """Both sweep the same file into one bucket, and both end with every cell done, each of them in one attempt."""
    constant = {"schedule.name": "constant", "schedule.warmup_steps": 1} if search else {}
    values = ("optimizer.learning_rate", [0.01, 0.02]) if search else ("train.seed", [0, 1, 2])
    cells = f"[{{{values[0]!r}: value}} for value in {values[1]}]"  # three runs with the last rung of a search
    spec = str(write_sweep(tmp_path, cells, **constant))
    words = ["sweep", spec, "--workdir", f"{objects.scheme}://runs/sweep", "--workers", "1", "--no-analysis", "-q"]
    words += search
    both = [on_machine(tmp_path / name, words) for name in "bc"]
    told = [process.communicate(timeout=280)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    keys = objects.keys("sweep/")
    statuses = [json.loads(objects.read(key)[0]) for key in keys if key.endswith("/status.json")]
    assert [status["status"] for status in statuses] == ["done"] * 3
    assert [status["attempts"] for status in statuses] == [1] * 3


def machine(name, tmp_path, monkeypatch):
    """This process becomes another machine; returns its working copy of the sweep."""
    monkeypatch.setenv("LMJAX_CACHE", str(tmp_path / name))
    return bucket.local("s3://runs/sweep")


def test_records_count_as_done_for_all_machines(objects, tmp_path, monkeypatch, capsys):
    """The file may be in the bucket, too. A cell that another machine trains at the moment stays as it is there."""
    spec = str(write_sweep(tmp_path, "[{'train.seed': seed} for seed in range(3)]"))
    for number, cell in enumerate(load_cells(spec, tmp_path / "disk", {})):
        finish(cell, 2.0 + number)
    records.pack(tmp_path / "disk", tmp_path / "mini.parquet")
    objects.upload(tmp_path / "mini.parquet", "files/mini.parquet")
    names = [cell.run.run_id for cell in load_cells(spec, tmp_path / "disk", {})]
    held = {"owner": "x", "process": 1, "host": "far", "time": time.time()}
    objects.write(f"sweep/{names[0]}/lock", json.dumps(held).encode())
    objects.upload(tmp_path / "disk" / names[0] / "config.json", f"sweep/{names[0]}/config.json")
    monkeypatch.setattr(local.LocalPool, "_launch", lambda *_: pytest.fail("a cell of the records was trained"))
    monkeypatch.setattr(local.LocalPool, "run", lambda pool, cells: {})
    words = ["sweep", spec, "--workdir", "s3://runs/sweep", "--no-analysis", "-q", "--records"]
    assert cli.main([*words, "s3://runs/files/none.parquet"]) == 64
    assert "s3://runs/files/none.parquet: expected a file in the bucket" in capsys.readouterr().err
    assert cli.main([*words, "s3://runs/files/mini.parquet"]) == 1  # one cell is not done
    assert "2 of 3 cells count as done; 1 more" in " ".join(capsys.readouterr().out.split())
    assert f"sweep/{names[0]}/summary.json" not in objects.keys("")
    table = run_record.read_runs(machine("b", tmp_path, monkeypatch)).set_index("run_id")
    assert table["status"][names].tolist() == ["pending", "done", "done"]
    assert table["loss"][names[1:]].tolist() == [3.0, 4.0]
    objects.write(f"sweep/{names[0]}/lock", json.dumps({**held, "time": None}).encode())
    machine("a", tmp_path, monkeypatch)
    cli.main([*words, str(tmp_path / "mini.parquet")])
    assert "1 of 3 cells count as done; 2 more" in " ".join(capsys.readouterr().out.split())
    assert f"sweep/{names[0]}/summary.json" in objects.keys("")


class Lost(Exception):
    pass


class Trainer:
    """In place of a process: ends the runs of a worker at once, and copies them to the bucket; the loss is the learning
    rate. The machine is lost when it begins a run of `lost` steps."""

    def __init__(self, lost=None):
        self.lost, self.trained = lost, []

    def __call__(self, place, cells, command):
        for cell in cells:
            if cell.run.steps == self.lost:
                raise Lost
            rate, folder = cell.overlay["optimizer.learning_rate"], cell.run_dir / "checkpoints" / str(cell.run.steps)
            assert parents.ready(cell.run, cell.run_dir)
            self.trained.append((cell.run.steps, rate))
            with run_record.Lock(cell.run_dir), bucket.mirrored(cell.run_dir):
                folder.mkdir(parents=True)
                (folder / "data").write_text("...")
                finish(cell, rate)
        return FakeWorker(0)


def test_machines_share_a_search_by_halving(objects, tmp_path, monkeypatch, capsys):
    """Machine a is lost before the last rung; b goes on from a checkpoint of a; c finds the search ended."""
    rates = "[{'optimizer.learning_rate': rate} for rate in (0.1, 0.2, 0.3, 0.4)]"
    constant = {"schedule.name": "constant", "schedule.warmup_steps": 1, "duration.steps": 8, "data.max_epochs": 1e6}
    spec, search = str(write_sweep(tmp_path, rates, **constant)), halving.Search(2)

    def searched(name, trainer):
        workdir = machine(name, tmp_path, monkeypatch)
        monkeypatch.setattr(sweep_run, "start_process", trainer)
        assert sweep_run.sweep(spec, workdir, {}, 1, True, quiet=True, search=search) == 0
        assert "best optimizer.learning_rate 0.1" in capsys.readouterr().out
        return trainer.trained

    first = Trainer(lost=8)
    with pytest.raises(Lost):
        searched("a", first)
    assert sorted(first.trained) == [(2, 0.1), (2, 0.2), (2, 0.3), (2, 0.4), (4, 0.1), (4, 0.2)]
    assert searched("b", Trainer()) == [(8, 0.1)] and searched("c", Trainer()) == []
    analysis.read(machine("d", tmp_path, monkeypatch))
    assert "the longer ones are a selection" in capsys.readouterr().err  # halving.json is in the bucket


def test_cluster_launchers_refuse_a_bucket(objects, tmp_path, capsys):
    """Their jobs would look for the working copy of the machine that submits."""
    spec = str(write_sweep(tmp_path, "[{}]"))
    assert cli.main(["sweep", spec, "--workdir", "s3://runs/sweep", "--launcher", "slurm"]) == 64
    assert "s3://runs/sweep: expected --launcher local, got another; start the same" in capsys.readouterr().err


# -- Token stores


@pytest.fixture
def text(objects, tmp_path, monkeypatch):
    """Text of a user's own, and a folder of the bucket for its token store."""
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(f"Document {i} says: " + "hello world, " * (i + 1))
    monkeypatch.setenv("LMJAX_STORES", f"{objects.scheme}://runs/shared")
    return folder


def prepared(cache, text, monkeypatch, **overrides):
    """What a machine with this cache folder trains on."""
    monkeypatch.setenv("LMJAX_CACHE", str(cache))
    return dataset.prepare(small(data__sources=(f"files:{text}/*.txt",), **overrides))


def contents(data):
    return [path.read_bytes() for path in sorted(data.stores[0].path.iterdir())]


def builds(monkeypatch):
    """The stores that are built from now on."""
    built, write = [], store._write
    monkeypatch.setattr(store, "_write", lambda *given: built.append(given) or write(*given))
    return built


@pytest.mark.parametrize("objects", ["s3", "gs"], indirect=True)
def test_a_store_is_made_once_for_all_machines(objects, text, tmp_path, monkeypatch, capsys):
    """Machine b reads the store and the tokenizer of a, and so does c, which does not even have the text."""
    bpe, built = {"data__tokenizer": "bpe", "data__vocab_size": 300}, builds(monkeypatch)
    first = prepared(tmp_path / "a", text, monkeypatch, **bpe)
    monkeypatch.setattr(tokenizers, "train_bpe", None)
    second = prepared(tmp_path / "b", text, monkeypatch, **bpe)
    shutil.rmtree(text)
    assert "reading the token store" not in capsys.readouterr().err
    third = prepared(tmp_path / "c", text, monkeypatch, **bpe)
    assert "nothing matches" in (told := capsys.readouterr().err) and "reading the token store of another" in told
    assert len(built) == 1 and first.digest == second.digest == third.digest
    assert contents(first) == contents(second) == contents(third)
    with pytest.raises(InputError, match="nothing matches"):
        prepared(tmp_path / "c", text, monkeypatch, **bpe, data__validation_fraction=0.3)
    monkeypatch.delenv("LMJAX_STORES")
    with pytest.raises(InputError, match="nothing matches"):
        prepared(tmp_path / "d", text, monkeypatch, **bpe)


def test_a_damaged_store_is_made_again_and_writes_no_other_file(objects, text, tmp_path, monkeypatch, capsys):
    """The upload ended early; an object has changed; the list names files outside of the folder; or another store."""
    expected = contents(prepared(tmp_path / "a", text, monkeypatch))
    (name,) = (key for key in objects.keys("shared/stores/") if key.endswith(".json"))
    listed = json.loads(objects.read(name)[0])
    for folder in ("stores", "evil"):
        (tmp_path / "b" / folder).mkdir(parents=True)
    escaping = {**listed, "../../evil/file": listed["train.tokens"]}
    other = {**listed, "train.tokens": listed["validation.tokens"]}
    tokens = f"{name.removesuffix('.json')}/{listed['train.tokens']}"
    cases = {
        "none": lambda: objects.delete(name),
        "object": lambda: objects.write(tokens, b"?" * len(objects.read(tokens)[0])),
        "escaping": lambda: objects.write(name, json.dumps(escaping).encode()),
        "other": lambda: objects.write(name, json.dumps(other).encode()),
        "garbage": lambda: objects.write(name, b"\x80"),
    }
    for number, (case, damage) in enumerate(cases.items()):
        damage()
        built = builds(monkeypatch)
        assert contents(prepared(tmp_path / "b", text, monkeypatch)) == expected
        assert ("is damaged and made again" in capsys.readouterr().err) == (case != "none") and len(built) == 1
        assert json.loads(objects.read(name)[0]) == listed and not [*(tmp_path / "b" / "evil").iterdir()]
        assert contents(prepared(tmp_path / f"after {number}", text, monkeypatch)) == expected and len(built) == 1
        shutil.rmtree(tmp_path / "b" / "stores")


def test_two_machines_build_a_store_at_once(objects, text, tmp_path, monkeypatch):
    source, built = sources.resolve(f"files:{text}/*.txt", "text", 0, tmp_path), builds(monkeypatch)
    counting, start, found = store._write, threading.Barrier(2, timeout=60), []
    monkeypatch.setattr(store, "_write", lambda *given: start.wait() and False or counting(*given))

    def prepare(cache):
        found.append(store.prepare_store(source, tokenizers.Bytes(8), 0.1, cache))

    threads = [threading.Thread(target=prepare, args=(tmp_path / name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == len(found) == 2
    prepare(tmp_path / "c")
    one, two, three = ([path.read_bytes() for path in sorted(opened.path.iterdir())] for opened in found)
    assert len(built) == 2 and one == two == three


def test_a_bucket_that_cannot_be_written_or_reached_stops_no_machine_that_has_its_store(
    objects, text, tmp_path, monkeypatch, capsys
):
    def refuse(self, path, key):
        raise self.client.exceptions.ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutObject")

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.S3, "upload", refuse)
        digest = prepared(tmp_path / "a", text, monkeypatch).digest
        (told,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert re.search("lmjax: warning: s3://runs/shared: expected a bucket that .* may .*write, got .*AccessD", told)
    assert not objects.keys("shared/stores/") and prepared(tmp_path / "a", text, monkeypatch).digest == digest
    assert objects.keys("shared/stores/")  # copied by the next run
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    object_storage._objects.cache_clear()
    assert prepared(tmp_path / "a", text, monkeypatch).digest == digest
    assert "cannot be reached" in capsys.readouterr().err
    with pytest.raises(ConnectionError, match="cannot be reached.*the same command continues"):
        prepared(tmp_path / "b", text, monkeypatch)


@pytest.mark.parametrize(
    "stores, message",
    [
        ("s3://no-such-bucket/shared", "expected a bucket that this machine may .*NoSuchBucket.*its name"),
        ("s3://runs", "expected s3://bucket/path, got s3://runs"),
        ("/tmp/shared", "LMJAX_STORES: expected s3://bucket/path or gs://bucket/path, got /tmp/shared"),
    ],
)
def test_what_the_folder_of_stores_must_be_is_said(objects, text, tmp_path, monkeypatch, stores, message):
    monkeypatch.setenv("LMJAX_STORES", stores)
    with pytest.raises(InputError, match=message):
        prepared(tmp_path / "b", text, monkeypatch)


def test_names_in_a_bucket_name_no_file_outside_of_its_folder(objects, tmp_path):
    run = {"config.json": b"{}", "tokenizer/../../../evil": b"x", "tokenizer//tmp/evil": b"x", "tokenizer/a": b"y"}
    for name, content in {
        **{f"sweep/run/{key}": value for key, value in run.items()},
        "sweep/../config.json": b"{}",
    }.items():
        objects.client.put_object(Bucket="runs", Key=name, Body=content)
    folder = bucket.local("s3://runs/sweep")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == [f"{folder.relative_to(tmp_path)}/run/{name}" for name in ("config.json", "tokenizer/a")]

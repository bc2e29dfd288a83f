"""Guards against runs in a bucket that are lost with the machine, trained twice, or end with other numbers than on a
disk; with a local server of the S3 protocol."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from lmjax import bucket, cli, run_record, trained
from lmjax.errors import InputError
from tests.conftest import ROOT, SMALL
from tests.test_resume import metrics
from tests.test_sweep import write_sweep

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
    bucket._objects.cache_clear()
    found = bucket._objects(scheme, "runs")
    if scheme == "s3":
        found.client.create_bucket(Bucket="runs")
    elif not found.bucket.exists():
        found.bucket.create()
    found.scheme = scheme
    yield found
    for key in found.keys(""):
        found.delete(key)
    bucket._objects.cache_clear()


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


def test_a_killed_run_continues_on_another_machine_with_the_same_bits(objects, tmp_path, monkeypatch, capsys):
    """Machine b is killed; while its lock is fresh nobody else trains the run; then a ends it, and c reads it."""
    assert cli.main(arguments(tmp_path / "whole")) == 0
    url = "s3://runs/sweep/run"
    process = on_machine(tmp_path / "b", arguments(url))
    deadline = time.monotonic() + 100
    while not steps(objects):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.3)
    process.kill()
    process.communicate()
    assert "sweep/run/summary.json" not in objects.keys("")
    assert cli.main(arguments(url)) == 64
    assert f"s3://runs/sweep/run is in use by process {process.pid} on" in capsys.readouterr().err
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
    table = run_record.read_runs(bucket.local("s3://runs/sweep"))
    assert table["status"].tolist() == ["done"] and table["loss"].tolist() == [one["loss"]]
    assert not (bucket.local(url) / "checkpoints").exists()  # records only, until a model is loaded
    jax.tree.map(np.testing.assert_array_equal, *(trained.load(folder).params for folder in (url, whole)))
    assert bucket.saved_steps(bucket.local(url)) == bucket.saved_steps(whole) == steps(objects)
    objects.delete("sweep/run/summary.json")  # the bucket is right
    assert run_record.read_runs(bucket.local("s3://runs/sweep"))["status"].tolist() == ["preempted"]


def places(objects, tmp_path, count):
    """The same run on several machines."""
    return [bucket.Place(f"{objects.scheme}://runs/sweep/run", "sweep/run/", tmp_path / str(i)) for i in range(count)]


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
    bucket._objects.cache_clear()
    assert cli.main(["runs", url]) == code
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_two_machines_share_a_sweep_and_train_no_cell_twice(objects, tmp_path):
    """Both sweep the same file into one bucket, and both end with every cell done, each of them in one attempt."""
    spec = str(write_sweep(tmp_path, "[{'train.seed': seed} for seed in range(3)]"))
    words = ["sweep", spec, "--workdir", "s3://runs/sweep", "--workers", "1", "--no-analysis", "-q"]
    both = [on_machine(tmp_path / name, words) for name in "bc"]
    told = [process.communicate(timeout=280)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    keys = objects.keys("sweep/")
    statuses = [json.loads(objects.read(key)[0]) for key in keys if key.endswith("/status.json")]
    assert [status["status"] for status in statuses] == ["done"] * 3
    assert [status["attempts"] for status in statuses] == [1] * 3

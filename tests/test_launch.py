"""Guards against launchers that ask for the wrong resources, start the wrong cells, or restart the wrong exit codes.
Slurm itself is in tests/test_launch_slurm.py."""

import _thread
import collections
import http.server
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from lmjax import api, cli, run_record
from lmjax.errors import InputError
from lmjax.sweeps import launchers, local
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from lmjax.sweeps.launchers import hosts, kubernetes, ray_tasks, slurm
from tests.conftest import ROOT
from tests.test_sweep import write_sweep

SEEDS = "[{'train.seed': s, 'run.held_out': s > 2} for s in range(4)]"
needs = pytest.mark.skipif


def _cells(tmp_path, cells=SEEDS, **keys):
    return load_cells(str(write_sweep(tmp_path, cells, **keys)), tmp_path / "my runs", {})


def _stage(tmp_path, cells=SEEDS, predict=("predict",), at_once=0, names=(), pack=1, **keys):
    found = _cells(tmp_path, cells, **keys)
    made = [launchers.tasks([c for c in found if c.held_out == side], pack) for side in (False, True)]
    return launchers.Stage(*made, predict, tmp_path / "my runs", at_once, names)


def _on_kubernetes(tmp_path):
    return {"launch.image": "registry/lmjax:1", "launch.volume": f"shared:{tmp_path}"}


def _names(stage):
    return [[cell.run.run_id for task in some for cell in task.cells] for some in (stage.fitted, stage.held_out)]


def ended(run_dir, status):
    """Writes what the end of a run writes."""
    if status == "done":
        run_record.write_json(run_dir / "summary.json", {"loss": 2.0})
    run_record.write_json(run_dir / "status.json", {"status": status})


def test_where_the_data_are_is_passed_on(tmp_path, monkeypatch):
    """ssh and Ray start commands without the environment of this process, pods have one of their own."""
    stage = _stage(tmp_path, names=("one", "two"), **_on_kubernetes(tmp_path))
    monkeypatch.setenv("LMJAX_CACHE", "/big disk")
    monkeypatch.setenv("LMJAX_STORES", "s3://ours/stores")
    assert local.passed_on().items() >= {"LMJAX_CACHE": "/big disk", "LMJAX_STORES": "s3://ours/stores"}.items()
    (container,) = _job(kubernetes.render(stage._replace(held_out=[])))["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "LMJAX_CACHE": f"{tmp_path}/lmjax-cache",
        "LMJAX_STORES": "s3://ours/stores",
    }
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/bash\necho "$2" | sed "s/exec.*/env/" | env -i bash > {tmp_path}/$1\n')
    ssh.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = hosts.show(hosts.render(stage._replace(held_out=[], predict=())))
    subprocess.run(["bash"], input=script, text=True, env=environment, check=True)
    assert {"LMJAX_CACHE=/big disk", "LMJAX_STORES=s3://ours/stores"} < set((tmp_path / "two").read_text().split("\n"))


# -- Tasks and what they need


def test_resources_come_from_the_config_and_the_plan(tmp_path):
    (cell,) = _cells(tmp_path, "[{}]")
    gib = cell.run.derived["memory_bytes"] / 2**30
    assert gib < 1
    need = launchers.resources([cell])
    assert (need.cpus, need.memory) == (1, 4.0) and launchers.resources([cell], pack=round(7 / gib)).memory == 16.0
    (cell,) = _cells(tmp_path, "[{}]", **{"launch.gpus": 2})
    assert (launchers.resources([cell]).cpus, launchers.resources([cell]).memory) == (8, None)
    (cell,) = _cells(tmp_path, "[{}]", **{"launch.cpus": 3, "launch.memory": 1.5})
    assert (launchers.resources([cell]).cpus, launchers.resources([cell]).memory) == (3, 1.5)


def test_a_class_for_each_need_and_packs_of_equal_shape(tmp_path, monkeypatch):
    cells = "[{'model.d_model': d, 'train.seed': s, 'launch.gpus': d // 16} for d in (8, 16) for s in range(3)]"
    found = _cells(tmp_path, cells)
    tasks = launchers.tasks(found)
    assert [len(task.cells) for task in tasks] == [1] * 6
    assert sorted(len(part) for part in launchers.classes(tasks)) == [3, 3]
    packs = launchers.tasks(found, pack=2)
    assert sorted(len(task.cells) for task in packs) == [1, 1, 2, 2]
    for task in packs:
        assert len({cell.run.config.model.d_model for cell in task.cells}) == 1
        assert task.command[-2:] == ("--pack", "2")
    monkeypatch.setattr(launchers, "PART", 2)
    assert sorted(len(part) for part in launchers.classes(tasks)) == [1, 1, 2, 2]
    with pytest.raises(InputError, match="a pack has one node"):
        launchers.tasks(_cells(tmp_path, "[{}]", **{"launch.nodes": 2}), pack=2)


def test_cells_of_other_needs_are_not_in_one_worker(tmp_path):
    """A worker's list of small cells runs where one set of resources was asked for."""
    cells = _cells(tmp_path, "[{'train.seed': s, 'launch.memory': 1 + s % 2} for s in range(12)]")
    pool, waiting, taken = local.LocalPool([local.Slot("worker 0", {})], None), collections.deque(cells), []
    while waiting:
        taken.append(pool._take(waiting))
    assert all(len({cell.run.config.launch.memory for cell in part}) == 1 for part in taken)
    assert len(taken) < 12 and sum(map(len, taken)) == 12


def test_the_shell_starts_the_command_of_the_index(tmp_path):
    """Paths with spaces, quotes and dollar signs arrive as they are, and can be read back for the status."""
    folder = tmp_path / 'it\'s $HOME, (a) "b"'
    cells = load_cells(str(write_sweep(tmp_path, SEEDS)), folder, {})
    tasks = launchers.tasks(cells)
    text = launchers.choice("INDEX", tasks)
    for i, task in enumerate(tasks):
        script = f'{text}\nprintf "%s\\n" "${{task[@]}}" "$log"'
        out = subprocess.run(["bash", "-c", script], env={"INDEX": str(i)}, capture_output=True, text=True, check=True)
        assert out.stdout.splitlines() == [*task.command, str(task.cells[0].run_dir / "log.txt")]
    assert launchers.chosen(text) == {i: [cell.run.run_id] for i, cell in enumerate(cells)}


# -- Slurm: what it does with these scripts is in test_launch_slurm.py


def test_scripts_for_slurm(tmp_path):
    keys = {"launch.partition": "gpus", "launch.account": "us", "launch.extra": ("--qos=low",), "launch.time": 60}
    cells = "[{'train.seed': s, 'run.held_out': s > 2, 'launch.gpus': s % 2} for s in range(5)]"
    stage = _stage(tmp_path, cells, at_once=7, **keys)
    jobs = slurm.render(stage)
    assert jobs == slurm.render(stage) and len({job.name for job in jobs}) == 5
    first, second, fit, *held_out = jobs
    assert not first.waits and not second.waits
    assert (fit.waits, fit.others) == ("afterany", (first.name, second.name))
    assert all((job.waits, job.others) == ("afterok", (fit.name,)) for job in held_out) and len(held_out) == 2
    (on_gpu,) = (job for job in (first, second) if "--gpus-per-node=1\n" in job.script)
    for option in ("--array=0-0%7", "--partition=gpus", "--account=us", "--qos=low", "--time=60", "--cpus-per-task=4"):
        assert f"#SBATCH {option}\n" in on_gpu.script
    assert "--mem" not in on_gpu.script and "--requeue" in on_gpu.script and "--signal=USR1@120" in on_gpu.script
    for job in jobs:
        subprocess.run(["bash", "-n"], input=job.script, text=True, check=True)
    shown = [
        name for job in jobs if job is not fit for names in launchers.chosen(job.script).values() for name in names
    ]
    assert sorted(shown) == sorted(sum(_names(stage), []))
    assert not [job for job in slurm.render(stage._replace(predict=())) if job.waits]


@pytest.mark.parametrize(
    "code, restarts, state, requeued",
    [
        *((75, 5, "RUNNING", True), (75, 1000, "RUNNING", False), (75, 0, "COMPLETING", False)),
        *((137, 2, "RUNNING", True), (137, 3, "RUNNING", False), (143, 0, "CANCELLED", False)),
        *((64, 0, "RUNNING", False), (1, 0, "RUNNING", False), (0, 0, "RUNNING", False)),
    ],
)
def test_the_script_requeues_what_was_saved_or_killed(tmp_path, code, restarts, state, requeued):
    """Not what failed, was cancelled, or has been started too often; and never the whole array, whose id its last
    member has."""
    stage = _stage(tmp_path, "[{'train.seed': 0}]", predict=())
    run_dir = stage.fitted[0].cells[0].run_dir
    run_dir.mkdir(parents=True)
    says = {"srun": f"exit {code}", "squeue": f"echo {state}", "scontrol": f"echo $@ >> {tmp_path}/calls", "sleep": ""}
    for name, line in says.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_RESTART_COUNT": str(restarts),
        "SLURM_JOB_ID": "7",
    }
    environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    done = subprocess.run(["bash", "-c", slurm.render(stage)[0].script], env=environment, check=False)
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    assert calls == ("requeue 7_0\n" if requeued else "")


def test_a_dry_run_prints_and_writes_nothing(tmp_path, capsys):
    sweep = write_sweep(tmp_path, SEEDS)
    arguments = ["sweep", str(sweep), "--workdir", str(tmp_path / "runs"), "--launcher", "slurm", "--dry-run"]
    assert cli.main([*arguments, "--config.launch.partition=fast"]) == 0
    out = capsys.readouterr().out
    assert out.count("#SBATCH --partition=fast") == 3 and "--predict --config.launch.partition=fast" in out
    assert not (tmp_path / "runs").exists()


def test_finished_cells_are_left_out_and_the_fit_comes_first(tmp_path, monkeypatch):
    """Held-out cells wait while a fitted cell is in the queue; when none is left, the prediction is made at once."""
    sweep, workdir = write_sweep(tmp_path, SEEDS), tmp_path / "runs"
    cells = load_cells(str(sweep), workdir, {})
    *fitted, held_out = sorted(cells, key=lambda cell: cell.held_out)
    given, queue, predicted = [], {}, []
    monkeypatch.setattr(slurm, "submit", lambda jobs, _: given.append(jobs) or [])
    monkeypatch.setattr(sweep_run, "queued", lambda _: queue)
    monkeypatch.setattr(sweep_run.analysis, "predict_held_out", lambda *a: predicted.append(a))

    def submitted():
        given.clear()
        sweep_run.submit(str(sweep), workdir, {}, "slurm")
        found = [
            launchers.chosen(job.script).values() for jobs in given for job in jobs if "--predict" not in job.script
        ]
        return [name for ids in found for names in ids for name in names]

    def finish(cell, status="done"):
        ended(cell.run_dir, status)

    assert sorted(submitted()) == sorted(cell.run.run_id for cell in cells) and len(given[0]) == 3
    assert all(run_record.read_record(cell.run_dir) for cell in cells)  # what the workers read
    queue[fitted[0].run.run_id] = "1_0 PENDING"
    finish(fitted[1])
    finish(fitted[2], "failed")
    assert submitted() == [fitted[2].run.run_id] and not predicted
    queue.clear()
    finish(fitted[0], "diverged")
    finish(fitted[2])
    assert submitted() == [held_out.run.run_id] and len(predicted) == 1 and len(given[0]) == 1


def test_the_prediction_waits_for_every_fitted_cell(tmp_path, monkeypatch, capsys):
    sweep, workdir = write_sweep(tmp_path, SEEDS), tmp_path / "runs"
    cells, predicted = load_cells(str(sweep), workdir, {}), []
    monkeypatch.setattr(sweep_run.analysis, "predict_held_out", lambda *a: predicted.append(a))
    command = ["sweep", str(sweep), "--workdir", str(workdir), "--predict"]
    for i, cell in enumerate(cell for cell in cells if not cell.held_out):
        assert cli.main(command) == 1 and not predicted
        cell.run.write(cell.run_dir)
        ended(cell.run_dir, ("done", "failed", "diverged")[i])
    assert "is pending (1 of 3 cells)" in capsys.readouterr().err
    assert cli.main(command) == 0 and len(predicted) == 1
    run_record.write_json(cell.run_dir / "status.json", {"status": "running", "host": "far", "heartbeat": time.time()})
    monkeypatch.setattr(sweep_run.time, "sleep", lambda _: ended(cell.run_dir, "done"))
    assert cli.main(command) == 0 and len(predicted) == 2


def test_the_status_joins_directories_and_queue(tmp_path, monkeypatch, capsys):
    sweep, workdir = write_sweep(tmp_path, SEEDS), tmp_path / "runs"
    cells = load_cells(str(sweep), workdir, {})
    queue = {cells[0].run.run_id: "17_3 PENDING (Resources)"}
    monkeypatch.setattr(sweep_run, "queued", lambda _: queue)
    command = ["sweep", str(sweep), "--workdir", str(workdir), "--status"]
    assert cli.main(command) == 0
    assert "17_3 PENDING (Resources)" in " ".join(capsys.readouterr().out.split())
    monkeypatch.undo()
    (workdir / "slurm").mkdir(parents=True)
    (workdir / "slurm" / "lmjax-1.sh").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(command) == 0  # a lost queue does not hide the run directories
    out, err = capsys.readouterr()
    assert "4 pending" in out and "the queue is not shown: expected Slurm's squeue on PATH" in err


# -- Kubernetes


def _job(objects):
    (job,) = (made for made in objects if made["kind"] == "Job")
    return job


@pytest.mark.parametrize("keys", [{}, {"launch.nodes": 2}, {"launch.gpus": 8}, {"launch.tpus": 4}])
def test_objects_fit_the_schema_of_the_api(tmp_path, keys):
    validate = pytest.importorskip("kubernetes_validate", reason="THE KUBERNETES SCHEMA IS NOT TESTED: pip install it")
    objects = kubernetes.render(_stage(tmp_path, **_on_kubernetes(tmp_path), **keys))
    assert {made["kind"] for made in objects} == ({"Job", "Service"} if "launch.nodes" in keys else {"Job"})
    for made in objects:
        validate.validate(made, "1.32", strict=True)
    objects[-1]["spec"]["completionz"] = 1
    with pytest.raises(validate.ValidationError):
        validate.validate(objects[-1], "1.32", strict=True)


def test_an_index_per_task_with_rules_for_exit_codes(tmp_path):
    extra = ("cloud.google.com/gke-tpu-topology=2x2",)
    stage = _stage(tmp_path, at_once=2, **_on_kubernetes(tmp_path), **{"launch.tpus": 4, "launch.extra": extra})
    job = _job(kubernetes.render(stage._replace(held_out=[])))
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 2)
    rules = {rule["onExitCodes"]["values"][0]: rule["action"] for rule in spec["podFailurePolicy"]["rules"][:2]}
    assert rules == {64: "FailIndex", 75: "Ignore"} and spec["backoffLimitPerIndex"] == 3
    assert spec["podFailurePolicy"]["rules"][2]["onPodConditions"][0]["type"] == "DisruptionTarget"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["nodeSelector"] == {"cloud.google.com/gke-tpu-topology": "2x2"}
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}
    assert list(launchers.chosen(container["command"][-1]).values()) == [[name] for name in _names(stage)[0]]
    assert kubernetes.render(stage) == kubernetes.render(stage)


def test_held_out_cells_are_submitted_once_all_others_have_ended(tmp_path, monkeypatch):
    """There are no dependencies between Jobs. A failed cell is submitted again, but nothing waits for it."""
    sweep, workdir = write_sweep(tmp_path, SEEDS, **_on_kubernetes(tmp_path)), tmp_path / "runs"
    cells, given, predicted = load_cells(str(sweep), workdir, {}), [], []
    monkeypatch.setattr(kubernetes, "submit", lambda objects, _: given.append(objects) or [])
    monkeypatch.setattr(sweep_run.analysis, "predict_held_out", lambda *a: predicted.append(a))
    for ends, indexes, predictions in (((), 3, 0), (("done", "failed"), 2, 0), (("done", "failed", "diverged"), 2, 1)):
        for cell, end in zip((cell for cell in cells if not cell.held_out), ends, strict=False):
            ended(cell.run_dir, end)
        sweep_run.submit(str(sweep), workdir, {}, "kubernetes")
        assert (_job(given[-1])["spec"]["completions"], len(predicted)) == (indexes, predictions)


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_container_trains_the_cell_of_its_index(tmp_path, nodes):
    """The command of the container in a real shell, with a stand-in for the image's python."""
    stage = _stage(tmp_path, **_on_kubernetes(tmp_path), **{"launch.nodes": nodes})
    jobs = [made for made in kubernetes.render(stage) if made["kind"] == "Job"]
    assert len(jobs) == (1 if nodes == 1 else 4)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(
        '#!/bin/bash\necho "$5 $LMJAX_PROCESS_ID $LMJAX_COORDINATOR"; exit 75\n'.replace("$5", "${@: -1}")
    )
    python.chmod(0o755)
    for i, name in enumerate(_names(stage)[0]):
        container = jobs[0 if nodes == 1 else i]["spec"]["template"]["spec"]["containers"][0]
        log = stage.workdir / name / "log.txt"
        log.parent.mkdir(parents=True)
        for index in [i] if nodes == 1 else range(nodes):
            environment = {each["name"]: each["value"] for each in container["env"]}
            environment |= {"PATH": f"{python.parent}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}
            assert subprocess.run(container["command"], env=environment, check=False).returncode == 75
        lines = [line.removeprefix(str(log.parent)).split() for line in log.read_text().splitlines()]
        service = jobs[i]["metadata"]["name"] if nodes > 1 else ""
        at = f"{service}-0.{service}:8476"
        assert lines == ([[]] if nodes == 1 else [["0", at], ["1", at]])


class FakeApi(http.server.BaseHTTPRequestHandler):
    """The calls of the Kubernetes API that lmjax makes."""

    def do_POST(self):
        made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.append((self.path, made["metadata"]["name"]))
        name = self.path.partition("?")[0], made["metadata"]["name"]
        refused = "no quota" if self.server.refuse else "already exists" if name in self.server.names else ""
        if not refused and "dryRun" not in self.path:
            self.server.names.add(name)
        self._answer(403 if refused else 201, {"message": refused} if refused else made)

    def do_GET(self):
        self.server.calls.append((self.path, None))
        path, _, query = self.path.partition("?")
        if path.endswith("/pods"):
            assert "fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed" in query, query
            self._answer(200, {"apiVersion": "v1", "kind": "PodList", "items": self.server.pods})
        else:
            self._answer(200, {"apiVersion": "batch/v1", "kind": "JobList", "items": self.server.jobs})

    def _answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A stand-in for the API server, to which the official client is configured."""
    pytest.importorskip("kubernetes", reason="THE KUBERNETES CLIENT IS NOT TESTED: pip install lmjax[kubernetes]")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeApi)
    server.calls, server.jobs, server.pods, server.refuse, server.names = [], [], [], True, set()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context]}
    config |= {"clusters": [cluster], "users": [{"name": "u", "user": {}}]}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    import kubernetes.config as client_config

    for module in (client_config, client_config.kube_config):  # they read KUBECONFIG when they are imported
        monkeypatch.setattr(module, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    yield server
    server.shutdown()
    server.server_close()


def _started(name, **status):
    """What the API says of a Job."""
    return {"metadata": {"name": name}, "spec": {"template": {"spec": {"containers": []}}}, "status": status}


def test_submission_through_the_official_client(server, tmp_path):
    """Against a stand-in for the API server: all objects are checked before the first is created."""
    sweep, workdir = write_sweep(tmp_path, SEEDS, **_on_kubernetes(tmp_path)), tmp_path / "runs"
    with pytest.raises(InputError, match="no quota; nothing was submitted"):
        sweep_run.submit(str(sweep), workdir, {}, "kubernetes")
    assert all("dryRun=All" in path for path, _ in server.calls) and not sweep_run.queued(workdir)
    server.refuse = False
    server.calls.clear()
    assert sweep_run.submit(str(sweep), workdir, {}, "kubernetes") == 0
    name = server.calls[-1][1]
    paths = [path.partition("?")[0] for path, _ in server.calls]
    assert paths == ["/apis/batch/v1/namespaces/team/jobs"] * 2 and "dryRun" not in server.calls[-1][0]
    server.jobs = [_started(name, completedIndexes="0", failedIndexes="2", active=1)]
    queue = sweep_run.queued(workdir)
    cells = load_cells(str(sweep), workdir, {})
    assert [*queue] == [[cell.run.run_id for cell in cells if not cell.held_out][1]]
    server.jobs = [_started(name, conditions=[{"type": "Complete", "status": "True"}])]
    assert not sweep_run.queued(workdir)
    assert sweep_run.submit(str(sweep), workdir, {}, "kubernetes") == 0  # the same cells, as none has finished
    assert server.calls[-1][1] == f"{name}-1"


def _pod(name, index, phase, reason=None, scheduled=True):
    """What the API says of a pod: its container waits, or no node has room for it."""
    status = {"phase": phase, "conditions": [{"type": "PodScheduled", "status": str(scheduled)}]}
    if not scheduled:
        status["conditions"][0] |= {"reason": reason, "message": "0/3 nodes are available: 3 Insufficient cpu."}
    else:
        container = {"name": "train", "image": "i", "imageID": "", "ready": not reason, "restartCount": 0}
        container["state"] = {"waiting": {"reason": reason}} if reason else {"running": {}}
        status["containerStatuses"] = [container]
    facts = {"labels": {"lmjax/job": name}, "annotations": {kubernetes.INDEX: str(index)}}
    return {"metadata": facts, "spec": {"containers": []}, "status": status}


def test_what_a_pod_waits_for_is_shown(server, tmp_path, capsys):
    """A cell whose image cannot be pulled, or for which no node has room, was shown as active. Also at 80 columns."""
    sweep, workdir = write_sweep(tmp_path, SEEDS, **_on_kubernetes(tmp_path)), tmp_path / "runs"
    server.refuse = False
    sweep_run.submit(str(sweep), workdir, {}, "kubernetes")
    fitted = [cell.run.run_id for cell in load_cells(str(sweep), workdir, {}) if not cell.held_out]
    name = server.calls[-1][1]

    def shown(job, *pods):
        server.jobs, server.pods = [job], [*pods]
        queue = sweep_run.queued(workdir)
        assert [*queue] == fitted
        return [text.removeprefix(f"{name}-{index} ") for index, text in enumerate(queue.values())]

    waits = _pod(name, 1, "Pending", "Unschedulable", scheduled=False), _pod(name, 2, "Pending", "ImagePullBackOff")
    assert shown(_started(name, active=3), _pod(name, 0, "Running"), *waits) == [
        *("RUNNING", "PENDING (Unschedulable)", "PENDING (ImagePullBackOff)")
    ]
    capsys.readouterr()
    assert cli.main(["sweep", str(sweep), "--workdir", str(workdir), "--status"]) == 0
    assert f"{name}-1 PENDING (Unsch" in capsys.readouterr().out
    assert shown(_started(name, active=1), _pod(name, 1, "Pending")) == [
        *("PENDING (no pod yet)", "PENDING", "PENDING (no pod yet)")
    ]
    suspended = _started(name)
    suspended["spec"]["suspend"] = True
    assert shown(suspended) == ["PENDING (suspended)"] * 3


def test_a_run_of_several_pods_waits_for_each_of_them(server, tmp_path):
    sweep = write_sweep(tmp_path, "[{}]", **_on_kubernetes(tmp_path), **{"launch.nodes": 3})
    server.refuse = False
    sweep_run.submit(str(sweep), tmp_path / "runs", {}, "kubernetes")
    name = server.calls[-1][1]
    server.jobs, running = [_started(name, completedIndexes="0", active=2)], _pod(name, 1, "Running")
    waits = _pod(name, 2, "Pending", "Unschedulable", scheduled=False)
    for pods, text in (
        *(([running], "PENDING (no pod yet)"), ([running, waits], "PENDING (Unschedulable)")),
        ([running, _pod(name, 2, "Running")], "RUNNING"),
    ):
        server.pods = pods
        assert [*sweep_run.queued(tmp_path / "runs").values()] == [f"{name}-0 {text}"]


# -- Hosts


def test_hosts_start_the_same_runs_and_go_on_after_a_save(tmp_path, monkeypatch):
    """The printed script in a real shell, with stand-ins for ssh and python: process 1 ends with 75 the first time."""
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\nif [ "$4" = sweep ]; then echo predict >> calls; exit; fi\n'
        'echo "$LMJAX_PROCESS_ID/$LMJAX_NUM_PROCESSES $LMJAX_COORDINATOR $(($# - 5))" >> calls\n'
        '[ "$LMJAX_PROCESS_ID" = 1 ] && [ $(wc -l < calls) -le 2 ] && sleep 0.2 && exit 75\nexit 0\n'
    )
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/bash\necho "$1" >> hosts; exec bash -c "$2"\n')
    for path in (python, ssh):
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(python))
    stage = _stage(tmp_path, names=("me@one", "two"), predict=(str(python), "-P", "-m", "lmjax", "sweep"))
    script = hosts.show(hosts.render(stage))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash"], input=script, text=True, env=environment, check=False).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (tmp_path / "hosts").read_text().split().count("me@one") == 3
    assert calls[4] == "predict" and len(calls) == 7
    assert sorted(calls[:2]) == sorted(calls[2:4]) == ["0/2 one:8476 3", "1/2 one:8476 3"]
    assert sorted(calls[5:]) == ["0/2 one:8476 1", "1/2 one:8476 1"]
    (tmp_path / "calls").write_text("x\n" * 9)
    python.write_text('#!/bin/bash\n[ "$LMJAX_PROCESS_ID" = 1 ] && exit 64; exit 75\n')
    failed = subprocess.run(["bash"], input=script, text=True, env=environment, check=False, capture_output=True)
    assert failed.returncode == 64 and "fitted cells: ended with 64" in failed.stdout
    (tmp_path / "calls").write_text("")
    python.write_text('#!/bin/bash\n[ "$LMJAX_PROCESS_ID" = 1 ] && echo x >> calls && kill -9 $$; exit 75\n')
    failed = subprocess.run(["bash"], input=script, text=True, env=environment, check=False, capture_output=True)
    assert failed.returncode == 137 and (tmp_path / "calls").read_text() == "x\n" * 4  # one start, three more


# -- Bad input


def test_what_is_missing_is_said_and_nothing_is_submitted(tmp_path, monkeypatch, capsys):
    sweep, workdir = str(write_sweep(tmp_path, SEEDS)), tmp_path / "runs"

    def refused(*options):
        assert cli.main(["sweep", sweep, "--workdir", str(workdir), *options]) == 64
        return capsys.readouterr().err

    assert "two or more different hosts, got a" in refused("--launcher", "hosts", "--hosts", "a")
    assert "two or more different hosts, got a, a" in refused("--launcher", "hosts", "--hosts", "a,a")
    assert "--hosts needs --launcher hosts" in refused("--hosts", "a,b")
    assert "launch.image" in refused("--launcher", "kubernetes")
    on = [f"--config.{key}={value}" for key, value in _on_kubernetes(tmp_path).items()]
    outside = "--config.launch.volume=shared:/elsewhere"
    assert "mount it at the same path" in refused("--launcher", "kubernetes", on[0], outside)
    assert "got both" in refused("--launcher", "kubernetes", *on, "--config.launch.gpus=1", "--config.launch.tpus=1")
    assert "KEY=VALUE" in refused("--launcher", "kubernetes", *on, "--config.launch.extra=nonsense")
    assert "invalid choice" in refused("--launcher", "slrum")
    assert "CLAIM:/path" in refused("--config.launch.volume=/data")
    for name in ("ray", "kubernetes"):
        monkeypatch.setitem(sys.modules, name, None)
    assert 'pip install "lmjax[ray]"' in refused("--launcher", "ray")
    assert 'pip install "lmjax[kubernetes]"' in refused("--launcher", "kubernetes", *on)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "expected Slurm's sbatch on PATH" in refused("--launcher", "slurm")
    workdir.mkdir(exist_ok=True)
    with run_record.Lock(workdir):
        assert "is in use by process" in refused("--launcher", "slurm")


# -- Your own launcher, and Ray


def test_your_own_launcher(tmp_path):
    """Any function that starts a command: killed and preempted workers are started again, failed ones are not."""
    page = (ROOT / "docs" / "launching.md").read_text()
    code = re.search(r"<!-- own launcher -->\n```python\n(.*?)```", page, re.DOTALL)[1]
    started = []

    class Popen:
        def __init__(self, words, **_):
            run_dir = pathlib.Path(words[-1].split()[-1])
            started.append((words[0], run_dir.name))
            self.code = [-9, 75, 0, 1][(len(started) - 1) % 4] if run_dir.name == victim else 0
            status = {0: "done", 1: "failed"}.get(self.code, "preempted")
            ended(run_dir, status)

        def poll(self):
            return self.code

    sweep, workdir = write_sweep(tmp_path, "[{'train.seed': 0}]"), tmp_path / "runs"
    victim = load_cells(str(sweep), workdir, {})[0].run.run_id
    names: dict = {}
    exec(code, names)  # noqa: S102 - the page's own lines
    names["subprocess"] = type("fake", (), {"Popen": Popen, "DEVNULL": None})
    assert sweep_run.sweep(str(sweep), workdir, {}, 0, False, launch=names["launch"]) == 0
    assert started == [("ssh", victim)] * 3
    assert api.sweep.__kwdefaults__ is None and "launch" in api.sweep.__code__.co_varnames


RAY = """
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, {root!r})
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from lmjax import run_record
from lmjax.errors import InputError
from lmjax.sweeps import run
from lmjax.sweeps.cells import load_cells
from lmjax.sweeps.launchers import ray_tasks as launcher
try:
    launcher.connect("auto")
except InputError as error:
    print("NOWHERE", error)
ray.init(num_cpus=2, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False,
         object_store_memory=10**8, _temp_dir={temp!r})
sweep, workdir = {sweep!r}, pathlib.Path({workdir!r})
cells = load_cells(sweep, workdir, {{}})
for cell, what in zip(cells, ("ok", "killed", "bad", "saved")):
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "behaviour").write_text(what)
sys.executable = {worker!r}
launch = launcher.connect()
assert run.sweep(sweep, workdir, {{}}, 0, False, True, launch=launch) == 1
print("STARTS", [len((cell.run_dir / "starts").read_text().split()) for cell in cells])
print("STATUS", [run_record.read_status(cell.run_dir)["status"] for cell in cells])
(cells[2].run_dir / "behaviour").write_text("stopped")
def stop():
    while len((cells[2].run_dir / "starts").read_text().split()) < 2:
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop).start()
print("STOPPED", run.sweep(sweep, workdir, {{}}, 0, False, True, launch=launch))
print("SAVED", run_record.read_status(cells[2].run_dir)["status"])
try:
    run.sweep(sweep, workdir, {{"launch.gpus": "1"}}, 0, False, True, launch=launch)
except InputError as error:
    print("REFUSED", error)
"""
RAY_WORKER = """#!/bin/bash
dir=$6
count=$(cat "$dir/starts" 2>/dev/null | wc -l)
say() { echo "{\\"status\\": \\"$1\\"}" > "$dir/.new" && mv "$dir/.new" "$dir/status.json"; }
saved() { say preempted; exit 75; }
trap saved TERM
echo x >> "$dir/starts"
case "$(cat "$dir/behaviour")" in
  bad) say failed; exit 64 ;;
  saved) [ $count -lt 1 ] && saved ;;
  killed) [ $count -lt 1 ] && kill -9 $PPID && exit 0 ;;
  stopped) for i in {1..600}; do sleep 0.1; done ;;
esac
say done
"""


@needs(importlib.util.find_spec("ray") is None, reason="RAY IS NOT TESTED: pip install lmjax[ray]")
@needs(
    os.geteuid() != 0 or not shutil.which("ip"), reason="RAY IS NOT TESTED: it runs in a network namespace (root, ip)"
)
def test_a_real_ray(tmp_path):
    """A killed Ray worker and a preempted run are started again, bad input is not; a stop saves; no node, no wait.
    SIGINT is ignored, as in a background job of a script."""
    worker = tmp_path / "worker"
    worker.write_text(RAY_WORKER)
    worker.chmod(0o755)
    sweep = write_sweep(tmp_path, "[{'train.seed': s} for s in range(4)]")
    names = {"root": str(ROOT), "temp": "/tmp/lmjax-ray-test", "sweep": str(sweep), "worker": str(worker)}
    (tmp_path / "driver.py").write_text(RAY.format(**names, workdir=str(tmp_path / "runs")))
    inside = f"ip link set lo up; trap '' INT; exec {sys.executable} {tmp_path / 'driver.py'}"
    command = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", inside]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    shutil.rmtree("/tmp/lmjax-ray-test", ignore_errors=True)
    out = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ")[0].isupper())
    assert out["STARTS"] == "[1, 2, 1, 2]", done.stdout + done.stderr
    assert out["STATUS"] == "['done', 'done', 'failed', 'done']"
    assert (out["STOPPED"], out["SAVED"]) == ("75", "preempted"), done.stdout + done.stderr
    assert "expected a Ray node with" in out["REFUSED"] and "no Ray cluster at auto" in out["NOWHERE"]


def test_a_cancellation_that_meets_the_start_of_a_command_ends_it(tmp_path, monkeypatch):
    """What Ray runs in its worker; the cancellation comes before and after there is a process."""
    kept, started = [], []
    fake = types.SimpleNamespace(is_initialized=lambda: True, remote=lambda **_: kept.append)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray_tasks.connect()

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            _thread.interrupt_main()
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = kept[0](["sleep", "60"], {}, str(tmp_path), str(tmp_path / "log"))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    except KeyboardInterrupt:
        code = "cancelled, and the command is left behind"
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, len(started)) == (-signal.SIGTERM, 1)


def test_a_cancellation_that_ray_lost_is_repeated(monkeypatch):
    now, said = [100.0], []
    fake = types.SimpleNamespace(wait=lambda *_, **__: ([], []), cancel=lambda *_, **__: said.append(now[0]))
    monkeypatch.setattr(ray_tasks.time, "monotonic", lambda: now[0])
    handle = ray_tasks._Handle(fake, None, None)
    assert handle.poll() is None and not said
    handle.terminate()
    for now[0] in (101.0, 102.5, 103.0, 105.0):
        assert handle.poll() is None
    assert said == [100.0, 102.5, 105.0]


def test_what_a_task_asks_of_ray(tmp_path):
    (cell,) = _cells(tmp_path, "[{}]", **{"launch.gpus": 1, "launch.extra": ("h100=0.5",)})
    asked = ray_tasks._resources(launchers.resources([cell]))
    assert asked == {"CPU": 4.0, "GPU": 1.0, "h100": 0.5}
    ray_tasks._check_nodes(asked, [{"CPU": 1.0}, {"CPU": 8.0, "GPU": 1.0, "h100": 1.0}])
    with pytest.raises(
        InputError, match="expected a Ray node with CPU 4, GPU 1, h100 0.5, got nodes with CPU 8, GPU 1"
    ):
        ray_tasks._check_nodes(asked, [{"CPU": 8.0, "GPU": 1.0}])
    for keys, message in (({"launch.nodes": 2}, "launch.nodes=1"), ({"launch.extra": ("h100",)}, "NAME=AMOUNT")):
        (cell,) = _cells(tmp_path, "[{}]", **keys)
        with pytest.raises(InputError, match=message):
            ray_tasks._resources(launchers.resources([cell]))

"""Guards against jobs on Slurm that are lost, started twice, or restarted where they must not be: a real Slurm of two
nodes in namespaces of its own. Commands stand for trainings; they write what training would."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from lmjax import run_record, trained, trainer
from lmjax.errors import InputError
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from lmjax.sweeps.launchers import slurm
from tests.conftest import ONE_DEVICE, ROOT
from tests.test_sweep import write_sweep

PYTHON = sys.executable
CLUSTER = ROOT / "tests" / "slurm_cluster.sh"
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "ip") if not shutil.which(name)]
pytestmark = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason=f"SLURM IS NOT TESTED: it needs root (now user {os.geteuid()}) and apt-get install --no-install-recommends "
    f"munge slurmctld slurmd slurm-client iproute2 (missing: {', '.join(MISSING) or 'nothing'})",
)

# A stand-in for `python -P -m lmjax train --run-dir DIR`: how it behaves is in DIR/behaviour, by default it finishes.
WORKER = """#!/bin/bash
shift 3
if [ "$1" = sweep ]; then [ -e "$2.fails" ] && exit 1; echo predicted >> "$2.order"; exit 0; fi
dir=$3
count=$(cat "$dir"/starts 2>/dev/null | wc -l)
[ "${SLURM_PROCID:-0}" = 0 ] && echo "$SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} $SLURM_CPUS_PER_TASK" >> "$dir/starts"
new=$dir/.new.$SLURM_PROCID
say() { echo "{\\"status\\": \\"$1\\"}" > "$new" && mv "$new" "$dir/status.json"; }
saved() { say preempted; exit 75; }
case "$(cat "$dir/behaviour" 2>/dev/null)" in
  bad) say failed; exit 64 ;;
  crash) say failed; exit 1 ;;
  killed) [ $count -lt 1 ] && kill -9 $$ ;;
  dies) kill -9 $$ ;;
  stopped) if [ $count -lt 1 ]; then trap saved TERM USR1; say running; for i in {1..600}; do sleep 0.1; done; fi ;;
  long) if [ $count -lt 1 ]; then for i in {1..600}; do sleep 0.1; done; fi ;;
  gang) echo "$SLURM_PROCID of $SLURM_STEP_NUM_TASKS on $SLURMD_NODENAME" >> "$dir/gang" ;;
esac
echo '{"loss": 2.0}' > "$dir/summary.json"
say done
echo "${dir##*/}" >> "${dir%/*}/order"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A running cluster; its commands are on PATH through nsenter."""
    folder = tmp_path_factory.mktemp("cluster")
    log = open(folder / "log", "w")
    ready = folder / "ready"
    command = [str(CLUSTER), "bash", "-c", f"touch {ready}; exec sleep 1800"]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(folder)}, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < deadline and process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for name in ("sbatch", "squeue", "scontrol", "scancel"):
            enter = f'exec nsenter --target {children[0]} --all --wdns="$PWD" {shutil.which(name)} "$@"'
            script = f"export PATH=${{PATH#{folder}:}}\n{enter}"  # jobs inherit PATH and are inside already
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)
        yield folder
    finally:
        process.kill()  # and with it, everything in its namespaces
        process.wait()
        log.close()


@pytest.fixture
def sweep(cluster, tmp_path, monkeypatch):
    """A function that makes a sweep in a directory with a space in its name; `submit` and `cells` by it."""
    worker = tmp_path / "worker"
    worker.write_text(WORKER)
    worker.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cluster}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(worker))
    workdir = tmp_path / "my runs"
    made = []

    def make(cells, behaviour=(), **keys):
        path = str(write_sweep(tmp_path, cells, **keys))
        found = load_cells(path, workdir, {})
        for cell, what in zip(found, behaviour, strict=False):
            cell.run_dir.mkdir(parents=True, exist_ok=True)
            (cell.run_dir / "behaviour").write_text(what)
        made.append(path)
        return found, lambda **options: sweep_run.submit(path, workdir, {}, "slurm", **options)

    yield make
    subprocess.run(["scancel", "--full", "--user=root"], check=True)
    _wait(lambda: not _squeue("%i", states="running,completing"))


def _squeue(format, states="all", job=""):
    command = [
        "squeue",
        "--noheader",
        "--array",
        f"--states={states}",
        f"--format={format}",
        *[f"--jobs={job}"] * bool(job),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]


def _wait(condition, seconds=200):
    """Waits until a condition holds; jobs that wait two minutes after a requeue start at once."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, _squeue("%i %j %T %r")
        for line in _squeue("%i %r", states="pending"):
            if line.endswith("BeginTime"):
                time.sleep(1.1)  # Slurm does not start a job again in the second of its requeue
                subprocess.run(["scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now"], check=True)
        time.sleep(0.2)
    return found


def _starts(cell):
    path = cell.run_dir / "starts"
    return path.read_text().splitlines() if path.exists() else []


def _status(cell):
    return run_record.read_status(cell.run_dir).get("status", "pending")


def test_codes_decide_what_is_started_again(sweep, capsys):
    """64 and failures never, 75 and kills again, a worker that always dies four times; the rest is not touched."""
    behaviour = ["ok", "bad", "crash", "ok", "dies", "killed"]
    cells, submit = sweep("[{'train.seed': s} for s in range(6)]", behaviour)
    assert submit(analyse=False) == 0
    _wait(lambda: [len(_starts(cell)) for cell in cells] == [1, 1, 1, 1, 4, 2] and not _squeue("%i", "pending,running"))
    assert [_status(cell) for cell in cells] == ["done", "failed", "failed", "done", "pending", "done"]
    # What has not finished is submitted again, and only that.
    for cell in cells:
        (cell.run_dir / "behaviour").write_text("ok")
    assert submit(analyse=False) == 0
    _wait(lambda: all(_status(cell) == "done" for cell in cells))
    assert [len(_starts(cell)) for cell in cells] == [1, 2, 2, 1, 5, 2]
    _wait(lambda: not _squeue("%i", "pending,running,completing"))
    capsys.readouterr()
    assert submit(analyse=False) == 0 and "6 done" in capsys.readouterr().out


def test_preempted_cancelled_and_limited(sweep, capsys):
    """A preempted run is saved and goes on; a cancelled member of an array stays cancelled although it ends with 75,
    and does not take the other members with it; the time limit's signal arrives before the limit."""
    extra = {"launch.partition": "low", "launch.memory": 15, "launch.cpus": 4}  # one per node
    cells, submit = sweep("[{'train.seed': s} for s in range(2)]", ["stopped", "stopped"], **extra)
    submit(analyse=False)
    _wait(lambda: all(_starts(cell) for cell in cells))
    where = slurm.queued(cells[0].run_dir.parent)
    assert sorted(where) == sorted(cell.run.run_id for cell in cells) and all("RUNNING" in at for at in where.values())
    assert submit(analyse=False) == 0  # nothing is submitted twice
    assert "in the queue: 2 cells" in capsys.readouterr().out and len(_squeue("%i", "pending,running")) == 2
    with pytest.raises(InputError, match="2 cells of .* are in a queue"):
        sweep_run.sweep(str(cells[0].run_dir.parent.parent / "mini.py"), cells[0].run_dir.parent, {}, 1, False)
    first, last = (where[cell.run.run_id].split()[0] for cell in cells)
    node = _squeue("%N", job=last)[0]  # the last member's own id is that of the whole array
    urgent = subprocess.run(
        ["sbatch", "--parsable", "--wrap=true", "--partition=main", f"--nodelist={node}", "--cpus-per-task=4"]
        + ["--output=/dev/null", "--chdir=/"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    _wait(lambda: _status(cells[1]) == "done")
    assert len(_starts(cells[1])) == 2 and _starts(cells[1])[1].split()[1] == "1"
    assert _squeue("%T", job=urgent) == ["COMPLETED"] and len(_starts(cells[0])) == 1
    subprocess.run(["scancel", first], check=True)
    _wait(lambda: _squeue("%T", job=first) == ["CANCELLED"])
    time.sleep(1)
    assert (
        _status(cells[0]) == "preempted" and len(_starts(cells[0])) == 1 and not slurm.queued(cells[0].run_dir.parent)
    )


def test_a_lost_node(sweep):
    cells, submit = sweep("[{'train.seed': 0}]", ["long"])
    submit(analyse=False)
    _wait(lambda: _starts(cells[0]))
    node = _squeue("%N", "running")[0]
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"], check=True)
    time.sleep(5)  # until its processes are gone; without `_wait`, Slurm itself leaves two minutes for that
    _wait(lambda: _status(cells[0]) == "done")
    assert len(_starts(cells[0])) == 2


def test_the_time_limit_is_a_request_to_save(sweep):
    """Limits are whole minutes: with a limit of one, set while the run goes on, a lead of 60 s is over at once."""
    extra = ("--time=5", "--signal=USR1@60")  # of two equal options, the last counts
    cells, submit = sweep("[{'train.seed': 0}]", ["stopped"], **{"launch.extra": extra})
    submit(analyse=False)
    _wait(lambda: _status(cells[0]) == "running")
    job = _starts(cells[0])[0].split()[0]
    subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)
    _wait(lambda: _status(cells[0]) == "done", seconds=300)
    assert len(_starts(cells[0])) == 2


def test_held_out_cells_wait_for_the_fit(sweep):
    cells, submit = sweep("[{'train.seed': s, 'run.held_out': s > 1} for s in range(4)]", **{"launch.gpus": 1})
    cells.sort(key=lambda cell: cell.held_out)
    workdir = cells[0].run_dir.parent
    submit(workers=1)
    _wait(lambda: _status(cells[3]) == "done" and _status(cells[2]) == "done")
    order = (workdir / "order").read_text().split()
    assert {*order[:2]} == {cell.run.run_id for cell in cells[:2]} and len(order) == 4
    assert (workdir.parent / "mini.py.order").read_text() == "predicted\n"


def test_held_out_cells_are_not_trained_without_the_fit(sweep):
    cells, submit = sweep("[{'train.seed': s, 'run.held_out': s > 0} for s in range(2)]")
    workdir = cells[0].run_dir.parent
    (workdir.parent / "mini.py.fails").touch()
    submit()
    (held_out,) = (cell for cell in cells if cell.held_out)
    _wait(lambda: len(_squeue("%i", "completed,failed,cancelled")) >= 3 and not slurm.queued(workdir))
    assert not _starts(held_out) and _status(held_out) == "pending"


@pytest.mark.slow
def test_a_training_over_two_nodes_survives_a_lost_process_and_is_that_of_one(sweep, tmp_path, monkeypatch):
    """No stand-in: each node has one process of one device. After a checkpoint one of the two is killed. Sums over
    processes are in another order than over devices, and differences grow with the steps."""
    assert jax.device_count() == 8  # of this process, whose flags change here
    monkeypatch.setattr(sys, "executable", PYTHON)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE)
    monkeypatch.setenv("LMJAX_HEARTBEAT_SECONDS", "10")
    keys = {"launch.nodes": 2, "launch.cpus": 1, "mesh.fsdp": 2, "checkpoint.every_steps": 20, "data.max_epochs": 1e6}
    cells, submit = sweep("[{'train.seed': 0}]", **keys, **{"duration.steps": 2000, "schedule.warmup_steps": 2})
    submit(analyse=False)
    run_dir = cells[0].run_dir
    _wait(lambda: max(trained.steps(run_dir), default=0) >= 20, seconds=120)
    pattern = f"^{PYTHON} .*train --run-dir .*{run_dir.name}"
    found = subprocess.run(["pgrep", "--full", pattern], capture_output=True, text=True, check=True).stdout.split()
    assert len(found) == 2
    os.kill(int(found[1]), signal.SIGKILL)
    _wait(lambda: _status(cells[0]) == "done", seconds=300)
    assert "resumed from step" in (run_dir / "log.txt").read_text()
    alone = tmp_path / "alone"
    assert trainer.train(cells[0].run, alone, show_progress=False) == trainer.DONE
    losses = [run_record.read_json(path / "summary.json")["loss"] for path in (run_dir, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_run_on_two_nodes_is_one_step_of_two_processes(sweep):
    cells, submit = sweep("[{'train.seed': 0}]", ["gang"], **{"launch.nodes": 2, "launch.cpus": 3})
    submit(analyse=False)
    _wait(lambda: _status(cells[0]) == "done")
    assert sorted((cells[0].run_dir / "gang").read_text().splitlines()) == ["0 of 2 on node1", "1 of 2 on node2"]
    assert _starts(cells[0])[0].split()[2] == "3"


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"launch.partition": "nowhere"}, "(?i)invalid partition"),
        ({"launch.gpus": 3}, "(?i)not available"),
        ({"launch.nodes": 3}, "(?i)not available|more nodes than"),
        ({"launch.time": 3}, "expected more than 3 minutes"),
        ({"launch.tpus": 4}, "launch.tpus: expected 0 with --launcher slurm"),
        ({"launch.extra": ("--nonsense",)}, "unrecognized option"),
    ],
)
def test_what_slurm_refuses_is_not_submitted(sweep, keys, message):
    """All arrays are checked first, so a sweep with one impossible class submits nothing."""
    cells, submit = sweep(f"[{{'train.seed': 1}}, {{'train.seed': 2, **{keys}}}]")
    with pytest.raises(InputError, match=message):
        submit(analyse=False)
    assert not slurm.queued(cells[0].run_dir.parent) and not _squeue("%i", "pending,running")

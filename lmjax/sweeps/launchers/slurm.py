"""The launcher `slurm`: one sbatch array per resource class, placed, restarted and limited by Slurm.

A run asked to stop (preemption, the time limit minus `LEAD`) saves and exits with 75; its script then requeues it. A
killed run is requeued up to `RETRIES` times, a run on a lost node by Slurm itself, and a run with bad input never. The
fit before the held-out cells is a job that waits for the arrays of the fitted cells; if it fails, Slurm cancels the
held-out arrays, and the same `lmjax sweep` command submits what is missing.

A script's name is a hash of its content. It is kept in <workdir>/slurm before it is submitted, so `squeue` and the
scripts say at any time which cells are queued; nothing else is recorded.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from lmjax.errors import InputError
from lmjax.sweeps.launchers import RETRIES, Stage, Task, choice, chosen, classes, name_of
from lmjax.sweeps.local import passed_on

LEAD = 120  # seconds before the time limit at which a run is asked to save; Slurm may signal up to 60 s earlier
RESTARTS = 1000  # of one job after it was saved: a guard against a requeue without end

SCRIPT = """\
#!/bin/bash
{options}
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}}{environment}
{task}
srun --kill-on-bad-exit=1 --cpus-per-task=$OMP_NUM_THREADS "${{task[@]}}" >> "$log" 2>&1
code=$?
# The id of an array's last task alone would mean the whole array.
job=${{SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}}${{SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}}
most=0
[ $code -ge 128 ] && most={retries}  # killed
[ $code -eq 75 ] && most={restarts}  # saved
if [ "${{SLURM_RESTART_COUNT:-0}}" -lt $most ]; then
  state=$(squeue --noheader --jobs=$job --format=%T)  # no longer RUNNING if it was cancelled
  [ "$state" = RUNNING ] && scontrol requeue $job && sleep 300  # until Slurm ends this script
fi
exit $code
"""


class Job(NamedTuple):
    """A script for sbatch, and the names of the jobs it waits for.

    Attributes:
        name: a hash of the script.
        script: its text.
        waits: afterany (until they end) or afterok (until they succeed); "": it may start at once.
        others: names of the jobs it waits for.
    """

    name: str
    script: str
    waits: str = ""
    others: tuple[str, ...] = ()


def render(stage: Stage) -> list[Job]:
    """Returns the jobs of a sweep, in the order in which they are to be submitted.

    Raises:
        InputError: a time limit that leaves no time to save; TPU chips.
    """
    jobs = [_array(part, stage) for part in classes(stage.fitted)]
    ready = tuple(job.name for job in jobs)
    waits = "afterok" if stage.predict else ""
    if stage.predict:
        jobs.append(_predict(stage, ready))
        ready = (jobs[-1].name,)
    return jobs + [_array(part, stage, waits, ready if waits else ()) for part in classes(stage.held_out)]


def _array(part: Sequence[Task], stage: Stage, waits="", others=()) -> Job:
    need = part[0].resources
    if need.tpus:
        raise InputError(
            f"launch.tpus: expected 0 with --launcher slurm, which has no option for them, got {need.tpus}; name nodes "
            "that have them by launch.partition"
        )
    if need.time is not None and need.time * 60 <= LEAD + 60:
        raise InputError(
            f"launch.time: expected more than {(LEAD + 60) // 60} minutes, of which the last {LEAD} seconds are for "
            f"saving, got {need.time}"
        )
    limit = f"%{stage.at_once}" if stage.at_once else ""
    options = [f"--array=0-{len(part) - 1}{limit}", f"--output={_out(stage, '%x-%a')}", f"--nodes={need.nodes}"]
    options += ["--ntasks-per-node=1", f"--cpus-per-task={need.cpus}", f"--signal=USR1@{LEAD}"]
    options += [f"--gpus-per-node={need.gpus}"] * bool(need.gpus)
    options += [f"--time={need.time}"] * (need.time is not None)
    if need.memory is not None:
        options.append(f"--mem={round(need.memory * 1024)}M")
    return _job(options, choice("SLURM_ARRAY_TASK_ID", part), need, waits, others)


def _predict(stage: Stage, others) -> Job:
    task = f"task=({shlex.join(stage.predict)}); log={shlex.quote(str(stage.workdir / 'slurm' / 'predict.txt'))}"
    options = [f"--output={_out(stage, '%x')}", "--nodes=1", "--ntasks=1", "--cpus-per-task=1", "--mem=4096M"]
    return _job(options, task, stage.held_out[0].resources, "afterany" if others else "", others)


def _out(stage, name):
    """The file for messages of Slurm, in which a percent sign begins a pattern."""
    return shlex.quote(str(stage.workdir / "slurm" / "").replace("%", "%%") + f"/{name}.txt")


def _job(options, task, need, waits, others) -> Job:
    options = [*options, "--requeue", "--open-mode=append"]
    options += [f"--{key}={need[key]}" for key in ("partition", "account") if need[key]]
    options += ["--kill-on-invalid-dep=yes"] * bool(waits) + list(need.extra)  # of two equal options, the last counts
    environment = "".join(f"\nexport {name}={shlex.quote(value)}" for name, value in passed_on().items())
    filled = {"task": task, "environment": environment, "retries": RETRIES, "restarts": RESTARTS}
    name = name_of(repr((options, filled)))
    lines = "\n".join(f"#SBATCH {option}" for option in [f"--job-name={name}", *options])
    return Job(name, SCRIPT.format(options=lines, **filled), waits, tuple(others))


def show(jobs: Sequence[Job]) -> str:
    """Returns the scripts as text, each with what it waits for."""
    parts = []
    for job in jobs:
        waits = f"# sbatch --dependency={job.waits}:{':'.join(job.others)}\n" if job.others else ""
        parts.append(f"# {job.name}\n{waits}{job.script}")
    return "\n".join(parts)


def submit(jobs: Sequence[Job], workdir: pathlib.Path) -> list[str]:
    """Submits jobs, after Slurm has checked all of them; returns a sentence for each.

    Raises:
        InputError: Slurm is not installed here, or refuses a job (partition, resources, ...); nothing is submitted.
    """
    _need("sbatch")
    for job in jobs:
        _run(["sbatch", "--test-only"], job.script, f"Slurm refuses {job.name}, so nothing was submitted")
    (workdir / "slurm").mkdir(parents=True, exist_ok=True)
    ids, said = {}, []
    for job in jobs:
        path = workdir / "slurm" / f"{job.name}.sh"
        path.write_text(job.script)
        depends = [f"--dependency={job.waits}:{':'.join(ids[name] for name in job.others)}"] if job.others else []
        what = f"Slurm refuses {job.name}; {len(ids)} jobs before it were submitted, and the same command continues"
        ids[job.name] = _run(["sbatch", "--parsable", *depends, str(path)], "", what).split(";")[0].strip()
        after = f", after {', '.join(ids[name] for name in job.others)}" if job.others else ""
        said.append(f"job {ids[job.name]}: {path}{after}")
    return said


def queued(workdir: pathlib.Path) -> dict[str, str]:
    """Returns {run id: "12_3 RUNNING" or "12_3 PENDING (Resources)"} of the cells of a sweep that are in the queue.

    Raises:
        InputError: jobs were submitted, but squeue is missing or fails.
    """
    scripts = {path.stem: path.read_text() for path in (workdir / "slurm").glob("lmjax-*.sh")}
    if not scripts:
        return {}
    _need("squeue")
    command = ["squeue", "--array", "--noheader", f"--name={','.join(scripts)}", "--format=%j|%F|%K|%T|%r"]
    found = {}
    for line in _run(command, "", "squeue failed").splitlines():
        name, job, index, state, reason = line.split("|")
        for run_id in chosen(scripts[name]).get(int(index) if index.isdecimal() else -1, ()):
            found[run_id] = f"{job}_{index} {state}" + (f" ({reason})" if state == "PENDING" else "")
    return found


def _need(program: str) -> None:
    if not shutil.which(program):
        raise InputError(f"expected Slurm's {program} on PATH, got none; run this on a login node of the cluster")


def _run(command: Sequence[str], text: str, what: str) -> str:
    """The output of a command of Slurm; InputError with its message if it fails."""
    own = ("SLURM_JOB", "SLURM_STEP", "SLURM_RESTART", "SLURM_ARRAY")  # of a job in which this process runs
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"{what}: {' '.join(done.stderr.split()) or f'{command[0]} ended with {done.returncode}'}")
    return done.stdout

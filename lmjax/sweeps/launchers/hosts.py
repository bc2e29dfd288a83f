"""The launcher `hosts`: a bash script that starts the same command on every host by ssh, as on the hosts of a TPU pod.

All hosts share each run (jax.distributed); the runs follow each other in one process per host. Process 0 is on the
first host. Code, environment and run directories have the same paths on all hosts.
"""

import os
import pathlib
import shlex
from collections.abc import Sequence

from lmjax.distributed import ENVIRONMENT
from lmjax.errors import InputError
from lmjax.sweeps.launchers import RETRIES, Stage, Task
from lmjax.sweeps.local import passed_on, worker_command

PORT = 8476  # of process 0
SCRIPT = """\
start() {{  # stage, then ssh commands; starts them again if they ended with 75 (saved), and {retries} times if killed
  tries=0
  while :; do
    pids=() code=0 killed=0 saved=0
    for line in "${{@:2}}"; do eval "$line" & pids+=($!); done
    for pid in "${{pids[@]}}"; do
      wait $pid; now=$?
      if [ $now -ge 128 ]; then killed=$now; elif [ $now -eq 75 ]; then saved=75; else code=$((code ? code : now)); fi
    done
    [ $code -eq 0 ] && [ $killed -ne 0 ] && [ $((tries++)) -ge {retries} ] && code=$killed
    [ $code -eq 0 ] && [ $((killed + saved)) -ne 0 ] || break
  done
  [ $code -eq 0 ] || {{ echo "$1: ended with $code"; exit $code; }}
}}
{stages}"""


def render(stage: Stage) -> list[str]:
    """Returns the parts of the script: the fitted cells, the prediction, the held-out cells.

    Raises:
        InputError: fewer than two hosts, or a host twice.
    """
    if len(stage.hosts) < 2 or len({*stage.hosts}) < len(stage.hosts):
        raise InputError(
            f"--hosts: expected two or more different hosts, got {', '.join(stage.hosts) or 'none'}; on one machine "
            "use lmjax sweep without --launcher"
        )
    parts = [_start("fitted cells", stage.fitted, stage.hosts)] if stage.fitted else []
    parts += [f"{shlex.join(stage.predict)} || exit"] if stage.predict else []
    return parts + ([_start("held-out cells", stage.held_out, stage.hosts)] if stage.held_out else [])


def _start(name: str, found: Sequence[Task], hosts: Sequence[str]) -> str:
    if packs := [task for task in found if len(task.cells) > 1]:
        raise InputError(f"expected --pack 1 with several hosts per run, got packs of {len(packs[0].cells)}")
    keep = ["--keep"] * ("--keep" in found[0].command)
    run_dirs = [str(cell.run_dir) for task in found for cell in task.cells]
    command = [*worker_command("train", "--run-dir", *run_dirs), *keep]
    lines = []
    for i, host in enumerate(hosts):
        values = f"{hosts[0].rpartition('@')[2]}:{PORT}", len(hosts), i
        words = [f"{key}={shlex.quote(str(value))}" for key, value in zip(ENVIRONMENT, values, strict=True)]
        words += [f"{key}={shlex.quote(value)}" for key, value in passed_on().items()]
        remote = f"cd {shlex.quote(os.getcwd())} && {' '.join(words)} exec {shlex.join(command)}"
        lines.append("  " + shlex.quote(shlex.join(["ssh", host, remote])))
    return " \\\n".join([f"start {shlex.quote(name)}", *lines])


def show(parts: Sequence[str]) -> str:
    """Returns the script."""
    return "#!/usr/bin/env bash\n" + SCRIPT.format(retries=RETRIES, stages="\n".join(parts) + "\n")


def submit(parts: Sequence[str], workdir: pathlib.Path) -> list[str]:
    """Submits nothing, as the script on standard output is what the user runs."""
    return []

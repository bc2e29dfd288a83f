"""The launcher `ray`: one Ray task per cell or pack, with its resources, on a cluster or on a Ray started here.

A task waits for its command and returns the exit code. The sweep decides what to start again, as it does for local
processes, so Ray's own retries are off: a killed worker or a lost node counts as a kill. The same Python, code and run
directories must be at the same paths on all nodes.
"""

import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from lmjax.errors import InputError
from lmjax.process import PARENT
from lmjax.sweeps import launchers
from lmjax.sweeps.cells import Cell
from lmjax.sweeps.local import Handle, Launch, Slot, passed_on

KILLED, SAVED = -9, 75
REPEAT = 2.0  # seconds after which a cancellation is sent again to a task that still runs


def connect(address: str | None = None) -> Launch:
    """Joins a Ray cluster, or starts Ray on this machine, and returns the launcher.

    Args:
        address: of the cluster, such as "auto" or "host:6379"; None: $RAY_ADDRESS, else a Ray of this machine.

    Raises:
        InputError: Ray is not installed; no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError('Ray is not installed; pip install "lmjax[ray]"') from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError) as error:
            raise InputError(f"no Ray cluster at {address}: {error}; start one with ray start --head") from error

    def work(command: list[str], environment: dict[str, str], folder: str, log: str) -> int:
        # What a Ray worker does. Inside a function, so that Ray copies it and its workers do not import lmjax and JAX.
        environment = {**os.environ, **environment, PARENT: str(os.getpid())}  # the command ends with this worker
        # Ray cancels by SIGINT, which raises KeyboardInterrupt anywhere, or nothing in a background job, which ignores
        # it. The command must be told and waited for in all cases.
        cancelled = threading.Event()
        signal.signal(signal.SIGINT, lambda *_: cancelled.set())
        try:
            with open(log, "a") as file:
                process = subprocess.Popen(
                    command, cwd=folder, env=environment, stdout=file, stderr=file, start_new_session=True
                )
            while process.poll() is None and not cancelled.wait(0.2):
                pass
            if cancelled.is_set():  # told once: a second SIGTERM would end the command unsaved
                process.terminate()
            return process.wait()
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray's own, for later tasks of this worker

    task = ray.remote(max_retries=0)(work)

    def launch(place: Slot, cells: Sequence[Cell], command: list[str]) -> Handle:
        pack = command[command.index("--pack") + 1] if "--pack" in command else 1
        need = launchers.resources(cells, int(pack))
        asked = _resources(need)
        _check_nodes(asked, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        custom = {name: amount for name, amount in asked.items() if name not in ("CPU", "GPU", "memory")}
        options = {"num_cpus": asked["CPU"], "num_gpus": asked.get("GPU"), "memory": asked.get("memory")}
        environment = passed_on() | ({} if need.gpus or need.tpus else {"JAX_PLATFORMS": "cpu"})
        log = str((cells[0].run_dir / "log.txt").absolute())
        reference = task.options(resources=custom, name=cells[0].run.run_id, **options).remote(
            command, environment, os.getcwd(), log
        )
        return _Handle(ray, reference, pathlib.Path(log))

    return launch


class _Handle:
    def __init__(self, ray, reference, log):
        self.ray, self.reference, self.log = ray, reference, log
        self.again = float("inf")  # when to repeat the cancellation

    def poll(self) -> int | None:
        if not self.ray.wait([self.reference], timeout=0)[0]:
            if time.monotonic() > self.again:  # Ray loses one that comes while a worker starts
                self.terminate()
            return None
        try:
            return self.ray.get(self.reference)
        except self.ray.exceptions.TaskCancelledError:
            return SAVED
        except self.ray.exceptions.RayTaskError as error:  # the command could not be started
            with open(self.log, "a") as file:
                file.write(f"{error}\n")
            return 1
        except self.ray.exceptions.RayError as error:
            with open(self.log, "a") as file:
                file.write(f"the Ray worker was lost: {type(error).__name__}\n")
            return KILLED

    def terminate(self) -> None:
        self.ray.cancel(self.reference, force=False, recursive=False)
        self.again = time.monotonic() + REPEAT


def _resources(need) -> dict[str, float]:
    """What a task asks of a node, by Ray's names.

    Raises:
        InputError: several nodes; an option that is not NAME=AMOUNT.
    """
    if need.nodes > 1:
        raise InputError(f"launcher ray: expected launch.nodes=1, got {need.nodes}; use slurm, kubernetes or hosts")
    asked = {"CPU": float(need.cpus)}
    asked |= {name: float(count) for name, count in (("GPU", need.gpus), ("TPU", need.tpus)) if count}
    asked |= {"memory": need.memory * 2**30} if need.memory is not None else {}
    for text in need.extra:
        name, _, amount = text.partition("=")
        if not name or not amount.replace(".", "", 1).isdecimal():
            raise InputError(f"launch.extra: expected Ray resources NAME=AMOUNT, got {text!r}")
        asked[name] = float(amount)
    return asked


def _check_nodes(asked: dict[str, float], nodes: Sequence[dict[str, float]]) -> None:
    """Raises InputError if no node has what a task asks; Ray would wait for ever without a word."""
    if not any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        shown = "; ".join(", ".join(f"{name} {node.get(name, 0):g}" for name in asked) for node in nodes[:4])
        raise InputError(
            f"expected a Ray node with {', '.join(f'{name} {amount:g}' for name, amount in asked.items())}, got nodes "
            f"with {shown}; change the launch.* keys or add a node"
        )

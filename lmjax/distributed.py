"""Several processes as one: joining them, and stopping all of them at the same step when one is told to stop.

Nothing here is needed to run one process; the same calls then do the obvious thing.
"""

import os
import signal
import threading

from lmjax.errors import InputError

ENVIRONMENT = ("LMJAX_COORDINATOR", "LMJAX_NUM_PROCESSES", "LMJAX_PROCESS_ID")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def initialize() -> None:
    """Joins this process to its run's others: from LMJAX_* variables, else from Slurm's, else stays alone.

    LMJAX_COORDINATOR is host:port of process 0; LMJAX_HEARTBEAT_SECONDS (default 60) is how long a silent process is
    waited for before the others end. Call it before any other use of JAX.

    Raises:
        InputError: some of the variables are set, but not all.
    """
    given = {name: os.environ.get(name, "") for name in ENVIRONMENT}
    if expected_processes() == 1 and not any(given.values()):
        return
    arguments = {}
    if any(given.values()):
        if not all(given.values()):
            raise InputError(f"several processes: expected all of {', '.join(ENVIRONMENT)}, got {given}")
        arguments = {
            "coordinator_address": given["LMJAX_COORDINATOR"],
            "num_processes": int(given["LMJAX_NUM_PROCESSES"]),
            "process_id": int(given["LMJAX_PROCESS_ID"]),
        }
    import jax

    jax.distributed.initialize(
        **arguments,
        initialization_timeout=1800,
        heartbeat_timeout_seconds=int(os.environ.get("LMJAX_HEARTBEAT_SECONDS", "60")),
    )


def expected_processes() -> int:
    """Returns how many processes the environment says this run has: LMJAX_NUM_PROCESSES, a step of srun, else 1."""
    step_tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1") if "SLURM_STEP_ID" in os.environ else "1"
    return int(os.environ.get(ENVIRONMENT[1]) or step_tasks)


def stop_before_training() -> None:
    """Until training handles them, signals to stop end this process with 75: nothing is lost, start it again."""
    for number in _SIGNALS:
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: os._exit(75))


class StopRequest:
    """Whether somebody asked this run to stop: SIGTERM, SIGINT, SIGUSR1 or SIGUSR2, to any of its processes.

    One process: a signal sets a flag; a second SIGINT interrupts at once. Several: JAX's preemption service, which
    swallows SIGTERM and lets all processes agree on one step, is polled; the other signals are passed on to it.
    Use as a context manager: the previous handlers come back at the end.
    """

    def __init__(self):
        import jax

        self.several = jax.process_count() > 1
        self.flag = threading.Event()
        self.previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if not (self.several and number == signal.SIGTERM):  # JAX's own handler stays
                    self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.several:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if number == signal.SIGINT and self.flag.is_set():
            raise KeyboardInterrupt
        self.flag.set()

    def at(self, step: int) -> bool:
        """Returns whether to save and stop at this step: the same answer in every process. Call it once a step."""
        if self.several:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self.flag.is_set()

"""Multi-process runs: joining the processes, checking that they have the same inputs, stopping all at the same step.

In a single process the same calls do nothing or return at once.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lmjax.errors import InputError

ENVIRONMENT = ("LMJAX_COORDINATOR", "LMJAX_NUM_PROCESSES", "LMJAX_PROCESS_ID")
JOIN_SECONDS = 1800  # how long processes wait for each other at the start
PORT_SECONDS = 30  # how long process 0 waits for a port that the previous attempt may still hold
HANG_SECONDS = 1800  # default of LMJAX_HANG_SECONDS
TELL_SECONDS = 3  # how long a process that fails stays for the others to hear why; they ask every second
LOST = "another process of this run has ended or does not answer; start all of them again (exit code 75)"
_FAILED = "lmjax/failed/"  # + i, a key of the coordination service: what failed in process i
_FOREIGN = re.compile(  # errors of collectives (Gloo, NCCL) and of the coordination service when a process is gone
    r"UNAVAILABLE|DEADLINE_EXCEEDED|Gloo|remote process exited|[Hh]eartbeat|CoordinationService|"
    r"[Cc]onnection (reset|closed|refused)|Socket closed"
)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def initialize() -> None:
    """Join the other processes of this run, as given by LMJAX_* variables or by Slurm; without either, run alone.

    LMJAX_COORDINATOR is host:port of process 0; LMJAX_HEARTBEAT_SECONDS (default 60) is how long the processes wait for
    a silent one before they end. Call it before any other use of JAX. Stop signals end the wait with exit code 75.

    From then on JAX aborts this process when another one is lost, and its exit code is 75: start it again.

    Raises:
        InputError: some of the variables are set, but not all; a bad value; an unknown host; the port is in use.
    """
    given = {name: os.environ.get(name, "") for name in ENVIRONMENT}
    if expected_processes() == 1 and not any(given.values()):
        return
    heartbeat = _integer("LMJAX_HEARTBEAT_SECONDS", 60, least=1)
    address, count, index = given[ENVIRONMENT[0]] or None, None, None  # None: JAX asks Slurm
    if any(given.values()):
        if not all(given.values()):
            raise InputError(f"several processes: expected all of {', '.join(ENVIRONMENT)}, got {given}")
        count, index = expected_processes(), _integer("LMJAX_PROCESS_ID", 0, least=0)
        if index >= count:
            raise InputError(f"LMJAX_PROCESS_ID: expected an integer below LMJAX_NUM_PROCESSES={count}, got {index}")
    import jax

    with _leave_on_signals():
        if address:
            _check_coordinator(address, index)
            _say(f"process {index} of {count}: joining the others at {address}")
        jax.distributed.initialize(
            address, count, index, initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=heartbeat
        )
    ctypes.CDLL(None).signal(signal.SIGABRT, _leave_on_abort)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _leave_on_abort(number):
    """JAX ends the process by abort() in a thread of its own, where Python's signal handlers do not run."""
    leave(f"{LOST}; JAX's message is above")


def leave(message: str) -> None:
    """End this process at once with code 75: a normal exit would wait for the processes that are gone."""
    _say(message)
    os._exit(75)


def blame(error: BaseException) -> tuple[str, bool]:
    """Return (message, whether another process of this run was lost) for an error that ends this process.

    If neither another process nor the network is the cause, the others are told: their `Watchdog` ends them, code 1.
    """
    import jax

    message = f"{type(error).__name__}: {error}"[:2000]
    if jax.process_count() == 1:
        return message, False
    foreign = isinstance(error, jax.errors.JaxRuntimeError) and _FOREIGN.search(message)
    if not foreign:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0, which has the service, is gone
            _client().key_value_set(f"{_FAILED}{jax.process_index()}", message)
    end = time.monotonic() + TELL_SECONDS
    while time.monotonic() < end:
        if foreign and (told := _failure()):
            return told, False
        time.sleep(0.2)
    return (LOST, True) if foreign else (message, False)


def _client():
    """Of JAX's coordination service."""
    from jax._src import distributed

    return distributed.global_state.client


def _failure() -> str:
    """What `blame` told in another process, "" if nothing."""
    import jax

    try:
        found = _client().key_value_dir_get(_FAILED)
    except jax.errors.JaxRuntimeError:  # process 0 is gone: JAX aborts this one
        return ""
    return "; ".join(f"process {key.rpartition('/')[2]} failed: {text}" for key, text in found)


def expected_processes() -> int:
    """Return how many processes the environment says this run has: LMJAX_NUM_PROCESSES, a step of srun, else 1."""
    if os.environ.get(ENVIRONMENT[1]):
        return _integer(ENVIRONMENT[1], 1, least=1)
    return _integer("SLURM_STEP_NUM_TASKS", 1, least=1) if "SLURM_STEP_ID" in os.environ else 1


def _integer(name: str, default: int, least: int) -> int:
    """The number in an environment variable; the default if it is not set or empty."""
    text = os.environ.get(name) or str(default)
    if not text.strip().isdecimal() or int(text) < least:
        raise InputError(f"{name}: expected an integer, {least} or above, got {text!r}")
    return int(text)


def _check_coordinator(address: str, index: int) -> None:
    """Raises InputError for an address on which JAX would hang or crash."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"LMJAX_COORDINATOR: expected host:port of process 0, got {address!r}")
    _until(JOIN_SECONDS, f"the host {host!r} is unknown here", socket.getaddrinfo, host, int(port))
    if index == 0:
        _until(
            PORT_SECONDS, f"cannot use port {port} of this machine; free it or choose another port", _bind, int(port)
        )


def _bind(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))


def _until(seconds: float, fault: str, call: Callable, *arguments) -> None:
    """Repeats a call until it raises no OSError; reports the fault once, raises it as InputError after `seconds`."""
    end, reported = time.monotonic() + seconds, False
    while True:
        try:
            call(*arguments)
            return
        except OSError as error:
            message = f"LMJAX_COORDINATOR: {fault} ({error.strerror})"
            if time.monotonic() > end:
                raise InputError(message) from error
            if not reported:
                _say(f"{message}; trying for {seconds:g} s")
                reported = True
            time.sleep(0.5)


def _say(text):
    print(f"lmjax: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _leave_on_signals() -> Iterator[None]:
    """Ends the process with code 75 on a stop signal while its main thread waits inside JAX, where Python's signal
    handlers do not run; a thread reads the signals instead."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    done = b"\0"

    def watch():
        if os.read(readable, 1) != done:
            os._exit(75)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writable)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writable, done)
        watcher.join()
        os.close(readable)
        os.close(writable)


def stop_before_training() -> None:
    """Let stop signals end this process with code 75 until training handles them; nothing is lost."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: os._exit(75))


def gather(fact: Any) -> list[Any]:
    """Return the JSON-able value of every process of the run, in the order of the processes, when each has called it.

    Example: gather("a") in process 0 and gather("b") in process 1 -> ["a", "b"] in both
    """
    import jax

    if jax.process_count() == 1:
        return [fact]
    import numpy as np
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(fact, sort_keys=True).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, int(lengths.max()) - len(text))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def check_same(facts: Mapping[str, Any]) -> None:
    """Raise InputError in every process unless all processes of the run have the same facts.

    Args:
        facts: JSON-able values by name. Call it once in each process, before the run directory is touched.
    """
    if differences := different(gather(facts)):
        raise InputError(
            f"the processes of this run were started differently: {'; '.join(differences[:8])}; start all of them with "
            "the same config, data and code"
        )


def different(everyone: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a phrase for each fact in which a process differs from process 0.

    Example: different([{"lr": 1}, {"lr": 2}]) -> ["lr is 1 in process 0, 2 in process 1"]
    """
    phrases = []
    for name in sorted(set().union(*everyone)):
        values = [facts.get(name) for facts in everyone]
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            phrases.append(f"{name} is {values[0]!r} in process 0, {values[other]!r} in process {other}")
    return phrases


def wait_for_all(name: str) -> None:
    """Wait until every process of the run has reached this point."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


class Watchdog:
    """Ends this process if a multi-process run makes no progress because another process is stuck, or if one failed.

    A single-process run is never ended. Use as a context manager and call `beat` after each step.

    Args:
        tell: called with the message before the process ends with exit code 1.
        seconds: limit without progress; None: $LMJAX_HANG_SECONDS, else 1800. Includes compilation and restoring.
    """

    def __init__(self, tell: Callable[[str], None], seconds: float | None = None):
        self.seconds = _integer("LMJAX_HANG_SECONDS", HANG_SECONDS, least=1) if seconds is None else seconds
        self.tell, self.ended, self.last = tell, threading.Event(), time.monotonic()

    def beat(self) -> None:
        """Record progress."""
        self.last = time.monotonic()

    def __enter__(self):
        import jax

        if jax.process_count() > 1:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.ended.set()

    def _watch(self):
        while not self.ended.wait(min(self.seconds / 4, 1)):
            message = _failure()
            if not message and time.monotonic() - self.last > self.seconds:
                message = (
                    f"no progress for {self.seconds:g} s: another process of this run is stuck or has ended; start all "
                    "of them again (LMJAX_HANG_SECONDS sets this limit)"
                )
            if message:
                try:
                    _say(message)
                    self.tell(message)
                finally:
                    os._exit(1)


class StopRequest:
    """Request to stop this run: SIGTERM, SIGINT, SIGHUP, SIGUSR1 or SIGUSR2 to any of its processes.

    In a single process a signal sets a flag, and a second SIGINT interrupts at once. With several, JAX's preemption
    service, which catches SIGTERM and lets all processes agree on one step, is polled; the other signals are passed on
    to it. A signal that is ignored at the start (SIGHUP under nohup) stays ignored.
    Use as a context manager, which restores the previous handlers at exit. One inside another shares its flag: a signal
    that comes too late to stop one run of a list stops the list.
    """

    def __init__(self):
        import jax

        self.several = jax.process_count() > 1
        self.flag = threading.Event()
        self.previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                jax_has_it = self.several and number == signal.SIGTERM
                if not jax_has_it and signal.getsignal(number) is not signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._handle)
                    outer = getattr(self.previous[number], "__self__", None)
                    self.flag = outer.flag if isinstance(outer, StopRequest) else self.flag
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
        """Return whether to save and stop at this step, the same in every process. Call it once per step."""
        if self.several:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self.flag.is_set()

"""Do sweeps survive what happens to long sweeps? Random faults, and a comparison with an undisturbed run at the end.

Each round starts a small sweep (as a sweep, with packs, or as one training), disturbs it several times at random
moments, repeats its command until it has finished, and then demands of every cell: done once (its summary never
changes again); metrics, results and checksums of all arrays of its last checkpoint equal to those of an undisturbed
run, bit for bit; the arrays read back; no process is left. Where lmjax refuses to go on and its message names a damaged
file to move away or delete, that is done, once for each damaged file.

Command:  python experiments/benchmarks/faults.py 1000 --seed 0      (as root, for the full disk and read-only folders)
Short:    python experiments/benchmarks/faults.py 2 --modes train     (a test)
Expected: no fault under "lost"; the exit code is then 0.
Time:     about 3 s of CPU per start of a process; 10 to 20 s per fault on a busy machine.
Result:   faults.json, to which every run with --out adds; docs/sweeps.md

The seed decides the faults, their targets and their delays; the machine decides which instruction they hit. Processes
are forked from this one, which has imported everything but started no JAX backend, and then run the command line; a
fault that comes after the end of the round's sweep is not counted.
"""

import argparse
import atexit
import collections
import contextlib
import ctypes
import gc
import json
import math
import mmap
import os
import pathlib
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import orbax.checkpoint  # noqa: E402, F401 - imported once, for all forked processes

from lmjax import checkpoint, cli, pack, run_record, trainer  # noqa: E402, F401
from lmjax.locks import is_held  # noqa: E402
from lmjax.sweeps import local  # noqa: E402
from lmjax.sweeps import run as sweeps  # noqa: E402

SWEEP = """
from configs import decoder
from lmjax.config import overlay
from lmjax.sweeps.combinators import branches, chain, product

def get_config():
    return overlay(decoder.get_config(), {
        "model.d_model": 8, "model.num_layers": 1, "model.num_heads": 1, "model.dropout": 0.1,
        "data.sources": ("markov2:20000",), "data.seq_len": 8, "data.global_batch_size": 4, "data.max_epochs": 100.0,
        "duration.tokens": None, "duration.steps": 60, "evaluation.max_tokens": 256, "evaluation.batch_size": 8,
        "metrics.every_steps": 5, "checkpoint.every_seconds": None, "checkpoint.every_steps": 15,
        "schedule.warmup_steps": 5,
    })
"""
CELLS = """
def sweep():
    trunk = branches([{"train.seed": 5, "duration.steps": None}], tokens=[64 * 32], decay=0.25)
    return chain(product({"train.seed": [0, 1]}, {"duration.steps": [60, 90]}), trunk)
"""
TIMES = ("wall_seconds", "slot_seconds", "attempts", "peak_memory_bytes", "tokens_per_second", "flops_per_second")
TIMES += ("compile_seconds", "mfu", "finished", "commit")  # the working tree may change meanwhile
PATIENCE = 300  # seconds after which a process that should end has not
HELD = "is in use by"

clock = mmap.mmap(-1, 8)  # seconds by which the clock of all forked processes is wrong


# -- Processes


class Forked:
    """A forked process that runs an lmjax command, with the interface of subprocess.Popen that workers need."""

    def __init__(self, command, log, environment=None):
        self.code, self.pid = None, os.fork()
        if not self.pid:
            _become(command, log, environment)

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def terminate(self):
        self.signal(signal.SIGTERM)

    def signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def _become(command, log, environment):
    """In a new process: runs `lmjax COMMAND` as `python -m lmjax` would, and ends."""
    code = 1
    try:
        nice = pathlib.Path("/proc/self/autogroup")  # a new session would get the priority of a new terminal
        priority = nice.read_text().rpartition(" ")[2] if nice.exists() else ""
        os.setsid()
        if priority:
            nice.write_text(priority)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        for number, source in enumerate((os.open(os.devnull, os.O_RDONLY), file, file)):
            os.dup2(source, number)
        if environment is not None:
            os.environ.clear()
            os.environ.update(environment)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        real, real_ns = time.time, time.time_ns
        time.time = lambda: real() + struct.unpack("d", clock)[0]
        time.time_ns = lambda: real_ns() + int(1e9 * struct.unpack("d", clock)[0])
        sweeps.start_process = _worker
        sys.argv = ["lmjax", *command]
        cli.run()
    except SystemExit as error:
        code = error.code
        threading._shutdown()  # a normal exit
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _worker(place, cells, command):
    """`local.start_process`, forked."""
    environment = {**local.worker_environment(place), local.PARENT: str(os.getpid())}
    return Forked(command[command.index("lmjax") + 1 :], cells[0].run_dir / "log.txt", environment)


def children(pid=None):
    """The processes whose parent is this one, that have not ended."""
    pid, found = pid or os.getpid(), []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0] != "Z":
                found.append(int(child))
    return found


def wait(condition, what, seconds=PATIENCE):
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Lost(f"{what} after {seconds} s")
        time.sleep(0.01)


def _reaped():
    """Whether this process has no children left; those whose threads have not all ended still hold their locks."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


class Lost(Exception):
    """What a fault has broken."""


# -- A round


class Round:
    """A sweep in a folder of its own, from its first start to its end.

    Args:
        folder: an empty folder.
        mode: sweep | pack | train.
        rng: decides targets and delays.
    """

    def __init__(self, folder, mode, rng):
        self.folder, self.rng, self.mode = folder, rng, mode
        self.workdir, self.log, self.aside = folder / "runs", folder / "log.txt", folder / "aside"
        self.log.touch()  # a command may be killed before it opens it
        spec = folder / "small.py"
        spec.write_text(SWEEP + CELLS * (mode != "train"))
        self.command = ["sweep", str(spec), "--workdir", str(self.workdir), "--quiet"]
        self.command += ["--no-analysis", "--workers", "2"] + ["--pack", "2"] * (mode == "pack")
        if mode == "train":
            self.command = ["train", str(spec), "--workdir", str(self.workdir), "--quiet"]
        self.sweep, self.summaries, self.seconds = None, {}, 3.0
        self.damaged = self.remedies = 0  # files that were damaged, and moved away as told

    def start(self):
        self.sweep = Forked(self.command, self.log)

    def running(self):
        return self.sweep is not None and self.sweep.poll() is None

    def workers(self):
        return children(self.sweep.pid) if self.mode != "train" else [self.sweep.pid] * self.running()

    def run_dirs(self):
        return run_record.find_runs(self.workdir) if self.workdir.is_dir() else []

    def ended(self):
        """Waits for the sweep to end, and for workers that it left; returns its exit code."""
        wait(lambda: not self.running(), "the sweep runs")
        wait(_reaped, "orphans are left")
        if held := [path.name for path in self.run_dirs() if is_held(path / "lock")]:
            raise Lost(f"locks {held} are held without a process")
        self.look()
        return self.sweep.code

    def look(self):
        """A finished cell is never trained again."""
        for run_dir in self.run_dirs():
            path = run_dir / "summary.json"
            now = path.read_bytes() if path.exists() else None
            before = self.summaries.get(run_dir.name)
            if before is not None and now != before:
                raise Lost(f"{run_dir.name} had finished, and was trained or evaluated again")
            if now is not None:
                self.summaries[run_dir.name] = now

    def finished(self):
        """Waits for the end of the sweep; returns whether it has finished. Moves away what its error message names."""
        if (code := self.ended()) == 0:
            return True
        said = (self.log.read_text(errors="replace").splitlines() or [""])[-1]
        if code not in (1, 64, 75) and code >= 0:
            raise Lost(f"exit code {code}: {said}")
        if code == 64:
            places = self.folder, pathlib.Path(os.environ["LMJAX_CACHE"])
            named = re.findall(rf"(?:{places[0]}|{places[1]})[^\s:,;()]*", said)
            named = re.findall(r"delete the folder (\S+)", said) + named
            named = [pathlib.Path(path) for path in named if pathlib.Path(path).exists()]
            if self.remedies == self.damaged or not named or not re.search("move|delete|remove", said):
                raise Lost(f"exit code 64: {said}")
            self.aside.mkdir(exist_ok=True)
            if named[0].name == "summary.json":
                self.summaries.pop(named[0].parent.name, None)
            shutil.move(named[0], self.aside / f"{named[0].name}.{time.time_ns()}")
            self.remedies += 1
        return False

    def finish(self):
        """Repeats the command until the sweep has finished."""
        for _ in range(12):
            if not self.running():
                self.start()
            if self.finished():
                return
        raise Lost(f"not finished after 12 starts: {self.log.read_text(errors='replace')[-500:]}")

    def result(self):
        """Everything that an undisturbed run has as well."""
        found = {}
        for run_dir in self.run_dirs():
            summary = run_record.read_json(run_dir / "summary.json")
            status = run_record.status_of(run_dir)["status"]
            if status != "done" or summary is None:
                raise Lost(f"{run_dir.name} is {status}")
            lines = run_record.read_metrics(run_dir / "metrics.jsonl")
            step = checkpoint.saved_steps(run_dir)[-1]
            record = json.loads((run_dir / "checkpoints" / str(step) / "record" / "metadata").read_text())
            found[run_dir.name] = {
                "summary": {k: v for k, v in summary.items() if k not in TIMES},
                "metrics": [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines],
                "step": step,
                "checksums": record["checksums"],
            }
        return found

    def read_back(self):
        """Restores the parameters of every cell, in a process of its own; they must have their checksums."""
        pid = os.fork()
        if not pid:
            code = 1
            try:
                from lmjax.process import use_compilation_cache

                use_compilation_cache()
                for run_dir in self.run_dirs():
                    checkpoint.restore_params(run_dir / "checkpoints", checkpoint.saved_steps(run_dir)[-1], None)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            raise Lost("arrays that cannot be read back")


# -- Faults while it runs: each returns whether it could be done


def _pause(round_, share=1.0):
    time.sleep(round_.rng.uniform(0, share * round_.seconds))
    return round_.running()


def _signal(round_, pids, number):
    hit = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            hit = True
    return hit


def _some_worker(round_):
    found = round_.workers()
    return [round_.rng.choice(found)] if found else []


def kill_a_worker(round_):
    return _pause(round_) and _signal(round_, _some_worker(round_), signal.SIGKILL)


def kill_a_worker_at_its_start(round_):
    wait(lambda: not round_.running() or round_.workers(), "no worker")
    return round_.running() and _signal(round_, _some_worker(round_), signal.SIGKILL)


def kill_the_sweep(round_):
    return _pause(round_) and _signal(round_, [round_.sweep.pid], signal.SIGKILL)


def kill_all(round_):
    return _pause(round_) and _signal(round_, [round_.sweep.pid, *round_.workers()], signal.SIGKILL)


def stop_a_worker_by_a_signal(round_):
    number = round_.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
    return _pause(round_) and _signal(round_, _some_worker(round_), number)


def stop_the_sweep_by_a_signal(round_):
    number = round_.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    return _pause(round_) and _signal(round_, [round_.sweep.pid], number)


def freeze_and_thaw(round_):
    if not _pause(round_):
        return False
    pids = _some_worker(round_) if round_.rng.random() < 0.5 else [round_.sweep.pid]
    hit = _signal(round_, pids, signal.SIGSTOP)
    time.sleep(round_.rng.uniform(0.1, 1.5))
    _signal(round_, pids, signal.SIGCONT)
    return hit


def kill_the_sweep_while_a_worker_is_frozen(round_):
    pids = _some_worker(round_) if _pause(round_) else []
    hit = _signal(round_, pids, signal.SIGSTOP) and _signal(round_, [round_.sweep.pid], signal.SIGKILL)
    time.sleep(0.2)
    _signal(round_, pids, signal.SIGCONT)
    return hit


def a_second_sweep(round_):
    if not _pause(round_):
        return False
    log = round_.folder / "second.txt"
    second = Forked(round_.command, log)
    wait(lambda: second.poll() is not None, "the second sweep runs")
    if second.code not in (0, 64, 75) or (second.code == 64 and HELD not in log.read_text()):
        raise Lost(f"the second sweep ended with code {second.code}: {log.read_text()[-300:]}")
    log.unlink()
    return second.code == 64


def a_second_training_of_a_cell(round_):
    if not _pause(round_) or not round_.run_dirs():
        return False
    log = round_.folder / "second.txt"
    second = Forked(["train", "--run-dir", str(round_.rng.choice(round_.run_dirs())), "--quiet"], log)
    wait(lambda: second.poll() is not None, "the second training runs")
    said = log.read_text()
    log.unlink()
    if second.code not in (0, 64) or (second.code == 64 and HELD not in said and "starts from step" not in said):
        raise Lost(f"the second training ended with code {second.code}: {said[-300:]}")
    return True


def the_clock_jumps(round_):
    found = _pause(round_)
    clock[:] = struct.pack("d", round_.rng.choice([-1, 1]) * 10 ** round_.rng.uniform(0, 8))  # up to three years
    return found


def a_full_disk(round_):
    if not os.path.ismount(round_.folder.parent) or not _pause(round_):
        return None
    filler, left = round_.folder.parent / "filler", round_.rng.choice([0, 0, 4096, 40_000])
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 65536)
    with open(filler, "r+b") as file:
        file.truncate(max(filler.stat().st_size - left, 0))
    try:
        deadline = time.monotonic() + round_.rng.uniform(0.2, round_.seconds)
        while round_.running() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        filler.unlink()
    return True


def a_read_only_folder(round_):
    if not os.path.ismount(round_.folder.parent) or not _pause(round_) or not round_.run_dirs():
        return None
    victim = round_.rng.choice([round_.workdir, *round_.run_dirs()])
    subprocess.run(["mount", "--bind", victim, victim], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", victim], check=True)
        time.sleep(round_.rng.uniform(0.2, round_.seconds))
    finally:
        subprocess.run(["umount", "-l", victim], check=True)
    return True


def a_removed_run_directory(round_):
    """Of a cell that waits for its turn."""
    found = [path for path in round_.run_dirs() if not (path / "summary.json").exists()] if _pause(round_) else []
    found = [path for path in found if not is_held(path / "lock")]
    if not found:
        return False
    shutil.rmtree(round_.rng.choice(found), ignore_errors=True)
    return True


# -- Faults of files, while nothing runs


def _damage(rng, path, kinds=("empty", "cut", "zeros", "garbled")):
    """Truncates or garbles a file."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(kinds) if len(data) > 1 else "empty"
    if kind == "garbled":
        at = rng.randrange(len(data))
        end = min(at + rng.randrange(1, 65), len(data))
        data[at:end] = bytes(byte ^ 0xA5 for byte in data[at:end])
    data = {"empty": b"", "cut": data[: rng.randrange(len(data) or 1)], "zeros": bytes(len(data))}.get(kind, data)
    path.write_bytes(data)


def _damaged(round_, pattern, accept=lambda path: True):
    found = sorted(path for path in round_.workdir.glob(pattern) if path.is_file() and accept(path))
    if found:
        round_.damaged += 1
        _damage(round_.rng, round_.rng.choice(found))
    return bool(found)


def a_damaged_checkpoint(round_):
    """The newest of at least two: training goes on from the one before it."""

    def newest_of_two(path):
        run_dir = next(parent.parent for parent in path.parents if parent.name == "checkpoints")
        steps, number = checkpoint.saved_steps(run_dir), path.relative_to(run_dir / "checkpoints").parts[0]
        return len(steps) > 1 and number == str(steps[-1]) and not (run_dir / "summary.json").exists()

    return _damaged(round_, "*/checkpoints/*/**/*", newest_of_two)


def a_damaged_record(round_):
    return _damaged(round_, f"*/{round_.rng.choice(['config', 'status'])}.json")


def a_damaged_summary(round_):
    found = [path for path in round_.run_dirs() if (path / "summary.json").exists()]
    if not found:
        return False
    path = round_.rng.choice(found) / "summary.json"
    damaged = path.read_bytes()[: round_.rng.randrange(path.stat().st_size - 2)]  # no longer JSON
    path.write_bytes(damaged)
    round_.damaged += 1
    round_.summaries[path.parent.name] = damaged  # until it has been moved away
    return True


def a_torn_line_of_metrics(round_):
    """What a power failure leaves of lines that no checkpoint counts yet."""
    found = [path for path in round_.run_dirs() if not (path / "summary.json").exists()]
    if not found:
        return False
    with open(round_.rng.choice(found) / "metrics.jsonl", "ab") as file:
        file.write(round_.rng.choice([b'{"step": 999, "lo', b'{"step": 9', b"{"]))
    return True


def a_damaged_tokenizer(round_):
    return _damaged(round_, "*/tokenizer/*", lambda path: not (path.parents[1] / "summary.json").exists())


def a_damaged_compiled_program(round_):
    """As kills and full disks leave it; JAX keeps no checksum of a program."""
    found = sorted((pathlib.Path(os.environ["LMJAX_CACHE"]) / "compiled").glob("*-cache"))
    if found:
        _damage(round_.rng, round_.rng.choice(found), ("empty", "cut", "zeros"))
    return bool(found)


def a_damaged_token_store(round_):
    found = sorted(path for path in pathlib.Path(os.environ["LMJAX_CACHE"]).glob("stores/*/*") if path.is_file())
    if found:
        round_.damaged += 1
        _damage(round_.rng, round_.rng.choice(found))
    return bool(found)


def leftovers_of_a_killed_write(round_):
    if not round_.run_dirs():
        return False
    run_dir = round_.rng.choice(round_.run_dirs())
    (run_dir / ".status.json.4242").write_text('{"sta')
    (run_dir / ".tokenizer.4242").mkdir(exist_ok=True)
    (run_dir / "checkpoints" / "9999.orbax-checkpoint-tmp" / "state").mkdir(parents=True, exist_ok=True)
    return True


LIVE = (
    *(kill_a_worker, kill_a_worker_at_its_start, kill_the_sweep, kill_all, stop_a_worker_by_a_signal),
    *(stop_the_sweep_by_a_signal, freeze_and_thaw, kill_the_sweep_while_a_worker_is_frozen, a_second_sweep),
    *(a_second_training_of_a_cell, the_clock_jumps, a_full_disk, a_read_only_folder, a_removed_run_directory),
)
REST = (
    *(a_damaged_checkpoint, a_damaged_record, a_damaged_summary, a_torn_line_of_metrics, a_damaged_tokenizer),
    *(a_damaged_compiled_program, a_damaged_token_store, leftovers_of_a_killed_write),
)
LEFT_OUT = {
    "train": (kill_the_sweep, kill_the_sweep_while_a_worker_is_frozen, a_second_sweep),  # it has no workers
    "pack": (a_second_training_of_a_cell,),  # trained alone, a cell has other last bits
}


def play(folder, mode, rng, kinds, most, expected, seconds):
    """One round with up to `most` faults, taken off `kinds`; returns (names of those that hit, remedies, loss)."""
    folder.mkdir()
    round_, names, missed = Round(folder, mode, rng), [], 0
    round_.seconds = seconds
    try:
        while kinds and len(names) < most and missed < 4:
            kind = kinds.pop()
            if kind in LEFT_OUT.get(mode, ()):
                kinds.insert(0, kind)
                missed += 1
                continue
            if not round_.running():
                if round_.sweep is not None and round_.finished():
                    kinds.append(kind)
                    break
                round_.start()
            if kind in REST:
                _pause(round_)
                _signal(round_, [round_.sweep.pid, *round_.workers()], signal.SIGKILL)
                round_.ended()
            hit = kind(round_)
            round_.look()
            if hit:
                names.append(kind.__name__)
            elif hit is not None:  # None: impossible here
                missed += 1
                kinds.insert(0, kind)
        round_.finish()
        if (found := round_.result()) != expected:
            raise Lost(f"{mode} differs from an undisturbed run in {_differences(found, expected)}")
        round_.read_back()
    except Exception as error:  # noqa: BLE001 - the loss is what is reported; the folder is kept
        for pid in children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        text = str(error) if isinstance(error, Lost) else traceback.format_exc()
        return names, round_.remedies, f"{text} (after {', '.join(names)}; {folder})"
    finally:
        clock[:] = struct.pack("d", 0.0)
    shutil.rmtree(folder)
    return names, round_.remedies, ""


def _differences(found, expected):
    if found.keys() != expected.keys():
        return sorted(found.keys() ^ expected.keys())
    return [
        f"{name} {part} {[k for k in a if a[k] != b.get(k)] if isinstance(a, dict) else ''}"
        for name in found
        for part in found[name]
        if (a := found[name][part]) != (b := expected[name][part])
    ]


def undisturbed(folder, mode, times):
    """(The result of rounds without faults, seconds of the last one)."""
    folder.mkdir()
    results, seconds = [], 0.0
    for _ in range(times):  # the first one compiles
        shutil.rmtree(folder / "runs", ignore_errors=True)
        round_, began = Round(folder, mode, random.Random(0)), time.monotonic()
        round_.finish()
        results.append(round_.result())
        seconds = time.monotonic() - began
    if differing := _differences(results[0], results[-1]):
        raise RuntimeError(f"two undisturbed runs differ in {differing}")
    return results[0], seconds


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("faults", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modes", nargs="+", default=["sweep", "sweep", "pack", "train"])
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no further round after this time")
    parser.add_argument("--keep", type=pathlib.Path, help="copy the folders of lost rounds here")
    parser.add_argument("--out", type=pathlib.Path, help="add the counts to this JSON file")
    arguments = parser.parse_args(argv)
    set_child_subreaper = 36  # orphans become children of this process
    if ctypes.CDLL(None).prctl(set_child_subreaper, 1):
        raise OSError("expected a Linux kernel with PR_SET_CHILD_SUBREAPER")
    began, rng = time.monotonic(), random.Random(arguments.seed)
    hit, told, lost = collections.Counter(), collections.Counter(), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unmount first
    gc.collect()
    gc.freeze()  # else every collection in a forked process would go through all imported modules
    with _small_disk() as disk:
        os.environ["LMJAX_CACHE"] = str(disk.parent / "cache")
        expected, number, kinds = {}, 0, []
        while sum(hit.values()) < arguments.faults and (time.monotonic() - began) / 60 < arguments.minutes:
            mode = rng.choice(arguments.modes)
            if mode not in expected:
                expected[mode] = undisturbed(disk / mode, mode, 1 if arguments.faults < 20 else 2)
            if len(kinds) < 8:
                kinds = [*rng.sample(LIVE + REST, len(LIVE + REST)), *kinds]
            most = min(8, arguments.faults - sum(hit.values()))
            names, remedies, loss = play(disk / f"round{number}", mode, rng, kinds, most, *expected[mode])
            hit.update(names)
            told["files moved away as told"] += remedies
            if loss:
                lost.append((names, loss))
                if arguments.keep:
                    shutil.copytree(disk / f"round{number}", arguments.keep / f"seed{arguments.seed}-round{number}")
                shutil.rmtree(disk / f"round{number}", ignore_errors=True)
                print(f"LOST: {loss}", flush=True)
            number += 1
            print(f"{sum(hit.values())} faults, {number} rounds, {len(lost)} lost, {time.monotonic() - began:.0f} s")
            sys.stdout.flush()
    report(hit, told, lost, number, arguments)
    return 1 if lost else 0


@contextlib.contextmanager
def _small_disk():
    """A temporary folder on a disk of its own, which can be filled; for root only, else a plain folder."""
    folder = pathlib.Path(tempfile.mkdtemp())  # no TemporaryDirectory: forked processes would remove it as they end
    disk = folder / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        print("skipped: a full disk and a read-only folder need root")
    try:
        yield disk
    finally:
        for pid in children():  # after an error or a signal
            os.kill(pid, signal.SIGKILL)
        if mounted:
            subprocess.run(["umount", "-l", "-R", disk], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def report(hit, told, lost, rounds, arguments):
    """Prints the table of faults; with --out, adds the counts to those of earlier runs first."""
    bad = collections.Counter(name for names, _ in lost for name in set(names))
    found = {"faults": dict(hit), "in lost rounds": dict(bad), "rounds": rounds, "lost rounds": len(lost), **told}
    if arguments.out:
        before = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        for key, value in before.items():
            if isinstance(value, dict):
                found[key] = dict(collections.Counter(value) + collections.Counter(found.get(key, {})))
            else:
                found[key] = value + found.get(key, 0)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    names = [kind.__name__ for kind in LIVE + REST if found["faults"].get(kind.__name__)]
    print("\n| fault | times | recovered |\n|---|---|---|")
    for name in names:
        times = found["faults"][name]
        print(f"| {name.replace('_', ' ')} | {times} | {times - found['in lost rounds'].get(name, 0)} |")
    print(f"| all | {sum(found['faults'].values())} | in {found['rounds']} rounds, {found['lost rounds']} lost |")


if __name__ == "__main__":
    sys.exit(main())

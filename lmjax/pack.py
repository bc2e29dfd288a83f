"""Several runs in one process: one after the other, or K at a time in one vmapped program.

    train_list(run_dirs, K)   `lmjax train --run-dir A B C --pack K`
    train_pack(runs, program) trains runs in the K slots of one compiled step; when a run ends, the next takes its slot

Each slot has its own run, step, random key, learning rate and rows. These are arguments of the compiled step, so runs
of different lengths, seeds and rates can share it; `Shape.settings` lists what must be equal. Every run directory is
written as if its run were trained alone. The matrix products of K runs are batched, so results depend on K in the last
bits. They do not depend on the slot or the other runs: K never changes, and empty slots are frozen.

Small models do not fill an accelerator, and a step of K of them costs little more than a step of one (HFTA, arXiv
2102.02344). On CPUs packing is slower than training one run after the other.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lmjax import config as configs
from lmjax import run_record, trainer
from lmjax.defaults import AXES
from lmjax.distributed import StopRequest, Watchdog
from lmjax.errors import InputError
from lmjax.metrics import Progress
from lmjax.process import PARENT
from lmjax.resolve import Resolved, resolve
from lmjax.sharding import compiler_options, make_mesh, prefetch
from lmjax.trainer import DONE, FAILED, PREEMPTED, Member, Programs

GAIN = 1.15  # least increase of tokens per second for which `choose_slots` doubles the slots
MOST = 64  # largest number of slots per device that `choose_slots` tries


def train_list(
    run_dirs: Sequence[pathlib.Path],
    pack: int = 1,
    overrides: dict | None = None,
    show: bool = True,
    keep: bool = False,
) -> int:
    """Train existing run directories in this process; return the exit code.

    A run that fails or diverges does not stop the others. Code: 75 if stopped, 1 if a run did not finish, else 0.

    Args:
        run_dirs: directories with a config.json; in a sweep's worker, each gets its own log.txt.
        pack: number of runs trained at once; 1: one after the other, sharing imports, compiled functions and data; 0:
            chosen by `choose_slots`.
        overrides: dotted key -> value, for every run.
        show: print progress to standard error.
        keep: accept results and checkpoints produced by other source code.

    Raises:
        InputError: the runs cannot be packed; the message names the keys that differ.
    """

    def load(run_dir):
        return resolve(configs.load(str(run_dir / "config.json"), overrides or {}))

    if pack != 1:
        runs = [(load(run_dir), run_dir) for run_dir in run_dirs]
        try:
            check_alike([run for run, _ in runs])
        except InputError as error:
            if pack:
                raise
            print(f"one run after the other: {error}", file=sys.stderr)
            pack = 1
        pack = pack or choose_slots(runs[0][0], len(runs))
        if pack > 1:
            return train_pack(runs, fitting_program(runs[0][0], pack), show, keep)
    codes, programs, stop = [], {}, StopRequest()
    for run_dir in run_dirs:
        if stop.flag.is_set():  # a run that has taken its last step ends as done
            codes.append(PREEMPTED)
        if PREEMPTED in codes:
            break
        _log_into(run_dir)
        try:
            run = load(run_dir)  # may prepare data for hours; a signal then ends the process, with nothing to save
            with stop:
                codes.append(trainer.train(run, run_dir, show, keep, programs))
        except Exception as error:  # noqa: BLE001 - reported, recorded, and the code of this process
            codes.append(_report(run_dir, error))
    return _exit_code(codes)


def _log_into(run_dir: pathlib.Path) -> None:
    """In a sweep's worker, redirect standard output and error to the run's log."""
    if os.environ.get(PARENT):
        with open(run_dir / "log.txt", "a") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)


def _report(run_dir: pathlib.Path, error: Exception) -> int:
    """Prints the error of a run, records it unless another process trains the run, and returns FAILED."""
    message = f"{type(error).__name__}: {error}"[:2000]
    print(f"{run_dir}: {message}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # the disk is full or the directory is gone; the message above says so
        status, leads = run_record.status_of(run_dir), jax.process_index() == 0
        if leads and status["status"] not in ("running", "failed", "done") and not run_record.is_locked(run_dir):
            run_record.write_json(run_dir / "status.json", {**status, "status": "failed", "message": message})
    return FAILED


def _exit_code(codes: Sequence[int]) -> int:
    return PREEMPTED if PREEMPTED in codes else max(codes, default=DONE)


def default_slots() -> int:
    """Return the default `pack` of `train_list`: 1 on CPUs, where packing is slower, else 0."""
    return int(jax.default_backend() == "cpu")


def train_pack(
    runs: Sequence[tuple[Resolved, pathlib.Path]], program: "Program", show: bool = True, keep: bool = False
) -> int:
    """Train runs in the slots of a program; return an exit code as `train_list` does.

    Args:
        runs: (run, run directory) pairs with equal `Shape.key`.
        program: the `fitting_program` of one of the runs.
        show, keep: as for `train_list`.

    Raises:
        InputError: the runs differ in settings that are not arguments of the step, or cannot be packed at all.
    """
    check_alike([program.run, *(run for run, _ in runs)])
    return _Pack(program, runs, show, keep).train()


def fitting_program(run: Resolved, slots: int) -> "Program":
    """Return a program with `slots` slots, or with half as many (repeatedly) until a step fits into memory."""
    while slots > 1:
        if program := _program(run, slots):
            return program
        print(f"{slots} runs do not fit in memory; packing {slots // 2}", file=sys.stderr)
        slots //= 2
    return Program(run, 1)


def _program(run: Resolved, slots: int) -> "Program | None":
    """Returns a program with `slots` slots, or None if a step does not fit into memory."""
    try:
        program = Program(run, slots)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):  # compilers for TPUs check the memory themselves
            return None
        raise
    return program if program.fits() else None


def check_alike(runs: Sequence[Resolved]) -> None:
    """Raise InputError unless the runs can be packed; the message names the keys that differ.

    Example: runs of model.d_model 16 and 32 -> "expected ... equal in all runs of a pack, got model.d_model: 16, 32"
    """
    if any(run.config.model.family == "ngram" for run in runs):
        raise InputError("model.family 'ngram' is counted, not trained in steps that can be packed; use --pack 1")
    settings = [run.shape.settings for run in runs]
    found = []
    for key in settings[0]:
        values = list(dict.fromkeys(str(each.get(key)) for each in settings))
        found += [f"{key}: {', '.join(values[:4])}"] * (len(values) > 1)
    if found:
        raise InputError(
            "expected settings other than the seeds, optimizer.learning_rate, optimizer.weight_decay, schedule.*, "
            "duration.*, init.*, checkpoint.* and run.* equal in all runs of a pack, got "
            f"{'; '.join(found[:8])}; train them with --pack 1"
        )
    split = {axis: runs[0].config.mesh[axis] for axis in AXES[1:] if runs[0].config.mesh[axis] > 1}
    if split or jax.process_count() > 1:
        got = ", ".join([f"{jax.process_count()} processes", *(f"mesh.{axis} {size}" for axis, size in split.items())])
        raise InputError(
            "a pack is split over devices by run: expected one process and all axes of the mesh but data 1, got "
            f"{got}; use --pack 1"
        )
    generator = jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]
    if runs[0].config.model.dropout and generator != "threefry2x32":  # under vmap rbg draws all from one key
        raise InputError(f"dropout in a pack: expected jax_default_prng_impl threefry2x32, got {generator}; set it")


class Program:
    """The compiled functions that train K runs at once.

    Arrays have a leading axis K (slots), which is split over the devices; no data moves between slots.

    Args:
        run: one of the runs.
        slots: K.
        devices: devices to train on; None: all. The largest number of them that divides K is used.
    """

    def __init__(self, run: Resolved, slots: int, devices: Sequence[jax.Device] | None = None):
        devices = list(devices or jax.devices())
        count = max(n for n in range(1, len(devices) + 1) if slots % n == 0)
        mesh = make_mesh(configs.overlay(run.config, {"mesh.data": -1}).mesh, devices[:count])
        run = trainer.on_devices(run, mesh, stacked=True)
        self.slots, self.alone, self.run = slots, Programs(run, mesh), run
        like, spec = self.alone.like, PartitionSpec("data")
        self.sharding = NamedSharding(mesh, spec)

        def stacked(shape, dtype):
            return jax.ShapeDtypeStruct((slots, *shape), dtype, sharding=self.sharding)

        def zeros():
            return jax.tree.map(lambda x: jnp.zeros((slots, *x.shape), x.dtype), like)

        def put(stack, slot, state):
            return jax.tree.map(lambda xs, x: xs.at[slot].set(x), stack, state)

        def take(stack, slot):
            return jax.tree.map(lambda xs: xs[slot], stack)

        self.empty = jax.jit(zeros, out_shardings=self.sharding)
        self.put = jax.jit(put, donate_argnums=0, out_shardings=self.sharding)
        self.take = jax.jit(take, out_shardings=jax.tree.map(lambda x: x.sharding, like))
        example, rows = run.batches.rows([0]), run.config.data.global_batch_size
        self.nothing = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in example.items()}
        step = jax.vmap(trainer.make_step(run, self.alone.optimizer, slots))
        split = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        batch = jax.tree.map(lambda x: stacked(x.shape, x.dtype), trainer.abstract_batch(run, mesh))
        key = jax.random.key(0)
        state = jax.tree.map(lambda x: stacked(x.shape, x.dtype), like)
        jitted = jax.jit(split, donate_argnums=0, out_shardings=self.sharding)
        inputs = batch, stacked(key.shape, key.dtype), stacked((3,), jnp.float32)
        self.step = jitted.lower(state, *inputs).compile(compiler_options(run.config, mesh))

    def batch(self, places: Sequence[tuple[Resolved, int] | None]) -> dict[str, jax.Array]:
        """Return the batch of a (run, step) for each slot, arrays [K, A, rows, ...]; zeros where it is None."""
        rows = self.run.config.data.global_batch_size
        made: dict = {None: self.nothing}

        def rows_of(place):
            name = place and (place[0].data.digest, place[0].config.data.seed, place[1])
            if name not in made:  # runs of one data seed share their rows
                made[name] = place[0].batches.rows(place[1] * rows + np.arange(rows))
            return made[name]

        slots = [rows_of(place) for place in places]
        shape = len(slots), *self.run.batch_shape
        arrays = {name: np.stack([slot[name] for slot in slots]) for name in slots[0]}
        return jax.device_put({name: x.reshape(*shape, *x.shape[2:]) for name, x in arrays.items()}, self.sharding)

    def arguments(self, members: Sequence[tuple[Member, int] | None]) -> np.ndarray:
        """Return `Member.arguments` of every slot, [K, 3]."""
        return np.stack([each[0].arguments(each[1]) if each else np.float32([0, 0, 1]) for each in members])

    def keys(self, seeds: Sequence[int]) -> jax.Array:
        """Return the random keys of all slots, [K]."""
        return jax.device_put(jnp.stack([jax.random.key(seed) for seed in seeds]), self.sharding)

    def fits(self) -> bool:
        """Return whether a step fits into the memory that the device reports."""
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
        use = self.step.memory_analysis()
        return limit is None or use is None or use.argument_size_in_bytes + use.temp_size_in_bytes < 0.9 * limit

    def seconds(self, budget: float = 0.5) -> float:
        """Return the median seconds per step, measured for about `budget` seconds."""
        nothing = [None] * self.slots
        inputs = self.batch(nothing), self.keys([0] * self.slots), self.arguments(nothing)
        stack, times = jax.block_until_ready(self.step(self.empty(), *inputs))[0], []
        while sum(times) < budget or len(times) < 3:
            began = time.monotonic()
            stack, _ = jax.block_until_ready(self.step(stack, *inputs))
            times.append(time.monotonic() - began)
        return float(np.median(times))


def choose_slots(run: Resolved, most: int) -> int:
    """Return the number of slots: start with one per device, and double it while a step fits in memory, there are runs
    for the slots, and throughput over all slots rises by at least 15 %.

    Args:
        run: one of the runs.
        most: number of runs.
    """
    slots = best = devices = len(jax.devices())
    rate = 0.0
    while devices < most and slots < 2 * min(most, MOST * devices):
        program = _program(run, slots)
        now = slots / program.seconds() if program else 0.0
        if now < GAIN * rate or not now:
            break
        rate, best, slots = now, slots, 2 * slots
    return best


@dataclasses.dataclass(eq=False)
class _Seat:
    """A run in a slot."""

    run: Resolved
    run_dir: pathlib.Path
    member: Member
    step: int
    closing: contextlib.ExitStack  # releases the run's directory


class _Pack:
    """Runs in the slots of a program, and those that wait for a slot."""

    def __init__(self, program: Program, runs, show: bool, keep: bool):
        self.program, self.waiting, self.total = program, collections.deque(runs), len(runs)
        self.show, self.keep, self.codes = show, keep, []
        self.seats: list[_Seat | None] = [None] * program.slots
        self.seeds, self.watchdog = [0] * program.slots, Watchdog(print)

    def train(self) -> int:
        """Trains all runs and returns the exit code."""
        self.stack = self.program.empty()
        with contextlib.ExitStack() as stack:
            self.stop = stack.enter_context(trainer.StopRequest())
            stack.push(self._close)
            while self._fill():
                seats = list(self.seats)
                with contextlib.closing(prefetch(self.program.batch, self._places())) as batches:
                    while seats == self.seats:
                        arguments = self.program.arguments([seat and (seat.member, seat.step) for seat in seats])
                        self.stack, report = self.program.step(self.stack, next(batches), self.keys, arguments)
                        self._after(report)
        return _exit_code(self.codes)

    def _places(self) -> Iterator[list[tuple[Resolved, int] | None]]:
        """Yields the (run, step) of every slot for each step until one of these runs ends."""
        now = [seat and (seat.run, seat.step) for seat in self.seats]
        turns = min(run.steps - step for run, step in filter(None, now))
        return ([place and (place[0], place[1] + turn) for place in now] for turn in range(turns))

    def _fill(self) -> bool:
        """Assigns waiting runs to empty slots; returns whether any slot has a run."""
        for slot in range(self.program.slots):
            while self.waiting and self.seats[slot] is None and PREEMPTED not in self.codes:
                run, run_dir = self.waiting.popleft()
                closing = contextlib.ExitStack()
                self._guard(run_dir, closing, functools.partial(self._enter, slot, run, run_dir, closing))
                if self.seats[slot]:
                    self.keys = self.program.keys(self.seeds)
        return any(self.seats)

    def _enter(self, slot, run, run_dir, closing) -> int | None:
        run = dataclasses.replace(run, model=self.program.run.model)  # with the kernels of these devices
        status = closing.enter_context(trainer.claimed(run, run_dir, self.keep, self.program.slots))
        if status is None:
            return DONE
        status.write("running", step=0)
        stream = sys.stderr
        if os.environ.get(PARENT):  # a sweep's worker
            stream = closing.enter_context(open(run_dir / "log.txt", "a"))
        progress = Progress(run.steps, None, stream, self.show, run.run_id, 10.0 * self.program.slots)
        entered = trainer.joined(run, run_dir, self.program.alone, status, progress, self.watchdog)
        member, state = closing.enter_context(entered)
        member.stop, member.slot = self.stop, slot
        code = member.begin(lambda: state)
        if code is None:
            self.stack = self.program.put(self.stack, np.int32(slot), state)
            self.seeds[slot], self.seats[slot] = (
                run.config.train.seed,
                _Seat(run, run_dir, member, member.start, closing),
            )
        return code

    def _after(self, report):
        """Calls `Member.after` for each run after a step, and frees the slots of runs that end."""
        report.copy_to_host_async()
        for slot, seat in enumerate(self.seats):
            if seat is None:
                continue
            seat.step += 1
            state = functools.partial(self.program.take, self.stack, np.int32(slot))
            call = functools.partial(seat.member.after, seat.step, report, state)
            if self._guard(seat.run_dir, seat.closing, call) is not None:
                self.seats[slot] = None

    def _guard(self, run_dir, closing, call) -> int | None:
        """Calls a function for one run; if the run ends or fails, releases its directory."""
        try:
            code = call()
        except Exception as error:  # noqa: BLE001 - recorded by `claimed`, reported, and the code of this process
            closing.__exit__(type(error), error, error.__traceback__)
            code = _report(run_dir, error)
        else:
            if code is not None:
                closing.close()
        if code is not None:
            self.codes.append(code)
            if self.show:
                words = {DONE: "finished", PREEMPTED: "stopped and saved"}.get(code, "did not finish")
                print(f"{words}: {run_dir} ({len(self.codes)} of {self.total})", file=sys.stderr, flush=True)
        return code

    def _close(self, *error):
        """Releases the directories of all slots; records an error of the whole pack in each of them."""
        for seat in filter(None, self.seats):
            seat.closing.__exit__(*error)

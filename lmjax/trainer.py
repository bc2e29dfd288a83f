"""The training loop: one file, top-down, for every architecture and objective.

    train(run, run_dir)   restore or initialise -> step, log, evaluate, save -> summary
    make_step(...)        the compiled optimizer step

Exit codes of a run:

    0    done
    64   bad config or input; do not retry
    75   preempted and saved; run it again
    1    anything else, including divergence (status.json then says "diverged")
"""

import collections
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax import bucket, distributed, losses, parents, run_record
from lmjax import config as configs
from lmjax.checkpoint import Checkpoints, check_path, kept_steps, saved_steps
from lmjax.distributed import StopRequest, Watchdog, check_same, gather
from lmjax.errors import InputError
from lmjax.hardware import check_memory, peak_flops
from lmjax.identity import code_digest
from lmjax.metrics import MetricsWriter, Progress, check_profile, traced
from lmjax.models import attention_kernels, kernels, parameter_shapes
from lmjax.optim.optimizers import make_optimizer
from lmjax.optim.parametrization import moved
from lmjax.optim.schedules import make_schedule
from lmjax.resolve import Resolved, memory
from lmjax.sharding import (
    batch_sharding,
    check_rows,
    check_split,
    compiler_options,
    logical_mesh,
    make_global_batch,
    make_mesh,
    param_shardings,
    prefetch,
    shardings_like,
)
from lmjax.validation import Validation, make_score, summarise

DONE, FAILED, PREEMPTED = 0, 1, 75
State = dict[str, Any]


def train(
    run: Resolved,
    run_dir: pathlib.Path,
    show_progress: bool = True,
    keep: bool = False,
    programs: "dict[str, Programs] | None" = None,
    profile: tuple[int, int] | None = None,
) -> int:
    """Train a run until it ends or is asked to stop; return the exit code.

    Args:
        run: from `resolve`.
        run_dir: the run's directory; created if missing. A finished run returns at once.
        show_progress: print the progress line to standard error.
        keep: accept a result or checkpoints produced by other source code; otherwise they are refused.
        programs: compiled functions of earlier runs of this process by `Shape.key`; this run's are added.
        profile: (first, last) step of a trace by jax.profiler into the folder "profile" of the run directory.

    Raises:
        InputError: the directory belongs to another config or other source code; another process is training it;
            none of its checkpoints can be read; a layer cannot use the kernel of mesh.attention; a bad `profile`.
    """
    if run.config.model.family == "ngram":
        from lmjax import counting  # it imports this module

        if profile:
            raise InputError("--profile traces training steps; an n-gram model is counted, without any")
        return counting.train(run, run_dir, show_progress, keep)
    if profile:
        check_profile(profile, max([run.start, *saved_steps(run_dir)]), run.steps)
    mesh = make_mesh(run.config.mesh)
    check_rows(run.batch_shape[1], mesh, "data.global_batch_size / train.accumulation_steps")
    check_same(_facts(run))
    run = on_devices(run, mesh)
    with claimed(run, run_dir, keep) as status:
        if status is None:
            return DONE
        peak = peak_flops(run.config.model.dtype)
        progress = Progress(run.steps, peak and peak * jax.device_count(), show=show_progress and status.writes)
        return _train(run, run_dir, mesh, status, progress, {} if programs is None else programs, profile)


@contextlib.contextmanager
def claimed(run: Resolved, run_dir: pathlib.Path, keep: bool, packed: int = 1) -> Iterator[run_record.Status | None]:
    """Lock and write a run's directory; yield its status, or None if the run has finished. An error inside is recorded
    in status.json.

    Args:
        run, run_dir, keep: as for `train`.
        packed: number of runs that this process trains at a time.
    """
    check_path(run_dir)
    leads, refused = jax.process_index() == 0, None
    with contextlib.ExitStack() as stack:
        try:
            if leads:
                run_dir.mkdir(parents=True, exist_ok=True)
                stack.enter_context(run_record.Lock(run_dir))
                stack.enter_context(bucket.mirrored(run_dir))
                run.check(run_dir, keep)
                run.write(run_dir)
        except Exception as error:  # noqa: BLE001 - raised below; else the others would wait while this process goes on
            refused = error
        told = refused and [isinstance(refused, InputError), f"{type(refused).__name__} in process 0: {refused}"]
        if told := gather(told)[0]:
            raise refused or (InputError if told[0] else OSError)(told[1])
        if run_record.is_finished(run_dir, _owner(run_dir)):
            if leads:
                run_record.mark_done(run_dir, run.steps)  # a kill may have come between the summary and the status
            yield None
            return
        status = run_record.Status(run_dir, run.steps, writes=leads, packed=packed)
        try:
            yield status
        except BaseException as error:
            message, lost = distributed.blame(error)
            with contextlib.suppress(OSError):  # the disk is full or the directory is gone; the original error says so
                status.write("preempted" if lost else "failed", message=message)
            if lost:
                distributed.leave(message)
            raise


def on_devices(run: Resolved, mesh: jax.sharding.Mesh, stacked: bool = False) -> Resolved:
    """Return the run with its model for the devices of a mesh, which decide its attention kernels.

    Args:
        run: from `resolve`, whose model computes attention with the plain kernel.
        mesh: from `make_mesh`.
        stacked: several runs share the compiled step by jax.vmap.

    Raises:
        InputError: a layer cannot use the kernel that mesh.attention names; the mesh cannot split the model or
            its rows.
    """
    check_split(run.model, run.config.model.family, run.lengths, mesh)
    backend = kernels.backend(mesh, run.config.mesh.attention, stacked)
    model = run.model.clone(backend=backend) if hasattr(run.model, "backend") else run.model
    kernels.check(backend, attention_kernels(model, run.batches.rows([0])))
    return dataclasses.replace(run, model=model)


def _attention(run, validation):
    """The attention kernels of training and, where they are others, of validation, for the record."""
    batches = run.batches.rows([0]), validation.set.rows([0])
    training, evaluating = (kernels.report(attention_kernels(run.model, batch)) for batch in batches)
    return training if training == evaluating else f"{training}; in validation {evaluating}"


def _owner(run_dir: pathlib.Path) -> str:
    """The run id in config.json, which process 0 has just written; network file systems may show it with a delay."""
    for _ in range(60):
        if record := run_record.read_record(run_dir):
            return record["run_id"]
        time.sleep(1)
    raise InputError(f"{run_dir}: expected a directory on a file system that all processes share, got none")


def _facts(run: Resolved) -> dict[str, Any]:
    """What all processes of a run must agree on: every config key, data, objective and source code."""
    config = {k: v for k, v in configs.flatten(configs.to_dict(run.config)).items() if k not in configs.FILES}
    return {**config, "data": run.data.digest, "objective": run.objective_version, "source code": code_digest()}


class Programs:
    """The compiled functions that runs of one `Shape.key` share.

    Args:
        run: one of them.
        mesh: the devices.

    Attributes:
        like: the state as shapes with shardings.
        init: key -> state at step 0.
        score: of `make_score`.
        seconds: that compiling the step took.
    """

    def __init__(self, run: Resolved, mesh: jax.sharding.Mesh):
        used = attention_kernels(run.model, run.batches.rows([0])).values()
        flash = all(choice.kernel != "plain" for choice in used)
        platform = mesh.devices.flat[0].platform
        check_memory(memory(run.config, run.lengths, run.derived["n_total"], flash, mesh.shape, platform))
        self.mesh, self.optimizer, self._step, self.seconds = mesh, make_optimizer(run.config.optimizer), None, 0.0
        init = make_init(run.model, self.optimizer, run.batches.rows([0]), run.metrics, run.carry)
        self.like = abstract_state(run, init, jax.random.key(0), mesh)
        self.init = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, self.like))
        compiler = compiler_options(run.config, mesh)
        self.score = make_score(run.model, mesh, run.objective, run.config.objective.options, compiler)

    def step(self, run: Resolved) -> Callable:
        """Return the compiled step of `compile_step`."""
        if self._step is None:
            began = time.monotonic()
            batch = abstract_batch(run, self.mesh)
            with logical_mesh(self.mesh, run.config.mesh.rules):
                self._step = compile_step(run, self.optimizer, self.like, batch, jax.random.key(0))
            self.seconds = time.monotonic() - began
        return self._step


def _train(run: Resolved, run_dir: pathlib.Path, mesh, status, progress, known: dict[str, Programs], profile) -> int:
    status.write("running", step=0)
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(lambda message: status.write("failed", message=message)))
        # 1. The compiled step; nothing is allocated on the devices yet.
        key = run.shape.key
        programs = known[key] = known.get(key) or Programs(run, mesh)
        step_function = programs.step(run)
        # 2. The state, then the loop.
        member, state = stack.enter_context(joined(run, run_dir, programs, status, progress, watchdog))
        progress.note(
            f"{run.run_id}: {run.steps} steps, mesh {dict(mesh.shape)}, attention {member.compiled['attention']}, "
            f"compiled in {programs.seconds:.1f}s"
        )
        stack.enter_context(logical_mesh(mesh, run.config.mesh.rules))
        member.stop = stack.enter_context(StopRequest())
        if profile and status.writes:
            step_function = stack.enter_context(traced(step_function, member.start, *profile, run_dir / "profile"))
        batches = prefetch(functools.partial(_batch, run, mesh), range(member.start, run.steps))
        return member.train(step_function, state, stack.enter_context(contextlib.closing(batches)))


@contextlib.contextmanager
def joined(
    run: Resolved, run_dir: pathlib.Path, programs: Programs, status, progress, watchdog
) -> Iterator[tuple["Member", State]]:
    """Yield a run that can be trained, and its state: the newest checkpoint, that of its parent, or the initial one.

    Args:
        run, run_dir: as for `train`; locked, with this status.
        programs: of the run's shape.
    """
    config, owner = run.config, _owner(run_dir)
    validation = Validation(run.data, run.objective, config, run.model, programs.mesh, programs.score)
    kept = kept_steps(config.checkpoint, run.steps)
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep, owner, kept)
    fresh = functools.partial(programs.init, jax.random.key(config.train.seed))
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(checkpoints))
        restored = checkpoints.restore_newest(programs.like, progress.note)
        if restored:
            progress.note(f"resumed from step {restored[1]['step']}")
        elif config.init.parent:
            restored = parents.inherit(run, run_dir, programs.like, fresh)
            progress.note(f"{config.init.what} of {config.init['from']}")
        state, record = restored or (fresh(), {"step": 0})
        writer = None
        if status.writes:
            writer = MetricsWriter(run_dir, record["step"], config.metrics, record, progress.note)
            stack.enter_context(writer)
        compiled = {"attention": _attention(run, validation), "compile_seconds": programs.seconds}
        compiled |= {"compiler_options": compiler_options(config, programs.mesh)}
        yield Member(run, validation, checkpoints, writer, progress, status, watchdog, compiled, record["step"]), state


# What a step reports: entries of the new state; whether the update, weight decay aside, changes a weight in float32;
# whether its batch has a label.
REPORT = ("finite", "loss_sum", "loss_weight", "grad_norm", "trained", "labelled")
SHORT_STEP = 0.005  # seconds


@dataclasses.dataclass
class Member:
    """Everything of one run around its steps. At a boundary, metrics are written before the checkpoint is saved, and
    only a finite state is saved.

    The reports of steps are read while later steps run: when a step has ended, at the latest `ahead` steps later. What
    needs the state of a step (evaluation, checkpoint, end of the run) waits for that step. The methods take the state
    as a function, which is called only where needed.
    """

    run: Resolved
    validation: Validation
    checkpoints: Checkpoints
    writer: MetricsWriter | None  # process 0 only
    progress: Progress
    status: run_record.Status
    watchdog: Watchdog
    compiled: dict[str, Any]  # facts about the compiled step, for the summary
    start: int  # step of the restored state
    stop: StopRequest | None = None  # set before the first step
    slot: Any = ...  # index of the run's report in that of a step

    def __post_init__(self):
        self.config, optimizer = self.run.config, self.run.config.optimizer
        self.schedule = make_schedule(self.config.schedule, optimizer.learning_rate, self.run.steps)
        # What every step needs; reading a ConfigDict is slow.
        self.weight_decay, self.line_every = optimizer.weight_decay, self.config.metrics.every_steps
        self.evaluation_every = self.config.evaluation.every_steps or self.run.steps
        self.policy = self.config.checkpoint.to_dict()
        self.polls = 0  # number of checks for a request to stop
        self.records, self.idle = 0, collections.Counter()  # recorded steps; consecutive ones that train nothing
        self.evaluation: dict = {}  # the most recent one
        self.train_loss: float | None = None
        self.saved_at = self.timed_at = time.monotonic()
        self.timed_step = self.start
        self.unread: collections.deque = collections.deque()  # (step, its report)
        self.ahead = 2  # largest number of steps whose reports are not read

    def train(self, step_function: Callable, state: State, batches: Iterator) -> int:
        """Runs the steps from `start` on and returns the exit code."""
        step, key = self.start, jax.random.key(self.config.train.seed)
        code = self.begin(lambda: state)
        while code is None:
            state, report = step_function(state, next(batches), key, self.arguments(step))
            report.copy_to_host_async()
            step += 1
            code = self.after(step, report, lambda: state)  # noqa: B023
        return code

    def arguments(self, step: int) -> np.ndarray:
        """Returns (learning rate, weight decay, 1 if a new average of the training loss begins, else 0), float32."""
        return np.array([self.schedule(step), self.weight_decay, step % self.line_every == 0], np.float32)

    def begin(self, state: Callable[[], State]) -> int | None:
        """Completes the restored step; returns the exit code if there are no steps left or a stop is requested."""
        if self.start and self._due(self.start):
            # Write its line again: the process may have been killed between the save and the line.
            if not self._record(self.start, state(), state):
                return self._leave(self.start, state())
        return self._finish(self.start, state()) if self.start == self.run.steps else None

    def after(self, step: int, report: jax.Array, state: Callable[[], State]) -> int | None:
        """Does what is due after a step was started; returns the exit code if the run ends here, else None."""
        self.unread.append((step, report))
        if (code := self._read(0 if self._evaluates(step) else self.ahead, state)) is not None:
            return code
        if step == self.run.steps:
            return self._finish(step, state())
        stops = self._stop_requested()
        if not (stops or self._save_due(step)) or (code := self._read(0, state)) is not None:
            return code
        return self._leave(step, state()) if stops else self._save(step, state())

    def _read(self, ahead: int, state) -> int | None:
        """Reads reports until at most `ahead` are left whose steps run; returns the exit code if the run ends here."""
        alone = jax.process_count() == 1  # several processes must read the same reports, to leave at the same step
        while self.unread and (len(self.unread) > ahead or (alone and self.unread[0][1].is_ready())):
            step, report = self.unread.popleft()
            values, pairs = np.split(np.asarray(report)[self.slot], [len(REPORT)])
            now = dict(zip((*REPORT, *self.run.metrics), (*values.tolist(), *pairs.reshape(-1, 2)), strict=True))
            if not now["finite"]:
                return self._diverged(state())
            if self._due(step):
                if reason := self._untrained(step, now):
                    return self._fail(step, reason)
                if not self._record(step, now, state):
                    return self._leave(step, state())
        return None

    def _finish(self, step, state) -> int:
        self._save(step, state)
        self.checkpoints.wait()
        source_gain = self.validation.source_gain(state["params"])
        if self.writer is not None:
            self._summarise(step, source_gain)
        return DONE

    def _due(self, step):
        return step % self.line_every == 0 or self._evaluates(step)

    def _evaluates(self, step):
        return step % self.evaluation_every == 0 or step == self.run.steps or step in self.checkpoints.always

    def _stop_requested(self) -> bool:
        self.watchdog.beat()
        self.polls += 1
        return self.stop.at(self.polls)

    def _untrained(self, step, now) -> str:
        """Returns an error message if no parameter is being trained, else "": such a loss must not enter a fit."""
        if not now["labelled"]:  # nothing to learn from in this batch
            return ""
        self.records += 1
        ends_at_0 = step == self.run.steps and self.schedule(step - 1) == 0
        found = {
            "the gradient is exactly 0": now["grad_norm"] == 0 and now["loss_sum"] > 0,
            "the update changes no weight, weight decay aside,": not now["trained"] and not ends_at_0,
        }
        for what, holds in found.items():
            self.idle[what] = self.idle[what] + 1 if holds else 0
            if self.idle[what] == 3 or (step == self.run.steps and self.idle[what] == self.records):
                return (
                    f"{what} in the last {self.idle[what]} recorded steps up to {step}, at learning rate "
                    f"{self.schedule(step - 1):g}: nothing is learned; look for a learning rate, a scale or an epsilon "
                    "in the config that float32 rounds to 0 or infinity"
                )
        return ""

    def _record(self, step, now, state: Callable[[], State]) -> bool:
        """Writes the metrics of a step; returns False if asked to stop during its evaluation."""
        derived = self.run.derived
        # Without a label since the last line, as in few rows of discourse_relation, there is no loss.
        loss = {"loss": float(now["loss_sum"]) / float(now["loss_weight"])} if now["loss_weight"] > 0 else {}
        record = {
            "step": step,
            "tokens": round(step * derived["tokens_per_step"]),
            "flops": step * derived["flops_per_step"],
            **loss,
            **{name: float(now[name][0] / now[name][1]) for name in self.run.metrics if now[name][1] > 0},
            "learning_rate": float(np.float32(self.schedule(step - 1))),
            "grad_norm": float(now["grad_norm"]),
        }
        speed = {}
        if step > self.timed_step:  # not when a resumed run rewrites its last line
            clock = time.monotonic()
            seconds = (clock - self.timed_at) / (step - self.timed_step)
            self.timed_at, self.timed_step = clock, step
            self.ahead = 8 if seconds < SHORT_STEP and jax.process_count() == 1 else 2
            record["tokens_per_second"] = derived["tokens_per_step"] / seconds
            speed = {
                "flops_per_second": derived["flops_per_step"] / seconds,
                "eta_seconds": (self.run.steps - step) * seconds,
            }
        if self._evaluates(step):
            evaluation = self.validation.evaluate(state()["params"], self._stop_requested)
            if evaluation is None:
                return False
            self.evaluation = evaluation
            shown = ("loss", *(name for name in evaluation if name.endswith(("_loss", "_accuracy"))))
            record |= {f"validation_{name}": evaluation[name] for name in shown}
            if evaluation["bits_per_byte"] is not None:
                record["validation_bits_per_byte"] = evaluation["bits_per_byte"]
            self.timed_at = time.monotonic()
        if self.writer is not None:
            self.writer.write(record)
        if speed:
            self.progress.update({**record, **speed})
            known = {key: record[key] for key in ("loss", "validation_loss", "tokens_per_second") if key in record}
            self.status.beat(step=step, **known, **speed)
        self.train_loss = record.get("loss", self.train_loss)
        return True

    def _save_due(self, step) -> bool:
        steps, seconds = self.policy["every_steps"], self.policy["every_seconds"]
        if step in self.checkpoints.always or (steps and step % steps == 0):
            return True
        if not seconds:
            return False
        due = time.monotonic() - self.saved_at > seconds
        if jax.process_count() > 1:  # the processes' clocks differ: process 0 decides, at metrics boundaries
            if step % self.line_every:
                return False
            from jax.experimental import multihost_utils

            due = bool(multihost_utils.broadcast_one_to_all(np.bool_(due)))
        return due

    def _save(self, step, state):
        self.checkpoints.save(step, state, **(self.writer.synced(step) if self.writer else {}))
        self.saved_at = time.monotonic()

    def _leave(self, step, state) -> int:
        """Saves and stops; the same command resumes the run."""
        self._save(step, state)
        self.checkpoints.wait()
        self.status.write("preempted", step=step)
        self.progress.note(f"asked to stop: saved step {step}; the same command continues from here")
        return PREEMPTED

    def _diverged(self, state) -> int:
        """Saves the state, which is frozen at its last finite step, and reports the divergence."""
        step = int(state["step"])
        self._save(step, {**state, "finite": jnp.ones_like(state["finite"])})
        self.checkpoints.wait()
        message = f"the loss, the gradient or a parameter was not finite in step {step + 1}; step {step} is saved"
        return self._fail(step, message, "diverged")

    def _fail(self, step, message, status="failed") -> int:
        self.status.write(status, step=step, message=message)
        self.progress.note(f"{status}: {message}")
        return FAILED

    def _summarise(self, step, source_gain):
        run, config = self.run, self.config
        records = run_record.read_metrics(self.writer.path)
        rates = [r["tokens_per_second"] for r in records if "tokens_per_second" in r]
        rate = float(np.median(rates[1:] or rates or 0.0))
        peak = peak_flops(config.model.dtype)
        flops_rate = rate / run.derived["tokens_per_step"] * run.derived["flops_per_step"]
        facts = {
            "source_gain": source_gain,
            "train_loss": self.train_loss,
            "clipped_share": _clipped_share(records, config.optimizer.clip_norm),
            "schedule_complete": step == run.steps,
            "seed": config.train.seed,
            "parametrization": config.parametrization.name,
            "base_width": config.parametrization.base_width,
            "learning_rate": config.optimizer.learning_rate,
            "learning_rate_rule": config.run.learning_rate_rule,
            "tokens_per_second": rate,
            "flops_per_second": flops_rate,
            "mfu": flops_rate / (peak * jax.device_count()) if peak else None,
            **self.compiled,
            "metrics_lines_lost": self.writer.lost,
        }
        summarise(run, self.writer.path.parent, self.evaluation, self.validation, self.status, self.progress, facts)


def _clipped_share(records: list[dict], clip_norm: float | None) -> float:
    """The share of the recorded steps whose gradient was clipped."""
    norms = [record["grad_norm"] for record in records]
    return sum(norm > clip_norm for norm in norms) / len(norms) if clip_norm else 0.0


def make_init(model: nn.Module, optimizer: optax.GradientTransformation, example, metrics=(), carry=()) -> Callable:
    """Return key -> state at step 0. Initial values depend only on the key and the parameter's name.

    Args:
        metrics: names of `run.metrics`.
        carry: `run.carry`.
    """

    def init(key: jax.Array) -> State:
        shapes = {name: jnp.zeros(x.shape, x.dtype) for name, x in example.items()}
        params = nn.unbox(model.init(jax.random.fold_in(key, 0), shapes)["params"])
        zero = jnp.zeros((), jnp.float32)
        return {
            "params": params,
            "opt_state": optimizer.init(params),
            "step": jnp.zeros((), jnp.int32),  # optimizer steps with a finite result
            "finite": jnp.ones((), jnp.bool_),  # False from the first non-finite loss, gradient or parameter on
            "loss_sum": zero,  # training loss since the last metrics line, nats
            "loss_weight": zero,  # predicted tokens since the last metrics line
            "grad_norm": zero,  # last step, before clipping
            **{name: jnp.zeros(2) for name in metrics},  # (sum, weight) since the last metrics line
            **jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(carry)),  # after the rows of the last step
        }

    return init


def abstract_state(run: Resolved, init: Callable, key: jax.Array, mesh: jax.sharding.Mesh) -> State:
    """Return the state as shapes with shardings, for `restore_newest` and the compiled step."""
    shapes = jax.eval_shape(init, key)
    boxed = parameter_shapes(run.model, run.batches.rows([0]))
    params = param_shardings(boxed, mesh, run.config.mesh.rules)
    shardings = shardings_like(shapes["params"], params, shapes, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def abstract_batch(run: Resolved, mesh: jax.sharding.Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Return a batch [micro-batches, rows, ...] as shapes with shardings, for `compile_step`."""
    example = {name: ((*run.batch_shape, *x.shape[1:]), x.dtype) for name, x in run.batches.rows([0]).items()}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, shape))
        for name, (shape, dtype) in example.items()
    }


def make_step(run: Resolved, optimizer: optax.GradientTransformation, slots: int = 1) -> Callable:
    """Return the optimizer step: (state, batch [A, rows, ...], key, arguments) -> (state, report).

    arguments: [3] of `Member.arguments`. report: float32, `REPORT` and then (sum, weight) of `run.metrics`.

    Loss sum, weight and gradient are summed over the A micro-batches and divided once by the global weight
    (`losses.gradient`), so the result does not depend on how rows are split over micro-batches or devices. Learning
    rate, weight decay and seed are arguments, so runs of equal shape share one executable; the factors of `run.scales`
    are constants of it. Once the loss, the gradient or an updated parameter is not finite, the state stays frozen at
    the step before. `slots` is the number of runs that jax.vmap trains in one program, on all devices.
    """
    clip_norm, scales = run.config.optimizer.clip_norm, run.scales
    terms_of = functools.partial(run.loss_terms, slots=slots)
    coefficients = {head.name: head.coefficient for head in run.heads}

    def step(state: State, batch, key, arguments):
        params, (learning_rate, weight_decay, fresh) = state["params"], arguments
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 1), state["step"])
        batch = {**batch, **{name: state[name] for name in run.carry if name in state}}
        total, weight, metrics, grads, carry = losses.gradient(terms_of, coefficients, params, batch, dropout_key)
        scale = 1.0 / losses.divisor(weight)
        grad_norm = optax.tree.norm(grads) * scale
        if clip_norm:
            scale = scale * jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-16))
        grads = jax.tree.map(lambda g, s: g * (scale * s.gradient), grads, scales)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        new_params = moved(params, updates, scales, learning_rate, weight_decay)
        both = params, moved(params, updates, scales, learning_rate, 0.0), scales
        trained = [jnp.any(p != q) for p, q, s in zip(*map(jax.tree.leaves, both), strict=True) if s.decay]
        good = [jnp.isfinite(x).all() for x in (total, grad_norm, *jax.tree.leaves(new_params))]
        finite = functools.reduce(jnp.logical_and, good, state["finite"])
        new = {
            "params": new_params,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "grad_norm": grad_norm,
            "loss_sum": jnp.where(fresh > 0, 0.0, state["loss_sum"]) + total,
            "loss_weight": jnp.where(fresh > 0, 0.0, state["loss_weight"]) + weight,
            **{k: jnp.where(fresh > 0, 0.0, state[k]) + jnp.stack(pair) for k, pair in metrics.items() if k in state},
            **carry,
        }
        new = {name: jax.tree.map(lambda a, b: jnp.where(finite, a, b), new[name], state[name]) for name in new}
        reported = {**new, "finite": finite, "trained": functools.reduce(jnp.logical_or, trained)}
        reported["labelled"] = functools.reduce(jnp.logical_or, [w > 0 for _, w in (*metrics.values(), (0, weight))])
        scalars = jnp.stack([reported[name].astype(jnp.float32) for name in REPORT])
        return {**new, "finite": finite}, jnp.concatenate([scalars, *(new[k] for k in sorted(metrics) if k in new)])

    return step


def compile_step(run: Resolved, optimizer, like: State, batch, key) -> Callable:
    """Return the compiled optimizer step for these shapes and shardings; the state's memory is reused (donated)."""
    shardings = jax.tree.map(lambda x: x.sharding, like)
    everywhere = shardings["step"]
    step = jax.jit(make_step(run, optimizer), donate_argnums=0, out_shardings=(shardings, everywhere))
    arguments = jax.ShapeDtypeStruct((3,), jnp.float32, sharding=everywhere)
    return step.lower(like, batch, key, arguments).compile(compiler_options(run.config, everywhere.mesh))


def _batch(run: Resolved, mesh, step: int) -> dict[str, jax.Array]:
    """The global batch of a step, [A, rows, ...] on the devices."""
    first = step * run.config.data.global_batch_size
    return make_global_batch(lambda indices: run.batches.rows(first + indices), mesh, *run.batch_shape)

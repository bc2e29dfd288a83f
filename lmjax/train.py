"""The training loop: one file, top-down, for every architecture and objective.

    train(run_dir)   restore or initialise -> step, log, evaluate, save -> summary
    make_step(...)   the compiled optimizer step

Exit codes of a run: 0 done; 75 preempted and saved, start me again; 64 bad config or input, never retry; 1
anything else,
divergence included (status.json then says "diverged").
"""

import concurrent.futures
import functools
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lmjax import run_record
from lmjax.checkpoint import Checkpoints
from lmjax.distributed import StopRequest
from lmjax.hardware import environment_record, peak_flops, peak_memory
from lmjax.identity import code_digest
from lmjax.losses import cross_entropy
from lmjax.metrics import MetricsWriter, Progress
from lmjax.models import parameter_shapes
from lmjax.optim.optimizers import make_optimizer
from lmjax.optim.schedules import make_schedule
from lmjax.resolve import Resolved
from lmjax.sharding import (
    batch_sharding,
    check_rows,
    logical_mesh,
    make_global_batch,
    make_mesh,
    param_shardings,
    shardings_like,
)
from lmjax.validation import Validation, passed_reference, precision_warning

DONE, FAILED, BAD_INPUT, PREEMPTED = 0, 1, 64, 75
State = dict[str, Any]


def train(run: Resolved, run_dir: pathlib.Path, show_progress: bool = True, keep: bool = False) -> int:
    """Trains a run to its end, or to the next request to stop, and returns the exit code.

    Args:
        run: from `resolve`.
        run_dir: the run's directory; made if missing. A finished run returns at once.
        show_progress: print the progress line to standard error.
        keep: use a result or checkpoints that other source code made; without it they are refused.

    Raises:
        InputError: the directory belongs to another config or to other source code; another process trains it; no
            checkpoint there can be read.
    """
    mesh, rows = make_mesh(run.config.mesh), run.config.data.global_batch_size
    check_rows(rows // run.config.train.accumulation_steps, mesh, "data.global_batch_size / train.accumulation_steps")
    run_dir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() > 0:
        if run_record.read_json(run_dir / "summary.json"):
            return DONE
        status = run_record.Status(run_dir, run.steps, writes=False)
        return _train(run, run_dir, mesh, status, Progress(run.steps, None, _Silent()))
    with run_record.Lock(run_dir):
        run.check(run_dir, keep)
        run.write(run_dir)
        if run_record.read_json(run_dir / "summary.json"):
            run_record.mark_done(run_dir, run.steps)  # a kill may have come between the summary and the status
            return DONE
        status = run_record.Status(run_dir, run.steps)
        peak = peak_flops(run.config.model.dtype)
        progress = Progress(run.steps, peak and peak * jax.device_count(), None if show_progress else _Silent())
        try:
            return _train(run, run_dir, mesh, status, progress)
        except BaseException as error:
            status.write("failed", message=f"{type(error).__name__}: {error}"[:2000])
            raise


def _train(run: Resolved, run_dir: pathlib.Path, mesh, status: run_record.Status, progress: Progress) -> int:
    config, steps = run.config, run.steps
    rows, micro_batches = config.data.global_batch_size, config.train.accumulation_steps
    status.write("running", step=0)

    # 1. Shapes and shardings; nothing is allocated yet.
    optimizer = make_optimizer(config.optimizer)
    init = make_init(run.model, optimizer, run.batches.rows([0]))
    key = jax.random.key(config.train.seed)
    like = abstract_state(run, init, key, mesh)

    # 2. State: the newest own checkpoint, else parameters born sharded.
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep)
    restored = checkpoints.restore_newest(like, progress.note)
    if restored:
        state, start = restored
        progress.note(f"resumed from step {start}")
    else:
        shardings = jax.tree.map(lambda x: x.sharding, like)
        state, start = jax.jit(init, out_shardings=shardings)(key), 0

    # 3. The compiled step, the held-out rows, the feed.
    schedule = make_schedule(config.schedule, config.optimizer.learning_rate, steps)
    began = time.monotonic()
    sharding = batch_sharding(mesh)
    with logical_mesh(mesh, config.mesh.rules):
        batch = make_global_batch(lambda i: run.batches.rows(i), sharding, micro_batches, rows // micro_batches)
        step_function = compile_step(run, optimizer, like, batch, key)
        validation = make_validation(run, mesh)
        progress.note(
            f"{run.run_id}: {steps} steps, mesh {dict(mesh.shape)}, compiled in {time.monotonic() - began:.1f}s"
        )
        writer = MetricsWriter(run_dir, start, config.metrics.tensorboard) if status.writes else None
        loop = _Loop(run, checkpoints, validation, writer, progress, status)
        try:
            with StopRequest() as stop, _Feed(run, sharding, start) as feed:
                code, state = loop.run(state, start, step_function, schedule, key, feed, stop)
        finally:
            if writer is not None:
                writer.close()
            checkpoints.close()
    return code


class _Loop:
    """Everything that happens around a step. Order at a boundary: metrics are written before the checkpoint is saved,
    and a checkpoint is saved only of a state whose losses were all finite."""

    def __init__(self, run, checkpoints, validation, writer, progress, status):
        self.run_, self.config = run, run.config
        self.checkpoints, self.validation, self.writer = checkpoints, validation, writer
        self.progress, self.status = progress, status
        self.last_evaluation: dict = {}
        self.polls = 0

    def run(self, state, start, step_function, schedule, key, feed, stop) -> tuple[int, State]:
        self.stop, self.clock, self.done_at_clock, self.first = stop, time.monotonic(), start, start
        self.saved_at = time.monotonic()
        waiting = []
        step, steps = start, self.run_.steps
        if start and self._due(start):  # its line is written again: a kill may have come between the save and the line
            if not self._record(start, state, schedule(start - 1)):
                return self._leave(start, state)
        while step < steps:
            fresh = step % self.config.metrics.every_steps == 0  # starts a new average of the training loss
            scalars = (np.float32(schedule(step)), np.bool_(fresh))
            state, token = step_function(state, next(feed), key, *scalars)
            step += 1
            waiting.append(token)
            if len(waiting) > 2:  # at most two steps ahead of the device
                jax.block_until_ready(waiting.pop(0))
            if self._due(step):
                if not bool(state["finite"]):
                    return self._diverged(state)
                if not self._record(step, state, schedule(step - 1)):
                    return self._leave(step, state)
            if step < steps and self._stop_requested():
                return self._leave(step, state)
            if step < steps and self._save_due(step):
                if not bool(state["finite"]):
                    return self._diverged(state)
                self._save(step, state)
        self._save(step, state)
        self.checkpoints.wait()
        source_gain = self.validation.source_gain(state["params"])
        if self.writer is not None:
            self._summarise(step, source_gain)
        return DONE, state

    def _due(self, step):
        every = self.config.evaluation.every_steps
        return step % self.config.metrics.every_steps == 0 or step == self.run_.steps or self._evaluates(step, every)

    def _evaluates(self, step, every):
        return step == self.run_.steps or (every is not None and step % every == 0)

    def _stop_requested(self) -> bool:
        self.polls += 1
        return self.stop.at(self.polls)

    def _record(self, step, state, learning_rate) -> bool:
        """Writes the metrics of a step; returns False if asked to stop during its evaluation."""
        run = self.run_
        record = {
            "step": step,
            "tokens": round(step * run.derived["tokens_per_step"]),
            "flops": step * run.derived["flops_per_step"],
            "loss": float(state["loss_sum"]) / float(state["loss_weight"]),
            "learning_rate": float(np.float32(learning_rate)),
            "grad_norm": float(state["grad_norm"]),
        }
        speed = {}
        if step > self.done_at_clock:  # not where a resumed run writes its last line again
            now = time.monotonic()
            seconds = (now - self.clock) / (step - self.done_at_clock)
            self.clock, self.done_at_clock = now, step
            speed = {"tokens_per_second": run.derived["tokens_per_step"] / seconds}
            record |= speed
            speed |= {
                "flops_per_second": run.derived["flops_per_step"] / seconds,
                "eta_seconds": (run.steps - step) * seconds,
            }
        if self._evaluates(step, self.config.evaluation.every_steps):
            evaluation = self.validation.evaluate(state["params"], self._stop_requested)
            if evaluation is None:
                return False
            self.last_evaluation = evaluation
            record["validation_loss"] = evaluation["loss"]
            if evaluation["bits_per_byte"] is not None:
                record["validation_bits_per_byte"] = evaluation["bits_per_byte"]
            self.clock = time.monotonic()
        if self.writer is not None:
            self.writer.write(record)
        if speed:
            self.progress.update({**record, **speed})
            known = {key: record[key] for key in ("loss", "validation_loss") if key in record}
            self.status.beat(step=step, **known, **speed)
        self.train_loss = record["loss"]
        return True

    def _save_due(self, step) -> bool:
        policy = self.config.checkpoint
        if policy.every_steps and step % policy.every_steps == 0:
            return True
        if not policy.every_seconds:
            return False
        due = time.monotonic() - self.saved_at > policy.every_seconds
        if jax.process_count() > 1:  # the processes' clocks differ: process 0 decides, at metrics boundaries
            if step % self.config.metrics.every_steps:
                return False
            from jax.experimental import multihost_utils

            due = bool(multihost_utils.broadcast_one_to_all(np.bool_(due)))
        return due

    def _save(self, step, state):
        self.checkpoints.save(step, state)
        self.saved_at = time.monotonic()

    def _leave(self, step, state) -> tuple[int, State]:
        """Saves and stops, to be started again."""
        if not bool(state["finite"]):
            return self._diverged(state)
        self._save(step, state)
        self.checkpoints.wait()
        self.status.write("preempted", step=step)
        self.progress.note(f"asked to stop: saved step {step}; start the same command again to go on")
        return PREEMPTED, state

    def _diverged(self, state) -> tuple[int, State]:
        """The state froze at the last step with a finite loss and gradient: save that one and say so."""
        step = int(state["step"])
        frozen = {**state, "finite": jnp.ones_like(state["finite"])}
        self._save(step, frozen)
        self.checkpoints.wait()
        message = f"loss or gradient was not finite in step {step + 1}; step {step} is saved"
        self.status.write("diverged", step=step, message=message)
        self.progress.note("diverged: " + message)
        return FAILED, state

    def _summarise(self, step, source_gain):
        run, config = self.run_, self.config
        references = self.validation.reference_losses(run.batches, run.objective)
        status = self.status
        evaluation = self.last_evaluation
        record = run_record.read_json(self.writer.path.parent / "config.json")
        records = run_record.read_metrics(self.writer.path)
        rates = [r["tokens_per_second"] for r in records if "tokens_per_second" in r]
        rate = float(np.median(rates[1:] or rates)) if rates else 0.0
        peak = peak_flops(config.model.dtype)
        flops_rate = rate / run.derived["tokens_per_step"] * run.derived["flops_per_step"]
        summary = {
            "run_id": run.run_id,
            "status": "done",
            **{k: v for k, v in run.derived.items() if k not in ("memory", "memory_bytes")},
            "held_out": config.run.held_out,
            **evaluation,
            **references,
            "passed_reference": passed_reference(evaluation["loss"], references),
            "source_gain": source_gain,
            "train_loss": self.train_loss,
            "schedule_complete": step == run.steps,
            "seed": config.train.seed,
            "parametrization": "standard",
            "learning_rate": config.optimizer.learning_rate,
            "learning_rate_rule": config.run.learning_rate_rule,
            "packing": config.data.mode,
            "tokens_per_second": rate,
            "flops_per_second": flops_rate,
            "mfu": flops_rate / (peak * jax.device_count()) if peak else None,
            "wall_seconds": status.wall_seconds(),
            "attempts": status.attempts,
            "peak_memory_bytes": peak_memory(),
            "data_digest": run.data.digest,
            "objective_version": run.objective_version,
            "code": "+".join(dict.fromkeys([record.get("code", "unknown"), code_digest()])),
            **environment_record(),
        }
        if not math.isfinite(summary["loss"]):
            raise FloatingPointError(f"the held-out loss is {summary['loss']} though every training loss was finite")
        if warning := precision_warning(evaluation):
            self.progress.note(warning)
        run_record.write_json(self.writer.path.parent / "summary.json", summary)
        status.write("done", step=step, validation_loss=summary["loss"])


def make_validation(run: Resolved, mesh) -> Validation:
    """Returns the scorer of the run's validation documents."""
    return Validation(run.data, run.objective, run.config, functools.partial(_apply, run.model), mesh)


def _apply(model, params, batch):
    return model.apply({"params": params}, batch)


def make_init(model: nn.Module, optimizer: optax.GradientTransformation, example: dict) -> Callable:
    """Returns key -> state at step 0. A parameter's draw depends on the key and its name only, not on the mesh."""

    def init(key: jax.Array) -> State:
        shapes = {name: jnp.zeros(x.shape, x.dtype) for name, x in example.items()}
        params = nn.unbox(model.init(jax.random.fold_in(key, 0), shapes)["params"])
        zero = jnp.zeros((), jnp.float32)
        return {
            "params": params,
            "opt_state": optimizer.init(params),
            "step": jnp.zeros((), jnp.int32),  # optimizer steps whose loss and gradient were finite
            "finite": jnp.ones((), jnp.bool_),  # False from the first non-finite loss or gradient on
            "loss_sum": zero,  # of the training loss since the last metrics line: nats,
            "loss_weight": zero,  # predicted tokens
            "grad_norm": zero,  # of the last step, before clipping
        }

    return init


def abstract_state(run: Resolved, init: Callable, key: jax.Array, mesh: jax.sharding.Mesh) -> State:
    """Returns the state as shapes with shardings: what `restore_newest` and the compiled step are told."""
    shapes = jax.eval_shape(init, key)
    boxed = parameter_shapes(run.model, run.batches.rows([0]))
    params = param_shardings(boxed, mesh, run.config.mesh.rules)
    shardings = shardings_like(shapes["params"], params, shapes, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
    )


def make_step(run: Resolved, optimizer: optax.GradientTransformation) -> Callable:
    """Returns the optimizer step: (state, batch [A, rows, ...], key, learning rate, fresh) -> (state, token).

    A micro-batches are summed as (loss sum, weight, gradient of the sum) and divided once by the global weight, so the
    result does not depend on how rows are split over micro-batches or devices. Learning rate and seed are arguments:
    runs of equal shape share one executable. When loss or gradient is not finite the state stays as it is, for ever.
    """
    model, clip_norm = run.model, run.config.optimizer.clip_norm

    def loss_sum(params, micro, dropout_key):
        logits_BTV = model.apply({"params": params}, micro, deterministic=False, rngs={"dropout": dropout_key})
        return cross_entropy(logits_BTV, micro["targets"], micro["weights"])

    gradient = jax.value_and_grad(loss_sum, has_aux=True)

    def accumulate(params, batch, key):
        micro_batches = batch["targets"].shape[0]
        if micro_batches == 1:
            (total, weight), grads = gradient(params, {k: v[0] for k, v in batch.items()}, key)
            return total, weight, grads

        def add(carry, micro):
            index, batch = micro
            (total, weight), grads = gradient(params, batch, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, (total, weight, grads)), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        carry = (jnp.zeros(()), jnp.zeros(()), zeros)
        return jax.lax.scan(add, carry, (jnp.arange(micro_batches), batch))[0]

    def step(state: State, batch, key, learning_rate, fresh):
        params = state["params"]
        dropout_key = jax.random.fold_in(jax.random.fold_in(key, 1), state["step"])
        total, weight, grads = accumulate(params, batch, dropout_key)
        scale = 1.0 / jnp.where(weight > 0, weight, 1.0)
        grad_norm = optax.tree.norm(grads) * scale
        finite = state["finite"] & jnp.isfinite(total) & jnp.isfinite(grad_norm)
        if clip_norm:
            scale = scale * jnp.minimum(1.0, clip_norm / jnp.maximum(grad_norm, 1e-16))
        grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        new_params = jax.tree.map(lambda p, u: p + learning_rate * u, params, updates)
        new = {
            "params": new_params,
            "opt_state": opt_state,
            "step": state["step"] + 1,
            "loss_sum": jnp.where(fresh, 0.0, state["loss_sum"]) + total,
            "loss_weight": jnp.where(fresh, 0.0, state["loss_weight"]) + weight,
            "grad_norm": grad_norm,
        }
        old = {name: state[name] for name in new}
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        return {**new, "finite": finite}, total

    return step


def compile_step(run: Resolved, optimizer, like: State, batch, key) -> Callable:
    """Returns the compiled optimizer step for these shapes and shardings; the state's memory is reused (donated)."""
    shardings = jax.tree.map(lambda x: x.sharding, like)
    step = jax.jit(make_step(run, optimizer), donate_argnums=0, out_shardings=(shardings, None))
    scalars = (jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_))
    return step.lower(like, batch, key, *scalars).compile()


class _Feed:
    """Global batches from `start` on, made and sent to the devices in a thread, two steps ahead. Has no state
    to save."""

    def __init__(self, run: Resolved, sharding, start: int):
        rows, micro_batches = run.config.data.global_batch_size, run.config.train.accumulation_steps

        def make(step):
            return make_global_batch(
                lambda indices: run.batches.rows(step * rows + indices), sharding, micro_batches, rows // micro_batches
            )

        self._make, self._next, self._last = make, start, run.steps

    def __enter__(self):
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "feed")
        self._ahead = []
        self._fill()
        return self

    def __exit__(self, *_):
        self._thread.shutdown(cancel_futures=True)

    def _fill(self):
        while len(self._ahead) < 2 and self._next < self._last:
            self._ahead.append(self._thread.submit(self._make, self._next))
            self._next += 1

    def __next__(self):
        batch = self._ahead.pop(0).result()
        self._fill()
        return batch


class _Silent:
    """A stream that shows nothing."""

    def write(self, text):
        pass

    def flush(self):
        pass

    def isatty(self):
        return False

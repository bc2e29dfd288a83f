"""Training without gradients: n-gram models are counted from the batches that a run of the trainer would see.

The run directory has the contents that lmjax.trainer gives it. A stopped run counts from the beginning again.
"""

import contextlib
import dataclasses
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from lmjax import flops, run_record
from lmjax.checkpoint import Checkpoints, kept_steps
from lmjax.distributed import StopRequest
from lmjax.errors import InputError
from lmjax.metrics import MetricsWriter, Progress
from lmjax.models import ngram
from lmjax.resolve import Resolved
from lmjax.sharding import check_split, make_mesh
from lmjax.trainer import DONE, PREEMPTED, claimed
from lmjax.validation import Validation, summarise


def train(run: Resolved, run_dir: pathlib.Path, show_progress: bool = True, keep: bool = False) -> int:
    """Count a run's n-grams, evaluate and save the model; return the exit code.

    Args:
        run, run_dir, show_progress, keep: as for lmjax.trainer.train.

    Raises:
        InputError: as lmjax.trainer.train; several processes; no n-gram of the highest order is frequent enough.
    """
    if jax.process_count() > 1:
        raise InputError(f"model.family 'ngram' is counted by one process, got {jax.process_count()}; start one")
    check_split(run.model, "ngram", run.lengths, make_mesh(run.config.mesh))
    with claimed(run, run_dir, keep) as status:
        if status is None:
            return DONE
        status.write("running", step=0)
        return _train(run, run_dir, status, Progress(run.steps, None, show=show_progress))


def _train(run, run_dir, status, progress) -> int:
    config, derived, began = run.config, run.derived, time.monotonic()
    validation = Validation(run.data, run.objective, config, run.model, make_mesh(config.mesh))
    spaced, every = kept_steps(config.checkpoint, run.steps), config.evaluation.every_steps
    checkpoints = Checkpoints(run_dir / "checkpoints", config.checkpoint.keep, run.run_id, spaced)
    writer = MetricsWriter(run_dir, 0, config.metrics, note=progress.note)
    counter = ngram.Counter(config.model.ngram_order, config.model.vocab_size, run_dir)
    with contextlib.closing(checkpoints), writer, StopRequest() as stop:
        for step in range(1, run.steps + 1):
            counter.add(_rows(run, step - 1))
            seconds = (time.monotonic() - began) / step
            line = {
                "step": step,
                "tokens": round(step * derived["tokens_per_step"]),
                "flops": step * derived["flops_per_step"],
                "tokens_per_second": derived["tokens_per_step"] / seconds,
            }
            left = {"flops_per_second": line["flops"] / step / seconds, "eta_seconds": (run.steps - step) * seconds}
            status.beat(step=step, tokens_per_second=line["tokens_per_second"], **left)
            progress.update({**line, **left})
            if step == run.steps or step in spaced or (every and step % every == 0):
                params = None  # before the next ones take their memory
                params, counted, orders = _estimate(run, counter)
                evaluation = validation.evaluate(params)
                found = {"n_total": counted.derived["n_total"], "validation_loss": evaluation["loss"]}
                if evaluation["bits_per_byte"] is not None:
                    found["validation_bits_per_byte"] = evaluation["bits_per_byte"]
                writer.write({**line, **found})
                if step == run.steps or step in spaced:
                    checkpoints.save(step, {"params": params})
            if step < run.steps and stop.at(step):
                status.write("preempted", step=step)
                progress.note(f"asked to stop at step {step}; the same command counts again from the beginning")
                return PREEMPTED
        checkpoints.wait()
    replaced = [str(facts["order"]) for facts in orders if facts["fallback"]]
    if replaced:
        progress.note(
            f"too few counts for the discounts of order {', '.join(replaced)}; they are {ngram.FALLBACK} instead"
        )
    record = run_record.read_json(run_dir / "config.json") or {}
    run_record.write_json(run_dir / "config.json", {**record, "derived": counted.derived})  # N is known now
    facts = {
        "schedule_complete": True,
        "seed": config.train.seed,
        "tokens_per_second": line["tokens_per_second"],
        "orders": orders,
    }
    summarise(counted, run_dir, evaluation, validation, status, progress, facts)
    return DONE


def _rows(run, step):
    rows = run.config.data.global_batch_size
    return run.batches.rows(step * rows + np.arange(rows))


def _estimate(run: Resolved, counter: ngram.Counter):
    """(params, the run with the number of stored parameters, facts about each order)"""
    model, derived = run.config.model, run.derived
    rows, counts = counter.counts()
    params, orders = ngram.estimate(rows, counts, model.vocab_size, model.ngram_min_count, np.float32, counter.folder)
    n, tokens = ngram.stored(params), derived["tokens"]
    found = {**flops.table_counts(n), "tokens_per_param": tokens / n, "flops_6nd": 6 * n * tokens}
    return jax.tree.map(jnp.asarray, params), dataclasses.replace(run, derived={**derived, **found}), orders


def calibrate(run: Resolved, seconds: float) -> dict[str, float]:
    """Time the counting of batches and an evaluation, as `lmjax.sweeps.plan.calibrate` does for other models."""
    counter = ngram.Counter(run.config.model.ngram_order, run.config.model.vocab_size)
    began, steps = time.monotonic(), 0
    while steps < run.steps and (time.monotonic() - began < seconds or steps < 3):
        counter.add(_rows(run, steps))
        steps += 1
    params = _estimate(run, counter)[0]
    step = (time.monotonic() - began) / steps
    validation = Validation(run.data, run.objective, run.config, run.model, make_mesh(run.config.mesh))
    return {"startup": 0.0, "step": step, "slots": 1, "evaluation": validation.seconds(params, seconds)}

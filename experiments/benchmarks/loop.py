"""How much time does the training loop itself take per step?

1000 steps of lmjax's loop around a step that computes nothing: schedule, arguments, reports, a metrics line every 10
steps, polls for a request to stop. "loop" takes empty batches from the feed's thread; "loop and data" takes batches of
8 rows of 16 tokens from the pipeline, which that thread makes while a real step runs. An accelerator waits for the host
only if a step is shorter than these times.

Command:  python experiments/benchmarks/loop.py [--rounds 5]
Time:     half a minute.
Expected: loop: at most 0.15 s of CPU time per 1000 steps, i.e. 150 us a step.
Result:   2026-11-22, busy machine, 2 cores, CPU time: loop 0.071 s, 0.48 of the goal; loop and data 1.47 s
"""

import argparse
import contextlib
import functools
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np

from lmjax import config as configs
from lmjax import run_record, sharding, trainer
from lmjax.distributed import Watchdog
from lmjax.metrics import MetricsWriter, Progress
from lmjax.resolve import resolve

STEPS, GOAL = 1000, 0.15  # seconds
SETTINGS = {
    "data.sources": ("markov2:20000",),
    "data.seq_len": 16,
    "data.global_batch_size": 8,
    "data.max_epochs": 1000.0,
    "duration.tokens": None,
    "duration.steps": 2 * STEPS,
    "metrics.every_steps": 10,
    "checkpoint.every_seconds": None,
}


class Stop:
    """Stands for a signal after STEPS steps."""

    def at(self, polls: int) -> bool:
        return polls == STEPS


class Nothing:
    """Stands for the checkpoints of a run."""

    always = ()

    def save(self, *_, **__):
        pass

    def wait(self):
        pass


def spent(folder: pathlib.Path, data: bool = False) -> tuple[float, float]:
    """Returns (CPU seconds of all threads, wall seconds) of 1000 steps.

    Args:
        folder: an empty one, for the run's metrics.
        data: take batches from the data pipeline.
    """
    run = resolve(configs.load(str(pathlib.Path(__file__).parents[2] / "configs" / "default.py"), SETTINGS))
    writer, progress = MetricsWriter(folder, 0), Progress(run.steps, None, show=False)
    status = run_record.Status(folder, run.steps)
    made = trainer.Member(run, None, Nothing(), writer, progress, status, Watchdog(print), {}, 0, Stop())
    report = jax.numpy.ones(len(trainer.REPORT))
    rows, mesh = run.config.data.global_batch_size, sharding.make_mesh(run.config.mesh)
    if data:
        make = functools.partial(trainer._batch, run, mesh)
    else:
        make = lambda step: np.zeros(rows)  # noqa: E731
    with contextlib.closing(sharding.prefetch(make, range(run.steps))) as batches:
        cpu, wall = time.process_time(), time.perf_counter()
        code = made.train(lambda state, *_: (state, report), {}, batches)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert code == trainer.PREEMPTED and len(run_record.read_metrics(writer.path)) == STEPS // 10
    return cpu, wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="the best one counts")
    rounds = parser.parse_args().rounds
    for name, data in (("loop", False), ("loop and data", True)):
        best = [min(times) for times in zip(*(_round(data) for _ in range(rounds)), strict=True)]
        ratio = "" if data else f", {best[0] / GOAL:.2f} of the goal of {GOAL} s"
        print(f"{name}: {STEPS} steps take {best[0]:.3f} s of CPU time, {best[1]:.3f} s of wall time{ratio}")
    return 0


def _round(data):
    with tempfile.TemporaryDirectory() as folder:
        return spent(pathlib.Path(folder), data)


if __name__ == "__main__":
    sys.exit(main())

"""Writing metrics.jsonl (always) and a profiler's trace (optional), and the progress line.

Reading is run_record's; copies of metrics.jsonl for other programs are lmjax/trackers.py's.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmjax import trackers
from lmjax.errors import InputError
from lmjax.format import count, duration, quantity
from lmjax.run_record import read_metrics, replace_file


class MetricsWriter:
    """Appends one line per step to metrics.jsonl; after a resume, lines from the restored step on are dropped first.

    Args:
        run_dir: the run's directory.
        step: the restored step; its line and later ones will be written again.
        settings: section metrics of the config, whose trackers get the lines as well; None: no trackers.
        record: of the restored checkpoint, with what `synced` returned when it was saved.
        note: called with a sentence if lines that were there then are missing now.

    Attributes:
        lost: number of lines that are missing from the file, over all attempts.
    """

    def __init__(
        self,
        run_dir: pathlib.Path,
        step: int,
        settings: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] = {},  # noqa: B006 - never written to
        note: Callable[[str], None] = print,
    ):
        self.path = run_dir / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] < step]
        missing = max(record.get("metrics_lines", 0) - len(kept), 0)
        if missing:
            note(
                f"warning: {self.path} has lost {missing} of the {record['metrics_lines']} lines before step {step}; "
                "training continues, curves of this run are incomplete"
            )
        self.lines, self.lost = len(kept), record.get("metrics_lines_lost", 0) + missing
        self.last_step = kept[-1]["step"] if kept else -1
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self.file = open(self.path, "a", encoding="utf8")  # noqa: SIM115 - open while the run lasts
        self.copies = trackers.start(settings, run_dir, step, note) if settings else []
        for line in kept:  # a tracker skips those it has
            self._copy(line)

    def write(self, record: dict) -> None:
        """Append a record; its "step" must exceed that of the previous record."""
        if record["step"] <= self.last_step:
            raise ValueError(f"metrics of step {record['step']} came after step {self.last_step}; steps must increase")
        self.last_step = record["step"]
        self.lines += 1
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        self._copy(record)

    def _copy(self, record):
        for copy in self.copies:
            copy.write(record)

    def synced(self, step: int) -> dict[str, int]:
        """Flush metrics.jsonl to disk; return its line counts for the record of a checkpoint at `step`."""
        os.fsync(self.file.fileno())
        return {"metrics_lines": self.lines - (self.last_step == step), "metrics_lines_lost": self.lost}

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self.file.close()
        for copy in self.copies:
            copy.close(failed=error is not None)


def check_profile(profile: tuple[int, int], done: int, steps: int) -> None:
    """Raise InputError unless a run of so many steps, of which `done` are saved, takes the (first, last) step yet."""
    first, last = profile
    if not done < first <= last <= steps:
        raise InputError(
            f"--profile: expected FIRST:LAST with {done} < FIRST <= LAST <= {steps} (this run has {steps} steps, of "
            f"which {done} are done), got {first}:{last}"
        )


@contextlib.contextmanager
def traced(step_function: Callable, done: int, first: int, last: int, folder: pathlib.Path) -> Iterator[Callable]:
    """Yield the step function of a run, with steps `first` to `last` traced by jax.profiler.

    Args:
        step_function: (state, ...) -> (state, ...); the program is the same.
        done: number of steps before its first call.
        first, last: steps, counted from 1 as in metrics.jsonl.
        folder: for the trace, which TensorBoard's profile plug-in, XProf and Perfetto can show.
    """
    import jax

    step = done

    def call(state, *inputs):
        nonlocal step
        step += 1
        if step == first:
            jax.block_until_ready(state)  # the steps before it are not traced
            jax.profiler.start_trace(folder)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            result = step_function(state, *inputs)
        if step == last:
            jax.block_until_ready(result)
            jax.profiler.stop_trace()
        return result

    try:
        yield call
    finally:
        if first <= step < last:  # the run was stopped or failed
            jax.profiler.stop_trace()


class Progress:
    """The progress line: step, tokens, loss, tokens/s, FLOP/s, MFU where the peak FLOP/s is known, ETA.

    On a terminal one line is rewritten; elsewhere (a log file), and for a run with a name, which is one of several, a
    line is printed at most every `seconds`.
    """

    def __init__(
        self,
        steps: int,
        peak_flops: float | None,
        stream=None,
        show: bool = True,
        name: str = "",
        seconds: float = 10.0,
    ):
        self.steps, self.peak_flops, self.show = steps, peak_flops, show
        self.stream = sys.stderr if stream is None else stream
        self.interactive = self.stream.isatty() and not name
        self.name, self.seconds = name, seconds
        self.printed = 0.0

    def update(self, record: dict) -> None:
        """Show a metrics record (keys as in metrics.jsonl, plus "flops_per_second" and "eta_seconds")."""
        last = record["step"] == self.steps
        if not last and time.monotonic() - self.printed < (0.1 if self.interactive else self.seconds):
            return
        self.printed = time.monotonic()
        parts = [self.name] if self.name else []
        parts += [
            f"step {record['step']}/{self.steps} ({100 * record['step'] / self.steps:.0f}%)",
            f"tokens {count(record['tokens'])}",
            *([f"train loss {record['loss']:.4f}"] if "loss" in record else []),  # counting has none
            f"{count(record['tokens_per_second'])} tok/s",
            f"{quantity(record['flops_per_second'], 'FLOP/s')}",
        ]
        if self.peak_flops:
            parts.append(f"MFU {100 * record['flops_per_second'] / self.peak_flops:.1f}%")
        if "validation_loss" in record:
            parts.append(f"validation loss {record['validation_loss']:.4f}")
        parts.append(f"ETA {duration(record['eta_seconds'])}")
        self._print("  ".join(parts), "\n" if last or not self.interactive else "")

    def note(self, text: str) -> None:
        """Print a message on a separate line."""
        self._print(text, "\n")

    def _print(self, text, end):
        if self.show:
            self.stream.write(("\r\x1b[K" if self.interactive else "") + text + end)
            self.stream.flush()

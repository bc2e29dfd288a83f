"""Learning-rate schedules: each a pure function of the step, in Python floats.

The value is an argument of the compiled step, so runs that differ only in schedule or length share one executable.
"""

import math
from collections.abc import Callable

from ml_collections import ConfigDict

from lmjax.errors import InputError, nearest
from lmjax.registry import Registry, taking


def make_schedule(config: ConfigDict, learning_rate: float, steps: int) -> Callable[[int], float]:
    """Returns step -> learning rate, for steps 0 .. steps - 1.

    Warm-up is linear and reaches the peak at step `warmup` (step 0 uses peak / (warmup + 1)). Then:
        constant      peak
        cosine        peak to final_fraction x peak at the last step, half a cosine
        linear        the same, a straight line
        inverse_sqrt  peak sqrt((warmup + 1) / (step + 1))
        wsd           peak until the last decay_fraction of all steps (at least one), then to final_fraction x peak,
                      straight or 1 - sqrt(progress) (warm-up, stable, decay; arXiv 2405.18392)

    Args:
        config: the schedule section.
        learning_rate: the peak.
        steps: length of the run, in optimizer steps.

    Raises:
        InputError: unknown name; warm-up and decay longer than the run.

    Example: linear, peak 1, 11 steps, no warm-up, final_fraction 0: step 5 -> 0.5, step 10 -> 0.
    """
    if config.name not in SCHEDULES:
        raise InputError(f"unknown schedule.name {config.name!r}{nearest(config.name, SCHEDULES)}")
    return SCHEDULES[config.name](config, learning_rate, steps)


def decay_steps(config: ConfigDict, steps: int) -> int:
    """Returns the length of the decay at the end of a run of `steps` steps; 0 for schedules other than wsd."""
    return min(max(round(config.decay_fraction * steps), 1), steps - 1) if config.name == "wsd" else 0


def _built_in(config, learning_rate, steps):
    warmup = round(config.warmup_fraction * steps) if config.warmup_steps is None else config.warmup_steps
    decay = decay_steps(config, steps)
    if warmup + decay > steps:
        raise InputError(
            f"schedule: {warmup} warm-up and {decay} decay steps do not fit the run's {steps}; "
            "set schedule.warmup_steps, schedule.decay_fraction or the duration"
        )

    name, final, shape = config.name, config.final_fraction, config.decay_shape  # a ConfigDict is slow to read

    def schedule(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / (warmup + 1)
        if name == "constant":
            return learning_rate
        if name == "inverse_sqrt":
            return learning_rate * math.sqrt((warmup + 1) / (step + 1))
        start, last = (steps - decay if name == "wsd" else warmup), steps - 1
        if name == "wsd" and start >= last:  # a decay of one step reaches the final rate in it
            progress = float(step >= start)
        else:
            progress = min(max((step - start) / max(last - start, 1), 0.0), 1.0)
        if name == "cosine":
            return learning_rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
        fall = math.sqrt(progress) if name == "wsd" and shape == "1-sqrt" else progress
        return learning_rate * (1 - (1 - final) * fall)

    return schedule


# name -> (schedule section, peak, steps) -> (step -> learning rate)
SCHEDULES: dict[str, Callable[[ConfigDict, float, int], Callable[[int], float]]] = Registry(
    "schedule",
    dict.fromkeys(("constant", "cosine", "linear", "inverse_sqrt", "wsd"), _built_in),
    taking("config", "learning_rate", "steps"),
)

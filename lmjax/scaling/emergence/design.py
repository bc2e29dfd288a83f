"""Which tasks a planned ladder can decide, from the evaluations of a pilot and before any of it is trained.

The planned ladder spans the pilot's: its curves are the pilot's, interpolated, with the noise of the planned numbers of
seeds and items. A task is decidable if the planned ladder can tell whether the rise of the hard metric is sharp, and,
where it is, whether the smooth metric's is: by its width, or by a break test (breaks.test) with enough power for a
break as sharp as the hard metric's. These are the conditions of classify.py; the last one, that the smooth metrics
explain the jump, is left to the runs.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lmjax.errors import InputError
from lmjax.evals.metrics import floor
from lmjax.scaling.emergence import breaks, curves, noise, null, sharpness
from lmjax.scaling.emergence.curves import FEWEST_POINTS, SMOOTH_METRICS, error_of, limits
from lmjax.scaling.resample import generator, t_errors

FEWEST_OF_PILOT = 3  # points, between which its curves are interpolated
FACTORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # by which seeds or items are multiplied until a task is decidable


@dataclasses.dataclass(frozen=True)
class Design:
    """A planned ladder: points over the span of the pilot, seeds of each point, items of each task."""

    points: int
    seeds: int
    items: int


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a design can say about a task.

    share: planned 10-90 % rise of the hard metric over the ladder. power: of the break test. reason: why the task is
    not decidable; "" where it is. seeds, items: the least number of one of them, the other as planned, with which it
    is; None where FACTORS[-1] times as many are too few, or none are needed.
    """

    task: str
    share: float
    power: float
    reason: str
    seeds: int | None = None
    items: int | None = None


def plan(
    table,
    items,
    design: Design,
    tasks: Sequence[str] = (),
    x: str = "C",
    stated=None,
    simulations: int = 200,
    seed: int = 0,
) -> list[Planned]:
    """Estimates for each task whether a planned ladder can decide it.

    Args:
        table, items, x: evaluations of the pilot, as in curves.select; stated: noise over seeds, as in noise.stand_in.
        design: the planned ladder. tasks: names; () for all with a hard and a smooth metric.
        simulations: simulated ladders per estimate.

    Raises:
        InputError: as curves.select; a design of fewer points than a verdict needs; the noise over seeds is unknown.
    """
    for name, least in (("points", FEWEST_POINTS), ("seeds", 1), ("items", 1)):
        if getattr(design, name) < least:
            raise InputError(f"planned {name}: expected {least} or more, got {getattr(design, name)}")
    frame = curves.read(table).reset_index(drop=True)
    known = [task for (task, _, _), kinds in curves.tasks_of(frame).items() if all(kinds)]
    found = []
    for task in tasks or known:
        chosen = curves.select(frame, task, x, items)
        if len(chosen.points) < FEWEST_OF_PILOT:
            raise InputError(f"{task}: expected a pilot of {FEWEST_OF_PILOT} points or more, got {len(chosen.points)}")
        chosen = noise.stand_in(chosen, stated or {}, noise.checkpoints(curves.scaled(frame, x)[0], task))
        if not chosen.repeats and not all(name in chosen.noise for name in chosen.pair):
            raise InputError(
                f"{task}: expected a pilot whose noise over seeds is known, got one seed per point; train a second "
                "seed of one point, or state it, as in --noise exact_match=0.05,log_likelihood_per_token=0.1"
            )
        found.append(_planned(chosen, design, simulations, seed))
    return found


def check(found: Sequence[Planned], design: Design, least: int | None = None) -> None:
    """Refuses a design that decides fewer than `least` tasks (None: all).

    Raises:
        InputError: naming each undecidable task with the seeds or items it takes.
    """
    least, open_ = len(found) if least is None else least, [made for made in found if made.reason]
    if len(found) - len(open_) >= least:
        return
    needs = "; ".join(f"{made.task}: {made.reason}: {_remedy(made)}" for made in open_)
    raise InputError(
        f"expected a ladder that can decide {least} of {len(found)} tasks, got {len(found) - len(open_)} with "
        f"{design.points} points, {design.seeds} seeds and {design.items} items: {needs}"
    )


def _remedy(made):
    ways = [f"{number} {name}" for name, number in (("seeds", made.seeds), ("items", made.items)) if number]
    most = "more points, or another difficulty, since the noise is not the limit"
    return f"plan {' or '.join(ways)}" if ways else f"plan {most}"


def _planned(chosen, design, simulations, seed) -> Planned:
    drawn = null.draw(chosen, simulations, seed)
    pilot = {}
    for name in chosen.pair:
        of_run, of_mean = null.variances(chosen, drawn, name)
        pilot[name] = error_of(name, chosen.points[name]), of_run, of_mean * chosen.n
    at = np.linspace(*chosen.progress[[0, -1]], design.points)
    share, power, reason = _judge(chosen, pilot, at, design, simulations, seed)
    needs: dict[str, int | None] = {"seeds": None, "items": None}
    for name in needs if reason else ():
        for factor in FACTORS[1:]:
            number = factor * getattr(design, name)
            if not _judge(chosen, pilot, at, dataclasses.replace(design, **{name: number}), simulations, seed)[2]:
                needs[name] = number
                break
    return Planned(chosen.task, share, power, reason, **needs)


def _judge(chosen, pilot, at, design, simulations, seed) -> tuple[float, float, str]:
    """The share of the hard metric's rise, the power of the break test, and why the task is undecidable, or ""."""
    values, errors, rng = {}, {}, generator(seed + 4)
    for name, (error, of_run, of_item) in pilot.items():
        values[name] = np.interp(at, chosen.progress, sharpness.rising(-error))
        own = np.sqrt(np.maximum(of_run / design.seeds, of_item / design.items))
        errors[name] = np.maximum(np.interp(at, chosen.progress, own), 1e-5 * np.ptp(error) + 1e-12)
        if limits(name) == (0.0, 1.0):
            least = [floor(-value, design.items * design.seeds) for value in values[name]]
            errors[name] = np.maximum(errors[name], least)
    df = max(design.points * (design.seeds - 1), 1)
    rises = {}
    for name, value in values.items():
        resampled = value + t_errors(rng, errors[name], df, simulations)
        rises[name] = sharpness.measure(at, value, resampled)
    hard, smooth = (rises[name] for name in chosen.pair)
    first = chosen.pair[0]
    if not hard.rise_low > 0:
        return hard.share, math.nan, f"{first} of the pilot does not rise by more than its uncertainty"
    if hard.verdict == "undecided":
        return hard.share, math.nan, f"the 10-90 % rise of {first} is not clearly below or above half of the ladder"
    if hard.verdict == "smooth":
        return hard.share, math.nan, ""
    name = chosen.pair[1]
    test = breaks.test(
        at,
        -values[name],
        errors[name],
        df,
        middle=(hard.start + hard.end) / 2,
        width=hard.width,
        simulations=simulations,
        seed=seed,
        metric=name,
        error=SMOOTH_METRICS[name].unit,
    )
    if smooth.verdict == "smooth" or test.power >= breaks.ENOUGH_POWER:
        return hard.share, test.power, ""
    return hard.share, test.power, f"power is only {test.power:.0%} for a break as sharp as {first}'s"

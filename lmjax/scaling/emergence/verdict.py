"""From a task's curves to a verdict: a sentence with its numbers. Draws nothing, reads no run.

    sharp in the metric only   the hard metric's 10-90 % rise takes less than half of the ladder; the task's own loss
                               does not: no law with a break beats a power law, and one so sharp would have been found
    sharp in the loss too      the loss is as sharp, and a law with a break predicts left-out sizes twice as well as a
                               power law, and better than noise around one explains
    smooth in both             the hard metric's rise takes more than half of the ladder
    not decidable from these runs   the reason is named

What is meant by sharp: sharpness.py; by a break: breaks.py; by "what per-token success predicts": null.py. Papers:
arXiv:2206.07682 (emergent abilities), 2304.15004 (an effect of the metric), 2403.15796 (against the loss), 2303.13506
(sharp in the loss of each task, smooth on average).
"""

import dataclasses
import hashlib
import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.emergence import breaks, curves, null, resample, sharpness
from lmjax.scaling.render import short

METRIC_ONLY = "sharp in the metric only"
LOSS_TOO = "sharp in the loss too"
SMOOTH = "smooth in both"
UNDECIDED = "not decidable from these runs"
FEWEST_SIZES = 5  # a law with a break has four parameters
FEWEST_REPEATS = 3  # seeds beyond the first, over all sizes: below, the noise is unknown


@dataclass(frozen=True)
class Emergence:
    """The verdict on one task and everything needed to judge and draw it.

    verdict: one of the four. reasons: why it is not decidable; else empty. sentence: the verdict with its numbers.
    levels: a row per size: N, D, C, loss, x, seeds, held_out; hard, hard_low, hard_high; smooth, smooth_low,
        smooth_high; null, null_low, null_high, deviation, deviation_low, deviation_high, sampled, censored (nan and
        False where there is no p^L).
    cells: a row per run and step: run_id, step, seed, x, hard, smooth, held_out.
    rise, smooth_rise: of the hard metric and of the smooth one. null: against p^L; None, and `no_null` says why.
    broken: the break test of the smooth metric, None below five sizes; others: p-values of the other smooth metrics.
    excluded: rows left out, with `reason`. data_hash: of the cells' values.
    """

    task: str
    shots: int
    family: str
    semantics: str
    x: str
    hard: str
    smooth: str
    verdict: str
    reasons: tuple[str, ...]
    sentence: str
    levels: tuple[dict, ...]
    cells: tuple[dict, ...]
    n: int
    chance: float
    rise: sharpness.Rise
    smooth_rise: sharpness.Rise
    null: null.NullTest | None
    no_null: str
    broken: breaks.BreakTest | None
    others: dict[str, float]
    excluded: tuple[dict, ...]
    conventions: dict[str, str]
    warnings: tuple[str, ...]
    draws: int
    level: float
    seed: int
    data_hash: str

    def to_dict(self) -> dict:
        """The result as plain lists, dicts, numbers and words, for JSON; nan becomes None."""
        return _plain(dataclasses.asdict(self))


def verdict(
    table, task: str, *, x: str = "C", items=None, draws: int = 400, level: float = 0.95, seed: int = 0, **which
):
    """Judges whether a task's rise is in the metric or in the loss.

    Args:
        table, task, x, items: as in curves.select, which also takes `which`: hard, smooth, shots, family, incomplete.
        draws: of the bootstrap over seeds and items, and simulations of each null.
        level: of the intervals.
        seed: of all of it.

    Returns:
        Emergence. Raises InputError as curves.select does.

    Example:
        >>> import pandas
        >>> rows = [dict(run_id=f"{c}-{s}", task="sum", metric=m, value=v, n=500, chance=0.0, seed=s, C=10.0**c,
        ...              standard_error=0.01, answer_tokens=4) for c in (12, 13, 14) for s in (0, 1)
        ...         for p in [1 - 10 ** (3 - c / 4)] for m, v in (("exact_match", p**4), ("token_accuracy", p))]
        >>> result = verdict(pandas.DataFrame(rows), "sum")
        >>> result.verdict, result.reasons
        ('not decidable from these runs', ('3 sizes; at least 5 are needed',))
    """
    chosen = curves.select(table, task, x, items, **which)
    drawn = resample.draw(chosen, draws, seed)
    rise, smooth_rise = (_rise(chosen, drawn, name, level) for name in (chosen.hard, chosen.smooth[0]))
    against = null.test(chosen, drawn, draws, level, seed)
    broken, others = _breaks(chosen, drawn, rise, draws, seed)
    word, reasons = _decide(chosen, drawn, rise, smooth_rise, broken, level)
    made = Emergence(
        task=task,
        shots=chosen.shots,
        family=chosen.family,
        semantics=chosen.semantics,
        x=x,
        hard=chosen.hard,
        smooth=chosen.smooth[0],
        verdict=word,
        reasons=tuple(reasons),
        sentence="",
        levels=_level_rows(chosen, drawn, against, level),
        cells=_cell_rows(chosen),
        n=chosen.n,
        chance=chosen.chance,
        rise=rise,
        smooth_rise=smooth_rise,
        null=against,
        no_null=null.reason_without(chosen),
        broken=broken,
        others=others,
        excluded=tuple(chosen.excluded.to_dict("records")),
        conventions=chosen.conventions,
        warnings=chosen.warnings,
        draws=draws,
        level=level,
        seed=seed,
        data_hash=_hash(chosen),
    )
    return dataclasses.replace(made, sentence=sentence(made))


def _rise(chosen, drawn, name, level):
    values, draws = chosen.levels[name].to_numpy(float), drawn.levels[name]
    if name in curves.SMOOTH:
        values, draws = -curves.error_of(name, values), -curves.error_of(name, draws)
    if chosen.span == 0:
        return sharpness.Rise(*[math.nan] * 8, 0.0, math.nan, 0.0, 0.0)
    return sharpness.measure(chosen.progress, values, draws, level)


def _breaks(chosen, drawn, rise, draws, seed):
    """The break test of the first smooth metric, and the p-values of the others."""
    df = int((chosen.seeds - 1).sum())
    if len(chosen.levels) < FEWEST_SIZES or df < FEWEST_REPEATS or not math.isfinite(rise.width):
        return None, {}
    tests = {
        name: breaks.test(
            chosen.progress,
            curves.error_of(name, chosen.levels[name]),
            resample.level_errors(chosen, drawn, name),
            df,
            middle=(rise.start + rise.end) / 2,
            width=rise.width,
            simulations=draws,
            seed=seed,
            metric=name,
            error=curves.SMOOTH[name].error,
            power=name == chosen.smooth[0],
        )
        for name in chosen.smooth
    }
    first = tests.pop(chosen.smooth[0])
    return first, {name: test.p_value for name, test in tests.items()}


def _decide(chosen, drawn, rise, smooth_rise, broken, level) -> tuple[str, list[str]]:
    reasons = _impossible(chosen, drawn, rise, smooth_rise, level)
    if reasons:
        return UNDECIDED, reasons
    if rise.verdict == "undecided":
        return UNDECIDED, [
            f"the rise of {chosen.hard} takes {_share(rise)} of the ladder: neither below nor above {sharpness.SHARP:g}"
        ]
    in_loss = broken.better and smooth_rise.verdict == "sharp"
    if rise.verdict == "smooth":
        if in_loss:
            return UNDECIDED, [f"{chosen.smooth[0]} is sharp where {chosen.hard} is not"]
        return SMOOTH, []
    if in_loss:
        return LOSS_TOO, []
    if smooth_rise.verdict == "smooth" or (not broken.better and broken.found >= breaks.ENOUGH_POWER):
        return METRIC_ONLY, []
    if broken.better:
        return UNDECIDED, [
            f"{chosen.smooth[0]} has a break, but its rise takes {_share(smooth_rise)} of the ladder: not surely below "
            f"{sharpness.SHARP:g}"
        ]
    return UNDECIDED, [
        f"no break is seen in {chosen.smooth[0]}, but one as sharp as that of {chosen.hard} would be found in "
        f"{broken.found:.0%} of such ladders only"
    ]


def _impossible(chosen, drawn, rise, smooth_rise, level) -> list[str]:
    """Reasons why these runs cannot decide, whatever the truth."""
    reasons, sizes = [], len(chosen.levels)
    if sizes < FEWEST_SIZES:
        reasons.append(f"{sizes} size{'s' * (sizes > 1)}; at least {FEWEST_SIZES} are needed")
    repeats = int((chosen.seeds - 1).sum())
    if repeats < FEWEST_REPEATS and sizes >= FEWEST_SIZES:
        many = "one seed per size" if not repeats else f"{repeats} repeats over seeds"
        reasons.append(f"{many}: the spread over seeds is unknown")
    if sizes < FEWEST_SIZES:
        return reasons
    values, step = chosen.levels[chosen.hard].to_numpy(float), 1 / chosen.n
    lowest = np.quantile(drawn.levels[chosen.hard], (1 - level) / 2, axis=0)
    if values.max() <= chosen.chance + step or lowest.max() <= chosen.chance:
        reasons.append(
            f"{chosen.hard} is at its floor everywhere: at most {values.max():.3g}, chance {chosen.chance:.3g}, "
            f"1/n {step:.2g}"
        )
    elif values.min() >= 1 - step:
        reasons.append(f"{chosen.hard} is at its ceiling everywhere: at least {values.min():.3g}")
    elif not (rise.rise > 2 * step and rise.rise_low > 0):
        reasons.append(f"{chosen.hard} does not rise by more than its uncertainty")
    elif not smooth_rise.rise_low > 0:
        reasons.append(f"{chosen.smooth[0]} does not improve by more than its uncertainty")
    return reasons


def _share(rise):
    return f"{rise.share:.2f} [{rise.share_low:.2f}, {rise.share_high:.2f}]"


def sentence(made: Emergence) -> str:
    """The verdict with its numbers, in words for people."""
    first, last = made.levels[0], made.levels[-1]
    head = f"{made.task}: {made.verdict}"
    if made.reasons:
        head += f" ({'; '.join(made.reasons)})"
    parts = [
        f"{head}. Over {len(made.levels)} sizes ({made.x} = {_scale(made, first)} to {_scale(made, last)}, "
        f"{len(made.cells)} runs) {made.hard} goes from {first['hard']:.3f} to {last['hard']:.3f}"
    ]
    if math.isfinite(made.rise.width):
        bound = " at most" if made.rise.steps < 1 else ""
        parts[0] += f", 10-90 % of it within{bound} {made.rise.width:.2f} decades, {_share(made.rise)} of the ladder"
    if math.isfinite(made.smooth_rise.width):
        parts.append(f"{made.smooth} takes {_share(made.smooth_rise)}")
    if made.broken:
        parts.append(
            f"leaving sizes out, a law with a break errs {_times(made.broken.ratio)} than a power law "
            f"(p = {made.broken.p_value:.2g}; a break as sharp as the metric's is found in "
            f"{made.broken.found:.0%} of simulations)"
        )
        found = made.broken.laws.get("break", {})
        if found.get("converged"):
            place = 10 ** (found["middle"] * (-1 if made.x == "loss" else 1))
            parts.append(f"the break lies at {made.x} = {_scale(made, {'x': place})}")
    return "; ".join(parts) + ". " + _null_words(made)


def _scale(made, row):
    return {"C": f"{row['x']:.2g}", "loss": f"{row['x']:.3f}"}.get(made.x, short(row["x"]))


def _times(ratio):
    if 0.95 < ratio < 1.05:
        return "no more or less"
    return f"{ratio:.2g} times less" if ratio >= 1 else f"{1 / ratio:.2g} times more"


def _null_words(made):
    if made.null is None:
        return f"No p^L: {made.no_null}."
    test = made.null
    if not math.isfinite(test.p_value):
        return f"p^L with L = {test.length:.2g} and {made.hard} both lie below 1/n = {1 / made.n:.2g} everywhere."
    worst, share = test.worst, made.level
    explained = f"explains {max(test.explained, 0):.0%} of the variation of {made.hard}"
    if not math.isfinite(test.explained):
        explained = f"beside a constant {made.hard}"
    return (
        f"p^L with L = {test.length:.2g} {explained}; largest deviation "
        f"{test.deviation[worst]:+.3f} [{test.low[worst]:+.3f}, {test.high[worst]:+.3f}] ({share:.0%}), "
        f"p = {test.p_value:.2g} for independent tokens."
    )


def _level_rows(chosen, drawn, against, level) -> tuple[dict, ...]:
    tails = [(1 - level) / 2, (1 + level) / 2]
    frame = chosen.levels[["N", "D", "C", "loss", "x", "step", "seeds", "held_out"]].copy()
    for column, name in (("hard", chosen.hard), ("smooth", chosen.smooth[0])):
        frame[column] = chosen.levels[name]
        frame[f"{column}_low"], frame[f"{column}_high"] = np.quantile(drawn.levels[name], tails, axis=0)
    for name in ("null", "null_low", "null_high", "deviation", "deviation_low", "deviation_high", "sampled"):
        frame[name] = math.nan
    frame["censored"] = False
    if against is not None:
        frame["null"], frame["sampled"], frame["censored"] = against.predicted, against.sampled, against.censored
        frame["null_low"], frame["null_high"] = np.quantile(drawn.null, tails, axis=0)
        frame["deviation"], frame["deviation_low"], frame["deviation_high"] = (
            against.deviation,
            against.low,
            against.high,
        )
    return tuple(frame.to_dict("records"))


def _cell_rows(chosen) -> tuple[dict, ...]:
    frame = chosen.cells[["run_id", "step", "seed", "N", "D", "C", "loss", "x", "held_out"]].copy()
    frame["hard"], frame["smooth"] = chosen.cells[chosen.hard], chosen.cells[chosen.smooth[0]]
    return tuple(frame.to_dict("records"))


def _hash(chosen) -> str:
    """First 16 digits of the sha256 over the sorted x and metrics of the cells: equal for equal rows in any order."""
    array = chosen.cells[["x", chosen.hard, *chosen.smooth]].to_numpy(np.float64)
    return hashlib.sha256(np.ascontiguousarray(array[np.lexsort(array.T)]).tobytes()).hexdigest()[:16]


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def analyse(table, items=None, tasks=None, x: str = "C", **settings) -> list[Emergence]:
    """Judges every task of a table, each number of shots and each family by itself.

    Args:
        table, items, x: as in `verdict`.
        tasks: names; None: all that have a hard and a smooth metric.
        settings: of `verdict`: hard, smooth, incomplete, draws, level, seed.

    Returns:
        One Emergence per task, shots and family, sorted by these.

    Raises:
        InputError: nothing to analyse; a named task has no hard or no smooth metric; as `verdict`.
    """
    frame = curves.read(table)
    found = curves.tasks_of(frame)
    wanted = set(tasks) if tasks else {task for task, _, _ in found}
    if not wanted:
        raise InputError(
            f"no task with a hard metric ({', '.join(curves.HARD)}) and a smooth one ({', '.join(curves.SMOOTH)})"
        )
    results = []
    for name in sorted(wanted):
        kinds = [(shots, family) for task, shots, family in found if task == name]
        if not kinds:
            curves.select(frame, name, x)  # says what is missing
            raise InputError(f"{name}: no row with a result in a hard and a smooth metric")
        results += [verdict(frame, name, x=x, items=items, shots=s, family=f, **settings) for s, f in kinds]
    return results

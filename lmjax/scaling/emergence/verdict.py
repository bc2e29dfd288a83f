"""From a task's curves to a verdict: a sentence with its numbers. Draws nothing, reads no run.

    sharp in the metric only   the hard metric's 10-90 % rise takes less than half of the ladder; that of the task's own
                               loss more (it may bend: a line in log scale is no power law), or no law with a break
                               beats a power law and one so sharp would have been found; and what the smooth metrics
                               predict (p^L, or a sampled answer) makes at least half of that rise at its place: else a
                               skill beside the loss may have emerged
    sharp in the loss too      the loss is as sharp, and a law with a break predicts left-out sizes twice as well as a
                               power law, and better than noise around one explains; and not surely at another place
    smooth in both             the hard metric's rise takes more than half of the ladder
    not decidable from these runs   the reason is named

What is meant by sharp: sharpness.py; by a break: breaks.py; by what the smooth metrics predict: null.py. Papers:
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
from lmjax.scaling.emergence.columns import HARD, error_of, read
from lmjax.scaling.emergence.columns import SMOOTH as METRICS
from lmjax.scaling.emergence.words import plural, sentence, share

METRIC_ONLY = "sharp in the metric only"
LOSS_TOO = "sharp in the loss too"
SMOOTH = "smooth in both"
UNDECIDED = "not decidable from these runs"
FEWEST_SIZES = 5  # a law with a break has four parameters
NO_RISE = sharpness.Rise(*[math.nan] * 8, 0.0, math.nan, 0.0, 0.0)
SEEDS_APART = 0.5  # of the whole rise
FEWEST_REPEATS = 3  # seeds beyond the first, over all sizes: below, the noise is unknown


@dataclass(frozen=True)
class Emergence:
    """The verdict on one task and everything needed to judge and draw it.

    verdict: one of the four. reasons: why it is not decidable; else empty. sentence: the verdict with its numbers.
    levels: a row per size: N, D, C, loss, x, seeds, held_out; hard, hard_low, hard_high; smooth, smooth_low,
        smooth_high; null, null_low, null_high, deviation, deviation_low, deviation_high, sampled, censored (nan and
        False where there is no p^L).
    cells: a row per run and step: run_id, step, seed, x, hard, smooth, held_out.
    rise, smooth_rise: of the hard metric and of the smooth one; nan, as all intervals, below five sizes (draws is 0).
    null: against p^L; None, and `no_null` says why. contained: whether the smooth metrics contain what jumps, or None.
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
    contained: null.Contained | None
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
    if len(chosen.levels) < FEWEST_SIZES:  # nothing to resample: no draw could change the answer
        reason = f"{plural(len(chosen.levels), 'size')}; at least {FEWEST_SIZES} are needed"
        parts = dict(rise=NO_RISE, smooth_rise=NO_RISE, null=None, contained=None, broken=None, others={})
        return _made(chosen, UNDECIDED, [reason], parts, None, (0, level, seed))
    drawn = resample.draw(chosen, draws, seed)
    rise, smooth_rise = (_rise(chosen, drawn, name, level) for name in (chosen.hard, chosen.smooth[0]))
    against = null.test(chosen, drawn, draws, level, seed)
    contained = null.contained(chosen, drawn, against, level)
    broken, others = _breaks(chosen, drawn, rise, draws, seed)
    word, reasons = _decide(chosen, drawn, rise, smooth_rise, broken, contained, level)
    parts = dict(rise=rise, smooth_rise=smooth_rise, null=against, contained=contained, broken=broken, others=others)
    return _made(chosen, word, reasons, parts, drawn, (draws, level, seed))


def _made(chosen, word, reasons, parts, drawn, settings) -> Emergence:
    """The result with its sentence."""
    draws, level, seed = settings
    made = Emergence(
        task=chosen.task,
        shots=chosen.shots,
        family=chosen.family,
        semantics=chosen.semantics,
        x=chosen.x,
        hard=chosen.hard,
        smooth=chosen.smooth[0],
        verdict=word,
        reasons=tuple(reasons),
        sentence="",
        levels=_level_rows(chosen, drawn, parts["null"], level),
        cells=_cell_rows(chosen),
        n=chosen.n,
        chance=chosen.chance,
        no_null=null.reason_without(chosen),
        excluded=tuple(chosen.excluded.to_dict("records")),
        conventions=chosen.conventions,
        warnings=(*chosen.warnings, *_seeds_apart(chosen)),
        draws=draws,
        level=level,
        seed=seed,
        data_hash=_hash(chosen),
        **parts,
    )
    return dataclasses.replace(made, sentence=sentence(made))


def _rise(chosen, drawn, name, level):
    values, draws = chosen.levels[name].to_numpy(float), drawn.levels[name]
    if name in METRICS:
        values, draws = -error_of(name, values), -error_of(name, draws)
    if chosen.span == 0:
        return NO_RISE
    return sharpness.measure(chosen.progress, values, draws, level)


def _breaks(chosen, drawn, rise, draws, seed):
    """The break test of the first smooth metric, and the p-values of the others."""
    df = int((chosen.seeds - 1).sum())
    if df < FEWEST_REPEATS or not math.isfinite(rise.width):
        return None, {}
    tests = {
        name: breaks.test(
            chosen.progress,
            error_of(name, chosen.levels[name]),
            resample.level_errors(chosen, drawn, name),
            df,
            middle=(rise.start + rise.end) / 2,
            width=rise.width,
            simulations=draws,
            seed=seed,
            metric=name,
            error=METRICS[name].error,
            power=name == chosen.smooth[0],
        )
        for name in chosen.smooth
    }
    first = tests.pop(chosen.smooth[0])
    return first, {name: test.p_value for name, test in tests.items()}


def _decide(chosen, drawn, rise, smooth_rise, broken, contained, level) -> tuple[str, list[str]]:
    reasons = _impossible(chosen, drawn, rise, smooth_rise, level)
    if reasons:
        return UNDECIDED, reasons
    if rise.verdict == "undecided":
        return UNDECIDED, [
            f"the rise of {chosen.hard} takes {share(rise)} of the ladder: neither below nor above {sharpness.SHARP:g}"
        ]
    in_loss = broken.better and smooth_rise.verdict == "sharp"
    if rise.verdict == "smooth":
        if in_loss:
            return UNDECIDED, [f"{chosen.smooth[0]} is sharp where {chosen.hard} is not"]
        return SMOOTH, []
    if in_loss:
        if contained is not None and contained.verdict == "no":
            return UNDECIDED, [f"{chosen.smooth[0]} is sharp, but not in what jumps: {contained.words}"]
        return LOSS_TOO, []
    if contained is not None and contained.verdict == "no":
        return UNDECIDED, [f"the smooth metric does not contain what jumps: {contained.words}"]
    if smooth_rise.verdict == "smooth" or (not broken.better and broken.found >= breaks.ENOUGH_POWER):
        reasons = _not_contained(chosen, contained)
        return (UNDECIDED, reasons) if reasons else (METRIC_ONLY, [])
    if broken.better:
        return UNDECIDED, [
            f"{chosen.smooth[0]} has a break, but its rise takes {share(smooth_rise)} of the ladder: not surely below "
            f"{sharpness.SHARP:g}"
        ]
    return UNDECIDED, [
        f"no break is seen in {chosen.smooth[0]}, but one as sharp as that of {chosen.hard} would be found in "
        f"{broken.found:.0%} of such ladders only"
    ]


def _not_contained(chosen, contained) -> list[str]:
    """Why a smooth loss does not make the jump the metric's alone: a skill beside the loss may have jumped."""
    smooth, hard = chosen.smooth[0], chosen.hard
    if contained is None:
        return [f"{smooth} is smooth, but predicts no {hard} to compare ({null.reason_without(chosen)})"]
    if contained.verdict == "undecided":
        return [f"whether the smooth metric contains what jumps is unsure: {contained.words}, at least half is needed"]
    return []


def _impossible(chosen, drawn, rise, smooth_rise, level) -> list[str]:
    """Reasons why these runs cannot decide, whatever the truth."""
    reasons, repeats = [], int((chosen.seeds - 1).sum())
    if repeats < FEWEST_REPEATS:
        many = "one seed per size" if not repeats else f"{plural(repeats, 'repeat')} over seeds"
        reasons.append(f"{many}: the spread over seeds is unknown")
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
        reasons.append(
            f"{chosen.hard} does not rise by more than its uncertainty: by {rise.rise:.3f}, at least "
            f"{rise.rise_low:+.3f}; more seeds or items tell"
        )
    elif not smooth_rise.rise_low > 0:
        reasons.append(f"{chosen.smooth[0]} does not improve by more than its uncertainty")
    return reasons


def _level_rows(chosen, drawn, against, level) -> tuple[dict, ...]:
    tails = [(1 - level) / 2, (1 + level) / 2]
    frame = chosen.levels[["N", "D", "C", "loss", "x", "step", "seeds", "held_out"]].copy()
    for column, name in (("hard", chosen.hard), ("smooth", chosen.smooth[0])):
        frame[column] = chosen.levels[name]
        ends = (math.nan, math.nan) if drawn is None else np.quantile(drawn.levels[name], tails, axis=0)
        frame[f"{column}_low"], frame[f"{column}_high"] = ends
    for name in ("null", "null_low", "null_high", "deviation", "deviation_low", "deviation_high"):
        frame[name] = math.nan
    frame["sampled"], frame["censored"] = null.sampled_levels(chosen), False
    if against is not None:
        frame["null"], frame["censored"] = against.predicted, against.censored
        frame["null_low"], frame["null_high"] = np.quantile(drawn.null, tails, axis=0)
        frame["deviation"], frame["deviation_low"], frame["deviation_high"] = (
            against.deviation,
            against.low,
            against.high,
        )
    return tuple(frame.to_dict("records"))


def _seeds_apart(chosen):
    """A warning where seeds of one size differ by half of the whole rise: their mean hides what single runs do."""
    ends = chosen.cells.groupby("level")[chosen.hard].agg(["min", "max"])
    gap = (ends["max"] - ends["min"]).to_numpy(float)
    values = chosen.levels[chosen.hard].to_numpy(float)
    if len(values) < 2 or not gap.max() > SEEDS_APART * np.ptp(values) > 0:
        return
    low, high = ends.iloc[int(gap.argmax())]
    yield (
        f"seeds of one size range from {low:.2f} to {high:.2f} in {chosen.hard}: the verdict is on their mean, and "
        "single runs may jump where it does not"
    )


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
    frame = read(table)
    found = curves.tasks_of(frame)
    wanted = set(tasks) if tasks else {task for task, _, _ in found}
    if not wanted:
        raise InputError(f"no task with a hard metric ({', '.join(HARD)}) and a smooth one ({', '.join(METRICS)})")
    results = []
    for name in sorted(wanted):
        kinds = [(shots, family) for task, shots, family in found if task == name]
        if not kinds:
            curves.select(frame, name, x)  # says what is missing
            raise InputError(f"{name}: no row with a result in a hard and a smooth metric")
        results += [verdict(frame, name, x=x, items=items, shots=s, family=f, **settings) for s, f in kinds]
    return results

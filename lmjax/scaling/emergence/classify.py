"""Classify a task's scaling curves: is a jump in the hard metric also in the model's loss, or only in the metric?

    sharp in the metric only   the hard metric's 10-90 % rise takes less than half of the ladder (range of log x);
                               the loss is smooth: its rise takes more than half of the ladder, or a break test with
                               sufficient power finds no law with a break that predicts it better than a power law;
                               and the smooth metrics (p^L or a sampled answer) explain at least half of the rise
    sharp in the loss too      the loss also rises within half of the ladder, at the same place; and a law with a break
                               has at most half the leave-one-out error of a power law, which noise does not explain
    smooth in both             the hard metric's rise takes more than half of the ladder
    not decidable from these runs   with the reason

Points that do not lie on one curve, such as models of several families, are refused first: scatter.py.
Sharpness: sharpness.py; breaks: breaks.py; predictions from smooth metrics: null.py. Papers: arXiv:2206.07682 (emergent
abilities), 2304.15004 (an effect of the metric), 2403.15796 (against the loss), 2303.13506 (sharp in the loss of each
task, smooth on average).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmjax.errors import InputError
from lmjax.format import plural, variable
from lmjax.scaling.emergence import breaks, curves, noise, null, scatter, sharpness
from lmjax.scaling.emergence.curves import (
    FEWEST_POINTS,
    FEWEST_REPEATS,
    HARD_METRICS,
    SMOOTH_METRICS,
    error_of,
    of_task,
    read,
    scaled,
)
from lmjax.scaling.prediction import plain
from lmjax.scaling.resample import percentiles
from lmjax.scaling.settings import listed, select_rows
from lmjax.scaling.table import hash_of

METRIC_ONLY = "sharp in the metric only"
LOSS_TOO = "sharp in the loss too"
SMOOTH = "smooth in both"
UNDECIDED = "not decidable from these runs"
SEEDS_APART = 0.5  # spread over seeds, as a share of the whole rise, above which to warn


@dataclass(frozen=True, kw_only=True)
class Emergence:
    """The verdict on one task and ladder, and everything needed to judge and draw it.

    ladder: description such as "over D at N = 98.6k"; "" if the table has one ladder.
    verdict: one of the four. reasons: why it is not decidable; empty otherwise. sentence: the verdict in one sentence.
    points: one row per point: N, D, C, loss, x, seeds, held_out; hard, hard_low, hard_high; smooth, smooth_low,
        smooth_high; null (p^L), null_low, null_high, deviation, deviation_low, deviation_high, sampled, censored (nan
        and False if there is no p^L).
    cells: one row per run and step: run_id, step, seed, x, hard, smooth, held_out.
    rise, smooth_rise: the rises of the hard and of the smooth metric. With fewer than five points, these and all
        intervals are nan, and resamples is 0.
    null: test against p^L, or None with the reason in `no_null`. explained: how much of the jump the smooth metrics
        explain, or None. broken: break test of the smooth metric, or None; others: p-values of the other smooth
        metrics. seed_spread: largest max - min of the hard metric over the seeds of a point.
    excluded: rows left out, with `reason`. data_hash: hash of the cells' values.
    mixed: test of the scatter around a monotone curve; None with fewer than five points. remarks: for an undecided
        verdict, sentences on what these runs do show.
    hard, smooth: names of the metrics; "" if the task has none.
    """

    task: str
    ladder: str
    shots: int
    family: str
    semantics: str
    x: str
    hard: str
    smooth: str
    verdict: str
    reasons: tuple[str, ...]
    points: tuple[dict, ...]
    cells: tuple[dict, ...]
    n: int
    chance: float
    rise: sharpness.Rise = sharpness.Rise()
    smooth_rise: sharpness.Rise = sharpness.Rise()
    null: null.NullTest | None
    no_null: str
    explained: null.Explained | None = None
    broken: breaks.BreakTest | None = None
    others: dict[str, float] = field(default_factory=dict)
    seed_spread: float
    excluded: tuple[dict, ...]
    conventions: dict[str, str]
    warnings: tuple[str, ...]
    resamples: int
    confidence: float
    seed: int
    data_hash: str
    mixed: scatter.Scatter | None = None
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The task with its ladder and its number of shots."""
        shots = f"{self.shots}-shot" if self.shots else ""
        return ", ".join(word for word in (self.task, shots, self.ladder) if word)

    @property
    def seed_rises(self) -> dict[float, float]:
        """Share of the ladder that the hard metric's 10-90 % rise takes in the runs of each seed that has every point.

        The verdict is on the mean over seeds, which bends where seeds jump at places of their own.

        Example: seeds that step at one of five equal distances, each at another: 0.16 each, and more for their mean.
        """
        found, sign = {}, -1 if self.x == "loss" else 1
        for number in dict.fromkeys(row["seed"] for row in self.cells if row["seed"] == row["seed"]):
            runs = [row for row in self.cells if row["seed"] == number]
            if self.hard and len(runs) == len(self.points):
                at = sign * np.log10([row["x"] for row in runs])
                ends = sharpness.crossings(at, np.array([row["hard"] for row in runs]))
                found[number] = float(np.ptp(ends) / np.ptp(at))
        return found

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        head = f"{self.name}: {self.verdict}: "
        if self.reasons:
            return f"{head}{'; '.join(self.reasons)}."
        text = f"{head}{self.hard} rises within {self.rise.share:.0%} of the ladder"
        if self.verdict == METRIC_ONLY and self.smooth_rise.verdict != "smooth":
            text += f", no break is detected in {self.smooth}"
        else:
            text += f", {self.smooth} within {self.smooth_rise.share:.0%}"
        if self.verdict == LOSS_TOO:
            text += f", where a law with a break has {self.broken.ratio:.2g}x lower leave-one-out error"
        if self.verdict == METRIC_ONLY and math.isfinite(self.explained.share):
            text += f", and {self.explained.source} explains {self.explained.share:.0%} of the rise"
        return f"{text}."

    def rows(self) -> list[dict]:
        """Returns the table of the verdict: one row per quantity, with value, low, high and note as text."""
        first, last = self.points[0], self.points[-1]
        ladder = f"{plural(len(self.points), 'point')}, {plural(len(self.cells), 'run')}"
        span = f"{self.x} = {variable(self.x, first['x'])} to {variable(self.x, last['x'])}, {ladder}"
        rows = []
        for kind, name, text in (("hard", self.hard, ".3f"), ("smooth", self.smooth, ".3g")):
            note = f"{name}; {span}" if kind == "hard" or not self.hard else name
            if name:
                rows.append(_row(f"{kind} metric", f"{first[kind]:{text}} to {last[kind]:{text}}", note=note))
        for kind, rise in (("hard", self.rise), ("smooth", self.smooth_rise)):
            if math.isfinite(rise.width) and not (self.mixed and self.mixed.mixed):
                bound = "at most " * (rise.steps < 1)
                note = f"10-90 %, share of the ladder; {bound}{rise.width:.2f} decades"
                rows.append(_row(f"rise, {kind} metric", rise.share, rise.share_low, rise.share_high, note))
        if self.explained is not None and math.isfinite(self.explained.share) and self.rise.rise_low > 0:
            made = self.explained
            rows.append(_row("rise explained", made.share, made.low, made.high, f"by {made.source}", "{:.0%}".format))
        if self.null is not None and math.isfinite(self.null.p_value):
            test, worst = self.null, self.null.worst
            known = f", R^2 {test.r_squared:.2f}" if math.isfinite(test.r_squared) else ""
            note = f"largest; L = {test.length:.2g}, p = {test.p_value:.2g}{known}"
            ends = (test.low[worst], test.high[worst])
            rows.append(_row("deviation from p^L", test.deviation[worst], *ends, note, "{:+.3f}".format))
        if self.broken is not None:
            note = f"error of a power law / of a law with a break, p = {self.broken.p_value:.2g}"
            rows.append(_row("leave-one-out ratio", self.broken.ratio, note=note))
            note = f"for a break {_sharp_as(self.hard)}"
            rows.append(_row("power of the test", self.broken.power, note=note, text="{:.0%}".format))
            found = self.broken.laws.get("break", {})
            if found.get("converged"):
                place = 10 ** (found["middle"] * (-1 if self.x == "loss" else 1))
                wide = "; wider than half of the ladder" * (self.smooth_rise.verdict == "smooth")
                at = f"{self.x} = {variable(self.x, place)}"
                rows.append(_row("place of the break", at, note=f"of the smooth metric{wide}"))
        if self.mixed is not None and math.isfinite(self.mixed.ratio):
            note = f"of {self.mixed.metric} around any rising curve, over its noise; p = {self.mixed.p_value:.2g}"
            rows.append(_row("scatter", self.mixed.ratio, note=note))
        if self.resamples and self.hard and len(self.cells) > len(self.points):
            if shares := [share for share in self.seed_rises.values() if math.isfinite(share)]:
                sharp = f"{sum(share < sharpness.SHARP for share in shares)} of {plural(len(shares), 'seed')} sharp"
                note = f"10-90 %, hard metric, of each seed alone: median, least and most; {sharp}"
                rows.append(_row("rise, single seeds", np.median(shares), min(shares), max(shares), note))
            rows.append(_row("spread over seeds", self.seed_spread, note="of the hard metric, largest at one point"))
        return rows

    def to_dict(self) -> dict:
        """Returns the result and its sentence as JSON types; nan becomes None."""
        return plain(self) | {"sentence": self.sentence}


def _sharp_as(hard):
    return "as sharp as the hard metric's" if hard else "within half of the ladder"


def _row(quantity, value, low=math.nan, high=math.nan, note="", text="{:.2f}".format):
    ends = [text(float(end)) if math.isfinite(end) else "" for end in (low, high)]
    shown = value if isinstance(value, str) else text(float(value))
    return {"quantity": quantity, "value": shown, "low": ends[0], "high": ends[1], "note": note}


def classify(
    table,
    task: str,
    *,
    x: str = "C",
    items=None,
    resamples: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
    ladder: str = "",
    refused: str = "",
    stated: Mapping[str, float] | None = None,
    checkpoints: Mapping[str, Mapping] | None = None,
    **which,
) -> Emergence:
    """Judges whether the rise of a task is only in the metric or also in the loss.

    Args:
        table, task, x, items, **which: as in curves.select; which: shots, family, incomplete. If the
            task has only a hard or only a smooth metric, the result has `remarks` on it.
        resamples: number of bootstrap resamples over seeds and items, and of simulations of each null hypothesis.
        ladder: description of the table's ladder. refused: the reason why its runs are not one ladder, if so.
        stated, checkpoints: noise over seeds for points with one seed, as in noise.stand_in; None: from this table.

    Raises:
        InputError: as curves.select.

    Example:
        >>> import pandas
        >>> rows = [dict(run_id=f"{c}-{s}", task="sum", metric=m, value=v, n=500, chance=0.0, seed=s, C=10.0**c,
        ...              standard_error=0.01, answer_tokens=4) for c in (12, 13, 14) for s in (0, 1)
        ...         for p in [1 - 10 ** (3 - c / 4)] for m, v in (("exact_match", p**4), ("token_accuracy", p))]
        >>> result = classify(pandas.DataFrame(rows), "sum")
        >>> result.verdict, result.reasons
        ('not decidable from these runs', ('3 points; at least 5 are needed',))
    """
    chosen = curves.select(table, task, x, items, both=False, one_ladder=not refused, **which)
    checkpoints = noise.checkpoints(scaled(table, x)[0], task) if checkpoints is None else checkpoints
    chosen = noise.stand_in(chosen, stated or {}, checkpoints)
    if refused or len(chosen.points) < FEWEST_POINTS:  # no resample could change the verdict
        why = refused or f"{plural(len(chosen.points), 'point')}; at least {FEWEST_POINTS} are needed"
        drawn, resamples, judged = None, 0, {"verdict": UNDECIDED, "reasons": (why,), "null": None}
    else:
        drawn = null.draw(chosen, resamples, seed)
        judged = _judge(chosen, drawn, resamples, confidence, seed)
    seeds = chosen.cells.groupby("point")[chosen.metrics[0]].agg(["min", "max"])
    spread = (seeds["max"] - seeds["min"]).to_numpy(float)
    copied = ("task", "shots", "family", "semantics", "x", "hard", "n", "chance", "conventions")
    return Emergence(
        **{name: getattr(chosen, name) for name in copied},
        ladder=ladder,
        **judged,
        smooth=chosen.pair[1],
        points=_point_rows(chosen, drawn, judged["null"], confidence),
        cells=_cell_rows(chosen),
        no_null=null.reason_without(chosen),
        seed_spread=float(spread.max()),
        excluded=tuple(chosen.excluded.to_dict("records")),
        warnings=(*chosen.warnings, *_seeds_apart(chosen, seeds, spread)),
        resamples=resamples,
        confidence=confidence,
        seed=seed,
        data_hash=hash_of(chosen.cells[["x", *chosen.metrics]]),
    )


def _judge(chosen, drawn, resamples, confidence, seed) -> dict:
    """Fields of the result: the verdict, its reasons, and the tests behind it."""
    mixed = scatter.test(chosen, drawn, seed)
    rise, smooth_rise = (_rise(chosen, drawn, name, confidence) for name in chosen.pair)
    against = null.test(chosen, drawn, resamples, confidence, seed)
    explained = null.explained(chosen, drawn, against, confidence)
    apart = _not_one(chosen, mixed, rise)
    broken, others = (None, {}) if apart else _breaks(chosen, drawn, rise, resamples, seed)
    word, reasons = _decide(chosen, drawn, rise, smooth_rise, broken, explained, apart, confidence)
    undecided = word == UNDECIDED and not apart
    return {
        "verdict": word,
        "reasons": tuple(reasons),
        "rise": rise,
        "smooth_rise": smooth_rise,
        "null": against,
        "explained": explained,
        "broken": broken,
        "others": others,
        "mixed": mixed,
        "remarks": tuple(_remarks(chosen, rise, smooth_rise, broken)) if undecided else (),
    }


def _rise(chosen, drawn, name, confidence):
    if not name:
        return sharpness.Rise()
    values, resampled = chosen.points[name].to_numpy(float), drawn.points[name]
    if name in SMOOTH_METRICS:
        values, resampled = -error_of(name, values), -error_of(name, resampled)
    if not np.ptp(chosen.progress):
        return sharpness.Rise()
    return sharpness.measure(chosen.progress, values, resampled, confidence)


def _breaks(chosen, drawn, rise, resamples, seed):
    """Returns the break test of the first smooth metric, and the p-values of the others with known noise.

    Without a hard metric, the power is that for the widest break that counts as sharp, in the middle of the ladder.
    """
    if chosen.hard:
        middle, width = (rise.start + rise.end) / 2, rise.width
    else:
        middle, width = chosen.progress[[0, -1]].mean(), sharpness.SHARP * float(np.ptp(chosen.progress))
    own = chosen.repeats >= FEWEST_REPEATS
    known = [name for name in chosen.smooth if own or name in chosen.noise]
    if not known or known[0] != chosen.smooth[0] or not width > 0:
        return None, {}
    df = chosen.repeats if own else chosen.df
    tests = {
        name: breaks.test(
            chosen.progress,
            error_of(name, chosen.points[name]),
            null.point_errors(chosen, drawn, name),
            df,
            middle=middle,
            width=width,
            simulations=resamples,
            seed=seed,
            metric=name,
            error=SMOOTH_METRICS[name].unit,
            estimate_power=name == chosen.smooth[0],
        )
        for name in known
    }
    first = tests.pop(chosen.smooth[0])
    return first, {name: test.p_value for name, test in tests.items()}


def _decide(chosen, drawn, rise, smooth_rise, broken, explained, apart, confidence) -> tuple[str, list[str]]:
    """Returns (verdict, reasons); reasons are empty unless the verdict is UNDECIDED."""
    reasons = apart or _impossible(chosen, drawn, rise, smooth_rise, confidence)
    if reasons:
        return UNDECIDED, reasons
    hard, smooth, unclear = chosen.hard, chosen.smooth[0], f"not clearly below or above {sharpness.SHARP:g}"
    if rise.verdict == "undecided":
        return UNDECIDED, [f"the 10-90 % rise of {hard} takes {_share(rise)} of the ladder: {unclear}"]
    in_loss = broken.better and smooth_rise.verdict == "sharp"
    if rise.verdict == "smooth":
        return (UNDECIDED, [f"{smooth} is sharp where {hard} is not"]) if in_loss else (SMOOTH, [])
    if explained is not None and explained.verdict == "no":
        reason = (
            f"{smooth} is sharp, but at a different place" if in_loss else "the smooth metrics do not explain the jump"
        )
        return UNDECIDED, [f"{reason}: {explained.text}"]
    if in_loss:
        return LOSS_TOO, []
    if smooth_rise.verdict == "smooth" or (not broken.better and broken.power >= breaks.ENOUGH_POWER):
        # a smooth loss does not suffice: the jump may be in a separate skill
        if explained is None:
            reason = null.reason_without(chosen)
            return UNDECIDED, [f"{smooth} is smooth, but there is no prediction of {hard} from it ({reason})"]
        if explained.verdict == "undecided":
            return UNDECIDED, [
                f"the smooth metrics may not explain the jump: {explained.text}, at least half is needed"
            ]
        return METRIC_ONLY, []
    if broken.better:
        share = _share(smooth_rise)
        return UNDECIDED, [f"{smooth} has a break, but its 10-90 % rise takes {share} of the ladder: {unclear}"]
    return UNDECIDED, [
        f"no break detected in {smooth}, but power is only {broken.power:.0%} for a break as sharp as {hard}'s"
    ]


def _not_one(chosen, mixed, rise) -> list[str]:
    """Returns the reasons why the runs are not one ladder with seeds; [] if they are."""
    several = chosen.seeds[chosen.point] > 1
    values = chosen.cells[(*chosen.smooth, chosen.hard)[0]]
    within = (values - values.groupby(chosen.cells["point"]).transform("mean")).to_numpy()[several]
    group, _ = scatter.differing({name: labels[several] for name, labels in chosen.groups.items()}, within)
    if group:
        kinds = sorted(set(chosen.groups[group][several]))
        return [
            f"runs of one {chosen.x} differ in {group} ({listed(kinds)}), so they are not seeds: use --by {group} or "
            f"--where {group}={kinds[0]}"
        ]
    if chosen.cells["seed"][several].isna().any():
        return [
            f"several runs have the same {chosen.x} but no seed, so they do not count as seeds; name the seed's column "
            "with --columns seed=COLUMN, or split the runs with --by COLUMN"
        ]
    if not mixed.mixed:
        return []
    seeds = _seeds(chosen, rise)
    told = (
        f"{mixed.metric} scatters {mixed.ratio:.1f} times more around any rising curve than its items "
        f"{'' if seeds else 'and seeds '}explain (p = {mixed.p_value:.2g})"
    )
    by = "add a column family and use --by family" if mixed.group == scatter.MODEL else f"use --by {mixed.group}"
    if mixed.group:
        return [f"the runs are not one ladder: {told}, and {mixed.group} accounts for {mixed.share:.0%} of it: {by}"]
    if seeds:
        return [f"{told}: either the runs differ in family or settings (add a column and use --by), or {seeds[0]}"]
    return [f"the runs are not one ladder: {told}: add a column with the family or setting of each run and use --by"]


def _seeds(chosen, rise) -> list[str]:
    """Returns which runs to add if the noise over seeds is unknown (those closest to the rise); [] if it is known."""
    unknown = [name for name in chosen.pair if name and name not in chosen.noise]
    if chosen.repeats >= FEWEST_REPEATS or not unknown:
        return []
    middle = (rise.start + rise.end) / 2 if math.isfinite(rise.start) else chosen.progress.mean()
    near = np.argsort(np.abs(chosen.progress - middle), kind="stable")[: FEWEST_REPEATS - chosen.repeats]
    many = f"{plural(chosen.repeats, 'repeat')} over seeds" if chosen.repeats else "one seed per point"
    places = ", ".join(variable(chosen.x, float(chosen.points["x"][g])) for g in np.sort(near))
    sd = ",".join(f"{name}=SD" for name in unknown)
    return [
        f"{many}: the spread over seeds is unknown; add a run with another seed (column seed) at {chosen.x} = "
        f"{places}, or at least 4 late checkpoints of a run (column step), or state the standard deviation, as in "
        f"--noise {sd}"
    ]


def _remarks(chosen, rise, smooth_rise, broken):
    """Yields what undecided runs do show: place and width of the rises, and the break test."""
    sign = -1 if chosen.x == "loss" else 1
    half = sharpness.SHARP * float(np.ptp(chosen.progress))
    for name, made in zip(chosen.pair, (rise, smooth_rise), strict=True):
        if name and math.isfinite(made.width) and made.rise_low > 0:
            start, end = (variable(chosen.x, 10 ** (sign * at)) for at in (made.start, made.end))
            wide = f"{'at most ' * (made.steps < 1)}{made.width:.2f} decades"
            wide += f" [{made.low:.2f}, {made.high:.2f}]" if made.high > made.low else " (its noise is unknown)"
            steep = {"sharp": "steeper than", "smooth": "no steeper than", "undecided": "not clearly steeper than"}
            yield (
                f"{name} does 10-90 % of its {'rise' if name == chosen.hard else 'improvement'} between {chosen.x} = "
                f"{start} and {end}, {wide}: {steep[made.verdict]} a logistic curve that takes half of the ladder "
                f"({half:.2f} decades)"
            )
    if broken is not None:
        found = "a law with a break is better" if broken.better else "no break is detected"
        yield (
            f"{broken.metric}: {found} (leave-one-out ratio {broken.ratio:.2g}, p = {broken.p_value:.2g}, power "
            f"{broken.power:.0%} for a break {_sharp_as(chosen.hard)})"
        )


def _share(rise):
    """Returns a width as a share of the ladder, with its interval, as text."""
    return f"{rise.share:.2f} [{rise.share_low:.2f}, {rise.share_high:.2f}]"


def _impossible(chosen, drawn, rise, smooth_rise, confidence) -> list[str]:
    """Returns the reasons why no verdict is possible from these runs."""
    reasons = []
    if not chosen.smooth:
        told = f"no smooth metric, so whether the loss jumps with {chosen.hard} is unknown"
        reasons.append(f"{told}; add a likelihood of the answers, such as log_likelihood_per_token or brier")
    if not chosen.hard:
        reasons.append("no hard metric, such as exact_match or accuracy")
    reasons += _seeds(chosen, rise)
    if not chosen.hard:
        return reasons
    values, step = chosen.points[chosen.hard].to_numpy(float), 1 / chosen.n
    lowest = percentiles(drawn.points[chosen.hard], confidence)[0]
    if values.max() <= chosen.chance + step or lowest.max() <= chosen.chance:
        reasons.append(
            f"{chosen.hard} is at its floor everywhere: at most {values.max():.3g}, chance {chosen.chance:.3g}, "
            f"1/n {step:.2g}"
        )
    elif values.min() >= 1 - step:
        reasons.append(f"{chosen.hard} is at its ceiling everywhere: at least {values.min():.3g}")
    elif not (rise.rise > 2 * step and rise.rise_low > 0):
        reasons.append(
            f"{chosen.hard} does not rise by more than its uncertainty: by {rise.rise:.3f}, lower limit "
            f"{rise.rise_low:+.3f}; add seeds or items"
        )
    elif chosen.smooth and not smooth_rise.rise_low > 0:
        reasons.append(f"{chosen.smooth[0]} does not improve by more than its uncertainty")
    return reasons


def _point_rows(chosen, drawn, against, confidence) -> tuple[dict, ...]:
    frame = chosen.points[["N", "D", "C", "loss", "x", "step", "seeds", "held_out"]].copy()
    for column, name in zip(("hard", "smooth"), chosen.pair, strict=True):
        frame[column] = chosen.points[name] if name else math.nan
        ends = (math.nan, math.nan) if drawn is None or not name else percentiles(drawn.points[name], confidence)
        frame[f"{column}_low"], frame[f"{column}_high"] = ends
    for name in ("null", "null_low", "null_high", "deviation", "deviation_low", "deviation_high"):
        frame[name] = math.nan
    frame["sampled"], frame["censored"] = null.sampled_points(chosen), False
    if against is not None:
        frame["null"], frame["censored"], frame["deviation"] = against.predicted, against.censored, against.deviation
        frame["null_low"], frame["null_high"] = percentiles(drawn.predicted, confidence)
        frame["deviation_low"], frame["deviation_high"] = against.low, against.high
    return tuple(frame.to_dict("records"))


def _seeds_apart(chosen, seeds, spread):
    """Yields a warning if seeds of a point differ by over half of the whole rise: single runs may jump elsewhere."""
    values = chosen.points[chosen.metrics[0]].to_numpy(float)
    if chosen.hard and len(values) > 1 and spread.max() > SEEDS_APART * np.ptp(values) > 0:
        low, high = seeds.iloc[int(spread.argmax())]
        yield (
            f"seeds of one point range from {low:.2f} to {high:.2f} in {chosen.hard}: the verdict is on their mean, "
            "and single runs may jump where the mean does not"
        )


def _cell_rows(chosen) -> tuple[dict, ...]:
    frame = chosen.cells[["run_id", "step", "seed", "N", "D", "C", "loss", "x", "held_out"]].copy()
    for column, name in zip(("hard", "smooth"), chosen.pair, strict=True):
        frame[column] = chosen.cells[name] if name else math.nan
    return tuple(frame.to_dict("records"))


def analyse(
    table,
    items=None,
    tasks=None,
    x: str = "C",
    *,
    by: str | None = None,
    where: Mapping[str, str] | str | Sequence | None = None,
    incomplete: bool = False,
    stated: Mapping[str, float] | None = None,
    resamples: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Emergence]:
    """Judges every task of a table; each ladder, number of shots and family is judged separately.

    Args:
        table, items, x, incomplete: as in curves.select.
        tasks: names of tasks; None: all tasks with a hard metric, or if there are none, all with a smooth metric.
        by: column with one ladder per value. None: ladders are found from N and D (see curves.ladders).
        where: use only rows that meet this condition, as in settings.select_rows: column -> value, or an expression.
        stated: {metric: standard deviation over seeds} for points with one seed; None: from checkpoints, if any.
        resamples, confidence, seed: as in `classify`.

    Returns:
        One Emergence per task, ladder, shots and family, sorted by task.

    Raises:
        InputError: nothing to analyse; N and D vary independently; a named task has no known metric; as curves.select.
    """
    frame = read(table).reset_index(drop=True)
    if where:
        frame = select_rows(scaled(frame, x)[0], where, "where")[frame.columns]
    found = curves.tasks_of(frame)
    asked = set(tasks or [task for (task, _, _), (jumps, _) in found.items() if jumps] or [key[0] for key in found])
    if not asked:
        known = f"a hard metric ({', '.join(HARD_METRICS)}) or a smooth one ({', '.join(SMOOTH_METRICS)})"
        raise InputError(f"no task with {known}")
    for name in sorted(asked - {task for task, _, _ in found}):
        curves.select(frame, name, x)  # its error names what is missing
        raise InputError(f"{name}: no row with a result in a hard or a smooth metric")
    settings = {"x": x, "items": items, "incomplete": incomplete, "stated": stated}
    settings |= {"resamples": resamples, "confidence": confidence, "seed": seed}
    results, known = [], [key for key in found if key[0] in asked]
    for name, shots, family in known:
        rows = frame[of_task(frame, name, shots, family)].reset_index(drop=True)
        parts, placed = [("", np.ones(len(rows), bool))], scaled(rows, x)[0]
        near = noise.checkpoints(placed, name)
        if by is not None or x != "loss":
            try:
                parts = curves.ladders(placed, name, by, incomplete)
            except curves.NotOneLadder:
                pass  # classify raises it again
        for ladder, mask in parts:
            which = {"shots": shots, "family": family, "ladder": ladder, "checkpoints": near} | settings
            try:
                results.append(classify(rows[mask], name, **which))
            except curves.NotOneLadder as error:
                if len(known) * len(parts) == 1:
                    raise
                results.append(classify(rows[mask], name, refused=str(error), **which))
    return results

"""Scaling collapse: training curves of several sizes, normalised by their final values, and how closely they agree.

    l(x) = (L(x C_end) - L0) / (L(C_end) - L0),  x = C / C_end
    deviation(x) = sd over sizes of l(x) / mean l(x)
    noise(x) = sd over seeds of (L(x C_end) - L0) / its mean, root mean square over the sizes

arXiv:2507.02119 calls deviation < noise supercollapse: normalising by each run's own end removes its seed noise, so
curves of different sizes can differ by less than the losses of different seeds.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.scaling.columns import frame_of, need, positive, shares
from lmjax.scaling.methods.leastsq import fit_additive
from lmjax.scaling.methods.outcome import Outcome, bracket, table_text
from lmjax.scaling.methods.run_tables import by_run, incomplete
from lmjax.scaling.resample import generator, percentiles, within

WHAT = "the training curves"
RANGE = (0.1, 0.95)  # of C / C_end, in which curves are compared; at 1 all are 1 by construction
POINTS = 100
MIN_SIZES = 3
CONVENTIONS = {
    "deviation": "sd over sizes of the normalised loss over its mean",
    "noise": "sd over seeds of the loss above L0 over its mean",
}


@dataclass(frozen=True, kw_only=True)
class Collapse(Outcome):
    """Normalised curves and their spread.

    L0: irreducible loss, given or from the law of the end losses; L0_source.
    x: values of C / C_end [X]. curves: run -> l(x) [X]; sizes: run -> its size. mean: mean over sizes [X].
    deviation: relative deviation between sizes [X]; noise: between seeds [X], empty without repeats.
    score: mean deviation over x; score_interval: from resampled seeds of each size; noise_score: mean noise.
    super_share: share of x where deviation < noise (NaN without repeated seeds).
    supercollapse: whether score < noise_score; None without repeated seeds.
    """

    L0: float = math.nan
    L0_source: str = ""
    x: tuple[float, ...] = ()
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    score: float = math.nan
    score_interval: tuple[float, float] = (math.nan, math.nan)
    noise_score: float = math.nan
    super_share: float = math.nan
    supercollapse: bool | None = None

    def rows(self) -> list[dict]:
        """The normalised curves: x, the mean over sizes, deviation, noise, and the curve of each run."""
        columns = {name: getattr(self, name) for name in ("x", "mean", "deviation", "noise")} | self.curves
        columns = {name: values for name, values in columns.items() if values}
        return [dict(zip(columns, v, strict=True)) for v in zip(*columns.values(), strict=True)]

    def lines(self) -> list[str]:
        """Deviation and noise along the curves, and the scores."""
        if self.refused:
            return []
        shown = np.searchsorted(self.x, [self.x[0], 0.2, 0.5, 0.8, self.x[-1]]).clip(0, len(self.x) - 1)
        rows = [self.rows()[i] for i in sorted(set(shown.tolist()))]
        columns = [Column("x", "C / C_end", "{:.2f}".format), Column("deviation", text="{:.2%}".format)]
        columns.append(Column("noise", "noise between seeds", "{:.2%}".format, priority=1))
        return [table_text(rows, columns), f"L0 = {self.L0:.4g} ({self.L0_source}); {self.score_text()}"]

    def score_text(self) -> str:
        """The mean deviation with its interval, beside the noise between seeds."""
        noise = f"; noise between seeds {self.noise_score:.2%}" if self.noise else ""
        verdict = {True: "; supercollapse", False: "; no supercollapse", None: ""}[self.supercollapse]
        return f"mean deviation {self.score:.2%}{bracket(self.score_interval, '{:.2%}')}{noise}{verdict}"


def collapse(source, L0: float | None = None, resamples=500, confidence=0.95, seed=0) -> Collapse:
    """Normalises training curves by their final values and measures how closely they agree.

    Args:
        source: a frame or dict of curve points: run, C (FLOP; any unit that is equal in a run), loss, and N or size;
            runs of one size are taken as its seeds. schedule_complete if known.
        L0: irreducible loss; None fits L(C_end) = L0 + a C_end^-b to the end losses of at least four sizes.
        resamples, confidence, seed: bootstrap resamples of the seeds of each size behind the interval of the score
            (needs two seeds in every size; 0: no interval), confidence level, seed.

    Returns:
        Collapse; too_few_points with fewer than three sizes; not_identified or at_bound where L0 cannot be estimated.

    Raises:
        InputError: missing columns, NaN, an L0 that is not below every end loss, curves that start too late,
            incomplete schedules.

    Example (curves that collapse exactly):
        >>> x, end = (v.ravel() for v in np.meshgrid(np.linspace(0.02, 1, 50), [1e15, 1e16, 1e17]))
        >>> rows = dict(run=end, size=end, C=x * end, loss=2 + 90 * end**-0.1 * x**-0.3)
        >>> round(collapse(rows, L0=2.0).score, 3)
        0.0

    Paper: arXiv:2507.02119.
    """
    shares(confidence, resamples)
    runs, ends = _runs(source)
    sizes = {run: size for run, (size, _, _) in runs.items()}
    conventions = {"x": f"C / C_end from {RANGE[0]:g} to {RANGE[1]:g}, evenly in ln x", **CONVENTIONS}
    options = {"confidence": confidence, "sizes": sizes, "conventions": conventions}
    if len(ends) < MIN_SIZES:
        return Collapse(status="too_few_points", reasons=(f"{len(ends)} sizes, expected {MIN_SIZES}",), **options)
    irreducible, words, status = _irreducible(runs, ends, L0)
    if status != "converged":
        return Collapse(status=status, reasons=(words,), **options)
    grid, owner = np.geomspace(*RANGE, POINTS), np.searchsorted(sorted(ends), list(sizes.values()))
    reducible = np.array([np.exp(np.interp(np.log(grid), x, np.log(y - irreducible))) for _, x, y in runs.values()])
    curves = reducible / np.array([y[-1] - irreducible for _, _, y in runs.values()])[:, None]
    deviation, mean = _deviation(curves, owner)
    repeated, warnings, spread = np.bincount(owner) > 1, [], {}
    if repeated.any():
        noise = np.sqrt(np.mean([own.var(0, ddof=1) / own.mean(0) ** 2 for own in _seeds(reducible, owner)], axis=0))
        spread = {
            "noise": tuple(noise.tolist()),
            "noise_score": float(noise.mean()),
            "super_share": float((deviation < noise).mean()),
            "supercollapse": bool(deviation.mean() < noise.mean()),
        }
    else:
        warnings.append("one seed per size: no noise to compare the deviation with")
    if resamples and repeated.all():
        scores = [_deviation(curves[drawn], owner)[0].mean() for drawn in within(generator(seed), owner, resamples)]
        spread["score_interval"] = tuple(map(float, percentiles(scores, confidence)))
    elif resamples:
        warnings.append("no interval: some sizes have one seed")
    return Collapse(
        status="converged",
        warnings=tuple(warnings),
        L0=irreducible,
        L0_source=words,
        x=tuple(grid.tolist()),
        curves={run: tuple(row.tolist()) for run, row in zip(runs, curves, strict=True)},
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()),
        score=float(deviation.mean()),
        **options,
        **spread,
    )


def _runs(source):
    """Returns run -> (size, ln(C / C_end) [P], loss [P]), and size -> C_end, which all seeds of a size share."""
    frame = frame_of(source, WHAT)
    size_column = "size" if "size" in frame else "N"
    need(frame, ("run",), WHAT)
    C, loss, sizes = (positive(frame, name, WHAT) for name in ("C", "loss", size_column))
    cut = incomplete(frame, WHAT) if "schedule_complete" in frame else []
    if cut:
        raise InputError(f"{WHAT}: the schedule of {', '.join(cut[:5])} did not complete; leave these runs out")
    runs, ends = {}, {}
    for run, at in by_run(frame, C, sizes, WHAT, fewest=5).items():
        size, end = float(sizes[at[0]]), float(C[at][-1])
        x = C[at] / end
        if x[0] > RANGE[0] * (1 + 1e-9):
            raise InputError(
                f"{WHAT}: run {run} starts at C / C_end = {x[0]:.3g}; expected points from {RANGE[0]:g} on"
            )
        if abs(math.log(end / ends.setdefault(size, end))) > 0.02:
            raise InputError(f"{WHAT}: expected runs of size {size:g} to end at the same C, got {end:.4g} in run {run}")
        runs[run] = (size, np.log(x), loss[at])
    return runs, ends


def _irreducible(runs, ends, given):
    """(L0, its source or why there is none, status)."""
    lowest = min(float(loss.min()) for _, _, loss in runs.values())
    if given is not None:
        if not given < lowest:
            raise InputError(f"expected an irreducible loss below every loss, {lowest:.4g}, got {given:g}")
        return float(given), "given", "converged"
    distinct = sorted(ends)
    if len(distinct) < 4:
        return math.nan, f"L0 needs four sizes, got {len(distinct)}; pass L0=", "too_few_points"
    log_ends = [[math.log(loss[-1]) for own, _, loss in runs.values() if own == size] for size in distinct]
    loss = np.exp([np.mean(logs) for logs in log_ends])
    found = fit_additive({"C": np.array([ends[size] for size in distinct])}, loss)
    if found.reason:
        return math.nan, f"L0 from the end losses: {found.reason}; pass L0=", found.status
    value = found.params["E"]
    if not 0 <= value < lowest:
        words = f"the end losses give L0 = {value:.4g}, above a loss of {lowest:.4g}; pass L0="
        return math.nan, words, "not_identified"
    return value, f"L(C_end) = L0 + a C_end^-b over {len(distinct)} sizes", "converged"


def _seeds(rows, owner):
    """Yields the runs [seeds, X] of each size that has several."""
    return (rows[owner == g] for g, count in enumerate(np.bincount(owner)) if count > 1)


def _deviation(curves, owner):
    """Returns sd over sizes / mean [X] and the mean [X], for one run per size, averaged over the choices of that run.

    With several seeds, the variance over sizes of single runs is that of the size means plus that within sizes.
    """
    means = np.array([curves[owner == g].mean(0) for g in range(owner.max() + 1)])
    variance = means.var(0, ddof=1)
    within_sizes = [own.var(0, ddof=1) * (1 - 1 / len(own)) for own in _seeds(curves, owner)]
    if within_sizes:
        variance = variance + np.mean(within_sizes, axis=0)
    return np.sqrt(variance) / means.mean(0), means.mean(0)

"""Loss curves under any learning-rate schedule: one law in two areas of the schedule.

S1(s) = sum_{i<=s} lr_i                       forward area
m_i = decay m_{i-1} + (lr_{i-1} - lr_i), m_1 = 0
S2(s) = sum_{i<=s} m_i                        annealing area, momentum `decay` = 0.999
L(s) = L0 + A S1^-alpha - C S2                arXiv:2408.11029

The law is `annealing` in lmjax.scaling.laws; this file computes the areas of a schedule, fits whole curves, and
resamples their residuals in blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.format import number
from lmjax.scaling.columns import shares
from lmjax.scaling.laws import get_law
from lmjax.scaling.methods.leastsq import fit_law
from lmjax.scaling.methods.outcome import Outcome, intervals_of, stacked, table_text, tuples
from lmjax.scaling.prediction import Prediction
from lmjax.scaling.resample import generator, percentiles

DECAY = 0.999  # momentum of the annealing area
MIN_POINTS = 8
BLOCK = 0.1  # share of a curve: residuals of neighbouring points are correlated, so blocks are resampled


def areas(lr, decay: float = DECAY, warmup_steps: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Forward and annealing area of a schedule after every step.

    Args:
        lr: learning rate of each step, [S], >= 0.
        decay: momentum lambda of the annealing, in [0, 1).
        warmup_steps: first differences that do not count in S2: the rise of the warm-up would otherwise subtract
            about lr / (1 - decay) from S2 at all later steps.

    Returns:
        (S1, S2), float64 [S], in units of the learning rate times steps.

    Raises:
        InputError: a rate that is negative or not finite, decay outside [0, 1).

    Example (decay 0.5; the rate halves at the third step):
        >>> [v.tolist() for v in areas([1.0, 1.0, 0.5, 0.5], decay=0.5)]
        [[1.0, 2.0, 2.5, 3.0], [0.0, 0.0, 0.5, 0.75]]

    Paper: arXiv:2408.11029.
    """
    from scipy.signal import lfilter

    lr = np.asarray(lr, np.float64)
    if lr.ndim != 1 or not len(lr) or not np.isfinite(lr).all() or (lr < 0).any():
        raise InputError("expected lr as an array [S] of finite learning rates >= 0, one per step")
    if not 0 <= decay < 1 or warmup_steps < 0:
        raise InputError(f"expected 0 <= decay < 1 and warmup_steps >= 0, got {decay}, {warmup_steps}")
    falls = np.concatenate([[0.0], lr[:-1] - lr[1:]])
    falls[: warmup_steps + 1] = 0.0
    return np.cumsum(lr), np.cumsum(lfilter([1.0], [1.0, -decay], falls))


@dataclass(frozen=True)
class Curve:
    """A loss curve and its schedule: lr of every step [S]; steps [I], counted from 1, and loss [I] measured there."""

    name: str
    lr: Sequence[float]
    steps: Sequence[int]
    loss: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class AnnealingLaw(Outcome):
    """L(s) = L0 + A S1^-alpha - C S2.

    params: L0, A, alpha, C (and decay); intervals: by name. sd: standard deviation of ln loss around the law.
    residuals: curve -> ln loss - ln predicted [I]. draws: parameters of each bootstrap resample, by name.
    """

    params: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    sd: float = math.nan
    residuals: dict[str, tuple[float, ...]] = field(default_factory=dict)
    warmup_steps: int = 0
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def predict(self, lr, steps=None) -> Prediction:
        """The loss curve under a schedule.

        Args:
            lr: learning rate of every step, [S].
            steps: where to predict, counted from 1, [I]; None: all of them.

        Returns:
            Prediction [I] with the interval of the curve.

        Raises:
            InputError: the fit was refused; steps outside the schedule.
        """
        self.usable()
        s1, s2 = areas(lr, self.params["decay"], self.warmup_steps)
        at = np.arange(1, len(s1) + 1) if steps is None else np.asarray(steps, int)
        if at.min() < 1 or at.max() > len(s1):
            raise InputError(f"expected steps from 1 to {len(s1)}, got {at.min()} to {at.max()}")
        law, x = get_law("annealing"), {"S1": s1[at - 1], "S2": s2[at - 1]}
        ends = percentiles(law.predict(stacked(self.draws, 1), x), self.confidence) if self.draws else ()
        return Prediction(law.predict(self.params, x), *ends, confidence=self.confidence)

    def rows(self) -> list[dict]:
        """One row per parameter."""
        ends = {name: self.intervals.get(name, (math.nan, math.nan)) for name in self.params}
        return [{"name": n, "value": v, "low": ends[n][0], "high": ends[n][1]} for n, v in self.params.items()]

    def lines(self) -> list[str]:
        """A table of parameters, and the scatter around the law."""
        if self.refused:
            return []
        rows = self.rows()
        columns = [Column("name", "parameter", left=True), *(Column(n, text=number) for n in ("value", "low", "high"))]
        fitted = f"{sum(map(len, self.residuals.values()))} points of {len(self.residuals)} curves"
        return [table_text(rows, columns), f"L(s) = L0 + A S1^-alpha - C S2 on {fitted}; sd of ln loss {self.sd:.2g}"]


def fit_annealing(curves: Sequence[Curve], warmup_steps=0, resamples=200, confidence=0.95, seed=0) -> AnnealingLaw:
    """Fits one law to curves under one or several schedules.

    min sum (ln L(s) - ln loss)^2 over L0 >= 0, A > 0, alpha and C >= 0.

    Args:
        curves: loss curves, such as one cosine run; C is identified only if the learning rate falls somewhere.
        warmup_steps: see `areas`; also left out of the fit.
        resamples, confidence, seed: bootstrap resamples of blocks of residuals, a tenth of a curve each (0: no
            intervals), confidence level, seed.

    Returns:
        AnnealingLaw; not_identified where no rate falls or parameters are not identifiable separately, at_bound where
        alpha is at a bound or A or C is 0; L0 = 0 is a warning.

    Raises:
        InputError: losses not above 0, steps outside the schedule.

    Example:
        >>> lr = 0.5 * (1 + np.cos(np.pi * np.arange(2000) / 2000))
        >>> s1, s2 = areas(lr)
        >>> at = np.arange(100, 2001, 50)
        >>> law = fit_annealing([Curve("cosine", lr, at, (2 + 5 * s1**-0.5 - 0.001 * s2)[at - 1])], resamples=0)
        >>> [round(law.params[name], 4) for name in ("L0", "A", "alpha", "C")]
        [2.0, 5.0, 0.5, 0.001]

    Paper: arXiv:2408.11029.
    """
    shares(confidence, resamples)
    x, loss, owner = _stack(curves, warmup_steps)
    left_out = f"; the first {warmup_steps} steps are left out" if warmup_steps else ""
    conventions = {"S1": "sum of the learning rate", "S2": f"annealing area{left_out}"}
    options = {"confidence": confidence, "warmup_steps": warmup_steps, "conventions": conventions}
    if len(loss) < MIN_POINTS:
        reason = f"{len(loss)} points, expected {MIN_POINTS}"
        return AnnealingLaw(status="too_few_points", reasons=(reason,), **options)
    if not x["S2"].max() > 1e-6 * x["S1"].max():
        reason = "C: no learning rate falls before the last point, so S2 = 0 everywhere"
        return AnnealingLaw(status="not_identified", reasons=(reason,), **options)
    found = fit_law("annealing", x, loss)
    status, reason = found.status, found.reason
    if "C" in (found.at_bounds or ()) and not reason:
        status, reason = "at_bound", "C went to 0: the loss does not fall when the learning rate does"
    if reason:
        return AnnealingLaw(status=status, reasons=(reason,), **options)
    residual, draws = np.log(loss) - found.fitted, {}
    if resamples:
        inflate = math.sqrt(len(loss) / found.df)  # residuals of a fit are smaller than its errors
        draws = found.refit(found.fitted + inflate * _in_blocks(residual, owner, resamples, seed))
        draws = tuples(draws | {"decay": np.full(resamples, DECAY)})
    return AnnealingLaw(
        status="converged",
        params=found.params | {"decay": DECAY},
        intervals=intervals_of(draws, found.params, confidence),
        sd=found.sd,
        residuals={curve.name: tuple(residual[owner == i].tolist()) for i, curve in enumerate(curves)},
        draws=draws,
        warnings=(*found.warnings, *["no intervals: resamples = 0"] * (not resamples)),
        **options,
    )


def _stack(curves, warmup_steps):
    """Returns S1 and S2 by name, the loss and the curve number of every point."""
    parts = []
    for i, curve in enumerate(curves):
        steps, loss = np.asarray(curve.steps, int), np.asarray(curve.loss, np.float64)
        s1, s2 = areas(curve.lr, DECAY, warmup_steps)
        if steps.shape != loss.shape or not len(steps) or steps.min() < 1 or steps.max() > len(s1):
            raise InputError(f"curve {curve.name}: expected a loss for each step from 1 to {len(s1)}")
        if not (np.isfinite(loss).all() and (loss > 0).all()):
            raise InputError(f"curve {curve.name}: expected finite losses above 0")
        keep = (steps > warmup_steps) & (s1[steps - 1] > 0)
        at = steps[keep] - 1
        parts.append((s1[at], s2[at], loss[keep], np.full(len(at), i)))
    if not parts:
        raise InputError("expected at least one curve")
    s1, s2, loss, owner = (np.concatenate(column) for column in zip(*parts, strict=True))
    return {"S1": s1, "S2": s2}, loss, owner


def _in_blocks(residual, owner, resamples, seed):
    """Residuals resampled in blocks within each curve, [R, I], and centred."""
    rng, drawn = generator(seed), np.empty((resamples, len(residual)))
    for row in drawn:
        for i in np.unique(owner):
            own = residual[owner == i]
            length = max(1, round(BLOCK * len(own)))
            first = rng.integers(0, len(own), math.ceil(len(own) / length))
            picked = (first[:, None] + np.arange(length)).ravel()[: len(own)] % len(own)
            row[owner == i] = own[picked] - own.mean()
    return drawn

"""The critical batch size: steps against batch at equal loss, its power law in the loss, Kaplan's C_min."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.format import count
from lmjax.scaling.columns import frame_of, positive, shares
from lmjax.scaling.methods import leastsq
from lmjax.scaling.methods.outcome import Outcome, bracket, table_text
from lmjax.scaling.prediction import Prediction

WHAT = "the table of batches"
REACH = 30.0  # B_crit is searched up to this factor outside of the batches
MIN_BATCHES = 4


@dataclass(frozen=True)
class BatchCurve:
    """Steps against batch at one loss: S = S_min (1 + B_crit / B).

    loss: target loss. B_crit: tokens, with interval B_low .. B_high. S_min: minimum steps. sd: standard deviation of
    ln S around the curve. points: number of rows. reason: error message if there is no result, else empty.
    """

    loss: float
    B_crit: float = math.nan
    B_low: float = math.nan
    B_high: float = math.nan
    S_min: float = math.nan
    sd: float = math.nan
    points: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CriticalBatch(Outcome):
    """B_crit of every target loss, and the law B_crit(L) = B_star / L^(1 / alpha_B).

    curves: one per target. law: LogLaw of B_crit in the loss, None with fewer than three targets.
    B_star: tokens (B_crit at L = 1). alpha_B with its interval; NaN without a law.
    """

    curves: tuple[BatchCurve, ...] = ()
    law: leastsq.LogLaw | None = None
    B_star: float = math.nan
    alpha_B: float = math.nan
    alpha_B_interval: tuple[float, float] = (math.nan, math.nan)

    def predict(self, loss) -> Prediction:
        """B_crit in tokens at a loss (unit of the table).

        Raises:
            InputError: refused, or fewer than three targets.
        """
        if self.usable().law is None:
            raise InputError("expected three target losses for B_crit(L), got fewer; use `curves` instead")
        return self.law.at(self.confidence, loss=loss)

    def rows(self) -> list[dict]:
        """One row per target loss."""
        return [vars(curve) for curve in self.curves]

    def lines(self) -> list[str]:
        """A table of targets, and the law."""
        columns = [Column("loss", text="{:.4g}".format), Column("B_crit", text=count), Column("B_low", "low", count)]
        columns += [Column("B_high", "high", count), Column("S_min", text=count)]
        rows = [row for row in self.rows() if not row["reason"]]
        lines = [table_text(rows, columns)] * bool(rows)
        if self.law is None:
            return lines
        alpha = f"{self.alpha_B:.4f}"
        return [
            *lines,
            f"B_crit(L) = {self.B_star:.3g} / L^(1 / {alpha}), alpha_B = {alpha}{bracket(self.alpha_B_interval)}",
        ]


def critical_batch(source, confidence: float = 0.95) -> CriticalBatch:
    """Fits S = S_min (1 + B_crit / B) per target loss, then ln B_crit against ln L.

    min over (S_min, B_crit) of sum (ln S - ln S_min - ln(1 + B_crit / B))^2.

    Args:
        source: a frame or dict with loss (target), batch (tokens), steps (to reach it, each at its best learning
            rate).
        confidence: confidence level of the intervals: profile likelihood for B_crit (F distribution), Student's t for
            the law.

    Returns:
        CriticalBatch; refused where no target has four batches or all batches lie on one side of B_crit.

    Raises:
        InputError: missing columns, NaN, numbers <= 0.

    Example:
        >>> B = np.geomspace(1e4, 1e7, 7)
        >>> rows = dict(loss=3.0, batch=B, steps=1000 * (1 + 3e5 / B))
        >>> curve = critical_batch(rows).curves[0]
        >>> round(curve.B_crit), round(curve.S_min)
        (300000, 1000)

    Paper: arXiv:1812.06162, arXiv:2001.08361 (B_crit = B_star / L^(1/alpha_B)). arXiv:2410.21676 defines the critical
    batch differently: it needs 20 % more steps than linear scaling predicts.
    """
    shares(confidence, 0)
    frame = frame_of(source, WHAT)
    target, batch, steps = (positive(frame, name, WHAT) for name in ("loss", "batch", "steps"))
    rounded = np.round(np.log(target), 6)
    curves = tuple(
        _curve(float(target[at].mean()), np.log(batch[at]), np.log(steps[at]), confidence)
        for at in (np.flatnonzero(rounded == v) for v in np.unique(rounded))
    )
    good = [c for c in curves if not c.reason]
    warnings = [f"loss {c.loss:.4g} left out: {c.reason}" for c in curves if c.reason]
    options = {
        "curves": curves,
        "confidence": confidence,
        "conventions": {
            "B": "batch in the unit of the table",
            "B_crit": "at B_crit a run needs twice the minimum number of steps",
        },
    }
    if not good:
        status = "too_few_points" if all(c.points < MIN_BATCHES for c in curves) else "not_identified"
        reasons = tuple(f"loss {c.loss:.4g}: {c.reason}" for c in curves)
        return CriticalBatch(status=status, reasons=reasons, warnings=tuple(warnings), **options)
    if len(good) < 3:
        warnings.append(f"{len(good)} target losses: no law B_crit(L), which needs three")
        return CriticalBatch(status="converged", warnings=tuple(warnings), **options)
    widths = np.log([c.B_high / c.B_low for c in good])
    sd = widths if (widths > 1e-6).all() else None
    law = leastsq.fit_log_law({"loss": np.array([c.loss for c in good])}, [c.B_crit for c in good], sd)
    low, high = law.interval("loss", confidence)
    known = low * high > 0
    warnings += ["alpha_B is poorly constrained: the interval of its inverse includes 0"] * (not known)
    return CriticalBatch(
        status="converged",
        law=law,
        B_star=math.exp(law.log_k),
        alpha_B=-1 / law.exponents[0],
        alpha_B_interval=tuple(sorted((-1 / low, -1 / high))) if known else (math.nan, math.nan),
        warnings=tuple(warnings),
        **options,
    )


def _curve(loss, log_b, log_s, confidence):
    """Profiles over ln B_crit; for each value the best ln S_min is a mean."""
    from scipy.optimize import brentq
    from scipy.stats import f

    batches, df, curve = len(np.unique(log_b.round(9))), len(log_b) - 2, partial(BatchCurve, loss, points=len(log_b))

    def rest(log_crit):
        return log_s - np.logaddexp(0.0, log_crit - log_b)

    def squares(log_crit):
        return float(((rest(log_crit) - rest(log_crit).mean()) ** 2).sum())

    if batches < MIN_BATCHES:
        return curve(reason=f"{batches} batches, expected {MIN_BATCHES}")
    ends = log_b.min() - math.log(REACH), log_b.max() + math.log(REACH)
    best, side = leastsq.bracketed_minimum(squares, *ends)
    if side < 0:
        return curve(reason="not_identified: B_crit is far smaller than every batch (steps do not depend on the batch)")
    if side > 0:
        return curve(reason="not_identified: B_crit is far larger than every batch (only S_min B_crit is identified)")
    sd = math.sqrt(squares(best) / df)
    limit = squares(best) * (1 + f.ppf(confidence, 1, df) / df)
    for end, word in zip(ends, ("below", "above"), strict=True):
        if squares(end) <= limit:
            reason = f"not_identified: the interval of B_crit is open {word} the batches; add batches there"
            return curve(reason=reason, sd=sd)
    low, high = (brentq(lambda g: squares(g) - limit, *sorted((end, best))) for end in ends)
    logs = {"B_crit": best, "B_low": low, "B_high": high, "S_min": float(rest(best).mean())}
    return curve(sd=sd, **{name: math.exp(v) for name, v in logs.items()})

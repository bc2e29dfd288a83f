"""The critical batch size: steps against batch at equal loss, its power law in the loss, Kaplan's C_min."""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.methods import loglinear
from lmjax.scaling.methods.columns import frame_of, need, positive
from lmjax.scaling.methods.outcome import Outcome

WHAT = "the table of batches"
REACH = 30.0  # B_crit may lie this far outside of the batches; beyond, only a product or a constant is known
MIN_BATCHES = 4


@dataclass(frozen=True)
class BatchCurve:
    """Steps against batch at one loss: S = S_min (1 + B_crit / B).

    loss: the target. B_crit: tokens, with its interval; S_min: steps. sd: of ln S around the curve. points:
    batches; reason: why there is no result, empty if there is.
    """

    loss: float
    B_crit: float
    B_low: float
    B_high: float
    S_min: float
    sd: float
    points: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class CriticalBatch(Outcome):
    """B_crit of every target loss and the law B_crit(L) = B_star / L^(1 / alpha_B).

    curves: one a target. law: LogLaw of B_crit in loss, None with fewer than three targets.
    B_star: tokens (B_crit at L = 1). alpha_B with its interval; NaN without a law.
    """

    curves: tuple[BatchCurve, ...] = ()
    law: loglinear.LogLaw | None = None
    B_star: float = math.nan
    alpha_B: float = math.nan
    alpha_B_interval: tuple[float, float] = (math.nan, math.nan)

    def predict(self, loss) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """B_crit at a loss (unit of the table), in tokens: (value, low, high).

        Raises:
            InputError: refused, or fewer than three targets.
        """
        if self.usable().law is None:
            raise InputError("wanted three target losses for B_crit(L), got fewer; read `curves` instead")
        return self.law.at(self.level, loss=loss)


def critical_batch(source, level: float = 0.95) -> CriticalBatch:
    """Fits S = S_min (1 + B_crit / B) per target loss, then ln B_crit against ln L.

    min over (S_min, B_crit) of sum (ln S - ln S_min - ln(1 + B_crit / B))^2.

    Args:
        source: a frame or dict with loss (target), batch (tokens), steps (to reach it, each at its best learning
            rate).
        level: of the intervals: profile of the least squares for B_crit (F distribution), Student's t for the law.

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

    Paper: arXiv:1812.06162, arXiv:2001.08361 (B_crit = B_star / L^(1/alpha_B)). arXiv:2410.21676 calls critical the
    batch with 20 % more steps than linear scaling gives, another number.
    """
    if not 0 < level < 1:
        raise InputError(f"wanted 0 < level < 1, got {level}")
    frame = frame_of(source, WHAT)
    need(frame, ("loss", "batch", "steps"), WHAT)
    target, batch, steps = (positive(frame, name, WHAT) for name in ("loss", "batch", "steps"))
    rounded = np.round(np.log(target), 6)
    curves = tuple(
        _curve(float(target[at].mean()), np.log(batch[at]), np.log(steps[at]), level)
        for at in (np.flatnonzero(rounded == v) for v in np.unique(rounded))
    )
    good = [c for c in curves if not c.reason]
    options = {
        "curves": curves,
        "level": level,
        "warnings": tuple(f"loss {c.loss:.4g} left out: {c.reason}" for c in curves if c.reason),
        "conventions": {"B": "batch in the unit of the table", "B_crit": "twice the least number of steps is needed"},
    }
    if not good:
        few = all(c.points < MIN_BATCHES for c in curves)
        reasons = tuple(f"loss {c.loss:.4g}: {c.reason}" for c in curves)
        return CriticalBatch(status="too_few_points" if few else "not_identified", reasons=reasons, **options)
    return _law(good, options)


def _law(good, options):
    """ln B_crit against ln L where there are three targets."""
    if len(good) < 3:
        options["warnings"] += (f"{len(good)} target losses: no law B_crit(L), which needs three",)
        return CriticalBatch(status="converged", **options)
    widths = np.array([math.log(c.B_high / c.B_low) for c in good])
    sd = widths if np.isfinite(widths).all() and (widths > 1e-6).all() else None
    law = loglinear.fit_log_law({"loss": np.array([c.loss for c in good])}, [c.B_crit for c in good], sd)
    low, high = law.interval("loss", options["level"])
    if low * high <= 0:
        options["warnings"] += ("the losses do not fix alpha_B: the interval of the exponent reaches 0",)
        ends = (math.nan, math.nan)
    else:
        ends = tuple(sorted((-1 / low, -1 / high)))
    return CriticalBatch(
        status="converged",
        law=law,
        B_star=math.exp(law.log_k),
        alpha_B=-1 / law.exponents[0],
        alpha_B_interval=ends,
        **options,
    )


def _curve(loss, log_b, log_s, level):
    """Profile over ln B_crit: for each, ln S_min is a mean."""
    from scipy.optimize import brentq, minimize_scalar
    from scipy.stats import f

    nan, count = math.nan, len(log_b)
    if len(np.unique(log_b.round(9))) < MIN_BATCHES:
        reason = f"{len(np.unique(log_b.round(9)))} batches, wanted {MIN_BATCHES}"
        return BatchCurve(loss, nan, nan, nan, nan, nan, count, reason)

    def squares(log_crit):
        rest = log_s - np.logaddexp(0.0, log_crit - log_b)
        return float(((rest - rest.mean()) ** 2).sum())

    reach = math.log(REACH)
    ends = log_b.min() - reach, log_b.max() + reach
    grid = np.linspace(*ends, 200)
    best = int(np.argmin([squares(g) for g in grid]))
    if best in (0, len(grid) - 1):
        word = "smaller: steps do not depend on it" if best == 0 else "larger: only S_min B_crit is known"
        reason = f"not_identified: B_crit is far {word.split(':')[0]} than every batch ({word.split(': ')[1]})"
        return BatchCurve(loss, nan, nan, nan, nan, nan, count, reason)
    found = minimize_scalar(
        squares, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-10}
    )
    least, df = squares(found.x), count - 2
    sd = math.sqrt(least / df)
    limit = least * (1 + f.ppf(level, 1, df) / df)
    sides = []
    for end in ends:  # an open side stays open: the batches on that side are missing
        sides.append(brentq(lambda g: squares(g) - limit, *sorted((end, found.x))) if squares(end) > limit else nan)
    low, high = sides
    if math.isnan(low) or math.isnan(high):
        side = "below" if math.isnan(low) else "above"
        reason = f"not_identified: the interval of B_crit has no end {side} the batches; add batches there"
        return BatchCurve(loss, nan, nan, nan, nan, sd, count, reason)
    log_s_min = float((log_s - np.logaddexp(0.0, found.x - log_b)).mean())
    return BatchCurve(loss, *(math.exp(v) for v in (found.x, low, high, log_s_min)), sd, count, "")


def minimum_steps(S, B, B_crit) -> np.ndarray:
    """Steps that an unlimited batch would need: S_min = S / (1 + B_crit / B) (arXiv:2001.08361, equation 5.4).

    Args:
        S: steps taken. B: batch of the run. B_crit: critical batch at its loss, the unit of B.

    Example:
        >>> float(minimum_steps(2000, 1e6, 1e6))
        1000.0
    """
    return np.asarray(S, np.float64) / (1 + np.asarray(B_crit, np.float64) / np.asarray(B, np.float64))


def minimum_compute(C, B, B_crit) -> np.ndarray:
    """Compute that a batch far below B_crit would need: C_min = C / (1 + B / B_crit) (arXiv:2001.08361, eq. 5.5).

    Example:
        >>> float(minimum_compute(4e18, 3e6, 1e6))
        1e+18
    """
    return np.asarray(C, np.float64) / (1 + np.asarray(B, np.float64) / np.asarray(B_crit, np.float64))

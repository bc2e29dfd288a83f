"""Whole loss curves under any learning-rate schedule: one law in two areas of the schedule. Trains nothing.

S1(s) = sum_{i<=s} lr_i                       forward area
m_i = decay m_{i-1} + (lr_{i-1} - lr_i), m_1 = 0
S2(s) = sum_{i<=s} m_i                        annealing area, momentum `decay` = 0.999
L(s) = L0 + A S1^-alpha - C S2                arXiv:2408.11029
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.methods.columns import shares
from lmjax.scaling.methods.outcome import Outcome

ALPHAS = np.geomspace(0.02, 3.0, 80)
MIN_POINTS = 8
BLOCK = 0.1  # of a curve: residuals of neighbouring points share their luck, so whole blocks are resampled


def areas(lr, decay: float = 0.999, warmup_steps: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Forward and annealing area of a schedule after every step.

    Args:
        lr: learning rate of each step, [S], >= 0.
        decay: momentum lambda of the annealing, in [0, 1).
        warmup_steps: the first differences that do not count in S2: the rise of a warm-up is no annealing (the
            formula would subtract about lr / (1 - decay) from S2 for good).

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
        raise InputError("wanted a learning rate >= 0 for each step, [S]")
    if not 0 <= decay < 1 or warmup_steps < 0:
        raise InputError(f"wanted 0 <= decay < 1 and warmup_steps >= 0, got {decay}, {warmup_steps}")
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

    params: L0, A, alpha, C (and decay); intervals: by name. sd: of ln loss around the law. residuals: curve ->
    ln loss - ln predicted [I]. draws: of the resamples, by name.
    """

    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    sd: float = math.nan
    residuals: dict[str, tuple[float, ...]]
    warmup_steps: int = 0
    draws: dict[str, tuple[float, ...]]

    def predict(self, lr, steps=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The loss curve under a schedule.

        Args:
            lr: learning rate of every step, [S].
            steps: where to predict, counted from 1, [I]; None: all of them.

        Returns:
            (loss, low, high) [I]: the curve and the interval of the curve; NaN without resamples.

        Raises:
            InputError: refused; steps outside of the schedule.
        """
        self.usable()
        s1, s2 = areas(lr, self.params["decay"], self.warmup_steps)
        at = np.arange(1, len(s1) + 1) if steps is None else np.asarray(steps, int)
        if at.min() < 1 or at.max() > len(s1):
            raise InputError(f"wanted steps from 1 to {len(s1)}, got {at.min()} to {at.max()}")
        log_s1, s2 = np.log(s1[at - 1]), s2[at - 1]
        loss = _level(self.params, log_s1, s2)
        if not self.draws:
            return loss, np.full(len(at), math.nan), np.full(len(at), math.nan)
        drawn = _level({n: np.array(v)[:, None] for n, v in self.draws.items()}, log_s1, s2)
        low, high = np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return loss, low, high


def fit_annealing(
    curves: Sequence[Curve], decay=0.999, warmup_steps=0, skip=0, resamples=200, level=0.95, seed=0
) -> AnnealingLaw:
    """Fits one law to curves under one or several schedules.

    min sum (L(s) / loss - 1)^2; for each alpha the other three are linear (variable projection), so the search is
    over alpha (and over `decay` if several are given) only.

    Args:
        curves: Curves, such as one cosine run; a rate that falls somewhere is needed for C.
        decay: momentum of S2, or several to choose from by the objective.
        warmup_steps: see `areas`; also left out of the fit.
        skip: first steps that are left out besides.
        resamples: refits with blocks of residuals, a tenth of a curve each; 0: no intervals.
        level: of the intervals.
        seed: of numpy's Philox generator.

    Returns:
        AnnealingLaw; not_identified where no rate falls or L0 and A cannot be told apart, at_bound where alpha
        ends at 0.02 or 3 or C is not above 0.

    Raises:
        InputError: losses not above 0, steps outside of the schedule.

    Example:
        >>> lr = 0.5 * (1 + np.cos(np.pi * np.arange(2000) / 2000))
        >>> s1, s2 = areas(lr)
        >>> at = np.arange(100, 2001, 50)
        >>> law = fit_annealing([Curve("cosine", lr, at, (2 + 5 * s1**-0.5 - 0.001 * s2)[at - 1])], resamples=0)
        >>> [round(law.params[name], 4) for name in ("L0", "A", "alpha", "C")]
        [2.0, 5.0, 0.5, 0.001]

    Paper: arXiv:2408.11029.
    """
    shares(level, resamples)
    decays = np.atleast_1d(np.asarray(decay, np.float64))
    choices = [_stack(curves, float(d), warmup_steps, skip) for d in decays]
    options = {"level": level, "warmup_steps": warmup_steps, "conventions": _conventions(warmup_steps, skip)}
    empty = {"params": {}, "intervals": {}, "residuals": {}, "draws": {}}
    log_s1, s2, loss, owner = choices[0]
    if len(loss) < MIN_POINTS:
        reason = f"{len(loss)} points, wanted {MIN_POINTS}"
        return AnnealingLaw(status="too_few_points", reasons=(reason,), **options, **empty)
    if not any(c[1].max() > 1e-6 * np.exp(c[0].max()) for c in choices):
        reason = "C: no learning rate falls before the last point, so S2 = 0 everywhere"
        return AnnealingLaw(status="not_identified", reasons=(reason,), **options, **empty)
    found = [_project(*c[:3]) for c in choices]
    best = int(np.argmin([f["squares"] for f in found]))
    params = {name: found[best][name] for name in ("L0", "A", "alpha", "C")} | {"decay": float(decays[best])}
    log_s1, s2, loss, owner = choices[best]
    status, reason = _verdict(params, log_s1, s2)
    if reason:
        return AnnealingLaw(status=status, reasons=(reason,), **options, **empty)
    return _with_intervals(params, choices[best], [c.name for c in curves], resamples, seed, options)


def _with_intervals(params, columns, names, resamples, seed, options):
    """The law with its residuals by curve and its refits; columns: ln S1, S2, loss, number of the curve."""
    log_s1, s2, loss, owner = columns
    fitted = _level(params, log_s1, s2)
    residual = np.log(loss / fitted)
    draws = _block_draws(params["alpha"], fitted, residual, owner, (log_s1, s2), resamples, seed)
    draws |= {"decay": (params["decay"],) * resamples} if resamples else {}
    tails = [(1 - options["level"]) / 2, (1 + options["level"]) / 2]
    warnings = () if resamples else ("no intervals: resamples = 0",)
    warnings += ("L0 < 0: the curves do not show a floor",) if params["L0"] < 0 else ()
    return AnnealingLaw(
        status="converged",
        params=params,
        intervals={n: tuple(np.quantile(draws[n], tails).tolist()) for n in ("L0", "A", "alpha", "C") if draws},
        sd=math.sqrt(float(residual @ residual) / max(len(loss) - 4, 1)),
        residuals={name: tuple(residual[owner == i].tolist()) for i, name in enumerate(names)},
        draws=draws,
        warnings=warnings,
        **options,
    )


def _conventions(warmup_steps, skip):
    left_out = f"; the first {warmup_steps + skip} steps are left out" if warmup_steps + skip else ""
    return {"S1": "sum of the learning rate", "S2": f"annealing area{left_out}"}


def _stack(curves, decay, warmup_steps, skip):
    """ln S1, S2, loss and the number of the curve, of all points."""
    parts = []
    for i, curve in enumerate(curves):
        steps, loss = np.asarray(curve.steps, int), np.asarray(curve.loss, np.float64)
        s1, s2 = areas(curve.lr, decay, warmup_steps)
        if steps.shape != loss.shape or not len(steps) or steps.min() < 1 or steps.max() > len(s1):
            raise InputError(f"curve {curve.name}: wanted a loss for each step from 1 to {len(s1)}")
        if not (np.isfinite(loss).all() and (loss > 0).all()):
            raise InputError(f"curve {curve.name}: wanted finite losses above 0")
        keep = (steps > warmup_steps + skip) & (s1[steps - 1] > 0)
        at = steps[keep] - 1
        parts.append((np.log(s1[at]), s2[at], loss[keep], np.full(len(at), i)))
    if not parts:
        raise InputError("wanted at least one curve")
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _level(params, log_s1, s2):
    return params["L0"] + params["A"] * np.exp(-params["alpha"] * log_s1) - params["C"] * s2


def _project(log_s1, s2, loss, alphas=ALPHAS, tolerance=1e-11):
    """Best (L0, A, C) for each alpha of a grid, then alpha to 1e-10 between its neighbours."""
    from scipy.optimize import minimize_scalar

    shift = log_s1.mean()
    scale = max(np.abs(s2).max(), 1e-300)
    target = np.ones_like(loss)

    def solve(alpha):
        matrix = np.stack([np.ones_like(loss), np.exp(-alpha * (log_s1 - shift)), -s2 / scale], 1) / loss[:, None]
        coefficients = np.linalg.lstsq(matrix, target, rcond=None)[0]
        return float(((matrix @ coefficients - target) ** 2).sum()), coefficients

    squares = [solve(alpha)[0] for alpha in alphas]
    best = int(np.clip(np.argmin(squares), 1, len(alphas) - 2))
    around = np.log(alphas[[best - 1, best + 1]])
    options = {"xatol": tolerance}
    found = minimize_scalar(lambda v: solve(math.exp(v))[0], bounds=around, method="bounded", options=options)
    alpha = math.exp(found.x)
    least, (l0, a, c) = solve(alpha)
    return {
        "squares": least,
        "L0": float(l0),
        "A": float(a * math.exp(alpha * shift)),
        "alpha": alpha,
        "C": float(c / scale),
    }


def _verdict(params, log_s1, s2):
    if not ALPHAS[0] * 1.05 < params["alpha"] < ALPHAS[-1] / 1.05:
        return "at_bound", f"alpha ended at its bound {params['alpha']:.3g}: the curves show no power of S1"
    if params["A"] <= 0:
        return "at_bound", "A is not above 0: the loss does not fall with S1"
    if params["C"] <= 0:
        return "at_bound", "C is not above 0: the loss does not fall when the learning rate does"
    power = np.exp(-params["alpha"] * (log_s1 - log_s1.mean()))
    columns = np.stack([np.ones_like(s2), power, power * (log_s1 - log_s1.mean()), s2], 1)
    singular = np.linalg.svd(columns / np.linalg.norm(columns, axis=0), compute_uv=False)
    if singular[0] > 1e6 * singular[-1]:
        return "not_identified", "L0, A, alpha and C cannot be told apart: use points over more steps"
    return "", ""


def _block_draws(alpha, fitted, residual, owner, areas_of, resamples, seed):
    """Refits of the fitted curves plus residuals drawn in blocks from the same curve."""
    rng = np.random.Generator(np.random.Philox(seed))
    draws, near = [], alpha * np.geomspace(0.1, 10, 21)
    inflate = math.sqrt(len(residual) / max(len(residual) - 4, 1))  # residuals of a fit are smaller than its errors
    for _ in range(resamples):
        drawn = np.empty_like(residual)
        for i in np.unique(owner):
            at = np.flatnonzero(owner == i)
            length = max(1, round(BLOCK * len(at)))
            first = rng.integers(0, len(at), math.ceil(len(at) / length))
            picked = (first[:, None] + np.arange(length)).ravel()[: len(at)] % len(at)
            drawn[at] = residual[at[picked]] - residual[at].mean()
        draws.append(_project(*areas_of, fitted * np.exp(inflate * drawn), near, 1e-6))
    names = ("L0", "A", "alpha", "C")
    return {name: tuple(float(d[name]) for d in draws) for name in names} if draws else {}

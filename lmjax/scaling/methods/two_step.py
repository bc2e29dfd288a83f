"""Compute -> loss of a task -> metric of the task: two small laws in a chain, with the error of both.

    1. L = E + A C^-alpha           or  E + A N^-alpha + B D^-beta
    2. metric = floor + (ceiling - floor) / (1 + exp(k (L - L_mid)))        floor: chance

arXiv:2412.04403 fits the second step with a free floor and ceiling; here chance is known, so it is given.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law
from lmjax.scaling.methods import additive
from lmjax.scaling.methods.columns import frame_of, need, numbers, positive, shares
from lmjax.scaling.methods.outcome import Outcome
from lmjax.scaling.methods.sigmoid import fit_sigmoid, level_of, refit_sigmoid

WHAT = "the task table"
MIN_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class TwoStep(Outcome):
    """The chain of two laws.

    variables: ("C",) or ("N", "D"). loss_params: of the law power_c or chinchilla; metric_params: floor, ceiling, k,
    L_mid. loss_sd: of ln L around step 1; metric_sd: of the metric around step 2. points: rows with predicted loss
    and metric; held_out: rows with predicted, low, high, error = predicted - measured, inside, extrapolation.
    mean_held_out_error: mean |error| in the unit of the metric. draws: parameters of both steps by name.
    """

    variables: tuple[str, ...] = ()
    loss_params: dict[str, float]
    metric_params: dict[str, float]
    loss_sd: float = math.nan
    metric_sd: float = math.nan
    points: tuple[dict, ...] = ()
    held_out: tuple[dict, ...] = ()
    mean_held_out_error: float = math.nan
    resamples: int = 0
    seed: int = 0
    draws: dict[str, tuple[float, ...]]

    def predict_loss(self, **where) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step 1 alone: (task loss, low, high) at C, or at N and D."""
        x = _columns_of(self, where)
        here, drawn = _loss(self.loss_params, x), _loss(self.draws, x)
        return (here, *self._ends(drawn, here))

    def predict_metric(self, loss) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Step 2 alone: (metric, low, high) at a task loss."""
        loss = np.asarray(loss, np.float64)
        here = level_of(self.metric_params, loss)
        return (here, *self._ends(level_of(_columns(self.draws, loss.ndim), loss) if self.draws else None, here))

    def predict(self, new_run: bool = False, **where) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The metric at C, or at N and D, through both steps.

        Args:
            new_run: the interval is for the measured metric of one new run; False: of the curve.
            **where: C, or N and D; floats or arrays.

        Returns:
            (metric, low, high); NaN ends without resamples.

        Raises:
            InputError: refused, or other variables than the fit has.
        """
        x = _columns_of(self, where)
        here = level_of(self.metric_params, _loss(self.loss_params, x))
        if not self.draws:
            return (here, *self._ends(None, here))
        drawn_loss = _loss(self.draws, x)
        rng = np.random.Generator(np.random.Philox(self.seed + 1))
        if new_run:
            drawn_loss = drawn_loss * np.exp(self.loss_sd * rng.standard_normal(drawn_loss.shape))
        drawn = level_of(_columns(self.draws, drawn_loss.ndim - 1), drawn_loss)
        if new_run:
            drawn = drawn + self.metric_sd * rng.standard_normal(drawn.shape)
        return (here, *self._ends(drawn, here))

    def _ends(self, drawn, here):
        if drawn is None or not self.draws:
            return np.full(np.shape(here), math.nan), np.full(np.shape(here), math.nan)
        return np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)


def two_step(
    source, metric="metric", floor=0.0, ceiling=None, held_out=None, resamples=500, level=0.95, seed=0
) -> TwoStep:
    """Fits both steps and predicts the rows that were held out.

    Step 1 by least squares of ln L, step 2 by least squares of the metric; intervals from refits with both residuals
    resampled (a normal error of their sd, scaled by sqrt(df / chi2_df)).

    Args:
        source: a frame or dict with loss (of the task, nats), the metric (a share), and C (FLOP), or N and D.
        metric: name of the column.
        floor: the metric of guessing.
        ceiling: the best value, such as 1.0; None fits it, at most 1.
        held_out: a compute (C, or 6 N D) from which on rows are predicted and not fitted, or a mask [I].
        resamples: refits; 0: no intervals.
        level: of the intervals.
        seed: of numpy's Philox generator.

    Returns:
        TwoStep; too_few_points with fewer than five fitted rows, at_bound or not_identified where a step has no
        answer: a metric that never leaves its floor says nothing about the sigmoid.

    Raises:
        InputError: missing columns, NaN, a metric outside [0, 1], a floor above every metric.

    Example:
        >>> C = np.geomspace(1e17, 1e21, 12)
        >>> loss = 0.6 + 900 * C**-0.16
        >>> rows = dict(C=C, loss=loss, metric=0.25 + 0.7 / (1 + np.exp(5 * (loss - 1.4))))
        >>> chain = two_step(rows, floor=0.25, held_out=1e20, resamples=0)
        >>> chain.mean_held_out_error < 1e-6
        True

    Paper: arXiv:2412.04403.
    """
    shares(level, resamples)
    frame = frame_of(source, WHAT)
    need(frame, ("loss", metric), WHAT)
    variables = ("C",) if "C" in frame and not ("N" in frame and "D" in frame) else ("N", "D")
    need(frame, variables, WHAT)
    x = {name: positive(frame, name, WHAT) for name in variables}
    loss, value = positive(frame, "loss", WHAT), numbers(frame, metric, WHAT)
    _in_range(value, floor, ceiling, metric)
    compute = x["C"] if len(variables) == 1 else FLOPS_PER_PARAM_TOKEN * x["N"] * x["D"]
    out = _mask(held_out, compute)
    options = {"variables": variables, "level": level, "seed": seed, "conventions": _conventions(metric, floor)}
    kept = {name: column[~out] for name, column in x.items()}
    fitted = _fit(kept, loss[~out], value[~out], (floor, ceiling), resamples, options)
    return fitted if fitted.refused else _with_rows(fitted, x, loss, value, compute, out)


def _fit(x, loss, value, ends, resamples, options):
    """Both steps and their refits; ends: floor and ceiling."""
    empty = {"loss_params": {}, "metric_params": {}, "draws": {}}
    if len(loss) < MIN_ROWS:
        reason = f"{len(loss)} rows to fit, wanted {MIN_ROWS}"
        return TwoStep(status="too_few_points", reasons=(reason,), **options, **empty)
    first = additive.fit_additive(x, loss)
    if first.reason:
        return TwoStep(status=first.status, reasons=(f"step 1: {first.reason}",), **options, **empty)
    second = fit_sigmoid(loss, value, *ends)
    if second.reason:
        return TwoStep(status=second.status, reasons=(f"step 2: {second.reason}",), **options, **empty)
    draws, warnings = _draws(first, second, loss, resamples, options["seed"])
    return TwoStep(
        status="converged",
        loss_params={name: float(v[0]) for name, v in first.parameters().items()},
        metric_params=second.params,
        loss_sd=first.sd,
        metric_sd=second.sd,
        resamples=resamples,
        draws=draws,
        warnings=(*first.warnings, *warnings, *second.warnings),
        **options,
    )


def _in_range(value, floor, ceiling, metric):
    if (value < 0).any() or (value > 1).any():
        raise InputError(f"wanted {metric} as a share in [0, 1], got {value.min():g} to {value.max():g}")
    if not 0 <= floor < (ceiling or 1.0) <= 1:
        raise InputError(f"wanted 0 <= floor < ceiling <= 1, got {floor}, {ceiling}")
    if value.max() < floor - 0.05:
        raise InputError(f"every {metric} lies below the floor {floor:g}; is that the chance level of this task?")


def _conventions(metric, floor):
    return {"metric": f"{metric}, floor {floor:g}", "loss": "loss of the task as given in the table"}


def _mask(held_out, compute):
    if held_out is None:
        return np.zeros(len(compute), bool)
    if np.ndim(held_out) == 0:
        return compute >= float(held_out) * (1 - 1e-12)
    mask = np.asarray(held_out, bool)
    if mask.shape != compute.shape:
        raise InputError(f"wanted held_out as a compute or a mask of {len(compute)} rows, got shape {mask.shape}")
    return mask


def _columns(draws, ndim):
    return {name: np.array(v).reshape(-1, *(1,) * ndim) for name, v in draws.items()}


def _columns_of(fitted, where):
    if set(where) != set(fitted.usable().variables):
        raise InputError(f"wanted {' and '.join(fitted.variables)}, got {', '.join(where) or 'nothing'}")
    arrays = np.broadcast_arrays(*(np.asarray(where[name], np.float64) for name in fitted.variables))
    return dict(zip(fitted.variables, arrays, strict=True))


def _loss(params, x):
    """Loss of step 1: [...] for floats, [R, ...] for draws."""
    if not params:
        return None
    law = get_law(additive.LAWS[tuple(x)])
    ndim = next(iter(x.values())).ndim
    return law.level(_columns(params, ndim) if isinstance(params["E"], tuple) else params, x)


def _draws(first, second, loss, resamples, seed):
    """Refits of both steps; (draws by name, warnings)."""
    if not resamples:
        return {}, ["no intervals: resamples = 0"]
    if not (math.isfinite(first.sd) and math.isfinite(second.sd)):
        return {}, ["no intervals: as many parameters as rows, so nothing shows the noise"]
    rng = np.random.Generator(np.random.Philox(seed))

    def errors(sd, df):
        scale = np.minimum(np.sqrt(df / rng.chisquare(df, resamples)), 20.0)
        return sd * scale[:, None] * rng.standard_normal((resamples, len(loss)))

    phi = additive.refit(first, first.fitted + errors(first.sd, first.df))
    sigmoids = refit_sigmoid(second, loss, level_of(second.params, loss) + errors(second.sd, second.df))
    draws = {name: tuple(v.tolist()) for name, v in {**first.parameters(phi), **sigmoids}.items()}
    low, high = np.quantile(draws["E"], [0.025, 0.975])
    if high - low > float(np.exp(np.log(loss).min())) / 2:
        return draws, ["the floor of the loss is poorly known: its interval is wider than half of the lowest loss"]
    return draws, []


def _with_rows(fitted, where, loss, value, compute, out):
    predicted_loss = fitted.predict_loss(**where)[0]
    predicted, low, high = fitted.predict(new_run=True, **where)
    largest = compute[~out].max()
    points, held = [], []
    for i in range(len(loss)):
        row = {name: float(where[name][i]) for name in fitted.variables}
        row |= {"C": float(compute[i]), "loss": float(loss[i]), "predicted_loss": float(predicted_loss[i])}
        row |= {"metric": float(value[i]), "predicted": float(predicted[i])}
        if out[i]:
            row |= {"low": float(low[i]), "high": float(high[i]), "error": float(predicted[i] - value[i])}
            row |= {"inside": bool(low[i] <= value[i] <= high[i]) if fitted.draws else None}
            row |= {"extrapolation": float(compute[i] / largest)}
        (held if out[i] else points).append(row)
    mean = float(np.mean([abs(r["error"]) for r in held])) if held else math.nan
    return replace(fitted, points=tuple(points), held_out=tuple(held), mean_held_out_error=mean)

"""Predicts a task's metric in two steps, compute -> task loss -> metric, with the errors of both steps.

    1. L = E + A C^-alpha           or  E + A N^-alpha + B D^-beta
    2. metric = floor + (ceiling - floor) / (1 + exp(k (L - L_mid)))        floor: chance

Step 1 uses the last checkpoint of each run, step 2 the earlier ones too: many points of the sigmoid from few runs.
arXiv:2412.04403 fits the second step with a free floor and ceiling; here chance is known, so it is given.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.format import flop, number
from lmjax.scaling.columns import frame_of, numbers, positive, shares
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law
from lmjax.scaling.methods.leastsq import ADDITIVE, fit_additive, fit_sigmoid, level_of
from lmjax.scaling.methods.outcome import Outcome, stacked, table_text, tuples
from lmjax.scaling.methods.run_tables import by_run
from lmjax.scaling.prediction import Prediction
from lmjax.scaling.resample import generator, percentiles, t_errors

WHAT = "the task table"
MIN_ROWS = 5
SKIP = 0.1  # share of the compute of a run; earlier checkpoints are left out of step 2


@dataclass(frozen=True, kw_only=True)
class TwoStep(Outcome):
    """Two laws in a chain: loss from compute, metric from loss.

    variables: ("C",) or ("N", "D"). loss_params: of the law power_c or chinchilla; metric_params: floor, ceiling, k,
    L_mid. loss_sd: of ln L around step 1; metric_sd: of the metric around step 2. points: runs with predicted loss
    and metric; held_out: runs with predicted, low, high, error = predicted - measured, inside, extrapolation.
    checkpoints: run, loss and metric of the points of step 2 (smoothed), empty without intermediate checkpoints.
    mean_held_out_error: mean |error| in the unit of the metric. draws: parameters of both steps by name.
    """

    variables: tuple[str, ...] = ()
    loss_params: dict[str, float] = field(default_factory=dict)
    metric_params: dict[str, float] = field(default_factory=dict)
    loss_sd: float = math.nan
    metric_sd: float = math.nan
    points: tuple[dict, ...] = ()
    held_out: tuple[dict, ...] = ()
    checkpoints: tuple[dict, ...] = ()
    mean_held_out_error: float = math.nan
    resamples: int = 0
    seed: int = 0
    draws: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def predict(self, *, of: str = "metric", new_run: bool = False, **where) -> Prediction:
        """Predicts the metric through both steps, or one step alone.

        Args:
            of: metric | loss (of the task, step 1 alone).
            new_run: the interval is for the measurement of one new run; False: of the curve.
            **where: C, or N and D; with of="metric" also loss= alone, which predicts by step 2 only. Floats or arrays.

        Returns:
            Prediction in the shape of the variables; its interval is NaN without resamples.

        Raises:
            InputError: refused, or other variables than the fit has.
        """
        if of not in ("metric", "loss"):
            raise InputError(f"of: expected metric or loss, got {of!r}{nearest(of, ('metric', 'loss'))}")
        variables = self.usable().variables
        second_alone = of == "metric" and set(where) == {"loss"}
        if not second_alone and set(where) != set(variables):
            raise InputError(f"expected {' and '.join(variables)}, got {', '.join(where) or 'nothing'}")
        columns = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in where.values()))
        x = dict(zip(where, columns, strict=True))
        if second_alone:
            loss, drawn_loss = x["loss"], x["loss"][None]
        else:
            law = get_law(ADDITIVE[variables])
            loss = law.predict(self.loss_params, x)
            drawn_loss = law.predict(stacked(self.draws, loss.ndim), x) if self.draws else None
        here = loss if of == "loss" else level_of(self.metric_params, loss)
        if not self.draws:
            return Prediction(here, confidence=self.confidence)
        rng = generator(self.seed + 1)
        if new_run and not second_alone:
            drawn_loss = drawn_loss * np.exp(self.loss_sd * rng.standard_normal(drawn_loss.shape))
        drawn = drawn_loss
        if of == "metric":
            drawn = level_of(stacked(self.draws, drawn_loss.ndim - 1), drawn_loss)
            drawn = drawn + self.metric_sd * rng.standard_normal(drawn.shape) if new_run else drawn
        return Prediction(here, *percentiles(drawn, self.confidence), self.confidence)

    def rows(self) -> list[dict]:
        """The fitted and the held-out runs, measured and predicted."""
        return [row | {"held_out": row in self.held_out} for row in (*self.points, *self.held_out)]

    def lines(self) -> list[str]:
        """Parameters of both steps, and the held-out runs."""
        if self.refused:
            return []
        law = get_law(ADDITIVE[self.variables])
        lines = [f"step 1: {law.formula}, " + ", ".join(f"{n} = {number(v)}" for n, v in self.loss_params.items())]
        sigmoid = ", ".join(f"{n} = {number(v)}" for n, v in self.metric_params.items())
        lines.append(f"step 2: metric = floor + (ceiling - floor) / (1 + exp(k (L - L_mid))), {sigmoid}")
        if self.held_out:
            columns = [Column("C", text=flop), *(Column(n, text="{:.4f}".format) for n in ("metric", "predicted"))]
            columns += [Column(n, text="{:.4f}".format, priority=1) for n in ("low", "high", "error")]
            lines.append(table_text(self.held_out, columns))
            lines.append(f"mean |error| of held-out runs {self.mean_held_out_error:.4f}")
        return lines


def two_step(
    source, floor=0.0, ceiling=None, held_out=None, resamples=500, confidence=0.95, seed=0, smoothing=5
) -> TwoStep:
    """Fits both steps and predicts the held-out runs.

    Step 1 by least squares of ln L, step 2 by least squares of the metric; intervals from refits with both residuals
    resampled (a normal error of their sd, scaled by sqrt(df / chi2_df)). Intermediate checkpoints of a run err
    together, so with them an error of step 2 is the sum of one that a run shares, whose sd is that of the mean
    residuals of runs (df = runs - parameters), and one of the checkpoint.

    Args:
        source: a frame or dict with loss (of the task, nats), metric (a share), and C (FLOP), or N and D; with
            intermediate checkpoints also run, with C (or N and D) as of the checkpoint. The row of largest compute is
            the end of a run.
        floor: chance level of the metric.
        ceiling: the best value, such as 1.0; None fits it, at most 1.
        held_out: runs with at least this compute (C, or 6 N D) are predicted and not fitted.
        resamples, confidence, seed: bootstrap resamples (0: no intervals), confidence level, seed.
        smoothing: loss and metric of step 2 are means over this many checkpoints of a run, the last one included; 1:
            none. The first SKIP of the compute of each run is left out of step 2.

    Returns:
        TwoStep; too_few_points with fewer than five fitted runs, at_bound or not_identified if the rows do not
        constrain a step, such as a metric that stays at its floor.

    Raises:
        InputError: missing columns, NaN, a metric outside [0, 1], a floor above every metric, two rows of one run at
            the same compute.

    Example:
        >>> C = np.geomspace(1e17, 1e21, 12)
        >>> loss = 0.6 + 900 * C**-0.16
        >>> rows = dict(C=C, loss=loss, metric=0.25 + 0.7 / (1 + np.exp(5 * (loss - 1.4))))
        >>> chain = two_step(rows, floor=0.25, held_out=1e20, resamples=0)
        >>> chain.mean_held_out_error < 1e-6
        True

    Paper: arXiv:2412.04403, with its smoothing over 5 checkpoints from 10 % of a run on.
    """
    shares(confidence, resamples)
    if not (isinstance(smoothing, int) and smoothing >= 1):
        raise InputError(f"expected smoothing as a number of checkpoints >= 1, got {smoothing}")
    frame = frame_of(source, WHAT, pooled=True)
    x, loss, value = _columns(frame, floor, ceiling)
    compute = x["C"] if "C" in x else FLOPS_PER_PARAM_TOKEN * x["N"] * x["D"]
    out = compute >= (math.inf if held_out is None else held_out * (1 - 1e-12))
    runs = _runs(frame, compute, x.get("N"))
    last = np.array([rows[-1] for rows in runs.values()])
    kept = {run: rows for run, rows in runs.items() if not out[rows[-1]]}
    options = {"variables": tuple(x), "confidence": confidence, "seed": seed}
    options["conventions"] = {"metric": f"metric, floor {floor:g}", "loss": "loss of the task as given in the table"}
    steps = None
    if any(len(rows) > 1 for rows in kept.values()):
        late = [rows[compute[rows] >= SKIP * compute[rows[-1]]] for rows in kept.values()]
        steps = [_smoothed(rows, loss, value, smoothing) for rows in late]
        options["checkpoints"] = tuple(
            {"run": run, "loss": float(one), "metric": float(other)}
            for run, part in zip(kept, steps, strict=True)
            for one, other in part.T
        )
        options["conventions"]["step 2"] = (
            f"step 2 on {len(options['checkpoints'])} checkpoints of {len(kept)} runs from {SKIP:.0%} of each run on, "
            f"means of {smoothing}"
        )
    # from here on, the end of each run
    x, loss, value, compute, out = {n: v[last] for n, v in x.items()}, loss[last], value[last], compute[last], out[last]
    fitted_x = {name: column[~out] for name, column in x.items()}
    fitted = _fit(fitted_x, loss[~out], value[~out], steps, floor, ceiling, options, resamples)
    return fitted if fitted.refused else _with_rows(fitted, x, loss, value, compute, out)


def _columns(frame, floor, ceiling):
    """C, or N and D by name, the loss and the metric, [I] each, checked."""
    variables = ("C",) if "C" in frame and not ("N" in frame and "D" in frame) else ("N", "D")
    x = {name: positive(frame, name, WHAT) for name in variables}
    loss, value = positive(frame, "loss", WHAT), numbers(frame, "metric", WHAT)
    if (value < 0).any() or (value > 1).any():
        raise InputError(f"expected metric as a share in [0, 1], got {value.min():g} to {value.max():g}")
    if not 0 <= floor < (ceiling or 1.0) <= 1:
        raise InputError(f"expected 0 <= floor < ceiling <= 1, got {floor}, {ceiling}")
    if value.max() < floor - 0.05:
        raise InputError(f"every metric lies below the floor {floor:g}; set it to the task's chance level")
    return x, loss, value


def _runs(frame, compute, sizes):
    """run -> its rows by growing compute; rows without a column run are runs of their own."""
    order = np.argsort(compute, kind="stable")
    labels = frame["run"] if "run" in frame else frame.index
    size = np.ones(len(compute)) if sizes is None else sizes
    found = by_run({"run": np.asarray(labels)[order]}, compute[order], size[order], WHAT, fewest=1)
    return {run: order[rows] for run, rows in found.items()}


def _smoothed(rows, loss, value, smoothing):
    """Means [2, P] of loss and metric over the last `smoothing` checkpoints up to each."""
    totals = np.cumsum(np.stack([loss[rows], value[rows]]), axis=1)
    before = np.pad(totals, ((0, 0), (smoothing, 0)))[:, : len(rows)]
    return (totals - before) / np.minimum(np.arange(1, len(rows) + 1), smoothing)


def _fit(x, loss, value, steps, floor, ceiling, options, resamples):
    """Fits step 1 to the ends of runs, step 2 to them or to `steps` (loss and metric [2, P] of each run); refits."""
    if len(loss) < MIN_ROWS:
        reason = f"{len(loss)} {'rows' if steps is None else 'runs'} to fit, expected {MIN_ROWS}"
        return TwoStep(status="too_few_points", reasons=(reason,), **options)
    first = fit_additive(x, loss)
    if first.reason:
        return TwoStep(status=first.status, reasons=(f"step 1: {first.reason}",), **options)
    at, level = (loss, value) if steps is None else np.concatenate(steps, 1)
    second = fit_sigmoid(at, level, floor, ceiling)
    if second.reason:
        return TwoStep(status=second.status, reasons=(f"step 2: {second.reason}",), **options)
    draws, warnings, rng, metric_sd = {}, [], generator(options["seed"]), second.sd
    errors = [t_errors(rng, np.full(len(loss), first.sd), first.df, resamples)]
    if steps is None:
        errors.append(t_errors(rng, np.full(len(at), second.sd), second.df, resamples))
    else:
        owner = np.repeat(np.arange(len(steps)), [part.shape[1] for part in steps])
        df = len(steps) - len(at) + second.df
        errors.append(_run_errors(rng, level - second.fitted, owner, max(df, 1), resamples))
        metric_sd = math.sqrt(((value - level_of(second.params, loss)) ** 2).sum() / max(df, 1))
    if resamples:
        drawn = [step.refit(step.fitted + e) for step, e in zip((first, second), errors, strict=True)]
        draws = tuples(drawn[0] | drawn[1])
        low, high = np.quantile(draws["E"], [0.025, 0.975])
        if high - low > loss.min() / 2:
            warnings.append(
                "the floor of the loss is poorly constrained: its interval is wider than half of the lowest loss"
            )
    else:
        warnings.append("no intervals: resamples = 0")
    return TwoStep(
        status="converged",
        loss_params=first.params,
        metric_params=second.params,
        loss_sd=first.sd,
        metric_sd=metric_sd,
        resamples=resamples,
        draws=draws,
        warnings=(*first.warnings, *warnings, *second.warnings),
        **options,
    )


def _run_errors(rng, residual, owner, df, resamples):
    """Errors [R, P] of checkpoints: one that a run's checkpoints share, with df degrees of freedom, and one of each."""
    size = np.bincount(owner)
    mean = np.bincount(owner, residual) / size
    own = math.sqrt(((residual - mean[owner]) ** 2).sum() / max(len(owner) - len(size), 1))
    shared = t_errors(rng, np.full(len(size), math.sqrt((mean**2).sum() / df)), df, resamples)
    return shared[:, owner] + own * rng.standard_normal((resamples, len(owner)))


def _with_rows(fitted, where, loss, value, compute, out):
    predicted_loss = fitted.predict(of="loss", **where).value
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

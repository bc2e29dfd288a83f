"""The result of a fit: one frozen record that predicts, splits budgets, audits, plots and saves itself."""

import dataclasses
import functools
import html
import io
import math
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmjax import run_record
from lmjax.errors import InputError, nearest
from lmjax.scaling import resample as resampling
from lmjax.scaling.averaging import Average, average
from lmjax.scaling.columns import C_COUNTS
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, columns, get_law, predict_loss
from lmjax.scaling.prediction import Prediction, agreed, plain, positive_budget

FORMAT = 4
RENAMED = {  # names of fields in formats 2 and 3 -> names now
    "level": "confidence",
    "objective_name": "criterion",
    "objective": "criterion_value",
    "method": "bootstrap",
    "refits": "resamples",
    "refits_failed": "resamples_failed",
}
GONE = ("draws", "noise_scale", "noise_pool", "noise_kernel")  # fields of format 2 that are now computed on demand
STATUSES = ("converged", "not_identified", "at_bound", "too_few_points", "disagreeing_starts")
INFINITY = ("-Infinity", "Infinity")  # JSON has no such numbers
WORDS = ("run", "reasons", "warnings", "notes", "source")  # text fields
WIDEST_SPLIT = 100.0  # high / low of the interval of N* above which the split is not determined
LEAST_WIDTH = 0.5  # an averaged interval is widened to this share of the width of the fitted law's own interval,
MOST_WIDENED = 2.0  # but at most by this factor, because outliers widen the law's own interval without limit
ERRORS_PER_RESAMPLE = 4  # run-to-run errors drawn for each resample, for smoother tails of prediction intervals


@dataclass(frozen=True)
class Resampled:
    """The bootstrap resamples of a fit.

    logs: parameters of each resample [P], positive ones as "ln A".
    params: the same in natural units, with derived numbers.
    noise: errors of the rows around the law. scale: factor on them in each resample [P].
    converged: whether the fit of each resample reached a minimum [P]. at_bound: whether a parameter is at a bound [P].
    """

    logs: dict[str, np.ndarray]
    params: dict[str, np.ndarray]
    noise: resampling.Noise
    scale: np.ndarray
    converged: np.ndarray
    at_bound: np.ndarray


@dataclass(frozen=True, repr=False)
class Fit:
    """A fitted law with everything needed to use, judge and draw it.

    status: one of STATUSES. If the fit is `refused`, there are `reasons` and no parameters. "at_bound" is usable: E = 0
        is a result (read `warnings`).
    params: by name; `derived`: numbers computed from them, such as a = beta / (alpha + beta). Both have full precision:
        rounding an exponent to two digits can change the optimal tokens per parameter severalfold.
    intervals: (low, high) of params and derived at the confidence level `confidence`, from `resamples` bootstrap
        resamples of the scheme `bootstrap`; `profiles`: profile-likelihood intervals, if requested.
    criterion: huber_log | squared_log | squared; `criterion_value`: its minimum, a sum over rows; `gap`: relative
        decrease predicted for one more Newton step; `gradient`: scaled gradient, see engine.Problem.certificate.
    condition: condition number of the Jacobian of ln L at the optimum, with columns scaled to unit length.
    starts, starts_agree: number of polished starting points, and of those that end within 1e-8 of the best value.
    rivals: parameters of other minima that differ significantly from the best one. If the status is
        "disagreeing_starts": parameters of all minima that fit equally well, best first (see `minima`).
    at_bounds: parameters at a bound. optimum_is_start: whether the optimum is one of the starting points.
    tail_share: share of |residual| > delta. noise_sd: standard deviation of a residual, in the unit of `noise_unit`.
    lack_of_fit: test for systematic residuals (see lmjax/scaling/lack_of_fit.py): p, size, noise, share, terms, df,
        repeats, and remedies (better, range, ahead) if the test rejects; empty if there are too few rows.
    correlation: correlation matrix of the resamples, in the order of `correlation_names`.
    points: fitted rows: run, N, D, C, loss, weight, the law's variables, predicted, residual (ln loss - ln predicted;
        loss - predicted if the fit is `plain`), influence (largest shift of a parameter when the row is left out, in
        half widths of its interval), systematic (part of the residual that is a smooth function of the variables).
    held_out: rows from `check_held_out`. excluded: rows left out of the fit, with `reason`.
    data_hash: hash of the fitted rows; `hash`: hash of law, conventions, criterion and data, shown in captions.
    """

    law: str
    formula: str
    status: str
    variables: tuple[str, ...] = ()
    target: str = "loss"
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    params: dict[str, float] = field(default_factory=dict)
    derived: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    profiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    confidence: float = 0.95
    bootstrap: str = "auto"
    resamples: int = 0
    resamples_failed: int = 0
    seed: int = 0
    criterion: str = "huber_log"
    criterion_value: float = math.nan
    gap: float = math.nan
    gradient: float = math.nan
    condition: float = math.nan
    converged: bool = False
    iterations: int = 0
    starts: int = 0
    starts_agree: int = 0
    rivals: tuple[dict[str, float], ...] = ()
    optimum_is_start: bool = False
    at_bounds: tuple[str, ...] = ()
    delta: float = 1e-3
    tail_share: float = math.nan
    noise_sd: float = math.nan
    lack_of_fit: dict[str, Any] = field(default_factory=dict)
    correlation_names: tuple[str, ...] = ()
    correlation: tuple[tuple[float, ...], ...] = ()
    points: tuple[dict[str, Any], ...] = ()
    held_out: tuple[dict[str, Any], ...] = ()
    excluded: tuple[dict[str, Any], ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    source: str = ""
    data_hash: str = ""
    hash: str = ""
    format: int = FORMAT
    _resampled: Resampled | None = field(default=None, compare=False)
    _average: Average | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        """One line, as in "Fit(L(N) = E + A N^-alpha, converged, 12 runs: E=1.69, A=406, alpha=0.34)"."""
        found = ", ".join(f"{name}={value:.4g}" for name, value in self.params.items())
        why = found or "; ".join(self.reasons)
        return f"Fit({self.formula}, {self.status}, {len(self.points)} runs: {why})"

    def _repr_html_(self) -> str:
        """The table of parameters that a notebook shows."""
        head = f"<p>{html.escape(self.formula)} &nbsp; <b>{self.status.replace('_', ' ')}</b></p>"
        if self.refused:
            return head + "".join(f"<p>{html.escape(reason)}</p>" for reason in self.reasons)
        rows = ""
        for name, value in self.values.items():
            ends = " to ".join(f"{end:.4g}" for end in self.intervals.get(name, ()))
            rows += f"<tr><td>{html.escape(name)}</td><td>{value:.5g}</td><td>{ends}</td></tr>"
        notes = "".join(f"<p>warning: {html.escape(words)}</p>" for words in self.warnings)
        notes += "".join(f"<p>{html.escape(words)}</p>" for words in self.notes)
        heads = f"<tr><th>parameter</th><th>value</th><th>{self.confidence:.0%} interval</th></tr>"
        return f"{head}<table>{heads}{rows}</table>{notes}"

    @property
    def refused(self) -> bool:
        """Whether the table cannot identify the law; then there are reasons, and no parameters."""
        return bool(self.reasons)

    @property
    def plain(self) -> bool:
        """Whether residuals and noise refer to the loss or share itself, not to ln loss."""
        return self.target == "share" or self.criterion == "squared"

    def column(self, name: str) -> np.ndarray:
        """Returns a column of the fitted rows, [I]; NaN where a row lacks it."""
        return np.array([row.get(name, math.nan) for row in self.points])

    def frame(self):
        """Returns the fitted rows as a pandas frame."""
        import pandas

        return pandas.DataFrame(self.points)

    @property
    def flop_6nd(self) -> np.ndarray:
        """6 N D of the fitted rows, [I]."""
        return FLOPS_PER_PARAM_TOKEN * self.column("N") * self.column("D")

    @property
    def weights(self) -> np.ndarray:
        """Weights of the fitted rows over their mean, [I]; noise_sd refers to a row of mean weight."""
        return self.column("weight") / self.column("weight").mean()

    @property
    def noise_unit(self) -> str:
        """Unit of `noise_sd` and of residuals: "ln loss", or "share" or "loss" if the fit is plain."""
        return "share" if self.target == "share" else "loss" if self.plain else "ln loss"

    @property
    def values(self) -> dict[str, float]:
        """Parameters and derived numbers by name."""
        return {**self.params, **self.derived}

    @property
    def half_widths(self) -> dict[str, float]:
        """Half the width of each interval that is not a point."""
        return {name: (high - low) / 2 for name, (low, high) in self.intervals.items() if high > low}

    @property
    def splits(self) -> bool:
        """Whether the law has a compute-optimal split of a budget into N and D."""
        return get_law(self.law).optimum is not None

    @property
    def reach(self) -> str:
        """The variable that measures extrapolation, relative to its largest fitted value: C, else the law's first."""
        return "C" if np.isfinite(self.column("C")).all() else self.variables[0]

    @functools.cached_property
    def minima(self) -> tuple["Fit", ...]:
        """A fit for each of several minima that fit equally well, best first; empty unless "disagreeing_starts".

        A fit with this status is refused, but it can predict where its minima agree.
        """
        if self.status != "disagreeing_starts":
            return ()
        law, found = get_law(self.law), []
        for params in self.rivals:
            derived = {name: float(v) for name, v in law.derived(params).items() if name not in params}
            parts = {"params": params, "derived": derived, "rivals": tuple(p for p in self.rivals if p is not params)}
            found.append(dataclasses.replace(self, status="converged", reasons=(), _resampled=None, **parts))
        return tuple(found)

    def usable(self) -> "Fit":
        """Returns the fit itself, unless it was refused.

        Raises:
            InputError: the fit was refused; the message gives the reasons.
        """
        if self.refused:
            raise InputError(f"the fit of {self.formula} was refused: {'; '.join(self.reasons)}")
        return self

    def task(self):
        """Returns the minimisation problem of the fitted rows, and the coordinates [K] of the optimum in it."""
        from lmjax.scaling import engine

        task = engine.problem_of_table(self.frame(), get_law(self.usable().law), self.criterion, self.delta)
        return task, task.phi(self.params)

    def resampled(self) -> Resampled:
        """Returns the bootstrap resamples; a loaded fit recomputes them from its seed.

        Raises:
            InputError: the fit was refused, or made with resamples=0.
        """
        if not self.usable().resamples:
            raise InputError("the fit has no bootstrap resamples, so no intervals; fit with resamples > 0")
        found = self._resampled
        if found is None:
            task, phi = self.task()
            noise = resampling.estimate_noise(task, phi)
            rivals = [task.phi(params) for params in self.rivals]
            solution, scale = resampling.refit(task, phi, self.bootstrap, self.resamples, self.seed, noise, rivals)
            logs = task.logs(solution.phi)
            free = [k for k, parameter in enumerate(task.law.space) if not parameter.keep]
            at_bound = ((solution.phi <= task.low) | (solution.phi >= task.high))[:, free].any(1)
            found = Resampled(logs, task.natural(solution.phi), noise, scale, solution.converged, at_bound)
            object.__setattr__(self, "_resampled", found)
        return found

    def average(self) -> Average:
        """Returns the laws that `predict` averages, with their weights and back-tests; computed once.

        Raises:
            InputError: the fit was refused, or its target is a share, for which laws are not averaged.
        """
        if self.usable().target == "share":
            raise InputError("expected a law of a loss to average with others, got a law of a share")
        found = self._average
        if found is None:
            law, order = get_law(self.law), self.column(self.reach)
            found = average(self.frame(), law, self.params, self.criterion, self.delta, order)
            object.__setattr__(self, "_average", found)
        return found

    def predict(self, N=None, D=None, *, new_run: bool = True, one_law: bool = False, **others) -> Prediction:
        """Predicts the loss of runs.

        The prediction is an average over laws, and its interval allows for smooth deviations from them
        (lmjax/scaling/averaging.py): if the fitted law is only almost right, its own interval is too narrow.

        Args:
            N: parameters, float or array. Give only the variables that the law has.
            D: training tokens, float or array.
            new_run: True: the interval contains the loss of one new run (uncertainty of the laws plus the noise of a
                run of mean weight). False: the curve of the fitted law and its own interval, as drawn in figures.
            one_law: predict with the fitted law alone; its interval holds only if the law is true. This is always so
                for shares and for fits with resamples=0.
            **others: the other variables of the law by name (C, U, S1, ...). M = D / N is derived, and so is C if the
                fit counts C = 6 N D.

        Returns:
            Prediction in the broadcast shape of the variables and the unit of the fitted loss; shares are within
            [0, 1]. low and high are NaN for a fit with resamples=0.

        Raises:
            InputError: the fit was refused and its `minima` disagree here; a variable is missing, unknown, or not a
                positive number.

        Example:
            >>> import lmjax.scaling, pandas
            >>> N = 1e6 * 4.0 ** np.arange(6)
            >>> rows = pandas.DataFrame({"N": N, "loss": 1.7 + 400 * N**-0.34})
            >>> fit = lmjax.scaling.fit(rows, "power_n", resamples=0)
            >>> round(fit.predict(N=1e10).value, 4)
            1.8592
        """
        if self.minima:
            return agreed(
                (one.predict(N, D, new_run=new_run, one_law=one_law, **others) for one in self.minima),
                self.target == "share",
            )
        law = get_law(self.usable().law)
        x = _variables(self, law, {"N": N, "D": D, **others})
        shape = np.broadcast_shapes(*(v.shape for v in x.values()))
        flat = {name: np.broadcast_to(v, shape).ravel() for name, v in x.items()}
        found = self._predict_alone(law, flat, new_run)
        if new_run and not one_law and self.resamples and self.target != "share":
            _, least, most = found
            value, low, high = self.average().predict(flat, self.confidence)
            with np.errstate(all="ignore"):  # an interval of plain residuals may reach below 0
                widen = np.clip(LEAST_WIDTH * np.log(most / least) / np.log(high / low), 1.0, MOST_WIDENED)
                widen = np.where(np.isfinite(widen), widen, 1.0)
            found = value, value * (low / value) ** widen, value * (high / value) ** widen
        return Prediction(*(v.reshape(shape) for v in found), self.confidence)

    def _predict_alone(self, law, flat, new_run):
        """Returns value, low and high of the fitted law itself, each [O]."""
        loss = predict_loss(law, self.params, **flat)
        low = high = np.full(loss.shape, np.nan)
        if self.resamples:
            found = self.resampled()
            spread = predict_loss(law, {name: v[:, None] for name, v in found.params.items()}, **flat)
            spread = spread if self.plain else np.log(spread)
            if new_run:
                rng = np.random.Generator(np.random.Philox(self.seed + 1))
                scale = np.tile(found.scale, ERRORS_PER_RESAMPLE)
                spread = np.tile(spread, (ERRORS_PER_RESAMPLE, 1)) + found.noise.sample(rng, scale, spread.shape[1])
            # plain percentiles for every scheme: the bias correction would under-cover inside the grid
            low, high = resampling.percentiles(spread, self.confidence)
            low, high = (low, high) if self.plain else (np.exp(low), np.exp(high))
        if self.target == "share":
            loss, low, high = (np.clip(v, 0.0, 1.0) for v in (loss, low, high))
        return loss, low, high

    def allocate(self, C) -> dict[str, np.ndarray]:
        """Returns the compute-optimal split of a budget C = 6 N D, with intervals.

        It uses the fitted law alone and excludes the noise of a run, unlike `predict`.

        Args:
            C: budget in FLOP as 6 N D, float or array, whatever conventions["C"] is. N is counted as conventions["N"]
                says; if this excludes embeddings, so does the budget.

        Returns:
            dict of C, and for each of N, D, tokens_per_param and loss the value, "<name>_low" and "<name>_high" (NaN
            for a fit with resamples=0); a_exponent: exponent of N* in C; extrapolation: C over the largest 6 N D in
            the fit; determined: whether the interval of N* spans less than a factor of WIDEST_SPLIT.

        Raises:
            InputError: the law has no compute-optimal split, or the fit was refused.
        """
        C = _budget(self, C)
        out = {"C": C, "extrapolation": C / self.flop_6nd.max(), "a_exponent": self.derived["a"]}
        optimum = get_law(self.law).optimum
        best = optimum(self.params, C)
        spread = self._resampled_values(lambda params: optimum(params, C), C.ndim)
        for name in ("N", "D", "tokens_per_param", "loss"):
            low = high = np.full(C.shape, math.nan)
            if self.resamples:
                corrected = resampling.is_corrected(self.bootstrap, self.resampled().params["E"])
                low, high = resampling.interval(spread[name], best[name], self.confidence, corrected)
            out |= {name: best[name], f"{name}_low": low, f"{name}_high": high}
        return out | {"determined": out["N_high"] < WIDEST_SPLIT * out["N_low"]}

    def excess(self, C, N) -> Prediction:
        """Returns the excess loss of a model size that is not compute-optimal: loss(N, C / 6N) - least loss at C.

        Args:
            C: budget in FLOP as 6 N D, float or array.
            N: chosen number of parameters, float or array.

        Returns:
            Prediction in the unit of the loss, at least 0.

        Raises:
            InputError: the law has no compute-optimal split, or the fit was refused.
        """
        C, N = np.broadcast_arrays(_budget(self, C), np.asarray(N, np.float64))
        D = C / FLOPS_PER_PARAM_TOKEN / N
        law = get_law(self.law)

        def cost(params):
            return np.maximum(predict_loss(law, params, N, D) - law.optimum(params, C)["loss"], 0.0)

        if not self.resamples:
            return Prediction(cost(self.params), confidence=self.confidence)
        # plain percentiles: the excess cannot be negative, so a skewed distribution does not indicate bias
        ends = resampling.percentiles(self._resampled_values(cost, C.ndim), self.confidence)
        return Prediction(cost(self.params), *ends, self.confidence)

    def _resampled_values(self, f, ndim):
        """Returns f(parameters) with an axis of resamples before `ndim` others; None without resamples."""
        if not self.resamples:
            return None
        return f({name: v.reshape(-1, *(1,) * ndim) for name, v in self.resampled().params.items()})

    def check_held_out(self, runs) -> list[dict]:
        """Compares predictions with the measured losses of runs that were not fitted.

        Args:
            runs: pandas frame with the columns run, N, D, C, loss and the law's variables.

        Returns:
            One dict per row: run, N, D, C, loss (measured); predicted, low, high (from `predict`); relative_error =
            predicted / measured - 1 (NaN for a share of 0); inside (whether the interval contains the measured loss;
            None without resamples); law_predicted, law_low, law_high, law_inside (the same for the fitted law alone);
            extrapolation (`reach` over its largest value in the fit).

        Raises:
            InputError: the law has one variable, and a row has another N or D than the one at which it was fitted.
        """
        if not len(runs):
            return []
        law = get_law(self.usable().law)
        fixed = {("N",): "D", ("D",): "N"}.get(law.variables)
        if fixed:
            at = np.median(self.column(fixed))
            other = runs[~np.isclose(runs[fixed], at, rtol=0.02, equal_nan=True)]
            if len(other):
                raise InputError(
                    f"the fit of {law.formula} holds at {fixed} = {at:.4g}, but held-out {other.run.iloc[0]} has "
                    f"{fixed} = {other[fixed].iloc[0]:.4g}"
                )
        x = {name: runs[name].to_numpy(np.float64) for name in law.variables}
        largest = self.column(self.reach).max()
        kept = list(dict.fromkeys(["run", "N", "D", "C", *law.variables, "loss"]))
        rows, found, alone = runs[kept].to_dict("records"), self.predict(**x), self.predict(**x, one_law=True)

        def told(row, value, low, high, of=""):
            inside = bool(low <= row["loss"] <= high) if self.resamples else None
            ends = {f"{of}predicted": float(value), f"{of}low": float(low), f"{of}high": float(high)}
            return ends | {f"{of}inside": inside}

        return [
            {
                **row,
                **told(row, *prediction),
                "relative_error": float(prediction[0] / row["loss"] - 1) if row["loss"] else math.nan,
                **told(row, *of_law, of="law_"),
                "extrapolation": float(row[self.reach] / largest),
            }
            for row, prediction, of_law in zip(rows, zip(*found, strict=True), zip(*alone, strict=True), strict=True)
        ]

    def influence(self) -> list[dict]:
        """Returns how far each parameter shifts when one row is left out, the most influential row first.

        Returns:
            One dict per row (with more than 400 rows, only for the most influential): run, N, D, loss, shift
            ({parameter: value without the row - value}), and largest, the largest |shift| in half widths of the
            parameter's interval (NaN without intervals).
        """
        places, shifts = resampling.influence(*self.task())
        half = self.half_widths
        rows = []
        for i, place in enumerate(places):
            shift = {name: float(v[i]) for name, v in shifts.items()}
            largest = max((abs(shift[name]) / half[name] for name in half), default=math.nan)
            kept = {k: v for k, v in self.points[place].items() if k in ("run", "N", "D", "loss")}
            rows.append({**kept, "shift": shift, "largest": largest})
        return sorted(rows, key=lambda row: -np.nan_to_num(row["largest"]))

    def profile(self, name: str, values) -> np.ndarray:
        """Returns the criterion with one parameter fixed and the others refitted; flat if it is poorly constrained.

        Args:
            name: a parameter that is not a coefficient, such as E or an exponent.
            values: values at which to fix it, [P].

        Returns:
            Criterion relative to its minimum, [P]; 1 at the fitted value.
        """
        task, phi = self.task()
        names = {p.name: k for k, p in enumerate(task.law.space) if not p.log}
        if name not in names:
            raise InputError(f"expected E or an exponent to profile, got {name!r}{nearest(name, names)}")
        start = np.stack([task.phi({**self.params, name: float(value)}) for value in values])
        held = task.minimise(start, task.y_I, task.w_I, held=(names[name],))
        return held.objective / self.criterion_value

    def audit(self, table=None) -> list:
        """Returns the checks of the fit as a list of audit.Finding, the most severe first; see lmjax/scaling/audit.py.

        Args:
            table: the FitTable that was fitted; if given, its other columns (seeds, warm-up, other counts of N and C)
                are checked too.
        """
        from lmjax.scaling.audit import audit

        return audit(self, table)

    def summary(self) -> str:
        """Returns parameters with intervals, held-out runs, fit quality and warnings as plain text."""
        from rich.console import Console

        from lmjax.scaling.text import render_fit

        text = io.StringIO()
        Console(file=text, width=120, color_system=None, force_jupyter=False).print(render_fit(self))
        return text.getvalue().rstrip()

    def plot(self, folder: str | os.PathLike, formats: Sequence[str] = ("png",)) -> list[pathlib.Path]:
        """Draws every figure of the fit into a folder; returns the paths."""
        from lmjax.scaling.figures.fit import plot_all

        return plot_all(self, folder, formats)

    def report(self, path: str | os.PathLike, table=None) -> pathlib.Path:
        """Writes the report as one self-contained HTML file; returns its path.

        Args:
            path: the .html file.
            table: the FitTable that was fitted, for the audit.
        """
        import tempfile

        from lmjax.scaling.report import page

        with tempfile.TemporaryDirectory() as folder:
            return page.write_report(path, None, self, self.plot(folder), table=table)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict of JSON types without the resamples; NaN becomes None, infinity "Infinity"."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name[0] != "_"}
        return plain(kept, infinity=INFINITY)

    def save(self, path: str | os.PathLike) -> pathlib.Path:
        """Writes the fit as JSON, by rename; returns the path. `load` reads it back."""
        run_record.write_json(pathlib.Path(path), self.to_dict())
        return pathlib.Path(path)


def _variables(fit, law, given):
    """Returns the variables of a law as arrays; raises an InputError that names missing or unknown variables."""
    given = {name: v for name, v in given.items() if v is not None}
    try:
        given = {name: np.asarray(v, np.float64) for name, v in given.items()}
        np.broadcast_shapes(*(v.shape for v in given.values()))
    except (TypeError, ValueError) as error:
        raise InputError(f"expected numbers or arrays of shapes that broadcast, got {given}: {error}") from error
    follows = {"M", "C"} & set(law.variables) - set(given)
    if "C" in follows and fit.conventions["C"] != C_COUNTS["6nd"]:
        raise InputError(f"expected C for {law.formula}: the fit has {fit.conventions['C']}, not 6 N D; give C = FLOP")
    foreign = [name for name in given if name not in law.variables and not (follows and name in ("N", "D"))]
    if foreign:
        raise InputError(f"{law.formula} has no {', '.join(foreign)}; give {' and '.join(law.variables)}")
    for name in law.out_of_range(given):
        raise InputError(f"expected positive numbers in {name} for {law.formula}, got {given[name]}")
    return columns(law, given)


def _budget(fit, C):
    if not fit.usable().splits:
        raise InputError(f"expected a law with a compute-optimal split, such as chinchilla, got {fit.law}")
    return positive_budget(C)


def from_dict(record: dict[str, Any]) -> Fit:
    """Returns the Fit of a `to_dict` record, equal in every bit; also reads formats 2 and 3.

    Raises:
        InputError: not such a record, or of another format.
    """
    if record.get("format") in (2, 3):
        record = {RENAMED.get(name, name): value for name, value in record.items() if name not in GONE}
        record["format"] = FORMAT
    known = {f.name for f in dataclasses.fields(Fit) if f.name[0] != "_"}
    needed = {"law", "formula", "status", "format"}
    if not needed <= set(record) <= known or record["format"] != FORMAT:
        raise InputError(f"expected the record of a fit, format {FORMAT}, got keys {sorted(record)[:6]}; fit again")
    return Fit(**{name: _unplain(value, name) for name, value in record.items()})


def load(path: str | os.PathLike) -> Fit:
    """Reads a fit.json.

    Raises:
        InputError: no such file, or not the record of a fit.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"no fit at {path}; run lmjax fit first")
    try:
        return from_dict(run_record.read_json(path))
    except InputError as error:
        raise InputError(f"{path} is not the record of a fit: run lmjax fit again ({error})") from error


def _unplain(value, name):
    """Undoes `plain` in the field `name`: tuples, NaN and infinities; the text fields in WORDS are kept."""
    if isinstance(value, dict):
        return {k: _unplain(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return tuple(_unplain(v, name) for v in value)
    if value is None:
        return None if name.endswith("inside") else math.nan
    return float(value) if value in INFINITY and name not in WORDS else value

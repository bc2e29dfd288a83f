"""Hyper-parameter laws: the best learning rate and batch of each (N, D), then powers of N and D. No training here."""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.axes import levels
from lmjax.scaling.methods import loglinear
from lmjax.scaling.methods.columns import frame_of, need, positive
from lmjax.scaling.methods.outcome import Outcome

WHAT = "the tuning table"
KNOBS = ("lr", "batch")


@dataclass(frozen=True)
class Best:
    """The optimum of one (N, D): values by knob (lr, batch in tokens), sd of their ln, the loss there.

    points: rows used; reason: why there is no optimum, empty if there is.
    """

    N: float
    D: float
    values: dict[str, float]
    sd_log: dict[str, float]
    loss: float
    points: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class TuningLaw(Outcome):
    """lr*(N, D) = k N^a D^b and, where the batch was varied, B*(N, D), each a LogLaw.

    laws: knob -> LogLaw. intervals: knob -> variable -> (low, high) of the exponent. optima: a Best per (N, D),
    refused ones included. knobs: the hyper-parameters that were varied.
    """

    knobs: tuple[str, ...] = ()
    laws: dict[str, loglinear.LogLaw]
    intervals: dict[str, dict[str, tuple[float, float]]]
    optima: tuple[Best, ...] = ()

    def predict(self, N=None, D=None) -> dict[str, np.ndarray]:
        """The best hyper-parameters of a run.

        Args:
            N: parameters, float or array; None where the law has no N (all rows at one N), and so for D.
            D: training tokens.

        Returns:
            dict knob -> value, knob_low, knob_high (the interval of the law, not of one noisy sweep).

        Raises:
            InputError: the law was refused, or N or D is missing.
        """
        self.usable()
        out = {}
        for knob, law in self.laws.items():
            given = {name: {"N": N, "D": D}[name] for name in law.names}
            if any(v is None for v in given.values()):
                raise InputError(f"wanted {' and '.join(law.names)} for the law of {knob}")
            value, low, high = law.at(self.level, **given)
            out |= {knob: value, f"{knob}_low": low, f"{knob}_high": high}
        return out


def tuning_law(source, excess: float | None = None, level: float = 0.95) -> TuningLaw:
    """Fits lr*(N, D) and B*(N, D) to sweeps of the learning rate, or of learning rate and batch.

    1. Per (N, D): ln L is a parabola in ln lr (and ln batch, with their product); its minimum is the optimum.
    2. ln lr* = ln k + a ln N + b ln D by least squares, weights 1 / variance of ln lr*; the same for the batch.

    Args:
        source: a frame or dict with N, D, lr, loss, and batch (tokens) if it was varied.
        excess: use only the rows whose loss is within this share of the best of their (N, D), such as 0.02: far
            from its minimum the loss is no parabola. None: all rows.
        level: of the intervals (Student's t from the scatter of the optima around the law).

    Returns:
        TuningLaw; too_few_points where fewer optima than parameters are left, not_identified where N and D vary only
        together. A sweep whose minimum is at its edge is left out, named in `warnings` and kept in `optima`.

    Raises:
        InputError: missing columns, NaN, numbers <= 0.

    Example (lr* = 2 N^-0.5 at one D):
        >>> N, ratio = (x.ravel() for x in np.meshgrid([1e6, 4e6, 16e6, 64e6], [0.25, 0.5, 1, 2, 4]))
        >>> rows = dict(N=N, D=1e9, lr=2 * ratio * N**-0.5, loss=3 * np.exp(0.01 * np.log(ratio) ** 2))
        >>> round(tuning_law(rows).laws["lr"].exponents[0], 6)
        -0.5

    Paper: arXiv:2503.04715 (Step Law: lr* = 1.79 N^-0.713 D^0.307, B* = 0.58 D^0.571, N without embeddings).
    """
    if not 0 < level < 1 or (excess is not None and not excess > 0):
        raise InputError(f"wanted 0 < level < 1 and excess > 0 or None, got {level}, {excess}")
    frame = frame_of(source, WHAT)
    need(frame, ("N", "D", "lr", "loss"), WHAT)
    knobs = tuple(k for k in KNOBS if k in frame and np.ptp(np.log(positive(frame, k, WHAT))) > 1e-9)
    columns = {name: positive(frame, name, WHAT) for name in ("N", "D", "loss", *knobs)}
    options = {"knobs": knobs, "level": level, "conventions": _conventions(knobs, excess)}
    if not knobs:
        return _refused("not_identified", ["the learning rate has one value"], options, ())
    cells = np.unique(np.stack([levels(columns["N"]), levels(columns["D"])]), axis=1, return_inverse=True)[1].ravel()
    fits = [_parabola(columns, np.flatnonzero(cells == g), knobs, excess) for g in range(cells.max() + 1)]
    optima = _optima(fits, knobs)
    good = [o for o in optima if not o.reason]
    warnings = [f"N = {o.N:.3g}, D = {o.D:.3g} left out: {o.reason}" for o in optima if o.reason]
    options["warnings"] = tuple(warnings + [w for f in fits for w in f["warnings"]])
    x = {name: np.array([getattr(o, name) for o in good]) for name in ("N", "D")}
    x = {name: v for name, v in x.items() if len(v) and np.ptp(np.log(v)) > 0.05}
    if len(good) < 2 + len(x) or not x:
        reasons = [f"{len(good)} of {len(optima)} (N, D) have an optimum; powers of N and D need 4, of one of them 3"]
        edge = not good and any("edge" in o.reason for o in optima)
        return _refused("at_bound" if edge else "too_few_points", reasons, options, optima)
    together = loglinear.combination(np.log(list(x.values())), tuple(x))
    if together:
        return _refused("not_identified", [together], options, optima)
    if fixed := sorted({"N", "D"} - set(x)):
        options["conventions"]["holds"] = f"at the one {' and '.join(fixed)} of the table"
    laws = {}
    for knob in knobs:
        sd = np.array([o.sd_log[knob] for o in good])
        sd = sd if np.isfinite(sd).all() and (sd > 1e-6).all() else None
        laws[knob] = loglinear.fit_log_law(x, np.array([o.values[knob] for o in good]), sd)
    intervals = {knob: {name: law.interval(name, level) for name in law.names} for knob, law in laws.items()}
    return TuningLaw(status="converged", laws=laws, intervals=intervals, optima=optima, **options)


def _refused(status, reasons, options, optima):
    return TuningLaw(status=status, reasons=tuple(reasons), laws={}, intervals={}, optima=optima, **options)


def _conventions(knobs, excess):
    words = "all rows" if excess is None else f"rows within {excess:.1%} of the best loss"
    return {
        "N": "N as given in the table",
        "D": "D as given in the table",
        "optimum": f"minimum of a parabola in {', '.join('ln ' + k for k in knobs)} through {words} of an (N, D)",
    }


def _parabola(columns, rows, knobs, excess):
    """Least squares of ln L in the logs of the knobs at one (N, D)."""
    log_loss = np.log(columns["loss"][rows])
    out = {"N": math.exp(np.log(columns["N"][rows]).mean()), "D": math.exp(np.log(columns["D"][rows]).mean())}
    if excess is not None:
        rows = rows[log_loss <= log_loss.min() + math.log1p(excess)]
        log_loss = np.log(columns["loss"][rows])
    x_KI = np.log(np.array([columns[k][rows] for k in knobs]))
    out |= {"points": len(rows), "warnings": [], "reason": "", "ss": 0.0, "df": 0}
    distinct = [len(np.unique(row.round(9))) for row in x_KI]
    size = 3 if len(knobs) == 1 else 6
    if min(distinct) < 3 or len(rows) < size:
        return out | {"reason": f"{len(rows)} rows with {distinct} values of {', '.join(knobs)}; wanted 3 of each"}
    centre = x_KI.mean(1, keepdims=True)
    u = x_KI - centre
    quadratic = [u[0] ** 2] if len(knobs) == 1 else [u[0] ** 2, u[1] ** 2, u[0] * u[1]]
    matrix = np.stack([np.ones(len(rows)), *u, *quadratic], 1)
    found, _, rank, _ = np.linalg.lstsq(matrix, log_loss, rcond=None)
    if rank < size:
        return out | {"reason": "learning rate and batch do not vary separately"}
    slope = found[1 : 1 + len(knobs)]
    curvature = 2 * np.array([[found[2]]]) if len(knobs) == 1 else _hessian(found)
    if not (np.linalg.eigvalsh(curvature) > 0).all():
        return out | {"reason": "no minimum: the loss is not curved upwards; its best run is at the edge of the sweep"}
    vertex = -np.linalg.solve(curvature, slope)
    for j, knob in enumerate(knobs):
        if not u[j].min() < vertex[j] < u[j].max():
            side = "smaller" if vertex[j] <= u[j].min() else "larger"
            return out | {"reason": f"the minimum is at the edge of the {knob}s of the sweep; add {side} ones"}
    out["warnings"] = _far(out, u[:, log_loss.argmin()], vertex, u, knobs)
    residual = log_loss - matrix @ found
    jacobian = -np.linalg.solve(curvature, _vertex_rows(vertex, len(knobs)))
    out["widths"] = np.ptp(u, axis=1)
    out |= {"vertex": vertex + centre[:, 0], "unit": jacobian @ np.linalg.inv(matrix.T @ matrix) @ jacobian.T}
    loss = found[0] + slope @ vertex + 0.5 * vertex @ curvature @ vertex
    return out | {"loss": math.exp(loss), "ss": float(residual @ residual), "df": len(rows) - size}


def _far(cell, best, vertex, u, knobs):
    """Warnings where the vertex lies far from the best run: the sweep is no parabola."""
    warnings = []
    for j, knob in enumerate(knobs):
        steps = abs(vertex[j] - best[j]) / np.diff(np.unique(u[j].round(9))).max()
        if steps > 1.5:
            warnings.append(
                f"N = {cell['N']:.3g}, D = {cell['D']:.3g}: the parabola's {knob} is {steps:.1f} steps of the sweep "
                "from the best run; set excess= to use rows near the minimum only"
            )
    return warnings


def _hessian(found):
    return np.array([[2 * found[3], found[5]], [found[5], 2 * found[4]]])


def _vertex_rows(vertex, count):
    """d (gradient of the parabola at the vertex) / d coefficients: the vertex moves by -H^-1 times this."""
    if count == 1:
        return np.array([[0.0, 1.0, 2 * vertex[0]]])
    return np.array([[0, 1, 0, 2 * vertex[0], 0, vertex[1]], [0, 0, 1, 0, 2 * vertex[1], vertex[0]]], float)


def _optima(fits, knobs):
    """Bests of all (N, D); the noise of ln L is pooled over their parabolas."""
    df = sum(f["df"] for f in fits)
    variance = sum(f["ss"] for f in fits) / df if df else math.nan
    best = []
    for f in fits:
        values, sd, reason = dict.fromkeys(knobs, math.nan), dict.fromkeys(knobs, math.nan), f["reason"]
        if not reason:
            sd = dict(zip(knobs, np.sqrt(np.diag(f["unit"]) * variance).tolist(), strict=True))
            lost = [k for k, width in zip(knobs, f["widths"], strict=True) if sd[k] > 0.5 * width]
            if lost:
                reason = f"the noise moves the minimum over more than half of the {lost[0]}s of the sweep"
            else:
                values = dict(zip(knobs, np.exp(f["vertex"]).tolist(), strict=True))
        best.append(Best(f["N"], f["D"], values, sd, f.get("loss", math.nan), f["points"], reason))
    return tuple(best)

"""Hyper-parameter laws: the optimal learning rate and batch size at each (N, D), then power laws in N and D."""

import math
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError, nearest
from lmjax.format import count
from lmjax.scaling.columns import cluster, frame_of, need, positive, shares
from lmjax.scaling.methods import leastsq
from lmjax.scaling.methods.outcome import Outcome, table_text
from lmjax.scaling.prediction import Prediction

WHAT = "the tuning table"
KNOBS = ("learning_rate", "batch")


@dataclass(frozen=True)
class Best:
    """The optimum of one (N, D): values by hyper-parameter, standard deviations of their ln, the loss there.

    points: number of rows used. reason: error message if there is no optimum, else empty.
    """

    N: float
    D: float
    values: dict[str, float]
    sd_log: dict[str, float]
    loss: float
    points: int
    reason: str

    def interval(self, knob: str, confidence: float) -> tuple[float, float]:
        """Normal interval of the ln of an optimum."""
        from scipy.stats import norm

        factor = math.exp(float(norm.ppf((1 + confidence) / 2)) * self.sd_log[knob])
        return self.values[knob] / factor, self.values[knob] * factor


@dataclass(frozen=True, kw_only=True)
class TuningLaw(Outcome):
    """learning_rate*(N, D) = k N^a D^b and, where the batch was varied, batch*(N, D), each a LogLaw.

    knobs: the hyper-parameters that were varied. laws: by hyper-parameter. intervals: hyper-parameter -> variable ->
    (low, high) of the exponent. optima: a Best per (N, D), refused ones included.
    """

    knobs: tuple[str, ...] = ()
    laws: dict[str, leastsq.LogLaw] = field(default_factory=dict)
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    optima: tuple[Best, ...] = ()

    def predict(self, N=None, D=None, of: str = "learning_rate") -> Prediction:
        """The optimal hyper-parameter of a run.

        Args:
            N: parameters, float or array; None where the law has no N (all rows at one N), and so for D.
            D: training tokens.
            of: learning_rate | batch (tokens).

        Returns:
            Prediction with the interval of the law, not of one noisy sweep.

        Raises:
            InputError: the law was refused, N or D is missing, or `of` was not varied.
        """
        if of not in self.usable().laws:
            raise InputError(f"of: expected one of {', '.join(self.laws)}, got {of!r}{nearest(of, self.laws)}")
        law = self.laws[of]
        given = {name: {"N": N, "D": D}[name] for name in law.names}
        if any(v is None for v in given.values()):
            raise InputError(f"expected {' and '.join(law.names)} for the law of {of}")
        return law.at(self.confidence, **given)

    def lines(self) -> list[str]:
        """A table of optima, and the laws with the intervals of their exponents."""
        columns, rows = [Column("N", text=count), Column("D", text=count)], []
        for knob in self.knobs:
            columns += [Column(knob, text="{:.3g}".format), Column(f"{knob} interval", left=True)]
        columns.append(Column("loss", text="{:.4f}".format))
        for best in self.optima:
            if not best.reason:
                rows.append(vars(best) | best.values)
                for knob in self.knobs:
                    low, high = best.interval(knob, self.confidence)
                    rows[-1][f"{knob} interval"] = f"{low:.3g} to {high:.3g}" if math.isfinite(low) else ""
        lines = [table_text(rows, columns)] * bool(rows)
        for knob, law in self.laws.items():
            powers = " ".join(f"{name}^{value:.4f}" for name, value in zip(law.names, law.exponents, strict=True))
            ends = ", ".join(f"{n} [{low:.3f}, {high:.3f}]" for n, (low, high) in self.intervals[knob].items())
            lines.append(f"{knob} = {math.exp(law.log_k):.4g} {powers}; {self.confidence:.0%} intervals: {ends}")
        return lines


def tuning_law(source, excess: float | None = None, confidence: float = 0.95) -> TuningLaw:
    """Fits the optimal learning rate, and batch size if it was varied, as power laws in N and D.

    1. Per (N, D): ln L is a parabola in ln learning_rate (and ln batch, with their product) with its minimum there.
    2. ln learning_rate* = ln k + a ln N + b ln D by weighted least squares, weights 1 / variance; same for the batch.

    Args:
        source: a frame or dict with N, D, learning_rate (or lr), loss, and batch (tokens) if it was varied.
        excess: use only the rows whose loss is within this share of the best of their (N, D), such as 0.02: far
            from its minimum the loss is not quadratic. None: all rows.
        confidence: confidence level of the intervals (Student's t from the scatter of the optima around the law).

    Returns:
        TuningLaw; too_few_points where fewer optima than parameters are left, not_identified where N and D are
        collinear. A sweep whose minimum is at its edge is left out, named in `warnings` and kept in `optima`.

    Raises:
        InputError: missing columns, NaN, numbers <= 0.

    Example (learning_rate* = 2 N^-0.5 at one D):
        >>> N, ratio = (x.ravel() for x in np.meshgrid([1e6, 4e6, 16e6, 64e6], [0.25, 0.5, 1, 2, 4]))
        >>> rate, loss = 2 * ratio * N**-0.5, 3 * np.exp(0.01 * np.log(ratio) ** 2)
        >>> law = tuning_law(dict(N=N, D=1e9, learning_rate=rate, loss=loss))
        >>> round(law.laws["learning_rate"].exponents[0], 6), round(law.predict(N=1e8).value, 6)
        (-0.5, 0.0002)

    Paper: arXiv:2503.04715 (Step Law: lr* = 1.79 N^-0.713 D^0.307, B* = 0.58 D^0.571, N without embeddings).
    """
    shares(confidence, 0)
    if excess is not None and not excess > 0:
        raise InputError(f"expected excess > 0 or None, got {excess}")
    frame = frame_of(source, WHAT).rename(columns={"lr": "learning_rate"})
    need(frame, ("N", "D", "learning_rate", "loss"), WHAT)
    knobs = tuple(k for k in KNOBS if k in frame and np.ptp(np.log(positive(frame, k, WHAT))) > 1e-9)
    columns = {name: positive(frame, name, WHAT) for name in ("N", "D", "loss", *knobs)}
    rows = "all rows" if excess is None else f"rows within {excess:.1%} of the best loss"
    logs = ", ".join(f"ln {k}" for k in knobs or KNOBS)
    conventions = {
        "N": "N as given in the table",
        "D": "D as given in the table",
        "optimum": f"minimum of a parabola in {logs} through {rows} of an (N, D)",
    }
    options = {"knobs": knobs, "confidence": confidence, "conventions": conventions}
    if not knobs:
        return TuningLaw(status="not_identified", reasons=("the learning rate has one value",), **options)
    cells = np.unique(np.stack([cluster(columns["N"]), cluster(columns["D"])]), axis=1, return_inverse=True)[1].ravel()
    fits = [_parabola(columns, np.flatnonzero(cells == g), knobs, excess) for g in range(cells.max() + 1)]
    optima = _optima(fits, knobs)
    left_out = [f"N = {o.N:.3g}, D = {o.D:.3g} left out: {o.reason}" for o in optima if o.reason]
    options |= {"optima": optima, "warnings": (*left_out, *(w for f in fits for w in f["warnings"]))}
    good = [o for o in optima if not o.reason]
    x = {name: np.array([getattr(o, name) for o in good]) for name in ("N", "D")}
    x = {name: v for name, v in x.items() if len(v) and np.ptp(np.log(v)) > 0.05}
    if len(good) < 2 + len(x) or not x:
        few = f"{len(good)} of {len(optima)} (N, D) have an optimum; a law in N and D needs 4, a law in one of them 3"
        edge = not good and any("edge" in o.reason for o in optima)
        return TuningLaw(status="at_bound" if edge else "too_few_points", reasons=(few,), **options)
    if together := leastsq.combination(np.log(list(x.values())), tuple(x)):
        return TuningLaw(status="not_identified", reasons=(together,), **options)
    if fixed := sorted({"N", "D"} - set(x)):
        conventions["holds"] = f"at the one {' and '.join(fixed)} of the table"
    laws = {}
    for knob in knobs:
        sd = np.array([o.sd_log[knob] for o in good])
        sd = sd if (sd > 1e-6).all() else None  # NaN where no cell has a spare row
        laws[knob] = leastsq.fit_log_law(x, np.array([o.values[knob] for o in good]), sd)
    intervals = {knob: {name: law.interval(name, confidence) for name in law.names} for knob, law in laws.items()}
    return TuningLaw(status="converged", laws=laws, intervals=intervals, **options)


def _parabola(columns, rows, knobs, excess):
    """Fits ln L at one (N, D) by a parabola in the logs of the J hyper-parameters.

    Returns a dict: N, D, points, warnings, reason; of a usable fit also vertex [J], widths of the sweep [J], unit
    [J, J] (covariance of the vertex for unit noise), loss, and ss and df of the residuals.
    """
    out = {name: math.exp(np.log(columns[name][rows]).mean()) for name in ("N", "D")}
    log_loss = np.log(columns["loss"][rows])
    if excess is not None:
        near = log_loss <= log_loss.min() + math.log1p(excess)
        rows, log_loss = rows[near], log_loss[near]
    x_JI = np.log(np.array([columns[k][rows] for k in knobs]))
    pairs = [(j, j) for j in range(len(knobs))] + list(combinations(range(len(knobs)), 2))
    out |= {"points": len(rows), "warnings": [], "reason": "", "ss": 0.0, "df": 0}
    distinct = [len(np.unique(row.round(9))) for row in x_JI]
    size = 1 + len(knobs) + len(pairs)
    if min(distinct) < 3 or len(rows) < size:
        return out | {"reason": f"{len(rows)} rows with {distinct} values of {', '.join(knobs)}, expected 3 of each"}
    centre = x_JI.mean(1, keepdims=True)
    u_JI = x_JI - centre
    matrix = np.stack([np.ones(len(rows)), *u_JI, *(u_JI[i] * u_JI[j] for i, j in pairs)], 1)
    found, _, rank, _ = np.linalg.lstsq(matrix, log_loss, rcond=None)
    if rank < size:
        return out | {"reason": "learning rate and batch are collinear"}
    slope_J, hessian_JJ = found[1 : 1 + len(knobs)], np.zeros([len(knobs)] * 2)
    for (i, j), value in zip(pairs, found[1 + len(knobs) :], strict=True):
        hessian_JJ[i, j] += value
        hessian_JJ[j, i] += value
    if not (np.linalg.eigvalsh(hessian_JJ) > 0).all():
        return out | {"reason": "no minimum: the loss is not curved upwards; its best run is at the edge of the sweep"}
    vertex_J = -np.linalg.solve(hessian_JJ, slope_J)
    for knob, u, at in zip(knobs, u_JI, vertex_J, strict=True):
        if not u.min() < at < u.max():
            side = "smaller" if at <= u.min() else "larger"
            reason = f"the minimum is at the edge of the sweep in {knob}; add {side} values"
            return out | {"reason": reason, "warnings": []}
        steps = abs(at - u[log_loss.argmin()]) / np.diff(np.unique(u.round(9))).max()
        if steps > 1.5:
            out["warnings"].append(
                f"N = {out['N']:.3g}, D = {out['D']:.3g}: the parabola's optimal {knob} is {steps:.1f} sweep steps "
                "from the best run; pass excess= to use only rows near the minimum"
            )
    # d (gradient of the parabola at the vertex) / d coefficients: the vertex moves by -H^-1 times this
    moves = np.zeros((len(knobs), size))
    moves[:, 1 : 1 + len(knobs)] = np.eye(len(knobs))
    for column, (i, j) in enumerate(pairs, 1 + len(knobs)):
        moves[i, column] += vertex_J[j]
        moves[j, column] += vertex_J[i]
    jacobian, residual = -np.linalg.solve(hessian_JJ, moves), log_loss - matrix @ found
    return out | {
        "vertex": vertex_J + centre[:, 0],
        "widths": np.ptp(u_JI, axis=1),
        "unit": jacobian @ np.linalg.inv(matrix.T @ matrix) @ jacobian.T,
        "loss": math.exp(found[0] + 0.5 * slope_J @ vertex_J),
        "ss": float(residual @ residual),
        "df": len(rows) - size,
    }


def _optima(fits, knobs):
    """The Best of every (N, D); the noise of ln L is pooled over all parabolas."""
    df = sum(f["df"] for f in fits)
    variance = sum(f["ss"] for f in fits) / df if df else math.nan
    best = []
    for f in fits:
        values, sd, reason = dict.fromkeys(knobs, math.nan), dict.fromkeys(knobs, math.nan), f["reason"]
        if not reason:
            sd = dict(zip(knobs, np.sqrt(np.diag(f["unit"]) * variance).tolist(), strict=True))
            lost = [k for k, width in zip(knobs, f["widths"], strict=True) if sd[k] > 0.5 * width]
            if lost:
                reason = f"the noise moves the minimum over more than half of the sweep in {lost[0]}"
            else:
                values = dict(zip(knobs, np.exp(f["vertex"]).tolist(), strict=True))
        best.append(Best(f["N"], f["D"], values, sd, f.get("loss", math.nan), f["points"], reason))
    return tuple(best)

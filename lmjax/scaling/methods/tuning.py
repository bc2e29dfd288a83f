"""Hyper-parameter laws: the optimal learning rate and batch size at each (N, D), then power laws in N and D.

The defaults reproduce the form of Step Law (arXiv:2503.04715): learning_rate* = k N^a D^b, batch* = k D^b in tokens,
from the runs near the optimum of each (N, D).
"""

import math
from collections.abc import Sequence
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
from lmjax.scaling.resample import half_width_factor

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
        factor = math.exp(half_width_factor(confidence) * self.sd_log[knob])
        return self.values[knob] / factor, self.values[knob] * factor


@dataclass(frozen=True, kw_only=True)
class TuningLaw(Outcome):
    """learning_rate*(N, D) = k N^a D^b and, where the batch was varied, batch*(D) = k D^b, each a LogLaw.

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

    def rows(self) -> list[dict]:
        """One row per (N, D): each hyper-parameter's optimum with its interval, the loss there, or the reason."""
        rows = []
        for best in self.optima:
            rows.append({"N": best.N, "D": best.D, **best.values})
            for knob in self.knobs:
                rows[-1][f"{knob}_low"], rows[-1][f"{knob}_high"] = best.interval(knob, self.confidence)
            rows[-1] |= {"loss": best.loss, "points": best.points, "reason": best.reason}
        return rows

    def lines(self) -> list[str]:
        """A table of optima, and the laws with the intervals of their exponents."""
        columns, rows = [Column("N", text=count), Column("D", text=count)], []
        for knob in self.knobs:
            columns += [Column(knob, text="{:.3g}".format), Column(f"{knob} interval", left=True)]
        columns.append(Column("loss", text="{:.4f}".format))
        for row in self.rows():
            if not row["reason"]:
                rows.append(row)
                for knob in self.knobs:
                    low, high = row[f"{knob}_low"], row[f"{knob}_high"]
                    row[f"{knob} interval"] = f"{low:.3g} to {high:.3g}" if math.isfinite(low) else ""
        lines = [table_text(rows, columns)] * bool(rows)
        for knob, law in self.laws.items():
            powers = " ".join(f"{name}^{value:.4f}" for name, value in zip(law.names, law.exponents, strict=True))
            ends = ", ".join(f"{n} [{low:.3f}, {high:.3f}]" for n, (low, high) in self.intervals[knob].items())
            lines.append(f"{knob} = {math.exp(law.log_k):.4g} {powers}; {self.confidence:.0%} intervals: {ends}")
        return lines


def tuning_law(
    source, excess: float = 0.0025, confidence: float = 0.95, batch_variables: Sequence[str] = ("D",)
) -> TuningLaw:
    """Fits the optimal learning rate, and batch size if it was varied, as power laws in N and D.

    1. Per (N, D): ln L is a parabola in ln learning_rate (and ln batch, with their product) with its minimum there.
    2. ln learning_rate* = ln k + a ln N + b ln D by weighted least squares, weights 1 / variance; same for the batch.

    Args:
        source: a frame or dict with N, D, learning_rate (or lr), loss, and batch (tokens) if it was varied.
        excess: use only the runs whose loss is within this share of the best of their (N, D), judged by the parabola,
            so that the noise of single runs does not select them: far from its minimum the loss is not quadratic. More
            where a parabola needs them.
        confidence: confidence level of the intervals (Student's t from the scatter of the optima around the law).
        batch_variables: of the law of the batch: ("D",), ("N",) or ("N", "D"); one with a single value is left out.

    Returns:
        TuningLaw; at_bound where the optima lie at the edge of their sweeps (`reasons` say which values to add),
        too_few_points where fewer optima than parameters are left, not_identified where N and D are collinear. A
        single sweep whose minimum is at its edge is left out, named in `warnings` and kept in `optima`.

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
    if not excess > 0:
        raise InputError(f"expected excess > 0, got {excess}")
    if not batch_variables or not set(batch_variables) <= {"N", "D"}:
        raise InputError(f"batch_variables: expected N, D or both, got {', '.join(batch_variables) or 'none'}")
    frame = frame_of(source, WHAT)
    frame = frame if "learning_rate" in frame else frame.rename(columns={"lr": "learning_rate"})
    need(frame, ("learning_rate",), WHAT)
    knobs = tuple(k for k in KNOBS if k in frame and np.ptp(np.log(positive(frame, k, WHAT))) > 1e-9)
    columns = {name: positive(frame, name, WHAT) for name in ("N", "D", "loss", *knobs)}
    rows = f"its runs within {excess:.2%} of the lowest loss (more if too few)"
    logs = ", ".join(f"ln {k}" for k in knobs or KNOBS)
    conventions = {
        "N": "N as given in the table",
        "D": "D as given in the table",
        "optimum": f"optimum of an (N, D): minimum of a parabola in {logs} through {rows}",
    }
    options = {"knobs": knobs, "confidence": confidence, "conventions": conventions}
    if not knobs:
        return TuningLaw(status="not_identified", reasons=("the learning rate has one value",), **options)
    cells = np.unique(np.stack([cluster(columns["N"]), cluster(columns["D"])]), axis=1, return_inverse=True)[1].ravel()
    fits = [_parabola(columns, np.flatnonzero(cells == g), knobs, excess) for g in range(cells.max() + 1)]
    optima = _optima(fits, knobs)
    left_out, warnings = list(_left_out(optima)), [w for f in fits for w in f["warnings"]]
    options |= {"optima": optima, "warnings": tuple(warnings)}
    good = [o for o in optima if not o.reason]
    x = {name: np.array([getattr(o, name) for o in good]) for name in ("N", "D")}
    x = {name: v for name, v in x.items() if len(v) and np.ptp(np.log(v)) > 0.05}
    if len(good) < 2 + len(x) or not x:
        few = f"{len(good)} of {len(optima)} (N, D) have an optimum; a law in N and D needs 4, a law in one of them 3"
        edge = any("edge" in o.reason for o in optima)
        return TuningLaw(status="at_bound" if edge else "too_few_points", reasons=(few, *left_out), **options)
    options["warnings"] = (*left_out, *warnings)
    if together := leastsq.combination(np.log(list(x.values())), tuple(x)):
        return TuningLaw(status="not_identified", reasons=(together,), **options)
    if fixed := sorted({"N", "D"} - set(x)):
        conventions["holds"] = f"at the one {' and '.join(fixed)} of the table"
    laws = {}
    for knob in knobs:
        sd = np.array([o.sd_log[knob] for o in good])
        sd = sd if (sd > 1e-6).all() else None  # NaN where no cell has a spare row
        own = {name: v for name, v in x.items() if knob != "batch" or name in batch_variables} or x
        laws[knob] = leastsq.fit_log_law(own, np.array([o.values[knob] for o in good]), sd)
    intervals = {knob: {name: law.interval(name, confidence) for name in law.names} for knob, law in laws.items()}
    return TuningLaw(status="converged", laws=laws, intervals=intervals, **options)


def _left_out(optima):
    """Yields a sentence for each reason why (N, D) are left out, naming up to three."""
    for reason in dict.fromkeys(o.reason for o in optima if o.reason):
        cells = [f"N = {o.N:.3g}, D = {o.D:.3g}" for o in optima if o.reason == reason]
        more = f" and {len(cells) - 3} more" if len(cells) > 3 else ""
        yield f"{'; '.join(cells[:3])}{more} left out: {reason}"


def _parabola(columns, rows, knobs, excess):
    """Fits ln L at one (N, D) by a parabola in the logs of the J hyper-parameters.

    Returns a dict: N, D, points, warnings, reason; of a usable fit also vertex [J], widths of the sweep [J], unit
    [J, J] (covariance of the vertex for unit noise), loss, and ss and df of the residuals.
    """
    out = {name: float(columns[name][rows].mean()) for name in ("N", "D")}
    log_loss, x_JI = np.log(columns["loss"][rows]), np.log(np.array([columns[k][rows] for k in knobs]))
    out |= {"points": len(rows), "warnings": [], "reason": "", "ss": 0.0, "df": 0}
    if not _enough(x_JI):
        distinct = [len(np.unique(row.round(9))) for row in x_JI]
        return out | {"reason": f"{len(rows)} rows with {distinct} values of {', '.join(knobs)}, expected 3 of each"}
    ends = x_JI.min(1), x_JI.max(1)
    if np.linalg.matrix_rank(_quadratic(x_JI)) < _size(len(knobs)):
        return out | {"reason": "learning rate and batch are collinear"}
    x_JI, log_loss = _near(x_JI, log_loss, math.log1p(excess))
    best_J = x_JI[:, log_loss.argmin()]
    found, hessian_JJ, vertex_J, smooth = _bowl(x_JI, log_loss)
    at_J = best_J if vertex_J is None else vertex_J
    for knob, low, high, at in zip(knobs, *ends, at_J, strict=True):
        if not low < at < high:
            side = "smaller" if at <= low else "larger"
            return out | {"reason": f"the minimum is at the edge of the sweep in {knob}; add {side} values"}
    if vertex_J is None:
        return out | {"reason": "no minimum: the loss is not curved upwards around its best run"}
    for knob, x, at, best in zip(knobs, x_JI, vertex_J, best_J, strict=True):
        steps = abs(at - best) / np.diff(np.unique(x.round(9))).max()
        if steps > 1.5:
            out["warnings"].append(
                f"N = {out['N']:.3g}, D = {out['D']:.3g}: the parabola's optimal {knob} is {steps:.1f} sweep steps "
                "from the best run; add runs between them, or seeds"
            )
    u_J, residual = vertex_J - x_JI.mean(1), log_loss - smooth
    return out | {
        "points": len(log_loss),
        "vertex": vertex_J,
        "widths": ends[1] - ends[0],
        "unit": _unit_covariance(x_JI, u_J, hessian_JJ),
        "loss": math.exp(found[0] + 0.5 * found[1 : 1 + len(knobs)] @ u_J),
        "ss": float(residual @ residual),
        "df": len(log_loss) - len(found),
    }


def _near(x_JI, log_loss, width):
    """The rows whose ln loss is within `width` of the parabola's minimum; more where a parabola needs them."""
    now = np.ptp(log_loss)
    while now > width:  # nearer in steps: far rows bend the first parabolas
        now = max(now / 2, width)
        smooth = _bowl(x_JI, log_loss)[-1]
        near = smooth <= smooth.min() + now
        if not _enough(x_JI[:, near], spare=1) or np.linalg.matrix_rank(_quadratic(x_JI[:, near])) < _size(len(x_JI)):
            break
        x_JI, log_loss = x_JI[:, near], log_loss[near]
    return x_JI, log_loss


def _unit_covariance(x_JI, u_J, hessian_JJ):
    """Covariance [J, J] of the vertex u (centred logs) for unit noise of ln loss."""
    knobs, matrix = len(x_JI), _quadratic(x_JI)
    # d (gradient of the parabola at the vertex) / d coefficients: the vertex moves by -H^-1 times this
    moves = np.zeros((knobs, matrix.shape[1]))
    moves[:, 1 : 1 + knobs] = np.eye(knobs)
    for column, (i, j) in enumerate(_pairs(knobs), 1 + knobs):
        moves[i, column] += u_J[j]
        moves[j, column] += u_J[i]
    jacobian = -np.linalg.solve(hessian_JJ, moves)
    return jacobian @ np.linalg.inv(matrix.T @ matrix) @ jacobian.T


def _pairs(knobs):
    return [(j, j) for j in range(knobs)] + list(combinations(range(knobs), 2))


def _size(knobs):
    return 1 + knobs + len(_pairs(knobs))


def _enough(x_JI, spare=0):
    """Whether a parabola can be fitted: three values of each hyper-parameter, and rows for its coefficients."""
    return min(len(np.unique(row.round(9))) for row in x_JI) >= 3 and x_JI.shape[1] >= _size(len(x_JI)) + spare


def _quadratic(x_JI):
    """The matrix of the parabola, [I, 1 + J + pairs]: a constant, the centred logs, their products."""
    u_JI = x_JI - x_JI.mean(1, keepdims=True)
    return np.stack([np.ones(x_JI.shape[1]), *u_JI, *(u_JI[i] * u_JI[j] for i, j in _pairs(len(x_JI)))], 1)


def _bowl(x_JI, log_loss):
    """Coefficients of the parabola, its Hessian [J, J], its minimum [J] (None if there is none), and its values [I]."""
    matrix, knobs = _quadratic(x_JI), len(x_JI)
    found = np.linalg.lstsq(matrix, log_loss, rcond=None)[0]
    hessian_JJ = np.zeros((knobs, knobs))
    for (i, j), value in zip(_pairs(knobs), found[1 + knobs :], strict=True):
        hessian_JJ[i, j] += value
        hessian_JJ[j, i] += value
    if not (np.linalg.eigvalsh(hessian_JJ) > 0).all():
        return found, hessian_JJ, None, log_loss
    return found, hessian_JJ, x_JI.mean(1) - np.linalg.solve(hessian_JJ, found[1 : 1 + knobs]), matrix @ found


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

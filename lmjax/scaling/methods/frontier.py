"""Compute-optimal sizes from training curves (approach 1): the lower envelope over runs, then a power law in C.

The loss inside a decaying schedule is not the loss of a run of that length. Use runs of several lengths (or branches
of a constant schedule); the envelope picks those that end near each budget.

Intervals come from resampled runs. With few sizes they mostly reflect the steps of the envelope and are too wide; the
envelope also favours runs with a lucky seed, a small bias of `a` that the intervals do not include.
tests/test_scaling_methods.py measures both.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.format import count, flop
from lmjax.scaling.columns import frame_of, need, positive, shares
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN
from lmjax.scaling.methods import loglinear
from lmjax.scaling.methods.outcome import PowerOfC, intervals_of, table_text
from lmjax.scaling.methods.run_tables import by_run, incomplete
from lmjax.scaling.resample import counts, generator

WHAT = "the training curves"
MIN_SIZES = 3  # sizes strictly between the smallest and the largest that must be on the envelope


@dataclass(frozen=True, kw_only=True)
class Frontier(PowerOfC):
    """The envelope of training curves and its power laws N*(C), D*(C); see PowerOfC for predict(C, of=...).

    C, loss, N, D, run: the envelope at log-spaced budgets [M] (FLOP, parameters, tokens, label of the best run).
    used: [M] whether the budget enters the regression: the next smaller and the next larger size must reach it too.
    curves: run -> (ln N, ln C [P], smoothed ln loss [P]). resamples_failed: resamples with too few sizes.
    """

    C: tuple[float, ...] = ()
    loss: tuple[float, ...] = ()
    N: tuple[float, ...] = ()
    D: tuple[float, ...] = ()
    run: tuple[str, ...] = ()
    used: tuple[bool, ...] = ()
    curves: dict[str, tuple]
    resamples_failed: int = 0

    @property
    def budgets(self) -> list[float]:
        """Budgets that enter the regression, FLOP."""
        return [c for c, used in zip(self.C, self.used, strict=True) if used]

    def lines(self) -> list[str]:
        """The sizes on the envelope with their ranges of C, and the power laws."""
        rows = []
        for c, n, loss, used in zip(self.C, self.N, self.loss, self.used, strict=True):
            if used and (not rows or rows[-1]["N"] != n):
                rows.append({"N": n, "C_low": c})
            if used:
                rows[-1] |= {"C_high": c, "loss": loss}
        columns = [Column("N", "N*", count), Column("C_low", "from C", flop), Column("C_high", "to C", flop)]
        columns.append(Column("loss", "loss at its end", "{:.4f}".format))
        return [table_text(rows, columns)] * bool(rows) + self.law_lines()


def frontier(
    source,
    smoothing=0.05,
    interval_means=False,
    budgets=200,
    allow_incomplete=False,
    resamples=1000,
    confidence=0.95,
    seed=0,
) -> Frontier:
    """Fits N*(C) and D*(C) to the lower envelope of training curves.

    At each budget the run with the lowest smoothed loss gives N* and D*; then ln N* = a ln C + k.

    Args:
        source: a frame or dict of curve points: run, N, loss and C (FLOP) or D (tokens so far; the other is
            C = 6 N D); schedule_complete (False where the run stopped before the end of its schedule).
        smoothing: each point becomes the mean over the points whose compute lies within this share below it (5 %:
            from 0.95 C to C), placed at their mean ln C, so that smoothing does not delay the curve; 0: none.
        interval_means: the losses are means since the previous point (training losses as logged), so each belongs
            to the middle of its interval: half an interval earlier than logged.
        budgets: log-spaced budgets between the smallest compute that two sizes share and the largest.
        allow_incomplete: use runs whose schedule did not complete; the result carries a warning.
        resamples: bootstrap resamples of the runs behind the intervals; 0 computes none.
        confidence: confidence level of the intervals.
        seed: random seed of the resampling.

    Returns:
        Frontier; too_few_points where fewer than three sizes lie on the envelope with both neighbours (the next
        smaller and larger size) at the same compute, at_bound where none does.

    Raises:
        InputError: missing columns, NaN, compute that decreases along a curve, incomplete schedules.

    Example (curves without noise; a = beta / (alpha + beta) = 0.4516):
        >>> N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e9, 16), np.geomspace(1e7, 1e11, 200)))
        >>> rows = dict(run=N.astype(int), N=N, D=D, loss=1.7 + 406 * N**-0.34 + 411 * D**-0.28)
        >>> round(frontier(rows, smoothing=0, resamples=0).a, 2)
        0.45

    Paper: arXiv:2203.15556, approach 1; arXiv:2406.19146 for smoothing and the half interval.
    """
    shares(confidence, resamples)
    if not 0 <= smoothing < 1 or budgets < 10:
        raise InputError(f"expected 0 <= smoothing < 1 and budgets >= 10, got {smoothing}, {budgets}")
    frame = frame_of(source, WHAT)
    need(frame, ("run", "N", "loss"), WHAT)
    warnings = list(_schedules(frame, allow_incomplete))
    curves, conventions = _curves(frame, smoothing, interval_means)
    options = {"confidence": confidence, "seed": seed, "warnings": tuple(warnings), "conventions": conventions}
    options["curves"] = {run: (n, tuple(c.tolist()), tuple(y.tolist())) for run, (n, c, y, _) in curves.items()}
    return _fit(curves, budgets, resamples, options)


def _fit(curves, budgets, resamples, options):
    """The envelope, its power laws, then the intervals."""
    sizes = np.unique([n for n, *_ in curves.values()])
    empty = {"intervals": {}, "draws": {}}
    if len(sizes) < MIN_SIZES + 2:
        reason = f"{len(sizes)} sizes: the envelope needs {MIN_SIZES} besides the smallest and the largest"
        return Frontier(status="too_few_points", reasons=(reason,), **options, **empty)
    grid_M = _grid(curves, budgets)
    log_n_R, log_loss_RM, log_d_RM = _sampled(curves, grid_M)
    best_M, every = log_loss_RM.argmin(0), np.arange(len(grid_M))
    fitted, used = _regress(grid_M, log_n_R, log_loss_RM, log_d_RM)
    names = list(curves)
    options |= {
        "C": tuple(np.exp(grid_M).tolist()),
        "loss": tuple(np.exp(log_loss_RM[best_M, every]).tolist()),
        "N": tuple(np.exp(log_n_R[best_M]).tolist()),
        "D": tuple(np.exp(log_d_RM[best_M, every]).tolist()),
        "run": tuple(names[i] for i in best_M),
        "used": tuple(used.tolist()),
    }
    if fitted is None:
        inner = len(np.unique(log_n_R[best_M][used]))
        reason = f"{inner} sizes with both neighbours at their compute lie on the envelope, expected {MIN_SIZES}"
        status = "at_bound" if not inner else "too_few_points"
        return Frontier(status=status, reasons=(reason,), **options, **empty)
    return _with_intervals(options, fitted, (grid_M, log_n_R, log_loss_RM, log_d_RM), resamples)


def _schedules(frame, allow_incomplete):
    """Yields warnings about schedules; raises InputError for incomplete ones unless they are allowed."""
    if "schedule_complete" not in frame:
        yield "no column schedule_complete: it is unknown whether the schedules of these runs completed"
        return
    cut = incomplete(frame, WHAT)
    if cut and not allow_incomplete:
        raise InputError(
            f"{WHAT}: the schedule of {', '.join(cut[:5])}{' ...' * (len(cut) > 5)} did not complete; leave these "
            "runs out, or set allow_incomplete=True to use them with a warning"
        )
    if cut:
        yield f"{len(cut)} runs with an incomplete schedule are used ({', '.join(cut[:5])}): their losses are too high"


def _curves(frame, smoothing, interval_means):
    """run -> (ln N, ln C [P], smoothed ln loss [P], ln D [P])."""
    N, loss = positive(frame, "N", WHAT), positive(frame, "loss", WHAT)
    if "D" not in frame and "C" not in frame:
        need(frame, ("C",), WHAT)
    C = positive(frame, "C", WHAT) if "C" in frame else FLOPS_PER_PARAM_TOKEN * N * positive(frame, "D", WHAT)
    D = positive(frame, "D", WHAT) if "D" in frame else C / (FLOPS_PER_PARAM_TOKEN * N)
    conventions = {
        "N": "N as given in the table",
        "C": "C as given in the table" if "C" in frame else "C = 6 N D FLOP",
        "loss": f"mean over the last {smoothing:.0%} of compute, at its middle" if smoothing else "not smoothed",
    }
    if interval_means:
        conventions["loss"] += "; logged means moved back by half an interval"
    curves = {}
    for run, at in by_run(frame, C, N, WHAT, fewest=3).items():
        log_c, log_d = _placed(C[at], interval_means), _placed(D[at], interval_means)
        log_c, log_d, y = _smooth(log_c, log_d, np.log(loss[at]), smoothing)
        curves[run] = (float(np.log(N[at[0]])), log_c, y, log_d)
    return curves, conventions


def _placed(x, interval_means):
    """ln of where each loss belongs: its own place, or the middle of the interval before it."""
    return np.log(0.5 * (x + np.concatenate([[0.0], x[:-1]]))) if interval_means else np.log(x)


def _smooth(log_c, log_d, y, smoothing):
    """Means over the points from (1 - smoothing) C to C, positions included, so that nothing is delayed."""
    if not smoothing:
        return log_c, log_d, y
    first = np.searchsorted(log_c, log_c + math.log1p(-smoothing) - 1e-12)
    stop = np.arange(1, len(y) + 1)

    def mean(values):
        total = np.concatenate([[0.0], np.cumsum(values)])
        return (total[stop] - total[first]) / (stop - first)

    return mean(log_c), mean(log_d), mean(y)


def _grid(curves, budgets):
    starts = np.sort([c[0] for _, c, _, _ in curves.values()])
    ends = np.sort([c[-1] for _, c, _, _ in curves.values()])
    return np.linspace(starts[1], ends[-1], budgets)


def _sampled(curves, grid_M):
    """ln N [R], ln loss [R, M] (infinite outside of a run) and ln D [R, M] at the budgets."""
    log_n = np.array([n for n, *_ in curves.values()])
    loss, tokens = [], []
    for _, log_c, y, log_d in curves.values():
        loss.append(np.interp(grid_M, log_c, y, left=math.inf, right=math.inf))
        tokens.append(np.interp(grid_M, log_c, log_d))
    loss = np.array(loss)
    last = int(np.argmax([c[-1] for _, c, _, _ in curves.values()]))
    loss[last, -1] = min(loss[last, -1], list(curves.values())[last][2][-1])
    return log_n, loss, np.array(tokens)


def _regress(grid_M, log_n_R, log_loss_RM, log_d_RM):
    """((a, k, b, m) or None, used [M]).

    A budget is used if the next smaller and the next larger size reach it too: otherwise the best run may be the best
    only because the others ended earlier or were never trained.
    """
    best_M, every = log_loss_RM.argmin(0), np.arange(len(grid_M))
    log_n_M = log_n_R[best_M]
    size_G, owner_R = np.unique(log_n_R, return_inverse=True)
    reached_GM = np.array([np.isfinite(log_loss_RM[owner_R == g]).any(0) for g in range(len(size_G))])
    # with empty rows around them, the smallest and the largest size never have both neighbours
    padded = np.pad(reached_GM, ((1, 1), (0, 0)))
    at_M = owner_R[best_M]
    used = reached_GM[at_M, every] & padded[at_M, every] & padded[at_M + 2, every]
    if len(np.unique(log_n_M[used])) < MIN_SIZES:
        return None, used
    ones = np.ones(int(used.sum()))
    both = np.stack([log_n_M[used], log_d_RM[best_M, every][used]])
    (k, a), (m, b) = loglinear.solve(grid_M[used][None], both, ones)
    return (a, k, b, m), used


def _with_intervals(options, fitted, arrays, resamples):
    """Resamples whole runs, because the points of a run share its seed noise."""
    times_PR = counts(generator(options["seed"]), np.arange(len(arrays[1])), resamples)
    refits = [_regress(arrays[0], *(v[times_R > 0] for v in arrays[1:]))[0] for times_R in times_PR]
    draws = [refit for refit in refits if refit is not None]  # a run drawn twice changes no envelope
    failed = resamples - len(draws)
    warnings = list(options.pop("warnings"))
    lost = f"{failed} of {resamples} resamples left too few sizes on the envelope"
    if not resamples:
        warnings.append("no intervals: resamples = 0")
    elif len(draws) < 20:
        warnings.append(f"no intervals: {lost}")
    elif failed > 0.05 * resamples:
        warnings.append(f"{lost}: intervals are approximate")
    columns = np.array(draws).T.tolist() if len(draws) >= 20 else []
    named = {name: tuple(v) for name, v in zip("akbm", columns, strict=False)}
    return Frontier(
        status="converged",
        **{name: float(v) for name, v in zip("akbm", fitted, strict=True)},
        intervals=intervals_of(named, "ab", options["confidence"]),
        resamples=resamples,
        resamples_failed=failed,
        draws=named,
        warnings=tuple(warnings),
        **options,
    )

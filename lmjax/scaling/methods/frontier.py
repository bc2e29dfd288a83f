"""Compute-optimal sizes from training curves (approach 1): the lower envelope over runs, then a power law in C.

The loss inside a decaying schedule is not the loss of a run of that length. Use runs of several lengths (or branches
of a constant schedule); the envelope picks those that end near each budget.

Intervals come from resampled runs. With few sizes they mostly reflect the steps of the envelope and are too wide; the
envelope also favours runs with a lucky seed, a small bias of `a` that the intervals do not include.
tests/test_scaling_methods.py measures both.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lmjax.display import Column
from lmjax.errors import InputError
from lmjax.format import count, flop
from lmjax.scaling.columns import frame_of, need, positive, shares
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN
from lmjax.scaling.methods import leastsq
from lmjax.scaling.methods.outcome import PowerOfC, intervals_of, table_text, tuples
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
    curves: dict[str, tuple] = field(default_factory=dict)
    resamples_failed: int = 0

    def rows(self) -> list[dict]:
        """The envelope, one row per budget."""
        names = ("C", "loss", "N", "D", "run", "used")
        return [dict(zip(names, v, strict=True)) for v in zip(*(getattr(self, n) for n in names), strict=True)]

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
        resamples, confidence, seed: bootstrap resamples of whole runs (0: no intervals), confidence level, seed.

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
    options = {"confidence": confidence, "seed": seed, "conventions": conventions}
    options["curves"] = {run: (n, tuple(c.tolist()), tuple(y.tolist())) for run, (n, c, y, _) in curves.items()}
    sizes = len({n for n, *_ in curves.values()})
    if sizes < MIN_SIZES + 2:
        reason = f"{sizes} sizes: the envelope needs {MIN_SIZES} besides the smallest and the largest"
        return Frontier(status="too_few_points", reasons=(reason,), warnings=tuple(warnings), **options)
    grid_M, *sampled = _sampled(curves, budgets)
    fitted, best_R, used = _envelope(grid_M, *sampled)
    log_n_R, log_loss_RM, log_d_RM = sampled
    at = best_R, np.arange(budgets)
    options |= tuples({"C": np.exp(grid_M), "loss": np.exp(log_loss_RM[at]), "N": np.exp(log_n_R[best_R])})
    options |= tuples({"D": np.exp(log_d_RM[at]), "used": used, "run": np.array(list(curves))[best_R]})
    if fitted is None:
        inner = len(np.unique(log_n_R[best_R][used]))
        reason = f"{inner} sizes with both neighbours at their compute lie on the envelope, expected {MIN_SIZES}"
        status = "too_few_points" if inner else "at_bound"
        return Frontier(status=status, reasons=(reason,), warnings=tuple(warnings), **options)
    # whole runs are resampled, because the points of a run share its seed noise; drawn twice it changes no envelope
    times_PR = counts(generator(seed), np.arange(len(curves)), resamples)
    refits = [_envelope(grid_M, *(v[times_R > 0] for v in sampled))[0] for times_R in times_PR]
    good = [refit for refit in refits if refit is not None]
    failed = resamples - len(good)
    lost = f"{failed} of {resamples} resamples left too few sizes on the envelope"
    if len(good) < 20:
        warnings.append("no intervals: " + (lost if resamples else "resamples = 0"))
        good = []
    elif failed > 0.05 * resamples:
        warnings.append(f"{lost}: intervals are approximate")
    draws = tuples(dict(zip("akbm", np.transpose(good), strict=True))) if good else {}
    return Frontier(
        status="converged",
        **{name: float(v) for name, v in zip("akbm", fitted, strict=True)},
        intervals=intervals_of(draws, "ab", confidence),
        resamples=resamples,
        resamples_failed=failed,
        draws=draws,
        warnings=tuple(warnings),
        **options,
    )


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
    """run -> (ln N, ln C [P], smoothed ln loss [P], ln D [P]); conventions."""
    N, loss = positive(frame, "N", WHAT), positive(frame, "loss", WHAT)
    D = positive(frame, "D", WHAT) if "D" in frame else positive(frame, "C", WHAT) / (FLOPS_PER_PARAM_TOKEN * N)
    C = positive(frame, "C", WHAT) if "C" in frame else FLOPS_PER_PARAM_TOKEN * N * D
    conventions = {
        "N": "N as given in the table",
        "C": "C as given in the table" if "C" in frame else "C = 6 N D FLOP",
        "loss": f"mean over the last {smoothing:.0%} of compute, at its middle" if smoothing else "not smoothed",
    }
    if interval_means:
        conventions["loss"] += "; logged means moved back by half an interval"
    curves = {}
    for run, at in by_run(frame, C, N, WHAT, fewest=3).items():
        x = [C[at], D[at]]
        if interval_means:  # each loss belongs to the middle of the interval before it
            x = [0.5 * (v + np.concatenate([[0.0], v[:-1]])) for v in x]
        log_c, log_d, y = _smooth(*np.log([*x, loss[at]]), smoothing)
        curves[run] = (float(np.log(N[at[0]])), log_c, y, log_d)
    return curves, conventions


def _smooth(log_c, log_d, y, smoothing):
    """Means over the points from (1 - smoothing) C to C, positions included, so that nothing is delayed."""
    if not smoothing:
        return log_c, log_d, y
    first = np.searchsorted(log_c, log_c + math.log1p(-smoothing) - 1e-12)
    stop = np.arange(1, len(y) + 1)
    totals = (np.concatenate([[0.0], np.cumsum(values)]) for values in (log_c, log_d, y))
    return [(total[stop] - total[first]) / (stop - first) for total in totals]


def _sampled(curves, budgets):
    """ln C [M] of the budgets, and there ln N [R], ln loss [R, M] (infinite outside of a run) and ln D [R, M]."""
    log_n, log_c, log_loss, log_d = zip(*curves.values(), strict=True)
    start, end = np.sort([c[0] for c in log_c])[1], max(c[-1] for c in log_c)
    grid_M, inf = np.linspace(start, end, budgets), math.inf
    loss = np.array([np.interp(grid_M, c, y, left=inf, right=inf) for c, y in zip(log_c, log_loss, strict=True)])
    last = int(np.argmax([c[-1] for c in log_c]))
    loss[last, -1] = min(loss[last, -1], log_loss[last][-1])  # rounding may put the last budget past its end
    tokens = [np.interp(grid_M, c, d) for c, d in zip(log_c, log_d, strict=True)]
    return grid_M, np.array(log_n), loss, np.array(tokens)


def _envelope(grid_M, log_n_R, log_loss_RM, log_d_RM):
    """((a, k, b, m) or None, best run [M], used [M]).

    A budget is used if the next smaller and the next larger size reach it too: otherwise the best run may be the best
    only because the others ended earlier or were never trained.
    """
    best_M, every = log_loss_RM.argmin(0), np.arange(len(grid_M))
    size_G, owner_R = np.unique(log_n_R, return_inverse=True)
    reached_GM = np.array([np.isfinite(log_loss_RM[owner_R == g]).any(0) for g in range(len(size_G))])
    # with empty rows around them, the smallest and the largest size never have both neighbours
    padded, at_M = np.pad(reached_GM, ((1, 1), (0, 0))), owner_R[best_M]
    used = padded[at_M, every] & padded[at_M + 1, every] & padded[at_M + 2, every]
    log_n, log_d = log_n_R[best_M][used], log_d_RM[best_M, every][used]
    if len(np.unique(log_n)) < MIN_SIZES:
        return None, best_M, used
    (k, a), (m, b) = leastsq.solve(grid_M[used][None], np.stack([log_n, log_d]), np.ones(len(log_n)))
    return (a, k, b, m), best_M, used

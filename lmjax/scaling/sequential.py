"""Which runs to make next, so that one stated prediction becomes sharper. Reads a fit, proposes cells, runs nothing.

A run at cell x with noise s adds j j' / s^2 to the information, j = d ln L / d q. With the covariance S of the fitted
coordinates and the gradient g of the target, the variance g'Sg falls by (g'Sj)^2 / (s^2 + j'Sj): exact for a linear
law (Sherman and Morrison), a c-optimal step (Elfving 1952) for ours. Runs are added one by one, by two greedy rules:
the largest fall of ln variance per FLOP, and the largest fall of all; the sequence that ends with the narrower interval
is returned, which cannot be far worse than the best set (Leskovec et al. 2007, CELF).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.information import (
    Coordinates,
    allocation_quantities,
    covariance,
    deviation,
    half_width_factor,
    price,
    relative,
)
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, get_law
from lmjax.scaling.result import Fit
from lmjax.scaling.text import short

GRID = 12  # values of N and of D among the candidates that are made up
REACH = 4.0  # they go up to so many times the largest fitted N and D
FAR = 10.0  # times the largest fitted C: beyond it the interval says less than what the law may miss


@dataclass(frozen=True)
class NextRuns:
    """What `next_runs` proposes.

    target: the prediction, in words. before, after: half width of its interval (a share of the loss or of N*), now and
        expected with all of `runs`. runs: dicts of N, D, C and the half width `after` this run and those before it.
    candidates: the same for each candidate alone, with `shrink` = 1 - after / before and `shrink_per_flop`; narrowest
        first. budget, spent: FLOP. warnings: what no further run of these mends.
    """

    target: str
    level: float
    before: float
    after: float
    runs: tuple[dict, ...]
    candidates: tuple[dict, ...]
    budget: float
    spent: float
    warnings: tuple[str, ...] = ()

    def text(self) -> str:
        """The proposal in words."""
        lines = [
            f"{self.target}: {self.level:.0%} half width now {100 * self.before:.2g} %, expected "
            f"{100 * self.after:.2g} % with {len(self.runs)} more runs ({self.spent:.3g} of {self.budget:.3g} FLOP)"
        ]
        lines += [
            "in this order; the last column is the half width expected after that run and all above it:",
            f"  {'N':>8}  {'D':>8}  {'6 N D FLOP':>10}  half width",
        ]
        lines += [
            f"  {short(row['N']):>8}  {short(row['D']):>8}  {row['C']:10.3g}  {100 * row['after']:.2g} %"
            for row in self.runs
        ]
        return "\n".join([*lines, *(f"beware: {warning}" for warning in self.warnings)])


def next_runs(
    fit: Fit,
    budget: float,
    target: tuple[float, float] | float,
    candidates: Sequence[tuple[float, float]] | None = None,
    count: int = 4,
) -> NextRuns:
    """Names the cells that shrink the interval of a stated prediction most.

    Args:
        fit: a usable fit of a law of N, D or C, by a log objective.
        budget: compute of all new runs together in FLOP, C = 6 N D.
        target: (N, D), the loss there; or a budget C in FLOP, N*(C) (chinchilla).
        candidates: cells (N, D) that could be run; None: a 12 x 12 grid from the smallest fitted N and D to 4 times
            the largest, with D/N inside 4 times the fitted range.
        count: runs at most. A cell may be named more than once: a repeat tells something too.

    Returns:
        NextRuns; half widths are those of the fit's own refits, where it has some, times the ratio that the
        information predicts.

    Raises:
        InputError: a refused fit, a law with other variables, a fit of the plain loss, no candidate within the budget.
    """
    law = get_law(fit.usable().law)
    if not set(law.variables) <= {"N", "D", "C", "M"} or law.target != "loss":
        raise InputError(f"wanted a law of the loss in N, D or C to plan runs for, got {fit.formula}")
    if fit.plain:
        raise InputError(
            f"wanted a fit of ln loss to plan runs for, got criterion {fit.criterion}, whose noise is of the loss "
            "itself; fit with objective huber_log or squared_log"
        )
    if not np.isfinite([[row[name] for name in ("N", "D", "C")] for row in fit.points]).all():
        raise InputError(
            "wanted N, D and C of every fitted row to plan runs (N, D), got a table without; add columns N, D"
        )
    if not (budget > 0 and math.isfinite(budget) and count >= 1):
        raise InputError(f"wanted budget > 0 FLOP and count >= 1, got {budget} and {count}")
    coordinates = Coordinates(law, _inside(fit))
    cells = _candidates(fit, budget, candidates)
    noise = _noise(fit)
    here = {name: np.array([row[name] for row in fit.points]) for name in ("N", "D", "C")}
    weight = relative([row["weight"] for row in fit.points])
    unit = noise * price(noise, fit.delta) if fit.criterion == "huber_log" else noise
    cov = covariance(coordinates.jacobian(here), unit / np.sqrt(weight))
    gradient, words, before = _target(fit, coordinates, cov, target)
    wanted = float(target) if np.ndim(target) == 0 else FLOPS_PER_PARAM_TOKEN * float(target[0]) * float(target[1])
    rows_SK = coordinates.jacobian({"N": cells[:, 0], "D": cells[:, 1], "C": _cost(cells)})
    sequences = [_greedy(cov, gradient, rows_SK, unit, _cost(cells), budget, count, rule) for rule in ("flop", "run")]
    chosen, ends = min(sequences, key=lambda pair: pair[1][-1])
    start = float(deviation(gradient, cov))
    alone = _after(cov, gradient, rows_SK, unit) / start
    listed = [
        {
            **_cell(cell),
            "after": before * float(ratio),
            "shrink": 1 - float(ratio),
            "shrink_per_flop": (1 - float(ratio)) / float(_cost(cell[None])[0]),
        }
        for cell, ratio in zip(cells, alone, strict=True)
    ]
    runs = [{**_cell(cells[i]), "after": before * end / start} for i, end in zip(chosen, ends, strict=True)]
    return NextRuns(
        words,
        fit.level,
        before,
        runs[-1]["after"],
        tuple(runs),
        tuple(sorted(listed, key=lambda row: row["after"])),
        float(budget),
        float(sum(row["C"] for row in runs)),
        tuple(_warnings(wanted / here["C"].max())),
    )


def _warnings(reach):
    if reach > FAR:
        yield (
            f"the target takes {reach:.3g} times the largest fitted compute; intervals count the noise, not what the "
            f"law itself may miss beyond {FAR:g} times"
        )


def _inside(fit) -> Mapping[str, float]:
    """Parameters a little inside of their bounds, where the derivatives are those of the free parameters."""
    return {name: max(value, 1e-12) if name == "E" else value for name, value in fit.params.items()}


def _cell(cell):
    return {"N": float(cell[0]), "D": float(cell[1]), "C": float(_cost(cell[None])[0])}


def _cost(cells):
    return FLOPS_PER_PARAM_TOKEN * cells[:, 0] * cells[:, 1]


def _noise(fit):
    """Standard deviation of ln loss around the law: of the refits, else of the residuals."""
    residual = np.array([row["residual"] for row in fit.points]) * np.sqrt(
        relative([row["weight"] for row in fit.points])
    )
    spare = max(len(residual) - len(fit.params), 1)
    noise = fit.noise_sd if math.isfinite(fit.noise_sd) else float(np.sqrt((residual**2).sum() / spare))
    if not noise > 1e-12:
        raise InputError("the fit has no noise: its predictions have no interval to shrink")
    return noise


def _candidates(fit, budget, given):
    """Cells [S, 2] that cost no more than the budget."""
    n, d = (np.array([row[name] for row in fit.points]) for name in ("N", "D"))
    if given is None:
        axis_n, axis_d = (np.geomspace(x.min(), REACH * x.max(), GRID) for x in (n, d))
        cells = np.array([(a, b) for a in axis_n for b in axis_d])
        ratio = cells[:, 1] / cells[:, 0]
        cells = cells[(ratio >= (d / n).min() / REACH) & (ratio <= (d / n).max() * REACH)]
    else:
        cells = np.asarray(given, float).reshape(-1, 2)
        if not (len(cells) and np.isfinite(cells).all() and (cells > 0).all()):
            raise InputError(f"wanted candidates as pairs (N, D) above 0, got {given}")
    affordable = cells[_cost(cells) <= budget]
    if not len(affordable):
        raise InputError(
            f"wanted a candidate of at most {budget:.3g} FLOP, the cheapest of {len(cells)} costs "
            f"{_cost(cells).min():.3g}; set a larger budget or name smaller candidates"
        )
    return affordable


def _target(fit, coordinates, cov, target):
    """Gradient of the target, its name, and the half width of its interval now."""
    factor = half_width_factor(fit.level)
    if np.ndim(target) == 1 and len(target) == 2:
        n, d = map(float, target)
        if not (n > 0 and d > 0):
            raise InputError(f"wanted a target (N, D) above 0, got {target}")
        gradient = coordinates.jacobian({"N": n, "D": d, "C": FLOPS_PER_PARAM_TOKEN * n * d})[0]
        words = f"the loss at N {short(n)}, D {short(d)}"
        here = fit.predict(N=n, D=d, new_run=False)
        ends = (here.low, here.high) if fit.resamples else None
    elif np.ndim(target) == 0:
        if coordinates.law.name != "chinchilla" or not target > 0:
            raise InputError(f"wanted a target (N, D), or C > 0 and a fit of chinchilla for N*(C), got {target}")
        gradient = coordinates.gradient(allocation_quantities(fit.params, float(target))["N*"])
        words = f"N* at {float(target):.3g} FLOP"
        best = fit.allocate(float(target)) if fit.resamples else None
        ends = (best["N_low"], best["N_high"]) if fit.resamples else None
    else:
        raise InputError(f"wanted a target (N, D) or a budget C, got {target!r}")
    if ends is not None:
        return gradient, words, float(np.log(ends[1] / ends[0]) / 2)
    return gradient, words, factor * float(deviation(gradient, cov))


def _after(cov, gradient, rows_SK, noise):
    """Standard deviation of the target with each candidate added alone, [S]."""
    lever_SK = rows_SK @ cov
    fall = (lever_SK @ gradient) ** 2 / (noise**2 + np.einsum("sk,sk->s", lever_SK, rows_SK))
    return np.sqrt(np.maximum(gradient @ cov @ gradient - fall, 0.0))


def _greedy(cov, gradient, rows_SK, noise, cost, budget, count, rule):
    """Adds candidates one by one; returns their places and the standard deviation of the target after each."""
    chosen, ends = [], []
    while len(chosen) < count:
        possible = np.flatnonzero(cost <= budget)
        if not possible.size:
            break
        now = float(deviation(gradient, cov))
        after = _after(cov, gradient, rows_SK[possible], noise)
        fall = np.log(now) - np.log(np.maximum(after, 1e-300))
        best = int(np.argmax(fall / cost[possible] if rule == "flop" else fall))
        i = int(possible[best])
        lever = cov @ rows_SK[i]
        cov = cov - np.outer(lever, lever) / (noise**2 + rows_SK[i] @ lever)
        budget -= cost[i]
        chosen.append(i)
        ends.append(float(after[best]))
    return chosen, ends

"""Optima at budgets: their record, and those of a fitted surface E + A N^-alpha + B D^-beta. Fits nothing."""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, optimal_allocation


@dataclass(frozen=True)
class Optimum:
    """The optimum of one budget. C, N, D in FLOP, parameters, tokens; sd_log_N: of ln N under the noise.

    points: (run, N, D, loss) of the budget by size; reason: why there is no optimum, empty if there is.
    at_edge: share of the noisy refits whose minimum is the smallest or the largest size.
    """

    C: float
    N: float
    D: float
    loss: float
    N_low: float
    N_high: float
    D_low: float
    D_high: float
    sd_log_N: float
    at_edge: float
    points: tuple[dict, ...]
    reason: str


def power_laws(params) -> dict[str, np.ndarray]:
    """ln N* = a ln C + k and ln D* = b ln C + m of E + A N^-alpha + B D^-beta at C = 6 N D.

    Args:
        params: of the law chinchilla, floats or arrays [P]; see laws.optimal_allocation.

    Returns:
        dict a, k, b, m, each [P].

    Example:
        >>> law = power_laws(dict(E=1.7, A=400.0, alpha=0.3, B=400.0, beta=0.3))
        >>> {name: float(v.round(3)) for name, v in law.items()}
        {'a': 0.5, 'k': -0.896, 'b': 0.5, 'm': -0.896}

    Paper: arXiv:2203.15556, equation 4.
    """
    unit = optimal_allocation(params, float(FLOPS_PER_PARAM_TOKEN))  # N D = 1
    a, six = unit["a"], math.log(FLOPS_PER_PARAM_TOKEN)
    return {"a": a, "k": np.log(unit["N"]) - a * six, "b": 1 - a, "m": np.log(unit["D"]) - (1 - a) * six}


def surface_optima(table, params, drawn_params, level):
    """(values, draws, optima, warnings) of isoflop's method "surface", from the law's parameters and their refits."""
    values = {name: float(v) for name, v in power_laws(params).items()}
    draws = {name: tuple(v.tolist()) for name, v in power_laws(drawn_params).items()}
    tails, optima, outside = [(1 - level) / 2, (1 + level) / 2], [], 0
    for group in table.groups:
        budget = math.exp(np.log(FLOPS_PER_PARAM_TOKEN * table.N[group] * table.D[group]).mean())
        best = {name: float(v) for name, v in optimal_allocation(params, budget).items()}
        drawn = np.log(optimal_allocation(drawn_params, budget)["N"])
        low, high = np.exp(np.quantile(drawn, tails)) if len(drawn) else (math.nan, math.nan)
        product, sizes = best["N"] * best["D"], table.N[group]
        outside += not sizes.min() <= best["N"] <= sizes.max()
        points = tuple(
            {"run": table.run[i], "N": float(table.N[i]), "D": float(table.D[i]), "loss": float(table.loss[i])}
            for i in group
        )
        ends = (float(low), float(high), float(product / high), float(product / low))
        spread = float(drawn.std(ddof=1)) if len(drawn) else math.nan
        optima.append(Optimum(budget, best["N"], best["D"], best["loss"], *ends, spread, 0.0, points, ""))
    words = f"{outside} of {len(optima)} optima lie{'s' * (outside == 1)} outside of the sizes trained at the budget"
    return values, draws, tuple(optima), (words,) * bool(outside)

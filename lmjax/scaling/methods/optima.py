"""Optima at budgets: their record, and those of a fitted surface E + A N^-alpha + B D^-beta. Fits nothing."""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN


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


def closed_form(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ln N* = a ln C + k and ln D* = b ln C + m of E + A N^-alpha + B D^-beta at C = 6 N D.

    G = (alpha A / (beta B))^(1/(alpha+beta)), N* = G (C/6)^a, D* = (C/6)^b / G, a = beta / (alpha + beta), b = 1 - a.

    Args:
        parameters: of methods.additive: ln_A_0, a_0 (alpha), ln_A_1, a_1 (beta), each [P].

    Returns:
        dict a, k, b, m, each [P].

    Paper: arXiv:2203.15556, equation 4.
    """
    alpha, beta = parameters["a_0"], parameters["a_1"]
    log_g = (np.log(alpha) + parameters["ln_A_0"] - np.log(beta) - parameters["ln_A_1"]) / (alpha + beta)
    a = beta / (alpha + beta)
    six = math.log(FLOPS_PER_PARAM_TOKEN)
    return {"a": a, "k": log_g - a * six, "b": 1 - a, "m": -log_g - (1 - a) * six}


def surface_optima(table, found, phi_PK, level):
    """(values, draws, optima, warnings) of isoflop's method "surface"; found and phi_PK are of methods.additive."""
    values = {name: float(v[0]) for name, v in closed_form(found.parameters()).items()}
    draws = {name: tuple(v.tolist()) for name, v in closed_form(found.parameters(phi_PK)).items()}
    tails, optima, warnings = [(1 - level) / 2, (1 + level) / 2], [], []
    for group in table.groups:
        budget = math.exp(np.log(FLOPS_PER_PARAM_TOKEN * table.N[group] * table.D[group]).mean())
        log_c = math.log(budget)
        log_n, log_d = values["a"] * log_c + values["k"], values["b"] * log_c + values["m"]
        drawn = np.array(draws["a"]) * log_c + np.array(draws["k"])
        low, high = np.quantile(drawn, tails) if len(drawn) else (math.nan, math.nan)
        shift = log_n + log_d
        loss = float(found.log_level(np.array([[log_n], [log_d]]))[0, 0])
        sizes = table.N[group]
        if not sizes.min() <= math.exp(log_n) <= sizes.max():
            warnings.append(f"budget {budget:.3g}: the optimum N = {math.exp(log_n):.3g} lies outside of its sizes")
        points = tuple(
            {"run": table.run[i], "N": float(table.N[i]), "D": float(table.D[i]), "loss": float(table.loss[i])}
            for i in group
        )
        logs = (log_n, log_d, loss, low, high, shift - high, shift - low)
        spread = float(drawn.std(ddof=1)) if len(drawn) else math.nan
        optima.append(Optimum(budget, *(float(np.exp(v)) for v in logs), spread, 0.0, points, ""))
    return values, draws, tuple(optima), warnings

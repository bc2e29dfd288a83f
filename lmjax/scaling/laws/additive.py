"""Laws that are a floor plus one falling power per variable: L = E + sum_j A_j x_j^-alpha_j.

They are fitted by the faster lmjax/scaling/engine_powers.py; any other law by engine.py.
"""

from collections.abc import Mapping

import numpy as np

from lmjax.scaling.laws.base import FLOPS_PER_PARAM_TOKEN, Law, Term, coefficient, exponent, floor, power

KAPLAN = "arXiv:2001.08361, with a floor E"


def additive(name: str, formula: str, terms: tuple[Term, ...], paper: str, **others) -> Law:
    """The law E + the sum of the terms, of any variables.

    Args:
        name, formula, paper: as in Law.
        terms: its terms, each with a variable of its own.
        **others: further fields of Law, such as derive.

    Returns:
        Law.

    Example:
        >>> law = additive("steps", "L(S) = E + A S^-alpha", (Term("A", "alpha", "S"),), "mine")
        >>> float(law.predict({"E": 1.0, "A": 2.0, "alpha": 0.5}, {"S": 4.0}))
        2.0
    """
    space = (floor(),) + tuple(p for t in terms for p in (coefficient(t.coefficient), exponent(t.exponent)))
    linear = ("E", *(t.coefficient for t in terms))

    def predict(theta, x):
        return theta["E"] + sum(power(theta[t.coefficient], theta[t.exponent], x[t.variable]) for t in terms)

    variables = tuple(term.variable for term in terms)
    return Law(name, formula, paper, variables, space, predict, linear, terms=terms, **others)


def optimal_allocation(params: Mapping[str, float], C) -> dict[str, np.ndarray]:
    """The split of a training budget between parameters and tokens that minimises the loss, at C = 6 N D.

    G = (alpha A / (beta B))^(1/(alpha+beta));  N* = G (C/6)^a,  D* = (C/6)^(1-a) / G,  a = beta/(alpha+beta).

    Args:
        params: A, alpha, B, beta (and E) of a Chinchilla law; floats or arrays.
        C: budget in FLOP, counted as 6 N D whatever the exact FLOP of the runs; float or array.

    Returns:
        dict of float64 arrays: N, D, tokens_per_param, loss, a (the exponent of N* in C).

    Example (unrounded parameters matter: a rounded to two digits moves D/N severalfold):
        >>> p = dict(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
        >>> best = optimal_allocation(p, 5.88e23)
        >>> f"{best['N']:.3g} {best['D']:.3g} {best['tokens_per_param']:.1f}"
        '7.3e+10 1.34e+12 18.4'

    Paper: arXiv:2203.15556, equation 4.
    """
    alpha, beta = np.asarray(params["alpha"], np.float64), np.asarray(params["beta"], np.float64)
    product = np.log(np.asarray(C, np.float64) / FLOPS_PER_PARAM_TOKEN)
    log_g = (np.log(alpha * params["A"]) - np.log(beta * params["B"])) / (alpha + beta)
    a = beta / (alpha + beta)
    log_n = np.clip(log_g + a * product, -300, 300)  # resamples with exponents near 0 could overflow
    n, d = np.exp(log_n), np.exp(np.clip(product - log_n, -300, 300))
    return {"N": n, "D": d, "tokens_per_param": d / n, "loss": CHINCHILLA.predict(params, {"N": n, "D": d}), "a": a}


POWER_N = additive("power_n", "L(N) = E + A N^-alpha", (Term("A", "alpha", "N"),), KAPLAN)
POWER_D = additive("power_d", "L(D) = E + B D^-beta", (Term("B", "beta", "D"),), KAPLAN)
POWER_C = additive("power_c", "L(C) = E + A C^-alpha", (Term("A", "alpha", "C"),), KAPLAN)
CHINCHILLA = additive(
    "chinchilla",
    "L(N, D) = E + A N^-alpha + B D^-beta",
    (Term("A", "alpha", "N"), Term("B", "beta", "D")),
    "arXiv:2203.15556, approach 3",
    derive=lambda params: {"a": params["beta"] / (params["alpha"] + params["beta"])},
    optimum=optimal_allocation,
)
ADDITIVE = (CHINCHILLA, POWER_N, POWER_D, POWER_C)

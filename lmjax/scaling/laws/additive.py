"""Laws that are a floor plus one falling power per variable: L = E + sum_j A_j x_j^-alpha_j. No fitting here.

L is in the unit of the table (nats per token for lmjax runs), N in parameters, D in tokens, C in FLOP.
They have a solver of their own (lmjax/scaling/solver.py); any other law goes through lmjax/scaling/general.py.
"""

from collections.abc import Mapping

import numpy as np

from lmjax.scaling.laws.base import FLOPS_PER_PARAM_TOKEN, Law, Term, coefficient, exponent, floor, power

KAPLAN = "arXiv:2001.08361, with a floor E"


def additive(name: str, formula: str, terms: tuple[Term, ...], paper: str, derive=None) -> Law:
    """The law E + the sum of the terms."""
    space = (floor(),) + tuple(p for t in terms for p in (coefficient(t.coefficient), exponent(t.exponent)))

    def parts(theta, x):
        return [power(np.log(theta[t.coefficient]), np.asarray(theta[t.exponent]), x[t.variable]) for t in terms]

    def level(theta, x):
        return sum(parts(theta, x), np.asarray(theta["E"], np.float64))

    def gradient(theta, x):
        powers = parts(theta, x)
        out = {"E": np.ones_like(powers[0])}
        for t, part in zip(terms, powers, strict=True):
            out |= {t.coefficient: part / theta[t.coefficient], t.exponent: -part * np.log(x[t.variable])}
        return out

    def starts(x, y):
        from lmjax.scaling.starts import exponent_grid, project

        u_JI = np.log([x[t.variable] for t in terms])
        centre_J = u_JI.mean(1)
        grid = exponent_grid(len(terms))
        linear = project(grid, u_JI - centre_J[:, None], np.log(y), np.ones(len(y)))
        out = np.empty((len(grid), len(space)))
        out[:, 0] = linear[:, 0]
        out[:, 1::2] = np.maximum(linear[:, 1:], 1e-6 * y.mean()) * np.exp(grid * centre_J)
        out[:, 2::2] = grid
        return out

    variables = tuple(term.variable for term in terms)
    return Law(name, formula, paper, variables, space, level, gradient, starts, terms=terms, derive=derive)


def split_exponent(params) -> dict[str, np.ndarray]:
    """a = beta / (alpha + beta), the exponent of the compute-optimal N in C."""
    return {"a": params["beta"] / (params["alpha"] + params["beta"])}


POWER_N = additive("power_n", "L(N) = E + A N^-alpha", (Term("A", "alpha", "N"),), KAPLAN)
POWER_D = additive("power_d", "L(D) = E + B D^-beta", (Term("B", "beta", "D"),), KAPLAN)
POWER_C = additive("power_c", "L(C) = E + A C^-alpha", (Term("A", "alpha", "C"),), KAPLAN)
CHINCHILLA = additive(
    "chinchilla",
    "L(N, D) = E + A N^-alpha + B D^-beta",
    (Term("A", "alpha", "N"), Term("B", "beta", "D")),
    "arXiv:2203.15556, approach 3",
    split_exponent,
)


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
    log_n = np.clip(log_g + a * product, -300, 300)  # refits whose exponents are near 0 go anywhere
    n, d = np.exp(log_n), np.exp(np.clip(product - log_n, -300, 300))
    return {"N": n, "D": d, "tokens_per_param": d / n, "loss": CHINCHILLA.level(params, {"N": n, "D": d}), "a": a}

"""The laws that can be fitted: their formulas, predictions and compute-optimal split. No fitting here.

Every law here is a floor plus one falling power per variable: L = E + sum_j A_j x_j^-alpha_j.
L is in the unit of the table (nats per token for lmjax runs), N in parameters, D in tokens, C in FLOP.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest

KAPLAN = "arXiv:2001.08361, with a floor E"
FLOPS_PER_PARAM_TOKEN = 6  # C = 6 N D: 2 forward + 4 backward (2001.08361, section 2.1)


@dataclass(frozen=True)
class Term:
    """One falling term `coefficient * variable^-exponent` of a law."""

    coefficient: str
    exponent: str
    variable: str


@dataclass(frozen=True)
class Law:
    """A law by name: its formula in words, its terms and the paper it comes from."""

    name: str
    formula: str
    terms: tuple[Term, ...]
    paper: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in the order used everywhere: E, then coefficient and exponent of each term."""
        return ("E",) + tuple(name for term in self.terms for name in (term.coefficient, term.exponent))

    @property
    def variables(self) -> tuple[str, ...]:
        """Columns the law reads, such as ("N", "D")."""
        return tuple(term.variable for term in self.terms)


POWER_N = Law("power_n", "L(N) = E + A N^-alpha", (Term("A", "alpha", "N"),), KAPLAN)
POWER_D = Law("power_d", "L(D) = E + B D^-beta", (Term("B", "beta", "D"),), KAPLAN)
CHINCHILLA = Law(
    "chinchilla",
    "L(N, D) = E + A N^-alpha + B D^-beta",
    (Term("A", "alpha", "N"), Term("B", "beta", "D")),
    "arXiv:2203.15556, approach 3",
)
LAWS = {law.name: law for law in (CHINCHILLA, POWER_N, POWER_D)}


def get_law(name: str) -> Law:
    """Returns the law of that name.

    Raises:
        InputError: unknown name; the message lists the known ones.

    Example:
        >>> get_law("chinchilla").parameters
        ('E', 'A', 'alpha', 'B', 'beta')
    """
    if isinstance(name, Law):
        return name
    if name not in LAWS:
        raise InputError(f"wanted a scaling law, got {name!r}{nearest(name, LAWS)}")
    return LAWS[name]


def predict_loss(law: Law, params: Mapping[str, float], N=None, D=None) -> np.ndarray:
    """Loss of a law with given parameters.

    L = E + sum_j A_j x_j^-alpha_j, computed as exp(ln A - alpha ln x) so that large exponents do not
    overflow.

    Args:
        law: one of LAWS.
        params: values by name; floats or arrays [draws, 1] (for bands).
        N: parameters, float or array; unused when the law has no N.
        D: training tokens, float or array; unused when the law has no D.

    Returns:
        Loss in the unit of the fitted table, float64, broadcast over N, D and params.

    Example (Epoch's refit of Chinchilla, arXiv:2404.10102, at 70e9 parameters and 1.4e12 tokens):
        >>> p = dict(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
        >>> round(float(predict_loss(CHINCHILLA, p, 70e9, 1.4e12)), 4)
        1.9739
    """
    given = {"N": N, "D": D}
    missing = [name for name in law.variables if given[name] is None]
    if missing:
        wanted = " and ".join(law.variables)
        raise InputError(f"wanted {wanted} for {law.formula}, got no {', '.join(missing)}")
    loss = np.asarray(params["E"], np.float64)
    for term in law.terms:
        log_x = np.log(np.asarray(given[term.variable], np.float64))
        loss = loss + np.exp(np.log(params[term.coefficient]) - np.asarray(params[term.exponent]) * log_x)
    return loss


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
    return {"N": n, "D": d, "tokens_per_param": d / n, "loss": predict_loss(CHINCHILLA, params, n, d), "a": a}

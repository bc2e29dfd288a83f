"""The laws that can be fitted: formulas, predicted loss and compute-optimal split. No fitting here.

L is in the unit of the table (nats per token for lmjax runs), N in parameters, D in tokens, C in FLOP.
base.py says what a law is; each other file holds one family.

A new law is one entry in LAWS. Starting points follow from the names of its linear parameters; its derivatives are
computed automatically:

    >>> from lmjax import scaling
    >>> from lmjax.scaling.laws import LAWS, Law, coefficient, exponent, floor, predict_loss
    >>> LAWS["steps"] = Law(
    ...     "steps",
    ...     "L(N, S) = E + A N^-alpha + K / (S + 1000)",
    ...     "an example",
    ...     ("N", "S"),
    ...     (floor("E"), coefficient("A"), exponent("alpha"), coefficient("K")),
    ...     lambda p, x: p["E"] + p["A"] * x["N"] ** -p["alpha"] + p["K"] / (x["S"] + 1000),
    ...     linear=("E", "A", "K"),
    ... )
    >>> import pandas
    >>> N, S = (v.ravel() for v in np.meshgrid([1e6, 4e6, 16e6, 64e6], [1e3, 4e3, 16e3]))
    >>> planted = dict(E=1.7, A=400.0, alpha=0.34, K=900.0)
    >>> rows = pandas.DataFrame({"N": N, "S": S, "loss": predict_loss("steps", planted, N=N, S=S)})
    >>> found = scaling.fit(rows, "steps", resamples=0)
    >>> {name: round(value, 4) for name, value in found.params.items()}
    {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'K': 900.0}
    >>> del LAWS["steps"]

Permanent laws belong in a file here and in LAWS below. A floor plus falling powers, of any variables, is one call of
`additive`, whose fit is faster.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lmjax.config import run_once
from lmjax.errors import InputError, nearest
from lmjax.registry import Registry, of_type
from lmjax.scaling.laws.base import (
    FLOPS_PER_PARAM_TOKEN,
    Law,
    Parameter,
    Term,
    coefficient,
    columns,
    exponent,
    floor,
    power,
    slopes,
    starting_points,
)
from lmjax.scaling.laws.breaks import BROKEN, broken, by_name
from lmjax.scaling.laws.constraints import constrained, parse
from lmjax.scaling.laws.farseer import FARSEER
from lmjax.scaling.laws.kaplan import KAPLAN
from lmjax.scaling.laws.repetition import DATA_CONSTRAINED
from lmjax.scaling.laws.routed import ROUTED, ROUTED_DATA
from lmjax.scaling.laws.shares import SHARES
from lmjax.scaling.laws.surfaces import JOINT, SURFACES

__all__ = [
    "CHINCHILLA",
    "FLOPS_PER_PARAM_TOKEN",
    "LAWS",
    "POWER_C",
    "POWER_D",
    "POWER_N",
    "Law",
    "Parameter",
    "Term",
    "additive",
    "broken",
    "coefficient",
    "columns",
    "constrained",
    "exponent",
    "floor",
    "get_law",
    "optimal_allocation",
    "power",
    "predict_loss",
    "registered",
    "slopes",
    "starting_points",
]


def additive(name: str, formula: str, terms: tuple[Term, ...], paper: str, **others) -> Law:
    """The law E + the sum of the terms, of any variables.

    Args:
        name, formula, paper, **others: fields of Law.
        terms: its terms, each with a variable of its own.

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


POWER = "arXiv:2001.08361 with a floor E, as in arXiv:2010.14701"
POWER_N = additive("power_n", "L(N) = E + A N^-alpha", (Term("A", "alpha", "N"),), POWER)
POWER_D = additive("power_d", "L(D) = E + B D^-beta", (Term("B", "beta", "D"),), POWER)
POWER_C = additive("power_c", "L(C) = E + A C^-alpha", (Term("A", "alpha", "C"),), POWER)
CHINCHILLA = additive(
    "chinchilla",
    "L(N, D) = E + A N^-alpha + B D^-beta",
    (Term("A", "alpha", "N"), Term("B", "beta", "D")),
    "arXiv:2203.15556, approach 3",
    derive=lambda params: {"a": params["beta"] / (params["alpha"] + params["beta"])},
    optimum=optimal_allocation,
)
ADDITIVE = (CHINCHILLA, POWER_N, POWER_D, POWER_C)


def _joint_allocation(params, C):
    """The sum in the joint law's brackets is least where Chinchilla's law with A = 1 and B = R is."""
    best = optimal_allocation({**params, "A": 1.0, "B": params["R"]}, C)
    return best | {"loss": JOINT_POWER.predict(params, best)}


JOINT_POWER = replace(JOINT, derive=CHINCHILLA.derive, optimum=_joint_allocation)

LAWS: dict[str, Law] = Registry(
    "law",
    {
        law.name: law
        for law in (
            *ADDITIVE,
            *KAPLAN,
            DATA_CONSTRAINED,
            JOINT_POWER,
            *SURFACES,
            ROUTED,
            ROUTED_DATA,
            FARSEER,
            *BROKEN,
            *SHARES,
        )
    },
    of_type(Law),
)


def get_law(name: str | Law) -> Law:
    """Returns the law of a name; "broken_2_n" is broken(2, "N"), "chinchilla[alpha=beta]" has tied exponents, and
    "mine.py:steps" is a law that the file adds to LAWS.

    Raises:
        InputError: unknown name; the message lists the known ones. The file is missing, or an import in it fails.

    Example:
        >>> get_law("chinchilla").parameters
        ('E', 'A', 'alpha', 'B', 'beta')
    """
    if isinstance(name, Law):
        return name
    file, _, name = name.rpartition(":")
    if file:
        run_once(file, "law")
    word, bracket, rest = name.partition("[")
    law = LAWS.get(word) or by_name(word)
    if law is None or rest[-1:] != "]" * len(bracket):
        raise InputError(
            f"expected a scaling law, or FILE.py:NAME for one of your own, got {name!r}{nearest(word, LAWS)}"
        )
    return constrained(law, *parse(rest.rstrip("]").split()))


def registered(name: str | Law) -> Law:
    """Returns a law that can be looked up by name, which is all that a saved fit stores.

    Raises:
        InputError: unknown name, or a law that is not in LAWS.
    """
    law = get_law(name)
    one = law.base or law
    known = LAWS.get(one.name) or by_name(one.name)
    if known is None or (known.formula, known.space) != (one.formula, one.space):
        remedy = f"set lmjax.scaling.LAWS[{law.name!r}] = law, under a unique name"
        raise InputError(f"expected a registered law, got {law.name!r}, which a loaded fit would not find; {remedy}")
    return law


def predict_loss(law: str | Law, params: Mapping[str, float], N=None, D=None, **others) -> np.ndarray:
    """Loss (or share) of a law with given parameters.

    Args:
        law: a law or its name.
        params: values by name; floats, or arrays [P, 1] (for bands).
        N: parameters, float or array; unused when the law has no N.
        D: training tokens, float or array; unused when the law has no D.
        **others: the other variables of the law by name, such as C, U, S1; C = 6 N D and M = D / N if left out.

    Returns:
        Loss in the unit of the fitted table, float64, broadcast over the variables and params.

    Example (Epoch's refit of Chinchilla, arXiv:2404.10102, at 70e9 parameters and 1.4e12 tokens):
        >>> p = dict(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658)
        >>> round(float(predict_loss(CHINCHILLA, p, 70e9, 1.4e12)), 4)
        1.9739
    """
    law = get_law(law)
    theta = {name: np.asarray(params[name], np.float64) for name in law.parameters}
    return law.predict(theta, columns(law, {"N": N, "D": D, **others}))

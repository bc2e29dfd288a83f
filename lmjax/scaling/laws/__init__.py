"""The laws that can be fitted: their formulas, predictions and compute-optimal split. No fitting here.

base.py says what a law is; each other file holds one family. L is in the unit of the table (nats per token for
lmjax runs), N in parameters, D in tokens, C in FLOP.
"""

from collections.abc import Mapping

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.laws.additive import CHINCHILLA, POWER_C, POWER_D, POWER_N, optimal_allocation
from lmjax.scaling.laws.base import FLOPS_PER_PARAM_TOKEN, Law, Parameter, Term, columns
from lmjax.scaling.laws.breaks import BROKEN, broken, by_name
from lmjax.scaling.laws.kaplan import KAPLAN
from lmjax.scaling.laws.repetition import DATA_CONSTRAINED
from lmjax.scaling.laws.schedule import ANNEALING
from lmjax.scaling.laws.shares import SHARES
from lmjax.scaling.laws.stacks import STACKS
from lmjax.scaling.laws.surfaces import SURFACES

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
    "broken",
    "columns",
    "get_law",
    "optimal_allocation",
    "predict_loss",
    "registered",
]

LAWS = {
    law.name: law
    for law in (
        *(CHINCHILLA, POWER_N, POWER_D, POWER_C),
        *KAPLAN,
        DATA_CONSTRAINED,
        *SURFACES,
        *STACKS,
        ANNEALING,
        *BROKEN,
        *SHARES,
    )
}


def get_law(name: str | Law) -> Law:
    """Returns the law of that name; "broken_2_n" is broken(2, "N").

    Raises:
        InputError: unknown name; the message lists the known ones.

    Example:
        >>> get_law("chinchilla").parameters
        ('E', 'A', 'alpha', 'B', 'beta')
    """
    if isinstance(name, Law):
        return name
    if name not in LAWS:
        other = by_name(name)
        if other:
            return other
        raise InputError(f"wanted a scaling law, got {name!r}{nearest(name, LAWS)}")
    return LAWS[name]


def registered(name: str | Law) -> Law:
    """Returns the law, if its name leads back to it: a fit keeps only the name.

    Raises:
        InputError: unknown name, or a law that is not in LAWS.
    """
    law = get_law(name)
    known = LAWS.get(law.name) or by_name(law.name)
    if known is None or (known.formula, known.space) != (law.formula, law.space):
        wanted = f"set lmjax.scaling.LAWS[{law.name!r}] = law, under a name of its own"
        raise InputError(f"wanted a registered law, got {law.name!r}, which predictions would not find; {wanted}")
    return law


def predict_loss(law: str | Law, params: Mapping[str, float], N=None, D=None, **others) -> np.ndarray:
    """Loss (or share) of a law with given parameters.

    Args:
        law: a law or its name.
        params: values by name; floats or arrays [draws, 1] (for bands).
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
    return law.level(theta, columns(law, {"N": N, "D": D, **others}))

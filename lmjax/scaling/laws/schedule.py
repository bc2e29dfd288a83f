"""The law of a whole training curve under any learning-rate schedule (arXiv:2408.11029).

L(s) = L0 + A S1^-alpha - C S2;  S1 = sum of the learning rates up to step s (the area under the schedule),
S2 = sum over steps of the learning-rate drops, each remembered with a decay (the annealing area). Both are columns of
the table; lmjax/scaling/methods computes them from a schedule.
"""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, floor, power
from lmjax.scaling.laws.subsolve import centred, nonnegative, positive


def _gradient(theta, x):
    fall = power(np.log(theta["A"]), theta["alpha"], x["S1"])
    return {
        "L0": np.ones_like(fall),
        "A": fall / theta["A"],
        "alpha": -fall * np.log(x["S1"]),
        "C": -x["S2"] * np.ones_like(fall),
    }


def _starts(x, y):
    alpha = np.geomspace(0.02, 2.5, 60)
    u, centre = centred(x["S1"])
    ones = np.ones((60, len(y)))
    features = np.stack([ones, np.exp(-alpha[:, None] * u), -x["S2"] * ones], 1) / y
    solved = nonnegative(features, np.ones(len(y)))
    a = positive(solved[:, 1], y) * np.exp(alpha * centre)
    return np.column_stack([solved[:, 0], a, alpha, solved[:, 2]])


ANNEALING = Law(
    "annealing",
    "L(S1, S2) = L0 + A S1^-alpha - C S2",
    "arXiv:2408.11029, equation 1",
    ("S1", "S2"),
    (floor("L0"), coefficient("A"), exponent("alpha"), Parameter("C", 0.0, np.inf, keep=True)),
    lambda theta, x: theta["L0"] + power(np.log(theta["A"]), theta["alpha"], x["S1"]) - theta["C"] * x["S2"],
    _gradient,
    _starts,
    may_be_zero=("S2",),  # before the decay nothing is annealed
)

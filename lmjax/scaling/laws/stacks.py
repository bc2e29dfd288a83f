"""Laws of encoder-decoders, whose two stacks have sizes of their own."""

import numpy as np

from lmjax.scaling.laws.base import Law, coefficient, exponent, floor
from lmjax.scaling.laws.subsolve import centred, mesh, nonnegative, positive

PAPER = "arXiv:2109.07740, equation 2: alpha (Ne0/N_e)^p_e (Nd0/N_d)^p_d + L_inf, A = alpha Ne0^p_e Nd0^p_d"


def _size(theta, x):
    return np.exp(np.log(theta["A"]) - theta["p_e"] * np.log(x["N_e"]) - theta["p_d"] * np.log(x["N_d"]))


def _data(theta, x):
    return np.exp(np.log(theta["B"]) - theta["beta"] * np.log(x["D"]))


def _size_gradient(theta, x):
    size = _size(theta, x)
    return {
        "E": np.ones_like(size),
        "A": size / theta["A"],
        "p_e": -size * np.log(x["N_e"]),
        "p_d": -size * np.log(x["N_d"]),
    }


def _data_gradient(theta, x):
    data = _data(theta, x)
    return {**_size_gradient(theta, x), "B": data / theta["B"], "beta": -data * np.log(x["D"])}


def _starts(x, y, with_data):
    names = ["N_e", "N_d"] + ["D"] * with_data
    u_VI, centre_V = zip(*(centred(x[name]) for name in names), strict=True)
    axes = [np.geomspace(0.02, 1.5, 9 if with_data else 18)] * len(names)
    grid = mesh(*axes)
    terms = [np.exp(-grid[:, :1] * u_VI[0] - grid[:, 1:2] * u_VI[1])]
    if with_data:
        terms.append(np.exp(-grid[:, 2:] * u_VI[2]))
    solved = nonnegative(np.stack([np.ones((len(grid), len(y))), *terms], 1) / y, np.ones(len(y)))
    linear = positive(solved[:, 1:], y)
    out = [solved[:, 0], linear[:, 0] * np.exp(grid[:, :2] @ np.array(centre_V[:2])), grid[:, 0], grid[:, 1]]
    if with_data:
        out += [linear[:, 1] * np.exp(grid[:, 2] * centre_V[2]), grid[:, 2]]
    return np.column_stack(out)


_STACKS = (floor(), coefficient("A"), exponent("p_e"), exponent("p_d"))
ENCODER_DECODER = Law(
    "encoder_decoder",
    "L(N_e, N_d) = E + A N_e^-p_e N_d^-p_d",
    PAPER,
    ("N_e", "N_d"),
    _STACKS,
    lambda theta, x: theta["E"] + _size(theta, x),
    _size_gradient,
    lambda x, y: _starts(x, y, False),
)
ENCODER_DECODER_DATA = Law(
    "encoder_decoder_data",
    "L(N_e, N_d, D) = E + A N_e^-p_e N_d^-p_d + B D^-beta",
    f"{PAPER}; with the data term of arXiv:2203.15556",
    ("N_e", "N_d", "D"),
    (*_STACKS, coefficient("B"), exponent("beta")),
    lambda theta, x: theta["E"] + _size(theta, x) + _data(theta, x),
    _data_gradient,
    lambda x, y: _starts(x, y, True),
)
STACKS = (ENCODER_DECODER, ENCODER_DECODER_DATA)

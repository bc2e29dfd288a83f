"""The data-constrained law (arXiv:2305.16264): repeated tokens and excess parameters are worth less and less."""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, floor, mesh, positive, power, project


def worth(ratio, half_life):
    """How many new tokens `ratio` repeats are worth, per unique token: R* (1 - exp(-R / R*)), by expm1.

    With a huge R*, 1 - exp(-x) would cancel to rounding noise, in which an optimiser finds false minima.

    Example (four repeats at R* = 15.4; R* so large that repeats are as good as new):
        >>> round(float(worth(4.0, 15.4)), 4), float(worth(4.0, 1e17))
        (3.5227, 4.0)
    """
    return -half_life * np.expm1(-ratio / half_life)


def _tokens(x, half_life):
    """Effective tokens: unique ones, and what their repeats are worth."""
    unique = np.minimum(x["U"], x["D"])
    return unique * (1.0 + worth(np.maximum(x["D"] / unique - 1.0, 0.0), half_life)), unique


def _predict(theta, x):
    alpha, beta = theta["alpha"], theta["beta"]
    tokens, unique = _tokens(x, theta["R_D"])
    # 1. the size that is compute-optimal for the unique tokens: alpha A N^-alpha = beta B U^-beta
    log_best = (np.log(alpha * theta["A"]) - np.log(beta * theta["B"]) + beta * np.log(unique)) / alpha
    # 2. parameters beyond it count as repeats of it
    base = np.exp(np.minimum(log_best, np.log(x["N"])))
    size = base * (1.0 + worth(np.maximum(x["N"] / base - 1.0, 0.0), theta["R_N"]))
    return theta["E"] + power(theta["A"], alpha, size) + power(theta["B"], beta, tokens)


def _starts(x, y):
    """For given exponents and R*, with all parameters counted in full, the rest is linear."""
    alpha, beta = mesh(np.geomspace(0.05, 1.2, 9), np.geomspace(0.05, 1.2, 9)).T[:, :, None]
    size, out = np.exp(-alpha * np.log(x["N"])), []
    for half_life in (1.0, 5.0, 15.0, 100.0):
        data = np.exp(-beta * np.log(_tokens(x, half_life)[0]))
        solved = project([1.0, size, data], y, y)
        a, b = positive(solved[:, 1], size, y), positive(solved[:, 2], data, y)
        ones = np.ones(len(alpha))
        rows = [solved[:, 0], a, alpha, b, beta, half_life * ones]
        out += [np.column_stack([*rows, other * ones]) for other in (1.0, 5.0, 30.0, 1000.0)]
    return np.concatenate(out)


DATA_CONSTRAINED = Law(
    "data_constrained",
    "L(N, D, U) = E + A / (U_N + U_N R_N (1 - exp(-(N/U_N - 1)/R_N)))^alpha"
    " + B / (U_D + U_D R_D (1 - exp(-(D/U_D - 1)/R_D)))^beta,"
    " U_D = min(U, D), U_N = min(N, compute-optimal N of U_D)",
    "arXiv:2305.16264, equations 5 and 6",
    ("N", "D", "U"),
    (
        floor(),
        coefficient("A"),
        exponent("alpha"),
        coefficient("B"),
        exponent("beta"),
        # if repeats are worth as much as new tokens, R* has no upper limit: the fit is kept, with a warning
        Parameter("R_D", 1e-2, 1e6, log=True, keep=True),
        Parameter("R_N", 1e-2, 1e6, log=True, keep=True),
    ),
    _predict,
    starts=_starts,
)

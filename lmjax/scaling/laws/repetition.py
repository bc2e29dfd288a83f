"""The data-constrained law (arXiv:2305.16264): repeated tokens and excess parameters are worth less and less."""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, floor, power
from lmjax.scaling.laws.subsolve import centred, mesh, nonnegative, positive


def worth(ratio, half_life):
    """What `ratio` repeats are worth in new ones: R* (1 - exp(-R / R*)), by expm1.

    With 1 - exp(-x) a huge R* cancels to noise, in which an optimiser finds a false minimum.

    Example (four repeats at R* = 15.4; R* so large that repeats are as good as new):
        >>> round(float(worth(4.0, 15.4)), 4), float(worth(4.0, 1e17))
        (3.5227, 4.0)
    """
    return -half_life * np.expm1(-ratio / half_life)


def _worth_slope(ratio, half_life):
    """d worth / d half_life = 1 - (1 + z) exp(-z), z = R / R*; by its series where that cancels."""
    z = ratio / half_life
    near = z**2 * (0.5 - z / 3 + z**2 / 8)
    return np.where(z < 1e-3, near, -np.expm1(-z) - z * np.exp(-z))


def _parts(theta, x):
    """Effective parameters and tokens and what their slopes need."""
    unique = np.minimum(x["U"], x["D"])
    repeats = np.maximum(x["D"] / unique - 1.0, 0.0)
    tokens = unique * (1.0 + worth(repeats, theta["R_D"]))
    # 1. the size that is compute-optimal for the unique tokens: alpha A N^-alpha = beta B U^-beta
    log_best = (
        np.log(theta["alpha"] * theta["A"]) - np.log(theta["beta"] * theta["B"]) + theta["beta"] * np.log(unique)
    ) / theta["alpha"]
    # 2. parameters beyond it count as repeats of it
    log_n = np.log(x["N"])
    base = np.exp(np.minimum(log_best, log_n))
    excess = np.maximum(x["N"] / base - 1.0, 0.0)
    size = base * (1.0 + worth(excess, theta["R_N"]))
    return size, tokens, base, excess, unique, repeats, log_best


def _level(theta, x):
    size, tokens, *_ = _parts(theta, x)
    return (
        theta["E"] + power(np.log(theta["A"]), theta["alpha"], size) + power(np.log(theta["B"]), theta["beta"], tokens)
    )


def _gradient(theta, x):
    size, tokens, base, excess, unique, repeats, log_best = _parts(theta, x)
    alpha, beta = theta["alpha"], theta["beta"]
    by_size, by_tokens = power(np.log(theta["A"]), alpha, size), power(np.log(theta["B"]), beta, tokens)
    # d size / d ln base; 0 where all parameters count in full
    grows = base * (1.0 + worth(excess, theta["R_N"])) - x["N"] * np.exp(-excess / theta["R_N"])
    pull = np.where(excess > 0, -alpha * by_size / size * grows, 0.0)  # d level / d log_best
    return {
        "E": np.ones_like(by_size),
        "A": by_size / theta["A"] + pull / (alpha * theta["A"]),
        "alpha": -by_size * np.log(size) + pull * (1.0 / alpha - log_best) / alpha,
        "B": by_tokens / theta["B"] - pull / (alpha * theta["B"]),
        "beta": -by_tokens * np.log(tokens) + pull * (np.log(unique) - 1.0 / beta) / alpha,
        "R_D": -beta * by_tokens / tokens * unique * _worth_slope(repeats, theta["R_D"]),
        "R_N": -alpha * by_size / size * base * _worth_slope(excess, theta["R_N"]),
    }


def _starts(x, y):
    """For given exponents and R*, with all parameters counted in full, the rest is linear."""
    u, centre_n = centred(x["N"])
    unique = np.minimum(x["U"], x["D"])
    grid = mesh(np.geomspace(0.05, 1.2, 9), np.geomspace(0.05, 1.2, 9))
    out = []
    for half_life in (1.0, 5.0, 15.0, 100.0):
        v, centre_d = centred(unique * (1.0 + worth(x["D"] / unique - 1.0, half_life)))
        features = np.stack([np.ones((len(grid), len(y))), np.exp(-grid[:, :1] * u), np.exp(-grid[:, 1:] * v)], 1) / y
        solved = nonnegative(features, np.ones(len(y)))
        a, b = (positive(solved[:, 1:], y) * np.exp(grid * [centre_n, centre_d])).T
        rows = np.column_stack([solved[:, 0], a, grid[:, 0], b, grid[:, 1], np.full(len(grid), half_life)])
        out += [np.column_stack([rows, np.full(len(rows), other)]) for other in (1.0, 5.0, 30.0, 1000.0)]
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
        # without repeats worth less than new tokens R* is as large as you like: a result, with a warning
        Parameter("R_D", 1e-2, 1e6, log=True, keep=True),
        Parameter("R_N", 1e-2, 1e6, log=True, keep=True),
    ),
    _level,
    _gradient,
    _starts,
)

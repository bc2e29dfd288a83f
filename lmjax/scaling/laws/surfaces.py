"""Laws of N and D beside Chinchilla's, and of tokens per parameter: over-training, quantization, skaling, Farseer."""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, floor, power
from lmjax.scaling.laws.subsolve import centred, mesh, nonnegative, positive

REFERENCE_N = 1e8  # where Farseer's three curves are anchored; any other gives the same law


# ---- over-training -------------------------------------------------------------------------------------------------


def _over_parts(theta, x):
    log_c, log_m = np.log(x["C"]), np.log(x["M"])
    return (
        np.exp(np.log(theta["a"]) + theta["eta"] * (log_m - log_c)),
        np.exp(np.log(theta["b"]) - theta["eta"] * (log_m + log_c)),
    )


def _over_gradient(theta, x):
    rise, fall = _over_parts(theta, x)
    log_c, log_m = np.log(x["C"]), np.log(x["M"])
    return {
        "E": np.ones_like(rise),
        "a": rise / theta["a"],
        "b": fall / theta["b"],
        "eta": rise * (log_m - log_c) - fall * (log_m + log_c),
    }


def _over_starts(x, y):
    eta = np.geomspace(0.01, 1.5, 60)
    u, centre_u = centred(x["M"] / x["C"])
    v, centre_v = centred(x["M"] * x["C"])
    features = np.stack([np.ones((60, len(y))), np.exp(eta[:, None] * u), np.exp(-eta[:, None] * v)], 1) / y
    solved = nonnegative(features, np.ones(len(y)))
    a, b = positive(solved[:, 1:], y).T * np.exp([-eta * centre_u, eta * centre_v])
    return np.column_stack([solved[:, 0], a, b, eta])


OVERTRAINED = Law(
    "overtrained",
    "L(C, M) = E + (a M^eta + b M^-eta) C^-eta, M = D / N",
    "arXiv:2403.08540, equation 4",
    ("C", "M"),
    (floor(), coefficient("a"), coefficient("b"), exponent("eta")),
    lambda theta, x: theta["E"] + sum(_over_parts(theta, x)),
    _over_gradient,
    _over_starts,
)


# ---- quantization --------------------------------------------------------------------------------------------------


def _quanta_parts(theta, x):
    alpha = np.asarray(theta["alpha"])
    return power(np.log(theta["A"]), alpha, x["N"]), power(np.log(theta["B"]), alpha / (1 + alpha), x["D"])


def _quanta_gradient(theta, x):
    size, data = _quanta_parts(theta, x)
    return {
        "E": np.ones_like(size),
        "A": size / theta["A"],
        "B": data / theta["B"],
        "alpha": -size * np.log(x["N"]) - data * np.log(x["D"]) / (1 + theta["alpha"]) ** 2,
    }


def _quanta_starts(x, y):
    alpha = np.geomspace(0.02, 2.5, 60)
    beta = alpha / (1 + alpha)
    (u, centre_n), (v, centre_d) = centred(x["N"]), centred(x["D"])
    features = np.stack([np.ones((60, len(y))), np.exp(-alpha[:, None] * u), np.exp(-beta[:, None] * v)], 1) / y
    solved = nonnegative(features, np.ones(len(y)))
    a, b = positive(solved[:, 1:], y).T * np.exp([alpha * centre_n, beta * centre_d])
    return np.column_stack([solved[:, 0], a, b, alpha])


QUANTIZATION = Law(
    "quantization",
    "L(N, D) = E + A N^-alpha + B D^-(alpha / (alpha + 1))",
    "arXiv:2303.13506, equations 3 and 5",
    ("N", "D"),
    (floor(), coefficient("A"), coefficient("B"), exponent("alpha")),
    lambda theta, x: theta["E"] + sum(_quanta_parts(theta, x)),
    _quanta_gradient,
    _quanta_starts,
    derive=lambda params: {"beta": params["alpha"] / (params["alpha"] + 1)},
)


# ---- skaling -------------------------------------------------------------------------------------------------------


def _skaling_parts(theta, x):
    u = -theta["alpha"] * np.log(x["N"])
    v = np.log(theta["R"]) - theta["beta"] * np.log(x["D"])
    total = np.logaddexp(u, v)
    return np.exp(np.log(theta["A"]) + theta["k"] * total), total, np.exp(u - total), np.exp(v - total)


def _skaling_gradient(theta, x):
    joint, total, share_n, share_d = _skaling_parts(theta, x)
    scaled = joint * theta["k"]
    return {
        "E": np.ones_like(joint),
        "A": joint / theta["A"],
        "alpha": -scaled * share_n * np.log(x["N"]),
        "R": scaled * share_d / theta["R"],
        "beta": -scaled * share_d * np.log(x["D"]),
        "k": joint * total,
    }


def _skaling_starts(x, y):
    """For given E, k and exponents, (L - E)^(1/k) is linear in A^(1/k) and A^(1/k) R."""
    (u, centre_n), (v, centre_d) = centred(x["N"]), centred(x["D"])
    out = []
    for share in (0.0, 0.3, 0.6, 0.8, 0.9):
        rest = y - share * y.min()
        middle = np.mean(np.log(rest))
        for k in (0.4, 0.7, 1.0, 1.6):
            grid = mesh(np.geomspace(0.08, 1.2, 7), np.geomspace(0.08, 1.2, 7)) / k
            weight = np.exp(-(np.log(rest) - middle) / k)
            features = np.stack([np.exp(-grid[:, :1] * u), np.exp(-grid[:, 1:] * v)], 1) * weight
            solved = np.log(np.maximum(nonnegative(features, np.ones(len(y))), 1e-5)) + grid * [centre_n, centre_d]
            a = np.exp(np.clip(k * solved[:, 0] + middle, -500, 500))
            r = np.exp(np.clip(solved[:, 1] - solved[:, 0], -500, 500))
            ones = np.ones(len(grid))
            out.append(np.column_stack([share * y.min() * ones, a, grid[:, 0], r, grid[:, 1], k * ones]))
    return np.concatenate(out)


SKALING = Law(
    "skaling",
    "L(N, D) = E + A (N^-alpha + R D^-beta)^k",
    "the joint law of the package simple-scaling-laws; k = 1 is Chinchilla's, E = 0 with beta = 1 Kaplan's",
    ("N", "D"),
    (
        floor(),
        coefficient("A"),
        exponent("alpha", high=10.0),
        coefficient("R"),
        exponent("beta", high=10.0),
        Parameter("k", 0.02, 20.0, log=True),
    ),
    lambda theta, x: theta["E"] + _skaling_parts(theta, x)[0],
    _skaling_gradient,
    _skaling_starts,
)


# ---- Farseer -------------------------------------------------------------------------------------------------------
# Each curve e^(a N^g + b) is written by its value p, slope q and curvature g at REFERENCE_N:
#     a N^g + b = p + q h(n, g),   h = (exp(g n) - 1) / g,   n = ln(N / REFERENCE_N);   a = q N0^-g / g, b = p - q / g
# which is the same family but has no pole at g = 0 and columns that are not parallel. The law depends on the unit of D,
# whose rate varies with N, and not on that of N.


def _bend(n, g):
    """h of the Box-Cox power, by its series where g n is small."""
    z = g * n
    small = np.abs(z) < 1e-3
    ratio = np.expm1(z) / np.where(small, 1.0, z)
    return n * np.where(small, 1 + z / 2 + z**2 / 6 + z * z * z / 24, ratio)


def _bend_slope(n, g, h):
    """dh/dg = (n exp(g n) - h) / g, by its series where g n is small."""
    z = g * n
    small = np.abs(z) < 1e-3
    exact = (n * (1.0 + g * h) - h) / np.where(small, 1.0, g)
    return np.where(small, n**2 * (0.5 + z / 3 + z**2 / 8), exact)


def _farseer_parts(theta, x):
    n, log_d = np.log(x["N"] / REFERENCE_N), np.log(x["D"])
    bends = {g: _bend(n, theta[g]) for g in ("alpha", "beta", "gamma")}
    rate = np.exp(theta["A0"] + theta["A1"] * bends["alpha"])
    limit = np.exp(theta["U0"] + theta["U1"] * bends["gamma"])
    data = np.exp(theta["B0"] + theta["B1"] * bends["beta"] - rate * log_d)
    return limit, data, rate, bends, n, log_d


def _farseer_gradient(theta, x):
    limit, data, rate, bends, n, log_d = _farseer_parts(theta, x)
    fall = -data * rate * log_d
    out = {}
    for (p, q, g), size in {
        ("U0", "U1", "gamma"): limit,
        ("B0", "B1", "beta"): data,
        ("A0", "A1", "alpha"): fall,
    }.items():
        h = bends[g]
        out |= {p: size, q: size * h, g: size * theta[q] * _bend_slope(n, theta[g], h)}
    return out


def _farseer_starts(x, y):
    """At fixed rates A(N), each size has two linear unknowns, limit and data term; then lines in ln N."""
    n, log_d = np.log(x["N"] / REFERENCE_N), np.log(x["D"])
    out = []
    for rate in np.geomspace(0.08, 1.2, 10):
        for tilt in (-0.15, 0.0, 0.1):
            rates = rate * np.exp(tilt * (n - n.mean()))
            # ln limit and ln data linear in n: Gauss-Newton from the mean split, three rounds of linear solves
            p = np.array([np.log(0.7 * y.mean()), 0.0, np.log(0.3 * y.mean()) + rate * log_d.mean(), 0.0])
            for _ in range(8):
                limit, data = np.exp(p[0] + p[1] * n), np.exp(p[2] + p[3] * n - rates * log_d)
                columns = np.stack([limit, limit * n, data, data * n], 1) / (limit + data)[:, None]
                r = np.log(y) - np.log(limit + data)
                change = np.linalg.lstsq(columns, r, rcond=1e-8)[0]
                p = p + change * min(1.0, 1.0 / max(np.abs(change).max(), 1e-12))
            for curve in (-0.2, 0.2):
                out.append([p[0], p[1], curve, p[2], p[3], curve, np.log(rate) - tilt * n.mean(), tilt, curve])
    return np.array(out)


def _free(name, low=-50.0, high=50.0):
    return Parameter(name, low, high)


FARSEER = Law(
    "farseer",
    "L(N, D) = exp(U0 + U1 h(gamma)) + exp(B0 + B1 h(beta)) D^-exp(A0 + A1 h(alpha)), h(g) = ((N / 1e8)^g - 1) / g",
    "arXiv:2506.10972: exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1), in other coordinates",
    ("N", "D"),
    (
        _free("U0"),
        _free("U1"),
        Parameter("gamma", -2.0, 2.0, keep=True),
        _free("B0"),
        _free("B1"),
        Parameter("beta", -2.0, 2.0, keep=True),
        _free("A0"),
        _free("A1"),
        Parameter("alpha", -2.0, 2.0, keep=True),
    ),
    lambda theta, x: sum(_farseer_parts(theta, x)[:2]),
    _farseer_gradient,
    _farseer_starts,
)
SURFACES = (OVERTRAINED, QUANTIZATION, SKALING, FARSEER)

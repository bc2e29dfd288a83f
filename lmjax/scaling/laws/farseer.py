"""Farseer (arXiv:2506.10972): limit, data term and data exponent each vary with N.

Each curve e^(a N^g + b) is written by its value p, slope q and curvature g at REFERENCE_N:
    a N^g + b = p + q h(n, g),   h = (exp(g n) - 1) / g,   n = ln(N / REFERENCE_N);   a = q N0^-g / g, b = p - q / g
This is the same family, but it has no pole at g = 0 and the columns of its Jacobian are not parallel. The law depends
on the unit of D, whose exponent varies with N, and not on that of N.
"""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter

REFERENCE_N = 1e8  # where the three curves are anchored; any other gives the same law


def _bend(n, g):
    """h of the Box-Cox power, by its series where g n is small."""
    z = g * n
    small = np.abs(z) < 1e-3
    ratio = np.expm1(z) / np.where(small, 1.0, z)
    return n * np.where(small, 1 + z / 2 + z * z / 6 + z * z * z / 24, ratio)


def _predict(theta, x):
    n, log_d = np.log(x["N"] / REFERENCE_N), np.log(x["D"])
    rate = np.exp(theta["A0"] + theta["A1"] * _bend(n, theta["alpha"]))
    limit = np.exp(theta["U0"] + theta["U1"] * _bend(n, theta["gamma"]))
    return limit + np.exp(theta["B0"] + theta["B1"] * _bend(n, theta["beta"]) - rate * log_d)


def _starts(x, y):
    """At fixed rates A(N), each size has two linear unknowns, limit and data term; then lines in ln N."""
    n, log_d = np.log(x["N"] / REFERENCE_N), np.log(x["D"])
    out = []
    for rate in np.geomspace(0.08, 1.2, 10):
        for tilt in (-0.15, 0.0, 0.1):
            rates = rate * np.exp(tilt * (n - n.mean()))
            # ln limit and ln data linear in n: Gauss-Newton from the mean split, eight rounds of linear solves
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


def _curve(value, slope, curvature):
    return (
        Parameter(value, -50.0, 50.0),
        Parameter(slope, -50.0, 50.0),
        Parameter(curvature, -2.0, 2.0, keep=True),
    )


FARSEER = Law(
    "farseer",
    "L(N, D) = exp(U0 + U1 h(gamma)) + exp(B0 + B1 h(beta)) D^-exp(A0 + A1 h(alpha)), h(g) = ((N / 1e8)^g - 1) / g",
    "arXiv:2506.10972: exp(a3 N^gamma + b3) + exp(a2 N^beta + b2) D^-exp(a1 N^alpha + b1), in other coordinates",
    ("N", "D"),
    (*_curve("U0", "U1", "gamma"), *_curve("B0", "B1", "beta"), *_curve("A0", "A1", "alpha")),
    _predict,
    starts=_starts,
)

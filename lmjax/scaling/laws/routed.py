"""Routed models (mixture of experts): the loss from size and number of experts, whose effect saturates.

Both laws use the saturating count X of arXiv:2202.01169, equation 1, which is E_start at one expert (a dense model) and
approaches E_max with many. N counts the parameters that are active for a token (that paper: of the dense base model);
another count changes the coefficients.
"""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, floor, mesh, positive, project

SATURATION = "1/X = 1/(experts - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max"
LEAST = 1e-9  # of 1/E_start - 1/E_max: where E_start reaches E_max, X no longer depends on experts
ENDS = (
    # without saturation in the table, E_max has no upper limit: the fit is kept, with a warning
    Parameter("E_start", 0.05, 1e4, log=True, keep=True),
    Parameter("E_max", 1.0, 1e7, log=True, keep=True),
)
STARTS = (0.7, 1.5, 4.0)  # of E_start
SPANS = (1.5, 6.0, 300.0)  # of E_max, over the largest number of experts


def saturated(theta, x) -> np.ndarray:
    """ln X, the saturating number of experts.

    Example (E_start at one expert, nearly E_max at very many):
        >>> theta = {"E_start": 2.0, "E_max": 300.0}
        >>> np.exp(saturated(theta, {"experts": np.array([1.0, 64.0, 1e7])})).round(2).tolist()
        [2.0, 53.43, 299.99]
    """
    first = 1.0 / np.maximum(1.0 / theta["E_start"] - 1.0 / theta["E_max"], LEAST)
    return -np.log(1.0 / (x["experts"] - 1.0 + first) + 1.0 / theta["E_max"])


def _ordered(params):
    if params["E_start"] < params["E_max"]:
        return ""
    return f"E_start {params['E_start']:.3g} is not below E_max {params['E_max']:.3g}: the loss is flat in experts"


def _bilinear(theta, x):
    log_n, log_x = np.log(x["N"]) / np.log(10.0), saturated(theta, x) / np.log(10.0)
    power = theta["a"] * log_n + theta["b"] * log_x + theta["c"] * log_n * log_x + theta["d"]
    return np.exp(power * np.log(10.0))


def _ends(x):
    return mesh(STARTS, np.multiply(SPANS, x["experts"].max()))


def _bilinear_starts(x, y):
    """For given ends of the saturation, log L is linear in the rest."""
    log_n, out = np.log10(x["N"]), []
    for start, most in _ends(x):
        log_x = saturated({"E_start": start, "E_max": most}, x) / np.log(10.0)
        features = np.stack([log_n, log_x, log_n * log_x, np.ones_like(log_n)], 1)
        out.append([*np.linalg.lstsq(features, np.log10(y), rcond=1e-12)[0], start, most])
    return np.array(out)


ROUTED = Law(
    "routed",
    f"log10 L(N, experts) = a log10 N + b log10 X + c log10 N log10 X + d, {SATURATION}",
    "arXiv:2202.01169, equation 1",
    ("N", "experts"),
    (*(Parameter(name, -3.0, 3.0) for name in "abc"), Parameter("d", -30.0, 30.0), *ENDS),
    _bilinear,
    starts=_bilinear_starts,
    validate=_ordered,
)


def _joint(theta, x):
    log_x = saturated(theta, x)
    size = theta["delta"] * log_x + (theta["alpha"] + theta["gamma"] * log_x) * np.log(x["N"])
    data = theta["omega"] * log_x + (theta["beta"] + theta["zeta"] * log_x) * np.log(x["D"])
    return theta["E"] + np.exp(np.log(theta["A"]) - size) + np.exp(np.log(theta["B"]) - data)


def _joint_starts(x, y):
    """For given exponents, with delta and omega alike and no interaction, the rest is linear."""
    out = []
    alpha, beta, delta = mesh(np.geomspace(0.05, 0.8, 6), np.geomspace(0.05, 0.8, 6), (0.0, 0.2)).T[:, :, None]
    zeros = np.zeros(len(alpha))
    for start, most in _ends(x):
        log_x = saturated({"E_start": start, "E_max": most}, x)
        size, data = np.exp(-delta * log_x - alpha * np.log(x["N"])), np.exp(-delta * log_x - beta * np.log(x["D"]))
        solved = project([1.0, size, data], y, y)
        a, b = positive(solved[:, 1], size, y), positive(solved[:, 2], data, y)
        columns = [solved[:, 0], a, alpha, delta, zeros, b, beta, delta, zeros, zeros + start, zeros + most]
        out.append(np.column_stack(columns))
    return np.concatenate(out)


ROUTED_DATA = Law(
    "routed_data",
    f"L(N, D, experts) = E + A X^-delta N^-(alpha + gamma ln X) + B X^-omega D^-(beta + zeta ln X), {SATURATION}",
    "arXiv:2502.05172, with the opposite sign of its exponents",
    ("N", "D", "experts"),
    (
        floor(),
        *(coefficient("A"), exponent("alpha"), Parameter("delta", -3.0, 3.0), Parameter("gamma", -1.0, 1.0)),
        *(coefficient("B"), exponent("beta"), Parameter("omega", -3.0, 3.0), Parameter("zeta", -1.0, 1.0)),
        *ENDS,
    ),
    _joint,
    starts=_joint_starts,
    validate=_ordered,
)

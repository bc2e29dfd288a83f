"""Laws of a share in [0, 1] (accuracy, exact match) against compute. Residuals are plain, not of a logarithm."""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, power
from lmjax.scaling.laws.subsolve import centred, mesh, nonnegative

DOWNSTREAM = "arXiv:2412.04403 (sigmoid), with a floor at chance"


def _share(name: str) -> Parameter:
    return Parameter(name, 0.0, 1.0, keep=True)


def _sigmoid(theta, x):
    from scipy.special import expit

    return expit(theta["k"] * (np.log(x["C"]) - theta["middle"]))


def _sigmoid_gradient(theta, x):
    s, distance = _sigmoid(theta, x), np.log(x["C"]) - theta["middle"]
    rise = (theta["ceiling"] - theta["floor"]) * s * (1 - s)
    return {"floor": 1 - s, "ceiling": s, "k": rise * distance, "middle": -rise * theta["k"]}


def _sigmoid_starts(x, y):
    from scipy.special import expit

    log_c = np.log(x["C"])
    span = max(float(np.ptp(log_c)), 1e-6)
    grid = mesh(np.geomspace(1, 100, 9) / span, np.linspace(log_c.min() - span / 4, log_c.max() + span / 2, 15))
    s = expit(grid[:, :1] * (log_c - grid[:, 1:]))
    ends = np.clip(nonnegative(np.stack([1 - s, s], 1), y), 0.0, 1.0)
    return np.column_stack([ends, grid])


def _falling(params):
    if params["floor"] <= params["ceiling"]:
        return ""
    return f"floor {params['floor']:.3g} above ceiling {params['ceiling']:.3g}: the share falls with C"


SIGMOID_C = Law(
    "sigmoid_c",
    "share(C) = floor + (ceiling - floor) / (1 + exp(-k (ln C - middle)))",
    DOWNSTREAM,
    ("C",),
    (_share("floor"), _share("ceiling"), Parameter("k", 1e-4, 1e4, log=True), Parameter("middle", -700.0, 700.0)),
    lambda theta, x: theta["floor"] + (theta["ceiling"] - theta["floor"]) * _sigmoid(theta, x),
    _sigmoid_gradient,
    _sigmoid_starts,
    target="share",
    forbid=_falling,
)


def _power_law(name, formula, end, sign):
    """end + sign * A C^(sign * alpha): a rise from the floor, or an error that falls from the ceiling."""

    def part(theta, x):
        return power(np.log(theta["A"]), -sign * theta["alpha"], x["C"])

    def gradient(theta, x):
        p = part(theta, x)
        return {end: np.ones_like(p), "A": sign * p / theta["A"], "alpha": p * np.log(x["C"])}

    def starts(x, y):
        u, centre = centred(x["C"])
        alpha = np.geomspace(0.01, 2.5, 60)
        features = np.stack([np.ones((60, len(u))), np.exp(sign * alpha[:, None] * u)], 1)
        solved = nonnegative(features, y if sign > 0 else 1 - y)
        edge = np.clip(solved[:, 0], 0, 1)
        coefficients = np.maximum(solved[:, 1], 1e-6) * np.exp(-sign * alpha * centre)
        return np.column_stack([edge if sign > 0 else 1 - edge, coefficients, alpha])

    space = (_share(end), coefficient("A"), exponent("alpha"))
    return Law(
        name,
        formula,
        "a plain power law",
        ("C",),
        space,
        lambda theta, x: theta[end] + sign * part(theta, x),
        gradient,
        starts,
        target="share",
    )


POWER_SHARE_C = _power_law("power_share_c", "share(C) = floor + A C^alpha", "floor", 1)
POWER_ERROR_C = _power_law("power_error_c", "share(C) = ceiling - A C^-alpha", "ceiling", -1)
SHARES = (SIGMOID_C, POWER_SHARE_C, POWER_ERROR_C)

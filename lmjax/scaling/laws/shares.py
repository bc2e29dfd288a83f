"""Laws of a share in [0, 1] (accuracy, exact match) against compute. Residuals are plain, not of a logarithm."""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, power


def _share(name: str) -> Parameter:
    return Parameter(name, 0.0, 1.0, keep=True)


def _span(x):
    log_c = np.log(x["C"])
    return log_c.min(), log_c.max(), max(float(np.ptp(log_c)), 1e-6)


def _middles(x):
    low, high, span = _span(x)
    return np.linspace(low - span / 4, high + span / 2, 15)


def _sigmoid(theta, x):
    share = 0.5 + 0.5 * np.tanh(0.5 * theta["k"] * (np.log(x["C"]) - theta["middle"]))
    return theta["floor"] + (theta["ceiling"] - theta["floor"]) * share


def _rises(params):
    if params["floor"] <= params["ceiling"]:
        return ""
    return f"floor {params['floor']:.3g} is above ceiling {params['ceiling']:.3g}: the share falls with C"


SIGMOID_C = Law(
    "sigmoid_c",
    "share(C) = floor + (ceiling - floor) / (1 + exp(-k (ln C - middle)))",
    "arXiv:2412.04403 (sigmoid), with a floor at chance",
    ("C",),
    (
        _share("floor"),
        _share("ceiling"),
        Parameter("k", 1e-4, 1e4, log=True, grid=lambda x: np.geomspace(1, 100, 9) / _span(x)[2]),
        Parameter("middle", -700.0, 700.0, grid=_middles),
    ),
    _sigmoid,
    linear=("floor", "ceiling"),
    target="share",
    validate=_rises,
)
POWER_SHARE_C = Law(
    "power_share_c",
    "share(C) = floor + A C^alpha",
    "a plain power law",
    ("C",),
    (_share("floor"), coefficient("A"), exponent("alpha")),
    lambda theta, x: theta["floor"] + power(theta["A"], -theta["alpha"], x["C"]),
    linear=("floor", "A"),
    target="share",
)
POWER_ERROR_C = Law(
    "power_error_c",
    "share(C) = ceiling - A C^-alpha",
    "a plain power law",
    ("C",),
    (_share("ceiling"), coefficient("A"), exponent("alpha")),
    lambda theta, x: theta["ceiling"] - power(theta["A"], theta["alpha"], x["C"]),
    linear=("ceiling", "A"),
    target="share",
)
SHARES = (SIGMOID_C, POWER_SHARE_C, POWER_ERROR_C)

"""Defines a law: predicted loss, parameters with bounds, variables; its derivatives and starting points.

Letters: P sets of parameters (starts, resamples), I rows of a table, K parameters, G cells of a grid, J linear ones.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import numpy as np

from lmjax.errors import InputError

FLOPS_PER_PARAM_TOKEN = 6  # C = 6 N D: 2 forward + 4 backward (2001.08361, section 2.1)
EXPONENT_BOUNDS = (1e-3, 3.0)
GRID_RANGE = (0.02, 2.0)  # of an exponent
GRID = {1: 60, 2: 18, 3: 9}  # values of each nonlinear parameter, by their number
LEAST_TERM = 1e-4  # share of the mean loss: starting term of a positive coefficient that least squares would set to 0

Values = Mapping[str, Any]  # arrays or floats by name; Duals in `slopes`


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    low, high: bounds in the unit of the table. log: fitted as its logarithm, so always positive.
    keep: a fit with this parameter at a bound is kept, with a warning (a floor of 0); otherwise it is refused.
    grid(x): values from which to start where it is not linear, from x {variable: [I]}; None: a geometric grid.
    """

    name: str
    low: float
    high: float
    log: bool = False
    keep: bool = False
    grid: Callable[[Values], np.ndarray] | None = None


@dataclass(frozen=True)
class Term:
    """One falling term `coefficient * variable^-exponent` of an additive law."""

    coefficient: str
    exponent: str
    variable: str


@dataclass(frozen=True)
class Law:
    """A law by name: formula, paper, variables, parameters, and the functions a fit needs.

    variables: columns the law reads, such as ("N", "D"). space: its parameters, in the order used everywhere.
    predict(theta, x): the predicted loss [P, I] from theta {name: [P, 1]} and x {variable: [I]}; any shapes that
        broadcast. Written with NumPy's exp, log, + - * / ** and the like (dual.PARTIALS), it is differentiated exactly.
    linear: names of parameters in which `predict` is linear. Starting points are then least squares in these over a
        grid of the others (variable projection, Golub and Pereyra 1973).
    target: "loss" (positive; residuals of the logarithm) or "share" (in [0, 1]; plain residuals).
    starts(x, y): starting points [S, K] from the data, y the loss or share [I]; for laws without linear parameters.
    terms: of a floor plus falling powers, for which the fit is faster; empty for any other law.
    derive(params): numbers that follow from the parameters, by name.
    optimum(params, C): the compute-optimal N, D, tokens_per_param, loss and exponent a of N at C = 6 N D.
    may_be_zero: variables whose values may be 0; the others are positive.
    validate(params): error message if the parameters violate the law's constraints, else "".
    base, follows: of a law with fixed and tied parameters (laws/constraints.py): the law itself, and for each
        parameter that is not free its value, or the name of the one it is tied to.
    """

    name: str
    formula: str
    paper: str
    variables: tuple[str, ...]
    space: tuple[Parameter, ...]
    predict: Callable[[Values, Values], np.ndarray]
    linear: tuple[str, ...] = ()
    target: str = "loss"
    starts: Callable[[Values, np.ndarray], np.ndarray] | None = None
    terms: tuple[Term, ...] = ()
    derive: Callable[[Values], dict[str, np.ndarray]] | None = None
    optimum: Callable[[Values, np.ndarray], dict[str, np.ndarray]] | None = None
    may_be_zero: tuple[str, ...] = ()
    validate: Callable[[Values], str] | None = None
    base: "Law | None" = None
    follows: Mapping[str, float | str] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        if not (self.linear or self.starts or self.base):
            raise InputError(f"expected linear=(...) or starts of the law {self.name}, got neither")

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the free parameters, in the order used everywhere."""
        return tuple(parameter.name for parameter in self.space)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all parameters, fixed and tied ones included."""
        return (self.base or self).parameters

    @property
    def fixed(self) -> dict[str, float]:
        """The fixed parameters with their values."""
        return {name: value for name, value in self.follows.items() if not isinstance(value, str)}

    @property
    def tied(self) -> dict[str, str]:
        """The parameters that are tied, each with the free one that it equals."""
        return {name: value for name, value in self.follows.items() if isinstance(value, str)}

    def leader(self, name: str) -> str:
        """The free parameter that determines a parameter: itself or the one it is tied to; "" for a fixed one."""
        return "" if name in self.fixed else self.tied.get(name, name)

    def complete(self, params: Values) -> Values:
        """All parameters by name, from values of the free ones (floats, arrays); itself for a law without constraints.

        Example:
            >>> from lmjax.scaling.laws import get_law
            >>> law = get_law("chinchilla[E=1.82 alpha=beta]")
            >>> {name: float(v) for name, v in law.complete({"A": 400.0, "alpha": 0.3, "B": 900.0}).items()}
            {'E': 1.82, 'A': 400.0, 'alpha': 0.3, 'B': 900.0, 'beta': 0.3}
        """
        if not self.follows:
            return params
        shape = np.shape(value_of(params[self.parameters[0]]))
        held = {name: np.full(shape, value) for name, value in self.fixed.items()}
        return {name: held[name] if name in held else params[self.leader(name)] for name in self.names}

    def derived(self, params: Values) -> dict[str, np.ndarray]:
        """Numbers that follow from the parameters; empty for most laws."""
        return self.derive(params) if self.derive else {}

    def out_of_range(self, values: Mapping[str, np.ndarray]) -> list[str]:
        """Names of variables outside the law's range: not finite, not positive, or below 0 where 0 is allowed.

        Example:
            >>> from lmjax.scaling.laws import get_law
            >>> get_law("annealing").out_of_range({"S1": np.array([0.0, 1.0]), "S2": np.array([0.0, 1.0])})
            ['S1']
        """
        return [
            name
            for name, v in values.items()
            if not (np.isfinite(v).all() and ((v >= 0) if name in self.may_be_zero else (v > 0)).all())
        ]


def floor(name: str = "E") -> Parameter:
    """A floor, at least 0; a fit with a floor of 0 is kept, with a warning."""
    return Parameter(name, 0.0, np.inf, keep=True)


def coefficient(name: str) -> Parameter:
    """A positive coefficient, fitted as its logarithm."""
    return Parameter(name, 0.0, np.inf, log=True)


def exponent(name: str, low: float = EXPONENT_BOUNDS[0], high: float = EXPONENT_BOUNDS[1]) -> Parameter:
    """An exponent of a falling power law, within bounds."""
    return Parameter(name, low, high)


def power(coefficient_, exponent_, x) -> np.ndarray:
    """A x^-alpha without overflow of large exponents."""
    return np.exp(np.log(coefficient_) - exponent_ * np.log(x))


def columns(law: Law, given: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The variables of a law, float64; M = D / N and C = 6 N D where the law needs them and they are not given.

    Raises:
        InputError: names the missing variables.
    """
    values = {name: np.asarray(v, np.float64) for name, v in given.items() if v is not None}
    if "N" in values and "D" in values:
        if "M" in law.variables and "M" not in values:
            values["M"] = values["D"] / values["N"]
        if "C" in law.variables and "C" not in values:
            values["C"] = FLOPS_PER_PARAM_TOKEN * values["N"] * values["D"]
    missing = [name for name in law.variables if name not in values]
    if missing:
        expected = " and ".join(law.variables)
        raise InputError(f"expected {expected} for {law.formula}, got no {', '.join(missing)}")
    return {name: values[name] for name in law.variables}


# ---- derivatives ---------------------------------------------------------------------------------------------------


# partial derivatives of each function in its arguments, from its value and the arguments
PARTIALS = {
    "add": (lambda out, a, b: 1.0, lambda out, a, b: 1.0),
    "subtract": (lambda out, a, b: 1.0, lambda out, a, b: -1.0),
    "multiply": (lambda out, a, b: b, lambda out, a, b: a),
    "divide": (lambda out, a, b: 1.0 / b, lambda out, a, b: -out / b),
    "power": (lambda out, a, b: b * a ** (b - 1.0), lambda out, a, b: out * np.log(a)),
    "negative": (lambda out, a: -1.0,),
    "exp": (lambda out, a: out,),
    "expm1": (lambda out, a: out + 1.0,),
    "log": (lambda out, a: 1.0 / a,),
    "log1p": (lambda out, a: 1.0 / (1.0 + a),),
    "sqrt": (lambda out, a: 0.5 / out,),
    "square": (lambda out, a: 2.0 * a,),
    "tanh": (lambda out, a: 1.0 - out * out,),
    "logaddexp": (lambda out, a, b: np.exp(a - out), lambda out, a, b: np.exp(b - out)),
    "minimum": (lambda out, a, b: a <= b, lambda out, a, b: a > b),
    "maximum": (lambda out, a, b: a >= b, lambda out, a, b: a < b),
}
PLAIN = ("less", "less_equal", "greater", "greater_equal", "isfinite", "absolute")  # without derivatives


class Dual(np.lib.mixins.NDArrayOperatorsMixin):
    """An array `value` with its derivatives `slopes` {name: array that broadcasts with it}.

    Example (d/da of a^2 x at a = 3):
        >>> a = Dual(np.array(3.0), {"a": 1.0})
        >>> {name: slope.tolist() for name, slope in (a * a * np.array([1.0, 2.0])).slopes.items()}
        {'a': [6.0, 12.0]}
    """

    def __init__(self, value, slopes):
        self.value, self.slopes = value, slopes

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        values = [value_of(v) for v in inputs]
        if ufunc.__name__ in PLAIN:
            return ufunc(*values)
        if method != "__call__" or options or ufunc.__name__ not in PARTIALS:
            return NotImplemented
        out = ufunc(*values)
        slopes = {}
        for v, partial in zip(inputs, PARTIALS[ufunc.__name__], strict=True):
            if isinstance(v, Dual):
                factor = partial(out, *values)
                for name, slope in v.slopes.items():
                    slopes[name] = slopes[name] + factor * slope if name in slopes else factor * slope
        return Dual(out, slopes)

    def __array_function__(self, function, types, args, kwargs):
        if function is not np.where or len(args) != 3:
            return NotImplemented
        chosen, a, b = args
        parts = [v.slopes if isinstance(v, Dual) else {} for v in (a, b)]
        names = dict.fromkeys([*parts[0], *parts[1]])
        slopes = {name: np.where(chosen, *(part.get(name, 0.0) for part in parts)) for name in names}
        return Dual(np.where(chosen, value_of(a), value_of(b)), slopes)


def value_of(v):
    """The array itself, without derivatives if it is a Dual."""
    return v.value if isinstance(v, Dual) else v


def slopes(law: Law, theta: Values, x: Values) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The predicted loss and its derivatives by name.

    Raises:
        InputError: `predict` uses a function that is not differentiated here.
    """
    try:
        duals = {name: Dual(np.asarray(v, np.float64), {name: 1.0}) for name, v in theta.items()}
        found = cast(Dual, law.predict(duals, x))
    except TypeError as error:
        raise InputError(f"expected the law {law.name} to use NumPy's {', '.join(PARTIALS)}, got {error}") from error
    shape = np.shape(found.value)
    return found.value, {name: np.broadcast_to(found.slopes.get(name, 0.0), shape) for name in law.parameters}


# ---- starting points -----------------------------------------------------------------------------------------------


def starting_points(law: Law, x: Values, y: np.ndarray, plain: bool = False) -> np.ndarray:
    """Starting points [S, K] as natural parameters: those of the law, or variable projection on a grid.

    x: {variable: [I]}. y: losses or shares [I]. plain: least squares of y itself; else of relative errors.
    """
    if law.starts:
        return law.starts(x, y)
    curved = [p for p in law.space if p.name not in law.linear]
    axes = [_axis(p, x, GRID.get(len(curved), 5)) for p in curved]
    theta = dict(zip([p.name for p in curved], mesh(*axes).T[:, :, None], strict=True))
    zeros = dict.fromkeys(law.linear, 0.0)
    at_zero = law.predict({**theta, **zeros}, x)
    features = [law.predict({**theta, **zeros, name: 1.0}, x) - at_zero for name in law.linear]
    linear = project(features, y, y - at_zero, plain).T if features else ()
    for name, feature, values in zip(law.linear, features, linear, strict=True):
        if next(p.log for p in law.space if p.name == name):
            values = positive(values, feature, y)
        theta[name] = values[:, None]
    return np.column_stack([theta[name] for name in law.parameters])


def _axis(parameter, x, count):
    low, high = max(GRID_RANGE[0], parameter.low), min(GRID_RANGE[1], parameter.high)
    return parameter.grid(x) if parameter.grid else np.geomspace(low, high, count)


def project(features, y, target, plain=False) -> np.ndarray:
    """Non-negative least squares of the target in features that broadcast to [G, I]; returns [G, J].

    Minimises relative errors (residuals over y) unless `plain`.
    """
    shape = np.broadcast_shapes(*(np.shape(f) for f in features), np.shape(target), (1, len(y)))
    weight = 1.0 if plain else 1.0 / y
    stacked = np.stack([np.broadcast_to(f, shape) for f in features], 1) * weight
    return nonnegative(stacked, np.broadcast_to(target * weight, shape))


def positive(values_G, feature_GI, y) -> np.ndarray:
    """Raises coefficients [G] to at least the value at which the term is LEAST_TERM times the mean loss."""
    size = np.exp(np.mean(np.log(np.abs(feature_GI)), -1))
    return np.maximum(values_G, LEAST_TERM * float(np.mean(y)) / size)


def mesh(*axes) -> np.ndarray:
    """All combinations of the axes, [G, len(axes)].

    Example:
        >>> mesh([1, 2], [3, 4]).tolist()
        [[1.0, 3.0], [1.0, 4.0], [2.0, 3.0], [2.0, 4.0]]
    """
    return np.array(list(product(*axes)), np.float64)


def nonnegative(features_GJI: np.ndarray, target_GI: np.ndarray) -> np.ndarray:
    """Non-negative least squares of target_GI ([G, I] or [I]) in the features of each cell, [G, J].

    Every subset of active unknowns is solved (7 for three); the best that is non-negative wins, which is exact for
    so few unknowns.
    """
    count, size, _ = features_GJI.shape
    gram = np.matmul(features_GJI, features_GJI.swapaxes(1, 2))
    moment = np.einsum("gji,gi->gj", features_GJI, np.broadcast_to(target_GI, (count, features_GJI.shape[2])))
    scale = np.sqrt(np.maximum(np.einsum("gkk->gk", gram), 1e-300))
    best, best_gain = np.zeros((count, size)), np.full(count, -np.inf)
    for active in product((True, False), repeat=size):
        if not any(active):
            continue
        use = np.array(active)
        matrix = np.where(use[:, None] & use, gram, 0.0)
        matrix = matrix / (scale[:, :, None] * scale[:, None]) + np.diag(np.where(use, 1e-12, 1.0))
        solved = np.linalg.solve(matrix, np.where(use, moment / scale, 0.0)[..., None])[..., 0] / scale
        gain = np.einsum("gk,gk->g", solved, moment)
        better = (solved >= 0).all(1) & (gain > best_gain)
        best[better], best_gain[better] = solved[better], gain[better]
    return best

"""What a law is: parameters with bounds, variables, a level with its gradient, starts. No law and no fitting here.

Letters: P sets of parameters (starts, refits), I rows of a table, K parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError

FLOPS_PER_PARAM_TOKEN = 6  # C = 6 N D: 2 forward + 4 backward (2001.08361, section 2.1)
EXPONENT_BOUNDS = (1e-3, 3.0)

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law.

    low, high: bounds in the unit of the table. log: fitted as its logarithm, so always positive.
    keep: at a bound the fit stays a result, with a warning (a floor of 0); without it, it is refused.
    """

    name: str
    low: float
    high: float
    log: bool = False
    keep: bool = False


@dataclass(frozen=True)
class Term:
    """One falling term `coefficient * variable^-exponent` of an additive law."""

    coefficient: str
    exponent: str
    variable: str


@dataclass(frozen=True)
class Law:
    """A law by name: formula, paper, parameters, and the functions a fit needs.

    variables: columns the law reads, such as ("N", "D"). space: its parameters, in the order used everywhere.
    target: "loss" (positive; residuals of the logarithm) or "share" (in [0, 1]; plain residuals).
    terms: of a floor plus falling powers, which has a solver of its own; empty for any other law.
    level(theta, x): the law, [P, I], from theta {name: [P, 1]} and x {variable: [I]}; any shapes that broadcast.
    gradient(theta, x): {name: d level / d theta, [P, I]}, analytic.
    starts(x, y): starting points [S, K] from the data, y the loss or share [I].
    derive(params): numbers that follow from the parameters, by name.
    may_be_zero: variables whose rows may be 0; the others are positive.
    forbid(params): why an optimum is none of this law, in words; empty for one that is.
    """

    name: str
    formula: str
    paper: str
    variables: tuple[str, ...]
    space: tuple[Parameter, ...]
    level: Callable[[Values, Values], np.ndarray]
    gradient: Callable[[Values, Values], dict[str, np.ndarray]]
    starts: Callable[[Values, np.ndarray], np.ndarray]
    target: str = "loss"
    terms: tuple[Term, ...] = ()
    derive: Callable[[Values], dict[str, np.ndarray]] | None = None
    may_be_zero: tuple[str, ...] = ()
    forbid: Callable[[Values], str] | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order used everywhere."""
        return tuple(parameter.name for parameter in self.space)

    def derived(self, params: Values) -> dict[str, np.ndarray]:
        """Numbers that follow from the parameters; empty for most laws."""
        return self.derive(params) if self.derive else {}

    def out_of_range(self, values: Mapping[str, np.ndarray]) -> list[str]:
        """The variables of a table that leave the law's range: not finite, not positive, or below 0 where 0 is allowed.

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
    """A floor: at least 0, where the fit is kept and says so."""
    return Parameter(name, 0.0, np.inf, keep=True)


def coefficient(name: str) -> Parameter:
    """A positive coefficient, fitted as its logarithm."""
    return Parameter(name, 0.0, np.inf, log=True)


def exponent(name: str, low: float = EXPONENT_BOUNDS[0], high: float = EXPONENT_BOUNDS[1]) -> Parameter:
    """A falling exponent between its bounds."""
    return Parameter(name, low, high)


def power(log_coefficient, exponent_, x) -> np.ndarray:
    """exp(ln A - alpha ln x): A x^-alpha without overflow of large exponents."""
    return np.exp(log_coefficient - exponent_ * np.log(x))


def columns(law: Law, given: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The variables of a law, float64; M = D / N and C = 6 N D where they are wanted and not given.

    Raises:
        InputError: a variable is missing; it is named.
    """
    values = {name: np.asarray(v, np.float64) for name, v in given.items() if v is not None}
    if "N" in values and "D" in values:
        if "M" in law.variables and "M" not in values:
            values["M"] = values["D"] / values["N"]
        if "C" in law.variables and "C" not in values:
            values["C"] = FLOPS_PER_PARAM_TOKEN * values["N"] * values["D"]
    missing = [name for name in law.variables if name not in values]
    if missing:
        wanted = " and ".join(law.variables)
        raise InputError(f"wanted {wanted} for {law.formula}, got no {', '.join(missing)}")
    return {name: values[name] for name in law.variables}

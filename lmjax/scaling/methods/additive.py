"""Least-squares fits of E + sum_j A_j x_j^-a_j, and their bootstrap refits, for the other methods.

This is a thin layer over lmjax.scaling.engine with the criterion squared_log, because the methods add normal noise of
known size. lmjax.scaling.fitting fits a table with its conventions and intervals.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling import engine
from lmjax.scaling.identify import examine, judge
from lmjax.scaling.laws import Law, get_law

LAWS = {("C",): "power_c", ("N", "D"): "chinchilla"}  # by variables


@dataclass(frozen=True)
class Additive:
    """A fitted law. reason: error message if its parameters must not be used, else empty; then all fields are set.

    fitted: [I] ln of the predicted loss. sd: standard deviation of ln loss around it, with df = I - K degrees of
    freedom (NaN with too few rows). phi: [K] parameters in the coordinates of `table`, the problem that was solved.
    """

    law: Law
    status: str
    reason: str
    warnings: tuple[str, ...] = ()
    table: engine.Problem | None = None
    phi: np.ndarray | None = None
    fitted: np.ndarray | None = None
    sd: float = math.nan
    df: int = 0

    def parameters(self, phi_PK: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Returns the law's parameters by name, each [P]: those of the fit, or those in phi_PK from `refit`."""
        found = self.table.natural(self.phi[None] if phi_PK is None else phi_PK)
        return {name: found[name] for name in self.law.parameters}


def fit_additive(columns, loss) -> Additive:
    """Fits the law of these variables.

    Args:
        columns: {"C": [I]} or {"N": [I], "D": [I]}.
        loss: [I].

    Returns:
        Additive; `reason` is non-empty where the rows do not identify the parameters.

    Example (a floor and one power, without noise):
        >>> C = np.array([1e17, 1e18, 1e19, 1e20, 1e21])
        >>> found = fit_additive({"C": C}, 1.5 + 300 * C**-0.15).parameters()
        >>> float(found["E"][0].round(6)), float(found["alpha"][0].round(6))
        (1.5, 0.15)
    """
    law, count = get_law(LAWS[tuple(columns)]), len(loss)
    df = count - len(law.parameters)
    unfit = "; ".join(examine(columns, law).reasons)
    if df < 1:
        return Additive(law, "too_few_points", unfit)
    table = engine.problem_of(law, columns, loss, criterion="squared_log")
    best = table.optimum()
    status, reasons, warnings = judge(law, best)
    sd = math.sqrt(float(best.residual @ best.residual) / df)
    fitted = np.log(table.predicted(best.phi))
    status = "not_identified" if unfit else status if reasons else "converged"  # a floor of 0 is a warning
    return Additive(law, status, unfit or "; ".join(reasons), tuple(warnings), table, best.phi, fitted, sd, df)


def refit(found: Additive, log_loss_PI: np.ndarray) -> np.ndarray:
    """Refits to P other sets of losses (given as ln) from the fitted optimum; returns phi [P, K]."""
    table = found.table
    begin = np.repeat(found.phi[None], len(log_loss_PI), 0)
    return table.minimise(begin, log_loss_PI - table.mean, table.w_I[None], stages=False).phi

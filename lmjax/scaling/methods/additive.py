"""Least-squares fits of L = E + sum_j A_j x_j^-a_j for the methods: one fit, many refits. Knows arrays, not tables.

Minimises sum_i (ln L_i - ln model_i)^2 with the batched Newton solver of lmjax.scaling.solver. Least squares, not
Huber, because the methods inject normal noise of a known size; the table fit is lmjax.scaling.fitting.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling import solver, starts
from lmjax.scaling.designs import MAX_CONDITION, condition_number

WIDE = 1e3  # Huber's delta above every residual: least squares


@dataclass(frozen=True)
class Additive:
    """A fitted surface in the solver's coordinates phi [K] = (E / e^mean, ln term_j at the centre, a_j, ...).

    centre: [J] mean ln x_j. mean: of ln L. sd: of ln L around the surface, with df = I - K. reason: why the
    parameters must not be used, empty if they may.
    """

    phi: np.ndarray
    centre: np.ndarray
    mean: float
    sd: float
    df: int
    condition: float
    reason: str
    status: str

    def log_level(self, log_x_JM: np.ndarray, phi_PK: np.ndarray | None = None) -> np.ndarray:
        """ln L at ln x [J, M] for parameters phi_PK (default: the fit): [P, M]."""
        phi_PK = self.phi[None] if phi_PK is None else phi_PK
        return self.mean + solver.model(phi_PK, log_x_JM - self.centre[:, None])

    def parameters(self, phi_PK: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """E, ln_A_0, a_0, ln_A_1, a_1, ... of the law in the units of the table, each [P]."""
        phi_PK = self.phi[None] if phi_PK is None else phi_PK
        out = {"E": phi_PK[:, 0] * math.exp(self.mean)}
        for j, centre in enumerate(self.centre):
            out[f"ln_A_{j}"] = phi_PK[:, 1 + 2 * j] + phi_PK[:, 2 + 2 * j] * centre + self.mean
            out[f"a_{j}"] = phi_PK[:, 2 + 2 * j]
        return out


def fit_additive(log_x_JI: np.ndarray, log_loss_I: np.ndarray, names) -> Additive:
    """Fits the surface.

    Args:
        log_x_JI: ln x_j, [J, I], J = 1 or 2.
        log_loss_I: ln L, [I].
        names: of the variables, for the words of a refusal.

    Returns:
        Additive; `reason` is non-empty where the table does not identify the parameters.

    Example (a floor and one power, without noise):
        >>> x = np.log(np.array([1e17, 1e18, 1e19, 1e20, 1e21]))
        >>> found = fit_additive(x[None], np.log(1.5 + 300 * np.exp(-0.15 * x)), ("C",)).parameters()
        >>> float(found["E"][0].round(6)), float(found["a_0"][0].round(6))
        (1.5, 0.15)
    """
    centre, mean = log_x_JI.mean(1), float(log_loss_I.mean())
    count, size = len(log_loss_I), 1 + 2 * len(log_x_JI)
    if count < size:
        words = f"{size} parameters need at least {size} points, got {count}"
        return Additive(np.full(size, math.nan), centre, mean, math.nan, 0, math.inf, words, "too_few_points")
    u, y, w = log_x_JI - centre[:, None], log_loss_I - mean, np.ones(count)
    found = solver.minimise(starts.starting_points(u, y, w, WIDE), u, y[None], w[None], WIDE, stages=False)
    phi = found.phi[found.objective.argmin()]
    residual = y - solver.model(phi[None], u)[0]
    df = count - size
    sd = math.sqrt(float(residual @ residual) / df) if df else math.nan
    condition = condition_number(solver.jacobian(phi[None], u)[0].T)
    status, reason = _verdict(phi, condition, names)
    return Additive(phi, centre, mean, sd, df, condition, reason, status)


def refit(fitted: Additive, log_x_JI: np.ndarray, log_loss_PI: np.ndarray, w_PI: np.ndarray | None = None):
    """Refits to P other sets of losses from the fitted optimum; returns phi [P, K]."""
    u, y = log_x_JI - fitted.centre[:, None], log_loss_PI - fitted.mean
    w = np.ones((1, u.shape[1])) if w_PI is None else w_PI
    begin = np.repeat(fitted.phi[None], max(len(y), len(w)), 0)
    return solver.minimise(begin, u, y, w, WIDE, stages=False).phi


def _verdict(phi, condition, names):
    low, high = solver.bounds(len(names))
    for j, name in enumerate(names):
        term, exponent = 1 + 2 * j, 2 + 2 * j
        if phi[term] <= low[term] or phi[exponent] <= low[exponent]:
            return "at_bound", f"the losses do not fall with {name}"
        if phi[exponent] >= high[exponent]:
            return "at_bound", f"the exponent of {name} ended at its bound {high[exponent]:g}"
    if condition > MAX_CONDITION and phi[0] > 0:
        return "not_identified", f"condition number {condition:.1e}: the floor and the powers cannot be told apart"
    return "converged", ""

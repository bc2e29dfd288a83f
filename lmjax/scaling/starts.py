"""Starting points for the solver: variable projection over a grid of exponents. Knows arrays, not tables.

For fixed exponents a law L = E + sum_j A_j x_j^-alpha_j is linear in (E, A_j): a grid over the exponents
alone, with one small non-negative linear solve per cell, replaces the usual thousands of starts over all
parameters (variable projection, Golub and Pereyra 1973). The best cells, judged by the true objective, are
then polished by the solver.
"""

from itertools import product

import numpy as np

from lmjax.scaling import solver
from lmjax.scaling.laws.subsolve import nonnegative

GRID = {1: 64, 2: 24}  # grid points per exponent, by the number of terms
GRID_RANGE = (0.02, 2.5)


def exponent_grid(num_terms: int) -> np.ndarray:
    """All combinations of exponents, [G, J]; geometric, 0.02 to 2.5 (24 x 24 for two terms).

    Example:
        >>> exponent_grid(2).shape, float(exponent_grid(2)[0, 0])
        ((576, 2), 0.02)
    """
    axis = np.geomspace(*GRID_RANGE, GRID[num_terms])
    return np.array(list(product(axis, repeat=num_terms)))


def project(exponents_GJ: np.ndarray, u_JI: np.ndarray, y_I: np.ndarray, w_I: np.ndarray) -> np.ndarray:
    """Best non-negative (E, A_j) for each row of exponents, by weighted least squares of relative errors.

    Minimises sum_i w_i ((E + sum_j A_j exp(-alpha_j u_ij)) / L_i - 1)^2, L = exp(y).

    Returns:
        Coefficients [G, 1 + J].
    """
    cells, num_terms = exponents_GJ.shape
    size = 1 + num_terms
    features = np.empty((cells, size, len(y_I)))
    features[:, 0] = 1.0
    for j in range(num_terms):
        values, where = np.unique(exponents_GJ[:, j], return_inverse=True)
        features[:, 1 + j] = np.exp(-values[:, None] * u_JI[j])[where]
    features *= (np.sqrt(w_I) * np.exp(-y_I))[None, None]
    return nonnegative(features, np.sqrt(w_I))


def starting_points(u_JI, y_I, w_I, delta: float, keep: int = 12) -> np.ndarray:
    """Starts phi [S, K] from the grid: local minima of the true objective first, then its lowest cells."""
    num_terms = len(u_JI)
    thin = slice(None, None, max(1, len(y_I) // 1000))  # a start needs no more than some 1000 points
    u_JI, y_I, w_I = u_JI[:, thin], y_I[thin], w_I[thin]
    grid = exponent_grid(num_terms)
    coefficients = project(grid, u_JI, y_I, w_I)
    phi = np.empty((len(grid), 1 + 2 * num_terms))
    phi[:, 0] = coefficients[:, 0]
    phi[:, 1::2] = np.log(np.maximum(coefficients[:, 1:], np.exp(solver.LOG_TERM_BOUNDS[0] / 2)))
    phi[:, 2::2] = grid
    value = solver.objective(phi, u_JI, y_I[None], w_I[None], np.full(len(grid), delta))
    shape = (GRID[num_terms],) * num_terms
    padded = np.pad(value.reshape(shape), 1, constant_values=np.inf)
    around = [
        padded[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        for offset in product((0, 1, 2), repeat=num_terms)
    ]
    is_minimum = (value.reshape(shape) <= np.min(around, axis=0)).ravel()
    # 1. local minima of the grid, 2. the best cells with every coefficient positive, 3. the best of all:
    # the objective can have one minimum with a floor and another with E = 0 and a small exponent, so both
    # kinds must be among the starts
    rank = np.where(is_minimum, 0, 2)
    interior = np.flatnonzero((coefficients > 0).all(1) & ~is_minimum)
    rank[interior[np.argsort(value[interior])[: keep // 3]]] = 1
    return phi[np.lexsort((value, rank))[:keep]]

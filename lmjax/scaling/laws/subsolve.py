"""Exact linear sub-solves behind the starts of laws (variable projection). Knows arrays, not laws.

For fixed exponents most laws are linear in their floor and coefficients: a grid over the exponents alone, with one
small non-negative solve per cell, replaces starts over all parameters (Golub and Pereyra 1973).
Letters: G cells of a grid, J linear unknowns, I rows.
"""

from itertools import product

import numpy as np


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


def centred(x) -> tuple[np.ndarray, float]:
    """ln x minus its mean, and that mean: powers of it stay near 1."""
    log_x = np.log(np.asarray(x, np.float64))
    return log_x - log_x.mean(), float(log_x.mean())


def positive(coefficients, y) -> np.ndarray:
    """Coefficients of terms near 1 that must be above 0: zeros become a ten-thousandth of the level."""
    return np.maximum(coefficients, 1e-4 * float(np.mean(y)))

"""What runs tell about a law before they are made: Jacobian, covariance and half widths. No fitting, no table.

Fisher information of rows with independent errors of standard deviation s_i in ln L:
    M = sum_i (d ln L_i / d q) (d ln L_i / d q)' / s_i^2,    cov(q) = price^2 M^-1
q are the coordinates of the law (coefficients as ln), price the cost of Huber's loss on normal errors. Half widths
are those of normal intervals, 1.96 standard deviations at 95 %; tests/test_scaling_design.py sets them against
simulated fits.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.laws import CHINCHILLA, Law, columns, optimal_allocation, predict_loss, slopes

STEP = 1e-6  # of central differences: their error is about 1e-10 of a value of order one


def price(noise: float, delta: float) -> float:
    """Standard deviation of Huber's estimate over that of least squares, on normal errors.

    price = sqrt(E psi^2) / E psi',  psi(z) = clip(z, -k, k),  k = delta / noise: 1 at large k, sqrt(pi/2) at 0.

    Example (delta = 1e-3 on noise of 0.5 %, and on none):
        >>> round(price(0.005, 1e-3), 3), price(0.0, 1e-3)
        (1.193, 1.0)
    """
    from scipy.special import ndtr

    if noise <= 0:
        return 1.0
    k = delta / noise
    inside = 2 * ndtr(k) - 1
    density = math.exp(-0.5 * k * k) / math.sqrt(2 * math.pi)
    square = inside - 2 * k * density + 2 * k * k * ndtr(-k)
    return float(math.sqrt(square) / inside)


def half_width_factor(level: float) -> float:
    """Standard deviations from the middle to the end of a normal interval: 1.96 at 95 %."""
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2))


def relative(weights) -> np.ndarray:
    """Weights over their mean [I], as fits use them: the noise of a fit is that of a row of mean weight."""
    weights = np.asarray(weights, np.float64)
    return weights / weights.mean()


class Coordinates:
    """The coordinates q of a law around given parameters: positive coefficients as ln, the others as they are.

    names: as in a Fit's draws ("E", "ln A", "alpha", ...). values: at the given parameters.
    """

    def __init__(self, law: Law, params: Mapping[str, float]):
        missing = [name for name in law.parameters if name not in params]
        if missing:
            raise InputError(f"wanted values of {', '.join(law.parameters)} for {law.formula}, got no {missing[0]}")
        self.law = law
        self.logged = tuple(p.log for p in law.space)
        pairs = list(zip(law.parameters, self.logged, strict=True))
        self.names = tuple(f"ln {name}" if logged else name for name, logged in pairs)
        self.values = np.array([math.log(params[name]) if logged else params[name] for name, logged in pairs])

    def params(self, values=None) -> dict[str, float]:
        """Parameters at coordinates (default: those given at first)."""
        values = self.values if values is None else values
        rows = zip(self.law.parameters, values, self.logged, strict=True)
        return {name: math.exp(v) if logged else float(v) for name, v, logged in rows}

    def jacobian(self, x: Mapping[str, np.ndarray], plain: bool = False) -> np.ndarray:
        """d ln L / d q at cells x = {"N": [I], "D": [I], ...}, [I, K]; of L itself for a share, or where `plain`."""
        x = columns(self.law, {name: np.atleast_1d(v) for name, v in x.items()})
        params = self.params()
        theta = {name: np.array([[value]]) for name, value in params.items()}
        level, found = slopes(self.law, theta, x)
        unit = 1.0 if plain or self.law.target == "share" else level[0]
        return np.stack(
            [
                found[name][0] * (params[name] if logged else 1.0) / unit
                for name, logged in zip(self.law.parameters, self.logged, strict=True)
            ],
            -1,
        )

    def gradient(self, quantity: Callable[[Mapping[str, float]], float]) -> np.ndarray:
        """d quantity / d q by central differences, [K]; `quantity` takes parameters by name."""
        slopes = []
        for k, value in enumerate(self.values):
            step = STEP * max(abs(value), 1e-2)
            ends = [self.values + sign * step * (np.arange(len(self.values)) == k) for sign in (1, -1)]
            above, below = (float(quantity(self.params(end))) for end in ends)
            slopes.append((above - below) / (2 * step))
        return np.array(slopes)


def covariance(jacobian_IK: np.ndarray, noise_I) -> np.ndarray:
    """Covariance of the coordinates [K, K] from rows with independent errors of standard deviation noise_I.

    Raises:
        InputError: the rows do not determine the coordinates.
    """
    rows_IK = jacobian_IK / np.broadcast_to(noise_I, len(jacobian_IK))[:, None]
    length_K = np.linalg.norm(rows_IK, axis=0)
    if len(rows_IK) < rows_IK.shape[1] or not (length_K > 0).all():
        raise InputError(f"wanted rows that determine {rows_IK.shape[1]} parameters, got {len(rows_IK)} that do not")
    _, singular, vectors = np.linalg.svd(rows_IK / length_K, full_matrices=False)
    if singular[-1] < 1e-10 * singular[0]:
        raise InputError("the rows leave a combination of the parameters undetermined; vary N and D separately")
    whitened = vectors.T / singular / length_K[:, None]
    return whitened @ whitened.T


def deviation(gradient_K: np.ndarray, covariance_KK: np.ndarray) -> np.ndarray:
    """Standard deviation of quantities with these gradients [..., K]."""
    return np.sqrt(np.einsum("...i,ij,...j->...", gradient_K, covariance_KK, gradient_K))


def allocation_quantities(params: Mapping[str, float], C: float) -> dict:
    """Functions of chinchilla's parameters: a, "N*" as ln N*(C), "loss" as ln L at the N*, D* of `params` and C."""
    here = optimal_allocation(params, C)
    return {
        "a": lambda p: p["beta"] / (p["alpha"] + p["beta"]),
        "N*": lambda p: np.log(optimal_allocation(p, C)["N"]),
        "loss": lambda p: np.log(predict_loss(CHINCHILLA, p, here["N"], here["D"])),
    }

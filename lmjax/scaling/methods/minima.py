"""Minima of sampled curves: Akima interpolation and least-squares parabolas, many curves over one grid at once."""

import numpy as np


def akima_minimum(x_I: np.ndarray, y_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact minimum of the Akima interpolant of each curve: the roots of its derivative, piece by piece.

    Args:
        x_I: increasing positions [I], I >= 3.
        y_RI: curves [R, I].

    Returns:
        (x of the minimum [R], y there [R], edge [R]: -1 at the first position, 1 at the last, 0 inside).

    Example:
        >>> x = np.linspace(-2, 2, 9)
        >>> [float(v[0].round(6)) for v in akima_minimum(x, ((x - 0.1) ** 2)[None])]
        [0.1, 0.0, 0.0]
    """
    from scipy.interpolate import Akima1DInterpolator

    c_4JR = Akima1DInterpolator(x_I, y_RI, axis=1).c  # y = c0 s^3 + c1 s^2 + c2 s + c3, s = x - x_j
    width_J1 = np.diff(x_I)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b, c = 3 * c_4JR[0], 2 * c_4JR[1], c_4JR[2]
        root = np.sqrt(b * b - 4 * a * c)
        # the root with the positive second derivative, in the form that does not cancel
        s_JR = np.where(b > 0, -2 * c / (b + root), (root - b) / (2 * a))
    inside = np.isfinite(s_JR) & (s_JR >= 0) & (s_JR <= width_J1)
    s_JR = np.where(inside, s_JR, 0.0)
    value_JR = ((c_4JR[0] * s_JR + c_4JR[1]) * s_JR + c_4JR[2]) * s_JR + c_4JR[3]
    value_JR = np.concatenate([value_JR, y_RI[:, -1:].T])
    place_JR = np.concatenate([x_I[:-1, None] + s_JR, np.full((1, len(y_RI)), x_I[-1])])
    best_R, every = value_JR.argmin(0), np.arange(len(y_RI))
    x_R = place_JR[best_R, every]
    edge_R = np.where(x_R <= x_I[0], -1, np.where(x_R >= x_I[-1], 1, 0))
    return x_R, value_JR[best_R, every], edge_R


def parabola_minimum(x_I: np.ndarray, log_y_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertex of the least-squares parabola through y = exp(log_y) of each curve.

    Args:
        x_I: positions [I], I >= 3.
        log_y_RI: ln of the curves [R, I].

    Returns:
        (x of the vertex [R], ln y there [R], edge [R]: -1 or 1 where the vertex lies outside of the positions or
        the parabola opens downwards; x is then the edge with the lower end of the parabola).

    Example:
        >>> x = np.linspace(-2, 2, 5)
        >>> [abs(float(v[0].round(6))) for v in parabola_minimum(x, np.log(1 + (x - 0.5) ** 2)[None])]
        [0.5, 0.0, 0.0]
    """
    centre = x_I.mean()
    u_I = x_I - centre
    matrix_I3 = np.stack([np.ones_like(u_I), u_I, u_I**2], 1)
    r, q, p = np.linalg.lstsq(matrix_I3, np.exp(log_y_RI).T, rcond=None)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -q / (2 * p)
    ends = (r + q * u_I[0] + p * u_I[0] ** 2, r + q * u_I[-1] + p * u_I[-1] ** 2)
    outside = ~((p > 0) & (vertex > u_I[0]) & (vertex < u_I[-1]))
    edge_R = np.where(outside, np.where(ends[0] < ends[1], -1, 1), 0)
    u_R = np.where(outside, np.where(edge_R < 0, u_I[0], u_I[-1]), vertex)
    return centre + u_R, np.log(np.maximum(r + q * u_R + p * u_R**2, 1e-300)), edge_R


def akima_curve(x_I: np.ndarray, y_I: np.ndarray, at_M: np.ndarray) -> np.ndarray:
    """The interpolant whose minimum `akima_minimum` finds, at other positions [M]."""
    from scipy.interpolate import Akima1DInterpolator

    return Akima1DInterpolator(x_I, y_I)(at_M)

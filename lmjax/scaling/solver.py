"""Minimises the sum of Huber losses of log residuals for many problems at once. Knows arrays, not tables.

    F(phi) = sum_i w_i Huber_delta(r_i),   r_i = ln(E + sum_j exp(c_j - alpha_j u_ij)) - y_i

y is ln loss minus its mean and u_j is ln x_j minus its mean, so that phi = (E, c_1, alpha_1, ...) is O(1)
and c_j (the log of a term at the centre of the data) is nearly uncorrelated with alpha_j. The sum, never the
mean, is minimised, and convergence is judged relative to F: a premature stop on a small objective is the
classic error (arXiv:2404.10102).

Letters: P problems (bootstrap draws, starts), I rows (points), J terms of the law, K = 1 + 2J parameters.
Method: exact Newton steps in a box, damped towards IRLS (which majorises Huber), with delta lowered in stages
from the size of the residuals: near delta -> 0 the objective is almost L1, whose Hessian is blind far from
the optimum.
"""

from dataclasses import dataclass

import numpy as np

from lmjax.scaling.descent import NOISE_FREE, box_step, descend
from lmjax.scaling.laws.base import EXPONENT_BOUNDS

LOG_TERM_BOUNDS = (-18.0, 3.0)  # a term at the centre of the data over the mean loss: 1.5e-8 to 20
SETTLED = 1e-10  # an undamped step that promises less is at a minimum for every purpose
CHUNK = 60_000  # P * I of one batch: its arrays stay in the cache of a core


@dataclass(frozen=True)
class Solution:
    """Result of `minimise`: phi [P, K], objective [P], converged [P], iterations of the slowest problem."""

    phi: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    iterations: int


def bounds(num_terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of phi, each [K]: E >= 0 (over the mean loss), then (c, alpha) of each term."""
    low = [0.0] + [LOG_TERM_BOUNDS[0], EXPONENT_BOUNDS[0]] * num_terms
    high = [10.0] + [LOG_TERM_BOUNDS[1], EXPONENT_BOUNDS[1]] * num_terms
    return np.array(low), np.array(high)


def model(phi_PK: np.ndarray, u_JI: np.ndarray) -> np.ndarray:
    """Log of the (scaled) loss, [P, I]."""
    return np.log(_levels(phi_PK, u_JI)[0])


def _levels(phi_PK, u_JI):
    terms = [np.exp(phi_PK[:, 1 + 2 * j, None] - phi_PK[:, 2 + 2 * j, None] * u_I) for j, u_I in enumerate(u_JI)]
    return phi_PK[:, :1] + sum(terms), terms


def objective(phi_PK: np.ndarray, u_JI: np.ndarray, y_PI: np.ndarray, w_PI: np.ndarray, delta) -> np.ndarray:
    """Sum of w Huber_delta(r), [P]. Huber_delta(r) = r^2/2 for |r| <= delta, else delta (|r| - delta/2)."""
    size_PI = np.abs(model(phi_PK, u_JI) - y_PI)
    inner_PI = np.minimum(size_PI, np.asarray(delta)[..., None])
    # Huber(r) = c (|r| - c/2) with c = min(|r|, delta)
    return np.einsum("pi,pi,pi->p", np.broadcast_to(w_PI, size_PI.shape), inner_PI, size_PI - 0.5 * inner_PI)


def jacobian(phi_PK: np.ndarray, u_JI: np.ndarray) -> np.ndarray:
    """d log loss / d phi, [P, K, I]."""
    level_PI, terms = _levels(phi_PK, u_JI)
    return _jacobian(level_PI, terms, u_JI)


def _jacobian(level_PI, terms, u_JI):
    jac_PKI = np.empty((level_PI.shape[0], 1 + 2 * len(terms), level_PI.shape[1]))
    np.reciprocal(level_PI, out=jac_PKI[:, 0])
    for j, term_PI in enumerate(terms):
        np.multiply(term_PI, jac_PKI[:, 0], out=jac_PKI[:, 1 + 2 * j])
        np.multiply(jac_PKI[:, 1 + 2 * j], -u_JI[j], out=jac_PKI[:, 2 + 2 * j])
    return jac_PKI


def derivatives(phi_PK, u_JI, y_PI, w_PI, delta):
    """Objective [P], gradient [P, K], Hessian and its IRLS majoriser [P, K, K], rounding error [P].

    The Hessian is exact: J' diag(w huber'') J + sum_i w_i psi_i d2r_i, with d2r = d2L/L - J J'. The majoriser
    J' diag(w min(1, delta/|r|)) J is always positive semi-definite.
    """
    level_PI, terms = _levels(phi_PK, u_JI)
    r_PI = np.log(level_PI) - y_PI
    jac_PKI = _jacobian(level_PI, terms, u_JI)
    size_PI = np.abs(r_PI)
    delta_P1 = np.asarray(delta)[..., None]
    inner_PI = size_PI < delta_P1
    score_PI = w_PI * np.clip(r_PI, -delta_P1, delta_P1)
    value_P = np.einsum("pi,pi->p", np.abs(score_PI), size_PI - 0.5 * np.minimum(size_PI, delta_P1))
    gradient_PK = np.matmul(jac_PKI, score_PI[:, :, None])[:, :, 0]
    irls_PI = w_PI * np.where(inner_PI, 1.0, delta_P1 / np.maximum(size_PI, 1e-300))
    irls_PKK = np.matmul(jac_PKI * irls_PI[:, None], jac_PKI.swapaxes(1, 2))
    hessian_PKK = np.matmul(jac_PKI * (w_PI * inner_PI - score_PI)[:, None], jac_PKI.swapaxes(1, 2))
    for j, u_I in enumerate(u_JI):
        c, a = 1 + 2 * j, 2 + 2 * j
        # row c of the Jacobian is q = term / L; the sums of w psi q (1, -u, u^2) are the entries of d2L / L
        sums_P3 = (score_PI * jac_PKI[:, c]) @ np.stack([np.ones_like(u_I), -u_I, u_I * u_I], 1)
        hessian_PKK[:, c, c] += sums_P3[:, 0]
        hessian_PKK[:, c, a] += sums_P3[:, 1]
        hessian_PKK[:, a, c] += sums_P3[:, 1]
        hessian_PKK[:, a, a] += sums_P3[:, 2]
    roundoff_P = 2 * np.finfo(float).eps * np.abs(score_PI).sum(1)
    return value_P, gradient_PK, hessian_PKK, irls_PKK, roundoff_P


def certificate(phi_PK, u_JI, y_PI, w_PI, delta) -> tuple[np.ndarray, np.ndarray]:
    """How far phi is from a minimum: (gap [P], gradient [P]), both without units.

    gap: the decrease of F that one undamped Newton step promises, over F. gradient: the largest |g_k| /
    sqrt(2 F M_kk) over coordinates that are not held by a bound, M the IRLS majoriser; its square is the
    relative decrease of F available along a coordinate. Multiplying all weights by a constant changes
    neither.
    """
    low_K, high_K = bounds(len(u_JI))
    value, gradient, hessian, irls, _ = derivatives(phi_PK, u_JI, y_PI, w_PI, delta)
    undamped = np.full(len(phi_PK), 1e-12)
    _, decrease, scaled = _step(phi_PK, gradient, hessian, irls, undamped, u_JI, low_K, high_K)
    perfect = value < NOISE_FREE
    safe = np.where(perfect, 1.0, value)
    return np.where(perfect, 0.0, np.abs(decrease) / safe), np.where(perfect, 0.0, scaled / np.sqrt(2 * safe))


def _straighten(phi_PK, gradient_PK, hessian_PKK, irls_PKK, u_JI, held_K):
    """Rewrites each slowly varying term in coordinates in which its valley is straight.

    A term with alpha |u| << 1 is A - s u + ..., s = alpha A, so E and A trade along a line in (E, A, s) but along
    a curve in (E, c, alpha), on which Newton creeps. Steps are dA/A and ds/A, so that c + ln(1 + dA/A) and
    (alpha + ds/A) / (1 + dA/A) are the new values. A term whose alpha is held, or at its bound, is rewritten in
    (A, alpha). Steeper terms stay in (c, alpha), which is the straight one there.

    Returns:
        Which terms are in A [P, J], which of these are in s [P, J], and the new gradient, Hessian and majoriser.
    """
    alpha_PJ = phi_PK[:, 2::2]
    in_a_PJ = alpha_PJ * np.abs(u_JI).max(1) < 1.0
    in_s_PJ = in_a_PJ & (alpha_PJ > EXPONENT_BOUNDS[0]) & ~held_K[..., 2::2]
    if not in_a_PJ.any():
        return in_a_PJ, in_s_PJ, gradient_PK, hessian_PKK, irls_PKK
    change_PKK = np.broadcast_to(np.eye(phi_PK.shape[1]), hessian_PKK.shape).copy()
    extra_PKK = np.zeros_like(hessian_PKK)
    for j in range(len(u_JI)):
        c, a = 1 + 2 * j, 2 + 2 * j
        slope = np.where(in_s_PJ[:, j], alpha_PJ[:, j], 0.0)
        change_PKK[:, a, c] = -slope
        extra_PKK[:, c, c] = np.where(in_a_PJ[:, j], 2 * slope * gradient_PK[:, a] - gradient_PK[:, c], 0.0)
        extra_PKK[:, a, c] = extra_PKK[:, c, a] = np.where(in_s_PJ[:, j], -gradient_PK[:, a], 0.0)
    transpose = change_PKK.swapaxes(1, 2)
    gradient_PK = np.matmul(transpose, gradient_PK[..., None])[..., 0]
    hessian_PKK = np.matmul(transpose, np.matmul(hessian_PKK, change_PKK)) + extra_PKK
    irls_PKK = np.matmul(transpose, np.matmul(irls_PKK, change_PKK))
    return in_a_PJ, in_s_PJ, gradient_PK, hessian_PKK, irls_PKK


def _step(phi_PK, gradient_PK, hessian_PKK, irls_PKK, tau_P, u_JI, low_K, high_K):
    """Damped Newton step in the box: the new phi, the predicted decrease of F, the scaled gradient.

    Terms are rewritten where that straightens the valley, then stepped by descent.box_step.
    """
    in_a_PJ, in_s_PJ, gradient_PK, hessian_PKK, irls_PKK = _straighten(
        phi_PK, gradient_PK, hessian_PKK, irls_PKK, u_JI, low_K == high_K
    )
    limits = _limits(phi_PK, in_a_PJ, in_s_PJ, low_K, high_K)
    step_PK, decrease_P, slope_P = box_step(gradient_PK, hessian_PKK, irls_PKK, tau_P, *limits)
    return _move(phi_PK, step_PK, in_a_PJ, in_s_PJ, low_K, high_K), decrease_P, slope_P


def _limits(phi_PK, in_a_PJ, in_s_PJ, low_K, high_K):
    """Least and most each coordinate may move: to its bound; an A to a fifth or five-fold; a c by 3."""
    least_PK, most_PK = low_K - phi_PK, high_K - phi_PK
    held_PJ = (low_K == high_K)[..., 1::2]
    least_PK[:, 1::2] = np.where(held_PJ, 0.0, np.maximum(least_PK[:, 1::2], -3.0))
    most_PK[:, 1::2] = np.where(held_PJ, 0.0, np.minimum(most_PK[:, 1::2], 3.0))
    least_PK[:, 1::2] = np.where(in_a_PJ, np.expm1(np.maximum(least_PK[:, 1::2], -1.6)), least_PK[:, 1::2])
    most_PK[:, 1::2] = np.where(in_a_PJ, np.expm1(np.minimum(most_PK[:, 1::2], 1.6)), most_PK[:, 1::2])
    least_PK[:, 2::2] = np.where(in_s_PJ, -np.inf, least_PK[:, 2::2])
    most_PK[:, 2::2] = np.where(in_s_PJ, np.inf, most_PK[:, 2::2])
    return least_PK, most_PK


def _move(phi_PK, step_PK, in_a_PJ, in_s_PJ, low_K, high_K):
    """phi after the step, which is cut where an exponent moved by its s would fall below its bound."""
    grow_PJ, turn_PJ, alpha_PJ = step_PK[:, 1::2], step_PK[:, 2::2], phi_PK[:, 2::2]
    least = low_K[..., 2::2]
    fall_PJ = np.where(in_s_PJ, least * grow_PJ - turn_PJ, 0.0)  # (alpha + t turn) / (1 + t grow) = least at t = room
    room_PJ = np.where(fall_PJ > 0, (alpha_PJ - least) / np.where(fall_PJ > 0, fall_PJ, 1.0), np.inf)
    step_PK = step_PK * np.minimum(room_PJ.min(1), 1.0)[:, None]
    phi = phi_PK + step_PK
    growth_PJ = 1.0 + np.where(in_a_PJ, step_PK[:, 1::2], 0.0)
    phi[:, 1::2] = np.where(in_a_PJ, phi_PK[:, 1::2] + np.log(growth_PJ), phi[:, 1::2])
    phi[:, 2::2] = np.where(in_s_PJ, phi[:, 2::2] / growth_PJ, phi[:, 2::2])
    phi = np.where(np.abs(phi - low_K) < 1e-12, low_K, np.where(np.abs(phi - high_K) < 1e-12, high_K, phi))
    return np.clip(phi, low_K, high_K)


def minimise(phi_PK, u_JI, y_PI, w_PI, delta, held=(), max_iterations=300, stages=True) -> Solution:
    """Minimises F for P problems that share u, from one start each.

    Args:
        phi_PK: starts [P, K].
        u_JI: centred log variables [J, I].
        y_PI: centred log losses [P, I] (or [1, I]).
        w_PI: weights >= 0 [P, I] (or [1, I]).
        delta: Huber's delta, a float.
        held: coordinates of phi that stay at their start (profiles).
        max_iterations: steps allowed per problem.
        stages: lower delta in stages from the size of the residuals; off only where the start is close
            already.

    Returns:
        Solution; `converged` is False where the steps ran out or no step lowered F.
    """
    num_points = u_JI.shape[1]
    y_PI, w_PI = (np.broadcast_to(x, (len(phi_PK), num_points)) for x in (y_PI, w_PI))
    size = max(1, CHUNK // num_points)
    parts = [
        _minimise(
            phi_PK[i : i + size],
            u_JI,
            y_PI[i : i + size],
            w_PI[i : i + size],
            float(delta),
            held,
            max_iterations,
            stages,
        )
        for i in range(0, len(phi_PK), size)
    ]
    phi, converged, iterations = zip(*parts, strict=True)
    phi, converged = np.concatenate(phi), np.concatenate(converged)
    stuck = np.flatnonzero(~converged)
    if stuck.size and not held:  # rounding can reject the last step to a minimum
        gap, _ = certificate(phi[stuck], u_JI, y_PI[stuck], w_PI[stuck], delta)
        converged[stuck] = gap < SETTLED
    value = np.concatenate(
        [
            objective(phi[i : i + size], u_JI, y_PI[i : i + size], w_PI[i : i + size], delta)
            for i in range(0, len(phi), size)
        ]
    )
    return Solution(phi, value, converged, max(iterations))


@dataclass(frozen=True)
class _Problems:
    """The problems of one batch, as `descend` wants them."""

    u_JI: np.ndarray
    y_PI: np.ndarray
    w_PI: np.ndarray
    noise_free = NOISE_FREE

    def value(self, phi_QK, live, delta_Q):
        return objective(phi_QK, self.u_JI, self.y_PI[live], self.w_PI[live], delta_Q)

    def newton(self, phi_QK, live, delta_Q, tau_Q, box):
        f, g, hessian, irls, roundoff = derivatives(phi_QK, self.u_JI, self.y_PI[live], self.w_PI[live], delta_Q)
        new, decrease, _ = _step(phi_QK, g, hessian, irls, tau_Q, self.u_JI, *box)
        return f, new, decrease, roundoff

    def spread(self, phi_PK):
        return np.median(np.abs(model(phi_PK, self.u_JI) - self.y_PI), axis=1)


def _minimise(phi_PK, u_JI, y_PI, w_PI, delta, held, max_iterations, stages):
    low, high = bounds(len(u_JI))
    phi_PK = np.clip(phi_PK, low, high)
    if held:
        low, high = np.broadcast_to(low, phi_PK.shape).copy(), np.broadcast_to(high, phi_PK.shape).copy()
        low[:, held] = high[:, held] = phi_PK[:, held]
    return descend(_Problems(u_JI, y_PI, w_PI), phi_PK, low, high, delta, stages, max_iterations)

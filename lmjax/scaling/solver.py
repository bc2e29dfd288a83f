"""Minimises the sum of Huber losses of log residuals for many problems at once. Knows arrays, not tables.

    F(phi) = sum_i w_i Huber_delta(r_i),   r_i = ln(E + sum_j exp(c_j - alpha_j u_ij)) - y_i

y is ln loss minus its weighted mean and u_j is ln x_j minus its mean, so that phi = (E, c_1, alpha_1, ...) is O(1) and c_j
(the log of a term at the centre of the data) is nearly uncorrelated with alpha_j. The sum, never the mean, is minimised, and
convergence is judged relative to F: a premature stop on a small objective is the classic error (arXiv:2404.10102).

Letters: P problems (bootstrap draws, starts), I rows (points), J terms of the law, K = 1 + 2J parameters.
Method: exact Newton steps on the box-constrained problem, damped towards IRLS (which majorises Huber), with delta lowered in
stages from the size of the residuals: near delta -> 0 the objective is almost L1, whose Hessian is blind far from the optimum.
"""

from dataclasses import dataclass

import numpy as np

EXPONENT_BOUNDS = (1e-3, 3.0)
LOG_TERM_BOUNDS = (-18.0, 3.0)  # a term at the centre of the data, relative to the mean loss: 1.5e-8 to 20 times
NOISE_FREE = 1e-26  # F below this is a perfect fit: relative tests have no meaning
GAP_TOLERANCE = 1e-14  # predicted decrease of F over F below which a problem counts as solved


@dataclass(frozen=True)
class Solution:
    """Result of `minimise`: phi [P, K], objective [P], gap [P] (predicted decrease / F), gradient [P], iterations."""

    phi: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray
    iterations: int


def bounds(num_terms: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of phi, each [K]: E >= 0 (relative to the mean loss), then (c, alpha) of each term."""
    low = [0.0] + [LOG_TERM_BOUNDS[0], EXPONENT_BOUNDS[0]] * num_terms
    high = [10.0] + [LOG_TERM_BOUNDS[1], EXPONENT_BOUNDS[1]] * num_terms
    return np.array(low), np.array(high)


def model(phi_PK: np.ndarray, u_JI: np.ndarray) -> np.ndarray:
    """Log of the (scaled) loss, [P, I]."""
    return np.log(_levels(phi_PK, u_JI)[0])


def _levels(phi_PK, u_JI):
    terms = [np.exp(phi_PK[:, 1 + 2 * j, None] - phi_PK[:, 2 + 2 * j, None] * u_I) for j, u_I in enumerate(u_JI)]
    return phi_PK[:, :1] + sum(terms), terms


def objective(phi_PK: np.ndarray, u_JI: np.ndarray, y_PI: np.ndarray, w_PI: np.ndarray, delta_P) -> np.ndarray:
    """Sum of w Huber_delta(r), [P]. Huber_delta(r) = r^2/2 for |r| <= delta, else delta (|r| - delta/2)."""
    return _huber(model(phi_PK, u_JI) - y_PI, w_PI, delta_P)


def _huber(r_PI, w_PI, delta_P):
    """Uses Huber(r) = c (|r| - c/2) with c = min(|r|, delta)."""
    size = np.abs(r_PI)
    clipped = np.minimum(size, np.asarray(delta_P)[..., None])
    size -= 0.5 * clipped
    return np.einsum("pi,pi,pi->p", np.broadcast_to(w_PI, size.shape), clipped, size)


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


def derivatives(phi_PK, u_JI, y_PI, w_PI, delta_P):
    """Objective [P], gradient [P, K], Hessian [P, K, K], its IRLS majoriser [P, K, K] (always positive), rounding error [P].

    The Hessian is exact: J' diag(w huber'') J + sum_i w_i psi_i d2r_i, with d2r = d2L/L - J J'.
    """
    level_PI, terms = _levels(phi_PK, u_JI)
    r_PI = np.log(level_PI) - y_PI
    jac_PKI = _jacobian(level_PI, terms, u_JI)
    size_PI = np.abs(r_PI)
    delta_P1 = np.asarray(delta_P)[..., None]
    inner_PI = size_PI < delta_P1
    score_PI = w_PI * np.clip(r_PI, -delta_P1, delta_P1)
    value_P = np.einsum("pi,pi->p", np.abs(score_PI), size_PI - 0.5 * np.minimum(size_PI, delta_P1))
    gradient_PK = np.matmul(jac_PKI, score_PI[:, :, None])[:, :, 0]
    irls_PI = w_PI * np.where(inner_PI, 1.0, delta_P1 / np.maximum(size_PI, 1e-300))
    irls_PKK = np.matmul(jac_PKI * irls_PI[:, None], jac_PKI.swapaxes(1, 2))
    hessian_PKK = np.matmul(jac_PKI * (w_PI * inner_PI - score_PI)[:, None], jac_PKI.swapaxes(1, 2))
    for j, u_I in enumerate(u_JI):
        c, a = 1 + 2 * j, 2 + 2 * j
        # q = term / L is row c of the Jacobian; sums of w psi q, q u and q u^2 are the blocks of d2L / L
        weighted_PI = score_PI * jac_PKI[:, c]
        sums_P3 = weighted_PI @ np.stack([np.ones_like(u_I), -u_I, u_I * u_I], 1)
        hessian_PKK[:, c, c] += sums_P3[:, 0]
        hessian_PKK[:, c, a] += sums_P3[:, 1]
        hessian_PKK[:, a, c] += sums_P3[:, 1]
        hessian_PKK[:, a, a] += sums_P3[:, 2]
    roundoff_P = 2 * np.finfo(float).eps * np.abs(score_PI).sum(1)
    return value_P, gradient_PK, hessian_PKK, irls_PKK, roundoff_P


def _to_linear(phi_PK, gradient_PK, hessian_PKK, irls_PKK, u_JI):
    """Rewrites each slowly varying term in (A, s = alpha A) instead of (c, alpha), where its valley is straight.

    A term with alpha |u| << 1 is A - s u + ..., so E and A trade along a line in (E, A, s) but along a curve in (E, c, alpha),
    on which Newton creeps. Steps are in units of A: dA/A and ds/A, so that c + ln(1 + dA/A) and (alpha + ds/A) / (1 + dA/A)
    are the new values. Terms that fall by more than a factor e stay in (c, alpha), which is the straight one there.

    Returns:
        Which terms were rewritten [P, J] and the new gradient, Hessian, majoriser.
    """
    alpha_PJ = phi_PK[:, 2::2]
    linear_PJ = (alpha_PJ * np.abs(u_JI).max(1) < 1.0) & (alpha_PJ > 2 * EXPONENT_BOUNDS[0])
    if not linear_PJ.any():
        return linear_PJ, gradient_PK, hessian_PKK, irls_PKK
    jac_PKK = np.broadcast_to(np.eye(phi_PK.shape[1]), hessian_PKK.shape).copy()
    extra_PKK = np.zeros_like(hessian_PKK)
    for j in range(len(u_JI)):
        c, a = 1 + 2 * j, 2 + 2 * j
        on = linear_PJ[:, j]
        jac_PKK[:, a, c] = np.where(on, -alpha_PJ[:, j], 0.0)
        extra_PKK[:, c, c] = np.where(on, 2 * alpha_PJ[:, j] * gradient_PK[:, a] - gradient_PK[:, c], 0.0)
        extra_PKK[:, a, c] = extra_PKK[:, c, a] = np.where(on, -gradient_PK[:, a], 0.0)
    transpose = jac_PKK.swapaxes(1, 2)
    return (linear_PJ, np.matmul(transpose, gradient_PK[..., None])[..., 0],
            np.matmul(transpose, np.matmul(hessian_PKK, jac_PKK)) + extra_PKK,
            np.matmul(transpose, np.matmul(irls_PKK, jac_PKK)))


def _step(phi_PK, gradient_PK, hessian_PKK, irls_PKK, tau_P, u_JI, low_K, high_K):
    """Damped Newton step within the box: the new phi, the predicted decrease of F, the scaled gradient.

    1. Terms are rewritten where that straightens the valley. 2. Coordinates at a bound that the gradient or the step pushes
    outwards are frozen. 3. The rest solve (H + tau IRLS) step = -g in the metric of the IRLS diagonal, which makes the step
    independent of units. 4. The step is cut where it first meets a bound, so that the next one can freeze that coordinate.
    """
    linear_PJ, gradient_PK, hessian_PKK, irls_PKK = _to_linear(phi_PK, gradient_PK, hessian_PKK, irls_PKK, u_JI)
    at_low, at_high = phi_PK <= low_K, phi_PK >= high_K
    frozen_PK = (at_low & (gradient_PK > 0)) | (at_high & (gradient_PK < 0)) | (low_K == high_K)
    scale_PK = np.sqrt(np.maximum(np.einsum("pkk->pk", irls_PKK), 1e-200))
    matrix_PKK = (hessian_PKK + tau_P[:, None, None] * irls_PKK) / (scale_PK[:, :, None] * scale_PK[:, None, :])
    for _ in range(2):
        free_PK = ~frozen_PK
        matrix = np.where(free_PK[:, :, None] & free_PK[:, None, :], matrix_PKK, 0.0)
        # ridge of 1e-13 in units where the diagonal is about 1: an exactly flat direction must not be a singular solve
        np.einsum("pkk->pk", matrix)[...] += np.where(free_PK, 1e-13 * (1.0 + tau_P[:, None]), 1.0)
        scaled_gradient = np.where(free_PK, gradient_PK / scale_PK, 0.0)
        step = -np.linalg.solve(matrix, scaled_gradient[:, :, None])[:, :, 0]
        outward = (at_low & (step < 0)) | (at_high & (step > 0))
        if not (outward & free_PK).any():
            break
        frozen_PK |= outward
    decrease_P = -0.5 * np.einsum("pk,pk->p", scaled_gradient, step)
    return _move(phi_PK, step / scale_PK, linear_PJ, low_K, high_K), decrease_P, np.abs(scaled_gradient).max(1)


def _move(phi_PK, step_PK, linear_PJ, low_K, high_K):
    """phi after the step, which is first cut where it meets a bound or would shrink an A below a fifth."""
    with np.errstate(divide="ignore", invalid="ignore"):
        room = np.where(step_PK < 0, low_K - phi_PK, high_K - phi_PK) / step_PK
    room[:, 1::2] = np.where(linear_PJ, np.where(step_PK[:, 1::2] < 0, -0.8 / np.minimum(step_PK[:, 1::2], -1e-300), 4.0 / np.maximum(step_PK[:, 1::2], 1e-300)), room[:, 1::2])
    room[:, 2::2] = np.where(linear_PJ, np.inf, room[:, 2::2])
    cut_P1 = np.clip(np.nanmin(np.where(step_PK == 0, np.inf, room), axis=1), 0.0, 1.0)[:, None]
    step_PK = step_PK * cut_P1
    phi = phi_PK + step_PK
    growth = 1.0 + np.where(linear_PJ, step_PK[:, 1::2], 0.0)
    phi[:, 1::2] = np.where(linear_PJ, phi_PK[:, 1::2] + np.log(growth), phi[:, 1::2])
    phi[:, 2::2] = np.where(linear_PJ, phi[:, 2::2] / growth, phi[:, 2::2])
    return np.clip(phi, low_K, high_K)


def minimise(phi_PK, u_JI, y_PI, w_PI, delta, low_K=None, high_K=None, max_iterations=200, stages=True) -> Solution:
    """Minimises F for P problems that share u, from one start each.

    Args:
        phi_PK: starts [P, K].
        u_JI: centred log variables [J, I].
        y_PI: centred log losses [P, I] (or [1, I]).
        w_PI: weights >= 0 [P, I] (or [1, I]).
        delta: Huber's delta, a float.
        low_K, high_K: bounds of phi; equal bounds hold a coordinate fixed (profiles).
        max_iterations: Newton steps allowed per problem.
        stages: lower delta in stages from the size of the residuals (off for warm starts that are already close).

    Returns:
        Solution; `converged` is False where the steps ran out.
    """
    num_terms, problems = len(u_JI), len(phi_PK)
    low, high = bounds(num_terms) if low_K is None else (low_K, high_K)
    y_PI, w_PI = (np.broadcast_to(x, (problems, u_JI.shape[1])) for x in (y_PI, w_PI))
    phi = np.clip(phi_PK, low, high)
    value, gap, gradient = (np.full(problems, np.inf) for _ in range(3))
    done, converged = np.zeros(problems, bool), np.zeros(problems, bool)
    tau = np.full(problems, 1e-2)
    stage = np.full(problems, float(delta))
    if stages:
        size = np.median(np.abs(model(phi, u_JI) - y_PI), axis=1)
        stage = np.maximum(3.0 * size, delta)
    steps_in_stage = np.zeros(problems, int)
    iteration = 0
    for iteration in range(1, max_iterations + 1):
        live = np.flatnonzero(~done)
        if not live.size:
            break
        at, y, w, d, tau_used = phi[live], y_PI[live], w_PI[live], stage[live], tau[live]
        f, g, hessian, irls, roundoff = derivatives(at, u_JI, y, w, d)
        new, decrease, slope = _step(at, g, hessian, irls, tau_used, u_JI, low, high)
        f_new = objective(new, u_JI, y, w, d)
        better = (f_new < f) & (decrease > 0)
        phi[live[better]] = new[better]
        tau[live] = np.clip(np.where(better, tau_used * 0.1, tau_used * 8.0 + 1e-6), 1e-12, 1e12)
        floor = np.maximum(np.minimum(f, f_new), 1e-300)
        relative = np.abs(decrease) / floor
        last_stage = d <= delta
        # a damped step always promises little: only a nearly undamped one may say that the optimum is reached
        solved = (relative < GAP_TOLERANCE + roundoff / floor) & (decrease >= 0) & (tau_used <= 1e-3) | (f < NOISE_FREE)
        converged[live[last_stage & solved]] = True
        done[live[last_stage & (solved | (tau_used > 1e11))]] = True
        value[live] = np.where(better, f_new, f)
        gap[live], gradient[live] = relative, slope / floor
        steps_in_stage[live] += 1
        lower = ~last_stage & ((relative < 1e-2) | (steps_in_stage[live] >= 5))
        stage[live[lower]] = np.maximum(stage[live[lower]] / 4.0, delta)
        steps_in_stage[live[lower]] = 0
        tau[live[lower]] = np.minimum(tau[live[lower]], 1e-2)
    value = objective(phi, u_JI, y_PI, w_PI, np.full(problems, float(delta)))
    return Solution(phi, value, gap, gradient, converged, iteration)

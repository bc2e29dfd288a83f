"""Damped Newton steps in a box, for many problems at once: the loop of both solvers. Knows no law and no table.

A problem is any object with three methods, for the problems `live` [Q] at phi [Q, K] and Huber's delta [Q]:
    value(phi, live, delta)              -> F [Q]; NaN or infinite outside of the law's range
    newton(phi, live, delta, tau, box)   -> F [Q], the damped step's end [Q, K], its predicted decrease of F [Q],
                                            the rounding error of F [Q]
    spread(phi)                          -> median |residual| of each problem [P]
and a number, noise_free: F below it is a perfect fit.
Convergence is judged relative to F, so that scaling F by any constant changes no step: a premature stop on a small
objective is the classic error of scaling-law fits (arXiv:2404.10102).
"""

import numpy as np

NOISE_FREE = 1e-26  # F of logarithms below this is a perfect fit: relative tests have no meaning
GAP_TOLERANCE = 1e-14  # predicted decrease of F over F below which a problem counts as solved


def box_step(gradient_PK, hessian_PKK, irls_PKK, tau_P, least_PK, most_PK):
    """Newton step of (H + tau M), M positive semi-definite, with least <= step <= most.

    1. Coordinates that the gradient pushes against their limit stand still. 2. The rest solve (H + tau M) step = -g
    in the metric of M's diagonal, which makes the step independent of units. 3. Coordinates whose step goes beyond
    its limit are pinned there, and the rest solved again.

    Returns:
        step [P, K], the predicted decrease of F [P], the largest scaled gradient of the free coordinates [P].
    """
    scale_PK = np.sqrt(np.maximum(np.einsum("pkk->pk", irls_PKK), 1e-200))
    matrix_PKK = (hessian_PKK + tau_P[:, None, None] * irls_PKK) / (scale_PK[:, :, None] * scale_PK[:, None])
    slope_PK = gradient_PK / scale_PK
    least_PK, most_PK = least_PK * scale_PK, most_PK * scale_PK
    pinned_PK = ((least_PK == 0) & (gradient_PK > 0)) | ((most_PK == 0) & (gradient_PK < 0)) | (least_PK == most_PK)
    slope_free_P = np.where(pinned_PK, 0.0, np.abs(slope_PK)).max(1)
    step_PK = np.zeros_like(gradient_PK)
    for _ in range(gradient_PK.shape[1]):
        free_PK = ~pinned_PK
        matrix = np.where(free_PK[:, :, None] & free_PK[:, None], matrix_PKK, 0.0)
        # ridge of 1e-13 where the diagonal is about 1: an exactly flat direction must not be a singular solve
        np.einsum("pkk->pk", matrix)[...] += np.where(free_PK, 1e-13 * (1.0 + tau_P[:, None]), 1.0)
        fixed_PK = np.where(free_PK, 0.0, step_PK)
        pull_PK = np.where(free_PK, -slope_PK - np.matmul(matrix_PKK, fixed_PK[..., None])[..., 0], 0.0)
        step_PK = np.where(free_PK, np.linalg.solve(matrix, pull_PK[..., None])[..., 0], fixed_PK)
        beyond_PK = free_PK & ((step_PK < least_PK) | (step_PK > most_PK))
        if not beyond_PK.any():
            break
        step_PK = np.clip(step_PK, least_PK, most_PK)
        pinned_PK |= beyond_PK
    curvature_P = np.einsum("pk,pk->p", step_PK, np.matmul(matrix_PKK, step_PK[..., None])[..., 0])
    decrease_P = -np.einsum("pk,pk->p", slope_PK, step_PK) - 0.5 * curvature_P
    return step_PK / scale_PK, decrease_P, slope_free_P


def _shorten(problem, phi_QK, new_QK, f_Q, f_new_Q, whole_Q, live, delta_Q):
    """Tries 0.3 and 0.08 of the steps that were no gain, which often cross a kink; changes new and f_new in place.

    Returns:
        Where the step, whole or in part, is a gain [Q].
    """
    better_Q = whole_Q.copy()
    for share in (0.3, 0.08):
        at = np.flatnonzero(~better_Q)
        if not at.size:
            break
        part_QK = phi_QK[at] + share * (new_QK[at] - phi_QK[at])
        f_part_Q = problem.value(part_QK, live[at], delta_Q[at])
        good = f_part_Q < f_Q[at] * (1 - 1e-9)
        new_QK[at[good]], f_new_Q[at[good]], better_Q[at[good]] = part_QK[good], f_part_Q[good], True
    return better_Q


def descend(problem, phi_PK, low_PK, high_PK, delta: float, stages: bool, max_iterations: int):
    """Follows every problem down to its minimum, with delta lowered in stages from the size of the residuals.

    Near delta -> 0 the objective is almost L1, whose Hessian is blind far from the optimum.

    Returns:
        phi [P, K], converged [P], iterations of the slowest problem.
    """
    phi = np.clip(phi_PK, low_PK, high_PK)
    low_PK, high_PK = np.broadcast_to(low_PK, phi.shape), np.broadcast_to(high_PK, phi.shape)
    live = np.arange(len(phi))
    converged = np.zeros(len(phi), bool)
    tau, steps = np.full(len(phi), 1e-2), np.zeros(len(phi), int)
    stage = np.maximum(3.0 * problem.spread(phi), delta) if stages else np.full(len(phi), delta)
    iteration = 0
    while live.size and iteration < max_iterations:
        iteration += 1
        here, d, damping = phi[live], stage[live], tau[live]
        f, new, decrease, roundoff = problem.newton(here, live, d, damping, (low_PK[live], high_PK[live]))
        f_new = problem.value(new, live, d)
        whole = (f_new < f) & (decrease > 0)
        better = _shorten(problem, here, new, f, f_new, whole, live, d)
        phi[live[better]] = new[better]
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite F is never solved and only damps its steps
            relative = np.abs(decrease) / np.maximum(np.fmin(f, f_new), 1e-300)
            # a damped step always promises little: only a nearly undamped one may say that the optimum is reached
            enough = GAP_TOLERANCE + roundoff / np.maximum(f, 1e-300)
        solved = (relative < enough) & (decrease >= 0) & (damping <= 1e-3) | (f < problem.noise_free)
        last = d <= delta
        converged[live[last & solved]] = True
        tau[live] = np.clip(
            np.where(whole, damping * 0.1, np.where(better, damping, damping * 8.0 + 1e-6)), 1e-12, 1e12
        )
        steps[live] += 1
        down = live[~last & ((relative < 1e-2) | (steps[live] >= 5))]
        stage[down], steps[down] = np.maximum(stage[down] / 4.0, delta), 0
        tau[down] = np.minimum(tau[down], 1e-2)
        live = live[~(last & (solved | (damping > 1e11)))]
    return phi, converged, iteration

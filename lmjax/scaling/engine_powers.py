"""The engine's Problem for a floor plus falling powers, for speed: exact Hessian, straightened steps, fast starts.

    L = E + sum_j A_j x_j^-alpha_j,   phi = (E, c_1, alpha_1, ...) with ln L over its mean and ln x_j centred

c_j is the log of a term at the centre of the table, nearly uncorrelated with alpha_j; all of phi is O(1).
Letters: P problems, I rows, J terms, K = 1 + 2 J parameters, G cells of the grid of exponents.
"""

import math
from itertools import product

import numpy as np

from lmjax.scaling.engine import BATCH, STARTS, Problem, box_step, huber
from lmjax.scaling.laws.base import nonnegative

LOG_TERM_BOUNDS = (-18.0, 3.0)  # a term at the centre of the table over the mean loss: 1.5e-8 to 20
GRID = {1: 64, 2: 24, 3: 9}  # values of each exponent, by the number of terms
GRID_RANGE = (0.02, 2.5)


class Powers(Problem):
    """The rows of a table in centred coordinates: u_JI = ln x - centre, y_I = ln loss - mean."""

    def __init__(self, law, x, y, w=None, criterion="huber_log", delta=1e-3, groups=None):
        super().__init__(law, x, y, w, criterion, delta, groups)
        log_x_JI = np.log(np.stack([self.x[term.variable] for term in law.terms]))
        self.centre_J, self.mean = log_x_JI.mean(1), self.y_I.mean()
        self.u_JI, self.y_I = log_x_JI - self.centre_J[:, None], self.y_I - self.mean
        self.least_exponents_J = np.array([p.low for p in law.space])[2::2]
        self.low[0], self.high[0] = 0.0, 10.0
        self.low[1::2], self.high[1::2] = LOG_TERM_BOUNDS
        self.batch = max(1, BATCH // len(self.y_I))

    def logs(self, phi_PK):
        """Parameters with the coefficients as ln: {"E": [P], "ln A": [P], "alpha": [P], ...}."""
        out = {self.names[0]: phi_PK[:, 0] * math.exp(self.mean)}
        for j, centre in enumerate(self.centre_J):
            c, alpha = phi_PK[:, 1 + 2 * j], phi_PK[:, 2 + 2 * j]
            out |= {self.names[1 + 2 * j]: c + alpha * centre + self.mean, self.names[2 + 2 * j]: alpha}
        return out

    def phi(self, params):
        """Coordinates of natural parameters by name, floats or [S], within the bounds: [K] or [S, K]."""
        columns = [np.asarray(params[name], np.float64) for name in self.law.parameters]
        columns[0] = columns[0] * math.exp(-self.mean)
        with np.errstate(divide="ignore"):
            for j, centre in enumerate(self.centre_J):
                columns[1 + 2 * j] = np.log(columns[1 + 2 * j]) - columns[2 + 2 * j] * centre - self.mean
        return np.clip(np.stack(columns, -1), self.low, self.high)

    def _losses(self, phi_PK, u_JI=None):
        """L over the mean loss [P, I], and its terms."""
        rows = enumerate(self.u_JI if u_JI is None else u_JI)
        terms = [np.exp(phi_PK[:, 1 + 2 * j, None] - phi_PK[:, 2 + 2 * j, None] * u_I) for j, u_I in rows]
        return phi_PK[:, :1] + sum(terms), terms

    def model(self, phi_PK):
        """ln loss over its mean, [P, I]."""
        return np.log(self._losses(phi_PK)[0])

    def jacobian(self, phi_PK):
        """d model / d phi, [P, K, I]."""
        return self._jacobian(*self._losses(phi_PK))

    def _jacobian(self, loss_PI, terms):
        jac_PKI = np.empty((loss_PI.shape[0], 1 + 2 * len(terms), loss_PI.shape[1]))
        np.reciprocal(loss_PI, out=jac_PKI[:, 0])
        for j, term_PI in enumerate(terms):
            np.multiply(term_PI, jac_PKI[:, 0], out=jac_PKI[:, 1 + 2 * j])
            np.multiply(jac_PKI[:, 1 + 2 * j], -self.u_JI[j], out=jac_PKI[:, 2 + 2 * j])
        return jac_PKI

    def derivatives(self, phi_PK, y_PI, w_PI, delta_P, exact=True):
        """As in Problem; the Hessian is exact: J' diag(w huber'') J + sum_i w_i psi_i d2r_i, d2r = d2L / L - J J'."""
        loss_PI, terms = self._losses(phi_PK)
        r_PI = np.log(loss_PI) - y_PI
        jac_PKI = self._jacobian(loss_PI, terms)
        size_PI = np.abs(r_PI)
        delta_P1 = np.asarray(delta_P)[..., None]
        inner_PI = size_PI < delta_P1
        score_PI = w_PI * np.clip(r_PI, -delta_P1, delta_P1)
        value_P = np.einsum("pi,pi->p", np.abs(score_PI), size_PI - 0.5 * np.minimum(size_PI, delta_P1))
        gradient_PK = np.matmul(jac_PKI, score_PI[:, :, None])[:, :, 0]
        irls_PI = w_PI * np.where(inner_PI, 1.0, delta_P1 / np.maximum(size_PI, 1e-300))
        irls_PKK = np.matmul(jac_PKI * irls_PI[:, None], jac_PKI.swapaxes(1, 2))
        hessian_PKK = np.matmul(jac_PKI * (w_PI * inner_PI - score_PI)[:, None], jac_PKI.swapaxes(1, 2))
        for j, u_I in enumerate(self.u_JI):
            c, a = 1 + 2 * j, 2 + 2 * j
            # row c of the Jacobian is q = term / L; the sums of w psi q (1, -u, u^2) are the entries of d2L / L
            sums_P3 = (score_PI * jac_PKI[:, c]) @ np.stack([np.ones_like(u_I), -u_I, u_I * u_I], 1)
            hessian_PKK[:, c, c] += sums_P3[:, 0]
            hessian_PKK[:, c, a] += sums_P3[:, 1]
            hessian_PKK[:, a, c] += sums_P3[:, 1]
            hessian_PKK[:, a, a] += sums_P3[:, 2]
        return value_P, gradient_PK, hessian_PKK, irls_PKK, 2 * np.finfo(float).eps * np.abs(score_PI).sum(1)

    def step(self, phi_PK, gradient_PK, hessian_PKK, irls_PKK, tau_P, low_PK, high_PK):
        """As in Problem; each slowly varying term is rewritten where that straightens its valley."""
        parts = self.straighten(phi_PK, gradient_PK, hessian_PKK, irls_PKK, low_PK == high_PK)
        in_a_PJ, in_s_PJ, gradient_PK, hessian_PKK, irls_PKK = parts
        # least and most each coordinate may move: to its bound; an A to a fifth or five-fold; a c by 3
        least_PK, most_PK = low_PK - phi_PK, high_PK - phi_PK
        held_PJ = (low_PK == high_PK)[:, 1::2]
        for edge_PK, far, near in ((least_PK, -3.0, -1.6), (most_PK, 3.0, 1.6)):
            limit = np.maximum if far < 0 else np.minimum
            c_PJ = np.where(held_PJ, 0.0, limit(edge_PK[:, 1::2], far))
            edge_PK[:, 1::2] = np.where(in_a_PJ, np.expm1(limit(c_PJ, near)), c_PJ)
            edge_PK[:, 2::2] = np.where(in_s_PJ, np.copysign(np.inf, far), edge_PK[:, 2::2])
        step_PK, decrease_P, slope_P = box_step(gradient_PK, hessian_PKK, irls_PKK, tau_P, least_PK, most_PK)
        # the step is cut where an exponent moved by its s would fall below its bound:
        # (alpha + t turn) / (1 + t grow) = least at t = room
        grow_PJ, turn_PJ, least = step_PK[:, 1::2], step_PK[:, 2::2], low_PK[:, 2::2]
        fall_PJ = np.where(in_s_PJ, least * grow_PJ - turn_PJ, 0.0)
        room_PJ = np.where(fall_PJ > 0, (phi_PK[:, 2::2] - least) / np.where(fall_PJ > 0, fall_PJ, 1.0), np.inf)
        step_PK = step_PK * np.minimum(room_PJ.min(1), 1.0)[:, None]
        phi = phi_PK + step_PK
        growth_PJ = 1.0 + np.where(in_a_PJ, step_PK[:, 1::2], 0.0)
        phi[:, 1::2] = np.where(in_a_PJ, phi_PK[:, 1::2] + np.log(growth_PJ), phi[:, 1::2])
        phi[:, 2::2] = np.where(in_s_PJ, phi[:, 2::2] / growth_PJ, phi[:, 2::2])
        phi = np.where(np.abs(phi - low_PK) < 1e-12, low_PK, np.where(np.abs(phi - high_PK) < 1e-12, high_PK, phi))
        return np.clip(phi, low_PK, high_PK), decrease_P, slope_P

    def straighten(self, phi_PK, gradient_PK, hessian_PKK, irls_PKK, held_PK):
        """Rewrites each slowly varying term in coordinates in which its valley is straight.

        A term with alpha |u| << 1 is A - s u + ..., s = alpha A, so E and A trade along a line in (E, A, s) but along
        a curve in (E, c, alpha), along which Newton steps are tiny. Steps are dA/A and ds/A, so that
        c + ln(1 + dA/A) and (alpha + ds/A) / (1 + dA/A) are the new values. A term whose alpha is
        held, or at its bound, is rewritten in (A, alpha). Steeper terms stay in (c, alpha), in which their valley is
        straight.

        Returns:
            Which terms are in A [P, J], which of these are in s [P, J], and the new gradient, Hessian and majoriser.
        """
        alpha_PJ = phi_PK[:, 2::2]
        in_a_PJ = alpha_PJ * np.abs(self.u_JI).max(1) < 1.0
        in_s_PJ = in_a_PJ & (alpha_PJ > self.least_exponents_J) & ~held_PK[:, 2::2]
        if not in_a_PJ.any():
            return in_a_PJ, in_s_PJ, gradient_PK, hessian_PKK, irls_PKK
        change_PKK = np.broadcast_to(np.eye(phi_PK.shape[1]), hessian_PKK.shape).copy()
        extra_PKK = np.zeros_like(hessian_PKK)
        for j in range(len(self.u_JI)):
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

    # ---- starts: variable projection over a grid of exponents ----

    def candidates(self):
        """The starts of the grid; there are few enough to minimise each fully."""
        return self.starts(self.delta)

    def starts(self, delta, keep=STARTS):
        """Starts [S, K]: local minima of F over the grid of exponents first, then its lowest cells."""
        thin = slice(None, None, max(1, len(self.y_I) // 1000))  # about 1000 points are enough for a start
        u_JI, y_I, w_I = self.u_JI[:, thin], self.y_I[thin], self.w_I[thin]
        axis = np.geomspace(*GRID_RANGE, GRID.get(len(u_JI), 5))
        shape = (len(axis),) * len(u_JI)
        cells_JG = np.indices(shape).reshape(len(u_JI), -1)
        # non-negative least squares of relative errors, weighted
        features = np.ones((cells_JG.shape[1], 1 + len(u_JI), len(y_I)))
        for j, cell_G in enumerate(cells_JG):
            features[:, 1 + j] = np.exp(-axis[:, None] * u_JI[j])[cell_G]
        linear = nonnegative(features * (np.sqrt(w_I) * np.exp(-y_I)), np.sqrt(w_I))
        phi = np.empty((len(linear), 1 + 2 * len(u_JI)))
        phi[:, 0], phi[:, 2::2] = linear[:, 0], axis[cells_JG].T
        phi[:, 1::2] = np.log(np.maximum(linear[:, 1:], np.exp(LOG_TERM_BOUNDS[0] / 2)))
        value = huber(np.log(self._losses(phi, u_JI)[0]) - y_I, w_I[None], np.full(len(phi), float(delta)))
        padded = np.pad(value.reshape(shape), 1, constant_values=np.inf)
        around = [
            padded[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
            for offset in product((0, 1, 2), repeat=len(u_JI))
        ]
        is_minimum = (value.reshape(shape) <= np.min(around, axis=0)).ravel()
        # 1. local minima of the grid, 2. the best cells with every coefficient positive, 3. the best of all:
        # F can have one minimum with a floor and another with E = 0 and a small exponent, so both kinds must be
        # among the starts
        rank = np.where(is_minimum, 0, 2)
        interior = np.flatnonzero((linear > 0).all(1) & ~is_minimum)
        rank[interior[np.argsort(value[interior])[: keep // 3]]] = 1
        return np.clip(phi[np.lexsort((value, rank))[:keep]], self.low, self.high)

"""Fits a law to arrays: minimises its misfit for many starts and resamples at once. Knows laws and arrays, not tables.

    F(phi) = sum_i w_i Huber_delta(r_i),   r = ln predicted - ln y (losses) or predicted - y (shares, plain squares)

`phi` holds positive parameters as their logarithm. Newton steps in a box, damped towards IRLS (which majorises Huber),
are taken in the metric of the Jacobian, so that neither units nor correlations of the parameters matter. Delta is
lowered in stages from the size of the residuals: near delta -> 0 the misfit is almost L1, whose Hessian is
uninformative far from the optimum. The sum, never the mean, is minimised, and convergence is judged relative to F, so
that scaling F by any constant changes no step: a premature stop on a small criterion is the classic error of
scaling-law fits (arXiv:2404.10102).

A floor plus falling powers has a faster Problem of its own, engine_powers.py, unless parameters are fixed or tied.

Letters: P problems (starts, resamples), Q those still moving, I rows, K parameters.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.laws import Law, get_law, slopes, starting_points

CRITERIA = ("huber_log", "squared_log", "squared")
WIDE = 1e6  # Huber with a delta above every residual is least squares
AGREE = 1e-8  # starts whose F is within this relative distance of the best found the same minimum
SETTLED = 1e-10  # predicted relative decrease of an undamped step below which a point counts as a minimum
NOISE_FREE = 1e-26  # F of log residuals below this is an exact fit, where relative tests are meaningless
GAP_TOLERANCE = 1e-14  # predicted decrease of F over F below which a problem counts as solved
LOG_LIMIT = 600.0  # |ln| of a positive parameter; its exponential does not overflow
STARTS, KEEP = 12, 48  # starts that are minimised fully; candidates that are minimised briefly
MAX_STEP = 3.0  # largest change of a logarithm or an exponent in one iteration
DIFFERENCE = 1e-6  # step of the forward difference
BATCH = 60_000  # array elements per batch of problems, so that its arrays stay in the cache of a core


@dataclass(frozen=True)
class Minima:
    """Minima of P problems: phi [P, K], objective [P] = F at phi, converged [P], iterations of the slowest."""

    phi: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    iterations: int


@dataclass(frozen=True)
class Optimum:
    """The best minimum of a problem, with diagnostics of the search.

    params: parameters by name; phi: the same as coordinates [K]. objective: F at phi.
    converged: whether it is a minimum. gap, gradient: see Problem.certificate.
    starts, starts_agree: number of starts, and of those that found this minimum. is_start: phi is a starting point.
    jacobian: of the model in phi, rows weighted, [I, K]; condition: its condition number, columns of unit length.
    residual: measured - model, [I]. at_bounds: {name: bound}; a coefficient that vanished is at 0.
    rivals: phi and F of other minima, best first.
    """

    params: dict[str, float]
    phi: np.ndarray
    objective: float
    converged: bool
    gap: float
    gradient: float
    starts: int
    starts_agree: int
    iterations: int
    condition: float
    jacobian: np.ndarray
    residual: np.ndarray
    at_bounds: dict[str, float]
    rivals: tuple[tuple[np.ndarray, float], ...]
    is_start: bool

    @property
    def settled(self) -> bool:
        """Whether it converged, or a further Newton step would lower F by less than SETTLED (relative)."""
        return self.converged or self.gap < SETTLED

    @property
    def standard_errors(self) -> np.ndarray:
        """Standard errors of the coordinates for residuals of standard deviation 1, from the curvature, [K]."""
        return np.sqrt(np.maximum(np.diag(np.linalg.pinv(self.jacobian.T @ self.jacobian)), 0))


def minimise(law: str | Law, x, y, w=None, criterion="huber_log", delta=1e-3) -> Optimum:
    """Fits a law to arrays.

    Args:
        x: {variable: [I]}.
        y: losses (positive) or shares [I].
        w: weights [I]; None weights all rows equally.
        criterion: huber_log | squared_log | squared; residuals of shares are plain in each.

    Example (recovers a planted sigmoid):
        >>> C = np.geomspace(1e15, 1e21, 12)
        >>> share = 0.1 + 0.8 / (1 + np.exp(-1.2 * (np.log(C) - np.log(1e18))))
        >>> found = minimise("sigmoid_c", {"C": C}, share, criterion="squared")
        >>> {name: round(value, 3) for name, value in found.params.items()}
        {'floor': 0.1, 'ceiling': 0.9, 'k': 1.2, 'middle': 41.447}
    """
    return problem_of(law, x, y, w, criterion, delta).optimum()


def problem_of(law: str | Law, x, y, w=None, criterion="huber_log", delta=1e-3, groups=None) -> "Problem":
    """Returns the Problem of arrays, with arguments as in `minimise`; groups: label [I] of each row's configuration."""
    law = get_law(law)
    if criterion not in CRITERIA:
        raise InputError(f"expected a fit criterion, got {criterion!r}{nearest(criterion, CRITERIA)}")
    if law.terms and not law.base and criterion != "squared" and law.target == "loss":
        from lmjax.scaling.engine_powers import Powers

        return Powers(law, x, y, w, criterion, delta, groups)
    return Problem(law, x, y, w, criterion, delta, groups)


def problem_of_table(points, law: Law, criterion: str = "huber_log", delta: float = 1e-3) -> "Problem":
    """Returns the Problem of a table's points: columns of the law's variables, loss, weight.

    Weights are divided by their mean, so that a constant factor changes nothing. Noise is that of a row of mean weight.
    A configuration is a distinct combination of the law's variables, N and D.
    """
    weight = points["weight"].to_numpy(np.float64)
    x = {name: points[name].to_numpy(np.float64) for name in law.variables}
    known = [points[name].to_numpy(np.float64) for name in dict.fromkeys(("N", "D", *law.variables)) if name in points]
    distinct = np.stack([column for column in known if np.isfinite(column).all()], 1)
    groups = np.unique(distinct, axis=0, return_inverse=True)[1].ravel()
    return problem_of(law, x, points["loss"], weight / weight.mean(), criterion, delta, groups)


class Problem:
    """A law on the rows of a table, in the coordinates phi of the engine.

    names: of the coordinates, "ln A" for a positive parameter. low, high: bounds of phi [K]. y_I: measured values, to
    compare with `model`. plain: whether residuals are of the loss or share itself. mean: subtracted from ln y.
    """

    mean = 0.0

    def __init__(self, law: Law, x, y, w=None, criterion="huber_log", delta=1e-3, groups=None):
        self.law = law
        self.plain = criterion == "squared" or law.target == "share"
        self.delta = float(delta) if criterion == "huber_log" else WIDE
        self.x = {name: np.asarray(x[name], np.float64) for name in law.variables}
        self.raw_I = np.asarray(y, np.float64)
        self.y_I = self.raw_I if self.plain else np.log(self.raw_I)
        self.w_I = np.ones(len(self.y_I)) if w is None else np.asarray(w, np.float64)
        self.groups_I = np.arange(len(self.y_I)) if groups is None else np.asarray(groups)
        # plain residuals scale with the unit of the losses
        self.noise_free = NOISE_FREE * (float(np.mean(self.raw_I**2)) or 1.0 if self.plain else 1.0)
        self.names = tuple(f"ln {p.name}" if p.log else p.name for p in law.space)
        self.is_log = np.array([p.log for p in law.space])
        self.low, self.high = map(np.array, zip(*map(_bounds, law.space), strict=True))
        self.batch = max(1, BATCH // (len(self.y_I) * len(law.space)))

    # ---- coordinates ----

    def logs(self, phi_PK) -> dict[str, np.ndarray]:
        """Parameters by name, positive ones as ln: {"E": [P], "ln A": [P], ...}."""
        return {name: phi_PK[:, k] for k, name in enumerate(self.names)}

    def phi(self, params) -> np.ndarray:
        """Coordinates of natural parameters by name, floats or [S], within the bounds: [K] or [S, K]."""
        values = np.stack([np.asarray(params[name], np.float64) for name in self.law.parameters], -1)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(values)
        return np.clip(np.where(self.is_log, logs, values), self.low, self.high)

    def natural(self, phi_PK) -> dict[str, np.ndarray]:
        """Parameters and derived numbers by name, each [P]."""
        with np.errstate(over="ignore"):
            params = {
                n.removeprefix("ln "): np.exp(v) if n.startswith("ln ") else v for n, v in self.logs(phi_PK).items()
            }
        return {**params, **self.law.derived(params)}

    def _theta(self, phi_PK):
        natural_PK = np.where(self.is_log, np.exp(np.where(self.is_log, phi_PK, 0.0)), phi_PK)
        return {name: natural_PK[:, k, None] for k, name in enumerate(self.law.parameters)}

    # ---- the model, its derivatives and one step ----

    def model(self, phi_PK) -> np.ndarray:
        """Model values to compare with y_I: ln loss, or the loss or share if `plain`; [P, I], NaN outside the range."""
        with np.errstate(all="ignore"):
            value = np.broadcast_to(self.law.predict(self._theta(phi_PK), self.x), (len(phi_PK), len(self.y_I)))
            return value if self.plain else np.log(np.where(value > 0, value, np.nan))

    def predicted(self, phi_K) -> np.ndarray:
        """Loss or share of each row, [I]."""
        model = self.model(phi_K[None])[0]
        return model if self.plain else np.exp(model + self.mean)

    def jacobian(self, phi_PK) -> np.ndarray:
        """d model / d phi, [P, K, I]."""
        theta = self._theta(phi_PK)
        out = np.empty((len(phi_PK), len(self.names), len(self.y_I)))
        with np.errstate(all="ignore"):
            value, found = slopes(self.law, theta, self.x)
            for k, p in enumerate(self.law.space):
                out[:, k] = found[p.name] * (theta[p.name] if p.log else 1.0) / (1.0 if self.plain else value)
        return out

    def value(self, phi_PK, y_PI, w_PI, delta_P) -> np.ndarray:
        """F, [P]; infinite where a prediction is not a number."""
        return huber(self.model(phi_PK) - y_PI, w_PI, delta_P)

    def derivatives(self, phi_PK, y_PI, w_PI, delta_P, exact=True):
        """F [P], gradient [P, K], Hessian and its majoriser [P, K, K], rounding error [P].

        The majoriser J' diag(w min(1, delta / |r|)) J is always positive semi-definite. The Hessian's second-order part
        is a forward difference of the Jacobian; without `exact` it is left out: far from a minimum it is not worth its
        cost.
        """
        d = np.asarray(delta_P)[:, None]
        r = self.model(phi_PK) - y_PI
        jac = self.jacobian(phi_PK)
        size = np.abs(r)
        score = w_PI * np.clip(r, -d, d)
        gradient = np.matmul(jac, score[:, :, None])[:, :, 0]
        weight = w_PI * np.where(size < d, 1.0, d / np.maximum(size, 1e-300))
        irls = np.matmul(jac * weight[:, None], jac.swapaxes(1, 2))
        hessian = np.matmul(jac * (w_PI * (size < d))[:, None], jac.swapaxes(1, 2))
        if exact:
            hessian = hessian + self._second(phi_PK, jac, score)
        roundoff = 2 * np.finfo(float).eps * np.abs(score).sum(1) * np.maximum(1.0, np.abs(y_PI).max(1))
        return huber(r, w_PI, delta_P), gradient, hessian, irls, roundoff

    def _second(self, phi_PK, jac_PKI, score_PI):
        """sum_i score_i d2 model_i / d phi2, by forward differences, all coordinates in one call."""
        count, size = phi_PK.shape
        step = DIFFERENCE * np.maximum(1.0, np.abs(phi_PK))
        step = np.where(phi_PK + step > self.high, -step, step)
        moved = phi_PK[:, None] + np.eye(size) * step[:, :, None]
        jac = self.jacobian(moved.reshape(count * size, size)).reshape(count, size, size, -1)
        out = np.einsum("pmki,pi->pmk", jac - jac_PKI[:, None], score_PI) / step[:, :, None]
        out = 0.5 * (out + out.swapaxes(1, 2))
        return np.where(np.isfinite(out).all((1, 2))[:, None, None], out, 0.0)

    def step(self, phi_PK, gradient_PK, hessian_PKK, irls_PKK, tau_P, low_PK, high_PK):
        """Damped Newton step in the box: the new phi, the predicted decrease of F, the scaled gradient."""
        most_far = MAX_STEP * np.maximum(1.0, np.abs(phi_PK))
        least, most = np.maximum(low_PK - phi_PK, -most_far), np.minimum(high_PK - phi_PK, most_far)
        step, decrease, slope = box_step(gradient_PK, hessian_PKK, irls_PKK, tau_P, least, most)
        return np.clip(phi_PK + step, low_PK, high_PK), decrease, slope

    # ---- the search ----

    def candidates(self) -> np.ndarray:
        """Starting points of the law, [S, K]."""
        with np.errstate(all="ignore"):
            begin = starting_points(self.law, self.x, self.raw_I, self.plain)
        phi = self.phi(dict(zip(self.law.parameters, np.asarray(begin, float).T, strict=True)))
        return phi[np.isfinite(phi).all(1)]

    def starts(self, delta: float, keep: int = STARTS) -> np.ndarray:
        """The `keep` candidates of the lowest F at Huber's delta, best first."""
        phi = self.candidates()
        value = self.value(phi, self.y_I, self.w_I[None], np.full(len(phi), float(delta)))
        return phi[np.argsort(value, kind="stable")[:keep]]

    def finalists(self, phi_SK) -> np.ndarray:
        """The candidates to minimise fully: if there are many, those with the lowest F after a short descent."""
        value = self.value(phi_SK, self.y_I, self.w_I[None], np.full(len(phi_SK), self.delta))
        order = np.argsort(value, kind="stable")
        order = order[np.isfinite(value[order])]
        if not order.size:
            raise InputError(f"expected a starting point within the range of {self.law.formula}, got none")
        near, far = order[: KEEP // 2], order[KEEP // 2 :]
        far = far[:: max(1, len(far) // (KEEP // 2))][: KEEP // 2]  # the lowest are neighbours: spread the others
        phi = phi_SK[np.concatenate([near, far])]
        if len(phi) <= STARTS:
            return phi
        short = self.minimise(phi, self.y_I, self.w_I, max_iterations=40, exact=False)
        return short.phi[_distinct(short.phi, short.objective)[:STARTS]]

    def optimum(self) -> Optimum:
        """Searches for the best minimum from the starting points of the law."""
        begin = self.candidates()
        found = self.minimise(self.finalists(begin), self.y_I, self.w_I)
        phi, value, converged = found.phi, found.objective, found.converged
        if not converged[value.argmin()]:  # rare: with noise far above delta, F is almost piecewise linear
            near = phi[np.argsort(value)[:3]]
            again = self.minimise(near, self.y_I, self.w_I, max_iterations=3000, stages=False)
            pairs = ((again.phi, phi), (again.objective, value), (again.converged, converged))
            phi, value, converged = (np.concatenate(pair) for pair in pairs)
        order = np.argsort(value, kind="stable")
        phi, value, converged = phi[order], value[order], converged[order]
        rivals = []
        for i in range(1, len(phi)):
            others = [value[0], *(v for _, v in rivals)]
            if converged[i] and all(value[i] > v * (1 + 1e-6) + self.noise_free for v in others):
                rivals.append((phi[i], float(value[i])))
        best_K = phi[0]
        gap, gradient = self.certificate(best_K[None])
        jacobian = self.jacobian(best_K[None])[0].T * np.sqrt(self.w_I)[:, None]
        return Optimum(
            params={name: float(v[0]) for name, v in self.natural(best_K[None]).items() if name in self.law.parameters},
            phi=best_K,
            objective=float(value[0]),
            converged=bool(converged[0]),
            gap=float(gap[0]),
            gradient=float(gradient[0]),
            starts=len(phi),
            starts_agree=int((value <= value[0] * (1 + AGREE) + self.noise_free).sum()),
            iterations=found.iterations,
            condition=condition(jacobian),
            jacobian=jacobian,
            residual=self.y_I - self.model(best_K[None])[0],
            at_bounds=self._at_bounds(best_K, jacobian),
            rivals=tuple(rivals[:3]),
            is_start=bool((np.abs(begin - best_K).max(1) < 1e-12).any()),
        )

    def certificate(self, phi_PK, y_PI=None, w_PI=None, delta=None) -> tuple[np.ndarray, np.ndarray]:
        """How far phi is from a minimum: gap [P] and gradient [P], both dimensionless.

        gap: the predicted decrease of F by one undamped Newton step, over F. gradient: the largest |g_k| /
        sqrt(2 F M_kk) over coordinates not held at a bound, M the majoriser; its square is the relative decrease of F
        available along a coordinate. Multiplying all weights by a constant changes neither. y, w, delta: None uses the
        problem's.
        """
        shape = (len(phi_PK), len(self.y_I))
        y_PI = np.broadcast_to(self.y_I if y_PI is None else y_PI, shape)
        w_PI = np.broadcast_to(self.w_I if w_PI is None else w_PI, shape)
        delta_P = np.full(len(phi_PK), self.delta if delta is None else delta)
        value, *rest, _ = self.derivatives(phi_PK, y_PI, w_PI, delta_P)
        low, high = (np.broadcast_to(edge, phi_PK.shape) for edge in (self.low, self.high))
        _, decrease, slope = self.step(phi_PK, *rest, np.full(len(phi_PK), 1e-12), low, high)
        perfect = value < self.noise_free
        safe = np.where(perfect, 1.0, value)
        return np.where(perfect, 0.0, np.abs(decrease) / safe), np.where(perfect, 0.0, slope / np.sqrt(2 * safe))

    def _at_bounds(self, phi_K, jacobian_IK):
        """Parameters at a bound, with the bound; a coefficient whose Jacobian column is negligible counts as 0."""
        out = {}
        size_K = np.abs(jacobian_IK).max(0)
        # in plain residuals the derivative is 1 in the floor, but scales with the loss in ln A
        largest = math.sqrt(self.noise_free / NOISE_FREE) if self.plain else size_K.max()
        for k, p in enumerate(self.law.space):
            if phi_K[k] <= self.low[k]:
                out[p.name] = p.low
            elif phi_K[k] >= self.high[k]:
                out[p.name] = p.high
            elif p.log and p.high == math.inf and size_K[k] < 1e-7 * largest:
                out[p.name] = 0.0
        return out

    def minimise(self, phi_PK, y_PI, w_PI, delta=None, held=(), stages=True, max_iterations=300, exact=True) -> Minima:
        """Minimises F for P problems, from one start each.

        Args:
            phi_PK: starts.
            y_PI: measured values, [P, I] or one row for all.
            w_PI: weights >= 0, [P, I] or one row for all.
            delta: Huber's delta; None uses the problem's.
            held: coordinates that stay at their start (profiles).
            stages: lower delta in stages; turn off only if the start is already close.
            max_iterations: steps allowed per problem.
            exact: see `derivatives`.

        Returns:
            Minima; `converged` is False if the steps ran out or no step lowered F.
        """
        delta = self.delta if delta is None else float(delta)
        shape = (len(phi_PK), len(self.y_I))
        y_PI, w_PI = np.broadcast_to(y_PI, shape), np.broadcast_to(w_PI, shape)
        parts = []
        for i in range(0, len(phi_PK), self.batch):
            y, w = y_PI[i : i + self.batch], w_PI[i : i + self.batch]
            start = np.clip(phi_PK[i : i + self.batch], self.low, self.high)
            low, high = (np.broadcast_to(edge, start.shape).copy() for edge in (self.low, self.high))
            low[:, held] = high[:, held] = start[:, held]
            phi, converged, iterations = _descend(self, start, y, w, low, high, delta, stages, max_iterations, exact)
            value = self.value(phi, y, w, np.full(len(phi), delta))
            stuck = np.flatnonzero(~converged & np.isfinite(value))
            if stuck.size and not held:  # rounding can reject the last step to a minimum
                converged[stuck] = self.certificate(phi[stuck], y[stuck], w[stuck], delta)[0] < SETTLED
            parts.append((phi, value, converged, iterations))
        phi, value, converged, iterations = zip(*parts, strict=True)
        return Minima(np.concatenate(phi), np.concatenate(value), np.concatenate(converged), max(iterations))


def _bounds(parameter):
    """The bounds of a parameter's coordinate."""
    low, high = parameter.low, parameter.high
    if not parameter.log:
        return low, high
    return math.log(low) if low > 0 else -LOG_LIMIT, math.log(high) if high < math.inf else LOG_LIMIT


def huber(r_PI, w_PI, delta_P) -> np.ndarray:
    """Sum of w Huber_delta(r), [P]; infinite where a residual is not a number.

    Huber_delta(r) = r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.abs(r_PI)
        inner = np.minimum(size, np.asarray(delta_P)[..., None])
        out = np.einsum("pi,pi,pi->p", np.broadcast_to(w_PI, size.shape), inner, size - 0.5 * inner)
    return np.where(np.isfinite(out), out, np.inf)


def condition(jacobian_IK) -> float:
    """Condition number of the Jacobian with unit-length columns; infinite if a column is zero."""
    length = np.linalg.norm(jacobian_IK, axis=0)
    if not (np.isfinite(length) & (length > 0)).all():
        return math.inf
    singular = np.linalg.svd(jacobian_IK / length, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf


def _distinct(phi_PK, value_P):
    """Indices of starts by F: up to STARTS / 2 distinct ones, then near-duplicates, then the other distinct ones."""
    order = np.argsort(value_P, kind="stable")
    first, rest = [], []
    for i in order[np.isfinite(value_P[order])]:
        same = any(
            abs(value_P[i] - value_P[j]) <= 1e-6 * value_P[i] and np.abs(phi_PK[i] - phi_PK[j]).max() < 1e-3
            for j in first
        )
        (rest if same else first).append(int(i))
    return np.array(first[: STARTS // 2] + rest + first[STARTS // 2 :], int)


# ---- Newton's loop -------------------------------------------------------------------------------------------------


def box_step(gradient_PK, hessian_PKK, irls_PKK, tau_P, least_PK, most_PK):
    """Newton step of (H + tau M), M positive semi-definite, with least <= step <= most.

    1. Coordinates that the gradient pushes against their limit stay fixed. 2. The rest solve (H + tau M) step = -g
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
        # ridge of 1e-13 where the diagonal is about 1: an exactly flat direction must not make the solve singular
        np.einsum("pkk->pk", matrix)[...] += np.where(free_PK, 1e-13 * (1.0 + tau_P[:, None]), 1.0)
        fixed_PK = np.where(free_PK, 0.0, step_PK)
        pull_PK = np.where(free_PK, -slope_PK - np.matmul(matrix_PKK, fixed_PK[..., None])[..., 0], 0.0)
        step_PK = np.where(free_PK, _solve(matrix, pull_PK), fixed_PK)
        beyond_PK = free_PK & ((step_PK < least_PK) | (step_PK > most_PK))
        if not beyond_PK.any():
            break
        step_PK = np.clip(step_PK, least_PK, most_PK)
        pinned_PK |= beyond_PK
    curvature_P = np.einsum("pk,pk->p", step_PK, np.matmul(matrix_PKK, step_PK[..., None])[..., 0])
    decrease_P = -np.einsum("pk,pk->p", slope_PK, step_PK) - 0.5 * curvature_P
    return step_PK / scale_PK, decrease_P, slope_free_P


def _solve(matrix_PKK, b_PK):
    """Solutions [P, K]; b itself, a step down the slope, where an indefinite matrix happens to be singular."""
    try:
        return np.linalg.solve(matrix_PKK, b_PK[..., None])[..., 0]
    except np.linalg.LinAlgError:
        singular_P = np.linalg.slogdet(matrix_PKK)[0] == 0
        return _solve(np.where(singular_P[:, None, None], np.eye(b_PK.shape[1]), matrix_PKK), b_PK)


def _newton(problem, phi_QK, y_QI, w_QI, delta_Q, tau_Q, low_QK, high_QK, exact):
    """F, the end of the damped step, its predicted decrease (-1: no step) and the rounding error of F."""
    with np.errstate(all="ignore"):  # far starts overflow; non-finite values make no step
        f, gradient, hessian, irls, roundoff = problem.derivatives(phi_QK, y_QI, w_QI, delta_Q, exact)
    bad = ~(np.isfinite(hessian).all((1, 2)) & np.isfinite(gradient).all(1) & np.isfinite(irls).all((1, 2)))
    if bad.any():
        gradient[bad], hessian[bad], irls[bad] = 0.0, 0.0, 0.0
    new, decrease, _ = problem.step(phi_QK, gradient, hessian, irls, tau_Q, low_QK, high_QK)
    return f, new, np.where(bad, -1.0, decrease), roundoff


def _descend(problem, phi_PK, y_PI, w_PI, low_PK, high_PK, delta, stages, max_iterations, exact):
    """Follows every problem down to its minimum: phi [P, K], converged [P], iterations of the slowest problem."""
    phi = phi_PK.copy()
    live = np.arange(len(phi))
    converged = np.zeros(len(phi), bool)
    tau, steps, stage = np.full(len(phi), 1e-2), np.zeros(len(phi), int), np.full(len(phi), delta)
    if stages:
        size = np.abs(problem.model(phi) - y_PI)
        stage = np.maximum(3.0 * np.median(np.where(np.isfinite(size), size, 1e3), axis=1), delta)
    iteration = 0
    while live.size and iteration < max_iterations:
        iteration += 1
        here, y, w, d, damping = phi[live], y_PI[live], w_PI[live], stage[live], tau[live]
        f, new, decrease, roundoff = _newton(problem, here, y, w, d, damping, low_PK[live], high_PK[live], exact)
        f_new = problem.value(new, y, w, d)
        whole = (f_new < f) & (decrease > 0)
        better = whole.copy()
        for share in (0.3, 0.08):  # a step that does not lower F often crosses a kink: try a shorter one
            at = np.flatnonzero(~better)
            if not at.size:
                break
            part = here[at] + share * (new[at] - here[at])
            f_part = problem.value(part, y[at], w[at], d[at])
            good = f_part < f[at] * (1 - 1e-9)
            new[at[good]], f_new[at[good]], better[at[good]] = part[good], f_part[good], True
        phi[live[better]] = new[better]
        with np.errstate(over="ignore", invalid="ignore"):  # an infinite F never counts as solved
            relative = np.abs(decrease) / np.maximum(np.fmin(f, f_new), 1e-300)
            # a damped step always predicts a small decrease, so only a nearly undamped one can show convergence
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

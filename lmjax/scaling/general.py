"""Minimises the misfit of any law from many starts. Knows laws and arrays, not tables.

    F(phi) = sum_i w_i Huber_delta(r_i),   r = ln level - ln y (laws of a loss) or level - y (shares, raw losses)

phi holds positive parameters as their logarithm. Steps are Newton's in a box (descent.py), in the metric of the
Jacobian, so that neither units nor correlations of the parameters matter; the Hessian's second-order part is a
forward difference of the analytic gradient. Laws that are a floor plus powers have a faster solver: solver.py.

Letters: P problems (starts, refits), I rows, K parameters.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError, nearest
from lmjax.scaling.descent import NOISE_FREE, box_step, descend
from lmjax.scaling.laws import get_law
from lmjax.scaling.laws.base import Law

OBJECTIVES = ("huber_log", "squared_log", "squared")
WIDE = 1e6  # Huber with a delta above every residual is least squares
AGREE = 1e-8  # starts whose objective is this close (relative) to the best found the same minimum
LOG_LIMIT = 600.0  # |ln| of a positive parameter: its exponential stays a number
KEEP, FINALISTS = 48, 12
MAX_STEP = 3.0  # of a logarithm or an exponent in one iteration
DIFFERENCE = 1e-6  # step of the forward difference
CHUNK = 60_000


@dataclass(frozen=True)
class GeneralSolution:
    """Result of `minimise`.

    theta: the best parameters by name. objective: F there. converged: whether it is a minimum. gap: the decrease
    of F that one more Newton step promises, over F. gradient: scaled, as in solver.certificate. starts_agree: of
    `starts` finalists, those that found it. condition: of the Jacobian [I, K] of the residuals in phi, its columns
    of unit length. minima: distinct minima (objective, theta), best first.
    """

    theta: dict[str, float]
    objective: float
    converged: bool
    gap: float
    gradient: float
    starts: int
    starts_agree: int
    condition: float
    jacobian: np.ndarray
    residual: np.ndarray
    minima: tuple[tuple[float, dict[str, float]], ...]
    iterations: int


class Misfit:
    """A law on the rows of a table, in the coordinates phi of the engine."""

    def __init__(self, law: Law, x, y_I, w_I=None, plain: bool | None = None):
        self.law = law
        self.x = {name: np.asarray(x[name], np.float64) for name in law.variables}
        self.plain = law.target == "share" if plain is None else plain
        self.raw_I = np.asarray(y_I, np.float64)
        self.y_I = self.raw_I if self.plain else np.log(self.raw_I)
        self.w_I = np.ones(len(self.y_I)) if w_I is None else np.asarray(w_I, np.float64)
        # a plain residual is small beside the losses, whatever their unit
        self.noise_free = NOISE_FREE * (float(np.mean(self.raw_I**2)) or 1.0 if self.plain else 1.0)
        self.is_log = np.array([p.log for p in law.space])
        self.low = np.array(
            [math.log(p.low) if p.log and p.low > 0 else -LOG_LIMIT if p.log else p.low for p in law.space]
        )
        self.high = np.array(
            [(math.log(p.high) if p.high < math.inf else LOG_LIMIT) if p.log else p.high for p in law.space]
        )

    def theta(self, phi_PK) -> dict[str, np.ndarray]:
        """Parameters by name, [P, 1]."""
        return {
            p.name: np.exp(phi_PK[:, k, None]) if p.log else phi_PK[:, k, None] for k, p in enumerate(self.law.space)
        }

    def phi(self, theta_PK) -> np.ndarray:
        """Coordinates of natural parameters [P, K], clipped to the bounds."""
        theta_PK = np.asarray(theta_PK, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.log(theta_PK)
        return np.clip(np.where(self.is_log, logs, theta_PK), self.low, self.high)

    def model(self, phi_PK) -> np.ndarray:
        """Level, or its logarithm, [P, I]; NaN where the law leaves its range."""
        with np.errstate(all="ignore"):
            level = np.broadcast_to(self.law.level(self.theta(phi_PK), self.x), (len(phi_PK), len(self.y_I)))
            return level if self.plain else np.log(np.where(level > 0, level, np.nan))

    def jacobian(self, phi_PK) -> np.ndarray:
        """d model / d phi, [P, K, I]."""
        theta = self.theta(phi_PK)
        with np.errstate(all="ignore"):
            slopes = self.law.gradient(theta, self.x)
            size = 1.0 if self.plain else self.law.level(theta, self.x)
            out = np.empty((len(phi_PK), len(self.law.space), len(self.y_I)))
            for k, p in enumerate(self.law.space):
                out[:, k] = slopes[p.name] * (theta[p.name] if p.log else 1.0) / size
        return out


@dataclass(frozen=True)
class _Problems:
    """Problems of one law and one x, as `descend` wants them."""

    misfit: Misfit
    y_PI: np.ndarray
    w_PI: np.ndarray
    exact: bool = True  # second-order part of the Hessian: not worth its price far from a minimum

    @property
    def noise_free(self):
        return self.misfit.noise_free

    def value(self, phi_QK, live, delta_Q):
        r = self.misfit.model(phi_QK) - self.y_PI[live]
        return huber(r, self.w_PI[live], delta_Q)

    def spread(self, phi_PK):
        r = np.abs(self.misfit.model(phi_PK) - self.y_PI)
        return np.median(np.where(np.isfinite(r), r, 1e3), axis=1)

    def derivatives(self, phi_QK, live, delta_Q):
        """F [Q], gradient [Q, K], Hessian and majoriser [Q, K, K], rounding error [Q]."""
        y, w, d = self.y_PI[live], self.w_PI[live], delta_Q[:, None]
        r = self.misfit.model(phi_QK) - y
        jac = self.misfit.jacobian(phi_QK)
        size = np.abs(r)
        score = w * np.clip(r, -d, d)
        gradient = np.matmul(jac, score[:, :, None])[:, :, 0]
        irls = np.matmul(jac * (w * np.where(size < d, 1.0, d / np.maximum(size, 1e-300)))[:, None], jac.swapaxes(1, 2))
        hessian = np.matmul(jac * (w * (size < d))[:, None], jac.swapaxes(1, 2))
        if self.exact:
            hessian = hessian + self._second(phi_QK, jac, score)
        roundoff = 2 * np.finfo(float).eps * np.abs(score).sum(1) * np.maximum(1.0, np.abs(y).max(1))
        return huber(r, w, delta_Q), gradient, hessian, irls, roundoff

    def _second(self, phi_QK, jac_QKI, score_QI):
        """sum_i score_i d2 model_i / d phi2, by forward differences of the Jacobian, all coordinates in one call."""
        count, size = phi_QK.shape
        step = DIFFERENCE * np.maximum(1.0, np.abs(phi_QK))
        step = np.where(phi_QK + step > self.misfit.high, -step, step)
        moved = phi_QK[:, None] + np.eye(size) * step[:, :, None]
        jac = self.misfit.jacobian(moved.reshape(count * size, size)).reshape(count, size, size, -1)
        out = np.einsum("qmki,qi->qmk", jac - jac_QKI[:, None], score_QI) / step[:, :, None]
        out = 0.5 * (out + out.swapaxes(1, 2))
        return np.where(np.isfinite(out).all((1, 2))[:, None, None], out, 0.0)

    def newton(self, phi_QK, live, delta_Q, tau_Q, box):
        with np.errstate(all="ignore"):  # far starts overflow; what is not finite makes no step
            f, gradient, hessian, irls, roundoff = self.derivatives(phi_QK, live, delta_Q)
        bad = ~(np.isfinite(hessian).all((1, 2)) & np.isfinite(gradient).all(1) & np.isfinite(irls).all((1, 2)))
        gradient, hessian, irls = (
            np.where(bad[(...,) + (None,) * (a.ndim - 1)], 0.0, a) for a in (gradient, hessian, irls)
        )
        most_far = MAX_STEP * np.maximum(1.0, np.abs(phi_QK))
        least, most = np.maximum(box[0] - phi_QK, -most_far), np.minimum(box[1] - phi_QK, most_far)
        step, decrease, _ = box_step(gradient, hessian, irls, tau_Q, least, most)
        new = np.clip(phi_QK + step, *box)
        return f, new, np.where(bad, -1.0, decrease), roundoff


def huber(r_PI, w_PI, delta_P) -> np.ndarray:
    """Sum of w Huber_delta(r), [P]; infinite where a residual is not a number."""
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.abs(r_PI)
        inner = np.minimum(size, np.asarray(delta_P)[..., None])
        out = np.einsum("pi,pi->p", np.broadcast_to(w_PI, size.shape) * inner, size - 0.5 * inner)
    return np.where(np.isfinite(out), out, np.inf)


def descend_all(misfit: Misfit, phi_PK, y_PI, w_PI, delta, held=(), stages=True, max_iterations=300, exact=True):
    """Minimises P problems from one start each: phi [P, K], objective [P], converged [P], iterations."""
    shape = (len(phi_PK), len(misfit.y_I))
    y_PI, w_PI = np.broadcast_to(y_PI, shape), np.broadcast_to(w_PI, shape)
    size = max(1, CHUNK // (shape[1] * len(misfit.law.space)))
    parts = []
    for i in range(0, shape[0], size):
        part = slice(i, i + size)
        problems = _Problems(misfit, y_PI[part], w_PI[part], exact)
        start = np.clip(phi_PK[part], misfit.low, misfit.high)
        low, high = (np.broadcast_to(edge, start.shape).copy() for edge in (misfit.low, misfit.high))
        low[:, held] = high[:, held] = start[:, held]
        phi, converged, iterations = descend(problems, start, low, high, float(delta), stages, max_iterations)
        everyone = np.arange(len(phi))
        value = problems.value(phi, everyone, np.full(len(phi), float(delta)))
        stuck = np.flatnonzero(~converged & np.isfinite(value))
        if stuck.size and not held:  # rounding can reject the last step to a minimum
            gap, _ = certificate(misfit, phi[stuck], y_PI[part][stuck], w_PI[part][stuck], delta)
            converged[stuck] = gap < 1e-10
        parts.append((phi, value, converged, iterations))
    phi, value, converged, iterations = zip(*parts, strict=True)
    return np.concatenate(phi), np.concatenate(value), np.concatenate(converged), max(iterations)


def certificate(misfit: Misfit, phi_PK, y_PI, w_PI, delta) -> tuple[np.ndarray, np.ndarray]:
    """How far phi is from a minimum: gap and scaled gradient, each [P], as solver.certificate defines them."""
    shape = (len(phi_PK), len(misfit.y_I))
    problems = _Problems(misfit, np.broadcast_to(y_PI, shape), np.broadcast_to(w_PI, shape))
    delta_P = np.full(len(phi_PK), float(delta))
    value, gradient, hessian, irls, _ = problems.derivatives(phi_PK, np.arange(len(phi_PK)), delta_P)
    least, most = misfit.low - phi_PK, misfit.high - phi_PK
    _, decrease, slope = box_step(gradient, hessian, irls, np.full(len(phi_PK), 1e-12), least, most)
    perfect = value < misfit.noise_free
    safe = np.where(perfect, 1.0, value)
    return np.where(perfect, 0.0, np.abs(decrease) / safe), np.where(perfect, 0.0, slope / np.sqrt(2 * safe))


def polish(misfit: Misfit, delta: float, starts=None):
    """Best minima from the starts of the law: phi [S, K] sorted by objective, objective [S], converged [S], iterations.

    Many starts go a short way; the best go to the end.
    """
    begin = misfit.law.starts(misfit.x, misfit.raw_I) if starts is None else starts
    phi = misfit.phi(np.atleast_2d(begin))
    phi = phi[np.isfinite(phi).all(1)]
    y, w = misfit.y_I[None], misfit.w_I[None]
    value = huber(misfit.model(phi) - y, w, np.full(len(phi), delta))
    order = np.argsort(value, kind="stable")
    order = order[np.isfinite(value[order])]
    if not order.size:
        raise InputError(f"no start of {misfit.law.formula} lies in the range of the law; wanted starts near the data")
    near = order[: KEEP // 2]
    far = order[KEEP // 2 :]
    far = far[:: max(1, len(far) // (KEEP // 2))][: KEEP // 2]  # the lowest starts are neighbours: spread the others
    phi = phi[np.concatenate([near, far])]
    if len(phi) > FINALISTS:
        phi, value, _, _ = descend_all(misfit, phi, y, w, delta, max_iterations=40, exact=False)
        phi = phi[_distinct(phi, value)[:FINALISTS]]
    phi, value, converged, iterations = descend_all(misfit, phi, y, w, delta)
    if not converged[value.argmin()]:
        best = phi[np.argsort(value)[:3]]
        again = descend_all(misfit, best, y, w, delta, stages=False, max_iterations=3000)
        phi, value, converged = (np.concatenate(pair) for pair in zip(again[:3], (phi, value, converged), strict=True))
    order = np.argsort(value, kind="stable")
    return phi[order], value[order], converged[order], iterations


def _distinct(phi_PK, value_P):
    """Indices by objective, of starts that have not met yet: first those unlike any better one, then the others."""
    order = np.argsort(value_P, kind="stable")
    first, rest = [], []
    for i in order[np.isfinite(value_P[order])]:
        same = any(
            abs(value_P[i] - value_P[j]) <= 1e-6 * value_P[i] and np.abs(phi_PK[i] - phi_PK[j]).max() < 1e-3
            for j in first
        )
        (rest if same else first).append(int(i))
    return np.array(first[: FINALISTS // 2] + rest + first[FINALISTS // 2 :], int)


def minimise(law: str | Law, x, y, w=None, objective="huber_log", delta=1e-3, starts=None) -> GeneralSolution:
    """Fits a law to arrays.

    Args:
        law: a law or its name.
        x: {variable: [I]}.
        y: losses (positive) or shares [I].
        w: weights [I]; None: 1.
        objective: huber_log | squared_log | squared; for shares the residual is plain and the log has no meaning.
        delta: Huber's delta.
        starts: natural parameters [S, K]; None: those of the law.

    Returns:
        GeneralSolution.

    Example (a sigmoid comes back):
        >>> C = np.geomspace(1e15, 1e21, 12)
        >>> share = 0.1 + 0.8 / (1 + np.exp(-1.2 * (np.log(C) - np.log(1e18))))
        >>> found = minimise("sigmoid_c", {"C": C}, share, objective="squared")
        >>> {name: round(float(v), 3) for name, v in found.theta.items()}
        {'floor': 0.1, 'ceiling': 0.9, 'k': 1.2, 'middle': 41.447}
    """
    law = get_law(law)
    if objective not in OBJECTIVES:
        raise InputError(f"wanted an objective, got {objective!r}{nearest(objective, OBJECTIVES)}")
    misfit = Misfit(law, x, y, w, plain=objective == "squared" or law.target == "share")
    width = delta if objective == "huber_log" else WIDE
    phi, value, converged, iterations = polish(misfit, width, starts)
    return summarise(misfit, phi, value, converged, iterations, width)


def summarise(misfit, phi_SK, value_S, converged_S, iterations, delta) -> GeneralSolution:
    """The solution of sorted minima."""
    best = phi_SK[:1]
    gap, gradient = certificate(misfit, best, misfit.y_I[None], misfit.w_I[None], delta)
    jacobian = misfit.jacobian(best)[0].T * np.sqrt(misfit.w_I)[:, None]
    minima = []
    for phi, value, good in zip(phi_SK, value_S, converged_S, strict=True):
        if good and all(value > other * (1 + 1e-6) + misfit.noise_free for other, _ in minima):
            minima.append((float(value), named(misfit, phi)))
    return GeneralSolution(
        theta=named(misfit, best[0]),
        objective=float(value_S[0]),
        converged=bool(converged_S[0]),
        gap=float(gap[0]),
        gradient=float(gradient[0]),
        starts=len(phi_SK),
        starts_agree=int((value_S <= value_S[0] * (1 + AGREE) + misfit.noise_free).sum()),
        condition=condition(jacobian),
        jacobian=jacobian,
        residual=misfit.y_I - misfit.model(best)[0],
        minima=tuple(minima),
        iterations=iterations,
    )


def named(misfit: Misfit, phi_K) -> dict[str, float]:
    """Natural parameters of one phi."""
    return {name: float(v[0, 0]) for name, v in misfit.theta(phi_K[None]).items()}


def condition(jacobian_IK) -> float:
    """Ratio of the extreme singular values, columns of unit length; infinite with a column of zeros."""
    length = np.linalg.norm(jacobian_IK, axis=0)
    if not (np.isfinite(length) & (length > 0)).all():
        return math.inf
    singular = np.linalg.svd(jacobian_IK / length, compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else math.inf


def fit_arrays(law: str | Law, x, y, w=None, objective="squared_log", delta=1e-3, starts=None) -> dict:
    """Fits a law to arrays, with standard errors and a status: what other analyses need of a fit.

    Args:
        law, x, y, w, objective, delta, starts: as `minimise` takes them; shares are fitted by plain residuals.

    Returns:
        dict: law, params, errors (standard errors, from the curvature and the residuals), status and reasons (as in
        a Fit; params stay even if refused), warnings, objective, rss (weighted sum of squared residuals), df, noise
        (standard deviation of a residual), starts, starts_agree, gap, condition, at_bounds, residual [I].

    Raises:
        InputError: fewer rows than parameters, or values outside of the law's range.

    Example:
        >>> C = np.geomspace(1e15, 1e20, 9)
        >>> found = fit_arrays("power_c", {"C": C}, 1.5 + 900 * C**-0.16)
        >>> found["status"], round(found["params"]["alpha"], 6)
        ('converged', 0.16)
    """
    from lmjax.scaling.verdict import judge

    law = get_law(law)
    y = np.asarray(y, np.float64)
    check_arrays(law, x, y)
    found = minimise(law, x, y, w, objective, delta, starts)
    misfit = Misfit(law, x, y, w, plain=objective == "squared" or law.target == "share")
    bounds = at_bounds(misfit, found.theta, found.jacobian)
    weight = misfit.w_I
    rss = float((weight * found.residual**2).sum())
    df = max(len(y) - (len(law.space) - len(bounds)), 1)
    noise = math.sqrt(rss / df)
    status, reasons, warnings = judge(
        law, found.theta, bounds, found.condition, found.jacobian, found.converged or found.gap < 1e-10, len(y)
    )
    scale = np.array([found.theta[p.name] if p.log else 1.0 for p in law.space])
    free = np.array([name not in bounds for name in law.parameters])
    errors = np.zeros(len(law.space))
    errors[free] = noise * np.sqrt(np.diag(np.linalg.pinv(found.jacobian[:, free].T @ found.jacobian[:, free])))
    return {
        "law": law.name,
        "params": found.theta,
        "errors": dict(zip(law.parameters, (np.abs(scale) * errors).tolist(), strict=True)),
        "status": status,
        "reasons": reasons,
        "warnings": warnings,
        "objective": found.objective,
        "rss": rss,
        "df": df,
        "noise": noise,
        "starts": found.starts,
        "starts_agree": found.starts_agree,
        "gap": found.gap,
        "condition": found.condition,
        "at_bounds": tuple(bounds),
        "residual": found.residual,
    }


def check_arrays(law: Law, x, y) -> None:
    """Raises InputError where the rows cannot be fitted: too few of them, or values outside of the law's range."""
    missing = [name for name in law.variables if name not in x]
    if missing:
        raise InputError(f"wanted {', '.join(law.variables)} for {law.formula}, got no {missing[0]}")
    if len(y) < len(law.parameters):
        raise InputError(f"wanted at least {len(law.parameters)} rows for {law.formula}, got {len(y)}")
    positive = {**{name: np.asarray(x[name], np.float64) for name in law.variables}}
    if law.target == "loss":
        positive["loss"] = y
    bad = law.out_of_range(positive)
    if bad:
        raise InputError(f"wanted positive numbers in {', '.join(bad)} for {law.formula}")
    if law.target == "share" and not (np.isfinite(y).all() and (y >= 0).all() and (y <= 1).all()):
        raise InputError(f"wanted shares in [0, 1] for {law.formula}, got {np.min(y)} to {np.max(y)}")


def at_bounds(misfit: Misfit, theta, jacobian_IK) -> dict[str, float]:
    """Parameters at a bound, with the bound; a coefficient that no row feels any more is at 0."""
    out = {}
    phi_K = misfit.phi([[theta[p.name] for p in misfit.law.space]])[0]
    size_K = np.abs(jacobian_IK).max(0)
    # a plain residual moves by 1 with the floor, but by part of the loss with the logarithm of a coefficient
    largest = math.sqrt(misfit.noise_free / NOISE_FREE) if misfit.plain else size_K.max()
    for k, p in enumerate(misfit.law.space):
        if phi_K[k] <= misfit.low[k]:
            out[p.name] = p.low
        elif phi_K[k] >= misfit.high[k]:
            out[p.name] = p.high
        elif p.log and p.high == math.inf and size_K[k] < 1e-7 * largest:
            out[p.name] = 0.0
    return out

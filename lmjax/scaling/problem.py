"""A table as a minimisation problem: the additive laws with their own solver, any other with the general engine.

Both kinds answer the same questions (starts, minimise, model, jacobian, logs), so that refits, profiles and influence
are written once. Letters: P problems, I rows, K parameters.
"""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.scaling import general, solver
from lmjax.scaling.designs import condition_number
from lmjax.scaling.laws import Law
from lmjax.scaling.starts import starting_points

AGREE = 1e-8  # starts whose objective is this close (relative) to the best found the same minimum
STARTS = 12


@dataclass(frozen=True)
class Optimum:
    """The best minimum of a problem and what the search says of it.

    phi [K], objective, converged, gap, gradient (see solver.certificate), starts and starts_agree, iterations,
    condition of the Jacobian [I, K] (rows weighted), residual [I] = measured - model, at_bounds {name: bound},
    rivals: phi and objective of other minima, is_start: it is one of the starting points.
    """

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


def make(points, law: Law, objective: str = "huber_log", delta: float = 1e-3):
    """The problem of a table's points: columns of the law's variables, loss, weight.

    Weights are divided by their mean, so that a constant factor changes nothing: noise is that of a row of mean weight.
    """
    points = points.assign(weight=points["weight"] / points["weight"].mean())
    delta = delta if objective == "huber_log" and law.target == "loss" else general.WIDE
    if law.terms and objective != "squared":
        return Scaled(points, law, delta)
    return General(points, law, delta, plain=objective == "squared" or law.target == "share")


def groups(points, columns) -> np.ndarray:
    """Integer label [I] of each row's configuration: its distinct values in the columns."""
    return np.unique(points[list(columns)].to_numpy(), axis=0, return_inverse=True)[1].ravel()


class Scaled:
    """A table in the units of the additive solver: u [J, I], y [I], w [I] and the way back to parameters."""

    plain = False
    noise_free = solver.NOISE_FREE

    def __init__(self, points, law: Law, delta: float = 1e-3):
        self.law, self.delta = law, delta
        log_x_JI = np.log(points[list(law.variables)].to_numpy(np.float64).T)
        log_loss_I = np.log(points["loss"].to_numpy(np.float64))
        self.centre_J, self.mean = log_x_JI.mean(1), log_loss_I.mean()
        self.u_JI, self.y_I = log_x_JI - self.centre_J[:, None], log_loss_I - self.mean
        self.w_I = points["weight"].to_numpy(np.float64)
        self.groups_I = groups(points, [c for c in ("N", "D") if c in points] or law.variables)
        self.low, self.high = solver.bounds(len(law.terms))

    def logs(self, phi_PK: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters with the coefficients as ln: {"E": [P], "ln A": [P], "alpha": [P], ...}."""
        out = {"E": phi_PK[:, 0] * math.exp(self.mean)}
        for j, term in enumerate(self.law.terms):
            log_term, exponent = phi_PK[:, 1 + 2 * j], phi_PK[:, 2 + 2 * j]
            out[f"ln {term.coefficient}"] = log_term + exponent * self.centre_J[j] + self.mean
            out[term.exponent] = exponent
        return out

    def natural(self, phi_PK: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters and derived numbers in natural units, [P] each."""
        return natural(self.law, self.logs(phi_PK))

    def phi(self, params: dict[str, float]) -> np.ndarray:
        """The solver's coordinates [K] of parameters."""
        phi = [params["E"] * math.exp(-self.mean)]
        for j, term in enumerate(self.law.terms):
            exponent = params[term.exponent]
            phi += [math.log(params[term.coefficient]) - exponent * self.centre_J[j] - self.mean, exponent]
        return np.array(phi)

    def starts(self, delta: float, keep: int = STARTS) -> np.ndarray:
        """Starting points [S, K] for Huber's delta."""
        return starting_points(self.u_JI, self.y_I, self.w_I, delta, keep=keep)

    def model(self, phi_PK) -> np.ndarray:
        """ln loss over its mean, [P, I]."""
        return solver.model(phi_PK, self.u_JI)

    def predicted(self, phi_K) -> np.ndarray:
        """Loss of each row, [I]."""
        return np.exp(self.model(phi_K[None])[0] + self.mean)

    def jacobian(self, phi_PK) -> np.ndarray:
        """d model / d phi, [P, K, I]."""
        return solver.jacobian(phi_PK, self.u_JI)

    def minimise(self, phi_PK, y_PI, w_PI, delta=None, **options) -> solver.Solution:
        """As solver.minimise: held, stages, max_iterations."""
        return solver.minimise(phi_PK, self.u_JI, y_PI, w_PI, self.delta if delta is None else delta, **options)

    def certificate(self, phi_PK):
        """As solver.certificate."""
        return solver.certificate(phi_PK, self.u_JI, self.y_I[None], self.w_I[None], self.delta)

    def search(self) -> tuple[solver.Solution, np.ndarray]:
        """Polished starts, and the starts."""
        begin = self.starts(self.delta)
        found = self.minimise(begin, self.y_I[None], self.w_I[None])
        if not found.converged[found.objective.argmin()]:
            # rare: noise far above delta, where the objective is all kinks
            near = found.phi[np.argsort(found.objective)[:3]]
            found = self.minimise(near, self.y_I[None], self.w_I[None], max_iterations=3000, stages=False)
        return found, begin

    def at_bounds(self, phi_K, jacobian_IK) -> dict[str, float]:
        """Parameters at a bound; a coefficient there has vanished."""
        names, out = self.law.parameters, {}
        for k, (name, v) in enumerate(zip(names, phi_K, strict=True)):
            if v <= self.low[k]:
                out[name] = self.low[k] if k and k % 2 == 0 else 0.0
            elif v >= self.high[k]:
                out[name] = self.high[k] if k and k % 2 == 0 else math.inf
        return out


class General:
    """A table in the coordinates of the general engine."""

    def __init__(self, points, law: Law, delta: float, plain: bool):
        self.law, self.delta, self.plain = law, delta, plain
        x = {name: points[name].to_numpy(np.float64) for name in law.variables}
        self.misfit = general.Misfit(law, x, points["loss"].to_numpy(np.float64), points["weight"], plain)
        self.y_I, self.w_I, self.noise_free = self.misfit.y_I, self.misfit.w_I, self.misfit.noise_free
        self.groups_I = groups(points, law.variables)
        self.low, self.high = self.misfit.low, self.misfit.high

    def logs(self, phi_PK) -> dict[str, np.ndarray]:
        """Parameters by name, positive ones as ln: {"E": [P], "ln A": [P], ...}."""
        return {f"ln {p.name}" if p.log else p.name: phi_PK[:, k] for k, p in enumerate(self.law.space)}

    def natural(self, phi_PK: np.ndarray) -> dict[str, np.ndarray]:
        """Parameters and derived numbers in natural units, [P] each."""
        return natural(self.law, self.logs(phi_PK))

    def phi(self, params: dict[str, float]) -> np.ndarray:
        """Coordinates [K] of parameters."""
        return self.misfit.phi([[params[name] for name in self.law.parameters]])[0]

    def starts(self, delta: float, keep: int = STARTS) -> np.ndarray:
        """The starts of the law that fit best, [S, K]."""
        phi = self.misfit.phi(self.law.starts(self.misfit.x, self.misfit.raw_I))
        residual = self.model(phi) - self.y_I
        value = general.huber(residual, self.w_I[None], np.full(len(phi), float(delta)))
        return phi[np.argsort(value, kind="stable")[:keep]]

    def model(self, phi_PK) -> np.ndarray:
        """The law, or its logarithm, [P, I]."""
        return self.misfit.model(phi_PK)

    def predicted(self, phi_K) -> np.ndarray:
        """Loss or share of each row, [I]."""
        return self.model(phi_K[None])[0] if self.plain else np.exp(self.model(phi_K[None])[0])

    def jacobian(self, phi_PK) -> np.ndarray:
        """d model / d phi, [P, K, I]."""
        return self.misfit.jacobian(phi_PK)

    def minimise(self, phi_PK, y_PI, w_PI, delta=None, **options) -> solver.Solution:
        """As general.descend_all: held, stages, max_iterations."""
        delta = self.delta if delta is None else delta
        return solver.Solution(*general.descend_all(self.misfit, phi_PK, y_PI, w_PI, delta, **options))

    def certificate(self, phi_PK):
        """As general.certificate."""
        return general.certificate(self.misfit, phi_PK, self.y_I[None], self.w_I[None], self.delta)

    def search(self) -> tuple[solver.Solution, np.ndarray]:
        """Polished starts, and those of the law."""
        found = solver.Solution(*general.polish(self.misfit, self.delta))
        return found, self.starts(self.delta)

    def at_bounds(self, phi_K, jacobian_IK) -> dict[str, float]:
        """Parameters at a bound; a coefficient there has vanished."""
        return general.at_bounds(self.misfit, general.named(self.misfit, phi_K), jacobian_IK)


def optimum(problem) -> Optimum:
    """Searches the best minimum of a problem."""
    found, begin = problem.search()
    order = np.argsort(found.objective, kind="stable")
    best = order[0]
    phi_K, value = found.phi[best], float(found.objective[best])
    gap, gradient = problem.certificate(phi_K[None])
    jacobian = problem.jacobian(phi_K[None])[0].T * np.sqrt(problem.w_I)[:, None]
    rivals = []
    for i in order[1:]:
        if found.converged[i] and all(found.objective[i] > v * (1 + 1e-6) for v in [value, *(v for _, v in rivals)]):
            rivals.append((found.phi[i], float(found.objective[i])))
    return Optimum(
        phi=phi_K,
        objective=value,
        converged=bool(found.converged[best]),
        gap=float(gap[0]),
        gradient=float(gradient[0]),
        starts=len(found.phi),
        starts_agree=int((found.objective <= value * (1 + AGREE) + problem.noise_free).sum()),
        iterations=found.iterations,
        condition=condition_number(jacobian),
        jacobian=jacobian,
        residual=problem.y_I - problem.model(phi_K[None])[0],
        at_bounds=problem.at_bounds(phi_K, jacobian),
        rivals=tuple(rivals[:3]),
        is_start=bool((np.abs(begin - phi_K).max(1) < 1e-12).any()),
    )


def natural(law: Law, logs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters and derived numbers from `logs`."""
    with np.errstate(over="ignore"):
        params = {n.removeprefix("ln "): np.exp(v) if n.startswith("ln ") else v for n, v in logs.items()}
    return {**params, **law.derived(params)}

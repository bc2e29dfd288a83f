"""The engine on a floor plus powers: derivatives, the true minimum, invariances. Guards against premature stops."""

import numpy as np
import pytest
from scipy.optimize import minimize

from lmjax.scaling import engine
from lmjax.scaling.laws import CHINCHILLA
from lmjax.scaling.laws.base import mesh, nonnegative

DELTA = 1e-3


def problem(seed, sizes=4, token_counts=4, noise=0.005, exponents=(0.34, 0.37), floor=0.5, w=None, delta=DELTA):
    """A noisy grid."""
    rng = np.random.default_rng(seed)
    x = mesh(np.linspace(0, 4.5, sizes), np.linspace(0, 3.5, token_counts)).T
    u = x - x.mean(1, keepdims=True)
    loss = floor + 0.25 * np.exp(-exponents[0] * u[0]) + 0.25 * np.exp(-exponents[1] * u[1])
    loss = loss * np.exp(noise * rng.standard_normal(u.shape[1]))
    return make(x, loss, w, delta)


def make(x, loss, w=None, delta=DELTA):
    return engine.problem_of(CHINCHILLA, {"N": np.exp(x[0]), "D": np.exp(x[1])}, loss, w, delta=delta)


def again(task, w=None, rows=slice(None)):
    """The same table with other weights, or rows."""
    return make(np.log([task.x["N"], task.x["D"]])[:, rows], task.raw_I[rows], w)


def value(task, phi, delta=DELTA):
    return task.value(np.atleast_2d(phi), task.y_I, task.w_I[None], np.array([delta]))[0]


def slow_objective(phi, task, delta=DELTA):
    """The misfit once more, written as in the paper: log-sum-exp, Huber, sum."""
    a, alpha, b, beta = phi[1:]
    u = task.u_JI
    terms = np.stack([np.full(u.shape[1], np.log(phi[0])), a - alpha * u[0], b - beta * u[1]])
    r = np.logaddexp.reduce(terms, axis=0) - task.y_I
    huber = np.where(np.abs(r) <= delta, 0.5 * r**2, delta * (np.abs(r) - 0.5 * delta))
    return (task.w_I * huber).sum()


def derivatives(task, phi, delta):
    phi = np.atleast_2d(phi)
    return task.derivatives(phi, task.y_I[None], task.w_I[None], np.full(len(phi), delta))


def test_objective_equals_the_formula_of_the_paper():
    task = problem(0, w=np.linspace(0.5, 2, 16))
    phi = np.array([0.4, -1.2, 0.3, -1.1, 0.5])
    assert value(task, phi) == pytest.approx(slow_objective(phi, task), rel=1e-13)


@pytest.mark.parametrize("delta", [1e-3, 0.1, 10.0])
def test_gradient_and_hessian_equal_finite_differences(delta):
    task = problem(1, noise=0.05, w=np.linspace(0.5, 2, 16))
    phi = np.array([0.45, -1.3, 0.3, -1.2, 0.45])
    _, gradient, hessian, _, _ = derivatives(task, phi, delta)
    step = 1e-6
    for k in range(5):
        up, down = (derivatives(task, phi + s * step * np.eye(5)[k], delta) for s in (1, -1))
        assert gradient[0, k] == pytest.approx((up[0][0] - down[0][0]) / (2 * step), rel=1e-5, abs=1e-10)
        np.testing.assert_allclose(hessian[0, k], (up[1][0] - down[1][0]) / (2 * step), rtol=1e-4, atol=1e-6 * delta)


def test_rewritten_terms_have_the_derivatives_of_the_rewritten_function():
    """In (A, s = alpha A): gradient and Hessian by finite differences of the misfit in those coordinates."""
    task = problem(2, exponents=(0.1, 0.1))
    phi = np.array([[0.3, -1.0, 0.1, -0.9, 0.12]])
    _, g, h, m, _ = derivatives(task, phi, 0.5)
    in_a, in_s, gradient, hessian, _ = task.straighten(phi, g, h, m, np.zeros((1, 5), bool))
    assert in_a.all() and in_s.all()

    def moved(move):
        e, c, a, d, b = phi[0]
        grown_a, grown_b = 1 + move[1], 1 + move[3]
        new = [e + move[0], c + np.log(grown_a), (a + move[2]) / grown_a, d + np.log(grown_b), (b + move[4]) / grown_b]
        return value(task, new, 0.5)

    step, unit = 1e-4, np.eye(5)
    for i in range(5):
        assert gradient[0, i] == pytest.approx((moved(step * unit[i]) - moved(-step * unit[i])) / (2 * step), rel=1e-5)
        for j in range(5):
            corners = [moved(step * (s * unit[i] + t * unit[j])) * s * t for s in (1, -1) for t in (1, -1)]
            assert hessian[0, i, j] == pytest.approx(sum(corners) / (4 * step**2), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_defaults_reach_the_best_minimum_that_scipy_finds(seed):
    """L-BFGS from many starts, misfit scaled to O(100) and tight tolerances, then Nelder-Mead: never below ours."""
    shape = [(4, 3), (4, 4), (6, 10)][seed % 3]
    task = problem(10 + seed, *shape, noise=[0.003, 0.01][seed % 2])
    ours = task.optimum()
    assert ours.converged
    rng = np.random.default_rng(seed)

    def scaled(p):
        f, g, *_ = derivatives(task, p, DELTA)
        return 1e5 * f[0], 1e5 * g[0]

    box = list(zip(task.low, task.high, strict=True))
    best = np.inf
    for _ in range(25):
        start = [rng.uniform(0, 1), rng.uniform(-4, 0), rng.uniform(0, 1.5), rng.uniform(-4, 0), rng.uniform(0, 1.5)]
        options = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-10}
        found = minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=box, options=options)
        best = min(best, found.fun / 1e5)
    assert ours.objective <= best * (1 + 1e-10)
    assert best <= ours.objective * (1 + 1e-3)  # the oracle found this minimum too
    polished = minimize(
        lambda p: slow_objective(np.abs(p), task),
        ours.phi,
        method="Nelder-Mead",
        options={"xatol": 1e-12, "fatol": 1e-18, "maxiter": 4000},
    )
    assert ours.objective <= polished.fun * (1 + 1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_flat_valleys_are_followed_to_their_end(seed):
    """A small exponent next to a floor: many random starts of the same engine find nothing better."""
    task = problem(30 + seed, noise=0.02, exponents=(0.5, 0.06), floor=0.1)
    ours = task.optimum()
    rng = np.random.default_rng(seed)
    exponents = np.exp(rng.uniform(np.log(0.01), np.log(2.5), (200, 2)))
    levels = rng.uniform(-4, 0, (200, 2))
    begin = np.column_stack([rng.uniform(0, 1, 200), levels[:, 0], exponents[:, 0], levels[:, 1], exponents[:, 1]])
    random = task.minimise(begin, task.y_I, task.w_I)
    assert ours.converged and ours.objective <= random.objective.min() * (1 + 1e-10)


def test_scale_of_the_objective_does_not_move_the_optimum():
    task = problem(3)
    here = task.optimum()
    for scale in (1e-6, 1e-3, 1e3):
        there = again(task, task.w_I * scale).optimum()
        np.testing.assert_allclose(there.phi, here.phi, rtol=1e-8, atol=1e-10)
        assert there.objective == pytest.approx(scale * here.objective, rel=1e-10)


def test_weights_count_as_repeats():
    task = problem(4)
    times = np.arange(16) % 3 + 1
    weighted, repeated = again(task, times).optimum(), again(task, rows=np.repeat(np.arange(16), times)).optimum()
    assert repeated.objective == pytest.approx(weighted.objective, rel=1e-10)
    assert repeated.params == pytest.approx(weighted.params, rel=1e-6)


def test_certificate_is_small_at_the_optimum_and_large_beside_it():
    task = problem(5)
    phi = task.optimum().phi
    gap, gradient = task.certificate(np.stack([phi, phi + [0, 0, 0.05, 0, 0]]))
    assert gap[0] < 1e-12 and gradient[0] < 1e-6
    assert gradient[1] > 1e-2


def test_problems_in_one_batch_do_not_see_each_other():
    task = problem(6)
    begin = task.starts(DELTA)
    other = task.y_I + 0.01 * np.random.default_rng(0).standard_normal((len(begin), len(task.y_I)))
    together = task.minimise(begin, other, task.w_I)
    alone = [task.minimise(begin[[i]], other[[i]], task.w_I) for i in range(len(begin))]
    np.testing.assert_allclose(together.objective, [a.objective[0] for a in alone], rtol=1e-12)


def test_projection_equals_scipy_nnls():
    from scipy.optimize import nnls

    task = problem(7, exponents=(0.9, 0.02), floor=0.0)
    grid = mesh(*[np.geomspace(0.02, 2.5, 24)] * 2)[::37]
    powers = [np.exp(-grid[:, [j]] * u) for j, u in enumerate(task.u_JI)]
    features = np.stack([np.ones_like(powers[0]), *powers], 1) * np.exp(-task.y_I)
    for row, columns in zip(nonnegative(features, np.ones(16)), features, strict=True):
        _, residual = nnls(columns.T, np.ones(16))
        assert np.linalg.norm(columns.T @ row - 1) == pytest.approx(residual, rel=1e-6)
        assert (row >= 0).all()


def test_held_coordinates_stay():
    task = problem(8)
    best = task.optimum()
    begin = np.repeat(best.phi[None], 3, 0)
    begin[:, 2] = [0.2, best.phi[2], 0.6]
    found = task.minimise(begin, task.y_I, task.w_I, held=(2,))
    np.testing.assert_array_equal(found.phi[:, 2], begin[:, 2])
    assert found.objective[1] == pytest.approx(best.objective, rel=1e-12)
    assert found.objective[0] > best.objective and found.objective[2] > best.objective

"""The solver behind the fits: derivatives, the true minimum, invariances. Bug class 14 of scaling fits."""

import numpy as np
import pytest
from scipy.optimize import minimize

from lmjax.scaling import solver, starts

DELTA = 1e-3


def problem(seed, sizes=4, token_counts=4, noise=0.005, exponents=(0.34, 0.37), floor=0.5):
    """A noisy grid in the solver's units: u [2, I], y [I], w [I]."""
    rng = np.random.default_rng(seed)
    log_n, log_d = np.linspace(0, 4.5, sizes), np.linspace(0, 3.5, token_counts)
    x = np.array([[n, d] for n in log_n for d in log_d]).T
    u = x - x.mean(1, keepdims=True)
    level = floor + 0.25 * np.exp(-exponents[0] * u[0]) + 0.25 * np.exp(-exponents[1] * u[1])
    y = np.log(level) + noise * rng.standard_normal(u.shape[1])
    return u, y - y.mean(), np.ones(u.shape[1])


def solve(u, y, w, delta=DELTA):
    found = solver.minimise(starts.starting_points(u, y, w, delta), u, y[None], w[None], delta)
    best = found.objective.argmin()
    return found.phi[best], found.objective[best], found.converged[best]


def slow_objective(phi, u, y, w, delta=DELTA):
    """The objective once more, written as in the paper: log-sum-exp, Huber, sum."""
    a, alpha, b, beta = phi[1:]
    terms = np.stack([np.full(u.shape[1], np.log(phi[0])), a - alpha * u[0], b - beta * u[1]])
    r = np.logaddexp.reduce(terms, axis=0) - y
    huber = np.where(np.abs(r) <= delta, 0.5 * r**2, delta * (np.abs(r) - 0.5 * delta))
    return (w * huber).sum()


def test_objective_equals_the_formula_of_the_paper():
    u, y, w = problem(0)
    w = np.linspace(0.5, 2, len(w))
    phi = np.array([0.4, -1.2, 0.3, -1.1, 0.5])
    ours = solver.objective(phi[None], u, y[None], w[None], DELTA)[0]
    assert ours == pytest.approx(slow_objective(phi, u, y, w), rel=1e-13)


@pytest.mark.parametrize("delta", [1e-3, 0.1, 10.0])
def test_gradient_and_hessian_equal_finite_differences(delta):
    u, y, w = problem(1, noise=0.05)
    w = np.linspace(0.5, 2, len(w))
    phi = np.array([[0.45, -1.3, 0.3, -1.2, 0.45]])
    _, gradient, hessian, _, _ = solver.derivatives(phi, u, y[None], w[None], np.array([delta]))
    step = 1e-6
    for k in range(5):
        move = step * np.eye(5)[k]
        up, down = (solver.derivatives(phi + s * move, u, y[None], w[None], np.array([delta])) for s in (1, -1))
        assert gradient[0, k] == pytest.approx((up[0][0] - down[0][0]) / (2 * step), rel=1e-5, abs=1e-10)
        np.testing.assert_allclose(hessian[0, k], (up[1][0] - down[1][0]) / (2 * step), rtol=1e-4, atol=1e-6 * delta)


def test_rewritten_terms_have_the_derivatives_of_the_rewritten_function():
    """In (A, s = alpha A): gradient and Hessian by finite differences of the objective in those coordinates."""
    u, y, w = problem(2, exponents=(0.1, 0.1))
    phi = np.array([[0.3, -1.0, 0.1, -0.9, 0.12]])
    delta = np.array([0.5])
    _, g, h, m, _ = solver.derivatives(phi, u, y[None], w[None], delta)
    in_a, in_s, gradient, hessian, _ = solver._straighten(phi, g, h, m, u, np.zeros(5, bool))
    assert in_a.all() and in_s.all()

    def value(move):
        e, c, a, d, b = phi[0]
        grown_a, grown_b = 1 + move[1], 1 + move[3]
        moved = [
            e + move[0],
            c + np.log(grown_a),
            (a + move[2]) / grown_a,
            d + np.log(grown_b),
            (b + move[4]) / grown_b,
        ]
        return solver.objective(np.array([moved]), u, y[None], w[None], delta)[0]

    step, unit = 1e-4, np.eye(5)
    for i in range(5):
        assert gradient[0, i] == pytest.approx((value(step * unit[i]) - value(-step * unit[i])) / (2 * step), rel=1e-5)
        for j in range(5):
            corners = [value(step * (s * unit[i] + t * unit[j])) * s * t for s in (1, -1) for t in (1, -1)]
            assert hessian[0, i, j] == pytest.approx(sum(corners) / (4 * step**2), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_defaults_reach_the_best_minimum_that_scipy_finds(seed):
    """L-BFGS from many starts, objective scaled to O(100) and tight tolerances, then Nelder-Mead: never below ours."""
    shape = [(4, 3), (4, 4), (6, 10)][seed % 3]
    u, y, w = problem(10 + seed, *shape, noise=[0.003, 0.01][seed % 2])
    phi, value, converged = solve(u, y, w)
    assert converged
    rng = np.random.default_rng(seed)
    low, high = solver.bounds(2)

    def scaled(p):
        f, g, *_ = solver.derivatives(p[None], u, y[None], w[None], np.array([DELTA]))
        return 1e5 * f[0], 1e5 * g[0]

    box = list(zip(low, high, strict=True))
    best = np.inf
    for _ in range(25):
        start = [rng.uniform(0, 1), rng.uniform(-4, 0), rng.uniform(0, 1.5), rng.uniform(-4, 0), rng.uniform(0, 1.5)]
        options = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-10}
        found = minimize(scaled, start, jac=True, method="L-BFGS-B", bounds=box, options=options)
        best = min(best, found.fun / 1e5)
    assert value <= best * (1 + 1e-10)
    assert best <= value * (1 + 1e-3)  # the oracle found this minimum too
    polished = minimize(
        lambda p: slow_objective(np.abs(p), u, y, w),
        phi,
        method="Nelder-Mead",
        options={"xatol": 1e-12, "fatol": 1e-18, "maxiter": 4000},
    )
    assert value <= polished.fun * (1 + 1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_flat_valleys_are_followed_to_their_end(seed):
    """A small exponent next to a floor: many random starts of the same solver find nothing better."""
    u, y, w = problem(30 + seed, noise=0.02, exponents=(0.5, 0.06), floor=0.1)
    _, value, converged = solve(u, y, w)
    rng = np.random.default_rng(seed)
    exponents = np.exp(rng.uniform(np.log(0.01), np.log(2.5), (200, 2)))
    levels = rng.uniform(-4, 0, (200, 2))
    begin = np.column_stack([rng.uniform(0, 1, 200), levels[:, 0], exponents[:, 0], levels[:, 1], exponents[:, 1]])
    random = solver.minimise(begin, u, y[None], w[None], DELTA)
    assert converged and value <= random.objective.min() * (1 + 1e-10)


def test_scale_of_the_objective_does_not_move_the_optimum():
    u, y, w = problem(3)
    here, value, _ = solve(u, y, w)
    for scale in (1e-6, 1e-3, 1e3):
        there, scaled_value, _ = solve(u, y, w * scale)
        np.testing.assert_allclose(there, here, rtol=1e-8, atol=1e-10)
        assert scaled_value == pytest.approx(scale * value, rel=1e-10)


def test_weights_count_as_repeats():
    u, y, w = problem(4)
    times = np.arange(len(w)) % 3 + 1
    weighted, value, _ = solve(u, y, w * times)
    repeated, repeated_value, _ = solve(np.repeat(u, times, 1), np.repeat(y, times), np.ones(times.sum()))
    assert repeated_value == pytest.approx(value, rel=1e-10)
    np.testing.assert_allclose(repeated, weighted, atol=1e-7)


def test_certificate_is_small_at_the_optimum_and_large_beside_it():
    u, y, w = problem(5)
    phi, _, _ = solve(u, y, w)
    gap, gradient = solver.certificate(np.stack([phi, phi + [0, 0, 0.05, 0, 0]]), u, y[None], w[None], DELTA)
    assert gap[0] < 1e-12 and gradient[0] < 1e-6
    assert gradient[1] > 1e-2


def test_problems_in_one_batch_do_not_see_each_other():
    u, y, w = problem(6)
    begin = starts.starting_points(u, y, w, DELTA)
    other = y + 0.01 * np.random.default_rng(0).standard_normal((len(begin), len(y)))
    together = solver.minimise(begin, u, other, w[None], DELTA)
    alone = [solver.minimise(begin[[i]], u, other[[i]], w[None], DELTA) for i in range(len(begin))]
    np.testing.assert_allclose(together.objective, [a.objective[0] for a in alone], rtol=1e-12)


def test_projection_equals_scipy_nnls():
    from scipy.optimize import nnls

    u, y, w = problem(7, exponents=(0.9, 0.02), floor=0.0)
    grid = starts.exponent_grid(2)[::37]
    ours = starts.project(grid, u, y, w)
    for row, exponents in zip(ours, grid, strict=True):
        features = np.stack([np.ones(len(y)), *np.exp(-exponents[:, None] * u)], 1) * np.exp(-y)[:, None]
        oracle, residual = nnls(features, np.ones(len(y)))
        assert np.linalg.norm(features @ row - 1) == pytest.approx(residual, rel=1e-6)
        assert (row >= 0).all()


def test_held_coordinates_stay():
    u, y, w = problem(8)
    phi, value, _ = solve(u, y, w)
    begin = np.repeat(phi[None], 3, 0)
    begin[:, 2] = [0.2, phi[2], 0.6]
    found = solver.minimise(begin, u, y[None], w[None], DELTA, held=(2,))
    np.testing.assert_array_equal(found.phi[:, 2], begin[:, 2])
    assert found.objective[1] == pytest.approx(value, rel=1e-12)
    assert found.objective[0] > value and found.objective[2] > value

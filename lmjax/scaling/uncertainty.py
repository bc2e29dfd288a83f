"""Profile-likelihood intervals of an optimum, and the influence of each row. Bootstrap: resample.py.

Profile interval of one parameter: the values at which the criterion, minimised over all others, stays below
    F* + t^2 sum_i w_i^2 E psi_i^2 / (2 sum_i w_i E psi_i'),   psi_i = clip(e / sqrt(w_i), -delta, delta),
t Student's quantile at df = I - K: the likelihood-ratio interval of an M-estimate (t^2 s^2 / 2 for least squares). The
expectations are over the errors e of a least-squares fit, smoothed, in the unit of a row of weight 1.
"""

import numpy as np

from lmjax.scaling import resample

MOST_ROWS = 400  # at most this many rows are left out in turn: those with most influence
SIDES = np.array(
    [0.3, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0]
)  # points of a profile, in half widths from the curvature
FARTHER = np.array([1.4, 2.0, 2.8, 4.0])  # times the reach so far, if the profile has not risen enough
BETWEEN = np.arange(1, 6) / 6  # points inside the bracket that holds an end
ROUNDS = 12  # largest number of extensions of the reach
LEAST_REACH = 1e-4  # smallest half width to start from, relative to the coordinate
STEPS = 60  # Newton steps per point of a profile; more would not move the ends
NEIGHBOURS = 5  # rounds in which points restart from the minima of their neighbours
NODES = 41  # of the quadrature over the smoothing kernel


def threshold(noise: resample.Noise, delta: float, confidence: float, w_I=(1.0,)) -> float:
    """How far the criterion may lie above its minimum inside an interval.

    Args:
        noise: noise of a row of weight 1.
        delta: Huber's delta.
        confidence: confidence level, such as 0.95.
        w_I: weights of the rows, mean 1.

    Returns:
        The rise, in the unit of the criterion; 0 without noise.

    Example (least squares on 1 % noise with many rows: 1.96^2 s^2 / 2):
        >>> errors = resample.Noise(0.01 * np.array([-1.0, 1.0] * 500), 0.01, 0.0, 1000)
        >>> round(threshold(errors, 1e3, 0.95) / 0.01**2, 2)
        1.93
    """
    from scipy.special import ndtri, stdtrit

    nodes = ndtri((np.arange(NODES) + 0.5) / NODES)
    errors = np.abs(noise.pool[:, None] + noise.kernel * nodes).ravel()
    errors = np.sort(errors * noise.sd / max(np.hypot(noise.sd, noise.kernel), 1e-300))
    w_I = np.asarray(w_I, np.float64)
    edge_I = delta * np.sqrt(w_I)  # where psi of a row is cut, in the unit of the errors
    below_I = np.searchsorted(errors, edge_I, side="right")
    squares = np.concatenate([[0.0], np.cumsum(errors**2)])
    score = (w_I * (squares[below_I] + (len(errors) - below_I) * edge_I**2)).sum()
    slope = (w_I * below_I).sum()
    return float(
        stdtrit(noise.df, (1 + confidence) / 2) ** 2 * score / (2 * max(slope, 1e-6 * len(errors) * w_I.sum()))
    )


def profiles(problem, best, noise, confidence: float) -> dict[str, tuple[float, float]]:
    """Profile-likelihood interval of each parameter, except the coefficients of additive laws.

    Args:
        problem, best: an engine.Problem and its Optimum.
        noise: noise of the table.
        confidence: confidence level of the intervals.

    Returns:
        {name: (low, high)} in natural units; an end is the parameter's bound if the criterion never rises enough.
    """
    rise = threshold(noise, problem.delta, confidence, problem.w_I)
    if not rise > 0:
        return {}
    out = {}
    spread = np.sqrt(np.maximum(np.diag(np.linalg.pinv(best.jacobian.T @ best.jacobian)), 0)) * 2.5 * noise.sd
    for k, name in enumerate(problem.names):
        if name.startswith("ln ") and problem.law.terms:
            continue  # the coordinate is the term at the centre of the table, not the coefficient
        ends = np.repeat(best.phi[None], 2, 0)
        ends[:, k] = _ends(problem, best, k, spread[k], rise)
        natural = problem.natural(ends)[name.removeprefix("ln ")]
        out[name.removeprefix("ln ")] = (float(natural[0]), float(natural[1]))
    return out


def _ends(problem, best, k, spread, rise):
    """Where the profile of coordinate k crosses best + rise, on both sides."""
    others = np.delete(np.arange(len(best.phi)), k)
    # the others move along the valley, as the curvature predicts
    slope_K = np.zeros(len(best.phi))
    slope_K[others] = -np.linalg.lstsq(best.jacobian[:, others], best.jacobian[:, k], rcond=1e-12)[0]
    reach = max(spread, LEAST_REACH * max(1.0, abs(best.phi[k])))
    return [
        _end(problem, best, k, side * reach, bound, slope_K, np.sqrt(rise))
        for side, bound in ((-1.0, problem.low[k]), (1.0, problem.high[k]))
    ]


def _end(problem, best, k, reach, bound, slope_K, height):
    """Where the root of the rise of the profile reaches `height`, from the best value towards `bound`; or `bound`."""
    here = best.phi[k]
    last, low, low_rise = best.phi, here, 0.0
    steps = here + reach * SIDES
    for _ in range(ROUNDS):
        values = np.clip(steps, problem.low[k], problem.high[k])
        phi, risen = _along(problem, best, k, values, height, last + slope_K * (values - last[k])[:, None])
        beyond = np.flatnonzero(risen >= height)
        if beyond.size:
            break
        low, low_rise, last = values[-1], risen[-1], phi[-1]
        if low == bound:
            return bound
        steps = here + (low - here) * FARTHER
    else:
        return bound
    i = beyond[0]
    if i:
        low, low_rise, last = values[i - 1], risen[i - 1], phi[i - 1]
    # once more between the two nodes: the root of the rise is not straight over a wide bracket
    inner = low + (values[i] - low) * BETWEEN
    _, between = _along(problem, best, k, inner, height, last + (phi[i] - last) * BETWEEN[:, None])
    nodes = np.concatenate([[low], inner, values[[i]]])
    risen = np.concatenate([[low_rise], between, risen[[i]]])
    i = int(np.flatnonzero(risen >= height)[0])
    return nodes[i - 1] + (nodes[i] - nodes[i - 1]) * (height - risen[i - 1]) / (risen[i] - risen[i - 1])


def _along(problem, best, k, values_P, height, start_PK):
    """The profile at values of coordinate k: the best phi [P, K] there, and the root of its rise [P].

    Every node starts on the valley and from the other minima, then from what its neighbours found: a single start can
    end in a worse minimum.
    """
    nodes = np.arange(len(values_P))
    phi, value = start_PK, np.full(len(values_P), np.inf)
    begin = [start_PK, *(np.tile(rival, (len(values_P), 1)) for rival, _ in best.rivals)]
    for _ in range(NEIGHBOURS):
        start = np.clip(np.concatenate(begin), problem.low, problem.high)
        start[:, k] = np.tile(values_P, len(begin))
        found = problem.minimise(start, problem.y_I, problem.w_I, held=(k,), stages=False, max_iterations=STEPS)
        values = np.concatenate([value[None], found.objective.reshape(len(begin), -1)])
        lowest = values.argmin(0), nodes
        phi = np.concatenate([phi[None], found.phi.reshape(len(begin), *phi.shape)])[lowest]
        gained, value = value - values[lowest], values[lowest]
        if not (gained > 0.01 * height**2).any():
            break
        begin = [np.roll(phi, 1, 0), np.roll(phi, -1, 0)]
    return phi, np.sqrt(np.maximum(np.maximum.accumulate(value - best.objective), 0.0))


def influence(problem, phi_K) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """How far each parameter moves when one row is left out.

    Args:
        problem: an engine.Problem.
        phi_K: its optimum.

    Returns:
        The rows that were left out, [R]: all, but of more than MOST_ROWS those with the largest residual and leverage;
        and {name: value without the row - value, [R]} for parameters and derived numbers.
    """
    root_I = np.sqrt(problem.w_I)
    basis, _ = np.linalg.qr(problem.jacobian(phi_K[None])[0].T * root_I[:, None])
    weight = np.abs(problem.y_I - problem.model(phi_K[None])[0]) * np.sqrt((basis**2).sum(1))
    rows = np.sort(np.argsort(-weight)[:MOST_ROWS])
    weights = np.repeat(problem.w_I[None], len(rows), 0)
    weights[np.arange(len(rows)), rows] = 0.0
    start = np.repeat(phi_K[None], len(rows), 0)
    without = problem.minimise(start, problem.y_I, weights, stages=False)
    here, there = problem.natural(phi_K[None]), problem.natural(without.phi)
    return rows, {name: there[name] - here[name] for name in here}

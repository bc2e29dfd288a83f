"""Predictions averaged over laws, with an allowance for deviations that no law explains. The default of Fit.predict.

A law that is almost right leaves smooth residuals, and intervals that take them for independent noise are too narrow:
they hold too few new runs. Here the logarithm of a loss is

    ln L(x) = ln f(x; theta) + delta(x) + noise,    delta a Gaussian process over ln N and ln D,

for every law f of FAMILIES with the variables of the fit (Kennedy and O'Hagan 2001, doi:10.1111/1467-9868.00294). The
law is linear in theta around its optimum, so prediction, interval and marginal likelihood are those of universal
kriging with unknown noise: Student's t. The length scales of delta and its size relative to the noise take every value
of a grid; laws and grid are averaged with their restricted marginal likelihoods as weights (Hoeting et al. 1999,
doi:10.1214/ss/1009212519). So intervals grow with the distance from the runs, by as much as the residuals suggest: a
table with patternless residuals gets almost the interval of its law alone (and seldom less than LEAST_WIDTH of it).

Last, the fitted runs of most compute are predicted from the rest at several cuts; where these back-tests miss by more
than their intervals allow, all intervals are widened (`inflation`).

experiments/benchmarks/intervals.py measures how often the intervals hold, and compares with other choices.

Letters: I fitted rows, O predicted ones, K parameters of a law, G components (law, length scales, size of delta).
"""

import itertools
from dataclasses import dataclass

import numpy as np

from lmjax.scaling import engine
from lmjax.scaling.identify import sensitivity
from lmjax.scaling.laws import Law, get_law, predict_loss
from lmjax.scaling.resample import robust_scale

FAMILIES = (("chinchilla", "joint_power", "quantization"), ("power_n", "kaplan_n"), ("power_d", "kaplan_d"))
ALONG = (0.7, 2.5, np.inf)  # length scales in each of ln N and ln D
ACROSS = ((1.5, np.inf), (0.7, 2.5))  # length scales in ln N + ln D and in ln N - ln D
SIZES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # variance of delta over that of the noise
NO_DELTA = 0.05  # prior weight of delta = 0
CLIP = 6.0  # residuals are clipped at this many robust standard deviations
CELLS = 256  # rows beyond this number are averaged with their neighbours
CUTS = (0.4, 0.6, 0.8)  # quantiles at which back-tests cut the rows
PRIOR, EACH, FARTHEST = 4.0, 2, 5.0  # back-tests: weight of "intervals hold", of each cut, largest standardised error
BISECTIONS = 36


@dataclass(frozen=True)
class Rows:
    """Rows as the average needs them: ln of the variables [I, V], weights [I], and per law ln f [I] and J [I, K]."""

    at: np.ndarray
    weight: np.ndarray
    laws: dict[str, tuple[np.ndarray, np.ndarray]]

    def keep(self, where) -> "Rows":
        """The rows of a mask or an index."""
        laws = {name: (f[where], jacobian[where]) for name, (f, jacobian) in self.laws.items()}
        return Rows(self.at[where], self.weight[where], laws)


@dataclass(frozen=True)
class Average:
    """Laws that predict together.

    fitted: parameters of each law. weights: share of each law at the fitted rows, which sums to 1. inflation: factor
    of all intervals. backtests: one dict per cut, of `at` (the quantile), `predicted` (rows), `error` (root mean square
    of errors over their standard deviations, 1 if intervals hold).
    rows, log_loss: the fitted rows and ln of their losses, averaged within cells if there are many.
    """

    fitted: dict[str, dict[str, float]]
    weights: dict[str, float]
    inflation: float
    backtests: tuple[dict, ...]
    rows: Rows
    log_loss: np.ndarray

    def predict(self, x: dict[str, np.ndarray], confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Median and interval of the loss of a new run at x {variable: [O]}: value, low, high, each [O]."""
        found = _components(self.rows, self.log_loss, _rows(self.fitted, x))
        middle, low, high = _quantiles(found, (0.5, (1 - confidence) / 2, (1 + confidence) / 2))
        return tuple(np.exp(v) for v in (middle, *(middle + self.inflation * (end - middle) for end in (low, high))))


def average(points, law: Law, params: dict[str, float], criterion: str, delta: float, order: np.ndarray) -> Average:
    """Fits the other laws that predict together with a fitted one to its points, and weighs them all.

    points: frame of the law's variables, loss and weight. order: what back-tests cut by, such as C, [I].
    """
    fitted = {law.name: params} | {
        name: found for name in _others(law) if (found := _fit(points, name, criterion, delta))
    }
    x = {name: points[name].to_numpy(np.float64) for name in law.variables}
    weight = points["weight"].to_numpy(np.float64)
    y = np.log(points["loss"].to_numpy(np.float64))
    rows = _rows(fitted, x, weight / weight.mean())
    rows, y, order = _cells(rows, y, order)
    backtests = tuple(_backtests(rows, y, order))
    tested = sum(row["counted"] for row in backtests)
    error = sum(row["counted"] * row["error"] ** 2 for row in backtests)
    inflation = max(1.0, (PRIOR + error) / (PRIOR + tested)) ** 0.5
    log_weight, *_, owner = _components(rows, y, rows.keep(slice(0, 1)))
    share = np.exp(log_weight - log_weight.max())
    weights = {name: float(share[owner == k].sum() / share.sum()) for k, name in enumerate(fitted)}
    return Average(fitted, weights, inflation, backtests, rows, y)


def _others(law):
    """Names of the other laws that are averaged with this one: none with a constrained law, which would undo it."""
    if law.base:
        return []
    for family in FAMILIES:
        if law.target == "loss" and set(get_law(family[0]).variables) == set(law.variables):
            return [name for name in family if name != law.name]
    return []


def _fit(points, name, criterion, delta):
    """Parameters of a law fitted to the points, or None if they cannot determine it."""
    law = get_law(name)
    if len(points) < len(law.parameters) + 2:
        return None
    best = engine.problem_of_table(points, law, criterion, delta).optimum()
    return best.params if best.settled else None


def _rows(fitted, x, weight=None):
    """Rows at x, with ln f and its derivatives in those parameters of each law that are not at a bound."""
    laws = {}
    for name, params in fitted.items():
        law = get_law(name)
        moving = [k for k, p in enumerate(law.space) if p.low < params[p.name] < p.high]
        laws[name] = np.log(predict_loss(law, params, **x)), sensitivity(law, params, x).take(moving, 1)
    # a variable that may be 0, such as an annealing area, has no logarithm
    at = [np.log(v) if (np.asarray(v) > 0).all() else np.asarray(v, np.float64) for v in x.values()]
    return Rows(np.stack(at, -1), np.ones(len(at[0])) if weight is None else weight, laws)


def _cells(rows, y, order):
    """Rows, ln losses and order, averaged within at most CELLS groups of neighbours; unchanged if there are few."""
    cells = [np.arange(len(y))]
    while len(y) > CELLS and len(cells) < CELLS:
        cells.sort(key=len)
        members = cells.pop()
        widest = np.ptp(rows.at[members], 0).argmax()
        ranked = members[np.argsort(rows.at[members, widest], kind="stable")]
        cells += [ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]]
    if len(cells) == 1:
        return rows, y, order
    share = np.zeros((len(cells), len(y)))
    for k, members in enumerate(cells):
        share[k, members] = rows.weight[members]
    total = share.sum(1)
    share /= total[:, None]
    laws = {name: (share @ f, share @ jacobian) for name, (f, jacobian) in rows.laws.items()}
    return Rows(share @ rows.at, total, laws), share @ y, share @ order


def _kernels(at_IV):
    """Coordinates [I, V] and length scales [V] of every kernel."""
    size = at_IV.shape[1]
    for scales in itertools.product(ALONG, repeat=size):
        if not np.isinf(scales).all():
            yield np.eye(size), np.array(scales)
    if size == 2:
        for scales in itertools.product(*ACROSS):
            yield np.array([[1.0, 1.0], [1.0, -1.0]]), np.array(scales)


def _correlation(a_IV, b_OV, scales_V):
    distance = (a_IV[:, None] - b_OV[None]) / scales_V
    return np.exp(-0.5 * (distance**2).sum(-1))


def _clipped(residual_I, free):
    """Residuals without outliers."""
    scale = robust_scale(residual_I, free) + 1e-9
    return np.clip(residual_I, -CLIP * scale, CLIP * scale)


def _components(rows, y_I, new):
    """Predictions of ln loss by every component: log weight [G], mean [G, O], sd [G, O], df [G], law [G].

    With whitened rows r = J beta + delta + e, beta flat, delta ~ s2 rho K, e ~ s2 I:  V = I + rho K,
    beta = (J' V^-1 J)^-1 J' V^-1 r, s2 = r' P r / (I - K), and the usual universal kriging. K is diagonalised once for
    all laws and sizes rho.
    """
    root_I = np.sqrt(rows.weight)
    found = []
    kernels = list(_kernels(rows.at))
    for place, (turn, scales) in enumerate(kernels):
        a, b = rows.at @ turn, new.at @ turn
        values, basis = np.linalg.eigh(root_I[:, None] * _correlation(a, a, scales) * root_I)
        values, cross = np.maximum(values, 0.0), (_correlation(b, a, scales) * root_I) @ basis
        sizes = SIZES if place else (0.0, *SIZES)
        for owner, (name, (f, jacobian)) in enumerate(rows.laws.items()):
            df = len(y_I) - jacobian.shape[1]
            length = np.linalg.norm(jacobian * root_I[:, None], axis=0)
            if df < 1 or not length.all():  # the rows say nothing about a parameter
                continue
            design = basis.T @ (jacobian / length * root_I[:, None])
            r = basis.T @ (root_I * _clipped(y_I - f, jacobian.shape[1]))
            new_f, new_design = new.laws[name][0], new.laws[name][1] / length
            for rho in sizes:
                variance = 1.0 + rho * values
                gram = design.T @ (design / variance[:, None])
                gram += 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))
                inverse = np.linalg.inv(gram)
                beta = inverse @ (design.T @ (r / variance))
                left = r - design @ beta
                s2 = max((left**2 / variance).sum() / df, 1e-12)
                gain = rho * cross / variance
                off = new_design - gain @ design
                spread = 1.0 + rho - rho * (gain * cross).sum(1) + np.einsum("ok,kl,ol->o", off, inverse, off)
                prior = NO_DELTA if rho == 0 else (1 - NO_DELTA) / len(kernels) / len(SIZES)
                evidence = -0.5 * (np.log(variance).sum() + np.linalg.slogdet(gram)[1] + df * np.log(s2))
                mean = new_f + new_design @ beta + gain @ left
                found.append((evidence + np.log(prior), mean, np.sqrt(s2 * np.maximum(spread, 1.0)), df, owner))
    return tuple(np.array(column) for column in zip(*found, strict=True))


def _quantiles(components, probabilities):
    """Quantiles [O] of the mixture of Student's t distributions, one per probability."""
    from scipy.special import stdtr

    log_weight, mean_GO, sd_GO, df_G, _ = components
    weight_G = np.exp(log_weight - log_weight.max())
    order = np.argsort(weight_G)
    kept = np.empty(len(order), bool)  # the least likely components, a thousandth in all, are left out
    kept[order] = np.cumsum(weight_G[order]) > 1e-3 * weight_G.sum()
    weight_G, mean_GO, sd_GO, df_G = weight_G[kept] / weight_G[kept].sum(), mean_GO[kept], sd_GO[kept], df_G[kept]
    reach = 60.0 * sd_GO.max(0) + np.ptp(mean_GO, 0)
    for probability in probabilities:
        low, high = mean_GO.min(0) - reach, mean_GO.max(0) + reach
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            below = weight_G @ stdtr(df_G[:, None], (middle - mean_GO) / sd_GO) < probability
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        yield 0.5 * (low + high)


def _backtests(rows, y, order):
    """Yields a record per cut: the rows above it, predicted from those below."""
    most = max(jacobian.shape[1] for _, jacobian in rows.laws.values())
    for quantile in CUTS:
        above = order >= np.quantile(order, quantile) * (1 - 1e-6)
        if (~above).sum() < most + 3 or above.sum() < 2:
            continue
        found = _components(rows.keep(~above), y[~above], rows.keep(above))
        if not found:
            continue
        middle, low, high = _quantiles(found, (0.5, 0.025, 0.975))
        error = np.minimum(np.abs(y[above] - middle) / ((high - low) / 3.92), FARTHEST)
        predicted = int(above.sum())
        yield {
            "at": quantile,
            "predicted": predicted,
            "counted": min(EACH, predicted),
            "error": float(np.sqrt((error**2).mean())),
        }

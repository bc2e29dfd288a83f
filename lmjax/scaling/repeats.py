"""How much runs of one configuration scatter, as a function of their loss; the weights of `--weights repeats`.

Small or short runs often scatter ten times more than large ones. With equal weights their noise widens every interval,
and the fit follows them. Between seeds, the standard deviation of ln loss is close to a power of the loss (Porian et
al. 2024, arXiv 2406.19146, weight their runs by such a curve).
"""

from typing import NamedTuple

import numpy as np

from lmjax.errors import InputError

FEWEST = 5  # degrees of freedom, the least number of repeats beyond the first of each configuration
CONFIGURATIONS = 3  # with repeats, the least number of them
STEPS = 50  # of Newton's method; the likelihood has one maximum


class Scatter(NamedTuple):
    """ln variance = intercept + slope x, x = ln loss within [low, high]; constant beyond: nothing was measured there.

    p: of a likelihood ratio test of slope = 0. df: degrees of freedom of the repeats.
    """

    intercept: float
    slope: float
    low: float
    high: float
    p: float
    df: int

    def variance(self, x):
        """The variance of ln loss between runs of one configuration at x = ln loss, in the shape of x."""
        return np.exp(self.intercept + self.slope * np.clip(x, self.low, self.high))

    def words(self) -> str:
        """How the standard deviation depends on the loss, for messages."""
        low, high = 100 * np.sqrt(self.variance(np.array([self.low, self.high])))
        return (
            f"{self.df} repeats, whose standard deviation goes from {low:.2g} % at a loss of {np.exp(self.low):.4g} to "
            f"{high:.2g} % at {np.exp(self.high):.4g} (p = {self.p:.2g})"
        )


def scatter(y, groups) -> Scatter | None:
    """Fits the variance of repeats as a power of the loss, by maximum likelihood of normal errors.

    y: ln loss of each run, [I]. groups: configuration of each run, [I] of any hashable values.

    Returns:
        Scatter; None with fewer than FEWEST degrees of freedom or CONFIGURATIONS repeated configurations.

    Example (a standard deviation of 1 % at loss e^1.2, 0.1 % at loss e):
        >>> rng, x = np.random.default_rng(0), np.repeat(np.linspace(1.0, 1.2, 21), 10)
        >>> found = scatter(x + 10 ** (-3 + (x - 1) / 0.2) * rng.standard_normal(210), x)
        >>> bool(abs(np.sqrt(found.variance(1.1)) - 10**-2.5) < 0.0004), found.p < 1e-6
        (True, True)
    """
    import pandas
    from scipy.special import chdtrc

    by = pandas.Series(np.asarray(y, float)).groupby(pandas.Series(list(groups)))
    table = pandas.DataFrame({"x": by.mean(), "v": by.var(), "df": by.count() - 1})
    x, v, df = table[(table["df"] > 0) & (table["v"] > 0)].to_numpy(float).T
    if len(x) < CONFIGURATIONS or df.sum() < FEWEST or np.ptp(x) == 0:
        return None
    basis_GK = np.stack([np.ones_like(x), (x - x.mean()) / np.ptp(x)], 1)
    level = np.log(df @ v / df.sum())

    def deviance(theta_K):
        eta = basis_GK @ theta_K
        return df @ (eta + v * np.exp(-eta))

    theta = np.array([level, 0.0])
    for _ in range(STEPS):
        ratio = v * np.exp(-(basis_GK @ theta))
        step = np.linalg.solve((basis_GK.T * (df * ratio)) @ basis_GK, basis_GK.T @ (df * (ratio - 1)))
        while deviance(theta + step) > deviance(theta) + 1e-12 * abs(deviance(theta)):
            step = step / 2
        theta = theta + step
        if np.abs(step).max() < 1e-10:
            break
    p = float(chdtrc(1, max(deviance(np.array([level, 0.0])) - deviance(theta), 0.0)))
    slope = theta[1] / np.ptp(x)
    return Scatter(float(theta[0] - slope * x.mean()), float(slope), float(x.min()), float(x.max()), p, int(df.sum()))


def of_rows(rows, law) -> Scatter | None:
    """The scatter of the runs of a table with equal variables of the law, or None: see `scatter`."""
    if law.target != "loss":
        return None
    return scatter(np.log(rows["loss"]), zip(*(rows[v] for v in law.variables), strict=True))


def weights(rows, law, name: str) -> tuple[np.ndarray, str]:
    """Returns 1 / variance of each row by its loss, with mean 1, [I], and a sentence; name: the table in messages.

    Raises:
        InputError: too few repeats, or a law that is not one of losses.
    """
    found = of_rows(rows, law)
    if found is None:
        raise InputError(
            f"{name}: --weights repeats: expected losses of at least {FEWEST} repeats (other seeds) of "
            f"{CONFIGURATIONS} configurations with different losses, got fewer; train more seeds, or give the column "
            "that holds 1 / variance"
        )
    precision = 1 / found.variance(np.log(rows["loss"].to_numpy(float)))
    return precision / precision.mean(), f"weights: 1 / variance of {found.words()}"

"""Runs grouped by compute: the budgets of a table, a smooth curve through each, and the noise around these curves."""

import math
from dataclasses import dataclass

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.columns import frame_of, neighbours, positive
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN
from lmjax.scaling.methods import leastsq

WHAT = "the isoFLOP table"
LAW = "E + A N^-alpha + B D^-beta"
MIN_DF = 3  # degrees of freedom that an estimate of the noise needs
SAME_NOISE = 0.2  # p-value above which all budgets get one noise; low power, so far above 0.05


class BudgetTable:
    """Checked columns, and the row numbers of each budget by size: C [G], groups."""

    def __init__(self, source, tolerance, budgets):
        frame = frame_of(source, WHAT, pooled=True)
        self.N, self.D, self.loss = (positive(frame, name, WHAT) for name in ("N", "D", "loss"))
        self.product = FLOPS_PER_PARAM_TOKEN * self.N * self.D
        given = "C" in frame
        self.all_C = positive(frame, "C", WHAT) if given else self.product
        self.run = [str(r) for r in frame["run"]] if "run" in frame else [f"row {i + 1}" for i in range(len(frame))]
        self.conventions = getattr(source, "conventions", None) or {
            "N": "N as given in the table",
            "D": "D as given in the table",
            "C": "C as given in the table" if given else "C = 6 N D FLOP",
        }
        self.groups = _by_budget(self, tolerance, budgets)
        self.C = np.array([math.exp(np.log(self.all_C[g]).mean()) for g in self.groups])
        self.budget_I = np.empty(len(frame), int)
        for g, group in enumerate(self.groups):
            self.budget_I[group] = g
        spread = max(np.ptp(np.log(self.all_C[g])) for g in self.groups)
        varies = f"C varies by {spread:.1%} within a budget: akima and parabola correct the losses for that"
        self.warnings = (varies,) * bool(spread > 0.02)

    def points(self, group) -> tuple[dict, ...]:
        columns = zip(*(v[group].tolist() for v in (self.N, self.D, self.loss)), strict=True)
        return tuple(
            {"run": self.run[i], "N": N, "D": D, "loss": loss} for i, (N, D, loss) in zip(group, columns, strict=True)
        )


def shared_budgets(C) -> int:
    """Number of budgets at which rows share C within 1 %; 0 if they have fewer than three rows each on average.

    Example:
        >>> shared_budgets([1e18, 1e18, 1.001e18, 1e19, 1e19, 1e19]), shared_budgets([1e18, 1.1e18, 1.3e18, 2e18])
        (2, 0)
    """
    C = np.asarray(C, np.float64)
    parts = neighbours(C, 0.01)
    return len(parts) if len(C) >= 3 * len(parts) and max(np.ptp(np.log(C[rows])) for rows in parts) < 0.01 else 0


def _by_budget(table, tolerance, budgets):
    """Row numbers of each budget, by C and then by N."""
    if not 0 < tolerance < 0.5:
        raise InputError(f"expected 0 < tolerance < 0.5, got {tolerance}")
    log_c = np.log(table.all_C)
    if budgets is None:
        parts = neighbours(table.all_C, tolerance)
        centres = [log_c[part].mean() for part in parts]
    else:
        centres = np.log(np.sort(np.asarray(budgets, np.float64)))
        closest = np.abs(log_c[:, None] - centres).argmin(1)
        parts = [np.flatnonzero(closest == g) for g in range(len(centres))]
    for part, centre in zip(parts, centres, strict=True):
        if not len(part):
            raise InputError(f"{WHAT}: expected rows at the budget {math.exp(centre):.3g}, got none")
        off = part[np.abs(log_c[part] - centre) > tolerance]
        if len(off):
            named = ", ".join(f"{table.run[i]} ({table.all_C[i]:.4g})" for i in off[:5])
            raise InputError(
                f"{WHAT}: expected C within {tolerance:.0%} of the budget {math.exp(centre):.4g}, got {named}; "
                "leave these rows out, state the budgets, or increase the tolerance"
            )
    return [part[np.lexsort((table.D[part], table.N[part]))] for part in parts]


@dataclass(frozen=True)
class Smooth:
    """Curves E_g + A_g N^-alpha + B_g D^-beta of the budgets g.

    residual_I: of ln L. to_budget_I: change of ln L between the C of a row and that of its budget, at equal N.
    df_G: rows minus parameters of each budget, which share alpha and beta. coefficients: those of each budget for its
    terms (see `_terms`). alpha, beta: exponents.
    """

    residual_I: np.ndarray
    to_budget_I: np.ndarray
    df_G: np.ndarray
    coefficients: tuple[np.ndarray, ...]
    alpha: float
    beta: float

    def minimum(self, table, g) -> float:
        """ln N at the minimum of the curve of budget g, within its sizes."""
        log_n, log_d = np.log(table.N[table.groups[g]]), np.log(table.D[table.groups[g]])
        fine = np.linspace(log_n.min(), log_n.max(), 400)
        along = np.polyval(np.polyfit(log_n, log_d, 1), fine)
        terms = _terms(self.alpha, self.beta, fine - log_n.mean(), along - log_d.mean())
        return float(fine[(terms @ self.coefficients[g]).argmin()])


def _terms(alpha, beta, log_n, log_d):
    return np.stack([np.ones_like(log_n), np.exp(-alpha * log_n), np.exp(-beta * log_d)], 1)


def smooth_curves(table) -> Smooth:
    """Least squares of relative errors: the coefficients of each budget are linear, so alpha and beta are searched."""
    from scipy.optimize import least_squares

    centred = [[v[g] - v[g].mean() for v in np.log([table.N, table.D])] for g in table.groups]
    weight_I = 1 / table.loss

    def fit(exponents):
        residual_I, ranks, coefficients = np.empty(len(table.loss)), [], []
        for group, logs in zip(table.groups, centred, strict=True):
            matrix = _terms(*exponents, *logs) * weight_I[group, None]
            found, _, rank, _ = np.linalg.lstsq(matrix, np.ones(len(group)), rcond=1e-9)
            residual_I[group] = 1 - matrix @ found
            ranks.append(rank)
            coefficients.append(found)
        return residual_I, np.array(ranks), tuple(coefficients)

    best = least_squares(lambda e: fit(e)[0], (0.35, 0.3), bounds=((0.02, 0.02), (2.0, 2.0))).x
    residual_I, rank_G, coefficients = fit(best)
    df_G = np.array([len(g) for g in table.groups]) - rank_G
    total = df_G.sum()
    # the two exponents cost each budget its share of two degrees of freedom
    log_residual_I = -np.log1p(-np.minimum(residual_I, 0.99))  # a curve may end below 0 at a diverged run
    to_budget_I = np.zeros(len(table.loss))
    for C, group, (log_n, log_d), factors in zip(table.C, table.groups, centred, coefficients, strict=True):
        both = (log_d, log_d + np.log(C / table.all_C[group]))
        here, there = (np.maximum(_terms(*best, log_n, v) @ factors, 1e-9) for v in both)
        to_budget_I[group] = np.log(there / here)
    return Smooth(
        log_residual_I, to_budget_I * (total > 2), df_G * max(total - 2, 0) / max(total, 1), coefficients, *best
    )


@dataclass(frozen=True)
class Noise:
    """sd_I: standard deviation of ln L of each row. df_G: degrees of freedom of each budget's, infinite if given."""

    sd_I: np.ndarray
    df_G: np.ndarray
    source: str


def given_noise(table, noise) -> Noise:
    """A stated standard deviation of ln L."""
    if not 0 <= noise < math.inf:
        raise InputError(f"expected a noise >= 0 (sd of ln L), got {noise}")
    return Noise(np.full(len(table.loss), float(noise)), np.full(len(table.C), math.inf), "given")


def estimated_noise(table, smooth) -> Noise:
    """From repeats of equal (N, D), else from the residuals of the smooth curves; NaN if there are too few of both."""
    cells = np.unique(np.round(np.log([table.N, table.D]), 6).T, axis=0, return_inverse=True)[1].ravel()
    repeats, log_loss = np.bincount(cells), np.log(table.loss)
    residual_I, df_G, what = smooth.residual_I, smooth.df_G, "residuals of a smooth curve per budget"
    distinct = len(np.unique(np.stack([cells, log_loss]), axis=1).T)  # copies of a row say nothing about the noise
    if distinct - len(repeats) >= MIN_DF:
        residual_I, what = log_loss - (np.bincount(cells, log_loss) / repeats)[cells], "repeats of equal (N, D)"
        df_G = np.bincount(table.budget_I, 1 - 1 / repeats[cells])
    if (df := df_G.sum()) < MIN_DF:
        unknown = f"{len(cells)} rows are too few to estimate the noise; state it"
        return Noise(np.full(len(cells), math.nan), np.full(len(df_G), math.inf), unknown)
    variance_G, df_G = _shrunk(np.bincount(table.budget_I, residual_I**2), df_G)
    low, high = np.sqrt([variance_G.min(), variance_G.max()])
    each = f", {low:.2g} to {high:.2g} by budget" if low < high else ""
    return Noise(np.sqrt(variance_G)[table.budget_I], df_G, f"{what}, {df:.0f} degrees of freedom{each}")


def one_law(table, noise, estimated):
    """E + A N^-alpha + B D^-beta through all rows, weighted by the noise, and its own scatter as a Noise."""
    weights = np.mean(noise.sd_I**2) / noise.sd_I**2 if (noise.sd_I > 1e-9).all() else None
    law = leastsq.fit_additive({"N": table.N, "D": table.D}, table.loss, weights)
    if not (estimated and law.df):
        return law, noise
    relative_I = np.ones(len(table.N)) if weights is None else weights**-0.5
    df_G = np.full(len(table.C), law.df) if np.ptp(relative_I) == 0 else noise.df_G
    return law, Noise(law.sd * relative_I, df_G, f"scatter around {LAW}, {law.df} degrees of freedom")


def _shrunk(squares_G, df_G):
    """Variances of the budgets and their degrees of freedom.

    The budgets share one variance unless ln s^2 scatters more than by chance (its variance is trigamma(df / 2)). Then
    each is shrunk to the common one, which counts for the more degrees of freedom the smaller that excess is.
    squares_G: sums of squared residuals.

    Paper: Smyth 2004, doi:10.2202/1544-6115.1027, section 6.2.
    """
    from scipy.optimize import brentq
    from scipy.special import chdtrc, polygamma

    total, known = df_G.sum(), df_G >= 0.5
    pooled = np.full(len(df_G), squares_G.sum() / total), np.full(len(df_G), total)
    half = df_G[known] / 2
    if len(half) < 2 or not (squares_G[known] > 0).all():
        return pooled
    log_s2 = np.log(squares_G[known] / (2 * half)) - polygamma(0, half) + np.log(half)  # unbiased for ln sigma^2
    chance = polygamma(1, half)
    excess = log_s2.var(ddof=1) - chance.mean()
    if excess <= 0 or chdtrc(len(half) - 1, ((log_s2 - log_s2.mean()) ** 2 / chance).sum()) > SAME_NOISE:
        return pooled
    prior = 2 * math.exp(brentq(lambda x: float(polygamma(1, math.exp(x))) - excess, -20, 20))
    common = math.exp(log_s2.mean() + polygamma(0, prior / 2) - math.log(prior / 2))
    return (prior * common + squares_G) / (prior + df_G), np.minimum(prior + df_G, total)


def lack_of_fit(smooth, law) -> float:
    """p-value of the F test of one law for all rows against the smooth curves, both weighted by the noise."""
    df, more = smooth.df_G.sum(), law.df - smooth.df_G.sum()
    if law.reason or df < MIN_DF or more < 0.5:
        return math.nan
    left, rest = float(law.problem.w_I @ smooth.residual_I**2), law.sd**2 * law.df
    if rest < 1e-16 * len(smooth.residual_I):
        return math.nan  # no noise
    return f_tail(((rest - left) / more) / (left / df), more, df)


def f_tail(ratio, df, of) -> float:
    """P(F > ratio) with df and `of` degrees of freedom; `of` may be infinite."""
    from scipy.special import fdtrc

    return float(fdtrc(df, min(of, 1e9), max(ratio, 0.0)))

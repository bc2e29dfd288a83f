"""Test for lack of fit: do the residuals of a fit follow a smooth surface in the variables of its law?

    found = check(fit)       p-value, size of the systematic part, its value at each row
    surface(fit, x)          the systematic part anywhere
    remedies(fit)            a law that fits better, the range of compute that does fit, the error beyond a cut

The test is an F test of added terms: polynomials in the logarithms of the variables, orthogonal to the Jacobian of the
law, so that they are deviations that no values of its parameters can follow. It is a score test with bounded residuals
(Huber's psi; Markatou and Hettmansperger 1990), so that outliers of heavy-tailed noise do not decide it. With repeated
configurations the error is theirs alone (pure error; Draper and Smith, Applied Regression Analysis, section 2.1).
"""

import math
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from lmjax.format import number, percent, variable
from lmjax.scaling import engine
from lmjax.scaling.identify import examine, sensitivity
from lmjax.scaling.laws import LAWS, get_law, predict_loss
from lmjax.scaling.resample import robust_scale
from lmjax.scaling.result import Fit

FIRES = 0.01  # p-value below which residuals count as systematic: 1 of 100 tables that follow the law
CLIP = 1.345  # Huber's constant: 95 % efficiency for normal noise
DEGREE, DECAY = 4, 0.5  # highest degree of the polynomials; size of each degree relative to the one below
MOST_TERMS, ROWS_PER_TERM = 8, 4  # tested directions; spare rows needed for each
FEWEST_SPARE = 3  # rows beyond the parameters below which nothing can be tested
ALONE = 5.0  # times the noise: a single row so far off the law and the systematic part is left out of the test
REPEATS = 5  # degrees of freedom of repeated configurations from which they give the error
QUIET = 1e-6  # residuals below this share of the loss are rounding errors, not noise
SLOW = ("broken_2", "broken_3")  # laws that are not tried in place of another
DESCENT = {"stages": False, "exact": False, "max_iterations": 60}  # of the quick fits behind `remedies`
BETTER = 10.0  # difference of the Bayesian information criterion that counts as strong evidence
PASSES = 0.05  # p-value above which a part of the rows passes
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7)  # of the rows, left out at one end of the range of compute
AHEAD = (10.0, 3.0)  # largest compute over the cut below which the law is fitted again


class Residuals(NamedTuple):
    """The tested residuals of a fit: p-value, degrees of freedom (terms, df), whether the error is that of repeats.

    systematic: the systematic part of each residual, [I]. size: its root mean square without its share of the noise.
    noise: standard deviation of the residuals around it (robust). share: size^2 / (size^2 + noise^2).
    """

    p: float
    terms: int
    df: int
    repeats: bool
    systematic: np.ndarray
    size: float
    noise: float
    share: float


def check(fit: Fit) -> Residuals | None:
    """Tests the residuals of a usable fit; None with too few rows, or where they are rounding errors.

    Example (a law with an interaction of N and D, fitted without):
        >>> import pandas
        >>> from lmjax.scaling import fit
        >>> N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e8, 1e11, 6)))
        >>> loss = 1.7 + ((400 * N**-0.34) ** 1.5 + (900 * D**-0.3) ** 1.5) ** (1 / 1.5)
        >>> found = check(fit(pandas.DataFrame({"N": N, "D": D, "loss": loss}), resamples=0))
        >>> found.p < 1e-6, found.share > 0.5
        (True, True)
    """
    if fit.criterion != "huber_log":  # least squares follow outliers, away from where the law is linear
        for _ in range(3):
            every, typical = np.arange(len(fit.points)), float(np.median(np.abs(fit.column("residual"))))
            again = _again(fit, get_law(fit.law), every, max(typical, quiet(fit)))
            fit = again[0] if again else fit
    x, jacobian, residual = _linear(fit)
    root = np.sqrt(fit.weights)
    if np.abs(residual).max() <= quiet(fit):
        return None
    cells = fit.task()[0].groups_I
    return _check(_scaled_logs(x), jacobian * root[:, None], residual * root, cells, root, quiet(fit))


def surface(fit: Fit, x: dict[str, np.ndarray]) -> np.ndarray:
    """The systematic part of the residuals at variables x {name: [M]}, from the fitted rows' own; 0 without a test."""
    at, jacobian, _ = _linear(fit)
    law = get_law(fit.law)
    new = sensitivity(law, fit.params, x, fit.plain)[:, _free(fit)]
    scale = np.linalg.norm(jacobian, axis=0)
    here, there = (np.hstack([j / scale, _polynomials(_scaled_logs(at, v))]) for j, v in ((jacobian, at), (new, x)))
    known = np.nan_to_num(fit.column("systematic"))
    used = np.abs(known) > 1e-9 * np.abs(known).max()  # rows off by themselves have no systematic part
    return there @ np.linalg.lstsq(here[used], known[used], rcond=1e-10)[0]


def _linear(fit):
    """Variables of the rows, the Jacobian of the free parameters [I, K], residuals [I]."""
    x = {name: fit.column(name) for name in fit.variables}
    return x, sensitivity(get_law(fit.law), fit.params, x, fit.plain)[:, _free(fit)], fit.column("residual")


def _free(fit):
    return [k for k, p in enumerate(get_law(fit.law).space) if p.name not in fit.at_bounds]


def quiet(fit: Fit) -> float:
    """The size below which residuals are rounding errors."""
    return QUIET * (float(np.abs(fit.column("loss")).mean()) if fit.plain else 1.0)


def _scaled_logs(at, x=None):
    """ln of the variables (the value where some are 0) over the range of the rows: [-1, 1] each; [I, V]."""
    columns = []
    for name, v in at.items():
        how = np.log if v.min() > 0 else np.asarray
        low, high = how(v).min(), how(v).max()
        if high > low:
            columns.append((2 * how(v if x is None else x[name]) - low - high) / (high - low))
    return np.stack(columns, 1)


def _polynomials(u_IV):
    """Products of Legendre polynomials of total degree 2 to DEGREE, higher ones smaller; [I, J]."""
    powers = [p for p in product(range(DEGREE + 1), repeat=u_IV.shape[1]) if 2 <= sum(p) <= DEGREE]
    values = np.polynomial.legendre.legvander(u_IV, DEGREE)  # [I, V, DEGREE + 1]
    return np.stack([DECAY ** sum(p) * values[:, range(len(p)), p].prod(1) for p in powers], 1)


def _check(u_IV, jacobian, residual, cells, root, quiet, out=()):
    """The test on weighted residuals and Jacobian; u: scaled logs of the variables. out: rows with their own column."""
    rows, size = jacobian.shape
    kept = np.delete(np.arange(rows), out)
    configurations = len(np.unique(cells[kept]))
    spare = configurations - (size - len(out))
    if spare < FEWEST_SPARE:
        return None
    law_IK = np.linalg.qr(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300))[0]
    added = _polynomials(u_IV) * root[:, None]
    for _ in range(2):  # twice, for full precision
        added = added - law_IK @ (law_IK.T @ added)
    # the directions in which the polynomials differ most from the law
    left, length, _ = np.linalg.svd(added, full_matrices=False)
    most = min(MOST_TERMS, max(1, spare // ROWS_PER_TERM))
    added_IJ = left[:, length > 1e-4 * math.sqrt(rows)][:, :most]
    terms = added_IJ.shape[1]
    if not terms:
        return None
    _, off, scale = _robust(residual, law_IK, quiet)
    found, around, noise = _robust(residual, np.hstack([law_IK, added_IJ]), quiet)
    far = np.minimum(np.abs(off) / scale, np.abs(around) / noise if spare > 30 else np.inf)
    alone = np.flatnonzero((far > ALONE) & (np.abs(law_IK).max(1) < 1 - 1e-9))
    if len(alone) and len(alone) <= max(2, 0.05 * rows):  # a column of its own takes a row out of the test
        columns = np.hstack([jacobian, np.eye(rows)[:, alone]])
        return _check(u_IV, columns, residual, cells, root, quiet, (*out, *alone))
    psi = np.clip(off, -CLIP * scale, CLIP * scale)
    psi = psi - law_IK @ (law_IK.T @ psi)
    explained, df = float(((added_IJ.T @ psi) ** 2).sum()), rows - size - terms
    error = (float(psi @ psi) - explained) / df
    # copies of a row say nothing about the noise
    distinct = len(np.unique(np.stack([cells, residual]).round(12), axis=1).T)
    repeats = distinct - len(np.unique(cells)) >= REPEATS
    if repeats:
        df = rows - len(out) - configurations
        mean = np.bincount(cells[kept], psi[kept]) / np.maximum(np.bincount(cells[kept]), 1)
        within = psi[kept] - mean[cells[kept]]
        error = float(within @ within) / df
    from scipy.special import fdtrc

    p = float(fdtrc(terms, df, explained / terms / error)) if error > 0 else 0.0
    systematic = added_IJ @ found[size:]
    power = max(float(systematic @ systematic) - terms * noise**2, 0.0) / rows
    share = power / (power + noise**2)
    return Residuals(p, terms, df, repeats, systematic / root, math.sqrt(power), noise, share)


def _robust(y, basis_IK, quiet):
    """Huber's estimate in an orthonormal basis: coefficients [K], residuals [I], their scale (from the median)."""
    found = np.zeros(basis_IK.shape[1])
    for step in range(50):
        off = y - basis_IK @ found
        scale = max(robust_scale(off, len(found)), quiet)
        clip = (CLIP if step > 5 else 0.3) * scale  # the first steps are close to least absolute deviations
        weighted = basis_IK * np.minimum(1.0, clip / np.maximum(np.abs(off), 1e-300))[:, None]
        new = np.linalg.lstsq(weighted.T @ basis_IK, weighted.T @ y, rcond=None)[0]
        found, change = new, float(np.abs(new - found).max())
        if step > 5 and change < 1e-4 * scale:
            break
    return found, y - basis_IK @ found, scale


# ---- what to do about it -------------------------------------------------------------------------------------------


def measured(fit: Fit, advise: bool = True) -> Fit:
    """The fit with `lack_of_fit`, and `systematic` at each point; with remedies if the test fires and `advise`."""
    found = check(fit)
    if found is None:
        return fit
    points = tuple(row | {"systematic": float(v)} for row, v in zip(fit.points, found.systematic, strict=True))
    kept = {name: value for name, value in found._asdict().items() if name != "systematic"}
    fit = replace(fit, points=points, lack_of_fit=kept)
    return replace(fit, lack_of_fit=kept | remedies(fit)) if advise and found.p < FIRES else fit


def remedies(fit: Fit) -> dict[str, dict]:
    """What helps a fit whose residuals are systematic; only the parts that are known.

    better: the law of the same variables with the lowest Bayesian information criterion, if lower by BETTER.
    range: the rows above (else below) some compute that pass the test, as many as possible, with their parameters.
    ahead: how well the law, fitted below a tenth (else a third) of the largest compute, predicts the other rows.
    """
    law, reach, out = get_law(fit.law), fit.column(fit.reach), {}
    delta, every = CLIP * math.hypot(fit.lack_of_fit["size"], fit.lack_of_fit["noise"]), np.arange(len(reach))
    own = _again(fit, law, every, delta)
    if own is None:
        return out
    others = [other for other in LAWS.values() if other.target == law.target and other.name not in SLOW]
    others = [other for other in others if set(other.variables) == set(law.variables)]
    tried = [found for other in others if (found := _again(fit, other, every, delta))]
    best, value = min([own, *tried], key=lambda pair: pair[1])
    if value < own[1] - BETTER and (again := check(best)):
        out["better"] = {"law": best.law, "noise": math.hypot(again.size, again.noise), "p": again.p}
    order = np.argsort(reach, kind="stable")
    for share, above in product(SHARES, (True, False)):
        cut = reach[order[int((share if above else 1 - share) * len(order))]]
        part = _again(fit, law, np.flatnonzero(reach >= cut if above else reach < cut), delta)
        again = check(part[0]) if part else None
        if again and again.p > PASSES:
            inside = part[0].column(fit.reach)
            found = {"low": float(inside.min()), "high": float(inside.max()), "rows": len(inside), "p": again.p}
            out["range"] = found | {"params": part[0].params}
            break
    for factor in AHEAD:
        below = reach < reach.max() / factor
        part = _again(fit, law, np.flatnonzero(below), delta)
        if part:
            x = {name: fit.column(name)[~below] for name in fit.variables}
            loss, guess = fit.column("loss")[~below], predict_loss(law, part[0].params, **x)
            error = guess - loss if fit.plain else guess / loss - 1
            out["ahead"] = {"below": float(reach.max() / factor), "factor": factor, "rows": int((~below).sum())}
            out["ahead"] |= {"error": float(error.mean()), "size": float(np.abs(error).mean())}
            break
    return out


def _again(fit, law, chosen, delta):
    """(quick fit of a law to some of the rows, its information criterion); None if it would be refused."""
    frame = fit.frame().iloc[chosen]
    if len(frame) < len(law.parameters) + FEWEST_SPARE or examine({v: frame[v] for v in law.variables}, law).reasons:
        return None
    task = engine.problem_of_table(frame, law, fit.criterion, fit.delta)
    start = task.phi(fit.params)[None] if law.name == fit.law else task.starts(delta, keep=1)
    found = task.minimise(start, task.y_I, task.w_I, delta=delta, **DESCENT)
    phi = found.phi[0]
    bounds = [p for p, at in zip(law.space, (phi <= task.low) | (phi >= task.high), strict=True) if at]
    if not all(p.keep for p in bounds):
        return None
    params = {name: float(v[0]) for name, v in task.natural(found.phi).items() if name in law.parameters}
    frame = frame.assign(predicted=task.predicted(phi), residual=task.y_I - task.model(phi[None])[0])
    one = replace(fit, law=law.name, formula=law.formula, variables=law.variables, params=params)
    one = replace(one, points=tuple(frame.to_dict("records")), at_bounds=tuple(p.name for p in bounds))
    rows = len(frame)
    return one, rows * math.log(max(found.objective[0], 1e-300)) + len(law.parameters) * math.log(rows)


# ---- text ----------------------------------------------------------------------------------------------------------


def sentences(fit: Fit) -> list[str]:
    """What a test that fires means, and what helps; none if it does not fire."""
    if not fires(fit):
        return []
    found = fit.lack_of_fit
    worst = max(fit.points, key=lambda row: abs(row["systematic"]))
    at = ", ".join(f"{name} = {variable(name, worst[name])}" for name in fit.variables)
    side = "above" if worst["systematic"] > 0 else "below"
    size, noise = amount(fit, found["size"]), amount(fit, found["noise"])
    words = (
        f"lack of fit ({p_words(found['p'])}): the losses deviate systematically from this law, by {size} (root mean "
        f"square; the runs scatter by {noise} around that), most at {at}: {amount(fit, worst['systematic'])} {side}. "
    )
    if found["size"] < found["noise"] / 2:
        words += "Predictions within the range of the runs are hardly affected"
    else:
        words += "Predictions within the range of the runs are off by about as much"
    words += "; beyond it the error grows, and exponents depend on the range of the runs by more than their intervals"
    return [words, *_help(fit)]


def fires(fit: Fit) -> bool:
    """Whether the residuals of a fit are systematic."""
    return fit.lack_of_fit.get("p", 1.0) < FIRES


def p_words(p: float) -> str:
    """A p-value as text: "p = 0.03", "p < 1e-9"."""
    return f"p = {p:.2g}" if p >= 1e-9 else "p < 1e-9"


def amount(fit: Fit, value: float) -> str:
    """The size of a deviation in the unit of the fit: percent of the loss, share points, or the loss itself."""
    if fit.target == "share":
        return f"{100 * abs(value):.2g} share points"
    return f"{number(abs(value), 2)} in the unit of the loss" if fit.plain else percent(abs(value))


def _help(fit):
    """Yields what is known about other laws, a smaller range, and predictions beyond a cut."""
    found, law = fit.lack_of_fit, get_law(fit.law)
    if better := found.get("better"):
        passes = "passes the test" if better["p"] >= FIRES else "fails the test too"
        here = amount(fit, math.hypot(found["size"], found["noise"]))
        yield (
            f"{better['law']} fits these runs better: they scatter around it by {amount(fit, better['noise'])} instead "
            f"of {here}, and it {passes} ({p_words(better['p'])}); compare their predictions with lmjax holdout"
        )
    if part := found.get("range"):
        named = [p.name for p in law.space if not (p.log or p.keep)]
        values = ", ".join(f"{name} = {part['params'][name]:.3f} instead of {fit.params[name]:.3f}" for name in named)
        ends = " to ".join(variable(fit.reach, part[end]) for end in ("low", "high"))
        yield f"the law does fit the {part['rows']} runs with {fit.reach} = {ends} ({p_words(part['p'])}): {values}"
    if ahead := found.get("ahead"):
        error = ("+" if ahead["error"] >= 0 else "-") + amount(fit, ahead["error"])
        yield (
            f"fitted to the runs below {fit.reach} = {variable(fit.reach, ahead['below'])}, it predicts the "
            f"{ahead['rows']} above, up to {ahead['factor']:g} times further, with a mean error of "
            f"{error} (mean size {amount(fit, ahead['size'])}): expect no less as far beyond "
            "the largest run"
        )

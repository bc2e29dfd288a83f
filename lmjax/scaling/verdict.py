"""Whether rows and an optimum make a result, in words: status, reasons, warnings. Knows laws and arrays, not tables."""

import numpy as np

from lmjax.scaling.laws.base import Law

MAX_CONDITION = 1e6  # of the Jacobian in the parameters themselves, where ln A and alpha are correlated in any table
MAX_CONDITION_ADDITIVE = 1e4  # around the centre of the table; the Chinchilla table has 40, a 4 x 3 grid about 100
CROSSED = (("N", "D"), ("N", "S"), ("C", "M"), ("N_e", "N_d"))  # pairs whose powers are told apart only off a line
FAR = 8.0  # robust standard deviations
WIDE_PATH = 2.0  # D / N of rows of like C, largest over smallest
LINE = 0.1  # a variable that scatters by less than this around a power of the other is as good as that power


def judge(
    law: Law, params, bounds: dict[str, float], condition: float, jacobian_IK, converged: bool, count: int
) -> tuple[str, list[str], list[str]]:
    """Judges an optimum.

    Args:
        law: the law.
        params: values by name.
        bounds: parameters at a bound, and the bound.
        condition: of the Jacobian.
        jacobian_IK: of the residuals.
        converged: whether it is a minimum.
        count: rows.

    Returns:
        status of a Fit; reasons to refuse it; warnings.
    """
    reasons, warnings = [], []
    keep = {p.name for p in law.space if p.keep}
    status = "at_bound" if bounds else "converged"
    for name, bound in bounds.items():
        if name not in keep:
            reasons.append(_bound_words(law, name, bound))
        elif name == "E" and bound == 0:
            warnings.append("E = 0: the losses show no floor; exponents are lower than with any floor above 0")
        else:
            warnings.append(f"{name} ended at its bound {bound:g}: the rows say no more than that")
    wrong = law.validate(params) if law.validate else ""
    if wrong:
        status = "at_bound"
        reasons.append(f"{wrong}, which {law.name} does not describe")
    largest = MAX_CONDITION_ADDITIVE if law.terms else MAX_CONDITION
    if not reasons and count <= len(law.space):
        status = "too_few_points"
        reasons.append(f"{count} points for {len(law.space)} parameters; wanted at least {len(law.space) + 1}")
    free = [k for k, p in enumerate(law.space) if p.name not in bounds]
    if not reasons and free and _condition(jacobian_IK[:, free]) > largest:
        status = "not_identified"
        words = combination([law.space[k] for k in free], jacobian_IK[:, free])
        reasons.append(f"condition number {condition:.1e} of the Jacobian: {words}")
    if not reasons and not converged:
        status = "disagreeing_starts"
        reasons.append("no start reached a minimum of the objective; please report the table")
    return status, reasons, warnings


def crossed(law: Law) -> list[tuple[str, str]]:
    """Pairs of variables that must not lie on one line in a table of the law.

    Where the batch varies too, N and S may: then it moves the steps that count.

    Example:
        >>> from lmjax.scaling.laws import get_law
        >>> crossed(get_law("kaplan_ns")), crossed(get_law("critical_batch"))
        ([('N', 'S')], [])
    """
    return [pair for pair in CROSSED if set(pair) <= set(law.variables) and "B" not in law.variables]


def one_line(first: str, second: str, values) -> str:
    """Why two variables of a table cannot be told apart; empty where they vary separately.

    Args:
        first, second: names of the variables.
        values: {name: [I]}, positive.

    Returns:
        A sentence, if one scatters by less than LINE (standard deviation of the logarithm) around a power of the other.

    Example:
        >>> one_line("N", "S", {"N": np.array([1e6, 2e6, 4e6]), "S": np.array([1e3, 2e3, 4e3])})
        'all rows lie on one line (or within 10 % of it), S = 0.001 N; vary S at one N'
    """
    x, y = np.log(values[first]), np.log(values[second])
    slope, back = np.polyfit(x, y, 1)[0], np.polyfit(y, x, 1)[0]
    if min(np.std(y - slope * x), np.std(x - back * y)) >= np.log1p(LINE):
        return ""
    ratio = np.exp(np.mean(y - x))
    shown = f"{second} = {ratio:.3g} {first}" if abs(slope - 1) < 0.03 else f"{second} ~ {first}^{slope:.2f}"
    return f"all rows lie on one line (or within {100 * LINE:.0f} % of it), {shown}; vary {second} at one {first}"


def outliers(points, residual_I, law: Law, plain: bool) -> list[str]:
    """Rows so far from the law that they may have diverged.

    The scale is the median of the I - K largest |residual| over 0.6745: an ordinary standard deviation would hide the
    very row that inflates it, and a robust fit of K parameters passes through K rows.

    Args:
        points: rows with run, loss, predicted.
        residual_I: times the root of the weight.
        law: the law.
        plain: whether residuals are of the loss itself.

    Returns:
        At most three sentences, the farthest row first.
    """
    size_I = np.abs(residual_I)
    spare = np.sort(size_I)[len(law.space) :]
    if not len(spare):
        return []
    level = np.mean([abs(row["loss"]) for row in points]) if plain else 1.0
    scale = max(float(np.median(spare)) / 0.6745, 1e-9 * level)
    out = []
    for i in np.argsort(-size_I)[:3]:
        row = points[i]
        if size_I[i] <= FAR * scale:
            break
        side = "above" if row["loss"] > row["predicted"] else "below"
        if law.target == "share":
            away = f"{100 * abs(row['loss'] - row['predicted']):.3g} share points"
        else:
            away = f"{100 * abs(row['loss'] / row['predicted'] - 1):.3g} %"
        out.append(f"{row['run']} lies {away} {side} the law, {size_I[i] / scale:.0f} robust standard deviations: ")
        out[-1] += "did it diverge? look at its curve, and leave it out if so"
    return out


def one_path(points, law: Law) -> list[str]:
    """Whether a law of C alone is fitted to rows that do not lie on one path of N and D, in words."""
    values = np.array([[row.get(name, np.nan) for name in ("N", "D", "C")] for row in points], float)
    if law.variables != ("C",) or len(values) < 4 or not np.isfinite(values).all():
        return []
    ratio, log_c = np.log(values[:, 1] / values[:, 0]), np.log(values[:, 2])
    curve = np.polynomial.Polynomial.fit(log_c, ratio, 1 if len(values) < 6 else 2)
    off = np.exp(np.ptp(ratio - curve(log_c)))
    if off < WIDE_PATH:
        return []
    return [
        f"rows of like C differ in D / N by a factor {off:.2g}: a law of C holds along one path of N and D only, such "
        "as the compute-optimal frontier"
    ]


def widths_differ(intervals, profiles) -> list[str]:
    """Parameters whose interval by refits is more than twice as wide as that by the profile, or less than half."""
    out = []
    for name in profiles:
        refits, profile = (float(np.subtract(*pair[name][::-1])) for pair in (intervals, profiles))
        if not (refits > 0 and profile > 0 and np.isfinite(refits + profile)):
            continue
        if max(refits / profile, profile / refits) > 2:
            wide, narrow = ("refits", "profile") if refits > profile else ("profile", "refits")
            ratio = max(refits / profile, profile / refits)
            out.append(
                f"{name}: the interval by {wide} is {ratio:.1f} times as wide as by {narrow}; trust the wider one"
            )
    return out


def _bound_words(law, name, bound):
    term = next((t for t in law.terms if name in (t.exponent, t.coefficient)), None)
    if term is not None and name == term.exponent:
        return f"{name} ended at the bound {bound:g}: the losses show no power of {term.variable}"
    if bound == 0:
        falls = f"the losses do not fall with {term.variable}" if term else "no row feels its term"
        return f"{name} vanished: {falls}"
    return f"{name} ended at the bound {bound:g}: the rows do not show this part of the law"


def _condition(jacobian_IK):
    length = np.linalg.norm(jacobian_IK, axis=0)
    if not (np.isfinite(length) & (length > 0)).all():
        return np.inf
    singular = np.linalg.svd(jacobian_IK / length, compute_uv=False)
    return singular[0] / singular[-1] if singular[-1] > 0 else np.inf


def combination(space, jacobian_IK) -> str:
    """The combination of parameters that the rows do not determine: the null vector of the Jacobian, in words.

    Example (two columns that are the same):
        >>> from lmjax.scaling.laws import get_law
        >>> combination(get_law("power_n").space[:2], np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]))
        'only the combination of E and ln A is known (null direction +0.71 E -0.71 ln A)'
    """
    length = np.linalg.norm(jacobian_IK, axis=0)
    null = np.linalg.svd(jacobian_IK / np.where(length > 0, length, 1.0))[2][-1]
    null = null * np.sign(null[np.abs(null) > 0.2][0])
    names = [f"ln {p.name}" if p.log else p.name for p in space]
    part = [(name, v) for name, v in zip(names, null, strict=True) if abs(v) > 0.2]
    shown = " ".join(f"{v:+.2f} {name}" for name, v in part)
    if len(part) == 1:
        return f"{part[0][0]} is not determined by any row"
    listed = ", ".join(name for name, _ in part[:-1]) + f" and {part[-1][0]}"
    return f"only the combination of {listed} is known (null direction {shown})"

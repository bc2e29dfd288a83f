"""Broken neural scaling laws (arXiv:2210.14891): a floor plus a power law whose exponent changes at k breaks."""

import re
from functools import partial
from itertools import combinations

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, floor

PAPER = "arXiv:2210.14891, equation 1"
FLOORS = (0.0, 0.5, 0.8, 0.95, 0.99)  # starts of the floor, as shares of the lowest loss
WIDTHS = (0.1, 0.5, 1.5)  # starts of f: how many e-folds of x a break takes
PLACES = 7
SHORT = {v.lower(): v for v in ("N", "D", "C", "S", "U", "M", "B", "N_e", "N_d", "S1", "S2")}  # as written in names


def broken(k: int, variable: str = "C") -> Law:
    """The law with k breaks in one variable.

    y = a + b x^-c0 prod_{i=1..k} (1 + (x / d_i)^(1 / f_i))^(-c_i f_i)

    a: limit, b: coefficient, c0: first exponent, c_i: change of the exponent at break i, d_i: place of the break (in
    the unit of x), f_i: its width in e-folds of x (small: sharp).

    Returns:
        Law of 1 to 3 breaks k in a column such as C, N or D, named broken_k for C and broken_k_n for N.

    Example:
        >>> broken(1, "N").name, broken(1).parameters
        ('broken_1_n', ('a', 'b', 'c0', 'c1', 'd1', 'f1'))

    Paper: arXiv:2210.14891, equation 1.
    """
    word = variable.lower() if variable in SHORT.values() else variable
    name = f"broken_{k}" if variable == "C" else f"broken_{k}_{word}"
    breaks = range(1, k + 1)
    space = [floor("a"), coefficient("b"), Parameter("c0", -3.0, 3.0)]
    for i in breaks:
        space += [Parameter(f"c{i}", -20.0, 20.0), coefficient(f"d{i}")]
        space.append(Parameter(f"f{i}", 1e-2, 10.0, log=True, keep=True))

    def predict(theta, x):
        log_x = np.log(x[variable])
        log_power = np.log(theta["b"]) - theta["c0"] * log_x
        for i in breaks:
            c, f = theta[f"c{i}"], theta[f"f{i}"]
            log_power = log_power - c * f * np.logaddexp(0.0, (log_x - np.log(theta[f"d{i}"])) / f)
        return theta["a"] + np.exp(log_power)

    words = "".join(f" (1 + ({variable}/d{i})^(1/f{i}))^(-c{i} f{i})" for i in breaks)
    formula = f"L({variable}) = a + b {variable}^-c0{words}"
    return Law(name, formula, PAPER, (variable,), tuple(space), predict, starts=partial(_starts, variable, k))


def by_name(name: str) -> Law | None:
    """The law that a name such as broken_2 or broken_1_n means; None for any other name.

    Example:
        >>> by_name("broken_2_d").variables, by_name("broken_1_n_e").variables, by_name("chinchilla")
        (('D',), ('N_e',), None)
    """
    match = re.fullmatch(r"broken_([1-3])(?:_([A-Za-z]\w*))?", name)
    if not match:
        return None
    word = match[2] or "C"
    return broken(int(match[1]), SHORT.get(word, word))


def _starts(variable, k, x, y):
    """For each floor, places and widths of the breaks the rest is linear: ln(y - a) = ln b - c0 ln x - sum c f s."""
    log_x = np.log(x[variable])
    places = np.linspace(log_x.min(), log_x.max(), PLACES + 2)[1:-1]
    out = []
    for share in FLOORS:
        a = share * y.min()
        rest, weight = np.log(y - a), (y - a) / y
        for width in WIDTHS:
            for chosen in combinations(places, k):
                soft = [np.logaddexp(0.0, (log_x - d) / width) for d in chosen]
                columns = np.stack([np.ones_like(log_x), -log_x, *(-width * s for s in soft)], 1)
                solved = np.linalg.lstsq(columns * weight[:, None], rest * weight, rcond=1e-10)[0]
                row = [a, np.exp(np.clip(solved[0], -500, 500)), np.clip(solved[1], -3, 3)]
                for c, d in zip(solved[2:], chosen, strict=True):
                    row += [np.clip(c, -20, 20), np.exp(d), width]
                out.append(row)
    return np.array(out)


BROKEN = tuple(broken(k) for k in (1, 2, 3))

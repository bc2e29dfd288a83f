"""Kaplan's laws (arXiv:2001.08361): no floor, so losses that fall to zero. N without embeddings in the paper.

Coefficients are fitted as A = N_c^alpha, so that A N^-alpha = (N_c / N)^alpha stays a number when alpha is near 0;
the paper's constants N_c, D_c, C_c, S_c are derived.
"""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, power
from lmjax.scaling.laws.subsolve import centred, mesh, nonnegative, positive

PAPER = "arXiv:2001.08361"
ALPHAS = np.geomspace(0.01, 1.5, 14)


def _constants(**scales):
    """derive(): {"N_c": ("A", "alpha")} -> N_c = A^(1/alpha)."""

    def derive(params):
        return {name: np.exp(np.minimum(np.log(params[a]) / params[k], 700.0)) for name, (a, k) in scales.items()}

    return derive


def _plain(name, variable, alpha, constant):
    """(x_c / x)^alpha = A x^-alpha, a straight line in logs, which is its own exact start."""

    def level(theta, x):
        return power(np.log(theta["A"]), theta[alpha], x[variable])

    def gradient(theta, x):
        p = level(theta, x)
        return {"A": p / theta["A"], alpha: -p * np.log(x[variable])}

    def starts(x, y):
        u, centre = centred(x[variable])
        falls = [-np.polyfit(u, np.log(y), 1)[0] if np.ptp(u) > 0 else 0.1, *ALPHAS[::4]]
        slopes = np.clip(falls, 1e-3, 3.0)
        middles = np.mean(np.log(y)) + slopes * centre
        return np.column_stack([np.exp(middles), slopes])

    formula = f"L({variable}) = ({constant} / {variable})^{alpha}, A = {constant}^{alpha}"
    space = (coefficient("A"), exponent(alpha))
    derive = _constants(**{constant: ("A", alpha)})
    return Law(name, formula, f"{PAPER}, section 1.2", (variable,), space, level, gradient, starts, derive=derive)


KAPLAN_N = _plain("kaplan_n", "N", "alpha", "N_c")
KAPLAN_D = _plain("kaplan_d", "D", "beta", "D_c")
KAPLAN_C = _plain("kaplan_c", "C", "alpha", "C_c")


def _joint_parts(theta, x):
    u = np.log(theta["A"]) - theta["alpha"] * np.log(x["N"])
    v = np.log(theta["B"]) - theta["beta"] * np.log(x["D"])
    total = np.logaddexp(u / theta["beta"], v / theta["beta"])
    return u, v, total


def _joint_level(theta, x):
    return np.exp(theta["beta"] * _joint_parts(theta, x)[2])


def _joint_gradient(theta, x):
    u, v, total = _joint_parts(theta, x)
    level = np.exp(theta["beta"] * total)
    share_u, share_v = np.exp(u / theta["beta"] - total), np.exp(v / theta["beta"] - total)
    own = total - (share_u * u + share_v * v) / theta["beta"]  # beta outside and under the two powers
    return {
        "A": level * share_u / theta["A"],
        "alpha": -level * share_u * np.log(x["N"]),
        "B": level * share_v / theta["B"],
        "beta": level * (own - share_v * np.log(x["D"])),
    }


def _joint_starts(x, y):
    """L^(1/beta) is linear in A^(1/beta) and B^(1/beta)."""
    (u, centre_n), (v, centre_d) = centred(x["N"]), centred(x["D"])
    grid = mesh(ALPHAS, np.geomspace(0.02, 1.5, 14))
    alpha, beta = grid[:, :1], grid[:, 1:]
    relative = np.log(y / np.exp(np.mean(np.log(y))))
    features = np.stack([np.exp(-alpha / beta * u - relative / beta), np.exp(-v - relative / beta)], 1)
    solved = np.maximum(nonnegative(features, np.ones(len(y))), 1e-6)
    logs = beta * np.log(solved) + np.mean(np.log(y)) + np.stack([alpha[:, 0] * centre_n, beta[:, 0] * centre_d], 1)
    a, b = np.exp(logs).T
    return np.column_stack([a, grid[:, 0], b, grid[:, 1]])


KAPLAN_ND = Law(
    "kaplan_nd",
    "L(N, D) = ((N_c / N)^(alpha / beta) + D_c / D)^beta, A = N_c^alpha, B = D_c^beta",
    f"{PAPER}, equation 1.5",
    ("N", "D"),
    (coefficient("A"), exponent("alpha"), coefficient("B"), exponent("beta", low=5e-3)),
    _joint_level,
    _joint_gradient,
    _joint_starts,
    derive=_constants(N_c=("A", "alpha"), D_c=("B", "beta")),
)


def _steps_parts(theta, x):
    return power(np.log(theta["A"]), theta["alpha"], x["N"]), power(np.log(theta["K"]), theta["kappa"], x["S"])


def _steps_gradient(theta, x):
    size, steps = _steps_parts(theta, x)
    return {
        "A": size / theta["A"],
        "alpha": -size * np.log(x["N"]),
        "K": steps / theta["K"],
        "kappa": -steps * np.log(x["S"]),
    }


def _steps_starts(x, y, log_s=None):
    u, centre_n = centred(x["N"])
    log_s = np.log(x["S"]) if log_s is None else log_s
    v, centre_s = log_s - log_s.mean(), log_s.mean()
    grid = mesh(ALPHAS[:: 1 if len(ALPHAS) < 20 else 2], np.geomspace(0.05, 2.5, 12))
    features = np.stack([np.exp(-grid[:, :1] * u), np.exp(-grid[:, 1:] * v)], 1) / y
    a, k = (positive(nonnegative(features, np.ones(len(y))), y) * np.exp(grid * [centre_n, centre_s])).T
    return np.column_stack([a, grid[:, 0], k, grid[:, 1]])


KAPLAN_NS = Law(
    "kaplan_ns",
    "L(N, S) = (N_c / N)^alpha + (S_c / S)^kappa, A = N_c^alpha, K = S_c^kappa",
    f"{PAPER}, equation 1.6; S is S_min, the steps at a batch far above the critical one",
    ("N", "S"),
    (coefficient("A"), exponent("alpha"), coefficient("K"), exponent("kappa")),
    lambda theta, x: sum(_steps_parts(theta, x)),
    _steps_gradient,
    _steps_starts,
    derive=_constants(N_c=("A", "alpha"), S_c=("K", "kappa")),
)


def _critical_parts(theta, x):
    """The loss L that solves L = A N^-alpha + K (S / (1 + q))^-kappa, q = B_star L^(-1/alpha_B) / B, and its terms.

    The right side falls with L, so there is one root; Newton in ln L, whose slope lies between -1 and -1 - kappa g.
    """
    size = power(np.log(theta["A"]), theta["alpha"], x["N"])
    log_steps = np.log(theta["K"]) - theta["kappa"] * np.log(x["S"])
    g = 1.0 / theta["alpha_B"]
    log_q1 = np.log(theta["B_star"]) - np.log(x["B"])  # ln q at L = 1
    log_level = np.log(size + np.exp(log_steps)) + 0.0 * log_q1
    for _ in range(60):
        log_q = log_q1 - g * log_level
        steps = np.exp(log_steps + theta["kappa"] * np.logaddexp(0.0, log_q))
        total = size + steps
        slope = -steps * theta["kappa"] * g / (1.0 + np.exp(-log_q)) / total - 1.0
        change = (np.log(total) - log_level) / -slope
        log_level = log_level + change
        if np.all(np.abs(change) < 1e-15 * np.maximum(1.0, np.abs(log_level))):
            break
    log_q = log_q1 - g * log_level
    steps = np.exp(log_steps + theta["kappa"] * np.logaddexp(0.0, log_q))
    return np.exp(log_level), size, steps, log_q, g


def _critical_gradient(theta, x):
    """By the implicit function theorem: dL = (partial of the right side) / (1 - d right / dL)."""
    level, size, steps, log_q, g = _critical_parts(theta, x)
    share = 1.0 / (1.0 + np.exp(-log_q))  # d ln(1 + q) / d ln q
    push = steps * theta["kappa"] * share  # d right / d ln q
    back = 1.0 + push * g / level
    partial = {
        "A": size / theta["A"],
        "alpha": -size * np.log(x["N"]),
        "K": steps / theta["K"],
        "kappa": steps * (np.logaddexp(0.0, log_q) - np.log(x["S"])),
        "B_star": push / theta["B_star"],
        "alpha_B": push * np.log(level) * g**2,
    }
    return {name: value / back for name, value in partial.items()}


def _critical_starts(x, y):
    """For a critical batch of given size and slope, S_min follows from the measured losses: then as kaplan_ns."""
    out = []
    for alpha_b in (0.1, 0.2, 0.5):
        fall = np.log(y) / alpha_b
        for log_b in np.linspace(np.log(x["B"]).min() - 2.0, np.log(x["B"]).max() + 2.0, 7):
            log_star = log_b + fall.mean()
            log_s = np.log(x["S"]) - np.logaddexp(0.0, log_star - fall - np.log(x["B"]))
            rows = _steps_starts(x, y, log_s)
            out.append(np.column_stack([rows, np.full(len(rows), np.exp(log_star)), np.full(len(rows), alpha_b)]))
    return np.concatenate(out)


CRITICAL_BATCH = Law(
    "critical_batch",
    "L(N, S, B) = (N_c / N)^alpha + (S_c / S_min)^kappa, S_min = S / (1 + B_crit / B), B_crit = B_star / L^(1/alpha_B)",
    f"{PAPER}, equations 1.4, 1.6 and 5.4; B in tokens",
    ("N", "S", "B"),
    (
        coefficient("A"),
        exponent("alpha"),
        coefficient("K"),
        exponent("kappa"),
        coefficient("B_star"),
        Parameter("alpha_B", 0.02, 5.0),
    ),
    lambda theta, x: _critical_parts(theta, x)[0],
    _critical_gradient,
    _critical_starts,
    derive=_constants(N_c=("A", "alpha"), S_c=("K", "kappa")),
)
KAPLAN = (KAPLAN_N, KAPLAN_D, KAPLAN_C, KAPLAN_ND, KAPLAN_NS, CRITICAL_BATCH)

"""Kaplan's laws (arXiv:2001.08361): no floor, so losses fall to zero. The paper counts N without embeddings.

Coefficients are fitted as A = N_c^alpha, so that A N^-alpha = (N_c / N)^alpha stays finite when alpha is near 0;
the paper's constants N_c, D_c, C_c, S_c are derived.
"""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, mesh, positive, power, project, value_of

PAPER = "arXiv:2001.08361"
ALPHAS = np.geomspace(0.01, 1.5, 14)


def _constants(**scales):
    """derive(): {"N_c": ("A", "alpha")} -> N_c = A^(1/alpha)."""

    def derive(params):
        return {name: np.exp(np.minimum(np.log(params[a]) / params[k], 700.0)) for name, (a, k) in scales.items()}

    return derive


def _plain(name, variable, alpha, constant):
    """(x_c / x)^alpha = A x^-alpha, a straight line in logs."""
    return Law(
        name,
        f"L({variable}) = ({constant} / {variable})^{alpha}, A = {constant}^{alpha}",
        f"{PAPER}, section 1.2",
        (variable,),
        (coefficient("A"), exponent(alpha)),
        lambda theta, x: power(theta["A"], theta[alpha], x[variable]),
        linear=("A",),
        derive=_constants(**{constant: ("A", alpha)}),
    )


def _joint(theta, x):
    u = np.log(theta["A"]) - theta["alpha"] * np.log(x["N"])
    v = np.log(theta["B"]) - theta["beta"] * np.log(x["D"])
    return np.exp(theta["beta"] * np.logaddexp(u / theta["beta"], v / theta["beta"]))


def _joint_starts(x, y):
    """L^(1/beta) is linear in A^(1/beta) and B^(1/beta)."""
    alpha, beta = mesh(ALPHAS, np.geomspace(0.02, 1.5, 14)).T[:, :, None]
    log_n, log_d, log_y = np.log(x["N"]), np.log(x["D"]), np.log(y)
    shift_n, shift_d = alpha * log_n.mean() + log_y.mean(), beta * log_d.mean() + log_y.mean()
    u = np.exp((shift_n - alpha * log_n - log_y) / beta)
    v = np.exp((shift_d - beta * log_d - log_y) / beta)
    solved = np.maximum(project([u, v], np.ones(len(y)), 1.0), 1e-6)
    a, b = (np.exp(beta[:, 0] * np.log(s) + shift[:, 0]) for s, shift in zip(solved.T, (shift_n, shift_d), strict=True))
    return np.column_stack([a, alpha, b, beta])


KAPLAN_ND = Law(
    "kaplan_nd",
    "L(N, D) = ((N_c / N)^(alpha / beta) + D_c / D)^beta, A = N_c^alpha, B = D_c^beta",
    f"{PAPER}, equation 1.5",
    ("N", "D"),
    (coefficient("A"), exponent("alpha"), coefficient("B"), exponent("beta", low=5e-3)),
    _joint,
    starts=_joint_starts,
    derive=_constants(N_c=("A", "alpha"), D_c=("B", "beta")),
)
KAPLAN_NS = Law(
    "kaplan_ns",
    "L(N, S) = (N_c / N)^alpha + (S_c / S)^kappa, A = N_c^alpha, K = S_c^kappa",
    f"{PAPER}, equation 1.6; S is S_min, the steps at a batch far above the critical one",
    ("N", "S"),
    (coefficient("A"), exponent("alpha"), coefficient("K"), exponent("kappa")),
    lambda theta, x: power(theta["A"], theta["alpha"], x["N"]) + power(theta["K"], theta["kappa"], x["S"]),
    linear=("A", "K"),
    derive=_constants(N_c=("A", "alpha"), S_c=("K", "kappa")),
)


def _critical(theta, x):
    """The loss L that solves L = A N^-alpha + K (S / (1 + q))^-kappa, q = B_star L^(-1/alpha_B) / B.

    The right side falls with L, so there is one root; Newton in ln L, whose slope lies between -1 and -1 - kappa g.
    One more step from the root carries its derivatives (implicit function theorem).
    """

    def step(theta, log_loss):
        g = 1.0 / theta["alpha_B"]
        log_q = np.log(theta["B_star"]) - np.log(x["B"]) - g * log_loss
        steps = np.exp(np.log(theta["K"]) - theta["kappa"] * (np.log(x["S"]) - np.logaddexp(0.0, log_q)))
        total = power(theta["A"], theta["alpha"], x["N"]) + steps
        slope = steps * theta["kappa"] * g / (1.0 + np.exp(-log_q)) / total + 1.0
        return (np.log(total) - log_loss) / slope

    plain = {name: value_of(v) for name, v in theta.items()}
    first = power(plain["A"], plain["alpha"], x["N"]) + power(plain["K"], plain["kappa"], x["S"])
    log_loss = np.log(first) + 0.0 * np.log(x["B"])
    for _ in range(60):
        change = step(plain, log_loss)
        log_loss = log_loss + change
        if np.all(np.abs(change) < 1e-15 * np.maximum(1.0, np.abs(log_loss))):
            break
    return np.exp(log_loss + step(theta, log_loss))


def _critical_starts(x, y):
    """For a critical batch of given size and slope, S_min follows from the measured losses: then as kaplan_ns."""
    alpha, kappa = mesh(ALPHAS, np.geomspace(0.05, 2.5, 12)).T[:, :, None]
    size, log_b, out = np.exp(-alpha * np.log(x["N"])), np.log(x["B"]), []
    for alpha_b in (0.1, 0.2, 0.5):
        fall = np.log(y) / alpha_b
        for log_star in np.linspace(log_b.min() - 2.0, log_b.max() + 2.0, 7) + fall.mean():
            steps = np.exp(-kappa * (np.log(x["S"]) - np.logaddexp(0.0, log_star - fall - log_b)))
            solved = project([size, steps], y, y)
            a, k = (positive(v, f, y) for v, f in zip(solved.T, (size, steps), strict=True))
            ones = np.ones(len(alpha))
            out.append(np.column_stack([a, alpha, k, kappa, np.exp(log_star) * ones, alpha_b * ones]))
    return np.concatenate(out)


CRITICAL_BATCH = Law(
    "critical_batch",
    "L(N, S, B) = (N_c / N)^alpha + (S_c / S_min)^kappa, S_min = S / (1 + B_crit / B), B_crit = B_star / L^(1/alpha_B)",
    f"{PAPER}, equations 1.4, 1.6 and 5.4; B in tokens",
    ("N", "S", "B"),
    (*KAPLAN_NS.space, coefficient("B_star"), Parameter("alpha_B", 0.02, 5.0)),
    _critical,
    starts=_critical_starts,
    derive=_constants(N_c=("A", "alpha"), S_c=("K", "kappa")),
)
KAPLAN = (
    _plain("kaplan_n", "N", "alpha", "N_c"),
    _plain("kaplan_d", "D", "beta", "D_c"),
    _plain("kaplan_c", "C", "alpha", "C_c"),
    KAPLAN_ND,
    KAPLAN_NS,
    CRITICAL_BATCH,
)

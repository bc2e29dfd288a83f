"""Laws of several variables: over-training, quantization, the joint power law, encoder-decoders, annealing."""

import numpy as np

from lmjax.scaling.laws.base import Law, Parameter, coefficient, exponent, floor, mesh, power, project

OVERTRAINED = Law(
    "overtrained",
    "L(C, M) = E + (a M^eta + b M^-eta) C^-eta, M = D / N",
    "arXiv:2403.08540, equation 4",
    ("C", "M"),
    (floor(), coefficient("a"), coefficient("b"), exponent("eta")),
    lambda theta, x: (
        theta["E"] + power(theta["a"], theta["eta"], x["C"] / x["M"]) + power(theta["b"], theta["eta"], x["C"] * x["M"])
    ),
    linear=("E", "a", "b"),
)
QUANTIZATION = Law(
    "quantization",
    "L(N, D) = E + A N^-alpha + B D^-(alpha / (alpha + 1))",
    "arXiv:2303.13506, equations 3 and 5",
    ("N", "D"),
    (floor(), coefficient("A"), coefficient("B"), exponent("alpha")),
    lambda theta, x: (
        theta["E"]
        + power(theta["A"], theta["alpha"], x["N"])
        + power(theta["B"], theta["alpha"] / (1.0 + theta["alpha"]), x["D"])
    ),
    linear=("E", "A", "B"),
    derive=lambda params: {"beta": params["alpha"] / (params["alpha"] + 1)},
)


def _joint(theta, x):
    u, v = -theta["alpha"] * np.log(x["N"]), np.log(theta["R"]) - theta["beta"] * np.log(x["D"])
    return theta["E"] + np.exp(np.log(theta["A"]) + theta["k"] * np.logaddexp(u, v))


def _joint_starts(x, y):
    """For given E, k and exponents, (L - E)^(1/k) is linear in A^(1/k) and A^(1/k) R."""
    (log_n, log_d), out = (np.log(x[name]) for name in ("N", "D")), []
    middles = np.array([log_n.mean(), log_d.mean()])
    for share in (0.0, 0.3, 0.6, 0.8, 0.9):
        rest = np.log(y - share * y.min())
        for k in (0.4, 0.7, 1.0, 1.6):
            grid = mesh(np.geomspace(0.08, 1.2, 7), np.geomspace(0.08, 1.2, 7)) / k
            weight = np.exp((rest.mean() - rest) / k)
            powers = [np.exp(-grid[:, [j]] * (v - v.mean())) * weight for j, v in enumerate((log_n, log_d))]
            logs = np.log(np.maximum(project(powers, np.ones(len(y)), 1.0), 1e-5)) + grid * middles
            a = np.exp(np.clip(k * logs[:, 0] + rest.mean(), -500, 500))
            r = np.exp(np.clip(logs[:, 1] - logs[:, 0], -500, 500))
            ones = np.ones(len(grid))
            out.append(np.column_stack([share * y.min() * ones, a, grid[:, 0], r, grid[:, 1], k * ones]))
    return np.concatenate(out)


JOINT = Law(
    "joint_power",
    "L(N, D) = E + A (N^-alpha + R D^-beta)^k",
    "the joint law of the package simple-scaling-laws; k = 1 is Chinchilla's, E = 0 with beta = 1 Kaplan's",
    ("N", "D"),
    (
        floor(),
        coefficient("A"),
        exponent("alpha", high=10.0),
        coefficient("R"),
        exponent("beta", high=10.0),
        Parameter("k", 0.02, 20.0, log=True),
    ),
    _joint,
    starts=_joint_starts,
)

# ---- encoder-decoders, whose two stacks have sizes of their own ------------------------------------------------------

STACKS = "arXiv:2109.07740, equation 2: alpha (Ne0/N_e)^p_e (Nd0/N_d)^p_d + L_inf, A = alpha Ne0^p_e Nd0^p_d"
ENCODER_DECODER = Law(
    "encoder_decoder",
    "L(N_e, N_d) = E + A N_e^-p_e N_d^-p_d",
    STACKS,
    ("N_e", "N_d"),
    (floor(), coefficient("A"), exponent("p_e"), exponent("p_d")),
    lambda theta, x: (
        theta["E"] + np.exp(np.log(theta["A"]) - theta["p_e"] * np.log(x["N_e"]) - theta["p_d"] * np.log(x["N_d"]))
    ),
    linear=("E", "A"),
)
ENCODER_DECODER_DATA = Law(
    "encoder_decoder_data",
    "L(N_e, N_d, D) = E + A N_e^-p_e N_d^-p_d + B D^-beta",
    f"{STACKS}; with the data term of arXiv:2203.15556",
    ("N_e", "N_d", "D"),
    (*ENCODER_DECODER.space, coefficient("B"), exponent("beta")),
    lambda theta, x: ENCODER_DECODER.predict(theta, x) + power(theta["B"], theta["beta"], x["D"]),
    linear=("E", "A", "B"),
)

# S1: sum of the learning rates up to a step, the area under the schedule; S2: sum over steps of the drops of the rate,
# each remembered with a decay, the annealing area. lmjax/scaling/methods computes both from a schedule.
ANNEALING = Law(
    "annealing",
    "L(S1, S2) = L0 + A S1^-alpha - C S2",
    "arXiv:2408.11029, equation 1",
    ("S1", "S2"),
    (floor("L0"), coefficient("A"), exponent("alpha"), Parameter("C", 0.0, np.inf, keep=True)),
    lambda theta, x: theta["L0"] + power(theta["A"], theta["alpha"], x["S1"]) - theta["C"] * x["S2"],
    linear=("L0", "A", "C"),
    may_be_zero=("S2",),  # S2 is 0 before the decay
)
SURFACES = (OVERTRAINED, QUANTIZATION, ENCODER_DECODER, ENCODER_DECODER_DATA, ANNEALING)

"""What a fit says about cells it has not seen: predictions, held-out checks, budgets."""

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.conventions import C_COUNTS
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, columns, get_law, optimal_allocation, predict_loss
from lmjax.scaling.resample import Noise, interval, is_corrected
from lmjax.scaling.result import Fit

MOST_SPREAD = 100.0  # of an interval of N*, high over low: beyond it any split is as good


def predict(fit: Fit, N=None, D=None, new_run: bool = True, **others) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicts the loss of cells, with an interval.

    Args:
        fit: a fit with refits.
        N: parameters, float or array; only for a law that has N, and so for the others.
        D: training tokens, float or array.
        new_run: the interval is for the loss of one new run (uncertainty of the parameters and noise of a run of mean
            weight); False gives the interval of the curve itself, as drawn in figures.
        **others: the other variables of the law by name (C, U, S1, ...). N and D stand for M = D / N, and for C where
            the fit counts C = 6 N D.

    Returns:
        (loss, low, high), float64 arrays of the broadcast shape of the variables, in the unit of the fitted loss;
        shares within [0, 1].

    Raises:
        InputError: the fit was refused, or has no refits (bootstrap = 0); a variable is missing, is not of the law or
            is no positive number.
    """
    law = get_law(fit.usable().law)
    x = _variables(fit, law, {"N": N, "D": D, **others})
    shape = np.broadcast_shapes(*(v.shape for v in x.values()))
    flat = {name: np.broadcast_to(v, shape).ravel() for name, v in x.items()}
    loss = predict_loss(law, fit.params, **flat)
    plain = fit.plain
    refits = predict_loss(law, {k: v[:, None] for k, v in _draws(fit).items()}, **flat)
    refits = refits if plain else np.log(refits)
    if new_run:
        repeat = 4  # several errors for each refit: the tails of the interval become smoother
        rng = np.random.Generator(np.random.Philox(fit.seed + 1))
        noise = Noise(np.array(fit.noise_pool), fit.noise_sd, fit.noise_kernel, 1)
        scale = np.tile(np.array(fit.noise_scale), repeat)
        refits = np.tile(refits, (repeat, 1)) + noise.sample(rng, scale, refits.shape[1])
    # plain percentiles for both methods: the bias correction would under-cover inside the grid
    low, high = interval(refits, loss if plain else np.log(loss), fit.level, corrected=False)
    if not plain:
        low, high = np.exp(low), np.exp(high)
    if fit.target == "share":
        loss, low, high = (np.clip(v, 0.0, 1.0) for v in (loss, low, high))
    return loss.reshape(shape), low.reshape(shape), high.reshape(shape)


def _variables(fit, law, given):
    """The variables of a law from what was given, checked: what is missing or not of the law is named."""
    given = {name: np.asarray(v, np.float64) for name, v in given.items() if v is not None}
    stand_in = {"M", "C"} & set(law.variables) - set(given)
    if "C" in stand_in and "C" in fit.conventions and fit.conventions["C"] != C_COUNTS["6nd"]:
        raise InputError(f"wanted C for {law.formula}: the fit has {fit.conventions['C']}, not 6 N D; give C = FLOP")
    foreign = [name for name in given if name not in law.variables and not (stand_in and name in ("N", "D"))]
    if foreign:
        raise InputError(f"{law.formula} has no {', '.join(foreign)}; give {' and '.join(law.variables)}")
    for name in law.out_of_range(given):
        raise InputError(f"wanted positive numbers in {name} for {law.formula}, got {given[name]}")
    return columns(law, given)


def _draws(fit):
    if not fit.draws:
        raise InputError("the fit has no refits, so no intervals; fit with bootstrap > 0")
    return {
        name.removeprefix("ln "): np.exp(np.array(v)) if name.startswith("ln ") else np.array(v)
        for name, v in fit.draws.items()
    }


def allocate(fit: Fit, C, N=None) -> dict[str, np.ndarray]:
    """The compute-optimal split of a budget at C = 6 N D, or the split at a given N, with intervals.

    Args:
        fit: a fit of the law chinchilla.
        C: budget in FLOP as 6 N D, float or array, whatever fit.conventions["C"]; N as fit.conventions["N"] counts it,
            so for N without embeddings the budget leaves out their FLOP too.
        N: parameters to use instead of the optimum; then D = C / (6 N).

    Returns:
        dict of C, and for N, D, tokens_per_param, loss: the value, and "<name>_low", "<name>_high" (of N and D only
        where they are the optimum's); a_exponent: of N* in C; extrapolation: C over the largest 6 N D in the fit;
        determined: whether the interval of N* spans less than a factor MOST_SPREAD; without it the split is a guess.
        With N also excess, excess_low, excess_high: what the choice costs in loss.

    Raises:
        InputError: another law, a refused fit, no refits.
    """
    C = _budget(fit, C)
    out = {"C": C, "extrapolation": C / max(FLOPS_PER_PARAM_TOKEN * row["N"] * row["D"] for row in fit.points)}
    out["a_exponent"] = fit.derived["a"]
    if N is not None:
        N = np.asarray(N, np.float64)
        if not (N > 0).all():
            raise InputError(f"wanted N > 0 parameters, got {N}")
        D = C / FLOPS_PER_PARAM_TOKEN / N
        loss, low, high = predict(fit, N, D, new_run=False)
        cost, cost_low, cost_high = excess(fit, C, N)
        out |= {"N": N, "D": D, "tokens_per_param": D / N, "loss": loss, "loss_low": low, "loss_high": high}
        return out | {"excess": cost, "excess_low": cost_low, "excess_high": cost_high}
    best = optimal_allocation(fit.params, C)
    shape = (-1,) + (1,) * C.ndim
    refits = optimal_allocation({k: v.reshape(shape) for k, v in _draws(fit).items()}, C)
    for name in ("N", "D", "tokens_per_param", "loss"):
        low, high = interval(refits[name], best[name], fit.level, is_corrected(fit.method, fit.draws["E"]))
        out |= {name: best[name], f"{name}_low": low, f"{name}_high": high}
    return out | {"determined": out["N_high"] < MOST_SPREAD * out["N_low"]}


def split_known(fit: Fit) -> list[str]:
    """Whether a fit of N and D determines the compute-optimal split at its own largest budget, in words."""
    largest = max(FLOPS_PER_PARAM_TOKEN * row["N"] * row["D"] for row in fit.points)
    best = allocate(fit, largest)
    if best["determined"]:
        return []
    return [
        f"no compute-optimal split is determined: even at {largest:.2g} FLOP the interval of N* spans more than a "
        f"factor {MOST_SPREAD:.0f}"
    ]


def excess(fit: Fit, C, N) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a wrong choice of N costs: loss(N, C / 6N) - the least loss at C, with an interval.

    Args:
        fit: a fit of the law chinchilla with refits.
        C: budget in FLOP as 6 N D, float or array.
        N: parameters chosen, float or array.

    Returns:
        (excess, low, high) in the unit of the loss, each at least 0.

    Raises:
        InputError: another law, a refused fit, no refits.
    """
    C, N = np.broadcast_arrays(_budget(fit, C), np.asarray(N, np.float64))
    D = C / FLOPS_PER_PARAM_TOKEN / N
    law = get_law(fit.law)

    def cost(params):
        return np.maximum(predict_loss(law, params, N, D) - optimal_allocation(params, C)["loss"], 0.0)

    shape = (-1,) + (1,) * C.ndim
    here = cost(fit.params)
    refits = cost({k: v.reshape(shape) for k, v in _draws(fit).items()})
    # plain percentiles: the cost cannot be negative, so its refits are skewed for a reason
    low, high = interval(refits, here, fit.level, corrected=False)
    return here, low, high


def _budget(fit, C):
    if fit.usable().law != "chinchilla":
        raise InputError(f"wanted a fit of the law chinchilla for an allocation, got {fit.law}")
    C = np.asarray(C, np.float64)
    if not (C > 0).all():
        raise InputError(f"wanted a budget C > 0 FLOP, got {C}")
    return C


def check_held_out(fit: Fit, table) -> list[dict]:
    """Compares predictions with the measured losses of runs that were not fitted.

    Args:
        fit: a fit with refits.
        table: a FitTable (its held_out rows) or a pandas frame with run, N, D, C, loss.

    Returns:
        One dict a row: run, N, D, C, loss (measured), predicted, low, high, relative_error =
        predicted / measured - 1 (NaN for a share of 0), inside (the interval holds the measured loss; None without
        refits), extrapolation (C over the largest C in the fit; without C, the law's first variable).
    """
    frame = table.held_out if hasattr(table, "held_out") and hasattr(table, "conventions") else table
    if not len(frame):
        return []
    law = get_law(fit.usable().law)
    # a law in N holds at the D of its rows, and the other way round
    fixed = {("N",): "D", ("D",): "N"}.get(law.variables)
    for variable in [fixed] * bool(fixed):
        fitted = np.array([row[variable] for row in fit.points])
        other = frame[~np.isclose(frame[variable], np.median(fitted), rtol=0.02, equal_nan=True)]
        if len(other):
            raise InputError(
                f"the fit of {law.formula} holds at {variable} = {np.median(fitted):.4g}, but held-out "
                f"{other.run.iloc[0]} has {variable} = {other[variable].iloc[0]:.4g}"
            )
    x = {name: frame[name].to_numpy(np.float64) for name in law.variables}
    if fit.draws:
        predicted, low, high = predict(fit, **x)
    else:
        predicted = predict_loss(law, fit.params, **x)
        low = high = np.full(len(frame), np.nan)
    reach = "C" if np.isfinite([row["C"] for row in fit.points]).all() else law.variables[0]
    largest = max(row[reach] for row in fit.points)
    rows = []
    kept = list(dict.fromkeys(["run", "N", "D", "C", *law.variables, "loss"]))
    for i, row in enumerate(frame[kept].to_dict("records")):
        rows.append(
            {
                **row,
                "predicted": float(predicted[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "relative_error": float(predicted[i] / row["loss"] - 1) if row["loss"] else np.nan,
                "inside": bool(low[i] <= row["loss"] <= high[i]) if fit.draws else None,
                "extrapolation": float(row[reach] / largest),
            }
        )
    return rows

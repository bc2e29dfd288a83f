"""What a fit says about cells it has not seen: predictions, held-out checks, budgets."""

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.bootstrap import Noise, interval, is_corrected
from lmjax.scaling.laws import FLOPS_PER_PARAM_TOKEN, columns, get_law, optimal_allocation, predict_loss
from lmjax.scaling.result import Fit


def predict(fit: Fit, N=None, D=None, new_run: bool = True, **others) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicts the loss of cells, with an interval.

    Args:
        fit: a fit with refits.
        N: parameters, float or array; may be left out for a law in D, and the other way round.
        D: training tokens, float or array.
        new_run: the interval is for the loss of one new run (uncertainty of the parameters and noise of a
            run); False gives the interval of the curve itself, as drawn in figures.
        **others: the other variables of the law by name (C, U, S1, ...).

    Returns:
        (loss, low, high), float64 arrays of the broadcast shape of the variables, in the unit of the fitted loss.

    Raises:
        InputError: the fit was refused, or has no refits (bootstrap = 0).
    """
    law = get_law(fit.usable().law)
    x = columns(law, {"N": N, "D": D, **others})
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
    return loss.reshape(shape), low.reshape(shape), high.reshape(shape)


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
        C: budget in FLOP as 6 N D, float or array.
        N: parameters to use instead of the optimum; then D = C / (6 N).

    Returns:
        dict of C, and for N, D, tokens_per_param, loss: the value, and "<name>_low", "<name>_high" (of N and D only
        where they are the optimum's); a_exponent: of N* in C; extrapolation: C over the largest 6 N D in the fit;
        with N also excess, excess_low, excess_high: what the choice costs in loss.

    Raises:
        InputError: another law, a refused fit, no refits.
    """
    C = _budget(fit, C)
    out = {"C": C, "extrapolation": C / max(FLOPS_PER_PARAM_TOKEN * row["N"] * row["D"] for row in fit.points)}
    out["a_exponent"] = fit.derived["a"]
    if N is not None:
        N = np.asarray(N, np.float64)
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
    return out


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

"""What a fit says about cells it has not seen: predictions, held-out checks, budgets."""

import numpy as np

from lmjax.errors import InputError
from lmjax.scaling.bootstrap import Noise, interval, is_corrected
from lmjax.scaling.laws import columns, get_law, optimal_allocation, predict_loss
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
    refits = np.log(predict_loss(law, {k: v[:, None] for k, v in _draws(fit).items()}, **flat))
    if new_run:
        repeat = 4  # several errors for each refit: the tails of the interval become smoother
        rng = np.random.Generator(np.random.Philox(fit.seed + 1))
        noise = Noise(np.array(fit.noise_pool), fit.noise_sd, fit.noise_kernel, 1)
        scale = np.tile(np.array(fit.noise_scale), repeat)
        refits = np.tile(refits, (repeat, 1)) + noise.sample(rng, scale, refits.shape[1])
    # plain percentiles for both methods: the bias correction would under-cover inside the grid
    low, high = np.exp(interval(refits, np.log(loss), fit.level, corrected=False))
    return loss.reshape(shape), low.reshape(shape), high.reshape(shape)


def _draws(fit):
    if not fit.draws:
        raise InputError("the fit has no refits, so no intervals; fit with bootstrap > 0")
    return {
        name.removeprefix("ln "): np.exp(np.array(v)) if name.startswith("ln ") else np.array(v)
        for name, v in fit.draws.items()
    }


def allocate(fit: Fit, C) -> dict[str, np.ndarray]:
    """The compute-optimal split of a budget at C = 6 N D, with intervals.

    Args:
        fit: a fit of the law chinchilla.
        C: budget in FLOP as 6 N D, float or array.

    Returns:
        dict of C, and for N, D, tokens_per_param, loss: the value, and "<name>_low", "<name>_high";
        extrapolation: C over the largest 6 N D in the fit.

    Raises:
        InputError: another law, a refused fit, no refits.
    """
    if fit.usable().law != "chinchilla":
        raise InputError(f"wanted a fit of the law chinchilla for an allocation, got {fit.law}")
    C = np.asarray(C, np.float64)
    if not (C > 0).all():
        raise InputError(f"wanted a budget C > 0 FLOP, got {C}")
    best = optimal_allocation(fit.params, C)
    shape = (-1,) + (1,) * C.ndim
    refits = optimal_allocation({k: v.reshape(shape) for k, v in _draws(fit).items()}, C)
    out = {"C": C, "extrapolation": C / max(6 * row["N"] * row["D"] for row in fit.points)}
    for name in ("N", "D", "tokens_per_param", "loss"):
        low, high = interval(refits[name], best[name], fit.level, is_corrected(fit.method, fit.draws["E"]))
        out |= {name: best[name], f"{name}_low": low, f"{name}_high": high}
    return out


def check_held_out(fit: Fit, table) -> list[dict]:
    """Compares predictions with the measured losses of runs that were not fitted.

    Args:
        fit: a fit with refits.
        table: a FitTable (its held_out rows) or a pandas frame with run, N, D, C, loss.

    Returns:
        One dict a row: run, N, D, C, loss (measured), predicted, low, high, relative_error =
        predicted / measured - 1, inside (the interval holds the measured loss; None without refits),
        extrapolation (C over the largest C in the fit).
    """
    frame = table.held_out if hasattr(table, "held_out") and hasattr(table, "conventions") else table
    if not len(frame):
        return []
    law = get_law(fit.usable().law)
    for variable in {"N", "D"} - set(law.variables):
        fitted = np.array([row[variable] for row in fit.points])
        other = frame[~np.isclose(frame[variable], np.median(fitted), rtol=0.02)]
        if len(other):
            raise InputError(
                f"the fit of {law.formula} holds at {variable} = {np.median(fitted):.4g}, but held-out "
                f"{other.run.iloc[0]} has {variable} = {other[variable].iloc[0]:.4g}"
            )
    N, D = frame["N"].to_numpy(), frame["D"].to_numpy()
    if fit.draws:
        predicted, low, high = predict(fit, N, D)
    else:
        predicted = predict_loss(law, fit.params, N, D)
        low = high = np.full(len(frame), np.nan)
    largest = max(row["C"] for row in fit.points)
    rows = []
    for i, row in enumerate(frame[["run", "N", "D", "C", "loss"]].to_dict("records")):
        rows.append(
            {
                **row,
                "predicted": float(predicted[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "relative_error": float(predicted[i] / row["loss"] - 1),
                "inside": bool(low[i] <= row["loss"] <= high[i]) if fit.draws else None,
                "extrapolation": float(row["C"] / largest),
            }
        )
    return rows

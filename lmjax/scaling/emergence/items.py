"""The items behind a table of evaluations, matched to its cells. Resamples nothing.

R cells, I items.
"""

import numpy as np

from lmjax.errors import InputError


def matched(table, task: str, shots: int, cells, names, notes: list[str]) -> dict:
    """metric -> (numerator [R, I], denominator [R, I]), checked against the table's values."""
    missing = [c for c in ("run_id", "step", "task", "metric", "item", "numerator", "denominator") if c not in table]
    if missing:
        raise InputError(f"table of items: no column {', '.join(missing)}; it has {', '.join(table.columns)}")
    table = table[(table["task"] == task) & table["metric"].isin(names)]
    table = table[table["shots"] == shots] if "shots" in table else table
    arrays = {}
    for name in names:
        of_it = table[table["metric"] == name].drop_duplicates(["run_id", "step", "item"])
        wide = of_it.pivot(index=["run_id", "step"], columns="item", values=["numerator", "denominator"])
        wide = wide.reindex(list(zip(cells["run_id"], cells["step"], strict=True))).to_numpy(float)
        if not wide.size or not np.isfinite(wide).all():
            notes.append(f"not every cell has the items of {name}: the table's standard errors are used instead")
            return {}
        numerator, denominator = np.split(wide, 2, axis=1)
        off = np.abs(numerator.sum(1) / denominator.sum(1) - cells[name])
        if (off > 1e-6 * (1 + cells[name].abs())).any():
            worst = cells.iloc[int(np.argmax(off))]
            raise InputError(
                f"{task}: the items of {worst['run_id']} step {worst['step']:g} give another {name} than the table; "
                "they are of another evaluation: keep the items of one"
            )
        arrays[name] = (numerator, denominator)
    return arrays


def answer_lengths(arrays: dict, rows, cells, names, notes: list[str]) -> np.ndarray:
    """Tokens of the right answers: of every item, else their mean, else nothing."""
    for name in ("token_accuracy", "log_likelihood_per_token"):
        if name in arrays:
            return arrays[name][1][0]
    given = rows["answer_tokens"].dropna().to_numpy(float)
    if {"log_likelihood", "log_likelihood_per_token"} <= set(names):
        given = (cells["log_likelihood"] / cells["log_likelihood_per_token"]).to_numpy(
            float
        )  # mean over items of tokens
    given = given[np.isfinite(given)]
    if not len(given):
        return np.zeros(0)
    notes.append("answer lengths are known by their mean only: items are taken to have the two whole lengths around it")
    return np.asarray([float(np.median(given))])

"""Calibration of a model's confidence: reliability, expected calibration error, Brier score. NumPy only.

N predictions of one token each; the confidence is the largest probability, the prediction its id.
"""

from collections.abc import Mapping

import numpy as np

from lmjax.errors import InputError

KINDS = ("equal_width", "equal_mass")


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, kind: str = "equal_width") -> list[dict]:
    """Returns confidence and accuracy by bins of confidence (arXiv 1706.04599); empty bins are left out.

    Args:
        confidence: [N] largest probability, in [0, 1].
        correct: [N] bool: the most probable id was the true one.
        bins: number of bins.
        kind: equal_width: intervals (low, high] of width 1 / bins; equal_mass: between quantiles, with equal
            confidences in one bin.

    Returns:
        a row per bin: low, high, count, confidence (mean), accuracy.

    Example: confidence [0.2, 0.4, 0.9], correct [0, 1, 1], 2 bins of equal width
        (0, 0.5]: count 2, confidence 0.3, accuracy 0.5;  (0.5, 1]: count 1, confidence 0.9, accuracy 1
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if kind not in KINDS or bins < 1 or not len(confidence):
        raise InputError(
            f"calibration: expected {' | '.join(KINDS)}, 1 bin or more and 1 prediction or more, got {kind!r}, {bins} "
            f"bins, {len(confidence)} predictions"
        )
    shares = np.linspace(0.0, 1.0, bins + 1)
    edges = shares if kind == "equal_width" else np.unique(np.quantile(confidence, shares))
    edges = np.append(min(0.0, edges[0]), edges[1:] if len(edges) > 1 else edges)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    rows = []
    for number in np.unique(which):
        inside = which == number
        means = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
        low, high = float(edges[number]), float(edges[number + 1])
        rows.append({"low": low, "high": high, "count": int(inside.sum()), **means})
    return rows


def expected_calibration_error(table: list[Mapping]) -> float:
    """Returns sum over bins of count / N |accuracy - confidence| (arXiv 1706.04599).

    Example: the table of `reliability`'s example: 2/3 x 0.2 + 1/3 x 0.1 = 0.1667.
    """
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in table) / total


def brier(target_probability: np.ndarray, squares: np.ndarray) -> float:
    """Returns the mean over predictions of sum over ids (p - [id is the true one])^2 (Brier 1950): 0 is best, 2 worst.

    Args:
        target_probability: [N] of the true id.
        squares: [N] sum over ids of p^2.

    Example: uniform over 4 ids: 1/4 - 2/4 + 1 = 0.75.
    """
    return float(np.mean(np.asarray(squares, np.float64) - 2 * np.asarray(target_probability, np.float64) + 1))


def summary(
    confidence: np.ndarray, correct: np.ndarray, target_probability: np.ndarray, squares: np.ndarray, bins: int = 15
) -> dict:
    """Returns accuracy, mean confidence, brier, and for each kind of bins ece_<kind> and table_<kind>."""
    result = {
        "accuracy": float(np.mean(correct)),
        "confidence": float(np.mean(confidence, dtype=np.float64)),
        "brier": brier(target_probability, squares),
    }
    for kind in KINDS:
        table = reliability(confidence, correct, bins, kind)
        result[f"ece_{kind}"] = expected_calibration_error(table)
        result[f"table_{kind}"] = table
    return result

"""What speaks against a fit: warnings, outliers, intervals that say nothing. Prints nothing."""

from collections.abc import Mapping, Sequence

import numpy as np

from lmjax.scaling import diagnose
from lmjax.scaling.result import WIDEST_SPLIT, Fit
from lmjax.scaling.table import FitTable

WIDEST_COEFFICIENT = 1e6  # A and B follow the exponents, a few decades are usual; more says nothing


def audit(fit: Fit, table: FitTable | None = None) -> list[tuple[str, str]]:
    """Pairs of a mark and a sentence, the worst first: diagnose.audit, and what the intervals themselves say."""
    found = [*diagnose.audit(fit, table), *(("beware", words) for words in interval_doubts(fit))]
    return sorted(found, key=lambda pair: -diagnose.MARKS.index(pair[0]))


def doubts(fit: Fit, findings: Sequence[tuple[str, str]]) -> list[str]:
    """Why a fit that was not refused is yet not sound: its warnings, bad residuals, intervals that cannot be right.

    Args:
        fit: any fit.
        findings: of `audit`.
    """
    if fit.refused:
        return []
    residuals = [words for mark, words in findings if mark == "beware" and "residual" in words]
    return list(dict.fromkeys([*fit.warnings, *residuals, *interval_doubts(fit)]))


def interval_doubts(fit: Fit) -> list[str]:
    """Intervals that span so many decades that they say nothing, and a split that the runs do not determine."""
    if fit.refused:
        return []
    found = []
    for name in fit.params:
        low, high = fit.intervals.get(name, (0.0, 0.0))
        if f"ln {name}" in fit.correlation_names and low > 0 and high > WIDEST_COEFFICIENT * low:
            decades = np.log10(high) - np.log10(low)
            found.append(f"the interval of {name} spans {decades:.0f} decades: the runs do not determine it")
    if fit.law == "chinchilla" and fit.resamples:
        largest = max(6 * row["N"] * row["D"] for row in fit.points)
        if not determined(fit.allocate(largest), "N"):
            found.append("the best split of even the largest fitted budget is not determined by these runs")
    return found


def determined(best: Mapping[str, np.ndarray], name: str) -> bool:
    """Whether the interval of a part of a split (N, D, tokens_per_param) spans at most a factor of 100.

    Example:
        >>> best = {"N_low": np.array(1e8), "N_high": np.array(2e8), "D_low": np.array(1e8), "D_high": np.array(1e11)}
        >>> determined(best, "N"), determined(best, "D")
        (True, False)
    """
    low, high = float(best[f"{name}_low"]), float(best[f"{name}_high"])
    return low > 0 and high <= WIDEST_SPLIT * low

"""Scaling laws and emergence from any table of runs: fit, predict, split budgets, check, compare, plan.

    from lmjax import scaling
    fit = scaling.fit("runs.csv")              # columns N, D, loss; see read_table
    loss = fit.predict(N=7e9, D=1.4e11)        # loss.value, loss.low, loss.high
    best = fit.allocate(1e21)                  # best["N"], best["N_low"], ...
    fit.plot("figures"), fit.report("report.html"), fit.save("fit.json")
    print(fit.summary())

The names below are functions and classes; no module of this package shares a name with them.
"""

from lmjax.scaling.fitting import fit, fit_groups
from lmjax.scaling.holdouts import agreement, compare, holdout
from lmjax.scaling.identify import identifiable
from lmjax.scaling.laws import LAWS, get_law, optimal_allocation, predict_loss
from lmjax.scaling.methods.frontier import frontier
from lmjax.scaling.methods.isoflop import isoflop
from lmjax.scaling.methods.two_step import two_step
from lmjax.scaling.planning import design, next_runs
from lmjax.scaling.prediction import Prediction
from lmjax.scaling.result import Fit, load
from lmjax.scaling.table import FitTable, read_table

__all__ = [
    "LAWS",
    "Fit",
    "FitTable",
    "Prediction",
    "agreement",
    "compare",
    "design",
    "fit",
    "fit_groups",
    "frontier",
    "get_law",
    "holdout",
    "identifiable",
    "isoflop",
    "load",
    "next_runs",
    "optimal_allocation",
    "predict_loss",
    "read_table",
    "two_step",
]

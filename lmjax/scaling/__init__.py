"""Scaling laws and emergence from any table: fit, predict, split budgets, check, compare, plan. Never touches a model.

    from lmjax import scaling
    found = scaling.fit("runs.csv")                          # columns N, D, loss; see table.read_table
    loss, low, high = scaling.predict(found, N=7e9, D=1.4e11)
    best = scaling.allocate(found, 1e21)                     # best["N"], best["N_low"], ...
    scaling.save_figures(found, "figures")

The names below are functions and classes; no module of this package shares a name with them.
"""

from lmjax.scaling.designs import design, identifiable
from lmjax.scaling.diagnose import audit, influence, profile
from lmjax.scaling.fitting import fit
from lmjax.scaling.holdouts import agreement, compare, holdout
from lmjax.scaling.laws import LAWS, get_law, optimal_allocation, predict_loss
from lmjax.scaling.methods.frontier import frontier
from lmjax.scaling.methods.isoflop import isoflop
from lmjax.scaling.methods.two_step import two_step
from lmjax.scaling.predictions import allocate, excess, predict
from lmjax.scaling.result import Fit, load
from lmjax.scaling.sequential import next_runs
from lmjax.scaling.table import FitTable, read_table

__all__ = [
    "LAWS",
    "Fit",
    "FitTable",
    "agreement",
    "allocate",
    "audit",
    "compare",
    "design",
    "excess",
    "fit",
    "frontier",
    "get_law",
    "holdout",
    "identifiable",
    "influence",
    "isoflop",
    "load",
    "next_runs",
    "optimal_allocation",
    "predict",
    "predict_loss",
    "profile",
    "read_table",
    "save_figures",
    "two_step",
]


def save_figures(found: Fit, folder, formats=("png", "svg")):
    """Draws every figure of a fit into a folder; returns the paths."""
    from lmjax.scaling import plots

    return plots.plot_all(None, {}, found, folder, formats)

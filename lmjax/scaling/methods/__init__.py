"""Analyses other than the fit of a law: compute-optimal sizes, task metrics, hyper-parameters and training curves.

    isoflop, frontier     N*(C) and D*(C) from runs of equal compute, or from training curves
    two_step              task metric from compute, through the task's loss
    tuning_law            optimal learning rate and batch size as power laws in N and D
    critical_batch        critical batch size B_crit(L), from steps against batch size at equal loss
    fit_annealing         loss curves under any learning-rate schedule
    collapse              training curves of several sizes, normalised by their end points
    consistency           test of measured exponents against the quantization model

Each returns a result with `status`, `reasons`, `warnings`, `summary()`, `to_dict()` and, where it predicts, `predict`.
The functions in run_tables build the input tables from run directories.
"""

from lmjax.scaling.methods.annealing import Curve, fit_annealing
from lmjax.scaling.methods.collapse import collapse
from lmjax.scaling.methods.critical_batch import critical_batch
from lmjax.scaling.methods.frontier import frontier
from lmjax.scaling.methods.isoflop import isoflop
from lmjax.scaling.methods.quantization import consistency, exponents
from lmjax.scaling.methods.run_tables import annealing_curves, batch_table, task_table, training_curves, tuning_table
from lmjax.scaling.methods.tuning import tuning_law
from lmjax.scaling.methods.two_step import two_step

__all__ = [
    "Curve",
    "annealing_curves",
    "batch_table",
    "collapse",
    "consistency",
    "critical_batch",
    "exponents",
    "fit_annealing",
    "frontier",
    "isoflop",
    "task_table",
    "training_curves",
    "tuning_law",
    "tuning_table",
    "two_step",
]

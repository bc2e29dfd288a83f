"""The decoders of experiments/chinchilla, trained as in Kaplan et al. 2020: how does the exponent of N* ~ C^a move?

Question: arXiv 2406.19146 goes from a = 0.84 (Kaplan's count and recipe) to 0.50 (Hoffmann's) step by step. Do models a
          thousand times smaller show the same steps?
Command:  lmjax sweep experiments/kaplan_vs_chinchilla/config.py:kaplan --no-analysis --workdir runs/kaplan
          lmjax sweep experiments/kaplan_vs_chinchilla/config.py:decayed --no-analysis --workdir runs/kaplan-decayed
          python experiments/kaplan_vs_chinchilla/collect.py runs
Time:     2.1 hours of wall time on one core
Results:  2026-11-23: a = 0.697, 0.625, 0.552 and 0.505 after the steps (published: 0.835, 0.706, 0.571, 0.497)

kaplan    one warm-up of 500 steps for every run, then a constant learning rate; the standard parametrization with one
          rate, which is the best at width 256 and too low for narrower models
decayed   the same rate and parametrization, with a warm-up of 5 % of the steps and a cosine to zero
chinchilla (not trained again) muP with a tuned rate: experiments/chinchilla

The three smaller budgets and all their widths. Kaplan's count leaves out the embeddings, and the FLOP of the head.
"""

from chinchilla import config as chinchilla

from lmjax.config import overlay
from lmjax.errors import InputError, nearest

RECIPES = {
    "kaplan": {"schedule.name": "constant", "schedule.warmup_steps": 500},
    "decayed": {},
}


def get_config(recipe: str = "kaplan"):
    """Returns the base config of a recipe."""
    if recipe not in RECIPES:
        raise InputError(f"unknown {recipe!r}{nearest(recipe, RECIPES)}")
    standard = {"parametrization.name": "standard", "parametrization.base_width": None, "run.name": recipe}
    return overlay(chinchilla.get_config(), standard | RECIPES[recipe])


def sweep(recipe: str = "kaplan"):
    """Returns the cells of the three smaller budgets."""
    del recipe
    budgets = sorted(chinchilla.WIDTHS)[:3]
    return [chinchilla.cell(budget, width) for budget in budgets for width in chinchilla.WIDTHS[budget]]

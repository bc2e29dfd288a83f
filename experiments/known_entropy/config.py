"""Decoders on a source of known entropy: does the interval of the fitted E hold the truth?

Question: the irreducible loss E of L = E + A N^-alpha + B D^-beta is an extrapolation to infinite N and D. On text its
          true value is unknown. Here it is known: how often does its 95 % interval hold it, and how large is the bias?
Command:  lmjax plan experiments/known_entropy/config.py
          lmjax sweep experiments/known_entropy/config.py --workdir runs/known_entropy
          python experiments/known_entropy/collect.py runs/known_entropy
          (config.py:tiny and runs/known_entropy-tiny: two small grids, for a first look)
Time:     about 30 minutes on two cores (6e13 FLOP; small models are bound by overhead, not FLOP)
Results:  README.md. The smallest models scatter 40 times more than the largest: with equal weights the interval of E
          reaches 0; with weights from the scatter of seeds it is 0.03 nats wide and holds the truth for 12 of 12 seeds

The source is `markov1` (lmjax/data/synthetic.py): each letter depends on the one before it, so every prediction of a
row has all the context there is, and the floor is the entropy rate itself. A model of width d has logits of rank d;
the source's matrix has a spectrum that falls as a power, so the excess loss falls with d by a power as well, and the
cut at 192 letters is worth an estimated 0.001 nats (half the variance of a power law's directions beyond it).

Each seed is an independent repetition: another text, another validation split, another initialisation, the same grid
of sizes and tokens, one held-out run. The whole validation split is evaluated.
"""

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

WIDTHS = [4, 8, 16, 32]
TOKENS = [250_000, 1_000_000, 4_000_000]
HELD_OUT = {"model.d_model": 48, "duration.tokens": 6_000_000, "run.held_out": True}
SEEDS = {"full": range(12), "tiny": range(2)}
RATE = 2.0**-5  # at 250k tokens 2^-4 to 2^-6 are within 0.02 nats of each other at widths 4, 16 and 32, one seed
SHARE = {"full": 1.0, "tiny": 0.05}  # of the tokens
TEXT = 7_000_000  # tokens, of which 3 % are for validation


def get_config(variant: str = "full"):
    """Returns the base config of the full sweep or of the tiny one."""
    if variant not in SEEDS:
        raise InputError(f"unknown {variant!r}{nearest(variant, SEEDS)}; expected full or tiny")
    text = round(TEXT * SHARE[variant])
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 2,
            "model.num_heads": 2,
            "data.sources": (f"markov1:{text}",),
            "data.validation_fraction": 0.03,
            "data.seq_len": 64,
            "data.global_batch_size": 8,
            "evaluation.max_tokens": text,  # more than the validation split: all of it
            "evaluation.batch_size": 64,
            "schedule.final_fraction": 0.0,
            "parametrization.name": "mup",
            "parametrization.base_width": 32,
            "parametrization.base_head_dim": 16,
            "optimizer.learning_rate": RATE,
        },
    )


def sweep(variant: str = "full"):
    """Returns, for each seed, a cell for each size and token count, and the held-out cell."""
    cells = chain(product({"model.d_model": WIDTHS}, {"duration.tokens": TOKENS}), [HELD_OUT])
    return [
        {
            **cell,
            "duration.tokens": cell["duration.tokens"] * SHARE[variant],
            "train.seed": seed,
            "data.seed": seed,
        }
        for cell in cells
        for seed in SEEDS[variant]
    ]

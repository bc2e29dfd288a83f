"""Decoders on 1 to 16 epochs of a fixed part of English text, beside decoders on as many fresh bytes.

Question: how much is a repeated byte worth? Muennighoff et al. 2023 (arXiv 2305.16264) find that up to 4 epochs are
          nearly as good as fresh data (0.5 % higher loss at 4 epochs), and a half-life R_D* of about 15 repeats.
Command:  lmjax sweep experiments/repeated_data/config.py --no-analysis --workdir runs/repeated_data
          python experiments/repeated_data/collect.py runs/repeated_data   (fits, and predicts the held-out run)
          lmjax sweep experiments/repeated_data/config.py:held_out --no-analysis --workdir runs/repeated_data-held_out
          python experiments/repeated_data/collect.py runs/repeated_data   (adds the held-out run)
          (config.py:tiny and runs/repeated_data-tiny: two sizes on a fiftieth of the bytes, for a first look)
Time:     about 30 minutes on two idle cores (1.7e14 FLOP), and 4 minutes for the held-out run (1.9e13 FLOP)
Results:  the README beside this file

Every run completes its own cosine schedule to zero. Its unique bytes are those of whole documents, spread over `en`;
fewer are part of more; a run of one epoch on D bytes is the fresh run of D. The validation documents are the same for
all. Rate, batch and shape are those of experiments/chinchilla, where the rate is best at 4e12 FLOP.

Predicted before training, if the published R_D* = 15.4 holds: 4 epochs are worth 3.7 times their bytes, 16 epochs 10.6
times; where doubling D lowers the loss by 4 %, that is 0.4 % and 2.4 % above fresh data, and more where N is above the
optimal size of the unique bytes, as excess parameters are discounted too.

Verdict rules, fixed before training:
  4 epochs  mean over the cells of 10 to 100 bytes per parameter of loss / loss of the fresh run of the same size and
            bytes - 1, with the 95 % interval of Student's t over cells: reproduced below 1 %, not reproduced above
            1 %, else cannot be decided. 1 % is twice the published difference.
  R_D*      of the data-constrained law over all runs, alpha = beta as in the paper: reproduced if its 95 % interval
            holds 15.4, not reproduced if not, cannot be decided if its ends differ by more than a factor 10, or if the
            law is refused.
"""

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain

BATCH = 16 * 64  # bytes of a step
SHARE = {"": 1.0, "tiny": 0.02, "held_out": 1.0}  # of the bytes
WIDTHS = (32, 64, 96)
FRESH = [50 * 2**i for i in range(9)]  # steps of one epoch: 51 kB to 13 MB
UNIQUE = (50, 200, 800)  # steps of an epoch that is repeated: 51 kB, 205 kB, 819 kB
EPOCHS = (2, 4, 8, 16)
SEEDS, MOST = (1, 2), 3200  # of the smallest width, besides 0, for the noise: runs of up to so many steps
HELD_OUT = {"width": 128, "unique": 800, "epochs": 8}


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in SHARE:
        raise InputError(f"unknown {variant!r}{nearest(variant, SHARE)}; expected tiny, held_out or nothing")
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 2,
            "model.head_dim": 16,
            "parametrization.name": "mup",
            "parametrization.base_width": 256,
            "optimizer.learning_rate": 2.0**-9,
            "schedule.final_fraction": 0.0,
            "data.sources": ("en",),
            "data.seq_len": 64,
            "data.global_batch_size": 16,
            "data.max_epochs": float(max(EPOCHS)),
            "evaluation.batch_size": 64,
            "metrics.every_steps": 50,
            "duration.tokens": BATCH,
            "run.name": "repeated",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each size and number of bytes, fresh or repeated, and seeds of the smallest size."""
    if variant == "held_out":
        return [{**cell(**HELD_OUT), "run.held_out": True}]
    runs = [(steps, 1) for steps in FRESH] + [(steps, epochs) for steps in UNIQUE for epochs in EPOCHS]
    runs = [(max(1, round(SHARE[variant] * steps)), epochs) for steps, epochs in runs]
    if variant == "tiny":
        return [cell(width, *run) for width in WIDTHS[:2] for run in runs]
    short = [(unique, epochs) for unique, epochs in runs if unique * epochs <= MOST]
    grid = [cell(width, *run) for width in WIDTHS for run in runs]
    return chain(grid, [cell(min(WIDTHS), *run, seed) for run in short for seed in SEEDS])


def cell(width: int, unique: int, epochs: int, seed: int = 0) -> dict:
    """Returns the overrides of a run on so many epochs of `unique` steps."""
    return {
        "model.d_model": width,
        "model.num_heads": width // 16,
        "data.unique_tokens": unique * BATCH + 1,  # windows overlap by a byte
        "duration.tokens": unique * BATCH * epochs,
        "train.seed": seed,
        "data.seed": seed,
    }

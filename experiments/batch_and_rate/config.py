"""Learning rate and batch size of decoders at three sizes and three token counts, under the standard parametrization.

Question: how do the best rate and batch move with N and D (Step Law, arXiv 2503.04715: rate ~ N^-0.713 D^0.307, batch
          ~ D^0.571), and does the critical batch grow with D and not with N (Zhang et al., arXiv 2410.21676), where
          steps follow S_min (1 + B_crit / B) (McCandlish et al., arXiv 1812.06162)?
Command:  lmjax sweep experiments/batch_and_rate/config.py --no-analysis --workdir runs/batch_and_rate
          python experiments/batch_and_rate/collect.py runs/batch_and_rate
          (config.py:tiny and runs/batch_and_rate-tiny: a fiftieth of the bytes at the smallest size, for a first look)
Time:     about 45 minutes on two cores (1.4e14 FLOP)
Results:  README.md of this folder.

Parametrization: standard, one rate for all parameters, constant beta2 = 0.99, weight decay 0.1 times the rate, 5 %
warm-up, cosine to zero at the end of each run: no run is read before its end. Batches are in bytes per step, of rows of
64 bytes. At each N, D and batch, four rates a factor 2 apart around `centre`. Every batch has MIN_STEPS steps or more.

Verdict rules, fixed before training:
  rate and batch  exponents of lmjax.scaling.methods.tuning_law: reproduced if the 95 % interval holds the published
                  exponent, not reproduced if not, cannot be decided if the interval is wider than 0.6 or the law is
                  refused. N is all parameters but the table, as in Step Law.
  critical batch  at each N, the bytes that reach a loss, by interpolation between runs of three lengths at the best
                  rate of each batch; the batch that needs 20 % more bytes than the least (Zhang's definition),
                  regressed on N and on D, the least bytes. Reproduced if the exponent of D is above 0
                  with its 95 % interval, and that of N holds 0 or is less than half of that of D; not reproduced if the
                  exponent of D is below 0, or that of N above that of D with intervals apart; else cannot be decided.
  1 + B_crit / B  share of (N, loss) curves of `critical_batch` whose residuals are below 10 % (standard deviation of ln
                  steps; the interpolation alone makes 5 %): reproduced if at least 80 %, cannot be decided with fewer
                  than 4 curves.
Changed after training: the least bytes of a critical batch are over the batches that all curves have. The smallest
batch needed the fewest bytes in all nine, and that was 256 in the three longest, which have no batch of 128, and 128 in
the others. Relative to these, the verdict was "reproduced" with an exponent of D of 0.57 [0.24, 0.91], though curves
that are equal at all D would give 0.2.
"""

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest

SEQ_LEN = 64
WIDTHS = (16, 32, 64)
TOKENS = (204_800, 819_200, 3_276_800)
BATCHES = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)  # bytes of a step
MIN_STEPS, MOST_STEPS = 50, 13_000
OCTAVES = (-1.5, -0.5, 0.5, 1.5)  # of the rates around the centre
TINY = 50


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in ("", "tiny"):
        raise InputError(f"unknown {variant!r}{nearest(variant, ['tiny'])}; expected tiny or nothing")
    return overlay(
        decoder.get_config(),
        {
            "model.num_layers": 2,
            "model.head_dim": 16,
            "schedule.final_fraction": 0.0,
            "data.sources": ("en",),
            "data.seq_len": SEQ_LEN,
            "evaluation.batch_size": 64,
            "metrics.every_steps": 50,
            "duration.tokens": max(TOKENS),
            "run.name": "batch",
        },
    )


def sweep(variant: str = ""):
    """Returns a cell for each size, token count, batch and rate."""
    cells = [
        cell(width, tokens, batch, octave)
        for width in WIDTHS
        for tokens in TOKENS
        for batch in BATCHES
        if MIN_STEPS <= tokens / batch <= MOST_STEPS
        for octave in OCTAVES
    ]
    if variant == "tiny":
        small = [cell for cell in cells if cell["model.d_model"] == min(WIDTHS)]
        return [{**cell, "duration.tokens": cell["duration.tokens"] // TINY} for cell in small]
    return cells


def cell(width: int, tokens: int, batch: int, octave: float) -> dict:
    """Returns the overrides of a run."""
    return {
        "model.d_model": width,
        "model.num_heads": width // 16,
        "data.global_batch_size": batch // SEQ_LEN,
        "duration.tokens": tokens,
        "optimizer.learning_rate": centre(width, batch) * 2.0**octave,
    }


def centre(width: int, batch: int) -> float:
    """2^-5.5 at width 32 and 1,024 bytes a step, times (32 / width)^1.25 (batch / 1024)^0.25.

    Measured with one seed, losses at rates a factor 2 apart: width 16, 205 kB, 256 bytes a step, from 2^-9: 2.791,
    2.620, 2.509, 2.426, 2.421, 2.410, 2.550; width 16, 819 kB, 4,096 bytes, from 2^-7: 2.816, 2.605, 2.485, 2.455,
    2.487, 2.467, 2.972; width 64, 205 kB, 1,024 bytes, from 2^-10: 2.837, 2.585, 2.430, 2.378, 2.482, 2.532, 3.009.
    """
    return 2.0**-5.5 * (32 / width) ** 1.25 * (batch / 1024) ** 0.25

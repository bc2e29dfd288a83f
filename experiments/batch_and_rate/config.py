"""Learning rate and batch size of decoders at three sizes and three token counts, under the standard parametrization.

Question: how do the best rate and batch move with N and D (Step Law, arXiv 2503.04715: rate ~ N^-0.713 D^0.307, batch
          ~ D^0.571), and does the critical batch grow with D and not with N (Zhang et al., arXiv 2410.21676), where
          steps follow S_min (1 + B_crit / B) (McCandlish et al., arXiv 1812.06162)?
Command:  lmjax sweep experiments/batch_and_rate/config.py --no-analysis --workdir runs/batch_and_rate
          python experiments/batch_and_rate/collect.py runs/batch_and_rate
          (config.py:pilot and runs/batch_and_rate-pilot: the rates of a few cells, from which CENTRE was chosen)
Time:     about 30 minutes on two idle cores (1.4e14 FLOP)
Results:  not run yet

Parametrization: standard, one rate for all parameters, constant beta2 = 0.99, weight decay 0.1 times the rate, 5 %
warm-up, cosine to zero at the end of each run: no run is read before its end. Batches are in bytes per step, of rows of
64 bytes. At each N, D and batch, four rates a factor 2 apart around CENTRE, which moves with the batch by a power of
1/2. Every batch has at least MIN_STEPS steps.

Verdict rules, fixed before training:
  rate and batch  exponents of lmjax.scaling.methods.tuning_law: reproduced if the 95 % interval holds the published
                  exponent, not reproduced if not, cannot be decided if the interval is wider than 0.6 or the law is
                  refused. N is all parameters but the table, as in Step Law.
  critical batch  at each N, the bytes that reach a loss, by interpolation between runs of three lengths at the best
                  rate of each batch; the batch that needs 20 % more bytes than the least (Zhang's definition),
                  regressed on N and on D, the bytes at the smallest batch. Reproduced if the exponent of D is above 0
                  with its 95 % interval, and that of N holds 0 or is less than half of that of D; not reproduced if the
                  exponent of D is below 0, or that of N above that of D with intervals apart; else cannot be decided.
  1 + B_crit / B  share of (N, loss) curves of `critical_batch` whose residuals are below 5 % (standard deviation of ln
                  steps): reproduced if at least 80 %, cannot be decided with fewer than 4 curves.
"""

from configs import decoder
from lmjax.config import overlay
from lmjax.errors import InputError, nearest

SEQ_LEN = 64
WIDTHS = (16, 32, 64)
TOKENS = (204_800, 819_200, 3_276_800)
BATCHES = (256, 512, 1024, 2048, 4096, 8192, 16384)  # bytes of a step
MIN_STEPS = 50
CENTRE = 2.0**-6  # rate at width 32 and 1,024 bytes a step
RATES = (-2, -1, 0, 1)  # octaves around it
VARIANTS = ("", "pilot")


def get_config(variant: str = ""):
    """Returns the base config."""
    if variant not in VARIANTS:
        raise InputError(f"unknown {variant!r}{nearest(variant, VARIANTS)}; expected pilot or nothing")
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
    if variant == "pilot":
        narrow = [cell(16, TOKENS[0], batch, x) for batch in (256, 2048) for x in range(-3, 4)]
        narrow += [cell(16, TOKENS[1], 4096, x) for x in range(-3, 4)]
        return narrow + [cell(64, TOKENS[0], 1024, x) for x in range(-3, 4)]
    return [
        cell(width, tokens, batch, x)
        for width in WIDTHS
        for tokens in TOKENS
        for batch in BATCHES
        if tokens >= MIN_STEPS * batch
        for x in RATES
    ]


def cell(width: int, tokens: int, batch: int, octave: float) -> dict:
    """Returns the overrides of a run; `octave`: log2 of its rate over CENTRE times (32 / width) sqrt(batch / 1024)."""
    return {
        "model.d_model": width,
        "model.num_heads": width // 16,
        "data.global_batch_size": batch // SEQ_LEN,
        "duration.tokens": tokens,
        "optimizer.learning_rate": CENTRE * (32 / width) * (batch / 1024) ** 0.5 * 2.0**octave,
    }

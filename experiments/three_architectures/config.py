"""The isoFLOP grid of experiments/chinchilla for encoders (masked bytes) and encoder-decoders (span corruption).

Question: do the three architectures split compute alike between parameters and tokens, and which one predicts the same
          held-out bytes best?
Command:  lmjax sweep experiments/three_architectures/config.py:encoder --workdir runs/three-encoder
          lmjax sweep experiments/three_architectures/config.py:encoder_decoder --workdir runs/three-encoder_decoder
          and the same with FAMILY-rates and --no-analysis: one cell at five learning rates
Time:     0.9 core-hours for the encoders, 1.3 for the encoder-decoders; about 0.4 for each held-out run
Results:  2026-11-22: a of N* ~ C^a by the law 0.300 (0.225 to 0.400) for encoders and 0.396 (0.307 to 0.508) for
          encoder-decoders; both held-out runs inside the intervals predicted for them (errors +2.4 % and +4.7 %);
          rates at 4e12 FLOP and width 64: encoder 1.5070 nats at 2^-9, 1.5277 at 2^-10 and 1.5436 at 2^-8;
          encoder-decoder 1.0151 at 2^-11, 1.0527 at 2^-10 and 1.0696 at 2^-12. README.md has the rest.

The budgets are the three smaller ones of the decoders, in exact FLOP, and a fourth is held out. Rows and corruption are
those of configs/quickstart.py, and the number of rows makes a step of 1,024 bytes of text. An encoder-decoder of the
same width has more than twice the parameters, so its widths are smaller. The narrowest encoders are wider than the
decoders', because narrower ones did not leave the plateau at the bigram loss in experiments/quickstart.
"""

from chinchilla import config as decoders

from configs import quickstart
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

FAMILIES = ("encoder", "encoder_decoder")
WIDTHS = {  # FLOP: widths
    "encoder": {
        1e12: (32, 48, 64, 80, 96, 112),
        4e12: (32, 48, 64, 80, 112, 144),
        1.6e13: (48, 64, 96, 128, 160, 208),
    },
    "encoder_decoder": {
        1e12: (16, 32, 48, 64, 80, 96),
        4e12: (32, 48, 64, 80, 96, 112),
        1.6e13: (48, 64, 80, 96, 128, 160),
    },
}
HELD_OUT = {"encoder": (6.4e13, 160), "encoder_decoder": (6.4e13, 112)}  # FLOP, width
ROWS = {"encoder": 32, "encoder_decoder": 64}
RATES = {  # of one cell, for RATE, the best of them
    "encoder": [2.0**-x for x in range(7, 12)],
    "encoder_decoder": [2.0**-x for x in range(8, 13)],
}
RATE = {"encoder": 2.0**-9, "encoder_decoder": 2.0**-11}


def get_config(argument: str = "encoder"):
    """Returns the base config of a family."""
    family = argument.removesuffix("-rates")
    if family not in FAMILIES:
        raise InputError(f"unknown {argument!r}{nearest(argument, [*FAMILIES, *(f'{f}-rates' for f in FAMILIES)])}")
    same = ("model.head_dim", "data.sources", "metrics.every_steps", "duration.tokens", "duration.flops")
    shared = decoders.get_config().to_dict()
    return overlay(
        quickstart.get_config(family),
        {
            **{key: shared[key.split(".")[0]][key.split(".")[1]] for key in same},
            "data.global_batch_size": ROWS[family],
            "optimizer.learning_rate": RATE[family],
            "run.name": f"three-{family.replace('_', '-')}",
        },
    )


def sweep(argument: str = "encoder"):
    """Returns the cells of the grid, its extra seeds and the held-out cell; or those of the learning rates."""
    family = argument.removesuffix("-rates")
    if family != argument:
        return product([decoders.cell(4e12, 64)], {"optimizer.learning_rate": RATES[family]})
    widths = WIDTHS[family]
    grid = [decoders.cell(budget, width) for budget, several in widths.items() for width in several]
    smallest = min(widths)
    repeats = product([decoders.cell(smallest, width) for width in widths[smallest]], {"train.seed": decoders.SEEDS})
    return chain(grid, repeats, [{**decoders.cell(*HELD_OUT[family]), "run.held_out": True}])

"""Does the best learning rate of a narrow model hold for a wide one? Standard parametrization beside muP.

Question: over widths 32 to 256, how far does the best learning rate move, and what does the rate tuned at width 32 cost
          at width 256?
Command:  lmjax sweep experiments/mup/config.py --no-analysis --workdir runs/mup      (decoder)
          lmjax sweep experiments/mup/config.py:encoder --no-analysis --workdir runs/mup-encoder
          lmjax sweep experiments/mup/config.py:encoder_decoder --no-analysis --workdir runs/mup-encoder_decoder
          python experiments/mup/collect.py runs      (optima, drift, regret, the figure and the page in this folder)
Results:  none yet; collect.py writes them into this folder.

All models have two layers and heads of width 16; width adds heads. All see the same 0.5M bytes in the same order, with
independent weight decay 0.1 and their own cosine schedule to zero. Rows are those of configs/quickstart.py, on which
every family leaves the unigram early. At width 32 both parametrizations are the same model, which is trained once.
"""

from configs import quickstart
from lmjax.config import overlay
from lmjax.sweeps.combinators import chain, product

BASE, WIDTHS = 32, (32, 64, 128, 256)
SEEDS = (0, 1)
TOKENS = 500_000
ROWS = {"decoder": 16, "encoder": 32, "encoder_decoder": 32}  # 1,024 tokens a step (encoder-decoder: 512 of each side)
EXPONENTS = {  # learning rate 2^-x; the optimum of "standard" is expected to fall as 1 / width
    "standard": {32: range(4, 9), 64: range(4, 10), 128: range(5, 11), 256: range(6, 12)},
    "mup": {64: range(4, 9), 128: range(4, 9), 256: range(4, 9)},
}


def get_config(family: str = "decoder"):
    """Returns the base config of a family."""
    return overlay(
        quickstart.get_config(family),
        {
            "model.head_dim": 16,
            "data.global_batch_size": ROWS[family],
            "duration.tokens": TOKENS,
            "run.name": f"mup-{family.replace('_', '-')}",
            "run.learning_rate_rule": "grid of powers of 2",
        },
    )


def sweep(family: str = "decoder"):
    """Returns a cell for each parametrization, width, learning rate and seed."""
    del family
    cells = []
    for name, exponents in EXPONENTS.items():
        base = {"parametrization.name": name, "parametrization.base_width": BASE if name == "mup" else None}
        for width, xs in exponents.items():
            shape = {"model.d_model": width, "model.num_heads": width // 16}
            cells = chain(cells, product([base | shape], {"optimizer.learning_rate": [2.0**-x for x in xs]}))
    return product(cells, {"train.seed": SEEDS})

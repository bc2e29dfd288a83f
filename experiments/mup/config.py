"""Does the best learning rate of a narrow model hold for a wide one? Standard parametrization beside muP.

Question: over widths 32 to 256, how far does the best learning rate move, and what does the rate tuned at width 32 cost
          at width 256?
Command:  for each FAMILY of decoder, encoder, encoder_decoder:
          lmjax sweep experiments/mup/config.py:FAMILY --no-analysis --workdir runs/mup/FAMILY
          lmjax sweep experiments/mup/config.py:FAMILY-bases --no-analysis --workdir runs/mup/FAMILY-bases
          and for each PART of wide, changes, depth:
          lmjax sweep experiments/mup/config.py:decoder-PART --no-analysis --workdir runs/mup/decoder-PART
          python experiments/mup/collect.py runs/mup     (optima, drift, regret, the figure and the page in this folder)
Time:     about 4.2 hours on one core
Results:  README.md

All models have two layers and heads of width 16; width adds heads. All see the same 0.5M bytes in the same order, with
independent weight decay 0.1 and their own cosine schedule to zero. Rows are those of configs/quickstart.py, on which
every family leaves the unigram early.

bases     The base width fixes two constants that hold at every width: the learning rate of the token table divided by
          that of the hidden matrices, and the factor of the logits. It is chosen at width 32 and then used at all.
          At that width both parametrizations are the same model, which is trained once. The first runs had base 32,
          with which a decoder of width 256 was worse than under the standard parametrization (wide).
wide      Other base widths at width 256, one seed: what an ill-chosen one costs.
changes   Widths 32 and 128 with one thing changed each: what breaks the transfer of the learning rate, what does not.
depth     2 to 16 layers at width 64: muP, which does not follow depth, beside CompleteP.
"""

import math

from configs import quickstart
from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import chain, product

BASE, BASES, WIDTHS = 256, (32, 64, 128, 256, 512), (32, 64, 128, 256)
SEEDS = (0, 1)
TOKENS = 500_000
ROWS = {"decoder": 16, "encoder": 32, "encoder_decoder": 32}  # 1,024 tokens a step (encoder-decoder: 512 of each side)
RATES = 5  # learning rates 2^-x, x = first, first + 1, ...
FIRST = {  # "standard" is expected to fall as 1 / width
    "decoder": {"standard": (4, 5, 6, 7), "mup": 7},
    "encoder": {"standard": (4, 5, 7, 8), "mup": 8},
    "encoder_decoder": {"standard": (6, 7, 8, 9), "mup": 9},
}
PARTS = ("", "bases", "wide", "changes", "depth")
WIDE = {32: (4, 5, 6, 7), 64: (6, 7), 128: (7, 8)}  # base width: x of the learning rates, at width 256
CHANGES = {  # name: (overrides, first x)
    "gains off": ({"model.norm_scale": False}, 7),
    "coupled decay": ({"parametrization.decay": "coupled"}, 7),
    "decay 0.5": ({"optimizer.weight_decay": 0.5}, 7),
    "decay 0.5, coupled": ({"optimizer.weight_decay": 0.5, "parametrization.decay": "coupled"}, 7),
    "2 heads, logits q k / head_dim": ({"model.num_heads": 2, "parametrization.base_head_dim": 128}, 7),
    "2 heads, logits q k / sqrt(head_dim)": ({"model.num_heads": 2}, 7),
    "lion": ({"optimizer.name": "lion"}, 9),
    "adafactor": ({"optimizer.name": "adafactor"}, 7),
    "muon": ({"optimizer.name": "muon"}, 4),  # first 6: the best rate of width 32 was at the edge
}
LAYERS = (2, 4, 8, 16)


def _parts(argument):
    family, _, part = argument.partition("-")
    if family not in ROWS or part not in PARTS:
        known = [f"{f}-{p}" if p else f for f in ROWS for p in PARTS]
        raise InputError(f"unknown {argument!r}{nearest(argument, known)}")
    return family, part


def get_config(argument: str = "decoder"):
    """Returns the base config of a family."""
    family, _ = _parts(argument)
    return overlay(
        quickstart.get_config(family),
        {
            "model.head_dim": 16,
            "data.global_batch_size": ROWS[family],
            "duration.tokens": TOKENS,
            "run.name": f"mup-{family.replace('_', '-')}",
            "parametrization.name": "standard",
            "parametrization.base_width": None,
            "run.learning_rate_rule": "grid of powers of 2",
        },
    )


def sweep(argument: str = "decoder"):
    """Returns a cell for each parametrization, width, learning rate and seed; or the cells of a part."""
    family, part = _parts(argument)
    cells = []
    if part == "bases":
        for base in BASES:
            cells = chain(cells, _rates(_mup(base), 32, FIRST[family]["mup"] + int(math.log2(base / BASE))))
        return cells
    if part == "wide":
        for base, xs in WIDE.items():
            rates = {"optimizer.learning_rate": [2.0**-x for x in xs]}
            cells = chain(cells, product([_mup(base) | {"model.d_model": 256, "model.num_heads": 16}], rates))
        return cells
    if part == "changes":
        for change, first in CHANGES.values():
            for width in (32, 128):
                heads = {"model.head_dim": width // 2} if "model.num_heads" in change else {}
                cells = chain(cells, _rates(_mup(BASE) | change | heads, width, first))
        return cells
    if part == "depth":
        for layers in LAYERS:
            for name, base_layers in (("mup", None), ("completep", 2)):
                deep = {"model.num_layers": layers, "parametrization.base_layers": base_layers}
                if layers > 2 or name == "mup":  # at two layers both are the same model
                    cells = chain(cells, _rates(_mup(BASE, name) | deep, 64, FIRST[family]["mup"]))
        return cells
    for width, first in zip(WIDTHS, FIRST[family]["standard"], strict=True):
        cells = chain(cells, _rates({}, width, first))
    for width in WIDTHS[:-1]:
        cells = chain(cells, _rates(_mup(BASE), width, FIRST[family]["mup"]))
    return product(cells, {"train.seed": SEEDS})


def _mup(base, name="mup"):
    return {"parametrization.name": name, "parametrization.base_width": base}


def _rates(overrides, width, first):
    shape = {"model.d_model": width, "model.num_heads": width // 16}
    rates = [2.0**-x for x in range(first, first + RATES)]
    return product([shape | overrides], {"optimizer.learning_rate": rates})

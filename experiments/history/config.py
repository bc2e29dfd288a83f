"""One ladder for each family of language models on English bytes: n-gram, feed-forward, Elman, GRU, LSTM, decoder.

Question: how does the loss fall with parameters, tokens and compute for the models that Transformers replaced, and
          where do Transformers overtake them?
Command:  for family in ngram feed_forward elman gru lstm decoder; do
              lmjax sweep experiments/history/config.py:$family --workdir runs/history/$family
          done
          lmjax sweep experiments/history/config.py:lstm-rates --no-analysis --workdir runs/history/lstm-rates
          python experiments/history/collect.py runs/history       (records, laws, figure and page in this folder)
Time:     about 2.5 core-hours for all (estimated from the speed of single steps)
Results:  the learning rates; the ladders are not trained yet.

Every family has the same rows of 64 bytes, validation documents, tokens, optimizer and schedule, and sizes near 35k,
80k, 240k and 650k parameters. No model sees beyond its row. The largest cell of each trained family is held out: the
law of the other fifteen predicts it. One learning rate serves all widths, under muP with the second width as base
(decoder: the rate and base of experiments/chinchilla); FAMILY-rates trains that width at five rates.
"""

from chinchilla import config as decoders

from lmjax.config import overlay
from lmjax.errors import InputError, nearest
from lmjax.sweeps.combinators import product

TOKENS = (250_000, 750_000, 2_000_000, 6_000_000)
WIDTHS = {
    "feed_forward": (16, 24, 48, 88),
    "elman": (64, 112, 208, 384),
    "gru": (40, 72, 128, 224),
    "lstm": (36, 64, 112, 192),
    "decoder": (32, 48, 96, 160),
}
RATE = {  # the best of FAMILY-rates; in brackets the losses at half, once and twice the rate
    "feed_forward": 2.0**-7,  # [2.0975, 2.0682, 2.1127]
    "elman": 2.0**-7,  # [1.8501, 1.8256, 1.8263]
    "gru": 2.0**-7,  # [1.8192, 1.7472, 1.7716]
    "lstm": 2.0**-6,  # [1.9716, 1.9584, 1.9695]
    "decoder": decoders.RATE,
}
MODEL = {  # besides the keys of experiments/chinchilla
    "ngram": {"model.family": "ngram", "parametrization.name": "standard"},
    "feed_forward": {
        "model.family": "feed_forward",
        "model.options.window": 16,
        "model.num_layers": 1,
        "model.tie_embeddings": False,
        "model.head_bias": True,
        "model.use_bias": True,
        "model.logit_scale": 8.0,  # see configs/rnn.py
    },
    **{
        cell: {
            "model.family": "rnn",
            "model.options.cell": cell,
            "model.head_bias": True,
            "model.logit_scale": 8.0,
        }
        for cell in ("elman", "gru", "lstm")
    },
    "decoder": {},
}


def get_config(argument: str = "lstm"):
    """Returns the base config of a family."""
    family = argument.removesuffix("-rates")
    if family not in MODEL or argument == "ngram-rates":
        raise InputError(f"unknown {argument!r}{nearest(argument, [*MODEL, *(f'{name}-rates' for name in WIDTHS)])}")
    values = {**MODEL[family], "duration.flops": None, "duration.tokens": TOKENS[0], "run.name": f"history-{family}"}
    if family in WIDTHS:
        values |= {"model.d_model": WIDTHS[family][1], "optimizer.learning_rate": RATE[family]}
    if family in WIDTHS and family != "decoder":
        values |= {"model.position": "none", "parametrization.base_width": WIDTHS[family][1]}
    return overlay(decoders.get_config(), values)


def sweep(argument: str = "lstm"):
    """Returns the cells of a family; or those of the learning rates."""
    family = argument.removesuffix("-rates")
    if family == "ngram":
        return product({"model.ngram_order": range(1, 7)}, {"duration.tokens": TOKENS})
    if family != argument:
        rates = [RATE[family] * 2.0**x for x in (-2, -1, 0, 1, 2)]
        return product({"duration.tokens": TOKENS[1:2]}, {"optimizer.learning_rate": rates})
    cells = product([size(family, width) for width in WIDTHS[family]], {"duration.tokens": TOKENS})
    return [*cells[:-1], {**cells[-1], "run.held_out": True}]


def size(family: str, width: int) -> dict:
    """Returns the overrides of a width."""
    return {"model.d_model": width, **({"model.num_heads": width // 16} if family == "decoder" else {})}

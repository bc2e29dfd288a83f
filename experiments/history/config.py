"""One ladder for each family of language models on English bytes: n-gram, feed-forward, Elman, GRU, LSTM, decoder.

Question: how does the loss fall with parameters, tokens and compute for the models that Transformers replaced, and
          at what scale do decoders overtake them?
Command:  for family in ngram feed_forward elman gru lstm decoder; do
              lmjax sweep experiments/history/config.py:$family --workdir runs/history/$family
          done
          for family in feed_forward elman gru lstm; do
              lmjax sweep experiments/history/config.py:$family-rates --no-analysis --workdir runs/history/$family-rates
          done
          python experiments/history/collect.py runs/history       (records, laws, figure and page in this folder)
          (feed_forward and elman were trained with --no-analysis, so their held-out runs were predicted afterwards)
Time:     about 70 minutes on two cores
Results:  README.md of this folder.

Every family has the same rows of 64 bytes, validation documents, tokens, optimizer and schedule, and sizes near 35k,
80k, 240k and 650k parameters. No model sees beyond its row. The largest cell of each trained family is held out: the
law of the other fifteen predicts it. One learning rate serves all widths, under muP with the second width as base
(decoder: the rate and base of experiments/chinchilla). FAMILY-rates trains that width at five rates, each with four
factors on the logits, as nothing normalises the states before the logits. At first all families had a factor of 8. For
LSTMs, 32 has a loss lower by 0.17 nats at this width, so their ladder was stopped and started again with 32.
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
    "lstm": 2.0**-6,  # [1.8058, 1.7894, 1.8693]
    "decoder": decoders.RATE,
}
LOGIT_SCALE = {"feed_forward": 8.0, "elman": 8.0, "gru": 8.0, "lstm": 32.0}  # the best of FAMILY-rates
MODEL = {  # besides the keys of experiments/chinchilla
    "ngram": {"model.family": "ngram", "parametrization.name": "standard"},
    "feed_forward": {
        "model.family": "feed_forward",
        "model.options.window": 16,
        "model.num_layers": 1,
        "model.tie_embeddings": False,
        "model.head_bias": True,
        "model.use_bias": True,
        "model.logit_scale": LOGIT_SCALE["feed_forward"],
    },
    **{
        cell: {
            "model.family": "rnn",
            "model.options.cell": cell,
            "model.head_bias": True,
            "model.logit_scale": LOGIT_SCALE[cell],
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
        scales = {"model.logit_scale": (2.0, 8.0, 32.0, 128.0)} if family != "decoder" else {}
        return product({"duration.tokens": TOKENS[1:2]}, {"optimizer.learning_rate": rates}, scales)
    cells = product([size(family, width) for width in WIDTHS[family]], {"duration.tokens": TOKENS})
    return [*cells[:-1], {**cells[-1], "run.held_out": True}]


def size(family: str, width: int) -> dict:
    """Returns the overrides of a width."""
    return {"model.d_model": width, **({"model.num_heads": width // 16} if family == "decoder" else {})}

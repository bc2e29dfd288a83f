"""Finds the Hugging Face architecture that computes the same function as an lmjax model, rewriting weights if needed.

A rewrite changes one key of the model section together with the parameters, so that the function stays the same: a bias
that the model lacks becomes zeros, an attention scale moves into the query projection. A difference that no rewrite
removes is an obstacle and is named in the error.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from lmjax.errors import InputError
from lmjax.hf import options, weights
from lmjax.models.electra import generator_config
from lmjax.models.layers import EMBEDDING_STD, sinusoids

# The architecture with the fewest changes wins, the first at a tie. gpt_neox and llama are encoders if is_causal is
# false.
CANDIDATES = {
    "decoder": ("gpt2", "llama", "gpt_neox", "opt", "bloom", "qwen3", "gemma2", "mixtral"),
    "encoder": ("bert", "roberta", "distilbert", "albert", "electra", "llama", "gpt_neox"),
    "encoder_decoder": ("t5", "bart", "mbart"),
    "electra": ("electra",),  # its generator or its discriminator, each as an encoder: see `electra_part`
}
ELECTRA_PARTS = ("discriminator", "generator")
_ELECTRA_OPTIONS = "; train configs/preset.py:electra --config.model.family=electra --config.objective.name=electra"
IGNORED = ("dtype", "scan_layers", "remat", "dropout", "expert_capacity")  # not part of the function

Params = dict[str, np.ndarray]  # by path, as weights.flatten gives them


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A change of one key of a model section that keeps the function the model computes."""

    can: Callable[[Mapping, object], bool]  # (section, new value) -> whether the function can stay the same
    apply: Callable[[Mapping, Params, object], None]  # (section, parameters, new value); changes the parameters
    note: str  # what was changed, for the user


def _zeros(key):
    """Adds the parameters that the key introduces, as zeros, which keeps the function."""

    def apply(section, params, value):
        for path, shape in weights.shapes({**section, key: value}).items():
            params.setdefault(path, np.zeros(shape, np.float32))

    return apply


def _unit_gains(section, params, value):
    for path, shape in weights.shapes({**section, "norm_scale": True}).items():
        params.setdefault(path, np.full(shape, 1 - section["norm_offset"], np.float32))


def _move_gains(section, params, value):
    for path, array in params.items():
        if path.endswith("/scale"):
            params[path] = array + np.float32(section["norm_offset"] - value)


def _scale_branches(section, params, value):
    for path, array in params.items():
        if path.split("/")[-2] in ("out", "down"):
            params[path] = array * np.float32(section["branch_multiplier"])


def _scale_router(section, params, value):
    for path, array in params.items():
        if path.endswith("/router"):
            params[path] = array * np.float32(section["router_multiplier"])


def _tile_layers(section, params, value):
    for path, shape in weights.shapes({**section, "share_layers": False}).items():
        params[path] = np.broadcast_to(params[path], shape).copy()


def _repeat_heads(section, params, value):
    """Repeats key/value head g for each of the H / G query heads that it serves."""
    groups, width = section["num_kv_heads"], section["head_dim"]
    for path, array in params.items():
        if path.split("/")[-2] in ("key", "value"):
            heads = array.reshape(*array.shape[:-1], groups, width)
            params[path] = np.repeat(heads, value // groups, axis=-2).reshape(*array.shape[:-1], value * width)


def _scale_queries(section, params, value):
    usual = section["head_dim"] ** -0.5
    factor = np.float32((section["attention_scale"] or usual) / (value or usual))
    last = "query_norm" if section["qk_norm"] else "query"
    for path, array in params.items():
        if path.split("/")[-2] == last:
            params[path] = array * factor


def _untie(section, params, value):
    params.setdefault("embedding/head", params["embedding/embedding"].T.copy())


def _scale_head(section, params, value):
    params["embedding/head"] = params["embedding/head"] * np.float32(section["logit_scale"] / value)


def _linear_head(section):
    """Whether logits are linear in the final norm's output, so that a factor on a tied table can be undone there."""
    return section["head"] == "plain" and section["norm_position"] != "post"


def _scale_table(section, params, value):
    """Multiplies the token table; a tied output projection keeps its function through the final norm, or its values."""
    factor = np.float32(section["embedding_scale"] / value)
    if section["tie_embeddings"] and _linear_head(section):
        last = "encoder/stack" if section["family"] == "encoder" else "decoder"
        for path in [path for path in params if path.startswith((f"{last}/final_norm/", "stack/final_norm/"))]:
            offset = np.float32(section["norm_offset"] if path.endswith("/scale") else 0.0)
            params[path] = (params[path] + offset) / factor - offset
    elif section["tie_embeddings"]:
        _untie(section, params, False)
    params["embedding/embedding"] = params["embedding/embedding"] * factor


def _learn_positions(section, params, value):
    for path, shape in weights.shapes({**section, "position": "learned"}).items():
        if path.endswith("positions"):
            positions = jnp.arange(shape[0])[None]
            amplitude = EMBEDDING_STD * section["embedding_scale"] * 2**0.5
            waves = amplitude * np.asarray(sinusoids(positions, shape[1])[0])
            params[path] = waves if section["position"] == "sinusoidal" else np.zeros(shape, np.float32)


def _shift_positions(section, params, value):
    for path, array in params.items():
        if path.endswith("positions"):
            unused = np.zeros((value, array.shape[1]), np.float32)
            params[path] = np.concatenate([unused, array[section["position_offset"] :]])


# In the order in which they are applied.
REWRITES: dict[str, Rewrite] = {
    "norm_scale": Rewrite(lambda section, value: value, _unit_gains, "gains of norms that the run lacks are ones"),
    "branch_multiplier": Rewrite(
        lambda section, value: value is None and section["norm_position"] != "both",
        _scale_branches,
        "the factor on residual branches is multiplied into their output projections",
    ),
    "router_multiplier": Rewrite(
        lambda section, value: value is None, _scale_router, "the factor on the router's logits is multiplied into it"
    ),
    "share_layers": Rewrite(
        lambda section, value: not value, _tile_layers, "the shared layer is repeated at every depth"
    ),
    "num_kv_heads": Rewrite(
        lambda section, value: value == section["num_heads"],
        _repeat_heads,
        "key/value heads are repeated for the query heads they serve",
    ),
    "use_bias": Rewrite(lambda section, value: value, _zeros("use_bias"), "biases that the run lacks are zeros"),
    "head_bias": Rewrite(lambda section, value: value, _zeros("head_bias"), "the bias on the logits is zero"),
    "token_types": Rewrite(
        lambda section, value: not section["token_types"], _zeros("token_types"), "vectors of token types are zeros"
    ),
    "attention_scale": Rewrite(
        lambda section, value: section["norm_offset"] == 0 or not section["qk_norm"],
        _scale_queries,
        "the attention scale is multiplied into the query projection",
    ),
    "position": Rewrite(
        lambda section, value: value == "learned" and section["position"] in ("sinusoidal", "none"),
        _learn_positions,
        "positions are a table of model.max_len rows",
    ),
    # After "position", as sinusoids have the scale of the embeddings; before the tables are untied, so that they stay
    # equal: transformers ties T5 tables again that it loads or is asked to tie.
    "embedding_scale": Rewrite(
        lambda section, value: not section["tie_embeddings"] or _linear_head(section),
        _scale_table,
        "the factor on embeddings is multiplied into the token table (and divided out of the final norm if tied)",
    ),
    "norm_offset": Rewrite(lambda section, value: True, _move_gains, "gains of norms are stored less an offset"),
    "tie_embeddings": Rewrite(
        lambda section, value: not value, _untie, "the output projection is a copy of the token table"
    ),
    "logit_scale": Rewrite(
        lambda section, value: not section["tie_embeddings"],
        _scale_head,
        "the factor on the logits is multiplied into the output projection",
    ),
    "position_offset": Rewrite(
        lambda section, value: section["position"] == "learned",
        _shift_positions,
        "the table of positions begins with unused rows",
    ),
}
_ORDER = list(REWRITES)


def electra_part(part: str, model: ConfigDict, params: Params) -> tuple[dict, Params, str]:
    """Returns the encoder that is the discriminator or the generator of an ELECTRA run.

    lmjax's discriminator has a linear head with two logits. That of transformers is dense, activation, dense, with one
    logit. It computes their difference s with two hidden units, as f(s) - f(-s) = s for relu and both forms of gelu.
    lmjax's generator has a linear layer before and after its stack. Each adjoins another linear layer, the projection
    of the embeddings and the dense layer of the head, and becomes one with it.

    Args:
        part: one of ELECTRA_PARTS.
        model, params: the resolved model section of the run and its parameters.

    Returns:
        (canonical section of family encoder, its parameters, a sentence on what was rewritten).

    Raises:
        InputError: sizes that ElectraForMaskedLM cannot have.
    """
    found = {path: x for path, x in params.items() if path.startswith(("embedding/", "heads/"))}
    replaced = {name: found.pop(f"heads/replaced_{name}") for name in ("kernel", "bias")}
    if part == "discriminator":
        head = ("transform", "transform_norm", "head", "head_bias")
        found = {path: x for path, x in found.items() if path.split("/")[1] not in head}
        found |= {path: x for path, x in params.items() if path.startswith("encoder/")}
        signs, rest = np.float32([1, -1]), (0, model.d_model - 2)
        difference_D1 = np.diff(replaced["kernel"]) * np.float32(model.heads_multiplier or 1)
        found |= {
            "embedding/transform/kernel": np.pad(difference_D1 * signs, ((0, 0), rest)),
            "embedding/transform/bias": np.pad(np.diff(replaced["bias"]) * signs, rest),
            "embedding/discriminator/kernel": np.pad(signs, rest)[:, None],
            "embedding/discriminator/bias": np.zeros(1, np.float32),
        }
        section = {**model.to_dict(), "family": "encoder", "head": "discriminator", "head_bias": False}
        section |= {"tie_embeddings": False, "logit_scale": 1.0, "logit_multiplier": None, "logit_softcap": None}
        note = "the logit is the log odds that a token is replaced; two units of the head's dense layer compute it"
        return options.canonical(section), found, note
    small, table = generator_config(FrozenConfigDict(model)).to_dict(), model.embedding_dim or model.d_model
    width, heads, head_dim = small["d_model"], small["num_heads"], small["head_dim"]
    if width == table or width != heads * head_dim:
        raise InputError(
            "export: generator of ElectraForMaskedLM: expected a width of num_heads x head_dim, other than that of the "
            f"token table ({table}), got width {width} and {heads} x {head_dim}; export the discriminator, or train "
            "with another model.options.generator_fraction, model.num_heads or model.embedding_dim"
        )
    found |= {path.replace("generator", "encoder", 1): x for path, x in params.items() if path.startswith("generator/")}
    found |= _one_layer("embedding/projection", params, "embedding/projection", "generator_in")
    found |= _one_layer("embedding/transform", params, "generator_out", "embedding/transform")
    section = {**small, "family": "encoder", "embedding_dim": table}
    note = "linear layers before and after the generator's stack are multiplied into the projection and the head"
    return options.canonical(section), found, note


def _one_layer(name, params, *layers):
    """The parameters of the dense layer that computes those of `layers` that exist, one after the other."""
    first, *others = [layer for layer in layers if f"{layer}/kernel" in params]
    own = {part: f"{first}/{part}" for part in ("kernel", "bias")}
    found = {part: params[path].astype(np.float64) for part, path in own.items() if path in params}
    for layer in others:
        found = {part: x @ params[f"{layer}/kernel"] for part, x in found.items()}
        if "bias" in found:
            found["bias"] += params[f"{layer}/bias"]
    return {f"{name}/{part}": x.astype(np.float32) for part, x in found.items()}


def fit(
    section: Mapping, params: Params, pad: int | None = None, family: str | None = None
) -> tuple[str, dict, Params, list[str]]:
    """Finds the architecture and rewrites the parameters for it.

    Args:
        section, params: a canonical model section and its parameters.
        pad: padding id; RoBERTa counts positions from the next one.
        family: key of CANDIDATES; None: the family of the section.

    Returns:
        (model_type, its model section, its parameters, sentences on what was rewritten).

    Raises:
        InputError: no architecture fits; names the nearest one and the options that differ.

    Example: the default decoder (rotary, layer norm, no biases) -> "gpt_neox", with zero biases.
    """
    family = family or section["family"]
    if family == "xlnet":
        raise InputError(
            "export: expected scores (q + u) k + (q + v) W s(distance) with sinusoids s, as XLNetLMHeadModel has, got "
            f"model.position {section['position']!r}, which no weights of it compute (see docs/models.md); use the run "
            "in lmjax, or train model.family=encoder with objective.name=masked_lm"
        )
    if family not in CANDIDATES:
        raise InputError(
            f"export: no Hugging Face architecture is a model of family {family!r}; expected {' or '.join(CANDIDATES)}"
        )
    plans = [(name, *plan(name, section)) for name in CANDIDATES[family]]
    name, changes, obstacles = min(plans, key=lambda p: (len(p[2]), len(p[1])))
    if obstacles:
        stops = "; ".join(f"model.{key}: expected {value!r}, got {section[key]!r}" for key, value in obstacles.items())
        raise InputError(
            f"no Hugging Face architecture computes what this {family} computes; nearest is {name}: {stops}"
            f"{_ELECTRA_OPTIONS if family == 'electra' else ''}"
        )
    if name == "roberta" and pad is not None:
        changes["position_offset"] = pad + 1
    section, params, notes = dict(section), dict(params), []
    for key in sorted(changes, key=_ORDER.index):
        if changes[key] != section[key]:
            REWRITES[key].apply(section, params, changes[key])
            section[key] = changes[key]
            notes.append(REWRITES[key].note)
    shapes = {path: array.shape for path, array in params.items()}
    assert not differences(name, section) and shapes == weights.shapes(section), (name, section, shapes)
    return name, section, params, notes


def differences(name: str, section: Mapping) -> dict:
    """Returns {key: new value} of the keys that a round trip through the architecture's config.json changes."""
    there = options.interpret(options.write(name, section))
    return {key: value for key, value in there.items() if key not in IGNORED and value != section[key]}


def plan(name: str, section: Mapping) -> tuple[dict, dict]:
    """Returns ({key: value to rewrite it to}, {key: required value that no rewrite reaches}: the obstacles)."""
    changes: dict = {}
    for _ in range(2 * len(REWRITES)):
        attempt = {**section, **changes}
        left = differences(name, attempt)
        stuck = "logit_scale" in left or ("embedding_scale" in left and not _linear_head(attempt))
        if attempt["tie_embeddings"] and stuck:
            left["tie_embeddings"] = False  # a factor on one side of a tied table can move only if there are two
        can = [key for key in _ORDER if key in left and REWRITES[key].can(attempt, left[key])]
        if not can:
            break
        changes[can[0]] = left[can[0]]
    return changes, left

"""Configs: load a file, apply overrides, check every key. The keys are declared in lmjax/defaults.py."""

import ast
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import math
import pathlib
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lmjax import defaults, registry
from lmjax.errors import InputError, nearest

# Keys that do not change what a run computes (beyond float reassociation): left out of the run's hash.
OPERATIONAL = ("mesh", "checkpoint", "metrics", "launch", "run")
FILES = ("objective.file", "plugins", "init.from")  # paths on this machine


@dataclasses.dataclass(frozen=True)
class Check:
    """Allowed values of a key, as text and as a test; `kind` is the key's type where its default is None."""

    expected: str
    ok: Callable[[Any], bool] = lambda value: True
    kind: type = object


def _is_rules(rules):
    def is_axes(axes):
        axes = axes if isinstance(axes, tuple) else (axes,)
        return axes == (None,) or all(axis in defaults.AXES for axis in axes)

    return all(isinstance(r, tuple) and len(r) == 2 and isinstance(r[0], str) and is_axes(r[1]) for r in rules)


_CHOICES = {
    "model.position": "learned | sinusoidal | rotary | relative | alibi | none",
    "model.rotary_scaling": "none | linear | llama3 | yarn",
    "model.norm": "layernorm | rmsnorm",
    "model.norm_position": "pre | post | both",
    "model.activation": "gelu | gelu_exact | relu | swiglu | geglu",
    "model.head": "plain | transform | discriminator",
    "model.dtype": "float32 | bfloat16",
    "model.remat": "none | dots | full",
    "data.mode": "concat_and_split | pack | consecutive",
    "parametrization.decay": "independent | coupled",
    "init.what": "state | params",
    "schedule.decay_shape": "linear | 1-sqrt",
    "mesh.platform": "cpu | gpu | tpu",
    "mesh.attention": "auto | plain | cudnn | splash",
    "metrics.wandb": "offline | online",
}
_RANGES = {
    Check("a positive integer", lambda v: v > 0, int): """
        model.vocab_size model.d_model model.num_layers model.encoder_layers model.num_heads model.num_kv_heads
        model.head_dim model.mlp_dim model.attention_window model.experts_per_token model.embedding_dim
        model.token_types model.max_len model.rotary_original_len
        model.relative_max_distance model.ngram_min_count data.vocab_size data.num_sentinels data.seq_len
        data.encoder_seq_len data.global_batch_size data.unique_tokens duration.tokens duration.steps
        train.accumulation_steps mesh.fsdp mesh.expert mesh.context mesh.tensor
        evaluation.every_steps evaluation.max_tokens evaluation.batch_size
        checkpoint.every_steps checkpoint.keep checkpoint.per_decade metrics.every_steps parametrization.base_width
        parametrization.base_layers parametrization.base_head_dim launch.nodes launch.cpus launch.time""",
    Check("an integer, 0 or above", lambda v: v >= 0, int): """
        model.position_offset schedule.warmup_steps launch.gpus launch.tpus""",
    Check("an integer in 1 .. 7", lambda v: 1 <= v <= 7): "model.ngram_order",
    Check("an integer in 0 .. 2^32 - 1", lambda v: 0 <= v < 2**32): "data.seed train.seed evaluation.seed",
    Check("an integer, 2 or above", lambda v: v > 1, int): "model.full_attention_every model.num_experts",
    Check("an even integer, 4 or above", lambda v: v >= 4 and v % 2 == 0): "model.relative_buckets",
    Check("-1 or a positive integer", lambda v: v == -1 or v > 0): "mesh.data",
    Check("a number above 0", lambda v: 0 < v < math.inf, float): """
        model.embedding_scale model.rotary_base model.rotary_factor model.rotary_low_frequency
        model.rotary_high_frequency model.norm_epsilon model.attention_scale model.logit_scale model.logit_multiplier
        model.heads_multiplier model.attention_multiplier model.branch_multiplier model.router_multiplier
        model.expert_capacity
        model.attention_softcap model.logit_softcap data.max_epochs
        duration.epochs duration.flops optimizer.learning_rate optimizer.epsilon optimizer.clip_norm
        checkpoint.every_seconds launch.memory""",
    Check("a number, 0 or above", lambda v: 0 <= v < math.inf): """
        optimizer.weight_decay train.z_loss train.load_balancing""",
    Check("a number in [0, 1)", lambda v: 0 <= v < 1): """
        model.dropout optimizer.b1 optimizer.b2 schedule.warmup_fraction""",
    Check(
        "a number in [0, 1]", lambda v: 0 <= v <= 1
    ): "schedule.decay_fraction schedule.final_fraction model.norm_offset",
    Check("a number in (0, 1]", lambda v: 0 < v <= 1): "model.rotary_fraction",
    Check("a number in (0, 1)", lambda v: 0 < v < 1): "data.validation_fraction",
    Check("the path of a Python file", kind=str): "objective.file",
    Check("RUN[@STEP], a run directory and a checkpoint step", bool, str): "init.from",
    Check("HASH@STEP of a run", lambda v: re.fullmatch(r"\w+@\d+", v), str): "init.parent",
    Check("a tuple of positive integers", lambda v: all(type(x) is int and x > 0 for x in v)): "checkpoint.at",
    Check("a name without spaces", lambda v: v and v.isprintable() and " " not in v, str): """
        launch.partition launch.account launch.image""",
    Check("CLAIM:/path of a persistent volume claim", lambda v: re.fullmatch(r"[a-z0-9.-]+:/[^:]+", v), str): """
        launch.volume""",
    Check(
        "local, or a tracking URI such as http://host:5000", lambda v: re.fullmatch(r"local|databricks|\w+:\S+", v), str
    ): "metrics.mlflow",
    Check("a tuple of options", lambda v: all(isinstance(x, str) and x.isprintable() for x in v)): "launch.extra",
    Check("a tuple of paths of Python files", lambda v: all(isinstance(x, str) and x for x in v)): "plugins",
    Check("a tuple of names, at least one", lambda v: v and all(isinstance(x, str) and x for x in v)): "data.sources",
    Check(
        "a tuple of numbers above 0", lambda v: v and all(type(x) is float and 0 < x < 1e30 for x in v)
    ): "data.weights",
    Check(
        "a tuple of (logical axis, 'data' | 'fsdp' | 'expert' | 'context' | 'tensor' | None)", _is_rules
    ): "mesh.rules",
    Check(
        "letters, digits, '.', '_' and '-' only, starting with a letter, digit or '_'",
        lambda v: all(ch.isalnum() or ch in "._-" for ch in v) and v[:1] not in ("", ".", "-"),
        str,
    ): "run.name",
}
CHECKS: dict[str, Check] = {  # a key without an entry may hold any value of its default's type
    **{key: Check(names, lambda v, names=names: v in names.split(" | "), str) for key, names in _CHOICES.items()},
    **{key: check for check, keys in _RANGES.items() for key in keys.split()},
}
# Keys that may be None though their default is not.
NULLABLE = (
    "model.expert_capacity duration.tokens optimizer.clip_norm evaluation.max_tokens checkpoint.every_seconds "
    "checkpoint.keep"
).split()
# Largest allowed values: a typing error must not allocate terabytes.
_LARGEST = {
    **dict.fromkeys(("model.num_layers", "model.encoder_layers", "model.num_heads", "model.num_kv_heads"), 10_000),
    **dict.fromkeys(("model.d_model", "model.head_dim", "model.embedding_dim", "model.token_types"), 2**20),
    **dict.fromkeys(("model.relative_buckets", "model.num_experts", "data.num_sentinels"), 2**20),
    **dict.fromkeys(("model.mlp_dim", "model.max_len", "model.position_offset"), 2**24),
    **dict.fromkeys(("data.seq_len", "data.encoder_seq_len", "data.global_batch_size", "evaluation.batch_size"), 2**24),
    **dict.fromkeys(("model.vocab_size", "data.vocab_size"), 2**28),
    **dict.fromkeys(("duration.steps", "train.accumulation_steps"), 2**31 - 1),
}
_IN_FLOAT32 = ("model", "optimizer", "schedule")  # sections whose numbers are float32 in the computation
_OPTIONS = ("objective.options.", "model.options.")


def flatten(config: Mapping) -> dict[str, Any]:
    """Returns {"model.d_model": 256, ...}; an empty section disappears."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            flat.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat


DEFAULTS: dict[str, Any] = flatten(defaults.get_config())  # dotted key -> default, of every key
_TYPES = {bool: "True or False", str: "a string", int: "an integer", float: "a number", tuple: "a tuple"}


def type_of(key: str) -> type:
    """Returns the type of a key's values other than None: that of its default, else the one its check declares."""
    return type(DEFAULTS[key]) if DEFAULTS[key] is not None else CHECKS[key].kind


def _parse(text: str, kind: type) -> Any:
    """A command-line string as a Python value; a string that is not a literal is returned as it is."""
    if text == "None":
        return None
    if kind is str:
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind in (int, float) and "#" in text:  # Python would read 5#6 as 5 and a comment
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return tuple(text.split(",")) if kind is tuple else text


def _coerce(key: str, value: Any) -> Any:
    """Returns the value in the key's type, or raises InputError."""
    kind, nullable = type_of(key), DEFAULTS[key] is None or key in NULLABLE
    check = CHECKS.get(key) or Check(_TYPES[kind])
    if isinstance(value, str):
        value = _parse(value, kind)
    if value is None and nullable:
        return None
    if kind is tuple:
        value = _as_tuple(value if isinstance(value, (list, tuple)) else (value,))
    if key == "data.weights":
        value = tuple(_as_float(x) for x in value)
    elif kind is float:
        value = _as_float(value)
    elif kind is int and type(value) is float and value.is_integer():
        value = int(value)
    expected = check.expected + (", or None" if nullable else "")
    if type(value) is not kind or not check.ok(value):
        raise InputError(f"config.{key}: expected {expected}, got {_shown(value)}; set --config.{key}=...")
    if kind is int and abs(value) > (largest := _LARGEST.get(key, 2**63 - 1)):
        raise InputError(f"config.{key}: expected {expected}, at most {largest}, got {_shown(value)}")
    if kind is float and key.split(".")[0] in _IN_FLOAT32 and not _fits_float32(value):
        raise InputError(f"config.{key}: expected {expected}, got {value!r}, which float32 rounds to 0, 1 or infinity")
    return value


def _as_float(value):
    """An integer as a float (infinity beyond the largest float); anything else unchanged."""
    if type(value) is not int:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _fits_float32(value: float) -> bool:
    """Whether a number does not round to 0, 1 or infinity in float32."""
    if abs(value) > 3.4e38 or 0 < abs(value) < 1.2e-38:
        return False
    return value == 1 or struct.unpack("f", struct.pack("f", value))[0] != 1


def _shown(value) -> str:
    """repr(value), cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer beyond 4300 digits
        return f"a {type(value).__name__} with a number of more than 4300 digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _as_tuple(value):
    """A value with every list in it as a tuple."""
    if isinstance(value, Mapping):
        return {k: _as_tuple(v) for k, v in value.items()}
    return tuple(_as_tuple(v) for v in value) if isinstance(value, (list, tuple)) else value


def overlay(config: ConfigDict, overrides: Mapping[str, Any], shared: bool = False) -> ConfigDict:
    """Returns a locked copy of `config` with dotted keys replaced.

    Args:
        config: a full config.
        overrides: dotted key -> value; strings are parsed to the key's type.
        shared: the copy shares sections without a replaced key with `config`, in a tenth of the time; neither may be
            changed afterwards.

    Raises:
        InputError: unknown key (names the nearest), wrong type or value.

    Example:
        >>> overlay(config, {"model.d_model": "64"}).model.d_model
        64
    """
    config = _sharing(config, overrides) if shared else config.copy_and_resolve_references()
    with config.unlocked():
        for key, value in overrides.items():
            if key.startswith(_OPTIONS):
                section, _, option = key.split(".", 2)
                if not option.isidentifier():
                    raise InputError(f"unknown config key {key!r}: expected a plain name after {section}.options.")
                config[section].options[option] = _parse(value, object) if isinstance(value, str) else value
            elif key in DEFAULTS:
                section, _, name = key.rpartition(".")
                (config[section] if section else config)[name] = _coerce(key, value)
            else:
                raise InputError(f"unknown config key {key!r}{nearest(key, DEFAULTS)}")
    return config.lock()


def _sharing(config, keys):
    """A copy whose sections are those of `config`, but for copies of the sections of these dotted keys."""
    copied, sections = ConfigDict(), {key.partition(".")[0] for key in keys}
    for name, value in config.items():
        own = name in sections and isinstance(value, ConfigDict)
        copied[name] = value.copy_and_resolve_references().unlock() if own else value
    return copied


def check(config: ConfigDict) -> ConfigDict:
    """Returns a locked copy with every value in its type; raises InputError for anything missing, unknown or bad.

    Checks each key alone and the rules between keys that need no data: exactly one duration, heads that divide the
    width, batch and accumulation.
    """
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(_OPTIONS)}
    for key in flat.keys() - DEFAULTS.keys():
        raise InputError(f"unknown config key {key!r}{nearest(key, DEFAULTS)}")
    missing = [key for key in DEFAULTS if key not in flat]
    if missing:
        raise InputError(f"config has no {missing}; start from configs/default.py, which has every key")
    config = overlay(config, flat)
    check_together(config)
    return config


def check_together(config: ConfigDict) -> None:
    """Raises InputError if keys, each good by itself, contradict each other."""
    check_duration(config.duration)
    data, micro_batches = config.data, config.train.accumulation_steps
    check_model(config.model)
    if len(data.sources) != len(data.weights):
        raise InputError(f"data.weights: expected one per source {data.sources}, got {data.weights}")
    if data.global_batch_size % micro_batches:
        batch = f"data.global_batch_size {data.global_batch_size}"
        raise InputError(f"{batch} is not divisible by train.accumulation_steps {micro_batches}")


def check_duration(duration: ConfigDict) -> None:
    """Raises InputError unless exactly one key of the section is set."""
    given = {k: v for k, v in duration.items() if v is not None}
    if len(given) != 1:
        raise InputError(
            f"duration: expected exactly one of tokens, steps, epochs, flops, got {given}; set the others to None"
        )


def _trained(key: str) -> bool:
    """Whether a key has an effect only on models that are trained by gradient descent."""
    section, _, name = key.partition(".")
    if section == "model":
        return not name.startswith("ngram") and name not in ("family", "vocab_size", "max_len")
    return section in ("init", "optimizer", "parametrization", "schedule", "train") or key == "checkpoint.every_steps"


# (keys, setting they need, values of that setting with which they have an effect)
_EFFECTIVE = (
    ("model.encoder_layers data.encoder_seq_len", "model.family", "encoder_decoder or seq2seq"),
    ("model.token_types", "model.family", "encoder, electra or xlnet"),
    ("model.position_offset", "model.position", "learned"),
    (" ".join(key for key in DEFAULTS if key.startswith("model.rotary_")), "model.position", "rotary"),
    ("model.rotary_factor", "model.rotary_scaling", "linear, llama3 or yarn"),
    ("model.rotary_low_frequency model.rotary_high_frequency", "model.rotary_scaling", "llama3 or yarn"),
    ("model.rotary_original_len", "model.rotary_scaling", "llama3 or yarn"),
    ("model.relative_buckets model.relative_max_distance", "model.position", "relative"),
    ("model.norm_offset", "model.norm_scale", "True"),
    ("model.experts_per_token model.expert_capacity", "model.num_experts", "other than None"),
    ("train.load_balancing mesh.expert", "model.num_experts", "other than None"),
    ("data.vocab_size", "data.tokenizer", "bpe or words"),
    ("parametrization.base_width parametrization.base_head_dim", "parametrization.name", "mup or completep"),
    ("parametrization.decay", "parametrization.name", "mup or completep"),
    ("parametrization.base_layers", "parametrization.name", "completep"),
    ("schedule.decay_fraction schedule.decay_shape", "schedule.name", "wsd"),
    ("schedule.final_fraction", "schedule.name", "cosine, linear or wsd"),
    ("schedule.warmup_fraction", "schedule.warmup_steps", "None"),
    ("init.what init.parent", "init.from", "other than None"),
    ("optimizer.b1 optimizer.b2", "optimizer.name", "adamw, lion or muon"),
    ("optimizer.epsilon", "optimizer.name", "adamw or muon"),
    ("model.ngram_order model.ngram_min_count", "model.family", "ngram"),
    (" ".join(filter(_trained, DEFAULTS)), "model.family", "other than ngram"),
)
_NEEDS: dict[str, list[tuple[str, str]]] = {}  # key -> the (setting, values) that it needs
for _keys, _setting, _values in _EFFECTIVE:
    for _key in _keys.split():
        _NEEDS.setdefault(_key, []).append((_setting, _values))


def check_effects(config: ConfigDict, given: Iterable[str]) -> None:
    """Raises InputError if a key was set that has no effect in this config.

    Args:
        config: a checked config.
        given: dotted keys that were set; only those that differ from their default count.
    """
    for key in given:
        for setting, values in _NEEDS.get(key, ()):
            excluded = values.startswith("other than ")
            named = str(config[setting]) in re.split(", | or ", values.removeprefix("other than "))
            if named == excluded and config[key] != DEFAULTS[key]:
                raise InputError(
                    f"config.{key}={config[key]!r} has no effect here: it needs {setting}{' ' if excluded else '='}"
                    f"{values}; leave it out"
                )


def merged_options(section: str, defaults: Mapping, given: Mapping, ranges: Mapping = {}) -> dict[str, Any]:  # noqa: B006
    """Returns the options of a section, objective or model, with `given` ones replaced.

    Args:
        section: objective | model.
        defaults: options and their defaults.
        given: those that are set.
        ranges: option -> (minimum, maximum).

    Raises:
        InputError: an unknown name, another type, a value out of range.
    """
    merged = dict(defaults)
    for name, value in given.items():
        key = f"{section}.options.{name}"
        if name not in merged:
            raise InputError(f"unknown config key {key!r}{nearest(name, merged)}")
        default = merged[name]
        if type(default) is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not type(default):
            kind = type(default).__name__
            raise InputError(f"{key}: expected {kind} like {default!r}, got {str(value)[:200]!r}")
        low, high = ranges.get(name, (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not low <= value <= high:
            raise InputError(f"{key}: expected {low:g} to {high:g}, got {value!r}")
        merged[name] = value
    return merged


def check_model(model: ConfigDict) -> None:
    """Raises InputError if the keys of a model section contradict each other."""
    if not model.head_dim and model.d_model % model.num_heads:
        raise InputError(
            f"model.d_model {model.d_model} is not divisible by model.num_heads {model.num_heads}; "
            "change one of them, or set model.head_dim"
        )
    if model.num_kv_heads and model.num_heads % model.num_kv_heads:
        raise InputError(
            f"model.num_heads {model.num_heads} is not divisible by model.num_kv_heads {model.num_kv_heads}"
        )
    rotated = (model.head_dim or model.d_model // model.num_heads) * model.rotary_fraction
    if model.position == "rotary" and rotated % 2:
        raise InputError(
            f"rotary positions rotate pairs: expected an even head width (its rotated part), got {rotated:g}; "
            "set model.head_dim, model.num_heads or model.rotary_fraction"
        )
    by_turns = model.rotary_scaling in ("llama3", "yarn")
    if by_turns and model.rotary_original_len is None:
        raise InputError(
            f"model.rotary_scaling {model.rotary_scaling!r}: expected model.rotary_original_len, got None; set it"
        )
    if by_turns and model.rotary_high_frequency <= model.rotary_low_frequency:
        raise InputError(
            f"model.rotary_high_frequency {model.rotary_high_frequency:g}: expected more than "
            f"model.rotary_low_frequency {model.rotary_low_frequency:g}"
        )
    if model.parallel_block and (model.norm_position == "post" or model.family == "encoder_decoder"):
        raise InputError(
            "model.parallel_block: expected norm_position 'pre' and one stack, got "
            f"{model.norm_position!r} in {model.family}; set model.parallel_block=False"
        )
    if model.embedding_dim not in (None, model.d_model) and model.tie_embeddings and model.head == "plain":
        raise InputError(
            f"model.embedding_dim {model.embedding_dim} differs from model.d_model {model.d_model}, so the tied table "
            "cannot produce the logits; set model.head='transform' or model.tie_embeddings=False"
        )
    if model.full_attention_every and not model.attention_window:
        raise InputError("model.full_attention_every: expected model.attention_window with it, got None; set both")
    if model.num_experts and model.experts_per_token > model.num_experts:
        raise InputError(
            f"model.experts_per_token {model.experts_per_token}: expected at most model.num_experts {model.num_experts}"
        )
    if model.num_experts and model.use_bias:
        raise InputError("model.num_experts: expected model.use_bias=False, got True; experts have no biases")
    if model.logit_softcap and model.head == "discriminator":
        raise InputError(
            "model.logit_softcap: expected None with model.head 'discriminator', which has no logits of ids"
        )
    if model.position == "sinusoidal" and model.d_model % 2:
        raise InputError(
            f"sinusoidal positions pair sines with cosines: expected an even model.d_model, got {model.d_model}"
        )
    if model.position == "relative" and model.relative_max_distance <= model.relative_buckets // 2:
        raise InputError(
            f"model.relative_max_distance {model.relative_max_distance} lies within the range of the exact buckets; "
            f"set it above {model.relative_buckets // 2} (half of model.relative_buckets)"
        )


def check_model_keys(model: ConfigDict) -> None:
    """Raises InputError unless a model section, alone, has every key with a good value."""
    expected = {key.removeprefix("model.") for key in DEFAULTS if key.startswith("model.")}
    given = {key: value for key, value in model.items() if key != "options"}
    if expected != set(given):
        raise InputError(
            f"model section: expected the keys {sorted(expected)}; missing {sorted(expected - set(given))}, "
            f"unknown {sorted(set(given) - expected)}"
        )
    for key, value in given.items():
        _coerce(f"model.{key}", value)
    check_model(model)


def load(spec: str, overrides: Mapping[str, Any] = {}) -> ConfigDict:  # noqa: B006 - never written to
    """Returns the checked config of a file, e.g. load("configs/tiny.py:encoder", {"train.seed": 1}).

    Args:
        spec: path of a Python file with get_config(), or of a config.json of a run; "path:arg" calls get_config(arg).
        overrides: dotted key -> value.
    """
    if spec.endswith(".json"):
        record = read_record(pathlib.Path(spec))
        if record.get("objective_version") == "imported":
            raise InputError(
                f"{pathlib.Path(spec).parent} is an imported model, which has no data or optimizer settings to train "
                "with; expected a run of lmjax train. Use an imported model with lmjax generate, eval or export"
            )
        config = from_record(record)
        check_recorded_file(config, spec)
        return check(overlay(config, overrides))
    module, arg = load_module(spec)
    config = check(overlay(call(module, "get_config", arg, spec), overrides))
    check_effects(config, overrides)
    return config


def check_recorded_file(config: ConfigDict, origin: str | pathlib.Path) -> None:
    """Raises InputError if a run's record names an objective file or plugin by a relative path, which lmjax never
    writes.

    It would execute a file in the current folder. An absolute path is executed: treat others' run directories as code.
    """
    files = [("objective.file", config.objective.file), *(("plugins", file) for file in config.plugins)]
    for key, file in files:
        if file and not pathlib.Path(file).is_absolute():
            raise InputError(f"{origin}: its {key} is {file!r}; expected an absolute path, as lmjax writes it")


def call(module, name: str, arg: str, spec: str) -> Any:
    """Returns module.name(arg), or module.name() without an argument; InputError if the file has no such function."""
    if not hasattr(module, name):
        raise InputError(f"{spec} has no {name}()")
    function, arguments = getattr(module, name), [arg] if arg else []
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise InputError(f"{spec}: {name}{inspect.signature(function)} does not take {arguments}") from error
    return function(*arguments)


def load_module(spec: str):
    """Returns (module, arg) of "path.py:arg". A path configs/... is also found in an installed package."""
    path, _, arg = spec.partition(":")
    file, shipped = pathlib.Path(path), _HOME / path
    if not file.is_file() and pathlib.Path(path).parts[:1] == ("configs",) and shipped.is_file():
        file = shipped
    if not file.is_file():
        raise InputError(f"no config file {path!r} (looked in {file.resolve().parent})")
    return run_file(file, "config"), arg


_HOME = pathlib.Path(__file__).resolve().parent.parent  # holds lmjax/ and configs/, installed or in a checkout


def run_file(file: pathlib.Path, kind: str):
    """Runs a user's Python file and returns it as a module; it may import `configs` and its neighbours.

    Args:
        file: a .py file.
        kind: config | objective | plugin; names the module and the file in errors.

    Raises:
        InputError: not a Python file; an import fails.
    """
    file = file.resolve()
    for folder in (_HOME, file.parent.parent, file.parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(f"_lmjax_{kind}_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{kind} file {file}: expected a Python file, ending in .py")
    module = importlib.util.module_from_spec(spec)
    try:  # from its source: bytecode is stale after two changes within a second that keep the file's length
        with registry.running(file.name):
            exec(compile(file.read_bytes(), file, "exec"), vars(module))
    except ImportError as error:
        raise InputError(
            f"{kind} file {file} cannot be run: {error}; install what it imports, or put it into {file.parent}"
        ) from error
    return module


_run_files: set[tuple[str, str]] = set()  # (path, digest) of files run by `run_once`


def run_once(file: str, key: str) -> str:
    """Runs a file that registers things, unless this process has run it; returns a digest of its content (10 digits).

    Args:
        file: a .py file.
        key: what names it: objective.file | plugins | law; for errors.

    Raises:
        InputError: missing file; an import fails; a name that another file or lmjax has registered.
    """
    path = pathlib.Path(file).resolve()
    if not path.is_file():
        raise InputError(f"{key}: no file {file!r}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    if (str(path), digest) not in _run_files:
        run_file(path, "objective" if key == "objective.file" else "plugin")
        _run_files.add((str(path), digest))
    return digest


def run_plugins(config: ConfigDict, origin: str | pathlib.Path) -> None:
    """Runs the plugins in the record of a run; InputError as for `run_once` and `check_recorded_file`."""
    check_recorded_file(config, origin)
    for file in config.plugins:
        run_once(file, "plugins")


def to_dict(config: ConfigDict) -> dict:
    """Returns the config as JSON-able nested dicts (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


FORMAT = 2  # of config.json. 1 wrote 0 or "" where a key was not set, and knew fewer keys


def json_default(key: str) -> Any:
    """Returns the default of a dotted key as config.json has it: tuples are lists."""
    default = DEFAULTS[key]
    return json.loads(json.dumps(default)) if isinstance(default, tuple) else default


def read_record(path: pathlib.Path) -> dict:
    """Returns the record in a run's config.json; InputError if the file holds no config."""
    try:
        record = json.loads(path.read_text("utf8"))
        record["config"]["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"cannot read a config from {path}: {error!r}; expected a config.json written by lmjax"
        ) from error
    return record


def from_record(record: Mapping) -> ConfigDict:
    """Returns the config in the record of a run, whichever version of lmjax wrote it.

    Keys that did not exist then take their default, except the training settings of an imported model, whose record
    has none.
    """
    return from_dict(_completed(record))


def settings_of(record: Mapping) -> dict[str, Any]:
    """Returns flatten(to_dict(from_record(record))), in a tenth of the time."""
    return flatten(_completed(record))


# Default rules until mesh.expert existed, as in config.json.
_WITHOUT_EXPERT = ["batch", ["data", "fsdp"]], ["expert_batch", "data"], ["experts", "fsdp"]


def _completed(record):
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in record["config"].items()}
    old, imported = record.get("format", 1) < 2, record.get("objective_version") == "imported"
    if "expert" not in (mesh := config.get("mesh", {})) and "rules" in mesh:  # else mesh.expert would split no expert
        now = dict(json_default("mesh.rules"))
        mesh["rules"] = [[rule[0], now[rule[0]]] if rule in _WITHOUT_EXPERT else rule for rule in mesh["rules"]]
    config["model"].setdefault("options", {})
    config["model"].setdefault("heads_multiplier", config["model"].get("logit_multiplier"))  # it was the same
    for key, default in DEFAULTS.items():
        section, _, name = key.rpartition(".")
        if imported and section not in ("model", ""):
            continue
        holder = config.setdefault(section, {}) if section else config
        if name not in holder:
            holder[name] = json_default(key)
        elif old and (default is None or key in NULLABLE) and holder[name] in (0, ""):
            holder[name] = None
    return config


def from_dict(config: Mapping) -> ConfigDict:
    """Inverse of `to_dict`."""
    return ConfigDict(_as_tuple(config)).lock()


def decisive(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings, of all dotted keys, that decide a run's values; files of your own count by their content,
    which is in the objective's version."""
    return {k: v for k, v in flat.items() if k.split(".")[0] not in OPERATIONAL and k not in FILES}

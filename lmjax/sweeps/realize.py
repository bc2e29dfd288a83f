"""Turn a compute-optimal allocation into a training command, for the shape of a config closest to N parameters.

Shapes are scaled like the config (or the cells of a sweep file): with a constant depth or a constant ratio of width to
depth, a constant number or width of heads, and constant ratios of explicitly set sizes to the width.
"""

import functools
import itertools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax import flops, models
from lmjax.errors import InputError
from lmjax.format import count as short
from lmjax.resolve import fill, resolve, sizes
from lmjax.sweeps.cells import overlays_of

MOST_LAYERS = 512
SHAPE_WEIGHT = 0.2  # weight of |ln| of the error in the width-to-depth ratio, relative to that in N
RULE_TOLERANCE = 0.02  # largest relative error with which a sweep's learning rates count as a power law
# keys that a new run does not take from a sweep's cells
NOT_SHARED = ("run.held_out", "duration.", "init.", "data.max_epochs")


def training_command(
    spec: str, overrides: Mapping[str, str], N: float, D: float, count: str = "n_total"
) -> tuple[str, list[str]]:
    """Returns (a command that trains the model closest to N parameters for D tokens, notes on what differs).

    Args: as in `nearest_config`.
    """
    chosen = nearest_config(spec, overrides, N, D, count)
    words = [f"--config.{key}={text}" for key, text in _texts({**overrides, **chosen["overrides"]}).items()]
    return shlex.join(["lmjax", "train", "--config", spec, *words]), chosen["notes"]


def nearest_config(spec: str, overrides: Mapping[str, str], N: float, D: float, count: str = "n_total") -> dict:
    """Returns the overrides of a config that give the model closest to N parameters, trained for D tokens.

    Args:
        spec: config or sweep file, path.py or path.py:argument.
        overrides: {"section.key": value}, applied to the config.
        N: number of parameters, counted by `count`.
        D: training tokens.
        count: a key of flops.parameter_counts.

    Returns:
        {"overrides": {"model.d_model": ...}, "N": that model's count, "D": its training tokens, "notes": sentences on
        N, the learning rate and repeated data}. The overrides have been checked by resolving the config.

    Raises:
        InputError: no shape is within a factor of two of N; the config is bad.
    """
    cells = overlays_of(spec)
    shared = {key: value for key, value in _shared(cells).items() if key not in overrides}
    widest = max(cells, key=lambda cell: cell.get("model.d_model", 0))
    widest = {key: value for key, value in widest.items() if key.startswith("model.")}
    raw = configs.load(spec, {**shared, **widest, **overrides})
    base = resolve(configs.overlay(raw, {"data.max_epochs": 1e9}))  # the config's own duration does not matter
    family = _Family(raw, base.config.model, cells)
    example = base.batches.rows([0])

    @functools.cache
    def size(layers, width):
        keys = family.shape(layers, width)
        return flops.parameter_counts(_shapes(raw, base.config.model, keys, example))[count]

    layers, width = min(
        family.candidates(size, N),
        key=lambda shape: abs(math.log(size(*shape) / N)) + SHAPE_WEIGHT * family.distortion(*shape),
    )
    if not 0.5 < size(layers, width) / N < 2:
        raise InputError(
            f"{spec}: expected a model of about {short(N)} parameters, got {short(size(layers, width))} for the "
            "closest shape of this config; use a config of another shape"
        )
    other_durations = {f"duration.{key}": None for key, value in raw.duration.items() if value and key != "tokens"}
    keys = {**shared, **family.shape(layers, width), "duration.tokens": round(D), **other_durations}
    rate, notes = _learning_rate(cells, raw, base, keys)
    keys |= rate
    rows = math.ceil(D / base.batches.tokens_per_row / raw.data.global_batch_size + 1) * raw.data.global_batch_size
    epochs = base.batches.epochs(rows)
    if epochs > raw.data.max_epochs:
        keys["data.max_epochs"] = math.ceil(epochs * 10) / 10
        notes.append(
            f"D = {short(D)} tokens are {epochs:.1f} passes over this config's data, so data.max_epochs is raised; the "
            "law is about unrepeated tokens, and a repeated token is worth less (arXiv 2305.16264): add text to "
            "data.sources"
        )
    derived = resolve(configs.load(spec, {**overrides, **_texts(keys)})).derived
    off = derived[count] / N - 1
    notes.insert(0, f"N = {short(derived[count])} ({off:+.0%} from the optimum), D = {short(derived['tokens'])}")
    return {"overrides": keys, "N": derived[count], "D": derived["tokens"], "notes": notes}


class _Family:
    """The shapes that a config can be scaled to: (layers, width) -> overrides."""

    def __init__(self, raw: ConfigDict, model: ConfigDict, cells: Sequence[Mapping[str, Any]]):
        """raw: the base config with sizes as set, model: its resolved model section, cells: overlays of a sweep."""
        self.set, self.base = raw.model, model
        self.fixed_layers = _constant(cells, "model.num_layers", model.num_layers)
        self.fixed_heads = _constant(cells, "model.num_heads", model.num_heads)
        self.group = model.num_heads // model.num_kv_heads if model.num_kv_heads > 1 else 1  # query heads per kv head
        self.step = 2 * model.num_heads if self.fixed_heads else max(model.d_model // 64, 1) * 2
        self.ratio = model.d_model / model.num_layers

    def shape(self, layers: int, width: int) -> dict[str, Any]:
        """Returns the overrides for this depth and width, at the ratios of the base config."""
        scale = width / self.base.d_model
        heads = self.base.num_heads
        if not self.fixed_heads:
            heads = max(round(heads * scale / self.group), 1) * self.group
        keys: dict[str, Any] = {"model.d_model": width, "model.num_layers": layers, "model.num_heads": heads}
        if self.set.mlp_dim:
            keys["model.mlp_dim"] = max(round(self.set.mlp_dim * scale), 1)
        if self.set.num_kv_heads and self.set.num_kv_heads > 1:
            keys["model.num_kv_heads"] = heads // self.group
        if self.set.encoder_layers:
            keys["model.encoder_layers"] = max(round(self.set.encoder_layers * layers / self.base.num_layers), 1)
        for name, power in (("logit_scale", -0.5), ("embedding_scale", 0.5)):  # a factor that is a root of the width
            value = self.set[name]
            if value and value != 1 and math.isclose(value, self.base.d_model**power, rel_tol=1e-3):
                keys[f"model.{name}"] = width**power
        return keys

    def allowed(self, layers: int, width: int) -> bool:
        """Returns whether the config check accepts the shape."""
        try:
            configs.check_model(_section(self.set, self.shape(layers, width)))
        except InputError:
            return False
        return True

    def candidates(self, size, N: float) -> Iterator[tuple[int, int]]:
        """Yields the allowed (layers, width) pairs around N parameters."""

        def nearest(layers):
            """Returns the width (a multiple of the step) closest to the base ratio of width to depth."""
            return max(round(self.ratio * layers / self.step), 1) * self.step

        depths = [self.base.num_layers]
        if not self.fixed_layers:
            middle = _solve(lambda layers: size(layers, nearest(layers)), N, depths[0], power=3)
            depths = [layers for layers in (middle - 1, middle, middle + 1) if 0 < layers <= MOST_LAYERS]
        for layers in depths:
            start = nearest(layers) // self.step
            steps = _solve(lambda k, layers=layers: size(layers, k * self.step), N, start, power=2)
            for direction in (range(steps, 0, -1), range(steps + 1, 2 * steps + 64)):
                widths = (k * self.step for k in direction if self.allowed(layers, k * self.step))
                yield from ((layers, width) for width in itertools.islice(widths, 1))

    def distortion(self, layers: int, width: int) -> float:
        """Returns |ln(width-to-depth ratio / base ratio)|; 0 if the depth is constant."""
        return 0.0 if self.fixed_layers else abs(math.log(width / layers / self.ratio))


def _solve(size, N, start, power):
    """Returns an integer k with size(k) close to N; size grows at most as k^power."""
    x = float(start)
    for _ in range(10):
        before, x = x, max(x * (N / size(round(x))) ** (1 / power), 1.0)
        if round(x) == round(before):
            break
    return round(x)


def _section(model, keys):
    model = model.copy_and_resolve_references()
    model.unlock()
    for key, value in keys.items():
        model[key.removeprefix("model.")] = value
    return model


def _shapes(raw, resolved, keys, example):
    """Returns the shapes of all parameters of the model with these overrides."""
    config = raw.copy_and_resolve_references()
    config.unlock()
    config.model = model = _section(raw.model, keys)
    fill(config, sizes(model, config.data))
    model.vocab_size, model.max_len, model.options = resolved.vocab_size, resolved.max_len, resolved.options
    return models.plain_shapes(models.build(model), example)


def _shared(cells):
    """Returns the overrides that all cells of a sweep share."""
    alike = {k: v for k, v in cells[0].items() if all(cell.get(k) == v for cell in cells)}
    return {key: value for key, value in alike.items() if not key.startswith(NOT_SHARED)}


def _constant(cells, key, default):
    """Returns whether the cells are a sweep over widths that keeps this key constant."""
    return len({cell.get("model.d_model") for cell in cells}) > 1 and len({c.get(key, default) for c in cells}) == 1


def _learning_rate(cells, raw, base, keys):
    """Returns (override of the learning rate by the sweep's own rule, or {}; sentences about the learning rate)."""
    points = [
        (cell["model.d_model"], cell["duration.tokens"], cell["optimizer.learning_rate"])
        for cell in cells
        if {"model.d_model", "duration.tokens", "optimizer.learning_rate"} <= set(cell)
    ]
    if len({point[0] for point in points}) > 1:
        width, tokens, rate = np.log(np.array(points, float).T)
        X = np.stack([np.ones_like(width), width, tokens], axis=1)
        solution = np.linalg.lstsq(X, rate, rcond=None)[0]
        if np.abs(X @ solution - rate).max() < RULE_TOLERANCE:
            at = np.array([1.0, math.log(keys["model.d_model"]), math.log(keys["duration.tokens"])])
            value = float(f"{math.exp(at @ solution):.4g}")
            return {"optimizer.learning_rate": value}, [f"learning rate {value:g} by the rule of the sweep's cells"]
    if raw.parametrization.name != "standard":
        return {}, [f"learning rate {raw.optimizer.learning_rate:g}, as at every width ({raw.parametrization.name})"]
    note = (
        f"learning rate {raw.optimizer.learning_rate:g} is the config's own, chosen for "
        f"{short(base.derived['n_total'])} parameters: tune it for this size"
    )
    return {}, [note]


def _texts(keys):
    """Returns the overrides as command-line text, so that the printed command itself is checked."""
    return {key: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for key, v in keys.items()}

"""Sweeps as lists of overlays such as {"model.d_model": 128}, and ways to combine them.

    sizes = zipit({"model.d_model": [64, 128], "model.num_layers": [2, 4]})
    cells = product(sizes, {"duration.tokens": [1e6, 2e6, 4e6]}, fixed({"train.seed": 1}))

Every function takes lists of overlays, or {key: values} as a short form for one key, and returns a list of overlays.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from lmjax.errors import InputError

Overlay = dict[str, Any]
Overlays = Sequence[Overlay] | Mapping[str, Sequence]


def fixed(overlay: Overlay) -> list[Overlay]:
    """Returns a list of one overlay, to give every cell the same values: fixed({"a": 1}) -> [{"a": 1}]."""
    return [dict(overlay)]


def product(*sets: Overlays) -> list[Overlay]:
    """Returns every combination of the sets; the last set varies fastest.

    Example: product({"a": [1, 2]}, {"b": [3, 4]}) -> [{a: 1, b: 3}, {a: 1, b: 4}, {a: 2, b: 3}, {a: 2, b: 4}]

    Raises:
        InputError: a key in two sets.
    """
    return [_merge(parts) for parts in itertools.product(*map(_overlays, sets))]


def zipit(*sets: Overlays) -> list[Overlay]:
    """Returns the sets merged element by element: the i-th overlay of each.

    Example: zipit({"a": [1, 2], "b": [3, 4]}) -> [{a: 1, b: 3}, {a: 2, b: 4}]

    Raises:
        InputError: sets of different lengths, a key in two sets.
    """
    parts = []
    for given in sets:
        many = [{key: values} for key, values in given.items()] if isinstance(given, Mapping) else [given]
        parts.extend(_overlays(part) for part in many)
    lengths = [len(part) for part in parts]
    if len(set(lengths)) > 1:
        raise InputError(f"zipit: expected sets of one length, got lengths {lengths}")
    return [_merge(row) for row in zip(*parts, strict=True)]


def chain(*sets: Overlays) -> list[Overlay]:
    """Returns the sets one after the other: chain([{"a": 1}], [{"a": 2, "b": 5}]) -> [{a: 1}, {a: 2, b: 5}]."""
    return [overlay for given in sets for overlay in _overlays(given)]


def subsample(overlays: Overlays, count: int, seed: int = 0) -> list[Overlay]:
    """Returns a random subset of `count` overlays in their order, the same for the same seed (random search).

    Raises:
        InputError: `count` exceeds the number of overlays.
    """
    overlays = _overlays(overlays)
    if not 0 < count <= len(overlays):
        raise InputError(f"subsample: expected 1 to {len(overlays)} overlays, got count {count}")
    chosen = sorted(random.Random(seed).sample(range(len(overlays)), count))
    return [overlays[i] for i in chosen]


def branches(trunk: Overlays, tokens: Sequence[float], decay: float = 0.2) -> list[Overlay]:
    """Returns, for each overlay of `trunk`, a trunk at a constant learning rate, and for each token count a branch that
    decays (warm-up, stable, decay: arXiv 2405.18392).

    A branch equals, step for step, a single run of that many tokens under the schedule "wsd" with the same number of
    warm-up steps, so set schedule.warmup_steps in the config. The trunk ends where the last decay begins.

    Args:
        trunk: overlays of the trunks, e.g. one for each size, without schedule and duration.
        tokens: training tokens of the branches, including those of the trunk.
        decay: length of the decay, as a share of a run's tokens.

    Raises:
        InputError: decay is outside (0, 1); a trunk sets a schedule or a duration.

    Example: branches([{"model.d_model": 64}], [1e6, 4e6]) -> [{d_model 64, 3.2M tokens, constant},
        {d_model 64, 1M tokens, wsd, init.from: the first}, {d_model 64, 4M tokens, wsd, init.from: the first}]
    """
    if not 0 < decay < 1:
        raise InputError(f"branches: expected a decay above 0 and below 1, a share of a run's tokens, got {decay}")
    made = []
    for overlay in _overlays(trunk):
        whole = _merge([overlay, {"schedule.name": "constant", "duration.tokens": round((1 - decay) * max(tokens))}])
        wsd = {"schedule.name": "wsd", "schedule.decay_fraction": decay, "init.from": whole}
        made += [whole, *(_merge([overlay, wsd, {"duration.tokens": round(count)}]) for count in tokens)]
    return made


def _overlays(given: Overlays) -> list[Overlay]:
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise InputError(f"expected {{key: values}} with one key, got keys {list(given)}; use zipit or product")
        ((key, values),) = given.items()
        return [{key: value} for value in values]
    return [dict(overlay) for overlay in given]


def _merge(parts: Sequence[Overlay]) -> Overlay:
    merged: Overlay = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise InputError(f"the keys {sorted(twice)} are in two sets that are combined; keep each in one")
        merged.update(part)
    return merged

"""Checks that every objective must pass, including your own: check_objective(MY_OBJECTIVE). Needs NumPy only.

Three checks use a field of the objective: `reconstruct` (example -> source tokens), `expected_weight` (mean number of
predicted tokens) and `visible_answers` (share of answers shown on purpose).
"""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmjax.data.tokenizers import Bytes
from lmjax.objectives.base import Example, Objective, Spec


def byte_spec(
    objective: Objective, options: Mapping[str, Any] = types.MappingProxyType({}), sentinels: int = 64
) -> Spec:
    """Returns a spec with a byte vocabulary: text ids 0-255, equally frequent, then eos, pad, mask and sentinels."""
    return objective.spec(Bytes(sentinels), options, np.full(256, 1 / 256))


def check_objective(
    objective: Objective, spec: Spec | None = None, lengths: Sequence[int] = (2, 3, 7, 32, 129), draws: int = 200
) -> str:
    """Checks the required properties of an objective; returns which hold and which could not be checked.

    Args:
        objective: the objective.
        spec: ids and options; default: bytes and the objective's default options.
        lengths: numbers of source tokens to try.
        draws: number of examples in each statistical check; its tolerance is 5 standard errors.

    Raises:
        AssertionError: a property does not hold.

    Example: "mine: shapes, determinism, hidden answers hold; not checked: reconstruction (define `reconstruct`)"
    """
    spec = spec or byte_spec(objective)
    if objective.expected_weight and objective.expected_weight(max(lengths), spec.options) is None:
        objective = dataclasses.replace(objective, expected_weight=None)
    holds, unchecked = ["shapes", "determinism", "hidden answers"], []
    for name, field in (("reconstruction", "reconstruct"), ("rates", "expected_weight")):
        if getattr(objective, field) is None:
            unchecked.append(f"{name} (define `{field}`)")
        else:
            holds.append(name)
    for n in lengths:
        tokens = _tokens(n, spec, seed=n)
        _check_shapes(objective, _make(objective, tokens, spec, 0), n, spec)
        _check_determinism(objective, tokens, spec)
        for seed in range(10) if "reconstruction" in holds else ():
            back = objective.reconstruct(_make(objective, tokens, spec, seed), spec)
            given = _pieces(objective, tokens)
            held, given = (back, given) if objective.pieces else ((back,), (given,))
            assert np.array_equal(held[0], given[0]) and all(
                any(np.array_equal(piece, one) for one in given) for piece in held
            ), f"reconstruct gave {back} for the source {given}"
    _check_lengths_grow(objective, spec)
    _check_answers_hidden(objective, spec, max(lengths), draws)
    if "rates" in holds:
        _check_rate(objective, spec, max(lengths), draws)
    rest = f"; not checked: {', '.join(unchecked)}" if unchecked else ""
    return f"{objective.name}: {', '.join(holds)} hold{rest}"


def _tokens(n: int, spec: Spec, seed: int, ids: np.ndarray | None = None) -> np.ndarray:
    """Returns n tokens, distinct if possible, so that a token identifies its position."""
    rng, ids = np.random.default_rng(seed), np.arange(spec.text_vocab_size) if ids is None else ids
    return rng.permutation(ids[np.arange(n) % len(ids)])


def _solid(spec: Spec) -> np.ndarray:
    """Returns the ids without white space (or all), so that changing a token moves no word or sentence boundary."""
    texts = spec.tokenizer.token_bytes[: spec.text_vocab_size] if spec.tokenizer else ()
    return np.asarray([i for i, text in enumerate(texts) if text.split() == [text]] or range(spec.text_vocab_size))


def _pieces(objective: Objective, tokens: np.ndarray, less: int = 1) -> Any:
    """Returns the tokens in the form that `make_example` takes. Further pieces hold the same tokens backwards, each
    `less` shorter than the one before; with "cells", the pieces are a row of two columns."""
    if objective.pieces == ("cells",):
        return tuple(np.array_split(tokens, 4))
    others = [tokens[::-1][: max(1, len(tokens) - k * less)] for k in range(1, len(objective.pieces) + 1)]
    return (tokens, *others) if others else tokens


def _make(objective, tokens, spec, seed, less=1) -> Example:
    return objective.make_example(_pieces(objective, tokens, less), np.random.default_rng(seed), spec)


def _check_shapes(objective: Objective, example: Example, n: int, spec: Spec) -> None:
    """Checks names, shapes and dtypes, that ids are inside the vocabulary, and that weights are finite and >= 0."""
    lengths, heads = objective.lengths(n, spec.options), objective.heads(spec.options)
    fields, optional = objective.arrays(spec.options)
    assert fields <= set(example) <= fields | optional, f"expected the arrays {sorted(fields)}, got {sorted(example)}"
    shapes = {head.targets: (2,) if head.kind == "span" else () for head in heads if head.kind != "tokens"}
    shapes |= {head.weights: () for head in heads if head.kind != "tokens"} | {"group": ()}
    shapes |= {name: example[name].shape for name, kind in objective.extras.items() if kind == "row"}
    dtypes = {**{head.weights: np.float32 for head in heads}, "prefix": np.bool_}
    dtypes |= {head.targets: np.float32 for head in heads if head.kind == "value"}
    largest = {head.targets: head.classes for head in heads if head.classes}
    largest |= {"token_types": objective.token_types, "group": len(objective.groups), "positions": lengths["inputs"]}
    largest |= {head.targets: lengths["inputs"] for head in heads if head.kind == "span"}
    for name, array in example.items():
        side = name if name in lengths else "inputs"
        length = min(len(example[side]), lengths[side]) if objective.padded else lengths[side]
        shape = shapes.get(name, (length, *array.shape[1:]) if name in objective.extras else (length,))
        assert array.shape == shape, f"{name}: shape {array.shape}, expected {shape}; lengths({n}) says {lengths}"
        if name in objective.extras:
            continue  # checked when the pipeline is made
        dtype = np.dtype(dtypes.get(name, np.int32))
        assert array.dtype == dtype, f"{name}: dtype {array.dtype}, expected {dtype}"
        if array.dtype == np.int32:
            most = largest.get(name, spec.vocab_size) - 1
            assert array.min(initial=0) >= 0 and array.max(initial=0) <= most, f"{name}: values outside 0..{most}"
    weights = [example[head.weights] for head in heads if head.weights in example]
    assert all(np.isfinite(w).all() and (w >= 0).all() for w in weights), f"weights {weights}"
    labelled = objective.expected_weight or "targets" in fields  # others may need text that has what they predict
    assert not labelled or sum(w.sum() for w in weights) > 0, f"nothing to predict in {n} tokens"


def _check_determinism(objective: Objective, tokens: np.ndarray, spec: Spec) -> None:
    """Checks that the same tokens and generator give the same arrays, and that the input tokens are not modified."""
    before = tokens.copy()
    first, second = (_make(objective, tokens, spec, 3) for _ in range(2))
    assert np.array_equal(before, tokens), "make_example changed the tokens it was given"
    for name in first:
        assert np.array_equal(first[name], second[name]), f"{name} differs between two equal calls"


def _check_lengths_grow(objective: Objective, spec: Spec) -> None:
    """Checks that lengths never shrink as the source grows, and that a window of the computed length fits its row."""
    previous = {"inputs": 0, "encoder_inputs": 0}
    for n in range(2, 200):
        now = objective.lengths(n, spec.options)
        for name, length in now.items():
            assert length >= previous[name], f"lengths({n})[{name!r}] = {length} after {previous[name]}"
        previous.update(now)
    fitting = objective.lengths(objective.window_length(spec.options, 64, 64), spec.options)
    assert all(length <= 64 for length in fitting.values()), f"a window for rows of 64 gives {fitting}"


def _visible(objective: Objective, example: Example, position: int) -> tuple:
    """Returns everything a model may see when it predicts targets[position]."""
    inputs, encoder = example["inputs"], example.get("encoder_inputs", np.zeros(0, np.int32))
    if objective.attention == "bidirectional":
        seen = inputs
    elif objective.attention == "prefix":
        seen = np.where(example["prefix"] | (np.arange(len(inputs)) <= position), inputs, -1)
    elif objective.attention == "permutation":
        seen = np.where(example["order"] < example["order"][position], inputs, -1)
    else:
        seen = inputs[: position + 1]
    return (*seen.tolist(), None, *encoder.tolist())


def _check_answers_hidden(objective: Objective, spec: Spec, n: int, draws: int) -> None:
    """Checks that changing a source token does not change what the model sees where it predicts this token.

    The share of predictions where it does may be at most `visible_answers`.
    """
    if "targets" not in objective.arrays(spec.options)[0]:
        return  # no LM head
    shown = targets = 0
    rng, ids = np.random.default_rng(0), _solid(spec)
    for seed in range(draws):
        tokens = _tokens(n, spec, seed, ids)
        place = int(rng.integers(n))
        other = tokens.copy()
        other[place] = rng.choice(ids[ids != tokens[place]])
        pieces = [_pieces(objective, t) for t in (tokens, other)]
        if objective.pieces:  # change one of them
            which = seed % len(pieces[0])
            pieces[1] = (*pieces[0][:which], pieces[1][which], *pieces[0][which + 1 :])
        a, b = (objective.make_example(given, np.random.default_rng(seed), spec) for given in pieces)
        for position in np.flatnonzero((a["targets"] != b["targets"]) & (a["weights"] > 0)):
            targets += 1
            shown += _visible(objective, a, position) != _visible(objective, b, position)
    assert targets > 0, "no source token is ever a target"
    share = objective.visible_answers
    allowed = share(spec.options) if callable(share) else spec.options.get(share, share)
    limit = allowed + 5 * np.sqrt(allowed * (1 - allowed) / targets)
    assert shown / targets <= limit, (
        f"{shown} of {targets} answers can be read off the inputs (allowed share {allowed})"
    )


def _check_rate(objective: Objective, spec: Spec, n: int, draws: int) -> None:
    """Checks that the mean total weight of the first head agrees with `expected_weight` for pieces of n tokens."""
    name = objective.heads(spec.options)[0].weights
    weights = np.array([_make(objective, _tokens(n, spec, s), spec, s, less=0)[name].sum() for s in range(draws)])
    expected = objective.expected_weight(n, spec.options)
    error = 5 * weights.std() / np.sqrt(draws) + 1e-6
    assert abs(weights.mean() - expected) <= error, f"mean weight {weights.mean()} +- {error}, expected {expected}"

"""Combine objectives: one applied to the rows of another, a mixture of several, and conversion for decoders."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.base import LM, Objective, merge_options


def over(tokens: Objective, rows: Objective) -> Objective:
    """Returns the objective "<tokens>+<rows>": applies `tokens` to the rows that `rows` makes, and trains all heads.

    Args:
        tokens: an objective that takes one piece and keeps its length, such as masked_lm.
        rows: an objective without the LM head.

    Raises:
        InputError: the objectives cannot be combined, or have an option of the same name.

    Example: masked_lm over next_sentence is BERT's pretraining; its options are those of both.
    """
    name, options = f"{tokens.name}+{rows.name}", {**rows.options, **tokens.options}
    fits = tokens.attention == rows.attention and tokens.lengths(9, tokens.options) == {"inputs": 9}
    separate = "lm" not in [head.name for head in rows.heads(rows.options)] and not {*rows.options} & {*tokens.options}
    if not fits or not separate or tokens.pieces:
        raise InputError(
            f"objective {name}: expected {tokens.name} to keep the length of its input, {rows.name} to have no LM "
            f"head, both to have the same attention and options of different names, got {tokens.attention} and "
            f"{rows.attention}, options {sorted(tokens.options)} and {sorted(rows.options)}"
        )

    def make_example(pieces, rng, spec):
        example = rows.make_example(pieces, rng, spec)
        return {**example, **tokens.make_example(example["inputs"], rng, spec)}

    def reconstruct(example, spec):
        return rows.reconstruct({**example, "inputs": tokens.reconstruct(example, spec)}, spec)

    return dataclasses.replace(
        rows,
        name=name,
        version=tokens.version + rows.version,
        make_example=make_example,
        options=options,
        ranges={**rows.ranges, **tokens.ranges},
        heads=lambda options: (*tokens.heads(options), *rows.heads(options)),
        loss=tokens.loss or rows.loss,
        expected_weight=None,
        reconstruct=reconstruct if tokens.reconstruct and rows.reconstruct else None,
        visible_answers=tokens.visible_answers,
        extras={**rows.extras, **tokens.extras},
        conflict=lambda options: tokens.conflict(options) or rows.conflict(options),
    )


def mixture(name: str, parts: Mapping[str, tuple[Objective, Mapping[str, Any], float]], version: int = 1) -> Objective:
    """Returns an objective that draws one of several objectives for each row, as UL2 does (arXiv 2205.05131).

    The loss is the mean over all predicted tokens. Validation also reports the loss of each part, `<part>_loss`.

    Args:
        name: name of the mixture.
        parts: name -> (objective, its options, weight). Every part has only the LM head, and all have the same
            attention, except that causal and prefix parts may be mixed.
        version: part of every run id.

    Raises:
        InputError: the parts cannot be mixed.

    Example: denoisers of short and of long spans, in equal shares
        mixture("denoisers", {"short": (SPAN_CORRUPTION, {"mean_span": 3.0}, 1.0),
                              "long": (SPAN_CORRUPTION, {"mean_span": 12.0, "noise_density": 0.5}, 1.0)})
    """
    objectives, shares = [part[0] for part in parts.values()], np.asarray([part[2] for part in parts.values()])
    options = [merge_options(objective, given) for objective, given, _ in parts.values()]
    kinds = {objective.attention for objective in objectives}
    alike = len(kinds) == 1 or kinds == {"causal", "prefix"}
    pairs = list(zip(objectives, options, strict=True))
    plain = all(one.heads(given) == (LM,) and not (one.pieces or one.loss or one.extras) for one, given in pairs)
    if not alike or not plain or len({one.overlap for one in objectives}) > 1 or shares.min() <= 0:
        raise InputError(
            f"mixture {name!r}: expected objectives with the LM head alone, one piece of text, the same attention and "
            f"overlap, and weights above 0, got attention {sorted(kinds)}, weights {shares.tolist()}"
        )
    bounds = np.cumsum(shares / shares.sum())
    attention = "prefix" if "prefix" in kinds else objectives[0].attention

    def make_example(tokens, rng, spec):
        number = min(int(np.searchsorted(bounds, rng.random(), side="right")), len(pairs) - 1)
        chosen, given = pairs[number]
        example = chosen.make_example(tokens, rng, dataclasses.replace(spec, options=given))
        if attention == "prefix":
            example.setdefault("prefix", np.zeros(len(example["inputs"]), bool))
        return {**example, "group": np.asarray(number, np.int32)}

    def lengths(n, _):
        each = [one.lengths(n, given) for one, given in pairs]
        return {side: max(found[side] for found in each) for side in each[0]}

    def reconstruct(example, spec):
        one, given = pairs[int(example["group"])]
        return one.reconstruct(example, dataclasses.replace(spec, options=given))

    def expected_weight(n, _):
        return float(np.dot(shares, [one.expected_weight(n, given) for one, given in pairs]) / shares.sum())

    return Objective(
        name=name,
        version=version,
        attention=attention,
        make_example=make_example,
        lengths=lengths,
        overlap=objectives[0].overlap,
        padded=True,
        groups=tuple(parts),
        expected_weight=expected_weight if all(one.expected_weight for one in objectives) else None,
        reconstruct=reconstruct if all(one.reconstruct for one in objectives) else None,
    )


def for_decoder(objective: Objective) -> Objective:
    """Converts an encoder-decoder objective for decoders with prefix attention: the source becomes the prefix.

    Args:
        objective: an objective with encoder_decoder attention and only the LM head.

    Example: span corruption of 5, 6, 7, 8 with the span (6, 7), sentinel 91, eos 90
        inputs  [5, 91, 8, 90, 91, 6, 7]
        prefix  [1,  1, 1,  1,  0, 0, 0]
        targets [91, 8, 90, 91, 6, 7, 90]
        weights [0,  0,  0,  1, 1, 1,  1]
    """

    def make_example(tokens, rng, spec):
        example = objective.make_example(tokens, rng, spec)
        source = example.pop("encoder_inputs")
        row, before = np.concatenate([source, example["targets"]]), np.zeros(len(source) - 1, np.float32)
        return {
            **example,
            "inputs": row[:-1],
            "targets": row[1:],
            "weights": np.concatenate([before, example["weights"]]),
            "prefix": np.arange(len(row) - 1) < len(source),
        }

    def reconstruct(example, spec):
        source = int(example["prefix"].sum())
        both = {"encoder_inputs": example["inputs"][:source], "targets": example["targets"][source - 1 :]}
        return objective.reconstruct({**example, **both}, spec)

    return dataclasses.replace(
        objective,
        name=f"{objective.name}_decoder",
        attention="prefix",
        make_example=make_example,
        lengths=lambda n, options: {"inputs": sum(objective.lengths(n, options).values()) - 1},
        reconstruct=objective.reconstruct and reconstruct,
        frame=None,
    )

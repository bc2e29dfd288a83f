"""The answers of the skills from their questions, an objective for each architecture: for config.py.

A whole document with one "=" is a question, up to and with the "=", and its answer. Everything else is English text:
bytes are masked as in BERT (masked_lm), spans are removed as in T5 (span_corruption), or each byte is predicted.
"""

import dataclasses

import numpy as np

from lmjax.objectives import OBJECTIVES, Objective
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.objectives.span_corruption import SPAN_CORRUPTION


def question(tokens: np.ndarray, spec) -> int:
    """Returns the number of tokens up to and with the "=" of a document with its eos on both sides; 0 for other text.

    Example: of eos "mod 20+11=2" eos: 11.
    """
    at = np.flatnonzero(tokens == ord("="))
    whole = tokens[0] == tokens[-1] == spec.specials.eos
    return int(at[0]) + 1 if len(at) == 1 and whole and at[0] < len(tokens) - 2 else 0


def masked(tokens, rng, spec):
    """Masks the whole answer; the last eos, where the answer ends, is not read.

    Example: eos 90, mask 92, tokens [90, a, =, b, c, 90]
        inputs [90, a, =, 92, 92], targets [90, a, =, b, c], weights [0, 0, 0, 1, 1]
    """
    asked, tokens = question(tokens, spec), tokens[:-1].astype(np.int32)
    if not asked:
        return MASKED_LM.make_example(tokens, rng, spec)
    answer = np.arange(len(tokens)) >= asked
    inputs = np.where(answer, spec.specials.mask, tokens).astype(np.int32)
    return {"inputs": inputs, "targets": tokens, "weights": answer.astype(np.float32)}


def written(tokens, rng, spec):
    """Reads the question and writes the answer.

    Example: eos 90, pad 91, tokens [90, a, =, b, c, 90]
        encoder_inputs [90, a, =, 90], inputs [91, b, c], targets [b, c, 90], weights [1, 1, 1]
    """
    if not (asked := question(tokens, spec)):
        return SPAN_CORRUPTION.make_example(tokens, rng, spec)
    tokens = tokens.astype(np.int32)
    source, target = np.append(tokens[:asked], spec.specials.eos), tokens[asked:]
    return {
        "encoder_inputs": source.astype(np.int32),
        "inputs": np.concatenate([[spec.specials.pad], target[:-1]]).astype(np.int32),
        "targets": target,
        "weights": np.ones(len(target), np.float32),
    }


def continued(tokens, rng, spec):
    """Predicts the answer byte by byte, and nothing of the question.

    Example: eos 90, tokens [90, a, =, b, c, 90]
        inputs [90, a, =, b, c], targets [a, =, b, c, 90], weights [0, 0, 1, 1, 1]
    """
    example = CAUSAL_LM.make_example(tokens, rng, spec)
    asked = np.arange(len(tokens) - 1) < question(tokens, spec) - 1
    return {**example, "weights": np.where(asked, 0.0, example["weights"]).astype(np.float32)}


OBJECTIVES["continued_answers"] = dataclasses.replace(
    CAUSAL_LM, name="continued_answers", make_example=continued, full_likelihood=False, expected_weight=None
)
OBJECTIVES["masked_answers"] = Objective(
    name="masked_answers",
    version=1,
    attention="bidirectional",
    make_example=masked,
    lengths=lambda n, options: {"inputs": n - 1},
    overlap=1,  # the windows of the decoders
    options=MASKED_LM.options,
    ranges=MASKED_LM.ranges,
    conflict=MASKED_LM.conflict,
    visible_answers="keep_rate",
)
OBJECTIVES["written_answers"] = Objective(
    name="written_answers",
    version=1,
    attention="encoder_decoder",
    make_example=written,
    lengths=lambda n, options: {"inputs": n // 2 + 2, "encoder_inputs": n + 1},  # the most: no answer is longer
    padded=True,
    options=SPAN_CORRUPTION.options,
    ranges=SPAN_CORRUPTION.ranges,
    conflict=SPAN_CORRUPTION.conflict,
)

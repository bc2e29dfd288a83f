"""Mixture of denoisers (UL2, arXiv 2205.05131): short spans (R), the end of the text (S), and long or many spans (X).

A mode token before the source names the denoiser's type: the last three sentinels stand for [R], [S] and [X]. The seven
denoisers of the paper are drawn in equal shares, and validation reports the loss of each. For other mixtures, see
`lmjax.objectives.compose.mixture`.
"""

import dataclasses
import math

import numpy as np

from lmjax.errors import InputError
from lmjax.objectives.base import Example, Objective, Spec
from lmjax.objectives.compose import for_decoder, mixture
from lmjax.objectives.span_corruption import SPAN_CORRUPTION, counts, lengths, without

MODES = ("R", "S", "X")
DENOISERS = {  # name: mode, mean span, share of the tokens that are removed
    "r3": ("R", 3.0, 0.15),
    "r8": ("R", 8.0, 0.15),
    "s": ("S", math.inf, 0.25),  # one span, at the end
    "x3": ("X", 3.0, 0.5),
    "x8": ("X", 8.0, 0.5),
    "x64_15": ("X", 64.0, 0.15),
    "x64_50": ("X", 64.0, 0.5),
}


def denoiser(mode: str) -> Objective:
    """Returns span corruption with a mode token before its source; in mode S, the end of the text is removed.

    Raises:
        InputError: too few sentinels for all spans and modes (raised when an example is made).

    Example: mode S, density 0.25, sentinels 91 .. 94 of which the last three are modes, eos 90, pad 89
        tokens         [5, 6, 7, 8]
        encoder_inputs [93, 5, 6, 7, 91, 90]
        inputs         [89, 91, 8]
        targets        [91, 8, 90]
    """

    def make_example(tokens: np.ndarray, rng: np.random.Generator, spec: Spec) -> Example:
        n, sentinels = len(tokens), spec.specials.sentinels
        most = max(counts(n, {"noise_density": share, "mean_span": span})[1] for _, span, share in DENOISERS.values())
        if most + len(MODES) > len(sentinels):
            raise InputError(
                f"ul2: rows of {n} tokens need {most + len(MODES)} sentinels, three of them for the modes, there are "
                f"{len(sentinels)}; set data.num_sentinels={most + len(MODES)} or more"
            )
        token = sentinels[len(sentinels) - len(MODES) + MODES.index(mode)]
        specials = dataclasses.replace(spec.specials, sentinels=sentinels[: -len(MODES)])
        spec = dataclasses.replace(spec, specials=specials)
        if mode == "S":
            noise = counts(n, spec.options)[0]
            example = without(tokens, [n - noise], [noise], spec)
        else:
            example = SPAN_CORRUPTION.make_example(tokens, rng, spec)
        return {**example, "encoder_inputs": np.insert(example["encoder_inputs"], 0, token)}

    def reconstruct(example, spec):
        return SPAN_CORRUPTION.reconstruct({**example, "encoder_inputs": example["encoder_inputs"][1:]}, spec)

    def longer(n, options):
        found = lengths(n, options)
        return {**found, "encoder_inputs": found["encoder_inputs"] + 1}

    changes = {"make_example": make_example, "reconstruct": reconstruct, "lengths": longer}
    return dataclasses.replace(SPAN_CORRUPTION, name=f"denoiser_{mode}", **changes)


def _parts(adapt=lambda objective: objective):
    return {
        name: (adapt(denoiser(mode)), {"mean_span": span, "noise_density": share}, 1.0)
        for name, (mode, span, share) in DENOISERS.items()
    }


UL2 = mixture("ul2", _parts())
UL2_DECODER = mixture("ul2_decoder", _parts(for_decoder))

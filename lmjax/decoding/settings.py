"""Settings of a decoding run, checked when they are made."""

import dataclasses
import math

from lmjax.errors import InputError, nearest

METHODS = ("greedy", "sample", "beam")

# Fields that only some methods use; set for another method they would be ignored, so they are refused.
READ_BY = {
    "temperature": ("sample",),
    "top_k": ("sample",),
    "top_p": ("sample",),
    "min_p": ("sample",),
    "seed": ("sample",),
    "num_return": ("sample", "beam"),
    "num_beams": ("beam",),
    "length_penalty": ("beam",),
    "early_stopping": ("beam",),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to continue a prompt. Meanings and order of the logits processors are those of transformers:

        repetition_penalty, min_new_tokens, then (sample only) temperature, top_k, top_p, min_p.

    Beam search applies the first two to log-probabilities, the others to logits (as transformers does).

    Attributes:
        method: greedy: the most probable token at each step. sample: sample from the processed distribution.
            beam: beam search with num_beams hypotheses.
        temperature: divisor of the logits; above 0.
        top_k: keep the k largest logits and all ties with the k-th; 0: off.
        top_p: keep the fewest most probable tokens whose probabilities sum to at least top_p; in (0, 1], 1: off.
        min_p: drop tokens with a probability below min_p x that of the most probable token; in [0, 1], 0: off.
        repetition_penalty: for tokens that occur in the prompt (encoder-decoders: in the target) or in the generated
            text, divides positive logits and multiplies negative ones; above 0, 1: off.
        num_beams: hypotheses kept by beam search.
        length_penalty: a finished hypothesis scores (sum of log-probabilities) / tokens ** length_penalty.
        early_stopping: when beam search ends once it has num_beams finished hypotheses. True: at once. False: when the
            best running hypothesis scores below the worst finished one at its current length. "never": when it scores
            below it at both the current and the largest possible length.
        num_return: number of samples, or of best beams, per prompt.
        max_new_tokens: maximum number of new tokens.
        min_new_tokens: minimum number of new tokens; stop ids are masked before.
        stop_ids: token ids that end generation; None: the tokenizer's eos.
        stop_strings: strings that end generation; the text is cut before the string.
        seed: random seed. Token t of sample s of prompt i depends only on (seed, i, s, t).
        truncate: if a prompt is longer than the model's context: "refuse" it, or drop its first tokens ("left").
    """

    method: str = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    num_return: int = 1
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    stop_ids: tuple[int, ...] | None = None
    stop_strings: tuple[str, ...] = ()
    seed: int = 0
    truncate: str = "refuse"

    def __post_init__(self):
        if self.method not in METHODS:
            near = nearest(self.method, METHODS) if isinstance(self.method, str) else ""
            raise InputError(f"method: expected {' | '.join(METHODS)}, got {self.method!r}{near}")
        for name in ("stop_ids", "stop_strings"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, (expected, ok) in _CHECKS.items():
            value = getattr(self, name)
            if not ok(value):
                raise InputError(f"{name}: expected {expected}, got {value!r}")
        for field in dataclasses.fields(self):
            readers = READ_BY.get(field.name, METHODS)
            if self.method not in readers and getattr(self, field.name) != field.default:
                raise InputError(
                    f"{field.name}={getattr(self, field.name)!r} applies only to method {' or '.join(readers)}, got "
                    f"method={self.method!r}; set method={readers[0]!r} or leave {field.name} out"
                )
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens: expected at most max_new_tokens {self.max_new_tokens}, got {self.min_new_tokens}"
            )
        if self.method == "beam" and self.num_return > self.num_beams:
            raise InputError(
                f"num_return: expected at most num_beams {self.num_beams}, got {self.num_return}; set num_beams higher"
            )

    @property
    def candidates(self) -> int:
        """Continuations considered per beam and step: enough to always include num_beams unfinished ones."""
        return max(2, 1 + len(set(self.stop_ids or ())))


def _whole(value, low, high=math.inf):
    return type(value) is int and low <= value <= high


def _number(value):
    return type(value) in (int, float) and math.isfinite(value)


_CHECKS = {
    "temperature": (
        "a number above 0 (method='greedy' is its limit at 0), 1e-4 to 1e4",
        lambda v: _number(v) and 1e-4 <= v <= 1e4,
    ),
    "top_k": ("a whole number, 0 (off) or above", lambda v: _whole(v, 0)),
    "top_p": ("a number in (0, 1], 1: off", lambda v: _number(v) and 0 < v <= 1),
    "min_p": ("a number in [0, 1], 0: off", lambda v: _number(v) and 0 <= v <= 1),
    "repetition_penalty": ("a number above 0, 1e-3 to 1e3, 1: off", lambda v: _number(v) and 1e-3 <= v <= 1e3),
    "num_beams": ("a whole number above 0", lambda v: _whole(v, 1)),
    "length_penalty": ("a number, -10 to 10", lambda v: _number(v) and -10 <= v <= 10),
    "early_stopping": ("True, False or 'never'", lambda v: v is True or v is False or v == "never"),
    "num_return": ("a whole number above 0", lambda v: _whole(v, 1)),
    "max_new_tokens": ("a whole number above 0", lambda v: _whole(v, 1)),
    "min_new_tokens": ("a whole number, 0 or above", lambda v: _whole(v, 0)),
    "stop_ids": (
        "a tuple of ids, () for none or None for the tokenizer's eos",
        lambda v: v is None or (isinstance(v, tuple) and all(_whole(x, 0) for x in v)),
    ),
    "stop_strings": (
        "a tuple of texts, none of them empty",
        lambda v: isinstance(v, tuple) and all(isinstance(x, str) and x for x in v),
    ),
    "seed": ("a whole number in 0 .. 2^32 - 1", lambda v: _whole(v, 0, 2**32 - 1)),
    "truncate": ("'refuse' or 'left'", lambda v: v in ("refuse", "left")),
}

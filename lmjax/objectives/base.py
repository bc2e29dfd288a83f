"""Definition of a training objective: a pure NumPy function from tokens to a training example, and a declaration."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmjax.config import merged_options
from lmjax.data.windows import RECORDS
from lmjax.errors import InputError, nearest
from lmjax.registry import described, taking

ATTENTION = ("causal", "bidirectional", "prefix", "encoder_decoder", "permutation", "pairs")
KINDS = ("tokens", "row", "span", "value")
POSITIONS = ("first", "last", "mean")
PIECES = ("next", "same", "other", *RECORDS)
EXTRAS = ("tokens", "row")
ARGUMENTS = {  # of the functions of an objective
    "make_example": ("tokens", "rng", "spec"),
    "reconstruct": ("example", "spec"),
    "frame": ("spec",),
    "loss": ("outputs", "batch", "options"),
    **dict.fromkeys(("lengths", "expected_weight"), ("n", "options")),
    **dict.fromkeys(("heads", "conflict"), ("options",)),
}
TAKEN = "inputs prefix order contexts token_types positions segment_ids group continues carry logits_at".split()
Example = dict[str, np.ndarray]
Frame = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]  # ids before a text, after it, and before a target


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `make_example` needs besides tokens and random numbers: the vocabulary and the objective's options."""

    vocab_size: int  # number of text ids and special ids
    text_vocab_size: int  # text ids are 0 .. text_vocab_size - 1
    specials: Any  # .eos, .pad, .mask: int; .sentinels: tuple of int
    options: Mapping[str, Any]
    tokenizer: Any = None  # its token_bytes are the bytes of each id; see `units.sentences` and `units.words`
    frequencies: np.ndarray | None = None  # [text_vocab_size] relative frequencies in the training text, if requested


@dataclasses.dataclass(frozen=True)
class Head:
    """A prediction head of an objective. The loss is the sum over heads of coefficient x (sum of losses / weight).

    Each head has two arrays in an example, `<name>_targets` and `<name>_weights` (float32). By kind:
        tokens  a label per position: targets [T] int32, weights [T]. Without `classes`, the labels are vocabulary ids.
                Those of the LM head are in the arrays `targets` and `weights`
        row     a label per row: targets [] int32, weights []
        span    first and last position of a span: targets [2] int32, weights []
        value   a number per row, with squared error: targets [] float32, weights []

    Example: the heads of BERT are LM (masked tokens) and Head("next", "row", 2) (whether B follows A).
    """

    name: str
    kind: str = "tokens"  # tokens | row | span | value
    classes: int | None = None  # number of classes (tokens, row); None: the vocabulary (tokens), or span and value
    coefficient: float = 1.0  # factor on the head's mean loss
    position: str = "first"  # predict a row or value from the first | last position, or from the mean of all positions

    def __post_init__(self):
        for value, known in ((self.kind, KINDS), (self.position, POSITIONS)):
            if value not in known:
                raise InputError(f"head {self.name!r}: unknown {value!r}{nearest(value, known)}")
        is_lm, counted = self.name == "lm", self.classes is not None
        fits = counted if self.kind == "row" else not counted or (self.kind == "tokens" and not is_lm)
        if not fits or (is_lm and self.kind != "tokens") or not self.name.isidentifier():
            raise InputError(
                f"head {self.name!r} of kind {self.kind}, classes {self.classes}: expected an identifier as its name, "
                "classes for the kind row, classes or none (the vocabulary) for tokens, none for span and value, and "
                "for the LM head, 'lm', the kind tokens without classes"
            )

    @property
    def targets(self) -> str:
        """Name of the array of labels."""
        return "targets" if self.name == "lm" else f"{self.name}_targets"

    @property
    def weights(self) -> str:
        """Name of the array of weights."""
        return "weights" if self.name == "lm" else f"{self.name}_weights"


LM = Head("lm")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training objective. Data loading, packing, attention masks, loss, FLOPs and evaluation follow from its fields.

    `make_example(tokens, rng, spec)` must be pure: the same tokens and generator state give the same arrays. The
    generator is derived from (seed, index of the example), so an example never depends on hosts, devices, batch size
    or restarts. It returns these arrays (T and S as given by `lengths`):
        inputs [T] int32, targets [T] int32, weights [T] float32 (0: not predicted), and
        prefix [T] bool (attention "prefix" only: visible to all), encoder_inputs [S] int32 ("encoder_decoder" only),
        order [T] int32 ("permutation" only: a prediction sees inputs of lower order only),
        contexts [T] int32 ("pairs" only: a prediction sees only the input and the context at its position).
    Targets and weights are those of the heads; token_types and positions [T] int32 are optional. With `pieces`,
    `tokens` is a tuple of pieces of at most n tokens each: the first piece and others related to it, chosen as a
    function of (seed, index):
        next      the text that follows the first piece in its document
        same      another part of the same document, not the next one
        other     a piece of another document
        parallel  the other side of a pair (sources of pairs); cannot be combined with other pieces
        cells     a row of a table; cannot be combined. The pieces alternate between column names and values (which may
                  be empty), any even number of them, with n tokens in total
    """

    name: str
    version: int  # part of every run id; increase it when the meaning changes
    attention: str  # one of ATTENTION
    make_example: Callable[[np.ndarray, np.random.Generator, Spec], Example]
    lengths: Callable[[int, Mapping], dict[str, int]]  # (source tokens, options) -> {"inputs": T, "encoder_inputs": S}
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # options and their defaults
    overlap: int = 0  # source tokens that consecutive windows share (1 for next-token prediction)
    full_likelihood: bool = False  # every source token is predicted once, from its past, so bits per byte is defined
    # (n, options) -> mean of weights.sum(); None if it depends on the text
    expected_weight: Callable[[int, Mapping], float | None] | None = None
    reconstruct: Callable[[Example, Spec], np.ndarray] | None = None  # example -> the tokens it came from
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # option -> (minimum, maximum)
    # Share of targets that the inputs show on purpose: a number, an option's name, or a function of the options.
    visible_answers: float | str | Callable[[Mapping], float] = 0.0
    conflict: Callable[[Mapping], str] = lambda options: ""  # error message if options contradict each other, else ""
    heads: Callable[[Mapping], tuple[Head, ...]] = lambda options: (LM,)  # options -> prediction heads
    # (outputs, batch, options) -> {name: (sum, weight)}, own terms of the loss; see `lmjax.losses.terms`
    loss: Callable[[Mapping, Mapping, Mapping], dict] | None = None
    token_types: int = 0  # number of token types, if examples have token_types
    # Further arrays of an example, which its own loss or an own model reads: name -> "tokens" ([T, ...], padded with
    # zeros) or "row" (any shape, the same in all examples), of dtype int32, float32 or bool.
    extras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frequencies: bool = False  # make_example needs the frequencies of ids in the spec
    padded: bool = False  # examples may be shorter than `lengths` says; the rest of the row is padding
    pieces: tuple[str, ...] = ()  # further pieces that make_example receives, by their relation to the first (PIECES)
    pieces_per_row: int = 1  # number of the given pieces that an example contains
    frame: Callable[[Spec], Frame] | None = None  # ids around the texts of an encoder-decoder; None: the tokenizer's
    groups: tuple[str, ...] = ()  # names of kinds of examples, indexed by the array `group`; each has its own LM loss

    def __post_init__(self):
        for field, arguments in ARGUMENTS.items():
            function = getattr(self, field)
            if function is not None and (expected := taking(*arguments)(function)):
                raise InputError(f"objective {self.name}: {field}: expected {expected}, got {described(function)}")
        if self.attention not in ATTENTION:
            raise InputError(f"objective {self.name}: attention {self.attention!r}{nearest(self.attention, ATTENTION)}")
        for relation in self.pieces:
            if relation not in PIECES:
                raise InputError(f"objective {self.name}: unknown piece {relation!r}{nearest(relation, PIECES)}")
        if len(self.pieces) > 1 and {*RECORDS} & {*self.pieces}:
            raise InputError(f"objective {self.name}: expected {' or '.join(RECORDS)} alone, got {self.pieces}")
        for name, kind in self.extras.items():
            if kind not in EXTRAS:
                raise InputError(f"objective {self.name}: extras {name!r}: unknown {kind!r}{nearest(kind, EXTRAS)}")
            if name in TAKEN or name.startswith("encoder_") or name.endswith(("targets", "weights")):
                raise InputError(
                    f"objective {self.name}: extras {name!r}: expected a name that no array of a batch has and that "
                    "does not begin with encoder_ or end with targets or weights"
                )
        if self.pieces and not self.padded:
            raise InputError(f"objective {self.name}: pieces have different lengths; expected padded=True, got False")

    def arrays(self, options: Mapping) -> tuple[set[str], set[str]]:
        """Returns the names of the required and of the optional arrays of an example. Optional are positions, and
        labels of heads other than the LM head, because the model or the objective's own loss can provide these."""
        labels = {name for head in self.heads(options) for name in (head.targets, head.weights)}
        more = {
            "prefix": {"prefix"},
            "encoder_decoder": {"encoder_inputs"},
            "permutation": {"order"},
            "pairs": {"contexts"},
        }
        more = more.get(self.attention, set())
        more |= {name for name, used in (("token_types", self.token_types), ("group", self.groups)) if used}
        more |= {*self.extras}
        return {"inputs"} | more | (labels & {"targets", "weights"}), {"positions", *labels} - {"targets", "weights"}

    def own_terms(self, options: Mapping) -> Callable[[Mapping, Mapping], dict] | None:
        """Returns `loss` under these options, (outputs, batch) -> terms; None without one."""
        own = self.loss
        return own and (lambda outputs, batch: own(outputs, batch, options))

    def spec(self, tokenizer: Any, given: Mapping[str, Any], frequencies: np.ndarray | None = None) -> Spec:
        """Returns the spec that `make_example` receives. `given` options override the objective's defaults."""
        options = merge_options(self, given)
        ids = tokenizer.vocab_size, tokenizer.text_vocab_size, tokenizer.specials
        return Spec(*ids, options, tokenizer, frequencies)

    def window_length(self, options: Mapping, seq_len: int, encoder_seq_len: int) -> int:
        """Returns the largest number of source tokens whose example fits in a row.

        Args:
            options: the merged options.
            seq_len: maximum length of `inputs`, in tokens.
            encoder_seq_len: maximum length of `encoder_inputs`, in tokens (ignored without them).

        Raises:
            InputError: fewer than 2 tokens fit (3 if windows do not overlap).

        Example: next-token prediction in rows of 128 reads windows of 129 tokens; consecutive windows share 1 token.
        """
        room = {"inputs": seq_len, "encoder_inputs": encoder_seq_len}

        def fits(n):
            return all(length <= room[name] for name, length in self.lengths(n, options).items())

        n, upper = 3 - self.overlap, 8 * (seq_len + encoder_seq_len) + 8
        if not fits(n):
            raise InputError(
                f"objective {self.name}: expected rows that hold {n} source tokens or more, got data.seq_len {seq_len} "
                f"and data.encoder_seq_len {encoder_seq_len}; set them higher"
            )
        while upper - n > 1:  # lengths never shrink as n grows
            middle = (n + upper) // 2
            n, upper = (middle, upper) if fits(middle) else (n, middle)
        return n


def merge_options(objective: Objective, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the objective's options, with its defaults overridden by `given`.

    Raises:
        InputError: an unknown name, a wrong type, a value out of range, or options that contradict each other.
    """
    merged = merged_options("objective", objective.options, given, objective.ranges)
    if message := objective.conflict(merged):
        raise InputError(f"objective {objective.name}: {message}")
    return merged

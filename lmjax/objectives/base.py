"""Definition of a training objective: a pure NumPy function from tokens to a training example, and its properties."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lmjax.config import merged_options
from lmjax.data.windows import RECORDS
from lmjax.errors import InputError, nearest

ATTENTION = ("causal", "bidirectional", "prefix", "encoder_decoder", "permutation", "pairs")
KINDS = ("tokens", "row", "span", "value")
POSITIONS = ("first", "last", "mean")
PIECES = ("next", "same", "other", *RECORDS)
Example = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Arguments of `make_example` besides the tokens: the vocabulary's ids and the objective's options."""

    vocab_size: int  # text ids and special ids
    text_vocab_size: int  # text ids are 0 .. text_vocab_size - 1
    specials: Any  # .eos, .pad, .mask: int; .sentinels: tuple of int
    options: Mapping[str, Any]
    tokenizer: Any = None  # has the bytes of each id, token_bytes; see `units.sentences` and `units.words`
    frequencies: np.ndarray | None = None  # [text_vocab_size] shares of the text ids in the training text, if asked for


@dataclasses.dataclass(frozen=True)
class Head:
    """Something an objective predicts. The loss is the sum over heads of coefficient x (sum of losses / weight).

    Arrays of an example, `<name>_weights` float32 and `<name>_targets`, by kind:
        tokens  a label per position: targets [T] int32, weights [T]. Without `classes`, the LM head: ids of the
                vocabulary, in the arrays `targets` and `weights`
        row     one label per row: targets [] int32, weights []
        span    first and last position of a span: targets [2] int32, weights []
        value   a number per row, by squared error: targets [] float32, weights []

    Example: LM, Head("next", "row", 2) are the heads of BERT: masked tokens, and whether B follows A.
    """

    name: str
    kind: str = "tokens"  # tokens | row | span | value
    classes: int | None = None  # number of labels (tokens, row); None: the vocabulary (tokens)
    coefficient: float = 1.0  # factor on its mean loss
    position: str = "first"  # where a row or value is predicted from: the first | last position, or their mean

    def __post_init__(self):
        for value, known in ((self.kind, KINDS), (self.position, POSITIONS)):
            if value not in known:
                raise InputError(f"head {self.name!r}: unknown {value!r}{nearest(value, known)}")
        is_lm, labelled = self.name == "lm", self.kind in ("tokens", "row") and self.name != "lm"
        if labelled != (self.classes is not None) or (is_lm and self.kind != "tokens") or not self.name.isidentifier():
            raise InputError(
                f"head {self.name!r} of kind {self.kind}, classes {self.classes}: expected an identifier as its name, "
                "classes for the kinds tokens and row only, and for the LM head, 'lm', the kind tokens without classes"
            )

    @property
    def targets(self) -> str:
        """Name of the array of its labels."""
        return "targets" if self.name == "lm" else f"{self.name}_targets"

    @property
    def weights(self) -> str:
        """Name of the array of its weights."""
        return "weights" if self.name == "lm" else f"{self.name}_weights"


LM = Head("lm")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A training objective. Loader, packing, masks, loss, FLOPs and evaluation follow from its fields.

    `make_example(tokens, rng, spec)` must be pure: the same tokens and generator state give the same arrays. The
    generator is derived from (seed, index of the example), so an example never depends on hosts, devices, batch size
    or restarts. Arrays it returns, T and S given by `lengths`:
        inputs [T] int32, targets [T] int32, weights [T] float32 (0: not predicted), and
        prefix [T] bool (attention "prefix" only: visible to all), encoder_inputs [S] int32 ("encoder_decoder" only),
        order [T] int32 ("permutation" only: a prediction sees the inputs of a lower order),
        contexts [T] int32 ("pairs" only: a prediction sees the input and the context of its position).
    Targets and weights are those of its heads; token_types and positions [T] int32 are optional. With `pieces`,
    `tokens` is a tuple of pieces of at most n tokens each, the first and those related to it, drawn as a function of
    (seed, index):
        next      the text that follows the first piece in its document
        same      another place of the same document, not the next
        other     another document
        parallel  alone: the other side of a pair, of sources that hold pairs
        cells     alone: a row of a table. The pieces are the texts that name a column and the values in turn, any even
                  number of them, of n tokens together; a value may be empty
    """

    name: str
    version: int  # part of every run id; increase it when the meaning changes
    attention: str  # one of ATTENTION
    make_example: Callable[[np.ndarray, np.random.Generator, Spec], Example]
    lengths: Callable[[int, Mapping], dict[str, int]]  # (source tokens, options) -> {"inputs": T, "encoder_inputs": S}
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # options and their defaults
    overlap: int = 0  # source tokens that consecutive windows share (1 for next-token prediction)
    full_likelihood: bool = False  # every source token is predicted once, from its past: bits per byte is defined
    # (n, options) -> mean of weights.sum(); None if it depends on the text
    expected_weight: Callable[[int, Mapping], float | None] | None = None
    reconstruct: Callable[[Example, Spec], np.ndarray] | None = None  # example -> the tokens it came from
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)  # option -> (minimum, maximum)
    # Share of targets deliberately visible in the inputs: a number, an option's name, or a function of the options.
    visible_answers: float | str | Callable[[Mapping], float] = 0.0
    conflict: Callable[[Mapping], str] = lambda options: ""  # error message if options contradict each other, else ""
    heads: Callable[[Mapping], tuple[Head, ...]] = lambda options: (LM,)  # options -> what it predicts
    loss: Callable[[Mapping, Mapping], dict] | None = None  # own terms of the loss; see `lmjax.losses.terms`
    token_types: int = 0  # number of token types in token_types, if its examples have them
    noise: bool = False  # its examples have noise [T] float32, numbers in [0, 1) for a model that draws something
    frequencies: bool = False  # its examples depend on the frequencies of ids; they are then in the spec
    padded: bool = False  # examples may be shorter than `lengths` says; the rest of the row is padding
    pieces: tuple[str, ...] = ()  # further pieces of text for each example, by relation to the first: PIECES
    pieces_per_row: int = 1  # of those given, how many an example holds
    decoder_start: Callable[[Spec], int] | None = None  # id that a generated target begins with; None: the tokenizer's
    groups: tuple[str, ...] = ()  # kinds of examples, numbered by their array `group`: each has its own LM loss

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise InputError(f"objective {self.name}: attention {self.attention!r}{nearest(self.attention, ATTENTION)}")
        for relation in self.pieces:
            if relation not in PIECES:
                raise InputError(f"objective {self.name}: unknown piece {relation!r}{nearest(relation, PIECES)}")
        if len(self.pieces) > 1 and {*RECORDS} & {*self.pieces}:
            raise InputError(f"objective {self.name}: expected {' or '.join(RECORDS)} alone, got {self.pieces}")
        if self.pieces and not self.padded:
            raise InputError(f"objective {self.name}: pieces have different lengths; expected padded=True, got False")

    def arrays(self, options: Mapping) -> tuple[set[str], set[str]]:
        """Returns the names of the arrays that examples have, and of those they may have: labels of heads other than
        the LM head, which the model or the objective's own loss can provide instead, and positions."""
        labels = {name for head in self.heads(options) for name in (head.targets, head.weights)}
        more = {
            "prefix": {"prefix"},
            "encoder_decoder": {"encoder_inputs"},
            "permutation": {"order"},
            "pairs": {"contexts"},
        }
        more = more.get(self.attention, set())
        some = (("token_types", self.token_types), ("group", self.groups), ("noise", self.noise))
        more |= {name for name, used in some if used}
        return {"inputs"} | more | (labels & {"targets", "weights"}), {"positions", *labels} - {"targets", "weights"}

    def spec(self, tokenizer: Any, given: Mapping[str, Any], frequencies: np.ndarray | None = None) -> Spec:
        """Returns the spec passed to `make_example`: a tokenizer's ids, the options with `given` ones replaced, and the
        frequencies of ids."""
        options = merge_options(self, given)
        ids = tokenizer.vocab_size, tokenizer.text_vocab_size, tokenizer.specials
        return Spec(*ids, options, tokenizer, frequencies)

    def window_length(self, options: Mapping, seq_len: int, encoder_seq_len: int) -> int:
        """Returns the largest number of source tokens whose example fits a row.

        Args:
            options: the merged options.
            seq_len: room for `inputs`, in tokens.
            encoder_seq_len: room for `encoder_inputs`, in tokens (ignored when there are none).

        Raises:
            InputError: fewer than 2 tokens fit (3 where windows do not overlap).

        Example: next-token prediction in rows of 128 consumes windows of 129 tokens, consecutive ones share 1.
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
    """Returns the objective's options with `given` ones replaced.

    Raises:
        InputError: an unknown name, another type, a value out of range, or options that contradict each other.
    """
    merged = merged_options("objective", objective.options, given, objective.ranges)
    if message := objective.conflict(merged):
        raise InputError(f"objective {objective.name}: {message}")
    return merged

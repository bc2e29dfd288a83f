"""The loss of a model over whole documents, in windows; perplexity and bits per byte where they are defined.

causal       every token once, in sliding windows; also the end of a document, if training had eos between documents
pseudo       encoders, XLNet: every token hidden in turn. This gives a pseudo-perplexity; bits per byte are not defined
infilling    encoder-decoders: the loss of removed spans, which is not a perplexity of the text. evaluation.seed and the
             number of the window determine the spans, as in lmjax.validation; in documents other than the run's own the
             text determines them, so that a document's loss does not depend on the other documents
conditional  encoder-decoders: the loss of the second half of each stretch of text given its first half

D documents.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lmjax import objectives
from lmjax.data import pipeline, windows
from lmjax.errors import InputError
from lmjax.evals import calibration, framing
from lmjax.evals.documents import Document, of_source, of_texts, own
from lmjax.evals.framing import array
from lmjax.evals.rows import Row, context_window, continued, hidden, predict
from lmjax.evals.score import choose
from lmjax.evals.table import setting
from lmjax.validation import mixture_ratio, ratio

_ROWS = 4096  # rows built at a time
_SEEN = ("confidence", "correct", "p", "squares")  # of every prediction, for calibration
NOT_MASKED = "semantics 'masked' is of an answer in a context, not of a document; use pseudo, or leave it out"
_PSEUDO_TOKENS = 4096  # default budget of pseudo-likelihoods, which cost a row for each token

Asked = tuple[Row, np.ndarray | None]  # a row and the weights of its predictions; None: all 1


def evaluate(
    trained,
    source: str = "",
    documents: Sequence[str] | None = None,
    *,
    semantics: str = "",
    window: int = 0,
    stride: int = 0,
    max_tokens: int | None = None,
    include_end: bool | None = None,
    bins: int = 15,
    batch_size: int = 16,
    per_document: bool = False,
) -> dict:
    """Returns the loss over documents.

    Args:
        trained: a loaded model.
        source: name of a source; "" and no documents: the run's own validation documents.
        documents: texts, instead of a source.
        semantics: causal | pseudo | infilling | conditional; "": the model's default.
        window: ids per row (causal, pseudo); 0: the model's window.
        stride: tokens by which windows advance (causal, pseudo): all but the first predicted tokens have at least
            window - stride tokens before them; 0: the window, so that windows do not overlap.
        max_tokens: budget in whole documents; 0: all; None: config.evaluation.max_tokens (pseudo: at most 4096).
        include_end: also predict the eos after a document (causal); None: where training documents begin with eos.
        bins: bins of the calibration tables; 0: no calibration.
        batch_size: rows per call; changes speed only.
        per_document: add "per_document", a list of {source, nats, tokens, bytes}.

    Returns:
        semantics, loss (nats per predicted token; of a mixture, its sources' losses weighted by data.weights),
        loss_tokens, bytes, documents, loss_stderr (over documents, None for one), perplexity and bits_per_byte with
        bits_per_byte_stderr (causal, else None; no bits of words), pseudo_perplexity (pseudo, else None), window,
        stride, include_end, calibration (see calibration.summary), entropy (causal on synthetic sources, else None; see
        `entropy_gap`), sources: the same by source.

    Raises:
        InputError: no such source or semantics; a stride beyond the window; a document that is too short.

    Example: a model with uniform logits over 320 ids has loss log 320 = 5.768 and perplexity 320.
    """
    frame, semantics = framing.frame(trained), choose(trained, semantics)
    if semantics == "masked":
        raise InputError(NOT_MASKED)
    if source and documents is not None:
        raise InputError(f"expected a source or documents, got both: {source!r} and {len(documents)} texts")
    if max_tokens is None and semantics == "pseudo":
        max_tokens = min(setting(trained.config, "evaluation", "max_tokens") or _PSEUDO_TOKENS, _PSEUDO_TOKENS)
    if documents is not None:
        found = of_texts(trained, documents)
    else:
        found = of_source(trained, source, max_tokens) if source else own(trained, max_tokens)
    if include_end is None:
        include_end = not frame.every_row
    options = {"window": window or context_window(trained), "stride": stride, "include_end": include_end}
    if semantics in ("infilling", "conditional"):
        if window or stride:
            raise InputError(f"semantics {semantics!r} has no sliding windows; leave window and stride out")
        options |= {"window": None, "stride": None}
    infilling = functools.partial(_infilling, counted=not source and documents is None and max_tokens is None)
    maker = {"causal": _causal, "pseudo": _pseudo, "infilling": infilling, "conditional": _conditional}[semantics]
    rows_of = maker(trained, frame, options)
    nats, tokens, seen = _sums(trained, found, rows_of, batch_size, bins)

    def summary(chosen, weights):
        part = [found[d] for d in np.flatnonzero(chosen)]
        places = {key: values[chosen[seen["document"]]] for key, values in seen.items()}
        about = _summary(semantics, part, nats[chosen], tokens[chosen], places, options, bins, weights)
        lost = () if trained.tokenizer.lossless else ("bits_per_byte", "bits_per_byte_stderr")
        return about | dict.fromkeys(lost)

    source_D = np.asarray([document.source for document in found])
    names = list(dict.fromkeys(source_D.tolist()))
    weights = np.asarray(trained.config.data.weights) if len(names) > 1 else np.ones(1)  # several: the run's own
    result = {"semantics": semantics, **options, **summary(np.ones(len(found), bool), weights / weights.sum())}
    result["sources"] = {name: summary(source_D == name, np.ones(1)) for name in names}
    if per_document:
        result["per_document"] = [
            {"source": d.source, "nats": float(n), "tokens": float(t), "bytes": d.bytes}
            for d, n, t in zip(found, nats, tokens, strict=True)
        ]
    return result


def entropy_gap(nats: np.ndarray, true_nats: np.ndarray, tokens: np.ndarray) -> dict:
    """Returns the gap between a loss and that of the true law of a synthetic source on the same documents.

    Args:
        nats, true_nats: [D] -log p of each document under the model and under the law.
        tokens: [D] predicted tokens, eos among them.

    Returns:
        true_nats_per_token; gap (nats per token), in expectation never below 0, with gap_stderr over documents;
        consistent: gap >= -3 gap_stderr (None for one document).
    """
    gap, error = ratio(np.asarray(nats) - np.asarray(true_nats), tokens)
    return {
        "true_nats_per_token": float(np.sum(true_nats) / np.sum(tokens)),
        "gap": gap,
        "gap_stderr": error,
        "consistent": None if error is None else gap >= -3 * error,
    }


def _sums(trained, documents, rows_of, batch_size, bins):
    """Nats and predicted tokens by document [D] float64, and for calibration the arrays of all predictions."""
    nats, tokens = np.zeros(len(documents)), np.zeros(len(documents))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("document", *_SEEN)}
    asked = ((d, *row) for d, document in enumerate(documents) for row in rows_of(document))
    while chunk := list(itertools.islice(asked, _ROWS)):
        found = predict(trained, [row for _, row, _ in chunk], batch_size, details=bins > 0)
        for (d, _, weights), predictions in zip(chunk, found, strict=True):
            losses = -predictions.log_probs.astype(np.float64)
            nats[d] += losses.sum() if weights is None else float(losses @ weights)
            tokens[d] += len(losses) if weights is None else weights.sum()
            if bins:
                values = (predictions.confidence, predictions.greedy, np.exp(-losses), predictions.squares)
                for name, array_ in zip(parts, (np.full(len(losses), d), *values), strict=True):
                    parts[name].append(array_)
    empty = np.flatnonzero(tokens == 0)
    if len(empty):
        raise InputError(f"document {empty[0]} of {documents[empty[0]].source!r} has no token to predict")
    seen = {name: np.concatenate(arrays) if arrays else np.zeros(0, int) for name, arrays in parts.items()}
    return nats, tokens, seen


def _summary(semantics, documents, nats, tokens, seen, options, bins, weights):
    names = [document.source for document in documents]
    order = list(dict.fromkeys(names))
    source = np.asarray([order.index(name) for name in names])
    loss, error = mixture_ratio(nats, tokens, source, weights)
    sizes = np.asarray([document.bytes for document in documents])
    causal, defined = semantics == "causal", math.exp(min(loss, 700.0))
    bits, bits_error = (None, None)
    if causal and sizes.sum():
        bits, bits_error = mixture_ratio(nats / math.log(2), sizes, source, weights, tokens)
    truth = np.asarray([document.true_nats for document in documents])
    entropy = None
    if causal and options["include_end"] and not np.isnan(truth).any():
        expected = [document.entropy * count for document, count in zip(documents, tokens, strict=True)]
        entropy = {"nats_per_token": float(sum(expected) / tokens.sum()), **entropy_gap(nats, truth, tokens)}
    return {
        "loss": loss,
        "loss_stderr": error,
        "loss_tokens": float(tokens.sum()),
        "bytes": int(sizes.sum()),
        "documents": len(documents),
        "perplexity": defined if causal else None,
        "pseudo_perplexity": defined if semantics == "pseudo" else None,
        "bits_per_byte": bits,
        "bits_per_byte_stderr": bits_error,
        "calibration": calibration.summary(*(seen[name] for name in _SEEN), bins) if bins else None,
        "entropy": entropy,
    }


# -- From a document to rows


def spans(length: int, lead: int, reach: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields (begin, first, end) of windows over a sequence: tokens first .. end - 1 are predicted from begin on.

    Args:
        length: of the sequence.
        lead: tokens at its beginning that are not predicted.
        reach: tokens of a window, the last predicted one among them.
        stride: tokens by which windows advance, below `reach`.

    Example: 8 tokens, the first not predicted, reach 5: stride 4 gives (0, 1, 5), (4, 5, 8): 1..4 from 0, 5..7 from 4.
        Stride 2 gives (0, 1, 5), (2, 5, 7), (4, 7, 8).
    """
    begin, first = 0, lead
    while first < length:
        end = min(length, begin + reach)
        yield begin, first, end
        begin, first = begin + stride, end


def _room(options, framing_ids: int) -> tuple[int, int]:
    """(ids of text in a window, stride), checked."""
    room = options["window"] - framing_ids
    stride = options["stride"] or room
    if room < 2 or not 1 <= stride <= room:
        raise InputError(
            "expected a window with at least 2 text tokens and a stride of 1 to that many, got window "
            f"{options['window']} with {room} text tokens and stride {stride}"
        )
    options["stride"] = stride
    return room, stride


def _causal(trained, frame, options) -> Callable[[Document], Iterator[Asked]]:
    eos = trained.tokenizer.specials.eos
    head = array(frame.start if frame.every_row else ())
    lead = array(() if len(head) else frame.start or (eos,))
    tail = array((eos,) if options["include_end"] else ())
    if eos < 0 and (len(tail) or not len(head)):
        raise InputError("the tokenizer has no eos to begin and end documents with; set include_end=False")
    attention = trained.objective.attention
    room, stride = _room(options, len(head) + (attention == "permutation"))  # which also has the last id in the row

    def rows(document):
        text = np.concatenate([lead, document.ids, tail])
        for begin, first, end in spans(len(text), len(lead), room + 1, stride):
            yield continued(attention, np.concatenate([head, text[begin:first]]), text[first:end]), None

    return rows


def _pseudo(trained, frame, options) -> Callable[[Document], Iterator[Asked]]:
    if trained.tokenizer.specials.mask < 0 and trained.objective.attention != "permutation":
        raise InputError("pseudo-likelihood needs a mask token; import the model with a tokenizer that has one")
    head, lead = array(frame.start if frame.every_row else ()), array(() if frame.every_row else frame.start)
    room, stride = _room(options, len(head) + len(frame.end))
    options["include_end"] = False

    def rows(document):
        text = np.concatenate([lead, document.ids])
        for begin, first, end in spans(len(text), len(lead), room, stride):
            inputs = np.concatenate([head, text[begin:end], array(frame.end)])
            for i in range(first, end):
                yield hidden(inputs, np.asarray([len(head) + i - begin])), None

    return rows


def _infilling(trained, frame, options, counted: bool) -> Callable[[Document], Iterator[Asked]]:
    """The examples of span corruption, cut as lmjax.validation does with data.mode 'pack'.

    The noise of a window is keyed by evaluation.seed and, counted: by its number among all windows, as there; else by
    its document's ids and its number within the document.
    """
    objective, given = objectives.OBJECTIVES["span_corruption"], {}
    if trained.config.objective.name == objective.name:
        given = trained.config.objective.options
    spec = objective.spec(trained.tokenizer, given)
    data, eos = trained.config.data, trained.tokenizer.specials.eos
    source_room = data.encoder_seq_len if "encoder_seq_len" in data else data.seq_len
    most = objective.window_length(spec.options, data.seq_len, source_room)
    lead = array(() if frame.every_row else frame.start)
    tail = array((eos,) if options["include_end"] else ())
    random = pipeline.generators(setting(trained.config, "evaluation", "seed"), pipeline.EVALUATION)
    number = itertools.count()

    def rows(document):
        text = _at_least_two(np.concatenate([lead, document.ids, tail]), document)
        starts, lengths = windows.cut(np.asarray([0, len(text) - 1]), most, objective.overlap)
        content = int.from_bytes(hashlib.blake2b(document.ids.tobytes(), digest_size=8).digest(), "little")
        for piece, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
            key = (next(number), 0) if counted else (content, piece)
            example = objective.make_example(text[start : start + length], random(*key), spec)
            places = np.flatnonzero(example["weights"])
            row = Row(example["inputs"], example["targets"][places], places, encoder_inputs=example["encoder_inputs"])
            yield row, example["weights"][places].astype(np.float64)

    return rows


def _conditional(trained, frame, options) -> Callable[[Document], Iterator[Asked]]:
    start, end, first = array(frame.start), array(frame.end), array(frame.target)
    half = min(context_window(trained) - len(start) - len(end), context_window(trained) + 1 - len(first))
    if not len(first) or half < 2:
        raise InputError(f"conditional loss needs decoder_start ids, got {len(first)}, and 2 ids per half, got {half}")
    options["include_end"] = False

    def rows(document):
        text = _at_least_two(document.ids, document)
        for begin, length in zip(*windows.cut(np.asarray([0, len(text) - 1]), 2 * half, 0), strict=True):
            middle = begin + length // 2
            target = text[middle : begin + length]
            inputs = np.concatenate([first, target])[:-1]
            places = len(first) - 1 + np.arange(len(target))
            yield Row(inputs, target, places, np.concatenate([start, text[begin:middle], end])), None

    return rows


def _at_least_two(ids, document):
    if len(ids) < 2:
        raise InputError(f"a document of {document.source!r} has {len(ids)} tokens, expected 2 or more")
    return ids

"""Loss on validation documents: fixed rows, fixed corruption, every token once; independent of batch size and mesh.

B rows of an evaluation batch, T positions; R rows, D documents and S sources of the evaluation set.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmjax.data import pipeline
from lmjax.losses import chunked_nats
from lmjax.sharding import batch_sharding, make_global_batch, prefetch, row_shards

FEW_DOCUMENTS, LARGE_ERROR = 20, 0.01  # limits of `precision_warning`


def make_score(model: nn.Module, mesh: jax.sharding.Mesh, options: dict[str, bool] | None = None) -> Callable:
    """Return the compiled function (params, batch [1, B, T]) -> per row (sum of weighted nats, sum of weights), [B]
    float32 each, on every process; options: of `compiler_options`."""

    def score(params, batch):
        batch = {name: array[0] for name, array in batch.items()}
        if hasattr(model, "nats"):  # it need not compute the logits of all ids
            nats_BT = model.apply({"params": params}, batch, method="nats")
        else:
            nats_BT = chunked_nats(model.apply({"params": params}, batch, project=False), batch["targets"])
        return jnp.sum(nats_BT * batch["weights"], axis=1), jnp.sum(batch["weights"], axis=1)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(score, out_shardings=everywhere, compiler_options=options)


class Validation:
    """The validation rows of a run and the compiled function that scores them.

    Args:
        data, objective, config: of the run.
        model: batch of [B, T] arrays -> logits [B, T, V] or, with project=False, their factors.
        mesh: of the run.
        score: from `make_score` of this model and mesh; None: made here.
    """

    def __init__(self, data, objective, config: ConfigDict, model: nn.Module, mesh, score: Callable | None = None):
        self.set = pipeline.evaluation_rows(data, objective, config)
        self.count = self.set.count
        self.sources, self.weights = config.data.sources, data.weights
        self.full_likelihood = objective.full_likelihood
        shards = row_shards(mesh)
        self.batch_size = -(-min(config.evaluation.batch_size, self.count) // shards) * shards
        self._sharding = batch_sharding(mesh)
        self._score = score or make_score(model, mesh)

    def _batch(self, start: int, shift: int = 0) -> dict[str, jax.Array]:
        """Rows start .. start + batch_size, with the source of the row `shift` places on; weight 0 past the end."""

        def rows_of(indices):
            place = start + indices
            inside = place < self.count
            rows = self.set.rows(np.where(inside, place, 0))
            if shift:
                others = self.set.rows((place + shift) % self.count)
                rows |= {name: array for name, array in others.items() if name.startswith("encoder_")}
            rows["weights"] = rows["weights"] * inside[:, None].astype(np.float32)
            return rows

        return make_global_batch(rows_of, self._sharding, 1, self.batch_size)

    def per_row(self, params: Any, stop: Callable[[], bool] = lambda: False) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (nats, weights) of each row, float64 [count]; None if `stop()` became true."""
        nats, weights = [], []
        with contextlib.closing(prefetch(self._batch, range(0, self.count, self.batch_size))) as batches:
            for batch in batches:
                if stop():
                    return None
                row_nats, row_weights = self._score(params, batch)
                nats.append(row_nats)
                weights.append(row_weights)
        # Summed in float64 on the host, so that rounding does not depend on the batch size.
        nats, weights = (np.concatenate([np.asarray(x, np.float64) for x in xs]) for xs in (nats, weights))
        return nats[: self.count], weights[: self.count]

    def evaluate(self, params: Any, stop: Callable[[], bool] = lambda: False) -> dict[str, float | None] | None:
        """Returns the loss over the set, or None if `stop()` became true.

        Returns:
            loss: nats per predicted token; for a mixture, the mean of the sources' losses weighted by data.weights,
                with each source's loss as "loss/<source>".
            loss_standard_error: over documents; None where a source has one document.
            loss_documents, loss_tokens: documents and predicted tokens evaluated.
            perplexity: exp(loss).
            bits_per_byte: None unless the objective predicts every token of the text once.
        """
        rows = self.per_row(params, stop)
        if rows is None:
            return None
        nats_R, weight_R = rows
        documents, document_R = np.unique(self.set.document, return_inverse=True)
        source_D = np.zeros(len(documents), int)
        source_D[document_R] = self.set.source
        nats_D, weight_D = (np.bincount(document_R, x) for x in rows)
        loss, error = mixture_ratio(nats_D, weight_D, source_D, self.weights)
        by_source = {}
        if len(self.sources) > 1:
            nats, weight = (np.bincount(self.set.source, x) for x in rows)
            by_source = {f"loss/{name}": float(x) for name, x in zip(self.sources, nats / weight, strict=True)}
        weight_S = np.bincount(self.set.source, weight_R)
        size = float(np.dot(self.weights, self.set.bytes / weight_S))  # bytes per predicted token
        return {
            "loss": loss,
            **by_source,
            "loss_standard_error": error,
            "loss_documents": sum(self.set.documents),
            "loss_tokens": float(weight_R.sum()),
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss / math.log(2) / size if self.full_likelihood and size else None,
        }

    def seconds(self, params: Any, budget: float) -> float:
        """Returns the expected seconds of one evaluation, from as many batches as fit into `budget` seconds."""
        jax.block_until_ready(self._score(params, self._batch(0)))  # compiles
        starts, times = range(0, self.count, self.batch_size), []
        for start in starts:
            began = time.monotonic()
            jax.block_until_ready(self._score(params, self._batch(start)))
            times.append(time.monotonic() - began)
            if sum(times) > budget:
                break
        return len(starts) * sum(times) / len(times)

    def source_gain(self, params: Any, rows: int = 512) -> float | None:
        """Returns by how many nats per predicted token an encoder-decoder is better with the right source.

        The loss of the first `rows` rows, each with the source of the next row, less their loss with their own
        source. Near 0, the model is a language model of the target side that does not read its source. None for
        other families.
        """
        if self.count < 2 or "encoder_inputs" not in self.set.rows([0]):
            return None
        starts, losses = range(0, min(rows, self.count), self.batch_size), []
        for shift in (0, 1):
            batches = prefetch(functools.partial(self._batch, shift=shift), starts)
            parts = [self._score(params, batch) for batch in batches]
            nats, weight = (sum(np.asarray(part[i], np.float64).sum() for part in parts) for i in range(2))
            losses.append(nats / weight)
        return float(losses[1] - losses[0])

    def reference_losses(self, batches: pipeline.Pipeline, objective, rows: int = 2048) -> dict[str, float]:
        """Returns the validation losses of a unigram and a bigram count model, in nats per predicted token.

        A run that is not below them has learnt no context yet, and its loss says little about scaling.
        reference_unigram: frequencies of the targets, add-one smoothed. reference_bigram: the target given one visible
        token, the input at the same position (causal, prefix, encoder-decoder) or the one to its left (bidirectional),
        interpolated with the unigram (Witten and Bell 1991).

        Args:
            batches: the training rows.
            objective: of the run.
            rows: maximum number of training rows and of validation rows to read; the latter are evenly spread.
        """
        training, validation = (
            np.arange(min(rows, batches.rows_per_epoch)),
            np.arange(0, self.count, -(-self.count // rows)),
        )
        previous, target, weight, _ = _predictions(batches.rows(training), objective.attention)
        seen, asked, asked_weight, row = _predictions(self.set.rows(validation), objective.attention)
        source = np.asarray(self.set.source)[validation][row]
        asked_weight = asked_weight * (np.asarray(self.weights) / np.bincount(source, asked_weight))[source]
        ids = 1 + int(max(target.max(), asked.max(), previous.max(), seen.max()))
        unigram = np.bincount(target, weight, ids) + 1.0
        unigram /= unigram.sum()
        pairs, inverse = np.unique(previous * ids + target, return_inverse=True)
        pair_counts = np.bincount(inverse, weight)
        total, kinds = np.bincount(previous, weight, ids), np.bincount(pairs // ids, minlength=ids)
        at = np.minimum(np.searchsorted(pairs, seen * ids + asked), len(pairs) - 1)
        count = np.where(pairs[at] == seen * ids + asked, pair_counts[at], 0.0)
        known = np.maximum(total[seen] + kinds[seen], 1e-300)
        bigram = np.where(total[seen] > 0, (count + kinds[seen] * unigram[asked]) / known, unigram[asked])

        def loss(p):
            return float(-np.sum(asked_weight * np.log(p)) / asked_weight.sum())

        return {"reference_unigram": loss(unigram[asked]), "reference_bigram": loss(bigram)}


def ratio(amounts: np.ndarray, sizes: np.ndarray) -> tuple[float, float | None]:
    """Returns sum(amounts) / sum(sizes) and its standard error over documents, linearised; None for one document.

    Example: amounts [2, 4], sizes [1, 1]: 3, and sqrt(2 / 1 x ((2 - 3)^2 + (4 - 3)^2)) / 2 = 1.
    """
    return mixture_ratio(amounts, sizes, np.zeros(len(sizes), int), (1.0,))


def mixture_ratio(
    amounts: np.ndarray,
    sizes: np.ndarray,
    source: np.ndarray,
    weights: Sequence[float],
    tokens: np.ndarray | None = None,
) -> tuple[float, float | None]:
    """Returns a ratio and its standard error with each source weighted by its mixture weight, not its sample size.

    Args:
        amounts, sizes: [D] one of each per document, e.g. nats and predicted tokens.
        source: [D] the number of each document's source, 0 .. S - 1.
        weights: [S] share of each source in the mixture.
        tokens: [D] what the weights are shares of; None: `sizes`.

    Returns:
        The ratio, and its standard error over documents, or None where a source has a single document.

    Example: nats [2, 8] of 1 and 2 tokens, of sources with weights 0.75 and 0.25: 0.75 x 2 + 0.25 x 4 = 2.5.
    """
    amounts, sizes = np.asarray(amounts, np.float64), np.asarray(sizes, np.float64)
    tokens = sizes if tokens is None else np.asarray(tokens, np.float64)
    factor = np.asarray(weights) / np.bincount(source, tokens)
    size = float(np.dot(factor, np.bincount(source, sizes)))
    mean = float(np.dot(factor, np.bincount(source, amounts))) / size
    count = np.bincount(source)
    if count.min() < 2:
        return mean, None
    residual = amounts - mean * sizes
    residual = residual - (np.bincount(source, residual) / np.bincount(source, tokens))[source] * tokens
    variance = np.sum(factor**2 * count / (count - 1) * np.bincount(source, residual**2))
    return mean, math.sqrt(float(variance)) / size


def precision_warning(evaluation: dict) -> str:
    """Returns a warning if the loss has fewer than 20 documents or a standard error above 1 %, else "".

    Example: {"loss": 2.0, "loss_standard_error": 0.05, "loss_documents": 15} -> "validation loss 2.0000 is over 15
    documents, standard error 0.0500 (2.5 %): ..."
    """
    loss, error, documents = (evaluation[k] for k in ("loss", "loss_standard_error", "loss_documents"))
    if documents >= FEW_DOCUMENTS and error is not None and error <= LARGE_ERROR * loss:
        return ""
    known = "unknown" if error is None else f"{error:.4f} ({error / loss:.1%})".replace("%", " %")
    return (
        f"warning: validation loss {loss:.4f} is over {documents} document{'s' * (documents != 1)}, standard error "
        f"{known}; for a more precise loss raise evaluation.max_tokens or data.validation_fraction"
    )


def _predictions(batch: dict[str, np.ndarray], attention: str) -> tuple[np.ndarray, ...]:
    """Returns (visible token, target, weight, number of the row) of every predicted position, each [n]."""
    visible = batch["inputs"].astype(np.int64)
    if attention == "bidirectional":
        visible = np.pad(visible, ((0, 0), (1, 0)))[:, :-1]
    predicted = batch["weights"] > 0
    targets = batch["targets"].astype(np.int64)
    return visible[predicted], targets[predicted], batch["weights"][predicted], np.nonzero(predicted)[0]


def passed_reference(loss: float, references: dict[str, float]) -> str:
    """Returns the strongest reference model that a loss beats: "bigram", "unigram", or "none"."""
    passed = [name for name in ("bigram", "unigram") if loss < references[f"reference_{name}"]]
    return passed[0] if passed else "none"

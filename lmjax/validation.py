"""Loss on validation documents: fixed rows, fixed corruption, every token once; independent of batch size and mesh. The
summary of a run is written here.

B rows of an evaluation batch, T positions; R rows, D documents and S sources of the evaluation set.
"""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from lmjax import models, run_record
from lmjax.data import pipeline
from lmjax.errors import InputError
from lmjax.format import plural
from lmjax.hardware import environment_record, peak_memory
from lmjax.identity import code_digest
from lmjax.losses import row_terms
from lmjax.metrics import Progress
from lmjax.resolve import Resolved
from lmjax.sharding import make_global_batch, prefetch, row_shards

FEW_DOCUMENTS, LARGE_ERROR = 20, 0.01  # limits of `precision_warning`


def make_score(
    model: nn.Module, mesh: jax.sharding.Mesh, objective, options, compiler: dict[str, Any] | None = None
) -> Callable:
    """Return the compiled function (params, batch [1, B, T], carry) -> (`lmjax.losses.row_terms`, carry), everywhere.

    The rows of a model that carries its state are read one after the other; without_carry_loss is the loss of rows that
    begin with zeros. For other models, carry is {}.

    Args:
        model, mesh, objective: of the run. A model with a method `nats` need not compute the logits of all ids.
        options: config.objective.options.
        compiler: of `lmjax.sharding.compiler_options`.
    """

    def terms(params, batch):
        how = {"method": "nats"} if hasattr(model, "nats") else {"project": False}
        outputs, _, carry = models.apply_carrying(model, params, batch, **how)
        own = objective.own_terms(options)
        return carry, row_terms(objective.heads(options), outputs, batch, own, objective.groups)

    def score(params, batch, carry):
        batch = {name: array[0] for name, array in batch.items()}
        alone = terms(params, batch)[1]
        if not carry:
            return alone, carry
        rows = {name: array[:, None] for name, array in batch.items()}
        carry, found = jax.lax.scan(lambda carry, row: terms(params, {**row, **carry}), carry, rows)
        return {**jax.tree.map(lambda x: x[:, 0], found), "without_carry_loss": alone["lm"]}, carry

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.jit(score, out_shardings=everywhere, compiler_options=compiler)


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
        self.full_likelihood = objective.full_likelihood and data.tokenizer.lossless
        shards = row_shards(mesh)
        self.batch_size = -(-min(config.evaluation.batch_size, self.count) // shards) * shards
        self._mesh = mesh
        options = config.objective.options
        self.heads = objective.heads(options)
        self.coefficients = {head.name: head.coefficient for head in self.heads}
        self.beside = {f"{head.name}_accuracy" for head in self.heads} | {f"{group}_loss" for group in objective.groups}
        self.beside.add("without_carry_loss")  # names of what is measured and no part of the loss
        self._check_labels()
        self._score = score or make_score(model, mesh, objective, options)
        carried = models.carried(model, self.set.rows([0]))
        self._carry = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carried)

    def _check_labels(self):
        """Raises InputError if a source has no label of a head in its rows: its loss would be 0 / 0."""
        for number, source in enumerate(self.sources):
            rows, missing = np.flatnonzero(self.set.source == number), {head.weights: head.name for head in self.heads}
            for at in range(0, len(rows), 16):
                batch = self.set.rows(rows[at : at + 16])
                missing = {key: name for key, name in missing.items() if key in batch and not batch[key].any()}
                if not missing:
                    break
            if missing:
                raise InputError(
                    f"source {source!r}: its {len(rows)} rows of validation have no label of the heads "
                    f"{sorted(missing.values())}; raise data.validation_fraction or evaluation.max_tokens"
                )

    def _batch(self, start: int, shift: int = 0) -> dict[str, jax.Array]:
        """Rows start .. start + batch_size, with the source of the row `shift` places on; weight 0 past the end."""

        def rows_of(indices):
            place = start + indices
            inside = place < self.count
            rows = self.set.rows(np.where(inside, place, 0))
            if shift:
                others = self.set.rows((place + shift) % self.count)
                rows |= {name: array for name, array in others.items() if name.startswith("encoder_")}
            for name in [name for name in rows if name.endswith("weights")]:
                rows[name] = rows[name] * inside.astype(np.float32).reshape(-1, *[1] * (rows[name].ndim - 1))
            return rows

        return make_global_batch(rows_of, self._mesh, 1, self.batch_size)

    def per_row(self, params: Any, stop: Callable[[], bool] = lambda: False) -> dict[str, np.ndarray] | None:
        """Returns (sums, weights) of each row by term, float64 [2, count]; None if `stop()` became true."""
        parts, carry = [], self._carry
        with contextlib.closing(prefetch(self._batch, range(0, self.count, self.batch_size))) as batches:
            for batch in batches:
                if stop():
                    return None
                found, carry = self._score(params, batch, carry)
                parts.append(found)
        # Summed in float64 on the host, so that rounding does not depend on the batch size.
        both = {name: [np.asarray(part[name], np.float64) for part in parts] for name in parts[0]}
        return {name: np.concatenate(pairs, axis=1)[:, : self.count] for name, pairs in both.items()}

    def evaluate(self, params: Any, stop: Callable[[], bool] = lambda: False) -> dict[str, float | None] | None:
        """Returns the loss over the set, or None if `stop()` became true.

        Returns:
            loss: nats per predicted token; of several heads, the sum of coefficient x loss; for a mixture, the mean of
                the sources' losses weighted by data.weights, with each source's loss as "loss/<source>".
            loss_standard_error: over documents; None where a source has one document.
            loss_documents, loss_tokens: documents and predicted tokens evaluated (the sum of the LM head's weights).
            perplexity: exp(loss) of the LM head; None without one.
            bits_per_byte: None unless the objective predicts every token of the text once.
            <head>_loss, where there are several heads, and <head>_accuracy, of heads other than the LM head;
                <group>_loss of each group of rows that an objective mixes; None if a source has none of them;
                without_carry_loss, of a model that carries its state: of rows that begin with zeros.
        """
        rows = self.per_row(params, stop)
        if rows is None:
            return None
        losses = {name: pair for name, pair in rows.items() if name not in self.beside}
        documents, document_R = np.unique(self.set.document, return_inverse=True)
        source_D = np.zeros(len(documents), int)
        source_D[document_R] = self.set.source

        def value(nats_R, weight_R):
            pair_D = (np.bincount(document_R, x) for x in (nats_R, weight_R))
            return mixture_ratio(*pair_D, source_D, self.weights)

        # All terms in units of one, whose weights divide their sum: its standard error takes the others as fixed. That
        # is the LM head if there is one, so that tokens and bytes are counted by its weights.
        weights = {name: np.bincount(self.set.source, pair[1]) for name, pair in losses.items()}
        first = "lm" if "lm" in losses else next(iter(losses))
        factors = {name: self.coefficients.get(name, 1.0) * weights[first] / weights[name] for name in losses}
        nats_R = sum(factors[name][self.set.source] * pair[0] for name, pair in losses.items())
        loss, error = value(nats_R, losses[first][1])
        found = {f"{name}_loss": value(*pair)[0] for name, pair in losses.items()} if len(losses) > 1 else {}
        others = {name: pair for name, pair in rows.items() if name not in losses}
        measured = {name: np.bincount(self.set.source, pair[1]).all() for name, pair in others.items()}
        found |= {name: value(*pair)[0] if measured[name] else None for name, pair in others.items()}
        if len(self.sources) > 1:
            by_source = np.bincount(self.set.source, nats_R) / weights[first]
            found |= {f"loss/{name}": float(x) for name, x in zip(self.sources, by_source, strict=True)}
        lm = found.get("lm_loss", loss) if "lm" in losses else None
        size = float(np.dot(self.weights, self.set.bytes / weights[first]))  # bytes per predicted token
        return {
            "loss": loss,
            **found,
            "loss_standard_error": error,
            "loss_documents": sum(self.set.documents),
            "loss_tokens": float(losses[first][1].sum()),
            "perplexity": None if lm is None else math.exp(min(lm, 700.0)),
            "bits_per_byte": lm / math.log(2) / size if lm is not None and self.full_likelihood and size else None,
        }

    def seconds(self, params: Any, budget: float) -> float:
        """Returns the expected seconds of one evaluation, from as many batches as fit into `budget` seconds."""
        jax.block_until_ready(self._score(params, self._batch(0), self._carry))  # compiles
        starts, times = range(0, self.count, self.batch_size), []
        for start in starts:
            began = time.monotonic()
            jax.block_until_ready(self._score(params, self._batch(start), self._carry))
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
        if self.count < 2 or not {"encoder_inputs", "targets"} <= set(self.set.rows([0])):
            return None
        starts, losses = range(0, min(rows, self.count), self.batch_size), []
        for shift in (0, 1):
            batches = prefetch(functools.partial(self._batch, shift=shift), starts)
            parts = [self._score(params, batch, self._carry)[0] for batch in batches]
            nats, weight = (sum(np.asarray(part["lm"][i], np.float64).sum() for part in parts) for i in range(2))
            losses.append(nats / weight)
        return float(losses[1] - losses[0])

    def reference_losses(self, batches: pipeline.Pipeline, objective, rows: int = 2048) -> dict[str, float]:
        """Returns the validation losses of a unigram and a bigram count model, in nats per predicted token.

        A run that is not below them has learnt no context yet, and its loss says little about scaling.
        reference_unigram: frequencies of the targets, add-one smoothed. reference_bigram: the target given one visible
        token, the input at the same position (causal, prefix, encoder-decoder) or the one to its left (all others),
        interpolated with the unigram (Witten and Bell 1991). <head>_reference, of other heads: the loss of predicting
        the frequencies of the labels, or the mean value. The first two are missing without an LM head.

        Args:
            batches: the training rows.
            objective: of the run.
            rows: maximum number of training rows and of validation rows to read; the latter are evenly spread.
        """
        training, validation = (
            np.arange(min(rows, batches.rows_per_epoch)),
            np.arange(0, self.count, -(-self.count // rows)),
        )
        training, held_out = batches.rows(training), self.set.rows(validation)
        others = (head for head in self.heads if head.name != "lm" and head.targets in held_out)
        found = {f"{head.name}_reference": _label_reference(head, training, held_out) for head in others}
        if "targets" not in held_out:
            return found
        previous, target, weight, _ = _predictions(training, objective.attention)
        seen, asked, asked_weight, row = _predictions(held_out, objective.attention)
        source = np.asarray(self.set.source)[validation][row]
        totals = np.bincount(source, asked_weight, len(self.weights))  # 0: none of its rows was chosen
        asked_weight = asked_weight * (np.asarray(self.weights) / np.where(totals > 0, totals, 1.0))[source]
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

        return {"reference_unigram": loss(unigram[asked]), "reference_bigram": loss(bigram), **found}


def _label_reference(head, training, validation) -> float:
    """The validation loss of a head that predicts the same for all rows, from the training labels; see
    `reference_losses`."""
    weight, asked_weight = (rows[head.weights].ravel() for rows in (training, validation))
    columns = (rows[head.targets].reshape(rows[head.weights].size, -1).T for rows in (training, validation))
    total = 0.0
    for labels, asked in zip(*columns, strict=True):  # one, or both ends of a span
        if head.kind == "value":
            losses = (asked - np.average(labels, weights=weight)) ** 2
        else:
            counts = np.bincount(labels, weight, 1 + max(labels.max(), asked.max())) + 1.0
            losses = -np.log(counts / counts.sum())[asked]
        total += float(np.average(losses, weights=asked_weight))
    return total


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
        f"warning: validation loss {loss:.4f} is over {plural(documents, 'document')}, standard error "
        f"{known}; for a more precise loss raise evaluation.max_tokens or data.validation_fraction"
    )


def _predictions(batch: dict[str, np.ndarray], attention: str) -> tuple[np.ndarray, ...]:
    """Returns (visible token, target, weight, number of the row) of every predicted position, each [n]."""
    visible = batch["inputs"].astype(np.int64)
    if attention in ("bidirectional", "permutation"):
        visible = np.pad(visible, ((0, 0), (1, 0)))[:, :-1]
    predicted = batch["weights"] > 0
    targets = batch["targets"].astype(np.int64)
    return visible[predicted], targets[predicted], batch["weights"][predicted], np.nonzero(predicted)[0]


def passed_reference(loss: float, references: dict[str, float]) -> str | None:
    """Returns the strongest reference model that a loss beats: "bigram", "unigram", or "none"; None without any."""
    if "reference_bigram" not in references:
        return None
    passed = [name for name in ("bigram", "unigram") if loss < references[f"reference_{name}"]]
    return passed[0] if passed else "none"


def summarise(
    run: Resolved,
    run_dir: pathlib.Path,
    evaluation: dict[str, Any],
    validation: Validation,
    status: run_record.Status,
    progress: Progress,
    facts: dict[str, Any],
) -> None:
    """Write the summary of a finished run and set its status to "done".

    Args:
        run, run_dir, validation, status, progress: of the run.
        evaluation: the final one.
        facts: more entries, about how the run was trained.
    """
    references = validation.reference_losses(run.batches, run.objective)
    record = run_record.read_json(run_dir / "config.json")
    summary = {
        "run_id": record["run_id"],
        "status": "done",
        **{k: v for k, v in run.derived.items() if k not in ("memory", "memory_bytes")},
        "held_out": run.config.run.held_out,
        **evaluation,
        **references,
        "passed_reference": passed_reference(evaluation.get("lm_loss", evaluation["loss"]), references),
        **facts,
        "packing": run.config.data.mode,
        "wall_seconds": status.wall_seconds(),
        "packed": status.packed,
        "slot_seconds": status.slot_seconds(),
        "attempts": status.attempts,
        "peak_memory_bytes": peak_memory(),
        "data_digest": run.data.digest,
        "objective_version": run.objective_version,
        "code": "+".join(dict.fromkeys([record.get("code", "unknown"), code_digest()])),
        **environment_record(),
    }
    if not math.isfinite(summary["loss"]):
        raise FloatingPointError(f"the validation loss is {summary['loss']} though every training loss was finite")
    if warning := precision_warning(evaluation):
        progress.note(warning)
    run_record.write_json(run_dir / "summary.json", summary)
    status.write("done", step=run.steps, validation_loss=summary["loss"])

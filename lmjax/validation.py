"""Loss on held-out documents: fixed rows, fixed corruption, every token once; the same for any batch size and mesh.

B rows of an evaluation batch, T time.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmjax.data import pipeline
from lmjax.losses import token_nats
from lmjax.sharding import batch_sharding, make_global_batch


class Validation:
    """The held-out rows of a run and the compiled function that scores them.

    Args:
        data, objective, config: of the run.
        apply: (params, batch of [B, T] arrays) -> logits [B, T, V].
        mesh: of the run.
        split: "validation" or "train".
    """

    def __init__(self, data, objective, config: ConfigDict, apply: Callable, mesh, split: str = "validation"):
        self.count, self._rows, self.bytes = pipeline.evaluation_rows(
            data, objective, config, split=split, max_tokens=config.evaluation.max_tokens
        )
        self.full_likelihood = objective.full_likelihood
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        self.batch_size = -(-min(config.evaluation.batch_size, self.count) // shards) * shards
        self._sharding = batch_sharding(mesh)
        replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

        def score(params, batch):
            """Per row: (sum of weighted nats, sum of weights), [B] float32 each, on every process."""
            batch = {name: array[0] for name, array in batch.items()}
            nats_BT = token_nats(apply(params, batch), batch["targets"])
            return jnp.sum(nats_BT * batch["weights"], axis=1), jnp.sum(batch["weights"], axis=1)

        self._score = jax.jit(score, out_shardings=replicated)

    def _batch(self, start: int) -> dict[str, jax.Array]:
        """Rows start .. start + batch_size; past the end, row 0 again with weight 0."""

        def rows_of(indices):
            expected = start + indices
            inside = expected < self.count
            rows = self._rows(np.where(inside, expected, 0))
            rows["weights"] = rows["weights"] * inside[:, None].astype(np.float32)
            return rows

        return make_global_batch(rows_of, self._sharding, 1, self.batch_size)

    def per_row(self, params: Any, stop: Callable[[], bool] = lambda: False) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns (nats, weights) of each held-out row, float64 [count]; None if `stop()` asked to give up."""
        nats, weights = [], []
        for start in range(0, self.count, self.batch_size):
            if stop():
                return None
            row_nats, row_weights = self._score(params, self._batch(start))
            nats.append(row_nats)
            weights.append(row_weights)
        # Sums run over host float64, so that the size of a batch does not decide their rounding.
        return tuple(np.concatenate([np.asarray(x, np.float64) for x in xs])[: self.count] for xs in (nats, weights))

    def evaluate(self, params: Any, stop: Callable[[], bool] = lambda: False) -> dict[str, float | None] | None:
        """Returns loss (nats per predicted token), loss_tokens, perplexity, bits_per_byte (None unless the objective
        predicts every token of the text once); None if `stop()` asked to give up."""
        rows = self.per_row(params, stop)
        if rows is None:
            return None
        nats, weight = float(rows[0].sum()), float(rows[1].sum())
        loss = nats / weight
        defined = self.full_likelihood and self.bytes
        return {
            "loss": loss,
            "loss_tokens": weight,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": nats / math.log(2) / self.bytes if defined else None,
        }

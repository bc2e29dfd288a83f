"""Log-probabilities of chosen targets in rows of ids; the only place where evaluation runs the model.

score.py and perplexity.py decide which ids go into a row. A row's result does not depend on the rows around it: rows
are padded to powers of two, and callers sum in float64. The model computes in float32, whatever type it was trained in.

B rows of a batch, T time, S source time, V vocabulary, P predictions of a row.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from lmjax import models
from lmjax.errors import InputError
from lmjax.sharding import RULES, logical_mesh, put_rows, row_shards

_LEAST = 32  # tokens of the shortest padded row; padding costs less than compiling another shape
_MOST_BYTES = 2**30  # of the logits of one call on one device


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One sequence for a model, and the predictions to return.

    Example: next-token prediction of 7, 8 after 5, 6: inputs [5, 6, 7], targets [7, 8], places [1, 2].
    """

    inputs: np.ndarray  # int [T]
    targets: np.ndarray  # int [P], the ids whose probability is returned
    places: np.ndarray  # int [P], the positions of `inputs` whose logits predict them
    encoder_inputs: np.ndarray | None = None  # int [S]
    prefix: int = 0  # leading inputs that all positions see; 0: no prefix attention
    masked: bool = False  # whether `inputs` at `places` are the targets, hidden: by the mask id, or by their order

    def key(self) -> tuple:
        """A hashable key, equal for equal rows."""
        arrays = (self.inputs, self.targets, self.places, self.encoder_inputs)
        ids = (None if x is None else np.asarray(x, np.int64).tobytes() for x in arrays)
        return *ids, self.prefix, self.masked


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A model's predictions at the places of a row, [P] each; the last two only if details were asked for."""

    log_probs: np.ndarray  # float32, nats, of the targets
    best: np.ndarray  # int32, the most probable id (the first of equals)
    greedy: np.ndarray  # bool: the target is that id
    confidence: np.ndarray | None = None  # float32, the largest probability
    squares: np.ndarray | None = None  # float32, sum over ids of p^2


def context_window(trained) -> int:
    """Returns the maximum number of ids in a row, on either side: config.model.max_len."""
    return trained.config.model.max_len


def continued(attention: str, before: np.ndarray, ids: np.ndarray) -> Row:
    """Returns the row that predicts `ids` from left to right after `before`, which has 1 id or more.

    Args:
        attention: of the objective. With "permutation" (XLNet), each id is predicted at its own place from those before
            it in the order of the row, so that the row has the last id too.
        before, ids: int [N], [P].

    Example: before [5, 6], ids [7, 8]: inputs [5, 6, 7], places [1, 2]; with "permutation" inputs [5, 6, 7, 8], places
        [2, 3], and in the batch order [0, 0, 1, 2].
    """
    text, places = np.concatenate([before, ids]), len(before) + np.arange(len(ids))
    if attention == "permutation":
        return Row(text, ids, places)
    return Row(text[:-1], ids, places - 1, prefix=len(before) if attention == "prefix" else 0)


def hidden(inputs: np.ndarray, places: np.ndarray) -> Row:
    """Returns the row that predicts the ids at `places`, independently of each other, from the other ids.

    Example: inputs [5, 6, 7, 8], places [1, 2]: 6 and 7, from [5, mask, mask, 8], or with the order [0, 1, 1, 0].
    """
    return Row(inputs, inputs[places], places, masked=True)


def discriminator(head: str) -> str:
    """Returns the error message if this head (config.model.head) gives no logits over ids, else ""."""
    if head != "discriminator":
        return ""
    return (
        "this model tells real from replaced tokens (model.head='discriminator') and gives no probabilities over the "
        "vocabulary; score its generator"
    )


def in_float32(trained):
    """Returns the model with dtype float32; its parameters are float32 already."""
    if trained.config.model.dtype == "float32":
        return trained
    config = trained.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.dtype = "float32"
    return dataclasses.replace(trained, config=config, model=models.build(config.model))


def bucket(length: int, most: int) -> int:
    """Returns the padded length: the next power of two, at least 32; `most` where that is less and still enough.

    Example: bucket(9, 128) = 32, bucket(100, 128) = 128, bucket(100, 100) = 100.
    """
    padded = max(_LEAST, 1 << (length - 1).bit_length())
    return most if length <= most < padded else padded


def predict(trained, rows: Sequence[Row], batch_size: int = 16, details: bool = False) -> list[Predictions]:
    """Runs the model on rows, in float32 (config.model.dtype is a matter of training); equal rows are run once.

    The devices of the model share the rows of a batch.

    Args:
        trained: a loaded model.
        rows: all with encoder_inputs or none, all with a prefix or none.
        batch_size: rows per call, rounded up to a multiple of mesh axes data x fsdp; changes speed and memory only.
            Reduced if the logits of a call would take more than 1 GiB of a device.
        details: also return confidence and squares.

    Returns:
        One Predictions for each row, in the order of `rows`. Their numbers change by float32 rounding only (about
        1e-6 nats a token) with batch size, order and devices.

    Raises:
        InputError: an id outside the model's vocabulary; a row longer than its learned positions; a model without a
            head over the vocabulary, or whose log-probabilities are not finite.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: expected a whole number above 0, got {batch_size}")
    if reason := discriminator(trained.config.model.head):
        raise InputError(reason)
    trained = in_float32(trained)
    _check_lengths(trained, rows)
    keys = [row.key() for row in rows]
    distinct = dict(zip(keys, rows, strict=True))
    by_shape: dict[tuple[int, int], list[tuple]] = {}
    for key, row in distinct.items():
        by_shape.setdefault(_padded_shape(row, context_window(trained)), []).append(key)
    mesh = trained.mesh
    params = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jnp.asarray(x), trained.params)
    ordered = trained.objective.attention == "permutation"
    single = all(len(row.places) == 1 for row in rows)  # then only one position's logits are computed
    results: dict[tuple, Predictions] = {}
    # full float32 products, where an accelerator would reduce their precision by default
    with logical_mesh(mesh, RULES), jax.default_matmul_precision("highest"):
        for shape, members in by_shape.items():
            logits = 4 * (1 if single else shape[0]) * trained.config.model.vocab_size
            size = _rows_per_call(batch_size, len(members), row_shards(mesh), logits)
            for start in range(0, len(members), size):
                chosen = members[start : start + size]
                batch = _assemble(trained, [distinct[key] for key in chosen], size, shape, single, ordered)
                found = _run(trained.model, params, put_rows(batch, mesh), details)
                found = {name: np.asarray(array) for name, array in found.items()}
                for r, key in enumerate(chosen):
                    places = [0] if single else distinct[key].places
                    results[key] = Predictions(**{name: array[r, places] for name, array in found.items()})
                    _check_finite(trained, results[key].log_probs)
    return [results[key] for key in keys]


def _padded_shape(row, most):
    """(T, S) of the padded row; S is 0 without a source."""
    return bucket(len(row.inputs), most), 0 if row.encoder_inputs is None else bucket(len(row.encoder_inputs), most)


def _rows_per_call(batch_size: int, count: int, devices: int, row_bytes: int) -> int:
    """The batch size, or a quarter of it if that suffices, so that few sizes are compiled.

    It is a multiple of the devices, and the logits of each device fit in _MOST_BYTES.
    """
    size = batch_size if count > batch_size // 4 else batch_size // 4
    return min(-(-size // devices), max(1, _MOST_BYTES // row_bytes)) * devices


def _check_lengths(trained, rows):
    sides = [ids for row in rows for ids in (row.inputs, row.encoder_inputs) if ids is not None]
    longest = max(map(len, sides), default=0)
    if trained.max_len and longest > trained.max_len:
        raise InputError(
            f"a row has {longest} ids, the model has {trained.max_len} learned positions (model.max_len); give shorter "
            "texts, or a smaller window"
        )


def _check_finite(trained, log_probs):
    if not np.isfinite(log_probs).all():
        raise InputError(
            f"{trained.run_dir} step {trained.step}: the model's log-probabilities are not finite; did its training "
            "diverge? Evaluate an earlier checkpoint"
        )


def _assemble(trained, rows, size, shape, single, ordered):
    """A batch of `size` padded rows: arrays [size, T], and [size, S] of the source."""
    specials = trained.tokenizer.specials
    sides = {"": [row.inputs for row in rows]}
    if shape[1]:
        sides["encoder_"] = [row.encoder_inputs for row in rows]
    batch = {}
    for (side, texts), length in zip(sides.items(), shape, strict=False):
        ids = np.full((size, length), max(specials.pad, 0), np.int32)
        lengths = np.zeros((size, 1), int)
        for r, text in enumerate(texts):
            ids[r, : len(text)], lengths[r] = text, len(text)
        places = np.arange(length, dtype=np.int32)[None]
        batch[side + "inputs"] = ids
        batch[side + "segment_ids"] = (places < lengths).astype(np.int32)
        batch[side + "positions"] = np.where(places < lengths, places, 0)
    batch["targets"] = np.zeros((size, 1 if single else shape[0]), np.int32)
    if single:
        batch["logits_at"] = np.zeros(size, np.int32)
    if rows[0].prefix:
        batch["prefix"] = np.zeros((size, shape[0]), bool)
    if ordered:
        batch["order"] = np.zeros((size, shape[0]), np.int32)
    for r, row in enumerate(rows):
        if single:
            batch["logits_at"][r] = row.places[0]
        batch["targets"][r, [0] if single else row.places] = row.targets
        if row.prefix:
            batch["prefix"][r, : row.prefix] = True
        if ordered:
            _check_seen(row)
            batch["order"][r, row.places] = 1 if row.masked else 1 + np.arange(len(row.places))
        elif row.masked:
            batch["inputs"][r, row.places] = specials.mask
    _check_ids(batch, (*(side + "inputs" for side in sides), "targets"), trained.config.model.vocab_size)
    return batch


def _check_seen(row):
    if len(row.places) == len(row.inputs):
        raise InputError(
            f"expected an id that the first prediction of a row sees, got {len(row.inputs)} ids that are all "
            "predicted; give every text a context, or use a tokenizer with a prefix"
        )


def _check_ids(batch, fields, vocab_size):
    for name in fields:
        low, high = int(batch[name].min()), int(batch[name].max())
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"{name}: expected ids in 0 .. {vocab_size - 1}, the rows of the model's embedding, got "
                f"{low if low < 0 else high}; use the tokenizer the model was trained with"
            )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _run(model: nn.Module, params, batch: dict[str, jax.Array], details: bool) -> dict[str, jax.Array]:
    """Per position, [B, T] each, from float32 logits; the whole batch in every process."""
    targets_BT = batch["targets"]
    logits_BTV = jnp.astype(model.apply({"params": params}, batch), jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    chosen_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    best_BT = jnp.argmax(logits_BTV, axis=-1).astype(jnp.int32)
    found = {"log_probs": chosen_BT - log_z_BT, "best": best_BT, "greedy": best_BT == targets_BT}
    if details:
        found["confidence"] = jnp.exp(jnp.max(logits_BTV, axis=-1) - log_z_BT)
        found["squares"] = jnp.sum(jnp.exp(2 * (logits_BTV - log_z_BT[..., None])), axis=-1)  # fused: no second array
    return jax.lax.with_sharding_constraint(found, PartitionSpec())

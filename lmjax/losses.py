"""Losses of all heads in float32, each returned as (sum, weight), and the gradient of the training loss over a batch.

`token_nats` is the cross-entropy at one position; training, validation and gradients all use it. For a large vocabulary
the loss is computed in chunks of time, so that no [B, T, V] array exists.

B batch, T time, D model, V vocabulary, C chunks, c positions of a chunk.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lmjax.errors import InputError

CHUNK_BYTES = 256 * 2**20  # largest size per device of float32 logits that are computed at once


def _sums(logits_BTV, targets_BT, weights_BT, z_loss):
    """`chunked_sums` for logits that are computed at once."""
    total = jnp.sum(token_nats(logits_BTV, targets_BT) * weights_BT)
    if not z_loss:
        return total, jnp.zeros(())
    log_z_BT = jax.nn.logsumexp(logits_BTV.astype(jnp.float32), axis=-1)
    added = z_loss * jnp.sum(jnp.square(log_z_BT) * weights_BT)
    return total + gradient_only(added), jax.lax.stop_gradient(added)


def gradient_only(x: jax.Array) -> jax.Array:
    """Returns 0 with the gradient of x: adds a term to the gradient of a loss but not to its value."""
    return x - jax.lax.stop_gradient(x)


def token_nats(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns -log p(target) per position, [B, T] float32 nats."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    # A comparison, not an index: the gradient of an index is a scatter into zeros [B, T, V].
    hit_BTV = jax.lax.broadcasted_iota(jnp.int32, logits_BTV.shape, 2) == targets_BT[..., None]
    return log_z_BT - jnp.sum(jnp.where(hit_BTV, logits_BTV, 0.0), axis=-1)


def chunked_sums(
    head: Any, targets_BT: jax.Array, weights_BT: jax.Array, z_loss: float, slots: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Returns sum_i w_i (logsumexp(logits_i) - logits_i[target_i]), whose gradient is that of the sum plus the z-loss;
    and the z-loss. Both are float32 scalars in nats; divide by the sum of weights over all micro-batches and devices.

    Logits above CHUNK_BYTES are computed in chunks of time, once, each with its gradient, and never stored.

    Args:
        head: a `lmjax.models.layers.Logits`: x_BTD, and kernel and bias, from which `head.logits()` computes [B, T, V];
            or these logits, of any float dtype.
        targets_BT: int32 ids.
        weights_BT: float32, 0 for positions that are not predicted.
        z_loss: the z-loss is z_loss sum_i w_i log(Z_i)^2 with Z = sum(exp(logits)): it keeps log Z near 0, and so
            logits from drifting (PaLM, arXiv 2204.02311, with 1e-4).
        slots: number of runs whose losses jax.vmap computes together; CHUNK_BYTES holds for all of them.

    Example: uniform logits of 0 over V = 4 give -ln(1/4) = 1.3863 nats per token, and with z_loss 0.1 a z-loss of
        0.1 x 1.3863^2 = 0.1922, since log Z = ln 4
        >>> chunked_sums(jnp.zeros((1, 3, 4)), jnp.zeros((1, 3), int), jnp.array([[1.0, 1.0, 0.0]]), 0.1)
        (2.7726, 0.3844)
    """
    if isinstance(head, jax.Array):
        return _sums(head, targets_BT, weights_BT, z_loss)
    B, T = targets_BT.shape
    chunks = chunk_count(slots * B, T, head.kernel_DV.shape[1])
    if chunks == 1:
        return _sums(head.logits(), targets_BT, weights_BT, z_loss)
    arrays = (_split(array, chunks) for array in (head.x_BTD, weights_BT, targets_BT))
    return _sum_of_chunks(z_loss, head.replace(x_BTD=None), *arrays)


def chunked_nats(head: Any, targets_BT: jax.Array) -> jax.Array:
    """Returns `token_nats(head.logits(), targets_BT)`, [B, T], in chunks of time as in `chunked_sums`.

    Of a model's method `nats`, head is already the result.
    """
    if isinstance(head, jax.Array):
        return head if head.ndim == 2 else token_nats(head, targets_BT)
    return by_position(token_nats, head, targets_BT)


def by_position(function: Callable, head: Any, values_BT: jax.Array) -> jax.Array:
    """Returns function(head.logits(), values_BT), [B, T], in chunks of time as in `chunked_sums`.

    Args:
        function: ([B, c, V], [B, c]) -> [B, c], each position by itself.
        head: a `lmjax.models.layers.Logits`.
        values_BT: the function's second argument.
    """
    B, T = values_BT.shape
    chunks = chunk_count(B, T, head.kernel_DV.shape[1])
    if chunks == 1:
        return function(head.logits(), values_BT)
    arrays = _split(head.x_BTD, chunks), _split(values_BT, chunks)
    found_CBc = jax.lax.map(lambda chunk: function(head.replace(x_BTD=chunk[0]).logits(), chunk[1]), arrays)
    return _joined(found_CBc, T)


def chunk_count(B: int, T: int, V: int) -> int:
    """Returns the number of chunks of time in which the loss of [B, T, V] logits is computed: the fewest of at most
    CHUNK_BYTES per device, or up to twice as many if that number divides T; otherwise T is padded.

    Example: 8 rows of 1024 tokens, V = 50304, one device: 1.5 GiB in 8 chunks of 128 positions.
    """
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    part = T // time_parts(T)
    fewest = min(part, -(-4 * B * T * V // (CHUNK_BYTES * devices)))
    return next((n for n in range(fewest, 2 * fewest) if part % n == 0), fewest)


def time_parts(length: int) -> int:
    """Returns the number of parts into which the mesh axis context splits a row of tokens; 1 if it does not divide
    their number."""
    parts = jax.sharding.get_abstract_mesh().shape.get("context", 1)
    return parts if length % parts == 0 else 1


def _split(x_BT, chunks):
    """[B, T, ...] -> [C, B, c, ...], padded with zeros (and so weight 0) past the end of T. Each chunk takes equally
    many positions from every device's part of T."""
    B, T, *rest = x_BT.shape
    parts = time_parts(T)
    size = -(-T // (parts * chunks))
    x_BPT = x_BT.reshape(B, parts, T // parts, *rest)
    padded = jnp.pad(x_BPT, [(0, 0), (0, 0), (0, chunks * size - T // parts)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(padded.reshape(B, parts, chunks, size, *rest), 2, 0).reshape(chunks, B, parts * size, *rest)


def _joined(x_CBc, T):
    """The inverse of `_split`: [C, B, c] -> [B, T]."""
    chunks, B, _ = x_CBc.shape
    x_BPCc = jnp.moveaxis(x_CBc.reshape(chunks, B, time_parts(T), -1), 0, 2)
    return x_BPCc.reshape(B, time_parts(T), -1)[:, :, : T // time_parts(T)].reshape(B, T)


def _chunk_sum(head, x_BcD, weights_Bc, targets_Bc, z_loss):
    return _sums(head.replace(x_BTD=x_BcD).logits(), targets_Bc, weights_Bc, z_loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sum_of_chunks(z_loss, head, x_CBcD, weights_CBc, targets_CBc):
    def add(sums, chunk):
        return jax.tree.map(jnp.add, sums, _chunk_sum(head, *chunk, z_loss)), None

    return jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), (x_CBcD, weights_CBc, targets_CBc))[0]


@_sum_of_chunks.defjvp
def _sum_of_chunks_tangent(z_loss, primals, tangents):
    """Computes values and gradients in one scan; the tangent is an inner product, so its transpose only scales them."""
    head, *chunks = primals

    def add(carry, chunk):
        gradient = jax.value_and_grad(_chunk_sum, (0, 1, 2), has_aux=True)
        sums, (by_head, *by_chunk) = gradient(head, *chunk, z_loss)
        return jax.tree.map(jnp.add, carry, (sums, by_head)), by_chunk

    zeros = (jnp.zeros(()), jnp.zeros(())), jax.tree.map(jnp.zeros_like, head)
    (sums, by_head), (by_x, by_weights) = jax.lax.scan(add, zeros, tuple(chunks))
    products = jax.tree.map(
        lambda g, d: jnp.sum(g.astype(jnp.float32) * d), (by_head, by_x, by_weights), tuple(tangents[:3])
    )
    return sums, (sum(jax.tree.leaves(products)), jnp.zeros(()))


# -- Heads. A term is a pair (sum, weight) of float32 scalars; terms and metrics are dicts {name: (sum, weight)}.


def row_losses(kind: str, output: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns the losses of a head and whether its most probable labels are correct, each [B, T] (tokens) or [B].

    Args:
        kind: tokens | row | span | value.
        output: logits [B, T, classes], [B, classes] or [B, T, 2] (of the first and last position), or values [B].
        targets: [B, T], [B], [B, 2] int32; [B] float32.

    Returns:
        Losses in nats (for a span: the sum over both ends), or squared errors; correct: bool, or None for values.

    Example: uniform logits of a row over 2 classes give 0.6931 nats.
    """
    if kind == "value":
        return jnp.square(output.astype(jnp.float32) - targets), None
    if kind == "row":
        output, targets = output[:, None], targets[:, None]
    elif kind == "span":
        output = output.swapaxes(1, 2)
    nats, correct = token_nats(output, targets), jnp.argmax(output, axis=-1) == targets
    return (nats, correct) if kind == "tokens" else (nats.sum(axis=1), correct.all(axis=1))


def by_head(outputs: Any) -> Mapping[str, Any]:
    """Returns a model's outputs as {head: output}; a model with only the LM head may return its logits."""
    return outputs if isinstance(outputs, Mapping) else {"lm": outputs}


def _labels(outputs, batch):
    """The batch, updated with the labels and weights that the model returns itself."""
    return {**batch, **{name: x for name, x in outputs.items() if name.endswith(("_targets", "_weights"))}}


def terms(
    heads: Sequence[Any],
    outputs: Mapping,
    batch: Mapping,
    own: Callable | None = None,
    z_loss: float = 0.0,
    slots: int = 1,
) -> tuple[dict, dict]:
    """Returns the terms of the training loss, and other metrics to log.

    Args:
        heads: `lmjax.objectives.Head`s.
        outputs: the model's outputs by head. `<head>_targets` and `<head>_weights` in it override those of the batch.
        batch: arrays of B rows.
        own: (outputs, batch) -> {name: (sum, weight)}; replaces the terms of the heads it names, and adds the others.
        z_loss, slots: arguments of `chunked_sums` for the LM head.

    Returns:
        (terms, metrics). Terms: heads in their order, then the others. Metrics: `<head>_accuracy`; with several terms,
        `<name>_loss` of each; with a z-loss, `z_loss`.

    Raises:
        InputError: a head without labels; a z-loss without the plain loss of an LM head.
    """
    found, metrics, outputs = {}, {}, by_head(outputs)
    given, labels = own(outputs, batch) if own else {}, _labels(outputs, batch)
    for head in heads:
        labelled = head.targets in labels
        if head.name in given:
            found[head.name] = given[head.name]
        elif not labelled:
            raise InputError(
                f"head {head.name!r}: expected {head.targets} from the objective's examples or the model, or a term of "
                "this name from the objective's own loss, got none of them"
            )
        elif head.name == "lm":
            total, added = chunked_sums(outputs["lm"], labels["targets"], labels["weights"], z_loss, slots)
            found["lm"] = total, jnp.sum(labels["weights"])
            metrics |= {"z_loss": (added, found["lm"][1])} if z_loss else {}
        if not labelled or head.name == "lm":
            continue
        weights = labels[head.weights]
        losses, correct = row_losses(head.kind, outputs[head.name], labels[head.targets])
        found.setdefault(head.name, (jnp.sum(losses * weights), jnp.sum(weights)))
        if correct is not None:
            metrics[f"{head.name}_accuracy"] = (jnp.sum(correct * weights), jnp.sum(weights))
    found |= {name: term for name, term in given.items() if name not in found}
    if len(found) > 1:
        metrics |= {f"{name}_loss": term for name, term in found.items()}
    if z_loss and not ("lm" in found and given.keys().isdisjoint(("lm", "z"))):
        raise InputError(
            f"train.z_loss {z_loss}: expected an objective whose LM head has the plain loss, and no own term named z, "
            f"got the terms {', '.join(found)}; set train.z_loss to 0"
        )
    return found, metrics


def load_balancing(factor: float, imbalance: Any, batch: Mapping) -> tuple[jax.Array, jax.Array]:
    """Returns the load-balancing term as (sum, weight): factor x the experts' imbalance, averaged over layers and
    summed over rows in proportion to their weights.

    Args:
        factor: config.train.load_balancing.
        imbalance: tree of [layers, B] or [B] arrays, from `lmjax.models.experts.imbalance`.
        batch: arrays of B rows.
    """
    imbalance_LB = jnp.concatenate([jnp.atleast_2d(x) for x in jax.tree.leaves(imbalance)])
    weights_B = _row_weights(batch)
    return factor * jnp.sum(jnp.mean(imbalance_LB, axis=0) * weights_B), jnp.sum(weights_B)


def _row_weights(batch):
    """The sum of all weights of each row, [B]; 1 for examples without labels."""
    weights = [x.reshape(len(x), -1).sum(axis=1) for name, x in batch.items() if name.endswith("weights")]
    return sum(weights) if weights else jnp.ones(len(batch["inputs"]))


def row_terms(
    heads: Sequence[Any], outputs: Mapping, batch: Mapping, own: Callable | None = None, groups: Sequence[str] = ()
) -> dict:
    """Returns {name: (sums, weights)} per row, [B] each: the loss and `<name>_accuracy` of every head, and
    `<group>_loss`, the LM loss in the rows of a group.

    Heads with labels report their standard loss, even if `own` replaces it in training. Terms that only `own` computes
    are sums over the batch; they are divided among the rows in proportion to the rows' weights.
    """
    outputs, found = by_head(outputs), {}
    labels = _labels(outputs, batch)
    for head in heads:
        if head.targets not in labels:
            continue
        weights, correct = labels[head.weights], None
        if head.name == "lm":
            losses = chunked_nats(outputs["lm"], labels[head.targets])
        else:
            losses, correct = row_losses(head.kind, outputs[head.name], labels[head.targets])
        over_time = (lambda x: jnp.sum(x, axis=1)) if head.kind == "tokens" else (lambda x: x)
        found[head.name] = over_time(losses * weights), over_time(weights)
        if correct is not None:
            found[f"{head.name}_accuracy"] = over_time(correct * weights), over_time(weights)
    for number, name in enumerate(groups):
        inside = batch["group"] == number
        found[f"{name}_loss"] = tuple(x * inside for x in found["lm"])
    others = {name: term for name, term in (own(outputs, batch) if own else {}).items() if name not in found}
    if others:
        rows_B = _row_weights(batch)
        share_B = rows_B / jnp.maximum(jnp.sum(rows_B), 1e-30)
        found |= {name: (share_B * total, share_B * weight) for name, (total, weight) in others.items()}
    return found


def divisor(weight: jax.Array) -> jax.Array:
    """Returns the weight, or 1 where it is 0, for a safe division."""
    return jnp.where(weight > 0, weight, 1.0)


def gradient(
    terms_of: Callable, coefficients: Mapping[str, float], params: Any, batch: Mapping, key: jax.Array
) -> tuple:
    """Returns (total, weight, metrics, gradient of the total) over the A micro-batches of a batch.

    The loss is sum_i c_i S_i / W_i with the sums S_i and weights W_i over the whole batch; total = W_0 x loss is a sum
    over micro-batches because the W_i are computed first: they depend on data, so this takes no forward pass. A single
    term with coefficient 1 needs only its sum.

    Args:
        terms_of: (params, micro-batch, key) -> (terms, metrics, left); terms and metrics as from `terms`, left: a tree
            of further arrays to return.
        coefficients: c_i by name; 1 if missing.
        params: parameter tree.
        batch: tree of arrays [A, B, ...].
        key: dropout key; with several micro-batches, folded with the number of the micro-batch.

    Returns:
        float32 scalars total and weight W_0, metrics {name: (sum, weight)}, the gradient of total, and `left` of every
        micro-batch, arrays [A, ...].
    """

    def total_of(params, micro, key, weights=None):
        found, metrics, left = terms_of(params, micro, key)
        ((first, (total, weight)), *others) = found.items()
        if others or coefficients.get(first, 1.0) != 1.0:
            weights = weights or {name: jax.lax.stop_gradient(pair[1]) for name, pair in found.items()}
            unit = divisor(weights[first])
            factors = {name: coefficients.get(name, 1.0) * unit / divisor(weights[name]) for name in found}
            total = sum(factors[name] * pair[0] for name, pair in found.items())
        return total, (weight, metrics, left)

    value_and_grad = jax.value_and_grad(total_of, has_aux=True)
    micro_batches = jax.tree.leaves(batch)[0].shape[0]
    if micro_batches == 1:
        (total, (weight, metrics, left)), grads = value_and_grad(params, jax.tree.map(lambda x: x[0], batch), key)
        return total, weight, metrics, grads, jax.tree.map(lambda x: x[None], left)
    indexed = jnp.arange(micro_batches), batch
    one = jax.tree.map(lambda x: x[0], indexed)
    found, metrics, _ = jax.eval_shape(terms_of, params, one[1], key)
    weights = None
    if len(found) > 1:

        def weights_of(micro):
            pairs = terms_of(params, micro[1], jax.random.fold_in(key, micro[0]))[0]
            return {name: pair[1] for name, pair in pairs.items()}

        weights = jax.tree.map(lambda x: jnp.sum(jax.lax.stop_gradient(x), axis=0), jax.lax.map(weights_of, indexed))

    def add(sums, micro):
        index, batch = micro
        (total, (weight, metrics, left)), grads = value_and_grad(params, batch, jax.random.fold_in(key, index), weights)
        return jax.tree.map(jnp.add, sums, (total, weight, metrics, grads)), left

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (metrics, params))
    sums, left = jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(()), *zeros), indexed)
    return *sums, left

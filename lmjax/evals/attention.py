"""Where a trained model attends: the weights of every head, and scores of the heads of induction circuits.

L layers, B rows, H heads, T query time, S key time.
"""

import functools

import flax.linen as nn
import jax
import numpy as np

from lmjax.errors import InputError
from lmjax.evals.rows import in_float32
from lmjax.sharding import RULES, logical_mesh, put_rows, row_shards


def weights(trained, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the attention weights of a model on a batch, computed in float32.

    Args:
        trained: a loaded Transformer.
        batch: arrays of its rows: inputs int [B, T], and encoder_inputs [B, S] of an encoder-decoder; segment_ids,
            positions and prefix as in training.

    Returns:
        {attention layer: float32 [L, B, H, T, S]}, rows over S sum to 1: "stack" of a decoder, "encoder" of an encoder;
        "encoder", "decoder" and "decoder.cross" of an encoder-decoder.

    Raises:
        InputError: the model has no attention layers of this package.

    Example: the first query of a decoder sees itself alone: weights(trained, batch)["stack"][..., 0, 0] is 1.
    """
    trained, count = in_float32(trained), len(batch["inputs"])
    more = -count % row_shards(trained.mesh)  # rows of zeros, so that the devices share them evenly
    batch = {name: np.pad(rows, [(0, more)] + [(0, 0)] * (np.ndim(rows) - 1)) for name, rows in batch.items()}
    with logical_mesh(trained.mesh, RULES), jax.default_matmul_precision("highest"):
        sown = _sown(trained.model, trained.params, put_rows(batch, trained.mesh))
    found = {}
    for path, array in jax.tree_util.tree_flatten_with_path(sown)[0]:
        names = [step.key for step in path if isinstance(step, jax.tree_util.DictKey)]
        cross = ".cross" if "cross_attention" in names else ""
        found[names[0] + cross] = np.asarray(array)[:, :count]
    if not found:
        raise InputError(
            f"{trained.run_dir}: expected a model with attention layers of lmjax.models.attention, got "
            f"model.family {trained.config.model.family!r}"
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def _sown(model: nn.Module, params, batch):
    return model.apply({"params": params}, batch, project=False, mutable=["attention"])[1].get("attention", {})


def previous_token(weights_LBHTS: np.ndarray) -> np.ndarray:
    """Returns how much each head attends to the token before the query, [L, H]: mean over all queries but the first.

    Example: uniform attention over the past of 3 tokens: (1/2 + 1/3) / 2 = 0.4167.
    """
    return np.diagonal(weights_LBHTS, offset=-1, axis1=-2, axis2=-1).mean(axis=(1, 3))


def prefix_matching(weights_LBHTS: np.ndarray, inputs_BT: np.ndarray) -> np.ndarray:
    """Returns how much each head attends to what followed earlier occurrences of the query's token, [L, H].

    The prefix-matching score of induction heads (Olsson et al. 2022, arXiv 2209.11895), usually on random tokens that
    are repeated: the mean, over queries whose token occurred before, of the sum of weights on the keys right after
    those occurrences.

    Example: tokens a b a: the last query is the only one; its weight on b is the score.
    """
    same_BTT = inputs_BT[:, :, None] == inputs_BT[:, None, :]
    after_BTS = np.zeros_like(same_BTT)
    after_BTS[:, :, 1:] = same_BTT[:, :, :-1]
    after_BTS &= np.tri(inputs_BT.shape[1], dtype=bool)[None]
    asked_BT = after_BTS.any(axis=2)
    score_LBHT = np.einsum("lbhts,bts->lbht", weights_LBHTS, after_BTS.astype(weights_LBHTS.dtype))
    return np.einsum("lbht,bt->lh", score_LBHT, asked_BT) / asked_BT.sum()

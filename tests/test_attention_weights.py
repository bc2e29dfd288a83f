"""Guards against attention weights that are not those the model computes with, and scores that count the wrong keys."""

import pathlib

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

import lmjax
from lmjax import models, trained
from lmjax.errors import InputError
from lmjax.evals import attention
from lmjax.hf import weights
from tests import hf_references as references
from tests.random_runs import write_run


@pytest.mark.parametrize("name", ["bert", "gemma2", "t5"])
def test_weights_are_those_of_transformers(name):
    """Both sides; windows, caps and shared key heads; relative positions and cross-attention."""
    model = references.reference(name)
    _, section, flat = references.ours(model)
    batch = references.example(model)
    batch |= {mask: np.ones_like(batch[mask]) for mask in ("mask", "target_mask") if mask in batch}
    config, params = ConfigDict({"model": section}), weights.unflatten(flat)
    module = models.build(ConfigDict({**section, "scan_layers": True}))
    run = trained.Trained(pathlib.Path(name), config, {}, None, module, params, 0)
    got = attention.weights(run, references.our_batch(model, batch))
    arguments = {"input_ids": batch["inputs"], "decoder_input_ids": batch.get("targets")}
    arguments = {key: torch.tensor(ids) for key, ids in arguments.items() if ids is not None}
    with torch.no_grad():
        out = model(**arguments, output_attentions=True)
    expected = {"bert": {"encoder": "attentions"}, "gemma2": {"stack": "attentions"}}.get(name)
    sides = {"encoder": "encoder", "decoder": "decoder", "decoder.cross": "cross"}
    expected = expected or {layer: f"{side}_attentions" for layer, side in sides.items()}
    assert got.keys() == expected.keys()
    for layer, field in expected.items():
        theirs = np.stack([array.numpy() for array in getattr(out, field)])
        np.testing.assert_allclose(got[layer], theirs, rtol=1e-4, atol=2e-6)


def test_a_loaded_run_has_its_weights_and_others_say_what_they_lack(tmp_path):
    write_run(tmp_path / "decoder", "decoder", steps=(6,))
    found = attention.weights(lmjax.load(tmp_path / "decoder"), {"inputs": np.arange(24).reshape(2, 12)})["stack"]
    assert found.shape == (2, 2, 2, 12, 12) and not np.triu(found, 1).any()
    np.testing.assert_allclose(found.sum(axis=-1), 1.0, rtol=1e-5)
    write_run(tmp_path / "rnn", "rnn", steps=(6,))
    with pytest.raises(InputError, match="expected a model with attention layers"):
        attention.weights(lmjax.load(tmp_path / "rnn"), {"inputs": np.zeros((1, 4), int)})


def test_scores_of_heads_are_sums_over_the_right_keys():
    rng = np.random.default_rng(0)
    inputs_BT = rng.integers(0, 4, (3, 9))
    weights_LBHTS = rng.random((2, 3, 2, 9, 9)) * np.tri(9)
    weights_LBHTS /= weights_LBHTS.sum(axis=-1, keepdims=True)
    found, before = [], []
    for b, ids in enumerate(inputs_BT):
        for t in range(9):
            keys = [s for s in range(1, t + 1) if ids[s - 1] == ids[t]]  # right after an earlier occurrence
            found += [weights_LBHTS[:, b, :, t][..., keys].sum(axis=-1)] if keys else []
            before += [weights_LBHTS[:, b, :, t, t - 1]] if t else []
    np.testing.assert_allclose(attention.prefix_matching(weights_LBHTS, inputs_BT), np.mean(found, axis=0))
    np.testing.assert_allclose(attention.previous_token(weights_LBHTS), np.mean(before, axis=0))
    causal = np.tri(3)[None, None, None] / np.arange(1, 4)[:, None]
    np.testing.assert_allclose(attention.previous_token(causal), (1 / 2 + 1 / 3) / 2)
    np.testing.assert_allclose(attention.prefix_matching(causal, np.array([[5, 6, 5]])), 1 / 3)

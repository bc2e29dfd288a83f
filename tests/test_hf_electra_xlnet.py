"""Guards against an exported ELECTRA that computes something else in transformers, and an XLNet that seems to be one.

Tolerance: 5e-6 of the largest logit, as in test_hf_parity.py. Both sides are float32, and the export rounds once more
where it multiplies two linear layers.
"""

import functools
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict

from lmjax import hf, models, trained
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.hf import architectures, weights
from tests import hf_references as references
from tests.test_hf_export import section_of

THERE = {"discriminator": transformers.ElectraForPreTraining, "generator": transformers.ElectraForMaskedLM}
# A generator with one head of width 4, and a table of width 8.
ELECTRA = {"num_heads": 4, "embedding_dim": 8}
# What rewrites change: multipliers as of muP, a table that cannot stay tied, fewer parameters.
REWRITES = {"num_heads": 4, "num_kv_heads": 2, "use_bias": False, "norm_scale": False, "token_types": None}
REWRITES |= {"embedding_scale": 3.0, "position": "sinusoidal", "head_bias": False, "share_layers": True}
MULTIPLIERS = {"logit_multiplier": 0.5, "heads_multiplier": 0.25, "attention_multiplier": 0.7}


def section(family="electra", **changes):
    """A small model section with the options of ELECTRA."""
    options = {"options": {"generator_fraction": 0.25}} if family == "electra" else {"options": {}}
    return section_of("preset.py:electra", **changes) | {"family": family, **options}


def noise(section):
    """{path: array} with nothing at zero or one."""
    shapes = models.plain_shapes(models.build(ConfigDict(section)), {"inputs": jax.ShapeDtypeStruct((1, 1), "int32")})
    rng = np.random.default_rng(0)
    return {
        path: (path.endswith("/scale") + 0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
        for path, leaf in weights.flatten(shapes).items()
    }


def run_of(run_dir, section):
    """Writes a run with random parameters, as training would leave it; returns them."""
    params = noise(section)
    run_dir.mkdir()
    trained.write_imported(run_dir, section, "electra", tokenizers.Bytes(8), weights.unflatten(params), {})
    return params


@functools.partial(jax.jit, static_argnums=(0, 3), compiler_options=references.FAST)
def apply(model, params, batch, project):
    return model.apply({"params": params}, batch, project=project)


@pytest.mark.parametrize("part", THERE)
@pytest.mark.parametrize(
    "values", [section(**ELECTRA), section(**REWRITES) | MULTIPLIERS], ids=["as_published", "rewrites"]
)
def test_both_parts_compute_the_same_in_transformers(values, part, tmp_path):
    """Logits at real tokens; the way back has the bits of the folder, and those of the run where nothing changed."""
    params = run_of(tmp_path / "run", values)
    facts = hf.export_run(tmp_path / "run", tmp_path / "target", part=part)
    assert facts["architecture"] == THERE[part].__name__
    options = {"local_files_only": True, "output_loading_info": True}
    model, loading = THERE[part].from_pretrained(tmp_path / "target", **options)
    assert not any(loading.values()), loading

    run, rng = trained.load(tmp_path / "run"), np.random.default_rng(1)
    ids, mask = rng.integers(0, 256, (2, 12)).astype(np.int32), np.ones((2, 12), np.int32)
    mask[1, -4:] = 0
    zeros = np.zeros(ids.shape, np.float32)  # the discriminator sees these ids: none has a weight, so none is replaced
    batch = {"inputs": ids, "segment_ids": mask, "targets": ids, "weights": zeros, "noise": zeros}
    got = apply(run.model, run.params, batch, part == "generator")
    got = np.asarray(got if part == "generator" else np.diff(got["replaced"])[..., 0])  # log odds
    with torch.no_grad():
        expected = model.eval()(torch.tensor(ids, dtype=torch.int64), torch.tensor(mask)).logits.numpy()
    assert got.std() > 0.1 and references.distance(got[mask > 0], expected[mask > 0]) < 5e-6

    hf.import_run(tmp_path / "target", tmp_path / "again")
    hf.export_run(tmp_path / "again", tmp_path / "twice")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "target" / file).read_bytes()
    back = weights.flatten(trained.load(tmp_path / "again").params)
    if "sinusoidal" not in values.values():
        ours = {path.replace("encoder/", "generator/") if part == "generator" else path for path in back}
        merged = ("embedding/projection/", "embedding/transform/", "embedding/discriminator/")
        assert {path for path in ours if not path.startswith(merged)} <= params.keys()
        for path in ours & params.keys():
            if not path.startswith(merged) or (part, "projection" in path) == ("discriminator", True):
                got = back[path.replace("generator/", "encoder/")]
                np.testing.assert_array_equal(got, params[path], err_msg=path)


@pytest.mark.parametrize(
    ("changes", "part", "match"),
    [
        ({"head": "plain"}, "generator", "model.head: expected 'transform', got 'plain'; train configs/preset.py:el"),
        ({"activation": "gelu"}, "generator", "model.activation: expected 'gelu_exact', got 'gelu'"),
        ({"norm_position": "pre"}, "discriminator", "nearest is electra: model.norm_position: expected 'post', got"),
        ({"position": "rotary"}, "discriminator", "model.position: expected 'learned', got 'rotary'"),
        ({"embedding_dim": 4}, "generator", r"other than that of the token table \(4\), got width 4 and 1 x 4"),
        ({"num_heads": 2}, "generator", "got width 4 and 1 x 8; export the discriminator, or train with another"),
    ],
)
def test_what_electra_cannot_be_in_transformers(changes, part, match):
    values = section(**{**ELECTRA, "embedding_dim": None if changes.get("head") else 8, **changes})
    with pytest.raises(InputError, match=match):
        values, params, _ = architectures.electra_part(part, ConfigDict(values), noise(values))
        architectures.fit(values, params, family="electra")


def test_a_discriminator_may_have_what_a_generator_may_not():
    """The head of ElectraForMaskedLM has the exact gelu; that of ElectraForPreTraining any activation."""
    for changes in ({"activation": "gelu", "num_heads": 2}, {"activation": "relu", "embedding_dim": 4}):
        values = section(**{**ELECTRA, **changes})
        part, params, _ = architectures.electra_part("discriminator", ConfigDict(values), noise(values))
        assert architectures.fit(part, params, family="electra")[0] == "electra"


def test_parts_belong_to_electra(tmp_path):
    run_of(tmp_path / "run", section("encoder", **ELECTRA))
    with pytest.raises(InputError, match="part generator: expected a run of model.family electra, got encoder; leave"):
        hf.export_run(tmp_path / "run", tmp_path / "target", part="generator")
    with pytest.raises(InputError, match="unknown part 'generater'; did you mean 'generator'"):
        hf.export_run(tmp_path / "run", tmp_path / "target", part="generater")
    assert not list(tmp_path.glob("*target*"))


@pytest.mark.parametrize("position", ["rotary", "relative", "alibi"])
def test_no_xlnet_leaves_as_one(position):
    """With XLNet's place of the norms; positions are what stays."""
    values = section("xlnet", position=position, embedding_norm=False, head="plain", embedding_dim=None)
    with pytest.raises(InputError, match=f"as XLNetLMHeadModel has, got model.position '{position}', .*; use the"):
        architectures.fit(values, {})

"""Configs are strict, and every file resolves to the text that was reviewed (bug class 15)."""

import json
import os

import pytest

from lmjax import config as configs
from lmjax.config import CHECKS, OPERATIONAL, digest, flatten
from lmjax.errors import InputError
from tests.conftest import ROOT, small

FILES = [
    "default",
    "decoder",
    "encoder",
    "encoder_decoder",
    "preset:llama",
    "preset:bert",
    "preset:t5_v1_1",
    "tiny",
    "tiny:encoder",
    "tiny:encoder_decoder",
    "quickstart",
    "quickstart:encoder",
    "quickstart:encoder_decoder",
]
GOLDEN = ROOT / "tests" / "golden_configs.json"


def load(name, **overrides):
    path, _, arg = name.partition(":")
    return configs.load(f"{ROOT / 'configs' / path}.py" + (f":{arg}" if arg else ""), overrides)


def test_every_config_file_gives_its_reviewed_text():
    """Golden: after a expected change, run the tests once with LMJAX_REVIEW=1 and read the file's diff."""
    texts = {}
    default = flatten(load("default"))
    texts["default"] = {k: str(v) for k, v in default.items()}
    for name in FILES[1:]:
        texts[name] = {k: str(v) for k, v in flatten(load(name)).items() if default.get(k) != v}
    if os.environ.get("LMJAX_REVIEW"):
        GOLDEN.write_text(json.dumps(texts, indent=1) + "\n")
    assert texts == json.loads(GOLDEN.read_text())
    assert {f"{p.stem}" for p in (ROOT / "configs").glob("*.py")} == {name.partition(":")[0] for name in FILES}


def test_every_key_of_the_default_has_a_check_and_a_comment():
    assert set(flatten(load("default"))) == set(CHECKS)
    source = (ROOT / "configs" / "default.py").read_text()
    for key in CHECKS:
        line = next(line for line in source.splitlines() if line.strip().startswith(f"c.{key} = "))
        assert " # " in line, f"{key} has no comment"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.d_modle", "64", "did you mean 'model.d_model'"),
        ("modle.d_model", "64", "did you mean 'model.d_model'"),
        ("model.d_model", "wide", "expected a whole number above 0, got 'wide'"),
        ("model.d_model", "2.5", "expected a whole number above 0"),
        ("model.d_model", 0, "expected a whole number above 0"),
        ("model.position", "rotery", "learned | sinusoidal"),
        ("optimizer.learning_rate", float("nan"), "above 0"),
        ("model.scan_layers", 1, "True or False"),
        ("data.sources", (), "at least one"),
        ("run.name", "../escape", "letters"),
        ("mesh.rules", (("embed", "fdsp"),), "'data' | 'fsdp' | 'tensor'"),
        ("objective.options.mask_rat", 0.1, None),  # only the objective knows its options: see test_corruption
    ],
)
def test_a_bad_key_or_value_names_what_to_set(key, value, message):
    if message is None:
        assert load("encoder", **{key: value}).objective.options.mask_rat == 0.1
        return
    with pytest.raises(InputError) as error:
        load("default", **{key: value})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"duration.steps": 5}, "exactly one of tokens, steps, epochs, flops"),
        ({"duration.tokens": 0}, "exactly one of"),
        ({"model.num_heads": 7}, "not divisible by model.num_heads"),
        ({"model.num_kv_heads": 3}, "not divisible by model.num_kv_heads"),
        ({"data.weights": (1.0, 2.0)}, "one per source"),
        ({"train.accumulation_steps": 3}, "not divisible by train.accumulation_steps"),
        ({"model.position": "rotary", "model.head_dim": 5}, "even head width"),
        ({"model.position": "sinusoidal", "model.d_model": 129, "model.num_heads": 3}, "even model.d_model"),
        ({"model.position": "relative", "model.relative_max_distance": 16}, "exact buckets"),
        ({"train.seed": 2**40}, "in 0 .. 2"),
    ],
)
def test_keys_that_contradict_each_other_are_errors(overrides, message):
    with pytest.raises(InputError, match=message):
        load("default", **overrides)


def test_values_come_in_their_type():
    config = load(
        "default",
        **{
            "duration.tokens": "1e6",
            "optimizer.weight_decay": "1",
            "data.sources": "code,classic",
            "data.weights": "1,2",
            "model.scan_layers": "false",
        },
    )
    assert config.duration.tokens == 1_000_000 and isinstance(config.duration.tokens, int)
    assert config.optimizer.weight_decay == 1.0 and isinstance(config.optimizer.weight_decay, float)
    assert config.data.sources == ("code", "classic") and config.data.weights == (1, 2)
    assert config.model.scan_layers is False


def test_a_config_survives_json():
    config = load("encoder", **{"objective.options.mask_rate": 0.3})
    again = configs.check(configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))))
    assert again == config


def test_every_decisive_key_changes_the_hash_and_no_other_does():
    config = small()
    reference = digest(config, "data", "1")
    assert reference != digest(config, "other data", "1") != digest(config, "data", "2")
    for key, value in flatten(config).items():
        other = config.copy_and_resolve_references()
        section, name = key.split(".", 1)
        with other.unlocked():
            if isinstance(value, bool):
                other[section][name] = not value
            elif isinstance(value, (int, float)):
                other[section][name] = value + 1
            else:
                other[section][name] = value + ("x",) if isinstance(value, tuple) else value + "x"
        changed = digest(other, "data", "1") != reference
        assert changed == (section not in OPERATIONAL and key != "objective.file"), key


def test_arguments_of_config_files_are_checked():
    with pytest.raises(InputError, match="did you mean 'encoder'"):
        load("quickstart:enkoder")
    with pytest.raises(InputError, match=r"get_config\(\).* does not take \['x'\]"):
        load("decoder:x")


def test_missing_files_and_keys():
    with pytest.raises(InputError, match="no config file"):
        configs.load("nowhere.py")
    config = load("default").copy_and_resolve_references()
    with config.unlocked():
        del config.model["d_model"]
    with pytest.raises(InputError, match=r"config has no \['model.d_model'\]"):
        configs.check(config)

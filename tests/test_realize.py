"""Guards against a printed training command that trains another model than it says, or that does not run."""

import json
import math
import shlex

import pytest

from lmjax import cli
from lmjax.errors import InputError
from lmjax.format import count as short
from lmjax.sweeps.realize import nearest_config, training_command
from tests.conftest import ROOT

TEXT = {"data.sources": "markov2:400000"}
SWEEP = """
from configs import decoder
from lmjax.config import overlay

def get_config():
    return overlay(decoder.get_config(), {"data.sources": ("markov2:400000",)})

def sweep():
    return [
        {"model.d_model": d, "model.num_layers": 2, "schedule.final_fraction": 0.0, "duration.tokens": D,
         "optimizer.learning_rate": 0.3 / d}
        for d in (16, 32, 64) for D in (10000, 30000)
    ]
"""


def described(command, capsys):
    """The record of the config that a printed command trains."""
    words = shlex.split(command)
    assert words[:2] == ["lmjax", "train"]
    assert cli.main(["describe", *words[2:], "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("spec", "overrides", "N", "count"),
    [
        ("tiny.py", {}, 9.3e4, "n_total"),
        ("decoder.py", {"model.mlp_dim": "512"}, 6e6, "n_total"),
        ("decoder.py", {"model.head_dim": "32"}, 3e6, "n_non_embedding"),
        ("decoder.py", {"model.num_kv_heads": "2"}, 6e6, "n_total"),
        ("decoder.py", {"model.num_kv_heads": "1", "duration.tokens": "None", "duration.steps": "9"}, 3e5, "n_total"),
        ("encoder_decoder.py", {"model.encoder_layers": "6"}, 4e6, "n_total"),
        ("preset.py:t5", {}, 3e5, "n_total"),
        ("seq2seq.py", {}, 3e5, "n_total"),  # with options
    ],
)
def test_the_printed_command_trains_the_size_it_says(spec, overrides, N, count, capsys):
    """Also where sizes other than width, depth and heads are set, and where a factor follows from the width."""
    command, notes = training_command(str(ROOT / "configs" / spec), {**TEXT, **overrides}, N, 1e5, count)
    record = described(command, capsys)
    model, derived = record["config"]["model"], record["derived"]
    assert abs(math.log(derived[count] / N)) < math.log(1.1)
    assert notes[0].startswith(f"N = {short(derived[count])} (")
    assert derived["tokens"] == pytest.approx(1e5, rel=0.02)
    if spec == "preset.py:t5":
        assert model["logit_scale"] == pytest.approx(model["d_model"] ** -0.5)
    if "model.encoder_layers" in overrides:
        assert model["encoder_layers"] / model["num_layers"] >= 1.5
    if overrides.get("model.num_kv_heads") == "2":
        assert model["num_heads"] == 2 * model["num_kv_heads"]
    assert any("learning rate" in note and "tune it" in note for note in notes)


def test_more_tokens_than_there_is_text_is_said_and_allowed(capsys):
    command, notes = training_command(str(ROOT / "configs" / "tiny.py"), TEXT, 9e4, 1.5e6)
    derived = described(command, capsys)["derived"]
    assert 3.5 < derived["epochs"] < 5 and derived["tokens"] == pytest.approx(1.5e6, rel=0.01)
    assert any("passes over this config's data" in note for note in notes)


def test_a_sweep_file_gives_its_shapes_settings_and_learning_rate_rule(tmp_path, capsys):
    """Cells of two layers and one schedule, with the learning rate 0.3 / width: the command keeps all three."""
    (tmp_path / "mine.py").write_text(SWEEP)
    command, notes = training_command(str(tmp_path / "mine.py"), {}, 4e5, 2e5)
    config = described(command, capsys)["config"]
    assert config["model"]["num_layers"] == 2 and config["schedule"]["final_fraction"] == 0.0
    assert config["optimizer"]["learning_rate"] == pytest.approx(0.3 / config["model"]["d_model"], rel=1e-3)
    assert any("by the rule of the sweep's cells" in note for note in notes)


def test_a_size_that_the_family_does_not_reach_is_refused():
    with pytest.raises(InputError, match="expected a model of about 100 parameters"):
        nearest_config(str(ROOT / "configs" / "tiny.py"), TEXT, 100, 1e5)

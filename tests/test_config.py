"""Configs are strict, every file resolves to the reviewed text, and run identity depends on the right settings."""

import inspect
import json
import os
import pathlib

import ml_collections
import pytest

from lmjax import config as configs
from lmjax import defaults, identity, losses, pack, parents, run_record, trained, trainer
from lmjax.config import CHECKS, DEFAULTS, OPERATIONAL, flatten
from lmjax.data.dataset import Data
from lmjax.data.pipeline import Pipeline
from lmjax.data.windows import Records
from lmjax.errors import InputError
from lmjax.resolve import Resolved, resolve
from tests.conftest import ROOT, small, train

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
    "ngram",
    "rnn",
    "feed_forward",
    "seq2seq",
    "word2vec",
]
GOLDEN = ROOT / "tests" / "golden_configs.json"


def load(name, **overrides):
    path, _, arg = name.partition(":")
    return configs.load(f"{ROOT / 'configs' / path}.py" + (f":{arg}" if arg else ""), overrides)


def test_every_config_file_gives_its_reviewed_text():
    """Golden: after an intended change, run the tests once with LMJAX_REVIEW=1 and read the file's diff."""
    texts = {}
    default = flatten(load("default"))
    texts["default"] = {k: str(v) for k, v in default.items()}
    for name in FILES[1:]:
        texts[name] = {k: str(v) for k, v in flatten(load(name)).items() if default.get(k) != v}
    if os.environ.get("LMJAX_REVIEW"):
        GOLDEN.write_text(json.dumps(texts, indent=1) + "\n")
    assert texts == json.loads(GOLDEN.read_text())
    assert {f"{p.stem}" for p in (ROOT / "configs").glob("*.py")} == {name.partition(":")[0] for name in FILES}


def test_every_key_is_declared_with_a_type_and_a_comment():
    assert set(CHECKS) <= set(DEFAULTS)
    assert {configs.type_of(key) for key in DEFAULTS} == {bool, int, float, str, tuple}
    source = (ROOT / "lmjax" / "defaults.py").read_text()
    for key in DEFAULTS:
        name = key.replace(".from", '["from"]')  # a keyword of Python
        line = next(line for line in source.splitlines() if line.strip().startswith(f"c.{name} = "))
        assert " # " in line, f"{key} has no comment"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.d_modle", "64", "did you mean 'model.d_model'"),
        ("modle.d_model", "64", "did you mean 'model.d_model'"),
        ("model.d_model", "wide", "expected a positive integer, got 'wide'"),
        ("model.d_model", "2.5", "expected a positive integer"),
        ("model.d_model", 0, "expected a positive integer"),
        ("model.mlp_dim", 0, "expected a positive integer, or None, got 0"),
        ("model.d_model", "None", "expected a positive integer, got None"),
        ("data.text_field", 3, "expected a string, got 3"),
        ("model.position", "rotery", "learned | sinusoidal"),
        ("optimizer.learning_rate", float("nan"), "above 0"),
        ("model.scan_layers", 1, "True or False"),
        ("data.sources", (), "at least one"),
        ("run.name", "../escape", "letters"),
        ("mesh.rules", (("embed", "fdsp"),), "'data' | 'fsdp' | 'expert' | 'context' | 'tensor'"),
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
        ({"duration.tokens": None}, "exactly one of"),
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


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, "x")
    return "x" if value is None else value + ("x" if isinstance(value, str) else 1)


def test_every_decisive_key_changes_the_hash_and_no_other_does():
    config = small()
    reference = identity.digest(config, "data", "1", {})
    assert len({reference, identity.digest(config, "other", "1", {}), identity.digest(config, "data", "2", {})}) == 3
    for key, value in flatten(config).items():
        other = config.copy_and_resolve_references()
        section, _, name = key.rpartition(".")
        with other.unlocked(), other.ignore_type():
            (other[section] if section else other)[name] = changed(value)
        differs = identity.digest(other, "data", "1", {}) != reference
        assert differs == (section not in OPERATIONAL and key not in configs.FILES), key


def test_a_value_that_follows_from_others_does_not_count_when_it_is_given():
    """The same model with head_dim left out and written out is the same run."""
    given = ({}, {"model__head_dim": 8, "model__mlp_dim": 64}, {"model__mlp_dim": 32})
    runs = [resolve(small(**sizes)) for sizes in given]
    assert runs[0].run_id == runs[1].run_id != runs[2].run_id


def declare_new_keys(monkeypatch):
    """Two keys that a later version declares: one with a default, one that is not set."""
    monkeypatch.setitem(DEFAULTS, "model.new_option", 1.0)
    monkeypatch.setitem(DEFAULTS, "optimizer.new_option", None)
    monkeypatch.setitem(CHECKS, "optimizer.new_option", configs.Check("a number", kind=float))
    declared = defaults.get_config

    def get_config():
        config = declared()
        with config.unlocked():
            config.model.new_option, config.optimizer.new_option = 1.0, None
        return config

    monkeypatch.setattr(defaults, "get_config", get_config)


def test_runs_recorded_before_a_key_existed_load_resume_and_keep_their_id(monkeypatch, tmp_path):
    before = resolve(small(duration__steps=4, checkpoint__every_steps=2))
    before.write(tmp_path / "run")
    declare_new_keys(monkeypatch)
    now = configs.load(str(tmp_path / "run" / "config.json"))
    assert now.model.new_option == 1.0 and now.optimizer.new_option is None
    run = resolve(now)
    assert run.run_id == before.run_id
    assert train(run, tmp_path / "run") == trainer.DONE
    assert trained.load(tmp_path / "run").config.model.new_option == 1.0
    (row,) = run_record.read_runs(tmp_path).to_dict("records")
    assert row["loss"] > 0 and row["run_id"] == run.run_id
    other = resolve(configs.overlay(now, {"model.new_option": 2.0}))
    assert other.run_id != before.run_id
    with pytest.raises(InputError, match="model.new_option: recorded 1.0, given 2.0"):
        other.check(tmp_path / "run")


def test_a_record_of_the_first_format_reads_its_zeros_as_not_set(tmp_path):
    run = resolve(small())
    record = run.record()
    del record["format"]
    record["config"]["optimizer"]["clip_norm"] = 0.0
    record["config"]["checkpoint"]["every_seconds"] = 0
    record["config"]["model"]["token_types"] = 0
    record["config"]["run"]["name"] = ""
    config = configs.from_record(record)
    assert (config.optimizer.clip_norm, config.model.token_types, config.run.name) == (None, None, None)
    assert config.train.seed == 0 and config.model.dropout == 0.0  # zeros that are values
    configs.check(config)


def test_a_run_from_before_the_axis_expert_is_packed_and_split_like_a_new_one():
    """Its record has rules that split no array over mesh.expert; those of your own stay as they are."""
    run = resolve(small(model__num_experts=4))
    record, own = json.loads(json.dumps(run.record())), ["mlp", None]
    before = {"batch": ["data", "fsdp"], "expert_batch": "data", "experts": "fsdp"}
    del record["config"]["mesh"]["expert"]
    rules = record["config"]["mesh"]["rules"] = [[k, before.get(k, v)] for k, v in record["config"]["mesh"]["rules"]]
    pack.check_alike([run, resolve(configs.from_record(record))])  # as in a sweep that is continued
    record["config"]["mesh"]["rules"] = [own if rule[0] == "mlp" else rule for rule in rules]
    found = dict(configs.from_record(record).mesh.rules)
    assert found == {**dict(run.config.mesh.rules), "mlp": None}


def test_comments_and_docstrings_leave_the_hash_of_the_code_and_statements_change_it():
    source = 'def f(x):\n    """Text."""\n    # why\n    return x + 1  # one\n'
    same = 'def f(x):\n    """Another\n    text."""\n\n    return x + 1\n'
    assert identity.meaning(source) == identity.meaning(same) != identity.meaning(source.replace("1", "2"))
    assert identity.meaning("a = '#1'  # b") == "a = '#1'"
    strings = r"""a = '\'#1' + f"#{b}" + r"\"  #" + """ + '"""\n"#\n"""'
    assert identity.meaning(f"{strings}  # \"\nif a:\n    'Text.'\n    c = (1,  # '\n         2)") == (
        f"{strings}\nif a:\n    c = (1,\n         2)"
    )


@pytest.mark.parametrize(
    "function",
    [Resolved.loss_terms, trainer.make_step, losses.terms, parents.inherit, Data.spec, Pipeline.rows, Records.pieces],
)
def test_the_code_of_a_loss_and_of_its_rows_is_in_the_hash(function):
    """The loss of a step was moved to a file that was not hashed: a run counted as finished after it was edited."""
    package = pathlib.Path(identity.__file__).parent
    assert inspect.getfile(function).removeprefix(f"{package}/").startswith(identity.SOURCE)


def test_a_run_by_other_code_is_not_taken_for_this_one(tmp_path, monkeypatch):
    """After losses.py was edited, the same command must not answer with the old loss, nor mix both in one run."""
    config = small(duration__steps=2)
    assert train(resolve(config), tmp_path) == trainer.DONE
    loss = run_record.read_json(tmp_path / "summary.json")["loss"]
    monkeypatch.setattr(identity, "code_digest", lambda: "other")
    with pytest.raises(InputError, match="other source code.*--keep"):
        train(resolve(config), tmp_path)
    assert train(resolve(config), tmp_path, keep=True) == trainer.DONE
    assert run_record.read_json(tmp_path / "summary.json")["loss"] == loss
    (tmp_path / "summary.json").unlink()  # unfinished, with a checkpoint
    with pytest.raises(InputError, match="other source code"):
        train(resolve(config), tmp_path)


def test_a_directory_of_another_run_names_the_settings_that_differ(tmp_path):
    run = resolve(small())
    run.write(tmp_path)
    with pytest.raises(InputError, match="optimizer.learning_rate: recorded 0.002, given 0.001"):
        resolve(small(optimizer__learning_rate=1e-3)).check(tmp_path)
    record = run_record.read_json(tmp_path / "config.json")
    source = record["data"]["sources"][0]
    source |= {"provenance": {"another machine": {}}, "entropy": {"nats_per_token": 1.9860558}}
    assert identity.differences(record, run.record(), run.filled) == []
    source["content"] = "0123456789abcdef01234567"
    assert identity.differences(record, run.record(), run.filled) == ["the data changed"]


def test_arguments_of_config_files_are_checked():
    with pytest.raises(InputError, match="did you mean 'encoder'"):
        load("quickstart:enkoder")
    with pytest.raises(InputError, match=r"get_config\(\).* does not take \['x'\]"):
        load("decoder:x")


def test_a_config_file_changed_within_a_second_is_read_again(tmp_path):
    """Python's bytecode would be taken for current: the time and the length of the file are the same."""
    file = tmp_path / "mine.py"
    for seed in (5, 6):
        file.write_text(
            "from configs import decoder\n"
            f"def get_config():\n    config = decoder.get_config()\n    config.train.seed = {seed}\n    return config"
        )
        os.utime(file, (1e9, 1e9))
        assert configs.load(str(file)).train.seed == seed


def test_missing_files_and_keys():
    with pytest.raises(InputError, match="no config file"):
        configs.load("nowhere.py")
    config = load("default").copy_and_resolve_references()
    with config.unlocked():
        del config.model["d_model"]
    with pytest.raises(InputError, match=r"config has no \['model.d_model'\]"):
        configs.check(config)


HOSTILE = (
    *(0, -1, 2**31, 2**63, 10**12, 10**30, 10**400, -(10**400), 0.5, 1e300, -1e300, 1e-300, 1e-320, 1e-46, 1e39),
    *(float("inf"), float("nan"), True, None, "", "None", "nan", "1e999", "9" * 5000, "(" * 3000, "a.b", "\x00", b"x"),
    *(
        (),
        (5,),
        (10**400,),
        (("batch", 5),),
        (("batch",),),
        ((5, "data"),),
        ("a", 1),
        [["batch", ["data", 3]]],
        {},
        {1: 2},
    ),
)


@pytest.mark.parametrize("key", [*DEFAULTS, "objective.options.mask_rate", "objective.options.a.b", "model", "a", ""])
def test_hostile_values_are_taken_or_refused_but_never_crash(key):
    """60 of 2431 values used to end in a traceback (huge integers above all), and two in a hang."""
    base = configs.load(str(ROOT / "configs" / "default.py"))
    for value in HOSTILE:
        try:
            config = configs.overlay(base, {key: value})
        except InputError as error:
            assert len(str(error)) < 3000
            continue
        try:
            configs.check(config)
        except InputError:
            continue
        if key in DEFAULTS and type(value) is int and configs.type_of(key) is int:
            assert abs(value) < 2**63


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.learning_rate", 1e-46),
        ("optimizer.epsilon", 1e39),
        ("optimizer.clip_norm", 1e-46),
        ("optimizer.b2", 0.99999999999),
        ("model.norm_epsilon", 1e39),
        ("model.logit_scale", 1e-46),
        ("model.attention_scale", 1e-300),
    ],
)
def test_numbers_that_float32_makes_0_1_or_infinity_are_refused(key, value):
    """Such runs used to end as "done" with the loss of an untrained model."""
    with pytest.raises(InputError, match="which float32 rounds to 0, 1 or infinity"):
        load("default", **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.seq_len", 1_000_000_007),
        ("model.num_layers", 10**12),
        ("model.vocab_size", 10**12),
        ("data.num_sentinels", 10**9),
    ],
)
def test_sizes_no_machine_holds_are_refused_before_anything_is_allocated(key, value):
    with pytest.raises(InputError, match=f"config.{key}: expected .* at most"):
        load("default", **{key: value})


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({"model.encoder_layers": 3}, "model.family=encoder_decoder or seq2seq"),
        ({"data.encoder_seq_len": 64}, "model.family=encoder_decoder or seq2seq"),
        ({"model.token_types": 5}, "model.family=encoder, electra or xlnet"),
        ({"model.relative_buckets": 16}, "model.position=relative"),
        ({"model.position": "alibi", "model.rotary_base": 500.0}, "model.position=rotary"),
        ({"data.vocab_size": 512}, "data.tokenizer=bpe or words"),
        ({"schedule.decay_fraction": 0.3}, "schedule.name=wsd"),
        ({"optimizer.name": "adafactor", "optimizer.b1": 0.5}, "optimizer.name=adamw, lion or muon"),
    ],
)
def test_a_setting_without_effect_is_refused(settings, needed):
    """It used to give a new run id, and the same loss to the last bit."""
    with pytest.raises(InputError, match=f"has no effect here: it needs {needed}; leave it out"):
        load("default", **settings)


def test_equal_weights_are_equal_however_they_are_written():
    written = [load("default", **{"data.weights": value}).data.weights for value in (1, 1.0, (1,), "1", "1.0", "(1,)")]
    assert {repr(weights) for weights in written} == {"(1.0,)"}


@pytest.mark.parametrize("duration", ["tokens", "flops", "epochs"])
def test_less_than_an_optimizer_step_is_refused(duration):
    """flops=1 used to train a whole step, of 6 MFLOP."""
    amount = 1e-6 if duration == "epochs" else 1
    with pytest.raises(InputError, match=f"duration.{duration}: expected at least one optimizer step"):
        resolve(small(**{"duration__steps": None, f"duration__{duration}": amount}))


def test_a_record_that_names_a_relative_objective_file_runs_nothing(tmp_path, monkeypatch):
    """In a run directory of somebody else it would run a file of that name in the current folder."""
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    monkeypatch.chdir(tmp_path)
    record = {"config": configs.to_dict(small(objective__file="mine.py")), "format": configs.FORMAT}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="expected an absolute path"):
        configs.load("config.json")


def test_a_misspelt_key_in_a_config_is_named_before_the_missing_one():
    config = small().to_dict()
    config["model"]["d_modle"] = config["model"].pop("d_model")
    with pytest.raises(InputError, match=r"unknown config key 'model.d_modle'; did you mean 'model.d_model'"):
        configs.check(ml_collections.ConfigDict(config))

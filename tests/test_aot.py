"""Guards against a step that cannot be compiled for a GPU or TPU or needs too much of its memory, and against wrong
estimates of that memory. Whole compiles run with -m slow where the extra `aot` is installed; no device is needed."""

import functools
import json
import re

import pytest

from lmjax import aot, cli, describe
from lmjax import config as configs
from lmjax.errors import InputError
from lmjax.resolve import memory, resolve
from tests.conftest import ROOT

BASE = {
    "model.dtype": "bfloat16",
    "data.sources": ("markov2:100000",),
    "duration.tokens": None,
    "duration.steps": 8,
    "data.max_epochs": 100.0,
}
GPT2 = {  # 124M
    "model.d_model": 768,
    "model.num_layers": 12,
    "model.num_heads": 12,
    "model.vocab_size": 50304,
    "model.position": "learned",
    "data.seq_len": 1024,
    "data.global_batch_size": 8,
}
TINY = {  # 0.85M
    "model.d_model": 128,
    "model.num_layers": 4,
    "model.num_heads": 4,
    "model.vocab_size": 512,
    "data.seq_len": 256,
    "data.global_batch_size": 16,
}
FOUR = {**GPT2, "model.scan_layers": True, "mesh.fsdp": 4, "data.global_batch_size": 32}  # on four devices
WIDE = {**TINY, "model.d_model": 256, "model.vocab_size": 8192, "data.seq_len": 512, "data.global_batch_size": 8}
ENCODER = {**WIDE, "model.num_layers": 1}


@functools.cache
def resolved(family, shape):
    return resolve(configs.load(str(ROOT / "configs" / f"{family}.py"), {**BASE, **dict(shape)}))


def run_of(family="decoder", **shape):
    return resolved(family, tuple(shape.items()))


def needs(device):
    missing = aot.missing(aot.target(device).platform)
    return pytest.mark.skipif(bool(missing), reason=f"{missing} is not installed; pip install 'lmjax[aot]'")


def kernels(program):
    """Number of kernels that a GPU program without loops starts."""
    entry = program[program.index("\nENTRY") :]
    operations = re.findall(r" = (?:\([^=]*?\)|\S+) ([\w-]+)\(", entry)
    assert "while" not in operations and "conditional" not in operations
    return sum(name not in ("parameter", "constant", "bitcast", "tuple", "get-tuple-element") for name in operations)


def reductions(program):
    """The dtypes of all sums over devices of arrays (not scalars)."""
    results = re.findall(r" = (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", program)
    return [dtype for result in results for dtype in re.findall(r"(\w+)\[\d", result)]


# As compiled by jax 0.10.2 (see docs/performance.md); bytes of arguments and peak of one device.
COMPILED = [
    ("h200", "decoder", TINY, 10286622, 112461727),
    ("h200", "encoder", {**TINY, "model.num_layers": 1}, 3199518, 41079707),
    ("v5e", "decoder", TINY, 10291200, 127640576),
    ("v5e", "decoder", FOUR, 373473792, 6944303616),
    ("v5e", "encoder", ENCODER, 34665984, 169201664),
]


@pytest.fixture
def without_plugins(monkeypatch):
    monkeypatch.setattr(aot, "missing", lambda platform: "a plug-in")


@pytest.mark.parametrize(("device", "family", "shape", "arguments", "peak"), COMPILED)
def test_estimates_are_near_the_compiled_figures(device, family, shape, arguments, peak, without_plugins):
    found = describe.on_device(run_of(family, **shape), device)
    assert found["method"] == "estimate"
    assert 0.97 < found["arguments"] / arguments < 1.01  # the batch is not in the estimate
    assert 0.7 < found["peak"] / peak < 1.3, (found, peak)


def test_a_model_without_attention_is_described(without_plugins):
    run = run_of("rnn", **TINY)
    found = describe.on_device(run, "a100")
    assert found["attention"] == "none" and found["fits"] and found["peak"] == run.derived["memory_bytes"]


def test_what_is_derived_from_the_memory(without_plugins):
    one = describe.on_device(run_of(**TINY), "h200")
    assert one["devices"] == 1 and one["fits"] and one["attention"] == "cudnn (causal)"
    assert one["packed"] == int(0.9 * one["memory"] / one["peak"]) > 100
    assert one["seconds_per_step"] == one["flops_per_step"] / 989e12  # H200, bfloat16
    four = describe.on_device(run_of(**{**TINY, "mesh.fsdp": 4}), "v5e")
    assert four["devices"] == 4 and four["packed"] is None and four["attention"] == "splash (causal)"
    assert four["arguments"] == one["arguments"] / 4
    # 1 device has 4x the rows in flight, but the logits of one chunk take 256 MiB on each
    run, alone, split = run_of(**GPT2), *({"data": 1, "fsdp": n, "expert": 1, "tensor": 1} for n in (1, 4))
    one, four = (memory(run.config, run.lengths, 0, True, mesh) for mesh in (alone, split))
    assert one["activations"] == 4 * four["activations"] and one["logits"] == four["logits"] == 1 << 28
    large = describe.on_device(run_of(**{**GPT2, "data.global_batch_size": 512}), "v5e")
    assert not large["fits"] and large["packed"] == 0
    assert describe.on_device(run_of(**{**GPT2, "data.global_batch_size": 512, "mesh.data": 64}), "v5e")["fits"]


def test_refusals(without_plugins, capsys):
    with pytest.raises(InputError, match=r"unknown device 'h300'.* known: a100, h100, h200, v5e, v6e"):
        describe.on_device(run_of(**TINY), "h300")
    with pytest.raises(InputError, match="mesh.attention: expected cudnn in all layers, got plain"):
        describe.on_device(run_of(**{**TINY, "mesh.attention": "cudnn"}), "v5e")


def test_the_command(without_plugins, capsys):
    flags = [f"--config.{key}={value}" for key, value in {**BASE, **TINY, "data.sources": "markov2:100000"}.items()]
    words = ["describe", str(ROOT / "configs" / "decoder.py"), "--for", "a100", *flags]
    assert cli.main([*words, "--format", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["device"] == "NVIDIA A100" and record["method"] == "estimate"
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    for text in ("on 1 x NVIDIA A100: estimate", "memory, temporaries", "memory, peak", "fits", "runs that fit"):
        assert text in shown


@needs("h200")
@pytest.mark.slow
def test_gpt2_on_an_h200():
    """One to five minutes, as each of the next."""
    found = describe.on_device(run_of(**GPT2), "h200")
    assert found["method"] == "compiled" and found["attention"] == "cudnn (causal)"
    assert found["temporaries"] <= 6.5e9 and found["fits"]


@needs("h200")
@pytest.mark.slow
def test_a_pack_starts_hardly_more_kernels_than_one_run(tmp_path):
    counts = []
    for slots in (0, 16):
        aot.compiled(run_of(**TINY), "h200", slots, tmp_path / "program.txt")
        counts.append(kernels((tmp_path / "program.txt").read_text()))
    assert 100 < counts[0] and counts[1] <= 1.2 * counts[0], counts


@needs("v5e")
@pytest.mark.slow
def test_gpt2_on_four_v5e(tmp_path):
    found = aot.compiled(run_of(**FOUR), "v5e", program=tmp_path / "program.txt")
    assert found["peak"] < 16 << 30 and found["attention"] == "splash (causal)"
    summed = reductions((tmp_path / "program.txt").read_text())
    assert len(summed) >= 5 and set(summed) == {"f32"}

"""Guards against a benchmark that loses results, measures what is there, or calls a missed floor a success."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ONE_DEVICE, ROOT

PATH = ROOT / "experiments" / "benchmarks" / "accelerator.py"
RATES = {"tokens_per_second": 1e6, "flops_per_second": 4e14, "mfu": 0.4}
RECORDS = {
    "parity": {"kernels": "cudnn (causal)", "difference": 1e-3},
    "resume": {"different_arrays": 0, "arrays": 9, "deterministic": True},
    "mfu": {**RATES, "n_total": 124e6, "attention": "cudnn (causal)"},
    "torch": {**RATES, "tokens_per_second": 8e5},
    "packs": RATES,
    "host": {"gap": 0.01},
    "trace": {"folder": "trace", "files": 2, "bytes": 10},
}


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("accelerator", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Fake:
    """Stands for `start_group`: a record for every case but those that fail; `asked` has all cases."""

    def __init__(self, commit="a", fails=()):
        self.commit, self.fails, self.asked = commit, fails, []

    def __call__(self, cases, tiny, folder, seconds):
        for case in cases:
            if case == "machine":
                facts = {"device": "1 x H200", "commit": self.commit, "versions": {"jax": "1"}, "finished": "today"}
                yield case, {**facts, "product": 8192, "flops_per_second": 8e14, "peak": 1e15}
                continue
            self.asked.append(case)
            yield case, {"error": "killed"} if case in self.fails else RECORDS[case.split("/")[0]]


def test_only_what_is_missing_is_measured_again(benchmark, tmp_path):
    out, everything = tmp_path / "a.json", list(benchmark.MINUTES)
    many = {case for groups in benchmark.all_cases().values() for group in groups for case in group} - {"machine"}
    first = Fake(fails={"torch/50M", "packs/1M/16"})
    benchmark.measure_all(out, [name for name in everything if name != "resume"], start=first)
    assert set(first.asked) == many - {"resume"} and len(first.asked) == len(many) - 1
    second = Fake()
    found = benchmark.measure_all(out, everything, start=second)
    assert sorted(second.asked) == ["packs/1M/16", "resume", "torch/50M"]
    assert json.loads(out.read_text()) == found and set(found["results"]) == many
    assert out.with_suffix(".md").read_text() == benchmark.table(found)
    other = Fake(commit="b")
    benchmark.measure_all(out, ["resume"], start=other)
    assert other.asked == ["resume"] and set(json.loads(out.read_text())["results"]) == {"resume"}


def test_the_table_shows_what_passes_and_why_not(benchmark, tmp_path):
    fake = Fake(fails={"mfu/1B/decoder"})
    found = benchmark.measure_all(tmp_path / "a.json", list(benchmark.MINUTES), start=fake)
    found["results"]["parity/encoder"] = {"kernels": "cudnn (full)", "difference": 3e-3}
    kernels = "plain (cudnn needs model.dtype bfloat16, not float32)"  # nothing was compared
    found["results"]["parity/encoder_decoder"] = {"kernels": kernels, "difference": 0.0}
    found["results"]["torch/350M"] = {"missing": "PyTorch is not installed"}
    text = benchmark.table(found)
    rows = {cells[1].strip(): cells[2:-1] for line in text.splitlines() if len(cells := line.split("|")) > 2}
    assert rows["loss with the device's kernels, decoder"][-1] == " yes "
    assert rows["loss with the device's kernels, encoder"][-1] == " NO "
    assert rows["loss with the device's kernels, encoder_decoder"][-1] == " NO "
    assert rows["resumed in a new process"][-1] == " yes "
    # MFU 40 %, half of what one product reaches; 1.25 times the peer
    numbers = ["124.0M", "1,000,000", "40.0%", "50%", "35%", "42%", "800,000, MFU 40.0%", "1.25 (floor 0.9)"]
    assert [cell.strip() for cell in rows["124M decoder"]] == [*numbers, "cudnn (causal)"]
    assert "PyTorch is not installed" in rows["350M decoder"][-3] and "killed" in rows["1B decoder"][0]
    assert "| 1M | 16 | 1,000,000 | 40.0% | 1.00 | 8 times |" in text


def test_a_killed_group_keeps_its_results(benchmark, tmp_path, monkeypatch):
    """The process prints a result among other output and is killed; one that has no time left is not waited for."""
    script = tmp_path / "group.py"
    script.write_text(
        'import os, sys\nprint(\'compiling\', sys.argv[2:4])\nprint(\'{"case": "a", "gap": 1}\', flush=True)\n'
        "os.kill(os.getpid(), 9)\n"
    )
    monkeypatch.setattr(benchmark, "__file__", str(script))
    over = {"error": "its section's minutes were over"}
    assert list(benchmark.start_group(["a", "b"], True, tmp_path, 60)) == [("a", {"gap": 1}), ("b", over)]
    script.write_text("import time; time.sleep(600)")
    assert list(benchmark.start_group(["a"], True, tmp_path, 0.0)) == [("a", over)]


def test_sizes_and_the_peer_are_what_their_names_say(benchmark):
    for name, shape in {**benchmark.SIZES, **{k: shape for k, (shape, _) in benchmark.PACKS.items()}}.items():
        width, layers, _, vocabulary, length, _ = shape
        expected = {"K": 1e3, "M": 1e6, "B": 1e9}[name[-1]] * float(name[:-1])
        assert 12 * layers * width**2 + (vocabulary + length) * width == pytest.approx(expected, rel=0.13)
    pytest.importorskip("torch")
    run = benchmark.resolved("decoder", benchmark.TINY)
    model = benchmark.train_step().torch_model(benchmark.TINY)
    assert run.derived["n_total"] == sum(p.numel() for p in model.parameters())


def test_a_case_is_measured(benchmark, tmp_path):
    command = [sys.executable, PATH, "--tiny", "--folder", tmp_path, "--cases", "parity/none", "mfu/tiny/decoder"]
    environment = {**os.environ, "XLA_FLAGS": ONE_DEVICE}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    bad, good = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"'))
    run = benchmark.resolved("decoder", benchmark.TINY)
    assert good["flops_per_second"] / good["tokens_per_second"] == pytest.approx(
        run.derived["flops_per_step"] / run.derived["tokens_per_step"]
    )
    assert good["n_total"] == run.derived["n_total"] and good["mfu"] is None
    assert bad["case"] == "parity/none" and "none.py" in bad["error"]

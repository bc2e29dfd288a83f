"""Guards against sweeps that lose, repeat or change results after kills, signals, full disks and damaged files."""

import json
import os
import subprocess
import sys

from tests.conftest import ONE_DEVICE, ROOT


def test_a_few_random_faults_lose_nothing():
    """The short form of experiments/benchmarks/faults.py, which says what is demanded; its long form has sweeps."""
    program = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "faults.py"), "2", "--modes", "train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ONE_DEVICE}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0 and "| all | 2 | in " in done.stdout, f"{done.stdout}\n{done.stderr}"


def test_the_faults_so_far_are_what_the_docs_say():
    found = json.loads((ROOT / "experiments" / "benchmarks" / "faults.json").read_text())
    times = found["faults"].values()
    said = f"{sum(times)} faults in {found['rounds']} rounds, each kind at least {min(times)} times, lost nothing"
    page = (ROOT / "docs" / "sweeps.md").read_text()
    assert said in page and found["lost rounds"] == 0
    assert all(f"| {name.replace('_', ' ')} | {count} |" in page for name, count in found["faults"].items())
    program = (ROOT / "experiments" / "benchmarks" / "faults.py").read_text()
    assert all(f"\ndef {name}(round_):" in program for name in found["faults"])

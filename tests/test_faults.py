"""Guards against sweeps that lose, repeat or change results after kills, signals, full disks and damaged files."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_ten_random_faults_lose_nothing():
    """The short form of experiments/benchmarks/faults.py, which says what is demanded."""
    environment = {key: value for key, value in os.environ.items() if key not in ("LMJAX_CACHE", "LMJAX_PARENT")}
    command = [sys.executable, str(ROOT / "experiments" / "benchmarks" / "faults.py"), "10", "--seed", "0"]
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "| all | 10 | in " in done.stdout

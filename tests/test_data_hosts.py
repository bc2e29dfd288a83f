"""Guards against wrong or overlapping data on several hosts: processes get disjoint parts of one batch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, small

from lmjax import objectives
from lmjax.data import pipeline

SCRIPT = """
import sys
sys.path.insert(0, "tests")
import json, test_data_hosts as t
process, processes = int(sys.argv[1]), int(sys.argv[2])
print(json.dumps([{k: v.tolist() for k, v in b.items()} for b in t.batches(process, processes)]))
"""


def batches(process, processes, steps=3):
    """The rows of one process: every process has global_batch / processes rows of each step."""
    config = small(data__mode="pack")
    pipe = pipeline.Pipeline(pipeline.prepare(config), objectives.OBJECTIVES["masked_lm"], config)
    rows = config.data.global_batch_size
    mine = np.arange(rows).reshape(processes, -1)[process]
    return [pipe.rows(step * rows + mine) for step in range(steps)]


def run(process, processes, cache):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMJAX_CACHE": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(process), str(processes)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_build_the_store_together_and_share_out_the_batch(tmp_path):
    """Both start on an empty cache, so they also race to build the store."""
    workers = [run(process, 2, tmp_path) for process in range(2)]
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), outputs
    parts = [json.loads(out) for out, _ in outputs]
    whole = batches(0, 1)
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            assert np.array_equal(np.concatenate([part[step][name] for part in parts]), values), name
    stores = [path for path in (tmp_path / "stores").iterdir() if not path.name.startswith(".")]
    assert len(stores) == 1 and not list((tmp_path / "stores").glob("*partial*"))


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_any_number_of_processes_sees_the_same_global_batch(processes):
    whole = batches(0, 1)
    parts = [batches(process, processes) for process in range(processes)]
    for step, batch in enumerate(whole):
        for name, values in batch.items():
            assert np.array_equal(np.concatenate([part[step][name] for part in parts]), values)


def test_more_processes_than_files(tmp_path):
    """The number of files decides nothing: two documents feed any number of processes, shuffled."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{i} " for i in range(3000)))
    config = small(data__sources=(f"files:{tmp_path}/*.txt",))
    pipe = pipeline.Pipeline(pipeline.prepare(config), objectives.OBJECTIVES["causal_lm"], config)
    rows = [pipe.rows([index])["inputs"][0].tobytes() for index in range(64)]
    assert len(set(rows)) == 64

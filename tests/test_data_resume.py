"""Guards against a resume that repeats, skips or reorders data: a row is a function of its index, in any process."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, small

from lmjax import objectives
from lmjax.data import pipeline

CASES = {
    "concat": ("masked_lm", {}),
    "pack": ("masked_lm", {"data.mode": "pack", "data.seq_len": 48}),
    "mixture": ("causal_lm", {"data.sources": ("zipf:9000", "markov2:20000"), "data.weights": (0.25, 0.75)}),
    "spans": ("span_corruption", {"data.mode": "pack", "data.seq_len": 24, "data.encoder_seq_len": 64}),
    "bpe": (
        "prefix_lm",
        {"data.sources": ("kjv",), "data.tokenizer": "bpe", "data.vocab_size": 400, "data.mode": "pack"},
    ),
}
SCRIPT = """
import json, sys
sys.path.insert(0, "tests")
import test_data_resume as t
print(json.dumps({case: t.hashes(case, t.steps(case)) for case in t.CASES}))
"""


def build(case):
    objective, overrides = CASES[case]
    config = small(**{key.replace(".", "__"): value for key, value in overrides.items()})
    return config, pipeline.Pipeline(pipeline.prepare(config), objectives.OBJECTIVES[objective], config)


def steps(case):
    """Some steps at the start and around the border of the first two epochs."""
    config, pipe = build(case)
    rows = config.data.global_batch_size
    border = pipe.rows_per_epoch // rows
    return [0, 1, 2, 3, border - 1, border, border + 1, 2 * border, 2 * border + 1, 10**7]


def hashes(case, expected):
    config, pipe = build(case)
    rows, found = config.data.global_batch_size, []
    for step in expected:
        batch = pipe.rows(np.arange(rows) + step * rows)
        found.append(hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest())
    return found


def test_a_new_process_continues_with_the_same_batches(cache):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMJAX_CACHE": str(cache)}
    fresh = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert fresh.returncode == 0, fresh.stderr
    fresh = json.loads(fresh.stdout)
    for case in CASES:
        mine = hashes(case, steps(case))
        assert mine == fresh[case], case
        assert len(set(mine)) == len(mine), case


@pytest.mark.parametrize("case", CASES)
def test_stopping_anywhere_changes_nothing_after(case):
    """Every resume point k: a fresh pipeline asked from step k on gives the uninterrupted sequence."""
    config, pipe = build(case)
    rows, count = config.data.global_batch_size, 6
    start = max(0, pipe.rows_per_epoch // rows - 3)  # across the epoch border
    whole = hashes(case, range(start, start + count))
    for k in range(count + 1):
        assert hashes(case, range(start + k, start + count)) == whole[k:]


@pytest.mark.parametrize("case", CASES)
def test_rows_do_not_depend_on_the_order_or_company_in_which_they_are_asked(case):
    _, pipe = build(case)
    together = pipe.rows(range(20))
    shuffled = np.random.default_rng(0).permutation(20)
    alone = [pipe.rows([i]) for i in shuffled]
    for place, i in enumerate(shuffled):
        for name, values in together.items():
            assert np.array_equal(alone[place][name][0], values[i]), (name, i)


def test_corruption_changes_from_epoch_to_epoch_but_the_text_does_not():
    _, pipe = build("concat")
    n = pipe.rows_per_epoch
    first, second = pipe.rows(range(n)), pipe.rows(range(n, 2 * n))
    places = {row.tobytes(): i for i, row in enumerate(first["targets"])}
    same = [
        np.array_equal(first["weights"][places[row.tobytes()]], second["weights"][i])
        for i, row in enumerate(second["targets"])
    ]
    assert np.mean(same) < 0.2


def test_the_seed_changes_order_and_corruption_only():
    config, pipe = build("concat")
    data = pipeline.prepare(config)
    other = small(data__seed=1)
    moved = pipeline.Pipeline(data, objectives.OBJECTIVES["masked_lm"], other)
    a, b = (p.rows(range(p.rows_per_epoch))["targets"] for p in (pipe, moved))
    assert not np.array_equal(a, b)
    assert sorted(row.tobytes() for row in a) == sorted(row.tobytes() for row in b)

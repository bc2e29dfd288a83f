"""Guards against branches that are not the continuation of their parent bit by bit, and against a sweep that starts a
branch before its parent's checkpoint exists."""

import functools
import shutil

import jax
import numpy as np
import pandas
import pytest

from lmjax import pack, parents, run_record, trained, trainer
from lmjax.checkpoint import restore_params
from lmjax.errors import InputError
from lmjax.resolve import resolve
from lmjax.sweeps import local, plan, records
from lmjax.sweeps import run as sweep_run
from lmjax.sweeps.cells import load_cells
from lmjax.sweeps.combinators import branches, product
from tests.conftest import small
from tests.test_resume import StopAt, assert_same_end, metrics
from tests.test_sweep import write_sweep

SETTINGS = {"model__dropout": 0.1, "evaluation__batch_size": 64, "schedule__warmup_steps": 2, "checkpoint__at": (3,)}
SETTINGS |= {"model__num_layers": 1}
WSD = {"schedule__name": "wsd", "schedule__decay_fraction": 0.5}


@functools.cache
def config(**overrides):
    return small(**{**SETTINGS, **overrides})


def train(run, run_dir, programs):
    assert trainer.train(run, run_dir, show_progress=False, programs=programs) == trainer.DONE


@pytest.fixture(scope="module")
def programs():
    return {}


@pytest.fixture(scope="module")
def parent(tmp_path_factory, programs):
    """6 steps at a constant rate, with dropout; steps 3 and 6 are evaluated and kept."""
    run, run_dir = resolve(config(schedule__name="constant")), tmp_path_factory.mktemp("parent") / "run"
    train(run, run_dir, programs)
    assert trained.steps(run_dir) == [3, 6]
    return run, run_dir


def test_a_branch_with_the_same_schedule_is_its_parents_own_continuation(parent, programs, tmp_path, monkeypatch):
    """Stopped once; after that it needs its parent no more. Its record is that of the whole path."""
    (whole, whole_dir), copy = parent, tmp_path / "parent"
    shutil.copytree(whole_dir, copy)
    branch = resolve(config(schedule__name="constant", **{"init__from": f"{copy}@3"}))
    assert branch.run_id != whole.run_id and branch.start == 3 and branch.cost == whole.cost / 2
    assert branch.derived["flops_exact"] == whole.derived["flops_exact"] == 2 * branch.derived["flops_inherited"]
    monkeypatch.setattr(trainer, "StopRequest", StopAt(3))  # two polls are in the evaluation of step 3
    assert trainer.train(branch, tmp_path / "run", False, programs=programs) == trainer.PREEMPTED
    monkeypatch.undo()
    assert run_record.status_of(tmp_path / "run")["step"] in (4, 5)
    shutil.rmtree(copy)
    train(pack.resolve(pack.configs.load(str(tmp_path / "run" / "config.json"))), tmp_path / "run", programs)
    assert_same_end(whole, whole_dir, tmp_path / "run")


def test_a_decay_off_a_trunk_is_the_run_under_wsd(parent, programs, tmp_path):
    """Trunk of 6 steps at a constant rate, branch at step 3, decay to step 6: the bits of the schedule wsd."""
    alone = resolve(config(**WSD))
    branch = resolve(config(**WSD, **{"init__from": f"{parent[1]}@3"}))
    train(alone, tmp_path / "alone", programs)
    train(branch, tmp_path / "branch", programs)
    assert_same_end(alone, tmp_path / "alone", tmp_path / "branch")
    assert metrics(tmp_path / "branch")[-1]["loss"] != metrics(parent[1])[-1]["loss"]


def test_a_warm_start_takes_the_parameters_only(parent, programs, tmp_path):
    run = resolve(config(data__seed=1, duration__steps=2, init__what="params", **{"init__from": str(parent[1])}))
    assert run.config.init.parent.endswith("@6") and run.start == 0 and "flops_inherited" not in run.derived
    train(run, tmp_path / "run", programs)
    made = programs[run.shape.key]
    fresh = functools.partial(made.init, jax.random.key(0))
    state, record = parents.inherit(run, tmp_path / "run", made.like, fresh)
    assert record == {"step": 0}
    first, last = (restore_params(parent[1] / "checkpoints", step, made.like["params"]) for step in (3, 6))
    jax.tree.map(np.testing.assert_array_equal, state["params"], last)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (first, last)), strict=True))
    others = [{name: part for name, part in each.items() if name != "params"} for each in (state, fresh())]
    jax.tree.map(np.testing.assert_array_equal, *others)
    (line,) = metrics(tmp_path / "run")
    assert line["step"] == 2 and line["learning_rate"] == pytest.approx(2 / 3 * run.config.optimizer.learning_rate)
    assert run.run_id != resolve(config(data__seed=1, duration__steps=2)).run_id


BAD = {
    "no run": ({"init__from": "{}/none"}, "expected the directory of a run, got .*none, which has no config.json"),
    "no step": ({"init__from": "{}@4"}, r"expected a checkpoint of step 4 of .*, which has steps \[3, 6\]"),
    "no steps left": ({"init__from": "{}"}, "a branch of 6 steps starts from step 6"),
    "another model": ({"init__from": "{}@3", "model__d_model": 32}, "same model, .* model.d_model: recorded 16"),
    "other data": ({"init__from": "{}@3", "data__sources": ("zipf:20000",)}, "same model, objective, data.*zipf"),
    "another optimizer": ({"init__from": "{}@3", "optimizer__name": "lion"}, "optimizer.name: recorded adamw"),
    "another model, parameters": (
        {"init__from": "{}@3", "init__what": "params", "model__num_layers": 2},
        "same model and tokenizer, .* model.num_layers: recorded 1, given 2",
    ),
    "an n-gram model": ({"init__from": "{}@3", "family": "ngram"}, "counts from the beginning"),
}


@pytest.mark.parametrize("overrides, message", BAD.values(), ids=BAD)
def test_parents_that_do_not_fit_are_refused(parent, overrides, message):
    overrides = {**overrides, "init__from": overrides["init__from"].format(parent[1])}
    settings = {} if overrides.get("family") else {**SETTINGS, "schedule__name": "constant"}
    with pytest.raises(InputError, match=message):
        resolve(small(**{**settings, **overrides}))


def test_a_branch_of_other_source_code_or_of_a_replaced_parent_is_refused(parent, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(parent[1], copy)
    branch = resolve(config(**WSD, **{"init__from": f"{copy}@3"}))
    record = run_record.read_json(copy / "config.json")
    run_record.write_json(copy / "config.json", {**record, "code": "c0"})
    with pytest.raises(InputError, match="made by other source code .* pass --keep to branch anyway"):
        branch.check(tmp_path / "run")
    branch.check(tmp_path / "run", keep=True)
    run_record.write_json(copy / "config.json", {**record, "run_id": "decoder-1k-1ktok-abc"})
    with pytest.raises(InputError, match="expected the run .* the parent of .* got decoder-1k-1ktok-abc"):
        branch.check(tmp_path / "run")
    shutil.rmtree(copy)
    with pytest.raises(InputError, match="starts from step 3 .* got no run; train the parent"):
        parents.inherit(branch, tmp_path, {}, dict)


# -- Sweeps

TOKENS = {"duration.steps": None, "duration.tokens": 1024, "schedule.warmup_steps": 1}
CELLS = 'branches(product({"train.seed": [0, 1]}), [8 * 16 * 4, 8 * 16 * 8], decay=0.25)'


def cells_of(folder, cells=CELLS, **extra):
    sweep = write_sweep(folder, f"__import__('lmjax.sweeps.combinators', fromlist=['x']).{cells}", **extra)
    return load_cells(str(sweep), folder / "runs", {})


def test_the_cells_of_branches(tmp_path):
    """Trunks of 6 steps, decays that end after 4 and 8; the plan counts what each cell trains itself."""
    cells = cells_of(tmp_path, **TOKENS)
    trunks = {c.run.run_id: c.run for c in cells if c.run.config.schedule.name == "constant"}
    decays = [c.run for c in cells if c.run.run_id not in trunks]
    assert [run.config.checkpoint.at for run in trunks.values()] == [(3, 6)] * 2
    assert sorted((run.start, run.steps, run.config.train.seed) for run in decays) == [
        *((3, 4, 0), (3, 4, 1), (6, 8, 0), (6, 8, 1))
    ]
    for run in decays:
        (parent,) = [p for p in trunks.values() if p.run_id.endswith(parents.parent_of(run.config).digest)]
        assert parent.config.train.seed == run.config.train.seed
    rows = {row["run_id"]: row for row in plan.rows(cells, None)}
    per_step = decays[0].derived["flops_per_step"]
    assert sorted(row["compute_saved"] or 0 for row in rows.values()) == [
        0,
        0,
        *[3 * per_step] * 2,
        *[6 * per_step] * 2,
    ]
    assert sum(run.cost for run in (*trunks.values(), *decays)) == pytest.approx(2 * (6 + 1 + 2) * per_step)
    assert "FLOP saved by branching)" in plan.totals(cells, None, 1)
    assert [plan.evaluations(cells[i].run) for i in (0, -1)] == [1, 2]


class Here:
    """A worker that trains its cells in this process, at its start."""

    def __init__(self, order, place, cells, command):
        order += [cell.run.run_id for cell in cells]
        self.code = pack.train_list([cell.run_dir for cell in cells], show=False)

    def poll(self):
        return self.code

    def terminate(self):
        pass


@pytest.mark.parametrize("rate", [1e-3, 1e30], ids=["trained", "diverged"])
def test_a_sweep_trains_parents_before_children(tmp_path, rate):
    """A branch whose trunk diverged fails with the reason; the sweep ends."""
    cells_text = CELLS.replace("[0, 1]", "[0]")
    extra = {**TOKENS, "optimizer.learning_rate": rate}
    cells, order = cells_of(tmp_path, cells_text, **extra, **{"optimizer.clip_norm": None}), []
    pool = local.LocalPool([local.Slot("here", {})], lambda _: None, launch=functools.partial(Here, order))
    statuses = pool.run(cells)
    (trunk,) = [cell for cell in cells if cell.run.config.schedule.name == "constant"]
    if rate > 1:
        assert order == [trunk.run.run_id] and statuses.pop(trunk.run.run_id)["status"] == "diverged"
        assert [s["status"] for s in statuses.values()] == ["failed"] * 2
        assert all("expected a checkpoint of step" in s["message"] for s in statuses.values())
        return
    assert order[0] == trunk.run.run_id and len(order) == 3
    assert {s["status"] for s in statuses.values()} == {"done"}
    table = run_record.read_runs(tmp_path / "runs").set_index("run_id")
    assert set(table["tokens"]) == {8 * 16 * 4, 8 * 16 * 6, 8 * 16 * 8}
    assert [m["step"] for m in metrics(cells[0].run_dir)] == [2, 4]
    records.pack(tmp_path / "runs", tmp_path / "runs.parquet")
    text = pandas.read_parquet(tmp_path / "runs.parquet").to_csv()
    assert str(tmp_path) not in text and f"{trunk.run.run_id}@3" in text


def test_sweeps_whose_parents_cannot_come_first_are_refused(tmp_path, capsys):
    for cells, message in (
        ('chain([{"init.from": {"train.seed": 5}}])', "expected the overlay of a cell of this sweep, got"),
        (
            'chain([{"schedule.name": "constant", "run.held_out": True, "duration.steps": 3}, {"init.from": '
            '{"duration.steps": 3, "schedule.name": "constant", "run.held_out": True}}])',
            "its parent is held out",
        ),
        (
            'chain([{"duration.steps": 3}, {"model.d_model": 8, "init.from": {"duration.steps": 3}}])',
            "model.d_model: recorded 16, given 8",
        ),
    ):
        with pytest.raises(InputError, match=message):
            cells_of(tmp_path, cells)
    for bad, message in (
        (lambda: branches({"train.seed": [0]}, [1e6], decay=1.0), "above 0 and below 1"),
        (lambda: branches({"duration.tokens": [1e6]}, [1e6]), "in two sets"),
    ):
        with pytest.raises(InputError, match=message):
            bad()
    assert product(branches({"a": [1]}, [100]))[0] == {"a": 1, "schedule.name": "constant", "duration.tokens": 80}


def test_a_cluster_gets_branches_when_their_parents_have_the_checkpoint(tmp_path, capsys):
    cells = cells_of(tmp_path, **TOKENS)
    sweep_run.submit(str(tmp_path / "mini.py"), tmp_path / "runs", {}, "slurm", dry_run=True)
    out, err = capsys.readouterr()
    assert "waiting for a parent's checkpoint: 4 cells" in err.replace("\n", " ")
    assert [cell.run.run_id in out for cell in cells] == [cell.run.start == 0 for cell in cells]

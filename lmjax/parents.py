"""Runs that start from a checkpoint of another run, their parent (section `init` of the config).

    state   a branch: parameters, optimizer state and data position continue from the parent's step, as after a resume
    params  a warm start: only the parameters are copied; schedule and data start from step 0

The run id depends on the parent's identity and step (`init.parent`), but not on the path of its directory.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from lmjax import bucket, checkpoint, identity, run_record
from lmjax.checkpoint import State, saved_steps
from lmjax.errors import InputError
from lmjax.optim.schedules import decay_steps

# Settings in which a run and its parent must agree, and exceptions to them (FREE).
ALIKE = {
    "state": ("model.", "objective.", "data.", "parametrization.", "train.", "optimizer.name:", "the "),
    "params": ("model.",),
}
FREE = {
    "state": ("data.max_epochs:",),
    "params": ("model.dropout:", "model.dtype:", "model.max_len:", "model.remat:", "model.expert_capacity:"),
}


class Parent(NamedTuple):
    """The parent of a run: its directory, the checkpoint's step, and the hash in its run id."""

    run_dir: pathlib.Path
    step: int
    digest: str


def parent_of(config: ConfigDict) -> Parent | None:
    """Returns the parent of a resolved config, None without one."""
    if config.init.parent is None:
        return None
    digest, _, step = config.init.parent.rpartition("@")
    return Parent(_split(config.init["from"])[0], int(step), digest)


def start_of(config: ConfigDict) -> int:
    """Returns the step from which a run trains: its parent's step for a branch, else 0."""
    parent = parent_of(config)
    return parent.step if parent and config.init.what == "state" else 0


def fill(config: ConfigDict, steps: int, cell: Any = None) -> Mapping | None:
    """Fills in `init.from` and `init.parent` of a config; returns the parent's record, or None if there is nothing to
    fill in.

    Args:
        config: an unlocked config, resolved except for the section `init`.
        steps: length of the run in optimizer steps.
        cell: the parent as a `Resolved`, if it is a cell of the same sweep; it need not be trained yet. The run then
            starts from the step at which its own decay begins (schedule "wsd"), or from the parent's last step.

    Raises:
        InputError: no such run or checkpoint; a parent that lmjax did not train; a step after the end of the branch.
    """
    init = config.init
    if init["from"] is None or init.parent is not None:
        return None
    run_dir, step = _split(init["from"])
    if cell is not None:
        branches_at = steps - decay_steps(config.schedule, steps) if init.what == "state" else cell.steps
        record, step = cell.record(), min(branches_at, cell.steps)
    else:
        record, saved = run_record.read_record(run_dir), saved_steps(run_dir)
        if record is None:
            raise InputError(f"init.from: expected the directory of a run, got {run_dir}, which has no config.json")
        if record.get("objective_version") == "imported":
            raise InputError(f"init.from: expected a run of lmjax train, got the imported model {run_dir}")
        step = saved[-1] if step is None and saved else step
        if step not in saved:
            raise InputError(
                f"init.from: expected a checkpoint{'' if step is None else f' of step {step}'} of {run_dir}, which has "
                f"steps {saved}; name one of these, or train the parent with --config.checkpoint.at={step or 'STEP'}"
            )
    if init.what == "state" and step >= steps:
        raise InputError(
            f"init.from: a branch of {steps} steps starts from step {step} of its parent, so no step is left; its "
            "duration counts from the parent's step 0: set it higher, or name an earlier checkpoint"
        )
    init["from"], init.parent = f"{run_dir}@{step}", f"{_digest(record)}@{step}"
    return record


def _split(text: str) -> tuple[pathlib.Path, int | None]:
    """Splits RUN[@STEP] into an absolute path and a step."""
    path, step = re.fullmatch(r"(.*?)(?:@(\d+))?", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return pathlib.Path(path).resolve(), None if step is None else int(step)


def _digest(record):
    return record["run_id"].rsplit("-", 1)[-1]


def check(run: Any, keep: bool = False, record: Mapping | None = None) -> None:
    """Raises InputError unless a run can start from its parent.

    Args:
        run: a `Resolved` with a parent.
        keep: accept a branch from a parent trained by other source code.
        record: the parent's record; None: read it from its directory, and accept a parent that does not exist yet.
    """
    parent, what = parent_of(run.config), run.config.init.what
    record = run_record.read_record(parent.run_dir) if record is None else record
    if record is None:
        return
    if _digest(record) != parent.digest:
        raise InputError(
            f"{parent.run_dir}: expected the run ...-{parent.digest}, the parent of {run.run_id}, got "
            f"{record['run_id']}; give the parent's directory as init.from"
        )
    now = run.record()
    different = identity.differences(record, now, run.filled)
    different = [text for text in different if text.startswith(ALIKE[what]) and not text.startswith(FREE[what])]
    if record["data"]["tokenizer"].get("hash") != now["data"]["tokenizer"]["hash"]:
        different.append("the tokenizer changed")
    if different:
        parts = "model, objective, data, seed and parametrization" if what == "state" else "model and tokenizer"
        raise InputError(
            f"init.from: expected a parent of the same {parts}, got {parent.run_dir} ({record['run_id']}): "
            f"{'; '.join(different[:8])}"
        )
    if what == "state" and record.get("code") != now["code"] and not keep:
        raise InputError(
            f"init.from: {parent.run_dir} was made by other source code (hash {record.get('code')}, now "
            f"{now['code']}), so the branch would mix both; pass --keep to branch anyway, or train the parent again"
        )


def ready(run: Any, run_dir: pathlib.Path) -> bool:
    """Returns whether a run can be trained now: it has begun, has no parent, or the parent's checkpoint exists."""
    parent = parent_of(run.config)
    if parent and parent.step not in saved_steps(parent.run_dir) and (parent.run_dir / "summary.json").exists():
        bucket.fetch(parent.run_dir)  # trained on another machine
    return parent is None or parent.step in saved_steps(parent.run_dir) or run_record.has_begun(run_dir)


def inherit(run: Any, run_dir: pathlib.Path, like: State, fresh: Callable[[], State]) -> tuple[State, dict]:
    """Returns the initial state of a run with a parent, and the record saved with that checkpoint.

    A branch also copies its parent's metrics up to the step, so that its record covers the whole path.

    Args:
        run: a `Resolved` that `check` accepts.
        run_dir: the run's directory, which has no checkpoint yet.
        like: the state as shapes with shardings.
        fresh: returns the state at step 0; a warm start replaces only its parameters.

    Raises:
        InputError: the parent's checkpoint is missing or cannot be read.
    """
    parent = parent_of(run.config)
    assert parent is not None
    record, saved = run_record.read_record(parent.run_dir), saved_steps(parent.run_dir)
    if record is None or parent.step not in saved:
        raise InputError(
            f"{run.run_id} starts from step {parent.step} of {parent.run_dir}: expected a checkpoint of that step, got "
            f"{f'steps {saved}' if record else 'no run'}; train the parent with --config.checkpoint.at={parent.step}"
        )
    folder = parent.run_dir / "checkpoints", parent.step
    if run.config.init.what == "params":
        params = checkpoint.restore_params(*folder, like["params"], record["run_id"])
        return {**fresh(), "params": params}, {"step": 0}
    state, found = checkpoint.restore(*folder, like, record["run_id"])
    if jax.process_index() == 0:
        lines = run_record.read_metrics(parent.run_dir / "metrics.jsonl")
        lines = [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]  # of other attempts
        text = "".join(json.dumps(line) + "\n" for line in lines if line["step"] < parent.step)
        run_record.replace_file(run_dir / "metrics.jsonl", text)
    return state, found

"""Tables for the methods, built from run directories and evaluations; and the checks that training curves share."""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from lmjax import run_record
from lmjax.errors import InputError
from lmjax.scaling.table import truth


def training_curves(workdir, loss: str = "loss"):
    """The curves of all runs below a directory, for `frontier` and `collapse`.

    loss: loss (the mean training loss since the previous line of metrics.jsonl) | validation_loss.

    Returns:
        pandas frame, a row per line of metrics.jsonl with that loss: run, step, N (all parameters), D (tokens so far),
        C (exact FLOP so far), loss, learning_rate, batch (tokens per step), schedule_complete.

    Raises:
        InputError: no runs there, or no run with that loss.
    """
    import pandas

    rows = []
    for run_dir, record, lines in _curves(workdir, loss):
        derived = record["derived"]
        facts = {"run": run_dir.name, "N": derived.get("n_total"), "batch": derived.get("tokens_per_step")}
        facts["schedule_complete"] = run_record.status_of(run_dir)["status"] == "done"
        for line in lines:
            named = {"step": line["step"], "D": line["tokens"], "C": line["flops"], "loss": line[loss]}
            rows.append(facts | named | {"learning_rate": line.get("learning_rate")})
    return pandas.DataFrame(rows)


def annealing_curves(workdir, loss: str = "loss") -> list:
    """The curves of all runs below a directory as annealing.Curve, for `fit_annealing`; arguments as above."""
    from lmjax.config import from_record
    from lmjax.optim.schedules import make_schedule
    from lmjax.scaling.methods.annealing import Curve

    curves = []
    for run_dir, record, lines in _curves(workdir, loss):
        steps, config = record["derived"]["steps"], from_record(record)
        rate = make_schedule(config.schedule, config.optimizer.learning_rate, steps)
        lr = [rate(step) for step in range(steps)]
        curves.append(Curve(run_dir.name, lr, [m["step"] for m in lines], [m[loss] for m in lines]))
    return curves


def _curves(workdir, loss):
    """(run directory, record, lines of metrics.jsonl with that loss) of every lmjax run below a directory."""
    found = []
    for run_dir in run_record.find_runs(pathlib.Path(workdir)):
        try:
            record = run_record.read_record(run_dir) or {}
        except run_record.NotARun as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        if record.get("derived"):  # an imported model has none
            lines = [line for line in run_record.read_metrics(run_dir / "metrics.jsonl") if line.get(loss) is not None]
            found += [(run_dir, record, lines)] * bool(lines)
    if not found:
        raise InputError(f"{workdir}: no run has {loss} in its metrics.jsonl; set evaluation.every_steps to record it")
    return found


def tuning_table(runs):
    """The finished runs of run_record.read_runs as a table for `tuning_law`: N, D, learning_rate, batch, loss."""
    done = runs[(runs["status"] == "done") & truth(runs, "schedule_complete", "the runs", missing=True)]
    columns = {"n_total": "N", "tokens": "D", "tokens_per_step": "batch"}
    kept = [name for name in ("run_id", "learning_rate", "loss", *columns) if name in done]
    return done[kept].rename(columns=columns)


def batch_table(curves, targets: Sequence[float]):
    """Steps to reach each target loss at each batch size, for `critical_batch`.

    Args:
        curves: frame of `training_curves` at one N; of several runs with one batch (learning rates, seeds) the first
            to reach the target counts.
        targets: losses.

    Returns:
        pandas frame of loss, batch (tokens), steps; batches that do not reach a target have no row for it.
    """
    import pandas

    sizes = sorted(set(curves["N"]))
    if len(sizes) > 1:
        raise InputError(f"expected runs of one N, got {', '.join(f'{n:g}' for n in sizes[:5])}; select those of one N")
    rows = []
    for (run, batch), part in curves.groupby(["run", "batch"], sort=False):
        part = part.sort_values("step")
        lowest = np.minimum.accumulate(part["loss"].to_numpy(float))
        for target in targets:
            reached = np.flatnonzero(lowest <= target)
            if len(reached):
                rows.append({"loss": target, "batch": batch, "steps": float(part["step"].iloc[reached[0]]), "run": run})
    if not rows:
        raise InputError(f"no run reaches a loss of {max(targets):g}; the lowest is {curves['loss'].min():.4g}")
    return pandas.DataFrame(rows).groupby(["loss", "batch"], as_index=False)["steps"].min()


def task_table(evaluations, task: str):
    """The finished runs of a task in the table of `lmjax eval`, with their earlier checkpoints, for `two_step`.

    Returns:
        (pandas frame of run, C (N and D where these of the ends of runs vary independently), loss of the task, metric;
        chance level).
    """
    from lmjax.scaling.emergence import curves

    ends = curves.select(evaluations, task, one_ladder=False).cells
    chosen = curves.select(evaluations, task, one_ladder=False, incomplete=True)
    cells = chosen.cells[chosen.cells["run_id"].isin(ends["run_id"])]
    variables = ["C"] if curves.one_dimensional(ends["N"], ends["D"]) else ["N", "D"]
    table = cells[["run_id", *variables]].rename(columns={"run_id": "run"})
    table = table.assign(loss=curves.error_of(chosen.smooth[0], cells[chosen.smooth[0]]), metric=cells[chosen.hard])
    return table, chosen.chance


def by_run(frame, C, size, what: str, fewest: int) -> dict[str, np.ndarray]:
    """Row numbers of each run in a table of training curves (column run), in table order.

    Raises InputError for fewer points than `fewest`, compute C [I] that does not grow, or several values of size [I] in
    a run; `what` names the table.
    """
    labels = np.array([str(r) for r in frame["run"]])
    rows = {run: np.flatnonzero(labels == run) for run in dict.fromkeys(labels)}
    for run, at in rows.items():
        if np.ptp(np.log(size[at])) > 1e-9:
            raise InputError(f"{what}: expected one size in run {run}, got {size[at].min():g} to {size[at].max():g}")
        if (np.diff(C[at]) <= 0).any() or len(at) < fewest:
            raise InputError(f"{what}: expected at least {fewest} points with growing compute in run {run}")
    return rows


def incomplete(frame, what: str) -> list[str]:
    """Returns the runs in a table of training curves whose schedule_complete is false, sorted."""
    done = truth(frame, "schedule_complete", what)
    return sorted({str(run) for run, complete in zip(frame["run"], done, strict=True) if not complete})

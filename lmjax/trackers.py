"""Optional copies of metrics.jsonl: TensorBoard event files, Weights & Biases, MLflow.

Each tracker works in a thread of its own, on lines that metrics.jsonl already has, so it neither delays nor ends a run:
if it fails, one warning is printed and training continues. A resumed run continues the tracker's run. No step is logged
twice, and lines of metrics.jsonl that the tracker lacks are logged first.

A run trained again in another directory, or after its directory was deleted, has the same run id but is another run of
the tracker: the file "tracker_id" in the run directory tells them apart.
"""

import contextlib
import importlib.util
import os
import pathlib
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lmjax import locks, run_record
from lmjax.errors import InputError

CLOSE_SECONDS = 30.0  # that a tracker has to write its last lines when the run ends


class TensorBoard:
    """Event files in the folder "tensorboard" of the run directory (without TensorFlow).

    Args:
        setting: metrics.tensorboard, True.
        run_dir: the run's directory.
        record: its config.json.
        step: the restored step; readers drop what was logged from there on.

    Attributes:
        logged: the last step that need not be logged again.
    """

    def __init__(self, setting: Any, run_dir: pathlib.Path, record: Mapping[str, Any], step: int):
        from tensorboardX import SummaryWriter

        folder = run_dir / "tensorboard"
        self.logged = step - 1 if folder.is_dir() else -1
        self.events = SummaryWriter(str(folder), purge_step=step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        self.events.flush()

    def close(self, outcome: str) -> None:
        """End the tracker's run; outcome: done | failed | stopped."""
        self.events.close()


class WandB:
    """A run of Weights & Biases, by default offline: files below "wandb" in the run directory, for `wandb sync`.

    Project, entity and server are those of the environment (WANDB_PROJECT, default lmjax); the group is the folder that
    holds the run directory. Arguments, attributes and methods as for `TensorBoard`; setting: offline | online.

    Every attempt at a run adds a folder, its session. `wandb sync` appends sessions to the run as they are: it keeps
    steps that are in two of them, and stops at one whose end a kill cut off. So an offline session holds the run from
    its first line and replaces earlier ones, except those that were synced, whose lines it leaves out.
    """

    def __init__(self, setting: Any, run_dir: pathlib.Path, record: Mapping[str, Any], step: int):
        if setting == "offline":  # its reports of errors would use the network
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder = run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        earlier = set(folder.glob("*run-*"))
        self.run = wandb.init(
            id=f"{record['run_id']}-{own_id(run_dir)}",
            name=record["run_id"],
            group=group_of(run_dir),
            project=os.environ.get("WANDB_PROJECT", "lmjax"),
            dir=str(run_dir),
            mode=setting,
            config=facts(record),
            allow_val_change=True,
            resume="allow" if setting == "online" else None,  # offline, `wandb sync` would renumber steps
            reinit="create_new",  # the runs of a pack are open at the same time
            settings=wandb.Settings(
                console="off", silent=True, x_disable_stats=True, login_timeout=5, init_timeout=CLOSE_SECONDS
            ),
        )
        if self.run.disabled:
            raise RuntimeError("not logged in; run `wandb login`, or set WANDB_API_KEY")
        self.logged = self.run.starting_step - 1  # online, the server knows; offline 0
        current = pathlib.Path(self.run.dir).parent
        for session in earlier - {current}:
            if session.name.startswith("offline-") and not any(session.glob("*.synced")):
                shutil.rmtree(session)
            elif setting == "offline" and (session / "last_step").is_file():
                self.logged = max(self.logged, int((session / "last_step").read_text() or -1))
        # Written in place, so that a kill leaves the old or the new number.
        self.mark = os.open(current / "last_step", os.O_WRONLY | os.O_CREAT, 0o666)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        self.run.log(dict(values), step=step, commit=True)
        os.pwrite(self.mark, b"%20d" % step, 0)

    def close(self, outcome: str) -> None:
        """End the tracker's run; outcome: done | failed | stopped."""
        self.run.finish(exit_code=int(outcome == "failed"))
        os.close(self.mark)


class MLflow:
    """A run of MLflow, tagged lmjax.run_id and lmjax.id, in the experiment of the folder that holds the run directory.

    Arguments, attributes and methods as for `TensorBoard`; setting: a tracking URI, or "local" for the database
    mlflow.db in that folder, which all runs of a sweep share.
    """

    ENDS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}

    def __init__(self, setting: Any, run_dir: pathlib.Path, record: Mapping[str, Any], step: int):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self.metric, folder = Metric, run_dir.absolute().parent
        local = setting == "local"
        with locks.open_lock(folder / ".mlflow.lock") if local else contextlib.nullcontext() as lock:
            if lock:  # MLflow makes the tables of a database without regard to other processes
                locks.acquire(lock, wait=True)
            self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}" if local else setting)
            name = group_of(run_dir)
            try:
                experiment = self.client.create_experiment(name, str(folder / "mlartifacts") if local else None)
            except MlflowException:  # it exists
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
                experiment = found.experiment_id
        tags = {"lmjax.run_id": record["run_id"], "lmjax.id": own_id(run_dir)}
        known = self.client.search_runs([experiment], f"tags.`lmjax.id` = '{tags['lmjax.id']}'")
        if known:
            self.id = known[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.client.create_run(experiment, tags=tags, run_name=record["run_id"]).info.run_id
            params = [Param(key, str(value)[:6000]) for key, value in facts(record).items()]  # the longest it takes
            for i in range(0, len(params), 100):  # the most it takes
                self.client.log_batch(self.id, params=params[i : i + 100])
        self.logged = max((metric.step for metric in self.client.get_metric_history(self.id, "tokens")), default=-1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        now = int(1000 * time.time())
        self.client.log_batch(self.id, metrics=[self.metric(name, value, now, step) for name, value in values.items()])

    def close(self, outcome: str) -> None:
        """End the tracker's run; outcome: done | failed | stopped."""
        self.client.set_terminated(self.id, self.ENDS[outcome])


OWN_ID = threading.Lock()
TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}  # by the key in section metrics


def check_installed(settings: Mapping[str, Any]) -> None:
    """Raise InputError if a tracker that section metrics of a config names is not installed."""
    local = str(settings["mlflow"]).startswith(("local", "sqlite"))
    packages = {"tensorboard": ["tensorboardX"], "wandb": ["wandb"], "mlflow": ["mlflow"] + ["sqlalchemy"] * local}
    for name, needed in packages.items():
        # a folder of that name on Python's path, such as one that wandb writes, is no package: it has no origin
        missing = [p for p in needed if (spec := importlib.util.find_spec(p)) is None or spec.origin is None]
        if settings[name] and missing:
            raise InputError(
                f"metrics.{name}={settings[name]}: expected the package {missing[0]}, which is not installed; "
                f'pip install "lmjax[{name}]", or leave the key out'
            )


def group_of(run_dir: pathlib.Path) -> str:
    """Return the name of the folder that holds a run directory: that of the sweep."""
    return run_dir.absolute().parent.name or "runs"


def own_id(run_dir: pathlib.Path) -> str:
    """Return what tells a run directory from others of the same run id: 8 digits, drawn once and kept in a file."""
    path = run_dir / "tracker_id"
    with OWN_ID:  # of all trackers of this process, which is the only one that writes to the directory
        if not path.is_file():
            run_record.replace_file(path, secrets.token_hex(4) + "\n")
        return path.read_text().strip()


def facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return {dotted key: value} of the config in a config.json, and N, D, C and what else was derived."""
    from lmjax.config import flatten

    derived = {key: value for key, value in record["derived"].items() if not isinstance(value, (dict, list))}
    return {**flatten(record["config"]), **derived, "code": record.get("code", "unknown")}


class Copy:
    """Copies the lines of a run's metrics.jsonl to one tracker, in a thread.

    Args:
        name: of the tracker.
        setting: what section metrics of the config says of it.
        run_dir: the run's directory, with config.json.
        step: the restored step.
        note: called with a sentence if the tracker fails.
    """

    def __init__(self, name: str, setting: Any, run_dir: pathlib.Path, step: int, note: Callable[[str], None]):
        self.name, self.run_dir, self.note = name, run_dir, note
        self.lines: queue.SimpleQueue = queue.SimpleQueue()  # of records; at the end, whether an error ended the run
        self.thread = threading.Thread(target=self._work, args=(setting, step), name=name, daemon=True)
        self.thread.start()

    def write(self, line: dict) -> None:
        """Hand over a line of metrics.jsonl; returns at once."""
        self.lines.put(line)

    def close(self, failed: bool) -> None:
        """Wait until all lines are copied, for CLOSE_SECONDS at most."""
        self.lines.put(failed)
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self.note(
                f"warning: metrics.{self.name} is not up to date after {CLOSE_SECONDS:.0f} s; metrics.jsonl is complete"
            )

    def _work(self, setting, step):
        try:
            tracker = TRACKERS[self.name](setting, self.run_dir, run_record.read_record(self.run_dir) or {}, step)
            while isinstance(line := self.lines.get(), dict):  # until `close`
                if line["step"] > tracker.logged:
                    tracker.log(line["step"], {name: value for name, value in line.items() if name != "step"})
            status = "failed" if line else run_record.read_status(self.run_dir).get("status", "")
            tracker.close({"done": "done", "failed": "failed", "diverged": "failed"}.get(status, "stopped"))
        except BaseException as error:  # noqa: BLE001 - a tracker never ends a run
            said = " ".join(str(error).split())[:300]
            self.note(
                f"warning: metrics.{self.name} failed ({type(error).__name__}: {said}); training continues, "
                "metrics.jsonl is complete, and a resumed run makes up for what is missing"
            )


def start(
    settings: Mapping[str, Any], run_dir: pathlib.Path, step: int, note: Callable[[str], None] = print
) -> list[Copy]:
    """Start the trackers that section metrics of a config names; arguments as for `Copy`."""
    return [Copy(name, settings[name], run_dir, step, note) for name in TRACKERS if settings[name]]

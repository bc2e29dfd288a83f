"""Orbax checkpoints: asynchronous, committed by rename, verified leaf by leaf when restored.

A checkpoint is the training state and a small JSON record {"run_id", "step", "checksums", ...}. Data needs no state:
batch = f(seed, step).
"""

import contextlib
import errno
import logging
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lmjax.distributed import wait_for_all
from lmjax.errors import InputError

State = dict[str, Any]

SPLIT_BYTES = 1 << 20  # smallest part of an array that one of several devices writes

_PATTERN = "[]{}*?\\"  # special in Orbax's glob of the path
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)  # errors that mean a checkpoint has lost a file


def _checksum(x: jax.Array) -> jax.Array:
    """A uint32 checksum of an array's bits and their positions, independent of sharding and order (integers).

    Elementwise in the array's own shape: to flatten a sharded array, every device would gather all of it.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
    place, stride = jnp.uint32(0), 1  # of the flattened array, modulo 2^32
    for axis in reversed(range(x.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits * (place * jnp.uint32(2654435762) + jnp.uint32(1)), dtype=jnp.uint32)  # odd: no bit is lost


_checksums = jax.jit(lambda state: jax.tree.map(_checksum, state))


def checksums(state: State) -> dict[str, int]:
    """Return {leaf path: checksum}, the same on every mesh."""
    leaves = jax.tree_util.tree_leaves_with_path(_checksums(state))
    return {jax.tree_util.keystr(path): int(np.asarray(value)) for path, value in leaves}


def check_path(directory: pathlib.Path) -> None:
    """Raise InputError for a path in which checkpoints could be written but not read back, or that is too long."""
    full = pathlib.Path(directory).resolve()
    wrong = sorted(set(_PATTERN) & set(str(full)))
    if wrong:
        raise InputError(
            f"{full}: expected a path without {' '.join(_PATTERN)} (checkpoints in such folders cannot be read back), "
            f"got {' '.join(wrong)}; choose another folder"
        )
    try:
        os.lstat(full / "checkpoints")
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{full}: the path is too long for this file system; choose a shorter one") from error


def kept_steps(config: ConfigDict, steps: int) -> frozenset[int]:
    """Returns the steps up to `steps` whose checkpoints are never deleted: those of `per_decade`, evenly spaced in log
    steps, and those of `at`.

    Args:
        config: the checkpoint section.
        steps: length of the run.

    Example:
        >>> sorted(kept_steps(ConfigDict({"per_decade": 3, "at": (7, 200)}), 100))
        [1, 2, 5, 7, 10, 22, 46, 100]
    """
    kept = {step for step in config.at if step <= steps}
    if config.per_decade is not None:
        count = math.floor(config.per_decade * math.log10(steps) + 1e-9)
        kept |= {round(10 ** (k / config.per_decade)) for k in range(count + 1)}
    return frozenset(kept)


def saved_steps(run_dir: str | os.PathLike) -> list[int]:
    """Return the steps of a run's committed checkpoints, oldest first."""
    folder = pathlib.Path(run_dir) / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


class Checkpoints:
    """The checkpoints of one run. Saving overlaps with training; an error in the background is raised by the next call.
    Nothing is deleted before a newer checkpoint is committed.

    Args:
        directory: <run dir>/checkpoints.
        keep: number of newest checkpoints kept; None: all.
        run_id: id of the run, written into each checkpoint; a checkpoint with another id is refused. "": not checked.
        always: steps whose checkpoints are never deleted.
    """

    def __init__(
        self, directory: pathlib.Path, keep: int | None, run_id: str = "", always: Collection[int] = frozenset()
    ):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.directory, self.run_id = pathlib.Path(directory).resolve(), run_id
        logging.getLogger("absl").addFilter(_without_traceback)
        # An array that several devices hold is split, so that each writes a part. Orbax compiles a program for each
        # part of each shape, which for small arrays takes longer than to write them. Its managers have no option for
        # that, and a handler of our own, which takes one, would lack their store of metadata.
        vars(ocp.type_handlers.get_type_handler(jax.Array))["_min_slice_bytes_for_replica_parallel"] = SPLIT_BYTES
        self.always = always
        policy = ocp.checkpoint_managers
        kept = policy.AnyPreservationPolicy([policy.LatestN(keep), policy.CustomSteps(sorted(always))])
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "record"))
        # At each save the manager would report the step to JAX's preemption service, to which the trainer reports the
        # number of its polls. With two counters, the number at which all processes stop may never be reached.
        self._manager.reached_preemption = lambda step: False

    def steps(self) -> list[int]:
        """Return the committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State, **facts) -> None:
        """Start saving; return as soon as the arrays are copied. A step that is already saved is left alone.

        Args:
            step: optimizer steps behind the state.
            state: tree of arrays.
            **facts: JSON-able entries of the record, which `restore_newest` returns.

        Raises:
            OSError: this save, or an earlier one in the background, failed: disk full, not writable.
        """
        if step in self.steps():
            return
        record = {**facts, "run_id": self.run_id, "step": step, "checksums": checksums(state)}
        arguments = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state), record=self._ocp.args.JsonSave(record)
        )
        with _saving(self.directory):
            self._manager.save(step, args=arguments, force=True)

    def restore_newest(self, like: State, note: Callable[[str], None] = print) -> tuple[State, dict] | None:
        """Return (state, record) of the newest checkpoint that reads back with its checksums, or None if there is none.

        Checkpoints that are damaged, or whose record names another step or run, are moved to `unreadable/` beside the
        checkpoints (never deleted), and the next older one is tried.

        Args:
            like: shapes, dtypes and shardings to restore to; any mesh may read what any other wrote.
            note: called with a message about each checkpoint that is moved.

        Raises:
            InputError: there were checkpoints, but none can be read (training never restarts from step 0 silently), or
                one holds other arrays than `like`.
            OSError: the machine could not read the files; they stay where they are.
        """
        aside = self.directory.parent / "unreadable"
        for step in reversed(self.steps()):
            try:
                return self._restore(step, like)
            except (MemoryError, jax.errors.JaxRuntimeError, InputError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever damaged files make Orbax raise
                _raise_if_of_the_machine(error, self.directory / str(step))
                reason = _first_line(error)
                moved = aside / f"{step}-{time.time_ns()}"
                if jax.process_index() == 0:
                    aside.mkdir(exist_ok=True)
                    (self.directory / str(step)).rename(moved)
                wait_for_all(f"set aside {step}")
                self._manager.reload()
                note(f"checkpoint {step} cannot be used ({reason}); moved to {moved}")
        if aside.is_dir() and any(aside.iterdir()):
            raise InputError(
                f"no checkpoint of {self.directory.parent} can be read; they are kept in {aside}; "
                "move that folder away to start from step 0"
            )
        return None

    def _restore(self, step: int, like: State, partial: bool = False) -> tuple[State, dict]:
        """(state, record) of a step after all checks; `partial` restores only the top-level entries of `like`."""
        args = self._ocp.args
        record = self._manager.restore(step, args=args.Composite(record=args.JsonRestore()))["record"]
        _check_record(record, step, self.run_id)
        saved = record["checksums"]
        if partial:
            saved = {k: v for k, v in saved.items() if k.startswith(tuple(f"['{name}']" for name in like))}
            shardings = self._ocp.checkpoint_utils.construct_restore_args(like)
            restore = args.PyTreeRestore(like, restore_args=shardings, partial_restore=True)
        else:
            restore = args.StandardRestore(like)
            found = set(saved)
            expected = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(like)}
            if found != expected:
                raise InputError(
                    f"checkpoint {step} of {self.directory.parent} was written by another version of lmjax: it lacks "
                    f"{sorted(expected - found)[:4]} and has {sorted(found - expected)[:4]} instead; continue "
                    "with that version, or train in a new run directory"
                )
        state = self._manager.restore(step, args=args.Composite(state=restore))["state"]
        if wrong := sorted(dict(saved.items() ^ checksums(state).items())):
            raise ValueError(f"checksums differ for {wrong}")
        if "step" in state and int(state["step"]) != step:
            raise ValueError(f"its state is of step {int(state['step'])}")
        return state, record

    def wait(self) -> None:
        """Wait until everything started is committed.

        Raises:
            OSError: a save failed: disk full, not writable.
        """
        with _saving(self.directory):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Wait for saves and release what Orbax holds."""
        self._manager.close()


def _check_record(record: dict, step: int, run_id: str) -> None:
    """Raise ValueError unless a checkpoint's record says that it belongs to this step and run."""
    if record["step"] != step:
        raise ValueError(f"it was saved at step {record['step']}")
    owner = record.get("run_id", "")  # runs before this entry existed have none
    if run_id and owner and owner.rsplit("-", 1)[-1] != run_id.rsplit("-", 1)[-1]:
        raise ValueError(f"it belongs to the run {owner}, not to {run_id}")


@contextlib.contextmanager
def _saving(directory: pathlib.Path) -> Iterator[None]:
    """Converts the errors that Orbax raises for a full or unwritable disk to a one-line OSError."""
    try:
        yield
    except Exception as error:
        code = _os_error(error)
        if code is None:
            raise
        raise OSError(code, f"cannot save a checkpoint: {os.strerror(code)}", str(directory)) from error


def _raise_if_of_the_machine(error: Exception, folder: pathlib.Path) -> None:
    """Raises OSError if a restore failed because the machine could not read the files, rather than for their content.

    Some Orbax errors hide the cause, so the files are also read directly.
    """
    code = _os_error(error)
    if code is not None and code not in _MISSING:
        raise OSError(code, f"cannot read a checkpoint: {os.strerror(code)}", str(folder)) from error
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _os_error(error: BaseException | None) -> int | None:
    """The OS error number behind an exception of Orbax or TensorStore, None if it has none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if match := re.search(r"os_error_code='(\d+)'", str(error)):
            return int(match[1])
        if "PERMISSION_DENIED" in str(error):
            return errno.EACCES
        error = error.__cause__ or error.__context__
    return None


def _without_traceback(record: logging.LogRecord) -> bool:
    """A log filter that removes tracebacks, because the error is also raised."""
    record.exc_info = record.exc_text = None
    return True


def restore_params(directory: pathlib.Path, step: int, shapes: Any, run_id: str = "") -> Any:
    """Return the parameters of a checkpoint, without the optimizer's state.

    Args:
        shapes: the parameter tree as shapes with shardings; each device reads its part only. None: those saved,
            all in the entry "params", on one device.
        directory, step, run_id: as for `restore`, which raises the same errors.
    """
    like = None if shapes is None else {"params": shapes}
    return restore(directory, step, like, run_id, partial=True)[0]["params"]


def restore(
    directory: pathlib.Path, step: int, like: State | None, run_id: str = "", partial: bool = False
) -> tuple[State, dict]:
    """Return (state, record) of a checkpoint. Nothing in the directory is changed.

    Args:
        directory: <run dir>/checkpoints.
        step: step of a committed checkpoint.
        like: the state as shapes with shardings. None: the saved entry "params", on one device.
        run_id: id of the run; "": not checked.
        partial: restore only the top-level entries of `like`.

    Raises:
        InputError: unreadable; another step or run; arrays differ from those saved. Nothing is moved.
        OSError: the machine could not read the files.
    """
    with contextlib.closing(Checkpoints(directory, keep=None, run_id=run_id)) as checkpoints:
        try:
            if like is None:
                place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
                handler = checkpoints._ocp.PyTreeCheckpointHandler()
                saved = handler.metadata(checkpoints.directory / str(step) / "state").tree["params"]
                like = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)}
            return checkpoints._restore(step, like, partial)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            _raise_if_of_the_machine(error, checkpoints.directory / str(step))
            run_dir = checkpoints.directory.parent
            raise InputError(f"checkpoint {step} of {run_dir} cannot be read: {_first_line(error)}") from error

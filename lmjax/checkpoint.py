"""Checkpoints by Orbax: asynchronous, committed by rename, verified leaf by leaf when they come back.

A checkpoint is the training state and a small JSON record {"step", "checksums"}. Data needs no state: batch =
f(seed, step).
"""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.errors import InputError

State = dict[str, Any]


def _checksum(x: jax.Array) -> jax.Array:
    """A uint32 over the bits and places of an array. Whole-number arithmetic: no sharding or order changes it."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32).ravel()
    place = jax.lax.iota(jnp.uint32, bits.size) * jnp.uint32(2654435762) + jnp.uint32(1)  # odd: no bit is lost
    return jnp.sum(bits * place, dtype=jnp.uint32)


_checksums = jax.jit(lambda state: jax.tree.map(_checksum, state))


def checksums(state: State) -> dict[str, int]:
    """Returns {leaf path: checksum}, the same on every mesh."""
    leaves = jax.tree_util.tree_flatten_with_path(_checksums(state))[0]
    return {jax.tree_util.keystr(path): int(np.asarray(value)) for path, value in leaves}


class Checkpoints:
    """The checkpoints of one run. Saving overlaps with training; an error of a save in the background is raised by the
    next call. Nothing is deleted before a newer checkpoint is committed.

    Args:
        directory: <run dir>/checkpoints.
        keep: number of newest checkpoints kept; None: all.
    """

    def __init__(self, directory: pathlib.Path, keep: int | None):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.directory = pathlib.Path(directory).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=("state", "record"))

    def steps(self) -> list[int]:
        """Returns the committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: State) -> None:
        """Starts saving; returns as soon as the arrays are copied. A step that is already saved is left alone."""
        if step in self.steps():
            return
        record = {"step": step, "checksums": checksums(state)}
        arguments = self._ocp.args.Composite(
            state=self._ocp.args.StandardSave(state), record=self._ocp.args.JsonSave(record)
        )
        self._manager.save(step, args=arguments, force=True)

    def restore_newest(self, like: State, note: Callable[[str], None] = print) -> tuple[State, int] | None:
        """Returns (state, step) of the newest checkpoint that reads back with its checksums, or None if there is none.

        Unreadable ones are moved to `unreadable/` beside the checkpoints (never deleted) and the one before is tried.

        Args:
            like: shapes, dtypes and shardings to restore to; any mesh may read what any other wrote.
            note: called with a sentence about each unreadable checkpoint.

        Raises:
            InputError: there were checkpoints, but none can be read: nothing starts from step 0 unasked.
        """
        aside = self.directory.parent / "unreadable"
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, like), step
            except (MemoryError, PermissionError, jax.errors.JaxRuntimeError):
                raise  # of this machine, not of the files
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the files, the older one is next
                reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                moved = aside / f"{step}-{time.time_ns()}"
                if jax.process_index() == 0:
                    aside.mkdir(exist_ok=True)
                    (self.directory / str(step)).rename(moved)
                if jax.process_count() > 1:
                    from jax.experimental import multihost_utils

                    multihost_utils.sync_global_devices(f"set aside {step}")
                self._manager.reload()
                note(f"checkpoint {step} cannot be read ({reason}); moved to {moved}")
        if aside.is_dir() and any(aside.iterdir()):
            raise InputError(
                f"no checkpoint of {self.directory.parent} can be read; they are kept in {aside}; "
                "move that folder away to start from step 0"
            )
        return None

    def _restore(self, step: int, like: State) -> State:
        arguments = self._ocp.args.Composite(
            state=self._ocp.args.StandardRestore(like), record=self._ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=arguments)
        expected, found = restored["record"]["checksums"], checksums(restored["state"])
        wrong = [name for name in expected if expected[name] != found.get(name)]
        if wrong or set(expected) != set(found):
            raise ValueError(f"checksums differ for {wrong or sorted(set(expected) ^ set(found))}")
        return restored["state"]

    def wait(self) -> None:
        """Waits until everything started is committed; raises what went wrong."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        self._manager.close()


def restore_params(directory: pathlib.Path, step: int, shapes: Any) -> Any:
    """Returns the parameters of a checkpoint, without the optimizer's state, on the first device.

    Args:
        directory: <run dir>/checkpoints.
        step: of a committed checkpoint.
        shapes: the parameter tree as shapes.

    Raises:
        InputError: not readable; other parameters or other values than were saved. Nothing is moved.
    """
    import orbax.checkpoint as ocp

    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {"params": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)}
    arguments = ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
            like, restore_args=ocp.checkpoint_utils.construct_restore_args(like), partial_restore=True
        ),
        record=ocp.args.JsonRestore(),
    )
    folder = pathlib.Path(directory).resolve()
    try:
        with ocp.CheckpointManager(folder, item_names=("state", "record")) as manager:
            restored = manager.restore(step, args=arguments)
        expected, found = restored["record"]["checksums"], checksums(restored["state"])
        params = {name: value for name, value in expected.items() if name.startswith("['params']")}
        if params != found:
            raise ValueError(
                f"parameters differ: {sorted(k for k in {*params, *found} if params.get(k) != found.get(k))}"
            )
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"checkpoint {step} of {folder.parent} cannot be read: {reason}") from error
    return restored["state"]["params"]

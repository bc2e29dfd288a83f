"""Mesh, shardings from logical axis rules, and the batch rows that each process must make.

Logical axes are names a parameter gives its dimensions ("embed", "mlp", ...); config.mesh.rules maps them to the mesh
axes data, fsdp, expert, context and tensor. Splitting a parameter over fsdp is ZeRO-3 (arXiv 1910.02054); over expert,
GShard (arXiv 2006.16668); over tensor, Megatron (arXiv 1909.08053). Tokens of a row are split over context; attention
gathers keys and values (arXiv 2407.21783, 3.3.2).
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lmjax.defaults import AXES, ROWS, get_config
from lmjax.errors import InputError
from lmjax.models.products import WIDE

RULES = get_config().mesh.rules  # of activations in evaluation: parameters are gathered over fsdp, layer by layer
# Of activations in decoding: each device keeps its part of the parameters, and activations are gathered instead, which
# are smaller for few tokens; only the cache is split over fsdp too (arXiv 2211.05102, sections 3.2 and 3.3).
DECODING_RULES = (("batch", "data"), ("gathered", "fsdp"), ("vocab", "tensor"), ("heads", "tensor"))
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}  # YNNPACK for sums only


def make_mesh(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return the mesh of config.mesh over all devices of all processes.

    Raises:
        InputError: another platform than config.mesh.platform; axes that do not multiply to the device count.
    """
    devices = jax.devices() if devices is None else devices
    if config.platform and devices[0].platform != config.platform:
        raise InputError(
            f"mesh.platform: expected {config.platform}, found {devices[0].platform}; install jax for that "
            "accelerator, or set mesh.platform"
        )
    fixed = tuple(config[axis] for axis in AXES[1:])
    data = config.data if config.data > 0 else max(len(devices) // math.prod(fixed), 1)
    if data * math.prod(fixed) != len(devices):
        sizes = " x ".join(f"{axis} {config[axis]}" for axis in AXES)
        raise InputError(
            f"mesh: {sizes} does not equal the {len(devices)} devices found; change the sizes, or set mesh.data=-1"
        )
    return Mesh(np.asarray(devices).reshape(data, *fixed), AXES)


def compiler_options(config: ConfigDict, mesh: Mesh) -> dict[str, Any]:
    """Return the options of XLA for every program of a run on these devices.

    With mesh.deterministic on GPUs, operations whose result varies between executions (sums by atomic additions, such
    as scatter, and cuDNN's attention gradient) get deterministic implementations.

    On CPUs, XLA computes most matrix products with YNNPACK. Eigen's are faster in float32 at widths of 256 and 384
    (docs/performance.md); in bfloat16 YNNPACK's are, where the CPU has instructions for it.

    Args:
        config: of the run.
        mesh: the devices.
    """
    platform, model = mesh.devices.flat[0].platform, config.model
    if platform == "gpu" and config.mesh.deterministic:
        return {"xla_gpu_exclude_nondeterministic_ops": True}
    if platform == "cpu" and model.dtype == "float32" and model.d_model >= WIDE and _known(*EIGEN.items()):
        return dict(EIGEN)
    return {}


@functools.cache
def _known(*options: tuple[str, Any]) -> bool:
    """Whether this version of XLA has these options."""
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(0.0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return False
    return True


def local_mesh(
    config: ConfigDict, sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Return the mesh on which a trained model is used: over the devices of this process. Its context axis is 1.

    Args:
        config: config.mesh of its run.
        sizes: sizes of the axes data, fsdp and tensor; fsdp and tensor left out are 1, data what they leave. None:
            those of the run (fsdp: fsdp x expert), each reduced to its largest divisor that fits.
        devices: None: all of this process.

    Raises:
        InputError: unknown axis; a size below 1; sizes that do not multiply to the device count.

    Example: a run with fsdp 8 and tensor 2, on 4 devices: data 1, fsdp 2, tensor 2.
    """
    devices = jax.local_devices() if devices is None else devices
    if sizes is None:
        tensor = math.gcd(config.tensor, len(devices))
        sizes = {"fsdp": math.gcd(config.fsdp * config.expert, len(devices) // tensor), "tensor": tensor}
    for axis, size in sizes.items():
        if axis not in ("data", "fsdp", "tensor") or type(size) is not int or size < 1:
            raise InputError(f"mesh: expected whole numbers above 0 for data, fsdp, tensor, got {axis}={size!r}")
    return make_mesh(ConfigDict({"platform": None, **dict.fromkeys(AXES, 1), "data": -1, **sizes}), devices)


def mesh_of(params: Any) -> Mesh:
    """Return the mesh over which parameters are sharded, or that of the one device on which they are."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    for mesh in (getattr(sharding, "mesh", None) for sharding in shardings):
        if isinstance(mesh, Mesh):
            return mesh
    devices = list(shardings[0].device_set) if shardings[0] else jax.devices()[:1]
    return Mesh(np.asarray(devices).reshape([1] * len(AXES)), AXES)


def put_rows(batch: Any, mesh: Mesh) -> Any:
    """Return the arrays [rows, ...] of a batch, which every process has, with their rows split over the axes ROWS."""
    sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    if not mesh.is_multi_process:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, x.__getitem__), batch)


def row_shards(mesh: Mesh) -> int:
    """Return the number of parts into which the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in ROWS)


@contextlib.contextmanager
def logical_mesh(mesh: Mesh, rules: Sequence) -> Iterator[None]:
    """Context in which logical axes of activations are mapped to this mesh by the rules."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(list(rules)):
        yield


def batch_sharding(mesh: Mesh, shape: Sequence[int] = ()) -> NamedSharding:
    """Return the sharding of a batch array [micro-batches, rows, ...]: rows over the axes ROWS.

    Args:
        mesh: the mesh.
        shape: of the array. Its third axis, which is time, is split over context where that divides it.
    """
    split = len(shape) > 2 and shape[2] % mesh.shape["context"] == 0
    return NamedSharding(mesh, PartitionSpec(None, ROWS, *(["context"] if split else [])))


def check_rows(rows: int, mesh: Mesh, key: str) -> None:
    """Raise InputError unless `rows` splits evenly over the axes ROWS; `key` is the config key to set."""
    shards = row_shards(mesh)
    if rows % shards:
        sizes = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in ROWS)
        raise InputError(
            f"{rows} rows do not divide evenly over {shards} devices ({sizes}); set {key} to a multiple of {shards}"
        )


def check_split(model: Any, family: str, lengths: Mapping[str, int], mesh: Mesh) -> None:
    """Raise InputError unless the mesh can split the model and its longest rows.

    A shorter side that the axis context does not divide, such as the targets of span corruption, is computed whole.

    Args:
        model: a Linen module; `lmjax.models` lists what it may declare (splits_time, splits_once).
        family: config.model.family.
        lengths: tokens of a row by array, e.g. {"inputs": 1024}.
        mesh: the mesh.
    """
    parts, fsdp, tensor = (mesh.shape[axis] for axis in ("context", "fsdp", "tensor"))
    if getattr(model, "splits_once", False) and min(fsdp, tensor) > 1:
        raise InputError(
            f"mesh.fsdp {fsdp} and mesh.tensor {tensor}: expected one of them to be 1 for model.family {family!r}: XLA "
            "gets the gradients of a recurrence wrong whose weights both split"
        )
    if parts > 1 and not getattr(model, "splits_time", False):
        raise InputError(
            f"mesh.context {parts}: expected a decoder, encoder or encoder_decoder, got model.family {family!r}, which "
            "cannot compute parts of a row on different devices; set mesh.context=1"
        )
    if (longest := max(lengths.values())) % parts:
        raise InputError(
            f"mesh.context {parts}: expected rows of a length that it divides, got {longest} tokens; change "
            "mesh.context or data.seq_len"
        )


def param_shardings(boxed_shapes: Any, mesh: Mesh, rules: Sequence) -> Any:
    """Return a NamedSharding per parameter from its logical axes; axes without a rule are replicated.

    Args:
        boxed_shapes: jax.eval_shape of the model's init, with Flax's partitioning metadata.
        mesh: the mesh.
        rules: (logical axis, mesh axis) pairs.

    Raises:
        InputError: a dimension that its mesh axis does not divide.
    """
    specs = nn.get_partition_spec(boxed_shapes)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, list(rules))
    shapes = nn.unbox(boxed_shapes)

    def check(path, shape, sharding):
        for size, axis in zip(shape.shape, sharding.spec, strict=False):
            names = (axis,) if isinstance(axis, str) else axis or ()
            parts = int(np.prod([mesh.shape[name] for name in names]))
            if size % parts:
                raise InputError(
                    f"parameter {jax.tree_util.keystr(path)} {shape.shape}: {size} does not divide over mesh "
                    f"axis {axis} of {parts}; change that size, the mesh, or mesh.rules"
                )
        return sharding

    return jax.tree_util.tree_map_with_path(check, shapes, shardings)


def shardings_like(params: Any, shardings: Any, state: Any, mesh: Mesh) -> Any:
    """Return shardings for optimizer state: an array whose path ends in a parameter's path and has its shape lies
    where the parameter lies; everything else (counters, factored moments) is replicated."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True)
    known = {jax.tree_util.keystr(path): (leaf.shape, sharding) for (path, leaf), sharding in pairs}

    def find(path, leaf):
        for start in range(len(path)):
            shape, sharding = known.get(jax.tree_util.keystr(path[start:]), (None, None))
            if shape == leaf.shape:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(find, state)


def local_rows(sharding: NamedSharding, shape: tuple[int, int]) -> np.ndarray:
    """Return the global row indices (micro-batch x rows + row) that this process's devices hold, sorted.

    Read off the sharding itself, so over all processes they are disjoint where not replicated, and complete.
    """
    grid = np.arange(shape[0] * shape[1]).reshape(shape)
    slices = sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([grid[index].ravel() for index in slices]))


def make_global_batch(
    rows_of: Callable[[np.ndarray], dict[str, np.ndarray]], mesh: Mesh, micro_batches: int, rows: int
) -> dict[str, jax.Array]:
    """Build the global arrays [micro-batches, rows, ...] of a batch; each process makes only the rows it holds.

    With a context axis, a process makes whole rows, and a device gets its tokens of them.

    Args:
        rows_of: row indices within the global batch -> dict of arrays [len(indices), ...].
        mesh: the mesh.
        micro_batches, rows: shape of the global batch; row r of micro-batch a has index a * rows + r.
    """
    indices = local_rows(batch_sharding(mesh), (micro_batches, rows))
    local = rows_of(indices)
    place = np.full(micro_batches * rows, -1)
    place[indices] = np.arange(len(indices))
    grid = place.reshape(micro_batches, rows)

    def build(array):
        shape = micro_batches, rows, *array.shape[1:]
        return jax.make_array_from_callback(
            shape, batch_sharding(mesh, shape), lambda index: array[grid[index[:2]]][:, :, *index[2:]]
        )

    return {name: build(array) for name, array in local.items()}


def prefetch(make: Callable[[Any], Any], items: Iterable) -> Iterator:
    """Yield make(item) of each item, made by a thread: 8 items early, or fewer (2 at least) to stay below 256 MiB."""
    thread, items = concurrent.futures.ThreadPoolExecutor(1, "batches"), iter(items)
    waiting = collections.deque(thread.submit(make, item) for item in itertools.islice(items, 2))
    ahead = None
    try:
        while waiting:
            made = waiting.popleft().result()
            ahead = ahead or max(2, min(8, (256 << 20) // sum(x.nbytes for x in jax.tree.leaves(made))))
            waiting.extend(thread.submit(make, item) for item in itertools.islice(items, ahead - len(waiting)))
            yield made
    finally:
        thread.shutdown(cancel_futures=True)

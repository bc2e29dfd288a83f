"""Compile a training step for a GPU or TPU that this machine does not have (ahead-of-time compilation).

    compiled(run, "h200")    memory of the compiled step, in bytes

Only JAX's plug-in for the device is needed: it contains the compiler (jax.experimental.topologies). Autotuning needs
the device, so GPU code is compiled without it; the kernels that a real run picks may use other temporary buffers.
"""

import dataclasses
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from lmjax import config as configs
from lmjax.defaults import AXES
from lmjax.errors import InputError, nearest
from lmjax.resolve import Resolved, resolve

# The description of a GPU that XLA's compiler reads, a GpuTargetConfigProto in text format. On a real GPU,
# `xla_client.get_topology_for_devices(jax.devices()).target_config` prints it.
GPU = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared_optin}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
  device_vendor: "NVIDIA Corporation"
  name: "{name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{name}"
"""
USABLE = 0.9  # usable share of a device's memory; the rest goes to the runtime and to fragmentation
CUDNN = 91200  # dnn_version as JAX encodes it
HOPPER = dict(shared=233472, shared_optin=232448, cores=132, fpus=128, l2=50 << 20, clock=1.98, major=9)
AMPERE = dict(shared=167936, shared_optin=166912, cores=108, fpus=64, l2=40 << 20, clock=1.41, major=8)


@dataclasses.dataclass(frozen=True)
class Target:
    """A device to compile for.

    Attributes:
        kind: prefix of JAX's device_kind, as in `hardware.PEAK`.
        memory: bytes of one device.
        platform: gpu | tpu.
        spec: values for the placeholders in `GPU`.
    """

    kind: str
    memory: int
    platform: str = "gpu"
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def capability(self) -> str:
        """Compute capability of a GPU; "" for a TPU."""
        return f"{self.spec['major']}.0" if self.spec else ""


# Public figures: openxla/xla, xla/backends/gpu/target_config/specs; cloud.google.com/tpu/docs/v5e and v6e.
TARGETS = {
    "h200": Target("NVIDIA H200", 151397597184, spec={**HOPPER, "bandwidth": 4_800_000_000_000}),
    "h100": Target("NVIDIA H100 80GB HBM3", 84942979072, spec={**HOPPER, "bandwidth": 3_352_320_000_000}),
    "a100": Target("NVIDIA A100", 85100068864, spec={**AMPERE, "bandwidth": 2_039_040_000_000}),
    "v5e": Target("TPU v5 lite", 16 << 30, "tpu"),
    "v6e": Target("TPU v6 lite", 32 << 30, "tpu"),
}


def target(name: str) -> Target:
    """Returns the target of that name.

    Raises:
        InputError: unknown name.
    """
    if name not in TARGETS:
        raise InputError(f"--for: unknown device {name!r}{nearest(name, TARGETS)}")
    return TARGETS[name]


def missing(platform: str) -> str:
    """Returns the name of a Python package that is missing to compile for "gpu" or "tpu"; "" if none is."""
    needed = {"gpu": ("jax_cuda13_plugin", "jax_plugins.xla_cuda13", "nvidia.cu13"), "tpu": ("libtpu",)}[platform]
    return next((name for name in needed if not _found(name)), "")


def _found(name):
    parent = name.rpartition(".")[0]
    return (not parent or _found(parent)) and importlib.util.find_spec(name) is not None


def compiled(run: Resolved, name: str, slots: int = 0, program: pathlib.Path | None = None) -> dict[str, Any]:
    """Compiles a run's training step for a target in a new process, because compilers read environment variables.

    Args:
        run: a resolved run. Its mesh determines the number of devices; mesh.data = -1 counts as 1.
        name: name of the target, a key of TARGETS.
        slots: number of runs in a pack; 0: no pack.
        program: output file for the optimized HLO; None: not written.

    Returns:
        {"arguments", "temporaries", "output", "aliased", "peak"}: bytes on one device; "flops": XLA's count, None for
        GPUs; "attention": the kernels that the layers use. If the compiler finds that the step does not fit into
        memory: {"refused": its message}.
    """
    platform = target(name).platform
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    if platform == "gpu":
        toolkit = importlib.util.find_spec("nvidia.cu13").submodule_search_locations[0]
        flags = f"--xla_gpu_cuda_data_dir={toolkit} --xla_gpu_autotune_level=0"
        path = f"{toolkit}/bin:{environment.get('PATH', '')}"
        environment |= {"XLA_FLAGS": flags, "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "PATH": path}
    else:
        environment.pop("XLA_FLAGS", None)
        environment |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        environment["TPU_ACCELERATOR_TYPE"] = {"v5e": "v5litepod-4", "v6e": "v6e-4"}[name]
    with tempfile.TemporaryDirectory() as folder:
        run.write(pathlib.Path(folder))
        words = [sys.executable, "-m", "lmjax.aot", folder, name, str(slots), str(program or "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        found = pathlib.Path(folder) / "compiled.json"
        if not found.exists():
            raise RuntimeError(f"compiling for {name} failed:\n{done.stderr[-4000:]}")
        return json.loads(found.read_text())


def _devices(run, name):
    """Returns the devices of the run's mesh, in a topology of the target `name`."""
    from jax.experimental import topologies

    mesh, kind = run.config.mesh, TARGETS[name]
    count = max(mesh.data, 1) * math.prod(mesh[axis] for axis in AXES[1:])
    if kind.platform == "gpu":
        from jax._src.cudnn import fused_attention_stablehlo

        text = GPU.format(**kind.spec, memory=kind.memory, name=kind.kind)
        # JAX would query cuDNN and the GPU of this machine, which has none.
        fused_attention_stablehlo.check_cudnn_version = lambda: CUDNN
        fused_attention_stablehlo.check_compute_capability = lambda least: kind.spec["major"] >= float(least)
        topology = topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x1x{count}")
    else:
        side = 2 ** max(math.ceil(math.log2(count) / 2), 1)
        topology = topologies.get_topology_desc(f"{name}:{side}x{side}", platform="tpu")
    return topology.devices[:count]


def _compile(run, devices, slots):
    """Returns the compiled step, and the run with its model adapted to these devices."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from lmjax import pack, trainer
    from lmjax.optim.optimizers import make_optimizer
    from lmjax.sharding import logical_mesh, make_mesh

    if slots:
        program = pack.Program(run, slots, devices)
        return program.step, program.run
    mesh = make_mesh(run.config.mesh, devices)
    run, optimizer = trainer.on_devices(run, mesh), make_optimizer(run.config.optimizer)
    key = jax.random.key(0)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]), run.metrics, run.carry)
    like = trainer.abstract_state(run, init, key, mesh)
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(mesh, PartitionSpec()))
    with logical_mesh(mesh, run.config.mesh.rules):
        return trainer.compile_step(run, optimizer, like, trainer.abstract_batch(run, mesh), key), run


def _main(folder, name, slots, program):
    import jax

    from lmjax.models import attention_kernels, kernels

    run = resolve(configs.load(f"{folder}/config.json"))
    try:
        step, run = _compile(run, _devices(run, name), int(slots))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found: dict[str, Any] = {"refused": str(error).partition("\n")[0]}
    else:
        memory, cost = step.memory_analysis(), step.cost_analysis() or {}
        sizes = {k: getattr(memory, f"{v}_size_in_bytes") for k, v in SIZES.items()}
        attention = kernels.report(attention_kernels(run.model, run.batches.rows([0])))
        found = {**sizes, "peak": memory.peak_memory_in_bytes, "flops": cost.get("flops"), "attention": attention}
        if program:
            pathlib.Path(program).write_text(step.as_text())
    (pathlib.Path(folder) / "compiled.json").write_text(json.dumps(found))


SIZES = {"arguments": "argument", "temporaries": "temp", "output": "output", "aliased": "alias"}

if __name__ == "__main__":
    _main(*sys.argv[1:])

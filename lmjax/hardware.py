"""The machine: its devices and their peak speeds, versions and commit for the record."""

import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping

from lmjax.errors import InputError
from lmjax.format import quantity

# Dense matmul peak of one device in FLOP/s, from the makers' data sheets: bfloat16, and float32 as it runs by default
# (TF32 on GPUs, one bfloat16 pass on TPUs). Keys begin jax's device_kind.
PEAK = {
    "NVIDIA GB200": (2500e12, 1250e12),
    "NVIDIA B200": (2250e12, 1125e12),
    "NVIDIA H200": (989e12, 495e12),
    "NVIDIA H100 80GB HBM3": (989e12, 495e12),
    "NVIDIA H100 NVL": (835e12, 418e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA L4": (121e12, 60e12),
    "TPU v4": (275e12, 275e12),
    "TPU v5 lite": (197e12, 197e12),
    "TPU v5p": (459e12, 459e12),
    "TPU v5": (459e12, 459e12),
    "TPU v6 lite": (918e12, 918e12),
    "TPU7x": (2307e12, 2307e12),
}
# Where JAX looks for devices before it starts a backend
NVIDIA_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg")  # a GPU; in containers; under WSL2
DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")  # one entry per GPU
PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE, TPU_CHIPS = "0x1ae0", ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # v3 to 7x
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def usable_cores() -> list[int]:
    """Return the CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def accelerators() -> str:
    """Return "gpu" or "tpu" if such a device and JAX's plug-in for it are present, else ""; starts no backend."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return ""
    return next((kind for kind, (plugin, device) in _present().items() if plugin and device), "")


def in_use() -> bool:
    """Return whether this process has started JAX's backend, which takes its devices from other processes."""
    if "jax" not in sys.modules:
        return False
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def idle_accelerator() -> str:
    """Return a sentence if a device has no plug-in of JAX or a plug-in no device, so that JAX uses the CPU, or ""."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu" or accelerators():
        return ""
    install = {"gpu": 'pip install "jax[cuda12]"', "tpu": 'pip install "jax[tpu]"'}
    for kind, (plugin, device) in _present().items():
        name = kind.upper()
        if device and not plugin:
            return (
                f"this machine has a {name}, but JAX's plug-in for it is not installed: using the CPU; {install[kind]}"
            )
        if plugin and not device:
            return f"JAX's plug-in for {name}s is installed, but no {name} is visible here: using the CPU"
    return ""


def _present() -> dict[str, tuple[bool, bool]]:
    """{"gpu" or "tpu": (whether JAX's plug-in is installed, whether a device is visible)}."""
    cuda = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    return {
        "gpu": (cuda, any(os.path.exists(name) for name in NVIDIA_FILES)),
        "tpu": (importlib.util.find_spec("libtpu") is not None, tpu_chips() > 0),
    }


def visible_gpus() -> list[str]:
    """Return the GPUs this process may use, by CUDA_VISIBLE_DEVICES, else nvidia-smi, else the driver's list."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        listing = subprocess.run(query, capture_output=True, text=True, check=False)
        if listing.returncode == 0:  # else it prints an error, not a list
            return listing.stdout.split()
    return [str(i) for i, _ in enumerate(DRIVER.glob("*"))] or ["0"]  # one under WSL2, which has no such list


def tpu_chips() -> int:
    """Return the number of TPU chips of this host, counted among its PCI devices as JAX does."""

    def read(path):
        return path.read_text().strip() if path.is_file() else ""

    found = [device for device in PCI.glob("*") if read(device / "vendor") == GOOGLE]
    return sum(read(device / "device") in TPU_CHIPS for device in found)


def peak_flops(dtype: str) -> float | None:
    """Return the peak FLOP/s of one device, or None where it is not known (CPUs).

    Args:
        dtype: bfloat16 | float32 (TF32 on GPUs, one bfloat16 pass on TPUs: what JAX does by default).
    """
    import jax

    kind = jax.local_devices()[0].device_kind
    peaks = next((peaks for name, peaks in PEAK.items() if kind.startswith(name)), None)
    return None if peaks is None else peaks[dtype != "bfloat16"]


def environment_record() -> dict:
    """Return the environment for the record of a result: versions, commit, device, date."""
    import jax

    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        "commit": commit(),
        "device": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
        "cpus": len(usable_cores()),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """Return the git commit of the lmjax checkout, with "+changes" if files differ from it; "" outside a checkout."""
    folder = pathlib.Path(__file__).resolve().parent.parent

    def git(*arguments):
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)

    try:
        head = git("rev-parse", "HEAD")
    except FileNotFoundError:  # no git on this machine
        return ""
    if head.returncode or git("ls-files", "--error-unmatch", __file__).returncode:
        return ""
    return head.stdout.strip() + ("+changes" if git("status", "--porcelain", "-uno").stdout.strip() else "")


def memory() -> tuple[int, bool]:
    """Return (bytes of memory, True if of one GPU or False if of the whole machine); 0 bytes if unknown."""
    if accelerators() == "gpu":
        if not shutil.which("nvidia-smi"):
            return 0, True
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        return (min(map(int, found)) << 20 if found else 0), True
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.exists() else "max"
    return (min(total, int(text)) if text.isdigit() else total), False


def check_memory(parts: Mapping[str, int]) -> None:
    """Refuse a training step that cannot fit into memory, before anything is allocated.

    Estimates of activations may be too high by less than 2, so half of them counts.

    Args:
        parts: bytes of one device by part, from `flops.memory_bytes`.

    Raises:
        InputError: more than a device has, or on CPU than the machine has for its devices.
    """
    import jax

    certain = ("parameters", "optimizer", "gradients")
    stats = jax.local_devices()[0].memory_stats() or {}
    available = stats.get("bytes_limit") or memory()[0] / jax.local_device_count()
    if sum(size if name in certain else size / 2 for name, size in parts.items()) > available > 0:
        sizes = ", ".join(f"{name} {quantity(size, 'B')}" for name, size in parts.items())
        raise InputError(
            f"expected a training step that fits in the {quantity(available, 'B')} of memory per device, got "
            f"{quantity(sum(parts.values()), 'B')} ({sizes}); make the model, data.seq_len or data.global_batch_size "
            "smaller, raise train.accumulation_steps, set model.remat, or shard over more devices (mesh.fsdp)"
        )


def peak_memory() -> int:
    """Return the peak memory in bytes: of the first device if it reports one, else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))

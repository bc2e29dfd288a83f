"""The machine: versions and commit for the record, known peak speeds, the cache folder."""

import ctypes
import datetime
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import resource
import shutil
import signal
import subprocess
import sys

# Dense bfloat16 matmul peak of one device in FLOP/s, from the makers' data sheets. Keys begin jax's device_kind.
PEAK_BFLOAT16 = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}
CORES, PARENT = "LMJAX_CORES", "LMJAX_PARENT"  # set by a sweep for its workers
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def cache_folder() -> pathlib.Path:
    """Returns the folder for token stores and compiled programs: $LMJAX_CACHE, else ~/.cache/lmjax."""
    return pathlib.Path(os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax").expanduser()


def usable_cores() -> list[int]:
    """Returns the CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def accelerators() -> str:
    """Returns "gpu" or "tpu" where such a device and the JAX plug-in for it are both there, else ""; starts no
    backend."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return ""
    cuda = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
    if cuda and shutil.which("nvidia-smi"):
        return "gpu"
    return "tpu" if importlib.util.find_spec("libtpu") and any(pathlib.Path("/dev").glob("accel*")) else ""


def peak_flops(dtype: str) -> float | None:
    """Returns the peak FLOP/s of one device for bfloat16 compute, or None where none is known (CPUs, float32)."""
    import jax

    if dtype != "bfloat16":
        return None
    kind = jax.local_devices()[0].device_kind
    return next((peak for name, peak in PEAK_BFLOAT16.items() if kind.startswith(name)), None)


def environment_record() -> dict:
    """Returns what a result's record says of where it was made: versions, commit, device, date."""
    import jax

    return {
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "commit": commit(),
        "device": f"{jax.device_count()} x {jax.local_devices()[0].device_kind}",
        "cpus": len(usable_cores()),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def commit() -> str:
    """Returns the git commit of the lmjax checkout, with "+changes" if files differ from it; "" outside a checkout."""
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


def peak_memory() -> int:
    """Returns the most memory used so far in bytes: of the first device where it counts, else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that the next run of the same shape starts without compiling."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_memory() -> bool:
    """Tells glibc to keep freed memory in this process; returns whether it did.

    XLA's CPU buffers would otherwise be mapped afresh every step: a third of a small model's step in page faults
    (experiments/benchmarks/train_step.py). Only where the CPU computes, and LMJAX_KEEP_MEMORY=0 turns it off. Call it
    before the first threads and large allocations; a C library without mallopt (macOS, musl) is left as it is.
    """
    if accelerators() or os.environ.get("LMJAX_KEEP_MEMORY") == "0" or sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    # One arena, the only one whose trimming can be switched off; no mmap; never trim; grow by 64 MiB.
    arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2
    settings = ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20))
    return all([libc.mallopt(option, value) for option, value in settings])


def enter_worker() -> None:
    """Called first thing in a process a sweep started: pins it to its cores, and ends it with its parent (Linux)."""
    cores = os.environ.get(CORES)
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    parent = os.environ.get(PARENT)
    if parent and sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)

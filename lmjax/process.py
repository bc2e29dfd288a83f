"""Settings of this process: cache folder, compilation cache, memory allocator, GPUs, and a sweep worker's CPU cores."""

import ctypes
import os
import pathlib
import re
import signal
import sys
import warnings

from lmjax.distributed import expected_processes
from lmjax.hardware import accelerators, visible_gpus

CORES, PARENT = "LMJAX_CORES", "LMJAX_PARENT"  # set by a sweep for its workers


def cache_folder() -> pathlib.Path:
    """Return the folder for token stores and compiled programs: $LMJAX_CACHE, else ~/.cache/lmjax."""
    return pathlib.Path(os.environ.get("LMJAX_CACHE") or "~/.cache/lmjax").expanduser()


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that the next run of the same shape starts without compiling."""
    import jax

    folder = cache_folder() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _remove_unreadable_programs(folder)


def tune_gpus() -> list[str]:
    """Set what JAX leaves low on GPUs, where the environment does not; return the settings made, as NAME=value.

    The share of GPU memory that JAX may use is 0.75 by default. With several GPUs, level O1 of XLA overlaps
    communication with computation. Call it before JAX is imported.
    """
    if accelerators() != "gpu":
        return []
    settings = {}
    if not {"XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"} & set(os.environ):  # both: an error in JAX
        settings["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.9"
    if len(visible_gpus()) * expected_processes() > 1 and "JAX_OPTIMIZATION_LEVEL" not in os.environ:
        settings["JAX_OPTIMIZATION_LEVEL"] = "O1"
    os.environ.update(settings)
    return [f"{name}={value}" for name, value in settings.items()]


def _remove_unreadable_programs(folder: pathlib.Path) -> None:
    """Makes JAX's warning about an unreadable entry also remove the programs of that name, to be written again.

    JAX never replaces an entry that a kill or a full disk truncated, but warns and recompiles at every start.
    """
    show = warnings.showwarning
    if show.__name__ == "show_and_remove":  # called before in this process
        return

    def show_and_remove(message, *arguments, **options):
        found = re.match(r"Error reading persistent compilation cache entry for '([^']+)'", str(message))
        for path in folder.glob(f"{found[1]}-*") if found else ():
            path.unlink(missing_ok=True)
        show(message, *arguments, **options)

    warnings.showwarning = show_and_remove


def keep_memory() -> bool:
    """Tell glibc to keep freed memory in this process; return whether it accepted.

    Otherwise XLA's CPU buffers are mapped anew in every step, and page faults take a third of a small model's step
    (experiments/benchmarks/train_step.py). Applies only to CPU runs; LMJAX_KEEP_MEMORY=0 turns it off. Call it before
    the first threads and large allocations. Has no effect with C libraries without mallopt (macOS, musl).
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
    """Pin a sweep worker to its cores, and end it when its parent ends (Linux). Call this before anything else."""
    cores = os.environ.get(CORES)
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    parent = os.environ.get(PARENT)
    if parent and sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != int(parent):  # it died before the call
            os.kill(os.getpid(), signal.SIGTERM)

"""Eight fake CPU devices, one compute thread each, no silent rank promotion; configs small enough to compile
in a second."""

import importlib.metadata
import os

# Most programs run a few times only: with these, which subprocesses read as well, XLA compiles in a sixth of the time.
# The quickstart of .ci/run runs without them.
ONE_DEVICE = "--xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith(("0.7.", "0.8.", "0.9.", "0.10.")):
    ONE_DEVICE += " --xla_cpu_use_fusion_emitters=false"  # unknown to later XLA, which ends the process for it
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = ONE_DEVICE + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# The workers fill the cores: more threads of linear algebra would only wait for each other, at several times the cost.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Runs and stores are synced to disk thousands of times, each of which a test waits for: in memory, where it is large.
if os.path.isdir("/dev/shm"):
    MEMORY = os.statvfs("/dev/shm")
    if MEMORY.f_bavail * MEMORY.f_frsize >= 8 << 30 and not MEMORY.f_flag & (os.ST_NOEXEC | os.ST_NODEV):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

# Bytecode in __pycache__, whatever the shell says: some 40 processes start in two thirds of the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc  # noqa: E402
import pathlib  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402

from lmjax import config as configs  # noqa: E402

sys.dont_write_bytecode = False
ROOT = pathlib.Path(__file__).resolve().parent.parent
jax.config.update("jax_numpy_rank_promotion", "raise")

SMALL = {
    "model.d_model": 16,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "data.sources": ("markov2:20000",),
    "data.num_sentinels": 8,
    "data.seq_len": 16,
    "data.global_batch_size": 8,
    "duration.tokens": None,
    "duration.steps": 6,
    "evaluation.max_tokens": 512,
    "evaluation.batch_size": 8,
    "metrics.every_steps": 2,
    "checkpoint.every_seconds": None,
}


def pytest_collection_finish():
    """What is imported by now stays for good: each search for cyclic garbage would go through all of it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One throw-away cache folder for all workers and their subprocesses: stores and compiled programs."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    folder = tmp_path_factory.getbasetemp().parent / "cache" if worker else tmp_path_factory.mktemp("cache")
    os.environ["LMJAX_CACHE"] = str(folder)
    from lmjax.process import use_compilation_cache

    use_compilation_cache()
    return folder


def small(family="decoder", **overrides):
    """Returns a config that trains in a second; keys with dots are given as keywords with double underscores."""
    base = configs.load(str(ROOT / "configs" / f"{family}.py"))
    return configs.overlay(base, {**SMALL, **{k.replace("__", "."): v for k, v in overrides.items()}})


PROGRAMS = {}


def train(run, run_dir, **options):
    """Trains a run in this process; as in a sweep's worker, runs of one shape share their compiled programs."""
    from lmjax import trainer

    return trainer.train(run, run_dir, show_progress=False, programs=PROGRAMS, **options)


def lmjax(*arguments, devices=1, env=None, check=True, timeout=120, **options):
    """Runs `python -m lmjax ...` in a new process; returns it finished, output captured."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{ONE_DEVICE} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        **(env or {}),
    }
    result = subprocess.run(
        [sys.executable, "-m", "lmjax", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    assert not check or result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result

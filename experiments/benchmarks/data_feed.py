"""How fast do training batches come out of the token store, on one core?

Command:  python experiments/benchmarks/data_feed.py [--objective causal_lm] [--source classic] [--seconds 2]
Time:     half a minute. Needs lmjax[corpora] (for `classic`; --source zipf needs nothing).
Expected: causal_lm on one core of a 2020s server: at least 30 Mtok/s at 1024 x 16 in both modes. The cost is
          per row (about 20 us), so short rows feed fewer tokens: about 6 Mtok/s at 128 x 16.
Results:  see RESULTS below, in source tokens per second of process time (CPU time of this process, which
          other load on the machine disturbs little).
"""

import argparse
import json
import platform
import time

import numpy as np

from lmjax import config as configs
from lmjax import objectives
from lmjax.data import pipeline

SHAPES = ((1024, 16), (128, 16))  # seq_len, rows

# 2026-11-21, causal_lm on classic; AMD EPYC, 2 shared cores, Python 3.11.7, numpy 2.4.6, grain 0.2.18
RESULTS = {  # (mode, seq_len, rows): Mtok/s of process time; wall time was 15 to 30 % lower
    ("concat_and_split", 1024, 16): 48.6,
    ("pack", 1024, 16): 39.1,
    ("concat_and_split", 128, 16): 7.1,
    ("pack", 128, 16): 5.9,
}


def measure(objective: str, source: str, mode: str, seq_len: int, rows: int, seconds: float) -> dict:
    """Returns Mtok/s of process time and of wall time, best of 5 rounds, after one warm-up batch."""
    overrides = {
        "data.sources": (source,),
        "data.mode": mode,
        "data.seq_len": seq_len,
        "data.global_batch_size": rows,
        "data.num_sentinels": 128,
    }
    config = configs.load("configs/default.py", overrides)
    data = pipeline.prepare(config)
    start = time.perf_counter()
    pipe = pipeline.Pipeline(data, objectives.OBJECTIVES[objective], config)
    setup = time.perf_counter() - start
    pipe.rows(range(rows))
    step, best = 1, {"cpu": 0.0, "wall": 0.0}
    for _ in range(5):
        first, cpu, wall = step, time.process_time(), time.perf_counter()
        while time.perf_counter() - wall < seconds / 5:
            pipe.rows(np.arange(rows) + step * rows)
            step += 1
        tokens = (step - first) * rows * pipe.tokens_per_row / 1e6
        spent = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        best = {clock: max(best[clock], tokens / spent[clock]) for clock in best}
    return {"mode": mode, "seq_len": seq_len, "rows": rows, "setup_s": round(setup, 2), **best}


def versions() -> dict:
    """Returns what the numbers depend on."""
    import grain

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "grain": getattr(grain, "__version__", None) or _installed("grain"),
        "machine": platform.machine(),
        "processor": _processor(),
    }


def _installed(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="causal_lm", choices=sorted(objectives.OBJECTIVES))
    parser.add_argument("--source", default="classic", help="any data source")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    arguments = parser.parse_args()
    print(json.dumps(versions()))
    print(f"{'mode':18} {'seq x rows':>10} {'Mtok/s cpu':>11} {'Mtok/s wall':>12} {'set-up s':>9}")
    for seq_len, rows in SHAPES:
        for mode in ("concat_and_split", "pack"):
            row = measure(arguments.objective, arguments.source, mode, seq_len, rows, arguments.seconds)
            shape = f"{seq_len} x {rows}"
            print(f"{mode:18} {shape:>10} {row['cpu']:11.1f} {row['wall']:12.1f} {row['setup_s']:9.2f}")


if __name__ == "__main__":
    main()

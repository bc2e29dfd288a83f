"""How fast and how exact are lmjax's fits of the Chinchilla law, next to what people use?

The same tables, in one run, one thread each side (its own process, pinned to one core):
    lmjax        lmjax.scaling.fit as it comes: a fit without intervals, and one with 1000 refits
    scipy        the notebook way: minimize(L-BFGS-B) of the summed Huber loss with a numeric gradient from Hoffmann's
                 grid of 4500 starts (arXiv:2203.15556); --scipy-starts takes that many of them, evenly
    chinchilla   chinchilla 0.2.0, the grid of its README (5 values a parameter; --chinchilla-grid), log_huber 1e-3
    simple       simple-scaling-laws 0.2.0, default law; another objective, so it has a time but no gap
The gap of a side is F / F* - 1, F the Huber loss (delta 1e-3) of ln L, summed in extended precision. F* is found apart
from all of them: scipy.optimize.least_squares from 60 starts, then Newton steps with the exact Hessian, in float64 with
sums in extended precision; and from each side's own answer too, so that no side can be below it unseen.
Tables: 240 points of a planted law (Epoch's refit, arXiv:2404.10102), noise of 0.1 %, 0.5 % and 3 % with every 20th
error tripled, two seeds each; and a CSV (N, D, loss) given by --table. Nothing that was not run is scaled up.
Coverage: the share of simulated tables whose nominal 95 % interval holds the truth, on a planned grid of 36 cells.

Command:  pip install chinchilla==0.2.0 simple-scaling-laws==0.2.0   (Python >= 3.12, in an environment of its own)
          python experiments/benchmarks/fits.py --peer-python PEERS/bin/python [--table FILE.csv] [--out FILE.json]
          --parts times coverage; --draws 1000 --refits 300 for the coverage; --rounds 5 for the times
Time:     about a minute a table for chinchilla's README grid, a minute for 4500 starts, seconds for the rest; the
          coverage takes 10 to 20 minutes. Rounds wait for other programs to leave a core alone, at most --patience
          seconds; the JSON has how many did, and CPU seconds beside wall seconds.
Expected: lmjax gap <= 1e-10 on every table, <= 50 ms a fit, <= 1.5 s for 1000 refits, coverage 93 to 97 %.
Result:   fits.json
"""

import os

os.environ |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # before numpy

import argparse  # noqa: E402
import datetime  # noqa: E402
import importlib.metadata  # noqa: E402
import json  # noqa: E402
import pathlib  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import train_step as harness  # noqa: E402 - beside this file: how rounds are kept quiet

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRUTH = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}
DELTA, POINTS = 1e-3, 240
NOISES = (0.001, 0.005, 0.03)
BARS = {"gap": 1e-10, "fit_seconds": 0.05, "refits_seconds": 1.5, "coverage": (0.93, 0.97)}
PEERS = {"lmjax": (), "scipy": ("scipy",), "chinchilla": ("chinchilla",), "simple": ("simple-scaling-laws",)}


def law(N, D, p):
    """L = E + A N^-alpha + B D^-beta."""
    return p["E"] + p["A"] * N ** -p["alpha"] + p["B"] * D ** -p["beta"]


def synthetic(noise, seed):
    """Returns N, D, loss, each [240]: 24 budgets times 10 ratios D/N, every 20th error tripled."""
    rng = np.random.default_rng(seed)
    budget, ratio = (x.ravel() for x in np.meshgrid(np.geomspace(6e18, 3e21, 24), np.geomspace(1.5, 400, 10)))
    N = np.round(np.sqrt(budget / 6 / ratio) * np.exp(0.1 * rng.standard_normal(POINTS)))
    D = np.round(budget / 6 / N)
    error = noise * rng.standard_normal(POINTS) * np.where(np.arange(POINTS) % 20 == 7, 3.0, 1.0)
    return N, D, law(N, D, TRUTH) * np.exp(error)


# ---- the objective and its minimum, written apart from every side ----------------------------------------------------


def objective(p, N, D, loss):
    """Sum of Huber(ln L - ln loss), terms and sum in extended precision."""
    N, D, loss = (np.asarray(x, np.longdouble) for x in (N, D, loss))
    size = np.abs(np.log(law(N, D, {k: np.longdouble(v) for k, v in p.items()})) - np.log(loss))
    return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())


def from_theta(theta, mean_n, mean_d):
    """Parameters of (E, ln term at the centre, alpha, ln term at the centre, beta)."""
    E, a, alpha, b, beta = (float(x) for x in theta)
    return {"E": E, "A": np.exp(a + alpha * mean_n), "alpha": alpha, "B": np.exp(b + beta * mean_d), "beta": beta}


def pieces(theta, u, v):
    """L, its two terms and d ln L / d theta [I, 5]."""
    E, a, alpha, b, beta = theta
    first, second = np.exp(a - alpha * u), np.exp(b - beta * v)
    level = E + first + second
    jacobian = np.stack([np.ones_like(u), first, -u * first, second, -v * second], 1) / level[:, None]
    return level, first, second, jacobian


def newton(theta, N, D, loss, steps=200):
    """Polishes theta by damped Newton steps with the exact Hessian until the objective stops falling."""
    u, v, y = np.log(N) - np.log(N).mean(), np.log(D) - np.log(D).mean(), np.log(loss)

    def value(t):
        L = pieces(np.asarray(t, np.longdouble), u.astype(np.longdouble), v.astype(np.longdouble))[0]
        if not (L > 0).all():
            return np.inf
        size = np.abs(np.log(L) - y)
        return float(np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)).sum())

    theta, damping, best = np.array(theta, float), 1e-6, value(theta)
    for _ in range(steps):
        level, first, second, J = pieces(theta, u, v)
        r = np.log(level) - y
        psi, inside = np.clip(r, -DELTA, DELTA), np.abs(r) <= DELTA
        H = (J * (inside - psi)[:, None]).T @ J  # psi d2 ln L = psi (d2 L / L - J J')
        for k, term, w in ((1, first, u), (3, second, v)):
            s = psi * term / level
            H[k, k] += s.sum()
            H[k, k + 1] -= (s * w).sum()
            H[k + 1, k] -= (s * w).sum()
            H[k + 1, k + 1] += (s * w * w).sum()
        scale = np.sqrt((J**2).sum(0)) * np.sqrt(DELTA)
        moved = False
        for _ in range(30):
            step = np.linalg.lstsq(H + damping * np.diag(scale**2), -J.T @ psi, rcond=1e-15)[0]
            there = value(theta + step)
            if there < best:
                theta, best, damping, moved = theta + step, there, max(damping / 30, 1e-14), True
                break
            damping = max(damping * 10, 1e-14)
        if not moved:
            break
    return theta, best


def reference(N, D, loss, answers, starts=60):
    """F* and its parameters: least_squares(loss="huber") from many starts, polished; then from every side's answer."""
    from scipy.optimize import least_squares

    rng = np.random.default_rng(0)
    mean_n, mean_d, y = np.log(N).mean(), np.log(D).mean(), np.log(loss)
    u, v = np.log(N) - mean_n, np.log(D) - mean_d
    found = []
    for _ in range(starts):
        share = rng.dirichlet([1, 1, 1]) * loss.mean()
        begin = [share[0], np.log(share[1]), rng.uniform(0.05, 1.2), np.log(share[2]), rng.uniform(0.05, 1.2)]
        low, high = [0, -20, 1e-3, -20, 1e-3], [10 * loss.mean(), 20, 3, 20, 3]
        result = least_squares(
            lambda t: np.log(pieces(t, u, v)[0]) - y,
            begin,
            jac=lambda t: pieces(t, u, v)[3],
            bounds=(low, high),
            loss="huber",
            f_scale=DELTA,
            x_scale="jac",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
            max_nfev=300,
        )
        found.append((result.cost, result.x))
    found = [theta for _, theta in sorted(found, key=lambda pair: pair[0])[:10]]
    for p in answers:
        found.append([p["E"], np.log(p["A"]) - p["alpha"] * mean_n, p["alpha"], 0.0, p["beta"]])
        found[-1][3] = np.log(p["B"]) - p["beta"] * mean_d
    theta, best = min((newton(theta, N, D, loss) for theta in found), key=lambda pair: pair[1])
    return best, from_theta(theta, mean_n, mean_d)


# ---- the sides, each in a process of its own -------------------------------------------------------------------------


def lmjax_side(N, D, loss, options):
    """One fit without intervals (what = fit) or with 1000 refits (what = refits)."""
    import pandas

    from lmjax.scaling.fitting import fit

    frame = pandas.DataFrame({"N": N, "D": D, "loss": loss})

    def run(what):
        found = fit(frame, resamples=1000 if what == "refits" else 0, profiles=False)
        return dict(found.params) or None, {"status": found.status}

    return run


def scipy_side(N, D, loss, options):
    """minimize(L-BFGS-B), numeric gradient, from Hoffmann's grid."""
    from itertools import product

    from scipy.optimize import minimize
    from scipy.special import huber, logsumexp

    log_n, log_d, y = np.log(N), np.log(D), np.log(loss)
    axes = np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5), *[np.arange(0, 2.5, 0.5)] * 2
    grid = np.array(list(product(*axes)), float)
    grid = grid[np.unique(np.linspace(0, len(grid) - 1, min(options["scipy_starts"], len(grid))).round().astype(int))]

    def total(x):
        a, b, e, alpha, beta = x
        parts = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        return huber(DELTA, logsumexp(parts, 0) - y).sum()

    def run(what):
        best = min((minimize(total, x, method="L-BFGS-B") for x in grid), key=lambda r: r.fun)
        a, b, e, alpha, beta = best.x
        p = {"E": np.exp(e), "A": np.exp(a), "alpha": alpha, "B": np.exp(b), "beta": beta}
        return p, {"starts": len(grid)}

    return run


def chinchilla_side(N, D, loss, options):
    """chinchilla's own fit on the grid of its README."""
    import pandas
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    folder = tempfile.mkdtemp()
    pandas.DataFrame({"C": 6 * N * D, "N": N, "D": D, "loss": loss}).to_csv(f"{folder}/df.csv", index=False)
    count = options["chinchilla_grid"]
    grid = {"E": np.linspace(1, 2, count), "a": np.linspace(1, 10, count), "b": np.linspace(1, 10, count)}
    grid |= {"alpha": np.linspace(0.1, 0.7, count), "beta": np.linspace(0.1, 0.7, count)}

    def run(what):
        model = Chinchilla(folder, param_grid=grid, loss_fn=lambda y, x: log_huber(y, x, delta=DELTA), log_level=50)
        model.visualizer.optim = lambda *_, **__: None  # a figure is no part of a fit
        model.fit(parallel=False)
        return {name: float(model.params[name]) for name in TRUTH}, {"starts": count**5}

    return run


def simple_side(N, D, loss, options):
    """simple-scaling-laws with its least number of refits (what = fit) or 1000 (what = refits)."""
    import polars
    from simple_scaling_laws import fit

    columns = {"training_run_id": [f"r{i}" for i in range(len(N))], "test_set_id": ["t"] * len(N)}
    frame = polars.DataFrame({**columns, "model_size__n": N, "dataset_size__d": D, "test_loss__cross_entropy": loss})

    def run(what):
        model = fit(frame, n_draws=1000 if what == "refits" else 1, seed=0)
        p = model.params("test_loss__cross_entropy")
        return {"raw": {str(k): float(v) for k, v in p.items()}}, {}

    return run


SIDES = {"lmjax": lmjax_side, "scipy": scipy_side, "chinchilla": chinchilla_side, "simple": simple_side}


def worker(side, path, options):
    """Answers each line (fit | refits) on stdin with a JSON line: seconds, CPU seconds, parameters."""
    import contextlib

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with np.load(path) as table:
        N, D, loss = table["N"], table["D"], table["loss"]
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # peers print
        run = SIDES[side](N, D, loss, options)
        if side in ("lmjax", "simple"):
            run("fit")  # imports and caches
        versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", *PEERS[side])}
        print(json.dumps({"python": platform.python_version(), **versions}), file=out, flush=True)
        for line in sys.stdin:
            wall, cpu = time.perf_counter(), time.process_time()
            params, extra = run(line.strip())
            answer = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            print(json.dumps({**answer, "params": params, **extra}), file=out, flush=True)


class Side:
    """The process of one side on one table."""

    def __init__(self, side, path, arguments):
        python = sys.executable if side in ("lmjax", "scipy") else arguments.peer_python
        options = {"scipy_starts": arguments.scipy_starts, "chinchilla_grid": arguments.chinchilla_grid}
        command = [python, __file__, "--worker", json.dumps([side, str(path), options])]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        quiet = {} if arguments.verbose else {"stderr": subprocess.DEVNULL}
        self.name = side
        self.process = subprocess.Popen(command, env=environment, **pipes, **quiet)
        self.versions = self._answer()

    def ask(self, what):
        """Returns the answer to one task."""
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the side {self.name} ended early; start again with --verbose to see why")
        return json.loads(line)

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def timed(side, what, rounds, patience):
    """Medians over rounds, each begun when other programs are quiet, or after `patience` seconds in all."""
    deadline, answers, quiet = time.monotonic() + patience, [], 0
    for _ in range(rounds):
        harness.wait_until_quiet(deadline)
        before, began = harness.busy_seconds(), time.monotonic()
        answers.append(side.ask(what))
        quiet += harness.others(answers[-1]["cpu_seconds"], before, began) < harness.QUIET
    middle = {key: statistics.median(a[key] for a in answers) for key in ("seconds", "cpu_seconds")}
    return {**middle, "rounds": rounds, "quiet_rounds": quiet}, answers[-1]


def one_table(name, N, D, loss, arguments):
    """Times every side on a table and sets its answer against F*."""
    record = {"table": name, "points": len(N), "sides": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "table.npz"
        np.savez(path, N=N, D=D, loss=loss)
        for kind in arguments.sides:
            side = Side(kind, path, arguments)
            slow = kind in ("scipy", "chinchilla")
            found, answer = timed(side, "fit", 1 if slow else arguments.rounds, arguments.patience)
            row = {"versions": side.versions, "fit": found, "params": answer["params"]}
            row |= {key: answer[key] for key in ("starts", "status") if key in answer}
            if kind in ("lmjax", "simple"):
                row["refits_1000"] = timed(side, "refits", max(1, arguments.rounds // 2), arguments.patience)[0]
            side.close()
            record["sides"][kind] = row
    answers = [row["params"] for row in record["sides"].values() if row["params"] and "raw" not in row["params"]]
    record["optimum"], record["optimum_params"] = reference(N, D, loss, answers)
    for row in record["sides"].values():
        if row["params"] and "raw" not in row["params"]:
            row["gap"] = objective(row["params"], N, D, loss) / record["optimum"] - 1
    return record


def show(record):
    """Prints one line a side."""
    ours = record["sides"].get("lmjax")
    for kind, row in record["sides"].items():
        ratio = f"{row['fit']['seconds'] / ours['fit']['seconds']:10.1f}x" if ours else ""
        refits = f"{row['refits_1000']['seconds']:9.2f} s" if "refits_1000" in row else f"{'-':>11s}"
        gap = f"{row['gap']:10.1e}" if "gap" in row else f"{'-':>10s}"
        print(f"{record['table']:22s}{kind:>12s}{row['fit']['seconds']:10.3f} s{ratio}{refits}{gap}", flush=True)


def coverage(noise, draws, refits):
    """Shares of simulated tables whose intervals hold the truth: parameters, a, and N* and loss beyond the grid."""
    import pandas

    from lmjax.scaling.fitting import fit
    from lmjax.scaling.laws import optimal_allocation
    from lmjax.scaling.planning import design

    began = time.perf_counter()
    plan = design(np.geomspace(1e18, 1e21, 6), params=TRUTH, noise=noise, per_budget=6)
    N, D = (np.array([row[name] for row in plan.cells]) for name in ("N", "D"))
    clean, budget = law(N, D, TRUTH), 10 * plan.cells[-1]["C"]
    best = optimal_allocation(TRUTH, budget)
    truth = {**TRUTH, "a": float(best["a"])}
    rng, inside, refused = np.random.default_rng(7), {}, 0
    for seed in range(draws):
        frame = pandas.DataFrame({"N": N, "D": D, "loss": clean * np.exp(noise * rng.standard_normal(len(N)))})
        found = fit(frame, resamples=refits, seed=seed, profiles=False)
        refused += found.refused
        if found.refused:
            continue
        held = {name: found.intervals[name][0] <= value <= found.intervals[name][1] for name, value in truth.items()}
        split = found.allocate(budget)
        held["N*"] = split["N_low"] <= best["N"] <= split["N_high"]
        _, low, high = found.predict(best["N"], best["D"], new_run=False)
        held["loss"] = low <= best["loss"] <= high
        for name, value in held.items():
            inside[name] = inside.get(name, 0) + int(value)
    shares = {name: count / max(draws - refused, 1) for name, count in inside.items()}
    seconds = round(time.perf_counter() - began, 1)
    return {
        "noise": noise,
        "cells": len(N),
        "condition": plan.condition,
        "draws": draws,
        "refits": refits,
        "refused": refused,
        "coverage": shares,
        "seconds": seconds,
    }


def machine():
    """Returns what the numbers were measured on."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n") if pathlib.Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "scipy", "pandas")}
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "threads": 1,
        "versions": {"python": platform.python_version(), **versions},
        "bars": BARS,
    }


def tables(arguments):
    """Yields name, N, D, loss of every table."""
    for noise in NOISES:
        for seed in range(arguments.seeds):
            yield f"planted, {100 * noise:g} %, {seed}", *synthetic(noise, seed)
    for path in arguments.table:
        import pandas

        frame = pandas.read_csv(path)
        yield path.name, *(frame[name].to_numpy(float) for name in ("N", "D", "loss"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=("times", "coverage"), default=["times", "coverage"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--peer-python", default=sys.executable, help="a Python >= 3.12 that has the two peers")
    parser.add_argument("--table", nargs="*", type=pathlib.Path, default=[], help="CSV files with N, D, loss")
    parser.add_argument("--seeds", type=int, default=2, help="planted tables of each noise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scipy-starts", type=int, default=4500)
    parser.add_argument("--chinchilla-grid", type=int, default=5, help="values of each of the five parameters")
    parser.add_argument("--draws", type=int, default=1000, help="simulated tables of each noise")
    parser.add_argument("--refits", type=int, default=300, help="behind each simulated interval")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for quiet rounds, a side and task")
    parser.add_argument("--verbose", action="store_true", help="show what the peers print")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)
    # a part that was not asked for keeps its last result, with the facts it was measured under
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if "times" in arguments.parts:
        kept["times"] = {**machine(), "tables": []}
        print(f"{'':22s}{'':>12s}{'one fit':>12s}{'of lmjax':>11s}{'1000 refits':>11s}{'gap':>10s}")
        for name, N, D, loss in tables(arguments):
            kept["times"]["tables"].append(one_table(name, N, D, loss, arguments))
            show(kept["times"]["tables"][-1])
    if "coverage" in arguments.parts:
        kept["coverage"] = {**machine(), "noises": []}
        for noise in (0.002, 0.005, 0.02):
            row = coverage(noise, arguments.draws, arguments.refits)
            kept["coverage"]["noises"].append(row)
            print(f"noise {100 * noise:g} %:", {k: f"{v:.1%}" for k, v in row["coverage"].items()}, flush=True)
    arguments.out.write_text(json.dumps(kept, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

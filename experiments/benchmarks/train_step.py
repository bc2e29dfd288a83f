"""How fast is lmjax's train step next to a plain PyTorch decoder of the same shape, on a CPU?

Both take the same full step in the same run: forward, backward, gradient clipping, AdamW; float32. lmjax's is the
compiled step that `lmjax train` uses, on batches of its own pipeline. The peer is a GPT in eager PyTorch: pre-norm, one
matrix for q, k and v, F.scaled_dot_product_attention, tanh GELU of width 4 D, learned positions, tied head, no biases,
fused AdamW. Rounds of the two alternate; a ratio is the median over rounds of lmjax / PyTorch tokens per second.

    alone      one process with all cores
    per core   one single-threaded process per core, tokens/s summed: how `lmjax sweep` trains

Command:  pip install torch   (2.13.0 here; the peer needs it, lmjax does not)
          python experiments/benchmarks/train_step.py [--shapes 0.2M 0.9M] [--rounds 8] [--out FILE.json]
Time:     about half a minute a shape and mode at 3 rounds, on an idle machine. Each round waits for other programs to
          leave the cores alone, and is taken again if they did not, for at most --patience seconds; the JSON says how
          many rounds were quiet.
Expected: ratio >= 1.0 at 3.7M parameters and above, >= 0.85 below.
Result:   2026-11-21, 2 cores (AMD EPYC), jax 0.10.2, torch 2.13.0; lmjax / PyTorch tokens per second:
              per core (--rounds 3):  0.2M 1.16   0.9M 1.09 (no quiet round)   3.7M 1.09
              alone (--rounds 2):     0.2M 1.30   0.9M 1.06 (no quiet round)   3.7M 0.91: below the goal of 1.0
          2026-11-22, 2 cores (Intel Xeon, AVX-512), the same versions, all rounds quiet, 3 and 4 rounds:
              per core:  3.7M 0.92    alone:  3.7M 0.79   10.8M 0.83 (peak memory 4118 / 1240 MiB): below the goal;
              these are in no file.
          10.8M per core was not measured. The two modes of 2026-11-21 were run one after the other and their
          results put into one file.
          train_step.json has every number with its spread, peak memory, machine and versions.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPES = {  # parameters: d_model, num_layers, num_heads, vocab_size, seq_len, rows of a batch
    "0.2M": (64, 4, 4, 320, 128, 16),
    "0.9M": (128, 4, 4, 512, 256, 8),
    "3.7M": (256, 4, 4, 2048, 256, 8),
    "10.8M": (384, 6, 6, 320, 256, 16),
}
GOAL = {"0.2M": 0.85, "0.9M": 0.85, "3.7M": 1.0, "10.8M": 1.0}
ROUND_SECONDS = 1.0  # of steps per round, process and side
QUIET = 0.1  # cores that other programs may use in a round that counts


def lmjax_step(shape, threads):
    """Returns a function that takes one lmjax step and returns its loss; `threads` are the cores it is pinned to."""
    from lmjax import process

    process.keep_memory()  # as `lmjax train` does
    import jax
    import numpy as np

    from lmjax import config as configs
    from lmjax import trainer
    from lmjax.optim.optimizers import make_optimizer
    from lmjax.resolve import resolve
    from lmjax.sharding import logical_mesh, make_global_batch, make_mesh

    d_model, layers, heads, vocab, seq_len, rows = shape
    overrides = {
        "model.d_model": d_model,
        "model.num_layers": layers,
        "model.num_heads": heads,
        "model.vocab_size": vocab,
        "model.position": "learned",  # this line to use_bias: the peer's
        "model.norm": "layernorm",
        "model.activation": "gelu",
        "model.tie_embeddings": True,
        "model.use_bias": False,
        "data.sources": ("zipf",),
        "data.seq_len": seq_len,
        "data.global_batch_size": rows,
        "duration.tokens": None,
        "duration.steps": 8,
        "mesh.platform": "cpu",
    }
    run = resolve(configs.load(str(ROOT / "configs" / "default.py"), overrides))
    mesh, optimizer = make_mesh(run.config.mesh), make_optimizer(run.config.optimizer)
    init = trainer.make_init(run.model, optimizer, run.batches.rows([0]), run.metrics)
    key = jax.random.key(0)
    like = trainer.abstract_state(run, init, key, mesh)
    state = jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, like))(key)
    with logical_mesh(mesh, run.config.mesh.rules):
        batches = [make_global_batch(lambda i, k=k: run.batches.rows(k * rows + i), mesh, 1, rows) for k in range(8)]
        compiled = trainer.compile_step(run, optimizer, like, batches[0], key)
    count = 0

    def step():
        nonlocal state, count
        state, report = compiled(state, batches[count % 8], key, np.float32([1e-3, 0.1, 1.0]))
        count += 1
        return float(report[trainer.REPORT.index("loss_sum")]) / (rows * seq_len)

    return step


def torch_model(shape):
    """Returns the peer: tokens [B, T] -> logits [B T, V]."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    D, layers, H, V, T, _ = shape

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
            self.qkv, self.proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
            self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

        def forward(self, x):
            B = x.shape[0]
            q, k, v = (a.view(B, T, H, D // H).transpose(1, 2) for a in self.qkv(self.norm1(x)).split(D, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).contiguous().view(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
            self.blocks, self.norm = nn.ModuleList([Block() for _ in range(layers)]), nn.LayerNorm(D, bias=False)
            for weight in self.parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=0.02)

        def forward(self, ids):
            x = self.tokens(ids) + self.positions(torch.arange(T, device=ids.device))
            for block in self.blocks:
                x = block(x)
            return F.linear(self.norm(x), self.tokens.weight).view(-1, V)

    return GPT()


def torch_step(shape, threads, device="cpu"):
    """Returns a function that takes one step of the peer and returns its loss.

    With device "cuda" (see accelerator.py) the step is compiled, in bfloat16 by autocast, and is not waited for.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vocab, seq_len, rows = shape[3:]
    model, on_gpu = torch_model(shape).to(device), device == "cuda"

    def loss_of(ids, targets):
        with torch.autocast(device, torch.bfloat16, enabled=on_gpu):
            return torch.nn.functional.cross_entropy(model(ids), targets)

    compiled = torch.compile(loss_of) if on_gpu else loss_of
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)
    batches = torch.randint(vocab, (8, rows, seq_len + 1), device=device)
    count = 0

    def step():
        nonlocal count
        batch = batches[count % 8]
        count += 1
        loss = compiled(batch[:, :-1], batch[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss if on_gpu else loss.item()

    return step


SIDES = {"lmjax": lmjax_step, "torch": torch_step}


def worker(side, name, cores):
    """Builds a step, then answers every line `K` on stdin with a JSON line about K steps. Ends with its stdin."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    began = time.perf_counter()
    step = SIDES[side](SHAPES[name], len(cores))
    first = step()
    print(json.dumps({"loss": first, "start_seconds": time.perf_counter() - began}), flush=True)
    for line in sys.stdin:
        seconds, usage = [], resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(int(line)):
            began = time.perf_counter()
            loss = step()
            seconds.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        answer = {
            "seconds": statistics.median(seconds),
            "cpu_seconds": cpu / len(seconds),
            "faults": (after.ru_minflt - usage.ru_minflt) / len(seconds),
            "peak_memory_bytes": after.ru_maxrss * 1024,
            "loss": loss,
        }
        print(json.dumps(answer), flush=True)


class Workers:
    """The processes of one side: one with all cores, or one per core."""

    def __init__(self, side, name, places):
        self.tokens = SHAPES[name][4] * SHAPES[name][5]
        self.processes = []
        for cores in places:
            environment = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(len(cores)), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, __file__, "--worker", json.dumps([side, name, cores])]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, env={**os.environ, **environment}, **pipes))
        self.start_seconds = self._answers()[0]["start_seconds"]
        self.steps = 3
        self.steps = max(2, round(ROUND_SECONDS / max(answer["seconds"] for answer in self.round())))

    def round(self):
        """Returns the answers of all processes after `steps` steps of each, taken at the same time."""
        for process in self.processes:
            process.stdin.write(f"{self.steps}\n")
            process.stdin.flush()
        return self._answers()

    def _answers(self):
        lines = [process.stdout.readline() for process in self.processes]
        if not all(lines):
            self.close()
            raise SystemExit("a worker ended early; its error is above (the peer needs `pip install torch`)")
        return [json.loads(line) for line in lines]

    def close(self):
        """Ends the processes."""
        for process in self.processes:
            process.stdin.close()
            process.wait()


def busy_seconds():
    """Returns the CPU seconds of the whole machine since boot, idle and waiting time excluded; None outside Linux."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def others(own_seconds, before, began):
    """Returns how many cores programs other than the workers kept busy since `began`; 0 where that is not known."""
    return 0.0 if before is None else (busy_seconds() - before - own_seconds) / (time.monotonic() - began)


def wait_until_quiet(deadline):
    """Returns once other programs use less than QUIET cores, or at the deadline."""
    quiet = False
    while not quiet and time.monotonic() < deadline:
        before, began = busy_seconds(), time.monotonic()
        time.sleep(0.5)
        quiet = others(0.0, before, began) < QUIET


def compare(name, places, rounds, patience):
    """Alternates rounds of both sides until `rounds` were quiet or `patience` seconds are over.

    Returns:
        tokens/s and memory per side, the ratio with its quartiles, and how many rounds were quiet. With fewer than
        `rounds` quiet ones, all rounds count.
    """
    sides = {}
    try:
        for side in SIDES:
            sides[side] = Workers(side, name, places)
        records, deadline = [], time.monotonic() + patience
        while sum(quiet for quiet, _ in records) < rounds:
            if time.monotonic() > deadline and len(records) >= rounds:
                break
            wait_until_quiet(deadline)
            before, began = busy_seconds(), time.monotonic()
            answers = {side: workers.round() for side, workers in sides.items()}
            own = sum(a["cpu_seconds"] * sides[side].steps for side in sides for a in answers[side])
            records.append((others(own, before, began) < QUIET, answers))
    finally:
        for workers in sides.values():
            workers.close()
    quiet = [answers for is_quiet, answers in records if is_quiet]
    used = quiet if len(quiet) >= rounds else [answers for _, answers in records]
    return summarise(sides, used, len(quiet), len(records))


def summarise(sides, rounds, quiet, total):
    """Returns the record of one comparison; see `compare`."""

    def speeds(side, clock):
        return [sum(sides[side].tokens / answer[clock] for answer in answers[side]) for answers in rounds]

    def ratios(clock):
        return [a / b for a, b in zip(speeds("lmjax", clock), speeds("torch", clock), strict=True)]

    record = {}
    for side in sides:
        answers = [answer for answers in rounds for answer in answers[side]]
        record[side] = {
            "tokens_per_second": round(statistics.median(speeds(side, "seconds"))),
            "tokens_per_cpu_second": round(statistics.median(speeds(side, "cpu_seconds")) / len(sides[side].processes)),
            "peak_memory_mib": round(max(answer["peak_memory_bytes"] for answer in answers) / 2**20),
            "page_faults_per_step": round(statistics.median(answer["faults"] for answer in answers)),
            "start_seconds": round(sides[side].start_seconds, 1),  # imports, compilation, first step
        }
    low, middle, high = statistics.quantiles(ratios("seconds"), n=4)
    record["ratio"] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    record["ratio_of_cpu_time"] = round(statistics.median(ratios("cpu_seconds")), 3)
    return {**record, "rounds": len(rounds), "quiet_rounds": quiet, "rounds_measured": total}


def machine():
    """Returns what the numbers were measured on."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n") if pathlib.Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="parameters")
    parser.add_argument("--modes", nargs="+", choices=("alone", "per core"), default=["alone", "per core"])
    parser.add_argument("--rounds", type=int, default=8, help="of both sides, per shape and mode")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for quiet rounds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    places = {"alone": [cores], "per core": [[core] for core in cores]}
    facts, results = machine(), []
    print(json.dumps(facts))
    print(f"{'':17s}{'lmjax':>10s}{'PyTorch':>10s}  tokens/s   ratio (quartiles)   expected   peak MiB   quiet rounds")
    for name in arguments.shapes:
        for mode in arguments.modes:
            record = compare(name, places[mode], arguments.rounds, arguments.patience)
            results.append({"shape": name, "mode": mode, "expected": GOAL[name], **record})
            ours, peer, ratio = record["lmjax"], record["torch"], record["ratio"]
            print(
                f"{name:>6s} {mode:9s} {ours['tokens_per_second']:10,d}{peer['tokens_per_second']:10,d}"
                f"{ratio['median']:18.2f} ({ratio['quartiles'][0]:.2f}-{ratio['quartiles'][1]:.2f}){GOAL[name]:10.2f}"
                f"{ours['peak_memory_mib']:7d}/{peer['peak_memory_mib']}"
                f"{record['quiet_rounds']:8d} of {record['rounds_measured']}",
                flush=True,
            )
    arguments.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

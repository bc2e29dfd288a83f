"""How well does lmjax use one GPU or TPU? Kernels, resuming, MFU beside PyTorch, packs, and a trace, in one command.

    machine  the device, and the rate of one large bfloat16 matrix product: the ceiling of everything below
    parity   20 steps of each family with plain attention and with the device's kernels: largest difference in the loss
    resume   20 steps without a stop, and 10 of them continued in a new process: are the last states equal in all bits?
    mfu      the compiled step of `lmjax train` for each family and size, bfloat16, AdamW
    torch    a plain GPT in PyTorch of the decoder's shape: torch.compile, autocast, fused AdamW (see train_step.py)
    packs    K small runs in one vmapped step (lmjax/pack.py), tokens/s of all of them
    host     `lmjax train` itself, with its data and metrics, against the bare step: the time that the device waits
    trace    a profile of one step of the 124M decoder, for xprof or ui.perfetto.dev

Rates count the matrix products of lmjax/flops.py, with attention over the full square, for lmjax and PyTorch alike.
Every section has its minutes and runs in processes of its own. Each result is written when it is there: the same
command measures only what is missing or failed, and all of it on another device, commit or version.

Command:  pip install torch   (optional: without it the peer's column says so)
          python experiments/benchmarks/accelerator.py [--sections mfu packs] [--out FILE.json] [--tiny]
          An image that has jax, flax, optax, orbax and NumPy but not lmjax's other packages needs ml_collections, one
          wheel of pure Python; rows are then read in order, as Grain's shuffle is missing:
          pip install --no-deps --target extra ml_collections
          PYTHONPATH=.:extra python experiments/benchmarks/accelerator.py
Hardware: one device, chosen by CUDA_VISIBLE_DEVICES where there are several. The floors are those of an H200.
Time:     at most 25 minutes, the sum of MINUTES; --tiny tries every section with tiny models in 100 s of one CPU core.
Expected: the floors and goals of the table that it prints and writes beside FILE.json as FILE.md.
Result:   not measured on an accelerator yet. 2026-11-22, --tiny on a CPU: every section ends with jax 0.10.2, and with
          jax 0.12.0.1 and flax 0.12.12 without grain, tensorflow-datasets, array-record, tokenizers, pandas and torch.
          With jax 0.11.2, machine, packs and the encoder-decoder of mfu were tried, and work.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

FAMILIES = ("decoder", "encoder", "encoder_decoder")
MINUTES = {"machine": 0.5, "parity": 2.5, "resume": 2, "mfu": 8, "torch": 4.5, "packs": 4, "host": 1, "trace": 1}
SIZES = {  # parameters of the decoder: d_model, num_layers, num_heads, vocab_size, seq_len, rows of a batch
    "10M": (320, 6, 5, 8192, 1024, 8),
    "50M": (512, 8, 8, 50304, 1024, 16),
    "124M": (768, 12, 12, 50304, 1024, 32),
    "350M": (1024, 24, 16, 50304, 1024, 32),
    "1B": (1792, 24, 14, 50304, 1024, 16),
}
PACKS = {  # parameters: shape, runs trained at a time
    "0.2M": ((64, 4, 4, 320, 128, 16), (1, 4, 16, 32, 64)),
    "1M": ((128, 4, 4, 512, 256, 16), (1, 4, 16, 64)),
    "10M": (SIZES["10M"], (1, 4, 8, 16, 64)),
}
PARITY = (256, 4, 4, 512, 256, 16)  # heads of 64: what flash kernels take
TINY = (32, 2, 2, 320, 32, 4)
STEPS = 20  # of the comparisons
# (floor, goal) on one H200
MFU = {"10M": (0.08, 0.12), "50M": (0.25, 0.35), "124M": (0.35, 0.42), "350M": (0.45, 0.50), "1B": (0.48, 0.52)}
PACK_MFU = {("10M", 8): (0.20, 0.30)}
GAIN = {("0.2M", 32): 15, ("1M", 16): 8, ("10M", 8): 2}  # in tokens/s over one run
RATIO = {"124M": 0.9}  # lmjax / PyTorch
DIFFERENCE, GAP = 2e-3, 0.05  # nats; share of a step


def all_cases(tiny: bool = False) -> dict[str, list[list[str]]]:
    """Returns section -> groups of cases; a group is measured in one process."""
    sizes, packs = (["tiny"], {"tiny": (TINY, (1, 2))}) if tiny else (list(SIZES), PACKS)
    return {
        "machine": [["machine"]],
        "parity": [[f"parity/{family}" for family in FAMILIES]],
        "resume": [["resume"]],
        "mfu": [[f"mfu/{size}/{family}" for family in FAMILIES] for size in sizes],
        "torch": [[f"torch/{size}"] for size in sizes],
        "packs": [[f"packs/{size}/{slots}" for slots in many] for size, (_, many) in packs.items()],
        "host": [["host"]],
        "trace": [["trace"]],
    }


# -- In the process of a group


def resolved(family, shape, steps=8, **overrides):
    """Returns the run of a family and a shape; the decoder is the peer's: learned positions, no biases, tied head."""
    from lmjax import config as configs
    from lmjax.resolve import resolve

    d_model, layers, heads, vocab, seq_len, rows = shape
    settings = {
        "model.d_model": d_model,
        "model.num_layers": layers // 2 if family == "encoder_decoder" else layers,
        "model.num_heads": heads,
        "model.vocab_size": vocab,
        "model.dtype": "bfloat16",
        "data.sources": ("zipf",),
        "data.seq_len": seq_len,
        "data.global_batch_size": rows,
        "data.max_epochs": 1e6,
        "duration.tokens": None,
        "duration.steps": steps,
        "evaluation.max_tokens": 2048,
        "checkpoint.every_seconds": None,
    }
    settings |= {"model.position": "learned"} if family == "decoder" else {}
    settings |= {"data.num_sentinels": 64} if family == "encoder_decoder" and seq_len > 512 else {}  # for its spans
    return resolve(configs.load(str(ROOT / "configs" / f"{family}.py"), {**settings, **overrides}))


class InOrder:
    """Row k of `count`, over and over; stands for the shuffled order where Grain is not installed."""

    def __init__(self, count):
        self.count = count

    def __getitem__(self, k):
        return k % self.count


def set_up():
    """Prepares this process as `lmjax train` does; without Grain, rows are read in order."""
    from lmjax.data import pipeline
    from lmjax.process import keep_memory, use_compilation_cache

    keep_memory()
    use_compilation_cache()
    if importlib.util.find_spec("grain") is None:
        pipeline._order = lambda counts, *_: InOrder(sum(counts))


class Step:
    """The compiled step of a run and its state; `take()` takes a step of its data without waiting for it."""

    def __init__(self, run):
        import jax

        from lmjax import trainer
        from lmjax.sharding import make_global_batch, make_mesh

        mesh, rows = make_mesh(run.config.mesh), run.config.data.global_batch_size
        self.run = run = trainer.on_devices(run, mesh)
        programs = trainer.Programs(run, mesh)
        self.compiled, self.seconds, self.key = programs.step(run), programs.seconds, jax.random.key(0)
        self.state, self.count = programs.init(self.key), 0
        self.batches = [
            make_global_batch(lambda i, k=k: run.batches.rows(k * rows + i), mesh, 1, rows) for k in range(8)
        ]

    def take(self):
        import numpy as np

        batch, arguments = self.batches[self.count % 8], np.float32([1e-3, 0.1, 1.0])
        self.state, _ = self.compiled(self.state, batch, self.key, arguments)
        self.count += 1

    def wait(self):
        import jax

        jax.block_until_ready(self.state)
        if not self.state["finite"]:
            raise FloatingPointError("the loss, the gradient or a parameter is not finite")


def seconds_of(take, wait, budget):
    """Returns the median over five blocks of the seconds of a step; the host waits only at the end of a block."""
    for _ in range(3):
        take()
    wait()
    began = time.perf_counter()
    take()
    wait()
    count, times = max(2, round(budget / 5 / (time.perf_counter() - began))), []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            take()
        wait()
        times.append((time.perf_counter() - began) / count)
    return statistics.median(times)


def rates(run, seconds, runs=1):
    """Returns tokens/s, FLOP/s and MFU of `runs` runs that take a step together in `seconds`."""
    from lmjax.hardware import peak_flops

    peak, flops = peak_flops("bfloat16"), runs * run.derived["flops_per_step"] / seconds
    tokens = runs * run.derived["tokens_per_step"] / seconds
    return {"tokens_per_second": tokens, "flops_per_second": flops, "mfu": flops / peak if peak else None}


def kernels_of(run):
    """Returns the attention kernels of a run's layers, as text."""
    from lmjax.models import attention_kernels, kernels

    return kernels.report(attention_kernels(run.model, run.batches.rows([0])))


def measure_machine(tiny):
    import jax
    import jax.numpy as jnp

    from lmjax.hardware import environment_record, peak_flops

    if jax.device_count() != 1:
        raise SystemExit(f"expected one device, got {jax.device_count()}; set CUDA_VISIBLE_DEVICES=0")
    n = 256 if tiny else 8192
    product = jax.jit(lambda a, b: jax.lax.dot(a, b))
    a, b = (jax.random.normal(jax.random.key(k), (n, n), jnp.bfloat16) for k in range(2))
    out = [a]

    def take():
        out[0] = product(a, b)

    seconds = seconds_of(take, lambda: jax.block_until_ready(out[0]), 0.05 if tiny else 3.0)
    facts = environment_record()
    has_torch = importlib.util.find_spec("torch") is not None
    facts["versions"]["torch"] = importlib.metadata.version("torch") if has_torch else ""
    return {**facts, "product": n, "flops_per_second": 2 * n**3 / seconds, "peak": peak_flops("bfloat16")}


def measure_parity(tiny, family):
    losses, kernels = {}, {}
    for attention in ("plain", "auto"):
        shape = TINY if tiny else PARITY
        step = Step(resolved(family, shape, **{"mesh.attention": attention}))
        kernels[attention], losses[attention] = kernels_of(step.run), []
        for _ in range(STEPS):
            step.take()
            step.wait()
            losses[attention].append(float(step.state["loss_sum"]) / float(step.state["loss_weight"]))
    difference = max(abs(a - b) for a, b in zip(losses["plain"], losses["auto"], strict=True))
    ends = {"first_loss": losses["plain"][0], "last_loss": losses["plain"][-1]}
    return {"kernels": kernels["auto"], "difference": difference, **ends}


def measure_resume(tiny):
    from lmjax.config import DEFAULTS

    more = {"checkpoint.every_steps": STEPS // 2, "checkpoint.keep": None}
    more |= {"mesh.deterministic": True} if "mesh.deterministic" in DEFAULTS else {}
    run = resolved("decoder", TINY if tiny else PARITY, STEPS, **more)
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "resumed"
        run.write(whole)
        subprocess.run([sys.executable, __file__, "--train", whole], check=True)
        shutil.copytree(whole, resumed)
        shutil.rmtree(resumed / "checkpoints" / str(STEPS))
        for name in ("summary.json", "status.json"):
            (resumed / name).unlink()
        subprocess.run([sys.executable, __file__, "--train", resumed], check=True)
        different, total = compare_states(run, whole, resumed)
    deterministic = "mesh.deterministic" in DEFAULTS
    return {"different_arrays": different, "arrays": total, "deterministic": deterministic}


def train(run_dir):
    """Trains an existing run directory as `lmjax train --run-dir` does; returns the exit code."""
    from lmjax import config as configs
    from lmjax import trainer
    from lmjax.resolve import resolve

    set_up()
    return trainer.train(resolve(configs.load(str(run_dir / "config.json"), {})), run_dir, show_progress=False)


def compare_states(run, a, b):
    """Returns (number of arrays of the two last checkpoints that differ, number of arrays)."""
    import jax
    import numpy as np

    from lmjax import trainer
    from lmjax.checkpoint import Checkpoints
    from lmjax.sharding import make_mesh

    like, states = trainer.Programs(run, make_mesh(run.config.mesh)).like, []
    for run_dir in (a, b):
        checkpoints = Checkpoints(run_dir / "checkpoints", None)
        state, record = checkpoints.restore_newest(like)
        checkpoints.close()
        if record["step"] != run.steps:
            raise RuntimeError(f"{run_dir}: expected a checkpoint of step {run.steps}, got {record['step']}")
        states.append(jax.tree.leaves(state))
    return sum(not np.array_equal(x, y) for x, y in zip(*states, strict=True)), len(states[0])


def measure_mfu(tiny, size, family):
    step = Step(resolved(family, TINY if tiny else SIZES[size]))
    seconds = seconds_of(step.take, step.wait, 0.05 if tiny else 3.0)
    use = step.compiled.memory_analysis()
    return {
        "n_total": step.run.derived["n_total"],
        **rates(step.run, seconds),
        "attention": kernels_of(step.run),
        "compile_seconds": step.seconds,
        "memory_bytes": use and use.argument_size_in_bytes + use.temp_size_in_bytes,
    }


def train_step():
    """Returns the module train_step.py beside this file, which has the peer."""
    spec = importlib.util.spec_from_file_location("train_step", pathlib.Path(__file__).with_name("train_step.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure_torch(tiny, size):
    if importlib.util.find_spec("torch") is None:
        return {"missing": "PyTorch is not installed"}
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # JAX, asked for the peak rate, would take the memory
    import torch

    from lmjax.hardware import accelerators

    kind = accelerators() or "cpu"
    if kind == "tpu" or (kind == "gpu" and not torch.cuda.is_available()):
        return {"missing": f"this PyTorch cannot use the {kind.upper()}"}
    device = kind.replace("gpu", "cuda")
    shape = TINY if tiny else SIZES[size]
    run = resolved("decoder", shape)
    torch.set_float32_matmul_precision("high")
    take = train_step().torch_step(shape, torch.get_num_threads(), device)
    wait = torch.cuda.synchronize if device == "cuda" else int
    return rates(run, seconds_of(take, wait, 0.05 if tiny else 3.0))


def measure_packs(tiny, size, slots):
    import jax
    import numpy as np

    from lmjax.pack import Program

    shape, slots, budget = TINY if tiny else PACKS[size][0], int(slots), 0.05 if tiny else 3.0
    run = resolved("decoder", shape)
    if slots == 1:
        step = Step(run)
        return rates(run, seconds_of(step.take, step.wait, budget))
    program = Program(run, slots)
    if not program.fits():
        raise MemoryError(f"{slots} runs do not fit in memory")
    stack = program.empty()
    for slot in range(slots):
        stack = program.put(stack, np.int32(slot), program.alone.init(jax.random.key(slot)))
    state, keys = [stack], program.keys(range(slots))
    batch = program.batch([(run, 0)] * slots)
    arguments = np.tile(np.float32([1e-3, 0.1, 1.0]), (slots, 1))

    def take():
        state[0], _ = program.step(state[0], batch, keys, arguments)

    def wait():
        if not jax.device_get(state[0]["finite"]).all():
            raise FloatingPointError("the loss, the gradient or a parameter is not finite")

    return rates(run, seconds_of(take, wait, budget), slots)


def measure_host(tiny):
    from lmjax import run_record, trainer

    run = resolved("decoder", TINY if tiny else SIZES["10M"], 60 if tiny else 600)
    with tempfile.TemporaryDirectory() as folder:
        if trainer.train(run, pathlib.Path(folder) / "run", show_progress=False) != trainer.DONE:
            raise RuntimeError("the run did not finish")
        trained = run_record.read_json(pathlib.Path(folder) / "run" / "summary.json")["tokens_per_second"]
    step = Step(run)
    bare = rates(run, seconds_of(step.take, step.wait, 0.05 if tiny else 3.0))["tokens_per_second"]
    return {"tokens_per_second": trained, "bare_tokens_per_second": bare, "gap": 1 - trained / bare}


def measure_trace(tiny, folder):
    import jax

    step = Step(resolved("decoder", TINY if tiny else SIZES["124M"]))
    for _ in range(3):
        step.take()
    step.wait()
    shutil.rmtree(folder, ignore_errors=True)
    with jax.profiler.trace(str(folder)):
        step.take()
        step.wait()
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {"folder": str(folder), "files": len(files), "bytes": sum(path.stat().st_size for path in files)}


def measure(case, tiny, folder):
    """Returns the record of a case, e.g. "mfu/124M/decoder"."""
    section, *rest = case.split("/")
    return globals()[f"measure_{section}"](tiny, *rest, *([folder] if section == "trace" else []))


def run_group(cases, tiny, folder):
    """Measures cases in this process and prints a JSON line for each; a case that fails does not stop the others."""
    set_up()
    for case in cases:
        began = time.monotonic()
        try:
            record = measure(case, tiny, folder)
        except Exception as error:  # noqa: BLE001 - recorded, shown in the table, measured again by the next command
            record = {"error": f"{type(error).__name__}: {error}"[:1000]}
        print(json.dumps({"case": case, **record, "seconds": time.monotonic() - began}), flush=True)


# -- In the process of the command


def start_group(cases, tiny, folder, seconds):
    """Yields (case, record) from a process that measures these cases and is killed after `seconds`."""
    command = [sys.executable, __file__, "--cases", *cases, "--folder", str(folder), *["--tiny"] * tiny]
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if tiny else {}  # compile in a sixth of the time
    options = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **quick}, "start_new_session": True}
    process = subprocess.Popen(command, **options)

    def kill():
        """Ends the process and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        left = dict.fromkeys(cases)
        for line in process.stdout:
            if line.startswith('{"case"'):
                record = json.loads(line)
                del left[case := record.pop("case")]
                yield case, record
        code = process.wait()
        why = "its section's minutes were over" if code == -9 else f"its process ended with code {code}"
        yield from ((case, {"error": why}) for case in left)
    finally:
        timer.cancel()
        kill()
        process.wait()


def measure_all(out, sections, tiny=False, minutes=MINUTES, start=start_group):
    """Measures what `out` lacks, section by section, and writes `out` and its table after every result.

    Args:
        out: JSON file; the table is written beside it as .md, the trace into a folder beside it.
        sections: names from MINUTES; the machine is always measured.
        tiny: tiny models.
        minutes: by section; a group of cases is not started after them.
        start: stands for `start_group`.

    Returns:
        The results: {"machine": facts, "tiny": bool, "results": {case: record}}.
    """
    ((_, machine),) = start(["machine"], tiny, "", 60 * minutes["machine"])
    if "error" in machine:
        raise SystemExit(f"the device could not be used: {machine['error']}")
    found = {"tiny": tiny, "machine": machine, "results": {}}
    if out.exists():
        before = json.loads(out.read_text("utf8"))
        if identity(before) == identity(found):
            found["results"] = before["results"]
        else:
            print(f"{out} has results of another device, commit or version: everything is measured again", flush=True)
    folder = out.with_name(f"{out.stem}-trace")
    for section, groups in all_cases(tiny).items():
        end = time.monotonic() + 60 * minutes[section]
        for group in groups if section in sections and section != "machine" else ():
            left = [case for case in group if "error" in found["results"].get(case, {"error": ""})]
            for case, record in start(left, tiny, folder, end - time.monotonic()) if left else ():
                found["results"][case] = record
                write(out, found)
                print(f"{case}: {record.get('error', 'measured')}", flush=True)
    write(out, found)
    return found


def identity(found):
    """What two files must have in common for their results to be of one measurement."""
    return found["tiny"], *(found["machine"].get(name) for name in ("device", "commit", "versions"))


def write(out, found):
    """Writes the results and their table; a kill leaves the files of the result before."""
    for path, text in ((out, json.dumps(found, indent=1) + "\n"), (out.with_suffix(".md"), table(found))):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, "utf8")
        partial.replace(path)


def table(found):
    """Returns the results as Markdown, beside floors and goals."""
    machine, results = found["machine"], found["results"]
    ceiling = machine["flops_per_second"]
    of_peak = f", {ceiling / machine['peak']:.0%} of the data sheet's" if machine["peak"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    lines = [
        f"# {machine['device']}" + ", tiny models" * found["tiny"],
        "",
        f"{machine['finished']}, commit {machine['commit'] or 'unknown'}; {versions}.",
        f"One bfloat16 product of {machine['product']} x {machine['product']} matrices: {ceiling / 1e12:.3g} TFLOP/s"
        f"{of_peak}. Floors and goals are for one H200.",
        "",
        "| check | result | floor | |",
        "|---|---|---|---|",
    ]

    def shown(case, *shows):
        """A cell for each function of the record; without a measurement, the reason in the first."""
        record = results.get(case, {"error": "not measured"})
        if reason := record.get("error", record.get("missing")):
            return [" ".join(reason.split())[:150].replace("|", "/"), *[""] * (len(shows) - 1)]
        return [show(record) for show in shows]

    def check(name, case, show, floor, passes):
        record = results.get(case, {"error": ""})
        good = "error" not in record and passes(record)
        lines.append(f"| {name} | {shown(case, show)[0]} | {floor} | {'yes' if good else 'NO'} |")

    for family in FAMILIES:
        check(
            f"loss with the device's kernels, {family}",
            f"parity/{family}",
            lambda r: f"{r['difference']:.1e} nats from plain; {r['kernels']}",
            f"{DIFFERENCE:g}",
            lambda r: (
                r["difference"] <= DIFFERENCE and any(f"{name} (" in r["kernels"] for name in ("cudnn", "splash"))
            ),
        )
    check(
        "resumed in a new process",
        "resume",
        lambda r: (
            f"{r['different_arrays']} of {r['arrays']} arrays differ"
            + ", without mesh.deterministic" * (not r["deterministic"])
        ),
        "0",
        lambda r: r["different_arrays"] == 0,
    )
    check("the device waits for the host", "host", lambda r: f"{r['gap']:.1%}", f"{GAP:.0%}", lambda r: r["gap"] <= GAP)
    check("trace of one step", "trace", lambda r: f"`{r['folder']}`, {r['bytes']} bytes", "", lambda r: r["files"] > 0)

    lines += ["", "| model | parameters | tokens/s | MFU | of the product | floor | goal | PyTorch | lmjax / PyTorch "]
    lines[-1] += "| attention |"
    lines.append("|---|---|---|---|---|---|---|---|---|---|")
    for size, family in [case.split("/")[1:] for group in all_cases(found["tiny"])["mfu"] for case in group]:
        case, peer = f"mfu/{size}/{family}", f"torch/{size}"
        floor, goal = MFU.get(size, (None, None)) if family == "decoder" else (None, None)
        ratio = ""
        if family == "decoder" and {case, peer} <= set(results):
            speeds = [results[name].get("tokens_per_second", math.nan) for name in (case, peer)]
            ratio = "" if math.isnan(sum(speeds)) else f"{speeds[0] / speeds[1]:.2f}"
            ratio += f" (floor {RATIO[size]})" if ratio and size in RATIO else ""
        parameters, speed, mfu, share, attention = shown(
            case,
            lambda r: f"{r['n_total'] / 1e6:.1f}M",
            lambda r: f"{r['tokens_per_second']:,.0f}",
            _mfu,
            lambda r: f"{r['flops_per_second'] / ceiling:.0%}",
            lambda r: r["attention"],
        )
        (theirs,) = (
            shown(peer, lambda r: f"{r['tokens_per_second']:,.0f}, MFU {_mfu(r)}") if family == "decoder" else [""]
        )
        cells = [f"{size} {family}", parameters, speed, mfu, share, _percent(floor), _percent(goal), theirs, ratio]
        cells.append(attention)
        lines.append(f"| {' | '.join(cells)} |")

    lines += ["", "| packed decoder | runs at a time | tokens/s of all | MFU | over one run | floor |"]
    lines.append("|---|---|---|---|---|---|")
    for size, slots in [case.split("/")[1:] for group in all_cases(found["tiny"])["packs"] for case in group]:
        case, alone = f"packs/{size}/{slots}", results.get(f"packs/{size}/1", {}).get("tokens_per_second")
        key = size, int(slots)
        floors = [f"{GAIN[key]} times"] if key in GAIN else []
        floors += [f"MFU {_percent(PACK_MFU[key][0])} (goal {_percent(PACK_MFU[key][1])})"] if key in PACK_MFU else []
        speed, mfu, gain = shown(
            case,
            lambda r: f"{r['tokens_per_second']:,.0f}",
            _mfu,
            lambda r: f"{r['tokens_per_second'] / alone:.2f}" if alone else "",  # noqa: B023
        )
        cells = [size, slots, speed, mfu, gain, ", ".join(floors)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(share):
    return "" if share is None else f"{share:.0%}"


def _mfu(record):
    return "unknown peak" if record["mfu"] is None else f"{record['mfu']:.1%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=MINUTES, default=list(MINUTES), help="default: all")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("accelerator.json"))
    parser.add_argument("--tiny", action="store_true", help="try every section with tiny models")
    parser.add_argument("--cases", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        return train(arguments.train)
    if arguments.cases:
        return run_group(arguments.cases, arguments.tiny, arguments.folder)
    print(table(measure_all(arguments.out, arguments.sections, arguments.tiny)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

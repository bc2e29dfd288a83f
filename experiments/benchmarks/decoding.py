"""How fast is lmjax's greedy decoding next to transformers' generate, with the same weights, on a CPU?

Both write 128 new tokens after prompts (sources) of 32 random tokens, batches of 1 and 16, float32, no stop id; every
side in a process of its own with all cores. transformers runs as its users run it: from_pretrained, sdpa attention,
dynamic cache, torch.inference_mode. lmjax runs what `lmjax generate` runs, generate_ids, on the same folder as
`lmjax import` reads it; compilation is not counted (start_seconds has it), Python around the compiled loop is. Rounds
of the two alternate; a ratio is the median over rounds of lmjax / transformers tokens per second. The ids of both are
compared.
    gpt2   learned positions, tied table; d_model 256, 6 layers, 8 heads, vocabulary 8192
    t5     v1.1: relative positions, gated GELU, untied; d_model 256, 4 + 4 layers, 8 heads, vocabulary 8192

Command:  pip install 'lmjax[hf]' torch   (torch for the peer alone)
          python experiments/benchmarks/decoding.py [--models gpt2 t5] [--batches 1 16] [--rounds 8] [--out FILE.json]
Time:     about a minute a model and batch at 8 rounds, on an idle machine. Each round waits for other programs to
          leave the cores alone, for at most --patience seconds; the JSON says how many rounds were quiet. Do not read
          anything into a run on a busy machine: torch's threads wait for each other by spinning.
Expected: ratio >= 1.5 everywhere.
Result:   decoding.json (--rounds 5, 2026-11-21, 2 cores): gpt2 2.67 at batch 1, 1.78 at 16; t5 3.50 and 2.11
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import train_step as harness  # beside this file: how rounds are kept quiet

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT, NEW, GOAL = 32, 128, 1.5
SIZES = {
    "gpt2": {"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 256, "vocab_size": 8192},
    "t5": {
        "d_model": 256,
        "d_kv": 32,
        "num_heads": 8,
        "d_ff": 1024,
        "num_layers": 4,
        "vocab_size": 8192,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
}


def prompts(batch):
    """Returns ids [batch][PROMPT]."""
    import numpy as np

    return np.random.default_rng(0).integers(3, 8192, (batch, PROMPT)).tolist()


def make(name, folder):
    """Writes random weights as a Hugging Face folder, and imports it."""
    import torch
    import transformers

    from lmjax import hf

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    ids = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}
    if name == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SIZES[name], **ids))
    else:
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SIZES[name], **ids))
        model.lm_head.weight = torch.nn.Parameter(torch.randn(8192, 256) * 0.05)
    model.save_pretrained(folder / "published")
    hf.import_run(folder / "published", folder / "run")


def lmjax_side(name, folder, batch, threads):
    """Returns a function that decodes one batch and returns its new ids."""
    from lmjax import process

    process.keep_memory()  # as `lmjax generate` does
    from lmjax import trained
    from lmjax.decoding.ids import Settings, generate_ids

    run = trained.load(folder / "run")
    settings = Settings(max_new_tokens=NEW, stop_ids=())
    start = (0,) if name == "t5" else ()

    def decode():
        found = generate_ids(run.config.model, run.params, prompts(batch), settings, batch, decoder_start=start)
        return [list(one.ids) for [one] in found]

    return decode


def transformers_side(name, folder, batch, threads):
    """Returns a function that decodes one batch and returns its new ids."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    kind = transformers.AutoModelForCausalLM if name == "gpt2" else transformers.AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder / "published").eval()
    ids = torch.tensor(prompts(batch))
    mask = torch.ones_like(ids)

    def decode():
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=NEW)
        return out[:, -NEW:].tolist()

    return decode


SIDES = {"lmjax": lmjax_side, "transformers": transformers_side}


def worker(side, name, folder, batch, cores):
    """Builds a side, then answers every line on stdin with a JSON line about one decoding. Ends with its stdin."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    began = time.perf_counter()
    decode = SIDES[side](name, pathlib.Path(folder), batch, len(cores))
    decode()
    print(json.dumps({"start_seconds": time.perf_counter() - began}), flush=True)
    for _ in sys.stdin:
        usage, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        ids = decode()
        seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        assert all(len(row) == NEW for row in ids)
        cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
        answer = {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_bytes": after.ru_maxrss * 1024, "ids": ids}
        print(json.dumps(answer), flush=True)


def environment(threads):
    """Returns the environment variables of a process that measures."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    settings = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    return {**os.environ, **offline, **settings}


class Worker:
    """The process of one side."""

    def __init__(self, side, name, folder, batch, cores):
        command = [sys.executable, __file__, "--worker", json.dumps([side, name, str(folder), batch, cores])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment(len(cores)), **pipes)
        self.start_seconds = self._answer()["start_seconds"]

    def round(self):
        """Returns the answer about one decoding."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended early; its error is above (the peer needs torch and transformers)")
        return json.loads(line)

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def compare(name, folder, batch, cores, rounds, patience):
    """Alternates the sides until `rounds` were quiet or `patience` seconds are over; with fewer quiet ones all count.

    Returns:
        tokens/s, memory and start of each side, the ratio with its quartiles, the share of equal ids.
    """
    sides, records = {}, []
    try:
        for side in SIDES:
            sides[side] = Worker(side, name, folder, batch, cores)
        deadline = time.monotonic() + patience
        while sum(quiet for quiet, _ in records) < rounds:
            if time.monotonic() > deadline and len(records) >= rounds:
                break
            harness.wait_until_quiet(deadline)
            before, began = harness.busy_seconds(), time.monotonic()
            order = list(sides) if len(records) % 2 else list(sides)[::-1]
            answers = {side: sides[side].round() for side in order}
            own = sum(answer["cpu_seconds"] for answer in answers.values())
            records.append((harness.others(own, before, began) < harness.QUIET, answers))
    finally:
        for side in sides.values():
            side.close()
    quiet = [answers for is_quiet, answers in records if is_quiet]
    used = quiet if len(quiet) >= rounds else [answers for _, answers in records]
    return summarise(sides, batch, used, len(quiet), len(records))


def summarise(sides, batch, rounds, quiet, total):
    """Returns the record of one comparison; see `compare`."""
    record = {}
    for side, process in sides.items():
        answers = [answers[side] for answers in rounds]
        record[side] = {
            "tokens_per_second": round(statistics.median(batch * NEW / answer["seconds"] for answer in answers)),
            "tokens_per_cpu_second": round(statistics.median(batch * NEW / a["cpu_seconds"] for a in answers)),
            "peak_memory_mib": round(max(answer["peak_memory_bytes"] for answer in answers) / 2**20),
            "start_seconds": round(process.start_seconds, 1),  # imports, loading, compilation, first decoding
        }
    ratios = [answers["transformers"]["seconds"] / answers["lmjax"]["seconds"] for answers in rounds]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    record["ratio"] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    record["ratio_of_cpu_time"] = round(
        statistics.median(a["transformers"]["cpu_seconds"] / a["lmjax"]["cpu_seconds"] for a in rounds), 3
    )
    pairs = [zip(*(rounds[-1][side]["ids"][b] for side in SIDES), strict=True) for b in range(batch)]
    record["equal_ids"] = sum(a == b for pair in pairs for a, b in pair) / (batch * NEW)
    return {**record, "rounds": len(rounds), "quiet_rounds": quiet, "rounds_measured": total}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--rounds", type=int, default=8, help="of both sides, per model and batch")
    parser.add_argument("--cores", type=int, default=0, help="cores of each process (default: all)")
    parser.add_argument("--patience", type=float, default=120, help="seconds to wait for quiet rounds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)
    if arguments.make:
        return make(arguments.make[0], pathlib.Path(arguments.make[1]))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))
    cores = cores[: arguments.cores or None]
    facts, results = harness.machine(), []
    facts["versions"]["transformers"] = importlib.metadata.version("transformers")
    facts["cores"] = len(cores)
    print(json.dumps(facts))
    print(f"{'':10s}{'lmjax':>10s}{'transformers':>14s}  tokens/s   ratio (quartiles)   bar   equal ids   quiet rounds")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            # In a process of its own, for what this one has in memory would count as the workers' peak.
            subprocess.run([sys.executable, __file__, "--make", name, folder], env=environment(1), check=True)
            for batch in arguments.batches:
                record = compare(name, folder, batch, cores, arguments.rounds, arguments.patience)
                results.append({"model": name, "batch": batch, "new_tokens": NEW, "expected": GOAL, **record})
                ours, peer, ratio = record["lmjax"], record["transformers"], record["ratio"]
                print(
                    f"{name:>5s} x{batch:<3d} {ours['tokens_per_second']:10,d}{peer['tokens_per_second']:14,d}"
                    f"{ratio['median']:18.2f} ({ratio['quartiles'][0]:.2f}-{ratio['quartiles'][1]:.2f}){GOAL:10.2f}"
                    f"{record['equal_ids']:10.1%}{record['quiet_rounds']:8d} of {record['rounds_measured']}",
                    flush=True,
                )
    arguments.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

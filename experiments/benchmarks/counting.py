"""How much memory does counting an n-gram model take?

Tokens are independent, with probabilities in proportion to 1 / rank, so nearly all long n-grams are distinct: the worst
case. The peak is the resident memory of the process, with JAX started (0.2 GiB) and without a trainer.

Command:  python experiments/benchmarks/counting.py [--tokens 2e7] [--order 5] [--vocab 32000]
Time:     about 2 minutes for 20M tokens of order 5, on one core
Expected: a peak below 0.6 GiB + 20 bytes x N, and CPU seconds in proportion to the tokens
Results:  on one core of a loaded 2-core CPU (AMD EPYC), 2026-11-23
              defaults                                 N 106,320,914   tables 0.79 GiB   peak 1.71 GiB   100 CPU s
              --tokens 1e7 --order 3                   N  16,839,948   tables 0.13 GiB   peak 0.75 GiB    12 CPU s
              --order 2                                N   7,225,223   tables 0.05 GiB   peak 0.56 GiB     9 CPU s
              --tokens 5e6 --order 7 --vocab 128000    N  50,206,240   tables 0.37 GiB   peak 1.16 GiB    55 CPU s
          Before counts were sorted in files, the first took 4.76 GiB and 63 CPU s with --tokens 1e7, now 1.23 and 44.
"""

import argparse
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.models import ngram


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=2e7)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--vocab", type=int, default=32_000)
    args = parser.parse_args()
    jnp.zeros(1).block_until_ready()
    rng, began = np.random.default_rng(0), time.process_time()
    cdf_V = np.cumsum(1 / np.arange(1, args.vocab + 1))
    counter, shape = ngram.Counter(args.order, args.vocab), (20, 1001)  # windows of 1000 predicted tokens
    for _ in range(round(args.tokens / 20_000)):
        ids = np.searchsorted(cdf_V / cdf_V[-1], rng.random(shape)).astype(np.int32)
        counter.add({"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": np.ones((20, 1000), np.float32)})
    params, facts = ngram.estimate(*counter.counts(), args.vocab, dtype=np.float32)
    n, tables = ngram.stored(params), sum(x.nbytes for x in jax.tree.leaves(params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"n-grams of each order: {[f['ngrams'] for f in facts]}; N = {n:,}; {time.process_time() - began:.0f} CPU s")
    print(f"tables {tables / 2**30:.2f} GiB, {tables / n:.1f} bytes x N; peak {peak / 2**30:.2f} GiB")
    print(f"peak less 0.6 GiB: {(peak - 0.6 * 2**30) / n:.1f} bytes x N, ", end="")
    print(f"{(peak - 0.6 * 2**30) / facts[-1]['ngrams']:.0f} bytes x n-grams of the highest order")


if __name__ == "__main__":
    main()

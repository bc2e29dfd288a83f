"""Multitask sparse parity as the quantization model sees it: a generator, and exact losses. Trains nothing.

Task k of K comes with probability p_k ~ k^-(alpha + 1); its label is the parity of its own few bits of an input of
`bits` random bits, told apart by a one-hot task code. A parity has no half-way: a network knows a task or guesses. So
a model with room for n quanta has learnt exactly the n most frequent tasks. Each task's loss is a step in n; their mean
is a power law,

    L(n) = sum_{k > n} p_k ln 2 + sum_{k <= n} p_k residual  ~  n^-alpha.

arXiv:2303.13506. Here it plants a truth that is sharp in the loss of every task and smooth on average.
"""

import math

import numpy as np

GUESSING = math.log(2)  # nats: a parity without its bits is a fair coin


def frequencies(num_tasks: int, alpha: float) -> np.ndarray:
    """Probabilities of the tasks by rank, [K]: k^-(alpha + 1), normalised.

    Example:
        >>> frequencies(3, 0.0).round(3).tolist()
        [0.545, 0.273, 0.182]
    """
    weight = np.arange(1, num_tasks + 1) ** -(alpha + 1.0)
    return weight / weight.sum()


def subsets(num_tasks: int, bits: int, size: int, seed: int) -> np.ndarray:
    """The bits each task looks at, int [K, size], distinct within a task."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    return np.stack([rng.choice(bits, size, replace=False) for _ in range(num_tasks)])


def generate(
    count: int, tasks: np.ndarray, bits: int, alpha: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws examples.

    Args:
        count: examples.
        tasks: bits of each task, [K, size], from `subsets`.
        bits: random bits of an input.
        alpha: tasks come with probability ~ k^-(alpha + 1).
        seed: of numpy's Philox generator.

    Returns:
        task [count], input uint8 [count, K + bits] (one-hot task, then bits), label uint8 [count].

    Example:
        >>> tasks = subsets(4, 10, 3, seed=0)
        >>> task, x, y = generate(5, tasks, 10, 0.4, seed=1)
        >>> x.shape, all(y[i] == x[i, 4 + tasks[task[i]]].sum() % 2 for i in range(5))
        ((5, 14), True)
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 1]))
    task = rng.choice(len(tasks), count, p=frequencies(len(tasks), alpha))
    random = rng.integers(0, 2, (count, bits), dtype=np.uint8)
    label = np.take_along_axis(random, tasks[task], axis=1).sum(axis=1) % 2
    return task, np.concatenate([np.eye(len(tasks), dtype=np.uint8)[task], random], axis=1), label.astype(np.uint8)


def task_losses(capacity, num_tasks: int, residual: float = 0.0) -> np.ndarray:
    """Loss of every task for models with room for so many quanta, nats, [..., K]: ln 2 until learnt, then `residual`.

    Example:
        >>> task_losses(np.array([1, 2]), 3).round(3).tolist()
        [[0.0, 0.693, 0.693], [0.0, 0.0, 0.693]]
    """
    rank = np.arange(1, num_tasks + 1)
    return np.where(rank <= np.asarray(capacity, float)[..., None], residual, GUESSING)


def mean_loss(capacity, num_tasks: int, alpha: float, residual: float = 0.0) -> np.ndarray:
    """Loss over the mixture of tasks, nats: close to a power law n^-alpha while n is far below the number of tasks.

    Example (the exponent between 100 and 1000 quanta, of a million tasks, alpha = 0.4):
        >>> few, many = mean_loss(np.array([100, 1000]), 10**6, 0.4)
        >>> round(float(np.log10(few / many)), 2)
        0.42
    """
    known = np.concatenate([[0.0], np.cumsum(frequencies(num_tasks, alpha))])
    share = known[np.clip(np.floor(np.asarray(capacity, float)), 0, num_tasks).astype(int)]
    return (1 - share) * GUESSING + share * residual


def evaluations(
    capacities, alpha: float, seeds: int, num_tasks: int, ranks, items: int, spread: float, residual: float, seed: int
):
    """A table of evaluations of models with these capacities on the tasks of these ranks, and on their mixture.

    The capacity of each run is the nominal one times exp(spread normal): seeds differ in what they have learnt.

    Args:
        capacities: quanta a model of each size has room for; N = 1000 per quantum, D = 20 N.
        alpha, num_tasks, residual: as above.
        seeds: runs of each size.
        ranks: tasks evaluated, named parity_<rank>; the mixture is named parity_mean.
        items: of each evaluation; accuracies are counted from as many draws.
        spread: standard deviation of ln capacity over seeds.
        seed: of numpy's Philox generator.

    Returns:
        pandas frame with the columns of lmjax.evals.table that the analysis reads: accuracy (chance 0.5) and
        choice_log_probability.
    """
    import pandas

    rng = np.random.Generator(np.random.Philox(key=[seed, 2]))
    weight, rows = frequencies(num_tasks, alpha), []
    for size, capacity in enumerate(capacities):
        for run in range(seeds):
            known = task_losses(capacity * np.exp(spread * rng.standard_normal()), num_tasks, residual)
            n_total = 1000 * capacity
            facts = {"run_id": f"n{size}-s{run}", "step": 1, "shots": 0, "n": items, "seed": run, "status": "done"}
            facts |= {"n_total": n_total, "tokens": 20 * n_total, "flops_exact": 120.0 * n_total**2}
            facts |= {"loss": float(known @ weight), "family": "mlp", "schedule_complete": True, "held_out": False}
            for task, mixture in [(f"parity_{r}", np.eye(num_tasks)[r - 1]) for r in ranks] + [("parity_mean", weight)]:
                nats = float(known @ mixture)
                right = float(np.exp(-known) @ mixture)  # a learnt task is right, an unlearnt one half the time
                share = rng.binomial(items, right) / items
                metrics = {"accuracy": (share, 0.5, np.sqrt(right * (1 - right) / items))}
                metrics["choice_log_probability"] = (
                    -nats,
                    -GUESSING,
                    float(np.sqrt(mixture @ known**2 - nats**2 + 1e-12)) / items**0.5,
                )
                for name, (value, chance, error) in metrics.items():
                    rows.append(
                        facts
                        | {"task": task, "metric": name, "value": value, "chance": chance, "standard_error": error}
                    )
    return pandas.DataFrame(rows)

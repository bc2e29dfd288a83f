"""Tables of evaluations with a planted truth: answers of L tokens, each right with p = exp(-nll(place))."""

import numpy as np
import pandas


def power(t):
    """nats per token: a plain power law; exact match p^L rises within 0.37 of the ladder for any L."""
    return 1.5 * 10 ** (-4 * t)


def step(t):
    """nats per token: flat, a step between two sizes, flat."""
    return 0.02 + 1.5 / (1 + np.exp(np.clip((t - 0.48) / 0.01, -500, 500)))


def gentle(t):
    """nats per token of a success rate that is a line in ln C."""
    return -np.log(0.1 + 0.85 * t)


def line(t):
    """nats per token of a token accuracy that is a line from 0.75 to 0.95."""
    return -np.log(0.75 + 0.2 * t)


def ladder(
    nll, seed, sizes=7, seeds=3, items=300, length=4, spread=0.03, decades=4, together=0.0, items_too=True,
    weights=(1.0,), locked=0,
):  # fmt: skip
    """Returns (table of evaluations, table of items) of one task, sum.

    spread: of ln nll over seeds. together: share of items whose tokens are all right or all wrong together.
    length: tokens of every answer, or [items] of them. weights: nll of the tokens over nll(place), in turn: unequal
    difficulty. locked: so many of the smallest sizes answer in a wrong format: no exact match, whatever their tokens.
    """
    rng = np.random.default_rng(seed)
    length = np.broadcast_to(length, items)
    rows, parts = [], []
    for g, c in enumerate(np.logspace(14, 14 + decades, sizes)):
        for s in range(seeds):
            q = float(nll(g / max(sizes - 1, 1))) * np.exp(spread * rng.standard_normal())
            hardness = np.resize(weights, length.max())
            told = np.arange(length.max()) < length[:, None]  # [items, L]: which tokens an answer has
            right = ((rng.random(told.shape) < np.exp(-q * hardness)) & told).sum(axis=1)
            bound = rng.random(items) < together
            right = np.where(bound, length * (rng.random(items) < np.exp(-q)), right)
            log_prob = -q * (told @ hardness) * rng.gamma(50, 1 / 50, items)
            n = np.sqrt(c / 120)
            facts = {"run_id": f"g{g}-s{s}", "step": 10.0, "task": "sum", "shots": 0, "seed": s, "status": "done"}
            facts |= {"n_total": n, "tokens": 20 * n, "flops_exact": c, "loss": 3 - 0.2 * g + 0.001 * s, "n": items}
            facts |= {"family": "decoder", "held_out": False, "schedule_complete": True, "semantics": "causal"}
            ones = np.ones(items)
            for metric, numerator, denominator in (
                ("exact_match", (right == length) * float(g >= locked), ones),
                ("token_accuracy", right * 1.0, length * 1.0),
                ("log_likelihood_per_token", log_prob, length * 1.0),
                ("log_likelihood", log_prob, ones),
            ):
                value = numerator.sum() / denominator.sum()
                error = float(np.std(numerator - value * denominator) / np.sqrt(items) / denominator.mean())
                chance = 0.0 if metric == "exact_match" else np.nan
                rows.append(facts | {"metric": metric, "value": value, "standard_error": error, "chance": chance})
                if items_too:
                    part = {"run_id": facts["run_id"], "step": 10, "task": "sum", "shots": 0, "metric": metric}
                    part |= {"item": np.arange(items), "numerator": numerator, "denominator": denominator}
                    parts.append(pandas.DataFrame(part))
    return pandas.DataFrame(rows), pandas.concat(parts, ignore_index=True) if items_too else None


def families(seed, models=60, kinds=18, items=500, offset=0.25, column=None):
    """Models of several families, each with its own place on a ladder of five decades of C; one seed each.

    offset: standard deviation of the families' places, in shares of the ladder. column: name of a column with the
    family; None: only the names of the models tell it.
    """
    rng = np.random.default_rng(seed)
    places, rows = rng.normal(0, offset, kinds), []
    for i, kind in enumerate(np.sort(rng.integers(0, kinds, models))):
        t = rng.random()
        q = power(0.4 * (t + places[kind])) * np.exp(0.02 * rng.standard_normal())
        facts = {"run_id": f"kind{chr(97 + kind)}-{i}", "task": "sum", "n": items, "C": 10 ** (20 + 5 * t)}
        facts |= {column: f"kind {kind}"} if column else {}
        tokens = rng.binomial(4 * items, np.exp(-q)) / (4 * items)
        for metric, value, error in (
            ("exact_match", rng.binomial(items, np.exp(-4 * q)) / items, np.nan),
            ("token_accuracy", tokens, np.nan),
            (
                "log_likelihood_per_token",
                -q * (1 + 0.7 * rng.standard_normal() / np.sqrt(items)),
                0.7 * q / np.sqrt(items),
            ),
        ):
            rows.append(facts | {"metric": metric, "value": value, "standard_error": error})
    return pandas.DataFrame(rows)


def checkpoints(nll, seed, many=4, **which):
    """A ladder of one seed with the last checkpoints of each run, whose noise is as that over seeds."""
    table, _ = ladder(nll, seed, seeds=many, items_too=False, **which)
    order = table["seed"].to_numpy()
    table["run_id"], table["step"] = table["run_id"].str.partition("-")[0], 1000.0 - 10 * order
    return table.drop(columns=["seed", "schedule_complete"])

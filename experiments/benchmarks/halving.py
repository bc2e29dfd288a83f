"""Does successive halving find the learning rate that a full search finds, and for how much of its compute?

Nine constant learning rates at two widths with three seeds, on the model and data of experiments/chinchilla: all of
them at full length, and the same by `--halving 3`, which continues the best three after 1/9 of the tokens and the best
one after 1/3. A rate that halving continues to the end must have the loss of its full run to the last bit. Regret: how
much higher the full run's loss is at the rate that halving chose than at the best rate.

Command:  lmjax sweep experiments/benchmarks/halving.py --no-analysis --workdir runs/halving-full
          lmjax sweep experiments/benchmarks/halving.py --halving 3 --workdir runs/halving
          python experiments/benchmarks/halving.py runs
Time:     30 and 17 minutes on a busy core
Result:   2026-11-23: the best rate in all six groups, for 26 % of the compute; halving.json
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from chinchilla import config as chinchilla

from lmjax import run_record
from lmjax.config import overlay, run_file
from lmjax.errors import InputError
from lmjax.sweeps.combinators import product, zipit

HERE = pathlib.Path(__file__).resolve().parent
pages = run_file(HERE.parent / "pages.py", "experiment")
GROUP = ["config.model.d_model", "config.train.seed"]
RATE = "config.optimizer.learning_rate"


def get_config():
    """Returns the base config."""
    settings = {"schedule.name": "constant", "schedule.warmup_steps": 50, "duration.flops": None}
    return overlay(chinchilla.get_config(), settings | {"duration.tokens": 1e6, "run.name": "halving"})


def sweep():
    """Returns the cells: nine rates in each of six groups."""
    sizes = zipit({"model.d_model": [32, 64], "model.num_heads": [2, 4]})
    seeds = zipit({"train.seed": range(3), "data.seed": range(3)})
    return product(sizes, seeds, {"optimizer.learning_rate": [2.0**-k for k in range(4, 13)]})


def compare(full, halving) -> list[dict]:
    """Returns a row per width and seed, from two tables of runs as `run_record.read_runs` returns them.

    Raises:
        InputError: a full-length run of the halving does not have the loss of its full run.
    """
    rows = []
    for (width, seed), every in full.groupby(GROUP):
        rungs = halving[(halving[GROUP] == [width, seed]).all(axis=1)]
        losses = every.set_index(RATE)["loss"]
        last = rungs[rungs["tokens"] == rungs["tokens"].max()]
        if len(last) != 1 or (last["loss"].to_numpy() != losses[last[RATE]].to_numpy()).any():
            raise InputError(f"width {width}, seed {seed}: expected one full-length run, equal to its full run")
        chosen = float(last[RATE].iloc[0])
        spent = rungs["flops_exact"] - rungs["flops_inherited"].fillna(0)
        rows.append(
            {
                "width": int(width),
                "seed": int(seed),
                "best": float(losses.idxmin()),
                "chosen": chosen,
                "regret": float(losses[chosen] - losses.min()),
                "second": float(losses.sort_values().iloc[1] - losses.min()),
                "compute": float(spent.sum() / every["flops_exact"].sum()),
            }
        )
    return rows


if __name__ == "__main__":
    parent = pathlib.Path(sys.argv[1])
    found = compare(*(run_record.read_runs(parent / name) for name in ("halving-full", "halving")))
    (HERE / "halving.json").write_text(json.dumps(found, indent=1) + "\n")
    form = "{width} | {seed} | {best:.5f} | {chosen:.5f} | {regret:.4f} | {second:.4f} | {compute:.3f}"
    head = "width | seed | best rate | chosen | regret, nats | of the second best | compute"
    print(pages.table(head, (form.format(**row) for row in found)))

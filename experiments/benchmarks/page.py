"""Writes docs/speed.md and docs/intervals.md from the records beside this file: no number there is typed by hand.

Command:  python experiments/benchmarks/page.py
"""

import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
SIDES = {
    "lmjax": "lmjax",
    "scipy": "SciPy, 4500 starts, numeric gradient",
    "chinchilla": "`chinchilla` 0.2.0, its README's grid",
    "simple": "`simple-scaling-laws` 0.2.0 (another criterion)",
}

INTERVALS = """
If a law is true, its 95 % prediction interval contains 95 % of new runs. On real tables no law is exactly true:
learning rates are tuned at one size, schedules are short, parameters are counted in several ways. So `fit.predict`
averages several laws in the table's variables (`chinchilla`, `joint_power` and `quantization` for N and D), allows
for smooth deviations that none of them explains, and widens its interval if the smaller fitted runs did not predict
the largest ones. `lmjax fit --predict`, the report, `holdout` and the held-out runs of a sweep use this average.
`fit.predict(..., one_law=True)` is the prediction of the fitted law alone, and is shown beside it. Parameters and
allocations are always those of the fitted law.
"""


def page() -> str:
    """Returns the text of docs/speed.md."""
    training, decoding, fits = (
        json.loads((HERE / f"{name}.json").read_text("utf8")) for name in ("train_step", "decoding", "fits")
    )
    return "\n".join(["# Speed", "", *_training(training), "", *_decoding(decoding), "", *_fits(fits)]) + "\n"


def _machine(facts, *packages):
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in packages)
    return f"{facts['cores']} CPU cores ({facts['cpu']}), {facts['date']}, {versions}."


def _training(facts):
    shapes: dict[str, dict[str, dict]] = {}
    for result in facts["results"]:
        shapes.setdefault(result["shape"], {})[result["mode"]] = result

    def row(modes):
        ratios = [f"{modes[mode]['ratio']['median']:.2f}" for mode in ("alone", "per core")]
        sides = (
            [modes[mode][side]["peak_memory_mib"] for side in ("lmjax", "torch")] for mode in ("alone", "per core")
        )
        return " | ".join([*ratios, *(f"{ours} / {peer}" for ours, peer in sides)])

    return [
        "## Training step",
        "",
        "`python experiments/benchmarks/train_step.py`: tokens per second of the full training step of a decoder, "
        "lmjax / PyTorch, and the peak memory of a process in MiB, lmjax / PyTorch, measured in the same run. Sweeps "
        "run one process per core.",
        _machine(facts, "jax", "torch"),
        "",
        "| parameters | speed: one process, both cores | one process per core | memory: both cores | per core |",
        "|---|---|---|---|---|",
        *(f"| {shape} | {row(modes)} |" for shape, modes in shapes.items()),
    ]


def _decoding(facts):
    return [
        "## Decoding",
        "",
        "`python experiments/benchmarks/decoding.py --rounds 5`: tokens per second of greedy decoding with the same "
        "weights, lmjax / transformers.",
        _machine(facts, "jax", "transformers"),
        "",
        "| model | batch | ratio | equal ids |",
        "|---|---|---|---|",
        *(
            f"| {r['model']} | {r['batch']} | {r['ratio']['median']:.2f} | {r['equal_ids']:.0%} |"
            for r in facts["results"]
        ),
    ]


def _span(values, form):
    """The least and the greatest of some numbers, once if they read the same."""
    shown = [form.format(v) for v in sorted(v for v in values if v is not None)]
    return "not run" if not shown else shown[0] if shown[0] == shown[-1] else f"{shown[0]} to {shown[-1]}"


def _fits(facts):
    latest = {t["table"]: t["sides"] for t in facts["times"]["tables"]}
    for table in facts.get("again", {}).get("tables", []):  # repeated on a quiet machine
        latest[table["table"]] = {**latest[table["table"]], **table["sides"]}
    rows = []
    for side, name in SIDES.items():
        sides = [tables[side] for tables in latest.values() if side in tables]
        fit = _span([s["fit"]["seconds"] for s in sides], "{:.3g}")
        refits = _span([s.get("refits_1000", {}).get("seconds") for s in sides], "{:.2g}")
        gap = _span([max(s["gap"], 0.0) for s in sides if s.get("gap") is not None], "{:.0e}")
        rows.append(f"| {name} | {fit} | {refits} | {gap if gap != 'not run' else 'no common criterion'} |")
    coverage = [value for noise in facts["coverage"]["noises"] for value in noise["coverage"].values()]
    loss = [noise["coverage"]["loss"] for noise in facts["coverage"]["noises"]]
    draws = facts["coverage"]["noises"][0]["draws"]
    noises = ", ".join(f"{100 * noise['noise']:g}" for noise in facts["coverage"]["noises"])
    points = sorted({t["points"] for t in facts["times"]["tables"]})
    return [
        "## Fits",
        "",
        f"`python experiments/benchmarks/fits.py --peer-python PEERS/bin/python`: {points[0]} to {points[-1]} points, "
        f"one thread, {facts['times']['date']}. The last column is the relative gap to an independent optimum.",
        "",
        "| | one fit, s | 1000 bootstrap refits, s | criterion above the optimum |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Coverage of nominal 95 % intervals, from {draws} simulated tables of a planned grid per noise level "
        f"({noises} %): {100 * min(coverage):.1f} to {100 * max(coverage):.1f} % for the parameters and all "
        f"predictions beyond the grid; {100 * min(loss):.1f} to {100 * max(loss):.1f} % for the predicted loss.",
    ]


def intervals() -> str:
    """Returns the text of docs/intervals.md."""
    facts = json.loads((HERE / "intervals.json").read_text("utf8"))
    alone, averaged = _sides(facts["misfit"], "misfit")
    lines = [
        "# Do prediction intervals hold?",
        "",
        " ".join(INTERVALS.split()),
        "",
        f"`python experiments/benchmarks/intervals.py` simulates {facts['tables']} tables and holds out the quarter of "
        "the runs with the most compute.",
        f"Over the tables in which the law is not exactly true, {100 * averaged['coverage']:.0f} % of the held-out "
        f"losses lie inside the averaged interval, and {100 * alone['coverage']:.0f} % inside that of the "
        "Chinchilla law.",
        "Half widths and errors are in % of the loss.",
        f"The first prediction of a fit takes {facts['seconds']:.1f} s (median, on a core shared with other programs).",
        "",
        "| | inside, one law | inside, average | half width, one law | average | mean error, one law | average |",
        "|---|---|---|---|---|---|---|",
    ]
    for by in ("misfit", "kind", "noise", "reach"):
        for group in dict.fromkeys(row["group"] for row in facts[by]):
            one, both = _sides(facts[by], group)
            name = (
                f"noise of {100 * float(group):g} %" if by == "noise" else "all misfits" if group == "misfit" else group
            )
            if by == "kind" and group == facts["misfit"][-1]["group"]:
                continue
            cells = [f"{100 * side['coverage']:.0f} %" for side in (one, both)]
            cells += [f"{side[key]:.2f}" for key in ("half_width", "error") for side in (one, both)]
            lines.append(f"| {name} ({one['tables']} tables) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _sides(rows, group):
    """The records of a group: of one law, of the average."""
    return [next(r for r in rows if (r["group"], r["side"]) == (group, side)) for side in ("one law", "average")]


if __name__ == "__main__":
    for name, text in (("speed", page()), ("intervals", intervals())):
        (DOCS / f"{name}.md").write_text(text, "utf8")
        print(f"wrote {DOCS / name}.md")

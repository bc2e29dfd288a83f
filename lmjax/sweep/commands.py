"""What `lmjax fit`, `plot`, `report`, `holdout`, `isoflop`, `design` and `next` do with a table or a directory of runs.

`fit` writes fit.json, `plot` also the figures, `report` also report.html. Everything is printed as well.
"""

import math
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from lmjax import run_record, scaling
from lmjax.errors import InputError
from lmjax.scaling.conventions import N_COUNTS
from lmjax.scaling.render import render_fit, short
from lmjax.scaling.table import FitTable, read_table
from lmjax.sweep import analysis

FAR = 10.0  # times the largest fitted compute
BEYOND = "more than 10 times the largest fitted compute: the interval holds only as far as the law does"


def load(source: pathlib.Path, family: str = "", **options) -> tuple[FitTable, object, dict]:
    """Returns (table to fit, frame of runs or None, {run id: metrics}) of a directory of runs or of a file.

    Args:
        source: the directory, or .csv / .parquet / .jsonl.
        family: of the runs that count, where a directory has several.
        **options: of read_table.
    """
    if not source.is_dir():
        return read_table(source, **options), None, {}
    runs, metrics = analysis.read(source, family=family)
    return read_table(runs, **options), runs, metrics


def fit(
    kind: str,
    table_options: Mapping,
    law: str,
    options: Mapping,
    wanted: Sequence[Mapping[str, float]] = (),
    budgets: Sequence[float] = (),
    config: tuple[str, Mapping[str, str]] = ("", {}),
    out: pathlib.Path | None = None,
    formats: Sequence[str] = ("png", "svg", "pdf"),
) -> int:
    """Fits, prints and writes; returns 64 if the table cannot identify the law.

    Args:
        kind: fit | plot | report.
        table_options: of `load`.
        law: name of the law.
        options: of lmjax.scaling.fit.
        wanted: runs to predict, each {"N": ..., "D": ...}.
        budgets: FLOP (6 N D) to split.
        config: file and overrides of the model family in which a split is put into a command.
        out: folder.
        formats: of the figures.
    """
    source, console = table_options["source"], Console()
    table, runs, metrics = load(**table_options, law=law)
    found = scaling.fit(table, law, **options)
    console.print(render_fit(found))
    if not found.refused:
        for cell in wanted:
            _print_prediction(console, found, cell)
        for C in budgets:
            _print_split(console, found, C, config, table_options["n"])
    folder = out or (source if source.is_dir() else None if kind == "fit" else pathlib.Path(f"{source.stem}-law"))
    if folder is None:
        return 64 if found.refused else 0
    if folder.is_file() or folder.suffix in (".json", ".html", ".csv", ".png"):
        raise InputError(f"--out: wanted a folder, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    run_record.write_json(folder / "fit.json", found.to_dict())
    written = [folder / "fit.json"]
    if kind != "fit":
        from lmjax.scaling import plots

        figures = plots.plot_all(runs, metrics, found, folder / "figures", formats)
        written += figures
        if kind == "report":
            command = shlex.join(["lmjax", *sys.argv[1:]])
            reading = {name: table_options[name] for name in ("loss", "units", "allow_incomplete", "columns")}
            asked = {"reading": reading, "table": table, "wanted": wanted, "budgets": budgets}
            written.append(analysis.write_report(folder, runs, found, figures, source.stem, command, **asked))
    for path in written:
        print(path)
    return 64 if found.refused else 0


def _print_prediction(console, found, cell):
    given = ", ".join(f"{name} = {short(value)}" for name, value in cell.items())
    if not found.refits:
        raise InputError("--predict: wanted intervals too, got --bootstrap 0")
    loss, low, high = (float(x) for x in scaling.predict(found, **cell))
    far = _distance(found, cell)
    reach = f" ({far:.2g} times the largest fitted 6 N D)" if far else ""
    console.print(
        f"predicted at {given}{reach}: {loss:.4f}, {found.level:.0%} for one new run {low:.4f} to {high:.4f}",
        highlight=False,
        soft_wrap=True,
    )
    if far > FAR:
        console.print(f"  beware: {BEYOND}", style="yellow")


def _distance(found, cell):
    """6 N D of a cell over the largest of the fit; 0 where N and D are not both known."""
    products = [row["N"] * row["D"] for row in found.points]
    return cell["N"] * cell["D"] / max(products) if {"N", "D"} <= set(cell) and all(map(math.isfinite, products)) else 0


def _print_split(console, found, C, config, n):
    best = {name: float(value) for name, value in scaling.allocate(found, C).items()}

    def words(name, how=short):
        return f"{how(best[name])} ({how(best[name + '_low'])} to {how(best[name + '_high'])})"

    def loss(value):
        return f"{value:.4f}"

    console.print(
        f"budget {C:.3g} FLOP as 6 N D with {found.conventions['N']} ({best['extrapolation']:.2g} times the largest "
        f"fitted): N* {words('N')}, D* {words('D')}, D/N {words('tokens_per_param')}, loss {words('loss', loss)}",
        highlight=False,
        soft_wrap=True,
    )
    if not best["determined"]:
        console.print("  beware: these runs do not determine the split: its interval is that wide", style="yellow")
    elif best["extrapolation"] > FAR:
        console.print(f"  beware: {BEYOND}", style="yellow")
    spec, overrides = config
    if spec:
        from lmjax.sweep.realize import nearest_config

        chosen = nearest_config(spec, overrides, best["N"], best["D"], N_COUNTS[n][0])
        keys = {**overrides, **chosen["overrides"]}
        command = " ".join(f"--config.{key}={value}" for key, value in keys.items())
        print(f"lmjax train --config {spec} {command}    # N = {short(chosen['N'])}; learning rate as in the config")


def holdout(table_options: Mapping, laws: Sequence[str], by: str, options: Mapping, out: pathlib.Path | None) -> int:
    """Prints the errors of predictions beyond each cut; for several laws, which one predicts better."""
    table = load(**table_options, law=laws[0])[0]
    if len(laws) > 1:
        kept = {name: options[name] for name in ("level", "objective", "delta")}
        result = scaling.compare(table, laws, by=by, **kept)
    else:
        result = scaling.holdout(table, laws[0], by=by, **options)
    print(result.text())
    if out is not None:
        from lmjax.scaling import axes, holdout_plots

        draw = holdout_plots.comparison_figure if len(laws) > 1 else holdout_plots.holdout_figure
        print(*axes.save(draw(result), out.with_suffix(""), [out.suffix[1:] or "png"]))
    return 0


def isoflop(table_options: Mapping, method: str, out: pathlib.Path | None) -> int:
    """Prints N*(C) of the isoFLOP curves of a table."""
    found = scaling.isoflop(load(**table_options)[0], method)
    print(found.text())
    if out is not None:
        from lmjax.scaling import axes
        from lmjax.scaling.methods import figures

        print(*axes.save(figures.isoflop_figure(found), out.with_suffix(""), [out.suffix[1:] or "png"]))
    return 64 if found.refused else 0


def design(budgets: Sequence[float], sizes: Sequence[float], per_budget: int, law: str) -> int:
    """Prints a proposed grid of runs."""
    plan = scaling.design(budgets, sizes or None, law, per_budget=per_budget)
    print(plan.text())
    return 64 if plan.reasons else 0


def next_runs(table_options: Mapping, law: str, options: Mapping, target: Mapping[str, float], budget: float) -> int:
    """Prints the runs that would sharpen a prediction most."""
    found = scaling.fit(load(**table_options, law=law)[0], law, **options).usable()
    if set(target) != {"N", "D"}:
        raise InputError(f"--target: wanted N=...,D=..., got {', '.join(target) or 'nothing'}")
    print(scaling.next_runs(found, budget, (target["N"], target["D"])).text())
    return 0

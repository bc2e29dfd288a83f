"""The commands that fit, draw and plan: fit, plot, report, laws, holdout, isoflop, design, next."""

import argparse
import math
import pathlib
import shlex
import sys

from lmjax import display
from lmjax.cli.start import FigurePath, add_rows, pairs_of
from lmjax.errors import InputError
from lmjax.format import count, flop, parse_count, variable


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary, example) returns a parser."""
    _add_fits(add)
    add("laws", _laws, "list every law with its formula and paper")
    _add_holdout(add)
    _add_isoflop(add)
    _add_planning(add)


def _add_fits(add):
    what = "fit a scaling law to runs or to any table"
    for name, summary, example in (
        (
            "fit",
            f"{what}; print parameters, predictions and compute-optimal allocations",
            "lmjax fit runs.csv --units N=1M,D=1B --predict N=7B,D=140B --budget 1e21",
        ),
        ("plot", f"{what}, and draw its figures", "lmjax plot runs/quickstart --formats svg"),
        (
            "report",
            f"{what}, draw it, and write one self-contained HTML page",
            "lmjax report runs/quickstart --by family",
        ),
    ):
        p = add(name, _fit, summary, example)
        _add_table_arguments(p)
        _add_fit_arguments(p)
        several = {"action": "append", "default": []}
        p.add_argument("--predict", **several, metavar="N=7e9,D=1.4e11", help="run to predict (repeatable)")
        p.add_argument("--budget", **several, metavar="C", help="FLOP budget to allocate to N and D (repeatable)")
        by = "fit one law for each value of this setting, such as family, in separate folders"
        p.add_argument("--by", default="", metavar="KEY", help=by)
        p.add_argument("--config", default="", help="with --budget: print the command that trains the optimal model")
        out = "output folder (default: the folder of the runs; plot and report of NAME.csv write ./NAME-law)"
        p.add_argument("--out", type=pathlib.Path, help=out)
        if name == "fit":
            _add_format(p)
        else:
            p.add_argument("--formats", default="png", help="figure formats: png, svg, pdf (default: png)")


def _add_holdout(add):
    summary = "fit laws to the smaller runs, measure their prediction error on larger ones, and compare laws"
    p = add("holdout", _holdout, summary, "lmjax holdout runs.csv --law chinchilla,power_c")
    _add_table_arguments(p)
    _add_fit_arguments(p)
    p.add_argument("--by", default="C", choices=("C", "N", "D"), help="variable to hold out by (default: C)")
    p.add_argument("--out", action=FigurePath, help="figure to write, such as holdout.png")
    _add_format(p)


def _add_isoflop(add):
    summary = "estimate the best N of each compute budget and its power law (Chinchilla's approach 2)"
    p = add("isoflop", _isoflop, summary, "lmjax isoflop runs.csv --out isoflop.png")
    _add_table_arguments(p)
    p.add_argument(
        "--method",
        default="akima",
        choices=("akima", "parabola", "surface"),
        help="akima: interpolate each budget; fewest assumptions, widest intervals (default). parabola: fit a parabola "
        "to each budget; biased on wide grids. surface: fit one law E + A N^-alpha + B D^-beta to all budgets",
    )
    noise = "standard deviation of ln loss between seeds, such as 0.002 (default: estimated from the table)"
    p.add_argument("--noise", type=float, help=noise)
    budgets = "intended budgets in FLOP, comma-separated (default: rows are grouped by C)"
    p.add_argument("--budgets", default="", metavar="C,C,...", help=budgets)
    tolerance = "largest relative difference between the C of a row and its budget (default: 0.05)"
    p.add_argument("--tolerance", type=float, default=0.05, help=tolerance)
    p.add_argument("--out", action=FigurePath, help="figure to write, such as isoflop.png")
    _add_format(p)


def _add_planning(add):
    summary = "propose a grid of runs that can identify a law, with its expected precision and cost"
    p = add("design", _design, summary, "lmjax design --budgets 1e15,3e15,1e16")
    p.add_argument("--budgets", required=True, help="FLOP as 6 N D, comma-separated, such as 1e15,3e15,1e16")
    p.add_argument("--sizes", default="", help="values of N that can be trained, comma-separated (default: any)")
    p.add_argument("--per-budget", default=5, type=int, help="runs per budget (default: 5)")
    p.add_argument("--law", default="chinchilla", help="name of the law (default: chinchilla)")
    _add_format(p)
    summary = "propose new runs, within a budget, that narrow the interval of a prediction most"
    p = add("next", _next, summary, "lmjax next runs.csv --target N=7B,D=140B --budget 1e20")
    _add_table_arguments(p)
    _add_fit_arguments(p)
    p.add_argument("--target", required=True, metavar="N=7e9,D=1.4e11", help="run to predict")
    p.add_argument("--budget", required=True, metavar="C", help="FLOP to spend on new runs")
    _add_format(p)


def _add_format(parser):
    parser.add_argument("--format", choices=display.FORMATS, default="table", help="output format (default: table)")


def _show(arguments, text, rows):
    """Prints a result as text, or its rows as CSV or JSON."""
    if arguments.format == "table":
        print(text)
    else:
        display.show(rows, (), arguments.format)


def _add_table_arguments(parser):
    several = {"action": "append", "default": []}
    parser.add_argument("source", type=pathlib.Path, help="directory of runs, or .csv / .parquet / .jsonl")
    parser.add_argument("--n", default="total", help="parameter count: total | non_embedding | matmul_head")
    parser.add_argument("--c", default="auto", help="compute count: auto | 6nd | 6nd_attention | exact")
    parser.add_argument("--loss", default="loss", help="column to fit, such as bits_per_byte (default: loss)")
    parser.add_argument("--units", default="", metavar="N=1e6,D=1e9", help="unit of each column (default: 1)")
    parser.add_argument("--hold-out", default="", metavar="C", help="hold out runs of at least this many FLOP")
    parser.add_argument("--allow-incomplete", action="store_true", help="include runs whose schedule did not complete")
    weights = "column of fit weights, 1 / variance; repeats: from the scatter of runs of equal N and D (default: equal)"
    parser.add_argument("--weights", metavar="COLUMN", help=weights)
    parser.add_argument("--drop-missing", action="store_true", help="leave out rows with missing values, and list them")
    add_rows(parser)
    parser.add_argument("--allow", **several, metavar="KEY", help="setting that may differ between runs (repeatable)")


def _add_fit_arguments(parser):
    several = ", or several with commas" if parser.prog.endswith("holdout") else ""
    schemes = "bootstrap scheme: auto | residual | rows | configurations | wild_cluster"
    resamples = "number of bootstrap resamples for the intervals (default: 1000)"
    criteria = {"choices": ("huber_log", "squared_log", "squared"), "help": "fit criterion (default: huber_log)"}
    many = {"action": "append", "default": []}
    laws = f"name of the law{several}; lmjax laws lists all; FILE.py:NAME: one that your file adds to LAWS"
    parser.add_argument("--law", default="chinchilla", help=laws)
    parser.add_argument("--fix", **many, metavar="E=1.82", help="hold a parameter at a value (repeatable)")
    parser.add_argument("--tie", **many, metavar="alpha=beta", help="make parameters share one value (repeatable)")
    parser.add_argument("--criterion", default="huber_log", **criteria)
    parser.add_argument("--delta", default=1e-3, type=float, help="Huber's delta in ln loss (default: 1e-3)")
    parser.add_argument("--resamples", default=1000, type=int, help=resamples)
    parser.add_argument("--bootstrap", default="auto", help=schemes)
    parser.add_argument("--confidence", "--level", default=0.95, type=float, help="confidence level (default: 0.95)")
    parser.add_argument("--seed", default=0, type=int, help="random seed of the bootstrap (default: 0)")


def _reading(arguments):
    """Returns the keyword arguments of read_table that the options give."""
    return {
        **{
            name: getattr(arguments, name)
            for name in ("n", "c", "loss", "allow_incomplete", "weights", "drop_missing", "where")
        },
        "held_out": _number("--hold-out", arguments.hold_out) if arguments.hold_out else None,
        "units": _pairs("--units", arguments.units),
        "columns": pairs_of("--columns", arguments.columns),
        "allow": arguments.allow,
    }


def _law(arguments, name=None):
    """Returns the law of --law (or of that name), constrained by --fix and --tie."""
    from lmjax.scaling.laws import constrained, get_law

    fix = {name: value for text in arguments.fix for name, value in _pairs("--fix", text).items()}
    return constrained(get_law(name or arguments.law), fix, arguments.tie)


def _load(arguments, law=None, say=True):
    """Returns (table to fit, frame of runs or None, {run id: metrics}) of a directory of runs or of a file."""
    from lmjax.scaling.settings import select_rows
    from lmjax.scaling.table import read_table
    from lmjax.sweeps import analysis

    reading = _reading(arguments) | ({"law": law} if law else {})
    source, runs, metrics = arguments.source, None, {}
    if source.is_dir():
        runs, metrics = analysis.read(source)
        source = runs = select_rows(runs, reading.pop("where"), str(source))
    table = read_table(source, **reading)
    if say and arguments.command not in ("fit", "plot", "report"):  # which print them with the fit
        for line in (table.notes[0], *(f"warning: {words}" for words in table.warnings)):
            print(line, file=sys.stderr)
    return table, runs, metrics


def _options(arguments):
    """Returns the keyword arguments of scaling.fit that the options give."""
    names = ("criterion", "delta", "resamples", "bootstrap", "confidence", "seed")
    return {name: getattr(arguments, name) for name in names}


def _number(flag, word):
    """Returns the number of a word such as 7e9 or 7B."""
    try:
        return parse_count(word)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error


def _pairs(flag, text):
    """Returns "N=7e9,D=1e11" as {"N": 7e9, "D": 1e11}."""
    return {name: _number(flag, value) for name, value in pairs_of(flag, text).items()}


def _fit(arguments, overrides):
    """Fits a law, prints it and writes its files; returns exit code 64 if the table cannot identify the law."""
    from rich.console import Console

    from lmjax import run_record, scaling
    from lmjax.scaling.text import parameter_rows, render_fit
    from lmjax.sweeps import analysis

    kind, source, out = arguments.command, arguments.source, arguments.out
    to_predict = [_pairs("--predict", text) for text in arguments.predict]
    budgets = [_number("--budget", word) for word in arguments.budget]
    if to_predict and arguments.resamples == 0:
        raise InputError("--predict: expected --resamples above 0 for the interval, got --resamples 0")
    if out is not None and (out.is_file() or out.suffix in (".json", ".html", ".csv", ".png")):
        raise InputError(f"--out: expected a folder, got {out}")
    if kind != "fit":
        from lmjax.scaling.figures import style

        style.check_formats(arguments.formats.split(","))
    if arguments.by:
        return _fit_groups(arguments, overrides)
    law = _law(arguments)
    table, runs, metrics = _load(arguments, law)
    as_table = getattr(arguments, "format", "table") == "table"
    console = Console(stderr=not as_table)  # standard output holds only the CSV or JSON
    found = scaling.fit(table, law, **_options(arguments))
    console.print(render_fit(found))
    if not as_table:
        said = {"notes": [*found.warnings, *found.notes]} if arguments.format == "json" else {}
        display.show([row | said for row in parameter_rows(found)], (), arguments.format)
    if found.refused and runs is not None and (advice := analysis.rate_sweep_advice(runs, source)):
        display.say(console, advice)
    if not found.refused or found.minima:
        for cell in to_predict:
            _print_prediction(console, found, cell)
    if not found.refused:
        for C in budgets:
            _print_split(console, found, C, arguments, overrides)
    folder = out or (source if source.is_dir() else None if kind == "fit" else pathlib.Path(f"{source.stem}-law"))
    if folder is None:
        return 64 if found.refused else 0
    folder.mkdir(parents=True, exist_ok=True)
    run_record.write_json(folder / "fit.json", found.to_dict())
    written = [folder / "fit.json"]
    if kind != "fit":
        from lmjax.scaling.figures.fit import plot_all

        figures = plot_all(found, folder / "figures", arguments.formats.split(","), runs, metrics)
        written += figures
        if kind == "report":
            command = shlex.join(["lmjax", *sys.argv[1:]])
            asked = {"table": table, "to_predict": to_predict, "budgets": budgets}
            written.append(analysis.write_report(folder, runs, found, figures, source.stem, command, **asked))
    for path in written:
        print(path, file=sys.stdout if as_table else sys.stderr)
    return 64 if found.refused else 0


def _fit_groups(arguments, overrides):
    """Fits one law for each value of the settings in --by, in a folder of its own; returns the highest exit code."""
    from lmjax.scaling.table import groups
    from lmjax.sweeps import analysis

    source = arguments.source
    runs = analysis.read(source)[0] if source.is_dir() else source
    folder = arguments.out or (source if source.is_dir() else pathlib.Path(f"{source.stem}-law"))
    codes = []
    for label, where in groups(runs, arguments.by, arguments.where).items():
        print(f"\n{arguments.by} = {label}")
        one = {"by": "", "where": [*arguments.where, where]}
        one["out"] = folder / analysis.folder_name(label)
        codes.append(_fit(argparse.Namespace(**{**vars(arguments), **one}), overrides))
    return max(codes)


def _print_prediction(console, found, cell):
    from lmjax.scaling.text import average_words, far_words

    given = ", ".join(f"{name} = {variable(name, value)}" for name, value in cell.items())
    try:
        loss, low, high = found.predict(**cell)
        alone = found.predict(**cell, one_law=True)
    except InputError as error:
        if not found.minima:
            raise
        return display.say(console, f"not predicted at {given}: {error}", "yellow")
    largest = (found.column("N") * found.column("D")).max()
    far = cell["N"] * cell["D"] / largest if {"N", "D"} <= set(cell) and math.isfinite(largest) else 0
    reach = f" ({far:.2g} times the largest fitted 6 N D)" if far else ""
    interval = f"{found.confidence:.0%} interval of one new run {low:.4f} to {high:.4f}"
    display.say(console, f"predicted at {given}{reach}: {loss:.4f}, {interval}")
    if words := average_words(found):
        law = f"{found.law} alone: {alone.value:.4f}, {alone.low:.4f} to {alone.high:.4f} if the law is true"
        display.say(console, f"  {words} {law}.")
    if words := far_words(found, cell):
        display.say(console, f"  warning: {words}", "yellow")


def _print_split(console, found, C, arguments, overrides):
    from lmjax.scaling.columns import N_COUNTS
    from lmjax.scaling.text import far_words

    best = {name: float(value) for name, value in found.allocate(C).items()}

    def words(name, how=count):
        return f"{how(best[name])} ({how(best[name + '_low'])} to {how(best[name + '_high'])})"

    display.say(
        console,
        f"budget {flop(C)} FLOP as 6 N D with {found.conventions['N']} ({best['extrapolation']:.2g} times the largest "
        f"fitted): N* {words('N')}, D* {words('D')}, D/N {words('tokens_per_param')}, "
        f"loss {words('loss', '{:.4f}'.format)}",
    )
    if not best["determined"]:
        display.say(console, "  warning: these runs do not determine the split, so its interval is wide", "yellow")
    elif beyond := far_words(found, best):
        display.say(console, f"  warning: {beyond}", "yellow")
    if arguments.config:
        from lmjax.sweeps.realize import training_command

        kind = N_COUNTS[arguments.n][0]
        command, notes = training_command(arguments.config, overrides, best["N"], best["D"], kind)
        print(command)
        for note in notes:
            display.say(console, f"  {note}")


def _laws(arguments, overrides):
    from lmjax.scaling.text import list_laws

    print(list_laws())
    return 0


def _holdout(arguments, overrides):
    """Prints the prediction errors on runs above each cut; for several laws, which one predicts better."""
    from lmjax import scaling

    laws, options = [_law(arguments, name) for name in arguments.law.split(",")], _options(arguments)
    table = _load(arguments, laws[0])[0]
    if len(laws) > 1:
        kept = {name: options[name] for name in ("confidence", "criterion", "delta", "seed")}
        result = scaling.compare(table, laws, by=arguments.by, **kept)
    else:
        result = scaling.holdout(table, laws[0], by=arguments.by, **options)
    _show(arguments, result.text(), result.laws if len(laws) > 1 else result.rows)
    if arguments.out is not None:
        from lmjax.scaling.figures import holdout, style

        draw = holdout.comparison_figure if len(laws) > 1 else holdout.holdout_figure
        print(style.save_as(draw(result), arguments.out))
    return 0


def _isoflop(arguments, overrides):
    from dataclasses import replace

    from lmjax import scaling

    table = _load(arguments)[0]
    budgets = [_number("--budgets", word) for word in arguments.budgets.split(",") if word] or None
    hint = _other_compute_count(arguments, table)
    try:
        found = scaling.isoflop(
            table, arguments.method, arguments.noise, tolerance=arguments.tolerance, budgets=budgets
        )
    except InputError as error:
        raise InputError("; ".join([str(error), *hint])) from error
    found = replace(found, warnings=(*found.warnings, *hint))
    _show(arguments, found.summary(), [_scalars(one) for one in found.to_dict()["optima"]])
    if arguments.out is not None:
        from lmjax.scaling.figures import methods, style

        print(style.save_as(methods.isoflop_figure(found), arguments.out))
    return 64 if found.refused else 0


def _other_compute_count(arguments, table):
    """Returns a hint (a list of one sentence) if the rows share budgets only under another compute count."""
    from lmjax.scaling.columns import C_COUNTS
    from lmjax.scaling.methods.budgets import shared_budgets

    if table.points["C"].isna().any() or shared_budgets(table.points["C"]):
        return []
    for c in ("exact", "6nd_attention", "6nd"):
        try:
            C = _load(argparse.Namespace(**{**vars(arguments), "c": c}), say=False)[0].points["C"]
        except InputError:  # the table lacks the columns of this count
            continue
        if C.notna().all() and (number := shared_budgets(C)):
            return [f"the rows share C at {number} budgets with --c {c} ({C_COUNTS[c]}), but not with the chosen count"]
    return []


def _scalars(record):
    return {name: value for name, value in record.items() if not isinstance(value, (list, tuple, dict))}


def _design(arguments, overrides):
    from lmjax import scaling

    budgets = [_number("--budgets", word) for word in arguments.budgets.split(",")]
    sizes = [_number("--sizes", word) for word in arguments.sizes.split(",") if word]
    plan = scaling.design(budgets, sizes or None, arguments.law, per_budget=arguments.per_budget)
    _show(arguments, plan.text(), plan.cells)
    return 64 if plan.reasons else 0


def _next(arguments, overrides):
    from lmjax import scaling

    target = _pairs("--target", arguments.target)
    budget = _number("--budget", arguments.budget)
    if set(target) != {"N", "D"}:
        raise InputError(f"--target: expected N=...,D=..., got {', '.join(target) or 'nothing'}")
    law = _law(arguments)
    found = scaling.fit(_load(arguments, law)[0], law, **_options(arguments)).usable()
    proposal = scaling.next_runs(found, budget, (target["N"], target["D"]))
    _show(arguments, proposal.text(), proposal.runs)
    return 0

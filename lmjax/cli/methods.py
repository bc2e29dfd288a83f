"""The commands of lmjax.scaling.methods: frontier, two-step, tuning, critical-batch, annealing, collapse, quantization.

Each command reads a directory of runs or a table and prints a summary. It exits with code 64 if the method refuses.
"""

import json
import pathlib
import sys

from lmjax import display
from lmjax.cli.start import FigurePath, add_rows, pairs_of
from lmjax.errors import InputError
from lmjax.format import parse_count


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary) returns a parser."""
    p = add("frontier", _frontier, "estimate compute-optimal sizes from training curves (Chinchilla's approach 1)")
    _add_source(p, "curves", "run, N, loss, and C or D")
    p.add_argument("--allow-incomplete", action="store_true", help="include runs whose schedule did not complete")

    p = add("collapse", _collapse, "measure how well training curves of several sizes collapse onto one curve")
    _add_source(p, "curves", "run, C, loss, and N or size")
    p.add_argument("--floor", type=float, help="irreducible loss (default: estimated from the end losses)")

    p = add("annealing", _annealing, "fit one loss-curve law to runs with any learning-rate schedule")
    _add_source(p, "curves")
    p.add_argument("--warmup-steps", default=0, type=int, help="initial steps to exclude (default: 0)")

    p = add("tuning", _tuning, "estimate the optimal learning rate and batch size of each (N, D), and their power laws")
    _add_source(p, "runs", "N, D, learning_rate, loss, and batch if it was varied")
    near = "use only runs at most this fraction above the lowest loss of their (N, D) (default: 0.0025)"
    p.add_argument("--excess", default=0.0025, type=float, help=near)
    batch = "variables of the batch-size law: D | N | N,D (default: D)"
    p.add_argument("--batch-variables", default="D", metavar="N,D", help=batch)

    p = add("critical-batch", _critical_batch, "estimate the critical batch size from the steps to reach a loss")
    _add_source(p, "curves", "loss, batch (tokens) and steps")
    p.add_argument("--targets", default="", help="target losses, comma-separated (required for a directory of runs)")

    p = add("two-step", _two_step, "predict a task's metric from compute through the task's loss")
    _add_source(p, "evaluations", "task, metric, value, n and C; or C, loss and metric")
    p.add_argument("--task", default="", help="name of the task (required for a table of evaluations)")
    p.add_argument("--hold-out", default="", metavar="C", help="hold out runs of at least this many FLOP")
    p.add_argument("--ceiling", type=float, help="value of the metric that a perfect model reaches (default: fitted)")

    p = add("quantization", _quantization, "test whether exponents of N, D and S agree with the quantization model")
    p.add_argument("exponents", nargs="+", metavar="N=0.40:0.01", help="variable=exponent:standard deviation")
    _add_output(p)


def _add_source(parser, kind, columns=""):
    table = f", or a .csv, .parquet or .jsonl table with {columns}" if columns else ""
    evaluated = "evaluated " if kind == "evaluations" else ""
    parser.add_argument("source", type=pathlib.Path, help=f"{evaluated}directory of runs{table}")
    if kind == "curves":
        words = "column of metrics.jsonl: training loss or validation_loss (default: loss)"
        parser.add_argument("--loss", default="loss", choices=("loss", "validation_loss"), help=words)
    if table:
        add_rows(parser)
    _add_output(parser)


def _add_output(parser):
    parser.add_argument("--format", choices=display.FORMATS, default="table", help="output format (default: table)")
    parser.add_argument("--json", action="store_true", help="print the full result as JSON")
    parser.add_argument("--out", action=FigurePath, help="figure to write, such as result.png")


def _table(arguments, from_runs, needed, optional=()):
    """Returns the rows of a file, or of what `from_runs` makes of a directory, with lmjax's column names."""
    from lmjax.scaling.columns import understood
    from lmjax.scaling.settings import select_rows
    from lmjax.scaling.table import load

    source = arguments.source
    frame, name = (from_runs(source), str(source)) if source.is_dir() else load(source)
    variables = dict.fromkeys(optional, False) | dict.fromkeys(needed, True)
    frame, found, *said = understood(frame, pairs_of("--columns", arguments.columns), variables, name)
    used = ", ".join(f"{v} = {found.get(v, v)}" for v in variables if v in frame)
    for line in (f"columns: {used}", *(words for part in said for words in part)):
        print(line, file=sys.stderr)
    return select_rows(frame, arguments.where, name)


def _finish(result, arguments, figure=None) -> int:
    if arguments.out is not None and figure is None:
        raise InputError(f"{arguments.command} draws no figure; leave out --out")
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=1))
    elif arguments.format == "table":
        print(result.summary())
    else:
        display.show(result.rows(), (), arguments.format)
        print("\n".join(f"refused: {reason}" for reason in result.reasons), end="", file=sys.stderr)
    if arguments.out is not None:
        from lmjax.scaling.figures import methods, style

        written = style.save_as(getattr(methods, figure)(result), arguments.out)
        print(written, file=sys.stdout if arguments.format == "table" and not arguments.json else sys.stderr)
    return 64 if result.refused else 0


def _curves(arguments, needed=("run", "loss")):
    from lmjax.scaling.methods import training_curves

    return _table(arguments, lambda folder: training_curves(folder, arguments.loss), needed, ("N", "C", "D"))


def _frontier(arguments, overrides):
    from lmjax.scaling.methods import frontier

    means = arguments.source.is_dir() and arguments.loss == "loss"
    found = frontier(_curves(arguments), interval_means=means, allow_incomplete=arguments.allow_incomplete)
    return _finish(found, arguments, "frontier_figure")


def _collapse(arguments, overrides):
    from lmjax.scaling.methods import collapse

    return _finish(collapse(_curves(arguments), arguments.floor), arguments, "collapse_figure")


def _annealing(arguments, overrides):
    from lmjax.scaling.methods import annealing_curves, fit_annealing

    curves = annealing_curves(arguments.source, arguments.loss)
    return _finish(fit_annealing(curves, warmup_steps=arguments.warmup_steps), arguments)


def _tuning(arguments, overrides):
    from lmjax import run_record
    from lmjax.scaling.methods import tuning_law, tuning_table

    needed = ("N", "D", "learning_rate", "loss")
    table = _table(arguments, lambda folder: tuning_table(run_record.read_runs(folder)), needed, ("batch",))
    found = tuning_law(table, arguments.excess, batch_variables=arguments.batch_variables.split(","))
    return _finish(found, arguments, "tuning_figure")


def _critical_batch(arguments, overrides):
    from lmjax.scaling.methods import batch_table, critical_batch

    table = _curves(arguments, ("loss", "batch") + ("steps",) * arguments.source.is_file())
    if arguments.source.is_dir():
        if not arguments.targets:
            raise InputError("--targets: expected target losses, such as 2.5,2.4,2.3, got none")
        table = batch_table(table, [parse_count(word) for word in arguments.targets.split(",")])
    return _finish(critical_batch(table), arguments)


def _two_step(arguments, overrides):
    from lmjax.scaling.methods import task_table, two_step
    from lmjax.scaling.table import load

    table = _table(
        arguments, lambda folder: load(folder / "evaluations.csv")[0], (), ("run", "C", "N", "D", "loss", "metric")
    )
    floor = 0.0
    if "task" in table:
        if not arguments.task:
            tasks = ", ".join(sorted({str(task) for task in table["task"].dropna()}))
            raise InputError(f"--task: expected one of {tasks}, got none")
        table, floor = task_table(table, arguments.task)
    held_out = parse_count(arguments.hold_out) if arguments.hold_out else None
    found = two_step(table, floor=floor, ceiling=arguments.ceiling, held_out=held_out)
    return _finish(found, arguments, "two_step_figure")


def _quantization(arguments, overrides):
    from lmjax.scaling.methods import consistency

    measured = {}
    for word in arguments.exponents:
        name, _, pair = word.partition("=")
        try:
            exponent, sd = map(float, pair.split(":"))
        except ValueError as error:
            raise InputError(f"expected VARIABLE=EXPONENT:SD, such as N=0.40:0.01, got {word!r}") from error
        measured[name] = exponent, sd
    return _finish(consistency(measured), arguments)

"""The commands that analyse: fit, plot, report, holdout, isoflop, design, next, emergence. No logic."""

import pathlib

from lmjax.errors import InputError

SIZES = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}  # as lmjax itself prints counts


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary) returns a parser."""
    for name, call, summary in (
        ("fit", _fit, "fit a scaling law to runs or to any table; print it, predictions and splits of budgets"),
        ("plot", _fit, "fit a scaling law to runs or to any table, and draw its figures"),
        ("report", _fit, "fit a scaling law to runs or to any table, draw it, and write one self-contained HTML page"),
    ):
        p = add(name, call, summary)
        _add_table_arguments(p)
        _add_fit_arguments(p)
        p.add_argument(
            "--predict", action="append", default=[], metavar="N=7e9,D=1.4e11", help="a run to predict (again)"
        )
        p.add_argument("--budget", action="append", default=[], metavar="C", help="FLOP to split (again)")
        p.add_argument("--config", default="", help="with --budget: prints the command that trains the split model")
        p.add_argument(
            "--out",
            type=pathlib.Path,
            help="folder (default: that of the runs; for NAME.csv plot and report make ./NAME-law)",
        )
        if name != "fit":
            p.add_argument("--formats", default="png,svg,pdf", help="of figures (default: png,svg,pdf)")

    add("laws", _laws, "every law with its formula and paper")

    p = add("holdout", _holdout, "how far laws err on larger runs than they were fitted to; compares laws")
    _add_table_arguments(p)
    _add_fit_arguments(p)
    p.add_argument("--by", default="C", choices=("C", "N", "D"), help="what is cut, smallest kept (default: C)")
    p.add_argument("--out", type=pathlib.Path, help="figure to write, such as holdout.png")

    p = add("isoflop", _isoflop, "the best N of each compute budget and its power law (Chinchilla's approach 2)")
    _add_table_arguments(p)
    p.add_argument(
        "--method",
        default="akima",
        choices=("akima", "parabola", "surface"),
        help="akima: each budget interpolated, least assumed, widest intervals (default); parabola: biased on wide "
        "grids; surface: one law E + A N^-alpha + B D^-beta through all budgets",
    )
    p.add_argument("--out", type=pathlib.Path, help="figure to write, such as isoflop.png")

    p = add("design", _design, "propose a grid of runs that can identify a law, and say what it will know and cost")
    p.add_argument("--budgets", required=True, help="FLOP as 6 N D, comma-separated, such as 1e15,3e15,1e16")
    p.add_argument("--sizes", default="", help="N that can be trained, comma-separated (default: any)")
    p.add_argument("--per-budget", default=5, type=int, help="runs for each budget (default: 5)")
    p.add_argument("--law", default="chinchilla", help="name of the law (default: chinchilla)")

    p = add("next", _next, "the runs that would sharpen a prediction most for a budget")
    _add_table_arguments(p)
    _add_fit_arguments(p)
    p.add_argument("--target", required=True, metavar="N=7e9,D=1.4e11", help="the run whose prediction matters")
    p.add_argument("--budget", required=True, metavar="C", help="FLOP to spend on new runs")

    p = add("emergence", _emergence, "does a skill emerge, or only its metric? hard against smooth metrics of a ladder")
    p.add_argument(
        "source",
        type=pathlib.Path,
        help="an evaluated directory of runs, or a table with a row per run, task and metric: task, metric (such as "
        "exact_match, token_accuracy, log_likelihood_per_token), value, n, and C, N and D, or loss",
    )
    p.add_argument("--tasks", default="all", help="names, comma-separated, or all (default: all)")
    p.add_argument("--x", default="C", choices=("C", "N", "D", "loss"), help="drawn against (default: C)")
    p.add_argument("--seed", default=0, type=int, help="of the resampling (default: 0)")
    p.add_argument("--out", type=pathlib.Path, help="folder for table, verdicts and figures (default: the source's)")


def _add_table_arguments(parser):
    parser.add_argument("source", type=pathlib.Path, help="directory of runs, or .csv / .parquet / .jsonl")
    parser.add_argument("--n", default="total", help="what counts as N: total | non_embedding | matmul_head")
    parser.add_argument("--c", default="6nd", help="what counts as C: 6nd | 6nd_attention | exact")
    parser.add_argument("--loss", default="loss", help="the column to fit, such as bits_per_byte (default: loss)")
    parser.add_argument(
        "--columns", default="", metavar="N=params,D=tokens,loss=val_loss", help="names of columns in this table"
    )
    parser.add_argument("--units", default="", metavar="N=1e6,D=1e9", help="what one of a column is (default: 1)")
    parser.add_argument("--hold-out", default="", metavar="C", help="FLOP from which on runs are only predicted")
    parser.add_argument("--allow-incomplete", action="store_true", help="take runs whose schedule did not complete")
    parser.add_argument("--family", default="", help="of the runs that count, where a directory has several")


def _add_fit_arguments(parser):
    several = parser.prog.endswith("holdout")
    parser.add_argument(
        "--law",
        default="chinchilla",
        help=f"name of the law{', or several with commas' if several else ''}; lmjax laws shows all",
    )
    parser.add_argument("--objective", default="huber_log", help="huber_log | squared_log | squared")
    parser.add_argument("--delta", default=1e-3, type=float, help="Huber's delta in ln loss (default: 1e-3)")
    parser.add_argument("--bootstrap", default=1000, type=int, help="refits behind the intervals (default: 1000)")
    parser.add_argument(
        "--method", default="auto", help="of refits: auto | residual | rows | configurations | wild_cluster"
    )
    parser.add_argument("--level", default=0.95, type=float, help="of the intervals (default: 0.95)")
    parser.add_argument("--seed", default=0, type=int, help="of the refits (default: 0)")


def _table(arguments):
    """The options of the table, as keywords of commands.load."""
    held_out = _number("--hold-out", arguments.hold_out) if arguments.hold_out else None
    names = ("source", "family", "n", "c", "loss", "allow_incomplete")
    return {
        **{name: getattr(arguments, name) for name in names},
        "held_out": held_out,
        "units": _pairs("--units", arguments.units),
        "columns": _pairs("--columns", arguments.columns, str),
    }


def _options(arguments):
    """The options of a fit, as keywords of fit."""
    return {name: getattr(arguments, name) for name in ("objective", "delta", "bootstrap", "method", "level", "seed")}


def _number(flag, word):
    """A number: 7e9 or 7B."""
    size = SIZES.get(word[-1:], 1.0)
    try:
        return float(word[:-1] if size > 1 else word) * size
    except ValueError as error:
        raise InputError(f"{flag}: expected a number such as 7e9 or 7B, got {word!r}") from error


def _pairs(flag, text, kind=None):
    """N=7e9,D=1e11 as {"N": 7e9, "D": 1e11}; values stay text with kind=str."""
    pairs = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{flag}: expected NAME=VALUE, comma-separated, such as N=7e9,D=1.4e11, got {part!r}")
        pairs[name.strip()] = value.strip() if kind is str else _number(flag, value)
    return pairs


def _fit(arguments, overrides):
    from lmjax.sweep import commands

    return commands.fit(
        arguments.command,
        _table(arguments),
        arguments.law,
        _options(arguments),
        [_pairs("--predict", text) for text in arguments.predict],
        [_number("--budget", word) for word in arguments.budget],
        (arguments.config, overrides),
        arguments.out,
        getattr(arguments, "formats", "png").split(","),
    )


def _laws(arguments, overrides):
    from lmjax.scaling import render

    print(render.laws_in_words())
    return 0


def _holdout(arguments, overrides):
    from lmjax.sweep import commands

    laws = arguments.law.split(",")
    return commands.holdout(_table(arguments), laws, arguments.by, _options(arguments), arguments.out)


def _isoflop(arguments, overrides):
    from lmjax.sweep import commands

    return commands.isoflop(_table(arguments), arguments.method, arguments.out)


def _design(arguments, overrides):
    from lmjax.sweep import commands

    budgets = [_number("--budgets", word) for word in arguments.budgets.split(",")]
    sizes = [_number("--sizes", word) for word in arguments.sizes.split(",") if word]
    return commands.design(budgets, sizes, arguments.per_budget, arguments.law)


def _next(arguments, overrides):
    from lmjax.sweep import commands

    target = _pairs("--target", arguments.target)
    budget = _number("--budget", arguments.budget)
    return commands.next_runs(_table(arguments), arguments.law, _options(arguments), target, budget)


def _emergence(arguments, overrides):
    from lmjax.scaling.emergence.command import command

    tasks = [] if arguments.tasks == "all" else arguments.tasks.split(",")
    return command(arguments.source, tasks, arguments.x, arguments.out, arguments.seed)

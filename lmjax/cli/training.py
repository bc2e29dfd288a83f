"""The commands that train and look: train, sweep, plan, runs, data, describe. Parses and calls; no logic."""

import json
import pathlib

from lmjax.cli.start import start
from lmjax.display import FORMATS
from lmjax.errors import InputError

CONFIG_HELP = "config file, path.py or path.py:argument; single keys are set with --config.section.key=value"

KEEP_HELP = "use results and checkpoints of runs that other source code made (refused otherwise)"


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary) returns a parser."""
    p = add("train", _train, "train one run, or go on with it")
    p.add_argument("--config", help=CONFIG_HELP)
    p.add_argument("--workdir", default="runs", type=pathlib.Path, help="parent of the run directory (default: runs)")
    p.add_argument("--run-dir", type=pathlib.Path, help="the run directory itself; with no --config, an existing one")
    p.add_argument("--keep", action="store_true", help=KEEP_HELP)

    p = add("sweep", _sweep, "train every cell of a sweep, fit, plot and report")
    _add_sweep_arguments(p)
    p.add_argument("--dry-run", action="store_true", help="only show the plan, as lmjax plan does")
    p.add_argument("--no-analysis", action="store_true", help="train only")
    p.add_argument("--keep", action="store_true", help=KEEP_HELP)

    p = add("plan", _plan, "what a sweep will cost, and whether its design can identify a law")
    _add_sweep_arguments(p)
    p.add_argument("--no-calibration", action="store_true", help="leave out the estimate of time")
    add_format(p)

    p = add("runs", _runs, "the tidy table of all runs below a directory")
    p.add_argument("directory", type=pathlib.Path)
    add_format(p, "parquet")

    p = add("data", _data, "prepare, list and inspect data; check an objective")
    p.add_argument("action", choices=("prepare", "list", "inspect", "check"))
    p.add_argument("--config", default="", help=CONFIG_HELP)
    p.add_argument("--split", default="train", choices=("train", "validation"))
    p.add_argument("--count", default=2, type=int, help="documents and examples to show (default: 2)")

    p = add("describe", _describe, "N, D, C, memory and the resolved config; allocates nothing")
    p.add_argument("--config", required=True, help=CONFIG_HELP)
    p.add_argument("--format", choices=("table", "json"), default="table")

    p = add("calibrate", _calibrate, None)  # used by plan: times the step of one run in a worker
    p.add_argument("run_dir", type=pathlib.Path)


def add_format(parser, *more) -> None:
    """Declares --format and --out of a command that prints a table."""
    parser.add_argument("--format", choices=(*FORMATS, *more), default="table", help="of the table (default: table)")
    parser.add_argument("--out", type=pathlib.Path, help="file to write instead of printing")


def _add_sweep_arguments(parser):
    parser.add_argument(
        "config", metavar="sweep.py", help="file with get_config() and sweep(), path.py or path.py:argument"
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="parent of the runs (default: runs/<file>[-<argument>])")
    parser.add_argument("--workers", type=int, default=0, help="processes at a time (default: one per core or GPU)")


def _workdir(arguments):
    path, _, arg = arguments.config.partition(":")
    name = pathlib.Path(path).stem + (f"-{arg}" if arg else "")
    return arguments.workdir or pathlib.Path("runs") / name


def _train(arguments, overrides):
    start(several=True)
    from lmjax import config, train
    from lmjax.resolve import resolve

    spec = arguments.config
    if spec is None:
        if arguments.run_dir is None:
            raise InputError("expected --config, or --run-dir of an existing run")
        spec = str(arguments.run_dir / "config.json")
    run = resolve(config.load(spec, overrides))
    run_dir = arguments.run_dir or arguments.workdir / run.run_id
    code = train.train(run, run_dir, keep=arguments.keep)
    if code == train.DONE and train.jax.process_index() == 0:
        print(f"finished: {run_dir}")
    return code


def _sweep(arguments, overrides):
    if arguments.dry_run:
        arguments.no_calibration, arguments.format, arguments.out = False, "table", None
        return _plan(arguments, overrides)
    from lmjax.sweep import run

    analyse, workdir = not arguments.no_analysis, _workdir(arguments)
    return run.sweep(arguments.config, workdir, overrides, arguments.workers, analyse, arguments.keep)


def _plan(arguments, overrides):
    from lmjax.sweep import run

    calibrate = not arguments.no_calibration
    shown = (arguments.format, arguments.out)
    return run.plan(arguments.config, _workdir(arguments), overrides, arguments.workers, calibrate, *shown)


def _calibrate(arguments, overrides):
    start()
    from lmjax import config
    from lmjax.resolve import resolve
    from lmjax.sweep import plan

    print(json.dumps(plan.calibrate(resolve(config.load(str(arguments.run_dir / "config.json"))))))
    return 0


def _runs(arguments, overrides):
    from lmjax import describe, run_record

    table = run_record.read_runs(arguments.directory)
    if arguments.format == "parquet":
        if arguments.out is None:
            raise InputError("--format parquet needs --out FILE")
        table.to_parquet(arguments.out)
    else:
        describe.show_runs(table, arguments.format, arguments.out)
    return 0


def _data(arguments, overrides):
    from rich.console import Console

    from lmjax.data import inspect

    console = Console()
    if overrides and not arguments.config:
        raise InputError(f"--config.* keys need --config FILE, got {sorted(overrides)}")
    if arguments.action == "list":
        console.print(inspect.render_stores(inspect.list_stores()))
        return 0
    if not arguments.config:
        raise InputError(f"lmjax data {arguments.action} needs --config")
    from lmjax import config
    from lmjax.resolve import resolve

    run = resolve(config.load(arguments.config, overrides))
    if arguments.action == "check":
        from lmjax.objectives import battery

        spec = run.objective.spec(run.data.tokenizer, run.config.objective.options)
        try:
            battery.check_objective(run.objective, spec)
        except AssertionError as error:
            raise InputError(f"{run.objective.name}: {error}") from error
        console.print(battery.verdict(run.objective), markup=False)
        return 0
    if arguments.action == "prepare":
        console.print_json(json.dumps(run.data.manifest))
        return 0
    console.print(inspect.render_documents(run.data, arguments.split, arguments.count))
    console.print(inspect.render_examples(run.data, run.objective, run.config, arguments.count))
    return 0


def _describe(arguments, overrides):
    from lmjax import config, describe
    from lmjax.resolve import resolve

    run = resolve(config.load(arguments.config, overrides))
    if arguments.format == "json":
        print(json.dumps(run.record(), indent=1))
    else:
        describe.show(run)
    return 0

"""The commands train, sweep, plan, runs, data and describe: parse, call, print."""

import argparse
import json
import pathlib
import sys

from lmjax.cli.start import note_idle_accelerator, start
from lmjax.display import FORMATS
from lmjax.errors import InputError

LAUNCHERS = ("local", "slurm", "kubernetes", "hosts", "ray")

CONFIG_HELP = "config file, path.py or path.py:argument; single keys are set with --config.section.key=value"

KEEP_HELP = "accept results and checkpoints produced by another version of the source code (default: refuse them)"


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary, example) returns a parser."""
    p = add("train", _train, "train one run, or resume it", "lmjax train configs/tiny.py --config.train.seed=1")
    _add_config(p)
    p.add_argument("--workdir", default="runs", type=pathlib.Path, help="parent of the run directory (default: runs)")
    run_dirs = "run directory; without a config file: one or more existing runs, trained in one process"
    p.add_argument("--run-dir", type=pathlib.Path, nargs="+", default=[], metavar="DIR", help=run_dirs)
    _add_pack(p)
    text = "write a profiler trace of these steps (the first step is 1) into the run directory"
    p.add_argument("--profile", type=_steps, metavar="FIRST:LAST", help=text)
    p.add_argument("-q", "--quiet", action="store_true", help="do not print progress")
    p.add_argument("--keep", action="store_true", help=KEEP_HELP)

    p = add("sweep", _sweep, "train every cell of a sweep, fit, plot and report", "lmjax sweep configs/quickstart.py")
    _add_sweep_arguments(p)
    dry_run = "print the plan and exit, like lmjax plan; with a cluster launcher: print what it would submit"
    p.add_argument("--dry-run", action="store_true", help=dry_run)
    launcher = "where the cells run: local processes (default), or a cluster (docs/launching.md)"
    p.add_argument("--launcher", default="local", choices=LAUNCHERS, help=launcher)
    p.add_argument("--address", help="address of the Ray cluster (default: a running one, else this machine)")
    p.add_argument("--hosts", default="", metavar="A,B,...", help="with --launcher hosts: machines that share each run")
    p.add_argument("--status", action="store_true", help="print the table of cells with their queue status, and exit")
    _add_serve(p)
    retry = "train only the cells with this status again (diverged cells: from their last finite step)"
    p.add_argument("--retry", choices=("failed", "diverged"), help=retry)
    kept = "checkpoints to keep of a finished cell whose branches have finished (default: as the config says)"
    p.add_argument("--keep-checkpoints", choices=("all", "final", "none"), default="all", help=kept)
    text = (
        "successive halving over KEY (default: optimizer.learning_rate): extend the best 1/ETA to ETA times the length"
    )
    p.add_argument("--halving", type=_search, metavar="ETA[:KEY]", help=text)
    p.add_argument("--predict", action="store_true", help="predict the held-out cells from the finished ones, and exit")
    _add_pack(p)
    p.add_argument("--no-analysis", action="store_true", help="only train: no fit, figures or report")
    p.add_argument("-q", "--quiet", action="store_true", help="do not show the table of running cells")
    p.add_argument("--keep", action="store_true", help=KEEP_HELP)
    records = "count the runs in this file, written by lmjax runs --records, as done (repeatable)"
    p.add_argument("--records", action="append", default=[], type=pathlib.Path, metavar="FILE.parquet", help=records)

    summary = "estimate the cost of a sweep, and check whether its design can identify a law"
    p = add("plan", _plan, summary, "lmjax plan configs/quickstart.py --format csv")
    _add_sweep_arguments(p)
    _add_pack(p)
    p.add_argument("--no-calibration", action="store_true", help="skip the time estimate")
    add_format(p)

    example = "lmjax runs runs/quickstart --format csv --out runs.csv"
    p = add("runs", _runs, "print a table of all runs in a directory", example)
    p.add_argument("directory", type=pathlib.Path)
    records = "write configs, results and thinned metrics of the finished runs into one file, and print no table"
    p.add_argument("--records", type=pathlib.Path, metavar="FILE.parquet", help=records)
    watch = "print the table again every SECONDS (default: 10) until all runs have ended"
    p.add_argument("--watch", type=float, nargs="?", const=10.0, metavar="SECONDS", help=watch)
    _add_serve(p)
    add_format(p, "parquet")

    p = add("data", _data, "prepare, list and inspect data; check an objective", "lmjax data inspect configs/tiny.py")
    p.add_argument("action", choices=("prepare", "list", "inspect", "check"))
    _add_config(p)
    p.add_argument("--split", default="train", choices=("train", "validation"))
    p.add_argument("--count", default=2, type=int, help="documents and examples to show (default: 2)")

    summary = "print N, D, C, memory and the resolved config without allocating the model"
    p = add("describe", _describe, summary, "lmjax describe configs/tiny.py")
    _add_config(p)
    p.add_argument("--format", choices=("table", "json"), default="table")
    text = (
        "print the memory of a training step on this device: compiled with its JAX plug-in if installed, else estimated"
    )
    p.add_argument("--for", dest="device", metavar="h200|h100|a100|v5e|v6e", help=text)

    summary = "coordinate check of muP: do a few training steps change activations equally at every width?"
    p = add("mup", _mup, summary, "lmjax mup check configs/tiny.py --widths 64 256")
    p.add_argument("action", choices=("check",))
    _add_config(p)
    p.add_argument("--widths", type=int, nargs="+", default=[64, 256], help="values of model.d_model (default: 64 256)")
    add_format(p)

    p = add("calibrate", _calibrate, None)  # used by plan: times the step of one run in a worker
    p.add_argument("run_dir", type=pathlib.Path)
    p.add_argument("pack", type=int)
    p.add_argument("cells", type=int)


def _add_config(parser):
    parser.add_argument("config_file", nargs="?", metavar="config.py", help=CONFIG_HELP)
    parser.add_argument("--config", metavar="FILE", help="same as the positional config file")


def _config(arguments):
    """The config file, given as an argument or as --config; None without one."""
    if arguments.config and arguments.config_file:
        raise InputError(f"expected one config file, got {arguments.config_file} and --config {arguments.config}")
    return arguments.config or arguments.config_file


def add_format(parser, *more) -> None:
    """Declares --format and --out of a command that prints a table."""
    parser.add_argument("--format", choices=(*FORMATS, *more), default="table", help="output format (default: table)")
    parser.add_argument("--out", type=pathlib.Path, help="output file (default: print)")


def _add_sweep_arguments(parser):
    parser.add_argument(
        "config", metavar="sweep.py", help="sweep file, path.py or path.py:argument; defines get_config() and sweep()"
    )
    parser.add_argument("--workdir", type=pathlib.Path, help="parent of the runs (default: runs/<file>[-<argument>])")
    parser.add_argument(
        "--workers", type=int, default=0, help="number of worker processes (default: one per core, GPU or TPU chip)"
    )


def _add_serve(parser):
    text = "serve a live web page of the runs on this machine (default port: 8642, or a free one)"
    parser.add_argument("--serve", type=int, nargs="?", const=0, metavar="PORT", help=text)


def _add_pack(parser):
    text = "number of runs of equal shape to train at once in one program (auto, the default: 1 on CPUs, else measured)"
    parser.add_argument("--pack", type=_pack, default="auto", metavar="auto|K", help=text)


def _pack(text):
    """The value of --pack: "auto" or a number of runs."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"expected auto or a positive integer, got {text!r}")
    return text if text == "auto" else int(text)


def _search(text):
    """The value of --halving: (eta, key)."""
    eta, _, key = text.partition(":")
    if not eta.isdecimal() or int(eta) < 2:
        raise argparse.ArgumentTypeError(f"expected an integer, 2 or above, and perhaps :KEY, got {text!r}")
    return (int(eta), key or "optimizer.learning_rate")


def _steps(text):
    """The value of --profile: (first, last)."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected FIRST:LAST, two steps such as 10:15, got {text!r}")
    return int(first), int(last)


def _resolved(spec, overrides):
    from lmjax import config
    from lmjax.resolve import resolve

    return resolve(config.load(str(spec), overrides))


def _train(arguments, overrides):
    start(several=True)
    from lmjax import trainer

    spec, run_dirs = _config(arguments), arguments.run_dir
    if spec is None and len(run_dirs) > 1 and {".py", ".json"} & {run_dirs[-1].suffix.partition(":")[0]}:
        spec = run_dirs.pop()  # lmjax train --run-dir DIR config.py
    if spec is None and not run_dirs:
        raise InputError("expected a config file, or --run-dir of an existing run")
    if spec is not None and (len(run_dirs) > 1 or arguments.pack not in ("auto", 1)):
        raise InputError("a config file gives one run: expected one --run-dir and no --pack, or no config file")
    if len(run_dirs) > 1 or arguments.pack not in ("auto", 1):
        if arguments.profile:
            raise InputError("--profile traces one run: expected one --run-dir and no --pack")
        from lmjax import pack

        slots = pack.default_slots() if arguments.pack == "auto" else arguments.pack
        return pack.train_list(run_dirs, slots, overrides, not arguments.quiet, arguments.keep)
    run = _resolved(spec or run_dirs[0] / "config.json", overrides)
    run_dir = run_dirs[0] if run_dirs else arguments.workdir / run.run_id
    code = trainer.train(run, run_dir, not arguments.quiet, arguments.keep, profile=arguments.profile)
    if code == trainer.DONE and trainer.jax.process_index() == 0:
        print(f"finished: {run_dir}")
    return code


def _leave_devices():
    """A backend that a config file or a plug-in starts in this process is the CPU's: the workers need the devices."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def _sweep(arguments, overrides):
    _leave_devices()
    launcher, hosts = arguments.launcher, [host for host in arguments.hosts.split(",") if host]
    if hosts and launcher != "hosts" or arguments.address and launcher != "ray":
        raise InputError("--hosts needs --launcher hosts, and --address needs --launcher ray")
    other = arguments.status or arguments.predict or arguments.dry_run or arguments.retry
    if arguments.halving and (other or launcher not in ("local", "ray")):
        raise InputError(
            "--halving waits for all runs of a rung: expected --launcher local or ray, without --status, --predict, "
            "--dry-run and --retry"
        )
    elsewhere = launcher not in ("local", "ray")
    if arguments.serve is not None and (arguments.status or arguments.predict or arguments.dry_run or elsewhere):
        raise InputError(
            "--serve shows a sweep while this command trains it; for a queued or a finished sweep, use lmjax runs DIR "
            "--serve"
        )
    if arguments.status or arguments.predict:
        from lmjax.sweeps import run

        what = run.status if arguments.status else run.predict
        return what(arguments.config, arguments.workdir or run.workdir_of(arguments.config), overrides)
    if elsewhere:
        from lmjax.sweeps import run

        options = (not arguments.no_analysis, arguments.keep, arguments.records, arguments.pack, hosts)
        workdir = arguments.workdir or run.workdir_of(arguments.config)
        workers, dry_run = arguments.workers, arguments.dry_run
        more = {"retry": arguments.retry, "keep_checkpoints": arguments.keep_checkpoints}
        return run.submit(arguments.config, workdir, overrides, launcher, workers, *options, dry_run, **more)
    if arguments.dry_run:
        if arguments.records:
            raise InputError("--dry-run writes nothing and takes no --records; leave out one of the two")
        arguments.no_calibration, arguments.format, arguments.out = False, "table", None
        return _plan(arguments, overrides)
    note_idle_accelerator()
    from lmjax.sweeps import run
    from lmjax.sweeps.halving import Search

    analyse, workdir = not arguments.no_analysis, arguments.workdir or run.workdir_of(arguments.config)
    launch = None
    if launcher == "ray":
        from lmjax.sweeps.launchers import ray_tasks

        launch = ray_tasks.connect(arguments.address)
    options = (analyse, arguments.keep, arguments.quiet, arguments.records, arguments.pack, launch)
    options += (arguments.retry, arguments.keep_checkpoints, arguments.halving and Search(*arguments.halving))
    options += (arguments.serve,)
    return run.sweep(arguments.config, workdir, overrides, arguments.workers, *options)


def _plan(arguments, overrides):
    from lmjax.sweeps import run

    _leave_devices()

    calibrate, workdir = not arguments.no_calibration, arguments.workdir or run.workdir_of(arguments.config)
    shown = (arguments.format, arguments.out, arguments.pack)
    return run.plan(arguments.config, workdir, overrides, arguments.workers, calibrate, *shown)


def _mup(arguments, overrides):
    if not (spec := _config(arguments)):
        raise InputError("lmjax mup check: expected a config file")
    start()
    from lmjax import config, coordinates
    from lmjax.display import Column, show

    rows, good, verdict = coordinates.check(config.load(str(spec), overrides), arguments.widths)
    titles = {"initial": "initial logits"} | {key: f"change, {what}" for key, what in coordinates.CHANGES.items()}
    columns = [Column("parametrization", left=True), Column("width")]
    columns += [Column(key, title, "{:.4f}".format) for key, title in titles.items() if key in rows[0]]
    show(rows, columns, arguments.format, arguments.out)
    print(verdict, file=sys.stdout if arguments.format == "table" else sys.stderr)
    return 0 if good else 1


def _calibrate(arguments, overrides):
    start()
    from lmjax.sweeps import plan

    run = _resolved(arguments.run_dir / "config.json", {})
    print(json.dumps(plan.calibrate(run, pack=arguments.pack, cells=arguments.cells)))
    return 0


def _runs(arguments, overrides):
    from lmjax import describe, run_record

    if arguments.serve is not None:
        if (arguments.records, arguments.watch, arguments.out) != (None, None, None) or arguments.format != "table":
            raise InputError("--serve shows a page; leave out --records, --watch, --format and --out")
        from lmjax.sweeps import serve

        return serve.serve_until_stopped(arguments.directory, arguments.serve)
    if arguments.records is not None:
        from lmjax.sweeps import records

        if arguments.out is not None or arguments.format != "table":
            raise InputError("--records packs the runs instead of showing the table; leave out --format and --out")
        print("\n".join(records.pack(arguments.directory, arguments.records)))
        return 0
    if arguments.watch is not None:
        if arguments.out is not None or arguments.format != "table":
            raise InputError("--watch prints the table again and again; leave out --format and --out")
        return describe.watch_runs(arguments.directory, arguments.watch)
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
    spec = _config(arguments)
    if overrides and not spec:
        raise InputError(f"--config.* keys need a config file, got {sorted(overrides)}")
    if arguments.action == "list":
        console.print(inspect.render_stores(inspect.list_stores()))
        return 0
    if not spec:
        raise InputError(f"lmjax data {arguments.action}: expected a config file")
    run = _resolved(spec, overrides)
    if arguments.action == "check":
        from lmjax.objectives import battery

        spec = run.data.spec(run.objective, run.config.objective.options)
        try:
            checked = battery.check_objective(run.objective, spec)
            console.print("\n".join([checked, *run.batches.cut_off()]), markup=False)
        except AssertionError as error:
            raise InputError(f"{run.objective.name}: {error}") from error
        return 0
    if arguments.action == "prepare":
        console.print_json(json.dumps(run.data.manifest))
        return 0
    console.print(inspect.render_documents(run.data, arguments.split, arguments.count))
    console.print(inspect.render_examples(run.data, run.objective, run.config, arguments.count))
    return 0


def _describe(arguments, overrides):
    from lmjax import describe

    if not (spec := _config(arguments)):
        raise InputError("lmjax describe: expected a config file")
    run = _resolved(spec, overrides)
    record = run.record() if arguments.device is None else describe.on_device(run, arguments.device)
    if arguments.format == "json":
        print(json.dumps(record, indent=1))
    elif arguments.device is None:
        describe.show(run)
    else:
        describe.show_on_device(run, record)
    return 0

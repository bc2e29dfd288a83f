"""`lmjax <command>`: parses, calls, prints. No logic of its own."""

import argparse
import json
import os
import pathlib
import sys
import traceback
from collections.abc import Sequence

from lmjax.errors import InputError, nearest

COMMANDS = (
    "train",
    "sweep",
    "plan",
    "runs",
    "generate",
    "eval",
    "fit",
    "plot",
    "report",
    "import",
    "export",
    "data",
    "describe",
)
_CONFIG_HELP = "config file, path.py or path.py:argument; single keys are set with --config.section.key=value"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 64 bad config or input, 75 start me again, 1 failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments, overrides = _parse(argv)
        return arguments.call(arguments, overrides)
    except InputError as error:
        print(f"lmjax: {error}", file=sys.stderr)
        return _end(64)
    except OSError as error:
        print(f"lmjax: {error}; nothing already written was changed", file=sys.stderr)
        return _end(1)
    except Exception:
        traceback.print_exc()
        return _end(1)


def _end(code):
    """The exit code; one of several processes leaves at once, for a normal exit waits for others that may be dead."""
    from lmjax.distributed import expected_processes

    if expected_processes() > 1:
        sys.stderr.flush()
        os._exit(code)
    return code


def _parse(argv):
    """Splits --config.a.b=value from the rest; returns (arguments, {"a.b": "value"})."""
    overrides, rest, words = {}, [], iter(argv)
    for word in words:
        if word.startswith("--config."):
            key, equals, value = word.removeprefix("--config.").partition("=")
            overrides[key] = value if equals else next(words, "")
        else:
            rest.append(word)
    if rest and not rest[0].startswith("-") and rest[0] not in (*COMMANDS, "calibrate"):
        raise InputError(f"unknown command {rest[0]!r}{nearest(rest[0], COMMANDS)}")
    arguments = _parser().parse_args(rest)
    if overrides and not hasattr(arguments, "config"):
        raise InputError(f"lmjax {arguments.command} takes no --config.* keys, got {sorted(overrides)}")
    return arguments, overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; see {self.prog} --help")


def _parser():
    parser = _Parser(prog="lmjax", description="Scaling experiments with language models in JAX/Flax.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)

    def add(name, call, summary, **options):
        command = commands.add_parser(name, help=summary, description=summary, **options)
        command.set_defaults(call=call)
        return command

    p = add("train", _train, "train one run, or go on with it")
    p.add_argument("--config", help=_CONFIG_HELP)
    p.add_argument("--workdir", default="runs", type=pathlib.Path, help="parent of the run directory (default: runs)")
    p.add_argument("--run-dir", type=pathlib.Path, help="the run directory itself; with no --config, an existing one")

    p = add("sweep", _sweep, "train every cell of a sweep, fit, plot and report")
    _add_sweep_arguments(p)
    p.add_argument("--dry-run", action="store_true", help="only show the plan, as lmjax plan does")
    p.add_argument("--no-analysis", action="store_true", help="train only")

    p = add("plan", _plan, "what a sweep will cost, and whether its design can identify a law")
    _add_sweep_arguments(p)
    p.add_argument("--no-calibration", action="store_true", help="leave out the estimate of time")

    p = add("runs", _runs, "the tidy table of all runs below a directory")
    p.add_argument("directory", type=pathlib.Path)
    p.add_argument("--format", choices=("table", "csv", "parquet", "json"), default="table")
    p.add_argument("--out", type=pathlib.Path, help="file to write (parquet needs one)")

    for name, call, summary in (
        ("fit", _fit, "fit a scaling law to runs, or to a table with columns N, D, loss"),
        ("plot", _plot, "draw the figures of a directory of runs"),
        ("report", _report, "write the self-contained HTML report of a directory of runs"),
    ):
        p = add(name, call, summary)
        p.add_argument(
            "source",
            type=pathlib.Path,
            help="directory of runs" + (", or .csv / .parquet / .jsonl" if name == "fit" else ""),
        )
        p.add_argument("--law", default="chinchilla", help="chinchilla | power_n | power_d (default: chinchilla)")
        p.add_argument("--n", default="n_total", help="what counts as N: n_total | n_non_embedding")
        p.add_argument("--bootstrap", default=1000, type=int, help="refits behind the intervals (default: 1000)")
        p.add_argument("--out", type=pathlib.Path, help="where to write (default: inside the directory of runs)")
        p.add_argument("--family", default="", help="of the runs that count, where a directory has several")

    p = add("generate", _generate, "continue prompts, fill masks (encoder) or missing spans (encoder-decoder)")
    p.add_argument("run_dir", type=pathlib.Path, help="a trained or imported run")
    p.add_argument("--prompt", action="append", default=[], help="text; may be given several times")
    p.add_argument("--prompts", type=pathlib.Path, help="file with a prompt on each line, blank ones skipped; -: stdin")
    p.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    p.add_argument("--batch-size", default=16, type=int, help="rows at a time; changes speed only (default: 16)")
    p.add_argument("--top", default=5, type=int, help="fillings shown for each mask (encoder; default: 5)")
    p.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_settings(p)

    p = add("eval", _eval, "evaluate a run, or every run of a sweep, into one tidy table")
    p.add_argument("source", type=pathlib.Path, help="a run, or a directory of runs")
    p.add_argument("--tasks", default="", help="names and .toml files, comma-separated, or all; without: list them")
    p.add_argument("--shots", default="0", help="examples shown before the question, comma-separated (default: 0)")
    p.add_argument("--limit", type=int, help="items of a task at most (default: the task's own number)")
    p.add_argument("--steps", default="last", choices=("last", "all"), help="checkpoints of each run (default: last)")
    p.add_argument("--seed", default=0, type=int, help="of items and shown examples (default: 0)")
    p.add_argument("--batch-size", default=16, type=int, help="rows at a time; changes speed only (default: 16)")
    p.add_argument("--semantics", default="", help="of scores (default: the model's natural one)")
    p.add_argument(
        "--source",
        dest="text_source",
        default="",
        metavar="NAME",
        help="perplexity: held-out documents of this source, e.g. 'files:texts/*.txt' (default: the run's own)",
    )
    p.add_argument("--stride", default=0, type=int, help="perplexity: tokens by which windows advance (default: all)")
    p.add_argument(
        "--out",
        type=pathlib.Path,
        help=".csv or .parquet, for this command's results (default: evaluations.csv in the source, for all so far)",
    )

    p = add("import", _import, "turn a Hugging Face folder into a run")
    p.add_argument(
        "--from", dest="source", required=True, type=pathlib.Path, help="config.json, safetensors, tokenizer"
    )
    p.add_argument("--to", dest="run_dir", required=True, type=pathlib.Path, help="the run directory to write")

    p = add("export", _export, "write a run as a Hugging Face folder")
    p.add_argument("run_dir", type=pathlib.Path)
    p.add_argument("--to", dest="target", required=True, type=pathlib.Path, help="the folder to write")
    p.add_argument("--step", type=int, help="of the checkpoint (default: the newest)")
    p.add_argument("--dtype", default="", help="float32 | bfloat16 | float16 (default: as imported, else float32)")

    p = add("data", _data, "prepare, list and inspect data; check an objective")
    p.add_argument("action", choices=("prepare", "list", "inspect", "check"))
    p.add_argument("--config", default="", help=_CONFIG_HELP)
    p.add_argument("--split", default="train", choices=("train", "validation"))
    p.add_argument("--count", default=2, type=int, help="documents and examples to show (default: 2)")

    p = add("describe", _describe, "N, D, C, memory and the resolved config; allocates nothing")
    p.add_argument("--config", required=True, help=_CONFIG_HELP)
    p.add_argument("--format", choices=("table", "json"), default="table")

    p = commands.add_parser("calibrate")  # used by plan: times the step of one run in a worker
    p.add_argument("run_dir", type=pathlib.Path)
    p.set_defaults(call=_calibrate)
    return parser


def _add_settings(parser):
    """One flag for each field of decoding Settings, with its help: --max-new-tokens 100, --stop-strings END (again)."""
    import dataclasses
    import re

    from lmjax.decoding.settings import Settings

    described = dict(re.findall(r"^        (\w+): (.*(?:\n {12}.*)*)", Settings.__doc__, re.MULTILINE))
    for field in dataclasses.fields(Settings):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        text = " ".join(described[field.name].split()).replace("%", "%%")
        if field.name in ("stop_ids", "stop_strings"):
            kind = int if field.name == "stop_ids" else str
            parser.add_argument(flag, action="append", type=kind, help=f"{text} May be repeated.")
        else:
            kind = str if isinstance(default, (bool, str)) else type(default)
            parser.add_argument(flag, type=kind, default=default, help=f"{text} (default: {default})")


def _settings(arguments):
    import dataclasses

    from lmjax.decoding.settings import Settings

    words = {"True": True, "False": False}
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    given = {name: words.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    return Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None})


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


def _start(several: bool = False):
    """What comes before JAX: this worker's cores, memory settings, joining other processes, the compilation cache."""
    from lmjax import environment

    environment.enter_worker()
    environment.keep_memory()
    if several:
        from lmjax import distributed

        distributed.stop_before_training()
        distributed.initialize()
    environment.use_compilation_cache()


def _train(arguments, overrides):
    _start(several=True)
    from lmjax import config, train
    from lmjax.resolve import resolve

    spec = arguments.config
    if spec is None:
        if arguments.run_dir is None:
            raise InputError("wanted --config, or --run-dir of an existing run")
        spec = str(arguments.run_dir / "config.json")
    run = resolve(config.load(spec, overrides))
    run_dir = arguments.run_dir or arguments.workdir / run.run_id
    code = train.train(run, run_dir)
    if code == train.DONE and train.jax.process_index() == 0:
        print(f"finished: {run_dir}")
    return code


def _sweep(arguments, overrides):
    if arguments.dry_run:
        arguments.no_calibration = False
        return _plan(arguments, overrides)
    from lmjax.sweep import run

    return run.sweep(arguments.config, _workdir(arguments), overrides, arguments.workers, not arguments.no_analysis)


def _plan(arguments, overrides):
    from lmjax.sweep import run

    return run.plan(arguments.config, _workdir(arguments), overrides, arguments.workers, not arguments.no_calibration)


def _calibrate(arguments, overrides):
    _start()
    from lmjax import config
    from lmjax.resolve import resolve
    from lmjax.sweep import plan

    print(json.dumps(plan.calibrate(resolve(config.load(str(arguments.run_dir / "config.json"))))))
    return 0


def _runs(arguments, overrides):
    from lmjax import run_record

    table = run_record.read_runs(arguments.directory)
    out = arguments.out
    if arguments.format == "parquet":
        if out is None:
            raise InputError("--format parquet needs --out FILE")
        table.to_parquet(out)
    elif arguments.format == "table" and out is None:
        from lmjax import describe

        describe.show_runs(table)
    else:
        text = table.to_csv(index=False) if arguments.format != "json" else table.to_json(orient="records", indent=1)
        if out is None:
            print(text)
        else:
            out.write_text(text, "utf8")
    return 0


def _generate(arguments, overrides):
    _start()
    from lmjax import generate, trained

    settings = _settings(arguments)
    prompts = arguments.prompt + _lines(arguments.prompts)
    if not prompts:
        raise InputError("wanted --prompt TEXT or --prompts FILE, got neither")
    model = trained.load(arguments.run_dir, arguments.step)
    print(generate.command(model, prompts, settings, arguments.batch_size, arguments.top, arguments.json))
    return 0


def _lines(path):
    """The lines of a prompt file, blank ones left out."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts: cannot read {path}: {error}") from error
    return [line for line in text.split("\n") if line.strip()]


def _eval(arguments, overrides):
    _start()
    from lmjax.evals import run

    if not arguments.tasks:
        print(run.list_tasks(arguments.source, arguments.semantics, arguments.text_source))
        return 0
    try:
        shots = tuple(int(k) for k in arguments.shots.split(","))
    except ValueError as error:
        raise InputError(f"--shots: wanted whole numbers like 0,1,5, got {arguments.shots!r}") from error
    table = run.evaluate(
        arguments.source,
        arguments.tasks.split(","),
        shots=shots,
        limit=arguments.limit,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        out=arguments.out,
        semantics=arguments.semantics,
        text_source=arguments.text_source,
        stride=arguments.stride,
    )
    run.show(table)
    return 0


def _import(arguments, overrides):
    from lmjax import published

    _print_facts(published.import_run(arguments.source, arguments.run_dir))
    return 0


def _export(arguments, overrides):
    from lmjax import published

    _print_facts(published.export_run(arguments.run_dir, arguments.target, arguments.step, arguments.dtype))
    return 0


def _print_facts(facts):
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {value}")


def _fit_arguments(arguments):
    return (
        arguments.source,
        arguments.law,
        arguments.n,
        arguments.bootstrap,
        arguments.out,
        arguments.family,
    )


def _fit(arguments, overrides):
    from lmjax.sweep import analysis

    return analysis.fit_command(*_fit_arguments(arguments))


def _plot(arguments, overrides):
    from lmjax.sweep import analysis

    return analysis.plot_command(*_fit_arguments(arguments))


def _report(arguments, overrides):
    from lmjax.sweep import analysis

    return analysis.report_command(*_fit_arguments(arguments))


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
        console.print(f"{run.objective.name}: shapes, determinism, hidden answers, reconstruction and rates hold")
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

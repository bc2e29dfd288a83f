"""The commands that use models: generate, eval, import, export. Parses and calls; no logic."""

import pathlib
import sys

from lmjax.cli.start import start
from lmjax.errors import InputError


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary) returns a parser."""
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


def _generate(arguments, overrides):
    start()
    from lmjax import generate, trained

    settings = _settings(arguments)
    prompts = arguments.prompt + _lines(arguments.prompts)
    if not prompts:
        raise InputError("expected --prompt TEXT or --prompts FILE, got neither")
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
    start()
    from lmjax.evals import run

    if not arguments.tasks:
        print(run.list_tasks(arguments.source, arguments.semantics, arguments.text_source))
        return 0
    try:
        shots = tuple(int(k) for k in arguments.shots.split(","))
    except ValueError as error:
        raise InputError(f"--shots: expected whole numbers like 0,1,5, got {arguments.shots!r}") from error
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
    from lmjax import hf

    _print_facts(hf.import_run(arguments.source, arguments.run_dir))
    return 0


def _export(arguments, overrides):
    from lmjax import hf

    _print_facts(hf.export_run(arguments.run_dir, arguments.target, arguments.step, arguments.dtype))
    return 0


def _print_facts(facts):
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {value}")

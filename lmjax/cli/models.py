"""The commands that use models: generate, eval, vectors, import, export."""

import dataclasses
import inspect
import json
import math
import pathlib
import re
import sys

from lmjax.cli.start import pairs_of, start
from lmjax.display import FORMATS, Column, say, show
from lmjax.errors import InputError

SHORT = {  # metric names in the terminal
    "exact_match": "exact",
    "greedy_match": "greedy",
    "preference": "prefers",
    "choice_probability": "p(right)",
    "token_accuracy": "tokens",
    "preference_margin": "margin",
    "bits_per_byte": "bits/byte",
}


def add_commands(add) -> None:
    """Declares the commands: add(name, call, summary) returns a parser."""
    p = add("generate", _generate, "continue prompts, fill masks (encoder) or missing spans (encoder-decoder)")
    p.add_argument("run_dir", type=pathlib.Path, help="directory of a trained or imported run")
    p.add_argument("--prompt", action="append", default=[], help="text to continue (repeatable)")
    p.add_argument("--prompts", type=pathlib.Path, help="file with one prompt per line, or - for standard input")
    p.add_argument("--step", type=int, help="checkpoint step (default: the newest)")
    p.add_argument("--batch-size", default=16, type=int, help="rows per batch; changes speed only (default: 16)")
    _add_mesh(p)
    p.add_argument("--top", default=5, type=int, help="predictions shown for each mask (encoder; default: 5)")
    p.add_argument("--json", action="store_true", help="print one JSON object per line")
    _add_settings(p)

    p = add("eval", _eval, "evaluate a run, or every run of a sweep, into one table")
    p.add_argument("source", type=pathlib.Path, help="a run, or a directory of runs")
    p.add_argument(
        "--tasks", default="", help="task names and .toml files, comma-separated, or all (default: list the tasks)"
    )
    p.add_argument("--shots", default="0", help="numbers of few-shot examples, comma-separated (default: 0)")
    p.add_argument("--limit", type=int, help="maximum number of items per task (default: set by the task)")
    p.add_argument(
        "--steps", default="last", choices=("last", "all"), help="checkpoints to evaluate in each run (default: last)"
    )
    p.add_argument("--seed", default=0, type=int, help="random seed for items and few-shot examples (default: 0)")
    p.add_argument("--batch-size", default=16, type=int, help="rows per batch; changes speed only (default: 16)")
    _add_mesh(p)
    p.add_argument(
        "--semantics",
        default="",
        help="score: causal | conditional | infilling | pseudo | masked (default: by model family)",
    )
    p.add_argument(
        "--source",
        dest="text_source",
        default="",
        metavar="NAME",
        help="perplexity: source of the validation documents, e.g. 'files:texts/*.txt' (default: the run's own)",
    )
    p.add_argument(
        "--stride", default=0, type=int, help="perplexity: tokens between window starts (default: the window)"
    )
    p.add_argument(
        "--out",
        type=pathlib.Path,
        help="write only these results to this .csv or .parquet (default: all results to evaluations.csv in source)",
    )
    p.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")

    p = add("vectors", _vectors, "print nearest neighbours and analogies of a model's token embeddings")
    p.add_argument("run_dir", type=pathlib.Path, help="directory of a trained or imported run")
    p.add_argument("--nearest", action="append", default=[], metavar="WORD", help="print its neighbours (repeatable)")
    asked = "answer the analogy: A is to B as C is to ? (repeatable)"
    p.add_argument("--analogy", action="append", default=[], metavar='"A B C"', help=asked)
    asked = "file of analogies, four words per line, sections begin with ': NAME' (word2vec's questions-words.txt)"
    p.add_argument("--questions", type=pathlib.Path, help=asked)
    p.add_argument("--count", default=10, type=int, help="number of neighbours or answers to print (default: 10)")
    p.add_argument("--step", type=int, help="checkpoint step (default: the newest)")
    p.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")

    p = add("import", _convert, "convert a Hugging Face folder to a run")
    p.add_argument("--from", dest="source", required=True, type=pathlib.Path, help="Hugging Face folder to import")
    p.add_argument("--to", dest="run_dir", required=True, type=pathlib.Path, help="run directory to write")

    p = add("export", _convert, "write a run as a Hugging Face folder")
    p.add_argument("run_dir", type=pathlib.Path)
    p.add_argument("--to", dest="target", required=True, type=pathlib.Path, help="folder to write")
    p.add_argument("--step", type=int, help="checkpoint step (default: the newest)")
    p.add_argument("--dtype", default="", help="float32 | bfloat16 | float16 (default: as imported, else float32)")
    p.add_argument("--part", default="", help="of an ELECTRA run: discriminator | generator (default: discriminator)")


def _add_mesh(parser):
    def sizes(text):
        return {axis: int(n) if n.isdecimal() else n for axis, n in pairs_of("--mesh", text).items()}

    text = "sizes of the mesh axes that shard the model (default: as in training, if the devices allow)"
    parser.add_argument("--mesh", type=sizes, metavar="fsdp=4,tensor=2", help=text)


def _add_settings(parser):
    """One flag for each field of decoding Settings, with its help: --max-new-tokens 100, --stop-strings END."""
    from lmjax.decoding.settings import Settings

    text = inspect.cleandoc(Settings.__doc__ or "")  # Python 3.13 removes the indentation itself
    described = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE))
    for field in dataclasses.fields(Settings):
        flag, default = "--" + field.name.replace("_", "-"), field.default
        text = " ".join(described[field.name].split()).replace("%", "%%")
        if field.name in ("stop_ids", "stop_strings"):
            kind = int if field.name == "stop_ids" else str
            parser.add_argument(flag, action="append", type=kind, help=f"{text} (repeatable)")
        else:
            kind = str if isinstance(default, (bool, str)) else type(default)
            parser.add_argument(flag, type=kind, default=default, help=f"{text} (default: {default})")


def _settings(arguments):
    from lmjax.decoding.settings import Settings

    words = {"True": True, "False": False}
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    given = {name: words.get(value, value) if isinstance(value, str) else value for name, value in given.items()}
    return Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v is not None})


def _generate(arguments, overrides):
    start()
    from lmjax import trained

    settings = _settings(arguments)
    prompts = arguments.prompt + _lines(arguments.prompts)
    if not prompts:
        raise InputError("expected --prompt TEXT or --prompts FILE, got neither")
    model = trained.load(arguments.run_dir, arguments.step, arguments.mesh)
    print(generate_text(model, prompts, settings, arguments.batch_size, arguments.top, arguments.json))
    return 0


def generate_text(trained, prompts, settings, batch_size: int = 16, top: int = 5, as_json: bool = False) -> str:
    """Returns the output of `lmjax generate` for the prompts.

    An encoder fills masks. An encoder-decoder fills blanks if the prompts have any. All other prompts are continued.

    Args:
        trained, prompts, settings, batch_size: as for generate.
        top: number of tokens printed for each mask.
        as_json: print one JSON object per line instead of text.
    """
    records = list(_records(trained, prompts, settings, batch_size, top))
    if as_json:
        return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return "\n".join(_generated(record, trained.config.model.family) for record in records)


def _records(trained, prompts, settings, batch_size, top):
    from lmjax import generate, models

    if trained.config.model.family == "encoder":
        changed = [f.name for f in dataclasses.fields(settings) if getattr(settings, f.name) != f.default]
        if changed:
            raise InputError(f"an encoder fills masks and does not generate text; leave out {', '.join(changed)}")
        for prompt, masks in zip(prompts, generate.fill_masks(trained, prompts, top, batch_size), strict=True):
            yield {"prompt": prompt, "masks": masks}
        return
    sentinels = trained.tokenizer.specials.sentinels if trained.tokenizer else ()
    fills = models.reads_source(trained.config.model.family) and sentinels
    with_blanks = [i for i, prompt in enumerate(prompts) if fills and generate.has_blanks(prompt)]
    if with_blanks and len(with_blanks) < len(prompts):
        others = [i for i in range(len(prompts)) if i not in with_blanks]
        raise InputError(f"expected blanks (<mask>) in all prompts or in none, got none in prompts {others[:5]}")
    here = trained.record.get("objective_version") != "imported"
    if not with_blanks and here and trained.config.objective.name == "span_corruption":
        raise InputError(
            f"this model was trained to fill gaps: expected <mask> or <extra_id_0> in a prompt, got {prompts[0][:80]!r}"
        )
    found = (generate.infill if with_blanks else generate.generate)(trained, prompts, settings, batch_size)
    for prompt, ones in zip(prompts, found, strict=True):
        for number, one in enumerate(ones):
            yield {"prompt": prompt, "number": number, **dataclasses.asdict(one)}


def _generated(record, family):
    if "masks" in record:
        shown = ["  ".join(f"{token!r} {p:.3f}" for token, p in tokens) for tokens in record["masks"]]
        return "\n".join([record["prompt"], *(f"  mask {m}: {tokens}" for m, tokens in enumerate(shown))])
    finish = {"stop": "stopped", "length": "cut at the limit"}[record["finish"]]
    head = f"--- {record['prompt'][:40]!r} #{record['number']}: {finish}, log-probability {record['log_prob']:.2f} nats"
    if record["score"] != record["log_prob"]:
        head += f", score {record['score']:.4f}"
    body = record["text"] if "spans" in record or family != "decoder" else record["prompt"] + record["text"]
    return f"{head}\n{body}"


def _lines(path, option="--prompts"):
    """Returns the non-blank lines of a file."""
    if path is None:
        return []
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}: cannot read {path}: {error}") from error
    return [line for line in text.split("\n") if line.strip()]


def _eval(arguments, overrides):
    from lmjax.distributed import expected_processes

    start(several=expected_processes() > 1)
    import jax

    from lmjax.evals import run

    if not arguments.tasks:
        print(run.list_tasks(arguments.source, arguments.semantics, arguments.text_source))
        return 0
    try:
        shots = tuple(int(k) for k in arguments.shots.split(","))
    except ValueError as error:
        raise InputError(f"--shots: expected integers such as 0,1,5, got {arguments.shots!r}") from error
    names = ("limit", "seed", "batch_size", "steps", "out", "semantics", "text_source", "stride", "mesh")
    options = {name: getattr(arguments, name) for name in names}
    table = run.evaluate(arguments.source, arguments.tasks.split(","), shots=shots, **options)
    if jax.process_index() > 0:
        return 0
    if arguments.format == "table":
        show_evaluations(table)
    else:
        show(table.to_dict("records"), (), arguments.format)
    return 0


def _vectors(arguments, overrides):
    start()
    from lmjax import trained
    from lmjax.evals import vectors

    if bool(arguments.nearest or arguments.analogy) == bool(arguments.questions):
        raise InputError("expected --nearest WORD or --analogy 'A B C', or else --questions FILE, got both or neither")
    analogies = [text.split() for text in arguments.analogy]
    if wrong := [text for text, words in zip(arguments.analogy, analogies, strict=True) if len(words) != 3]:
        raise InputError(f"--analogy: expected three words, as in 'man king woman', got {wrong[0]!r}")
    if arguments.count < 1:
        raise InputError(f"--count: expected 1 or more, got {arguments.count}")
    lines = _lines(arguments.questions, "--questions")
    found, count = vectors.of(trained.load(arguments.run_dir, arguments.step)), arguments.count
    asked = [(word, found.nearest(word, count)) for word in arguments.nearest]
    asked += [(" ".join(words), found.analogy(*words, count)) for words in analogies]
    rows = [{"asked": text, "token": token, "cosine": x} for text, answers in asked for token, x in answers]
    columns = [Column("asked", left=True), Column("token", text=repr, left=True)]
    columns.append(Column("cosine", text="{:.3f}".format))
    if arguments.questions:
        rows, columns = found.accuracy(lines), [Column("section", left=True)]
        columns += map(Column, ("questions", "left_out", "right"))
        columns.append(Column("accuracy", text="{:.3f}".format))
    show(rows, columns, arguments.format)
    return 0


def show_evaluations(made) -> None:
    """Prints a table per run and step, with one row per task and number of shots; then the tasks without a result.

    Args:
        made: table of lmjax.evals.run.evaluate.
    """
    from rich.console import Console
    from rich.table import Table

    from lmjax.evals.table import HEADLINES

    console = Console()
    done = made[made["status"] == "done"]
    for (run_id, step), block in done.groupby(["run_id", "step"], dropna=False, sort=False):
        semantics = ", ".join(sorted({x for x in block["semantics"] if x}))
        say(console, f"\n{run_id}  step {_whole(step)}  ({semantics})")
        shown = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column("task", overflow="fold")
        for name in ("shots", "hard metric", "smooth metric", "chance", "n"):
            shown.add_column(name, no_wrap=True, justify="left" if "metric" in name else "right")
        keys = ["task", "shots", "limit", "evaluation_seed", "text_source", "stride"]
        for (task, shots, *_), rows in block.groupby(keys, dropna=False, sort=False):
            shown.add_row(task, _whole(shots), *_cells(rows.to_dict("records")))
        console.print(shown)
        for task, rows in block[block["seen"] > 0].groupby("task", sort=False):
            first = rows.iloc[0]
            line = f"{task}: {round(first['seen'] * first['n'])} of {_whole(first['n'])} items are in the training text"
            for _, row in rows[rows["metric"].isin(HEADLINES)].head(1).iterrows():
                line += f"; {row['metric']} on them {row['value_seen']:.3f}, on the others {row['value_unseen']:.3f}"
            say(console, line)
    others = made[made["status"] != "done"]
    for (run_id, status, reason), rows in others.groupby(["run_id", "status", "reason"], sort=False):
        shots = {task: part["shots"].dropna().astype(int) for task, part in rows.groupby("task", sort=False) if task}
        tasks = [f"{task} ({', '.join(map(str, sorted(set(k))))}-shot)" for task, k in shots.items()]
        say(console, f"{run_id}: {status.replace('_', ' ')}: {reason}" + f": {', '.join(tasks)}" * bool(tasks))


def _cells(rows):
    from lmjax.evals.table import HEADLINES, SMOOTH

    by_name = {row["metric"]: row for row in rows}
    hard, smooth = (next((by_name[n] for n in names if n in by_name), None) for names in (HEADLINES, SMOOTH))
    if hard is smooth is None:
        smooth = rows[0]
    chance = "" if hard is None or math.isnan(hard["chance"]) else f"{hard['chance']:.2g}"
    return [_metric(hard) if hard else "", _metric(smooth) if smooth else "", chance, _whole(rows[0]["n"])]


def _whole(x):
    return "" if math.isnan(x) else str(int(x))


def _metric(row):
    """Example: {"metric": "exact_match", "value": 0.5, "standard_error": 0.0493}: "exact 0.500±0.049"."""
    error = "" if math.isnan(row["standard_error"]) else f"±{_three_digits(row['standard_error'])}"
    return f"{SHORT.get(row['metric'], row['metric'])} {_three_digits(row['value'])}{error}"


def _three_digits(x):
    return f"{x:.3f}" if x == 0 or 0.001 <= abs(x) < 100 else f"{x:.2g}"


def _convert(arguments, overrides):
    from lmjax import hf

    if arguments.command == "import":
        facts = hf.import_run(arguments.source, arguments.run_dir)
    else:
        facts = hf.export_run(arguments.run_dir, arguments.target, arguments.step, arguments.dtype, arguments.part)
    for name, value in facts.items():
        print(f"{name.replace('_', ' ')}: {value}")
    return 0

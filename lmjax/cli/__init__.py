"""The command line, `lmjax COMMAND`: parse, call, print."""

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Sequence

import lmjax
from lmjax.cli import completion, emergence, methods, models, scaling, training
from lmjax.errors import InputError, nearest

COMMANDS = (
    "train sweep plan runs generate eval vectors fit plot report laws holdout isoflop design next frontier two-step "
    "tuning critical-batch annealing collapse quantization emergence import export data describe mup completion"
).split()


def run() -> None:
    """Run the command of this process and end the process with its exit code."""
    gc.set_threshold(50_000, 20, 20)  # imports and tracing make few cycles; Python spends a tenth of a start on them
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code not in (0, 75):  # a normal exit would wait minutes for threads of a failed save or for dead processes
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 64 bad config or input, 75 stopped and saved, 1 failed."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        command = next((word for word in argv if not word.startswith("-")), "")
        words = [_local(word, before, command) for before, word in zip(["", *argv], argv, strict=False)]
        arguments, overrides = _parse(words)
        return arguments.call(arguments, overrides)
    except InputError as error:
        print(f"lmjax: {error}", file=sys.stderr)
        return 64
    except OSError as error:
        print(f"lmjax: {error}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        return 1


def _parse(argv):
    """Separates --config.a.b=value from the other arguments; returns (arguments, {"a.b": "value"})."""
    overrides, rest, words = {}, [], iter(argv)
    for word in words:
        if word.startswith("--config."):
            key, equals, value = word.removeprefix("--config.").partition("=")
            overrides[key] = value if equals else next(words, "")
        else:
            rest.append(word)
    if not rest:
        raise InputError(f"expected a command: {', '.join(COMMANDS)}; see lmjax --help")
    if not rest[0].startswith("-") and rest[0] not in (*COMMANDS, "calibrate"):
        raise InputError(f"unknown command {rest[0]!r}{nearest(rest[0], COMMANDS)}")
    arguments = _parser().parse_args(rest)
    if overrides and not hasattr(arguments, "config"):
        raise InputError(f"lmjax {arguments.command} takes no --config.* keys, got {sorted(overrides)}")
    return arguments, overrides


def _local(word, before, command):
    """A word of the command line; for the URL of a run or of runs in a bucket, its working copy."""
    flag, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
    if not value.startswith(("s3://", "gs://")) or flag.startswith("--config"):
        return word
    reads = (flag, command) == ("--records", "sweep")
    if flag in ("--out", "--to", "--from", "--records") and not reads:
        raise InputError(f"{flag}: expected a path, got {value}; only runs can be in a bucket")
    from lmjax import bucket  # it imports jax

    return f"{flag}=" * bool(equals) + str(bucket.local_file(value) if reads else bucket.local(value))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; see {self.prog} --help")


def _parser():
    parser = _Parser(prog="lmjax", description="Scaling experiments with language models in JAX/Flax.")
    parser.add_argument("--version", action="version", version=f"lmjax {lmjax.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)

    def add(name, call, summary, example=""):
        """Adds the parser of a command; a command without a summary is not listed in the help."""
        epilog = f"example: {example}" if example else None
        shown = {"help": summary, "description": summary, "epilog": epilog} if summary else {}
        command = commands.add_parser(name, **shown)
        command.set_defaults(call=call)
        return command

    for group in (training, models, scaling, methods, emergence):
        group.add_commands(add)

    def show_completion(arguments, _):
        print(completion.script({name: commands.choices[name] for name in COMMANDS}, arguments.shell), end="")
        return 0

    p = add("completion", show_completion, "print a completion script", 'eval "$(lmjax completion bash)"')
    p.add_argument("shell", choices=completion.SHELLS)
    return parser

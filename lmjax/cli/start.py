"""Setup of a command: settings needed before JAX is imported, and an early check that figures can be drawn."""

import argparse
import os
import pathlib
import sys

from lmjax.errors import InputError


class FigurePath(argparse.Action):
    """A figure file option; checks its format and that matplotlib is installed while parsing."""

    def __call__(self, parser, namespace, value, option=None):
        from lmjax.scaling.figures import style

        path = pathlib.Path(value)
        style.check_formats([path.suffix[1:] or "png"])
        setattr(namespace, self.dest, path)


def start(several: bool = False):
    """Sets up this worker's cores and memory, joins the run's other processes, and enables the compilation cache."""
    from lmjax import process

    process.enter_worker()
    process.keep_memory()
    if set_now := process.tune_gpus():
        print(f"lmjax: set {' '.join(set_now)}", file=sys.stderr)
    if several:
        from lmjax import distributed

        note_idle_accelerator()
        distributed.stop_before_training()
        distributed.initialize()
    process.use_compilation_cache()


def note_idle_accelerator() -> None:
    """Prints a note on stderr if JAX will not use an accelerator of this machine; not in the workers of a sweep."""
    from lmjax.hardware import idle_accelerator
    from lmjax.process import PARENT

    if PARENT not in os.environ and (said := idle_accelerator()):
        print(f"lmjax: {said}", file=sys.stderr)


def add_rows(parser) -> None:
    """Declares the options of every command that reads a table: its column names, and which rows to use."""
    columns = "names of the columns in this table"
    where = 'use only rows with KEY=VALUE, or rows for which an expression such as "epoch <= 1" is true (repeatable)'
    parser.add_argument("--columns", default="", metavar="N=params,D=tokens,loss=val_loss", help=columns)
    parser.add_argument("--where", action="append", default=[], metavar="CONDITION", help=where)


def pairs_of(flag: str, text: str) -> dict[str, str]:
    """Returns "N=params,D=tokens" as {"N": "params", "D": "tokens"}; flag: the option, for the error message."""
    pairs = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"{flag}: expected NAME=VALUE, comma-separated, such as N=7e9,D=1.4e11, got {part!r}")
        pairs[name.strip()] = value.strip()
    return pairs

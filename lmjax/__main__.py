"""`python -m lmjax` is `lmjax`."""

from lmjax.cli import run

run()

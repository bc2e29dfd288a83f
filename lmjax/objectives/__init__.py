"""The training objectives by name. To add your own, write a file that adds it to OBJECTIVES, and set
config.objective.file to that file."""

import hashlib
import pathlib

from lmjax.config import run_file
from lmjax.errors import InputError, nearest
from lmjax.objectives.base import LM, Example, Head, Objective, Spec, merge_options
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.objectives.prefix_lm import PREFIX_LM
from lmjax.objectives.span_corruption import SPAN_CORRUPTION

__all__ = ["LM", "OBJECTIVES", "Example", "Head", "Objective", "Spec", "get", "merge_options"]

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (CAUSAL_LM, MASKED_LM, PREFIX_LM, SPAN_CORRUPTION)
}
_BUILT_IN = dict(OBJECTIVES)
_run_files: set[tuple[str, str]] = set()  # (path, hash) of files run so far


def get(name: str, file: str = "") -> tuple[Objective, str]:
    """Returns (objective, version); a file, if given, is run first and is expected to add `name` to OBJECTIVES.

    The version is "1" for a built-in, "1+<hash of the file>" for your own, so that editing the file starts new runs.

    Raises:
        InputError: unknown name; missing file; the file redefines a built-in name.
    """
    version = ""
    if file:
        path = pathlib.Path(file).resolve()
        if not path.is_file():
            raise InputError(f"objective.file: no file {file!r}")
        version = "+" + hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        if (str(path), version) not in _run_files:
            run_file(path, "objective")
            changed = [known for known, objective in _BUILT_IN.items() if OBJECTIVES.get(known) is not objective]
            if changed:
                OBJECTIVES.update(_BUILT_IN)
                raise InputError(f"objective.file {path}: {changed} are built in; give yours another name")
            _run_files.add((str(path), version))
    if name not in OBJECTIVES:
        where = f" in {file}" if file else "; one of your own needs objective.file"
        raise InputError(f"unknown objective.name {name!r}{where}{nearest(name, OBJECTIVES)}")
    return OBJECTIVES[name], f"{OBJECTIVES[name].version}{version}"

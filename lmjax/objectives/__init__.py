"""The objectives by name. Yours: write one file, add it to OBJECTIVES there, and name the file in
config.objective.file."""

import hashlib
import importlib.util
import pathlib

from lmjax.errors import InputError, nearest
from lmjax.objectives.base import Example, Objective, Spec, merge_options
from lmjax.objectives.causal_lm import CAUSAL_LM
from lmjax.objectives.masked_lm import MASKED_LM
from lmjax.objectives.prefix_lm import PREFIX_LM
from lmjax.objectives.span_corruption import SPAN_CORRUPTION

__all__ = ["OBJECTIVES", "Example", "Objective", "Spec", "get", "merge_options"]

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective for objective in (CAUSAL_LM, MASKED_LM, PREFIX_LM, SPAN_CORRUPTION)
}


def get(name: str, file: str = "") -> tuple[Objective, str]:
    """Returns (objective, version); a file, if given, is run first and is expected to add `name` to OBJECTIVES.

    The version is "1" for a built-in, "1+<hash of the file>" for one of your own, so that editing it makes new runs.
    """
    version = ""
    if file:
        path = pathlib.Path(file).resolve()
        if not path.is_file():
            raise InputError(f"objective.file: no file {file!r}")
        version = "+" + hashlib.sha256(path.read_bytes()).hexdigest()[:10]
        if name not in OBJECTIVES:
            spec = importlib.util.spec_from_file_location(f"_lmjax_objective_{path.stem}", path)
            if spec is None or spec.loader is None:
                raise InputError(f"objective.file: {file!r} is no Python file")
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if name not in OBJECTIVES:
        where = f" in {file}" if file else "; one of your own needs objective.file"
        raise InputError(f"unknown objective.name {name!r}{where}{nearest(name, OBJECTIVES)}")
    objective = OBJECTIVES[name]
    return objective, f"{objective.version}{version}"

"""Run identity: a hash of the settings, data and objective that determine the result, and one of the source code."""

import ast
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax.errors import InputError

# The source files that determine a run's result: resolve.py has the loss of a step and the number of steps, parents.py
# the state from which a branch starts. Of lmjax/data only the code that makes rows from tokens: the data manifest
# identifies the tokens.
SOURCE = (
    *("losses.py", "masks.py", "pack.py", "trainer.py", "validation.py", "models", "objectives", "optim"),
    *("counting.py", "resolve.py", "parents.py", "data/pipeline.py", "data/windows.py", "data/dataset.py"),
)

# A string in Python source, whose "#" is no comment, or a comment. The module tokenize takes far longer.
STRING_OR_COMMENT = re.compile(
    r"""("{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|#[^\n]*""", re.DOTALL
)


def digest(config: ConfigDict, data_digest: str, objective_version: str, derived: Mapping[str, Any]) -> str:
    """Returns a hash (10 hex digits) of the config settings that determine a run's result.

    Keys at their default are not hashed, so that a new key with a default changes no run id.

    Args:
        config: a resolved config.
        data_digest: digest of the data manifest.
        objective_version: changes whenever an objective's meaning changes.
        derived: dotted key -> value that `resolve` derives where the key is None; counts as the key's default.
    """
    return hashed(settings(configs.flatten(configs.to_dict(config)), derived), data_digest, objective_version)


def settings(flat: Mapping[str, Any], derived: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the dotted settings, as in config.json, that determine a run's result and differ from their
    default."""
    given = configs.decisive(flat)
    default = {**{key: configs.json_default(key) for key in given.keys() & configs.DEFAULTS.keys()}, **derived}
    return {key: value for key, value in given.items() if key not in default or value != default[key]}


def hashed(given: Mapping[str, Any], data_digest: str, objective_version: str) -> str:
    """Returns the `digest` of the `settings` of a config."""
    return hashlib.sha256(json.dumps([given, data_digest, objective_version], sort_keys=True).encode()).hexdigest()[:10]


@functools.cache
def code_digest() -> str:
    """Returns a hash of the source that determines a run's result, without comments and docstrings.

    The leading "c" prevents CSV readers from parsing hex digits such as 927871e366 as a number.
    """
    package = pathlib.Path(__file__).resolve().parent
    files = {file for name in SOURCE for file in [package / name, *(package / name).rglob("*.py")]}
    total = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        total.update(f"{file.relative_to(package).as_posix()}\n{meaning(file.read_text('utf8'))}\n".encode())
    return "c" + total.hexdigest()[:10]


def meaning(source: str) -> str:
    """Returns Python source without comments, docstrings, blank lines and trailing whitespace.

    Example: meaning("x = 1  # one\\n\\n'Text.'\\n") = "x = 1"
    """
    lines = STRING_OR_COMMENT.sub(lambda found: "" if found[0][0] == "#" else found[0], source).splitlines()
    nodes: list[Any] = [ast.parse(source)]
    for node in nodes:  # grows by what is inside; expressions, in which ast.walk spends its time, are left out
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            nodes += getattr(node, block, ())
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def differences(record: Mapping, now: Mapping, derived: Mapping) -> list[str]:
    """Returns the differences between a run's record and the record of the current config.

    Args:
        record: the contents of a config.json, by any version of lmjax.
        now: the record of the current config.
        derived: dotted key -> value that `resolve` derives where the key is None.

    Returns:
        e.g. ["optimizer.learning_rate: recorded 0.001, given 0.002"]; empty if they are the same run.
    """
    recorded, given = (configs.decisive(configs.settings_of(r)) for r in (record, now))
    found = []
    for key in sorted({*recorded, *given}):
        old, new = recorded.get(key), given.get(key)
        if old != new and not (old is None and new == derived.get(key)):  # the key is newer than the record
            found.append(f"{key}: recorded {old}, given {new}")
    if _content(record) != _content(now):
        found.append("the data changed")
    if record.get("objective_version") != now["objective_version"]:
        found.append("the objective changed")
    return found


def _content(record: Mapping) -> list:
    """Content hash and weight of each source; the rest of the manifest may differ between machines (paths, last digits
    of an entropy)."""
    return [[source.get("content"), source.get("weight")] for source in record.get("data", {}).get("sources", [])]


def check_same_run(run_dir: pathlib.Path, record: Mapping, now: Mapping, derived: Mapping, keep: bool = False) -> None:
    """Raises InputError if a directory holds another run, or this run trained with different source code.

    Args:
        run_dir: named in the messages.
        record, now, derived: as for `differences`.
        keep: accept results and checkpoints produced by other source code.
    """
    if record == now:
        return
    if different := differences(record, now, derived):
        raise InputError(
            f"{run_dir} holds another run ({record.get('run_id')}): {'; '.join(different[:8])}; give another "
            "--run-dir, or the config it was made with"
        )
    if record.get("code") != now["code"] and not keep:
        raise InputError(
            f"{run_dir} was made by other source code (hash {record.get('code')}, now {now['code']}): its values may "
            "differ; pass --keep to use it anyway, or a new --run-dir or --workdir to train again"
        )

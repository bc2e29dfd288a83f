"""Guards against imports that point up, files that grow too long, and a base that imports the heavy or the
optional."""

import ast
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Highest floor first. A module may import its own floor and lower ones.
FLOORS = [
    ["cli", "__main__", "api"],
    ["sweeps"],
    ["scaling"],
    ["evals", "hf"],
    ["generate"],
    ["decoding"],
    ["describe"],
    ["aot"],
    ["coordinates", "pack"],
    ["trainer", "trained", "counting"],
    ["validation", "resolve"],
    ["parents"],
    ["bucket", "identity"],
    ["checkpoint", "metrics", "trackers", "run_record"],
    ["optim"],
    ["flops", "sharding", "distributed", "process"],
    ["models"],
    ["objectives"],
    ["data"],
    ["losses", "masks"],
    ["config", "display", "hardware"],
    ["format", "locks", "defaults", "registry", "object_storage"],
    ["errors"],
]
# Stated exceptions: tables and notes that need no floor of their own.
ALLOWED = {("data", "process"), ("resolve", "data"), ("run_record", "config")}
OPTIONAL = {"tensorflow", "torch", "transformers", "matplotlib", "tensorboardX", "tensorflow_datasets", "safetensors"}
OPTIONAL |= {"ray", "kubernetes", "wandb", "mlflow", "boto3", "google.cloud"}
FILES = sorted((ROOT / "lmjax").rglob("*.py"))


def floor_of(name):
    return next((i for i, names in enumerate(FLOORS) if name in names), None)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node
            if node.module == "lmjax":
                yield from ((f"lmjax.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = path.relative_to(ROOT / "lmjax").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    here = floor_of(room)
    assert here is not None, f"{room} has no floor in FLOORS"
    for name, _ in imports(path):
        assert name.partition(".")[0] not in ("configs", "experiments", "tests"), f"{path} imports {name}"
        if name.startswith("lmjax."):
            other = name.split(".")[1]
            assert (room, other) in ALLOWED or floor_of(other) >= here, f"{path} imports {name}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_readable_in_one_sitting(path):
    assert path.stem not in ("utils", "helpers", "misc", "common")
    assert path.read_text().count("\n") <= 700
    module = ast.parse(path.read_text())
    assert path.stem in ("__init__", "__main__") or ast.get_docstring(module), "no docstring"


def test_importing_lmjax_loads_nothing_optional():
    """In a new process, everything a training run imports; nothing heavy, optional or of another framework."""
    program = (
        "import lmjax.cli, lmjax.hf, lmjax.trainer, lmjax.resolve, lmjax.sweeps.run, sys; print(' '.join(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not OPTIONAL & set(loaded.stdout.split())


def test_top_level_is_what_it_should_be():
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    top = {name.partition("/")[0] for name in listed}
    assert top <= {
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "docs",
        "setup.py",
        "lmjax",
        "configs",
        "experiments",
        "tests",
        ".ci",
        "pyproject.toml",
        "LICENSE",
        ".gitignore",
    }


def test_dependencies_have_both_bounds():
    requirements = re.findall(r'^\s+"([a-z0-9A-Z.-]+[<>=][^"]*)"', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert len(requirements) >= 20
    for requirement in requirements:
        assert "==" in requirement or (">=" in requirement and "<" in requirement), requirement

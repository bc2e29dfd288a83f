"""The files of a Hugging Face folder: config.json, safetensors in one file or in shards. Pickles are never opened."""

import contextlib
import fnmatch
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from lmjax.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TENSORS = "lmjax_tensors.json"  # in <run dir>/published
# safetensors dtype -> NumPy dtype that float32 represents exactly. Other tensors are kept unchanged, not as parameters.
FLOATS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5", "*.gguf")
# Files that export writes unchanged.
_KEPT = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.json",
    "chat_template.jinja",
    "README.md",
    "LICENSE*",
    "NOTICE*",
)
_READ = (*_KEPT, "*.safetensors", INDEX, TENSORS)


class Weights:
    """The tensors of a folder by name, read one at a time.

    Attributes:
        files: {tensor: name of its file}.
        dtypes: {tensor: "F32", "BF16", ...}.
    """

    def __init__(self, source: pathlib.Path):
        """Opens every file of the folder.

        Raises:
            InputError: no safetensors; a file that is damaged, missing, or named outside the folder.
        """
        self.source = source
        self._open = {name: open_file(source / name) for name in _weight_files(source)}
        self.files, self.dtypes = {}, {}
        for name, file in self._open.items():
            for tensor in file.keys():
                if tensor in self.files:
                    raise InputError(f"{source}: tensor {tensor} is in {self.files[tensor]} and in {name}; remove one")
                self.files[tensor], self.dtypes[tensor] = name, file.get_slice(tensor).get_dtype()

    def metadata(self, file: str) -> dict:
        """Returns the string metadata in a safetensors header."""
        return dict(self._open[file].metadata() or {})

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.files

    def __getitem__(self, tensor: str) -> np.ndarray:
        return self._open[self.files[tensor]].get_tensor(tensor)

    def shape(self, tensor: str) -> tuple[int, ...]:
        return tuple(self._open[self.files[tensor]].get_slice(tensor).get_shape())


def safetensors():
    """Returns the module safetensors; InputError naming the extra if it is not installed."""
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise InputError("Hugging Face models need the package safetensors: pip install 'lmjax[hf]'") from error
    return safetensors


def open_file(path: pathlib.Path):
    """Returns a safetensors file, open for reading; InputError if it is not one."""
    library = safetensors()
    try:
        return library.safe_open(path, "np")
    except (library.SafetensorError, OSError) as error:
        raise InputError(f"{path}: expected a safetensors file, got {error}; download it again") from error


def _weight_files(source: pathlib.Path) -> list[str]:
    """The names of the folder's safetensors files, none of them outside it."""
    if not (source / INDEX).exists():
        if (source / SINGLE).exists():
            return [SINGLE]
        others = sorted(path.name for pattern in _OTHER_FORMATS for path in source.glob(pattern))
        if others:
            command = f"t.AutoModelForCausalLM.from_pretrained('{source}').save_pretrained('NEW')"
            raise InputError(
                f"{source}: expected {SINGLE}, got {others}; pickles can run code, so these are never opened. If you "
                f'trust them, convert: python -c "import transformers as t; {command}" '
                "(or t.AutoModelForMaskedLM, t.AutoModelForSeq2SeqLM)"
            )
        raise InputError(f"{source}: expected {SINGLE} or {INDEX}, got neither; name the folder of a model")
    index = read_json(source / INDEX)
    table = index.get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{source / INDEX}: expected a weight_map of tensors to files, got {type(table).__name__}")
    files = sorted(set(table.values()))
    for name in files:
        check_name(name, source / INDEX)
        if not (source / name).is_file():
            raise InputError(f"{source}: {INDEX} expected the file {name}, got none; download it again")
    return files


def check_name(name: str, origin: pathlib.Path) -> None:
    """Raises InputError unless the name, found in the file `origin`, is that of a safetensors file in a folder."""
    if pathlib.PurePath(name).name != name or set(name) & {"\\", "\0"} or not name.endswith(".safetensors"):
        raise InputError(f"{origin}: expected names of safetensors files in this folder, got {name!r}")


def check_links(source: pathlib.Path) -> None:
    """Raises InputError if a file to be read is a link out of the folder.

    A folder of the hub's cache, <model>/snapshots/<commit>, may link to <model>/blobs.
    """
    here = source.resolve()
    allowed = [here, *([here.parent.parent / "blobs"] if here.parent.name == "snapshots" else [])]
    for path in sorted(source.iterdir()):
        if path.is_symlink() and _is_one_of(path.name, _READ):
            end = pathlib.Path(os.path.realpath(path))
            if not any(end.is_relative_to(folder) for folder in allowed):
                raise InputError(f"{path}: expected a file of this folder, got a link to {end}; copy that file here")


def _is_one_of(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def read_json(path: pathlib.Path) -> dict:
    """Returns the object in a JSON file.

    Raises:
        InputError: no such file, or not an object.
    """
    try:
        value = json.loads(path.read_text("utf8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a JSON file, got {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def write_json(path: pathlib.Path, value: Mapping) -> None:
    """Writes an object as transformers does: two spaces, sorted."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf8")


def write_weights(path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes one safetensors file, with the permissions of any new file (safetensors makes private ones)."""
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    safetensors().numpy.save_file(contiguous, path, metadata=dict(metadata) or None)
    path.chmod(mode)


def cast(array: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Returns the array in a dtype of FLOATS.

    Raises:
        InputError: values beyond the dtype's range.
    """
    with np.errstate(over="ignore"):
        out = array.astype(FLOATS[dtype])
    if dtype == "F16" and np.isinf(out).any() and not np.isinf(array).any():
        raise InputError(f"{name}: expected values below 65504 for float16, got {np.abs(array).max():g}; use bfloat16")
    return out


def copy_texts(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Copies config, tokenizer, README and licence of a folder, by their usual names; returns the names."""
    check_links(source)
    names = [path.name for path in sorted(source.iterdir()) if path.is_file() and _is_one_of(path.name, _KEPT)]
    for name in names:
        shutil.copyfile(source / name, target / name)
    return names


@contextlib.contextmanager
def fresh(target: pathlib.Path, what: str) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `target` if the block succeeds and is removed if it fails.

    Its name begins with a dot, so that leftovers of a killed process are not taken for a run. An existing target
    (perhaps the current folder) is kept and filled, config.json last.

    Raises:
        InputError: target is there and not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{what}: expected a new or empty folder, got {target}; name another, or remove it")
    target = target.resolve()
    there = target.is_dir()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = (target if there else target.parent) / f".{target.name}.{secrets.token_hex(4)}"
        partial.mkdir()
    except OSError as error:
        raise InputError(f"{what}: expected a folder that can be written, got {error}") from error
    try:
        yield partial
        if there:
            for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
                os.rename(path, target / path.name)
        else:
            os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

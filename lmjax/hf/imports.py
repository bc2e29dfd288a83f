"""lmjax import: a Hugging Face folder becomes a run directory.

<run dir>/published/ keeps what a later export needs: config.json, tokenizer and other texts unchanged,
lmjax_tensors.json (file, dtype and lmjax name of every tensor) and extra.safetensors (tensors that lmjax models do not
use).
"""

import math
import pathlib
from collections.abc import Mapping

import numpy as np

from lmjax import trained
from lmjax.errors import InputError
from lmjax.format import count
from lmjax.hf import folder, names, options, vocabulary, weights

OBJECTIVES = {"decoder": "causal_lm", "encoder": "masked_lm", "encoder_decoder": "span_corruption"}
_MAY_BE_ABSENT = ("final_logits_bias",)  # zeros then, as in transformers


def import_run(source: str | pathlib.Path, run_dir: str | pathlib.Path) -> dict:
    """Writes a Hugging Face model as a run directory; leaves nothing behind if that fails.

    Args:
        source: folder with config.json and safetensors; a tokenizer is optional.
        run_dir: new, or an empty folder.

    Returns:
        Facts to print: architecture, parameters, dtype, tokenizer, kept tensors, notes.

    Raises:
        InputError: an architecture or option that lmjax lacks (named as in config.json); tensors missing, of another
            shape, of float64 or with NaN; pickles only; damaged files; names or links that leave the folder.
    """
    source, run_dir = pathlib.Path(source), pathlib.Path(run_dir)
    if not source.exists():
        raise InputError(
            f"expected the folder of a model (config.json, {folder.SINGLE}), got {source}, which does not exist; lmjax "
            "downloads nothing: on a machine with network, for example, "
            "hf download openai-community/gpt2 --local-dir gpt2"
        )
    if not source.is_dir():
        raise InputError(f"expected the folder of a model (config.json, {folder.SINGLE}), got {source}")
    folder.check_links(source)
    config = folder.read_json(source / "config.json")
    found = folder.Weights(source)
    name, section, notes = _section(config, found)
    places = _places(name, section, config, found)
    params = _params(section, places, found)
    tokenizer, remarks = vocabulary.read(source, config, section)
    kept = sorted(set(found.files) - {spelling for spellings in places.values() for spelling in spellings})
    facts = {"published": {"model_type": name, "folder": source.name}}
    with folder.fresh(run_dir, "import") as partial:
        objective = OBJECTIVES[section["family"]]
        record = trained.write_imported(partial, section, objective, tokenizer, weights.unflatten(params), facts)
        (partial / "published").mkdir()
        folder.copy_texts(source, partial / "published")
        _keep(partial / "published", found, places, kept)
    n_total = record["derived"]["n_total"]
    dtypes = sorted({found.dtypes[spelling] for spellings in places.values() for spelling in spellings})
    return {
        "architecture": options.write(name, section)["architectures"][0],
        "family": section["family"],
        "parameters": f"{count(n_total)} ({n_total:,}), from {' and '.join(dtypes)}",
        "tokenizer": "none" if tokenizer is None else f"{tokenizer.vocab_size} ids",
        "kept_for_export": _some(kept) if kept else "nothing: every tensor is a parameter",
        "notes": "; ".join([*notes, *remarks]) or "none",
        "run": str(run_dir),
    }


def _section(config: Mapping, found: folder.Weights) -> tuple[str, dict, list[str]]:
    """(model_type, section, notes). Where config.json leaves open whether tables are tied, the file decides."""
    config, notes = dict(config), []
    if config.get("model_type") == "electra" and not config.get("architectures"):
        discriminates = any(name.startswith("discriminator_predictions.") for name in found.files)
        config["architectures"] = ["ElectraForPreTraining"] if discriminates else ["ElectraForMaskedLM"]
    section = options.read(config)
    name = config["model_type"]
    _check_sizes(name, section, found)
    if section["head"] == "discriminator":
        return name, section, notes
    (head,) = names.table(name, {**section, "tie_embeddings": False})[("embedding/head",)]
    spelling = next((s for s in weights.spellings(name, head) if s in found), None)
    if section["tie_embeddings"] and spelling is not None:
        tied = names.table(name, section)[("embedding/embedding",)]
        other = [s for n in tied for s in weights.spellings(name, n) if s in found and s != spelling]
        if other and not _equal(found[other[0]], found[spelling]):
            section["tie_embeddings"] = False
            notes.append(f"config.json ties {spelling} to {other[0]}, but the file holds two tables: both are kept")
    elif not section["tie_embeddings"] and spelling is None and name == "t5":
        section["tie_embeddings"] = True  # as transformers 5 reads such files
        notes.append(f"no {head}: the table of tokens serves as output projection")
    return name, section, notes


def _check_sizes(name, section, found):
    """Refuses a config.json whose sizes exceed the contents of the files, before allocating anything."""
    width = section["embedding_dim"] or section["d_model"]
    table = names.table(name, section)[("embedding/embedding",)][0]
    for spelling in (s for s in weights.spellings(name, table) if s in found):
        expected, got = (section["vocab_size"], width), found.shape(spelling)
        if got != expected:
            raise InputError(f"{found.source}: config.json does not fit: {spelling}: expected {expected}, got {got}")
    numbers = sum(math.prod(found.shape(tensor)) for tensor in found.files)
    keys = ["vocab_size", "d_model", "mlp_dim", "num_heads", "head_dim", "token_types", "num_experts"]
    limits = dict.fromkeys([*keys, *(["max_len"] if section["position"] == "learned" else [])], numbers)
    if not section["share_layers"]:
        limits |= dict.fromkeys(("num_layers", "encoder_layers"), len(found.files))
    for key, limit in limits.items():
        if (section[key] or 0) > limit:
            raise InputError(
                f"{found.source}: config.json gives model.{key} = {section[key]}: expected a size that fits the "
                f"weights ({len(found.files)} tensors, {numbers} numbers in total); correct config.json"
            )


def _equal(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _places(name: str, section: Mapping, config: Mapping, found: folder.Weights) -> dict[weights.Tensor, list[str]]:
    """{tensor of the table: its names in the files}; checks presence, shape, type and that tied tensors are equal."""
    places, missing, wrong = {}, [], []
    for tensor in weights.tensors(name, section):
        spellings = [s for expected in tensor.names for s in weights.spellings(name, expected) if s in found]
        places[tensor] = spellings
        if not spellings and tensor.names[0] not in _MAY_BE_ABSENT:
            missing.append(tensor.names[0])
        for spelling in spellings:
            if found.shape(spelling) != tensor.shape:
                wrong.append(f"{spelling}: expected {tensor.shape}, got {found.shape(spelling)}")
            elif found.dtypes[spelling] not in folder.FLOATS:
                wrong.append(f"{spelling}: expected one of {list(folder.FLOATS)}, got {found.dtypes[spelling]}")
    if missing:
        expected = options.write(name, section)["architectures"][0]
        raise InputError(
            f"{found.source}: {len(missing)} tensors are missing: {_some(missing)}; expected the weights of "
            f"{expected}, config.json says {config.get('architectures')}"
        )
    if wrong:
        raise InputError(f"{found.source}: {len(wrong)} tensors do not fit config.json: {_some(wrong)}")
    for spellings in places.values():
        for other in spellings[1:]:
            if not _equal(found[spellings[0]], found[other]):
                raise InputError(
                    f"{found.source}: {spellings[0]} and {other} expected to be equal (they are tied), got different "
                    "values; remove the one that is not meant"
                )
    return places


def _some(items):
    return "; ".join(items[:8]) + (f"; and {len(items) - 8} more" if len(items) > 8 else "")


def _params(section, places, found) -> dict[str, np.ndarray]:
    """The flat lmjax tree, float32."""
    params = {path: np.zeros(shape, np.float32) for path, shape in weights.shapes(section).items()}
    for tensor, spellings in places.items():
        if spellings:
            array = found[spellings[0]].astype(np.float32)
            if not np.isfinite(array).all():
                raise InputError(f"{found.source}: {spellings[0]}: expected finite numbers, got NaN or infinity")
            tensor.put(params, array)
    return params


def _keep(target, found, places, kept):
    """Writes lmjax_tensors.json and extra.safetensors."""
    of = {spelling: tensor.names[0] for tensor, spellings in places.items() for spelling in spellings}
    files = {file: {"metadata": found.metadata(file), "tensors": {}} for file in sorted(set(found.files.values()))}
    for tensor, file in sorted(found.files.items()):
        files[file]["tensors"][tensor] = {"dtype": found.dtypes[tensor], "of": of.get(tensor)}
    folder.write_json(target / folder.TENSORS, files)
    if kept:
        folder.write_weights(target / "extra.safetensors", {name: found[name] for name in kept}, {})

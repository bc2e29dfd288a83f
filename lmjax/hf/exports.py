"""lmjax export: a run directory, imported or trained here, written as a folder that transformers loads."""

import pathlib

import numpy as np

from lmjax import trained
from lmjax.errors import InputError, nearest
from lmjax.hf import architectures, folder, options, vocabulary, weights
from lmjax.models.presets import PRESETS


def export_run(
    run_dir: str | pathlib.Path, target: str | pathlib.Path, step: int | None = None, dtype: str = "", part: str = ""
) -> dict:
    """Writes a run as a Hugging Face folder; leaves nothing behind if that fails.

    An imported run is written back bit for bit, with its present parameters. A run of lmjax is written as an
    architecture that computes the same function (lmjax.hf.architectures).

    Args:
        run_dir: directory of a trained or imported run.
        target: a new or empty folder.
        step: checkpoint step; None: the newest.
        dtype: dtype of the weights, float32 | bfloat16 | float16; "": as imported, float32 for runs of lmjax.
        part: of an ELECTRA run, discriminator | generator; "": the discriminator.

    Returns:
        Facts to print: architecture, parameters, dtype, notes.

    Raises:
        InputError: no such run or step; options that no architecture supports, by name.
    """
    run_dir, target = pathlib.Path(run_dir), pathlib.Path(target)
    if dtype and dtype not in folder.DTYPES:
        raise InputError(f"export: unknown dtype {dtype!r}{nearest(dtype, folder.DTYPES)}")
    if part and part not in architectures.ELECTRA_PARTS:
        raise InputError(f"export: unknown part {part!r}{nearest(part, architectures.ELECTRA_PARTS)}")
    run = trained.load(run_dir, step)
    family = run.config.model.family
    if part and family != "electra":
        raise InputError(f"export: part {part}: expected a run of model.family electra, got {family}; leave it out")
    params = {path: np.asarray(leaf) for path, leaf in weights.flatten(run.params).items()}
    section, remarks = options.canonical(run.config.model.to_dict()), []
    if family == "electra":
        section, params, *remarks = architectures.electra_part(part or "discriminator", run.config.model, params)
    write = _write_again if (run_dir / "published" / folder.TENSORS).exists() else _write_own
    with folder.fresh(target, "export") as partial:
        config, notes = write(run, section, params, partial, dtype)
    return {
        "architecture": config["architectures"][0] if config.get("architectures") else config["model_type"],
        "model_type": config["model_type"],
        "step": run.step,
        "dtype": dtype or "as imported" if write is _write_again else dtype or "float32",
        "notes": "; ".join([*remarks, *notes]) or "none",
        "folder": str(target),
    }


def _write_again(run, section, params, target, dtype) -> tuple[dict, list[str]]:
    """Writes the folder an imported run came from, with its present parameters."""
    published = run.run_dir / "published"
    folder.check_links(published)
    config, files = folder.read_json(published / "config.json"), folder.read_json(published / folder.TENSORS)
    for file in files:
        folder.check_name(file, published / folder.TENSORS)
    table = {tensor.names[0]: tensor for tensor in weights.tensors(config["model_type"], section)}
    _check_lost(files, table, params)
    extra = folder.open_file(published / "extra.safetensors") if (published / "extra.safetensors").exists() else None
    sizes = {}
    for file, entry in files.items():
        out = {}
        for tensor, facts in entry["tensors"].items():
            if facts["of"] is None:
                out[tensor] = extra.get_tensor(tensor)
                continue
            kind = folder.DTYPES[dtype] if dtype else facts["dtype"]
            out[tensor] = folder.cast(table[facts["of"]].take(params), kind, tensor)
        folder.write_weights(target / file, out, entry["metadata"])
        sizes |= {tensor: (file, array.nbytes) for tensor, array in out.items()}
    if len(files) > 1 or folder.SINGLE not in files:
        total, weight_map = sum(n for _, n in sizes.values()), {tensor: file for tensor, (file, _) in sizes.items()}
        folder.write_json(target / folder.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    folder.copy_texts(published, target)
    if dtype:
        known = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
        folder.write_json(target / "config.json", config | dict.fromkeys(known, dtype))
    return config, []


def _check_lost(files, table, params) -> None:
    """Refuses to drop trained parameters that have no tensor in the folder (a bias that the file left out)."""
    there = {facts["of"] for entry in files.values() for facts in entry["tensors"].values()}
    lost = [name for name, tensor in table.items() if name not in there and np.any(tensor.take(params))]
    if lost:
        raise InputError(f"export: expected zeros in {lost}, which the imported folder lacks, got trained values")


def _write_own(run, section, params, target, dtype) -> tuple[dict, list[str]]:
    """Writes the folder of a run that lmjax trained."""
    heads = sorted({path.split("/")[1].rpartition("_")[0] for path in params if path.startswith("heads/")})
    params = {path: array for path, array in params.items() if not path.startswith("heads/")}
    frame = trained.frame(run) if run.tokenizer else ((), (), ())
    ids = vocabulary.ids(run.tokenizer, section["family"], frame) if run.tokenizer else {}
    pad, family = ids.get("pad_token_id"), run.config.model.family
    name, section, params, notes = architectures.fit(section, params, pad, family)
    if heads:
        notes.append(f"the heads {heads} are not in the folder")
    if run.config.objective.name == "prefix_lm":
        notes.append(
            "trained with prefix attention, which decoders in transformers lack: it is exported as a causal model; how "
            "the objective splits a text is not in the folder"
        )
    if run.config.objective.file:
        notes.append(f"how the objective of {run.config.objective.file} changes a text is not in the folder")
    if section["family"] == "encoder" and PRESETS[name]["family"] == "decoder":
        notes.append("is_causal is false in config.json: transformers 5 or later, AutoModelForCausalLM")
    kind = dtype or "float32"
    config = {**ids, **options.write(name, section), "dtype": kind, "torch_dtype": kind}
    table = weights.tensors(name, section)
    out = {t.names[0]: folder.cast(t.take(params), folder.DTYPES[kind], t.names[0]) for t in table}
    folder.write_weights(target / folder.SINGLE, out, {"format": "pt"})
    folder.write_json(target / "config.json", config)
    if section["family"] != "encoder":
        known = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        folder.write_json(target / "generation_config.json", {key: config[key] for key in known if key in config})
    if run.tokenizer is None:
        notes.append("the run has no tokenizer folder (an older version trained it): none is written")
    else:
        notes += vocabulary.write(run.tokenizer, target, section["max_len"], frame)
    return config, notes

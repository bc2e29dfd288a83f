"""A trained model, ready to use: config, tokenizer and parameters of a run directory. Reads runs and
writes imported ones; checkpoint.py handles the training state."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lmjax import bucket, checkpoint, defaults, models, objectives, run_record, sharding
from lmjax import config as configs
from lmjax.checkpoint import saved_steps as steps
from lmjax.data import tokenizers
from lmjax.errors import InputError
from lmjax.objectives.base import Frame


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained or imported model, for decoding, evaluation and export.

    Example: logits [B, T, V] of ids [B, T]
        trained = load("runs/decoder-0.2M-..."); trained.model.apply({"params": trained.params}, {"inputs": ids})
    """

    run_dir: pathlib.Path
    config: ConfigDict  # resolved; for an imported run only model, objective and data
    record: dict  # config.json
    tokenizer: tokenizers.Tokenizer | None  # None if imported without a tokenizer
    model: nn.Module
    params: Any  # float32, sharded over `mesh`
    step: int  # optimizer steps of the checkpoint; 0 for an imported run

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices on which the parameters are, and which compute."""
        return sharding.mesh_of(self.params)

    @property
    def objective(self) -> objectives.Objective:
        """The training objective; for an imported model, the one that matches its family."""
        configs.check_recorded_file(self.config, self.run_dir)
        return objectives.get(self.config.objective.name, self.config.objective.file)[0]

    @property
    def spec(self) -> objectives.Spec:
        """The `Spec` of the objective: ids and options."""
        return self.objective.spec(self.tokenizer, self.config.objective.options)

    @property
    def max_len(self) -> int:
        """Number of positions the model has embeddings for; 0: no limit (rotary, relative, alibi, sinusoidal)."""
        return self.config.model.max_len if self.config.model.position == "learned" else 0


def load(
    run_dir: str | pathlib.Path,
    step: int | None = None,
    mesh: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Trained:
    """Return the model of a run at a step, with its parameters sharded as config.mesh.rules says.

    Args:
        run_dir: with config.json, tokenizer/ and checkpoints/, as training and import write them; or a URL.
        step: checkpoint step; None: the newest.
        mesh: sizes of the axes data, fsdp and tensor; None: those of the run as far as the devices allow. See
            `lmjax.sharding.local_mesh`.
        devices: None: all of this process.

    Raises:
        InputError: no such run or step; unreadable record, tokenizer or checkpoint; a mesh that does not fit the
            devices or the parameters.
    """
    run_dir = bucket.local(run_dir)
    bucket.fetch(run_dir)
    record = run_record.read_record(run_dir)
    if record is None:
        raise InputError(
            f"{run_dir} is not a run: it has no config.json; expected a directory that lmjax train or import made"
        )
    found = steps(run_dir)
    if not found and (source := run_record.read_status(run_dir).get("records")):
        raise InputError(
            f"{run_dir} has no checkpoint: its result comes from {source}; train it in another --workdir, without "
            "--records"
        )
    if not found or (step is not None and step not in found):
        raise InputError(
            f"{run_dir}: expected a checkpoint{'' if step is None else f' of step {step}'}, got steps {found}"
        )
    step = found[-1] if step is None else step
    config = configs.from_record(record)
    configs.check_model_keys(config.model)
    configs.run_plugins(config, run_dir)
    folder = run_dir / "tokenizer"
    tokenizer = tokenizers.load_saved(folder) if folder.is_dir() else None
    heads = [objectives.Head(**head) for head in record.get("heads", ())]
    model = models.build(config.model, heads=heads)
    like = None
    if config.model.family != "ngram":  # whose shapes depend on the data
        settings = (config if "mesh" in config else defaults.get_config()).mesh
        boxed = models.parameter_shapes(model, _example(config.model))
        places = sharding.param_shardings(boxed, sharding.local_mesh(settings, mesh, devices), settings.rules)
        like = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), nn.unbox(boxed), places)
    params = checkpoint.restore_params(run_dir / "checkpoints", step, like, record["run_id"])
    return Trained(run_dir, config, record, tokenizer, model, params, step)


def frame(trained: Trained) -> Frame:
    """Return the ids before a text that the model reads, after it, and before a target: those of its tokenizer, or of
    the objective of a model that reads a source; other models have no ids before a target."""
    tokenizer = trained.tokenizer
    if not models.reads_source(trained.config.model.family):
        return tokenizer.prefix, tokenizer.suffix, ()
    if trained.objective.frame:
        return trained.objective.frame(trained.spec)
    eos = (tokenizer.specials.eos,) if tokenizer.specials.eos >= 0 else ()
    return tokenizer.prefix, tokenizer.suffix or eos, tokenizer.decoder_start


def _example(model):
    """The smallest batch that a model of this family accepts."""
    ids = jax.ShapeDtypeStruct((1, 1), "int32")
    both = models.reads_source(model.family)
    return {"inputs": ids, **({"encoder_inputs": ids} if both else {})}


def write_imported(
    run_dir: pathlib.Path,
    model: Mapping[str, Any],
    objective: str,
    tokenizer: tokenizers.Tokenizer | None,
    params: Any,
    facts: Mapping[str, Any],
) -> dict:
    """Write parameters that lmjax did not train as a finished run, into an existing empty folder.

    Args:
        run_dir: the folder; the caller renames it into place when all else is written.
        model: every key of config.model.
        objective: name of the objective the model serves.
        tokenizer: None if the model has none; text cannot be encoded then.
        params: arrays in the tree of lmjax.models.
        facts: more entries for the record, e.g. where the model came from.

    Returns:
        the record, config.json.

    Raises:
        InputError: a key of config.model is missing or bad; parameters of another shape than the model's.
    """
    from lmjax import flops

    section = ConfigDict(dict(model))
    configs.check_model_keys(section)
    config = {
        "model": section.to_dict(),
        "objective": {"name": objective, "file": None, "options": {}},
        "data": {"tokenizer": "imported", "seq_len": section.max_len},
    }
    module = models.build(section)
    shapes = models.plain_shapes(module, _example(section))
    _check_shapes(params, shapes)
    counts = flops.parameter_counts(shapes)
    record = {
        "format": configs.FORMAT,
        "run_id": f"{section.family}-imported",
        "config": config,
        "derived": {"family": section.family, "objective": objective, **counts},
        "data": {"tokenizer": tokenizers.facts(tokenizer)} if tokenizer else {},
        "objective_version": "imported",
        **facts,
    }
    if tokenizer is not None:
        tokenizer.save(run_dir / "tokenizer")
    checkpoint.check_path(run_dir)
    saver = checkpoint.Checkpoints(run_dir / "checkpoints", keep=1, run_id=record["run_id"])
    saver.save(0, {"params": jax.tree.map(jax.numpy.asarray, params)})
    saver.wait()
    saver.close()
    run_record.write_json(run_dir / "config.json", record)
    run_record.mark_done(run_dir, 0)
    return record


def _check_shapes(params, shapes):
    expected, got = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (shapes, params)
    )
    wrong = sorted(dict(expected.items() ^ got.items()))[:8]
    if wrong:
        lines = "; ".join(f"{name}: expected {expected.get(name)}, got {got.get(name)}" for name in wrong)
        raise InputError(f"parameters do not fit the model: {lines}")

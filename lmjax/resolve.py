"""Resolve a config: data, objective, derived sizes, steps, N, D, C and run id.

Nothing is allocated on devices: parameter shapes come from jax.eval_shape. `lmjax describe`, the planner and the
trainer all start here.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from lmjax import config as configs
from lmjax import flops, identity, losses, models, objectives, parents, run_record, trackers
from lmjax.data import pipeline, tokenizers
from lmjax.errors import InputError
from lmjax.format import count
from lmjax.models import ngram
from lmjax.optim import parametrization
from lmjax.optim.optimizers import MOMENTS, make_optimizer
from lmjax.optim.schedules import make_schedule

# Settings that change neither data nor model: as keys, or sections with a dot.
VARIED = (
    *("train.seed", "optimizer.learning_rate", "optimizer.weight_decay"),
    *("schedule.", "duration.", "init.", "checkpoint.", "run."),
)


_DECISIVE = sorted({key.partition(".")[0] for key in VARIED} - {*configs.OPERATIONAL})  # sections, for the run id


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """What all runs share whose configs differ only in `VARIED`."""

    config: ConfigDict  # sizes and options filled in
    data: pipeline.Data
    objective: objectives.Objective
    objective_version: str
    model: nn.Module
    batches: pipeline.Pipeline
    lengths: dict[str, int]
    filled: dict[str, Any]
    scales: Any
    counts: dict[str, int]  # of parameters; {} for n-gram models, where they depend on the duration
    n_active: int | None  # parameters that a token uses, with experts
    row_flops: int  # of training
    score_flops: int  # of attention scores in a row, forward
    decisive: dict[str, Any]  # `identity.settings` of all but `VARIED`

    @functools.cached_property
    def recorded(self) -> dict[str, Any]:
        """The config as in config.json."""
        return configs.to_dict(self.config)

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """What runs must have in common to share compiled functions: all settings but those that are only data to
        them (`VARIED` and data.seed)."""
        flat = configs.flatten(self.recorded)
        free = (*VARIED, "data.seed", *configs.FILES)
        flat = {key: value for key, value in flat.items() if not key.startswith(free)}
        return {**flat, "objective": self.objective_version, "tokenizer": self.data.tokenizer.hash}

    @functools.cached_property
    def key(self) -> str:
        """A digest of `settings`."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config with everything derived from it."""

    config: ConfigDict  # sizes and options filled in
    data: pipeline.Data
    objective: objectives.Objective
    objective_version: str
    model: nn.Module
    batches: pipeline.Pipeline
    lengths: dict[str, int]  # row lengths: {"inputs": T, ["encoder_inputs": S]}
    steps: int
    derived: dict[str, Any]  # N, D, C and related numbers, as recorded
    filled: dict[str, Any]  # dotted key -> value derived where the config has None
    run_id: str
    scales: Any  # tree of parametrization.Scale, one for each parameter
    shape: Shape

    @property
    def heads(self) -> tuple[objectives.Head, ...]:
        """What the objective predicts."""
        return self.objective.heads(self.config.objective.options)

    @functools.cached_property
    def start(self) -> int:
        """The step from which the run trains: that of its parent for a branch, else 0."""
        return parents.start_of(self.config)

    @functools.cached_property
    def cost(self) -> float:
        """Training FLOPs of the run itself: `flops_exact` without what a branch inherits from its parent."""
        return self.derived["flops_exact"] * (1 - self.start / self.steps)

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics in training besides the loss; none if that of the LM head is all there is."""
        plain = self.heads == (objectives.LM,) and self.objective.loss is None
        if plain and not (self.config.train.z_loss or self.balancing):
            return ()
        batch = self.batches.rows([0])
        params = models.plain_shapes(self.model, batch)
        return tuple(sorted(jax.eval_shape(self.loss_terms, params, batch, jax.random.key(0))[1]))

    @functools.cached_property
    def batch_shape(self) -> tuple[int, int]:
        """(A, B): micro-batches of a step, and rows of each."""
        micro_batches = self.config.train.accumulation_steps
        return micro_batches, self.config.data.global_batch_size // micro_batches

    @property
    def balancing(self) -> float:
        """The factor of the load balancing of experts in the loss; 0 without experts."""
        return self.config.train.load_balancing if self.config.model.num_experts else 0.0

    @functools.cached_property
    def carry(self) -> dict:
        """{"carry": shapes [A, rows, ...]}, the state after the rows of a step, of a model that carries it; else {}."""
        of_row = models.carried(self.model, self.batches.rows([0]))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*self.batch_shape, *x.shape[1:]), x.dtype), of_row)

    def loss_terms(self, params: Any, batch: dict, dropout_key: jax.Array, slots: int = 1) -> tuple[dict, dict, dict]:
        """Returns `lmjax.losses.terms` of a micro-batch in training, and the state that a model carries on.

        The z-loss and the load balancing of experts are trained with and are metrics, as added to the loss, but no part
        of its value. `slots` is the number of runs that jax.vmap trains in one program.
        """
        options = {"deterministic": False, "project": False, "rngs": {"dropout": dropout_key}}
        outputs, sown, left = models.apply_carrying(self.model, params, batch, ("losses",), **options)
        own, z_loss = self.objective.own_terms(self.config.objective.options), self.config.train.z_loss
        found, metrics = losses.terms(self.heads, outputs, batch, own, z_loss, slots)
        if self.balancing and "losses" in sown:
            total, weight = metrics["load_balancing"] = losses.load_balancing(self.balancing, sown["losses"], batch)
            found["load_balancing"] = losses.gradient_only(total), weight
        return found, metrics, left

    def record(self) -> dict:
        """Returns the contents of config.json."""
        own = {name: value for name, value in self.config.items() if value is not self.shape.config[name]}
        shared = {name: dict(value) if name != "plugins" else value for name, value in self.shape.recorded.items()}
        return {
            "format": configs.FORMAT,
            "run_id": self.run_id,
            "config": {**shared, **configs.to_dict(ConfigDict(own))},
            "derived": self.derived,
            "data": self.data.manifest,
            "objective_version": self.objective_version,
            "code": identity.code_digest(),
            **({"heads": heads} if (heads := [dataclasses.asdict(h) for h in self.heads if h.name != "lm"]) else {}),
        }

    def check(self, run_dir: pathlib.Path, keep: bool = False) -> None:
        """Raises InputError if the directory holds another run or, unless `keep`, this run by other source code, and
        for a run that has not begun, if it cannot start from its parent."""
        record, begun = run_record.read_json(run_dir / "config.json"), run_record.has_begun(run_dir)
        if record is not None:
            identity.check_same_run(run_dir, record, self.record(), self.filled, keep or not begun)
            run_record.is_finished(run_dir, self.run_id)  # its summary is this run's
        if self.config.init.parent and not begun:
            parents.check(self, keep)

    def write(self, run_dir: pathlib.Path) -> None:
        """Make the run's directory with tokenizer/ and config.json, unless they are there.

        A partially written tokenizer of a killed process is replaced.

        Raises:
            InputError: the directory holds a different tokenizer.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_tokenizer(self.data.tokenizer, run_dir / "tokenizer")
        path, record = run_dir / "config.json", self.record()
        if (saved := run_record.read_json(path)) is None or (saved != record and not run_record.has_begun(run_dir)):
            run_record.write_json(path, record)


def _write_tokenizer(tokenizer, folder):
    if folder.is_dir():
        try:
            saved = tokenizers.load_saved(folder)
        except InputError as error:
            print(f"warning: {error}; written again", file=sys.stderr)
        else:
            if saved.hash != tokenizer.hash:
                raise InputError(f"{folder}: expected the tokenizer of the data, got another one; move it away")
            return
    partial = folder.with_name(f".tokenizer.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        tokenizer.save(partial)
        for path in partial.iterdir():
            with open(path) as file:
                os.fsync(file.fileno())
        if folder.is_dir():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def resolve(config: ConfigDict, parent: Resolved | None = None) -> Resolved:
    """Checks a config, its objective and its data for consistency and derives the rest; prepares the data if needed.

    Args:
        config: as `lmjax.config.check` accepts it.
        parent: the run in init.from, if it is a cell of the same sweep.

    Raises:
        InputError: the config cannot be trained as given.
    """
    shape = shape_of(configs.check(config), {})
    return complete(shape, shape.config, parent)


def shape_of(config: ConfigDict, known: dict) -> Shape:
    """Returns what runs share that differ from this config in `VARIED` only; prepares the data if needed.

    Args:
        config: each key of which has been checked.
        known: what several shapes share (data, rows, model, parameter shapes), by the sections that determine it;
            extended here.

    Raises:
        InputError: the config cannot be trained as given.
    """
    configs.check_together(config)
    trackers.check_installed(config.metrics)
    config = config.copy_and_resolve_references()
    config.unlock()
    objective, version, filled = _fill_in(config)

    def once(make, *sections):
        """What `make` returns, called once for configs that are equal in these sections."""
        key = json.dumps([make.__name__, version, *(config[name].to_dict() for name in sections)], default=str)
        if key not in known:
            known[key] = make()
        return known[key]

    def prepared():
        return pipeline.prepare(config)

    def rows():
        batches = pipeline.Pipeline(data, objective, config)
        if objective.expected_weight is None:
            batches.check_labels()
        return batches, batches.rows([0])

    def built():
        model = models.build(config.model, heads=heads)
        return model, flops.row_flops(model, lengths, example, heads)

    def parameters():
        boxed = models.parameter_shapes(model, example)
        return boxed, flops.parameter_counts(nn.unbox(boxed)), parametrization.scales(config, boxed)

    data = once(prepared, "data")
    counted, ids = config.model.family == "ngram", data.tokenizer.vocab_size
    filled |= fill(config, {"model.vocab_size": ids if counted else -(-ids // 64) * 64})
    pipeline.check_vocabulary(data, config.model.vocab_size)
    batches, example = once(rows, "data", "objective", "model")
    lengths = {name: example[name].shape[1] for name in ("inputs", "encoder_inputs") if name in example}
    longest = max(lengths.values())
    filled |= fill(config, {"model.max_len": longest})
    if config.model.position == "learned" and config.model.max_len < longest:
        raise InputError(f"model.max_len {config.model.max_len} is shorter than the data's rows of {longest} tokens")

    heads = objective.heads(config.objective.options)
    model, parts = once(built, "data", "objective", "model")
    row_flops = sum(parts.values()) if counted else flops.training_flops(parts)
    counts, scales, n_active = {}, {}, None
    if not counted:
        boxed, counts, scales = once(parameters, "data", "objective", "model", "parametrization", "optimizer")
        if config.model.num_experts:
            n_active = flops.active_parameters(nn.unbox(boxed), config.model)
    config.lock()
    flat = {k: v for k, v in configs.flatten(configs.to_dict(config)).items() if not k.startswith(VARIED)}
    return Shape(
        config=config,
        data=data,
        objective=objective,
        objective_version=version,
        model=model,
        batches=batches,
        lengths=lengths,
        filled=filled,
        scales=scales,
        counts=counts,
        n_active=n_active,
        row_flops=row_flops,
        score_flops=parts.get("scores", 0),
        decisive=identity.settings(flat, filled),
    )


def _fill_in(config):
    """Fills in, in place, what does not depend on the data: options, sizes, multipliers; runs the config's own files.

    Returns:
        The objective, its version (with those of plugins), and {dotted key: value that was derived or is a default}.
    """
    config.plugins = tuple(str(pathlib.Path(file).resolve()) for file in config.plugins)
    digests = [configs.run_once(file, "plugins") for file in config.plugins]
    objective, version = objectives.get(config.objective.name, config.objective.file)
    version = "+".join([version, *digests])
    config.objective.options = ConfigDict(objectives.merge_options(objective, config.objective.options))
    options = models.options(config.model.family)
    config.model.options = ConfigDict(configs.merged_options("model", options, config.model.options))
    if config.objective.file is not None:
        config.objective.file = str(pathlib.Path(config.objective.file).resolve())
    _check_family(config, objective)
    make_optimizer(config.optimizer)
    filled = {f"objective.options.{name}": value for name, value in objective.options.items()}
    filled |= {f"model.options.{name}": value for name, value in options.items()}
    filled |= fill(config, sizes(config.model, config.data))
    if objective.token_types:
        filled |= fill(config, {"model.token_types": objective.token_types})
        if config.model.token_types < objective.token_types or objective.attention == "encoder_decoder":
            raise InputError(
                f"objective {objective.name} has {objective.token_types} token types: expected a model of one stack "
                f"with model.token_types {objective.token_types}, got {config.model.family}, {config.model.token_types}"
            )
    filled |= fill(config, parametrization.multipliers(config))
    return objective, version, filled


def complete(shape: Shape, config: ConfigDict, parent: Resolved | None = None) -> Resolved:
    """Returns the run of a shape and a config.

    Args:
        shape: from `shape_of`.
        config: the shape's, in which settings of `VARIED` may have been replaced; shared with the run.
        parent: the run in init.from, if it is a cell of the same sweep.

    Raises:
        InputError: the settings contradict each other, or need more data than there is.
    """
    configs.check_duration(config.duration)
    config = configs.overlay(config, {"init.what": config.init.what}, shared=True)  # `init` is filled in below
    batches, rows = shape.batches, config.data.global_batch_size
    steps = _steps(config, batches, shape.row_flops)
    batches.check_epochs(steps * rows)
    make_schedule(config.schedule, config.optimizer.learning_rate, steps)
    parent_record = parents.fill(config, steps, parent)
    counts = shape.counts or _count(config, batches, steps)
    size = count(counts["n_total"]) if shape.counts else f"order{config.model.ngram_order}"
    derived = _derive(config, shape, steps, counts)
    if start := parents.start_of(config):
        derived["flops_inherited"] = start * derived["flops_per_step"]
    varied = {f"{name}.{key}": value for name in _DECISIVE for key, value in config[name].items()}
    varied = {key: value for key, value in varied.items() if key.startswith(VARIED)}
    decisive = {**shape.decisive, **identity.settings(varied, shape.filled)}
    digest = identity.hashed(decisive, shape.data.digest, shape.objective_version)
    run_id = f"{config.run.name or config.model.family}-{size}-{count(derived['tokens'])}tok-{digest}"
    run = Resolved(
        config=config,
        data=shape.data,
        objective=shape.objective,
        objective_version=shape.objective_version,
        model=shape.model,
        batches=batches,
        lengths=shape.lengths,
        steps=steps,
        derived=derived,
        filled=shape.filled,
        run_id=run_id,
        scales=shape.scales,
        shape=shape,
    )
    if parent_record is not None:
        parents.check(run, True, parent_record)
    return run


def _check_family(config, objective):
    if objective.attention not in models.attention_types(config.model.family):
        families = [name for name in models.MODELS if objective.attention in models.attention_types(name)]
        raise InputError(
            f"objective {objective.name} needs {objective.attention} attention, which model.family "
            f"{config.model.family} does not have; set model.family={' or '.join(families)}"
        )
    if config.data.mode == "pack" and not models.can_pack(config.model.family):
        raise InputError(
            f"model.family {config.model.family!r} cannot pack, as it does not separate the pieces of a row: expected "
            "data.mode concat_and_split"
        )
    if "noise" in objective.extras and not models.draws(config.model.family):
        families = [name for name in models.MODELS if models.draws(name)]
        raise InputError(
            f"objective {objective.name}: its rows are for a model that replaces tokens: expected model.family "
            f"{' or '.join(families)}, got {config.model.family}; set it"
        )
    if config.parametrization.name != "standard" and not models.width_rules(config.model.family):
        raise InputError(
            f"parametrization.name {config.parametrization.name!r}: model.family {config.model.family!r} has no rule "
            "for other widths (in seq2seq, for its attention); set parametrization.name to standard"
        )
    if models.carries(config.model) and (config.data.mode, objective.name) != ("consecutive", "causal_lm"):
        raise InputError(
            "model.options.carry: rows go on with the state of the rows before: expected data.mode consecutive and "
            f"objective.name causal_lm, got {config.data.mode} and {objective.name}"
        )
    if config.model.head == "discriminator":
        raise InputError(
            f"model.head 'discriminator' gives one number per token, but objective {objective.name} predicts ids; "
            "set model.head to plain or transform"
        )


def _count(config, batches, steps):
    """The parameter counts of an n-gram model before its n-grams are counted: upper bounds."""
    model, rows = config.model, steps * config.data.global_batch_size
    if config.objective.name != "causal_lm":
        raise InputError(
            f"model.family 'ngram' counts next tokens: expected objective.name 'causal_lm', got "
            f"{config.objective.name!r}; set it, or another model.family"
        )
    if (most := batches.lengths["inputs"] + 1) < model.ngram_order:
        raise InputError(
            f"model.ngram_order: expected at most {most}, the tokens of a window (data.seq_len + 1), got "
            f"{model.ngram_order}; set it lower, or data.seq_len higher"
        )
    if (epochs := batches.epochs(rows)) > 1 + 1e-9:
        raise InputError(
            f"model.family 'ngram': expected at most one epoch, got {epochs:.3g}: counting text twice teaches nothing "
            "and distorts the discounts; set duration lower, or give more text"
        )
    if config.init["from"]:
        raise InputError("init.from: model.family 'ngram' counts from the beginning; leave it out")
    if config.run.held_out:
        raise InputError(
            "run.held_out: the loss of a held-out run is predicted from its number of parameters, which an n-gram "
            "model has only after counting; leave it out, or hold it out in lmjax fit"
        )
    return flops.table_counts(ngram.most_stored(model.ngram_order, model.vocab_size, rows * batches.lengths["inputs"]))


def sizes(model, data) -> dict[str, Any]:
    """Returns {dotted key: value to use if the config has None}, for sizes that follow from other keys."""
    found = {
        "model.head_dim": model.d_model // model.num_heads,
        "model.num_kv_heads": model.num_heads,
        "model.mlp_dim": 4 * model.d_model,
    }
    if models.reads_source(model.family):
        found |= {"model.encoder_layers": model.num_layers, "data.encoder_seq_len": data.seq_len}
    return found


def fill(config, values: dict[str, Any]) -> dict[str, Any]:
    """Sets the keys that are None in the config to these values; returns `values`."""
    for key, value in values.items():
        section, name = key.split(".")
        if config[section][name] is None:
            config[section][name] = value
    return values


def _steps(config, batches, row_flops):
    """The duration in optimizer steps; InputError where it is less than a step."""
    ((name, amount),) = [(k, v) for k, v in config.duration.items() if v is not None]
    rows = config.data.global_batch_size
    exact = {
        "steps": amount,
        "tokens": amount / (rows * batches.tokens_per_row),
        "epochs": amount * batches.rows_per_epoch / rows,
        "flops": amount / (rows * row_flops),
    }[name]
    steps = math.floor(exact) if name == "epochs" else round(exact)
    if steps < 1:
        raise InputError(
            f"duration.{name}: expected at least one optimizer step, got {amount:g} ({exact:.2g} steps); set it "
            "higher, or data.global_batch_size lower"
        )
    return steps


def memory(
    config: ConfigDict,
    lengths: dict[str, int],
    n_total: int,
    flash: bool = False,
    mesh: Mapping[str, int] = {"fsdp": 1, "expert": 1, "tensor": 1},  # noqa: B006 - never written to
    platform: str = "cpu",
) -> dict[str, int]:
    """Returns `flops.memory_bytes` of a config's training step; `flash`: with flash attention kernels.

    Parameters are split over the axes fsdp and tensor, those of experts also over expert; activations and logits over
    all devices of the mesh.
    """
    rows = config.data.global_batch_size // config.train.accumulation_steps
    experts = flops.expert_parameters(config.model)
    n_total = (n_total - experts + experts // mesh["expert"]) // (mesh["fsdp"] * mesh["tensor"])
    rows /= math.prod(mesh.values())
    moments = MOMENTS.get(config.optimizer.name, 2)
    return flops.memory_bytes(n_total, config.model, lengths, rows, moments, flash, platform)


def _derive(config, shape, steps, counts):
    rows, batches = steps * config.data.global_batch_size, shape.batches
    tokens = round(rows * batches.tokens_per_row)
    parts = memory(config, shape.lengths, counts["n_total"])
    derived = {
        "family": config.model.family,
        "objective": config.objective.name,
        **counts,
        "tokens": tokens,
        "tokens_per_param": tokens / counts["n_total"],
        "unique_tokens": batches.unique_tokens_seen(rows),
        "epochs": batches.epochs(rows),
        "steps": steps,
        "tokens_per_step": config.data.global_batch_size * batches.tokens_per_row,
        "flops_exact": shape.row_flops * rows,
        "flops_6nd": 6 * counts["n_total"] * tokens,
        "flops_attention": 3 * shape.score_flops * rows,
        "flops_per_step": shape.row_flops * config.data.global_batch_size,
        "memory_bytes": sum(parts.values()),
        "memory": parts,
    }
    if shape.n_active is not None:
        derived |= {"n_active": shape.n_active, "flops_6nd_active": 6 * shape.n_active * tokens}
    return derived

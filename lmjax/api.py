"""The Python API: load a trained model and use it, train one, run a sweep. The commands do the same."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from lmjax import trained
from lmjax.errors import InputError

if TYPE_CHECKING:  # these start no JAX backend, but take a second to import
    import pandas

    from lmjax.decoding.ids import Generation
    from lmjax.evals.score import Score
    from lmjax.evals.vectors import Vectors
    from lmjax.sweeps.local import Launch


class Model(trained.Trained):
    """A trained model: `lmjax.trained.Trained` with generation and scoring as methods.

    Example:
        model = lmjax.load("runs/decoder-0.2M-...")
        model.generate("To be", method="sample", temperature=0.8, seed=1)[0].text
        model.score("To be or not", " to be").log_prob
        model.perplexity(["To be or not to be"])["loss"]
    """

    def generate(
        self, prompts: str | Sequence[str | Sequence[int]], *, batch_size: int = 16, **settings: Any
    ) -> "list[Generation] | list[list[Generation]]":
        """Returns a list of generations for each prompt, beams best first; for a single text, one list.

        Args:
            prompts: one text, or a list of texts or of id lists, which may differ in length.
            batch_size: prompts per batch; changes speed and memory only.
            settings: fields of `lmjax.generate.Settings`, e.g. method="beam", num_beams=4, max_new_tokens=64.

        Raises:
            TypeError: an unknown setting.
            InputError: bad value; encoder model; prompt empty or too long.
        """
        from lmjax import generate

        single = isinstance(prompts, str)
        found = generate.generate(self, [prompts] if single else prompts, generate.Settings(**settings), batch_size)
        return found[0] if single else found

    def score(self, context: str, continuation: str, semantics: str = "") -> "Score":
        """Returns the log probability (nats) of a continuation given a context, per token and in total.

        Args:
            context: preceding text; "" for none.
            continuation: text to score; not empty.
            semantics: causal | conditional | infilling | pseudo | masked; "" for the model's default.
        """
        from lmjax.evals import score

        return score.score(self, [(context, continuation)], semantics)[0]

    def perplexity(self, texts: Sequence[str] | None = None) -> dict:
        """Returns loss (nats per token), perplexity, bits_per_byte and their standard errors over documents.

        Args:
            texts: documents; None: the run's validation documents.
        """
        from lmjax.evals import perplexity

        return perplexity.evaluate(self, documents=texts)

    def vectors(self) -> "Vectors":
        """Returns the token vectors, with `nearest`, `analogy` and `accuracy`; InputError if the model has none."""
        from lmjax.evals import vectors

        return vectors.of(self)


def load(run_dir: str | os.PathLike, step: int | None = None, mesh: Mapping[str, int] | None = None) -> Model:
    """Returns the model of a run directory, trained or imported, sharded over the devices of this process.

    Args:
        run_dir: run directory, as printed by `lmjax train`.
        step: checkpoint step; None: the newest.
        mesh: sizes of the mesh axes, e.g. {"fsdp": 4, "tensor": 2} on 8 devices (data is what they leave). None:
            fsdp and tensor as in training, where the device count allows.

    Raises:
        InputError: no run in this directory, or no checkpoint at this step; a mesh that does not fit the devices.
    """
    found = trained.load(run_dir, step, mesh)
    return Model(**vars(found))


def _config(config: ConfigDict | str | os.PathLike, overrides: Mapping[str, Any]) -> ConfigDict:
    from lmjax import config as configs

    if isinstance(config, ConfigDict):
        return configs.check(configs.overlay(config, overrides))
    return configs.load(str(config), overrides)


def train(
    config: ConfigDict | str | os.PathLike,
    run_dir: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] = {},  # noqa: B006 - never written to
    keep: bool = False,
) -> Model:
    """Trains a run to completion, resuming it if it was stopped, and returns the trained model.

    Args:
        config: a config, or a config file such as "configs/tiny.py:encoder".
        run_dir: directory of the run; None: runs/<run id>.
        overrides: dotted key -> value, e.g. {"model.d_model": 64}.
        keep: accept a result or checkpoints produced by other source code.

    Raises:
        InputError: bad config; the directory holds another run.
        KeyboardInterrupt: stopped by a signal; the state is saved, and the same call resumes the run.
        RuntimeError: the run diverged.

    Example: lmjax.train("configs/tiny.py").perplexity()["loss"]
    """
    from lmjax import bucket, process, run_record, trainer
    from lmjax.resolve import resolve

    process.use_compilation_cache()
    run = resolve(_config(config, overrides))
    folder = pathlib.Path("runs") / run.run_id if run_dir is None else bucket.local(run_dir)
    code = trainer.train(run, folder, keep=keep)
    if code == trainer.PREEMPTED:
        raise KeyboardInterrupt(f"{folder} was stopped and saved; the same call resumes it")
    if code != trainer.DONE:
        raise RuntimeError(f"{folder}: {run_record.status_of(folder).get('message', 'failed')}")
    return load(folder)


def sweep(
    config: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] = {},  # noqa: B006 - never written to
    workers: int | None = None,
    keep: bool = False,
    records: str | os.PathLike | Sequence[str | os.PathLike] = (),
    pack: int | str = "auto",
    launch: "Launch | None" = None,
) -> "pandas.DataFrame":
    """Trains every cell of a sweep file, fits and plots, and returns the table of its runs.

    Args:
        config: a file with get_config() and sweep(), "path.py" or "path.py:argument".
        workdir: parent of the run directories; None: runs/<file>[-<argument>].
        overrides: dotted key -> value, applied to the base config before each cell's overrides.
        workers: number of worker processes; None: one per core or accelerator.
        keep: accept cells trained by other source code.
        records: one or several files of `lmjax runs --records`, paths or URLs in a bucket, whose runs count as done.
        pack: cells of equal shape that a worker trains at a time; "auto": 1 on CPUs, else as it measures.
        launch: starts a worker, (place, cells, command) -> handle; None: a process on this machine.

    Returns:
        One row per run with N, D, C, losses and every config key; input of `lmjax.scaling.fit`.

    Raises:
        InputError: a cell has a bad config; the message names its settings. Or this process uses an accelerator.
        KeyboardInterrupt: stopped by a signal; the same call resumes the sweep.
    """
    from lmjax import bucket, hardware, run_record
    from lmjax.sweeps import run

    if launch is None and hardware.accelerators() and hardware.in_use():
        raise InputError(
            "lmjax.sweep: expected a process that does not use its accelerators, which its workers need, but it has "
            "started JAX on them; call lmjax.sweep first, or run `lmjax sweep` in a process of its own"
        )
    folder = run.workdir_of(str(config)) if workdir is None else bucket.local(workdir)
    files = [bucket.local_file(path) for path in ([records] if isinstance(records, (str, os.PathLike)) else records)]
    options = {"analyse": True, "keep": keep, "records_files": files, "pack": pack, "launch": launch}
    if run.sweep(str(config), folder, overrides, workers or 0, **options) == 75:
        raise KeyboardInterrupt(f"{folder}: stopped; the same call resumes the sweep")
    return run_record.read_runs(folder)

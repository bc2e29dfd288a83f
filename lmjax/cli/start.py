"""Setup of a command: settings needed before JAX is imported, and an early check that figures can be drawn."""

import argparse
import pathlib


class FigurePath(argparse.Action):
    """A figure file option; checks its format and that matplotlib is installed while parsing."""

    def __call__(self, parser, namespace, value, option=None):
        from lmjax.scaling.figures import style

        path = pathlib.Path(value)
        style.check_formats([path.suffix[1:] or "png"])
        setattr(namespace, self.dest, path)


def start(several: bool = False):
    """Sets up this worker's cores and memory, joins the run's other processes, and enables the compilation cache."""
    from lmjax import process

    process.enter_worker()
    process.keep_memory()
    if several:
        from lmjax import distributed

        distributed.stop_before_training()
        distributed.initialize()
    process.use_compilation_cache()

"""What comes before a command's work: settings before JAX is imported, and whether figures can be drawn at all."""

import argparse
import pathlib


class FigurePath(argparse.Action):
    """An option with the file of a figure: its format, and whether matplotlib is there, are checked at once."""

    def __call__(self, parser, namespace, value, option=None):
        from lmjax.scaling.figures import style

        path = pathlib.Path(value)
        style.check_formats([path.suffix[1:] or "png"])
        setattr(namespace, self.dest, path)


def start(several: bool = False):
    """What comes before JAX: this worker's cores, memory settings, joining other processes, the compilation cache."""
    from lmjax import process

    process.enter_worker()
    process.keep_memory()
    if several:
        from lmjax import distributed

        distributed.stop_before_training()
        distributed.initialize()
    process.use_compilation_cache()

"""What comes before JAX is imported by a command."""


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

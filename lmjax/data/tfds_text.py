"""The embedded corpora as a TFDS dataset, `lmjax_text`, and reading of any other; without TensorFlow."""

import contextlib
import dataclasses
import hashlib
import io
import mmap
import os
import pathlib
import re
import socket
import struct
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from lmjax.data import corpora
from lmjax.errors import InputError
from lmjax.locks import built_once

_NAME = r"[A-Za-z]\w*(/[A-Za-z0-9][\w.+-]*)?(:\d+\.\d+\.\d+)?"


@dataclasses.dataclass(kw_only=True)
class CorpusConfig(tfds.core.BuilderConfig):
    """One name of `corpora.NAMES`."""


class LmjaxText(tfds.core.GeneratorBasedBuilder):
    """Records {"key", "text"}, all in the split "train": lmjax selects validation documents by their hash."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [CorpusConfig(name=name) for name in corpora.NAMES]

    def _info(self):
        text = tfds.features.Text
        sources = [corpora.CORPORA[member] for member in corpora.members(self.builder_config.name)]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text shipped in Python packages: " + ", ".join(source.package for source in sources),
            features=tfds.features.FeaturesDict({"key": text(), "text": text()}),
            license="; ".join(dict.fromkeys(source.licence for source in sources)),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for member in corpora.members(self.builder_config.name):
            for key, text in corpora.read(member):
                yield key, {"key": key, "text": text}


def embedded(name: str, folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of an embedded corpus, prepared once as array_record files in `folder`, for this text only."""
    with built_once(folder) as partial:
        if partial is not None:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS says "downloading"; nothing is downloaded
                _prepare(LmjaxText(config=name, data_dir=partial, file_format="array_record"))
    builder = LmjaxText(config=name, data_dir=folder, file_format="array_record")
    for record in _records(builder, "train"):
        yield record["key"].decode(), record["text"].decode()


def _prepare(builder) -> None:
    tfds.disable_progress_bar()
    builder.download_and_prepare()


def find(name: str):
    """Returns the prepared builder of "name/config"; prepares it if it is not, when that needs no TensorFlow.

    Prepared data come first, from TFDS's data folder (environment variable TFDS_DATA_DIR). Nothing is downloaded
    unless the environment variable LMJAX_DOWNLOAD is 1: the name may come from someone else's run record.

    Raises:
        InputError: unknown name, or not one of TFDS's own data sets; not prepared and LMJAX_DOWNLOAD is not 1;
            preparing it needs TensorFlow or Beam, or a network that is not there.
    """
    if not re.fullmatch(_NAME, name):
        raise InputError(
            f"tfds:{name}: expected a data set of TFDS itself, tfds:NAME or tfds:NAME/CONFIG (community and Hugging "
            "Face names run code from the network); convert others to jsonl or parquet and name them as files:GLOB"
        )
    builder = _builder(name)
    if builder.is_prepared():
        if builder.info.file_format.value not in ("array_record", "tfrecord"):
            raise InputError(
                f"tfds:{name} in {builder.data_path} is prepared as {builder.info.file_format.value}, which "
                "TFDS reads incompletely; prepare it with file_format='array_record'"
            )
        return builder
    builder = _builder(name, file_format="array_record")
    _require_network(name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            _prepare(builder)
    except ImportError as error:
        raise InputError(
            f'tfds:{name}: preparing it needs TensorFlow or Beam ({error}); run: pip install "lmjax[tf]", or '
            f"prepare it elsewhere as array_record and set TFDS_DATA_DIR (looked in {builder.data_path})"
        ) from error
    except Exception as error:  # any error of a download or third-party builder
        raise InputError(
            f"tfds:{name}: could not be prepared: {type(error).__name__}: {error}; prepare it elsewhere as "
            f"array_record and set TFDS_DATA_DIR (looked in {builder.data_path})"
        ) from error
    return builder


def _known_feature(cls, name: str):
    """TFDS imports the module of any class that a prepared data set names in features.json; only its own may be."""
    if name not in cls._registered_features and not name.startswith("tensorflow_datasets."):
        raise InputError(f"features.json names the class {name!r}; expected one of tensorflow_datasets")
    return _CLASS_OF_NAME(cls, name)


_CLASS_OF_NAME = tfds.features.FeatureConnector.cls_from_name.__func__
tfds.features.FeatureConnector.cls_from_name = classmethod(_known_feature)


def _builder(name: str, **options):
    for module in ("", "text", "translate", "question_answering"):  # where TFDS keeps older datasets
        if module:
            with contextlib.suppress(ImportError):
                __import__(f"tensorflow_datasets.{module}")
        try:
            return tfds.builder(name, **options)
        except tfds.core.registered.DatasetNotFoundError as error:
            missing = error
        except ImportError as error:
            raise InputError(f'tfds:{name} needs TensorFlow ({error}); run: pip install "lmjax[tf]"') from error
        except (ValueError, AssertionError) as error:
            raise InputError(f"tfds:{name}: {error}; expected tfds:NAME or tfds:NAME/CONFIG") from error
    raise InputError(
        f"tfds:{name}: no such dataset in tensorflow-datasets {tfds.__version__}, and none prepared in "
        f"{tfds.core.constants.DATA_DIR}; the names are at "
        "https://www.tensorflow.org/datasets/catalog; prepared data are found by TFDS_DATA_DIR"
    ) from missing


def _require_network(name: str) -> None:
    """Raises InputError if downloads are not allowed, or at once without a network, where TFDS retries for minutes."""
    if os.environ.get("LMJAX_DOWNLOAD") != "1":
        raise InputError(
            f"tfds:{name} is not prepared on this machine; set the environment variable LMJAX_DOWNLOAD=1 to download "
            "it, or prepare it elsewhere as array_record and set TFDS_DATA_DIR"
        )
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError as error:
        raise InputError(
            f"tfds:{name} is not prepared on this machine and there is no network to download it ({error}); "
            "prepare it elsewhere as array_record and set TFDS_DATA_DIR"
        ) from error


def identity(builder) -> dict:
    """Returns what identifies prepared data: name, version, record counts, file sizes."""
    files = {
        pathlib.Path(path).name: pathlib.Path(path).stat().st_size
        for split in builder.info.splits.values()
        for path in split.filepaths
    }
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    facts = hashlib.sha256(repr([sorted(files.items()), sorted(counts.items())]).encode()).hexdigest()
    return {"tfds": builder.info.full_name, "files": facts}


def texts(builder, split: str, text_field: str) -> Iterator[tuple[str, str]]:
    """Yields (key, text) of one split of any prepared dataset.

    Raises:
        InputError: no such field, or it holds no text; invalid UTF-8.
    """
    name = builder.info.full_name
    if text_field not in builder.info.features:
        raise InputError(
            f"tfds:{name}: expected a text field {text_field!r}, got {sorted(builder.info.features)}; "
            "set data.text_field"
        )
    for number, record in enumerate(_records(builder, split)):
        value = record[text_field]
        if not isinstance(value, bytes):
            raise InputError(f"tfds:{name}: field {text_field!r} holds {type(value).__name__}, expected text")
        try:
            yield f"{name}/{split}:{number}", value.decode("utf8")
        except UnicodeDecodeError as error:
            raise InputError(f"tfds:{name}/{split}, record {number}: invalid UTF-8: {error}") from error


def _records(builder, split: str) -> Iterator[dict]:
    if builder.info.file_format.value == "tfrecord":
        yield from _tfrecords(builder, split)
        return
    source = builder.as_data_source(split)
    for start in range(0, len(source), 64):  # reading by blocks is twice as fast for short documents
        yield from source.__getitems__(range(start, min(start + 64, len(source))))


def _tfrecords(builder, split: str) -> Iterator[dict]:
    """A record is: length (8 bytes), its checksum (4), the payload, its checksum (4)."""
    if split not in builder.info.splits:
        raise InputError(f"tfds:{builder.info.full_name} is stored as tfrecord: expected a whole split, got {split!r}")
    for path in filter(os.path.getsize, builder.info.splits[split].filepaths):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            place = 0
            while place < len(raw):
                (length,) = struct.unpack_from("<Q", raw, place)
                if place + length + 16 > len(raw):
                    raise InputError(f"{path}: truncated at byte {place}; prepare tfds:{builder.info.full_name} again")
                yield builder.info.features.deserialize_example_np(raw[place + 12 : place + 12 + length])
                place += length + 16

"""Objects of a bucket: `s3://bucket/path` of Amazon S3 and its protocol, `gs://bucket/path` of Google Cloud Storage."""

import contextlib
import functools
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lmjax.errors import InputError

ANY = object()


class S3:
    """The objects of a bucket of Amazon S3, or of what speaks its protocol at $AWS_ENDPOINT_URL."""

    def __init__(self, name: str):
        config = _module("botocore.config", "s3").Config(retries={"mode": "standard"})
        self.name, self.client = name, _module("boto3.session", "s3").Session().client("s3", config=config)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def read(self, key: str) -> tuple[bytes, str] | None:
        """Return (content, version), None if there is no such object. A version changes when an object is written."""
        try:
            found = self.client.get_object(Bucket=self.name, Key=key)
        except self.client.exceptions.NoSuchKey:
            return None
        return found["Body"].read(), found["ETag"]

    def write(self, key: str, content: bytes, version: Any = ANY) -> str | None:
        """Write an object if it has this version (None: if it does not exist); return the new version, else None."""
        condition = {} if version is ANY else {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            return self.client.put_object(Bucket=self.name, Key=key, Body=content, **condition)["ETag"]
        except self.client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                raise
            return None

    def upload(self, path: pathlib.Path, key: str) -> None:
        """Copy a file, of any size, to an object."""
        self.client.upload_file(str(path), self.name, key)

    def download(self, key: str, path: pathlib.Path) -> None:
        """Copy an object to a file."""
        self.client.download_file(self.name, key, str(path))

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=self.name, Key=key)


class GS:
    """The same for Google Cloud Storage."""

    def __init__(self, name: str):
        self.gone = _module("google.api_core.exceptions", "gs")
        self.bucket = _module("google.cloud.storage", "gs").Client().bucket(name)

    def keys(self, prefix):
        return [blob.name for blob in self.bucket.list_blobs(prefix=prefix)]

    def read(self, key):
        try:
            blob = self.bucket.get_blob(key)
            return blob and (blob.download_as_bytes(if_generation_match=blob.generation), str(blob.generation))
        except (self.gone.PreconditionFailed, self.gone.NotFound):  # written in between
            return self.read(key)

    def write(self, key, content, version=ANY):
        blob = self.bucket.blob(key)
        condition = {} if version is ANY else {"if_generation_match": int(version or 0)}
        try:
            blob.upload_from_string(content, **condition)
        except self.gone.PreconditionFailed:
            return None
        return str(blob.generation)

    def upload(self, path, key):
        self.bucket.blob(key).upload_from_filename(str(path))

    def download(self, key, path):
        self.bucket.blob(key).download_to_filename(str(path))

    def delete(self, key):
        self.bucket.blob(key).delete()


KINDS = {"s3": S3, "gs": GS}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role of this machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, gcloud auth application-default login, or a service account of this machine",
}


def _module(name, extra):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f'{extra}://...: expected the package {name}, got none; pip install "lmjax[{extra}]"'
        ) from error


class Place(NamedTuple):
    """A folder of a bucket."""

    url: str  # s3://bucket/path
    prefix: str  # "path/"
    folder: pathlib.Path  # its working copy

    @classmethod
    def of(cls, parts: Sequence[str], folder: pathlib.Path) -> "Place":
        """Return the place with these parts of its URL: ("s3", "bucket", "path")."""
        return cls(f"{parts[0]}://{'/'.join(parts[1:])}", "".join(f"{part}/" for part in parts[2:]), folder)

    def objects(self) -> S3 | GS:
        """Return the objects of the bucket."""
        scheme, _, rest = self.url.partition("://")
        with self.errors():
            return _objects(scheme, rest.partition("/")[0])

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raise errors of the bucket as InputError if a retry cannot help, else as ConnectionError."""
        try:
            yield
        except Exception as error:
            if not type(error).__module__.startswith(("botocore", "boto3", "s3transfer", "google")):
                raise
            got, scheme = f"{type(error).__name__}: {' '.join(str(error).split())}", self.url[:2]
            if re.search(r"Credentials|AccessDenied|Forbidden|NoSuchBucket|NotFound|InvalidAccess|\(40[134]\)", got):
                raise InputError(
                    f"{self.url}: expected a bucket that this machine may list, read and write, got {got}; check its "
                    f"name, and the credentials: {CREDENTIALS[scheme]}"
                ) from error
            raise ConnectionError(
                f"{self.url} cannot be reached ({got}); the same command continues when it can"
            ) from error

    def attempt(self, call: Callable[[], None]) -> None:
        """Call a function; print errors of the bucket as a warning of one line."""
        try:
            with self.errors():
                call()
        except (OSError, InputError) as error:
            print(f"lmjax: warning: {error}", file=sys.stderr, flush=True)


def parts_of(url: str | os.PathLike) -> list[str] | None:
    """Return the parts of the URL of a folder in a bucket, None for any other path.

    Raises:
        InputError: a URL without a folder, or with "." or ".." in it.

    Example: parts_of("s3://bucket/a/b") -> ["s3", "bucket", "a", "b"]
    """
    scheme, _, rest = str(url).partition("://")
    if scheme not in KINDS:
        return None
    parts = [part for part in rest.split("/") if part]
    if len(parts) < 2 or {".", ".."} & set(parts):
        raise InputError(f"expected {scheme}://bucket/path, got {url}; name a folder of the bucket")
    return [scheme, *parts]


@functools.cache
def _objects(scheme, name):
    return KINDS[scheme](name)

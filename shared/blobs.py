"""The blob store: immutable bytes named by their sha256, over any fsspec filesystem.

Writes are atomic (a temporary name, then a rename), so a reader sees a blob whole or not at all;
reads check the content against the name. Blobs are sharded by the first two hex digits.
"""

import hashlib
import os
import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shared.errors import BlobError


def sha256_hex(data: bytes) -> str:
    """The name of a blob."""
    return hashlib.sha256(data).hexdigest()


class BlobStore:
    """Content-addressed bytes under a root URL (`/var/blobs`, `s3://bucket/prefix`, …).

    Raises `BlobError` for a root it cannot have.
    """

    def __init__(self, url: str) -> None:
        try:
            self._filesystem, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise BlobError(
                f"blob_url {url!r} is neither a folder nor a URL that fsspec opens: {error}"
            ) from error
        self._is_local = isinstance(self._filesystem, LocalFileSystem)

    def path(self, name: str) -> str:
        """Where a blob lies in the filesystem. Raises `BlobError` if `name` is not a sha256."""
        if len(name) != 64 or not set(name) <= set("0123456789abcdef"):
            raise BlobError(f"{name[:64]!r} is not a sha256 hex digest")
        return f"{self._root}/{name[:2]}/{name}"

    def put(self, data: bytes) -> str:
        """Store bytes; returns their name. Storing the same bytes again is free."""
        name = sha256_hex(data)
        path = self.path(name)
        if self._filesystem.exists(path):
            return name
        folder = path.rsplit("/", 1)[0]
        self._filesystem.makedirs(folder, exist_ok=True)
        if self._is_local:
            self._write_local(path, data)
        else:
            self._filesystem.pipe_file(path, data)
        return name

    def _write_local(self, path: str, data: bytes) -> None:
        temporary = f"{path}.{uuid.uuid4().hex}.part"
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    def get(self, name: str) -> bytes:
        """The bytes of a blob. Raises `BlobError` if it is missing or damaged."""
        try:
            data: bytes = self._filesystem.cat_file(self.path(name))
        except FileNotFoundError as error:
            raise BlobError(f"no blob {name}") from error
        if sha256_hex(data) != name:
            raise BlobError(f"blob {name} is damaged: its content has another hash")
        return data

    def has(self, name: str) -> bool:
        """Whether the blob is there."""
        return bool(self._filesystem.exists(self.path(name)))

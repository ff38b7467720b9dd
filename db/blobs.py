"""Blobs: stored bytes under a key, in a folder or in a store that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from db.folder_store import FolderStore
from db.keys import new_key
from ekiben.errors import BadInput

__all__ = ["BlobStore", "new_key", "open_store"]


class BlobStore(Protocol):
    """A store of bytes under keys. Every method blocks and may be called from several threads.

    Methods with a key raise BadInput for what is not a key, and Unavailable when the store cannot work now.
    """

    parallel: int
    """How many calls at once are faster than one: few for a disk, many for a server across a network."""

    def put(self, key: str, data: bytes, mime_type: str) -> None:
        """Write a blob. It is durable when this returns and never visible in part; writing it again is harmless."""

    def put_file(self, key: str, path: Path, mime_type: str) -> None:
        """Write the bytes of a file as ``put`` does, without holding all of them in memory."""

    def get(self, key: str) -> bytes:
        """All bytes of a blob. NotFound."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces of at most 256 KiB. NotFound is raised here, not by the first piece.

        Close the iterator when it is not read to its end.
        """
        ...

    def size(self, key: str) -> int:
        """The size of a blob in bytes. NotFound."""
        ...

    def exists(self, key: str) -> bool:
        """Whether there is a blob under the key."""
        ...

    def delete(self, key: str) -> None:
        """Remove a blob; a missing one is no error."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with ``prefix``, in any order."""
        ...

    def presigned_url(
        self, key: str, expires_s: int, filename: str | None = None, mime_type: str | None = None
    ) -> str | None:
        """A URL that serves the blob without credentials for ``expires_s`` (1 s to 7 days), under that name and type.

        None when the store has no URL of its own. Whether the blob exists is not checked.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """The file of the blob, which must not be changed; None when the store is not on this machine. NotFound."""
        ...

    def check(self) -> None:
        """Write, read and remove a small blob. Unavailable when that does not work."""

    def remove_abandoned(self, *, everywhere: bool = False) -> int:
        """Remove what killed processes had not written in full; how many files. ``everywhere``: takes long."""
        ...

    def close(self) -> None:
        """Close connections."""


def open_store(url: str, access_key: str = "", secret_key: str = "") -> BlobStore:
    """The store at the path of a folder or ``s3://bucket?endpoint=http://host:port&region=us-east-1``.

    Nothing is connected yet, so that a process starts while its store is down. BadInput for other addresses.
    """
    if "://" not in url:
        if not url:
            raise BadInput("the address of the blob store is empty")
        return FolderStore(Path(url))
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    endpoint = urlsplit(options.pop("endpoint", ""))
    region = options.pop("region", "us-east-1")
    if parts.scheme != "s3" or not parts.netloc or parts.path.strip("/") or options:
        raise BadInput("the blob store is a folder or s3://bucket?endpoint=http://host:port&region=us-east-1")
    if endpoint.scheme not in ("http", "https") or not endpoint.netloc or endpoint.path.strip("/"):
        raise BadInput("the endpoint of the blob store is http://host:port or https://host")
    from db.s3_store import S3Store  # late: minio takes 6 MB of a process that keeps its blobs in a folder

    return S3Store(parts.netloc, endpoint.netloc, endpoint.scheme == "https", region, access_key, secret_key)

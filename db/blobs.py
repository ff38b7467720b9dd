"""Blobs: stored bytes under a key, in a folder or in a store that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from db.folder_store import FolderStore
from db.keys import new_key
from db.s3_store import S3Store
from ekiben.errors import BadInput

__all__ = ["BlobStore", "new_key", "open_store"]


class BlobStore(Protocol):
    """Safe to use from several threads. Every method blocks.

    Every method with a key raises BadInput for one that is none, and Unavailable when the store cannot do its work now.
    """

    parallel: int
    """Calls at once that pay: few where a disk is written, many where a server is waited for."""

    def put(self, key: str, data: bytes, mime_type: str) -> None:
        """Write a blob: afterwards it is safe, and nobody ever sees a part of it. Writing it again does no harm."""

    def put_file(self, key: str, path: Path, mime_type: str) -> None:
        """Write the file's bytes as ``put`` does, without holding them in memory at once."""

    def get(self, key: str) -> bytes:
        """All bytes. NotFound."""
        ...

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces. NotFound is raised here, not by the first piece. Close it when not read to its end."""
        ...

    def size(self, key: str) -> int:
        """In bytes. NotFound."""
        ...

    def exists(self, key: str) -> bool: ...

    def delete(self, key: str) -> None:
        """Remove the blob; one that is missing is no error."""

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with ``prefix``, in any order."""
        ...

    def presigned_url(
        self, key: str, expires_s: int, filename: str | None = None, mime_type: str | None = None
    ) -> str | None:
        """An address that needs no credentials and serves the blob for 1 s to 7 days, under that name and type.

        None when the store has no address of its own. The blob is not looked for.
        """
        ...

    def local_path(self, key: str) -> Path | None:
        """The file that holds the blob, never to be changed. NotFound. None when the store is not on this machine."""
        ...

    def check(self) -> None:
        """Write a small blob, read it and remove it. Unavailable when that does not work."""

    def close(self) -> None:
        """Let go of connections."""


def open_store(url: str, access_key: str = "", secret_key: str = "") -> BlobStore:
    """The store at a folder's path or ``s3://bucket?endpoint=http://host:port&region=us-east-1``.

    Nothing is connected yet: a store that is down does not keep a process from starting. BadInput for other addresses.
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
    return S3Store(parts.netloc, endpoint.netloc, endpoint.scheme == "https", region, access_key, secret_key)

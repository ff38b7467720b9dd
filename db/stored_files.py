"""Reading blobs as they were stored: with the size and the SHA-256 that their rows have, or not at all."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from db.blobs import BlobStore
from ekiben.errors import Damaged

log = logging.getLogger(__name__)

HASHED_BYTES = 64_000_000
"""A file that is given away unread (sendfile) is hashed up to this size; a larger one has its size compared alone."""

_KNOWN = 10_000

_Stamp = tuple[int, int, int, str]

_lock = threading.Lock()
_known: OrderedDict[Path, _Stamp] = OrderedDict()


def read_whole(store: BlobStore, key: str, size: int, sha256: str | None) -> bytes:
    """All bytes of a blob. NotFound; Damaged where they are not those that were stored. ``sha256`` None: unknown."""
    data = store.get(key)
    check_bytes(key, data, size, sha256)
    return data


def check_bytes(key: str, data: bytes, size: int, sha256: str | None) -> None:
    """Damaged where ``data``, read from the blob ``key``, is not what was stored."""
    _check_size(key, len(data), size)
    if sha256 is not None:
        _check_digest(key, hashlib.sha256(data).hexdigest(), sha256)


def stream_whole(store: BlobStore, key: str, size: int, sha256: str | None) -> Iterator[bytes]:
    """The bytes in pieces. NotFound, and Damaged where the size differs, are raised here; the last piece is followed by
    Damaged where the bytes differ."""
    _check_size(key, store.size(key), size)
    return _hashed(store.stream(key), key, size, sha256)


def check_file(store: BlobStore, key: str, size: int, sha256: str | None) -> None:
    """Compare a blob without giving its bytes. NotFound, Damaged.

    The size always; the SHA-256 of a file on this disk of at most HASHED_BYTES, once for as long as it is not written.
    """
    path = store.local_path(key)
    if path is None:
        _check_size(key, store.size(key), size)
        return
    try:
        check_path(path, size, sha256, key)
    except FileNotFoundError:
        store.size(key)  # NotFound: another request removes it just now
        raise


def check_path(path: Path, size: int, sha256: str | None, name: str, most_bytes: int = HASHED_BYTES) -> None:
    """As ``check_file``, of a file on this disk that is called ``name`` in the log. OSError where it cannot be read."""
    found = path.stat()
    _check_size(name, found.st_size, size)
    if sha256 is None or size > most_bytes:
        return
    stamp = (found.st_ino, found.st_mtime_ns, found.st_size, sha256)
    with _lock:
        if _known.get(path) == stamp:
            return
    with path.open("rb") as file:
        _check_digest(name, hashlib.file_digest(file, "sha256").hexdigest(), sha256)
    with _lock:
        _known[path] = stamp
        while len(_known) > _KNOWN:
            _known.popitem(last=False)


def _hashed(pieces: Iterator[bytes], key: str, size: int, sha256: str | None) -> Iterator[bytes]:
    digest, sent = hashlib.sha256(), 0
    try:
        for piece in pieces:
            digest.update(piece)
            sent += len(piece)
            yield piece
    finally:
        if (close := getattr(pieces, "close", None)) is not None:
            close()
    _check_size(key, sent, size)
    if sha256 is not None:
        _check_digest(key, digest.hexdigest(), sha256)


def _check_size(key: str, found: int, size: int) -> None:
    if found != size:
        log.error("a stored file is damaged", extra={"key": key, "bytes": found, "expected": size})
        raise Damaged(f"the stored file is damaged: it has {found} bytes instead of {size}")


def _check_digest(key: str, found: str, sha256: str) -> None:
    if found != sha256:
        log.error("a stored file is damaged", extra={"key": key, "sha256": found, "expected": sha256})
        raise Damaged("the stored file is damaged: its bytes are not those that were stored")

"""Blobs in a folder: one file each, complete or absent."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from db.keys import check_key, check_prefix
from ekiben.disk_full import is_disk_full
from ekiben.errors import Conflict, NotFound, StorageFull, Unavailable
from ekiben.logs import SeldomLine
from ekiben.temporary_files import FOLDER, TEMPORARY, sweep, temporary_name

log = logging.getLogger(__name__)

PIECE = 256 * 1024
_full = SeldomLine(log, logging.WARNING, "the blob store has no space left")


class FolderStore:
    """The blob store of one machine; several processes may use the same folder. Methods: see ``BlobStore``."""

    parallel = 2

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def put(self, key: str, data: bytes, mime_type: str) -> None:
        """Write a blob. The MIME type is not stored: the row of the blob holds it."""
        self._write(self._path(key), BytesIO(data))

    def put_file(self, key: str, path: Path, mime_type: str) -> None:
        """Copy a file to a blob."""
        with path.open("rb") as source:
            self._write(self._path(key), source)

    def get(self, key: str) -> bytes:
        """All bytes of a blob. NotFound."""
        with _reading(key):
            return self._path(key).read_bytes()

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes in pieces of 256 KiB. NotFound."""
        with _reading(key):
            file = self._path(key).open("rb")
        return _pieces(file, key)

    def size(self, key: str) -> int:
        """The size of a blob in bytes. NotFound."""
        with _reading(key):
            if not (path := self._path(key)).is_file():
                raise FileNotFoundError
            return path.stat().st_size

    def exists(self, key: str) -> bool:
        """Whether the file of the blob exists."""
        with _reading(key):
            return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """Remove a blob; a missing one is no error."""
        with _writing():
            if (path := self._path(key)).is_file():
                path.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        """The keys that start with ``prefix``, in any order."""
        check_prefix(prefix)
        return self._walk(prefix)

    def presigned_url(
        self, key: str, expires_s: int, filename: str | None = None, mime_type: str | None = None
    ) -> str | None:
        """None: a folder has no URL."""
        check_key(key)
        return None

    def local_path(self, key: str) -> Path:
        """The file of a blob, which must not be changed. NotFound."""
        path = self._path(key)
        with _reading(key):
            if not path.is_file():
                raise FileNotFoundError
        return path

    def check(self) -> None:
        """Write, read and remove a small file. Unavailable when that does not work."""
        path = self.root / FOLDER / temporary_name()
        self._write(path, BytesIO(b"check"))
        with _writing():
            if path.read_bytes() != b"check":
                raise OSError("other bytes were read than written")
            path.unlink()

    def remove_abandoned(self, *, everywhere: bool = False) -> int:
        """Remove what killed processes had not written in full; how many files. ``everywhere``: visits all folders."""
        folders = [self.root / FOLDER, self.root]
        return sweep((Path(folder) for folder, _, _ in os.walk(self.root)) if everywhere else folders)

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _path(self, key: str) -> Path:
        check_key(key)
        return self.root / key

    def _write(self, path: Path, source: IO[bytes]) -> None:
        with _writing():
            _make_folder(path.parent)
            try:
                _write_through(self._temporary(path.parent), path, source)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                # A folder that is mounted from the same file system has its device number (a bind mount, a volume).
                source.seek(0)
                _write_through(path.parent / temporary_name(), path, source)
            _sync(path.parent)

    def _temporary(self, target: Path) -> Path:
        """A new path on the file system of the folder ``target``, in one folder for all, which is swept quickly."""
        folder = self.root / FOLDER
        _make_folder(folder)
        apart = folder.stat().st_dev != target.stat().st_dev
        return (target if apart else folder) / temporary_name()

    def _walk(self, prefix: str) -> Iterator[str]:
        # Only the folder that the prefix names can hold such keys; the rest of the prefix is the start of a file name.
        start = self.root / prefix.rpartition("/")[0]
        with _reading(prefix):
            for folder, folders, names in os.walk(start, onerror=_unless_missing):
                folders[:] = [name for name in folders if name != FOLDER]
                place = Path(folder).relative_to(self.root).as_posix()
                for name in names:
                    key = name if place == "." else f"{place}/{name}"
                    if key.startswith(prefix) and not name.startswith(TEMPORARY):
                        yield key


def _write_through(partial: Path, path: Path, source: IO[bytes]) -> None:
    """Write the rest of ``source`` to ``path``, by way of the new file ``partial``."""
    try:
        with partial.open("xb") as file:
            shutil.copyfileobj(source, file, PIECE)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _unless_missing(error: OSError) -> None:
    # A folder that cannot be listed must not look empty.
    if not isinstance(error, FileNotFoundError):
        raise error


def _pieces(file: IO[bytes], key: str) -> Iterator[bytes]:
    with file, _reading(key):
        while piece := file.read(PIECE):
            yield piece


def _make_folder(folder: Path) -> None:
    """Make a folder durable: its entry is safe only once its parent folder was synced."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NotFound(f"there is no blob {key}") from None
    except OSError as error:
        raise _unavailable(error) from None


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        raise Conflict("the key of this blob goes on where that of another ends") from None
    except OSError as error:
        raise _unavailable(error) from None


def _unavailable(error: OSError) -> Unavailable:
    """The refusal for a disk that is full, read-only, forbidden or broken; the cause goes to the log."""
    if is_disk_full(error):
        _full.write(cause=str(error))
        return StorageFull("the blob store has no space left")
    log.warning("the blob store cannot be used", extra={"cause": str(error)})
    return Unavailable("the blob store is not available")
